//! Kubernetes API servers, asked what a token alone cannot tell: whether it is still good (TokenReview), and which
//! labels its pod and node have. Only where an issuer object or a role wants it, and after the local check.
//!
//! An API server can be away, slow or hostile: each has a bound on requests in flight, on time and on bytes, and what
//! it says reaches no caller.

mod api_server;
mod connect;
mod failure;
mod outage;
mod recent;
mod token_review;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::Request;
use k8s_openapi::{
    api::core::v1::{Node, Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use keyfold_core::{clock::Clock, identity::NamedUid, name::ObjectName, refusal::ReviewRefusal};
use kube::{Resource, api::GetParams};
use serde::Deserialize;
use time::OffsetDateTime;

pub use self::token_review::Expected;
use self::{
    api_server::ApiServer,
    failure::Failure,
    recent::{Recent, key},
};
use crate::authn::IssuerRecord;

/// How long an answer counts: a pod that is gone, or whose labels changed, is noticed after at most this time.
const ANSWER_TTL: Duration = Duration::from_secs(10);

/// The most tokens whose review is remembered.
const REVIEWS_MAX: u64 = 10_000;

/// The most objects whose labels are remembered.
const LABELS_MAX: usize = 10_000;

/// The most that their labels take in memory: an object may have far more labels than is usual.
const LABELS_MAX_BYTES: u64 = 16 * 1024 * 1024;

/// What an object takes besides its labels, roughly.
const LABELS_OVERHEAD_BYTES: usize = 100;

/// API servers that were not asked for this long are forgotten, with the credentials for them.
const IDLE_MAX: Duration = Duration::from_secs(600);

/// What one API server may cost.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// For everything about one question: at most a fifth for a free place, the rest for handshakes and the whole reply.
    pub timeout: Duration,
    /// Questions at once.
    pub in_flight: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(5), in_flight: 32 }
    }
}

/// An API server that cannot be asked, or gives no answer that can be used. Why is in the server's log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the API server of issuer {issuer} cannot be asked: try again, and see the server's log for the reason"
)]
pub struct Unavailable {
    /// The issuer object.
    pub issuer: ObjectName,
    /// Whether that is because it is away: no connection, no answer in time, or a gateway that says so. Not when it or
    /// this server has too much to do, for callers can bring that about, nor when we are set up wrongly.
    pub away: bool,
}

/// Why a token passed no TokenReview.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// The API server does not vouch for it.
    #[error("the API server {0}")]
    Refused(ReviewRefusal),
    /// Nobody knows.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// The API servers of all issuers.
pub struct ApiServers {
    kubeconfig_dir: Option<PathBuf>,
    clock: Arc<dyn Clock>,
    bounds: Bounds,
    known: Mutex<Known>,
    reviews: Recent<Result<(), ReviewRefusal>>,
    labels: Recent<Arc<BTreeMap<String, String>>>,
}

/// API servers by issuer object, each with the time of its last use.
#[derive(Default)]
struct Known {
    servers: HashMap<ObjectName, (Arc<ApiServer>, OffsetDateTime)>,
    last_serial: u64,
}

impl ApiServers {
    /// Connects to nothing yet. `kubeconfig_dir` holds the files of issuers with `apiServer.kubeconfig`.
    pub fn new(kubeconfig_dir: Option<PathBuf>, clock: Arc<dyn Clock>, bounds: Bounds) -> Self {
        Self {
            kubeconfig_dir,
            clock,
            bounds,
            known: Mutex::default(),
            reviews: Recent::new(ANSWER_TTL, REVIEWS_MAX as usize, REVIEWS_MAX),
            labels: Recent::new(ANSWER_TTL, LABELS_MAX, LABELS_MAX_BYTES),
        }
    }

