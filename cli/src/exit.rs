//! How `keyfold` ends: exit codes, and the one line on stderr that says what failed, why and what to do.

use std::{io, io::Write as _, process::ExitCode};

use tonic::{Code, Status};

use crate::terminal::one_line;

/// The process's exit codes, as `keyfold --help` documents them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// `diff` found changes, as diff(1) says it, `lint` errors, `explain` a refusal, `policy test` or `recovery drill` a
    /// failure, or a certificate is not genuine.
    Found = 1,
    /// The arguments, or a file that they name, are wrong. clap's own errors use the same number.
    Usage = 2,
    /// The server knows no such object, secret or version.
    NotFound = 3,
    /// The token is missing or wrong, or its owner may not do this.
    Refused = 4,
    /// What stands does not allow the change: a lost check-and-set, an object that exists already.
    Conflict = 5,
    /// The server cannot be reached, is not serving, or did not answer in time.
    Unavailable = 6,
    /// The server refused the input as wrong.
    BadInput = 7,
    /// Anything else: a fault in the server, in Keyfold, or on this machine.
    Internal = 8,
}

/// The exit codes as the help and the documentation list them.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  `diff` found changes, `lint` errors, `explain` a refusal, `policy test` or `recovery drill` a failure, or a
     certificate is not genuine
  2  wrong arguments, or a file named by them is missing or wrong
  3  not found
  4  refused: no valid token, or no right to do this
  5  conflict: check-and-set lost, already exists, or not possible in the present state
  6  unavailable: server not reachable, not serving, too busy or too slow; try again
  7  the server refused the input as wrong
  8  any other failure";

const NO_CONNECTION: &str = "Check --server and --ca-file, and that the server is running";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// A failed command. Its `Display` form is one line that cannot steer a terminal: what failed, why, what to do.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    what: String,
    why: String,
    advice: Option<String>,
}

impl Failure {
    /// `what` failed (such as `cannot write secret payments/db`) because of `why`; both without a final stop.
    pub fn new(exit: Exit, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { exit, what: what.into(), why: why.into(), advice: None }
    }

    /// Adds what the reader can do about it, without a final stop.
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// A wrong argument, or a wrong file named by one.
    pub fn usage(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(Exit::Usage, what, why)
    }

    /// A failure of this machine, such as a full disk.
    pub fn io(what: impl Into<String>, error: &io::Error) -> Self {
        Self::new(Exit::Internal, what, io_reason(error))
    }

    /// A call that the server, or the way to it, did not complete.
    pub fn rpc(what: impl Into<String>, status: &Status) -> Self {
        let (exit, advice) = match (status.code(), std::error::Error::source(status)) {
            // A status with a cause was made on this side: there was no connection, or it broke during the call.
            (Code::Unavailable, Some(_)) => (Exit::Unavailable, Some(NO_CONNECTION)),
            (Code::Unknown, Some(_)) => judge(Code::Cancelled),
            (code, _) => judge(code),
        };
        let failure = Self::new(exit, what, status_reason(status));
        match advice {
            Some(advice) => failure.advise(advice),
            None => failure,
        }
    }

    /// The exit code that the process ends with.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// Writes the line to stderr and gives the exit code.
    pub fn report(&self) -> ExitCode {
        // Nobody is left to tell when stderr is closed; the exit code still says it.
        let _ = writeln!(io::stderr(), "keyfold: {self}");
        self.exit.into()
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stop = |text: &str| if text.ends_with(['.', '!', '?']) { "" } else { "." };
        let why = one_line(&self.why);
        write!(f, "{}: {why}{}", one_line(&self.what), stop(&why))?;
        match self.advice.as_deref().map(one_line) {
            Some(advice) => write!(f, " {advice}{}", stop(&advice)),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

/// The system's message without Rust's `(os error 2)`, which tells an operator nothing more.
pub fn io_reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error ").next().unwrap_or_default().to_owned()
}

fn judge(code: Code) -> (Exit, Option<&'static str>) {
    match code {
        Code::Ok => (Exit::Internal, None),
        Code::NotFound => (Exit::NotFound, None),
        Code::Unauthenticated => {
            (Exit::Refused, Some("Check that the token's file holds a valid token of this installation"))
        }
        Code::PermissionDenied => (Exit::Refused, None),
        Code::AlreadyExists | Code::FailedPrecondition => (Exit::Conflict, None),
        Code::Unavailable | Code::Aborted | Code::ResourceExhausted => {
            (Exit::Unavailable, Some("Try again in a moment"))
        }
        Code::DeadlineExceeded | Code::Cancelled => {
            (Exit::Unavailable, Some("Look at what stands before you try again: the call may have been done"))
        }
        Code::InvalidArgument | Code::OutOfRange => (Exit::BadInput, None),
        Code::Unimplemented => {
            (Exit::Internal, Some("Use a `keyfold` of the server's version (`keyfold status` shows it)"))
        }
        Code::Unknown | Code::Internal | Code::DataLoss => {
            (Exit::Internal, Some("The server's log says more"))
        }
    }
}

/// The server's message; or, when the call never reached it, the innermost cause, since the outer ones only
/// say "transport error".
fn status_reason(status: &Status) -> String {
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(status);
    let mut reason = match status.message() {
        "" => status.code().description().to_owned(),
        message => message.to_owned(),
    };
    while let Some(error) = cause {
        reason = error.downcast_ref::<io::Error>().map_or_else(|| error.to_string(), io_reason);
        cause = error.source();
    }
    reason
}

#[cfg(test)]
mod tests;
