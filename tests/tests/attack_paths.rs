//! Other spellings of paths and names, at every operation that takes one: row 07 of docs/attacks.md.

use keyfold::client::Client;
use keyfold_proto::keyfold::v1::{
    ApplyObjectsRequest, ChangeVersionsRequest, DeleteObjectRequest, ExplainRequest, Field, GetObjectRequest,
    GetSecretHistoryRequest, GetSecretRequest, ListEntriesRequest, ListKeysRequest, ListSecretsRequest,
    Object, PutSecretRequest, RollbackSecretRequest, RotateKeyRequest,
};
use keyfold_tests::{Cli, World};
use tonic::{Code, Status};

const ROLE: &str = "payments-api";

/// What somebody, somewhere, would take for `payments/db`, or for a place outside of it.
const SPELLINGS: [&str; 31] = [
    "",
    "/",
    "payments",
    "payments/",
    "/payments/db",
    "payments/db/",
    "payments//db",
    "payments/./db",
    "payments/../payments/db",
    "payments/x/../db",
    "../payments/db",
    "payments/..",
    "payments/%64b",
    "payments%2fdb",
    "payments%2Fdb",
    "payments/%2e%2e/db",
    "payments/db\0",
    "payments/\0/db",
    "payments/db\n",
    " payments/db",
    "payments/db ",
    "Payments/db",
    "payments/DB",
    "payments\\db",
    "payments/db?version=1",
    "payments/db#1",
    "payments/*",
    "payments/{namespace}",
    // A Cyrillic a and a fullwidth solidus; a zero-width space; a fullwidth letter.
    "p\u{430}yments/db",
    "payments/d\u{200b}b",
    "payments\u{ff0f}db",
];

fn too_deep() -> String {
    ["payments"; 9].join("/")
}

fn too_long() -> String {
    format!("payments/{}", "d".repeat(129))
}

fn explain(path: &str) -> ExplainRequest {
    ExplainRequest {
        issuer: "dev".into(),
        namespace: "payments".into(),
        service_account: "api".into(),
        pod: None,
        role: ROLE.into(),
        path: path.into(),
    }
}

