//! Suites: HKDF (RFC 5869) with a hash of the suite's own for derivation, AES-256-GCM (NIST SP 800-38D) for encryption.

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit};
use ring::hkdf::{Algorithm, HKDF_SHA256, HKDF_SHA512, KeyType, Prk, Salt};
use uuid::Uuid;
use zeroize::Zeroize;

use crate::secret::{Key, KeyMaterial, wiping_stack};

pub(super) const SALT_BYTES: usize = 32;
pub(super) const NONCE_BYTES: usize = 12;
pub(super) const COMMITMENT_BYTES: usize = 32;
pub(super) const TAG_BYTES: usize = 16;

const ROOT_KEY_ID_INFO: &[u8] = b"keyfold/v1/root-key-id";
const RECOVERY_KEY_ID_INFO: &[u8] = b"keyfold/v1/recovery-key-id";

/// How a blob is sealed. Its header names the suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suite {
    /// HKDF-SHA512. What it sealed is opened for ever; nothing new is sealed with it.
    One,
    /// HKDF-SHA256.
    Two,
}

impl Suite {
    /// What everything new is sealed with.
    pub(super) const SEALING: Self = Self::Two;

    pub(super) fn number(self) -> u16 {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }

    pub(super) fn numbered(number: u16) -> Option<Self> {
        [Self::One, Self::Two].into_iter().find(|suite| suite.number() == number)
    }

    pub(super) fn derive(self, key: &dyn KeyMaterial, salt: &[u8; SALT_BYTES]) -> Derived {
        let (hash, encryption_info, commitment_info): (_, &[u8], &[u8]) = match self {
            Self::One => {
                (HKDF_SHA512, b"keyfold/v1/suite-1/encryption-key", b"keyfold/v1/suite-1/commitment")
            }
            Self::Two => {
                (HKDF_SHA256, b"keyfold/v1/suite-2/encryption-key", b"keyfold/v1/suite-2/commitment")
            }
        };
        let prk = extract(hash, salt, key.expose());
        let (encryption_key, ()) = Key::fill_with(|out| expand(&prk, encryption_info, out));
        let mut commitment = [0; COMMITMENT_BYTES];
        expand(&prk, commitment_info, &mut commitment);
        Derived { encryption_key, commitment }
    }
}

/// What one blob needs from the sealing key. The commitment is public: it stands in the header.
pub(super) struct Derived {
    pub(super) encryption_key: Key,
    pub(super) commitment: [u8; COMMITMENT_BYTES],
}

/// The identifier of a root key: a UUID version 8 (RFC 9562, section 5.8) derived from the key by HKDF-SHA512
/// without a salt. Nobody types it, so it cannot name another key than the one in use.
pub fn root_key_id(root: &Key) -> Uuid {
    key_id(root, ROOT_KEY_ID_INFO)
}

/// The identifier of a recovery key, made in the same way, but another than it would have as a root key.
pub fn recovery_key_id(recovery: &Key) -> Uuid {
    key_id(recovery, RECOVERY_KEY_ID_INFO)
}

fn key_id(key: &Key, info: &[u8]) -> Uuid {
    let mut id = [0; 16];
    wiping_stack(|| expand(&extract(HKDF_SHA512, &[], key.expose()), info, &mut id));
    uuid::Builder::from_custom_bytes(id).into_uuid()
}

/// The message is longer than GCM allows.
#[derive(Debug)]
pub(super) struct TooLong;

/// Encrypts `buffer` in place and returns the tag. On an error the buffer is wiped.
pub(super) fn encrypt(
    key: &Key,
    nonce: &[u8; NONCE_BYTES],
    associated_data: &[u8],
    buffer: &mut [u8],
) -> Result<[u8; TAG_BYTES], TooLong> {
    let cipher = Aes256Gcm::new(key.expose().into());
    match cipher.encrypt_inout_detached(nonce.into(), associated_data, (&mut *buffer).into()) {
        Ok(tag) => Ok(tag.into()),
        Err(_) => {
            buffer.zeroize();
            Err(TooLong)
        }
    }
}

/// The tag does not match.
#[derive(Debug)]
pub(super) struct BadTag;

/// Decrypts `buffer` in place. On a bad tag the buffer is wiped, so that a cipher that decrypts before it
/// verifies would leave nothing behind either (RUSTSEC-2023-0096).
pub(super) fn decrypt(
    key: &Key,
    nonce: &[u8; NONCE_BYTES],
    associated_data: &[u8],
    buffer: &mut [u8],
    tag: &[u8; TAG_BYTES],
) -> Result<(), BadTag> {
    let cipher = Aes256Gcm::new(key.expose().into());
    match cipher.decrypt_inout_detached(nonce.into(), associated_data, (&mut *buffer).into(), tag.into()) {
        Ok(()) => Ok(()),
        Err(_) => {
            buffer.zeroize();
            Err(BadTag)
        }
    }
}

pub(super) fn extract(hash: Algorithm, salt: &[u8], key: &[u8]) -> Prk {
    Salt::new(hash, salt).extract(key)
}

/// Fills `out`; at most 255 times as long as the hash (RFC 5869, section 2.3). All callers here ask for 32 bytes or fewer.
pub(super) fn expand(prk: &Prk, info: &[u8], out: &mut [u8]) {
    struct Length(usize);
    impl KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    prk.expand(&[info], Length(out.len()))
        .and_then(|okm| okm.fill(out))
        .expect("within the longest output of HKDF");
}
