//! Whether the server can open what it stores. It starts sealed, and unseals by itself as soon as the database and the
//! root key can be reached.

use std::sync::{Arc, RwLock};

use crate::{
    config,
    error::Error,
    keys::{keyring::Keyring, root::RootKeys},
    store::{Store, installation, root_wrapping_keys},
};

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
    state: RwLock<State>,
}

impl Seal {
    /// Sealed, with that configuration of the root key.
    pub fn new(root_key: config::RootKey) -> Self {
        Self { root_key, state: RwLock::new(State::Sealed("the server is starting".into())) }
    }

    /// What the server can do now.
    pub fn state(&self) -> State {
        self.state.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
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

    /// Tries to open the keys, unless they are open. Gives the state afterwards.
    pub async fn unseal(&self, store: &Store) -> State {
        if let State::Serving(keyring) = self.state() {
            return State::Serving(keyring);
        }
        let state = match self.try_unseal(store).await {
            Ok(state) => state,
            Err(Error::Sealed(why)) => State::Sealed(why),
            Err(Error::Database(cause)) => self.sealed_by_database(&cause),
            Err(error) => State::Sealed(error.to_string()),
        };
        *self.state.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = state.clone();
        state
    }

    /// The cause is for the log, and once: the server tries again all the time.
    fn sealed_by_database(&self, cause: &sqlx::Error) -> State {
        const WHY: &str = "the database cannot be reached: see the server's log";
        if !matches!(self.state(), State::Sealed(why) if why == WHY) {
            tracing::error!(%cause, "the database cannot be reached");
        }
        State::Sealed(WHY.into())
    }

    async fn try_unseal(&self, store: &Store) -> Result<State, Error> {
        store.check_schema().await?;
        let mut connection = store.connection().await?;
        let Some(installation) = installation::find(&mut connection).await? else {
            return Ok(State::Uninitialized);
        };
        let stored = root_wrapping_keys::newest(&mut connection).await?.ok_or_else(|| {
            Error::Sealed("the database has an installation but no root-wrapping key".into())
        })?;
        Ok(State::Serving(Arc::new(Keyring::unseal(installation, &stored, &self.root_keys()?)?)))
    }
}
