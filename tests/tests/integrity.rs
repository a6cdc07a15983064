//! What a writer of Postgres can do: nothing that makes the server give out a value in another place than its own. The
//! envelope binds each blob to its place, so what was moved or edited does not open. Rows that hold no blobs are in
//! integrity_rows.rs.

use keyfold_proto::keyfold::v1::{
    Field, GetSecretRequest, PutSecretRequest, RetryQuarantineRequest, RotateKeyRequest, State,
};
use keyfold_tests::{
    PAYMENTS_SECRETS, World,
    faults::{until, until_state},
};
use serde_json::json;
use tonic::{Code, Status};

const ROLE: &str = "payments-api";
const CORRUPT: &str = "stored data failed its integrity check: see the server's log";

/// Every value that these tests store begins so; none may be in an answer, a file or a log.
const PLANTED: &str = "planted-value";
/// What a cache holds was right when it was read, and is served whatever becomes of its row.
const NO_CACHE: &str = "cache: {secret_bytes: 0}\n";

/// Statements of a writer of Postgres. `A` and `B` are the ids of two secrets of one keyspace with two versions each,
/// `C` of one in another keyspace. Afterwards the current version of `A` must not open.
const TAMPERINGS: [(&str, &str); 17] = [
    (
        "an older version's payload under a newer number",
        "UPDATE secret_versions SET payload = (SELECT payload FROM secret_versions WHERE secret_id = A AND version = 1)
         WHERE secret_id = A AND version = 2",
    ),
    (
        "an older version's payload and key under a newer number",
        "UPDATE secret_versions SET payload = (SELECT payload FROM secret_versions WHERE secret_id = A AND version = 1)
         WHERE secret_id = A AND version = 2;
         UPDATE deks SET wrapped = (SELECT wrapped FROM deks WHERE secret_id = A AND version = 1)
         WHERE secret_id = A AND version = 2",
    ),
    (
        "an older version's payload and whole key row under a newer number",
        "UPDATE secret_versions n SET payload = o.payload, created_at = o.created_at, created_by = o.created_by
         FROM secret_versions o WHERE n.secret_id = A AND n.version = 2 AND o.secret_id = A AND o.version = 1;
         DELETE FROM deks WHERE secret_id = A AND version = 2;
         UPDATE deks SET version = 2 WHERE secret_id = A AND version = 1",
    ),
    (
        "another secret's payload",
        "UPDATE secret_versions SET payload = (SELECT payload FROM secret_versions WHERE secret_id = B AND version = 2)
         WHERE secret_id = A AND version = 2",
    ),
    (
        "another secret's payload and key",
        "UPDATE secret_versions n SET payload = o.payload, created_at = o.created_at FROM secret_versions o
         WHERE n.secret_id = A AND n.version = 2 AND o.secret_id = B AND o.version = 2;
         DELETE FROM deks WHERE secret_id = A AND version = 2;
         UPDATE deks SET secret_id = A WHERE secret_id = B AND version = 2",
    ),
    (
        "the payload and key of a secret of another keyspace",
        "UPDATE secret_versions n SET payload = o.payload, created_at = o.created_at FROM secret_versions o
         WHERE n.secret_id = A AND n.version = 2 AND o.secret_id = C AND o.version = 2;
         DELETE FROM deks WHERE secret_id = A AND version = 2;
         UPDATE deks SET secret_id = A WHERE secret_id = C AND version = 2",
    ),
    (
        "two wrapped keys swapped",
        "UPDATE deks SET wrapped = (SELECT wrapped FROM deks WHERE secret_id = B AND version = 2)
         WHERE secret_id = A AND version = 2",
    ),
    ("another writer's name", "UPDATE secret_versions SET created_by = 'somebody' WHERE secret_id = A"),
    (
        "another time of writing",
        "UPDATE secret_versions SET created_at = created_at + interval '1 microsecond' WHERE secret_id = A",
    ),
    (
        "the paths of two secrets swapped",
        "UPDATE secrets SET path = path || '.old' WHERE id = A;
         UPDATE secrets SET path = (SELECT replace(path, '.old', '') FROM secrets WHERE id = A) WHERE id = B",
    ),
    (
        "the secret moved to another keyspace",
        "UPDATE secrets SET keyspace_id = (SELECT keyspace_id FROM secrets WHERE id = C) WHERE id = A",
    ),
    (
        "the key moved to another keyspace's KEK",
        "UPDATE deks SET kek_id = (SELECT kek_id FROM deks WHERE secret_id = C AND version = 2) WHERE secret_id = A",
    ),
    ("another id of the key", "UPDATE deks SET id = gen_random_uuid() WHERE secret_id = A"),
    (
        "one bit of the payload flipped",
        "UPDATE secret_versions SET payload = set_bit(payload, octet_length(payload) * 8 - 1,
             1 - get_bit(payload, octet_length(payload) * 8 - 1)) WHERE secret_id = A",
    ),
    (
        "one bit of the wrapped key flipped",
        "UPDATE deks SET wrapped = set_bit(wrapped, octet_length(wrapped) * 8 - 1,
             1 - get_bit(wrapped, octet_length(wrapped) * 8 - 1)) WHERE secret_id = A",
    ),
    ("a payload cut short", "UPDATE secret_versions SET payload = substr(payload, 1, 40) WHERE secret_id = A"),
    ("nothing for a payload", "UPDATE secret_versions SET payload = '' WHERE secret_id = A"),
];

