//! Sets of an issuer's keys.

use std::collections::BTreeMap;

use keyfold_core::object::Algorithm;
use keyfold_server::authn::{install, jwks::KeySet};
use serde_json::Value;

const ALGORITHMS: [Algorithm; 9] = [
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

/// A JWKS document: only public keys for signatures count, each `kid` once, and none verifies what nobody signed.
pub fn jwks(data: &[u8]) {
    install().expect("ring verifies here");
    let Ok(set) = KeySet::parse(data) else { return };
    let document: Value = serde_json::from_slice(data).expect("a set is JSON");
    let listed = document["keys"].as_array().expect("a set lists keys");
    assert!(listed.len() <= 100, "{} keys", listed.len());

    let mut by_id: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for key in listed {
        by_id.entry(key["kid"].as_str().unwrap_or_default()).or_default().push(key);
    }
    assert!(!set.contains(""), "a key without a name is used");
    for (id, keys) in by_id.into_iter().filter(|(id, _)| set.contains(id)) {
        assert!(keys.iter().any(|key| is_public_for_signatures(key)), "{keys:?}");
        for algorithm in ALGORITHMS {
            for signature in ["", "AA", &"A".repeat(86), &"A".repeat(342)] {
                let verified = set.verify_signature(id, algorithm, b"message", signature);
                assert!(verified.is_err(), "{algorithm:?} {signature} is verified by {keys:?}");
            }
        }
    }
}

fn is_public_for_signatures(key: &Value) -> bool {
    let known = matches!(key["kty"].as_str(), Some("RSA" | "EC" | "OKP"));
    let usage = key.get("use").is_none_or(|usage| usage.is_null() || usage == "sig");
    let verifies = |ops: &Vec<Value>| ops.iter().any(|op| op == "verify");
    known && usage && key["key_ops"].as_array().is_none_or(verifies)
}
