//! A world of real parts: one database, one server, one issuer, one driver.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use keyfold::{
    args::{Format, Global},
    client::Client,
    dev::{
        driver::{self, Driver, Mounts},
        issuer::Issuer,
        kubelet::{Pod, Volume, publish_request},
        pki::Authority,
        server::{self, Server},
        tokens::{AUDIENCE, Minter, SigningKey, Token},
    },
};
use keyfold_core::clock::{Clock as _, SystemClock};
use keyfold_proto::keyfold::v1::{
    Field, IssueSecretsRequest, IssueSecretsResponse, ListEntriesRequest, PutSecretRequest, SecretReference,
    workload_service_client::WorkloadServiceClient,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::{Request, Status, transport::Channel};

use crate::{Database, bin_dir};

/// The volume attribute `secrets` of most tests: the secret of `World::with_payments` as files.
pub const PAYMENTS_SECRETS: &str = "- path: payments/db\n";

/// The node that the driver runs on.
const NODE: &str = "dev-node";

/// Real parts, stopped when dropped.
pub struct World {
    /// The CSI driver, a process.
    pub driver: Driver,
    /// The server, a process.
    pub server: Server,
    /// The issuer of tokens.
    pub issuer: Issuer,
    /// Mints the issuer's tokens.
    pub minter: Arc<Minter>,
    /// The database.
    pub database: Database,
    /// Where everything lies.
    pub folder: TempDir,
    refresh: JoinHandle<()>,
}

impl World {
    /// Everything on the Postgres that tests share.
    ///
    /// # Panics
    /// When a part does not start.
    pub async fn start() -> Self {
        Self::on(Database::shared(), "", "").await
    }

    /// Everything, with a Postgres of its own that the test may kill.
    ///
    /// # Panics
    /// When a part does not start.
    pub async fn with_own_postgres() -> Self {
        Self::on(Database::own(), "", "").await
    }

    /// Everything, with a Postgres of its own, and these lines added to the configuration of server and driver.
    ///
    /// # Panics
    /// When a part does not start.
    pub async fn configured(server_yaml: &str, driver_yaml: &str) -> Self {
        Self::on(Database::own(), server_yaml, driver_yaml).await
    }

    async fn on(database: Database, server_yaml: &str, driver_yaml: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let dir = folder.path();
        let setup = server_setup(dir, "server", &database);
        append(&setup.config_file(), server_yaml);
        let mut server = Server::start(&setup).await.expect("the server starts");
        server.initialise().await.expect("the installation can be initialised");

        let authority = Authority::new("Test issuer", SystemClock.now()).expect("a CA");
        let key = SigningKey::generate().expect("an RSA key");
        let issuer = Issuer::start(&authority, vec![key.jwk()]).await.expect("the issuer starts");
        let minter = Arc::new(Minter { issuer: issuer.url().to_owned(), key });
        let spec = json!({
            "type": "kubernetes",
            "url": issuer.url(),
            "audiences": [AUDIENCE],
            "keys": {"discovery": {"caBundle": authority.certificate_pem()}},
            "drivers": [{"namespace": "keyfold-system", "serviceAccount": "keyfold-csi"}],
        });
        server.apply("Issuer", "dev", &spec).await.expect("the issuer can be applied");

        let mounts = Mounts::possible()
            .expect("tests mount: run them as root, or where users may create user namespaces");
        let driver = driver::Setup::write(
            &bin_dir().join("keyfold-csi"),
            &dir.join("driver"),
            &dir.join("driver.log"),
            &dir.join("kubelet"),
            mounts,
            &setup,
        )
        .expect("the driver's files can be written");
        append(&driver.config_file(), driver_yaml);
        let refresh =
            driver::keep_token_fresh(minter.clone(), driver.token_file()).expect("the driver has a token");
        let driver = Driver::start(&driver).await.expect("the driver starts");
        Self { driver, server, issuer, minter, database, folder, refresh }
    }

    /// The same with keyspace `payments`, secret `payments/db` (`username`, `password`) and app role `payments-api`,
    /// which lets service account `payments/api` read `payments/*`.
    ///
    /// # Panics
    /// When the server refuses any of it.
    pub async fn with_payments(self) -> Self {
        self.server.apply("Keyspace", "payments", &json!({})).await.expect("the keyspace can be applied");
        let role = json!({
            "bind": [{"issuer": "dev", "namespaces": ["payments"], "serviceAccounts": ["api"]}],
            "grants": [{"path": "payments/*", "allow": ["read"]}],
        });
        self.server.apply("AppRole", "payments-api", &role).await.expect("the role can be applied");
        self.put("payments/db", &[("username", "payments"), ("password", "first")]).await;
        self
    }

    /// A second replica on the same database, with the same root key.
    ///
    /// # Panics
    /// When it does not serve.
    pub async fn second_replica(&self) -> Server {
        let dir = self.folder.path();
        let setup = server_setup(dir, "replica", &self.database);
        for file in ["root.key", "admin-token"] {
            fs::copy(dir.join("server").join(file), dir.join("replica").join(file))
                .expect("a copy of the file");
        }
        let mut replica = Server::start(&setup).await.expect("the replica starts");
        replica.until_serving().await.expect("the replica serves");
        replica
    }

    /// The administrator's client of this world's server.
    ///
    /// # Panics
    /// When its files cannot be read.
    pub fn operator(&self) -> Client {
        operator(self.server.setup())
    }

    /// Writes a secret; gives its version.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn put(&self, path: &str, fields: &[(&str, &str)]) -> u32 {
        let field = |(name, value): &(&str, &str)| Field { name: (*name).into(), value: (*value).into() };
        let request = PutSecretRequest {
            path: path.into(),
            fields: fields.iter().map(field).collect(),
            expected_version: None,
        };
        let done = self.operator().secrets().put_secret(request).await.expect("the secret can be written");
        done.into_inner().version
    }

    /// A pod on the driver's node.
    pub fn pod(&self, namespace: &str, service_account: &str, name: &str) -> Pod {
        Pod {
            namespace: namespace.into(),
            name: name.into(),
            service_account: service_account.into(),
            node: NODE.into(),
            fs_group: Some(2000),
        }
    }

    /// A token of that pod, as kubelet would have it.
    ///
    /// # Panics
    /// When there is no randomness.
    pub fn token(&self, pod: &Pod) -> Token {
        self.minter.mint(&pod.token_request(), SystemClock.now()).expect("a token can be minted")
    }

    /// The volume `secrets` of a pod.
    pub fn volume(&self, pod: &Pod) -> Volume {
        Volume::of_pod(self.driver.kubelet().dir(), pod, "secrets")
    }

    /// Publishes a pod's volume under `role` with the attribute `secrets`. Gives where this process sees its files.
    ///
    /// # Errors
    /// The driver's status.
    pub async fn publish(&self, pod: &Pod, role: &str, secrets: &str) -> Result<PathBuf, Status> {
        let volume = self.volume(pod);
        let request =
            publish_request(pod, &volume, &self.token(pod), &[("role", role), ("secrets", secrets)]);
        self.driver.kubelet().publish(request).await?;
        Ok(self.driver.seen(&volume.target))
    }

    /// The driver's own token, as it is now.
    ///
    /// # Panics
    /// When there is none.
    pub fn driver_token(&self) -> String {
        fs::read_to_string(self.folder.path().join("driver/token")).expect("the driver has a token")
    }

    /// Asks the server for secrets as a driver with `driver_token` would; each item is a path and whether it is
    /// optional.
    ///
    /// # Errors
    /// The server's status.
    ///
    /// # Panics
    /// When the token cannot be sent.
    pub async fn issue(
        &self,
        pod_token: &str,
        driver_token: &str,
        role: &str,
        items: &[(&str, bool)],
    ) -> Result<IssueSecretsResponse, Status> {
        let request = issue_request(pod_token, driver_token, role, items);
        Ok(WorkloadServiceClient::new(self.channel()).issue_secrets(request).await?.into_inner())
    }

    /// Who asks again and again for one secret, over a connection of its own.
    ///
    /// # Panics
    /// When the driver has no token.
    pub fn asker(&self, pod: &Pod, role: &str, path: &str) -> Asker {
        Asker {
            workload: WorkloadServiceClient::new(self.channel()),
            pod_token: self.token(pod).jwt.to_string(),
            driver_token: self.driver_token(),
            role: role.to_owned(),
            path: path.to_owned(),
        }
    }

    /// A connection to the server, without a token.
    ///
    /// # Panics
    /// When its files cannot be read.
    pub fn channel(&self) -> Channel {
        let ca = fs::read(self.server.setup().ca_file()).expect("the CA can be read");
        keyfold_proto::channel::connect_lazy(&self.server.setup().url(), &ca).expect("the URL is good")
    }

    /// All audit entries, oldest first, as JSON with their index.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn audit(&self) -> Vec<Value> {
        let request = ListEntriesRequest { page_size: 1000, ..Default::default() };
        let found =
            self.operator().audit().list_entries(request).await.expect("the log can be read").into_inner();
        let entry = |entry: &keyfold_proto::keyfold::v1::AuditEntry| {
            let mut json: Value = serde_json::from_slice(&entry.entry).expect("an entry is JSON");
            json["index"] = entry.index.into();
            json
        };
        found.entries.iter().rev().map(entry).collect()
    }

    /// Everything that the parts have written to their logs.
    ///
    /// # Panics
    /// When a log cannot be read.
    pub fn logs(&self) -> String {
        let mut all = String::new();
        for entry in fs::read_dir(self.folder.path()).expect("the folder can be read") {
            let path = entry.expect("the folder can be read").path();
            if path.extension().is_some_and(|extension| extension == "log") {
                all += &String::from_utf8_lossy(&fs::read(path).expect("the log can be read"));
            }
        }
        all
    }
}

