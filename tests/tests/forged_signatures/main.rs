//! Forged tokens and unfit keys against the server's verifier: JSON Web Signatures of our own for each kind of case in
//! Wycheproof's `json_web_signature_test.json` and `json_web_key_test.json`, with fresh keys of every algorithm.
//! `make wycheproof` runs those two files themselves.

mod forgeries;
mod signers;

use keyfold_tests::wycheproof::{Judged, judge};
use serde_json::{Value, json};

use crate::{
    forgeries::{changed_parts, other_algorithms, other_encodings, other_headers, wrong_keys},
    signers::{es256, es384, signers},
};

#[test]
fn attack_03_forged_json_web_signatures_are_refused() {
    let signers = signers();
    let mut tables = Vec::new();
    for signer in &signers {
        let mut cases = vec![("as signed", signer.token())];
        cases.extend(changed_parts(signer));
        cases.extend(other_algorithms(signer, &signers));
        cases.extend(other_headers(signer));
        cases.extend(other_encodings(signer));
        tables.push((signer.algorithm, distinct(outcomes(&json!({"keys": [signer.jwk]}), &cases))));
    }
    let (_, first) = &tables[0];
    for (algorithm, table) in &tables {
        assert_eq!(table, first, "{algorithm}");
    }
    insta::assert_snapshot!(first, @r"
    as signed: accepted
    first byte of the signature changed: token-signature
    byte 31 of the signature changed: token-signature
    last byte of the signature changed: token-signature
    signature of zeros: token-signature
    signature of one byte: token-signature
    signature missing: token-malformed
    signature and separator missing: token-malformed
    payload changed: token-signature
    payload missing: token-malformed
    payload and separator missing: token-malformed
    header with a space more: token-signature
    header missing: token-malformed
    header and separator missing: token-malformed
    header and signature missing: token-malformed
    only the payload: token-malformed
    only separators: token-malformed
    nothing: token-malformed
    an empty part more: token-malformed
    a part more: token-malformed
    an empty part before: token-malformed
    header and payload swapped: token-malformed
    flattened JSON serialization: token-malformed
    general JSON serialization: token-malformed
    none, without a signature: token-algorithm
    none, with a signature: token-algorithm
    HMAC with the public key: token-algorithm
    an algorithm that no issuer can list: token-algorithm
    header names another algorithm: token-key-unfit
    signed with another algorithm or key: token-signature
    header names no algorithm: token-malformed
    header names a list of algorithms: token-malformed
    the attacker's key in jwk: token-embedded-key
    a link to keys in jku: token-embedded-key
    a certificate in x5c: token-embedded-key
    a link to a certificate in x5u: token-embedded-key
    a critical extension: token-extension
    a payload without base64url: token-extension
    a compressed payload: token-extension
    a nested token: token-nested
    another type: token-type
    alg twice: token-duplicate-name
    alg twice, once with escapes: token-duplicate-name
    kid twice: token-duplicate-name
    no kid: token-key-missing
    empty kid: token-key-missing
    kid of another type: token-key-missing
    kid of null: token-key-missing
    another kid: token-key-unknown
    kid in another case: token-key-unknown
    kid that is a path: token-key-unknown
    kid that is a query: token-key-unknown
    header that is a list: token-malformed
    header that is deep: token-too-deep
    text after the header's JSON: token-malformed
    payload that is no object: token-malformed
    empty payload: token-malformed
    claim twice: token-duplicate-name
    white space in the header, signed: accepted
    a space inside a part: token-malformed
    a line break inside a part: token-malformed
    padding in a part: token-malformed
    a foreign character inside a part: token-malformed
    a character of plain base64: token-malformed
    NUL inside a part: token-malformed
    a look-alike inside a part: token-malformed
    unused bits set: token-malformed
    as a bearer header: token-malformed
    white space around: token-malformed
    line break at the end: token-malformed
    too long: token-too-large
    ");
}

#[test]
fn attack_03_a_signature_counts_only_under_a_key_that_is_meant_for_it() {
    let mut table = Vec::new();
    for (signer, other) in signers().iter().zip(&signers()) {
        let token = [("", signer.token())];
        for (comment, keys) in wrong_keys(signer, other) {
            table.extend(outcomes(&keys, &token).into_iter().map(|outcome| format!("{comment}{outcome}")));
        }
    }
    table.sort();
    insta::assert_snapshot!(distinct(table), @r"
    another key by its name: token-signature
    as a secret for HMAC: token-key-unknown
    as a secret: token-key-unknown
    at infinity: token-signature
    by another name: token-key-unknown
    for HMAC: token-key-unfit
    for an algorithm that is none: token-key-unfit
    for an unknown algorithm: token-key-unfit
    for encryption: token-key-unknown
    no keys: token-key-unknown
    of another type: token-key-unknown
    off the curve: token-signature
    on a curve of another name: token-key-unknown
    on another curve: token-key-unknown
    twice by one name: keys-refused
    with 1024 bits: token-key-unfit
    with a modulus and zeros: token-signature
    with exponent 0: token-signature
    with exponent 1: token-signature
    with exponent 2: token-signature
    with key_ops encrypt: token-key-unknown
    with key_ops sign: token-key-unknown
    without a name: token-key-unknown
    without key_ops: token-key-unknown
    ");
}

#[test]
fn attack_03_special_values_of_ecdsa_signatures_are_refused() {
    // The orders of P-256 and P-384 (SEC 2, sections 2.4.2 and 2.5.1).
    let orders = [
        (es256(), "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551"),
        (
            es384(),
            "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
        ),
    ];
    for (signer, order) in orders {
        let order = hex::decode(order).expect("hex");
        let small = |value: u8| [vec![0; order.len() - 1], vec![value]].concat();
        let mut below = order.clone();
        *below.last_mut().expect("bytes") -= 1;
        let values = [small(0), small(1), below, order.clone(), vec![0xff; order.len()]];
        let mut cases = Vec::new();
        for r in &values {
            for s in &values {
                cases.push(("r and s", signer.token_with(&[r.as_slice(), s].concat())));
            }
        }
        let good = (signer.sign)(signer.signing_input().as_bytes());
        let (r, s) = good.split_at(order.len());
        for signature in [
            [r, &[0], s].concat(),
            [&[0], r, &[0], s].concat(),
            [&good[..], &[0]].concat(),
            [&[0], &good[..]].concat(),
            good[..good.len() - 1].to_vec(),
            [s, r].concat(),
            der(r, s),
        ] {
            cases.push(("form", signer.token_with(&signature)));
        }
        let table = outcomes(&json!({"keys": [signer.jwk]}), &cases);
        assert!(table.iter().all(|line| line.ends_with(": token-signature")), "{table:?}");
        assert_eq!(table.len(), 32);
    }
}

/// The same signature in the form that X.509 uses.
fn der(r: &[u8], s: &[u8]) -> Vec<u8> {
    let integer = |value: &[u8]| {
        let mut value = value.to_vec();
        if value[0] >= 0x80 {
            value.insert(0, 0);
        }
        [vec![2, u8::try_from(value.len()).expect("short")], value].concat()
    };
    let body = [integer(r), integer(s)].concat();
    [vec![0x30, u8::try_from(body.len()).expect("short")], body].concat()
}

/// One line a case: what became of it.
fn outcomes(keys: &Value, cases: &[(&'static str, String)]) -> Vec<String> {
    let test =
        |(at, (comment, jws)): (usize, &(&str, String))| json!({"tcId": at, "comment": comment, "jws": jws});
    let tests: Vec<_> = cases.iter().enumerate().map(test).collect();
    let document = json!({"testGroups": [{"comment": "", "public": keys, "tests": tests}]});
    let line = |case: &Judged| format!("{}: {}", case.comment.trim(), case.token.err().unwrap_or("accepted"));
    judge(&document.to_string()).iter().map(line).collect()
}

/// Each line once.
fn distinct(lines: Vec<String>) -> String {
    let mut seen = Vec::new();
    for line in lines {
        if !seen.contains(&line) {
            seen.push(line);
        }
    }
    seen.join("\n")
}
