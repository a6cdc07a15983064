//! What the documents say is what the code does, as far as a test can tell.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use clap::{CommandFactory as _, Parser as _, error::ErrorKind};
use keyfold::{args::Cli, exit::EXIT_CODES};
use keyfold_core::{
    audit::{AppliedObject, IssuedItem, Operation, leaf_hash},
    name::ObjectName,
    object::{Capability, Kind, Permission, Spec},
    path::SecretPath,
    rights::{OperatorRole, Rights},
    volume::Format,
};
use keyfold_csi::DRIVER_NAME;
use keyfold_tests::parse_volume;
use serde_json::{Value, json};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn text(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every document, by its path from the root.
fn documents() -> Vec<(String, String)> {
    let folder = |name: &str| {
        let entries = fs::read_dir(root().join(name)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|file| file.ends_with(".md")).map(|file| format!("{name}/{file}")).collect::<Vec<_>>()
    };
    let paths = ["README.md".to_owned()].into_iter().chain(folder("docs")).chain(folder("docs/adr"));
    paths.map(|path| (path.clone(), text(path))).collect()
}

/// The text between backticks on one line.
fn quoted(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

/// The first cells of all table rows, without backticks.
fn table_keys(document: &str) -> BTreeSet<String> {
    let cells = document.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    cells.map(|(key, _)| key.to_owned()).collect()
}

/// Content of the fenced blocks of a language.
fn blocks(document: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Option<(bool, String)> = None;
    for line in document.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(name)) => open = Some((name == language, String::new())),
            (Some(_), Some(_)) => {
                found.extend(open.take().filter(|(wanted, _)| *wanted).map(|(_, text)| text))
            }
            (Some((_, text)), None) => {
                text.push_str(line);
                text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block is not closed");
    found
}

/// The texts that the last function `name` of a source file maps its variants to.
fn strings_of(path: &str, name: &str) -> BTreeSet<String> {
    let source = text(path);
    let (_, body) = source.rsplit_once(&format!("fn {name}(")).unwrap_or_else(|| panic!("{path}: {name}"));
    let body = body.split_once("\n    }\n").unwrap().0;
    let of_line = |line: &str| Some(line.split_once("=> \"")?.1.split_once('"')?.0.to_owned());
    let found: BTreeSet<_> = body.lines().filter_map(of_line).collect();
    assert!(!found.is_empty(), "{path}: {name}");
    found
}

#[test]
fn every_refusal_code_is_explained_and_no_other() {
    let codes: BTreeSet<String> = [
        "core/src/refusal.rs",
        "core/src/token/refusal.rs",
        "core/src/condition/failure.rs",
        "server/src/error.rs",
    ]
    .iter()
    .flat_map(|path| strings_of(path, "code"))
    .collect();
    let document = text("docs/operating.md");
    let (_, chapter) = document.split_once("## Refusal codes").unwrap();
    assert_eq!(table_keys(chapter), codes);
}

/// One of each operation. The match makes a new one fail to compile here.
fn operations() -> Vec<Operation> {
    let (path, keyspace, kind, object) =
        (|| "a/b".to_owned(), || "a".to_owned(), || "AppRole".to_owned(), || "r".to_owned());
    let item = IssuedItem { path: path(), version: Some(1), rule: Some("a/*".into()) };
    let applied = AppliedObject { kind: kind(), name: object(), generation: Some(1) };
    let all = vec![
        Operation::SecretIssue { role: None, items: vec![item], lease_expires_at: Some(String::new()) },
        Operation::SecretPut { path: path(), version: None },
        Operation::SecretGet { path: path(), version: None },
        Operation::SecretList { prefix: String::new() },
        Operation::SecretHistory { path: path() },
        Operation::SecretRollback { path: path(), version: 1 },
        Operation::SecretDelete { path: path(), versions: vec![1] },
        Operation::SecretUndelete { path: path(), versions: vec![1] },
        Operation::SecretDestroy { path: path(), versions: vec![1] },
        Operation::ConfigApply { dry_run: false, objects: vec![applied] },
        Operation::ConfigGet { kind: kind(), object: object() },
        Operation::ConfigList { kind: kind() },
        Operation::ConfigDelete { kind: kind(), object: object() },
        Operation::KeyList { keyspace: keyspace() },
        Operation::KeyRewrap { keyspace: keyspace(), to_version: 2, deks: 1 },
        Operation::AuditList {},
        Operation::ApprovalList {},
        Operation::ApprovalGet { plan: Default::default() },
        Operation::ApprovalSign { plan: Default::default(), hash: None, operation: None },
        Operation::SystemInitialize {},
        Operation::SystemStatus {},
        Operation::SystemWhoami {},
        Operation::SystemRevokeInitialAdministrator {},
        Operation::SystemIntegrityFailure { what: String::new() },
        Operation::SystemAcceptOlderDatabase { audit_entries: 1, pinned_entries: 2 },
        Operation::PolicyExplain {
            issuer: "i".into(),
            pod: None,
            namespace: "n".into(),
            service_account: "s".into(),
            role: None,
            path: path(),
        },
    ];
    let all: Vec<_> = all.into_iter().chain(operations_on_keys()).chain(operations_on_roots()).collect();
    let names: BTreeSet<_> = all.iter().map(|operation| operation.name().to_owned()).collect();
    assert_eq!(names, strings_of("core/src/audit.rs", "name"), "an operation is missing above");
    all
}

fn operations_on_keys() -> Vec<Operation> {
    let (keyspace, purpose, text) = (|| "a".to_owned(), || "data".to_owned(), String::new);
    vec![
        Operation::KeyStatus { keyspace: keyspace() },
        Operation::KeyRotate {
            keyspace: keyspace(),
            purpose: Some(purpose()),
            from_version: None,
            to_version: None,
        },
        Operation::KeyCreate { keyspace: keyspace(), purpose: purpose(), version: 2, reason: text() },
        Operation::KeyActivate { keyspace: keyspace(), purpose: purpose(), version: 2, reason: text() },
        Operation::KeySkipRun {
            keyspace: keyspace(),
            purpose: purpose(),
            occurrence: text(),
            reason: text(),
        },
        Operation::KeySchedule { keyspace: keyspace() },
        Operation::KeyPause { keyspace: keyspace(), purpose: purpose() },
        Operation::KeyResume { keyspace: keyspace(), purpose: purpose() },
        Operation::KeyCompromise {
            keyspace: keyspace(),
            version: None,
            to_version: None,
            payloads: None,
            secrets: None,
        },
        Operation::KeyReencrypt { keyspace: keyspace(), version: 1, payloads: 1 },
        Operation::KeyListExposed { keyspace: keyspace() },
        Operation::KeyScheduleDestruction {
            keyspace: keyspace(),
            purpose: Some(purpose()),
            version: 1,
            destroy_at: None,
            reason: Some(text()),
        },
        Operation::KeyCancelDestruction { keyspace: keyspace(), purpose: Some(purpose()), version: 1 },
        Operation::KeyDestroy { keyspace: keyspace(), purpose: purpose(), version: 1, certificate: text() },
        Operation::KeyListCertificates { keyspace: keyspace() },
        Operation::KeyQuarantine { keyspace: keyspace(), version: 1, deks: 1 },
        Operation::KeyListQuarantine { keyspace: keyspace() },
        Operation::KeyRetryQuarantine { keyspace: keyspace(), released: None },
    ]
}

fn operations_on_roots() -> Vec<Operation> {
    vec![
        Operation::RootStatus {},
        Operation::RootUnseal { entered: None, threshold: None, unsealed: false },
        Operation::RootChange {
            from: None,
            to: "file".into(),
            replaces: Some("0b1c2d3e4f508192a3b4c5d6e7f80912".into()),
            rwk_version: None,
            keys: None,
        },
        Operation::RecoveryCreate { shares: 5, threshold: 3 },
        Operation::RecoveryDrill {
            installation: None,
            audit_entries: None,
            keys: None,
            secrets: None,
            failures: None,
        },
        Operation::CaIssueDriverCertificate { serial: None, expires_at: None },
        Operation::CaRotate { version: None },
        Operation::CaActivate { version: 2, reason: String::new() },
    ]
}

#[test]
fn every_operation_is_listed_with_all_its_fields() {
    let document = text("docs/audit.md");
    for operation in operations() {
        let row = document.lines().find(|line| line.starts_with(&format!("| `{}`", operation.name())));
        let row = row.unwrap_or_else(|| panic!("{} is not in docs/audit.md", operation.name()));
        for field in fields(&serde_json::to_value(&operation).unwrap()) {
            assert!(quoted(row).contains(&field.as_str()), "{}: {field}", operation.name());
        }
    }
}

/// Names of the fields, also of those in lists.
fn fields(operation: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for (name, value) in operation.as_object().unwrap().iter().filter(|(name, _)| *name != "name") {
        found.push(name.clone());
        for inner in value.as_array().into_iter().flatten().filter_map(Value::as_object) {
            found.extend(inner.keys().cloned());
        }
    }
    found
}

#[test]
fn the_example_entry_has_the_hash_that_is_given_for_it() {
    let document = text("docs/audit.md");
    let entry = blocks(&document, "json").remove(0);
    let hash: String =
        leaf_hash(entry.trim_end().as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(document.contains(&format!("{hash}  -")), "{hash}");
}

#[test]
fn every_command_and_exit_code_is_listed() {
    let document = text("docs/cli.md");
    let listed = table_keys(&document);
    let mut commands = BTreeSet::new();
    leaves(&Cli::command(), "keyfold", &mut commands);
    // `keyfold dev` does something without a command below it too.
    commands.insert("keyfold dev".to_owned());
    assert_eq!(
        listed.into_iter().filter(|key| key.starts_with("keyfold ")).collect::<BTreeSet<_>>(),
        commands
    );
    // A long meaning goes on in the next line, further right.
    for line in EXIT_CODES.replace("\n     ", " ").lines().skip(1) {
        let (code, meaning) = line.trim().split_once("  ").unwrap();
        assert!(document.contains(&format!("| {code} | {meaning} |")), "{line}");
    }
}

fn leaves(command: &clap::Command, name: &str, found: &mut BTreeSet<String>) {
    let below: Vec<_> = command.get_subcommands().filter(|below| below.get_name() != "help").collect();
    if below.is_empty() {
        found.insert(name.to_owned());
    }
    for command in below {
        leaves(command, &format!("{name} {}", command.get_name()), found);
    }
}

#[test]
fn every_command_line_in_the_documents_is_one_that_keyfold_takes() {
    let mut seen = 0;
    for (path, document) in documents() {
        for line in blocks(&document, "sh").concat().replace("\\\n", " ").lines() {
            for part in line.split(['|', ';', '&', '>', '#']).map(str::trim) {
                if !part.starts_with("keyfold ") {
                    continue;
                }
                seen += 1;
                if let Err(error) = Cli::try_parse_from(words(part)) {
                    let shown = [ErrorKind::DisplayHelp, ErrorKind::DisplayVersion].contains(&error.kind());
                    assert!(shown, "{path}: {part}: {error}");
                }
            }
        }
    }
    assert!(seen > 20, "only {seen} command lines found");
}

/// A shell's words, for lines without escapes.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), _) if open == c => quote = None,
            (None, ' ') => words.push(String::new()),
            _ => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn every_make_target_in_the_documents_exists() {
    let makefile = text("Makefile");
    for (path, document) in documents() {
        let inline = document.lines().flat_map(quoted).map(str::to_owned);
        for line in inline.chain(blocks(&document, "sh").concat().lines().map(str::to_owned)) {
            let Some(rest) = line.strip_prefix("make ") else { continue };
            let target = rest.split_whitespace().next().unwrap();
            assert!(makefile.contains(&format!("\n{target}:")), "{path}: make {target}");
        }
    }
}

#[test]
fn every_link_and_path_in_the_documents_leads_somewhere() {
    for (path, document) in documents() {
        let folder = Path::new(&path).parent().unwrap().to_owned();
        for link in document.split("](").skip(1).map(|rest| rest.split_once(')').unwrap().0) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { PathBuf::from(&path) } else { folder.join(file) };
            assert!(root().join(&target).exists(), "{path}: {link}");
            let has_anchor = anchor.is_empty() || anchors(&text(&target)).contains(anchor);
            assert!(has_anchor, "{path}: {link}");
        }
        for name in document.lines().flat_map(quoted).filter(|name| is_repository_path(name)) {
            assert!(root().join(name).exists(), "{path}: {name}");
        }
    }
}

fn is_repository_path(name: &str) -> bool {
    const FOLDERS: [&str; 10] = [
        "core/",
        "memory/",
        "proto/",
        "server/",
        "csi-driver/",
        "cli/",
        "migrations/",
        "deploy/",
        "tests/",
        "docs/",
    ];
    FOLDERS.iter().any(|folder| name.starts_with(folder)) && !name.contains(char::is_whitespace)
}

/// The anchors that a Markdown viewer makes of headings.
fn anchors(document: &str) -> BTreeSet<String> {
    let anchor = |heading: &str| -> String {
        let kept = heading.to_lowercase().replace(' ', "-");
        kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    };
    document
        .lines()
        .filter(|line| line.starts_with("##"))
        .map(|line| anchor(line.trim_start_matches('#').trim()))
        .collect()
}

#[test]
fn every_invariant_is_held_by_something_that_exists() {
    let document = text("docs/architecture.md");
    let invariants: Vec<_> = document.lines().filter(|line| line.starts_with("Invariant:")).collect();
    assert!(invariants.len() >= 15);
    for invariant in invariants {
        let (_, held_by) = invariant.split_once("Held by: ").unwrap_or_else(|| panic!("{invariant}"));
        let mut file = String::new();
        let mut held = 0;
        for name in quoted(held_by) {
            if root().join(name).is_file() {
                file = text(name);
            } else if !name.contains("::commit") {
                assert!(file.contains(name), "{invariant}: {name}");
                held += 1;
            }
        }
        assert!(held > 0, "{invariant}");
    }
}

#[test]
fn every_dependency_has_its_reason() {
    let document = text("docs/architecture.md");
    let (_, chapter) = document.split_once("## Dependencies").unwrap();
    let listed: BTreeSet<_> = chapter
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next())
        .flat_map(|cell| cell.split(", "))
        .collect();
    let manifest = text("Cargo.toml");
    let (_, dependencies) = manifest.split_once("[workspace.dependencies]").unwrap();
    for line in dependencies.split("\n[").next().unwrap().lines() {
        let Some((name, _)) = line.split_once(" = ") else { continue };
        assert!(name.starts_with('#') || name.starts_with("keyfold") || listed.contains(name), "{name}");
    }
}

#[test]
fn every_metric_is_explained_and_no_other() {
    let mut metrics = BTreeSet::new();
    for path in sources(&root().join("server/src")) {
        for rest in text(path).split("!(\"keyfold_").skip(1) {
            metrics.insert(format!("keyfold_{}", rest.split('"').next().unwrap()));
        }
    }
    let document = text("docs/operating.md");
    let (_, chapter) = document.split_once("\n## Metrics and logs\n").unwrap();
    let listed =
        table_keys(chapter).into_iter().filter(|key| key.starts_with("keyfold_")).collect::<BTreeSet<_>>();
    assert_eq!(listed, metrics);
}

/// Every source file below `folder`, without tests.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.file_name().unwrap().to_str().unwrap() {
            "tests" | "tests.rs" => {}
            _ if path.is_dir() => found.extend(sources(&path)),
            _ => found.push(path),
        }
    }
    found
}

