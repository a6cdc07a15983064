use std::path::Path;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use keyfold_core::{clock::FixedClock, object::KeySource};
use ring::hmac;
use serde_json::{Value, json};
use time::{OffsetDateTime, macros::datetime};

use super::{
    test_issuer::{Answer, KEYS_PATH, TestClock, TestIssuer, TestKey, claims, issuer_spec, key_set},
    *,
};

const NOW: OffsetDateTime = datetime!(2026-11-23 05:45 UTC);
const KUBERNETES_URL: &str = "https://kubernetes.default.svc.cluster.local";
const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/kubernetes-1.36");

fn recorded(name: &str) -> String {
    let path = format!("{FIXTURES}/tokens/{name}.jwt");
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")).trim().to_owned()
}

fn issuer(name: &str, url: &str, keys: KeySource) -> IssuerRecord {
    IssuerRecord {
        name: ObjectName::try_from(name).expect("a name"),
        generation: 1,
        spec: issuer_spec(url, keys),
    }
}

fn recorded_issuer() -> IssuerRecord {
    issuer("prod", KUBERNETES_URL, KeySource::File("jwks.json".into()))
}

fn authenticator(clock: Arc<dyn Clock>, jwks_dir: &Path) -> Authenticator {
    Authenticator::new(clock, Some(jwks_dir.into())).expect("an authenticator")
}

fn recorded_authenticator(now: OffsetDateTime) -> Authenticator {
    authenticator(Arc::new(FixedClock(now)), Path::new(FIXTURES))
}

async fn recorded_caller(now: OffsetDateTime, pod: &str, driver: &str) -> Result<PodCaller, AuthnError> {
    recorded_authenticator(now).pod_caller(pod, driver, &[recorded_issuer()]).await
}

/// The stable code of the refusal, or `keys-unavailable`.
fn code<T>(result: Result<T, AuthnError>) -> &'static str {
    match result {
        Ok(_) => "accepted",
        Err(AuthnError::Refused { refusal, .. }) => refusal.code(),
        Err(AuthnError::KeysUnavailable { .. }) => "keys-unavailable",
    }
}

#[tokio::test]
async fn each_recorded_pod_is_known_by_its_token() {
    let cases = [
        ("payments-api-on-node-vm", "payments", "api", "vm"),
        ("payments-api-on-node-b", "payments", "api", "node-b"),
        ("payments-api-ten-minutes", "payments", "api", "vm"),
        ("payments-reports-on-node-vm", "payments", "reports", "vm"),
        ("shop-api-on-node-vm", "shop", "api", "vm"),
    ];
    for (pod, namespace, service_account, node) in cases {
        for (driver, driver_node) in [("driver-on-node-vm", "vm"), ("driver-on-node-b", "node-b")] {
            let caller = recorded_caller(NOW, &recorded(pod), &recorded(driver)).await.expect(pod);
            let identity = caller.identity();
            assert_eq!(identity.namespace, namespace);
            assert_eq!(identity.service_account.name, service_account);
            assert_eq!(identity.node.as_ref().map(|node| node.name.as_str()), Some(node));
            assert_eq!(caller.driver().node.as_ref().map(|node| node.name.as_str()), Some(driver_node));
        }
    }
}

#[tokio::test]
async fn each_wrong_recorded_token_is_refused_for_its_own_reason() {
    let driver = recorded("driver-on-node-vm");
    let later = NOW + Duration::from_secs(3600);
    let cases = [
        ("payments-api-api-server-audience", NOW, "token-audience"),
        ("payments-api-not-bound-to-a-pod", NOW, "token-not-bound-to-a-pod"),
        ("payments-api-ten-minutes", later, "token-expired"),
        ("driver-on-node-vm", NOW, "driver-as-pod"),
        ("driver-on-node-b", NOW, "driver-as-pod"),
    ];
    for (pod, now, expected) in cases {
        assert_eq!(code(recorded_caller(now, &recorded(pod), &driver).await), expected, "{pod}");
    }
}

