//! What the server makes of Kubernetes API servers: reviews of tokens and labels of pods and nodes, over real TLS.

use std::{
    io,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use keyfold::dev::pki::Authority;
use keyfold_core::{
    clock::{Clock, SystemClock},
    identity::{NamedUid, WorkloadIdentity},
    object::{ApiServerRef, Kind, Spec},
    refusal::ReviewRefusal,
};
use keyfold_server::{
    authn::IssuerRecord,
    k8s::{ApiServers, Bounds, FoundPod, ReviewError, Unavailable},
};
use keyfold_tests::{
    Recorded,
    api_server::{Answer, ApiServer, BEARER_TOKEN, REVIEWS},
    fixture,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use time::{OffsetDateTime, macros::datetime};
use tracing_subscriber::util::SubscriberInitExt as _;

/// A clock that moves when told.
struct TestClock(AtomicI64);

impl TestClock {
    fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_secs().cast_signed(), Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(self.0.load(Ordering::SeqCst)).expect("a moment")
    }
}

/// A server's view on the API server of issuer `recorded`, which serves the recorded cluster's tokens.
struct Cluster {
    api_server: ApiServer,
    api_servers: ApiServers,
    clock: Arc<TestClock>,
    issuer: IssuerRecord,
    dir: TempDir,
}

/// For what answers: however busy the machine is, it answers within this time.
const PATIENT: Bounds = Bounds { timeout: Duration::from_secs(60), in_flight: 4 };

/// For what does not. A fifth of it must do to read a kubeconfig on a busy machine.
const HASTY: Bounds = Bounds { timeout: Duration::from_millis(2500), in_flight: 4 };

impl Cluster {
    async fn start() -> Self {
        Self::of(&authority(SystemClock.now()), PATIENT).await
    }

    async fn start_hasty() -> Self {
        Self::of(&authority(SystemClock.now()), HASTY).await
    }

    async fn of(authority: &Authority, bounds: Bounds) -> Self {
        let api_server = ApiServer::start(authority).await;
        let dir = tempfile::tempdir().expect("a folder");
        api_server.write_kubeconfig(dir.path(), "prod.yaml");
        let clock = Arc::new(TestClock(AtomicI64::new(SystemClock.now().unix_timestamp())));
        let api_servers = ApiServers::new(Some(dir.path().to_owned()), clock.clone(), bounds);
        Self { api_server, api_servers, clock, issuer: issuer(1), dir }
    }

    async fn review(&self, token: &str) -> Result<(), ReviewError> {
        self.api_servers.review(&self.issuer, &identity(), token).await
    }

    /// The recorded pod's token, reviewed.
    async fn review_recorded(&self) -> Result<(), ReviewError> {
        self.review(&recorded_token()).await
    }

    async fn pod_labels(&self) -> Option<Vec<(String, String)>> {
        let identity = identity();
        let labels = self.api_servers.pod_labels(&self.issuer, &identity.namespace, &identity.pod).await;
        labels.expect("the API server answers").map(|labels| labels.into_iter().collect())
    }

    /// Nobody is there.
    fn away(&self) -> ReviewError {
        ReviewError::Unavailable(Unavailable { issuer: self.issuer.name.clone(), away: true })
    }

    /// Somebody may be there, and gave no answer that can be used.
    fn unusable(&self) -> ReviewError {
        ReviewError::Unavailable(Unavailable { issuer: self.issuer.name.clone(), away: false })
    }

    /// What was found or refused counts no more, and an API server that was away is asked again.
    fn forget(&self) {
        self.clock.advance(Duration::from_secs(10));
    }
}

fn authority(now: OffsetDateTime) -> Authority {
    Authority::new("a cluster's authority", now).expect("an authority")
}

/// Issuer `recorded` in a generation, with its API server in `prod.yaml`.
fn issuer(generation: u64) -> IssuerRecord {
    let mut spec = Recorded::issuer_spec();
    spec["apiServer"] = json!({"kubeconfig": "prod.yaml"});
    let Ok(Spec::Issuer(spec)) = Spec::parse(Kind::Issuer, &spec.to_string()) else { panic!("an issuer") };
    IssuerRecord { name: "recorded".try_into().expect("a name"), generation, spec }
}

fn recorded_token() -> String {
    fixture("tokens/payments-api-on-node-vm.jwt").trim().to_owned()
}

/// What the recorded token says of itself.
fn identity() -> WorkloadIdentity {
    let named = |name: &str, uid: &str| NamedUid { name: name.into(), uid: uid.into() };
    WorkloadIdentity {
        issuer: "recorded".try_into().expect("a name"),
        subject: "system:serviceaccount:payments:api".into(),
        namespace: "payments".into(),
        service_account: named("api", "ca8d112c-34b8-4dbe-b340-a3dfaeed9b17"),
        pod: named("api-7d9f4", "bd149297-fc0c-4827-b626-719bb0c7b2ab"),
        node: Some(named("vm", "d9146007-b909-4c82-91d7-4157953aaaf7")),
        credential_id: None,
        expires_at: datetime!(2036-11-01 00:00 UTC),
    }
}

/// A recorded reply, after `change` of its status.
fn recorded_review(name: &str, change: impl FnOnce(&mut Value)) -> Answer {
    let mut reply: Value = serde_json::from_str(&fixture(&format!("tokenreview/{name}.json"))).expect("JSON");
    change(&mut reply["status"]);
    Answer::Reply(201, reply)
}

fn refused(reason: ReviewRefusal) -> Result<(), ReviewError> {
    Err(ReviewError::Refused(reason))
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_reviews_are_accepted_and_refused_as_they_were_meant() {
    let cluster = Cluster::start().await;
    for name in ["wrong-audience", "pod-deleted"] {
        cluster.api_server.answer(recorded_review(name, |_| {}));
        assert_eq!(cluster.review_recorded().await, refused(ReviewRefusal::NotAuthenticated), "{name}");
        cluster.forget();
    }
    cluster.api_server.answer(recorded_review("accepted", |_| {}));
    assert_eq!(cluster.review_recorded().await, Ok(()));

    let asked = cluster.api_server.asked();
    assert_eq!(asked.len(), 3);
    for asked in asked {
        assert_eq!((asked.method.as_str(), asked.path.as_str()), ("POST", REVIEWS));
        assert_eq!(asked.body["spec"], json!({"token": recorded_token(), "audiences": ["keyfold"]}));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_02_a_review_that_names_none_of_our_audiences_is_refused() {
    let cluster = Cluster::start().await;
    for audiences in [json!(null), json!([]), json!(["https://kubernetes.default.svc"])] {
        let answer = recorded_review("accepted", |status| status["audiences"] = audiences.clone());
        cluster.api_server.answer(answer);
        assert_eq!(cluster.review_recorded().await, refused(ReviewRefusal::Audience), "{audiences}");
        cluster.forget();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_review_of_another_identity_is_refused() {
    let cluster = Cluster::start().await;
    for field in ["username", "uid"] {
        cluster.api_server.answer(recorded_review("accepted", |status| status["user"][field] = json!("x")));
        assert_eq!(cluster.review_recorded().await, refused(ReviewRefusal::OtherIdentity), "{field}");
        cluster.forget();
    }
    let other_pod = recorded_review("accepted", |status| {
        status["user"]["extra"]["authentication.kubernetes.io/pod-uid"] = json!(["another"]);
    });
    cluster.api_server.answer(other_pod);
    assert_eq!(cluster.review_recorded().await, refused(ReviewRefusal::OtherIdentity));
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_04_a_deleted_pods_token_is_refused_once_the_last_review_is_ten_seconds_old() {
    let cluster = Cluster::start().await;
    assert_eq!(cluster.review_recorded().await, Ok(()));
    cluster.api_server.delete_pod(&identity().pod.uid);
    cluster.clock.advance(Duration::from_secs(9));
    assert_eq!(cluster.review_recorded().await, Ok(()), "the last review still counts");
    assert_eq!(cluster.api_server.asked().len(), 1);
    cluster.clock.advance(Duration::from_secs(1));
    assert_eq!(cluster.review_recorded().await, refused(ReviewRefusal::NotAuthenticated));
    assert_eq!(cluster.api_server.asked().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_a_flood_of_one_dead_token_asks_the_api_server_once_in_ten_seconds() {
    let cluster = Cluster::start().await;
    cluster.api_server.delete_pod(&identity().pod.uid);
    for _ in 0..100 {
        assert_eq!(cluster.review_recorded().await, refused(ReviewRefusal::NotAuthenticated));
    }
    assert_eq!(cluster.api_server.asked().len(), 1);
    cluster.api_server.answer(recorded_review("accepted", |_| {}));
    cluster.clock.advance(Duration::from_secs(9));
    assert_eq!(cluster.review_recorded().await, refused(ReviewRefusal::NotAuthenticated));
    cluster.clock.advance(Duration::from_secs(1));
    assert_eq!(cluster.review_recorded().await, Ok(()), "and no longer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_review_counts_for_its_token_and_its_issuers_generation_alone() {
    let mut cluster = Cluster::start().await;
    assert_eq!(cluster.review_recorded().await, Ok(()));
    let of_another_pod = fixture("tokens/payments-api-on-node-b.jwt");
    let other = cluster.review(of_another_pod.trim()).await;
    assert_eq!(other, refused(ReviewRefusal::OtherIdentity), "not the first one's answer");
    cluster.issuer = issuer(2);
    assert_eq!(cluster.review_recorded().await, Ok(()));
    assert_eq!(cluster.api_server.asked().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_away_is_no_yes_and_serves_again_when_it_is_back() {
    let mut cluster = Cluster::start().await;
    cluster.api_server.stop();
    // The listener closes when its task has been aborted.
    while tokio::net::TcpStream::connect(cluster.api_server.url().trim_start_matches("https://"))
        .await
        .is_ok()
    {
        tokio::task::yield_now().await;
    }
    assert_eq!(cluster.review_recorded().await, Err(cluster.away()));
    cluster.api_server.resume().await;
    cluster.clock.advance(Duration::from_secs(1));
    assert_eq!(cluster.review_recorded().await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_did_not_answer_is_left_alone_for_a_second_but_for_one_probe_at_a_time() {
    let cluster = Arc::new(Cluster::start_hasty().await);
    cluster.api_server.answer(Answer::Never);
    for _ in 0..100 {
        assert_eq!(cluster.review_recorded().await, Err(cluster.away()));
    }
    assert_eq!(cluster.api_server.asked().len(), 1, "who found out waited, and nobody else");

    cluster.clock.advance(Duration::from_secs(1));
    let reviews = (0..20).map(|_| {
        let cluster = Arc::clone(&cluster);
        async move { cluster.review_recorded().await }
    });
    let answers = reviews.collect::<tokio::task::JoinSet<_>>().join_all().await;
    assert!(answers.iter().all(|answer| *answer == Err(cluster.away())), "{answers:?}");
    assert_eq!(cluster.api_server.asked().len(), 2, "one probe");

    cluster.api_server.answer(Answer::Well);
    assert_eq!(cluster.review_recorded().await, Err(cluster.away()), "the probe's second");
    cluster.clock.advance(Duration::from_secs(1));
    assert_eq!(cluster.review_recorded().await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_answer_of_an_api_server_makes_it_unavailable_and_only_a_gateways_word_away() {
    let cluster = Cluster::start().await;
    let status = |code: u16| Answer::Reply(code, json!({"kind": "Status", "status": "Failure"}));
    for code in [502, 503, 504] {
        assert_fails(&cluster, status(code), cluster.away()).await;
    }
    let cut_off = format!(r#"{{"kind":"TokenReview","spec":{{"token":"{}"}}"#, recorded_token());
    let answers = [
        status(400),
        status(401),
        status(403),
        status(404),
        status(413),
        status(429),
        status(500),
        Answer::Text("garbage".into()),
        Answer::Text(cut_off),
        Answer::Text("[".repeat(500_000)),
        Answer::Reply(200, json!({"kind": "Pod", "status": {"phase": "Running"}})),
    ];
    for answer in answers {
        assert_fails(&cluster, answer, cluster.unusable()).await;
    }
    cluster.api_server.answer(Answer::Well);
    assert_eq!(cluster.review_recorded().await, Ok(()), "nothing of that is remembered");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_who_takes_all_places_makes_no_api_server_look_away() {
    // A fifth of it is for waiting, and the one place is taken for longer.
    let bounds = Bounds { timeout: Duration::from_secs(5), in_flight: 1 };
    let cluster = Arc::new(Cluster::of(&authority(SystemClock.now()), bounds).await);
    cluster.api_server.answer(Answer::Never);
    let first = tokio::spawn({
        let cluster = Arc::clone(&cluster);
        async move { cluster.pod_labels().await }
    });
    while cluster.api_server.asked().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(cluster.review_recorded().await, Err(cluster.unusable()));
    first.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_a_reply_of_100_mebibytes_is_not_read() {
    let cluster = Cluster::start().await;
    assert_fails(&cluster, Answer::Huge, cluster.unusable()).await;
    // What the sockets' buffers hold goes out too.
    let sent = cluster.api_server.huge_bytes_sent();
    assert!(sent > 0 && sent < 50 * 1024 * 1024, "{sent}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_does_not_come_or_end_is_given_up() {
    let cluster = Cluster::start_hasty().await;
    for answer in [Answer::Stuck, Answer::Never] {
        assert_fails(&cluster, answer, cluster.away()).await;
        cluster.forget();
    }
}

async fn assert_fails(cluster: &Cluster, answer: Answer, as_error: ReviewError) {
    cluster.api_server.answer(answer.clone());
    assert_eq!(cluster.review_recorded().await, Err(as_error), "{answer:?}");
    let labels = cluster.api_servers.node_labels(&cluster.issuer, &identity().node.unwrap()).await;
    assert!(labels.is_err(), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_answer_counts_within_the_time_and_not_beyond_it() {
    let patient = Cluster::start().await;
    patient.api_server.delay(Duration::from_millis(200));
    assert_eq!(patient.review_recorded().await, Ok(()));
    let hasty = Cluster::start_hasty().await;
    hasty.api_server.delay(Duration::from_secs(3600));
    assert_eq!(hasty.review_recorded().await, Err(hasty.away()));
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_23_a_redirect_sends_nothing_to_another_host() {
    let cluster = Cluster::start().await;
    let elsewhere = ApiServer::start(&authority(SystemClock.now())).await;
    for url in [elsewhere.url() + REVIEWS, cluster.api_server.url() + "/other"] {
        cluster.api_server.answer(Answer::RedirectTo(url));
        assert_eq!(cluster.review_recorded().await, Err(cluster.unusable()));
    }
    assert!(elsewhere.asked().is_empty());
    assert!(cluster.api_server.asked().iter().all(|asked| asked.path == REVIEWS));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_and_one_of_another_authority_are_not_trusted() {
    let expired = Cluster::of(&authority(SystemClock.now() - Duration::from_secs(60 * 86400)), PATIENT).await;
    assert_eq!(expired.review_recorded().await, Err(expired.away()));
    assert!(expired.api_server.asked().is_empty());

    let cluster = Cluster::start().await;
    let impostor = ApiServer::start(&authority(SystemClock.now())).await;
    let kubeconfig = cluster.dir.path().join("prod.yaml");
    let text = std::fs::read_to_string(&kubeconfig).unwrap();
    std::fs::write(&kubeconfig, text.replace(&cluster.api_server.url(), &impostor.url())).unwrap();
    cluster.forget();
    assert_eq!(cluster.review_recorded().await, Err(cluster.away()));
    assert!(impostor.asked().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_23_a_kubeconfig_that_runs_a_program_is_refused_and_runs_none() {
    let cluster = Cluster::start().await;
    let (kubeconfig, trace) = (cluster.dir.path().join("prod.yaml"), cluster.dir.path().join("trace"));
    let mut json: Value = serde_json::from_slice(&std::fs::read(&kubeconfig).unwrap()).unwrap();
    json["users"][0]["user"]["exec"] = json!({
        "apiVersion": "client.authentication.k8s.io/v1", "command": "touch", "args": [trace],
    });
    std::fs::write(&kubeconfig, json.to_string()).unwrap();
    assert_eq!(cluster.review_recorded().await, Err(cluster.unusable()));
    assert!(cluster.api_server.asked().is_empty() && !trace.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_kubeconfig_counts_within_a_minute() {
    let cluster = Cluster::start().await;
    assert_eq!(cluster.review_recorded().await, Ok(()));
    std::fs::write(cluster.dir.path().join("prod.yaml.token"), "revoked").unwrap();
    cluster.clock.advance(Duration::from_secs(60));
    assert_eq!(cluster.review_recorded().await, Err(cluster.unusable()));
    std::fs::write(cluster.dir.path().join("prod.yaml.token"), BEARER_TOKEN).unwrap();
    cluster.clock.advance(Duration::from_secs(60));
    assert_eq!(cluster.review_recorded().await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_without_an_api_server_asks_nobody() {
    let mut cluster = Cluster::start().await;
    cluster.issuer.spec.api_server = None;
    assert_eq!(cluster.review_recorded().await, Err(cluster.unusable()));
    cluster.issuer.spec.api_server = Some(ApiServerRef::Kubeconfig("other.yaml".into()));
    assert_eq!(cluster.review_recorded().await, Err(cluster.unusable()));
    assert!(!Path::new(cluster.dir.path()).join("other.yaml").exists());
    assert!(cluster.api_server.asked().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_those_of_the_object_with_the_uid_for_ten_seconds() {
    let cluster = Cluster::start().await;
    let (identity, labels) = (identity(), |value: &str| Some(vec![("app".to_owned(), value.to_owned())]));
    assert_eq!(cluster.pod_labels().await, None, "there is none");
    cluster.api_server.put_pod("payments", "api-7d9f4", "another-uid", &[("app", "web")]);
    assert_eq!(cluster.pod_labels().await, None, "it is a namesake");
    cluster.api_server.put_pod("payments", "api-7d9f4", &identity.pod.uid, &[("app", "api")]);
    assert_eq!(cluster.pod_labels().await, labels("api"));
    cluster.api_server.put_pod("payments", "api-7d9f4", &identity.pod.uid, &[("app", "web")]);
    assert_eq!(cluster.pod_labels().await, labels("api"), "remembered");
    cluster.clock.advance(Duration::from_secs(10));
    assert_eq!(cluster.pod_labels().await, labels("web"));

    let node = identity.node.unwrap();
    cluster.api_server.put_node("vm", &node.uid, &[("pool", "secure")]);
    let of_node = cluster.api_servers.node_labels(&cluster.issuer, &node).await.unwrap().unwrap();
    assert_eq!(of_node.into_iter().collect::<Vec<_>>(), [("pool".to_owned(), "secure".to_owned())]);
    let asked = cluster.api_server.asked();
    assert!(
        asked.iter().all(|asked| asked.method == "GET" && asked.accept.contains("PartialObjectMetadata"))
    );
    assert_eq!(asked.last().unwrap().path, "/api/v1/nodes/vm");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_pod_that_is_described_only_what_an_explanation_needs_is_kept() {
    let cluster = Cluster::start().await;
    let describe = async || cluster.api_servers.describe_pod(&cluster.issuer, "payments", "api-7d9f4").await;
    assert_eq!(describe().await, Ok(None));
    cluster.api_server.answer(Answer::Reply(
        200,
        json!({
            "kind": "Pod",
            "metadata": {"name": "api-7d9f4", "uid": "1", "labels": {"app": "api"}, "managedFields": []},
            "spec": {
                "serviceAccountName": "api",
                "nodeName": "vm",
                "containers": [{"name": "api", "env": [{"name": "PASSWORD", "value": "planted"}]}],
            },
        }),
    ));
    let found = describe().await.unwrap().unwrap();
    assert!(!format!("{found:?}").contains("planted"));
    let labels = [("app".to_owned(), "api".to_owned())].into();
    let (uid, service_account, node) = ("1".to_owned(), "api".to_owned(), Some("vm".to_owned()));
    assert_eq!(found, FoundPod { uid, labels, service_account, node });
    let asked = cluster.api_server.asked();
    assert!(asked.iter().all(|asked| asked.path == "/api/v1/namespaces/payments/pods/api-7d9f4"));

    let unscheduled = json!({"kind": "Pod", "metadata": {"uid": "1"}, "spec": {"containers": []}});
    cluster.api_server.answer(Answer::Reply(200, unscheduled));
    let found = describe().await.unwrap().unwrap();
    assert_eq!((found.service_account.as_str(), found.node), ("default", None));
    cluster
        .api_server
        .answer(Answer::Reply(200, json!({"kind": "Node", "metadata": {"uid": "1"}, "spec": {}})));
    assert!(!describe().await.unwrap_err().away);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_07_a_name_cannot_lead_a_question_to_another_path() {
    let cluster = Cluster::start().await;
    for bad in ["", "..", ".", "../../../api/v1/secrets", "a/b", "a?b", "a%2fb", "A", "a\0", "a b", "ä"] {
        let object = NamedUid { name: bad.into(), uid: "any".into() };
        let good = NamedUid { name: "api".into(), uid: "any".into() };
        let issuer = &cluster.issuer;
        assert_eq!(cluster.api_servers.pod_labels(issuer, "payments", &object).await, Ok(None), "{bad:?}");
        assert_eq!(cluster.api_servers.pod_labels(issuer, bad, &good).await, Ok(None), "{bad:?}");
        assert_eq!(cluster.api_servers.node_labels(issuer, &object).await, Ok(None), "{bad:?}");
    }
    assert!(cluster.api_server.asked().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_in_flight_are_bounded_and_all_are_answered() {
    let cluster = Arc::new(Cluster::start().await);
    cluster.api_server.delay(Duration::from_millis(50));
    let mut reviews = tokio::task::JoinSet::new();
    for number in 0..40 {
        let cluster = Arc::clone(&cluster);
        let node = NamedUid { name: format!("node-{number}"), uid: "any".into() };
        reviews.spawn(async move { cluster.api_servers.node_labels(&cluster.issuer, &node).await });
    }
    let answers = reviews.join_all().await;
    assert!(answers.iter().all(|answer| *answer == Ok(None)));
    assert_eq!(cluster.api_server.asked().len(), 40);
    assert!(cluster.api_server.most_in_flight() <= PATIENT.in_flight);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_api_server_that_hangs_takes_no_place_of_another() {
    let hanging = Cluster::start().await;
    let bounds = Bounds { in_flight: 1, ..PATIENT };
    let dir = hanging.dir.path().to_owned();
    let api_servers = Arc::new(ApiServers::new(Some(dir), Arc::new(SystemClock), bounds));
    let other = ApiServer::start(&authority(SystemClock.now())).await;
    other.write_kubeconfig(hanging.dir.path(), "other.yaml");
    hanging.api_server.answer(Answer::Never);
    let asking = tokio::spawn({
        let (api_servers, issuer) = (Arc::clone(&api_servers), hanging.issuer.clone());
        async move { api_servers.review(&issuer, &identity(), &recorded_token()).await }
    });
    while hanging.api_server.asked().is_empty() {
        tokio::task::yield_now().await;
    }
    let mut second = issuer(1);
    second.name = "second".try_into().unwrap();
    second.spec.api_server = Some(ApiServerRef::Kubeconfig("other.yaml".into()));
    assert_eq!(api_servers.review(&second, &identity(), &recorded_token()).await, Ok(()));
    asking.abort();
}

/// What was logged in this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// On one thread, whose log is looked at.
#[tokio::test]
async fn attack_14_no_log_line_holds_a_token_whatever_the_api_server_answers() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::TRACE);
    let _guard = subscriber.with_writer(move || writer.clone()).finish().set_default();
    let (cluster, token) = (Cluster::start().await, recorded_token());
    let echo = |status: Value| json!({"kind": "TokenReview", "spec": {"token": token}, "status": status});
    let signature = token.rsplit('.').next().unwrap();
    let answers = [
        Answer::Reply(201, echo(json!({"error": format!("no such token: {token}")}))),
        Answer::Reply(201, echo(json!({"error": format!("no such signature: {signature}")}))),
        Answer::Reply(201, echo(json!("unreadable"))),
        Answer::Reply(500, echo(json!({}))),
        Answer::Text(format!("{token} in garbage")),
        Answer::RedirectTo(format!("{}/{token}", cluster.api_server.url())),
    ];
    for answer in answers {
        cluster.api_server.answer(answer);
        cluster.review_recorded().await.unwrap_err();
        cluster.forget();
    }
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("could not be asked") && log.contains("no such token: TOKEN"), "{log}");
    assert!(!log.contains(signature) && !log.contains(BEARER_TOKEN), "{log}");
}
