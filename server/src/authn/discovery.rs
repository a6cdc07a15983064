//! An issuer's keys over the network: OpenID Connect Discovery 1.0, section 4, as Kubernetes' API servers serve it.
//!
//! The addresses come from an operator's issuer object and from the issuer itself, so the request can do little:
//! TLS 1.3 to an authority that the issuer object trusts, GET without credentials, no redirect, no proxy, a limit on
//! bytes and on time, and nothing of an answer ever reaches a caller.

use std::{sync::Arc, time::Duration};

use keyfold_core::object::Discovery;
use reqwest::{Client, StatusCode, Url, redirect};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use serde::Deserialize;

use super::{
    KeysError,
    jwks::{DOCUMENT_MAX_BYTES, KeySet},
};

/// Fetches the keys of the issuer with this URL, all within `timeout`.
///
/// # Errors
/// With a short reason for the log: unreachable, untrusted, too slow, too big, or not what the standard says.
pub(super) async fn fetch(
    issuer_url: &str,
    discovery: &Discovery,
    timeout: Duration,
) -> Result<KeySet, KeysError> {
    let fetching = async {
        let client = client(discovery)?;
        let base = discovery.url.as_deref().unwrap_or(issuer_url).trim_end_matches('/');
        let document = download(&client, &format!("{base}/.well-known/openid-configuration")).await?;
        let document: Document = serde_json::from_slice(&document)
            .map_err(|_| KeysError::new("the discovery document lacks `issuer` or `jwks_uri`"))?;
        if document.issuer != issuer_url {
            return Err(KeysError::new(format!(
                "the discovery document is that of another issuer, {:.200?}",
                document.issuer
            )));
        }
        KeySet::parse(&download(&client, &document.jwks_uri).await?)
    };
    tokio::time::timeout(timeout, fetching)
        .await
        .unwrap_or_else(|_| Err(KeysError::new(format!("no whole answer within {timeout:?}"))))
}

#[derive(Deserialize)]
struct Document {
    issuer: String,
    jwks_uri: String,
}

async fn download(client: &Client, url: &str) -> Result<Vec<u8>, KeysError> {
    let url = https_url(url)?;
    let mut response = client.get(url.clone()).send().await.map_err(|error| unreachable(&url, &error))?;
    if response.status() != StatusCode::OK {
        return Err(KeysError::new(format!("{url} answered {}", response.status())));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(&url, &error))? {
        if body.len() + chunk.len() > DOCUMENT_MAX_BYTES {
            return Err(KeysError::new(format!("{url} answered with more than {DOCUMENT_MAX_BYTES} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// A URL's user and password would be sent as credentials, so there may be none.
fn https_url(url: &str) -> Result<Url, KeysError> {
    match Url::parse(url) {
        Ok(url) if url.scheme() == "https" && url.username().is_empty() && url.password().is_none() => {
            Ok(url)
        }
        _ => Err(KeysError::new(format!("{url:.200?} is not a plain https:// address"))),
    }
}

/// The innermost cause says what went wrong; the layers above it only say that something did.
fn unreachable(url: &Url, error: &reqwest::Error) -> KeysError {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    KeysError::new(format!("{url} cannot be read: {cause}"))
}

fn client(discovery: &Discovery) -> Result<Client, KeysError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| KeysError::new(format!("TLS 1.3 cannot be set up: {error}")))?
        .with_root_certificates(roots(discovery.ca_bundle.as_deref())?)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(true)
        .redirect(redirect::Policy::none())
        .no_proxy()
        .build()
        .map_err(|error| KeysError::new(format!("HTTPS cannot be set up: {error}")))
}

/// The authorities of the issuer's CA bundle alone, or those of the system if it has none.
fn roots(ca_bundle: Option<&str>) -> Result<RootCertStore, KeysError> {
    let mut roots = RootCertStore::empty();
    let Some(pem) = ca_bundle else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let added = certificate.map(|der| roots.add(der));
        if !matches!(added, Ok(Ok(()))) {
            return Err(KeysError::new("keys.discovery.caBundle holds a certificate that cannot be read"));
        }
    }
    if roots.is_empty() {
        return Err(KeysError::new("keys.discovery.caBundle holds no certificate"));
    }
    Ok(roots)
}

#[cfg(test)]
mod tests;
