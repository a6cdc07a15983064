//! Keys that do not open, and the installation's own keys at their end: what needs them fails, and nothing else.

use std::time::Duration;

use keyfold::client::Client;
use keyfold_proto::keyfold::v1::{
    CancelKeyDestructionRequest, Field, GetKeyStatusRequest, GetKeyStatusResponse, GetSecretRequest,
    PutSecretRequest, RotateKeyRequest, RotateKeyResponse, ScheduleKeyDestructionRequest,
};
use keyfold_tests::{
    Database, World,
    faults::{until, within},
};
use serde_json::json;
use tonic::{Code, Status};

async fn rotate(operator: &Client, keyspace: &str, purpose: &str) -> Result<RotateKeyResponse, Status> {
    let request = RotateKeyRequest { keyspace: keyspace.into(), purpose: purpose.into(), no_wait: false };
    Ok(operator.keys().rotate_key(request).await?.into_inner())
}

async fn schedule(
    operator: &Client,
    keyspace: &str,
    purpose: &str,
    version: u32,
    delay_seconds: u64,
) -> Result<(), Status> {
    let request = ScheduleKeyDestructionRequest {
        keyspace: keyspace.into(),
        purpose: purpose.into(),
        version,
        delay_seconds: Some(delay_seconds),
    };
    operator.keys().schedule_key_destruction(request).await.map(drop)
}

async fn status(operator: &Client) -> GetKeyStatusResponse {
    operator.keys().get_key_status(GetKeyStatusRequest::default()).await.unwrap().into_inner()
}

async fn assert_works(operator: &Client) {
    let fields = vec![Field { name: "password".into(), value: b"x".into() }];
    let request = PutSecretRequest { path: "payments/db".into(), fields, expected_version: None };
    operator.secrets().put_secret(request).await.unwrap();
    let request = GetSecretRequest { path: "payments/db".into(), version: None };
    operator.secrets().get_secret(request).await.unwrap();
}

fn state(database: &Database, purpose: &str, version: u32) -> String {
    database.sql(&format!("SELECT state FROM keks WHERE purpose = '{purpose}' AND version = {version}"))
}

/// Until nothing is under the first keys of the installation.
async fn until_unneeded(database: &Database) {
    let needed = "SELECT (SELECT count(*) FROM ca_certificates
                          WHERE kek_version = 1 OR substring(mac FROM 1 FOR 4) = int4send(1))
                       + (SELECT count(*) FROM objects WHERE substring(mac FROM 1 FOR 4) = int4send(1))
                       + (SELECT count(*) FROM secret_versions WHERE substring(mac FROM 1 FOR 4) = int4send(1))";
    until("nothing to need the old keys", async || database.sql(needed) == "0").await;
}

const DAMAGED: &str = "set_byte(wrapped, 40, 255 - get_byte(wrapped, 40))";

