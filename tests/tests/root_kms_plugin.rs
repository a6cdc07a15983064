//! Root keys that a KMS plugin keeps: a real plugin process, well and otherwise.

use std::{sync::Arc, time::Duration};

use keyfold_core::entropy::SystemEntropy;
use keyfold_server::{
    config::{RootKey, RootKeyKmsPlugin},
    error::Error,
    keys::root::{Custody, CustodyKind, NewRoot, RootKeys},
};
use keyfold_tests::{
    faults::{until, within},
    kms_plugin::KmsPlugin,
};
use serde_json::Value;
use tokio::{io::AsyncWriteExt as _, net::UnixListener};

/// Long enough for a plugin that does answer.
const PATIENT_MILLIS: u64 = 20_000;
/// For one that does not.
const HASTY_MILLIS: u64 = 300;

fn roots(socket: std::path::PathBuf, timeout_millis: u64) -> RootKeys {
    let plugin = RootKey::KmsPlugin(RootKeyKmsPlugin { socket, timeout_millis });
    RootKeys::new(&plugin, None, Arc::new(SystemEntropy)).unwrap()
}

fn reason<T>(result: Result<T, Error>) -> String {
    match result {
        Err(Error::Sealed(reason)) => reason,
        Err(error) => panic!("not sealed: {error}"),
        Ok(_) => panic!("not refused"),
    }
}

fn kept(custody: &Custody) -> Value {
    serde_json::from_slice(&custody.data).unwrap()
}

async fn opens(roots: &RootKeys, root: &NewRoot) -> bool {
    roots.open(root.id, &root.custody).await.is_ok_and(|key| key == root.key)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_opens_again_also_after_the_plugins_key_has_turned_and_it_was_started_anew() {
    let mut plugin = KmsPlugin::start();
    let roots = roots(plugin.socket(), PATIENT_MILLIS);
    roots.check().await.unwrap();
    let first = roots.make().await.unwrap();
    assert_eq!(first.custody.kind, CustodyKind::KmsPlugin);
    assert!(opens(&roots, &first).await);

    plugin.rotate();
    let second = roots.make().await.unwrap();
    assert_eq!([&first, &second].map(|root| kept(&root.custody)["key_id"].clone()), ["key-1", "key-2"]);
    assert_ne!(first.id, second.id);

    plugin.kill();
    let away = format!(
        "the KMS plugin's socket {} cannot be connected to (connection refused): is the plugin running?",
        plugin.socket().display()
    );
    assert_eq!(reason(roots.open(first.id, &first.custody).await), away);
    assert_eq!(reason(roots.check().await), away);
    assert_eq!(reason(roots.make().await), away);

    plugin.start_again();
    assert!(opens(&roots, &first).await && opens(&roots, &second).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_is_frozen_is_given_up_in_time_and_serves_again_once_it_goes_on() {
    let plugin = KmsPlugin::start();
    let root = roots(plugin.socket(), PATIENT_MILLIS).make().await.unwrap();
    let roots = roots(plugin.socket(), HASTY_MILLIS);
    plugin.freeze();
    let reason =
        reason(within(Duration::from_secs(60), "giving up", roots.open(root.id, &root.custody)).await);
    assert!(reason.ends_with("did not answer in 300 ms: see the plugin's log"), "{reason}");
    plugin.thaw();
    until("the plugin goes on", async || opens(&roots, &root).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_misbehaves_is_refused_with_what_is_wrong() {
    let plugin = KmsPlugin::start();
    let roots = roots(plugin.socket(), PATIENT_MILLIS);
    for (mood, expected) in [
        (
            "unwell",
            r#"the KMS plugin says that it is not well ("the vault is sealed\u{1b}[2J"): see the plugin's log"#,
        ),
        ("version", r#"the KMS plugin serves the API in version "v1beta1", not in v2"#),
        ("nameless", "the KMS plugin gives a key_id that is empty or above 1024 bytes"),
        ("refusing", "the KMS plugin failed to tell its status (PermissionDenied): see the plugin's log"),
        ("empty", "the KMS plugin gives a ciphertext that is empty or above 1024 bytes"),
        ("large", "the KMS plugin gives a ciphertext that is empty or above 1024 bytes"),
        ("huge", "the KMS plugin failed to encrypt (OutOfRange): see the plugin's log"),
        ("named-at-length", "the KMS plugin gives a key_id that is empty or above 1024 bytes"),
        ("annotated-at-length", "the KMS plugin gives annotations above 32768 bytes"),
        (
            "annotated-wrongly",
            r#"the KMS plugin gives an annotation "no domain", which is not a full domain name"#,
        ),
        ("lying", "the KMS plugin decrypts to something else than it encrypted: do not use it"),
        ("short", "the KMS plugin decrypts to something that is no key"),
    ] {
        plugin.set_mood(mood);
        assert_eq!(reason(roots.make().await), expected, "{mood}");
    }
    plugin.set_mood("");
    assert!(roots.make().await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_plugin_is_given_up_in_time() {
    let plugin = KmsPlugin::start();
    plugin.set_mood("slow");
    let roots = roots(plugin.socket(), HASTY_MILLIS);
    let reason = reason(within(Duration::from_secs(60), "giving up", roots.check()).await);
    assert!(reason.contains("did not answer in 300 ms"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_gives_another_key_is_told_from_the_right_one() {
    let plugin = KmsPlugin::start();
    let roots = roots(plugin.socket(), PATIENT_MILLIS);
    let root = roots.make().await.unwrap();
    plugin.set_mood("lying");
    let reason = reason(roots.open(root.id, &root.custody).await);
    assert!(
        reason.starts_with(&format!("root_key gives another root key than {}", root.id.simple())),
        "{reason}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_in_postgres_does_not_open() {
    let plugin = KmsPlugin::start();
    let roots = roots(plugin.socket(), PATIENT_MILLIS);
    let (root, other) = (roots.make().await.unwrap(), roots.make().await.unwrap());
    let changed = |field: &str, value: Value| {
        let mut kept = kept(&root.custody);
        kept[field] = value;
        Custody { kind: CustodyKind::KmsPlugin, data: kept.to_string().into_bytes() }
    };
    for custody in [
        changed("ciphertext", kept(&other.custody)["ciphertext"].clone()),
        changed("annotations", kept(&other.custody)["annotations"].clone()),
        changed("annotations", Value::Object(Default::default())),
        changed("key_id", "key-9".into()),
        changed("key_id", Value::Null),
        changed("more", Value::Null),
        other.custody.clone(),
    ] {
        let reason = reason(roots.open(root.id, &custody).await);
        assert!(!reason.contains("words of the plugin"), "{reason}");
    }
    assert!(opens(&roots, &root).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_answers_garbage_is_no_plugin() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("kms.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(&[0xA5; 4096]).await;
        }
    });
    let reason = reason(within(Duration::from_secs(60), "giving up", roots(socket, 5000).check()).await);
    assert!(reason.starts_with("the KMS plugin"), "{reason}");
}
