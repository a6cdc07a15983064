//! The whole driver in this process, on its real sockets, with kubelet's side played by the test. The Keyfold server
//! is away; publishing against a server is covered beside `publish.rs` and end to end.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use keyfold_csi::{RunError, config::Config, run};
use keyfold_proto::{
    csi::v1::{
        GetPluginCapabilitiesRequest, GetPluginInfoRequest, NodeGetCapabilitiesRequest, NodeGetInfoRequest,
        NodePublishVolumeRequest, NodeUnpublishVolumeRequest, ProbeRequest, VolumeCapability,
        identity_client::IdentityClient,
        node_client::NodeClient,
        node_service_capability::{Type, rpc::Type as RpcType},
        volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
    },
    pluginregistration::{InfoRequest, RegistrationStatus, registration_client::RegistrationClient},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::oneshot,
    task::JoinHandle,
};
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

struct Driver {
    folder: tempfile::TempDir,
    config: Config,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), RunError>>,
}

impl Driver {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let ca = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(path.join("ca.crt"), ca.cert.pem()).unwrap();
        fs::write(path.join("token"), "driver-token").unwrap();
        fs::create_dir_all(path.join("pods/uid")).unwrap();
        // Port 1 refuses connections: nothing listens there.
        let yaml = format!(
            "server: {{url: 'https://127.0.0.1:1', ca_file: {0}/ca.crt, wait_secs: 0}}\n\
             token_file: {0}/token\nkubelet_dir: {0}\nnode_id: vm",
            path.display()
        );
        let config = Config::parse(&yaml, []).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(run(config.clone(), async {
            // Also when the test ends without a word.
            let _ = stopped.await;
        }));
        let driver = Self { folder, config, stop: Some(stop), task };
        while UnixStream::connect(driver.config.registration_socket()).await.is_err() {
            assert!(!driver.task.is_finished(), "the driver ended at once");
            tokio::task::yield_now().await;
        }
        driver
    }

    async fn stop(mut self) -> Result<(), RunError> {
        let _ = self.stop.take().unwrap().send(());
        self.task.await.unwrap()
    }

    fn csi(&self) -> Channel {
        channel(&self.config.csi_socket())
    }

    fn registration(&self) -> RegistrationClient<Channel> {
        RegistrationClient::new(channel(&self.config.registration_socket()))
    }

    fn target(&self) -> PathBuf {
        self.folder.path().join("pods/uid/mount")
    }

    fn publish_request(&self) -> NodePublishVolumeRequest {
        let tokens = r#"{"keyfold":{"token":"planted-pod-token"}}"#;
        NodePublishVolumeRequest {
            volume_id: "csi-1".into(),
            target_path: self.target().to_str().unwrap().into(),
            readonly: true,
            volume_capability: Some(VolumeCapability {
                access_type: Some(AccessType::Mount(MountVolume::default())),
                access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
            }),
            secrets: [("csi.storage.k8s.io/serviceAccount.tokens".to_owned(), tokens.to_owned())].into(),
            volume_context: [("secrets".to_owned(), "- path: payments/db".to_owned())].into(),
            ..Default::default()
        }
    }
}

fn channel(socket: &Path) -> Channel {
    Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap().connect_lazy()
}

