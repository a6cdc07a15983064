//! Requests in work of each caller, once it is known who calls: one caller's flood leaves places for the others. What a
//! network address may have before that is bounded apart.

use std::hash::Hash;

use keyfold_core::identity::WorkloadIdentity;

use crate::{
    authn::{DriverCaller, OperatorCaller, PodCaller},
    config::Limits,
    error::Error,
    shares::{Full, Share, Shares},
};

/// The places of each caller. Keys are stable names of callers, such as `ISSUER/UID`.
pub struct Callers {
    drivers: Shares<String>,
    pods: Shares<String>,
    operators: Shares<String>,
}

/// A caller's places, given back when dropped.
#[must_use]
pub struct Places {
    _held: Vec<Share<String>>,
}

impl Callers {
    /// Within `limits`.
    pub fn new(limits: &Limits) -> Self {
        let of_each = |max| Shares::new(limits.concurrent_requests, max);
        Self {
            drivers: of_each(limits.requests_per_driver),
            pods: of_each(limits.requests_per_pod),
            operators: of_each(limits.requests_per_operator),
        }
    }

    /// A pod's request counts for its driver and for the pod. All pods of a node share a driver, so that who holds a
    /// node's tokens has one driver's places, however many pods the node runs.
    ///
    /// # Errors
    /// `CallerOverloaded`.
    pub fn of_pod(&self, caller: &PodCaller) -> Result<Places, Error> {
        let (driver, pod) = (self.place_of_driver(caller.driver())?, caller.identity());
        let pod = place(&self.pods, key(pod, &pod.pod.uid), "the pod")?;
        Ok(Places { _held: vec![driver, pod] })
    }

    /// A driver's request on its own behalf.
    ///
    /// # Errors
    /// `CallerOverloaded`.
    pub fn of_driver(&self, caller: &DriverCaller) -> Result<Places, Error> {
        Ok(Places { _held: vec![self.place_of_driver(caller.identity())?] })
    }

    fn place_of_driver(&self, driver: &WorkloadIdentity) -> Result<Share<String>, Error> {
        // Before Kubernetes 1.32 a token names no node; then the driver's own pod stands for it.
        let node = driver.node.as_ref().unwrap_or(&driver.pod);
        place(&self.drivers, key(driver, &node.uid), "the driver")
    }

    /// An operator's request.
    ///
    /// # Errors
    /// `CallerOverloaded`.
    pub fn of_operator(&self, caller: &OperatorCaller) -> Result<Places, Error> {
        let operator = place(&self.operators, caller.name().to_owned(), "the operator")?;
        Ok(Places { _held: vec![operator] })
    }
}

/// One place of `owner`, who is `caller` in what it is told.
///
/// # Errors
/// `CallerOverloaded`, or `Overloaded` when all places are taken.
pub fn place<K: Clone + Eq + Hash>(
    shares: &Shares<K>,
    owner: K,
    caller: &'static str,
) -> Result<Share<K>, Error> {
    shares.one_of(owner).map_err(|full| match full {
        Full::Own { max } => Error::CallerOverloaded { caller, max },
        Full::All => Error::Overloaded,
    })
}

fn key(identity: &WorkloadIdentity, uid: &str) -> String {
    format!("{}/{uid}", identity.issuer)
}
