//! Issuers: trusted sources of tokens.

use std::{collections::BTreeSet, time::Duration};

use serde::{Deserialize, Serialize};

use super::ObjectError;

/// A trusted source of tokens: one Kubernetes cluster, or an OpenID provider for operators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IssuerSpec {
    /// What issues the tokens.
    #[serde(rename = "type")]
    pub kind: IssuerKind,
    /// The exact `iss` of its tokens.
    pub url: String,
    /// A token must be meant for one of these.
    pub audiences: BTreeSet<String>,
    /// Signature algorithms that are accepted.
    #[serde(default = "default_algorithms")]
    pub algorithms: BTreeSet<Algorithm>,
    /// Where the public keys come from.
    pub keys: KeySource,
    /// Service accounts whose tokens count as those of the CSI driver.
    #[serde(default)]
    pub drivers: Vec<ServiceAccountRef>,
    /// How the server reaches the cluster's API server; absent: it never asks it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_server: Option<ApiServerRef>,
    /// Whether every token of the issuer also goes through TokenReview, whatever roles say.
    #[serde(default, skip_serializing_if = "Verify::is_local")]
    pub verify: Verify,
    /// The longest `exp - iat` of a token.
    #[serde(default = "default_max_token_lifetime", with = "humantime_serde")]
    pub max_token_lifetime: Duration,
    /// How far clocks may be apart, at most 5 minutes.
    #[serde(default = "default_leeway", with = "humantime_serde")]
    pub leeway: Duration,
}

/// What issues the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum IssuerKind {
    /// A Kubernetes API server's ServiceAccount tokens.
    Kubernetes,
    /// An OpenID provider's tokens, for operators only.
    Oidc,
}

/// How the server reaches a cluster's API server. Both name what the server's own configuration provides, so that an
/// object cannot send the server's credentials to an address of its choice.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum ApiServerRef {
    /// The cluster that the server runs in, with its own ServiceAccount.
    InCluster,
    /// A kubeconfig file of this name in the server's `kubeconfig_dir`.
    Kubeconfig(String),
}

/// How a token is checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verify {
    /// By its signature and claims, without a network.
    #[default]
    Local,
    /// So, and then by the API server, which also knows deleted pods.
    TokenReview,
}

impl Verify {
    fn is_local(&self) -> bool {
        *self == Self::Local
    }
}

/// A signature algorithm of RFC 7518 or RFC 8037. `none` and HMAC have no name here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Algorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

/// Where an issuer's public keys come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum KeySource {
    /// OpenID Connect discovery over HTTPS.
    Discovery(Discovery),
    /// A JWKS file of this name in the server's `jwks_dir`.
    File(String),
}

/// OpenID Connect discovery.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Discovery {
    /// Where `/.well-known/openid-configuration` is served, if not below the issuer's own URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Authorities to trust, in PEM; absent: those of the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<String>,
}

/// A service account, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceAccountRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub service_account: String,
}

fn default_algorithms() -> BTreeSet<Algorithm> {
    BTreeSet::from([Algorithm::RS256])
}

fn default_max_token_lifetime() -> Duration {
    // Kubelet asks for an hour by default; the API server may stretch a legacy client's to a year, which no mount needs.
    Duration::from_secs(24 * 60 * 60)
}

fn default_leeway() -> Duration {
    Duration::from_secs(10)
}

impl IssuerSpec {
    pub(super) fn check(&self) -> Result<(), ObjectError> {
        let fail = |text: &str| Err(ObjectError(text.to_owned()));
        if !self.url.starts_with("https://") {
            return fail("spec.url: must begin with https://");
        }
        if self.audiences.is_empty() || self.audiences.iter().any(String::is_empty) {
            return fail("spec.audiences: name at least one audience, none of them empty");
        }
        if self.algorithms.is_empty() {
            return fail("spec.algorithms: name at least one algorithm");
        }
        if self.leeway > Duration::from_secs(300) {
            return fail("spec.leeway: must be at most 5m");
        }
        if self.kind == IssuerKind::Oidc && (!self.drivers.is_empty() || self.api_server.is_some()) {
            return fail("spec: drivers and apiServer are those of a cluster, and the type is oidc");
        }
        if self.verify == Verify::TokenReview && self.api_server.is_none() {
            return fail("spec.verify: tokenReview needs apiServer");
        }
        if matches!(&self.api_server, Some(ApiServerRef::Kubeconfig(name)) if !is_plain_file_name(name)) {
            return fail(
                "spec.apiServer.kubeconfig: must be a plain file name in the server's kubeconfig_dir, such as prod.yaml",
            );
        }
        match &self.keys {
            KeySource::File(name) if !is_plain_file_name(name) => {
                fail("spec.keys.file: must be a plain file name in the server's jwks_dir, such as prod.json")
            }
            KeySource::Discovery(Discovery { url: Some(url), .. }) if !url.starts_with("https://") => {
                fail("spec.keys.discovery.url: must begin with https://")
            }
            _ => Ok(()),
        }
    }
}

fn is_plain_file_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && name.bytes().all(plain)
}
