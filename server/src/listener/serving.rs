//! What new connections are served and whom they may come from, which changes while the server runs. Connections that
//! are open stay as they are.

use std::{
    fmt, fs,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use keyfold_core::clock::Clock;
use ring::digest::{SHA256, digest};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
    time_provider::TimeProvider,
};

use crate::{ca::ServerCertificate, config};

/// How the next connection is accepted.
#[derive(Clone)]
pub struct Serving {
    /// For its handshake.
    pub config: Arc<ServerConfig>,
    /// Whether its client is asked for a certificate.
    pub asks_for_certificate: bool,
}

/// The present way, and what it is made of.
pub struct ServingTls {
    provider: Arc<CryptoProvider>,
    time: Arc<ClockTime>,
    files: config::Tls,
    parts: Mutex<Parts>,
    serving: RwLock<Serving>,
}

struct Parts {
    from_files: Arc<CertifiedKey>,
    /// Of the files' content when they were last read, usable or not.
    files_digest: Vec<u8>,
    internal: Option<Arc<ServerCertificate>>,
    authorities: Vec<CertificateDer<'static>>,
}

impl ServingTls {
    /// Serves what the files hold, and asks no client for a certificate.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn new(files: config::Tls, clock: Arc<dyn Clock>) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let read = Files::read(&files)?;
        let parts = Parts {
            from_files: Arc::new(read.parse(&files, &provider)?),
            files_digest: read.digest(),
            internal: None,
            authorities: Vec::new(),
        };
        let time = Arc::new(ClockTime(clock));
        let serving = RwLock::new(parts.serving(&provider, &time)?);
        Ok(Self { provider, time, files, parts: Mutex::new(parts), serving })
    }

    /// For the next connection.
    pub fn now(&self) -> Serving {
        self.serving.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files again, and serves what they hold if it is another pair that fits. Says whether it did.
    ///
    /// # Errors
    /// Once for each content that cannot be used: what is wrong with it. What was served goes on being served.
    pub fn read_files(&self) -> Result<bool, String> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let read = match Files::read(&self.files) {
            Ok(read) => read,
            // Said before.
            Err(_) if parts.files_digest.is_empty() => return Ok(false),
            Err(why) => {
                parts.files_digest.clear();
                return Err(why);
            }
        };
        let digest = read.digest();
        if digest == parts.files_digest {
            return Ok(false);
        }
        parts.files_digest = digest;
        parts.from_files = Arc::new(read.parse(&self.files, &self.provider)?);
        self.swap(&parts)?;
        Ok(true)
    }

    /// Serves this certificate of the internal authority, or that of the files to all.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn serve(&self, internal: Option<Arc<ServerCertificate>>) -> Result<(), String> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.internal = internal;
        self.swap(&parts)
    }

    /// Takes clients' certificates that these authorities have signed. Without any, none is asked for.
    ///
    /// # Errors
    /// When one is no authority's.
    pub fn trust(&self, authorities: Vec<CertificateDer<'static>>) -> Result<(), String> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if parts.authorities == authorities {
            return Ok(());
        }
        parts.authorities = authorities;
        self.swap(&parts)
    }

    fn swap(&self, parts: &Parts) -> Result<(), String> {
        let serving = parts.serving(&self.provider, &self.time)?;
        *self.serving.write().unwrap_or_else(PoisonError::into_inner) = serving;
        Ok(())
    }
}

impl Parts {
    fn serving(&self, provider: &Arc<CryptoProvider>, time: &Arc<ClockTime>) -> Result<Serving, String> {
        let time = Arc::clone(time) as Arc<dyn TimeProvider>;
        let builder = ServerConfig::builder_with_details(Arc::clone(provider), time)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| error.to_string())?;
        let builder = if self.authorities.is_empty() {
            builder.with_no_client_auth()
        } else {
            let mut roots = RootCertStore::empty();
            for authority in &self.authorities {
                roots.add(authority.clone()).map_err(|error| error.to_string())?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(provider))
                .allow_unauthenticated()
                .build()
                .map_err(|error| error.to_string())?;
            builder.with_client_cert_verifier(verifier)
        };
        let resolver = Resolver { from_files: Arc::clone(&self.from_files), internal: self.internal.clone() };
        let mut config = builder.with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A session that is resumed would bring a certificate that was verified once, and may be out of date.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Serving { config: Arc::new(config), asks_for_certificate: !self.authorities.is_empty() })
    }
}

/// The files' content. The key is wiped by the allocator once it is dropped.
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Files {
    fn read(files: &config::Tls) -> Result<Self, String> {
        let read = |name: &str, file: &std::path::Path| {
            fs::read(file).map_err(|error| format!("tls.{name} {}: {error}", file.display()))
        };
        let certificate = read("certificate_file", &files.certificate_file)?;
        Ok(Self { certificate, key: read("key_file", &files.key_file)? })
    }

    fn digest(&self) -> Vec<u8> {
        let digest_of = |bytes: &[u8]| digest(&SHA256, bytes).as_ref().to_vec();
        [digest_of(&self.certificate), digest_of(&self.key)].concat()
    }

    fn parse(&self, files: &config::Tls, provider: &CryptoProvider) -> Result<CertifiedKey, String> {
        let chain = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| format!("tls.certificate_file {} is not PEM", files.certificate_file.display()))?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| {
            format!("tls.key_file {} holds no readable private key in PEM", files.key_file.display())
        })?;
        CertifiedKey::from_der(chain, key, provider)
            .map_err(|error| format!("tls: certificate and key do not fit: {error}"))
    }
}

/// Which certificate a client gets.
struct Resolver {
    from_files: Arc<CertifiedKey>,
    internal: Option<Arc<ServerCertificate>>,
}

impl ResolvesServerCert for Resolver {
    /// Clients of Keyfold's own say which authorities they trust (RFC 8446, section 4.2.4), so that one that was not
    /// yet told of the internal authority gets the files' certificate. Others get the internal one.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let internal = self.internal.as_ref().filter(|internal| {
            let trusted = hello.certificate_authorities();
            trusted.is_none_or(|names| names.iter().any(|name| name.as_ref() == internal.authority_name))
        });
        Some(Arc::clone(internal.map_or(&self.from_files, |internal| &internal.certified)))
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

/// The server's clock as rustls asks it, for the lifetimes of clients' certificates.
struct ClockTime(Arc<dyn Clock>);

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        let secs = u64::try_from(self.0.now().unix_timestamp()).ok()?;
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(secs)))
    }
}

impl fmt::Debug for ClockTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClockTime")
    }
}
