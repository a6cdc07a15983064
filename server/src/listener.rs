//! Connections: TLS 1.3 only, with bounds on how many there are and how long a handshake may take.

use std::{collections::VecDeque, fs, io, net::IpAddr, sync::Arc, time::Duration};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Limits, Tls},
    shares::{Full, Share, Shares},
};

mod connection;

pub use connection::{Connection, Peer};

/// What a client of HTTP/2 sends first (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads the serving certificate.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn tls_config(tls: &Tls) -> Result<ServerConfig, String> {
    let certificate = fs::read(&tls.certificate_file)
        .map_err(|error| format!("tls.certificate_file {}: {error}", tls.certificate_file.display()))?;
    let chain = CertificateDer::pem_slice_iter(&certificate)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| format!("tls.certificate_file {} is not PEM", tls.certificate_file.display()))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key_file).map_err(|_| {
        format!("tls.key_file {} holds no readable private key in PEM", tls.key_file.display())
    })?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| format!("tls: certificate and key do not fit: {error}"))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Accepts connections until `shutdown`, and gives those whose handshake succeeded and that began to speak HTTP/2.
pub fn accept(
    listener: TcpListener,
    tls: ServerConfig,
    limits: &Limits,
    shutdown: CancellationToken,
) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(64);
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let handshake_max = Duration::from_secs(limits.handshake_secs);
    let places = Shares::new(limits.connections, limits.connections_per_peer);
    let mut handshakes = Handshakes::new(limits.connections);
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((tcp, peer)) = accepted else {
                // Out of file descriptors, most likely: accepting again at once would spin.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let peer = peer.ip().to_canonical();
            let mut place = places.one_of(peer);
            if place.as_ref().is_err_and(|full| *full == Full::All) {
                handshakes.end_oldest().await;
                place = places.one_of(peer);
            }
            // Beyond the bound a connection is closed at once, rather than left waiting.
            let Ok(place) = place else { continue };
            let handshake = handshake(acceptor.clone(), tcp, place, handshake_max, sender.clone());
            handshakes.add(tokio::spawn(handshake));
        }
    });
    ReceiverStream::new(receiver)
}

/// Handshakes under way, the oldest first. When there is no place for a new connection, the oldest handshake gives its
/// own up: one that is meant to be finished takes milliseconds, so that those who never finish theirs cannot keep others
/// out.
struct Handshakes {
    running: VecDeque<JoinHandle<()>>,
    running_max: usize,
}

impl Handshakes {
    fn new(running_max: usize) -> Self {
        Self { running: VecDeque::new(), running_max }
    }

    fn add(&mut self, handshake: JoinHandle<()>) {
        // Rarely, for it looks at all of them.
        if self.running.len() >= 2 * self.running_max {
            self.running.retain(|handshake| !handshake.is_finished());
        }
        self.running.push_back(handshake);
    }

    async fn end_oldest(&mut self) {
        while let Some(oldest) = self.running.pop_front() {
            if !oldest.is_finished() {
                oldest.abort();
                // Its place is free once it is gone.
                let _ = oldest.await;
                return;
            }
        }
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    place: Share<IpAddr>,
    handshake_max: Duration,
    sender: mpsc::Sender<io::Result<Connection>>,
) {
    let _ = tcp.set_nodelay(true);
    match tokio::time::timeout(handshake_max, open(&acceptor, tcp)).await {
        Ok(Ok(stream)) => {
            let _ = sender.send(Ok(Connection::new(stream, PREFACE, place))).await;
        }
        Ok(Err(error)) => tracing::debug!(%error, "handshake failed"),
        Err(_) => tracing::debug!("handshake took too long"),
    }
}

/// TLS, then the client's preface: who went silent between the two would keep its place for ever.
async fn open(acceptor: &TlsAcceptor, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    let mut stream = acceptor.accept(tcp).await?;
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface).await?;
    if preface != *PREFACE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the client does not speak HTTP/2"));
    }
    Ok(stream)
}
