use std::{collections::BTreeSet, time::Duration};

use proptest::prelude::*;
use serde_json::json;
use time::{OffsetDateTime, macros::datetime};

use super::*;
use crate::{
    identity::{NamedUid, WorkloadIdentity},
    name::ObjectName,
    object::{Discovery, IssuerKind, KeySource, Verify},
};

mod operators;

const NOW: OffsetDateTime = datetime!(2026-11-23 05:45 UTC);
const ISSUER_URL: &str = "https://kubernetes.default.svc.cluster.local";

macro_rules! recorded {
    ($name:literal) => {
        include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/kubernetes-1.36/tokens/",
            $name,
            ".jwt"
        ))
        .trim_ascii()
    };
}

fn issuer() -> IssuerSpec {
    IssuerSpec {
        kind: IssuerKind::Kubernetes,
        url: ISSUER_URL.into(),
        audiences: BTreeSet::from(["keyfold".into()]),
        algorithms: BTreeSet::from([Algorithm::RS256]),
        keys: KeySource::Discovery(Discovery::default()),
        drivers: Vec::new(),
        api_server: None,
        verify: Verify::Local,
        max_token_lifetime: Duration::from_secs(24 * 3600),
        leeway: Duration::from_secs(10),
    }
}

fn header() -> Value {
    json!({"alg": "RS256", "kid": "key-1"})
}

fn claims() -> Value {
    let now = NOW.unix_timestamp();
    json!({
        "iss": ISSUER_URL, "aud": ["keyfold"], "sub": "system:serviceaccount:payments:api", "jti": "j-1",
        "iat": now - 60, "nbf": now - 60, "exp": now + 3540,
        "kubernetes.io": {
            "namespace": "payments",
            "serviceaccount": {"name": "api", "uid": "sa-uid"},
            "pod": {"name": "api-1", "uid": "pod-uid"},
            "node": {"name": "vm", "uid": "node-uid"},
        },
    })
}

/// The same JSON with one value replaced, or removed when `value` is null. `at` is a JSON pointer of one or two steps.
fn with(mut json: Value, at: &str, value: Value) -> Value {
    let (parent, name) = at.rsplit_once('/').expect("a pointer begins with a slash");
    let object = json.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object holds it");
    if value.is_null() {
        object.remove(name)
    } else {
        object.insert(name.into(), value)
    };
    json
}

fn token_of(header: &str, payload: &str) -> String {
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.{}", encode(header), encode(payload), encode("signature"))
}

fn read(token: &str, spec: &IssuerSpec, now: OffsetDateTime) -> Result<WorkloadIdentity, TokenRefusal> {
    let issuer = ObjectName::try_from("prod").expect("a name");
    let parsed = UnverifiedToken::parse(token)?;
    parsed.algorithm_allowed_by(spec)?;
    check_claims(&parsed, &issuer, spec, now)?.workload()
}

fn refusal_of(header: Value, claims: Value) -> TokenRefusal {
    let token = token_of(&header.to_string(), &claims.to_string());
    read(&token, &issuer(), NOW).expect_err("this token must be refused")
}

#[test]
fn a_good_token_is_read_whole() {
    let token = token_of(&header().to_string(), &claims().to_string());
    let named = |name: &str, uid: &str| NamedUid { name: name.into(), uid: uid.into() };
    let expected = WorkloadIdentity {
        issuer: ObjectName::try_from("prod").unwrap(),
        subject: "system:serviceaccount:payments:api".into(),
        namespace: "payments".into(),
        service_account: named("api", "sa-uid"),
        pod: named("api-1", "pod-uid"),
        node: Some(named("vm", "node-uid")),
        credential_id: Some("j-1".into()),
        expires_at: NOW + Duration::from_secs(3540),
    };
    assert_eq!(read(&token, &issuer(), NOW), Ok(expected));
}

#[test]
fn what_a_token_may_leave_out_or_add_is_accepted() {
    let cases = [
        (header(), with(claims(), "/nbf", Value::Null)),
        (header(), with(claims(), "/jti", Value::Null)),
        (header(), with(claims(), "/kubernetes.io/node", Value::Null)),
        (header(), with(claims(), "/kubernetes.io/warnafter", json!(1))),
        (header(), with(claims(), "/aud", json!("keyfold"))),
        (header(), with(claims(), "/aud", json!(["other", "keyfold"]))),
        (with(header(), "/typ", json!("JWT")), claims()),
        (with(header(), "/x5t#S256", json!("thumbprint")), claims()),
    ];
    for (header, claims) in cases {
        let token = token_of(&header.to_string(), &claims.to_string());
        assert!(read(&token, &issuer(), NOW).is_ok(), "{header} {claims}");
    }
}

