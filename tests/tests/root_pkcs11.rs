//! Root keys that a PKCS#11 token keeps, with SoftHSM as the token. Each test runs in a process of its own that has a
//! SoftHSM of its own.

use std::{fs, io::Write as _, path::Path, process::Command, sync::Arc, time::Duration};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error as TokenError, RvError},
    mechanism::Mechanism,
    object::{Attribute, AttributeInfo, AttributeType, ObjectHandle},
    session::{Session, UserType},
    types::AuthPin,
};
use keyfold_core::entropy::SystemEntropy;
use keyfold_server::{
    config::{RootKey, RootKeyPkcs11},
    error::Error,
    keys::root::{Custody, CustodyKind, NewRoot, RootKeys},
};
use keyfold_tests::{
    faults::{until, within},
    softhsm::{KEY_LABEL, MODULE, PIN, SoftHsm, TOKEN},
};
use serde_json::Value;

fn token(hsm: &SoftHsm) -> RootKeyPkcs11 {
    RootKeyPkcs11 {
        module: MODULE.into(),
        token_label: TOKEN.into(),
        pin_file: hsm.pin_file(),
        key_label: KEY_LABEL.into(),
        timeout_millis: 20_000,
    }
}

fn roots(token: RootKeyPkcs11) -> RootKeys {
    RootKeys::new(&RootKey::Pkcs11(token), None, Arc::new(SystemEntropy)).unwrap()
}

fn reason<T>(result: Result<T, Error>) -> String {
    match result {
        Err(Error::Sealed(reason)) => {
            assert!(!reason.contains(PIN), "{reason}");
            reason
        }
        Err(error) => panic!("not sealed: {error}"),
        Ok(_) => panic!("not refused"),
    }
}

async fn opens(roots: &RootKeys, root: &NewRoot) -> bool {
    roots.open(root.id, &root.custody).await.is_ok_and(|key| key == root.key)
}

/// A session of ours, beside the server's.
fn session() -> Session {
    let module = Pkcs11::new(MODULE).unwrap();
    let begun = module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
    assert!(matches!(begun, Ok(()) | Err(TokenError::Pkcs11(RvError::CryptokiAlreadyInitialized, _))));
    let is_ours = |slot: &_| module.get_token_info(*slot).unwrap().label() == TOKEN;
    let slot = module.get_slots_with_initialized_token().unwrap().into_iter().find(is_ours).unwrap();
    let session = module.open_rw_session(slot).unwrap();
    session.login(UserType::User, Some(&AuthPin::from(PIN))).unwrap();
    session
}