/// How every operation that takes a path answers to `path`.
async fn by_operators(operator: &Client, path: &str) -> Vec<(&'static str, Result<(), Status>)> {
    let field = Field { name: "password".into(), value: b"overwritten".into() };
    let path = path.to_owned();
    let change = |versions: &[u32]| ChangeVersionsRequest { path: path.clone(), versions: versions.to_vec() };
    let (mut secrets, mut policy) = (operator.secrets(), operator.policy());
    let put = PutSecretRequest { path: path.clone(), fields: vec![field], expected_version: None };
    let get = GetSecretRequest { path: path.clone(), version: None };
    let history = GetSecretHistoryRequest { path: path.clone() };
    let rollback = RollbackSecretRequest { path: path.clone(), version: 1 };
    vec![
        ("put", secrets.put_secret(put).await.map(drop)),
        ("get", secrets.get_secret(get).await.map(drop)),
        ("history", secrets.get_secret_history(history).await.map(drop)),
        ("rollback", secrets.rollback_secret(rollback).await.map(drop)),
        ("delete", secrets.delete_versions(change(&[1])).await.map(drop)),
        ("undelete", secrets.undelete_versions(change(&[1])).await.map(drop)),
        ("destroy", secrets.destroy_versions(change(&[1])).await.map(drop)),
        ("explain", policy.explain(explain(&path)).await.map(drop)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_07_no_operation_takes_another_spelling_of_a_path() {
    let world = World::start().await.with_payments().await;
    world.put("payments/db", &[("password", "second")]).await;
    let operator = world.operator();
    let token = world.token(&world.pod("payments", "api", "api-0"));
    let stored = || world.database.sql("SELECT path, newest_version FROM secrets");
    let before = stored();
    let (deep, long) = (too_deep(), too_long());
    for path in SPELLINGS.iter().copied().chain([deep.as_str(), &long]) {
        let answers = by_operators(&operator, path).await;
        let issued = world.issue_with(&token.jwt, ROLE, path).await.map(drop);
        for (what, answer) in answers.into_iter().chain([("issue", issued)]) {
            let code = answer.as_ref().map_or_else(Status::code, |()| Code::Ok);
            assert_eq!(code, Code::InvalidArgument, "{what} {path:?}: {answer:?}");
        }
    }
    assert_eq!(stored(), before, "nothing was written");
    for (what, answer) in by_operators(&operator, "payments/db").await {
        assert!(answer.is_ok(), "the one spelling: {what}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_07_a_prefix_is_whole_segments_and_no_pattern() {
    let world = World::start().await.with_payments().await;
    world.put("payments/eu/db", &[("password", "x")]).await;
    let list = async |prefix: &str, page_token: &str| {
        let request =
            ListSecretsRequest { prefix: prefix.into(), page_size: 0, page_token: page_token.into() };
        let found = world.operator().secrets().list_secrets(request).await?.into_inner();
        Ok::<_, Status>(found.secrets.into_iter().map(|secret| secret.path).collect::<Vec<_>>())
    };
    assert_eq!(list("payments", "").await.unwrap(), ["payments/db", "payments/eu/db"]);
    assert_eq!(list("payments/eu", "").await.unwrap(), ["payments/eu/db"]);
    for none in ["pay", "payment", "paymentss", "p_yments", "payments/e", "payments/db", "aux"] {
        assert_eq!(list(none, "").await.unwrap(), [""; 0], "{none}");
    }
    for bad in [
        "payments/",
        "/",
        "/payments",
        "Payments",
        "pay%",
        "*",
        "payments/*",
        "payments/..",
        "..",
        "p\0",
        " ",
    ] {
        assert_eq!(list(bad, "").await.unwrap_err().code(), Code::InvalidArgument, "{bad:?}");
    }
    // A page token moves on; it never leads out of the prefix.
    for token in ["", "a", "payments/eu", "../x", "payments/eu0", "zzz", "~", "%", "\u{430}"] {
        let found = list("payments/eu", token).await.unwrap();
        assert!(found.iter().all(|path| path == "payments/eu/db"), "{token:?}: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_07_objects_and_filters_have_one_spelling_too() {
    let world = World::start().await.with_payments().await;
    let operator = world.operator();
    let (mut config, mut keys) = (operator.config(), operator.keys());
    let names =
        ["Payments", "payments ", " payments", "payments/", "payments\n", "pay%", "../payments", "*", ""];
    for name in names.into_iter().chain(["p\u{430}yments", "payments%00", "payments\u{200b}"]) {
        let get = GetObjectRequest { kind: "Keyspace".into(), name: name.into() };
        let delete = DeleteObjectRequest { kind: "Keyspace".into(), name: name.into() };
        let object = Object {
            kind: "Keyspace".into(),
            name: name.into(),
            spec_json: "{}".into(),
            ..Object::default()
        };
        let apply = ApplyObjectsRequest { objects: vec![object], dry_run: false };
        let rotate = RotateKeyRequest { keyspace: name.into(), ..Default::default() };
        for (what, answer) in [
            ("get", config.get_object(get).await.map(drop)),
            ("delete", config.delete_object(delete).await.map(drop)),
            ("apply", config.apply_objects(apply).await.map(drop)),
            ("rotate", keys.rotate_key(rotate).await.map(drop)),
        ] {
            let code = answer.expect_err(name).code();
            assert!(matches!(code, Code::NotFound | Code::InvalidArgument), "{what} {name:?}: {code:?}");
        }
        let listed = keys.list_keys(ListKeysRequest { keyspace: name.into() }).await;
        if !name.is_empty() {
            let keys = listed.map(|listed| listed.into_inner().keys.len()).unwrap_or_default();
            assert_eq!(keys, 0, "{name:?}");
        }
    }
    for kind in ["keyspace", "KEYSPACE", "Keyspace ", "Keyspace\n", "objects", "%"] {
        let get = GetObjectRequest { kind: kind.into(), name: "payments".into() };
        assert_eq!(config.get_object(get).await.unwrap_err().code(), Code::InvalidArgument, "{kind:?}");
    }
    for (actor, path) in
        [("initial%", ""), ("Initial-administrator", ""), ("", "payments/%"), ("", "Payments/db")]
    {
        let filter = ListEntriesRequest { actor: actor.into(), path: path.into(), ..Default::default() };
        let found = operator.audit().list_entries(filter).await.unwrap().into_inner().entries;
        assert!(found.is_empty(), "{actor:?} {path:?}");
    }
    let get = GetObjectRequest { kind: "Keyspace".into(), name: "payments".into() };
    config.get_object(get).await.expect("the one spelling");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_07_the_command_line_mends_no_path() {
    let world = World::start().await.with_payments().await;
    let cli = Cli::administrator(world.server.setup(), world.folder.path());
    assert!(cli.ok("secret get payments/db --field password").contains("first"));
    cli.write("value", "overwritten");
    let before = world.database.sql("SELECT path, newest_version FROM secrets");
    for path in SPELLINGS.iter().filter(|path| !path.contains('\0')) {
        for words in [
            ["secret", "get", path, "--field", "password"].as_slice(),
            &["secret", "put", path, "--from-file", "password=value"],
            &["secret", "history", path],
            &["secret", "destroy", path, "--versions", "1", "--yes"],
        ] {
            let ran = cli.run_words(words, b"");
            assert!(ran.code != 0 && ran.out.is_empty(), "{words:?}: {} {}", ran.code, ran.out);
            assert!(!ran.err.contains("first"), "{words:?}: {}", ran.err);
        }
    }
    assert_eq!(world.database.sql("SELECT path, newest_version FROM secrets"), before);
}
