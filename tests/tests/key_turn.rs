//! Turning keys on real servers: the new key reaches every replica before it is used, whoever fails on the way.

use std::{sync::Arc, time::Duration};

use keyfold::client::Client;
use keyfold_proto::keyfold::v1::{
    Field, GetKeyStatusRequest, GetSecretRequest, KeysetStatus, PauseRotationRequest, PutSecretRequest,
    ResumeRotationRequest, RotateKeyRequest, RotateKeyResponse,
};
use keyfold_tests::{
    Database, World,
    faults::{Frozen, TableLock, operator_of, until, within},
};
use tokio::task::JoinSet;
use tonic::{Code, Status};

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_is_made_handed_out_activated_and_everything_is_moved_each_step_with_its_entry() {
    let world = World::start().await.with_payments().await;
    let turned = rotate(&world.operator(), false).await.unwrap();
    assert_eq!((turned.old_version, turned.new_version), (1, 2));
    assert_eq!((turned.rewrapped_deks, turned.pending_deks), (1, 0));
    let steps: Vec<_> = ["key.rotate", "key.activate", "key.rewrap"]
        .map(|operation| world.database.entries(operation))
        .into_iter()
        .flatten()
        .map(|entry| (entry["actor"]["kind"].clone(), entry["operation"].clone()))
        .collect();
    assert_eq!(steps.len(), 3, "{steps:?}");
    let (asker, asked) = &steps[0];
    assert_eq!((asker.as_str(), asked["to_version"].as_u64()), (Some("operator"), Some(2)));
    let (doer, done) = &steps[1];
    assert_eq!((doer.as_str(), done["version"].as_u64()), (Some("server"), Some(2)));
    let (doer, done) = &steps[2];
    assert_eq!((doer.as_str(), done["deks"].as_u64()), (Some("server"), Some(1)));
    world.database.assert_keys_are_in_order();
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_waits_for_a_replica_that_lives_and_goes_on_without_one_that_is_silent() {
    let world = World::start().await.with_payments().await;
    let mut replica = world.second_replica().await;
    until("both replicas to live", async || replicas(&world.operator()).await == 2).await;
    let frozen = Frozen::freeze_server(&replica);
    let operator = world.operator();
    let turn = tokio::spawn(async move { rotate(&operator, false).await });
    until("the turn to begin", async || status(&world.operator()).await.pre_active_version == 2).await;
    let waiting = status(&world.operator()).await;
    assert_eq!(waiting.active_version, 1, "the frozen replica does not hold the new key");
    assert!(waiting.waiting_for.contains("has not taken on the new key"), "{waiting:?}");
    put(&world.operator(), "payments/meanwhile").await.unwrap();

    let turned = within(Duration::from_secs(30), "the turn", turn).await.unwrap().unwrap();
    assert_eq!(turned.new_version, 2);
    assert_eq!(replicas(&world.operator()).await, 1, "it counts as gone");
    drop(frozen);
    // Its first write after that is under the new key, for the old one is refused by Postgres, and it takes on the keys
    // that it missed before it writes.
    put(&operator_of(&replica), "payments/after").await.unwrap();
    replica.until_serving().await.unwrap();
    get(&operator_of(&replica), "payments/meanwhile").await.unwrap();
    assert_eq!(world.database.sql("SELECT count(*) FROM deks WHERE kek_version <> 2"), "0");
    world.database.assert_keys_are_in_order();
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_its_server_died_in_is_finished_by_another() {
    let mut world = World::start().await.with_payments().await;
    let mut replica = world.second_replica().await;
    replica.setup_mut().set_variable("KEYFOLD_CRASH_AT", Some("key.rotate:after".into()));
    replica.restart().await.unwrap();
    replica.until_serving().await.unwrap();
    rotate(&operator_of(&replica), false).await.unwrap_err();
    forget_the_dead(&world.database);
    until("the other replica to finish the turn", async || {
        let status = status(&world.operator()).await;
        (status.active_version, status.deks_pending) == (2, 0)
    })
    .await;
    assert_eq!(world.database.entries("key.rotate").len(), 1);
    assert_eq!(world.database.entries("key.activate").len(), 1);
    world.server.until_serving().await.unwrap();
    get(&world.operator(), "payments/db").await.unwrap();
    world.database.assert_keys_are_in_order();
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_at_any_commit_of_a_turn_leaves_nothing_half_done_and_goes_on_after_its_restart() {
    let mut world = World::start().await.with_payments().await;
    for transaction in ["key.rotate", "key.activate", "key.rewrap", "key.rewrap-end"] {
        for moment in ["before", "after"] {
            let point = format!("{transaction}:{moment}");
            let before = active_version(&world.database);
            crash_at(&mut world, Some(&point)).await;
            let turned = rotate(&world.operator(), false).await;
            assert!(turned.is_err(), "{point}: {turned:?}");
            world.database.assert_keys_are_in_order();
            crash_at(&mut world, None).await;
            if point == "key.rotate:before" {
                assert_eq!(active_version(&world.database), before, "{point}: nothing was asked for");
                continue;
            }
            until(&format!("{point}: the turn to end"), async || {
                let status = status(&world.operator()).await;
                (status.active_version, status.deks_pending, status.pre_active_version) == (before + 1, 0, 0)
            })
            .await;
            get(&world.operator(), "payments/db").await.unwrap();
            put(&world.operator(), "payments/db").await.unwrap();
        }
    }
    let turns = u64::from(active_version(&world.database)) - 1;
    until("the last end to be stated", async || {
        world.database.sql("SELECT rewrapped_version FROM keysets WHERE purpose = 'data'")
            == (turns + 1).to_string()
    })
    .await;
    for operation in ["key.rotate", "key.activate", "key.rewrap"] {
        let stated = world.database.entries(operation).len() as u64;
        assert_eq!(stated, turns, "{operation} is stated once for each turn");
    }
    world.database.assert_keys_are_in_order();
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_write_all_the_time_cannot_hold_up_a_turn() {
    let world = World::start().await.with_payments().await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for writer in 0..6 {
        let (operator, stop) = (world.operator(), Arc::clone(&stop));
        writers.spawn(async move {
            let mut written = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                put(&operator, &format!("payments/writer-{writer}")).await.expect("a write meets no turn");
                written += 1;
            }
            written
        });
    }
    for expected in 2..=4 {
        let turned =
            within(Duration::from_secs(20), "a turn", rotate(&world.operator(), true)).await.unwrap();
        assert_eq!(turned.new_version, expected);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let written: u64 = writers.join_all().await.into_iter().sum();
    assert!(written > 0);
    world.database.assert_keys_are_in_order();
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_cannot_tell_that_it_lives_stops_encrypting_and_goes_on_reading() {
    let world = World::start().await.with_payments().await;
    let lock = TableLock::take(&world.database, "replicas").await;
    let mut refused = None;
    until("the server to stop encrypting", async || put(&world.operator(), "payments/db").await.is_err())
        .await;
    for _ in 0..3 {
        refused = put(&world.operator(), "payments/db").await.err();
        get(&world.operator(), "payments/db").await.expect("reading goes on");
    }
    let refused = refused.expect("it was refused");
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().contains("does not encrypt"), "{refused:?}");
    lock.release().await;
    until("the server to encrypt again", async || put(&world.operator(), "payments/db").await.is_ok()).await;
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_stops_in_order_takes_its_row_with_it() {
    let mut world = World::start().await;
    until("the replica to live", async || world.database.sql("SELECT count(*) FROM replicas") == "1").await;
    world.server.stop();
    assert_eq!(world.database.sql("SELECT count(*) FROM replicas"), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_installations_own_keys_turn_as_well_and_every_replica_holds_them_before() {
    let world = World::start().await.with_payments().await;
    let replica = world.second_replica().await;
    for purpose in ["row-mac", "audit-sign", "internal-ca"] {
        let request = RotateKeyRequest { purpose: purpose.into(), ..Default::default() };
        let turned = operator_of(&replica).keys().rotate_key(request).await.unwrap().into_inner();
        assert_eq!((turned.old_version, turned.new_version), (1, 2), "{purpose}");
        for operator in [world.operator(), operator_of(&replica)] {
            put(&operator, "payments/db").await.unwrap();
            get(&operator, "payments/db").await.unwrap();
        }
    }
    let wrong = RotateKeyRequest { keyspace: "payments".into(), purpose: "row-mac".into(), no_wait: false };
    let refused = world.operator().keys().rotate_key(wrong).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_is_paused_and_resumed_by_name_and_that_shows() {
    let world = World::start().await.with_payments().await;
    let operator = world.operator();
    let pause = || PauseRotationRequest { keyspace: "payments".into(), ..Default::default() };
    assert!(operator.keys().pause_rotation(pause()).await.unwrap().into_inner().changed);
    assert!(!operator.keys().pause_rotation(pause()).await.unwrap().into_inner().changed);
    let paused = status(&operator).await;
    assert!(paused.paused && paused.next_rotation_at.is_none(), "{paused:?}");
    assert_eq!(paused.paused_by, "initial-administrator");
    let resume = || ResumeRotationRequest { keyspace: "payments".into(), ..Default::default() };
    let resumed = operator.keys().resume_rotation(resume()).await.unwrap().into_inner();
    assert!(resumed.changed && resumed.next_rotation_at.is_some(), "{resumed:?}");
    assert!(!operator.keys().resume_rotation(resume()).await.unwrap().into_inner().changed);
    for operation in ["key.pause", "key.resume"] {
        assert_eq!(world.database.entries(operation).len(), 2, "{operation}");
    }
    let unknown = PauseRotationRequest { keyspace: "none".into(), ..Default::default() };
    assert_eq!(operator.keys().pause_rotation(unknown).await.unwrap_err().code(), Code::NotFound);
}

async fn crash_at(world: &mut World, point: Option<&str>) {
    world.server.stop();
    forget_the_dead(&world.database);
    world.server.setup_mut().set_variable("KEYFOLD_CRASH_AT", point.map(Into::into));
    world.server.restart().await.unwrap();
    world.server.until_serving().await.unwrap();
}

/// As if the 5 s had passed after which a replica that died counts as gone. Those that live beat again.
fn forget_the_dead(database: &Database) {
    database.sql("UPDATE replicas SET heartbeat_at = heartbeat_at - interval '1 minute'");
}

fn active_version(database: &Database) -> u32 {
    database.sql("SELECT version FROM keks WHERE state = 'active' AND purpose = 'data'").parse().unwrap()
}

async fn status(operator: &Client) -> KeysetStatus {
    let request = GetKeyStatusRequest { keyspace: "payments".into() };
    let mut status = operator.keys().get_key_status(request).await.unwrap().into_inner();
    status.keysets.pop().expect("the keyspace has a key")
}

async fn replicas(operator: &Client) -> usize {
    let request = GetKeyStatusRequest { keyspace: "payments".into() };
    operator.keys().get_key_status(request).await.unwrap().into_inner().replicas.len()
}

async fn put(operator: &Client, path: &str) -> Result<u32, Status> {
    let fields = vec![Field { name: "password".into(), value: b"x".into() }];
    let request = PutSecretRequest { path: path.into(), fields, expected_version: None };
    Ok(operator.secrets().put_secret(request).await?.into_inner().version)
}

async fn get(operator: &Client, path: &str) -> Result<(), Status> {
    let request = GetSecretRequest { path: path.into(), version: None };
    operator.secrets().get_secret(request).await.map(drop)
}

async fn rotate(operator: &Client, no_wait: bool) -> Result<RotateKeyResponse, Status> {
    let request = RotateKeyRequest { keyspace: "payments".into(), no_wait, ..Default::default() };
    Ok(operator.keys().rotate_key(request).await?.into_inner())
}
