//! Who calls: the only place that turns tokens into callers.
//!
//! Invariant: a [`PodCaller`] or an [`OperatorCaller`] exists only if its token was verified here; neither can be
//! built elsewhere.

mod discovery;
mod issuer_keys;
pub mod jwks;
mod key_registry;
mod operator;
mod ring_provider;
#[cfg(test)]
mod test_issuer;
mod token_cache;

use std::{path::PathBuf, sync::Arc, time::Duration};

use keyfold_core::{
    clock::Clock,
    identity::{OperatorIdentity, WorkloadIdentity},
    name::ObjectName,
    object::{IssuerSpec, ServiceAccountRef},
    refusal::{Refusal, TokenOwner},
    token::{TokenRefusal, UnverifiedToken, check_claims},
};

use self::{
    issuer_keys::KeyReader,
    key_registry::KeyRegistry,
    token_cache::{TokenCache, TokenDigest, Verified},
};
pub use self::{
    operator::{AdminToken, generate_admin_token},
    ring_provider::{ForeignProvider, install},
};

/// How long an issuer may take for both its documents: a caller waits for the first fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Tokens of pods and drivers that are remembered: some 3,500. One that is not costs a signature check.
const WORKLOAD_TOKENS_BYTES: usize = 4 * 1024 * 1024;
/// Those of operators, with all their claims: some 2,000.
const OPERATOR_TOKENS_BYTES: usize = 2 * 1024 * 1024;

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

/// A CSI driver whose token was verified.
///
/// ```compile_fail,E0451
/// fn forged(identity: std::sync::Arc<keyfold_core::identity::WorkloadIdentity>) -> keyfold_server::authn::DriverCaller {
///     keyfold_server::authn::DriverCaller { identity }
/// }
/// ```
#[derive(Debug)]
pub struct DriverCaller {
    identity: Arc<WorkloadIdentity>,
}

impl DriverCaller {
    /// The driver, itself a pod.
    pub fn identity(&self) -> &Arc<WorkloadIdentity> {
        &self.identity
    }
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
    identity: Arc<WorkloadIdentity>,
    driver: Arc<WorkloadIdentity>,
}

impl PodCaller {
    /// The pod.
    pub fn identity(&self) -> &Arc<WorkloadIdentity> {
        &self.identity
    }

    /// The CSI driver, itself a pod.
    pub fn driver(&self) -> &Arc<WorkloadIdentity> {
        &self.driver
    }
}

/// An operator whose token was verified.
///
/// ```compile_fail,E0451
/// use keyfold_server::authn::{OperatorCaller, OperatorKind};
/// let forged = OperatorCaller { name: "admin".into(), kind: OperatorKind::InitialAdministrator };
/// ```
#[derive(Debug, Clone)]
pub struct OperatorCaller {
    name: String,
    kind: OperatorKind,
}

/// What an operator presented.
#[derive(Debug, Clone)]
pub enum OperatorKind {
    /// A live administrator's token of `keyfold init`.
    InitialAdministrator,
    /// A token of an issuer.
    Identity(Arc<OperatorIdentity>),
}

impl OperatorCaller {
    /// The name of the administrator's token, or `ISSUER/SUB`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What was presented.
    pub fn kind(&self) -> &OperatorKind {
        &self.kind
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
        pod: Option<Arc<WorkloadIdentity>>,
        /// The driver, likewise.
        driver: Option<Arc<WorkloadIdentity>>,
    },
    /// The issuer's keys were never read, or the token names one that is not at hand while the issuer cannot be asked, so
    /// nothing can be said about the token. Trying again may help.
    #[error(
        "the keys of issuer {issuer} cannot be read now: try again, and see the server's log for the reason"
    )]
    KeysUnavailable {
        /// The issuer object.
        issuer: ObjectName,
    },
}

impl AuthnError {
    fn presented_by(self, presenter: &Arc<WorkloadIdentity>) -> Self {
        match self {
            Self::Refused { refusal, pod, .. } => {
                Self::Refused { refusal, pod, driver: Some(Arc::clone(presenter)) }
            }
            Self::KeysUnavailable { issuer } => Self::KeysUnavailable { issuer },
        }
    }

    fn refused(refusal: Refusal) -> Self {
        Self::Refused { refusal, pod: None, driver: None }
    }

    fn token(whose: TokenOwner, reason: TokenRefusal) -> Self {
        Self::refused(Refusal::Token { whose, reason })
    }
}

