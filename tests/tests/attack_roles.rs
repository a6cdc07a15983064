//! Lists, wildcards and values that would reach what no grant names: rows 06 and 08 of docs/attacks.md.

use keyfold::client::Client;
use keyfold_proto::keyfold::v1::{
    ChangeVersionsRequest, Field, GetSecretHistoryRequest, GetSecretRequest, ListSecretsRequest,
    ListSecretsResponse, PutSecretRequest, RollbackSecretRequest,
};
use keyfold_tests::{People, World};
use serde_json::{Value, json};
use tonic::{Code, Status};

const SECRETS: [&str; 6] = ["pay/db", "payments/db", "payments/eu/db", "payments2/db", "shop/db", "zoo/db"];

/// With each of `SECRETS`, each in its keyspace.
async fn world() -> (World, People) {
    filled(World::start().await).await
}

async fn filled(world: World) -> (World, People) {
    for path in SECRETS {
        let keyspace = path.split('/').next().unwrap();
        world.server.apply("Keyspace", keyspace, &json!({})).await.unwrap();
        world.put(path, &[("password", "first")]).await;
    }
    let people = People::join(&world.server, world.folder.path()).await;
    (world, people)
}

/// Somebody whose only role has these grants.
async fn granted(world: &World, people: &People, name: &str, grants: Value) -> Client {
    let role = json!({"bind": [{"issuer": "people", "claims": {"sub": [name]}}], "grants": grants});
    world.server.apply("OperatorRole", name, &role).await.unwrap();
    people.operator_named(name, &[])
}

async fn list(
    client: &Client,
    prefix: &str,
    page_size: u32,
    page_token: &str,
) -> Result<ListSecretsResponse, Status> {
    let request = ListSecretsRequest { prefix: prefix.into(), page_size, page_token: page_token.into() };
    Ok(client.secrets().list_secrets(request).await?.into_inner())
}

fn paths(page: &ListSecretsResponse) -> Vec<&str> {
    page.secrets.iter().map(|secret| secret.path.as_str()).collect()
}

