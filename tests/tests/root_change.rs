//! The root key turned and moved while two replicas serve, with crashes and rivals at every step.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use keyfold::{client::Client, dev::server::Server};
use keyfold_proto::keyfold::v1::{
    ApplyObjectsRequest, ChangeRootRequest, ChangeRootResponse, CreateRecoveryRequest, Field, GetRootRequest,
    GetRootResponse, GetSecretRequest, Object, PutSecretRequest, State,
};
use keyfold_tests::{
    World,
    custody::{Keeper, unseal_with},
    faults::{operator_of, status, until, until_state},
};
use serde_json::json;
use tokio::task::{JoinHandle, JoinSet};
use tonic::{Code, Status};

async fn change(server: &Server, custody: &str) -> Result<ChangeRootResponse, Status> {
    let request = ChangeRootRequest { custody: custody.into(), ..Default::default() };
    Ok(operator_of(server).root().change_root(request).await?.into_inner())
}

async fn root(server: &Server) -> Result<GetRootResponse, Status> {
    Ok(operator_of(server).root().get_root(GetRootRequest {}).await?.into_inner())
}

async fn create_recovery(server: &Server) -> Vec<String> {
    let request = CreateRecoveryRequest { shares: 3, threshold: 2 };
    operator_of(server).root().create_recovery(request).await.unwrap().into_inner().shares.clone()
}

async fn put(operator: &Client, path: &str) -> Result<(), Status> {
    let fields = vec![Field { name: "password".into(), value: b"first".into() }];
    let request = PutSecretRequest { path: path.into(), fields, expected_version: None };
    operator.secrets().put_secret(request).await.map(drop)
}

async fn get(server: &Server, path: &str) -> Result<(), Status> {
    let request = GetSecretRequest { path: path.into(), version: None };
    operator_of(server).secrets().get_secret(request).await.map(drop)
}

/// A world with a second replica; both can be configured for other keepers.
struct Pair {
    world: World,
    replica: Server,
}

impl Pair {
    async fn start() -> Self {
        let world = World::start().await.with_payments().await;
        let replica = world.second_replica().await;
        Self { world, replica }
    }

    fn servers(&mut self) -> [&mut Server; 2] {
        [&mut self.world.server, &mut self.replica]
    }

    /// Gives both another root key and what they use now as the previous one, and starts them again, one by one.
    async fn configure(&mut self, keeper: &Keeper, previous: Option<&Keeper>, shares: &[String]) {
        for server in self.servers() {
            match previous {
                Some(previous) => previous.configure_previous(server.setup_mut()),
                None => {
                    let file = server.setup().folder().join("root.key");
                    server
                        .setup_mut()
                        .configure("previous_root_key", json!({"file": {"current": file}}))
                        .unwrap();
                }
            }
            keeper.configure(server.setup_mut());
            server.restart().await.unwrap();
            if !shares.is_empty() {
                until_state(server, State::Sealed, "shares").await;
                unseal_with(server, shares).await;
            }
            server.until_serving().await.unwrap();
        }
    }

    /// Changes the root at the first, and waits for the second to follow. Gives the new root's shares.
    async fn change(&mut self, custody: &str) -> Vec<String> {
        let before = root(&self.world.server).await.unwrap();
        let changed = change(&self.world.server, custody).await.unwrap();
        assert_eq!(changed.custody, custody);
        assert_eq!(changed.old_root_key_id, before.root_key_id);
        assert_ne!(changed.new_root_key_id, before.root_key_id);
        assert_eq!(changed.rwk_version, before.rwk_version + 1);
        if custody == "shamir" {
            until_state(&self.replica, State::Sealed, "the root key was changed").await;
            unseal_with(&self.replica, &changed.shares).await;
        }
        for server in [&self.world.server, &self.replica] {
            until("the root to be known", async || {
                root(server).await.is_ok_and(|now| {
                    now.root_key_id == changed.new_root_key_id
                        && now.custody == custody
                        && now.problem.is_empty()
                })
            })
            .await;
        }
        self.assert_whole(u64::from(changed.rwk_version));
        changed.shares.clone()
    }

    fn assert_whole(&self, rwk_version: u64) {
        let database = &self.world.database;
        assert_eq!(database.sql("SELECT version FROM root_wrapping_keys"), rwk_version.to_string());
        let strays = "SELECT count(*) FROM keks WHERE rwk_id <> (SELECT id FROM root_wrapping_keys)";
        assert_eq!(database.sql(strays), "0");
        database.check_audit_log();
    }
}

