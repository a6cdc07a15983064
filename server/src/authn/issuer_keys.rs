//! The keys of one issuer object: read in the background, on demand for an unknown `kid`, and kept when the issuer
//! cannot be reached.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::PathBuf,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use keyfold_core::{clock::Clock, object::KeySource};
use time::OffsetDateTime;
use tokio::{io::AsyncReadExt as _, sync::Mutex};

use super::{
    IssuerRecord, KeysError, discovery,
    jwks::{DOCUMENT_MAX_BYTES, KeySet, PublicKey},
};

/// How often an issuer may be asked because of what callers send.
const DISCOVERY_ATTEMPT_INTERVAL: Duration = Duration::from_secs(10);
/// How long discovered keys serve before they are read again.
const DISCOVERY_REFRESH_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// By how much that is shortened, by the issuer's name: many issuers are not asked at one moment.
const DISCOVERY_JITTER_MAX_SECS: u64 = 60;
/// A local file costs nothing, so a key removed from it counts soon.
const FILE_INTERVAL: Duration = Duration::from_secs(1);
/// The longest time between two attempts while a file cannot be read.
const FILE_BACKOFF_MAX: Duration = Duration::from_secs(10);

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
    current: RwLock<Option<Arc<KeySet>>>,
    /// Held while asking, so that one request serves all who wait.
    attempts: Mutex<Attempts>,
    /// When the issuer was last among those that are configured, in seconds since 1970.
    named_at: AtomicI64,
}

#[derive(Default)]
struct Attempts {
    last: Option<OffsetDateTime>,
    /// Since the last that succeeded.
    failures: u32,
}

/// Why an issuer is asked, which says how soon it may be asked again.
#[derive(Clone, Copy)]
enum Need {
    /// A token names a key that is not at hand.
    UnknownKey,
    /// The keys are getting old.
    Age,
}

impl IssuerKeys {
    /// Begins with keys that were read from the same place, if there are any: a changed issuer object is no reason to
    /// refuse tokens while its issuer is away.
    pub(super) fn new(record: IssuerRecord, reader: Arc<KeyReader>, before: Option<&Self>) -> Self {
        let same_place = |other: &&Self| {
            other.record.spec.url == record.spec.url && other.record.spec.keys == record.spec.keys
        };
        let current = before.filter(same_place).and_then(Self::current);
        Self {
            record,
            reader,
            current: RwLock::new(current),
            attempts: Mutex::default(),
            named_at: AtomicI64::default(),
        }
    }

    /// Keys that have `key_id`, or lack it as the issuer said when it was last asked. None while it cannot be asked. It
    /// is asked for an unknown key at most once in ten seconds (a file: one) whatever callers send.
    pub(super) async fn having(self: &Arc<Self>, key_id: &str) -> Option<Arc<KeySet>> {
        let current = self.current();
        if current.as_ref().is_some_and(|keys| keys.contains(key_id)) {
            return current;
        }
        // In a task of its own, so that a caller who goes away does not end what others wait for.
        let answers = tokio::spawn(Arc::clone(self).ask(Need::UnknownKey)).await.unwrap_or_else(|error| {
            tracing::error!(issuer = %self.record.name, %error, "reading an issuer's keys stopped short");
            false
        });
        self.current().filter(|keys| answers || keys.contains(key_id))
    }

    /// Whether this very key is still among the issuer's.
    pub(super) fn publishes(&self, key: &PublicKey) -> bool {
        self.current().is_some_and(|keys| keys.holds(key))
    }

    /// Whether the keys are old enough to be read again. Not while that is being done.
    pub(super) fn are_due(&self) -> bool {
        self.attempts.try_lock().is_ok_and(|attempts| self.may_ask(&attempts, Need::Age))
    }

    /// Reads the keys again if they are due.
    pub(super) async fn refresh(self: Arc<Self>) {
        self.ask(Need::Age).await;
    }

