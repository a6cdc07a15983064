//! The internal certificate authority, without I/O: what it is, what it signs, and when it is turned. Its private key
//! rests under a key of purpose `internal-ca`, and is open only while it signs.

pub mod keeper;
mod signer;
mod turn;

use std::sync::{Arc, PoisonError, RwLock};

use ring::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

pub use signer::{ServerCertificate, SignedCertificate, Signer, public_key};
pub use turn::{Keys, Step, due};

use crate::{config, store::ca_certificates::CaCertificate};

/// How long an authority's certificate holds. Half of that after it was made, its successor is.
pub const AUTHORITY_LIFETIME: Duration = Duration::days(2 * 365);

/// An authority that is trusted.
#[derive(Debug, Clone)]
pub struct Authority {
    /// Counts up from 1.
    pub version: i32,
    /// `next`, `active` or `retired`.
    pub state: String,
    /// Its certificate.
    pub certificate: CertificateDer<'static>,
    /// Its certificate's end.
    pub expires_at: OffsetDateTime,
}

impl Authority {
    /// SHA-256 of the certificate, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        digest(&SHA256, &self.certificate).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The authorities to trust: those that have not expired.
#[derive(Debug, Default)]
pub struct Bundle {
    /// Oldest first.
    pub authorities: Vec<Authority>,
    /// Their certificates in PEM.
    pub pem: String,
}

impl Bundle {
    /// Of rows whose MACs were checked.
    fn new(rows: &[CaCertificate], now: OffsetDateTime) -> Self {
        let trusted = rows.iter().filter(|row| row.expires_at > now);
        let authorities: Vec<_> = trusted
            .map(|row| Authority {
                version: row.version,
                state: row.state.clone(),
                certificate: row.certificate.clone().into(),
                expires_at: row.expires_at,
            })
            .collect();
        let pem = authorities.iter().map(|authority| signer::pem(&authority.certificate)).collect();
        Self { authorities, pem }
    }

    /// The version of the one that signs.
    pub fn active_version(&self) -> Option<i32> {
        self.authorities.iter().find(|authority| authority.state == "active").map(|active| active.version)
    }
}

/// What this replica knows of the internal authority, and how the operator wants it.
pub struct Authorities {
    /// How long certificates hold, and how long a new authority is trusted before it signs.
    pub config: config::Ca,
    bundle: RwLock<Arc<Bundle>>,
}

impl Authorities {
    /// Knows of none yet.
    pub fn new(config: config::Ca) -> Self {
        Self { config, bundle: RwLock::default() }
    }

    /// As the last pass found them; empty before.
    pub fn bundle(&self) -> Arc<Bundle> {
        Arc::clone(&self.bundle.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes on what a pass has read and checked.
    pub fn take(&self, rows: &[CaCertificate], now: OffsetDateTime) {
        let bundle = Arc::new(Bundle::new(rows, now));
        *self.bundle.write().unwrap_or_else(PoisonError::into_inner) = bundle;
    }
}
