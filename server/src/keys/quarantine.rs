//! Putting aside DEKs that do not open, so that one of them stops neither a rewrap nor a re-encryption. They show, and
//! their key is not destroyed.

use keyfold_core::audit::Operation;
use uuid::Uuid;

use crate::{
    broker::Broker,
    error::Error,
    keys::keyring::number,
    store::{Tx, quarantined_deks},
};

/// A DEK that did not open.
pub(crate) struct Failed {
    /// Which.
    pub(crate) dek_id: Uuid,
    /// What did not, without material.
    pub(crate) reason: String,
}

impl Broker {
    /// Puts DEKs of one keyspace into quarantine, with an entry for each version of their key.
    ///
    /// # Errors
    /// Those of Postgres.
    pub(crate) async fn quarantine(
        &self,
        tx: &mut Tx,
        keyspace: &str,
        failed: Vec<Failed>,
    ) -> Result<(), Error> {
        if failed.is_empty() {
            return Ok(());
        }
        let (ids, reasons): (Vec<_>, Vec<_>) =
            failed.into_iter().map(|failed| (failed.dek_id, failed.reason)).unzip();
        for (version, deks) in quarantined_deks::insert(tx, &ids, &reasons, self.now()).await? {
            let (version, deks) = (number(version)?, u64::try_from(deks).unwrap_or_default());
            tracing::error!(keyspace, version, deks, first = %ids[0], reason = reasons[0],
                "data keys do not open and are in quarantine: see keyfold key quarantine");
            let keyspace = keyspace.to_owned();
            self.append_own(tx, Operation::KeyQuarantine { keyspace, version, deks }).await?;
        }
        Ok(())
    }
}
