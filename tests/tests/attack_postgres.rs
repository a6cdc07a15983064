//! SQL in every text that comes near Postgres, lists too long for it, and what a writer of it can do to what operators
//! declared: rows 17, 18 and 27 of docs/attacks.md. Secrets' own rows are in integrity.rs.

use keyfold::client::Client;
use keyfold_proto::keyfold::v1::{
    ApplyObjectsRequest, ChangeVersionsRequest, DeleteObjectRequest, ExplainRequest, GetObjectRequest,
    GetPlanRequest, GetSecretRequest, GetStatusRequest, IssueSecretsRequest, ListEntriesRequest,
    ListKeysRequest, ListObjectsRequest, ListSecretsRequest, Object, RotateKeyRequest, SecretReference,
    SignPlanRequest, WhoAmIRequest, workload_service_client::WorkloadServiceClient,
};
use keyfold_tests::{People, World, attacker::bearing, faults::until};
use serde_json::json;
use tonic::{Code, Status};

const ROLE: &str = "payments-api";
const DB: &str = "payments/db";

/// Each does harm where a text becomes part of a statement, or of a pattern, a list, an array's or a JSON's text.
const TEXTS: [&str; 12] = [
    "'; DROP TABLE secrets CASCADE; --",
    "' OR '1'='1",
    "payments' UNION SELECT payload FROM secret_versions --",
    "$1",
    "$$; DELETE FROM objects; $$",
    "\\'; DROP TABLE objects; --",
    "E'\\x00'",
    "{payments/db,shop/db}",
    "%",
    "_ayments",
    "{\"kind\": \"Issuer\"}",
    "\u{ff07}; DROP TABLE secrets; --",
];

