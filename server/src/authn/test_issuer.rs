//! For tests: an issuer of tokens with keys of its own, served over HTTPS on loopback, and a clock to set.

use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Request, Response,
    body::{Bytes, Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use keyfold_core::{
    clock::Clock,
    object::{Algorithm, Discovery, IssuerKind, IssuerSpec, KeySource, ServiceAccountRef, Verify},
};
use ring::{
    rand::SystemRandom,
    signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaEncoding, RsaKeyPair},
};
use rsa::pkcs8::EncodePrivateKey as _;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::{net::TcpListener, task::AbortHandle};
use tokio_rustls::TlsAcceptor;

/// A clock that moves when told.
pub(super) struct TestClock(AtomicI64);

impl TestClock {
    pub(super) fn at(moment: OffsetDateTime) -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(moment.unix_timestamp())))
    }

    pub(super) fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_secs().cast_signed(), Ordering::SeqCst);
    }

    pub(super) fn set(&self, moment: OffsetDateTime) {
        self.0.store(moment.unix_timestamp(), Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(self.0.load(Ordering::SeqCst)).expect("a moment")
    }
}

/// An issuer's private key.
pub(super) struct TestKey {
    key_id: String,
    algorithm: Algorithm,
    pair: Pair,
}

enum Pair {
    Rsa(RsaKeyPair, &'static dyn RsaEncoding),
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl TestKey {
    /// A new key for ES256.
    pub(super) fn new(key_id: &str) -> Self {
        Self::of(Algorithm::ES256, key_id)
    }

    /// A new key; for RSA the same one each time, since a new one takes seconds.
    pub(super) fn of(algorithm: Algorithm, key_id: &str) -> Self {
        let random = SystemRandom::new();
        let ecdsa = |curve| {
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(curve, &random).expect("a key");
            Pair::Ecdsa(EcdsaKeyPair::from_pkcs8(curve, pkcs8.as_ref(), &random).expect("a key"))
        };
        let rsa = |encoding| Pair::Rsa(RsaKeyPair::from_pkcs8(rsa_pkcs8()).expect("a key"), encoding);
        let pair = match algorithm {
            Algorithm::RS256 => rsa(&signature::RSA_PKCS1_SHA256),
            Algorithm::RS384 => rsa(&signature::RSA_PKCS1_SHA384),
            Algorithm::RS512 => rsa(&signature::RSA_PKCS1_SHA512),
            Algorithm::PS256 => rsa(&signature::RSA_PSS_SHA256),
            Algorithm::PS384 => rsa(&signature::RSA_PSS_SHA384),
            Algorithm::PS512 => rsa(&signature::RSA_PSS_SHA512),
            Algorithm::ES256 => ecdsa(&signature::ECDSA_P256_SHA256_FIXED_SIGNING),
            Algorithm::ES384 => ecdsa(&signature::ECDSA_P384_SHA384_FIXED_SIGNING),
            Algorithm::EdDSA => {
                let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).expect("a key");
                Pair::Ed25519(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("a key"))
            }
        };
        Self { key_id: key_id.into(), algorithm, pair }
    }

    pub(super) fn jwk(&self) -> Value {
        let mut jwk = self.jwk_without_alg();
        jwk["alg"] = json!(self.algorithm);
        jwk
    }

    /// As some providers publish their keys: a key of a type, for all its algorithms.
    pub(super) fn jwk_without_alg(&self) -> Value {
        let mut jwk = match &self.pair {
            Pair::Rsa(pair, _) => {
                let parts: ring::rsa::PublicKeyComponents<Vec<u8>> = pair.public().into();
                json!({"kty": "RSA", "n": URL_SAFE_NO_PAD.encode(&parts.n), "e": URL_SAFE_NO_PAD.encode(&parts.e)})
            }
            Pair::Ecdsa(pair) => {
                let point = &pair.public_key().as_ref()[1..];
                let [x, y] = [&point[..point.len() / 2], &point[point.len() / 2..]]
                    .map(|part| URL_SAFE_NO_PAD.encode(part));
                let curve = if point.len() == 64 { "P-256" } else { "P-384" };
                json!({"kty": "EC", "crv": curve, "x": x, "y": y})
            }
            Pair::Ed25519(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(pair.public_key().as_ref())})
            }
        };
        jwk["use"] = json!("sig");
        jwk["kid"] = json!(self.key_id);
        jwk
    }

    pub(super) fn sign(&self, claims: &Value) -> String {
        self.sign_under(&json!({"alg": self.algorithm, "kid": self.key_id}), claims)
    }

    /// Signs with a header that need not tell the truth.
    pub(super) fn sign_under(&self, header: &Value, claims: &Value) -> String {
        self.sign_text(&header.to_string(), &claims.to_string())
    }

    /// Signs what need not be JSON.
    pub(super) fn sign_text(&self, header: &str, claims: &str) -> String {
        let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
        let input = format!("{header}.{claims}");
        let random = SystemRandom::new();
        let signature = match &self.pair {
            Pair::Rsa(pair, encoding) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(*encoding, &random, input.as_bytes(), &mut signature).expect("a signature");
                signature
            }
            Pair::Ecdsa(pair) => pair.sign(&random, input.as_bytes()).expect("a signature").as_ref().to_vec(),
            Pair::Ed25519(pair) => pair.sign(input.as_bytes()).as_ref().to_vec(),
        };
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn rsa_pkcs8() -> &'static [u8] {
    static KEY: OnceLock<Vec<u8>> = OnceLock::new();
    KEY.get_or_init(|| {
        let key = rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).expect("a key");
        key.to_pkcs8_der().expect("PKCS#8").as_bytes().to_vec()
    })
}

