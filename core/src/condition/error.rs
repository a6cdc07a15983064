//! Why a text is no condition.

use std::fmt;

use crate::name::cut;

/// The longest reason, in bytes. It may quote the condition.
const REASON_BYTES_MAX: usize = 240;

/// Why a text is no condition: the line, where there is one, and what is wrong there. Or, if it
/// [is passing](Self::is_passing), why that could not be found out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConditionError {
    line: Option<u64>,
    reason: String,
    passing: bool,
}

impl ConditionError {
    pub(super) fn new(line: Option<u64>, reason: impl Into<String>) -> Self {
        Self { line, reason: reason.into(), passing: false }
    }

    /// Of a compilation that did not come to an end, through no fault of the condition.
    pub(super) fn passing(reason: impl Into<String>) -> Self {
        Self { line: None, reason: reason.into(), passing: true }
    }

    /// Whether it says nothing of the condition: the server has too much to do, or no threads. Then the same text is to
    /// be tried again. Otherwise the text is no condition, today or ever.
    pub fn is_passing(&self) -> bool {
        self.passing
    }

    /// Of an error of the engine, which draws the place over several lines:
    /// `--> FILE:LINE:COLUMN`, the source, a mark below it, `error: REASON`.
    pub(super) fn of_engine(error: &impl fmt::Display) -> Self {
        let text = error.to_string();
        let place = text.split_once(&format!("--> {}:", super::FILE)).map(|(_, rest)| rest);
        let line = place.and_then(|rest| rest.split(':').next()?.parse().ok());
        let reason = text.split_once("error: ").map_or(text.as_str(), |(_, reason)| reason);
        Self { line, reason: one_line(reason), passing: false }
    }
}

impl fmt::Display for ConditionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.reason),
            None => f.write_str(&self.reason),
        }
    }
}

/// The first line that says something, bounded, without what could steer a terminal.
fn one_line(text: &str) -> String {
    let line =
        text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("the engine gave no reason");
    let plain: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    cut(&plain, REASON_BYTES_MAX)
}
