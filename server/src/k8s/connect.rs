//! The way to an API server: what a kubeconfig file or the pod's own service account says, and no more.
//!
//! The client is `kube`'s, its TLS ours: TLS 1.3 on ring, to an authority that the kubeconfig names (else those of the
//! system), without a proxy, and without following redirects, so that credentials and tokens go nowhere else.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    sync::Arc,
    time::Duration,
};

use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::{client::legacy, rt::TokioExecutor};
use keyfold_core::object::ApiServerRef;
use kube::{
    Client, Config,
    client::ConfigExt as _,
    config::{AuthInfo, Cluster, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::runtime::Handle;
use tower::{BoxError, ServiceBuilder, timeout::TimeoutLayer, util::BoxCloneSyncService};

use super::failure::Failure;

/// A kubeconfig of one cluster has some 10 KiB.
const KUBECONFIG_MAX_BYTES: u64 = 1024 * 1024;

/// A client for the API server that `place` names. Asks nothing yet. `timeout` bounds TCP and TLS handshakes. Blocks,
/// since it reads files: for a thread that may, of a runtime.
///
/// # Errors
/// When there is no such kubeconfig, it asks for something that a server must not do, or it cannot be used.
pub(super) fn client(
    place: &ApiServerRef,
    kubeconfig_dir: Option<&Path>,
    timeout: Duration,
) -> Result<Client, Failure> {
    let config = match place {
        ApiServerRef::InCluster => Config::incluster().map_err(|error| {
            Failure::new(format!("the server's own service account in this cluster cannot be used: {error}"))
        })?,
        ApiServerRef::Kubeconfig(name) => {
            let dir = kubeconfig_dir.ok_or_else(|| {
                Failure::new(
                    "apiServer.kubeconfig is set, and the server's configuration has no kubeconfig_dir",
                )
            })?;
            kubeconfig(&dir.join(name))?
        }
    };
    build(config, timeout)
}

/// What the file's current context says. Its name is a plain one (the issuer object was checked); it may be a symbolic
/// link, as in Kubernetes' mounts.
fn kubeconfig(path: &Path) -> Result<Config, Failure> {
    let failed = |reason: &dyn std::fmt::Display| Failure::new(format!("{}: {reason}", path.display()));
    let text = read(path).map_err(|error| failed(&error))?;
    let mut kubeconfig = Kubeconfig::from_yaml(&text).map_err(|error| match error {
        // The parser's own words quote the file, which holds credentials.
        KubeconfigError::Parse(error) => match error.location() {
            Some(place) => {
                failed(&format!("not a kubeconfig: see line {}, column {}", place.line(), place.column()))
            }
            None => failed(&"not a kubeconfig"),
        },
        error => failed(&error),
    })?;
    check(&kubeconfig).map_err(|reason| failed(&reason))?;
    if let Some(dir) = path.parent() {
        name_from(dir, &mut kubeconfig);
    }
    // Async by its signature alone: it waits for nothing.
    let options = KubeConfigOptions::default();
    Handle::current()
        .block_on(Config::from_custom_kubeconfig(kubeconfig, &options))
        .map_err(|error| failed(&error))
}

/// The whole file. It is looked at before it is opened, which a pipe would make wait for a writer.
fn read(path: &Path) -> io::Result<String> {
    let unfit = || io::Error::other(format!("not a file of at most {KUBECONFIG_MAX_BYTES} bytes"));
    if !path.metadata()?.is_file() {
        return Err(unfit());
    }
    read_bounded(File::open(path)?)?.ok_or_else(unfit)
}

/// Everything, `None` when it is more than a kubeconfig has. What a file says of its size need not be what it gives.
fn read_bounded(file: impl Read) -> io::Result<Option<String>> {
    let mut text = String::new();
    let length = file.take(KUBECONFIG_MAX_BYTES + 1).read_to_string(&mut text)?;
    Ok((length as u64 <= KUBECONFIG_MAX_BYTES).then_some(text))
}

/// Relative names are those of files beside the kubeconfig, as for kubectl.
fn name_from(dir: &Path, kubeconfig: &mut Kubeconfig) {
    let clusters = kubeconfig.clusters.iter_mut().filter_map(|named| named.cluster.as_mut());
    let users = kubeconfig.auth_infos.iter_mut().filter_map(|named| named.auth_info.as_mut());
    let of_users =
        users.flat_map(|user| [&mut user.client_certificate, &mut user.client_key, &mut user.token_file]);
    let of_clusters = clusters.map(|cluster| &mut cluster.certificate_authority);
    for name in of_clusters.chain(of_users).flatten() {
        if let Some(absolute) = dir.join(&*name).to_str() {
            *name = absolute.to_owned();
        }
    }
}

/// Whoever writes a kubeconfig must not make the server run programs, or send its credentials and callers' tokens to
/// somebody whom nothing proves. All entries count, also those of other contexts.
fn check(kubeconfig: &Kubeconfig) -> Result<(), String> {
    for user in &kubeconfig.auth_infos {
        if let Some(refused) = user.auth_info.as_ref().and_then(refused_user) {
            return Err(format!("user {:?} {refused}", user.name));
        }
    }
    for cluster in &kubeconfig.clusters {
        if let Some(refused) = cluster.cluster.as_ref().and_then(refused_cluster) {
            return Err(format!("cluster {:?} {refused}", cluster.name));
        }
    }
    Ok(())
}

fn refused_user(user: &AuthInfo) -> Option<&'static str> {
    if user.exec.is_some() {
        Some(
            "gets its credentials from a program (exec), and a server runs none: use tokenFile or a certificate",
        )
    } else if user.auth_provider.is_some() {
        Some("uses an auth-provider, which may run programs: use tokenFile or a client certificate")
    } else {
        None
    }
}

fn refused_cluster(cluster: &Cluster) -> Option<&'static str> {
    if cluster.insecure_skip_tls_verify == Some(true) {
        Some("has insecure-skip-tls-verify: name its certificate-authority instead")
    } else if cluster.proxy_url.is_some() {
        Some("has a proxy-url, and the server uses no proxy")
    } else if !cluster.server.as_deref().is_some_and(|url| url.starts_with("https://")) {
        Some("has a server that does not begin with https://")
    } else {
        None
    }
}

