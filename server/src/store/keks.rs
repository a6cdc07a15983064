//! Table `keks`: key-encryption keys.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::Error;

/// The purpose of a KEK that wraps secrets' DEKs.
pub const PURPOSE_DATA: &str = "data";

/// A KEK at rest.
#[derive(Debug)]
pub struct WrappedKek {
    /// Names it in blob headers.
    pub id: Uuid,
    /// Its keyspace.
    pub keyspace_id: Uuid,
    /// Counts up from 1.
    pub version: i32,
    /// Which RWK wraps it.
    pub rwk_id: Uuid,
    /// The blob.
    pub wrapped: Vec<u8>,
}

/// A KEK as operators see it.
pub struct KekSummary {
    /// Its keyspace's name.
    pub keyspace: String,
    /// What it wraps.
    pub purpose: String,
    /// Counts up from 1.
    pub version: i32,
    /// `active` or `deactivated`.
    pub state: String,
    /// Names it in blob headers.
    pub id: Uuid,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When it stopped wrapping.
    pub deactivated_at: Option<OffsetDateTime>,
    /// DEKs that it wraps now.
    pub wrapped_deks: i64,
}

/// The keyspace's active KEK.
///
/// # Errors
/// Those of Postgres.
pub async fn active(connection: &mut PgConnection, keyspace_id: Uuid) -> Result<Option<WrappedKek>, Error> {
    Ok(sqlx::query_as!(
        WrappedKek,
        "SELECT id, keyspace_id, version, rwk_id, wrapped FROM keks
         WHERE keyspace_id = $1 AND purpose = $2 AND state = 'active'",
        keyspace_id,
        PURPOSE_DATA
    )
    .fetch_optional(connection)
    .await?)
}

/// One KEK.
///
/// # Errors
/// Those of Postgres.
pub async fn find(connection: &mut PgConnection, id: Uuid) -> Result<Option<WrappedKek>, Error> {
    Ok(sqlx::query_as!(
        WrappedKek,
        "SELECT id, keyspace_id, version, rwk_id, wrapped FROM keks WHERE id = $1",
        id
    )
    .fetch_optional(connection)
    .await?)
}

/// All KEKs of one keyspace, or of all: by keyspace and purpose, newest version first.
///
/// # Errors
/// Those of Postgres.
pub async fn list(connection: &mut PgConnection, keyspace: Option<&str>) -> Result<Vec<KekSummary>, Error> {
    Ok(sqlx::query_as!(
        KekSummary,
        r#"SELECT o.name AS keyspace, k.purpose, k.version, k.state, k.id, k.created_at, k.deactivated_at,
                  (SELECT count(*) FROM deks d WHERE d.kek_id = k.id) AS "wrapped_deks!"
           FROM keks k JOIN objects o ON o.id = k.keyspace_id
           WHERE $1::text IS NULL OR o.name = $1
           ORDER BY o.name, k.purpose, k.version DESC"#,
        keyspace
    )
    .fetch_all(connection)
    .await?)
}

/// Adds a KEK and makes it active. The one before it must be deactivated first.
///
/// # Errors
/// Those of Postgres; a second active key breaks the partial unique index.
pub async fn insert_active(
    connection: &mut PgConnection,
    kek: &WrappedKek,
    at: OffsetDateTime,
) -> Result<(), Error> {
    sqlx::query!(
        "INSERT INTO keks (id, keyspace_id, purpose, version, state, rwk_id, wrapped, created_at)
         VALUES ($1, $2, $3, $4, 'active', $5, $6, $7)",
        kek.id,
        kek.keyspace_id,
        PURPOSE_DATA,
        kek.version,
        kek.rwk_id,
        kek.wrapped,
        at
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Stops a KEK from wrapping; it still unwraps. Waits for transactions that are writing a DEK under it.
///
/// # Errors
/// Those of Postgres.
pub async fn deactivate(connection: &mut PgConnection, id: Uuid, at: OffsetDateTime) -> Result<(), Error> {
    sqlx::query!(
        "UPDATE keks SET state = 'deactivated', deactivated_at = $2 WHERE id = $1 AND state = 'active'",
        id,
        at
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes all KEKs of a keyspace. A DEK under one of them stops it.
///
/// # Errors
/// Those of Postgres.
pub async fn delete_all(connection: &mut PgConnection, keyspace_id: Uuid) -> Result<(), Error> {
    sqlx::query!("DELETE FROM keks WHERE keyspace_id = $1", keyspace_id).execute(connection).await?;
    Ok(())
}
