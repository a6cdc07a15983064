//! A look, from time to time, at whether a replica that serves could start again: whether the root key can be had, and
//! whether the stored rows still open to the root-wrapping key that the replica holds. While one holds it, a damaged row
//! can be mended: by a change of the root key, or by a new recovery key.

use std::sync::{Arc, PoisonError};

use tokio::time::timeout;

use super::{Held, LOOK_MAX, Seal};
use crate::{
    error::Error,
    keys::root::CustodyKind,
    store::{
        Store,
        recovery_keys::{self, WrappedRecoveryKey},
        root_wrapping_keys::{self, WrappedRwk},
    },
};

/// What the database holds now.
struct Stored {
    rwk: Arc<WrappedRwk>,
    recovery: Option<WrappedRecoveryKey>,
}

impl Seal {
    /// Looks, and keeps what it finds for [`Self::root`] and the metrics `keyfold_root_key_reachable` and
    /// `keyfold_root_is_well`. People with shares are not asked.
    pub async fn check_root(&self, store: &Store) {
        let Some(held) = self.held() else { return };
        let stored = timeout(LOOK_MAX, stored(store)).await;
        let stored = match stored {
            Ok(Ok(Some(stored))) if stored.rwk.id == held.row.id => Some(stored),
            // The next refresh sees to that.
            Ok(Ok(_)) => return,
            Ok(Err(_)) | Err(_) => None,
        };
        let row = stored.as_ref().map_or(&held.row, |stored| &stored.rwk);
        let unreachable = self.check_keeper(&held, row).await.err();
        metrics::gauge!("keyfold_root_key_reachable").set(if unreachable.is_none() { 1.0 } else { 0.0 });
        let damage = stored.as_ref().and_then(|stored| held.damage(stored));
        if stored.is_some() {
            metrics::gauge!("keyfold_root_is_well").set(if damage.is_none() { 1.0 } else { 0.0 });
        }
        if let Some(key) = stored.and_then(|stored| stored.recovery) {
            self.warn_of_unnamed(&key);
        }
        self.note_root_problem(damage.or(unreachable));
    }

    async fn check_keeper(&self, held: &Held, row: &WrappedRwk) -> Result<(), String> {
        let told = |error| match error {
            Error::Sealed(why) => why,
            error => error.to_string(),
        };
        let custody = row.custody().map_err(told)?;
        if custody.kind == CustodyKind::Shamir {
            return Ok(());
        }
        let root = self.roots.open(row.root_key_id, &custody).await.map_err(told)?;
        match held.keyring.rwk() {
            // Changed just now.
            rwk if rwk.id() != row.id => Ok(()),
            rwk if rwk.is_sealed_in(row, &root) => Ok(()),
            _ => Err("the root key does not open the stored root-wrapping key".into()),
        }
    }

    /// Keeps why this replica would not start again, for [`Self::root`]; said in the log when it is new.
    pub(crate) fn note_root_problem(&self, problem: Option<String>) {
        let mut before = self.root_problem.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = problem.as_ref().filter(|why| before.as_ref() != Some(*why)) {
            tracing::error!(%why, "this replica serves on, but would not start again");
        }
        *before = problem;
    }

    fn warn_of_unnamed(&self, key: &WrappedRecoveryKey) {
        let mut warned = self.warned_of.write().unwrap_or_else(PoisonError::into_inner);
        if self.recovery_key_id != Some(key.id) && *warned != Some(key.id) {
            tracing::warn!(
                in_use = %key.id.simple(),
                "recovery.key_id of the configuration does not name the recovery key in use: this server would not take \
                 its shares"
            );
            *warned = Some(key.id);
        }
    }
}

async fn stored(store: &Store) -> Result<Option<Stored>, Error> {
    let mut moment = store.moment().await?;
    let Some(rwk) = root_wrapping_keys::newest(&mut moment).await? else { return Ok(None) };
    Ok(Some(Stored { rwk: Arc::new(rwk), recovery: recovery_keys::find(&mut moment).await? }))
}

impl Held {
    /// What is wrong with the stored rows, and how they are mended; nothing when all is well.
    fn damage(&self, stored: &Stored) -> Option<String> {
        let rwk = self.keyring.rwk();
        if rwk.id() != stored.rwk.id {
            return None;
        }
        if !self.row.is_as(&stored.rwk) {
            return Some(
                "the stored root-wrapping key is not the one that this replica opened: change the root key (keyfold \
                 root rotate), which writes it anew, before the last replica stops"
                    .into(),
            );
        }
        let is_kept = match (&stored.recovery, &stored.rwk.recovery_wrapped) {
            (None, None) => true,
            (Some(key), Some(_)) => rwk.recovery_key(key).is_ok_and(|key| rwk.is_kept_in(&stored.rwk, &key)),
            _ => false,
        };
        (!is_kept).then(|| {
            "recovery would fail: the stored recovery key or its copy of the root-wrapping key does not open. Make a new \
             one (keyfold recovery create)"
                .into()
        })
    }
}

impl WrappedRwk {
    /// Whether all but the copy for recovery, which is made anew by itself, is the same.
    fn is_as(&self, other: &Self) -> bool {
        let Self {
            id,
            version,
            root_key_id,
            wrapped,
            custody_kind,
            custody,
            recovery_wrapped: _,
            created_at: _,
        } = self;
        (id, version, root_key_id, wrapped, custody_kind, custody)
            == (
                &other.id,
                &other.version,
                &other.root_key_id,
                &other.wrapped,
                &other.custody_kind,
                &other.custody,
            )
    }
}
