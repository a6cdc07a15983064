//! Table `secret_versions`, and its read together with DEK and labels.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::Error;

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
    /// The wrapped DEK.
    pub wrapped_dek: Vec<u8>,
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

/// Adds a version.
///
/// # Errors
/// Those of Postgres.
pub async fn insert(
    connection: &mut PgConnection,
    secret_id: Uuid,
    version: i32,
    payload: &[u8],
    created_at: OffsetDateTime,
    created_by: &str,
) -> Result<(), Error> {
    sqlx::query!(
        "INSERT INTO secret_versions (secret_id, version, payload, created_at, created_by)
         VALUES ($1, $2, $3, $4, $5)",
        secret_id,
        version,
        payload,
        created_at,
        created_by
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The live versions that `current` points at, of those paths that have one.
///
/// # Errors
/// Those of Postgres.
pub async fn current(connection: &mut PgConnection, paths: &[String]) -> Result<Vec<StoredVersion>, Error> {
    Ok(sqlx::query_as!(
        StoredVersion,
        r#"SELECT s.path, s.id AS secret_id, s.keyspace_id, v.version, v.payload AS "payload!", v.created_at,
                  v.created_by, d.id AS dek_id, d.kek_id, d.kek_version, d.wrapped AS wrapped_dek
           FROM secrets s
           JOIN secret_labels l ON l.secret_id = s.id AND l.label = 'current'
           JOIN secret_versions v ON v.secret_id = s.id AND v.version = l.version
           JOIN deks d ON d.secret_id = s.id AND d.version = v.version
           WHERE s.path = ANY ($1) AND v.deleted_at IS NULL AND v.destroyed_at IS NULL"#,
        paths
    )
    .fetch_all(connection)
    .await?)
}

/// One live version by its number.
///
/// # Errors
/// Those of Postgres.
pub async fn numbered(
    connection: &mut PgConnection,
    path: &str,
    version: i32,
) -> Result<Option<StoredVersion>, Error> {
    Ok(sqlx::query_as!(
        StoredVersion,
        r#"SELECT s.path, s.id AS secret_id, s.keyspace_id, v.version, v.payload AS "payload!", v.created_at,
                  v.created_by, d.id AS dek_id, d.kek_id, d.kek_version, d.wrapped AS wrapped_dek
           FROM secrets s
           JOIN secret_versions v ON v.secret_id = s.id
           JOIN deks d ON d.secret_id = s.id AND d.version = v.version
           WHERE s.path = $1 AND v.version = $2 AND v.deleted_at IS NULL AND v.destroyed_at IS NULL"#,
        path,
        version
    )
    .fetch_optional(connection)
    .await?)
}

/// A secret's versions, newest first.
///
/// # Errors
/// Those of Postgres.
pub async fn history(connection: &mut PgConnection, path: &str) -> Result<Vec<VersionSummary>, Error> {
    Ok(sqlx::query_as!(
        VersionSummary,
        r#"SELECT v.version, v.created_at, v.created_by, v.deleted_at, v.destroyed_at,
                  ARRAY(SELECT l.label FROM secret_labels l
                        WHERE l.secret_id = v.secret_id AND l.version = v.version ORDER BY l.label) AS "labels!",
                  d.kek_version AS "kek_version?"
           FROM secrets s
           JOIN secret_versions v ON v.secret_id = s.id
           LEFT JOIN deks d ON d.secret_id = v.secret_id AND d.version = v.version
           WHERE s.path = $1 ORDER BY v.version DESC"#,
        path
    )
    .fetch_all(connection)
    .await?)
}

/// Hides live versions. Gives those that it changed.
///
/// # Errors
/// Those of Postgres.
pub async fn delete(
    connection: &mut PgConnection,
    secret_id: Uuid,
    versions: &[i32],
    at: OffsetDateTime,
) -> Result<Vec<i32>, Error> {
    Ok(sqlx::query_scalar!(
        "UPDATE secret_versions SET deleted_at = $3
         WHERE secret_id = $1 AND version = ANY ($2) AND deleted_at IS NULL AND destroyed_at IS NULL
         RETURNING version",
        secret_id,
        versions,
        at
    )
    .fetch_all(connection)
    .await?)
}

/// Brings hidden versions back. Gives those that it changed.
///
/// # Errors
/// Those of Postgres.
pub async fn undelete(
    connection: &mut PgConnection,
    secret_id: Uuid,
    versions: &[i32],
) -> Result<Vec<i32>, Error> {
    Ok(sqlx::query_scalar!(
        "UPDATE secret_versions SET deleted_at = NULL
         WHERE secret_id = $1 AND version = ANY ($2) AND deleted_at IS NOT NULL AND destroyed_at IS NULL
         RETURNING version",
        secret_id,
        versions
    )
    .fetch_all(connection)
    .await?)
}

/// Removes versions' payloads for good. Their DEKs are removed by `deks::delete`. Gives those that it changed.
///
/// # Errors
/// Those of Postgres.
pub async fn destroy(
    connection: &mut PgConnection,
    secret_id: Uuid,
    versions: &[i32],
    at: OffsetDateTime,
) -> Result<Vec<i32>, Error> {
    Ok(sqlx::query_scalar!(
        "UPDATE secret_versions SET payload = NULL, destroyed_at = $3
         WHERE secret_id = $1 AND version = ANY ($2) AND destroyed_at IS NULL RETURNING version",
        secret_id,
        versions,
        at
    )
    .fetch_all(connection)
    .await?)
}
