use super::*;
use crate::authn::test_issuer::{Answer, DISCOVERY_PATH, KEYS_PATH, TestIssuer, TestKey};

const TIMEOUT: Duration = Duration::from_secs(20);

async fn issuer() -> TestIssuer {
    TestIssuer::start(&[&TestKey::new("key-1")]).await
}

async fn refusal(issuer: &TestIssuer) -> String {
    let fetched = fetch(&issuer.url, &issuer.discovery(), TIMEOUT).await;
    fetched.err().expect("these keys must not be taken").to_string()
}

#[tokio::test]
async fn keys_are_found_through_the_document() {
    let issuer = issuer().await;
    let keys = fetch(&issuer.url, &issuer.discovery(), TIMEOUT).await.expect("keys");
    assert!(keys.contains("key-1"));
}

#[tokio::test]
async fn the_document_may_be_served_elsewhere_than_the_issuers_url() {
    let issuer = issuer().await;
    let issuer_url = "https://kubernetes.default.svc.cluster.local";
    issuer.answer_with_document(issuer_url, &format!("{}{KEYS_PATH}", issuer.url));
    let discovery = Discovery { url: Some(format!("{}/", issuer.url)), ..issuer.discovery() };
    let keys = fetch(issuer_url, &discovery, TIMEOUT).await.expect("keys");
    assert!(keys.contains("key-1"));
}

#[tokio::test]
async fn attack_23_a_document_of_another_issuer_is_refused() {
    let issuer = issuer().await;
    issuer.answer_with_document(&format!("{}/", issuer.url), &format!("{}{KEYS_PATH}", issuer.url));
    assert!(refusal(&issuer).await.contains("another issuer"));
}

#[tokio::test]
async fn attack_23_keys_at_an_address_without_tls_or_with_credentials_are_refused() {
    let issuer = issuer().await;
    let with_password = issuer.url.replace("https://", "https://user:password@");
    for bad in
        [issuer.url.replace("https", "http"), with_password, "file:///etc/passwd".into(), String::new()]
    {
        issuer.answer_with_document(&issuer.url, &bad);
        assert!(refusal(&issuer).await.contains("not a plain https:// address"), "{bad}");
    }
    assert_eq!(issuer.requests(), 4, "only the documents were asked for");
}

#[tokio::test]
async fn attack_23_no_redirect_is_followed() {
    let (issuer, other) = (issuer().await, issuer().await);
    issuer.answer(KEYS_PATH, Answer::RedirectTo(format!("{}{KEYS_PATH}", other.url)));
    assert!(refusal(&issuer).await.contains("302"));
    issuer.answer(DISCOVERY_PATH, Answer::RedirectTo(format!("{}{DISCOVERY_PATH}", other.url)));
    assert!(refusal(&issuer).await.contains("302"));
    assert_eq!(other.requests(), 0);
}

#[tokio::test]
async fn attack_16_an_endless_answer_is_cut_off() {
    for path in [DISCOVERY_PATH, KEYS_PATH] {
        let issuer = issuer().await;
        issuer.answer(path, Answer::Huge);
        assert!(refusal(&issuer).await.contains("more than 1048576 bytes"), "{path}");
    }
}

#[tokio::test]
async fn attack_16_a_slow_answer_is_given_up() {
    for path in [DISCOVERY_PATH, KEYS_PATH] {
        let issuer = issuer().await;
        issuer.answer(path, Answer::Slow);
        let fetched = fetch(&issuer.url, &issuer.discovery(), Duration::from_millis(300)).await;
        assert!(fetched.err().expect("no keys").to_string().contains("no whole answer within"), "{path}");
    }
}

#[tokio::test]
async fn an_answer_that_is_no_document_is_refused() {
    let issuer = issuer().await;
    for bad in ["", "{}", "[]", "<html>", r#"{"issuer": 1, "jwks_uri": 2}"#] {
        issuer.answer(DISCOVERY_PATH, Answer::Json(bad.into()));
        assert!(refusal(&issuer).await.contains("the discovery document lacks"), "{bad}");
    }
}

#[tokio::test]
async fn a_server_with_another_authoritys_certificate_is_not_trusted() {
    let (issuer, other) = (issuer().await, issuer().await);
    for ca_bundle in [Some(other.ca_pem.clone()), None] {
        let discovery = Discovery { url: None, ca_bundle };
        let reason = fetch(&issuer.url, &discovery, TIMEOUT).await.err().expect("no keys").to_string();
        assert!(reason.contains("certificate"), "{reason}");
    }
    assert_eq!(issuer.requests(), 0);
}

#[tokio::test]
async fn a_ca_bundle_without_a_readable_certificate_is_refused() {
    let issuer = issuer().await;
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for bad in ["", "no certificate", broken] {
        let discovery = Discovery { url: None, ca_bundle: Some(bad.into()) };
        let reason = fetch(&issuer.url, &discovery, TIMEOUT).await.err().expect("no keys").to_string();
        assert!(reason.contains("caBundle"), "{reason}");
    }
}