/// A pod that asks one replica or the other for its secrets, all the time.
struct Issuing {
    issued: Arc<AtomicU64>,
    failed: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Issuing {
    fn start(pair: &Pair) -> Self {
        let workloads = [pair.world.workloads(&pair.world.server), pair.world.workloads(&pair.replica)];
        let pod = pair.world.pod("payments", "api", "api-0");
        let (issued, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (count, failures) = (Arc::clone(&issued), Arc::clone(&failed));
        let task = tokio::spawn(async move {
            loop {
                let first = workloads[0].issue(&pod, &["payments/db"]).await;
                let second = workloads[1].issue(&pod, &["payments/db"]).await;
                match (first, second) {
                    (Err(first), Err(second)) => {
                        let both = format!("{first:?} {second:?}");
                        failures.lock().unwrap_or_else(PoisonError::into_inner).push(both);
                    }
                    (first, second) => {
                        for refused in [first.err(), second.err()].into_iter().flatten() {
                            // One that starts or is sealed; or ended while the request was on its way, which then was
                            // not answered: only a connection's failure has a source.
                            let is_cut_off = std::error::Error::source(&refused).is_some();
                            assert!(is_cut_off || refused.code() == Code::Unavailable, "{refused:?}");
                        }
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Self { issued, failed, task }
    }

    async fn goes_on(&self) {
        let so_far = self.issued.load(Ordering::Relaxed);
        until("secrets to be issued", async || self.issued.load(Ordering::Relaxed) > so_far + 3).await;
    }

    fn end(self) {
        assert!(!self.task.is_finished(), "the task failed");
        self.task.abort();
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(failed.is_empty(), "{failed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_moves_between_all_keepers_while_two_replicas_issue_secrets() {
    let mut pair = Pair::start().await;
    let issuing = Issuing::start(&pair);
    // Each of the three follows each of the others once.
    let mut before: Option<Keeper> = None;
    for custody in ["pkcs11", "kms-plugin", "file", "kms-plugin", "pkcs11", "file"] {
        let keeper = Keeper::new(custody);
        pair.configure(&keeper, before.as_ref(), &[]).await;
        pair.change(custody).await;
        issuing.goes_on().await;
        before = Some(keeper);
    }
    issuing.end();
    assert_eq!(pair.world.database.entries("root.change").len(), 6);
    // What is no longer in use is not needed any more.
    for server in pair.servers() {
        server.setup_mut().configure("previous_root_key", json!(null)).unwrap();
        server.restart().await.unwrap();
        server.until_serving().await.unwrap();
    }
    get(&pair.replica, "payments/db").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_moves_to_people_and_from_them_while_two_replicas_issue_secrets() {
    let mut pair = Pair::start().await;
    let refused = {
        pair.configure(&Keeper::Shamir, None, &[]).await;
        change(&pair.world.server, "shamir").await.unwrap_err()
    };
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("keyfold recovery create"), "{}", refused.message());
    create_recovery(&pair.world.server).await;

    let issuing = Issuing::start(&pair);
    let mut shares = Vec::new();
    let mut before: Option<Keeper> = None;
    for custody in ["shamir", "pkcs11", "shamir", "kms-plugin", "shamir", "file"] {
        let keeper = Keeper::new(custody);
        pair.configure(&keeper, before.as_ref(), &shares).await;
        shares = pair.change(custody).await;
        assert_eq!(shares.len(), if custody == "shamir" { 5 } else { 0 });
        issuing.goes_on().await;
        before = Some(keeper);
    }
    issuing.end();
    let recovery = root(&pair.replica).await.unwrap().recovery.unwrap();
    assert_eq!((recovery.shares, recovery.threshold), (3, 2), "it moves along");
}

#[tokio::test(flavor = "multi_thread")]
async fn people_turn_their_root_key_and_the_old_shares_are_worth_nothing() {
    let mut pair = Pair::start().await;
    create_recovery(&pair.world.server).await;
    pair.configure(&Keeper::Shamir, None, &[]).await;
    let old = pair.change("shamir").await;
    let new = pair.change("shamir").await;
    pair.world.server.restart().await.unwrap();
    until_state(&pair.world.server, State::Sealed, "0 of 3 shares").await;
    let refused = keyfold_tests::custody::unseal(&pair.world.server, &old[0]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    unseal_with(&pair.world.server, &new[1..]).await;
}

/// Both replicas on one keeper with files, which are read anew at each use.
async fn on_files() -> (Pair, Keeper) {
    let mut pair = Pair::start().await;
    let keeper = Keeper::new("file");
    pair.configure(&keeper, None, &[]).await;
    pair.change("file").await;
    (pair, keeper)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_in_files_is_turned_without_a_restart_and_only_when_there_is_a_new_one() {
    let (mut pair, keeper) = on_files().await;
    let again = change(&pair.world.server, "").await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition, "{again:?}");
    assert!(again.message().contains("put a new key into it"), "{}", again.message());
    let other = change(&pair.world.server, "pkcs11").await.unwrap_err();
    assert_eq!(other.code(), Code::FailedPrecondition, "{other:?}");
    assert!(other.message().contains("configuration names file"), "{}", other.message());
    let unknown = change(&pair.world.server, "paper").await.unwrap_err();
    assert_eq!(unknown.code(), Code::InvalidArgument, "{unknown:?}");

    keeper.turn_file();
    let issuing = Issuing::start(&pair);
    pair.change("file").await;
    issuing.goes_on().await;
    issuing.end();
    let entries = pair.world.database.entries("root.change");
    let last = entries.iter().rfind(|entry| entry["outcome"]["result"] == "allowed").unwrap();
    assert_eq!(last["actor"]["name"], "initial-administrator");
    assert_eq!((&last["operation"]["from"], &last["operation"]["to"]), (&json!("file"), &json!("file")));
    let keys: u64 = pair.world.database.sql("SELECT count(*) FROM keks").parse().unwrap();
    assert_eq!(last["operation"]["keys"], keys);
    assert_eq!(entries.iter().filter(|entry| entry["outcome"]["result"] == "refused").count(), 3);
}

/// Whether it is to be tried again because others change what is declared all the time: that has nothing to do with the
/// root.
fn is_busy(done: Result<(), Status>) -> bool {
    let Err(error) = done else { return false };
    assert!(error.message().contains("app role or the issuer was changed meanwhile"), "{error:?}");
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_keys_that_are_made_and_used_while_the_root_is_turned_are_all_kept_and_nobody_is_refused() {
    let (pair, keeper) = on_files().await;
    let done = Arc::new(AtomicBool::new(false));
    let mut work = JoinSet::new();
    for (name, server) in [("a", &pair.world.server), ("b", &pair.replica)] {
        for kind in ["put", "apply"] {
            let (operator, done) = (operator_of(server), Arc::clone(&done));
            work.spawn(async move {
                let mut paths = Vec::new();
                let mut at = 0;
                while !done.load(Ordering::Relaxed) {
                    at += 1;
                    if kind == "apply" {
                        let keyspace = format!("{name}{at}");
                        let object = Object {
                            kind: "Keyspace".into(),
                            name: keyspace.clone(),
                            spec_json: "{}".into(),
                            ..Object::default()
                        };
                        let request = ApplyObjectsRequest { objects: vec![object], dry_run: false };
                        while is_busy(operator.config().apply_objects(request.clone()).await.map(drop)) {}
                        paths.push(format!("{keyspace}/db"));
                        // A change of root is decided anew when what is declared changes meanwhile.
                        tokio::time::sleep(Duration::from_millis(40)).await;
                    } else {
                        paths.push(format!("payments/{name}{at}"));
                    }
                    while is_busy(put(&operator, paths.last().unwrap()).await) {}
                }
                paths
            });
        }
    }
    for turn in 0..6_u64 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        keeper.turn_file();
        let server = if turn % 2 == 0 { &pair.world.server } else { &pair.replica };
        while is_busy(change(server, "").await.map(drop)) {}
        let now = root(server).await.unwrap().root_key_id;
        // The file holds two keys: both replicas must have followed before the next turn.
        for server in [&pair.world.server, &pair.replica] {
            until("the replica to follow", async || {
                root(server).await.is_ok_and(|root| root.root_key_id == now)
            })
            .await;
        }
    }
    done.store(true, Ordering::Relaxed);
    let paths: Vec<String> = work.join_all().await.concat();
    assert!(paths.len() > 20, "{} secrets", paths.len());
    pair.assert_whole(8);
    for (at, path) in paths.iter().enumerate() {
        let server = if at % 2 == 0 { &pair.world.server } else { &pair.replica };
        get(server, path).await.unwrap_or_else(|error| panic!("{path}: {error:?}"));
    }
    pair.world.database.assert_keys_are_in_order();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_two_operators_who_change_the_root_at_once_do_it_one_after_the_other() {
    let mut pair = Pair::start().await;
    let plugin = Keeper::new("kms-plugin");
    pair.configure(&plugin, None, &[]).await;
    let mut version = 1;
    for _ in 0..4 {
        let both = (change(&pair.world.server, "kms-plugin"), change(&pair.replica, "kms-plugin"));
        let (first, second) = tokio::join!(both.0, both.1);
        let done = [&first, &second].iter().filter(|done| done.is_ok()).count() as u64;
        assert!(done >= 1, "{first:?} {second:?}");
        for refused in [first.err(), second.err()].into_iter().flatten() {
            assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
            assert!(refused.message().contains("somebody else has just changed"), "{}", refused.message());
        }
        version += done;
        for server in [&pair.world.server, &pair.replica] {
            until("the replica to follow", async || {
                root(server).await.is_ok_and(|root| u64::from(root.rwk_version) == version)
            })
            .await;
        }
        pair.assert_whole(version);
    }
    for server in [&pair.world.server, &pair.replica] {
        get(server, "payments/db").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_cannot_follow_is_sealed_and_says_what_is_missing() {
    let mut pair = Pair::start().await;
    let keeper = Keeper::new("kms-plugin");
    // The second replica is not told of the new keeper.
    let server = &mut pair.world.server;
    let file = server.setup().folder().join("root.key");
    server.setup_mut().configure("previous_root_key", json!({"file": {"current": file}})).unwrap();
    keeper.configure(server.setup_mut());
    server.restart().await.unwrap();
    server.until_serving().await.unwrap();
    change(&pair.world.server, "kms-plugin").await.unwrap();

    until_state(&pair.replica, State::Sealed, "the root key was changed, and this replica cannot follow")
        .await;
    let told = status(&pair.replica).await.unwrap().message;
    assert!(told.contains("is of custody kms-plugin"), "{told}");
    assert_eq!(status(&pair.world.server).await.unwrap().state(), State::Serving);
    keeper.configure(pair.replica.setup_mut());
    pair.replica.restart().await.unwrap();
    pair.replica.until_serving().await.unwrap();
    get(&pair.replica, "payments/db").await.unwrap();
}

/// Kills the server at its change of root; gives the pair with the server started again.
async fn killed_at(moment: &str) -> (Pair, Keeper) {
    let (mut pair, keeper) = on_files().await;
    keeper.turn_file();
    let server = &mut pair.world.server;
    server.setup_mut().set_variable("KEYFOLD_CRASH_AT", Some(format!("root.change:{moment}").into()));
    server.restart().await.unwrap();
    server.until_serving().await.unwrap();
    let cut_off = change(server, "").await.unwrap_err();
    assert_ne!(cut_off.code(), Code::FailedPrecondition, "{cut_off:?}");
    let patience = std::time::Instant::now();
    while server.process.is_running() {
        assert!(patience.elapsed() < Duration::from_secs(60), "it does not crash");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.setup_mut().set_variable("KEYFOLD_CRASH_AT", None);
    server.restart().await.unwrap();
    server.until_serving().await.unwrap();
    (pair, keeper)
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_a_server_killed_before_its_change_of_root_is_durable_leaves_the_old_root() {
    let (mut pair, _keeper) = killed_at("before").await;
    pair.assert_whole(2);
    get(&pair.world.server, "payments/db").await.unwrap();
    pair.change("file").await;
    get(&pair.replica, "payments/db").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_a_server_killed_after_its_change_of_root_is_durable_leaves_the_new_root() {
    let (pair, _keeper) = killed_at("after").await;
    pair.assert_whole(3);
    for server in [&pair.world.server, &pair.replica] {
        until("the replica to follow", async || get(server, "payments/db").await.is_ok()).await;
    }
    let again = change(&pair.world.server, "").await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition, "the file's key is in use: {again:?}");
    assert_eq!(
        pair.world
            .database
            .entries("root.change")
            .iter()
            .filter(|e| e["outcome"]["result"] == "allowed")
            .count(),
        2
    );
}
