//! Audit entries: who did what, when, from where, and how it ended. A closed set of operations; never a value, a token
//! or a key. An entry is hashed and stored as the exact bytes that `to_bytes` gives.

use std::{borrow::Cow, io, net::IpAddr, sync::Arc};

use ring::digest;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::ser::Formatter;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use crate::{
    identity::{NamedUid, WorkloadIdentity},
    name::cut,
    refusal::{MESSAGE_BYTES_MAX, Refusal},
};

/// The format version that `v` states.
const VERSION: u8 = 1;

/// Items that the entry of a caller who holds no right keeps.
const UNKNOWN_ITEMS_MAX: usize = 4;

/// What an entry states, but for the time and how it ended: filled in as it becomes known.
#[derive(Debug, Clone)]
pub struct Record {
    /// Joins the entries of one call.
    pub request_id: Uuid,
    /// The network address that the call came from.
    pub from: Option<IpAddr>,
    /// Who.
    pub actor: Actor,
    /// The CSI driver that presented a pod's token, once its own is verified.
    pub driver: Option<Arc<WorkloadIdentity>>,
    /// What.
    pub operation: Operation,
    /// The second person's, where an approval rule asked for one.
    pub approval: Option<Box<Approval>>,
    /// Of the integrity head, which the operation raised to it by changing guarded rows.
    pub generation: Option<u64>,
}

/// One entry, of what is borrowed but where it was changed.
#[derive(Debug, Clone, Serialize)]
pub struct Entry<'a> {
    v: u8,
    at: String,
    request_id: Uuid,
    from: Option<IpAddr>,
    /// Who.
    pub actor: &'a Actor,
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<PodActor<'a>>,
    /// What.
    pub operation: Cow<'a, Operation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approval: Option<&'a Approval>,
    /// Of the integrity head, which the operation raised to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// How it ended.
    pub outcome: Cow<'a, Outcome>,
}

impl<'a> Entry<'a> {
    /// An entry of this moment. Its time is cut to whole microseconds, as Postgres keeps them. Of callers who hold no
    /// right it keeps the first few items only, so that they cannot write much.
    pub fn new(at: OffsetDateTime, record: &'a Record, outcome: &'a Outcome) -> Self {
        let micros = at.nanosecond() / 1_000 * 1_000;
        let at = at.replace_nanosecond(micros).unwrap_or(at);
        let at = at.format(&Rfc3339).unwrap_or_default();
        let Record { request_id, from, actor, driver, operation, approval, generation } = record;
        let mut operation = Cow::Borrowed(operation);
        if !matches!(actor, Actor::Pod(_)) && !actor.holds_rights() {
            operation.to_mut().keep_items(UNKNOWN_ITEMS_MAX);
        }
        Self {
            v: VERSION,
            at,
            request_id: *request_id,
            from: *from,
            actor,
            driver: driver.as_deref().map(PodActor::from),
            operation,
            approval: approval.as_deref(),
            generation: *generation,
            outcome: Cow::Borrowed(outcome),
        }
    }

    /// The entry's exact bytes: one JSON object on one line, in ASCII, so that no text in it can steer a terminal.
    pub fn to_bytes(&self) -> Vec<u8> {
        to_ascii_json(self)
    }
}

/// One JSON object on one line, in ASCII. The value holds strings, numbers and maps with string keys only.
pub(crate) fn to_ascii_json(value: &impl Serialize) -> Vec<u8> {
    // That of a pod's start with five secrets has some 1,300.
    let mut bytes = Vec::with_capacity(1536);
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, AsciiFormatter);
    // JSON can hold every such value.
    let _ = value.serialize(&mut serializer);
    bytes
}

/// Escapes whatever is not printable ASCII.
struct AsciiFormatter;

