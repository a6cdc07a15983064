use std::collections::BTreeSet;

use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use serde_json::json;
use time::macros::datetime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

use super::*;
use crate::dev::tokens::SigningKey;

fn authority() -> Authority {
    // The certificate must hold when the test runs; it says nothing about what is tested.
    use keyfold_core::clock::{Clock as _, SystemClock};
    Authority::new("test issuer", SystemClock.now()).unwrap()
}

fn keys(document: &Value) -> BTreeSet<String> {
    document.as_object().unwrap().keys().cloned().collect()
}

/// GETs `path` over TLS, trusting `authority` alone: the head of the answer and its body.
async fn get(issuer: &Issuer, authority: &Authority, path: &str) -> io::Result<(String, String)> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(issuer.address).await?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    Ok((head.to_owned(), body.to_owned()))
}

#[tokio::test]
async fn discovery_and_keys_are_served_as_kubernetes_serves_them() {
    let (authority, key) = (authority(), SigningKey::generate().unwrap());
    let issuer = Issuer::start(&authority, vec![key.jwk()]).await.unwrap();

    let (head, body) = get(&issuer, &authority, "/.well-known/openid-configuration").await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("application/json"), "{head}");
    let discovery: Value = serde_json::from_str(&body).unwrap();
    // Recorded from Kubernetes 1.36, but for the two addresses.
    let recorded = json!({
        "issuer": issuer.url(),
        "jwks_uri": format!("{}/openid/v1/jwks", issuer.url()),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
    });
    assert_eq!(discovery, recorded);

    let (head, body) = get(&issuer, &authority, "/openid/v1/jwks").await.unwrap();
    assert!(head.contains("application/jwk-set+json"), "{head}");
    let jwks: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(jwks, json!({"keys": [key.jwk()]}));
    assert_eq!(keys(&jwks["keys"][0]), ["alg", "e", "kid", "kty", "n", "use"].map(String::from).into());
}

#[tokio::test]
async fn anything_else_is_not_found() {
    let authority = authority();
    let issuer = Issuer::start(&authority, vec![]).await.unwrap();
    let (head, _) = get(&issuer, &authority, "/openid/v1/jwks/../../etc/passwd").await.unwrap();
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
}

#[tokio::test]
async fn a_client_that_trusts_another_authority_is_not_served() {
    let issuer = Issuer::start(&authority(), vec![]).await.unwrap();
    assert!(get(&issuer, &authority(), "/openid/v1/jwks").await.is_err());
}

#[tokio::test]
async fn keys_are_replaced_and_an_outage_ends_on_the_same_port() {
    let (authority, key) = (authority(), SigningKey::generate().unwrap());
    let mut issuer = Issuer::start(&authority, vec![]).await.unwrap();
    issuer.publish(vec![key.jwk()]);
    assert!(get(&issuer, &authority, "/openid/v1/jwks").await.unwrap().1.contains(key.kid()));

    issuer.stop();
    // The listener closes when its task has been aborted, which the next turn of the runtime does.
    tokio::task::yield_now().await;
    assert!(get(&issuer, &authority, "/openid/v1/jwks").await.is_err());

    issuer.resume().await.unwrap();
    assert!(get(&issuer, &authority, "/openid/v1/jwks").await.unwrap().1.contains(key.kid()));
}

#[test]
fn certificates_hold_from_shortly_before_now_for_thirty_days() {
    let authority = Authority::new("x", datetime!(2026-11-23 07:00 UTC)).unwrap();
    let certificate = authority.serving(&LOOPBACK).unwrap().certificate_pem;
    // The test needs no parser of its own: both dates stand as UTCTime text in the DER.
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let contains = |text: &[u8]| der.windows(text.len()).any(|window| window == text);
    assert!(contains(b"261123060000Z") && contains(b"261223060000Z"));
}
