//! What can go wrong in an operation. The text of every variant may reach the caller, save `Database`, `Corrupt` and
//! `Integrity`, whose details are for the log.

use std::{borrow::Cow, sync::Arc};

use keyfold_core::{
    entropy::EntropyError, envelope::SealError, name::NameError, object::ObjectError, path::PathError,
    refusal::Refusal,
};

use crate::k8s::Unavailable;

/// Why an operation failed.
#[derive(Debug, Clone, thiserror::Error)]
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
    Database(Arc<sqlx::Error>),
    /// Stored data is not what was stored.
    #[error("stored data failed its integrity check: see the server's log")]
    Corrupt(String),
    /// A guarded row is not what a server wrote. The caller is told what `Corrupt` tells.
    #[error("stored data failed its integrity check: see the server's log")]
    Integrity {
        /// The row's table.
        table: &'static str,
        /// Which row, and what is wrong with it.
        what: String,
    },
    /// The system gave no randomness.
    #[error("the system gave no randomness")]
    Entropy,
    /// What the operation was decided on changed meanwhile.
    #[error("the app role or the issuer was changed meanwhile: try again")]
    Busy,
    /// The root key was changed, and this replica has not taken on what came with it.
    #[error("the root key was changed a moment ago: try again")]
    RootChanged,
    /// This replica cannot tell the others that it lives, so it may not hold the newest keys.
    #[error(
        "this replica has lost touch with the database, and does not encrypt until it has it again: try again, or ask another replica"
    )]
    HeartbeatLost,
    /// A new version of the key is being handed to the replicas already.
    #[error("version {0} of the key is being handed to the replicas already")]
    TurnUnderWay(u32),
    /// A turn has begun, and did not end within the request's time.
    #[error(
        "version {version} was made and becomes active by itself, do not rotate again; it waits for {waits_for}"
    )]
    TurnWaits {
        /// The new version.
        version: u32,
        /// What keeps it from being active.
        waits_for: String,
    },
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
            // One that waits for the turn under way gets no answer yet; who waits no longer gets a conflict.
            Self::Conflict(_) | Self::TurnUnderWay(_) => "conflict",
            Self::NotInitialized => "not-initialized",
            Self::Sealed(_) => "sealed",
            Self::IssuerUnavailable(_) => "issuer-unavailable",
            Self::ApiServerUnavailable(_) => "api-server-unavailable",
            Self::Database(_) => "database",
            Self::Corrupt(_) | Self::Integrity { .. } => "corrupt",
            Self::Entropy => "entropy",
            Self::Busy => "busy",
            Self::RootChanged => "root-changed",
            Self::HeartbeatLost => "heartbeat-lost",
            Self::TurnWaits { .. } => "turn-waits",
            Self::Overloaded => "overloaded",
            Self::CallerOverloaded { .. } => "caller-overloaded",
            Self::TooSlow => "too-slow",
        }
    }

    /// Whether this is an answer to the caller, which the audit log records as a refusal, rather than a failure of ours.
    pub fn is_answer(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Invalid(_) | Self::NotFound(_) | Self::Conflict(_))
    }

    /// Postgres did not answer in time.
    pub(crate) fn database_silent() -> Self {
        sqlx::Error::PoolTimedOut.into()
    }

    /// Whether Postgres did not answer, so that what was asked of it may or may not be done.
    pub(crate) fn is_database_silent(&self) -> bool {
        matches!(self, Self::Database(_)) && self.sqlstate().is_none()
    }

    /// The code that Postgres gave its refusal.
    pub(crate) fn sqlstate(&self) -> Option<Cow<'_, str>> {
        let Self::Database(cause) = self else { return None };
        cause.as_database_error()?.code()
    }

    /// Whether Postgres asks for the transaction to be run again: it lost against another, and left nothing behind.
    pub fn is_transient_conflict(&self) -> bool {
        // serialization_failure and deadlock_detected
        matches!(self.sqlstate().as_deref(), Some("40001" | "40P01"))
    }

    /// Whether a transaction held for too long what this one needed.
    pub fn is_lock_timeout(&self) -> bool {
        // lock_not_available
        self.sqlstate().as_deref() == Some("55P03")
    }

    /// Whether the work failed for what it was given or found, so that other work in the same transaction may succeed without it.
    pub(crate) fn is_of_its_work(&self) -> bool {
        // Classes: data exception, integrity constraint violation, program limit exceeded.
        let of_data = |code: &str| ["22", "23", "54"].iter().any(|class| code.starts_with(class));
        self.is_answer()
            || matches!(self, Self::Corrupt(_) | Self::Integrity { .. })
            || self.sqlstate().is_some_and(|code| of_data(&code))
    }
}

impl From<Unavailable> for Error {
    fn from(unavailable: Unavailable) -> Self {
        Self::ApiServerUnavailable(unavailable.issuer.to_string())
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let database = error.as_database_error();
        let code = database.and_then(|error| error.code());
        // What a key was to be wrapped by is no longer there.
        let constraint = database.and_then(|error| error.constraint());
        if matches!(constraint, Some("keks_rwk_id_fkey" | "recovery_keys_rwk_id_fkey")) {
            return Self::RootChanged;
        }
        // character_not_in_repertoire: Postgres's text holds every character of ours but NUL.
        match code.as_deref() {
            Some("22021") => Self::Invalid("a text of the request holds a NUL character".into()),
            // foreign_key_violation and unique_violation: another caller deleted or created the same at the same time.
            Some("23503" | "23505") => {
                Self::Conflict("another caller changed the same at the same time: try again".into())
            }
            _ => Self::Database(Arc::new(error)),
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