#[test]
fn attack_03_each_wrong_header_has_its_own_refusal() {
    let cases = [
        ("/alg", json!("none"), "token-algorithm"),
        ("/alg", json!("HS256"), "token-algorithm"),
        ("/alg", json!("rs256"), "token-algorithm"),
        ("/alg", json!("ES256"), "token-algorithm"),
        ("/alg", Value::Null, "token-malformed"),
        ("/alg", json!(["RS256"]), "token-malformed"),
        ("/kid", Value::Null, "token-key-missing"),
        ("/kid", json!(""), "token-key-missing"),
        ("/kid", json!(7), "token-key-missing"),
        ("/jku", json!("https://evil.example"), "token-embedded-key"),
        ("/jwk", json!({"kty": "RSA"}), "token-embedded-key"),
        ("/x5u", json!("https://evil.example"), "token-embedded-key"),
        ("/x5c", json!(["MIIB"]), "token-embedded-key"),
        ("/crit", json!(["exp"]), "token-extension"),
        ("/b64", json!(false), "token-extension"),
        ("/zip", json!("DEF"), "token-extension"),
        ("/cty", json!("JWT"), "token-nested"),
        ("/typ", json!("JWE"), "token-type"),
        ("/typ", json!(1), "token-type"),
    ];
    for (at, value, code) in cases {
        let changed = with(header(), at, value);
        assert_eq!(refusal_of(changed.clone(), claims()).code(), code, "{changed}");
    }
}

/// Each of these values in the place of a good token's gives this refusal.
fn assert_refused<'a>(cases: impl IntoIterator<Item = (&'a str, Value, &'a str)>) {
    for (at, value, code) in cases {
        let changed = with(claims(), at, value);
        assert_eq!(refusal_of(header(), changed.clone()).code(), code, "{changed}");
    }
}

#[test]
fn attack_01_a_time_that_is_text_a_float_huge_or_missing_is_refused() {
    let now = NOW.unix_timestamp();
    for at in ["/exp", "/nbf", "/iat"] {
        let malformed = [
            json!((now + 60).to_string()),
            json!("now"),
            json!(""),
            json!(now as f64 + 60.5),
            json!(now as f64 + 60.0),
            json!(u64::MAX),
            json!(i64::MAX),
            json!(1e300),
            json!(-1),
            json!(true),
            json!([now + 60]),
            json!({"secs": now + 60}),
        ];
        assert_refused(malformed.map(|value| (at, value, "token-time-malformed")));
    }
    // JSON's null, which `with` cannot write.
    let null = claims().to_string().replace(&format!("\"exp\":{}", now + 3540), "\"exp\":null");
    let token = token_of(&header().to_string(), &null);
    assert_eq!(read(&token, &issuer(), NOW).expect_err("no end").code(), "token-time-malformed");
    assert_refused([
        ("/exp", Value::Null, "token-claim-missing"),
        ("/iat", Value::Null, "token-claim-missing"),
        ("/exp", json!(now - 10), "token-expired"),
        ("/exp", json!(0), "token-expired"),
        ("/exp", json!(now + 24 * 3600), "token-lifetime"),
        // The last second of the year 9999, the end of what is read as a date.
        ("/exp", json!(253_402_300_799_i64), "token-lifetime"),
        ("/exp", json!(253_402_300_800_i64), "token-time-malformed"),
        ("/nbf", json!(now + 11), "token-not-yet-valid"),
        ("/nbf", json!(253_402_300_799_i64), "token-not-yet-valid"),
        ("/iat", json!(now + 11), "token-issued-in-future"),
        ("/iat", json!(0), "token-lifetime"),
    ]);
}

