//! Entering shares at a sealed server. Nobody has to sign in: a share proves itself by its commitment, and a server that
//! is sealed could check no token's rights.

use keyfold_core::{
    audit::{Actor, Operation},
    shamir::Share,
};

use crate::{
    broker::{Broker, Call},
    error::Error,
    seal::{ShareOf, State, Waiting},
};

/// How far the shares that were entered at this replica go.
pub struct Unsealed {
    /// Different shares entered.
    pub entered: u32,
    /// Shares that are needed.
    pub threshold: u32,
    /// Whether the server has opened its keys.
    pub is_unsealed: bool,
}

impl Broker {
    /// Enters one share of the root key in use, or of the recovery key, at this replica. It counts once its entry is
    /// durable. Looking whether it is right comes before everything that takes time, and whoever has a right one waits
    /// for nobody's wrong ones.
    ///
    /// # Errors
    /// `Invalid` for a share that is not wanted, `Conflict` for one that was entered before, when the server waits for
    /// none, or for one of a recovery key that its configuration does not name; `Sealed` when it is sealed for another reason. Nothing changes then.
    pub async fn unseal(&self, call: &Call, share: &str) -> Result<Unsealed, Error> {
        let (waiting, share, of) = match self.right_share(share) {
            Ok(right) => right,
            Err(error) => return self.refuse_share(call, error).await,
        };
        let turn = self.seal.entering().await;
        let is_waiting = self.seal.waiting().is_some_and(|now| now.rwk.id == waiting.rwk.id);
        let progress = match self.seal.progress_with(&of, &share) {
            Ok(Some(progress)) if is_waiting => progress,
            Ok(_) => {
                drop(turn);
                let entered = Error::Conflict("this share is entered already, or is no longer needed".into());
                return self.refuse_share(call, entered).await;
            }
            Err(error) => return Err(error),
        };
        let (entered, threshold) = (progress.have.into(), progress.need.into());
        let operation = Operation::RootUnseal {
            entered: Some(entered),
            threshold: Some(threshold),
            unsealed: progress.is_complete(),
        };
        self.audited(call.record(Actor::unknown(), operation), Ok(())).await?;
        self.seal.enter(&of, share)?;
        self.refresh().await;
        Ok(Unsealed { entered, threshold, is_unsealed: self.seal.is_open() })
    }

    fn right_share(&self, text: &str) -> Result<(Waiting, Share, ShareOf), Error> {
        let waiting = match (self.seal.waiting(), self.seal.state()) {
            (Some(waiting), _) => waiting,
            (None, State::Sealed(why)) => return Err(Error::Sealed(why)),
            (None, State::Uninitialized) => return Err(Error::NotInitialized),
            (None, State::Serving(_)) => {
                return Err(Error::Conflict("this server does not wait for shares".into()));
            }
        };
        let share = Share::parse(text).map_err(|error| Error::Invalid(error.to_string()))?;
        let of = waiting.share_is_of(&share)?;
        if matches!(of, ShareOf::Recovery(_)) {
            self.seal.takes_recovery(&waiting)?;
        }
        Ok((waiting, share, of))
    }

    async fn refuse_share(&self, call: &Call, error: Error) -> Result<Unsealed, Error> {
        let _place = self.seal.wrong_share(call.from)?;
        let operation = Operation::RootUnseal { entered: None, threshold: None, unsealed: false };
        self.audited(call.record(Actor::unknown(), operation), Err(error)).await
    }
}
