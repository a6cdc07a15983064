use super::*;

#[test]
fn keys_show_state_and_how_much_they_wrap() {
    let key = |version, state: &str, wrapped_deks| {
        KeyView::from(Key {
            keyspace: "payments".into(),
            purpose: "data".into(),
            version,
            state: state.into(),
            id: "6e1c".into(),
            created_at: Some(prost_types::Timestamp { seconds: 1_767_225_600, nanos: 5 }),
            deactivated_at: None,
            wrapped_deks,
        })
    };
    insta::assert_snapshot!(draw(&[key(2, "active", 14), key(1, "deactivated", 0)]), @r"
    KEYSPACE  PURPOSE  VERSION  STATE        DATA KEYS  CREATED               DEACTIVATED
    payments  data     2        active       14         2026-01-01T00:00:00Z  -
    payments  data     1        deactivated  0          2026-01-01T00:00:00Z  -
    ");
}

#[test]
fn a_rotation_says_what_moved() {
    let rotated = Rotated { keyspace: "payments".into(), old_version: 1, new_version: 2, rewrapped_deks: 14 };
    insta::assert_snapshot!(describe(&rotated), @"payments: key version 1 -> 2, 14 data keys rewrapped");
}
