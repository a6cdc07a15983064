//! The unsealed keys of one process: the root-wrapping key, and the KEKs that were needed so far.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use keyfold_core::{
    entropy::Entropy,
    envelope::{self, DekContext, KekContext, KeyRef, PayloadContext, RwkContext},
    payload::Fields,
    secret::Key,
};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{
    error::Error,
    keys::root::RootKeys,
    store::{
        deks::WrappedDek,
        keks::{self, PURPOSE_DATA, WrappedKek},
        root_wrapping_keys::WrappedRwk,
        secret_versions::StoredVersion,
    },
};

/// An open KEK, with the place that it was opened in.
#[derive(Clone)]
pub struct Kek {
    key: Arc<Key>,
    keyspace: Uuid,
    version: i32,
}

/// What the server can open while it is unsealed. Key material by id never changes, so what is cached is never stale.
pub struct Keyring {
    installation: Uuid,
    rwk: Key,
    rwk_ref: KeyRef,
    root_key_id: Uuid,
    keks: RwLock<HashMap<Uuid, Kek>>,
}

impl Keyring {
    /// Opens the root-wrapping key with the root key that sealed it.
    ///
    /// # Errors
    /// `Sealed` when that root key is not configured, or does not open it.
    pub fn unseal(installation: Uuid, stored: &WrappedRwk, roots: &RootKeys) -> Result<Self, Error> {
        let root = roots.by_id(stored.root_key_id)?;
        let rwk_ref = KeyRef { id: stored.id, version: number(stored.version)? };
        let context = RwkContext {
            installation,
            rwk: rwk_ref.id,
            rwk_version: rwk_ref.version,
            root_key_id: stored.root_key_id,
        };
        let sealed_under = KeyRef { id: stored.root_key_id, version: 1 };
        let rwk = envelope::open(root, sealed_under, &context.associated_data(), &stored.wrapped)
            .ok()
            .and_then(|bytes| Key::try_from(bytes.expose()).ok())
            .ok_or_else(|| Error::Sealed("the root key does not open the stored root-wrapping key".into()))?;
        Ok(Self { installation, rwk, rwk_ref, root_key_id: stored.root_key_id, keks: RwLock::default() })
    }

