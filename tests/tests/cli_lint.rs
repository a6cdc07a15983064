//! `keyfold lint`: what it finds, in every form of output, and that it takes what the driver takes.

use std::{fs, path::Path};

use keyfold::lint::{Input, Settings, check};
use keyfold_tests::{Cli, Installation, parse_volume};
use proptest::prelude::*;
use serde_json::{Value, json};
use serde_sarif::sarif::Sarif;

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A shell without a server, in a folder that holds the fixtures.
fn shell() -> (Cli, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::offline(folder.path());
    for name in ["good.yaml", "broken.yaml", "objects.yaml"] {
        cli.write(name, fixture(&format!("lint/{name}")));
    }
    (cli, folder)
}

#[test]
fn people_get_a_line_a_finding_and_what_to_do() {
    let (cli, _folder) = shell();
    let ran = cli.run("lint good.yaml broken.yaml --roles objects.yaml");
    assert_eq!(ran.code, 2, "a document of broken.yaml is no YAML");
    insta::assert_snapshot!(ran.out, @r#"
    broken.yaml:15:15: warning KF018: container "api" mounts "secrets" with `subPath`: its files stay as they are at the container's start
        Mount the whole volume, and give items a `file`: then a new version reaches the container
    broken.yaml:19:13: error KF003: the volume is not read-only, so the driver refuses it
        Set `readOnly: true` beside `driver`
    broken.yaml:24:19: error KF023: app role payments-api does not allow to read payments/eu/db, only payments/*
        Correct the path or the role's name, or have the path granted to the role
    broken.yaml:27:19: warning KF023: app role payments-api does not allow to read stores/db, only payments/*
        Correct the path or the role's name, or have the path granted to the role
    broken.yaml:27:19: warning KF024: keyspace stores of stores/db does not exist
        Correct the path, or apply the keyspace before the pod
    broken.yaml:30:11: warning KF017: no container mounts the volume "spare"
        Add it to a container's `volumeMounts`, or remove it
    broken.yaml:34:13: warning KF005: nothing reads the Secret of `nodePublishSecretRef`: the pod's own token says who it is
        Leave `nodePublishSecretRef` out
    broken.yaml:36:15: error KF006: the volume attribute "roles" is unknown: there are `role` and `secrets`
        docs/volumes.md explains the attributes
    broken.yaml:38:19: error KF012: secrets[0]: path "Payments/db" has the segment "Payments": a segment is 1 to 128 of a-z, 0-9, '.', '_' and '-', beginning and ending with a letter or digit
        A path is lower-case segments such as payments/db
    broken.yaml:39:19: error KF015: secrets[0]: mode: "0888" is not "0000" to "0777", in octal digits
        Write it in quotes, such as mode: "0440"
    broken.yaml:40:38: error KF013: secrets[1]: file: "../x" cannot be used: no part of it may be '.' or begin with '..'
        Name a relative path, such as db/password
    broken.yaml:54:62: error KF022: no app role is named, and none binds service account default/default of issuer prod
        Have a role bind this namespace and service account
    broken.yaml:57:7: error KF001: not YAML: unclosed bracket '['
        Nothing of this document was checked: Kubernetes would refuse it too
    2 files, 4 Keyfold volumes: 8 errors, 5 warnings, 0 notes
    "#);
    assert_eq!(ran.err, "");
}

#[test]
fn the_example_app_has_nothing_wrong_with_it() {
    let (cli, _folder) = shell();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/example-app");
    let ran = cli.run(&format!("lint {0}/kubernetes.yaml --roles {0}/keyfold.yaml", folder.display()));
    assert_eq!(ran.code, 0, "{}", ran.err);
    insta::assert_snapshot!(ran.out, @"1 file, 1 Keyfold volume: 0 errors, 0 warnings, 0 notes");
}

#[test]
fn programs_get_json_and_yaml() {
    let (cli, _folder) = shell();
    let ran = cli.run_with(
        "lint - --offline -o json",
        fixture("lint/broken.yaml").split("---").nth(1).unwrap().as_bytes(),
    );
    assert_eq!(ran.code, 0, "{}", ran.out);
    insta::assert_snapshot!(ran.out, @r#"
    {
      "findings": [],
      "summary": {
        "files": 1,
        "volumes": 1,
        "errors": 0,
        "warnings": 0,
        "notes": 0,
        "left_out": 0
      }
    }
    "#);
    let of = |format: &str| cli.run(&format!("lint broken.yaml --offline -o {format}")).out;
    let json: Value = serde_json::from_str(&of("json")).unwrap();
    let yaml: Value = serde_saphyr::from_str(&of("yaml")).unwrap();
    assert_eq!(json, yaml);
    insta::assert_snapshot!(serde_json::to_string(&json["summary"]).unwrap(), @r#"{"errors":6,"files":1,"left_out":0,"notes":0,"volumes":3,"warnings":3}"#);
    insta::assert_snapshot!(serde_json::to_string_pretty(&json["findings"][0]).unwrap(), @r#"
    {
      "column": 15,
      "file": "broken.yaml",
      "help": "Mount the whole volume, and give items a `file`: then a new version reaches the container",
      "level": "warning",
      "line": 15,
      "message": "container \"api\" mounts \"secrets\" with `subPath`: its files stay as they are at the container's start",
      "name": "sub-path",
      "rule": "KF018"
    }
    "#);
}

#[test]
fn sarif_is_as_its_schema_wants_it() {
    let (cli, _folder) = shell();
    cli.write("päge 1.yaml", fixture("lint/broken.yaml"));
    let ran = cli
        .run_words(&["lint", "broken.yaml", "päge 1.yaml", "./none.yaml", "--offline", "-o", "sarif"], b"");
    assert_eq!(ran.code, 2);
    let log: Value = serde_json::from_str(&ran.out).unwrap();
    assert_valid(&log);
    let results = log["runs"][0]["results"].as_array().unwrap();
    let rules = log["runs"][0]["tool"]["driver"]["rules"].as_array().unwrap();
    for result in results {
        let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
        assert_eq!(rules[index]["id"], result["ruleId"]);
    }
    let uri = |result: &Value| result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].clone();
    let mut uris: Vec<_> = results.iter().map(uri).collect();
    uris.dedup();
    assert_eq!(uris, ["broken.yaml", "p%C3%A4ge%201.yaml", "none.yaml"]);
    insta::assert_snapshot!(serde_json::to_string_pretty(&results[0]).unwrap(), @r#"
    {
      "level": "warning",
      "locations": [
        {
          "physicalLocation": {
            "artifactLocation": {
              "uri": "broken.yaml"
            },
            "region": {
              "startColumn": 15,
              "startLine": 15
            }
          }
        }
      ],
      "message": {
        "text": "container \"api\" mounts \"secrets\" with `subPath`: its files stay as they are at the container's start. Mount the whole volume, and give items a `file`: then a new version reaches the container."
      },
      "ruleId": "KF018",
      "ruleIndex": 17
    }
    "#);
    insta::assert_snapshot!(serde_json::to_string_pretty(&rules[2]).unwrap(), @r#"
    {
      "defaultConfiguration": {
        "level": "error"
      },
      "id": "KF003",
      "name": "not-read-only",
      "shortDescription": {
        "text": "A Keyfold volume has `readOnly: true`"
      }
    }
    "#);

    let nothing = cli.ok("lint good.yaml --offline -o sarif");
    assert_valid(&serde_json::from_str(&nothing).unwrap());
    // The check can fail.
    let mut wrong = log.clone();
    wrong["runs"][0]["results"][0]["level"] = json!("fatal");
    assert!(validate(&wrong).is_err());
}

fn assert_valid(log: &Value) {
    validate(log).unwrap_or_else(|error| panic!("{error}"));
}

/// By types that are made from the schema. They pass over what they do not know, so that must come back, too.
fn validate(log: &Value) -> Result<(), String> {
    let typed: Sarif = serde_json::from_value(log.clone()).map_err(|error| error.to_string())?;
    let back = serde_json::to_value(&typed).map_err(|error| error.to_string())?;
    if back == *log { Ok(()) } else { Err(format!("the schema does not know all of it: {back}")) }
}

#[test]
fn exit_codes_tell_errors_from_warnings_and_from_files_that_cannot_be_read() {
    let (cli, _folder) = shell();
    let code = |arguments: &str| cli.run(arguments).code;
    assert_eq!(code("lint good.yaml --roles objects.yaml"), 0);
    assert_eq!(code("lint good.yaml --roles objects.yaml --issuer other"), 1);
    cli.write("warned.yaml", fixture("lint/good.yaml").replace("- {name: secrets,", "- {name: other,"));
    let warned = cli.run("lint warned.yaml --roles objects.yaml");
    assert_eq!(warned.code, 0);
    assert!(warned.out.contains(": warning KF017: "), "{}", warned.out);
    assert_eq!(code("lint none.yaml --offline"), 2);
    assert_eq!(code("lint . --offline"), 2);
    cli.write("latin1.yaml", b"a: \xe4");
    assert_eq!(code("lint latin1.yaml --offline"), 2);
    cli.write("large.yaml", vec![b'#'; 8 * 1024 * 1024 + 1]);
    assert_eq!(code("lint large.yaml --offline"), 2);
    assert_eq!(code("lint good.yaml"), 2, "no server is named");
    assert_eq!(code("lint good.yaml --offline --roles objects.yaml"), 2);
    assert_eq!(code("lint good.yaml --roles good.yaml"), 2, "no objects of Keyfold's");
    assert_eq!(code("lint"), 2);
    insta::assert_snapshot!(cli.fails("status -o sarif"), @"2 keyfold: cannot print the result: only `lint` has findings, which SARIF is for.");
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_are_checked_against_the_servers_roles() {
    let installation = Installation::with_payments().await;
    let cli = &installation.cli;
    cli.write("objects.yaml", fixture("lint/objects.yaml"));
    cli.write("good.yaml", fixture("lint/good.yaml"));
    let before = cli.run("lint good.yaml");
    assert_eq!(before.code, 1);
    insta::assert_snapshot!(before.out, @r#"
    good.yaml:25:15: error KF025: there is no issuer of a cluster, so no pod gets anything
        `keyfold get issuers` shows those that there are
    1 file, 1 Keyfold volume: 1 error, 0 warnings, 0 notes
    "#);
    cli.ok("apply -f objects.yaml");
    insta::assert_snapshot!(cli.ok("lint good.yaml"), @"1 file, 1 Keyfold volume: 0 errors, 0 warnings, 0 notes");
    cli.ok("delete role payments-api");
    let after = cli.run("lint good.yaml");
    assert_eq!(
        (after.code, after.out.contains("app role payments-api does not exist")),
        (1, true),
        "{}",
        after.out
    );
    assert_eq!(installation.nobody().run("lint good.yaml").code, 2);
}

/// Whether lint takes the volume, and whether the driver does.
fn taken(csi: &Value) -> (bool, bool) {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [], "volumes": [{"name": "v", "csi": csi}]},
    });
    let files = [Input { name: "pod.json".into(), text: Ok(pod.to_string()) }];
    let settings = Settings { namespace: "default".into(), issuer: None, rights: None };
    let report = check(&files, &settings);
    assert_eq!(report.summary.volumes, 1, "{csi}: {}", report.text());
    (report.summary.errors == 0, parse_volume(csi).is_ok())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lint_takes_what_the_driver_takes(
        secrets in "(- |\\{|\\}|path: |file: |mode: |format: |uid: |a/b|c/d|\\.\\./|: |, |\n|  |&a |'|0400|raw|env|~){0,24}",
        role in "[a-z-]{1,6}|\\PC{0,8}",
        key in "role|secrets|[a-z.]{1,8}|csi\\.storage\\.k8s\\.io/x",
        read_only in proptest::bool::weighted(0.9),
    ) {
        let csi = json!({
            "driver": "csi.keyfold.dev", "readOnly": read_only,
            "volumeAttributes": {key: role, "secrets": secrets},
        });
        let (by_lint, by_driver) = taken(&csi);
        prop_assert_eq!(by_lint, by_driver, "{}", csi);
    }

    #[test]
    fn and_of_items_that_are_nearly_right(
        items in proptest::collection::vec((
            "(a|b)/(x|y|Z)", proptest::option::of("(x|y)(/z)?|\\.\\."),
            proptest::option::of("raw|env|json|xml"), proptest::option::of("'0[0-8]{3}'"),
        ), 0..4),
    ) {
        let item = |(path, file, format, mode): &(String, Option<String>, Option<String>, Option<String>)| {
            let key = |name: &str, value: &Option<String>| {
                value.as_ref().map(|value| format!(", {name}: {value}")).unwrap_or_default()
            };
            format!("- {{path: {path}{}{}{}}}\n", key("file", file), key("format", format), key("mode", mode))
        };
        let secrets: String = items.iter().map(item).collect();
        let csi = json!({"driver": "csi.keyfold.dev", "readOnly": true, "volumeAttributes": {"secrets": secrets}});
        let (by_lint, by_driver) = taken(&csi);
        prop_assert_eq!(by_lint, by_driver, "{}", csi);
    }
}
