//! The objects that operators declare: keyspaces, issuers and app roles. Parsing checks them whole; what parses is valid.

use std::{collections::BTreeSet, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{name::ObjectName, pattern::Pattern};

/// Why an object was refused: names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ObjectError(String);

/// The kinds of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A keyspace: the first segment of secret paths, with a KEK of its own.
    Keyspace,
    /// A trusted source of tokens.
    Issuer,
    /// A named right of workloads.
    AppRole,
}

impl Kind {
    /// All kinds, in the order in which objects depend on each other.
    pub const ALL: [Self; 3] = [Self::Keyspace, Self::Issuer, Self::AppRole];

    /// The kind's name in `kind:`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keyspace => "Keyspace",
            Self::Issuer => "Issuer",
            Self::AppRole => "AppRole",
        }
    }

    /// The kind of that exact name.
    ///
    /// # Errors
    /// When there is none; the message lists the kinds.
    pub fn parse(name: &str) -> Result<Self, ObjectError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == name)
            .ok_or_else(|| ObjectError(format!("kind {name:?} is unknown: use Keyspace, Issuer or AppRole")))
    }
}

/// A parsed object's `spec`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spec {
    /// Of a keyspace.
    Keyspace(KeyspaceSpec),
    /// Of an issuer.
    Issuer(IssuerSpec),
    /// Of an app role.
    AppRole(AppRoleSpec),
}

impl Spec {
    /// Parses and checks a `spec` in JSON.
    ///
    /// # Errors
    /// Names the field and what is wrong with it. Unknown fields are refused.
    pub fn parse(kind: Kind, json: &str) -> Result<Self, ObjectError> {
        let spec = match kind {
            Kind::Keyspace => Self::Keyspace(from_json(json)?),
            Kind::Issuer => Self::Issuer(from_json(json)?),
            Kind::AppRole => Self::AppRole(from_json(json)?),
        };
        match &spec {
            Self::Keyspace(_) => {}
            Self::Issuer(issuer) => issuer.check()?,
            Self::AppRole(role) => role.check()?,
        }
        Ok(spec)
    }

    /// The spec's canonical JSON: equal specs have equal bytes.
    pub fn to_json(&self) -> String {
        let json = match self {
            Self::Keyspace(spec) => serde_json::to_string(spec),
            Self::Issuer(spec) => serde_json::to_string(spec),
            Self::AppRole(spec) => serde_json::to_string(spec),
        };
        json.unwrap_or_default()
    }
}

fn from_json<T: for<'de> Deserialize<'de>>(json: &str) -> Result<T, ObjectError> {
    if !json.trim_start().starts_with('{') {
        return Err(ObjectError("spec: must be a map".to_owned()));
    }
    let mut deserializer = serde_json::Deserializer::from_str(json);
    serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let reason = error.into_inner().to_string();
        let reason = reason.split(" at line ").next().unwrap_or_default();
        match path.as_str() {
            "." => ObjectError(format!("spec: {reason}")),
            _ => ObjectError(format!("spec.{path}: {reason}")),
        }
    })
}

/// A keyspace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyspaceSpec {
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
}

/// A trusted source of tokens: one Kubernetes cluster.
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
    fn check(&self) -> Result<(), ObjectError> {
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

/// A named right of workloads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AppRoleSpec {
    /// Which workloads may act under the role: those that any binding matches.
    pub bind: Vec<Binding>,
    /// What the role may do: the union of all grants.
    pub grants: Vec<Grant>,
    /// Whether the driver must prove that it runs on the pod's node.
    #[serde(default)]
    pub node_binding: NodeBinding,
}

/// Which workloads a role binds. A workload must match all parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Binding {
    /// The issuer object.
    pub issuer: ObjectName,
    /// Any of these namespaces.
    pub namespaces: BTreeSet<String>,
    /// Any of these service accounts.
    pub service_accounts: BTreeSet<String>,
    /// If set, only the service account with this UID: a deleted and recreated namesake gets nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_uid: Option<String>,
}

/// A path pattern and what is allowed on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Grant {
    /// Which secrets.
    pub path: Pattern,
    /// Which capabilities.
    pub allow: BTreeSet<Capability>,
}

/// What a workload may do with a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Capability {
    /// Receive its values.
    Read,
}

/// Whether the driver's node must be the pod's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NodeBinding {
    /// Both tokens must name the same node.
    #[default]
    Required,
    /// The nodes must be the same if both tokens name one: for clusters older than Kubernetes 1.32.
    WhenPresent,
}

impl AppRoleSpec {
    fn check(&self) -> Result<(), ObjectError> {
        let fail = |text: String| Err(ObjectError(text));
        if self.bind.is_empty() {
            return fail("spec.bind: name at least one binding".into());
        }
        for (at, binding) in self.bind.iter().enumerate() {
            for (field, names) in
                [("namespaces", &binding.namespaces), ("serviceAccounts", &binding.service_accounts)]
            {
                if names.is_empty() {
                    return fail(format!("spec.bind[{at}].{field}: name at least one"));
                }
                if let Some(bad) = names.iter().find(|name| !is_kubernetes_name(name)) {
                    return fail(format!("spec.bind[{at}].{field}: {bad:?} is not a Kubernetes name"));
                }
            }
        }
        match self.grants.iter().position(|grant| grant.allow.is_empty()) {
            Some(at) => fail(format!("spec.grants[{at}].allow: name at least one capability")),
            None => Ok(()),
        }
    }
}

/// Whether `name` can name a namespace or a service account: RFC 1123, dots allowed, at most 253 bytes.
fn is_kubernetes_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    name.len() <= 253 && edge(name.bytes().next()) && edge(name.bytes().last()) && name.bytes().all(inner)
}

#[cfg(test)]
mod tests;
