//! A TCP proxy that can fall silent: what a firewall rule does to a connection that stays open.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
};

/// A proxy in front of one server. Ends when dropped.
pub struct Proxy {
    port: u16,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    /// Connections by the port from which the proxy reaches the server.
    open: Mutex<BTreeSet<u16>>,
    silent: Mutex<BTreeSet<u16>>,
    swallowed: AtomicU64,
}

impl Proxy {
    /// Listens on loopback for connections to `server`.
    ///
    /// # Panics
    /// When it cannot listen.
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::new(State::default());
        let task = tokio::spawn(accept(listener, server, Arc::clone(&state)));
        Self { port, state, task }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The ports from which it reaches the server now, one for each connection.
    pub fn open(&self) -> BTreeSet<u16> {
        lock(&self.state.open).clone()
    }

    /// From now on nothing passes on the connection from `port`, in either direction, and it stays open.
    pub fn silence(&self, port: u16) {
        lock(&self.state.silent).insert(port);
    }

    /// Bytes that did not pass.
    pub fn swallowed_bytes(&self) -> u64 {
        self.state.swallowed.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(ports: &Mutex<BTreeSet<u16>>) -> std::sync::MutexGuard<'_, BTreeSet<u16>> {
    ports.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, server: SocketAddr, state: Arc<State>) {
    while let Ok((client, _)) = listener.accept().await {
        let Ok(server) = TcpStream::connect(server).await else { continue };
        let Ok(address) = server.local_addr() else { continue };
        let port = address.port();
        lock(&state.open).insert(port);
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        for (from, to) in [(from_client, to_server), (from_server, to_client)] {
            let state = Arc::clone(&state);
            tokio::spawn(async move {
                pass(from, to, port, &state).await;
                lock(&state.open).remove(&port);
            });
        }
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, port: u16, state: &State) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count) = from.read(&mut buffer).await {
        if count == 0 {
            break;
        }
        if lock(&state.silent).contains(&port) {
            state.swallowed.fetch_add(count as u64, Ordering::Relaxed);
        } else if to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
}
