//! Publishing against a small stand-in for the server, which answers what the test sets; the real server is part of
//! the end-to-end tests. Every test here mounts.

use std::{
    collections::{HashMap, VecDeque},
    fs,
    net::SocketAddr,
    path::Path,
    sync::Mutex,
};

use keyfold_proto::{
    csi::v1::{
        VolumeCapability,
        volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
    },
    keyfold::v1::{
        Field, IssueSecretsResponse,
        workload_service_server::{WorkloadService, WorkloadServiceServer},
    },
};
use time::macros::datetime;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use super::*;
use crate::{connection::Connection, folder::Folder};

const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

type Answer = Result<Vec<IssuedSecret>, Status>;

/// Authorization, pod token, role and items of a request.
type Seen = (String, String, String, Vec<SecretReference>);

/// What the stand-in answers: each answer once, the last one for ever.
#[derive(Clone, Default)]
struct Broker {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    lease_expires_at: Arc<Mutex<Option<OffsetDateTime>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Broker {
    fn answer(&self, answers: impl IntoIterator<Item = Answer>) {
        *self.answers.lock().unwrap() = answers.into_iter().collect();
    }

    /// From now on every issue is on a lease until then, or on none.
    fn lease(&self, until: Option<OffsetDateTime>) {
        *self.lease_expires_at.lock().unwrap() = until;
    }

