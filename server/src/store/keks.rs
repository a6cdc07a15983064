//! Table `keks`: key-encryption keys.

use std::collections::{HashMap, HashSet};

use futures_util::TryStreamExt as _;
use keyfold_core::{
    key::{KeyState, KeyVersion, Keyset, Purpose, Restored},
    row_mac::RowEncoder,
};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    error::Error,
    integrity::{
        Macs,
        row_macs::{Guarded, RowMacs},
    },
    keys::keyring::number,
};

pub use writes::{
    Doom, activate, cancel_destruction, compromise, deactivate, delete_all, destroy, hold_writers,
    insert_active, insert_pre_active, move_under, remac, schedule_destruction,
};

/// The purposes of the installation's own keys.
pub const SYSTEM_PURPOSES: [Purpose; 3] = [Purpose::RowMac, Purpose::AuditSign, Purpose::InternalCa];

/// A KEK at rest.
#[derive(Debug)]
pub struct WrappedKek {
    /// Names it in blob headers.
    pub id: Uuid,
    /// Its keyspace; absent for a key of the installation.
    pub keyspace_id: Option<Uuid>,
    /// What it is for.
    pub purpose: String,
    /// Counts up from 1.
    pub version: i32,
    /// Its state, as `keyfold_core::key` names it.
    pub state: String,
    /// When somebody declared it compromised.
    pub compromised_at: Option<OffsetDateTime>,
    /// Rises by one with each change of the state.
    pub generation: i64,
    /// When it was made; of a key that is not written yet without meaning.
    pub created_at: OffsetDateTime,
    /// When it began to wrap.
    pub activated_at: Option<OffsetDateTime>,
    /// When it stopped wrapping.
    pub deactivated_at: Option<OffsetDateTime>,
    /// When it is to be destroyed.
    pub destroy_at: Option<OffsetDateTime>,
    /// Who wants that: an operator, or the schedule.
    pub destroy_asked_by: Option<String>,
    /// When they said so.
    pub destroy_asked_at: Option<OffsetDateTime>,
    /// When its material was removed.
    pub destroyed_at: Option<OffsetDateTime>,
    /// Which RWK wraps it.
    pub rwk_id: Uuid,
    /// The blob.
    pub wrapped: Vec<u8>,
    /// Over what is above but `rwk_id` and the blob.
    pub mac: Vec<u8>,
}

/// What a row's MAC is over: what the state machine and the schedules go by, and what a destruction certificate states.
struct State<'a> {
    id: Uuid,
    keyspace_id: Option<Uuid>,
    purpose: &'a str,
    version: i64,
    state: &'a str,
    created_at: OffsetDateTime,
    activated_at: Option<OffsetDateTime>,
    deactivated_at: Option<OffsetDateTime>,
    compromised_at: Option<OffsetDateTime>,
    destroy_at: Option<OffsetDateTime>,
    destroy_asked_by: Option<&'a str>,
    destroy_asked_at: Option<OffsetDateTime>,
    destroyed_at: Option<OffsetDateTime>,
    generation: i64,
}

/// That of a row as it is read, whatever else was read with it.
macro_rules! state_of {
    ($row:expr) => {
        State {
            id: $row.id,
            keyspace_id: $row.keyspace_id,
            purpose: &$row.purpose,
            version: $row.version.into(),
            state: &$row.state,
            created_at: $row.created_at,
            activated_at: $row.activated_at,
            deactivated_at: $row.deactivated_at,
            compromised_at: $row.compromised_at,
            destroy_at: $row.destroy_at,
            destroy_asked_by: $row.destroy_asked_by.as_deref(),
            destroy_asked_at: $row.destroy_asked_at,
            destroyed_at: $row.destroyed_at,
            generation: $row.generation,
        }
    };
}

/// Rows with their material, by what stands after FROM.
macro_rules! wrapped {
    ($rest:literal $(, $argument:expr)*) => {
        sqlx::query_as!(
            WrappedKek,
            r#"SELECT id, keyspace_id, purpose, version, state, compromised_at, generation, created_at, activated_at,
                      deactivated_at, destroy_at, destroy_asked_by, destroy_asked_at, destroyed_at, rwk_id,
                      wrapped AS "wrapped!", mac
               FROM keks "# + $rest $(, $argument)*
        )
    };
}

