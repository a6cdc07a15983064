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
    insta::assert_snapshot!(draw(entries.iter().map(row).collect()), @r"
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
fn an_entry_that_is_not_ascii_is_escaped_and_means_the_same() {
    let entry = entry(7, "{\"path\":\"\u{9b}2J\u{202e}bd\u{7f}\"}");
    let line = json_line(&entry).unwrap();
    assert_eq!(
        line,
        format!("{{\"index\":7,\"leaf_hash\":\"ab01\",{}\n", r#""path":"\u009b2J\u202ebd\u007f"}"#)
    );
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), value(&entry).unwrap());
}

#[test]
fn an_entry_cannot_claim_another_place() {
    let value = value(&entry(7, r#"{"index":9,"leaf_hash":"00"}"#)).unwrap();
    assert_eq!(value, serde_json::json!({"index": 7, "leaf_hash": "ab01"}));
}

fn pages(limit: u32) -> Pages {
    Pages::new(&Filter {
        operation: Some("secret.get".into()),
        actor: None,
        path: None,
        outcome: None,
        since: None,
        until: None,
        limit,
    })
}

fn asked(pages: &Pages) -> Option<(u32, u64)> {
    let request = pages.request.as_ref()?;
    assert_eq!(request.operation, "secret.get", "each page has the same filter");
    Some((request.page_size, request.before_index))
}

fn page(indexes: std::ops::Range<u64>) -> Vec<AuditEntry> {
    indexes.rev().map(|index| entry(index, ISSUED)).collect()
}

#[test]
fn only_an_empty_page_is_the_end() {
    let mut pages = pages(1000);
    assert_eq!(asked(&pages), Some((100, 0)));
    assert_eq!(pages.take(page(497..500)).map(|page| page.len()), Some(3), "fewer than asked for");
    assert_eq!(asked(&pages), Some((100, 497)));
    assert_eq!(pages.take(page(496..497)).map(|page| page.len()), Some(1));
    assert_eq!(asked(&pages), Some((100, 496)));
    assert!(pages.take(Vec::new()).is_none());
    assert_eq!(asked(&pages), None);
}

#[test]
fn the_limit_and_the_first_entry_end_the_list() {
    let mut limited = pages(105);
    limited.take(page(400..500));
    assert_eq!(asked(&limited), Some((5, 400)));
    assert_eq!(limited.take(page(390..400)).map(|page| page.len()), Some(5), "never more than wanted");
    assert_eq!(asked(&limited), None);

    let mut whole = pages(105);
    assert_eq!(whole.take(page(0..3)).map(|page| page.len()), Some(3));
    assert_eq!(asked(&whole), None);
}

#[test]
fn what_is_not_one_line_of_json_is_not_passed_on() {
    for text in ["", "{}", "[]", "text", "{\"a\":\n1}", "{\"a\":\t1}", " {\"a\":1}", "{\"a\":1"] {
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
