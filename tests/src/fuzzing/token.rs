//! Callers' tokens: the whole way from text to an identity, and its parts on their own.

use std::{fs, path::Path, sync::OnceLock};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use keyfold_core::{
    identity::{NamedUid, OperatorIdentity, WorkloadIdentity},
    name::ObjectName,
    object::{Algorithm, IssuerSpec, Kind, Spec},
    token::{TOKEN_MAX_BYTES, TokenRefusal, UnverifiedToken, check_claims},
};
use keyfold_server::authn::{install, jwks::KeySet};
use serde_json::{Value, json};
use time::{OffsetDateTime, macros::datetime};

use crate::{Recorded, fixture};

/// While the recorded tokens are valid.
const NOW: OffsetDateTime = datetime!(2026-11-23 05:45:00 UTC);

/// The first byte says what the others are: a token, a payload, or a header.
pub fn token(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    match kind % 3 {
        0 => str::from_utf8(rest).into_iter().for_each(whole),
        1 => part(rest, |part| format!("{}.{part}.AAAA", URL_SAFE_NO_PAD.encode(HEADER))),
        _ => part(rest, |part| format!("{part}.{}.AAAA", URL_SAFE_NO_PAD.encode("{}"))),
    }
}

const HEADER: &str = r#"{"alg":"RS256","kid":"k"}"#;

/// Only what the issuer signed is accepted, byte for byte: RS256 is deterministic, and base64url has one form.
fn whole(token: &str) {
    let world = World::of_recordings();
    let accepted = UnverifiedToken::parse(token).and_then(|parsed| {
        let algorithm = parsed.algorithm_allowed_by(&world.spec)?;
        world.keys.verify(&parsed, algorithm)?;
        check_claims(&parsed, &world.issuer, &world.spec, NOW)?.workload()
    });
    match accepted {
        Ok(identity) => {
            assert!(
                world.signed.iter().any(|signed| signed == token),
                "accepted, and nobody signed it: {token}"
            );
            assert_identity(&identity, token);
        }
        Err(refusal) => assert_shows_no_signature(&refusal, token),
    }
}

/// One part, put into a token that is well-formed otherwise. Nobody signed it, so that claims are judged all the same.
fn part(bytes: &[u8], token_with: impl Fn(&str) -> String) {
    let token = token_with(&URL_SAFE_NO_PAD.encode(bytes));
    let world = World::of_recordings();
    let Ok(parsed) = UnverifiedToken::parse(&token) else { return };
    assert!(token.len() <= TOKEN_MAX_BYTES);
    assert_strict(bytes);
    assert!(world.keys.verify(&parsed, Algorithm::RS256).is_err());
    if let Ok(identity) = check_claims(&parsed, &world.issuer, &world.spec, NOW).and_then(|c| c.workload()) {
        assert_identity(&identity, &token);
    }
    for spec in [&world.spec, &world.provider] {
        if let Ok(identity) = check_claims(&parsed, &world.issuer, spec, NOW).and_then(|c| c.operator()) {
            assert_operator(&identity, spec, bytes);
        }
    }
}

/// What the strict reader took is an object that every other reader understands in the same way.
fn assert_strict(json: &[u8]) {
    let value: Value = serde_json::from_slice(json).expect("what was taken is JSON");
    assert!(value.is_object(), "{value}");
    let text = str::from_utf8(json).expect("JSON is UTF-8");
    assert_eq!(names_in_text(text), names_in(&value), "a name stands twice: {text}");
    assert!(depth(&value) <= 8, "{text}");
}

/// Colons outside of strings: one for each name of an object.
fn names_in_text(json: &str) -> usize {
    let (mut names, mut in_string, mut escaped) = (0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b':' if !in_string => names += 1,
            _ => {}
        }
    }
    names
}

fn names_in(value: &Value) -> usize {
    match value {
        Value::Object(object) => object.len() + object.values().map(names_in).sum::<usize>(),
        Value::Array(items) => items.iter().map(names_in).sum(),
        _ => 0,
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Object(object) => 1 + object.values().map(depth).max().unwrap_or_default(),
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or_default(),
        _ => 0,
    }
}

/// The identity is what the claims say, read by another reader, and they are those of the issuer, now.
fn assert_identity(identity: &WorkloadIdentity, token: &str) {
    let payload = token.split('.').nth(1).expect("a payload");
    let payload = URL_SAFE_NO_PAD.decode(payload).expect("base64url");
    let claims: Value = serde_json::from_slice(&payload).expect("JSON");
    let kubernetes = &claims["kubernetes.io"];
    let subject = format!("system:serviceaccount:{}:{}", identity.namespace, identity.service_account.name);
    assert_eq!((&identity.subject, &claims["sub"]), (&subject, &json!(subject)));
    assert_eq!(kubernetes["namespace"], identity.namespace);
    assert_named(&kubernetes["serviceaccount"], &identity.service_account);
    assert_named(&kubernetes["pod"], &identity.pod);
    match &identity.node {
        Some(node) => assert_named(&kubernetes["node"], node),
        None => assert!(kubernetes.get("node").is_none(), "{claims}"),
    }
    assert_valid_now(&claims, &World::of_recordings().spec, identity.expires_at);
}

