//! Table `secret_labels`: which version is current, previous or pending.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::Error;

/// Points `current` at `version`, and `previous` at the version that was current.
///
/// # Errors
/// Those of Postgres.
pub async fn make_current(
    connection: &mut PgConnection,
    secret_id: Uuid,
    version: i32,
    at: OffsetDateTime,
) -> Result<(), Error> {
    let before = sqlx::query_scalar!(
        "SELECT version FROM secret_labels WHERE secret_id = $1 AND label = 'current' FOR UPDATE",
        secret_id
    )
    .fetch_optional(&mut *connection)
    .await?;
    if before == Some(version) {
        return Ok(());
    }
    if let Some(before) = before {
        point(connection, secret_id, "previous", before, at).await?;
    }
    point(connection, secret_id, "current", version, at).await
}

async fn point(
    connection: &mut PgConnection,
    secret_id: Uuid,
    label: &str,
    version: i32,
    at: OffsetDateTime,
) -> Result<(), Error> {
    sqlx::query!(
        "INSERT INTO secret_labels (secret_id, label, version, generation, updated_at) VALUES ($1, $2, $3, 1, $4)
         ON CONFLICT (secret_id, label)
         DO UPDATE SET version = $3, generation = secret_labels.generation + 1, updated_at = $4",
        secret_id,
        label,
        version,
        at
    )
    .execute(connection)
    .await?;
    Ok(())
}
