//! Every RPC of `keyfold.v1` refuses who may not call it, and writes down what it did: a tripwire. A new RPC fails here
//! until it has a row.

use std::collections::BTreeSet;

use base64::Engine as _;
use keyfold_proto::{DESCRIPTORS, keyfold::v1};
use keyfold_tests::{
    Database, World, certificates,
    faults::until_state,
    raw::call,
    server_setup,
    two_persons::{asked, new_key, public},
};
use prost::Message;
use serde_json::{Value, json};
use tonic::{Code, Status};

use Gate::{
    Anyone, BootstrapToken, Driver, DriverAndPod, Everyone, Operator, OtherOperator, PreparedOperator,
    SecondPerson, ShareHolder,
};

/// Who may call an RPC.
enum Gate {
    /// The holder of a live administrator's token.
    Operator,
    /// Any operator but the holder of that token.
    OtherOperator,
    /// An operator whom an approval rule names, and never the initial administrator: tests/tests/approvals.rs has those
    /// who may.
    SecondPerson,
    /// A CSI driver that presents a pod's token.
    DriverAndPod,
    /// A CSI driver, on its own behalf.
    Driver,
    /// An operator, at a server that is prepared for it; this one is not. tests/tests/recovery.rs has one that is.
    PreparedOperator,
    /// Whoever holds a share, at a sealed server; this one is not. tests/tests/root_custody.rs has one that is.
    ShareHolder,
    /// Who can read the server's bootstrap token, once.
    BootstrapToken,
    /// Everybody, without an entry as long as no token is given. Says why.
    Anyone { because: &'static str },
    /// Everybody, without an entry, whatever token is given. Says why.
    Everyone { because: &'static str },
}

struct Row {
    /// `Service/Method`.
    rpc: &'static str,
    gate: Gate,
    /// A request that succeeds once, encoded.
    request: fn(&World) -> Vec<u8>,
    /// The operations that succeeding writes down, the refused one first.
    operations: &'static [&'static str],
}

const ROWS: &[Row] = &[
    Row {
        rpc: "WorkloadService/IssueSecrets",
        gate: DriverAndPod,
        request: |world| issue_request(&world.token(&world.pod("payments", "api", "api-0")).jwt),
        operations: &["secret.issue"],
    },
    Row {
        rpc: "SecretService/PutSecret",
        gate: Operator,
        request: |_| {
            let fields = vec![v1::Field { name: "password".into(), value: b"x".into() }];
            encode(v1::PutSecretRequest { path: "payments/db".into(), fields, expected_version: Some(3) })
        },
        operations: &["secret.put"],
    },
    Row {
        rpc: "SecretService/GetSecret",
        gate: Operator,
        request: |_| encode(v1::GetSecretRequest { path: "payments/db".into(), version: None }),
        operations: &["secret.get"],
    },
    Row {
        rpc: "SecretService/ListSecrets",
        gate: Operator,
        request: |_| encode(v1::ListSecretsRequest::default()),
        operations: &["secret.list"],
    },
    Row {
        rpc: "SecretService/GetSecretHistory",
        gate: Operator,
        request: |_| encode(v1::GetSecretHistoryRequest { path: "payments/db".into() }),
        operations: &["secret.history"],
    },
    Row {
        rpc: "SecretService/RollbackSecret",
        gate: Operator,
        request: |_| encode(v1::RollbackSecretRequest { path: "payments/db".into(), version: 2 }),
        operations: &["secret.rollback"],
    },
    Row {
        rpc: "SecretService/DeleteVersions",
        gate: Operator,
        request: |_| versions_request(),
        operations: &["secret.delete"],
    },
    Row {
        rpc: "SecretService/UndeleteVersions",
        gate: Operator,
        request: |_| versions_request(),
        operations: &["secret.undelete"],
    },
    Row {
        rpc: "SecretService/DestroyVersions",
        gate: Operator,
        request: |_| versions_request(),
        operations: &["secret.destroy"],
    },
    Row {
        rpc: "ConfigService/ApplyObjects",
        gate: Operator,
        request: |_| {
            let spec_json = json!({"description": "new"}).to_string();
            let object =
                v1::Object { kind: "Keyspace".into(), name: "new".into(), spec_json, ..Default::default() };
            encode(v1::ApplyObjectsRequest { objects: vec![object], dry_run: false })
        },
        operations: &["config.apply"],
    },
    Row {
        rpc: "ConfigService/GetObject",
        gate: Operator,
        request: |_| encode(v1::GetObjectRequest { kind: "Issuer".into(), name: "dev".into() }),
        operations: &["config.get"],
    },
    Row {
        rpc: "ConfigService/ListObjects",
        gate: Operator,
        request: |_| encode(v1::ListObjectsRequest::default()),
        operations: &["config.list"],
    },
    Row {
        rpc: "ConfigService/DeleteObject",
        gate: Operator,
        request: |_| encode(v1::DeleteObjectRequest { kind: "Keyspace".into(), name: "empty".into() }),
        operations: &["config.delete"],
    },
    Row {
        rpc: "KeyService/ListKeys",
        gate: Operator,
        request: |_| encode(v1::ListKeysRequest::default()),
        operations: &["key.list"],
    },
    Row {
        rpc: "KeyService/RotateKey",
        gate: Operator,
        request: |_| encode(v1::RotateKeyRequest { keyspace: "payments".into(), ..Default::default() }),
        operations: &["key.rotate"],
    },
    Row {
        rpc: "KeyService/GetKeyStatus",
        gate: Operator,
        request: |_| encode(v1::GetKeyStatusRequest::default()),
        operations: &["key.status"],
    },
    Row {
        rpc: "KeyService/GetRotationSchedule",
        gate: Operator,
        request: |_| encode(v1::GetRotationScheduleRequest::default()),
        operations: &["key.schedule"],
    },
    Row {
        rpc: "KeyService/PauseRotation",
        gate: Operator,
        request: |_| encode(v1::PauseRotationRequest { keyspace: "payments".into(), ..Default::default() }),
        operations: &["key.pause"],
    },
    Row {
        rpc: "KeyService/ResumeRotation",
        gate: Operator,
        request: |_| encode(v1::ResumeRotationRequest { keyspace: "payments".into(), ..Default::default() }),
        operations: &["key.resume"],
    },
    Row {
        rpc: "KeyService/ListQuarantine",
        gate: Operator,
        request: |_| encode(v1::ListQuarantineRequest::default()),
        operations: &["key.list-quarantine"],
    },
    Row {
        rpc: "KeyService/RetryQuarantine",
        gate: Operator,
        request: |_| encode(v1::RetryQuarantineRequest { keyspace: "payments".into() }),
        operations: &["key.retry-quarantine"],
    },
    Row {
        rpc: "KeyService/CompromiseKey",
        gate: Operator,
        request: |_| encode(v1::CompromiseKeyRequest { keyspace: "bare".into(), version: 1 }),
        operations: &["key.compromise"],
    },
    Row {
        rpc: "KeyService/ListExposedSecrets",
        gate: Operator,
        request: |_| encode(v1::ListExposedSecretsRequest { keyspace: "bare".into(), ..Default::default() }),
        operations: &["key.list-exposed"],
    },
    Row {
        rpc: "KeyService/ScheduleKeyDestruction",
        gate: Operator,
        request: |_| {
            let (keyspace, delay_seconds) = ("bare".into(), Some(3600));
            encode(v1::ScheduleKeyDestructionRequest {
                keyspace,
                version: 1,
                delay_seconds,
                purpose: String::new(),
            })
        },
        operations: &["key.schedule-destruction"],
    },
    Row {
        rpc: "KeyService/CancelKeyDestruction",
        gate: Operator,
        request: |_| {
            encode(v1::CancelKeyDestructionRequest {
                keyspace: "bare".into(),
                version: 1,
                purpose: String::new(),
            })
        },
        operations: &["key.cancel-destruction"],
    },
    Row {
        rpc: "KeyService/ListCertificates",
        gate: Operator,
        request: |_| encode(v1::ListCertificatesRequest::default()),
        operations: &["key.list-certificates"],
    },
    Row {
        rpc: "CertificateService/GetBundle",
        gate: Everyone {
            because: "whoever is to trust the authority asks for it, before there is a token; a certificate is shown to \
                      everyone who connects, and says no more",
        },
        request: |_| encode(v1::GetBundleRequest {}),
        operations: &[],
    },
    Row {
        rpc: "CertificateService/IssueDriverCertificate",
        gate: Driver,
        request: |_| certificate_request(),
        operations: &["ca.issue-driver-certificate"],
    },
    Row {
        rpc: "CertificateService/RotateAuthority",
        gate: Operator,
        request: |_| encode(v1::RotateAuthorityRequest {}),
        operations: &["ca.rotate"],
    },
    Row {
        rpc: "RootService/GetRoot",
        gate: Operator,
        request: |_| encode(v1::GetRootRequest {}),
        operations: &["root.status"],
    },
    Row {
        rpc: "RootService/Unseal",
        gate: ShareHolder,
        request: |_| encode(v1::UnsealRequest { share: "kfs1-none".into() }),
        operations: &["root.unseal"],
    },
    Row {
        rpc: "RootService/ChangeRoot",
        gate: Operator,
        request: |world| {
            let key = base64::engine::general_purpose::STANDARD
                .encode(uuid::Uuid::from_u128(7).as_bytes().repeat(2));
            std::fs::write(world.server.setup().folder().join("root.key"), key).expect("another root key");
            encode(v1::ChangeRootRequest { custody: "file".into(), ..Default::default() })
        },
        operations: &["root.change"],
    },
    Row {
        rpc: "RootService/CreateRecovery",
        gate: Operator,
        request: |_| encode(v1::CreateRecoveryRequest { shares: 3, threshold: 2 }),
        operations: &["recovery.create"],
    },
    Row {
        rpc: "RootService/DrillRecovery",
        gate: PreparedOperator,
        request: |_| encode(v1::DrillRecoveryRequest::default()),
        operations: &["recovery.drill"],
    },
    Row {
        rpc: "AuditService/ListEntries",
        gate: Operator,
        request: |_| encode(v1::ListEntriesRequest::default()),
        operations: &["audit.list"],
    },
    Row {
        rpc: "ApprovalService/ListPlans",
        gate: Operator,
        request: |_| encode(v1::ListPlansRequest {}),
        operations: &["approval.list"],
    },
    Row {
        rpc: "ApprovalService/GetPlan",
        gate: Operator,
        request: |world| encode(v1::GetPlanRequest { id: waiting_plan(world) }),
        operations: &["approval.get"],
    },
    Row {
        rpc: "ApprovalService/SignPlan",
        gate: SecondPerson,
        request: |world| encode(v1::SignPlanRequest { id: waiting_plan(world), signature: vec![0; 64] }),
        operations: &["approval.sign"],
    },
    Row {
        rpc: "PolicyService/Explain",
        gate: Operator,
        request: |_| {
            encode(v1::ExplainRequest {
                namespace: "payments".into(),
                service_account: "api".into(),
                path: "payments/db".into(),
                ..Default::default()
            })
        },
        operations: &["policy.explain"],
    },
    Row {
        rpc: "SystemService/WhoAmI",
        gate: Operator,
        request: |_| encode(v1::WhoAmIRequest {}),
        operations: &["system.whoami"],
    },
    Row {
        rpc: "SystemService/RevokeInitialAdministrator",
        gate: OtherOperator,
        request: |_| encode(v1::RevokeInitialAdministratorRequest {}),
        operations: &["system.revoke-initial-administrator"],
    },
    Row {
        rpc: "SystemService/Initialize",
        gate: BootstrapToken,
        request: |world| initialize_request(&world.server.setup().bootstrap_token_file()),
        operations: &["system.initialize"],
    },
    Row {
        rpc: "SystemService/GetStatus",
        gate: Anyone {
            because: "health probes and people in trouble ask it, often and without a token, also when there is no \
                      database to write to; it tells the state alone, and details only to an operator",
        },
        request: |_| encode(v1::GetStatusRequest {}),
        // With a token it is an operation like any other.
        operations: &["system.status"],
    },
];

fn encode(message: impl Message) -> Vec<u8> {
    message.encode_to_vec()
}

fn versions_request() -> Vec<u8> {
    encode(v1::ChangeVersionsRequest { path: "payments/db".into(), versions: vec![1] })
}

fn issue_request(pod_token: &str) -> Vec<u8> {
    let items = vec![v1::SecretReference { path: "payments/db".into(), optional: false }];
    encode(v1::IssueSecretsRequest { pod_token: pod_token.into(), role: "payments-api".into(), items })
}

fn certificate_request() -> Vec<u8> {
    let certificate_request = certificates::request(&certificates::key());
    encode(v1::IssueDriverCertificateRequest { certificate_request })
}

fn initialize_request(file: &std::path::Path) -> Vec<u8> {
    let bootstrap_token = std::fs::read_to_string(file).expect("a bootstrap token");
    encode(v1::InitializeRequest { bootstrap_token })
}

#[test]
fn every_rpc_has_a_row() {
    let descriptors = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let own = descriptors.file.iter().filter(|file| file.package() == "keyfold.v1");
    let services = own.flat_map(|file| &file.service);
    let rpcs: BTreeSet<String> = services
        .flat_map(|service| {
            service.method.iter().map(move |rpc| format!("{}/{}", service.name(), rpc.name()))
        })
        .collect();
    let rows: BTreeSet<String> = ROWS.iter().map(|row| row.rpc.to_owned()).collect();
    assert_eq!(rpcs, rows, "each RPC needs a row here: who may call it, and what it writes down");
    assert_eq!(ROWS.len(), rows.len(), "an RPC has two rows");
    let exempt = ROWS
        .iter()
        .filter(|row| matches!(row.gate, Anyone { because } | Everyone { because } if !because.is_empty()));
    assert_eq!(
        exempt.map(|row| row.rpc).collect::<Vec<_>>(),
        ["CertificateService/GetBundle", "SystemService/GetStatus"]
    );
}

/// One call, and what must come of it.
struct Case {
    what: &'static str,
    bearer: Option<String>,
    request: Vec<u8>,
    code: Code,
    /// The refusal's reason in its entry.
    reason: Option<&'static str>,
    /// The entry's actor.
    actor: &'static str,
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_15_every_rpc_refuses_and_writes_down() {
    let world = World::start().await.with_payments().await;
    world.put("payments/db", &[("password", "second")]).await;
    world.put("payments/db", &[("password", "third")]).await;
    world.server.apply("Keyspace", "empty", &json!({})).await.unwrap();
    world.server.apply("Keyspace", "bare", &json!({})).await.unwrap();
    for row in ROWS {
        if row.rpc == "ApprovalService/ListPlans" {
            have_a_plan_wait(&world).await;
        }
        for case in cases(&world, row) {
            let size = world.database.check_audit_log();
            let done = call(&world.channel(), row.rpc, case.bearer.as_deref(), case.request).await;
            let what = format!("{} {}", row.rpc, case.what);
            let code = done.as_ref().map_or_else(Status::code, |_| Code::Ok);
            assert_eq!(code, case.code, "{what}: {:?}", done.err());
            let expected: Vec<_> = match (&row.gate, case.reason) {
                (Anyone { .. }, _) if case.bearer.is_none() => Vec::new(),
                (Everyone { .. }, _) => Vec::new(),
                (_, None) => row.operations.iter().map(|name| (*name, "allowed", "", case.actor)).collect(),
                (_, Some(reason)) => vec![(row.operations[0], "refused", reason, case.actor)],
            };
            let entries = entries_from(&world.database, size);
            assert_eq!(entries.iter().map(summary).collect::<Vec<_>>(), expected, "{what}");
            assert!(entries.iter().all(|entry| entry["from"] == "127.0.0.1"), "{what}");
            let told = done.err().map(|status| status.message().to_owned());
            assert!(
                entries.iter().all(|entry| entry["outcome"]["message"].as_str() == told.as_deref()),
                "{what}"
            );
        }
    }
}

/// Asks for what a rule guards from here on: no row below does that.
async fn have_a_plan_wait(world: &World) {
    let approvers = ["people/alice", "people/bob"]
        .map(|operator| json!({"operator": operator, "publicKey": public(&new_key())}));
    let rule = json!({"operations": ["secret.get"], "approvers": approvers});
    world.server.apply("ApprovalRule", "two-persons", &rule).await.unwrap();
    let request = v1::GetSecretRequest { path: "payments/db".into(), version: None };
    asked(world.operator().secrets().get_secret(request).await);
}

fn waiting_plan(world: &World) -> String {
    world.database.sql("SELECT id FROM plans")
}

/// The credentials of a world, and the RPC that they are tried on.
struct Attempts<'a> {
    world: &'a World,
    row: &'a Row,
    administrator: String,
    pod: String,
    driver: String,
}

fn cases(world: &World, row: &Row) -> Vec<Case> {
    let administrator = std::fs::read_to_string(world.server.setup().admin_token_file()).expect("a token");
    let pod = world.token(&world.pod("payments", "api", "api-0")).jwt.to_string();
    let attempts = Attempts { world, row, administrator, pod, driver: world.driver_token() };
    match row.gate {
        Operator => attempts.of_operators(),
        OtherOperator | PreparedOperator => attempts.of_other_operators(),
        ShareHolder => attempts.of_share_holders(),
        SecondPerson => attempts.of_second_persons(),
        Driver => attempts.of_drivers_alone(),
        DriverAndPod => attempts.of_drivers(),
        BootstrapToken => attempts.of_bootstrap_tokens(),
        Anyone { .. } => attempts.of_anyone(),
        Everyone { .. } => attempts.of_everyone(),
    }
}

impl Attempts<'_> {
    fn of_operators(&self) -> Vec<Case> {
        let refused =
            |what, bearer| self.case(what, bearer, Code::Unauthenticated, Some("operator-token"), "unknown");
        let workload = |what, bearer: &str, reason, actor| {
            self.case(what, Some(bearer), Code::PermissionDenied, Some(reason), actor)
        };
        let pod = "dev/system:serviceaccount:payments:api";
        vec![
            refused("without a token", None),
            refused("with a bad token", Some(BAD)),
            workload("with a pod's token", &self.pod, "operator-not-bound", pod),
            workload("with the driver's token", &self.driver, "driver-as-operator", "unknown"),
            self.case(
                "as the administrator",
                Some(&self.administrator),
                Code::Ok,
                None,
                "initial-administrator",
            ),
        ]
    }

