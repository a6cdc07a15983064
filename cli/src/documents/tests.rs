use std::io::Cursor;

use proptest::prelude::*;

use super::*;

const KEYSPACE: &str = "apiVersion: keyfold.dev/v1\nkind: Keyspace\nmetadata: {name: payments}\n";

fn from_stdin(text: &[u8]) -> Result<Vec<Document>, Failure> {
    read(&["-".into()], &mut Cursor::new(text))
}

fn refusal(text: &str) -> String {
    match from_stdin(text.as_bytes()) {
        Ok(documents) => panic!("taken: {documents:?}"),
        Err(failure) => failure.to_string(),
    }
}

#[test]
fn several_documents_are_read_in_order() {
    let text = format!(
        "# objects of payments\n---\n{KEYSPACE}---\napiVersion: keyfold.dev/v1\nkind: AppRole\nmetadata: {{name: api}}\n\
         spec:\n  bind: [{{issuer: prod, namespaces: [payments], serviceAccounts: [api]}}]\n  nodeBinding: required\n---\n"
    );
    let objects: Vec<v1::Object> =
        from_stdin(text.as_bytes()).unwrap().iter().map(Document::to_object).collect();
    let lines: Vec<String> = objects
        .iter()
        .map(|object| format!("{} {} {}", object.kind, object.name, object.spec_json))
        .collect();
    insta::assert_snapshot!(lines.join("\n"), @r#"
    Keyspace payments {}
    AppRole api {"bind":[{"issuer":"prod","namespaces":["payments"],"serviceAccounts":["api"]}],"nodeBinding":"required"}
    "#);
}

#[test]
fn a_document_with_something_wrong_is_refused_by_place_and_field() {
    let bad = [
        "",
        "---\n---\n",
        "just text",
        "- a list",
        "apiVersion: keyfold.dev/v1\nkind: Keyspace\n",
        "kind: Keyspace\nmetadata: {name: payments}\n",
        "apiVersion: v1\nkind: Keyspace\nmetadata: {name: payments}\n",
        "apiVersion: keyfold.dev/v1\nkind: Secret\nmetadata: {name: payments}\n",
        "apiVersion: keyfold.dev/v1\nkind: Keyspace\nmetadata: {name: payments}\ndata: {}\n",
        "apiVersion: keyfold.dev/v1\nkind: Keyspace\nmetadata: {name: payments, labels: {}}\n",
        "apiVersion: keyfold.dev/v1\nkind: Keyspace\nmetadata: {name: 7}\n",
        "apiVersion: keyfold.dev/v1\nkind: Keyspace\nmetadata: {}\n",
        "apiVersion: keyfold.dev/v1\nkind: Keyspace\nmetadata: {name: payments}\nspec: [1]\n",
        "apiVersion: keyfold.dev/v1\nkind: Keyspace\nkind: Issuer\nmetadata: {name: payments}\n",
        "apiVersion: keyfold.dev/v1\nkind: Keyspace\nmetadata: {name: payments}\nspec: {a: 1, a: 2}\n",
        "apiVersion: keyfold.dev/v1\nkind: [unclosed\n",
        "apiVersion: keyfold.dev/v1\nkind: Keyspace\nmetadata: {name: !custom payments}\n",
        "[keyfold.dev/v1, Keyspace, {name: payments}, {}]",
        "apiVersion: keyfold.dev/v1\nkind: Keyspace\nmetadata: [payments]\n",
    ];
    let messages: Vec<String> = bad.iter().map(|text| refusal(text)).collect();
    insta::assert_snapshot!(messages.join("\n"), @r#"
    cannot use the files: they hold no document.
    cannot use the files: they hold no document.
    cannot use standard input, document 1: invalid type: string "just text", expected a map with apiVersion, kind, metadata and spec.
    cannot use standard input, document 1: a list stands where a map belongs.
    cannot use standard input, document 1: missing field `metadata`.
    cannot use standard input, document 1: missing field `apiVersion`.
    cannot use standard input, document 1: apiVersion: unknown variant `v1`, expected `keyfold.dev/v1`.
    cannot use standard input, document 1: kind: unknown variant `Secret`, expected one of `Keyspace`, `Issuer`, `AppRole`, `OperatorRole`, `ApprovalRule`.
    cannot use standard input, document 1: data: unknown field `data`, expected one of `apiVersion`, `kind`, `metadata`, `spec`.
    cannot use standard input, document 1: metadata.labels: unknown field `labels`, expected `name`.
    cannot use standard input, document 1: metadata.name: invalid type: integer `7`, expected a string.
    cannot use standard input, document 1: metadata: missing field `name`.
    cannot use standard input, document 1: spec: invalid type: sequence, expected a map.
    cannot use standard input, document 1: duplicate mapping key `kind` is not allowed here at line 3, column 1.
    cannot use standard input, document 1: duplicate mapping key `a` is not allowed here at line 4, column 14.
    cannot use standard input, document 1: unclosed bracket '[' at line 2, column 7.
    cannot use standard input, document 1: unsupported tag `!custom` at line 3, column 26.
    cannot use standard input, document 1: a list stands where a map belongs.
    cannot use standard input, document 1: metadata: a list stands where a map belongs.
    "#);
}

#[test]
fn the_number_of_the_wrong_document_is_named() {
    insta::assert_snapshot!(
        refusal(&format!("{KEYSPACE}---\nkind: Keyspace\n")),
        @"cannot use standard input, document 2: missing field `apiVersion`."
    );
}

#[test]
fn an_object_given_twice_is_refused_with_both_places() {
    insta::assert_snapshot!(
        refusal(&format!("{KEYSPACE}---\n{KEYSPACE}")),
        @"cannot use standard input, document 2: Keyspace payments stands in standard input, document 1 already. Keep one of them."
    );
}

#[test]
fn text_that_is_not_utf_8_is_refused() {
    insta::assert_snapshot!(
        from_stdin(&[0xff, 0xfe, 0xfd]).unwrap_err(),
        @"cannot use standard input: it is not UTF-8 text."
    );
}

#[test]
fn attack_16_aliases_that_multiply_are_refused() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..9 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        text += &format!("a{level}: &a{level} [{aliases}]\n");
    }
    assert!(from_stdin(text.as_bytes()).is_err());
}

