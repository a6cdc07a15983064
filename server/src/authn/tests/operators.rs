//! Operators: by an administrator's token, and by those of issuers.

use keyfold_core::entropy::SystemEntropy;
use serde_json::json;

use super::*;

/// Two issuers with one key: a provider of people and a cluster; and an administrator's token.
struct Operators {
    _dir: tempfile::TempDir,
    authenticator: Authenticator,
    key: TestKey,
    issuers: [IssuerRecord; 2],
    admin_token: String,
    admin_tokens: [AdminToken; 1],
}

impl Operators {
    fn new() -> Self {
        let key = TestKey::new("k");
        let (dir, mount, [cluster]) = mount_of_file(&[&key]);
        let mut people = issuer("people", "https://id", KeySource::File("keys.json".into()));
        people.spec.kind = IssuerKind::Oidc;
        people.spec.drivers.clear();
        let (token, token_hash) = generate_admin_token(&SystemEntropy).expect("randomness");
        Self {
            _dir: dir,
            authenticator: mount.authenticator,
            key,
            issuers: [people, cluster],
            admin_token: String::from_utf8(token.into_vec()).expect("text"),
            admin_tokens: [AdminToken { name: "initial".into(), token_hash }],
        }
    }

    async fn caller(&self, token: Option<&str>) -> Result<OperatorCaller, AuthnError> {
        self.authenticator.operator(token, &self.admin_tokens, &self.issuers).await
    }

    async fn code(&self, claims: &serde_json::Value) -> &'static str {
        code(self.caller(Some(&self.key.sign(claims))).await)
    }
}

#[tokio::test]
async fn a_person_is_named_by_issuer_and_subject_and_brings_the_claims() {
    let operators = Operators::new();
    let token = operators.key.sign(&person("https://id", "alice", NOW));
    for _ in 0..2 {
        let caller = operators.caller(Some(&token)).await.expect("an operator");
        assert_eq!(caller.name(), "people/alice");
        let OperatorKind::Identity(identity) = caller.kind() else { panic!("{caller:?}") };
        assert_eq!(identity.claims["groups"], json!(["platform"]));
        assert_eq!(identity.expires_at, NOW + Duration::from_secs(3600));
        let shown = format!("{caller:?}");
        assert!(!shown.contains("platform") && token.split('.').all(|part| !shown.contains(part)), "{shown}");
    }
}

#[tokio::test]
async fn a_service_account_is_an_operator_with_or_without_a_pod() {
    let operators = Operators::new();
    let mut unbound = claims("https://dev", "ci", "deployer", NOW);
    let of_kubernetes = unbound["kubernetes.io"].as_object_mut().expect("claims");
    of_kubernetes.remove("pod");
    of_kubernetes.remove("node");
    let caller = operators.caller(Some(&operators.key.sign(&unbound))).await.expect("an operator");
    assert_eq!(caller.name(), "dev/system:serviceaccount:ci:deployer");
    assert_eq!(operators.code(&claims("https://dev", "ci", "deployer", NOW)).await, "accepted");
    let mut lying = unbound.clone();
    lying["sub"] = json!("system:serviceaccount:kube-system:admin");
    assert_eq!(operators.code(&lying).await, "token-subject");
}

#[tokio::test]
async fn a_recorded_token_of_a_service_account_is_an_operators() {
    let token = recorded("payments-api-not-bound-to-a-pod");
    let caller = recorded_authenticator(NOW).operator(Some(&token), &[], &[recorded_issuer()]).await;
    assert_eq!(caller.expect("an operator").name(), "prod/system:serviceaccount:payments:api");
}

#[tokio::test]
async fn an_administrators_token_is_known_by_its_hash_alone() {
    let operators = Operators::new();
    let caller = operators.caller(Some(&operators.admin_token)).await.expect("the administrator");
    assert_eq!(caller.name(), "initial");
    assert!(matches!(caller.kind(), OperatorKind::InitialAdministrator));
    let revoked =
        operators.authenticator.operator(Some(&operators.admin_token), &[], &operators.issuers).await;
    assert_eq!(code(revoked), "operator-token");
}

