//! Table `keysets`: the versions of a key for one keyspace and purpose, or for the installation and a purpose.

use keyfold_core::key::Purpose;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{error::Error, keys::keyring::stored};

/// A keyset, without its keys.
#[derive(Debug, Clone)]
pub struct KeysetRow {
    /// Its offset in the schedule is derived from it.
    pub id: Uuid,
    /// Its keyspace; absent for keys of the installation.
    pub keyspace_id: Option<Uuid>,
    /// The keyspace's name; empty for keys of the installation.
    pub keyspace: String,
    /// What its keys are for.
    pub purpose: Purpose,
    /// Since when its schedule is paused.
    pub paused_at: Option<OffsetDateTime>,
    /// Who paused it.
    pub paused_by: Option<String>,
    /// The last run that was run or passed over.
    pub last_scheduled_run: Option<OffsetDateTime>,
    /// The version to which the last rewrap has moved all DEKs.
    pub rewrapped_version: i32,
}

impl KeysetRow {
    /// Which key it is, in words.
    pub fn in_words(&self) -> String {
        match self.keyspace.as_str() {
            "" => format!("{} key of the installation", self.purpose),
            keyspace => format!("key of keyspace {keyspace}"),
        }
    }
}

struct Row {
    id: Uuid,
    keyspace_id: Option<Uuid>,
    keyspace: String,
    purpose: String,
    paused_at: Option<OffsetDateTime>,
    paused_by: Option<String>,
    last_scheduled_run: Option<OffsetDateTime>,
    rewrapped_version: i32,
}

impl TryFrom<Row> for KeysetRow {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self, Error> {
        Ok(Self {
            id: row.id,
            keyspace_id: row.keyspace_id,
            keyspace: row.keyspace,
            purpose: Purpose::parse(&row.purpose)
                .ok_or_else(|| Error::Corrupt(format!("keysets.purpose of {}", row.id)))?,
            paused_at: row.paused_at,
            paused_by: row.paused_by,
            last_scheduled_run: row.last_scheduled_run,
            rewrapped_version: row.rewrapped_version,
        })
    }
}

