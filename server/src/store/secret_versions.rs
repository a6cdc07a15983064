//! Table `secret_versions`, and its read together with DEK and labels.

use keyfold_core::row_mac::RowEncoder;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    error::Error,
    integrity::row_macs::{Guarded, RowMacs},
    store::{Tx, secret_labels::Label},
};

/// A version with all that opening it takes, as ciphertext.
pub struct StoredVersion {
    /// The secret's path.
    pub path: String,
    /// The secret's id.
    pub secret_id: Uuid,
    /// Its keyspace.
    pub keyspace_id: Uuid,
    /// The version's number.
    pub version: i32,
    /// The encrypted fields.
    pub payload: Vec<u8>,
    /// When it was written.
    pub created_at: OffsetDateTime,
    /// Who wrote it.
    pub created_by: String,
    /// Names the DEK.
    pub dek_id: Uuid,
    /// Which KEK wraps the DEK.
    pub kek_id: Uuid,
    /// That KEK's version.
    pub kek_version: i32,
    /// That KEK's state, as `keyfold_core::key` names it.
    pub kek_state: String,
    /// The wrapped DEK.
    pub wrapped_dek: Vec<u8>,
}

/// What a row's MAC authenticates: in which state a version is. The envelope binds all else.
#[derive(Debug, Clone)]
pub struct VersionState {
    /// The secret.
    pub secret_id: Uuid,
    /// The version's number.
    pub version: i32,
    /// Rises by one with each change.
    pub generation: i64,
    /// When it was hidden.
    pub deleted_at: Option<OffsetDateTime>,
    /// When it was destroyed.
    pub destroyed_at: Option<OffsetDateTime>,
    /// When a key that had wrapped its DEK was declared compromised.
    pub exposed_at: Option<OffsetDateTime>,
    /// The version of that key.
    pub exposed_kek_version: Option<i32>,
    /// As it is stored.
    pub mac: Vec<u8>,
}

impl Guarded for VersionState {
    const TABLE: &'static str = "secret_versions";

    fn which(&self) -> String {
        format!("version {} of secret {}", self.version, self.secret_id)
    }

    fn encode(&self, row: RowEncoder) -> RowEncoder {
        row.uuid(self.secret_id)
            .i64(self.version.into())
            .i64(self.generation)
            .option(self.deleted_at, RowEncoder::time)
            .option(self.destroyed_at, RowEncoder::time)
            .option(self.exposed_at, RowEncoder::time)
            .option(self.exposed_kek_version.map(i64::from), RowEncoder::i64)
    }
}

impl VersionState {
    /// Of a version that is to be added: live, without a MAC.
    pub fn new(secret_id: Uuid, version: i32) -> Self {
        Self {
            secret_id,
            version,
            generation: 1,
            deleted_at: None,
            destroyed_at: None,
            exposed_at: None,
            exposed_kek_version: None,
            mac: Vec::new(),
        }
    }

    /// Checks the stored MAC.
    ///
    /// # Errors
    /// `Integrity`.
    pub fn checked(self, macs: &RowMacs) -> Result<Self, Error> {
        macs.check(&self, &self.mac)?;
        Ok(self)
    }
}

/// A version as the history shows it.
pub struct VersionSummary {
    /// The version's number.
    pub version: i32,
    /// When it was written.
    pub created_at: OffsetDateTime,
    /// Who wrote it.
    pub created_by: String,
    /// When it was hidden.
    pub deleted_at: Option<OffsetDateTime>,
    /// When it was destroyed.
    pub destroyed_at: Option<OffsetDateTime>,
    /// Labels that point at it.
    pub labels: Vec<String>,
    /// The version of the KEK that wraps its DEK; absent when destroyed.
    pub kek_version: Option<i32>,
}

