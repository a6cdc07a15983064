//! A key in the hands of several people: split into shares of which any `threshold` give it again, and fewer give
//! nothing (Shamir 1979, over GF(256), byte by byte).
//!
//! Each share has a commitment, a salted hash that is kept where the share is not. So a wrong share is refused by
//! itself, at once, and never spoils what the others have entered.

mod base32;
mod share;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, convert::Infallible};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rand_core::{TryCryptoRng, TryRng};
use ring::digest;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use vsss_rs::{Gf256, IdentifierGf256};
use zeroize::Zeroizing;

use crate::{
    entropy::{Entropy, EntropyError},
    secret::Key,
};
pub use share::{SetId, Share, ShareError};

const COMMITMENT_DOMAIN: &[u8] = b"keyfold/v1/share-commitment";
const DIGEST_BYTES: usize = 32;
const SALT_BYTES: usize = 32;

/// How many shares a key is split into, and how many of them give it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheme {
    shares: u8,
    threshold: u8,
}

impl Scheme {
    /// `threshold` of `shares`: at least 2, and at most 255, for GF(256) has no more points.
    ///
    /// # Errors
    /// When the numbers are outside that. A threshold of 1 would make each share the key itself.
    pub fn new(shares: u32, threshold: u32) -> Result<Self, SchemeError> {
        match (u8::try_from(shares), u8::try_from(threshold)) {
            (Ok(shares), Ok(threshold)) if (2..=shares).contains(&threshold) => {
                Ok(Self { shares, threshold })
            }
            _ => Err(SchemeError { shares, threshold }),
        }
    }

    /// Shares in all.
    pub fn shares(&self) -> u8 {
        self.shares
    }

    /// Shares that give the key again.
    pub fn threshold(&self) -> u8 {
        self.threshold
    }
}

/// These numbers make no scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{threshold} of {shares} shares is not possible: the threshold must be at least 2, and not above the number of \
     shares, which must not be above 255"
)]
pub struct SchemeError {
    /// Shares asked for.
    pub shares: u32,
    /// Threshold asked for.
    pub threshold: u32,
}

/// Splits `key`. The shares are for people, one each; the commitments are kept, and are no secret.
///
/// # Errors
/// When there is no randomness.
pub fn split(
    key: &Key,
    scheme: Scheme,
    entropy: &dyn Entropy,
) -> Result<(Vec<Share>, Commitments), EntropyError> {
    let (mut set, mut salt) = ([0; SetId::LEN_BYTES], [0; SALT_BYTES]);
    entropy.fill(&mut set)?;
    entropy.fill(&mut salt)?;
    let set = SetId(set);
    let shares: Vec<_> = points(key, scheme, entropy)?.iter().map(|point| Share::at(set, point)).collect();
    let digests = shares.iter().map(|share| digest(&salt, share)).collect();
    Ok((shares, Commitments { set, threshold: scheme.threshold, salt, digests }))
}

/// The points of the polynomials, each an index and one byte for each byte of the key.
fn points(key: &Key, scheme: Scheme, entropy: &dyn Entropy) -> Result<Zeroizing<Vec<Vec<u8>>>, EntropyError> {
    let mut source = Source { entropy, failed: false };
    let indexes = (1..=scheme.shares).map(|index| IdentifierGf256(Gf256(index)));
    let (threshold, shares) = (scheme.threshold.into(), scheme.shares.into());
    let points =
        Gf256::split_bytes_with_participant_ids_iter(threshold, shares, key.expose(), &mut source, indexes)
            .map(Zeroizing::new)
            .expect("a scheme has numbers that can be split into, and a key is not empty");
    if source.failed { Err(EntropyError) } else { Ok(points) }
}

/// Our randomness for a generator that cannot fail: a failure is kept, and what was made with it thrown away.
struct Source<'a> {
    entropy: &'a dyn Entropy,
    failed: bool,
}

impl TryRng for Source<'_> {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = Zeroizing::new([0; 4]);
        self.try_fill_bytes(&mut *bytes).map(|()| u32::from_le_bytes(*bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = Zeroizing::new([0; 8]);
        self.try_fill_bytes(&mut *bytes).map(|()| u64::from_le_bytes(*bytes))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        self.failed |= self.entropy.fill(out).is_err();
        Ok(())
    }
}

impl TryCryptoRng for Source<'_> {}

/// What is kept of a set of shares: how many there are, how many are needed, and a salted hash of each. It tells
/// nothing of the key: a share is 256 random bits, so its hash cannot be guessed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StoredCommitments", into = "StoredCommitments")]
pub struct Commitments {
    set: SetId,
    threshold: u8,
    salt: [u8; SALT_BYTES],
    /// Of share 1, 2, 3 …
    digests: Vec<[u8; DIGEST_BYTES]>,
}

impl Commitments {
    /// Names the set.
    pub fn set(&self) -> SetId {
        self.set
    }

    /// Shares in all.
    pub fn shares(&self) -> u8 {
        u8::try_from(self.digests.len()).unwrap_or(u8::MAX)
    }

