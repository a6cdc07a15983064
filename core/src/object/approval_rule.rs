//! Approval rules: operations that need a second person.

use std::{collections::BTreeSet, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use super::ObjectError;
use crate::name::shortened;

/// The longest that a plan may wait: what was right a week ago may be wrong now.
const TTL_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Operations that need a second person, who signs the hash of the exact plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApprovalRuleSpec {
    /// Which operations.
    pub operations: BTreeSet<GuardedOperation>,
    /// Who may sign. Nobody signs a plan of their own.
    pub approvers: Vec<Approver>,
    /// How long a plan waits to be signed and used.
    #[serde(default = "default_ttl", with = "humantime_serde")]
    pub ttl: Duration,
}

/// An operation that can be guarded, by its name in the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum GuardedOperation {
    /// Reading a secret's values.
    #[serde(rename = "secret.get")]
    SecretGet,
    /// Making an older version current.
    #[serde(rename = "secret.rollback")]
    SecretRollback,
    /// Hiding versions.
    #[serde(rename = "secret.delete")]
    SecretDelete,
    /// Removing versions for good.
    #[serde(rename = "secret.destroy")]
    SecretDestroy,
    /// Turning a KEK.
    #[serde(rename = "key.rotate")]
    KeyRotate,
    /// Declaring a key compromised.
    #[serde(rename = "key.compromise")]
    KeyCompromise,
    /// Having a key destroyed.
    #[serde(rename = "key.schedule-destruction")]
    KeyScheduleDestruction,
    /// Turning or moving the root key.
    #[serde(rename = "root.change")]
    RootChange,
    /// Making the recovery key's shares.
    #[serde(rename = "recovery.create")]
    RecoveryCreate,
    /// Declaring objects.
    #[serde(rename = "config.apply")]
    ConfigApply,
    /// Deleting them.
    #[serde(rename = "config.delete")]
    ConfigDelete,
}

impl GuardedOperation {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::SecretGet,
        Self::SecretRollback,
        Self::SecretDelete,
        Self::SecretDestroy,
        Self::KeyRotate,
        Self::KeyCompromise,
        Self::KeyScheduleDestruction,
        Self::RootChange,
        Self::RecoveryCreate,
        Self::ConfigApply,
        Self::ConfigDelete,
    ];

    /// Its name in the audit log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SecretGet => "secret.get",
            Self::SecretRollback => "secret.rollback",
            Self::SecretDelete => "secret.delete",
            Self::SecretDestroy => "secret.destroy",
            Self::KeyRotate => "key.rotate",
            Self::KeyCompromise => "key.compromise",
            Self::KeyScheduleDestruction => "key.schedule-destruction",
            Self::RootChange => "root.change",
            Self::RecoveryCreate => "recovery.create",
            Self::ConfigApply => "config.apply",
            Self::ConfigDelete => "config.delete",
        }
    }
}

/// Who may sign plans.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Approver {
    /// The operator, as entries name them: `ISSUER/SUBJECT`.
    pub operator: String,
    /// Their Ed25519 public key: 32 bytes in base64.
    pub public_key: PublicKey,
}

/// An Ed25519 public key (RFC 8032).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(pub [u8; 32]);

impl TryFrom<String> for PublicKey {
    type Error = ObjectError;

    fn try_from(text: String) -> Result<Self, ObjectError> {
        let bytes = STANDARD.decode(&text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| {
            ObjectError(format!(
                "{:?} is not an Ed25519 public key: use what keyfold approval keygen prints",
                shortened(&text)
            ))
        })
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        STANDARD.encode(key.0)
    }
}

fn default_ttl() -> Duration {
    Duration::from_secs(60 * 60)
}

impl ApprovalRuleSpec {
    pub(super) fn check(&self) -> Result<(), ObjectError> {
        let fail = |text: &str| Err(ObjectError(text.to_owned()));
        if self.operations.is_empty() {
            return fail("spec.operations: name at least one operation");
        }
        let operators: BTreeSet<_> = self.approvers.iter().map(|approver| &approver.operator).collect();
        if operators.len() < 2 || operators.len() < self.approvers.len() {
            return fail(
                "spec.approvers: name at least two operators, each once, so that each can be the second person",
            );
        }
        if let Some(bad) = self.approvers.iter().find(|approver| !approver.operator.contains('/')) {
            return Err(ObjectError(format!(
                "spec.approvers: {:?} is not an operator: use ISSUER/SUBJECT, as keyfold whoami prints it",
                shortened(&bad.operator)
            )));
        }
        if self.ttl.is_zero() || self.ttl > TTL_MAX {
            return fail("spec.ttl: must be at most 7d, and not 0");
        }
        Ok(())
    }
}
