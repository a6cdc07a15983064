use keyfold_proto::keyfold::v1::StatusDetails;

use super::*;

#[test]
fn an_operator_sees_details() {
    let details = StatusDetails {
        server_version: "0.1.0".into(),
        installation_id: "6e1c".into(),
        schema_version: 3,
        root_key_id: "ab12".into(),
        audit_entries: 42,
        initial_administrator_active: true,
    };
    let view = View::from(GetStatusResponse {
        state: State::Serving.into(),
        message: String::new(),
        details: Some(details),
    });
    insta::assert_snapshot!(draw(&view), @r"
    state          serving
    version        0.1.0
    schema         3
    installation   6e1c
    root key       ab12
    audit entries  42
    ");
}

#[test]
fn anyone_sees_state_and_message() {
    let message = "run `keyfold init`".to_owned();
    let view = View::from(GetStatusResponse { state: State::Uninitialized.into(), message, details: None });
    insta::assert_snapshot!(draw(&view), @r"
    state    uninitialised
    message  run `keyfold init`
    ");
    insta::assert_snapshot!(
        serde_json::to_string(&view).unwrap(),
        @r#"{"state":"uninitialised","message":"run `keyfold init`"}"#
    );
}