    /// Shares that give the key again.
    pub fn threshold(&self) -> u8 {
        self.threshold
    }

    /// Looks whether a share is one of this set, unchanged.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn verify(&self, share: &Share) -> Result<(), WrongShare> {
        if share.set() != self.set {
            return Err(WrongShare::OtherSet { set: share.set(), expected: self.set });
        }
        let known = usize::from(share.index()).checked_sub(1).and_then(|place| self.digests.get(place));
        match known {
            Some(known) if bool::from(known.ct_eq(&digest(&self.salt, share))) => Ok(()),
            _ => Err(WrongShare::NotOfTheSet { index: share.index() }),
        }
    }
}

fn digest(salt: &[u8; SALT_BYTES], share: &Share) -> [u8; DIGEST_BYTES] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in [COMMITMENT_DOMAIN, &share.set().0, &[share.index()], salt, share.value()] {
        context.update(part);
    }
    let mut out = [0; DIGEST_BYTES];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// The stored form, in text.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredCommitments {
    set: String,
    threshold: u8,
    salt: String,
    digests: Vec<String>,
}

impl From<Commitments> for StoredCommitments {
    fn from(commitments: Commitments) -> Self {
        Self {
            set: commitments.set.to_string(),
            threshold: commitments.threshold,
            salt: STANDARD.encode(commitments.salt),
            digests: commitments.digests.iter().map(|digest| STANDARD.encode(digest)).collect(),
        }
    }
}

impl TryFrom<StoredCommitments> for Commitments {
    type Error = CommitmentsError;

    fn try_from(stored: StoredCommitments) -> Result<Self, CommitmentsError> {
        let bytes = |text: &str| STANDARD.decode(text).ok()?.try_into().ok();
        let read = || {
            let shares = u32::try_from(stored.digests.len()).ok()?;
            let scheme = Scheme::new(shares, stored.threshold.into()).ok()?;
            Some(Self {
                set: SetId::parse(&stored.set)?,
                threshold: scheme.threshold,
                salt: bytes(&stored.salt)?,
                digests: stored.digests.iter().map(|digest| bytes(digest)).collect::<Option<_>>()?,
            })
        };
        read().ok_or(CommitmentsError)
    }
}

/// What should be commitments is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the commitments of a set of shares are not as they were written")]
pub struct CommitmentsError;

/// Takes shares of one set until there are enough. It holds each of them once, so at most as many as there are.
pub struct Collector {
    commitments: Commitments,
    shares: BTreeMap<u8, Share>,
}

/// How far the shares that were entered go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Different shares entered.
    pub have: u8,
    /// Shares that give the key.
    pub need: u8,
}

impl Progress {
    /// Whether there are enough.
    pub fn is_complete(&self) -> bool {
        self.have >= self.need
    }
}

impl Collector {
    /// Without any share yet.
    pub fn new(commitments: Commitments) -> Self {
        Self { commitments, shares: BTreeMap::new() }
    }

    /// What the shares are held against.
    pub fn commitments(&self) -> &Commitments {
        &self.commitments
    }

    /// Takes one share. The same share twice counts once.
    ///
    /// # Errors
    /// When it is not one of the set; nothing changes then.
    pub fn add(&mut self, share: Share) -> Result<Progress, WrongShare> {
        self.commitments.verify(&share)?;
        self.shares.insert(share.index(), share);
        Ok(self.progress())
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let have = u8::try_from(self.shares.len()).unwrap_or(u8::MAX);
        Progress { have, need: self.commitments.threshold }
    }

    /// How far it would be with that share of the set; `None` when that is entered already.
    pub fn with(&self, share: &Share) -> Option<Progress> {
        let Progress { have, need } = self.progress();
        (!self.shares.contains_key(&share.index())).then_some(Progress { have: have.saturating_add(1), need })
    }

    /// The key, if there are enough shares. They stay, until the collector is dropped, which wipes them.
    pub fn combine(&self) -> Option<Key> {
        if !self.progress().is_complete() {
            return None;
        }
        let enough = self.shares.values().take(self.commitments.threshold.into());
        let points: Zeroizing<Vec<Vec<u8>>> = Zeroizing::new(enough.map(Share::point).collect());
        let bytes = Gf256::combine_bytes(&points[..]).map(Zeroizing::new).ok()?;
        Key::try_from(&bytes[..]).ok()
    }
}

/// Why a share was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WrongShare {
    /// Of another key, or of an earlier split of the same.
    #[error(
        "this share is of the set {set}, but shares of the set {expected} are wanted: it was made at another time"
    )]
    OtherSet {
        /// Named by the share.
        set: SetId,
        /// Wanted.
        expected: SetId,
    },
    /// It names the set, but is none of its shares.
    #[error(
        "share {index} is not the one that was made with this set: look whether it was changed or invented"
    )]
    NotOfTheSet {
        /// Named by the share.
        index: u8,
    },
}
