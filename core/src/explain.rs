//! Why a workload may have a secret or not, step by step, from what is declared. Decides as [`crate::policy`] does, but
//! for a workload that is only described: what nothing but a pod's own token can tell stays undecided.

use crate::{
    identity::NamedUid,
    name::ObjectName,
    object::{Binding, Capability, NodeBinding},
    path::SecretPath,
    pattern::Variables,
    policy::{AppRole, Labels},
    selector::LabelSelector,
};

/// A workload as somebody describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// The issuer object of its cluster.
    pub issuer: ObjectName,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// What the API server says of the pod; absent when no pod was named.
    pub pod: Option<DescribedPod>,
}

/// A pod as the API server has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DescribedPod {
    /// The pod.
    pub pod: NamedUid,
    /// Its node, once it is scheduled.
    pub node: Option<String>,
    /// Labels of both.
    pub labels: Labels,
}

/// One step of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// `role`, `binding`, `node`, `review`, `condition` or `grant`.
    pub check: &'static str,
    /// How it came out.
    pub result: Verdict,
    /// What was compared, for people.
    pub detail: String,
}

/// How a step came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It holds.
    Holds,
    /// Only the pod's own token can tell, or only the API server.
    Undecided,
    /// It does not hold.
    Fails,
}

impl Step {
    /// A step.
    pub fn new(check: &'static str, result: Verdict, detail: impl Into<String>) -> Self {
        Self { check, result, detail: detail.into() }
    }
}

/// The role that is acted under, and the steps so far; without a role when one of them fails.
pub fn role<'a>(
    workload: &Described,
    roles: &'a [AppRole],
    named: Option<&str>,
) -> (Vec<Step>, Option<&'a AppRole>) {
    match named {
        Some(name) => match roles.iter().find(|role| role.name.as_str() == name) {
            Some(role) => {
                let binding = binding(role, workload);
                let bound = (binding.result != Verdict::Fails).then_some(role);
                (vec![Step::new("role", Verdict::Holds, format!("app role {name} exists")), binding], bound)
            }
            None => (vec![Step::new("role", Verdict::Fails, format!("there is no app role {name}"))], None),
        },
        None => only_role(workload, roles),
    }
}

fn only_role<'a>(workload: &Described, roles: &'a [AppRole]) -> (Vec<Step>, Option<&'a AppRole>) {
    let bound: Vec<_> = roles
        .iter()
        .map(|role| (role, binding(role, workload)))
        .filter(|(_, binding)| binding.result != Verdict::Fails)
        .collect();
    let who = format!("{}/{} of issuer {}", workload.namespace, workload.service_account, workload.issuer);
    match &bound[..] {
        [] => (vec![Step::new("role", Verdict::Fails, format!("no app role binds {who}"))], None),
        [(role, binding)] => {
            let only = format!("none is named, and {} alone binds {who}", role.name);
            (vec![Step::new("role", binding.result, only), binding.clone()], Some(role))
        }
        several => {
            let names: Vec<_> = several.iter().map(|(role, _)| role.name.as_str()).collect();
            let detail = format!("none is named, and several bind {who}: name one of {}", names.join(", "));
            (vec![Step::new("role", Verdict::Fails, detail)], None)
        }
    }
}

/// What the role asks of nodes, which only tokens prove.
pub fn node(role: &AppRole) -> Step {
    match role.spec.node_binding {
        NodeBinding::Required => Step::new(
            "node",
            Verdict::Undecided,
            "nodeBinding: required: the pod's and the driver's tokens must name the same node (Kubernetes 1.32 and later)",
        ),
        NodeBinding::WhenPresent => Step::new(
            "node",
            Verdict::Undecided,
            "nodeBinding: whenPresent: nodes that tokens name must be the same",
        ),
    }
}

