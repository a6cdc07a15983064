//! Who may call what: every RPC by every kind of caller, compared with a table that a person has reviewed,
//! `tests/golden/rpc-matrix.txt`. A change of anybody's rights shows there as a changed line.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use keyfold_proto::{DESCRIPTORS, keyfold::v1};
use keyfold_tests::{People, World, certificates, raw};
use prost::Message;
use serde_json::{Value, json};
use tonic::Code;
use uuid::Uuid;

/// The callers, in the table's order. Those after `initial-administrator` are people of an OpenID provider.
const CALLERS: [&str; 13] = [
    "nobody",
    "bad token",
    "pod",
    "driver",
    "initial-administrator",
    "unbound",
    "admin",
    "key-admin",
    "secret-admin",
    "auditor",
    "payments-writer",
    "payments-reader",
    "signer",
];

/// One line of the table: an RPC with one request.
struct Row {
    rpc: &'static str,
    what: &'static str,
    /// Good for any caller, any number of times.
    request: fn(&World, caller: usize) -> Vec<u8>,
}

fn rows() -> Vec<Row> {
    let row = |rpc, what, request| Row { rpc, what, request };
    vec![
        row("WorkloadService/IssueSecrets", "payments/db", |world, _| {
            let items = vec![v1::SecretReference { path: "payments/db".into(), optional: false }];
            let pod_token = world.token(&world.pod("payments", "api", "api-0")).jwt.to_string();
            encode(v1::IssueSecretsRequest { pod_token, role: "payments-api".into(), items })
        }),
        row("SecretService/PutSecret", "payments/db", |_, _| put("payments/db")),
        row("SecretService/PutSecret", "shop/db", |_, _| put("shop/db")),
        row("SecretService/GetSecret", "payments/db", |_, _| get("payments/db")),
        row("SecretService/GetSecret", "payments/none", |_, _| get("payments/none")),
        row("SecretService/GetSecret", "shop/db", |_, _| get("shop/db")),
        row("SecretService/ListSecrets", "all", |_, _| encode(v1::ListSecretsRequest::default())),
        row("SecretService/GetSecretHistory", "payments/db", |_, _| {
            encode(v1::GetSecretHistoryRequest { path: "payments/db".into() })
        }),
        row("SecretService/RollbackSecret", "payments/db", |_, _| {
            encode(v1::RollbackSecretRequest { path: "payments/db".into(), version: 2 })
        }),
        row("SecretService/DeleteVersions", "payments/db", |_, _| versions()),
        row("SecretService/UndeleteVersions", "payments/db", |_, _| versions()),
        row("SecretService/DestroyVersions", "payments/db", |_, _| versions()),
        row("ConfigService/ApplyObjects", "Keyspace", |_, _| apply("Keyspace", "new", &json!({}), false)),
        row("ConfigService/ApplyObjects", "Keyspace, dry run", |_, _| {
            apply("Keyspace", "new", &json!({}), true)
        }),
        row("ConfigService/ApplyObjects", "Issuer", |_, _| {
            let spec = json!({"type": "oidc", "url": "https://new.example", "audiences": ["x"], "keys": {"file": "new.json"}});
            apply("Issuer", "new", &spec, false)
        }),
        row("ConfigService/ApplyObjects", "AppRole", |_, _| {
            let bind = json!([{"issuer": "dev", "namespaces": ["new"], "serviceAccounts": ["new"]}]);
            apply("AppRole", "new", &json!({"bind": bind, "grants": []}), false)
        }),
        row("ConfigService/ApplyObjects", "OperatorRole", |_, _| {
            let bind = json!([{"issuer": "people", "claims": {"sub": ["new"]}}]);
            apply("OperatorRole", "new", &json!({"bind": bind, "builtIn": "auditor"}), false)
        }),
        row("ConfigService/GetObject", "Keyspace", |_, _| object("Keyspace", "payments")),
        row("ConfigService/GetObject", "Issuer", |_, _| object("Issuer", "dev")),
        row("ConfigService/GetObject", "AppRole", |_, _| object("AppRole", "payments-api")),
        row("ConfigService/GetObject", "OperatorRole", |_, _| object("OperatorRole", "auditor")),
        row("ConfigService/GetObject", "ApprovalRule", |_, _| object("ApprovalRule", "none")),
        row("ConfigService/ListObjects", "all", |_, _| encode(v1::ListObjectsRequest::default())),
        row("ConfigService/ListObjects", "OperatorRole", |_, _| {
            encode(v1::ListObjectsRequest { kind: "OperatorRole".into() })
        }),
        row("ConfigService/DeleteObject", "Keyspace", |_, caller| {
            delete("Keyspace", &format!("empty-{caller}"))
        }),
        row("ConfigService/DeleteObject", "Issuer", |_, _| delete("Issuer", "none")),
        row("ConfigService/DeleteObject", "AppRole", |_, _| delete("AppRole", "none")),
        row("ConfigService/DeleteObject", "OperatorRole", |_, _| delete("OperatorRole", "none")),
        row("ConfigService/DeleteObject", "ApprovalRule", |_, _| delete("ApprovalRule", "none")),
        row("KeyService/ListKeys", "all", |_, _| encode(v1::ListKeysRequest::default())),
        row("KeyService/RotateKey", "payments", |_, _| {
            encode(v1::RotateKeyRequest { keyspace: "payments".into(), ..Default::default() })
        }),
        row("KeyService/GetKeyStatus", "all", |_, _| encode(v1::GetKeyStatusRequest::default())),
        row(
            "KeyService/GetRotationSchedule",
            "all",
            |_, _| encode(v1::GetRotationScheduleRequest::default()),
        ),
        row("KeyService/PauseRotation", "payments", |_, _| {
            encode(v1::PauseRotationRequest { keyspace: "payments".into(), ..Default::default() })
        }),
        row("KeyService/ResumeRotation", "payments", |_, _| {
            encode(v1::ResumeRotationRequest { keyspace: "payments".into(), ..Default::default() })
        }),
        row("KeyService/ListQuarantine", "all", |_, _| encode(v1::ListQuarantineRequest::default())),
        row("KeyService/RetryQuarantine", "payments", |_, _| {
            encode(v1::RetryQuarantineRequest { keyspace: "payments".into() })
        }),
        row("KeyService/CompromiseKey", "none", |_, _| {
            encode(v1::CompromiseKeyRequest { keyspace: "none".into(), version: 0 })
        }),
        row("KeyService/ListExposedSecrets", "payments", |_, _| {
            encode(v1::ListExposedSecretsRequest { keyspace: "payments".into(), ..Default::default() })
        }),
        row("KeyService/ScheduleKeyDestruction", "none", |_, _| {
            let keyspace = "none".into();
            encode(v1::ScheduleKeyDestructionRequest {
                keyspace,
                version: 1,
                delay_seconds: None,
                purpose: String::new(),
            })
        }),
        row("KeyService/CancelKeyDestruction", "none", |_, _| {
            encode(v1::CancelKeyDestructionRequest {
                keyspace: "none".into(),
                version: 1,
                purpose: String::new(),
            })
        }),
        row("KeyService/ListCertificates", "all", |_, _| encode(v1::ListCertificatesRequest::default())),
        row("PolicyService/Explain", "payments/db", |_, _| {
            let (namespace, service_account, path) = ("payments".into(), "api".into(), "payments/db".into());
            encode(v1::ExplainRequest { namespace, service_account, path, ..Default::default() })
        }),
        row("CertificateService/GetBundle", "", |_, _| encode(v1::GetBundleRequest {})),
        row("CertificateService/IssueDriverCertificate", "", |_, _| {
            let certificate_request = certificates::request(&certificates::key());
            encode(v1::IssueDriverCertificateRequest { certificate_request })
        }),
        row("CertificateService/RotateAuthority", "", |_, _| encode(v1::RotateAuthorityRequest {})),
        row("RootService/GetRoot", "", |_, _| encode(v1::GetRootRequest {})),
        row("RootService/Unseal", "of a server that serves", |_, _| {
            encode(v1::UnsealRequest { share: "kfs1-none".into() })
        }),
        row("RootService/ChangeRoot", "to what is not configured", |_, _| {
            encode(v1::ChangeRootRequest { custody: "pkcs11".into(), ..Default::default() })
        }),
        row("RootService/CreateRecovery", "2 of 3", |_, _| {
            encode(v1::CreateRecoveryRequest { shares: 3, threshold: 2 })
        }),
        row("RootService/DrillRecovery", "without a scratch database", |_, _| {
            encode(v1::DrillRecoveryRequest::default())
        }),
        row("AuditService/ListEntries", "all", |_, _| encode(v1::ListEntriesRequest::default())),
        row("ApprovalService/ListPlans", "all", |_, _| encode(v1::ListPlansRequest {})),
        row("ApprovalService/GetPlan", "none", |_, _| {
            encode(v1::GetPlanRequest { id: Uuid::nil().to_string() })
        }),
        row("ApprovalService/SignPlan", "none", |_, _| {
            encode(v1::SignPlanRequest { id: Uuid::nil().to_string(), signature: vec![0; 64] })
        }),
        row("SystemService/Initialize", "wrong bootstrap token", |_, _| {
            encode(v1::InitializeRequest { bootstrap_token: "wrong".into() })
        }),
        row("SystemService/GetStatus", "", |_, _| encode(v1::GetStatusRequest {})),
        row("SystemService/WhoAmI", "", |_, _| encode(v1::WhoAmIRequest {})),
        // The last, for it is done for good.
        row("SystemService/RevokeInitialAdministrator", "", |_, _| {
            encode(v1::RevokeInitialAdministratorRequest {})
        }),
    ]
}

