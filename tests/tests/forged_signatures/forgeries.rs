//! What an attacker does to a token or a set of keys.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::hmac;
use serde_json::{Value, json};

use crate::signers::{PAYLOAD, Signer, encoded, header_with, parts};

/// Tokens, and what is wrong with each.
pub type Cases = Vec<(&'static str, String)>;

pub fn changed_parts(signer: &Signer) -> Cases {
    let good = signer.token();
    let [header, payload, signature] = parts(&good);
    let flipped = |at: usize| {
        let mut bytes = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
        let at = at % bytes.len();
        bytes[at] ^= 1;
        signer.token_with(&bytes)
    };
    let other_payload = encoded(r#"{"iss":"https://issuer.example","sub":"another"}"#);
    let spaced = encoded(&format!("{} ", signer.header));
    vec![
        ("first byte of the signature changed", flipped(0)),
        ("byte 31 of the signature changed", flipped(31)),
        ("last byte of the signature changed", flipped(usize::MAX)),
        (
            "signature of zeros",
            signer.token_with(&vec![0; URL_SAFE_NO_PAD.decode(signature).expect("base64url").len()]),
        ),
        ("signature of one byte", signer.token_with(&[1])),
        ("signature missing", format!("{header}.{payload}.")),
        ("signature and separator missing", format!("{header}.{payload}")),
        ("payload changed", format!("{header}.{other_payload}.{signature}")),
        ("payload missing", format!("{header}..{signature}")),
        ("payload and separator missing", format!("{header}.{signature}")),
        ("header with a space more", format!("{spaced}.{payload}.{signature}")),
        ("header missing", format!(".{payload}.{signature}")),
        ("header and separator missing", format!("{payload}.{signature}")),
        ("header and signature missing", format!(".{payload}.")),
        ("only the payload", payload.to_owned()),
        ("only separators", "..".to_owned()),
        ("nothing", String::new()),
        ("an empty part more", format!("{good}.")),
        ("a part more", format!("{good}.{signature}")),
        ("an empty part before", format!(".{good}")),
        ("header and payload swapped", format!("{payload}.{header}.{signature}")),
        (
            "flattened JSON serialization",
            json!({"protected": header, "payload": payload, "signature": signature}).to_string(),
        ),
        (
            "general JSON serialization",
            json!({"payload": payload, "signatures": [{"protected": header, "signature": signature}]})
                .to_string(),
        ),
    ]
}

pub fn other_algorithms(signer: &Signer, all: &[Signer]) -> Cases {
    let mut cases = Vec::new();
    for name in ["none", "None", "NONE", "nOnE"] {
        let unsigned = format!("{}.{}.", encoded(&header_with(name)), encoded(PAYLOAD));
        cases.push(("none, without a signature", unsigned.clone()));
        cases.push(("none, with a signature", format!("{unsigned}{}", parts(&signer.token())[2])));
    }
    // What an attacker knows of the key, as a secret that both sides would have.
    let public = [signer.public.clone(), signer.jwk.to_string().into_bytes(), b"".to_vec()];
    for secret in &public {
        for (name, algorithm) in
            [("HS256", hmac::HMAC_SHA256), ("HS384", hmac::HMAC_SHA384), ("HS512", hmac::HMAC_SHA512)]
        {
            let input = format!("{}.{}", encoded(&header_with(name)), encoded(PAYLOAD));
            let tag = hmac::sign(&hmac::Key::new(algorithm, secret), input.as_bytes());
            cases.push(("HMAC with the public key", format!("{input}.{}", URL_SAFE_NO_PAD.encode(tag))));
        }
    }
    for name in ["HS256", "ES512", "ES256K", "RSA1_5", "Ed25519", "", "rs256", "RS256 "] {
        cases.push(("an algorithm that no issuer can list", signer.token_of(&header_with(name))));
    }
    for other in all.iter().filter(|other| other.algorithm != signer.algorithm) {
        cases.push(("header names another algorithm", signer.token_of(&header_with(other.algorithm))));
        cases.push(("signed with another algorithm or key", {
            let input = signer.signing_input();
            format!("{input}.{}", URL_SAFE_NO_PAD.encode((other.sign)(input.as_bytes())))
        }));
    }
    cases.push(("header names no algorithm", signer.token_of(r#"{"kid":"k"}"#)));
    cases.push(("header names a list of algorithms", signer.token_of(r#"{"alg":["none"],"kid":"k"}"#)));
    cases
}

pub fn other_headers(signer: &Signer) -> Cases {
    let with = |more: &str| signer.token_of(&format!(r#"{{"alg":"{}","kid":"k",{more}}}"#, signer.algorithm));
    let named = |kid: &str| signer.token_of(&format!(r#"{{"alg":"{}","kid":{kid}}}"#, signer.algorithm));
    vec![
        ("the attacker's key in jwk", with(&format!(r#""jwk":{}"#, signer.jwk))),
        ("a link to keys in jku", with(r#""jku":"https://attacker.example/keys""#)),
        ("a certificate in x5c", with(r#""x5c":["AAAA"]"#)),
        ("a link to a certificate in x5u", with(r#""x5u":"https://attacker.example/cert""#)),
        ("a critical extension", with(r#""crit":["exp"],"exp":1"#)),
        ("a payload without base64url", with(r#""b64":false"#)),
        ("a compressed payload", with(r#""zip":"DEF""#)),
        ("a nested token", with(r#""cty":"JWT""#)),
        ("another type", with(r#""typ":"at+jwt""#)),
        ("alg twice", with(r#""alg":"none""#)),
        ("alg twice, once with escapes", with(r#""\u0061lg":"none""#)),
        ("kid twice", with(r#""kid":"other""#)),
        ("no kid", signer.token_of(&format!(r#"{{"alg":"{}"}}"#, signer.algorithm))),
        ("empty kid", named(r#""""#)),
        ("kid of another type", named("7")),
        ("kid of null", named("null")),
        ("another kid", named(r#""other""#)),
        ("kid in another case", named(r#""K""#)),
        ("kid that is a path", named(r#""../k""#)),
        ("kid that is a query", named(r#""k' OR '1'='1""#)),
        ("header that is a list", signer.token_of(r#"["alg"]"#)),
        ("header that is deep", with(&format!(r#""a":{}{}"#, "[".repeat(20), "]".repeat(20)))),
        ("text after the header's JSON", signer.token_of(&format!("{} x", signer.header))),
        ("payload that is no object", signer.signed(&signer.header, "foo")),
        ("empty payload", signer.signed(&signer.header, "")),
        ("claim twice", signer.signed(&signer.header, r#"{"iss":"a","iss":"b"}"#)),
        (
            "white space in the header, signed",
            signer.signed(&signer.header.replace(',', " ,\r\n\t"), PAYLOAD),
        ),
    ]
}

pub fn other_encodings(signer: &Signer) -> Cases {
    let good = signer.token();
    let [header, payload, signature] = parts(&good);
    let mut cases = Vec::new();
    for (comment, sign) in [
        ("a space inside a part", ' '),
        ("a line break inside a part", '\n'),
        ("padding in a part", '='),
        ("a foreign character inside a part", '!'),
        ("a character of plain base64", '+'),
        ("NUL inside a part", '\0'),
        ("a look-alike inside a part", 'а'),
    ] {
        for part in [header, payload, signature] {
            let inside = format!("{}{sign}{}", &part[..4], &part[4..]);
            cases.push((comment, good.replacen(part, &inside, 1)));
            cases.push((comment, good.replacen(part, &format!("{part}{sign}"), 1)));
        }
    }
    // Bits that no byte needs: the same signature, spelled differently.
    let last = signature.chars().last().expect("a signature");
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let at = alphabet.find(last).expect("a digit");
    if signature.len() % 4 != 0 {
        let other = &alphabet[at + 1..at + 2];
        let respelled = format!("{header}.{payload}.{}{other}", &signature[..signature.len() - 1]);
        cases.push(("unused bits set", respelled));
    } else {
        cases.push(("unused bits set", format!("{header}.{payload}.{signature}A")));
    }
    cases.push(("as a bearer header", format!("Bearer {good}")));
    cases.push(("white space around", format!(" {good}")));
    cases.push(("line break at the end", format!("{good}\n")));
    cases.push(("too long", format!("{good}{}", "A".repeat(20_000))));
    cases
}

/// Sets that hold the signer's key in a form in which it must not count, or another key by its name.
pub fn wrong_keys(signer: &Signer, other: &Signer) -> Vec<(&'static str, Value)> {
    let with = |name: &str, value: Value| {
        let mut key = signer.jwk.clone();
        key[name] = value;
        key
    };
    let set = |key: Value| json!({"keys": [key]});
    let kid = |kid: &str| with("kid", json!(kid));
    let oct = json!({"kty": "oct", "kid": "k", "k": URL_SAFE_NO_PAD.encode(&signer.public)});
    let mut cases = vec![
        ("for encryption", set(with("use", json!("enc")))),
        ("with key_ops encrypt", set(with("key_ops", json!(["encrypt"])))),
        ("with key_ops sign", set(with("key_ops", json!(["sign"])))),
        ("without key_ops", set(with("key_ops", json!([])))),
        ("for an algorithm that is none", set(with("alg", json!("none")))),
        ("for an unknown algorithm", set(with("alg", json!("ES521")))),
        ("for HMAC", set(with("alg", json!("HS256")))),
        ("of another type", set(with("kty", json!("AKP")))),
        ("as a secret", set(oct.clone())),
        ("as a secret for HMAC", set(with("kty", json!("oct")))),
        ("by another name", set(kid("other"))),
        ("without a name", set(with("kid", Value::Null))),
        ("twice by one name", json!({"keys": [signer.jwk, signer.jwk]})),
        ("no keys", json!({"keys": []})),
        ("another key by its name", set(other.jwk.clone())),
    ];
    if let Some(modulus) = signer.jwk["n"].as_str() {
        cases.extend([
            ("with exponent 1", set(with("e", json!("AQ")))),
            ("with exponent 2", set(with("e", json!("Ag")))),
            ("with exponent 0", set(with("e", json!("AA")))),
            ("with 1024 bits", set(with("n", json!(modulus[..172])))),
            ("with a modulus and zeros", set(with("n", json!(format!("AAAA{modulus}"))))),
        ]);
    }
    if signer.jwk["kty"] == "EC" {
        let x = signer.jwk["x"].clone();
        cases.extend([
            ("on another curve", set(with("crv", json!("P-521")))),
            ("on a curve of another name", set(with("crv", json!("p-256")))),
            ("off the curve", set(with("y", x))),
            ("at infinity", set(with("x", json!("")))),
        ]);
    }
    cases
}
