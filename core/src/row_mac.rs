//! MACs over rows that steer what is read, so that somebody who can write to Postgres cannot change them unnoticed.

use std::fmt;

use ring::{
    hkdf::{HKDF_SHA256, Salt},
    hmac,
};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    encoder::Encoder,
    secret::{KeyMaterial, wiping_stack},
};

#[cfg(test)]
mod tests;

/// Sets the subkey apart from all else that might come from the same key.
const INFO: &[u8] = b"keyfold/v1/row-mac";

/// Length of a MAC.
pub const TAG_BYTES: usize = 32;

/// Makes and checks MACs: HMAC-SHA256 under a subkey of the key of purpose `row-mac`, by HKDF-SHA256 without a salt.
/// Of the subkey it keeps only the two states of the hash that HMAC begins with.
pub struct RowMac(Box<hmac::Key>);

impl fmt::Debug for RowMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RowMac")
    }
}

impl RowMac {
    /// Derives the subkey.
    pub fn new(key: &(impl KeyMaterial + ?Sized)) -> Self {
        Self(wiping_stack(|| {
            let prk = Salt::new(HKDF_SHA256, &[]).extract(key.expose());
            let okm =
                prk.expand(&[INFO], hmac::HMAC_SHA256).expect("32 bytes are within HKDF-SHA256's output");
            Box::new(hmac::Key::from(okm))
        }))
    }

    /// The MAC of a row.
    pub fn tag(&self, row: &Row) -> [u8; TAG_BYTES] {
        let mut tag = [0; TAG_BYTES];
        tag.copy_from_slice(hmac::sign(&self.0, &row.0).as_ref());
        tag
    }

    /// Checks a row's MAC in constant time.
    ///
    /// # Errors
    /// When it is not the row's.
    pub fn verify(&self, row: &Row, tag: &[u8]) -> Result<(), WrongMac> {
        hmac::verify(&self.0, &row.0, tag).map_err(|_| WrongMac)
    }
}

/// A row's MAC does not fit: the row, its MAC or the key is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the row does not fit its MAC: it was changed past the server, or moved from elsewhere")]
pub struct WrongMac;

/// What a MAC is over: the table's name, the installation, and fields in a fixed order. Each field states its type, and
/// its length where that varies, so that no two rows encode alike, whatever their tables' fields are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row(Vec<u8>);

impl Row {
    /// Begins a row of a table.
    pub fn of(table: &str, installation: Uuid) -> RowEncoder {
        RowEncoder(Encoder::new("keyfold/v1/row").string(table).uuid(installation))
    }
}

/// A row's encoding in the making.
#[must_use]
pub struct RowEncoder(Encoder);

impl RowEncoder {
    /// An identifier.
    pub fn uuid(self, id: Uuid) -> Self {
        Self(self.0.bytes(b"u").uuid(id))
    }

    /// A number.
    pub fn i64(self, number: i64) -> Self {
        Self(self.0.bytes(b"i").bytes(&number.to_be_bytes()))
    }

    /// A truth value.
    pub fn bool(self, value: bool) -> Self {
        Self(self.0.bytes(if value { b"t" } else { b"f" }))
    }

    /// A text.
    pub fn str(self, text: &str) -> Self {
        Self(self.0.bytes(b"s").string(text))
    }

    /// Bytes.
    pub fn bytes(self, bytes: &[u8]) -> Self {
        Self(self.0.bytes(b"b").sized(bytes))
    }

    /// A point in time, in whole microseconds as Postgres keeps it; what is finer is cut.
    pub fn time(self, at: OffsetDateTime) -> Self {
        let micros = at.unix_timestamp_nanos().div_euclid(1_000);
        Self(self.0.bytes(b"m").bytes(&i64::try_from(micros).unwrap_or(i64::MAX).to_be_bytes()))
    }

    /// A field that may be NULL; `encode` adds it if it is not: `row.option(at, RowEncoder::time)`.
    pub fn option<T>(self, value: Option<T>, encode: impl FnOnce(Self, T) -> Self) -> Self {
        match value {
            Some(value) => encode(self, value),
            None => Self(self.0.bytes(b"n")),
        }
    }

    /// The row.
    pub fn finish(self) -> Row {
        Row(self.0.finish())
    }
}
