//! The claims of a token, each checked for its own reason: what every token needs, then what makes a workload or an
//! operator of it.

use std::time::Duration;

use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::{TokenRefusal, UnverifiedToken};
use crate::{
    identity::{NamedUid, OperatorIdentity, WorkloadIdentity},
    name::ObjectName,
    object::{IssuerKind, IssuerSpec},
};

type Claims = Map<String, Value>;

/// The longest `sub` of an OpenID provider: OpenID Connect Core 1.0, section 2.
const OIDC_SUBJECT_MAX_BYTES: usize = 255;
/// That of a ServiceAccount: the prefix, a namespace of 63 bytes, a colon and a name of 253.
const SERVICE_ACCOUNT_SUBJECT_MAX_BYTES: usize = 22 + 63 + 1 + 253;

/// Claims that hold for their issuer, whoever they stand for.
pub struct CheckedClaims<'a> {
    issuer: &'a ObjectName,
    kind: IssuerKind,
    subject: &'a str,
    credential_id: Option<&'a str>,
    validity: Validity,
    claims: &'a Claims,
}

/// Checks what every token needs: issuer, audience, times, subject. Call it once the signature has been verified with
/// a key of this issuer.
///
/// # Errors
/// The first check that fails, as its own [`TokenRefusal`].
pub fn check_claims<'a>(
    token: &'a UnverifiedToken<'_>,
    issuer: &'a ObjectName,
    spec: &IssuerSpec,
    now: OffsetDateTime,
) -> Result<CheckedClaims<'a>, TokenRefusal> {
    let claims = &token.claims;
    check_issuer(claims, spec)?;
    check_audience(claims, spec)?;
    let validity = Validity::read(claims)?;
    validity.check(spec.leeway, now)?;
    validity.check_lifetime(spec.max_token_lifetime)?;
    let subject = subject(claims, spec.kind)?;
    let credential_id = text(claims, "jti", "jti")?;
    Ok(CheckedClaims { issuer, kind: spec.kind, subject, credential_id, validity, claims })
}

impl CheckedClaims<'_> {
    /// When the token may be used, to be checked again at each later use.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// The pod that the token is bound to.
    ///
    /// # Errors
    /// When it is not a pod's, or its subject does not agree with what it says of the pod.
    pub fn workload(&self) -> Result<WorkloadIdentity, TokenRefusal> {
        if self.kind != IssuerKind::Kubernetes {
            return Err(TokenRefusal::NotOfACluster);
        }
        let (kubernetes, namespace, service_account) = self.service_account()?;
        Ok(WorkloadIdentity {
            issuer: self.issuer.clone(),
            subject: self.subject.to_owned(),
            namespace: namespace.to_owned(),
            service_account,
            pod: named_uid(kubernetes, &POD)?.ok_or(TokenRefusal::NotBoundToPod)?,
            node: named_uid(kubernetes, &NODE)?,
            credential_id: self.credential_id.map(str::to_owned),
            expires_at: self.validity.expires_at,
        })
    }

    /// The operator. A ServiceAccount's token need not be bound to a pod: automation outside of the cluster has one by
    /// TokenRequest.
    ///
    /// # Errors
    /// When a ServiceAccount's subject does not agree with its namespace and name.
    pub fn operator(&self) -> Result<OperatorIdentity, TokenRefusal> {
        if self.kind == IssuerKind::Kubernetes {
            self.service_account()?;
        }
        Ok(OperatorIdentity {
            issuer: self.issuer.clone(),
            subject: self.subject.to_owned(),
            claims: self.claims.clone(),
            credential_id: self.credential_id.map(str::to_owned),
            expires_at: self.validity.expires_at,
        })
    }

    /// The object `kubernetes.io`, its namespace and its service account, once `sub` agrees with them.
    fn service_account(&self) -> Result<(&Claims, &str, NamedUid), TokenRefusal> {
        let kubernetes = object(self.claims, "kubernetes.io", "kubernetes.io")?
            .ok_or(TokenRefusal::ClaimMissing { claim: "kubernetes.io" })?;
        let namespace = required_text(kubernetes, "namespace", "kubernetes.io.namespace")?;
        let service_account = named_uid(kubernetes, &SERVICE_ACCOUNT)?
            .ok_or(TokenRefusal::ClaimMissing { claim: SERVICE_ACCOUNT.claim })?;
        if self.subject != format!("system:serviceaccount:{namespace}:{}", service_account.name) {
            return Err(TokenRefusal::SubjectMismatch);
        }
        Ok((kubernetes, namespace, service_account))
    }
}

