//! Keyfold's side: a server on a Postgres of its own, and callers that ask it through the public contract.

use std::{fs, net::Ipv4Addr, ops::Range, sync::Arc, time::Duration};

use hyper::header::HeaderValue;
use keyfold::{
    args::{Format, Global},
    client::Client,
    dev::{postgres::Postgres, server::Server, tokens::AUDIENCE},
};
use keyfold_proto::keyfold::v1::{
    Field, GetSecretRequest, GetSecretResponse, IssueSecretsRequest, IssueSecretsResponse,
    ListSecretsRequest, ListSecretsResponse, PutSecretRequest, PutSecretResponse, SecretReference,
};
use keyfold_tests::{Database, WAIT_VARIABLE, server_setup, tls::narrow_channel_from};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Mutex;
use tonic::transport::Channel;

use super::{
    database,
    grpc::Connection,
    http::Address,
    meter::Meter,
    stored::{self, FIELD, KEYSPACE},
    tokens::{APPS, Mint, PodToken, service_account},
    workload::Failure,
};

const DATABASE: &str = "keyfold";
/// The most that one page lists.
const PAGE_MAX: u32 = 1000;

const ISSUE_SECRETS: &str = "/keyfold.v1.WorkloadService/IssueSecrets";
const GET_SECRET: &str = "/keyfold.v1.SecretService/GetSecret";
const PUT_SECRET: &str = "/keyfold.v1.SecretService/PutSecret";
const LIST_SECRETS: &str = "/keyfold.v1.SecretService/ListSecrets";

/// A server, stopped when dropped.
pub(crate) struct Broker {
    server: Mutex<Server>,
    pid: std::sync::Mutex<u32>,
    mint: Arc<Mint>,
    url: String,
    address: Address,
    database: Database,
    _folder: TempDir,
}

