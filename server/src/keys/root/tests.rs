use std::{fs, path::PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use keyfold_core::entropy::SystemEntropy;
use tempfile::TempDir;

use super::*;
use crate::config::{RootKey, RootKeyFiles, RootKeyKmsPlugin, RootKeyPkcs11, RootKeyShamir};

fn roots(current: &RootKey, previous: Option<&RootKey>) -> RootKeys {
    RootKeys::new(current, previous, Arc::new(SystemEntropy)).unwrap()
}

/// What an operator is told.
fn reason<T>(result: Result<T, Error>) -> String {
    match result {
        Err(Error::Sealed(reason)) => reason,
        Err(error) => panic!("not sealed: {error}"),
        Ok(_) => panic!("not refused"),
    }
}

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn key(&self, name: &str, byte: u8) -> PathBuf {
        self.write(name, &format!("{}\n", STANDARD.encode([byte; 32])))
    }
}

fn file(current: PathBuf, previous: Option<PathBuf>) -> RootKey {
    RootKey::File(RootKeyFiles { current, previous })
}

const SHAMIR: RootKey = RootKey::Shamir(RootKeyShamir { shares: 5, threshold: 3 });
const FILE: Custody = Custody { kind: CustodyKind::File, data: Vec::new() };

fn id(byte: u8) -> Uuid {
    root_key_id(&Key::from_bytes(&[byte; 32]))
}

#[test]
fn a_custody_is_named_as_it_is_read() {
    for kind in ["file", "pkcs11", "kms-plugin", "shamir"] {
        assert_eq!(CustodyKind::parse(kind).unwrap().as_str(), kind);
    }
    assert_eq!(CustodyKind::parse("File"), None);
}

#[tokio::test]
async fn a_key_is_found_by_the_id_computed_from_it_in_either_file() {
    let files = Files::new();
    let roots = roots(&file(files.key("current", 1), Some(files.key("previous", 2))), None);
    for byte in [1, 2] {
        assert_eq!(roots.open(id(byte), &FILE).await.unwrap().expose(), &[byte; 32]);
    }
    let reason = reason(roots.open(id(3), &FILE).await);
    assert_eq!(
        reason,
        format!("no configured root key file holds the key {}: check the root key's files", id(3).simple())
    );
    let made = roots.make().await.unwrap();
    assert_eq!((made.id, made.custody, made.shares.len()), (id(1), FILE, 0));
}

#[tokio::test]
async fn a_file_that_changes_counts_at_the_next_use() {
    let files = Files::new();
    let roots = roots(&file(files.0.path().join("current"), None), None);
    assert!(reason(roots.check().await).contains("cannot be read"));
    files.key("current", 1);
    assert!(roots.check().await.is_ok());
    assert!(roots.open(id(1), &FILE).await.is_ok());
    files.key("current", 2);
    assert!(roots.open(id(1), &FILE).await.is_err());
    assert_eq!(roots.make().await.unwrap().id, id(2));
}

#[tokio::test]
async fn a_file_that_cannot_be_read_does_not_keep_the_other_from_serving() {
    let files = Files::new();
    let (missing, there) = (files.0.path().join("missing"), files.key("there", 1));
    for (current, previous) in [(missing.clone(), there.clone()), (there, missing)] {
        assert!(roots(&file(current, Some(previous)), None).open(id(1), &FILE).await.is_ok());
    }
}

#[tokio::test]
async fn attack_14_a_file_that_is_not_a_key_is_refused_without_showing_it() {
    let files = Files::new();
    for text in ["", "c2hvcnQ=", "not base64 at all, but long enough to be a key", &STANDARD.encode([0; 33])]
    {
        let roots = roots(&file(files.write("current", text), None), None);
        let reason = reason(roots.open(id(0), &FILE).await);
        assert!(reason.contains("must hold 32 bytes in base64"), "{reason}");
        assert!(text.is_empty() || !reason.contains(text), "{reason}");
    }
}

#[tokio::test]
async fn the_previous_custody_opens_and_makes_nothing() {
    let files = Files::new();
    let roots = roots(&SHAMIR, Some(&file(files.key("previous", 1), None)));
    assert!(roots.open(id(1), &FILE).await.is_ok());
    assert_eq!(roots.kind(), CustodyKind::Shamir);
    let made = roots.make().await.unwrap();
    assert_eq!((made.custody.kind, made.shares.len()), (CustodyKind::Shamir, 5));
    assert_eq!(made.id, root_key_id(&made.key));
}

