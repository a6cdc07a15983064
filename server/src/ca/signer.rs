//! What an authority signs: certificates of this server and of drivers, with names of ours alone.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use keyfold_core::{entropy::Entropy, secret::SecretBytes};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKey, PublicKeyData as _, SanType,
    SerialNumber,
};
use rustls::{
    RootCertStore,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::AUTHORITY_LIFETIME;
use crate::{config::InternalTls, error::Error, store::ca_certificates::CaCertificate};

/// Room for clocks that differ: as much as Kubernetes' own signer leaves.
const BACKDATED: Duration = Duration::minutes(5);

/// Length of a serial number: RFC 5280, section 4.1.2.2, allows 20, and 64 random bits are the least that is usual.
const SERIAL_BYTES: usize = 16;

/// An uncompressed point of P-256: SEC 1, section 2.3.3.
const PUBLIC_KEY_BYTES: usize = 65;

/// An open authority. Dropped after use, so that its key is in memory only while it signs.
pub struct Signer {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    version: i32,
    expires_at: OffsetDateTime,
}

/// A signed certificate.
pub struct SignedCertificate {
    /// In PEM: the leaf alone, for the authority that signed it is a root.
    pub pem: String,
    /// In hexadecimal.
    pub serial: String,
    /// Its end.
    pub expires_at: OffsetDateTime,
}

/// A certificate of this server with its key, which is in memory only.
pub struct ServerCertificate {
    /// What is served.
    pub certified: Arc<CertifiedKey>,
    /// The version of the authority that signed it.
    pub authority_version: i32,
    /// That authority's name, in DER.
    pub authority_name: Vec<u8>,
    /// When to have another.
    pub renew_at: OffsetDateTime,
    /// Its end.
    pub expires_at: OffsetDateTime,
}

impl Signer {
    /// A new authority (ECDSA P-256): its certificate in DER, and its private key (PKCS#8).
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn create(
        installation: Uuid,
        version: i32,
        now: OffsetDateTime,
    ) -> Result<(Vec<u8>, SecretBytes), Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        // Clients tell authorities apart by their names.
        params.distinguished_name.push(DnType::OrganizationName, format!("Keyfold {installation}"));
        params.distinguished_name.push(DnType::CommonName, format!("Keyfold CA {version}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        (params.not_before, params.not_after) = (now - BACKDATED, now + AUTHORITY_LIFETIME);
        let key = KeyPair::generate().map_err(|_| Error::Entropy)?;
        let certificate = params.self_signed(&key).map_err(|_| Error::Entropy)?;
        Ok((certificate.der().to_vec(), SecretBytes::new(key.serialize_der())))
    }

    /// The authority of a row, with its private key.
    ///
    /// # Errors
    /// `Corrupt` when the two are not what `create` makes.
    pub fn open(row: &CaCertificate, private_key: &SecretBytes) -> Result<Self, Error> {
        let corrupt =
            |error| Error::Corrupt(format!("ca_certificates: version {} cannot sign: {error}", row.version));
        let pkcs8 = PrivatePkcs8KeyDer::from(private_key.expose());
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &PKCS_ECDSA_P256_SHA256).map_err(corrupt)?;
        let certificate = CertificateDer::from(row.certificate.clone());
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(corrupt)?;
        Ok(Self { issuer, certificate, version: row.version, expires_at: row.expires_at })
    }

    /// A certificate of this server, with a key of its own.
    ///
    /// # Errors
    /// When the system gives no randomness; `Corrupt` when nothing can be signed.
    pub fn server(
        &self,
        names: &InternalTls,
        lifetime: Duration,
        now: OffsetDateTime,
        entropy: &dyn Entropy,
    ) -> Result<ServerCertificate, Error> {
        let mut params = self.params("keyfold-server", lifetime, now, entropy)?;
        params.subject_alt_names = names.subject_alt_names()?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().map_err(|_| Error::Entropy)?;
        let leaf = params.signed_by(&key, &self.issuer).map_err(|error| self.cannot_sign(&error))?;
        let private_key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let certified =
            CertifiedKey::from_der(vec![leaf.der().clone()], private_key.into(), &default_provider())
                .map_err(|error| self.cannot_sign(&error))?;
        Ok(ServerCertificate {
            certified: Arc::new(certified),
            authority_version: self.version,
            authority_name: self.name()?,
            renew_at: now + (params.not_after - now) * 2 / 3,
            expires_at: params.not_after,
        })
    }

    /// A driver's certificate: for this key, and with this name alone.
    ///
    /// # Errors
    /// When there is no randomness; `Corrupt` when nothing can be signed.
    pub fn driver(
        &self,
        public_key: &PublicKey,
        uri: &str,
        lifetime: Duration,
        now: OffsetDateTime,
        entropy: &dyn Entropy,
    ) -> Result<SignedCertificate, Error> {
        let mut params = self.params("keyfold-csi", lifetime, now, entropy)?;
        let uri = uri.try_into().map_err(|error| self.cannot_sign(&error))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(public_key, &self.issuer).map_err(|error| self.cannot_sign(&error))?;
        let serial = params.serial_number.map(|serial| serial.to_bytes()).unwrap_or_default();
        Ok(SignedCertificate {
            pem: leaf.pem(),
            serial: serial.iter().map(|byte| format!("{byte:02x}")).collect(),
            expires_at: params.not_after,
        })
    }

    fn params(
        &self,
        name: &str,
        lifetime: Duration,
        now: OffsetDateTime,
        entropy: &dyn Entropy,
    ) -> Result<CertificateParams, Error> {
        let mut serial = [0; SERIAL_BYTES];
        entropy.fill(&mut serial)?;
        // Positive, and as long as it is: RFC 5280, section 4.1.2.2.
        serial[0] = serial[0] & 0x7f | 0x40;
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.not_before = now - BACKDATED;
        // X.509 counts whole seconds.
        let until = (now + lifetime).min(self.expires_at);
        params.not_after = until.replace_nanosecond(0).unwrap_or(until);
        Ok(params)
    }

    /// As clients name it among the authorities that they trust.
    fn name(&self) -> Result<Vec<u8>, Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).map_err(|error| self.cannot_sign(&error))?;
        Ok(roots.subjects().first().map(|name| name.as_ref().to_vec()).unwrap_or_default())
    }

    fn cannot_sign(&self, why: &dyn std::fmt::Display) -> Error {
        Error::Corrupt(format!("ca_certificates: version {} cannot sign: {why}", self.version))
    }
}

