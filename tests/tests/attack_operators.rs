//! What operators who may little can get out of the server all the same: rows 12 to 15 of docs/attacks.md.

use std::{fs, path::PathBuf};

use keyfold::{client::Client, dev::pki::Authority};
use keyfold_core::clock::{Clock as _, SystemClock};
use keyfold_proto::keyfold::v1::{
    ApplyObjectsRequest, ChangeVersionsRequest, DeleteObjectRequest, ExplainRequest, Field, GetObjectRequest,
    GetPlanRequest, GetSecretHistoryRequest, GetSecretRequest, GetStatusRequest, ListEntriesRequest,
    ListKeysRequest, ListObjectsRequest, ListPlansRequest, ListSecretsRequest, Object, PutSecretRequest,
    RevokeInitialAdministratorRequest, RollbackSecretRequest, RotateKeyRequest, SignPlanRequest,
    WhoAmIRequest,
};
use keyfold_tests::{
    Cli, People, Search, World,
    api_server::{Answer, ApiServer},
    attacker::claims_of,
    two_persons::{TwoPersons, apply, destroy},
};
use serde_json::{Value, json};
use tonic::{Code, Status};
use uuid::Uuid;

/// A value, and a text in a spec: neither may reach who may not read it.
const PLANTED: &str = "planted-value-5d0b7c1e93f2";
const DECLARED: &str = "planted-description-8812ac40";

/// With the value and the text, and somebody with `role` as their only one.
async fn world_with(role: Value) -> (World, People, Client) {
    let world = World::start().await.with_payments().await;
    world.put("payments/db", &[("password", PLANTED)]).await;
    world.server.apply("Keyspace", "payments", &json!({"description": DECLARED})).await.unwrap();
    let people = People::join(&world.server, world.folder.path()).await;
    let mut role = role;
    role["bind"] = json!([{"issuer": "people", "claims": {"sub": ["mallory"]}}]);
    world.server.apply("OperatorRole", "mallorys", &role).await.unwrap();
    let mallory = people.operator_named("mallory", &[]);
    (world, people, mallory)
}

/// All that `client` could do, on this secret and object; each with what came of it in words.
async fn everything(
    client: &Client,
    path: &str,
    object: (&str, &str),
) -> Vec<(&'static str, Result<String, Status>)> {
    fn told<T: std::fmt::Debug>(answer: Result<tonic::Response<T>, Status>) -> Result<String, Status> {
        answer.map(|answer| format!("{answer:?}"))
    }
    let path = path.to_owned();
    let (kind, name) = (object.0.to_owned(), object.1.to_owned());
    let (mut secrets, mut config, mut keys) = (client.secrets(), client.config(), client.keys());
    let change = |version| ChangeVersionsRequest { path: path.clone(), versions: vec![version] };
    let field = Field { name: "password".into(), value: b"overwritten".into() };
    let put = PutSecretRequest { path: path.clone(), fields: vec![field], expected_version: Some(7) };
    let list = ListSecretsRequest { prefix: "payments".into(), ..Default::default() };
    let spec_json = json!({"description": "mallory was here"}).to_string();
    let wanted = Object { kind: kind.clone(), name: name.clone(), spec_json, ..Object::default() };
    let apply = |dry_run| ApplyObjectsRequest { objects: vec![wanted.clone()], dry_run };
    let explain = ExplainRequest {
        namespace: "payments".into(),
        service_account: "api".into(),
        role: "payments-api".into(),
        path: path.clone(),
        ..Default::default()
    };
    let plan = Uuid::nil().to_string();
    let sign = SignPlanRequest { id: plan.clone(), signature: vec![0; 64] };
    let get = GetSecretRequest { path: path.clone(), version: Some(2) };
    let object = GetObjectRequest { kind: kind.clone(), name: name.clone() };
    vec![
        ("put", told(secrets.put_secret(put).await)),
        ("get", told(secrets.get_secret(get).await)),
        ("list", told(secrets.list_secrets(list).await)),
        ("history", told(secrets.get_secret_history(GetSecretHistoryRequest { path: path.clone() }).await)),
        (
            "rollback",
            told(secrets.rollback_secret(RollbackSecretRequest { path: path.clone(), version: 1 }).await),
        ),
        ("delete", told(secrets.delete_versions(change(1)).await)),
        ("undelete", told(secrets.undelete_versions(change(1)).await)),
        ("destroy", told(secrets.destroy_versions(change(1)).await)),
        ("apply", told(config.apply_objects(apply(false)).await)),
        ("diff", told(config.apply_objects(apply(true)).await)),
        ("get object", told(config.get_object(object).await)),
        ("list objects", told(config.list_objects(ListObjectsRequest { kind: kind.clone() }).await)),
        ("list all objects", told(config.list_objects(ListObjectsRequest::default()).await)),
        ("delete object", told(config.delete_object(DeleteObjectRequest { kind, name }).await)),
        ("list keys", told(keys.list_keys(ListKeysRequest::default()).await)),
        (
            "rotate",
            told(
                keys.rotate_key(RotateKeyRequest { keyspace: "payments".into(), ..Default::default() }).await,
            ),
        ),
        ("explain", told(client.policy().explain(explain).await)),
        ("audit", told(client.audit().list_entries(ListEntriesRequest::default()).await)),
        ("list plans", told(client.approvals().list_plans(ListPlansRequest {}).await)),
        ("get plan", told(client.approvals().get_plan(GetPlanRequest { id: plan }).await)),
        ("sign plan", told(client.approvals().sign_plan(sign).await)),
        ("status", told(client.system().get_status(GetStatusRequest {}).await)),
        ("revoke", {
            let request = RevokeInitialAdministratorRequest {};
            told(client.system().revoke_initial_administrator(request).await)
        }),
    ]
}

