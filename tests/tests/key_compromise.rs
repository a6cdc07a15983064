//! What is done once somebody may know a key: what it reached is encrypted anew while pods go on reading, and a list says
//! which secrets are to be rotated and who was given them.

use std::{collections::BTreeMap, sync::Arc};

use keyfold::{client::Client, dev::server::Server};
use keyfold_proto::keyfold::v1::{
    ChangeVersionsRequest, CompromiseKeyRequest, CompromiseKeyResponse, ExposedSecret, Field,
    GetSecretRequest, ListExposedSecretsRequest, ListExposedSecretsResponse, PutSecretRequest,
    RollbackSecretRequest, RotateKeyRequest,
};
use keyfold_tests::{
    Database, World,
    faults::{Gate, operator_of, status, until},
};
use tokio::task::JoinSet;
use tonic::{Code, Status};

/// Versions of a batch of the re-encryption, in `server/src/keys/reencrypt.rs`.
const BATCH: usize = 500;
/// The most secrets of one request.
const ITEMS_MAX: usize = 64;

async fn compromise(operator: &Client, version: u32) -> Result<CompromiseKeyResponse, Status> {
    let request = CompromiseKeyRequest { keyspace: "payments".into(), version };
    Ok(operator.keys().compromise_key(request).await?.into_inner())
}

async fn exposed(
    operator: &Client,
    after: &str,
    page_size: u32,
) -> Result<ListExposedSecretsResponse, Status> {
    let request = ListExposedSecretsRequest { keyspace: "payments".into(), after: after.into(), page_size };
    Ok(operator.keys().list_exposed_secrets(request).await?.into_inner())
}

async fn all_exposed(world: &World) -> Vec<ExposedSecret> {
    exposed(&world.operator(), "", 0).await.unwrap().secrets
}

async fn rotate(world: &World) {
    let request = RotateKeyRequest { keyspace: "payments".into(), ..Default::default() };
    world.operator().keys().rotate_key(request).await.unwrap();
}

async fn put(operator: &Client, path: &str, password: &str) -> Result<u32, Status> {
    let fields = vec![Field { name: "password".into(), value: password.into() }];
    let request = PutSecretRequest { path: path.into(), fields, expected_version: None };
    Ok(operator.secrets().put_secret(request).await?.into_inner().version)
}

async fn password(operator: &Client, path: &str, version: u32) -> Result<String, Status> {
    let request = GetSecretRequest { path: path.into(), version: Some(version) };
    let found = operator.secrets().get_secret(request).await?.into_inner();
    let field = found.fields.into_iter().find(|field| field.name == "password").expect("a password");
    Ok(String::from_utf8_lossy(&field.value).into_owned())
}