#[test]
fn the_yaml_in_the_documents_is_accepted() {
    let (mut objects, mut volumes) = (0, 0);
    for (path, document) in documents() {
        for block in blocks(&document, "yaml") {
            let mut reader = block.as_bytes();
            for value in serde_saphyr::read::<_, Value>(&mut reader) {
                let value = value.unwrap_or_else(|error| panic!("{path}: {error}"));
                if value["kind"] == "PolicyTest" {
                    // Run by the_policy_tests_in_the_documents_pass.
                    continue;
                }
                if value["apiVersion"] == "keyfold.dev/v1" {
                    let kind = Kind::parse(value["kind"].as_str().unwrap()).unwrap();
                    Spec::parse(kind, &value["spec"].to_string())
                        .unwrap_or_else(|error| panic!("{path}: {error}"));
                    objects += 1;
                }
                for volume in value["spec"]["volumes"].as_array().into_iter().flatten() {
                    parse_volume(&volume["csi"]).unwrap_or_else(|error| panic!("{path}: {error}"));
                    volumes += 1;
                }
            }
        }
    }
    assert!(objects >= 2 && volumes >= 1, "{objects} {volumes}");
}

#[tokio::test]
async fn the_policy_tests_in_the_documents_pass() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("policies.yaml");
    fs::write(&file, blocks(&text("docs/policies.md"), "yaml").join("---\n")).unwrap();
    let call = Cli::try_parse_from(["keyfold", "policy", "test", file.to_str().unwrap()]).unwrap();
    let exit = keyfold::commands::run(call).await.unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(exit, keyfold::exit::Exit::Done);
}