    fn of_second_persons(&self) -> Vec<Case> {
        let mut cases = self.of_operators();
        let last = cases.pop().expect("a case");
        cases.push(Case { code: Code::FailedPrecondition, reason: Some("approval-unfit"), ..last });
        cases
    }

    fn of_other_operators(&self) -> Vec<Case> {
        let mut cases = self.of_operators();
        let administrator = cases.last_mut().expect("a case");
        (administrator.code, administrator.reason) = (Code::FailedPrecondition, Some("conflict"));
        cases
    }

    fn of_drivers(&self) -> Vec<Case> {
        let malformed =
            |what, bearer| self.case(what, bearer, Code::Unauthenticated, Some("token-malformed"), "unknown");
        let without_pod = malformed("without a pod's token", Some(&self.driver));
        let foreign = Some("not-a-driver");
        vec![
            malformed("without the driver's token", None),
            malformed("with a bad token", Some(BAD)),
            malformed("as the administrator", Some(&self.administrator)),
            self.case("with a pod's token", Some(&self.pod), Code::PermissionDenied, foreign, "unknown"),
            Case { request: issue_request(""), ..without_pod },
            self.case(
                "as the driver",
                Some(&self.driver),
                Code::Ok,
                None,
                "system:serviceaccount:payments:api",
            ),
        ]
    }

