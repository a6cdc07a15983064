//! Deep re-encryption: what a compromised key reached gets new DEKs and new ciphertexts, in batches, each a transaction of
//! its own, by any number of replicas. "Its DEK was born under the compromised version or an older one" is the resume
//! point: nothing else says what is left to be done.

use std::sync::Arc;

use keyfold_core::{audit::Operation, entropy::Entropy, key::KeyState};
use uuid::Uuid;

use crate::{
    broker::Broker,
    error::Error,
    keys::{
        keyring::{Kek, Keyring, number},
        pace::RowsMax,
        quarantine::Failed,
    },
    store::{
        Isolation, Tx, deks,
        exposure::{self, Claimed, Compromised, Pending, Reached, Remade},
        keks::{self, WrappedKek},
        secret_versions::{self, StoredVersion, VersionState},
    },
};

/// Versions in one transaction.
const ROWS_MAX: RowsMax = RowsMax { alone: 500, shared: 50 };
/// Bytes of payloads in one transaction, unless the first alone has more: they are held in memory twice.
const BATCH_BYTES_MAX: i64 = 8 * 1024 * 1024;

const ISOLATION: Isolation = Isolation::ReadCommitted {
    because: "the versions' rows are locked as they are read, and a trigger refuses a KEK that is not active",
};

/// What one batch did.
#[derive(Debug, Clone, Copy, Default)]
struct Batch {
    /// Versions that have a new DEK and a new ciphertext.
    payloads: u64,
    /// Versions that do not open, and went into quarantine.
    quarantined: u64,
}

