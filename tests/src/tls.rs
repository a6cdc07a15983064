//! Clients that are less than well-behaved: TLS by hand, and from another address than most tests'.

use std::{io, net::Ipv4Addr, sync::Arc};

use hyper_util::rt::TokioIo;
use keyfold::dev::server;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    codegen::http::Uri,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

/// The protocol that the server speaks.
pub const H2: &[u8] = b"h2";

/// Connects to a server from `address`, any of 127.0.0.0/8, and offers the protocols `alpn`.
///
/// # Errors
/// When the server hangs up.
///
/// # Panics
/// When the server's CA cannot be read.
pub async fn connect_from(
    address: Ipv4Addr,
    setup: &server::Setup,
    alpn: &[&[u8]],
) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(setup.ca_file()).expect("the CA can be read");
    roots.add(ca).expect("the CA can be read");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3 is there")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let socket = TcpSocket::new_v4()?;
    socket.bind((address, 0).into())?;
    let server = setup.url().replace("https://", "").parse().map_err(io::Error::other)?;
    let tcp = socket.connect(server).await?;
    tcp.set_nodelay(true)?;
    let name = ServerName::try_from("127.0.0.1").expect("an address is a name");
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    // In TLS 1.3 the server's refusal arrives only after the client's own handshake is done.
    stream.flush().await?;
    Ok(stream)
}

/// A channel to a server from `address`, any of 127.0.0.0/8, connected when first used.
pub fn channel_from(address: Ipv4Addr, setup: &server::Setup) -> Channel {
    through(Endpoint::from_static("http://127.0.0.1"), address, setup)
}

/// The same whose client takes no more of an answer than `window_bytes` before it is read.
pub fn narrow_channel_from(address: Ipv4Addr, setup: &server::Setup, window_bytes: u32) -> Channel {
    let endpoint = Endpoint::from_static("http://127.0.0.1")
        .initial_stream_window_size(window_bytes)
        .initial_connection_window_size(window_bytes);
    through(endpoint, address, setup)
}

fn through(endpoint: Endpoint, address: Ipv4Addr, setup: &server::Setup) -> Channel {
    let setup = setup.clone();
    let connect = service_fn(move |_: Uri| {
        let setup = setup.clone();
        async move { connect_from(address, &setup, &[H2]).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector_lazy(connect)
}
