//! The fixed-length header of a blob.

use std::fmt;

use uuid::Uuid;

use super::OpenError;
use super::suite::{COMMITMENT_BYTES, NONCE_BYTES, SALT_BYTES, Suite, TAG_BYTES};

/// `KF` in ASCII.
const MAGIC: u16 = 0x4B46;

/// Length of the header, in bytes.
pub(super) const LEN_BYTES: usize = 2 + 2 + 16 + 4 + SALT_BYTES + NONCE_BYTES + COMMITMENT_BYTES;

/// Which key, and which version of it, sealed a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyRef {
    /// The key's identifier.
    pub id: Uuid,
    /// The key's version.
    pub version: u32,
}

impl fmt::Display for KeyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {} version {}", self.id, self.version)
    }
}

/// All that precedes the ciphertext, but for the magic number.
pub(super) struct Header {
    pub(super) suite: Suite,
    pub(super) key_ref: KeyRef,
    pub(super) salt: [u8; SALT_BYTES],
    pub(super) nonce: [u8; NONCE_BYTES],
    pub(super) commitment: [u8; COMMITMENT_BYTES],
}

impl Header {
    pub(super) fn encode(&self) -> [u8; LEN_BYTES] {
        let parts: [&[u8]; 7] = [
            &MAGIC.to_be_bytes(),
            &self.suite.number().to_be_bytes(),
            self.key_ref.id.as_bytes(),
            &self.key_ref.version.to_be_bytes(),
            &self.salt,
            &self.nonce,
            &self.commitment,
        ];
        let mut bytes = [0; LEN_BYTES];
        let mut rest = bytes.as_mut_slice();
        for part in parts {
            let (place, after) = rest.split_at_mut(part.len());
            place.copy_from_slice(part);
            rest = after;
        }
        bytes
    }

    /// Splits a blob into its header, ciphertext and tag.
    pub(super) fn parse(blob: &[u8]) -> Result<(Self, &[u8], &[u8; TAG_BYTES]), OpenError> {
        let mut rest = blob;
        if u16::from_be_bytes(take(&mut rest)?) != MAGIC {
            return Err(OpenError::NotABlob);
        }
        let number = u16::from_be_bytes(take(&mut rest)?);
        let suite = Suite::numbered(number).ok_or(OpenError::UnknownSuite(number))?;
        let id = Uuid::from_bytes(take(&mut rest)?);
        let version = u32::from_be_bytes(take(&mut rest)?);
        let header = Self {
            suite,
            key_ref: KeyRef { id, version },
            salt: take(&mut rest)?,
            nonce: take(&mut rest)?,
            commitment: take(&mut rest)?,
        };
        let (ciphertext, tag) = rest.split_last_chunk().ok_or(OpenError::NotABlob)?;
        Ok((header, ciphertext, tag))
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], OpenError> {
    let (first, after) = rest.split_first_chunk().ok_or(OpenError::NotABlob)?;
    *rest = after;
    Ok(*first)
}
