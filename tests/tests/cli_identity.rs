//! The real `keyfold` where rights are declared, explained and given up: operator roles, approval rules, `explain`,
//! `admin revoke`.

use std::path::Path;

use keyfold_tests::{Cli, Installation, People, masked};
use serde_json::{Value, json};

const ROLES: &str = "\
apiVersion: keyfold.dev/v1
kind: OperatorRole
metadata: {name: platform}
spec:
  builtIn: admin
  bind: [{issuer: people, claims: {groups: [platform]}}]
---
apiVersion: keyfold.dev/v1
kind: OperatorRole
metadata: {name: payments-team}
spec:
  grants: [{path: payments/**, allow: [write, list]}]
  allow: [\"keys:*\", status:read]
  bind: [{issuer: people, claims: {sub: [carol], groups: [payments]}}]
";

/// An installation with a provider of people, and a folder for shells.
async fn with_people() -> (Installation, People) {
    let installation = Installation::with_payments().await;
    let folder = installation.cli.folder.clone();
    let people = People::join(&installation.server, &folder).await;
    (installation, people)
}

/// An approval rule whose approvers are alice and bob, with keys that they made by themselves.
fn rule(folder: &Path) -> String {
    let public = |name: &str| {
        let made = Cli::offline(folder).ok(&format!("approval keygen --out {name}.key"));
        made.split_whitespace().find(|word| word.len() == 44).unwrap().to_owned()
    };
    format!(
        "apiVersion: keyfold.dev/v1\nkind: ApprovalRule\nmetadata: {{name: two}}\nspec:\n  operations: [secret.destroy]\n  \
         approvers:\n    - {{operator: people/alice, publicKey: {}}}\n    - {{operator: people/bob, publicKey: {}}}\n",
        public("alice"),
        public("bob")
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn operator_roles_are_applied_compared_shown_and_deleted() {
    let (installation, _people) = with_people().await;
    let cli = &installation.cli;
    cli.write("roles.yaml", ROLES);
    assert_eq!(cli.run("diff -f roles.yaml").code, 1);
    insta::assert_snapshot!(cli.ok("apply -f roles.yaml"), @r"
    OperatorRole platform created
    OperatorRole payments-team created
    ");
    insta::assert_snapshot!(cli.ok("apply -f roles.yaml"), @r"
    OperatorRole platform unchanged
    OperatorRole payments-team unchanged
    ");
    assert_eq!(cli.ok("diff -f roles.yaml"), "");

    cli.write(
        "changed.yaml",
        ROLES.replace("[carol]", "[carol, dave]").replace("builtIn: admin", "builtIn: auditor"),
    );
    let diff = cli.run("diff -f changed.yaml");
    assert_eq!(diff.code, 1);
    insta::assert_snapshot!(diff.out, @r#"
    --- OperatorRole/platform (generation 1)
    +++ OperatorRole/platform
    -spec.builtIn: "admin"
    +spec.builtIn: "auditor"
    --- OperatorRole/payments-team (generation 1)
    +++ OperatorRole/payments-team
    +spec.bind[0].claims.sub[1]: "dave"
    "#);
    insta::assert_snapshot!(cli.ok("get operatorrole payments-team -o yaml"), @r"
    apiVersion: keyfold.dev/v1
    kind: OperatorRole
    metadata:
      name: payments-team
    spec:
      allow:
      - keys:*
      - status:read
      bind:
      - claims:
          groups:
          - payments
          sub:
          - carol
        issuer: people
      grants:
      - allow:
        - list
        - write
        path: payments/**
    ");
    insta::assert_snapshot!(masked(&cli.ok("get operatorroles")), @r"
    NAME           GENERATION  UPDATED
    payments-team  1           2026-01-31T00:00:00Z
    platform       1           2026-01-31T00:00:00Z
    ");
    let yaml = cli.ok("get operatorroles -o yaml");
    let applied = cli.run_with("apply -f -", yaml.as_bytes());
    assert!(applied.out.lines().all(|line| line.ends_with(" unchanged")), "{}{}", applied.out, applied.err);

    insta::assert_snapshot!(cli.ok("delete operatorrole payments-team"), @"OperatorRole payments-team deleted");
    insta::assert_snapshot!(cli.fails("get operatorrole payments-team"), @"3 keyfold: cannot get OperatorRole payments-team: there is no OperatorRole payments-team.");
    assert!(cli.ok("get operatorroles").contains("platform"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_one_bad_object_changes_nothing_and_names_it() {
    let (installation, _people) = with_people().await;
    let cli = &installation.cli;
    let rule = rule(&cli.folder);
    let failure = |good: &str, bad: &str| {
        cli.write("bad.yaml", format!("{ROLES}---\n{}", rule.replace(good, bad)));
        cli.fails("apply -f bad.yaml")
    };
    insta::assert_snapshot!(failure("secret.destroy", "secret.put"), @"7 keyfold: cannot apply the files: ApprovalRule two: spec.operations[0]: unknown variant `secret.put`, expected one of `secret.get`, `secret.rollback`, `secret.delete`, `secret.destroy`, `key.rotate`, `key.compromise`, `key.schedule-destruction`, `root.change`, `recovery.create`, `config.apply`, `config.delete`.");
    insta::assert_snapshot!(failure("people/bob", "people/alice"), @"7 keyfold: cannot apply the files: ApprovalRule two: spec.approvers: name at least two operators, each once, so that each can be the second person.");
    insta::assert_snapshot!(failure("people/bob", "bob"), @r#"7 keyfold: cannot apply the files: ApprovalRule two: spec.approvers: "bob" is not an operator: use ISSUER/SUBJECT, as keyfold whoami prints it."#);
    let failure = |good: &str, bad: &str| {
        cli.write("bad.yaml", format!("{rule}---\n{}", ROLES.replace(good, bad)));
        cli.fails("apply -f bad.yaml")
    };
    insta::assert_snapshot!(failure("status:read", "status:write"), @r#"7 keyfold: cannot apply the files: OperatorRole payments-team: spec.allow[1]: "status:write" is no permission: use keys:read, keys:rotate, keys:compromise, keys:destroy, root:read, root:change, root:recover, ca:rotate, audit:read, status:read, keyspaces:read, keyspaces:write, issuers:read, issuers:write, roles:read, roles:write, operators:read, operators:write, approvals:read, approvals:sign, or an area such as keys:*."#);
    insta::assert_snapshot!(failure("builtIn: admin", "builtIn: root"), @"7 keyfold: cannot apply the files: OperatorRole platform: spec.builtIn: unknown variant `root`, expected one of `admin`, `key-admin`, `secret-admin`, `auditor`.");
    insta::assert_snapshot!(failure("{groups: [platform]}", "{}"), @"7 keyfold: cannot apply the files: OperatorRole platform: spec.bind[0].claims: name at least one, or every token would be bound.");
    insta::assert_snapshot!(failure("payments/**", "\"payments/{namespace}\""), @"7 keyfold: cannot apply the files: OperatorRole payments-team: spec.grants[0].path: variables stand for a workload's values, and an operator has none.");
    for kind in ["operatorroles", "approvalrules"] {
        let json: Value = serde_json::from_str(&cli.ok(&format!("get {kind} -o json"))).unwrap();
        assert_eq!(json, json!([]), "nothing of any of the files was made");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_rule_is_applied_shown_and_deleted_by_two_persons_alone() {
    let (installation, people) = with_people().await;
    let admin = &installation.cli;
    admin.write("roles.yaml", ROLES);
    admin.write("rule.yaml", rule(&admin.folder));
    admin.ok("apply -f roles.yaml");
    insta::assert_snapshot!(admin.ok("apply -f rule.yaml"), @"ApprovalRule two created");
    insta::assert_snapshot!(admin.ok("apply -f rule.yaml roles.yaml"), @r"
    ApprovalRule two unchanged
    OperatorRole platform unchanged
    OperatorRole payments-team unchanged
    ");
    assert_eq!(admin.ok("diff -f rule.yaml"), "");
    let yaml = admin.ok("get approvalrule two -o yaml");
    assert_eq!(admin.run_with("diff -f -", yaml.as_bytes()).code, 0, "{yaml}");
    assert!(yaml.contains("- secret.destroy") && yaml.contains("operator: people/alice"), "{yaml}");

    let person = |name: &str| people.person(name, &["platform"]).cli(&admin.folder);
    let (alice, bob) = (person("alice"), person("bob"));
    let asked = alice.fails("delete approvalrule two");
    assert!(
        asked.starts_with("5 keyfold: cannot delete ApprovalRule two: this needs a second person"),
        "{asked}"
    );
    let plan = asked.split_once("sign plan ").unwrap().1.split(' ').next().unwrap();
    assert_eq!(
        alice.run(&format!("approval sign {plan} --key alice.key --yes")).code,
        5,
        "nobody signs alone"
    );
    bob.ok(&format!("approval sign {plan} --key bob.key --yes"));
    let deleted = alice.ok(&format!("delete approvalrule two --approval {plan}"));
    insta::assert_snapshot!(deleted, @"ApprovalRule two deleted");
    insta::assert_snapshot!(alice.ok("delete operatorrole payments-team"), @"OperatorRole payments-team deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_says_step_by_step_why() {
    let (installation, _people) = with_people().await;
    let cli = &installation.cli;
    let dev = "apiVersion: keyfold.dev/v1\nkind: Issuer\nmetadata: {name: prod}\nspec:\n  type: kubernetes\n  \
               url: https://prod.example\n  audiences: [keyfold]\n  keys: {file: prod.json}\n";
    cli.write("prod.yaml", dev);
    cli.ok("apply -f prod.yaml");

    let explain = |rest: &str| {
        let ran = cli.run(&format!("explain --path {rest}"));
        assert_eq!(ran.err, "", "{rest}");
        format!("{}\n{}", ran.code, ran.out)
    };
    insta::assert_snapshot!(explain("payments/db --subject payments/api --role payments-api"), @r"
    0
    CHECK    RESULT     DETAIL
    role     holds      app role payments-api exists
    binding  holds      spec.bind[0] matches
    node     undecided  nodeBinding: required: the pod's and the driver's tokens must name the same node (Kubernetes 1.32 and later)
    grant    holds      spec.grants[0]: payments/* covers payments/db

    allowed, as far as can be told without the pod's token
    ");
    assert_eq!(
        explain("payments/db --subject system:serviceaccount:payments:api --role payments-api"),
        explain("payments/db --subject payments/api --role payments-api --issuer prod"),
    );
    insta::assert_snapshot!(explain("payments/db --subject payments/api"), @r"
    0
    CHECK    RESULT     DETAIL
    role     holds      none is named, and payments-api alone binds payments/api of issuer prod
    binding  holds      spec.bind[0] matches
    node     undecided  nodeBinding: required: the pod's and the driver's tokens must name the same node (Kubernetes 1.32 and later)
    grant    holds      spec.grants[0]: payments/* covers payments/db

    allowed, as far as can be told without the pod's token
    ");
    insta::assert_snapshot!(explain("payments/db --subject shop/api --role payments-api"), @r"
    1
    CHECK    RESULT  DETAIL
    role     holds   app role payments-api exists
    binding  fails   payments-api does not bind it: spec.bind[0]: namespace shop is not among payments

    refused
    ");
    insta::assert_snapshot!(explain("payments/db --subject shop/api"), @r"
    1
    CHECK  RESULT  DETAIL
    role   fails   no app role binds shop/api of issuer prod

    refused
    ");
    insta::assert_snapshot!(explain("shop/db --subject payments/api --role payments-api"), @r"
    1
    CHECK    RESULT     DETAIL
    role     holds      app role payments-api exists
    binding  holds      spec.bind[0] matches
    node     undecided  nodeBinding: required: the pod's and the driver's tokens must name the same node (Kubernetes 1.32 and later)
    grant    fails      no grant covers shop/db: there are payments/*, shared/{namespace}/**

    refused
    ");
    insta::assert_snapshot!(explain("payments/db --subject payments/api --role none"), @r"
    1
    CHECK  RESULT  DETAIL
    role   fails   there is no app role none

    refused
    ");

    let json: Value = serde_json::from_str(
        &cli.run("explain --path shop/db --subject payments/api --role payments-api -o json").out,
    )
    .unwrap();
    assert_eq!(json["allowed"], false);
    assert_eq!(json["steps"][3]["check"], "grant");
    assert_eq!(json["steps"][3]["result"], "fails");
    let entries = cli.ok("audit list --operation policy.explain -o json");
    let first: Value = serde_json::from_str(entries.lines().last().unwrap()).unwrap();
    assert_eq!(
        first["operation"],
        json!({
            "name": "policy.explain", "issuer": "", "namespace": "payments", "service_account": "api", "pod": null,
            "role": "payments-api", "path": "payments/db",
        })
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_refuses_what_it_cannot_tell_and_who_may_not_ask() {
    let (installation, people) = with_people().await;
    let cli = &installation.cli;
    insta::assert_snapshot!(cli.fails("explain --path payments/db --subject payments/api --issuer none"), @"3 keyfold: cannot explain: there is no issuer none of type kubernetes; there are: none.");
    insta::assert_snapshot!(cli.fails("explain --path payments/db --subject payments/api --issuer people"), @"3 keyfold: cannot explain: there is no issuer people of type kubernetes; there are: none.");
    insta::assert_snapshot!(cli.fails("explain --path payments//db --subject payments/api"), @r#"7 keyfold: cannot explain: path "payments//db" has the segment "": a segment is 1 to 128 of a-z, 0-9, '.', '_' and '-', beginning and ending with a letter or digit."#);
    assert_eq!(cli.run("explain --path payments/db").code, 2);
    assert_eq!(cli.run("explain --path payments/db --subject a/b --pod a/c").code, 2);

    cli.write("roles.yaml", ROLES);
    cli.ok("apply -f roles.yaml");
    let carol = people.person("carol", &["payments"]).cli(&cli.folder);
    insta::assert_snapshot!(carol.fails("explain --path payments/db --subject payments/api"), @"4 keyfold: cannot explain: people/carol may not do this, which needs roles:read: ask an administrator for an operator role that allows it.");
    let nobody = people.person("nobody", &[]).cli(&cli.folder);
    insta::assert_snapshot!(nobody.fails("explain --path payments/db --subject payments/api"), @"4 keyfold: cannot explain: no operator role binds people/nobody: ask an administrator for one.");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_initial_administrator_is_revoked_by_somebody_else_and_status_warns_until_then() {
    let (installation, people) = with_people().await;
    let admin = &installation.cli;
    admin.write("roles.yaml", ROLES);
    admin.ok("apply -f roles.yaml");
    let alice = people.person("alice", &["platform"]).cli(&admin.folder);
    let carol = people.person("carol", &["payments"]).cli(&admin.folder);
    const WARNING: &str =
        "keyfold: warning: the initial administrator is still active; revoke it once operators have roles\n";
    assert_eq!(alice.run("status").err, WARNING);

    insta::assert_snapshot!(admin.fails("admin revoke"), @"5 keyfold: cannot revoke the initial administrator: the initial administrator cannot revoke itself: sign in as an operator whose role allows operators:write and revoke it as such, so that it is certain that somebody still can.");
    insta::assert_snapshot!(carol.fails("admin revoke"), @"4 keyfold: cannot revoke the initial administrator: people/carol may not do this, which needs operators:write: ask an administrator for an operator role that allows it.");
    let nobody = installation.nobody().fails("admin revoke");
    assert!(nobody.starts_with("2 keyfold: not signed in to https://"), "{nobody}");
    admin.ok("key list");

    insta::assert_snapshot!(alice.ok("admin revoke"), @"the initial administrator's token is void");
    insta::assert_snapshot!(alice.ok("admin revoke"), @"the initial administrator's token was void already");
    insta::assert_snapshot!(admin.fails("key list"), @"4 keyfold: cannot list keys: the operator's token is missing, unknown or revoked: give a valid one with --token-file. Check that the token's file holds a valid token of this installation.");
    let status = alice.run("status");
    assert_eq!((status.code, status.err.as_str()), (0, ""));
    insta::assert_snapshot!(alice.ok("whoami -o json").lines().take(5).collect::<Vec<_>>().join("\n"), @r#"
    {
      "name": "people/alice",
      "issuer": "people",
      "subject": "alice",
      "roles": [
    "#);
    let revoked: Value = serde_json::from_str(&alice.ok("admin revoke -o json")).unwrap();
    assert_eq!(revoked, json!({"revoked": false}));

    let log = alice.ok("audit list --operation system.revoke-initial-administrator -o json");
    let outcomes: Vec<_> = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|entry| format!("{} {}", entry["actor"]["name"], entry["outcome"]["result"]).replace('"', ""))
        .collect();
    insta::assert_snapshot!(outcomes.join("\n"), @r"
    people/alice allowed
    people/alice allowed
    people/alice allowed
    people/carol refused
    initial-administrator refused
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoami_shows_what_roles_give_together() {
    let (installation, people) = with_people().await;
    installation.cli.write("roles.yaml", ROLES);
    installation.cli.ok("apply -f roles.yaml");
    let both = people.person("carol", &["payments", "platform"]).cli(&installation.cli.folder);
    let json: Value = serde_json::from_str(&both.ok("whoami -o json")).unwrap();
    assert_eq!(json["roles"], json!(["payments-team", "platform"]));
    assert_eq!(json["grants"].as_array().unwrap().len(), 2, "{json}");
    let carol = people.person("carol", &["payments"]).cli(&installation.cli.folder);
    insta::assert_snapshot!(masked(&carol.ok("whoami")), @r"
    name         people/carol
    issuer       people
    subject      carol
    roles        payments-team
    permissions  keys:read, keys:rotate, keys:compromise, keys:destroy, status:read
    grant        payments/**(list,write)
    token until  2026-01-31T00:00:00Z
    ");
}
