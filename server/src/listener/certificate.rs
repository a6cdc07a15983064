//! The certificates that clients show.

use std::sync::Arc;

use keyfold_core::{
    identity::{NamedUid, WorkloadIdentity},
    name::ObjectName,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

/// What every driver's certificate is named with: `keyfold://driver/ISSUER/NODE/NODE_UID`.
const DRIVER: &str = "keyfold://driver/";

/// The driver that a certificate names. Made only of a certificate that the handshake has verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverCertificate {
    issuer: String,
    node: NamedUid,
    expires_at: OffsetDateTime,
}

/// What a connection's client has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientCertificate {
    /// It was not asked: the server did not know its authorities then.
    NotAsked,
    /// None, or one that names no driver.
    Missing,
    /// A driver's.
    Driver(Arc<DriverCertificate>),
}

impl ClientCertificate {
    /// What `chain`, which the handshake has verified, says.
    pub(super) fn verified(chain: Option<&[CertificateDer<'_>]>) -> Self {
        let driver = chain.and_then(<[_]>::first).and_then(DriverCertificate::read);
        driver.map_or(Self::Missing, |driver| Self::Driver(Arc::new(driver)))
    }
}

impl DriverCertificate {
    fn read(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let names = &certificate.subject_alternative_name().ok()??.value.general_names;
        let uri = names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(DRIVER),
            _ => None,
        })?;
        let mut parts = uri.split('/').map(str::to_owned);
        let (issuer, name, uid) = (parts.next()?, parts.next()?, parts.next()?);
        let expires_at = certificate.validity().not_after.to_datetime();
        let whole = parts.next().is_none();
        whole.then_some(Self { issuer, node: NamedUid { name, uid }, expires_at })
    }

    /// Whether it is this driver's, whose token was verified.
    pub fn is_of(&self, driver: &WorkloadIdentity) -> bool {
        self.issuer == driver.issuer.as_str() && Some(&self.node) == driver.node.as_ref()
    }

    /// Its end.
    pub fn expires_at(&self) -> OffsetDateTime {
        self.expires_at
    }
}

/// The name in the certificate of the driver of an issuer's node. Nothing when the node has a name or UID that Kubernetes
/// gives to none, and that might read as another's here.
pub fn driver_uri(issuer: &ObjectName, node: &NamedUid) -> Option<String> {
    let is_plain = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
    };
    (is_plain(&node.name) && is_plain(&node.uid))
        .then(|| format!("{DRIVER}{issuer}/{}/{}", node.name, node.uid))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn node(name: &str, uid: &str) -> NamedUid {
        NamedUid { name: name.into(), uid: uid.into() }
    }

    fn read(uris: &[&str]) -> Option<DriverCertificate> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        DriverCertificate::read(certificate.der())
    }

    #[test]
    fn a_certificate_says_what_it_was_named_with() {
        let uri = driver_uri(&"prod".try_into().unwrap(), &node("worker-1.example", "0b8a")).unwrap();
        let read = read(&[&uri]).unwrap();
        assert_eq!((read.issuer.as_str(), read.node), ("prod", node("worker-1.example", "0b8a")));
    }

    #[test]
    fn what_names_no_driver_is_none() {
        for uris in [
            &[][..],
            &["spiffe://driver/prod/node/uid"],
            &["keyfold://driver/prod/node"],
            &["keyfold://driver/prod/node/uid/more"],
            &["keyfold://server/prod/node/uid"],
        ] {
            assert_eq!(read(uris), None, "{uris:?}");
        }
    }

    #[test]
    fn attack_05_no_node_can_be_named_so_that_it_reads_as_another() {
        let issuer = "prod".try_into().unwrap();
        for (name, uid) in
            [("a/b", "uid"), ("a", "b/c"), ("", "uid"), ("a", ""), ("a%2fb", "uid"), ("ä", "uid")]
        {
            assert_eq!(driver_uri(&issuer, &node(name, uid)), None, "{name} {uid}");
        }
    }
}
