use super::*;

#[test]
fn the_list_shows_whom_a_role_binds_and_what_it_grants() {
    let spec = r#"{"bind":[{"issuer":"prod","namespaces":["payments"],"serviceAccounts":["api","worker"]}],
        "grants":[{"path":"payments/*","allow":["read"]},{"path":"shared/{namespace}/**","allow":["read","list"]}]}"#;
    let role =
        |name: &str, spec: &str| Object { name: name.into(), spec_json: spec.into(), ..Default::default() };
    insta::assert_snapshot!(draw(&[role("payments-api", spec), role("odd", "not json")]), @r"
    NAME          BINDS                     GRANTS
    payments-api  prod:payments/api,worker  payments/*(read) shared/{namespace}/**(read,list)
    odd
    ");
}
