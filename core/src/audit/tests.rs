use time::macros::datetime;

use super::*;
use crate::policy::tests::identity;

fn record() -> Record {
    let item = IssuedItem { path: "payments/db".into(), version: Some(3), rule: Some("payments/*".into()) };
    Record {
        request_id: Uuid::nil(),
        from: Some(IpAddr::from([10, 0, 0, 7])),
        actor: Actor::Pod(Arc::new(identity("payments", "api"))),
        driver: Some(Arc::new(identity("keyfold-system", "keyfold-csi"))),
        operation: Operation::SecretIssue {
            role: Some("payments-api".into()),
            items: vec![item],
            lease_expires_at: None,
        },
        approval: None,
        generation: None,
    }
}

fn entry<'a>(record: &'a Record, outcome: &'a Outcome) -> Entry<'a> {
    Entry::new(datetime!(2026-11-23 05:40:54.123456789 UTC), record, outcome)
}

#[test]
fn the_bytes_of_an_entry_are_frozen() {
    let expected = concat!(
        r#"{"v":1,"at":"2026-11-23T05:40:54.123456Z","request_id":"00000000-0000-0000-0000-000000000000","#,
        r#""from":"10.0.0.7","#,
        r#""actor":{"kind":"pod","name":"system:serviceaccount:payments:api","issuer":"prod","#,
        r#""namespace":"payments","service_account":{"name":"api","uid":"uid-of-api"},"#,
        r#""pod":{"name":"api-0","uid":"uid-of-api-0"},"node":{"name":"vm","uid":"uid-of-vm"},"#,
        r#""credential_id":null},"driver":{"name":"system:serviceaccount:keyfold-system:keyfold-csi","#,
        r#""issuer":"prod","namespace":"keyfold-system","service_account":{"name":"keyfold-csi","#,
        r#""uid":"uid-of-keyfold-csi"},"pod":{"name":"api-0","uid":"uid-of-api-0"},"#,
        r#""node":{"name":"vm","uid":"uid-of-vm"},"credential_id":null},"operation":{"name":"secret.issue","role":"payments-api","#,
        r#""items":[{"path":"payments/db","version":3,"rule":"payments/*"}]},"outcome":{"result":"allowed"}}"#
    );
    assert_eq!(String::from_utf8(entry(&record(), &Outcome::Allowed).to_bytes()).unwrap(), expected);
}

#[test]
fn an_issue_on_a_lease_states_its_end() {
    let mut on_a_lease = record();
    let Operation::SecretIssue { lease_expires_at, .. } = &mut on_a_lease.operation else { panic!() };
    *lease_expires_at = Some("2026-11-23T06:40:54.123456Z".into());
    let bytes = String::from_utf8(entry(&on_a_lease, &Outcome::Allowed).to_bytes()).unwrap();
    let end = r#""rule":"payments/*"}],"lease_expires_at":"2026-11-23T06:40:54.123456Z"},"outcome":{"result":"allowed"}}"#;
    assert!(bytes.ends_with(end), "{bytes}");
}

#[test]
fn a_refusals_message_is_cut_as_the_callers_is() {
    let outcome = Outcome::refused("not-granted", &"x".repeat(1 << 20));
    let record = record();
    let Outcome::Refused { message, .. } = &*entry(&record, &outcome).outcome else { panic!("refused") };
    assert_eq!(*message, cut(&"x".repeat(1 << 20), MESSAGE_BYTES_MAX));
}

#[test]
fn the_leaf_hash_is_that_of_rfc_6962() {
    // SHA-256 of the single byte 0x00: the leaf hash of an empty entry, as Certificate Transparency's tests have it.
    let expected = "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d";
    assert_eq!(hex::encode(leaf_hash(b"")), expected);
}

#[test]
fn the_name_in_the_bytes_is_the_name_that_filters_use() {
    let (record, outcome) = (record(), Outcome::from(&Refusal::NodeMismatch));
    let entry = entry(&record, &outcome);
    let json: serde_json::Value = serde_json::from_slice(&entry.to_bytes()).unwrap();
    assert_eq!(json["operation"]["name"], entry.operation.name());
    assert_eq!(json["actor"]["name"], entry.actor.name());
    assert_eq!(json["outcome"]["reason"], "node-mismatch");
}

#[test]
fn no_text_in_an_entry_can_steer_a_terminal() {
    let mut hostile = record();
    let text = "a\u{1b}[2J\u{9b}2J\u{202e}\u{7f}\"\\\u{1f600}ä\n";
    hostile.operation = Operation::SecretList { prefix: text.into() };
    let bytes = entry(&hostile, &Outcome::Allowed).to_bytes();
    assert!(bytes.iter().all(|byte| (b' '..=b'~').contains(byte)));
    let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(json["operation"]["prefix"], text);
}

#[test]
fn attack_16_who_proves_nothing_writes_little() {
    let item = |n: usize| IssuedItem { path: format!("a/{n}"), version: None, rule: None };
    let operation =
        Operation::SecretIssue { role: None, items: (0..64).map(item).collect(), lease_expires_at: None };
    let record = Record {
        request_id: Uuid::nil(),
        from: None,
        actor: Actor::unknown(),
        driver: None,
        operation,
        approval: None,
        generation: None,
    };
    let entry = Entry::new(datetime!(2026-11-23 05:40:54 UTC), &record, &Outcome::Allowed);
    assert_eq!(entry.operation.paths().len(), UNKNOWN_ITEMS_MAX);
}
