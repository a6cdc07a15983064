//! Table `recovery_keys`: one row at most.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::Error;

/// The recovery key at rest.
#[derive(Clone)]
pub struct WrappedRecoveryKey {
    /// Computed from the key.
    pub id: Uuid,
    /// Which RWK wraps it.
    pub rwk_id: Uuid,
    /// The blob.
    pub wrapped: Vec<u8>,
    /// Of its shares, in JSON.
    pub commitments: Vec<u8>,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// By whom.
    pub created_by: String,
    /// When its shares last opened a backup.
    pub last_drilled_at: Option<OffsetDateTime>,
}

/// The key, if there is one.
///
/// # Errors
/// Those of Postgres.
pub async fn find(connection: &mut PgConnection) -> Result<Option<WrappedRecoveryKey>, Error> {
    Ok(sqlx::query_as!(
        WrappedRecoveryKey,
        "SELECT id, rwk_id, wrapped, commitments, created_at, created_by, last_drilled_at
         FROM recovery_keys ORDER BY created_at DESC LIMIT 1"
    )
    .fetch_optional(connection)
    .await?)
}

/// Puts a key in the place of the one before.
///
/// # Errors
/// Those of Postgres.
pub async fn replace(connection: &mut PgConnection, key: &WrappedRecoveryKey) -> Result<(), Error> {
    sqlx::query!("DELETE FROM recovery_keys").execute(&mut *connection).await?;
    sqlx::query!(
        "INSERT INTO recovery_keys (id, rwk_id, wrapped, commitments, created_at, created_by)
         VALUES ($1, $2, $3, $4, $5, $6)",
        key.id,
        key.rwk_id,
        key.wrapped,
        key.commitments,
        key.created_at,
        key.created_by
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Moves the key under another RWK.
///
/// # Errors
/// Those of Postgres.
pub async fn rewrap(
    connection: &mut PgConnection,
    id: Uuid,
    rwk_id: Uuid,
    wrapped: &[u8],
) -> Result<(), Error> {
    sqlx::query!("UPDATE recovery_keys SET rwk_id = $2, wrapped = $3 WHERE id = $1", id, rwk_id, wrapped)
        .execute(connection)
        .await?;
    Ok(())
}

/// Notes that the key's shares have opened a backup. One that was replaced meanwhile is passed over.
///
/// # Errors
/// Those of Postgres.
pub async fn note_drill(connection: &mut PgConnection, id: Uuid, at: OffsetDateTime) -> Result<(), Error> {
    sqlx::query!("UPDATE recovery_keys SET last_drilled_at = $2 WHERE id = $1", id, at)
        .execute(connection)
        .await?;
    Ok(())
}