#[test]
fn standard_input_is_taken_once() {
    let failure = read(&["-".into(), "-".into()], &mut Cursor::new(KEYSPACE)).unwrap_err();
    insta::assert_snapshot!(failure, @"cannot read standard input: `-` is given twice. Give it once.");
}

#[test]
fn a_folder_stands_for_its_yaml_files_by_name() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("deeper.yaml")).unwrap();
    for (file, name) in [("b.yml", "beta"), ("a.yaml", "alpha"), ("notes.txt", "left-out")] {
        let text = KEYSPACE.replace("payments", name);
        fs::write(folder.path().join(file), text).unwrap();
    }
    let documents = read(&[folder.path().into()], &mut io::empty()).unwrap();
    let names: Vec<&str> = documents.iter().map(|document| document.metadata.name.as_str()).collect();
    assert_eq!(names, ["alpha", "beta"]);
}

#[test]
fn a_folder_without_yaml_files_and_a_missing_file_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let failure = read(&[folder.path().into()], &mut io::empty()).unwrap_err().to_string();
    assert!(failure.contains("the folder holds no YAML file"), "{failure}");
    insta::assert_snapshot!(
        read(&["missing.yaml".into()], &mut io::empty()).unwrap_err(),
        @"cannot read missing.yaml: No such file or directory."
    );
}

#[test]
fn an_object_of_the_server_prints_as_a_document() {
    let object = v1::Object {
        kind: "AppRole".into(),
        name: "payments-api".into(),
        spec_json:
            r#"{"grants":[{"allow":["read"],"path":"payments/*"}],"lease":"on","maxTokenLifetime":"24h"}"#
                .into(),
        generation: 3,
        updated_at: None,
    };
    let document = Document::from_object(&object).unwrap();
    insta::assert_snapshot!(to_yaml([&document, &document]).unwrap(), @r#"
    apiVersion: keyfold.dev/v1
    kind: AppRole
    metadata:
      name: payments-api
    spec:
      grants:
      - allow:
        - read
        path: payments/*
      lease: "on"
      maxTokenLifetime: 24h
    ---
    apiVersion: keyfold.dev/v1
    kind: AppRole
    metadata:
      name: payments-api
    spec:
      grants:
      - allow:
        - read
        path: payments/*
      lease: "on"
      maxTokenLifetime: 24h
    "#);
}

#[test]
fn an_object_of_an_unknown_form_is_not_shown_as_something_else() {
    let unknown = v1::Object { kind: "Lease".into(), spec_json: "{}".into(), ..Default::default() };
    assert!(Document::from_object(&unknown).unwrap_err().contains("Lease"));
    let no_spec = v1::Object { kind: "Issuer".into(), spec_json: "[]".into(), ..Default::default() };
    assert!(Document::from_object(&no_spec).unwrap_err().contains("not a JSON object"));
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        // Words and forms that YAML readers like to take for something else than text.
        prop::sample::select(vec![
            "on",
            "no",
            "yes",
            "true",
            "null",
            "~",
            "",
            " ",
            "1",
            "-1",
            "0x1f",
            "0o17",
            "017",
            "1_000",
            "1e3",
            ".5",
            ".inf",
            ".nan",
            "12:30",
            "2026-01-01",
            "# x",
            "a: b",
            "- a",
            "*a",
            "&a",
            "!a",
            "|",
            ">",
            "%a",
            "@a",
            "`a",
            "<<",
            "=",
            "---",
            "...",
            "a\nb",
            "a\nb\n",
            "\na",
            " a",
            "a ",
            "\t",
            "a\tb",
            "'",
            "\"",
            "{",
            "[",
            "\u{85}",
            "\u{feff}",
            "\u{2028}",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-zA-Z0-9 .:-]{0,8}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn what_get_prints_apply_takes_back_unchanged(
        spec in prop::collection::btree_map("[a-z]{1,6}", json(), 0..4),
        name in "[a-z0-9]{1,6}",
    ) {
        let document = Document {
            api_version: ApiVersion::V1,
            kind: Kind::Issuer,
            metadata: Metadata { name: name.clone() },
            spec: spec.into_iter().collect(),
        };
        let other = Document { kind: Kind::Keyspace, ..document.clone() };
        let yaml = to_yaml([&document, &other]).unwrap();
        let back = from_stdin(yaml.as_bytes())
            .map_err(|failure| TestCaseError::fail(format!("{failure}\n{yaml}")))?;
        prop_assert_eq!(back, vec![document, other], "{}", yaml);
    }
}
