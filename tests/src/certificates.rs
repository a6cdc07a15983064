//! Certificates of the internal authority: servers and drivers that have them, and clients that have others.

use std::{fs, io, net::SocketAddr, sync::Arc, time::Duration};

use keyfold::dev::{
    driver,
    server::Setup,
    tokens::{AUDIENCE, TokenRequest},
};
use keyfold_core::clock::{Clock as _, SystemClock};
use keyfold_proto::{
    channel::{ClientIdentity, connect_lazy, connect_lazy_as},
    keyfold::v1::{
        GetBundleRequest, GetBundleResponse, IssueDriverCertificateRequest, IssueDriverCertificateResponse,
        IssueSecretsRequest, IssueSecretsResponse, SecretReference,
        certificate_service_client::CertificateServiceClient, workload_service_client::WorkloadServiceClient,
    },
};
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::json;
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tokio_rustls::TlsConnector;
use tonic::{Request, Status, transport::Channel};

use crate::World;

/// Lets a server serve certificates of the internal authority that hold for so long, from its next start on; an authority
/// is trusted for as long before it signs.
///
/// # Panics
/// When its configuration cannot be written.
pub fn configure(setup: &Setup, certificate_secs: u64, requires_driver_certificate: bool) {
    let tls = json!({
        "certificate_file": setup.folder().join("tls.crt"),
        "key_file": setup.folder().join("tls.key"),
        "internal": {"dns_names": ["localhost"], "ip_addresses": ["127.0.0.1"]},
        "require_driver_certificate": requires_driver_certificate,
    });
    setup.configure("tls", tls).expect("the configuration can be written");
    let ca = json!({"certificate_secs": certificate_secs, "overlap_secs": certificate_secs});
    setup.configure("ca", ca).expect("the configuration can be written");
}

impl World {
    /// With a secret, and with a server and a driver that have certificates of the internal authority.
    ///
    /// # Panics
    /// When a part does not start.
    pub async fn with_internal_certificates(certificate_secs: u64, required: bool) -> Self {
        let mut world = Self::start().await.with_payments().await;
        configure(world.server.setup(), certificate_secs, required);
        world.server.restart().await.expect("the server starts again");
        world.server.until_serving().await.expect("the server serves");
        world.until_internal().await;
        let file = world.folder.path().join("driver/config.yaml");
        let yaml = fs::read_to_string(&file).expect("the configuration can be read");
        let line = yaml.lines().find(|line| line.contains("wait_secs:")).expect("a key of the server");
        let indentation = &line[..line.len() - line.trim_start().len()];
        let yaml = yaml.replace(line, &format!("{line}\n{indentation}certificate: internal"));
        fs::write(&file, yaml).expect("the configuration can be written");
        world.driver.restart().await.expect("the driver starts again");
        world
    }

    /// Waits until the server serves a certificate of the internal authority to whom trusts that alone.
    ///
    /// # Panics
    /// When it does not within a minute.
    pub async fn until_internal(&self) {
        crate::faults::until("the server to serve a certificate of the internal authority", async || {
            let Ok(bundle) = bundle(&self.channel()).await else { return false };
            served(self.server.setup(), &bundle.bundle).await.is_ok()
        })
        .await;
    }

    /// A driver's own token that names that node, or none.
    ///
    /// # Panics
    /// When there is no randomness.
    pub fn driver_token_of(&self, node: Option<&str>) -> String {
        let request = TokenRequest {
            namespace: driver::NAMESPACE.into(),
            service_account: driver::SERVICE_ACCOUNT.into(),
            pod: Some("keyfold-csi-dev".into()),
            node: node.map(str::to_owned),
            audience: AUDIENCE.into(),
            ttl: Duration::from_secs(600),
        };
        self.minter.mint(&request, SystemClock.now()).expect("a token can be minted").jwt.to_string()
    }

    /// Asks for a certificate as the driver with that token.
    ///
    /// # Errors
    /// The server's status.
    pub async fn certificate(
        &self,
        token: &str,
        certificate_request: Vec<u8>,
    ) -> Result<IssueDriverCertificateResponse, Status> {
        let request = bearing(token, IssueDriverCertificateRequest { certificate_request });
        let mut service = CertificateServiceClient::new(self.channel());
        Ok(service.issue_driver_certificate(request).await?.into_inner())
    }

