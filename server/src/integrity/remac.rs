//! After the row-mac key was turned: the MACs of older versions made anew under the one in use, so that an older version
//! can be destroyed. What the rows say does not change, and so neither do their generations, nor that of the head.

use std::{collections::BTreeMap, time::Duration};

use sqlx::PgConnection;
use tokio::time::Instant;

use crate::{
    broker::Broker,
    error::Error,
    integrity::{row_macs::RowMacs, watch::lock},
    store::{
        Isolation, Tx, admin_tokens, integrity_head, keks, objects, plans, secret_labels, secret_versions,
    },
};

/// Rows of labels, or versions, in one transaction.
const BATCH_MAX: i64 = 500;

/// How long after a row was found whose MAC is wrong a pass is tried again: each reads all rows up to that one.
const FAILED_PAUSE: Duration = Duration::from_secs(60);

/// How long after all rows were found made anew a pass looks again: a replica that had not heard of the turn yet may have
/// written one behind it.
const LOOK_AGAIN: Duration = Duration::from_secs(10 * 60);

impl Broker {
    /// Makes anew what older versions of the row-mac key made. Gives the number of rows. A row whose MAC is wrong is left
    /// as it is, and ends the pass.
    ///
    /// # Errors
    /// `Integrity` at the first row whose MAC is wrong: the batches before it stand. `Sealed`; those of Postgres.
    pub async fn remac_pass(&self) -> Result<u64, Error> {
        let keyring = self.seal.keyring()?;
        if lock(&self.integrity.remac_failed_at).is_some_and(|at| at.elapsed() < FAILED_PAUSE) {
            return Ok(0);
        }
        let done = self.remac_all(keyring.row_macs()).await;
        let is_wrong = matches!(done, Err(Error::Integrity { .. } | Error::Corrupt(_)));
        *lock(&self.integrity.remac_failed_at) = is_wrong.then(Instant::now);
        done
    }

    async fn remac_all(&self, macs: &RowMacs) -> Result<u64, Error> {
        let version = macs.active_version()?;
        let found = *lock(&self.integrity.remade_under);
        if found.is_some_and(|(under, at)| under == version && at.elapsed() < LOOK_AGAIN) {
            return Ok(0);
        }
        let mut done = 0;
        let rows = rows_by_version(&mut *self.store.connection().await?).await?;
        if rows.keys().any(|named| *named != version) {
            done += self.remac_few(macs).await?;
            done += self.remac_labels(macs).await?;
            done += self.remac_versions(macs).await?;
        }
        if done == 0 {
            *lock(&self.integrity.remade_under) = Some((version, Instant::now()));
        }
        Ok(done)
    }

    /// The tables of few rows, and the head, in one transaction. Those of the internal authority have a pass of their own.
    async fn remac_few(&self, macs: &RowMacs) -> Result<u64, Error> {
        let isolation = Isolation::ReadCommitted {
            because: "all rows are locked as they are read, and the head row's lock orders all changes of them",
        };
        self.store
            .tx("integrity.remac", isolation, |mut tx| async move {
                // The order in which others lock: what is declared, keys, and last the head.
                objects::lock_revision(&mut tx).await?;
                let mut done = objects::remac(&mut tx, macs).await?;
                done += admin_tokens::remac(&mut tx, macs).await?;
                done += plans::remac(&mut tx, macs).await?;
                done += keks::remac(&mut tx, macs).await?;
                done += remac_head(&mut tx, macs).await?;
                tx.commit(done).await
            })
            .await
    }

    async fn remac_labels(&self, macs: &RowMacs) -> Result<u64, Error> {
        let (mut done, mut after) = (0, None);
        loop {
            let from = &after;
            let (rows, next) = self
                .store
                .tx("integrity.remac", BATCH, |mut tx| async move {
                    let batch = secret_labels::remac(&mut tx, macs, from.clone(), BATCH_MAX).await?;
                    tx.commit(batch).await
                })
                .await?;
            done += rows;
            if next.is_none() {
                return Ok(done);
            }
            after = next;
        }
    }

    async fn remac_versions(&self, macs: &RowMacs) -> Result<u64, Error> {
        let (mut done, mut after) = (0, None);
        loop {
            let (rows, next) = self
                .store
                .tx("integrity.remac", BATCH, |mut tx| async move {
                    let batch = secret_versions::remac(&mut tx, macs, after, BATCH_MAX).await?;
                    tx.commit(batch).await
                })
                .await?;
            done += rows;
            if next.is_none() {
                return Ok(done);
            }
            after = next;
        }
    }
}

const BATCH: Isolation = Isolation::ReadCommitted { because: "the batch's rows are locked as they are read" };

/// Also when nothing else changed: the head has a MAC itself.
async fn remac_head(tx: &mut Tx, macs: &RowMacs) -> Result<u64, Error> {
    let changes = std::mem::take(tx.changes());
    let mut standing = integrity_head::lock(tx, macs).await?;
    standing.head.take_digests(tx, &changes).await?;
    integrity_head::write(tx, macs, &standing.head).await?;
    Ok(1)
}

/// Guarded rows by the version of the row-mac key that their MACs name. A version that is still named must not be
/// destroyed.
///
/// # Errors
/// Those of Postgres.
pub async fn rows_by_version(connection: &mut PgConnection) -> Result<BTreeMap<u32, i64>, Error> {
    let rows = sqlx::query!(
        r#"SELECT substr(mac, 1, 4) AS "version!", count(*) AS "rows!" FROM (
               SELECT mac FROM objects UNION ALL SELECT mac FROM admin_tokens UNION ALL SELECT mac FROM plans
               UNION ALL SELECT mac FROM keks UNION ALL SELECT mac FROM ca_certificates
               UNION ALL SELECT mac FROM integrity_head
               UNION ALL SELECT mac FROM secret_labels UNION ALL SELECT mac FROM secret_versions) AS guarded
           GROUP BY 1"#
    )
    .fetch_all(connection)
    .await?;
    // What is no version's MAC counts as that of version 0, which no key has.
    let version = |bytes: Vec<u8>| bytes.try_into().map_or(0, u32::from_be_bytes);
    Ok(rows.into_iter().map(|row| (version(row.version), row.rows)).collect())
}
