//! What a writer of Postgres can do to the root-wrapping key and to recovery, and one operator alone to the root key: rows
//! 11, 12 and 18 of docs/attacks.md.

use std::{fs, path::Path, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use keyfold::dev::server::Server;
use keyfold_core::{
    entropy::SystemEntropy,
    envelope::root_key_id,
    key::Purpose,
    secret::Key,
    shamir::{Scheme, split},
};
use keyfold_proto::keyfold::v1::{
    ChangeRootRequest, CreateRecoveryRequest, Field, GetRootRequest, GetSecretRequest, PutSecretRequest,
    State,
};
use keyfold_server::keys::{
    keyring::Keyring,
    root::{Custody, CustodyKind, NewRoot},
    rwk::Rwk,
};
use keyfold_tests::{
    Database, World,
    custody::{Keeper, name_recovery_key, unseal},
    faults::{operator_of, until, until_state},
    two_persons::{TwoPersons, asked, sign},
};
use serde_json::json;
use time::OffsetDateTime;
use tonic::{Code, Status};
use uuid::Uuid;

const FOREIGN: &str =
    "integrity: the root-wrapping key in the database does not open the keys that this server held";

async fn get(server: &Server, path: &str) -> Result<String, Status> {
    let request = GetSecretRequest { path: path.into(), version: None };
    let found = operator_of(server).secrets().get_secret(request).await?.into_inner();
    Ok(String::from_utf8(found.fields[0].value.clone()).unwrap())
}

async fn put(server: &Server, path: &str) {
    let fields = vec![Field { name: "password".into(), value: b"own".into() }];
    let request = PutSecretRequest { path: path.into(), fields, expected_version: None };
    operator_of(server).secrets().put_secret(request).await.unwrap();
}

fn hex(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("'\\x{digits}'::bytea")
}

fn uuid(text: &str) -> Uuid {
    text.parse().unwrap()
}

/// A root-wrapping key that a writer of Postgres made, and a recovery key of their own.
struct Forged {
    /// Puts it into the place of the one in use, with made-up material for every key.
    sql: String,
    shares: Vec<String>,
    recovery_key_id: Uuid,
}

impl Forged {
    /// Under that root key. `claimed` is what the row says of the recovery key's id, if not the truth.
    fn new(database: &Database, root: Key, claimed: Option<Uuid>) -> Self {
        let entropy = SystemEntropy;
        let installation = uuid(&database.sql("SELECT id FROM installation"));
        let id = root_key_id(&root);
        let custody = Custody { kind: CustodyKind::File, data: Vec::new() };
        let root = NewRoot { key: root, id, custody, shares: Vec::new() };
        let (row, rwk) = Rwk::make(installation, 2, &root, OffsetDateTime::UNIX_EPOCH, &entropy).unwrap();
        let keyring = Keyring::new(Arc::new(rwk));
        let rwk = keyring.rwk();
        let recovery = Key::generate(&entropy).unwrap();
        let (shares, commitments) = split(&recovery, Scheme::new(2, 2).unwrap(), &entropy).unwrap();
        let kept = rwk.keep_for_recovery(&recovery, &entropy).unwrap();
        let mut sql = format!(
            "INSERT INTO root_wrapping_keys
                 (id, version, root_key_id, wrapped, custody_kind, custody, recovery_wrapped, created_at)
             VALUES ('{}', 2, '{id}', {}, 'file', '', {}, now());",
            row.id,
            hex(&row.wrapped),
            hex(&kept.copy)
        );
        for kek in database
            .sql("SELECT id, keyspace_id, purpose, version FROM keks WHERE wrapped IS NOT NULL")
            .lines()
        {
            let [id, keyspace, purpose, version] = kek.split('|').collect::<Vec<_>>().try_into().unwrap();
            let keyspace = (!keyspace.is_empty()).then(|| uuid(keyspace));
            let purpose = Purpose::parse(purpose).unwrap();
            let mut kek = keyring.new_kek(keyspace, purpose, version.parse().unwrap(), &entropy).unwrap();
            kek.id = uuid(id);
            kek.wrapped = rwk.wrap_kek(&kek, &Key::generate(&entropy).unwrap(), &entropy).unwrap();
            sql += &format!(
                "UPDATE keks SET rwk_id = '{}', wrapped = {} WHERE id = '{id}';",
                row.id,
                hex(&kek.wrapped)
            );
        }
        sql += &format!(
            "UPDATE keks SET rwk_id = '{rwk}' WHERE wrapped IS NULL;
             DELETE FROM recovery_keys;
             INSERT INTO recovery_keys (id, rwk_id, wrapped, commitments, created_at, created_by)
             VALUES ('{id}', '{rwk}', {wrapped}, {commitments}, now(), 'mallory');
             DELETE FROM root_wrapping_keys WHERE id <> '{rwk}';",
            rwk = row.id,
            id = claimed.unwrap_or(kept.recovery_key_id),
            wrapped = hex(&kept.wrapped),
            commitments = hex(&serde_json::to_vec(&commitments).unwrap()),
        );
        let text = |share: &keyfold_core::shamir::Share| {
            String::from_utf8(share.expose_text().expose().to_vec()).unwrap()
        };
        let shares = shares.iter().map(text).collect();
        Self { sql: format!("BEGIN;{sql}COMMIT"), shares, recovery_key_id: kept.recovery_key_id }
    }
}

/// Keeps what the attacker replaces, to put it back.
const KEEP: &str = "CREATE SCHEMA kept;
    CREATE TABLE kept.root_wrapping_keys AS TABLE root_wrapping_keys;
    CREATE TABLE kept.recovery_keys AS TABLE recovery_keys;
    CREATE TABLE kept.keks AS TABLE keks";
const PUT_BACK: &str = "BEGIN;
    SET LOCAL session_replication_role = replica;
    DELETE FROM recovery_keys; DELETE FROM root_wrapping_keys;
    INSERT INTO root_wrapping_keys TABLE kept.root_wrapping_keys;
    INSERT INTO recovery_keys TABLE kept.recovery_keys;
    UPDATE keks SET rwk_id = kept.rwk_id, wrapped = kept.wrapped FROM kept.keks kept WHERE kept.id = keks.id;
    COMMIT";

fn current_root(server: &Server) -> Key {
    let text = fs::read_to_string(server.setup().folder().join("root.key")).unwrap();
    Key::try_from(STANDARD.decode(text.trim()).unwrap().as_slice()).unwrap()
}

/// The keys that a replica caches still open all, so that only the blobs can tell.
#[tokio::test(flavor = "multi_thread")]
async fn attack_18_a_root_wrapping_key_that_does_not_open_the_keys_that_replicas_held_seals_them() {
    let world = World::start().await.with_payments().await;
    let replica = world.second_replica().await;
    let database = &world.database;
    database.sql(KEEP);
    for is_emptied_first in [false, true] {
        // The worst case: he has the root key too.
        let forged = Forged::new(database, current_root(&world.server), None);
        if is_emptied_first {
            database.sql(
                "BEGIN; SET LOCAL session_replication_role = replica; DELETE FROM root_wrapping_keys; COMMIT",
            );
            for server in [&world.server, &replica] {
                until_state(server, State::Sealed, "no root-wrapping key").await;
            }
            database.sql(
                "BEGIN; SET LOCAL session_replication_role = replica;
                 INSERT INTO root_wrapping_keys TABLE kept.root_wrapping_keys; COMMIT",
            );
        }
        database.sql(&forged.sql);
        for server in [&world.server, &replica] {
            until_state(server, State::Sealed, FOREIGN).await;
            assert_eq!(get(server, "payments/db").await.unwrap_err().code(), Code::Unavailable);
            let refused = unseal(server, &forged.shares[0]).await.unwrap_err();
            assert!(refused.message().contains(FOREIGN), "{}", refused.message());
        }
        assert_eq!(
            database.sql("SELECT count(*) FROM root_wrapping_keys WHERE version = 2"),
            "1",
            "nobody moved it"
        );
        database.sql(PUT_BACK);
        for server in [&world.server, &replica] {
            until_state(server, State::Serving, "").await;
            assert_eq!(get(server, "payments/db").await.unwrap(), "first");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_11_recovery_shares_of_a_key_that_no_operator_named_are_refused() {
    let mut world = World::start().await.with_payments().await;
    let request = CreateRecoveryRequest { shares: 2, threshold: 2 };
    let own = operator_of(&world.server).root().create_recovery(request).await.unwrap().into_inner();
    world.database.sql(KEEP);
    let foreign = || Key::generate(&SystemEntropy).unwrap();

    // The configuration names no key: not even the right shares are taken.
    let forged = Forged::new(&world.database, foreign(), None);
    world.database.sql(&forged.sql);
    until_state(&world.server, State::Sealed, "cannot follow").await;
    let refused = unseal(&world.server, &forged.shares[0]).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("recovery.key_id"), "{}", refused.message());
    world.database.sql(PUT_BACK);
    world.server.until_serving().await.unwrap();

    // It names the true one, at a replica that holds keys and at one that starts.
    name_recovery_key(&world.server).await;
    world.server.restart().await.unwrap();
    world.server.until_serving().await.unwrap();
    world.database.sql(&forged.sql);
    for is_started_anew in [false, true] {
        if is_started_anew {
            world.server.restart().await.unwrap();
        }
        until_state(&world.server, State::Sealed, "").await;
        let refused = unseal(&world.server, &forged.shares[0]).await.unwrap_err();
        assert!(refused.message().contains("another recovery key"), "{}", refused.message());
    }
    world.database.sql(PUT_BACK);
    world.server.until_serving().await.unwrap();

    // His row claims to be of the named key, which only shows once the shares are put together.
    let claiming = Forged::new(&world.database, foreign(), Some(uuid(&own.recovery_key_id)));
    world.database.sql(&claiming.sql);
    until_state(&world.server, State::Sealed, "cannot follow").await;
    for share in &claiming.shares {
        assert!(!unseal(&world.server, share).await.unwrap().unsealed);
    }
    until_state(&world.server, State::Sealed, "the shares give another recovery key").await;
    world.database.sql(PUT_BACK);
    world.server.until_serving().await.unwrap();

    // An operator who was talked into naming his key still does not have a replica that holds keys take it.
    let named = Forged::new(&world.database, foreign(), None);
    world.server.setup().configure("recovery", json!({"key_id": named.recovery_key_id})).unwrap();
    world.server.restart().await.unwrap();
    world.server.until_serving().await.unwrap();
    world.database.sql(&named.sql);
    until_state(&world.server, State::Sealed, "cannot follow").await;
    for share in &named.shares {
        assert!(!unseal(&world.server, share).await.unwrap().unsealed);
    }
    until_state(&world.server, State::Sealed, FOREIGN).await;
    assert_eq!(world.database.entries("root.change").len(), 0);
    world.database.sql(PUT_BACK);
    world.server.until_serving().await.unwrap();
    assert_eq!(get(&world.server, "payments/db").await.unwrap(), "first");
}

/// A world that lost its root key, and whose server is sealed with another keeper.
async fn lost(keeper: &Keeper, damage: &str) -> (World, Vec<String>) {
    let mut world = World::start().await.with_payments().await;
    world.server.apply("Keyspace", "shop", &json!({})).await.unwrap();
    put(&world.server, "shop/db").await;
    let request = CreateRecoveryRequest { shares: 2, threshold: 2 };
    let made = operator_of(&world.server).root().create_recovery(request).await.unwrap().into_inner();
    name_recovery_key(&world.server).await;
    world.server.stop();
    keeper.configure(world.server.setup_mut());
    world.database.sql(damage);
    world.server.restart().await.unwrap();
    until_state(&world.server, State::Sealed, "").await;
    (world, made.shares.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_18_one_damaged_key_does_not_keep_recovery_from_serving_all_others() {
    let damage =
        "UPDATE keks SET wrapped = set_byte(wrapped, 110, 255 - get_byte(wrapped, 110)) WHERE keyspace_id =
                      (SELECT id FROM objects WHERE kind = 'Keyspace' AND name = 'shop')";
    let keeper = Keeper::new("file");
    let (mut world, shares) = lost(&keeper, damage).await;
    for share in &shares {
        unseal(&world.server, share).await.unwrap();
    }
    world.server.until_serving().await.unwrap();
    assert_eq!(get(&world.server, "payments/db").await.unwrap(), "first");
    assert_eq!(get(&world.server, "shop/db").await.unwrap_err().code(), Code::DataLoss);
    let root = operator_of(&world.server).root().get_root(GetRootRequest {}).await.unwrap().into_inner();
    assert_eq!(root.rwk_version, 1, "the root key is still the one that was lost");
    assert!(!root.problem.is_empty());
    until("it is told", async || {
        world.logs().contains("no new root key could be put in place: keks.wrapped of")
    })
    .await;
}

/// Files of objects on the token.
fn objects(tokens: &Path) -> usize {
    fs::read_dir(tokens)
        .unwrap()
        .flat_map(|token| fs::read_dir(token.unwrap().path()).unwrap())
        .filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|ext| ext == "object"))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_that_is_tried_again_makes_one_key_on_the_hsm() {
    let keeper = Keeper::new("pkcs11");
    let Keeper::Pkcs11(hsm) = &keeper else { unreachable!() };
    let damage = "CREATE SEQUENCE attempts; GRANT USAGE ON SEQUENCE attempts TO PUBLIC;
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$BEGIN PERFORM nextval('attempts'); RAISE 'out of order'; END$$;
        CREATE TRIGGER refuse BEFORE INSERT ON root_wrapping_keys FOR EACH ROW EXECUTE FUNCTION refuse()";
    let (mut world, shares) = lost(&keeper, damage).await;
    let before = objects(&hsm.tokens());
    for share in &shares {
        unseal(&world.server, share).await.unwrap();
    }
    let again = "SELECT is_called AND last_value > 1 FROM attempts";
    until("it is tried again", async || world.database.sql(again) == "t").await;
    let after = objects(&hsm.tokens());
    world.database.sql("DROP TRIGGER refuse ON root_wrapping_keys");
    world.server.until_serving().await.unwrap();
    assert_eq!((after, objects(&hsm.tokens())), (before + 1, before + 1));
    let root = operator_of(&world.server).root().get_root(GetRootRequest {}).await.unwrap().into_inner();
    assert_eq!((root.custody.as_str(), root.rwk_version), ("pkcs11", 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_12_one_person_alone_has_no_key_made_and_a_signed_change_of_root_is_good_for_one() {
    let mut two = TwoPersons::guarding(&["root.change"]).await;
    let keeper = Keeper::new("pkcs11");
    let Keeper::Pkcs11(hsm) = &keeper else { unreachable!() };
    let server = &mut two.world.server;
    let file = server.setup().folder().join("root.key");
    server.setup_mut().configure("previous_root_key", json!({"file": {"current": file}})).unwrap();
    keeper.configure(server.setup_mut());
    server.restart().await.unwrap();
    server.until_serving().await.unwrap();
    let in_use = || two.world.database.sql("SELECT root_key_id FROM root_wrapping_keys");
    let change = |replaces: &str| ChangeRootRequest {
        custody: "pkcs11".into(),
        replaces_root_key_id: replaces.into(),
    };
    let before = objects(&hsm.tokens());

    let unnamed = two.alice.client().root().change_root(change("")).await.unwrap_err();
    assert_eq!(unnamed.code(), Code::InvalidArgument, "{unnamed:?}");
    assert!(unnamed.message().contains("replaces_root_key_id"), "{}", unnamed.message());
    let first = in_use();
    let made_up = two.alice.client_with(Uuid::max()).root().change_root(change(&first)).await.unwrap_err();
    assert_eq!(made_up.code(), Code::FailedPrecondition, "{made_up:?}");
    let plan = asked(two.alice.client().root().change_root(change(&first)).await);
    assert!(made_up.message().contains("there is no such plan"), "{}", made_up.message());
    let unsigned = two.alice.client_with(plan).root().change_root(change(&first)).await.unwrap_err();
    assert_eq!(unsigned.code(), Code::FailedPrecondition, "{unsigned:?}");
    assert!(unsigned.message().contains("nobody has signed"), "{}", unsigned.message());
    assert_eq!(objects(&hsm.tokens()), before, "the HSM was not asked");

    let second = asked(two.alice.client().root().change_root(change(&first)).await);
    for plan in [plan, second] {
        sign(&two.bob.client(), &two.bobs_key, plan).await.unwrap();
    }
    two.alice.client_with(plan).root().change_root(change(&first)).await.unwrap();
    assert_ne!(in_use(), first);
    let stale = two.alice.client_with(second).root().change_root(change(&first)).await.unwrap_err();
    assert_eq!(stale.code(), Code::FailedPrecondition, "{stale:?}");
    let other = two.alice.client_with(second).root().change_root(change(&in_use())).await.unwrap_err();
    assert_eq!(other.code(), Code::FailedPrecondition, "{other:?}");
    assert!(other.message().contains("for something else"), "{}", other.message());
    assert_eq!(objects(&hsm.tokens()), before + 1);
    let entry = two
        .world
        .database
        .entries("root.change")
        .into_iter()
        .find(|entry| entry["outcome"]["result"] == "allowed");
    assert_eq!(entry.unwrap()["operation"]["replaces"], first.replace('-', ""));
}
