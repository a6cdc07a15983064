//! Whether app roles give a volume what it asks for: decided by the server's own policy, with what a manifest shows.

use std::collections::BTreeSet;

use keyfold_core::{
    foreign_text::quoted,
    identity::{NamedUid, WorkloadIdentity},
    name::ObjectName,
    object::{Binding, Capability, IssuerKind, Kind, Spec},
    pattern::Pattern,
    policy::{AppRole, Labels, decide, select_role},
    refusal::Refusal,
    volume::{Item, Position},
};
use keyfold_proto::keyfold::v1;
use time::OffsetDateTime;

use super::{Findings, Level, manifest::Pod, rules, volume::Asked};

/// What roles, issuers and keyspaces there are.
pub struct Rights {
    /// As they are declared.
    declared: Vec<AppRole>,
    /// The same without what a manifest does not show: UIDs and nodes.
    checkable: Vec<AppRole>,
    /// Issuers of clusters; absent when it is not known which there are.
    issuers: Option<BTreeSet<ObjectName>>,
    /// Absent when it is not known which there are.
    keyspaces: Option<BTreeSet<String>>,
}

impl Rights {
    /// From the objects of a server, which are all that there are.
    ///
    /// # Errors
    /// When this program does not know an object's form; the text names it.
    pub fn of_server(objects: &[v1::Object]) -> Result<Self, String> {
        Self::new(objects, true)
    }

    /// From the objects of files. There may be other issuers and keyspaces than theirs, unless they have some.
    ///
    /// # Errors
    /// When an object is wrong; the text names it.
    pub fn of_files(objects: &[v1::Object]) -> Result<Self, String> {
        Self::new(objects, false)
    }

    fn new(objects: &[v1::Object], are_all: bool) -> Result<Self, String> {
        let mut rights = Self {
            declared: Vec::new(),
            checkable: Vec::new(),
            issuers: are_all.then(BTreeSet::new),
            keyspaces: are_all.then(BTreeSet::new),
        };
        for object in objects {
            rights.add(object).map_err(|reason| format!("{} {}: {reason}", object.kind, object.name))?;
        }
        Ok(rights)
    }

    fn add(&mut self, object: &v1::Object) -> Result<(), String> {
        let kind = Kind::parse(&object.kind).map_err(|error| error.to_string())?;
        let spec = Spec::parse(kind, &object.spec_json).map_err(|error| error.to_string())?;
        let name = ObjectName::try_from(object.name.as_str()).map_err(|error| error.to_string())?;
        match spec {
            Spec::AppRole(spec) => {
                let role = AppRole { name, spec };
                self.checkable.push(checkable(role.clone()));
                self.declared.push(role);
            }
            Spec::Keyspace(_) => {
                self.keyspaces.get_or_insert_default().insert(name.into());
            }
            Spec::Issuer(issuer) => {
                let issuers = self.issuers.get_or_insert_default();
                if issuer.kind == IssuerKind::Kubernetes {
                    issuers.insert(name);
                }
            }
            Spec::OperatorRole(_) | Spec::ApprovalRule(_) => {}
        }
        Ok(())
    }

    /// Checks what a volume of `pod` asks for. With several issuers to choose from it is enough that one works.
    pub fn check(&self, pod: &Pod<'_>, asked: &Asked, issuer: Option<&ObjectName>, findings: &mut Findings) {
        let issuers = match self.issuers(issuer) {
            Ok(issuers) => issuers,
            Err((message, help)) => return findings.add(&rules::NO_ISSUER, asked.role_at, message, help),
        };
        let outcomes = issuers.into_iter().map(|issuer| self.outcome(pod, asked, issuer));
        if let Some(best) = outcomes.min_by_key(Findings::errors) {
            findings.append(best);
        }
    }

    /// The issuers that the manifest may be for; or why there are none, and what to do.
    fn issuers(&self, named: Option<&ObjectName>) -> Result<Vec<ObjectName>, (String, &'static str)> {
        const HELP: &str = "`keyfold get issuers` shows those that there are";
        match (named, &self.issuers) {
            (Some(named), Some(known)) if !known.contains(named) => {
                Err((format!("issuer {named} does not exist, or is no cluster's"), HELP))
            }
            (Some(named), _) => Ok(vec![named.clone()]),
            (None, Some(known)) if known.is_empty() => {
                Err(("there is no issuer of a cluster, so no pod gets anything".into(), HELP))
            }
            (None, Some(known)) => Ok(known.iter().cloned().collect()),
            (None, None) => {
                let bindings = self.declared.iter().flat_map(|role| &role.spec.bind);
                let bound: BTreeSet<_> = bindings.map(|binding| binding.issuer.clone()).collect();
                let none = || ("there is no app role, so no pod gets anything".into(), HELP);
                if bound.is_empty() { Err(none()) } else { Ok(bound.into_iter().collect()) }
            }
        }
    }