/// The first grant that allows reading `path`, or the lack of one.
pub fn grant(role: &AppRole, workload: &Described, path: &SecretPath) -> Step {
    let variables = Variables {
        namespace: &workload.namespace,
        service_account: &workload.service_account,
        issuer: workload.issuer.as_str(),
    };
    let rule =
        role.spec.grants.iter().position(|grant| {
            grant.allow.contains(&Capability::Read) && grant.path.matches_for(path, variables)
        });
    match rule {
        Some(at) => Step::new(
            "grant",
            Verdict::Holds,
            format!("spec.grants[{at}]: {} covers {path}", role.spec.grants[at].path),
        ),
        None => {
            let own: Vec<_> = role.spec.grants.iter().map(|grant| grant.path.to_string()).collect();
            Step::new("grant", Verdict::Fails, format!("no grant covers {path}: there are {}", listed(&own)))
        }
    }
}

/// The first binding that matches, or for each what it lacks.
fn binding(role: &AppRole, workload: &Described) -> Step {
    let found: Vec<_> = role.spec.bind.iter().map(|binding| lacks(binding, workload)).collect();
    let at = |wanted: Verdict| found.iter().position(|(verdict, _)| *verdict == wanted);
    if let Some(at) = at(Verdict::Holds) {
        return Step::new("binding", Verdict::Holds, format!("spec.bind[{at}] matches"));
    }
    if let Some(at) = at(Verdict::Undecided) {
        return Step::new(
            "binding",
            Verdict::Undecided,
            format!("spec.bind[{at}] matches if {}", found[at].1),
        );
    }
    let lacking: Vec<_> =
        found.iter().enumerate().map(|(at, (_, lacking))| format!("spec.bind[{at}]: {lacking}")).collect();
    Step::new("binding", Verdict::Fails, format!("{} does not bind it: {}", role.name, lacking.join("; ")))
}

