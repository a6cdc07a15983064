//! Kubelet's plugin registration, without a sidecar: kubelet finds the socket in `plugins_registry`, asks who is
//! there, and says how registering went.

use std::path::Path;

use keyfold_core::foreign_text::escaped;
use keyfold_proto::pluginregistration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
    registration_server::Registration,
};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

/// Version of the plugin API that kubelet's CSI manager wants to hear.
const SUPPORTED_VERSION: &str = "1.0.0";

/// Serves the Registration service.
pub struct RegistrationService {
    endpoint: String,
    refusal: mpsc::Sender<String>,
}

impl RegistrationService {
    /// A service that names `csi_socket`, a path of the host. When kubelet says that registering failed, `refusal`
    /// gets its reason.
    pub fn new(csi_socket: &Path, refusal: mpsc::Sender<String>) -> Self {
        Self { endpoint: csi_socket.to_string_lossy().into_owned(), refusal }
    }
}

#[tonic::async_trait]
impl Registration for RegistrationService {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: crate::DRIVER_NAME.into(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec![SUPPORTED_VERSION.into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let RegistrationStatus { plugin_registered, error } = request.into_inner();
        if plugin_registered {
            tracing::info!("kubelet registered the driver");
        } else {
            // Full when kubelet said so before; once is enough.
            let _ = self.refusal.try_send(escaped(&error));
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
