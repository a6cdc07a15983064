//! All state, in Postgres. One file a table below; `Store::tx` is the only way to a transaction of several statements.

use std::{
    fs,
    ops::{Deref, DerefMut},
    path::Path,
    sync::Arc,
    time::Duration,
};

use sqlx::{
    Executor as _, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions, PgSslMode},
};
use tokio::time::Instant;

use kept_connection::KeptConnection;

use crate::{
    config,
    error::Error,
    integrity::{
        Changes,
        marks::{Marks, Reached},
    },
};

pub mod admin_tokens;
pub mod audit;
pub mod bases;
pub mod ca_certificates;
pub mod deks;
pub mod destruction_certificates;
pub mod exposure;
pub mod installation;
pub mod integrity_head;
pub mod keks;
mod kept_connection;
pub mod key_references;
pub mod keysets;
pub mod leases;
pub mod new_versions;
pub mod objects;
pub mod plans;
pub mod quarantined_deks;
pub mod recovery_keys;
pub mod replicas;
pub mod root_wrapping_keys;
pub mod secret_labels;
pub mod secret_versions;
pub mod secrets;

#[cfg(debug_assertions)]
mod crash_points;

/// Where Postgres tells that keys have changed.
pub const KEYS_CHANNEL: &str = "keyfold_keys";

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("../migrations");

/// How often a transaction that lost against others is run again before its caller is told.
const ATTEMPTS: u32 = 10;

/// How long a transaction that met a change of the root key is run again until its replica has followed, and how often.
const ROOT_CHANGE_MAX: Duration = Duration::from_secs(10);
const ROOT_CHANGE_POLL: Duration = Duration::from_millis(100);

/// What each transaction sets for itself, so that a proxy may share connections between transactions. A replica that
/// is paused in the middle loses its locks, none waits for ever, and a commit is durable whatever the database's default.
macro_rules! bounds {
    () => {
        "; SET LOCAL idle_in_transaction_session_timeout = '10s'; SET LOCAL lock_timeout = '10s'; \
         SET LOCAL statement_timeout = '30s'; SET LOCAL synchronous_commit = on; SET LOCAL plan_cache_mode = auto"
    };
}

/// The way to Postgres.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
    /// Two connections, for the look at the database's state and for signs of life: neither must wait behind callers, nor
    /// one behind the other.
    watch: PgPool,
    /// Two connections for what is declared, one that reads it and one that listens for changes: callers who wait for
    /// theirs must not keep a replica from confirming what they are decided on.
    declared: PgPool,
    /// A connection for `at_once`, beside those of the pool.
    kept: Arc<KeptConnection>,
    marks: Arc<Marks>,
}

/// How a transaction is kept apart from others.
#[derive(Debug, Clone, Copy)]
pub enum Isolation {
    /// As if alone.
    Serializable,
    /// Each statement sees what is committed. The reason says why that is enough.
    ReadCommitted {
        /// Why.
        because: &'static str,
    },
    /// The same, for the few statements that run all the time: Postgres plans each once for a connection, whatever its
    /// parameters, instead of anew for those of each run.
    ReadCommittedPlannedOnce {
        /// Why.
        because: &'static str,
    },
}

/// An open transaction. Rolled back when dropped. It remembers what it has changed of guarded rows, so that it cannot
/// commit without `Broker::append`, which carries that into the integrity head.
pub struct Tx {
    postgres: sqlx::Transaction<'static, sqlx::Postgres>,
    changes: Changes,
    reaches: Reached,
    marks: Arc<Marks>,
    #[cfg(debug_assertions)]
    name: &'static str,
}

/// A transaction that only reads, and sees one moment. Ends when dropped.
pub type Moment = sqlx::Transaction<'static, sqlx::Postgres>;

/// What a transaction gave, once it is committed.
pub struct Committed<T>(T);

impl Tx {
    /// Makes the transaction durable, and gives `value` back.
    ///
    /// # Errors
    /// Those of Postgres; `Corrupt` when guarded rows were changed and no entry was appended afterwards.
    pub async fn commit<T>(self, value: T) -> Result<Committed<T>, Error> {
        if !self.changes.is_empty() {
            return Err(Error::Corrupt("guarded rows were changed without an audit entry".into()));
        }
        #[cfg(debug_assertions)]
        crash_points::pass(self.name, crash_points::Moment::Before);
        self.postgres.commit().await?;
        #[cfg(debug_assertions)]
        crash_points::pass(self.name, crash_points::Moment::After);
        self.marks.raise(self.reaches);
        Ok(Committed(value))
    }

    /// What it has changed of guarded rows since the last entry. Each function that writes one adds to it.
    pub fn changes(&mut self) -> &mut Changes {
        &mut self.changes
    }

    /// How far its commit brings the database.
    pub fn reaches(&mut self, reached: Reached) {
        self.reaches = reached;
    }
}

impl Deref for Tx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.postgres
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.postgres
    }
}

