//! Tokens made to deceive. What is wrong with a claim or a header by itself is tested in `core`; here are those that
//! someone signs, or that need the issuer's keys.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::hmac;
use serde_json::{Value, json};

use super::*;

#[tokio::test]
async fn attack_03_the_public_key_is_no_secret_for_hmac_and_none_is_no_algorithm() {
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

/// A good pod's claims with one value replaced, or removed when it is null.
fn pod_with(name: &str, value: Value) -> Value {
    let mut claims = claims("https://dev", "payments", "api", NOW);
    let object = claims.as_object_mut().expect("claims");
    match value {
        Value::Null => object.remove(name),
        value => object.insert(name.into(), value),
    };
    claims
}

#[tokio::test]
async fn attack_01_a_rightly_signed_token_with_a_malformed_time_is_refused() {
    let key = TestKey::new("k");
    let (_dir, mount, issuers) = mount_of_file(&[&key]);
    let now = NOW.unix_timestamp();
    for time in ["exp", "nbf", "iat"] {
        for value in [
            json!("4102444800"),
            json!(now as f64 + 0.5),
            json!(1e300),
            json!(u64::MAX),
            json!(-1),
            json!([]),
        ] {
            let pod = key.sign(&pod_with(time, value.clone()));
            assert_eq!(
                mount.present(&pod, &mount.driver(&key), &issuers).await,
                "token-time-malformed",
                "{time} {value}"
            );
        }
    }
    for time in ["exp", "iat"] {
        let pod = key.sign(&pod_with(time, Value::Null));
        assert_eq!(mount.present(&pod, &mount.driver(&key), &issuers).await, "token-claim-missing", "{time}");
    }
}

#[tokio::test]
async fn attack_02_a_rightly_signed_token_for_another_audience_is_refused() {
    let key = TestKey::new("k");
    let (_dir, mount, issuers) = mount_of_file(&[&key]);
    let cases = [
        (json!(["keyfold"]), "accepted"),
        (json!("keyfold"), "accepted"),
        (json!(["https://kubernetes.default.svc", "keyfold"]), "accepted"),
        (json!(["https://kubernetes.default.svc"]), "token-audience"),
        (json!("KEYFOLD"), "token-audience"),
        (json!([]), "token-claim-malformed"),
        (json!(""), "token-claim-malformed"),
        (Value::Null, "token-claim-missing"),
    ];
    for (audience, expected) in cases {
        let pod = key.sign(&pod_with("aud", audience.clone()));
        assert_eq!(mount.present(&pod, &mount.driver(&key), &issuers).await, expected, "{audience}");
        let mut driver = claims("https://dev", "keyfold-system", "keyfold-csi", NOW);
        driver["aud"] = audience.clone();
        let pod = key.sign(&pod_with("jti", json!("good")));
        let expected = if audience.is_null() { "token-claim-malformed" } else { expected };
        assert_eq!(mount.present(&pod, &key.sign(&driver), &issuers).await, expected, "driver: {audience}");
    }
}

#[tokio::test]
async fn attack_03_a_key_that_the_token_brings_or_names_elsewhere_is_not_used() {
    let good = TestKey::new("k");
    let forger = TestKey::new("k");
    let elsewhere = TestIssuer::start(&[&forger]).await;
    let (_dir, mount, issuers) = mount_of_file(&[&good]);
    let url = format!("{}{}", elsewhere.url, test_issuer::KEYS_PATH);
    let cases = [
        (json!({"jwk": forger.jwk()}), "token-embedded-key"),
        (json!({"jku": url}), "token-embedded-key"),
        (json!({"x5u": url}), "token-embedded-key"),
        (json!({"x5c": ["MIIB"]}), "token-embedded-key"),
        (json!({"crit": ["exp"]}), "token-extension"),
        (json!({"cty": "JWT"}), "token-nested"),
        (json!({}), "token-signature"),
        (json!({"kid": url}), "token-key-unknown"),
        (json!({"kid": "../../k"}), "token-key-unknown"),
        (json!({"kid": "K"}), "token-key-unknown"),
    ];
    for (extra, expected) in cases {
        let mut header = json!({"alg": "ES256", "kid": "k"});
        header.as_object_mut().expect("a header").extend(extra.as_object().expect("more").clone());
        let pod = forger.sign_under(&header, &pod_with("jti", json!("forged")));
        assert_eq!(mount.present(&pod, &mount.driver(&good), &issuers).await, expected, "{header}");
    }
    assert_eq!(elsewhere.requests(), 0);
}

#[tokio::test]
async fn attack_03_a_rightly_signed_token_with_names_twice_or_another_token_inside_is_refused() {
    let key = TestKey::new("k");
    let (_dir, mount, issuers) = mount_of_file(&[&key]);
    let (header, good) =
        (json!({"alg": "ES256", "kid": "k"}).to_string(), pod_with("x", json!(1)).to_string());
    let signed = key.sign_text(&header, &good);
    let long = pod_with("x", json!("x".repeat(16 * 1024))).to_string();
    let deep = good.replace("\"x\":1", &format!("\"x\":{}{}", "[".repeat(100), "]".repeat(100)));
    let cases = [
        (header.clone(), good.clone(), "accepted"),
        (
            header.clone(),
            good.replacen('{', r#"{"sub":"system:serviceaccount:kube-system:admin","#, 1),
            "token-duplicate-name",
        ),
        (header.clone(), good.replacen('{', r#"{"\u0065xp":1,"#, 1), "token-duplicate-name"),
        (header.clone(), good.replace(r#""pod":{"#, r#""pod":{"uid":"x","#), "token-duplicate-name"),
        (header.replacen('{', r#"{"alg":"none","#, 1), good.clone(), "token-duplicate-name"),
        (header.clone(), signed.clone(), "token-malformed"),
        (header.clone(), format!("\"{signed}\""), "token-malformed"),
        (header.clone(), format!("{good}{good}"), "token-malformed"),
        (header.clone(), deep, "token-too-deep"),
        (header.clone(), long, "token-too-large"),
    ];
    for (header, payload, expected) in cases {
        let pod = key.sign_text(&header, &payload);
        assert_eq!(
            mount.present(&pod, &mount.driver(&key), &issuers).await,
            expected,
            "{header} {payload:.300}"
        );
    }
}

#[tokio::test]
async fn clocks_that_are_five_minutes_apart_are_bridged_where_the_issuer_object_says_so() {
    let key = TestKey::new("k");
    let (_dir, mount, [strict]) = mount_of_file(&[&key]);
    let mut lenient = strict.clone();
    lenient.spec.leeway = Duration::from_secs(300);
    let hour = 3600;
    // How far the issuer's clock is from ours in seconds, when the token was issued before, and what each object says.
    let cases = [
        (300, 0, "token-not-yet-valid", "accepted"),
        (301, 0, "token-not-yet-valid", "token-not-yet-valid"),
        (10, 0, "accepted", "accepted"),
        (-299, hour, "token-expired", "accepted"),
        (-300, hour, "token-expired", "token-expired"),
        (-9, hour, "accepted", "accepted"),
        (-10, hour, "token-expired", "accepted"),
    ];
    for (ahead, age, strictly, leniently) in cases {
        let pod =
            key.sign(&claims("https://dev", "payments", "api", NOW + time::Duration::seconds(ahead - age)));
        for (issuer, expected) in [(&strict, strictly), (&lenient, leniently)] {
            let told = mount.present(&pod, &mount.driver(&key), std::slice::from_ref(issuer)).await;
            assert_eq!(told, expected, "{ahead} {age} {:?}", issuer.spec.leeway);
        }
    }
}