    fn issue(&self, path: &str, fields: &[(&str, &str)]) {
        self.answer([Ok(vec![issued(path, fields)])]);
    }
}

#[tonic::async_trait]
impl WorkloadService for Broker {
    async fn issue_secrets(
        &self,
        request: Request<IssueSecretsRequest>,
    ) -> Result<Response<IssueSecretsResponse>, Status> {
        let driver = request.metadata().get("authorization").unwrap().to_str().unwrap().to_owned();
        let message = request.into_inner();
        let seen = (driver, message.pod_token.clone(), message.role.clone(), message.items.clone());
        self.seen.lock().unwrap().push(seen);
        let mut answers = self.answers.lock().unwrap();
        let answer = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
        let secrets = answer.expect("the test set an answer")?;
        let role = "payments-api".into();
        let until = *self.lease_expires_at.lock().unwrap();
        let lease_expires_at =
            until.map(|until| prost_types::Timestamp { seconds: until.unix_timestamp(), nanos: 0 });
        Ok(Response::new(IssueSecretsResponse { role, secrets, lease_expires_at }))
    }
}

fn issued(path: &str, fields: &[(&str, &str)]) -> IssuedSecret {
    let field =
        |(name, value): &(&str, &str)| Field { name: (*name).into(), value: value.as_bytes().to_vec() };
    IssuedSecret { path: path.into(), version: 3, fields: fields.iter().map(field).collect() }
}

/// A kubelet folder, a broker, and the publisher between them.
struct Node {
    folder: tempfile::TempDir,
    broker: Broker,
    address: SocketAddr,
    publisher: Arc<Publisher>,
    stopping: CancellationToken,
}

impl Node {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("pods/uid")).unwrap();
        fs::write(folder.path().join("token"), "driver-token\n").unwrap();
        let broker = Broker::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = Server::builder().add_service(WorkloadServiceServer::new(broker.clone()));
        tokio::spawn(service.serve_with_incoming(TcpListenerStream::new(listener)));
        let stopping = CancellationToken::new();
        let publisher = publisher(folder.path(), address, stopping.clone());
        Self { folder, broker, address, publisher, stopping }
    }

    fn restart(&mut self) {
        self.publisher = publisher(self.folder.path(), self.address, self.stopping.clone());
    }

    fn target(&self) -> PathBuf {
        self.folder.path().join("pods/uid/mount")
    }

    fn request(&self, secrets: &str) -> NodePublishVolumeRequest {
        let mount = MountVolume { volume_mount_group: "2000".into(), ..Default::default() };
        let context = [
            ("secrets", secrets),
            ("role", "payments-api"),
            ("csi.storage.k8s.io/pod.namespace", "payments"),
            ("csi.storage.k8s.io/pod.name", "api-1"),
        ];
        let tokens = r#"{"keyfold":{"token":"pod-token","expirationTimestamp":"2026-11-23T06:39:17Z"}}"#;
        NodePublishVolumeRequest {
            volume_id: "csi-1".into(),
            target_path: self.target().to_str().unwrap().into(),
            readonly: true,
            volume_capability: Some(VolumeCapability {
                access_type: Some(AccessType::Mount(mount)),
                access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
            }),
            secrets: HashMap::from([(TOKENS.to_owned(), tokens.to_owned())]),
            volume_context: context.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            ..Default::default()
        }
    }

    async fn publish(&self) -> Result<(), String> {
        self.publish_secrets("- path: payments/db").await
    }

    async fn publish_secrets(&self, secrets: &str) -> Result<(), String> {
        self.publisher.publish(self.request(secrets)).await.map_err(|error| error.to_string())
    }

    async fn unpublish(&self) -> Result<(), String> {
        let target_path = self.target().to_str().unwrap().into();
        let request = NodeUnpublishVolumeRequest { volume_id: "csi-1".into(), target_path };
        self.publisher.unpublish(request).await.map_err(|error| error.to_string())
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.target().join(path)).unwrap()
    }

    /// When the volume's lease ends.
    fn lease(&self) -> Option<OffsetDateTime> {
        lease::expiry(fs::File::open(self.target()).unwrap()).unwrap()
    }

    /// As if the volume's lease had ended then.
    fn end_lease_at(&self, then: OffsetDateTime) {
        fs::File::open(self.target().join(lease::FILE)).unwrap().set_modified(then.into()).unwrap();
    }

    /// Everything below the mount that is no folder, hidden generations too.
    fn all_files(&self) -> Vec<String> {
        fn collect(folder: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
                match entry.file_type().unwrap().is_dir() {
                    true => collect(&entry.path(), found),
                    false => found.push(entry.file_name().into_string().unwrap()),
                }
            }
        }
        let mut found = Vec::new();
        collect(&self.target(), &mut found);
        found.sort();
        found
    }

    fn mounts(&self) -> usize {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let target = self.target().canonicalize().unwrap_or_else(|_| self.target());
        table.lines().filter(|line| line.contains(&format!(" {} ", target.display()))).count()
    }

    /// Neither a mount nor a folder is left at the target.
    fn assert_nothing_left(&self) {
        assert_eq!(self.mounts(), 0);
        assert!(!self.target().exists());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let target = crate::volume::tests::target_in(&self.folder.path().join("pods"), "uid");
        if let Ok(Some(place)) = MountPoint::resolve(&target, &self.folder.path().join("pods")) {
            let _ = place.remove();
        }
    }
}

fn publisher(folder: &Path, address: SocketAddr, stopping: CancellationToken) -> Arc<Publisher> {
    let yaml = format!(
        "server: {{url: 'https://unused', ca_file: /unused, wait_secs: 60}}\n\
         token_file: {0}/token\nkubelet_dir: {0}\nnode_id: vm\ntmpfs_bytes: 262144",
        folder.display()
    );
    let config = Config::parse(&yaml, []).unwrap();
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    let broker = BrokerClient::new(Connection::over(endpoint.connect_lazy()).into(), &config.token_file);
    Arc::new(Publisher::new(&config, broker, stopping))
}

#[tokio::test]
async fn a_first_publish_brings_the_files_and_an_unpublish_leaves_nothing() {
    let node = Node::new().await;
    node.broker.issue("payments/db", &[("username", "app"), ("password", "s3cret")]);
    let secrets = "- path: payments/db\n- {path: payments/db, format: env, mode: '0400'}\n";
    node.publish_secrets(secrets).await.unwrap();
    assert_eq!(node.read("db/username"), "app");
    assert_eq!(node.read("db.env"), "PASSWORD=\"s3cret\"\nUSERNAME=\"app\"\n");
    let item = SecretReference { path: "payments/db".into(), optional: false };
    let expected = ("Bearer driver-token".into(), "pod-token".into(), "payments-api".into(), vec![item]);
    assert_eq!(*node.broker.seen.lock().unwrap(), [expected]);
    node.unpublish().await.unwrap();
    node.assert_nothing_left();
    node.unpublish().await.unwrap();
}