#[tokio::test(flavor = "multi_thread")]
async fn attack_18_what_was_moved_or_edited_in_postgres_never_opens() {
    let world = World::configured(NO_CACHE, "").await.with_payments().await;
    world.server.apply("Keyspace", "other", &json!({})).await.unwrap();
    for (n, (what, sql)) in TAMPERINGS.into_iter().enumerate() {
        let [a, b, c] = [format!("payments/a{n}"), format!("payments/b{n}"), format!("other/c{n}")];
        for path in [&a, &b, &c] {
            for version in 1..=2 {
                world.put(path, &[("password", &format!("{PLANTED}-{path}-{version}"))]).await;
            }
        }
        operator_reads(&world, &a).await.unwrap();
        let id = |path: &str| format!("(SELECT id FROM secrets WHERE path = '{path}')");
        let ids = ["A", "B", "C"].into_iter().zip([&a, &b, &c].map(|path| world.database.sql(&id(path))));
        let sql = ids.fold(format!(" {sql} "), |sql, (name, id)| {
            sql.replace(&format!(" {name} "), &format!(" '{id}' "))
                .replace(&format!(" {name};"), &format!(" '{id}';"))
                .replace(&format!(" {name})"), &format!(" '{id}')"))
        });
        world.database.sql(&format!("SET session_replication_role = replica; {sql}"));
        expect_corrupt(what, operator_reads(&world, &a).await);
        expect_corrupt(what, pod_reads(&world, &a).await);
    }
    assert!(!world.logs().contains(PLANTED));
    assert!(world.logs().contains("stored data failed its integrity check"), "the log says more");
    assert_eq!(pod_reads(&world, "payments/db").await.unwrap(), "first", "what was left alone is served");
    world.database.check_audit_log();
}

const NOT_OPENED: &str = "the root key does not open the stored root-wrapping key";

fn expect_corrupt(what: &str, read: Result<String, Status>) {
    let status = match read {
        Ok(value) => panic!("{what}: read {value:?}"),
        Err(status) => status,
    };
    assert_eq!((status.code(), status.message()), (Code::DataLoss, CORRUPT), "{what}");
    assert!(status.details().is_empty() && !format!("{status:?}").contains(PLANTED), "{what}");
}

async fn operator_reads(world: &World, path: &str) -> Result<String, Status> {
    let request = GetSecretRequest { path: path.into(), version: None };
    let found = world.operator().secrets().get_secret(request).await?.into_inner();
    let password = found.fields.iter().find(|field| field.name == "password").expect("a password");
    Ok(String::from_utf8_lossy(&password.value).into_owned())
}

async fn operator_writes(world: &World, path: &str) -> Result<String, Status> {
    let field = Field { name: "password".into(), value: PLANTED.into() };
    let request = PutSecretRequest { path: path.into(), fields: vec![field], expected_version: None };
    let done = world.operator().secrets().put_secret(request).await?.into_inner();
    Ok(done.version.to_string())
}

