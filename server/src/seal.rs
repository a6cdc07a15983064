//! Whether the server can open what it stores. It starts sealed, and unseals by itself as soon as the database and the
//! root key can be reached. From then on it serves from what it holds in memory, wherever the root key is; only another
//! root-wrapping key in the database, after a change of the root key, makes it ask for the root key again.

mod entered;
mod root_check;

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use keyfold_core::{
    key::Purpose,
    shamir::{Collector, Progress},
};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use entered::Recovering;
pub(crate) use entered::RecoveryTurn;
pub use entered::{ShareOf, commitments};

use crate::{
    error::Error,
    integrity::row_macs::{RowMacs, failed},
    keys::{
        keyring::{Keyring, note_unusable, number},
        root::RootKeys,
        rwk::Rwk,
    },
    shares::Shares,
    store::{
        Store, installation,
        keks::{self, WrappedKek},
        recovery_keys::{self, WrappedRecoveryKey},
        root_wrapping_keys::{self, WrappedRwk},
    },
};

/// How long a look at the database may take: a connection that is silent must not pass for a healthy one.
const LOOK_MAX: Duration = Duration::from_secs(8);

/// A keeper of the root key that took long to fail is left alone for so many times as long, …
const PAUSE_FACTOR: u32 = 4;
/// … but not longer than this.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Wrong shares that are written down at one time, of all network addresses and of each. Right ones have no bound.
const WRONG_SHARES_MAX: usize = 32;
const WRONG_SHARES_PER_PEER: usize = 4;

/// How often the database is looked at again because the root key was changed while it was.
const LOOKS_MAX: u32 = 3;

const FOREIGN: &str = "integrity: the root-wrapping key in the database does not open the keys that this server held: \
                       see docs/operating.md";

const EARLIER_VERSION: &str = "the database was initialised by an earlier version, without keys of the installation's \
                               own: initialise a new one";

/// What the server can do now.
#[derive(Clone)]
pub enum State {
    /// Nothing: the text says why, and what to do.
    Sealed(String),
    /// Be initialised.
    Uninitialized,
    /// Everything.
    Serving(Arc<Keyring>),
}

/// The state, and how it changes.
pub struct Seal {
    roots: RootKeys,
    state: RwLock<State>,
    /// Why the server must not serve although it could.
    latch: RwLock<Option<String>>,
    held: RwLock<Option<Held>>,
    /// The row-mac keys that were held last, by which another root-wrapping key is known to be of the same hands. They
    /// stay whatever the database says.
    known: RwLock<Option<Arc<RowMacs>>>,
    /// The recovery key whose shares are taken, as the configuration names it.
    recovery_key_id: Option<Uuid>,
    waiting: RwLock<Option<Waiting>>,
    /// Shares of the recovery key that were entered while the root key could not be had.
    recovery: Mutex<Option<Collector>>,
    /// A root-wrapping key that this replica has made, for when it meets it in the database.
    handed_over: Mutex<Option<Arc<Rwk>>>,
    /// How the last recovery failed.
    recovering: Mutex<Recovering>,
    /// Why the root key could not be had when that was last looked at, although it is not needed now.
    root_problem: RwLock<Option<String>>,
    /// The recovery key of which the log said that the configuration does not name it.
    warned_of: RwLock<Option<Uuid>>,
    /// One refresh at a time, so that none overwrites what a later one found.
    refreshing: tokio::sync::Mutex<Option<Pause>>,
    /// One right share at a time, so that each one's entry counts right.
    entering: tokio::sync::Mutex<()>,
    /// Wrong shares that are being written down, of each network address.
    wrong_shares: Shares<IpAddr>,
}

/// The open keys, and what names the root key that they rest on.
#[derive(Clone)]
struct Held {
    keyring: Arc<Keyring>,
    row: Arc<WrappedRwk>,
}

