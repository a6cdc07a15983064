use std::io::{Cursor, Write as _};

use tempfile::NamedTempFile;

use super::*;

fn none() -> Sources {
    Sources { from_file: Vec::new(), json: None, env_file: None }
}

fn file(content: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    file
}

fn json(text: &str) -> Result<Vec<Field>, Failure> {
    read(&Sources { json: Some("-".into()), ..none() }, &mut Cursor::new(text))
}

fn env(text: &[u8]) -> Result<Vec<Field>, Failure> {
    read(&Sources { env_file: Some("-".into()), ..none() }, &mut Cursor::new(text))
}

fn shown(fields: Result<Vec<Field>, Failure>) -> Vec<(String, Vec<u8>)> {
    let fields = fields.unwrap_or_else(|failure| panic!("{failure}"));
    fields.iter().map(|field| (field.name.clone(), field.value.clone())).collect()
}

fn refusal(fields: Result<Vec<Field>, Failure>) -> String {
    let Err(failure) = fields else { panic!("the fields were taken") };
    failure.to_string()
}

#[test]
fn a_files_bytes_are_taken_as_they_are() {
    let (binary, empty) = (file(&[0, 255, b'\n']), file(b""));
    let from_file = vec![("key".into(), binary.path().into()), ("none".into(), empty.path().into())];
    let fields = shown(read(&Sources { from_file, ..none() }, &mut io::empty()));
    assert_eq!(fields, [("key".into(), vec![0, 255, b'\n']), ("none".into(), vec![])]);
}

#[test]
fn sources_add_up() {
    let (one, env) = (file(b"1"), file(b"TWO=2\n"));
    let sources = Sources {
        from_file: vec![("one".into(), one.path().into())],
        json: Some("-".into()),
        env_file: Some(env.path().into()),
    };
    let names: Vec<String> = shown(read(&sources, &mut Cursor::new(r#"{"three": "3"}"#)))
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, ["one", "three", "TWO"]);
}

#[test]
fn json_strings_lose_their_escapes() {
    assert_eq!(
        shown(json(r#"{"a": "line\nnext \u20ac", "b": ""}"#)),
        [("a".into(), "line\nnext €".as_bytes().to_vec()), ("b".into(), vec![])]
    );
}

#[test]
fn env_lines_keep_everything_after_the_first_equals_sign() {
    let text = b"# database\n\nUSER=api\r\nPASSWORD= a=b \"c\" #d\nEMPTY=\nBYTES=\xff";
    assert_eq!(
        shown(env(text)),
        [
            ("USER".into(), b"api".to_vec()),
            ("PASSWORD".into(), b" a=b \"c\" #d".to_vec()),
            ("EMPTY".into(), vec![]),
            ("BYTES".into(), vec![0xff])
        ]
    );
}

#[test]
fn attack_14_what_is_wrong_is_named_by_place_and_never_shown() {
    let refusals = [
        refusal(json(r#"{"a": 314159}"#)),
        refusal(json(r#"{"a": {"b": "planted"}}"#)),
        refusal(json(r#""planted""#)),
        refusal(json(r#"{"a": "planted}"#)),
        refusal(json("{}")),
        refusal(json(r#"{"a": "planted", "a": "planted"}"#)),
        refusal(json(r#"{"../../etc/passwd": "planted"}"#)),
        refusal(json(r#"{"": "planted"}"#)),
        refusal(env(b"A=1\nplanted\n")),
        refusal(env(b"pla nted=1\n")),
        refusal(env(b"=planted\n")),
        refusal(env(b"\xff=planted\n")),
        refusal(env(b"# nothing\n")),
    ];
    for refusal in &refusals {
        assert!(!["planted", "314159", "pla nted"].iter().any(|value| refusal.contains(value)), "{refusal}");
    }
    insta::assert_snapshot!(refusals.join("\n"), @r#"
    cannot read the fields: standard input is not a JSON object whose values are all strings (line 1, column 12).
    cannot read the fields: standard input is not a JSON object whose values are all strings (line 1, column 6).
    cannot read the fields: standard input is not a JSON object whose values are all strings (line 1, column 9).
    cannot read the fields: standard input is not a JSON object whose values are all strings (line 1, column 15).
    cannot read the fields: the given sources hold no field. A secret has at least one field.
    cannot read the fields: the field "a" is given twice.
    cannot read the fields: "../../etc/passwd" is not a field name: use 1 to 253 of A-Z, a-z, 0-9, '.', '_' and '-', neither '.' nor beginning with '..'.
    cannot read the fields: "" is not a field name: use 1 to 253 of A-Z, a-z, 0-9, '.', '_' and '-', neither '.' nor beginning with '..'.
    cannot read the fields: line 2 of standard input does not have the form NAME=VALUE.
    cannot read the fields: line 1 of standard input does not have the form NAME=VALUE.
    cannot read the fields: line 1 of standard input does not have the form NAME=VALUE.
    cannot read the fields: line 1 of standard input does not have the form NAME=VALUE.
    cannot read the fields: the given sources hold no field. A secret has at least one field.
    "#);
}

#[test]
fn a_source_larger_than_any_secret_is_refused() {
    let text = vec![b'x'; SOURCE_LEN_MAX as usize + 1];
    let sources = Sources { from_file: vec![("a".into(), "-".into())], ..none() };
    insta::assert_snapshot!(
        refusal(read(&sources, &mut text.as_slice())),
        @"cannot read the fields: standard input is larger than 1 MiB."
    );
    let sources = Sources { from_file: vec![("a".into(), "/dev/zero".into())], ..none() };
    insta::assert_snapshot!(
        refusal(read(&sources, &mut io::empty())),
        @"cannot read the fields: /dev/zero is larger than 1 MiB."
    );
}

#[test]
fn standard_input_is_taken_once_and_a_missing_file_is_named() {
    let sources =
        Sources { from_file: vec![("a".into(), "-".into())], json: Some("-".into()), env_file: None };
    insta::assert_snapshot!(
        refusal(read(&sources, &mut Cursor::new("x"))),
        @"cannot read the fields: `-` is given twice. Standard input can be read once."
    );
    let sources = Sources { env_file: Some("/nowhere/env".into()), ..none() };
    insta::assert_snapshot!(
        refusal(read(&sources, &mut io::empty())),
        @"cannot read the fields: /nowhere/env cannot be read: No such file or directory."
    );
}

#[test]
fn a_value_is_read_without_growing_its_buffer() {
    let text = vec![b'x'; 100_000];
    let bytes = read_whole(text.as_slice(), 100_000).unwrap();
    assert_eq!((bytes.len(), bytes.capacity()), (100_000, 100_064));
}
