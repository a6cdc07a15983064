//! Reading the audit log, and keeping its index in order.

use std::time::Duration;

use keyfold_core::audit::Operation;

use crate::{
    broker::{Broker, Call},
    error::Error,
    store::audit::{self, Filter, StoredEntry},
};

/// Most entries on one page.
pub const PAGE_MAX: u32 = 1000;

/// How often new paths are sorted into the log's index. Each costs the same however many there are, so it is often: then
/// Postgres is not busy with them for long at a time, and searches, which look through all that waits, find little.
const SORT_INTERVAL: Duration = Duration::from_millis(500);

impl Broker {
    /// Up to `limit` entries that match, newest first. The reading is itself an entry, after those that it shows.
    ///
    /// # Errors
    /// `Invalid` when the limit is beyond `PAGE_MAX`.
    pub async fn audit_entries(
        &self,
        call: &Call,
        filter: &Filter,
        limit: u32,
    ) -> Result<Vec<StoredEntry>, Error> {
        self.operate(call, Operation::AuditList {}, |mut work| async move {
            if limit > PAGE_MAX {
                return Err(Error::Invalid(format!("page_size must be at most {PAGE_MAX}")));
            }
            let entries = audit::list(work.tx(), filter, i64::from(limit)).await?;
            work.allow(entries).await
        })
        .await
    }

    /// Keeps the index over the log's paths in order, beside those who append.
    pub(crate) async fn keep_paths_sorted(&self) {
        loop {
            tokio::time::sleep(SORT_INTERVAL).await;
            if self.seal.keyring().is_ok()
                && let Err(error) = self.sort_in_paths().await
            {
                tracing::warn!(%error, "new paths could not be sorted into the audit log's index");
            }
        }
    }

    async fn sort_in_paths(&self) -> Result<(), Error> {
        audit::sort_in_paths(&mut *self.store.connection().await?).await
    }
}