/// Whatever is refused carries nothing: neither in its message nor in its details, headers or trailers.
#[tokio::test(flavor = "multi_thread")]
async fn attack_12_a_refusal_of_any_operation_carries_nothing() {
    let (world, people, mallory) =
        world_with(json!({"grants": [{"path": "payments/none", "allow": ["read"]}]})).await;
    let nobody = people.operator_named("nobody", &[]);
    let state = || {
        world.database.sql(
            "SELECT kind, name, spec FROM objects UNION ALL SELECT path, newest_version::text, '' FROM secrets
             UNION ALL SELECT id::text, state, '' FROM keks UNION ALL SELECT name, revoked_at::text, '' FROM admin_tokens
             UNION ALL SELECT version::text, coalesce(deleted_at, destroyed_at)::text, '' FROM secret_versions
             ORDER BY 1, 2",
        )
    };
    let before = state();
    for (client, reasons) in [
        (&mallory, ["operator-forbidden", "path-not-granted"].as_slice()),
        (&nobody, &["operator-not-bound"]),
    ] {
        let size = world.database.check_audit_log();
        let answers = everything(client, "payments/db", ("Keyspace", "payments")).await;
        let count = answers.len() as u64;
        for (what, answer) in answers {
            let status = answer.expect_err(what);
            assert_eq!(status.code(), Code::PermissionDenied, "{what}: {status:?}");
            assert!(status.details().is_empty(), "{what}: {status:?}");
            let said = format!("{status:?} {:?}", status.metadata());
            assert!(!said.contains(PLANTED) && !said.contains(DECLARED), "{what}: {said}");
        }
        assert_eq!(world.database.check_audit_log(), size + count, "each refusal is an entry");
        let told = world.database.sql(&format!(
            "SELECT DISTINCT convert_from(entry, 'UTF8')::json #>> '{{outcome,reason}}' FROM audit_entries
             WHERE index >= {size} ORDER BY 1"
        ));
        assert_eq!(told.lines().collect::<Vec<_>>(), reasons);
    }
    assert_eq!(state(), before, "nothing was changed");
    let whoami = nobody.system().who_am_i(WhoAmIRequest {}).await.unwrap_err();
    assert_eq!(whoami.code(), Code::PermissionDenied);
    mallory.system().who_am_i(WhoAmIRequest {}).await.expect("who is bound may ask");
}

