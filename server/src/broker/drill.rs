//! The drill of a recovery: do the shares open a backup? It is restored into a scratch database, of which all is opened
//! and nothing changed.

use std::{sync::Arc, time::Duration};

use keyfold_core::{audit::Operation, secret::Key, shamir::Share};
use sqlx::{Connection as _, PgConnection, postgres::PgConnectOptions};
use time::OffsetDateTime;
use tokio::{
    sync::{Mutex, OnceCell},
    time::{Instant, timeout},
};
use uuid::Uuid;

use crate::{
    broker::{Broker, Call, recovery::combine},
    config,
    error::Error,
    keys::{keyring::Keyring, rwk::Rwk},
    seal::commitments,
    store::{
        audit, connect_options, installation, keks, migrated_to,
        recovery_keys::{self, WrappedRecoveryKey},
        root_wrapping_keys::{self, WrappedRwk},
        schema_version, secret_versions,
    },
};
/// Failures that are told; the others are counted.
const FAILURES_MAX: usize = 20;
/// Versions that are read at once: at most some 50 MiB.
const PAGE: i64 = 100;
/// How long the scratch database may take to answer.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Where drills are held.
pub(crate) struct Drills {
    scratch: Option<PgConnectOptions>,
    /// One at a time.
    turn: Mutex<()>,
}

impl Drills {
    /// As the configuration says.
    ///
    /// # Errors
    /// When the URL or the password file cannot be read, or the database is not a scratch one.
    pub(crate) fn new(recovery: &config::Recovery, live: &config::Database) -> Result<Self, String> {
        let scratch = match &recovery.drill_database {
            Some(database) if database.url == live.url => {
                return Err("recovery.drill_database.url names the database that the server serves from: name another, \
                            into which a backup was restored"
                    .into());
            }
            Some(database) => Some(connect_options(
                "recovery.drill_database",
                &database.url,
                database.password_file.as_deref(),
                &database.ca_file,
            )?),
            None => None,
        };
        Ok(Self { scratch, turn: Mutex::default() })
    }
}

/// What a drill found.
pub struct Drill {
    /// The backup's installation.
    pub installation: Uuid,
    /// Entries in the backup's audit log.
    pub audit_entries: u64,
    /// When the last of them was written.
    pub last_entry_at: Option<OffsetDateTime>,
    /// Keys that opened.
    pub keys: u64,
    /// Versions of secrets that opened.
    pub secrets: u64,
    /// The first failures, in words.
    pub failures: Vec<String>,
    /// All failures.
    pub failure_count: u64,
    /// Whose shares they were.
    recovery_key_id: Uuid,
}

impl Broker {
    /// Opens the backup in the scratch database of the configuration with these shares, as far as it gets by `until`.
    ///
    /// # Errors
    /// `Conflict` without a scratch database, when it has no backup with a recovery key, or when a drill is under way;
    /// `Invalid` when the shares do not open it.
    pub async fn drill_recovery(
        &self,
        call: &Call,
        shares: &[String],
        until: Instant,
    ) -> Result<Drill, Error> {
        let asked = Operation::RecoveryDrill {
            installation: None,
            audit_entries: None,
            keys: None,
            secrets: None,
            failures: None,
        };
        let found = OnceCell::new();
        let (cell, drill) =
            (&found, || async { found.get_or_try_init(|| self.drill(shares, until)).await.map(drop) });
        self.operate_after(call, asked, drill, |mut work| async move {
            let drill: &Drill = cell.get().ok_or(Error::Busy)?;
            if drill.failure_count == 0 {
                recovery_keys::note_drill(work.tx(), drill.recovery_key_id, self.now()).await?;
            }
            work.state(Operation::RecoveryDrill {
                installation: Some(drill.installation),
                audit_entries: Some(drill.audit_entries),
                keys: Some(drill.keys),
                secrets: Some(drill.secrets),
                failures: Some(drill.failure_count),
            });
            work.allow(()).await
        })
        .await?;
        found.into_inner().ok_or(Error::Busy)
    }

