//! Who a verified Kubernetes token belongs to. A plain record: what makes it trustworthy is that only the server's
//! `authn` wraps one into a caller.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::name::ObjectName;

/// A Kubernetes object that a token names: its name, and the UID that tells it from a later namesake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedUid {
    /// The object's name.
    pub name: String,
    /// The object's UID.
    pub uid: String,
}

/// A pod's identity, as its projected ServiceAccount token states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadIdentity {
    /// The issuer object whose keys verified the token.
    pub issuer: ObjectName,
    /// The token's `sub`: `system:serviceaccount:NAMESPACE:NAME`.
    pub subject: String,
    /// The namespace of the pod and its service account.
    pub namespace: String,
    /// The service account.
    pub service_account: NamedUid,
    /// The pod that the token is bound to.
    pub pod: NamedUid,
    /// The node that the pod runs on; absent before Kubernetes 1.32.
    pub node: Option<NamedUid>,
    /// The token's `jti`, which joins an entry to the Kubernetes API server's audit log.
    pub credential_id: Option<String>,
    /// When the token ends.
    pub expires_at: OffsetDateTime,
}
