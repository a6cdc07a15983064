//! A server and a client with certificates of the internal authority, and handshakes between them in memory.

use std::sync::Arc;

use keyfold::dev::pki::{Authority, LOOPBACK};
use keyfold_core::{
    clock::{Clock as _, SystemClock},
    entropy::SystemEntropy,
};
use keyfold_server::{
    ca::{Signer, public_key},
    config,
    listener::ServingTls,
    store::ca_certificates::CaCertificate,
};
use rcgen::KeyPair;
use rustls::{
    ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
    client::Resumption,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject as _},
};
use time::Duration;
use uuid::Uuid;

const LIFETIME: Duration = Duration::hours(1);

/// Both sides' settings: TLS 1.3, ECDSA P-256, a certificate of each, nothing resumed.
pub struct Tls {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Tls {
    /// The server's are those that it serves with; the client's are like those of a driver.
    pub fn new() -> Self {
        let authority = authority();
        let signer = Signer::open(&authority.0, &authority.1).expect("an authority");
        let root = CertificateDer::from(authority.0.certificate);
        Self { server: server(&signer, root.clone()), client: client(&signer, root) }
    }

    /// One whole handshake.
    pub fn shake_hands(&self) -> (Connection, Connection) {
        let name = LOOPBACK[0].try_into().expect("a name");
        let client = ClientConnection::new(Arc::clone(&self.client), name).expect("a client");
        let server = ServerConnection::new(Arc::clone(&self.server)).expect("a server");
        let (mut client, mut server) = (Connection::from(client), Connection::from(server));
        while client.is_handshaking() || server.is_handshaking() {
            pass(&mut client, &mut server);
            pass(&mut server, &mut client);
        }
        (client, server)
    }
}

/// What one side has to say is heard by the other.
fn pass(from: &mut Connection, to: &mut Connection) {
    let mut wire = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut wire).expect("memory takes all");
    }
    let mut unread = wire.as_slice();
    while !unread.is_empty() {
        to.read_tls(&mut unread).expect("memory gives all");
        to.process_new_packets().expect("the two agree");
    }
}

fn authority() -> (CaCertificate, keyfold_core::secret::SecretBytes) {
    let now = SystemClock.now();
    let (certificate, key) = Signer::create(Uuid::from_u128(1), 1, now).expect("an authority");
    let row = CaCertificate {
        version: 1,
        state: "active".into(),
        certificate,
        kek_id: None,
        kek_version: None,
        wrapped_key: None,
        created_at: now,
        expires_at: now + Duration::days(1),
        activated_at: None,
        retired_at: None,
        mac: Vec::new(),
    };
    (row, key)
}

fn server(signer: &Signer, root: CertificateDer<'static>) -> Arc<ServerConfig> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let files = config::Tls {
        certificate_file: folder.path().join("tls.crt"),
        key_file: folder.path().join("tls.key"),
        internal: None,
        require_driver_certificate: false,
    };
    let now = SystemClock.now();
    let from_files = Authority::new("bench", now).and_then(|authority| authority.serving(&LOOPBACK));
    let from_files = from_files.expect("a certificate");
    from_files.write(&files.certificate_file, &files.key_file).expect("the files can be written");
    let serving = ServingTls::new(files, Arc::new(SystemClock)).expect("the files can be served");
    let names = config::InternalTls { dns_names: vec![LOOPBACK[0].into()], ip_addresses: Vec::new() };
    let internal = signer.server(&names, LIFETIME, now, &SystemEntropy).expect("a certificate");
    serving.serve(Some(Arc::new(internal))).expect("it can be served");
    serving.trust(vec![root]).expect("it is an authority");
    serving.now().config
}

fn client(signer: &Signer, root: CertificateDer<'static>) -> Arc<ClientConfig> {
    let key = KeyPair::generate().expect("a key");
    let request = rcgen::CertificateParams::default().serialize_request(&key).expect("a request");
    let public = public_key(request.der()).expect("its public key");
    let signed = signer
        .driver(&public, "keyfold://driver/dev/dev-node/uid", LIFETIME, SystemClock.now(), &SystemEntropy)
        .expect("a certificate");
    let chain = vec![CertificateDer::from_pem_slice(signed.pem.as_bytes()).expect("it is PEM")];
    let mut roots = RootCertStore::empty();
    roots.add(root).expect("it is an authority");
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has TLS 1.3")
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .expect("the key fits");
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Arc::new(config)
}