#[tokio::test]
async fn kubelet_finds_the_driver_and_learns_what_it_can() {
    let driver = Driver::start().await;
    for socket in [driver.config.csi_socket(), driver.config.registration_socket()] {
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600, "{socket:?}");
    }

    let info = driver.registration().get_info(InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "csi.keyfold.dev"));
    assert_eq!(Path::new(&info.endpoint), driver.config.csi_socket());
    assert_eq!(info.supported_versions, ["1.0.0"]);
    let registered = RegistrationStatus { plugin_registered: true, error: String::new() };
    driver.registration().notify_registration_status(registered).await.unwrap();

    let mut identity = IdentityClient::new(driver.csi());
    let info = identity.get_plugin_info(GetPluginInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.name, "csi.keyfold.dev");
    assert!(!info.vendor_version.is_empty());
    assert_eq!(identity.probe(ProbeRequest {}).await.unwrap().into_inner().ready, Some(true));
    identity.get_plugin_capabilities(GetPluginCapabilitiesRequest {}).await.unwrap();

    let mut node = NodeClient::new(driver.csi());
    assert_eq!(node.node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner().node_id, "vm");
    let capabilities =
        node.node_get_capabilities(NodeGetCapabilitiesRequest {}).await.unwrap().into_inner().capabilities;
    let types: Vec<_> = capabilities.into_iter().map(|capability| capability.r#type).collect();
    assert!(matches!(types[..], [Some(Type::Rpc(rpc))] if rpc.r#type() == RpcType::VolumeMountGroup));

    let health = HealthClient::new(driver.csi()).check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(health.into_inner().status(), ServingStatus::Serving);
    driver.stop().await.unwrap();
}

#[tokio::test]
async fn attack_14_errors_carry_a_code_and_a_message_for_the_pods_event_and_nothing_secret() {
    let driver = Driver::start().await;
    let mut node = NodeClient::new(driver.csi());
    let status = node.node_publish_volume(driver.publish_request()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(
        status.message(),
        "unnamed pod: the Keyfold server is away (tried for 0 s): it cannot be reached"
    );
    assert!(status.details().is_empty());
    assert!(!driver.target().exists());

    let mut bad = driver.publish_request();
    bad.volume_context.insert("secrets".into(), "- {path: /etc, mode: x}\n".repeat(64));
    let status = node.node_publish_volume(bad).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().len() < 4200 && status.message().contains("secrets[1]: path"), "{status:?}");

    let mut spoofed = driver.publish_request();
    let tokens = spoofed.secrets.drain().collect::<Vec<_>>();
    spoofed.volume_context.extend(tokens);
    let status = node.node_publish_volume(spoofed).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("serviceAccountTokenInSecrets"), "{status:?}");
    assert!(!status.message().contains("planted-pod-token"));

    let missing = node.node_unpublish_volume(NodeUnpublishVolumeRequest::default()).await.unwrap_err();
    assert_eq!((missing.code(), missing.message()), (Code::InvalidArgument, "the volume id is missing"));
    let unknown = NodeUnpublishVolumeRequest {
        volume_id: "csi-1".into(),
        target_path: driver.target().to_str().unwrap().into(),
    };
    node.node_unpublish_volume(unknown).await.unwrap();
    driver.stop().await.unwrap();
}

#[tokio::test]
async fn attack_16_garbage_and_oversized_messages_end_their_call_and_nothing_else() {
    let driver = Driver::start().await;
    for socket in [driver.config.csi_socket(), driver.config.registration_socket()] {
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0"]
        {
            let mut stream = UnixStream::connect(&socket).await.unwrap();
            // The driver may have hung up before all is written.
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    }
    let mut huge = driver.publish_request();
    huge.volume_context.insert("secrets".into(), "x".repeat(10 << 20));
    let status = NodeClient::new(driver.csi()).node_publish_volume(huge).await.unwrap_err();
    assert_ne!(status.code(), Code::Ok);
    let error = RegistrationStatus { plugin_registered: true, error: "x".repeat(10 << 20) };
    assert!(driver.registration().notify_registration_status(error).await.is_err());

    let probe = IdentityClient::new(driver.csi()).probe(ProbeRequest {}).await.unwrap();
    assert_eq!(probe.into_inner().ready, Some(true));
    driver.stop().await.unwrap();
}

#[tokio::test]
async fn a_driver_that_kubelet_refuses_ends_with_an_error() {
    let driver = Driver::start().await;
    let refused = RegistrationStatus { plugin_registered: false, error: "wrong\u{1b} version".into() };
    driver.registration().notify_registration_status(refused).await.unwrap();
    let error = driver.task.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "kubelet did not register the driver: wrong\\u{1b} version");
    assert!(!driver.config.registration_socket().exists());
}

#[tokio::test]
async fn a_stopped_driver_leaves_no_socket() {
    let driver = Driver::start().await;
    let (csi, registration) = (driver.config.csi_socket(), driver.config.registration_socket());
    driver.stop().await.unwrap();
    assert!(!csi.exists() && !registration.exists());
}

#[tokio::test]
async fn a_driver_that_cannot_start_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let yaml = format!(
        "server: {{url: 'https://127.0.0.1:1', ca_file: {0}/ca.crt}}\ntoken_file: /t\nkubelet_dir: {0}\nnode_id: vm",
        path.display()
    );
    let config = Config::parse(&yaml, []).unwrap();
    let start = || run(config.clone(), std::future::pending());
    assert!(start().await.unwrap_err().to_string().contains("server.ca_file"));
    fs::write(path.join("ca.crt"), "not a certificate").unwrap();
    assert!(start().await.unwrap_err().to_string().contains("no certificate"));
    let ca = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(path.join("ca.crt"), ca.cert.pem()).unwrap();
    fs::create_dir_all(config.registration_socket()).unwrap();
    assert!(start().await.unwrap_err().to_string().contains("is not a socket"));
    assert!(!config.csi_socket().exists(), "what was bound before is removed again");
}
