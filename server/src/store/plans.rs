//! Table `plans`: operations that wait for a second person, and those that had one, which stay as evidence.

use keyfold_core::plan::{Plan, PlanHash};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::Error;

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
    requested_by: String,
    requested_at: OffsetDateTime,
    expires_at: OffsetDateTime,
    signed_by: Option<String>,
    public_key: Option<Vec<u8>>,
    signature: Option<Vec<u8>>,
    used_at: Option<OffsetDateTime>,
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

/// Adds a plan.
///
/// # Errors
/// Those of Postgres.
pub async fn insert(connection: &mut PgConnection, plan: &Plan) -> Result<(), Error> {
    sqlx::query!(
        "INSERT INTO plans (id, operation, plan, requested_by, requested_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6)",
        plan.id,
        plan.operation.name(),
        plan.to_bytes(),
        plan.requested_by,
        plan.requested_at,
        plan.expires_at
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
/// Those of Postgres.
pub async fn waiting(connection: &mut PgConnection, now: OffsetDateTime) -> Result<Vec<StoredPlan>, Error> {
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT id, operation, ''::bytea AS "plan!", requested_by, requested_at, expires_at, signed_by,
              public_key, signature, used_at
           FROM plans WHERE expires_at > $1 AND used_at IS NULL ORDER BY requested_at DESC, id LIMIT $2"#,
        now,
        LIST_MAX
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(StoredPlan::from).collect())
}

/// One plan, also one that has expired or was used.
///
/// # Errors
/// Those of Postgres.
pub async fn find(connection: &mut PgConnection, id: Uuid) -> Result<Option<StoredPlan>, Error> {
    let row = sqlx::query_as!(
        Row,
        "SELECT id, operation, plan, requested_by, requested_at, expires_at, signed_by, public_key, signature, used_at
         FROM plans WHERE id = $1",
        id
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(StoredPlan::from))
}

/// The same, kept as it is by a row lock until the transaction ends.
///
/// # Errors
/// Those of Postgres.
pub async fn lock(connection: &mut PgConnection, id: Uuid) -> Result<Option<StoredPlan>, Error> {
    let row = sqlx::query_as!(
        Row,
        "SELECT id, operation, plan, requested_by, requested_at, expires_at, signed_by, public_key, signature, used_at
         FROM plans WHERE id = $1 FOR UPDATE",
        id
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(StoredPlan::from))
}

/// Keeps the second person's signature on a plan that has none.
///
/// # Errors
/// Those of Postgres.
pub async fn sign(connection: &mut PgConnection, id: Uuid, signature: &Signature) -> Result<(), Error> {
    sqlx::query!(
        "UPDATE plans SET signed_by = $2, public_key = $3, signature = $4 WHERE id = $1 AND signed_by IS NULL",
        id,
        signature.signed_by,
        signature.public_key,
        signature.signature
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes that the operation is done. Says whether it was not done before.
///
/// # Errors
/// Those of Postgres.
pub async fn use_up(connection: &mut PgConnection, id: Uuid, at: OffsetDateTime) -> Result<bool, Error> {
    let done = sqlx::query!("UPDATE plans SET used_at = $2 WHERE id = $1 AND used_at IS NULL", id, at)
        .execute(connection)
        .await?;
    Ok(done.rows_affected() == 1)
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