fn code<T>(answer: Result<T, Status>) -> Code {
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

async fn page(client: &Client, filter: ListEntriesRequest) -> usize {
    client.audit().list_entries(filter).await.unwrap().into_inner().entries.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_17_sql_in_a_text_is_a_text() {
    let world = World::start().await.with_payments().await;
    let people = People::join(&world.server, world.folder.path()).await;
    let operator = world.operator();
    let stored = || {
        world.database.sql(
            "SELECT kind, name, spec FROM objects UNION ALL SELECT 'secret', path, newest_version::text FROM secrets
             ORDER BY 1, 2",
        )
    };
    let before = stored();
    let (mut secrets, mut config, mut keys) = (operator.secrets(), operator.config(), operator.keys());
    for text in TEXTS {
        let is_answer = |what: &str, code: Code| {
            let expected = [Code::InvalidArgument, Code::NotFound, Code::Ok, Code::PermissionDenied];
            assert!(expected.contains(&code), "{what} {text:?}: {code:?}");
        };
        let list = ListSecretsRequest { prefix: text.into(), ..Default::default() };
        is_answer("prefix", code(secrets.list_secrets(list).await));
        let list = ListSecretsRequest { prefix: "shop".into(), page_size: 0, page_token: text.into() };
        assert!(secrets.list_secrets(list).await.unwrap().into_inner().secrets.is_empty(), "{text:?}");
        for filter in [
            ListEntriesRequest { operation: text.into(), ..Default::default() },
            ListEntriesRequest { actor: text.into(), ..Default::default() },
            ListEntriesRequest { path: text.into(), ..Default::default() },
        ] {
            assert_eq!(page(&operator, filter).await, 0, "{text:?}");
        }
        let get = |kind: &str, name: &str| GetObjectRequest { kind: kind.into(), name: name.into() };
        is_answer("kind", code(config.get_object(get(text, "payments")).await));
        assert_eq!(code(config.get_object(get("Keyspace", text)).await), Code::NotFound, "{text:?}");
        is_answer("list", code(config.list_objects(ListObjectsRequest { kind: text.into() }).await));
        let delete = DeleteObjectRequest { kind: "Keyspace".into(), name: text.into() };
        assert_eq!(code(config.delete_object(delete).await), Code::NotFound, "{text:?}");
        let listed = keys.list_keys(ListKeysRequest { keyspace: text.into() }).await;
        assert!(listed.map_or(true, |listed| listed.into_inner().keys.is_empty()), "{text:?}");
        is_answer(
            "rotate",
            code(keys.rotate_key(RotateKeyRequest { keyspace: text.into(), ..Default::default() }).await),
        );
        is_answer("plan", code(operator.approvals().get_plan(GetPlanRequest { id: text.into() }).await));
        let sign = SignPlanRequest { id: text.into(), signature: text.as_bytes().to_vec() };
        is_answer("sign", code(operator.approvals().sign_plan(sign).await));
        let explain = ExplainRequest {
            issuer: text.into(),
            namespace: text.into(),
            service_account: text.into(),
            pod: None,
            role: text.into(),
            path: DB.into(),
        };
        is_answer("explain", code(operator.policy().explain(explain).await));

        // In rightly signed claims, and where no token proves anything.
        let pod = world.changed_token(&world.pod("payments", "api", "api-0"), |claims| {
            claims["sub"] = json!(format!("system:serviceaccount:{text}:api"));
            claims["kubernetes.io"]["namespace"] = json!(text);
            claims["kubernetes.io"]["pod"]["name"] = json!(text);
            claims["jti"] = json!(text);
        });
        is_answer("pod", code(world.issue_with(&pod, text, DB).await).unauthenticated_as_denied());
        let person = people.token(text, &[text]);
        is_answer("person", code(world.read_with(&person, DB).await).unauthenticated_as_denied());
    }
    assert_eq!(stored(), before);
    assert_eq!(
        world.issue_with(&world.token(&world.pod("payments", "api", "api-0")).jwt, ROLE, DB).await.unwrap(),
        "first"
    );
    assert!(!world.logs().contains("syntax error"), "no statement was made of a text");
    world.database.check_audit_log();
}

trait AsAnswer {
    fn unauthenticated_as_denied(self) -> Code;
}

impl AsAnswer for Code {
    /// A subject that no name can be is refused with the token.
    fn unauthenticated_as_denied(self) -> Code {
        if self == Code::Unauthenticated { Code::PermissionDenied } else { self }
    }
}

/// Postgres's protocol counts parameters, and its arrays' elements, in numbers that can overflow.
#[tokio::test(flavor = "multi_thread")]
async fn attack_17_lists_and_texts_too_long_for_postgres_are_refused_before_it_sees_them() {
    let world = World::start().await.with_payments().await;
    let operator = world.operator();
    for count in [101, 65_535, 65_536, 70_000, 150_000] {
        let versions = (0..count).map(|n| 1 + n % 120).collect();
        let request = ChangeVersionsRequest { path: DB.into(), versions };
        let refused = operator.secrets().delete_versions(request).await;
        assert!(matches!(code(refused), Code::InvalidArgument | Code::OutOfRange | Code::ResourceExhausted));
    }
    for count in [257, 20_000] {
        let object = |n| Object {
            kind: "Keyspace".into(),
            name: format!("k{n}"),
            spec_json: "{}".into(),
            ..Object::default()
        };
        let request = ApplyObjectsRequest { objects: (0..count).map(object).collect(), dry_run: false };
        assert_eq!(code(operator.config().apply_objects(request).await), Code::InvalidArgument, "{count}");
    }
    let token = world.token(&world.pod("payments", "api", "api-0")).jwt.to_string();
    for count in [65, 5_000] {
        let item = |n| SecretReference { path: format!("payments/{n}"), optional: true };
        let message = IssueSecretsRequest {
            pod_token: token.clone(),
            role: ROLE.into(),
            items: (0..count).map(item).collect(),
        };
        let mut workload = WorkloadServiceClient::new(world.channel());
        let refused = workload.issue_secrets(bearing(&world.driver_token(), message)).await;
        assert_eq!(code(refused), Code::InvalidArgument, "{count}");
    }
    let long = "a".repeat(7 * 1024);
    let filter = ListEntriesRequest { actor: long.clone(), path: long.clone(), ..Default::default() };
    assert_eq!(page(&operator, filter).await, 0, "a long filter matches nothing");
    for (prefix, page_token) in [(long.clone(), String::new()), ("payments".into(), "p".repeat(900 * 1024))] {
        let list = ListSecretsRequest { prefix, page_size: 0, page_token };
        let done = code(operator.secrets().list_secrets(list).await);
        assert!(matches!(done, Code::InvalidArgument | Code::Ok), "{done:?}");
    }
    assert_eq!(world.issue_with(&token, ROLE, DB).await.unwrap(), "first", "the server serves");
    assert_eq!(world.database.sql("SELECT count(*) FROM secret_versions WHERE deleted_at IS NOT NULL"), "0");
}

/// Whose right it is does not matter: what is not as it was written could be anything, also a guard.
#[tokio::test(flavor = "multi_thread")]
async fn attack_18_a_role_whose_row_was_damaged_gives_nothing_to_anybody() {
    let world = World::start().await.with_payments().await;
    let people = People::join(&world.server, world.folder.path()).await;
    let grants = json!([{"path": "payments/*", "allow": ["read"]}]);
    let bind = json!([{"issuer": "dev", "namespaces": ["payments"], "serviceAccounts": ["other"]}]);
    world.server.apply("AppRole", "other", &json!({"bind": bind, "grants": grants})).await.unwrap();
    let bind = json!([{"issuer": "people", "claims": {"sub": ["alice"]}}]);
    world.server.apply("OperatorRole", "alices", &json!({"bind": bind, "grants": grants})).await.unwrap();
    let (pod, alice) = (world.token(&world.pod("payments", "api", "api-0")).jwt, people.token("alice", &[]));
    let other = world.token(&world.pod("payments", "other", "other-0")).jwt;
    let entries = || world.database.sql("SELECT count(*) FROM audit_entries WHERE operation LIKE 'secret.%'");
    for (n, damaged) in [
        "'{'",
        "''",
        "'null'",
        "'[]'",
        "replace(spec, '\"grants\"', '\"grant\"')",
        "replace(spec, '\"bind\":[', '\"bind\":[{},')",
        "replace(spec, 'payments/*', '**')",
        "replace(spec, 'payments/*', '*/db')",
        "replace(spec, '\"read\"', '\"*\"')",
        "'\"' || spec || '\"'",
    ]
    .into_iter()
    .enumerate()
    {
        until("all is well", async || world.issue_with(&pod, ROLE, DB).await.is_ok()).await;
        assert_eq!(world.read_with(&alice, DB).await.unwrap(), "first");
        let of = "WHERE name IN ('payments-api', 'alices')";
        world.database.sql(&format!(
            "CREATE TABLE kept_{n} AS SELECT id, spec FROM objects {of}; \
                                     UPDATE objects SET spec = {damaged} {of}"
        ));
        until("the damage is seen", async || world.issue_with(&pod, ROLE, DB).await.is_err()).await;
        let before = entries();
        for refused in [
            world.issue_with(&pod, ROLE, DB).await,
            world.read_with(&alice, DB).await,
            world.issue_with(&other, "other", DB).await,
        ] {
            // Unavailable, once the replica has looked at everything.
            assert!(matches!(code(refused), Code::DataLoss | Code::Unavailable), "{damaged}");
        }
        assert_eq!(entries(), before, "nothing was decided");
        world.database.sql(&format!("UPDATE objects o SET spec = k.spec FROM kept_{n} k WHERE k.id = o.id"));
        until("it is mended", async || world.read_with(&alice, DB).await.is_ok()).await;
    }
    assert!(world.logs().contains("does not fit its MAC"), "who runs the server is told");
}

/// Rules guard; one that cannot be read, or is not there, must not be taken for none.
#[tokio::test(flavor = "multi_thread")]
async fn attack_18_an_approval_rule_that_cannot_be_read_guards_everything() {
    let world = World::start().await.with_payments().await;
    let key = "A".repeat(43) + "=";
    let approvers = ["people/alice", "people/bob"].map(|name| json!({"operator": name, "publicKey": key}));
    let rule = json!({"operations": ["secret.destroy"], "approvers": approvers});
    world.server.apply("ApprovalRule", "two-persons", &rule).await.unwrap();
    let destroy = async || {
        let request = ChangeVersionsRequest { path: DB.into(), versions: vec![1] };
        code(world.operator().secrets().destroy_versions(request).await)
    };
    assert_eq!(destroy().await, Code::FailedPrecondition, "the rule guards");
    world.database.sql("CREATE TABLE kept AS TABLE objects");
    for sql in [
        "UPDATE objects SET spec = '{' WHERE kind = 'ApprovalRule'",
        "DELETE FROM objects WHERE kind = 'ApprovalRule'",
    ] {
        world.database.sql(sql);
        until("the damage is seen", async || destroy().await != Code::FailedPrecondition).await;
        for _ in 0..3 {
            assert!(matches!(destroy().await, Code::DataLoss | Code::Unavailable), "{sql}");
        }
        world.database.sql(
            "DELETE FROM objects WHERE kind = 'ApprovalRule';
             INSERT INTO objects SELECT * FROM kept WHERE kind = 'ApprovalRule'",
        );
        until("it is mended", async || destroy().await == Code::FailedPrecondition).await;
    }
    let destroyed = "SELECT count(*) FROM secret_versions WHERE destroyed_at IS NOT NULL";
    assert_eq!(world.database.sql(destroyed), "0");
}

/// After a failover to a standby that was behind, or a restore, the revision can stand where it stood before with other
/// objects under it. What a replica holds then is old, and must allow nothing.
#[tokio::test(flavor = "multi_thread")]
async fn attack_18_rights_that_are_gone_allow_nothing_though_the_revision_says_that_nothing_changed() {
    let world = World::start().await.with_payments().await;
    let people = People::join(&world.server, world.folder.path()).await;
    let bind = json!([{"issuer": "people", "claims": {"sub": ["alice"]}}]);
    world.server.apply("OperatorRole", "alices", &json!({"builtIn": "admin", "bind": bind})).await.unwrap();
    let (pod, alice) =
        (world.token(&world.pod("payments", "api", "api-0")).jwt, people.operator_named("alice", &[]));
    let read = async || {
        let request = GetSecretRequest { path: DB.into(), version: None };
        alice.secrets().get_secret(request).await.map(drop)
    };
    let rotate = async || {
        alice
            .keys()
            .rotate_key(RotateKeyRequest { keyspace: "payments".into(), ..Default::default() })
            .await
            .map(drop)
    };
    let apply = async || {
        let spec_json = json!({"description": "alice was here"}).to_string();
        let object =
            Object { kind: "Keyspace".into(), name: "alices".into(), spec_json, ..Object::default() };
        let request = ApplyObjectsRequest { objects: vec![object], dry_run: false };
        alice.config().apply_objects(request).await.map(drop)
    };
    read().await.unwrap();
    rotate().await.unwrap();
    world.issue_with(&pod, ROLE, DB).await.unwrap();
    let revision = world.database.sql("SELECT revision FROM object_revision");
    world.database.sql(
        "BEGIN; DELETE FROM objects WHERE name IN ('alices', 'payments-api');
         UPDATE object_revision SET revision = revision - 1; COMMIT",
    );
    assert_eq!(
        world.database.sql("SELECT revision FROM object_revision"),
        revision,
        "as the replica knows it"
    );
    let keks = world.database.sql("SELECT count(*) FROM keks");
    for _ in 0..3 {
        assert_eq!(code(world.issue_with(&pod, ROLE, DB).await), Code::Aborted, "a pod");
        assert_eq!(code(read().await), Code::Aborted, "a read");
        assert_eq!(code(rotate().await), Code::Aborted, "a rotation");
        assert_eq!(code(apply().await), Code::Aborted, "an apply");
    }
    assert_eq!(world.database.sql("SELECT count(*) FROM keks"), keks);
    assert_eq!(world.database.sql("SELECT count(*) FROM objects WHERE name = 'alices'"), "0");
    // When the replica looks, what is left does not come to what was last written.
    world.database.sql("UPDATE object_revision SET revision = revision + 1");
    let code_of_pod = async || code(world.issue_with(&pod, ROLE, DB).await);
    until("it looks", async || code_of_pod().await != Code::Aborted).await;
    assert!(matches!(code_of_pod().await, Code::DataLoss | Code::Unavailable));
    assert!(matches!(code(apply().await), Code::DataLoss | Code::Unavailable));
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_18_without_a_revision_nothing_is_decided() {
    let world = World::start().await.with_payments().await;
    let pod = world.token(&world.pod("payments", "api", "api-0")).jwt;
    world.issue_with(&pod, ROLE, DB).await.unwrap();
    world
        .database
        .sql("CREATE TABLE kept AS SELECT revision FROM object_revision; DELETE FROM object_revision");
    until("it is missed", async || world.issue_with(&pod, ROLE, DB).await.is_err()).await;
    let refused = world.issue_with(&pod, ROLE, DB).await.unwrap_err();
    assert!(matches!(refused.code(), Code::Internal | Code::Unavailable | Code::DataLoss), "{refused:?}");
    let who_am_i = async || world.operator().system().who_am_i(WhoAmIRequest {}).await;
    until("what is held is too old", async || who_am_i().await.is_err()).await;
    world.database.sql("INSERT INTO object_revision (revision) SELECT revision FROM kept");
    until("it is back", async || world.issue_with(&pod, ROLE, DB).await.is_ok()).await;
    world.operator().system().get_status(GetStatusRequest {}).await.unwrap();
}
