//! The root key R: 32 bytes that seal the root-wrapping key and are held only while they do. Who keeps it, its
//! custody, is a matter of configuration; all that the providers differ in is how they have R again.

mod custody;
mod file;
mod kms_plugin;
mod pkcs11;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use custody::{Custody, CustodyKind};
use file::FileRoot;
use keyfold_core::{
    entropy::Entropy,
    envelope::root_key_id,
    secret::Key,
    shamir::{self, Collector, Commitments, Progress, Scheme, Share},
};
use kms_plugin::PluginRoot;
use pkcs11::TokenRoot;
use uuid::Uuid;

use crate::{config, error::Error};

/// A new root key, with what must be stored for having it again.
pub struct NewRoot {
    /// R itself: to seal with, and to drop right after.
    pub key: Key,
    /// Computed from R.
    pub id: Uuid,
    /// For `root_wrapping_keys`.
    pub custody: Custody,
    /// Of custody `shamir`: for people, shown once and kept nowhere. Empty otherwise.
    pub shares: Vec<Share>,
}

/// Who keeps the root key as the configuration says, and the shares of it that were entered since the start.
pub struct RootKeys {
    current: Provider,
    previous: Option<Provider>,
    entropy: Arc<dyn Entropy>,
    entered: Mutex<Option<Collector>>,
}

impl RootKeys {
    /// Of `root_key` and `previous_root_key`. Nothing is read or connected to yet.
    ///
    /// # Errors
    /// Names the key of the configuration that makes no sense, and why.
    pub fn new(
        current: &config::RootKey,
        previous: Option<&config::RootKey>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, String> {
        let of = |name: &str, key| Provider::new(key).map_err(|why| format!("{name}.{why}"));
        Ok(Self {
            current: of("root_key", current)?,
            previous: previous.map(|key| of("previous_root_key", key)).transpose()?,
            entropy,
            entered: Mutex::default(),
        })
    }

    /// Who keeps the roots that are made now.
    pub fn kind(&self) -> CustodyKind {
        self.current.kind()
    }

    /// The root key of that id. Custody `shamir` gives it once the shares are there, and forgets them then.
    ///
    /// # Errors
    /// `Sealed`, with what an operator must do.
    pub async fn open(&self, id: Uuid, custody: &Custody) -> Result<Key, Error> {
        let mut reasons = Vec::new();
        for (name, provider) in self.of_kind(custody.kind) {
            let opened = match provider {
                Provider::Shamir(_) => return self.open_shares(id, custody),
                Provider::File(file) => file.open(id).await,
                Provider::Pkcs11(token) => token.open(id, &custody.data).await,
                Provider::KmsPlugin(plugin) => plugin.open(&custody.data, &*self.entropy).await,
            };
            match opened {
                Ok(key) if root_key_id(&key) == id => return Ok(key),
                Ok(_) => reasons.push(format!(
                    "{name} gives another root key than {}, which is in use: {}",
                    id.simple(),
                    custody::NOT_AS_STORED
                )),
                Err(reason) => reasons.push(reason),
            }
        }
        Err(Error::Sealed(match reasons.is_empty() {
            true => self.not_configured(custody.kind),
            false => reasons.join("; and as previous_root_key: "),
        }))
    }

    /// The providers that keep roots in that way, with the names of their keys in the configuration.
    fn of_kind(&self, kind: CustodyKind) -> impl Iterator<Item = (&'static str, &Provider)> {
        let all = [("root_key", Some(&self.current)), ("previous_root_key", self.previous.as_ref())];
        all.into_iter()
            .filter_map(move |(name, provider)| Some((name, provider.filter(|it| it.kind() == kind)?)))
    }

    fn not_configured(&self, kind: CustodyKind) -> String {
        format!(
            "the root key in use is of custody {kind}, but root_key of the configuration names {}: name {kind} in \
             previous_root_key while the root key moves",
            self.kind()
        )
    }

    fn open_shares(&self, id: Uuid, custody: &Custody) -> Result<Key, Error> {
        let mut entered = self.collector(custody)?;
        let (progress, key) = match entered.as_ref() {
            Some(collector) => (collector.progress(), collector.combine()),
            None => return Err(Error::Sealed(custody::NOT_AS_STORED.into())),
        };
        let Some(key) = key else {
            return Err(Error::Sealed(format!(
                "{} of {} shares of the root key are entered: whoever has another one enters it with keyfold unseal",
                progress.have, progress.need
            )));
        };
        // Used or useless: in either case the shares are wiped now.
        *entered = None;
        if root_key_id(&key) == id { Ok(key) } else { Err(Error::Sealed(custody::NOT_AS_STORED.into())) }
    }

    /// The shares entered for that custody. Only another set of shares in Postgres begins anew, never a caller.
    fn collector(&self, custody: &Custody) -> Result<MutexGuard<'_, Option<Collector>>, Error> {
        let commitments: Commitments = custody.read().map_err(Error::Sealed)?;
        let mut entered = self.entered.lock().unwrap_or_else(PoisonError::into_inner);
        if entered.as_ref().is_none_or(|collector| *collector.commitments() != commitments) {
            *entered = Some(Collector::new(commitments));
        }
        Ok(entered)
    }

