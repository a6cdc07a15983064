//! Why a workload may have a secret or not. Reads no secret, and does not look whether one exists.

use keyfold_core::{
    audit::Operation,
    condition::{CallerInput, ConditionFailure, ConditionInput, RequestInput},
    explain::{self, Described, DescribedPod, Step, Verdict},
    identity::NamedUid,
    object::{IssuerKind, Verify},
    path::SecretPath,
    policy::{AppRole, Labels},
};
use time::format_description::well_known::Rfc3339;

use crate::{
    authn::IssuerRecord,
    broker::{
        Broker, Call,
        workload::{compiled, reviews_pod},
    },
    directory::Snapshot,
    error::Error,
};

/// What is to be explained. Empty texts are absent.
pub struct Question<'a> {
    /// The issuer object.
    pub issuer: &'a str,
    /// The workload's namespace.
    pub namespace: &'a str,
    /// Its service account.
    pub service_account: &'a str,
    /// A pod, for the API server to describe.
    pub pod: Option<&'a str>,
    /// The app role.
    pub role: Option<&'a str>,
    /// The secret.
    pub path: SecretPath,
}

impl Broker {
    /// Decides as for a pod that would ask now, and says each step. A step that fails is the last.
    ///
    /// # Errors
    /// `Invalid` when the workload is not described enough, `NotFound` for an unknown issuer or pod.
    pub async fn explain(&self, call: &Call, question: &Question<'_>) -> Result<Vec<Step>, Error> {
        let operation = Operation::PolicyExplain {
            issuer: question.issuer.to_owned(),
            pod: question.pod.map(str::to_owned),
            namespace: question.namespace.to_owned(),
            service_account: question.service_account.to_owned(),
            role: question.role.map(str::to_owned),
            path: question.path.to_string(),
        };
        // The right to ask comes first: who lacks it must not learn which pods there are.
        let asking = self.operate(call, operation, async |work| {
            let caller = work.operator().clone();
            work.allow(caller).await
        });
        // What follows takes a place of the operator's as the operation did.
        let _places = self.callers.of_operator(&asking.await?)?;
        let snapshot = self.directory.current().await?;
        let issuer = issuer(&snapshot, question.issuer)?;
        let described = self.described(issuer, question).await?;
        let (mut steps, role) = explain::role(&described, &snapshot.app_roles, question.role);
        let Some(role) = role else { return Ok(steps) };
        steps.push(explain::node(role));
        steps.extend(review(role, issuer));
        steps.extend(self.explained_condition(role, &described, question, &snapshot).await?);
        if steps.iter().all(|step| step.result != Verdict::Fails) {
            steps.push(explain::grant(role, &described, &question.path));
        }
        Ok(steps)
    }

    async fn described(&self, issuer: &IssuerRecord, question: &Question<'_>) -> Result<Described, Error> {
        let mut described = Described {
            issuer: issuer.name.clone(),
            namespace: question.namespace.to_owned(),
            service_account: question.service_account.to_owned(),
            pod: None,
        };
        if let Some(name) = question.pod {
            self.describe_pod(issuer, name, &mut described).await?;
        }
        if described.namespace.is_empty() || described.service_account.is_empty() {
            return Err(Error::Invalid("name a namespace and a service account, or a pod".into()));
        }
        Ok(described)
    }

    async fn describe_pod(
        &self,
        issuer: &IssuerRecord,
        name: &str,
        described: &mut Described,
    ) -> Result<(), Error> {
        if issuer.spec.api_server.is_none() {
            return Err(Error::Invalid(format!(
                "issuer {} has no apiServer, so pods cannot be looked up: name the service account instead",
                issuer.name
            )));
        }
        let namespace = &described.namespace;
        let pod = self.api_servers.describe_pod(issuer, namespace, name).await?;
        let pod = pod.ok_or_else(|| Error::NotFound(format!("there is no pod {namespace}/{name}")))?;
        let own = pod.service_account;
        if !described.service_account.is_empty() && described.service_account != own {
            return Err(Error::Invalid(format!("pod {namespace}/{name} runs as service account {own}")));
        }
        described.service_account = own;
        let node_labels = match &pod.node {
            Some(node) => self.api_servers.describe_node(issuer, node).await?,
            None => None,
        };
        described.pod = Some(DescribedPod {
            pod: NamedUid { name: name.to_owned(), uid: pod.uid },
            node: pod.node,
            labels: Labels { pod: Some(pod.labels), node: node_labels },
        });
        Ok(())
    }

    async fn explained_condition(
        &self,
        role: &AppRole,
        described: &Described,
        question: &Question<'_>,
        snapshot: &Snapshot,
    ) -> Result<Option<Step>, Error> {
        let Some(condition) = compiled(role, snapshot)?.cloned() else { return Ok(None) };
        let Some(pod) = &described.pod else {
            let detail = "the role has a condition: name a pod to have it evaluated";
            return Ok(Some(Step::new("condition", Verdict::Undecided, detail)));
        };
        let now = self.clock.now();
        let caller = CallerInput {
            issuer: described.issuer.to_string(),
            namespace: described.namespace.clone(),
            service_account: NamedUid { name: described.service_account.clone(), uid: String::new() },
            pod: pod.pod.clone(),
            node: pod.node.clone().map(|name| NamedUid { name, uid: String::new() }),
            token_expires_at: now.format(&Rfc3339).unwrap_or_default(),
        };
        let request =
            RequestInput { role: role.name.to_string(), paths: vec![question.path.to_string()], from: None };
        let input = ConditionInput { driver: caller.clone(), caller, request, time: now.into() };
        let checked = tokio::task::spawn_blocking(move || condition.check(&input)).await;
        let checked =
            checked.map_err(|_| Error::Corrupt(format!("the condition of {} panicked", role.name)))?;
        Ok(Some(match checked {
            Ok(()) => Step::new("condition", Verdict::Holds, "it is true now, as far as UIDs do not matter"),
            Err(ConditionFailure::Busy) => return Err(Error::Overloaded),
            Err(failure) => Step::new("condition", Verdict::Fails, format!("now: {failure}")),
        }))
    }
}

fn issuer<'a>(snapshot: &'a Snapshot, named: &str) -> Result<&'a IssuerRecord, Error> {
    let clusters = || snapshot.issuers.iter().filter(|issuer| issuer.spec.kind == IssuerKind::Kubernetes);
    let known = || match clusters().map(|issuer| issuer.name.as_str()).collect::<Vec<_>>() {
        names if names.is_empty() => "none".to_owned(),
        names => names.join(", "),
    };
    if !named.is_empty() {
        let found = clusters().find(|issuer| issuer.name.as_str() == named);
        return found.ok_or_else(|| {
            Error::NotFound(format!("there is no issuer {named} of type kubernetes; there are: {}", known()))
        });
    }
    let mut all = clusters();
    match (all.next(), all.next()) {
        (Some(only), None) => Ok(only),
        _ => {
            Err(Error::Invalid(format!("name the issuer of the workload's cluster; there are: {}", known())))
        }
    }
}

fn review(role: &AppRole, issuer: &IssuerRecord) -> Option<Step> {
    let by = if issuer.spec.verify == Verify::TokenReview { "the issuer" } else { "the role" };
    let detail = format!("verify: tokenReview in {by}: the API server must accept the pod's token");
    reviews_pod(role, issuer).then(|| Step::new("review", Verdict::Undecided, detail))
}