pub(super) fn key_set(keys: &[&TestKey]) -> String {
    json!({"keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>()}).to_string()
}

/// Claims as Kubernetes writes them, for an hour from `now`.
pub(super) fn claims(url: &str, namespace: &str, service_account: &str, now: OffsetDateTime) -> Value {
    let now = now.unix_timestamp();
    json!({
        "iss": url, "aud": ["keyfold"], "sub": format!("system:serviceaccount:{namespace}:{service_account}"),
        "iat": now, "nbf": now, "exp": now + 3600,
        "kubernetes.io": {
            "namespace": namespace,
            "serviceaccount": {"name": service_account, "uid": "sa-uid"},
            "pod": {"name": "pod-0", "uid": "pod-uid"},
            "node": {"name": "vm", "uid": "node-uid"},
        },
    })
}

/// Claims as an OpenID provider writes them for a person, for an hour from `now`.
pub(super) fn person(url: &str, subject: &str, now: OffsetDateTime) -> Value {
    let now = now.unix_timestamp();
    json!({"iss": url, "aud": "keyfold", "sub": subject, "iat": now, "exp": now + 3600, "groups": ["platform"]})
}

pub(super) fn issuer_spec(url: &str, keys: KeySource) -> IssuerSpec {
    IssuerSpec {
        kind: IssuerKind::Kubernetes,
        url: url.into(),
        audiences: BTreeSet::from(["keyfold".into()]),
        algorithms: BTreeSet::from([Algorithm::RS256, Algorithm::ES256]),
        keys,
        drivers: vec![ServiceAccountRef {
            namespace: "keyfold-system".into(),
            service_account: "keyfold-csi".into(),
        }],
        api_server: None,
        verify: Verify::Local,
        // The recorded tokens live for ten years.
        max_token_lifetime: Duration::from_secs(4000 * 86_400),
        leeway: Duration::from_secs(10),
    }
}

/// What the server answers on a path.
#[derive(Clone)]
pub(super) enum Answer {
    Json(String),
    RedirectTo(String),
    /// 100 MiB, in chunks, with no length told before.
    Huge,
    /// A first byte, and no second.
    Slow,
}

/// An HTTPS server on loopback, gone when dropped.
pub(super) struct TestIssuer {
    pub(super) url: String,
    pub(super) ca_pem: String,
    state: Arc<State>,
    server: AbortHandle,
}

#[derive(Default)]
struct State {
    answers: Mutex<HashMap<String, Answer>>,
    requests: AtomicUsize,
}

pub(super) const DISCOVERY_PATH: &str = "/.well-known/openid-configuration";
pub(super) const KEYS_PATH: &str = "/openid/v1/jwks";

impl TestIssuer {
    /// Serves a right discovery document and these keys.
    pub(super) async fn start(keys: &[&TestKey]) -> Self {
        let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("https://{}", listener.local_addr().expect("an address"));
        let state = Arc::<State>::default();
        let server = tokio::spawn(serve(listener, acceptor(&certified), Arc::clone(&state))).abort_handle();
        let issuer = Self { url, ca_pem: certified.cert.pem(), state, server };
        issuer.answer_with_document(&issuer.url, &format!("{}{KEYS_PATH}", issuer.url));
        issuer.answer(KEYS_PATH, Answer::Json(key_set(keys)));
        issuer
    }

    pub(super) fn answer_with_document(&self, issuer: &str, jwks_uri: &str) {
        let document = json!({"issuer": issuer, "jwks_uri": jwks_uri}).to_string();
        self.answer(DISCOVERY_PATH, Answer::Json(document));
    }

    pub(super) fn answer(&self, path: &str, answer: Answer) {
        self.state.answers.lock().expect("no panic").insert(path.into(), answer);
    }

    pub(super) fn discovery(&self) -> Discovery {
        Discovery { url: None, ca_bundle: Some(self.ca_pem.clone()) }
    }

    pub(super) fn requests(&self) -> usize {
        self.state.requests.load(Ordering::SeqCst)
    }

    /// Closes the port.
    pub(super) fn stop(&self) {
        self.server.abort();
    }
}

impl Drop for TestIssuer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn acceptor(certified: &rcgen::CertifiedKey<rcgen::KeyPair>) -> TlsAcceptor {
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .expect("a certificate for its key");
    TlsAcceptor::from(Arc::new(config))
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, state: Arc<State>) {
    while let Ok((tcp, _)) = listener.accept().await {
        let (acceptor, state) = (acceptor.clone(), Arc::clone(&state));
        tokio::spawn(async move {
            let Ok(tls) = acceptor.accept(tcp).await else { return };
            let service = service_fn(|request| {
                let response = respond(&state, &request);
                async { Ok::<_, Infallible>(response) }
            });
            // A client that hangs up in the middle is part of some tests.
            let _ =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service).await;
        });
    }
}

type Body = BoxBody<Bytes, Infallible>;

fn respond(state: &State, request: &Request<Incoming>) -> Response<Body> {
    state.requests.fetch_add(1, Ordering::SeqCst);
    let whole = |text: String| Full::new(Bytes::from(text)).boxed();
    let frame = |bytes: Vec<u8>| Ok::<_, Infallible>(Frame::data(Bytes::from(bytes)));
    let answer = state.answers.lock().expect("no panic").get(request.uri().path()).cloned();
    let response = Response::builder();
    let response = match answer {
        None => response.status(404).body(whole(String::new())),
        Some(Answer::Json(text)) => response.body(whole(text)),
        Some(Answer::RedirectTo(url)) => {
            response.status(302).header("location", url).body(whole(String::new()))
        }
        Some(Answer::Huge) => {
            let frames = (0..1600).map(move |_| frame(vec![b' '; 64 * 1024]));
            response.body(BodyExt::boxed(StreamBody::new(tokio_stream::iter(frames))))
        }
        Some(Answer::Slow) => {
            use tokio_stream::StreamExt as _;
            let frames = tokio_stream::once(frame(b"{".to_vec())).chain(tokio_stream::pending());
            response.body(BodyExt::boxed(StreamBody::new(frames)))
        }
    };
    response.expect("a response")
}
