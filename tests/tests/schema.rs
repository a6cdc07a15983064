//! What the database itself holds to, whoever writes to it.

use keyfold::dev::server::Server;
use keyfold_proto::keyfold::v1::State;
use keyfold_tests::{Database, World, faults::until_state};

#[test]
fn every_column_says_whether_it_changes_and_whether_it_is_encrypted() {
    let database = Database::shared();
    let uncommented = database.sql(
        "SELECT c.relname || '.' || a.attname FROM pg_class c
         JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'public'
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
         WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relname <> '_sqlx_migrations'
           AND coalesce(col_description(c.oid, a.attnum), '') !~ '(clear|wrapped|[Ee]ncrypted|hashed)'",
    );
    assert_eq!(uncommented, "", "columns without a comment that says clear, wrapped, encrypted or hashed");
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_entries_cannot_be_changed_or_removed() {
    let world = World::start().await.with_payments().await;
    for change in [
        "UPDATE audit_entries SET actor = 'nobody'",
        "DELETE FROM audit_entries WHERE index = 0",
        "DELETE FROM audit_entries_0",
        "TRUNCATE audit_entries",
        "TRUNCATE audit_entries_0",
        "TRUNCATE audit_entries_default",
    ] {
        let refused = refusal(&world.database, change);
        assert!(refused.contains("are only ever added"), "{change}: {refused}");
    }
    world.database.check_audit_log();
}

/// Otherwise the next entries would overwrite or fork the log, or leave a gap.
#[tokio::test(flavor = "multi_thread")]
async fn the_audit_logs_head_cannot_go_back_or_away() {
    let world = World::start().await.with_payments().await;
    for change in [
        "UPDATE audit_head SET size = size - 1",
        "UPDATE audit_head SET size = 0",
        "DELETE FROM audit_head",
        "TRUNCATE audit_head",
    ] {
        let refused = refusal(&world.database, change);
        assert!(refused.contains("only grow") || refused.contains("only ever added"), "{change}: {refused}");
    }
    world.database.check_audit_log();
}

/// What Postgres says to a change, even of a superuser.
fn refusal(database: &Database, change: &str) -> String {
    database.access.sql(&database.name, change).unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dek_under_a_kek_that_is_not_active_is_refused() {
    let world = World::start().await.with_payments().await;
    let operator = world.operator();
    let keyspace = "payments".to_owned();
    operator
        .keys()
        .rotate_key(keyfold_proto::keyfold::v1::RotateKeyRequest { keyspace, ..Default::default() })
        .await
        .unwrap();
    let refused = refusal(
        &world.database,
        "UPDATE deks SET kek_id = k.id, kek_version = k.version FROM keks k WHERE k.state = 'deactivated'",
    );
    assert!(refused.contains("is not active"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_active_kek_is_refused() {
    let world = World::start().await.with_payments().await;
    let refused = refusal(
        &world.database,
        "INSERT INTO keks (id, keyspace_id, purpose, version, state, rwk_id, wrapped, created_at, generation, mac)
         SELECT gen_random_uuid(), keyspace_id, purpose, 2, 'active', rwk_id, wrapped, created_at, 1, mac FROM keks",
    );
    assert!(refused.contains("keks_one_active"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_on_another_schema_serves_nothing_and_says_what_to_do() {
    let mut world = World::start().await;
    for (change, advice) in [
        ("UPDATE _sqlx_migrations SET version = version + 1000", "run a newer keyfold-server"),
        ("DELETE FROM _sqlx_migrations", "run keyfold-server migrate"),
    ] {
        world.database.sql(change);
        world.server.stop();
        world.server = Server::start(world.server.setup()).await.unwrap();
        let refused =
            world.operator().keys().list_keys(keyfold_proto::keyfold::v1::ListKeysRequest::default()).await;
        let status = refused.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable);
        until_state(&world.server, State::Sealed, advice).await;
    }
}
