//! The manifests in `deploy/` agree with the code and with each other.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use clap::Parser as _;
use keyfold::{
    args::Cli,
    dev::server::{Server, Setup},
    documents,
};
use keyfold_core::{
    clock::{Clock as _, SystemClock},
    identity::{NamedUid, WorkloadIdentity},
    object::{Capability, IssuerKind, Kind, Permission, PublicKey, Spec},
    path::SecretPath,
    policy::{self, AppRole, Labels},
    rights::{OperatorRole, Rights},
};
use keyfold_csi::DRIVER_NAME;
use keyfold_server::config::{Config, ENVIRONMENT_PREFIX, RootKey};
use keyfold_tests::{Database, bin_dir, parse_volume, two_persons};
use ring::signature::KeyPair as _;
use serde_json::Value;

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(deploy(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The documents of one file.
fn manifests(name: &str) -> Vec<Value> {
    let text = text(name);
    let mut reader = text.as_bytes();
    let documents: Result<Vec<Value>, _> = serde_saphyr::read(&mut reader).collect();
    documents.unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The one document of that kind in `kubernetes/FILE`.
fn kubernetes(file: &str, kind: &str) -> Value {
    let mut found = manifests(&format!("kubernetes/{file}"));
    found.retain(|document| document["kind"] == kind);
    assert_eq!(found.len(), 1, "{file} has one {kind}");
    found.remove(0)
}

fn str_at<'a>(value: &'a Value, pointer: &str) -> &'a str {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_else(|| panic!("no text at {pointer} of {value}"))
}

fn list_at<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    let found = value.pointer(pointer).and_then(Value::as_array);
    found.unwrap_or_else(|| panic!("no list at {pointer} of {value}"))
}

fn named<'a>(list: &'a [Value], name: &str) -> &'a Value {
    list.iter().find(|item| item["name"] == name).unwrap_or_else(|| panic!("no {name} in {list:?}"))
}

fn server_deployment() -> Value {
    kubernetes("server.yaml", "Deployment")
}

/// Pod specs, and the container that runs Keyfold's program.
fn server_container(deployment: &Value) -> &Value {
    named(list_at(deployment, "/spec/template/spec/containers"), "server")
}

fn driver_container(daemon_set: &Value) -> &Value {
    named(list_at(daemon_set, "/spec/template/spec/containers"), "csi")
}

/// The variables of a container that have a fixed value.
fn environment(container: &Value) -> Vec<(String, String)> {
    let variables = container.get("env").and_then(Value::as_array).cloned().unwrap_or_default();
    let fixed = |variable: &Value| {
        Some((variable["name"].as_str()?.to_owned(), variable.get("value")?.as_str()?.to_owned()))
    };
    variables.iter().filter_map(fixed).collect()
}

/// Where a path of a container comes from: the name of its volume.
fn volume_of<'a>(container: &'a Value, path: &Path) -> &'a str {
    let mounts = list_at(container, "/volumeMounts");
    let found = mounts.iter().find(|mount| path.starts_with(str_at(mount, "/mountPath")));
    str_at(found.unwrap_or_else(|| panic!("nothing is mounted at {}", path.display())), "/name")
}

