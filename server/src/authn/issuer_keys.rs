//! The keys of one issuer object: fetched when first needed, again for an unknown `kid`, and kept when the issuer
//! cannot be reached.

use std::{path::PathBuf, sync::Arc, time::Duration};

use keyfold_core::{clock::Clock, object::KeySource};
use time::OffsetDateTime;
use tokio::{
    io::AsyncReadExt as _,
    sync::{Mutex, watch},
};

use super::{
    IssuerRecord, KeysError, discovery,
    jwks::{DOCUMENT_MAX_BYTES, KeySet},
};

/// How keys are obtained, the same for all issuers.
pub(super) struct KeyReader {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) jwks_dir: Option<PathBuf>,
    pub(super) timeout: Duration,
}

/// The keys of one issuer object, in one of its generations.
pub(super) struct IssuerKeys {
    pub(super) record: IssuerRecord,
    reader: Arc<KeyReader>,
    current: watch::Sender<Option<Loaded>>,
    /// When the keys were last asked for. Held while asking, so that one request serves all who wait.
    attempted_at: Mutex<Option<OffsetDateTime>>,
}

#[derive(Clone)]
struct Loaded {
    keys: Arc<KeySet>,
    at: OffsetDateTime,
}

impl IssuerKeys {
    pub(super) fn new(record: IssuerRecord, reader: Arc<KeyReader>) -> Self {
        Self { record, reader, current: watch::Sender::new(None), attempted_at: Mutex::new(None) }
    }

    /// The keys, if any were ever read. Those that lack `key_id` only after a new attempt, which is made at most once
    /// in [`Self::attempt_interval`] whatever callers send.
    pub(super) async fn having(self: &Arc<Self>, key_id: &str) -> Option<Arc<KeySet>> {
        match self.loaded() {
            Some(loaded) if loaded.keys.contains(key_id) => {
                if self.elapsed_since(loaded.at) >= self.refresh_interval() {
                    self.refresh_before_or_beside_the_request().await;
                }
            }
            _ => self.refreshed().await,
        }
        self.loaded().map(|loaded| loaded.keys)
    }

    /// A local file costs nothing, so a key removed from it counts at once. An issuer may be slow or away: its keys
    /// are renewed beside the request, which goes on with those at hand.
    async fn refresh_before_or_beside_the_request(self: &Arc<Self>) {
        match self.record.spec.keys {
            KeySource::File(_) => self.refreshed().await,
            KeySource::Discovery(_) if self.attempted_at.try_lock().is_err() => {}
            KeySource::Discovery(_) => drop(tokio::spawn(Arc::clone(self).refresh())),
        }
    }

    /// In a task of its own, so that a caller who goes away does not end what others wait for.
    async fn refreshed(self: &Arc<Self>) {
        let issuer = &self.record.name;
        if let Err(error) = tokio::spawn(Arc::clone(self).refresh()).await {
            tracing::error!(%issuer, %error, "reading an issuer's keys stopped short");
        }
    }

    async fn refresh(self: Arc<Self>) {
        let mut attempted_at = self.attempted_at.lock().await;
        if attempted_at.is_some_and(|at| self.elapsed_since(at) < self.attempt_interval()) {
            return;
        }
        let at = self.reader.clock.now();
        *attempted_at = Some(at);
        let issuer = &self.record.name;
        match self.read().await {
            Ok(keys) => drop(self.current.send_replace(Some(Loaded { keys: Arc::new(keys), at }))),
            Err(reason) => {
                let keys_at_hand = self.loaded().is_some();
                tracing::warn!(%issuer, %reason, keys_at_hand, "an issuer's keys could not be read");
            }
        }
    }

    async fn read(&self) -> Result<KeySet, KeysError> {
        let spec = &self.record.spec;
        match &spec.keys {
            KeySource::Discovery(found) => discovery::fetch(&spec.url, found, self.reader.timeout).await,
            KeySource::File(name) => read_file(self.reader.jwks_dir.as_ref(), name).await,
        }
    }

    fn loaded(&self) -> Option<Loaded> {
        self.current.borrow().clone()
    }

    /// A clock that went back counts as much time: one attempt too many harms nobody, none for hours would.
    fn elapsed_since(&self, at: OffsetDateTime) -> Duration {
        (self.reader.clock.now() - at).try_into().unwrap_or(Duration::MAX)
    }

    fn attempt_interval(&self) -> Duration {
        match self.record.spec.keys {
            KeySource::Discovery(_) => Duration::from_secs(10),
            KeySource::File(_) => Duration::from_secs(1),
        }
    }

    fn refresh_interval(&self) -> Duration {
        match self.record.spec.keys {
            KeySource::Discovery(_) => Duration::from_secs(5 * 60),
            KeySource::File(_) => Duration::from_secs(1),
        }
    }
}

/// `name` is a plain file name (the issuer object was checked); it may be a symbolic link, as in Kubernetes' mounts.
async fn read_file(jwks_dir: Option<&PathBuf>, name: &str) -> Result<KeySet, KeysError> {
    let Some(dir) = jwks_dir else {
        return Err(KeysError::new("keys.file is set, and the server's configuration has no jwks_dir"));
    };
    let path = dir.join(name);
    let failed = |error: std::io::Error| KeysError::new(format!("{}: {error}", path.display()));
    if !tokio::fs::metadata(&path).await.map_err(failed)?.is_file() {
        return Err(KeysError::new(format!("{} is not a file", path.display())));
    }
    let mut json = Vec::new();
    let file = tokio::fs::File::open(&path).await.map_err(failed)?;
    file.take(DOCUMENT_MAX_BYTES as u64 + 1).read_to_end(&mut json).await.map_err(failed)?;
    if json.len() > DOCUMENT_MAX_BYTES {
        return Err(KeysError::new(format!("{} has more than {DOCUMENT_MAX_BYTES} bytes", path.display())));
    }
    KeySet::parse(&json)
}
