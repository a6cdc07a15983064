//! Operators' work on keys: listing, turning, pausing, and what is in quarantine.

use std::time::Duration;

use keyfold_core::{
    audit::Operation,
    key::{KeyState, Purpose},
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    broker::{Broker, Call},
    error::Error,
    keys::{keyring::Keyring, schedule, turn::Begun},
    store::{
        deks,
        keks::{self, KekSummary},
        keysets::{self, KeysetRow},
        quarantined_deks::{self, QuarantinedDek},
        replicas,
    },
};

/// How often a call looks whether what it waits for has come.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How long a turn waits for one that began earlier.
const QUEUE_MAX: Duration = Duration::from_secs(15);

/// Which key is meant.
#[derive(Debug, Clone, Copy)]
pub struct WantedKeyset<'a> {
    /// The keyspace; empty for a key of the installation.
    pub keyspace: &'a str,
    /// Its purpose, as written; empty for the keyspace's.
    pub purpose: &'a str,
}

/// What a rotation did.
pub struct Rotation {
    /// The version that was active.
    pub old_version: u32,
    /// The version that is.
    pub new_version: u32,
    /// DEKs moved to it so far.
    pub rewrapped_deks: u64,
    /// DEKs that are still to be moved.
    pub pending_deks: u64,
}

impl Broker {
    /// The keys of a keyspace, or of all if it is empty.
    ///
    /// # Errors
    /// Those of Postgres.
    pub async fn keys(&self, call: &Call, keyspace: &str) -> Result<Vec<KekSummary>, Error> {
        let keyring = &*self.seal.keyring()?;
        let operation = Operation::KeyList { keyspace: keyspace.to_owned() };
        self.operate(call, operation, |mut work| async move {
            let keys = keks::list(work.tx(), keyring.row_macs(), one_or_all(keyspace)).await?;
            work.allow(keys).await
        })
        .await
    }

    /// Turns a key: makes the next version, waits until every replica holds it and it is active, and with `rewrap` until
    /// the keyspace's DEKs are moved, as long as `patience` lasts. The workers do all of that, whether somebody waits or
    /// not. A key is turned once for each call: one that comes while a turn is under way waits for it and then turns again.
    ///
    /// # Errors
    /// `NotFound` for an unknown keyspace; `Conflict` when an earlier turn does not end; `TurnWaits` when this one does not;
    /// `HeartbeatLost`.
    pub async fn rotate_key(
        &self,
        call: &Call,
        wanted: WantedKeyset<'_>,
        rewrap: bool,
        patience: Duration,
    ) -> Result<Rotation, Error> {
        let keyring = &*self.seal.keyring()?;
        let until = Instant::now() + patience;
        let queue_until = Instant::now() + QUEUE_MAX.min(patience / 2);
        let (keyset, begun) = loop {
            let is_last = Instant::now() >= queue_until;
            match self.begin_rotation(call, wanted, keyring, is_last).await {
                Err(Error::TurnUnderWay(_)) => tokio::time::sleep(LOOK_INTERVAL).await,
                done => break done?,
            }
        };
        self.worker.wake();
        self.until_active(keyring, &keyset, begun, until).await?;
        if rewrap && keyset.purpose == Purpose::Data {
            self.until_rewrapped(&keyset, begun, until).await?;
        }
        let counts = match keyset.keyspace_id {
            Some(id) => deks::counts(&mut *self.store.connection().await?, id).await?,
            None => deks::Counts::default(),
        };
        Ok(Rotation {
            old_version: begun.old_version,
            new_version: begun.new_version,
            rewrapped_deks: counts.moved,
            pending_deks: counts.pending,
        })
    }

