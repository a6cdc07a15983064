//! Table `quarantined_deks`: DEKs that a rewrap or re-encryption could not open.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::Error;

/// The most rows that a list shows.
const LIST_MAX: i64 = 1000;

/// A DEK in quarantine, as operators see it.
pub struct QuarantinedDek {
    /// Its keyspace's name.
    pub keyspace: String,
    /// The DEK.
    pub dek_id: Uuid,
    /// Its secret's path.
    pub path: String,
    /// Its version of the secret.
    pub version: i32,
    /// The version of the key that wraps it.
    pub kek_version: i32,
    /// What does not open.
    pub reason: String,
    /// When that was found.
    pub found_at: OffsetDateTime,
}

/// Puts DEKs into quarantine, each with its reason; those that are there already stay as they are. Gives how many are
/// new of each version of the key that wraps them, by that version.
///
/// # Errors
/// Those of Postgres.
pub async fn insert(
    connection: &mut PgConnection,
    ids: &[Uuid],
    reasons: &[String],
    at: OffsetDateTime,
) -> Result<Vec<(i32, i64)>, Error> {
    let found = sqlx::query!(
        r#"WITH added AS (
               INSERT INTO quarantined_deks (dek_id, keyspace_id, kek_id, kek_version, reason, found_at)
               SELECT d.id, d.keyspace_id, d.kek_id, d.kek_version, found.reason, $3
               FROM UNNEST($1::uuid[], $2::text[]) AS found (id, reason) JOIN deks d ON d.id = found.id
               ON CONFLICT (dek_id) DO NOTHING
               RETURNING kek_version
           )
           SELECT kek_version, count(*) AS "count!" FROM added GROUP BY kek_version ORDER BY kek_version"#,
        ids,
        reasons,
        at
    )
    .fetch_all(connection)
    .await?;
    Ok(found.into_iter().map(|row| (row.kek_version, row.count)).collect())
}

/// The first of one keyspace, or of all: oldest first.
///
/// # Errors
/// Those of Postgres.
pub async fn list(
    connection: &mut PgConnection,
    keyspace: Option<&str>,
) -> Result<Vec<QuarantinedDek>, Error> {
    Ok(sqlx::query_as!(
        QuarantinedDek,
        "SELECT o.name AS keyspace, q.dek_id, s.path, d.version, q.kek_version, q.reason, q.found_at
         FROM quarantined_deks q JOIN deks d ON d.id = q.dek_id JOIN secrets s ON s.id = d.secret_id
         JOIN objects o ON o.id = q.keyspace_id
         WHERE $1::text IS NULL OR o.name = $1
         ORDER BY q.found_at, s.path, d.version LIMIT $2",
        keyspace,
        LIST_MAX
    )
    .fetch_all(connection)
    .await?)
}

/// How many there are, of all keyspaces.
///
/// # Errors
/// Those of Postgres.
pub async fn count(connection: &mut PgConnection) -> Result<i64, Error> {
    Ok(sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM quarantined_deks"#)
        .fetch_one(connection)
        .await?)
}

/// Lets all of a keyspace out, to be tried again. Gives how many.
///
/// # Errors
/// Those of Postgres.
pub async fn release(connection: &mut PgConnection, keyspace_id: Uuid) -> Result<u64, Error> {
    let done = sqlx::query!("DELETE FROM quarantined_deks WHERE keyspace_id = $1", keyspace_id)
        .execute(connection)
        .await?;
    Ok(done.rows_affected())
}
