//! Whether the server can open what it stores. It starts sealed, and unseals by itself as soon as the database and the
//! root key can be reached.

use std::{
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::Duration,
};

use tokio::sync::Mutex;

use crate::{
    config,
    error::Error,
    keys::{keyring::Keyring, root::RootKeys},
    store::{Store, installation, root_wrapping_keys},
};

/// How long finding out the state may take: a connection that is silent must not pass for a healthy one.
const REFRESH_MAX: Duration = Duration::from_secs(8);

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
    root_key: config::RootKey,
    keyring: OnceLock<Arc<Keyring>>,
    state: RwLock<State>,
    /// One refresh at a time, so that none overwrites what a later one found.
    refreshing: Mutex<()>,
}

impl Seal {
    /// Sealed, with that configuration of the root key.
    pub fn new(root_key: config::RootKey) -> Self {
        let state = RwLock::new(State::Sealed("the server is starting".into()));
        Self { root_key, keyring: OnceLock::new(), state, refreshing: Mutex::new(()) }
    }

    /// What the server can do, as the last refresh found it.
    pub fn state(&self) -> State {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
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

    /// Reads the root keys from where the configuration says.
    ///
    /// # Errors
    /// `Sealed`, naming the file.
    pub fn root_keys(&self) -> Result<RootKeys, Error> {
        RootKeys::load(&self.root_key)
    }

    /// Looks at the database, and opens the keys unless they are open.
    pub async fn refresh(&self, store: &Store) {
        let _turn = self.refreshing.lock().await;
        let state = match tokio::time::timeout(REFRESH_MAX, self.find(store)).await {
            Ok(Ok(state)) => state,
            Ok(Err(Error::Sealed(why))) => State::Sealed(why),
            Ok(Err(Error::Database(cause))) => self.sealed_by_database(&cause),
            Ok(Err(error)) => State::Sealed(error.to_string()),
            Err(_) => State::Sealed("the database does not answer".into()),
        };
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// The cause is for the log, and once: the server tries again all the time.
    fn sealed_by_database(&self, cause: &sqlx::Error) -> State {
        const WHY: &str = "the database cannot be reached: see the server's log";
        if !matches!(self.state(), State::Sealed(why) if why == WHY) {
            tracing::error!(%cause, "the database cannot be reached");
        }
        State::Sealed(WHY.into())
    }

    async fn find(&self, store: &Store) -> Result<State, Error> {
        store.check_schema().await?;
        if let Some(keyring) = self.keyring.get() {
            return Ok(State::Serving(Arc::clone(keyring)));
        }
        let mut connection = store.connection().await?;
        let Some(installation) = installation::find(&mut connection).await? else {
            return Ok(State::Uninitialized);
        };
        let stored = root_wrapping_keys::newest(&mut connection).await?.ok_or_else(|| {
            Error::Sealed("the database has an installation but no root-wrapping key".into())
        })?;
        let keyring = Arc::new(Keyring::unseal(installation, &stored, &self.root_keys()?)?);
        Ok(State::Serving(Arc::clone(self.keyring.get_or_init(|| keyring))))
    }
}
