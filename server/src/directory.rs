//! What operators declare, as this replica holds it in memory. Postgres tells by a revision whether it still stands.
//!
//! Invariant: what `current` gives was confirmed by Postgres within `max_staleness`. Who decides on it confirms the
//! objects concerned once more in the transaction of the audit entry, so that nothing is allowed by what no longer stands.
//!
//! Invariant: a snapshot holds all that servers wrote, as they wrote it, and nothing else: what does not fit its MAC, or
//! does not come to the integrity head together, is not taken, and nothing is decided until it is mended.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use keyfold_core::{
    condition::Condition,
    key::RotationPolicy,
    name::ObjectName,
    object::{ApprovalRuleSpec, Kind, Spec},
    policy::AppRole,
    rights::OperatorRole,
};
use tokio::{sync::Mutex, time::Instant};

use crate::{
    authn::{AdminToken, IssuerRecord},
    error::Error,
    integrity::{scrub::check_declared, watch::Integrity},
    store::{
        KEYS_CHANNEL, Store, integrity_head,
        objects::{Object, Standing},
    },
};

/// How long to wait before the connection that listens is opened again.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);

/// All that is declared, at one revision.
#[derive(Default)]
pub struct Snapshot {
    revision: i64,
    /// Of all that was read, as the integrity head states it.
    digest: Vec<u8>,
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
    /// The policies of keyspaces that have one.
    pub rotations: HashMap<ObjectName, RotationPolicy>,
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
            Ok(Spec::Keyspace(spec)) => {
                self.rotations.extend(spec.rotation.map(|rotation| (name.clone(), rotation)));
            }
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
    integrity: Arc<Integrity>,
    held: RwLock<Option<Held>>,
    /// One reading at a time: all who wait are served by what it found, or share its failure, which began then.
    reading: Mutex<Option<(Instant, Error)>>,
}

#[derive(Clone)]
struct Held {
    snapshot: Arc<Snapshot>,
    /// Before Postgres was asked.
    confirmed_at: Instant,
}

impl Directory {
    /// Empty at first: the first use reads.
    pub fn new(store: Store, integrity: Arc<Integrity>, max_staleness: Duration) -> Self {
        let reader = Reader { store, integrity, held: RwLock::default(), reading: Mutex::default() };
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

    /// Keeps the snapshot confirmed, so that calls need not wait for Postgres, and tells `keys_changed` when Postgres tells
    /// that on the same connection. Never ends.
    pub async fn follow(&self, keys_changed: impl Fn()) {
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
                    heard = listening.recv() => match heard {
                        Ok(heard) if heard.channel() == KEYS_CHANNEL => keys_changed(),
                        Ok(_) => {}
                        Err(_) => listener = None,
                    },
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
        if let Some((_, failure)) = failed_at.as_ref().filter(|(at, _)| *at >= oldest) {
            return Err(failure.clone());
        }
        let confirmed_at = Instant::now();
        let read = self.read().await;
        if let Err(error) = &read {
            self.integrity.note(error);
        }
        *failed_at = match &read {
            // A server that is sealed may be unsealed a moment later.
            Ok(_) | Err(Error::NotInitialized | Error::Sealed(_)) => None,
            Err(error) => Some((confirmed_at, error.clone())),
        };
        let snapshot = read?;
        *self.held.write().unwrap_or_else(PoisonError::into_inner) =
            Some(Held { snapshot: Arc::clone(&snapshot), confirmed_at });
        Ok(snapshot)
    }

    /// One small read tells whether what is held still stands. What is newer is read at one moment, so that it is compared
    /// with the integrity head of that moment.
    async fn read(&self) -> Result<Arc<Snapshot>, Error> {
        let keyring = self.integrity.keyring()?;
        let macs = keyring.row_macs();
        let floor = self.integrity.floor();
        let standing = {
            let mut connection = self.store.declared().await?;
            integrity_head::find(&mut connection, macs).await?
        };
        self.integrity.saw(floor, &standing)?;
        let before = self.held.read().unwrap_or_else(PoisonError::into_inner).clone();
        let before = before.map(|held| held.snapshot);
        if let Some(unchanged) = before.clone().filter(|before| {
            before.revision == standing.revision
                && before.digest == standing.head.declared_digest
                && before.is_whole
        }) {
            return Ok(unchanged);
        }
        let mut moment = self.store.declared_moment().await?;
        let standing = integrity_head::find(&mut moment, macs).await?;
        let (objects, admin_tokens) = check_declared(&mut moment, macs, &standing.head).await?;
        drop(moment);
        let mut snapshot = Snapshot {
            revision: standing.revision,
            digest: standing.head.declared_digest,
            is_whole: true,
            admin_tokens,
            ..Default::default()
        };
        for object in &objects {
            snapshot.add(object)?;
        }
        snapshot.compile_conditions(before.as_deref()).await?;
        Ok(Arc::new(snapshot))
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;

    fn object(kind: Kind, name: &str, spec_json: &str) -> Object {
        Object {
            id: Uuid::nil(),
            kind,
            name: ObjectName::try_from(name).unwrap(),
            spec_json: spec_json.into(),
            generation: 1,
            updated_at: OffsetDateTime::UNIX_EPOCH,
            mac: Vec::new(),
        }
    }

    /// Such as one of a newer server, after a downgrade: its MAC fits.
    #[test]
    fn an_object_that_cannot_be_read_gives_no_right_and_those_beside_it_stand() {
        let bind = r#"[{"issuer":"dev","namespaces":["a"],"serviceAccounts":["a"]}]"#;
        let grants = r#"[{"path":"payments/*","allow":["read"]}]"#;
        let good = format!(r#"{{"bind":{bind},"grants":{grants}}}"#);
        let mut snapshot = Snapshot::default();
        for (name, spec) in [("newer", r#"{"tomorrow":1}"#), ("good", good.as_str())] {
            snapshot.add(&object(Kind::AppRole, name, spec)).unwrap();
        }
        let names: Vec<_> = snapshot.app_roles.iter().map(|role| role.name.as_str()).collect();
        assert_eq!(names, ["good"]);
        assert!(snapshot.standing(Kind::AppRole, &ObjectName::try_from("newer").unwrap()).is_none());
    }

    #[test]
    fn an_approval_rule_that_cannot_be_read_is_not_taken_for_none() {
        let added = Snapshot::default().add(&object(Kind::ApprovalRule, "newer", r#"{"tomorrow":1}"#));
        assert!(matches!(added, Err(Error::Corrupt(_))));
    }
}
