//! `ConfigService`.

use keyfold_proto::keyfold::v1::{
    ApplyObjectsRequest, ApplyObjectsResponse, ChangeKind, DeleteObjectRequest, DeleteObjectResponse,
    GetObjectRequest, GetObjectResponse, ListObjectsRequest, ListObjectsResponse, Object, ObjectChange,
    config_service_server::ConfigService,
};
use tonic::{Request, Response, Status};

use super::{Api, answer, bearer, bounded, timestamp};
use crate::{
    broker::config::{self, WantedObject},
    error::Error,
    store::objects,
};

/// Most objects of one apply.
const OBJECTS_MAX: usize = 256;

#[tonic::async_trait]
impl ConfigService for Api {
    async fn apply_objects(
        &self,
        request: Request<ApplyObjectsRequest>,
    ) -> Result<Response<ApplyObjectsResponse>, Status> {
        answer("ApplyObjects", async {
            let token = bearer(&request);
            let message = request.into_inner();
            let wanted = wanted(message.objects)?;
            let token = token.as_ref().map(|token| token.as_str());
            let changes = self.broker.apply_objects(token, &wanted, message.dry_run).await?;
            Ok(ApplyObjectsResponse { changes: changes.into_iter().map(change).collect() })
        })
        .await
    }

    async fn get_object(
        &self,
        request: Request<GetObjectRequest>,
    ) -> Result<Response<GetObjectResponse>, Status> {
        answer("GetObject", async {
            let token = bearer(&request);
            let message = request.into_inner();
            let token = token.as_ref().map(|token| token.as_str());
            let found = self
                .broker
                .object(token, bounded("kind", &message.kind)?, bounded("name", &message.name)?)
                .await?;
            Ok(GetObjectResponse { object: Some(object(found)) })
        })
        .await
    }

    async fn list_objects(
        &self,
        request: Request<ListObjectsRequest>,
    ) -> Result<Response<ListObjectsResponse>, Status> {
        answer("ListObjects", async {
            let token = bearer(&request);
            let token = token.as_ref().map(|token| token.as_str());
            let found = self.broker.objects(token, bounded("kind", &request.get_ref().kind)?).await?;
            Ok(ListObjectsResponse { objects: found.into_iter().map(object).collect() })
        })
        .await
    }

    async fn delete_object(
        &self,
        request: Request<DeleteObjectRequest>,
    ) -> Result<Response<DeleteObjectResponse>, Status> {
        answer("DeleteObject", async {
            let token = bearer(&request);
            let message = request.into_inner();
            let token = token.as_ref().map(|token| token.as_str());
            self.broker
                .delete_object(token, bounded("kind", &message.kind)?, bounded("name", &message.name)?)
                .await?;
            Ok(DeleteObjectResponse {})
        })
        .await
    }
}

fn wanted(objects: Vec<Object>) -> Result<Vec<WantedObject>, Error> {
    if objects.is_empty() || objects.len() > OBJECTS_MAX {
        return Err(Error::Invalid(format!("apply 1 to {OBJECTS_MAX} objects")));
    }
    let wanted = |object: Object| {
        bounded("kind", &object.kind)?;
        bounded("name", &object.name)?;
        Ok(WantedObject { kind: object.kind, name: object.name, spec_json: object.spec_json })
    };
    objects.into_iter().map(wanted).collect()
}

fn change(change: config::ObjectChange) -> ObjectChange {
    let kind = match &change.before {
        None => ChangeKind::Created,
        Some(_) if change.is_change() => ChangeKind::Changed,
        Some(_) => ChangeKind::Unchanged,
    };
    ObjectChange { change: kind.into(), before: change.before.map(object), after: Some(object(change.after)) }
}

fn object(object: objects::Object) -> Object {
    Object {
        kind: object.kind.as_str().to_owned(),
        name: object.name.to_string(),
        spec_json: object.spec_json,
        generation: object.generation,
        updated_at: Some(timestamp(object.updated_at)),
    }
}
