//! An issuer that misbehaves: it answers each path as it is told, with any certificate, and keeps what it was asked. HTTP
//! is written by hand here, so that also what is no HTTP can be sent.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use keyfold::dev::{
    pki::{Authority, LOOPBACK, ServingCertificate},
    tokens::{AUDIENCE, Minter, SigningKey, TokenRequest},
};
use keyfold_core::clock::{Clock as _, SystemClock};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

/// Where the discovery document is.
pub const DOCUMENT: &str = "/.well-known/openid-configuration";
/// Where the keys are, unless the document says otherwise.
pub const KEYS: &str = "/openid/v1/jwks";

const MIB: usize = 1024 * 1024;

/// What the issuer answers on a path.
#[derive(Clone)]
pub enum Answer {
    /// 200 with this body.
    Body(String),
    /// This status, without a body.
    Status(u16),
    /// This status, and an address to go to.
    Redirect(u16, String),
    /// These bytes, whatever HTTP says.
    Raw(Vec<u8>),
    /// 200 with so many MiB of white space.
    Mebibytes(usize),
    /// 200 with this body, one byte a second.
    Slow(String),
}

/// An issuer on a port of its own. It ends when dropped.
pub struct FaultyIssuer {
    /// Signs its tokens.
    pub minter: Minter,
    name: &'static str,
    ca_bundle: String,
    state: Arc<State>,
    serving: JoinHandle<()>,
}

struct State {
    /// Absent while the issuer hangs up on everybody.
    tls: Mutex<Option<TlsAcceptor>>,
    answers: Mutex<HashMap<String, Answer>>,
    requests: Mutex<Vec<String>>,
    connections: AtomicUsize,
    body_bytes_sent: AtomicUsize,
}

impl FaultyIssuer {
    /// An issuer that answers as it should, with a certificate of `authority`. Its key is kept in `folder`; issuers with
    /// one folder share it.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(name: &'static str, authority: &Authority, folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("https://{}", listener.local_addr().expect("an address"));
        let minter = Minter { issuer: url, key: signing_key(folder, "issuer") };
        let state = Arc::new(State {
            tls: Mutex::default(),
            answers: Mutex::default(),
            requests: Mutex::default(),
            connections: AtomicUsize::new(0),
            body_bytes_sent: AtomicUsize::new(0),
        });
        let serving = tokio::spawn(serve(listener, Arc::clone(&state)));
        let issuer = Self { minter, name, ca_bundle: authority.certificate_pem(), state, serving };
        issuer.present(&authority.serving(&LOOPBACK).expect("a certificate"));
        issuer.answer_well();
        issuer
    }

    /// The name of its issuer object.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.minter.issuer
    }

    /// The specification of its issuer object.
    pub fn spec(&self) -> Value {
        json!({
            "type": "kubernetes",
            "url": self.url(),
            "audiences": [AUDIENCE],
            "keys": {"discovery": {"caBundle": self.ca_bundle}},
            "drivers": [{"namespace": "keyfold-system", "serviceAccount": "keyfold-csi"}],
        })
    }

    /// From now on shows this certificate.
    ///
    /// # Panics
    /// When it is none.
    pub fn present(&self, certificate: &ServingCertificate) {
        *locked(&self.state.tls) = Some(acceptor(certificate));
    }

    /// From now on hangs up on whoever connects, before any TLS.
    pub fn hang_up(&self) {
        *locked(&self.state.tls) = None;
    }

    /// From now on answers `path` so.
    pub fn answer(&self, path: &str, answer: Answer) {
        locked(&self.state.answers).insert(path.into(), answer);
    }

    /// From now on publishes its one key, as an issuer should.
    pub fn answer_well(&self) {
        self.answer_with_keys_at(&format!("{}{KEYS}", self.url()));
        self.publish(&[&self.minter.key]);
    }

    /// From now on its document says that the keys are at `address`.
    pub fn answer_with_keys_at(&self, address: &str) {
        let document = json!({"issuer": self.url(), "jwks_uri": address});
        self.answer(DOCUMENT, Answer::Body(document.to_string()));
    }

    /// From now on publishes these keys.
    pub fn publish(&self, keys: &[&SigningKey]) {
        let keys: Vec<_> = keys.iter().map(|key| key.jwk()).collect();
        self.answer(KEYS, Answer::Body(json!({"keys": keys}).to_string()));
    }

    /// The heads of all requests so far.
    pub fn requests(&self) -> Vec<String> {
        locked(&self.state.requests).clone()
    }

    /// How often it was connected to.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Bytes of bodies that it could send.
    pub fn body_bytes_sent(&self) -> usize {
        self.state.body_bytes_sent.load(Ordering::SeqCst)
    }
}

