//! Recovery: a key whose shares people keep, which opens the RWK once more. It is for the day when the root key is lost
//! for good, and for the drill of that day.

use std::sync::Arc;

use keyfold_core::{
    audit::{Actor, Operation, Outcome, Record},
    secret::{Key, SecretBytes},
    shamir::{Collector, Commitments, Scheme, Share, split},
};
use uuid::Uuid;

use crate::{
    broker::{Broker, Call},
    error::Error,
    keys::{
        root::{CustodyKind, NewRoot},
        rwk::Rwk,
    },
    seal::{RecoveryTurn, Waiting},
    store::{
        Isolation, keks,
        recovery_keys::{self, WrappedRecoveryKey},
        root_wrapping_keys,
    },
};

impl Broker {
    /// Makes a recovery key and gives its id and the texts of its shares, which are kept nowhere. An earlier one's shares open
    /// nothing from then on but earlier backups.
    ///
    /// # Errors
    /// `Invalid` for numbers that make no scheme.
    pub async fn create_recovery(
        &self,
        call: &Call,
        shares: u32,
        threshold: u32,
    ) -> Result<(Uuid, Vec<SecretBytes>), Error> {
        let keyring = &*self.seal.keyring()?;
        self.operate(call, Operation::RecoveryCreate { shares, threshold }, |mut work| async move {
            let scheme = Scheme::new(shares, threshold).map_err(|error| Error::Invalid(error.to_string()))?;
            let (entropy, rwk) = (&*self.entropy, keyring.rwk());
            // Nobody changes the root key meanwhile.
            root_wrapping_keys::lock(work.tx(), rwk.id()).await?.ok_or(Error::RootChanged)?;
            let key = Key::generate(entropy)?;
            let (shares, commitments) = split(&key, scheme, entropy)?;
            let texts: Vec<_> = shares.iter().map(|share| share.expose_text()).collect();
            let kept = rwk.keep_for_recovery(&key, entropy)?;
            let row = WrappedRecoveryKey {
                id: kept.recovery_key_id,
                rwk_id: rwk.id(),
                wrapped: kept.wrapped,
                commitments: serde_json::to_vec(&commitments).map_err(|_| Error::Entropy)?,
                created_at: self.now(),
                created_by: work.operator().name().to_owned(),
                last_drilled_at: None,
            };
            if combine(&commitments, shares)? != key {
                return Err(Error::Corrupt("the shares of a new recovery key do not give it again".into()));
            }
            recovery_keys::replace(work.tx(), &row).await?;
            root_wrapping_keys::set_recovery(work.tx(), rwk.id(), &kept.copy).await?;
            work.allow((row.id, texts)).await
        })
        .await
    }

    /// Opens the keys with the recovery key, and puts a root key of the configured custody in the place of the one that
    /// is lost. When that fails the shares stay, and the next refresh tries again, not at once.
    pub(super) async fn recover(&self, waiting: &Waiting, key: &Key) {
        let Some(mut turn) = self.seal.recovering() else { return };
        let done = self.recover_now(waiting, key, &turn).await;
        self.seal.refresh(&self.store).await;
        match done {
            Ok(problem) if self.seal.is_open() => {
                tracing::warn!("the keys were opened with the recovery shares");
                turn.done();
                if problem.is_some() {
                    self.seal.note_root_problem(problem);
                }
            }
            Ok(problem) => {
                let why = problem.unwrap_or_else(|| "the keys were opened, and then not taken on".into());
                turn.failed(&Error::Sealed(why));
            }
            // Another replica was faster.
            Err(Error::Conflict(_)) => turn.done(),
            Err(error) => turn.failed(&error),
        }
    }

    /// Gives why the root key that is lost is still in use, if it is. The keys are handed over then.
    async fn recover_now(
        &self,
        waiting: &Waiting,
        key: &Key,
        turn: &RecoveryTurn<'_>,
    ) -> Result<Option<String>, Error> {
        self.seal.check_recovery_key(key)?;
        let old = Arc::new(Rwk::open_recovery(waiting.installation, &waiting.rwk, key)?);
        let system = keks::system(&mut *self.store.watch().await?).await?;
        self.seal.check_continuity(&old, &system)?;
        // Its shares must be shown to somebody: an operator changes the root key once the server serves.
        if self.seal.roots().kind() == CustodyKind::Shamir {
            self.seal.hand_over(old);
            return Ok(None);
        }
        let root = turn.new_root().await?;
        match self.recover_under(&old, &root).await {
            Ok(()) => Ok(None),
            // One damaged row must not keep all others from being served.
            Err(Error::Corrupt(what)) => {
                self.seal.hand_over(old);
                Ok(Some(format!(
                    "recovery opened the keys, and no new root key could be put in place: {what}. Remove what is \
                     damaged, then run keyfold root rotate or migrate"
                )))
            }
            Err(error) => Err(error),
        }
    }

    async fn recover_under(&self, old: &Arc<Rwk>, root: &NewRoot) -> Result<(), Error> {
        let isolation =
            Isolation::ReadCommitted { because: "the row of the root-wrapping key is locked first" };
        self.store
            .tx("root.change", isolation, |mut tx| {
                let old = Arc::clone(old);
                async move {
                    let moved = self.move_under(&mut tx, &old, root).await?;
                    let record = Record {
                        request_id: self.new_request_id()?,
                        from: None,
                        actor: Actor::server(self.replica),
                        driver: None,
                        operation: Operation::RootChange {
                            from: Some("recovery".to_owned()),
                            to: root.custody.kind.to_string(),
                            rwk_version: Some(moved.rwk_version),
                            keys: Some(moved.keys),
                            replaces: Some(old.root_key_id().simple().to_string()),
                        },
                        approval: None,
                        generation: None,
                    };
                    self.append(&mut tx, &record, &Outcome::Allowed).await?;
                    tx.commit(()).await
                }
            })
            .await
    }
}

/// The key that shares of one set give.
///
/// # Errors
/// `Invalid` for a share that is not of the set, or when there are too few.
pub(super) fn combine(commitments: &Commitments, shares: Vec<Share>) -> Result<Key, Error> {
    let mut collector = Collector::new(commitments.clone());
    for share in shares {
        collector.add(share).map_err(|wrong| Error::Invalid(wrong.to_string()))?;
    }
    let progress = collector.progress();
    collector.combine().ok_or_else(|| {
        Error::Invalid(format!(
            "{} different shares are not enough: it takes {}",
            progress.have, progress.need
        ))
    })
}
