//! Table `admin_tokens`.

use keyfold_core::row_mac::RowEncoder;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    authn::AdminToken,
    error::Error,
    integrity::{
        RowChange,
        row_macs::{Guarded, RowMacs},
    },
    store::Tx,
};

struct Row {
    id: Uuid,
    name: String,
    token_hash: Vec<u8>,
    revoked_at: Option<OffsetDateTime>,
    mac: Vec<u8>,
}

impl Guarded for Row {
    const TABLE: &'static str = "admin_tokens";

    fn which(&self) -> String {
        self.name.clone()
    }

    fn encode(&self, row: RowEncoder) -> RowEncoder {
        row.uuid(self.id).str(&self.name).bytes(&self.token_hash).option(self.revoked_at, RowEncoder::time)
    }
}

impl Row {
    fn checked(self, macs: &RowMacs) -> Result<Self, Error> {
        macs.check(&self, &self.mac)?;
        Ok(self)
    }

    fn into_token(self) -> Result<AdminToken, Error> {
        let token_hash = self
            .token_hash
            .try_into()
            .map_err(|_| Error::Corrupt(format!("admin_tokens.token_hash of {}: not 32 bytes", self.name)))?;
        Ok(AdminToken { name: self.name, token_hash })
    }
}

/// The tokens that are not revoked. The MACs of the others are checked too.
///
/// # Errors
/// Those of Postgres; `Integrity`.
pub async fn live(connection: &mut PgConnection, macs: &RowMacs) -> Result<Vec<AdminToken>, Error> {
    let rows = sqlx::query_as!(Row, "SELECT id, name, token_hash, revoked_at, mac FROM admin_tokens")
        .fetch_all(connection)
        .await?;
    let rows = rows.into_iter().map(|row| row.checked(macs)).collect::<Result<Vec<_>, _>>()?;
    rows.into_iter().filter(|row| row.revoked_at.is_none()).map(Row::into_token).collect()
}

/// Adds a token by its hash.
///
/// # Errors
/// Those of Postgres.
pub async fn insert(
    tx: &mut Tx,
    macs: &RowMacs,
    id: Uuid,
    token: &AdminToken,
    at: OffsetDateTime,
) -> Result<(), Error> {
    let row = Row {
        id,
        name: token.name.clone(),
        token_hash: token.token_hash.to_vec(),
        revoked_at: None,
        mac: Vec::new(),
    };
    let mac = macs.seal(&row)?;
    sqlx::query!(
        "INSERT INTO admin_tokens (id, name, token_hash, created_at, mac) VALUES ($1, $2, $3, $4, $5)",
        row.id,
        row.name,
        row.token_hash,
        at,
        mac
    )
    .execute(&mut **tx)
    .await?;
    tx.changes().declared.push(RowChange::added(id, &mac));
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
/// Those of Postgres; `Integrity`.
pub async fn revoke(tx: &mut Tx, macs: &RowMacs, name: &str, at: OffsetDateTime) -> Result<bool, Error> {
    let live = sqlx::query_as!(
        Row,
        "SELECT id, name, token_hash, revoked_at, mac FROM admin_tokens
         WHERE name = $1 AND revoked_at IS NULL FOR UPDATE",
        name
    )
    .fetch_optional(&mut **tx)
    .await?;
    let Some(live) = live else { return Ok(false) };
    let row = Row { revoked_at: Some(at), ..live.checked(macs)? };
    let mac = macs.seal(&row)?;
    sqlx::query!("UPDATE admin_tokens SET revoked_at = $2, mac = $3 WHERE id = $1", row.id, at, mac)
        .execute(&mut **tx)
        .await?;
    tx.changes().declared.push(RowChange::changed(row.id, &row.mac, &mac));
    Ok(true)
}

/// Makes the MACs anew that an older row-mac key made. Gives their number.
///
/// # Errors
/// Those of Postgres; `Integrity`.
pub async fn remac(tx: &mut Tx, macs: &RowMacs) -> Result<u64, Error> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT id, name, token_hash, revoked_at, mac FROM admin_tokens ORDER BY id FOR NO KEY UPDATE"
    )
    .fetch_all(&mut **tx)
    .await?;
    let (mut ids, mut remade) = (Vec::new(), Vec::new());
    for row in &rows {
        let Some(mac) = macs.reseal(row, &row.mac)? else { continue };
        tx.changes().declared.push(RowChange::changed(row.id, &row.mac, &mac));
        ids.push(row.id);
        remade.push(mac);
    }
    let done = sqlx::query!(
        "UPDATE admin_tokens t SET mac = n.mac FROM UNNEST($1::uuid[], $2::bytea[]) AS n (id, mac) WHERE t.id = n.id",
        &ids,
        &remade
    )
    .execute(&mut **tx)
    .await?;
    Ok(done.rows_affected())
}