fn build(mut config: Config, timeout: Duration) -> Result<Client, Failure> {
    let https = HttpsConnectorBuilder::new().with_tls_config(tls(&mut config)?).https_only();
    let https = match config.tls_server_name.clone().map(ServerName::try_from) {
        None => https.enable_http1().build(),
        Some(Ok(name)) => {
            https.with_server_name_resolver(FixedServerNameResolver::new(name)).enable_http1().build()
        }
        Some(Err(error)) => return Err(Failure::caused("tls-server-name", &error)),
    };
    // Without a bound a handshake that nobody waits for any more would stay forever.
    let connector = ServiceBuilder::new()
        .layer_fn(BoxCloneSyncService::new)
        .layer(TimeoutLayer::new(timeout))
        .service(https);
    let unusable = |error: kube::Error| Failure::new(format!("its credentials cannot be used: {error}"));
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(unusable)?)
        .layer(config.extra_headers_layer().map_err(unusable)?)
        .map_err(BoxError::from)
        .service(legacy::Client::builder(TokioExecutor::new()).build(connector));
    Ok(Client::new(service, config.default_namespace))
}

/// `kube` would also take TLS 1.2, and takes the client's certificate out of the kubeconfig for us.
fn tls(config: &mut Config) -> Result<ClientConfig, Failure> {
    let mut roots = RootCertStore::empty();
    match &config.root_cert {
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        Some(certificates) => {
            for certificate in certificates {
                roots
                    .add(certificate.clone().into())
                    .map_err(|error| Failure::caused("its certificate-authority cannot be read", &error))?;
            }
        }
    }
    if roots.is_empty() {
        return Err(Failure::new("there is no authority to trust: its certificate-authority is empty"));
    }
    // Read again with the client, not by the client.
    config.root_cert_file = None;
    let client_certificate = config
        .rustls_client_config()
        .map_err(|error| Failure::new(format!("its client certificate cannot be used: {error}")))?
        .client_auth_cert_resolver;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| Failure::caused("TLS 1.3 cannot be set up", &error))?
        .with_root_certificates(roots)
        .with_client_cert_resolver(client_certificate))
}

#[cfg(test)]
mod tests;