/// Rows without it; `with leftovers` looks whether they still wrap something.
macro_rules! rows {
    (with leftovers, $rest:literal $(, $argument:expr)*) => {
        sqlx::query_as!(
            Row,
            r#"SELECT id, keyspace_id, purpose, version, state, created_at, activated_at, deactivated_at,
                      compromised_at, destroy_at, destroy_asked_by, destroy_asked_at, destroyed_at,
                      state IN ('deactivated', 'compromised') AND (
                          SELECT d.id FROM deks d WHERE d.keyspace_id = keks.keyspace_id AND d.kek_version = keks.version
                          ORDER BY d.id LIMIT 1
                      ) IS NOT NULL AS "wraps_leftovers!", generation, mac
               FROM keks "# + $rest $(, $argument)*
        )
    };
    ($rest:literal $(, $argument:expr)*) => {
        sqlx::query_as!(
            Row,
            r#"SELECT id, keyspace_id, purpose, version, state, created_at, activated_at, deactivated_at,
                      compromised_at, destroy_at, destroy_asked_by, destroy_asked_at, destroyed_at,
                      false AS "wraps_leftovers!", generation, mac
               FROM keks "# + $rest $(, $argument)*
        )
    };
}

// After the macros, which it uses.
mod writes;

impl Guarded for State<'_> {
    const TABLE: &'static str = "keks";

    fn which(&self) -> String {
        self.id.to_string()
    }

    fn encode(&self, row: RowEncoder) -> RowEncoder {
        row.uuid(self.id)
            .option(self.keyspace_id, RowEncoder::uuid)
            .str(self.purpose)
            .i64(self.version)
            .str(self.state)
            .time(self.created_at)
            .option(self.activated_at, RowEncoder::time)
            .option(self.deactivated_at, RowEncoder::time)
            .option(self.compromised_at, RowEncoder::time)
            .option(self.destroy_at, RowEncoder::time)
            .option(self.destroy_asked_by, RowEncoder::str)
            .option(self.destroy_asked_at, RowEncoder::time)
            .option(self.destroyed_at, RowEncoder::time)
            .i64(self.generation)
    }
}

impl WrappedKek {
    /// Of a key that is not written yet, and not wrapped.
    pub fn new(id: Uuid, keyspace_id: Option<Uuid>, purpose: &str, version: i32, rwk_id: Uuid) -> Self {
        Self {
            id,
            keyspace_id,
            purpose: purpose.to_owned(),
            version,
            state: String::new(),
            compromised_at: None,
            generation: 1,
            created_at: OffsetDateTime::UNIX_EPOCH,
            activated_at: None,
            deactivated_at: None,
            destroy_at: None,
            destroy_asked_by: None,
            destroy_asked_at: None,
            destroyed_at: None,
            rwk_id,
            wrapped: Vec::new(),
            mac: Vec::new(),
        }
    }

    fn as_state(&self) -> State<'_> {
        state_of!(self)
    }

    fn checked(self, macs: &RowMacs) -> Result<Self, Error> {
        self.check(macs)?;
        Ok(self)
    }

    /// Checks its MAC.
    ///
    /// # Errors
    /// `Integrity` when it is wrong.
    pub fn check(&self, macs: &RowMacs) -> Result<(), Error> {
        macs.check(self, &self.mac)
    }
}

impl Guarded for WrappedKek {
    const TABLE: &'static str = State::TABLE;

    fn which(&self) -> String {
        self.as_state().which()
    }

    fn encode(&self, row: RowEncoder) -> RowEncoder {
        self.as_state().encode(row)
    }
}

/// A KEK as operators see it.
pub struct KekSummary {
    /// Its keyspace's name; empty for a key of the installation.
    pub keyspace: String,
    /// DEKs that it wraps now.
    pub wrapped_deks: i64,
    /// The KEK.
    pub kek: KekRow,
}

/// The keyspace's active KEK.
///
/// # Errors
/// Those of Postgres.
pub async fn active(
    connection: &mut PgConnection,
    macs: &RowMacs,
    keyspace_id: Uuid,
) -> Result<Option<WrappedKek>, Error> {
    wrapped!(
        "WHERE keyspace_id = $1 AND purpose = $2 AND state = 'active'",
        keyspace_id,
        Purpose::Data.as_str()
    )
    .fetch_optional(connection)
    .await?
    .map(|kek| kek.checked(macs))
    .transpose()
}

/// One KEK.
///
/// # Errors
/// Those of Postgres.
pub async fn find(
    connection: &mut PgConnection,
    macs: &RowMacs,
    id: Uuid,
) -> Result<Option<WrappedKek>, Error> {
    wrapped!("WHERE id = $1 AND state <> 'destroyed'", id)
        .fetch_optional(connection)
        .await?
        .map(|kek| kek.checked(macs))
        .transpose()
}

