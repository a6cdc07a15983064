//! The MACs of guarded rows: 4 bytes that name the version of the row-mac key, big-endian, then HMAC-SHA256.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use keyfold_core::{
    row_mac::{Row, RowEncoder, RowMac},
    secret::KeyMaterial,
};
use uuid::Uuid;

use crate::error::Error;

/// A row that carries a MAC. Implemented beside the table's queries, so that what is authenticated stands next to what
/// is written.
pub trait Guarded {
    /// The table.
    const TABLE: &'static str;

    /// Which row this is, for the log: nothing secret.
    fn which(&self) -> String;

    /// Adds the columns, always in the same order.
    fn encode(&self, row: RowEncoder) -> RowEncoder;
}

/// Makes and checks the MACs of guarded rows. Empty until the row-mac keys are loaded.
pub struct RowMacs {
    installation: Uuid,
    keys: RwLock<Keys>,
}

#[derive(Default)]
struct Keys {
    active: Option<u32>,
    by_version: HashMap<u32, Arc<RowMac>>,
}

/// One version of the row-mac key.
pub struct RowMacKey<'a> {
    /// Its version.
    pub version: u32,
    /// Its material.
    pub key: &'a dyn KeyMaterial,
    /// Whether new MACs are made with it.
    pub is_active: bool,
}

impl RowMacs {
    /// Of an installation, without keys yet.
    pub fn new(installation: Uuid) -> Self {
        Self { installation, keys: RwLock::default() }
    }

    /// The installation.
    pub fn installation(&self) -> Uuid {
        self.installation
    }

    /// Whether this is the material of the row-mac key of that version, in constant time; nothing when no such version is
    /// held.
    pub fn is_version(&self, version: u32, key: &dyn KeyMaterial) -> Option<bool> {
        // No table has that name, so that the tag is no row's MAC.
        let proof = Row::of("row-mac", self.installation).i64(version.into()).finish();
        Some(self.key(version)?.verify(&proof, &RowMac::new(key).tag(&proof)).is_ok())
    }

    /// Takes these keys instead of those before.
    pub fn load<'a>(&self, keys: impl Iterator<Item = RowMacKey<'a>>) {
        let mut loaded = Keys::default();
        for RowMacKey { version, key, is_active } in keys {
            loaded.by_version.insert(version, Arc::new(RowMac::new(key)));
            if is_active {
                loaded.active = Some(version);
            }
        }
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = loaded;
    }

    /// The version that makes new MACs.
    ///
    /// # Errors
    /// `Corrupt` when there is none.
    pub fn active_version(&self) -> Result<u32, Error> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.active.ok_or_else(|| Error::Corrupt("keks: no active key of purpose row-mac".into()))
    }

    /// The MAC of a row that is about to be written.
    ///
    /// # Errors
    /// `Corrupt` without an active key.
    pub fn seal<R: Guarded>(&self, row: &R) -> Result<Vec<u8>, Error> {
        let version = self.active_version()?;
        let key = self.key(version).ok_or_else(|| Error::Corrupt(format!("row-mac: no key {version}")))?;
        Ok([version.to_be_bytes().as_slice(), &key.tag(&self.encoded(row))].concat())
    }

    /// Checks a row that was read.
    ///
    /// # Errors
    /// `Integrity`, counted, when the MAC is not the row's, or names a key that is not there.
    pub fn check<R: Guarded>(&self, row: &R, mac: &[u8]) -> Result<(), Error> {
        let fits = mac.split_first_chunk().is_some_and(|(version, tag)| {
            let key = self.key(u32::from_be_bytes(*version));
            key.is_some_and(|key| key.verify(&self.encoded(row), tag).is_ok())
        });
        if fits {
            return Ok(());
        }
        Err(failed(R::TABLE, format!("{}: does not fit its MAC", row.which())))
    }

    /// Checks a row of which an older key made the MAC, and makes it anew; nothing to do for others.
    ///
    /// # Errors
    /// Those of [`Self::check`] and [`Self::seal`].
    pub fn reseal<R: Guarded>(&self, row: &R, mac: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        if mac.starts_with(&self.active_version()?.to_be_bytes()) {
            return Ok(None);
        }
        self.check(row, mac)?;
        self.seal(row).map(Some)
    }

    fn key(&self, version: u32) -> Option<Arc<RowMac>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).by_version.get(&version).cloned()
    }

    fn encoded<R: Guarded>(&self, row: &R) -> Row {
        row.encode(Row::of(R::TABLE, self.installation)).finish()
    }
}

/// A failure, counted.
pub fn failed(table: &'static str, what: String) -> Error {
    metrics::counter!("keyfold_integrity_failures_total", "table" => table).increment(1);
    Error::Integrity { table, what }
}