impl Store {
    /// A store that connects when first used, always over TLS with the server's certificate and name checked.
    ///
    /// # Errors
    /// When the URL or the password file cannot be read.
    pub fn new(config: &config::Database) -> Result<Self, String> {
        let options =
            connect_options("database", &config.url, config.password_file.as_deref(), &config.ca_file)?;
        let pool = |connections, patience_secs| {
            PgPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(Duration::from_secs(patience_secs))
                // Single statements are look-ups by key: planned anew for the values of each run they take twice as long.
                .after_connect(|connection, _| {
                    Box::pin(async move {
                        connection.execute("SET plan_cache_mode = force_generic_plan").await.map(drop)
                    })
                })
                .connect_lazy_with(options.clone())
        };
        Ok(Self {
            pool: pool(config.max_connections, 5),
            watch: pool(2, 2),
            declared: pool(2, 5),
            kept: Arc::default(),
            marks: Arc::default(),
        })
    }

    /// How far the database is known to have come.
    pub fn marks(&self) -> Arc<Marks> {
        Arc::clone(&self.marks)
    }

    /// A connection for single statements.
    ///
    /// # Errors
    /// When Postgres cannot be reached.
    pub async fn connection(&self) -> Result<sqlx::pool::PoolConnection<sqlx::Postgres>, Error> {
        Ok(self.pool.acquire().await?)
    }

    /// The connection that looks at the database's state, and of signs of life. Not to be held for long.
    ///
    /// # Errors
    /// When Postgres cannot be reached.
    pub async fn watch(&self) -> Result<sqlx::pool::PoolConnection<sqlx::Postgres>, Error> {
        Ok(self.watch.acquire().await?)
    }

    /// The connection that reads what is declared.
    ///
    /// # Errors
    /// When Postgres cannot be reached.
    pub async fn declared(&self) -> Result<sqlx::pool::PoolConnection<sqlx::Postgres>, Error> {
        Ok(self.declared.acquire().await?)
    }

    /// A connection that hears of changes of objects and of keys. Whoever uses it must not rely on it: a proxy between may swallow
    /// notifications, and a connection that was cut off may look like a silent one.
    ///
    /// # Errors
    /// When Postgres cannot be reached.
    pub async fn listener(&self) -> Result<PgListener, Error> {
        let mut listener = PgListener::connect_with(&self.declared).await?;
        listener.listen_all(["keyfold_objects", KEYS_CHANNEL]).await?;
        Ok(listener)
    }

    /// Runs `work` in a transaction, which `work` ends with `Tx::commit`; dropping it instead rolls back. A transaction
    /// that lost against another is run again from the start, so `work` must have no effect outside it. `name` labels
    /// its metrics.
    ///
    /// # Errors
    /// Those of `work`, after which nothing has changed, and those of Postgres. A connection that is lost during the
    /// commit leaves it open whether the transaction took place.
    pub async fn tx<T, W>(
        &self,
        name: &'static str,
        isolation: Isolation,
        work: impl Fn(Tx) -> W,
    ) -> Result<T, Error>
    where
        W: Future<Output = Result<Committed<T>, Error>>,
    {
        let start = Instant::now();
        let mut attempt = 1;
        let result = loop {
            let done = match self.begin(name, isolation).await {
                Ok(tx) => work(tx).await,
                Err(error) => Err(error),
            };
            match done {
                Err(error) if error.is_transient_conflict() && attempt < ATTEMPTS => {
                    tokio::time::sleep(Duration::from_millis(u64::from(attempt) * 2)).await;
                    attempt += 1;
                }
                // This replica will soon have taken on what came with the new root key.
                Err(Error::RootChanged) if start.elapsed() < ROOT_CHANGE_MAX => {
                    tokio::time::sleep(ROOT_CHANGE_POLL).await;
                    attempt += 1;
                }
                done => break done,
            }
        };
        let outcome = if result.is_ok() { "committed" } else { "rolled_back" };
        metrics::histogram!("keyfold_transaction_seconds", "name" => name, "outcome" => outcome)
            .record(start.elapsed().as_secs_f64());
        metrics::counter!("keyfold_transaction_retries_total", "name" => name)
            .increment(u64::from(attempt - 1));
        result.map(|committed| committed.0)
    }

    /// Runs one statement that is a transaction by itself, one after the other, and without a round trip more. A call takes
    /// part in no transaction.
    ///
    /// # Errors
    /// Those of `statement`. When Postgres does not answer, or the connection is lost, it is open whether the statement took
    /// place.
    pub async fn at_once<T>(
        &self,
        name: &'static str,
        statement: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let start = Instant::now();
        #[cfg(debug_assertions)]
        crash_points::pass(name, crash_points::Moment::Before);
        let done = self.kept.run(&self.pool, statement).await;
        #[cfg(debug_assertions)]
        crash_points::pass(name, crash_points::Moment::After);
        let outcome = if done.is_ok() { "committed" } else { "rolled_back" };
        metrics::histogram!("keyfold_transaction_seconds", "name" => name, "outcome" => outcome)
            .record(start.elapsed().as_secs_f64());
        done
    }

