//! CSI's Node service: an adapter without logic.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use keyfold_core::{foreign_text::escaped, name::cut};
use keyfold_proto::csi::v1::{
    NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse,
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability, NodeUnpublishVolumeRequest,
    NodeUnpublishVolumeResponse, node_server::Node, node_service_capability,
};
use tonic::{Code, Request, Response, Status};

use crate::{
    broker_client::BrokerError,
    mount::MountError,
    publish::{Publisher, VolumeError},
    render::RenderError,
};

/// Longest message in bytes. Kubelet cuts events at 1024, and a gRPC header block has its own limit.
const MESSAGE_BYTES_MAX: usize = 4096;

/// Serves the Node service.
pub struct NodeService {
    node_id: String,
    publisher: Arc<Publisher>,
}

impl NodeService {
    /// A service for the node `node_id`.
    pub fn new(node_id: String, publisher: Arc<Publisher>) -> Self {
        Self { node_id, publisher }
    }
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let published = self.publisher.publish(request.into_inner()).await;
        published.map_err(|error| status(code(&error.error), &error.to_string()))?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let unpublished = self.publisher.unpublish(request.into_inner()).await;
        unpublished.map_err(|error| status(code(&error), &error.to_string()))?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let rpc = node_service_capability::Rpc {
            r#type: node_service_capability::rpc::Type::VolumeMountGroup.into(),
        };
        let capability = NodeServiceCapability { r#type: Some(node_service_capability::Type::Rpc(rpc)) };
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities: vec![capability] }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        // 0: no limit on the volumes of a node.
        Ok(Response::new(NodeGetInfoResponse { node_id: self.node_id.clone(), max_volumes_per_node: 0 }))
    }
}

fn code(error: &VolumeError) -> Code {
    match error {
        VolumeError::Invalid(_) => Code::InvalidArgument,
        VolumeError::Busy(_) => Code::Aborted,
        VolumeError::Stopping | VolumeError::Broker(BrokerError::Unavailable { .. }) => Code::Unavailable,
        // Whatever the reason: kubelets that take a running pod's mount away after an error (kubernetes#121271) leave it
        // after this one, so that files can come back.
        VolumeError::LeaseEnded { .. } => Code::Unavailable,
        VolumeError::PodToken(_) => Code::Unauthenticated,
        VolumeError::Broker(BrokerError::Refused(refusal)) => refusal_code(refusal.code()),
        VolumeError::Full(_) | VolumeError::Render(RenderError::TooManyFiles) => Code::ResourceExhausted,
        VolumeError::Render(_)
        | VolumeError::NoParent
        | VolumeError::Mount(MountError::Foreign(..) | MountError::Outside) => Code::FailedPrecondition,
        VolumeError::Broker(BrokerError::OwnToken { .. })
        | VolumeError::Mount(MountError::Io(..) | MountError::NotPermitted)
        | VolumeError::Write(_)
        | VolumeError::Crashed => Code::Internal,
    }
}

/// The server's code where it says what to do about the secrets or the pod; the rest is a fault of the installation.
fn refusal_code(code: Code) -> Code {
    match code {
        Code::Unauthenticated
        | Code::PermissionDenied
        | Code::InvalidArgument
        | Code::NotFound
        | Code::FailedPrecondition
        | Code::DataLoss => code,
        _ => Code::Internal,
    }
}

/// A status without details, as the CSI specification has it, and with a message that fits and steers no terminal,
/// whatever became part of it.
fn status(code: Code, message: &str) -> Status {
    Status::new(code, cut(&escaped(message), MESSAGE_BYTES_MAX))
}