impl Broker {
    /// Starts Postgres and the server, and declares issuer, keyspace and roles. `settings` are top-level keys of the server's
    /// configuration.
    ///
    /// # Panics
    /// When a part does not start or refuses.
    pub(crate) async fn start(mint: Arc<Mint>, settings: &[(String, Value)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let postgres = database::start(DATABASE);
        let access = postgres.access().clone();
        let database = Database { access, name: DATABASE.into(), own: Some(postgres) };
        let mut setup = server_setup(folder.path(), "server", &database);
        setup.set_variable(WAIT_VARIABLE, None);
        // All callers come from one address, which stands for many, and so does the one operator.
        let limits = json!({
            "concurrent_requests": 512, "requests_per_peer": 512, "requests_per_operator": 512,
            "connections_per_peer": 512, "working_requests": 512,
        });
        setup.configure("limits", limits).expect("the configuration can be written");
        let keys = folder.path().join("issuers");
        fs::create_dir(&keys).expect("a folder");
        let jwks = json!({"keys": [mint.minter().key.jwk()]});
        fs::write(keys.join("jwks.json"), jwks.to_string()).expect("the keys can be written");
        setup.configure("jwks_dir", json!(keys)).expect("the configuration can be written");
        for (key, value) in settings {
            setup.configure(key, value.clone()).expect("the configuration can be written");
        }
        setup.migrate().expect("the database can be set up");
        let mut server = Server::start(&setup).await.expect("the server starts");
        server.initialise().await.expect("the installation can be initialised");
        declare(&server, &mint).await;
        let ca_pem = fs::read_to_string(setup.ca_file()).expect("the CA can be read");
        let pid = std::sync::Mutex::new(server.process.pid());
        let (url, server) = (setup.url(), Mutex::new(server));
        let socket = url.trim_start_matches("https://").parse().expect("a URL of address and port");
        let address = Address::new(socket, &ca_pem, true);
        Self { server, pid, mint, url, address, database, _folder: folder }
    }

    /// Where its figures come from.
    pub(crate) fn meter(&self) -> Meter {
        let postgres = (database::pid(self.postgres()), self.database.access.clone(), DATABASE);
        Meter { server: *self.pid.lock().expect("nobody panicked"), postgres: Some(postgres) }
    }

    /// Its Postgres.
    pub(crate) fn postgres(&self) -> &Postgres {
        self.database.own.as_ref().expect("it has one of its own")
    }

    /// Stops the server in order.
    pub(crate) async fn stop(&self) {
        self.server.lock().await.stop();
    }

    /// Starts it again, on the same port.
    ///
    /// # Panics
    /// When it does not start.
    pub(crate) async fn launch(&self) {
        let mut server = self.server.lock().await;
        *server = Server::start(&server.setup().clone()).await.expect("the server starts again");
        *self.pid.lock().expect("nobody panicked") = server.process.pid();
    }

    /// The administrator's client.
    ///
    /// # Panics
    /// When its files cannot be read.
    pub(crate) async fn administrator(&self) -> Client {
        let server = self.server.lock().await;
        Client::operator(&Global {
            server: Some(self.url.clone()),
            ca_file: Some(server.setup().ca_file()),
            token_file: Some(server.setup().admin_token_file()),
            approval: None,
            output: Format::Table,
            timeout: Duration::from_secs(60),
        })
        .expect("the server's files are there")
    }

    /// So many callers. Drivers share a connection a node, as they do in a cluster; each operator has a connection.
    ///
    /// # Errors
    /// When one cannot connect.
    pub(crate) async fn callers(&self, count: usize, nodes: usize) -> Result<Vec<BrokerCaller>, String> {
        let mut drivers = Vec::with_capacity(nodes);
        for node in 0..nodes {
            drivers.push(self.driver(node, self.connect(Ipv4Addr::LOCALHOST).await?));
        }
        let (drivers, operator) = (Arc::from(drivers), self.operator());
        let mut callers = Vec::with_capacity(count);
        for _ in 0..count {
            callers.push(BrokerCaller {
                drivers: Arc::clone(&drivers),
                first_node: 0,
                secrets: self.connect(Ipv4Addr::LOCALHOST).await?,
                operator: operator.clone(),
            });
        }
        Ok(callers)
    }

    /// So many callers of these nodes, each of which has an address of its own and one connection for drivers and operators.
    ///
    /// # Panics
    /// When one cannot connect.
    pub(crate) async fn callers_at(&self, count: usize, nodes: Range<usize>) -> Vec<BrokerCaller> {
        let mut connections = Vec::with_capacity(nodes.len());
        for node in nodes.clone() {
            connections.push(self.connect(address(node)).await.expect("the node can connect"));
        }
        let driver = |(node, connection): (usize, &Connection)| self.driver(node, connection.clone());
        let drivers: Arc<[Driver]> = nodes.clone().zip(&connections).map(driver).collect();
        let operator = self.operator();
        let caller = |at: usize| BrokerCaller {
            drivers: Arc::clone(&drivers),
            first_node: nodes.start,
            secrets: connections[at % connections.len()].clone(),
            operator: operator.clone(),
        };
        (0..count).map(caller).collect()
    }

    /// A channel from a node's address, whose other end takes no more of an answer than `window_bytes` before it reads it.
    pub(crate) async fn narrow_channel(&self, node: usize, window_bytes: u32) -> Channel {
        narrow_channel_from(address(node), self.server.lock().await.setup(), window_bytes)
    }

    fn driver(&self, node: usize, connection: Connection) -> Driver {
        Driver { connection, bearer: bearer(&self.mint.of_driver(node)) }
    }

    fn operator(&self) -> HeaderValue {
        bearer(&self.mint.of("operator", "operator-0", 0))
    }

    async fn connect(&self, from: Ipv4Addr) -> Result<Connection, String> {
        Connection::open(&self.address, from).await
    }
}

/// A node's own, of 127.0.0.0/8.
fn address(node: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 1)) + node as u32)
}

async fn declare(server: &Server, mint: &Mint) {
    let issuer = json!({
        "type": "kubernetes",
        "url": mint.minter().issuer,
        "audiences": [AUDIENCE],
        "keys": {"file": "jwks.json"},
        "drivers": [{"namespace": "keyfold-system", "serviceAccount": "keyfold-csi"}],
    });
    let all = format!("{KEYSPACE}/**");
    let sub = format!("system:serviceaccount:{KEYSPACE}:operator");
    let operator = json!({
        "bind": [{"issuer": "dev", "claims": {"sub": [sub]}}],
        "grants": [{"path": all, "allow": ["read", "list", "write"]}],
    });
    let apply = async |kind, name: &str, spec| {
        server.apply(kind, name, &spec).await.expect("the object can be applied")
    };
    apply("Issuer", "dev", issuer).await;
    apply("Keyspace", KEYSPACE, json!({})).await;
    apply("OperatorRole", "operator", operator).await;
    for app in (0..APPS).map(service_account) {
        let role = json!({
            "bind": [{"issuer": "dev", "namespaces": [KEYSPACE], "serviceAccounts": [app]}],
            "grants": [{"path": all, "allow": ["read"]}],
        });
        apply("AppRole", &app, role).await;
    }
}