fn encode(message: impl Message) -> Vec<u8> {
    message.encode_to_vec()
}

fn put(path: &str) -> Vec<u8> {
    let fields = vec![v1::Field { name: "password".into(), value: b"x".into() }];
    encode(v1::PutSecretRequest { path: path.into(), fields, expected_version: None })
}

fn get(path: &str) -> Vec<u8> {
    encode(v1::GetSecretRequest { path: path.into(), version: None })
}

fn versions() -> Vec<u8> {
    encode(v1::ChangeVersionsRequest { path: "payments/db".into(), versions: vec![1] })
}

fn apply(kind: &str, name: &str, spec: &Value, dry_run: bool) -> Vec<u8> {
    let object = v1::Object {
        kind: kind.into(),
        name: name.into(),
        spec_json: spec.to_string(),
        ..Default::default()
    };
    encode(v1::ApplyObjectsRequest { objects: vec![object], dry_run })
}

fn object(kind: &str, name: &str) -> Vec<u8> {
    encode(v1::GetObjectRequest { kind: kind.into(), name: name.into() })
}

fn delete(kind: &str, name: &str) -> Vec<u8> {
    encode(v1::DeleteObjectRequest { kind: kind.into(), name: name.into() })
}

/// A world with two keyspaces, a secret in each, and an operator role for each person.
async fn world() -> (World, People) {
    let world = World::start().await.with_payments().await;
    let people = People::join(&world.server, world.folder.path()).await;
    world.server.apply("Keyspace", "shop", &json!({})).await.unwrap();
    for keyspace in (0..CALLERS.len()).map(|caller| format!("empty-{caller}")) {
        world.server.apply("Keyspace", &keyspace, &json!({})).await.unwrap();
    }
    world.put("shop/db", &[("password", "x")]).await;
    world.put("payments/db", &[("password", "second")]).await;
    let custom = |allow: &[&str]| json!({"grants": [{"path": "payments/*", "allow": allow}]});
    for (name, rights) in [
        ("admin", json!({"builtIn": "admin"})),
        ("key-admin", json!({"builtIn": "key-admin"})),
        ("secret-admin", json!({"builtIn": "secret-admin"})),
        ("auditor", json!({"builtIn": "auditor"})),
        ("payments-writer", custom(&["list", "write", "delete"])),
        ("payments-reader", custom(&["read"])),
        ("signer", json!({"allow": ["approvals:sign"]})),
    ] {
        let mut spec = rights;
        spec["bind"] = json!([{"issuer": "people", "claims": {"sub": [name]}}]);
        world.server.apply("OperatorRole", name, &spec).await.unwrap();
    }
    (world, people)
}

