//! Table `leases`: since when pods have had secrets under app roles that limit how long they have them.

use sqlx::PgConnection;
use time::{Date, OffsetDateTime};
use uuid::Uuid;

use crate::error::Error;

/// Whose lease it is. All of it comes from what was verified, nothing from what a caller names.
#[derive(Debug, Clone)]
pub struct Holder {
    /// The issuer object of the pod's cluster.
    pub issuer_id: Uuid,
    /// The pod.
    pub pod_uid: String,
    /// The app role.
    pub role_id: Uuid,
}

/// Gives when the holder's lease began, which is `now` for a new one, and keeps the row at least until `forget_on`.
///
/// # Errors
/// `Busy` when the role or the issuer was deleted meanwhile; those of Postgres.
pub async fn renew(
    connection: &mut PgConnection,
    holder: &Holder,
    now: OffsetDateTime,
    forget_on: Date,
) -> Result<OffsetDateTime, Error> {
    sqlx::query_scalar!(
        "INSERT INTO leases (issuer_id, pod_uid, role_id, started_at, forget_on) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (issuer_id, pod_uid, role_id)
             DO UPDATE SET forget_on = greatest(leases.forget_on, excluded.forget_on)
         RETURNING started_at",
        holder.issuer_id,
        holder.pod_uid,
        holder.role_id,
        now,
        forget_on
    )
    .fetch_one(connection)
    .await
    .map_err(|error| match error.as_database_error() {
        Some(cause) if cause.is_foreign_key_violation() => Error::Busy,
        _ => error.into(),
    })
}

/// Removes some of the leases whose pods have not asked for long. Waits for no other transaction.
///
/// # Errors
/// Those of Postgres.
pub async fn delete_forgotten(connection: &mut PgConnection, today: Date) -> Result<(), Error> {
    sqlx::query!(
        "DELETE FROM leases WHERE (issuer_id, pod_uid, role_id) IN (
             SELECT issuer_id, pod_uid, role_id FROM leases WHERE forget_on <= $1
             ORDER BY forget_on LIMIT 100 FOR UPDATE SKIP LOCKED)",
        today
    )
    .execute(connection)
    .await?;
    Ok(())
}
