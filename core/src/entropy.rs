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
}
