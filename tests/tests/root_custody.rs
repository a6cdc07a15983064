//! Installations whose root key is kept in each of the ways there are, and people who unseal a server with their shares.

use keyfold::dev::server::Server;
use keyfold_proto::keyfold::v1::{
    CreateRecoveryRequest, Field, GetRootRequest, GetSecretRequest, InitializeResponse, PutSecretRequest,
    State,
};
use keyfold_server::{
    config::{self, RootKey, RootKeyFiles},
    keys::root::RootKeys,
    seal::{Seal, State as SealState},
    store::Store,
};
use keyfold_tests::{
    Database,
    custody::{Keeper, initialise, unseal, unseal_with},
    faults::{is_healthy, operator_of, status, until, until_state},
    raw, server_setup,
};
use serde_json::json;
use std::{fs, sync::Arc};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic::{Code, Status};

/// A server whose root key that keeper keeps, with a secret.
struct Kept {
    server: Server,
    database: Database,
    keeper: Keeper,
    made: InitializeResponse,
    _folder: TempDir,
}

impl Kept {
    async fn by(custody: &str) -> Self {
        let (keeper, database, folder) =
            (Keeper::new(custody), Database::shared(), tempfile::tempdir().unwrap());
        let mut setup = server_setup(folder.path(), "server", &database);
        keeper.configure(&mut setup);
        let server = Server::start(&setup).await.unwrap();
        let made = initialise(&server).await;
        server.apply("Keyspace", "payments", &json!({})).await.unwrap();
        let kept = Self { server, database, keeper, made, _folder: folder };
        kept.put().await;
        kept
    }

    async fn put(&self) {
        let field = Field { name: "password".into(), value: b"hunter2".into() };
        let request =
            PutSecretRequest { path: "payments/db".into(), fields: vec![field], expected_version: None };
        operator_of(&self.server).secrets().put_secret(request).await.unwrap();
    }

    async fn get(&self) -> Result<Vec<u8>, Status> {
        let request = GetSecretRequest { path: "payments/db".into(), version: None };
        let found = operator_of(&self.server).secrets().get_secret(request).await?.into_inner();
        Ok(found.fields[0].value.clone())
    }

    /// What a replica has of its own, without the rest of it. The root key must be in a file.
    fn seal(&self) -> (Seal, Store) {
        let Keeper::File(folder) = &self.keeper else { panic!("a file") };
        let files = RootKeyFiles { current: folder.path().join("current"), previous: None };
        let roots =
            RootKeys::new(&RootKey::File(files), None, Arc::new(keyfold_core::entropy::SystemEntropy))
                .unwrap();
        let database = config::Database {
            url: self.database.access.database_url(&self.database.name),
            password_file: Some(self.database.access.password_file().to_owned()),
            ca_file: self.database.access.ca_file().to_owned(),
            max_connections: 4,
            max_staleness_millis: 1000,
        };
        (Seal::new(roots, None), Store::new(&database).unwrap())
    }

    /// Restarts the server, which is sealed then because of its shares.
    async fn restart_sealed(&mut self) {
        self.server.restart().await.unwrap();
        until_state(&self.server, State::Sealed, "0 of 3 shares of the root key are entered").await;
    }

    fn unseals(&self) -> Vec<(String, String)> {
        let entries = self.database.entries("root.unseal");
        let summary = |entry: &serde_json::Value| {
            assert_eq!((&entry["actor"]["name"], &entry["from"]), (&json!("unknown"), &json!("127.0.0.1")));
            let operation = &entry["operation"];
            match entry["outcome"]["result"].as_str() {
                Some("allowed") => (
                    "allowed".to_owned(),
                    format!(
                        "{} of {} {}",
                        operation["entered"], operation["threshold"], operation["unsealed"]
                    ),
                ),
                _ => {
                    ("refused".to_owned(), entry["outcome"]["reason"].as_str().unwrap_or_default().to_owned())
                }
            }
        };
        entries.iter().map(summary).collect()
    }
}