/// What a server needs the root key for that it does not have.
#[derive(Clone)]
pub struct Waiting {
    /// The installation.
    pub installation: Uuid,
    /// What the root key is to open.
    pub rwk: WrappedRwk,
    /// What the recovery shares open, if there are some.
    pub recovery: Option<WrappedRecoveryKey>,
}

/// A keeper of the root key is left alone for now.
struct Pause {
    rwk: Uuid,
    until: Instant,
    why: String,
}

/// What a look at the database found.
enum Found {
    Uninitialized,
    /// The root-wrapping key that is held.
    Held(Held),
    /// Another one, with the installation's own keys.
    Other(Box<Waiting>, Vec<WrappedKek>),
}

impl Seal {
    /// Sealed, with those keepers of the root key, and the recovery key that the configuration names.
    pub fn new(roots: RootKeys, recovery_key_id: Option<Uuid>) -> Self {
        Self {
            roots,
            state: RwLock::new(State::Sealed("the server is starting".into())),
            latch: RwLock::default(),
            held: RwLock::default(),
            known: RwLock::default(),
            recovery_key_id,
            waiting: RwLock::default(),
            recovery: Mutex::default(),
            handed_over: Mutex::default(),
            recovering: Mutex::default(),
            root_problem: RwLock::default(),
            warned_of: RwLock::default(),
            refreshing: tokio::sync::Mutex::default(),
            entering: tokio::sync::Mutex::default(),
            wrong_shares: Shares::new(WRONG_SHARES_MAX, WRONG_SHARES_PER_PEER),
        }
    }