    /// Makes an installation's first root-wrapping key, sealed by the current root key.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn create(installation: Uuid, roots: &RootKeys, entropy: &dyn Entropy) -> Result<WrappedRwk, Error> {
        let (root, root_key_id) = roots.current();
        let rwk = Key::generate(entropy)?;
        let id = entropy.uuid()?;
        let context = RwkContext { installation, rwk: id, rwk_version: 1, root_key_id };
        let sealed_under = KeyRef { id: root_key_id, version: 1 };
        let wrapped = envelope::seal(root, sealed_under, &context.associated_data(), rwk.expose(), entropy)?;
        Ok(WrappedRwk { id, version: 1, root_key_id, wrapped })
    }

    /// The installation that every blob is bound to.
    pub fn installation(&self) -> Uuid {
        self.installation
    }

    /// Names the root key in use.
    pub fn root_key_id(&self) -> Uuid {
        self.root_key_id
    }

    /// Makes a KEK of that version for a keyspace.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn new_kek(&self, keyspace: Uuid, version: u32, entropy: &dyn Entropy) -> Result<WrappedKek, Error> {
        let id = entropy.uuid()?;
        let kek = Key::generate(entropy)?;
        let context = self.kek_context(keyspace, KeyRef { id, version });
        let wrapped =
            envelope::seal(&self.rwk, self.rwk_ref, &context.associated_data(), kek.expose(), entropy)?;
        Ok(WrappedKek {
            id,
            keyspace_id: keyspace,
            version: stored(version)?,
            rwk_id: self.rwk_ref.id,
            wrapped,
        })
    }

    /// The KEK that wraps a DEK of this keyspace, as its row names it; unwrapped now or earlier.
    ///
    /// # Errors
    /// `Corrupt` when it is not there, does not open, or belongs elsewhere; those of Postgres.
    pub async fn kek(
        &self,
        connection: &mut PgConnection,
        keyspace: Uuid,
        id: Uuid,
        version: i32,
    ) -> Result<Kek, Error> {
        let kek = match self.cached(id) {
            Some(kek) => kek,
            None => {
                let wrapped = keks::find(connection, id).await?;
                self.unwrap_kek(&wrapped.ok_or_else(|| Error::Corrupt(format!("keks: no row {id}")))?)?
            }
        };
        kek.in_place(id, keyspace, version)
    }

    /// A KEK out of its row, unwrapped now or earlier.
    ///
    /// # Errors
    /// `Corrupt` when it does not open, or was opened in another place.
    pub fn unwrap_kek(&self, wrapped: &WrappedKek) -> Result<Kek, Error> {
        if let Some(kek) = self.cached(wrapped.id) {
            return kek.in_place(wrapped.id, wrapped.keyspace_id, wrapped.version);
        }
        let kek_ref = KeyRef { id: wrapped.id, version: number(wrapped.version)? };
        let context = self.kek_context(wrapped.keyspace_id, kek_ref);
        let corrupt = |why: String| Error::Corrupt(format!("keks.wrapped of {}: {why}", wrapped.id));
        let bytes = envelope::open(&self.rwk, self.rwk_ref, &context.associated_data(), &wrapped.wrapped)
            .map_err(|error| corrupt(error.to_string()))?;
        let key = Arc::new(Key::try_from(bytes.expose()).map_err(|error| corrupt(error.to_string()))?);
        let kek = Kek { key, keyspace: wrapped.keyspace_id, version: wrapped.version };
        self.keks.write().unwrap_or_else(PoisonError::into_inner).insert(wrapped.id, kek.clone());
        Ok(kek)
    }

    fn cached(&self, id: Uuid) -> Option<Kek> {
        self.keks.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    fn kek_context(&self, keyspace: Uuid, kek: KeyRef) -> KekContext<'static> {
        KekContext {
            installation: self.installation,
            keyspace,
            purpose: PURPOSE_DATA,
            kek: kek.id,
            kek_version: kek.version,
            root_key_id: self.root_key_id,
        }
    }

    /// Encrypts a version's fields under a DEK of its own, and wraps that under the keyspace's active KEK.
    ///
    /// # Errors
    /// `Corrupt` when the KEK does not open; when there is no randomness.
    pub fn seal_version(
        &self,
        place: &VersionPlace<'_>,
        active: &WrappedKek,
        fields: &Fields,
        entropy: &dyn Entropy,
    ) -> Result<(Vec<u8>, WrappedDek), Error> {
        let dek_id = entropy.uuid()?;
        let dek = Key::generate(entropy)?;
        let dek_ref = KeyRef { id: dek_id, version: place.version };
        let payload = envelope::seal(
            &dek,
            dek_ref,
            &self.payload_context(place, dek_id).associated_data(),
            fields.encode().expose(),
            entropy,
        )?;
        let wrapped = WrappedDek {
            id: dek_id,
            secret_id: place.secret,
            version: stored(place.version)?,
            keyspace_id: place.keyspace,
            kek_id: active.id,
            kek_version: active.version,
            wrapped: Vec::new(),
        };
        let wrapped = self.wrap_dek(&dek, wrapped, active, entropy)?;
        Ok((payload, wrapped))
    }

    /// Decrypts a stored version.
    ///
    /// # Errors
    /// `Corrupt` when a key or the payload does not open in this place; those of Postgres.
    pub async fn open_version(
        &self,
        connection: &mut PgConnection,
        version: &StoredVersion,
    ) -> Result<Fields, Error> {
        let kek = self.kek(connection, version.keyspace_id, version.kek_id, version.kek_version).await?;
        let corrupt = |why: &dyn ToString| {
            Error::Corrupt(format!("{} version {}: {}", version.path, version.version, why.to_string()))
        };
        let dek = self.unwrap_dek(
            &kek,
            &WrappedDek {
                id: version.dek_id,
                secret_id: version.secret_id,
                version: version.version,
                keyspace_id: version.keyspace_id,
                kek_id: version.kek_id,
                kek_version: version.kek_version,
                wrapped: version.wrapped_dek.clone(),
            },
        )?;
        let place = VersionPlace {
            keyspace: version.keyspace_id,
            secret: version.secret_id,
            version: number(version.version)?,
            path: &version.path,
            created_at_micros: micros(version.created_at),
            created_by: &version.created_by,
        };
        let context = self.payload_context(&place, version.dek_id);
        let dek_ref = KeyRef { id: version.dek_id, version: place.version };
        let plaintext = envelope::open(&dek, dek_ref, &context.associated_data(), &version.payload)
            .map_err(|error| corrupt(&error))?;
        Fields::decode(plaintext).map_err(|error| corrupt(&error))
    }

    /// Moves a DEK from one KEK to another, and proves that the new blob opens to the same key.
    ///
    /// # Errors
    /// `Corrupt` when the DEK does not open, before or after.
    pub fn rewrap_dek(
        &self,
        from: &Kek,
        dek: WrappedDek,
        to: &WrappedKek,
        entropy: &dyn Entropy,
    ) -> Result<WrappedDek, Error> {
        let key = self.unwrap_dek(from, &dek)?;
        let moved = WrappedDek { kek_id: to.id, kek_version: to.version, wrapped: Vec::new(), ..dek };
        let moved = self.wrap_dek(&key, moved, to, entropy)?;
        if self.unwrap_dek(&self.unwrap_kek(to)?, &moved)? != key {
            return Err(Error::Corrupt(format!("deks.wrapped of {}: changed by its rewrap", moved.id)));
        }
        Ok(moved)
    }

    fn wrap_dek(
        &self,
        dek: &Key,
        row: WrappedDek,
        kek: &WrappedKek,
        entropy: &dyn Entropy,
    ) -> Result<WrappedDek, Error> {
        let key = self.unwrap_kek(kek)?;
        let kek_ref = KeyRef { id: kek.id, version: number(kek.version)? };
        let context = self.dek_context(&row)?;
        let wrapped = envelope::seal(&key.key, kek_ref, &context.associated_data(), dek.expose(), entropy)?;
        Ok(WrappedDek { wrapped, ..row })
    }

    fn unwrap_dek(&self, kek: &Kek, row: &WrappedDek) -> Result<Key, Error> {
        let corrupt =
            |why: &dyn ToString| Error::Corrupt(format!("deks.wrapped of {}: {}", row.id, why.to_string()));
        let kek_ref = KeyRef { id: row.kek_id, version: number(row.kek_version)? };
        let context = self.dek_context(row)?;
        let bytes = envelope::open(&kek.key, kek_ref, &context.associated_data(), &row.wrapped)
            .map_err(|error| corrupt(&error))?;
        Key::try_from(bytes.expose()).map_err(|error| corrupt(&error))
    }

    fn dek_context(&self, row: &WrappedDek) -> Result<DekContext, Error> {
        Ok(DekContext {
            installation: self.installation,
            keyspace: row.keyspace_id,
            secret: row.secret_id,
            version: number(row.version)?,
            dek: row.id,
            kek: row.kek_id,
            kek_version: number(row.kek_version)?,
        })
    }

    fn payload_context(&self, place: &VersionPlace<'_>, dek: Uuid) -> PayloadContext {
        PayloadContext {
            installation: self.installation,
            keyspace: place.keyspace,
            secret: place.secret,
            version: place.version,
            dek,
            metadata_digest: envelope::metadata_digest(place.path, place.created_at_micros, place.created_by),
        }
    }
}

