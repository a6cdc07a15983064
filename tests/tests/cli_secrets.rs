//! `keyfold secret` against a real server: values in and out byte by byte, versions, and what is refused.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use keyfold_tests::{Installation, masked};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_written_from_files_and_standard_input() {
    let installation = Installation::with_payments().await;
    let cli = &installation.cli;
    let binary: Vec<u8> = (0..=255).chain([b'\n']).collect();
    cli.write("key.bin", &binary);
    cli.write("db.json", r#"{"username": "app", "password": "p\u00e4ss\n"}"#);
    cli.write("db.env", "# comment\nUSER=app\nURL=postgres://a=b\r\n\n");

    insta::assert_snapshot!(cli.ok("secret put payments/bin --from-file key=key.bin"), @"payments/bin: version 1 written");
    assert_eq!(cli.run("secret get payments/bin --field key").bytes, binary);
    cli.ok("secret put payments/db --json db.json");
    assert_eq!(cli.run("secret get payments/db --field password").bytes, "päss\n".as_bytes());
    cli.ok("secret put payments/env --env-file db.env --from-file key=key.bin");
    assert_eq!(cli.run("secret get payments/env --field URL").bytes, b"postgres://a=b");
    let piped = cli.run_with("secret put payments/pipe --from-file key=-", &binary);
    assert_eq!(piped.code, 0, "{}", piped.err);
    assert_eq!(cli.run("secret get payments/pipe --field key").bytes, binary);
    let json = cli.run_with("secret put payments/pipe --json - -o json", b"{\"a\": \"b\"}");
    assert_eq!(
        serde_json::from_str::<Value>(&json.out).unwrap(),
        json!({"path": "payments/pipe", "version": 2})
    );

    let table = cli.run("secret get payments/env");
    insta::assert_snapshot!(table.out, @r"
    payments/env version 1
    FIELD  BYTES
    URL    14
    USER   3
    key    257
    ");
    insta::assert_snapshot!(table.err, @"keyfold: values are left out here: see them with -o json, --field NAME or --out-dir DIR");
    let json: Value = serde_json::from_str(&cli.ok("secret get payments/env -o json")).unwrap();
    assert_eq!(json["fields"], json!({"USER": "app", "URL": "postgres://a=b"}));
    assert!(json["base64_fields"]["key"].as_str().unwrap().starts_with("AAECAwQF"));
    assert!(cli.ok("secret get payments/db -o yaml").contains("username: app"));
}

#[tokio::test(flavor = "multi_thread")]
async fn out_dir_gets_a_private_file_for_each_field_or_none() {
    let installation = Installation::with_payments().await;
    let cli = &installation.cli;
    cli.write("db.json", r#"{"password": "secret", "username": "app"}"#);
    cli.ok("secret put payments/db --json db.json");
    assert_eq!(cli.ok("secret get payments/db --out-dir db"), "");
    let files: PathBuf = cli.folder.join("db");
    assert_eq!(fs::read(files.join("password")).unwrap(), b"secret");
    assert_eq!((mode(&files), mode(&files.join("password"))), (0o700, 0o600));

    fs::remove_file(files.join("password")).unwrap();
    insta::assert_snapshot!(cli.fails("secret get payments/db --out-dir db"), @"2 keyfold: cannot read secret payments/db: db/username cannot be written: File exists. Name a folder that holds no files of the fields' names.");
    assert!(!files.join("password").exists(), "all files or none");
    assert_eq!(cli.run("secret get payments/db --out-dir db --field password").code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_and_set_lets_one_writer_win() {
    let installation = Installation::with_payments().await;
    let cli = &installation.cli;
    cli.write("one", "1");
    let put = "secret put payments/db --from-file password=one";
    cli.ok(&format!("{put} --expected-version 0"));
    insta::assert_snapshot!(cli.fails(&format!("{put} --expected-version 0")), @"5 keyfold: cannot write secret payments/db: the newest version of payments/db is 1, not 0: read it and try again.");
    cli.ok(&format!("{put} --expected-version 1"));
    assert_eq!(cli.run(&format!("{put} --expected-version 1")).code, 5);
    assert_eq!(cli.run(&format!("{put} --expected-version 9")).code, 5);
    cli.ok(&format!("{put} --expected-version 2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_listed_rolled_back_hidden_and_destroyed() {
    let installation = Installation::with_payments().await;
    let cli = &installation.cli;
    for value in ["one", "two", "three"] {
        cli.write("value", value);
        cli.ok("secret put payments/db --from-file password=value");
    }
    cli.ok("secret put payments/eu/db --from-file password=value");
    let password = |arguments: &str| cli.ok(&format!("secret get payments/db --field password {arguments}"));
    assert_eq!((password(""), password("--version 1")), ("three".into(), "one".into()));
    insta::assert_snapshot!(cli.ok("secret rollback payments/db --version 2"), @"payments/db: version 2 is current");
    assert_eq!(password(""), "two");
    insta::assert_snapshot!(cli.ok("secret delete payments/db"), @"payments/db: version 2 now deleted");
    insta::assert_snapshot!(cli.fails("secret get payments/db"), @"3 keyfold: cannot read secret payments/db: secret payments/db does not exist or has no live current version.");
    insta::assert_snapshot!(cli.ok("secret delete payments/db --versions 2,3"), @r"
    payments/db: version 3 now deleted
    payments/db: version 2 already deleted or destroyed
    ");
    insta::assert_snapshot!(cli.ok("secret undelete payments/db --versions 2"), @"payments/db: version 2 now live");
    insta::assert_snapshot!(cli.fails("secret destroy payments/db --versions 1"), @"2 keyfold: cannot destroy versions of secret payments/db: nobody can be asked, since standard input is not a terminal. Give --yes to go on without a question.");
    insta::assert_snapshot!(cli.ok("secret destroy payments/db --versions 1,3 --yes"), @"payments/db: versions 1, 3 now destroyed");
    insta::assert_snapshot!(cli.ok("secret destroy payments/db --versions 1 --yes"), @"payments/db: version 1 already destroyed");
    insta::assert_snapshot!(masked(&cli.ok("secret history payments/db")), @r"
    VERSION  STATE      LABELS    KEY VERSION  CREATED               BY
    3        destroyed  previous  -            2026-01-31T00:00:00Z  initial-administrator
    2        live       current   1            2026-01-31T00:00:00Z  initial-administrator
    1        destroyed            -            2026-01-31T00:00:00Z  initial-administrator
    ");
    insta::assert_snapshot!(masked(&cli.ok("secret list")), @r"
    PATH            CURRENT  NEWEST  UPDATED
    payments/db     2        3       2026-01-31T00:00:00Z
    payments/eu/db  1        1       2026-01-31T00:00:00Z
    ");
    insta::assert_snapshot!(masked(&cli.ok("secret list payments/eu")), @r"
    PATH            CURRENT  NEWEST  UPDATED
    payments/eu/db  1        1       2026-01-31T00:00:00Z
    ");
    insta::assert_snapshot!(cli.fails("secret get payments/db --version 1"), @"3 keyfold: cannot read secret payments/db: secret payments/db has no live version 1.");
    insta::assert_snapshot!(cli.fails("secret rollback payments/db --version 3"), @"3 keyfold: cannot roll secret payments/db back to version 3: secret payments/db has no live version 3.");
    insta::assert_snapshot!(cli.fails("secret history payments/none"), @"3 keyfold: cannot read the history of secret payments/none: there is no secret payments/none.");
    insta::assert_snapshot!(cli.fails("secret delete payments/db --versions 7"), @"3 keyfold: cannot delete versions of secret payments/db: secret payments/db has no version 7.");
    insta::assert_snapshot!(cli.fails("secret undelete payments/db --versions 2,0"), @"3 keyfold: cannot undelete versions of secret payments/db: secret payments/db has no version 0.");
    insta::assert_snapshot!(cli.ok("secret undelete payments/db --versions 1"), @"payments/db: version 1 already live, or destroyed");
    insta::assert_snapshot!(cli.ok("secret list none"), @"PATH  CURRENT  NEWEST  UPDATED");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_path_works_everywhere() {
    let installation = Installation::with_payments().await;
    let cli = &installation.cli;
    cli.write("value", "deep");
    let folder = format!("payments/{}", ["x".repeat(128).as_str(); 6].join("/"));
    let path = format!("{folder}/{}", "y".repeat(128));
    cli.ok(&format!("secret put {path} --from-file password=value"));
    assert_eq!(cli.ok(&format!("secret get {path} --field password")), "deep");
    assert!(cli.ok(&format!("secret list {folder}")).contains(&path));
    assert!(cli.ok(&format!("audit list --path {path} --operation secret.put")).contains(&path));
    assert_eq!(cli.run(&format!("secret get {path}/z")).code, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_input_is_refused_without_repeating_values() {
    let installation = Installation::with_payments().await;
    let cli = &installation.cli;
    cli.write("value", "planted-value");
    cli.write("bad.json", r#"{"password": {"planted-value": 1}}"#);
    cli.write("bad.env", "planted-value without an equals sign\n");
    for (arguments, code) in [
        ("secret put payments/db --from-file ../x=value", 2),
        ("secret put payments/db --from-file ..data=value", 2),
        ("secret put payments/db --from-file a=value --from-file a=value", 2),
        ("secret put payments/db --from-file a=none", 2),
        ("secret put payments/db --json bad.json", 2),
        ("secret put payments/db --json value", 2),
        ("secret put payments/db --env-file bad.env", 2),
        ("secret put payments/../db --from-file a=value", 7),
        ("secret put Payments/db --from-file a=value", 7),
        ("secret put payments --from-file a=value", 7),
        ("secret put none/db --from-file a=value", 3),
        ("secret list payments/", 7),
        ("secret get payments/db --token-file value", 4),
        ("secret get payments/db --token-file bad.json", 2),
        ("secret get payments/db --ca-file value", 2),
        ("secret get payments/db --server http://localhost", 2),
        ("key rotate none", 3),
    ] {
        let failed = cli.fails(arguments);
        assert!(failed.starts_with(&format!("{code} keyfold: ")), "{arguments}: {failed}");
        assert!(!failed.contains("planted-value"), "{arguments}: {failed}");
    }
    insta::assert_snapshot!(cli.fails("secret put payments/db --json bad.json"), @"2 keyfold: cannot read the fields: bad.json is not a JSON object whose values are all strings (line 1, column 13).");
    insta::assert_snapshot!(cli.fails("secret put payments/db --from-file ..data=value"), @r#"2 keyfold: cannot read the fields: "..data" is not a field name: use 1 to 253 of A-Z, a-z, 0-9, '.', '_' and '-', neither '.' nor beginning with '..'."#);
    insta::assert_snapshot!(cli.fails("secret put payments/../db --from-file a=value"), @r#"7 keyfold: cannot write secret payments/../db: path "payments/../db" has the segment "..": a segment is 1 to 128 of a-z, 0-9, '.', '_' and '-', beginning and ending with a letter or digit."#);
    insta::assert_snapshot!(cli.fails("secret put none/db --from-file a=value"), @"3 keyfold: cannot write secret none/db: there is no keyspace none: apply one first.");
    let url = installation.setup().url();
    insta::assert_snapshot!(installation.nobody().fails("secret list").replace(&url, "URL"), @"2 keyfold: not signed in to URL: run keyfold login, or give --token-file.");
    insta::assert_snapshot!(cli.fails("secret get payments/db --token-file value"), @"4 keyfold: cannot read secret payments/db: the operator's token is missing, unknown or revoked: give a valid one with --token-file. Check that the token's file holds a valid token of this installation.");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}