#[test]
fn attack_02_an_audience_that_is_wrong_empty_malformed_or_missing_is_refused() {
    assert_refused([
        ("/aud", json!(["other"]), "token-audience"),
        ("/aud", json!("other"), "token-audience"),
        ("/aud", json!("Keyfold"), "token-audience"),
        ("/aud", json!("keyfold "), "token-audience"),
        ("/aud", json!("keyfold,other"), "token-audience"),
        ("/aud", json!(["keyfol", "d"]), "token-audience"),
        ("/aud", json!([]), "token-claim-malformed"),
        ("/aud", json!(""), "token-claim-malformed"),
        ("/aud", json!(["keyfold", ""]), "token-claim-malformed"),
        ("/aud", json!(["keyfold", 7]), "token-claim-malformed"),
        ("/aud", json!([["keyfold"]]), "token-claim-malformed"),
        ("/aud", json!({"keyfold": true}), "token-claim-malformed"),
        ("/aud", json!(true), "token-claim-malformed"),
        ("/aud", Value::Null, "token-claim-missing"),
    ]);
}

#[test]
fn each_wrong_claim_has_its_own_refusal() {
    assert_refused([
        ("/iss", json!("https://kubernetes.default.svc.cluster.local/"), "token-issuer"),
        ("/iss", Value::Null, "token-claim-missing"),
        ("/iss", json!([ISSUER_URL]), "token-claim-malformed"),
        ("/sub", Value::Null, "token-claim-missing"),
        ("/sub", json!(""), "token-claim-malformed"),
        ("/sub", json!("system:serviceaccount:payments:reports"), "token-subject"),
        ("/sub", json!("system:serviceaccount:shop:api"), "token-subject"),
        ("/sub", json!("system:serviceaccount:payments:api\n"), "token-claim-malformed"),
        ("/jti", json!(7), "token-claim-malformed"),
        ("/kubernetes.io", Value::Null, "token-claim-missing"),
        ("/kubernetes.io", json!("payments"), "token-claim-malformed"),
        ("/kubernetes.io/namespace", Value::Null, "token-claim-missing"),
        ("/kubernetes.io/namespace", json!(""), "token-claim-malformed"),
        ("/kubernetes.io/serviceaccount", Value::Null, "token-claim-missing"),
        ("/kubernetes.io/serviceaccount", json!({"name": "api"}), "token-claim-missing"),
        ("/kubernetes.io/serviceaccount", json!({"uid": "u"}), "token-claim-missing"),
        ("/kubernetes.io/pod", Value::Null, "token-not-bound-to-a-pod"),
        ("/kubernetes.io/pod", json!({"name": "api-1"}), "token-claim-missing"),
        ("/kubernetes.io/pod", json!({"name": "api-1", "uid": ""}), "token-claim-malformed"),
        ("/kubernetes.io/node", json!({"name": "vm"}), "token-claim-missing"),
        ("/kubernetes.io/node", json!("vm"), "token-claim-malformed"),
    ]);
}

