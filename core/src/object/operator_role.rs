//! Operator roles: named rights of people and automation.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use super::{Grant, ObjectError};
use crate::name::{ObjectName, shortened};

/// A named right of operators: one that is built in, or grants and permissions of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OperatorRoleSpec {
    /// Who has the role: those that any binding matches.
    pub bind: Vec<OperatorBinding>,
    /// A role whose rights Keyfold defines; then there are no others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built_in: Option<BuiltInRole>,
    /// What the role may do with secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<Grant>,
    /// What else it may do.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub allow: BTreeSet<PermissionPattern>,
}

/// Which operators a role binds: those whose token of `issuer` holds, in each named claim, one of its values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OperatorBinding {
    /// The issuer object.
    pub issuer: ObjectName,
    /// By the claim's name. A claim that is an array holds each of its texts.
    pub claims: BTreeMap<String, BTreeSet<String>>,
}

/// The roles whose rights Keyfold defines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuiltInRole {
    /// Everything.
    Admin,
    /// Keys and keyspaces. Reads no secret.
    KeyAdmin,
    /// All secrets. Turns no key, and changes no right.
    SecretAdmin,
    /// Reads the audit log and all that is declared, and changes nothing. Reads no secret.
    Auditor,
}

macro_rules! permissions {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What an operator may do apart from secrets.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Permission {
            $($(#[$doc])* $variant,)*
        }

        impl Permission {
            /// All permissions.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name in `allow:`.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

permissions! {
    /// List keys, and see how turns and rewraps stand.
    KeysRead = "keys:read",
    /// Turn them, and pause and resume their schedules.
    KeysRotate = "keys:rotate",
    /// Declare a key compromised, and see which secrets it exposed.
    KeysCompromise = "keys:compromise",
    /// Have a key destroyed, and cancel that.
    KeysDestroy = "keys:destroy",
    /// See where the root key lies.
    RootRead = "root:read",
    /// Turn the root key, and move it to another custody.
    RootChange = "root:change",
    /// Make the recovery key's shares, and drill recovery.
    RootRecover = "root:recover",
    /// Turn the internal certificate authority.
    CaRotate = "ca:rotate",
    /// Read the audit log.
    AuditRead = "audit:read",
    /// See the server's details.
    StatusRead = "status:read",
    /// Read keyspaces.
    KeyspacesRead = "keyspaces:read",
    /// Declare and delete them.
    KeyspacesWrite = "keyspaces:write",
    /// Read issuers.
    IssuersRead = "issuers:read",
    /// Declare and delete them: whoever may can make anybody's token.
    IssuersWrite = "issuers:write",
    /// Read app roles, and have decisions explained.
    RolesRead = "roles:read",
    /// Declare and delete them: whoever may can let a workload read any secret.
    RolesWrite = "roles:write",
    /// Read operator roles and approval rules.
    OperatorsRead = "operators:read",
    /// Declare and delete them, and revoke the initial administrator: whoever may can become anything.
    OperatorsWrite = "operators:write",
    /// Read plans that wait for a second person.
    ApprovalsRead = "approvals:read",
    /// Sign them, as far as a rule names the operator.
    ApprovalsSign = "approvals:sign",
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A permission, or all of an area such as `keys:*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PermissionPattern(String);

impl PermissionPattern {
    /// Whether it stands for `permission`.
    pub fn covers(&self, permission: Permission) -> bool {
        match self.0.strip_suffix('*') {
            Some(area) => permission.as_str().starts_with(area),
            None => self.0 == permission.as_str(),
        }
    }
}

impl TryFrom<String> for PermissionPattern {
    type Error = ObjectError;

    fn try_from(text: String) -> Result<Self, ObjectError> {
        let whole_area = text.strip_suffix('*').is_none_or(|area| area.ends_with(':'));
        let pattern = Self(text);
        if whole_area && Permission::ALL.iter().any(|permission| pattern.covers(*permission)) {
            return Ok(pattern);
        }
        let known: Vec<_> = Permission::ALL.iter().map(|permission| permission.as_str()).collect();
        Err(ObjectError(format!(
            "{:?} is no permission: use {}, or an area such as keys:*",
            shortened(&pattern.0),
            known.join(", ")
        )))
    }
}

impl From<PermissionPattern> for String {
    fn from(pattern: PermissionPattern) -> Self {
        pattern.0
    }
}

impl OperatorRoleSpec {
    pub(super) fn check(&self) -> Result<(), ObjectError> {
        let fail = |text: String| Err(ObjectError(text));
        if self.bind.is_empty() {
            return fail("spec.bind: name at least one binding".into());
        }
        for (at, binding) in self.bind.iter().enumerate() {
            if binding.claims.is_empty() {
                return fail(format!(
                    "spec.bind[{at}].claims: name at least one, or every token would be bound"
                ));
            }
            if let Some((claim, _)) =
                binding.claims.iter().find(|(_, values)| values.is_empty() || values.contains(""))
            {
                return fail(format!(
                    "spec.bind[{at}].claims.{}: name at least one value, none of them empty",
                    shortened(claim)
                ));
            }
        }
        let own = !self.grants.is_empty() || !self.allow.is_empty();
        match self.built_in {
            Some(_) if own => {
                return fail("spec: a built-in role has no grants and no allow of its own".into());
            }
            None if !own => return fail("spec: name a builtIn role, or grants, or allow".into()),
            _ => {}
        }
        for (at, grant) in self.grants.iter().enumerate() {
            if grant.allow.is_empty() {
                return fail(format!("spec.grants[{at}].allow: name at least one capability"));
            }
            if grant.path.has_variables() {
                return fail(format!(
                    "spec.grants[{at}].path: variables stand for a workload's values, and an operator has none"
                ));
            }
        }
        Ok(())
    }
}
