//! Table `leases`: since when pods have had secrets under app roles that limit how long they have them.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use time::{Date, OffsetDateTime};
use uuid::Uuid;

use crate::error::Error;

/// Whose lease it is. All of it comes from what was verified, nothing from what a caller names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// The issuer object of the pod's cluster.
    pub issuer_id: Uuid,
    /// The pod.
    pub pod_uid: String,
    /// The app role.
    pub role_id: Uuid,
}

struct Row {
    issuer_id: Uuid,
    pod_uid: String,
    role_id: Uuid,
    started_at: OffsetDateTime,
}

/// Renews leases, each at least until its day, and begins those that are new. Gives when each began: `now` for a new one.
///
/// # Errors
/// `Busy` when a role or an issuer was deleted meanwhile; those of Postgres.
pub async fn renew(
    connection: &mut PgConnection,
    leases: &BTreeMap<Holder, Date>,
    now: OffsetDateTime,
) -> Result<BTreeMap<Holder, OffsetDateTime>, Error> {
    let issuer_ids: Vec<_> = leases.keys().map(|holder| holder.issuer_id).collect();
    let pod_uids: Vec<_> = leases.keys().map(|holder| holder.pod_uid.clone()).collect();
    let role_ids: Vec<_> = leases.keys().map(|holder| holder.role_id).collect();
    let forget_on: Vec<_> = leases.values().copied().collect();
    // In the map's order, so that two transactions that renew the same leases wait for each other and not crosswise.
    let rows = sqlx::query_as!(
        Row,
        "INSERT INTO leases (issuer_id, pod_uid, role_id, started_at, forget_on)
         SELECT issuer_id, pod_uid, role_id, $1, forget_on
         FROM UNNEST($2::uuid[], $3::text[], $4::uuid[], $5::date[]) AS new (issuer_id, pod_uid, role_id, forget_on)
         ON CONFLICT (issuer_id, pod_uid, role_id)
             DO UPDATE SET forget_on = greatest(leases.forget_on, excluded.forget_on)
         RETURNING issuer_id, pod_uid, role_id, started_at",
        now,
        &issuer_ids,
        &pod_uids,
        &role_ids,
        &forget_on
    )
    .fetch_all(connection)
    .await
    .map_err(|error| match error.as_database_error() {
        Some(cause) if cause.is_foreign_key_violation() => Error::Busy,
        _ => error.into(),
    })?;
    let begun = |row: Row| {
        (Holder { issuer_id: row.issuer_id, pod_uid: row.pod_uid, role_id: row.role_id }, row.started_at)
    };
    Ok(rows.into_iter().map(begun).collect())
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
