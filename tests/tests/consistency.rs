//! What is removed stops on every replica with the next request, also where nobody hears of it.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use keyfold::{client::Client, dev::server::Server};
use keyfold_proto::keyfold::v1::{
    ApplyObjectsRequest, DeleteObjectRequest, IssueSecretsResponse, Object,
    RevokeInitialAdministratorRequest, WhoAmIRequest,
};
use keyfold_tests::{
    People, World,
    faults::{Workloads, operator_of, until},
    proxy::Proxy,
    server_setup,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::{Code, Status};

/// Two replicas, of which the second has lost the connection on which it would hear of changes, without noticing.
struct Replicas {
    world: World,
    people: People,
    deaf: Server,
    proxy: Proxy,
}

impl Replicas {
    async fn start() -> Self {
        let world = World::start().await.with_payments().await;
        let people = People::join(&world.server, world.folder.path()).await;
        let proxy = Proxy::to(SocketAddr::from(([127, 0, 0, 1], world.database.access.port()))).await;
        let deaf = replica_behind(&proxy, &world).await;
        let replicas = Self { world, people, deaf, proxy };
        replicas.workloads().issue(&replicas.pod(), &["payments/db"]).await.expect("the replica serves");
        until("the replica listens", async || replicas.listening_port().is_some()).await;
        replicas.proxy.silence(replicas.listening_port().unwrap());
        replicas
    }

    /// The port from which the second replica's listening connection reaches Postgres.
    fn listening_port(&self) -> Option<u16> {
        let sql = "SELECT client_port FROM pg_stat_activity WHERE query LIKE 'LISTEN%'";
        let ports = self.world.database.sql(sql);
        let open = self.proxy.open();
        ports.lines().filter_map(|port| port.parse().ok()).find(|port| open.contains(port))
    }

    fn workloads(&self) -> Workloads {
        self.world.workloads(&self.deaf)
    }

    fn pod(&self) -> keyfold::dev::kubelet::Pod {
        self.world.pod("payments", "api", "api-0")
    }

    async fn issue(&self) -> Result<IssueSecretsResponse, Status> {
        self.workloads().issue(&self.pod(), &["payments/db"]).await
    }

    async fn apply(&self, kind: &str, name: &str, spec: &Value) {
        self.world.server.apply(kind, name, spec).await.unwrap();
    }

    async fn delete(&self, kind: &str, name: &str) {
        let request = DeleteObjectRequest { kind: kind.into(), name: name.into() };
        self.world.operator().config().delete_object(request).await.unwrap();
    }

    /// The reason of the newest entry.
    fn reason(&self) -> String {
        let sql = "SELECT convert_from(entry, 'UTF8')::json #>> '{outcome,reason}' FROM audit_entries
                   ORDER BY index DESC LIMIT 1";
        self.world.database.sql(sql)
    }
}

/// A replica on the same database that reaches Postgres through `proxy`.
async fn replica_behind(proxy: &Proxy, world: &World) -> Server {
    let dir = world.folder.path();
    let setup = server_setup(dir, "deaf", &world.database);
    for file in ["root.key", "admin-token"] {
        fs::copy(dir.join("server").join(file), dir.join("deaf").join(file)).unwrap();
    }
    let yaml = fs::read_to_string(setup.config_file()).unwrap();
    let (direct, through) = (format!(":{}/", world.database.access.port()), format!(":{}/", proxy.port()));
    assert!(yaml.contains(&direct), "{yaml}");
    fs::write(setup.config_file(), yaml.replace(&direct, &through)).unwrap();
    let mut server = Server::start(&setup).await.unwrap();
    server.until_serving().await.unwrap();
    server
}

fn role(grants: &Value) -> Value {
    json!({"bind": [{"issuer": "dev", "namespaces": ["payments"], "serviceAccounts": ["api"]}], "grants": grants})
}

async fn whoami(client: &Client) -> Result<Vec<String>, Status> {
    Ok(client.system().who_am_i(WhoAmIRequest {}).await?.into_inner().roles)
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_09_a_removed_role_grant_or_issuer_stops_at_once_on_a_replica_that_hears_nothing() {
    let replicas = Replicas::start().await;
    let whole = role(&json!([{"path": "payments/*", "allow": ["read"]}]));

    replicas.delete("AppRole", "payments-api").await;
    replicas.issue().await.expect_err("the role is gone");
    assert_eq!(replicas.reason(), "role-not-bound");
    replicas.apply("AppRole", "payments-api", &whole).await;
    replicas.issue().await.expect("what was just declared counts at once, too");

    replicas.apply("AppRole", "payments-api", &role(&json!([]))).await;
    replicas.issue().await.expect_err("the grant is gone");
    assert_eq!(replicas.reason(), "not-granted");
    replicas.apply("AppRole", "payments-api", &whole).await;
    replicas.issue().await.expect("it is back");

    replicas.delete("Issuer", "dev").await;
    replicas.issue().await.expect_err("the issuer is gone");
    assert_eq!(replicas.reason(), "token-issuer");
    assert!(
        replicas.proxy.swallowed_bytes() > 0,
        "Postgres told of changes, and the replica did not hear it"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_09_a_removed_operator_stops_at_once_on_a_replica_that_hears_nothing() {
    let replicas = Replicas::start().await;
    let bound = |built_in: &str, name: &str| json!({"builtIn": built_in, "bind": [{"issuer": "people", "claims": {"sub": [name]}}]});
    replicas.apply("OperatorRole", "auditors", &bound("auditor", "alice")).await;
    replicas.apply("OperatorRole", "admins", &bound("admin", "bob")).await;
    let alice = replicas.people.person("alice", &[]).client_of(replicas.deaf.setup(), None);
    assert_eq!(whoami(&alice).await.unwrap(), ["auditors"]);

    replicas.apply("OperatorRole", "auditors", &bound("auditor", "carol")).await;
    whoami(&alice).await.expect_err("she is no longer bound");
    assert_eq!(replicas.reason(), "operator-not-bound");
    replicas.apply("OperatorRole", "auditors", &bound("auditor", "alice")).await;
    assert_eq!(whoami(&alice).await.unwrap(), ["auditors"]);

    let administrator = operator_of(&replicas.deaf);
    whoami(&administrator).await.expect("the initial administrator is live");
    let bob = replicas.people.person("bob", &[]).client_of(replicas.world.server.setup(), None);
    let revoked = bob.system().revoke_initial_administrator(RevokeInitialAdministratorRequest {}).await;
    assert!(revoked.unwrap().into_inner().revoked);
    whoami(&administrator).await.expect_err("it was revoked at another replica");
    assert_eq!(replicas.reason(), "operator-token");

    let request = DeleteObjectRequest { kind: "Issuer".into(), name: "people".into() };
    bob.config().delete_object(request).await.unwrap();
    whoami(&alice).await.expect_err("the issuer is gone");
    assert_eq!(replicas.reason(), "token-issuer");
}

/// Row locks that readers share are not fair: had each call one on what allows it, a change would wait for ever.
#[tokio::test(flavor = "multi_thread")]
async fn attack_16_nobody_keeps_a_right_by_using_it_all_the_time() {
    let world = World::start().await.with_payments().await;
    let people = People::join(&world.server, world.folder.path()).await;
    let bound =
        |name: &str| json!({"builtIn": "auditor", "bind": [{"issuer": "people", "claims": {"sub": [name]}}]});
    world.server.apply("OperatorRole", "auditors", &bound("alice")).await.unwrap();
    let alice = Arc::new(people.operator_named("alice", &[]));
    let counts: Arc<[AtomicU32; 16]> = Arc::default();
    let mut calls = JoinSet::new();
    for caller in 0..counts.len() {
        let (alice, counts) = (Arc::clone(&alice), Arc::clone(&counts));
        calls.spawn(async move {
            loop {
                let called = match caller % 2 {
                    0 => whoami(&alice).await.map(drop),
                    _ => look_at_own_role(&alice).await,
                };
                match called {
                    Ok(()) => counts[caller].fetch_add(1, Ordering::Relaxed),
                    Err(status) => return status,
                };
            }
        });
    }
    until("all of them call", async || counts.iter().all(|count| count.load(Ordering::Relaxed) > 1)).await;
    world.server.apply("OperatorRole", "auditors", &bound("carol")).await.expect("it is taken away");
    for ended in calls.join_all().await {
        assert_eq!(ended.code(), Code::PermissionDenied, "{ended:?}");
    }
}

/// A dry run over the role that allows it.
async fn look_at_own_role(client: &Client) -> Result<(), Status> {
    let spec_json =
        json!({"builtIn": "admin", "bind": [{"issuer": "people", "claims": {"sub": ["x"]}}]}).to_string();
    let object =
        Object { kind: "OperatorRole".into(), name: "auditors".into(), spec_json, ..Default::default() };
    client.config().apply_objects(ApplyObjectsRequest { objects: vec![object], dry_run: true }).await?;
    Ok(())
}
