//! A replica's signs of life, and with them the newest keys that it holds.
//!
//! A new key begins to wrap once all live replicas hold it. So a replica that can no longer tell the others that it lives
//! stops encrypting, well before they count it as gone: it may not hear of the next key. Reading goes on.
//!
//! With each, the server's clock is compared with that of Postgres: one server's wrong clock must not decide what cannot
//! be taken back.

use std::{
    collections::HashMap,
    sync::{Mutex as StdMutex, PoisonError},
    time::Duration,
};

use time::OffsetDateTime;
use tokio::{
    sync::{Mutex, Notify, watch},
    time::{Instant, timeout},
};
use uuid::Uuid;

use crate::{
    broker::Broker,
    error::Error,
    integrity::scrub::check_keys,
    keys::keyring::{Keyring, note_unusable},
    store::{
        integrity_head, keks,
        replicas::{self, Beat},
    },
};

const INTERVAL: Duration = Duration::from_millis(500);
/// How old the last sign of life may be for this replica to encrypt. Others count it as gone after 5 s; the difference is
/// more than any call of ours takes to commit what it has encrypted.
const FRESH_MAX: Duration = Duration::from_secs(2);
/// How long a call that is to encrypt waits for a sign of life that is late, such as after a pause of the machine.
const GRACE: Duration = Duration::from_secs(1);
/// How long one may take.
const BEAT_MAX: Duration = Duration::from_secs(4);
/// How long the removal of the replica's row may keep a server from stopping.
const FAREWELL_MAX: Duration = Duration::from_secs(2);
/// How often rows of replicas that have long been silent are removed.
const CLEAN_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// As far as this server's clock may be from that of Postgres for it to do what is due: beyond what a clock that is
/// disciplined, or was a moment ago, is ever off.
const SKEW_MAX: time::Duration = time::Duration::minutes(5);
/// As much of the host's name as is told.
const NAME_BYTES_MAX: usize = 256;

/// A replica's signs of life.
pub(crate) struct Heartbeat {
    replica: Uuid,
    name: String,
    /// When the last one was sent that arrived.
    sent_at: watch::Sender<Option<Instant>>,
    wake: Notify,
    held: Mutex<Held>,
    /// Postgres' time at the last one that arrived, and when that was.
    told_time: StdMutex<Option<(OffsetDateTime, Instant)>>,
    /// How this server's clock was wrong then, in words.
    clock_problem: StdMutex<Option<String>>,
}

/// The keys that this replica holds and has tested.
#[derive(Default)]
struct Held {
    epoch: i64,
    /// The id of the RWK that wraps it, by the key's id.
    tested: HashMap<Uuid, Uuid>,
    /// Pre-active keys that it cannot use, and why.
    failed: HashMap<Uuid, String>,
}

impl Heartbeat {
    /// Without any sign of life yet.
    pub(crate) fn new(replica: Uuid) -> Self {
        let mut name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        name.truncate(name.floor_char_boundary(NAME_BYTES_MAX));
        Self {
            replica,
            name,
            sent_at: watch::Sender::new(None),
            wake: Notify::new(),
            held: Mutex::default(),
            told_time: StdMutex::default(),
            clock_problem: StdMutex::default(),
        }
    }

    /// Names the replica. Made anew with each start.
    pub(crate) fn replica(&self) -> Uuid {
        self.replica
    }

    /// The next sign of life comes at once.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// By how much this server's clock is ahead of that of Postgres when it says `own`. Absent before the first sign of
    /// life. A clock that has jumped since the last one shows as well.
    fn skew(&self, own: OffsetDateTime) -> Option<time::Duration> {
        let (told, at) = (*self.told_time.lock().unwrap_or_else(PoisonError::into_inner))?;
        Some(
            (own - told)
                .saturating_sub(time::Duration::try_from(at.elapsed()).unwrap_or(time::Duration::MAX)),
        )
    }