/// The installation's own keys, all versions that may be used, or may be soon. `Keyring::load_system` checks their MACs.
///
/// # Errors
/// Those of Postgres.
pub async fn system(connection: &mut PgConnection) -> Result<Vec<WrappedKek>, Error> {
    Ok(wrapped!("WHERE keyspace_id IS NULL AND state IN ('pre-active', 'active', 'deactivated', 'compromised') ORDER BY purpose, version")
    .fetch_all(connection)
    .await?)
}

/// All KEKs of one keyspace, or of all: by keyspace and purpose, newest version first.
///
/// # Errors
/// Those of Postgres; `Corrupt`; `Integrity` when a row's MAC is wrong.
pub async fn list(
    connection: &mut PgConnection,
    macs: &RowMacs,
    keyspace: Option<&str>,
) -> Result<Vec<KekSummary>, Error> {
    let named = sqlx::query!(
        r#"SELECT k.id, COALESCE(o.name, '') AS "keyspace!",
                  (SELECT count(*) FROM deks d WHERE d.kek_id = k.id) AS "wrapped_deks!"
           FROM keks k LEFT JOIN objects o ON o.id = k.keyspace_id
           WHERE $1::text IS NULL OR o.name = $1
           ORDER BY 2, k.purpose, k.version DESC"#,
        keyspace
    )
    .fetch_all(&mut *connection)
    .await?;
    let ids: Vec<Uuid> = named.iter().map(|row| row.id).collect();
    let rows = rows!("WHERE id = ANY ($1)", &ids).fetch_all(connection).await?;
    let keks = rows.into_iter().map(|row| row.checked(macs).map(|kek| (kek.id, kek)));
    let mut keks = keks.collect::<Result<HashMap<_, _>, _>>()?;
    // One that was removed between the two statements is not listed.
    let summary = |kek, keyspace, wrapped_deks| KekSummary { keyspace, wrapped_deks, kek };
    let found = named
        .into_iter()
        .filter_map(|row| Some(summary(keks.remove(&row.id)?, row.keyspace, row.wrapped_deks)));
    Ok(found.collect())
}

/// Checks the MACs of all keys, destroyed ones too, and gives them.
///
/// # Errors
/// Those of Postgres; `Integrity` when a row's MAC is wrong.
pub async fn check_all(connection: &mut PgConnection, macs: &RowMacs) -> Result<Macs, Error> {
    let mut rows = rows!("").fetch(connection);
    let mut found = Macs::new();
    while let Some(row) = rows.try_next().await? {
        macs.check(&state_of!(row), &row.mac)?;
        found.insert((row.id, row.mac));
    }
    Ok(found)
}

/// The MACs of all keys, unchecked.
///
/// # Errors
/// Those of Postgres.
pub async fn macs(connection: &mut PgConnection) -> Result<Macs, Error> {
    let rows = sqlx::query!("SELECT id, mac FROM keks").fetch_all(connection).await?;
    Ok(rows.into_iter().map(|row| (row.id, row.mac)).collect())
}

/// KEKs whose destruction is due, longest due first.
///
/// # Errors
/// Those of Postgres.
pub async fn due_for_destruction(
    connection: &mut PgConnection,
    now: OffsetDateTime,
) -> Result<Vec<Uuid>, Error> {
    Ok(sqlx::query_scalar!(
        "SELECT id FROM keks WHERE state = 'destroy-scheduled' AND destroy_at <= $1 ORDER BY destroy_at, id",
        now
    )
    .fetch_all(connection)
    .await?)
}

/// The KEK, if its destruction is due.
///
/// # Errors
/// Those of Postgres; `Corrupt`; `Integrity`.
pub async fn doomed(
    connection: &mut PgConnection,
    macs: &RowMacs,
    id: Uuid,
    now: OffsetDateTime,
) -> Result<Option<KekRow>, Error> {
    rows!("WHERE id = $1 AND state = 'destroy-scheduled' AND destroy_at <= $2", id, now)
        .fetch_optional(connection)
        .await?
        .map(|row| row.checked(macs))
        .transpose()
}

/// What a KEK's certificate of destruction states beside its row.
pub struct Material {
    /// The blob.
    pub wrapped: Vec<u8>,
    /// Its keyspace's name; absent for a key of the installation.
    pub keyspace: Option<String>,
}

