//! TokenReview and selectors on the main path: the recorded pod asks, and an API server has its say.

use keyfold::dev::pki::Authority;
use keyfold_core::clock::{Clock as _, SystemClock};
use keyfold_proto::keyfold::v1::IssueSecretsResponse;
use keyfold_tests::{
    Database, Recorded,
    api_server::{Answer, ApiServer, REVIEWS},
    fixture,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use time::{OffsetDateTime, macros::datetime};
use tonic::{Code, Status};

/// When the tokens were recorded. The clock stands still, so what was remembered counts until an object changes.
const RECORDED: OffsetDateTime = datetime!(2026-11-23 05:45:00 UTC);

const POD_UID: &str = "bd149297-fc0c-4827-b626-719bb0c7b2ab";
const NODE_UID: &str = "d9146007-b909-4c82-91d7-4157953aaaf7";

/// The recorded world, and the API server of its cluster.
struct Cluster {
    world: Recorded,
    api_server: ApiServer,
    _kubeconfigs: TempDir,
}

impl Cluster {
    /// With issuer `recorded` as it is, and these fields.
    async fn start(of_issuer: Value) -> Self {
        let authority = Authority::new("a cluster's authority", SystemClock.now()).unwrap();
        let api_server = ApiServer::start(&authority).await;
        let kubeconfigs = tempfile::tempdir().unwrap();
        api_server.write_kubeconfig(kubeconfigs.path(), "prod.yaml");
        let dir = kubeconfigs.path().to_owned();
        let world = Recorded::configured(RECORDED, |config| config.kubeconfig_dir = Some(dir)).await;
        let cluster = Self { world, api_server, _kubeconfigs: kubeconfigs };
        cluster.declare_issuer(of_issuer).await;
        cluster
    }

    /// Declares issuer `recorded` with these fields. What the API server said before counts no more if they are new.
    async fn declare_issuer(&self, of_issuer: Value) {
        let mut issuer = Recorded::issuer_spec();
        issuer["apiServer"] = json!({"kubeconfig": "prod.yaml"});
        merge(&mut issuer, of_issuer);
        self.world.apply("Issuer", "recorded", &issuer).await;
    }

    /// Declares role `payments-api` with these fields, and of its binding.
    async fn role(&self, of_role: Value, of_binding: Value) {
        let mut binding =
            json!({"issuer": "recorded", "namespaces": ["payments"], "serviceAccounts": ["api"]});
        merge(&mut binding, of_binding);
        let mut role = json!({"bind": [binding], "grants": [{"path": "payments/*", "allow": ["read"]}]});
        merge(&mut role, of_role);
        self.world.apply("AppRole", "payments-api", &role).await;
    }

    async fn issue(&self) -> Result<IssueSecretsResponse, Status> {
        self.issue_with("payments-api-on-node-vm").await
    }

    /// The same with another of the pod's tokens.
    async fn issue_with(&self, token: &str) -> Result<IssueSecretsResponse, Status> {
        let pod = fixture(&format!("tokens/{token}.jwt"));
        self.world.issue(&pod, &fixture("tokens/driver-on-node-vm.jwt"), "payments-api").await
    }

    /// Code and reason of a refusal.
    async fn refusal(&self) -> (Code, String) {
        let status = self.issue().await.unwrap_err();
        (status.code(), last_reason(&self.world.database))
    }

    /// How many tokens were reviewed.
    fn reviews(&self) -> usize {
        self.api_server.asked().iter().filter(|asked| asked.path == REVIEWS).count()
    }
}

fn merge(into: &mut Value, from: Value) {
    for (key, value) in from.as_object().into_iter().flatten() {
        into[key] = value.clone();
    }
}

fn last_reason(database: &Database) -> String {
    database.sql(
        "SELECT convert_from(entry, 'UTF8')::json -> 'outcome' ->> 'reason' FROM audit_entries
         ORDER BY index DESC LIMIT 1",
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_wish_for_it_no_api_server_is_asked() {
    let cluster = Cluster::start(json!({})).await;
    cluster.issue().await.unwrap();
    assert!(cluster.api_server.asked().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_04_a_role_with_token_review_refuses_a_deleted_pod_at_once() {
    let cluster = Cluster::start(json!({})).await;
    cluster.api_server.delete_pod(POD_UID);
    cluster.issue().await.unwrap();
    cluster.role(json!({"verify": "tokenReview"}), json!({})).await;
    assert_eq!(cluster.refusal().await, (Code::Unauthenticated, "review-not-authenticated".into()));
    assert_eq!(cluster.reviews(), 1, "the pod's token alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_with_token_review_has_every_token_reviewed_once_in_ten_seconds() {
    let cluster = Cluster::start(json!({"verify": "tokenReview"})).await;
    for _ in 0..3 {
        cluster.issue().await.unwrap();
    }
    assert_eq!(cluster.reviews(), 2, "the pod's and the driver's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_cannot_take_away_the_review_that_its_issuer_wants() {
    let cluster = Cluster::start(json!({"verify": "tokenReview"})).await;
    cluster.role(json!({"verify": "local"}), json!({})).await;
    cluster.issue().await.unwrap();
    assert_eq!(cluster.reviews(), 2, "the pod's and the driver's");
    cluster.declare_issuer(json!({"verify": "tokenReview", "leeway": "11s"})).await;
    cluster.api_server.delete_pod(POD_UID);
    assert_eq!(cluster.refusal().await, (Code::Unauthenticated, "review-not-authenticated".into()));
}

/// One after the other, the driver's token would not be asked about: the pod's already gets no answer.
#[tokio::test(flavor = "multi_thread")]
async fn the_pods_and_the_drivers_token_are_reviewed_at_the_same_time() {
    let cluster = Cluster::start(json!({"verify": "tokenReview"})).await;
    cluster.api_server.answer(Answer::Never);
    assert_eq!(cluster.issue().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(cluster.reviews(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_02_a_review_without_our_audience_is_refused() {
    let cluster = Cluster::start(json!({"verify": "tokenReview"})).await;
    let mut review: Value = serde_json::from_str(&fixture("tokenreview/accepted.json")).unwrap();
    review["status"]["audiences"] = json!(["https://kubernetes.default.svc.cluster.local"]);
    cluster.api_server.answer(Answer::Reply(201, review));
    assert_eq!(cluster.refusal().await, (Code::Unauthenticated, "review-audience".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_api_server_is_away_a_role_refuses_unless_it_says_otherwise() {
    let cluster = Cluster::start(json!({})).await;
    cluster.api_server.answer(Answer::Reply(503, json!({})));
    cluster.role(json!({"verify": "tokenReview"}), json!({})).await;
    let status = cluster.issue().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("API server of issuer recorded"), "{}", status.message());

    cluster.role(json!({"verify": "tokenReview", "whenApiServerAway": "local"}), json!({})).await;
    cluster.issue().await.unwrap();
    cluster.api_server.answer(Answer::Well);
    cluster.api_server.delete_pod(POD_UID);
    let refusal = cluster.refusal().await;
    assert_eq!(refusal, (Code::Unauthenticated, "review-not-authenticated".into()), "a no is a no");
    cluster.api_server.answer(Answer::Reply(503, json!({})));
    assert_eq!(cluster.refusal().await, refusal, "and stays one while it counts");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_api_server_that_is_away_is_done_without() {
    let cluster = Cluster::start(json!({})).await;
    cluster.role(json!({"verify": "tokenReview", "whenApiServerAway": "local"}), json!({})).await;
    let kubernetes = |code: u16| Answer::Reply(code, json!({"kind": "Status", "status": "Failure"}));
    let answers = [
        kubernetes(401),
        kubernetes(403),
        kubernetes(429),
        kubernetes(500),
        Answer::RedirectTo(cluster.api_server.url()),
        Answer::Text("no review".into()),
        Answer::Huge,
    ];
    for answer in answers {
        cluster.api_server.answer(answer.clone());
        assert_eq!(cluster.issue().await.unwrap_err().code(), Code::Unavailable, "{answer:?}");
    }
    cluster.declare_issuer(json!({"apiServer": {"kubeconfig": "another.yaml"}})).await;
    assert_eq!(
        cluster.issue().await.unwrap_err().code(),
        Code::Unavailable,
        "a kubeconfig that is not there"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_does_not_do_without_the_review_that_its_issuer_wants() {
    let cluster = Cluster::start(json!({"verify": "tokenReview"})).await;
    let role = json!({"verify": "tokenReview", "whenApiServerAway": "local"});
    cluster.role(role, json!({})).await;
    cluster.issue().await.unwrap();
    cluster.api_server.answer(Answer::Reply(503, json!({})));
    // The driver's review still counts, and the pod has another token.
    let status = cluster.issue_with("payments-api-ten-minutes").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    cluster.declare_issuer(json!({"verify": "tokenReview", "leeway": "11s"})).await;
    assert_eq!(cluster.issue().await.unwrap_err().code(), Code::Unavailable, "nor without the driver's");
}

#[tokio::test(flavor = "multi_thread")]
async fn selectors_bind_by_the_labels_that_the_api_server_has() {
    let cluster = Cluster::start(json!({})).await;
    let bound = json!({
        "podSelector": {"matchLabels": {"app": "api"}},
        "nodeSelector": {"matchLabels": {"pool": "secure"}},
    });
    let unbound = (Code::PermissionDenied, "role-not-bound".to_owned());
    cluster.role(json!({}), bound).await;
    assert_eq!(cluster.refusal().await, unbound, "the API server knows no such pod");
    cluster.api_server.put_pod("payments", "api-7d9f4", POD_UID, &[("app", "api")]);
    cluster.api_server.put_node("vm", "another", &[("pool", "secure")]);
    assert_eq!(cluster.refusal().await, unbound, "it is a namesake of the node");
    cluster.api_server.put_node("vm", NODE_UID, &[("pool", "secure")]);
    cluster.issue().await.unwrap();
    assert_eq!(cluster.reviews(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_with_a_selector_refuses_while_the_api_server_is_away_whatever_it_says() {
    let cluster = Cluster::start(json!({})).await;
    cluster.api_server.answer(Answer::Reply(503, json!({})));
    let bound = json!({"podSelector": {"matchLabels": {"app": "api"}}});
    cluster.role(json!({"whenApiServerAway": "local"}), bound).await;
    assert_eq!(cluster.issue().await.unwrap_err().code(), Code::Unavailable);
}
