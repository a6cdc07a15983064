//! Who calls: the only place that turns tokens into callers.
//!
//! Invariant: a [`PodCaller`] or an [`OperatorCaller`] exists only if its token was verified here; neither can be
//! built elsewhere.

mod discovery;
mod issuer_keys;
mod jwks;
mod operator;
mod ring_provider;
#[cfg(test)]
mod test_issuer;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use keyfold_core::{
    clock::Clock,
    identity::WorkloadIdentity,
    name::ObjectName,
    object::{IssuerSpec, ServiceAccountRef},
    refusal::{Refusal, TokenOwner},
    token::{TokenRefusal, UnverifiedToken, check_claims},
};

use self::issuer_keys::{IssuerKeys, KeyReader};
pub use self::{
    operator::{AdminToken, generate_admin_token, operator},
    ring_provider::{ForeignProvider, install},
};

/// How long an issuer may take for both its documents: a caller waits for the first fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// An issuer object as the store holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerRecord {
    /// The object's name.
    pub name: ObjectName,
    /// Counts the changes of its spec.
    pub generation: u64,
    /// What is trusted.
    pub spec: IssuerSpec,
}

/// A pod, and the CSI driver that presented its token. Both tokens were verified, against one issuer.
///
/// ```compile_fail,E0451
/// fn forged(identity: keyfold_core::identity::WorkloadIdentity) -> keyfold_server::authn::PodCaller {
///     keyfold_server::authn::PodCaller { driver: identity.clone(), identity }
/// }
/// ```
#[derive(Debug)]
pub struct PodCaller {
    identity: WorkloadIdentity,
    driver: WorkloadIdentity,
}

impl PodCaller {
    /// The pod.
    pub fn identity(&self) -> &WorkloadIdentity {
        &self.identity
    }

    /// The CSI driver, itself a pod.
    pub fn driver(&self) -> &WorkloadIdentity {
        &self.driver
    }
}

/// An operator whose token is live.
///
/// ```compile_fail,E0451
/// let forged = keyfold_server::authn::OperatorCaller { name: "admin".into() };
/// ```
#[derive(Debug)]
pub struct OperatorCaller {
    name: String,
}

impl OperatorCaller {
    /// The name of the token that was presented.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Why there is no caller.
#[derive(Debug, thiserror::Error)]
pub enum AuthnError {
    /// A token, or the pair of them, was refused.
    #[error("{refusal}")]
    Refused {
        /// Why.
        refusal: Refusal,
        /// The pod, if its token was verified before the refusal: for the audit entry.
        pod: Option<Box<WorkloadIdentity>>,
        /// The driver, likewise.
        driver: Option<Box<WorkloadIdentity>>,
    },
    /// The issuer's keys were never read, so nothing can be said about the token. Trying again may help.
    #[error(
        "the keys of issuer {issuer} cannot be read now: try again, and see the server's log for the reason"
    )]
    KeysUnavailable {
        /// The issuer object.
        issuer: ObjectName,
    },
}

impl AuthnError {
    fn presented_by(self, presenter: &WorkloadIdentity) -> Self {
        match self {
            Self::Refused { refusal, pod, .. } => {
                Self::Refused { refusal, pod, driver: Some(Box::new(presenter.clone())) }
            }
            Self::KeysUnavailable { issuer } => Self::KeysUnavailable { issuer },
        }
    }

    fn token(whose: TokenOwner, reason: TokenRefusal) -> Self {
        Self::Refused { refusal: Refusal::Token { whose, reason }, pod: None, driver: None }
    }
}

/// Why an issuer's keys could not be read: for the log, never for a caller.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct KeysError(String);

impl KeysError {
    fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// Verifies pods' and drivers' tokens. Holds the issuers' public keys.
pub struct Authenticator {
    reader: Arc<KeyReader>,
    keys: Mutex<HashMap<ObjectName, Arc<IssuerKeys>>>,
}

impl Authenticator {
    /// Reads no keys yet. `jwks_dir` holds the files of issuers with `keys.file`.
    ///
    /// # Errors
    /// When another backend of `jsonwebtoken` is installed in this process.
    pub fn new(clock: Arc<dyn Clock>, jwks_dir: Option<PathBuf>) -> Result<Self, ForeignProvider> {
        Self::with_timeout(clock, jwks_dir, FETCH_TIMEOUT)
    }

