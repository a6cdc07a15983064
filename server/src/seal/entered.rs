//! Shares that people enter at a sealed server: of a root key that is split, or of the recovery key. Nothing takes a
//! share back but another set in the database, and the server's end.

use std::{
    net::IpAddr,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use keyfold_core::{
    envelope::recovery_key_id,
    secret::Key,
    shamir::{Collector, Commitments, Progress, Share},
};
use tokio::{sync, time::Instant};

use super::{Seal, Waiting};
use crate::{
    callers,
    error::Error,
    keys::root::{Custody, CustodyKind, NewRoot},
    shares,
};

/// How long a recovery that failed is not tried again: it may ask a keeper for a new root key.
const RECOVERY_PAUSE: Duration = Duration::from_secs(5);

/// Which key a share is of.
pub enum ShareOf {
    /// The root key in use.
    Root(Custody),
    /// The recovery key.
    Recovery(Commitments),
}

impl Waiting {
    /// Which key that share is of. Changes nothing.
    ///
    /// # Errors
    /// `Invalid` for a share of neither; `Sealed` when no shares are of use.
    pub fn share_is_of(&self, share: &Share) -> Result<ShareOf, Error> {
        let custody = self.rwk.custody()?;
        let root = match custody.kind {
            CustodyKind::Shamir => Some(commitments(&custody.data)?),
            _ => None,
        };
        let recovery = self.recovery.as_ref().map(|key| commitments(&key.commitments)).transpose()?;
        let wanted = match (root, recovery) {
            (_, Some(recovery)) if recovery.set() == share.set() => {
                recovery.verify(share).map(|()| ShareOf::Recovery(recovery))
            }
            (Some(root), _) => root.verify(share).map(|()| ShareOf::Root(custody)),
            (None, Some(recovery)) => recovery.verify(share).map(|()| ShareOf::Recovery(recovery)),
            (None, None) => {
                return Err(Error::Sealed(
                    "the root key in use is not split into shares, and there are none for recovery".into(),
                ));
            }
        };
        wanted.map_err(|wrong| Error::Invalid(wrong.to_string()))
    }
}

impl Seal {
    /// Whether the configuration names the recovery key that the database has. Postgres alone must not say whose shares
    /// open anything.
    ///
    /// # Errors
    /// `Conflict`, with what to do.
    pub fn takes_recovery(&self, waiting: &Waiting) -> Result<(), Error> {
        let in_use = waiting.recovery.as_ref().map(|key| key.id);
        let why = match self.recovery_key_id {
            None => "recovery.key_id of this server's configuration names no recovery key",
            Some(named) if in_use != Some(named) => {
                "recovery.key_id of this server's configuration names another recovery key than the database has"
            }
            Some(_) => return Ok(()),
        };
        Err(Error::Conflict(format!(
            "{why}, and shares of no other are taken: put the id there that keyfold recovery create printed with the \
             shares, not one out of the database, and restart the server"
        )))
    }

    /// Whether that is the recovery key that the configuration names.
    ///
    /// # Errors
    /// `Sealed` when it is not.
    pub(crate) fn check_recovery_key(&self, key: &Key) -> Result<(), Error> {
        if self.recovery_key_id == Some(recovery_key_id(key)) {
            return Ok(());
        }
        Err(Error::Sealed(
            "the shares give another recovery key than recovery.key_id of the configuration names".into(),
        ))
    }

    /// Lets one right share be entered at a time.
    pub(crate) async fn entering(&self) -> sync::MutexGuard<'_, ()> {
        self.entering.lock().await
    }

    /// A place among the wrong shares that are being written down. Whoever has the right ones needs none.
    ///
    /// # Errors
    /// `CallerOverloaded`, `Overloaded`.
    pub(crate) fn wrong_share(&self, from: Option<IpAddr>) -> Result<shares::Share<IpAddr>, Error> {
        callers::place(&self.wrong_shares, from.unwrap_or(IpAddr::from([0; 4])), "the network address")
    }

    /// How far that share would take it; `None` when it was entered before.
    ///
    /// # Errors
    /// `Sealed` when the configuration has no use for it.
    pub fn progress_with(&self, of: &ShareOf, share: &Share) -> Result<Option<Progress>, Error> {
        match of {
            ShareOf::Root(custody) => self.roots.progress_with(custody, share),
            ShareOf::Recovery(commitments) => Ok(of_set(&mut self.recovery(), commitments).with(share)),
        }
    }

    /// Takes that share.
    ///
    /// # Errors
    /// `Invalid` when it is none of the set; `Sealed` when the configuration has no use for it.
    pub fn enter(&self, of: &ShareOf, share: Share) -> Result<(), Error> {
        match of {
            ShareOf::Root(custody) => self.roots.enter(custody, share).map(drop),
            ShareOf::Recovery(commitments) => {
                let mut entered = self.recovery();
                let added = of_set(&mut entered, commitments).add(share);
                added.map(drop).map_err(|wrong| Error::Invalid(wrong.to_string()))
            }
        }
    }

    /// The recovery key, if its shares were entered while the server waits for the root key.
    pub fn recovery_key(&self) -> Option<(Waiting, Key)> {
        let waiting = self.waiting()?;
        let wanted = commitments(&waiting.recovery.as_ref()?.commitments).ok()?;
        let key = of_set(&mut self.recovery(), &wanted).combine()?;
        Some((waiting, key))
    }

    /// The turn to recover, if nobody recovers now and the last failure is not too recent.
    pub(crate) fn recovering(&self) -> Option<RecoveryTurn<'_>> {
        let mut recovering = self.recovering.lock().unwrap_or_else(PoisonError::into_inner);
        let is_free = !recovering.is_taken && recovering.not_before.is_none_or(|at| Instant::now() >= at);
        is_free.then(|| {
            recovering.is_taken = true;
            RecoveryTurn { seal: self }
        })
    }

    pub(super) fn forget_new_root(&self) {
        self.recovering.lock().unwrap_or_else(PoisonError::into_inner).new_root = None;
    }

    pub(super) fn recovery_problem(&self) -> Option<String> {
        self.recovering.lock().unwrap_or_else(PoisonError::into_inner).problem.clone()
    }

    pub(super) fn recovery(&self) -> MutexGuard<'_, Option<Collector>> {
        self.recovery.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether somebody recovers now, and how it went the last time.