/// The claims are the payload's, and the name cannot be mistaken for another's on a terminal.
fn assert_operator(identity: &OperatorIdentity, spec: &IssuerSpec, payload: &[u8]) {
    let claims: Value = serde_json::from_slice(payload).expect("JSON");
    assert_eq!(Value::Object(identity.claims.clone()), claims);
    assert_eq!(claims["sub"], identity.subject);
    assert!(identity.subject.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{:?}", identity.subject);
    assert_eq!(identity.subject.trim(), identity.subject);
    assert_eq!(identity.name().split_once('/'), Some((identity.issuer.as_str(), identity.subject.as_str())));
    assert_valid_now(&claims, spec, identity.expires_at);
}

fn assert_valid_now(claims: &Value, spec: &IssuerSpec, expires_at: OffsetDateTime) {
    assert_eq!(claims["iss"], spec.url);
    let audiences = claims["aud"].as_array().cloned().unwrap_or_else(|| vec![claims["aud"].clone()]);
    assert!(audiences.iter().any(|audience| audience == "keyfold"), "{claims}");
    let secs = |claim: &str| claims[claim].as_i64().expect("whole seconds");
    let leeway = i64::try_from(spec.leeway.as_secs()).expect("minutes at most");
    let now = NOW.unix_timestamp();
    assert_eq!(expires_at.unix_timestamp(), secs("exp"));
    assert!(secs("exp") > now - leeway && secs("iat") <= now + leeway, "{claims}");
    assert!(claims.get("nbf").is_none() || secs("nbf") <= now + leeway, "{claims}");
    assert!(secs("exp") - secs("iat") <= i64::try_from(spec.max_token_lifetime.as_secs()).expect("years"));
}

fn assert_named(claim: &Value, named: &NamedUid) {
    assert!(!named.name.is_empty() && !named.uid.is_empty());
    assert_eq!((&claim["name"], &claim["uid"]), (&json!(named.name), &json!(named.uid)));
}

/// Messages go to callers and into logs; with the signature they would be a way to use the token.
fn assert_shows_no_signature(refusal: &TokenRefusal, token: &str) {
    let signature = token.rsplit('.').next().unwrap_or_default();
    let shown = refusal.to_string();
    assert!(signature.len() < 80 || !shown.contains(signature), "{shown}");
    assert!(shown.len() < 2048, "a message of {} bytes", shown.len());
}

/// The recorded cluster: its keys, its issuer object, and all tokens that it signed.
struct World {
    issuer: ObjectName,
    spec: IssuerSpec,
    /// The same as if it were an OpenID provider.
    provider: IssuerSpec,
    keys: KeySet,
    signed: Vec<String>,
}

impl World {
    fn of_recordings() -> &'static Self {
        static WORLD: OnceLock<World> = OnceLock::new();
        WORLD.get_or_init(|| {
            install().expect("ring verifies here");
            let cluster = Recorded::issuer_spec();
            let mut provider = cluster.clone();
            provider["type"] = json!("oidc");
            provider["drivers"] = json!([]);
            Self {
                issuer: ObjectName::try_from("recorded").expect("a name"),
                spec: issuer_spec(&cluster),
                provider: issuer_spec(&provider),
                keys: KeySet::parse(fixture("jwks.json").as_bytes()).expect("the recorded keys are a set"),
                signed: recorded_tokens(),
            }
        })
    }
}

fn issuer_spec(json: &Value) -> IssuerSpec {
    match Spec::parse(Kind::Issuer, &json.to_string()) {
        Ok(Spec::Issuer(spec)) => spec,
        _ => panic!("this is an issuer"),
    }
}

/// Every recorded token, also the one in the recorded publish request.
fn recorded_tokens() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/kubernetes-1.36/tokens");
    let files = fs::read_dir(folder).expect("the recordings can be read");
    let read = |file: std::io::Result<fs::DirEntry>| {
        let text = fs::read_to_string(file.expect("a file").path()).expect("a token is text");
        text.trim().to_owned()
    };
    let published: Value =
        serde_json::from_str(&fixture("csi/node-publish-token-in-secrets.json")).expect("JSON");
    let tokens = published["secrets"]["csi.storage.k8s.io/serviceAccount.tokens"].as_str().expect("tokens");
    let tokens: Value = serde_json::from_str(tokens).expect("JSON");
    let sent = tokens["keyfold"]["token"].as_str().expect("a token").to_owned();
    files.map(read).chain([sent]).collect()
}

/// A caller of the recorded cluster with these names.
pub(super) fn identity_of(namespace: &str, service_account: &str) -> WorkloadIdentity {
    let named = |name: &str| NamedUid { name: name.into(), uid: "uid".into() };
    WorkloadIdentity {
        issuer: World::of_recordings().issuer.clone(),
        subject: format!("system:serviceaccount:{namespace}:{service_account}"),
        namespace: namespace.into(),
        service_account: named(service_account),
        pod: named("pod"),
        node: None,
        credential_id: None,
        expires_at: NOW,
    }
}
