//! The recorded world: a server whose clock stands still at the time of the recordings, in this process, and the real
//! driver with the recorded driver's token.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use keyfold::dev::{
    driver::{self, Driver, Mounts},
    server,
};
use keyfold_core::clock::FixedClock;
use keyfold_proto::{
    csi::v1::{NodePublishVolumeRequest, VolumeCapability, volume_capability},
    keyfold::v1::{
        ApplyObjectsRequest, Field, InitializeRequest, IssueSecretsRequest, IssueSecretsResponse, Object,
        PutSecretRequest, SecretReference, system_service_client::SystemServiceClient,
        workload_service_client::WorkloadServiceClient,
    },
};
use keyfold_server::{
    config::{Config, ENVIRONMENT_PREFIX},
    serve,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Status};

use crate::{Database, bin_dir, world};

/// A recorded file, as text.
///
/// # Panics
/// When there is none of that name.
pub fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/kubernetes-1.36").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A server at a recorded time, with keyspace `payments`, secret `payments/db` and app role `payments-api` for the
/// recorded service account `payments/api`.
pub struct Recorded {
    /// The server's files.
    pub setup: server::Setup,
    /// The database.
    pub database: Database,
    /// Where everything lies.
    pub folder: TempDir,
    _stop: DropGuard,
}

impl Recorded {
    /// Starts the server with its clock at `now`.
    ///
    /// # Panics
    /// When it does not start, or refuses the set-up.
    pub async fn at(now: OffsetDateTime) -> Self {
        Self::configured(now, |_| {}).await
    }

    /// The same, after `change` has changed the server's configuration.
    ///
    /// # Panics
    /// When it does not start, or refuses the set-up.
    pub async fn configured(now: OffsetDateTime, change: impl FnOnce(&mut Config)) -> Self {
        let database = Database::shared();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let setup = world::server_setup(folder.path(), "server", &database);
        let yaml = fs::read_to_string(setup.config_file()).expect("the configuration can be read");
        let mut config: Config =
            keyfold_core::config::load(&yaml, ENVIRONMENT_PREFIX, []).expect("the configuration loads");
        config.jwks_dir = Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/kubernetes-1.36"));
        config.limits.wait_millis = world::WAIT_MILLIS;
        change(&mut config);
        let bound = serve::bind(config, Arc::new(FixedClock(now)), false).await.expect("the server binds");
        let stop = CancellationToken::new();
        tokio::spawn(bound.serve(stop.clone()));
        let recorded = Self { setup, database, folder, _stop: stop.drop_guard() };
        recorded.initialise().await;
        recorded.declare().await;
        recorded
    }

    fn channel(&self) -> tonic::transport::Channel {
        let ca = fs::read(self.setup.ca_file()).expect("the CA can be read");
        keyfold_proto::channel::connect_lazy(&self.setup.url(), &ca).expect("the URL is good")
    }

    async fn initialise(&self) {
        let bootstrap_token =
            fs::read_to_string(self.setup.bootstrap_token_file()).expect("the bootstrap token can be read");
        let mut system = SystemServiceClient::new(self.channel());
        let made =
            system.initialize(InitializeRequest { bootstrap_token }).await.expect("init works").into_inner();
        fs::write(self.setup.admin_token_file(), made.admin_token.as_bytes())
            .expect("the token can be written");
    }

    async fn declare(&self) {
        let role = json!({
            "bind": [{"issuer": "recorded", "namespaces": ["payments"], "serviceAccounts": ["api"]}],
            "grants": [{"path": "payments/*", "allow": ["read"]}],
        });
        let object = |kind: &str, name: &str, spec: &Value| Object {
            kind: kind.into(),
            name: name.into(),
            spec_json: spec.to_string(),
            ..Object::default()
        };
        let objects = vec![
            object("Keyspace", "payments", &json!({})),
            object("Issuer", "recorded", &Self::issuer_spec()),
            object("AppRole", "payments-api", &role),
        ];
        let operator = world::operator(&self.setup);
        operator
            .config()
            .apply_objects(ApplyObjectsRequest { objects, dry_run: false })
            .await
            .expect("the objects can be applied");
        let field = |name: &str, value: &str| Field { name: name.into(), value: value.into() };
        let request = PutSecretRequest {
            path: "payments/db".into(),
            fields: vec![field("username", "payments"), field("password", "recorded-secret")],
            expected_version: None,
        };
        operator.secrets().put_secret(request).await.expect("the secret can be written");
    }

    /// Declares one object.
    ///
    /// # Panics
    /// When the server refuses it.
    pub async fn apply(&self, kind: &str, name: &str, spec: &Value) {
        let object =
            Object { kind: kind.into(), name: name.into(), spec_json: spec.to_string(), ..Object::default() };
        let request = ApplyObjectsRequest { objects: vec![object], dry_run: false };
        world::operator(&self.setup)
            .config()
            .apply_objects(request)
            .await
            .expect("the object can be applied");
    }