/// A version, and the label by which it was found, if it was by one.
struct ReadRow {
    path: String,
    secret_id: Uuid,
    keyspace_id: Uuid,
    version: i32,
    payload: Vec<u8>,
    created_at: OffsetDateTime,
    created_by: String,
    generation: i64,
    deleted_at: Option<OffsetDateTime>,
    destroyed_at: Option<OffsetDateTime>,
    exposed_at: Option<OffsetDateTime>,
    exposed_kek_version: Option<i32>,
    mac: Vec<u8>,
    label_generation: Option<i64>,
    label_mac: Option<Vec<u8>>,
    dek_id: Uuid,
    kek_id: Uuid,
    kek_version: i32,
    kek_state: String,
    wrapped_dek: Vec<u8>,
}

impl ReadRow {
    /// The version, if it is live.
    fn checked(self, macs: &RowMacs) -> Result<Option<StoredVersion>, Error> {
        let (secret_id, version) = (self.secret_id, self.version);
        if let (Some(generation), Some(mac)) = (self.label_generation, &self.label_mac) {
            macs.check(&Label { secret_id, label: "current", version, generation }, mac)?;
        }
        let state = VersionState {
            secret_id,
            version,
            generation: self.generation,
            deleted_at: self.deleted_at,
            destroyed_at: self.destroyed_at,
            exposed_at: self.exposed_at,
            exposed_kek_version: self.exposed_kek_version,
            mac: self.mac,
        };
        let state = state.checked(macs)?;
        let is_live = state.deleted_at.is_none() && state.destroyed_at.is_none();
        Ok(is_live.then_some(StoredVersion {
            path: self.path,
            secret_id,
            keyspace_id: self.keyspace_id,
            version,
            payload: self.payload,
            created_at: self.created_at,
            created_by: self.created_by,
            dek_id: self.dek_id,
            kek_id: self.kek_id,
            kek_version: self.kek_version,
            kek_state: self.kek_state,
            wrapped_dek: self.wrapped_dek,
        }))
    }
}