    /// What the server can do, as the last refresh found it.
    pub fn state(&self) -> State {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner).clone();
        match &*self.latch.read().unwrap_or_else(PoisonError::into_inner) {
            Some(why) if matches!(state, State::Serving(_)) => State::Sealed(why.clone()),
            _ => state,
        }
    }

    /// The open keys.
    ///
    /// # Errors
    /// `Sealed` or `NotInitialized`.
    pub fn keyring(&self) -> Result<Arc<Keyring>, Error> {
        match self.state() {
            State::Serving(keyring) => Ok(keyring),
            State::Uninitialized => Err(Error::NotInitialized),
            State::Sealed(why) => Err(Error::Sealed(why)),
        }
    }

    /// Whether the keys are open, also while the server must not serve with them.
    pub fn is_open(&self) -> bool {
        matches!(&*self.state.read().unwrap_or_else(PoisonError::into_inner), State::Serving(_))
    }

    /// The open keys also while the server must not serve with them.
    pub fn held_keyring(&self) -> Option<Arc<Keyring>> {
        Some(self.held()?.keyring)
    }

    /// Keeps the server from serving until `unlatch`, for that reason, which should say what to do.
    pub fn latch(&self, why: String) {
        *self.latch.write().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    /// Takes back what `latch` said.
    pub fn unlatch(&self) {
        *self.latch.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Who keeps the root key.
    pub fn roots(&self) -> &RootKeys {
        &self.roots
    }

    /// Looks at the database, and opens the keys unless they are open.
    pub async fn refresh(&self, store: &Store) {
        let mut pause = self.refreshing.lock().await;
        let found = timeout(LOOK_MAX, self.look(store)).await;
        let found = found.unwrap_or_else(|_| Err(Error::Sealed("the database does not answer".into())));
        let (state, waiting) = match found {
            Ok(Found::Uninitialized) => (State::Uninitialized, None),
            Ok(Found::Held(held)) => (State::Serving(held.keyring), None),
            Ok(Found::Other(stored, system)) => match self.open(&stored, &system, &mut pause).await {
                Ok(keyring) => (State::Serving(keyring), None),
                // No share is to help with a foreign key.
                Err(Error::Integrity { what, .. }) if what == FOREIGN => (self.sealed_by_foreign(), None),
                Err(error) => (State::Sealed(self.why_not_open(&error)), Some(*stored)),
            },
            Err(Error::Sealed(why)) => (State::Sealed(why), None),
            Err(Error::Database(cause)) => (self.sealed_by_database(&cause), None),
            Err(error) => (State::Sealed(error.to_string()), None),
        };
        if waiting.is_none() && !matches!(state, State::Sealed(_)) {
            // Nobody needs them any more.
            *self.recovery() = None;
            self.forget_new_root();
            self.roots.forget_shares();
        }
        *self.waiting.write().unwrap_or_else(PoisonError::into_inner) = waiting;
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// Said in the log once: the server looks again all the time.
    fn sealed_by_foreign(&self) -> State {
        if !matches!(self.state(), State::Sealed(why) if why == FOREIGN) {
            tracing::error!(why = FOREIGN, "nothing is served");
        }
        State::Sealed(FOREIGN.into())
    }

    /// The cause is for the log, and once: the server tries again all the time.
    fn sealed_by_database(&self, cause: &sqlx::Error) -> State {
        const WHY: &str = "the database cannot be reached: see the server's log";
        if !matches!(self.state(), State::Sealed(why) if why == WHY) {
            tracing::error!(%cause, "the database cannot be reached");
        }
        State::Sealed(WHY.into())
    }

    fn why_not_open(&self, error: &Error) -> String {
        let why = match error {
            Error::Sealed(why) => why.clone(),
            Error::Corrupt(what) => {
                tracing::error!(%what, "the keys do not open");
                error.to_string()
            }
            error => error.to_string(),
        };
        let why = match self.held() {
            Some(_) => format!("the root key was changed, and this replica cannot follow: {why}"),
            None => why,
        };
        let entered = self.recovery().as_ref().map(Collector::progress);
        match (entered, self.recovery_problem()) {
            (Some(entered), Some(problem)) if entered.is_complete() => {
                format!("{why}. The recovery shares are there, but recovery fails: {problem}")
            }
            (Some(Progress { have, need }), _) if have > 0 => {
                format!("{why}. Entered for recovery: {have} of {need} shares")
            }
            _ => why,
        }
    }

    async fn look(&self, store: &Store) -> Result<Found, Error> {
        for _ in 1..LOOKS_MAX {
            match self.look_once(store).await {
                Err(Error::RootChanged) => {}
                found => return found,
            }
        }
        self.look_once(store).await
    }

    async fn look_once(&self, store: &Store) -> Result<Found, Error> {
        store.check_schema().await?;
        let mut connection = store.watch().await?;
        let Some(rwk) = root_wrapping_keys::newest(&mut connection).await? else {
            self.hold(None);
            return match installation::find(&mut connection).await? {
                None => Ok(Found::Uninitialized),
                Some(_) => {
                    Err(Error::Sealed("the database has an installation but no root-wrapping key".into()))
                }
            };
        };
        if let Some(held) = self.held().filter(|held| held.keyring.rwk().id() == rwk.id) {
            return Ok(Found::Held(held));
        }
        let missing = || Error::Sealed("the database has a root-wrapping key but no installation".into());
        let installation = installation::find(&mut connection).await?.ok_or_else(missing)?;
        let system = keks::system(&mut connection).await?;
        if system.is_empty() {
            return Err(Error::Sealed(EARLIER_VERSION.into()));
        }
        if system.iter().any(|key| key.rwk_id != rwk.id) {
            return Err(Error::RootChanged);
        }
        let recovery = recovery_keys::find(&mut connection).await?;
        Ok(Found::Other(Box::new(Waiting { installation, rwk, recovery }), system))
    }

    async fn open(
        &self,
        stored: &Waiting,
        system: &[WrappedKek],
        pause: &mut Option<Pause>,
    ) -> Result<Arc<Keyring>, Error> {
        let rwk = match self.take_handed_over(stored.rwk.id) {
            Some(rwk) => rwk,
            None => Arc::new(self.ask_keeper(stored, pause).await?),
        };
        self.check_continuity(&rwk, system)?;
        let keyring = match self.held().filter(|held| held.keyring.installation() == stored.installation) {
            Some(held) => {
                held.keyring.renew(rwk);
                held.keyring
            }
            None => {
                let keyring = Keyring::new(rwk);
                note_unusable(&keyring.load_system(system)?);
                Arc::new(keyring)
            }
        };
        self.hold(Some(Held { keyring: Arc::clone(&keyring), row: Arc::new(stored.rwk.clone()) }));
        *self.root_problem.write().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(keyring)
    }

    /// Whether whoever made that RWK had the keys that this process held: it must open the row-mac keys to the same
    /// material. What is cached by id proves nothing, so the blobs themselves are opened.
    ///
    /// # Errors
    /// `Integrity` when it does not; `RootChanged` when another RWK wraps them.
    pub(crate) fn check_continuity(&self, rwk: &Rwk, system: &[WrappedKek]) -> Result<(), Error> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(known) = known else { return Ok(()) };
        let mut is_same = None;
        for row in system.iter().filter(|row| row.purpose == Purpose::RowMac.as_str()) {
            let found = match rwk.unwrap_kek(row) {
                Ok(key) => known.is_version(number(row.version)?, &key),
                Err(Error::Corrupt(_)) => Some(false),
                Err(error) => return Err(error),
            };
            is_same = found.map(|found| found && is_same != Some(false)).or(is_same);
        }
        if known.installation() == rwk.installation() && is_same == Some(true) {
            return Ok(());
        }
        Err(failed("root_wrapping_keys", FOREIGN.into()))
    }

    async fn ask_keeper(&self, stored: &Waiting, pause: &mut Option<Pause>) -> Result<Rwk, Error> {
        if let Some(pause) = pause.as_ref().filter(|pause| pause.rwk == stored.rwk.id)
            && Instant::now() < pause.until
        {
            return Err(Error::Sealed(pause.why.clone()));
        }
        let start = Instant::now();
        let root = self.roots.open(stored.rwk.root_key_id, &stored.rwk.custody()?).await;
        *pause = root.as_ref().err().map(|error| Pause {
            rwk: stored.rwk.id,
            until: Instant::now() + PAUSE_MAX.min(start.elapsed() * PAUSE_FACTOR),
            why: match error {
                Error::Sealed(why) => why.clone(),
                error => error.to_string(),
            },
        });
        Rwk::open(stored.installation, &stored.rwk, &root?)
    }

    /// Leaves a root-wrapping key that this replica has made, so that it need not ask its keeper for what it has. It is
    /// used once the database has that key, and dropped when it has another.
    pub fn hand_over(&self, rwk: Arc<Rwk>) {
        *self.handed_over.lock().unwrap_or_else(PoisonError::into_inner) = Some(rwk);
    }

    fn take_handed_over(&self, id: Uuid) -> Option<Arc<Rwk>> {
        let left = self.handed_over.lock().unwrap_or_else(PoisonError::into_inner).take();
        left.filter(|rwk| rwk.id() == id)
    }

    fn held(&self) -> Option<Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn hold(&self, held: Option<Held>) {
        if let Some(held) = &held {
            *self.known.write().unwrap_or_else(PoisonError::into_inner) =
                Some(held.keyring.shared_row_macs());
        }
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = held;
    }

    /// What the server waits for the root key with; `None` when it has it, or waits for something else.
    pub fn waiting(&self) -> Option<Waiting> {
        self.waiting.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the next time to refresh: after `interval`, or at once when a key shows that the root key was changed.
    pub async fn next_look(&self, interval: Duration) {
        let pause = tokio::time::sleep(interval);
        match self.held() {
            Some(held) => tokio::select! {
                () = pause => {}
                () = held.keyring.outdated() => {}
            },
            None => pause.await,
        }
    }

    /// What names the root key in use, and why it could not be had when that was last looked at.
    pub fn root(&self) -> Option<(Arc<WrappedRwk>, Option<String>)> {
        let problem = self.root_problem.read().unwrap_or_else(PoisonError::into_inner).clone();
        Some((self.held()?.row, problem))
    }
}
