//! The plaintext form of a secret version: its fields, by name.
//!
//! ```text
//! format u8 = 1 ‖ count u32 ‖ count × (name length u32 ‖ name ‖ value length u32 ‖ value)
//! ```
//!
//! Integers are big-endian, names UTF-8 in strictly ascending byte order; so the same fields have one encoding.

use std::collections::{BTreeMap, btree_map};

use crate::secret::SecretBytes;

const FORMAT: u8 = 1;
const LENGTH_BYTES: usize = size_of::<u32>();

/// Fields of a secret version, in the byte order of their names. Values are wiped on drop; there is no `Debug`.
///
/// ```compile_fail
/// let shown = format!("{:?}", keyfold_core::payload::Fields::new());
/// ```
#[derive(Default)]
pub struct Fields(BTreeMap<String, SecretBytes>);

impl Fields {
    /// No fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a field and returns the value that it had before.
    pub fn insert(&mut self, name: String, value: SecretBytes) -> Option<SecretBytes> {
        self.0.insert(name, value)
    }

    /// Fields in order.
    pub fn iter(&self) -> btree_map::Iter<'_, String, SecretBytes> {
        self.0.iter()
    }

    /// Number of fields.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no fields.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The plaintext to seal.
    ///
    /// # Panics
    /// On a name or value of 4 GiB; both are limited to far less where they enter.
    pub fn encode(&self) -> SecretBytes {
        // Room for all from the start: growing would leave a copy of the values behind.
        let mut out = Vec::with_capacity(self.encoded_len());
        out.push(FORMAT);
        write_len(&mut out, self.0.len());
        for (name, value) in &self.0 {
            write_len(&mut out, name.len());
            out.extend_from_slice(name.as_bytes());
            write_len(&mut out, value.len());
            out.extend_from_slice(value.expose());
        }
        SecretBytes::new(out)
    }

    /// Reads exactly what [`Fields::encode`] writes, and refuses all else. The plaintext is wiped in any case.
    pub fn decode(plaintext: SecretBytes) -> Result<Self, PayloadError> {
        let mut rest = plaintext.expose();
        match take(&mut rest, 1)? {
            [FORMAT] => {}
            other => return Err(PayloadError::UnknownFormat(other[0])),
        }
        let count = read_len(&mut rest)?;
        let mut fields = Self::new();
        for _ in 0..count {
            let name = take_prefixed(&mut rest)?;
            let name = str::from_utf8(name).map_err(|_| PayloadError::NameNotUtf8)?;
            let value = SecretBytes::new(take_prefixed(&mut rest)?.to_vec());
            if fields.0.last_key_value().is_some_and(|(last, _)| last.as_str() >= name) {
                return Err(PayloadError::NotAscending);
            }
            fields.insert(name.to_owned(), value);
        }
        if rest.is_empty() { Ok(fields) } else { Err(PayloadError::TrailingBytes) }
    }

    fn encoded_len(&self) -> usize {
        let fields = self.0.iter().map(|(name, value)| 2 * LENGTH_BYTES + name.len() + value.len());
        1 + LENGTH_BYTES + fields.sum::<usize>()
    }
}

impl IntoIterator for Fields {
    type Item = (String, SecretBytes);
    type IntoIter = btree_map::IntoIter<String, SecretBytes>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Fields {
    type Item = (&'a String, &'a SecretBytes);
    type IntoIter = btree_map::Iter<'a, String, SecretBytes>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

fn write_len(out: &mut Vec<u8>, len: usize) {
    let len = u32::try_from(len).expect("names and values are shorter than 4 GiB");
    out.extend_from_slice(&len.to_be_bytes());
}

fn take_prefixed<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], PayloadError> {
    let len = read_len(rest)?;
    take(rest, len as usize)
}

fn read_len(rest: &mut &[u8]) -> Result<u32, PayloadError> {
    let (len, after) = rest.split_first_chunk().ok_or(PayloadError::TooShort)?;
    *rest = after;
    Ok(u32::from_be_bytes(*len))
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], PayloadError> {
    let (first, after) = rest.split_at_checked(len).ok_or(PayloadError::TooShort)?;
    *rest = after;
    Ok(first)
}

/// Why a plaintext is not a payload. It has passed authentication, so this means another release or a fault of
/// this one, not tampering. Carries no material.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// The first byte names another format.
    #[error("payload format {0} is not known to this release")]
    UnknownFormat(u8),
    /// It ends inside a field.
    #[error("the payload ends too early")]
    TooShort,
    /// A field name is not UTF-8.
    #[error("a field name of the payload is not UTF-8")]
    NameNotUtf8,
    /// Field names are out of order, or one occurs twice.
    #[error("the field names of the payload are not in ascending order")]
    NotAscending,
    /// Something follows the last field.
    #[error("bytes follow the last field of the payload")]
    TrailingBytes,
}