/// What one entry refuses, no other tells: a diff, a list of everything, a request for several kinds at once.
#[tokio::test(flavor = "multi_thread")]
async fn attack_12_what_may_not_be_read_is_not_told_by_another_operation() {
    let (world, _people, mallory) = world_with(json!({"allow": ["issuers:read"]})).await;
    let other = |kind: &str, name: &str, spec: &Value| Object {
        kind: kind.into(),
        name: name.into(),
        spec_json: spec.to_string(),
        ..Object::default()
    };
    let readable = || {
        let spec = json!({"type": "oidc", "url": "https://new.example", "audiences": ["keyfold"], "keys": {"file": "new.json"}});
        other("Issuer", "new", &spec)
    };
    let unreadable = || {
        let role = json!({
            "bind": [{"issuer": "dev", "namespaces": ["payments"], "serviceAccounts": ["api"]}],
            "grants": [{"path": "payments/*", "allow": ["read"]}],
        });
        let operator_role =
            json!({"builtIn": "admin", "bind": [{"issuer": "people", "claims": {"sub": ["mallory"]}}]});
        [
            other("Keyspace", "payments", &json!({})),
            other("AppRole", "payments-api", &role),
            other("OperatorRole", "mallorys", &operator_role),
        ]
    };
    let apply = async |objects: Vec<Object>, dry_run: bool| {
        let request = ApplyObjectsRequest { objects, dry_run };
        mallory.config().apply_objects(request).await.map(tonic::Response::into_inner)
    };
    apply(vec![readable()], true).await.expect("an issuer may be looked at");
    let nonsense = || other("Nonsense", "payments", &json!({}));
    for object in unreadable() {
        let kind = object.kind.clone();
        for dry_run in [true, false] {
            for objects in [
                vec![object.clone()],
                vec![readable(), object.clone()],
                vec![object.clone(), readable()],
                vec![nonsense(), object.clone()],
            ] {
                let status = apply(objects, dry_run).await.expect_err(&kind);
                assert_eq!(status.code(), Code::PermissionDenied, "{kind} {dry_run}: {status:?}");
            }
        }
        for name in [&object.name, "none"] {
            let get = GetObjectRequest { kind: kind.clone(), name: name.into() };
            let status = mallory.config().get_object(get).await.unwrap_err();
            assert_eq!(status.code(), Code::PermissionDenied, "{kind} {name}");
        }
        let list = ListObjectsRequest { kind: kind.clone() };
        assert_eq!(
            mallory.config().list_objects(list).await.unwrap_err().code(),
            Code::PermissionDenied,
            "{kind}"
        );
    }
    let listed = mallory.config().list_objects(ListObjectsRequest::default()).await.unwrap().into_inner();
    assert!(listed.objects.iter().all(|object| object.kind == "Issuer"), "{listed:?}");
    assert_eq!(listed.objects.len(), 2);
    assert_eq!(
        apply(vec![readable()], false).await.unwrap_err().code(),
        Code::PermissionDenied,
        "reading is not writing"
    );
    let answer = apply(vec![nonsense()], true).await.unwrap_err();
    assert_eq!(answer.code(), Code::InvalidArgument, "that there is no such kind is no secret");
    assert_eq!(world.database.sql("SELECT count(*) FROM objects WHERE name = 'new'"), "0");
}

/// The answers for what is there and for what is not are the same to the byte, but for the name that was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn attack_13_an_operator_without_the_right_cannot_tell_what_exists() {
    let (world, _people, mallory) = world_with(json!({
        "grants": [{"path": "shop/*", "allow": ["read", "list", "write", "delete", "manage"]}],
        "allow": ["status:read"],
    }))
    .await;
    let mut told: Vec<Vec<(&str, Option<String>)>> = Vec::new();
    for (path, object) in [
        ("payments/db", ("Keyspace", "payments")),
        ("payments/no", ("Keyspace", "absent00")),
        ("nothings/db", ("Keyspace", "nothings")),
    ] {
        let answers = everything(&mallory, path, object).await;
        let words = |(what, answer): (&'static str, Result<String, Status>)| {
            let refused = answer.err().map(|status| {
                let said = format!("{:?} {:?}", status.code(), status.message());
                said.replace(path, "PATH").replace(object.1, "OBJECT")
            });
            (what, refused)
        };
        told.push(answers.into_iter().map(words).collect());
    }
    assert_eq!(told[0], told[1]);
    assert_eq!(told[0], told[2]);
    let refused = told[0].iter().filter(|(_, refused)| refused.is_some());
    assert_eq!(refused.count(), told[0].len() - 2, "but the list, which is empty, and the status: {told:?}");
    // Those who may read are told the difference.
    let get = async |path: &str| {
        let request = GetSecretRequest { path: path.into(), version: None };
        world.operator().secrets().get_secret(request).await.map_or_else(|status| status.code(), |_| Code::Ok)
    };
    assert_eq!((get("payments/db").await, get("payments/no").await), (Code::Ok, Code::NotFound));
}

