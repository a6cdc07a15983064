//! Why an API server gave no answer that can be used, and whether that is because it is away.

use std::{error::Error, io, iter};

use http::StatusCode;
use hyper_util::client::legacy;
use keyfold_core::name::cut;

/// A file's errors can be long, for they quote it.
pub(super) const REASON_MAX_BYTES: usize = 300;

/// Why an API server could not be asked: for the log, never for a caller.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(super) struct Failure {
    reason: String,
    pub(super) presence: Presence,
}

/// What a failure tells of the API server. A role may do without it while it is away, so that what a caller can bring
/// about, as using up what we or it have to give, must never look like that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// It was not asked, or is there and gave no answer that can be used.
    Unknown,
    /// What answered in its place says that it is away.
    Away,
    /// Nobody answered.
    Silent,
}

impl Failure {
    pub(super) fn new(reason: impl AsRef<str>) -> Self {
        Self::of(Presence::Unknown, reason)
    }

    pub(super) fn silent(reason: impl AsRef<str>) -> Self {
        Self::of(Presence::Silent, reason)
    }

    /// An answer of this status to what was `asked`.
    pub(super) fn status(asked: &str, status: StatusCode) -> Self {
        Self::of(presence(status), format!("{asked} was answered {status}{}", advice(status)))
    }

    /// For errors of connections: the outer layers say what was done, the innermost what went wrong.
    pub(super) fn caused(doing: &str, error: &(dyn Error + 'static)) -> Self {
        let presence = if is_unreachable(error) { Presence::Silent } else { Presence::Unknown };
        let innermost = chain(error).last().unwrap_or(error);
        Self::of(presence, format!("{doing}: {innermost}"))
    }

    fn of(presence: Presence, reason: impl AsRef<str>) -> Self {
        Self { reason: cut(reason.as_ref(), REASON_MAX_BYTES), presence }
    }
}

/// What stands before API servers answers so for one that is away; one that shuts down says 503 itself. Not 500, which
/// is an error inside one that is there, and not 429, which is too much asked of it.
fn presence(status: StatusCode) -> Presence {
    match status {
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            Presence::Away
        }
        _ => Presence::Unknown,
    }
}

fn advice(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => ": it does not accept the server's own credentials",
        StatusCode::FORBIDDEN => ": the server lacks the rights of deploy/api-server/rbac.yaml",
        StatusCode::TOO_MANY_REQUESTS => ": it is asked for more than it gives",
        _ if status.is_redirection() => ": redirects are not followed",
        _ => "",
    }
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source())
}

/// Whether no connection came about, and that for what the other side or the network did.
fn is_unreachable(error: &(dyn Error + 'static)) -> bool {
    let connecting = |error: &(dyn Error + 'static)| {
        error.downcast_ref::<legacy::Error>().is_some_and(legacy::Error::is_connect)
    };
    let from_there = |error: &(dyn Error + 'static)| {
        error.is::<tower::timeout::error::Elapsed>()
            || error.downcast_ref::<io::Error>().is_some_and(is_from_there)
    };
    chain(error).any(connecting) && chain(error).any(from_there)
}

/// Not, for example, that this process has no file descriptors left, which callers could bring about; nor that a name
/// could not be resolved, which may have the same cause.
fn is_from_there(error: &io::Error) -> bool {
    if let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<io::Error>()) {
        return is_from_there(inner);
    }
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::TimedOut
            | io::ErrorKind::UnexpectedEof
            // A TLS handshake that failed.
            | io::ErrorKind::InvalidData
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_bounded() {
        assert!(Failure::new("x".repeat(100_000)).to_string().len() <= REASON_MAX_BYTES);
    }

    #[test]
    fn only_statuses_of_an_api_server_that_is_away_say_so() {
        for code in 300..600 {
            let status = StatusCode::from_u16(code).unwrap();
            let away = Failure::status("GET /", status).presence != Presence::Unknown;
            assert_eq!(away, matches!(code, 502..=504), "{code}");
        }
    }

    #[test]
    fn a_lack_of_our_own_is_not_the_other_sides() {
        // EMFILE, ENFILE, ENOMEM, EADDRNOTAVAIL, ENOBUFS: Linux' errno.
        for code in [24, 23, 12, 99, 105] {
            assert!(!is_from_there(&io::Error::from_raw_os_error(code)), "{code}");
        }
        assert!(!is_from_there(&io::Error::other("failed to lookup address information")));
        // ECONNREFUSED, EHOSTUNREACH, ENETUNREACH.
        for code in [111, 113, 101] {
            assert!(is_from_there(&io::Error::from_raw_os_error(code)), "{code}");
        }
        let handshake = io::Error::new(io::ErrorKind::InvalidData, "invalid peer certificate");
        assert!(is_from_there(&io::Error::other(handshake)), "hyper-rustls wraps it");
    }

    #[test]
    fn an_error_of_another_kind_is_no_outage() {
        let token_file = io::Error::from_raw_os_error(111);
        assert_eq!(Failure::caused("reading", &token_file).presence, Presence::Unknown);
    }
}