/// The live versions that `current` points at, of those paths that have one.
///
/// # Errors
/// Those of Postgres; `Integrity` when a label or a version does not fit its MAC.
pub async fn current(
    connection: &mut PgConnection,
    macs: &RowMacs,
    paths: &[&str],
) -> Result<Vec<StoredVersion>, Error> {
    let rows = sqlx::query_as!(
        ReadRow,
        r#"SELECT s.path, s.id AS secret_id, s.keyspace_id, v.version, v.payload AS "payload!", v.created_at,
                  v.created_by, v.generation, v.deleted_at, v.destroyed_at, v.exposed_at, v.exposed_kek_version, v.mac,
                  l.generation AS "label_generation?", l.mac AS "label_mac?",
                  d.id AS dek_id, d.kek_id, d.kek_version, k.state AS kek_state, d.wrapped AS wrapped_dek
           FROM secrets s
           JOIN secret_labels l ON l.secret_id = s.id AND l.label = 'current'
           JOIN secret_versions v ON v.secret_id = s.id AND v.version = l.version
           JOIN deks d ON d.secret_id = s.id AND d.version = v.version
           JOIN keks k ON k.id = d.kek_id
           WHERE s.path = ANY ($1) AND v.payload IS NOT NULL"#,
        paths as _
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().filter_map(|row| row.checked(macs).transpose()).collect()
}

/// One live version by its number.
///
/// # Errors
/// Those of Postgres; `Integrity`.
pub async fn numbered(
    connection: &mut PgConnection,
    macs: &RowMacs,
    path: &str,
    version: i32,
) -> Result<Option<StoredVersion>, Error> {
    let row = sqlx::query_as!(
        ReadRow,
        r#"SELECT s.path, s.id AS secret_id, s.keyspace_id, v.version, v.payload AS "payload!", v.created_at,
                  v.created_by, v.generation, v.deleted_at, v.destroyed_at, v.exposed_at, v.exposed_kek_version, v.mac,
                  NULL::bigint AS label_generation, NULL::bytea AS label_mac,
                  d.id AS dek_id, d.kek_id, d.kek_version, k.state AS kek_state, d.wrapped AS wrapped_dek
           FROM secrets s
           JOIN secret_versions v ON v.secret_id = s.id
           JOIN deks d ON d.secret_id = s.id AND d.version = v.version
           JOIN keks k ON k.id = d.kek_id
           WHERE s.path = $1 AND v.version = $2 AND v.payload IS NOT NULL"#,
        path,
        version
    )
    .fetch_optional(connection)
    .await?;
    row.map_or(Ok(None), |row| row.checked(macs))
}

/// A secret's versions, newest first.
///
/// # Errors
/// Those of Postgres; `Integrity`.
pub async fn history(
    connection: &mut PgConnection,
    macs: &RowMacs,
    path: &str,
) -> Result<Vec<VersionSummary>, Error> {
    let rows = sqlx::query!(
        r#"SELECT v.secret_id, v.version, v.created_at, v.created_by, v.deleted_at, v.destroyed_at, v.generation,
                  v.exposed_at, v.exposed_kek_version, v.mac, d.kek_version AS "kek_version?",
                  ARRAY(SELECT l.label FROM secret_labels l
                        WHERE l.secret_id = v.secret_id AND l.version = v.version ORDER BY l.label) AS "labels!",
                  ARRAY(SELECT l.generation FROM secret_labels l
                        WHERE l.secret_id = v.secret_id AND l.version = v.version ORDER BY l.label) AS "generations!",
                  ARRAY(SELECT l.mac FROM secret_labels l
                        WHERE l.secret_id = v.secret_id AND l.version = v.version ORDER BY l.label) AS "macs!"
           FROM secrets s
           JOIN secret_versions v ON v.secret_id = s.id
           LEFT JOIN deks d ON d.secret_id = v.secret_id AND d.version = v.version
           WHERE s.path = $1 ORDER BY v.version DESC"#,
        path
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let (secret_id, version) = (row.secret_id, row.version);
            for ((label, generation), mac) in row.labels.iter().zip(row.generations).zip(row.macs) {
                macs.check(&Label { secret_id, label, version, generation }, &mac)?;
            }
            let state = VersionState {
                secret_id,
                version,
                generation: row.generation,
                deleted_at: row.deleted_at,
                destroyed_at: row.destroyed_at,
                exposed_at: row.exposed_at,
                exposed_kek_version: row.exposed_kek_version,
                mac: row.mac,
            };
            let state = state.checked(macs)?;
            Ok(VersionSummary {
                version,
                created_at: row.created_at,
                created_by: row.created_by,
                deleted_at: state.deleted_at,
                destroyed_at: state.destroyed_at,
                labels: row.labels,
                kek_version: row.kek_version,
            })
        })
        .collect()
}

/// Hides live versions. Gives those that it changed.
///
/// # Errors
/// Those of Postgres; `Integrity`.
pub async fn delete(
    tx: &mut Tx,
    macs: &RowMacs,
    secret_id: Uuid,
    versions: &[i32],
    at: OffsetDateTime,
) -> Result<Vec<i32>, Error> {
    let mut changed = lock(tx, macs, secret_id, versions).await?;
    changed.retain(|version| version.deleted_at.is_none() && version.destroyed_at.is_none());
    changed.iter_mut().for_each(|version| version.deleted_at = Some(at));
    write(tx, macs, changed).await
}

/// Brings hidden versions back. Gives those that it changed.
///
/// # Errors
/// Those of Postgres; `Integrity`.
pub async fn undelete(
    tx: &mut Tx,
    macs: &RowMacs,
    secret_id: Uuid,
    versions: &[i32],
) -> Result<Vec<i32>, Error> {
    let mut changed = lock(tx, macs, secret_id, versions).await?;
    changed.retain(|version| version.deleted_at.is_some() && version.destroyed_at.is_none());
    changed.iter_mut().for_each(|version| version.deleted_at = None);
    write(tx, macs, changed).await
}

/// Removes versions' payloads for good. Their DEKs are removed by `deks::delete`. Gives those that it changed.
///
/// # Errors
/// Those of Postgres; `Integrity`.
pub async fn destroy(
    tx: &mut Tx,
    macs: &RowMacs,
    secret_id: Uuid,
    versions: &[i32],
    at: OffsetDateTime,
) -> Result<Vec<i32>, Error> {
    let mut changed = lock(tx, macs, secret_id, versions).await?;
    changed.retain(|version| version.destroyed_at.is_none());
    changed.iter_mut().for_each(|version| version.destroyed_at = Some(at));
    write(tx, macs, changed).await
}