fn check_issuer(claims: &Claims, spec: &IssuerSpec) -> Result<(), TokenRefusal> {
    match required_text(claims, "iss", "iss")? {
        url if url == spec.url => Ok(()),
        url => Err(TokenRefusal::IssuerUnknown { url: url.to_owned() }),
    }
}

/// RFC 7519, section 4.1.3: one audience as text, or several as an array.
///
/// A token for several audiences can be presented here by each of them. Of an API server that is as asked for in
/// TokenRequest, and a pod's token is of no use without the driver's. Of an OpenID provider every audience must be
/// trusted (OpenID Connect Core 1.0, section 3.1.3.7, item 3), that is be listed in the issuer object. Then `azp`, which
/// tells the one of them that asked for the token, says nothing more; a role may still bind it as a claim.
fn check_audience(claims: &Claims, spec: &IssuerSpec) -> Result<(), TokenRefusal> {
    let malformed = TokenRefusal::ClaimMalformed { claim: "aud" };
    let found = match claims.get("aud") {
        None => return Err(TokenRefusal::ClaimMissing { claim: "aud" }),
        Some(Value::String(one)) => vec![one.as_str()],
        Some(Value::Array(items)) => {
            items.iter().map(Value::as_str).collect::<Option<Vec<_>>>().ok_or(malformed.clone())?
        }
        Some(_) => return Err(malformed),
    };
    if found.is_empty() || found.contains(&"") {
        return Err(malformed);
    }
    let (ours, others): (Vec<_>, Vec<_>) =
        found.iter().copied().partition(|&audience| spec.audiences.contains(audience));
    if ours.is_empty() {
        let expected = spec.audiences.iter().map(String::as_str).collect::<Vec<_>>();
        return Err(TokenRefusal::AudienceOther { found: found.join(", "), expected: expected.join(" or ") });
    }
    if spec.kind == IssuerKind::Oidc && !others.is_empty() {
        return Err(TokenRefusal::AudienceShared { others: others.join(", ") });
    }
    Ok(())
}

/// It becomes an operator's name in entries and on terminals, so it has printable ASCII only, and no white space at its
/// ends, where two subjects would look the same.
fn subject(claims: &Claims, kind: IssuerKind) -> Result<&str, TokenRefusal> {
    let subject = required_text(claims, "sub", "sub")?;
    let max_bytes = match kind {
        IssuerKind::Kubernetes => SERVICE_ACCOUNT_SUBJECT_MAX_BYTES,
        IssuerKind::Oidc => OIDC_SUBJECT_MAX_BYTES,
    };
    let printable =
        subject.bytes().all(|byte| matches!(byte, b' '..=b'~')) && subject == subject.trim_ascii();
    if subject.len() > max_bytes || !printable {
        return Err(TokenRefusal::ClaimMalformed { claim: "sub" });
    }
    Ok(subject)
}

/// When a token may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    issued_at: OffsetDateTime,
    not_before: Option<OffsetDateTime>,
    expires_at: OffsetDateTime,
}

impl Validity {
    fn read(claims: &Claims) -> Result<Self, TokenRefusal> {
        let required = |claim| moment(claims, claim)?.ok_or(TokenRefusal::ClaimMissing { claim });
        Ok(Self {
            expires_at: required("exp")?,
            issued_at: required("iat")?,
            not_before: moment(claims, "nbf")?,
        })
    }