    /// Notes that the issuer is configured now.
    pub(super) fn named(&self) {
        self.named_at.store(self.reader.clock.now().unix_timestamp(), Ordering::Relaxed);
    }

    /// How long ago it last was.
    pub(super) fn unnamed_for(&self) -> Duration {
        let at = OffsetDateTime::from_unix_timestamp(self.named_at.load(Ordering::Relaxed));
        at.map_or(Duration::MAX, |at| self.elapsed_since(at))
    }

    /// Whether the issuer answers, asking it if that is due.
    async fn ask(self: Arc<Self>, need: Need) -> bool {
        let mut attempts = self.attempts.lock().await;
        if !self.may_ask(&attempts, need) {
            return attempts.failures == 0;
        }
        attempts.last = Some(self.reader.clock.now());
        let issuer = &self.record.name;
        match self.read().await {
            Ok(keys) => {
                if attempts.failures > 0 {
                    tracing::info!(%issuer, "an issuer's keys can be read again");
                }
                attempts.failures = 0;
                self.replace(keys);
            }
            Err(reason) => {
                attempts.failures = attempts.failures.saturating_add(1);
                // An outage of days should not fill the log.
                if attempts.failures.is_power_of_two() {
                    let (keys_at_hand, failures) = (self.current().is_some(), attempts.failures);
                    tracing::warn!(%issuer, %reason, keys_at_hand, failures, "an issuer's keys could not be read");
                }
            }
        }
        attempts.failures == 0
    }

    fn may_ask(&self, attempts: &Attempts, need: Need) -> bool {
        let interval = match need {
            Need::UnknownKey => self.attempt_interval(),
            Need::Age => self.refresh_interval(attempts.failures),
        };
        attempts.last.is_none_or(|at| self.elapsed_since(at) >= interval)
    }

    async fn read(&self) -> Result<KeySet, KeysError> {
        let spec = &self.record.spec;
        match &spec.keys {
            KeySource::Discovery(found) => discovery::fetch(&spec.url, found, self.reader.timeout).await,
            KeySource::File(name) => read_file(self.reader.jwks_dir.as_ref(), name).await,
        }
    }

    /// A set that reads as a JWKS counts, also an empty one: so does an issuer withdraw its keys. What does not read as
    /// one never comes here.
    fn replace(&self, keys: KeySet) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_none_or(|current| !current.has_bytes_of(&keys)) {
            *current = Some(Arc::new(keys));
        }
    }

    fn current(&self) -> Option<Arc<KeySet>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A clock that went back counts as much time: one attempt too many harms nobody, none for hours would.
    fn elapsed_since(&self, at: OffsetDateTime) -> Duration {
        (self.reader.clock.now() - at).try_into().unwrap_or(Duration::MAX)
    }

    fn attempt_interval(&self) -> Duration {
        match self.record.spec.keys {
            KeySource::Discovery(_) => DISCOVERY_ATTEMPT_INTERVAL,
            KeySource::File(_) => FILE_INTERVAL,
        }
    }

    /// Between two attempts that no caller asked for: while they fail twice as long each time.
    fn refresh_interval(&self, failures: u32) -> Duration {
        let (regular, longest) = match self.record.spec.keys {
            KeySource::Discovery(_) => {
                (DISCOVERY_REFRESH_INTERVAL - self.jitter(), DISCOVERY_REFRESH_INTERVAL)
            }
            KeySource::File(_) => (FILE_INTERVAL, FILE_BACKOFF_MAX),
        };
        match failures.checked_sub(1) {
            None => regular,
            Some(doublings) => self.attempt_interval().saturating_mul(1 << doublings.min(16)).min(longest),
        }
    }

    fn jitter(&self) -> Duration {
        let mut hasher = DefaultHasher::new();
        self.record.name.hash(&mut hasher);
        Duration::from_secs(hasher.finish() % DISCOVERY_JITTER_MAX_SECS)
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