fn bearer(world: &World, people: &People, caller: &str) -> Option<String> {
    match caller {
        "nobody" => None,
        "bad token" => Some("kfa_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".into()),
        "pod" => Some(world.token(&world.pod("payments", "api", "api-0")).jwt.to_string()),
        "driver" => Some(world.driver_token()),
        "initial-administrator" => Some(fs::read_to_string(world.server.setup().admin_token_file()).unwrap()),
        person => Some(people.token(person, &[])),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_12_who_may_call_what_is_as_the_reviewed_table_says() {
    let (world, people) = world().await;
    let bearers: Vec<_> = CALLERS.iter().map(|caller| bearer(&world, &people, caller)).collect();
    let mut table = String::new();
    for row in rows() {
        writeln!(table, "{} {}", row.rpc, row.what).unwrap();
        for (at, caller) in CALLERS.iter().enumerate() {
            let request = (row.request)(&world, at);
            let before = world.database.check_audit_log();
            let done = raw::call(&world.channel(), row.rpc, bearers[at].as_deref(), request).await;
            let outcome =
                outcome(&world, before, done.as_ref().map_or_else(|status| status.code(), |_| Code::Ok));
            writeln!(table, "    {caller:<22} {outcome}").unwrap();
        }
    }
    compare(&table);
}

/// What the entry says; without one, the status's code. A success and its entry must agree.
fn outcome(world: &World, before: u64, code: Code) -> String {
    let sql = format!(
        "SELECT coalesce(convert_from(entry, 'UTF8')::json #>> '{{outcome,reason}}', 'ok') FROM audit_entries
         WHERE index >= {before} ORDER BY index LIMIT 1"
    );
    let entry = world.database.sql(&sql);
    match entry.as_str() {
        "" => format!("{code:?}, without an entry"),
        reason => {
            assert_eq!(reason == "ok", code == Code::Ok, "{reason}, {code:?}");
            reason.to_owned()
        }
    }
}

/// With `KEYFOLD_GOLDEN=write` the table is written anew, to be reviewed as a change.
fn compare(table: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/rpc-matrix.txt");
    if std::env::var_os("KEYFOLD_GOLDEN").is_some_and(|value| value == "write") {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, table).unwrap();
    }
    let reviewed = fs::read_to_string(&file).unwrap_or_default();
    let differing = table.lines().zip(reviewed.lines()).position(|(now, then)| now != then);
    let context = |text: &str, at: usize| text.lines().take(at + 1).collect::<Vec<_>>().join("\n");
    if let Some(at) = differing {
        let rpc =
            context(table, at).lines().rfind(|line| !line.starts_with(' ')).unwrap_or_default().to_owned();
        panic!(
            "{rpc}: now {:?}, reviewed {:?}. If that is meant: KEYFOLD_GOLDEN=write, and have it reviewed",
            table.lines().nth(at),
            reviewed.lines().nth(at)
        );
    }
    assert_eq!(
        table.lines().count(),
        reviewed.lines().count(),
        "the table has other lines: KEYFOLD_GOLDEN=write"
    );
}

#[test]
fn every_rpc_stands_in_the_matrix() {
    let descriptors = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let own = descriptors.file.iter().filter(|file| file.package() == "keyfold.v1");
    let rpcs: BTreeSet<String> = own
        .flat_map(|file| &file.service)
        .flat_map(|service| {
            service.method.iter().map(move |rpc| format!("{}/{}", service.name(), rpc.name()))
        })
        .collect();
    let rows: BTreeSet<String> = rows().iter().map(|row| row.rpc.to_owned()).collect();
    assert_eq!(rpcs, rows);
}
