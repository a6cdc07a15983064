//! The keys of all issuer objects. Each generation of an object has keys of its own, so that callers with an older and
//! with a newer list of issuers, both in flight, never see each other's.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use keyfold_core::{clock::Clock, name::ObjectName};
use tokio::sync::Semaphore;

use super::{
    IssuerRecord,
    issuer_keys::{IssuerKeys, KeyReader},
};

/// Issuers that are asked at once in the background. Each is given up after five seconds.
const REFRESHES_AT_ONCE: usize = 8;

/// How long keys stay that no caller's list of issuers names: longer than any request is in flight.
const KEPT_UNNAMED: Duration = Duration::from_secs(60);

/// The keys of all issuers.
pub(super) struct KeyRegistry {
    reader: Arc<KeyReader>,
    /// By name; of one name rarely more than one.
    generations: Mutex<HashMap<ObjectName, Vec<Arc<IssuerKeys>>>>,
    refreshes: Arc<Semaphore>,
}

impl KeyRegistry {
    pub(super) fn new(reader: KeyReader) -> Self {
        let refreshes = Arc::new(Semaphore::new(REFRESHES_AT_ONCE));
        Self { reader: Arc::new(reader), generations: Mutex::default(), refreshes }
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        &*self.reader.clock
    }

    /// The keys of exactly this issuer object. They may not have been read yet.
    pub(super) fn of(&self, issuer: &IssuerRecord) -> Arc<IssuerKeys> {
        let mut all = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        let found = all.get(&issuer.name).and_then(|keys| keys.iter().find(|keys| keys.record == *issuer));
        let keys = match found {
            Some(keys) => Arc::clone(keys),
            None => {
                let generations = all.entry(issuer.name.clone()).or_default();
                let before = generations.last().map(|keys| &**keys);
                let keys = Arc::new(IssuerKeys::new(issuer.clone(), Arc::clone(&self.reader), before));
                generations.push(Arc::clone(&keys));
                keys
            }
        };
        keys.named();
        keys
    }

    /// Begins to read what is due, and forgets what nobody names any more. What finds no place now finds one at a later
    /// call: those that fail wait longer and longer.
    pub(super) fn refresh(&self, issuers: &[IssuerRecord]) {
        for keys in issuers.iter().map(|issuer| self.of(issuer)).filter(|keys| keys.are_due()) {
            let Ok(place) = Arc::clone(&self.refreshes).try_acquire_owned() else { break };
            tokio::spawn(async move {
                keys.refresh().await;
                drop(place);
            });
        }
        let mut all = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, generations| {
            generations.retain(|keys| keys.unnamed_for() < KEPT_UNNAMED);
            !generations.is_empty()
        });
    }
}

#[cfg(test)]
impl KeyRegistry {
    /// Waits until nothing is read in the background.
    pub(super) async fn settled(&self) {
        let all = u32::try_from(REFRESHES_AT_ONCE).expect("a few");
        let _places = self.refreshes.acquire_many(all).await.expect("never closed");
    }

    /// How many generations of all issuers are kept.
    pub(super) fn kept(&self) -> usize {
        self.generations.lock().expect("no panic").values().map(Vec::len).sum()
    }
}