    /// Whether `now` is within it, clocks being `leeway` apart at most.
    ///
    /// # Errors
    /// `Expired`, `NotYetValid` or `IssuedInFuture`.
    pub fn check(&self, leeway: Duration, now: OffsetDateTime) -> Result<(), TokenRefusal> {
        // The clock moves by the leeway, not the claims, which may lie at the end of what a date can hold.
        let (slow, fast) = (now - leeway, now + leeway);
        if slow >= self.expires_at {
            return Err(TokenRefusal::Expired(self.expires_at));
        }
        if let Some(not_before) = self.not_before.filter(|&at| fast < at) {
            return Err(TokenRefusal::NotYetValid(not_before));
        }
        if fast < self.issued_at {
            return Err(TokenRefusal::IssuedInFuture(self.issued_at));
        }
        Ok(())
    }

    fn check_lifetime(&self, max: Duration) -> Result<(), TokenRefusal> {
        let lifetime = self.expires_at - self.issued_at;
        if lifetime > max {
            return Err(TokenRefusal::LifetimeTooLong {
                lifetime_secs: lifetime.whole_seconds(),
                max_secs: max.as_secs(),
            });
        }
        Ok(())
    }
}

/// RFC 7519 allows fractions; Kubernetes writes whole seconds. A reader that takes text or floats can be made to
/// skip a check, so both are refused.
fn moment(claims: &Claims, claim: &'static str) -> Result<Option<OffsetDateTime>, TokenRefusal> {
    let Some(value) = claims.get(claim) else { return Ok(None) };
    value
        .as_i64()
        .filter(|&secs| secs >= 0)
        .and_then(|secs| OffsetDateTime::from_unix_timestamp(secs).ok())
        .map(Some)
        .ok_or(TokenRefusal::TimeMalformed { claim })
}

/// The claim names of a Kubernetes object under `kubernetes.io`, for look-up and for messages.
struct ObjectClaim {
    key: &'static str,
    claim: &'static str,
    name: &'static str,
    uid: &'static str,
}

macro_rules! object_claim {
    ($key:literal) => {
        ObjectClaim {
            key: $key,
            claim: concat!("kubernetes.io.", $key),
            name: concat!("kubernetes.io.", $key, ".name"),
            uid: concat!("kubernetes.io.", $key, ".uid"),
        }
    };
}

const SERVICE_ACCOUNT: ObjectClaim = object_claim!("serviceaccount");
const POD: ObjectClaim = object_claim!("pod");
const NODE: ObjectClaim = object_claim!("node");

/// A node without a UID (the API server writes that when it finds no such node) is refused rather than taken as
/// no node: it must not weaken the node binding.
fn named_uid(kubernetes: &Claims, claim: &ObjectClaim) -> Result<Option<NamedUid>, TokenRefusal> {
    let Some(found) = object(kubernetes, claim.key, claim.claim)? else { return Ok(None) };
    let name = required_text(found, "name", claim.name)?.to_owned();
    let uid = required_text(found, "uid", claim.uid)?.to_owned();
    Ok(Some(NamedUid { name, uid }))
}

fn object<'a>(
    within: &'a Claims,
    key: &str,
    claim: &'static str,
) -> Result<Option<&'a Claims>, TokenRefusal> {
    match within.get(key) {
        None => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(_) => Err(TokenRefusal::ClaimMalformed { claim }),
    }
}

/// A text that must be there, and not empty. `claim` is its full name for the message.
pub(super) fn required_text<'a>(
    within: &'a Claims,
    key: &str,
    claim: &'static str,
) -> Result<&'a str, TokenRefusal> {
    text(within, key, claim)?.ok_or(TokenRefusal::ClaimMissing { claim })
}

fn text<'a>(within: &'a Claims, key: &str, claim: &'static str) -> Result<Option<&'a str>, TokenRefusal> {
    match within.get(key) {
        None => Ok(None),
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
        Some(_) => Err(TokenRefusal::ClaimMalformed { claim }),
    }
}
