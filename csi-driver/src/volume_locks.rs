//! One call at a time for each target path. A publish waits its turn for a while; an unpublish ends a publish that
//! waits for the network, and those behind it.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use crate::volume::TargetPath;

/// The locks of all volumes that have a call running.
#[derive(Default)]
pub struct VolumeLocks(Arc<Mutex<HashMap<PathBuf, Arc<Entry>>>>);

#[derive(Default)]
struct Entry {
    running: Arc<tokio::sync::Mutex<()>>,
    /// Cancelled from an unpublish on, until no call on the volume is left.
    unpublishing: CancellationToken,
}

/// Another call on the volume takes long, or it is being unpublished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another call on this volume is running")]
pub struct Busy;

/// The right to work on one volume. Send it along to whatever thread does the work.
pub struct VolumeLock {
    _running: OwnedMutexGuard<()>,
    claim: Claim,
}

/// A call's interest in an entry: the last one to go removes it.
struct Claim {
    locks: Arc<Mutex<HashMap<PathBuf, Arc<Entry>>>>,
    target: PathBuf,
    entry: Arc<Entry>,
}

impl VolumeLocks {
    /// Waits for the volume, up to `wait`.
    ///
    /// # Errors
    /// When that is not enough, or the volume is being unpublished.
    pub async fn lock_to_publish(&self, target: &TargetPath, wait: Duration) -> Result<VolumeLock, Busy> {
        let claim = self.claim(target);
        let unpublishing = claim.entry.unpublishing.clone();
        let lock = tokio::select! {
            biased;
            () = unpublishing.cancelled() => return Err(Busy),
            lock = claim.lock() => lock,
            () = tokio::time::sleep(wait) => return Err(Busy),
        };
        // The lock may have been there to take at the moment when an unpublish began.
        if unpublishing.is_cancelled() { Err(Busy) } else { Ok(lock) }
    }

    /// Ends what a publish of the volume waits for, and waits for the volume.
    pub async fn lock_to_unpublish(&self, target: &TargetPath) -> VolumeLock {
        let claim = self.claim(target);
        claim.entry.unpublishing.cancel();
        claim.lock().await
    }

    fn claim(&self, target: &TargetPath) -> Claim {
        let target = target.as_path().to_owned();
        let entry = Arc::clone(table(&self.0).entry(target.clone()).or_default());
        Claim { locks: Arc::clone(&self.0), target, entry }
    }
}

impl VolumeLock {
    /// Completes when an unpublish wants the volume.
    pub async fn unpublishing(&self) {
        self.claim.entry.unpublishing.cancelled().await;
    }
}

impl Claim {
    async fn lock(self) -> VolumeLock {
        let running = Arc::clone(&self.entry.running).lock_owned().await;
        VolumeLock { _running: running, claim: self }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut table = table(&self.locks);
        // The table's reference and this one: claims are made under the table's lock, so nobody can come between.
        if Arc::strong_count(&self.entry) == 2 {
            table.remove(&self.target);
        }
    }
}

/// No code panics while it holds the table, so a poisoned one is whole.
fn table(locks: &Mutex<HashMap<PathBuf, Arc<Entry>>>) -> MutexGuard<'_, HashMap<PathBuf, Arc<Entry>>> {
    locks.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::tests::target_of;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_second_call_waits_for_the_first_and_nothing_is_left_behind() {
        let locks = VolumeLocks::default();
        let target = target_of("a");
        let first = locks.lock_to_publish(&target, LONG).await.unwrap();
        let second = locks.lock_to_publish(&target, LONG);
        tokio::pin!(second);
        tokio::select! {
            biased;
            _ = &mut second => panic!("two calls at once"),
            () = tokio::task::yield_now() => {}
        }
        drop(first);
        drop(second.await.unwrap());
        assert!(table(&locks.0).is_empty());
    }

    #[tokio::test]
    async fn volumes_do_not_wait_for_each_other() {
        let locks = VolumeLocks::default();
        let _first = locks.lock_to_publish(&target_of("a"), LONG).await.unwrap();
        locks.lock_to_publish(&target_of("b"), LONG).await.unwrap();
        assert_eq!(table(&locks.0).len(), 1);
    }

    #[tokio::test]
    async fn a_publish_gives_up_after_a_while() {
        let locks = VolumeLocks::default();
        let _first = locks.lock_to_publish(&target_of("a"), LONG).await.unwrap();
        assert_eq!(locks.lock_to_publish(&target_of("a"), Duration::ZERO).await.err(), Some(Busy));
    }

    #[tokio::test]
    async fn an_unpublish_ends_the_publish_before_it_and_those_behind() {
        let locks = Arc::new(VolumeLocks::default());
        let target = target_of("a");
        let publish = locks.lock_to_publish(&target, LONG).await.unwrap();
        let unpublish = tokio::spawn({
            let (locks, target) = (Arc::clone(&locks), target.clone());
            async move { locks.lock_to_unpublish(&target).await }
        });
        publish.unpublishing().await;
        assert_eq!(locks.lock_to_publish(&target, LONG).await.err(), Some(Busy));
        drop(publish);
        drop(unpublish.await.unwrap());
        locks.lock_to_publish(&target, LONG).await.unwrap();
        assert!(table(&locks.0).is_empty());
    }
}
