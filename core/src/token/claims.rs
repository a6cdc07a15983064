//! The claims of a Kubernetes token, each checked for its own reason.

use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::{TokenRefusal, UnverifiedToken};
use crate::{
    identity::{NamedUid, WorkloadIdentity},
    name::ObjectName,
    object::IssuerSpec,
};

type Claims = Map<String, Value>;

/// Whose token this is. Call it once the signature has been verified with a key of this issuer.
///
/// # Errors
/// The first check that fails, as its own [`TokenRefusal`].
pub fn check_claims(
    token: &UnverifiedToken<'_>,
    issuer: &ObjectName,
    spec: &IssuerSpec,
    now: OffsetDateTime,
) -> Result<WorkloadIdentity, TokenRefusal> {
    let claims = &token.claims;
    check_issuer(claims, spec)?;
    check_audience(claims, spec)?;
    let expires_at = check_times(claims, spec, now)?;
    let kubernetes = object(claims, "kubernetes.io", "kubernetes.io")?
        .ok_or(TokenRefusal::ClaimMissing { claim: "kubernetes.io" })?;
    let namespace = required_text(kubernetes, "namespace", "kubernetes.io.namespace")?;
    let service_account = named_uid(kubernetes, &SERVICE_ACCOUNT)?
        .ok_or(TokenRefusal::ClaimMissing { claim: SERVICE_ACCOUNT.claim })?;
    let pod = named_uid(kubernetes, &POD)?.ok_or(TokenRefusal::NotBoundToPod)?;
    let subject = required_text(claims, "sub", "sub")?;
    if subject != format!("system:serviceaccount:{namespace}:{}", service_account.name) {
        return Err(TokenRefusal::SubjectMismatch);
    }
    Ok(WorkloadIdentity {
        issuer: issuer.clone(),
        subject: subject.to_owned(),
        namespace: namespace.to_owned(),
        service_account,
        pod,
        node: named_uid(kubernetes, &NODE)?,
        credential_id: text(claims, "jti", "jti")?.map(str::to_owned),
        expires_at,
    })
}

fn check_issuer(claims: &Claims, spec: &IssuerSpec) -> Result<(), TokenRefusal> {
    match required_text(claims, "iss", "iss")? {
        url if url == spec.url => Ok(()),
        url => Err(TokenRefusal::IssuerUnknown { url: url.to_owned() }),
    }
}

/// RFC 7519, section 4.1.3: one audience as text, or several as an array.
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
    if found.iter().any(|&audience| spec.audiences.contains(audience)) {
        return Ok(());
    }
    let expected = spec.audiences.iter().map(String::as_str).collect::<Vec<_>>();
    Err(TokenRefusal::AudienceOther { found: found.join(", "), expected: expected.join(" or ") })
}

/// When the token ends, if now is within its time and that time is short enough.
fn check_times(
    claims: &Claims,
    spec: &IssuerSpec,
    now: OffsetDateTime,
) -> Result<OffsetDateTime, TokenRefusal> {
    let required = |claim| moment(claims, claim)?.ok_or(TokenRefusal::ClaimMissing { claim });
    let expires_at = required("exp")?;
    let issued_at = required("iat")?;
    let not_before = moment(claims, "nbf")?;
    // The clock moves by the leeway, not the claims, which may lie at the end of what a date can hold.
    let (slow, fast) = (now - spec.leeway, now + spec.leeway);
    if slow >= expires_at {
        return Err(TokenRefusal::Expired(expires_at));
    }
    if let Some(not_before) = not_before.filter(|&at| fast < at) {
        return Err(TokenRefusal::NotYetValid(not_before));
    }
    if fast < issued_at {
        return Err(TokenRefusal::IssuedInFuture(issued_at));
    }
    let lifetime = expires_at - issued_at;
    if lifetime > spec.max_token_lifetime {
        return Err(TokenRefusal::LifetimeTooLong {
            lifetime_secs: lifetime.whole_seconds(),
            max_secs: spec.max_token_lifetime.as_secs(),
        });
    }
    Ok(expires_at)
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
