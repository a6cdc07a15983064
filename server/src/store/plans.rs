//! Table `plans`: operations that wait for a second person, and those that had one, which stay as evidence.

use keyfold_core::{
    plan::{Plan, PlanHash},
    row_mac::RowEncoder,
};
use ring::digest::{SHA256, digest};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    error::Error,
    integrity::row_macs::{Guarded, RowMacs},
    store::Tx,
};

/// Most plans of one list.
const LIST_MAX: i64 = 500;

/// A plan as it is stored. Nothing of it is trusted until its signature fits its bytes, and these fit the operation.
#[derive(Debug, Clone)]
pub struct StoredPlan {
    /// Its id.
    pub id: Uuid,
    /// The operation's name.
    pub operation: String,
    /// The plan's bytes; empty in a list.
    pub plan: Vec<u8>,
    /// The first person.
    pub requested_by: String,
    /// When they asked.
    pub requested_at: OffsetDateTime,
    /// After this it is good for nothing.
    pub expires_at: OffsetDateTime,
    /// The second person's, once they signed.
    pub signature: Option<Signature>,
    /// When the operation was done.
    pub used_at: Option<OffsetDateTime>,
}

/// A second person's signature.
#[derive(Debug, Clone)]
pub struct Signature {
    /// The operator.
    pub signed_by: String,
    /// The Ed25519 key that the approval rule named for them.
    pub public_key: Vec<u8>,
    /// Over the plan's hash.
    pub signature: Vec<u8>,
}

impl StoredPlan {
    /// The hash of the bytes as they are stored.
    pub fn hash(&self) -> PlanHash {
        PlanHash::of(&self.plan)
    }

    /// The parsed plan.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are not those of this plan.
    pub fn parsed(&self) -> Result<Plan, Error> {
        let corrupt = |what: String| Error::Corrupt(format!("plans.plan of {}: {what}", self.id));
        let plan = Plan::parse(&self.plan).map_err(|error| corrupt(error.to_string()))?;
        if plan.id != self.id || plan.requested_by != self.requested_by {
            return Err(corrupt("it is another plan than the row says".into()));
        }
        Ok(plan)
    }
}

struct Row {
    id: Uuid,
    operation: String,
    plan: Vec<u8>,
    /// Where the bytes were left out.
    plan_hash: Option<Vec<u8>>,
    requested_by: String,
    requested_at: OffsetDateTime,
    expires_at: OffsetDateTime,
    signed_by: Option<String>,
    public_key: Option<Vec<u8>>,
    signature: Option<Vec<u8>>,
    used_at: Option<OffsetDateTime>,
    mac: Vec<u8>,
}

impl Guarded for Row {
    const TABLE: &'static str = "plans";

    fn which(&self) -> String {
        self.id.to_string()
    }

    fn encode(&self, row: RowEncoder) -> RowEncoder {
        let plan_hash = self.plan_hash.clone();
        row.uuid(self.id)
            .str(&self.operation)
            .bytes(&plan_hash.unwrap_or_else(|| digest(&SHA256, &self.plan).as_ref().to_vec()))
            .str(&self.requested_by)
            .time(self.requested_at)
            .time(self.expires_at)
            .option(self.signed_by.as_deref(), RowEncoder::str)
            .option(self.public_key.as_deref(), RowEncoder::bytes)
            .option(self.signature.as_deref(), RowEncoder::bytes)
            .option(self.used_at, RowEncoder::time)
    }
}

impl Row {
    fn checked(self, macs: &RowMacs) -> Result<Self, Error> {
        macs.check(&self, &self.mac)?;
        Ok(self)
    }
}

impl From<Row> for StoredPlan {
    fn from(row: Row) -> Self {
        let signature = match (row.signed_by, row.public_key, row.signature) {
            (Some(signed_by), Some(public_key), Some(signature)) => {
                Some(Signature { signed_by, public_key, signature })
            }
            _ => None,
        };
        Self {
            id: row.id,
            operation: row.operation,
            plan: row.plan,
            requested_by: row.requested_by,
            requested_at: row.requested_at,
            expires_at: row.expires_at,
            signature,
            used_at: row.used_at,
        }
    }
}