    /// The issuer object of the recorded cluster. Its tokens live ten years, so that recordings stay useful.
    pub fn issuer_spec() -> Value {
        json!({
            "type": "kubernetes",
            "url": "https://kubernetes.default.svc.cluster.local",
            "audiences": ["keyfold"],
            "keys": {"file": "jwks.json"},
            "drivers": [{"namespace": "keyfold-system", "serviceAccount": "keyfold-csi"}],
            "maxTokenLifetime": "4000days",
        })
    }

    /// Asks for `payments/db` as the driver with `driver_token` would for the pod with `pod_token`.
    ///
    /// # Errors
    /// The server's status.
    pub async fn issue(
        &self,
        pod_token: &str,
        driver_token: &str,
        role: &str,
    ) -> Result<IssueSecretsResponse, Status> {
        let message = IssueSecretsRequest {
            pod_token: pod_token.trim().into(),
            role: role.into(),
            items: vec![SecretReference { path: "payments/db".into(), optional: false }],
        };
        self.call_issue(message, driver_token).await
    }

    /// Asks for `paths` as the recorded driver would for the recorded pod.
    ///
    /// # Errors
    /// The server's status.
    pub async fn issue_paths(&self, paths: &[&str]) -> Result<IssueSecretsResponse, Status> {
        let item = |path: &&str| SecretReference { path: (*path).into(), optional: false };
        let message = IssueSecretsRequest {
            pod_token: fixture("tokens/payments-api-on-node-vm.jwt").trim().into(),
            role: "payments-api".into(),
            items: paths.iter().map(item).collect(),
        };
        self.call_issue(message, &fixture("tokens/driver-on-node-vm.jwt")).await
    }

    async fn call_issue(
        &self,
        message: IssueSecretsRequest,
        driver_token: &str,
    ) -> Result<IssueSecretsResponse, Status> {
        let mut request = Request::new(message);
        let bearer = format!("Bearer {}", driver_token.trim()).parse().expect("a token is ASCII");
        request.metadata_mut().insert("authorization", bearer);
        Ok(WorkloadServiceClient::new(self.channel()).issue_secrets(request).await?.into_inner())
    }

    /// The real driver on this server, with the token of the recorded one on node `vm`.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn driver(&self, token_source: &str) -> Driver {
        let dir = self.folder.path();
        let mounts = Mounts::possible()
            .expect("tests mount: run them as root, or where users may create user namespaces");
        let setup = driver::Setup::write(
            &bin_dir().join("keyfold-csi"),
            &dir.join("driver"),
            &dir.join("driver.log"),
            &dir.join("kubelet"),
            mounts,
            &self.setup,
        )
        .expect("the driver's files can be written");
        fs::write(setup.token_file(), fixture("tokens/driver-on-node-vm.jwt").trim())
            .expect("the token can be written");
        let yaml = fs::read_to_string(setup.config_file()).expect("the configuration can be read");
        let yaml = yaml.replace("token_source: secrets", &format!("token_source: {token_source}"));
        fs::write(setup.config_file(), yaml).expect("the configuration can be written");
        Driver::start(&setup).await.expect("the driver starts")
    }

    /// A recorded NodePublishVolume, with kubelet's folder replaced by that of `driver`.
    ///
    /// # Panics
    /// When the recording is not one.
    pub fn publish_request(&self, name: &str, driver: &Driver) -> (NodePublishVolumeRequest, PathBuf) {
        let json: Value = serde_json::from_str(&fixture(name)).expect("a recording is JSON");
        let text = |value: &Value| value.as_str().expect("a string").to_owned();
        let map = |value: &Value| {
            value.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), text(value))).collect()
        };
        let target = text(&json["target_path"])
            .replace("/var/lib/kubelet", &driver.kubelet().dir().display().to_string());
        let group = text(&json["volume_capability"]["mount"]["volume_mount_group"]);
        let mode = json["volume_capability"]["access_mode"]["mode"]
            .as_i64()
            .and_then(|mode| i32::try_from(mode).ok());
        let request = NodePublishVolumeRequest {
            volume_id: text(&json["volume_id"]),
            target_path: target.clone(),
            volume_capability: Some(VolumeCapability {
                access_mode: Some(volume_capability::AccessMode { mode: mode.expect("a mode") }),
                access_type: Some(volume_capability::AccessType::Mount(volume_capability::MountVolume {
                    volume_mount_group: group,
                    ..Default::default()
                })),
            }),
            readonly: json["readonly"].as_bool().expect("a flag"),
            secrets: map(&json["secrets"]),
            volume_context: map(&json["volume_context"]),
            ..Default::default()
        };
        (request, driver.seen(Path::new(&target)))
    }
}