impl Broker {
    /// Encrypts anew one batch in each keyspace of which compromised keys reached something. Gives whether there was
    /// anything to do: not when nothing is left, or other workers hold the rest.
    ///
    /// # Errors
    /// The last failure, when nothing else was done: `HeartbeatLost`, `Corrupt`, those of Postgres.
    pub(crate) async fn reencrypt_pass(&self, keyring: &Arc<Keyring>) -> Result<bool, Error> {
        let pending = exposure::pending(&mut *self.store.connection().await?).await?;
        let (mut found_some, mut failure) = (false, None);
        for keyspace in &pending {
            match self.reencrypt_paced(keyring, keyspace).await {
                Ok(batch) => found_some |= batch.payloads + batch.quarantined > 0,
                // It must not keep the keyspaces after it waiting.
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(error) if !found_some => Err(error),
            _ => Ok(found_some),
        }
    }

    async fn reencrypt_paced(&self, keyring: &Arc<Keyring>, keyspace: &Pending) -> Result<Batch, Error> {
        self.worker.heartbeat.may_encrypt().await?;
        let in_work = self.worker.pace.batch(ROWS_MAX).await;
        let batch = self.reencrypt_batch(keyring, keyspace, in_work.rows_max()).await?;
        in_work.done(batch.payloads + batch.quarantined);
        Ok(batch)
    }

    /// Encrypts anew those of `versions` that a compromised key still wraps, so that nothing is given out of a DEK that
    /// somebody may have, and nobody has to wait for the workers. All others stay as they are.
    ///
    /// # Errors
    /// `Conflict` when one is hidden or destroyed meanwhile; `Corrupt` when one does not open; those of Postgres.
    pub(crate) async fn without_compromised_keys(
        &self,
        keyring: &Arc<Keyring>,
        mut versions: Vec<Arc<StoredVersion>>,
    ) -> Result<Vec<Arc<StoredVersion>>, Error> {
        let is_compromised =
            |version: &&mut Arc<StoredVersion>| version.kek_state == KeyState::Compromised.as_str();
        for version in versions.iter_mut().filter(is_compromised) {
            // Boxed, since each request has the room that this takes.
            *version = Box::pin(self.reencrypted(keyring, version)).await?;
        }
        Ok(versions)
    }

    async fn reencrypted(
        &self,
        keyring: &Arc<Keyring>,
        version: &StoredVersion,
    ) -> Result<Arc<StoredVersion>, Error> {
        self.reencrypt_one(keyring, version).await?;
        let (mut connection, macs) = (self.store.connection().await?, keyring.row_macs());
        let anew = secret_versions::numbered(&mut connection, macs, &version.path, version.version).await?;
        anew.map(Arc::new)
            .ok_or_else(|| Error::Conflict(format!("{} was changed meanwhile: try again", version.path)))
    }

    async fn reencrypt_batch(
        &self,
        keyring: &Arc<Keyring>,
        keyspace: &Pending,
        rows_max: i64,
    ) -> Result<Batch, Error> {
        let batch = self
            .store
            .tx("key.reencrypt", ISOLATION, |mut tx| async move {
                let Some(compromised) = exposure::newest_compromised(&mut tx, keyspace.keyspace_id).await?
                else {
                    return tx.commit(Batch::default()).await;
                };
                deks::walk_indexes(&mut tx).await?;
                let claimed =
                    exposure::claim(&mut tx, keyspace.keyspace_id, compromised.version, rows_max).await?;
                let done = self.reencrypt(&mut tx, keyring, &compromised, &within_bounds(&claimed)).await?;
                let quarantined = done.failed.len() as u64;
                self.quarantine(&mut tx, &keyspace.keyspace, done.failed).await?;
                tx.commit(Batch { payloads: done.payloads, quarantined }).await
            })
            .await?;
        metrics::counter!("keyfold_payloads_reencrypted_total").increment(batch.payloads);
        Ok(batch)
    }

    /// Encrypts one version anew, unless somebody else does meanwhile.
    async fn reencrypt_one(&self, keyring: &Arc<Keyring>, version: &StoredVersion) -> Result<(), Error> {
        self.store
            .tx("key.reencrypt", ISOLATION, |mut tx| async move {
                let Some(compromised) = exposure::newest_compromised(&mut tx, version.keyspace_id).await?
                else {
                    return tx.commit(()).await;
                };
                let mut done = self.reencrypt(&mut tx, keyring, &compromised, &[version.dek_id]).await?;
                match done.failed.pop() {
                    Some(failed) => Err(Error::Corrupt(failed.reason)),
                    None => tx.commit(()).await,
                }
            })
            .await
    }

    /// Encrypts anew the versions with these DEKs, all of one keyspace.
    async fn reencrypt(
        &self,
        tx: &mut Tx,
        keyring: &Arc<Keyring>,
        compromised: &Compromised,
        dek_ids: &[Uuid],
    ) -> Result<Outcome, Error> {
        let (reached, forged) = exposure::lock(tx, keyring.row_macs(), dek_ids).await?;
        let forged = forged.into_iter().map(|(dek_id, reason)| Failed { dek_id, reason }).collect();
        let Some(first) = reached.first() else { return Ok(Outcome { payloads: 0, failed: forged }) };
        let keyspace = keyspace_of(&first.stored).to_owned();
        let work = self.prepare(tx, keyring, reached, forged).await?;
        let Done { remade, failed } = tokio::task::spawn_blocking(move || work.run())
            .await
            .map_err(|_| Error::Corrupt("encrypting a batch anew stopped short".into()))??;
        if remade.is_empty() {
            return Ok(Outcome { payloads: 0, failed });
        }
        let all = remade.len() as u64;
        if exposure::replace(tx, &remade).await? != (all, all) {
            // Their rows are locked: somebody wrote past that.
            return Err(Error::Busy);
        }
        let exposed = |remade: Remade| VersionState {
            exposed_at: Some(compromised.compromised_at),
            exposed_kek_version: Some(compromised.version),
            ..remade.old.state
        };
        secret_versions::write(tx, keyring.row_macs(), remade.into_iter().map(exposed).collect()).await?;
        let version = number(compromised.version)?;
        self.append_own(tx, Operation::KeyReencrypt { keyspace, version, payloads: all }).await?;
        Ok(Outcome { payloads: all, failed })
    }

    /// Opens the keys. What lies under one that does not open must not keep the rest waiting.
    async fn prepare(
        &self,
        tx: &mut Tx,
        keyring: &Arc<Keyring>,
        reached: Vec<Reached>,
        mut failed: Vec<Failed>,
    ) -> Result<Work, Error> {
        let mut versions = Vec::with_capacity(reached.len());
        let Some(keyspace_id) = reached.first().map(|first| first.stored.keyspace_id) else {
            return Err(Error::Busy);
        };
        let active = keks::active(tx, keyring.row_macs(), keyspace_id)
            .await?
            .ok_or_else(|| Error::Corrupt(format!("keks: no active key of keyspace {keyspace_id}")))?;
        for version in reached {
            let stored = &version.stored;
            if !KeyState::parse(&stored.kek_state).is_some_and(KeyState::unwraps_for_rewrap) {
                let reason = format!("deks.kek_id of {}: the key is {}", stored.dek_id, stored.kek_state);
                failed.push(Failed { dek_id: stored.dek_id, reason });
                continue;
            }
            match keyring.kek(tx, keyspace_id, stored.kek_id, stored.kek_version).await {
                Ok(from) => versions.push((from, version)),
                Err(Error::Corrupt(reason) | Error::Integrity { what: reason, .. }) => {
                    failed.push(Failed { dek_id: stored.dek_id, reason });
                }
                Err(error) => return Err(error),
            }
        }
        let (keyring, entropy) = (Arc::clone(keyring), Arc::clone(&self.entropy));
        Ok(Work { keyring, entropy, active, versions, failed })
    }
}

/// Some milliseconds of work, for a thread that serves nobody.
struct Work {
    keyring: Arc<Keyring>,
    entropy: Arc<dyn Entropy>,
    active: WrappedKek,
    versions: Vec<(Kek, Reached)>,
    failed: Vec<Failed>,
}

/// What became of some versions.
struct Outcome {
    /// How many have a new DEK and a new ciphertext.
    payloads: u64,
    /// Those that do not open, or are not what a server wrote.
    failed: Vec<Failed>,
}

struct Done {
    remade: Vec<Remade>,
    failed: Vec<Failed>,
}

impl Work {
    fn run(self) -> Result<Done, Error> {
        let Self { keyring, entropy, active, versions, mut failed } = self;
        let mut remade = Vec::with_capacity(versions.len());
        for (from, old) in versions {
            match keyring.reencrypt_version(&from, &old.stored, &active, &*entropy) {
                Ok((payload, dek)) => remade.push(Remade { old, payload, dek }),
                Err(Error::Corrupt(reason)) => failed.push(Failed { dek_id: old.stored.dek_id, reason }),
                Err(error) => return Err(error),
            }
        }
        Ok(Done { remade, failed })
    }
}

/// As many as may be held in memory.
fn within_bounds(claimed: &[Claimed]) -> Vec<Uuid> {
    let mut bytes = 0;
    let mut fits = |claimed: &&Claimed| {
        let is_first = bytes == 0;
        bytes += i64::from(claimed.payload_bytes);
        is_first || bytes <= BATCH_BYTES_MAX
    };
    claimed.iter().take_while(|claimed| fits(claimed)).map(|claimed| claimed.dek_id).collect()
}

fn keyspace_of(version: &StoredVersion) -> &str {
    version.path.split('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimed(sizes: &[i32]) -> Vec<Claimed> {
        let one = |payload_bytes: &i32| Claimed { dek_id: Uuid::nil(), payload_bytes: *payload_bytes };
        sizes.iter().map(one).collect()
    }

    #[test]
    fn a_batch_holds_few_large_payloads_and_at_least_one() {
        let max = i32::try_from(BATCH_BYTES_MAX).unwrap();
        assert_eq!(within_bounds(&claimed(&[])).len(), 0);
        assert_eq!(within_bounds(&claimed(&[max + 1, 1])).len(), 1);
        assert_eq!(within_bounds(&claimed(&[max - 2, 1, 1, 1])).len(), 3);
        assert_eq!(within_bounds(&claimed(&[1; 500])).len(), 500);
    }
}