    /// Takes one share of the root key in use. The same share twice counts once. Only for while the server is sealed:
    /// the shares stay in memory until [`open`](Self::open) has used them.
    ///
    /// # Errors
    /// `Invalid` for a share that is not of this root key, which changes nothing; `Conflict` when people hold none;
    /// `Sealed` when this configuration has no use for them, or the stored commitments are damaged.
    pub fn enter(&self, custody: &Custody, share: Share) -> Result<Progress, Error> {
        if custody.kind != CustodyKind::Shamir {
            return Err(Error::Conflict(format!(
                "the root key in use is of custody {}: there are no shares to enter",
                custody.kind
            )));
        }
        if self.of_kind(custody.kind).next().is_none() {
            return Err(Error::Sealed(self.not_configured(custody.kind)));
        }
        let mut entered = self.collector(custody)?;
        let collector = entered.as_mut().ok_or_else(|| Error::Sealed(custody::NOT_AS_STORED.into()))?;
        collector.add(share).map_err(|wrong| Error::Invalid(wrong.to_string()))
    }

    /// How far that share would take it; `None` when it is entered already. Changes nothing.
    ///
    /// # Errors
    /// `Sealed` when this configuration has no use for it, or the stored commitments are damaged.
    pub fn progress_with(&self, custody: &Custody, share: &Share) -> Result<Option<Progress>, Error> {
        if self.of_kind(custody.kind).next().is_none() {
            return Err(Error::Sealed(self.not_configured(custody.kind)));
        }
        let entered = self.collector(custody)?;
        Ok(entered.as_ref().and_then(|entered| entered.with(share)))
    }

    /// Wipes shares that are of no use any more.
    pub fn forget_shares(&self) {
        *self.entered.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A new root key in the configured custody. Of custody `file` it is what the current file holds, which may be the
    /// root key in use: look at the id.
    ///
    /// # Errors
    /// `Sealed` when its keeper cannot make or keep one, with what to do; when there is no randomness.
    pub async fn make(&self) -> Result<NewRoot, Error> {
        let entropy = &*self.entropy;
        let fresh = Key::generate(entropy)?;
        let id = root_key_id(&fresh);
        let (key, data, shares) = match &self.current {
            Provider::File(file) => (file.current().await.map_err(Error::Sealed)?, Vec::new(), Vec::new()),
            Provider::Pkcs11(token) => {
                let data = token.keep(&fresh, id, entropy).await.map_err(Error::Sealed)?;
                (fresh, data, Vec::new())
            }
            Provider::KmsPlugin(plugin) => {
                let data = plugin.keep(&fresh, entropy).await.map_err(Error::Sealed)?;
                (fresh, data, Vec::new())
            }
            Provider::Shamir(scheme) => {
                let (shares, commitments) = shamir::split(&fresh, *scheme, entropy)?;
                (fresh, custody::write(&commitments), shares)
            }
        };
        let custody = Custody { kind: self.kind(), data };
        Ok(NewRoot { id: root_key_id(&key), key, custody, shares })
    }

    /// Looks whether the keeper of `root_key` could make and open a root now.
    ///
    /// # Errors
    /// `Sealed`, with what an operator must do.
    pub async fn check(&self) -> Result<(), Error> {
        match &self.current {
            Provider::File(file) => file.current().await.map(drop),
            Provider::Pkcs11(token) => token.check().await,
            Provider::KmsPlugin(plugin) => plugin.check().await,
            Provider::Shamir(_) => Ok(()),
        }
        .map_err(Error::Sealed)
    }
}

enum Provider {
    File(FileRoot),
    Pkcs11(TokenRoot),
    KmsPlugin(PluginRoot),
    Shamir(Scheme),
}

impl Provider {
    fn new(config: &config::RootKey) -> Result<Self, String> {
        Ok(match config {
            config::RootKey::File(files) => Self::File(FileRoot::new(files)),
            config::RootKey::Pkcs11(token) => Self::Pkcs11(TokenRoot::new(token)?),
            config::RootKey::KmsPlugin(plugin) => Self::KmsPlugin(PluginRoot::new(plugin)?),
            config::RootKey::Shamir(split) => Self::Shamir(
                Scheme::new(split.shares, split.threshold).map_err(|error| format!("shamir: {error}"))?,
            ),
        })
    }

    fn kind(&self) -> CustodyKind {
        match self {
            Self::File(_) => CustodyKind::File,
            Self::Pkcs11(_) => CustodyKind::Pkcs11,
            Self::KmsPlugin(_) => CustodyKind::KmsPlugin,
            Self::Shamir(_) => CustodyKind::Shamir,
        }
    }
}