    fn of_share_holders(&self) -> Vec<Case> {
        let tokens =
            [("without a token", None), ("with a bad token", Some(BAD)), ("with a pod's", Some(&*self.pod))];
        let any = tokens.into_iter().chain([("as the administrator", Some(&*self.administrator))]);
        let refused =
            |(what, bearer)| self.case(what, bearer, Code::FailedPrecondition, Some("conflict"), "unknown");
        any.map(refused).collect()
    }

    fn of_drivers_alone(&self) -> Vec<Case> {
        let mut cases = self.of_drivers();
        cases.retain(|case| case.what != "without a pod's token");
        let driver = cases.last_mut().expect("a case");
        driver.actor = "system:serviceaccount:keyfold-system:keyfold-csi";
        cases
    }

    fn of_everyone(&self) -> Vec<Case> {
        let tokens =
            [("without a token", None), ("with a bad token", Some(BAD)), ("with a pod's", Some(&*self.pod))];
        let any = tokens.into_iter().chain([("as the administrator", Some(&*self.administrator))]);
        any.map(|(what, bearer)| self.case(what, bearer, Code::Ok, None, "")).collect()
    }

    fn of_bootstrap_tokens(&self) -> Vec<Case> {
        let refused = |what, bearer, bootstrap: &str| Case {
            request: encode(v1::InitializeRequest { bootstrap_token: bootstrap.into() }),
            ..self.case(what, bearer, Code::PermissionDenied, Some("bootstrap-token"), "unknown")
        };
        let (administrator, done) = (Some(self.administrator.as_str()), Some("already-initialized"));
        vec![
            refused("without a token", None, ""),
            refused("with a bad token", None, BAD),
            refused("with a pod's token", Some(&self.pod), &self.pod),
            refused("as the administrator", administrator, &self.administrator),
            self.case("a second time", administrator, Code::FailedPrecondition, done, "unknown"),
        ]
    }

