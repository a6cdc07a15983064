//! `PolicyService`.

use keyfold_core::{
    explain::{Step, Verdict},
    path::SecretPath,
};
use keyfold_proto::keyfold::v1::{
    ExplainRequest, ExplainResponse, ExplainStep, StepResult, policy_service_server::PolicyService,
};
use tonic::{Request, Response, Status};

use super::{Api, bounded};
use crate::broker::explain::Question;

#[tonic::async_trait]
impl PolicyService for Api {
    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        self.answer("Explain", async {
            let call = self.call(&request).await?;
            let message = request.into_inner();
            let question = Question {
                issuer: bounded("issuer", &message.issuer)?,
                namespace: bounded("namespace", &message.namespace)?,
                service_account: bounded("service_account", &message.service_account)?,
                pod: message.pod.as_deref().map(|pod| bounded("pod", pod)).transpose()?,
                role: Some(bounded("role", &message.role)?).filter(|role| !role.is_empty()),
                path: SecretPath::parse(&message.path)?,
            };
            let steps = self.broker.explain(&call, &question).await?;
            let allowed = steps.iter().all(|step| step.result != Verdict::Fails);
            Ok(ExplainResponse { allowed, steps: steps.into_iter().map(step).collect() })
        })
        .await
    }
}

fn step(step: Step) -> ExplainStep {
    let result = match step.result {
        Verdict::Holds => StepResult::Holds,
        Verdict::Fails => StepResult::Fails,
        Verdict::Undecided => StepResult::Undecided,
    };
    ExplainStep { check: step.check.to_owned(), result: result.into(), detail: step.detail }
}
