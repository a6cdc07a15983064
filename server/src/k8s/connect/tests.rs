use std::fs;

use keyfold_core::object::ApiServerRef;
use serde_json::{Value, json};

use super::*;

/// A kubeconfig that is fine, after `change`, in a folder of its own; and what the server makes of it.
async fn outcome(change: impl FnOnce(&mut Value)) -> Result<(), String> {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("ca.crt"), certified.cert.pem()).unwrap();
    fs::write(folder.path().join("client.key"), certified.signing_key.serialize_pem()).unwrap();
    fs::write(folder.path().join("token"), "of-the-server").unwrap();
    let mut kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "prod",
        "contexts": [{"name": "prod", "context": {"cluster": "prod", "user": "keyfold"}}],
        "clusters": [
            {"name": "prod", "cluster": {"server": "https://localhost:6443", "certificate-authority": "ca.crt"}}
        ],
        "users": [{"name": "keyfold", "user": {"tokenFile": "token"}}],
    });
    change(&mut kubeconfig);
    fs::write(folder.path().join("prod.yaml"), kubeconfig.to_string()).unwrap();
    made("prod.yaml", Some(folder.path())).await
}

async fn made(name: &str, dir: Option<&Path>) -> Result<(), String> {
    client_of(ApiServerRef::Kubeconfig(name.into()), dir).await
}

async fn client_of(place: ApiServerRef, dir: Option<&Path>) -> Result<(), String> {
    let dir = dir.map(Path::to_owned);
    let made = move || client(&place, dir.as_deref(), Duration::from_secs(5));
    let made = tokio::task::spawn_blocking(made).await.unwrap();
    made.map(|_| ()).map_err(|failure| failure.to_string())
}

fn user(kubeconfig: &mut Value) -> &mut Value {
    &mut kubeconfig["users"][0]["user"]
}

fn cluster(kubeconfig: &mut Value) -> &mut Value {
    &mut kubeconfig["clusters"][0]["cluster"]
}

#[tokio::test]
async fn token_files_and_client_certificates_are_taken() {
    assert_eq!(outcome(|_| {}).await, Ok(()));
    let certificate = |kubeconfig: &mut Value| {
        *user(kubeconfig) = json!({"client-certificate": "ca.crt", "client-key": "client.key"});
    };
    assert_eq!(outcome(certificate).await, Ok(()));
    assert_eq!(outcome(|config| cluster(config)["tls-server-name"] = json!("kubernetes")).await, Ok(()));
}

#[tokio::test]
async fn attack_23_a_kubeconfig_cannot_make_the_server_run_programs() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let exec = json!({
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "touch",
        "args": [trace],
        "interactiveMode": "Never",
    });
    let provider = json!({"name": "gcp", "config": {"cmd-path": "touch", "cmd-args": trace}});
    for (field, value) in [("exec", exec), ("auth-provider", provider)] {
        let refused = outcome(|config| user(config)[field] = value.clone()).await.unwrap_err();
        assert!(refused.contains(r#"user "keyfold""#) && refused.contains(field), "{refused}");
        // Nor in a context that is not the current one: who changes contexts reads no code.
        let elsewhere = |config: &mut Value| {
            let other = json!({"name": "other", "user": {field: value}});
            config["users"].as_array_mut().unwrap().push(other);
        };
        let refused = outcome(elsewhere).await.unwrap_err();
        assert!(refused.contains(r#"user "other""#), "{refused}");
    }
    assert!(!trace.exists());
}

#[tokio::test]
async fn attack_23_a_kubeconfig_cannot_send_tokens_to_whom_nothing_proves() {
    for (field, value, named) in [
        ("insecure-skip-tls-verify", json!(true), "insecure-skip-tls-verify"),
        ("server", json!("http://localhost:8080"), "https://"),
        ("server", json!("HTTPS.example"), "https://"),
        ("server", json!(null), "https://"),
        ("proxy-url", json!("http://localhost:3128"), "proxy-url"),
    ] {
        let refused = outcome(|config| cluster(config)[field] = value.clone()).await.unwrap_err();
        assert!(refused.contains(r#"cluster "prod""#) && refused.contains(named), "{refused}");
    }
    let missing = outcome(|config| user(config)["tokenFile"] = json!("other")).await.unwrap_err();
    assert!(missing.contains("credentials") && missing.contains("/other"), "{missing}");
    let empty = |config: &mut Value| {
        cluster(config)["certificate-authority-data"] = json!("");
    };
    let refused = outcome(empty).await.unwrap_err();
    assert!(refused.contains("authority"), "{refused}");
}

#[tokio::test]
async fn a_file_that_is_no_kubeconfig_is_not_quoted() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("prod.yaml"),
        "users:\n  - name: a\n    user: {token: [planted-credential]}\n",
    )
    .unwrap();
    let refused = made("prod.yaml", Some(folder.path())).await.unwrap_err();
    assert!(refused.contains("not a kubeconfig: see line 3"), "{refused}");
    assert!(!refused.contains("planted"), "{refused}");
    fs::write(folder.path().join("prod.yaml"), "").unwrap();
    assert!(made("prod.yaml", Some(folder.path())).await.is_err());
}

#[tokio::test]
async fn a_kubeconfig_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let refused = made("prod.yaml", Some(folder.path())).await.unwrap_err();
    assert!(refused.contains("prod.yaml: No such file"), "{refused}");
    let refused = made("prod.yaml", None).await.unwrap_err();
    assert!(refused.contains("kubeconfig_dir"), "{refused}");
    fs::create_dir(folder.path().join("prod.yaml")).unwrap();
    let refused = made("prod.yaml", Some(folder.path())).await.unwrap_err();
    assert!(refused.contains("not a file"), "{refused}");
    let huge = fs::File::create(folder.path().join("huge.yaml")).unwrap();
    huge.set_len(KUBECONFIG_MAX_BYTES + 1).unwrap();
    let refused = made("huge.yaml", Some(folder.path())).await.unwrap_err();
    assert!(refused.contains("not a file of at most"), "{refused}");
}

#[tokio::test]
async fn the_servers_own_service_account_is_used_where_there_is_one() {
    let made = client_of(ApiServerRef::InCluster, None).await;
    match Path::new("/var/run/secrets/kubernetes.io/serviceaccount/token").exists() {
        true => assert_eq!(made, Ok(())),
        false => assert!(made.unwrap_err().contains("own service account in this cluster cannot be used")),
    }
}

#[test]
fn attack_16_no_more_of_a_kubeconfig_is_read_than_one_has() {
    let max = KUBECONFIG_MAX_BYTES as usize;
    let fits = "x".repeat(max);
    assert_eq!(read_bounded(fits.as_bytes()).unwrap(), Some(fits));
    let mut endless = Counted { bytes: 0 };
    assert_eq!(read_bounded(&mut endless).unwrap(), None);
    assert_eq!(endless.bytes, max + 1);
}

/// Says of itself what a file of no length would, and never ends.
struct Counted {
    bytes: usize,
}

impl Read for Counted {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        into.fill(b'x');
        self.bytes += into.len();
        Ok(into.len())
    }
}
