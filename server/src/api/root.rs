//! `RootService`.

use keyfold_core::secret::SecretBytes;
use keyfold_proto::keyfold::v1::{
    ChangeRootRequest, ChangeRootResponse, CreateRecoveryRequest, CreateRecoveryResponse,
    DrillRecoveryRequest, DrillRecoveryResponse, GetRootRequest, GetRootResponse, Recovery, UnsealRequest,
    UnsealResponse, root_service_server::RootService,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{Api, timestamp, version};
use crate::{
    broker::root::{RecoveryStatus, RootStatus},
    error::Error,
};

#[tonic::async_trait]
impl RootService for Api {
    async fn get_root(&self, request: Request<GetRootRequest>) -> Result<Response<GetRootResponse>, Status> {
        self.answer("GetRoot", async { Ok(root(self.broker.root(&self.call(&request).await?).await?)) }).await
    }

    async fn unseal(&self, request: Request<UnsealRequest>) -> Result<Response<UnsealResponse>, Status> {
        self.answer("Unseal", async {
            let done = self.broker.unseal(&self.call(&request).await?, &request.get_ref().share).await?;
            Ok(UnsealResponse {
                entered: done.entered,
                threshold: done.threshold,
                unsealed: done.is_unsealed,
            })
        })
        .await
    }

    async fn change_root(
        &self,
        request: Request<ChangeRootRequest>,
    ) -> Result<Response<ChangeRootResponse>, Status> {
        self.answer("ChangeRoot", async {
            let ChangeRootRequest { custody, replaces_root_key_id } = request.get_ref();
            let replaces = root_key_id(replaces_root_key_id)?;
            let done = self.broker.change_root(&self.call(&request).await?, custody, replaces).await?;
            Ok(ChangeRootResponse {
                custody: done.custody.to_string(),
                old_root_key_id: done.old_root_key_id.simple().to_string(),
                new_root_key_id: done.new_root_key_id.simple().to_string(),
                rwk_version: done.rwk_version,
                keys: done.keys,
                shares: texts(done.shares.texts),
                threshold: done.shares.threshold,
            })
        })
        .await
    }

    async fn create_recovery(
        &self,
        request: Request<CreateRecoveryRequest>,
    ) -> Result<Response<CreateRecoveryResponse>, Status> {
        self.answer("CreateRecovery", async {
            let call = self.call(&request).await?;
            let CreateRecoveryRequest { shares, threshold } = *request.get_ref();
            let (id, shares) = self.broker.create_recovery(&call, shares, threshold).await?;
            Ok(CreateRecoveryResponse { shares: texts(shares), recovery_key_id: id.simple().to_string() })
        })
        .await
    }

    async fn drill_recovery(
        &self,
        request: Request<DrillRecoveryRequest>,
    ) -> Result<Response<DrillRecoveryResponse>, Status> {
        // Time is left to answer with what was done.
        let until = Instant::now() + self.request_max.mul_f32(0.8);
        self.answer("DrillRecovery", async {
            let call = self.call(&request).await?;
            let found = self.broker.drill_recovery(&call, &request.get_ref().shares, until).await?;
            Ok(DrillRecoveryResponse {
                installation_id: found.installation.to_string(),
                audit_entries: found.audit_entries,
                last_entry_at: found.last_entry_at.map(timestamp),
                keys_opened: found.keys,
                secrets_opened: found.secrets,
                failures: found.failures,
            })
        })
        .await
    }
}

/// Shares, for the one time that they are shown. Their texts are ASCII.
pub(super) fn texts(shares: Vec<SecretBytes>) -> Vec<String> {
    shares.into_iter().map(|share| String::from_utf8(share.into_vec()).unwrap_or_default()).collect()
}

/// Nothing when it is left out.
fn root_key_id(text: &str) -> Result<Option<Uuid>, Error> {
    let parsed = (!text.is_empty()).then(|| Uuid::try_parse(text)).transpose();
    parsed.map_err(|_| Error::Invalid(format!("replaces_root_key_id {text:?} is no root key's id")))
}

fn root(status: RootStatus) -> GetRootResponse {
    let RootStatus { rwk, configured, problem, recovery } = status;
    GetRootResponse {
        custody: rwk.custody_kind.clone(),
        root_key_id: rwk.root_key_id.simple().to_string(),
        rwk_version: version(rwk.version),
        since: Some(timestamp(rwk.created_at)),
        configured_custody: configured.to_string(),
        problem: problem.unwrap_or_default(),
        recovery: recovery.map(|recovery: RecoveryStatus| Recovery {
            shares: recovery.shares,
            threshold: recovery.threshold,
            created_at: Some(timestamp(recovery.created_at)),
            created_by: recovery.created_by,
            last_drilled_at: recovery.last_drilled_at.map(timestamp),
            recovery_key_id: recovery.id.simple().to_string(),
        }),
    }
}
