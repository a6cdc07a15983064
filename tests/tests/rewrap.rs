//! Moving data keys to a new key: shared by all replicas, resumable, never faster than configured, and not stopped by a
//! data key that does not open.

use std::path::Path;

use keyfold::client::Client;
use keyfold_proto::keyfold::v1::{
    Field, GetKeyStatusRequest, GetSecretRequest, KeysetStatus, ListQuarantineRequest, PutSecretRequest,
    QuarantinedDek, RetryQuarantineRequest, RotateKeyRequest, RotateKeyResponse,
};
use keyfold_server::{
    config::{Config, ENVIRONMENT_PREFIX},
    store::{Store, deks},
};
use keyfold_tests::{
    World,
    faults::{Gate, operator_of, until},
};
use serde_json::json;
use tokio::task::JoinSet;
use tonic::Status;
use uuid::Uuid;

/// Some batches.
const SECRETS: usize = 1_600;
const BATCH: usize = 500;

#[tokio::test(flavor = "multi_thread")]
async fn a_data_key_that_does_not_open_is_put_aside_and_all_others_are_moved() {
    let world = World::start().await.with_payments().await;
    put_many(&world, SECRETS).await;
    let corrupted =
        "SELECT d.id FROM deks d JOIN secrets s ON s.id = d.secret_id WHERE s.path = 'payments/many-700'";
    let dek_id = world.database.sql(corrupted);
    let wrapped =
        world.database.sql(&format!("SELECT encode(wrapped, 'hex') FROM deks WHERE id = '{dek_id}'"));
    let flipped = "overlay(wrapped PLACING '\\xffff'::bytea FROM octet_length(wrapped) - 8)";
    world.database.sql(&format!("UPDATE deks SET wrapped = {flipped} WHERE id = '{dek_id}'"));

    let turned = rotate(&world.operator()).await.unwrap();
    assert_eq!(turned.rewrapped_deks, SECRETS as u64, "with payments/db, without the corrupted one");
    assert_eq!(turned.pending_deks, 0, "what is in quarantine is not waited for");
    let quarantined = quarantine(&world.operator()).await;
    let [dek] = &quarantined[..] else { panic!("{quarantined:?}") };
    assert_eq!((dek.dek_id.as_str(), dek.path.as_str()), (dek_id.as_str(), "payments/many-700"));
    assert_eq!((dek.version, dek.key_version), (1, 1));
    assert!(dek.reason.contains("authentication"), "{dek:?}");
    let entries = world.database.entries("key.quarantine");
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0]["operation"]["deks"], 1);
    assert_eq!(status(&world.operator()).await.quarantined, 1);

    // Tried again without any change it comes back; mended it is moved.
    assert_eq!(retry(&world.operator()).await, 1);
    until("it to come back", async || status(&world.operator()).await.quarantined == 1).await;
    // As a restored backup would: the row as it was. The trigger asks for an active key, so it is switched off.
    world.database.sql(&format!(
        "ALTER TABLE deks DISABLE TRIGGER USER;
         UPDATE deks SET wrapped = decode('{wrapped}', 'hex') WHERE id = '{dek_id}';
         ALTER TABLE deks ENABLE TRIGGER USER;"
    ));
    assert_eq!(retry(&world.operator()).await, 1);
    until("it to be moved", async || {
        world.database.sql("SELECT count(*) FROM deks WHERE kek_version = 1") == "0"
    })
    .await;
    assert_eq!(quarantine(&world.operator()).await, []);
    get(&world.operator(), "payments/many-700").await.unwrap();
    assert_eq!(world.database.entries("key.retry-quarantine").len(), 2);
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_in_the_middle_goes_on_where_it_stopped() {
    let mut world = World::start().await.with_payments().await;
    put_many(&world, SECRETS).await;
    let gate = Gate::at_rewraps_beyond(&world.database, BATCH);
    gate.close();
    let operator = world.operator();
    let turn = tokio::spawn(async move { rotate(&operator).await });
    gate.until_held().await;
    world.server.process.kill();
    turn.await.unwrap().unwrap_err();
    gate.open();
    gate.until_idle().await;
    let moved = world.database.sql("SELECT count(*) FROM deks WHERE kek_version = 2");
    assert_eq!(moved, BATCH.to_string(), "the first batch stands, the second was cut off whole");
    world.server.restart().await.unwrap();
    world.server.until_serving().await.unwrap();
    until("the rest to be moved", async || status(&world.operator()).await.deks_pending == 0).await;
    until("the end to be stated", async || world.database.entries("key.rewrap").len() == 1).await;
    let entry = &world.database.entries("key.rewrap")[0]["operation"];
    assert_eq!((entry["to_version"].as_u64(), entry["deks"].as_u64()), (Some(2), Some(SECRETS as u64 + 1)));
    world.database.assert_keys_are_in_order();
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn all_replicas_share_the_work_and_its_end_is_stated_once() {
    let mut world = World::start().await.with_payments().await;
    // One batch, and after that one DEK a second: neither does it alone.
    let slow = json!({"rewrap_per_second": 1});
    world.server.setup().configure("keys", slow.clone()).unwrap();
    world.server.restart().await.unwrap();
    world.server.until_serving().await.unwrap();
    let mut replica = world.second_replica().await;
    replica.setup().configure("keys", slow).unwrap();
    replica.restart().await.unwrap();
    replica.until_serving().await.unwrap();
    put_many(&world, 2 * BATCH - 1).await;
    let turned = rotate(&world.operator()).await.unwrap();
    assert_eq!((turned.rewrapped_deks, turned.pending_deks), (2 * BATCH as u64, 0), "one batch each");
    assert_eq!(world.database.entries("key.rewrap").len(), 1);
    get(&operator_of(&replica), "payments/many-1").await.unwrap();
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn how_far_a_rewrap_is_shows_while_it_goes_on() {
    let mut world = World::start().await.with_payments().await;
    world.server.setup().configure("keys", json!({"rewrap_per_second": 250})).unwrap();
    world.server.restart().await.unwrap();
    world.server.until_serving().await.unwrap();
    put_many(&world, SECRETS).await;
    let request = RotateKeyRequest { keyspace: "payments".into(), no_wait: true, ..Default::default() };
    let turned = world.operator().keys().rotate_key(request).await.unwrap().into_inner();
    assert!(turned.pending_deks > 0, "{turned:?}");
    until("a rate to show", async || {
        let status = status(&world.operator()).await;
        let total = status.deks_done + status.deks_pending;
        assert_eq!(total, SECRETS as u64 + 1, "{status:?}");
        let has_rate = status.deks_per_second > 0.0;
        assert_eq!(status.seconds_left.is_some(), has_rate, "{status:?}");
        has_rate
    })
    .await;
    until("the end", async || status(&world.operator()).await.deks_pending == 0).await;
    let done = status(&world.operator()).await;
    assert_eq!((done.deks_per_second, done.seconds_left), (0.0, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_key_that_was_changed_meanwhile_is_left_as_it_is() {
    let world = World::start().await.with_payments().await;
    let text = |sql: &str| world.database.sql(sql);
    let id: Uuid = text("SELECT id FROM deks").parse().unwrap();
    let kek: Uuid = text("SELECT kek_id FROM deks").parse().unwrap();
    let before = text("SELECT encode(wrapped, 'hex') FROM deks");
    let store = store_of(world.server.setup().config_file().as_path());
    let moved = |stood: &str| deks::Moved {
        ids: vec![id],
        before: vec![hex::decode(stood).unwrap()],
        after: vec![b"new".to_vec()],
    };
    let mut connection = store.connection().await.unwrap();
    let other = "00".repeat(before.len() / 2);
    assert_eq!(deks::rewrap(&mut connection, kek, (kek, 1), &moved(&other)).await.unwrap(), 0);
    let other_kek = Uuid::nil();
    assert_eq!(deks::rewrap(&mut connection, other_kek, (kek, 1), &moved(&before)).await.unwrap(), 0);
    assert_eq!(text("SELECT encode(wrapped, 'hex') FROM deks"), before);
    assert_eq!(deks::rewrap(&mut connection, kek, (kek, 1), &moved(&before)).await.unwrap(), 1);
    assert_eq!(text("SELECT convert_from(wrapped, 'UTF8') FROM deks"), "new");
}

fn store_of(config: &Path) -> Store {
    let yaml = std::fs::read_to_string(config).unwrap();
    let config: Config = keyfold_core::config::load(&yaml, ENVIRONMENT_PREFIX, []).unwrap();
    Store::new(&config.database).unwrap()
}

async fn status(operator: &Client) -> KeysetStatus {
    let request = GetKeyStatusRequest { keyspace: "payments".into() };
    let mut status = operator.keys().get_key_status(request).await.unwrap().into_inner();
    status.keysets.pop().expect("the keyspace has a key")
}

async fn quarantine(operator: &Client) -> Vec<QuarantinedDek> {
    let request = ListQuarantineRequest { keyspace: "payments".into() };
    operator.keys().list_quarantine(request).await.unwrap().into_inner().deks
}

async fn retry(operator: &Client) -> u64 {
    let request = RetryQuarantineRequest { keyspace: "payments".into() };
    operator.keys().retry_quarantine(request).await.unwrap().into_inner().released
}

async fn put(operator: &Client, path: &str) -> Result<u32, Status> {
    let fields = vec![Field { name: "password".into(), value: path.as_bytes().into() }];
    let request = PutSecretRequest { path: path.into(), fields, expected_version: None };
    Ok(operator.secrets().put_secret(request).await?.into_inner().version)
}

async fn get(operator: &Client, path: &str) -> Result<(), Status> {
    let request = GetSecretRequest { path: path.into(), version: None };
    operator.secrets().get_secret(request).await.map(drop)
}

async fn rotate(operator: &Client) -> Result<RotateKeyResponse, Status> {
    let request = RotateKeyRequest { keyspace: "payments".into(), ..Default::default() };
    Ok(operator.keys().rotate_key(request).await?.into_inner())
}

/// Writes `count` secrets `payments/many-N`.
async fn put_many(world: &World, count: usize) {
    let mut writers = JoinSet::new();
    for writer in 0..8 {
        let operator = world.operator();
        writers.spawn(async move {
            for number in (writer..count).step_by(8) {
                put(&operator, &format!("payments/many-{number}")).await.unwrap();
            }
        });
    }
    writers.join_all().await;
}
