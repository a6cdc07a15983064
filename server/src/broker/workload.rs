//! What a role asks for beyond tokens: labels and reviews by the API server, and its condition. Questions to the API server are
//! boxed, since each request has the room that they would take, whether it asks or not.

use keyfold_core::{
    condition::{Condition, ConditionInput},
    identity::WorkloadIdentity,
    name::ObjectName,
    object::{Verify, WhenApiServerAway},
    policy::{AppRole, Labels, binds_by_token},
    refusal::{Refusal, TokenOwner},
};

use crate::{
    authn::{IssuerRecord, OperatorCaller, OperatorKind, PodCaller},
    broker::{Broker, Call, WantedItem},
    directory::Snapshot,
    error::Error,
    k8s::{Expected, ReviewError},
};

impl Broker {
    /// The labels that the decision on a role needs. The API server is asked only if a role that the pod's token
    /// already matches has a selector.
    pub(super) async fn labels(
        &self,
        caller: &PodCaller,
        snapshot: &Snapshot,
        named: Option<&str>,
    ) -> Result<Labels, Error> {
        let pod = caller.identity();
        let candidates =
            snapshot.app_roles.iter().filter(|role| named.is_none_or(|name| role.name.as_str() == name));
        let bindings =
            candidates.flat_map(|role| &role.spec.bind).filter(|binding| binds_by_token(binding, pod));
        let (mut of_pod, mut of_node) = (false, false);
        for binding in bindings {
            of_pod |= binding.pod_selector.is_some();
            of_node |= binding.node_selector.is_some();
        }
        let mut labels = Labels::default();
        if of_pod || of_node {
            let issuer = issuer(snapshot, &pod.issuer)?;
            if of_pod {
                let asked = self.api_servers.pod_labels(issuer, &pod.namespace, &pod.pod);
                labels.pod = Box::pin(asked).await?;
            }
            if let (true, Some(node)) = (of_node, &pod.node) {
                labels.node = Box::pin(self.api_servers.node_labels(issuer, node)).await?;
            }
        }
        Ok(labels)
    }

    /// Has the API server look at the tokens, as far as the issuer or the role want it.
    pub(super) async fn review(
        &self,
        caller: &PodCaller,
        pod_token: &str,
        driver_token: &str,
        role: &AppRole,
        snapshot: &Snapshot,
    ) -> Result<(), Error> {
        let issuer = issuer(snapshot, &caller.identity().issuer)?;
        let of_pod = async {
            match reviews_pod(role, issuer) {
                true => Box::pin(self.api_servers.review(issuer, &**caller.identity(), pod_token)).await,
                false => Ok(()),
            }
        };
        let of_driver = self.review_driver(caller.driver(), driver_token, snapshot);
        let (pod, driver) = tokio::join!(of_pod, of_driver);
        match pod {
            Err(ReviewError::Unavailable(unavailable))
                if unavailable.away && may_do_without(role, issuer) =>
            {
                tracing::warn!(role = %role.name, "an API server is away: the local check alone decides");
            }
            pod => pod.map_err(|error| review_error(error, issuer, TokenOwner::Pod))?,
        }
        driver
    }

    /// The same for a driver's token: as the issuer wants it.
    pub(super) async fn review_driver(
        &self,
        driver: &WorkloadIdentity,
        token: &str,
        snapshot: &Snapshot,
    ) -> Result<(), Error> {
        let issuer = issuer(snapshot, &driver.issuer)?;
        if issuer.spec.verify == Verify::Local {
            return Ok(());
        }
        let reviewed = Box::pin(self.api_servers.review(issuer, driver, token)).await;
        reviewed.map_err(|error| review_error(error, issuer, TokenOwner::Driver))
    }

    /// The same for an operator's token, without a choice: operators wait for the API server.
    pub(super) async fn review_operator(
        &self,
        token: &str,
        caller: &OperatorCaller,
        snapshot: &Snapshot,
    ) -> Result<(), Error> {
        let OperatorKind::Identity(identity) = caller.kind() else { return Ok(()) };
        let issuer = issuer(snapshot, &identity.issuer)?;
        if issuer.spec.verify == Verify::Local {
            return Ok(());
        }
        let expected = Expected { subject: &identity.subject, uid: None, pod: None, node: None };
        let reviewed = Box::pin(self.api_servers.review(issuer, expected, token)).await;
        reviewed.map_err(|error| review_error(error, issuer, TokenOwner::Operator))
    }

    /// Evaluates the role's condition on a thread where it may take its time.
    pub(super) async fn check_condition(
        &self,
        call: &Call,
        caller: &PodCaller,
        role: &AppRole,
        items: &[WantedItem],
        snapshot: &Snapshot,
    ) -> Result<(), Error> {
        let Some(condition) = compiled(role, snapshot)?.cloned() else { return Ok(()) };
        let paths = items.iter().map(|item| &item.path);
        let (pod, driver) = (caller.identity(), caller.driver());
        let input = ConditionInput::new(pod, driver, &role.name, paths, call.from, self.clock.now());
        let checked = tokio::task::spawn_blocking(move || condition.check(&input)).await;
        let checked =
            checked.map_err(|_| Error::Corrupt(format!("the condition of {} panicked", role.name)))?;
        Ok(checked.map_err(|failure| Refusal::Condition { role: role.name.clone(), failure })?)
    }
}

