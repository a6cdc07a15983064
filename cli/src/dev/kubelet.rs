//! Plays kubelet's part towards the CSI driver, call for call as kubelet 1.36 does: registration, then
//! NodePublishVolume and NodeUnpublishVolume on the driver's Unix socket.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use keyfold_proto::{
    csi::v1::{
        NodeGetCapabilitiesRequest, NodeGetInfoRequest, NodePublishVolumeRequest, NodeUnpublishVolumeRequest,
        ProbeRequest, VolumeCapability,
        identity_client::IdentityClient,
        node_client::NodeClient,
        volume_capability,
        volume_capability::{AccessMode, MountVolume, access_mode::Mode},
    },
    pluginregistration::{
        InfoRequest, PluginInfo, RegistrationStatus, registration_client::RegistrationClient,
    },
};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;
use tokio::net::UnixStream;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use super::{
    files::{read_text, remove_if_there, write_private},
    tokens::{AUDIENCE, Token, TokenRequest, uid},
};
use crate::exit::{Exit, Failure};

/// The driver's name.
pub const DRIVER: &str = "csi.keyfold.dev";

/// How long a pod's token holds: what the CSIDriver object asks for.
const POD_TOKEN_TTL: Duration = Duration::from_secs(3600);
const TOKENS_KEY: &str = "csi.storage.k8s.io/serviceAccount.tokens";
/// Kubelet gives each CSI call two minutes (`csiTimeout`).
const CALL_TIMEOUT: Duration = Duration::from_secs(120);

/// A pod as far as a volume of it is concerned.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its service account.
    pub service_account: String,
    /// The node that runs it.
    pub node: String,
    /// `securityContext.fsGroup`.
    pub fs_group: Option<u32>,
}

impl Pod {
    /// The pod's UID in the development cluster.
    pub fn uid(&self) -> String {
        uid("Pod", &self.namespace, &self.name)
    }

    /// The token that kubelet asks for on the pod's behalf.
    pub fn token_request(&self) -> TokenRequest {
        TokenRequest {
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
            pod: Some(self.name.clone()),
            node: Some(self.node.clone()),
            audience: AUDIENCE.to_owned(),
            ttl: POD_TOKEN_TTL,
        }
    }
}

/// One inline volume of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its CSI volume id.
    pub id: String,
    /// Where it is mounted: `<kubelet>/pods/<uid>/volumes/kubernetes.io~csi/<name>/mount`.
    pub target: PathBuf,
}

impl Volume {
    /// The volume `name` of `pod`, with the id and the path that kubelet gives it.
    pub fn of_pod(kubelet_dir: &Path, pod: &Pod, name: &str) -> Self {
        let pod_uid = pod.uid();
        let target = kubelet_dir.join(format!("pods/{pod_uid}/volumes/kubernetes.io~csi/{name}/mount"));
        Self { id: volume_id(&pod_uid, name), target }
    }
}

/// The id of an inline volume: `csi-` and the SHA-256 of the pod's UID and the volume's name (kubelet's
/// `makeVolumeHandle`).
pub fn volume_id(pod_uid: &str, volume: &str) -> String {
    format!("csi-{}", sha256_hex(&format!("{pod_uid}{volume}")))
}

fn sha256_hex(text: &str) -> String {
    digest(&SHA256, text.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The request that kubelet sends for an inline volume of a driver with `serviceAccountTokenInSecrets: true`.
/// `attributes` are the volume's own, from the pod's manifest.
pub fn publish_request(
    pod: &Pod,
    volume: &Volume,
    token: &Token,
    attributes: &[(&str, &str)],
) -> NodePublishVolumeRequest {
    let identity = [
        ("csi.storage.k8s.io/pod.name", pod.name.clone()),
        ("csi.storage.k8s.io/pod.namespace", pod.namespace.clone()),
        ("csi.storage.k8s.io/pod.uid", pod.uid()),
        ("csi.storage.k8s.io/serviceAccount.name", pod.service_account.clone()),
        ("csi.storage.k8s.io/ephemeral", "true".to_owned()),
    ];
    let attributes = attributes.iter().map(|(key, value)| (*key, (*value).to_owned()));
    NodePublishVolumeRequest {
        volume_id: volume.id.clone(),
        target_path: volume.target.display().to_string(),
        volume_capability: Some(capability(pod.fs_group)),
        readonly: true,
        secrets: HashMap::from([(TOKENS_KEY.to_owned(), tokens_json(token))]),
        volume_context: attributes.chain(identity).map(|(key, value)| (key.to_owned(), value)).collect(),
        ..NodePublishVolumeRequest::default()
    }
}

fn capability(fs_group: Option<u32>) -> VolumeCapability {
    let volume_mount_group = fs_group.map(|group| group.to_string()).unwrap_or_default();
    VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        access_type: Some(volume_capability::AccessType::Mount(MountVolume {
            volume_mount_group,
            ..MountVolume::default()
        })),
    }
}

fn tokens_json(token: &Token) -> String {
    let expires = token.expires_at.format(&Rfc3339).unwrap_or_default();
    let projected = ProjectedToken { token: &token.jwt, expiration_timestamp: expires };
    serde_json::to_string(&HashMap::from([(AUDIENCE, projected)])).unwrap_or_default()
}

/// One audience's member of the tokens that kubelet hands over.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProjectedToken<'a> {
    token: &'a str,
    expiration_timestamp: String,
}

