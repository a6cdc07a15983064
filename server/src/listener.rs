//! Connections: TLS 1.3 only, with bounds on how many there are and how long a handshake may take.

use std::{collections::VecDeque, io, net::IpAddr, sync::Arc, time::Duration};

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
    config::Limits,
    shares::{Full, Share, Shares},
};

mod certificate;
mod connection;
mod gathered;
mod serving;

pub use certificate::{ClientCertificate, DriverCertificate, driver_uri};
pub use connection::{Connection, Peer};
pub use serving::{Serving, ServingTls};

/// What a client of HTTP/2 sends first (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Accepts connections until `shutdown`, and gives those whose handshake succeeded and that began to speak HTTP/2.
pub fn accept(
    listener: TcpListener,
    tls: Arc<ServingTls>,
    limits: &Limits,
    shutdown: CancellationToken,
) -> ReceiverStream<io::Result<Connection>> {
    let (sender, receiver) = mpsc::channel(64);
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
            let handshake = handshake(tls.now(), tcp, place, handshake_max, sender.clone());
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
    serving: Serving,
    tcp: TcpStream,
    place: Share<IpAddr>,
    handshake_max: Duration,
    sender: mpsc::Sender<io::Result<Connection>>,
) {
    let _ = tcp.set_nodelay(true);
    let acceptor = TlsAcceptor::from(serving.config);
    match tokio::time::timeout(handshake_max, open(&acceptor, tcp)).await {
        Ok(Ok(stream)) => {
            let certificate = match serving.asks_for_certificate {
                true => ClientCertificate::verified(stream.get_ref().1.peer_certificates()),
                false => ClientCertificate::NotAsked,
            };
            let _ = sender.send(Ok(Connection::new(stream, PREFACE, certificate, place))).await;
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
