//! What the fault suites need besides a world: calls as the driver and kubelet make them, a gate that holds up chosen
//! statements of Postgres, parts that can be frozen, and the properties that must hold after every fault.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use keyfold::{
    client::Client,
    dev::{
        kubelet::{Pod, publish_request},
        postgres::Postgres,
        server::{self, Server},
        tokens::Minter,
    },
};
use keyfold_core::clock::{Clock as _, SystemClock};
use keyfold_proto::{
    csi::v1::{NodePublishVolumeRequest, NodeUnpublishVolumeRequest},
    keyfold::v1::{
        GetStatusRequest, GetStatusResponse, IssueSecretsRequest, IssueSecretsResponse, SecretReference,
        State, system_service_client::SystemServiceClient, workload_service_client::WorkloadServiceClient,
    },
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{net::UnixStream, task::JoinHandle};
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tower::service_fn;

use crate::{Database, World, world};

/// The longest that any wait of a test may take; only a failure is that slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// Gives what `future` gives.
///
/// # Panics
/// When that takes longer than `limit`: `what` hangs.
pub async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| panic!("{what} took longer than {limit:?}"))
}

/// Waits until `is_so` answers true.
///
/// # Panics
/// When it does not within a minute.
pub async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    within(PATIENCE, what, async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// A channel to a server, connected when first used.
///
/// # Panics
/// When the server's CA cannot be read.
pub fn channel(setup: &server::Setup) -> Channel {
    let ca = fs::read(setup.ca_file()).expect("the CA can be read");
    keyfold_proto::channel::connect_lazy(&setup.url(), &ca).expect("the URL is good")
}

/// A channel to a Unix socket, connected when first used.
pub fn unix_channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connect = service_fn(move |_: tonic::codegen::http::Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect)
}

/// The administrator's client of the server with these files.
///
/// # Panics
/// When they cannot be read.
pub fn operator_at(setup: &server::Setup) -> Client {
    world::operator(setup)
}

/// The administrator's client of `server`.
///
/// # Panics
/// When its files cannot be read.
pub fn operator_of(server: &Server) -> Client {
    world::operator(server.setup())
}

/// What the server says about itself to anyone.
///
/// # Errors
/// The server's status.
pub async fn status(server: &Server) -> Result<GetStatusResponse, Status> {
    let mut system = SystemServiceClient::new(channel(server.setup()));
    Ok(system.get_status(GetStatusRequest {}).await?.into_inner())
}

/// Waits until the server says that it is in `state`, with a message that holds `why`: it looks every half second, and
/// tells what it saw last.
///
/// # Panics
/// When it does not say so within a minute.
pub async fn until_state(server: &Server, state: State, why: &str) {
    let what = format!("the server to be {state:?}, {why}");
    until(&what, async || {
        status(server).await.is_ok_and(|told| told.state() == state && told.message.contains(why))
    })
    .await;
}

/// Whether the server's health service says SERVING.
///
/// # Errors
/// The server's status.
pub async fn is_healthy(server: &Server) -> Result<bool, Status> {
    let mut health = HealthClient::new(channel(server.setup()));
    let answer = health.check(HealthCheckRequest::default()).await?.into_inner();
    Ok(answer.status() == ServingStatus::Serving)
}

/// Asks a server for secrets as the driver of `World` does.
#[derive(Clone)]
pub struct Workloads {
    service: WorkloadServiceClient<Channel>,
    minter: Arc<Minter>,
    driver_token: Arc<str>,
}

impl Workloads {
    /// Asks for the current versions of `paths` with a new token of `pod`, under app role `payments-api`.
    ///
    /// # Errors
    /// The server's status.
    pub async fn issue(&self, pod: &Pod, paths: &[&str]) -> Result<IssueSecretsResponse, Status> {
        let token = self.minter.mint(&pod.token_request(), SystemClock.now()).expect("a token can be minted");
        let item = |path: &&str| SecretReference { path: (*path).into(), optional: false };
        let mut request = Request::new(IssueSecretsRequest {
            pod_token: token.jwt.to_string(),
            role: "payments-api".into(),
            items: paths.iter().map(item).collect(),
        });
        let bearer = format!("Bearer {}", self.driver_token).parse().expect("a token is ASCII");
        request.metadata_mut().insert("authorization", bearer);
        Ok(self.service.clone().issue_secrets(request).await?.into_inner())
    }
}

