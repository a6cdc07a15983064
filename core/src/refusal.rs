//! Why a caller was refused. The text reaches the caller, and for pods the event of a failed mount, so it helps its
//! reader and tells nothing that the caller may not know. The code is stable: audit entries and tests use it.

use std::fmt;

use crate::{name::ObjectName, path::SecretPath, token::TokenRefusal};

/// Longest message that a caller is told, in bytes; what is longer is cut. It travels in HTTP/2 headers, which grow to
/// three times its size (percent-encoding) and which clients refuse beyond 16 KiB.
pub const MESSAGE_BYTES_MAX: usize = 4096;

/// Whose token was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenOwner {
    /// The pod that mounts the volume.
    Pod,
    /// The CSI driver.
    Driver,
}

impl fmt::Display for TokenOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "pod",
            Self::Driver => "driver",
        })
    }
}

/// Why a caller was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A token does not prove an identity.
    #[error("the {whose}'s token was refused: {reason}")]
    Token {
        /// Whose token.
        whose: TokenOwner,
        /// What is wrong with it.
        reason: TokenRefusal,
    },
    /// The operator's token is missing, unknown or revoked. One answer for all three.
    #[error("the operator's token is missing, unknown or revoked: give a valid one with --token-file")]
    OperatorToken,
    /// The bootstrap token is wrong, or the server has none.
    #[error(
        "the bootstrap token was refused: present the content of the file that the server's \
         bootstrap_token_file names"
    )]
    BootstrapToken,
    /// The installation stands already.
    #[error(
        "this installation is already initialised: its administrator's token was shown once, by the first init"
    )]
    AlreadyInitialized,
    /// The token of a service account that is not the driver's.
    #[error("{subject} is not a CSI driver of issuer {issuer}: list it under spec.drivers of the issuer")]
    NotADriver {
        /// The token's subject.
        subject: String,
        /// The issuer object.
        issuer: ObjectName,
    },
    /// A CSI driver's own token, presented as that of a pod.
    #[error("{subject} is a CSI driver: its token proves the driver and never a pod")]
    DriverAsPod {
        /// The token's subject.
        subject: String,
    },
    /// The pod's and the driver's tokens come from different issuers.
    #[error("the pod's token and the driver's come from different clusters")]
    IssuerMismatch,
    /// A node is not named although the role requires it.
    #[error(
        "the {0}'s token names no node, which needs Kubernetes 1.32: app role {1} has nodeBinding: required"
    )]
    NodeUnknown(TokenOwner, ObjectName),
    /// The driver runs on another node than the pod.
    #[error("the pod runs on another node than the driver that presented its token")]
    NodeMismatch,
    /// No role was named and none, or more than one, binds the pod.
    #[error(
        "no app role was named, and not exactly one binds this pod: set `role` in the volume's attributes"
    )]
    RoleMissing,
    /// The named role does not bind the caller, or does not exist. One answer for both.
    #[error("app role {role:?} does not exist or does not bind {subject} of issuer {issuer}")]
    RoleNotBound {
        /// The role's name, as the caller gave it.
        role: String,
        /// The caller's own subject.
        subject: String,
        /// The caller's issuer object.
        issuer: ObjectName,
    },
    /// Items that the role does not grant, and granted ones that do not exist.
    #[error("app role {role}: {}", items(.refused, .missing))]
    Items {
        /// The role.
        role: ObjectName,
        /// Not granted. Whether they exist is not told.
        refused: Vec<SecretPath>,
        /// Granted, but without a current version.
        missing: Vec<SecretPath>,
    },
}

fn items(refused: &[SecretPath], missing: &[SecretPath]) -> String {
    let list = |paths: &[SecretPath]| paths.iter().map(SecretPath::as_str).collect::<Vec<_>>().join(", ");
    match (refused.is_empty(), missing.is_empty()) {
        (false, true) => format!("not granted or not existing: {}", list(refused)),
        (true, _) => format!("granted, but there is no such secret: {}", list(missing)),
        (false, false) => format!(
            "not granted or not existing: {}; granted, but there is no such secret: {}",
            list(refused),
            list(missing)
        ),
    }
}

impl Refusal {
    /// The stable code of this refusal.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Token { reason, .. } => reason.code(),
            Self::OperatorToken => "operator-token",
            Self::BootstrapToken => "bootstrap-token",
            Self::AlreadyInitialized => "already-initialized",
            Self::NotADriver { .. } => "not-a-driver",
            Self::DriverAsPod { .. } => "driver-as-pod",
            Self::IssuerMismatch => "issuer-mismatch",
            Self::NodeUnknown(..) => "node-unknown",
            Self::NodeMismatch => "node-mismatch",
            Self::RoleMissing => "role-missing",
            Self::RoleNotBound { .. } => "role-not-bound",
            Self::Items { refused, .. } if refused.is_empty() => "not-found",
            Self::Items { .. } => "not-granted",
        }
    }
}