/// Adds a keyset without keys.
///
/// # Errors
/// Those of Postgres.
pub async fn insert(
    connection: &mut PgConnection,
    id: Uuid,
    keyspace_id: Option<Uuid>,
    purpose: Purpose,
    at: OffsetDateTime,
) -> Result<(), Error> {
    sqlx::query!(
        "INSERT INTO keysets (id, keyspace_id, purpose, created_at) VALUES ($1, $2, $3, $4)",
        id,
        keyspace_id,
        purpose.as_str(),
        at
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The keysets of one keyspace, or all: by keyspace and purpose.
///
/// # Errors
/// Those of Postgres.
pub async fn list(connection: &mut PgConnection, keyspace: Option<&str>) -> Result<Vec<KeysetRow>, Error> {
    sqlx::query_as!(
        Row,
        r#"SELECT s.id, s.keyspace_id, COALESCE(o.name, '') AS "keyspace!", s.purpose, s.paused_at, s.paused_by,
                  s.last_scheduled_run, s.rewrapped_version
           FROM keysets s LEFT JOIN objects o ON o.id = s.keyspace_id
           WHERE $1::text IS NULL OR o.name = $1
           ORDER BY 3, s.purpose"#,
        keyspace
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(KeysetRow::try_from)
    .collect()
}

/// The keyset of a keyspace (empty: of the installation) and a purpose, with its row's lock: until the transaction ends,
/// nobody else changes its keys.
///
/// # Errors
/// Those of Postgres.
pub async fn lock(
    connection: &mut PgConnection,
    keyspace: &str,
    purpose: Purpose,
) -> Result<Option<KeysetRow>, Error> {
    sqlx::query_as!(
        Row,
        r#"SELECT s.id, s.keyspace_id, COALESCE(o.name, '') AS "keyspace!", s.purpose, s.paused_at, s.paused_by,
                  s.last_scheduled_run, s.rewrapped_version
           FROM keysets s LEFT JOIN objects o ON o.id = s.keyspace_id
           WHERE COALESCE(o.name, '') = $1 AND s.purpose = $2
           FOR UPDATE OF s"#,
        keyspace,
        purpose.as_str()
    )
    .fetch_optional(connection)
    .await?
    .map(KeysetRow::try_from)
    .transpose()
}

/// The same by its id, unless somebody holds the lock: then there is nothing to be done here.
///
/// # Errors
/// Those of Postgres.
pub async fn try_lock(connection: &mut PgConnection, id: Uuid) -> Result<Option<KeysetRow>, Error> {
    sqlx::query_as!(
        Row,
        r#"SELECT s.id, s.keyspace_id, COALESCE(o.name, '') AS "keyspace!", s.purpose, s.paused_at, s.paused_by,
                  s.last_scheduled_run, s.rewrapped_version
           FROM keysets s LEFT JOIN objects o ON o.id = s.keyspace_id
           WHERE s.id = $1
           FOR UPDATE OF s SKIP LOCKED"#,
        id
    )
    .fetch_optional(connection)
    .await?
    .map(KeysetRow::try_from)
    .transpose()
}

/// Pauses its schedule.
///
/// # Errors
/// Those of Postgres.
pub async fn pause(
    connection: &mut PgConnection,
    id: Uuid,
    at: OffsetDateTime,
    by: &str,
) -> Result<(), Error> {
    sqlx::query!("UPDATE keysets SET paused_at = $2, paused_by = $3 WHERE id = $1", id, at, by)
        .execute(connection)
        .await?;
    Ok(())
}

/// Lets its schedule go on.
///
/// # Errors
/// Those of Postgres.
pub async fn resume(connection: &mut PgConnection, id: Uuid) -> Result<(), Error> {
    sqlx::query!("UPDATE keysets SET paused_at = NULL, paused_by = NULL WHERE id = $1", id)
        .execute(connection)
        .await?;
    Ok(())
}

/// Notes the run that was run or passed over.
///
/// # Errors
/// Those of Postgres.
pub async fn note_run(connection: &mut PgConnection, id: Uuid, run: OffsetDateTime) -> Result<(), Error> {
    sqlx::query!("UPDATE keysets SET last_scheduled_run = $2 WHERE id = $1", id, run)
        .execute(connection)
        .await?;
    Ok(())
}

/// Notes that no DEK is left to be moved to a version.
///
/// # Errors
/// Those of Postgres.
pub async fn note_rewrapped(connection: &mut PgConnection, id: Uuid, version: u32) -> Result<(), Error> {
    sqlx::query!("UPDATE keysets SET rewrapped_version = $2 WHERE id = $1", id, stored(version)?)
        .execute(connection)
        .await?;
    Ok(())
}

/// Whether all DEKs have been moved to that version, or a later one.
///
/// # Errors
/// Those of Postgres.
pub async fn is_rewrapped(connection: &mut PgConnection, id: Uuid, version: u32) -> Result<bool, Error> {
    let found = sqlx::query_scalar!(
        r#"SELECT rewrapped_version >= $2 AS "is_rewrapped!" FROM keysets WHERE id = $1"#,
        id,
        stored(version)?
    )
    .fetch_optional(connection)
    .await?;
    // One that was deleted meanwhile has nothing to move.
    Ok(found.unwrap_or(true))
}

/// A keyset of which it is not noted yet that all DEKs are under the active key.
pub struct Unfinished {
    /// The keyset.
    pub id: Uuid,
    /// Its keyspace.
    pub keyspace_id: Uuid,
    /// The active key's version.
    pub active_version: i32,
}

/// Those.
///
/// # Errors
/// Those of Postgres.
pub async fn unfinished(connection: &mut PgConnection) -> Result<Vec<Unfinished>, Error> {
    Ok(sqlx::query_as!(
        Unfinished,
        r#"SELECT s.id, s.keyspace_id AS "keyspace_id!", k.version AS active_version FROM keysets s
           JOIN keks k ON k.keyspace_id = s.keyspace_id AND k.purpose = s.purpose AND k.state = 'active'
           WHERE s.rewrapped_version < k.version"#
    )
    .fetch_all(connection)
    .await?)
}