#[test]
fn every_manifest_parses_and_the_kustomization_lists_it() {
    let kustomization = &manifests("kubernetes/kustomization.yaml")[0];
    let listed: BTreeSet<_> =
        list_at(kustomization, "/resources").iter().map(|name| name.as_str().unwrap().to_owned()).collect();
    let found: BTreeSet<_> = fs::read_dir(deploy("kubernetes"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "kustomization.yaml")
        .collect();
    assert_eq!(listed, found);
    for file in &listed {
        for document in manifests(&format!("kubernetes/{file}")) {
            for field in ["/apiVersion", "/kind", "/metadata/name"] {
                assert!(!str_at(&document, field).is_empty(), "{file}");
            }
        }
    }
    let namespace = kubernetes("namespace.yaml", "Namespace");
    assert_eq!(kustomization["namespace"], namespace["metadata"]["name"]);
}

#[test]
fn the_images_are_those_that_the_dockerfile_builds() {
    let dockerfile = text("Dockerfile");
    let kustomization = &manifests("kubernetes/kustomization.yaml")[0];
    let known: Vec<_> =
        list_at(kustomization, "/images").iter().map(|image| str_at(image, "/name").to_owned()).collect();
    let (deployment, daemon_set) = (server_deployment(), kubernetes("driver.yaml", "DaemonSet"));
    let containers =
        [("server", server_container(&deployment)), ("csi", driver_container(&daemon_set))].into_iter();
    let migrate = named(list_at(&deployment, "/spec/template/spec/initContainers"), "migrate");
    for (target, container) in containers.chain([("server", migrate)]) {
        assert!(dockerfile.contains(&format!(" AS {target}\n")), "{target}");
        let image = str_at(container, "/image");
        assert!(known.iter().any(|name| name == image), "{image}");
        assert!(dockerfile.contains(&format!("ENTRYPOINT [\"/usr/local/bin/{image}\"]")), "{image}");
        assert!(bin_dir().join(image).is_file(), "{image} is a program");
    }
}

#[test]
fn the_servers_configuration_loads_and_names_files_that_are_mounted() {
    let config_map = kubernetes("server-config.yaml", "ConfigMap");
    let yaml = str_at(&config_map, "/data/server.yaml");
    let deployment = server_deployment();
    let container = server_container(&deployment);
    let config: Config =
        keyfold_core::config::load(yaml, ENVIRONMENT_PREFIX, environment(container)).unwrap();
    let RootKey::File(root_key) = &config.root_key else { panic!("the root key is a file") };
    for (path, volume) in [
        (&config.tls.certificate_file, "tls"),
        (&config.tls.key_file, "tls"),
        (config.database.password_file.as_ref().unwrap(), "database"),
        (&config.database.ca_file, "database"),
        (&root_key.current, "root-key"),
        (config.bootstrap_token_file.as_ref().unwrap(), "bootstrap"),
    ] {
        assert_eq!(volume_of(container, path), volume, "{}", path.display());
    }
    let port = |name: &str| named(list_at(container, "/ports"), name)["containerPort"].as_u64().unwrap();
    assert_eq!(port("grpc"), u64::from(config.listen.port()));
    assert_eq!(port("metrics"), u64::from(config.metrics.unwrap().listen.port()));
    assert!(text("postgres.sql").contains("CREATE ROLE keyfold_server LOGIN"));
    assert!(config.database.url.starts_with("postgres://keyfold_server@"), "{}", config.database.url);
}

#[test]
fn migrate_alone_has_the_owners_password() {
    let config_map = kubernetes("server-config.yaml", "ConfigMap");
    let deployment = server_deployment();
    let migrate = named(list_at(&deployment, "/spec/template/spec/initContainers"), "migrate");
    let yaml = str_at(&config_map, "/data/server.yaml");
    let config: Config = keyfold_core::config::load(yaml, ENVIRONMENT_PREFIX, environment(migrate)).unwrap();
    assert!(config.database.url.starts_with("postgres://keyfold_owner@"), "{}", config.database.url);
    let password = config.database.password_file.unwrap();
    assert_eq!(volume_of(migrate, &password), "database-owner");
    assert!(volume_of(migrate, &config.database.ca_file) == "database");
    let server = server_container(&deployment);
    assert!(list_at(server, "/volumeMounts").iter().all(|mount| mount["name"] != "database-owner"));
    let arguments: Vec<_> = list_at(migrate, "/args").iter().filter_map(Value::as_str).collect();
    assert_eq!(arguments, ["--config", "/etc/keyfold/config/server.yaml", "migrate"]);
}

#[test]
fn the_server_runs_with_as_few_rights_as_it_needs() {
    let deployment = server_deployment();
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    let migrate = named(list_at(pod, "/initContainers"), "migrate");
    for container in [server_container(&deployment), migrate] {
        let context = &container["securityContext"];
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]));
    }
    for account in manifests("kubernetes/service-accounts.yaml") {
        assert_eq!(account["automountServiceAccountToken"], false);
    }
    let budget = kubernetes("server.yaml", "PodDisruptionBudget");
    assert!(budget["spec"]["minAvailable"].as_u64() < deployment["spec"]["replicas"].as_u64());
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    let policy = kubernetes("network-policy.yaml", "NetworkPolicy");
    let service = kubernetes("server.yaml", "Service");
    for selected in [
        &policy["spec"]["podSelector"]["matchLabels"],
        &service["spec"]["selector"],
        &budget["spec"]["selector"]["matchLabels"],
        &deployment["spec"]["selector"]["matchLabels"],
    ] {
        assert_eq!(selected, labels);
    }
}