/// Kubelet's notes beside a mounted volume, in `vol_data.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct VolumeData {
    #[serde(rename = "attachmentID")]
    attachment_id: String,
    driver_name: String,
    node_name: String,
    #[serde(rename = "specVolID")]
    spec_vol_id: String,
    volume_handle: String,
    volume_lifecycle_mode: String,
}

/// Kubelet, as the driver sees it.
#[derive(Clone)]
pub struct Kubelet {
    dir: PathBuf,
    node: String,
}

impl Kubelet {
    /// The kubelet of `node` with its folder at `dir`, where the driver's sockets are.
    pub fn new(dir: &Path, node: &str) -> Self {
        Self { dir: dir.to_owned(), node: node.to_owned() }
    }

    /// A connection to the driver: kubelet opens one for each call, too.
    fn driver(&self) -> Channel {
        connect_lazy(&csi_socket(&self.dir))
    }

    /// Kubelet's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the driver answers Probe with ready.
    pub async fn is_driver_ready(&self) -> bool {
        let answer = IdentityClient::new(self.driver()).probe(ProbeRequest {}).await;
        answer.is_ok_and(|probe| probe.into_inner().ready.unwrap_or(false))
    }

    /// Registers the driver as kubelet does when the registration socket appears: GetInfo, NodeGetInfo, then
    /// NotifyRegistrationStatus. Gives what the driver said about itself.
    ///
    /// # Errors
    /// When a call fails, or the driver is another one.
    pub async fn register(&self) -> Result<PluginInfo, Failure> {
        let failed = |status: Status| Failure::rpc("cannot register the CSI driver", &status);
        let mut registration = RegistrationClient::new(connect_lazy(&registration_socket(&self.dir)));
        let info = registration.get_info(InfoRequest {}).await.map_err(failed)?.into_inner();
        if info.r#type != "CSIPlugin" || info.name != DRIVER {
            let why = format!("it says that it is the {} {:?}", info.r#type, info.name);
            return Err(Failure::new(Exit::Internal, "cannot register the CSI driver", why));
        }
        let mut node = NodeClient::new(self.driver());
        node.node_get_info(NodeGetInfoRequest {}).await.map_err(failed)?;
        let status = RegistrationStatus { plugin_registered: true, error: String::new() };
        registration.notify_registration_status(status).await.map_err(failed)?;
        Ok(info)
    }

    /// Publishes a volume: for the first time, or again with a fresh token as kubelet does each minute or so. After
    /// a first publish that was refused for good, nothing is kept of the volume, as kubelet keeps nothing.
    ///
    /// # Errors
    /// The driver's own status: its message is what the pod's event would show.
    pub async fn publish(&self, request: NodePublishVolumeRequest) -> Result<(), Status> {
        let volume = Volume { id: request.volume_id.clone(), target: request.target_path.clone().into() };
        let is_first = !self.volumes().contains(&volume);
        self.note(&request).map_err(|failure| Status::internal(failure.to_string()))?;
        let answer = self.call_publish(request).await;
        if is_first && answer.as_ref().is_err_and(|status| is_final(status.code())) {
            self.forget(&volume).map_err(|error| Status::internal(error.to_string()))?;
        }
        answer
    }

    async fn call_publish(&self, request: NodePublishVolumeRequest) -> Result<(), Status> {
        let mut node = NodeClient::new(self.driver());
        // Kubelet asks this before each publish, to learn of VOLUME_MOUNT_GROUP.
        node.node_get_capabilities(NodeGetCapabilitiesRequest {}).await?;
        let mut request = tonic::Request::new(request);
        request.set_timeout(CALL_TIMEOUT);
        node.node_publish_volume(request).await.map(drop)
    }

