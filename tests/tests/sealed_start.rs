//! Servers that cannot reach their root key: they say why, serve nothing else, and serve by themselves once they can.

use std::{fs, time::Duration};

use keyfold::dev::server::Server;
use keyfold_proto::keyfold::v1::{
    GetRootRequest, GetSecretRequest, ListEntriesRequest, ListObjectsRequest, State, UnsealRequest,
    root_service_client::RootServiceClient,
};
use keyfold_tests::{
    Database,
    custody::{Keeper, initialise, unseal},
    faults::{channel, is_healthy, operator_of, status, until, until_state, within},
    server_setup,
};
use tempfile::TempDir;
use tonic::Code;

struct Sealable {
    server: Server,
    database: Database,
    keeper: Keeper,
    _folder: TempDir,
}

impl Sealable {
    async fn by(custody: &str) -> Self {
        let (keeper, database, folder) =
            (Keeper::new(custody), Database::shared(), tempfile::tempdir().unwrap());
        let mut setup = server_setup(folder.path(), "server", &database);
        keeper.configure(&mut setup);
        let server = Server::start(&setup).await.unwrap();
        initialise(&server).await;
        Self { server, database, keeper, _folder: folder }
    }

    async fn assert_serves_nothing(&self, why: &str) {
        assert!(!is_healthy(&self.server).await.unwrap());
        let operator = operator_of(&self.server);
        let secret = GetSecretRequest { path: "payments/db".into(), version: None };
        for (what, refused) in [
            ("secrets", operator.secrets().get_secret(secret).await.map(drop)),
            ("objects", operator.config().list_objects(ListObjectsRequest::default()).await.map(drop)),
            ("entries", operator.audit().list_entries(ListEntriesRequest::default()).await.map(drop)),
            ("the root", operator.root().get_root(GetRootRequest {}).await.map(drop)),
        ] {
            let refused = refused.unwrap_err();
            assert_eq!(refused.code(), Code::Unavailable, "{what}: {refused:?}");
            assert!(refused.message().contains(why), "{what}: {}", refused.message());
        }
    }
}

/// Starts without its root key, and again with it.
async fn starts_sealed_and_recovers(custody: &str, why: &str) {
    let mut sealable = Sealable::by(custody).await;
    sealable.keeper.take_away();
    assert_eq!(status(&sealable.server).await.unwrap().state(), State::Serving, "it holds its keys");
    until("health", async || is_healthy(&sealable.server).await.unwrap()).await;

    sealable.server.restart().await.unwrap();
    until_state(&sealable.server, State::Sealed, why).await;
    sealable.assert_serves_nothing(why).await;
    let refused = unseal(&sealable.server, "kfs1-any").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert_eq!(sealable.database.sql("SELECT count(*) FROM root_wrapping_keys"), "1");

    sealable.keeper.give_back();
    sealable.server.until_serving().await.unwrap();
    until("health", async || is_healthy(&sealable.server).await.unwrap()).await;
    operator_of(&sealable.server).config().list_objects(ListObjectsRequest::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_root_key_file_is_missing_is_sealed_until_it_is_back() {
    starts_sealed_and_recovers("file", "cannot be read").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_hsm_is_away_is_sealed_until_it_is_back() {
    starts_sealed_and_recovers("pkcs11", "token").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_kms_plugin_is_away_is_sealed_until_it_is_back() {
    starts_sealed_and_recovers("kms-plugin", "KMS plugin").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_another_root_key_file_names_the_key_that_it_needs() {
    let mut sealable = Sealable::by("file").await;
    let needed = sealable.database.sql("SELECT replace(root_key_id::text, '-', '') FROM root_wrapping_keys");
    let Keeper::File(folder) = &sealable.keeper else { panic!("a file") };
    let current = folder.path().join("current");
    let right = fs::read(&current).unwrap();
    fs::write(&current, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").unwrap();
    sealable.server.restart().await.unwrap();
    until_state(&sealable.server, State::Sealed, &needed).await;
    sealable.assert_serves_nothing(&needed).await;
    fs::write(&current, right).unwrap();
    sealable.server.until_serving().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kms_plugin_that_hangs_keeps_a_server_sealed_but_not_silent() {
    let mut sealable = Sealable::by("kms-plugin").await;
    let Keeper::KmsPlugin(plugin) = &sealable.keeper else { panic!("a plugin") };
    plugin.freeze();
    within(Duration::from_secs(20), "a start beside a plugin that hangs", sealable.server.restart())
        .await
        .unwrap();
    until_state(&sealable.server, State::Sealed, "did not answer").await;
    for _ in 0..20 {
        let told = within(Duration::from_secs(5), "the status", status(&sealable.server)).await.unwrap();
        assert_eq!(told.state(), State::Sealed);
    }
    let Keeper::KmsPlugin(plugin) = &sealable.keeper else { panic!("a plugin") };
    plugin.thaw();
    sealable.server.until_serving().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_its_hsms_pin_is_sealed_until_it_has_it() {
    let mut sealable = Sealable::by("pkcs11").await;
    let Keeper::Pkcs11(hsm) = &sealable.keeper else { panic!("an HSM") };
    let (pin_file, pin) = (hsm.pin_file(), fs::read(hsm.pin_file()).unwrap());
    fs::write(&pin_file, "wrong-pin\n").unwrap();
    sealable.server.restart().await.unwrap();
    until_state(&sealable.server, State::Sealed, "PIN").await;
    // The server has looked again, and tried no PIN a second time: the token is not locked.
    tokio::time::sleep(Duration::from_secs(3)).await;
    fs::write(&pin_file, pin).unwrap();
    sealable.server.until_serving().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_11_a_server_that_is_sealed_without_a_database_takes_no_shares_and_answers_at_once() {
    let database = Database::own();
    let folder = tempfile::tempdir().unwrap();
    let (keeper, mut setup) = (Keeper::new("shamir"), server_setup(folder.path(), "server", &database));
    keeper.configure(&mut setup);
    let mut server = Server::start(&setup).await.unwrap();
    let made = initialise(&server).await;
    let mut database = database;
    database.own.as_mut().unwrap().kill();
    server.restart().await.unwrap();
    until_state(&server, State::Sealed, "database").await;
    let mut root = RootServiceClient::new(channel(server.setup()));
    for share in &made.root_shares {
        let refused = root.unseal(UnsealRequest { share: share.clone() }).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    }
    database.own.as_mut().unwrap().restart().unwrap();
    until_state(&server, State::Sealed, "0 of 3 shares").await;
    keyfold_tests::custody::unseal_with(&server, &made.root_shares).await;
}