fn code<T>(answer: Result<T, Status>) -> Code {
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_06_a_list_shows_nothing_beyond_its_grant() {
    let (world, people) = world().await;
    let grants = json!([{"path": "payments/*", "allow": ["list"]}]);
    let lister = granted(&world, &people, "lister", grants).await;
    assert_eq!(paths(&list(&lister, "", 0, "").await.unwrap()), ["payments/db"]);
    assert_eq!(paths(&list(&lister, "payments", 1, "").await.unwrap()), ["payments/db"]);

    let prefixes = ["", "pay", "payments", "payments/eu", "payments2", "shop", "zoo", "none"];
    let tokens = ["", "a", "payments", "payments/db", "payments/eu", "shop/zzz", "zoo", "%", "~", "'"];
    for prefix in prefixes {
        for page_size in [0, 1, 2, 1000] {
            for token in tokens {
                let page = list(&lister, prefix, page_size, token).await.unwrap();
                let (found, next) = (paths(&page), page.next_page_token.as_str());
                assert!(
                    found.iter().all(|path| *path == "payments/db"),
                    "{prefix} {page_size} {token}: {found:?}"
                );
                assert!(["", "payments/db"].contains(&next), "{prefix} {page_size} {token}: {next}");
            }
        }
    }
    for page_size in [1001, u32::MAX] {
        assert_eq!(code(list(&lister, "", page_size, "").await), Code::InvalidArgument);
    }
}

/// However many other secrets lie between, the token of the next page names none of them. They are written past the
/// server, to have that many, without a MAC: nothing reads them, and no scrub comes in the test's time.
#[tokio::test(flavor = "multi_thread")]
async fn attack_06_a_page_token_names_no_secret_beyond_the_grant() {
    let (world, people) = filled(World::configured("integrity: {scrub_secs: 86400}\n", "").await).await;
    world.database.sql(
        "INSERT INTO secrets (id, keyspace_id, path, newest_version, created_at)
             SELECT gen_random_uuid(), o.id, 'payments2/hidden-' || lpad(n::text, 6, '0'), 1, now()
             FROM generate_series(1, 20500) n, objects o WHERE o.kind = 'Keyspace' AND o.name = 'payments2';
         INSERT INTO secret_versions (secret_id, version, payload, created_at, created_by, generation, mac)
             SELECT id, 1, ''::bytea, now(), 'nobody', 1, ''::bytea FROM secrets WHERE path LIKE 'payments2/hidden-%'",
    );
    let grants = json!([
        {"path": "payments/*", "allow": ["list"]},
        {"path": "payments2/*", "allow": ["read"]},
        {"path": "shop/**", "allow": ["list"]},
    ]);
    let lister = granted(&world, &people, "lister", grants).await;
    let (mut found, mut token) = (Vec::new(), String::new());
    loop {
        let page = list(&lister, "", 0, &token).await.unwrap();
        found.extend(page.secrets.into_iter().map(|secret| secret.path));
        token = page.next_page_token;
        assert!(!token.contains("payments2"), "{token}");
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(found, ["payments/db", "shop/db"]);
    let all = granted(&world, &people, "all", json!([{"path": "payments2/**", "allow": ["list"]}])).await;
    assert_eq!(list(&all, "payments2", 1000, "").await.unwrap().secrets.len(), 1000, "they can be listed");
}

/// Each capability is one operation's and no other's.
#[tokio::test(flavor = "multi_thread")]
async fn attack_06_a_capability_on_a_path_is_no_other_capability_and_no_other_path() {
    let (world, people) = world().await;
    for path in ["payments/db", "payments/eu/db"] {
        world.put(path, &[("password", "second")]).await;
    }
    // What each capability allows, out of all that could be done to a secret.
    let allowed = [
        ("read", &["get"][..]),
        ("list", &["history", "list"]),
        ("write", &["put", "rollback"]),
        ("delete", &["delete", "undelete"]),
        ("manage", &["destroy"]),
    ];
    for (capability, allowed) in allowed {
        let grants = json!([{"path": "payments/*", "allow": [capability]}]);
        let client = granted(&world, &people, capability, grants).await;
        for path in ["payments/db", "payments/eu/db", "payments2/db"] {
            for (operation, answer) in everything(&client, path).await {
                let expected = match operation {
                    "list" if allowed.contains(&"list") => Code::Ok,
                    _ if path == "payments/db" && allowed.contains(&operation) => Code::Ok,
                    _ => Code::PermissionDenied,
                };
                assert_eq!(code(answer.clone()), expected, "{capability}: {operation} {path}: {answer:?}");
            }
        }
    }
}

async fn everything(client: &Client, path: &str) -> Vec<(&'static str, Result<(), Status>)> {
    let path = path.to_owned();
    let mut secrets = client.secrets();
    let change = || ChangeVersionsRequest { path: path.clone(), versions: vec![1] };
    let field = Field { name: "password".into(), value: b"another".into() };
    let put = PutSecretRequest { path: path.clone(), fields: vec![field], expected_version: None };
    let prefix = path.split('/').next().unwrap().to_owned();
    let list = ListSecretsRequest { prefix, ..Default::default() };
    vec![
        ("get", secrets.get_secret(GetSecretRequest { path: path.clone(), version: None }).await.map(drop)),
        (
            "history",
            secrets.get_secret_history(GetSecretHistoryRequest { path: path.clone() }).await.map(drop),
        ),
        ("list", secrets.list_secrets(list).await.map(drop)),
        ("put", secrets.put_secret(put).await.map(drop)),
        (
            "rollback",
            secrets.rollback_secret(RollbackSecretRequest { path: path.clone(), version: 2 }).await.map(drop),
        ),
        ("delete", secrets.delete_versions(change()).await.map(drop)),
        ("undelete", secrets.undelete_versions(change()).await.map(drop)),
        ("destroy", secrets.destroy_versions(change()).await.map(drop)),
    ]
}

/// Names that Kubernetes never gives, in rightly signed tokens: whoever signs them has an issuer of their own, and gets
/// no more by it than by a plain name.
#[tokio::test(flavor = "multi_thread")]
async fn attack_08_a_name_that_looks_like_a_pattern_gets_nothing_more() {
    let world = World::start().await;
    world.server.apply("Keyspace", "shared", &json!({})).await.unwrap();
    for path in ["shared/team-a/db", "shared/team-b/db", "shared/team/db", "shared/x/team-a/db"] {
        world.put(path, &[("password", path)]).await;
    }
    let bind = json!([{"issuer": "dev", "namespaces": ["team-*"], "serviceAccounts": ["*"]}]);
    let role = json!({"bind": bind, "grants": [{"path": "shared/{namespace}/**", "allow": ["read"]}]});
    world.server.apply("AppRole", "teams", &role).await.unwrap();
    let own = json!([{"issuer": "dev", "namespaces": ["team-a"], "serviceAccounts": ["api"]}]);
    let role =
        json!({"bind": own, "grants": [{"path": "shared/{namespace}/{serviceAccount}", "allow": ["read"]}]});
    world.server.apply("AppRole", "team", &role).await.unwrap();

    let pod = world.pod("team-a", "api", "api-0");
    let ask = async |namespace: &str, account: &str, role: &str, path: &str| {
        let token = world.changed_token(&pod, |claims| {
            claims["sub"] = json!(format!("system:serviceaccount:{namespace}:{account}"));
            claims["kubernetes.io"]["namespace"] = json!(namespace);
            claims["kubernetes.io"]["serviceaccount"]["name"] = json!(account);
        });
        world.issue_with(&token, role, path).await
    };
    assert_eq!(ask("team-a", "api", "teams", "shared/team-a/db").await.unwrap(), "shared/team-a/db");
    for (namespace, account) in [
        ("*", "api"),
        ("team-*", "api"),
        ("team-?", "api"),
        ("team-a/db", "api"),
        ("team-a,team-b", "api"),
        ("{namespace}", "api"),
        ("**", "api"),
        ("team-a/..", "api"),
        ("Team-a", "api"),
        ("team-a.", "api"),
        ("team-{a,b}", "api"),
        ("team-a", "*"),
        ("team-a", "**"),
        ("team-a", "../team-b"),
        ("team-a", "{serviceAccount}"),
        ("team-a", "API"),
        ("x:team-a", "api"),
        ("team-a", "api:x"),
    ] {
        for role in ["teams", "team", ""] {
            for path in ["shared/team-a/db", "shared/team-b/db", "shared/team/db", "shared/x/team-a/db"] {
                let refused = ask(namespace, account, role, path).await;
                let code = code(refused.clone());
                assert!(
                    matches!(code, Code::PermissionDenied | Code::Unauthenticated),
                    "{namespace} {account} {role} {path}: {refused:?}"
                );
            }
        }
    }
    // A plain namesake of a glob's fixed part is none of those that it stands for.
    for namespace in ["team", "steam-a", "xteam-a", "team.a"] {
        assert_eq!(code(ask(namespace, "api", "teams", "shared/team/db").await), Code::PermissionDenied);
    }
}

/// A claim binds by its exact values, whatever they look like; nothing in it is a list, a pattern or a number.
#[tokio::test(flavor = "multi_thread")]
async fn attack_08_a_claim_that_looks_like_a_pattern_or_a_list_binds_nobody() {
    let (world, people) = world().await;
    for (name, value) in [("platform", "platform"), ("everybody", "*"), ("flag", "true"), ("number", "7")] {
        let bind = json!([{"issuer": "people", "claims": {"groups": [value]}}]);
        let role = json!({"bind": bind, "grants": [{"path": "payments/*", "allow": ["read"]}]});
        world.server.apply("OperatorRole", name, &role).await.unwrap();
    }
    let now = keyfold_tests::attacker::claims_of(&people.token("mallory", &[]));
    let ask = async |groups: &Value| {
        let mut claims = now.clone();
        claims["groups"] = groups.clone();
        world.read_with(&people.token_of(&claims), "payments/db").await
    };
    for good in [json!("platform"), json!(["staff", "platform"]), json!("*"), json!(true)] {
        assert_eq!(ask(&good).await.unwrap(), "first", "{good}");
    }
    for bad in [
        json!("plat*"),
        json!("**"),
        json!("platform,staff"),
        json!("staff platform"),
        json!("Platform"),
        json!("platform "),
        json!(["platform\u{0}"]),
        json!("p\u{43b}atform"),
        json!([["platform"]]),
        json!({"platform": true}),
        json!([{"name": "platform"}]),
        json!(7),
        json!([true]),
        json!(null),
        json!([]),
        json!(""),
    ] {
        let status = ask(&bad).await.expect_err("bound");
        let reason = world.database.last_reason();
        assert_eq!((status.code(), reason.as_str()), (Code::PermissionDenied, "operator-not-bound"), "{bad}");
    }
    let mut renamed = now.clone();
    for name in ["Groups", "groups ", "group", "roles", "https://people/groups"] {
        renamed[name] = json!("platform");
    }
    let status = world.read_with(&people.token_of(&renamed), "payments/db").await.expect_err("bound");
    assert_eq!(status.code(), Code::PermissionDenied, "claims of similar names");
}
