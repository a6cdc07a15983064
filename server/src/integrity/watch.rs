//! What a replica remembers of the database, the scrub that runs beside requests, and what happens on a failure: the
//! replica serves nothing until a later scrub finds all well.

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use keyfold_core::audit::Operation;
use sqlx::PgConnection;
use tokio::time::{Instant, timeout};

use crate::{
    broker::{APPEND, Broker},
    config,
    error::Error,
    integrity::{
        log_end::LogEnd,
        marks::{Marks, Reached},
        pin::Pin,
        row_macs::failed,
        scrub::{Cursor, check_few, check_secrets},
    },
    keys::keyring::Keyring,
    seal::{Seal, State},
    store::{
        Moment,
        integrity_head::{self, Standing},
        replicas,
    },
};

/// How often the log's end is compared with what was seen, and the pin file written if something changed.
const END_INTERVAL: Duration = Duration::from_secs(1);

/// How long a failure that was written down is not written down again.
const NOTED: Duration = Duration::from_secs(10 * 60);
/// Failures that are told apart within that.
const NOTED_MAX: usize = 256;

/// How long one scrub may take.
const SCRUB_MAX: Duration = Duration::from_secs(120);

/// The table that failures name where no table is wrong, but the whole database is an old one.
const DATABASE: &str = "database";

/// What a replica remembers.
pub struct Integrity {
    config: config::Integrity,
    seal: Arc<Seal>,
    /// Take an older database, once.
    accept_older: AtomicBool,
    /// Whether a first scrub has come to an end.
    is_begun: AtomicBool,
    /// Whether all was found well at least once since the start.
    is_checked: AtomicBool,
    marks: Arc<Marks>,
    cursor: Mutex<Cursor>,
    /// How often a failure was found that stops the replica.
    stops: AtomicU64,
    /// One scrub at a time.
    scrubbing: tokio::sync::Mutex<()>,
    failures: Mutex<Failures>,
    pinned: Mutex<Option<Pin>>,
    /// Of the last moment that was found well.
    log_end: Mutex<Option<LogEnd>>,
    /// Whether the scrub that is under way has found all well but secrets.
    are_few_well: AtomicBool,
    /// The version of the row-mac key under which all rows' MACs were found, and when.
    pub(super) remade_under: Mutex<Option<(u32, Instant)>>,
    /// When a row with a wrong MAC stopped that.
    pub(super) remac_failed_at: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Failures {
    noted: HashMap<String, Instant>,
    /// Not in the audit log yet.
    due: Vec<String>,
}

impl Integrity {
    /// Nothing is remembered yet. With `accept_older` the first check takes a database older than the pin file says.
    pub fn new(config: config::Integrity, seal: Arc<Seal>, marks: Arc<Marks>, accept_older: bool) -> Self {
        seal.latch("the integrity of what is stored is being checked".into());
        Self {
            config,
            seal,
            accept_older: AtomicBool::new(accept_older),
            is_begun: AtomicBool::new(false),
            is_checked: AtomicBool::new(false),
            marks,
            cursor: Mutex::default(),
            stops: AtomicU64::new(0),
            scrubbing: tokio::sync::Mutex::default(),
            failures: Mutex::default(),
            pinned: Mutex::default(),
            log_end: Mutex::default(),
            are_few_well: AtomicBool::new(false),
            remade_under: Mutex::default(),
            remac_failed_at: Mutex::default(),
        }
    }

    /// The open keys, while the server serves.
    ///
    /// # Errors
    /// `Sealed` or `NotInitialized`.
    pub fn keyring(&self) -> Result<Arc<Keyring>, Error> {
        self.seal.keyring()
    }

    /// How far the database has come, for [`Self::saw`]. To be taken before the database is asked.
    pub fn floor(&self) -> Reached {
        self.marks.floor()
    }