    /// Has the issuer's API server say whether `token` is good now, for one of the issuer's audiences, and that of
    /// `expected`. The local check must have accepted it before.
    ///
    /// # Errors
    /// `Refused` when it says anything else, `Unavailable` when it says nothing that can be used.
    pub async fn review(
        &self,
        issuer: &IssuerRecord,
        expected: impl Into<Expected<'_>>,
        token: &str,
    ) -> Result<(), ReviewError> {
        let expected = expected.into();
        let server = self.server_of(issuer);
        let audiences = &issuer.spec.audiences;
        // What was compared belongs to the answer.
        let uid = |object: Option<&'_ NamedUid>| object.map_or(String::new(), |object| object.uid.clone());
        let key = key(server.serial, &[token, expected.subject, &uid(expected.pod), &uid(expected.node)]);
        let at = self.clock.now();
        if let Some(outcome) = self.reviews.find(&key, at) {
            return outcome.map_err(ReviewError::Refused);
        }
        let request = token_review::request(token, audiences);
        let reply = self.ask(&server, "token-review", request).await?;
        let status = reply.as_deref().and_then(token_review::status);
        let status =
            status.ok_or_else(|| server.unavailable(&Failure::new("its reply is no TokenReview")))?;
        let outcome = token_review::judge(&status, audiences, expected);
        if let Err(refusal) = outcome {
            let said = token_review::words(&status);
            let (issuer, subject) = (&issuer.name, expected.subject);
            tracing::warn!(%issuer, subject, ?refusal, ?said, "an API server refused a token");
        }
        // A refusal too: who floods us with a dead token's requests must not flood the API server.
        self.reviews.keep(key, outcome, 1, at);
        outcome.map_err(ReviewError::Refused)
    }

    /// The labels of a pod; `None` when there is no pod of that name and UID.
    ///
    /// # Errors
    /// When the API server gives no answer that can be used.
    pub async fn pod_labels(
        &self,
        issuer: &IssuerRecord,
        namespace: &str,
        pod: &NamedUid,
    ) -> Result<Option<BTreeMap<String, String>>, Unavailable> {
        self.labels_of::<Pod>(issuer, "pod", Some(namespace), pod).await
    }

    /// The labels of a node; `None` when there is no node of that name and UID.
    ///
    /// # Errors
    /// When the API server gives no answer that can be used.
    pub async fn node_labels(
        &self,
        issuer: &IssuerRecord,
        node: &NamedUid,
    ) -> Result<Option<BTreeMap<String, String>>, Unavailable> {
        self.labels_of::<Node>(issuer, "node", None, node).await
    }

    /// The pod of that name, as it is now; `None` when there is none. For explanations: nothing proves who asks for it.
    ///
    /// # Errors
    /// When the API server gives no answer that can be used.
    pub async fn describe_pod(
        &self,
        issuer: &IssuerRecord,
        namespace: &str,
        name: &str,
    ) -> Result<Option<FoundPod>, Unavailable> {
        if !is_path_segment(namespace) || !is_path_segment(name) {
            return Ok(None);
        }
        let server = self.server_of(issuer);
        let path = Pod::url_path(&(), Some(namespace));
        let request = kube::core::Request::new(path).get(name, &GetParams::default());
        let Some(reply) = self.ask(&server, "pod", request).await? else { return Ok(None) };
        let pod = FoundPod::parse(&reply);
        pod.map(Some).ok_or_else(|| server.unavailable(&Failure::new("its reply is no pod")))
    }

    /// The labels of the node of that name, as they are now; `None` when there is none.
    ///
    /// # Errors
    /// When the API server gives no answer that can be used.
    pub async fn describe_node(
        &self,
        issuer: &IssuerRecord,
        name: &str,
    ) -> Result<Option<BTreeMap<String, String>>, Unavailable> {
        if !is_path_segment(name) {
            return Ok(None);
        }
        let server = self.server_of(issuer);
        let request =
            kube::core::Request::new(Node::url_path(&(), None)).get_metadata(name, &GetParams::default());
        let Some(reply) = self.ask(&server, "node", request).await? else { return Ok(None) };
        let Ok(Found { metadata }) = serde_json::from_slice(&reply) else {
            return Err(server.unavailable(&Failure::new("its reply is no node")));
        };
        Ok(Some(metadata.labels.unwrap_or_default()))
    }