fn keys(session: &Session) -> Vec<ObjectHandle> {
    session.find_objects(&[Attribute::Label(KEY_LABEL.into())]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_opens_again_and_each_has_a_key_of_its_own_on_the_token() {
    let Some(hsm) = SoftHsm::of_this_process("a_root_opens_again_and_each_has_a_key_of_its_own_on_the_token")
    else {
        return;
    };
    let made_by = roots(token(&hsm));
    made_by.check().await.unwrap();
    let (first, second) = (made_by.make().await.unwrap(), made_by.make().await.unwrap());
    assert_eq!(first.custody.kind, CustodyKind::Pkcs11);
    assert_ne!(first.id, second.id);
    // Another process would see no more than this: the configuration, and what Postgres keeps.
    let opened_by = roots(token(&hsm));
    for root in [&first, &second] {
        assert!(opens(&opened_by, root).await);
        assert!(!root.custody.data.windows(8).any(|part| root.key.expose().starts_with(part)));
    }
    let session = session();
    let ids: Vec<_> = keys(&session)
        .iter()
        .map(|key| session.get_attributes(*key, &[AttributeType::Id]).unwrap())
        .collect();
    assert_eq!(ids.len(), 2);
    assert_ne!(ids[0], ids[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_never_leaves_the_token() {
    let Some(hsm) = SoftHsm::of_this_process("the_key_never_leaves_the_token") else { return };
    roots(token(&hsm)).make().await.unwrap();
    let session = session();
    let [key] = keys(&session)[..] else { panic!("there is one key") };
    let info = session.get_attribute_info(key, &[AttributeType::Value]).unwrap();
    assert!(matches!(info[..], [AttributeInfo::Sensitive]), "CKA_VALUE is refused: {info:?}");
    assert_eq!(session.get_attributes(key, &[AttributeType::Value]).unwrap(), []);
    let promises = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::AlwaysSensitive(true),
        Attribute::Extractable(false),
        Attribute::NeverExtractable(true),
        Attribute::Local(true),
        Attribute::Modifiable(false),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
    ];
    let kinds: Vec<_> = promises.iter().map(Attribute::attribute_type).collect();
    assert_eq!(session.get_attributes(key, &kinds).unwrap(), promises);
    // Nor wrapped by a key of ours, nor once it is called extractable.
    let wrapping = session
        .generate_key(&Mechanism::AesKeyGen, &[Attribute::ValueLen(32.into()), Attribute::Wrap(true)])
        .unwrap();
    let wrapped = session.wrap_key(&Mechanism::AesKeyWrap, wrapping, key);
    assert!(matches!(wrapped, Err(TokenError::Pkcs11(RvError::KeyUnextractable, _))), "{wrapped:?}");
    for change in [Attribute::Extractable(true), Attribute::Sensitive(false)] {
        assert!(session.update_attributes(key, &[change]).is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_taken_out_serves_again_once_it_is_back() {
    let Some(hsm) = SoftHsm::of_this_process("a_token_that_was_taken_out_serves_again_once_it_is_back")
    else {
        return;
    };
    let roots = roots(token(&hsm));
    let root = roots.make().await.unwrap();
    for _ in 0..2 {
        hsm.take_out();
        for _ in 0..2 {
            assert_eq!(
                reason(roots.open(root.id, &root.custody).await),
                "no PKCS#11 token is labelled \"keyfold\": look whether it is plugged in and initialised"
            );
        }
        assert!(roots.check().await.is_err());
        hsm.put_back();
        roots.check().await.unwrap();
        assert!(opens(&roots, &root).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_11_a_refused_pin_is_not_tried_again_until_its_file_is_written_anew() {
    let Some(hsm) =
        SoftHsm::of_this_process("attack_11_a_refused_pin_is_not_tried_again_until_its_file_is_written_anew")
    else {
        return;
    };
    let roots = roots(token(&hsm));
    let root = roots.make().await.unwrap();
    fs::write(hsm.pin_file(), "wrong-pin\n").unwrap();
    let refused = format!(
        "the PKCS#11 token \"keyfold\" refuses the PIN in {}, or has locked or expired it: so that the token does not \
         lock it, the PIN is not tried again until that file is written anew",
        hsm.pin_file().display()
    );
    assert_eq!(reason(roots.open(root.id, &root.custody).await), refused);
    // It would be taken now, so whoever is refused has not asked the token.
    session().set_pin(&AuthPin::from(PIN), &AuthPin::from("wrong-pin")).unwrap();
    for _ in 0..3 {
        assert_eq!(reason(roots.open(root.id, &root.custody).await), refused);
    }
    until("the file has a new time", async || {
        fs::write(hsm.pin_file(), "wrong-pin\n").unwrap();
        opens(&roots, &root).await
    })
    .await;

    fs::write(hsm.pin_file(), " \n").unwrap();
    assert!(reason(roots.check().await).ends_with("is empty"));
    fs::remove_file(hsm.pin_file()).unwrap();
    assert!(reason(roots.check().await).contains("cannot be read"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_hangs_is_given_up_in_time_and_holds_one_thread() {
    let Some(hsm) = SoftHsm::of_this_process("a_module_that_hangs_is_given_up_in_time_and_holds_one_thread")
    else {
        return;
    };
    let patient = roots(token(&hsm));
    let root = patient.make().await.unwrap();
    let roots = roots(RootKeyPkcs11 { timeout_millis: 300, ..token(&hsm) });
    // SoftHSM looks at this file before each use of the token. A pipe in its place is read until somebody writes.
    let generation = fs::read_dir(hsm.tokens()).unwrap().next().unwrap().unwrap().path().join("generation");
    let aside = generation.with_extension("aside");
    fs::rename(&generation, &aside).unwrap();
    assert!(Command::new("mkfifo").arg(&generation).status().unwrap().success());
    for _ in 0..5 {
        let given_up = within(Duration::from_secs(60), "giving up", roots.open(root.id, &root.custody)).await;
        let reason = reason(given_up);
        assert!(reason.ends_with("did not answer in 300 ms: look at the HSM and its connection"), "{reason}");
    }
    assert_eq!(threads_of_modules(), 1);
    let mut pipe = fs::OpenOptions::new().read(true).write(true).open(&generation).unwrap();
    fs::rename(&aside, &generation).unwrap();
    pipe.write_all(&[0; 64]).unwrap();
    until("the module goes on", async || opens(&roots, &root).await).await;
    assert!(opens(&patient, &root).await);
    until("the thread ends", async || threads_of_modules() == 0).await;
}

fn threads_of_modules() -> usize {
    let names = fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|task| fs::read_to_string(task.unwrap().path().join("comm")));
    names.filter(|name| name.as_ref().is_ok_and(|name| name.trim_end() == "pkcs11")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tokens_of_one_module_serve_at_once() {
    let Some(hsm) = SoftHsm::of_this_process("two_tokens_of_one_module_serve_at_once") else { return };
    hsm.add_token("old");
    let old = RootKey::Pkcs11(RootKeyPkcs11 { token_label: "old".into(), ..token(&hsm) });
    let new = RootKey::Pkcs11(token(&hsm));
    let roots_of = |current, previous| RootKeys::new(current, previous, Arc::new(SystemEntropy)).unwrap();
    let before = roots_of(&old, None).make().await.unwrap();
    let roots = Arc::new(roots_of(&new, Some(&old)));
    let after = roots.make().await.unwrap();
    let reason = reason(roots_of(&new, None).open(before.id, &before.custody).await);
    assert!(
        reason.starts_with("the PKCS#11 token \"keyfold\" does not have the key \"keyfold-root\""),
        "{reason}"
    );

    let (before, after) = (Arc::new(before), Arc::new(after));
    let uses: Vec<_> = (0..8)
        .map(|turn| {
            let (roots, root) =
                (Arc::clone(&roots), Arc::clone(if turn % 2 == 0 { &before } else { &after }));
            tokio::spawn(async move { opens(&roots, &root).await })
        })
        .collect();
    for each in uses {
        assert!(each.await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_in_postgres_does_not_open() {
    let Some(hsm) = SoftHsm::of_this_process("what_was_changed_in_postgres_does_not_open") else { return };
    let roots = roots(token(&hsm));
    let (root, other) = (roots.make().await.unwrap(), roots.make().await.unwrap());
    let kept = |root: &NewRoot| serde_json::from_slice::<Value>(&root.custody.data).unwrap();
    let mut changes =
        vec![other.custody.clone(), Custody { kind: CustodyKind::Pkcs11, data: b"{}".to_vec() }];
    for field in ["key_id", "nonce", "ciphertext"] {
        for value in [kept(&other)[field].clone(), "AAAA".into(), "!".into()] {
            let mut changed = kept(&root);
            changed[field] = value;
            changes.push(Custody { kind: CustodyKind::Pkcs11, data: changed.to_string().into_bytes() });
        }
    }
    for custody in changes {
        reason(roots.open(root.id, &custody).await);
    }
    // The place is bound too: the right ciphertext is none for another root's id.
    reason(roots.open(other.id, &root.custody).await);
    assert!(opens(&roots, &root).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_is_none_is_named() {
    let Some(hsm) = SoftHsm::of_this_process("a_module_that_is_none_is_named") else { return };
    for module in ["/nowhere/pkcs11.so", "/proc/self/exe"] {
        let reason =
            reason(roots(RootKeyPkcs11 { module: Path::new(module).into(), ..token(&hsm) }).check().await);
        assert!(reason.starts_with(&format!("the PKCS#11 module {module} cannot be loaded: ")), "{reason}");
    }
}
