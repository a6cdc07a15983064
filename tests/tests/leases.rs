//! Limits on how long a pod has secrets under an app role.

use std::{fs, time::Duration};

use keyfold::dev::{
    kubelet::{Pod, Volume, publish_request},
    tokens::{AUDIENCE, TokenRequest},
};
use keyfold_core::clock::{Clock as _, SystemClock};
use keyfold_proto::{
    DESCRIPTORS,
    keyfold::v1::{DeleteObjectRequest, IssueSecretsResponse},
};
use keyfold_tests::{
    PAYMENTS_SECRETS, World,
    faults::{Gate, operator_of},
};
use prost::Message as _;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::task::JoinSet;
use tonic::{Code, Status};

const ROLE: &str = "payments-api";
const DB: [(&str, bool); 1] = [("payments/db", false)];

/// A world whose role has limits.
async fn world() -> World {
    let world = World::start().await.with_payments().await;
    apply(&world, Some(json!({"ttl": "1h", "max": "24h"}))).await;
    world
}

async fn apply(world: &World, lease: Option<Value>) {
    let mut role = json!({
        "bind": [{"issuer": "dev", "namespaces": ["payments"], "serviceAccounts": ["api"]}],
        "grants": [{"path": "payments/*", "allow": ["read"]}],
    });
    if let Some(lease) = lease {
        role["lease"] = lease;
    }
    world.server.apply("AppRole", ROLE, &role).await.unwrap();
}

async fn issue(world: &World, pod: &Pod) -> Result<IssueSecretsResponse, Status> {
    world.issue(&world.token(pod).jwt, &world.driver_token(), ROLE, &DB).await
}

/// The end of the lease that an issue was on.
fn end(issued: &IssueSecretsResponse) -> Option<OffsetDateTime> {
    let end = issued.lease_expires_at?;
    let nanos = i128::from(end.seconds) * 1_000_000_000 + i128::from(end.nanos);
    Some(OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap())
}

/// As if the leases had begun that much earlier.
fn age(world: &World, interval: &str) {
    world.database.sql(&format!("UPDATE leases SET started_at = started_at - interval '{interval}'"));
}

/// When the one lease began, and that much later.
fn start_and(world: &World, later: time::Duration) -> OffsetDateTime {
    let start = world.database.sql("SELECT to_json(started_at AT TIME ZONE 'UTC') FROM leases");
    OffsetDateTime::parse(&format!("{}Z", start.trim_matches('"')), &Rfc3339).unwrap() + later
}

fn count(world: &World) -> String {
    world.database.sql("SELECT count(*) FROM leases")
}

