//! Table `root_wrapping_keys`.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    error::Error,
    keys::root::{Custody, CustodyKind},
};

/// A root-wrapping key at rest.
#[derive(Clone)]
pub struct WrappedRwk {
    /// Names it in blob headers.
    pub id: Uuid,
    /// Counts up from 1.
    pub version: i32,
    /// Which root key seals it.
    pub root_key_id: Uuid,
    /// The blob.
    pub wrapped: Vec<u8>,
    /// Who keeps that root key: a [`CustodyKind`].
    pub custody_kind: String,
    /// What its keeper needs to give it again.
    pub custody: Vec<u8>,
    /// The RWK once more, sealed by the recovery key.
    pub recovery_wrapped: Option<Vec<u8>>,
    /// When it was made.
    pub created_at: OffsetDateTime,
}

impl WrappedRwk {
    /// Who keeps its root key.
    ///
    /// # Errors
    /// `Corrupt` for a kind that the schema does not allow.
    pub fn custody(&self) -> Result<Custody, Error> {
        let kind = CustodyKind::parse(&self.custody_kind);
        let unknown = || Error::Corrupt(format!("root_wrapping_keys.custody_kind of {}: unknown", self.id));
        Ok(Custody { kind: kind.ok_or_else(unknown)?, data: self.custody.clone() })
    }
}

/// The key in use.
///
/// # Errors
/// Those of Postgres.
pub async fn newest(connection: &mut PgConnection) -> Result<Option<WrappedRwk>, Error> {
    Ok(sqlx::query_as!(
        WrappedRwk,
        "SELECT id, version, root_key_id, wrapped, custody_kind, custody, recovery_wrapped, created_at
         FROM root_wrapping_keys ORDER BY version DESC LIMIT 1"
    )
    .fetch_optional(connection)
    .await?)
}

/// Locks the key of that id, so that no key is wrapped by it until the transaction ends. Gives `None` when it is no
/// longer there.
///
/// # Errors
/// Those of Postgres.
pub async fn lock(connection: &mut PgConnection, id: Uuid) -> Result<Option<WrappedRwk>, Error> {
    Ok(sqlx::query_as!(
        WrappedRwk,
        "SELECT id, version, root_key_id, wrapped, custody_kind, custody, recovery_wrapped, created_at
         FROM root_wrapping_keys WHERE id = $1 FOR UPDATE",
        id
    )
    .fetch_optional(connection)
    .await?)
}

/// Adds a key.
///
/// # Errors
/// Those of Postgres.
pub async fn insert(connection: &mut PgConnection, key: &WrappedRwk) -> Result<(), Error> {
    sqlx::query!(
        "INSERT INTO root_wrapping_keys
             (id, version, root_key_id, wrapped, custody_kind, custody, recovery_wrapped, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        key.id,
        key.version,
        key.root_key_id,
        key.wrapped,
        key.custody_kind,
        key.custody,
        key.recovery_wrapped.as_deref(),
        key.created_at
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Puts the copy for recovery in place.
///
/// # Errors
/// Those of Postgres.
pub async fn set_recovery(connection: &mut PgConnection, id: Uuid, wrapped: &[u8]) -> Result<(), Error> {
    sqlx::query!("UPDATE root_wrapping_keys SET recovery_wrapped = $2 WHERE id = $1", id, wrapped)
        .execute(connection)
        .await?;
    Ok(())
}

/// Removes a key. One that something still names stops it.
///
/// # Errors
/// Those of Postgres.
pub async fn delete(connection: &mut PgConnection, id: Uuid) -> Result<(), Error> {
    sqlx::query!("DELETE FROM root_wrapping_keys WHERE id = $1", id).execute(connection).await?;
    Ok(())
}

/// Keys in the table.
///
/// # Errors
/// Those of Postgres.
pub async fn count(connection: &mut PgConnection) -> Result<i64, Error> {
    Ok(sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM root_wrapping_keys"#)
        .fetch_one(connection)
        .await?)
}
