//! Who a verified token belongs to. Plain records: what makes one trustworthy is that only the server's `authn` wraps
//! it into a caller.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
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

/// An operator's identity: a person's, as an OpenID provider's token states it, or that of a ServiceAccount.
#[derive(Clone, PartialEq)]
pub struct OperatorIdentity {
    /// The issuer object whose keys verified the token.
    pub issuer: ObjectName,
    /// The token's `sub`: printable ASCII, 339 bytes at most.
    pub subject: String,
    /// All claims of the token, for the bindings of operator roles. Together they are shorter than a token may be.
    pub claims: Map<String, Value>,
    /// The token's `jti`, which joins an entry to the issuer's own log.
    pub credential_id: Option<String>,
    /// When the token ends.
    pub expires_at: OffsetDateTime,
}

impl OperatorIdentity {
    /// What entries and messages call the operator: `ISSUER/SUB`. An issuer's name holds no slash, so no two operators
    /// share a name.
    pub fn name(&self) -> String {
        format!("{}/{}", self.issuer, self.subject)
    }
}

/// Claims may be many and are of no use in a log.
impl fmt::Debug for OperatorIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OperatorIdentity")
            .field("name", &self.name())
            .field("credential_id", &self.credential_id)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}
