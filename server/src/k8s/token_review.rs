//! TokenReview (`authentication.k8s.io/v1`): what is asked, and what counts as a yes.

use std::collections::BTreeSet;

use http::Request;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewStatus, UserInfo};
use keyfold_core::{
    identity::{NamedUid, WorkloadIdentity},
    name::cut,
    refusal::ReviewRefusal,
};
use kube::{Resource as _, api::PostParams};
use serde::Deserialize;
use serde_json::json;

/// From this length on a run of base64 is taken for a part of a token. Names and UIDs are shorter (RFC 1123 labels have at
/// most 63 characters), and what is left of a shorter part of a signature is of no use: the shortest has 86.
const RUN_MIN_CHARS: usize = 64;

/// What is kept of an API server's own words.
const WORDS_MAX_BYTES: usize = 300;

/// Whom a token belongs to by the local check, for the API server to agree. What is `None` is not compared.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// `system:serviceaccount:NAMESPACE:NAME`.
    pub subject: &'a str,
    /// The service account's UID.
    pub uid: Option<&'a str>,
    /// The pod that the token is bound to.
    pub pod: Option<&'a NamedUid>,
    /// The node that the pod runs on.
    pub node: Option<&'a NamedUid>,
}

impl<'a> From<&'a WorkloadIdentity> for Expected<'a> {
    fn from(identity: &'a WorkloadIdentity) -> Self {
        Self {
            subject: &identity.subject,
            uid: Some(&identity.service_account.uid),
            pod: Some(&identity.pod),
            node: identity.node.as_ref(),
        }
    }
}

/// The request. Always with audiences: without them the API server would check for its own.
///
/// # Errors
/// None in practice: all of it is plain JSON.
pub(super) fn request(
    token: &str,
    audiences: &BTreeSet<String>,
) -> Result<Request<Vec<u8>>, kube::core::request::Error> {
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": audiences},
    });
    kube::core::Request::new(TokenReview::url_path(&(), None))
        .create(&PostParams::default(), review.to_string().into_bytes())
}

/// The status of a whole reply; `None` when it is none. The token that comes back in `spec` is not kept.
pub(super) fn status(reply: &[u8]) -> Option<TokenReviewStatus> {
    #[derive(Deserialize)]
    struct Reply {
        kind: String,
        status: TokenReviewStatus,
    }
    let reply: Reply = serde_json::from_slice(reply).ok()?;
    (reply.kind == "TokenReview").then_some(reply.status)
}

/// Whether the API server vouches for the token, to us, as that of the expected one.
///
/// An authenticator that knows no audiences returns none of them and accepts a token for anybody: the field's own
/// documentation asks clients to check it (hashicorp/vault-plugin-auth-kubernetes#175 shows what else happens).
///
/// # Errors
/// What is missing, in this order: authentication, one of our audiences, the same identity.
pub(super) fn judge(
    status: &TokenReviewStatus,
    audiences: &BTreeSet<String>,
    expected: Expected<'_>,
) -> Result<(), ReviewRefusal> {
    let failed = status.error.as_ref().is_some_and(|error| !error.is_empty());
    if status.authenticated != Some(true) || failed {
        return Err(ReviewRefusal::NotAuthenticated);
    }
    if !status.audiences.iter().flatten().any(|audience| audiences.contains(audience)) {
        return Err(ReviewRefusal::Audience);
    }
    match &status.user {
        Some(user) if agrees(user, expected) => Ok(()),
        _ => Err(ReviewRefusal::OtherIdentity),
    }
}

/// The API server's own words, for who runs the cluster, without what may be the token or a part of it.
pub(super) fn words(status: &TokenReviewStatus) -> String {
    let base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '+' | '/' | '=');
    let said = status.error.as_deref().unwrap_or_default();
    let mut words = String::new();
    for piece in said.split_inclusive(|c| !base64(c)) {
        let run = piece.trim_end_matches(|c| !base64(c));
        words += if run.len() < RUN_MIN_CHARS { run } else { "TOKEN" };
        words += &piece[run.len()..];
    }
    cut(&words, WORDS_MAX_BYTES)
}

/// Name and UID must be there. Pod and node, which API servers before 1.32 do not tell in full, must not differ.
fn agrees(user: &UserInfo, expected: Expected<'_>) -> bool {
    let extra = |key: &str, wanted: Option<&str>| {
        let found =
            user.extra.as_ref().and_then(|extra| extra.get(&format!("authentication.kubernetes.io/{key}")));
        match (found, wanted) {
            (Some(found), Some(wanted)) => found.iter().all(|value| value == wanted) && !found.is_empty(),
            _ => true,
        }
    };
    let object = |kind: &str, wanted: Option<&NamedUid>| {
        extra(&format!("{kind}-name"), wanted.map(|object| object.name.as_str()))
            && extra(&format!("{kind}-uid"), wanted.map(|object| object.uid.as_str()))
    };
    user.username.as_deref() == Some(expected.subject)
        && expected.uid.is_none_or(|uid| user.uid.as_deref() == Some(uid))
        && object("pod", expected.pod)
        && object("node", expected.node)
}

#[cfg(test)]
mod tests;