    /// Notes Postgres' time, which has arrived just now, and says once that this server's clock is wrong, or right again.
    fn compare(&self, own: OffsetDateTime, postgres: OffsetDateTime) {
        let skew = own - postgres;
        metrics::gauge!("keyfold_clock_skew_seconds").set(skew.as_seconds_f64());
        *self.told_time.lock().unwrap_or_else(PoisonError::into_inner) = Some((postgres, Instant::now()));
        let problem = (skew.abs() > SKEW_MAX).then(|| {
            let side = if skew.is_negative() { "behind" } else { "ahead of" };
            format!("its clock is {} s {side} that of Postgres", skew.whole_seconds().abs())
        });
        let mut before = self.clock_problem.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*before, &problem) {
            (None, Some(problem)) => tracing::error!(
                problem,
                "until its clock is right this server follows no schedule, destroys no key and turns no authority"
            ),
            (Some(_), None) => tracing::info!("this server's clock is right again"),
            _ => {}
        }
        *before = problem;
    }

    fn clock_problem(&self) -> Option<String> {
        self.clock_problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether this replica may encrypt.
    ///
    /// # Errors
    /// `HeartbeatLost` when its last sign of life is too old, and none arrives now.
    pub(crate) async fn may_encrypt(&self) -> Result<(), Error> {
        let is_fresh = |sent_at: &Option<Instant>| sent_at.is_some_and(|at| at.elapsed() <= FRESH_MAX);
        if is_fresh(&self.sent_at.borrow()) {
            return Ok(());
        }
        self.wake();
        match timeout(GRACE, self.sent_at.subscribe().wait_for(is_fresh)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Error::HeartbeatLost),
        }
    }
}

impl Held {
    /// Takes on the keys of an epoch: those that wrap or will soon are opened, and tried. All are those of the last change:
    /// nobody has put an old row of a key back.
    async fn take_on(&mut self, broker: &Broker, keyring: &Keyring, epoch: i64) -> Result<(), Error> {
        let (mut moment, macs) = (broker.store.watch_moment().await?, keyring.row_macs());
        note_unusable(&keyring.load_system(&keks::system(&mut moment).await?)?);
        let standing = integrity_head::find(&mut moment, macs).await?;
        check_keys(&mut moment, macs, &standing.head).await?;
        keyring.keep_only(&keks::usable(&mut moment).await?);
        let in_use = keks::in_use(&mut moment).await?;
        drop(moment);
        self.tested.retain(|id, _| in_use.iter().any(|kek| kek.id == *id));
        self.failed.clear();
        for kek in &in_use {
            if self.tested.get(&kek.id) == Some(&kek.rwk_id) {
                continue;
            }
            let tested = kek.check(keyring.row_macs()).and_then(|()| keyring.test_kek(kek, &*broker.entropy));
            match tested {
                Ok(()) => drop(self.tested.insert(kek.id, kek.rwk_id)),
                // The new root-wrapping key is being fetched.
                Err(Error::RootChanged) => return Err(Error::RootChanged),
                Err(error) => self.note_failure(kek, &error),
            }
            tokio::task::yield_now().await;
        }
        self.epoch = epoch;
        Ok(())
    }

    /// An active key that does not open keeps nobody's successor from being handed out.
    fn note_failure(&mut self, kek: &keks::WrappedKek, error: &Error) {
        let detail = match error {
            Error::Corrupt(what) | Error::Integrity { what, .. } => what.clone(),
            other => other.to_string(),
        };
        tracing::error!(key = %kek.id, purpose = kek.purpose, version = kek.version, state = kek.state, detail,
            "a key failed its test");
        if kek.state == "pre-active" {
            let failure = format!(
                "cannot use version {} of the {} key {}: see its log",
                kek.version, kek.purpose, kek.id
            );
            self.failed.insert(kek.id, failure);
        }
    }
}

impl Broker {
    /// Whether this server's clock agrees with that of Postgres: only then does it do by itself what is due.
    pub(crate) fn is_clock_right(&self) -> bool {
        self.worker.heartbeat.skew(self.now()).is_some_and(|skew| skew.abs() <= SKEW_MAX)
    }

