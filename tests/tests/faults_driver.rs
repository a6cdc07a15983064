//! The driver killed, asked twice at once, out of room, and refused by the server.

use std::{collections::BTreeMap, fs, time::Duration};

use keyfold::dev::{
    kubelet::{Pod, csi_socket, publish_request},
    tokens::TokenRequest,
};
use keyfold_core::clock::{Clock as _, SystemClock};
use keyfold_proto::{csi::v1::node_client::NodeClient, keyfold::v1::DeleteObjectRequest};
use keyfold_tests::{PAYMENTS_SECRETS, World, faults::unix_channel};
use tokio::task::JoinSet;
use tonic::{Code, Status, transport::Channel};

/// The smallest volume that the driver's configuration takes.
const SMALL_TMPFS_BYTES: usize = 64 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_was_killed_goes_on_with_the_volumes_that_are_mounted() {
    let mut world = on_host(World::start().await.with_payments().await);
    let pods: Vec<Pod> = (0..3).map(|pod| world.pod("payments", "api", &format!("api-{pod}"))).collect();
    for pod in &pods {
        world.publish(pod, "payments-api", PAYMENTS_SECRETS).await.unwrap();
    }
    let mounts: Vec<_> = pods.iter().map(|pod| mount_ids(&world, pod)).collect();
    // A container that runs holds the folder open, whatever the driver does.
    let held = fs::File::open(world.volume(&pods[0]).target).unwrap();
    world.driver.process.kill();
    for pod in &pods {
        assert_eq!(world.files(pod), files("first"), "the files do not depend on the driver");
    }
    world.put("payments/db", &[("username", "payments"), ("password", "second")]).await;
    world.driver.restart().await.unwrap();
    for pod in &pods {
        world.publish(pod, "payments-api", PAYMENTS_SECRETS).await.unwrap();
        assert_eq!(world.files(pod), files("second"));
    }
    assert_eq!(pods.iter().map(|pod| mount_ids(&world, pod)).collect::<Vec<_>>(), mounts, "swapped in place");
    assert!(same_folder(&held, &world, &pods[0]));
    for pod in &pods {
        world.driver.kubelet().unpublish(&world.volume(pod)).await.unwrap();
    }
    assert_nothing_is_left(&world, &pods);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_26_a_driver_killed_while_it_publishes_leaves_whole_volumes_or_none() {
    let mut world = on_host(World::start().await.with_payments().await);
    for round in 0..14_usize {
        let pods: Vec<Pod> =
            (0..6).map(|pod| world.pod("payments", "api", &format!("api-{round}-{pod}"))).collect();
        let mut publishes = JoinSet::new();
        for pod in &pods {
            let (kubelet, request) = (world.driver.kubelet().clone(), world.publish_request(pod));
            publishes.spawn(async move { kubelet.publish(request).await });
        }
        // From before the first volume is mounted to after the last one is.
        let mounted = || pods.iter().filter(|pod| !mount_ids(&world, pod).is_empty()).count();
        while mounted() < round % 7 {
            tokio::task::yield_now().await;
        }
        world.driver.process.kill();
        publishes.join_all().await;
        for pod in &pods {
            match mount_ids(&world, pod).len() {
                0 => assert!(world.files(pod).is_empty()),
                count => assert_eq!((count, world.files(pod)), (1, files("first")), "{}", pod.name),
            }
        }
        world.driver.restart().await.unwrap();
        // Half of the pods go on, the others went away while the driver was down.
        for pod in &pods[..3] {
            world.publish(pod, "payments-api", PAYMENTS_SECRETS).await.unwrap();
            assert_eq!((mount_ids(&world, pod).len(), world.files(pod)), (1, files("first")));
        }
        for pod in &pods {
            world.driver.kubelet().unpublish(&world.volume(pod)).await.unwrap();
        }
        assert_nothing_is_left(&world, &pods);
    }
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn publishes_of_one_volume_at_once_give_one_mount_with_whole_files() {
    let world = World::start().await.with_payments().await;
    let pod = world.pod("payments", "api", "api-0");
    for _ in 0..5 {
        let mut publishes = JoinSet::new();
        for _ in 0..6 {
            let (mut node, request) = (node(&world), world.publish_request(&pod));
            publishes.spawn(async move { node.node_publish_volume(request).await.map(drop) });
        }
        let answers = publishes.join_all().await;
        assert!(answers.iter().any(Result::is_ok), "{answers:?}");
        answers.into_iter().filter_map(Result::err).for_each(|status| assert_busy(&status));
        assert_eq!((mount_ids(&world, &pod).len(), world.files(&pod)), (1, files("first")));
        node(&world).node_unpublish_volume(world.unpublish_request(&pod)).await.unwrap();
        assert_nothing_is_left(&world, std::slice::from_ref(&pod));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn publish_and_unpublish_at_once_end_in_one_of_the_two_clean_states() {
    let world = World::start().await.with_payments().await;
    let pod = world.pod("payments", "api", "api-0");
    for round in 0..12_u64 {
        let (mut publisher, publish) = (node(&world), world.publish_request(&pod));
        let publish = tokio::spawn(async move { publisher.node_publish_volume(publish).await.map(drop) });
        tokio::time::sleep(Duration::from_millis(2 * round)).await;
        node(&world).node_unpublish_volume(world.unpublish_request(&pod)).await.unwrap();
        if let Err(status) = publish.await.unwrap() {
            assert_busy(&status);
        }
        match mount_ids(&world, &pod).len() {
            0 => assert_nothing_is_left(&world, std::slice::from_ref(&pod)),
            count => assert_eq!((count, world.files(&pod)), (1, files("first"))),
        }
        // Whatever the end was, kubelet's next calls work.
        node(&world).node_publish_volume(world.publish_request(&pod)).await.unwrap();
        assert_eq!((mount_ids(&world, &pod).len(), world.files(&pod)), (1, files("first")));
        node(&world).node_unpublish_volume(world.unpublish_request(&pod)).await.unwrap();
        assert_nothing_is_left(&world, std::slice::from_ref(&pod));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_volumes_at_once_are_all_mounted_refreshed_and_gone_again() {
    let world = World::start().await.with_payments().await;
    let pods: Vec<Pod> = (0..20).map(|pod| world.pod("payments", "api", &format!("api-{pod}"))).collect();
    for password in ["first", "second"] {
        if password == "second" {
            world.put("payments/db", &[("username", "payments"), ("password", password)]).await;
        }
        let mut publishes = JoinSet::new();
        for pod in &pods {
            let (kubelet, request) = (world.driver.kubelet().clone(), world.publish_request(pod));
            publishes.spawn(async move { kubelet.publish(request).await });
        }
        publishes.join_all().await.into_iter().for_each(|published| published.unwrap());
        for pod in &pods {
            assert_eq!((mount_ids(&world, pod).len(), world.files(pod)), (1, files(password)));
        }
    }
    let mut unpublishes = JoinSet::new();
    for pod in &pods {
        let (kubelet, volume) = (world.driver.kubelet().clone(), world.volume(pod));
        unpublishes.spawn(async move { kubelet.unpublish(&volume).await });
    }
    unpublishes.join_all().await.into_iter().for_each(|unpublished| unpublished.unwrap());
    assert_nothing_is_left(&world, &pods);
    assert_eq!(world.database.entries("secret.issue").len(), 40);
    world.database.check_audit_log();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_26_secrets_that_do_not_fit_the_volume_are_refused_at_first_and_keep_the_old_files_later() {
    let mut world = World::start().await.with_payments().await;
    world.configure_driver("tmpfs_bytes", SMALL_TMPFS_BYTES as u64).await;
    let pod = world.pod("payments", "api", "api-0");
    let big = "planted-".repeat(SMALL_TMPFS_BYTES / 8);
    world.put("payments/db", &[("username", "payments"), ("password", &big)]).await;
    let refused = world.publish(&pod, "payments-api", PAYMENTS_SECRETS).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    let message = refused.message();
    assert!(message.contains("payments/api-0") && message.contains("tmpfs_bytes"), "{message}");
    assert_nothing_is_left(&world, std::slice::from_ref(&pod));

    for password in ["second", "third"] {
        world.put("payments/db", &[("username", "payments"), ("password", password)]).await;
        world.publish(&pod, "payments-api", PAYMENTS_SECRETS).await.expect("what fits is published");
        assert_eq!(world.files(&pod), files(password));
        world.put("payments/db", &[("username", "payments"), ("password", &big)]).await;
        for _ in 0..2 {
            world.publish(&pod, "payments-api", PAYMENTS_SECRETS).await.expect("a failed refresh answers OK");
            assert_eq!((mount_ids(&world, &pod).len(), world.files(&pod)), (1, files(password)));
            assert_eq!(generations(&world, &pod), 1, "nothing of the new files takes room");
        }
    }
    let log = world.logs();
    assert!(log.contains("refresh failed, the files stay"), "{log}");
    assert!(!log.contains("planted-"), "a value is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_starts_no_pod_and_takes_no_files_from_one_that_runs() {
    let world = World::start().await.with_payments().await;
    let (running, starting) =
        (world.pod("payments", "api", "running"), world.pod("payments", "api", "starting"));
    world.publish(&running, "payments-api", PAYMENTS_SECRETS).await.unwrap();
    world.put("payments/db", &[("username", "payments"), ("password", "second")]).await;
    publish_with_expired_token(&world, &running).await.expect("a refused refresh answers OK");
    assert_eq!(world.files(&running), files("first"));
    let refused = publish_with_expired_token(&world, &starting).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    assert!(refused.message().contains("expired"), "{refused:?}");
    assert!(!refused.message().contains("eyJ"), "a token is in the message");
    assert_eq!(world.driver.mounts(), [world.volume(&running).target]);
    assert_eq!(refusals(&world), ["token-expired", "token-expired"]);
    world.publish(&running, "payments-api", PAYMENTS_SECRETS).await.unwrap();
    assert_eq!(world.files(&running), files("second"), "the next good token brings the files up to date");
    assert!(!world.logs().contains("eyJ"), "a token is in a log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_role_starts_no_pod_and_takes_no_files_from_one_that_runs() {
    let world = World::start().await.with_payments().await;
    let (running, starting) =
        (world.pod("payments", "api", "running"), world.pod("payments", "api", "starting"));
    world.publish(&running, "payments-api", PAYMENTS_SECRETS).await.unwrap();
    let role = DeleteObjectRequest { kind: "AppRole".into(), name: "payments-api".into() };
    world.operator().config().delete_object(role).await.unwrap();
    world.put("payments/db", &[("username", "payments"), ("password", "second")]).await;
    world.publish(&running, "payments-api", PAYMENTS_SECRETS).await.expect("a refused refresh answers OK");
    assert_eq!(world.files(&running), files("first"));
    let refused = world.publish(&starting, "payments-api", PAYMENTS_SECRETS).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    assert!(refused.message().contains("payments-api"), "{refused:?}");
    assert_eq!(world.driver.mounts(), [world.volume(&running).target]);
    assert_eq!(refusals(&world), ["role-not-bound", "role-not-bound"]);
    assert!(world.logs().contains("refresh failed, the files stay"));
    world.driver.kubelet().unpublish(&world.volume(&running)).await.unwrap();
    assert_nothing_is_left(&world, &[running, starting]);
}

/// Mounts of a driver in a user namespace end with it, so these tests can only be made as root.
fn on_host(world: World) -> World {
    assert!(
        world.driver.mounts_on_host(),
        "run this test as root: it kills a driver, whose mounts must stay"
    );
    world
}

fn files(password: &str) -> BTreeMap<String, String> {
    let file = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    BTreeMap::from([file("db/password", password), file("db/username", "payments")])
}

fn node(world: &World) -> NodeClient<Channel> {
    NodeClient::new(unix_channel(&csi_socket(world.driver.kubelet().dir())))
}

/// The kernel's ids of what is mounted at a pod's volume.
fn mount_ids(world: &World, pod: &Pod) -> Vec<String> {
    let target = world.volume(pod).target.display().to_string();
    let process = if world.driver.mounts_on_host() { std::process::id() } else { world.driver.process.pid() };
    let mounts = fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap();
    // Mount id, parent's id, device, root, mount point (proc_pid_mountinfo(5)).
    let words = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    words.filter(|words| words[4] == target).map(|words| words[0].to_owned()).collect()
}

fn same_folder(held: &fs::File, world: &World, pod: &Pod) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let (held, now) = (held.metadata().unwrap(), fs::metadata(world.volume(pod).target).unwrap());
    (held.dev(), held.ino()) == (now.dev(), now.ino())
}

fn generations(world: &World, pod: &Pod) -> usize {
    let root = world.driver.seen(&world.volume(pod).target);
    let names = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with("..20")).count()
}

fn assert_nothing_is_left(world: &World, pods: &[Pod]) {
    for pod in pods {
        assert_eq!(mount_ids(world, pod), Vec::<String>::new(), "{}", pod.name);
        assert!(!world.volume(pod).target.exists(), "{}", pod.name);
    }
}

fn assert_busy(status: &Status) {
    assert_eq!(status.code(), Code::Aborted, "{status:?}");
    assert!(status.message().contains("another call on this volume is running"), "{status:?}");
}

async fn publish_with_expired_token(world: &World, pod: &Pod) -> Result<(), Status> {
    let request = TokenRequest { ttl: Duration::from_secs(600), ..pod.token_request() };
    let token = world.minter.mint(&request, SystemClock.now() - Duration::from_secs(3600)).unwrap();
    let attributes = [("role", "payments-api"), ("secrets", PAYMENTS_SECRETS)];
    let request = publish_request(pod, &world.volume(pod), &token, &attributes);
    world.driver.kubelet().publish(request).await
}

/// Why issues were refused, oldest first.
fn refusals(world: &World) -> Vec<String> {
    let entries = world.database.entries("secret.issue");
    let refused = entries.iter().filter(|entry| entry["outcome"]["result"] == "refused");
    refused.map(|entry| entry["outcome"]["reason"].as_str().unwrap().to_owned()).collect()
}
