//! The root-wrapping key (RWK): sealed by the root key and once more by the recovery key, it wraps the KEKs.

use keyfold_core::{
    entropy::Entropy,
    envelope::{self, AssociatedData, KekContext, KeyRef, RecoveryContext, RwkContext, recovery_key_id},
    secret::{Key, KeyMaterial},
};
use keyfold_memory::LockedKey;
use subtle::ConstantTimeEq as _;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    error::Error,
    keys::{
        keyring::{number, stored},
        root::NewRoot,
    },
    store::{keks::WrappedKek, recovery_keys::WrappedRecoveryKey, root_wrapping_keys::WrappedRwk},
};

/// An open root-wrapping key. Wiped when dropped.
pub struct Rwk {
    installation: Uuid,
    key: LockedKey,
    key_ref: KeyRef,
    root_key_id: Uuid,
}

impl Rwk {
    /// Makes the RWK of that version, sealed by a new root key; without a copy for recovery yet.
    ///
    /// # Errors
    /// When there is no randomness; `Corrupt` when what was sealed does not open again.
    pub fn make(
        installation: Uuid,
        version: u32,
        root: &NewRoot,
        created_at: OffsetDateTime,
        entropy: &dyn Entropy,
    ) -> Result<(WrappedRwk, Self), Error> {
        let key = Key::generate(entropy)?;
        let id = entropy.uuid()?;
        let context = RwkContext { installation, rwk: id, rwk_version: version, root_key_id: root.id };
        let sealed_under = KeyRef { id: root.id, version: 1 };
        let wrapped =
            envelope::seal(&root.key, sealed_under, &context.associated_data(), key.expose(), entropy)?;
        let row = WrappedRwk {
            id,
            version: stored(version)?,
            root_key_id: root.id,
            wrapped,
            custody_kind: root.custody.kind.as_str().to_owned(),
            custody: root.custody.data.clone(),
            recovery_wrapped: None,
            created_at,
        };
        let opened = Self::open(installation, &row, &root.key)?;
        Ok((row, opened))
    }

    /// Opens it with the root key that sealed it.
    ///
    /// # Errors
    /// `Sealed` when it does not open, or no memory can be locked for it.
    pub fn open(installation: Uuid, row: &WrappedRwk, root: &Key) -> Result<Self, Error> {
        Self::locked(installation, row, Self::unsealed(installation, row, root)?)
    }

    /// Whether it is what the root key opens there.
    pub fn is_sealed_in(&self, row: &WrappedRwk, root: &Key) -> bool {
        Self::unsealed(self.installation, row, root).is_ok_and(|key| self.is(row, &key))
    }

    fn unsealed(installation: Uuid, row: &WrappedRwk, root: &Key) -> Result<Key, Error> {
        let context = RwkContext {
            installation,
            rwk: row.id,
            rwk_version: number(row.version)?,
            root_key_id: row.root_key_id,
        };
        let sealed_under = KeyRef { id: row.root_key_id, version: 1 };
        open(root, sealed_under, &context.associated_data(), &row.wrapped)
            .ok_or_else(|| Error::Sealed("the root key does not open the stored root-wrapping key".into()))
    }

    /// Opens its copy with the recovery key.
    ///
    /// # Errors
    /// `Sealed` when there is no copy for that key, or it does not open.
    pub fn open_recovery(installation: Uuid, row: &WrappedRwk, recovery: &Key) -> Result<Self, Error> {
        Self::locked(installation, row, Self::recovered(installation, row, recovery)?)
    }

    /// Whether it is what the recovery key opens there.
    pub fn is_kept_in(&self, row: &WrappedRwk, recovery: &Key) -> bool {
        Self::recovered(self.installation, row, recovery).is_ok_and(|key| self.is(row, &key))
    }

    fn recovered(installation: Uuid, row: &WrappedRwk, recovery: &Key) -> Result<Key, Error> {
        let id = recovery_key_id(recovery);
        let context = RecoveryContext {
            installation,
            rwk: row.id,
            rwk_version: number(row.version)?,
            recovery_key_id: id,
        };
        let copy = row.recovery_wrapped.as_deref().ok_or_else(|| {
            Error::Sealed("the stored root-wrapping key has no copy for recovery".to_owned())
        })?;
        open(recovery, KeyRef { id, version: 1 }, &context.rwk_associated_data(), copy).ok_or_else(|| {
            Error::Sealed("the recovery key does not open the stored root-wrapping key".into())
        })
    }

    fn is(&self, row: &WrappedRwk, key: &Key) -> bool {
        self.id() == row.id && bool::from(KeyMaterial::expose(&self.key).ct_eq(key.expose()))
    }

    fn locked(installation: Uuid, row: &WrappedRwk, key: Key) -> Result<Self, Error> {
        let key = LockedKey::lock(key)
            .map_err(|_| Error::Sealed("no memory can be locked for the root-wrapping key".into()))?;
        let key_ref = KeyRef { id: row.id, version: number(row.version)? };
        Ok(Self { installation, key, key_ref, root_key_id: row.root_key_id })
    }

    /// Names it.
    pub fn id(&self) -> Uuid {
        self.key_ref.id
    }

