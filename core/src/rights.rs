//! What an operator may do: the union of the operator roles that bind them. Allow-only, as for workloads.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::{
    name::ObjectName,
    object::{BuiltInRole, Capability, Grant, OperatorBinding, OperatorRoleSpec, Permission},
    path::SecretPath,
};

/// An operator role as the policy sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorRole {
    /// The role's name.
    pub name: ObjectName,
    /// Its bindings and rights.
    pub spec: OperatorRoleSpec,
}

/// What an operator may do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rights {
    roles: Vec<ObjectName>,
    permissions: BTreeSet<Permission>,
    /// On all secrets.
    everywhere: BTreeSet<Capability>,
    grants: Vec<Grant>,
}

impl Rights {
    /// Those of the initial administrator.
    pub fn of_initial_administrator() -> Self {
        let mut rights = Self::default();
        rights.add_built_in(BuiltInRole::Admin);
        rights
    }

    /// Those of whom `issuer` gave these claims. Without any right when no role binds them.
    pub fn of(issuer: &ObjectName, claims: &Map<String, Value>, roles: &[OperatorRole]) -> Self {
        let mut rights = Self::default();
        for role in roles.iter().filter(|role| binds(&role.spec, issuer, claims)) {
            rights.add(role);
        }
        rights
    }

    fn add(&mut self, role: &OperatorRole) {
        self.roles.push(role.name.clone());
        if let Some(built_in) = role.spec.built_in {
            self.add_built_in(built_in);
        }
        let allowed = |permission: &&Permission| role.spec.allow.iter().any(|own| own.covers(**permission));
        self.permissions.extend(Permission::ALL.iter().filter(allowed));
        self.grants.extend(role.spec.grants.iter().cloned());
    }

    fn add_built_in(&mut self, role: BuiltInRole) {
        use Permission::{
            ApprovalsRead, ApprovalsSign, AuditRead, CaRotate, IssuersRead, KeysCompromise, KeysDestroy,
            KeysRead, KeysRotate, KeyspacesRead, KeyspacesWrite, OperatorsRead, RolesRead, RootRead,
            StatusRead,
        };
        let permissions: &[Permission] = match role {
            BuiltInRole::Admin => Permission::ALL,
            BuiltInRole::KeyAdmin => &[
                KeysRotate,
                KeysCompromise,
                KeysDestroy,
                RootRead,
                CaRotate,
                KeyspacesWrite,
                StatusRead,
                ApprovalsSign,
            ],
            BuiltInRole::SecretAdmin => &[KeyspacesRead, RolesRead, StatusRead, ApprovalsSign],
            BuiltInRole::Auditor => &[
                AuditRead,
                KeysRead,
                RootRead,
                KeyspacesRead,
                IssuersRead,
                RolesRead,
                OperatorsRead,
                StatusRead,
                ApprovalsRead,
            ],
        };
        self.permissions.extend(permissions);
        if matches!(role, BuiltInRole::Admin | BuiltInRole::SecretAdmin) {
            self.everywhere.extend(Capability::ALL);
        }
    }

    /// The roles that give them, by name. The initial administrator has none.
    pub fn roles(&self) -> &[ObjectName] {
        &self.roles
    }

    /// Whether there is no right at all.
    pub fn is_empty(&self) -> bool {
        self.permissions.is_empty() && self.everywhere.is_empty() && self.grants.is_empty()
    }

    /// Whether `permission` is among them. Every permission of an area includes reading it.
    pub fn may(&self, permission: Permission) -> bool {
        let area = permission.as_str().strip_suffix("read");
        self.permissions.contains(&permission)
            || area.is_some_and(|area| self.permissions.iter().any(|own| own.as_str().starts_with(area)))
    }

    /// Whether `capability` is allowed on `path`.
    pub fn may_on(&self, capability: Capability, path: &SecretPath) -> bool {
        self.everywhere.contains(&capability)
            || self
                .grants
                .iter()
                .any(|grant| grant.allow.contains(&capability) && grant.path.matches_without_variables(path))
    }