/// That of a KEK that is not destroyed.
///
/// # Errors
/// Those of Postgres.
pub async fn material(connection: &mut PgConnection, id: Uuid) -> Result<Material, Error> {
    Ok(sqlx::query_as!(
        Material,
        r#"SELECT k.wrapped AS "wrapped!", o.name AS "keyspace?"
           FROM keks k LEFT JOIN objects o ON o.id = k.keyspace_id WHERE k.id = $1"#,
        id
    )
    .fetch_one(connection)
    .await?)
}

/// The ids of all KEKs whose state lets them open something, or will.
///
/// # Errors
/// Those of Postgres.
pub async fn usable(connection: &mut PgConnection) -> Result<HashSet<Uuid>, Error> {
    let ids = sqlx::query_scalar!(
        "SELECT id FROM keks WHERE state IN ('pre-active', 'active', 'deactivated', 'compromised')"
    )
    .fetch_all(connection)
    .await?;
    Ok(ids.into_iter().collect())
}

/// One version of a key, without its material.
#[derive(Debug, Clone)]
pub struct KekRow {
    /// Names it in blob headers.
    pub id: Uuid,
    /// Its keyspace; absent for a key of the installation.
    pub keyspace_id: Option<Uuid>,
    /// What it is for.
    pub purpose: Purpose,
    /// Counts up from 1.
    pub version: u32,
    /// Its state.
    pub state: KeyState,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When it began to wrap.
    pub activated_at: Option<OffsetDateTime>,
    /// When it stopped wrapping.
    pub deactivated_at: Option<OffsetDateTime>,
    /// When somebody declared it compromised.
    pub compromised_at: Option<OffsetDateTime>,
    /// When it is to be destroyed.
    pub destroy_at: Option<OffsetDateTime>,
    /// Who wants that: an operator, or the schedule.
    pub destroy_asked_by: Option<String>,
    /// When they said so.
    pub destroy_asked_at: Option<OffsetDateTime>,
    /// When its material was removed.
    pub destroyed_at: Option<OffsetDateTime>,
    /// Whether it is no longer active, and still wraps a DEK.
    pub wraps_leftovers: bool,
    /// Rises by one with each change of the state.
    pub generation: i64,
    /// Over all of it but `wraps_leftovers`.
    pub mac: Vec<u8>,
}

struct Row {
    id: Uuid,
    keyspace_id: Option<Uuid>,
    purpose: String,
    version: i32,
    state: String,
    created_at: OffsetDateTime,
    activated_at: Option<OffsetDateTime>,
    deactivated_at: Option<OffsetDateTime>,
    compromised_at: Option<OffsetDateTime>,
    destroy_at: Option<OffsetDateTime>,
    destroy_asked_by: Option<String>,
    destroy_asked_at: Option<OffsetDateTime>,
    destroyed_at: Option<OffsetDateTime>,
    wraps_leftovers: bool,
    generation: i64,
    mac: Vec<u8>,
}

impl Row {
    fn checked(self, macs: &RowMacs) -> Result<KekRow, Error> {
        macs.check(&state_of!(self), &self.mac)?;
        let corrupt = |column: &str| Error::Corrupt(format!("keks.{column} of {}", self.id));
        Ok(KekRow {
            id: self.id,
            keyspace_id: self.keyspace_id,
            purpose: Purpose::parse(&self.purpose).ok_or_else(|| corrupt("purpose"))?,
            version: number(self.version)?,
            state: KeyState::parse(&self.state).ok_or_else(|| corrupt("state"))?,
            created_at: self.created_at,
            activated_at: self.activated_at,
            deactivated_at: self.deactivated_at,
            compromised_at: self.compromised_at,
            destroy_at: self.destroy_at,
            destroy_asked_by: self.destroy_asked_by,
            destroy_asked_at: self.destroy_asked_at,
            destroyed_at: self.destroyed_at,
            wraps_leftovers: self.wraps_leftovers,
            generation: self.generation,
            mac: self.mac,
        })
    }
}

impl KekRow {
    /// What the state machine knows of it.
    pub fn version(&self) -> KeyVersion {
        let restored = match (self.state, self.compromised_at, self.deactivated_at) {
            (KeyState::DestroyScheduled, Some(_), _) => Some(Restored::Compromised),
            (KeyState::DestroyScheduled, None, Some(_)) => Some(Restored::Deactivated),
            _ => None,
        };
        KeyVersion { version: self.version, state: self.state, restored }
    }
}

