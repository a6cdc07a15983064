use super::*;

fn object(spec_json: &str, generation: u64) -> Object {
    Object {
        kind: "AppRole".into(),
        name: "payments-api".into(),
        spec_json: spec_json.into(),
        generation,
        updated_at: None,
    }
}

#[test]
fn a_change_shows_field_by_field() {
    let before = r#"{"grants":[{"path":"payments/*","allow":["read"]}],"nodeBinding":"required","lease":{"ttl":"1h"}}"#;
    let after = r#"{"grants":[{"path":"payments/**","allow":["read"]},{"path":"shared/x","allow":[]}],"nodeBinding":"required"}"#;
    let change = view(&ObjectChange {
        change: ChangeKind::Changed.into(),
        before: Some(object(before, 3)),
        after: Some(object(after, 4)),
    });
    insta::assert_snapshot!(draw(&[change]), @r#"
    --- AppRole/payments-api (generation 3)
    +++ AppRole/payments-api
    -spec.grants[0].path: "payments/*"
    +spec.grants[0].path: "payments/**"
    +spec.grants[1].allow: []
    +spec.grants[1].path: "shared/x"
    -spec.lease.ttl: "1h"
    "#);
}

#[test]
fn a_new_object_shows_all_its_fields() {
    let change = view(&ObjectChange {
        change: ChangeKind::Created.into(),
        before: None,
        after: Some(object(r#"{"bind":[]}"#, 1)),
    });
    insta::assert_snapshot!(draw(&[change]), @r"
    --- (none)
    +++ AppRole/payments-api
    +spec.bind: []
    ");
}

#[test]
fn a_change_of_invisible_characters_shows() {
    let change = view(&ObjectChange {
        change: ChangeKind::Changed.into(),
        before: Some(object(r#"{"description":"money"}"#, 1)),
        after: Some(object("{\"description\":\"money\u{202e}\u{9b}2J\"}", 2)),
    });
    insta::assert_snapshot!(draw(&[change]), @r#"
    --- AppRole/payments-api (generation 1)
    +++ AppRole/payments-api
    -spec.description: "money"
    +spec.description: "money\u202e\u009b2J"
    "#);
}

#[test]
fn an_object_that_stays_has_no_field_changes() {
    let change = view(&ObjectChange {
        change: ChangeKind::Unchanged.into(),
        before: Some(object(r#"{"a":1,"b":2}"#, 1)),
        after: Some(object(r#"{"b":2,"a":1}"#, 1)),
    });
    assert!(change.fields.is_empty());
    assert_eq!(change.change, "unchanged");
}
