//! The root key: how it is kept, and putting another in its place.

use std::sync::Arc;

use keyfold_core::{audit::Operation, secret::SecretBytes};
use time::OffsetDateTime;
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::{
    broker::{Broker, Call},
    error::Error,
    keys::{
        root::{CustodyKind, NewRoot},
        rwk::Rwk,
    },
    seal::commitments,
    store::{
        Tx, keks, recovery_keys,
        root_wrapping_keys::{self, WrappedRwk},
    },
};

/// Shares of a key, for people, shown once.
pub struct ShownShares {
    /// The text of each; none when the key is not split.
    pub texts: Vec<SecretBytes>,
    /// How many give the key; 0 when it is not split.
    pub threshold: u32,
}

impl ShownShares {
    /// Those of a new root key.
    ///
    /// # Errors
    /// `Corrupt` when its commitments cannot be read.
    pub fn of(root: &NewRoot) -> Result<Self, Error> {
        let threshold = match root.custody.kind {
            CustodyKind::Shamir => commitments(&root.custody.data)?.threshold().into(),
            _ => 0,
        };
        Ok(Self { texts: root.shares.iter().map(|share| share.expose_text()).collect(), threshold })
    }
}

/// How the root key is kept.
pub struct RootStatus {
    /// The RWK, which names its root key.
    pub rwk: Arc<WrappedRwk>,
    /// Who keeps roots that are made now.
    pub configured: CustodyKind,
    /// Why the root key could not be had when this replica last looked.
    pub problem: Option<String>,
    /// The recovery key, if there is one.
    pub recovery: Option<RecoveryStatus>,
}

/// A recovery key, without the key.
pub struct RecoveryStatus {
    /// Names it.
    pub id: Uuid,
    /// Shares in all.
    pub shares: u32,
    /// Shares that give the key.
    pub threshold: u32,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// By whom.
    pub created_by: String,
    /// When its shares last opened a backup.
    pub last_drilled_at: Option<OffsetDateTime>,
}

/// What a change of the root key did.
pub struct RootChange {
    /// Who keeps the new one.
    pub custody: CustodyKind,
    /// Names the old one.
    pub old_root_key_id: Uuid,
    /// Names the new one.
    pub new_root_key_id: Uuid,
    /// The new RWK's version.
    pub rwk_version: u32,
    /// Keys that were moved under it.
    pub keys: u64,
    /// Of the new root key.
    pub shares: ShownShares,
}

/// What was moved under a new RWK.
pub(super) struct Moved {
    pub(super) rwk_version: u32,
    pub(super) keys: u64,
}

impl Broker {
    /// How the root key is kept.
    ///
    /// # Errors
    /// Those of Postgres.
    pub async fn root(&self, call: &Call) -> Result<RootStatus, Error> {
        self.operate(call, Operation::RootStatus {}, |mut work| async move {
            let (rwk, problem) = self.root_in_use()?;
            let recovery = recovery_keys::find(work.tx()).await?.map(|key| {
                let commitments = commitments(&key.commitments)?;
                Ok::<_, Error>(RecoveryStatus {
                    id: key.id,
                    shares: commitments.shares().into(),
                    threshold: commitments.threshold().into(),
                    created_at: key.created_at,
                    created_by: key.created_by,
                    last_drilled_at: key.last_drilled_at,
                })
            });
            let status = RootStatus {
                rwk,
                configured: self.seal.roots().kind(),
                problem,
                recovery: recovery.transpose()?,
            };
            work.allow(status).await
        })
        .await
    }

    fn root_in_use(&self) -> Result<(Arc<WrappedRwk>, Option<String>), Error> {
        self.seal.root().ok_or_else(|| Error::Sealed("the keys are not open".into()))
    }

    /// Makes a new root key in the configured custody, and moves all that rests on the old one under it. `custody` is
    /// what the caller takes for configured; empty for the custody in use. `replaces` is what they take for the root key in
    /// use, if they say so.
    ///
    /// # Errors
    /// `Conflict` when the configuration names another custody, or nothing new, or another root key is in use; when no root can be made; `Corrupt` when
    /// a key does not open.
    pub async fn change_root(
        &self,
        call: &Call,
        custody: &str,
        replaces: Option<Uuid>,
    ) -> Result<RootChange, Error> {
        let old = &self.seal.keyring()?.rwk();
        let in_use = &self.root_in_use()?.0;
        let wanted = if custody.is_empty() { &in_use.custody_kind } else { custody };
        let made = &OnceCell::new();
        let (from, to) = (&in_use.custody_kind, wanted);
        let replaced = &replaces.map(|id| id.simple().to_string());
        let asked = Operation::RootChange {
            from: None,
            to: to.to_owned(),
            replaces: replaced.clone(),
            rwk_version: None,
            keys: None,
        };
        let make = || async move {
            check_replaced(old, replaces)?;
            made.get_or_try_init(|| self.new_root(in_use, wanted)).await.map(drop)
        };
        let moved = self
            .operate_after(call, asked, make, |mut work| async move {
                let root = made.get().ok_or(Error::Busy)?;
                let moved = self.move_under(work.tx(), old, root).await?;
                work.state(Operation::RootChange {
                    from: Some(from.clone()),
                    to: to.to_owned(),
                    replaces: replaced.clone(),
                    rwk_version: Some(moved.rwk_version),
                    keys: Some(moved.keys),
                });
                work.allow(moved).await
            })
            .await;
        // Also when it is not known whether the commit took place.
        self.seal.refresh(&self.store).await;
        let (moved, root) = (moved?, made.get().ok_or(Error::Busy)?);
        Ok(RootChange {
            custody: root.custody.kind,
            old_root_key_id: old.root_key_id(),
            new_root_key_id: root.id,
            rwk_version: moved.rwk_version,
            keys: moved.keys,
            shares: ShownShares::of(root)?,
        })
    }

