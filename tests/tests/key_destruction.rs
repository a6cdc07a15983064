//! Destroying keys: never one that something still needs, with a certificate that anybody can check, and for good.

use keyfold::client::Client;
use keyfold_core::{
    key::{CheckName, certificate},
    object::PublicKey,
};
use keyfold_proto::keyfold::v1::{
    CancelKeyDestructionRequest, CompromiseKeyRequest, GetSecretRequest, ListCertificatesRequest,
    ListCertificatesResponse, RotateKeyRequest, ScheduleKeyDestructionRequest,
    ScheduleKeyDestructionResponse,
};
use keyfold_tests::{
    Database, World,
    faults::{Gate, status, until},
};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

async fn schedule(
    operator: &Client,
    version: u32,
    delay_seconds: Option<u64>,
) -> Result<ScheduleKeyDestructionResponse, Status> {
    let request = ScheduleKeyDestructionRequest {
        keyspace: "payments".into(),
        version,
        delay_seconds,
        ..Default::default()
    };
    Ok(operator.keys().schedule_key_destruction(request).await?.into_inner())
}

async fn cancel(operator: &Client, version: u32) -> Result<String, Status> {
    let request = CancelKeyDestructionRequest { keyspace: "payments".into(), version, ..Default::default() };
    Ok(operator.keys().cancel_key_destruction(request).await?.into_inner().state)
}

async fn certificates(operator: &Client) -> ListCertificatesResponse {
    let request = ListCertificatesRequest { keyspace: "payments".into(), version: 0 };
    operator.keys().list_certificates(request).await.unwrap().into_inner()
}

async fn rotate(world: &World, no_wait: bool) {
    let request = RotateKeyRequest { keyspace: "payments".into(), no_wait, ..Default::default() };
    world.operator().keys().rotate_key(request).await.unwrap();
}

async fn read(operator: &Client) -> Result<String, Status> {
    let request = GetSecretRequest { path: "payments/db".into(), version: None };
    let found = operator.secrets().get_secret(request).await?.into_inner();
    let field = found.fields.into_iter().find(|field| field.name == "password").expect("a password");
    Ok(String::from_utf8_lossy(&field.value).into_owned())
}

fn state(database: &Database, version: u32) -> String {
    database.sql(&format!(
        "SELECT k.state FROM keks k JOIN objects o ON o.id = k.keyspace_id
         WHERE o.name = 'payments' AND k.version = {version}"
    ))
}

async fn until_destroyed(database: &Database, version: u32) {
    until("the key to be destroyed", async || state(database, version) == "destroyed").await;
}

/// Waits until the server has tried to destroy a key that it must keep, and says why.
async fn until_kept(world: &World, why: &str) {
    until("the server to keep the key", async || world.logs().contains(why)).await;
    assert_eq!(state(&world.database, 1), "destroy-scheduled");
    assert_eq!(world.database.sql("SELECT count(*) FROM keks WHERE wrapped IS NULL"), "0");
    assert_eq!(world.database.sql("SELECT count(*) FROM destruction_certificates"), "0");
    assert!(world.database.entries("key.destroy").is_empty());
}

/// What Postgres says to a statement that it must refuse.
fn refused_by_postgres(database: &Database, sql: &str) -> String {
    match database.access.sql(&database.name, sql) {
        Ok(done) => panic!("{sql}: {done}"),
        Err(failure) => failure.to_string(),
    }
}

/// A transaction of somebody else, open until it is told how to end.
struct OpenTransaction<'a> {
    database: &'a Database,
    session: JoinHandle<Result<String, String>>,
}

impl<'a> OpenTransaction<'a> {
    async fn begin(database: &'a Database, statements: &str) -> Self {
        database.sql("CREATE TABLE latch (commits boolean)");
        let sql = format!(
            "DO $$ BEGIN
                 {statements};
                 WHILE NOT EXISTS (SELECT 1 FROM latch) LOOP PERFORM pg_sleep(0.01); END LOOP;
                 IF NOT (SELECT commits FROM latch) THEN RAISE EXCEPTION 'rolled back'; END IF;
             END $$"
        );
        let (access, name) = (database.access.clone(), database.name.clone());
        let session = tokio::task::spawn_blocking(move || {
            access.sql(&name, &sql).map_err(|failure| failure.to_string())
        });
        let waiting = "SELECT count(*) FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event = 'PgSleep'";
        until("the transaction to be open", async || session.is_finished() || database.sql(waiting) == "1")
            .await;
        assert!(!session.is_finished(), "{:?}", session.await);
        Self { database, session }
    }

