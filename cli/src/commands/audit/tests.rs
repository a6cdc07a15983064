use super::*;

const ISSUED: &str = r#"{"v":1,"at":"2026-01-01T08:00:00.123Z","request_id":"x","actor":{"kind":"pod","name":"system:serviceaccount:payments:api"},"operation":{"name":"secret.issue","role":"payments-api","items":[{"path":"payments/db","version":3},{"path":"payments/tls","version":1}]},"outcome":{"result":"allowed"}}"#;
const REFUSED: &str = r#"{"v":1,"at":"2026-01-01T08:00:01Z","actor":{"kind":"operator","name":"admin"},"operation":{"name":"secret.get","path":"x\u001b[2J/y"},"outcome":{"result":"refused","reason":"no-grant","message":"…"}}"#;

fn entry(index: u64, text: &str) -> AuditEntry {
    AuditEntry { index, leaf_hash: vec![0xab, 0x01], entry: text.as_bytes().to_vec() }
}

#[test]
fn the_table_shows_who_did_what_to_what_and_how_it_ended() {
    let operation = |text: &str| format!(r#"{{"operation":{text}}}"#);
    let entries = [
        entry(8, REFUSED),
        entry(7, ISSUED),
        entry(6, &operation(r#"{"name":"config.apply","objects":[{"kind":"Keyspace","name":"payments"}]}"#)),
        entry(5, &operation(r#"{"name":"config.delete","kind":"Issuer","object":"staging"}"#)),
        entry(4, &operation(r#"{"name":"key.rotate","keyspace":"payments","from_version":1}"#)),
        entry(3, &operation(r#"{"name":"secret.list","prefix":"payments/eu"}"#)),
        entry(2, &operation(r#"{"name":"config.list","kind":"AppRole"}"#)),
        entry(0, "{}"),
    ];
    insta::assert_snapshot!(draw(&entries), @r"
    INDEX  TIME                  OPERATION      ACTOR                               ON                        OUTCOME
    8      2026-01-01T08:00:01Z  secret.get     admin                               x [2J/y                   refused: no-grant
    7      2026-01-01T08:00:00Z  secret.issue   system:serviceaccount:payments:api  payments/db payments/tls  allowed
    6      -                     config.apply                                       Keyspace/payments
    5      -                     config.delete                                      Issuer/staging
    4      -                     key.rotate                                         payments
    3      -                     secret.list                                        payments/eu
    2      -                     config.list                                        AppRole
    0      -
    ");
}

#[test]
fn a_json_line_is_the_exact_entry_with_its_place_and_hash_in_front() {
    let line = json_line(&entry(7, ISSUED)).unwrap();
    assert_eq!(line, format!("{{\"index\":7,\"leaf_hash\":\"ab01\",{}\n", &ISSUED[1..]));
    let value: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&value["index"], &value["operation"]["role"]), (&7.into(), &"payments-api".into()));
}

#[test]
fn what_is_not_one_line_of_json_is_not_passed_on() {
    for text in ["", "{}", "[]", "text", "{\"a\":\n1}", "{\"a\":1"] {
        let failure = json_line(&entry(5, text)).unwrap_err();
        assert!(failure.to_string().contains("entry 5"), "{failure}");
    }
}

#[test]
fn a_time_is_a_date_or_an_age() {
    assert_eq!(Timestamp::from(moment("2026-01-01T00:00:00Z").unwrap()).seconds, 1_767_225_600);
    assert_eq!(Timestamp::from(moment("2026-01-01T02:00:00+02:00").unwrap()).seconds, 1_767_225_600);
    assert!(moment("1h").unwrap() < moment("30m").unwrap());
    for wrong in ["", "yesterday", "2026-01-01", "-1h", "0s"] {
        assert!(moment(wrong).is_err(), "{wrong}");
    }
}