impl Drop for FaultyIssuer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A token of the CSI driver on `node`, of now.
///
/// # Panics
/// When there is no randomness.
pub fn driver_token(minter: &Minter, node: &str) -> String {
    let request = TokenRequest {
        namespace: "keyfold-system".into(),
        service_account: "keyfold-csi".into(),
        pod: Some(format!("keyfold-csi-{node}")),
        node: Some(node.into()),
        audience: AUDIENCE.into(),
        ttl: Duration::from_secs(3600),
    };
    minter.mint(&request, SystemClock.now()).expect("a token can be minted").jwt.to_string()
}

/// The signing key `name` of `folder`, the same each time.
///
/// # Panics
/// When it cannot be written there.
pub fn signing_key(folder: &Path, name: &str) -> SigningKey {
    let file: PathBuf = folder.join(format!("{name}.key"));
    SigningKey::load_or_generate(&file).expect("the key can be kept")
}

/// Something on the network that speaks no TLS, such as a cloud's metadata service. It ends when dropped.
pub struct PlainService {
    /// Where it listens.
    pub address: SocketAddr,
    received: Arc<Mutex<Vec<Vec<u8>>>>,
    serving: JoinHandle<()>,
}

impl PlainService {
    /// Answers everything with `answer`, sent as it is.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(answer: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let received = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let kept = Arc::clone(&received);
        let serving = tokio::spawn(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                let mut bytes = vec![0; 16 * 1024];
                let read = tcp.read(&mut bytes).await.unwrap_or_default();
                bytes.truncate(read);
                locked(&kept).push(bytes);
                // Who has heard enough may go.
                let _ = tcp.write_all(answer).await;
            }
        });
        Self { address, received, serving }
    }

    /// The first bytes of each connection so far.
    pub fn received(&self) -> Vec<Vec<u8>> {
        locked(&self.received).clone()
    }
}

impl Drop for PlainService {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn acceptor(certificate: &ServingCertificate) -> TlsAcceptor {
    let chain =
        CertificateDer::from_pem_slice(certificate.certificate_pem.as_bytes()).expect("a certificate");
    let key = PrivateKeyDer::from_pem_slice(certificate.key_pem.as_bytes()).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3 is there")
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .expect("a certificate for its key");
    TlsAcceptor::from(Arc::new(config))
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    // Connections end with this task, because the set aborts them when dropped.
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        state.connections.fetch_add(1, Ordering::SeqCst);
        let acceptor = locked(&state.tls).clone();
        if let Some(acceptor) = acceptor {
            connections.spawn(serve_connection(tcp, acceptor, Arc::clone(&state)));
        }
        while connections.try_join_next().is_some() {}
    }
}

/// One request a connection. A client that hangs up in the middle is part of many tests.
async fn serve_connection(tcp: TcpStream, acceptor: TlsAcceptor, state: Arc<State>) {
    let Ok(mut stream) = acceptor.accept(tcp).await else { return };
    let Ok(head) = read_head(&mut stream).await else { return };
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    locked(&state.requests).push(head);
    let answer = locked(&state.answers).get(&path).cloned().unwrap_or(Answer::Status(404));
    let _ = write_answer(&mut stream, &answer, &state.body_bytes_sent).await;
    let _ = stream.shutdown().await;
}

async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    String::from_utf8(head).map_err(io::Error::other)
}

async fn write_answer(
    stream: &mut (impl AsyncWrite + Unpin),
    answer: &Answer,
    sent: &AtomicUsize,
) -> io::Result<()> {
    match answer {
        Answer::Raw(bytes) => stream.write_all(bytes).await?,
        Answer::Status(status) => stream.write_all(head(*status, "", 0).as_bytes()).await?,
        Answer::Redirect(status, to) => {
            stream.write_all(head(*status, &format!("location: {to}\r\n"), 0).as_bytes()).await?;
        }
        Answer::Body(body) => {
            stream.write_all((head(200, "", body.len()) + body).as_bytes()).await?;
        }
        Answer::Mebibytes(count) => {
            stream.write_all(head(200, "", count * MIB).as_bytes()).await?;
            for _ in 0..count * 16 {
                stream.write_all(&[b' '; MIB / 16]).await?;
                stream.flush().await?;
                sent.fetch_add(MIB / 16, Ordering::SeqCst);
            }
        }
        Answer::Slow(body) => {
            stream.write_all(head(200, "", body.len()).as_bytes()).await?;
            for byte in body.bytes() {
                stream.write_all(&[byte]).await?;
                stream.flush().await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
    stream.flush().await
}

fn head(status: u16, header: &str, length: usize) -> String {
    format!("HTTP/1.1 {status} Answer\r\nconnection: close\r\n{header}content-length: {length}\r\n\r\n")
}