    async fn labels_of<K: Resource<DynamicType = ()>>(
        &self,
        issuer: &IssuerRecord,
        question: &'static str,
        namespace: Option<&str>,
        object: &NamedUid,
    ) -> Result<Option<BTreeMap<String, String>>, Unavailable> {
        if !namespace.is_none_or(is_path_segment) || !is_path_segment(&object.name) {
            return Ok(None);
        }
        let server = self.server_of(issuer);
        let path = K::url_path(&(), namespace);
        let key = key(server.serial, &[&path, &object.name, &object.uid]);
        let at = self.clock.now();
        if let Some(labels) = self.labels.find(&key, at) {
            return Ok(Some((*labels).clone()));
        }
        // Only the metadata: a pod's specification is none of our business.
        let request = kube::core::Request::new(path).get_metadata(&object.name, &GetParams::default());
        let Some(reply) = self.ask(&server, question, request).await? else { return Ok(None) };
        let Ok(Found { metadata }) = serde_json::from_slice(&reply) else {
            return Err(server.unavailable(&Failure::new(format!("its reply is no {question}"))));
        };
        if metadata.uid.as_ref() != Some(&object.uid) {
            return Ok(None);
        }
        let labels = Arc::new(metadata.labels.unwrap_or_default());
        self.labels.keep(key, Arc::clone(&labels), bytes_of(&labels), at);
        Ok(Some((*labels).clone()))
    }

    async fn ask(
        &self,
        server: &ApiServer,
        question: &'static str,
        request: Result<Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Option<Vec<u8>>, Unavailable> {
        let request = request.map_err(|error| server.unavailable(&Failure::caused("the request", &error)))?;
        server.ask(question, request, self.kubeconfig_dir.as_deref(), &*self.clock).await
    }

    /// A client must not outlive a change of the issuer object that it was made for, nor an answer.
    fn server_of(&self, issuer: &IssuerRecord) -> Arc<ApiServer> {
        let now = self.clock.now();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.servers.retain(|name, (server, used_at)| {
            within(*used_at, IDLE_MAX, now) && (*name != issuer.name || server.record == *issuer)
        });
        if let Some((server, used_at)) = known.servers.get_mut(&issuer.name) {
            *used_at = now;
            return Arc::clone(server);
        }
        known.last_serial += 1;
        let server = Arc::new(ApiServer::new(issuer.clone(), known.last_serial, self.bounds));
        known.servers.insert(issuer.name.clone(), (Arc::clone(&server), now));
        server
    }
}

/// A pod as the API server has it: of all that its object says, only what an explanation needs is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundPod {
    /// Its UID.
    pub uid: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The service account that it runs as.
    pub service_account: String,
    /// Its node, once it is scheduled.
    pub node: Option<String>,
}

impl FoundPod {
    fn parse(reply: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Reply {
            kind: String,
            metadata: Metadata,
            spec: Specification,
        }
        #[derive(Deserialize)]
        struct Metadata {
            uid: String,
            #[serde(default)]
            labels: BTreeMap<String, String>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Specification {
            #[serde(default)]
            service_account_name: String,
            node_name: Option<String>,
        }
        let Reply { kind, metadata, spec } = serde_json::from_slice(reply).ok()?;
        // Kubernetes' own default.
        let service_account = match spec.service_account_name.as_str() {
            "" => "default".to_owned(),
            named => named.to_owned(),
        };
        let node = spec.node_name.filter(|name| !name.is_empty());
        (kind == "Pod").then_some(Self { uid: metadata.uid, labels: metadata.labels, service_account, node })
    }
}

/// An object's metadata, as `PartialObjectMetadata` or as part of the whole object.
#[derive(Deserialize)]
struct Found {
    metadata: ObjectMeta,
}

/// Whether less than `span` has passed since `at`. A clock that went back counts as a long time: asking once too often
/// harms nobody.
fn within(at: OffsetDateTime, span: Duration, now: OffsetDateTime) -> bool {
    Duration::try_from(now - at).is_ok_and(|passed| passed < span)
}

/// Whether `name` can be that of an object (RFC 1123). Names come out of verified tokens, or from operators who ask for
/// an explanation; none of them shall choose another path for our request.
fn is_path_segment(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(allowed)
}

fn bytes_of(labels: &BTreeMap<String, String>) -> u64 {
    let entry = |(key, value): (&String, &String)| key.len() + value.len() + 2 * size_of::<String>();
    let bytes = LABELS_OVERHEAD_BYTES + labels.iter().map(entry).sum::<usize>();
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