/// Writes `count` secrets whose password is their own path.
async fn put_many(world: &World, count: usize) -> Vec<String> {
    let paths: Vec<String> = (0..count).map(|number| format!("payments/many-{number}")).collect();
    let mut writers = JoinSet::new();
    for part in paths.chunks(count.div_ceil(8)) {
        let (operator, part) = (world.operator(), part.to_vec());
        writers.spawn(async move {
            for path in part {
                put(&operator, &path, &path).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    paths
}

async fn assert_pods_read(world: &World, server: &Server, paths: &[String]) {
    let (workloads, pod) = (world.workloads(server), world.pod("payments", "api", "reader"));
    for part in paths.chunks(ITEMS_MAX) {
        let part: Vec<&str> = part.iter().map(String::as_str).collect();
        let issued = workloads.issue(&pod, &part).await.unwrap();
        assert_eq!(issued.secrets.len(), part.len());
        for (secret, path) in issued.secrets.iter().zip(&part) {
            assert_eq!((secret.path.as_str(), &*secret.fields[0].value), (*path, path.as_bytes()));
        }
    }
}

/// Each version's DEK, the hash of that in its wrapped form, and the hash of its payload, by path and version.
fn ciphertexts(database: &Database) -> BTreeMap<String, [String; 3]> {
    let rows = database.sql(
        "SELECT s.path || ' ' || v.version, d.id, encode(sha256(d.wrapped), 'hex'), encode(sha256(v.payload), 'hex')
         FROM deks d JOIN secrets s ON s.id = d.secret_id
         JOIN secret_versions v ON v.secret_id = d.secret_id AND v.version = d.version",
    );
    let row = |line: &str| {
        let mut columns = line.split('|').map(str::to_owned);
        let mut next = || columns.next().expect("four columns");
        (next(), [next(), next(), next()])
    };
    rows.lines().map(row).collect()
}

fn born(database: &Database) -> String {
    database.sql(
        "SELECT string_agg(s.path || ' ' || d.version || ' ' || d.born_kek_version || ' ' || d.kek_version, ',' ORDER BY s.path, d.version)
         FROM deks d JOIN secrets s ON s.id = d.secret_id",
    )
}

/// Waits until nothing that a compromised key reached has the DEK that it had, but for what is in quarantine.
async fn until_reencrypted(database: &Database) {
    let pending = "SELECT count(*) FROM deks d JOIN keks k ON k.keyspace_id = d.keyspace_id
                   WHERE k.compromised_at IS NOT NULL AND d.born_kek_version <= k.version
                     AND NOT EXISTS (SELECT 1 FROM quarantined_deks q WHERE q.dek_id = d.id)";
    until("everything to be encrypted anew", async || database.sql(pending) == "0").await;
}

fn reencrypted(database: &Database) -> u64 {
    let entries = database.entries("key.reencrypt");
    entries.iter().map(|entry| entry["operation"]["payloads"].as_u64().expect("a number")).sum()
}

fn states(database: &Database) -> String {
    database.sql(
        "SELECT string_agg(k.version || ' ' || k.state, ', ' ORDER BY k.version)
         FROM keks k JOIN objects o ON o.id = k.keyspace_id WHERE o.name = 'payments'",
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_compromised_key_reached_is_encrypted_anew_under_another() {
    let world = World::start().await.with_payments().await;
    let operator = world.operator();
    for version in 2..=4 {
        assert_eq!(put(&operator, "payments/db", &format!("v{version}")).await.unwrap(), version);
    }
    put(&operator, "payments/api", "other").await.unwrap();
    let request = |version| ChangeVersionsRequest { path: "payments/db".into(), versions: vec![version] };
    operator.secrets().delete_versions(request(2)).await.unwrap();
    operator.secrets().destroy_versions(request(3)).await.unwrap();
    let before = ciphertexts(&world.database);

    let done = compromise(&operator, 0).await.unwrap();
    assert_eq!((done.compromised_version, done.active_version), (1, 2));
    assert_eq!((done.payloads, done.exposed_secrets), (4, 2), "a destroyed version has nothing to encrypt");
    assert_eq!(states(&world.database), "1 compromised, 2 active");
    until_reencrypted(&world.database).await;

    let after = ciphertexts(&world.database);
    assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    for (version, old) in &before {
        for (old, new) in old.iter().zip(&after[version]) {
            assert_ne!(old, new, "{version}");
        }
    }
    assert_eq!(
        born(&world.database),
        "payments/api 1 2 2,payments/db 1 2 2,payments/db 2 2 2,payments/db 4 2 2"
    );
    assert_eq!(password(&operator, "payments/db", 1).await.unwrap(), "first");
    assert_eq!(password(&operator, "payments/db", 4).await.unwrap(), "v4");
    assert_eq!(password(&operator, "payments/db", 2).await.unwrap_err().code(), Code::NotFound);
    operator.secrets().undelete_versions(request(2)).await.unwrap();
    assert_eq!(password(&operator, "payments/db", 2).await.unwrap(), "v2");
    assert_eq!(password(&operator, "payments/db", 3).await.unwrap_err().code(), Code::NotFound);

    let entry = &world.database.entries("key.compromise")[0]["operation"];
    assert_eq!(
        entry.to_string(),
        r#"{"keyspace":"payments","name":"key.compromise","payloads":4,"secrets":2,"to_version":2,"version":1}"#
    );
    assert_eq!(reencrypted(&world.database), 4);
    assert_eq!(world.database.entries("key.reencrypt")[0]["actor"]["kind"], "server");
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_key_that_is_compromised_reached_what_was_there_in_its_time() {
    let world = World::start().await.with_payments().await;
    let operator = world.operator();
    rotate(&world).await;
    put(&operator, "payments/new", "new").await.unwrap();
    let before = ciphertexts(&world.database);
    assert_eq!(born(&world.database), "payments/db 1 1 2,payments/new 1 2 2", "the first is rewrapped");

    let done = compromise(&operator, 1).await.unwrap();
    assert_eq!((done.compromised_version, done.active_version, done.payloads), (1, 2, 1));
    until_reencrypted(&world.database).await;
    let after = ciphertexts(&world.database);
    assert_ne!(after["payments/db 1"], before["payments/db 1"], "a backup with key 1 opens its DEK");
    assert_eq!(after["payments/new 1"], before["payments/new 1"]);
    let listed: Vec<_> = all_exposed(&world).await.into_iter().map(|secret| secret.path).collect();
    assert_eq!(listed, ["payments/db"]);
    assert_eq!(states(&world.database), "1 compromised, 2 active");
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_declared_compromised_is_refused_and_changes_nothing() {
    let world = World::start().await.with_payments().await;
    let operator = world.operator();
    compromise(&operator, 1).await.unwrap();
    for (version, code, told) in [
        (1, Code::FailedPrecondition, "a key that is compromised cannot be declared compromised"),
        (3, Code::NotFound, "has no version 3"),
    ] {
        let refused = compromise(&operator, version).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused:?}");
        assert!(refused.message().contains(told), "{refused:?}");
    }
    let request = CompromiseKeyRequest { keyspace: "nowhere".into(), version: 0 };
    assert_eq!(operator.keys().compromise_key(request).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(states(&world.database), "1 compromised, 2 active");
    let results: Vec<_> = world.database.entries("key.compromise");
    let results: Vec<_> = results.iter().map(|entry| entry["outcome"]["result"].as_str().unwrap()).collect();
    assert_eq!(results, ["allowed", "refused", "refused", "refused"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_names_the_secrets_to_rotate_and_who_was_given_them() {
    let world = World::start().await.with_payments().await;
    let operator = world.operator();
    put(&operator, "payments/api", "other").await.unwrap();
    put(&operator, "payments/db", "second").await.unwrap();
    let (workloads, pod) = (world.workloads(&world.server), world.pod("payments", "api", "api-0"));
    workloads.issue(&pod, &["payments/db"]).await.unwrap();
    password(&operator, "payments/db", 1).await.unwrap();
    assert!(all_exposed(&world).await.is_empty());
    compromise(&operator, 0).await.unwrap();

    // Already now, and after everything is encrypted anew.
    for _ in 0..2 {
        let listed = all_exposed(&world).await;
        assert_eq!(
            listed.iter().map(|secret| &*secret.path).collect::<Vec<_>>(),
            ["payments/api", "payments/db"]
        );
        let db = &listed[1];
        assert_eq!((db.versions.as_slice(), db.current, db.key_version), ([1, 2].as_slice(), true, 1));
        assert!(db.exposed_at.is_some());
        let mut holders: Vec<_> = db.holders.iter().map(|holder| (&*holder.actor, holder.version)).collect();
        holders.sort_unstable();
        assert_eq!(holders, [("initial-administrator", 1), ("system:serviceaccount:payments:api", 2)]);
        assert!(listed[0].holders.is_empty(), "nobody was given it");
        until_reencrypted(&world.database).await;
    }

    let first = exposed(&operator, "", 1).await.unwrap();
    assert_eq!((first.secrets[0].path.as_str(), first.next.as_str()), ("payments/api", "payments/api"));
    let second = exposed(&operator, &first.next, 1).await.unwrap();
    assert_eq!(second.secrets[0].path, "payments/db");
    let end = exposed(&operator, &second.next, 1).await.unwrap();
    assert!(end.secrets.is_empty() && end.next.is_empty());
    assert_eq!(exposed(&operator, "", 1001).await.unwrap_err().code(), Code::InvalidArgument);

    // A new version is not exposed, so the secret is done with; a rollback brings it back.
    assert_eq!(put(&operator, "payments/db", "third").await.unwrap(), 3);
    assert_eq!(all_exposed(&world).await.len(), 1);
    let back = RollbackSecretRequest { path: "payments/db".into(), version: 2 };
    operator.secrets().rollback_secret(back).await.unwrap();
    assert_eq!(all_exposed(&world).await[1].versions, [1, 2]);
    // A second compromise reaches only what was written since, and is another reason.
    compromise(&operator, 0).await.unwrap();
    until_reencrypted(&world.database).await;
    assert_eq!(all_exposed(&world).await[1].versions, [1, 2, 3]);
    world.database.check_audit_log();
}

/// Workers pass over what is in quarantine, so that only the read itself can do it.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_of_what_a_compromised_key_wraps_encrypts_it_anew_first() {
    let world = World::start().await.with_payments().await;
    let operator = world.operator();
    put(&operator, "payments/api", "other").await.unwrap();
    world.database.sql(
        "INSERT INTO quarantined_deks SELECT id, keyspace_id, kek_id, kek_version, 'by the test', now() FROM deks",
    );
    let before = ciphertexts(&world.database);
    compromise(&operator, 0).await.unwrap();
    assert_eq!(born(&world.database), "payments/api 1 1 1,payments/db 1 1 1");

    let (workloads, pod) = (world.workloads(&world.server), world.pod("payments", "api", "api-0"));
    let issued = workloads.issue(&pod, &["payments/db", "payments/api"]).await.unwrap();
    assert_eq!(&*issued.secrets[1].fields[0].value, b"other");
    let after = ciphertexts(&world.database);
    for (version, old) in &before {
        assert!(old.iter().zip(&after[version]).all(|(old, new)| old != new), "{version}");
    }
    assert_eq!(born(&world.database), "payments/api 1 2 2,payments/db 1 2 2");
    assert_eq!(world.database.sql("SELECT count(*) FROM quarantined_deks"), "0", "it does open");
    assert_eq!(reencrypted(&world.database), 2);
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_on_all_replicas_read_and_operators_write_while_everything_is_encrypted_anew() {
    let world = World::start().await.with_payments().await;
    let replica = world.second_replica().await;
    let paths = put_many(&world, 2 * BATCH).await;
    let compromised = compromise(&world.operator(), 0).await.unwrap();
    assert_eq!(compromised.payloads, paths.len() as u64 + 1);

    let writer = operator_of(&replica);
    let written = tokio::spawn(async move {
        for number in 0..20 {
            let path = format!("payments/meanwhile-{number}");
            put(&writer, &path, &path).await.unwrap();
            put(&writer, "payments/db", &path).await.unwrap();
        }
    });
    assert_pods_read(&world, &replica, &paths).await;
    assert_pods_read(&world, &world.server, &paths).await;
    written.await.unwrap();
    until_reencrypted(&world.database).await;
    assert_pods_read(&world, &replica, &paths).await;

    let meanwhile = "SELECT count(*) FROM secret_versions v JOIN secrets s ON s.id = v.secret_id
                     WHERE v.exposed_at IS NOT NULL AND (s.path LIKE '%meanwhile%' OR v.version > 1)";
    assert_eq!(world.database.sql(meanwhile), "0", "what was written since is not exposed");
    assert_eq!(reencrypted(&world.database), compromised.payloads, "each once, whoever did it");
    assert_eq!(world.database.sql("SELECT count(*) FROM quarantined_deks"), "0");
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_a_server_killed_while_it_encrypts_anew_goes_on_where_it_stopped() {
    let mut world = World::start().await.with_payments().await;
    let paths = put_many(&world, BATCH + 200).await;
    let gate = Gate::at_rewraps_beyond(&world.database, BATCH);
    gate.close();
    let compromised = compromise(&world.operator(), 0).await.unwrap();
    gate.until_held().await;
    world.server.process.kill();
    gate.open();
    gate.until_idle().await;
    let moved = world.database.sql("SELECT count(*) FROM deks WHERE born_kek_version = 2");
    assert_eq!(moved, BATCH.to_string(), "the first batch stands, the second was cut off whole");

    world.server.restart().await.unwrap();
    world.server.until_serving().await.unwrap();
    assert_pods_read(&world, &world.server, &paths).await;
    until_reencrypted(&world.database).await;
    assert_pods_read(&world, &world.server, &paths).await;
    assert_eq!(reencrypted(&world.database), compromised.payloads, "none twice, none left out");
    world.database.assert_keys_are_in_order();
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_a_server_that_dies_at_any_commit_of_a_compromise_goes_on_after_its_restart() {
    let mut world = World::start().await.with_payments().await;
    let mut active = 1;
    for point in
        ["key.compromise:before", "key.compromise:after", "key.reencrypt:before", "key.reencrypt:after"]
    {
        crash_at(&mut world, Some(point)).await;
        let told = compromise(&world.operator(), 0).await;
        assert!(told.is_err() || point.starts_with("key.reencrypt"), "{point}: {told:?}");
        until("the server to die", async || status(&world.server).await.is_err()).await;
        world.database.assert_keys_are_in_order();
        crash_at(&mut world, None).await;
        if point == "key.compromise:before" {
            assert_eq!(states(&world.database), "1 active", "nothing was done");
            continue;
        }
        active += 1;
        until_reencrypted(&world.database).await;
        assert_eq!(born(&world.database), format!("payments/db 1 {active} {active}"), "{point}");
        assert_eq!(password(&world.operator(), "payments/db", 1).await.unwrap(), "first");
    }
    assert_eq!(states(&world.database), "1 compromised, 2 compromised, 3 compromised, 4 active");
    assert_eq!(reencrypted(&world.database), 3, "each change of a payload is stated, and no other");
    world.database.check_audit_log();
}

async fn crash_at(world: &mut World, point: Option<&str>) {
    world.server.stop();
    world.server.setup_mut().set_variable("KEYFOLD_CRASH_AT", point.map(Into::into));
    world.server.restart().await.unwrap();
    world.server.until_serving().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_two_replicas_that_are_told_at_once_compromise_one_key_each() {
    let world = World::start().await.with_payments().await;
    let replica = world.second_replica().await;
    let operators = [world.operator(), operator_of(&replica)].map(Arc::new);
    let mut calls = JoinSet::new();
    for operator in &operators {
        let operator = Arc::clone(operator);
        calls.spawn(async move { compromise(&operator, 1).await });
    }
    let (done, refused): (Vec<_>, Vec<_>) = calls.join_all().await.into_iter().partition(Result::is_ok);
    assert_eq!((done.len(), refused.len()), (1, 1), "{done:?} {refused:?}");
    assert_eq!(refused[0].as_ref().unwrap_err().code(), Code::FailedPrecondition, "{refused:?}");
    until_reencrypted(&world.database).await;
    assert_eq!(states(&world.database), "1 compromised, 2 active");
    assert_eq!(password(&operators[1], "payments/db", 1).await.unwrap(), "first");
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_does_not_open_goes_into_quarantine_and_stops_no_other() {
    let world = World::start().await.with_payments().await;
    put(&world.operator(), "payments/broken", "x").await.unwrap();
    world.database.sql(
        "UPDATE secret_versions SET payload = set_byte(payload, 100, 255 - get_byte(payload, 100))
         WHERE secret_id = (SELECT id FROM secrets WHERE path = 'payments/broken')",
    );
    compromise(&world.operator(), 0).await.unwrap();
    until_reencrypted(&world.database).await;
    assert_eq!(born(&world.database), "payments/broken 1 1 1,payments/db 1 2 2");
    let quarantined = "SELECT s.path || ' ' || q.kek_version FROM quarantined_deks q
                       JOIN deks d ON d.id = q.dek_id JOIN secrets s ON s.id = d.secret_id";
    assert_eq!(world.database.sql(quarantined), "payments/broken 1");
    assert_eq!(world.database.entries("key.quarantine")[0]["operation"]["deks"], 1);
    let listed: Vec<_> = all_exposed(&world).await.into_iter().map(|secret| secret.path).collect();
    assert_eq!(listed, ["payments/broken", "payments/db"], "it is exposed all the same");
    assert_eq!(password(&world.operator(), "payments/db", 1).await.unwrap(), "first");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_18_a_version_that_no_server_wrote_goes_into_quarantine_and_stops_no_other() {
    let world = World::start().await.with_payments().await;
    put(&world.operator(), "payments/forged", "x").await.unwrap();
    world.database.sql(
        "UPDATE secret_versions SET generation = generation + 1
         WHERE secret_id = (SELECT id FROM secrets WHERE path = 'payments/forged')",
    );
    compromise(&world.operator(), 0).await.unwrap();
    until_reencrypted(&world.database).await;
    assert_eq!(born(&world.database), "payments/db 1 2 2,payments/forged 1 1 1");
    let reason = world.database.sql("SELECT reason FROM quarantined_deks");
    assert!(reason.contains("does not fit its MAC"), "{reason}");
    assert_eq!(password(&world.operator(), "payments/db", 1).await.unwrap(), "first");
}
