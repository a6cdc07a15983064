//! Answers that count for a short time.

use std::time::Duration;

use quick_cache::{Weighter, sync::Cache};
use ring::digest::{Context, SHA256};
use time::OffsetDateTime;

/// What was asked of whom, hashed: keys hold neither tokens nor names.
pub(super) type Key = [u8; 32];

/// Hashes the parts, each with its length, so that no two lists of parts have one key.
pub(super) fn key(serial: u64, parts: &[&str]) -> Key {
    let mut context = Context::new(&SHA256);
    context.update(&serial.to_be_bytes());
    for part in parts {
        context.update(&part.len().to_be_bytes());
        context.update(part.as_bytes());
    }
    let mut key = Key::default();
    key.copy_from_slice(context.finish().as_ref());
    key
}

/// Answers by key, each for `ttl`, together at most as heavy as was said.
pub(super) struct Recent<V> {
    ttl: Duration,
    kept: Cache<Key, Kept<V>, ByWeight>,
}

#[derive(Clone)]
struct Kept<V> {
    value: V,
    weight: u64,
    at: OffsetDateTime,
}

#[derive(Clone)]
struct ByWeight;

impl<V> Weighter<Key, Kept<V>> for ByWeight {
    fn weight(&self, _: &Key, kept: &Kept<V>) -> u64 {
        kept.weight
    }
}

impl<V: Clone> Recent<V> {
    /// `items` is what is usual, `weight_max` what is never exceeded.
    pub(super) fn new(ttl: Duration, items: usize, weight_max: u64) -> Self {
        Self { ttl, kept: Cache::with_weighter(items, weight_max, ByWeight) }
    }

    pub(super) fn find(&self, key: &Key, now: OffsetDateTime) -> Option<V> {
        let kept = self.kept.get(key)?;
        super::within(kept.at, self.ttl, now).then_some(kept.value)
    }

    pub(super) fn keep(&self, key: Key, value: V, weight: u64, at: OffsetDateTime) {
        self.kept.insert(key, Kept { value, weight, at });
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-23 12:00 UTC);
    const TTL: Duration = Duration::from_secs(10);

    #[test]
    fn an_answer_counts_for_its_time_and_not_before_it() {
        let recent = Recent::new(TTL, 10, 10);
        let key = key(1, &["a"]);
        recent.keep(key, "answer", 1, NOW);
        assert_eq!(recent.find(&key, NOW), Some("answer"));
        assert_eq!(recent.find(&key, NOW + Duration::from_secs(9)), Some("answer"));
        assert_eq!(recent.find(&key, NOW + TTL), None);
        assert_eq!(recent.find(&key, NOW - Duration::from_secs(1)), None, "a clock that went back");
    }

    #[test]
    fn the_weight_is_never_exceeded() {
        let recent = Recent::new(TTL, 100, 1000);
        for number in 0..10_000 {
            recent.keep(key(number, &[]), (), 10, NOW);
            assert!(recent.kept.weight() <= 1000);
        }
        assert!(recent.kept.len() > 10, "and something is kept");
    }

    #[test]
    fn keys_differ_where_anything_differs() {
        let keys = [
            key(1, &["a", "b"]),
            key(2, &["a", "b"]),
            key(1, &["ab"]),
            key(1, &["ab", ""]),
            key(1, &["", "ab"]),
            key(1, &["a", "c"]),
        ];
        for (at, one) in keys.iter().enumerate() {
            assert!(!keys[at + 1..].contains(one), "{at}");
        }
    }
}