impl World {
    /// Asks `server` for secrets as this world's driver.
    ///
    /// # Panics
    /// When the driver's token cannot be read.
    pub fn workloads(&self, server: &Server) -> Workloads {
        let token =
            fs::read_to_string(self.folder.path().join("driver/token")).expect("the driver has a token");
        Workloads {
            service: WorkloadServiceClient::new(channel(server.setup())),
            minter: self.minter.clone(),
            driver_token: token.trim().into(),
        }
    }

    /// This world's own Postgres.
    ///
    /// # Panics
    /// When it has none.
    pub fn postgres(&mut self) -> &mut Postgres {
        self.database.own.as_mut().expect("the world was made with_own_postgres")
    }

    /// Starts the driver anew with `key: value` in its configuration instead of what is there.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn configure_driver(&mut self, key: &str, value: u64) {
        let file = self.folder.path().join("driver/config.yaml");
        let yaml = fs::read_to_string(&file).expect("the configuration can be read");
        let is_key = |line: &&str| line.trim_start().starts_with(&format!("{key}:"));
        let line = format!("{key}: {value}");
        let yaml = match yaml.lines().find(is_key) {
            Some(old) => yaml.replace(old.trim_start(), &line),
            None => format!("{yaml}\n{line}\n"),
        };
        fs::write(&file, yaml).expect("the configuration can be written");
        self.driver.restart().await.expect("the driver starts again");
    }

    /// The request that kubelet sends for the volume `secrets` of `pod` with `payments/db`, and the folder that
    /// kubelet makes before it sends it.
    ///
    /// # Panics
    /// When the folder cannot be made.
    pub fn publish_request(&self, pod: &Pod) -> NodePublishVolumeRequest {
        let volume = self.volume(pod);
        fs::create_dir_all(volume.target.parent().expect("a target has a folder")).expect("kubelet's folder");
        let attributes = [("role", "payments-api"), ("secrets", crate::PAYMENTS_SECRETS)];
        publish_request(pod, &volume, &self.token(pod), &attributes)
    }

    /// The request that kubelet sends when `pod` is gone.
    pub fn unpublish_request(&self, pod: &Pod) -> NodeUnpublishVolumeRequest {
        let volume = self.volume(pod);
        NodeUnpublishVolumeRequest { volume_id: volume.id, target_path: volume.target.display().to_string() }
    }

    /// What the pod sees of its volume: each file below its root by its path, without the writer's own folders.
    ///
    /// # Panics
    /// When a file that shows cannot be read.
    pub fn files(&self, pod: &Pod) -> BTreeMap<String, String> {
        let root = self.driver.seen(&self.volume(pod).target);
        let mut files = BTreeMap::new();
        collect(&root, &root, &mut files);
        files
    }
}

fn collect(root: &Path, folder: &Path, files: &mut BTreeMap<String, String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.map(|entry| entry.expect("the folder can be read").path()) {
        let name = path.strip_prefix(root).expect("it lies below").display().to_string();
        if name.starts_with("..") {
            continue;
        }
        if path.is_dir() {
            collect(root, &path, files);
        } else {
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
            files.insert(name, text);
        }
    }
}

/// Two replicas on one empty database with one root key and one bootstrap token, not initialised.
///
/// # Panics
/// When one does not start.
pub async fn two_uninitialised_replicas() -> (TempDir, Database, [Server; 2]) {
    let (folder, database) = (tempfile::tempdir().expect("a temporary folder"), Database::shared());
    let setups = ["server", "replica"].map(|name| world::server_setup(folder.path(), name, &database));
    for file in ["root.key", "bootstrap-token"] {
        let path = |name: &str| folder.path().join(name).join(file);
        fs::copy(path("server"), path("replica")).expect("a copy of the file");
    }
    let start = async |setup| Server::start(setup).await.expect("the replica starts");
    let servers = [start(&setups[0]).await, start(&setups[1]).await];
    (folder, database, servers)
}

