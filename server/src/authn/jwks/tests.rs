use keyfold_core::{clock::Clock as _, clock::SystemClock, token::UnverifiedToken};
use serde_json::json;

use super::*;
use crate::authn::{
    install,
    test_issuer::{TestKey, claims},
};

fn parse(document: &Value) -> Result<KeySet, KeysError> {
    KeySet::parse(document.to_string().as_bytes())
}

fn with(mut jwk: Value, name: &str, value: Value) -> Value {
    jwk[name] = value;
    jwk
}

fn verified(key: &TestKey, keys: &[Value], algorithm: Algorithm) -> Result<(), &'static str> {
    install().expect("ring");
    let token = key.sign(&claims("https://issuer", "payments", "api", SystemClock.now()));
    let token = UnverifiedToken::parse(&token).expect("a token");
    let set = parse(&json!({ "keys": keys })).expect("a set");
    set.verify(&token, algorithm).map_err(|refusal| refusal.code())
}

#[test]
fn a_key_verifies_what_it_signed() {
    let key = TestKey::new("a");
    assert_eq!(verified(&key, &[key.jwk()], Algorithm::ES256), Ok(()));
    assert_eq!(verified(&key, &[TestKey::new("a").jwk()], Algorithm::ES256), Err("token-signature"));
    assert_eq!(verified(&key, &[TestKey::new("b").jwk()], Algorithm::ES256), Err("token-key-unknown"));
}

#[test]
fn attack_03_a_key_verifies_only_what_its_type_and_its_own_alg_allow() {
    let key = TestKey::new("a");
    for algorithm in [Algorithm::RS256, Algorithm::ES384, Algorithm::EdDSA] {
        assert_eq!(verified(&key, &[key.jwk()], algorithm), Err("token-key-unfit"), "{algorithm:?}");
    }
    for alg in ["ES384", "RS256", "HS256", "unheard-of"] {
        let jwk = with(key.jwk(), "alg", json!(alg));
        assert_eq!(verified(&key, &[jwk], Algorithm::ES256), Err("token-key-unfit"), "{alg}");
    }
    let mut without = key.jwk();
    without.as_object_mut().expect("an object").remove("alg");
    assert_eq!(verified(&key, &[without], Algorithm::ES256), Ok(()));
}

#[test]
fn attack_03_a_short_rsa_key_verifies_nothing() {
    let key = TestKey::new("a");
    let rsa = |bytes: usize| json!({"kty": "RSA", "kid": "a", "n": base64_of(bytes), "e": "AQAB"});
    assert_eq!(verified(&key, &[rsa(128)], Algorithm::RS256), Err("token-key-unfit"));
    assert_eq!(verified(&key, &[rsa(256)], Algorithm::RS256), Err("token-signature"));
}

fn base64_of(bytes: usize) -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    URL_SAFE_NO_PAD.encode(vec![0xff; bytes])
}

#[test]
fn keys_that_could_verify_no_token_are_left_out() {
    let key = TestKey::new("a");
    let useless = [
        with(key.jwk(), "use", json!("enc")),
        with(key.jwk(), "key_ops", json!(["sign"])),
        with(key.jwk(), "crv", json!("P-521")),
        with(key.jwk(), "crv", json!("secp256k1")),
        with(key.jwk(), "kid", json!("")),
        with(key.jwk(), "kid", json!(7)),
        with(key.jwk(), "x", json!("not base64!")),
        json!({"kty": "oct", "kid": "a", "k": base64_of(32)}),
        json!({"kty": "AKP", "kid": "a", "pub": "AAAA"}),
        json!({"kty": "RSA", "kid": "a"}),
        json!({}),
        json!("a"),
    ];
    for jwk in &useless {
        let code = verified(&key, std::slice::from_ref(jwk), Algorithm::ES256);
        assert_eq!(code, Err("token-key-unknown"), "{jwk}");
    }
    let all = useless.into_iter().chain([key.jwk()]).collect::<Vec<_>>();
    assert_eq!(verified(&key, &all, Algorithm::ES256), Ok(()));
}

#[test]
fn attack_03_a_set_that_is_ambiguous_or_too_big_or_no_set_is_refused() {
    let twice = [TestKey::new("a").jwk(), TestKey::new("a").jwk()];
    let many = (0..101).map(|at| with(TestKey::new("a").jwk(), "kid", json!(at.to_string())));
    let cases = [
        (json!({ "keys": twice }), "two keys with the kid"),
        (json!({ "keys": many.collect::<Vec<_>>() }), "more than 100 keys"),
        (json!({}), "not a JWKS"),
        (json!({"keys": {}}), "not a JWKS"),
        (json!([]), "not a JWKS"),
    ];
    for (document, reason) in cases {
        let refusal = parse(&document).err().expect("no set").to_string();
        assert!(refusal.contains(reason), "{refusal}");
    }
}