/// Why an issuer's keys could not be read: for the log, never for a caller.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct KeysError(String);

impl KeysError {
    fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// Verifies the tokens of pods, drivers and operators. Holds the issuers' public keys, and what was verified lately.
pub struct Authenticator {
    keys: KeyRegistry,
    workloads: TokenCache<WorkloadIdentity>,
    operators: TokenCache<OperatorIdentity>,
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
        Ok(Self {
            keys: KeyRegistry::new(KeyReader { clock, jwks_dir, timeout }),
            workloads: TokenCache::new(WORKLOAD_TOKENS_BYTES, |claims| claims.workload()),
            operators: TokenCache::new(OPERATOR_TOKENS_BYTES, |claims| claims.operator()),
        })
    }

    /// Begins to read the keys that are old or were never read, in the background, and returns at once. `issuers` are
    /// all that are configured now. Cheap when nothing is due, so best called every second: it is the only way by which
    /// a key that an issuer withdrew stops counting.
    pub fn refresh_keys(&self, issuers: &[IssuerRecord]) {
        self.keys.refresh(issuers);
    }

    /// The CSI driver that presents this token. `issuers` are all that are configured now.
    ///
    /// # Errors
    /// When the token is refused, or is no driver's.
    pub async fn driver_caller(
        &self,
        token: &str,
        issuers: &[IssuerRecord],
    ) -> Result<DriverCaller, AuthnError> {
        let (identity, issuer) = self.verified(&self.workloads, token, TokenOwner::Driver, issuers).await?;
        if is_driver(&identity.subject, issuer) {
            return Ok(DriverCaller { identity });
        }
        let refusal =
            Refusal::NotADriver { subject: identity.subject.clone(), issuer: identity.issuer.clone() };
        Err(AuthnError::refused(refusal).presented_by(&identity))
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
        let driver = self.driver_caller(driver_token, issuers).await?.identity;
        let (identity, issuer) = self
            .verified(&self.workloads, pod_token, TokenOwner::Pod, issuers)
            .await
            .map_err(|error| error.presented_by(&driver))?;
        let refusal = if is_driver(&identity.subject, issuer) {
            Refusal::DriverAsPod { subject: identity.subject.clone() }
        } else if identity.issuer != driver.issuer {
            Refusal::IssuerMismatch
        } else {
            return Ok(PodCaller { identity, driver });
        };
        Err(AuthnError::Refused { refusal, pod: Some(identity), driver: None }.presented_by(&driver))
    }

    /// The operator who presents this token: one of `admin_tokens`, or a JWT of one of `issuers`.
    ///
    /// # Errors
    /// When the token is refused. A missing one, one that is neither, and an administrator's that is unknown or revoked
    /// get one answer.
    pub async fn operator(
        &self,
        token: Option<&str>,
        admin_tokens: &[AdminToken],
        issuers: &[IssuerRecord],
    ) -> Result<OperatorCaller, AuthnError> {
        match token {
            Some(token) if !operator::is_admin_token(token) => self.operator_by_jwt(token, issuers).await,
            _ => operator::administrator(token, admin_tokens).map_err(AuthnError::refused),
        }
    }

    async fn operator_by_jwt(
        &self,
        token: &str,
        issuers: &[IssuerRecord],
    ) -> Result<OperatorCaller, AuthnError> {
        let verified = self.verified(&self.operators, token, TokenOwner::Operator, issuers).await;
        let (identity, issuer) = verified.map_err(one_answer_if_no_jwt)?;
        if is_driver(&identity.subject, issuer) {
            let subject = identity.subject.clone();
            return Err(AuthnError::refused(Refusal::DriverAsOperator { subject }));
        }
        Ok(OperatorCaller { name: identity.name(), kind: OperatorKind::Identity(identity) })
    }