    /// Whoever brings a token is held to it.
    fn of_anyone(&self) -> Vec<Case> {
        let anyone = self.case("without a token", None, Code::Ok, None, "");
        std::iter::once(anyone).chain(self.of_operators().into_iter().skip(1)).collect()
    }

    fn case(
        &self,
        what: &'static str,
        bearer: Option<&str>,
        code: Code,
        reason: Option<&'static str>,
        actor: &'static str,
    ) -> Case {
        let (bearer, request) = (bearer.map(str::to_owned), (self.row.request)(self.world));
        Case { what, bearer, request, code, reason, actor }
    }
}

/// As long as a token of an administrator, and nobody's.
const BAD: &str = "kfa_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Without those of what servers do of their own accord, which nobody calls.
fn entries_from(database: &Database, index: u64) -> Vec<Value> {
    let sql =
        "SELECT convert_from(entry, 'UTF8') FROM audit_entries WHERE actor <> 'keyfold-server' AND index >=";
    let lines = database.sql(&format!("{sql} {index} ORDER BY index"));
    lines.lines().map(|line| serde_json::from_str(line).expect("an entry is JSON")).collect()
}

/// Operation, result, reason, actor.
fn summary(entry: &Value) -> (&str, &str, &str, &str) {
    let text = |member: &str, name: &str| entry[member][name].as_str().unwrap_or_default();
    (text("operation", "name"), text("outcome", "result"), text("outcome", "reason"), text("actor", "name"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_initialisation_is_the_first_entry() {
    let (database, folder) = (Database::shared(), tempfile::tempdir().unwrap());
    let setup = server_setup(folder.path(), "server", &database);
    let server = keyfold::dev::server::Server::start(&setup).await.unwrap();
    let ca = std::fs::read(setup.ca_file()).unwrap();
    let channel = keyfold_proto::channel::connect_lazy(&setup.url(), &ca).unwrap();

    until_state(&server, v1::State::Uninitialized, "keyfold init").await;
    for row in ROWS
        .iter()
        .filter(|row| matches!(row.gate, Operator | PreparedOperator | SecondPerson | Driver | DriverAndPod))
    {
        let status = call(&channel, row.rpc, None, Vec::new()).await.unwrap_err();
        let early = matches!(status.code(), Code::FailedPrecondition | Code::InvalidArgument);
        assert!(early, "{} before init: {status:?}", row.rpc);
    }
    let wrong = encode(v1::InitializeRequest { bootstrap_token: "wrong".into() });
    let refused = call(&channel, "SystemService/Initialize", None, wrong).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(
        summary(&entries_from(&database, 0)[0]),
        ("system.initialize", "refused", "bootstrap-token", "unknown")
    );

    let right = initialize_request(&setup.bootstrap_token_file());
    call(&channel, "SystemService/Initialize", None, right).await.unwrap();
    let entries = entries_from(&database, 1);
    assert_eq!(
        entries.iter().map(summary).collect::<Vec<_>>(),
        [("system.initialize", "allowed", "", "initial-administrator")]
    );
    assert_eq!(database.check_audit_log(), 2);
    drop(server);
}
