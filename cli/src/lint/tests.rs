use std::collections::BTreeSet;

use keyfold_proto::keyfold::v1::Object;

use super::*;

/// Nothing is wrong with it.
const GOOD: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: api, namespace: payments}
spec:
  template:
    metadata: {labels: {app: api, tier: web}}
    spec:
      serviceAccountName: api
      containers:
        - name: api
          volumeMounts:
            - {name: secrets, mountPath: /secrets}
      volumes:
        - name: secrets
          csi:
            driver: csi.keyfold.dev
            readOnly: true
            volumeAttributes:
              role: payments-api
              secrets: |
                - path: payments/db
                - path: shared/payments/tls
                  file: tls
                  mode: '0400'
";

fn object(kind: &str, name: &str, spec_json: &str) -> Object {
    Object { kind: kind.into(), name: name.into(), spec_json: spec_json.into(), ..Default::default() }
}

fn role(name: &str, bind: &str, more: &str) -> Object {
    let grants =
        r#"[{"path":"payments/*","allow":["read"]},{"path":"shared/{namespace}/**","allow":["read"]}]"#;
    object("AppRole", name, &format!(r#"{{"bind":[{bind}],"grants":{grants}{more}}}"#))
}

const API: &str = r#"{"issuer":"prod","namespaces":["payments"],"serviceAccounts":["api"]}"#;

fn bind(account: &str, more: &str) -> String {
    format!(r#"{{"issuer":"prod","namespaces":["payments"],"serviceAccounts":["{account}"]{more}}}"#)
}

fn issuer(name: &str) -> Object {
    let spec = r#"{"type":"kubernetes","url":"https://k8s.example","audiences":["keyfold"],"keys":{"discovery":{}}}"#;
    object("Issuer", name, spec)
}

/// What the good manifest needs, and roles that it does not.
fn objects() -> Vec<Object> {
    vec![
        object("Keyspace", "payments", "{}"),
        object("Keyspace", "shared", "{}"),
        issuer("prod"),
        role("payments-api", API, ""),
        role("batch", &bind("batch", ""), ""),
        role("twins", &bind("twins", ""), ""),
        role("twins-too", &bind("twins", ""), ""),
        role("web", &bind("labelled", r#","podSelector":{"matchLabels":{"tier":"web"}}"#), ""),
        role(
            "pinned",
            &bind("pinned", r#","serviceAccountUid":"1b2c","nodeSelector":{"matchLabels":{"pool":"a"}}"#),
            "",
        ),
    ]
}

fn settings(rights: Option<Vec<Object>>) -> Settings {
    let rights = rights.map(|objects| Rights::of_files(&objects).unwrap());
    Settings { namespace: "default".into(), issuer: None, rights }
}

fn run(text: &str, settings: &Settings) -> Report {
    check(&[Input { name: "pod.yaml".into(), text: Ok(text.into()) }], settings)
}

/// `KF001 3:7` of each finding.
fn places(report: &Report) -> Vec<String> {
    let place = |finding: &Finding| format!("{} {}:{}", finding.rule.id, finding.at.line, finding.at.column);
    report.findings.iter().map(place).collect()
}

fn found(text: &str, objects: Vec<Object>) -> Vec<String> {
    places(&run(text, &settings(Some(objects))))
}

fn message(text: &str, settings: &Settings) -> String {
    let report = run(text, settings);
    assert_eq!(report.findings.len(), 1, "{report:?}");
    format!("{}. {}.", report.findings[0].message, report.findings[0].help)
}

/// The good manifest with one part replaced.
fn with(part: &str, by: &str) -> String {
    assert_eq!(GOOD.matches(part).count(), 1, "{part}");
    GOOD.replace(part, by)
}

/// The attribute as a whole.
const SECRETS: &str = "              secrets: |
                - path: payments/db
                - path: shared/payments/tls
                  file: tls
                  mode: '0400'
";

/// Each rule with what breaks it and where that is found: a part of the good manifest, and what replaces it.
const BROKEN: &[(&str, &str, &str)] = &[
    ("KF001 6:13", "spec:\n  template:", "spec: [\n  template:"),
    (
        "KF002 18:13",
        "volumeAttributes:\n              role: payments-api\n",
        "volumeAttributes: text\n            other:\n",
    ),
    ("KF002 19:15", "role: payments-api", "role: 1e3"),
    ("KF002 20:15", "secrets: |", "secrets:"),
    ("KF003 17:13", "readOnly: true", "readOnly: false"),
    ("KF003 16:13", "            readOnly: true\n", ""),
    ("KF004 17:13", "readOnly: true", "fsType: ext4\n            readOnly: true"),
    ("KF005 17:13", "readOnly: true", "nodePublishSecretRef: {name: x}\n            readOnly: true"),
    ("KF006 19:15", "role: payments-api", "rolle: payments-api\n              role: payments-api"),
    (
        "KF007 19:15",
        "role: payments-api",
        "csi.storage.k8s.io/serviceAccount.tokens: x\n              role: payments-api",
    ),
    ("KF008 19:15", "payments-api", "Payments API"),
    ("KF009 18:13", SECRETS, ""),
    ("KF010 22:19", "- path: shared/payments/tls", "- [path: shared/payments/tls"),
    ("KF010 20:15", SECRETS, "              secrets: 'path: payments/db'\n"),
    ("KF011 23:19", "file: tls", "fle: tls"),
    ("KF011 21:19", "path: payments/db", "file: db"),
    ("KF011 24:19", "mode: '0400'", "uid: root"),
    ("KF012 21:19", "payments/db", "payments"),
    ("KF013 23:19", "file: tls", "file: ../tls"),
    ("KF014 23:19", "file: tls", "format: pkcs12"),
    ("KF015 24:19", "'0400'", "'0800'"),
    ("KF016 23:19", "file: tls", "file: db"),
    (
        "KF016 22:38",
        "path: payments/db\n                - path: shared/payments/tls\n                  file: tls\n                  mode: '0400'\n",
        "{path: payments/db, file: tls/x}\n                - {path: payments/x, file: tls, format: env}\n",
    ),
    ("KF017 14:11", "- {name: secrets,", "- {name: other,"),
    ("KF018 12:46", "mountPath: /secrets", "mountPath: /a, subPath: db"),
    ("KF019 19:15", "payments-api", "payments-apis"),
    ("KF020 19:15", "payments-api", "batch"),
    (
        "KF021 19:15",
        "tier: web}}\n    spec:\n      serviceAccountName: api",
        "tier: db}}\n    spec:\n      serviceAccountName: labelled",
    ),
    ("KF022 18:13", "              role: payments-api\n", "              # |\n"),
    ("KF023 21:19", "payments/db", "payments/eu/db"),
    ("KF024 21:19", "payments/db", "stores/db"),
    ("KF026 19:15", "payments-api", "pinned"),
];

#[test]
fn a_good_manifest_breaks_no_rule() {
    assert_eq!(found(GOOD, objects()), Vec::<String>::new());
    let report = run(GOOD, &settings(None));
    assert_eq!(
        (report.findings.len(), report.summary.volumes, report.exit()),
        (0, 1, crate::exit::Exit::Done)
    );
}

#[test]
fn each_rule_is_found_where_it_is_broken() {
    let mut wrong = Vec::new();
    for (expected, part, by) in BROKEN {
        let mut text = with(part, by);
        // Which other account a case is about.
        if *expected == "KF021 19:15" {
            text = text.replace("payments-api", "web");
        }
        if *expected == "KF026 19:15" {
            text = text.replace("serviceAccountName: api", "serviceAccountName: pinned");
        }
        if *expected == "KF022 18:13" {
            text = text.replace("serviceAccountName: api", "serviceAccountName: twins");
        }
        let found = found(&text, objects());
        // No role grants a keyspace that is not there.
        let follows = |place: &&String| expected.starts_with("KF024") && place.starts_with("KF023");
        let mut found: Vec<_> = found.iter().filter(|place| !follows(place)).collect();
        found.dedup();
        if found != [expected] {
            wrong.push(format!("{expected}: {found:?} by {by}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(found(GOOD, vec![role("payments-api", API, ""), issuer("other")]), ["KF020 19:15"]);
    let tested: BTreeSet<_> = BROKEN.iter().map(|(place, ..)| place.split(' ').next().unwrap()).collect();
    let untested: Vec<_> = RULES.iter().map(|rule| rule.id).filter(|id| !tested.contains(id)).collect();
    assert_eq!(untested, ["KF025"], "which no_issuer_is_an_error_of_its_own tests");
}

#[test]
fn no_issuer_is_an_error_of_its_own() {
    let of_server =
        |objects: &[Object]| Settings { rights: Rights::of_server(objects).ok(), ..settings(None) };
    let none = of_server(&[role("payments-api", API, "")]);
    assert_eq!(places(&run(GOOD, &none)), ["KF025 19:15"]);
    let other = Settings { issuer: Some("other".try_into().unwrap()), ..settings(Some(objects())) };
    assert_eq!(
        message(GOOD, &other),
        "issuer other does not exist, or is no cluster's. `keyfold get issuers` shows those that there are."
    );
    assert_eq!(found(GOOD, vec![object("Keyspace", "payments", "{}")]), ["KF025 19:15"]);
}

#[test]
fn each_rule_has_an_id_and_a_name_of_its_own() {
    let ids: Vec<_> = RULES.iter().map(|rule| rule.id.to_owned()).collect();
    let expected: Vec<_> = (1..=RULES.len()).map(|number| format!("KF{number:03}")).collect();
    assert_eq!(ids, expected);
    assert_eq!(RULES.iter().map(|rule| rule.name).collect::<BTreeSet<_>>().len(), RULES.len());
}

#[test]
fn each_rule_is_explained() {
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/lint.md")).unwrap();
    for rule in RULES {
        let row = format!("| `{}` | {} | {} | {} |", rule.id, rule.name, rule.level.name(), rule.summary);
        assert!(document.contains(&row), "{row}");
    }
    assert_eq!(document.matches("\n| `KF").count(), RULES.len());
}

#[test]
fn what_is_refused_says_what_there_is_instead() {
    let all = settings(Some(objects()));
    insta::assert_snapshot!(message(&with("payments-api", "payments-apis"), &all), @"app role payments-apis does not exist. Set `role` to one that binds it: payments-api.");
    insta::assert_snapshot!(message(&with("payments-api", "batch"), &all), @"app role batch does not bind service account payments/api of issuer prod: it binds prod:payments/batch. Set `role` to one that binds it: payments-api.");
    insta::assert_snapshot!(message(&with("payments/db", "payments/eu/db"), &all), @"app role payments-api does not allow to read payments/eu/db, only payments/*, shared/payments/**. Correct the path or the role's name, or have the path granted to the role.");
    let of_twins = with("serviceAccountName: api", "serviceAccountName: twins");
    insta::assert_snapshot!(message(&of_twins.replace("role: payments-api", "# none"), &all), @"no app role is named, and several bind service account payments/twins of issuer prod. Set `role` to one that binds it: twins, twins-too.");
    let of_nobody = with("serviceAccountName: api", "serviceAccountName: nobody");
    insta::assert_snapshot!(message(&of_nobody.replace("role: payments-api", "# none"), &all), @"no app role is named, and none binds service account payments/nobody of issuer prod. Have a role bind this namespace and service account.");
    let unlabelled =
        with("tier: web", "tier: db").replace("serviceAccountName: api", "serviceAccountName: labelled");
    insta::assert_snapshot!(message(&unlabelled.replace("payments-api", "web"), &all), @r#"app role web binds service account payments/labelled of issuer prod only with labels that this pod does not have: {"matchLabels":{"tier":"web"}}. Add the labels to the pod's metadata, or name another role."#);
}

#[test]
fn an_optional_item_that_is_left_out_is_a_warning() {
    let text = with("path: payments/db", "{path: stores/db, optional: true}");
    let report = run(&text, &settings(Some(objects())));
    let levels: Vec<_> = report.findings.iter().map(|finding| (finding.rule.id, finding.level)).collect();
    assert_eq!(levels, [("KF023", Level::Warning), ("KF024", Level::Warning)]);
    assert_eq!(report.exit(), crate::exit::Exit::Done);
}

#[test]
fn what_a_manifest_does_not_show_is_noted_and_no_error() {
    let condition = r#","condition":{"rego":"package keyfold\nallow if true"}"#;
    let text =
        with("serviceAccountName: api", "serviceAccountName: pinned").replace("payments-api", "pinned");
    let mut all = objects();
    all.pop();
    all.push(role("pinned", &bind("pinned", r#","serviceAccountUid":"1b2c""#), condition));
    let report = run(&text, &settings(Some(all.clone())));
    let notes: Vec<_> = report.findings.iter().map(|finding| finding.message.as_str()).collect();
    assert_eq!(
        notes,
        [
            "app role pinned also looks at the service account's UID, which cannot be checked here",
            "app role pinned also looks at a condition, which cannot be checked here"
        ]
    );
    assert_eq!(report.exit(), crate::exit::Exit::Done);
    // A second binding that pins nothing is enough.
    all.pop();
    let both = format!("{},{}", bind("pinned", r#","serviceAccountUid":"1b2c""#), bind("pin*", ""));
    all.push(role("pinned", &both, ""));
    assert_eq!(found(&text, all), Vec::<String>::new());
}

#[test]
fn with_several_issuers_it_is_enough_that_one_works() {
    let mut all = objects();
    all.push(issuer("another"));
    assert_eq!(found(GOOD, all.clone()), Vec::<String>::new());
    let named =
        |issuer: &str| Settings { issuer: Some(issuer.try_into().unwrap()), ..settings(Some(all.clone())) };
    assert_eq!(places(&run(GOOD, &named("prod"))), Vec::<String>::new());
    insta::assert_snapshot!(message(GOOD, &named("another")), @"app role payments-api does not bind service account payments/api of issuer another: it binds prod:payments/api. Have a role bind this namespace and service account.");
}

#[test]
fn files_without_issuers_and_keyspaces_leave_those_unchecked() {
    let only_roles: Vec<_> = objects().into_iter().filter(|object| object.kind == "AppRole").collect();
    assert_eq!(found(GOOD, only_roles.clone()), Vec::<String>::new());
    assert_eq!(found(&with("payments/db", "stores/db"), only_roles), ["KF023 21:19"]);
}

#[test]
fn every_kind_that_makes_pods_is_checked_and_no_other() {
    let spec = "{serviceAccountName: x, volumes: [{name: s, csi: {driver: csi.keyfold.dev}}]}";
    let template = format!("{{spec: {spec}}}");
    let count = |kind: &str, api: &str, rest: &str| {
        let text = format!("apiVersion: {api}\nkind: {kind}\n{rest}\n");
        run(&text, &settings(None)).summary.volumes
    };
    let of_template = format!("spec: {{template: {template}}}");
    assert_eq!(count("Pod", "v1", &format!("spec: {spec}")), 1);
    assert_eq!(count("PodTemplate", "v1", &format!("template: {template}")), 1);
    assert_eq!(count("ReplicationController", "v1", &of_template), 1);
    for kind in ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"] {
        assert_eq!(count(kind, "apps/v1", &of_template), 1, "{kind}");
    }
    assert_eq!(count("Job", "batch/v1", &of_template), 1);
    let cron = format!("spec: {{jobTemplate: {{spec: {{template: {template}}}}}}}");
    assert_eq!(count("CronJob", "batch/v1", &cron), 1);
    let list =
        format!("items: [{{apiVersion: v1, kind: Pod, spec: {spec}}}, {{apiVersion: v1, kind: Service}}]");
    assert_eq!(count("List", "v1", &list), 1);
    assert_eq!(count("Job", "example.com/v1", &of_template), 0);
    assert_eq!(count("Service", "v1", &format!("spec: {spec}")), 0);
    let other = spec.replace("csi.keyfold.dev", "csi.example.com");
    assert_eq!(count("Pod", "v1", &format!("spec: {other}")), 0);
}

#[test]
fn an_object_without_a_namespace_is_of_the_one_that_is_set() {
    let text = with(", namespace: payments", "");
    assert_eq!(found(&text, objects()), ["KF020 19:15"]);
    let payments = Settings { namespace: "payments".into(), ..settings(Some(objects())) };
    assert_eq!(places(&run(&text, &payments)), Vec::<String>::new());
}

#[test]
fn json_is_yaml_too() {
    let text = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"namespace":"payments"},"spec":{"serviceAccountName":"api",
        "containers":[{"name":"c","volumeMounts":[{"name":"s","mountPath":"/s"}]}],
        "volumes":[{"name":"s","csi":{"driver":"csi.keyfold.dev","readOnly":true,"volumeAttributes":
            {"secrets":"- path: payments/db\n- path: PAYMENTS\n"}}}]}}"#;
    assert_eq!(found(text, objects()), ["KF012 4:24"], "where the text begins, since it has escapes");
}

#[test]
fn findings_come_by_file_and_place() {
    let bad = with("payments/db", "payments").replace("readOnly: true", "readOnly: false");
    let input = |name: &str, text: Result<String, String>| Input { name: name.into(), text };
    let files = [input("b", Ok(bad.clone())), input("a", Ok(bad)), input("c", Err("why".into()))];
    let report = check(&files, &settings(None));
    let shown: Vec<_> = report.findings.iter().map(|f| format!("{} {}", f.file, f.rule.id)).collect();
    assert_eq!(shown, ["b KF003", "b KF012", "a KF003", "a KF012", "c KF001"]);
    assert_eq!(report.exit(), crate::exit::Exit::Usage);
}

#[test]
fn attack_16_a_flood_of_findings_is_cut() {
    let volumes: String = "{csi: {driver: csi.keyfold.dev}},".repeat(1_000);
    let pod = format!("apiVersion: v1\nkind: Pod\nspec: {{volumes: [{volumes}]}}\n---\n");
    let report = run(&pod.repeat(10), &settings(None));
    assert_eq!((report.findings.len(), report.summary.left_out), (10_000, 20_000));
    assert!(report.text().ends_with(" and 20000 more findings that are not shown\n"));
}

/// A pod of this many volumes and of this many mounts of each of two containers: all but the first are aliases.
fn aliased_pod(volumes: usize, mounts: usize) -> String {
    let aliases = |name: &str, count: usize| vec![format!("*{name}"); count - 1].join(",");
    format!(
        "apiVersion: v1\nkind: Pod\nspec:\n  \
         volumes: [&v {{name: s, csi: {{driver: csi.keyfold.dev, readOnly: true}}}},{}]\n  \
         containers: [&c {{name: c, volumeMounts: [&m {{name: s, subPath: x}},{}]}}, *c]\n",
        aliases("v", volumes),
        aliases("m", mounts)
    )
}

#[test]
fn attack_16_a_pod_of_more_volumes_or_mounts_than_are_checked_is_an_error() {
    let findings = |volumes, mounts| {
        let report = run(&aliased_pod(volumes, mounts), &settings(None));
        let messages: BTreeSet<_> = report.findings.iter().map(|found| found.message.clone()).collect();
        (messages.into_iter().collect::<Vec<_>>(), report.summary.volumes, report.exit())
    };
    let cut = |limit: &str| (vec![format!("a pod of more than {limit}")], 0, crate::exit::Exit::Usage);
    assert_eq!(findings(1_001, 500), cut("1000 volumes"));
    assert_eq!(findings(1_000, 501), cut("1000 mounts"));
    assert_eq!(findings(300_000, 150_000), cut("1000 volumes"));
    let (messages, volumes, _) = findings(1_000, 500);
    assert_eq!((messages.len(), volumes), (2, 1_000), "{messages:?}");
}

#[test]
fn attack_16_each_mount_is_looked_at_once_however_many_volumes_have_its_name() {
    let report = run(&aliased_pod(1_000, 500), &settings(None));
    let of_rule = |id| report.findings.iter().filter(|finding| finding.rule.id == id).count();
    assert_eq!((of_rule("KF018"), of_rule("KF009")), (1_000, 1_000));
    // A million pairs a pod: this ends because they are not looked at one by one.
    let pod = aliased_pod(1_000, 500).trim_end().replace('\n', "\n  ");
    let pods = format!("apiVersion: v1\nkind: List\nitems:\n- &p\n  {pod}\n{}", "- *p\n".repeat(99));
    assert_eq!(run(&pods, &settings(None)).summary.volumes, 100_000);
}

#[test]
fn attack_16_a_file_of_one_long_line_is_not_read_anew_for_each_place() {
    let secrets = r"- path: A\n".repeat(64);
    let volume = format!(
        r#"{{"name":"s","csi":{{"driver":"csi.keyfold.dev","readOnly":true,"volumeAttributes":{{"secrets":"{secrets}"}}}}}}"#
    );
    let pod = format!(
        r#"{{"apiVersion":"v1","kind":"Pod","spec":{{"volumes":[{}]}}}}"#,
        vec![volume; 1_000].join(",")
    );
    let report = run(&pod, &settings(None));
    assert_eq!((report.findings.len(), report.summary.left_out), (10_000, 55_000));
}

#[test]
fn attack_14_what_a_manifest_holds_does_not_steer_the_terminal() {
    let text = with("role: payments-api", "\"\\e[2Jrole\": \"x\"\n              role: \"\\u202eapi\"");
    let report = run(&text, &settings(None));
    assert_eq!(places(&report), ["KF006 19:15", "KF008 20:15"]);
    assert!(!report.text().contains(['\u{1b}', '\u{202e}']), "{}", report.text());
}
