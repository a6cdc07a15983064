//! Turning a key: a new version is handed to every replica first, and takes the old one's place once all live replicas
//! hold it. Whoever asked for the turn, whichever replica sees that first does the second step.

use std::sync::PoisonError;

use keyfold_core::{audit::Operation, key::KeysetError};
use uuid::Uuid;

use crate::{
    broker::Broker,
    error::Error,
    keys::keyring::Keyring,
    store::{
        Isolation, Tx,
        keks::{self, PreActive},
        keysets::{self, KeysetRow},
        replicas,
    },
};

/// Why a step on a keyset needs no stronger isolation.
pub(crate) const STEP: Isolation = Isolation::ReadCommitted {
    because: "the keyset's row lock lets one change of its keys at a time take place",
};

/// A turn that has begun.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Begun {
    /// The version that is active.
    pub(crate) old_version: u32,
    /// The version that will be.
    pub(crate) new_version: u32,
}

/// What came of an attempt to finish a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    /// The new key is active, now or already.
    Finished,
    /// Some replica does not hold it yet, or somebody else changes the keyset.
    Waits,
}

impl Broker {
    /// Makes the next version of a key and begins to hand it out. The keyset's row is locked by `tx`.
    ///
    /// # Errors
    /// `TurnUnderWay` when one is being handed out already; `HeartbeatLost`; those of Postgres.
    pub(crate) async fn begin_turn(
        &self,
        tx: &mut Tx,
        keyring: &Keyring,
        keyset: &KeysetRow,
    ) -> Result<Begun, Error> {
        self.worker.heartbeat.may_encrypt().await?;
        let macs = keyring.row_macs();
        let mut versions =
            keks::keyset(&keks::of_keyset(tx, macs, keyset.keyspace_id, keyset.purpose).await?)?;
        let old_version = versions.active();
        let new_version = versions.create().map_err(|error| match error {
            KeysetError::TurnUnderWay { version } => Error::TurnUnderWay(version),
            other => Error::Conflict(other.to_string()),
        })?;
        let kek = keyring.new_kek(keyset.keyspace_id, keyset.purpose, new_version, &*self.entropy)?;
        // What the server just made must open before anybody relies on it.
        keyring.test_kek(&kek, &*self.entropy)?;
        keks::insert_pre_active(tx, macs, &kek, self.now()).await?;
        Ok(Begun { old_version, new_version })
    }

    /// Finishes the turns that can be. Says whether one still waits.
    ///
    /// # Errors
    /// Those of Postgres.
    pub(crate) async fn turn_pass(&self, keyring: &Keyring) -> Result<bool, Error> {
        let mut connection = self.store.connection().await?;
        let pre_active = keks::pre_active(&mut connection).await?;
        // Read after the keys: it is not older than any of them.
        let newest = replicas::key_epoch(&mut connection).await?;
        drop(connection);
        let (seen, has_new) = self.note_seen(&pre_active, newest);
        if has_new {
            self.beat().await?;
        }
        let mut waits = false;
        for (key, epoch) in pre_active.iter().zip(seen) {
            match self.finish_turn(keyring, key, epoch).await {
                Ok(Attempt::Finished) => self.worker.wake(),
                Ok(Attempt::Waits) => waits = true,
                Err(error) => {
                    tracing::warn!(key = %key.id, %error, "a turn could not be finished and is tried again");
                    waits = true;
                }
            }
        }
        Ok(waits)
    }

    /// For each key the epoch that replicas must hold to hold the key, and whether a key is new. That epoch stays the
    /// same while others turn, so that many turns do not keep each other waiting.
    fn note_seen(&self, pre_active: &[PreActive], newest: i64) -> (Vec<i64>, bool) {
        let mut seen = self.worker.seen_epochs.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|id, _| pre_active.iter().any(|key| key.id == *id));
        let before = seen.len();
        let epochs = pre_active.iter().map(|key| *seen.entry(key.id).or_insert(newest)).collect();
        (epochs, seen.len() > before)
    }

    async fn finish_turn(&self, keyring: &Keyring, key: &PreActive, epoch: i64) -> Result<Attempt, Error> {
        self.worker.heartbeat.may_encrypt().await?;
        if !replicas::lacking(&mut *self.store.connection().await?, key.id, epoch).await?.is_empty() {
            return Ok(Attempt::Waits);
        }
        self.store
            .tx("key.activate", STEP, |mut tx| async move {
                let Some(keyset) = keysets::try_lock(&mut tx, key.keyset_id).await? else {
                    return tx.commit(Attempt::Waits).await;
                };
                if !replicas::lacking(&mut tx, key.id, epoch).await?.is_empty() {
                    return tx.commit(Attempt::Waits).await;
                }
                if let Some(version) = self.activate(&mut tx, keyring, &keyset, key.id).await? {
                    let operation = Operation::KeyActivate {
                        keyspace: keyset.keyspace.clone(),
                        purpose: keyset.purpose.to_string(),
                        version,
                        reason: "every live replica holds it".into(),
                    };
                    self.append_own(&mut tx, operation).await?;
                }
                tx.commit(Attempt::Finished).await
            })
            .await
    }

    /// Lets a pre-active key take the active one's place. Gives its version, or none if it is pre-active no longer.
    async fn activate(
        &self,
        tx: &mut Tx,
        keyring: &Keyring,
        keyset: &KeysetRow,
        id: Uuid,
    ) -> Result<Option<u32>, Error> {
        let macs = keyring.row_macs();
        let before = keks::of_keyset(tx, macs, keyset.keyspace_id, keyset.purpose).await?;
        let mut versions = keks::keyset(&before)?;
        let Some(version) = versions.pre_active() else { return Ok(None) };
        let of_version = |version| before.iter().find(move |kek| kek.version == version);
        let (Some(old), Some(new)) = (of_version(versions.active()), of_version(version)) else {
            return Ok(None);
        };
        if new.id != id {
            return Ok(None);
        }
        versions.activate(version).map_err(|error| Error::Conflict(error.to_string()))?;
        keks::hold_writers(tx, keyset.keyspace_id).await?;
        keks::deactivate(tx, macs, old, self.now()).await?;
        keks::activate(tx, macs, new, self.now()).await?;
        let after = keks::of_keyset(tx, macs, keyset.keyspace_id, keyset.purpose).await?;
        if keks::keyset(&after)? != versions {
            return Err(Error::Corrupt(format!("keks of keyset {}: not as the turn left them", keyset.id)));
        }
        metrics::counter!("keyfold_key_turns_total", "purpose" => keyset.purpose.as_str()).increment(1);
        Ok(Some(version))
    }
}
