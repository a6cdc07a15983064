//! Each algorithm with real keys, and each key with the algorithms of others.

use keyfold_core::object::Algorithm;
use serde_json::{Value, json};

use super::*;

const ALL: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// Presents tokens to an issuer object that allows `algorithms` and publishes `jwks`.
async fn present(token: &str, algorithms: &[Algorithm], jwks: &[Value]) -> &'static str {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("keys.json"), json!({ "keys": jwks }).to_string()).expect("a file");
    let mut issuer = issuer("people", "https://id", KeySource::File("keys.json".into()));
    issuer.spec.kind = IssuerKind::Oidc;
    issuer.spec.algorithms = algorithms.iter().copied().collect();
    let authenticator = authenticator(Arc::new(FixedClock(NOW)), dir.path());
    code(authenticator.operator(Some(token), &[], &[issuer]).await)
}

#[tokio::test]
async fn each_algorithm_verifies_with_its_own_key() {
    for algorithm in ALL {
        let key = TestKey::of(algorithm, "k");
        let token = key.sign(&person("https://id", "alice", NOW));
        assert_eq!(present(&token, &ALL, &[key.jwk()]).await, "accepted", "{algorithm:?}");
        assert_eq!(
            present(&token, &[algorithm], &[key.jwk_without_alg()]).await,
            "accepted",
            "{algorithm:?}"
        );
        let others: Vec<_> = ALL.into_iter().filter(|&other| other != algorithm).collect();
        assert_eq!(present(&token, &others, &[key.jwk()]).await, "token-algorithm", "{algorithm:?}");
    }
}

#[tokio::test]
async fn attack_03_a_key_verifies_no_other_algorithm_whatever_the_header_says() {
    let is_rsa =
        |algorithm| format!("{algorithm:?}").contains('S') && !format!("{algorithm:?}").starts_with('E');
    for algorithm in ALL {
        let key = TestKey::of(algorithm, "k");
        for claimed in ALL.into_iter().filter(|&claimed| claimed != algorithm) {
            let header = json!({"alg": claimed, "kid": "k"});
            let token = key.sign_under(&header, &person("https://id", "alice", NOW));
            assert_eq!(
                present(&token, &ALL, &[key.jwk()]).await,
                "token-key-unfit",
                "{algorithm:?} as {claimed:?}"
            );
            // Without `alg` an RSA key is for all six, and then the signature tells.
            let both_rsa = is_rsa(algorithm) && is_rsa(claimed);
            let expected = if both_rsa { "token-signature" } else { "token-key-unfit" };
            assert_eq!(
                present(&token, &ALL, &[key.jwk_without_alg()]).await,
                expected,
                "{algorithm:?} as {claimed:?}"
            );
        }
    }
}
