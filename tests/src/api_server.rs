//! A Kubernetes API server, as far as Keyfold's server asks one: TokenReview, and the metadata of pods and nodes, over
//! TLS and for a bearer token. It says yes to every token until it is told otherwise, and keeps what it was asked.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Request, Response,
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use keyfold::dev::pki::{Authority, LOOPBACK};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

/// Where tokens are reviewed.
pub const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// The token that Keyfold's server must present; the kubeconfig names a file with it.
pub const BEARER_TOKEN: &str = "bearer-token-of-keyfold-for-the-api-server";

/// Pieces of the body that is far too long: 100 MiB.
const HUGE_PIECES: usize = 1600;
const HUGE_PIECE_BYTES: usize = 64 * 1024;

/// How requests are answered.
#[derive(Debug, Clone, Default)]
pub enum Answer {
    /// As Kubernetes would: tokens of pods that were not deleted are good, and objects are those that were put there.
    #[default]
    Well,
    /// This status and JSON.
    Reply(u16, Value),
    /// 200 and this text, as JSON.
    Text(String),
    /// 307 to this URL.
    RedirectTo(String),
    /// 200, and 100 MiB of spaces.
    Huge,
    /// 200 and the first byte of an object; the rest never comes.
    Stuck,
    /// Nothing, ever.
    Never,
}

/// What Keyfold's server asked.
#[derive(Debug, Clone)]
pub struct Asked {
    /// `GET` or `POST`.
    pub method: String,
    /// Without the query.
    pub path: String,
    /// The header `accept`.
    pub accept: String,
    /// The whole body; null when there is none.
    pub body: Value,
}

/// A running API server on a port of its own on 127.0.0.1. It ends when dropped.
pub struct ApiServer {
    address: SocketAddr,
    authority_pem: String,
    tls: TlsAcceptor,
    state: Arc<Mutex<State>>,
    serving: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    answer: Answer,
    delay: Duration,
    /// Metadata by path.
    objects: BTreeMap<String, Value>,
    /// UIDs of pods.
    deleted: Vec<String>,
    asked: Vec<Asked>,
    /// Of the body that is far too long.
    huge_bytes_sent: Arc<AtomicUsize>,
    in_flight: usize,
    most_in_flight: usize,
}

