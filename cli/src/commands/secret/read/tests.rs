use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn secret(fields: &[(&str, &[u8])]) -> GetSecretResponse {
    GetSecretResponse {
        path: "payments/db".into(),
        version: 3,
        created_at: Some(prost_types::Timestamp { seconds: 1_767_225_600, nanos: 0 }),
        fields: fields
            .iter()
            .map(|(name, value)| Field { name: (*name).into(), value: value.to_vec() })
            .collect(),
    }
}

#[test]
fn attack_14_the_table_shows_sizes_and_no_value() {
    let text = draw_fields(&secret(&[("password", b"planted"), ("user", b"api")]));
    assert!(!text.contains("planted"));
    insta::assert_snapshot!(text, @r"
    payments/db version 3
    FIELD     BYTES
    password  7
    user      3
    ");
}

#[test]
fn json_holds_text_as_text_and_anything_else_as_base64() {
    let secret = secret(&[("password", "pä\n\"".as_bytes()), ("key", &[0xff, 0x00])]);
    insta::assert_snapshot!(
        serde_json::to_string(&SecretView(&secret)).unwrap(),
        @r#"{"path":"payments/db","version":3,"created_at":"2026-01-01T00:00:00Z","fields":{"password":"pä\n\""},"base64_fields":{"key":"/wA="}}"#
    );
}

#[test]
fn yaml_keeps_values_that_look_like_something_else() {
    let secret = secret(&[("a", b"on"), ("b", b"007"), ("c", b"line\nline\n"), ("d", b"")]);
    insta::assert_snapshot!(serde_saphyr::to_string(&SecretView(&secret)).unwrap(), @r#"
    path: payments/db
    version: 3
    created_at: "2026-01-01T00:00:00Z"
    fields:
      a: "on"
      b: "007"
      c: |
        line
        line
      d: ""
    "#);
}

#[test]
fn the_buffer_of_shown_values_never_grows() {
    let worst = vec![0x1f; 10_000];
    let secret = secret(&[("a", &worst)]);
    let capacity = worst.len() * 6 + 64 * 1024;
    let (mut json, mut yaml) = (Vec::with_capacity(capacity), String::with_capacity(capacity));
    let before = (json.as_ptr(), yaml.as_ptr());
    serde_json::to_writer_pretty(&mut json, &SecretView(&secret)).unwrap();
    serde_saphyr::to_fmt_writer(&mut yaml, &SecretView(&secret)).unwrap();
    assert_eq!((json.as_ptr(), yaml.as_ptr()), before);
}

#[test]
fn a_missing_field_is_not_found() {
    let failure =
        find(&secret(&[("user", b"api")]), "password", "cannot read secret payments/db").err().unwrap();
    assert_eq!(failure.exit(), Exit::NotFound);
    insta::assert_snapshot!(
        failure,
        @r#"cannot read secret payments/db: version 3 has no field "password". `keyfold secret get payments/db` lists its fields."#
    );
}

#[test]
fn files_are_for_their_owner_only() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("db");
    write_files(&secret(&[("password", b"x\n")]), &folder, "cannot read").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&folder), mode(&folder.join("password"))), (0o700, 0o600));
    assert_eq!(fs::read(folder.join("password")).unwrap(), b"x\n");
}

#[test]
fn files_are_written_all_or_none_and_never_over_others() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("user"), "mine").unwrap();
    let failure = write_files(&secret(&[("password", b"x"), ("user", b"y")]), folder.path(), "cannot read")
        .unwrap_err();
    assert!(failure.to_string().contains("File exists"), "{failure}");
    assert!(!folder.path().join("password").exists());
    assert_eq!(fs::read(folder.path().join("user")).unwrap(), b"mine");
}

#[test]
fn attack_24_a_field_name_cannot_lead_out_of_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["", ".", "..", "../x", "a/b", "/etc/x", "a/", "./a"] {
        let failure =
            write_files(&secret(&[("ok", b"x"), (name, b"y")]), folder.path(), "cannot read").unwrap_err();
        assert_eq!(failure.exit(), Exit::Internal, "{failure}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn lists_and_histories_are_tables() {
    let summary =
        SecretSummary { path: "payments/db".into(), current_version: 0, newest_version: 3, updated_at: None };
    insta::assert_snapshot!(draw_list(&[summary.into()]), @r"
    PATH         CURRENT  NEWEST  UPDATED
    payments/db  -        3       -
    ");
    let version = |version, state: VersionState, labels: &[&str], kek_version| {
        VersionView::from(VersionSummary {
            version,
            state: state.into(),
            created_at: Some(prost_types::Timestamp { seconds: 1_767_225_600, nanos: 0 }),
            created_by: "admin".into(),
            labels: labels.iter().map(|label| (*label).into()).collect(),
            kek_version,
        })
    };
    let versions = vec![
        version(3, VersionState::Live, &["current"], 2),
        version(2, VersionState::Deleted, &[], 2),
        version(1, VersionState::Destroyed, &[], 0),
    ];
    insta::assert_snapshot!(draw_history(&HistoryView { path: "payments/db".into(), versions }), @r"
    VERSION  STATE      LABELS   KEY VERSION  CREATED               BY
    3        live       current  2            2026-01-01T00:00:00Z  admin
    2        deleted             2            2026-01-01T00:00:00Z  admin
    1        destroyed           -            2026-01-01T00:00:00Z  admin
    ");
}
