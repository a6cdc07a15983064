//! Why a condition did not hold.

use std::fmt;

use super::ConditionError;

/// Why a condition did not hold. All of them refuse. The text is for operators: it tells of the condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConditionFailure {
    /// `allow` is false or undefined.
    #[error("allow is not true")]
    False,
    /// The evaluation failed, such as a function that was given a value of the wrong type, or `allow` is something
    /// else than true or false.
    #[error("{0}")]
    Error(String),
    /// It took longer than a condition may.
    #[error("it takes longer than {} ms", super::CPU_MAX.as_millis())]
    Timeout,
    /// It could not be evaluated now: too many evaluations of it run and wait, or the system gives no threads. This says
    /// nothing of the condition: to be tried again.
    #[error("too many evaluations of it run at the same time: try again")]
    Busy,
    /// It made a longer string than a condition may.
    #[error("it makes a string of more than {} bytes", super::builtins::STRING_BYTES_MAX)]
    Memory,
}

impl ConditionFailure {
    /// The stable code of this failure.
    pub fn code(&self) -> &'static str {
        match self {
            Self::False => "condition-false",
            Self::Error(_) => "condition-error",
            Self::Timeout => "condition-timeout",
            Self::Busy => "condition-busy",
            Self::Memory => "condition-memory",
        }
    }
}

pub(super) fn of_engine(error: &impl fmt::Display) -> ConditionFailure {
    ConditionFailure::Error(ConditionError::of_engine(error).to_string())
}
