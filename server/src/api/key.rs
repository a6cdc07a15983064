//! `KeyService`.

use keyfold_proto::keyfold::v1::{
    Key, ListKeysRequest, ListKeysResponse, RotateKeyRequest, RotateKeyResponse,
    key_service_server::KeyService,
};
use tonic::{Request, Response, Status};

use super::{Api, bounded, timestamp, version};
use crate::store::keks::KekSummary;

#[tonic::async_trait]
impl KeyService for Api {
    async fn list_keys(
        &self,
        request: Request<ListKeysRequest>,
    ) -> Result<Response<ListKeysResponse>, Status> {
        self.answer("ListKeys", async {
            let call = self.call(&request)?;
            let keys = self.broker.keys(&call, bounded("keyspace", &request.get_ref().keyspace)?).await?;
            Ok(ListKeysResponse { keys: keys.into_iter().map(key).collect() })
        })
        .await
    }

    async fn rotate_key(
        &self,
        request: Request<RotateKeyRequest>,
    ) -> Result<Response<RotateKeyResponse>, Status> {
        self.answer("RotateKey", async {
            let call = self.call(&request)?;
            let done =
                self.broker.rotate_key(&call, bounded("keyspace", &request.get_ref().keyspace)?).await?;
            Ok(RotateKeyResponse {
                old_version: done.old_version,
                new_version: done.new_version,
                rewrapped_deks: done.rewrapped_deks,
            })
        })
        .await
    }
}

fn key(row: KekSummary) -> Key {
    Key {
        keyspace: row.keyspace,
        purpose: row.purpose,
        version: version(row.version),
        state: row.state,
        id: row.id.to_string(),
        created_at: Some(timestamp(row.created_at)),
        deactivated_at: row.deactivated_at.map(timestamp),
        wrapped_deks: u64::try_from(row.wrapped_deks).unwrap_or_default(),
    }
}
