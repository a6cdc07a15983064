//! Rows that steer what is read, changed by somebody who can write all of Postgres and whom no trigger stops: row 18 of
//! docs/attacks.md. Each is found, nothing is served by it, and all is well again once the right rows are back.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use keyfold::client::Client;
use keyfold_proto::keyfold::v1::{
    ChangeVersionsRequest, Field, GetSecretRequest, ListKeysRequest, PutSecretRequest,
    RevokeInitialAdministratorRequest, RollbackSecretRequest, RotateKeyRequest, State, WhoAmIRequest,
};
use keyfold_tests::{
    Database, People, World,
    faults::{is_healthy, operator_of, until, until_state},
    two_persons::{TwoPersons, asked, destroy, plan, sign},
};
use serde_json::{Value, json};
use tonic::{Code, Status};

const ROLE: &str = "payments-api";
const DB: &str = "payments/db";

/// A world that looks at all its rows each second. `payments/db` has versions 1 (`first`) to 3 (`third`), of which 1 is
/// hidden and 3 current.
async fn watched() -> World {
    let mut world = World::start().await.with_payments().await;
    configure(&mut world, json!({"scrub_secs": 1})).await;
    world.put(DB, &[("password", "second")]).await;
    world.put(DB, &[("password", "third")]).await;
    let hide = ChangeVersionsRequest { path: DB.into(), versions: vec![1] };
    world.operator().secrets().delete_versions(hide).await.unwrap();
    world
}

async fn configure(world: &mut World, integrity: Value) {
    world.server.setup().configure("integrity", integrity).unwrap();
    world.server.restart().await.unwrap();
    world.server.until_serving().await.unwrap();
}

/// SQL of somebody whom no trigger and no foreign key stops.
fn tamper(database: &Database, sql: &str) {
    database.sql(&format!("SET session_replication_role = replica; {sql}"));
}

/// Keeps a copy of all tables.
fn keep(database: &Database, name: &str) {
    database.sql(&format!(
        "CREATE SCHEMA {name};
         DO $do$ DECLARE t text; BEGIN
             FOR t IN SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
                      AND relkind IN ('r', 'p') AND NOT relispartition AND relname <> '_sqlx_migrations' LOOP
                 EXECUTE format('CREATE TABLE {name}.%I AS TABLE public.%I', t, t);
             END LOOP;
         END $do$"
    ));
}

/// Puts the copies of these tables back; of all, if none is named.
fn put_back(database: &Database, name: &str, tables: &[&str]) {
    let which = match tables {
        [] => "true".to_owned(),
        tables => format!("relname IN ('{}')", tables.join("', '")),
    };
    tamper(
        database,
        &format!(
            "DO $do$ DECLARE t text; BEGIN
                 FOR t IN SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = '{name}'::regnamespace AND {which} LOOP
                     EXECUTE format('DELETE FROM public.%I', t);
                     EXECUTE format('INSERT INTO public.%I SELECT * FROM {name}.%I', t, t);
                 END LOOP;
             END $do$"
        ),
    );
}

async fn pod_reads(world: &World) -> Result<String, Status> {
    let token = world.token(&world.pod("payments", "api", "api-0")).jwt;
    world.issue_with(&token, ROLE, DB).await
}

async fn read(client: &Client, version: Option<u32>) -> Result<String, Status> {
    let request = GetSecretRequest { path: DB.into(), version };
    let found = client.secrets().get_secret(request).await?.into_inner();
    let password = found.fields.iter().find(|field| field.name == "password").expect("a password");
    Ok(String::from_utf8_lossy(&password.value).into_owned())
}

async fn write(client: &Client) -> Result<String, Status> {
    let field = Field { name: "password".into(), value: "written".into() };
    let request = PutSecretRequest { path: DB.into(), fields: vec![field], expected_version: None };
    Ok(client.secrets().put_secret(request).await?.into_inner().version.to_string())
}

async fn rotate(client: &Client, keyspace: &str, purpose: &str) {
    let request =
        RotateKeyRequest { keyspace: keyspace.into(), purpose: purpose.into(), ..Default::default() };
    client.keys().rotate_key(request).await.unwrap();
}

