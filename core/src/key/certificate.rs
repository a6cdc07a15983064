//! The destruction certificate: what was destroyed, on what proof, and what that does not reach. Signed, so that it can
//! be verified away from the server, by whoever has the installation's public key.

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::{
    digest::{SHA256, digest},
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    audit::to_ascii_json,
    encoder::Encoder,
    object::PublicKey,
    secret::{KeyMaterial, wiping_stack},
};

#[cfg(test)]
mod tests;

/// The format version that `v` states.
pub const VERSION: u8 = 1;

/// Goes before what is signed, so that a signature made for another purpose never fits.
const DOMAIN: &str = "keyfold/v1/destruction-certificate";

/// What the removal of a key from Postgres does not reach, for people.
pub const DOES_NOT_REACH: &str = "The key's wrapped material is gone from its row. Copies of it can remain in dead tuples \
until they are vacuumed, in write-ahead log that is kept or archived, on standbys, and in backups, until their retention \
ends or the version of the root-wrapping key that wrapped it is destroyed.";

/// What stands in a destruction certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DestructionCertificate {
    /// The version of this form: [`VERSION`].
    pub v: u8,
    /// The installation.
    pub installation: Uuid,
    /// The keyspace's name; none for a key of the installation.
    pub keyspace: Option<String>,
    /// The keyspace's id; none for a key of the installation.
    pub keyspace_id: Option<Uuid>,
    /// What the key was for.
    pub purpose: String,
    /// The key.
    pub kek: Uuid,
    /// Its version.
    pub version: u32,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it ceased to wrap; none for one that never did.
    #[serde(with = "time::serde::rfc3339::option")]
    pub deactivated_at: Option<OffsetDateTime>,
    /// When its material was removed.
    #[serde(with = "time::serde::rfc3339")]
    pub destroyed_at: OffsetDateTime,
    /// SHA-256 of the wrapped material that was removed, in hexadecimal: it can be told from a copy found later.
    pub wrapped_sha256: String,
    /// The proofs, each once, in the order of [`CheckName::ALL`].
    pub checks: Vec<Check>,
    /// What the destruction does not reach, such as [`DOES_NOT_REACH`].
    pub does_not_reach: String,
    /// Who wanted it: an operator, or the schedule.
    pub requested_by: String,
    /// When they did.
    #[serde(with = "time::serde::rfc3339")]
    pub requested_at: OffsetDateTime,
}

/// One proof that nothing was under the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Which.
    pub name: CheckName,
    /// What it found, for people; with tables and counts.
    pub found: String,
}

/// The five proofs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckName {
    /// Every foreign key to the key restricts its removal.
    ForeignKeys,
    /// No row of any table that references keys references it.
    References,
    /// No stored blob names it in its header.
    BlobHeaders,
    /// Nothing of it is in quarantine.
    Quarantine,
    /// Postgres itself refuses to remove material that is in use.
    Trigger,
}

impl CheckName {
    /// All, in their order.
    pub const ALL: [Self; 5] =
        [Self::ForeignKeys, Self::References, Self::BlobHeaders, Self::Quarantine, Self::Trigger];

    /// Its name in a certificate.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ForeignKeys => "foreign-keys",
            Self::References => "references",
            Self::BlobHeaders => "blob-headers",
            Self::Quarantine => "quarantine",
            Self::Trigger => "trigger",
        }
    }
}

impl DestructionCertificate {
    /// The certificate's exact bytes: one JSON object on one line, in ASCII.
    pub fn to_bytes(&self) -> Vec<u8> {
        to_ascii_json(self)
    }

    /// Signs the certificate with the Ed25519 key of this seed; `key_id` names it.
    pub fn sign(&self, seed: &(impl KeyMaterial + ?Sized), key_id: Uuid) -> SignedCertificate {
        let certificate = self.to_bytes();
        let message = signed_message(key_id, &certificate);
        let (mut public_key, mut signature) = ([0; 32], [0; 64]);
        wiping_stack(|| {
            let pair = Ed25519KeyPair::from_seed_unchecked(seed.expose()).expect("a seed is 32 bytes long");
            public_key.copy_from_slice(pair.public_key().as_ref());
            signature.copy_from_slice(pair.sign(&message).as_ref());
        });
        SignedCertificate { certificate, key_id, public_key: PublicKey(public_key), signature }
    }

    fn parse(bytes: &[u8]) -> Result<Self, CertificateError> {
        let certificate: Self =
            serde_json::from_slice(bytes).map_err(|error| CertificateError::NotRead(error.to_string()))?;
        if certificate.v != VERSION {
            return Err(CertificateError::OtherVersion { v: certificate.v });
        }
        if certificate.to_bytes() != bytes {
            return Err(CertificateError::NotRead("it is written in another way".into()));
        }
        if !certificate.checks.iter().map(|check| check.name).eq(CheckName::ALL) {
            return Err(CertificateError::Unproven {
                expected: CheckName::ALL.map(CheckName::as_str).join(", "),
            });
        }
        Ok(certificate)
    }
}

