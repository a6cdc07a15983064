//! Moving a keyspace's DEKs to its newest KEK, in batches, each a transaction of its own. The predicate "wrapped by an
//! older KEK" is the resume point: a rewrap that was cut off goes on where it stopped, and several workers share it.

use keyfold_core::entropy::Entropy;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    error::Error,
    keys::keyring::Keyring,
    store::{Isolation, Store, deks, keks},
};

/// DEKs moved in one transaction: enough to share a commit, few enough to hold row locks only for milliseconds.
const BATCH_MAX: i64 = 500;

/// What a rewrap, or one batch of it, did.
#[derive(Clone, Copy)]
pub struct Rewrapped {
    /// The version of the KEK that was active at its end, and wraps the DEKs now.
    pub to_version: i32,
    /// DEKs moved.
    pub deks: u64,
}

/// Moves every DEK of the keyspace that an older KEK wraps under the active one. That is looked up for each batch: when
/// another turn makes a newer KEK active meanwhile, this rewrap goes on towards it, so the last one to end leaves none
/// behind, whoever held the rows that it passed over.
///
/// # Errors
/// `Corrupt` at the first DEK that does not open: the batches before it stand. Those of Postgres.
pub async fn rewrap(
    store: &Store,
    keyring: &Keyring,
    keyspace_id: Uuid,
    entropy: &dyn Entropy,
) -> Result<Rewrapped, Error> {
    let isolation = Isolation::ReadCommitted {
        because: "the batch's rows are locked as they are read, and a trigger refuses a KEK that is not active",
    };
    let mut deks = 0;
    loop {
        let batch = store
            .tx("key.rewrap", isolation, |mut tx| async move {
                let done = rewrap_batch(&mut tx, keyring, keyspace_id, entropy).await?;
                tx.commit(done).await
            })
            .await?;
        deks += batch.deks;
        if batch.deks == 0 {
            return Ok(Rewrapped { deks, ..batch });
        }
    }
}

async fn rewrap_batch(
    connection: &mut PgConnection,
    keyring: &Keyring,
    keyspace_id: Uuid,
    entropy: &dyn Entropy,
) -> Result<Rewrapped, Error> {
    let target = keks::active(connection, keyspace_id)
        .await?
        .ok_or_else(|| Error::Corrupt(format!("keks: no active key of keyspace {keyspace_id}")))?;
    let claimed = deks::claim_older_than(connection, keyspace_id, target.version, BATCH_MAX).await?;
    let (mut ids, mut wrapped) = (Vec::with_capacity(claimed.len()), Vec::with_capacity(claimed.len()));
    for dek in claimed {
        let from = keyring.kek(connection, dek.keyspace_id, dek.kek_id, dek.kek_version).await?;
        let moved = keyring.rewrap_dek(&from, dek, &target, entropy)?;
        ids.push(moved.id);
        wrapped.push(moved.wrapped);
    }
    let deks = match ids.is_empty() {
        true => 0,
        false => deks::rewrap(connection, target.id, target.version, &ids, &wrapped).await?,
    };
    Ok(Rewrapped { to_version: target.version, deks })
}