#[tokio::test]
async fn a_pod_cannot_be_the_driver_and_a_refused_pod_is_told_for_the_audit() {
    let pod = recorded("payments-api-on-node-vm");
    assert_eq!(code(recorded_caller(NOW, &pod, &pod).await), "not-a-driver");
    let driver = recorded("driver-on-node-vm");
    match recorded_caller(NOW, &driver, &driver).await {
        Err(AuthnError::Refused { pod: Some(pod), .. }) => assert_eq!(pod.namespace, "keyfold-system"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_refusal_says_whose_token_it_was_and_holds_no_part_of_it() {
    let (pod, driver) = (recorded("payments-api-ten-minutes"), recorded("driver-on-node-vm"));
    let later = NOW + Duration::from_secs(3600);
    let refusal = recorded_caller(later, &pod, &driver).await.expect_err("expired");
    assert_eq!(refusal.to_string(), "the pod's token was refused: it expired at 2026-11-23T05:50:54Z");
    let refusal = recorded_caller(NOW, &driver, "a.b").await.expect_err("no token");
    assert!(refusal.to_string().starts_with("the driver's token was refused: it is not a signed JWT"));
    let shown = format!("{refusal:?} {refusal}");
    assert!(pod.split('.').chain(driver.split('.')).all(|part| !shown.contains(part)));
}

#[tokio::test]
async fn a_token_changed_anywhere_is_refused() {
    let (good, driver) = (recorded("payments-api-on-node-vm"), recorded("driver-on-node-vm"));
    let parts = good.split('.').collect::<Vec<_>>();
    let decoded =
        |part: &str| String::from_utf8(URL_SAFE_NO_PAD.decode(part).expect("base64")).expect("text");
    let (header, payload) = (decoded(parts[0]), decoded(parts[1]));
    let token = |header: &str, payload: &str, signature: &str| {
        format!("{}.{}.{signature}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload))
    };
    let other = recorded("payments-reports-on-node-vm");
    let other_signature = other.rsplit('.').next().expect("a signature");
    let first_changed = match parts[2].strip_prefix('A') {
        Some(rest) => format!("B{rest}"),
        None => format!("A{}", &parts[2][1..]),
    };
    let cases = [
        (token(&header, &payload, parts[2]), "accepted"),
        (token(&header, &payload.replace("vm", "VM"), parts[2]), "token-signature"),
        (token(&header, &format!("{payload} "), parts[2]), "token-signature"),
        (token(&header.replace('{', r#"{"typ":"JWT","#), &payload, parts[2]), "token-signature"),
        (token(&header, &payload, other_signature), "token-signature"),
        (token(&header, &payload, &first_changed), "token-signature"),
        (token(&header, &payload, &parts[2][..340]), "token-signature"),
        (token(&header.replace("RS256", "ES256"), &payload, parts[2]), "token-key-unfit"),
        (token(&header.replace("RS256", "RS512"), &payload, parts[2]), "token-algorithm"),
        (token(&header.replace("63hk", "64hk"), &payload, parts[2]), "token-key-unknown"),
        (token(&header, &payload.replace("cluster.local", "cluster.example"), parts[2]), "token-issuer"),
    ];
    for (pod, expected) in cases {
        assert_eq!(code(recorded_caller(NOW, &pod, &driver).await), expected, "{pod}");
    }
}

#[tokio::test]
async fn the_public_key_is_no_secret_for_hmac_and_none_is_no_algorithm() {
    let jwks = std::fs::read_to_string(format!("{FIXTURES}/jwks.json")).expect("the recorded keys");
    let modulus = serde_json::from_str::<Value>(&jwks).expect("JSON")["keys"][0]["n"].clone();
    let modulus = URL_SAFE_NO_PAD.decode(modulus.as_str().expect("text")).expect("base64");
    let good = recorded("payments-api-on-node-vm");
    let payload = good.split('.').nth(1).expect("a payload");
    let kid = "63hkW5OmeVCTDmx7DSoDfa2ZJBjXMUkRoo7aEJU3NXk";
    let input =
        |alg| format!("{}.{payload}", URL_SAFE_NO_PAD.encode(json!({"alg": alg, "kid": kid}).to_string()));
    let driver = recorded("driver-on-node-vm");
    for secret in [modulus.as_slice(), jwks.as_bytes()] {
        let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), input("HS256").as_bytes());
        let pod = format!("{}.{}", input("HS256"), URL_SAFE_NO_PAD.encode(signature));
        assert_eq!(code(recorded_caller(NOW, &pod, &driver).await), "token-algorithm");
    }
    let signature = good.rsplit('.').next().expect("a signature");
    for pod in [format!("{}.", input("none")), format!("{}.{signature}", input("none"))] {
        assert_eq!(code(recorded_caller(NOW, &pod, &driver).await), "token-algorithm");
    }
}

#[tokio::test]
async fn a_pod_of_one_cluster_and_a_driver_of_another_do_not_belong_together() {
    let dir = tempfile::tempdir().expect("a folder");
    let (east, west) = (TestKey::new("k"), TestKey::new("k"));
    std::fs::write(dir.path().join("east.json"), key_set(&[&east])).expect("a file");
    std::fs::write(dir.path().join("west.json"), key_set(&[&west])).expect("a file");
    let issuers = ["east", "west"]
        .map(|name| issuer(name, &format!("https://{name}"), KeySource::File(format!("{name}.json"))));
    let authenticator = authenticator(Arc::new(FixedClock(NOW)), dir.path());
    let pod = |key: &TestKey, url| key.sign(&claims(url, "payments", "api", NOW));
    let driver = |key: &TestKey, url| key.sign(&claims(url, "keyfold-system", "keyfold-csi", NOW));
    let cases = [
        (pod(&east, "https://east"), driver(&east, "https://east"), "accepted"),
        (pod(&west, "https://west"), driver(&east, "https://east"), "issuer-mismatch"),
        (pod(&west, "https://east"), driver(&east, "https://east"), "token-signature"),
        (driver(&west, "https://west"), driver(&east, "https://east"), "driver-as-pod"),
    ];
    for (pod, driver, expected) in cases {
        assert_eq!(code(authenticator.pod_caller(&pod, &driver, &issuers).await), expected);
    }
}

/// A pod's and a driver's token of an issuer, and the means to present them.
struct Mount {
    authenticator: Authenticator,
    clock: Arc<TestClock>,
    url: String,
}

impl Mount {
    fn new(url: &str, jwks_dir: Option<&Path>) -> Self {
        let clock = TestClock::at(NOW);
        let timeout = Duration::from_secs(20);
        let authenticator =
            Authenticator::with_timeout(clock.clone(), jwks_dir.map(Path::to_owned), timeout).expect("ring");
        Self { authenticator, clock, url: url.into() }
    }

    async fn code(&self, key: &TestKey, issuers: &[IssuerRecord]) -> &'static str {
        let pod = key.sign(&claims(&self.url, "payments", "api", NOW));
        let driver = key.sign(&claims(&self.url, "keyfold-system", "keyfold-csi", NOW));
        code(self.authenticator.pod_caller(&pod, &driver, issuers).await)
    }
}

fn discovered(server: &TestIssuer) -> IssuerRecord {
    issuer("dev", &server.url, KeySource::Discovery(server.discovery()))
}

#[tokio::test]
async fn keys_are_fetched_once_and_then_verify_without_the_network() {
    let key = TestKey::new("a");
    let server = TestIssuer::start(&[&key]).await;
    let (mount, issuers) = (Mount::new(&server.url, None), [discovered(&server)]);
    for _ in 0..3 {
        assert_eq!(mount.code(&key, &issuers).await, "accepted");
    }
    assert_eq!(server.requests(), 2, "one document and one set of keys");
}

#[tokio::test]
async fn many_first_callers_share_one_fetch() {
    let key = TestKey::new("a");
    let server = TestIssuer::start(&[&key]).await;
    let (mount, issuers) = (Arc::new(Mount::new(&server.url, None)), [discovered(&server)]);
    let mut callers = tokio::task::JoinSet::new();
    let key = Arc::new(key);
    for _ in 0..20 {
        let (mount, issuers, key) = (Arc::clone(&mount), issuers.clone(), Arc::clone(&key));
        callers.spawn(async move { mount.code(&key, &issuers).await });
    }
    assert!(callers.join_all().await.iter().all(|code| *code == "accepted"));
    assert_eq!(server.requests(), 2);
}

#[tokio::test]
async fn an_unknown_key_is_asked_for_once_in_ten_seconds() {
    let (old, new) = (TestKey::new("old"), TestKey::new("new"));
    let server = TestIssuer::start(&[&old]).await;
    let (mount, issuers) = (Mount::new(&server.url, None), [discovered(&server)]);
    assert_eq!(mount.code(&old, &issuers).await, "accepted");
    server.answer(KEYS_PATH, Answer::Json(key_set(&[&old, &new])));
    for _ in 0..5 {
        assert_eq!(mount.code(&new, &issuers).await, "token-key-unknown");
    }
    assert_eq!(server.requests(), 2);
    mount.clock.advance(Duration::from_secs(10));
    assert_eq!(mount.code(&new, &issuers).await, "accepted");
    assert_eq!(server.requests(), 4);
}

#[tokio::test]
async fn keys_at_hand_serve_through_an_outage_of_the_issuer() {
    let key = TestKey::new("a");
    let server = TestIssuer::start(&[&key]).await;
    let (mount, issuers) = (Mount::new(&server.url, None), [discovered(&server)]);
    assert_eq!(mount.code(&key, &issuers).await, "accepted");
    server.stop();
    mount.clock.advance(Duration::from_secs(600));
    assert_eq!(mount.code(&TestKey::new("unknown"), &issuers).await, "token-key-unknown");
    mount.clock.advance(Duration::from_secs(600));
    assert_eq!(mount.code(&key, &issuers).await, "accepted");
}

#[tokio::test]
async fn without_any_keys_the_caller_is_told_to_try_again_and_not_why() {
    let key = TestKey::new("a");
    let server = TestIssuer::start(&[&key]).await;
    server.answer_with_document("https://other", "https://127.0.0.1:1/keys");
    let (mount, issuers) = (Mount::new(&server.url, None), [discovered(&server)]);
    let token = key.sign(&claims(&server.url, "payments", "api", NOW));
    let error = mount.authenticator.pod_caller(&token, &token, &issuers).await.expect_err("no keys");
    assert_eq!(
        error.to_string(),
        "the keys of issuer dev cannot be read now: try again, and see the server's log for the reason"
    );
    server.answer_with_document(&server.url, &format!("{}{KEYS_PATH}", server.url));
    assert_eq!(mount.code(&key, &issuers).await, "keys-unavailable");
    mount.clock.advance(Duration::from_secs(10));
    assert_eq!(mount.code(&key, &issuers).await, "accepted");
}

#[tokio::test]
async fn old_keys_are_renewed_beside_the_request() {
    let key = TestKey::new("a");
    let server = TestIssuer::start(&[&key]).await;
    let (mount, issuers) = (Mount::new(&server.url, None), [discovered(&server)]);
    assert_eq!(mount.code(&key, &issuers).await, "accepted");
    server.answer(KEYS_PATH, Answer::Json(key_set(&[])));
    mount.clock.advance(Duration::from_secs(5 * 60));
    let renewed = async {
        while mount.code(&key, &issuers).await == "accepted" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), renewed)
        .await
        .expect("the withdrawn key is refused at last");
    assert_eq!(server.requests(), 4);
}

#[tokio::test]
async fn a_changed_or_removed_issuer_loses_its_keys() {
    let (old, new) = (TestKey::new("a"), TestKey::new("a"));
    let (first, second) = (TestIssuer::start(&[&old]).await, TestIssuer::start(&[&new]).await);
    second.answer_with_document(&first.url, &format!("{}{KEYS_PATH}", second.url));
    let before = discovered(&first);
    let mut after = before.clone();
    after.generation = 2;
    after.spec.keys = KeySource::Discovery(keyfold_core::object::Discovery {
        url: Some(second.url.clone()),
        ..second.discovery()
    });
    let mount = Mount::new(&first.url, None);
    assert_eq!(mount.code(&old, std::slice::from_ref(&before)).await, "accepted");
    assert_eq!(mount.code(&old, std::slice::from_ref(&after)).await, "token-signature");
    assert_eq!(mount.code(&new, std::slice::from_ref(&after)).await, "accepted");
    assert_eq!(mount.code(&new, &[]).await, "token-issuer");
}

#[tokio::test]
async fn of_two_issuer_objects_with_one_url_either_may_accept() {
    let key = TestKey::new("a");
    let server = TestIssuer::start(&[&key]).await;
    let mut other_audience = discovered(&server);
    other_audience.name = ObjectName::try_from("other").expect("a name");
    other_audience.spec.audiences = ["other".to_owned()].into();
    let issuers = [other_audience, discovered(&server)];
    assert_eq!(Mount::new(&server.url, None).code(&key, &issuers).await, "accepted");
}

#[tokio::test]
async fn a_file_of_keys_is_read_anew_when_it_changes() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("keys.json");
    let (old, new) = (TestKey::new("old"), TestKey::new("new"));
    let issuers = [issuer("dev", "https://dev", KeySource::File("keys.json".into()))];
    let mount = Mount::new("https://dev", Some(dir.path()));
    assert_eq!(mount.code(&old, &issuers).await, "keys-unavailable");
    for (keys, unknown) in [(&old, &new), (&new, &old)] {
        std::fs::write(&path, key_set(&[keys])).expect("a file");
        mount.clock.advance(Duration::from_secs(1));
        assert_eq!(mount.code(keys, &issuers).await, "accepted");
        assert_eq!(mount.code(unknown, &issuers).await, "token-key-unknown");
    }
    std::fs::write(&path, "half a fi").expect("a file");
    mount.clock.advance(Duration::from_secs(1));
    assert_eq!(mount.code(&new, &issuers).await, "accepted", "a broken file leaves the last good keys");
}

#[tokio::test]
async fn a_file_of_keys_that_is_missing_huge_or_no_file_gives_no_keys() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(dir.path().join("folder")).expect("a folder");
    std::fs::write(dir.path().join("huge"), vec![b' '; 1024 * 1024 + 1]).expect("a file");
    for name in ["folder", "huge", "missing"] {
        let issuers = [issuer("dev", "https://dev", KeySource::File(name.into()))];
        let mount = Mount::new("https://dev", Some(dir.path()));
        assert_eq!(mount.code(&TestKey::new("a"), &issuers).await, "keys-unavailable", "{name}");
    }
    let issuers = [issuer("dev", "https://dev", KeySource::File("a".into()))];
    assert_eq!(Mount::new("https://dev", None).code(&TestKey::new("a"), &issuers).await, "keys-unavailable");
}