    async fn begin_rotation(
        &self,
        call: &Call,
        wanted: WantedKeyset<'_>,
        keyring: &Keyring,
        is_last: bool,
    ) -> Result<(KeysetRow, Begun), Error> {
        let stated = |begun: Option<Begun>| Operation::KeyRotate {
            keyspace: wanted.keyspace.to_owned(),
            purpose: wanted.special_purpose(),
            from_version: begun.map(|begun| begun.old_version),
            to_version: begun.map(|begun| begun.new_version),
        };
        self.operate(call, stated(None), |mut work| async move {
            let keyset = lock(work.tx(), wanted).await?;
            let begun = match self.begin_turn(work.tx(), keyring, &keyset).await {
                Err(error @ Error::TurnUnderWay(_)) if is_last => {
                    return Err(Error::Conflict(format!(
                        "{error}, and it does not end: see keyfold key status"
                    )));
                }
                begun => begun?,
            };
            work.state(stated(Some(begun)));
            work.allow((keyset, begun)).await
        })
        .await
    }

    async fn until_active(
        &self,
        keyring: &Keyring,
        keyset: &KeysetRow,
        begun: Begun,
        until: Instant,
    ) -> Result<(), Error> {
        loop {
            let mut connection = self.store.connection().await?;
            let keks =
                keks::of_keyset(&mut connection, keyring.row_macs(), keyset.keyspace_id, keyset.purpose)
                    .await?;
            let new = keks.iter().find(|kek| kek.version == begun.new_version);
            let Some(new) = new else { return Ok(()) };
            match (new.state, new.activated_at) {
                (KeyState::PreActive, _) => {}
                (_, Some(_)) => return Ok(()),
                (_, None) => {
                    let version = begun.new_version;
                    let key = keyset.in_words();
                    return Err(Error::Conflict(format!("version {version} of the {key} was given up")));
                }
            }
            if Instant::now() >= until {
                let waits_for = waits_for(&mut connection, new.id).await?;
                return Err(Error::TurnWaits { version: begun.new_version, waits_for });
            }
            drop(connection);
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn until_rewrapped(&self, keyset: &KeysetRow, begun: Begun, until: Instant) -> Result<(), Error> {
        while Instant::now() < until {
            let mut connection = self.store.connection().await?;
            if keysets::is_rewrapped(&mut connection, keyset.id, begun.new_version).await? {
                break;
            }
            drop(connection);
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    }

    /// Pauses a key's schedule. Says whether it was not paused yet.
    ///
    /// # Errors
    /// `NotFound` for an unknown keyspace.
    pub async fn pause_rotation(&self, call: &Call, wanted: WantedKeyset<'_>) -> Result<bool, Error> {
        let (keyspace, purpose) = wanted.stated();
        self.operate(call, Operation::KeyPause { keyspace, purpose }, |mut work| async move {
            let keyset = lock(work.tx(), wanted).await?;
            let by = work.operator().name().to_owned();
            if keyset.paused_at.is_none() {
                keysets::pause(work.tx(), keyset.id, self.now(), &by).await?;
            }
            work.allow(keyset.paused_at.is_none()).await
        })
        .await
    }

    /// Lets a key's schedule go on. Says whether it was paused, and when the key is next turned.
    ///
    /// # Errors
    /// `NotFound` for an unknown keyspace.
    pub async fn resume_rotation(
        &self,
        call: &Call,
        wanted: WantedKeyset<'_>,
    ) -> Result<(bool, Option<OffsetDateTime>), Error> {
        let keyring = &*self.seal.keyring()?;
        let (keyspace, purpose) = wanted.stated();
        let done = self
            .operate(call, Operation::KeyResume { keyspace, purpose }, |mut work| async move {
                let keyset = lock(work.tx(), wanted).await?;
                if keyset.paused_at.is_some() {
                    keysets::resume(work.tx(), keyset.id).await?;
                }
                let resumed = schedule::of_keyset(work.tx(), keyring, keyset.id).await?;
                let next = resumed.map(|keyset| keyset.next_turn(self.now())).transpose()?.flatten();
                work.allow((keyset.paused_at.is_some(), next)).await
            })
            .await?;
        self.worker.wake();
        Ok(done)
    }

    /// The DEKs in quarantine, of a keyspace or of all if it is empty.
    ///
    /// # Errors
    /// Those of Postgres.
    pub async fn quarantine_list(&self, call: &Call, keyspace: &str) -> Result<Vec<QuarantinedDek>, Error> {
        let operation = Operation::KeyListQuarantine { keyspace: keyspace.to_owned() };
        self.operate(call, operation, |mut work| async move {
            let found = quarantined_deks::list(work.tx(), one_or_all(keyspace)).await?;
            work.allow(found).await
        })
        .await
    }

    /// Lets a keyspace's DEKs out of quarantine, to be tried again. Gives how many.
    ///
    /// # Errors
    /// `NotFound` for an unknown keyspace.
    pub async fn retry_quarantine(&self, call: &Call, keyspace: &str) -> Result<u64, Error> {
        let stated = |released| Operation::KeyRetryQuarantine { keyspace: keyspace.to_owned(), released };
        let released = self
            .operate(call, stated(None), |mut work| async move {
                let keyset = lock(work.tx(), WantedKeyset { keyspace, purpose: "" }).await?;
                let released = match keyset.keyspace_id {
                    Some(id) => quarantined_deks::release(work.tx(), id).await?,
                    None => 0,
                };
                work.state(stated(Some(released)));
                work.allow(released).await
            })
            .await?;
        self.worker.wake();
        Ok(released)
    }
}

impl WantedKeyset<'_> {
    /// Its purpose as an entry states it that says nothing of `data`.
    pub(super) fn special_purpose(self) -> Option<String> {
        (!matches!(self.purpose, "" | "data")).then(|| self.purpose.to_owned())
    }

    /// As an entry states it.
    fn stated(self) -> (String, String) {
        let purpose = if self.purpose.is_empty() { Purpose::Data.as_str() } else { self.purpose };
        (self.keyspace.to_owned(), purpose.to_owned())
    }

    fn parsed_purpose(self) -> Result<Purpose, Error> {
        let (_, name) = self.stated();
        let purpose = Purpose::parse(&name).ok_or_else(|| {
            Error::Invalid(format!("purpose {name:?} is unknown: use one of {}", purposes()))
        })?;
        match (self.keyspace.is_empty(), purpose) {
            (true, Purpose::Data) => Err(Error::Invalid(
                "name a keyspace, or the purpose of one of the installation's own keys".into(),
            )),
            (false, Purpose::Data) | (true, _) => Ok(purpose),
            (false, _) => Err(Error::Invalid(format!(
                "a key of purpose {purpose} is the installation's own: name no keyspace"
            ))),
        }
    }
}

fn purposes() -> String {
    Purpose::ALL.map(Purpose::as_str).join(", ")
}

/// The named keyset, locked.
pub(super) async fn lock(
    connection: &mut PgConnection,
    wanted: WantedKeyset<'_>,
) -> Result<KeysetRow, Error> {
    let purpose = wanted.parsed_purpose()?;
    keysets::lock(connection, wanted.keyspace, purpose)
        .await?
        .ok_or_else(|| no_such_keyspace(wanted.keyspace))
}

pub(super) fn no_such_keyspace(keyspace: &str) -> Error {
    Error::NotFound(format!("there is no keyspace {keyspace}"))
}

pub(super) fn one_or_all(keyspace: &str) -> Option<&str> {
    (!keyspace.is_empty()).then_some(keyspace)
}

/// What keeps a new key from being active, in words.
pub(super) async fn waits_for(connection: &mut PgConnection, kek_id: Uuid) -> Result<String, Error> {
    let newest = replicas::key_epoch(connection).await?;
    let lacking = replicas::lacking(connection, kek_id, newest).await?;
    Ok(match lacking.is_empty() {
        true => "a server to look at it".to_owned(),
        false => lacking.join("; "),
    })
}
