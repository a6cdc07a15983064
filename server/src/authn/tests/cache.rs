//! Tokens that were verified before: what they cost, and what ends them.

use keyfold_core::object::{Algorithm, IssuerSpec};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use serde_json::json;

use super::*;

/// Counts the checks of this thread, on which a test's runtime runs.
fn counted() -> (PrometheusRecorder, PrometheusHandle) {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    (recorder, handle)
}

/// How many tokens were found in the cache, verified and refused.
fn checks(metrics: &PrometheusHandle) -> [u64; 3] {
    let text = metrics.render();
    ["cached", "verified", "refused"].map(|result| {
        let line = format!("keyfold_token_checks_total{{result=\"{result}\"}} ");
        text.lines().find_map(|found| found.strip_prefix(&line)?.parse().ok()).unwrap_or(0)
    })
}

#[tokio::test]
async fn a_token_seen_before_is_not_verified_again() {
    let (recorder, metrics) = counted();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let key = TestKey::new("k");
    let (_dir, mount, issuers) = mount_of_file(&[&key]);
    let [pod, other] =
        ["payments", "shop"].map(|namespace| key.sign(&claims(&mount.url, namespace, "api", NOW)));
    let driver = mount.driver(&key);
    for expected in [[0, 2, 0], [2, 2, 0], [4, 2, 0]] {
        assert_eq!(mount.present(&pod, &driver, &issuers).await, "accepted");
        assert_eq!(checks(&metrics), expected);
    }
    assert_eq!(mount.present(&other, &driver, &issuers).await, "accepted");
    assert_eq!(checks(&metrics), [5, 3, 0], "the driver's is the same");
    for _ in 0..2 {
        assert_eq!(mount.present(&format!("{pod}x"), &driver, &issuers).await, "token-malformed");
    }
    assert_eq!(checks(&metrics), [7, 3, 2], "refusals are not kept");
}

#[tokio::test]
async fn whom_a_cached_token_proves_is_whom_it_proved() {
    let key = TestKey::new("k");
    let (_dir, mount, issuers) = mount_of_file(&[&key]);
    let tokens = ["payments", "shop"].map(|namespace| key.sign(&claims(&mount.url, namespace, "api", NOW)));
    let driver = mount.driver(&key);
    for _ in 0..3 {
        for (token, namespace) in tokens.iter().zip(["payments", "shop"]) {
            let caller = mount.authenticator.pod_caller(token, &driver, &issuers).await.expect("a pod");
            assert_eq!(caller.identity().namespace, namespace);
            assert_eq!(caller.driver().namespace, "keyfold-system");
        }
        assert_eq!(mount.present(&driver, &driver, &issuers).await, "driver-as-pod");
        assert_eq!(mount.present(&tokens[0], &tokens[0], &issuers).await, "not-a-driver");
    }
}

#[tokio::test]
async fn attack_01_a_cached_token_is_of_use_in_its_time_only() {
    let key = TestKey::new("k");
    let (_dir, mount, issuers) = mount_of_file(&[&key]);
    let mut pod = claims(&mount.url, "payments", "api", NOW);
    pod["nbf"] = json!(NOW.unix_timestamp() - 60);
    let (pod, driver) = (key.sign(&pod), mount.driver(&key));
    // An hour, and ten seconds of leeway; the clock may be set back too, and forth again.
    let moments = [
        (0, "accepted"),
        (3609, "accepted"),
        (3610, "token-expired"),
        (-10, "accepted"),
        (-11, "token-not-yet-valid"),
        (-71, "token-not-yet-valid"),
        (0, "accepted"),
    ];
    for (secs, expected) in moments {
        mount.clock.set(NOW + time::Duration::seconds(secs));
        assert_eq!(mount.present(&pod, &driver, &issuers).await, expected, "{secs}");
    }
}

