//! JSON Web Signatures in the form of Wycheproof's `json_web_signature_test.json` and `json_web_key_test.json`, judged
//! by the server's own verifier.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use keyfold_core::{
    object::{Algorithm, IssuerSpec, Kind, Spec},
    token::UnverifiedToken,
};
use keyfold_server::authn::{install, jwks::KeySet};
use serde_json::{Value, json};

/// What the verifier says of one case.
pub struct Judged {
    /// Wycheproof's `tcId`.
    pub id: u64,
    /// What the case is about.
    pub comment: String,
    /// Wycheproof's `result`: `valid`, `invalid` or `acceptable`.
    pub expected: String,
    /// Of the way that callers' tokens take: parsing, the issuer's algorithms, the signature. Or why it was refused.
    pub token: Result<(), &'static str>,
    /// Of the signature alone, whatever header and payload say. Or why it was not verified.
    pub signature: Result<(), &'static str>,
}

/// Judges every case of a document.
///
/// # Panics
/// When it has another form.
pub fn judge(document: &str) -> Vec<Judged> {
    install().expect("ring verifies here");
    let document: Value = serde_json::from_str(document).expect("a document is JSON");
    let mut judged = Vec::new();
    for group in document["testGroups"].as_array().expect("a document has groups") {
        let keys = key_set(group);
        for case in group["tests"].as_array().expect("a group has cases") {
            let text = |name: &str| case[name].as_str().unwrap_or_default().to_owned();
            // The JSON serialization stands as an object in some cases, as text in others.
            let jws = case["jws"].as_str().map_or_else(|| case["jws"].to_string(), str::to_owned);
            judged.push(Judged {
                id: case["tcId"].as_u64().expect("a case has a number"),
                comment: [text("comment"), group["comment"].as_str().unwrap_or_default().to_owned()]
                    .join(" "),
                expected: text("result"),
                token: keys.as_ref().map_err(|code| *code).and_then(|keys| token(keys, &jws)),
                signature: keys.as_ref().map_err(|code| *code).and_then(|keys| signature(keys, &jws)),
            });
        }
    }
    judged
}

/// What was accepted, and what was refused with which code: the ids of the cases of each.
pub fn table(judged: &[Judged], of: impl Fn(&Judged) -> Result<(), &'static str>) -> String {
    let mut rows: BTreeMap<(&str, &str), Vec<u64>> = BTreeMap::new();
    for case in judged {
        let outcome = of(case).err().unwrap_or("accepted");
        rows.entry((&case.expected, outcome)).or_default().push(case.id);
    }
    let row = |((expected, outcome), ids): (&(&str, &str), &Vec<u64>)| {
        format!("{expected}, {outcome}: {} ({})\n", ids.len(), ranges(ids))
    };
    rows.iter().map(row).collect()
}

/// `1, 3-5` for 1, 3, 4, 5.
fn ranges(ids: &[u64]) -> String {
    let mut found: Vec<(u64, u64)> = Vec::new();
    for &id in ids {
        match found.last_mut() {
            Some((_, last)) if *last + 1 == id => *last = id,
            _ => found.push((id, id)),
        }
    }
    let one = |&(first, last): &(u64, u64)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    found.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// A group names one key or a set. For HMAC it has only the private form, which is the same.
fn key_set(group: &Value) -> Result<KeySet, &'static str> {
    let key = group.get("public").unwrap_or(&group["private"]);
    let set = match key.get("keys") {
        Some(_) => key.clone(),
        None => json!({"keys": [key]}),
    };
    KeySet::parse(set.to_string().as_bytes()).map_err(|_| "keys-refused")
}

fn token(keys: &KeySet, jws: &str) -> Result<(), &'static str> {
    let token = UnverifiedToken::parse(jws).map_err(|refusal| refusal.code())?;
    let algorithm = token.algorithm_allowed_by(&issuer()).map_err(|refusal| refusal.code())?;
    keys.verify(&token, algorithm).map_err(|refusal| refusal.code())
}

fn signature(keys: &KeySet, jws: &str) -> Result<(), &'static str> {
    let parts: Vec<_> = jws.split('.').collect();
    let [header, payload, signature] = parts[..] else { return Err("not-three-parts") };
    let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| "header-not-base64url")?;
    URL_SAFE_NO_PAD.decode(payload).map_err(|_| "payload-not-base64url")?;
    let header: Value = serde_json::from_slice(&header).map_err(|_| "header-not-json")?;
    let algorithm: Algorithm =
        serde_json::from_value(header["alg"].clone()).map_err(|_| "algorithm-unknown")?;
    let key_id = header["kid"].as_str().unwrap_or_default();
    let (signing_input, _) = jws.rsplit_once('.').unwrap_or_default();
    keys.verify_signature(key_id, algorithm, signing_input.as_bytes(), signature)
        .map_err(|refusal| refusal.code())
}

/// An issuer that allows every algorithm that there is.
fn issuer() -> IssuerSpec {
    let spec = json!({
        "type": "kubernetes", "url": "https://issuer.example", "audiences": ["keyfold"],
        "algorithms": ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"],
        "keys": {"file": "keys.json"},
    });
    match Spec::parse(Kind::Issuer, &spec.to_string()) {
        Ok(Spec::Issuer(spec)) => spec,
        _ => panic!("this is an issuer"),
    }
}
