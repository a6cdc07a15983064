//! Issuers' keys: when they are read, how long they serve, and whom they serve.

use super::{
    test_issuer::{Answer, KEYS_PATH},
    *,
};

#[tokio::test]
async fn keys_are_fetched_once_and_then_verify_without_the_network() {
    let key = TestKey::new("a");
    let server = TestIssuer::start(&[&key]).await;
    let (mount, issuers) = (Mount::new(&server.url, None), [discovered(&server)]);
    for _ in 0..3 {
        assert_eq!(mount.code(&key, &issuers).await, "accepted");
    }
    assert_eq!(server.requests(), 2, "one document and one set of keys");
}

#[tokio::test]
async fn many_first_callers_share_one_fetch() {
    let key = TestKey::new("a");
    let server = TestIssuer::start(&[&key]).await;
    let (mount, issuers) = (Arc::new(Mount::new(&server.url, None)), [discovered(&server)]);
    let mut callers = tokio::task::JoinSet::new();
    let key = Arc::new(key);
    for _ in 0..20 {
        let (mount, issuers, key) = (Arc::clone(&mount), issuers.clone(), Arc::clone(&key));
        callers.spawn(async move { mount.code(&key, &issuers).await });
    }
    assert!(callers.join_all().await.iter().all(|code| *code == "accepted"));
    assert_eq!(server.requests(), 2);
}

#[tokio::test]
async fn attack_16_an_unknown_key_is_asked_for_once_in_ten_seconds() {
    let (old, new) = (TestKey::new("old"), TestKey::new("new"));
    let server = TestIssuer::start(&[&old]).await;
    let (mount, issuers) = (Mount::new(&server.url, None), [discovered(&server)]);
    assert_eq!(mount.code(&old, &issuers).await, "accepted");
    server.answer(KEYS_PATH, Answer::Json(key_set(&[&old, &new])));
    for _ in 0..5 {
        assert_eq!(mount.code(&new, &issuers).await, "token-key-unknown");
    }
    assert_eq!(server.requests(), 2);
    mount.clock.advance(Duration::from_secs(10));
    assert_eq!(mount.code(&new, &issuers).await, "accepted");
    assert_eq!(server.requests(), 4);
}

#[tokio::test]
async fn keys_at_hand_serve_through_an_outage_of_the_issuer() {
    let key = TestKey::new("a");
    let server = TestIssuer::start(&[&key]).await;
    let (mount, issuers) = (Mount::new(&server.url, None), [discovered(&server)]);
    assert_eq!(mount.code(&key, &issuers).await, "accepted");
    server.stop();
    for _ in 0..3 {
        mount.clock.advance(Duration::from_secs(600));
        mount.refresh(&issuers).await;
        assert_eq!(mount.code(&TestKey::new("unknown"), &issuers).await, "keys-unavailable");
        assert_eq!(mount.code(&key, &issuers).await, "accepted");
        let new = key.sign(&claims(&mount.url, "shop", "api", NOW));
        assert_eq!(
            mount.present(&new, &mount.driver(&key), &issuers).await,
            "accepted",
            "seen for the first time"
        );
    }
}

#[tokio::test]
async fn without_any_keys_the_caller_is_told_to_try_again_and_not_why() {
    let key = TestKey::new("a");
    let server = TestIssuer::start(&[&key]).await;
    server.answer_with_document("https://other", "https://127.0.0.1:1/keys");
    let (mount, issuers) = (Mount::new(&server.url, None), [discovered(&server)]);
    let token = key.sign(&claims(&server.url, "payments", "api", NOW));
    let error = mount.authenticator.pod_caller(&token, &token, &issuers).await.expect_err("no keys");
    assert_eq!(
        error.to_string(),
        "the keys of issuer dev cannot be read now: try again, and see the server's log for the reason"
    );
    server.answer_with_document(&server.url, &format!("{}{KEYS_PATH}", server.url));
    assert_eq!(mount.code(&key, &issuers).await, "keys-unavailable");
    mount.clock.advance(Duration::from_secs(10));
    assert_eq!(mount.code(&key, &issuers).await, "accepted");
}