impl Formatter for AsciiFormatter {
    fn write_string_fragment<W: io::Write + ?Sized>(&mut self, writer: &mut W, text: &str) -> io::Result<()> {
        if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return writer.write_all(text.as_bytes());
        }
        for character in text.chars() {
            match character {
                ' '..='~' => writer.write_all(&[character as u8])?,
                _ => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        write!(writer, "\\u{unit:04x}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// RFC 6962 leaf hash: SHA-256 of 0x00 and the entry's bytes.
pub fn leaf_hash(entry: &[u8]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&[0]);
    context.update(entry);
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// Who acted.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Actor {
    /// A pod, through the driver on its node.
    Pod(#[serde(serialize_with = "as_pod_actor")] Arc<WorkloadIdentity>),
    /// A person or automation.
    Operator {
        /// The operator's name.
        name: String,
        /// The operator roles that bound them; none for the initial administrator.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        roles: Vec<String>,
        /// The token's `jti`, which joins the entry to the issuer's own log.
        #[serde(skip_serializing_if = "Option::is_none")]
        credential_id: Option<String>,
    },
    /// A server, of its own accord.
    Server {
        /// Always `keyfold-server`.
        name: &'static str,
        /// Which replica.
        replica: Uuid,
    },
    /// Nobody that could be verified.
    Unknown {
        /// Always `unknown`, so that every actor has a name.
        name: &'static str,
    },
}

/// A pod's identity as an entry keeps it.
#[derive(Debug, Clone, Serialize)]
struct PodActor<'a> {
    name: &'a str,
    issuer: &'a str,
    namespace: &'a str,
    service_account: &'a NamedUid,
    pod: &'a NamedUid,
    node: Option<&'a NamedUid>,
    credential_id: Option<&'a str>,
}

impl<'a> From<&'a WorkloadIdentity> for PodActor<'a> {
    fn from(identity: &'a WorkloadIdentity) -> Self {
        Self {
            name: &identity.subject,
            issuer: identity.issuer.as_str(),
            namespace: &identity.namespace,
            service_account: &identity.service_account,
            pod: &identity.pod,
            node: identity.node.as_ref(),
            credential_id: identity.credential_id.as_deref(),
        }
    }
}

fn as_pod_actor<S: Serializer>(identity: &WorkloadIdentity, serializer: S) -> Result<S::Ok, S::Error> {
    PodActor::from(identity).serialize(serializer)
}

impl Actor {
    /// The initial administrator, or one that is being made.
    pub fn administrator(name: &str) -> Self {
        Self::Operator { name: name.to_owned(), roles: Vec::new(), credential_id: None }
    }

    /// A server that does what is due.
    pub fn server(replica: Uuid) -> Self {
        Self::Server { name: "keyfold-server", replica }
    }

    /// Nobody that could be verified.
    pub fn unknown() -> Self {
        Self::Unknown { name: "unknown" }
    }

    /// Whether it is an operator with some right. Those without one, pods, and who is unknown can be very many.
    pub fn holds_rights(&self) -> bool {
        match self {
            Self::Operator { name, roles, .. } => !roles.is_empty() || !name.contains('/'),
            Self::Server { .. } => true,
            Self::Pod(_) | Self::Unknown { .. } => false,
        }
    }

    /// The name that filters use.
    pub fn name(&self) -> &str {
        match self {
            Self::Pod(pod) => &pod.subject,
            Self::Operator { name, .. } => name,
            Self::Server { name, .. } | Self::Unknown { name } => name,
        }
    }
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "lowercase")]
pub enum Outcome {
    /// It was done, in the transaction that holds the entry; what it reads leaves the server only after the entry.
    Allowed,
    /// It was not done.
    Refused {
        /// The stable code.
        reason: String,
        /// What the caller was told.
        message: String,
        /// Equal refusals of callers who prove nothing that have no entry of their own: a flood is folded into one.
        #[serde(skip_serializing_if = "is_zero")]
        folded: u64,
    },
}

impl Outcome {
    /// A refusal that stands for itself alone. The message is cut as the caller's is.
    pub fn refused(reason: &str, message: &str) -> Self {
        Self::Refused { reason: reason.to_owned(), message: cut(message, MESSAGE_BYTES_MAX), folded: 0 }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl From<&Refusal> for Outcome {
    fn from(refusal: &Refusal) -> Self {
        Self::refused(refusal.code(), &refusal.to_string())
    }
}

/// A second person's signature on the plan of an operation, with all that it takes to verify it anew: Ed25519 by
/// `public_key` over [`crate::plan::PlanHash::signed_message`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Approval {
    /// The plan's id.
    pub plan: Uuid,
    /// The SHA-256 of the plan's bytes, in hexadecimal.
    pub hash: String,
    /// The operator who signed.
    pub signed_by: String,
    /// The key that the approval rule named for them, in base64.
    pub public_key: String,
    /// The signature, in base64.
    pub signature: String,
}

/// One item of an issue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedItem {
    /// The secret.
    pub path: String,
    /// The version that was issued; absent when none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// The grant that allowed it; absent when none did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}

/// One object of an apply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedObject {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its generation afterwards; absent when nothing was changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// What was done or asked for. The serialised name is the operation's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name")]
#[allow(missing_docs, reason = "the names and fields say it; docs/audit.md lists them for readers")]
pub enum Operation {
    #[serde(rename = "secret.issue")]
    SecretIssue {
        role: Option<String>,
        items: Vec<IssuedItem>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lease_expires_at: Option<String>,
    },
    #[serde(rename = "secret.put")]
    SecretPut { path: String, version: Option<u32> },
    #[serde(rename = "secret.get")]
    SecretGet { path: String, version: Option<u32> },
    #[serde(rename = "secret.list")]
    SecretList { prefix: String },
    #[serde(rename = "secret.history")]
    SecretHistory { path: String },
    #[serde(rename = "secret.rollback")]
    SecretRollback { path: String, version: u32 },
    #[serde(rename = "secret.delete")]
    SecretDelete { path: String, versions: Vec<u32> },
    #[serde(rename = "secret.undelete")]
    SecretUndelete { path: String, versions: Vec<u32> },
    #[serde(rename = "secret.destroy")]
    SecretDestroy { path: String, versions: Vec<u32> },
    #[serde(rename = "config.apply")]
    ConfigApply { dry_run: bool, objects: Vec<AppliedObject> },
    #[serde(rename = "config.get")]
    ConfigGet { kind: String, object: String },
    #[serde(rename = "config.list")]
    ConfigList { kind: String },
    #[serde(rename = "config.delete")]
    ConfigDelete { kind: String, object: String },
    #[serde(rename = "key.list")]
    KeyList { keyspace: String },
    #[serde(rename = "key.rotate")]
    KeyRotate {
        keyspace: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        purpose: Option<String>,
        from_version: Option<u32>,
        to_version: Option<u32>,
    },
    #[serde(rename = "key.status")]
    KeyStatus { keyspace: String },
    #[serde(rename = "key.create")]
    KeyCreate { keyspace: String, purpose: String, version: u32, reason: String },
    #[serde(rename = "key.activate")]
    KeyActivate { keyspace: String, purpose: String, version: u32, reason: String },
    #[serde(rename = "key.skip-run")]
    KeySkipRun { keyspace: String, purpose: String, occurrence: String, reason: String },
    #[serde(rename = "key.schedule")]
    KeySchedule { keyspace: String },
    #[serde(rename = "key.pause")]
    KeyPause { keyspace: String, purpose: String },
    #[serde(rename = "key.resume")]
    KeyResume { keyspace: String, purpose: String },
    #[serde(rename = "key.compromise")]
    KeyCompromise {
        keyspace: String,
        version: Option<u32>,
        to_version: Option<u32>,
        payloads: Option<u64>,
        secrets: Option<u64>,
    },
    #[serde(rename = "key.reencrypt")]
    KeyReencrypt { keyspace: String, version: u32, payloads: u64 },
    #[serde(rename = "key.list-exposed")]
    KeyListExposed { keyspace: String },
    #[serde(rename = "key.schedule-destruction")]
    KeyScheduleDestruction {
        keyspace: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        purpose: Option<String>,
        version: u32,
        destroy_at: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    #[serde(rename = "key.cancel-destruction")]
    KeyCancelDestruction {
        keyspace: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        purpose: Option<String>,
        version: u32,
    },
    #[serde(rename = "key.destroy")]
    KeyDestroy { keyspace: String, purpose: String, version: u32, certificate: String },
    #[serde(rename = "key.list-certificates")]
    KeyListCertificates { keyspace: String },
    #[serde(rename = "key.quarantine")]
    KeyQuarantine { keyspace: String, version: u32, deks: u64 },
    #[serde(rename = "key.list-quarantine")]
    KeyListQuarantine { keyspace: String },
    #[serde(rename = "key.retry-quarantine")]
    KeyRetryQuarantine { keyspace: String, released: Option<u64> },
    #[serde(rename = "root.status")]
    RootStatus {},
    #[serde(rename = "root.unseal")]
    RootUnseal { entered: Option<u32>, threshold: Option<u32>, unsealed: bool },
    #[serde(rename = "root.change")]
    RootChange {
        from: Option<String>,
        to: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replaces: Option<String>,
        rwk_version: Option<u32>,
        keys: Option<u64>,
    },
    #[serde(rename = "recovery.create")]
    RecoveryCreate { shares: u32, threshold: u32 },
    #[serde(rename = "recovery.drill")]
    RecoveryDrill {
        installation: Option<Uuid>,
        audit_entries: Option<u64>,
        keys: Option<u64>,
        secrets: Option<u64>,
        failures: Option<u64>,
    },
    #[serde(rename = "ca.issue-driver-certificate")]
    CaIssueDriverCertificate { serial: Option<String>, expires_at: Option<String> },
    #[serde(rename = "ca.rotate")]
    CaRotate { version: Option<u32> },
    #[serde(rename = "ca.activate")]
    CaActivate { version: u32, reason: String },
    #[serde(rename = "key.rewrap")]
    KeyRewrap { keyspace: String, to_version: u32, deks: u64 },
    #[serde(rename = "policy.explain")]
    PolicyExplain {
        issuer: String,
        namespace: String,
        service_account: String,
        pod: Option<String>,
        role: Option<String>,
        path: String,
    },
    #[serde(rename = "audit.list")]
    AuditList {},
    #[serde(rename = "approval.list")]
    ApprovalList {},
    #[serde(rename = "approval.get")]
    ApprovalGet { plan: Uuid },
    #[serde(rename = "approval.sign")]
    ApprovalSign { plan: Uuid, hash: Option<String>, operation: Option<String> },
    #[serde(rename = "system.initialize")]
    SystemInitialize {},
    #[serde(rename = "system.status")]
    SystemStatus {},
    #[serde(rename = "system.whoami")]
    SystemWhoami {},
    #[serde(rename = "system.revoke-initial-administrator")]
    SystemRevokeInitialAdministrator {},
    #[serde(rename = "system.integrity-failure")]
    SystemIntegrityFailure { what: String },
    #[serde(rename = "system.accept-older-database")]
    SystemAcceptOlderDatabase { audit_entries: u64, pinned_entries: u64 },
}

impl Operation {
    /// The operation's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::SecretIssue { .. } => "secret.issue",
            Self::SecretPut { .. } => "secret.put",
            Self::SecretGet { .. } => "secret.get",
            Self::SecretList { .. } => "secret.list",
            Self::SecretHistory { .. } => "secret.history",
            Self::SecretRollback { .. } => "secret.rollback",
            Self::SecretDelete { .. } => "secret.delete",
            Self::SecretUndelete { .. } => "secret.undelete",
            Self::SecretDestroy { .. } => "secret.destroy",
            Self::ConfigApply { .. } => "config.apply",
            Self::ConfigGet { .. } => "config.get",
            Self::ConfigList { .. } => "config.list",
            Self::ConfigDelete { .. } => "config.delete",
            Self::KeyList { .. } => "key.list",
            Self::KeyRotate { .. } => "key.rotate",
            Self::KeyStatus { .. } => "key.status",
            Self::KeyCreate { .. } => "key.create",
            Self::KeyActivate { .. } => "key.activate",
            Self::KeySkipRun { .. } => "key.skip-run",
            Self::KeySchedule { .. } => "key.schedule",
            Self::KeyPause { .. } => "key.pause",
            Self::KeyResume { .. } => "key.resume",
            Self::KeyCompromise { .. } => "key.compromise",
            Self::KeyReencrypt { .. } => "key.reencrypt",
            Self::KeyListExposed { .. } => "key.list-exposed",
            Self::KeyScheduleDestruction { .. } => "key.schedule-destruction",
            Self::KeyCancelDestruction { .. } => "key.cancel-destruction",
            Self::KeyDestroy { .. } => "key.destroy",
            Self::KeyListCertificates { .. } => "key.list-certificates",
            Self::KeyQuarantine { .. } => "key.quarantine",
            Self::KeyListQuarantine { .. } => "key.list-quarantine",
            Self::KeyRetryQuarantine { .. } => "key.retry-quarantine",
            Self::RootStatus {} => "root.status",
            Self::RootUnseal { .. } => "root.unseal",
            Self::RootChange { .. } => "root.change",
            Self::RecoveryCreate { .. } => "recovery.create",
            Self::RecoveryDrill { .. } => "recovery.drill",
            Self::CaIssueDriverCertificate { .. } => "ca.issue-driver-certificate",
            Self::CaRotate { .. } => "ca.rotate",
            Self::CaActivate { .. } => "ca.activate",
            Self::KeyRewrap { .. } => "key.rewrap",
            Self::PolicyExplain { .. } => "policy.explain",
            Self::AuditList {} => "audit.list",
            Self::ApprovalList {} => "approval.list",
            Self::ApprovalGet { .. } => "approval.get",
            Self::ApprovalSign { .. } => "approval.sign",
            Self::SystemInitialize {} => "system.initialize",
            Self::SystemStatus {} => "system.status",
            Self::SystemWhoami {} => "system.whoami",
            Self::SystemRevokeInitialAdministrator {} => "system.revoke-initial-administrator",
            Self::SystemIntegrityFailure { .. } => "system.integrity-failure",
            Self::SystemAcceptOlderDatabase { .. } => "system.accept-older-database",
        }
    }

    /// Keeps the first `max` of a list of items.
    fn keep_items(&mut self, max: usize) {
        match self {
            Self::SecretIssue { items, .. } => items.truncate(max),
            Self::ConfigApply { objects, .. } => objects.truncate(max),
            Self::SecretDelete { versions, .. }
            | Self::SecretUndelete { versions, .. }
            | Self::SecretDestroy { versions, .. } => versions.truncate(max),
            _ => {}
        }
    }

    /// The secret paths that the operation concerns.
    pub fn paths(&self) -> Vec<&str> {
        match self {
            Self::SecretIssue { items, .. } => items.iter().map(|item| item.path.as_str()).collect(),
            Self::SecretPut { path, .. }
            | Self::SecretGet { path, .. }
            | Self::SecretHistory { path }
            | Self::PolicyExplain { path, .. }
            | Self::SecretRollback { path, .. }
            | Self::SecretDelete { path, .. }
            | Self::SecretUndelete { path, .. }
            | Self::SecretDestroy { path, .. } => vec![path.as_str()],
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