    /// Whether `capability` is allowed on some path.
    pub fn may_somewhere(&self, capability: Capability) -> bool {
        self.everywhere.contains(&capability)
            || self.grants.iter().any(|grant| grant.allow.contains(&capability))
    }

    /// Regular expressions of Postgres over all paths on which `capability` is allowed.
    pub fn regexes(&self, capability: Capability) -> Vec<String> {
        if self.everywhere.contains(&capability) {
            return vec!["^".to_owned()];
        }
        let own = self.grants.iter().filter(|grant| grant.allow.contains(&capability));
        own.map(|grant| grant.path.to_regex()).collect()
    }

    /// All permissions.
    pub fn permissions(&self) -> impl Iterator<Item = Permission> {
        Permission::ALL.iter().copied().filter(|permission| self.may(*permission))
    }

    /// What is allowed on which secrets: a path pattern, or `**` for all, and the capabilities.
    pub fn grants(&self) -> BTreeMap<String, BTreeSet<Capability>> {
        let mut grants = BTreeMap::new();
        if !self.everywhere.is_empty() {
            grants.insert("**".to_owned(), self.everywhere.clone());
        }
        for grant in &self.grants {
            grants.entry(grant.path.to_string()).or_insert_with(BTreeSet::new).extend(&grant.allow);
        }
        grants
    }
}

/// Whether any binding of the role matches.
pub fn binds(role: &OperatorRoleSpec, issuer: &ObjectName, claims: &Map<String, Value>) -> bool {
    let holds = |binding: &OperatorBinding| {
        binding.issuer == *issuer
            && !binding.claims.is_empty()
            && binding.claims.iter().all(|(claim, wanted)| has(claims.get(claim), wanted))
    };
    role.bind.iter().any(holds)
}