#[tokio::test(flavor = "multi_thread")]
async fn an_old_key_of_the_installation_that_does_not_open_stops_nothing_but_what_needs_it() {
    let mut world = World::start().await.with_payments().await;
    for purpose in ["audit-sign", "internal-ca"] {
        rotate(&world.operator(), "", purpose).await.unwrap();
    }
    let wrapped = "SELECT count(*) FROM ca_certificates WHERE kek_version = 1";
    until("the authority's key to be moved", async || world.database.sql(wrapped) == "0").await;
    world.database.sql(&format!(
        "UPDATE keks SET wrapped = {DAMAGED} WHERE version = 1 AND purpose IN ('audit-sign', 'internal-ca')"
    ));
    world.server.restart().await.unwrap();
    world.server.until_serving().await.unwrap();
    assert_works(&world.operator()).await;
    rotate(&world.operator(), "payments", "").await.unwrap();
    for purpose in ["audit-sign", "internal-ca"] {
        assert!(world.logs().contains(&format!("version 1 of the {purpose} key")), "{}", world.logs());
        rotate(&world.operator(), "", purpose).await.unwrap();
    }
    // The one that is needed to tell what somebody forged.
    world.database.sql(&format!("UPDATE keks SET wrapped = {DAMAGED} WHERE purpose = 'row-mac'"));
    world.server.restart().await.unwrap();
    until("the server to stay sealed", async || world.logs().contains("the keys do not open")).await;
    assert!(rotate(&world.operator(), "payments", "").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_that_a_replica_cannot_open_waits_alone_and_can_be_given_up() {
    let world = World::start().await.with_payments().await;
    world.server.apply("Keyspace", "billing", &json!({})).await.unwrap();
    let _replica = world.second_replica().await;
    let operator = world.operator();
    until("both replicas to live", async || status(&operator).await.replicas.len() == 2).await;
    // The server that makes the key has it in memory; the other reads what was stored.
    world.database.sql(
        "CREATE FUNCTION damage() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF NEW.purpose = 'row-mac' OR NEW.keyspace_id = (SELECT id FROM objects WHERE name = 'payments') THEN
                 NEW.wrapped = set_byte(NEW.wrapped, 40, 255 - get_byte(NEW.wrapped, 40));
             END IF;
             RETURN NEW;
         END $$;
         CREATE TRIGGER damage BEFORE INSERT ON keks FOR EACH ROW EXECUTE FUNCTION damage()",
    );
    for (keyspace, purpose, stored) in [("payments", "", "data"), ("", "row-mac", "row-mac")] {
        let asker = world.operator();
        let turn = tokio::spawn(async move { rotate(&asker, keyspace, purpose).await });
        let failure = format!("cannot use version 2 of the {stored} key");
        until("the turn to wait", async || {
            let status = status(&operator).await;
            status.keysets.iter().any(|keyset| keyset.waiting_for.contains(&failure))
        })
        .await;
        assert!(status(&operator).await.replicas.iter().any(|replica| replica.failure.contains(&failure)));
        // It keeps no other waiting, and nobody from working.
        within(Duration::from_secs(30), "another turn", rotate(&operator, "billing", "")).await.unwrap();
        assert_works(&operator).await;
        schedule(&operator, keyspace, purpose, 2, 86_400).await.unwrap();
        let refused = within(Duration::from_secs(40), "the turn to end", turn).await.unwrap().unwrap_err();
        assert!(refused.message().contains("was given up"), "{refused:?}");
    }
    world.database.sql("DROP TRIGGER damage ON keks");
    for (keyspace, purpose) in [("payments", ""), ("", "row-mac")] {
        assert_eq!(rotate(&operator, keyspace, purpose).await.unwrap().new_version, 3);
    }
    assert_works(&operator).await;
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_installations_old_keys_are_destroyed_by_command_once_nothing_needs_them() {
    let mut world = World::start().await.with_payments().await;
    let operator = world.operator();
    for purpose in ["row-mac", "internal-ca", "audit-sign"] {
        let refused = schedule(&operator, "", purpose, 1, 1).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        assert!(refused.message().starts_with(&format!("{purpose} key of the installation")), "{refused:?}");
        rotate(&operator, "", purpose).await.unwrap();
    }
    let refused = schedule(&operator, "payments", "row-mac", 1, 1).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    until_unneeded(&world.database).await;

    schedule(&operator, "", "internal-ca", 1, 86_400).await.unwrap();
    let cancel =
        CancelKeyDestructionRequest { keyspace: String::new(), purpose: "internal-ca".into(), version: 1 };
    let again = operator.keys().cancel_key_destruction(cancel).await.unwrap().into_inner();
    assert_eq!(again.state, "deactivated");
    for purpose in ["row-mac", "internal-ca"] {
        until("the destruction to be scheduled", async || {
            schedule(&operator, "", purpose, 1, 1).await.is_ok()
        })
        .await;
        until("the key to be destroyed", async || state(&world.database, purpose, 1) == "destroyed").await;
    }
    let refused = schedule(&operator, "", "audit-sign", 1, 1).await.unwrap_err();
    assert!(refused.message().contains("certificates that it has signed"), "{refused:?}");
    let stated: Vec<_> = world
        .database
        .entries("key.destroy")
        .iter()
        .map(|entry| entry["operation"]["purpose"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(stated, ["row-mac", "internal-ca"]);
    assert_eq!(world.database.entries("key.cancel-destruction")[0]["operation"]["purpose"], "internal-ca");
    world.server.restart().await.unwrap();
    world.server.until_serving().await.unwrap();
    assert_works(&world.operator()).await;
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_22_a_row_mac_key_that_a_row_still_names_is_not_destroyed() {
    let world = World::start().await.with_payments().await;
    let operator = world.operator();
    // No MAC of a server's, so that none makes it anew.
    world.database.sql("UPDATE secret_labels SET mac = int4send(1) || sha256('x')");
    rotate(&operator, "", "row-mac").await.unwrap();
    let refused = schedule(&operator, "", "row-mac", 1, 1).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("1 of secret_labels.mac"), "{refused:?}");
    assert_eq!(state(&world.database, "row-mac", 1), "deactivated");
}
