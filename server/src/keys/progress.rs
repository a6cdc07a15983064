//! How far all replicas together have moved DEKs, and how fast, as this one sees it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use uuid::Uuid;

use crate::store::deks::Counts;

/// What is counted as lately.
const WINDOW: Duration = Duration::from_secs(60);
/// Moments closer to each other than this are one.
const RESOLUTION: Duration = Duration::from_millis(200);

/// How often a worker looks how far others are.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// A count of all rows holds for as many times the time that it took: so counting takes a hundredth of the time at most,
/// however often somebody asks, and pods do not wait for it.
const COUNT_HOLDS: u32 = 100;

/// Remembers how many DEKs were moved, and when that was seen.
#[derive(Default)]
pub(crate) struct Progress {
    of_keysets: Mutex<HashMap<Uuid, Sightings>>,
    counted: Mutex<HashMap<Uuid, Counted>>,
}

/// How the DEKs of a keyset stood, with what this replica has moved since.
struct Counted {
    /// The version that they are moved to.
    version: u32,
    counts: Counts,
    until: Instant,
}

struct Sightings {
    /// The version that they are moved to.
    version: u32,
    /// Of the last minute, oldest first: DEKs moved to it so far.
    moved: VecDeque<(Instant, u64)>,
}

impl Progress {
    /// Notes that `moved` DEKs are at the version now. Gives how many a second were moved lately; 0 with a single sight.
    pub(crate) fn note(&self, keyset: Uuid, version: u32, moved: u64, now: Instant) -> f64 {
        let mut of_keysets = self.locked();
        let seen = of_keysets.entry(keyset).or_insert_with(|| Sightings { version, moved: VecDeque::new() });
        if seen.version != version {
            *seen = Sightings { version, moved: VecDeque::new() };
        }
        seen.note(moved, now)
    }

    /// How the DEKs of a keyset stand, if they were counted not long ago and some are still to be moved.
    pub(crate) fn held(&self, keyset: Uuid, version: u32, now: Instant) -> Option<Counts> {
        let counted = self.counted();
        let held = counted.get(&keyset).filter(|held| held.version == version && now < held.until)?;
        (held.counts.pending > 0).then_some(held.counts)
    }

    /// Holds what was counted just now, which took so long.
    pub(crate) fn hold(&self, keyset: Uuid, version: u32, counts: Counts, took: Duration, now: Instant) {
        self.counted().insert(keyset, Counted { version, counts, until: now + took * COUNT_HOLDS });
    }

    /// Notes that this replica has moved `deks` to the version.
    pub(crate) fn moved(&self, keyset: Uuid, version: u32, deks: u64) {
        let mut counted = self.counted();
        let Some(held) = counted.get_mut(&keyset).filter(|held| held.version == version) else { return };
        let Counts { done, moved, pending, .. } = &mut held.counts;
        (*done, *moved, *pending) = (*done + deks, *moved + deks, pending.saturating_sub(deks));
    }

    /// What was counted may be wrong by more than what is moved.
    pub(crate) fn forget_counts(&self) {
        self.counted().clear();
    }

    fn counted(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Counted>> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is time to look how far that keyset is.
    pub(crate) fn is_due(&self, keyset: Uuid, now: Instant) -> bool {
        let of_keysets = self.locked();
        let last = of_keysets.get(&keyset).and_then(|seen| seen.moved.back());
        last.is_none_or(|(at, _)| now - *at >= LOOK_INTERVAL)
    }

    /// Nothing is moved in any other keyset.
    pub(crate) fn keep(&self, keysets: &[Uuid]) {
        self.locked().retain(|keyset, _| keysets.contains(keyset));
    }

    /// Whether something is moved in any keyset.
    pub(crate) fn is_under_way(&self) -> bool {
        !self.locked().is_empty()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Sightings>> {
        self.of_keysets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sightings {
    fn note(&mut self, moved: u64, now: Instant) -> f64 {
        while self.moved.len() > 1 && self.moved.front().is_some_and(|(at, _)| now - *at > WINDOW) {
            self.moved.pop_front();
        }
        if let [.., (before, _), (last, _)] = self.moved.make_contiguous()
            && *last - *before < RESOLUTION
        {
            self.moved.pop_back();
        }
        self.moved.push_back((now, moved));
        let Some((first_at, first)) = self.moved.front() else { return 0.0 };
        let secs = (now - *first_at).as_secs_f64();
        #[allow(clippy::cast_precision_loss, reason = "a rate is for people")]
        let deks = moved.saturating_sub(*first) as f64;
        if secs > 0.0 { deks / secs } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_rate_is_the_last_minutes_mean() {
        let (progress, keyset, start) = (Progress::default(), Uuid::nil(), Instant::now());
        assert_eq!(progress.note(keyset, 2, 0, start), 0.0, "one sight tells no rate");
        assert_eq!(progress.note(keyset, 2, 1000, start + SECOND), 1000.0);
        assert_eq!(progress.note(keyset, 2, 3000, start + 2 * SECOND), 1500.0);
        let later = progress.note(keyset, 2, 3000, start + 120 * SECOND);
        assert_eq!(later, 0.0, "nothing was moved in the minute before");
    }

    #[test]
    fn a_count_holds_a_hundred_times_as_long_as_it_took_and_follows_what_is_moved() {
        let (progress, keyset, now) = (Progress::default(), Uuid::nil(), Instant::now());
        let counts = Counts { done: 10, moved: 5, pending: 20, ..Counts::default() };
        progress.hold(keyset, 2, counts, Duration::from_millis(30), now);
        progress.moved(keyset, 2, 15);
        progress.moved(keyset, 1, 1);
        let held = progress.held(keyset, 2, now + 2 * SECOND).unwrap();
        assert_eq!((held.done, held.moved, held.pending), (25, 20, 5));
        assert!(progress.held(keyset, 3, now).is_none(), "of another turn");
        assert!(progress.held(keyset, 2, now + 3 * SECOND).is_none(), "too old");
        progress.moved(keyset, 2, 5);
        assert!(progress.held(keyset, 2, now).is_none(), "the end is counted exactly");
        progress.hold(keyset, 2, counts, SECOND, now);
        progress.forget_counts();
        assert!(progress.held(keyset, 2, now).is_none());
    }

    #[test]
    fn a_newer_version_begins_anew() {
        let (progress, keyset, start) = (Progress::default(), Uuid::nil(), Instant::now());
        progress.note(keyset, 2, 1000, start);
        assert_eq!(progress.note(keyset, 3, 10, start + SECOND), 0.0);
        assert_eq!(progress.note(keyset, 3, 20, start + 2 * SECOND), 10.0);
    }

    #[test]
    fn looking_all_the_time_keeps_little() {
        let (progress, keyset, start) = (Progress::default(), Uuid::nil(), Instant::now());
        for milli in 0..10_000 {
            progress.note(keyset, 2, milli, start + Duration::from_millis(milli));
        }
        assert!(progress.locked()[&keyset].moved.len() <= 52);
    }
}