/// Texts are compared whole and as they are; a flag such as `email_verified` as `true` or `false`.
fn has(claim: Option<&Value>, wanted: &BTreeSet<String>) -> bool {
    match claim {
        Some(Value::String(text)) => wanted.contains(text),
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).any(|item| wanted.contains(item)),
        Some(Value::Bool(flag)) => wanted.contains(if *flag { "true" } else { "false" }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::object::{Kind, Spec};

    fn role(name: &str, spec: &Value) -> OperatorRole {
        let Spec::OperatorRole(spec) = Spec::parse(Kind::OperatorRole, &spec.to_string()).unwrap() else {
            panic!("an operator role")
        };
        OperatorRole { name: ObjectName::try_from(name).unwrap(), spec }
    }

    fn bound(extra: &Value) -> OperatorRole {
        let mut spec = json!({"bind": [{"issuer": "people", "claims": {"groups": ["platform"]}}]});
        for (key, value) in extra.as_object().unwrap() {
            spec[key] = value.clone();
        }
        role("own", &spec)
    }

    fn rights(roles: &[OperatorRole]) -> Rights {
        let claims = json!({"sub": "alice", "groups": ["staff", "platform"]});
        Rights::of(&ObjectName::try_from("people").unwrap(), claims.as_object().unwrap(), roles)
    }

    fn path(text: &str) -> SecretPath {
        SecretPath::parse(text).unwrap()
    }

    #[test]
    fn the_built_in_roles_are_separate() {
        let built_in = |name: &str| rights(&[bound(&json!({"builtIn": name}))]);
        let (keys, secrets, auditor) = (built_in("key-admin"), built_in("secret-admin"), built_in("auditor"));
        assert!(keys.may(Permission::KeysRotate) && keys.may(Permission::KeysRead));
        assert!(secrets.may_on(Capability::Read, &path("payments/db")));
        assert!(auditor.may(Permission::AuditRead) && auditor.may(Permission::OperatorsRead));
        for rights in [&keys, &auditor] {
            assert!(Capability::ALL.iter().all(|capability| !rights.may_somewhere(*capability)));
        }
        for rights in [&secrets, &auditor] {
            assert!(!rights.may(Permission::KeysRotate));
        }
        for rights in [&keys, &secrets, &auditor] {
            for escalation in [Permission::OperatorsWrite, Permission::IssuersWrite, Permission::RolesWrite] {
                assert!(!rights.may(escalation), "{escalation}");
            }
        }
        assert!(Permission::ALL.iter().all(|permission| built_in("admin").may(*permission)));
    }

    #[test]
    fn a_custom_role_has_what_it_names_and_no_more() {
        let rights = rights(&[bound(&json!({
            "grants": [{"path": "payments/*", "allow": ["list", "write"]}],
            "allow": ["keys:*", "audit:read"],
        }))]);
        assert!(rights.may(Permission::KeysRotate) && rights.may(Permission::AuditRead));
        assert!(!rights.may(Permission::StatusRead) && !rights.may(Permission::RolesRead));
        assert!(rights.may_on(Capability::Write, &path("payments/db")));
        assert!(!rights.may_on(Capability::Read, &path("payments/db")));
        assert!(!rights.may_on(Capability::Write, &path("payments/eu/db")));
    }

    #[test]
    fn several_roles_are_united() {
        let rights =
            rights(&[bound(&json!({"builtIn": "key-admin"})), bound(&json!({"allow": ["audit:read"]}))]);
        assert!(rights.may(Permission::KeysRotate) && rights.may(Permission::AuditRead));
        assert_eq!(rights.roles().len(), 2);
    }

    #[test]
    fn every_claim_must_hold_and_of_the_right_issuer() {
        let bind = |bind: Value| role("r", &json!({"builtIn": "auditor", "bind": [bind]}));
        let is_bound = |bind_json: Value| !rights(&[bind(bind_json)]).is_empty();
        assert!(is_bound(json!({"issuer": "people", "claims": {"sub": ["bob", "alice"]}})));
        assert!(is_bound(json!({"issuer": "people", "claims": {"sub": ["alice"], "groups": ["platform"]}})));
        assert!(!is_bound(json!({"issuer": "people", "claims": {"sub": ["alice"], "groups": ["other"]}})));
        assert!(!is_bound(json!({"issuer": "others", "claims": {"sub": ["alice"]}})));
        assert!(!is_bound(json!({"issuer": "people", "claims": {"sub": ["Alice", "alice "]}})));
        assert!(!is_bound(json!({"issuer": "people", "claims": {"email": ["alice"]}})));
    }

    #[test]
    fn roles_that_say_nothing_or_too_much_are_refused() {
        let refusal =
            |spec: Value| Spec::parse(Kind::OperatorRole, &spec.to_string()).unwrap_err().to_string();
        let bind = json!([{"issuer": "people", "claims": {"sub": ["alice"]}}]);
        for (spec, expected) in [
            (json!({"bind": [], "builtIn": "admin"}), "spec.bind: name at least one"),
            (
                json!({"bind": [{"issuer": "people", "claims": {}}], "builtIn": "admin"}),
                "spec.bind[0].claims: ",
            ),
            (
                json!({"bind": [{"issuer": "people", "claims": {"sub": []}}], "builtIn": "admin"}),
                "spec.bind[0].claims.sub",
            ),
            (json!({"bind": bind}), "spec: name a builtIn role, or grants, or allow"),
            (
                json!({"bind": bind, "builtIn": "admin", "allow": ["keys:read"]}),
                "spec: a built-in role has no grants",
            ),
            (json!({"bind": bind, "builtIn": "root"}), "spec.builtIn: unknown variant `root`"),
            (json!({"bind": bind, "allow": ["*"]}), "spec.allow[0]: \"*\" is no permission"),
            (json!({"bind": bind, "allow": ["k*"]}), "spec.allow[0]: \"k*\" is no permission"),
            (json!({"bind": bind, "allow": ["keys:turn"]}), "spec.allow[0]: \"keys:turn\" is no permission"),
            (
                json!({"bind": bind, "grants": [{"path": "shared/{namespace}/x", "allow": ["read"]}]}),
                "spec.grants[0].path: variables",
            ),
        ] {
            let message = refusal(spec);
            assert!(message.starts_with(expected), "{message}");
        }
    }
}
