//! Moving a keyspace's DEKs to its active KEK, in batches, each a transaction of its own. The predicate "wrapped by a
//! deactivated KEK" is the resume point: a rewrap that was cut off goes on where it stopped, and the workers of all
//! replicas share it.

use std::sync::Arc;

use keyfold_core::{audit::Operation, entropy::Entropy, key::Purpose};
use sqlx::PgConnection;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    broker::Broker,
    error::Error,
    keys::{
        keyring::{Kek, Keyring, number, stored},
        pace::RowsMax,
        quarantine::Failed,
        turn::STEP,
    },
    store::{
        Isolation, Tx,
        deks::{self, Counts, Leftover, Moved, WrappedDek},
        keks,
        keysets::{self, Unfinished},
    },
};

/// DEKs moved in one transaction.
const ROWS_MAX: RowsMax = RowsMax { alone: 500, shared: 25 };

const BATCH: Isolation = Isolation::ReadCommitted {
    because: "the batch's rows are locked as they are read, and a trigger refuses a KEK that is not active",
};

/// What one batch did.
#[derive(Debug, Clone, Copy, Default)]
struct Batch {
    moved: u64,
    quarantined: u64,
    to_version: u32,
    /// The last DEK; none when there were none.
    last: Option<Uuid>,
}

impl Broker {
    /// Moves one batch in each keyspace that has something to move. Says whether there may be more.
    ///
    /// # Errors
    /// Those of Postgres.
    pub(crate) async fn rewrap_pass(&self, keyring: &Arc<Keyring>) -> Result<bool, Error> {
        let walk = &self.worker.walk;
        let (leftovers, is_new) = match walk.leftovers(Instant::now()) {
            Some(found) => (found, false),
            None => {
                let found = deks::leftovers(&mut *self.store.connection().await?).await?;
                (walk.begin(found, Instant::now()), true)
            }
        };
        let mut may_be_more = false;
        for leftover in leftovers.iter() {
            let is_from_start = walk.after(leftover).is_nil();
            match self.rewrap_batch(keyring, leftover).await {
                Ok(batch) => {
                    // Nothing behind the last batch says nothing of what is before it, nor of what was not looked for.
                    may_be_more |= batch.moved + batch.quarantined > 0 || !is_from_start || !is_new;
                    walk.went(leftover, batch.last, Instant::now());
                }
                Err(error) => {
                    walk.went(leftover, None, Instant::now());
                    note_stuck(&leftover.keyspace, &error);
                }
            }
        }
        if is_new {
            self.finish_rewraps(keyring, &leftovers).await?;
        }
        Ok(may_be_more)
    }

    async fn rewrap_batch(&self, keyring: &Arc<Keyring>, leftover: &Leftover) -> Result<Batch, Error> {
        self.worker.heartbeat.may_encrypt().await?;
        let in_work = self.worker.pace.batch(ROWS_MAX).await;
        let rows_max = in_work.rows_max();
        let batch = self
            .store
            .tx("key.rewrap", BATCH, |mut tx| async move {
                let batch = self.move_batch(&mut tx, keyring, leftover, rows_max).await?;
                tx.commit(batch).await
            })
            .await?;
        in_work.done(batch.moved + batch.quarantined);
        self.worker.progress.moved(leftover.keyset_id, batch.to_version, batch.moved);
        if batch.quarantined > 0 {
            self.worker.progress.forget_counts();
        }
        metrics::counter!("keyfold_deks_rewrapped_total").increment(batch.moved);
        Ok(batch)
    }

    async fn move_batch(
        &self,
        tx: &mut Tx,
        keyring: &Arc<Keyring>,
        leftover: &Leftover,
        rows_max: i64,
    ) -> Result<Batch, Error> {
        let target = keks::active(tx, keyring.row_macs(), leftover.keyspace_id).await?.ok_or_else(|| {
            Error::Corrupt(format!("keks: no active key of keyspace {}", leftover.keyspace))
        })?;
        deks::walk_indexes(tx).await?;
        let (keyspace_id, from_version) = (leftover.keyspace_id, leftover.from_version);
        let after = self.worker.walk.after(leftover);
        let claimed = deks::claim(tx, keyspace_id, from_version, after, rows_max).await?;
        let (Some(first), Some(last)) = (claimed.first(), claimed.last()) else {
            return Ok(Batch::default());
        };
        let (from_kek, last) = (first.kek_id, Some(last.id));
        // Both keys are opened once for the batch. When one does not open, that is no fault of the DEKs.
        let from = keyring.kek(tx, leftover.keyspace_id, from_kek, first.kek_version).await?;
        let to = keyring.unwrap_kek(&target)?;
        let (keyring, entropy) = (Arc::clone(keyring), Arc::clone(&self.entropy));
        // Some milliseconds of work: on a thread that serves nobody.
        let work =
            tokio::task::spawn_blocking(move || rewrap_all(&keyring, (&from, &to), claimed, &*entropy));
        let (moved, failed) =
            work.await.map_err(|_| Error::Corrupt("rewrapping a batch stopped short".into()))??;
        let quarantined = failed.len() as u64;
        let written = match moved.ids.is_empty() {
            true => 0,
            false => deks::rewrap(tx, from_kek, (target.id, target.version), &moved).await?,
        };
        self.quarantine(tx, &leftover.keyspace, failed).await?;
        Ok(Batch { moved: written, quarantined, last, to_version: number(target.version)? })
    }

