//! Connections that lead nowhere: they take no place from those that do, and leave nothing behind.

use std::{fs, net::Ipv4Addr, sync::Arc, time::Duration};

use keyfold::dev::server::Server;
use keyfold_proto::keyfold::v1::GetSecretRequest;
use keyfold_tests::{
    PAYMENTS_SECRETS, World,
    faults::{operator_of, until, within},
    tls::{H2, connect_from},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};
use tokio_rustls::client::TlsStream;

/// Connections of the flood.
const FLOOD: u32 = 10_000;
/// From one address; below `limits.connections_per_peer`.
const FROM_EACH: u32 = 50;
/// `limits.connections`.
const CONNECTIONS_MAX: usize = 4096;
/// What the server may open besides its connections: its database's, those of its issuers, a connection just closed.
const OTHERS: usize = 100;

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_ten_thousand_connections_that_never_finish_their_handshake_keep_nobody_out() {
    allow_open_files(u64::from(FLOOD) + 2000);
    // Long enough that time alone gives no place back.
    let mut world = World::configured("limits: {handshake_secs: 600}\n", "").await.with_payments().await;
    serve_others(&world, 0).await;
    let before = open_files(&world.server);

    let flood = tokio::spawn(flood(world.server.setup().clone()));
    let mut round = 1;
    while !flood.is_finished() || round < 20 {
        serve_others(&world, round).await;
        round += 1;
    }
    let held = flood.await.unwrap();
    assert_eq!(held.len(), FLOOD as usize);
    until("the server to hold as many as it may", async || {
        open_files(&world.server) > before + CONNECTIONS_MAX - OTHERS
    })
    .await;
    for _ in 0..5 {
        // A new driver has no connection yet.
        world.driver.restart().await.unwrap();
        serve_others(&world, round).await;
        round += 1;
        let open = open_files(&world.server);
        assert!(open < before + CONNECTIONS_MAX + OTHERS, "{open} files are open, {before} were before");
    }

    drop(held);
    until("the server to have closed them all", async || open_files(&world.server) < before + OTHERS).await;
    serve_others(&world, round).await;
    assert!(!world.logs().contains("panicked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_opens_as_many_files_as_it_is_allowed_to() {
    let limit = getrlimit(Resource::Nofile);
    let low = Rlimit { current: Some(256), maximum: limit.maximum };
    setrlimit(Resource::Nofile, low).expect("the soft limit can be lowered");
    let database = keyfold_tests::Database::shared();
    let folder = tempfile::tempdir().unwrap();
    let setup = keyfold_tests::server_setup(folder.path(), "server", &database);
    let server = Server::start(&setup).await.unwrap();
    setrlimit(Resource::Nofile, limit).expect("the limit can be set back");
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.process.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let columns: Vec<_> = line.split_whitespace().collect();
    assert_eq!(columns[3], columns[4], "the soft limit is the hard one: {line}");
}

/// A pod's volume is published, with files, and an operator reads, on a connection of its own.
async fn serve_others(world: &World, round: usize) {
    let others = async {
        let pod = world.pod("payments", "api", &format!("api-{round}"));
        world.publish(&pod, "payments-api", PAYMENTS_SECRETS).await.expect("the volume is published");
        assert_eq!(world.files(&pod)["db/password"], "first");
        world.driver.kubelet().unpublish(&world.volume(&pod)).await.expect("the volume is unpublished");
        let request = GetSecretRequest { path: "payments/db".into(), version: None };
        operator_of(&world.server).secrets().get_secret(request).await.expect("the operator is served");
    };
    within(Duration::from_secs(60), "others", others).await;
}

/// Kept open, so that the server has to end it.
#[expect(dead_code, reason = "held, not used")]
enum Held {
    Raw(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// The server did not take it, or ended it already.
    Ended,
}

/// Opens all of them, a few at a time; each says something else and then nothing more.
async fn flood(setup: keyfold::dev::server::Setup) -> Vec<Held> {
    let hello = Arc::new(client_hello());
    let mut opening = JoinSet::new();
    let mut held = Vec::new();
    for number in 0..FLOOD {
        if opening.len() >= 64 {
            held.push(opening.join_next().await.unwrap().unwrap());
        }
        opening.spawn(unfinished(number, setup.clone(), Arc::clone(&hello)));
    }
    held.extend(opening.join_all().await);
    held
}

async fn unfinished(number: u32, setup: keyfold::dev::server::Setup, hello: Arc<Vec<u8>>) -> Held {
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 10, 0)) + number / FROM_EACH);
    if number.is_multiple_of(50) {
        // Through with TLS, and then not a word of HTTP/2.
        let opened = connect_from(address, &setup, &[H2]).await;
        return opened.map_or(Held::Ended, |stream| Held::Tls(Box::new(stream)));
    }
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((address, 0).into()).expect("an address of this machine");
    let server = setup.url().replace("https://", "").parse().expect("an address");
    let Ok(mut stream) = socket.connect(server).await else { return Held::Ended };
    let said: &[u8] = match number % 10 {
        0 => b"GET / HTTP/1.1\r\n\r\n",
        1 => &[0x16, 0x03, 0x01, 0x40, 0x00],
        2..5 => &hello[..hello.len() / 2],
        _ => b"",
    };
    match stream.write_all(said).await {
        Ok(()) => Held::Raw(stream),
        Err(_) => Held::Ended,
    }
}

/// The first message of a TLS client.
fn client_hello() -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3 is there")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from("127.0.0.1").expect("an address is a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("it fits into memory");
    bytes
}

/// File descriptors of the server (proc(5)).
fn open_files(server: &Server) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.process.pid())).expect("the server runs").count()
}

fn allow_open_files(needed: u64) {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    assert!(
        maximum.is_none_or(|maximum| maximum >= needed),
        "this test opens {needed} files and may open {maximum:?}: raise the hard limit (ulimit -Hn)"
    );
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("the soft limit can be raised");
}
