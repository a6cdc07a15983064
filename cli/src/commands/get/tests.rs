use super::*;

fn keyspace() -> Object {
    Object {
        kind: "Keyspace".into(),
        name: "payments".into(),
        spec_json: r#"{"description":"money"}"#.into(),
        generation: 2,
        updated_at: Some(prost_types::Timestamp { seconds: 1_767_225_600, nanos: 0 }),
    }
}

#[test]
fn the_table_shows_name_generation_and_time() {
    insta::assert_snapshot!(draw(&[keyspace()]), @r"
    NAME      GENERATION  UPDATED
    payments  2           2026-01-01T00:00:00Z
    ");
}

#[test]
fn json_is_the_document_with_what_the_server_knows() {
    insta::assert_snapshot!(
        serde_json::to_string(&view(&keyspace()).unwrap()).unwrap(),
        @r#"{"apiVersion":"keyfold.dev/v1","kind":"Keyspace","metadata":{"name":"payments"},"spec":{"description":"money"},"status":{"generation":2,"updated_at":"2026-01-01T00:00:00Z"}}"#
    );
}