#[test]
fn the_server_may_ask_the_api_server_what_it_asks_and_nothing_else() {
    let role = &manifests("api-server/rbac.yaml")[0];
    let rule = |group: &str, resource: &str, verb: &str| -> Value {
        serde_json::json!({"apiGroups": [group], "resources": [resource], "verbs": [verb]})
    };
    let wanted = [
        rule("authentication.k8s.io", "tokenreviews", "create"),
        rule("", "pods", "get"),
        rule("", "nodes", "get"),
    ];
    assert_eq!(list_at(role, "/rules"), wanted);
    let lines = text("api-server/rbac.yaml");
    let lines: Vec<_> = lines.lines().map(str::trim_start).collect();
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.starts_with("- apiGroups")) {
        assert!(lines[at - 1].starts_with('#'), "{line} says why");
    }
    let binding = &manifests("api-server/rbac.yaml")[1];
    assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
    let subject = &list_at(binding, "/subjects")[0];
    let deployment = server_deployment();
    assert_eq!(subject["name"], deployment["spec"]["template"]["spec"]["serviceAccountName"]);
    assert_eq!(subject["namespace"], kubernetes("namespace.yaml", "Namespace")["metadata"]["name"]);
}

#[test]
fn the_api_server_component_mounts_the_credentials_where_the_server_looks_and_nowhere_else() {
    let component = &manifests("api-server/kustomization.yaml")[0];
    assert_eq!(component["kind"], "Component");
    assert_eq!(component["patches"], serde_json::json!([{"path": "server.yaml"}]));
    assert!(text("kubernetes/kustomization.yaml").contains("# components:\n#   - ../api-server\n"));
    let patch = &manifests("api-server/server.yaml")[0];
    assert_eq!(patch["metadata"], server_deployment()["metadata"]);
    assert_eq!(patch["spec"]["template"]["spec"].get("initContainers"), None, "migrate gets none");
    let container = server_container(patch);
    let folder = Path::new("/var/run/secrets/kubernetes.io/serviceaccount");
    let volume = named(list_at(patch, "/spec/template/spec/volumes"), volume_of(container, folder));
    let sources = list_at(volume, "/projected/sources");
    // These three are what a Kubernetes client in a cluster reads.
    assert_eq!(sources[0]["serviceAccountToken"]["path"], "token");
    assert_eq!(sources[0]["serviceAccountToken"].get("audience"), None, "the API server's own");
    assert_eq!(sources[1]["configMap"]["items"], serde_json::json!([{"key": "ca.crt", "path": "ca.crt"}]));
    assert_eq!(sources[2]["downwardAPI"]["items"][0]["path"], "namespace");
}

#[test]
fn the_readiness_probe_is_a_command_that_exists() {
    let deployment = server_deployment();
    let command = list_at(server_container(&deployment), "/readinessProbe/exec/command").to_vec();
    let words: Vec<_> = command.iter().map(|word| word.as_str().unwrap()).collect();
    let cli = Cli::try_parse_from(&words).unwrap();
    assert_eq!(cli.global.server.as_deref(), Some("https://localhost:8443"));
    let ca_file = cli.global.ca_file.unwrap();
    assert_eq!(volume_of(server_container(&deployment), &ca_file), "ca");
}