#[tokio::test]
async fn a_custody_that_is_not_configured_is_named() {
    let files = Files::new();
    let roots = roots(&file(files.key("current", 1), None), None);
    let custody = Custody { kind: CustodyKind::Shamir, data: Vec::new() };
    assert_eq!(
        reason(roots.open(id(1), &custody).await),
        "the root key in use is of custody shamir, but root_key of the configuration names file: name shamir in \
         previous_root_key while the root key moves"
    );
}

#[tokio::test]
async fn shares_open_the_root_once_enough_are_entered_and_are_forgotten_then() {
    let roots = roots(&SHAMIR, None);
    let NewRoot { key, id, custody, shares } = roots.make().await.unwrap();
    let texts: Vec<_> = shares.iter().map(Share::expose_text).collect();
    let enter = |place: usize| {
        let text = std::str::from_utf8(texts[place].expose()).unwrap();
        roots.enter(&custody, Share::parse(text).unwrap())
    };
    assert_eq!(
        reason(roots.open(id, &custody).await),
        "0 of 3 shares of the root key are entered: whoever has another one enters it with keyfold unseal"
    );
    for (place, have) in [(4, 1), (4, 1), (0, 2)] {
        assert_eq!(enter(place).unwrap(), Progress { have, need: 3 });
        assert!(reason(roots.open(id, &custody).await).starts_with(&format!("{have} of 3")));
    }
    assert!(enter(2).unwrap().is_complete());
    assert!(roots.open(id, &custody).await.unwrap() == key);
    let again = Share::parse(std::str::from_utf8(texts[4].expose()).unwrap()).unwrap();
    assert_eq!(roots.progress_with(&custody, &again).unwrap(), Some(Progress { have: 1, need: 3 }));
    assert_eq!(enter(4).unwrap(), Progress { have: 1, need: 3 });
    assert_eq!(roots.progress_with(&custody, &again).unwrap(), None, "it is entered already");
    roots.forget_shares();
    assert_eq!(roots.progress_with(&custody, &again).unwrap(), Some(Progress { have: 1, need: 3 }));
}

#[tokio::test]
async fn attack_11_a_wrong_share_takes_nothing_back_and_is_told_at_once() {
    let roots = roots(&SHAMIR, None);
    let NewRoot { id, custody, shares, .. } = roots.make().await.unwrap();
    let mut others = roots.make().await.unwrap().shares.into_iter();
    for share in shares.into_iter().take(3) {
        assert!(matches!(roots.enter(&custody, others.next().unwrap()), Err(Error::Invalid(_))));
        roots.enter(&custody, share).unwrap();
    }
    assert!(roots.open(id, &custody).await.is_ok());
}

#[tokio::test]
async fn shares_are_not_taken_where_nobody_holds_any() {
    let files = Files::new();
    let roots = roots(&file(files.key("current", 1), None), None);
    let held = super::tests::roots(&SHAMIR, None).make().await.unwrap();
    let mut shares = held.shares.into_iter();
    assert!(matches!(roots.enter(&FILE, shares.next().unwrap()), Err(Error::Conflict(_))));
    assert!(matches!(roots.enter(&held.custody, shares.next().unwrap()), Err(Error::Sealed(_))));
}

#[tokio::test]
async fn a_custody_that_was_changed_in_postgres_is_told() {
    let roots = roots(&SHAMIR, None);
    let mut made = roots.make().await.unwrap();
    let shares = made.shares.drain(..).take(3);
    shares.for_each(|share| assert!(roots.enter(&made.custody, share).is_ok()));
    // Shares of another root than the row names.
    assert_eq!(reason(roots.open(id(9), &made.custody).await), custody::NOT_AS_STORED);
    made.custody.data.truncate(10);
    assert_eq!(reason(roots.open(made.id, &made.custody).await), custody::NOT_AS_STORED);
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused_by_name() {
    let refusal = |current: &RootKey, previous: Option<&RootKey>| {
        RootKeys::new(current, previous, Arc::new(SystemEntropy)).err().unwrap()
    };
    let shamir = RootKey::Shamir(RootKeyShamir { shares: 3, threshold: 4 });
    assert!(refusal(&shamir, None).starts_with("root_key.shamir: 4 of 3 shares is not possible"));
    let plugin = RootKey::KmsPlugin(RootKeyKmsPlugin { socket: "s".into(), timeout_millis: 0 });
    assert_eq!(
        refusal(&SHAMIR, Some(&plugin)),
        "previous_root_key.kms_plugin.timeout_millis: must be at least 1"
    );
    let token = RootKey::Pkcs11(RootKeyPkcs11 {
        module: "m".into(),
        token_label: "t".into(),
        pin_file: "p".into(),
        key_label: "k".into(),
        timeout_millis: 0,
    });
    assert_eq!(refusal(&token, None), "root_key.pkcs11.timeout_millis: must be at least 1");
}
