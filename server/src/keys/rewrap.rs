//! Moving a keyspace's DEKs to its newest KEK, in batches, each a transaction of its own. The predicate "wrapped by an
//! older KEK" is the resume point: a rewrap that was cut off goes on where it stopped, and several workers share it.

use keyfold_core::entropy::Entropy;
use sqlx::PgConnection;

use crate::{
    error::Error,
    keys::keyring::Keyring,
    store::{Isolation, Store, deks, keks::WrappedKek},
};

/// DEKs moved in one transaction: enough to share a commit, few enough to hold row locks only for milliseconds.
const BATCH_MAX: i64 = 500;

/// Moves every DEK of the keyspace that an older KEK wraps under `target`. Gives how many were moved.
///
/// # Errors
/// `Corrupt` at the first DEK that does not open: the batches before it stand. Those of Postgres.
pub async fn rewrap(
    store: &Store,
    keyring: &Keyring,
    target: &WrappedKek,
    entropy: &dyn Entropy,
) -> Result<u64, Error> {
    let isolation = Isolation::ReadCommitted { because: "the batch's rows are locked as they are read" };
    let mut moved = 0;
    loop {
        let batch = store
            .tx("key.rewrap", isolation, |mut tx| async move {
                let moved = rewrap_batch(&mut tx, keyring, target, entropy).await?;
                tx.commit(moved).await
            })
            .await?;
        if batch == 0 {
            return Ok(moved);
        }
        moved += batch;
    }
}

async fn rewrap_batch(
    connection: &mut PgConnection,
    keyring: &Keyring,
    target: &WrappedKek,
    entropy: &dyn Entropy,
) -> Result<u64, Error> {
    let claimed = deks::claim_older_than(connection, target.keyspace_id, target.version, BATCH_MAX).await?;
    let (mut ids, mut wrapped) = (Vec::with_capacity(claimed.len()), Vec::with_capacity(claimed.len()));
    for dek in claimed {
        let from = keyring.kek(connection, dek.kek_id).await?;
        let moved = keyring.rewrap_dek(&from, dek, target, entropy)?;
        ids.push(moved.id);
        wrapped.push(moved.wrapped);
    }
    if ids.is_empty() {
        return Ok(0);
    }
    deks::rewrap(connection, target.id, target.version, &ids, &wrapped).await
}