#[test]
fn the_drivers_configuration_loads_and_its_sockets_and_mounts_are_kubelets() {
    let daemon_set = kubernetes("driver.yaml", "DaemonSet");
    let container = driver_container(&daemon_set);
    let config = driver_config(&daemon_set);
    assert_eq!(volume_of(container, &config.csi_socket()), "plugins");
    assert_eq!(volume_of(container, &config.registration_socket()), "plugins-registry");
    assert_eq!(volume_of(container, &config.pods_dir()), "pods");
    assert_eq!(volume_of(container, &config.server.ca_file), "ca");
    let pods = named(list_at(container, "/volumeMounts"), "pods");
    assert_eq!(pods["mountPropagation"], "Bidirectional");
    assert_eq!(container["securityContext"]["privileged"], true, "Bidirectional needs it");
    let volumes = list_at(&daemon_set, "/spec/template/spec/volumes");
    for name in ["plugins", "plugins-registry", "pods"] {
        let mount = named(list_at(container, "/volumeMounts"), name);
        assert_eq!(
            mount["mountPath"],
            named(volumes, name)["hostPath"]["path"],
            "the driver names host paths"
        );
    }
    let update = &daemon_set["spec"]["updateStrategy"]["rollingUpdate"];
    assert_eq!(update["maxSurge"], 0, "two drivers would fight for the sockets");
    assert_eq!(
        daemon_set["spec"]["template"]["spec"]["tolerations"],
        serde_json::json!([{"operator": "Exists"}])
    );
}

fn driver_config(daemon_set: &Value) -> keyfold_csi::config::Config {
    let config_map = kubernetes("driver-config.yaml", "ConfigMap");
    let node = &list_at(driver_container(daemon_set), "/env")[0];
    assert_eq!(str_at(node, "/valueFrom/fieldRef/fieldPath"), "spec.nodeName");
    let node = (str_at(node, "/name").to_owned(), "worker-1".to_owned());
    let config = keyfold_csi::config::Config::parse(str_at(&config_map, "/data/csi.yaml"), [node]).unwrap();
    assert_eq!(config.node_id, "worker-1");
    config
}

#[test]
fn the_driver_calls_the_server_by_its_services_name() {
    let service = kubernetes("server.yaml", "Service");
    let namespace = kubernetes("namespace.yaml", "Namespace");
    let config = driver_config(&kubernetes("driver.yaml", "DaemonSet"));
    let (name, namespace) = (str_at(&service, "/metadata/name"), str_at(&namespace, "/metadata/name"));
    assert_eq!(
        config.server.url,
        format!("https://{name}.{namespace}.svc:{}", service["spec"]["ports"][0]["port"])
    );
}

#[test]
fn driver_object_driver_issuer_and_tokens_speak_of_one_audience_and_one_account() {
    let object = kubernetes("csi-driver-object.yaml", "CSIDriver");
    assert_eq!(str_at(&object, "/metadata/name"), DRIVER_NAME);
    let daemon_set = kubernetes("driver.yaml", "DaemonSet");
    let config = driver_config(&daemon_set);
    let token = named(list_at(&daemon_set, "/spec/template/spec/volumes"), "token");
    let projected = &list_at(token, "/projected/sources")[0]["serviceAccountToken"];
    assert_eq!(str_at(&object, "/spec/tokenRequests/0/audience"), config.audience);
    assert_eq!(projected["audience"].as_str(), Some(config.audience.as_str()));
    let mount = named(list_at(driver_container(&daemon_set), "/volumeMounts"), "token");
    let token_file = Path::new(str_at(mount, "/mountPath")).join(str_at(projected, "/path"));
    assert_eq!(config.token_file, token_file);

    let Spec::Issuer(issuer) = spec("issuer.yaml", Kind::Issuer) else { panic!("an issuer") };
    assert!(issuer.audiences.contains(&config.audience));
    let seconds = projected["expirationSeconds"].as_u64().unwrap();
    assert!(seconds <= issuer.max_token_lifetime.as_secs());
    let account = str_at(&daemon_set, "/spec/template/spec/serviceAccountName");
    let namespace = kubernetes("namespace.yaml", "Namespace");
    let namespace = str_at(&namespace, "/metadata/name");
    assert!(issuer.drivers.iter().any(|d| d.namespace == namespace && d.service_account == account));
    let accounts = manifests("kubernetes/service-accounts.yaml");
    assert!(accounts.iter().any(|found| found["metadata"]["name"] == account));
}

