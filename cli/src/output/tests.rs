use super::*;

#[test]
fn a_table_is_aligned_columns_without_trailing_spaces() {
    let rows = [["payments/db".to_owned(), "3".to_owned()], ["x".to_owned(), String::new()]];
    insta::assert_snapshot!(table(["PATH", "CURRENT"], rows), @r"
    PATH         CURRENT
    payments/db  3
    x
    ");
}

#[test]
fn a_table_without_rows_still_has_its_header() {
    insta::assert_snapshot!(table(["PATH", "CURRENT"], []), @"PATH  CURRENT");
}

#[test]
fn a_cell_cannot_break_its_row_or_steer_the_terminal() {
    let text = table(["NAME"], [["a\nb\u{1b}[2J\u{9b}2J\u{202e}c\u{2066}".to_owned()]]);
    assert_eq!(text, "NAME\na b [2J 2J c\n");
}

#[test]
fn no_line_for_people_can_steer_the_terminal() {
    assert_eq!(plain("Keyspace a\u{202e}b created\n\n  x\u{85}y\n"), "Keyspace a b created\n\n  x y\n");
    assert_eq!(plain(""), "");
}

#[test]
fn encoded_text_cannot_steer_the_terminal_and_loads_as_it_was() {
    for texts in [
        "\u{1b}[2J\u{9b}\u{7f}\u{85}",
        "\u{202e}\u{2069}\u{61c}\u{feff}\u{e0041}",
        "a\n\tb\u{2028}c",
        "plain",
    ] {
        let view = serde_json::json!({"path": texts, "fields": {texts: [texts, "x"]}});
        for format in [Format::Json, Format::Yaml] {
            let text = encode(format, &view, 0).unwrap();
            assert!(is_plain(&text), "{text:?}");
            assert_eq!(serde_saphyr::from_str::<serde_json::Value>(&text).unwrap(), view, "{text:?}");
        }
        let json = encode(Format::Json, &view, 0).unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap(), view);
    }
}

#[test]
fn times_are_exact_for_programs_and_whole_seconds_for_people() {
    let at = time(Some(Timestamp { seconds: 1_767_225_600, nanos: 250_000_000 }));
    assert_eq!(at.as_deref(), Some("2026-01-01T00:00:00.250Z"));
    assert_eq!(table_time(&at), "2026-01-01T00:00:00Z");
    assert_eq!(
        table_time(&time(Some(Timestamp { seconds: 1_767_225_600, nanos: 0 }))),
        "2026-01-01T00:00:00Z"
    );
    assert_eq!(table_time(&time(None)), "-");
}

#[test]
fn encoded_text_ends_with_one_line_break() {
    for format in [Format::Json, Format::Yaml] {
        for text in ["payments/db", "payments/\u{202e}"] {
            let text = encode(format, &serde_json::json!({"path": text}), 0).unwrap();
            assert!(text.ends_with('\n') && !text.ends_with("\n\n"));
        }
    }
}
