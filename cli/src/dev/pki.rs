//! Certificates of the development environment: a short-lived authority on this machine and what it signs.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use super::files::write_private;
use crate::exit::{Exit, Failure};

/// The names that every part on this machine is reached by.
pub const LOOPBACK: [&str; 2] = ["localhost", "127.0.0.1"];

const VALID_FOR: Duration = Duration::days(30);
/// Room for clocks that differ, between a host and a virtual machine for example.
const BACKDATED: Duration = Duration::hours(1);

/// A certificate authority whose key lives in memory only.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    not_before: OffsetDateTime,
}

impl Authority {
    /// A new authority (ECDSA P-256) named `name`. It and what it signs hold for 30 days from `now`.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn new(name: &str, now: OffsetDateTime) -> Result<Self, Failure> {
        let not_before = now - BACKDATED;
        let mut params = params(name, &[], not_before)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(|error| cannot_sign(name, &error))?;
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(|error| cannot_sign(name, &error))?;
        Ok(Self { issuer, not_before })
    }

    /// The authority's certificate, for those who shall trust it.
    pub fn certificate_pem(&self) -> String {
        self.issuer.pem()
    }

    /// A serving certificate for `names`, DNS names or IP addresses, with a key of its own.
    ///
    /// # Errors
    /// When a name is neither, or the system gives no randomness.
    pub fn serving(&self, names: &[&str]) -> Result<ServingCertificate, Failure> {
        let name = names.first().copied().unwrap_or("localhost");
        let mut params = params(name, names, self.not_before)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(|error| cannot_sign(name, &error))?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(|error| cannot_sign(name, &error))?;
        Ok(ServingCertificate {
            certificate_pem: certificate.pem(),
            key_pem: Zeroizing::new(key.serialize_pem()),
        })
    }
}

/// A server's certificate and private key (PKCS#8), both PEM.
pub struct ServingCertificate {
    /// The certificate alone: the authority that signed it is a root.
    pub certificate_pem: String,
    /// Its private key.
    pub key_pem: Zeroizing<String>,
}

impl ServingCertificate {
    /// Writes both files with mode 0600.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn write(&self, certificate: &Path, key: &Path) -> Result<(), Failure> {
        write_private(certificate, self.certificate_pem.as_bytes())?;
        write_private(key, self.key_pem.as_bytes())
    }
}

fn params(name: &str, names: &[&str], not_before: OffsetDateTime) -> Result<CertificateParams, Failure> {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).map_err(|error| cannot_sign(name, &error))?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = not_before;
    params.not_after = not_before + VALID_FOR;
    Ok(params)
}

fn cannot_sign(name: &str, error: &rcgen::Error) -> Failure {
    Failure::new(Exit::Internal, format!("cannot make a certificate for {name}"), error.to_string())
}
