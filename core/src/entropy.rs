//! Randomness as a parameter, so that tests can fix it and nothing else can reach for it unseen.

use ring::rand::{SecureRandom, SystemRandom};
use uuid::Uuid;

/// A source of cryptographic randomness.
pub trait Entropy: Send + Sync {
    /// Fills all of `out`. After an error, `out` must not be used.
    fn fill(&self, out: &mut [u8]) -> Result<(), EntropyError>;

    /// A random identifier: UUID version 4 (RFC 9562, section 5.4).
    fn uuid(&self) -> Result<Uuid, EntropyError> {
        let mut bytes = [0; 16];
        self.fill(&mut bytes)?;
        Ok(uuid::Builder::from_random_bytes(bytes).into_uuid())
    }

    /// An identifier that sorts by its time, in microseconds since 1970, to the millisecond: UUID version 7 (RFC 9562, section
    /// 5.7). For rows of which there are many: those that were written together lie together in indexes.
    fn uuid_at(&self, at_micros: i64) -> Result<Uuid, EntropyError> {
        let mut random = [0; 10];
        self.fill(&mut random)?;
        let millis = u64::try_from(at_micros / 1000).unwrap_or_default();
        Ok(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }
}

/// The operating system's generator, `getrandom(2)` on Linux.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, out: &mut [u8]) -> Result<(), EntropyError> {
        SystemRandom::new().fill(out).map_err(|_| EntropyError)
    }
}

/// The source of randomness failed; nothing may be sealed or issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gave no randomness; check getrandom(2) on this host")]
pub struct EntropyError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_entropy_fills_the_whole_buffer_anew_each_time() {
        let (mut first, mut second) = ([0; 64], [0; 64]);
        SystemEntropy.fill(&mut first).unwrap();
        SystemEntropy.fill(&mut second).unwrap();
        assert_ne!(first, second);
        assert!(first.chunks(16).all(|chunk| chunk != [0; 16]));
    }

    #[test]
    fn uuids_are_random_version_4() {
        let (first, second) = (SystemEntropy.uuid().unwrap(), SystemEntropy.uuid().unwrap());
        assert_ne!(first, second);
        assert_eq!(first.get_version(), Some(uuid::Version::Random));
        assert_eq!(first.get_variant(), uuid::Variant::RFC4122);
    }

    #[test]
    fn uuids_of_a_time_are_version_7_and_sort_by_it() {
        let at = |micros| SystemEntropy.uuid_at(micros).unwrap();
        let (first, second) = (at(1_700_000_000_000_999), at(1_700_000_000_000_999));
        assert_ne!(first, second);
        assert_eq!(first.get_version(), Some(uuid::Version::SortRand));
        assert_eq!(first.get_timestamp().unwrap().to_unix(), (1_700_000_000, 0));
        assert!(first.max(second) < at(1_700_000_000_001_000));
        assert!(at(-5) < first, "before 1970 there is nothing");
    }
}
