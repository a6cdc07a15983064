//! What operators declare, as this replica holds it in memory. Postgres tells by a revision whether it still stands.
//!
//! Invariant: what `current` gives was confirmed by Postgres within `max_staleness`. Who decides on it confirms the
//! objects concerned once more in the transaction of the audit entry, so that nothing is allowed by what no longer stands.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use keyfold_core::{
    condition::Condition,
    name::ObjectName,
    object::{ApprovalRuleSpec, Kind, Spec},
    policy::AppRole,
    rights::OperatorRole,
};
use tokio::{sync::Mutex, time::Instant};

use crate::{
    authn::{AdminToken, IssuerRecord},
    error::Error,
    store::{
        Store, admin_tokens,
        objects::{self, Object, Standing},
    },
};

/// How long to wait before the connection that listens is opened again.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);

/// All that is declared, at one revision.
#[derive(Default)]
pub struct Snapshot {
    revision: i64,
    /// Whether all that was read could be looked at.
    is_whole: bool,
    standings: HashMap<(Kind, ObjectName), Standing>,
    /// By name.
    pub issuers: Vec<IssuerRecord>,
    /// By name.
    pub app_roles: Vec<AppRole>,
    /// The compiled conditions of app roles that have one.
    pub conditions: HashMap<ObjectName, Condition>,
    /// By name.
    pub operator_roles: Vec<OperatorRole>,
    /// By name.
    pub approval_rules: Vec<(ObjectName, ApprovalRuleSpec)>,
    /// Those that are not revoked.
    pub admin_tokens: Vec<AdminToken>,
}

impl Snapshot {
    /// Which one this is.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// What a decision rests on that used these objects.
    pub fn standing(&self, kind: Kind, name: &ObjectName) -> Option<Standing> {
        self.standings.get(&(kind, name.clone())).copied()
    }