impl Database {
    /// The entries of one operation, oldest first, as JSON.
    ///
    /// # Panics
    /// When Postgres refuses.
    pub fn entries(&self, operation: &str) -> Vec<Value> {
        let found = self.sql(&format!(
            "SELECT convert_from(entry, 'UTF8') FROM audit_entries WHERE operation = '{operation}' ORDER BY index"
        ));
        found.lines().map(|line| serde_json::from_str(line).expect("an entry is JSON")).collect()
    }

    /// Checks every key: exactly one version active, no number missing or used twice, and none above the active one but the
    /// one that is being handed out.
    ///
    /// # Panics
    /// When it is not so.
    pub fn assert_keys_are_in_order(&self) {
        let wrong = self.sql(
            "SELECT keyspace_id, purpose, count(*) FILTER (WHERE state = 'active'), count(*), max(version) FROM keks
             GROUP BY keyspace_id, purpose
             HAVING count(*) FILTER (WHERE state = 'active') <> 1 OR count(*) <> max(version)
                    OR max(version) FILTER (WHERE state <> 'pre-active')
                       <> max(version) FILTER (WHERE state = 'active')",
        );
        assert_eq!(wrong, "", "keyspace|purpose|active|keys|highest version");
    }
}

/// Holds up chosen statements or commits inside Postgres until it is opened: the way to a fault at one exact point of
/// the server's work without any hook in the server.
pub struct Gate<'a>(&'a Database);

impl<'a> Gate<'a> {
    /// Holds up each commit that adds an audit entry, once the gate is closed. It starts open.
    ///
    /// # Panics
    /// When Postgres refuses.
    pub fn at_commits_of_entries(database: &'a Database) -> Self {
        let trigger = "CREATE CONSTRAINT TRIGGER gate AFTER INSERT ON audit_entries_0
             DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait_at_gate()";
        Self::new(database, "true", trigger)
    }

    /// Holds up each append of an audit entry, after it has locked the log's head, once the gate is closed. It starts
    /// open.
    ///
    /// # Panics
    /// When Postgres refuses.
    pub fn at_appends_of_entries(database: &'a Database) -> Self {
        let trigger = "CREATE TRIGGER gate AFTER INSERT ON audit_entries_0
             FOR EACH ROW EXECUTE FUNCTION wait_at_gate()";
        Self::new(database, "true", trigger)
    }

    /// Holds up the rewrap of a batch of DEKs, once the gate is closed and more than `moved` are moved to the newest
    /// KEK. It starts open.
    ///
    /// # Panics
    /// When Postgres refuses.
    pub fn at_rewraps_beyond(database: &'a Database, moved: usize) -> Self {
        let newest = "SELECT id FROM keks WHERE state = 'active'";
        let condition = format!("(SELECT count(*) FROM deks WHERE kek_id IN ({newest})) > {moved}");
        let trigger =
            "CREATE TRIGGER gate AFTER UPDATE ON deks FOR EACH STATEMENT EXECUTE FUNCTION wait_at_gate()";
        Self::new(database, &condition, trigger)
    }

    fn new(database: &'a Database, condition: &str, trigger: &str) -> Self {
        database.sql(&format!(
            "CREATE TABLE gate (is_open boolean NOT NULL);
             INSERT INTO gate VALUES (true);
             CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
             BEGIN
                 WHILE {condition} AND NOT (SELECT is_open FROM gate) LOOP PERFORM pg_sleep(0.01); END LOOP;
                 RETURN NULL;
             END $$;
             {trigger};"
        ));
        Self(database)
    }

    /// Lets nothing pass from now on.
    pub fn close(&self) {
        self.0.sql("UPDATE gate SET is_open = false");
    }

    /// Lets everything pass.
    pub fn open(&self) {
        self.0.sql("UPDATE gate SET is_open = true");
    }

