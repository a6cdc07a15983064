//! The development issuer: OIDC discovery and JWKS over HTTPS, answering as a Kubernetes API server does.

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::CONTENT_TYPE,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde::Serialize;
use serde_json::Value;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

use super::pki::{Authority, LOOPBACK};
use crate::exit::{Exit, Failure};

/// A running issuer on a port of its own on 127.0.0.1. It ends when dropped.
pub struct Issuer {
    address: SocketAddr,
    tls: TlsAcceptor,
    published: Arc<Published>,
    serving: Option<JoinHandle<()>>,
}

/// What the issuer publishes.
struct Published {
    url: String,
    keys: Mutex<Vec<Value>>,
}

impl Issuer {
    /// Starts an issuer that publishes `keys` (entries of a JWKS), with a certificate of `authority`.
    ///
    /// # Errors
    /// When no port can be opened.
    pub async fn start(authority: &Authority, keys: Vec<Value>) -> Result<Self, Failure> {
        let tls = TlsAcceptor::from(Arc::new(server_config(authority)?));
        let listener = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;
        let address = listener.local_addr().map_err(cannot_listen)?;
        let published = Arc::new(Published { url: format!("https://{address}"), keys: Mutex::new(keys) });
        let mut issuer = Self { address, tls, published, serving: None };
        issuer.serve(listener);
        Ok(issuer)
    }

    /// The issuer's URL, as `iss` carries it: `https://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        &self.published.url
    }

    /// Replaces the published keys, as an issuer that rotates does.
    pub fn publish(&self, keys: Vec<Value>) {
        *self.published.keys.lock().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// Stops to listen and drops every connection: an outage. The port stays this issuer's for `resume`.
    pub fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
    }

    /// Serves again, on the same port, after `stop`.
    ///
    /// # Errors
    /// When another process took the port meanwhile.
    pub async fn resume(&mut self) -> Result<(), Failure> {
        if self.serving.is_none() {
            let listener = listen(self.address).await?;
            self.serve(listener);
        }
        Ok(())
    }

    fn serve(&mut self, listener: TcpListener) {
        let (tls, published) = (self.tls.clone(), Arc::clone(&self.published));
        self.serving = Some(tokio::spawn(async move {
            // Connections end with this task, because the set aborts them when dropped.
            let mut connections = JoinSet::new();
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    connections.spawn(serve_connection(stream, tls.clone(), Arc::clone(&published)));
                }
                while connections.try_join_next().is_some() {}
            }
        }));
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn serve_connection(stream: TcpStream, tls: TlsAcceptor, published: Arc<Published>) {
    let answer = |request| {
        let response = answer(&request, &published);
        async move { Ok::<_, Infallible>(response) }
    };
    // A client that does not trust the certificate, or goes away, is the client's affair.
    if let Ok(stream) = tls.accept(stream).await {
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await;
    }
}

fn answer(request: &Request<Incoming>, published: &Published) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/.well-known/openid-configuration") => {
            json_response("application/json", &Discovery::new(&published.url))
        }
        (&Method::GET, "/openid/v1/jwks") => {
            let keys = published.keys.lock().unwrap_or_else(PoisonError::into_inner);
            json_response("application/jwk-set+json", &Jwks { keys: &keys })
        }
        _ => status(StatusCode::NOT_FOUND),
    }
}

#[derive(Serialize)]
struct Discovery<'a> {
    issuer: &'a str,
    jwks_uri: String,
    response_types_supported: [&'static str; 1],
    subject_types_supported: [&'static str; 1],
    id_token_signing_alg_values_supported: [&'static str; 1],
}

impl<'a> Discovery<'a> {
    fn new(issuer: &'a str) -> Self {
        Self {
            issuer,
            jwks_uri: format!("{issuer}/openid/v1/jwks"),
            response_types_supported: ["id_token"],
            subject_types_supported: ["public"],
            id_token_signing_alg_values_supported: ["RS256"],
        }
    }
}

#[derive(Serialize)]
struct Jwks<'a> {
    keys: &'a [Value],
}

fn json_response(content_type: &'static str, document: &impl Serialize) -> Response<Full<Bytes>> {
    let Ok(body) = serde_json::to_vec(document) else { return status(StatusCode::INTERNAL_SERVER_ERROR) };
    let mut response = Response::new(Full::from(body));
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    response
}

fn status(code: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = code;
    response
}

fn server_config(authority: &Authority) -> Result<ServerConfig, Failure> {
    let serving = authority.serving(&LOOPBACK)?;
    let unusable = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Internal, "cannot use the issuer's certificate", error.to_string())
    };
    let certificate = CertificateDer::from_pem_slice(serving.certificate_pem.as_bytes())
        .map_err(|error| unusable(&error))?;
    let key = PrivateKeyDer::from_pem_slice(serving.key_pem.as_bytes()).map_err(|error| unusable(&error))?;
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![certificate], key))
        .map_err(|error| unusable(&error))
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(cannot_listen)
}

fn cannot_listen(error: io::Error) -> Failure {
    Failure::io("cannot open a port for the development issuer", &error)
}

#[cfg(test)]
mod tests;