    /// Who a token proves, and by which issuer object. Counts how that was found out.
    async fn verified<'a, T>(
        &self,
        cache: &TokenCache<T>,
        token: &str,
        whose: TokenOwner,
        issuers: &'a [IssuerRecord],
    ) -> Result<(Arc<T>, &'a IssuerRecord), AuthnError> {
        let digest = TokenDigest::of(token);
        if let Some(found) = self.verified_before(cache, &digest, issuers) {
            count("cached");
            return Ok(found);
        }
        let found = self.verified_now(cache, token, whose, issuers).await;
        match &found {
            Ok(_) => count("verified"),
            Err(AuthnError::Refused { .. }) => count("refused"),
            Err(AuthnError::KeysUnavailable { .. }) => {}
        }
        let (verified, issuer) = found?;
        let identity = Arc::clone(&verified.identity);
        cache.keep(digest, verified);
        Ok((identity, issuer))
    }

    /// What was verified before counts while the issuer object is the same, its issuer publishes the same key, and the
    /// time is right. In all other cases the token is verified as if it came for the first time, which finds the reason.
    ///
    /// Where several issuer objects share a URL, the one that accepted first goes on to do so.
    fn verified_before<'a, T>(
        &self,
        cache: &TokenCache<T>,
        digest: &TokenDigest,
        issuers: &'a [IssuerRecord],
    ) -> Option<(Arc<T>, &'a IssuerRecord)> {
        let found = cache.find(digest)?;
        let issuer = issuers.iter().find(|issuer| **issuer == found.issuer.record)?;
        // Keys that were dropped meanwhile are no longer renewed.
        let current = Arc::ptr_eq(&self.keys.of(issuer), &found.issuer) && found.issuer.publishes(&found.key);
        let now = self.keys.clock().now();
        (current && found.validity.check(issuer.spec.leeway, now).is_ok())
            .then(|| (Arc::clone(&found.identity), issuer))
    }

    /// Several objects may share a URL: the first that accepts wins, and an issuer whose keys are away outweighs
    /// another's refusal, for it might accept.
    async fn verified_now<'a, T>(
        &self,
        cache: &TokenCache<T>,
        token: &str,
        whose: TokenOwner,
        issuers: &'a [IssuerRecord],
    ) -> Result<(Verified<T>, &'a IssuerRecord), AuthnError> {
        let refused = |reason| AuthnError::token(whose, reason);
        let token = UnverifiedToken::parse(token).map_err(refused)?;
        let url = token.issuer_url().map_err(refused)?;
        let mut failed = refused(TokenRefusal::IssuerUnknown { url: url.to_owned() });
        for issuer in issuers.iter().filter(|issuer| issuer.spec.url == url) {
            match self.verified_by(cache, &token, whose, issuer).await {
                Ok(verified) => return Ok((verified, issuer)),
                Err(_) if matches!(failed, AuthnError::KeysUnavailable { .. }) => {}
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn verified_by<T>(
        &self,
        cache: &TokenCache<T>,
        token: &UnverifiedToken<'_>,
        whose: TokenOwner,
        issuer: &IssuerRecord,
    ) -> Result<Verified<T>, AuthnError> {
        let refused = |reason| AuthnError::token(whose, reason);
        let algorithm = token.algorithm_allowed_by(&issuer.spec).map_err(refused)?;
        let unavailable = || AuthnError::KeysUnavailable { issuer: issuer.name.clone() };
        let issuer_keys = self.keys.of(issuer);
        let keys = issuer_keys.having(token.key_id()).await.ok_or_else(unavailable)?;
        let key = keys.key_that_signed(token, algorithm).map_err(refused)?;
        let now = self.keys.clock().now();
        let claims = check_claims(token, &issuer.name, &issuer.spec, now).map_err(refused)?;
        let identity = (cache.identity_of)(&claims).map_err(refused)?;
        Ok(Verified {
            identity: Arc::new(identity),
            validity: claims.validity(),
            issuer: issuer_keys,
            key: Arc::clone(key),
            token_bytes: token.signing_input().len() + token.signature().len(),
        })
    }
}

/// What is no JWT at all gets the answer that a wrong administrator's token gets.
fn one_answer_if_no_jwt(error: AuthnError) -> AuthnError {
    match error {
        AuthnError::Refused {
            refusal: Refusal::Token { reason: TokenRefusal::Malformed(_), .. }, ..
        } => AuthnError::refused(Refusal::OperatorToken),
        error => error,
    }
}

fn is_driver(subject: &str, issuer: &IssuerRecord) -> bool {
    let own = |driver: &ServiceAccountRef| {
        subject == format!("system:serviceaccount:{}:{}", driver.namespace, driver.service_account)
    };
    issuer.spec.drivers.iter().any(own)
}

fn count(result: &'static str) {
    metrics::counter!("keyfold_token_checks_total", "result" => result).increment(1);
}

#[cfg(test)]
mod tests;
