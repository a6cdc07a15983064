//! The unsealed keys of one process: the root-wrapping key, and the KEKs that were needed so far.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Once, PoisonError, RwLock},
    time::Duration,
};

use keyfold_core::{
    entropy::Entropy,
    envelope::{self, DekContext, KeyRef, PayloadContext},
    key::{KeyState, Purpose},
    payload::Fields,
    secret::{Key, KeyMaterial, SecretBytes},
};
use keyfold_memory::LockedKey;
use sqlx::PgConnection;
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};
use uuid::Uuid;

use crate::{
    error::Error,
    integrity::row_macs::{RowMacKey, RowMacs},
    keys::rwk::Rwk,
    store::{
        deks::WrappedDek,
        keks::{self, WrappedKek},
        secret_versions::StoredVersion,
    },
};

/// How long a request waits for the RWK after a change of the root key.
const RENEWAL_MAX: Duration = Duration::from_secs(5);

/// An open KEK, with the place that it was opened in.
#[derive(Clone)]
pub struct Kek {
    id: Uuid,
    key: Arc<dyn KeyMaterial>,
    keyspace: Option<Uuid>,
    version: i32,
}

/// A key of the installation that is open.
#[derive(Clone)]
pub struct SystemKey {
    /// Names it in blob headers.
    pub key_ref: KeyRef,
    /// Its material.
    pub key: Arc<dyn KeyMaterial>,
    /// Whether it is the one in use.
    is_active: bool,
}

/// The installation's own keys by purpose, oldest version first.
type SystemKeys = HashMap<Purpose, Vec<SystemKey>>;

/// What the server can open while it is unsealed. Key material by id never changes, so what is cached is never stale;
/// a change of the root key replaces the RWK alone.
pub struct Keyring {
    installation: Uuid,
    rwk: watch::Sender<Arc<Rwk>>,
    /// Told when a row names another RWK than the one that is held.
    outdated: Notify,
    keks: RwLock<HashMap<Uuid, Kek>>,
    system: RwLock<SystemKeys>,
    row_macs: Arc<RowMacs>,
}

impl Keyring {
    /// With an open root-wrapping key.
    pub fn new(rwk: Arc<Rwk>) -> Self {
        let installation = rwk.installation();
        Self {
            installation,
            rwk: watch::Sender::new(rwk),
            outdated: Notify::new(),
            keks: RwLock::default(),
            system: RwLock::default(),
            row_macs: Arc::new(RowMacs::new(installation)),
        }
    }

    /// The root-wrapping key.
    pub fn rwk(&self) -> Arc<Rwk> {
        Arc::clone(&self.rwk.borrow())
    }

    /// Takes on the RWK after a change of the root key. The one before is wiped once nobody uses it.
    pub fn renew(&self, rwk: Arc<Rwk>) {
        self.rwk.send_replace(rwk);
    }

    /// Waits until somebody meets a row that names another RWK than the one that is held.
    pub async fn outdated(&self) {
        self.outdated.notified().await;
    }

    /// Waits, not for long, until another RWK than that one is held.
    async fn renewed_since(&self, seen: Uuid) {
        let mut held = self.rwk.subscribe();
        // Only `self` sends, so that waiting can only end by a new one or by the time.
        let _ = timeout(RENEWAL_MAX, held.wait_for(|rwk| rwk.id() != seen)).await;
    }

    /// The installation that every blob is bound to.
    pub fn installation(&self) -> Uuid {
        self.installation
    }

    /// Makes and checks the MACs of guarded rows.
    pub fn row_macs(&self) -> &RowMacs {
        &self.row_macs
    }

    /// The same, for whoever outlives the keyring.
    pub fn shared_row_macs(&self) -> Arc<RowMacs> {
        Arc::clone(&self.row_macs)
    }

    /// Names the root key in use.
    pub fn root_key_id(&self) -> Uuid {
        self.rwk().root_key_id()
    }

