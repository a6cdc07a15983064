//! Operators' work on KEKs.

use std::sync::Arc;

use keyfold_core::{
    audit::{Operation, Record},
    object::Kind,
};
use uuid::Uuid;

use crate::{
    broker::{Broker, Call},
    error::Error,
    keys::{
        keyring::{Keyring, number},
        rewrap::{Rewrapped, rewrap},
    },
    store::{
        keks::{self, KekSummary},
        objects,
    },
};

/// What a rotation did.
pub struct Rotation {
    /// The version that was active.
    pub old_version: u32,
    /// The version that is.
    pub new_version: u32,
    /// DEKs moved to it.
    pub rewrapped_deks: u64,
}

impl Broker {
    /// The KEKs of a keyspace, or of all if it is empty.
    ///
    /// # Errors
    /// Those of Postgres.
    pub async fn keys(&self, call: &Call, keyspace: &str) -> Result<Vec<KekSummary>, Error> {
        let operation = Operation::KeyList { keyspace: keyspace.to_owned() };
        self.operate(call, operation, |mut work| async move {
            let keys = keks::list(work.tx(), (!keyspace.is_empty()).then_some(keyspace)).await?;
            work.allow(keys).await
        })
        .await
    }

    /// Makes a new KEK active and rewraps the keyspace's DEKs under it. The turn stands once it is committed; a rewrap
    /// that is cut off goes on with the next turn, and meanwhile the older KEK still unwraps.
    ///
    /// # Errors
    /// `NotFound` for an unknown keyspace; `Corrupt` when a DEK does not open.
    pub async fn rotate_key(self: &Arc<Self>, call: &Call, keyspace: &str) -> Result<Rotation, Error> {
        let keyring = &self.seal.keyring()?;
        let asked =
            Operation::KeyRotate { keyspace: keyspace.to_owned(), from_version: None, to_version: None };
        let (old, new, record) = self
            .operate(call, asked, |mut work| async move {
                // The keyspace's row lock lets one rotation at a time choose the next version.
                let object = objects::lock(work.tx(), Kind::Keyspace, keyspace)
                    .await?
                    .ok_or_else(|| Error::NotFound(format!("there is no keyspace {keyspace}")))?;
                let old = keks::active(work.tx(), object.id)
                    .await?
                    .ok_or_else(|| Error::Corrupt(format!("keks: no active key of keyspace {keyspace}")))?;
                let new = keyring.new_kek(object.id, number(old.version)? + 1, &*self.entropy)?;
                // What the server just made must open before anything is written under it.
                keyring.unwrap_kek(&new)?;
                keks::deactivate(work.tx(), old.id, self.now()).await?;
                keks::insert_active(work.tx(), &new, self.now()).await?;
                work.state(Operation::KeyRotate {
                    keyspace: keyspace.to_owned(),
                    from_version: Some(number(old.version)?),
                    to_version: Some(number(new.version)?),
                });
                let record = work.record();
                work.allow((old, new, record)).await
            })
            .await?;
        // In a task of its own: the rewrap goes on when the caller goes away, or its time is over.
        let (broker, keyring) = (Arc::clone(self), Arc::clone(keyring));
        let (name, keyspace_id) = (keyspace.to_owned(), new.keyspace_id);
        let rewrapped =
            tokio::spawn(async move { broker.rewrap_keyspace(&keyring, name, keyspace_id, record).await })
                .await
                .map_err(|_| Error::Corrupt(format!("the rewrap of keyspace {keyspace} was cut off")))??;
        Ok(Rotation {
            old_version: number(old.version)?,
            new_version: number(new.version)?,
            rewrapped_deks: rewrapped.deks,
        })
    }

    async fn rewrap_keyspace(
        &self,
        keyring: &Keyring,
        keyspace: String,
        id: Uuid,
        record: Record,
    ) -> Result<Rewrapped, Error> {
        let rewrapped = rewrap(&self.store, keyring, id, &*self.entropy).await?;
        let to_version = number(rewrapped.to_version)?;
        let operation = Operation::KeyRewrap { keyspace, to_version, deks: rewrapped.deks };
        self.audited(Record { operation, approval: None, ..record }, Ok(rewrapped)).await
    }
}