impl ApiServer {
    /// Starts one with a certificate of `authority`, which may be one that has expired.
    ///
    /// # Panics
    /// When no port can be opened.
    pub async fn start(authority: &Authority) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("a port has an address");
        let (authority_pem, tls) = (authority.certificate_pem(), acceptor(authority));
        let mut server = Self { address, authority_pem, tls, state: Arc::default(), serving: None };
        server.serve(listener);
        server
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Writes `NAME` and a token file beside it, as the server's `kubeconfig_dir` holds them.
    ///
    /// # Panics
    /// When they cannot be written.
    pub fn write_kubeconfig(&self, dir: &Path, name: &str) {
        let token_file = format!("{name}.token");
        fs::write(dir.join(&token_file), BEARER_TOKEN).expect("the token can be written");
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "keyfold"}}],
            "clusters": [{"name": "test", "cluster": {
                "server": self.url(),
                "certificate-authority-data": STANDARD.encode(&self.authority_pem),
            }}],
            "users": [{"name": "keyfold", "user": {"tokenFile": token_file}}],
        });
        fs::write(dir.join(name), kubeconfig.to_string()).expect("the kubeconfig can be written");
    }

    /// How requests are answered from now on.
    pub fn answer(&self, answer: Answer) {
        self.state().answer = answer;
    }

    /// How long each answer takes from now on.
    pub fn delay(&self, delay: Duration) {
        self.state().delay = delay;
    }

    /// A pod with these labels is there.
    pub fn put_pod(&self, namespace: &str, name: &str, uid: &str, labels: &[(&str, &str)]) {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        self.state().objects.insert(path, object(name, uid, labels));
    }

    /// A node with these labels is there.
    pub fn put_node(&self, name: &str, uid: &str, labels: &[(&str, &str)]) {
        self.state().objects.insert(format!("/api/v1/nodes/{name}"), object(name, uid, labels));
    }

    /// The pod with this UID is gone, and tokens bound to it are good no more.
    pub fn delete_pod(&self, uid: &str) {
        let mut state = self.state();
        state.objects.retain(|_, object| object["metadata"]["uid"] != uid);
        state.deleted.push(uid.to_owned());
    }

    /// What was asked so far, with a good bearer token or not.
    pub fn asked(&self) -> Vec<Asked> {
        self.state().asked.clone()
    }

    /// How much of a `Huge` body went out, over all requests.
    pub fn huge_bytes_sent(&self) -> usize {
        self.state().huge_bytes_sent.load(Ordering::SeqCst)
    }

    /// How many requests were in work at once at most.
    pub fn most_in_flight(&self) -> usize {
        self.state().most_in_flight
    }

    /// Stops to listen and drops every connection: an outage. The port stays this server's for `resume`.
    pub fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
    }

    /// Serves again, on the same port, after `stop`.
    ///
    /// # Panics
    /// When another process took the port meanwhile.
    pub async fn resume(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("the port is still free");
        self.serve(listener);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    fn serve(&mut self, listener: TcpListener) {
        let (tls, state) = (self.tls.clone(), Arc::clone(&self.state));
        self.serving = Some(tokio::spawn(async move {
            // Connections end with this task, because the set aborts them when dropped.
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                connections.spawn(serve_connection(tcp, tls.clone(), Arc::clone(&state)));
                while connections.try_join_next().is_some() {}
            }
        }));
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn acceptor(authority: &Authority) -> TlsAcceptor {
    let serving = authority.serving(&LOOPBACK).expect("a certificate can be signed");
    let chain = CertificateDer::from_pem_slice(serving.certificate_pem.as_bytes()).expect("a certificate");
    let key = PrivateKeyDer::from_pem_slice(serving.key_pem.as_bytes()).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3 is there")
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .expect("a certificate for its key");
    TlsAcceptor::from(Arc::new(config))
}

async fn serve_connection(tcp: TcpStream, tls: TlsAcceptor, state: Arc<Mutex<State>>) {
    // A client that does not trust the certificate, or hangs up, is part of many tests.
    let Ok(stream) = tls.accept(tcp).await else { return };
    let service = service_fn(|request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(respond(&state, request).await) }
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

type Body = BoxBody<Bytes, io::Error>;

async fn respond(state: &Mutex<State>, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let header = |name: &str| {
        head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let asked = Asked {
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        accept: header("accept"),
        body: serde_json::from_slice(&body).unwrap_or_default(),
    };
    let _in_flight = InFlight::enter(state);
    let (answer, delay) = {
        let mut state = locked(state);
        state.asked.push(asked.clone());
        (state.answer.clone(), state.delay)
    };
    tokio::time::sleep(delay).await;
    if header("authorization") != format!("Bearer {BEARER_TOKEN}") {
        return reply(401, &failure(401, "Unauthorized"));
    }
    match answer {
        Answer::Well => {
            let (status, body) = answer_well(&locked(state), &asked);
            reply(status, &body)
        }
        Answer::Reply(status, body) => reply(status, &body),
        Answer::Text(text) => response(200, whole(text)),
        Answer::RedirectTo(url) => {
            let mut response = response(307, whole(String::new()));
            response.headers_mut().insert("location", url.parse().expect("a URL"));
            response
        }
        Answer::Huge => {
            let sent = Arc::clone(&locked(state).huge_bytes_sent);
            let pieces = stream::iter((0..HUGE_PIECES).map(move |_| {
                sent.fetch_add(HUGE_PIECE_BYTES, Ordering::SeqCst);
                Ok(Frame::data(Bytes::from_static(&[b' '; HUGE_PIECE_BYTES])))
            }));
            response(200, BodyExt::boxed(StreamBody::new(pieces)))
        }
        Answer::Stuck => {
            use futures_util::StreamExt as _;
            let first = stream::iter([Ok(Frame::data(Bytes::from_static(b"{")))]);
            response(200, BodyExt::boxed(StreamBody::new(first.chain(stream::pending()))))
        }
        Answer::Never => std::future::pending().await,
    }
}

/// Counts a request while it is in work; a client that goes away drops it.
struct InFlight<'a>(&'a Mutex<State>);

impl<'a> InFlight<'a> {
    fn enter(state: &'a Mutex<State>) -> Self {
        let mut counted = locked(state);
        counted.in_flight += 1;
        counted.most_in_flight = counted.most_in_flight.max(counted.in_flight);
        drop(counted);
        Self(state)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        locked(self.0).in_flight -= 1;
    }
}

fn answer_well(state: &State, asked: &Asked) -> (u16, Value) {
    match (asked.method.as_str(), asked.path.as_str()) {
        ("POST", REVIEWS) => (201, review(state, &asked.body)),
        ("GET", path) => match state.objects.get(path) {
            Some(object) => (200, object.clone()),
            None => (404, failure(404, "NotFound")),
        },
        _ => (405, failure(405, "MethodNotAllowed")),
    }
}

/// A review of what the token says of itself, in the form that Kubernetes 1.36 was recorded to answer with. The
/// signature is not looked at: Keyfold checks it before it asks.
fn review(state: &State, asked: &Value) -> Value {
    let claims = claims(asked["spec"]["token"].as_str().unwrap_or_default());
    let own = |list: &Value, audience: &Value| list.as_array().is_some_and(|list| list.contains(audience));
    let audiences: Vec<_> = asked["spec"]["audiences"].as_array().into_iter().flatten().collect();
    let common: Vec<_> = audiences.into_iter().filter(|audience| own(&claims["aud"], audience)).collect();
    let kubernetes = &claims["kubernetes.io"];
    let deleted = state.deleted.iter().any(|uid| kubernetes["pod"]["uid"] == **uid);
    let error = "[invalid bearer token, service account token has been invalidated]";
    let status = if deleted || common.is_empty() || !claims.is_object() {
        json!({"error": error, "user": {}})
    } else {
        let mut extra = json!({});
        for kind in ["pod", "node"] {
            for part in ["name", "uid"] {
                if let Some(text) = kubernetes[kind][part].as_str() {
                    extra[format!("authentication.kubernetes.io/{kind}-{part}")] = json!([text]);
                }
            }
        }
        json!({
            "authenticated": true,
            "audiences": common,
            "user": {"username": claims["sub"], "uid": kubernetes["serviceaccount"]["uid"], "extra": extra},
        })
    };
    json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "metadata": {},
        "spec": asked["spec"],
        "status": status,
    })
}

fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap_or_default();
    let json = URL_SAFE_NO_PAD.decode(payload).unwrap_or_default();
    serde_json::from_slice(&json).unwrap_or_default()
}

fn object(name: &str, uid: &str, labels: &[(&str, &str)]) -> Value {
    let labels: BTreeMap<_, _> = labels.iter().copied().collect();
    json!({
        "apiVersion": "meta.k8s.io/v1",
        "kind": "PartialObjectMetadata",
        "metadata": {"name": name, "uid": uid, "labels": labels},
    })
}

/// Kubernetes' `Status` of a failure.
fn failure(code: u16, reason: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": reason, "code": code})
}

fn reply(status: u16, body: &Value) -> Response<Body> {
    response(status, whole(body.to_string()))
}

fn whole(text: String) -> Body {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed()
}

fn response(status: u16, body: Body) -> Response<Body> {
    let response = Response::builder().status(status).header("content-type", "application/json").body(body);
    response.expect("a response")
}
