//! `ApprovalService`.

use keyfold_proto::keyfold::v1::{
    GetPlanRequest, GetPlanResponse, ListPlansRequest, ListPlansResponse, Plan, SignPlanRequest,
    SignPlanResponse, approval_service_server::ApprovalService,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{Api, timestamp};
use crate::{error::Error, store::plans::StoredPlan};

#[tonic::async_trait]
impl ApprovalService for Api {
    async fn list_plans(
        &self,
        request: Request<ListPlansRequest>,
    ) -> Result<Response<ListPlansResponse>, Status> {
        self.answer("ListPlans", async {
            let found = self.broker.plans(&self.call(&request).await?).await?;
            Ok(ListPlansResponse { plans: found.into_iter().map(plan).collect() })
        })
        .await
    }

    async fn get_plan(&self, request: Request<GetPlanRequest>) -> Result<Response<GetPlanResponse>, Status> {
        self.answer("GetPlan", async {
            let call = self.call(&request).await?;
            let found = self.broker.plan(&call, id(&request.get_ref().id)?).await?;
            Ok(GetPlanResponse { plan: Some(plan(found)) })
        })
        .await
    }

    async fn sign_plan(
        &self,
        request: Request<SignPlanRequest>,
    ) -> Result<Response<SignPlanResponse>, Status> {
        self.answer("SignPlan", async {
            let call = self.call(&request).await?;
            let message = request.get_ref();
            self.broker.sign_plan(&call, id(&message.id)?, &message.signature).await?;
            Ok(SignPlanResponse {})
        })
        .await
    }
}

fn id(text: &str) -> Result<Uuid, Error> {
    Uuid::try_parse(text).map_err(|_| Error::Invalid("id must be a plan's id, a UUID".into()))
}

fn plan(stored: StoredPlan) -> Plan {
    Plan {
        id: stored.id.to_string(),
        operation: stored.operation,
        plan: stored.plan,
        requested_by: stored.requested_by,
        requested_at: Some(timestamp(stored.requested_at)),
        expires_at: Some(timestamp(stored.expires_at)),
        signed_by: stored.signature.map(|signature| signature.signed_by),
    }
}
