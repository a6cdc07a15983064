//! Reading the audit log.

use keyfold_core::audit::Operation;

use crate::{
    broker::{Broker, Call},
    error::Error,
    store::audit::{self, Filter, StoredEntry},
};

/// Most entries on one page.
pub const PAGE_MAX: u32 = 1000;

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
}
