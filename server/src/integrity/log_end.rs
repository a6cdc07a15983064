//! The end of the audit log as a replica has seen it: a log that has entries enough, and goes on from another one, is not
//! the same log.

use sqlx::PgConnection;

use crate::{
    error::Error,
    store::{audit, integrity_head::Standing},
};

/// How many entries there were, and the last of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEnd {
    /// Entries in the log.
    pub entries: i64,
    /// Leaf hash of the last of them.
    pub leaf_hash: Vec<u8>,
}

impl LogEnd {
    /// The log's end as it is; nothing while the log is empty, or has lost its end.
    ///
    /// # Errors
    /// Those of Postgres.
    pub async fn of(connection: &mut PgConnection, standing: &Standing) -> Result<Option<Self>, Error> {
        let entries = standing.audit_size;
        let leaf_hash = audit::leaf_hash_at(connection, entries - 1).await?;
        Ok(leaf_hash.map(|leaf_hash| Self { entries, leaf_hash }))
    }

    /// Whether the log still has that entry, as it was. Retention removes old entries, and then nothing can be said.
    ///
    /// # Errors
    /// Those of Postgres.
    pub async fn is_there(&self, connection: &mut PgConnection) -> Result<bool, Error> {
        if audit::leaf_hash_at(connection, self.entries - 1).await?.as_ref() == Some(&self.leaf_hash) {
            return Ok(true);
        }
        Ok(audit::oldest_index(connection).await?.is_some_and(|oldest| oldest >= self.entries))
    }
}