/// The first part of a binding that fails; else the first that is undecided.
fn lacks(binding: &Binding, workload: &Described) -> (Verdict, String) {
    let globs = |globs: &std::collections::BTreeSet<crate::glob::NameGlob>| {
        listed(&globs.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let fails = |what: String| (Verdict::Fails, what);
    if binding.issuer != workload.issuer {
        return fails(format!("is for issuer {}, not {}", binding.issuer, workload.issuer));
    }
    if !binding.namespaces.iter().any(|glob| glob.matches(&workload.namespace)) {
        return fails(format!(
            "namespace {} is not among {}",
            workload.namespace,
            globs(&binding.namespaces)
        ));
    }
    if !binding.service_accounts.iter().any(|glob| glob.matches(&workload.service_account)) {
        let own = globs(&binding.service_accounts);
        return fails(format!("service account {} is not among {own}", workload.service_account));
    }
    let labels = workload.pod.as_ref().map(|pod| &pod.labels);
    let selectors = [
        ("podSelector", &binding.pod_selector, labels.map(|labels| &labels.pod)),
        ("nodeSelector", &binding.node_selector, labels.map(|labels| &labels.node)),
    ];
    let selectors = selectors.map(|(name, selector, labels)| (name, selected(selector.as_ref(), labels)));
    if let Some((name, _)) = selectors.iter().find(|(_, verdict)| *verdict == Verdict::Fails) {
        return fails(format!("{name} does not select the labels"));
    }
    if let Some((name, _)) = selectors.iter().find(|(_, verdict)| *verdict == Verdict::Undecided) {
        return (Verdict::Undecided, format!("{name} selects the pod: name one to see"));
    }
    match &binding.service_account_uid {
        Some(uid) => (Verdict::Undecided, format!("the service account's UID is {uid}")),
        None => (Verdict::Holds, String::new()),
    }
}

type LabelMap = std::collections::BTreeMap<String, String>;

/// `labels` is absent when no pod was named, and holds nothing when the API server knows no such object.
fn selected(selector: Option<&LabelSelector>, labels: Option<&Option<LabelMap>>) -> Verdict {
    match (selector, labels) {
        (None, _) => Verdict::Holds,
        (Some(_), None) => Verdict::Undecided,
        (Some(selector), Some(Some(labels))) if selector.matches(labels) => Verdict::Holds,
        (Some(_), Some(_)) => Verdict::Fails,
    }
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Kind, Spec};

    fn app_role(name: &str, bind: &str) -> AppRole {
        let json = format!(
            r#"{{"bind":[{bind}],"grants":[{{"path":"payments/*","allow":["read"]}},{{"path":"shared/{{namespace}}/**","allow":["read"]}}]}}"#
        );
        let Spec::AppRole(spec) = Spec::parse(Kind::AppRole, &json).unwrap() else { unreachable!() };
        AppRole { name: ObjectName::try_from(name).unwrap(), spec }
    }

    fn bound(name: &str, extra: &str) -> AppRole {
        app_role(
            name,
            &format!(r#"{{"issuer":"prod","namespaces":["pay*"],"serviceAccounts":["api"]{extra}}}"#),
        )
    }

    fn workload(namespace: &str) -> Described {
        Described {
            issuer: ObjectName::try_from("prod").unwrap(),
            namespace: namespace.into(),
            service_account: "api".into(),
            pod: None,
        }
    }

    fn last(steps: &[Step]) -> (&'static str, Verdict, &str) {
        let step = steps.last().unwrap();
        (step.check, step.result, &step.detail)
    }

    #[test]
    fn a_named_role_says_what_its_bindings_lack() {
        let roles = [bound("a", "")];
        let (steps, role_found) = role(&workload("shop"), &roles, Some("a"));
        assert!(role_found.is_none());
        let expected = "a does not bind it: spec.bind[0]: namespace shop is not among pay*";
        assert_eq!(last(&steps), ("binding", Verdict::Fails, expected));
        let (steps, role_found) = role(&workload("payments"), &roles, Some("a"));
        assert_eq!(last(&steps), ("binding", Verdict::Holds, "spec.bind[0] matches"));
        assert!(role_found.is_some());
        let (steps, _) = role(&workload("payments"), &roles, Some("b"));
        assert_eq!(last(&steps), ("role", Verdict::Fails, "there is no app role b"));
    }

    #[test]
    fn without_a_name_the_only_role_is_taken_and_several_are_named() {
        let roles = [bound("a", ""), bound("b", "")];
        assert_eq!(role(&workload("payments"), &roles[..1], None).1.unwrap().name.as_str(), "a");
        let (steps, none) = role(&workload("payments"), &roles, None);
        assert!(none.is_none() && last(&steps).2.ends_with("name one of a, b"), "{steps:?}");
        assert_eq!(last(&role(&workload("shop"), &roles, None).0).1, Verdict::Fails);
    }

    #[test]
    fn what_only_a_token_or_a_pod_tells_is_undecided() {
        let uid = [bound("a", r#","serviceAccountUid":"u-1""#)];
        let (steps, found) = role(&workload("payments"), &uid, Some("a"));
        assert_eq!(last(&steps).1, Verdict::Undecided);
        assert!(found.is_some());
        let selector = [bound("a", r#","podSelector":{"matchLabels":{"app":"api"}}"#)];
        assert_eq!(last(&role(&workload("payments"), &selector, Some("a")).0).1, Verdict::Undecided);
        let mut described = workload("payments");
        let labels = |value: &str| Labels {
            pod: Some(LabelMap::from([("app".to_owned(), value.to_owned())])),
            node: None,
        };
        for (value, verdict) in [("api", Verdict::Holds), ("web", Verdict::Fails)] {
            let pod = NamedUid { name: "api-0".into(), uid: "u".into() };
            described.pod = Some(DescribedPod { pod, node: None, labels: labels(value) });
            assert_eq!(last(&role(&described, &selector, Some("a")).0).1, verdict);
        }
    }

    #[test]
    fn a_grant_is_named_or_the_lack_of_one() {
        let granted =
            |path: &str| grant(&bound("a", ""), &workload("payments"), &SecretPath::parse(path).unwrap());
        assert_eq!(granted("payments/db").detail, "spec.grants[0]: payments/* covers payments/db");
        assert_eq!(granted("shared/payments/x").result, Verdict::Holds);
        let lacking = granted("shared/shop/x");
        assert_eq!(lacking.result, Verdict::Fails);
        assert_eq!(
            lacking.detail,
            "no grant covers shared/shop/x: there are payments/*, shared/{namespace}/**"
        );
    }
}