/// Which plans wait, and whether a plan is there, is for those who may read plans.
#[tokio::test(flavor = "multi_thread")]
async fn attack_13_plans_are_told_to_nobody_who_may_not_read_them() {
    let two = TwoPersons::guarding(&["secret.destroy"]).await;
    let plan = two.ask(&[1]).await;
    let role = json!({
        "allow": ["status:read"], "grants": [{"path": "payments/*", "allow": ["read"]}],
        "bind": [{"issuer": "people", "claims": {"sub": ["mallory"]}}],
    });
    two.apply_together("OperatorRole", "mallorys", &role).await;
    let mallory = two.people.operator_named("mallory", &[]);
    let ask = async |id: Uuid| {
        let get = mallory.approvals().get_plan(GetPlanRequest { id: id.to_string() }).await.unwrap_err();
        let sign = SignPlanRequest { id: id.to_string(), signature: vec![1; 64] };
        let sign = mallory.approvals().sign_plan(sign).await.unwrap_err();
        [get, sign].map(|status| (status.code(), status.message().replace(&id.to_string(), "ID")))
    };
    let (there, not_there) = (ask(plan).await, ask(Uuid::nil()).await);
    assert_eq!(there, not_there);
    assert!(there.iter().all(|(code, _)| *code == Code::PermissionDenied), "{there:?}");
    // Nor does an approval help anybody to more than they may do.
    let with_plan = two.people.person("mallory", &[]).client_with(plan);
    let status = destroy(&with_plan, &[1]).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    let status = apply(&with_plan, "Keyspace", "mallorys", &json!({})).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(two.destroyed(), "0");
    destroy(&two.alice.client(), &[1]).await.expect_err("it still waits for its second person");
}

/// Operators' tokens, good and bad, with an API server that repeats what it is sent.
struct Watched {
    world: World,
    people: People,
    api_server: ApiServer,
    _kubeconfigs: tempfile::TempDir,
    tokens: Vec<String>,
    told: Vec<u8>,
}

impl Watched {
    async fn start() -> Self {
        let kubeconfigs = tempfile::tempdir().unwrap();
        let yaml = format!("log: {{level: trace}}\nkubeconfig_dir: {}\n", kubeconfigs.path().display());
        let world = World::configured(&yaml, "").await.with_payments().await;
        let people = People::join(&world.server, world.folder.path()).await;
        let api_server = ApiServer::start(&Authority::new("a cluster", SystemClock.now()).unwrap()).await;
        api_server.write_kubeconfig(kubeconfigs.path(), "dev.yaml");
        let request = GetObjectRequest { kind: "Issuer".into(), name: "dev".into() };
        let issuer =
            world.operator().config().get_object(request).await.unwrap().into_inner().object.unwrap();
        let mut spec: Value = serde_json::from_str(&issuer.spec_json).unwrap();
        spec["apiServer"] = json!({"kubeconfig": "dev.yaml"});
        spec["verify"] = json!("tokenReview");
        world.server.apply("Issuer", "dev", &spec).await.unwrap();
        for (name, issuer, subject) in
            [("alices", "people", "alice"), ("automation", "dev", "system:serviceaccount:ci:deployer")]
        {
            let bind = json!([{"issuer": issuer, "claims": {"sub": [subject]}}]);
            world
                .server
                .apply("OperatorRole", name, &json!({"builtIn": "admin", "bind": bind}))
                .await
                .unwrap();
        }
        Self { world, people, api_server, _kubeconfigs: kubeconfigs, tokens: Vec::new(), told: Vec::new() }
    }

