//! The policy decision: which app role a workload acts under, and what that role allows. Allow-only: the union of
//! grants, without order and without deny rules.

use std::collections::BTreeMap;

use crate::{
    identity::{NamedUid, WorkloadIdentity},
    name::ObjectName,
    object::{AppRoleSpec, Binding, Capability, NodeBinding},
    path::SecretPath,
    pattern::Pattern,
    refusal::{Refusal, TokenOwner},
    selector::LabelSelector,
};

/// An app role as the policy sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppRole {
    /// The role's name.
    pub name: ObjectName,
    /// Its bindings and grants.
    pub spec: AppRoleSpec,
}

/// Labels as the API server has them; absent when it was not asked, or knows no such object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// The pod's.
    pub pod: Option<BTreeMap<String, String>>,
    /// Those of the node that the pod runs on.
    pub node: Option<BTreeMap<String, String>>,
}

/// The role to act under, out of `roles`: the named one, or the only one that binds the caller.
///
/// # Errors
/// `RoleNotBound` for a named role that does not bind the caller or does not exist, `RoleMissing` when none is named
/// and not exactly one binds it. Both name the roles that do, unless the driver on `driver_node` could not use them:
/// who brings a stolen token learns nothing.
pub fn select_role<'a>(
    identity: &WorkloadIdentity,
    driver_node: Option<&NamedUid>,
    labels: &Labels,
    roles: &'a [AppRole],
    named: Option<&str>,
) -> Result<&'a AppRole, Refusal> {
    let bound: Vec<_> =
        roles.iter().filter(|role| role.spec.bind.iter().any(|own| binds(own, identity, labels))).collect();
    let usable = |role: &&&AppRole| check_node(role, identity.node.as_ref(), driver_node).is_ok();
    let choices = || bound.iter().filter(usable).map(|role| role.name.clone()).collect();
    match named {
        Some(name) => bound.iter().find(|role| role.name.as_str() == name).copied().ok_or_else(|| {
            Refusal::RoleNotBound {
                role: crate::name::shortened(name),
                subject: identity.subject.clone(),
                issuer: identity.issuer.clone(),
                choices: choices(),
            }
        }),
        None => match bound[..] {
            [only] => Ok(only),
            _ => Err(Refusal::RoleMissing {
                subject: identity.subject.clone(),
                issuer: identity.issuer.clone(),
                choices: choices(),
            }),
        },
    }
}

fn binds(binding: &Binding, identity: &WorkloadIdentity, labels: &Labels) -> bool {
    let selected = |selector: &Option<LabelSelector>, labels: &Option<BTreeMap<String, String>>| {
        selector.as_ref().is_none_or(|wanted| labels.as_ref().is_some_and(|labels| wanted.matches(labels)))
    };
    binds_by_token(binding, identity)
        && selected(&binding.pod_selector, &labels.pod)
        && selected(&binding.node_selector, &labels.node)
}

/// Whether the parts of a binding match that the token proves: all but the selectors.
pub fn binds_by_token(binding: &Binding, identity: &WorkloadIdentity) -> bool {
    binding.issuer == identity.issuer
        && binding.namespaces.iter().any(|glob| glob.matches(&identity.namespace))
        && binding.service_accounts.iter().any(|glob| glob.matches(&identity.service_account.name))
        && binding.service_account_uid.as_ref().is_none_or(|uid| *uid == identity.service_account.uid)
}

/// Whether the tokens of the pod and of the driver that presented it name different nodes. Then the pod's was stolen, and
/// who brings it learns nothing about roles.
///
/// # Errors
/// `NodeMismatch` when both are named and name or UID differ.
pub fn check_same_node(pod_node: Option<&NamedUid>, driver_node: Option<&NamedUid>) -> Result<(), Refusal> {
    match (pod_node, driver_node) {
        (Some(pod), Some(driver)) if pod != driver => Err(Refusal::NodeMismatch),
        _ => Ok(()),
    }
}

/// Whether the driver that presented the pod's token runs on the pod's node, as far as the role asks for it.
///
/// # Errors
/// `NodeUnknown` when a node that must be named is not, `NodeMismatch` when name or UID differ.
pub fn check_node(
    role: &AppRole,
    pod_node: Option<&NamedUid>,
    driver_node: Option<&NamedUid>,
) -> Result<(), Refusal> {
    check_same_node(pod_node, driver_node)?;
    match (pod_node, driver_node, role.spec.node_binding) {
        (Some(_), Some(_), _) | (_, _, NodeBinding::WhenPresent) => Ok(()),
        (None, _, NodeBinding::Required) => Err(Refusal::NodeUnknown(TokenOwner::Pod, role.name.clone())),
        (_, None, NodeBinding::Required) => Err(Refusal::NodeUnknown(TokenOwner::Driver, role.name.clone())),
    }
}