/// The snapshot that verified a token has its issuer.
fn issuer<'a>(snapshot: &'a Snapshot, name: &ObjectName) -> Result<&'a IssuerRecord, Error> {
    snapshot.issuers.iter().find(|issuer| issuer.name == *name).ok_or(Error::Busy)
}

/// Whether the API server must accept the pod's token. A role may ask for it where the issuer does not, and cannot take
/// away what the issuer asks for.
pub(super) fn reviews_pod(role: &AppRole, issuer: &IssuerRecord) -> bool {
    issuer.spec.verify == Verify::TokenReview || role.spec.verify == Some(Verify::TokenReview)
}

/// Whether the local check may stand in for the review of the pod's token: only if the review is the role's own wish.
fn may_do_without(role: &AppRole, issuer: &IssuerRecord) -> bool {
    issuer.spec.verify == Verify::Local && role.spec.when_api_server_away == WhenApiServerAway::Local
}

/// The role's condition. A snapshot holds those of all its roles that have one; without it nothing may be decided.
pub(super) fn compiled<'a>(role: &AppRole, snapshot: &'a Snapshot) -> Result<Option<&'a Condition>, Error> {
    match (&role.spec.condition, snapshot.conditions.get(&role.name)) {
        (None, _) => Ok(None),
        (Some(_), Some(condition)) => Ok(Some(condition)),
        (Some(_), None) => Err(Error::Busy),
    }
}

fn review_error(error: ReviewError, issuer: &IssuerRecord, whose: TokenOwner) -> Error {
    match error {
        ReviewError::Refused(reason) => Refusal::Review { whose, issuer: issuer.name.clone(), reason }.into(),
        ReviewError::Unavailable(unavailable) => unavailable.into(),
    }
}

#[cfg(test)]
mod tests {
    use keyfold_core::object::{Kind, Spec};
    use serde_json::json;

    use super::*;

    fn role(condition: bool) -> AppRole {
        let mut spec = json!({
            "bind": [{"issuer": "prod", "namespaces": ["payments"], "serviceAccounts": ["api"]}],
            "grants": [{"path": "payments/*", "allow": ["read"]}],
        });
        if condition {
            spec["condition"] = json!({"rego": "package keyfold\nallow := true\n"});
        }
        let Ok(Spec::AppRole(spec)) = Spec::parse(Kind::AppRole, &spec.to_string()) else { panic!("a role") };
        AppRole { name: "payments-api".try_into().expect("a name"), spec }
    }

    #[test]
    fn a_role_only_adds_to_what_its_issuer_has_reviewed() {
        let spec = json!({
            "type": "kubernetes", "url": "https://kubernetes.default.svc", "audiences": ["keyfold"],
            "keys": {"file": "prod.json"}, "apiServer": "inCluster",
        });
        let Ok(Spec::Issuer(spec)) = Spec::parse(Kind::Issuer, &spec.to_string()) else {
            panic!("an issuer")
        };
        let mut issuer = IssuerRecord { name: "prod".try_into().expect("a name"), generation: 1, spec };
        let mut role = role(false);
        role.spec.when_api_server_away = WhenApiServerAway::Local;
        for of_role in [None, Some(Verify::Local), Some(Verify::TokenReview)] {
            role.spec.verify = of_role;
            issuer.spec.verify = Verify::Local;
            assert_eq!(reviews_pod(&role, &issuer), of_role == Some(Verify::TokenReview), "{of_role:?}");
            assert!(may_do_without(&role, &issuer), "{of_role:?}");
            issuer.spec.verify = Verify::TokenReview;
            assert!(reviews_pod(&role, &issuer) && !may_do_without(&role, &issuer), "{of_role:?}");
        }
    }

    #[test]
    fn a_condition_that_was_not_compiled_allows_nothing() {
        let snapshot = Snapshot::default();
        assert!(matches!(compiled(&role(true), &snapshot), Err(Error::Busy)));
        assert!(matches!(compiled(&role(false), &snapshot), Ok(None)));
    }

    #[test]
    fn a_compiled_condition_is_that_of_the_role() {
        let (role, mut snapshot) = (role(true), Snapshot::default());
        let condition = Condition::compile("package keyfold\nallow := true\n").expect("a condition");
        snapshot.conditions.insert("another".try_into().expect("a name"), condition.clone());
        assert!(matches!(compiled(&role, &snapshot), Err(Error::Busy)));
        snapshot.conditions.insert(role.name.clone(), condition);
        assert!(matches!(compiled(&role, &snapshot), Ok(Some(_))));
    }
}