/// The rows of the table whose header begins with `| first |`, as their cells without backticks.
fn table(document: &str, first: &str) -> Vec<Vec<String>> {
    let header = format!("| {first} |");
    let lines = document.lines().skip_while(|line| !line.starts_with(&header));
    let rows = lines.take_while(|line| line.starts_with('|')).filter(|line| !line.starts_with("| ---"));
    let cells = |line: &str| -> Vec<String> {
        let inner = line.trim_matches('|').split('|');
        inner.map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
    };
    rows.map(cells).collect()
}

/// What a built-in role gives to whom it binds.
fn rights_of(built_in: &str) -> Rights {
    let spec = json!({"builtIn": built_in, "bind": [{"issuer": "people", "claims": {"sub": ["alice"]}}]});
    let Ok(Spec::OperatorRole(spec)) = Spec::parse(Kind::OperatorRole, &spec.to_string()) else {
        panic!("{built_in} is not a built-in role");
    };
    let role = OperatorRole { name: ObjectName::try_from("own").unwrap(), spec };
    let claims = json!({"sub": "alice"});
    Rights::of(&ObjectName::try_from("people").unwrap(), claims.as_object().unwrap(), &[role])
}

#[test]
fn what_built_in_roles_may_is_as_the_tables_say() {
    let document = text("docs/identity.md");
    let anywhere = SecretPath::parse("any/secret").unwrap();
    let permissions = Permission::ALL.iter().map(|own| (own.as_str(), *own));
    let capabilities = Capability::ALL.map(|own| (own.as_str(), own));
    let permission = |name: &str| permissions.clone().find(|(own, _)| *own == name).map(|(_, own)| own);
    let capability = |name: &str| capabilities.into_iter().find(|(own, _)| *own == name).map(|(_, own)| own);
    let (of_permissions, of_capabilities) = (table(&document, "permission"), table(&document, "capability"));
    let roles = ["admin", "key-admin", "secret-admin", "auditor"];
    for (rows, count) in [(&of_permissions, Permission::ALL.len()), (&of_capabilities, Capability::ALL.len())]
    {
        assert_eq!(rows[0][1..5], roles);
        let names: BTreeSet<_> = rows[1..].iter().map(|row| &row[0]).collect();
        assert_eq!((rows.len() - 1, names.len()), (count, count), "{names:?}");
    }
    for row in of_permissions[1..].iter().chain(&of_capabilities[1..]) {
        for (role, cell) in roles.into_iter().zip(&row[1..5]) {
            let rights = rights_of(role);
            let may = match (permission(&row[0]), capability(&row[0])) {
                (Some(permission), None) => rights.may(permission),
                (None, Some(capability)) => rights.may_on(capability, &anywhere),
                _ => panic!("{} is neither a permission nor a capability", row[0]),
            };
            assert_eq!(cell, if may { "yes" } else { "–" }, "{role}: {}", row[0]);
        }
    }
}

