//! Who gets what: grants, bindings, node binding, issuers; and what a refusal tells, and does not tell.

use std::{sync::Arc, time::Duration};

use keyfold::dev::tokens::{AUDIENCE, SigningKey, TokenRequest};
use keyfold_core::clock::{Clock as _, SystemClock};
use keyfold_proto::keyfold::v1::{DeleteObjectRequest, IssueSecretsResponse};
use keyfold_tests::{World, faults::TableLock};
use serde_json::{Value, json};
use tonic::{Code, Status};

const ROLE: &str = "payments-api";
const DB: [(&str, bool); 1] = [("payments/db", false)];

/// With a second keyspace `other`, whose secret `other/db` the role does not grant.
async fn world() -> World {
    with_others(World::start().await).await
}

async fn with_others(world: World) -> World {
    let world = world.with_payments().await;
    world.server.apply("Keyspace", "other", &json!({})).await.unwrap();
    world.put("other/db", &[("password", "theirs")]).await;
    world
}

async fn issue(world: &World, role: &str, items: &[(&str, bool)]) -> Result<IssueSecretsResponse, Status> {
    let token = world.token(&world.pod("payments", "api", "api-0"));
    world.issue(&token.jwt, &world.driver_token(), role, items).await
}

fn paths(issued: &IssueSecretsResponse) -> Vec<&str> {
    issued.secrets.iter().map(|secret| secret.path.as_str()).collect()
}

async fn last_issue(world: &World) -> Value {
    let issued = world.audit().await.into_iter().rfind(|entry| entry["operation"]["name"] == "secret.issue");
    issued.unwrap()
}