/// A certificate with its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedCertificate {
    /// The certificate's exact bytes.
    pub certificate: Vec<u8>,
    /// Names the key that signed.
    pub key_id: Uuid,
    /// The public half of the key that signed.
    pub public_key: PublicKey,
    /// Ed25519 (RFC 8032), over the domain, the key's id and the SHA-256 of the certificate's bytes.
    pub signature: [u8; 64],
}

/// How a signed certificate stands in a file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    certificate: String,
    key_id: Uuid,
    public_key: PublicKey,
    signature: String,
}

impl SignedCertificate {
    /// As a file holds it: one JSON object on one line, in ASCII.
    pub fn to_text(&self) -> String {
        let file = File {
            certificate: STANDARD.encode(&self.certificate),
            key_id: self.key_id,
            public_key: self.public_key,
            signature: STANDARD.encode(self.signature),
        };
        String::from_utf8(to_ascii_json(&file)).unwrap_or_default()
    }

    /// Reads a file's text, without verifying anything. White space around it does not count.
    ///
    /// # Errors
    /// When it is not exactly what [`SignedCertificate::to_text`] writes.
    pub fn from_text(text: &str) -> Result<Self, CertificateError> {
        let text = text.trim_ascii();
        let file: File =
            serde_json::from_str(text).map_err(|error| CertificateError::NotAFile(error.to_string()))?;
        let decode = |field: &str, value: &str| {
            let not_base64 = |_| CertificateError::NotAFile(format!("its {field} is not base64"));
            STANDARD.decode(value).map_err(not_base64)
        };
        let signature = decode("signature", &file.signature)?
            .try_into()
            .map_err(|_| CertificateError::NotAFile("its signature is not 64 bytes long".into()))?;
        let certificate = decode("certificate", &file.certificate)?;
        let read = Self { certificate, key_id: file.key_id, public_key: file.public_key, signature };
        if read.to_text() != text {
            return Err(CertificateError::NotAFile("it is written in another way".into()));
        }
        Ok(read)
    }

    /// The certificate, if the expected key has signed it.
    ///
    /// # Errors
    /// When another key has, the signature does not fit, or what is signed is no certificate of this form.
    pub fn verify(
        &self,
        expected_public_key: &PublicKey,
    ) -> Result<DestructionCertificate, CertificateError> {
        if self.public_key != *expected_public_key {
            let (found, expected) = (self.public_key.into(), (*expected_public_key).into());
            return Err(CertificateError::OtherKey { found, expected });
        }
        UnparsedPublicKey::new(&ED25519, expected_public_key.0)
            .verify(&signed_message(self.key_id, &self.certificate), &self.signature)
            .map_err(|_| CertificateError::WrongSignature)?;
        DestructionCertificate::parse(&self.certificate)
    }
}

/// The certificate in a file's text, if the expected key has signed it. Needs nothing but these two.
///
/// # Errors
/// Those of [`SignedCertificate::from_text`] and [`SignedCertificate::verify`].
pub fn verify(
    text: &str,
    expected_public_key: &PublicKey,
) -> Result<DestructionCertificate, CertificateError> {
    SignedCertificate::from_text(text)?.verify(expected_public_key)
}

fn signed_message(key_id: Uuid, certificate: &[u8]) -> Vec<u8> {
    Encoder::new(DOMAIN).uuid(key_id).bytes(digest(&SHA256, certificate).as_ref()).finish()
}

/// Why a text proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Some other file, or a damaged one.
    #[error("this is not a destruction certificate's file: {0}")]
    NotAFile(String),
    /// Not by whom it should be.
    #[error(
        "the certificate is signed by the key {found}, not by {expected}: it is another installation's, or forged"
    )]
    OtherKey {
        /// In base64, as the file names it.
        found: String,
        /// In base64.
        expected: String,
    },
    /// Changed after it was signed.
    #[error("the signature does not fit: the certificate was changed after it was signed")]
    WrongSignature,
    /// Signed, but unknown here.
    #[error(
        "the certificate is of version {v}, which this release does not know: verify it with a newer one"
    )]
    OtherVersion {
        /// As it states.
        v: u8,
    },
    /// Signed, but not of this form.
    #[error("what was signed is not a destruction certificate: {0}")]
    NotRead(String),
    /// Signed, but it proves too little.
    #[error("the certificate does not hold the five proofs, each once and in order: {expected}")]
    Unproven {
        /// Those that it should hold.
        expected: String,
    },
}
