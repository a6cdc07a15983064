//! What can go wrong in an operation. The text of every variant may reach the caller, save `Database` and `Corrupt`,
//! whose details are for the log.

use keyfold_core::{
    entropy::EntropyError, envelope::SealError, name::NameError, object::ObjectError, path::PathError,
    refusal::Refusal,
};

use crate::k8s::Unavailable;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller may not.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// What an operator named is not there.
    #[error("{0}")]
    NotFound(String),
    /// The state is not what the request requires.
    #[error("{0}")]
    Conflict(String),
    /// `init` has not been done.
    #[error("this installation is not initialised: run keyfold init")]
    NotInitialized,
    /// The root key or the database cannot be reached.
    #[error("the server is sealed: {0}")]
    Sealed(String),
    /// An issuer's keys cannot be had.
    #[error(
        "the keys of issuer {0} cannot be fetched, so its tokens cannot be checked: try again, or see the server's log"
    )]
    IssuerUnavailable(String),
    /// A cluster's API server cannot be asked.
    #[error(
        "the API server of issuer {0}, which must vouch for this caller, cannot be asked: try again, or see the server's log"
    )]
    ApiServerUnavailable(String),
    /// Postgres failed.
    #[error("the database failed")]
    Database(sqlx::Error),
    /// Stored data is not what was stored.
    #[error("stored data failed its integrity check: see the server's log")]
    Corrupt(String),
    /// The system gave no randomness.
    #[error("the system gave no randomness")]
    Entropy,
    /// What the operation was decided on changed meanwhile.
    #[error("the app role or the issuer was changed meanwhile: try again")]
    Busy,
    /// As many requests are in work as may be.
    #[error("the server is at its bound of requests in work: try again")]
    Overloaded,
    /// One caller has as many requests in work as it may have.
    #[error("{caller} has {max} requests in work already: try again")]
    CallerOverloaded {
        /// Who, in words.
        caller: &'static str,
        /// As many.
        max: usize,
    },
    /// The request took longer than it may.
    #[error("the request took too long: try again")]
    TooSlow,
}

impl Error {
    /// The stable code that audit entries keep.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::Invalid(_) => "invalid",
            Self::NotFound(_) => "not-found",
            Self::Conflict(_) => "conflict",
            Self::NotInitialized => "not-initialized",
            Self::Sealed(_) => "sealed",
            Self::IssuerUnavailable(_) => "issuer-unavailable",
            Self::ApiServerUnavailable(_) => "api-server-unavailable",
            Self::Database(_) => "database",
            Self::Corrupt(_) => "corrupt",
            Self::Entropy => "entropy",
            Self::Busy => "busy",
            Self::Overloaded => "overloaded",
            Self::CallerOverloaded { .. } => "caller-overloaded",
            Self::TooSlow => "too-slow",
        }
    }

    /// Whether this is an answer to the caller, which the audit log records as a refusal, rather than a failure of ours.
    pub fn is_answer(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Invalid(_) | Self::NotFound(_) | Self::Conflict(_))
    }

    /// Whether Postgres asks for the transaction to be run again: it lost against another, and left nothing behind.
    pub fn is_transient_conflict(&self) -> bool {
        let Self::Database(sqlx::Error::Database(error)) = self else { return false };
        // serialization_failure and deadlock_detected
        matches!(error.code().as_deref(), Some("40001" | "40P01"))
    }
}

impl From<Unavailable> for Error {
    fn from(unavailable: Unavailable) -> Self {
        Self::ApiServerUnavailable(unavailable.issuer.to_string())
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|error| error.code());
        // character_not_in_repertoire: Postgres's text holds every character of ours but NUL.
        match code.as_deref() {
            Some("22021") => Self::Invalid("a text of the request holds a NUL character".into()),
            // foreign_key_violation and unique_violation: another caller deleted or created the same at the same time.
            Some("23503" | "23505") => {
                Self::Conflict("another caller changed the same at the same time: try again".into())
            }
            _ => Self::Database(error),
        }
    }
}

impl From<EntropyError> for Error {
    fn from(_: EntropyError) -> Self {
        Self::Entropy
    }
}

impl From<SealError> for Error {
    fn from(_: SealError) -> Self {
        Self::Entropy
    }
}

impl From<PathError> for Error {
    fn from(error: PathError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<NameError> for Error {
    fn from(error: NameError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<ObjectError> for Error {
    fn from(error: ObjectError) -> Self {
        Self::Invalid(error.to_string())
    }
}