/// Asks for one secret as a driver does for a pod.
pub struct Asker {
    workload: WorkloadServiceClient<Channel>,
    pod_token: String,
    driver_token: String,
    role: String,
    path: String,
}

impl Asker {
    /// Asks once. The tokens are those of the beginning, which live as long as a token of the development issuer does.
    ///
    /// # Errors
    /// The server's status.
    pub async fn ask(&mut self) -> Result<IssueSecretsResponse, Status> {
        let items = [(self.path.as_str(), false)];
        let request = issue_request(&self.pod_token, &self.driver_token, &self.role, &items);
        Ok(self.workload.issue_secrets(request).await?.into_inner())
    }
}

fn issue_request(
    pod_token: &str,
    driver_token: &str,
    role: &str,
    items: &[(&str, bool)],
) -> Request<IssueSecretsRequest> {
    let item =
        |(path, optional): &(&str, bool)| SecretReference { path: (*path).into(), optional: *optional };
    let mut request = Request::new(IssueSecretsRequest {
        pod_token: pod_token.into(),
        role: role.into(),
        items: items.iter().map(item).collect(),
    });
    let bearer = format!("Bearer {driver_token}").parse().expect("a token is ASCII");
    request.metadata_mut().insert("authorization", bearer);
    request
}

impl Drop for World {
    fn drop(&mut self) {
        self.refresh.abort();
    }
}