#[tokio::test]
async fn attack_09_a_removed_or_changed_issuer_stops_cached_tokens_at_once() {
    let key = TestKey::new("k");
    let (_dir, mount, [before]) = mount_of_file(&[&key]);
    let (pod, driver) = (key.sign(&claims(&mount.url, "payments", "api", NOW)), mount.driver(&key));
    let present = async |issuers: &[IssuerRecord]| mount.present(&pod, &driver, issuers).await;
    let changed = |change: fn(&mut IssuerSpec)| {
        let mut record = IssuerRecord { generation: 2, ..before.clone() };
        change(&mut record.spec);
        [record]
    };
    let same = std::slice::from_ref(&before);
    assert_eq!(present(same).await, "accepted");
    assert_eq!(present(&[]).await, "token-issuer");
    assert_eq!(
        present(&changed(|spec| spec.audiences = ["other".to_owned()].into())).await,
        "token-audience"
    );
    assert_eq!(
        present(&changed(|spec| spec.algorithms = [Algorithm::RS256].into())).await,
        "token-algorithm"
    );
    assert_eq!(
        present(&changed(|spec| spec.max_token_lifetime = Duration::from_secs(60))).await,
        "token-lifetime"
    );
    assert_eq!(present(&changed(|spec| spec.drivers.clear())).await, "not-a-driver");
    assert_eq!(present(&changed(|spec| spec.kind = IssuerKind::Oidc)).await, "token-not-of-a-cluster");
    assert_eq!(present(same).await, "accepted", "the object that it was is itself");
    // A deleted object that was made again begins at the same generation.
    let again =
        IssuerRecord { generation: before.generation, ..changed(|spec| spec.drivers.clear())[0].clone() };
    assert_eq!(present(&[again]).await, "not-a-driver");
}

#[tokio::test]
async fn attack_09_a_key_that_the_issuer_withdrew_or_replaced_stops_its_cached_tokens() {
    let (key, namesake, other) = (TestKey::new("k"), TestKey::new("k"), TestKey::new("other"));
    let (dir, mount, issuers) = mount_of_file(&[&key]);
    let publish = async |keys: &[&TestKey]| {
        std::fs::write(dir.path().join("keys.json"), key_set(keys)).expect("a file");
        mount.clock.advance(Duration::from_secs(1));
        mount.refresh(&issuers).await;
    };
    let pod = key.sign(&claims(&mount.url, "payments", "api", NOW));
    let driver = mount.driver(&key);
    let present = async || mount.present(&pod, &driver, &issuers).await;
    assert_eq!(present().await, "accepted");
    publish(&[&other, &key]).await;
    assert_eq!(present().await, "accepted", "beside another");
    publish(&[&other]).await;
    assert_eq!(present().await, "token-key-unknown", "withdrawn");
    publish(&[&key]).await;
    assert_eq!(present().await, "accepted", "published again");
    publish(&[&namesake]).await;
    assert_eq!(present().await, "token-signature", "replaced under its name");
    publish(&[]).await;
    assert_eq!(present().await, "token-key-unknown", "no key at all");
}

#[tokio::test]
async fn a_token_that_was_refused_is_accepted_once_its_key_is_known() {
    let (key, other) = (TestKey::new("k"), TestKey::new("other"));
    let (dir, mount, issuers) = mount_of_file(&[&other]);
    assert_eq!(mount.code(&key, &issuers).await, "token-key-unknown");
    std::fs::write(dir.path().join("keys.json"), key_set(&[&key])).expect("a file");
    mount.clock.advance(Duration::from_secs(1));
    assert_eq!(mount.code(&key, &issuers).await, "accepted");
}

#[tokio::test]
async fn attack_09_a_pods_cached_token_is_judged_anew_as_an_operators_and_the_other_way_round() {
    let key = TestKey::new("k");
    let (_dir, mount, issuers) = mount_of_file(&[&key]);
    let mut unbound = claims(&mount.url, "payments", "api", NOW);
    unbound["kubernetes.io"].as_object_mut().expect("claims").remove("pod");
    let (unbound, driver) = (key.sign(&unbound), mount.driver(&key));
    let operator = async |token: &str| code(mount.authenticator.operator(Some(token), &[], &issuers).await);
    for _ in 0..2 {
        assert_eq!(operator(&unbound).await, "accepted");
        assert_eq!(mount.present(&unbound, &driver, &issuers).await, "token-not-bound-to-a-pod");
        assert_eq!(operator(&driver).await, "driver-as-operator");
    }
}

#[tokio::test]
async fn attack_16_what_is_kept_is_bounded() {
    const BYTES_MAX: usize = 100_000;
    let key = TestKey::new("k");
    let (_dir, mut mount, issuers) = mount_of_file(&[&key]);
    mount.authenticator.workloads = TokenCache::new(BYTES_MAX, |claims| claims.workload());
    let driver = mount.driver(&key);
    for at in 0..300 {
        let mut pod = claims(&mount.url, "payments", "api", NOW);
        pod["jti"] = json!(format!("{at}{}", "x".repeat(at * 10)));
        assert_eq!(mount.present(&key.sign(&pod), &driver, &issuers).await, "accepted");
        assert!(mount.authenticator.workloads.bytes() <= BYTES_MAX as u64);
    }
    assert!(mount.authenticator.workloads.bytes() > BYTES_MAX as u64 / 2, "and is used");
}
