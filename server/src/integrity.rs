//! Whether the rows that steer what is read are those that servers wrote, and all of them, and the newest.
//!
//! Three things together say so. A row's MAC: it was not edited, nor moved from elsewhere. The integrity head, which
//! each change of guarded rows carries forward in its own transaction: none was left out, added or put back. And what a
//! replica remembers, in memory and in its pin file: the head itself was not put back.
//!
//! Who writes guarded rows needs to know two things. The functions of `store` that write one take `&mut Tx` and the
//! keyring's `RowMacs`, and tell the transaction what they changed (`Tx::changes`). `Broker::append` then carries all of
//! it into the head, together with the entry; a transaction that does not append one cannot commit.

use std::collections::BTreeSet;

use ring::digest;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::Error;

pub mod log_end;
pub mod marks;
pub mod pin;
pub mod remac;
pub mod row_macs;
pub mod scrub;
pub mod watch;

/// Rows of one moment, each as its id and its MAC.
pub type Macs = BTreeSet<(Uuid, Vec<u8>)>;

/// What a transaction has changed of guarded rows.
#[derive(Debug, Default)]
pub struct Changes {
    /// Of objects and administrators' tokens.
    pub declared: Vec<RowChange>,
    /// Of keys.
    pub keys: Vec<RowChange>,
    /// By how much the generations of labels and versions have risen, all together.
    pub secrets: i64,
    /// A plan that was used up, and when it expires.
    pub used_plan: Option<(Uuid, OffsetDateTime)>,
}

/// A row that was added, changed or removed.
#[derive(Debug, Clone)]
pub struct RowChange {
    /// Its id.
    pub id: Uuid,
    /// Its MAC as it was; absent when it was added.
    pub before: Option<Vec<u8>>,
    /// Its MAC as it is; absent when it was removed.
    pub after: Option<Vec<u8>>,
}

impl Changes {
    /// Whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.declared.is_empty() && self.keys.is_empty() && self.secrets == 0 && self.used_plan.is_none()
    }
}

impl RowChange {
    /// A row that was added.
    pub fn added(id: Uuid, mac: &[u8]) -> Self {
        Self { id, before: None, after: Some(mac.to_owned()) }
    }

    /// A row that was changed.
    pub fn changed(id: Uuid, before: &[u8], after: &[u8]) -> Self {
        Self { id, before: Some(before.to_owned()), after: Some(after.to_owned()) }
    }

    /// A row that was removed.
    pub fn removed(id: Uuid, mac: &[u8]) -> Self {
        Self { id, before: Some(mac.to_owned()), after: None }
    }
}

/// SHA-256 over the rows' ids and MACs, by id.
pub fn digest_of(macs: &Macs) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for (id, mac) in macs {
        context.update(id.as_bytes());
        context.update(&u64::try_from(mac.len()).unwrap_or(u64::MAX).to_be_bytes());
        context.update(mac);
    }
    let mut sum = [0; 32];
    sum.copy_from_slice(context.finish().as_ref());
    sum
}

/// The digest after `changes`, given the rows as the transaction that made them sees them, and the digest before.
///
/// Both digests come from the same rows in memory. So no change of ours covers up what somebody did to other rows
/// before, and what they do meanwhile does not get into the digest.
///
/// # Errors
/// `Integrity` when the rows before the changes do not come to `before`.
pub fn digest_after(
    what: &'static str,
    mut rows: Macs,
    changes: &[RowChange],
    before: &[u8],
) -> Result<[u8; 32], Error> {
    let wrong = || row_macs::failed(what, "the rows are not those of the last change".into());
    for RowChange { id, before, after } in changes.iter().rev() {
        if let Some(after) = after
            && !rows.remove(&(*id, after.clone()))
        {
            return Err(wrong());
        }
        rows.extend(before.clone().map(|before| (*id, before)));
    }
    if digest_of(&rows) != before {
        return Err(wrong());
    }
    for RowChange { id, before, after } in changes {
        if let Some(before) = before {
            rows.remove(&(*id, before.clone()));
        }
        rows.extend(after.clone().map(|after| (*id, after)));
    }
    Ok(digest_of(&rows))
}

#[cfg(test)]
mod tests;