async fn last_outcome(world: &World) -> Value {
    last_issue(world).await["outcome"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_failing_item_is_named_at_once() {
    let world = world().await;
    let secrets = "- path: payments/db\n- path: payments/none\n- {path: other/db, file: other}\n\
                   - {path: payments/eu/db, file: eu}\n- path: payments/nothing\n\
                   - {path: other/absent, optional: true}\n";
    let refused = world.publish(&world.pod("payments", "api", "api-0"), ROLE, secrets).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    insta::assert_snapshot!(refused.message(), @"payments/api-0: app role payments-api: not granted or not existing: other/db, payments/eu/db; granted, but there is no such secret: payments/none, payments/nothing");
    assert!(world.driver.mounts().is_empty());
    assert!(refused.message().ends_with(last_outcome(&world).await["message"].as_str().unwrap()));
    insta::assert_snapshot!(last_issue(&world).await["operation"], @r#"{"items":[{"path":"payments/db","rule":"payments/*"},{"path":"payments/none","rule":"payments/*"},{"path":"other/db"},{"path":"payments/eu/db"},{"path":"payments/nothing","rule":"payments/*"},{"path":"other/absent"}],"name":"secret.issue","role":"payments-api"}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_optional_item_is_left_out_whether_it_is_missing_or_not_granted() {
    let world = world().await;
    let items = [("other/db", true), ("payments/db", false), ("payments/none", true), ("other/none", true)];
    let issued = issue(&world, ROLE, &items).await.unwrap();
    assert_eq!(paths(&issued), ["payments/db"]);
    let none = issue(&world, ROLE, &[("other/db", true)]).await.unwrap();
    assert!(none.secrets.is_empty(), "not even an optional item is issued without a grant");

    let secrets = "- {path: other/db, optional: true, file: other}\n- {path: payments/none, optional: true}\n\
                   - path: payments/db\n";
    let files = world.publish(&world.pod("payments", "api", "api-0"), ROLE, secrets).await.unwrap();
    let names = std::fs::read_dir(files).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.filter(|name| !name.to_string_lossy().starts_with("..")).collect();
    names.sort();
    assert_eq!(names, ["db"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_13_a_refusal_never_tells_whether_a_secret_exists() {
    let world = world().await;
    for items in [&["PATH"][..], &["payments/db", "PATH"], &["payments/none", "PATH"]] {
        let mut told = Vec::new();
        for path in ["other/db", "other/no", "gone/db"] {
            let items: Vec<_> = items.iter().map(|item| (item.replace("PATH", path), false)).collect();
            let items: Vec<_> = items.iter().map(|(path, optional)| (path.as_str(), *optional)).collect();
            let refused = issue(&world, ROLE, &items).await.unwrap_err();
            let outcome = last_outcome(&world).await;
            assert_eq!(outcome["reason"], "not-granted");
            told.push((refused.code(), refused.message().replace(path, "PATH")));
        }
        assert!(told.windows(2).all(|pair| pair[0] == pair[1]), "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_13_a_refusal_never_tells_whether_a_role_exists() {
    let world = world().await;
    let spec = json!({
        "bind": [{"issuer": "dev", "namespaces": ["shop"], "serviceAccounts": ["api"]}],
        "grants": [{"path": "payments/*", "allow": ["read"]}],
    });
    world.server.apply("AppRole", "shop-api", &spec).await.unwrap();
    let there = issue(&world, "shop-api", &DB).await.unwrap_err();
    let not_there = issue(&world, "shop-xyz", &DB).await.unwrap_err();
    assert_eq!(there.code(), Code::PermissionDenied);
    assert_eq!(there.code(), not_there.code());
    assert_eq!(there.message().replace("shop-api", ""), not_there.message().replace("shop-xyz", ""));
    for name in ["Payments-api", "payments-api ", " payments-api", "payments-api\u{200b}"] {
        assert_eq!(issue(&world, name, &DB).await.unwrap_err().code(), Code::PermissionDenied, "{name:?}");
    }
    assert_eq!(issue(&world, "payments-api\0", &DB).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_08_a_variable_in_a_grant_is_the_pods_own_namespace() {
    let world = world().await;
    world.server.apply("Keyspace", "shared", &json!({})).await.unwrap();
    let spec = json!({
        "bind": [{"issuer": "dev", "namespaces": ["payments", "shop"], "serviceAccounts": ["api"]}],
        "grants": [{"path": "shared/{namespace}/**", "allow": ["read"]}],
    });
    world.server.apply("AppRole", "tenant", &spec).await.unwrap();
    for path in ["shared/payments/db", "shared/shop/db", "shared/shop/eu/db", "shared/db"] {
        world.put(path, &[("of", path)]).await;
    }
    let as_tenant = async |namespace: &str, path: &str| {
        let token = world.token(&world.pod(namespace, "api", "api-0"));
        let issued = world.issue(&token.jwt, &world.driver_token(), "tenant", &[(path, false)]).await;
        issued.map(|issued| String::from_utf8_lossy(&issued.secrets[0].fields[0].value).into_owned())
    };
    for path in ["shared/shop/db", "shared/shop/eu/db"] {
        assert_eq!(as_tenant("shop", path).await.unwrap(), path);
        assert_eq!(as_tenant("payments", path).await.unwrap_err().code(), Code::PermissionDenied);
    }
    assert_eq!(as_tenant("payments", "shared/payments/db").await.unwrap(), "shared/payments/db");
    assert_eq!(as_tenant("shop", "shared/db").await.unwrap_err().code(), Code::PermissionDenied);
    let issued =
        world.audit().await.into_iter().rfind(|entry| entry["outcome"]["result"] == "allowed").unwrap();
    assert_eq!(issued["operation"]["items"][0]["rule"], "shared/{namespace}/**");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_05_node_binding_is_as_the_role_asks() {
    let world = world().await;
    let token_on = |node: Option<&str>| {
        let request = TokenRequest {
            namespace: "payments".into(),
            service_account: "api".into(),
            pod: Some("api-0".into()),
            node: node.map(str::to_owned),
            audience: AUDIENCE.into(),
            ttl: Duration::from_secs(600),
        };
        world.minter.mint(&request, SystemClock.now()).unwrap().jwt
    };
    let ask = async |node: Option<&str>| {
        let done = world.issue(&token_on(node), &world.driver_token(), ROLE, &DB).await;
        done.map(drop).map_err(|status| (status.code(), status.message().to_owned()))
    };
    ask(Some("dev-node")).await.unwrap();
    let (code, message) = ask(None).await.unwrap_err();
    assert_eq!(code, Code::PermissionDenied);
    insta::assert_snapshot!(message, @"the pod's token names no node, which needs Kubernetes 1.32: app role payments-api has nodeBinding: required");
    let (code, message) = ask(Some("other-node")).await.unwrap_err();
    assert_eq!(code, Code::PermissionDenied);
    insta::assert_snapshot!(message, @"the pod runs on another node than the driver that presented its token");

    let spec = json!({
        "bind": [{"issuer": "dev", "namespaces": ["payments"], "serviceAccounts": ["api"]}],
        "grants": [{"path": "payments/*", "allow": ["read"]}],
        "nodeBinding": "whenPresent",
    });
    world.server.apply("AppRole", ROLE, &spec).await.unwrap();
    ask(Some("dev-node")).await.unwrap();
    ask(None).await.unwrap();
    assert_eq!(ask(Some("other-node")).await.unwrap_err().0, Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_key_verifies_while_the_issuer_is_away() {
    let mut world = world().await;
    issue(&world, ROLE, &DB).await.unwrap();
    world.issuer.stop();
    issue(&world, ROLE, &DB).await.unwrap();
    let pod = world.pod("payments", "api", "api-0");
    world.publish(&pod, ROLE, "- path: payments/db\n").await.unwrap();

    // A server that never saw the keys can say neither yes nor no.
    world.server.restart().await.unwrap();
    world.server.until_serving().await.unwrap();
    let size = world.database.check_audit_log();
    let unknown = issue(&world, ROLE, &DB).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unavailable);
    insta::assert_snapshot!(unknown.message(), @"the keys of issuer dev cannot be fetched, so its tokens cannot be checked: try again, or see the server's log");
    assert_eq!(world.database.check_audit_log(), size, "nothing was decided");
    world.issuer.resume().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_03_a_token_of_a_key_that_the_issuer_does_not_publish_is_refused() {
    let mut world = world().await;
    let pod = world.pod("payments", "api", "api-0");
    let foreign = keyfold::dev::tokens::Minter {
        issuer: world.issuer.url().to_owned(),
        key: SigningKey::generate().unwrap(),
    };
    let driver = world.driver_token();
    issue(&world, ROLE, &DB).await.unwrap();
    world.minter = std::sync::Arc::new(foreign);
    let refused = world.issue(&world.token(&pod).jwt, &driver, ROLE, &DB).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(last_outcome(&world).await["reason"], "token-key-unknown");
    assert_eq!(
        last_issue(&world).await["actor"]["kind"],
        "unknown",
        "what is not verified is not written down as a fact"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_09_a_removed_role_counts_at_once() {
    let world = world().await;
    issue(&world, ROLE, &DB).await.unwrap();
    let role = DeleteObjectRequest { kind: "AppRole".into(), name: ROLE.into() };
    world.operator().config().delete_object(role).await.unwrap();
    assert_eq!(issue(&world, ROLE, &DB).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(last_outcome(&world).await["reason"], "role-not-bound");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_09_a_narrowed_grant_counts_at_once_on_every_replica() {
    let mut world = world().await;
    let mut replica = world.second_replica().await;
    std::mem::swap(&mut world.server, &mut replica);
    issue(&world, ROLE, &DB).await.unwrap();
    let spec = json!({
        "bind": [{"issuer": "dev", "namespaces": ["payments"], "serviceAccounts": ["api"]}],
        "grants": [{"path": "payments/other", "allow": ["read"]}],
    });
    replica.apply("AppRole", ROLE, &spec).await.unwrap();
    assert_eq!(issue(&world, ROLE, &DB).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(last_outcome(&world).await["reason"], "not-granted");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_09_a_removed_issuer_counts_at_once() {
    let world = world().await;
    issue(&world, ROLE, &DB).await.unwrap();
    let issuer = DeleteObjectRequest { kind: "Issuer".into(), name: "dev".into() };
    world.operator().config().delete_object(issuer).await.unwrap();
    let refused = issue(&world, ROLE, &DB).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(refused.message().replace(world.issuer.url(), "URL"), UNKNOWN_ISSUER);
    assert_eq!(last_outcome(&world).await["reason"], "token-issuer");
}

/// A specification that binds the service account of `issue`.
fn role(grants: &Value) -> Value {
    json!({
        "bind": [{"issuer": "dev", "namespaces": ["payments"], "serviceAccounts": ["api"]}],
        "grants": grants,
    })
}

/// What an issue may be decided on, changed between the decision and its entry.
#[tokio::test(flavor = "multi_thread")]
async fn attack_12_a_right_that_goes_away_while_an_issue_is_in_flight_gives_no_value() {
    // The issue waits at the table of versions, which it would not read for what it holds.
    let world = Arc::new(with_others(World::configured("cache: {secret_bytes: 0}\n", "").await).await);
    let (before, narrowed) = (role(&json!([{"path": "payments/*", "allow": ["read"]}])), role(&json!([])));
    let delete = async |kind: &str, name: &str| {
        let object = DeleteObjectRequest { kind: kind.into(), name: name.into() };
        world.operator().config().delete_object(object).await.unwrap();
    };
    for change in ["narrowed", "deleted", "deleted and made again", "issuer deleted"] {
        let lock = TableLock::take(&world.database, "secret_versions").await;
        let asking = Arc::clone(&world);
        let issue = tokio::spawn(async move { issue(&asking, ROLE, &DB).await });
        lock.until_wanted().await;
        match change {
            "narrowed" => world.server.apply("AppRole", ROLE, &narrowed).await.unwrap(),
            "issuer deleted" => delete("Issuer", "dev").await,
            _ => delete("AppRole", ROLE).await,
        }
        if change.ends_with("again") {
            world.server.apply("AppRole", ROLE, &before).await.unwrap();
        }
        let changed = world.database.check_audit_log();
        lock.release().await;
        // It is decided anew, on what stands then.
        let decided = issue.await.unwrap();
        let code = decided.as_ref().map_or_else(Status::code, |_| Code::Ok);
        let (expected, reason) = match change {
            "narrowed" => (Code::PermissionDenied, json!("not-granted")),
            "deleted" => (Code::PermissionDenied, json!("role-not-bound")),
            "issuer deleted" => (Code::Unauthenticated, json!("token-issuer")),
            _ => (Code::Ok, Value::Null),
        };
        assert_eq!(code, expected, "{change}: {decided:?}");
        assert_eq!(world.database.check_audit_log(), changed + 1, "{change}: one entry");
        assert_eq!(last_outcome(&world).await["reason"], reason, "{change}");
        if change != "issuer deleted" {
            world.server.apply("AppRole", ROLE, &before).await.unwrap();
            assert_eq!(paths(&self::issue(&world, ROLE, &DB).await.unwrap()), ["payments/db"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_anything_else_does_not_disturb_an_issue_in_flight() {
    let world = Arc::new(world().await);
    let lock = TableLock::take(&world.database, "secret_versions").await;
    let asking = Arc::clone(&world);
    let issue = tokio::spawn(async move { issue(&asking, ROLE, &DB).await });
    lock.until_wanted().await;
    world.server.apply("AppRole", "another", &role(&json!([]))).await.unwrap();
    world.server.apply("Keyspace", "payments", &json!({"description": "changed"})).await.unwrap();
    lock.release().await;
    assert_eq!(paths(&issue.await.unwrap().unwrap()), ["payments/db"]);
}

/// The address is the connection's, the driver the one whose own token was verified.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_says_from_where_and_through_which_driver_a_pod_asked() {
    let world = world().await;
    issue(&world, ROLE, &DB).await.unwrap();
    let driver = |entry: &Value| entry["driver"]["service_account"]["name"].clone();
    let entry = last_issue(&world).await;
    assert_eq!((&entry["from"], driver(&entry)), (&json!("127.0.0.1"), json!("keyfold-csi")));
    assert_eq!(entry["driver"]["node"]["name"], "dev-node");

    let with_tokens = async |pod: &str, driver: &str| {
        world.issue(pod, driver, ROLE, &DB).await.unwrap_err();
        last_issue(&world).await
    };
    let pod = world.token(&world.pod("payments", "api", "api-0"));
    let entry = with_tokens("not-a-token", &world.driver_token()).await;
    assert_eq!((&entry["actor"]["kind"], driver(&entry)), (&json!("unknown"), json!("keyfold-csi")));
    let entry = with_tokens(&pod.jwt, "not-a-token").await;
    assert_eq!((&entry["actor"]["kind"], &entry["driver"]), (&json!("unknown"), &Value::Null));
    let entry = with_tokens(&pod.jwt, &pod.jwt).await;
    assert_eq!(driver(&entry), "api", "who was verified and is no driver is named");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_an_unknown_caller_cannot_write_long_entries() {
    let world = world().await;
    let paths: Vec<String> = (0..64).map(|n| format!("payments/{n}")).collect();
    let items: Vec<_> = paths.iter().map(|path| (path.as_str(), false)).collect();
    world.issue("not-a-token", "not-a-token", ROLE, &items).await.unwrap_err();
    assert_eq!(last_issue(&world).await["operation"]["items"].as_array().unwrap().len(), 4);
    issue(&world, ROLE, &items).await.unwrap_err();
    assert_eq!(last_issue(&world).await["operation"]["items"].as_array().unwrap().len(), 64);
}

const UNKNOWN_ISSUER: &str =
    "the driver's token was refused: its issuer \"URL\" is not among the configured issuers";

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_very_many_and_long_items_still_arrives() {
    let world = world().await;
    let segment = "a".repeat(128);
    let paths: Vec<String> =
        (0..64).map(|n| format!("other/{}/{n}", [segment.as_str(); 5].join("/"))).collect();
    let items: Vec<_> = paths.iter().map(|path| (path.as_str(), false)).collect();
    let refused = issue(&world, ROLE, &items).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    assert!(refused.message().contains(&paths[0]) && refused.message().ends_with('…'));
}
