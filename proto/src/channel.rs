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
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject as _,
    },
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

/// Most authorities that a client names to the server: more would make its first message long, and are of no use.
const NAMED_AUTHORITIES_MAX: usize = 32;

/// What a client shows of itself.
pub struct ClientIdentity {
    chain_pem: String,
    key: PrivatePkcs8KeyDer<'static>,
}

impl ClientIdentity {
    /// A certificate in PEM, leaf first, and its private key (PKCS#8).
    pub fn new(chain_pem: String, key: Vec<u8>) -> Self {
        Self { chain_pem, key: key.into() }
    }
}

/// A channel to `url` (`https://host:port`) that trusts only the authorities in `ca_pem`, and shows no certificate. It
/// connects when first used, and again whenever the connection was lost.
///
/// # Errors
/// When the URL is not `https://host[:port]`, or `ca_pem` holds no certificate.
pub fn connect_lazy(url: &str, ca_pem: &[u8]) -> Result<Channel, ChannelError> {
    connect_lazy_as(url, ca_pem, None)
}

/// The same, showing a certificate to a server that asks for one.
///
/// # Errors
/// Also when the certificate or its key cannot be used.
pub fn connect_lazy_as(
    url: &str,
    ca_pem: &[u8],
    identity: Option<&ClientIdentity>,
) -> Result<Channel, ChannelError> {
    let uri: Uri =
        url.parse().map_err(|_| ChannelError(format!("the server's address {url:?} is not a URL")))?;
    if uri.scheme_str() != Some("https") || uri.host().is_none() {
        return Err(ChannelError(format!(
            "the server's address {url:?} must have the form https://host:port"
        )));
    }
    let connector = Connector { tls: TlsConnector::from(Arc::new(tls_config(ca_pem, identity)?)) };
    // The endpoint is given as http because the connector does TLS itself: tonic's own cannot be held to TLS 1.3.
    let endpoint = Endpoint::from_shared(url.replacen("https://", "http://", 1))
        .map_err(|_| ChannelError(format!("the server's address {url:?} is not a URL")))?
        .connect_timeout(Duration::from_secs(10))
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(connector))
}

fn tls_config(ca_pem: &[u8], identity: Option<&ClientIdentity>) -> Result<ClientConfig, ChannelError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Verifier::new(roots(ca_pem)?, &provider)?);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| ChannelError(format!("TLS 1.3 cannot be set up: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let unusable = || ChannelError("the client's certificate or its key cannot be used".into());
            let chain = CertificateDer::pem_slice_iter(identity.chain_pem.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .map_err(|_| unusable())?;
            let key = PrivateKeyDer::Pkcs8(identity.key.clone_key());
            builder.with_client_auth_cert(chain, key).map_err(|_| unusable())?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Servers of Keyfold resume no sessions, so that each connection's certificate is looked at.
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn roots(ca_pem: &[u8]) -> Result<RootCertStore, ChannelError> {
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
    Ok(roots)
}

/// Verifies as rustls does, and tells the server which authorities it trusts (RFC 8446, section 4.2.4): a server that has
/// a certificate of its internal authority and one of another shows the one that the client can verify.
#[derive(Debug)]
struct Verifier {
    webpki: Arc<WebPkiServerVerifier>,
    authorities: Vec<DistinguishedName>,
}

impl Verifier {
    fn new(roots: RootCertStore, provider: &Arc<CryptoProvider>) -> Result<Self, ChannelError> {
        let authorities = roots.subjects();
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
            .build()
            .map_err(|error| ChannelError(format!("the CA file cannot be used: {error}")))?;
        Ok(Self { webpki, authorities })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        (self.authorities.len() <= NAMED_AUTHORITIES_MAX).then_some(&self.authorities)
    }
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
