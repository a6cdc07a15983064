//! The driver's own certificate: a new key each time, and the server's word that it is this node's.

use std::{path::Path, time::Duration};

use keyfold_core::foreign_text::escaped;
use keyfold_proto::{
    channel::{ChannelError, ClientIdentity},
    keyfold::v1::{IssueDriverCertificateRequest, certificate_service_client::CertificateServiceClient},
};
use rcgen::{CertificateParams, DnType, KeyPair};
use time::OffsetDateTime;
use tonic::{Request, Status, transport::Channel};

use crate::broker_client::{BrokerError, authorization, is_final};

/// Longest wait for the server. A publish waits for the first certificate, and must have time for itself.
const REQUEST_MAX: Duration = Duration::from_secs(5);

/// A certificate of the internal authority with its key, which is in memory only.
pub struct Certificate {
    /// What is shown to the server.
    pub identity: ClientIdentity,
    /// The authorities that sign for servers, in PEM.
    pub bundle: String,
    /// When to ask for another.
    pub renew_at: OffsetDateTime,
    /// Its end.
    pub expires_at: OffsetDateTime,
}

/// Why there is no certificate. The text is for the log.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// No key could be made.
    #[error("no key can be made: {0}")]
    Key(#[from] rcgen::Error),
    /// The driver's own token cannot be used.
    #[error(transparent)]
    OwnToken(#[from] BrokerError),
    /// The authorities to trust cannot be used.
    #[error(transparent)]
    Channel(ChannelError),
    /// The server refused, or is away.
    #[error("the server gave none: {}", escaped(.0.message()))]
    Server(Box<Status>),
    /// It did not answer in time.
    #[error("the server did not answer in time")]
    TooSlow,
    /// What came is no certificate.
    #[error("the server's answer names no time at which it ends")]
    Endless,
}

impl CertificateError {
    /// That the server is away, if that is why.
    pub fn away(&self) -> Option<Status> {
        match self {
            Self::Server(status) if !is_final(status) => Some(Status::clone(status)),
            Self::TooSlow => Some(Status::deadline_exceeded(self.to_string())),
            _ => None,
        }
    }
}

/// Asks for a certificate for a new key.
///
/// # Errors
/// When the server refuses or is away, or the driver has no token.
pub async fn ask(
    channel: Channel,
    token_file: &Path,
    now: OffsetDateTime,
) -> Result<Certificate, CertificateError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    // The server looks at the key alone.
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "keyfold-csi");
    let certificate_request = params.serialize_request(&key)?.der().to_vec();
    let mut request = Request::new(IssueDriverCertificateRequest { certificate_request });
    request.metadata_mut().insert("authorization", authorization(token_file).await?);
    let mut service = CertificateServiceClient::new(channel);
    let issued = tokio::time::timeout(REQUEST_MAX, service.issue_driver_certificate(request))
        .await
        .map_err(|_| CertificateError::TooSlow)?
        .map_err(|status| CertificateError::Server(Box::new(status)))?
        .into_inner();
    let expires_at = issued
        .expires_at
        .and_then(|at| OffsetDateTime::from_unix_timestamp(at.seconds).ok())
        .ok_or(CertificateError::Endless)?;
    Ok(Certificate {
        identity: ClientIdentity::new(issued.chain, key.serialize_der()),
        bundle: issued.bundle,
        renew_at: now + (expires_at - now) * 2 / 3,
        expires_at,
    })
}
