//! Table `installation`.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::Error;

/// The installation's id, once it is initialised.
///
/// # Errors
/// Those of Postgres.
pub async fn find(connection: &mut PgConnection) -> Result<Option<Uuid>, Error> {
    Ok(sqlx::query_scalar!("SELECT id FROM installation").fetch_optional(connection).await?)
}

/// Adds the one row.
///
/// # Errors
/// Those of Postgres; a second row breaks the primary key.
pub async fn insert(connection: &mut PgConnection, id: Uuid, at: OffsetDateTime) -> Result<(), Error> {
    sqlx::query!("INSERT INTO installation (id, created_at) VALUES ($1, $2)", id, at)
        .execute(connection)
        .await?;
    Ok(())
}
