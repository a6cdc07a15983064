use std::path::Path;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use keyfold_core::{
    clock::FixedClock,
    object::{IssuerKind, KeySource},
};
use time::{OffsetDateTime, macros::datetime};

use super::{
    test_issuer::{TestClock, TestIssuer, TestKey, claims, issuer_spec, key_set, person},
    *,
};

mod algorithms;
mod attacks;
mod cache;
mod keys;
mod operators;

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
async fn attack_05_a_pod_is_no_driver_and_a_driver_no_pod_and_a_refused_pod_is_told_for_the_audit() {
    let pod = recorded("payments-api-on-node-vm");
    assert_eq!(code(recorded_caller(NOW, &pod, &pod).await), "not-a-driver");
    let driver = recorded("driver-on-node-vm");
    match recorded_caller(NOW, &driver, &driver).await {
        Err(AuthnError::Refused { pod: Some(pod), .. }) => assert_eq!(pod.namespace, "keyfold-system"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn attack_14_the_refusal_says_whose_token_it_was_and_holds_no_part_of_it() {
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
async fn attack_03_a_token_changed_anywhere_is_refused() {
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
async fn attack_05_a_pod_of_one_cluster_and_a_driver_of_another_do_not_belong_together() {
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
        self.present(&pod, &self.driver(key), issuers).await
    }

    fn driver(&self, key: &TestKey) -> String {
        key.sign(&claims(&self.url, "keyfold-system", "keyfold-csi", NOW))
    }

    async fn present(&self, pod: &str, driver: &str, issuers: &[IssuerRecord]) -> &'static str {
        code(self.authenticator.pod_caller(pod, driver, issuers).await)
    }

    /// Lets the background read what is due, and waits for it.
    async fn refresh(&self, issuers: &[IssuerRecord]) {
        self.authenticator.refresh_keys(issuers);
        self.authenticator.keys.settled().await;
    }
}

/// A folder with keys in the file `keys.json`, the issuer that has them, and how to present its tokens.
fn mount_of_file(keys: &[&TestKey]) -> (tempfile::TempDir, Mount, [IssuerRecord; 1]) {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("keys.json"), key_set(keys)).expect("a file");
    let mount = Mount::new("https://dev", Some(dir.path()));
    let issuers = [issuer("dev", "https://dev", KeySource::File("keys.json".into()))];
    (dir, mount, issuers)
}

fn discovered(server: &TestIssuer) -> IssuerRecord {
    issuer("dev", &server.url, KeySource::Discovery(server.discovery()))
}