    /// An object that cannot be read gives no right, and those beside it stand; but a guard that cannot be read must not
    /// be taken for none.
    fn add(&mut self, object: &Object) -> Result<(), Error> {
        let name = object.name.clone();
        match object.spec() {
            Ok(Spec::Keyspace(_)) => {}
            Ok(Spec::Issuer(spec)) => {
                let generation = object.generation;
                self.issuers.push(IssuerRecord { name: name.clone(), generation, spec });
            }
            Ok(Spec::AppRole(spec)) => self.app_roles.push(AppRole { name: name.clone(), spec }),
            Ok(Spec::OperatorRole(spec)) => {
                self.operator_roles.push(OperatorRole { name: name.clone(), spec });
            }
            Ok(Spec::ApprovalRule(spec)) => self.approval_rules.push((name.clone(), spec)),
            Err(Error::Corrupt(what)) if object.kind != Kind::ApprovalRule => {
                log_unreadable(&what);
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        self.standings.insert((object.kind, name), object.standing());
        Ok(())
    }

    /// Takes the conditions of roles that have not changed from `before`, and compiles the others. A role whose
    /// condition does not compile is left out: it must not be used without. When that could not be found out now, the
    /// next reading tries again.
    async fn compile_conditions(&mut self, before: Option<&Self>) -> Result<(), Error> {
        let mut wanted = Vec::new();
        for AppRole { name, spec } in &self.app_roles {
            let Some(condition) = &spec.condition else { continue };
            let unchanged = before
                .filter(|before| before.standing(Kind::AppRole, name) == self.standing(Kind::AppRole, name));
            match unchanged.and_then(|before| before.conditions.get(name)) {
                Some(compiled) => drop(self.conditions.insert(name.clone(), compiled.clone())),
                None => wanted.push((name.clone(), condition.rego.clone())),
            }
        }
        let compile = |(name, rego): (ObjectName, String)| (name, Condition::compile_stored(&rego));
        let compiled =
            tokio::task::spawn_blocking(move || wanted.into_iter().map(compile).collect::<Vec<_>>());
        for (name, condition) in compiled.await.map_err(|_| Error::Corrupt("a condition panicked".into()))? {
            match condition {
                Ok(condition) => drop(self.conditions.insert(name, condition)),
                Err(error) => {
                    log_unreadable(&format!("the condition of AppRole {name}: {error}"));
                    self.is_whole &= !error.is_passing();
                    self.app_roles.retain(|role| role.name != name);
                }
            }
        }
        Ok(())
    }
}

fn log_unreadable(what: &dyn std::fmt::Display) {
    tracing::error!(%what, "a declared object cannot be read and is left out");
}

/// The newest snapshot that this replica has, and when it was last confirmed.
pub struct Directory {
    max_staleness: Duration,
    reader: Arc<Reader>,
}

struct Reader {
    store: Store,
    held: RwLock<Option<Held>>,
    /// One reading at a time: all who wait are served by what it found, or share its failure, which began then.
    reading: Mutex<Option<Instant>>,
}

#[derive(Clone)]
struct Held {
    snapshot: Arc<Snapshot>,
    /// Before Postgres was asked.
    confirmed_at: Instant,
}

impl Directory {
    /// Empty at first: the first use reads.
    pub fn new(store: Store, max_staleness: Duration) -> Self {
        let reader = Reader { store, held: RwLock::default(), reading: Mutex::default() };
        Self { max_staleness, reader: Arc::new(reader) }
    }

    /// What is declared, at most `max_staleness` old.
    ///
    /// # Errors
    /// Those of Postgres, when it has to be asked.
    pub async fn current(&self) -> Result<Arc<Snapshot>, Error> {
        let oldest = Instant::now().checked_sub(self.max_staleness);
        self.confirmed_since(oldest.unwrap_or_else(Instant::now)).await
    }

    /// What is declared now, if that is not `seen`.
    ///
    /// # Errors
    /// Those of Postgres.
    pub async fn newer_than(&self, seen: &Arc<Snapshot>) -> Result<Option<Arc<Snapshot>>, Error> {
        let now = self.confirmed_since(Instant::now()).await?;
        Ok((now.revision != seen.revision).then_some(now))
    }

    /// Looks at once: after a change of this replica's own, so that it counts for the next call.
    pub async fn look(&self) {
        if let Err(error) = self.confirmed_since(Instant::now()).await {
            tracing::debug!(%error, "what is declared could not be confirmed");
        }
    }

    /// Keeps the snapshot confirmed, so that calls need not wait for Postgres. Never ends.
    pub async fn follow(&self) {
        let mut listener = None;
        let mut listen_at = Instant::now();
        loop {
            self.look().await;
            if listener.is_none() && Instant::now() >= listen_at {
                listener = self.reader.store.listener().await.ok();
                listen_at = Instant::now() + LISTEN_AGAIN;
            }
            // Often enough that what is held never grows stale while Postgres answers.
            let pause = tokio::time::sleep(self.max_staleness / 3);
            match &mut listener {
                Some(listening) => tokio::select! {
                    () = pause => {}
                    heard = listening.recv() => if heard.is_err() { listener = None },
                },
                None => pause.await,
            }
        }
    }

    /// In a task of its own: a caller who goes away does not end what others wait for.
    async fn confirmed_since(&self, oldest: Instant) -> Result<Arc<Snapshot>, Error> {
        if let Some(snapshot) = self.reader.confirmed_since(oldest) {
            return Ok(snapshot);
        }
        let reader = Arc::clone(&self.reader);
        let read = tokio::spawn(async move { reader.confirm(oldest).await });
        read.await.map_err(|_| Error::Corrupt("reading what is declared stopped short".into()))?
    }
}

impl Reader {
    fn confirmed_since(&self, oldest: Instant) -> Option<Arc<Snapshot>> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner).clone();
        held.filter(|held| held.confirmed_at >= oldest).map(|held| held.snapshot)
    }

    async fn confirm(&self, oldest: Instant) -> Result<Arc<Snapshot>, Error> {
        let mut failed_at = self.reading.lock().await;
        if let Some(snapshot) = self.confirmed_since(oldest) {
            return Ok(snapshot);
        }
        if failed_at.is_some_and(|at| at >= oldest) {
            return Err(Error::Database(sqlx::Error::PoolTimedOut));
        }
        let confirmed_at = Instant::now();
        let read = self.read().await;
        *failed_at = read.is_err().then_some(confirmed_at);
        let snapshot = read?;
        *self.held.write().unwrap_or_else(PoisonError::into_inner) =
            Some(Held { snapshot: Arc::clone(&snapshot), confirmed_at });
        Ok(snapshot)
    }

    /// The revision is read first: what is newer than it is found again by the next look.
    async fn read(&self) -> Result<Arc<Snapshot>, Error> {
        let mut connection = self.store.declared().await?;
        let revision = objects::revision(&mut connection).await?;
        let before = self.held.read().unwrap_or_else(PoisonError::into_inner).clone();
        let before = before.map(|held| held.snapshot);
        if let Some(unchanged) =
            before.clone().filter(|before| before.revision == revision && before.is_whole)
        {
            return Ok(unchanged);
        }
        let mut snapshot = Snapshot { revision, is_whole: true, ..Default::default() };
        snapshot.admin_tokens = admin_tokens::live(&mut connection).await?;
        for object in objects::list(&mut connection, None).await? {
            snapshot.add(&object)?;
        }
        drop(connection);
        snapshot.compile_conditions(before.as_deref()).await?;
        Ok(Arc::new(snapshot))
    }
}