impl InternalTls {
    /// The names in the form that a certificate has.
    ///
    /// # Errors
    /// `Invalid` when there is none, or one cannot be the name of a host.
    pub fn subject_alt_names(&self) -> Result<Vec<SanType>, Error> {
        let dns = self.dns_names.iter().map(|name| {
            let not_a_name = || Error::Invalid(format!("tls.internal.dns_names: {name:?} is not a DNS name"));
            rustls::pki_types::DnsName::try_from(name.trim_start_matches("*.")).map_err(|_| not_a_name())?;
            name.as_str().try_into().map(SanType::DnsName).map_err(|_| not_a_name())
        });
        let names: Vec<_> = dns
            .chain(self.ip_addresses.iter().map(|ip| Ok(SanType::IpAddress(*ip))))
            .collect::<Result<_, _>>()?;
        if names.is_empty() {
            return Err(Error::Invalid(
                "tls.internal: name at least one of dns_names and ip_addresses, by which clients call".into(),
            ));
        }
        Ok(names)
    }
}

/// The public key of a certificate request (PKCS#10, DER), whose signature shows that whoever asks holds the private
/// one. Whatever names it asks for are passed over.
///
/// # Errors
/// `Invalid` when it is none, or its key is of another kind.
pub fn public_key(request: &[u8]) -> Result<PublicKey, Error> {
    let invalid = |why: &str| Error::Invalid(format!("certificate_request: {why}"));
    let request = CertificateSigningRequestParams::from_der(&request.into())
        .map_err(|_| invalid("not a PKCS#10 request in DER that its own key has signed"))?;
    let key = request.public_key;
    if *key.algorithm() != PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != PUBLIC_KEY_BYTES {
        return Err(invalid("its key must be one of ECDSA P-256"));
    }
    Ok(key)
}

/// A certificate in PEM (RFC 7468).
pub(super) fn pem(certificate: &CertificateDer<'_>) -> String {
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in STANDARD.encode(certificate).as_bytes().chunks(64) {
        pem.extend(line.iter().copied().map(char::from));
        pem.push('\n');
    }
    pem + "-----END CERTIFICATE-----\n"
}
