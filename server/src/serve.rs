//! Serving: binds the socket, keeps trying to unseal, tells health, and stops in order.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use keyfold_core::{
    clock::Clock,
    entropy::{Entropy, SystemEntropy},
};
use keyfold_proto::{
    DESCRIPTORS,
    keyfold::v1::{
        approval_service_server::ApprovalServiceServer, audit_service_server::AuditServiceServer,
        certificate_service_server::CertificateServiceServer, config_service_server::ConfigServiceServer,
        key_service_server::KeyServiceServer, policy_service_server::PolicyServiceServer,
        root_service_server::RootServiceServer, secret_service_server::SecretServiceServer,
        system_service_server::SystemServiceServer, workload_service_server::WorkloadServiceServer,
    },
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::util::MapRequestLayer;

use crate::{
    api::Api,
    authn::Authenticator,
    body::Arrivals,
    broker::{Broker, drill::Drills, entries::Entries, group::Group, puts::Puts},
    ca::{Authorities, keeper},
    callers::Callers,
    config::{Config, Limits},
    directory::Directory,
    integrity::watch::Integrity,
    k8s::ApiServers,
    keys::{root::RootKeys, worker::Worker},
    listener,
    listener::ServingTls,
    replies::Replies,
    seal,
    seal::Seal,
    secret_cache::SecretCache,
    store::Store,
};

/// How often the server looks whether it can serve.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// How often the server looks whether the root key that it no longer needs could be had.
const ROOT_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// How long the first look at the database may keep the server from accepting connections.
const FIRST_LOOK_MAX: Duration = Duration::from_secs(2);

/// How long calls in work may take once the server is to stop: within the 30 s that Kubernetes gives a pod.
const SHUTDOWN_MAX: Duration = Duration::from_secs(20);

/// What a client may send before the server has taken it in: enough for any request but a large secret, which waits.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
/// The same for all requests on one connection.
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;
/// How long a connection lives. A client opens a new one without losing a call; one that only holds its place loses it.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(30 * 60);
/// The longest request that holds two tokens and 64 paths.
const WORKLOAD_REQUEST_BYTES: usize = 128 * 1024;
/// The longest request that holds a few names.
const SMALL_REQUEST_BYTES: usize = 16 * 1024;
/// The longest request that holds 255 shares.
const SHARES_REQUEST_BYTES: usize = 32 * 1024;

/// A server that has bound its socket.
pub struct Bound {
    broker: Arc<Broker>,
    listener: TcpListener,
    tls: Arc<ServingTls>,
    config: Config,
    api: Api,
}

/// Reads what the configuration names and binds the socket. Neither the database nor the root key need be there yet.
/// With `accept_older` a database is taken that is older than the pin file says.
///
/// # Errors
/// Names the key of the configuration that cannot be used, and why.
pub async fn bind(config: Config, clock: Arc<dyn Clock>, accept_older: bool) -> Result<Bound, String> {
    config.ca.check()?;
    config.audit.check()?;
    if let Some(names) = &config.tls.internal {
        names.subject_alt_names().map_err(|error| error.to_string())?;
    }
    let tls = Arc::new(ServingTls::new(config.tls.clone(), clock.clone())?);
    let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
    let roots = RootKeys::new(&config.root_key, config.previous_root_key.as_ref(), Arc::clone(&entropy))?;
    let store = Store::new(&config.database)?;
    let max_staleness = Duration::from_millis(config.database.max_staleness_millis);
    let seal = Arc::new(Seal::new(roots, config.recovery.key_id));
    let replica = entropy.uuid().map_err(|error| error.to_string())?;
    let integrity =
        Arc::new(Integrity::new(config.integrity.clone(), Arc::clone(&seal), store.marks(), accept_older));
    let secrets = Arc::new(SecretCache::new(config.cache.secret_bytes));
    let broker = Broker {
        directory: Directory::new(store.clone(), Arc::clone(&integrity), max_staleness),
        api_servers: ApiServers::new(config.kubeconfig_dir.clone(), clock.clone(), Default::default()),
        entries: Group::new(
            Entries { store: store.clone(), secrets: Arc::clone(&secrets), clock: clock.clone() },
            config.audit.clone(),
        ),
        puts: Group::new(
            Puts {
                store: store.clone(),
                secrets: Arc::clone(&secrets),
                seal: Arc::clone(&seal),
                clock: clock.clone(),
                entropy: Arc::clone(&entropy),
            },
            config.audit.clone(),
        ),
        secrets,
        store,
        authenticator: Authenticator::new(clock.clone(), config.jwks_dir.clone())
            .map_err(|error| error.to_string())?,
        replica,
        seal,
        integrity,
        clock,
        entropy,
        folding: Default::default(),
        callers: Callers::new(&config.limits),
        drills: Drills::new(&config.recovery, &config.database)?,
        worker: Worker::new(replica, &config.keys),
        authorities: Authorities::new(config.ca.clone()),
        requires_driver_certificate: config.tls.require_driver_certificate,
    };
    let broker = Arc::new(broker);
    let api = Api::new(Arc::clone(&broker), config.bootstrap_token_file.clone(), &config.limits);
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|error| format!("listen {}: {error}", config.listen))?;
    Ok(Bound { broker, listener, tls, config, api })
}

