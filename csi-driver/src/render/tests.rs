use std::{fs, process::Command};

use proptest::prelude::*;

use super::*;
use crate::volume::tests::volume_of;

const BYTES_MAX: u64 = 16 * 1024 * 1024;

fn issued(path: &str, fields: &[(&str, &[u8])]) -> IssuedSecret {
    let field = |(name, value): &(&str, &[u8])| Field { name: (*name).into(), value: value.to_vec() };
    IssuedSecret { path: path.into(), version: 1, fields: fields.iter().map(field).collect() }
}

fn shown(files: &FileSet) -> Vec<(String, String)> {
    let text = |file: &File| String::from_utf8_lossy(file.content.expose()).into_owned();
    files.iter().map(|(path, file)| (path.to_string(), text(file))).collect()
}

fn pair(path: &str, content: &str) -> (String, String) {
    (path.to_owned(), content.to_owned())
}

fn refusal(yaml: &str, issued: &[IssuedSecret]) -> String {
    match render(&volume_of(yaml), issued, BYTES_MAX) {
        Ok(files) => panic!("rendered {:?}", shown(&files)),
        Err(error) => error.to_string(),
    }
}

#[test]
fn raw_writes_one_file_a_field_below_the_last_segment_or_the_given_folder() {
    let volume = volume_of("- path: payments/db\n- path: payments/eu/tls\n  file: certs/eu");
    let secrets = [
        issued("payments/db", &[("username", b"app"), ("password", b"\x00\xff")]),
        issued("payments/eu/tls", &[("tls.crt", b"PEM")]),
    ];
    let files = render(&volume, &secrets, BYTES_MAX).unwrap();
    assert_eq!(
        shown(&files),
        [pair("certs/eu/tls.crt", "PEM"), pair("db/password", "\0\u{fffd}"), pair("db/username", "app")]
    );
}

#[test]
fn files_take_mode_and_owner_of_the_item_else_the_volumes_group() {
    let mut volume = volume_of("- path: a/b\n- {path: a/c, mode: '0400', uid: 7, gid: 8}");
    volume.group = Some(2000);
    let files =
        render(&volume, &[issued("a/b", &[("x", b"1")]), issued("a/c", &[("x", b"1")])], BYTES_MAX).unwrap();
    let rights: Vec<_> = files.iter().map(|(_, file)| (file.mode, file.uid, file.gid)).collect();
    assert_eq!(rights, [(0o440, None, Some(2000)), (0o400, Some(7), Some(8))]);
}

#[test]
fn an_optional_item_that_was_not_issued_is_left_out() {
    let volume = volume_of("- path: a/b\n- {path: a/c, optional: true}");
    let files = render(&volume, &[issued("a/b", &[("x", b"1")])], BYTES_MAX).unwrap();
    assert_eq!(shown(&files), [pair("b/x", "1")]);
    assert_eq!(refusal("- path: a/b", &[]), "secrets[0] (a/b): the server did not issue it");
}

#[test]
fn attack_24_a_field_that_could_leave_the_mount_is_refused_by_name() {
    let long = "n".repeat(300);
    for name in ["../../etc/passwd", "..data", "", ".", "/etc/passwd", "a/b", "a\0b", long.as_str()] {
        let error = refusal("- path: a/b", &[issued("a/b", &[(name, b"planted-value")])]);
        assert!(error.starts_with("secrets[0] (a/b): field \""), "{error}");
        assert!(error.contains("cannot be a file's name"), "{error}");
        assert!(!error.contains("planted-value"), "{error}");
    }
}

#[test]
fn every_failing_item_is_named_at_once() {
    let error = refusal(
        "- path: a/b\n- {path: a/c, format: json}\n- {path: a/d, format: env}",
        &[
            issued("a/b", &[("..data", b"1"), ("../x", b"1")]),
            issued("a/c", &[("bin", b"\xff")]),
            issued("a/d", &[("0a", b"1")]),
        ],
    );
    for part in [
        "secrets[0] (a/b)",
        "\"..data\"",
        "\"../x\"",
        "secrets[1] (a/c)",
        "\"bin\"",
        "secrets[2] (a/d)",
        "\"0a\"",
    ] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
}

#[test]
fn fields_of_two_items_that_meet_in_one_file_are_refused() {
    let yaml = "- path: a/b\n- {path: a/c, format: json, file: b/x}";
    let secrets = [issued("a/b", &[("x", b"1")]), issued("a/c", &[("k", b"1")])];
    assert_eq!(
        refusal(yaml, &secrets),
        "secrets[1] (a/c): its file \"b/x\" and \"b/x\" are in each other's way"
    );
}

#[test]
fn json_is_an_object_of_strings_in_the_order_of_names() {
    let volume = volume_of("- {path: payments/db, format: json}");
    let secret = issued("payments/db", &[("user", "a\"\\\n\u{1}ü".as_bytes()), ("pass", b"")]);
    let files = render(&volume, &[secret], BYTES_MAX).unwrap();
    assert_eq!(shown(&files), [pair("db.json", "{\"pass\":\"\",\"user\":\"a\\\"\\\\\\n\\u0001ü\"}\n")]);
}

#[test]
fn env_names_are_upper_case_and_quotes_are_the_plainest_possible() {
    let volume = volume_of("- {path: payments/db, format: env}");
    let secret = issued(
        "payments/db",
        &[("db-user", b"app"), ("cost", b"5$"), ("both", b"it's 5$"), ("empty", b""), ("tls.key", b"a\nb")],
    );
    let files = render(&volume, &[secret], BYTES_MAX).unwrap();
    let lines = "BOTH=\"it's 5\\$\"\nCOST='5$'\nDB_USER=\"app\"\nEMPTY=\"\"\nTLS_KEY=\"a\nb\"\n";
    assert_eq!(shown(&files), [pair("db.env", lines)]);
}