/// The administrator's client of a server.
///
/// # Panics
/// When its files cannot be read.
pub(crate) fn operator(setup: &server::Setup) -> Client {
    Client::operator(&Global {
        server: Some(setup.url()),
        ca_file: Some(setup.ca_file()),
        token_file: Some(setup.admin_token_file()),
        approval: None,
        output: Format::Table,
        timeout: Duration::from_secs(30),
    })
    .expect("the server's files are there")
}

/// The files of a server on `database`, in the folder `name` below `dir`; it is not started.
///
/// # Panics
/// When they cannot be written.
pub fn server_setup(dir: &Path, name: &str, database: &Database) -> server::Setup {
    let mut setup = server::Setup::write(
        &bin_dir().join("keyfold-server"),
        &dir.join(name),
        &dir.join(format!("{name}.log")),
        (&database.access, &database.name),
        SystemClock.now(),
    )
    .expect("the server's files can be written");
    // However slow the machine is, nobody is refused because others are served first.
    setup.set_variable(WAIT_VARIABLE, Some(WAIT_MILLIS.to_string().into()));
    setup
}

/// Overrides `limits.wait_millis` in each server's configuration.
pub const WAIT_VARIABLE: &str = "KEYFOLD_SERVER__LIMITS__WAIT_MILLIS";
/// An hour: longer than any test.
pub(crate) const WAIT_MILLIS: u64 = 3_600_000;

fn append(file: &Path, yaml: &str) {
    let before = fs::read_to_string(file).expect("the configuration can be read");
    fs::write(file, before + yaml).expect("the configuration can be written");
}