#[tokio::test]
async fn attack_09_a_changed_or_removed_issuer_loses_its_keys() {
    let (old, new) = (TestKey::new("a"), TestKey::new("a"));
    let (first, second) = (TestIssuer::start(&[&old]).await, TestIssuer::start(&[&new]).await);
    second.answer_with_document(&first.url, &format!("{}{KEYS_PATH}", second.url));
    let before = discovered(&first);
    let mut after = before.clone();
    after.generation = 2;
    after.spec.keys = KeySource::Discovery(keyfold_core::object::Discovery {
        url: Some(second.url.clone()),
        ..second.discovery()
    });
    let mount = Mount::new(&first.url, None);
    assert_eq!(mount.code(&old, std::slice::from_ref(&before)).await, "accepted");
    assert_eq!(mount.code(&old, std::slice::from_ref(&after)).await, "token-signature");
    assert_eq!(mount.code(&new, std::slice::from_ref(&after)).await, "accepted");
    assert_eq!(mount.code(&new, &[]).await, "token-issuer");
}

#[tokio::test]
async fn of_two_issuer_objects_with_one_url_either_may_accept() {
    let key = TestKey::new("a");
    let server = TestIssuer::start(&[&key]).await;
    let mut other_audience = discovered(&server);
    other_audience.name = ObjectName::try_from("other").expect("a name");
    other_audience.spec.audiences = ["other".to_owned()].into();
    let issuers = [other_audience, discovered(&server)];
    assert_eq!(Mount::new(&server.url, None).code(&key, &issuers).await, "accepted");
}

#[tokio::test]
async fn a_file_of_keys_is_read_anew_when_it_changes() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("keys.json");
    let (old, new) = (TestKey::new("old"), TestKey::new("new"));
    let issuers = [issuer("dev", "https://dev", KeySource::File("keys.json".into()))];
    let mount = Mount::new("https://dev", Some(dir.path()));
    assert_eq!(mount.code(&old, &issuers).await, "keys-unavailable");
    for (keys, unknown) in [(&old, &new), (&new, &old)] {
        std::fs::write(&path, key_set(&[keys])).expect("a file");
        mount.clock.advance(Duration::from_secs(1));
        mount.refresh(&issuers).await;
        assert_eq!(mount.code(keys, &issuers).await, "accepted");
        assert_eq!(mount.code(unknown, &issuers).await, "token-key-unknown");
    }
    for broken in ["half a fi", "", "{}", r#"{"keys": 1}"#, "<html>"] {
        std::fs::write(&path, broken).expect("a file");
        mount.clock.advance(Duration::from_secs(60));
        mount.refresh(&issuers).await;
        assert_eq!(mount.code(&new, &issuers).await, "accepted", "a broken file leaves the last good keys");
    }
    std::fs::write(&path, key_set(&[])).expect("a file");
    mount.clock.advance(Duration::from_secs(60));
    mount.refresh(&issuers).await;
    assert_eq!(mount.code(&new, &issuers).await, "token-key-unknown", "an empty set withdraws them");
}

#[tokio::test]
async fn a_file_of_keys_that_is_missing_huge_or_no_file_gives_no_keys() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(dir.path().join("folder")).expect("a folder");
    std::fs::write(dir.path().join("huge"), vec![b' '; 1024 * 1024 + 1]).expect("a file");
    for name in ["folder", "huge", "missing"] {
        let issuers = [issuer("dev", "https://dev", KeySource::File(name.into()))];
        let mount = Mount::new("https://dev", Some(dir.path()));
        assert_eq!(mount.code(&TestKey::new("a"), &issuers).await, "keys-unavailable", "{name}");
    }
    let issuers = [issuer("dev", "https://dev", KeySource::File("a".into()))];
    assert_eq!(Mount::new("https://dev", None).code(&TestKey::new("a"), &issuers).await, "keys-unavailable");
}