async fn pod_reads(world: &World, path: &str) -> Result<String, Status> {
    let token = world.token(&world.pod("payments", "api", "api-0"));
    let issued = world.issue(&token.jwt, &world.driver_token(), ROLE, &[(path, false)]).await?;
    let password =
        issued.secrets[0].fields.iter().find(|field| field.name == "password").expect("a password");
    Ok(String::from_utf8_lossy(&password.value).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_12_one_secret_that_does_not_open_refuses_the_whole_volume() {
    let world = World::start().await.with_payments().await;
    world.put("payments/api", &[("key", PLANTED)]).await;
    world.database.sql(
        "UPDATE secret_versions SET created_by = 'somebody'
         WHERE secret_id = (SELECT id FROM secrets WHERE path = 'payments/api')",
    );
    let pod = world.pod("payments", "api", "api-0");
    let both = format!("{PAYMENTS_SECRETS}- path: payments/api\n");
    let refused = world.publish(&pod, ROLE, &both).await.unwrap_err();
    assert_eq!(refused.message(), format!("payments/api-0: {CORRUPT}"));
    assert!(world.driver.mounts().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_18_swapped_kek_rows_do_not_open_after_a_restart() {
    let mut world = World::start().await.with_payments().await;
    world.server.apply("Keyspace", "other", &json!({})).await.unwrap();
    world.database.sql(
        "UPDATE keks k SET wrapped = o.wrapped FROM keks o
         WHERE k.id <> o.id AND k.purpose = 'data' AND o.purpose = 'data'",
    );
    world.server.restart().await.unwrap();
    world.server.until_serving().await.unwrap();
    expect_corrupt("swapped KEKs", operator_reads(&world, "payments/db").await);
    expect_corrupt("swapped KEKs", pod_reads(&world, "payments/db").await);
}

/// The server has both KEKs open: what it remembers of a key must not lift what binds it to its keyspace.
#[tokio::test(flavor = "multi_thread")]
async fn attack_18_a_kek_that_was_moved_to_another_keyspace_serves_neither() {
    let world = World::start().await.with_payments().await;
    for keyspace in ["other", "third"] {
        world.server.apply("Keyspace", keyspace, &json!({})).await.unwrap();
    }
    world.put("other/db", &[("password", PLANTED)]).await;
    let entries = world.database.check_audit_log();
    // Two keys change places, by way of a third keyspace, which has lost its own.
    world.database.sql(
        "SET session_replication_role = replica;
         CREATE TABLE ids AS SELECT o.name, k.id, k.keyspace_id FROM keks k JOIN objects o ON o.id = k.keyspace_id;
         DELETE FROM keks WHERE id = (SELECT id FROM ids WHERE name = 'third');
         UPDATE keks SET keyspace_id = (SELECT keyspace_id FROM ids WHERE name = 'third')
         WHERE id = (SELECT id FROM ids WHERE name = 'payments');
         UPDATE keks SET keyspace_id = (SELECT keyspace_id FROM ids WHERE name = 'payments')
         WHERE id = (SELECT id FROM ids WHERE name = 'other');
         UPDATE keks SET keyspace_id = (SELECT keyspace_id FROM ids WHERE name = 'other')
         WHERE id = (SELECT id FROM ids WHERE name = 'payments')",
    );
    for path in ["payments/db", "other/db"] {
        expect_corrupt("a moved KEK", operator_writes(&world, path).await);
    }
    world.database.sql(
        "SET session_replication_role = replica;
         UPDATE deks d SET kek_id = k.id FROM keks k WHERE k.keyspace_id = d.keyspace_id",
    );
    for path in ["payments/db", "other/db"] {
        expect_corrupt("a moved KEK", operator_reads(&world, path).await);
        expect_corrupt("a moved KEK", operator_writes(&world, path).await);
    }
    expect_corrupt("a moved KEK", pod_reads(&world, "payments/db").await);
    let written = "SELECT count(*) FILTER (WHERE operation = 'secret.put') FROM audit_entries WHERE index >=";
    assert_eq!(world.database.sql(&format!("{written} {entries}")), "0", "nothing was written");
    assert_eq!(world.database.sql("SELECT max(version) FROM secret_versions"), "1");
    assert!(!world.logs().contains(PLANTED));
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_18_a_root_wrapping_key_that_does_not_open_keeps_the_server_sealed() {
    let mut world = World::start().await.with_payments().await;
    world.database.sql(
        "UPDATE root_wrapping_keys SET wrapped = set_bit(wrapped, octet_length(wrapped) * 8 - 1,
             1 - get_bit(wrapped, octet_length(wrapped) * 8 - 1))",
    );
    world.server.restart().await.unwrap();
    until_state(&world.server, State::Sealed, NOT_OPENED).await;
    assert_eq!(operator_reads(&world, "payments/db").await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_18_a_rotation_passes_over_a_key_that_does_not_open_and_loses_nothing() {
    let world = World::start().await.with_payments().await;
    world.put("payments/bad", &[("password", PLANTED)]).await;
    world.put("payments/good", &[("password", "good")]).await;
    let bad = "(SELECT id FROM secrets WHERE path = 'payments/bad')";
    let wrapped = world.database.sql(&format!("SELECT wrapped FROM deks WHERE secret_id = {bad}"));
    world.database.sql(&format!(
        "UPDATE deks SET wrapped = (SELECT wrapped FROM deks WHERE secret_id <> {bad} LIMIT 1) WHERE secret_id = {bad}"
    ));
    let operator = world.operator();
    let rotate = RotateKeyRequest { keyspace: "payments".into(), ..Default::default() };
    operator.keys().rotate_key(rotate).await.unwrap();
    assert_eq!(operator_reads(&world, "payments/db").await.unwrap(), "first");
    assert_eq!(operator_reads(&world, "payments/good").await.unwrap(), "good");
    expect_corrupt("a swapped key", operator_reads(&world, "payments/bad").await);
    let old = "SELECT count(*) FROM deks d JOIN keks k ON k.id = d.kek_id WHERE k.state <> 'active'";
    assert_eq!(world.database.sql(old), "1");
    assert_eq!(world.database.sql("SELECT count(*) FROM quarantined_deks"), "1");

    world.database.sql(&format!(
        "SET session_replication_role = replica; UPDATE deks SET wrapped = '{wrapped}' WHERE secret_id = {bad}"
    ));
    assert_eq!(operator_reads(&world, "payments/bad").await.unwrap(), PLANTED);
    let retry = RetryQuarantineRequest { keyspace: "payments".into() };
    operator.keys().retry_quarantine(retry).await.unwrap();
    until("the key that was mended is moved", async || world.database.sql(old) == "0").await;
    assert_eq!(operator_reads(&world, "payments/bad").await.unwrap(), PLANTED);
    world.database.check_audit_log();
}

/// Everything of a keyspace, as JSON that the other database takes: the two have the same tables.
const KEYSPACE_ROWS: [(&str, &str); 6] = [
    ("objects", "kind = 'Keyspace' AND name = 'payments'"),
    ("keks", "keyspace_id IS NOT NULL"),
    ("secrets", "path = 'payments/db'"),
    ("secret_versions", "true"),
    ("deks", "true"),
    ("secret_labels", "true"),
];

#[tokio::test(flavor = "multi_thread")]
async fn attack_18_one_installation_cannot_read_what_was_copied_from_another() {
    let theirs = World::start().await.with_payments().await;
    let mut own = World::start().await;
    let rwk = "SELECT id FROM root_wrapping_keys";
    for (table, which) in KEYSPACE_ROWS {
        let rows = theirs.database.sql(&format!("SELECT json_agg(t) FROM {table} t WHERE {which}"));
        let rows = rows.replace(&theirs.database.sql(rwk), &own.database.sql(rwk));
        own.database.sql(&format!(
            "INSERT INTO {table} SELECT * FROM json_populate_recordset(NULL::{table}, $rows${rows}$rows$)"
        ));
    }
    // Neither do the rows fit their MACs, nor do all of them come to what was last written.
    let refused = operator_reads(&own, "payments/db").await.unwrap_err();
    assert!(matches!(refused.code(), Code::DataLoss | Code::Unavailable), "{refused:?}");

    // Even with their root key and their root-wrapping key: those belong to their installation.
    let stolen = theirs.database.sql("SELECT json_agg(t) FROM root_wrapping_keys t");
    own.database.sql(&format!(
        "ALTER TABLE keks DROP CONSTRAINT keks_rwk_id_fkey;
         DELETE FROM root_wrapping_keys;
         INSERT INTO root_wrapping_keys
             SELECT * FROM json_populate_recordset(NULL::root_wrapping_keys, $rows${stolen}$rows$);
         UPDATE keks SET rwk_id = ({rwk})"
    ));
    std::fs::copy(theirs.folder.path().join("server/root.key"), own.folder.path().join("server/root.key"))
        .unwrap();
    own.server.restart().await.unwrap();
    until_state(&own.server, State::Sealed, NOT_OPENED).await;
    assert_eq!(operator_reads(&own, "payments/db").await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(operator_reads(&theirs, "payments/db").await.unwrap(), "first");
}
