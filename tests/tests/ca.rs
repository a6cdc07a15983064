//! The internal certificate authority: what servers show, how it is turned, and what Postgres holds of it.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use keyfold::dev::{
    pki::{Authority, LOOPBACK},
    server::Setup,
};
use keyfold_core::clock::{Clock, SystemClock};
use keyfold_proto::keyfold::v1::{
    GetStatusRequest, InitializeRequest, RotateAuthorityRequest, RotateKeyRequest, State,
    system_service_client::SystemServiceClient,
};
use keyfold_server::{
    config::{Config, ENVIRONMENT_PREFIX},
    serve,
};
use keyfold_tests::{
    Database, PAYMENTS_SECRETS, World,
    certificates::{bundle, configure, served, states, trusting},
    faults::{channel, operator_of, until, until_state},
    server_setup,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use time::{Duration as Span, OffsetDateTime};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

async fn status(channel: &Channel) -> Result<State, Status> {
    let mut system = SystemServiceClient::new(channel.clone());
    Ok(system.get_status(GetStatusRequest {}).await?.into_inner().state())
}

/// A server on this machine, of which clients trust what its files hold.
fn files_ca(setup: &Setup) -> String {
    fs::read_to_string(setup.ca_file()).unwrap()
}

/// The name of the authority that signed what the server shows to a client that trusts `pem`.
async fn signed_by(setup: &Setup, pem: &str) -> String {
    let shown = served(setup, pem).await.unwrap();
    let (_, certificate) = X509Certificate::from_der(&shown[0]).unwrap();
    certificate.issuer().to_string()
}

fn authorities(count: u32, states: &[&str]) -> Vec<(u32, String)> {
    (1..=count).zip(states).map(|(version, state)| (version, (*state).to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_can_verify_the_server_by_the_internal_authority_alone_or_by_the_files_alone() {
    let world = World::with_internal_certificates(3600, false).await;
    let setup = world.server.setup();
    let told = bundle(&world.channel()).await.unwrap();
    assert_eq!(states(&world.channel()).await, authorities(1, &["active"]));

    let authority = CertificateDer::from_pem_slice(told.bundle.as_bytes()).unwrap();
    let (_, authority) = X509Certificate::from_der(&authority).unwrap();
    let constraints = authority.basic_constraints().unwrap().unwrap().value;
    assert!(constraints.ca && constraints.path_len_constraint == Some(0));
    assert!(authority.key_usage().unwrap().unwrap().value.key_cert_sign());

    let shown = served(setup, &told.bundle).await.unwrap();
    let (_, leaf) = X509Certificate::from_der(&shown[0]).unwrap();
    assert_eq!(leaf.issuer(), authority.subject());
    assert!(!leaf.is_ca());
    let validity = leaf.validity();
    assert!(validity.not_after.timestamp() - SystemClock.now().unix_timestamp() <= 3600);

    // Clients of Keyfold's own say whom they trust; one that knows the files' authority alone is served all the same.
    for pem in [told.bundle.clone(), files_ca(setup), files_ca(setup) + &told.bundle] {
        assert_eq!(status(&trusting(setup, &pem)).await.unwrap(), State::Serving);
    }
    let stranger = Authority::new("Nobody's", SystemClock.now()).unwrap().certificate_pem();
    assert!(status(&trusting(setup, &stranger)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_server_shows_the_files_certificate_and_the_internal_one_once_it_is_unsealed() {
    let mut world = World::with_internal_certificates(3600, true).await;
    let setup = world.server.setup().clone();
    let pem = bundle(&world.channel()).await.unwrap().bundle;
    let (root_key, away) = (setup.folder().join("root.key"), setup.folder().join("root.key.away"));
    fs::rename(&root_key, &away).unwrap();
    world.server.restart().await.unwrap();

    let before = world.channel();
    assert_eq!(status(&before).await.unwrap(), State::Sealed);
    assert!(served(&setup, &pem).await.is_err(), "the internal authority's key cannot be opened");
    assert!(served(&setup, &files_ca(&setup)).await.is_ok());
    assert_eq!(bundle(&before).await.unwrap_err().code(), Code::Unavailable);

    fs::rename(&away, &root_key).unwrap();
    until_state(&world.server, State::Serving, "").await;
    world.until_internal().await;
    // On a connection from before, no certificate could be asked for: that is no refusal, and another one helps.
    let refused = world.issue_over(&before).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let pod = world.pod("payments", "api", "api-1");
    world.publish(&pod, "payments-api", PAYMENTS_SECRETS).await.unwrap();
}

/// Makes calls until it is told to stop; all must succeed. Gives their number.
async fn repeat(what: &str, stop: &AtomicBool, call: impl AsyncFn(usize) -> Result<(), Status>) -> usize {
    let mut calls = 0;
    while !stop.load(Ordering::Relaxed) {
        call(calls).await.unwrap_or_else(|status| panic!("call {calls} {what}: {status:?}"));
        calls += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    calls
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_of_the_authority_loses_no_call_of_anybody() {
    let world = World::with_internal_certificates(10, true).await;
    let setup = world.server.setup();
    let first = bundle(&world.channel()).await.unwrap().bundle;
    let (stop, open) = (AtomicBool::new(false), trusting(setup, &first));
    let issues = || world.database.entries("ca.issue-driver-certificate").len();

    let over_one_connection = repeat("over one connection", &stop, async |_| status(&open).await.map(drop));
    // As a driver does, which hears of new authorities whenever it renews its certificate.
    let known = tokio::sync::Mutex::new((first.clone(), SystemClock.now()));
    let over_new_connections = repeat("over a new connection", &stop, async |_| {
        let mut known = known.lock().await;
        let channel = trusting(setup, &known.0);
        status(&channel).await?;
        if known.1 + Span::seconds(3) < SystemClock.now() {
            *known = (bundle(&channel).await?.bundle, SystemClock.now());
        }
        Ok(())
    });
    let of_new_pods = repeat("of the driver", &stop, async |n| {
        let pod = world.pod("payments", "api", &format!("api-{n}"));
        world.publish(&pod, "payments-api", PAYMENTS_SECRETS).await?;
        assert!(world.files(&pod).values().any(|value| value == "first"));
        world.driver.kubelet().unpublish(&world.volume(&pod)).await
    });
    let turn = async {
        until("the driver to have a certificate", async || issues() > 0).await;
        let operator = operator_of(&world.server);
        let turned = operator.certificates().rotate_authority(RotateAuthorityRequest {}).await.unwrap();
        assert_eq!(turned.into_inner().version, 2);
        assert_eq!(states(&world.channel()).await, authorities(2, &["active", "next"]));
        let again = operator.certificates().rotate_authority(RotateAuthorityRequest {}).await.unwrap_err();
        assert_eq!(again.code(), Code::FailedPrecondition);

        until("the next authority to sign", async || {
            states(&world.channel()).await == authorities(2, &["retired", "active"])
        })
        .await;
        let both = bundle(&world.channel()).await.unwrap().bundle;
        until("the server to show what it signed", async || signed_by(setup, &both).await.contains("CA 2"))
            .await;
        let before = issues();
        until("the driver to renew twice", async || issues() >= before + 2).await;
        stop.store(true, Ordering::Relaxed);
    };
    let (one, new, pods, ()) = tokio::join!(over_one_connection, over_new_connections, of_new_pods, turn);
    assert!(one > 100 && new > 10 && pods > 1, "{one} {new} {pods}");

    let key = "SELECT version, wrapped_key IS NULL, kek_id IS NULL FROM ca_certificates ORDER BY version";
    assert_eq!(world.database.sql(key), "1|t|t\n2|f|f");
    let actor =
        |operation: &str| world.database.entries(operation)[0]["actor"]["name"].as_str().unwrap().to_owned();
    assert_eq!(actor("ca.rotate"), "initial-administrator");
    assert_eq!(actor("ca.activate"), "keyfold-server");
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn new_certificate_files_are_served_at_once_and_files_that_do_not_fit_are_not() {
    let world = World::start().await;
    let setup = world.server.setup();
    let open = world.channel();
    assert_eq!(status(&open).await.unwrap(), State::Serving);

    let (old, new) = (files_ca(setup), Authority::new("The next", SystemClock.now()).unwrap());
    let (certificate, key) = (setup.folder().join("tls.crt"), setup.folder().join("tls.key"));
    let written_by_halves = new.serving(&LOOPBACK).unwrap();
    let logged = |text: &str| world.logs().contains(text);
    fs::write(&certificate, &written_by_halves.certificate_pem).unwrap();
    until("the server to find that they do not fit", async || logged("do not fit")).await;
    assert!(served(setup, &old).await.is_ok(), "what fitted is served");
    fs::write(&key, written_by_halves.key_pem.as_bytes()).unwrap();
    until("the new pair to be served", async || served(setup, &new.certificate_pem()).await.is_ok()).await;

    for garbage in ["", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"] {
        fs::write(&certificate, garbage).unwrap();
        let before = world.logs().matches("cannot be used").count();
        until("the server to find garbage", async || world.logs().matches("cannot be used").count() > before)
            .await;
        assert!(served(setup, &new.certificate_pem()).await.is_ok(), "{garbage:?}");
    }
    fs::remove_file(&certificate).unwrap();
    until("the server to miss the file", async || logged("No such file")).await;
    assert!(served(setup, &new.certificate_pem()).await.is_ok());
    assert_eq!(status(&open).await.unwrap(), State::Serving, "nobody's connection was dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_have_one_authority_whoever_turns_it() {
    let world = World::with_internal_certificates(4, true).await;
    let replica = world.second_replica().await;
    let [one, other] = [world.channel(), channel(replica.setup())];
    assert_eq!(bundle(&one).await.unwrap(), bundle(&other).await.unwrap());

    let [first, second] = [&world.server, &replica].map(operator_of);
    let (mut first, mut second) = (first.certificates(), second.certificates());
    let (first, second) = tokio::join!(
        first.rotate_authority(RotateAuthorityRequest {}),
        second.rotate_authority(RotateAuthorityRequest {})
    );
    assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
    let turned = authorities(2, &["retired", "active"]);
    until("both to sign with the next", async || {
        states(&one).await == turned && states(&other).await == turned
    })
    .await;
    assert_eq!(world.database.entries("ca.activate").len(), 1);

    // What one has signed the other takes.
    let identity = world.identity("dev-node").await;
    let ca = fs::read(replica.setup().ca_file()).unwrap();
    let url = replica.setup().url();
    let shown = keyfold_proto::channel::connect_lazy_as(&url, &ca, Some(&identity)).unwrap();
    world.issue_over(&shown).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_private_key_is_in_postgres_under_a_key_that_can_be_turned_and_never_in_the_clear() {
    let world = World::with_internal_certificates(3600, false).await;
    // What every PKCS#8 key of P-256 begins with: its algorithm and curve.
    let in_the_clear = "SELECT count(*) FROM ca_certificates
        WHERE position('\\x06072a8648ce3d020106082a8648ce3d030107'::bytea IN coalesce(wrapped_key, '')) > 0";
    assert_eq!(world.database.sql(in_the_clear), "0");
    let blob = "SELECT encode(substring(wrapped_key FOR 4), 'hex') FROM ca_certificates";
    assert_eq!(
        world.database.sql(blob),
        world.database.sql("SELECT encode(substring(wrapped FOR 4), 'hex') FROM keks LIMIT 1")
    );

    let request = RotateKeyRequest { purpose: "internal-ca".into(), ..Default::default() };
    operator_of(&world.server).keys().rotate_key(request).await.unwrap();
    until("the private key to lie under the new key", async || {
        world.database.sql("SELECT kek_version FROM ca_certificates") == "2"
    })
    .await;
    world.identity("dev-node").await;
    assert_eq!(states(&world.channel()).await, authorities(1, &["active"]), "it is the same authority");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_18_an_authority_that_a_writer_of_postgres_adds_is_trusted_by_nobody() {
    let mut world = World::with_internal_certificates(3600, true).await;
    let before = bundle(&world.channel()).await.unwrap();
    let own = Authority::new("Mallory's", SystemClock.now()).unwrap().certificate_pem();
    let der = CertificateDer::from_pem_slice(own.as_bytes()).unwrap();
    world.database.sql(&format!(
        "INSERT INTO ca_certificates (version, state, certificate, created_at, expires_at, mac)
         SELECT 2, 'retired', '\\x{}', now(), now() + interval '1 year', mac FROM ca_certificates",
        hex::encode(&der)
    ));
    until("the server to find it", async || world.logs().contains("the internal authority cannot be used"))
        .await;
    assert_eq!(bundle(&world.channel()).await.unwrap(), before, "what was read before stands");
    world.server.restart().await.unwrap();
    until_state(&world.server, State::Serving, "").await;
    assert_eq!(bundle(&world.channel()).await.unwrap_err().code(), Code::DataLoss);
    assert!(served(world.server.setup(), &before.bundle).await.is_err(), "nothing is signed either");

    world.database.sql("DELETE FROM ca_certificates WHERE version = 2");
    until("it to be well again", async || bundle(&world.channel()).await.is_ok()).await;
    assert_eq!(bundle(&world.channel()).await.unwrap(), before);
}

/// A clock that a test sets forward.
struct MovedClock(AtomicI64);

impl Clock for MovedClock {
    fn now(&self) -> OffsetDateTime {
        SystemClock.now() + Span::seconds(self.0.load(Ordering::Relaxed))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_is_turned_every_year_by_itself_and_its_predecessor_is_trusted_until_it_expires() {
    let (database, folder) = (Database::shared(), tempfile::tempdir().unwrap());
    let setup = server_setup(folder.path(), "server", &database);
    configure(&setup, 24 * 60 * 60, false);
    let yaml = fs::read_to_string(setup.config_file()).unwrap();
    let config: Config = keyfold_core::config::load(&yaml, ENVIRONMENT_PREFIX, []).unwrap();
    let clock = Arc::new(MovedClock(AtomicI64::new(0)));
    let bound = serve::bind(config, Arc::clone(&clock) as Arc<dyn Clock>, false).await.unwrap();
    let (broker, stop) = (bound.broker(), CancellationToken::new());
    let _stop = stop.clone().drop_guard();
    tokio::spawn(bound.serve(stop));
    let channel = channel(&setup);
    until("the server to answer", async || status(&channel).await.is_ok()).await;
    let bootstrap_token = fs::read_to_string(setup.bootstrap_token_file()).unwrap();
    let initialize = InitializeRequest { bootstrap_token };
    SystemServiceClient::new(channel.clone()).initialize(initialize).await.unwrap();

    let until_states = async |days: i64, expected: &[(u32, &str)]| {
        clock.0.store(days * 24 * 60 * 60, Ordering::Relaxed);
        let expected: Vec<_> = expected.iter().map(|(n, state)| (*n, (*state).to_owned())).collect();
        until(&format!("{expected:?} on day {days}"), async || {
            // By itself the server does nothing by a clock that is not Postgres' own.
            broker.ca_pass().await.unwrap();
            states(&channel).await == expected
        })
        .await;
    };
    until_states(364, &[(1, "active")]).await;
    until_states(366, &[(1, "active"), (2, "next")]).await;
    until_states(368, &[(1, "retired"), (2, "active")]).await;
    until_states(729, &[(1, "retired"), (2, "active")]).await;
    until_states(732, &[(2, "active"), (3, "next")]).await;
    until_states(734, &[(2, "retired"), (3, "active")]).await;
    // A server that was down for three years.
    until_states(734 + 3 * 365, &[(4, "active")]).await;
    database.check_audit_log();
}