/// The driver of a node, with its one connection.
#[derive(Clone)]
struct Driver {
    connection: Connection,
    bearer: HeaderValue,
}

/// Who asks Keyfold.
pub(crate) struct BrokerCaller {
    drivers: Arc<[Driver]>,
    /// The node of the first of them.
    first_node: usize,
    secrets: Connection,
    operator: HeaderValue,
}

impl BrokerCaller {
    /// What a pod's start asks for, in one call.
    ///
    /// # Errors
    /// Says what failed or what is wrong with the answer.
    pub(crate) async fn issue(&mut self, token: &PodToken, secrets: &[u32]) -> Result<(), Failure> {
        let item = |secret: &u32| SecretReference { path: stored::path(*secret), optional: false };
        let message = IssueSecretsRequest {
            pod_token: token.jwt.clone(),
            role: service_account(token.app),
            items: secrets.iter().map(item).collect(),
        };
        let Driver { mut connection, bearer } = self.drivers[token.node - self.first_node].clone();
        let answer: IssueSecretsResponse = connection.call(ISSUE_SECRETS, &bearer, &message).await?;
        let issued = &answer.secrets;
        if issued.len() != secrets.len() {
            return Err(format!("{} secrets instead of {}", issued.len(), secrets.len()).into());
        }
        let pairs = issued.iter().zip(secrets);
        pairs.into_iter().try_for_each(|(issued, secret)| Ok(check(*secret, &issued.path, &issued.fields)?))
    }

    /// Reads one secret.
    ///
    /// # Errors
    /// As for `issue`.
    pub(crate) async fn read(&mut self, secret: u32) -> Result<(), Failure> {
        let message = GetSecretRequest { path: stored::path(secret), version: None };
        let answer: GetSecretResponse = self.secrets.call(GET_SECRET, &self.operator, &message).await?;
        Ok(check(secret, &answer.path, &answer.fields)?)
    }

    /// Writes one secret.
    ///
    /// # Errors
    /// As for `issue`.
    pub(crate) async fn write(&mut self, secret: u32) -> Result<(), Failure> {
        let field = Field { name: FIELD.into(), value: stored::value(secret).into_bytes() };
        let message =
            PutSecretRequest { path: stored::path(secret), fields: vec![field], expected_version: None };
        let answer: PutSecretResponse = self.secrets.call(PUT_SECRET, &self.operator, &message).await?;
        if answer.version > 0 { Ok(()) } else { Err(Failure::Wrong("a write without a version".into())) }
    }

    /// How many secrets there are below a prefix, by listing them.
    ///
    /// # Errors
    /// As for `issue`.
    pub(crate) async fn list(&mut self, prefix: &str) -> Result<usize, Failure> {
        let (mut found, mut page_token) = (0, String::new());
        loop {
            let message = ListSecretsRequest { prefix: prefix.into(), page_size: PAGE_MAX, page_token };
            let page: ListSecretsResponse = self.secrets.call(LIST_SECRETS, &self.operator, &message).await?;
            found += page.secrets.len();
            if page.next_page_token.is_empty() {
                return Ok(found);
            }
            page_token = page.next_page_token;
        }
    }
}

fn check(secret: u32, path: &str, fields: &[Field]) -> Result<(), String> {
    let expected = stored::path(secret);
    if path != expected {
        return Err(format!("{path} instead of {expected}"));
    }
    match fields {
        [field] if field.name == FIELD && stored::is_value(secret, &field.value) => Ok(()),
        _ => Err(format!("{path} has another value than was written")),
    }
}

/// The `authorization` of who has this token.
fn bearer(token: &str) -> HeaderValue {
    format!("Bearer {token}").parse().expect("a token is ASCII")
}