/// What the driver promises kubelet depends on these fields.
#[test]
fn the_csi_driver_object_has_the_fields_that_the_driver_relies_on() {
    let object = kubernetes("csi-driver-object.yaml", "CSIDriver");
    let spec = &object["spec"];
    for (field, wanted) in [
        ("attachRequired", serde_json::json!(false)),
        ("podInfoOnMount", serde_json::json!(true)),
        ("volumeLifecycleModes", serde_json::json!(["Ephemeral"])),
        ("requiresRepublish", serde_json::json!(true)),
        ("fsGroupPolicy", serde_json::json!("None")),
        ("seLinuxMount", serde_json::json!(false)),
        ("serviceAccountTokenInSecrets", serde_json::json!(true)),
    ] {
        assert_eq!(spec[field], wanted, "{field}");
    }
    let seconds = spec["tokenRequests"][0]["expirationSeconds"].as_u64().unwrap();
    assert!((600..=3600).contains(&seconds));
    let label = "security.openshift.io/csi-ephemeral-volume-profile";
    assert_eq!(object["metadata"]["labels"][label], "restricted");
}

/// The spec of the one object of a kind in a file of Keyfold objects.
fn spec(file: &str, kind: Kind) -> Spec {
    let documents = documents::read(&[deploy(file)], &mut io::empty()).unwrap();
    let mut found = documents.iter().filter(|document| document.kind.name() == kind.as_str());
    let json = serde_json::to_string(&found.next().unwrap().spec).unwrap();
    Spec::parse(kind, &json).unwrap_or_else(|error| panic!("{file}: {error}"))
}

#[test]
fn the_example_operators_are_separate_and_an_administrator_is_among_them() {
    let documents = documents::read(&[deploy("operators.yaml")], &mut io::empty()).unwrap();
    let Spec::Issuer(people) = spec("operators.yaml", Kind::Issuer) else { panic!("an issuer") };
    assert_eq!((people.kind, people.drivers.len()), (IssuerKind::Oidc, 0));
    let parse = |document: &documents::Document| {
        let json = serde_json::to_string(&document.spec).unwrap();
        match Spec::parse(Kind::OperatorRole, &json).unwrap() {
            Spec::OperatorRole(spec) => {
                OperatorRole { name: document.metadata.name.as_str().try_into().unwrap(), spec }
            }
            _ => panic!("an operator role"),
        }
    };
    let roles: Vec<_> = documents
        .iter()
        .filter(|document| document.kind == documents::Kind::OperatorRole)
        .map(parse)
        .collect();
    let rights = |group: &str| {
        let claims = serde_json::json!({"sub": "alice", "groups": [group]});
        Rights::of(&"people".try_into().unwrap(), claims.as_object().unwrap(), &roles)
    };
    assert!(
        rights("keyfold-admins").may(Permission::OperatorsWrite),
        "else nobody can revoke the initial administrator"
    );
    assert!(
        rights("security").may(Permission::KeysRotate) && !rights("security").may_somewhere(Capability::Read)
    );
    assert!(rights("audit").may(Permission::AuditRead) && !rights("audit").may_somewhere(Capability::Read));
    let db = SecretPath::parse("payments/db").unwrap();
    assert!(
        rights("payments").may_on(Capability::Write, &db)
            && !rights("payments").may_on(Capability::Read, &db)
    );
    assert!(rights("everybody").is_empty());
}

/// Keys that anybody could copy would be no second person's: as it stands the example is refused.
#[test]
fn the_example_rule_fits_once_approvers_have_put_their_own_keys_in() {
    let documents = documents::read(&[deploy("approval-rule.yaml")], &mut io::empty()).unwrap();
    let [document] = &documents[..] else { panic!("one rule") };
    let mut rule = serde_json::to_value(&document.spec).unwrap();
    let parse = |rule: &Value| Spec::parse(Kind::ApprovalRule, &rule.to_string());
    let refusal = parse(&rule).unwrap_err().to_string();
    assert!(refusal.contains("use what keyfold approval keygen prints"), "{refusal}");
    for approver in rule["approvers"].as_array_mut().unwrap() {
        let key = two_persons::new_key();
        approver["publicKey"] = String::from(PublicKey(key.public_key().as_ref().try_into().unwrap())).into();
    }
    let Spec::ApprovalRule(rule) = parse(&rule).unwrap() else { panic!("a rule") };
    assert!(rule.approvers.len() > 2, "else nobody can be ill");
}