#[tokio::test]
async fn attack_13_what_is_no_token_at_all_gets_one_answer() {
    let operators = Operators::new();
    let changed = format!("{}B", &operators.admin_token[..operators.admin_token.len() - 1]);
    let signed = operators.key.sign(&person("https://id", "alice", NOW));
    let cut = &signed[..signed.len() / 2];
    let mut answers = std::collections::BTreeSet::new();
    for token in
        [None, Some(""), Some("garbage"), Some("kfa_"), Some(&changed), Some("a.b.c"), Some(".."), Some(cut)]
    {
        let error = operators.caller(token).await.expect_err("no operator");
        answers.insert(error.to_string());
        assert_eq!(code::<OperatorCaller>(Err(error)), "operator-token", "{token:?}");
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
}

#[tokio::test]
async fn a_jwt_that_is_refused_is_told_why() {
    let operators = Operators::new();
    let (good, now) = (person("https://id", "alice", NOW), NOW.unix_timestamp());
    let with = |name: &str, value| {
        let mut claims = good.clone();
        claims[name] = value;
        claims
    };
    let cases = [
        (with("iss", json!("https://elsewhere")), "token-issuer"),
        (with("exp", json!(now - 10)), "token-expired"),
        (with("iat", json!(now + 11)), "token-issued-in-future"),
        (with("nbf", json!("soon")), "token-time-malformed"),
        (with("aud", json!("mail")), "token-audience"),
        (with("aud", json!(["keyfold", "mail"])), "token-audience-shared"),
        (with("sub", json!("al\nice")), "token-claim-malformed"),
        (with("sub", json!("")), "token-claim-malformed"),
        (good.clone(), "accepted"),
    ];
    for (claims, expected) in cases {
        assert_eq!(operators.code(&claims).await, expected, "{claims}");
    }
    let forged = TestKey::new("k").sign(&good);
    assert_eq!(code(operators.caller(Some(&forged)).await), "token-signature");
    let unsigned = operators.key.sign_under(&json!({"alg": "none", "kid": "k"}), &good);
    assert_eq!(code(operators.caller(Some(&unsigned)).await), "token-algorithm");
    let told = operators.caller(Some(&forged)).await.expect_err("forged").to_string();
    assert_eq!(told, "the operator's token was refused: its signature is wrong");
}

#[tokio::test]
async fn attack_05_a_drivers_token_never_proves_an_operator_nor_a_persons_a_pod_or_driver() {
    let operators = Operators::new();
    let driver = claims("https://dev", "keyfold-system", "keyfold-csi", NOW);
    assert_eq!(operators.code(&driver).await, "driver-as-operator");
    let [driver, person, pod] =
        [driver, person("https://id", "alice", NOW), claims("https://dev", "payments", "api", NOW)]
            .map(|claims| operators.key.sign(&claims));
    let present = async |pod: &str, driver: &str| {
        code(operators.authenticator.pod_caller(pod, driver, &operators.issuers).await)
    };
    for _ in 0..2 {
        assert_eq!(present(&pod, &driver).await, "accepted");
        assert_eq!(present(&person, &driver).await, "token-not-of-a-cluster");
        assert_eq!(present(&pod, &person).await, "token-not-of-a-cluster");
        assert_eq!(present(&operators.admin_token, &driver).await, "token-malformed");
    }
    // One that claims to be a driver's, of an issuer that is no cluster.
    let mut disguised = claims("https://id", "keyfold-system", "keyfold-csi", NOW);
    disguised["iss"] = json!("https://id");
    assert_eq!(present(&pod, &operators.key.sign(&disguised)).await, "token-not-of-a-cluster");
}

#[tokio::test]
async fn a_removed_issuers_operator_is_refused_at_once() {
    let operators = Operators::new();
    let token = operators.key.sign(&person("https://id", "alice", NOW));
    assert_eq!(code(operators.caller(Some(&token)).await), "accepted");
    let without = &operators.issuers[1..];
    assert_eq!(code(operators.authenticator.operator(Some(&token), &[], without).await), "token-issuer");
}
