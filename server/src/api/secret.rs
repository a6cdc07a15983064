//! `SecretService`.

use keyfold_core::path::SecretPath;
use keyfold_proto::keyfold::v1::{
    ChangeVersionsRequest, ChangeVersionsResponse, GetSecretHistoryRequest, GetSecretHistoryResponse,
    GetSecretRequest, GetSecretResponse, ListSecretsRequest, ListSecretsResponse, PutSecretRequest,
    PutSecretResponse, RollbackSecretRequest, RollbackSecretResponse, SecretSummary, VersionState,
    VersionSummary, secret_service_server::SecretService,
};
use tonic::{Request, Response, Status};

use super::{Api, bounded, fields_in, fields_out, timestamp, version};
use crate::{
    broker::secrets::{PAGE_MAX, VersionChange},
    error::Error,
    store,
};

/// Most versions that one call may change.
const VERSIONS_MAX: usize = 100;

#[tonic::async_trait]
impl SecretService for Api {
    async fn put_secret(
        &self,
        request: Request<PutSecretRequest>,
    ) -> Result<Response<PutSecretResponse>, Status> {
        self.answer("PutSecret", async {
            let call = self.call(&request).await?;
            let mut message = request.into_inner();
            let path = SecretPath::parse(&message.path)?;
            let fields = fields_in(std::mem::take(&mut message.fields))?;
            let version = self.broker.put_secret(&call, &path, fields, message.expected_version).await?;
            Ok(PutSecretResponse { version })
        })
        .await
    }

    async fn get_secret(
        &self,
        request: Request<GetSecretRequest>,
    ) -> Result<Response<GetSecretResponse>, Status> {
        self.answer("GetSecret", async {
            let call = self.call(&request).await?;
            let message = request.into_inner();
            let path = SecretPath::parse(&message.path)?;
            let found = self.broker.get_secret(&call, &path, message.version).await?;
            Ok(GetSecretResponse {
                path: message.path,
                version: found.version,
                created_at: Some(timestamp(found.created_at)),
                fields: fields_out(found.fields),
            })
        })
        .await
    }

    async fn list_secrets(
        &self,
        request: Request<ListSecretsRequest>,
    ) -> Result<Response<ListSecretsResponse>, Status> {
        self.answer("ListSecrets", async {
            let call = self.call(&request).await?;
            let message = request.into_inner();
            let prefix = bounded("prefix", &message.prefix)?;
            let limit = if message.page_size == 0 { PAGE_MAX } else { message.page_size };
            let (page, next) = self.broker.list_secrets(&call, prefix, &message.page_token, limit).await?;
            let summary = |row: store::secrets::SecretSummary| SecretSummary {
                path: row.path,
                current_version: row.current_version.map(version).unwrap_or_default(),
                newest_version: version(row.newest_version),
                updated_at: Some(timestamp(row.updated_at)),
            };
            Ok(ListSecretsResponse {
                secrets: page.into_iter().map(summary).collect(),
                next_page_token: next.unwrap_or_default(),
            })
        })
        .await
    }

    async fn get_secret_history(
        &self,
        request: Request<GetSecretHistoryRequest>,
    ) -> Result<Response<GetSecretHistoryResponse>, Status> {
        self.answer("GetSecretHistory", async {
            let call = self.call(&request).await?;
            let message = request.into_inner();
            let path = SecretPath::parse(&message.path)?;
            let versions = self.broker.secret_history(&call, &path).await?;
            Ok(GetSecretHistoryResponse {
                path: message.path,
                versions: versions.into_iter().map(version_summary).collect(),
            })
        })
        .await
    }

    async fn rollback_secret(
        &self,
        request: Request<RollbackSecretRequest>,
    ) -> Result<Response<RollbackSecretResponse>, Status> {
        self.answer("RollbackSecret", async {
            let call = self.call(&request).await?;
            let message = request.into_inner();
            let path = SecretPath::parse(&message.path)?;
            self.broker.rollback_secret(&call, &path, message.version).await?;
            Ok(RollbackSecretResponse { version: message.version })
        })
        .await
    }

    async fn delete_versions(
        &self,
        request: Request<ChangeVersionsRequest>,
    ) -> Result<Response<ChangeVersionsResponse>, Status> {
        self.change("DeleteVersions", request, VersionChange::Delete).await
    }

    async fn undelete_versions(
        &self,
        request: Request<ChangeVersionsRequest>,
    ) -> Result<Response<ChangeVersionsResponse>, Status> {
        self.change("UndeleteVersions", request, VersionChange::Undelete).await
    }

    async fn destroy_versions(
        &self,
        request: Request<ChangeVersionsRequest>,
    ) -> Result<Response<ChangeVersionsResponse>, Status> {
        self.change("DestroyVersions", request, VersionChange::Destroy).await
    }
}

impl Api {
    async fn change(
        &self,
        rpc: &'static str,
        request: Request<ChangeVersionsRequest>,
        change: VersionChange,
    ) -> Result<Response<ChangeVersionsResponse>, Status> {
        self.answer(rpc, async {
            let call = self.call(&request).await?;
            let message = request.into_inner();
            let path = SecretPath::parse(&message.path)?;
            if message.versions.is_empty() || message.versions.len() > VERSIONS_MAX {
                return Err(Error::Invalid(format!("name 1 to {VERSIONS_MAX} versions")));
            }
            let changed = self.broker.change_versions(&call, &path, &message.versions, change).await?;
            Ok(ChangeVersionsResponse { changed })
        })
        .await
    }
}

fn version_summary(row: store::secret_versions::VersionSummary) -> VersionSummary {
    let state = match (row.destroyed_at, row.deleted_at) {
        (Some(_), _) => VersionState::Destroyed,
        (None, Some(_)) => VersionState::Deleted,
        (None, None) => VersionState::Live,
    };
    VersionSummary {
        version: version(row.version),
        state: state.into(),
        created_at: Some(timestamp(row.created_at)),
        created_by: row.created_by,
        labels: row.labels,
        kek_version: row.kek_version.map(version).unwrap_or_default(),
    }
}