    /// Asks with the token, through the API and through the command line, for what is there and what is not.
    async fn present(&mut self, token: String) {
        for path in ["payments/db", "payments/none", "payments/../db"] {
            if let Err(status) = self.world.read_with(&token, path).await {
                self.told.extend(format!("{status:?} {status} {:?}", status.metadata()).into_bytes());
                self.told.extend(status.details());
            }
        }
        let file = self.world.folder.path().join("token.jwt");
        fs::write(&file, &token).unwrap();
        let cli = Cli::nobody(self.world.server.setup(), self.world.folder.path());
        for command in
            ["whoami", "secret list", "secret get payments/db", "get issuers", "audit list -o json"]
        {
            let ran = cli.run(&format!("{command} --token-file token.jwt"));
            self.told.extend([ran.bytes, ran.err.into_bytes()].concat());
        }
        fs::remove_file(file).unwrap();
        self.tokens.push(token);
    }

    /// A token's claims may be told; what proves them may not.
    fn search(&self) -> Search {
        let mut planted = Vec::new();
        for token in &self.tokens {
            let (claims, signature) = token.split_once('.').unwrap().1.rsplit_once('.').unwrap();
            planted.push(("a token's claims as they are sent", claims.as_bytes()));
            // Of a long message only the beginning is logged: up to where the token has its own id.
            planted.push(("a token's id in its claims", &claims.as_bytes()[120..170]));
            planted.push(("a token's signature", signature.as_bytes()));
        }
        Search::of(planted)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_14_no_operators_token_is_written_down_or_told() {
    let mut watched = Watched::start().await;
    let deployer =
        |name: &str| watched.world.token(&watched.world.pod("ci", "deployer", name)).jwt.to_string();
    let [good, refused, unreadable, lost] = ["job-1", "job-2", "job-3", "job-4"].map(deployer);
    let alice = watched.people.token("alice", &[]);
    let mut claims = claims_of(&alice);
    claims["aud"] = json!("grafana");
    let other_audience = watched.people.token_of(&claims);
    let mallory = watched.people.token("mallory", &["planted-group"]);
    let (head, signature) = alice.rsplit_once('.').unwrap();
    let damaged = format!("{head}.{}", signature.chars().rev().collect::<String>());

    for token in [alice.clone(), other_audience, mallory, damaged, good] {
        watched.present(token).await;
    }
    let echo =
        |token: &str| json!({"kind": "TokenReview", "spec": {"token": token}, "status": {"error": token}});
    for (token, answer) in [
        (refused.clone(), Answer::Reply(201, echo(&refused))),
        (unreadable.clone(), Answer::Text(format!("{unreadable} in garbage"))),
        (lost.clone(), Answer::Reply(500, echo(&lost))),
    ] {
        watched.api_server.answer(answer);
        watched.present(token).await;
    }
    let asked = watched.api_server.asked();
    assert!(asked.iter().any(|asked| asked.body["spec"]["token"] == *refused), "it was reviewed");

    let search = watched.search();
    let none = std::collections::BTreeSet::new();
    let logs = watched.world.logs();
    assert!(
        logs.contains("TRACE") && logs.contains("an API server refused a token"),
        "the logs hold all that they can"
    );
    assert_eq!(search.found_in(&watched.told), none, "told to callers");
    assert_eq!(search.found_in(logs.as_bytes()), none, "the logs");
    let rows = watched.world.database.sql(
        "SELECT convert_from(entry, 'UTF8') FROM audit_entries UNION ALL SELECT o::text FROM objects o
         UNION ALL SELECT p::text FROM plans p UNION ALL SELECT query FROM pg_stat_activity",
    );
    assert!(rows.contains("people/alice") && rows.contains("dev/system:serviceaccount:ci:deployer"));
    assert_eq!(search.found_in(rows.as_bytes()), none, "rows of the database");
    let kept: [PathBuf; 1] = [watched.world.folder.path().join("people")];
    let found = search.found_below(watched.world.folder.path(), &kept);
    assert_eq!(found, [""; 0], "files");
    assert_ne!(search.found_in(alice.as_bytes()), none, "it would be found");
}
