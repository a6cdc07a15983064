//! Connections to a Keyfold server: TLS 1.3 only, on the one crypto stack that Keyfold uses.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};
use tower::Service;

/// Why a channel to the server could not be set up. No network is touched until the first call.
#[derive(Debug)]
pub struct ChannelError(String);

impl std::fmt::Display for ChannelError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ChannelError {}

/// A channel to `url` (`https://host:port`) that trusts only the authorities in `ca_pem`. It connects when first
/// used, and again whenever the connection was lost.
///
/// # Errors
/// When the URL is not `https://host[:port]`, or `ca_pem` holds no certificate.
pub fn connect_lazy(url: &str, ca_pem: &[u8]) -> Result<Channel, ChannelError> {
    let uri: Uri =
        url.parse().map_err(|_| ChannelError(format!("the server's address {url:?} is not a URL")))?;
    if uri.scheme_str() != Some("https") || uri.host().is_none() {
        return Err(ChannelError(format!(
            "the server's address {url:?} must have the form https://host:port"
        )));
    }
    let connector = Connector { tls: TlsConnector::from(Arc::new(tls_config(ca_pem)?)) };
    // The endpoint is given as http because the connector does TLS itself: tonic's own cannot be held to TLS 1.3.
    let endpoint = Endpoint::from_shared(url.replacen("https://", "http://", 1))
        .map_err(|_| ChannelError(format!("the server's address {url:?} is not a URL")))?
        .connect_timeout(Duration::from_secs(10))
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(connector))
}

fn tls_config(ca_pem: &[u8]) -> Result<ClientConfig, ChannelError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem) {
        let added = certificate.map(|der| roots.add(der));
        if !matches!(added, Ok(Ok(()))) {
            return Err(ChannelError("the CA file holds a certificate that cannot be read".into()));
        }
    }
    if roots.is_empty() {
        return Err(ChannelError("the CA file holds no certificate in PEM form".into()));
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| ChannelError(format!("TLS 1.3 cannot be set up: {error}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

#[derive(Clone)]
struct Connector {
    tls: TlsConnector,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let tls = self.tls.clone();
        Box::pin(async move {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let tcp = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(443))).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::try_from(host).map_err(io::Error::other)?;
            Ok(TokioIo::new(tls.connect(name, tcp).await?))
        })
    }
}
