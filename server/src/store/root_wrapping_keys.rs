//! Table `root_wrapping_keys`.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::Error;

/// A root-wrapping key at rest.
pub struct WrappedRwk {
    /// Names it in blob headers.
    pub id: Uuid,
    /// Counts up from 1.
    pub version: i32,
    /// Which root key seals it.
    pub root_key_id: Uuid,
    /// The blob.
    pub wrapped: Vec<u8>,
}

/// The key in use.
///
/// # Errors
/// Those of Postgres.
pub async fn newest(connection: &mut PgConnection) -> Result<Option<WrappedRwk>, Error> {
    Ok(sqlx::query_as!(
        WrappedRwk,
        "SELECT id, version, root_key_id, wrapped FROM root_wrapping_keys ORDER BY version DESC LIMIT 1"
    )
    .fetch_optional(connection)
    .await?)
}

/// Adds a key.
///
/// # Errors
/// Those of Postgres.
pub async fn insert(
    connection: &mut PgConnection,
    key: &WrappedRwk,
    at: OffsetDateTime,
) -> Result<(), Error> {
    sqlx::query!(
        "INSERT INTO root_wrapping_keys (id, version, root_key_id, wrapped, created_at)
         VALUES ($1, $2, $3, $4, $5)",
        key.id,
        key.version,
        key.root_key_id,
        key.wrapped,
        at
    )
    .execute(connection)
    .await?;
    Ok(())
}