async fn begins_and_unseals_by_itself(custody: &str) {
    let mut kept = Kept::by(custody).await;
    assert!(kept.made.root_shares.is_empty() && kept.made.root_threshold == 0);
    assert_eq!(kept.get().await.unwrap(), b"hunter2");
    kept.server.restart().await.unwrap();
    kept.server.until_serving().await.unwrap();
    assert_eq!(kept.get().await.unwrap(), b"hunter2");
    let root = operator_of(&kept.server).root().get_root(GetRootRequest {}).await.unwrap().into_inner();
    assert_eq!((root.custody.as_str(), root.configured_custody.as_str()), (custody, custody));
    assert_eq!((root.rwk_version, root.problem.as_str(), &root.recovery), (1, "", &None));
    assert!(root.since.is_some());
    let stored = kept
        .database
        .sql("SELECT custody_kind, encode(root_key_id::text::bytea, 'escape') FROM root_wrapping_keys");
    assert_eq!(stored.replace('-', ""), format!("{custody}|{}", root.root_key_id).replace('-', ""));
    assert_eq!(kept.database.entries("root.status").len(), 1);
    kept.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_whose_root_key_is_in_a_file_unseals_by_itself() {
    begins_and_unseals_by_itself("file").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_whose_root_key_an_hsm_keeps_unseals_by_itself() {
    begins_and_unseals_by_itself("pkcs11").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_whose_root_key_a_kms_plugin_keeps_unseals_by_itself() {
    begins_and_unseals_by_itself("kms-plugin").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn people_unseal_a_server_share_by_share_and_each_one_is_written_down() {
    let mut kept = Kept::by("shamir").await;
    let shares = kept.made.root_shares.clone();
    assert_eq!((shares.len(), kept.made.root_threshold), (5, 3));
    assert_eq!(kept.get().await.unwrap(), b"hunter2", "whoever made the root key has it");

    kept.restart_sealed().await;
    assert!(!is_healthy(&kept.server).await.unwrap());
    let sealed = kept.get().await.unwrap_err();
    assert_eq!(sealed.code(), Code::Unavailable, "{sealed:?}");

    let first = unseal(&kept.server, &shares[4]).await.unwrap();
    assert_eq!((first.entered, first.threshold, first.unsealed), (1, 3, false));
    let told = status(&kept.server).await.unwrap();
    assert!(told.message.contains("1 of 3 shares"), "{}", told.message);
    // As people copy it.
    let second = unseal(&kept.server, &format!(" {}\n", shares[0].to_uppercase())).await.unwrap();
    assert_eq!((second.entered, second.threshold, second.unsealed), (2, 3, false));
    let third = unseal(&kept.server, &shares[2]).await.unwrap();
    assert_eq!((third.entered, third.threshold, third.unsealed), (3, 3, true));
    assert_eq!(kept.get().await.unwrap(), b"hunter2");
    until("health", async || is_healthy(&kept.server).await.unwrap()).await;

    let allowed = |text: &str| ("allowed".to_owned(), text.to_owned());
    assert_eq!(kept.unseals(), ["1 of 3 false", "2 of 3 false", "3 of 3 true"].map(allowed));
    kept.database.check_audit_log();
    for share in &shares {
        let (_, secret) = share.rsplit_once('-').unwrap().0.rsplit_once('-').unwrap();
        let entries = kept.database.sql("SELECT convert_from(entry, 'UTF8') FROM audit_entries");
        assert!(!entries.contains(secret), "a share is in the audit log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_11_wrong_shares_change_nothing_and_nobody_can_cancel_what_was_entered() {
    let mut kept = Kept::by("shamir").await;
    let other = Kept::by("shamir").await;
    let shares = kept.made.root_shares.clone();
    kept.restart_sealed().await;
    unseal(&kept.server, &shares[0]).await.unwrap();

    let parts: Vec<&str> = shares[1].split('-').collect();
    let garbled = shares[1].replacen(parts[3], &parts[3].chars().rev().collect::<String>(), 1);
    for (what, share, told) in [
        ("nothing", String::new(), "not a share"),
        ("a long text", "k".repeat(10_000), "not a share"),
        ("a slip of the pen", garbled, "not copied exactly"),
        ("another installation's", other.made.root_shares[1].clone(), "of the set"),
    ] {
        let refused = unseal(&kept.server, &share).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{what}: {refused:?}");
        assert!(refused.message().contains(told), "{what}: {}", refused.message());
    }
    let again = unseal(&kept.server, &shares[0]).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition, "{again:?}");
    let second = unseal(&kept.server, &shares[1]).await.unwrap();
    assert_eq!((second.entered, second.unsealed), (2, false), "what was entered stands");

    // No call of any service takes a share back: a second initialisation neither.
    let bootstrap = fs::read(kept.server.setup().bootstrap_token_file()).unwrap();
    let bytes = [vec![10, u8::try_from(bootstrap.len()).unwrap()], bootstrap].concat();
    let channel = keyfold_tests::faults::channel(kept.server.setup());
    raw::call(&channel, "SystemService/Initialize", None, bytes).await.unwrap_err();
    let third = unseal(&kept.server, &shares[2]).await.unwrap();
    assert!(third.unsealed);

    let late = unseal(&kept.server, &shares[3]).await.unwrap_err();
    assert_eq!(
        (late.code(), late.message()),
        (Code::FailedPrecondition, "this server does not wait for shares")
    );
    let refused: Vec<_> = kept.unseals().into_iter().filter(|(outcome, _)| outcome == "refused").collect();
    let reasons = ["invalid", "invalid", "invalid", "invalid", "conflict", "conflict"];
    assert_eq!(refused.iter().map(|(_, reason)| reason.as_str()).collect::<Vec<_>>(), reasons);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_11_a_flood_of_wrong_shares_keeps_no_holder_of_a_right_one_waiting_and_fills_no_log() {
    let mut kept = Kept::by("shamir").await;
    let other = Kept::by("shamir").await;
    kept.restart_sealed().await;
    let mut flood = JoinSet::new();
    for attacker in 0..16 {
        let (channel, share) = (
            keyfold_tests::faults::channel(kept.server.setup()),
            other.made.root_shares[attacker % 5].clone(),
        );
        flood.spawn(async move {
            use keyfold_proto::keyfold::v1::{UnsealRequest, root_service_client::RootServiceClient};
            let mut root = RootServiceClient::new(channel);
            let mut codes = Vec::new();
            for _ in 0..60 {
                let refused = root.unseal(UnsealRequest { share: share.clone() }).await.unwrap_err();
                codes.push(refused.code());
            }
            codes
        });
    }
    unseal_with(&kept.server, &kept.made.root_shares).await;
    let codes: Vec<_> = flood.join_all().await.concat();
    assert_eq!(codes.len(), 16 * 60);
    let expected =
        [Code::InvalidArgument, Code::FailedPrecondition, Code::ResourceExhausted, Code::Unavailable];
    assert!(codes.iter().all(|code| expected.contains(code)), "{codes:?}");
    let allowed = kept.unseals().into_iter().filter(|(outcome, _)| outcome == "allowed").count();
    assert_eq!(allowed, 3);
    assert!(kept.unseals().len() < 16 * 60 / 2, "refusals are folded: {}", kept.unseals().len());
    kept.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_11_shares_that_are_entered_twice_at_one_time_count_once() {
    let mut kept = Kept::by("shamir").await;
    let shares = kept.made.root_shares.clone();
    kept.restart_sealed().await;
    let (one, two, three) = tokio::join!(
        unseal(&kept.server, &shares[0]),
        unseal(&kept.server, &shares[0]),
        unseal(&kept.server, &shares[0]),
    );
    assert_eq!([&one, &two, &three].iter().filter(|done| done.is_ok()).count(), 1);
    let second = unseal(&kept.server, &shares[1]).await.unwrap();
    assert_eq!((second.entered, second.unsealed), (2, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_shares_says_so_and_each_replica_needs_its_own() {
    let mut kept = Kept::by("shamir").await;
    let shares = kept.made.root_shares.clone();
    let mut setup = server_setup(kept._folder.path(), "replica", &kept.database);
    kept.keeper.configure(&mut setup);
    let replica = Server::start(&setup).await.unwrap();
    until_state(&replica, State::Sealed, "0 of 3 shares").await;
    assert_eq!(status(&kept.server).await.unwrap().state(), State::Serving);
    unseal_with(&replica, &shares).await;

    kept.restart_sealed().await;
    unseal_with(&kept.server, &shares[2..]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_serves_notices_that_its_root_key_could_not_be_had_again() {
    let kept = Kept::by("file").await;
    let Keeper::File(folder) = &kept.keeper else { panic!("a file") };
    let current = folder.path().join("current");
    let (seal, store) = kept.seal();
    seal.refresh(&store).await;
    seal.check_root(&store).await;
    assert_eq!(seal.root().unwrap().1, None);

    fs::rename(&current, folder.path().join("elsewhere")).unwrap();
    seal.refresh(&store).await;
    assert!(matches!(seal.state(), SealState::Serving(_)), "what is open stays open");
    seal.check_root(&store).await;
    let problem = seal.root().unwrap().1.unwrap();
    assert!(problem.contains("cannot be read"), "{problem}");

    fs::rename(folder.path().join("elsewhere"), &current).unwrap();
    seal.check_root(&store).await;
    assert_eq!(seal.root().unwrap().1, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_would_not_open_at_the_next_start_are_told_while_a_replica_can_mend_them() {
    let kept = Kept::by("file").await;
    let request = CreateRecoveryRequest { shares: 3, threshold: 2 };
    operator_of(&kept.server).root().create_recovery(request).await.unwrap();
    let (seal, store) = kept.seal();
    seal.refresh(&store).await;
    seal.check_root(&store).await;
    assert_eq!(seal.root().unwrap().1, None);
    let flip = |table: &str, column: &str| {
        kept.database.sql(&format!(
            "UPDATE {table} SET {column} = set_byte({column}, 130, 255 - get_byte({column}, 130))"
        ))
    };
    for (table, column, told) in [
        ("root_wrapping_keys", "wrapped", "the stored root-wrapping key is not the one"),
        ("root_wrapping_keys", "recovery_wrapped", "recovery would fail"),
        ("recovery_keys", "wrapped", "recovery would fail"),
    ] {
        flip(table, column);
        seal.check_root(&store).await;
        let problem = seal.root().unwrap().1.unwrap();
        assert!(problem.contains(told), "{table}.{column}: {problem}");
        assert!(matches!(seal.state(), SealState::Serving(_)), "what is open stays open");
        flip(table, column);
        seal.check_root(&store).await;
        assert_eq!(seal.root().unwrap().1, None, "{table}.{column}");
    }
    kept.database.sql("DELETE FROM recovery_keys");
    seal.check_root(&store).await;
    assert!(seal.root().unwrap().1.unwrap().contains("recovery would fail"));
}