    async fn new_root(&self, in_use: &WrappedRwk, wanted: &str) -> Result<NewRoot, Error> {
        let configured = self.seal.roots().kind();
        if CustodyKind::parse(wanted).is_none() {
            return Err(Error::Invalid(format!(
                "there is no custody {wanted:?}, but file, pkcs11, kms-plugin and shamir"
            )));
        }
        if configured.as_str() != wanted {
            return Err(Error::Conflict(format!(
                "root_key of this server's configuration names {configured}, so the new root key would be kept there \
                 and not by {wanted}: say so, or change the configuration first"
            )));
        }
        if configured == CustodyKind::Shamir && !self.has_recovery().await? {
            return Err(Error::Conflict(
                "there is no recovery key. A new root key's shares are shown once, and if that answer were lost, so \
                 would be every secret: create a recovery key first (keyfold recovery create)"
                    .into(),
            ));
        }
        let root = self.seal.roots().make().await.map_err(|error| match error {
            Error::Sealed(why) => Error::Conflict(format!("no new root key can be made: {why}")),
            error => error,
        })?;
        if root.id == in_use.root_key_id {
            return Err(Error::Conflict(
                "the current root key file holds the root key that is in use: put a new key into it and the old one \
                 into root_key.file.previous, on every replica, then try again"
                    .into(),
            ));
        }
        Ok(root)
    }

    async fn has_recovery(&self) -> Result<bool, Error> {
        Ok(recovery_keys::find(&mut *self.store.connection().await?).await?.is_some())
    }

    /// Makes a new RWK under `root`, moves under it all that `old` wraps, and removes `old`, of which nothing is left
    /// once the transaction is committed. The row's lock keeps others from wrapping by the old one until then, and the
    /// reference to it from doing so afterwards.
    pub(super) async fn move_under(&self, tx: &mut Tx, old: &Rwk, root: &NewRoot) -> Result<Moved, Error> {
        let entropy = &*self.entropy;
        root_wrapping_keys::lock(tx, old.id()).await?.ok_or_else(|| {
            Error::Conflict(
                "somebody else has just changed the root key: look whether it is to be changed again".into(),
            )
        })?;
        let keys = keks::lock_wrapped(tx).await?;
        let recovery = recovery_keys::find(tx).await?;
        let (mut row, new) = Rwk::make(old.installation(), old.version() + 1, root, self.now(), entropy)?;
        let kept = match &recovery {
            Some(key) => Some(new.keep_for_recovery(&old.recovery_key(key)?, entropy)?),
            None => None,
        };
        row.recovery_wrapped = kept.as_ref().map(|kept| kept.copy.clone());
        let moved = keys.into_iter().map(|key| old.move_kek(key, &new, entropy));
        let moved = moved.collect::<Result<Vec<_>, _>>()?;
        root_wrapping_keys::insert(tx, &row).await?;
        keks::move_under(tx, new.id(), &moved).await?;
        if let Some(kept) = kept {
            recovery_keys::rewrap(tx, kept.recovery_key_id, new.id(), &kept.wrapped).await?;
        }
        root_wrapping_keys::delete(tx, old.id()).await?;
        if keks::under_another(tx, new.id()).await? > 0 || root_wrapping_keys::count(tx).await? != 1 {
            return Err(Error::Corrupt(
                "root_wrapping_keys: a change of the root key left something behind".into(),
            ));
        }
        let done = Moved { rwk_version: new.version(), keys: u64::try_from(moved.len()).unwrap_or(u64::MAX) };
        self.seal.hand_over(Arc::new(new));
        Ok(done)
    }
}

/// Whether the root key that is to be replaced is the one in use. A plan that was signed for one is good for no other.
fn check_replaced(in_use: &Rwk, replaces: Option<Uuid>) -> Result<(), Error> {
    match replaces {
        Some(id) if id != in_use.root_key_id() => Err(Error::Conflict(format!(
            "the root key in use is {}, not {}, which is to be replaced: look with keyfold root status whether it is to \
             be changed again",
            in_use.root_key_id().simple(),
            id.simple()
        ))),
        _ => Ok(()),
    }
}
