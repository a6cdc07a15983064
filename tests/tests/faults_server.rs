//! The server killed while it works, and two servers on one database.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use keyfold::client::Client;
use keyfold_proto::keyfold::v1::{
    DeleteObjectRequest, Field, GetSecretRequest, InitializeRequest, PutSecretRequest, RotateKeyRequest,
    RotateKeyResponse, State, system_service_client::SystemServiceClient,
};
use keyfold_tests::{
    PAYMENTS_SECRETS, World,
    faults::{Frozen, Gate, channel, operator_of, two_uninitialised_replicas, until, until_state, within},
};
use tokio::task::JoinSet;
use tonic::{Code, Status};

/// Enough DEKs for three batches of a rewrap.
const SECRETS: usize = 1_100;
/// A batch of the rewrap.
const BATCH: usize = 500;
/// The most secrets of one request.
const ITEMS_MAX: usize = 64;

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_start_while_the_server_is_killed_get_their_whole_files_once_it_is_back() {
    let mut world = World::start().await.with_payments().await;
    for round in 0..5_u64 {
        let pods: Vec<_> =
            (0..5).map(|pod| world.pod("payments", "api", &format!("api-{round}-{pod}"))).collect();
        let mut publishes = JoinSet::new();
        for pod in &pods {
            let (kubelet, request) = (world.driver.kubelet().clone(), world.publish_request(pod));
            publishes.spawn(async move { kubelet.publish(request).await });
        }
        // Before the calls arrive, while they are in work, after some are answered.
        tokio::time::sleep(Duration::from_millis(6 * round)).await;
        world.server.process.kill();
        world.server.restart().await.unwrap();
        for published in publishes.join_all().await {
            published.expect("the driver waits for the server");
        }
        for pod in &pods {
            let files: Vec<_> = world.files(pod).into_iter().collect();
            let expected =
                [("db/password", "first"), ("db/username", "payments")].map(|(n, v)| (n.into(), v.into()));
            assert_eq!(files, expected, "{}", pod.name);
        }
    }
    world.driver.stop().await;
    assert!(world.driver.mounts().is_empty());
    world.database.check_audit_log();
    assert_no_panic(&world);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stays_away_gives_a_clear_error_and_leaves_nothing_mounted() {
    let mut world = World::start().await.with_payments().await;
    world.configure_driver("wait_secs", 1).await;
    world.server.process.kill();
    let pod = world.pod("payments", "api", "api-0");
    let refused = world.publish(&pod, "payments-api", PAYMENTS_SECRETS);
    let refused = within(Duration::from_secs(20), "publish", refused).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let message = refused.message();
    assert!(message.contains("payments/api-0") && message.contains("server is away"), "{message}");
    assert!(!message.contains("os error") && !message.contains("127.0.0.1"), "{message}");
    assert!(world.driver.mounts().is_empty());
    assert!(!world.volume(&pod).target.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_a_server_killed_at_a_rewrap_loses_no_secret_and_moves_the_rest_after_its_restart() {
    let mut world = World::start().await.with_payments().await;
    let paths = put_many(&world, SECRETS).await;
    let gate = Gate::at_rewraps_beyond(&world.database, BATCH);
    gate.close();
    let operator = world.operator();
    let turn = tokio::spawn(async move { rotate(&operator).await });
    gate.until_held().await;
    world.server.process.kill();
    turn.await.unwrap().unwrap_err();
    gate.open();
    gate.until_idle().await;

    world.database.assert_keys_are_in_order();
    let moved: usize = world.database.sql("SELECT count(*) FROM deks WHERE kek_version = 2").parse().unwrap();
    assert_eq!(moved, BATCH, "the first batch stands, the second was cut off whole");
    world.server.restart().await.unwrap();
    world.server.until_serving().await.unwrap();
    assert_all_readable(&world, &paths).await;
    let left = "SELECT count(*) FROM deks WHERE kek_version <> 2";
    until("the rest to be moved", async || world.database.sql(left) == "0").await;
    let turn = rotate(&world.operator()).await.unwrap();
    assert_eq!((turn.old_version, turn.new_version), (2, 3));
    assert_eq!(turn.rewrapped_deks, SECRETS as u64 + 1, "and payments/db");
    assert_eq!(world.database.sql("SELECT count(*) FROM deks WHERE kek_version <> 3"), "0");
    assert_all_readable(&world, &paths).await;
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_a_server_killed_at_any_moment_of_a_turn_leaves_one_active_key_that_opens_everything() {
    let mut world = World::start().await.with_payments().await;
    let paths = put_many(&world, 300).await;
    for round in 0..6_u64 {
        let operator = world.operator();
        let turn = tokio::spawn(async move { rotate(&operator).await });
        tokio::time::sleep(Duration::from_millis(5 + 12 * round)).await;
        world.server.process.kill();
        let turned = turn.await.unwrap();
        world.server.restart().await.unwrap();
        world.server.until_serving().await.unwrap();
        world.database.assert_keys_are_in_order();
        if let Ok(turned) = turned {
            assert_eq!(active_version(&world), turned.new_version, "an acknowledged turn stands");
        }
        // A turn waits 5 s for a server that died; here as if they had passed.
        world.database.sql("UPDATE replicas SET heartbeat_at = heartbeat_at - interval '1 minute'");
        assert_all_readable(&world, &paths).await;
    }
    let turn = rotate(&world.operator()).await.unwrap();
    let behind = format!("SELECT count(*) FROM deks WHERE kek_version <> {}", turn.new_version);
    assert_eq!(world.database.sql(&behind), "0");
    // Each turn that stands is stated, and no other.
    let stated = world.database.entries("key.rotate");
    let versions: Vec<_> =
        stated.iter().map(|entry| entry["operation"]["to_version"].as_u64().unwrap()).collect();
    assert_eq!(versions, (2..=u64::from(turn.new_version)).collect::<Vec<_>>());
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_writers_that_expect_the_same_version_on_two_replicas_exactly_one_wins() {
    let world = World::start().await.with_payments().await;
    let replica = world.second_replica().await;
    let operators = [world.operator(), operator_of(&replica)].map(Arc::new);
    for expected in 1..=12 {
        let mut writers = JoinSet::new();
        for writer in 0..6 {
            let operator = Arc::clone(&operators[writer % 2]);
            writers.spawn(
                async move { put(&operator, "payments/db", &writer.to_string(), Some(expected)).await },
            );
        }
        let (won, lost): (Vec<_>, Vec<_>) = writers.join_all().await.into_iter().partition(Result::is_ok);
        assert_eq!(won.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [expected + 1]);
        for lost in lost {
            let status = lost.unwrap_err();
            assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
            assert!(status.message().contains(&format!("is {}, not {expected}", expected + 1)), "{status:?}");
        }
    }
    // Without an expectation everybody wins, each with a version of its own.
    let mut writers = JoinSet::new();
    for writer in 0..40 {
        let operator = Arc::clone(&operators[writer % 2]);
        writers.spawn(async move { put(&operator, "payments/new", &writer.to_string(), None).await });
    }
    let versions: BTreeSet<u32> = writers.join_all().await.into_iter().map(Result::unwrap).collect();
    assert_eq!(versions, (1..=40).collect());
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_turns_on_two_replicas_at_once_leave_one_active_key_and_no_version_twice() {
    let world = World::start().await.with_payments().await;
    let replica = world.second_replica().await;
    let paths = put_many(&world, 300).await;
    let operators = [world.operator(), operator_of(&replica)].map(Arc::new);
    for _ in 0..4 {
        let mut turns = JoinSet::new();
        for turn in 0..4 {
            let operator = Arc::clone(&operators[turn % 2]);
            turns.spawn(async move { rotate(&operator).await });
        }
        let writer = Arc::clone(&operators[0]);
        let written = tokio::spawn(async move { put(&writer, "payments/meanwhile", "x", None).await });
        let turned: Vec<_> =
            turns.join_all().await.into_iter().map(|turn| turn.expect("turns wait for each other")).collect();
        written.await.unwrap().expect("a write meets no key that is not active");
        let new: BTreeSet<_> = turned.iter().map(|turn| turn.new_version).collect();
        assert_eq!(new.len(), turned.len(), "{turned:?}");
        world.database.assert_keys_are_in_order();
        let behind =
            "SELECT count(*) FROM deks JOIN keks ON keks.id = deks.kek_id WHERE keks.state <> 'active'";
        assert_eq!(world.database.sql(behind), "0", "the turns together moved every DEK");
    }
    assert_all_readable(&world, &paths).await;
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_09_a_role_deleted_on_one_replica_is_refused_at_once_on_the_other() {
    let world = World::start().await.with_payments().await;
    let replica = world.second_replica().await;
    let pod = world.pod("payments", "api", "api-0");
    let other = world.workloads(&replica);
    other.issue(&pod, &["payments/db"]).await.unwrap();
    let role = DeleteObjectRequest { kind: "AppRole".into(), name: "payments-api".into() };
    world.operator().config().delete_object(role).await.unwrap();
    let refused = other.issue(&pod, &["payments/db"]).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    let entries = world.database.entries("secret.issue");
    let results: Vec<_> = entries.iter().map(|entry| entry["outcome"]["result"].as_str().unwrap()).collect();
    assert_eq!(results, ["allowed", "refused"]);
    world.database.check_audit_log();
}

/// Such as one on a machine that is paused: what it has locked comes free, and what it was doing never happened.
#[tokio::test(flavor = "multi_thread")]
async fn attack_21_a_replica_that_freezes_in_the_middle_of_a_transaction_stops_nobody_for_long() {
    let world = World::start().await.with_payments().await;
    let mut replica = world.second_replica().await;
    let gate = Gate::at_appends_of_entries(&world.database);
    gate.close();
    let operator = operator_of(&replica);
    let cut_off = tokio::spawn(async move { put(&operator, "payments/db", "cut off", None).await });
    gate.until_held().await;
    let frozen = Frozen::freeze_server(&replica);
    gate.open();
    let idle = "SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND state = 'idle in transaction'";
    until("the replica to hold the log's head", async || world.database.sql(idle) == "1").await;

    let (workloads, pod) = (world.workloads(&world.server), world.pod("payments", "api", "api-0"));
    let served = async {
        while let Err(status) = workloads.issue(&pod, &["payments/db"]).await {
            assert_eq!(status.code(), Code::Aborted, "{status:?}");
        }
    };
    within(Duration::from_secs(30), "the other replica", served).await;

    drop(frozen);
    let failed = cut_off.await.unwrap().unwrap_err();
    assert_eq!(failed.code(), Code::Unavailable, "{failed:?}");
    replica.until_serving().await.unwrap();
    assert_eq!(put(&operator_of(&replica), "payments/db", "second", Some(1)).await.unwrap(), 2);
    world.database.check_audit_log();
    assert_no_panic(&world);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_of_two_inits_at_once_one_works_and_both_replicas_serve() {
    let (_folder, database, mut servers) = two_uninitialised_replicas().await;
    for server in &servers {
        until_state(server, State::Uninitialized, "keyfold init").await;
    }
    let mut inits = JoinSet::new();
    for server in &servers {
        let bootstrap_token = std::fs::read_to_string(server.setup().bootstrap_token_file()).unwrap();
        let mut system = SystemServiceClient::new(channel(server.setup()));
        inits.spawn(async move { system.initialize(InitializeRequest { bootstrap_token }).await.map(drop) });
    }
    let (done, refused): (Vec<_>, Vec<_>) = inits.join_all().await.into_iter().partition(Result::is_ok);
    assert_eq!((done.len(), refused.len()), (1, 1), "{refused:?}");
    for server in &mut servers {
        server.until_serving().await.unwrap();
        let bootstrap_token = std::fs::read_to_string(server.setup().bootstrap_token_file()).unwrap();
        let mut system = SystemServiceClient::new(channel(server.setup()));
        let status = system.initialize(InitializeRequest { bootstrap_token }).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
        assert!(status.message().contains("already initialised"), "{status:?}");
    }
    for refused in refused {
        let code = refused.unwrap_err().code();
        assert!(matches!(code, Code::FailedPrecondition | Code::Aborted), "{code:?}");
    }
    assert_eq!(database.sql("SELECT count(*) FROM installation"), "1");
    assert_eq!(database.sql("SELECT count(*) FROM root_wrapping_keys"), "1");
    assert_eq!(database.sql("SELECT count(*) FROM admin_tokens"), "1");
    let allowed = database.entries("system.initialize");
    assert_eq!(allowed.iter().filter(|entry| entry["outcome"]["result"] == "allowed").count(), 1);
    assert!(allowed.len() >= 3, "the refused ones are entries too: {allowed:?}");
    database.check_audit_log();
}

fn active_version(world: &World) -> u32 {
    let active = "SELECT version FROM keks WHERE state = 'active' AND purpose = 'data'";
    world.database.sql(active).parse().unwrap()
}

async fn put(operator: &Client, path: &str, password: &str, expected: Option<u32>) -> Result<u32, Status> {
    let request = PutSecretRequest {
        path: path.into(),
        fields: vec![Field { name: "password".into(), value: password.into() }],
        expected_version: expected,
    };
    Ok(operator.secrets().put_secret(request).await?.into_inner().version)
}

async fn rotate(operator: &Client) -> Result<RotateKeyResponse, Status> {
    Ok(operator
        .keys()
        .rotate_key(RotateKeyRequest { keyspace: "payments".into(), ..Default::default() })
        .await?
        .into_inner())
}

/// Writes `count` secrets whose value is their own path; gives the paths.
async fn put_many(world: &World, count: usize) -> Vec<String> {
    let paths: Vec<String> = (0..count).map(|number| format!("payments/many-{number}")).collect();
    let mut writers = JoinSet::new();
    for part in paths.chunks(count.div_ceil(8)) {
        let (operator, part) = (world.operator(), part.to_vec());
        writers.spawn(async move {
            for path in part {
                put(&operator, &path, &path, Some(0)).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    paths
}

async fn assert_all_readable(world: &World, paths: &[String]) {
    let (workloads, pod) = (world.workloads(&world.server), world.pod("payments", "api", "reader"));
    for part in paths.chunks(ITEMS_MAX) {
        let part: Vec<&str> = part.iter().map(String::as_str).collect();
        let issued = workloads.issue(&pod, &part).await.unwrap();
        for (secret, path) in issued.secrets.iter().zip(&part) {
            assert_eq!((secret.path.as_str(), &*secret.fields[0].value), (*path, path.as_bytes()));
        }
        assert_eq!(issued.secrets.len(), part.len());
    }
    let request = GetSecretRequest { path: paths[0].clone(), version: None };
    world.operator().secrets().get_secret(request).await.unwrap();
}

fn assert_no_panic(world: &World) {
    let logs = world.logs();
    assert!(!logs.contains("panicked"), "{logs}");
}