    /// Its version.
    pub fn version(&self) -> u32 {
        self.key_ref.version
    }

    /// Names the root key that seals it.
    pub fn root_key_id(&self) -> Uuid {
        self.root_key_id
    }

    /// The installation that every blob is bound to.
    pub fn installation(&self) -> Uuid {
        self.installation
    }

    /// Wraps a KEK whose row names all but the blob.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn wrap_kek(&self, row: &WrappedKek, kek: &Key, entropy: &dyn Entropy) -> Result<Vec<u8>, Error> {
        let place = self.kek_place(row)?;
        Ok(envelope::seal(&self.key, self.key_ref, &place, kek.expose(), entropy)?)
    }

    /// Unwraps a KEK.
    ///
    /// # Errors
    /// `RootChanged` when another RWK wraps it; `Corrupt` when it does not open.
    pub fn unwrap_kek(&self, row: &WrappedKek) -> Result<Key, Error> {
        if row.rwk_id != self.id() {
            return Err(Error::RootChanged);
        }
        let corrupt = |why: String| Error::Corrupt(format!("keks.wrapped of {}: {why}", row.id));
        let bytes = envelope::open(&self.key, self.key_ref, &self.kek_place(row)?, &row.wrapped)
            .map_err(|error| corrupt(error.to_string()))?;
        Key::try_from(bytes.expose()).map_err(|error| corrupt(error.to_string()))
    }

    /// Moves a KEK under another RWK, and proves that the new blob opens to the same key.
    ///
    /// # Errors
    /// `Corrupt` when the KEK does not open, before or after.
    pub fn move_kek(&self, row: WrappedKek, to: &Self, entropy: &dyn Entropy) -> Result<WrappedKek, Error> {
        let kek = self.unwrap_kek(&row)?;
        let mut moved = WrappedKek { rwk_id: to.id(), wrapped: Vec::new(), ..row };
        moved.wrapped = to.wrap_kek(&moved, &kek, entropy)?;
        if to.unwrap_kek(&moved)? != kek {
            return Err(Error::Corrupt(format!("keks.wrapped of {}: changed by its move", moved.id)));
        }
        Ok(moved)
    }

    /// Seals its copy for recovery and wraps the recovery key, and proves that both open again.
    ///
    /// # Errors
    /// When there is no randomness; `Corrupt` when they do not open.
    pub fn keep_for_recovery(&self, recovery: &Key, entropy: &dyn Entropy) -> Result<ForRecovery, Error> {
        let id = recovery_key_id(recovery);
        let context = self.recovery_place(id);
        let under = KeyRef { id, version: 1 };
        let place = context.rwk_associated_data();
        let copy = envelope::seal(recovery, under, &place, KeyMaterial::expose(&self.key), entropy)?;
        let place = context.recovery_key_associated_data();
        let wrapped = envelope::seal(&self.key, self.key_ref, &place, recovery.expose(), entropy)?;
        let kept = ForRecovery { recovery_key_id: id, copy, wrapped };
        if self.unwrap_recovery_key(id, &kept.wrapped)? != *recovery
            || open(recovery, under, &context.rwk_associated_data(), &kept.copy).is_none()
        {
            return Err(Error::Corrupt("root_wrapping_keys.recovery_wrapped: changed by its sealing".into()));
        }
        Ok(kept)
    }

    /// The recovery key out of its row.
    ///
    /// # Errors
    /// `Corrupt` when it does not open.
    pub fn recovery_key(&self, row: &WrappedRecoveryKey) -> Result<Key, Error> {
        self.unwrap_recovery_key(row.id, &row.wrapped)
    }

    fn unwrap_recovery_key(&self, id: Uuid, wrapped: &[u8]) -> Result<Key, Error> {
        let place = self.recovery_place(id).recovery_key_associated_data();
        let key = open(&self.key, self.key_ref, &place, wrapped);
        key.ok_or_else(|| Error::Corrupt(format!("recovery_keys.wrapped of {id}: does not open")))
    }

    fn recovery_place(&self, recovery_key_id: Uuid) -> RecoveryContext {
        let (rwk, rwk_version) = (self.key_ref.id, self.key_ref.version);
        RecoveryContext { installation: self.installation, rwk, rwk_version, recovery_key_id }
    }

    fn kek_place(&self, row: &WrappedKek) -> Result<AssociatedData, Error> {
        let context = KekContext {
            installation: self.installation,
            keyspace: row.keyspace_id.unwrap_or_default(),
            purpose: &row.purpose,
            kek: row.id,
            kek_version: number(row.version)?,
            root_key_id: self.root_key_id,
        };
        Ok(context.associated_data())
    }
}

/// What Postgres keeps for recovery.
pub struct ForRecovery {
    /// Names the recovery key.
    pub recovery_key_id: Uuid,
    /// The RWK, sealed by the recovery key.
    pub copy: Vec<u8>,
    /// The recovery key, wrapped by the RWK.
    pub wrapped: Vec<u8>,
}

fn open(key: &dyn KeyMaterial, key_ref: KeyRef, place: &AssociatedData, blob: &[u8]) -> Option<Key> {
    let bytes = envelope::open(key, key_ref, place, blob).ok()?;
    Key::try_from(bytes.expose()).ok()
}