#[derive(Default)]
pub(super) struct Recovering {
    is_taken: bool,
    not_before: Option<Instant>,
    problem: Option<String>,
    /// What an attempt made and did not come to use.
    new_root: Option<Arc<NewRoot>>,
}

/// One attempt to recover, at an end when dropped.
pub(crate) struct RecoveryTurn<'a> {
    seal: &'a Seal,
}

impl RecoveryTurn<'_> {
    /// A new root key. One that an earlier attempt made is used before another is: each may be a key in an HSM that
    /// nobody removes.
    ///
    /// # Errors
    /// `Sealed` when its keeper cannot make one.
    pub(crate) async fn new_root(&self) -> Result<Arc<NewRoot>, Error> {
        let recovering = || self.seal.recovering.lock().unwrap_or_else(PoisonError::into_inner);
        // Of a file it is what the file holds now.
        let kept = recovering().new_root.clone().filter(|root| root.custody.kind != CustodyKind::File);
        if let Some(root) = kept {
            return Ok(root);
        }
        let root = Arc::new(self.seal.roots.make().await?);
        recovering().new_root = Some(Arc::clone(&root));
        Ok(root)
    }

    /// It is not needed any more.
    pub(crate) fn done(&mut self) {
        self.seal.forget_new_root();
        self.note(None);
    }

    /// It is to be tried again, but not at once.
    pub(crate) fn failed(&mut self, error: &Error) {
        let why = match error {
            Error::Sealed(why) | Error::Integrity { what: why, .. } => why.clone(),
            error => error.to_string(),
        };
        if self.seal.recovery_problem().as_ref() != Some(&why) {
            tracing::error!(%why, "recovery fails");
        }
        self.note(Some(why));
    }

    fn note(&self, problem: Option<String>) {
        let mut recovering = self.seal.recovering.lock().unwrap_or_else(PoisonError::into_inner);
        recovering.not_before = problem.as_ref().map(|_| Instant::now() + RECOVERY_PAUSE);
        recovering.problem = problem;
    }
}

impl Drop for RecoveryTurn<'_> {
    fn drop(&mut self) {
        self.seal.recovering.lock().unwrap_or_else(PoisonError::into_inner).is_taken = false;
    }
}

/// The shares of that set. Those of another are dropped.
fn of_set<'a>(entered: &'a mut Option<Collector>, wanted: &Commitments) -> &'a mut Collector {
    if entered.as_ref().is_some_and(|entered| entered.commitments() != wanted) {
        *entered = None;
    }
    entered.get_or_insert_with(|| Collector::new(wanted.clone()))
}

/// Out of a row.
///
/// # Errors
/// `Corrupt` when they are not as they were written.
pub fn commitments(stored: &[u8]) -> Result<Commitments, Error> {
    serde_json::from_slice(stored)
        .map_err(|_| Error::Corrupt("the commitments of a set of shares are not as they were written".into()))
}