fn assert_ended(refused: Result<IssueSecretsResponse, Status>) {
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    assert_eq!(
        refused.message(),
        "the pod has had secrets under app role payments-api for as long as that allows (1day): a new pod must take its \
         place"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issue_on_a_lease_says_when_it_ends_and_so_does_its_entry() {
    let world = world().await;
    let pod = world.pod("payments", "api", "api-0");
    let first = end(&issue(&world, &pod).await.unwrap()).expect("an end");
    assert_eq!(first, start_and(&world, time::Duration::HOUR));
    let entry = world.database.entries("secret.issue").pop().unwrap();
    assert_eq!(entry["operation"]["lease_expires_at"], first.format(&Rfc3339).unwrap());

    let renewed = end(&issue(&world, &pod).await.unwrap()).expect("an end");
    assert!(renewed > first, "renewed from now on");
    assert_eq!(count(&world), "1");
    let kept: i64 = world
        .database
        .sql("SELECT forget_on - (started_at AT TIME ZONE 'UTC')::date FROM leases")
        .parse()
        .unwrap();
    assert_eq!(kept, 31, "its whole time and thirty days");
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_limits_there_is_no_lease_and_nothing_is_kept() {
    let world = world().await;
    let pod = world.pod("payments", "api", "api-0");
    apply(&world, None).await;
    let issued = issue(&world, &pod).await.unwrap();
    assert_eq!((issued.lease_expires_at, count(&world).as_str()), (None, "0"));
    let entry = world.database.entries("secret.issue").pop().unwrap();
    assert_eq!(entry["operation"].get("lease_expires_at"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_issue_begins_no_lease() {
    let world = world().await;
    let pod = world.pod("payments", "api", "api-0");
    let token = world.token(&pod).jwt;
    let other = world.issue(&token, &world.driver_token(), ROLE, &[("payments/none", false)]).await;
    assert_eq!(other.unwrap_err().code(), Code::NotFound);
    assert_eq!(count(&world), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_not_renewed_beyond_its_whole_time() {
    let world = world().await;
    let pod = world.pod("payments", "api", "api-0");
    issue(&world, &pod).await.unwrap();
    age(&world, "23 hours 30 minutes");
    let last = end(&issue(&world, &pod).await.unwrap()).expect("an end");
    assert_eq!(last, start_and(&world, time::Duration::DAY));

    age(&world, "30 minutes");
    for _ in 0..2 {
        assert_ended(issue(&world, &pod).await);
        let entry = world.database.entries("secret.issue").pop().unwrap();
        assert_eq!(entry["outcome"]["reason"], "lease-ended");
        assert_eq!(entry["operation"].get("lease_expires_at"), None);
        assert_eq!(entry["actor"]["pod"]["name"], "api-0");
    }
    world.database.check_audit_log();

    apply(&world, Some(json!({"ttl": "1h", "max": "48h"}))).await;
    assert!(issue(&world, &pod).await.is_ok(), "a longer time counts at once");
    apply(&world, Some(json!({"ttl": "1h", "max": "24h"}))).await;
    assert_ended(issue(&world, &pod).await);
    apply(&world, None).await;
    assert_eq!(issue(&world, &pod).await.unwrap().lease_expires_at, None);
}

/// While the server was away, say: that is not the pod's fault.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ran_out_is_renewed_while_its_whole_time_lasts() {
    let world = world().await;
    let pod = world.pod("payments", "api", "api-0");
    issue(&world, &pod).await.unwrap();
    age(&world, "10 hours");
    let renewed = end(&issue(&world, &pod).await.unwrap()).expect("an end");
    assert!(renewed > start_and(&world, time::Duration::hours(11)));
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_10_a_pods_lease_neither_ends_nor_renews_anothers() {
    let world = world().await;
    let (old, new) = (world.pod("payments", "api", "api-0"), world.pod("payments", "api", "api-1"));
    issue(&world, &old).await.unwrap();
    age(&world, "24 hours");
    let fresh = end(&issue(&world, &new).await.unwrap()).expect("an end");
    assert!(fresh > start_and_of(&world, &new), "the new pod has a whole lease");
    assert_ended(issue(&world, &old).await);
    assert_eq!(count(&world), "2");
}

fn start_and_of(world: &World, pod: &Pod) -> OffsetDateTime {
    let sql =
        format!("SELECT to_json(started_at AT TIME ZONE 'UTC') FROM leases WHERE pod_uid = '{}'", pod.uid());
    let start = world.database.sql(&sql);
    OffsetDateTime::parse(&format!("{}Z", start.trim_matches('"')), &Rfc3339).unwrap()
}

/// Its clock does not start again for a new token, other secrets, another volume, another replica, or a role left out.
#[tokio::test(flavor = "multi_thread")]
async fn attack_10_a_pod_gets_no_more_time_by_asking_otherwise() {
    let world = world().await;
    let replica = world.second_replica().await;
    world.put("payments/other", &[("password", "other")]).await;
    let pod = world.pod("payments", "api", "api-0");
    issue(&world, &pod).await.unwrap();
    age(&world, "24 hours");
    let token = world.token(&pod).jwt;
    for (role, items) in [
        (ROLE, &DB[..]),
        ("", &DB[..]),
        (ROLE, &[("payments/other", false)]),
        (ROLE, &[("payments/none", true)]),
    ] {
        assert_ended(world.issue(&token, &world.driver_token(), role, items).await);
    }
    assert_ended(world.workloads(&replica).issue(&pod, &["payments/db"]).await);
    let volume = Volume::of_pod(world.driver.kubelet().dir(), &pod, "another");
    let attributes = [("role", ROLE), ("secrets", PAYMENTS_SECRETS)];
    let request = publish_request(&pod, &volume, &world.token(&pod), &attributes);
    let refused = world.driver.kubelet().publish(request).await.unwrap_err();
    assert!(refused.message().contains("a new pod must take its place"), "{refused:?}");
    assert_eq!(count(&world), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_10_the_driver_of_another_node_renews_no_lease() {
    let world = world().await;
    let pod = world.pod("payments", "api", "api-0");
    issue(&world, &pod).await.unwrap();
    let row = || world.database.sql("SELECT *, xmin FROM leases");
    let before = row();
    let elsewhere = TokenRequest {
        namespace: "keyfold-system".into(),
        service_account: "keyfold-csi".into(),
        pod: Some("keyfold-csi-elsewhere".into()),
        node: Some("elsewhere".into()),
        audience: AUDIENCE.into(),
        ttl: Duration::from_secs(600),
    };
    let driver = world.minter.mint(&elsewhere, SystemClock.now()).unwrap().jwt;
    let refused = world.issue(&world.token(&pod).jwt, &driver, ROLE, &DB).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    assert_eq!(row(), before, "the row was not touched");
}

/// Whose lease it is comes from tokens alone.
#[test]
fn attack_10_no_caller_can_name_a_lease() {
    let descriptors = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let own = descriptors.file.iter().filter(|file| file.package() == "keyfold.v1");
    let messages: Vec<_> = own.flat_map(|file| &file.message_type).collect();
    let fields = |name: &str| -> Vec<&str> {
        let message = messages.iter().find(|message| message.name() == name).unwrap();
        message.field.iter().map(|field| field.name()).collect()
    };
    assert_eq!(fields("IssueSecretsRequest"), ["pod_token", "role", "items"]);
    let requests = messages.iter().filter(|message| message.name().ends_with("Request"));
    assert!(requests.flat_map(|message| &message.field).all(|field| !field.name().contains("lease")));
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_renew_at_once_keep_one_lease_and_its_beginning() {
    let world = world().await;
    let replica = world.second_replica().await;
    let pods = ["api-0", "api-1"].map(|name| world.pod("payments", "api", name));
    let mut beginnings = String::new();
    for round in 0..3 {
        let mut asking = JoinSet::new();
        for n in 0..12 {
            let workloads = world.workloads(if n % 2 == 0 { &world.server } else { &replica });
            let pod = pods[n / 2 % 2].clone();
            asking.spawn(async move { workloads.issue(&pod, &["payments/db"]).await });
        }
        while let Some(issued) = asking.join_next().await {
            assert!(issued.unwrap().unwrap().lease_expires_at.is_some());
        }
        let found = world.database.sql("SELECT pod_uid, started_at FROM leases ORDER BY pod_uid");
        assert_eq!(found.lines().count(), 2, "{found}");
        assert!(round == 0 || found == beginnings, "a lease began anew: {beginnings} {found}");
        beginnings = found;
    }
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_at_the_commit_leaves_a_lease_exactly_with_its_entry() {
    let mut world = world().await;
    let gate = Gate::at_commits_of_entries(&world.database);
    for round in 0..3 {
        let pod = world.pod("payments", "api", &format!("api-{round}"));
        gate.close();
        let workloads = world.workloads(&world.server);
        let asking = tokio::spawn(async move { workloads.issue(&pod, &["payments/db"]).await });
        gate.until_held().await;
        world.server.process.kill();
        asking.await.unwrap().unwrap_err();
        gate.open();
        gate.until_idle().await;
        world.server.restart().await.unwrap();
        world.server.until_serving().await.unwrap();
        let issued = world.database.entries("secret.issue").len();
        assert_eq!(count(&world), issued.to_string(), "one cannot be without the other");
    }
    issue(&world, &world.pod("payments", "api", "api-0")).await.unwrap();
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_roles_end_ends_its_leases_also_while_pods_ask() {
    let world = world().await;
    let replica = world.second_replica().await;
    let operator = operator_of(&replica);
    for round in 0..8 {
        let pods = (0..4).map(|n| world.pod("payments", "api", &format!("api-{round}-{n}")));
        let mut asking = JoinSet::new();
        for pod in pods {
            let workloads = world.workloads(&world.server);
            asking.spawn(async move { workloads.issue(&pod, &["payments/db"]).await });
        }
        let role = DeleteObjectRequest { kind: "AppRole".into(), name: ROLE.into() };
        operator.config().delete_object(role).await.unwrap();
        while let Some(issued) = asking.join_next().await {
            match issued.unwrap() {
                Ok(issued) => assert!(issued.lease_expires_at.is_some()),
                Err(refused) => assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}"),
            }
        }
        assert_eq!(count(&world), "0");
        apply(&world, Some(json!({"ttl": "1h", "max": "24h"}))).await;
    }
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_of_pods_that_have_not_asked_for_long_are_forgotten_and_no_others() {
    let world = world().await;
    let pod = world.pod("payments", "api", "api-0");
    issue(&world, &pod).await.unwrap();
    age(&world, "24 hours");
    let planted = "INSERT INTO leases SELECT issuer_id, 'gone-' || n, role_id, started_at,
                       (now() AT TIME ZONE 'UTC')::date + CASE WHEN n <= 120 THEN -n ELSE 1 END
                   FROM leases, generate_series(1, 130) n";
    world.database.sql(planted);
    world.database.sql("UPDATE leases SET forget_on = '2026-01-01' WHERE pod_uid NOT LIKE 'gone-%'");
    assert_ended(issue(&world, &pod).await);
    let kept = "SELECT forget_on >= (now() AT TIME ZONE 'UTC')::date + 30 FROM leases WHERE pod_uid NOT LIKE 'gone-%'";
    assert_eq!(world.database.sql(kept), "t", "a refused pod that goes on asking is not forgotten");
    assert_eq!(count(&world), "131");

    for (n, left) in [(1, 32), (2, 13)] {
        issue(&world, &world.pod("payments", "api", &format!("api-{n}"))).await.unwrap();
        assert_eq!(count(&world), left.to_string());
    }
    assert_ended(issue(&world, &pod).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_emptied_when_its_lease_is_over_and_filled_when_it_is_renewed() {
    let mut world = world().await;
    let pod = world.pod("payments", "api", "api-0");
    let mount = world.publish(&pod, ROLE, PAYMENTS_SECRETS).await.unwrap();
    let before = world.files(&pod);
    assert_eq!(before["db/password"], "first");

    // The pod's time is over, the volume's is not yet.
    age(&world, "24 hours");
    world.publish(&pod, ROLE, PAYMENTS_SECRETS).await.expect("a failed refresh answers OK");
    assert_eq!(world.files(&pod), before);

    let lease = fs::File::open(mount.join("..lease")).unwrap();
    assert!(lease.metadata().unwrap().modified().unwrap() > SystemClock.now(), "it ends in an hour");
    lease.set_modified((SystemClock.now() - time::Duration::MINUTE).into()).unwrap();
    for _ in 0..2 {
        let refused = world.publish(&pod, ROLE, PAYMENTS_SECRETS).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        assert!(
            refused.message().contains("a new pod must take its place; the lease ended at 20"),
            "{refused:?}"
        );
        assert!(refused.message().ends_with("so its files were removed"), "{refused:?}");
        assert!(world.files(&pod).is_empty());
        assert_eq!(fs::read_dir(mount.join("..data")).unwrap().count(), 0);
        if world.driver.mounts_on_host() {
            world.driver.restart().await.unwrap();
        }
    }

    apply(&world, Some(json!({"ttl": "1h", "max": "48h"}))).await;
    let mount = world.publish(&pod, ROLE, PAYMENTS_SECRETS).await.unwrap();
    assert_eq!(world.files(&pod), before);
    apply(&world, None).await;
    world.publish(&pod, ROLE, PAYMENTS_SECRETS).await.unwrap();
    assert!(!mount.join("..lease").exists(), "without limits the volume has no end");
    assert!(!world.logs().contains("first"), "a value is in a log");
}