    fn outcome(&self, pod: &Pod<'_>, asked: &Asked, issuer: ObjectName) -> Findings {
        let mut findings = Findings::default();
        let workload = Workload::new(pod, issuer);
        match workload.select(&self.checkable, asked.role.as_deref()) {
            Ok(role) => {
                self.note_unknowns(&workload, &role.name, asked, &mut findings);
                for (item, at) in &asked.items {
                    self.check_item(&workload, role, item, *at, &mut findings);
                }
            }
            Err(refusal) => self.report_refusal(&workload, asked, &refusal, &mut findings),
        }
        findings
    }

    fn check_item(
        &self,
        workload: &Workload,
        role: &AppRole,
        item: &Item,
        at: Position,
        findings: &mut Findings,
    ) {
        // The driver leaves an optional item out.
        let level = if item.optional { Level::Warning } else { Level::Error };
        let keyspace = item.path.keyspace();
        if self.keyspaces.as_ref().is_some_and(|known| !known.contains(keyspace)) {
            let message = format!("keyspace {keyspace} of {} does not exist", item.path);
            let help = "Correct the path, or apply the keyspace before the pod";
            findings.add_at(&rules::NO_SUCH_KEYSPACE, level, at, message, help);
        }
        if decide(&workload.identity, role, &item.path, Capability::Read).is_none() {
            let message = format!(
                "app role {} does not allow to read {}{}",
                role.name,
                item.path,
                allowed(role, workload)
            );
            let help = "Correct the path or the role's name, or have the path granted to the role";
            findings.add_at(&rules::NOT_GRANTED, level, at, message, help);
        }
    }

    fn report_refusal(&self, workload: &Workload, asked: &Asked, refusal: &Refusal, findings: &mut Findings) {
        let choices = match refusal {
            Refusal::RoleNotBound { choices, .. } | Refusal::RoleMissing { choices, .. } => {
                choices.as_slice()
            }
            _ => &[],
        };
        let Some(named) = &asked.role else {
            let some = if choices.is_empty() { "none binds" } else { "several bind" };
            let message = format!("no app role is named, and {some} {workload}");
            return findings.add(&rules::NO_ROLE_NAMED, asked.role_at, message, choose(choices));
        };
        let Some(role) = self.checkable.iter().find(|role| role.name.as_str() == named) else {
            let message = format!("app role {named} does not exist");
            return findings.add(&rules::NO_SUCH_ROLE, asked.role_at, message, choose(choices));
        };
        match workload.selectors(role) {
            selectors if selectors.is_empty() => {
                let message = format!("app role {named} does not bind {workload}: it binds {}", bound(role));
                findings.add(&rules::ROLE_NOT_BOUND, asked.role_at, message, choose(choices));
            }
            selectors => {
                let message = format!(
                    "app role {named} binds {workload} only with labels that this pod does not have: {}",
                    selectors.join(" or ")
                );
                let help = "Add the labels to the pod's metadata, or name another role";
                findings.add(&rules::POD_LABELS, asked.role_at, message, help);
            }
        }
    }

    /// What of the role that was selected a manifest does not show.
    fn note_unknowns(&self, workload: &Workload, name: &ObjectName, asked: &Asked, findings: &mut Findings) {
        let Some(role) = self.declared.iter().find(|role| role.name == *name) else { return };
        let binding: Vec<_> =
            role.spec.bind.iter().filter(|binding| workload.is_bound_by(role, binding)).collect();
        let mut note = |what: &str| {
            let message = format!("app role {name} also looks at {what}, which cannot be checked here");
            findings.add(
                &rules::CANNOT_BE_CHECKED,
                asked.role_at,
                message,
                "`keyfold explain` decides it for a pod that runs",
            );
        };
        if binding.iter().all(|binding| binding.service_account_uid.is_some()) {
            note("the service account's UID");
        }
        if binding.iter().all(|binding| binding.node_selector.is_some()) {
            note("the labels of the pod's node");
        }
        if role.spec.condition.is_some() {
            note("a condition");
        }
    }
}

