//! `ConfigService`.

use keyfold_proto::keyfold::v1::{
    ApplyObjectsRequest, ApplyObjectsResponse, ChangeKind, DeleteObjectRequest, DeleteObjectResponse,
    GetObjectRequest, GetObjectResponse, ListObjectsRequest, ListObjectsResponse, Object, ObjectChange,
    config_service_server::ConfigService,
};
use tonic::{Request, Response, Status};

use super::{Api, bounded, timestamp};
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
        self.answer("ApplyObjects", async {
            let call = self.call(&request).await?;
            let message = request.into_inner();
            let wanted = wanted(message.objects)?;
            let changes = self.broker.apply_objects(&call, &wanted, message.dry_run).await?;
            Ok(ApplyObjectsResponse { changes: changes.into_iter().map(change).collect() })
        })
        .await
    }

    async fn get_object(
        &self,
        request: Request<GetObjectRequest>,
    ) -> Result<Response<GetObjectResponse>, Status> {
        self.answer("GetObject", async {
            let call = self.call(&request).await?;
            let message = request.into_inner();
            let found = self
                .broker
                .object(&call, bounded("kind", &message.kind)?, bounded("name", &message.name)?)
                .await?;
            Ok(GetObjectResponse { object: Some(object(found)) })
        })
        .await
    }

    async fn list_objects(
        &self,
        request: Request<ListObjectsRequest>,
    ) -> Result<Response<ListObjectsResponse>, Status> {
        self.answer("ListObjects", async {
            let call = self.call(&request).await?;
            let found = self.broker.objects(&call, bounded("kind", &request.get_ref().kind)?).await?;
            Ok(ListObjectsResponse { objects: found.into_iter().map(object).collect() })
        })
        .await
    }

    async fn delete_object(
        &self,
        request: Request<DeleteObjectRequest>,
    ) -> Result<Response<DeleteObjectResponse>, Status> {
        self.answer("DeleteObject", async {
            let call = self.call(&request).await?;
            let message = request.into_inner();
            self.broker
                .delete_object(&call, bounded("kind", &message.kind)?, bounded("name", &message.name)?)
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