#[tokio::test]
async fn a_republish_swaps_what_changed_on_the_same_mount() {
    let node = Node::new().await;
    node.broker.issue("payments/db", &[("password", "one")]);
    node.publish().await.unwrap();
    let generation = || fs::read_link(node.target().join("..data")).unwrap();
    let first = generation();
    node.publish().await.unwrap();
    assert_eq!(generation(), first, "nothing changed, so nothing is swapped");
    node.broker.issue("payments/db", &[("password", "two")]);
    node.publish().await.unwrap();
    assert_ne!(generation(), first);
    assert_eq!((node.read("db/password").as_str(), node.mounts()), ("two", 1));
}

#[tokio::test]
async fn a_refused_first_publish_leaves_nothing_and_says_why() {
    let node = Node::new().await;
    node.broker.answer([Err(Status::permission_denied("app role payments-api: not granted: payments/db"))]);
    let error = node.publish().await.unwrap_err();
    assert_eq!(error, "payments/api-1: app role payments-api: not granted: payments/db");
    node.assert_nothing_left();
}

#[tokio::test]
async fn attack_24_a_field_that_could_leave_the_mount_fails_the_publish_with_nothing_written() {
    let node = Node::new().await;
    let long = "n".repeat(300);
    for name in ["../../etc/passwd", "..data", "", long.as_str()] {
        node.broker.issue("payments/db", &[(name, "planted")]);
        let error = node.publish().await.unwrap_err();
        assert!(error.contains("cannot be a file's name") && !error.contains("planted"), "{error}");
        node.assert_nothing_left();
    }
}

#[tokio::test]
async fn a_failed_refresh_succeeds_and_keeps_the_files() {
    let node = Node::new().await;
    node.broker.issue("payments/db", &[("password", "one")]);
    node.publish().await.unwrap();
    for answer in [
        Err(Status::permission_denied("no more")),
        Err(Status::internal("broken")),
        Ok(vec![]),
        Ok(vec![issued("payments/db", &[("..data", "x")])]),
        Ok(vec![issued("payments/db", &[("password", &"x".repeat(300_000))])]),
    ] {
        node.broker.answer([answer]);
        node.publish().await.unwrap();
        assert_eq!((node.read("db/password").as_str(), node.mounts()), ("one", 1));
    }
    let mut no_token = node.request("- path: payments/db");
    no_token.secrets.clear();
    node.publisher.publish(no_token).await.unwrap();
    assert_eq!(node.read("db/password"), "one");
}

/// Long over, by any clock.
const ENDED: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);
/// Far away, by any clock.
const AHEAD: OffsetDateTime = datetime!(2100-01-01 00:00 UTC);

#[tokio::test]
async fn a_failed_refresh_keeps_the_files_while_the_lease_lasts_and_removes_them_afterwards() {
    let mut node = Node::new().await;
    node.broker.lease(Some(AHEAD));
    node.broker.issue("payments/db", &[("username", "app"), ("password", "one")]);
    node.publish().await.unwrap();
    assert_eq!(node.lease(), Some(AHEAD));
    let refusals = [
        Status::permission_denied("no more"),
        Status::internal("broken"),
        Status::unauthenticated("expired"),
    ];
    for refusal in &refusals {
        node.broker.answer([Err(refusal.clone())]);
        node.publish().await.unwrap();
        assert_eq!(node.read("db/password"), "one");
    }

    node.end_lease_at(ENDED);
    node.restart();
    for refusal in &refusals {
        node.broker.answer([Err(refusal.clone())]);
        let error = node.publish().await.unwrap_err();
        let ended = "; the lease ended at 2026-01-01T00:00:00Z, so its files were removed";
        assert_eq!(error, format!("payments/api-1: {}{ended}", refusal.message()));
        assert_eq!((node.all_files(), node.mounts()), (vec!["..data".to_owned(), lease::FILE.to_owned()], 1));
    }

    node.broker.issue("payments/db", &[("password", "two")]);
    node.publish().await.unwrap();
    assert_eq!((node.read("db/password").as_str(), node.mounts(), node.lease()), ("two", 1, Some(AHEAD)));
    node.broker.answer([Err(Status::permission_denied("no more"))]);
    node.publish().await.unwrap();
    assert_eq!(node.read("db/password"), "two", "the renewed lease lasts");
}

