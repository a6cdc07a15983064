//! The peer's client: one TLS 1.3 connection that is kept, over HTTP/1.1 or HTTP/2, with as little between as hyper allows,
//! because it takes its processor time from the servers on the same machine.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::{http1, http2},
    header::{HOST, HeaderName, HeaderValue},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};

const TOKEN: HeaderName = HeaderName::from_static("x-vault-token");

/// Where a server is, and whom to trust.
#[derive(Clone)]
pub(super) struct Address {
    /// On 127.0.0.1.
    pub(super) socket: SocketAddr,
    tls: TlsConnector,
    http2: bool,
}

impl Address {
    /// A server whose certificate is signed by `ca_pem`.
    ///
    /// # Panics
    /// When that is no certificate.
    pub(super) fn new(socket: SocketAddr, ca_pem: &str, http2: bool) -> Self {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).expect("a certificate");
        roots.add(ca).expect("an authority");
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .expect("ring has TLS 1.3")
                .with_root_certificates(roots)
                .with_no_client_auth();
        config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        Self { socket, tls: TlsConnector::from(Arc::new(config)), http2 }
    }

    /// Opens a connection from this address, any of 127.0.0.0/8.
    ///
    /// # Errors
    /// Says what failed.
    pub(super) async fn open(&self, from: Ipv4Addr) -> Result<TlsStream<TcpStream>, String> {
        let open = async {
            let socket = TcpSocket::new_v4()?;
            socket.bind((from, 0).into())?;
            let tcp = socket.connect(self.socket).await?;
            tcp.set_nodelay(true)?;
            self.tls.connect(ServerName::IpAddress(self.socket.ip().into()), tcp).await
        };
        open.await.map_err(|error: std::io::Error| format!("{}: {error}", self.socket))
    }

    /// Connects.
    ///
    /// # Errors
    /// Says what failed.
    pub(super) async fn connect(&self) -> Result<Connection, String> {
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", self.socket);
        let tls = TokioIo::new(self.open(Ipv4Addr::LOCALHOST).await?);
        let sender = if self.http2 {
            let shake = http2::handshake(TokioExecutor::new(), tls);
            let (sender, connection) = shake.await.map_err(|error| failed(&error))?;
            tokio::spawn(connection);
            Sender::Two(sender)
        } else {
            let (sender, connection) = http1::handshake(tls).await.map_err(|error| failed(&error))?;
            tokio::spawn(connection);
            Sender::One(sender)
        };
        let host = HeaderValue::from_str(&self.socket.to_string()).expect("an address is ASCII");
        Ok(Connection { sender, host, base: format!("https://{}/v1/", self.socket) })
    }
}

enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

/// A connection to the peer.
pub(super) struct Connection {
    sender: Sender,
    host: HeaderValue,
    base: String,
}

impl Connection {
    /// Sends a request to `path` below `/v1/`. Gives the answer's status and body.
    ///
    /// # Errors
    /// When the connection fails.
    pub(super) async fn call(
        &mut self,
        method: &str,
        path: &str,
        token: Option<&HeaderValue>,
        body: String,
    ) -> Result<(StatusCode, Bytes), String> {
        let failed = |error: hyper::Error| format!("{method} {path}: {error}");
        let is_http1 = matches!(self.sender, Sender::One(_));
        let target = if is_http1 { format!("/v1/{path}") } else { format!("{}{path}", self.base) };
        let mut request = Request::builder().method(method).uri(target);
        if is_http1 {
            request = request.header(HOST, &self.host);
        }
        if let Some(token) = token {
            request = request.header(TOKEN, token);
        }
        let request = request.body(Full::from(body)).map_err(|error| format!("{method} {path}: {error}"))?;
        let answer: Response<Incoming> = match &mut self.sender {
            Sender::One(sender) => {
                sender.ready().await.map_err(failed)?;
                sender.send_request(request).await.map_err(failed)?
            }
            Sender::Two(sender) => {
                sender.ready().await.map_err(failed)?;
                sender.send_request(request).await.map_err(failed)?
            }
        };
        let status = answer.status();
        Ok((status, answer.into_body().collect().await.map_err(failed)?.to_bytes()))
    }

    /// The same, with an answer of status 2xx.
    ///
    /// # Errors
    /// With the status and the body of any other.
    pub(super) async fn ok(
        &mut self,
        method: &str,
        path: &str,
        token: Option<&HeaderValue>,
        body: String,
    ) -> Result<Bytes, String> {
        let (status, body) = self.call(method, path, token, body).await?;
        if status.is_success() {
            return Ok(body);
        }
        Err(format!("{method} {path}: {status}: {}", String::from_utf8_lossy(&body)))
    }
}