    /// Makes a key of that version for a keyspace and purpose, or for the installation and a purpose.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn new_kek(
        &self,
        keyspace: Option<Uuid>,
        purpose: Purpose,
        version: u32,
        entropy: &dyn Entropy,
    ) -> Result<WrappedKek, Error> {
        let id = entropy.uuid()?;
        let kek = Key::generate(entropy)?;
        let rwk = self.rwk();
        let mut row = WrappedKek::new(id, keyspace, purpose.as_str(), stored(version)?, rwk.id());
        row.wrapped = rwk.wrap_kek(&row, &kek, entropy)?;
        Ok(row)
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
            None => self.read_kek(connection, id).await?,
        };
        kek.in_place(id, Some(keyspace), version)
    }

    /// When the root key was changed a moment ago, the row is read again once the new RWK is held.
    async fn read_kek(&self, connection: &mut PgConnection, id: Uuid) -> Result<Kek, Error> {
        let missing = || Error::Corrupt(format!("keks: no row {id}"));
        let seen = self.rwk().id();
        let row = keks::find(connection, &self.row_macs, id).await?.ok_or_else(missing)?;
        check_opens(&row)?;
        match self.unwrap_kek(&row) {
            Err(Error::RootChanged) => {}
            done => return done,
        }
        self.renewed_since(seen).await;
        let row = keks::find(connection, &self.row_macs, id).await?.ok_or_else(missing)?;
        check_opens(&row)?;
        self.unwrap_kek(&row)
    }

    /// Forgets all KEKs but these, such as those whose destruction is scheduled. Their memory is wiped.
    pub fn keep_only(&self, ids: &HashSet<Uuid>) {
        self.keks.write().unwrap_or_else(PoisonError::into_inner).retain(|id, _| ids.contains(id));
    }

    /// A KEK out of its row, unwrapped now or earlier.
    ///
    /// # Errors
    /// `RootChanged` when another RWK wraps it than the one that is held; `Corrupt` when it does not open, or was opened
    /// in another place.
    pub fn unwrap_kek(&self, wrapped: &WrappedKek) -> Result<Kek, Error> {
        if let Some(kek) = self.cached(wrapped.id) {
            return kek.in_place(wrapped.id, wrapped.keyspace_id, wrapped.version);
        }
        let key = self.rwk().unwrap_kek(wrapped).inspect_err(|error| {
            if matches!(error, Error::RootChanged) {
                self.outdated.notify_one();
            }
        })?;
        let open = |key| Kek { id: wrapped.id, key, keyspace: wrapped.keyspace_id, version: wrapped.version };
        match LockedKey::lock(key) {
            Ok(locked) => {
                let kek = open(Arc::new(locked));
                self.keks.write().unwrap_or_else(PoisonError::into_inner).insert(wrapped.id, kek.clone());
                Ok(kek)
            }
            Err(key) => {
                note_not_locked();
                Ok(open(Arc::new(key)))
            }
        }
    }

    /// Takes on the installation's own keys, as `keks::system` reads them. Their own rows' MACs can be checked only once
    /// they are open; until then the blobs bind each key to its purpose and version.
    ///
    /// Without the keys that check rows nothing can be told from what somebody forged. Any other that cannot be used is
    /// missed only where it is needed: it is left out, and what is wrong with it is given back.
    ///
    /// # Errors
    /// `RootChanged`; of a key of purpose `row-mac`, but for one that is not in use yet, `Corrupt` when it does not open,
    /// and `Integrity` when its row's MAC is wrong.
    pub fn load_system(&self, rows: &[WrappedKek]) -> Result<Vec<String>, Error> {
        let (mut opened, mut unusable) = (SystemKeys::new(), Vec::new());
        let (needed, others): (Vec<_>, Vec<_>) = rows.iter().partition(|row| is_row_mac_in_use(row));
        for row in &needed {
            self.open_system(&mut opened, row)?;
        }
        let macs = RowMacs::new(self.installation);
        macs.load(row_mac_keys(&opened));
        needed.iter().try_for_each(|row| macs.check(*row, &row.mac))?;
        for row in others {
            match macs.check(row, &row.mac).and_then(|()| self.open_system(&mut opened, row)) {
                Err(Error::Corrupt(what) | Error::Integrity { what, .. }) => {
                    unusable.push(format!("version {} of the {} key: {what}", row.version, row.purpose));
                }
                done => done?,
            }
        }
        self.take_on(opened);
        Ok(unusable)
    }

    /// The same without the MACs, for keys that were made just now and have none yet.
    ///
    /// # Errors
    /// `Corrupt` when one does not open.
    pub fn load_new_system(&self, rows: &[WrappedKek]) -> Result<(), Error> {
        let mut opened = SystemKeys::new();
        for row in rows {
            self.open_system(&mut opened, row)?;
        }
        self.take_on(opened);
        Ok(())
    }

    fn open_system(&self, system: &mut SystemKeys, row: &WrappedKek) -> Result<(), Error> {
        let key_ref = KeyRef { id: row.id, version: number(row.version)? };
        let key = SystemKey { key_ref, key: self.unwrap_kek(row)?.key, is_active: row.state == "active" };
        let purpose = Purpose::parse(&row.purpose)
            .ok_or_else(|| Error::Corrupt(format!("keks.purpose of {}", row.id)))?;
        let versions = system.entry(purpose).or_default();
        versions.push(key);
        versions.sort_by_key(|key| key.key_ref.version);
        Ok(())
    }

    fn take_on(&self, system: SystemKeys) {
        self.row_macs.load(row_mac_keys(&system));
        *self.system.write().unwrap_or_else(PoisonError::into_inner) = system;
    }

    /// The installation's own key of that purpose that is in use.
    ///
    /// # Errors
    /// `Corrupt` when there is none.
    pub fn system_key(&self, purpose: Purpose) -> Result<SystemKey, Error> {
        let system = self.system.read().unwrap_or_else(PoisonError::into_inner);
        let active = system.get(&purpose).and_then(|keys| keys.iter().find(|key| key.is_active));
        active.cloned().ok_or_else(|| Error::Corrupt(format!("keks: no active key of purpose {purpose}")))
    }

    /// That of a given version.
    ///
    /// # Errors
    /// `Corrupt` when there is none.
    pub fn system_key_of(&self, purpose: Purpose, version: u32) -> Result<SystemKey, Error> {
        let system = self.system.read().unwrap_or_else(PoisonError::into_inner);
        let found =
            system.get(&purpose).and_then(|keys| keys.iter().find(|key| key.key_ref.version == version));
        found
            .cloned()
            .ok_or_else(|| Error::Corrupt(format!("keks: no key of purpose {purpose} and version {version}")))
    }

    /// All versions of that purpose that are usable, newest first.
    pub fn system_keys(&self, purpose: Purpose) -> Vec<SystemKey> {
        let system = self.system.read().unwrap_or_else(PoisonError::into_inner);
        system.get(&purpose).into_iter().flatten().rev().cloned().collect()
    }

    fn cached(&self, id: Uuid) -> Option<Kek> {
        self.keks.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
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
        self.seal_payload(place, active, &fields.encode(), entropy)
    }

    fn seal_payload(
        &self,
        place: &VersionPlace<'_>,
        active: &WrappedKek,
        plaintext: &SecretBytes,
        entropy: &dyn Entropy,
    ) -> Result<(Vec<u8>, WrappedDek), Error> {
        let dek_id = entropy.uuid_at(place.created_at_micros)?;
        let dek = Key::generate(entropy)?;
        let dek_ref = KeyRef { id: dek_id, version: place.version };
        let payload = envelope::seal(
            &dek,
            dek_ref,
            &self.payload_context(place, dek_id).associated_data(),
            plaintext.expose(),
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

    /// Decrypts a stored version, to be given out.
    ///
    /// # Errors
    /// `Corrupt` when a key or the payload does not open in this place, or the KEK is in a state in which it must not;
    /// those of Postgres.
    pub async fn open_version(
        &self,
        connection: &mut PgConnection,
        version: &StoredVersion,
    ) -> Result<Fields, Error> {
        if let Some(opened) = self.open_by_held_key(version) {
            return opened;
        }
        let kek = self.kek(connection, version.keyspace_id, version.kek_id, version.kek_version).await?;
        self.open_by(&kek, version)
    }

    /// The same without asking Postgres; absent when the KEK was not unwrapped yet.
    pub fn open_by_held_key(&self, version: &StoredVersion) -> Option<Result<Fields, Error>> {
        let kek = self.cached(version.kek_id)?;
        let in_place = kek.in_place(version.kek_id, Some(version.keyspace_id), version.kek_version);
        Some(in_place.and_then(|kek| self.open_by(&kek, version)))
    }

    fn open_by(&self, kek: &Kek, version: &StoredVersion) -> Result<Fields, Error> {
        let corrupt = |why: &dyn ToString| {
            Error::Corrupt(format!("{} version {}: {}", version.path, version.version, why.to_string()))
        };
        if !KeyState::parse(&version.kek_state).is_some_and(KeyState::unwraps) {
            return Err(corrupt(&format!("the key that wraps it is {}", version.kek_state)));
        }
        let plaintext = self.open_payload(kek, &version.dek(), version, &version.payload)?;
        Fields::decode(plaintext).map_err(|error| corrupt(&error))
    }

    fn open_payload(
        &self,
        kek: &Kek,
        dek: &WrappedDek,
        version: &StoredVersion,
        payload: &[u8],
    ) -> Result<SecretBytes, Error> {
        let key = self.unwrap_dek(kek, dek)?;
        let place = version.place()?;
        let context = self.payload_context(&place, dek.id);
        let dek_ref = KeyRef { id: dek.id, version: place.version };
        envelope::open(&key, dek_ref, &context.associated_data(), payload)
            .map_err(|error| Error::Corrupt(format!("{} version {}: {error}", version.path, version.version)))
    }

    /// Encrypts a stored version anew: under another DEK, wrapped by `active`. Proves that the new blobs open to the same
    /// plaintext.
    ///
    /// # Errors
    /// `Corrupt` when it does not open, before or after; when there is no randomness.
    pub fn reencrypt_version(
        &self,
        from: &Kek,
        version: &StoredVersion,
        active: &WrappedKek,
        entropy: &dyn Entropy,
    ) -> Result<(Vec<u8>, WrappedDek), Error> {
        let plaintext = self.open_payload(from, &version.dek(), version, &version.payload)?;
        let (payload, dek) = self.seal_payload(&version.place()?, active, &plaintext, entropy)?;
        if self.open_payload(&self.unwrap_kek(active)?, &dek, version, &payload)? != plaintext {
            return Err(Error::Corrupt(format!(
                "{} version {}: changed by its re-encryption",
                version.path, version.version
            )));
        }
        Ok((payload, dek))
    }

    /// Moves a DEK from one KEK to another, and proves that the new blob opens to the same key.
    ///
    /// # Errors
    /// `Corrupt` when the DEK does not open, before or after; when there is no randomness.
    pub fn rewrap_dek(
        &self,
        from: &Kek,
        dek: &WrappedDek,
        to: &Kek,
        entropy: &dyn Entropy,
    ) -> Result<WrappedDek, Error> {
        let key = self.unwrap_dek(from, dek)?;
        let row = WrappedDek { kek_id: to.id, kek_version: to.version, wrapped: Vec::new(), ..*dek };
        let moved = self.wrap_dek_under(to, &key, row, entropy)?;
        if self.unwrap_dek(to, &moved)? != key {
            return Err(Error::Corrupt(format!("deks.wrapped of {}: changed by its rewrap", moved.id)));
        }
        Ok(moved)
    }

    /// Opens a KEK out of its row and tries it: what it wraps, it unwraps.
    ///
    /// # Errors
    /// `RootChanged`; `Corrupt` when it does not open, or does not do its work; when there is no randomness.
    pub fn test_kek(&self, row: &WrappedKek, entropy: &dyn Entropy) -> Result<(), Error> {
        let (kek, key) = (self.unwrap_kek(row)?, Key::generate(entropy)?);
        let nowhere = WrappedDek {
            id: Uuid::nil(),
            secret_id: Uuid::nil(),
            version: 1,
            keyspace_id: row.keyspace_id.unwrap_or_default(),
            kek_id: row.id,
            kek_version: row.version,
            wrapped: Vec::new(),
        };
        let wrapped = self.wrap_dek_under(&kek, &key, nowhere, entropy)?;
        if self.unwrap_dek(&kek, &wrapped)? != key {
            return Err(Error::Corrupt(format!(
                "keks.wrapped of {}: does not give back what it wrapped",
                row.id
            )));
        }
        Ok(())
    }

    fn wrap_dek(
        &self,
        dek: &Key,
        row: WrappedDek,
        kek: &WrappedKek,
        entropy: &dyn Entropy,
    ) -> Result<WrappedDek, Error> {
        self.wrap_dek_under(&self.unwrap_kek(kek)?, dek, row, entropy)
    }

    fn wrap_dek_under(
        &self,
        kek: &Kek,
        dek: &Key,
        row: WrappedDek,
        entropy: &dyn Entropy,
    ) -> Result<WrappedDek, Error> {
        let kek_ref = KeyRef { id: kek.id, version: number(kek.version)? };
        let context = self.dek_context(&row)?;
        let wrapped = envelope::seal(&*kek.key, kek_ref, &context.associated_data(), dek.expose(), entropy)?;
        Ok(WrappedDek { wrapped, ..row })
    }

    fn unwrap_dek(&self, kek: &Kek, row: &WrappedDek) -> Result<Key, Error> {
        let corrupt =
            |why: &dyn ToString| Error::Corrupt(format!("deks.wrapped of {}: {}", row.id, why.to_string()));
        let kek_ref = KeyRef { id: row.kek_id, version: number(row.kek_version)? };
        let context = self.dek_context(row)?;
        let bytes = envelope::open(&*kek.key, kek_ref, &context.associated_data(), &row.wrapped)
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

/// Whether rows are checked with it.
fn is_row_mac_in_use(row: &WrappedKek) -> bool {
    row.purpose == Purpose::RowMac.as_str() && row.state != KeyState::PreActive.as_str()
}

/// Tells of the keys that `load_system` has left out.
pub(crate) fn note_unusable(unusable: &[String]) {
    metrics::gauge!("keyfold_system_keys_unusable")
        .set(f64::from(u32::try_from(unusable.len()).unwrap_or(u32::MAX)));
    for what in unusable {
        tracing::error!(what, "a key of the installation cannot be used, and what needs it fails");
    }
}

fn row_mac_keys(system: &SystemKeys) -> impl Iterator<Item = RowMacKey<'_>> {
    let keys = system.get(&Purpose::RowMac).map(Vec::as_slice).unwrap_or_default();
    keys.iter().map(|SystemKey { key_ref, key, is_active }| RowMacKey {
        version: key_ref.version,
        key: &**key,
        is_active: *is_active,
    })
}

/// Counts a KEK that is used and forgotten, and says the first time what to do.
fn note_not_locked() {
    static WARNED: Once = Once::new();
    metrics::counter!("keyfold_keks_not_locked_total").increment(1);
    WARNED.call_once(|| {
        tracing::warn!(
            "no more memory can be locked for keys, so some are unwrapped for each use: raise RLIMIT_MEMLOCK"
        );
    });
}

impl Kek {
    /// Gives the key only for the place that it was opened in: the cache must not lift what binds a KEK to its keyspace.
    fn in_place(self, id: Uuid, keyspace: Option<Uuid>, version: i32) -> Result<Self, Error> {
        if self.keyspace == keyspace && self.version == version {
            return Ok(self);
        }
        Err(Error::Corrupt(format!("keks: {id} is the key of another keyspace or version")))
    }
}

/// Whether a KEK's state lets it open anything that is stored.
fn check_opens(row: &WrappedKek) -> Result<(), Error> {
    if KeyState::parse(&row.state).is_some_and(KeyState::unwraps_for_rewrap) {
        return Ok(());
    }
    Err(Error::Corrupt(format!("keks: {} is {}, and something is wrapped by it", row.id, row.state)))
}

impl StoredVersion {
    fn dek(&self) -> WrappedDek {
        WrappedDek {
            id: self.dek_id,
            secret_id: self.secret_id,
            version: self.version,
            keyspace_id: self.keyspace_id,
            kek_id: self.kek_id,
            kek_version: self.kek_version,
            wrapped: self.wrapped_dek.clone(),
        }
    }

    fn place(&self) -> Result<VersionPlace<'_>, Error> {
        Ok(VersionPlace {
            keyspace: self.keyspace_id,
            secret: self.secret_id,
            version: number(self.version)?,
            path: &self.path,
            created_at_micros: micros(self.created_at),
            created_by: &self.created_by,
        })
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
