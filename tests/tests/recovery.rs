//! Recovery: shares that bring an installation back when its root key is lost for good, and the drill of that day.

use std::fs;

use keyfold::dev::server::Server;
use keyfold_proto::keyfold::v1::{
    ChangeRootRequest, CreateRecoveryRequest, DrillRecoveryRequest, DrillRecoveryResponse, Field,
    GetRootRequest, GetRootResponse, GetSecretRequest, PutSecretRequest, State,
};
use keyfold_tests::{
    Database,
    custody::{Keeper, initialise, name_recovery_key, unseal, unseal_with},
    faults::{operator_of, status, until, until_state},
    server_setup,
};
use serde_json::json;
use tempfile::TempDir;
use tonic::{Code, Status};

/// An installation with secrets whose root key is in a file that it can lose.
struct Losable {
    server: Server,
    database: Database,
    keeper: Keeper,
    folder: TempDir,
}

impl Losable {
    async fn new() -> Self {
        let (keeper, database, folder) =
            (Keeper::new("file"), Database::shared(), tempfile::tempdir().unwrap());
        let mut setup = server_setup(folder.path(), "server", &database);
        keeper.configure(&mut setup);
        let server = Server::start(&setup).await.unwrap();
        initialise(&server).await;
        let losable = Self { server, database, keeper, folder };
        for keyspace in ["payments", "shop"] {
            losable.server.apply("Keyspace", keyspace, &json!({})).await.unwrap();
            for version in 0..3 {
                losable.put(&format!("{keyspace}/db"), &format!("{keyspace}-{version}")).await;
            }
        }
        losable
    }

    async fn put(&self, path: &str, value: &str) {
        let fields = vec![Field { name: "password".into(), value: value.into() }];
        let request = PutSecretRequest { path: path.into(), fields, expected_version: None };
        operator_of(&self.server).secrets().put_secret(request).await.unwrap();
    }

    async fn get(&self, path: &str) -> Result<String, Status> {
        let request = GetSecretRequest { path: path.into(), version: None };
        let found = operator_of(&self.server).secrets().get_secret(request).await?.into_inner();
        Ok(String::from_utf8(found.fields[0].value.clone()).unwrap())
    }

    /// The server takes the shares from its next start on.
    async fn create_recovery(&self, shares: u32, threshold: u32) -> Result<Vec<String>, Status> {
        let request = CreateRecoveryRequest { shares, threshold };
        let made = operator_of(&self.server).root().create_recovery(request).await?.into_inner();
        assert_eq!(made.recovery_key_id, self.root().await.recovery.unwrap().recovery_key_id);
        name_recovery_key(&self.server).await;
        Ok(made.shares.clone())
    }

    async fn root(&self) -> GetRootResponse {
        operator_of(&self.server).root().get_root(GetRootRequest {}).await.unwrap().into_inner()
    }

    /// Starts the server with another keeper, and without the old root key.
    async fn lose_root(&mut self, keeper: Keeper) {
        self.server.stop();
        self.keeper.take_away();
        keeper.configure(self.server.setup_mut());
        self.keeper = keeper;
        self.server.restart().await.unwrap();
        until_state(&self.server, State::Sealed, "").await;
    }

    async fn drill(&self, shares: &[String]) -> Result<DrillRecoveryResponse, Status> {
        let request = DrillRecoveryRequest { shares: shares.to_vec() };
        Ok(operator_of(&self.server).root().drill_recovery(request).await?.into_inner())
    }

    /// Copies the database as it is, and has drills look there.
    async fn back_up(&mut self) -> Backup {
        self.server.stop();
        let access = self.database.access.clone();
        let name = format!("{}_copy", self.database.name);
        access.create_database(&name, Some(&self.database.name)).unwrap();
        let drill_database = json!({
            "url": access.database_url(&name),
            "password_file": access.password_file(),
            "ca_file": access.ca_file(),
        });
        let recovery = json!({"drill_database": drill_database});
        self.server.setup_mut().configure("recovery", recovery).unwrap();
        self.server.restart().await.unwrap();
        self.server.until_serving().await.unwrap();
        Backup { database: Database { access, name, own: None } }
    }
}

