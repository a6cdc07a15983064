//! What a condition sees.

use std::net::IpAddr;

use regorus::Value;
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

use crate::{
    identity::{NamedUid, WorkloadIdentity},
    name::ObjectName,
    path::SecretPath,
};

/// The `input` of a condition. All times are in UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConditionInput {
    /// The pod.
    pub caller: CallerInput,
    /// The CSI driver that presented the pod's token.
    pub driver: CallerInput,
    /// What is asked for.
    pub request: RequestInput,
    /// When it is asked for.
    pub time: TimeInput,
}

/// A verified identity, as its token states it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallerInput {
    /// The issuer object.
    pub issuer: String,
    /// The namespace.
    pub namespace: String,
    /// The service account.
    pub service_account: NamedUid,
    /// The pod.
    pub pod: NamedUid,
    /// The node; null before Kubernetes 1.32.
    pub node: Option<NamedUid>,
    /// When the token ends: RFC 3339 in whole seconds, so that two of them compare as text.
    pub token_expires_at: String,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestInput {
    /// The app role.
    pub role: String,
    /// The secrets.
    pub paths: Vec<String>,
    /// The address that the driver called from; null when it is not known.
    pub from: Option<IpAddr>,
}

/// A moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimeInput {
    /// Seconds since 1970.
    pub unix_secs: i64,
    /// RFC 3339 in whole seconds, such as `2026-01-05T12:00:00Z`.
    pub rfc3339: String,
    /// `monday` to `sunday`.
    pub weekday: String,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
}

impl ConditionInput {
    /// What a condition sees of this request.
    pub fn new<'a>(
        caller: &WorkloadIdentity,
        driver: &WorkloadIdentity,
        role: &ObjectName,
        paths: impl IntoIterator<Item = &'a SecretPath>,
        from: Option<IpAddr>,
        at: OffsetDateTime,
    ) -> Self {
        let paths = paths.into_iter().map(|path| path.as_str().to_owned()).collect();
        Self {
            caller: caller.into(),
            driver: driver.into(),
            request: RequestInput { role: role.as_str().to_owned(), paths, from },
            time: at.into(),
        }
    }

    pub(super) fn to_value(&self) -> Result<Value, serde_json::Error> {
        serde_json::from_value(serde_json::to_value(self)?)
    }
}

impl From<&WorkloadIdentity> for CallerInput {
    fn from(identity: &WorkloadIdentity) -> Self {
        Self {
            issuer: identity.issuer.as_str().to_owned(),
            namespace: identity.namespace.clone(),
            service_account: identity.service_account.clone(),
            pod: identity.pod.clone(),
            node: identity.node.clone(),
            token_expires_at: whole_seconds(identity.expires_at),
        }
    }
}

impl From<OffsetDateTime> for TimeInput {
    fn from(at: OffsetDateTime) -> Self {
        let at = at.to_offset(UtcOffset::UTC);
        Self {
            unix_secs: at.unix_timestamp(),
            rfc3339: whole_seconds(at),
            weekday: at.weekday().to_string().to_lowercase(),
            hour: at.hour(),
            minute: at.minute(),
        }
    }
}

/// RFC 3339 has four digits for the year, so a token that ends later has no such form. It never ends either.
fn whole_seconds(at: OffsetDateTime) -> String {
    let at = at.to_offset(UtcOffset::UTC);
    let whole = at.replace_nanosecond(0).unwrap_or(at);
    whole.format(&Rfc3339).unwrap_or_else(|_| "9999-12-31T23:59:59Z".to_owned())
}
