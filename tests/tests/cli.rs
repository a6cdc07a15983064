//! The real `keyfold` against a real server, as an operator uses it: what it prints, and the exit code it ends with.

use std::{fs, os::unix::fs::PermissionsExt as _};

use clap::CommandFactory as _;
use keyfold_tests::{Cli, Database, Installation, OBJECTS, masked, server_setup};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn init_works_once_and_only_with_the_bootstrap_token() {
    let installation = Installation::uninitialised().await;
    let cli = installation.nobody();
    let bootstrap = installation.setup().bootstrap_token_file();
    fs::copy(&bootstrap, cli.folder.join("bootstrap")).unwrap();
    cli.write("wrong", "not-the-token");
    cli.write("taken", "");

    let status = cli.run("status");
    assert_eq!(status.code, 6);
    insta::assert_snapshot!(status.out, @r"
    state    uninitialised
    message  run keyfold init
    ");
    insta::assert_snapshot!(cli.fails("init --bootstrap-token-file wrong --admin-token-out admin"), @"4 keyfold: cannot initialise the server: the bootstrap token was refused: present the content of the file that the server's bootstrap_token_file names.");
    insta::assert_snapshot!(cli.fails("init --bootstrap-token-file none --admin-token-out admin"), @"2 keyfold: cannot call the server: the token file none cannot be read: No such file or directory.");
    insta::assert_snapshot!(cli.fails("init --bootstrap-token-file bootstrap --admin-token-out taken"), @"2 keyfold: cannot initialise the server: the token file taken cannot be made: File exists. Nothing was changed; name a file that does not exist yet.");
    assert!(!cli.folder.join("admin").exists(), "a refused init leaves no token file behind");

    let made = cli.ok("init --bootstrap-token-file bootstrap --admin-token-out admin");
    insta::assert_snapshot!(masked(&made), @r"
    Initialised installation 00000000-0000-0000-0000-000000000000.
    The administrator's token is in admin.
    ");
    let mode = fs::metadata(cli.folder.join("admin")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    insta::assert_snapshot!(cli.fails("init --bootstrap-token-file bootstrap --admin-token-out second"), @"5 keyfold: cannot initialise the server: this installation is already initialised: its administrator's token was shown once, by the first init.");
    assert!(!cli.folder.join("second").exists());
    assert!(cli.ok("status --token-file admin").contains("installation"));
    insta::assert_snapshot!(cli.fails("status --token-file wrong"), @"4 keyfold: cannot read the server's status: the operator's token is missing, unknown or revoked: give a valid one with --token-file. Check that the token's file holds a valid token of this installation.");
}

#[tokio::test(flavor = "multi_thread")]
async fn init_prints_the_token_alone_on_standard_output() {
    let installation = Installation::uninitialised().await;
    let cli = installation.nobody();
    fs::copy(installation.setup().bootstrap_token_file(), cli.folder.join("bootstrap")).unwrap();
    let made = cli.run("init --bootstrap-token-file bootstrap");
    assert_eq!(made.code, 0, "{}", made.err);
    let token = made.out.strip_suffix('\n').unwrap();
    assert!(token.starts_with("kfa_") && token.len() == 47 && !made.err.contains(token));
    cli.write("admin", token);
    cli.ok("key list --token-file admin");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_the_state_to_anyone_and_details_to_operators() {
    let mut installation = Installation::new().await;
    insta::assert_snapshot!(installation.nobody().ok("status"), @"state  serving");
    let status = installation.cli.run("status");
    assert_eq!(status.code, 0);
    insta::assert_snapshot!(masked(&status.out.replace(&newest_migration(), "NEWEST")), @r"
    state          serving
    version        0.1.0
    schema         NEWEST
    installation   00000000-0000-0000-0000-000000000000
    root key       00000000000000000000000000000000
    audit entries  1
    ");
    insta::assert_snapshot!(status.err, @"keyfold: warning: the initial administrator is still active; revoke it once operators have roles");
    let json: Value = serde_json::from_str(&installation.cli.ok("status -o json")).unwrap();
    assert_eq!(
        (&json["state"], &json["details"]["initial_administrator_active"]),
        (&json!("serving"), &json!(true))
    );

    installation.server.stop();
    let url = installation.setup().url();
    insta::assert_snapshot!(installation.cli.fails("status").replace(&url, "URL"), @"6 keyfold: cannot read the server's status: Connection refused. Check --server and --ca-file, and that the server is running.");
    insta::assert_snapshot!(installation.cli.fails("secret list").replace(&url, "URL"), @"6 keyfold: cannot list secrets: Connection refused. Check --server and --ca-file, and that the server is running.");
}

/// Its number, which its file's name begins with.
fn newest_migration() -> String {
    let folder = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations")).unwrap();
    let name = folder.map(|file| file.unwrap().file_name().into_string().unwrap()).max().unwrap();
    name.split('_').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_twice_changes_nothing_and_one_bad_object_stops_all() {
    let installation = Installation::new().await;
    let cli = &installation.cli;
    cli.write("objects.yaml", OBJECTS);
    insta::assert_snapshot!(cli.ok("apply -f objects.yaml --dry-run"), @r"
    Keyspace payments created (dry run)
    AppRole payments-api created (dry run)
    ");
    assert_eq!(cli.run("diff -f objects.yaml").code, 1);
    insta::assert_snapshot!(cli.ok("apply -f objects.yaml"), @r"
    Keyspace payments created
    AppRole payments-api created
    ");
    insta::assert_snapshot!(cli.ok("apply -f objects.yaml"), @r"
    Keyspace payments unchanged
    AppRole payments-api unchanged
    ");
    assert_eq!(cli.ok("diff -f objects.yaml"), "");

    let shop = OBJECTS.replace("name: payments", "name: shop");
    cli.write("bad.yaml", shop.replace("payments/*, allow", "payments/**/x, allow"));
    insta::assert_snapshot!(cli.fails("apply -f bad.yaml"), @r#"7 keyfold: cannot apply the files: AppRole shop-api: spec.grants[0].path: pattern "payments/**/x" has ** before its end: ** stands for one or more segments at the end only."#);
    cli.write("typo.yaml", shop.replace("grants:", "grant:"));
    insta::assert_snapshot!(cli.fails("apply -f typo.yaml"), @"7 keyfold: cannot apply the files: AppRole shop-api: spec.grant: unknown field `grant`, expected one of `bind`, `grants`, `nodeBinding`, `verify`, `whenApiServerAway`, `condition`, `lease`.");
    cli.write("kind.yaml", shop.replace("kind: AppRole", "kind: AppRol"));
    insta::assert_snapshot!(cli.fails("apply -f kind.yaml"), @"2 keyfold: cannot use kind.yaml, document 2: kind: unknown variant `AppRol`, expected one of `Keyspace`, `Issuer`, `AppRole`, `OperatorRole`, `ApprovalRule`.");
    insta::assert_snapshot!(cli.fails("apply -f objects.yaml none.yaml"), @"2 keyfold: cannot read none.yaml: No such file or directory.");
    insta::assert_snapshot!(masked(&cli.ok("get keyspaces")), @r"
    NAME      GENERATION  UPDATED
    payments  1           2026-01-31T00:00:00Z
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn diff_shows_each_changed_field() {
    let installation = Installation::with_payments().await;
    let cli = &installation.cli;
    cli.write("changed.yaml", OBJECTS.replace("payments/*", "payments/**").replace("[api, worker]", "[api]"));
    let diff = cli.run("diff -f changed.yaml");
    assert_eq!(diff.code, 1);
    insta::assert_snapshot!(diff.out, @r#"
    --- AppRole/payments-api (generation 1)
    +++ AppRole/payments-api
    -spec.bind[0].serviceAccounts[1]: "worker"
    -spec.grants[0].path: "payments/*"
    +spec.grants[0].path: "payments/**"
    "#);
    cli.ok("apply -f changed.yaml");
    assert_eq!(cli.run("diff -f changed.yaml").code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_get_prints_is_what_apply_takes() {
    let installation = Installation::with_payments().await;
    let cli = &installation.cli;
    insta::assert_snapshot!(cli.ok("get role payments-api -o yaml"), @r"
    apiVersion: keyfold.dev/v1
    kind: AppRole
    metadata:
      name: payments-api
    spec:
      bind:
      - issuer: prod
        namespaces:
        - payments
        serviceAccounts:
        - api
        - worker
      grants:
      - allow:
        - read
        path: payments/*
      - allow:
        - read
        path: shared/{namespace}/**
      nodeBinding: required
    ");
    for kind in ["keyspaces", "roles"] {
        let yaml = cli.ok(&format!("get {kind} -o yaml"));
        let applied = cli.run_with("apply -f -", yaml.as_bytes());
        assert_eq!(applied.code, 0, "{}", applied.err);
        assert!(applied.out.lines().all(|line| line.ends_with(" unchanged")), "{}", applied.out);
        assert_eq!(cli.run_with("diff -f -", yaml.as_bytes()).code, 0);
    }
    let json: Value = serde_json::from_str(&cli.ok("get keyspace payments -o json")).unwrap();
    assert_eq!((&json["kind"], &json["status"]["generation"]), (&json!("Keyspace"), &json!(1)));
    assert_eq!(serde_json::from_str::<Value>(&cli.ok("get issuers -o json")).unwrap(), json!([]));
    insta::assert_snapshot!(cli.fails("get issuer none"), @"3 keyfold: cannot get Issuer none: there is no Issuer none.");
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_removes_an_object_but_no_keyspace_with_secrets() {
    let installation = Installation::with_payments().await;
    let cli = &installation.cli;
    cli.run_with("secret put payments/db --from-file password=-", b"x");
    insta::assert_snapshot!(cli.fails("delete keyspace payments"), @"5 keyfold: cannot delete Keyspace payments: keyspace payments holds secrets, or the version numbers of destroyed ones: it stays.");
    insta::assert_snapshot!(cli.ok("delete role payments-api"), @"AppRole payments-api deleted");
    insta::assert_snapshot!(cli.fails("delete role payments-api"), @"3 keyfold: cannot delete AppRole payments-api: there is no AppRole payments-api.");
    cli.write("empty.yaml", "apiVersion: keyfold.dev/v1\nkind: Keyspace\nmetadata: {name: empty}\n");
    cli.ok("apply -f empty.yaml");
    insta::assert_snapshot!(cli.ok("delete keyspace empty"), @"Keyspace empty deleted");
    assert_eq!(cli.run("delete issuer none").code, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_are_shown_for_people_and_as_documents() {
    let installation = Installation::with_payments().await;
    let cli = &installation.cli;
    insta::assert_snapshot!(cli.ok("role list"), @r"
    NAME          BINDS                     GRANTS
    payments-api  prod:payments/api,worker  payments/*(read) shared/{namespace}/**(read)
    ");
    assert_eq!(cli.ok("role show payments-api"), cli.ok("get role payments-api -o yaml"));
    insta::assert_snapshot!(cli.ok("role delete payments-api"), @"AppRole payments-api deleted");
    insta::assert_snapshot!(cli.fails("role show payments-api"), @"3 keyfold: cannot get AppRole payments-api: there is no AppRole payments-api.");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_listed_and_rotated() {
    let installation = Installation::with_payments().await;
    let cli = &installation.cli;
    cli.write("value", "x");
    for path in ["payments/a", "payments/a", "payments/b"] {
        cli.ok(&format!("secret put {path} --from-file password=value"));
    }
    insta::assert_snapshot!(cli.ok("key rotate payments"), @"payments: key version 1 -> 2, 3 data keys rewrapped");
    insta::assert_snapshot!(masked(&cli.ok("key list")), @r"
    KEYSPACE  PURPOSE      VERSION  STATE        DATA KEYS  CREATED               DEACTIVATED
    -         audit-sign   1        active       0          2026-01-31T00:00:00Z  -
    -         internal-ca  1        active       0          2026-01-31T00:00:00Z  -
    -         row-mac      1        active       0          2026-01-31T00:00:00Z  -
    payments  data         2        active       3          2026-01-31T00:00:00Z  -
    payments  data         1        deactivated  0          2026-01-31T00:00:00Z  2026-01-31T00:00:00Z
    ");
    insta::assert_snapshot!(masked(&cli.ok("key list payments")), @r"
    KEYSPACE  PURPOSE  VERSION  STATE        DATA KEYS  CREATED               DEACTIVATED
    payments  data     2        active       3          2026-01-31T00:00:00Z  -
    payments  data     1        deactivated  0          2026-01-31T00:00:00Z  2026-01-31T00:00:00Z
    ");
    assert_eq!(cli.ok("secret get payments/b --field password"), "x");
    let rotated: Value = serde_json::from_str(&cli.ok("key rotate payments -o json")).unwrap();
    assert_eq!(
        rotated,
        json!({"keyspace": "payments", "old_version": 2, "new_version": 3, "rewrapped_deks": 3})
    );
    for format in ["table", "json", "yaml"] {
        insta::allow_duplicates! {
            insta::assert_snapshot!(cli.fails(&format!("key list none -o {format}")), @"3 keyfold: cannot list keys: there is no keyspace none, or it has no key.");
        }
    }
    insta::assert_snapshot!(cli.fails("key rotate none"), @"3 keyfold: cannot rotate the key of keyspace none: there is no keyspace none.");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_log_is_listed_by_every_filter() {
    let installation = Installation::with_payments().await;
    let cli = &installation.cli;
    cli.write("value", "x");
    cli.ok("secret put payments/db --from-file password=value");
    cli.ok("secret put payments/tls --from-file password=value");
    cli.ok("secret get payments/db --field password");
    cli.run("secret get payments/none");
    cli.write("wrong", "kfa_wrong");
    cli.run("secret get payments/db --token-file wrong");

    insta::assert_snapshot!(masked(&cli.ok("audit list")), @r"
    INDEX  TIME                  OPERATION          ACTOR                  ON                                      OUTCOME
    6      2026-01-31T00:00:00Z  secret.get         unknown                payments/db                             refused: operator-token
    5      2026-01-31T00:00:00Z  secret.get         initial-administrator  payments/none                           refused: not-found
    4      2026-01-31T00:00:00Z  secret.get         initial-administrator  payments/db                             allowed
    3      2026-01-31T00:00:00Z  secret.put         initial-administrator  payments/tls                            allowed
    2      2026-01-31T00:00:00Z  secret.put         initial-administrator  payments/db                             allowed
    1      2026-01-31T00:00:00Z  config.apply       initial-administrator  Keyspace/payments AppRole/payments-api  allowed
    0      2026-01-31T00:00:00Z  system.initialize  initial-administrator                                          allowed
    ");
    let indexes = |arguments: &str| indexes(&cli.ok(&format!("audit list -o json {arguments}")));
    assert_eq!(indexes("--path payments/db"), [6, 4, 2]);
    assert_eq!(indexes("--operation secret.put"), [3, 2]);
    assert_eq!(indexes("--actor unknown"), [6]);
    assert_eq!(indexes("--outcome refused"), [6, 5]);
    assert_eq!(indexes("--outcome allowed --path payments/db --limit 1"), [4]);
    assert_eq!(indexes("--operation secret.get --outcome refused --actor initial-administrator"), [5]);
    assert_eq!(indexes("--path payments").len(), 0, "a path is exact");
    assert_eq!(indexes("--operation secret.put --since 1h").len(), 2);
    assert_eq!(indexes("--operation secret.put --until 1h").len(), 0);
    assert_eq!(
        indexes("--operation secret.put --since 2020-01-01T00:00:00Z --until 2100-01-01T00:00:00Z").len(),
        2
    );
    insta::assert_snapshot!(masked(&cli.ok("audit list --path payments/none --outcome refused")), @r"
    INDEX  TIME                  OPERATION   ACTOR                  ON             OUTCOME
    5      2026-01-31T00:00:00Z  secret.get  initial-administrator  payments/none  refused: not-found
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_json_line_of_the_log_holds_the_exact_bytes_that_were_hashed() {
    let installation = Installation::with_payments().await;
    let lines = installation.cli.ok("audit list -o json");
    assert_eq!(lines.lines().count(), 2);
    for line in lines.lines() {
        let value: Value = serde_json::from_str(line).unwrap();
        let (index, hash) = (value["index"].as_u64().unwrap(), value["leaf_hash"].as_str().unwrap());
        let entry = line.replacen(&format!(r#"{{"index":{index},"leaf_hash":"{hash}","#), "{", 1);
        let sql = format!(
            r"SELECT encode(sha256('\x00' || convert_to($entry${entry}$entry$, 'UTF8')), 'hex') = '{hash}'
              AND entry = convert_to($entry${entry}$entry$, 'UTF8') FROM audit_entries WHERE index = {index}"
        );
        assert_eq!(installation.database.sql(&sql), "t", "{line}");
    }
    let all = installation.cli.ok("audit list -o yaml");
    assert!(all.contains("name: config.apply") && all.contains("leaf_hash:"), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_list_comes_in_pages() {
    let installation = Installation::with_payments().await;
    let cli = &installation.cli;
    for n in 0..130 {
        assert_eq!(cli.run(&format!("secret get payments/none-{n}")).code, 3);
    }
    let all = cli.ok("audit list -o json --limit 1000");
    // The second page begins below the first, whatever was added meanwhile: its own first reading, for one.
    assert_eq!(indexes(&all), (0..132).rev().collect::<Vec<_>>());
    assert_eq!(cli.ok("audit list -o json --limit 105").lines().count(), 105);
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_no_one_message_could_hold_are_all_listed() {
    let installation = Installation::new().await;
    installation.database.sql(
        r#"WITH head AS (UPDATE audit_head SET size = size + 40 RETURNING size - 40 AS first),
           large AS (SELECT convert_to('{"operation":{"name":"large"},"pad":"' || repeat('x', 1048576) || '"}', 'UTF8') AS entry)
           INSERT INTO audit_entries (index, at, operation, actor, outcome, paths, entry, leaf_hash)
           SELECT first + n, now(), 'large', '', 'allowed', '{}', entry, sha256('\x00'::bytea || entry)
           FROM head, large, generate_series(0, 39) n"#,
    );
    let cli = &installation.cli;
    assert_eq!(indexes(&cli.ok("audit list -o json --operation large")), (1..41).rev().collect::<Vec<_>>());
    assert_eq!(
        indexes(&cli.ok("audit list -o json --operation large --limit 7")),
        (34..41).rev().collect::<Vec<_>>()
    );
    assert_eq!(cli.ok("audit list --operation large").lines().count(), 41);
}

/// Entries keep what a caller wrote, and whoever reads them sits at a terminal.
#[tokio::test(flavor = "multi_thread")]
async fn what_callers_wrote_cannot_steer_the_terminal_of_who_reads_it() {
    let installation = Installation::new().await;
    let cli = &installation.cli;
    // Those that are control characters are not kept any more; entries from before may hold them.
    let refused = cli.fails("key list no\u{202e}ne\u{9b}2J\u{1b}[2J\u{2066}x");
    assert_eq!(refused, "7 keyfold: cannot list keys: keyspace holds a control character.");
    installation.database.sql(
        r#"WITH head AS (UPDATE audit_head SET size = size + 1 RETURNING size - 1 AS index),
           old AS (SELECT convert_to('{"operation":{"name":"key.list","keyspace":"no\u202ene\u009b2J\u001b[2J\u2066x"}}', 'UTF8') AS entry)
           INSERT INTO audit_entries (index, at, operation, actor, outcome, paths, entry, leaf_hash)
           SELECT index, now(), 'key.list', '', 'refused', '{}', entry, sha256('\x00'::bytea || entry) FROM head, old"#,
    );
    let refused = cli.fails("key list no\u{202e}ne\u{2066}x");
    assert_eq!(refused, "3 keyfold: cannot list keys: there is no keyspace no ne x, or it has no key.");

    let table = cli.ok("audit list --operation key.list");
    assert!(table.contains("no ne 2J [2J x") && table.contains("no ne x"), "{table}");
    let json = cli.ok("audit list --operation key.list -o json");
    assert!(
        json.contains(r"no\u202ene\u009b2J\u001b[2J\u2066x") && json.contains(r"no\u202ene\u2066x"),
        "{json}"
    );
    let yaml = cli.ok("audit list --operation key.list -o yaml");
    assert!(yaml.contains(r"no\U0000202Ene\U0000009B2J\u001b[2J\U00002066x"), "{yaml}");
    assert!(yaml.contains(r"no\U0000202Ene\U00002066x"), "{yaml}");
    for text in [table, json, yaml] {
        assert!(text.chars().all(|character| matches!(character, '\n' | ' '..='~')), "{text:?}");
    }
}

/// Of the JSON lines that `audit list` prints.
fn indexes(lines: &str) -> Vec<u64> {
    let index = |line| serde_json::from_str::<Value>(line).unwrap()["index"].as_u64().unwrap();
    lines.lines().map(index).collect()
}

#[test]
fn help_version_and_completions_need_no_server() {
    let folder = tempfile::tempdir().unwrap();
    let (database, dir) = (Database::shared(), folder.path());
    let cli = Cli::nobody(&server_setup(dir, "server", &database), dir);
    assert_eq!(cli.ok("--version"), format!("keyfold {}\n", env!("CARGO_PKG_VERSION")));
    for (command, _) in commands() {
        let help = cli.ok(&format!("{command} --help"));
        assert!(help.contains("Usage: keyfold"), "{command}: {help}");
    }
    let codes = cli.ok("--help");
    for code in 0..=8 {
        assert!(codes.contains(&format!("\n  {code}  ")), "exit code {code} is not in the help");
    }
    for (shell, part) in
        [("bash", "complete -F"), ("zsh", "#compdef keyfold"), ("fish", "complete -c keyfold")]
    {
        assert!(cli.ok(&format!("completions {shell}")).contains(part), "{shell}");
    }
    assert_eq!(cli.run("completions ksh").code, 2);
    assert_eq!(cli.run("").code, 2);
    assert_eq!(cli.run("none").code, 2);
}

/// Arguments are seen by every user of the machine, so none may hold a value or a token.
#[test]
fn attack_14_no_argument_takes_a_value_or_a_token() {
    const HARMLESS: &[&str] = &[
        "A",
        "CMD",
        "COMMAND",
        "CUSTODY",
        "DIR",
        "FILE",
        "FORMAT",
        "G",
        "ID",
        "ISSUER",
        "KEYSPACE",
        "KIND",
        "M",
        "N",
        "N,N…",
        "NAME",
        "NAME=FILE",
        "NAMESPACE/POD",
        "OUTCOME",
        "P",
        "PATH",
        "PLACE",
        "PREFIX",
        "PUBLIC-KEY",
        "PURPOSE",
        "R",
        "S",
        "SHELL",
        "SUBJECT",
        "T",
        "TARGET",
        "TIME",
        "TTL",
        "URL",
        "VERSION",
        "GID",
        "ROLE",
    ];
    for (command, arguments) in commands() {
        for (argument, value) in arguments {
            assert!(HARMLESS.contains(&value.as_str()), "keyfold {command}: {argument} takes {value}");
        }
    }
}

/// Every command that does something, with its arguments that take a value and what each calls it.
fn commands() -> Vec<(String, Vec<(String, String)>)> {
    fn walk(command: &clap::Command, name: &str, found: &mut Vec<(String, Vec<(String, String)>)>) {
        for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
            walk(command, &format!("{name} {}", command.get_name()), found);
        }
        let takes_value = |argument: &&clap::Arg| argument.get_action().takes_values();
        let named = |argument: &clap::Arg| {
            let names = argument.get_value_names().unwrap_or_default();
            (argument.get_id().to_string(), names.iter().map(ToString::to_string).collect())
        };
        found
            .push((name.trim().to_owned(), command.get_arguments().filter(takes_value).map(named).collect()));
    }
    let mut found = Vec::new();
    let mut command = keyfold::args::Cli::command();
    command.build();
    walk(&command, "", &mut found);
    found
}
