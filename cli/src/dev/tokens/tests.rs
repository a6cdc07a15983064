use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use rsa::BigUint;
use time::macros::datetime;

use super::*;

/// Recorded from Kubernetes 1.36: the key set that signed `RECORDED`, and a token of a pod, without its signature.
const RECORDED_N: &str = "vXdRh3lqEPz9b-_ZFBBHFZiL2wH2jl7k6v-LxbqE09jVwAAB27a2WsNwzOnEYA6B8wYueS8Rr0U2oB3orRQB4GXFoO9AZ7H7_a1lFeTbe_rNmdorJGNgMq-iLVQLyjwaKdIc61QFCuIXKaggyiUh-n41o4SzF5RvOvGxVC2GSm094ngpUakCtBwo4FO4tDE_A1YjHGhcLs2UTceZtldMTuMgHo65Xgkwc3QvJ1n6Efexk8AKArrwrzDZagcERDZpYnh6Ysai071iORbWcvbIZ3epOR2iRIOhHOiNfJGsDp90rmWYxHy28WF83tdvCLLld6Akxz69lsN6m1wawMojMw";
const RECORDED_KID: &str = "63hkW5OmeVCTDmx7DSoDfa2ZJBjXMUkRoo7aEJU3NXk";
const RECORDED_HEADER: &str = r#"{"alg":"RS256","kid":"63hkW5OmeVCTDmx7DSoDfa2ZJBjXMUkRoo7aEJU3NXk"}"#;
const RECORDED_CLAIMS: &str = r#"{"aud":["keyfold"],"exp":2110772454,"iat":1795412454,"iss":"https://kubernetes.default.svc.cluster.local","jti":"4fdb897a-6355-4fdc-a0c0-abcb79bd33da","kubernetes.io":{"namespace":"payments","node":{"name":"vm","uid":"d9146007-b909-4c82-91d7-4157953aaaf7"},"pod":{"name":"api-7d9f4","uid":"bd149297-fc0c-4827-b626-719bb0c7b2ab"},"serviceaccount":{"name":"api","uid":"ca8d112c-34b8-4dbe-b340-a3dfaeed9b17"}},"nbf":1795412454,"sub":"system:serviceaccount:payments:api"}"#;
const RECORDED_CLAIMS_WITHOUT_POD: &str = r#"{"aud":["keyfold"],"exp":2110772454,"iat":1795412454,"iss":"https://kubernetes.default.svc.cluster.local","jti":"7622bfc1-635e-40c3-a07a-90bb313f59e6","kubernetes.io":{"namespace":"payments","serviceaccount":{"name":"api","uid":"ca8d112c-34b8-4dbe-b340-a3dfaeed9b17"}},"nbf":1795412454,"sub":"system:serviceaccount:payments:api"}"#;

fn minter() -> Minter {
    Minter {
        issuer: "https://kubernetes.default.svc.cluster.local".into(),
        key: SigningKey::generate().unwrap(),
    }
}

fn payments_api() -> TokenRequest {
    TokenRequest {
        namespace: "payments".into(),
        service_account: "api".into(),
        pod: Some("api-7d9f4".into()),
        node: Some("vm".into()),
        audience: AUDIENCE.into(),
        ttl: Duration::from_secs(2_110_772_454 - 1_795_412_454),
    }
}

fn part(jwt: &str, index: usize) -> String {
    let part = jwt.split('.').nth(index).unwrap();
    String::from_utf8(URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

/// `text` with every UUID and key id, which differ from cluster to cluster, as `?`.
fn without_ids(text: &str) -> String {
    text.split('"')
        .map(
            |word| {
                if word.len() == 36 && word.matches('-').count() == 4 || word.len() == 43 {
                    "?"
                } else {
                    word
                }
            },
        )
        .collect::<Vec<_>>()
        .join("\"")
}

#[test]
fn a_token_is_byte_for_byte_the_recorded_one_but_for_ids() {
    let now = OffsetDateTime::from_unix_timestamp(1_795_412_454).unwrap();
    let minter = minter();
    // The namesake "https://kubernetes.default.svc.cluster.local" has 44 characters, so no id is mistaken for it.
    let token = minter.mint(&payments_api(), now).unwrap();
    assert_eq!(without_ids(&part(&token.jwt, 0)), without_ids(RECORDED_HEADER));
    assert_eq!(without_ids(&part(&token.jwt, 1)), without_ids(RECORDED_CLAIMS));
    assert_eq!(token.expires_at.unix_timestamp(), 2_110_772_454);

    let unbound = TokenRequest { pod: None, ..payments_api() };
    let token = minter.mint(&unbound, now).unwrap();
    assert_eq!(without_ids(&part(&token.jwt, 1)), without_ids(RECORDED_CLAIMS_WITHOUT_POD));
}

#[test]
fn the_key_id_is_the_one_kubernetes_computes() {
    let n = BigUint::from_bytes_be(&URL_SAFE_NO_PAD.decode(RECORDED_N).unwrap());
    let public = RsaPublicKey::new(n, BigUint::from(65537_u32)).unwrap();
    assert_eq!(key_id(&public).unwrap(), RECORDED_KID);
}

#[test]
fn the_signature_holds_against_the_published_key() {
    let minter = minter();
    let token = minter.mint(&payments_api(), datetime!(2026-11-23 07:00 UTC)).unwrap();
    let jwk = minter.key.jwk();
    let member = |name: &str| URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap();
    let (input, signature) = token.jwt.rsplit_once('.').unwrap();
    RsaPublicKeyComponents { n: member("n"), e: member("e") }
        .verify(&RSA_PKCS1_2048_8192_SHA256, input.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap())
        .unwrap();
    let members: Vec<&String> = jwk.as_object().unwrap().keys().collect();
    assert_eq!(members.len(), 6, "a JWK has the members that Kubernetes writes: {members:?}");
}

#[test]
fn the_same_name_keeps_its_uid_and_others_have_their_own() {
    assert_eq!(uid("Pod", "shop", "api"), uid("Pod", "shop", "api"));
    assert_ne!(uid("Pod", "shop", "api"), uid("Pod", "payments", "api"));
    assert_ne!(uid("Pod", "shop", "api"), uid("ServiceAccount", "shop", "api"));
}

#[test]
fn a_key_written_once_is_loaded_again_and_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("issuer.key");
    let first = SigningKey::load_or_generate(&path).unwrap();
    assert_eq!(SigningKey::load_or_generate(&path).unwrap().kid(), first.kid());
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_lifetime_without_end_is_refused() {
    let request = TokenRequest { ttl: Duration::MAX, ..payments_api() };
    let failure = minter().mint(&request, datetime!(2026-11-23 07:00 UTC)).err().unwrap();
    assert!(failure.to_string().contains("lifetime is too long"), "{failure}");
}

#[test]
fn a_persons_token_has_the_claims_of_a_provider_and_none_of_a_cluster() {
    let request = PersonRequest {
        subject: "alice".into(),
        groups: vec!["platform".into()],
        audience: AUDIENCE.into(),
        ttl: Duration::from_secs(60),
    };
    let token = minter().mint_person(&request, datetime!(2026-11-23 07:00 UTC)).unwrap();
    let claims = part(&token.jwt, 1);
    let mut claims: Value = serde_json::from_str(&claims).unwrap();
    claims["jti"].take();
    let expected = json!({
        "aud": "keyfold", "exp": 1_795_417_260, "groups": ["platform"], "iat": 1_795_417_200,
        "iss": "https://kubernetes.default.svc.cluster.local", "jti": null, "sub": "alice",
    });
    assert_eq!(claims, expected);
}