#[tokio::test]
async fn a_new_issuers_keys_are_read_before_its_first_token_comes() {
    let key = TestKey::new("a");
    let server = TestIssuer::start(&[&key]).await;
    let (mount, issuers) = (Mount::new(&server.url, None), [discovered(&server)]);
    mount.refresh(&issuers).await;
    assert_eq!(server.requests(), 2);
    assert_eq!(mount.code(&key, &issuers).await, "accepted");
    assert_eq!(server.requests(), 2);
}

#[tokio::test]
async fn the_background_renews_old_keys_and_no_request_does() {
    let key = TestKey::new("a");
    let server = TestIssuer::start(&[&key]).await;
    let (mount, issuers) = (Mount::new(&server.url, None), [discovered(&server)]);
    mount.refresh(&issuers).await;
    mount.clock.advance(Duration::from_secs(239));
    mount.refresh(&issuers).await;
    assert_eq!(server.requests(), 2, "not within four minutes");
    server.answer(KEYS_PATH, Answer::Json(key_set(&[])));
    mount.clock.advance(Duration::from_secs(61));
    assert_eq!(mount.code(&key, &issuers).await, "accepted");
    assert_eq!(server.requests(), 2);
    mount.refresh(&issuers).await;
    assert_eq!(server.requests(), 4, "after five");
    assert_eq!(mount.code(&key, &issuers).await, "token-key-unknown");
    mount.refresh(&issuers).await;
    assert_eq!(server.requests(), 4, "and not twice");
}

#[tokio::test]
async fn an_issuer_that_fails_is_asked_less_and_less_often_and_at_once_when_it_is_well() {
    let key = TestKey::new("a");
    let server = TestIssuer::start(&[&key]).await;
    let (mount, issuers) = (Mount::new(&server.url, None), [discovered(&server)]);
    mount.refresh(&issuers).await;
    let good = server.requests();
    mount.clock.advance(Duration::from_secs(300));
    server.answer(test_issuer::DISCOVERY_PATH, Answer::Json("<html>".into()));
    let mut asked_after = Vec::new();
    for secs in 0..1300 {
        let before = server.requests();
        mount.refresh(&issuers).await;
        if server.requests() > before {
            asked_after.push(secs);
        }
        mount.clock.advance(Duration::from_secs(1));
    }
    assert_eq!(asked_after, [0, 10, 30, 70, 150, 310, 610, 910, 1210]);
    assert_eq!(server.requests(), good + asked_after.len(), "each is one request");
    assert_eq!(mount.code(&key, &issuers).await, "accepted");
    server.answer_with_document(&server.url, &format!("{}{KEYS_PATH}", server.url));
    let other = TestKey::new("b");
    server.answer(KEYS_PATH, Answer::Json(key_set(&[&other])));
    assert_eq!(mount.code(&other, &issuers).await, "accepted", "an unknown key need not wait for that");
}

#[tokio::test]
async fn garbage_never_replaces_good_keys_and_an_empty_set_does() {
    let key = TestKey::new("a");
    let server = TestIssuer::start(&[&key]).await;
    let (mount, issuers) = (Mount::new(&server.url, None), [discovered(&server)]);
    mount.refresh(&issuers).await;
    let twice = key_set(&[&key, &TestKey::new("a")]);
    for garbage in ["", "[]", "{}", "<html>", r#"{"keys": {}}"#, r#"{"keys": ["#, &twice] {
        server.answer(KEYS_PATH, Answer::Json(garbage.into()));
        mount.clock.advance(Duration::from_secs(300));
        mount.refresh(&issuers).await;
        assert_eq!(mount.code(&key, &issuers).await, "accepted", "{garbage}");
    }
    server.answer(KEYS_PATH, Answer::Huge);
    mount.clock.advance(Duration::from_secs(300));
    mount.refresh(&issuers).await;
    assert_eq!(mount.code(&key, &issuers).await, "accepted");
    server.answer(KEYS_PATH, Answer::Json(key_set(&[])));
    mount.clock.advance(Duration::from_secs(300));
    mount.refresh(&issuers).await;
    assert_eq!(mount.code(&key, &issuers).await, "token-key-unknown");
}