impl Kek {
    /// Gives the key only for the place that it was opened in: the cache must not lift what binds a KEK to its keyspace.
    fn in_place(self, id: Uuid, keyspace: Uuid, version: i32) -> Result<Self, Error> {
        if self.keyspace == keyspace && self.version == version {
            return Ok(self);
        }
        Err(Error::Corrupt(format!("keks: {id} is the key of another keyspace or version")))
    }
}

/// Where a version belongs: its payload opens nowhere else.
pub struct VersionPlace<'a> {
    /// The keyspace's id.
    pub keyspace: Uuid,
    /// The secret's id.
    pub secret: Uuid,
    /// The version's number.
    pub version: u32,
    /// The secret's path.
    pub path: &'a str,
    /// When the version was written, in microseconds since 1970.
    pub created_at_micros: i64,
    /// Who wrote it.
    pub created_by: &'a str,
}

/// A time in microseconds since 1970, as Postgres keeps it.
pub fn micros(at: time::OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000).unwrap_or(i64::MAX)
}

/// A number out of a row, where Postgres has no unsigned type.
///
/// # Errors
/// `Corrupt` when it is negative: the schema's checks forbid it.
pub fn number(stored: i32) -> Result<u32, Error> {
    u32::try_from(stored).map_err(|_| Error::Corrupt(format!("a version is negative: {stored}")))
}

/// A number for a row.
///
/// # Errors
/// `Conflict` beyond 2^31 - 1 versions.
pub fn stored(number: u32) -> Result<i32, Error> {
    i32::try_from(number).map_err(|_| Error::Conflict("there are too many versions".into()))
}
