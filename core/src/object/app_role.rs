//! App roles: named rights of workloads.

use std::{collections::BTreeSet, time::Duration};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Capability, Grant, ObjectError, Verify};
use crate::{glob::NameGlob, name::ObjectName, selector::LabelSelector};

/// The longest that a pod may have secrets, so that `max` stays a limit.
const LEASE_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The shortest time that a volume may live without being renewed: kubelet asks for a renewal about once a minute, and
/// a server may be away for some of them.
const LEASE_TTL_MIN: Duration = Duration::from_secs(5 * 60);

/// A named right of workloads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AppRoleSpec {
    /// Which workloads may act under the role: those that any binding matches.
    pub bind: Vec<Binding>,
    /// What the role may do: the union of all grants.
    pub grants: Vec<Grant>,
    /// Whether the driver must prove that it runs on the pod's node.
    #[serde(default)]
    pub node_binding: NodeBinding,
    /// How the pod's token is checked; absent: as its issuer says. Only adds: what the issuer has reviewed is reviewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verify>,
    /// What happens while the API server that should review the pod's token, as this role asks for it, is away.
    #[serde(default, skip_serializing_if = "WhenApiServerAway::is_fail")]
    pub when_api_server_away: WhenApiServerAway,
    /// What else must hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<ConditionSpec>,
    /// How long a pod may have secrets; absent: as long as it lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseSpec>,
}

/// Which workloads a role binds. A workload must match all parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Binding {
    /// The issuer object.
    pub issuer: ObjectName,
    /// Any of these namespaces.
    pub namespaces: BTreeSet<NameGlob>,
    /// Any of these service accounts.
    pub service_accounts: BTreeSet<NameGlob>,
    /// If set, only the service account with this UID: a deleted and recreated namesake gets nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_uid: Option<String>,
    /// If set, only pods with such labels, as the API server has them at that moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// If set, only pods on nodes with such labels, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
}

/// Whether the driver's node must be the pod's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NodeBinding {
    /// Both tokens must name the same node.
    #[default]
    Required,
    /// The nodes must be the same if both tokens name one: for clusters older than Kubernetes 1.32.
    WhenPresent,
}

/// What happens while the API server that should review a token is away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WhenApiServerAway {
    /// The pod gets nothing until the API server answers.
    #[default]
    Fail,
    /// The local check alone decides, unless the issuer itself asks for reviews. Labels are never guessed: a binding with
    /// a selector does not match.
    Local,
}

impl WhenApiServerAway {
    fn is_fail(&self) -> bool {
        *self == Self::Fail
    }
}

/// What else must hold for a role to be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConditionSpec {
    /// A Rego module of package `keyfold`, whose rule `allow` must be true.
    pub rego: String,
}

/// How long a pod may have secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LeaseSpec {
    /// How long a volume keeps its files without being renewed. Kubelet has it renewed about once a minute.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
    /// How long a pod's volumes are renewed, from the first issue under the role.
    #[serde(with = "humantime_serde")]
    pub max: Duration,
}

impl LeaseSpec {
    /// When a lease ends that began at `started_at` and is renewed `now`; nothing once its whole time is over.
    pub fn expiry(&self, started_at: OffsetDateTime, now: OffsetDateTime) -> Option<OffsetDateTime> {
        let end = started_at + self.max;
        (now < end).then(|| end.min(now + self.ttl))
    }
}

impl AppRoleSpec {
    pub(super) fn check(&self) -> Result<(), ObjectError> {
        let fail = |text: String| Err(ObjectError(text));
        if self.bind.is_empty() {
            return fail("spec.bind: name at least one binding".into());
        }
        for (at, binding) in self.bind.iter().enumerate() {
            for (field, names) in
                [("namespaces", &binding.namespaces), ("serviceAccounts", &binding.service_accounts)]
            {
                if names.is_empty() {
                    return fail(format!("spec.bind[{at}].{field}: name at least one"));
                }
            }
        }
        for (at, grant) in self.grants.iter().enumerate() {
            if grant.allow.is_empty() {
                return fail(format!("spec.grants[{at}].allow: name at least one capability"));
            }
            if grant.allow.iter().any(|capability| *capability != Capability::Read) {
                return fail(format!(
                    "spec.grants[{at}].allow: a workload can be allowed to read, and no more"
                ));
            }
        }
        match self.lease {
            Some(lease) if lease.ttl < LEASE_TTL_MIN => fail("spec.lease.ttl: must be at least 5m".into()),
            Some(lease) if lease.max < lease.ttl || lease.max > LEASE_MAX => {
                fail("spec.lease.max: must be at least ttl, and at most a year".into())
            }
            _ => Ok(()),
        }
    }
}