#[test]
fn attack_03_each_malformed_token_has_its_own_refusal() {
    let (header, claims) = (header().to_string(), claims().to_string());
    let good = token_of(&header, &claims);
    let parts = good.split('.').collect::<Vec<_>>();
    let deep = format!(r#"{{"iss":{}{}}}"#, "[".repeat(8), "]".repeat(8));
    let very_deep = format!(r#"{{"iss":{}{}}}"#, "[".repeat(3000), "]".repeat(3000));
    let cases = [
        (String::new(), "token-malformed"),
        ("..".into(), "token-malformed"),
        (format!("{}.{}", parts[0], parts[1]), "token-malformed"),
        (format!("{}.{}.", parts[0], parts[1]), "token-malformed"),
        (format!("{good}.{}", parts[2]), "token-malformed"),
        (format!("{good}."), "token-malformed"),
        (format!("{good}="), "token-malformed"),
        (format!(" {good}"), "token-malformed"),
        (format!("{good}\n"), "token-malformed"),
        (token_of(&header, "[]"), "token-malformed"),
        (token_of(&header, "{}{}"), "token-malformed"),
        (token_of(&header, &good), "token-malformed"),
        (token_of(&header, &deep), "token-too-deep"),
        (token_of(&header, &very_deep), "token-too-deep"),
        (token_of(&header, &claims.replacen('{', r#"{"aud":"x","#, 1)), "token-duplicate-name"),
        (token_of(&header, &claims.replacen('{', r#"{"\u0061ud":"x","#, 1)), "token-duplicate-name"),
        (token_of(&header, &claims.replace(r#""pod":{"#, r#""pod":{"uid":"x","#)), "token-duplicate-name"),
        (token_of(&header.replacen('{', r#"{"alg":"none","#, 1), &claims), "token-duplicate-name"),
        ("a".repeat(TOKEN_MAX_BYTES + 1), "token-too-large"),
    ];
    for (token, code) in cases {
        let refusal = read(&token, &issuer(), NOW).expect_err(&token);
        assert_eq!(refusal.code(), code, "{token:.200}");
    }
}

#[test]
fn the_leeway_counts_on_both_sides_and_not_a_second_more() {
    let now = NOW.unix_timestamp();
    for (at, within) in [("/exp", now - 9), ("/nbf", now + 10), ("/iat", now + 10)] {
        let changed = with(claims(), at, json!(within));
        let token = token_of(&header().to_string(), &changed.to_string());
        assert!(read(&token, &issuer(), NOW).is_ok(), "{changed}");
    }
}

#[test]
fn messages_help_their_reader() {
    let now = NOW.unix_timestamp();
    let message = |at, value| refusal_of(header(), with(claims(), at, value)).to_string();
    assert_eq!(message("/exp", json!(now - 600)), "it expired at 2026-11-23T05:35:00Z");
    assert_eq!(message("/aud", json!(["a", "b"])), "it is meant for audience a, b, not for keyfold");
    assert_eq!(message("/exp", json!("x")), "its claim `exp` is not a whole number of seconds since 1970");
    let long = message("/aud", json!("x".repeat(5000)));
    assert!(long.len() < 200, "{long}");
}

#[test]
fn recorded_tokens_are_read_as_the_api_server_wrote_them() {
    let spec = IssuerSpec { max_token_lifetime: Duration::from_secs(4000 * 86_400), ..issuer() };
    let cases = [
        (recorded!("payments-api-on-node-vm"), "payments", "api", "vm"),
        (recorded!("payments-api-on-node-b"), "payments", "api", "node-b"),
        (recorded!("payments-api-ten-minutes"), "payments", "api", "vm"),
        (recorded!("payments-reports-on-node-vm"), "payments", "reports", "vm"),
        (recorded!("shop-api-on-node-vm"), "shop", "api", "vm"),
        (recorded!("driver-on-node-vm"), "keyfold-system", "keyfold-csi", "vm"),
        (recorded!("driver-on-node-b"), "keyfold-system", "keyfold-csi", "node-b"),
    ];
    for (token, namespace, service_account, node) in cases {
        let identity = read(token, &spec, NOW).expect("a recorded token");
        assert_eq!(identity.namespace, namespace);
        assert_eq!(identity.service_account.name, service_account);
        assert_eq!(identity.node.map(|node| node.name).as_deref(), Some(node));
    }
    let refused = |token, now| read(token, &spec, now).expect_err("a wrong token").code();
    assert_eq!(refused(recorded!("payments-api-api-server-audience"), NOW), "token-audience");
    assert_eq!(refused(recorded!("payments-api-not-bound-to-a-pod"), NOW), "token-not-bound-to-a-pod");
    let later = NOW + Duration::from_secs(3600);
    assert_eq!(refused(recorded!("payments-api-ten-minutes"), later), "token-expired");
}

proptest! {
    #[test]
    fn attack_03_any_text_is_refused_or_read_without_a_panic(token in "\\PC{0,200}") {
        let _ = UnverifiedToken::parse(&token);
    }

    #[test]
    fn any_bytes_in_the_parts_are_refused_or_read_without_a_panic(
        payload in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let payload = URL_SAFE_NO_PAD.encode(payload);
        let header = URL_SAFE_NO_PAD.encode(header().to_string());
        let _ = UnverifiedToken::parse(&format!("{header}.{payload}.{payload}"));
        let _ = UnverifiedToken::parse(&format!("{payload}.{payload}.{payload}"));
    }

    #[test]
    fn any_claim_of_any_kind_is_refused_or_read_without_a_panic(
        at in proptest::sample::select(vec!["/exp", "/iat", "/nbf", "/aud", "/iss", "/kubernetes.io/pod", "/kubernetes.io"]),
        number in any::<i64>(),
        kind in 0..4,
    ) {
        let value = match kind {
            0 => json!(number),
            1 => json!(number as f64 / 3.0),
            2 => json!([number]),
            _ => json!({"name": number}),
        };
        let token = token_of(&header().to_string(), &with(claims(), at, value).to_string());
        let _ = read(&token, &issuer(), NOW);
    }
}