    /// Waits until somebody is held up.
    ///
    /// # Panics
    /// When nobody is within a minute.
    pub async fn until_held(&self) {
        let held = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND wait_event = 'PgSleep'";
        until("the statement to be held up", async || self.0.sql(held) != "0").await;
    }

    /// Waits until nobody is held up, nor at work on anything else.
    ///
    /// # Panics
    /// When somebody is after a minute.
    pub async fn until_idle(&self) {
        let busy = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND usename = 'keyfold' AND state <> 'idle'";
        until("the database to be idle", async || self.0.sql(busy) == "0").await;
    }
}

/// A table that nobody gets at, neither reading nor writing, until it is released.
pub struct TableLock<'a> {
    database: &'a Database,
    table: &'static str,
    holder: JoinHandle<()>,
}

impl<'a> TableLock<'a> {
    /// Takes the lock.
    ///
    /// # Panics
    /// When Postgres refuses.
    pub async fn take(database: &'a Database, table: &'static str) -> Self {
        database.sql("CREATE TABLE IF NOT EXISTS latch (is_open boolean); INSERT INTO latch VALUES (false)");
        let sql = format!(
            "DO $$ BEGIN
                 LOCK TABLE {table};
                 WHILE NOT (SELECT bool_or(is_open) FROM latch) LOOP PERFORM pg_sleep(0.01); END LOOP;
             END $$"
        );
        let (access, name) = (database.access.clone(), database.name.clone());
        let hold = move || access.sql(&name, &sql).map(drop).expect("the lock can be held");
        let lock = Self { database, table, holder: tokio::task::spawn_blocking(hold) };
        until("the lock to be held", async || lock.count("granted AND mode = 'AccessExclusiveLock'") > 0)
            .await;
        lock
    }

    /// Waits until somebody wants the table.
    ///
    /// # Panics
    /// When nobody does within a minute.
    pub async fn until_wanted(&self) {
        until("somebody to want the table", async || self.count("NOT granted") > 0).await;
    }

    /// Gives the lock back.
    ///
    /// # Panics
    /// When it could not be held.
    pub async fn release(self) {
        self.database.sql("UPDATE latch SET is_open = true");
        self.holder.await.expect("the lock was held");
        self.database.sql("DROP TABLE latch");
    }

    fn count(&self, which: &str) -> u32 {
        let sql =
            format!("SELECT count(*) FROM pg_locks WHERE relation = '{}'::regclass AND {which}", self.table);
        self.database.sql(&sql).parse().expect("a number")
    }
}

/// Processes that do not get to run: they neither answer nor break connections. They go on when dropped.
pub struct Frozen(Vec<Pid>);

impl Frozen {
    /// Stops (SIGSTOP) every process of `postgres`.
    ///
    /// # Panics
    /// When its processes cannot be found.
    pub fn freeze(postgres: &Postgres) -> Self {
        let file = fs::read_to_string(postgres.data_dir().join("postmaster.pid")).expect("Postgres runs");
        let main = file.lines().next().expect("postmaster.pid has a first line").to_owned();
        let children = fs::read_to_string(format!("/proc/{main}/task/{main}/children")).expect("it runs");
        let pids = std::iter::once(main.as_str()).chain(children.split_whitespace());
        Self::freeze_processes(pids.filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect())
    }

    /// Stops `server`.
    ///
    /// # Panics
    /// When it has no process.
    pub fn freeze_server(server: &Server) -> Self {
        let pid = i32::try_from(server.process.pid()).ok().and_then(Pid::from_raw);
        Self::freeze_processes(vec![pid.expect("a process has a number")])
    }

    fn freeze_processes(pids: Vec<Pid>) -> Self {
        let frozen = Self(pids);
        frozen.signal(Signal::STOP);
        frozen
    }

    fn signal(&self, signal: Signal) {
        for pid in &self.0 {
            // One that has ended by itself needs no signal.
            let _ = kill_process(*pid, signal);
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
    }
}
