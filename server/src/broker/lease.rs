//! Limits on how long a pod has secrets under an app role.
//!
//! A lease belongs to a pod and a role, not to a volume: how many volumes a pod has, and what they are called, is its
//! author's choice, and must not give it more time.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use keyfold_core::{
    audit::{Entry, Operation, Outcome, Record},
    identity::WorkloadIdentity,
    name::ObjectName,
    object::{Kind, LeaseSpec},
    policy::AppRole,
    refusal::Refusal,
};
use sqlx::PgConnection;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    broker::entries::Verdict,
    directory::Snapshot,
    error::Error,
    store::leases::{self, Holder},
};

/// How long a lease that is over is remembered after the pod last asked. A pod that asks again later counts as a new
/// one; kubelet asks every minute or so, also for pods that are refused.
const REMEMBERED: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A pod's lease under a role that limits it.
pub(super) struct Lease {
    holder: Holder,
    role: ObjectName,
    limits: LeaseSpec,
}

impl Lease {
    /// The lease of `pod` under `role`, if that has limits.
    pub(super) fn of(
        pod: &WorkloadIdentity,
        role: &AppRole,
        snapshot: &Snapshot,
    ) -> Result<Option<Self>, Error> {
        let Some(limits) = role.spec.lease else { return Ok(None) };
        let id = |kind, name| snapshot.standing(kind, name).map(|standing| standing.id).ok_or(Error::Busy);
        let holder = Holder {
            issuer_id: id(Kind::Issuer, &pod.issuer)?,
            pod_uid: pod.pod.uid.clone(),
            role_id: id(Kind::AppRole, &role.name)?,
        };
        Ok(Some(Self { holder, role: role.name.clone(), limits }))
    }

    /// The entry of an allowance under the lease that began then, or of the refusal when its whole time is over.
    pub(super) fn renewed<'a>(
        &self,
        begun: &BTreeMap<Holder, OffsetDateTime>,
        record: &'a Record,
        now: OffsetDateTime,
    ) -> (Entry<'a>, Verdict) {
        let started_at = begun.get(&self.holder).copied().unwrap_or(now);
        let mut entry = Entry::new(now, record, &Outcome::Allowed);
        let Some(until) = self.limits.expiry(started_at, now) else {
            let refusal = Refusal::LeaseEnded { role: self.role.clone(), max: self.limits.max };
            entry.outcome = Cow::Owned(Outcome::from(&refusal));
            return (entry, Err(refusal));
        };
        if let Operation::SecretIssue { lease_expires_at, .. } = entry.operation.to_mut() {
            *lease_expires_at = until.format(&Rfc3339).ok();
        }
        (entry, Ok(Some(until)))
    }
}

/// Renews these leases, or begins them. Gives when each began. The transaction is to be committed also where that is too
/// long ago, for a pod that goes on asking must not be forgotten.
///
/// # Errors
/// `Busy` when a role or an issuer was deleted meanwhile; those of Postgres.
pub(super) async fn renew<'a>(
    connection: &mut PgConnection,
    leases: impl Iterator<Item = &'a Lease>,
    now: OffsetDateTime,
) -> Result<BTreeMap<Holder, OffsetDateTime>, Error> {
    let mut days = BTreeMap::new();
    for lease in leases {
        let day = (now + lease.limits.max + REMEMBERED).date();
        let latest = days.entry(lease.holder.clone()).or_insert(day);
        *latest = day.max(*latest);
    }
    if days.is_empty() {
        return Ok(BTreeMap::new());
    }
    let begun = leases::renew(&mut *connection, &days, now).await?;
    if begun.values().any(|started_at| *started_at == now) {
        leases::delete_forgotten(connection, now.date()).await?;
    }
    Ok(begun)
}
