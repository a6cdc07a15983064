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

/// What a server decided on may have changed since.
#[tokio::test(flavor = "multi_thread")]
async fn entries_are_appended_only_while_all_that_they_rest_on_stands() {
    let world = World::start().await.with_payments().await;
    let size = || world.database.sql("SELECT size FROM audit_head");
    let append = |ids: &str, generations: &str, admin_tokens: &str, revision: &str, generation: &str| {
        format!(
            "SELECT append_audit_entries(
                 now(), '{{secret.issue}}', '{{api-0}}', '{{allowed}}', '{{payments/db}}', '{{1}}', '{{1}}',
                 ARRAY['entry'::bytea], ARRAY[sha256('entry')], '{{NULL}}', ARRAY({ids}), ARRAY({generations}), {admin_tokens},
                 ({revision}), ({generation}))"
        )
    };
    let ids = "SELECT id FROM objects ORDER BY id";
    let generations = "SELECT generation FROM objects ORDER BY id";
    let (none, live) = ("'{}'", "ARRAY(SELECT name FROM admin_tokens)");
    let (revision, generation) =
        ("SELECT revision FROM object_revision", "SELECT generation FROM integrity_head");
    let before = size();
    for stale in [
        append(ids, "SELECT generation + 1 FROM objects ORDER BY id", none, "NULL", "NULL"),
        append("SELECT gen_random_uuid()", "SELECT 1::bigint", none, "NULL", "NULL"),
        append(ids, generations, "'{nobody}'", "NULL", "NULL"),
        append(ids, generations, none, "SELECT revision - 1 FROM object_revision", "NULL"),
        append(ids, generations, none, "NULL", "SELECT generation - 1 FROM integrity_head"),
        format!(
            "BEGIN; UPDATE admin_tokens SET revoked_at = now(); {}; ROLLBACK",
            append(ids, generations, live, "NULL", "NULL")
        ),
        // Here nothing would be seen that was committed while the head's lock was waited for.
        format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ; {}; COMMIT",
            append(ids, generations, live, revision, generation)
        ),
    ] {
        assert_eq!(world.database.sql(&stale), "", "{stale}");
        assert_eq!(size(), before, "{stale}");
    }
    let standing = append(ids, generations, live, revision, generation);
    assert_eq!(world.database.sql(&standing), before);
    assert_eq!(
        world
            .database
            .sql("SELECT a.size - e.index FROM audit_head a, audit_entries e ORDER BY e.index DESC LIMIT 1"),
        "1"
    );
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