/// A copy of the database. Dropping it drops it.
struct Backup {
    database: Database,
}

impl Backup {
    /// What all that a server could change comes to.
    fn digest(&self) -> String {
        self.database.sql(
            "SELECT md5(string_agg(t, ',' ORDER BY t)) FROM (
                 SELECT keks::text AS t FROM keks UNION ALL SELECT deks::text FROM deks
                 UNION ALL SELECT secret_versions::text FROM secret_versions
                 UNION ALL SELECT root_wrapping_keys::text FROM root_wrapping_keys
                 UNION ALL SELECT recovery_keys::text FROM recovery_keys
                 UNION ALL SELECT audit_entries::text FROM audit_entries) AS rows",
        )
    }
}

async fn recovers_into(custody: &str) {
    let mut losable = Losable::new().await;
    let shares = losable.create_recovery(5, 3).await.unwrap();
    let before = losable.root().await;
    losable.put("payments/db", "the newest").await;
    losable.lose_root(Keeper::new(custody)).await;

    let first = unseal(&losable.server, &shares[1]).await.unwrap();
    assert_eq!((first.entered, first.threshold, first.unsealed), (1, 3, false));
    until_state(&losable.server, State::Sealed, "Entered for recovery: 1 of 3 shares").await;
    let wrong = unseal(&losable.server, &shares[1].replace("kfs1", "kfs2")).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument, "{wrong:?}");
    unseal_with(&losable.server, &shares[2..]).await;

    assert_eq!(losable.get("payments/db").await.unwrap(), "the newest");
    assert_eq!(losable.get("shop/db").await.unwrap(), "shop-2");
    let after = losable.root().await;
    assert_eq!((after.custody.as_str(), after.rwk_version), (custody, 2));
    assert_ne!(after.root_key_id, before.root_key_id);
    let entry = losable.database.entries("root.change").pop().unwrap();
    assert_eq!(entry["actor"]["name"], "keyfold-server");
    assert_eq!(
        (&entry["operation"]["from"], &entry["operation"]["to"]),
        (&json!("recovery"), &json!(custody))
    );
    assert_eq!(losable.database.entries("root.unseal").len(), 4);
    losable.database.check_audit_log();

    // The new root key does by itself from now on, and the same shares help again.
    losable.server.restart().await.unwrap();
    losable.server.until_serving().await.unwrap();
    losable.lose_root(Keeper::new("file")).await;
    unseal_with(&losable.server, &shares).await;
    assert_eq!(losable.root().await.rwk_version, 3);
    assert_eq!(losable.get("payments/db").await.unwrap(), "the newest");
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_bring_an_installation_back_under_a_new_file() {
    recovers_into("file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_bring_an_installation_back_under_a_new_hsm() {
    recovers_into("pkcs11").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_bring_an_installation_back_under_a_new_kms_plugin() {
    recovers_into("kms-plugin").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_bring_an_installation_back_that_people_are_to_keep_and_somebody_must_hand_out_the_new_ones() {
    let mut losable = Losable::new().await;
    let shares = losable.create_recovery(3, 2).await.unwrap();
    losable.lose_root(Keeper::Shamir).await;
    unseal_with(&losable.server, &shares).await;
    assert_eq!(losable.get("shop/db").await.unwrap(), "shop-2");
    assert_eq!(losable.root().await.custody, "file", "nobody was there to be shown new shares");
    let request = ChangeRootRequest { custody: "shamir".into(), ..Default::default() };
    let changed = operator_of(&losable.server).root().change_root(request).await.unwrap().into_inner();
    losable.server.restart().await.unwrap();
    until_state(&losable.server, State::Sealed, "0 of 3 shares").await;
    unseal_with(&losable.server, &changed.shares).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_whose_new_keeper_is_away_waits_for_it_and_keeps_the_shares() {
    let mut losable = Losable::new().await;
    let shares = losable.create_recovery(3, 2).await.unwrap();
    let mut plugin = Keeper::new("kms-plugin");
    plugin.take_away();
    losable.lose_root(plugin).await;
    unseal(&losable.server, &shares[0]).await.unwrap();
    let second = unseal(&losable.server, &shares[1]).await.unwrap();
    assert_eq!((second.entered, second.unsealed), (2, false));
    until_state(&losable.server, State::Sealed, "recovery fails").await;
    losable.keeper.give_back();
    losable.server.until_serving().await.unwrap();
    assert_eq!(losable.root().await.custody, "kms-plugin");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_comes_back_before_the_last_share_is_used_as_if_nothing_had_been() {
    let mut losable = Losable::new().await;
    let shares = losable.create_recovery(3, 2).await.unwrap();
    losable.server.stop();
    losable.keeper.take_away();
    losable.server.restart().await.unwrap();
    until_state(&losable.server, State::Sealed, "cannot be read").await;
    unseal(&losable.server, &shares[0]).await.unwrap();
    losable.keeper.give_back();
    losable.server.until_serving().await.unwrap();
    assert_eq!(losable.root().await.rwk_version, 1);
    let late = unseal(&losable.server, &shares[1]).await.unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition, "{late:?}");

    // What was entered then is forgotten.
    losable.server.stop();
    losable.keeper.take_away();
    losable.server.restart().await.unwrap();
    until_state(&losable.server, State::Sealed, "cannot be read").await;
    let first = unseal(&losable.server, &shares[1]).await.unwrap();
    assert_eq!((first.entered, first.unsealed), (1, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_newest_recovery_key_counts() {
    let mut losable = Losable::new().await;
    assert_eq!(losable.root().await.recovery, None);
    for (shares, threshold) in [(0, 0), (3, 1), (2, 3), (256, 3)] {
        let refused = losable.create_recovery(shares, threshold).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    }
    let old = losable.create_recovery(3, 2).await.unwrap();
    let new = losable.create_recovery(4, 3).await.unwrap();
    let recovery = losable.root().await.recovery.unwrap();
    assert_eq!((recovery.shares, recovery.threshold), (4, 3));
    assert_eq!(recovery.created_by, "initial-administrator");
    assert!(recovery.created_at.is_some() && recovery.last_drilled_at.is_none());
    assert_eq!(losable.database.sql("SELECT count(*) FROM recovery_keys"), "1");
    losable.lose_root(Keeper::new("file")).await;
    let refused = unseal(&losable.server, &old[0]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    unseal_with(&losable.server, &new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_recovery_key_a_lost_root_is_lost_and_shares_are_of_no_use() {
    let mut losable = Losable::new().await;
    let other = Losable::new().await;
    let shares = other.create_recovery(3, 2).await.unwrap();
    losable.lose_root(Keeper::new("file")).await;
    let refused = unseal(&losable.server, &shares[0]).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().contains("none for recovery"), "{}", refused.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_opens_every_secret_of_a_backup_changes_nothing_there_and_is_recorded() {
    let mut losable = Losable::new().await;
    let none = losable.drill(&[]).await.unwrap_err();
    assert_eq!(none.code(), Code::FailedPrecondition, "{none:?}");
    assert!(none.message().contains("recovery.drill_database"), "{}", none.message());

    let shares = losable.create_recovery(5, 3).await.unwrap();
    let backup = losable.back_up().await;
    losable.put("payments/db", "after the backup").await;
    let digest = backup.digest();
    let drilled = losable.drill(&shares[1..4]).await.unwrap();
    assert_eq!(drilled.failures, Vec::<String>::new());
    assert_eq!((drilled.secrets_opened, drilled.keys_opened), (6, 5));
    let entries: u64 = backup.database.sql("SELECT size FROM audit_head").parse().unwrap();
    assert_eq!(drilled.audit_entries, entries);
    assert!(drilled.last_entry_at.is_some());
    assert_eq!(drilled.installation_id, backup.database.sql("SELECT id FROM installation"));
    assert_eq!(backup.digest(), digest, "nothing is changed there");
    assert!(losable.root().await.recovery.unwrap().last_drilled_at.is_some());
    let entry = losable.database.entries("recovery.drill").pop().unwrap();
    assert_eq!((&entry["operation"]["secrets"], &entry["operation"]["failures"]), (&json!(6), &json!(0)));

    for (what, given, told) in [
        ("too few", shares[..2].to_vec(), "2 different shares are not enough: it takes 3"),
        ("one of them twice", vec![shares[0].clone(), shares[0].clone(), shares[1].clone()], "it takes 3"),
        ("no share", vec!["kfs1-nothing".to_owned()], "share 1:"),
        ("another set's", Losable::new().await.create_recovery(3, 2).await.unwrap(), "of the set"),
    ] {
        let refused = losable.drill(&given).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{what}: {refused:?}");
        assert!(refused.message().contains(told), "{what}: {}", refused.message());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_of_a_damaged_backup_says_what_does_not_open_and_does_not_count() {
    let mut losable = Losable::new().await;
    let shares = losable.create_recovery(3, 2).await.unwrap();
    let backup = losable.back_up().await;
    let damage = "UPDATE secret_versions SET payload = overlay(payload PLACING '\\x00'::bytea FROM 120)
                  WHERE (secret_id, version) IN (SELECT s.id, 2 FROM secrets s WHERE s.path = 'shop/db')";
    backup.database.sql(damage);
    let drilled = losable.drill(&shares).await.unwrap();
    assert_eq!((drilled.secrets_opened, drilled.failures.len()), (5, 1));
    assert!(drilled.failures[0].contains("shop/db version 2"), "{:?}", drilled.failures);
    assert!(losable.root().await.recovery.unwrap().last_drilled_at.is_none());

    backup
        .database
        .sql("UPDATE root_wrapping_keys SET recovery_wrapped = set_byte(recovery_wrapped, 130, 0)");
    let refused = losable.drill(&shares).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("does not open"), "{}", refused.message());
    backup.database.sql("DELETE FROM recovery_keys");
    let refused = losable.drill(&shares).await.unwrap_err();
    assert!(refused.message().contains("has no recovery key"), "{}", refused.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_backup_is_drilled_with_the_shares_of_its_time_and_recovered_with_them() {
    let mut losable = Losable::new().await;
    let old = losable.create_recovery(3, 2).await.unwrap();
    let old_key = losable.root().await.recovery.unwrap().recovery_key_id;
    let backup = losable.back_up().await;
    let new = losable.create_recovery(3, 2).await.unwrap();
    let refused = losable.drill(&new).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    let drilled = losable.drill(&old).await.unwrap();
    assert_eq!((drilled.secrets_opened, drilled.failures.len()), (6, 0));
    assert!(
        losable.root().await.recovery.unwrap().last_drilled_at.is_none(),
        "the shares in use have proved nothing"
    );

    // The day itself: another server, another root key, the restored database.
    let keeper = Keeper::new("file");
    let mut setup = server_setup(losable.folder.path(), "restored", &backup.database);
    keeper.configure(&mut setup);
    setup.configure("recovery", json!({"key_id": old_key})).unwrap();
    let restored = Server::start(&setup).await.unwrap();
    until_state(&restored, State::Sealed, "").await;
    unseal_with(&restored, &old).await;
    fs::copy(losable.server.setup().admin_token_file(), setup.admin_token_file()).unwrap();
    let request = GetSecretRequest { path: "shop/db".into(), version: None };
    let found = operator_of(&restored).secrets().get_secret(request).await.unwrap().into_inner();
    assert_eq!(found.fields[0].value, b"shop-2");
    until("health", async || status(&restored).await.is_ok_and(|told| told.state() == State::Serving)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scratch_database_that_is_none_is_refused() {
    let mut losable = Losable::new().await;
    losable.create_recovery(3, 2).await.unwrap();
    let access = losable.database.access.clone();
    let live = access.database_url(&losable.database.name);
    let section = |url: &str| json!({"drill_database": {"url": url, "password_file": access.password_file(), "ca_file": access.ca_file()}});
    losable.server.setup_mut().configure("recovery", section(&live)).unwrap();
    let refused = losable.server.restart().await.unwrap_err().to_string();
    assert!(refused.contains("names the database that the server serves from"), "{refused}");

    losable.server.setup_mut().configure("recovery", section(&access.database_url("postgres"))).unwrap();
    losable.server.restart().await.unwrap();
    losable.server.until_serving().await.unwrap();
    let refused = losable.drill(&[]).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("has schema 0"), "{}", refused.message());
}