    #[allow(clippy::disallowed_methods, reason = "the one place that begins a transaction")]
    async fn begin(&self, name: &'static str, isolation: Isolation) -> Result<Tx, Error> {
        #[cfg(not(debug_assertions))]
        let _ = name;
        let begin = match isolation {
            Isolation::Serializable => concat!("BEGIN ISOLATION LEVEL SERIALIZABLE", bounds!()),
            Isolation::ReadCommitted { because: _ } => {
                concat!("BEGIN ISOLATION LEVEL READ COMMITTED", bounds!())
            }
            Isolation::ReadCommittedPlannedOnce { because: _ } => concat!(
                "BEGIN ISOLATION LEVEL READ COMMITTED",
                bounds!(),
                "; SET LOCAL plan_cache_mode = force_generic_plan"
            ),
        };
        Ok(Tx {
            postgres: self.pool.begin_with(begin).await?,
            changes: Changes::default(),
            reaches: Reached::default(),
            marks: self.marks(),
            #[cfg(debug_assertions)]
            name,
        })
    }

    /// A transaction that sees one moment and changes nothing, for checks that compare rows with each other. It ends
    /// when it is dropped.
    ///
    /// # Errors
    /// When Postgres cannot be reached.
    pub async fn moment(&self) -> Result<Moment, Error> {
        Self::begin_moment(&self.pool).await
    }

    /// The same on the connection that reads what is declared.
    ///
    /// # Errors
    /// When Postgres cannot be reached.
    pub async fn declared_moment(&self) -> Result<Moment, Error> {
        Self::begin_moment(&self.declared).await
    }

    /// The same on the connection that signs of life are given on.
    ///
    /// # Errors
    /// When Postgres cannot be reached.
    pub async fn watch_moment(&self) -> Result<Moment, Error> {
        Self::begin_moment(&self.watch).await
    }

    #[allow(clippy::disallowed_methods, reason = "nothing is written, so there is nothing to run again")]
    async fn begin_moment(pool: &PgPool) -> Result<Moment, Error> {
        let begin = concat!("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY", bounds!());
        Ok(pool.begin_with(begin).await?)
    }

    /// Brings the schema to this server's version.
    ///
    /// # Errors
    /// When Postgres cannot be reached, or holds a schema that this server does not know.
    pub async fn migrate(&self) -> Result<(), String> {
        MIGRATIONS.run(&self.pool).await.map_err(|error| error.to_string())
    }

    /// Checks that the schema is the one that this server was built for.
    ///
    /// # Errors
    /// `Sealed` when it is older or newer, with what to do; those of Postgres.
    pub async fn check_schema(&self) -> Result<(), Error> {
        let wanted = schema_version();
        let found = migrated_to(&mut *self.watch().await?).await?;
        match found.cmp(&wanted) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Less => Err(Error::Sealed(format!(
                "the database has schema {found} and this server needs {wanted}: run keyfold-server migrate"
            ))),
            std::cmp::Ordering::Greater => Err(Error::Sealed(format!(
                "the database has schema {found}, newer than this server's {wanted}: run a newer keyfold-server"
            ))),
        }
    }
}

/// The schema version that this server was built for.
pub fn schema_version() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// The schema version of a database; 0 when it has none.
///
/// # Errors
/// Those of Postgres.
pub async fn migrated_to(connection: &mut PgConnection) -> Result<i64, Error> {
    let migrated =
        sqlx::query_scalar!(r#"SELECT to_regclass('_sqlx_migrations') IS NOT NULL AS "migrated!""#)
            .fetch_one(&mut *connection)
            .await?;
    if !migrated {
        return Ok(0);
    }
    let version: Option<i64> = sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations WHERE success")
        .fetch_one(connection)
        .await?;
    Ok(version.unwrap_or(0))
}

/// How to connect as the configuration's section `name` says.
///
/// # Errors
/// When the URL or the password file cannot be read.
pub fn connect_options(
    name: &str,
    url: &str,
    password_file: Option<&Path>,
    ca_file: &Path,
) -> Result<PgConnectOptions, String> {
    let authority = url.split_once("://").map_or("", |(_, rest)| rest.split(['/', '?']).next().unwrap_or(""));
    let in_authority = authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'));
    if in_authority || url.split(['?', '&']).skip(1).any(|pair| pair.starts_with("password=")) {
        return Err(format!(
            "{name}.url holds a password: put it into the file that {name}.password_file names"
        ));
    }
    let mut options: PgConnectOptions =
        url.parse().map_err(|_| format!("{name}.url must have the form postgres://user@host:port/name"))?;
    if let Some(file) = password_file {
        let password = fs::read_to_string(file)
            .map_err(|error| format!("{name}.password_file {}: {error}", file.display()))?;
        options = options.password(password.trim_end_matches(['\r', '\n']));
    }
    Ok(options.ssl_mode(PgSslMode::VerifyFull).ssl_root_cert(ca_file).application_name("keyfold-server"))
}