#[test]
fn every_field_of_a_role_and_an_issuer_is_explained() {
    let document = text("docs/identity.md");
    let explained: BTreeSet<String> = document
        .lines()
        .filter(|line| line.starts_with("| `"))
        .flat_map(|line| quoted(line.split(" | ").next().unwrap()))
        .map(|field| field.trim_start_matches("bind[].").to_owned())
        .collect();
    let labels = json!({"matchLabels": {"a": "b"}});
    let issuer = json!({
        "type": "kubernetes", "url": "https://a", "audiences": ["a"], "algorithms": ["RS256"], "keys": {"file": "a"},
        "drivers": [], "apiServer": "inCluster", "verify": "tokenReview", "maxTokenLifetime": "1h", "leeway": "1s",
    });
    let binding = json!({
        "issuer": "a", "namespaces": ["a"], "serviceAccounts": ["a"], "serviceAccountUid": "a",
        "podSelector": labels, "nodeSelector": labels,
    });
    let role = json!({
        "bind": [binding], "grants": [], "nodeBinding": "required", "verify": "local", "whenApiServerAway": "local",
        "condition": {"rego": ""}, "lease": {"ttl": "1h", "max": "2h"},
    });
    let operator_role = json!({
        "bind": [{"issuer": "a", "claims": {"sub": ["a"]}}], "allow": ["keys:read"],
        "grants": [{"path": "a/b", "allow": ["read"]}],
    });
    for (kind, spec) in [(Kind::Issuer, issuer), (Kind::AppRole, role), (Kind::OperatorRole, operator_role)] {
        let spec = Spec::parse(kind, &spec.to_string()).unwrap_or_else(|error| panic!("{error}"));
        let spec: Value = serde_json::from_str(&spec.to_json()).unwrap();
        let of_bindings = spec["bind"].as_array().into_iter().flatten().filter_map(Value::as_object);
        for fields in of_bindings.chain(spec.as_object()) {
            for field in fields.keys().filter(|field| *field != "claims") {
                assert!(explained.contains(field), "{}: {field}", kind.as_str());
            }
        }
    }
    for algorithm in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"] {
        assert!(document.contains(&format!("`{algorithm}`")), "{algorithm}");
    }
}

