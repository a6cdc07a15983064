//! Why a caller was refused. The text reaches the caller, and for pods the event of a failed mount, so it helps its
//! reader and tells nothing that the caller may not know. The code is stable: audit entries and tests use it.

use std::{fmt, time::Duration};

use uuid::Uuid;

use crate::{condition::ConditionFailure, name::ObjectName, path::SecretPath, token::TokenRefusal};

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
    /// An operator.
    Operator,
}

impl fmt::Display for TokenOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "pod",
            Self::Driver => "driver",
            Self::Operator => "operator",
        })
    }
}

/// What a TokenReview found against a token that the local check had accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReviewRefusal {
    /// It is not authenticated.
    #[error("does not accept it, and its pod, node or service account may be gone")]
    NotAuthenticated,
    /// None of the issuer's audiences is among those that the review confirms, or it confirms none.
    #[error("does not confirm that it is meant for Keyfold")]
    Audience,
    /// The review names another user, pod or node than the token.
    #[error("takes it for somebody else's")]
    OtherIdentity,
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
    /// The cluster's API server does not vouch for a token that the local check accepted.
    #[error("the {whose}'s token was refused: the API server of issuer {issuer} {reason}")]
    Review {
        /// Whose token.
        whose: TokenOwner,
        /// The issuer object.
        issuer: ObjectName,
        /// What the API server said.
        reason: ReviewRefusal,
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
    /// A CSI driver's own token, presented as that of an operator.
    #[error("{subject} is a CSI driver: its token proves the driver and never an operator")]
    DriverAsOperator {
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
    /// The server takes pods' requests only from drivers that show a certificate, and the connection has none.
    #[error(
        "the driver showed no certificate, which this server requires: set `certificate: internal` under server in the \
         driver's configuration"
    )]
    DriverCertificateMissing,
    /// The certificate of the connection is another driver's than the token.
    #[error("the driver's certificate and its token are of different nodes or clusters")]
    DriverCertificateMismatch,
    /// The certificate of the connection has expired since it was opened.
    #[error("the driver's certificate has expired since it connected: it must renew it and connect anew")]
    DriverCertificateExpired,
    /// A driver that asks for a certificate is on no node that its token would name.
    #[error(
        "the driver's token names no node, which needs Kubernetes 1.32: there can be no certificate for it"
    )]
    DriverNodeUnknown,
    /// No role was named and none, or more than one, binds the pod.
    #[error(
        "no app role was named, and {} {subject} of issuer {issuer}{}",
        if choices.is_empty() { "none binds" } else { "several bind" },
        set_role(choices)
    )]
    RoleMissing {
        /// The caller's own subject.
        subject: String,
        /// The caller's issuer object.
        issuer: ObjectName,
        /// The roles that bind the caller.
        choices: Vec<ObjectName>,
    },
    /// The named role does not bind the caller, or does not exist. One answer for both.
    #[error(
        "app role {role:?} does not exist or does not bind {subject} of issuer {issuer}{}",
        set_role(choices)
    )]
    RoleNotBound {
        /// The role's name, as the caller gave it.
        role: String,
        /// The caller's own subject.
        subject: String,
        /// The caller's issuer object.
        issuer: ObjectName,
        /// The roles that bind the caller.
        choices: Vec<ObjectName>,
    },
    /// The role's condition does not hold. What it asks for is not told.
    #[error("the condition of app role {role} refused")]
    Condition {
        /// The role.
        role: ObjectName,
        /// Why.
        failure: ConditionFailure,
    },
    /// The pod has had secrets under the role for as long as it may.
    #[error(
        "the pod has had secrets under app role {role} for as long as that allows ({}): a new pod must take its place",
        humantime::format_duration(*max)
    )]
    LeaseEnded {
        /// The role.
        role: ObjectName,
        /// How long it allows.
        max: Duration,
    },
    /// No operator role binds an operator whose token is good.
    #[error("no operator role binds {operator}: ask an administrator for one")]
    OperatorNotBound {
        /// The operator.
        operator: String,
    },
    /// An operator lacks a permission.
    #[error(
        "{operator} may not do this, which needs {needs}: ask an administrator for an operator role that allows it"
    )]
    OperatorForbidden {
        /// The operator.
        operator: String,
        /// The permissions that are needed, or the capability and where.
        needs: String,
    },
    /// An operator has no grant on a secret. One answer whether it exists or not.
    #[error("{path}: not granted or not existing: {operator} would need {capability} on it")]
    PathNotGranted {
        /// The operator.
        operator: String,
        /// The secret.
        path: SecretPath,
        /// What is needed.
        capability: &'static str,
    },
    /// The operation needs a second person. Its plan waits for them.
    #[error(
        "this needs a second person: have one of {} sign plan {plan} (SHA-256 {hash}) with keyfold approval sign, then \
         run the same again with --approval {plan}",
        some_of(approvers)
    )]
    ApprovalNeeded {
        /// The plan's id.
        plan: Uuid,
        /// The SHA-256 of the exact plan in hexadecimal.
        hash: String,
        /// Who may sign.
        approvers: Vec<String>,
    },
    /// The approval that was given does not fit.
    #[error("the approval does not fit: {0}")]
    ApprovalUnfit(&'static str),
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

/// What a pod's author can do about a role that is missing or wrong. Only roles that bind the caller are named.
fn set_role(choices: &[ObjectName]) -> String {
    match choices {
        [] => String::new(),
        [only] => format!(": set `role: {only}` in the volume's attributes"),
        several => {
            let names: Vec<_> = several.iter().map(ObjectName::as_str).collect();
            format!(": set `role` in the volume's attributes to one of {}", names.join(", "))
        }
    }
}

/// So many that the message is not cut.
fn some_of(approvers: &[String]) -> String {
    let (shown, others) = approvers.split_at(approvers.len().min(8));
    let rest = if others.is_empty() { String::new() } else { format!(" or {} others", others.len()) };
    shown.join(", ") + &rest
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
            Self::Review { reason: ReviewRefusal::NotAuthenticated, .. } => "review-not-authenticated",
            Self::Review { reason: ReviewRefusal::Audience, .. } => "review-audience",
            Self::Review { reason: ReviewRefusal::OtherIdentity, .. } => "review-other-identity",
            Self::OperatorToken => "operator-token",
            Self::BootstrapToken => "bootstrap-token",
            Self::AlreadyInitialized => "already-initialized",
            Self::NotADriver { .. } => "not-a-driver",
            Self::DriverAsPod { .. } => "driver-as-pod",
            Self::DriverAsOperator { .. } => "driver-as-operator",
            Self::IssuerMismatch => "issuer-mismatch",
            Self::NodeUnknown(..) => "node-unknown",
            Self::NodeMismatch => "node-mismatch",
            Self::DriverCertificateMissing => "driver-certificate-missing",
            Self::DriverCertificateMismatch => "driver-certificate-mismatch",
            Self::DriverCertificateExpired => "driver-certificate-expired",
            Self::DriverNodeUnknown => "driver-node-unknown",
            Self::RoleMissing { .. } => "role-missing",
            Self::RoleNotBound { .. } => "role-not-bound",
            Self::Condition { failure, .. } => failure.code(),
            Self::LeaseEnded { .. } => "lease-ended",
            Self::OperatorNotBound { .. } => "operator-not-bound",
            Self::OperatorForbidden { .. } => "operator-forbidden",
            Self::PathNotGranted { .. } => "path-not-granted",
            Self::ApprovalNeeded { .. } => "approval-needed",
            Self::ApprovalUnfit(_) => "approval-unfit",
            Self::Items { refused, .. } if refused.is_empty() => "not-found",
            Self::Items { .. } => "not-granted",
        }
    }
}