    /// The time, for a day that an operator sets and that every server then goes by.
    ///
    /// # Errors
    /// `Conflict` while this server's clock does not agree with that of Postgres; `HeartbeatLost`.
    pub(crate) async fn agreed_now(&self) -> Result<OffsetDateTime, Error> {
        self.worker.heartbeat.may_encrypt().await?;
        if self.is_clock_right() {
            return Ok(self.now());
        }
        Err(Error::Conflict(
            "this server's clock does not agree with that of Postgres, so no day can be set by it: set the clock right, \
             or ask another server"
                .into(),
        ))
    }

    /// Gives signs of life. Never ends.
    pub(crate) async fn keep_beating(&self) {
        let mut clean_at = Instant::now();
        loop {
            if self.seal.keyring().is_ok() {
                if let Err(error) = self.beat().await {
                    tracing::debug!(%error, "no sign of life could be given");
                } else if Instant::now() >= clean_at {
                    clean_at = Instant::now() + CLEAN_INTERVAL;
                    // The next one does it.
                    let _ = self.remove_silent_replicas().await;
                }
            }
            tokio::select! {
                () = self.worker.heartbeat.wake.notified() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }

    /// Gives one sign of life, after taking on the newest keys.
    ///
    /// # Errors
    /// `Sealed`; those of Postgres.
    pub(crate) async fn beat(&self) -> Result<(), Error> {
        timeout(BEAT_MAX, self.try_beat()).await.unwrap_or_else(|_| Err(Error::database_silent()))
    }

    async fn try_beat(&self) -> Result<(), Error> {
        let keyring = self.seal.keyring()?;
        let heartbeat = &self.worker.heartbeat;
        let mut held = heartbeat.held.lock().await;
        let newest = replicas::key_epoch(&mut *self.store.watch().await?).await?;
        if newest != held.epoch || !held.failed.is_empty() {
            // The sign of life is given all the same: it says which keys are held, and that is what others go by.
            if let Err(error) = held.take_on(self, &keyring, newest).await {
                tracing::warn!(%error, "the newest keys could not be taken on");
                if matches!(error, Error::Integrity { .. }) {
                    self.integrity.stop(&error);
                }
            }
        }
        let failures: Vec<_> = held.failed.values().cloned().chain(heartbeat.clock_problem()).collect();
        let failure = (!failures.is_empty()).then(|| failures.join("; "));
        let failed_keks: Vec<_> = held.failed.keys().copied().collect();
        let sent_at = Instant::now();
        let beat = Beat {
            id: heartbeat.replica,
            name: &heartbeat.name,
            version: env!("CARGO_PKG_VERSION"),
            key_epoch: held.epoch,
            failed_keks: &failed_keks,
            failure: failure.as_deref(),
        };
        let postgres = replicas::beat(&mut *self.store.watch().await?, &beat).await?;
        heartbeat.compare(self.now(), postgres);
        heartbeat.sent_at.send_replace(Some(sent_at));
        Ok(())
    }

    /// The epoch whose keys are held.
    pub(crate) async fn held_epoch(&self) -> i64 {
        self.worker.heartbeat.held.lock().await.epoch
    }

    /// Takes on the newest keys, unless they are held.
    ///
    /// # Errors
    /// `Integrity` when the keys' rows are not those of the last change; those of Postgres.
    pub(crate) async fn hold_newest_keys(&self, keyring: &Keyring) -> Result<(), Error> {
        let mut held = self.worker.heartbeat.held.lock().await;
        let newest = replicas::key_epoch(&mut *self.store.watch().await?).await?;
        if newest == held.epoch { Ok(()) } else { held.take_on(self, keyring, newest).await }
    }

    async fn remove_silent_replicas(&self) -> Result<(), Error> {
        replicas::remove_silent(&mut *self.store.watch().await?).await
    }

    /// Tells the others that this replica stops, so that no turn waits for it.
    pub(crate) async fn say_farewell(&self) {
        let remove = async {
            let mut connection = self.store.watch().await?;
            replicas::remove(&mut connection, self.worker.heartbeat.replica).await
        };
        if let Ok(Err(error)) = timeout(FAREWELL_MAX, remove).await {
            tracing::debug!(%error, "the replica's row could not be removed");
        }
    }
}
