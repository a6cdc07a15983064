use std::io::Cursor;

use super::*;

const ROLE: &str = "\
apiVersion: keyfold.dev/v1
kind: AppRole
metadata: {name: payments-api}
spec:
  bind: [{issuer: prod, namespaces: [payments], serviceAccounts: [api]}]
  grants: [{path: payments/*, allow: [read]}]
  condition:
    rego: |
      package keyfold
      default allow := false
      allow if {
        input.time.hour >= 8
        input.time.hour < 18
        startswith(input.caller.pod.name, \"api-\")
      }
---
";

fn cases(cases: &str) -> String {
    format!(
        "{ROLE}apiVersion: keyfold.dev/v1\nkind: PolicyTest\nmetadata: {{name: hours}}\n\
         spec:\n  role: payments-api\n  cases:\n{cases}"
    )
}

fn tested(text: &str) -> Result<Vec<View>, Failure> {
    test(documents::read_with(&["-".into()], &mut Cursor::new(text), part)?)
}

fn refusal(text: &str) -> String {
    match tested(text) {
        Ok(views) => panic!("taken: {}", draw(&views)),
        Err(failure) => {
            assert_eq!(failure.exit(), Exit::Usage);
            failure.to_string()
        }
    }
}

#[test]
fn each_case_tells_whether_it_came_out_as_expected() {
    let text = cases(
        r#"
  - {name: at noon, input: {caller: {pod: {name: api-7}}}, expect: allow}
  - {name: at night, at: "2026-01-05T03:00:00Z", input: {caller: {pod: {name: api-7}}}, expect: refuse}
  - {name: elsewhere, at: "2026-01-05T10:00:00+02:00", input: {caller: {pod: {name: api-7}}}, expect: allow}
  - {name: another pod, expect: allow}
  - {name: by the hour alone, input: {caller: {pod: {name: api-7}}, time: {hour: 20}}, expect: refuse}
  - {name: another refusal, expect: refuse, code: condition-timeout}
"#,
    );
    let views = tested(&text).unwrap();
    insta::assert_snapshot!(draw(&views), @r"
    RESULT  ROLE          CASE               CAME
    PASS    payments-api  at noon            allow
    PASS    payments-api  at night           condition-false
    PASS    payments-api  elsewhere          allow
    FAIL    payments-api  another pod        condition-false, not allow: allow is not true
    PASS    payments-api  by the hour alone  condition-false
    FAIL    payments-api  another refusal    condition-false, not condition-timeout: allow is not true
    4 passed, 2 failed
    ");
    let json: Vec<String> = views[2..4].iter().map(|view| serde_json::to_string(view).unwrap()).collect();
    insta::assert_snapshot!(json.join("\n"), @r#"
    {"test":"hours","role":"payments-api","case":"elsewhere","passed":true,"expected":"allow","came":"allow"}
    {"test":"hours","role":"payments-api","case":"another pod","passed":false,"expected":"allow","came":"condition-false","reason":"allow is not true"}
    "#);
}

#[test]
fn an_error_of_the_condition_is_no_plain_refusal() {
    let failing = cases(
        "  - {name: quietly, expect: refuse}\n  - {name: said, expect: refuse, code: condition-error}\n",
    )
    .replace("input.caller.pod.name,", "input.time.hour,");
    let views = tested(&failing).unwrap();
    assert_eq!(views.iter().map(|view| view.passed).collect::<Vec<_>>(), [false, true]);
    assert_eq!(views[0].came, "condition-error");
    assert!(
        views[0].reason.as_ref().is_some_and(|reason| reason.starts_with("line 6: ")),
        "{:?}",
        views[0].reason
    );
}

#[test]
fn other_documents_are_passed_over() {
    let text = format!(
        "apiVersion: keyfold.dev/v1\nkind: Keyspace\nmetadata: {{name: payments}}\n---\n{}",
        cases("  - {name: another pod, expect: refuse}\n")
    );
    assert!(tested(&text).unwrap()[0].passed);
}

#[test]
fn what_is_wrong_is_named_by_file_document_and_field() {
    let case = "  - {name: a, expect: allow}\n";
    let wrong = [
        ROLE.to_owned(),
        cases("").replace("cases:", "cases: []"),
        cases(case).replace("role: payments-api", "role: other"),
        cases(case).replace("input.time.hour < 18", "input.time.hour < ]"),
        cases(case).replace("input.time.hour < 18", "http.send({})"),
        cases(case).replace("package keyfold", "package other"),
        cases(case).replace("namespaces: [payments]", "namespaces: []"),
        cases(case).replace("  condition:\n    rego: |", "  condition: {}\n  other: |"),
        cases("  - {name: a, expect: perhaps}\n"),
        cases("  - {name: a}\n"),
        cases("  - {name: a, expect: allow, input: {caller: {pods: 1}}}\n"),
        cases("  - {name: a, expect: allow, input: {time: {hour: noon}}}\n"),
        cases("  - {name: a, expect: allow, at: noon}\n"),
        cases(case).replace("metadata: {name: hours}", "metadata: {}"),
        format!("{ROLE}{}", cases(case)),
    ];
    let lines: Vec<String> = wrong.iter().map(|text| refusal(text)).collect();
    insta::assert_snapshot!(lines.join("\n"), @r#"
    cannot use the files: they hold no case of a PolicyTest.
    cannot use the files: they hold no case of a PolicyTest.
    cannot use standard input, document 2: spec.role: the files hold no AppRole "other".
    cannot use standard input, document 1: spec.condition.rego: line 5: expecting expression.
    cannot use standard input, document 1: spec.condition.rego: line 5: http.send is not a function that conditions have.
    cannot use standard input, document 1: spec.condition.rego: the package must be keyfold: begin with `package keyfold`.
    cannot use standard input, document 1: spec.bind[0].namespaces: name at least one.
    cannot use standard input, document 1: spec.condition: missing field `rego`.
    cannot use standard input, document 2: spec.cases[0].expect: unknown variant `perhaps`, expected `allow` or `refuse`.
    cannot use standard input, document 2: spec.cases[0]: missing field `expect`.
    cannot use standard input, document 2: spec.cases[0].input.caller.pods: unknown field `pods`, expected one of `issuer`, `namespace`, `service_account`, `pod`, `node`, `token_expires_at`.
    cannot use standard input, document 2: spec.cases[0].input.time.hour: invalid type: string "noon", expected u8.
    cannot use standard input, document 2: spec.cases[0].at: the 'year' component could not be parsed.
    cannot use standard input, document 2: metadata: missing field `name`.
    cannot use standard input, document 2: AppRole payments-api stands in standard input, document 1 already. Keep one of them.
    "#);
}

#[test]
fn a_role_without_a_condition_cannot_be_tested() {
    let text = cases("  - {name: a, expect: allow}\n");
    let (before, rest) = text.split_once("  condition:").unwrap();
    let (_, after) = rest.split_once("---\n").unwrap();
    assert!(refusal(&format!("{before}---\n{after}")).contains("spec.condition: the role has none"));
}