/// Adds a plan. The integrity head does not change: only what was used must never be put back.
///
/// # Errors
/// Those of Postgres.
pub async fn insert(connection: &mut PgConnection, macs: &RowMacs, plan: &Plan) -> Result<(), Error> {
    let row = Row {
        id: plan.id,
        operation: plan.operation.name().to_owned(),
        plan: plan.to_bytes(),
        plan_hash: None,
        requested_by: plan.requested_by.clone(),
        requested_at: plan.requested_at,
        expires_at: plan.expires_at,
        signed_by: None,
        public_key: None,
        signature: None,
        used_at: None,
        mac: Vec::new(),
    };
    let mac = macs.seal(&row)?;
    sqlx::query!(
        "INSERT INTO plans (id, operation, plan, requested_by, requested_at, expires_at, mac)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        row.id,
        row.operation,
        row.plan,
        row.requested_by,
        row.requested_at,
        row.expires_at,
        mac
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// How many plans of an operator wait to be signed or used.
///
/// # Errors
/// Those of Postgres.
pub async fn waiting_of(
    connection: &mut PgConnection,
    requested_by: &str,
    now: OffsetDateTime,
) -> Result<i64, Error> {
    let count = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM plans
           WHERE requested_by = $1 AND expires_at > $2 AND used_at IS NULL"#,
        requested_by,
        now
    )
    .fetch_one(connection)
    .await?;
    Ok(count)
}

/// The plans that wait to be signed or used, newest first and without their bytes: the newest few hundred.
///
/// # Errors
/// Those of Postgres; `Integrity`.
pub async fn waiting(
    connection: &mut PgConnection,
    macs: &RowMacs,
    now: OffsetDateTime,
) -> Result<Vec<StoredPlan>, Error> {
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT id, operation, ''::bytea AS "plan!", sha256(plan) AS plan_hash, requested_by, requested_at, expires_at,
                  signed_by, public_key, signature, used_at, mac
         FROM plans WHERE expires_at > $1 AND used_at IS NULL ORDER BY requested_at DESC, id LIMIT $2"#,
        now,
        LIST_MAX
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(|row| Ok(row.checked(macs)?.into())).collect()
}

/// One plan, also one that has expired or was used.
///
/// # Errors
/// Those of Postgres; `Integrity`.
pub async fn find(
    connection: &mut PgConnection,
    macs: &RowMacs,
    id: Uuid,
) -> Result<Option<StoredPlan>, Error> {
    let row = sqlx::query_as!(
        Row,
        "SELECT id, operation, plan, NULL::bytea AS plan_hash, requested_by, requested_at, expires_at, signed_by,
                public_key, signature, used_at, mac
         FROM plans WHERE id = $1",
        id
    )
    .fetch_optional(connection)
    .await?;
    row.map(|row| Ok(row.checked(macs)?.into())).transpose()
}

/// The same, kept as it is by a row lock until the transaction ends.
///
/// # Errors
/// Those of Postgres; `Integrity`.
pub async fn lock(
    connection: &mut PgConnection,
    macs: &RowMacs,
    id: Uuid,
) -> Result<Option<StoredPlan>, Error> {
    Ok(locked(connection, macs, id).await?.map(StoredPlan::from))
}

async fn locked(connection: &mut PgConnection, macs: &RowMacs, id: Uuid) -> Result<Option<Row>, Error> {
    let row = sqlx::query_as!(
        Row,
        "SELECT id, operation, plan, NULL::bytea AS plan_hash, requested_by, requested_at, expires_at, signed_by,
                public_key, signature, used_at, mac
         FROM plans WHERE id = $1 FOR UPDATE",
        id
    )
    .fetch_optional(connection)
    .await?;
    row.map(|row| row.checked(macs)).transpose()
}

/// Keeps the second person's signature on a plan that has none.
///
/// # Errors
/// Those of Postgres; `Integrity`.
pub async fn sign(
    connection: &mut PgConnection,
    macs: &RowMacs,
    id: Uuid,
    signature: &Signature,
) -> Result<(), Error> {
    let unsigned = locked(connection, macs, id).await?.filter(|row| row.signed_by.is_none());
    let Some(unsigned) = unsigned else { return Ok(()) };
    let signed = Row {
        signed_by: Some(signature.signed_by.clone()),
        public_key: Some(signature.public_key.clone()),
        signature: Some(signature.signature.clone()),
        ..unsigned
    };
    let mac = macs.seal(&signed)?;
    sqlx::query!(
        "UPDATE plans SET signed_by = $2, public_key = $3, signature = $4, mac = $5 WHERE id = $1",
        id,
        signed.signed_by,
        signed.public_key,
        signed.signature,
        mac
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes that the operation is done. Says whether it was not done before. The integrity head remembers it until the plan
/// has long expired, so that nobody can put the row back as it was.
///
/// # Errors
/// Those of Postgres; `Integrity`.
pub async fn use_up(tx: &mut Tx, macs: &RowMacs, id: Uuid, at: OffsetDateTime) -> Result<bool, Error> {
    let unused = locked(tx, macs, id).await?.filter(|row| row.used_at.is_none());
    let Some(unused) = unused else { return Ok(false) };
    let used = Row { used_at: Some(at), ..unused };
    let mac = macs.seal(&used)?;
    sqlx::query!("UPDATE plans SET used_at = $2, mac = $3 WHERE id = $1", id, at, mac)
        .execute(&mut **tx)
        .await?;
    tx.changes().used_plan = Some((id, used.expires_at));
    Ok(true)
}

/// Removes some of the plans whose time ended unused. Waits for no other transaction.
///
/// # Errors
/// Those of Postgres.
pub async fn delete_expired(connection: &mut PgConnection, now: OffsetDateTime) -> Result<(), Error> {
    sqlx::query!(
        "DELETE FROM plans WHERE id IN (
             SELECT id FROM plans WHERE expires_at <= $1 AND used_at IS NULL
             ORDER BY expires_at LIMIT 100 FOR UPDATE SKIP LOCKED)",
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Makes the MACs anew that an older row-mac key made. Gives their number.
///
/// # Errors
/// Those of Postgres; `Integrity`.
pub async fn remac(tx: &mut Tx, macs: &RowMacs) -> Result<u64, Error> {
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT id, operation, ''::bytea AS "plan!", sha256(plan) AS plan_hash, requested_by, requested_at, expires_at,
                  signed_by, public_key, signature, used_at, mac
           FROM plans ORDER BY id FOR NO KEY UPDATE"#
    )
    .fetch_all(&mut **tx)
    .await?;
    let (mut ids, mut remade) = (Vec::new(), Vec::new());
    for row in &rows {
        let Some(mac) = macs.reseal(row, &row.mac)? else { continue };
        ids.push(row.id);
        remade.push(mac);
    }
    let done = sqlx::query!(
        "UPDATE plans SET mac = n.mac FROM UNNEST($1::uuid[], $2::bytea[]) AS n (id, mac) WHERE plans.id = n.id",
        &ids,
        &remade
    )
    .execute(&mut **tx)
    .await?;
    Ok(done.rows_affected())
}
