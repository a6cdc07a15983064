//! One share, and the text that people keep of it:
//!
//! ```text
//! kfs1-<set, 8 characters>-<index>-<value, 52 characters>-<checksum, 8 characters>
//! ```
//!
//! Set, value and checksum are in base 32; the index is a decimal number from 1. The checksum is the beginning of
//! SHA-256 over all before it, so that a slip of the pen is told from a wrong share.

use std::fmt::{Display, Formatter};

use ring::digest;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::base32;
use crate::secret::{Key, SecretBytes};

/// Version 1 of the form.
const PREFIX: &str = "kfs1";
const CHECKSUM_DOMAIN: &[u8] = b"keyfold/v1/share-checksum";
const CHECKSUM_BYTES: usize = 5;
/// Longest text that is looked at, with room for spaces and line breaks.
const TEXT_BYTES_MAX: usize = 256;

/// Names the shares that were made together: 40 random bits, shown as 8 characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetId(pub(super) [u8; SetId::LEN_BYTES]);

impl SetId {
    pub(super) const LEN_BYTES: usize = 5;

    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut id = Self([0; Self::LEN_BYTES]);
        base32::decode(text.as_bytes(), &mut id.0).map(|()| id)
    }
}

impl Display for SetId {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let mut text = Vec::new();
        base32::encode(&self.0, &mut text);
        f.write_str(&String::from_utf8_lossy(&text))
    }
}

/// One person's share of a key. Wiped on drop.
///
/// It cannot be printed, cloned or serialised:
///
/// ```compile_fail
/// fn shown(share: keyfold_core::shamir::Share) -> String { format!("{share:?}") }
/// ```
/// ```compile_fail
/// fn shown(share: keyfold_core::shamir::Share) -> String { format!("{share}") }
/// ```
/// ```compile_fail
/// fn copy(share: &keyfold_core::shamir::Share) -> keyfold_core::shamir::Share { Clone::clone(share) }
/// ```
/// ```compile_fail
/// fn text(share: &keyfold_core::shamir::Share) -> String { serde_json::to_string(share).unwrap() }
/// ```
/// Its text can be read where the reader says so:
///
/// ```
/// fn text(share: &keyfold_core::shamir::Share) -> keyfold_core::secret::SecretBytes { share.expose_text() }
/// ```
pub struct Share {
    set: SetId,
    index: u8,
    value: Key,
}

impl Share {
    /// Of a point: an index, and as many bytes as a key has.
    pub(super) fn at(set: SetId, point: &[u8]) -> Self {
        let (value, ()) = Key::fill_with(|place| place.copy_from_slice(&point[1..]));
        Self { set, index: point[0], value }
    }

    /// The point again. Wiping it is up to the caller.
    pub(super) fn point(&self) -> Vec<u8> {
        let mut point = Vec::with_capacity(1 + Key::LEN_BYTES);
        point.push(self.index);
        point.extend_from_slice(self.value.expose());
        point
    }

    pub(super) fn value(&self) -> &[u8] {
        self.value.expose()
    }

    /// Names the shares that were made together with it.
    pub fn set(&self) -> SetId {
        self.set
    }

    /// Its number among them, from 1.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// The text for the person who keeps it, in ASCII.
    pub fn expose_text(&self) -> SecretBytes {
        // Room for all from the start: growing would leave a copy behind.
        let mut text = Vec::with_capacity(TEXT_BYTES_MAX);
        text.extend_from_slice(PREFIX.as_bytes());
        text.push(b'-');
        base32::encode(&self.set.0, &mut text);
        text.extend_from_slice(format!("-{}-", self.index).as_bytes());
        base32::encode(self.value(), &mut text);
        text.push(b'-');
        base32::encode(&self.checksum(), &mut text);
        SecretBytes::new(text)
    }

    /// Reads a share's text. Case, spaces and line breaks do not matter.
    ///
    /// # Errors
    /// When it is not a share, or was not copied exactly; nothing of the text is quoted.
    pub fn parse(text: &str) -> Result<Self, ShareError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(ShareError::NotAShare);
        }
        let mut compact = Zeroizing::new(Vec::with_capacity(text.len()));
        compact.extend(
            text.bytes().filter(|byte| !byte.is_ascii_whitespace()).map(|byte| byte.to_ascii_lowercase()),
        );
        let parts: Vec<_> = compact.split(|byte| *byte == b'-').collect();
        let [prefix, set, index, value, checksum] = parts[..] else { return Err(ShareError::NotAShare) };
        if prefix != PREFIX.as_bytes() {
            return Err(ShareError::NotAShare);
        }
        Self::from_parts(set, index, value, checksum).ok_or(ShareError::Miscopied)
    }

    fn from_parts(set: &[u8], index: &[u8], value: &[u8], checksum: &[u8]) -> Option<Self> {
        let mut id = SetId([0; SetId::LEN_BYTES]);
        base32::decode(set, &mut id.0)?;
        let index = parse_index(index)?;
        let (value, filled) = Key::fill_with(|place| base32::decode(value, place));
        filled?;
        let share = Self { set: id, index, value };
        let mut expected = [0; CHECKSUM_BYTES];
        base32::decode(checksum, &mut expected)?;
        bool::from(expected.ct_eq(&share.checksum())).then_some(share)
    }

    fn checksum(&self) -> [u8; CHECKSUM_BYTES] {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in [CHECKSUM_DOMAIN, &self.set.0, &[self.index], self.value()] {
            context.update(part);
        }
        let mut out = [0; CHECKSUM_BYTES];
        out.copy_from_slice(&context.finish().as_ref()[..CHECKSUM_BYTES]);
        out
    }
}

/// From 1 to 255, without a sign or zeros before it.
fn parse_index(text: &[u8]) -> Option<u8> {
    if !text.iter().all(u8::is_ascii_digit) || text.starts_with(b"0") {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Why a text is not a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// Another form.
    #[error("this is not a share: one has the form kfs1-…-…-…-…")]
    NotAShare,
    /// The form, but not the checksum.
    #[error("this share was not copied exactly: compare it with what was handed out")]
    Miscopied,
}