/// What is refused because of what is stored: at once by the row, or by the replica once it has looked at all.
fn assert_fails_closed<T>(what: &str, answer: Result<T, Status>) {
    let Err(status) = answer else { panic!("{what}: it was answered") };
    assert!(matches!(status.code(), Code::DataLoss | Code::Unavailable), "{what}: {status:?}");
    let told = status.message();
    assert!(told.contains("failed its integrity check") || told.contains("integrity: "), "{what}: {told}");
}

/// What somebody changes, and what fails by it at once. The statements see `A`, the id of `payments/db`.
struct Tampering {
    what: &'static str,
    table: &'static str,
    sql: &'static str,
}

const TAMPERINGS: [Tampering; 14] = [
    Tampering {
        what: "a label repointed to an older version",
        table: "secret_labels",
        sql: "UPDATE secret_labels SET version = 2 WHERE secret_id = A AND label = 'current'",
    },
    Tampering {
        what: "the label of another name in its place",
        table: "secret_labels",
        sql: "UPDATE secret_labels l SET version = p.version, generation = p.generation, mac = p.mac
              FROM secret_labels p
              WHERE l.secret_id = A AND l.label = 'current' AND p.secret_id = A AND p.label = 'previous'",
    },
    Tampering {
        what: "the label of another secret in its place",
        table: "secret_labels",
        sql: "UPDATE secret_labels l SET version = p.version, generation = p.generation, mac = p.mac
              FROM secret_labels p
              WHERE l.secret_id = A AND l.label = 'current' AND p.secret_id <> A AND p.label = 'current'",
    },
    Tampering {
        what: "a role's grant widened",
        table: "objects",
        sql: "UPDATE objects SET spec = replace(spec, 'payments/*', '**') WHERE kind = 'AppRole'",
    },
    Tampering {
        what: "a role's binding changed",
        table: "objects",
        sql: "UPDATE objects SET spec = replace(spec, '\"api\"', '\"other\"') WHERE kind = 'AppRole'",
    },
    Tampering {
        what: "a role's generation raised",
        table: "objects",
        sql: "UPDATE objects SET generation = generation + 1 WHERE kind = 'AppRole'",
    },
    Tampering {
        what: "a role that nobody applied",
        table: "objects",
        sql:
            "INSERT INTO objects SELECT gen_random_uuid(), kind, 'mallory', spec, generation, updated_at, mac
              FROM objects WHERE name = 'payments-api'",
    },
    Tampering { what: "a role removed", table: "objects", sql: "DELETE FROM objects WHERE name = 'unused'" },
    Tampering {
        what: "an administrator's token that nobody made",
        table: "admin_tokens",
        sql: "INSERT INTO admin_tokens (id, name, token_hash, created_at, mac)
              SELECT gen_random_uuid(), 'mallory', sha256('mallory'), created_at, mac FROM admin_tokens",
    },
    Tampering {
        what: "the head's sum lowered",
        table: "integrity_head",
        sql: "UPDATE integrity_head SET secrets_sum = secrets_sum - 1",
    },
    Tampering { what: "the head removed", table: "integrity_head", sql: "DELETE FROM integrity_head" },
    Tampering {
        what: "a deactivated key revived",
        table: "keks",
        sql: "UPDATE keks SET state = 'deactivated' WHERE state = 'active' AND purpose = 'data';
              UPDATE keks SET state = 'active', deactivated_at = NULL WHERE purpose = 'data' AND version = 1",
    },
    Tampering {
        what: "a key's row removed",
        table: "keks",
        sql: "DELETE FROM keks WHERE purpose = 'audit-sign'",
    },
    Tampering {
        what: "a hidden version brought back",
        table: "secret_versions",
        sql: "UPDATE secret_versions SET deleted_at = NULL WHERE secret_id = A AND version = 1",
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn attack_18_whatever_row_is_changed_nothing_is_served_by_it_and_all_is_well_once_it_is_back() {
    let mut world = watched().await;
    // What a cache holds was right when it was read, and is served whatever becomes of its row.
    world.server.setup().configure("cache", json!({"secret_bytes": 0})).unwrap();
    configure(&mut world, json!({"scrub_secs": 1})).await;
    world.put("payments/other", &[("password", "other")]).await;
    let bind = json!([{"issuer": "dev", "namespaces": ["x"], "serviceAccounts": ["x"]}]);
    let unused = json!({"bind": bind, "grants": [{"path": "payments/*", "allow": ["read"]}]});
    world.server.apply("AppRole", "unused", &unused).await.unwrap();
    rotate(&world.operator(), "payments", "").await;
    let id = world.database.sql("SELECT id FROM secrets WHERE path = 'payments/db'");
    for (n, Tampering { what, table, sql }) in TAMPERINGS.into_iter().enumerate() {
        until("all is well before", async || pod_reads(&world).await.is_ok()).await;
        let (kept, entries) = (format!("kept_{n}"), world.database.check_audit_log());
        keep(&world.database, &kept);
        tamper(
            &world.database,
            &sql.replace("= A", &format!("= '{id}'")).replace("<> A", &format!("<> '{id}'")),
        );
        if table == "secret_labels" {
            assert_fails_closed(what, pod_reads(&world).await);
        }
        if table == "secret_versions" {
            assert_fails_closed(what, read(&world.operator(), Some(1)).await);
        }
        until_state(&world.server, State::Sealed, "integrity: ").await;
        assert_fails_closed(what, pod_reads(&world).await);
        assert_fails_closed(what, write(&world.operator()).await);
        until("health says so", async || !is_healthy(&world.server).await.unwrap()).await;
        let noted = format!(
            "SELECT count(*) > 0 FROM audit_entries WHERE index >= {entries} AND operation = 'system.integrity-failure'"
        );
        // Equal failures are written down once in ten minutes.
        if n == 0 {
            until("it is in the audit log", async || world.database.sql(&noted) == "t").await;
        }

        put_back(&world.database, &kept, &[table]);
        until_state(&world.server, State::Serving, "").await;
        until("pods have their secrets", async || pod_reads(&world).await.is_ok()).await;
        assert_eq!(pod_reads(&world).await.unwrap(), "third", "{what}");
        assert_eq!(read(&world.operator(), None).await.unwrap(), "third", "{what}");
    }
    world.database.check_audit_log();
}

/// Old rows have old MACs that fit. Nobody asks in between, so nothing but the sums and digests can find them.
#[tokio::test(flavor = "multi_thread")]
async fn attack_18_an_old_table_that_is_put_back_is_found() {
    let world = watched().await;
    let role = json!({
        "bind": [{"issuer": "dev", "namespaces": ["payments"], "serviceAccounts": ["api", "worker"]}],
        "grants": [{"path": "payments/*", "allow": ["read"]}],
    });
    keep(&world.database, "old");
    // Every table changes: a new version, a role that loses a service account, a key that is turned.
    world.server.apply("AppRole", ROLE, &role).await.unwrap();
    world.put(DB, &[("password", "fourth")]).await;
    rotate(&world.operator(), "payments", "").await;
    let deleted = ChangeVersionsRequest { path: DB.into(), versions: vec![2] };
    world.operator().secrets().delete_versions(deleted).await.unwrap();
    keep(&world.database, "new");
    for tables in [
        &["secret_labels"][..],
        &["secret_versions"],
        &["objects"],
        &["keks"],
        &["integrity_head"],
        &["objects", "object_revision"],
        &["secret_labels", "secret_versions", "secrets", "deks", "keks", "objects"],
        &["secret_labels", "secret_versions", "secrets", "deks", "keks", "objects", "integrity_head"],
    ] {
        assert_eq!(pod_reads(&world).await.unwrap(), "fourth", "{tables:?}");
        put_back(&world.database, "old", tables);
        until_state(&world.server, State::Sealed, "integrity: ").await;
        assert_fails_closed("an old table", pod_reads(&world).await);
        put_back(&world.database, "new", tables);
        until_state(&world.server, State::Serving, "").await;
        until("pods have their secrets", async || pod_reads(&world).await.is_ok()).await;
    }
    assert_eq!(pod_reads(&world).await.unwrap(), "fourth");
}

/// Somebody raises a row that nobody reads, so that the sum is right again. That one has no MAC for it.
#[tokio::test(flavor = "multi_thread")]
async fn attack_18_no_other_row_can_make_up_for_an_old_one() {
    let world = watched().await;
    keep(&world.database, "old");
    world.put("payments/unread", &[("password", "unread")]).await;
    let back = RollbackSecretRequest { path: DB.into(), version: 2 };
    world.operator().secrets().rollback_secret(back).await.unwrap();
    keep(&world.database, "new");
    assert_eq!(pod_reads(&world).await.unwrap(), "second");
    tamper(
        &world.database,
        "UPDATE secret_labels n SET version = o.version, generation = o.generation, mac = o.mac
         FROM old.secret_labels o WHERE o.secret_id = n.secret_id AND o.label = n.label;
         UPDATE secret_versions SET generation = generation +
             (SELECT sum(n.generation) FROM new.secret_labels n) - (SELECT sum(l.generation) FROM secret_labels l)
         WHERE secret_id = (SELECT id FROM secrets WHERE path = 'payments/unread')",
    );
    until_state(&world.server, State::Sealed, "integrity: secret_versions").await;
    put_back(&world.database, "new", &["secret_labels", "secret_versions"]);
    until_state(&world.server, State::Serving, "").await;
    assert_eq!(pod_reads(&world).await.unwrap(), "second");
}

/// Changing something must not make what somebody else changed look right.
#[tokio::test(flavor = "multi_thread")]
async fn attack_18_an_honest_change_does_not_cover_up_another() {
    let world = World::start().await.with_payments().await;
    let bind = json!([{"issuer": "dev", "namespaces": ["x"], "serviceAccounts": ["x"]}]);
    let role = json!({"bind": bind, "grants": [{"path": "payments/*", "allow": ["read"]}]});
    world.server.apply("AppRole", "removed", &role).await.unwrap();
    keep(&world.database, "kept");
    // This replica does not hear of it, and its next look at everything is half a minute away.
    tamper(
        &world.database,
        "DELETE FROM objects WHERE name = 'removed'; DELETE FROM keks WHERE purpose = 'audit-sign'",
    );
    let head = world.database.sql("SELECT * FROM integrity_head");
    world.server.apply("AppRole", "another", &role).await.unwrap_err();
    world.server.apply("Keyspace", "another", &json!({})).await.unwrap_err();
    assert_eq!(world.database.sql("SELECT count(*) FROM objects WHERE name = 'another'"), "0");
    assert_eq!(world.database.sql("SELECT * FROM integrity_head"), head);
    put_back(&world.database, "kept", &["objects", "keks"]);
    until("it is mended", async || world.server.apply("AppRole", "another", &role).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_18_an_administrators_token_that_was_revoked_stays_so() {
    let mut world = World::start().await.with_payments().await;
    configure(&mut world, json!({"scrub_secs": 1})).await;
    let people = People::join(&world.server, world.folder.path()).await;
    let bind = json!([{"issuer": "people", "claims": {"sub": ["alice"]}}]);
    world.server.apply("OperatorRole", "alices", &json!({"builtIn": "admin", "bind": bind})).await.unwrap();
    let whoami = async || world.operator().system().who_am_i(WhoAmIRequest {}).await;
    whoami().await.unwrap();
    keep(&world.database, "old");
    let alice = people.operator_named("alice", &[]);
    alice.system().revoke_initial_administrator(RevokeInitialAdministratorRequest {}).await.unwrap();
    keep(&world.database, "new");
    assert_eq!(whoami().await.unwrap_err().code(), Code::Unauthenticated);
    // By hand, and as it was; also so that replicas notice.
    for sql in [
        "UPDATE admin_tokens SET revoked_at = NULL",
        "UPDATE admin_tokens SET revoked_at = NULL; UPDATE object_revision SET revision = revision + 1",
        "DELETE FROM admin_tokens; INSERT INTO admin_tokens SELECT * FROM old.admin_tokens",
        "DELETE FROM admin_tokens; INSERT INTO admin_tokens SELECT * FROM old.admin_tokens;
         UPDATE object_revision SET revision = revision + 1",
    ] {
        tamper(&world.database, sql);
        let deny = async || {
            let status = whoami().await.expect_err("the token was revoked");
            assert!(
                matches!(status.code(), Code::Unauthenticated | Code::DataLoss | Code::Unavailable),
                "{sql}: {status:?}"
            );
        };
        deny().await;
        until_state(&world.server, State::Sealed, "integrity: ").await;
        deny().await;
        put_back(&world.database, "new", &["admin_tokens"]);
        until_state(&world.server, State::Serving, "").await;
        assert_eq!(whoami().await.unwrap_err().code(), Code::Unauthenticated);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_18_an_approval_rule_that_was_taken_away_still_guards() {
    let mut two = TwoPersons::guarding(&["secret.destroy"]).await;
    configure(&mut two.world, json!({"scrub_secs": 1})).await;
    asked(destroy(&two.alice.client(), &[1]).await);
    keep(&two.world.database, "kept");
    for sql in [
        "DELETE FROM objects WHERE kind = 'ApprovalRule'",
        "DELETE FROM objects WHERE kind = 'ApprovalRule'; UPDATE object_revision SET revision = revision + 1",
        "UPDATE objects SET spec = replace(spec, 'secret.destroy', 'key.rotate') WHERE kind = 'ApprovalRule';
         UPDATE object_revision SET revision = revision + 1",
    ] {
        tamper(&two.world.database, sql);
        for _ in 0..3 {
            assert!(destroy(&two.alice.client(), &[1]).await.is_err(), "{sql}");
        }
        until_state(&two.world.server, State::Sealed, "integrity: ").await;
        assert_fails_closed(sql, destroy(&two.alice.client(), &[1]).await);
        put_back(&two.world.database, "kept", &["objects"]);
        until_state(&two.world.server, State::Serving, "").await;
    }
    assert_eq!(two.destroyed(), "0");
    let asked_again = async || {
        destroy(&two.alice.client(), &[1])
            .await
            .is_err_and(|status| status.code() == Code::FailedPrecondition)
    };
    until("the rule guards as before", asked_again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_18_a_plan_is_used_once_whatever_its_row_says() {
    let two = TwoPersons::guarding(&["secret.destroy"]).await;
    let id = two.ask_and_sign(&[1]).await;
    keep(&two.world.database, "signed");
    let again = async || destroy(&two.alice.client_with(id), &[1]).await;
    again().await.unwrap();
    assert_eq!(again().await.unwrap_err().code(), Code::FailedPrecondition, "it was used");
    keep(&two.world.database, "used");
    // By hand the row no longer fits its MAC.
    tamper(&two.world.database, "UPDATE plans SET used_at = NULL");
    assert_fails_closed("a plan unused by hand", again().await);
    assert_fails_closed("reading it", plan(&two.alice.client(), id).await);
    // As it was the row fits its MAC, but the integrity head remembers.
    put_back(&two.world.database, "signed", &["plans"]);
    plan(&two.alice.client(), id).await.unwrap();
    assert_fails_closed("a plan put back", again().await);
    put_back(&two.world.database, "used", &["plans"]);
    assert_eq!(again().await.unwrap_err().code(), Code::FailedPrecondition, "it was used");
    let uses = two.world.database.sql(&format!(
        "SELECT count(*) FROM audit_entries
         WHERE convert_from(entry, 'UTF8')::json #>> '{{approval,plan}}' = '{id}' AND outcome = 'allowed'"
    ));
    assert_eq!(uses, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_18_another_persons_signature_put_on_a_plan_signs_nothing() {
    let two = TwoPersons::guarding(&["secret.destroy"]).await;
    let (signed, unsigned) = (two.ask_and_sign(&[1]).await, two.ask(&[2]).await);
    keep(&two.world.database, "kept");
    tamper(
        &two.world.database,
        &format!(
            "UPDATE plans n SET signed_by = o.signed_by, public_key = o.public_key, signature = o.signature
             FROM plans o WHERE n.id = '{unsigned}' AND o.id = '{signed}'"
        ),
    );
    assert_fails_closed("a moved signature", destroy(&two.alice.client_with(unsigned), &[2]).await);
    put_back(&two.world.database, "kept", &["plans"]);
    sign(&two.bob.client(), &two.bobs_key, unsigned).await.unwrap();
    destroy(&two.alice.client_with(unsigned), &[2]).await.unwrap();
}

/// What the other replica remembers does not help one that starts: what is stored must speak for itself.
#[tokio::test(flavor = "multi_thread")]
async fn attack_18_a_server_that_starts_on_changed_rows_serves_nothing() {
    let mut world = World::start().await.with_payments().await;
    keep(&world.database, "kept");
    for sql in [
        "UPDATE objects SET spec = replace(spec, 'payments/*', '**') WHERE kind = 'AppRole'",
        "DELETE FROM objects WHERE kind = 'AppRole'",
        "UPDATE keks SET compromised_at = created_at WHERE purpose = 'data'",
        "UPDATE integrity_head SET generation = generation + 1",
        "DELETE FROM secret_labels",
        "UPDATE audit_entries SET generation = NULL WHERE index = (SELECT audit_index FROM integrity_head)",
    ] {
        world.server.stop();
        tamper(&world.database, sql);
        world.server.restart().await.unwrap();
        until_state(&world.server, State::Sealed, "integrity: ").await;
        assert!(pod_reads(&world).await.is_err(), "{sql}");
        assert!(!is_healthy(&world.server).await.unwrap());
        world.server.stop();
        put_back(&world.database, "kept", &[]);
        world.server.restart().await.unwrap();
        world.server.until_serving().await.unwrap();
        assert_eq!(pod_reads(&world).await.unwrap(), "first");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_18_a_whole_database_that_went_back_is_not_served_by_who_has_seen_it_newer() {
    let world = World::start().await.with_payments().await;
    let second = world.second_replica().await;
    keep(&world.database, "old");
    world.put(DB, &[("password", "second")]).await;
    until("both have seen it", async || {
        let both = [operator_of(&world.server), operator_of(&second)];
        for client in &both {
            if read(client, None).await.ok().as_deref() != Some("second") {
                return false;
            }
        }
        true
    })
    .await;
    keep(&world.database, "new");
    put_back(&world.database, "old", &[]);
    for server in [&world.server, &second] {
        until_state(server, State::Sealed, "integrity: the database is older than this server has seen it")
            .await;
        assert_fails_closed("an old database", read(&operator_of(server), None).await);
    }
    // The newer one again, after all: the failure's own entry is the last that the old one has.
    put_back(&world.database, "new", &[]);
    for server in [&world.server, &second] {
        until_state(server, State::Serving, "").await;
        assert_eq!(read(&operator_of(server), None).await.unwrap(), "second");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_18_a_database_older_than_the_pin_is_refused_at_the_start_unless_an_operator_takes_it() {
    let mut world = World::start().await.with_payments().await;
    let pin = world.folder.path().join("server/pin.json");
    configure(&mut world, json!({"scrub_secs": 1, "pin_file": pin})).await;
    keep(&world.database, "old");
    world.put(DB, &[("password", "second")]).await;
    let pinned = || {
        let pin: Value = serde_json::from_slice(&fs::read(&pin).unwrap_or_default()).unwrap_or_default();
        pin["audit_entries"].as_i64().unwrap_or_default().to_string()
    };
    let size = || world.database.sql("SELECT size FROM audit_head");
    until("the newest state is pinned", async || pinned() == size()).await;
    let newest = size();
    world.server.stop();
    put_back(&world.database, "old", &[]);

    // Without the pin nothing could tell that it is old; with it nothing is served, however often it starts.
    const WHY: &str = "integrity: pin file: the database is older than this server has seen it";
    for _ in 0..2 {
        world.server.restart().await.unwrap();
        until_state(&world.server, State::Sealed, WHY).await;
        assert_fails_closed("an old database", pod_reads(&world).await);
    }
    assert_eq!(pinned(), newest, "the pin stands");

    world.server.stop();
    let setup = world.server.setup().clone();
    let accepting = keyfold::dev::server::Server::start_with(&setup, &["serve", "--accept-older-database"]);
    world.server = accepting.await.unwrap();
    world.server.until_serving().await.unwrap();
    assert_eq!(pod_reads(&world).await.unwrap(), "first");
    let accepted = world.audit().await;
    let accepted = accepted.iter().find(|entry| entry["operation"]["name"] == "system.accept-older-database");
    let entry = accepted.expect("it is in the audit log");
    assert_eq!(entry["operation"]["pinned_entries"].to_string(), newest);
    assert_eq!(entry["actor"]["name"], "keyfold-server");
    until("the older state is pinned", async || pinned() == size()).await;
    world.server.restart().await.unwrap();
    world.server.until_serving().await.unwrap();
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_18_a_log_that_went_another_way_than_the_pinned_one_is_refused() {
    let mut world = World::start().await.with_payments().await;
    let pin = world.folder.path().join("server/pin.json");
    configure(&mut world, json!({"pin_file": pin})).await;
    until("it is pinned", async || pin.is_file()).await;
    world.server.stop();
    let mut held: Value = serde_json::from_slice(&fs::read(&pin).unwrap()).unwrap();
    let right = held.clone();
    held["leaf_hash"] = json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    let mut foreign = right.clone();
    foreign["mac"] = json!("AAAAAQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
    for (pin_text, why) in [
        (foreign.to_string(), "none of the row-mac keys in the database has made its MAC"),
        (held.to_string(), "is not the one that this server has seen"),
        ("{}".to_owned(), "missing field"),
        (
            json!({"installation": uuid::Uuid::nil(), "generation": 1, "audit_entries": 1, "leaf_hash": ""})
                .to_string(),
            "of another installation",
        ),
    ] {
        fs::write(&pin, pin_text).unwrap();
        world.server.restart().await.unwrap();
        until_state(&world.server, State::Sealed, why).await;
        assert_fails_closed(why, pod_reads(&world).await);
    }
    fs::write(&pin, right.to_string()).unwrap();
    world.server.restart().await.unwrap();
    world.server.until_serving().await.unwrap();
}

/// No pin file: what was seen is only in memory. As many entries as before, and then more than ever.
#[tokio::test(flavor = "multi_thread")]
async fn attack_18_a_log_whose_last_entries_were_replaced_is_not_served_by_who_has_seen_them() {
    let world = watched().await;
    // Reads change no guarded row, so that the integrity head does not tell.
    for _ in 0..3 {
        pod_reads(&world).await.unwrap();
    }
    let size = || world.database.sql("SELECT size FROM audit_head").parse::<i64>().unwrap();
    // The last entries are looked at each second.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let seen = size();
    keep(&world.database, "kept");
    let forge = format!(
        "UPDATE audit_entries n SET entry = o.entry, leaf_hash = o.leaf_hash, at = o.at, operation = o.operation,
                actor = o.actor, outcome = o.outcome, paths = o.paths
         FROM audit_entries o WHERE n.index >= {} AND o.index = 0",
        seen - 2
    );
    tamper(&world.database, &forge);
    let why = "integrity: the database is not the one that this server has seen";
    until_state(&world.server, State::Sealed, why).await;
    assert_fails_closed("a forged log", pod_reads(&world).await);
    let noted = format!(
        "SELECT count(*) > 0 FROM audit_entries WHERE index >= {seen} AND operation = 'system.integrity-failure'"
    );
    until("it is in the audit log", async || world.database.sql(&noted) == "t").await;
    assert!(size() > seen, "the log has grown beyond what was seen");
    // A look at all finds it each time.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    until_state(&world.server, State::Sealed, why).await;

    put_back(&world.database, "kept", &["audit_entries", "audit_head"]);
    let mut world = world;
    world.server.restart().await.unwrap();
    world.server.until_serving().await.unwrap();
    assert_eq!(pod_reads(&world).await.unwrap(), "third");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_18_a_key_cannot_be_made_older_nor_anothers_wish_to_destroy_it_forged() {
    let world = watched().await;
    rotate(&world.operator(), "payments", "").await;
    keep(&world.database, "kept");
    for sql in [
        "UPDATE keks SET activated_at = activated_at - interval '1 year' WHERE state = 'active' AND purpose = 'data'",
        "UPDATE keks SET created_at = created_at - interval '1 year' WHERE state = 'active' AND purpose = 'data'",
        "UPDATE keks SET deactivated_at = deactivated_at - interval '1 year' WHERE state = 'deactivated'",
        "UPDATE keks SET destroy_asked_by = 'mallory' WHERE purpose = 'data'",
        "UPDATE keks SET destroy_asked_at = now() WHERE purpose = 'data'",
    ] {
        tamper(&world.database, sql);
        until_state(&world.server, State::Sealed, "integrity: keks").await;
        put_back(&world.database, "kept", &["keks"]);
        until_state(&world.server, State::Serving, "").await;
    }
    assert_eq!(world.database.sql("SELECT max(version) FROM keks WHERE purpose = 'data'"), "2");
}

/// The next look at everything is half a minute away.
#[tokio::test(flavor = "multi_thread")]
async fn attack_18_keys_that_were_put_back_are_found_when_keys_are_taken_on() {
    let mut world = World::start().await.with_payments().await;
    keep(&world.database, "old");
    rotate(&world.operator(), "payments", "").await;
    let settled = "SELECT count(*) = 0 FROM deks d JOIN keks k ON k.id = d.kek_id WHERE k.state <> 'active'";
    until("the turn is done", async || world.database.sql(settled) == "t").await;
    configure(&mut world, json!({"scrub_secs": 3600})).await;
    keep(&world.database, "new");
    put_back(&world.database, "old", &["keks"]);
    world.database.sql("UPDATE key_epoch SET epoch = epoch + 1");
    until_state(&world.server, State::Sealed, "integrity: keks").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_is_counted_by_its_table_and_written_down_once() {
    let world = watched().await;
    let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut world = world;
    world.server.setup().configure("metrics", json!({"listen": metrics})).unwrap();
    configure(&mut world, json!({"scrub_secs": 1})).await;
    let count = || {
        let mut stream = TcpStream::connect(metrics).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let line = answer
            .lines()
            .find(|line| line.starts_with("keyfold_integrity_failures_total{table=\"secret_labels\"}"));
        line.and_then(|line| line.split(' ').next_back()?.parse::<u64>().ok()).unwrap_or_default()
    };
    assert_eq!(count(), 0);
    tamper(&world.database, "UPDATE secret_labels SET version = 2 WHERE label = 'current'");
    until("it is counted", async || count() >= 3).await;
    let noted = "SELECT count(*) FROM audit_entries WHERE operation = 'system.integrity-failure'";
    until("it is written down", async || world.database.sql(noted) == "1").await;
    let before = count();
    until("it is found again", async || count() > before).await;
    assert_eq!(world.database.sql(noted), "1", "once");
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turned_row_mac_key_takes_over_every_row() {
    let world = watched().await;
    let tables = ["objects", "admin_tokens", "keks", "integrity_head", "secret_labels", "secret_versions"];
    let versions = || {
        let macs = tables.map(|table| format!("SELECT mac FROM {table}")).join(" UNION ALL ");
        world
            .database
            .sql(&format!("SELECT DISTINCT encode(substr(mac, 1, 4), 'hex') FROM ({macs}) AS m ORDER BY 1"))
    };
    assert_eq!(versions(), "00000001");
    let generations = "SELECT generation, secrets_sum FROM integrity_head";
    rotate(&world.operator(), "", "row-mac").await;
    until("every row has a MAC by the new key", async || versions() == "00000002").await;
    let settled = world.database.sql(generations);
    assert_eq!(pod_reads(&world).await.unwrap(), "third");
    write(&world.operator()).await.unwrap();
    assert_ne!(world.database.sql(generations), settled, "changes go on");
    let keys = world.operator().keys().list_keys(ListKeysRequest::default()).await.unwrap().into_inner();
    assert_eq!(keys.keys.iter().filter(|key| key.purpose == "row-mac").count(), 2);
    let mut world = world;
    world.server.restart().await.unwrap();
    world.server.until_serving().await.unwrap();
    assert_eq!(pod_reads(&world).await.unwrap(), "written");
    world.database.check_audit_log();
}
