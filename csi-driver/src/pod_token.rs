//! The pod's token, as kubelet sends it along with a publish.

use std::collections::HashMap;

use keyfold_proto::csi::v1::NodePublishVolumeRequest;
use serde::{Deserialize, de::IgnoredAny};
use zeroize::{Zeroize as _, Zeroizing};

use crate::config::TokenSource;

/// Key of the tokens, in the request's secrets or in its volume context (KEP-2047, KEP-5538).
const TOKENS_KEY: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// Why a request holds no token to use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PodTokenError {
    /// Not where the configuration looks for it.
    #[error(
        "the request holds no pod token: the CSIDriver object csi.keyfold.dev must have tokenRequests with audience \
         {audience:?} and {}",
        wanted(*.source_of)
    )]
    Missing {
        /// The audience that the driver wants.
        audience: String,
        /// Where it looked.
        source_of: TokenSource,
    },
    /// Tokens, but none for this audience.
    #[error(
        "the request holds no pod token for audience {0:?}: the CSIDriver object csi.keyfold.dev must have \
         tokenRequests with that audience"
    )]
    OtherAudience(String),
    /// Not what kubelet sends.
    #[error("the pod's tokens are not the JSON object that kubelet sends")]
    Malformed,
}

fn wanted(source: TokenSource) -> &'static str {
    match source {
        TokenSource::Secrets => {
            "serviceAccountTokenInSecrets: true (Kubernetes 1.35; on older clusters set token_source: \
             secrets-or-context in the driver's configuration)"
        }
        TokenSource::SecretsOrContext => "podInfoOnMount: true",
    }
}

/// The pod's token for `audience`. Wiped on drop.
///
/// # Errors
/// When the request holds none where `source` allows it.
pub fn pod_token(
    request: &NodePublishVolumeRequest,
    source: TokenSource,
    audience: &str,
) -> Result<Zeroizing<String>, PodTokenError> {
    let in_context = || match source {
        TokenSource::Secrets => None,
        TokenSource::SecretsOrContext => request.volume_context.get(TOKENS_KEY),
    };
    let json = request.secrets.get(TOKENS_KEY).or_else(in_context);
    let json = json.ok_or_else(|| PodTokenError::Missing { audience: audience.into(), source_of: source })?;
    let mut tokens: HashMap<String, TokenEntry> =
        serde_json::from_str(json).map_err(|_| PodTokenError::Malformed)?;
    let entry = tokens.remove(audience).ok_or_else(|| PodTokenError::OtherAudience(audience.into()))?;
    if entry.token.0.is_empty() { Err(PodTokenError::Malformed) } else { Ok(entry.token.0) }
}

/// A publish request whose tokens and secrets are overwritten when it is dropped, however its call ends.
pub struct WipedRequest(NodePublishVolumeRequest);

impl WipedRequest {
    /// Takes the request over.
    pub fn new(request: NodePublishVolumeRequest) -> Self {
        Self(request)
    }

    /// The request.
    pub fn expose(&self) -> &NodePublishVolumeRequest {
        &self.0
    }

    fn wipe(&mut self) {
        self.0.secrets.values_mut().for_each(|value| value.zeroize());
        if let Some(tokens) = self.0.volume_context.get_mut(TOKENS_KEY) {
            tokens.zeroize();
        }
    }
}

impl Drop for WipedRequest {
    fn drop(&mut self) {
        self.wipe();
    }
}

#[derive(Deserialize)]
struct TokenEntry {
    token: Token,
    /// Not needed: the server checks the token's own time.
    #[serde(default, rename = "expirationTimestamp")]
    _expires: IgnoredAny,
}

struct Token(Zeroizing<String>);

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|token| Self(Zeroizing::new(token)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(secrets: Option<&str>, context: Option<&str>) -> NodePublishVolumeRequest {
        let map = |json: Option<&str>| {
            json.map(|json| (TOKENS_KEY.to_owned(), json.to_owned())).into_iter().collect()
        };
        NodePublishVolumeRequest { secrets: map(secrets), volume_context: map(context), ..Default::default() }
    }

    fn tokens(token: &str) -> String {
        format!(r#"{{"keyfold":{{"token":"{token}","expirationTimestamp":"2026-11-23T06:39:17Z"}}}}"#)
    }

    #[test]
    fn attack_25_a_token_in_secrets_wins_over_one_in_the_context() {
        let both = request(Some(&tokens("from-secrets")), Some(&tokens("from-context")));
        for source in [TokenSource::Secrets, TokenSource::SecretsOrContext] {
            assert_eq!(*pod_token(&both, source, "keyfold").unwrap(), "from-secrets");
        }
    }

    #[test]
    fn attack_25_a_token_in_the_context_counts_only_when_configured() {
        let context = request(None, Some(&tokens("from-context")));
        assert_eq!(*pod_token(&context, TokenSource::SecretsOrContext, "keyfold").unwrap(), "from-context");
        let error = pod_token(&context, TokenSource::Secrets, "keyfold").unwrap_err().to_string();
        assert!(error.contains("serviceAccountTokenInSecrets: true"), "{error}");
        assert!(error.contains("tokenRequests with audience \"keyfold\""), "{error}");
    }

    #[test]
    fn attack_25_a_token_of_another_audience_does_not_count() {
        let error = pod_token(&request(Some(&tokens("t")), None), TokenSource::Secrets, "vault").unwrap_err();
        assert_eq!(error, PodTokenError::OtherAudience("vault".into()));
    }

    #[test]
    fn attack_14_malformed_tokens_are_refused_without_showing_them() {
        for json in [
            "",
            "planted",
            "[]",
            r#"{"keyfold":"planted"}"#,
            r#"{"keyfold":{}}"#,
            r#"{"keyfold":{"token":7}}"#,
            &tokens(""),
        ] {
            let error = pod_token(&request(Some(json), None), TokenSource::Secrets, "keyfold").unwrap_err();
            assert_eq!(error, PodTokenError::Malformed, "{json}");
            assert!(!error.to_string().contains("planted"));
        }
    }

    #[test]
    fn attack_14_wiping_leaves_no_token_in_the_request() {
        let mut both = WipedRequest::new(request(Some(&tokens("a")), Some(&tokens("b"))));
        both.wipe();
        let left = both.expose();
        assert!(left.secrets.values().chain(left.volume_context.values()).all(String::is_empty));
    }
}