#[tokio::test]
async fn a_pod_without_a_token_loses_its_files_with_its_lease() {
    let node = Node::new().await;
    node.broker.lease(Some(AHEAD));
    node.broker.issue("payments/db", &[("password", "one")]);
    node.publish().await.unwrap();
    node.end_lease_at(ENDED);
    let mut no_token = node.request("- path: payments/db");
    no_token.secrets.clear();
    let error = node.publisher.publish(no_token).await.unwrap_err().to_string();
    assert!(error.ends_with("so its files were removed"), "{error}");
    assert!(!node.target().join("db").exists());
}

/// Whoever renews decides, and the node's clock may be wrong.
#[tokio::test]
async fn a_lease_that_can_be_renewed_costs_no_files_however_old_it_is() {
    let node = Node::new().await;
    node.broker.lease(Some(ENDED));
    node.broker.issue("payments/db", &[("password", "one")]);
    for _ in 0..2 {
        node.publish().await.unwrap();
        assert_eq!((node.read("db/password").as_str(), node.lease()), ("one", Some(ENDED)));
    }
}

#[tokio::test]
async fn a_renewal_counts_although_the_new_files_cannot_be_written() {
    let node = Node::new().await;
    node.broker.lease(Some(AHEAD));
    node.broker.issue("payments/db", &[("password", "one")]);
    node.publish().await.unwrap();
    node.end_lease_at(ENDED);
    node.broker.issue("payments/db", &[("password", &"x".repeat(300_000))]);
    node.publish().await.unwrap();
    assert_eq!((node.read("db/password").as_str(), node.lease()), ("one", Some(AHEAD)));
}

#[tokio::test]
async fn a_role_that_has_no_limits_any_more_takes_the_lease_off() {
    let node = Node::new().await;
    node.broker.lease(Some(ENDED));
    node.broker.issue("payments/db", &[("password", "one")]);
    node.publish().await.unwrap();
    node.broker.lease(None);
    node.publish().await.unwrap();
    assert_eq!(node.lease(), None);
    node.broker.answer([Err(Status::permission_denied("no more"))]);
    node.publish().await.unwrap();
    assert_eq!(node.read("db/password"), "one");
}

#[tokio::test]
async fn a_full_volume_has_room_for_its_lease() {
    let node = Node::new().await;
    let full = "x".repeat(262_144);
    node.broker.issue("payments/db", &[("password", &full)]);
    node.publish().await.unwrap();
    assert!(fs::write(node.target().join("probe"), "x").is_err(), "the volume is full");
    node.broker.lease(Some(AHEAD));
    node.publish().await.unwrap();
    assert_eq!((node.read("db/password").len(), node.lease()), (full.len(), Some(AHEAD)));
    node.end_lease_at(ENDED);
    node.broker.answer([Err(Status::permission_denied("no more"))]);
    node.publish().await.unwrap_err();
    assert!(!node.target().join("db").exists());
}

#[tokio::test]
async fn files_that_do_not_fit_fail_a_first_publish_with_the_limit() {
    let node = Node::new().await;
    node.broker.issue("payments/db", &[("password", &"x".repeat(300_000))]);
    let error = node.publish().await.unwrap_err();
    assert!(error.contains("262144 bytes"), "{error}");
    node.assert_nothing_left();
}