    /// Unpublishes a volume and clears away what kubelet kept about it.
    ///
    /// # Errors
    /// The driver's own status, or an I/O error as INTERNAL.
    pub async fn unpublish(&self, volume: &Volume) -> Result<(), Status> {
        let mut request = tonic::Request::new(NodeUnpublishVolumeRequest {
            volume_id: volume.id.clone(),
            target_path: volume.target.display().to_string(),
        });
        request.set_timeout(CALL_TIMEOUT);
        NodeClient::new(self.driver()).node_unpublish_volume(request).await?;
        self.forget(volume).map_err(|error| Status::internal(error.to_string()))
    }

    /// The volumes that kubelet has notes about.
    pub fn volumes(&self) -> Vec<Volume> {
        let pods = subfolders(&self.dir.join("pods"));
        let of_pod = |pod: PathBuf| subfolders(&pod.join("volumes/kubernetes.io~csi"));
        pods.into_iter().flat_map(of_pod).filter_map(|folder| noted_volume(&folder)).collect()
    }

    /// Writes `vol_data.json` beside the target, which kubelet has done by the time it calls.
    fn note(&self, request: &NodePublishVolumeRequest) -> Result<(), Failure> {
        let target = Path::new(&request.target_path);
        let folder = target.parent().unwrap_or(target);
        let (id, node) = (&request.volume_id, &self.node);
        let data = VolumeData {
            attachment_id: format!("csi-{}", sha256_hex(&format!("{id}{DRIVER}{node}"))),
            driver_name: DRIVER.to_owned(),
            node_name: node.clone(),
            spec_vol_id: folder.file_name().unwrap_or_default().display().to_string(),
            volume_handle: id.clone(),
            volume_lifecycle_mode: "Ephemeral".to_owned(),
        };
        let failed = |error| Failure::io(format!("cannot create {}", folder.display()), &error);
        DirBuilder::new().recursive(true).mode(0o750).create(folder).map_err(failed)?;
        let json = serde_json::to_vec(&data).map_err(|error| failed(error.into()))?;
        write_private(&folder.join(VOLUME_DATA), &json)
    }

    /// Removes the target and `vol_data.json`, and the folders above as far as they are empty.
    fn forget(&self, volume: &Volume) -> io::Result<()> {
        let Some(folder) = volume.target.parent() else { return Ok(()) };
        // The driver has removed it; what is mounted still cannot be removed, and stays.
        let _ = fs::remove_dir(&volume.target);
        remove_if_there(&folder.join(VOLUME_DATA))?;
        let pods = self.dir.join("pods");
        for folder in folder.ancestors().take_while(|folder| *folder != pods && folder.starts_with(&pods)) {
            // A folder that is not empty belongs to another volume, and ends the walk.
            if fs::remove_dir(folder).is_err() {
                break;
            }
        }
        Ok(())
    }
}

const VOLUME_DATA: &str = "vol_data.json";

/// Whether kubelet takes a failed publish for finished (`isFinalError` of its CSI plugin): with the other codes the
/// driver may be at work still.
fn is_final(code: Code) -> bool {
    let undecided =
        [Code::Cancelled, Code::DeadlineExceeded, Code::Unavailable, Code::ResourceExhausted, Code::Aborted];
    !undecided.contains(&code)
}

/// The driver's CSI socket below kubelet's folder.
pub fn csi_socket(kubelet_dir: &Path) -> PathBuf {
    kubelet_dir.join(format!("plugins/{DRIVER}/csi.sock"))
}

/// The driver's registration socket below kubelet's folder.
pub fn registration_socket(kubelet_dir: &Path) -> PathBuf {
    kubelet_dir.join(format!("plugins_registry/{DRIVER}-reg.sock"))
}

fn connect_lazy(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connect = service_fn(move |_: hyper::Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // tonic wants a URL; the connector does not look at it. gRPC names a Unix socket's peer `localhost`.
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect)
}

fn noted_volume(folder: &Path) -> Option<Volume> {
    let data: VolumeData = serde_json::from_str(&read_text(&folder.join(VOLUME_DATA)).ok()?).ok()?;
    Some(Volume { id: data.volume_handle, target: folder.join("mount") })
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

#[cfg(test)]
mod tests;
