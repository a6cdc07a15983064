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
    let text = table(["NAME"], [["a\nb\u{1b}[2J".to_owned()]]);
    assert_eq!(text, "NAME\na b [2J\n");
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
        let bytes = encode(format, &serde_json::json!({"path": "payments/db"}), 0).unwrap();
        assert!(bytes.ends_with(b"\n") && !bytes.ends_with(b"\n\n"));
    }
}
