//! Drivers' certificates: who gets one, what it says, and what it is needed for.

use std::fs;

use keyfold::dev::server::Server;
use keyfold_core::clock::{Clock as _, SystemClock};
use keyfold_proto::channel::ClientIdentity;
use keyfold_tests::{
    PAYMENTS_SECRETS, World,
    certificates::{bundle, key, request},
    faults::until,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use time::OffsetDateTime;
use tonic::{Code, Status};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

/// The reason of the newest refusal of that operation. The real driver's own calls are allowed meanwhile.
fn reason(world: &World, operation: &str) -> String {
    let entries = world.database.entries(operation);
    let mut reasons = entries.iter().rev().filter_map(|entry| entry["outcome"]["reason"].as_str());
    reasons.next().unwrap_or_else(|| panic!("no refusal of {operation}")).to_owned()
}

/// Whether the server hung up instead of answering.
fn is_hung_up(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_gets_a_certificate_for_its_node_whatever_names_it_asks_for() {
    let world = World::with_internal_certificates(3600, false).await;
    let token = world.driver_token_of(Some("worker-7"));
    let key = key();
    let mut greedy = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    greedy.distinguished_name.push(DnType::CommonName, "keyfold-server");
    greedy.subject_alt_names.push(SanType::URI("keyfold://driver/dev/dev-node/uid".try_into().unwrap()));
    greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    greedy.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let asked = greedy.serialize_request(&key).unwrap().der().to_vec();
    let issued = world.certificate(&token, asked).await.unwrap();

    let der = CertificateDer::from_pem_slice(issued.chain.as_bytes()).unwrap();
    let (_, certificate) = X509Certificate::from_der(&der).unwrap();
    let uid = keyfold::dev::tokens::uid("Node", "", "worker-7");
    let names = &certificate.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names[..], [GeneralName::URI(&format!("keyfold://driver/dev/worker-7/{uid}"))]);
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !usage.any);
    let usage = certificate.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    assert!(!certificate.is_ca());
    let expires_at = certificate.validity().not_after.timestamp();
    assert_eq!(expires_at, issued.expires_at.unwrap().seconds);
    assert!(expires_at - SystemClock.now().unix_timestamp() <= 3600);
    assert_eq!(issued.bundle, bundle(&world.channel()).await.unwrap().bundle);

    let serial = hex::encode(certificate.serial.to_bytes_be());
    let entries = world.database.entries("ca.issue-driver-certificate");
    let entry = entries.iter().find(|entry| entry["operation"]["serial"] == serial).expect("an entry");
    assert_eq!(entry["actor"]["node"]["name"], "worker-7");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_of_a_good_key_gets_no_certificate() {
    let world = World::with_internal_certificates(3600, false).await;
    let token = world.driver_token_of(Some("worker-7"));
    let good = request(&key());
    let mut changed = good.clone();
    *changed.last_mut().unwrap() ^= 1;
    let of = |kind| request(&KeyPair::generate_for(kind).unwrap());
    let garbage: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("text", b"-----BEGIN CERTIFICATE REQUEST-----".to_vec()),
        ("random", (0..=255).cycle().take(8000).collect()),
        ("a long length", vec![0x30, 0x84, 0xff, 0xff, 0xff, 0xff]),
        ("nested deeply", [0x30, 0x80].repeat(4000)),
        ("cut short", good[..good.len() / 2].to_vec()),
        ("signed by another key", changed),
        ("Ed25519", of(&PKCS_ED25519)),
        ("P-384", of(&PKCS_ECDSA_P384_SHA384)),
    ];
    for (what, asked) in garbage {
        let refused = world.certificate(&token, asked).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{what}: {refused:?}");
        assert_eq!(reason(&world, "ca.issue-driver-certificate"), "invalid", "{what}");
    }
    assert!(world.certificate(&token, good).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_driver_on_a_node_gets_a_certificate() {
    let world = World::with_internal_certificates(3600, false).await;
    let pod = world.token(&world.pod("payments", "api", "api-0")).jwt.to_string();
    let without_node = world.driver_token_of(None);
    let administrator = fs::read_to_string(world.server.setup().admin_token_file()).unwrap();
    for (token, expected) in [
        (pod.as_str(), "not-a-driver"),
        (&without_node, "driver-node-unknown"),
        (&administrator, "token-malformed"),
        ("", "token-malformed"),
    ] {
        let refused = world.certificate(token, request(&key())).await.unwrap_err();
        assert!(matches!(refused.code(), Code::PermissionDenied | Code::Unauthenticated), "{refused:?}");
        assert_eq!(reason(&world, "ca.issue-driver-certificate"), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_05_a_stolen_token_is_of_no_use_without_its_nodes_certificate() {
    let world = World::with_internal_certificates(3600, true).await;
    let refused = world.issue_over(&world.channel()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(reason(&world, "secret.issue"), "driver-certificate-missing");

    let others = world.identity("worker-7").await;
    let refused = world.issue_over(&world.channel_as(Some(&others))).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(reason(&world, "secret.issue"), "driver-certificate-mismatch");

    let own = world.identity("dev-node").await;
    world.issue_over(&world.channel_as(Some(&own))).await.unwrap();
    let pod = world.pod("payments", "api", "api-1");
    world.publish(&pod, "payments-api", PAYMENTS_SECRETS).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_05_a_certificate_that_is_shown_must_be_the_drivers_own_also_where_none_is_needed() {
    let world = World::with_internal_certificates(3600, false).await;
    world.issue_over(&world.channel()).await.unwrap();
    let others = world.identity("worker-7").await;
    let refused = world.issue_over(&world.channel_as(Some(&others))).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(reason(&world, "secret.issue"), "driver-certificate-mismatch");
}

/// What the internal authority would sign for the driver's node, signed by an authority of the same name.
fn forged(bundle: &str) -> ClientIdentity {
    let genuine = CertificateDer::from_pem_slice(bundle.as_bytes()).unwrap();
    let (_, genuine) = X509Certificate::from_der(&genuine).unwrap();
    let name = |attribute: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
        attribute.and_then(|attribute| attribute.as_str().ok()).unwrap().to_owned()
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let (organization, common) = (
        name(genuine.subject().iter_organization().next()),
        name(genuine.subject().iter_common_name().next()),
    );
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params.distinguished_name.push(DnType::CommonName, common);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let issuer = CertifiedIssuer::self_signed(params, key()).unwrap();
    let mut leaf = CertificateParams::default();
    let uid = keyfold::dev::tokens::uid("Node", "", "dev-node");
    let uri = format!("keyfold://driver/dev/dev-node/{uid}");
    leaf.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().unwrap())];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = key();
    let chain = leaf.signed_by(&key, &issuer).unwrap().pem();
    ClientIdentity::new(chain, key.serialize_der())
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_05_a_certificate_of_somebody_elses_authority_is_refused_in_the_handshake() {
    let world = World::with_internal_certificates(3600, true).await;
    let forged = forged(&bundle(&world.channel()).await.unwrap().bundle);
    let refused = world.issue_over(&world.channel_as(Some(&forged))).await.unwrap_err();
    assert!(is_hung_up(&refused), "{refused:?}");
    // So it is with a genuine certificate and another key.
    let issued = world.certificate(&world.driver_token_of(Some("dev-node")), request(&key())).await.unwrap();
    let stolen = ClientIdentity::new(issued.chain, key().serialize_der());
    let own = keyfold_proto::channel::connect_lazy_as(
        &world.server.setup().url(),
        &fs::read(world.server.setup().ca_file()).unwrap(),
        Some(&stolen),
    );
    match own {
        Err(_) => {}
        Ok(channel) => assert!(is_hung_up(&world.issue_over(&channel).await.unwrap_err())),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_has_expired_is_of_no_use_on_a_new_connection_nor_on_an_old_one() {
    let world = World::with_internal_certificates(5, true).await;
    let issued_for = key();
    let token = world.driver_token_of(Some("dev-node"));
    let issued = world.certificate(&token, request(&issued_for)).await.unwrap();
    let identity = ClientIdentity::new(issued.chain, issued_for.serialize_der());
    let open = world.channel_as(Some(&identity));
    world.issue_over(&open).await.unwrap();

    let expires_at = OffsetDateTime::from_unix_timestamp(issued.expires_at.unwrap().seconds).unwrap();
    until("the certificate to expire", async || SystemClock.now() > expires_at + time::Duration::SECOND)
        .await;
    assert_eq!(world.issue_over(&open).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(reason(&world, "secret.issue"), "driver-certificate-expired");
    let refused = world.issue_over(&world.channel_as(Some(&identity))).await.unwrap_err();
    assert!(is_hung_up(&refused), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_renews_its_certificate_in_time_and_outlives_a_server_that_was_away() {
    let mut world = World::with_internal_certificates(6, true).await;
    let issued = |world: &World| {
        let entries = world.database.entries("ca.issue-driver-certificate");
        entries.iter().filter(|entry| entry["outcome"]["result"] == "allowed").count()
    };
    let mut pods = 0;
    while issued(&world) < 4 {
        let pod = world.pod("payments", "api", &format!("api-{pods}"));
        world.publish(&pod, "payments-api", PAYMENTS_SECRETS).await.unwrap();
        world.driver.kubelet().unpublish(&world.volume(&pod)).await.unwrap();
        pods += 1;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    // Away for longer than the driver's certificate holds.
    world.server.stop();
    until("the driver's certificate to expire", async || {
        world.logs().contains("the driver's certificate has expired")
    })
    .await;
    let mut server = None;
    let pod = world.pod("payments", "api", "patient");
    let (published, ()) = tokio::join!(world.publish(&pod, "payments-api", PAYMENTS_SECRETS), async {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        server = Some(Server::start(world.server.setup()).await.unwrap());
    });
    published.unwrap();
    drop(server);
}