impl Bound {
    /// Where the server listens.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn address(&self) -> Result<SocketAddr, String> {
        self.listener.local_addr().map_err(|error| error.to_string())
    }

    /// What the server does, for tests that call it without a socket.
    pub fn broker(&self) -> Arc<Broker> {
        Arc::clone(&self.broker)
    }

    /// Serves until `shutdown`, then finishes the calls that are in work.
    ///
    /// # Errors
    /// When the transport fails.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), String> {
        let limits = &self.config.limits;
        let (reporter, health) = tonic_health::server::health_reporter();
        // The service says SERVING until it is told otherwise.
        reporter.set_service_status("", ServingStatus::NotServing).await;
        // The first answer should be true; a database that is away must not keep the server from saying so.
        let _ = tokio::time::timeout(FIRST_LOOK_MAX, self.broker.refresh()).await;
        let broker = Arc::clone(&self.broker);
        let follower = tokio::spawn(async move { broker.directory.follow(|| broker.worker.wake()).await });
        let broker = Arc::clone(&self.broker);
        let heart = tokio::spawn(async move { broker.keep_beating().await });
        let broker = Arc::clone(&self.broker);
        let steerer = tokio::spawn(async move { broker.steer_keys().await });
        let broker = Arc::clone(&self.broker);
        let mover = tokio::spawn(async move { broker.move_deks().await });
        let stopping = Arc::clone(&self.broker);
        let broker = Arc::clone(&self.broker);
        let scrubber = tokio::spawn(async move { broker.watch_integrity().await });
        let broker = Arc::clone(&self.broker);
        let sorter = tokio::spawn(async move { broker.keep_paths_sorted().await });
        let refresher = tokio::spawn(refresh_keys(Arc::clone(&self.broker)));
        let (names, tls) = (self.config.tls.internal.clone(), Arc::clone(&self.tls));
        let keeper = tokio::spawn(keeper::keep(Arc::clone(&self.broker), tls, names));
        let root_checker = tokio::spawn(check_root(Arc::clone(&self.broker)));
        let watcher = tokio::spawn(watch(self.broker, reporter));
        let incoming = listener::accept(self.listener, self.tls, limits, shutdown.clone());
        let services =
            services(self.api, limits)?.add_service(health.max_decoding_message_size(SMALL_REQUEST_BYTES));
        let arrivals = Arrivals::default();
        let served = Server::builder()
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .max_concurrent_streams(limits.streams_per_connection)
            .max_connection_age(CONNECTION_AGE_MAX)
            .max_connection_age_grace(SHUTDOWN_MAX)
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .layer(MapRequestLayer::new(move |request| arrivals.bound(request)))
            .layer(Replies::start())
            .add_routes(services)
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
        for task in
            [root_checker, heart, steerer, mover, scrubber, sorter, keeper, watcher, refresher, follower]
        {
            task.abort();
        }
        stopping.say_farewell().await;
        done
    }
}

/// The API, each service with the longest request that it takes, and reflection.
fn services(api: Api, limits: &Limits) -> Result<Routes, String> {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .build_v1()
        .map_err(|error| error.to_string())?;
    let workload = WorkloadServiceServer::new(api.clone());
    let secret = SecretServiceServer::new(api.clone());
    let config = ConfigServiceServer::new(api.clone());
    let key = KeyServiceServer::new(api.clone());
    let audit = AuditServiceServer::new(api.clone());
    let approval = ApprovalServiceServer::new(api.clone());
    let certificate = CertificateServiceServer::new(api.clone());
    let policy = PolicyServiceServer::new(api.clone());
    let root = RootServiceServer::new(api.clone());
    let system = SystemServiceServer::new(api);
    Ok(Routes::new(reflection.max_decoding_message_size(SMALL_REQUEST_BYTES))
        .add_service(workload.max_decoding_message_size(WORKLOAD_REQUEST_BYTES))
        .add_service(secret.max_decoding_message_size(limits.request_bytes))
        .add_service(config.max_decoding_message_size(limits.request_bytes))
        .add_service(key.max_decoding_message_size(SMALL_REQUEST_BYTES))
        .add_service(approval.max_decoding_message_size(SMALL_REQUEST_BYTES))
        .add_service(certificate.max_decoding_message_size(SMALL_REQUEST_BYTES))
        .add_service(audit.max_decoding_message_size(SMALL_REQUEST_BYTES))
        .add_service(policy.max_decoding_message_size(SMALL_REQUEST_BYTES))
        .add_service(root.max_decoding_message_size(SHARES_REQUEST_BYTES))
        .add_service(system.max_decoding_message_size(SMALL_REQUEST_BYTES)))
}

/// Keeps the keys of all issuers fresh, so that calls do not wait for an issuer.
async fn refresh_keys(broker: Arc<Broker>) {
    loop {
        if let Ok(declared) = broker.directory.current().await {
            broker.authenticator.refresh_keys(&declared.issuers);
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// Looks from time to time whether the root key could be had again: nothing needs it until the next start.
async fn check_root(broker: Arc<Broker>) {
    loop {
        broker.seal.check_root(&broker.store).await;
        tokio::time::sleep(ROOT_CHECK_INTERVAL).await;
    }
}

/// Unseals as soon as that is possible, keeps the health service's answer true, and writes down folded refusals.
async fn watch(broker: Arc<Broker>, reporter: HealthReporter) {
    let mut told: Option<String> = None;
    loop {
        let status = match broker.refresh().await {
            seal::State::Serving(_) => "serving".to_owned(),
            seal::State::Uninitialized => "not initialised: run keyfold init".to_owned(),
            seal::State::Sealed(why) => why,
        };
        if told.as_ref() != Some(&status) {
            let serving =
                if status == "serving" { ServingStatus::Serving } else { ServingStatus::NotServing };
            reporter.set_service_status("", serving).await;
            tracing::info!(state = %status, "state");
            told = Some(status);
        }
        if let Err(error) = broker.append_integrity_failures().await {
            tracing::warn!(%error, "a failure of integrity could not be written into the audit log");
        }
        if let Err(error) = broker.append_folded().await {
            tracing::warn!(%error, "folded refusals could not be written");
        }
        broker.seal.next_look(WATCH_INTERVAL).await;
    }
}