    /// Takes notice of how far the database has come. `floor` is what was known before it was asked: what it then says
    /// cannot be less.
    ///
    /// # Errors
    /// `Integrity`, and the replica serves nothing any more, when it is less.
    pub fn saw(&self, floor: Reached, standing: &Standing) -> Result<(), Error> {
        let reached = standing.reached();
        if reached.is_behind(&floor) {
            let error = failed(
                DATABASE,
                format!(
                    "older than this server has seen it: generation {} after {}, {} audit entries after {}, \
                     revision {} after {}",
                    reached.generation,
                    floor.generation,
                    reached.audit_size,
                    floor.audit_size,
                    reached.revision,
                    floor.revision
                ),
            );
            self.stop(&error);
            return Err(error);
        }
        self.marks.raise(reached);
        Ok(())
    }

    /// The log's end as it was seen last, for [`Self::goes_on`]. To be taken before the database is asked.
    fn log_end(&self) -> Option<LogEnd> {
        lock(&self.log_end).clone()
    }

    /// Checks that the log goes on from where it was seen to end, and gives its end as it is, for [`Self::saw_end`].
    ///
    /// # Errors
    /// `Integrity`, and the replica serves nothing any more, when it does not; those of Postgres.
    async fn goes_on(
        &self,
        seen: Option<LogEnd>,
        moment: &mut PgConnection,
        standing: &Standing,
    ) -> Result<Option<LogEnd>, Error> {
        if let Some(seen) = seen
            && !seen.is_there(moment).await?
        {
            let what = format!(
                "not the one that this server has seen: audit entry {} is another, or gone",
                seen.entries - 1
            );
            let error = failed(DATABASE, what);
            self.stop(&error);
            return Err(error);
        }
        LogEnd::of(moment, standing).await
    }

    /// Takes notice of the log's end in a database that was found well.
    fn saw_end(&self, end: Option<LogEnd>) {
        let mut held = lock(&self.log_end);
        let entries = held.as_ref().map_or(0, |held| held.entries);
        if let Some(end) = end.filter(|end| end.entries > entries) {
            *held = Some(end);
        }
    }

    /// Takes notice of a failure, so that it gets into the server's log and the audit log, though not again and again.
    pub fn note(&self, error: &Error) {
        let Error::Integrity { table, what } = error else { return };
        let mut failures = lock(&self.failures);
        let now = Instant::now();
        failures.noted.retain(|_, at| now.duration_since(*at) < NOTED);
        let failure = format!("{table}: {what}");
        if failures.noted.len() < NOTED_MAX && !failures.noted.contains_key(&failure) {
            tracing::error!(table, %what, "stored data failed its integrity check");
            failures.noted.insert(failure.clone(), now);
            failures.due.push(failure);
        }
    }

    /// Serves nothing until a scrub that begins later finds all well.
    pub(crate) fn stop(&self, error: &Error) {
        self.stops.fetch_add(1, Ordering::AcqRel);
        self.note(error);
        let Error::Integrity { table, what } = error else { return };
        let why = match *table {
            DATABASE => format!("integrity: the database is {what}: see docs/operating.md"),
            table => {
                format!(
                    "integrity: {table} is not as it was written: see the server's log and docs/operating.md"
                )
            }
        };
        self.refuse(why);
    }

