//! Serving: binds the socket, keeps trying to unseal, tells health, and stops in order.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use keyfold_core::{
    clock::Clock,
    entropy::{Entropy, SystemEntropy},
};
use keyfold_proto::{
    DESCRIPTORS,
    keyfold::v1::{
        audit_service_server::AuditServiceServer, config_service_server::ConfigServiceServer,
        key_service_server::KeyServiceServer, secret_service_server::SecretServiceServer,
        system_service_server::SystemServiceServer, workload_service_server::WorkloadServiceServer,
    },
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::{ServiceBuilder, limit::GlobalConcurrencyLimitLayer, load_shed::LoadShedLayer};

use crate::{
    api::Api, authn::Authenticator, broker::Broker, config::Config, listener, seal, seal::Seal, store::Store,
};

/// How often the server looks whether it can serve.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// How long calls in work may take once the server is to stop: within the 30 s that Kubernetes gives a pod.
const SHUTDOWN_MAX: Duration = Duration::from_secs(20);

/// A server that has bound its socket.
pub struct Bound {
    listener: TcpListener,
    tls: rustls::ServerConfig,
    config: Config,
    api: Api,
}

/// Reads what the configuration names and binds the socket. Neither the database nor the root key need be there yet.
///
/// # Errors
/// Names the key of the configuration that cannot be used, and why.
pub async fn bind(config: Config, clock: Arc<dyn Clock>) -> Result<Bound, String> {
    let tls = listener::tls_config(&config.tls)?;
    let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
    let broker = Broker {
        store: Store::new(&config.database)?,
        authenticator: Authenticator::new(clock.clone(), config.jwks_dir.clone())
            .map_err(|error| error.to_string())?,
        seal: Seal::new(config.root_key.clone()),
        clock,
        entropy,
    };
    let api = Api { broker: Arc::new(broker), bootstrap_token_file: config.bootstrap_token_file.clone() };
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|error| format!("listen {}: {error}", config.listen))?;
    Ok(Bound { listener, tls, config, api })
}

impl Bound {
    /// Where the server listens.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn address(&self) -> Result<SocketAddr, String> {
        self.listener.local_addr().map_err(|error| error.to_string())
    }

    /// Serves until `shutdown`, then finishes the calls that are in work.
    ///
    /// # Errors
    /// When the transport fails.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), String> {
        let limits = &self.config.limits;
        let (reporter, health) = tonic_health::server::health_reporter();
        let watcher = tokio::spawn(watch(self.api.broker.clone(), reporter));
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .build_v1()
            .map_err(|error| error.to_string())?;
        let incoming = listener::accept(self.listener, self.tls, limits, shutdown.clone());
        let bounded = ServiceBuilder::new()
            .layer(LoadShedLayer::new())
            .layer(GlobalConcurrencyLimitLayer::new(limits.concurrent_requests))
            .into_inner();
        let (api, bytes) = (self.api, limits.request_bytes);
        let served = Server::builder()
            .max_concurrent_streams(limits.streams_per_connection)
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .timeout(Duration::from_secs(limits.request_secs))
            .layer(bounded)
            .add_service(health)
            .add_service(reflection)
            .add_service(WorkloadServiceServer::new(api.clone()).max_decoding_message_size(bytes))
            .add_service(SecretServiceServer::new(api.clone()).max_decoding_message_size(bytes))
            .add_service(ConfigServiceServer::new(api.clone()).max_decoding_message_size(bytes))
            .add_service(KeyServiceServer::new(api.clone()).max_decoding_message_size(bytes))
            .add_service(AuditServiceServer::new(api.clone()).max_decoding_message_size(bytes))
            .add_service(SystemServiceServer::new(api).max_decoding_message_size(bytes))
            .serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
        // A caller that keeps its connection open cannot keep the server from stopping.
        let patience = async {
            shutdown.cancelled().await;
            tokio::time::sleep(SHUTDOWN_MAX).await;
        };
        let done = tokio::select! {
            served = served => served.map_err(|error| format!("the server stopped: {error}")),
            () = patience => Ok(()),
        };
        watcher.abort();
        done
    }
}

/// Unseals as soon as that is possible, and keeps the health service's answer true.
async fn watch(broker: Arc<Broker>, reporter: HealthReporter) {
    let mut told: Option<String> = None;
    loop {
        let status = match broker.status(None).await.map(|status| status.state) {
            Ok(seal::State::Serving(_)) => "serving".to_owned(),
            Ok(seal::State::Uninitialized) => "not initialised: run keyfold init".to_owned(),
            Ok(seal::State::Sealed(why)) => why,
            Err(error) => error.to_string(),
        };
        if told.as_ref() != Some(&status) {
            let serving =
                if status == "serving" { ServingStatus::Serving } else { ServingStatus::NotServing };
            reporter.set_service_status("", serving).await;
            tracing::info!(state = %status, "state");
            told = Some(status);
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}