#[tokio::test]
async fn keys_that_did_not_change_are_kept_as_they_are() {
    let key = TestKey::new("a");
    let server = TestIssuer::start(&[&key]).await;
    let (mount, issuers) = (Mount::new(&server.url, None), [discovered(&server)]);
    let keys = async || mount.authenticator.keys.of(&issuers[0]).having("a").await.expect("keys");
    let before = keys().await;
    for (change, same) in [(key_set(&[&key]), true), (format!("{} ", key_set(&[&key])), false)] {
        server.answer(KEYS_PATH, Answer::Json(change));
        mount.clock.advance(Duration::from_secs(300));
        mount.refresh(&issuers).await;
        assert_eq!(Arc::ptr_eq(&before, &keys().await), same);
    }
    assert_eq!(server.requests(), 6);
}

#[tokio::test]
async fn an_issuer_that_never_answers_holds_up_no_other() {
    let key = TestKey::new("a");
    let (slow, well) = (TestIssuer::start(&[&key]).await, TestIssuer::start(&[&key]).await);
    slow.answer(test_issuer::DISCOVERY_PATH, Answer::Slow);
    let mut stuck = discovered(&slow);
    stuck.name = ObjectName::try_from("stuck").expect("a name");
    let (mount, issuers) = (Mount::new(&well.url, None), [stuck, discovered(&well)]);
    for _ in 0..20 {
        mount.authenticator.refresh_keys(&issuers);
    }
    while well.requests() < 2 || slow.requests() < 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(mount.code(&key, &issuers).await, "accepted");
    assert_eq!((slow.requests(), well.requests()), (1, 2), "nor is either asked twice");
}

#[tokio::test]
async fn callers_with_an_older_and_a_newer_list_of_issuers_each_have_their_keys() {
    let (old, new) = (TestKey::new("a"), TestKey::new("a"));
    let (first, second) = (TestIssuer::start(&[&old]).await, TestIssuer::start(&[&new]).await);
    second.answer_with_document(&first.url, &format!("{}{KEYS_PATH}", second.url));
    let before = discovered(&first);
    let mut after = before.clone();
    after.generation = 2;
    after.spec.keys = KeySource::Discovery(keyfold_core::object::Discovery {
        url: Some(second.url.clone()),
        ..second.discovery()
    });
    let (before, after) = (std::slice::from_ref(&before), std::slice::from_ref(&after));
    let mount = Mount::new(&first.url, None);
    for _ in 0..3 {
        assert_eq!(mount.code(&old, before).await, "accepted");
        assert_eq!(mount.code(&new, before).await, "token-signature");
        assert_eq!(mount.code(&new, after).await, "accepted");
        assert_eq!(mount.code(&old, after).await, "token-signature");
        assert_eq!(mount.code(&old, &[]).await, "token-issuer");
        mount.refresh(after).await;
    }
    assert_eq!((first.requests(), second.requests()), (2, 2), "no list throws away another's keys");
    assert_eq!(mount.authenticator.keys.kept(), 2);
    mount.clock.advance(Duration::from_secs(60));
    mount.refresh(after).await;
    assert_eq!(mount.authenticator.keys.kept(), 1, "what nobody names is forgotten");
    mount.clock.advance(Duration::from_secs(60));
    mount.refresh(&[]).await;
    assert_eq!(mount.authenticator.keys.kept(), 0);
}

#[tokio::test]
async fn an_issuer_object_changed_during_an_outage_keeps_its_keys_if_they_come_from_the_same_place() {
    let key = TestKey::new("a");
    let server = TestIssuer::start(&[&key]).await;
    let mount = Mount::new(&server.url, None);
    let before = discovered(&server);
    assert_eq!(mount.code(&key, std::slice::from_ref(&before)).await, "accepted");
    server.stop();
    let mut changed = IssuerRecord { generation: 2, ..before };
    changed.spec.leeway = Duration::from_secs(60);
    assert_eq!(mount.code(&key, std::slice::from_ref(&changed)).await, "accepted");
    let mut elsewhere = IssuerRecord { generation: 3, ..changed };
    elsewhere.spec.keys = KeySource::Discovery(keyfold_core::object::Discovery::default());
    assert_eq!(mount.code(&key, &[elsewhere]).await, "keys-unavailable");
}
