//! What each of the operators' operations needs. One exhaustive match, so that no operation can be without an answer.

use keyfold_core::{
    audit::{AppliedObject, Operation},
    object::{Capability, Kind, Permission},
    path::SecretPath,
    refusal::Refusal,
    rights::Rights,
};

/// What an operation needs.
enum Needs {
    /// Some operator role, whichever.
    AnyRight,
    /// All of these.
    All(Vec<Permission>),
    /// At least one of these; what is shown is what the operator may see.
    AnyOf(Vec<Permission>),
    /// A capability on a secret.
    On(Capability, String),
    /// A capability on some secret; what is shown are those.
    Somewhere(Capability),
    /// Operators do not do this.
    Nothing,
}

/// Whether an operator with these rights may.
///
/// # Errors
/// `OperatorNotBound` without any right, `OperatorForbidden`, `PathNotGranted`.
pub(super) fn check(operator: &str, rights: &Rights, operation: &Operation) -> Result<(), Refusal> {
    if rights.is_empty() {
        return Err(Refusal::OperatorNotBound { operator: operator.to_owned() });
    }
    let needs = needs(operation);
    let holds = match &needs {
        Needs::AnyRight => true,
        Needs::All(permissions) => permissions.iter().all(|permission| rights.may(*permission)),
        Needs::AnyOf(permissions) => permissions.iter().any(|permission| rights.may(*permission)),
        Needs::Somewhere(capability) => rights.may_somewhere(*capability),
        Needs::Nothing => false,
        Needs::On(capability, path) => match SecretPath::parse(path) {
            Ok(path) if !rights.may_on(*capability, &path) => {
                let (operator, capability) = (operator.to_owned(), capability.as_str());
                return Err(Refusal::PathNotGranted { operator, path, capability });
            }
            parsed => parsed.is_ok(),
        },
    };
    if holds {
        return Ok(());
    }
    Err(Refusal::OperatorForbidden { operator: operator.to_owned(), needs: needs.to_text() })
}

fn needs(operation: &Operation) -> Needs {
    let on = |capability, path: &String| Needs::On(capability, path.clone());
    let one = |permission| Needs::All(vec![permission]);
    match operation {
        Operation::SecretPut { path, .. } | Operation::SecretRollback { path, .. } => {
            on(Capability::Write, path)
        }
        Operation::SecretGet { path, .. } => on(Capability::Read, path),
        Operation::SecretList { .. } => Needs::Somewhere(Capability::List),
        Operation::SecretHistory { path } => on(Capability::List, path),
        Operation::SecretDelete { path, .. } | Operation::SecretUndelete { path, .. } => {
            on(Capability::Delete, path)
        }
        Operation::SecretDestroy { path, .. } => on(Capability::Manage, path),
        Operation::ConfigApply { dry_run, objects } => {
            let permission = if *dry_run { reading } else { writing };
            of_kinds(objects.iter().map(|AppliedObject { kind, .. }| kind), permission)
        }
        Operation::ConfigGet { kind, .. } => of_kinds([kind].into_iter(), reading),
        Operation::ConfigList { kind } if kind.is_empty() => Needs::AnyOf(Kind::ALL.map(reading).into()),
        Operation::ConfigList { kind } => of_kinds([kind].into_iter(), reading),
        Operation::ConfigDelete { kind, .. } => of_kinds([kind].into_iter(), writing),
        Operation::KeyList { .. }
        | Operation::KeyStatus { .. }
        | Operation::KeySchedule { .. }
        | Operation::KeyListCertificates { .. }
        | Operation::KeyListQuarantine { .. } => one(Permission::KeysRead),
        Operation::KeyRotate { .. }
        | Operation::KeyPause { .. }
        | Operation::KeyResume { .. }
        | Operation::KeyRetryQuarantine { .. } => one(Permission::KeysRotate),
        Operation::KeyCompromise { .. } | Operation::KeyListExposed { .. } => one(Permission::KeysCompromise),
        Operation::KeyScheduleDestruction { .. } | Operation::KeyCancelDestruction { .. } => {
            one(Permission::KeysDestroy)
        }
        Operation::RootStatus {} => one(Permission::RootRead),
        Operation::RootChange { .. } => one(Permission::RootChange),
        Operation::RecoveryCreate { .. } | Operation::RecoveryDrill { .. } => one(Permission::RootRecover),
        Operation::CaRotate { .. } => one(Permission::CaRotate),
        Operation::PolicyExplain { .. } => one(Permission::RolesRead),
        Operation::AuditList {} => one(Permission::AuditRead),
        Operation::ApprovalList {} | Operation::ApprovalGet { .. } => one(Permission::ApprovalsRead),
        Operation::ApprovalSign { .. } => one(Permission::ApprovalsSign),
        Operation::SystemStatus {} => one(Permission::StatusRead),
        Operation::SystemWhoami {} => Needs::AnyRight,
        Operation::SystemRevokeInitialAdministrator {} => one(Permission::OperatorsWrite),
        Operation::SecretIssue { .. }
        | Operation::KeyCreate { .. }
        | Operation::KeyActivate { .. }
        | Operation::KeySkipRun { .. }
        | Operation::KeyRewrap { .. }
        | Operation::KeyReencrypt { .. }
        | Operation::KeyDestroy { .. }
        | Operation::KeyQuarantine { .. }
        | Operation::RootUnseal { .. }
        | Operation::CaIssueDriverCertificate { .. }
        | Operation::CaActivate { .. }
        | Operation::SystemIntegrityFailure { .. }
        | Operation::SystemAcceptOlderDatabase { .. }
        | Operation::SystemInitialize {} => Needs::Nothing,
    }
}

/// An unknown kind needs nothing: that there is none is the answer to whoever has any right.
fn of_kinds<'a>(kinds: impl Iterator<Item = &'a String>, permission: fn(Kind) -> Permission) -> Needs {
    Needs::All(kinds.filter_map(|kind| Kind::parse(kind).ok()).map(permission).collect())
}

/// What reading objects of a kind needs.
pub(super) fn reading(kind: Kind) -> Permission {
    match kind {
        Kind::Keyspace => Permission::KeyspacesRead,
        Kind::Issuer => Permission::IssuersRead,
        Kind::AppRole => Permission::RolesRead,
        Kind::OperatorRole | Kind::ApprovalRule => Permission::OperatorsRead,
    }
}

fn writing(kind: Kind) -> Permission {
    match kind {
        Kind::Keyspace => Permission::KeyspacesWrite,
        Kind::Issuer => Permission::IssuersWrite,
        Kind::AppRole => Permission::RolesWrite,
        Kind::OperatorRole | Kind::ApprovalRule => Permission::OperatorsWrite,
    }
}

impl Needs {
    fn to_text(&self) -> String {
        let list = |permissions: &[Permission], word: &str| {
            let mut names: Vec<_> = permissions.iter().map(|permission| permission.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            names.join(word)
        };
        match self {
            Self::AnyRight => "an operator role".to_owned(),
            Self::All(permissions) => list(permissions, " and "),
            Self::AnyOf(permissions) => list(permissions, " or "),
            Self::On(capability, path) => format!("{} on {path}", capability.as_str()),
            Self::Somewhere(capability) => format!("{} on some secret", capability.as_str()),
            Self::Nothing => "more than any operator has".to_owned(),
        }
    }
}
