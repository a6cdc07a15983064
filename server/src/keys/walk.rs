//! Where a replica's rewraps are: what was found to be left, and behind which DEK the next batch begins.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use uuid::Uuid;

use crate::store::deks::Leftover;

/// How long what is left to be moved is not looked for, as long as there is some in each of the keyspaces that were found.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Where this replica's rewraps are. A batch goes on after the last one, and does not step over all that were moved before,
/// whose old places in the index stay until Postgres cleans up.
#[derive(Default)]
pub(crate) struct Walk(Mutex<Option<Walked>>);

struct Walked {
    leftovers: Arc<Vec<Leftover>>,
    until: Instant,
    /// The last DEK of each keyspace.
    after: HashMap<Uuid, Uuid>,
}

impl Walk {
    /// What was found to be left, unless it is to be looked for again.
    pub(super) fn leftovers(&self, now: Instant) -> Option<Arc<Vec<Leftover>>> {
        self.locked().as_ref().filter(|walked| now < walked.until).map(|walked| Arc::clone(&walked.leftovers))
    }

    /// Goes on where it was, with what is left now.
    pub(super) fn begin(&self, found: Vec<Leftover>, now: Instant) -> Arc<Vec<Leftover>> {
        let (mut walked, leftovers) = (self.locked(), Arc::new(found));
        let of_version = |leftover: &Leftover| (leftover.keyspace_id, leftover.from_version);
        let mut after = HashMap::new();
        if let Some(before) = walked.take() {
            let is_left =
                |known: &&Leftover| leftovers.iter().any(|found| of_version(found) == of_version(known));
            for known in before.leftovers.iter().filter(is_left) {
                after.extend(before.after.get(&known.keyspace_id).map(|dek| (known.keyspace_id, *dek)));
            }
        }
        if !leftovers.is_empty() {
            *walked = Some(Walked { leftovers: Arc::clone(&leftovers), until: now + LOOK_INTERVAL, after });
        }
        leftovers
    }

    /// After which DEK the next batch of a keyspace begins.
    pub(super) fn after(&self, leftover: &Leftover) -> Uuid {
        let walked = self.locked();
        walked
            .as_ref()
            .and_then(|walked| walked.after.get(&leftover.keyspace_id).copied())
            .unwrap_or_default()
    }

    /// Notes a batch's last DEK. When there was none, it is time to look again, from the beginning: others may have let go of what
    /// they held.
    pub(super) fn went(&self, leftover: &Leftover, last: Option<Uuid>, now: Instant) {
        let mut walked = self.locked();
        let Some(walked) = &mut *walked else { return };
        if let Some(last) = last {
            walked.after.insert(leftover.keyspace_id, last);
        } else {
            walked.after.remove(&leftover.keyspace_id);
            walked.until = now;
        }
    }

    /// Looks again: keys have changed.
    pub(crate) fn stop(&self) {
        *self.locked() = None;
    }

    fn locked(&self) -> MutexGuard<'_, Option<Walked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leftover(keyspace: u128, from_version: i32) -> Leftover {
        let id = Uuid::from_u128(keyspace);
        Leftover { keyset_id: id, keyspace_id: id, keyspace: keyspace.to_string(), from_version }
    }

    fn dek(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    #[test]
    fn a_walk_goes_on_after_its_last_batch_until_there_was_none() {
        let (walk, now) = (Walk::default(), Instant::now());
        assert!(walk.leftovers(now).is_none());
        walk.begin(vec![leftover(1, 1), leftover(2, 1)], now);
        assert_eq!(walk.after(&leftover(1, 1)), Uuid::nil());
        walk.went(&leftover(1, 1), Some(dek(7)), now);
        walk.went(&leftover(2, 1), Some(dek(8)), now);
        assert_eq!(walk.after(&leftover(1, 1)), dek(7));
        assert_eq!(walk.leftovers(now).map(|found| found.len()), Some(2), "nothing is looked for meanwhile");
        walk.went(&leftover(1, 1), None, now);
        assert!(walk.leftovers(now).is_none(), "it is time to look again");
        walk.begin(vec![leftover(1, 1), leftover(2, 1)], now);
        assert_eq!(
            walk.after(&leftover(1, 1)),
            Uuid::nil(),
            "from the beginning, where there was nothing more"
        );
        assert_eq!(walk.after(&leftover(2, 1)), dek(8), "and where it was elsewhere");
    }

    #[test]
    fn a_walk_looks_again_after_a_while_and_begins_anew_for_another_version_and_when_keys_change() {
        let (walk, now) = (Walk::default(), Instant::now());
        walk.begin(vec![leftover(1, 1)], now);
        walk.went(&leftover(1, 1), Some(dek(7)), now);
        assert!(walk.leftovers(now + LOOK_INTERVAL).is_none());
        walk.begin(vec![leftover(1, 2)], now);
        assert_eq!(walk.after(&leftover(1, 2)), Uuid::nil());
        walk.went(&leftover(1, 2), Some(dek(9)), now);
        walk.stop();
        assert!(walk.leftovers(now).is_none());
        walk.begin(vec![leftover(1, 2)], now);
        assert_eq!(walk.after(&leftover(1, 2)), Uuid::nil());
        walk.begin(Vec::new(), now);
        assert!(walk.leftovers(now).is_none(), "without leftovers each pass looks");
    }
}