#[test]
fn the_example_pod_may_have_what_its_volume_asks_for() {
    let app = manifests("example-app/kubernetes.yaml");
    let pod = app.iter().find(|document| document["kind"] == "Pod").unwrap();
    let volume = parse_volume(&pod["spec"]["volumes"][0]["csi"]).unwrap();
    let Spec::AppRole(spec) = spec("example-app/keyfold.yaml", Kind::AppRole) else { panic!("an app role") };
    let role = AppRole { name: "payments-api".try_into().unwrap(), spec };
    assert_eq!(volume.role.as_ref(), Some(&role.name));
    let identity = identity_of(pod);
    let roles = std::slice::from_ref(&role);
    let labels = Labels::default();
    policy::select_role(&identity, identity.node.as_ref(), &labels, roles, Some("payments-api")).unwrap();
    for item in &volume.items {
        assert!(policy::decide(&identity, &role, &item.path, Capability::Read).is_some(), "{}", item.path);
    }
    assert!(pod["spec"]["securityContext"]["fsGroup"].is_u64(), "else only root could read the files");
}

fn identity_of(pod: &Value) -> WorkloadIdentity {
    let of = |name: &str| NamedUid { name: name.to_owned(), uid: format!("uid of {name}") };
    let namespace = str_at(pod, "/metadata/namespace");
    let account = str_at(pod, "/spec/serviceAccountName");
    let account_exists = manifests("example-app/kubernetes.yaml").iter().any(|document| {
        document["kind"] == "ServiceAccount"
            && document["metadata"] == serde_json::json!({"name": account, "namespace": namespace})
    });
    assert!(account_exists);
    WorkloadIdentity {
        issuer: "prod".try_into().unwrap(),
        subject: format!("system:serviceaccount:{namespace}:{account}"),
        namespace: namespace.to_owned(),
        service_account: of(account),
        pod: of(str_at(pod, "/metadata/name")),
        node: Some(of("worker-1")),
        credential_id: None,
        expires_at: SystemClock.now(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_roles_of_postgres_sql_suffice_and_the_servers_cannot_rewrite_the_log() {
    let database = Database::own();
    let access = &database.access;
    access.sql("postgres", &text("postgres.sql")).unwrap();
    let password = fs::read_to_string(access.password_file()).unwrap();
    let hba = database.own.as_ref().unwrap().data_dir().join("pg_hba.conf");
    let mut rules = fs::read_to_string(&hba).unwrap();
    for role in ["keyfold_owner", "keyfold_server"] {
        access.sql("postgres", &format!("ALTER ROLE {role} PASSWORD '{password}'")).unwrap();
        rules += &format!("hostssl keyfold {role} 127.0.0.1/32 scram-sha-256\n");
    }
    fs::write(&hba, rules).unwrap();
    access.sql("postgres", "SELECT pg_reload_conf()").unwrap();

    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("server.log");
    let setup = Setup::write(
        &bin_dir().join("keyfold-server"),
        &folder.path().join("server"),
        &log,
        (access, "keyfold"),
        SystemClock.now(),
    )
    .unwrap();
    let yaml = fs::read_to_string(setup.config_file()).unwrap();
    let as_role = |role: &str| {
        let yaml = yaml.replace("postgres://keyfold@", &format!("postgres://{role}@"));
        fs::write(setup.config_file(), yaml).unwrap();
    };
    as_role("keyfold_owner");
    setup.migrate().unwrap();
    as_role("keyfold_server");
    let mut server = Server::start(&setup).await.unwrap();
    server.initialise().await.unwrap();
    server.apply("Keyspace", "payments", &serde_json::json!({})).await.unwrap();

    for attempt in [
        "UPDATE audit_entries SET actor = 'nobody'",
        "DELETE FROM audit_entries_0",
        "TRUNCATE audit_entries_0",
        "ALTER TABLE audit_entries DISABLE TRIGGER ALL",
        "SET session_replication_role = replica",
        "CREATE TABLE another (id integer)",
    ] {
        let refused = access.sql("keyfold", &format!("SET ROLE keyfold_server; {attempt}"));
        assert!(refused.is_err(), "{attempt}");
    }
    assert_eq!(access.sql("keyfold", "SELECT count(*) FROM audit_entries").unwrap(), "2");
    server.stop();
}