    /// A certificate of the driver of that node.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn identity(&self, node: &str) -> ClientIdentity {
        let key = key();
        let token = self.driver_token_of(Some(node));
        let issued = self.certificate(&token, request(&key)).await.expect("the driver has a certificate");
        ClientIdentity::new(issued.chain, key.serialize_der())
    }

    /// A connection that shows a certificate, or none.
    ///
    /// # Panics
    /// When the certificate or the server's CA cannot be read.
    pub fn channel_as(&self, identity: Option<&ClientIdentity>) -> Channel {
        let ca = fs::read(self.server.setup().ca_file()).expect("the CA can be read");
        connect_lazy_as(&self.server.setup().url(), &ca, identity).expect("the certificate can be read")
    }

    /// Asks for `payments/db` for a pod of the driver's node, with that driver's token, over a connection.
    ///
    /// # Errors
    /// The server's status.
    pub async fn issue_over(&self, channel: &Channel) -> Result<IssueSecretsResponse, Status> {
        let items = vec![SecretReference { path: "payments/db".into(), optional: false }];
        let pod_token = self.token(&self.pod("payments", "api", "api-0")).jwt.to_string();
        let message = IssueSecretsRequest { pod_token, role: "payments-api".into(), items };
        let request = bearing(&self.driver_token(), message);
        Ok(WorkloadServiceClient::new(channel.clone()).issue_secrets(request).await?.into_inner())
    }
}

/// A message with a token.
///
/// # Panics
/// When the token cannot be sent.
pub fn bearing<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let bearer = format!("Bearer {}", token.trim()).parse().expect("a token is ASCII");
    request.metadata_mut().insert("authorization", bearer);
    request
}

/// A new key of the kind that drivers have.
///
/// # Panics
/// When there is no randomness.
pub fn key() -> KeyPair {
    KeyPair::generate().expect("randomness")
}

/// The request of a driver for a certificate.
///
/// # Panics
/// When the key cannot sign.
pub fn request(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default().serialize_request(key).expect("the key can sign").der().to_vec()
}

/// What the server tells of its internal authority.
///
/// # Errors
/// The server's status.
pub async fn bundle(channel: &Channel) -> Result<GetBundleResponse, Status> {
    Ok(CertificateServiceClient::new(channel.clone()).get_bundle(GetBundleRequest {}).await?.into_inner())
}

/// The versions and states of the authorities.
///
/// # Panics
/// When the server does not tell.
pub async fn states(channel: &Channel) -> Vec<(u32, String)> {
    let told = bundle(channel).await.expect("the server tells its authorities");
    told.authorities.into_iter().map(|authority| (authority.version, authority.state)).collect()
}

/// A channel to a server that trusts these authorities alone, in PEM.
///
/// # Panics
/// When they cannot be read.
pub fn trusting(setup: &Setup, pem: &str) -> Channel {
    connect_lazy(&setup.url(), pem.as_bytes()).expect("the authorities can be read")
}

/// The certificates that a server shows to a client that trusts these authorities alone, and does not say so: one that is
/// not Keyfold's own.
///
/// # Errors
/// When the handshake fails, or the server hangs up after it.
///
/// # Panics
/// When the authorities cannot be read.
pub async fn served(setup: &Setup, pem: &str) -> io::Result<Vec<CertificateDer<'static>>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.expect("PEM")).expect("a certificate");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3 is there")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let address: SocketAddr = setup.url().replace("https://", "").parse().expect("an address");
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::try_from("127.0.0.1").expect("an address is a name");
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let shown = shown.iter().map(|certificate| certificate.clone().into_owned()).collect();
    // A refusal would come now. A server that is content waits for the client to speak.
    let mut byte = [0];
    match tokio::time::timeout(Duration::from_millis(50), stream.read_exact(&mut byte)).await {
        Ok(Err(error)) => Err(error),
        _ => Ok(shown),
    }
}