fn checkable(mut role: AppRole) -> AppRole {
    for binding in &mut role.spec.bind {
        binding.service_account_uid = None;
        binding.node_selector = None;
    }
    role
}

/// A pod as its token will show it, as far as a manifest tells, and the labels of its template.
struct Workload {
    identity: WorkloadIdentity,
    labels: Labels,
}

impl Workload {
    fn new(pod: &Pod<'_>, issuer: ObjectName) -> Self {
        let named = |name: &str| NamedUid { name: name.into(), uid: String::new() };
        let (namespace, service_account) = (&pod.namespace, &pod.service_account);
        let identity = WorkloadIdentity {
            issuer,
            subject: format!("system:serviceaccount:{namespace}:{service_account}"),
            namespace: namespace.clone(),
            service_account: named(service_account),
            pod: named(""),
            // Whichever node it will be, the driver on it is the one that asks.
            node: Some(named("")),
            credential_id: None,
            expires_at: OffsetDateTime::UNIX_EPOCH,
        };
        Self { identity, labels: Labels { pod: Some(pod.labels.clone()), node: None } }
    }

    fn select<'a>(&self, roles: &'a [AppRole], named: Option<&str>) -> Result<&'a AppRole, Refusal> {
        select_role(&self.identity, self.identity.node.as_ref(), &self.labels, roles, named)
    }

    /// Whether this one of the role's bindings matches, as far as can be checked.
    fn is_bound_by(&self, role: &AppRole, binding: &Binding) -> bool {
        let mut alone = role.clone();
        alone.spec.bind = vec![binding.clone()];
        self.select(&[checkable(alone)], Some(role.name.as_str())).is_ok()
    }

    /// The selectors of bindings that would match but for the pod's labels.
    fn selectors(&self, role: &AppRole) -> Vec<String> {
        let mut found = Vec::new();
        for binding in &role.spec.bind {
            let mut any_labels = binding.clone();
            if let Some(selector) = any_labels.pod_selector.take()
                && self.is_bound_by(role, &any_labels)
            {
                found.push(serde_json::to_string(&selector).unwrap_or_default());
            }
        }
        found
    }
}

impl std::fmt::Display for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let WorkloadIdentity { namespace, service_account, issuer, .. } = &self.identity;
        let account = quoted(&format!("{namespace}/{}", service_account.name));
        write!(f, "service account {} of issuer {issuer}", account.trim_matches('"'))
    }
}

fn choose(choices: &[ObjectName]) -> String {
    if choices.is_empty() {
        return "Have a role bind this namespace and service account".into();
    }
    let names: Vec<_> = choices.iter().map(ObjectName::as_str).collect();
    format!("Set `role` to one that binds it: {}", names.join(", "))
}

/// Whom a role binds: `issuer:namespaces/service accounts` of each binding.
fn bound(role: &AppRole) -> String {
    let names = |globs: Vec<&str>| globs.join(",");
    let shown = role.spec.bind.iter().map(|binding| {
        let namespaces = names(binding.namespaces.iter().map(|glob| glob.as_str()).collect());
        let accounts = names(binding.service_accounts.iter().map(|glob| glob.as_str()).collect());
        format!("{}:{namespaces}/{accounts}", binding.issuer)
    });
    shown.collect::<Vec<_>>().join(" and ")
}

/// What a role allows to read, with this workload's values for variables.
fn allowed(role: &AppRole, workload: &Workload) -> String {
    let reads = role.spec.grants.iter().filter(|grant| grant.allow.contains(&Capability::Read));
    let patterns: Vec<_> = reads.map(|grant| filled(&grant.path, &workload.identity)).collect();
    if patterns.is_empty() { ": it allows nothing".into() } else { format!(", only {}", patterns.join(", ")) }
}

fn filled(pattern: &Pattern, identity: &WorkloadIdentity) -> String {
    let segment = |segment: &str| match segment {
        "{namespace}" => identity.namespace.clone(),
        "{serviceAccount}" => identity.service_account.name.clone(),
        "{issuer}" => identity.issuer.to_string(),
        other => other.to_owned(),
    };
    pattern.to_string().split('/').map(segment).collect::<Vec<_>>().join("/")
}
