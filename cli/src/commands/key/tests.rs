use super::{
    rotate::{Rotated, describe},
    *,
};

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
            wrapped_deks,
            ..Default::default()
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
    let rotated = |keyspace: &str, purpose: &str, pending_deks| Rotated {
        keyspace: keyspace.into(),
        purpose: purpose.into(),
        old_version: 1,
        new_version: 2,
        rewrapped_deks: 14,
        pending_deks,
    };
    insta::assert_snapshot!(describe(&rotated("payments", "data", 0)), @"payments: key version 1 -> 2, 14 data keys rewrapped");
    insta::assert_snapshot!(describe(&rotated("payments", "data", 5)), @"payments: key version 1 -> 2, 14 data keys rewrapped, 5 to go: keyfold key status payments");
    insta::assert_snapshot!(describe(&rotated("", "row-mac", 0)), @"the installation's row-mac key: key version 1 -> 2");
}