    fn with_timeout(
        clock: Arc<dyn Clock>,
        jwks_dir: Option<PathBuf>,
        timeout: Duration,
    ) -> Result<Self, ForeignProvider> {
        install()?;
        let reader = Arc::new(KeyReader { clock, jwks_dir, timeout });
        Ok(Self { reader, keys: Mutex::default() })
    }

    /// The pod whose token a CSI driver presents with its own. `issuers` are all that are configured now.
    ///
    /// # Errors
    /// When either token is refused, the driver is none, or the two do not belong together.
    pub async fn pod_caller(
        &self,
        pod_token: &str,
        driver_token: &str,
        issuers: &[IssuerRecord],
    ) -> Result<PodCaller, AuthnError> {
        let (driver, driver_issuer) = self.verified(driver_token, TokenOwner::Driver, issuers).await?;
        if !is_driver(&driver, driver_issuer) {
            let refusal =
                Refusal::NotADriver { subject: driver.subject.clone(), issuer: driver.issuer.clone() };
            return Err(AuthnError::Refused { refusal, pod: None, driver: Some(Box::new(driver)) });
        }
        let (identity, issuer) = self
            .verified(pod_token, TokenOwner::Pod, issuers)
            .await
            .map_err(|error| error.presented_by(&driver))?;
        let refusal = if is_driver(&identity, issuer) {
            Refusal::DriverAsPod { subject: identity.subject.clone() }
        } else if identity.issuer != driver.issuer {
            Refusal::IssuerMismatch
        } else {
            return Ok(PodCaller { identity, driver });
        };
        Err(AuthnError::Refused { refusal, pod: Some(Box::new(identity)), driver: Some(Box::new(driver)) })
    }

    /// Who a token proves, and by which issuer object. Several objects may share a URL: the first that accepts wins,
    /// and an issuer whose keys are away outweighs another's refusal, for it might accept.
    async fn verified<'a>(
        &self,
        token: &str,
        whose: TokenOwner,
        issuers: &'a [IssuerRecord],
    ) -> Result<(WorkloadIdentity, &'a IssuerRecord), AuthnError> {
        let refused = |reason| AuthnError::token(whose, reason);
        let token = UnverifiedToken::parse(token).map_err(refused)?;
        let url = token.issuer_url().map_err(refused)?;
        let mut failed = refused(TokenRefusal::IssuerUnknown { url: url.to_owned() });
        for issuer in issuers.iter().filter(|issuer| issuer.spec.url == url) {
            match self.verified_by(&token, whose, issuer, issuers).await {
                Ok(identity) => return Ok((identity, issuer)),
                Err(_) if matches!(failed, AuthnError::KeysUnavailable { .. }) => {}
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn verified_by(
        &self,
        token: &UnverifiedToken<'_>,
        whose: TokenOwner,
        issuer: &IssuerRecord,
        issuers: &[IssuerRecord],
    ) -> Result<WorkloadIdentity, AuthnError> {
        let refused = |reason| AuthnError::token(whose, reason);
        let algorithm = token.algorithm_allowed_by(&issuer.spec).map_err(refused)?;
        let unavailable = || AuthnError::KeysUnavailable { issuer: issuer.name.clone() };
        let keys = self.keys_of(issuer, issuers).having(token.key_id()).await.ok_or_else(unavailable)?;
        keys.verify(token, algorithm).map_err(refused)?;
        check_claims(token, &issuer.name, &issuer.spec, self.reader.clock.now()).map_err(refused)
    }

    /// Keys must not outlive the issuer object that they were read for, nor a change of it: all others are dropped
    /// first, under the same lock, so that a change seen by a concurrent call cannot slip in between.
    fn keys_of(&self, issuer: &IssuerRecord, issuers: &[IssuerRecord]) -> Arc<IssuerKeys> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.retain(|_, keys| issuers.contains(&keys.record));
        let new = || Arc::new(IssuerKeys::new(issuer.clone(), Arc::clone(&self.reader)));
        Arc::clone(keys.entry(issuer.name.clone()).or_insert_with(new))
    }
}

fn is_driver(identity: &WorkloadIdentity, issuer: &IssuerRecord) -> bool {
    let own = |driver: &ServiceAccountRef| {
        driver.namespace == identity.namespace && driver.service_account == identity.service_account.name
    };
    issuer.spec.drivers.iter().any(own)
}

#[cfg(test)]
mod tests;