    async fn drill(&self, shares: &[String], until: Instant) -> Result<Drill, Error> {
        let options = self.drills.scratch.as_ref().ok_or_else(|| {
            Error::Conflict(
                "this server has no scratch database for drills: restore a backup into one, and name it in \
                 recovery.drill_database of the configuration"
                    .into(),
            )
        })?;
        let _turn =
            self.drills.turn.try_lock().map_err(|_| Error::Conflict("a drill is under way".into()))?;
        let mut backup = connect(options).await?;
        let mut drill = Backup::read(&mut backup).await.map_err(scratch)?.open(shares)?;
        drill.open_all(&mut backup, until).await.map_err(scratch)?;
        Ok(drill.found)
    }
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection, Error> {
    let unreachable = |why: &dyn std::fmt::Display| {
        Error::Conflict(format!("the scratch database of recovery.drill_database cannot be reached: {why}"))
    };
    let connected = timeout(CONNECT_MAX, PgConnection::connect_with(options)).await;
    let mut connection =
        connected.map_err(|late| unreachable(&late))?.map_err(|error| unreachable(&error))?;
    sqlx::query("SET default_transaction_read_only = on").execute(&mut connection).await?;
    sqlx::query("SET statement_timeout = '30s'").execute(&mut connection).await?;
    let (found, wanted) = (migrated_to(&mut connection).await.map_err(scratch)?, schema_version());
    if found != wanted {
        return Err(Error::Conflict(format!(
            "the scratch database has schema {found} and this server needs {wanted}: restore a backup into it, and \
             bring it to this schema with keyfold-server migrate"
        )));
    }
    Ok(connection)
}

/// A failure of the scratch database is none of ours.
fn scratch(error: Error) -> Error {
    match error {
        Error::Database(cause) => Error::Conflict(format!("the scratch database failed: {cause}")),
        Error::Corrupt(what) => Error::Conflict(format!("the backup is damaged: {what}")),
        error => error,
    }
}

/// What of a backup the shares must open.
struct Backup {
    installation: Uuid,
    rwk: WrappedRwk,
    recovery: WrappedRecoveryKey,
    audit_entries: i64,
    last_entry_at: Option<OffsetDateTime>,
}

impl Backup {
    async fn read(backup: &mut PgConnection) -> Result<Self, Error> {
        let missing =
            |what: &str| Error::Conflict(format!("the backup in the scratch database has no {what}"));
        Ok(Self {
            installation: installation::find(backup).await?.ok_or_else(|| missing("installation"))?,
            rwk: root_wrapping_keys::newest(backup).await?.ok_or_else(|| missing("root-wrapping key"))?,
            recovery: recovery_keys::find(backup).await?.ok_or_else(|| missing("recovery key"))?,
            audit_entries: audit::size(backup).await?,
            last_entry_at: audit::last_entry_at(backup).await?,
        })
    }

    fn open(self, shares: &[String]) -> Result<Opened, Error> {
        let parse = |(at, text): (usize, &String)| {
            Share::parse(text).map_err(|error| Error::Invalid(format!("share {}: {error}", at + 1)))
        };
        let shares = shares.iter().enumerate().map(parse).collect::<Result<Vec<_>, _>>()?;
        let key: Key = combine(&commitments(&self.recovery.commitments).map_err(scratch)?, shares)?;
        let rwk = Rwk::open_recovery(self.installation, &self.rwk, &key).map_err(|error| match error {
            Error::Sealed(why) => Error::Conflict(format!("the backup does not open: {why}")),
            error => error,
        })?;
        let found = Drill {
            installation: self.installation,
            audit_entries: u64::try_from(self.audit_entries).unwrap_or_default(),
            last_entry_at: self.last_entry_at,
            keys: 0,
            secrets: 0,
            failures: Vec::new(),
            failure_count: 0,
            recovery_key_id: self.recovery.id,
        };
        Ok(Opened { keyring: Keyring::new(Arc::new(rwk)), found })
    }
}

/// A backup whose RWK is open. Its keys are wiped when it is dropped.
struct Opened {
    keyring: Keyring,
    found: Drill,
}

impl Opened {
    async fn open_all(&mut self, backup: &mut PgConnection, until: Instant) -> Result<(), Error> {
        for key in keks::wrapped(backup).await? {
            match self.keyring.unwrap_kek(&key) {
                Ok(_) => self.found.keys += 1,
                Err(error) => self.failed(error)?,
            }
        }
        match self.keyring.load_system(&keks::system(backup).await?) {
            Ok(unusable) => unusable.into_iter().for_each(|what| self.note(what)),
            Err(error) => self.failed(error)?,
        }
        let total = u64::try_from(secret_versions::count_with_payload(backup).await?).unwrap_or_default();
        let mut seen = 0;
        let mut after = (Uuid::nil(), 0);
        loop {
            let page = secret_versions::page_after(backup, after, PAGE).await?;
            let Some(last) = page.last() else { break };
            if Instant::now() >= until {
                self.note(format!(
                    "the time was over when {seen} of {total} versions had been opened: raise limits.request_secs"
                ));
                return Ok(());
            }
            after = (last.secret_id, last.version);
            for version in page {
                seen += 1;
                match self.keyring.open_version(backup, &version).await {
                    Ok(_) => self.found.secrets += 1,
                    Err(error) => self.failed(error)?,
                }
            }
        }
        if seen < total {
            self.note(format!("{} versions have no data key", total - seen));
        }
        Ok(())
    }

    /// Notes what does not open, and passes on what keeps the drill from going on.
    fn failed(&mut self, error: Error) -> Result<(), Error> {
        match error {
            Error::Corrupt(what) => self.note(what),
            Error::Integrity { table, what } => self.note(format!("{table}: {what}")),
            Error::RootChanged => self.note("keks: a key that another root-wrapping key wraps".to_owned()),
            error => return Err(error),
        }
        Ok(())
    }

    fn note(&mut self, failure: String) {
        self.found.failure_count += 1;
        if self.found.failures.len() < FAILURES_MAX {
            self.found.failures.push(failure);
        }
    }
}