#[test]
fn env_refuses_what_no_variable_can_hold() {
    let of = |fields: &[(&str, &[u8])]| refusal("- {path: a/b, format: env}", &[issued("a/b", fields)]);
    assert!(
        of(&[("a-b", b"1"), ("a.b", b"2")])
            .contains("fields \"a-b\" and \"a.b\" would both be the variable \"A_B\"")
    );
    assert!(of(&[("1st", b"1")]).contains("begins with a digit"));
    assert!(of(&[("", b"1")]).contains("empty"));
    assert!(of(&[("nul", b"a\0b")]).contains("holds NUL"));
    assert!(of(&[("bin", b"\xff\xfe")]).contains("not UTF-8"));
}

#[test]
fn the_room_reserved_for_a_file_is_never_outgrown() {
    // Growing would leave a copy of the values behind in freed memory.
    let nasty: String = "\u{1}\"\\$`'\n".repeat(500);
    let fields = [Field { name: "k".into(), value: nasty.into_bytes() }];
    let json = json::render(&fields).unwrap().into_vec();
    let env = env::render(&fields).unwrap().into_vec();
    for content in [json, env] {
        assert!(content.len() > 3500);
        assert_eq!(content.capacity(), content.len(), "nor is there room that nobody counts");
    }
}

/// A volume of 64 items, all of one secret and each with a file of its own.
fn volume_of_one_secret(format: &str) -> Volume {
    let item = |n: usize| format!("- {{path: a/b, file: f{n:02}, format: {format}}}\n");
    volume_of(&(0..64).map(item).collect::<String>())
}

#[test]
fn attack_16_one_secret_in_many_items_stops_at_the_size_of_the_volume() {
    // Six bytes of JSON for each of these.
    let secret = [issued("a/b", &[("k", &[1; 512 * 1024])])];
    for format in ["raw", "env", "json"] {
        let volume = volume_of_one_secret(format);
        assert_eq!(render(&volume, &secret, BYTES_MAX).err(), Some(RenderError::TooLarge), "{format}");
    }
    let small = [issued("a/b", &[("k", &[b'x'; 1000])])];
    let volume = volume_of_one_secret("raw");
    assert_eq!(render(&volume, &small, 64_000).unwrap().bytes(), 64_000);
    assert_eq!(render(&volume, &small, 63_999).err(), Some(RenderError::TooLarge));
}

#[test]
fn attack_16_a_volume_has_at_most_1024_files() {
    let names: Vec<String> = (0..17).map(|n| format!("k{n}")).collect();
    let fields: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"1"[..])).collect();
    let volume = volume_of_one_secret("raw");
    assert_eq!(render(&volume, &[issued("a/b", &fields[..16])], BYTES_MAX).unwrap().len(), 1024);
    let error = render(&volume, &[issued("a/b", &fields)], BYTES_MAX).err().unwrap();
    assert_eq!(error, RenderError::TooManyFiles);
    assert!(error.to_string().contains("more than 1024 files"), "{error}");
}

#[test]
fn an_item_with_many_mistakes_does_not_hide_the_next_one() {
    let names: Vec<String> = (0..128).map(|n| format!("{n}-field")).collect();
    let fields: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"1"[..])).collect();
    let error = refusal(
        "- {path: a/b, format: env}\n- {path: a/c, format: env}",
        &[issued("a/b", &fields), issued("a/c", &fields)],
    );
    assert!(error.contains("secrets[1] (a/c): field \"0-field\"") && error.len() < 1100, "{error}");
}

/// The value as `sh` reads it from the rendered file.
fn through_a_shell(value: &str) -> String {
    let content = env::render(&[Field { name: "v".into(), value: value.as_bytes().to_vec() }]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f.env");
    fs::write(&file, content.expose()).unwrap();
    let script = ". \"$0\"; printf '%s.' \"$V\"";
    let output = Command::new("sh").args(["-c", script]).arg(&file).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.strip_suffix('.').unwrap().to_owned()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_shell_reads_the_exact_bytes_from_env(value in "[\"\\\\`$'!#= \\n\\ta-zü(){}*-]{0,24}") {
        prop_assert_eq!(through_a_shell(&value), value);
    }

    #[test]
    fn json_holds_the_exact_text(value in "\\PC{0,40}|[\\x00-\\x1f]{0,10}") {
        let fields = [Field { name: "k".into(), value: value.clone().into_bytes() }];
        let json = json::render(&fields).unwrap();
        let parsed: serde_json::Value = serde_json::from_slice(json.expose()).unwrap();
        prop_assert_eq!(parsed["k"].as_str(), Some(value.as_str()));
    }

    #[test]
    fn attack_24_rendering_never_panics_and_never_leaves_the_folder(name in "\\PC{0,20}|[./\\x00]{0,8}", value in proptest::collection::vec(any::<u8>(), 0..32)) {
        for format in ["raw", "env", "json"] {
            let volume = volume_of(&format!("- {{path: a/b, format: {format}, file: f}}"));
            if let Ok(files) = render(&volume, &[issued("a/b", &[(&name, &value)])], BYTES_MAX) {
                prop_assert!(files.iter().all(|(path, _)| path.top() == "f"));
            }
        }
    }
}
