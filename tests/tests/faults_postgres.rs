//! Postgres away, killed, frozen: at start, between calls, under load, and between the audit entry and the reply.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use keyfold::{client::Client, dev::kubelet::Pod};
use keyfold_proto::keyfold::v1::{Field, GetSecretRequest, IssueSecretsResponse, PutSecretRequest, State};
use keyfold_tests::{
    PAYMENTS_SECRETS, Search, World,
    faults::{Frozen, Gate, TableLock, is_healthy, until, until_state, within},
};
use serde_json::Value;
use tokio::task::JoinSet;
use tonic::{Code, Status};

/// How long a call may take while Postgres is away: the server waits five seconds for a connection.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long a call may take while Postgres keeps its connections and is silent on them, and how long the server may need
/// to say so: it looks every half second, for eight seconds at most, and waits five for a new connection.
const SILENT_MAX: Duration = Duration::from_secs(25);
/// How long a call may take that waits for a lock: the server gives up after ten seconds.
const LOCKED_MAX: Duration = Duration::from_secs(30);
/// What the server says of a database that is not there.
const AWAY: &str = "database cannot be reached";
/// How every value that is written under load begins.
const PLANTED: &str = "planted-under-load";

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_starts_without_postgres_says_so_and_serves_as_soon_as_it_is_there() {
    let mut world = World::with_own_postgres().await.with_payments().await;
    let pod = world.pod("payments", "api", "api-0");
    world.server.process.kill();
    world.postgres().kill();
    world.server.restart().await.expect("the server starts without its database");
    let pid = world.server.process.pid();
    assert_everything_says_that_the_database_is_away(&world, ANSWER_MAX).await;
    assert!(!is_healthy(&world.server).await.unwrap());

    // A pod that starts meanwhile waits for its secrets instead of failing.
    let (kubelet, request) = (world.driver.kubelet().clone(), world.publish_request(&pod));
    let publish = tokio::spawn(async move { kubelet.publish(request).await });
    world.postgres().restart().unwrap();
    world.server.until_serving().await.unwrap();
    publish.await.unwrap().expect("the waiting publish succeeds");
    assert_eq!(world.files(&pod)["db/password"], "first");
    until("health to follow", async || is_healthy(&world.server).await.unwrap()).await;
    assert_eq!(world.server.process.pid(), pid, "the server was not started anew");
    assert!(world.server.process.is_running());
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_27_postgres_killed_between_calls_costs_errors_meanwhile_and_nothing_else() {
    let mut world = World::with_own_postgres().await.with_payments().await;
    let pod = world.pod("payments", "api", "api-0");
    world.publish(&pod, "payments-api", PAYMENTS_SECRETS).await.unwrap();
    let (workloads, operator) = (world.workloads(&world.server), world.operator());
    let pid = world.server.process.pid();
    let version = put(&operator, "payments/db", "second").await.unwrap();
    world.postgres().kill();

    // A pod that runs keeps its files, and kubelet is not told of a failure.
    let republish =
        within(ANSWER_MAX * 2, "republish", world.publish(&pod, "payments-api", PAYMENTS_SECRETS));
    let (republished, ()) =
        tokio::join!(republish, assert_everything_says_that_the_database_is_away(&world, ANSWER_MAX));
    republished.unwrap();
    assert_eq!(world.files(&pod)["db/password"], "first");
    until("health to follow", async || !is_healthy(&world.server).await.unwrap()).await;

    world.postgres().restart().unwrap();
    world.server.until_serving().await.unwrap();
    assert_eq!(get(&operator, "payments/db", version).await.unwrap(), "second");
    assert_eq!(workloads.issue(&pod, &["payments/db"]).await.unwrap().secrets[0].version, version);
    world.publish(&pod, "payments-api", PAYMENTS_SECRETS).await.unwrap();
    assert_eq!(world.files(&pod)["db/password"], "second");
    assert_eq!(world.server.process.pid(), pid, "the server was not started anew");
    world.database.check_audit_log();
    assert_no_panic(&world);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_27_postgres_killed_under_load_loses_no_entry_and_no_acknowledged_write() {
    let mut world = World::with_own_postgres().await.with_payments().await;
    let acknowledged = Arc::new(Acknowledged::default());
    for round in 0..3_u64 {
        let load = start_load(&world, round, &acknowledged);
        // By then calls are at every stage.
        let wanted = acknowledged.counts().map(|count| count + 25);
        until("some calls to succeed", async || {
            acknowledged.counts().into_iter().zip(wanted).all(|(count, wanted)| count >= wanted)
        })
        .await;
        world.postgres().kill();
        // Each caller ends at its first failure, and says which it was.
        for failure in within(ANSWER_MAX * 2, "the calls in flight", load.join_all()).await {
            assert_unavailable(&failure);
        }
        restart_postgres(&mut world).await;
        world.database.check_audit_log();
    }
    acknowledged.assert_each_issue_has_its_entry(&world);
    acknowledged.assert_each_put_is_readable(&world).await;
    assert_no_panic(&world);
    // Whatever the crashes left half written, no value lies there in clear: logs, heap, indexes and WAL.
    let search = Search::of([("a value", PLANTED.as_bytes())]);
    assert_eq!(search.found_below(world.folder.path(), &[]), Vec::<String>::new());
    let data = world.postgres().data_dir();
    assert_eq!(search.found_below(&data, &[]), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_27_nothing_leaves_before_its_entry_is_committed() {
    let world = World::start().await.with_payments().await;
    let gate = Gate::at_commits_of_entries(&world.database);
    let pod = world.pod("payments", "api", "api-0");
    gate.close();
    let (kubelet, request) = (world.driver.kubelet().clone(), world.publish_request(&pod));
    let mut publish = tokio::spawn(async move { kubelet.publish(request).await });
    gate.until_held().await;
    // Everything up to the commit is done by now; a reply that did not wait for it would arrive within this time.
    assert!(tokio::time::timeout(Duration::from_secs(1), &mut publish).await.is_err());
    assert!(world.files(&pod).is_empty());
    assert!(world.driver.mounts().is_empty());
    assert_eq!(issues_of(&world, &pod), 0);
    gate.open();
    publish.await.unwrap().unwrap();
    assert_eq!(world.files(&pod)["db/password"], "first");
    assert_eq!(issues_of(&world, &pod), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_27_postgres_killed_while_it_commits_the_entry_gives_an_error_and_no_value() {
    let mut world = World::with_own_postgres().await.with_payments().await;
    let pod = world.pod("payments", "api", "api-0");
    let gate = Gate::at_commits_of_entries(&world.database);
    gate.close();
    let (workloads, operator) = (world.workloads(&world.server), world.operator());
    let issue = tokio::spawn({
        let pod = pod.clone();
        async move { workloads.issue(&pod, &["payments/db"]).await.map(drop) }
    });
    gate.until_held().await;
    world.postgres().kill();
    let failure = within(ANSWER_MAX, "IssueSecrets", issue).await.unwrap().unwrap_err();
    assert_unavailable(&failure);
    restart_postgres(&mut world).await;
    assert_eq!(issues_of(&world, &pod), 0, "nothing was issued, so nothing is stated");

    // The same for a change: it is not made without its entry.
    let change = tokio::spawn(async move { put(&operator, "payments/db", "second").await });
    let gate = || world.database.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
    until("the commit to be held up", async || gate() != "0").await;
    world.postgres().kill();
    assert_unavailable(&within(ANSWER_MAX, "PutSecret", change).await.unwrap().unwrap_err());
    restart_postgres(&mut world).await;
    world.database.sql("UPDATE gate SET is_open = true");
    assert_eq!(get(&world.operator(), "payments/db", 0).await.unwrap(), "first");
    assert_eq!(put(&world.operator(), "payments/db", "second").await.unwrap(), 2);
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_27_a_server_killed_while_its_entry_commits_gives_no_value_and_the_pod_gets_it_later() {
    let mut world = World::start().await.with_payments().await;
    let (early, waiting) = (world.pod("payments", "api", "early"), world.pod("payments", "api", "waiting"));
    let workloads = world.workloads(&world.server);
    Gate::at_commits_of_entries(&world.database).close();
    let issue = tokio::spawn({
        let early = early.clone();
        async move { workloads.issue(&early, &["payments/db"]).await.map(drop) }
    });
    let (kubelet, request) = (world.driver.kubelet().clone(), world.publish_request(&waiting));
    let publish = tokio::spawn(async move { kubelet.publish(request).await });
    let held = "SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND usename = 'keyfold' AND state = 'active'";
    // The other is held up with it, or waits for the next commit.
    until("a commit to be held up", async || world.database.sql(held) != "0").await;
    world.server.process.kill();
    let failure = within(ANSWER_MAX, "IssueSecrets", issue).await.unwrap().unwrap_err();
    assert!(std::error::Error::source(&failure).is_some(), "the connection broke: {failure:?}");
    assert!(world.driver.mounts().is_empty());
    world.database.sql("UPDATE gate SET is_open = true");
    world.server.restart().await.unwrap();
    publish.await.unwrap().expect("the driver tries again and gets its files");
    assert_eq!(world.files(&waiting)["db/password"], "first");
    assert!(issues_of(&world, &waiting) >= 1);
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_27_a_postgres_that_is_silent_is_reported_and_used_again_once_it_answers() {
    let mut world = World::with_own_postgres().await.with_payments().await;
    let pod = world.pod("payments", "api", "api-0");
    let (workloads, operator) = (world.workloads(&world.server), world.operator());
    let frozen = Frozen::freeze(world.postgres());
    assert_everything_says_that_the_database_is_away(&world, SILENT_MAX).await;
    until("health to follow", async || !is_healthy(&world.server).await.unwrap()).await;
    drop(frozen);
    world.server.until_serving().await.unwrap();
    until("health to follow", async || is_healthy(&world.server).await.unwrap()).await;
    assert!(workloads.issue(&pod, &["payments/db"]).await.is_ok());
    assert!(put(&operator, "payments/db", "second").await.is_ok());
    world.database.check_audit_log();
    assert_no_panic(&world);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_27_a_query_that_never_returns_does_not_pass_for_health() {
    let mut world = World::start().await.with_payments().await;
    until("health to be told", async || is_healthy(&world.server).await.unwrap()).await;
    // Whoever asks for the schema's version waits for this table.
    let lock = TableLock::take(&world.database, "_sqlx_migrations").await;
    until("health to follow", async || !is_healthy(&world.server).await.unwrap()).await;
    until_state(&world.server, State::Sealed, "database does not answer").await;
    lock.release().await;
    world.server.until_serving().await.unwrap();
    until("health to follow", async || is_healthy(&world.server).await.unwrap()).await;
    assert_no_panic(&world);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_27_a_lock_that_somebody_keeps_fails_the_call_in_time_and_nothing_else() {
    let world = World::start().await.with_payments().await;
    let (workloads, operator) = (world.workloads(&world.server), world.operator());
    let pod = world.pod("payments", "api", "api-0");
    let lock = TableLock::take(&world.database, "audit_head").await;
    let calls = async {
        tokio::join!(workloads.issue(&pod, &["payments/db"]), put(&operator, "payments/db", "lost"))
    };
    let (issued, written) = within(LOCKED_MAX, "the calls", calls).await;
    for failure in [issued.map(drop).unwrap_err(), written.map(drop).unwrap_err()] {
        assert_eq!(failure.code(), Code::Aborted, "{failure:?}");
        assert!(failure.message().contains("try again"), "{failure:?}");
    }
    lock.release().await;
    assert_eq!(put(&operator, "payments/db", "second").await.unwrap(), 2);
    assert_eq!(workloads.issue(&pod, &["payments/db"]).await.unwrap().secrets[0].version, 2);
    assert_eq!(issues_of(&world, &pod), 1, "what was not done is not stated");
    world.database.check_audit_log();
}

/// Starts a killed Postgres again. The server has noticed both when this returns: what it says is of its last look.
async fn restart_postgres(world: &mut World) {
    until_state(&world.server, State::Sealed, AWAY).await;
    world.postgres().restart().unwrap();
    world.server.until_serving().await.unwrap();
}

/// Every kind of call, all at once, since each may wait a while for a connection. The status follows within a look or two.
async fn assert_everything_says_that_the_database_is_away(world: &World, limit: Duration) {
    let (workloads, operator) = (world.workloads(&world.server), world.operator());
    let pod = world.pod("payments", "api", "meanwhile");
    let calls = async {
        tokio::join!(
            until_state(&world.server, State::Sealed, AWAY),
            workloads.issue(&pod, &["payments/db"]),
            put(&operator, "payments/db", "lost"),
            get(&operator, "payments/db", 1),
        )
    };
    let ((), issued, written, read) = within(limit, "the calls", calls).await;
    let failures = [issued.map(drop), written.map(drop), read.map(drop)];
    for failure in failures {
        assert_unavailable(&failure.expect_err("nothing works without a database"));
    }
}

/// What callers were told had worked.
#[derive(Default)]
struct Acknowledged {
    /// By the name of the pod, each of which asks once.
    issues: Mutex<HashMap<String, Vec<(String, u32)>>>,
    /// Path, version and value.
    puts: Mutex<Vec<(String, u32, String)>>,
}

impl Acknowledged {
    /// Of issues and puts.
    fn counts(&self) -> [usize; 2] {
        [self.issues.lock().unwrap().len(), self.puts.lock().unwrap().len()]
    }

    fn note_issue(&self, pod: &Pod, issued: &IssueSecretsResponse) {
        let versions = issued.secrets.iter().map(|secret| (secret.path.clone(), secret.version)).collect();
        self.issues.lock().unwrap().insert(pod.name.clone(), versions);
    }

    fn assert_each_issue_has_its_entry(&self, world: &World) {
        let mut stated: HashMap<String, Vec<(String, u32)>> = HashMap::new();
        for entry in world.database.entries("secret.issue") {
            assert_eq!(entry["outcome"]["result"], "allowed", "{entry}");
            let item = |item: &Value| {
                let version = item["version"].as_u64().unwrap();
                (item["path"].as_str().unwrap().to_owned(), u32::try_from(version).unwrap())
            };
            let items = entry["operation"]["items"].as_array().unwrap().iter().map(item).collect();
            let pod = entry["actor"]["pod"]["name"].as_str().unwrap().to_owned();
            assert!(stated.insert(pod, items).is_none(), "each pod asked once: {entry}");
        }
        let issues = self.issues.lock().unwrap();
        for (pod, versions) in &*issues {
            assert_eq!(stated.get(pod), Some(versions), "{pod}");
        }
    }

    async fn assert_each_put_is_readable(&self, world: &World) {
        let (puts, operator) = (self.puts.lock().unwrap().clone(), world.operator());
        for (path, version, value) in puts {
            assert_eq!(get(&operator, &path, version).await.unwrap(), value, "{path} version {version}");
        }
    }
}

/// Six callers that issue and six that put, each until its first failure, which it gives.
fn start_load(world: &World, round: u64, acknowledged: &Arc<Acknowledged>) -> JoinSet<Status> {
    let mut load = JoinSet::new();
    for caller in 0..6 {
        let (workloads, issued) = (world.workloads(&world.server), Arc::clone(acknowledged));
        let template = world.pod("payments", "api", "");
        load.spawn(async move {
            for call in 0.. {
                let pod = Pod { name: format!("api-{round}-{caller}-{call}"), ..template.clone() };
                match workloads.issue(&pod, &["payments/db"]).await {
                    Ok(reply) => issued.note_issue(&pod, &reply),
                    Err(status) => return status,
                }
            }
            unreachable!("the calls end with a failure")
        });
        let (operator, written) = (world.operator(), Arc::clone(acknowledged));
        load.spawn(async move {
            // Half of them write what is issued, the others a secret of their own.
            let path =
                if caller % 2 == 0 { "payments/db".to_owned() } else { format!("payments/own-{caller}") };
            for call in 0.. {
                let value = format!("{PLANTED}-{round}-{caller}-{call}");
                match put(&operator, &path, &value).await {
                    Ok(version) => written.puts.lock().unwrap().push((path.clone(), version, value)),
                    Err(status) => return status,
                }
            }
            unreachable!("the calls end with a failure")
        });
    }
    load
}

async fn put(operator: &Client, path: &str, password: &str) -> Result<u32, Status> {
    let request = PutSecretRequest {
        path: path.into(),
        fields: vec![Field { name: "password".into(), value: password.into() }],
        expected_version: None,
    };
    Ok(operator.secrets().put_secret(request).await?.into_inner().version)
}

/// The password of one version; 0 is the current one.
async fn get(operator: &Client, path: &str, version: u32) -> Result<String, Status> {
    let request = GetSecretRequest { path: path.into(), version: (version > 0).then_some(version) };
    let found = operator.secrets().get_secret(request).await?.into_inner();
    let password = found.fields.iter().find(|field| field.name == "password").expect("a password");
    Ok(String::from_utf8(password.value.clone()).expect("text"))
}

fn issues_of(world: &World, pod: &Pod) -> usize {
    let entries = world.database.entries("secret.issue");
    entries.iter().filter(|entry| entry["actor"]["pod"]["name"] == pod.name.as_str()).count()
}

/// The status tells the caller to try again, and nothing of what the server is made of.
fn assert_unavailable(status: &Status) {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(
        status.message().contains("database cannot be reached") || status.message().contains("sealed"),
        "{status:?}"
    );
    for inner in ["sqlx", "pool", "os error", "FATAL", "127.0.0.1"] {
        assert!(!status.message().contains(inner), "{status:?}");
    }
}

fn assert_no_panic(world: &World) {
    let logs = world.logs();
    assert!(!logs.contains("panicked"), "{logs}");
}
