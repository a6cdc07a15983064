//! Limits on how long a pod has secrets under an app role.
//!
//! A lease belongs to a pod and a role, not to a volume: how many volumes a pod has, and what they are called, is its
//! author's choice, and must not give it more time.

use std::time::Duration;

use keyfold_core::{
    audit::{Operation, Outcome, Record},
    identity::WorkloadIdentity,
    name::ObjectName,
    object::{Kind, LeaseSpec},
    policy::AppRole,
    refusal::Refusal,
};
use sqlx::PgConnection;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
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

    /// Renews the lease, or begins it: until when, or a refusal when its whole time is over. The transaction is to be
    /// committed in both cases, for a pod that goes on asking must not be forgotten.
    pub(super) async fn renew(
        &self,
        connection: &mut PgConnection,
        now: OffsetDateTime,
    ) -> Result<Result<OffsetDateTime, Refusal>, Error> {
        let forget_on = (now + self.limits.max + REMEMBERED).date();
        let started_at = leases::renew(connection, &self.holder, now, forget_on).await?;
        if started_at == now {
            leases::delete_forgotten(connection, now.date()).await?;
        }
        let ended = || Refusal::LeaseEnded { role: self.role.clone(), max: self.limits.max };
        Ok(self.limits.expiry(started_at, now).ok_or_else(ended))
    }
}

/// What an allowance's entry states, once its lease is renewed or found to be over.
pub(super) fn stated(
    record: &Record,
    renewed: &Result<Option<OffsetDateTime>, Refusal>,
) -> (Record, Outcome) {
    let mut record = record.clone();
    match renewed {
        Ok(until) => {
            if let Operation::SecretIssue { lease_expires_at, .. } = &mut record.operation {
                *lease_expires_at = until.and_then(|until| until.format(&Rfc3339).ok());
            }
            (record, Outcome::Allowed)
        }
        Err(refusal) => (record, Outcome::from(refusal)),
    }
}
