//! The one mapping from errors to gRPC status.

use keyfold_core::{
    condition::ConditionFailure,
    name::cut,
    refusal::{MESSAGE_BYTES_MAX, Refusal},
};
use tonic::{Code, Status};

use crate::error::Error;

/// The status that tells the caller of an error. What is ours to mend is logged here, once, with its details, which
/// the caller is not told.
pub fn from_error(rpc: &'static str, error: &Error) -> Status {
    let code = code(error);
    match error {
        Error::Database(cause) if code == Code::Aborted => tracing::warn!(rpc, %cause, "lost against others"),
        Error::Database(cause) => tracing::error!(rpc, %cause, "the database failed"),
        Error::Corrupt(what) => tracing::error!(rpc, %what, "stored data failed its integrity check"),
        Error::Integrity { table, what } => {
            tracing::error!(rpc, table, %what, "stored data failed its integrity check");
        }
        Error::Entropy => tracing::error!(rpc, "the system gave no randomness"),
        Error::Refused(_) => tracing::info!(rpc, reason = error.code(), "refused"),
        _ => tracing::debug!(rpc, reason = error.code(), "failed"),
    }
    let message = match error {
        Error::Database(_) if code == Code::Unavailable => {
            "the database cannot be reached: try again".to_owned()
        }
        Error::Database(_) if code == Code::Aborted => {
            "other changes to the same rows were faster, again and again: try again".to_owned()
        }
        Error::Database(_) => "the database failed: see the server's log".to_owned(),
        other => other.to_string(),
    };
    Status::new(code, cut(&message, MESSAGE_BYTES_MAX))
}

fn code(error: &Error) -> Code {
    match error {
        Error::Refused(refusal) => refusal_code(refusal),
        Error::Invalid(_) => Code::InvalidArgument,
        Error::NotFound(_) => Code::NotFound,
        Error::Conflict(_) | Error::TurnUnderWay(_) | Error::NotInitialized => Code::FailedPrecondition,
        Error::HeartbeatLost
        | Error::Sealed(_)
        | Error::IssuerUnavailable(_)
        | Error::ApiServerUnavailable(_) => Code::Unavailable,
        Error::Database(cause) => database_code(error, cause),
        Error::Corrupt(_) | Error::Integrity { .. } => Code::DataLoss,
        Error::Entropy => Code::Internal,
        Error::Busy | Error::RootChanged => Code::Aborted,
        Error::Overloaded | Error::CallerOverloaded { .. } => Code::ResourceExhausted,
        Error::TooSlow | Error::TurnWaits { .. } => Code::DeadlineExceeded,
    }
}

fn refusal_code(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::Token { .. } | Refusal::Review { .. } | Refusal::OperatorToken => Code::Unauthenticated,
        Refusal::AlreadyInitialized | Refusal::ApprovalNeeded { .. } | Refusal::ApprovalUnfit(_) => {
            Code::FailedPrecondition
        }
        Refusal::Items { refused, .. } if refused.is_empty() => Code::NotFound,
        // Nothing was decided: to be tried again.
        Refusal::Condition { failure: ConditionFailure::Busy, .. } => Code::Unavailable,
        Refusal::BootstrapToken
        | Refusal::NotADriver { .. }
        | Refusal::DriverAsPod { .. }
        | Refusal::DriverAsOperator { .. }
        | Refusal::IssuerMismatch
        | Refusal::NodeUnknown(..)
        | Refusal::NodeMismatch
        | Refusal::DriverCertificateMissing
        | Refusal::DriverCertificateMismatch
        | Refusal::DriverCertificateExpired
        | Refusal::DriverNodeUnknown
        | Refusal::RoleMissing { .. }
        | Refusal::RoleNotBound { .. }
        | Refusal::Condition { .. }
        | Refusal::LeaseEnded { .. }
        | Refusal::OperatorNotBound { .. }
        | Refusal::OperatorForbidden { .. }
        | Refusal::PathNotGranted { .. }
        | Refusal::Items { .. } => Code::PermissionDenied,
    }
}

fn database_code(error: &Error, cause: &sqlx::Error) -> Code {
    if error.is_transient_conflict() || error.is_lock_timeout() {
        return Code::Aborted;
    }
    match cause {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => Code::Unavailable,
        // Class 57 is operator intervention (shutdown, crash recovery), class 53 insufficient resources (disk full,
        // too many connections), class 08 a broken connection, 25P03 one that was broken because this replica was
        // paused in the middle of a transaction.
        _ => match error.sqlstate() {
            Some(code) if ["57", "53", "08", "25P03"].iter().any(|class| code.starts_with(class)) => {
                Code::Unavailable
            }
            _ => Code::Internal,
        },
    }
}
