//! Keys that somebody may know: declaring it, and which secrets they reached.

use keyfold_core::{
    audit::Operation,
    key::{KeyState, Purpose},
    object::Kind,
};

use crate::{
    broker::{Broker, Call, work::OperatorWork},
    error::Error,
    keys::keyring::{Keyring, stored},
    store::{
        exposure::{self, ExposedSecret, Holder},
        keks::{self, KekRow},
        keysets::{self, KeysetRow},
        objects,
    },
};

/// Most secrets on one page of a list.
pub const PAGE_MAX: u32 = 1000;

/// A key that was declared compromised.
pub struct Compromise {
    /// Its version.
    pub version: u32,
    /// The version that wraps now.
    pub active_version: u32,
    /// Payloads that it reached.
    pub payloads: u64,
    /// Secrets whose current version it reached.
    pub secrets: u64,
}

/// A secret that is to be rotated, and who was given it.
pub struct Exposed {
    /// The secret.
    pub secret: ExposedSecret,
    /// By the audit log, latest first.
    pub holders: Vec<Holder>,
}

impl Broker {
    /// Declares a version of a keyspace's key compromised, or the active one. Another takes the active one's place at
    /// once, without waiting for the replicas: one that has not met it yet opens it when it first does.
    ///
    /// What it reached is encrypted anew by the workers, in the background.
    ///
    /// # Errors
    /// `NotFound` for an unknown keyspace or version; `Conflict` when the version's state does not allow it.
    pub async fn compromise_key(
        &self,
        call: &Call,
        keyspace: &str,
        version: Option<u32>,
    ) -> Result<Compromise, Error> {
        let keyring = &*self.seal.keyring()?;
        let operation = move |done: Option<&Compromise>| Operation::KeyCompromise {
            keyspace: keyspace.to_owned(),
            version: done.map_or(version, |done| Some(done.version)),
            to_version: done.map(|done| done.active_version),
            payloads: done.map(|done| done.payloads),
            secrets: done.map(|done| done.secrets),
        };
        let done = self
            .operate(call, operation(None), |mut work| async move {
                let keyset = lock(&mut work, keyspace).await?;
                let (version, active_version) = self.compromise(&mut work, keyring, &keyset, version).await?;
                let keyspace_id = keyset.keyspace_id.unwrap_or_default();
                let reach = exposure::reach(work.tx(), keyspace_id, stored(version)?).await?;
                let count = |rows: i64| u64::try_from(rows).unwrap_or_default();
                let (payloads, secrets) = (count(reach.payloads), count(reach.secrets));
                let done = Compromise { version, active_version, payloads, secrets };
                work.state(operation(Some(&done)));
                work.allow(done).await
            })
            .await?;
        self.worker.wake();
        Ok(done)
    }

    /// Gives the version that it was, and the one that is active now.
    async fn compromise(
        &self,
        work: &mut OperatorWork<'_>,
        keyring: &Keyring,
        keyset: &KeysetRow,
        version: Option<u32>,
    ) -> Result<(u32, u32), Error> {
        let (macs, now) = (keyring.row_macs(), self.now());
        let keks = keks::of_keyset(work.tx(), macs, keyset.keyspace_id, Purpose::Data).await?;
        let mut states = keks::keyset(&keks)?;
        let version = version.unwrap_or(states.active());
        let conflict = |error| Error::Conflict(format!("key of keyspace {}: {error}", keyset.keyspace));
        let compromised = find(&keks, keyset, version)?;
        // Nobody writes under it until this is committed, and nobody afterwards.
        keks::hold_writers(work.tx(), keyset.keyspace_id).await?;
        if version != states.active() {
            states.compromise(version).map_err(conflict)?;
            keks::compromise(work.tx(), macs, compromised, now).await?;
            return Ok((version, states.active()));
        }
        let successor = match states.pre_active() {
            Some(successor) => find(&keks, keyset, successor)?.clone(),
            None => {
                let next = states.create().map_err(conflict)?;
                self.create(work, keyring, keyset, next).await?
            }
        };
        states.compromise(version).map_err(conflict)?;
        keks::compromise(work.tx(), macs, compromised, now).await?;
        keks::activate(work.tx(), macs, &successor, now).await?;
        Ok((version, states.active()))
    }

    async fn create(
        &self,
        work: &mut OperatorWork<'_>,
        keyring: &Keyring,
        keyset: &KeysetRow,
        version: u32,
    ) -> Result<KekRow, Error> {
        let macs = keyring.row_macs();
        let kek = keyring.new_kek(keyset.keyspace_id, Purpose::Data, version, &*self.entropy)?;
        // What the server just made must open before anything is written under it.
        keyring.test_kek(&kek, &*self.entropy)?;
        keks::insert_pre_active(work.tx(), macs, &kek, self.now()).await?;
        let keks = keks::of_keyset(work.tx(), macs, keyset.keyspace_id, Purpose::Data).await?;
        let created = keks.into_iter().find(|kek| kek.version == version && kek.state == KeyState::PreActive);
        created.ok_or_else(|| Error::Corrupt(format!("keks: version {version} is not what was written")))
    }

    /// Up to `limit` secrets of a keyspace after the path `after` that are to be rotated: a compromised key reached their
    /// current version, and no newer one has taken its place. Gives also the path to go on after, if there may be more.
    ///
    /// # Errors
    /// `NotFound` for an unknown keyspace, `Invalid` when the limit is beyond `PAGE_MAX`.
    pub async fn exposed_secrets(
        &self,
        call: &Call,
        keyspace: &str,
        after: &str,
        limit: u32,
    ) -> Result<(Vec<Exposed>, Option<String>), Error> {
        let keyring = &*self.seal.keyring()?;
        let operation = Operation::KeyListExposed { keyspace: keyspace.to_owned() };
        self.operate(call, operation, |mut work| async move {
            if limit > PAGE_MAX {
                return Err(Error::Invalid(format!("page_size must be at most {PAGE_MAX}")));
            }
            let object = objects::find(work.tx(), keyring.row_macs(), Kind::Keyspace, keyspace)
                .await?
                .ok_or_else(|| no_such_keyspace(keyspace))?;
            let secrets = exposure::list(work.tx(), object.id, after, i64::from(limit)).await?;
            let is_full = secrets.len() == limit as usize;
            let next = secrets.last().filter(|_| is_full).map(|last| last.path.clone());
            let mut page = Vec::with_capacity(secrets.len());
            for secret in secrets {
                let holders = exposure::holders(work.tx(), &secret.path, &secret.versions).await?;
                page.push(Exposed { secret, holders });
            }
            work.allow((page, next)).await
        })
        .await
    }
}

/// The keyset of a keyspace's data key; its lock lets one change of its keys at a time take place.
async fn lock(work: &mut OperatorWork<'_>, keyspace: &str) -> Result<KeysetRow, Error> {
    let found =
        if keyspace.is_empty() { None } else { keysets::lock(work.tx(), keyspace, Purpose::Data).await? };
    found.ok_or_else(|| no_such_keyspace(keyspace))
}

fn no_such_keyspace(keyspace: &str) -> Error {
    Error::NotFound(format!("there is no keyspace {keyspace}"))
}

/// One version of a keyset.
pub(super) fn find<'a>(keks: &'a [KekRow], keyset: &KeysetRow, version: u32) -> Result<&'a KekRow, Error> {
    keks.iter()
        .find(|kek| kek.version == version)
        .ok_or_else(|| Error::NotFound(format!("the {} has no version {version}", keyset.in_words())))
}
