//! Asks the Keyfold server for the secrets of one volume, and waits while the server is away.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use keyfold_core::{
    entropy::{Entropy as _, SystemEntropy},
    foreign_text::escaped,
};
use keyfold_proto::keyfold::v1::{
    IssueSecretsRequest, IssueSecretsResponse, workload_service_client::WorkloadServiceClient,
};
use tokio::time::Instant;
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
};
use zeroize::Zeroizing;

use crate::connection::{Connection, Heard};

/// Largest reply. 64 secrets of a few KiB are usual; the server limits one secret to 512 KiB.
const REPLY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Longest single attempt. Issuing takes milliseconds; with 100 s of waiting it stays below kubelet's two minutes.
const ATTEMPT_MAX: Duration = Duration::from_secs(15);
/// Longest pause after the first attempt; doubled with each further one.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
/// Longest pause between attempts, so that recovery is felt at once.
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// A client of the server's WorkloadService, on one shared connection.
#[derive(Clone)]
pub struct BrokerClient {
    connection: Arc<Connection>,
    token_file: PathBuf,
}

/// Why no secrets came.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The driver's own token cannot be used.
    #[error("the driver's own token in {file:?} cannot be used: {reason}")]
    OwnToken {
        /// `token_file` of the configuration.
        file: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The server answered with a refusal; its message is meant for the pod's author.
    #[error("{}", escaped(.0.message()))]
    Refused(Status),
    /// The server did not answer, or only that it cannot serve now.
    #[error("the Keyfold server is away (tried for {} s): {reason}", .waited.as_secs())]
    Unavailable {
        /// How long the driver tried.
        waited: Duration,
        /// The server's own words, or that it could not be reached.
        reason: String,
    },
}

impl BrokerClient {
    /// A client on that connection. The driver's own token is read from `token_file` for each attempt.
    pub fn new(connection: Arc<Connection>, token_file: &Path) -> Self {
        Self { connection, token_file: token_file.to_owned() }
    }

    /// Asks for the secrets. While the server is away, tries again until `wait` is over.
    ///
    /// # Errors
    /// When the server refuses, stays away, or the driver has no token of its own.
    pub async fn issue(
        &self,
        request: &IssueSecretsRequest,
        wait: Duration,
    ) -> Result<IssueSecretsResponse, BrokerError> {
        let start = Instant::now();
        let mut pause_max = PAUSE_FIRST;
        loop {
            let status = match self.attempt(request).await? {
                Ok(response) => return Ok(response),
                Err(status) if is_final(&status) => return Err(BrokerError::Refused(status)),
                Err(status) => status,
            };
            tracing::debug!(?status, "the server is away");
            let left = wait.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(BrokerError::Unavailable { waited: start.elapsed(), reason: reason(&status) });
            }
            tokio::time::sleep(jittered(pause_max).min(left)).await;
            pause_max = (pause_max * 2).min(PAUSE_MAX);
        }
    }

    async fn attempt(
        &self,
        request: &IssueSecretsRequest,
    ) -> Result<Result<IssueSecretsResponse, Status>, BrokerError> {
        let mut request = Request::new(request.clone());
        request.metadata_mut().insert("authorization", authorization(&self.token_file).await?);
        let answer = async {
            let (channel, made) = self.connection.channel().await?;
            let mut service = WorkloadServiceClient::new(channel).max_decoding_message_size(REPLY_BYTES_MAX);
            let answer = service.issue_secrets(request).await;
            self.connection.heard(made, heard(&answer));
            answer
        };
        match tokio::time::timeout(ATTEMPT_MAX, answer).await {
            Ok(result) => Ok(result.map(tonic::Response::into_inner)),
            Err(_) => Ok(Err(Status::deadline_exceeded("the server did not answer in time"))),
        }
    }
}

/// The metadata that proves the driver, with its token out of that file.
///
/// # Errors
/// `OwnToken`.
pub(crate) async fn authorization(token_file: &Path) -> Result<MetadataValue<Ascii>, BrokerError> {
    let unusable = |reason| BrokerError::OwnToken { file: token_file.to_owned(), reason };
    let token = tokio::fs::read(token_file).await.map(Zeroizing::new).map_err(|error| {
        tracing::error!(%error, file = %token_file.display(), "cannot read the driver's own token");
        unusable("the file cannot be read")
    })?;
    let token = str::from_utf8(&token).map_err(|_| unusable("it is not text"))?.trim();
    if token.is_empty() {
        return Err(unusable("it is empty"));
    }
    let bearer = Zeroizing::new(format!("Bearer {token}"));
    let mut value: MetadataValue<Ascii> =
        bearer.as_str().try_into().map_err(|_| unusable("it is not a token"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// What an answer says about the connection that it came on.
fn heard<T>(answer: &Result<T, Status>) -> Heard {
    match answer {
        Err(status) if is_lost_connection(status) => Heard::Nothing,
        Err(status) if status.code() == Code::Unavailable => Heard::Away,
        _ => Heard::Answer,
    }
}

/// Whether trying again is pointless. The server says RESOURCE_EXHAUSTED when it has too much to do, and
/// DEADLINE_EXCEEDED or CANCELLED when a call took too long. A status with a source was made on this side of a broken
/// connection.
pub(crate) fn is_final(status: &Status) -> bool {
    let away = matches!(
        status.code(),
        Code::Unavailable
            | Code::Aborted
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Cancelled
    );
    !away && !is_lost_connection(status)
}

fn is_lost_connection(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// The server's own words; of a broken connection only that it is broken, for the rest is in the log.
fn reason(status: &Status) -> String {
    if is_lost_connection(status) {
        tracing::warn!(?status, "the Keyfold server cannot be reached");
        return "it cannot be reached".into();
    }
    escaped(status.message())
}

/// A random part of `pause_max`, so that a node's volumes do not all ask at the same moment ("full jitter").
fn jittered(pause_max: Duration) -> Duration {
    let mut random = [0; 4];
    // Without randomness the full pause is right as well.
    match SystemEntropy.fill(&mut random) {
        Ok(()) => pause_max.mul_f64(f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX)),
        Err(_) => pause_max,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_waits_for_a_server_that_is_away_or_busy_and_for_nothing_else() {
        let retried = (1..=16).map(Code::from_i32).filter(|code| !is_final(&Status::new(*code, "")));
        let away = [
            Code::Cancelled,
            Code::DeadlineExceeded,
            Code::ResourceExhausted,
            Code::Aborted,
            Code::Unavailable,
        ];
        assert_eq!(retried.collect::<Vec<_>>(), away);
    }

    #[test]
    fn a_broken_connection_is_no_answer_whatever_its_code_and_its_cause_is_not_shown() {
        let broken = Status::from_error(std::io::Error::other("tcp connect error: 10.0.0.1").into());
        assert!(!is_final(&broken));
        assert_eq!(reason(&broken), "it cannot be reached");
        assert_eq!(reason(&Status::unavailable("sealed\u{1b}[2J")), "sealed\\u{1b}[2J");
    }
}