#[test]
fn every_attribute_and_format_of_a_volume_is_explained() {
    let listed = table_keys(&text("docs/volumes.md"));
    for format in Format::ALL {
        assert!(listed.contains(format.name()), "{}", format.name());
    }
    let secrets = "- {path: a/b, format: raw, file: f, mode: '0400', uid: 1, gid: 1, optional: true}";
    let csi = serde_json::json!({
        "driver": DRIVER_NAME, "readOnly": true, "volumeAttributes": {"role": "r", "secrets": secrets},
    });
    parse_volume(&csi).expect("these are attributes");
    for name in ["role", "secrets", "path", "format", "file", "mode", "uid", "gid", "optional"] {
        assert!(listed.contains(name), "{name}");
    }
}

#[test]
fn every_decision_has_context_decision_and_consequence() {
    let decisions: Vec<_> =
        documents().into_iter().filter(|(path, _)| path.starts_with("docs/adr/")).collect();
    assert!(!decisions.is_empty());
    for (path, document) in decisions {
        let headings: Vec<_> = document.lines().filter(|line| line.starts_with("## ")).collect();
        assert_eq!(headings, ["## Context", "## Decision", "## Consequence"], "{path}");
        let number = path.trim_start_matches("docs/adr/").split('-').next().unwrap().to_owned();
        assert!(document.starts_with(&format!("# {number} ")), "{path}");
    }
}

#[test]
fn what_is_not_there_yet_is_said_in_one_place_of_a_document() {
    for path in ["README.md", "docs/architecture.md", "docs/operating.md", "docs/threat-model.md"] {
        assert_eq!(text(path).matches("\n## Not yet\n").count(), 1, "{path}");
    }
}