impl Guarded for KekRow {
    const TABLE: &'static str = State::TABLE;

    fn which(&self) -> String {
        self.id.to_string()
    }

    fn encode(&self, row: RowEncoder) -> RowEncoder {
        State {
            id: self.id,
            keyspace_id: self.keyspace_id,
            purpose: self.purpose.as_str(),
            version: self.version.into(),
            state: self.state.as_str(),
            created_at: self.created_at,
            activated_at: self.activated_at,
            deactivated_at: self.deactivated_at,
            compromised_at: self.compromised_at,
            destroy_at: self.destroy_at,
            destroy_asked_by: self.destroy_asked_by.as_deref(),
            destroy_asked_at: self.destroy_asked_at,
            destroyed_at: self.destroyed_at,
            generation: self.generation,
        }
        .encode(row)
    }
}

/// All versions of all keys, those destroyed too, oldest first.
///
/// # Errors
/// Those of Postgres; `Corrupt`; `Integrity` when a row's MAC is wrong.
pub async fn all(connection: &mut PgConnection, macs: &RowMacs) -> Result<Vec<KekRow>, Error> {
    let rows = rows!(with leftovers, "ORDER BY version").fetch_all(connection).await?;
    rows.into_iter().map(|row| row.checked(macs)).collect()
}

/// All versions of one key, those destroyed too, oldest first.
///
/// # Errors
/// Those of Postgres; `Corrupt`; `Integrity` when a row's MAC is wrong.
pub async fn of_keyset(
    connection: &mut PgConnection,
    macs: &RowMacs,
    keyspace_id: Option<Uuid>,
    purpose: Purpose,
) -> Result<Vec<KekRow>, Error> {
    let rows = rows!(with leftovers, "WHERE purpose = $2 AND (keyspace_id = $1 OR ($1::uuid IS NULL AND keyspace_id IS NULL)) ORDER BY version", keyspace_id, purpose.as_str())
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(|row| row.checked(macs)).collect()
}

/// The keyset of those versions.
///
/// # Errors
/// `Corrupt` when it is none: its rows were changed past the server.
pub fn keyset(keks: &[KekRow]) -> Result<Keyset, Error> {
    Keyset::load(keks.iter().map(KekRow::version)).map_err(|error| Error::Corrupt(format!("keks: {error}")))
}

/// Those that wrap, or will soon: what every replica must be able to open. Their MACs are not checked yet.
///
/// # Errors
/// Those of Postgres.
pub async fn in_use(connection: &mut PgConnection) -> Result<Vec<WrappedKek>, Error> {
    Ok(wrapped!("WHERE state IN ('pre-active', 'active')").fetch_all(connection).await?)
}

/// A key that is being handed to the replicas.
pub struct PreActive {
    /// Names it in blob headers.
    pub id: Uuid,
    /// Its keyset.
    pub keyset_id: Uuid,
}

/// Those that are being handed to the replicas, oldest first.
///
/// # Errors
/// Those of Postgres.
pub async fn pre_active(connection: &mut PgConnection) -> Result<Vec<PreActive>, Error> {
    Ok(sqlx::query_as!(
        PreActive,
        "SELECT k.id, s.id AS keyset_id FROM keks k
         JOIN keysets s ON s.purpose = k.purpose AND s.keyspace_id IS NOT DISTINCT FROM k.keyspace_id
         WHERE k.state = 'pre-active' ORDER BY k.created_at"
    )
    .fetch_all(connection)
    .await?)
}

/// All KEKs that have material, by id.
///
/// # Errors
/// Those of Postgres.
pub async fn wrapped(connection: &mut PgConnection) -> Result<Vec<WrappedKek>, Error> {
    Ok(wrapped!("WHERE wrapped IS NOT NULL ORDER BY id").fetch_all(connection).await?)
}

/// The same, locked.
///
/// # Errors
/// Those of Postgres.
pub async fn lock_wrapped(connection: &mut PgConnection) -> Result<Vec<WrappedKek>, Error> {
    Ok(wrapped!("WHERE wrapped IS NOT NULL ORDER BY id FOR UPDATE").fetch_all(connection).await?)
}

/// How many KEKs another RWK wraps than that one.
///
/// # Errors
/// Those of Postgres.
pub async fn under_another(connection: &mut PgConnection, rwk_id: Uuid) -> Result<i64, Error> {
    Ok(sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM keks WHERE rwk_id <> $1"#, rwk_id)
        .fetch_one(connection)
        .await?)
}
