//! Keyfold's CSI driver: one process a node, which brings pods' secrets from the Keyfold server to their mounts. It
//! has no standing access to any secret: every read takes a pod's own token.

pub mod atomic_writer;
pub mod broker_client;
pub mod certificate;
pub mod config;
pub mod connection;
pub mod file_set;
pub mod folder;
pub mod identity;
pub mod lease;
pub mod log;
pub mod mount;
pub mod node;
pub mod pod_token;
pub mod publish;
pub mod registration;
pub mod render;
pub mod socket;
pub mod volume;
pub mod volume_locks;

use std::{future::Future, sync::Arc, time::Duration};

pub use keyfold_core::volume::DRIVER_NAME;
use keyfold_proto::{
    csi::v1::{identity_server::IdentityServer, node_server::NodeServer},
    pluginregistration::registration_server::RegistrationServer,
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::Router};

use crate::{
    broker_client::BrokerClient,
    config::Config,
    connection::{Connection, ConnectionError},
    identity::IdentityService,
    node::NodeService,
    publish::Publisher,
    registration::RegistrationService,
    socket::{SocketError, SocketFile},
};

/// Largest request on the driver's sockets. Kubelet's have a few KiB.
const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long running calls may take to finish at the end. Kubernetes gives a pod 30 s to stop.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Why the driver stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The server's address or authorities cannot be used.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// A socket could not be bound.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Kubelet refused the driver.
    #[error("kubelet did not register the driver: {0}")]
    NotRegistered(String),
    /// Serving a socket ended by itself.
    #[error("serving the {0} socket ended: {1}")]
    Serve(&'static str, String),
}

/// Serves CSI until `shutdown` completes, then finishes what runs. Mounts stay, and so do the pods that use them.
///
/// # Errors
/// When the driver cannot start, kubelet does not register it, or a socket fails.
pub async fn run(config: Config, shutdown: impl Future<Output = ()> + Send) -> Result<(), RunError> {
    let stopping = CancellationToken::new();
    let _stop_on_every_way_out = stopping.clone().drop_guard();
    let csi_router = csi_router(&config, stopping.clone()).await?;
    let (refusal, mut refused) = mpsc::channel(1);
    let registration = RegistrationService::new(&config.csi_socket(), refusal);

    let mut csi = Serving::start("CSI", csi_router, socket::bind(&config.csi_socket())?, stopping.clone());
    // Kubelet calls the CSI socket as soon as it sees this one.
    let registration_router = Server::builder()
        .add_service(RegistrationServer::new(registration).max_decoding_message_size(REQUEST_BYTES_MAX));
    let registration_socket = socket::bind(&config.registration_socket())?;
    let mut registration =
        Serving::start("registration", registration_router, registration_socket, stopping.clone());
    tracing::info!(node = config.node_id, socket = %config.csi_socket().display(), "serving");

    let reason = tokio::select! {
        () = shutdown => Ok(()),
        Some(why) = refused.recv() => Err(RunError::NotRegistered(why)),
        error = csi.ended() => Err(error),
        error = registration.ended() => Err(error),
    };
    stopping.cancel();
    registration.finish().await;
    csi.finish().await;
    reason
}

async fn csi_router(config: &Config, stopping: CancellationToken) -> Result<Router, RunError> {
    let connection = Arc::new(Connection::new(config)?);
    tokio::spawn(stopping.clone().run_until_cancelled_owned(Arc::clone(&connection).keep()));
    let broker = BrokerClient::new(connection, &config.token_file);
    let publisher = Arc::new(Publisher::new(config, broker, stopping));
    let identity = IdentityServer::new(IdentityService).max_decoding_message_size(REQUEST_BYTES_MAX);
    let node = NodeServer::new(NodeService::new(config.node_id.clone(), publisher))
        .max_decoding_message_size(REQUEST_BYTES_MAX);
    // Health of the whole driver, "", is SERVING from the start.
    let (_, health) = tonic_health::server::health_reporter();
    Ok(Server::builder().add_service(health).add_service(identity).add_service(node))
}

/// A socket being served.
struct Serving {
    name: &'static str,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
    file: SocketFile,
}

impl Serving {
    fn start(
        name: &'static str,
        router: Router,
        (incoming, file): (UnixListenerStream, SocketFile),
        stopping: CancellationToken,
    ) -> Self {
        let task = tokio::spawn(router.serve_with_incoming_shutdown(incoming, stopping.cancelled_owned()));
        Self { name, task, file }
    }

    /// Completes when serving ends although nobody asked for it.
    async fn ended(&mut self) -> RunError {
        let why = match (&mut self.task).await {
            Ok(Ok(())) => "the listener closed".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        RunError::Serve(self.name, why)
    }

    /// Removes the socket and lets running calls finish.
    async fn finish(mut self) {
        drop(self.file);
        if !self.task.is_finished() && tokio::time::timeout(DRAIN_MAX, &mut self.task).await.is_err() {
            tracing::warn!(socket = self.name, "calls were still running at the end");
            self.task.abort();
        }
    }
}
