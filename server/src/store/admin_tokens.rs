//! Table `admin_tokens`.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{authn::AdminToken, error::Error};

/// The tokens that are not revoked.
///
/// # Errors
/// Those of Postgres.
pub async fn live(connection: &mut PgConnection) -> Result<Vec<AdminToken>, Error> {
    let rows = sqlx::query!("SELECT name, token_hash FROM admin_tokens WHERE revoked_at IS NULL")
        .fetch_all(connection)
        .await?;
    rows.into_iter()
        .map(|row| {
            let token_hash = row.token_hash.try_into().map_err(|_| {
                Error::Corrupt(format!("admin_tokens.token_hash of {}: not 32 bytes", row.name))
            })?;
            Ok(AdminToken { name: row.name, token_hash })
        })
        .collect()
}

/// Adds a token by its hash.
///
/// # Errors
/// Those of Postgres.
pub async fn insert(
    connection: &mut PgConnection,
    id: Uuid,
    token: &AdminToken,
    at: OffsetDateTime,
) -> Result<(), Error> {
    sqlx::query!(
        "INSERT INTO admin_tokens (id, name, token_hash, created_at) VALUES ($1, $2, $3, $4)",
        id,
        token.name,
        &token.token_hash[..],
        at
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Whether a token of this name is not revoked.
///
/// # Errors
/// Those of Postgres.
pub async fn is_live(connection: &mut PgConnection, name: &str) -> Result<bool, Error> {
    Ok(sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT 1 FROM admin_tokens WHERE name = $1 AND revoked_at IS NULL) AS "live!""#,
        name
    )
    .fetch_one(connection)
    .await?)
}

/// Makes the token of this name void. Says whether it was live.
///
/// # Errors
/// Those of Postgres.
pub async fn revoke(connection: &mut PgConnection, name: &str, at: OffsetDateTime) -> Result<bool, Error> {
    let done = sqlx::query!(
        "UPDATE admin_tokens SET revoked_at = $2 WHERE name = $1 AND revoked_at IS NULL",
        name,
        at
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}