    /// Notes the keysets that have nothing left to be moved, each once, and how far the others are.
    async fn finish_rewraps(&self, keyring: &Keyring, leftovers: &[Leftover]) -> Result<(), Error> {
        let mut connection = self.store.connection().await?;
        let unfinished = keysets::unfinished(&mut connection).await?;
        drop(connection);
        let (under_way, finished): (Vec<_>, Vec<_>) = unfinished
            .into_iter()
            .partition(|keyset| leftovers.iter().any(|leftover| leftover.keyset_id == keyset.id));
        for keyset in finished {
            self.finish_rewrap(keyring, keyset.id).await?;
        }
        let ids: Vec<_> = under_way.iter().map(|keyset| keyset.id).collect();
        self.worker.progress.keep(&ids);
        for keyset in under_way {
            self.look_how_far(&keyset).await?;
        }
        Ok(())
    }

    /// How the DEKs of a keyset stand. Where many are still to be moved this may be as of a moment ago, with what this replica has
    /// moved since: counting them takes a processor for a tenth of a second, and somebody who watches asks all the time.
    ///
    /// # Errors
    /// Those of Postgres.
    pub(crate) async fn counts_of_deks(
        &self,
        connection: &mut PgConnection,
        keyset_id: Uuid,
        keyspace_id: Uuid,
        active_version: u32,
    ) -> Result<Counts, Error> {
        let progress = &self.worker.progress;
        if let Some(held) = progress.held(keyset_id, active_version, Instant::now()) {
            return Ok(held);
        }
        let start = Instant::now();
        let counts = deks::counts(connection, keyspace_id).await?;
        progress.hold(keyset_id, active_version, counts, start.elapsed(), Instant::now());
        Ok(counts)
    }

    /// Again after a while only.
    async fn look_how_far(&self, keyset: &Unfinished) -> Result<(), Error> {
        if self.worker.progress.is_due(keyset.id, Instant::now()) {
            let version = number(keyset.active_version)?;
            let mut connection = self.store.connection().await?;
            let counts = self.counts_of_deks(&mut connection, keyset.id, keyset.keyspace_id, version).await?;
            self.worker.progress.note(keyset.id, version, counts.moved, Instant::now());
        }
        Ok(())
    }

    async fn finish_rewrap(&self, keyring: &Keyring, keyset_id: Uuid) -> Result<(), Error> {
        self.store
            .tx("key.rewrap-end", STEP, |mut tx| async move {
                let Some(keyset) = keysets::try_lock(&mut tx, keyset_id).await? else {
                    return tx.commit(()).await;
                };
                let keks =
                    keks::of_keyset(&mut tx, keyring.row_macs(), keyset.keyspace_id, Purpose::Data).await?;
                let to_version = keks::keyset(&keks)?.active();
                let Some(keyspace_id) = keyset.keyspace_id else { return tx.commit(()).await };
                let counts = deks::counts(&mut tx, keyspace_id).await?;
                if keyset.rewrapped_version >= stored(to_version)? || counts.pending > 0 {
                    return tx.commit(()).await;
                }
                keysets::note_rewrapped(&mut tx, keyset.id, to_version).await?;
                let operation =
                    Operation::KeyRewrap { keyspace: keyset.keyspace, to_version, deks: counts.moved };
                self.append_own(&mut tx, operation).await?;
                tx.commit(()).await
            })
            .await
    }
}

/// Moves each DEK, or says why it does not open.
fn rewrap_all(
    keyring: &Keyring,
    (from, to): (&Kek, &Kek),
    deks: Vec<WrappedDek>,
    entropy: &dyn Entropy,
) -> Result<(Moved, Vec<Failed>), Error> {
    let (mut moved, mut failed) = (Moved::with_capacity(deks.len()), Vec::new());
    for dek in deks {
        match keyring.rewrap_dek(from, &dek, to, entropy) {
            Ok(rewrapped) => {
                moved.ids.push(dek.id);
                moved.before.push(dek.wrapped);
                moved.after.push(rewrapped.wrapped);
            }
            Err(Error::Corrupt(reason)) => failed.push(Failed { dek_id: dek.id, reason }),
            Err(error) => return Err(error),
        }
    }
    Ok((moved, failed))
}

fn note_stuck(keyspace: &str, error: &Error) {
    match error {
        Error::Corrupt(what) | Error::Integrity { what, .. } => {
            tracing::error!(
                keyspace,
                what,
                "data keys cannot be moved: stored data failed its integrity check"
            );
        }
        error => tracing::warn!(keyspace, %error, "moving data keys failed and is tried again"),
    }
}