/// The first grant of the role that allows `capability` on `path` for this caller, or nothing.
pub fn decide<'a>(
    identity: &WorkloadIdentity,
    role: &'a AppRole,
    path: &SecretPath,
    capability: Capability,
) -> Option<&'a Pattern> {
    role.spec
        .grants
        .iter()
        .filter(|grant| grant.allow.contains(&capability))
        .map(|grant| &grant.path)
        .find(|pattern| pattern.matches(path, identity))
}

#[cfg(test)]
pub(crate) mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::object::{Kind, Spec};

    /// Without labels, and by the driver on the pod's node.
    fn select<'a>(
        identity: &WorkloadIdentity,
        roles: &'a [AppRole],
        named: Option<&str>,
    ) -> Result<&'a AppRole, Refusal> {
        select_role(identity, identity.node.as_ref(), &Labels::default(), roles, named)
    }

    pub(crate) fn identity(namespace: &str, service_account: &str) -> WorkloadIdentity {
        let named = |name: &str| NamedUid { name: name.into(), uid: format!("uid-of-{name}") };
        WorkloadIdentity {
            issuer: ObjectName::try_from("prod").unwrap(),
            subject: format!("system:serviceaccount:{namespace}:{service_account}"),
            namespace: namespace.into(),
            service_account: named(service_account),
            pod: named("api-0"),
            node: Some(named("vm")),
            credential_id: None,
            expires_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    fn role(name: &str, service_account: &str, extra: &str) -> AppRole {
        let json = format!(
            r#"{{"bind":[{{"issuer":"prod","namespaces":["payments"],"serviceAccounts":["{service_account}"]{extra}}}],
                "grants":[{{"path":"payments/*","allow":["read"]}},{{"path":"shared/{{namespace}}/**","allow":["read"]}}]}}"#
        );
        let Ok(Spec::AppRole(spec)) = Spec::parse(Kind::AppRole, &json) else { panic!("{json}") };
        AppRole { name: ObjectName::try_from(name).unwrap(), spec }
    }

    #[test]
    fn a_role_binds_by_issuer_namespace_and_service_account_together() {
        let roles = [role("payments-api", "api", "")];
        assert!(select(&identity("payments", "api"), &roles, Some("payments-api")).is_ok());
        for other in [identity("shop", "api"), identity("payments", "reports")] {
            let refusal = select(&other, &roles, Some("payments-api")).unwrap_err();
            assert_eq!(refusal.code(), "role-not-bound");
        }
        let mut elsewhere = identity("payments", "api");
        elsewhere.issuer = ObjectName::try_from("staging").unwrap();
        assert!(select(&elsewhere, &roles, Some("payments-api")).is_err());
    }

    #[test]
    fn attack_13_an_unknown_role_and_one_that_does_not_bind_read_the_same() {
        let roles = [role("payments-api", "api", "")];
        let unbound = select(&identity("shop", "api"), &roles, Some("payments-api")).unwrap_err();
        let unknown = select(&identity("shop", "api"), &[], Some("payments-api")).unwrap_err();
        assert_eq!(unbound.to_string(), unknown.to_string());
    }

    #[test]
    fn attack_09_role_names_are_compared_exactly() {
        let roles = [role("payments-api", "api", "")];
        for name in ["Payments-api", " payments-api", "payments-api ", "payments-api\0", ""] {
            assert!(select(&identity("payments", "api"), &roles, Some(name)).is_err(), "{name:?}");
        }
    }

    #[test]
    fn without_a_name_exactly_one_role_must_bind() {
        let caller = identity("payments", "api");
        let one = [role("a", "api", ""), role("b", "reports", "")];
        assert_eq!(select(&caller, &one, None).unwrap().name.as_str(), "a");
        let two = [role("a", "api", ""), role("b", "api", "")];
        let refusal = |roles: &[AppRole]| select(&caller, roles, None).unwrap_err();
        assert_eq!([refusal(&two).code(), refusal(&[]).code()], ["role-missing"; 2]);
        assert_eq!(
            refusal(&two).to_string(),
            "no app role was named, and several bind system:serviceaccount:payments:api of issuer prod: \
             set `role` in the volume's attributes to one of a, b"
        );
        assert_eq!(
            refusal(&[]).to_string(),
            "no app role was named, and none binds system:serviceaccount:payments:api of issuer prod"
        );
    }

    #[test]
    fn attack_13_the_choices_are_told_to_whom_they_bind_and_to_nobody_else() {
        let roles = [role("a", "api", ""), role("b", "api", ""), role("c", "reports", "")];
        let caller = identity("payments", "api");
        let told = select(&caller, &roles, Some("x")).unwrap_err().to_string();
        assert!(told.ends_with("to one of a, b"), "{told}");
        let stolen_to = NamedUid { name: "other".into(), uid: "other".into() };
        let thief = select_role(&caller, Some(&stolen_to), &Labels::default(), &roles, None).unwrap_err();
        assert!(!thief.to_string().contains("set `role`"), "{thief}");
        let stranger = select(&identity("shop", "api"), &roles, None).unwrap_err();
        assert!(!stranger.to_string().contains("set `role`"), "{stranger}");
    }

    #[test]
    fn a_selector_matches_only_labels_that_the_api_server_gave() {
        let selector =
            r#","podSelector":{"matchLabels":{"app":"api"}},"nodeSelector":{"matchLabels":{"pool":"safe"}}"#;
        let roles = [role("a", "api", selector)];
        let caller = identity("payments", "api");
        let labels = |key: &str, value: &str| Some(BTreeMap::from([(key.to_owned(), value.to_owned())]));
        let bound = |pod, node| {
            select_role(&caller, caller.node.as_ref(), &Labels { pod, node }, &roles, None).is_ok()
        };
        assert!(bound(labels("app", "api"), labels("pool", "safe")));
        assert!(!bound(labels("app", "web"), labels("pool", "safe")));
        assert!(!bound(labels("app", "api"), labels("pool", "other")));
        assert!(
            !bound(None, labels("pool", "safe")) && !bound(labels("app", "api"), None) && !bound(None, None)
        );
    }

    #[test]
    fn attack_04_a_pinned_uid_keeps_a_recreated_namesake_out() {
        let pinned = [role("a", "api", r#","serviceAccountUid":"uid-of-api""#)];
        let mut caller = identity("payments", "api");
        assert!(select(&caller, &pinned, None).is_ok());
        caller.service_account.uid = "another".into();
        assert!(select(&caller, &pinned, None).is_err());
    }

    #[test]
    fn a_grant_names_the_rule_that_allowed() {
        let role = role("a", "api", "");
        let caller = identity("payments", "api");
        let rule = |path| {
            decide(&caller, &role, &SecretPath::parse(path).unwrap(), Capability::Read)
                .map(Pattern::to_string)
        };
        assert_eq!(rule("payments/db").as_deref(), Some("payments/*"));
        assert_eq!(rule("shared/payments/a/b").as_deref(), Some("shared/{namespace}/**"));
        assert_eq!(rule("shop/db"), None);
    }

    #[test]
    fn attack_05_the_driver_must_stand_on_the_pods_node() {
        let node = |name: &str, uid: &str| Some(NamedUid { name: name.into(), uid: uid.into() });
        let strict = role("a", "api", "");
        let mut lenient = strict.clone();
        lenient.spec.node_binding = NodeBinding::WhenPresent;
        let check = |role: &AppRole, pod: Option<NamedUid>, driver: Option<NamedUid>| {
            check_node(role, pod.as_ref(), driver.as_ref()).map_err(|refusal| refusal.code())
        };
        assert_eq!(check(&strict, node("vm", "1"), node("vm", "1")), Ok(()));
        for role in [&strict, &lenient] {
            assert_eq!(check(role, node("vm", "1"), node("b", "2")), Err("node-mismatch"));
            assert_eq!(
                check(role, node("vm", "1"), node("vm", "2")),
                Err("node-mismatch"),
                "a recreated node"
            );
        }
        assert_eq!(check(&strict, None, node("vm", "1")), Err("node-unknown"));
        assert_eq!(check(&strict, node("vm", "1"), None), Err("node-unknown"));
        assert_eq!(check(&lenient, None, node("vm", "1")), Ok(()));
    }
}
