//! The one form of everything encrypted at rest: a self-describing blob, bound to its place.
//!
//! ```text
//! magic u16 ‖ suite u16 ‖ key id 16 ‖ key version u32 ‖ salt 32 ‖ nonce 12 ‖ commitment 32 ‖ ciphertext ‖ tag 16
//! ```
//!
//! Integers are big-endian. A suite derives an encryption key and a commitment from the sealing key and a fresh
//! salt, and encrypts with AES-256-GCM. Suite 2 derives by HKDF-SHA256, and seals all that is new; suite 1, by HKDF-SHA512,
//! sealed what is older, and still opens it. All before the ciphertext is the header; it is authenticated together with the
//! [`AssociatedData`] of the blob's place.
//!
//! Because each blob has its own salt, and so its own encryption key, the limit of 2^32 random nonces for one
//! GCM key (NIST SP 800-38D, section 8.3) is out of reach. Because GCM alone lets a crafted ciphertext open
//! under two keys, the commitment is compared first: the wrong key is an error, never a second plaintext.

mod context;
mod header;
mod suite;
#[cfg(test)]
mod tests;

use subtle::ConstantTimeEq;

pub use context::{
    AssociatedData, CaKeyContext, DekContext, KekContext, PayloadContext, RecoveryContext, RwkContext,
    metadata_digest,
};
pub use header::KeyRef;
pub use suite::{recovery_key_id, root_key_id};

use crate::entropy::{Entropy, EntropyError};
use crate::secret::{KeyMaterial, SecretBytes, wiping_stack};
use header::Header;
use suite::Suite;

/// How much longer a blob is than its plaintext, in bytes: header and tag.
pub const OVERHEAD_BYTES: usize = header::LEN_BYTES + suite::TAG_BYTES;

/// Seals `plaintext` under `key` into a blob that opens only with the same key, `key_ref` and associated data.
pub fn seal(
    key: &dyn KeyMaterial,
    key_ref: KeyRef,
    associated_data: &AssociatedData,
    plaintext: &[u8],
    entropy: &dyn Entropy,
) -> Result<Vec<u8>, SealError> {
    wiping_stack(|| seal_blob(key, key_ref, associated_data, plaintext, entropy))
}

fn seal_blob(
    key: &dyn KeyMaterial,
    key_ref: KeyRef,
    associated_data: &AssociatedData,
    plaintext: &[u8],
    entropy: &dyn Entropy,
) -> Result<Vec<u8>, SealError> {
    let mut salt = [0; suite::SALT_BYTES];
    let mut nonce = [0; suite::NONCE_BYTES];
    entropy.fill(&mut salt)?;
    entropy.fill(&mut nonce)?;
    let suite = Suite::SEALING;
    let derived = suite.derive(key, &salt);
    let header = Header { suite, key_ref, salt, nonce, commitment: derived.commitment }.encode();

    // Room for all from the start: growing would leave a copy of the plaintext behind.
    let mut blob = Vec::with_capacity(plaintext.len() + OVERHEAD_BYTES);
    blob.extend_from_slice(&header);
    blob.extend_from_slice(plaintext);
    let bound = associated_data.after(&header);
    let tag = suite::encrypt(&derived.encryption_key, &nonce, &bound, &mut blob[header::LEN_BYTES..])
        .map_err(|_| SealError::TooLong)?;
    blob.extend_from_slice(&tag);
    Ok(blob)
}

/// Opens a blob. `key_ref` is the key that the caller's row names; a blob that names another is refused before
/// any cryptography. Nothing of the plaintext survives an error.
pub fn open(
    key: &dyn KeyMaterial,
    key_ref: KeyRef,
    associated_data: &AssociatedData,
    blob: &[u8],
) -> Result<SecretBytes, OpenError> {
    wiping_stack(|| open_blob(key, key_ref, associated_data, blob))
}

fn open_blob(
    key: &dyn KeyMaterial,
    key_ref: KeyRef,
    associated_data: &AssociatedData,
    blob: &[u8],
) -> Result<SecretBytes, OpenError> {
    let (header, ciphertext, tag) = Header::parse(blob)?;
    if header.key_ref != key_ref {
        return Err(OpenError::OtherKey { sealed_under: header.key_ref, expected: key_ref });
    }
    let derived = header.suite.derive(key, &header.salt);
    if !bool::from(derived.commitment.ct_eq(&header.commitment)) {
        return Err(OpenError::WrongKey);
    }

    let bound = associated_data.after(&header.encode());
    let mut plaintext = ciphertext.to_vec();
    suite::decrypt(&derived.encryption_key, &header.nonce, &bound, &mut plaintext, tag)
        .map_err(|_| OpenError::Tampered)?;
    Ok(SecretBytes::new(plaintext))
}

/// The key that a blob names in its header. Not authenticated until the blob is opened.
pub fn key_ref(blob: &[u8]) -> Result<KeyRef, OpenError> {
    Header::parse(blob).map(|(header, _, _)| header.key_ref)
}

/// Why nothing was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// No randomness for salt and nonce.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// Beyond what one AES-GCM message may hold: 2^36 - 32 bytes (NIST SP 800-38D, section 5.2.1.1).
    #[error("the plaintext is longer than AES-GCM allows")]
    TooLong,
}

/// Why a blob did not open. For operators: it says which layer refused, and carries no material.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Wrong magic number, or too short.
    #[error("not a sealed blob: its magic number or length is wrong")]
    NotABlob,
    /// Sealed by a newer release, or damaged.
    #[error("sealed with cipher suite {0}, which this release does not know")]
    UnknownSuite(u16),
    /// The header names another key than the row that holds the blob.
    #[error("sealed under {sealed_under}, but {expected} was expected")]
    OtherKey {
        /// Named by the blob.
        sealed_under: KeyRef,
        /// Named by the caller.
        expected: KeyRef,
    },
    /// The commitment does not match: the key's material is not what sealed the blob, or the salt or the
    /// commitment was changed.
    #[error("the key does not match the blob's commitment: wrong key material, or a damaged header")]
    WrongKey,
    /// The tag does not match: ciphertext, header or place are not what was sealed.
    #[error("the blob failed authentication: it was changed, or moved from another place")]
    Tampered,
}
