//! Table `destruction_certificates`: signed proofs of keys' destruction.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::Error;

/// A certificate as it is stored.
pub struct StoredCertificate {
    /// The keyspace's name when the key was destroyed; empty for a key of the installation.
    pub keyspace: String,
    /// What the key was for.
    pub purpose: String,
    /// The key's version.
    pub version: i32,
    /// The signed text.
    pub certificate: String,
    /// When the key was destroyed.
    pub created_at: OffsetDateTime,
}

/// Adds the certificate of a key.
///
/// # Errors
/// Those of Postgres.
pub async fn insert(
    connection: &mut PgConnection,
    kek_id: Uuid,
    certificate: &StoredCertificate,
) -> Result<(), Error> {
    sqlx::query!(
        "INSERT INTO destruction_certificates (kek_id, keyspace, purpose, version, certificate, created_at)
         VALUES ($1, $2, $3, $4, $5, $6)",
        kek_id,
        certificate.keyspace,
        certificate.purpose,
        certificate.version,
        certificate.certificate,
        certificate.created_at
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Up to `limit` certificates, of one keyspace and one version if they are named: newest first.
///
/// # Errors
/// Those of Postgres.
pub async fn list(
    connection: &mut PgConnection,
    keyspace: Option<&str>,
    version: Option<i32>,
    limit: i64,
) -> Result<Vec<StoredCertificate>, Error> {
    Ok(sqlx::query_as!(
        StoredCertificate,
        "SELECT keyspace, purpose, version, certificate, created_at FROM destruction_certificates
         WHERE ($1::text IS NULL OR keyspace = $1) AND ($2::integer IS NULL OR version = $2)
         ORDER BY created_at DESC, kek_id LIMIT $3",
        keyspace,
        version,
        limit
    )
    .fetch_all(connection)
    .await?)
}
