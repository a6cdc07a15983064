//! Table `ca_certificates`: the internal authority's certificates, and the keys of those that still sign or will.

use keyfold_core::row_mac::RowEncoder;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    error::Error,
    integrity::row_macs::{Guarded, RowMacs},
};

/// An authority as its row has it.
#[derive(Clone)]
pub struct CaCertificate {
    /// Counts up from 1.
    pub version: i32,
    /// `next`, `active` or `retired`.
    pub state: String,
    /// DER.
    pub certificate: Vec<u8>,
    /// Which key of purpose `internal-ca` wraps the private key; absent once retired.
    pub kek_id: Option<Uuid>,
    /// That key's version.
    pub kek_version: Option<i32>,
    /// The private key; absent once retired.
    pub wrapped_key: Option<Vec<u8>>,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// The certificate's end.
    pub expires_at: OffsetDateTime,
    /// When it began to sign.
    pub activated_at: Option<OffsetDateTime>,
    /// When it stopped.
    pub retired_at: Option<OffsetDateTime>,
    /// Over all but the private key and the key that wraps it, which are bound to the version. Of a row that is not written yet empty.
    pub mac: Vec<u8>,
}

impl Guarded for CaCertificate {
    const TABLE: &'static str = "ca_certificates";

    fn which(&self) -> String {
        format!("version {}", self.version)
    }

    fn encode(&self, row: RowEncoder) -> RowEncoder {
        row.i64(self.version.into())
            .str(&self.state)
            .bytes(&self.certificate)
            .time(self.created_at)
            .time(self.expires_at)
            .option(self.activated_at, RowEncoder::time)
            .option(self.retired_at, RowEncoder::time)
    }
}

/// All authorities there ever were, oldest first.
///
/// # Errors
/// Those of Postgres; `Integrity` when one is not what a server wrote.
pub async fn all(connection: &mut PgConnection, macs: &RowMacs) -> Result<Vec<CaCertificate>, Error> {
    let rows = sqlx::query_as!(
        CaCertificate,
        "SELECT version, state, certificate, kek_id, kek_version, wrapped_key, created_at, expires_at, activated_at,
                retired_at, mac
         FROM ca_certificates ORDER BY version"
    )
    .fetch_all(connection)
    .await?;
    rows.iter().try_for_each(|row| macs.check(row, &row.mac))?;
    Ok(rows)
}

/// Waits for whoever else changes authorities, and keeps others waiting until the transaction ends. There may be no row
/// to lock yet.
///
/// # Errors
/// Those of Postgres.
pub async fn lock(connection: &mut PgConnection) -> Result<(), Error> {
    sqlx::query!("LOCK TABLE ca_certificates IN SHARE ROW EXCLUSIVE MODE").execute(connection).await?;
    Ok(())
}

/// Adds an authority.
///
/// # Errors
/// Those of Postgres; a second one that is active or next breaks a partial unique index.
pub async fn insert(connection: &mut PgConnection, macs: &RowMacs, row: &CaCertificate) -> Result<(), Error> {
    sqlx::query!(
        "INSERT INTO ca_certificates
             (version, state, certificate, kek_id, kek_version, wrapped_key, created_at, expires_at, mac, activated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        row.version,
        row.state,
        row.certificate,
        row.kek_id,
        row.kek_version,
        row.wrapped_key,
        row.created_at,
        row.expires_at,
        macs.seal(row)?,
        row.activated_at
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Lets the next authority sign.
///
/// # Errors
/// Those of Postgres.
pub async fn activate(
    connection: &mut PgConnection,
    macs: &RowMacs,
    next: &CaCertificate,
    at: OffsetDateTime,
) -> Result<(), Error> {
    let active = CaCertificate { state: "active".into(), activated_at: Some(at), ..next.clone() };
    sqlx::query!(
        "UPDATE ca_certificates SET state = $2, activated_at = $3, mac = $4 WHERE version = $1",
        active.version,
        active.state,
        at,
        macs.seal(&active)?
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Stops an authority from signing for good: its private key goes.
///
/// # Errors
/// Those of Postgres.
pub async fn retire(
    connection: &mut PgConnection,
    macs: &RowMacs,
    row: &CaCertificate,
    at: OffsetDateTime,
) -> Result<(), Error> {
    let retired = CaCertificate { state: "retired".into(), retired_at: Some(at), ..row.clone() };
    sqlx::query!(
        "UPDATE ca_certificates
         SET state = $2, retired_at = $3, mac = $4, kek_id = NULL, kek_version = NULL, wrapped_key = NULL
         WHERE version = $1",
        retired.version,
        retired.state,
        at,
        macs.seal(&retired)?
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Puts a private key under another key, as `row` has it now.
///
/// # Errors
/// Those of Postgres.
pub async fn rewrap(connection: &mut PgConnection, row: &CaCertificate) -> Result<(), Error> {
    sqlx::query!(
        "UPDATE ca_certificates SET kek_id = $2, kek_version = $3, wrapped_key = $4 WHERE version = $1",
        row.version,
        row.kek_id,
        row.kek_version,
        row.wrapped_key
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Gives a row, which was checked, a MAC by the key in use.
///
/// # Errors
/// Those of Postgres.
pub async fn remac(connection: &mut PgConnection, macs: &RowMacs, row: &CaCertificate) -> Result<(), Error> {
    let mac = macs.seal(row)?;
    sqlx::query!("UPDATE ca_certificates SET mac = $2 WHERE version = $1", row.version, mac)
        .execute(connection)
        .await?;
    Ok(())
}