/// The states of a secret's versions, their rows locked until the transaction ends.
///
/// # Errors
/// Those of Postgres; `Integrity`.
pub async fn lock(
    tx: &mut Tx,
    macs: &RowMacs,
    secret_id: Uuid,
    versions: &[i32],
) -> Result<Vec<VersionState>, Error> {
    let rows = sqlx::query_as!(
        VersionState,
        "SELECT secret_id, version, generation, deleted_at, destroyed_at, exposed_at, exposed_kek_version, mac
         FROM secret_versions WHERE secret_id = $1 AND version = ANY ($2) ORDER BY version FOR NO KEY UPDATE",
        secret_id,
        versions
    )
    .fetch_all(&mut **tx)
    .await?;
    rows.into_iter().map(|row| row.checked(macs)).collect()
}

/// Writes changed states, of any secrets, whose rows are locked: each in its next generation and with its MAC. What is
/// destroyed loses its payload. Gives the versions' numbers.
///
/// # Errors
/// Those of Postgres.
pub async fn write(tx: &mut Tx, macs: &RowMacs, mut states: Vec<VersionState>) -> Result<Vec<i32>, Error> {
    if states.is_empty() {
        return Ok(Vec::new());
    }
    for state in &mut states {
        state.generation += 1;
        state.mac = macs.seal(state)?;
    }
    let column = |of: fn(&VersionState) -> Option<OffsetDateTime>| states.iter().map(of).collect::<Vec<_>>();
    let deleted = column(|state| state.deleted_at);
    let destroyed = column(|state| state.destroyed_at);
    let exposed = column(|state| state.exposed_at);
    let ids: Vec<_> = states.iter().map(|state| state.secret_id).collect();
    let versions: Vec<_> = states.iter().map(|state| state.version).collect();
    let generations: Vec<_> = states.iter().map(|state| state.generation).collect();
    let exposed_versions: Vec<_> = states.iter().map(|state| state.exposed_kek_version).collect();
    let sealed: Vec<_> = states.into_iter().map(|state| state.mac).collect();
    sqlx::query!(
        "UPDATE secret_versions v
         SET generation = n.generation, deleted_at = n.deleted_at, destroyed_at = n.destroyed_at,
             exposed_at = n.exposed_at, exposed_kek_version = n.exposed_kek_version, mac = n.mac,
             payload = CASE WHEN n.destroyed_at IS NULL THEN v.payload END
         FROM UNNEST($1::uuid[], $2::integer[], $3::bigint[], $4::timestamptz[], $5::timestamptz[], $6::timestamptz[],
                     $7::integer[], $8::bytea[])
             AS n (secret_id, version, generation, deleted_at, destroyed_at, exposed_at, exposed_kek_version, mac)
         WHERE v.secret_id = n.secret_id AND v.version = n.version",
        &ids,
        &versions,
        &generations,
        &deleted as &[Option<OffsetDateTime>],
        &destroyed as &[Option<OffsetDateTime>],
        &exposed as &[Option<OffsetDateTime>],
        &exposed_versions as &[Option<i32>],
        &sealed
    )
    .execute(&mut **tx)
    .await?;
    tx.changes().secrets += versions.len().cast_signed() as i64;
    Ok(versions)
}

/// Checks the MACs of up to `limit` versions behind `after`. Gives where to go on; nothing after the last.
///
/// # Errors
/// Those of Postgres; `Integrity`.
pub async fn check_page(
    connection: &mut PgConnection,
    macs: &RowMacs,
    after: Option<(Uuid, i32)>,
    limit: i64,
) -> Result<Option<(Uuid, i32)>, Error> {
    let (id, version) = after.unwrap_or_default();
    let rows = sqlx::query_as!(
        VersionState,
        "SELECT secret_id, version, generation, deleted_at, destroyed_at, exposed_at, exposed_kek_version, mac
         FROM secret_versions WHERE (secret_id, version) > ($1, $2) ORDER BY secret_id, version LIMIT $3",
        id,
        version,
        limit
    )
    .fetch_all(connection)
    .await?;
    rows.iter().try_for_each(|row| macs.check(row, &row.mac))?;
    let is_full = i64::try_from(rows.len()) == Ok(limit);
    Ok(rows.last().filter(|_| is_full).map(|row| (row.secret_id, row.version)))
}