    async fn end(self, commits: bool) {
        self.database.sql(&format!("INSERT INTO latch VALUES ({commits})"));
        let ended = self.session.await.unwrap();
        assert_eq!(ended.is_ok(), commits, "{ended:?}");
    }
}

const KEY_1: &str = "(SELECT k.id FROM keks k JOIN objects o ON o.id = k.keyspace_id
                      WHERE o.name = 'payments' AND k.version = 1)";

#[tokio::test(flavor = "multi_thread")]
async fn a_destroyed_key_leaves_a_certificate_that_anybody_can_verify() {
    let world = World::start().await.with_payments().await;
    let operator = world.operator();
    rotate(&world, false).await;
    let wrapped_sha256 =
        world.database.sql(&format!("SELECT encode(sha256(wrapped), 'hex') FROM keks WHERE id = {KEY_1}"));
    let scheduled = schedule(&operator, 1, Some(1)).await.unwrap();
    assert!(
        scheduled.does_not_reach.contains("backups") && scheduled.does_not_reach.contains("write-ahead log")
    );
    until_destroyed(&world.database, 1).await;
    assert_eq!(world.database.sql(&format!("SELECT wrapped IS NULL FROM keks WHERE id = {KEY_1}")), "t");

    let listed = certificates(&operator).await;
    let [stored] = listed.certificates.as_slice() else { panic!("{listed:?}") };
    let key = PublicKey::try_from(listed.public_keys[0].clone()).unwrap();
    let proof = certificate::verify(&stored.certificate, &key).unwrap();
    assert_eq!((proof.keyspace.as_deref(), &*proof.purpose, proof.version), (Some("payments"), "data", 1));
    assert_eq!(proof.kek.to_string(), world.database.sql(&format!("SELECT {KEY_1}")));
    assert_eq!(proof.wrapped_sha256, wrapped_sha256);
    assert_eq!(proof.requested_by, "initial-administrator");
    assert!(proof.requested_at < proof.destroyed_at && proof.deactivated_at < Some(proof.requested_at));
    assert_eq!(proof.does_not_reach, scheduled.does_not_reach);
    let found: Vec<_> = proof.checks.iter().map(|check| (check.name, &*check.found)).collect();
    assert_eq!(found[1].0, CheckName::References);
    assert!(found[1].1.contains("deks") && found[1].1.contains("ca_certificates"), "{found:?}");
    assert!(found[2].1.contains("deks.wrapped"), "{found:?}");
    assert!(found[4].1.contains("refused the removal of a key that is in use"), "{found:?}");

    let entry = &world.database.entries("key.destroy")[0];
    assert_eq!(entry["operation"]["certificate"], stored.certificate, "the log has it too");
    assert_eq!(entry["actor"]["kind"], "server");
    for at in (0..stored.certificate.len()).step_by(7) {
        let mut flipped = stored.certificate.clone().into_bytes();
        flipped[at] ^= 1;
        let verified = String::from_utf8(flipped).map(|text| certificate::verify(&text, &key));
        assert!(!matches!(verified, Ok(Ok(_))), "byte {at}");
    }
    let other = PublicKey([7; 32]);
    assert!(certificate::verify(&stored.certificate, &other).is_err());
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_destruction_everything_opens_and_versions_go_on() {
    let mut world = World::start().await.with_payments().await;
    rotate(&world, false).await;
    schedule(&world.operator(), 1, Some(1)).await.unwrap();
    until_destroyed(&world.database, 1).await;
    assert_eq!(read(&world.operator()).await.unwrap(), "first");
    rotate(&world, false).await;
    assert_eq!(state(&world.database, 3), "active");
    world.server.restart().await.unwrap();
    world.server.until_serving().await.unwrap();
    assert_eq!(read(&world.operator()).await.unwrap(), "first");
    for refused in [
        schedule(&world.operator(), 1, None).await.map(drop).unwrap_err(),
        cancel(&world.operator(), 1).await.map(drop).unwrap_err(),
    ] {
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        assert!(refused.message().contains("its material is gone for good"), "{refused:?}");
    }
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destruction_can_be_called_off_until_it_is_done() {
    let world = World::start().await.with_payments().await;
    let operator = world.operator();
    let active = schedule(&operator, 1, None).await.unwrap_err();
    assert_eq!(active.code(), Code::FailedPrecondition, "{active:?}");
    assert!(active.message().contains("rotate the key first"), "{active:?}");
    rotate(&world, false).await;
    for (delay_seconds, code) in [(Some(0), Code::InvalidArgument), (Some(u64::MAX), Code::InvalidArgument)] {
        assert_eq!(schedule(&operator, 1, delay_seconds).await.unwrap_err().code(), code);
    }
    assert_eq!(schedule(&operator, 9, None).await.unwrap_err().code(), Code::NotFound);

    schedule(&operator, 1, None).await.unwrap();
    assert_eq!(state(&world.database, 1), "destroy-scheduled");
    let days = "SELECT round(extract(epoch FROM destroy_at - destroy_asked_at) / 86400) FROM keks WHERE version = 1 AND destroy_at IS NOT NULL";
    assert_eq!(world.database.sql(days), "7", "seven days, unless the keyspace's policy says otherwise");
    assert_eq!(cancel(&operator, 1).await.unwrap(), "deactivated");
    let again = cancel(&operator, 1).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition, "{again:?}");

    let compromise = CompromiseKeyRequest { keyspace: "payments".into(), version: 1 };
    operator.keys().compromise_key(compromise).await.unwrap();
    schedule(&operator, 1, None).await.unwrap();
    assert_eq!(cancel(&operator, 1).await.unwrap(), "compromised", "it does not become trusted again");
    let entries = world.database.entries("key.schedule-destruction");
    assert!(entries.last().unwrap()["operation"]["destroy_at"].is_string());
    assert_eq!(world.database.entries("key.cancel-destruction").len(), 3);
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_22_a_key_that_rows_still_need_is_not_even_scheduled() {
    let world = World::start().await.with_payments().await;
    let gate = Gate::at_rewraps_beyond(&world.database, 0);
    gate.close();
    rotate(&world, true).await;
    gate.until_held().await;
    let refused = schedule(&world.operator(), 1, Some(1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("is still needed by 1 of deks, 1 of deks.wrapped"), "{refused:?}");
    assert_eq!(state(&world.database, 1), "deactivated");
    gate.open();
    until("the rewrap to end", async || {
        world.database.sql("SELECT count(*) FROM deks WHERE kek_version = 1") == "0"
    })
    .await;
    schedule(&world.operator(), 1, Some(1)).await.unwrap();
    until_destroyed(&world.database, 1).await;
    assert_eq!(read(&world.operator()).await.unwrap(), "first");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_22_a_key_that_a_quarantined_row_needs_is_not_destroyed() {
    let world = World::start().await.with_payments().await;
    world.put("payments/api", &[("key", "x")]).await;
    world.database.sql(
        "UPDATE deks SET wrapped = set_byte(wrapped, 100, 255 - get_byte(wrapped, 100))
         WHERE secret_id = (SELECT id FROM secrets WHERE path = 'payments/api')",
    );
    rotate(&world, true).await;
    let quarantined = "SELECT count(*) FROM quarantined_deks";
    until("the row to be in quarantine", async || world.database.sql(quarantined) == "1").await;
    let refused = schedule(&world.operator(), 1, Some(1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("1 data keys in quarantine"), "{refused:?}");
    assert_eq!(state(&world.database, 1), "deactivated");
    assert_eq!(read(&world.operator()).await.unwrap(), "first");
}

/// A row comes back after the day was set, such as out of a backup.
#[tokio::test(flavor = "multi_thread")]
async fn attack_22_a_row_that_was_put_back_under_a_doomed_key_opens_nothing_and_keeps_the_key() {
    let world = World::start().await.with_payments().await;
    world.put("payments/api", &[("key", "x")]).await;
    world.database.sql("CREATE TABLE backup AS SELECT * FROM deks");
    rotate(&world, false).await;
    schedule(&world.operator(), 1, Some(3)).await.unwrap();
    let (database, operator) = (&world.database, world.operator());
    database.sql(
        "ALTER TABLE deks DISABLE TRIGGER deks_moved_under_active_kek;
         UPDATE deks d SET kek_id = b.kek_id, kek_version = b.kek_version, wrapped = b.wrapped FROM backup b
         WHERE b.id = d.id AND d.secret_id = (SELECT id FROM secrets WHERE path = 'payments/db');
         ALTER TABLE deks ENABLE TRIGGER deks_moved_under_active_kek",
    );
    // At once, also where the key is still in memory.
    assert_eq!(read(&operator).await.unwrap_err().code(), Code::DataLoss);
    until_kept(&world, "rows refer to it: deks 1").await;
    assert_eq!(cancel(&operator, 1).await.unwrap(), "deactivated");
    assert_eq!(read(&operator).await.unwrap(), "first", "nothing is lost");
    until("the row to be rewrapped", async || {
        database.sql("SELECT count(*) FROM deks WHERE kek_version = 1") == "0"
    })
    .await;
}

/// The row names another key, its blob does not.
#[tokio::test(flavor = "multi_thread")]
async fn attack_22_a_blob_whose_header_names_the_key_keeps_it() {
    let world = World::start().await.with_payments().await;
    world.database.sql("CREATE TABLE backup AS SELECT * FROM deks");
    rotate(&world, false).await;
    schedule(&world.operator(), 1, Some(3)).await.unwrap();
    world.database.sql("UPDATE deks d SET wrapped = b.wrapped FROM backup b WHERE b.id = d.id");
    until_kept(&world, "the headers of blobs name it: deks.wrapped 1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_22_a_key_that_an_open_transaction_needs_waits_for_its_end() {
    let world = World::start().await.with_payments().await;
    rotate(&world, false).await;
    schedule(&world.operator(), 1, Some(2)).await.unwrap();
    // A DEK under it, past the trigger that refuses that.
    world.database.sql("ALTER TABLE deks DISABLE TRIGGER deks_inserted_under_active_kek");
    let open = OpenTransaction::begin(
        &world.database,
        "INSERT INTO secret_versions (secret_id, version, payload, created_at, created_by, generation, mac)
             SELECT secret_id, 99, payload, created_at, created_by, generation, mac FROM secret_versions;
         INSERT INTO deks (id, secret_id, version, keyspace_id, kek_id, kek_version, born_kek_version, wrapped)
             SELECT gen_random_uuid(), d.secret_id, 99, d.keyspace_id, k.id, k.version, k.version, d.wrapped
             FROM deks d JOIN keks k ON k.keyspace_id = d.keyspace_id AND k.version = 1",
    )
    .await;
    until_kept(&world, "an open transaction may hold a reference to a key").await;
    open.end(false).await;
    until_destroyed(&world.database, 1).await;
    assert_eq!(read(&world.operator()).await.unwrap(), "first");
}

/// The server has begun its transaction, and waits, when the other one commits: it must see what that has left.
#[tokio::test(flavor = "multi_thread")]
async fn attack_22_a_reference_that_is_committed_while_the_destruction_waits_keeps_the_key() {
    let world = World::start().await.with_payments().await;
    world.database.sql(
        "CREATE TABLE unlisted (kek_id uuid REFERENCES keks (id) ON DELETE RESTRICT); GRANT SELECT ON unlisted TO PUBLIC",
    );
    rotate(&world, false).await;
    schedule(&world.operator(), 1, Some(2)).await.unwrap();
    let open =
        OpenTransaction::begin(&world.database, &format!("INSERT INTO unlisted VALUES ({KEY_1})")).await;
    let waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'keks'::regclass AND NOT granted AND mode = 'ExclusiveLock'";
    until("the destruction to wait", async || world.database.sql(waiting) == "1").await;
    open.end(true).await;
    until_kept(&world, "rows refer to it: unlisted 1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_22_a_key_that_an_unlisted_table_needs_is_not_destroyed() {
    let world = World::start().await.with_payments().await;
    rotate(&world, false).await;
    world.database.sql(&format!(
        "CREATE TABLE unlisted (keyspace_id uuid, purpose text, version integer, copy bytea,
             FOREIGN KEY (keyspace_id, purpose, version) REFERENCES keks (keyspace_id, purpose, version) ON DELETE RESTRICT);
         INSERT INTO unlisted SELECT keyspace_id, purpose, version, NULL FROM keks WHERE id = {KEY_1}"
    ));
    let refused = schedule(&world.operator(), 1, Some(1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(
        refused.message().contains("table unlisted refers to keys, and the server may not read it"),
        "{refused:?}"
    );
    world.database.sql("GRANT SELECT ON unlisted TO PUBLIC");
    let refused = schedule(&world.operator(), 1, Some(1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("still needed by 1 of unlisted"), "{refused:?}");
    // Without that reference, a copy of something that the key wraps.
    world.database.sql(&format!(
        "UPDATE unlisted SET version = 2, copy = decode('4b460002', 'hex') || uuid_send({KEY_1}) || decode('00000001', 'hex')"
    ));
    let refused = schedule(&world.operator(), 1, Some(1)).await.unwrap_err();
    assert!(refused.message().contains("still needed by 1 of unlisted.copy"), "{refused:?}");
    assert_eq!(state(&world.database, 1), "deactivated");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_22_a_table_that_would_let_a_key_go_keeps_all_keys() {
    let world = World::start().await.with_payments().await;
    rotate(&world, false).await;
    schedule(&world.operator(), 1, Some(2)).await.unwrap();
    world.database.sql("CREATE TABLE careless (kek_id uuid REFERENCES keks (id) ON DELETE CASCADE)");
    until_kept(&world, "of table careless does not restrict the removal of keys").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_22_without_the_trigger_no_key_is_destroyed() {
    let world = World::start().await.with_payments().await;
    rotate(&world, false).await;
    schedule(&world.operator(), 1, Some(2)).await.unwrap();
    world.database.sql("ALTER TABLE keks DISABLE TRIGGER keks_destroyed_when_unneeded");
    until_kept(&world, "triggers of keks are disabled: keks_destroyed_when_unneeded").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_22_a_trigger_that_refuses_nothing_destroys_no_key() {
    let world = World::start().await.with_payments().await;
    rotate(&world, false).await;
    schedule(&world.operator(), 1, Some(2)).await.unwrap();
    world.database.sql(
        "CREATE OR REPLACE FUNCTION require_unneeded() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN RETURN NEW; END $$",
    );
    until_kept(&world, "the trigger did not refuse the removal of a key that is in use").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_22_postgres_itself_keeps_material_that_is_needed_and_takes_none_back() {
    let world = World::start().await.with_payments().await;
    world.database.sql("CREATE TABLE backup AS SELECT * FROM keks");
    let kept =
        refused_by_postgres(&world.database, &format!("UPDATE keks SET wrapped = NULL WHERE id = {KEY_1}"));
    assert!(kept.contains("is still needed by deks"), "{kept}");
    rotate(&world, false).await;
    schedule(&world.operator(), 1, Some(1)).await.unwrap();
    until_destroyed(&world.database, 1).await;
    // A row of a backup, a year later.
    for (what, sql, why) in [
        (
            "the whole row",
            "UPDATE keks k SET state = b.state, wrapped = b.wrapped, destroy_at = NULL, destroyed_at = NULL
             FROM backup b WHERE b.id = k.id AND k.state = 'destroyed'",
            "cannot go from destroyed to active",
        ),
        (
            "the material",
            "UPDATE keks k SET wrapped = b.wrapped FROM backup b WHERE b.id = k.id AND k.state = 'destroyed'",
            "keks_material_until_destroyed",
        ),
        (
            "the certificate",
            "DELETE FROM destruction_certificates",
            "rows of destruction_certificates are only ever added",
        ),
    ] {
        let refused = refused_by_postgres(&world.database, sql);
        assert!(refused.contains(why), "{what}: {refused}");
    }
    assert_eq!(state(&world.database, 1), "destroyed");
    assert_eq!(read(&world.operator()).await.unwrap(), "first");
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_a_server_that_dies_as_it_destroys_a_key_leaves_it_whole_or_gone_with_its_certificate() {
    let mut world = World::start().await.with_payments().await;
    for (version, point) in [(1, "key.destroy:before"), (2, "key.destroy:after")] {
        rotate(&world, false).await;
        crash_at(&mut world, Some(point)).await;
        schedule(&world.operator(), version, Some(1)).await.unwrap();
        until("the server to die", async || status(&world.server).await.is_err()).await;
        let gone = u32::from(point.ends_with("after")) + version - 1;
        let destroyed = "SELECT count(*) FROM keks WHERE state = 'destroyed' AND wrapped IS NULL";
        assert_eq!(world.database.sql(destroyed), gone.to_string(), "{point}");
        assert_eq!(world.database.sql("SELECT count(*) FROM destruction_certificates"), gone.to_string());
        assert_eq!(world.database.entries("key.destroy").len(), gone as usize, "{point}");
        crash_at(&mut world, None).await;
        until_destroyed(&world.database, version).await;
        assert_eq!(read(&world.operator()).await.unwrap(), "first");
    }
    assert_eq!(certificates(&world.operator()).await.certificates.len(), 2);
    world.database.check_audit_log();
}

async fn crash_at(world: &mut World, point: Option<&str>) {
    world.server.stop();
    world.server.setup_mut().set_variable("KEYFOLD_CRASH_AT", point.map(Into::into));
    world.server.restart().await.unwrap();
    world.server.until_serving().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_21_a_key_that_is_due_on_two_replicas_is_destroyed_once() {
    let world = World::start().await.with_payments().await;
    let _replica = world.second_replica().await;
    for version in 1..=4 {
        rotate(&world, false).await;
        schedule(&world.operator(), version, Some(1)).await.unwrap();
    }
    for version in 1..=4 {
        until_destroyed(&world.database, version).await;
    }
    assert_eq!(world.database.entries("key.destroy").len(), 4);
    assert_eq!(world.database.sql("SELECT count(*) FROM destruction_certificates"), "4");
    assert_eq!(read(&world.operator()).await.unwrap(), "first");
    world.database.check_audit_log();
}
