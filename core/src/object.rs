//! The objects that operators declare. Parsing checks them whole; what parses is valid.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{key::RotationPolicy, pattern::Pattern};

mod app_role;
mod approval_rule;
mod issuer;
mod operator_role;

pub use self::{
    app_role::{AppRoleSpec, Binding, ConditionSpec, LeaseSpec, NodeBinding, WhenApiServerAway},
    approval_rule::{ApprovalRuleSpec, Approver, GuardedOperation, PublicKey},
    issuer::{
        Algorithm, ApiServerRef, Discovery, IssuerKind, IssuerSpec, KeySource, ServiceAccountRef, Verify,
    },
    operator_role::{BuiltInRole, OperatorBinding, OperatorRoleSpec, Permission, PermissionPattern},
};

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
    /// A named right of operators.
    OperatorRole,
    /// Operations that need a second person.
    ApprovalRule,
}

impl Kind {
    /// All kinds, in the order in which objects depend on each other.
    pub const ALL: [Self; 5] =
        [Self::Keyspace, Self::Issuer, Self::AppRole, Self::OperatorRole, Self::ApprovalRule];

    /// The kind's name in `kind:`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keyspace => "Keyspace",
            Self::Issuer => "Issuer",
            Self::AppRole => "AppRole",
            Self::OperatorRole => "OperatorRole",
            Self::ApprovalRule => "ApprovalRule",
        }
    }

    /// The kind of that exact name.
    ///
    /// # Errors
    /// When there is none; the message lists the kinds.
    pub fn parse(name: &str) -> Result<Self, ObjectError> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(", ");
            ObjectError(format!("kind {name:?} is unknown: use one of {known}"))
        })
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
    /// Of an operator role.
    OperatorRole(OperatorRoleSpec),
    /// Of an approval rule.
    ApprovalRule(ApprovalRuleSpec),
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
            Kind::OperatorRole => Self::OperatorRole(from_json(json)?),
            Kind::ApprovalRule => Self::ApprovalRule(from_json(json)?),
        };
        match &spec {
            Self::Keyspace(keyspace) => keyspace.check()?,
            Self::Issuer(issuer) => issuer.check()?,
            Self::AppRole(role) => role.check()?,
            Self::OperatorRole(role) => role.check()?,
            Self::ApprovalRule(rule) => rule.check()?,
        }
        Ok(spec)
    }

    /// The spec's canonical JSON: equal specs have equal bytes.
    pub fn to_json(&self) -> String {
        let json = match self {
            Self::Keyspace(spec) => serde_json::to_string(spec),
            Self::Issuer(spec) => serde_json::to_string(spec),
            Self::AppRole(spec) => serde_json::to_string(spec),
            Self::OperatorRole(spec) => serde_json::to_string(spec),
            Self::ApprovalRule(spec) => serde_json::to_string(spec),
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
    /// When its key turns; absent: every 90 days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<RotationPolicy>,
}

impl KeyspaceSpec {
    fn check(&self) -> Result<(), ObjectError> {
        let checked = self.rotation.as_ref().map_or(Ok(()), RotationPolicy::check);
        checked.map_err(|error| ObjectError(format!("spec.rotation.{error}")))
    }
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

/// What may be done with a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Capability {
    /// Receive its values.
    Read,
    /// Learn that it exists, and its versions.
    List,
    /// Add versions, and choose which is current.
    Write,
    /// Hide versions, and bring them back.
    Delete,
    /// Remove versions for good.
    Manage,
}

impl Capability {
    /// All capabilities.
    pub const ALL: [Self; 5] = [Self::Read, Self::List, Self::Write, Self::Delete, Self::Manage];

    /// Its name in `allow:`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::List => "list",
            Self::Write => "write",
            Self::Delete => "delete",
            Self::Manage => "manage",
        }
    }
}

#[cfg(test)]
mod tests;
