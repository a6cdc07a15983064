//! The connection to the server. Whom it trusts and what it shows change while the driver runs: then the next calls go
//! over a new one, and those in work end on the one that they began on.

use std::{
    fs, io,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use keyfold_core::{
    clock::{Clock as _, SystemClock},
    entropy::{Entropy as _, SystemEntropy},
};
use keyfold_proto::channel::{ChannelError, connect_lazy, connect_lazy_as};
use tokio::{sync::Mutex, time::Instant};
use tonic::{Status, transport::Channel};

use crate::{
    certificate::{self, Certificate, CertificateError},
    config::{ClientCertificate, Config},
};

/// How often the driver looks whether something has changed.
const INTERVAL: Duration = Duration::from_secs(1);
/// Least time between two connections to a server that says that it is away, and between two requests for a certificate.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// The same between requests that were refused: somebody must change something first.
const REFUSED_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// How long calls may be lost before the driver doubts that the server still takes its certificate: longer than a server
/// takes to start again. A random part of it comes on top, so that not all drivers ask at once.
const DOUBT_AFTER: Duration = Duration::from_secs(10);

/// Why there is no connection. No network is touched until the first call.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The file with the server's authorities cannot be read.
    #[error("server.ca_file: cannot read {0:?}: {1}")]
    CaFile(PathBuf, #[source] io::Error),
    /// The server's address or authorities cannot be used.
    #[error("server: {0}")]
    Channel(#[from] ChannelError),
}

/// What came of a call, as far as the connection is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// The server's answer, whatever it was.
    Answer,
    /// That the server cannot serve now.
    Away,
    /// Nothing: the connection was lost, or there was none.
    Nothing,
}

/// Which connection a call went over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made(u64);

/// The connection to the server, made anew as often as needed.
pub struct Connection {
    url: String,
    ca_file: PathBuf,
    token_file: PathBuf,
    shows: ClientCertificate,
    state: RwLock<State>,
    /// The last request for a certificate. One at a time: all who wait for one have what it brought.
    asked: Mutex<Option<Asked>>,
}

/// A request for a certificate that brought none.
struct Asked {
    /// When there may be another.
    again_at: Instant,
    /// That the server is away; else it refused.
    away: Option<Status>,
}

struct State {
    channel: Channel,
    made: Made,
    made_at: Instant,
    /// The file's content that is in use.
    ca_pem: Vec<u8>,
    /// The file's content that was seen last, usable or not.
    seen_ca_pem: Vec<u8>,
    /// The internal authorities, as the server last told.
    bundle: String,
    certificate: Option<Certificate>,
    /// Since when calls have been lost.
    lost_since: Option<Instant>,
}

impl Connection {
    /// Nothing is connected until the first call.
    ///
    /// # Errors
    /// When the configured authorities or the server's address cannot be used.
    pub fn new(config: &Config) -> Result<Self, ConnectionError> {
        let (server, token_file) = (config.server.clone(), config.token_file.clone());
        let ca_pem = fs::read(&server.ca_file)
            .map_err(|error| ConnectionError::CaFile(server.ca_file.clone(), error))?;
        let state = State::new(connect_lazy(&server.url, &ca_pem)?, ca_pem);
        Ok(Self {
            url: server.url,
            ca_file: server.ca_file,
            token_file,
            shows: server.certificate,
            state: RwLock::new(state),
            asked: Mutex::default(),
        })
    }

    /// Over a channel that never changes.
    #[cfg(test)]
    pub(crate) fn over(channel: Channel) -> Self {
        Self {
            url: String::new(),
            ca_file: PathBuf::new(),
            token_file: PathBuf::new(),
            shows: ClientCertificate::None,
            state: RwLock::new(State::new(channel, Vec::new())),
            asked: Mutex::default(),
        }
    }

    /// For the next call. Where a certificate is to be shown and there is none, asks for one first; if that is refused,
    /// the call shows none, and the server says whether it needs it.
    ///
    /// # Errors
    /// When the server is away.
    pub async fn channel(&self) -> Result<(Channel, Made), Status> {
        if self.shows == ClientCertificate::Internal {
            self.renew(|state| state.certificate.is_none()).await?;
        }
        Ok(self.read(|state| (state.channel.clone(), state.made)))
    }

    /// Takes note of what came of a call.
    pub fn heard(&self, made: Made, heard: Heard) {
        if heard == Heard::Answer && self.read(|state| state.lost_since.is_none()) {
            return;
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        match heard {
            Heard::Answer => state.lost_since = None,
            Heard::Nothing => drop(state.lost_since.get_or_insert_with(Instant::now)),
            // Another connection may lead to another replica; and one that was opened while the server was sealed shows
            // no certificate.
            Heard::Away if state.made == made && state.made_at.elapsed() >= AGAIN_AFTER => {
                state.lost_since = None;
                self.connect(&mut state);
            }
            Heard::Away => state.lost_since = None,
        }
    }

    /// Keeps it up to date. Never ends.
    pub async fn keep(self: Arc<Self>) {
        let doubt_after = DOUBT_AFTER + random_part(DOUBT_AFTER);
        loop {
            self.read_ca_file();
            if self.shows == ClientCertificate::Internal {
                self.drop_expired();
                // Said in the log, and tried again.
                let _ = self.renew(|state| state.is_renewal_due(doubt_after)).await;
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Asks for a certificate if one is still wanted once nobody else asks. Fails when the server is away.
    async fn renew(&self, is_wanted: impl Fn(&State) -> bool) -> Result<(), Status> {
        if !self.read(&is_wanted) {
            return Ok(());
        }
        let mut asked = self.asked.lock().await;
        if !self.read(&is_wanted) {
            return Ok(());
        }
        if let Some(before) = asked.as_ref().filter(|before| before.again_at > Instant::now()) {
            return before.away.clone().map_or(Ok(()), Err);
        }
        match self.ask().await {
            Ok(certificate) => {
                *asked = None;
                self.show(certificate);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "the driver has no new certificate");
                let away = error.away();
                let pause = if away.is_some() { AGAIN_AFTER } else { REFUSED_AGAIN_AFTER };
                *asked = Some(Asked { again_at: Instant::now() + pause, away: away.clone() });
                away.map_or(Ok(()), Err)
            }
        }
    }

    fn show(&self, certificate: Certificate) {
        tracing::info!(expires_at = %certificate.expires_at, "the driver has a new certificate");
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.bundle.clone_from(&certificate.bundle);
        state.certificate = Some(certificate);
        state.lost_since = None;
        self.connect(&mut state);
    }

    /// On a connection of its own, which shows none: a certificate that is no longer taken keeps none from being had.
    async fn ask(&self) -> Result<Certificate, CertificateError> {
        let channel =
            connect_lazy(&self.url, &self.read(State::trusted)).map_err(CertificateError::Channel)?;
        certificate::ask(channel, &self.token_file, SystemClock.now()).await
    }

    fn drop_expired(&self) {
        let now = SystemClock.now();
        let is_expired = |state: &State| state.certificate.as_ref().is_some_and(|c| c.expires_at <= now);
        if self.read(is_expired) {
            tracing::error!("the driver's certificate has expired, and no new one could be had");
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            state.certificate = None;
            self.connect(&mut state);
        }
    }

    /// A file that cannot be used is told of once, and what it held before is used.
    fn read_ca_file(&self) {
        let Ok(found) = fs::read(&self.ca_file) else { return };
        if self.read(|state| state.seen_ca_pem == found) {
            return;
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.seen_ca_pem.clone_from(&found);
        // Alone, so that a file without any authority is not taken.
        match connect_lazy(&self.url, &found) {
            Ok(_) => {
                tracing::info!("server.ca_file was read anew");
                state.ca_pem = found;
                self.connect(&mut state);
            }
            Err(error) => {
                tracing::error!(%error, "server.ca_file cannot be used: what it held before is used")
            }
        }
    }

    /// Calls go over a new connection from now on.
    fn connect(&self, state: &mut State) {
        let identity = state.certificate.as_ref().map(|certificate| &certificate.identity);
        match connect_lazy_as(&self.url, &state.trusted(), identity) {
            Ok(channel) => {
                (state.channel, state.made_at) = (channel, Instant::now());
                state.made = Made(state.made.0 + 1);
            }
            Err(error) => tracing::error!(%error, "no new connection can be made: the one before is used"),
        }
    }

    fn read<T>(&self, look: impl Fn(&State) -> T) -> T {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    fn new(channel: Channel, ca_pem: Vec<u8>) -> Self {
        Self {
            channel,
            made: Made(0),
            made_at: Instant::now(),
            seen_ca_pem: ca_pem.clone(),
            ca_pem,
            bundle: String::new(),
            certificate: None,
            lost_since: None,
        }
    }

    /// In PEM: what the file holds, and what the server told.
    fn trusted(&self) -> Vec<u8> {
        [&self.ca_pem, b"\n".as_slice(), self.bundle.as_bytes()].concat()
    }

    fn is_renewal_due(&self, doubt_after: Duration) -> bool {
        let is_doubted = self.lost_since.is_some_and(|since| since.elapsed() >= doubt_after);
        self.certificate
            .as_ref()
            .is_none_or(|certificate| certificate.renew_at <= SystemClock.now() || is_doubted)
    }
}

/// A random part of `whole`. Without randomness none is right as well.
fn random_part(whole: Duration) -> Duration {
    let mut random = [0; 4];
    match SystemEntropy.fill(&mut random) {
        Ok(()) => whole.mul_f64(f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX)),
        Err(_) => Duration::ZERO,
    }
}
