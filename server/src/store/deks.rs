//! Table `deks`: data-encryption keys.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::error::Error;

/// A DEK at rest.
pub struct WrappedDek {
    /// Names it in the payload's header.
    pub id: Uuid,
    /// Its secret.
    pub secret_id: Uuid,
    /// Its version of the secret.
    pub version: i32,
    /// The secret's keyspace.
    pub keyspace_id: Uuid,
    /// Which KEK wraps it.
    pub kek_id: Uuid,
    /// That KEK's version.
    pub kek_version: i32,
    /// The blob.
    pub wrapped: Vec<u8>,
}

/// Adds a DEK. A trigger refuses one under a KEK that is not active.
///
/// # Errors
/// Those of Postgres.
pub async fn insert(connection: &mut PgConnection, dek: &WrappedDek) -> Result<(), Error> {
    sqlx::query!(
        "INSERT INTO deks (id, secret_id, version, keyspace_id, kek_id, kek_version, wrapped)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        dek.id,
        dek.secret_id,
        dek.version,
        dek.keyspace_id,
        dek.kek_id,
        dek.kek_version,
        dek.wrapped
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Up to `limit` of a keyspace's DEKs that a KEK older than `version` wraps, locked; rows that another worker holds
/// are passed over.
///
/// # Errors
/// Those of Postgres.
pub async fn claim_older_than(
    connection: &mut PgConnection,
    keyspace_id: Uuid,
    version: i32,
    limit: i64,
) -> Result<Vec<WrappedDek>, Error> {
    Ok(sqlx::query_as!(
        WrappedDek,
        "SELECT id, secret_id, version, keyspace_id, kek_id, kek_version, wrapped FROM deks
         WHERE keyspace_id = $1 AND kek_version < $2 ORDER BY kek_version, id LIMIT $3
         FOR UPDATE SKIP LOCKED",
        keyspace_id,
        version,
        limit
    )
    .fetch_all(connection)
    .await?)
}

/// Writes DEKs wrapped anew under one KEK, in one statement.
///
/// # Errors
/// Those of Postgres.
pub async fn rewrap(
    connection: &mut PgConnection,
    kek_id: Uuid,
    kek_version: i32,
    ids: &[Uuid],
    wrapped: &[Vec<u8>],
) -> Result<u64, Error> {
    let done = sqlx::query!(
        "UPDATE deks SET kek_id = $1, kek_version = $2, wrapped = new.wrapped
         FROM UNNEST($3::uuid[], $4::bytea[]) AS new (id, wrapped) WHERE deks.id = new.id",
        kek_id,
        kek_version,
        ids,
        wrapped
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// Removes the DEKs of destroyed versions.
///
/// # Errors
/// Those of Postgres.
pub async fn delete(connection: &mut PgConnection, secret_id: Uuid, versions: &[i32]) -> Result<(), Error> {
    sqlx::query!("DELETE FROM deks WHERE secret_id = $1 AND version = ANY ($2)", secret_id, versions)
        .execute(connection)
        .await?;
    Ok(())
}