/// The sum of all generations.
///
/// # Errors
/// Those of Postgres.
pub async fn generations(connection: &mut PgConnection) -> Result<i64, Error> {
    Ok(sqlx::query_scalar!(r#"SELECT COALESCE(sum(generation), 0)::bigint AS "sum!" FROM secret_versions"#)
        .fetch_one(connection)
        .await?)
}

/// Up to `limit` versions that have a payload, hidden ones too, after that secret and version, in this order.
///
/// # Errors
/// Those of Postgres.
pub async fn page_after(
    connection: &mut PgConnection,
    (secret_id, version): (Uuid, i32),
    limit: i64,
) -> Result<Vec<StoredVersion>, Error> {
    Ok(sqlx::query_as!(
        StoredVersion,
        r#"SELECT s.path, s.id AS secret_id, s.keyspace_id, v.version, v.payload AS "payload!", v.created_at,
                  v.created_by, d.id AS dek_id, d.kek_id, d.kek_version, k.state AS kek_state, d.wrapped AS wrapped_dek
           FROM secret_versions v
           JOIN secrets s ON s.id = v.secret_id
           JOIN deks d ON d.secret_id = v.secret_id AND d.version = v.version
           JOIN keks k ON k.id = d.kek_id
           WHERE (v.secret_id, v.version) > ($1, $2) AND v.payload IS NOT NULL
           ORDER BY v.secret_id, v.version LIMIT $3"#,
        secret_id,
        version,
        limit
    )
    .fetch_all(connection)
    .await?)
}

/// How many versions have a payload.
///
/// # Errors
/// Those of Postgres.
pub async fn count_with_payload(connection: &mut PgConnection) -> Result<i64, Error> {
    Ok(sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM secret_versions WHERE payload IS NOT NULL"#)
        .fetch_one(connection)
        .await?)
}

/// Makes the MACs anew that an older row-mac key made, of up to `limit` versions behind `after`; those that
/// others hold are passed over. Gives their number, and where to go on.
///
/// # Errors
/// Those of Postgres; `Integrity`.
pub async fn remac(
    connection: &mut PgConnection,
    macs: &RowMacs,
    after: Option<(Uuid, i32)>,
    limit: i64,
) -> Result<(u64, Option<(Uuid, i32)>), Error> {
    let (id, version) = after.unwrap_or_default();
    let active = macs.active_version()?.to_be_bytes();
    let rows = sqlx::query_as!(
        VersionState,
        "SELECT secret_id, version, generation, deleted_at, destroyed_at, exposed_at, exposed_kek_version, mac
         FROM secret_versions WHERE (secret_id, version) > ($1, $2) AND substr(mac, 1, 4) <> $3
         ORDER BY secret_id, version LIMIT $4 FOR NO KEY UPDATE SKIP LOCKED",
        id,
        version,
        &active[..],
        limit
    )
    .fetch_all(&mut *connection)
    .await?;
    let (mut ids, mut versions, mut remade) = (Vec::new(), Vec::new(), Vec::new());
    for row in &rows {
        let Some(mac) = macs.reseal(row, &row.mac)? else { continue };
        ids.push(row.secret_id);
        versions.push(row.version);
        remade.push(mac);
    }
    let done = sqlx::query!(
        "UPDATE secret_versions v SET mac = n.mac
         FROM UNNEST($1::uuid[], $2::integer[], $3::bytea[]) AS n (secret_id, version, mac)
         WHERE v.secret_id = n.secret_id AND v.version = n.version",
        &ids,
        &versions,
        &remade
    )
    .execute(connection)
    .await?;
    Ok((done.rows_affected(), rows.last().map(|row| (row.secret_id, row.version))))
}