    /// Says so in the log once, not with each scrub.
    fn refuse(&self, why: String) {
        if !matches!(self.seal.state(), State::Sealed(before) if before == why) {
            tracing::error!(why, "nothing is served");
        }
        self.seal.latch(why);
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Broker {
    /// Checks everything before the server serves for the first time.
    pub(crate) async fn check_at_start(&self) {
        if !self.integrity.is_begun.load(Ordering::Acquire) && self.seal.held_keyring().is_some() {
            self.scrub().await;
        }
    }

    /// Scrubs, watches the log's end, and keeps the pin file up to date. Never ends.
    pub(crate) async fn watch_integrity(&self) {
        let mut scrub_at = Instant::now() + self.integrity.interval();
        loop {
            tokio::time::sleep(END_INTERVAL.min(scrub_at.saturating_duration_since(Instant::now()))).await;
            if Instant::now() >= scrub_at {
                self.scrub().await;
                scrub_at = Instant::now() + self.integrity.interval();
            }
            if let Err(error) = self.watch_end().await {
                tracing::warn!(%error, "how far the database has come could not be remembered");
            }
        }
    }

    /// Compares what is stored with the integrity head, and serves or not by what that finds.
    pub(crate) async fn scrub(&self) {
        let Some(keyring) = self.seal.held_keyring() else { return };
        let _turn = self.integrity.scrubbing.lock().await;
        let stops = self.integrity.stops.load(Ordering::Acquire);
        self.integrity.are_few_well.store(false, Ordering::Release);
        let done = timeout(SCRUB_MAX, self.scrubbed(&keyring)).await;
        if matches!(done, Ok(Ok(_) | Err(Error::Integrity { .. }))) {
            self.integrity.is_begun.store(true, Ordering::Release);
        }
        match done {
            // What was found meanwhile may be newer than what this scrub saw: the next one tells.
            Ok(Ok(true)) if self.integrity.stops.load(Ordering::Acquire) != stops => {}
            Ok(Ok(true)) => {
                self.integrity.is_checked.store(true, Ordering::Release);
                self.seal.unlatch();
                metrics::gauge!("keyfold_integrity_is_well").set(1.0);
            }
            Ok(Ok(false)) => metrics::gauge!("keyfold_integrity_is_well").set(0.0),
            Ok(Err(error @ Error::Integrity { .. })) => {
                metrics::gauge!("keyfold_integrity_is_well").set(0.0);
                self.integrity.stop(&error);
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, cause = ?error, "the integrity of what is stored could not be checked");
            }
            Err(_) => self.note_slow_scrub(),
        }
    }

    /// At the start nothing is served before all was checked, unless that takes too long: then labels and versions of
    /// secrets, whose MACs are checked when they are read, are checked further while the server serves.
    fn note_slow_scrub(&self) {
        tracing::warn!("checking the integrity of what is stored took too long");
        let integrity = &self.integrity;
        let was_never_wrong = integrity.stops.load(Ordering::Acquire) == 0;
        if integrity.are_few_well.load(Ordering::Acquire) && was_never_wrong {
            tracing::warn!("labels and versions of secrets were not all checked before the server serves");
            integrity.is_begun.store(true, Ordering::Release);
            self.seal.unlatch();
        }
    }

    /// Whether the server may serve.
    async fn scrubbed(&self, keyring: &Keyring) -> Result<bool, Error> {
        let (integrity, macs) = (&self.integrity, keyring.row_macs());
        let (floor, seen) = (integrity.floor(), integrity.log_end());
        let mut moment = self.moment_of_held_keys(keyring).await?;
        let standing = check_few(&mut moment, macs).await?;
        integrity.saw(floor, &standing)?;
        let end = integrity.goes_on(seen, &mut moment, &standing).await?;
        let refusal = self.pin_refusal(keyring, &mut moment, &standing).await?;
        integrity.are_few_well.store(refusal.is_none(), Ordering::Release);
        check_secrets(&mut moment, macs, &standing.head, &integrity.cursor).await?;
        drop(moment);
        let is_well = self.is_accepted(refusal, &standing).await?;
        if is_well {
            integrity.saw_end(end);
        }
        Ok(is_well)
    }

    /// A moment of the database in which this replica holds all keys. One that was paused through a turn of keys meets
    /// MACs of a version that it has not loaded, and nothing is wrong.
    async fn moment_of_held_keys(&self, keyring: &Keyring) -> Result<Moment, Error> {
        let mut moment = self.store.moment().await?;
        let epoch = replicas::key_epoch(&mut moment).await?;
        if self.held_epoch().await == epoch {
            return Ok(moment);
        }
        drop(moment);
        self.hold_newest_keys(keyring).await?;
        self.store.moment().await
    }

    /// Why the database is not what the pin file says, and what that says if it can be read. Nothing once all was found
    /// well.
    async fn pin_refusal(
        &self,
        keyring: &Keyring,
        moment: &mut PgConnection,
        standing: &Standing,
    ) -> Result<Option<(String, Option<Pin>)>, Error> {
        if self.integrity.is_checked.load(Ordering::Acquire) {
            return Ok(None);
        }
        Ok(match self.integrity.pin() {
            Ok(Some(pin)) if pin.installation != keyring.installation() => {
                Some(("it is of another installation: remove the file if that is meant".to_owned(), None))
            }
            Ok(Some(pin)) => {
                pin.refusal(moment, keyring.row_macs(), standing).await?.map(|why| (why, Some(pin)))
            }
            Ok(None) => None,
            Err(why) => Some((why, None)),
        })
    }

    async fn is_accepted(
        &self,
        refusal: Option<(String, Option<Pin>)>,
        standing: &Standing,
    ) -> Result<bool, Error> {
        match refusal {
            None => Ok(true),
            Some((why, Some(pin))) if self.integrity.accept_older.load(Ordering::Acquire) => {
                self.accept_older(&pin, standing, &why).await?;
                Ok(true)
            }
            Some((why, _)) => {
                let failure = failed(DATABASE, format!("not the pinned one: {why}"));
                self.integrity.note(&failure);
                self.integrity.refuse(format!("integrity: pin file: {why}: see docs/operating.md"));
                Ok(false)
            }
        }
    }

    /// Writes down that an operator takes an older database, and pins that one.
    async fn accept_older(&self, pin: &Pin, standing: &Standing, why: &str) -> Result<(), Error> {
        let operation = Operation::SystemAcceptOlderDatabase {
            audit_entries: standing.audit_size.cast_unsigned(),
            pinned_entries: pin.audit_entries.cast_unsigned(),
        };
        self.append_own_alone(operation).await?;
        tracing::warn!(why, "an older database is accepted, as --accept-older-database says");
        self.integrity.accept_older.store(false, Ordering::Release);
        *lock(&self.integrity.pinned) = None;
        Ok(())
    }

    /// Appends the entry of what this server does of its own accord, in a transaction of its own.
    async fn append_own_alone(&self, operation: Operation) -> Result<(), Error> {
        let operation = &operation;
        self.store
            .tx("audit.append", APPEND, |mut tx| async move {
                self.append_own(&mut tx, operation.clone()).await?;
                tx.commit(()).await
            })
            .await
    }

    /// Appends the entries of failures that have none yet.
    ///
    /// # Errors
    /// Those of Postgres, after which they are tried again.
    pub(crate) async fn append_integrity_failures(&self) -> Result<(), Error> {
        loop {
            let Some(what) = lock(&self.integrity.failures).due.first().cloned() else { return Ok(()) };
            self.append_own_alone(Operation::SystemIntegrityFailure { what }).await?;
            lock(&self.integrity.failures).due.remove(0);
        }
    }

    async fn watch_end(&self) -> Result<(), String> {
        let Ok(keyring) = self.seal.keyring() else { return Ok(()) };
        let pin = self.current_pin(&keyring).await.map_err(|error| error.to_string())?;
        let Some(file) = &self.integrity.config.pin_file else { return Ok(()) };
        let Some(pin) = pin.filter(|pin| lock(&self.integrity.pinned).as_ref() != Some(pin)) else {
            return Ok(());
        };
        let (written, to) = (pin.clone(), file.clone());
        let done = tokio::task::spawn_blocking(move || written.write(&to)).await;
        done.map_err(|error| error.to_string())??;
        *lock(&self.integrity.pinned) = Some(pin);
        Ok(())
    }

    /// Of a database that is no older than what was pinned.
    async fn current_pin(&self, keyring: &Keyring) -> Result<Option<Pin>, Error> {
        let (floor, seen) = (self.integrity.floor(), self.integrity.log_end());
        let mut moment = self.moment_of_held_keys(keyring).await?;
        let standing = integrity_head::find(&mut moment, keyring.row_macs()).await?;
        self.integrity.saw(floor, &standing)?;
        let end = self.integrity.goes_on(seen, &mut moment, &standing).await?;
        self.integrity.saw_end(end);
        Pin::of(&mut moment, keyring.row_macs(), &standing).await
    }
}

impl Integrity {
    fn interval(&self) -> Duration {
        Duration::from_secs(self.config.scrub_secs.max(1))
    }

    fn pin(&self) -> Result<Option<Pin>, String> {
        self.config.pin_file.as_deref().map_or(Ok(None), |file: &Path| Pin::read(file))
    }
}