#[tokio::test]
async fn attack_16_one_secret_in_many_items_is_refused_by_its_size_or_number_of_files() {
    let node = Node::new().await;
    let items = |format: &str| -> String {
        (0..64).map(|n| format!("- {{path: a/b, file: f{n}, format: {format}}}\n")).collect()
    };
    node.broker.issue("a/b", &[("k", &"\u{1}".repeat(50_000))]);
    let error = node.publish_secrets(&items("json")).await.unwrap_err();
    assert!(error.contains("the files need more room than the 262144 bytes"), "{error}");
    node.assert_nothing_left();
    let names: Vec<String> = (0..128).map(|n| format!("k{n}")).collect();
    let fields: Vec<_> = names.iter().map(|name| (name.as_str(), "1")).collect();
    node.broker.issue("a/b", &fields);
    let error = node.publish_secrets(&items("raw")).await.unwrap_err();
    assert!(error.contains("more than 1024 files"), "{error}");
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_publish_that_waits_for_its_turn_to_render_gives_way_to_an_unpublish() {
    let node = Node::new().await;
    node.broker.issue("payments/db", &[("password", "one")]);
    let others = Arc::clone(&node.publisher.renders).acquire_many_owned(RENDERS_MAX as u32).await.unwrap();
    let waiting = node.publish();
    tokio::pin!(waiting);
    while node.broker.seen.lock().unwrap().is_empty() {
        tokio::select! { result = &mut waiting => panic!("{result:?}"), () = tokio::task::yield_now() => {} }
    }
    let (published, unpublished) = tokio::join!(waiting, node.unpublish());
    assert_eq!(published.unwrap_err(), "payments/api-1: another call on this volume is running");
    unpublished.unwrap();
    node.assert_nothing_left();
    drop(others);
    node.publish().await.unwrap();
    assert_eq!(node.read("db/password"), "one");
}

#[tokio::test]
async fn a_tmpfs_that_is_not_keyfolds_is_left_alone() {
    let node = Node::new().await;
    node.broker.issue("payments/db", &[("password", "one")]);
    fs::create_dir(node.target()).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", node.target(), "tmpfs", flags, None).expect("run this test as root");
    let results = [node.publish().await, node.unpublish().await];
    rustix::mount::unmount(node.target(), rustix::mount::UnmountFlags::empty()).unwrap();
    for error in results.map(Result::unwrap_err) {
        assert!(error.contains("a file system of type \"tmpfs\" from \"tmpfs\""), "{error}");
    }
}

#[tokio::test]
async fn a_publish_completes_what_a_killed_driver_began() {
    let node = Node::new().await;
    let target = crate::volume::tests::target_in(&node.folder.path().join("pods"), "uid");
    let place = MountPoint::resolve(&target, &node.folder.path().join("pods")).unwrap().unwrap();
    let access = Access { mode: 0o700, uid: None, gid: None };
    place.attach(crate::mount::tests::tmpfs(65536, access)).unwrap();
    // Refused: this is still a first publish, and leaves nothing.
    node.broker.answer([Err(Status::not_found("no such secret"))]);
    assert!(node.publish().await.unwrap_err().contains("no such secret"));
    node.assert_nothing_left();
    place.attach(crate::mount::tests::tmpfs(65536, access)).unwrap();
    node.broker.issue("payments/db", &[("password", "one")]);
    node.publish().await.unwrap();
    assert_eq!((node.read("db/password").as_str(), node.mounts()), ("one", 1));
    let root = Folder::open(fs::File::open(node.target()).unwrap(), ".").unwrap();
    assert_eq!(rustix::fs::fstat(&root).unwrap().st_mode & 0o777, 0o750);
}

#[tokio::test]
async fn a_restarted_driver_refreshes_and_unpublishes_what_it_finds() {
    let mut node = Node::new().await;
    node.broker.issue("payments/db", &[("password", "one")]);
    node.publish().await.unwrap();
    node.restart();
    node.broker.issue("payments/db", &[("password", "two")]);
    node.publish().await.unwrap();
    assert_eq!((node.read("db/password").as_str(), node.mounts()), ("two", 1));
    node.restart();
    node.unpublish().await.unwrap();
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_publish_waits_inside_the_call_while_the_server_is_away_or_has_too_much_to_do() {
    let node = Node::new().await;
    let away = [
        Status::unavailable("the database is away"),
        Status::resource_exhausted("too many requests"),
        Status::cancelled("the call took too long"),
        Status::aborted("busy"),
    ];
    let issued = Ok(vec![issued("payments/db", &[("password", "one")])]);
    node.broker.answer(away.map(Err).into_iter().chain([issued]));
    node.publish().await.unwrap();
    assert_eq!(node.read("db/password"), "one");
    assert_eq!(node.broker.seen.lock().unwrap().len(), 5);
}

#[tokio::test]
async fn two_publishes_of_one_volume_at_once_give_one_mount() {
    let node = Node::new().await;
    node.broker.issue("payments/db", &[("password", "one")]);
    let results = tokio::join!(node.publish(), node.publish(), node.publish());
    assert_eq!(results, (Ok(()), Ok(()), Ok(())));
    assert_eq!((node.read("db/password").as_str(), node.mounts()), ("one", 1));
}

#[tokio::test]
async fn an_unpublish_ends_a_publish_that_waits_for_the_server() {
    let node = Node::new().await;
    node.broker.answer([Err(Status::unavailable("away"))]);
    let waiting = node.publish();
    tokio::pin!(waiting);
    while node.broker.seen.lock().unwrap().is_empty() {
        tokio::select! { result = &mut waiting => panic!("{result:?}"), () = tokio::task::yield_now() => {} }
    }
    let (published, unpublished) = tokio::join!(waiting, node.unpublish());
    assert_eq!(published.unwrap_err(), "payments/api-1: another call on this volume is running");
    unpublished.unwrap();
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_stopping_driver_ends_a_publish_that_waits_for_the_server() {
    let node = Node::new().await;
    node.broker.answer([Err(Status::unavailable("away"))]);
    let waiting = node.publish();
    tokio::pin!(waiting);
    while node.broker.seen.lock().unwrap().is_empty() {
        tokio::select! { result = &mut waiting => panic!("{result:?}"), () = tokio::task::yield_now() => {} }
    }
    node.stopping.cancel();
    assert!(waiting.await.unwrap_err().contains("stopping"));
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_driver_without_its_own_token_says_so() {
    let node = Node::new().await;
    fs::remove_file(node.folder.path().join("token")).unwrap();
    let error = node.publish().await.unwrap_err();
    assert!(error.contains("the driver's own token"), "{error}");
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_target_whose_folder_is_missing_is_refused_and_unpublished_without_complaint() {
    let node = Node::new().await;
    fs::remove_dir(node.folder.path().join("pods/uid")).unwrap();
    assert!(node.publish().await.unwrap_err().contains("does not exist"));
    node.unpublish().await.unwrap();
}

#[tokio::test]
async fn a_path_is_asked_for_once_and_is_optional_only_when_every_item_says_so() {
    let node = Node::new().await;
    node.broker.answer([Ok(vec![issued("a/b", &[("x", "1")])])]);
    let secrets = "- {path: a/b, optional: true}\n- {path: a/b, file: f, optional: false}\n- {path: a/c, optional: true}\n- {path: a/c, file: g, optional: true}";
    node.publish_secrets(secrets).await.unwrap();
    let asked: Vec<_> = {
        let seen = node.broker.seen.lock().unwrap();
        seen[0].3.iter().map(|item| (item.path.clone(), item.optional)).collect()
    };
    assert_eq!(asked, [("a/b".to_owned(), false), ("a/c".to_owned(), true)]);
    assert_eq!(node.read("f/x"), "1");
    assert!(!node.target().join("g").exists());
}

#[test]
fn folders_let_others_pass_only_when_an_item_needs_it() {
    let mode = |yaml: &str| folder_access(&crate::volume::tests::volume_of(yaml)).mode;
    assert_eq!(mode("- {path: a/b, mode: '0440'}"), 0o750);
    assert_eq!(mode("- {path: a/b}\n- {path: a/c, mode: '0444'}"), 0o755);
    assert_eq!(mode("- {path: a/b, uid: 1000}"), 0o755);
    assert_eq!(mode("- {path: a/b, gid: 1000}"), 0o755);
}
