//! Tokens that were verified: each costs one hash and one look-up when it comes again, instead of a signature check.
//!
//! An entry proves nothing by itself. Whoever finds one checks what may have changed since: the issuer object, its
//! keys, the time. Refusals are not kept: what is refused now may be accepted a moment later.

use std::sync::Arc;

use keyfold_core::{
    secret::wiping_stack,
    token::{CheckedClaims, TokenRefusal, Validity},
};
use quick_cache::{Weighter, sync};
use ring::digest;

use super::{issuer_keys::IssuerKeys, jwks::PublicKey};

/// About what a pod's token has.
const TOKEN_BYTES_TYPICAL: usize = 1024;

/// SHA-256 of a token: it finds the entry and is of no use as a token.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct TokenDigest([u8; 32]);

impl TokenDigest {
    pub(super) fn of(token: &str) -> Self {
        let mut bytes = [0; 32];
        // SHA-256 takes in what it hashes by way of the stack.
        wiping_stack(|| bytes.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref()));
        Self(bytes)
    }
}

/// A token that was verified, and what that rested on.
pub(super) struct Verified<T> {
    /// Who it proves.
    pub(super) identity: Arc<T>,
    /// When it may be used.
    pub(super) validity: Validity,
    /// The issuer object, in its generation, with its keys.
    pub(super) issuer: Arc<IssuerKeys>,
    /// The key that verified it.
    pub(super) key: Arc<PublicKey>,
    /// How long it is.
    pub(super) token_bytes: usize,
}

/// Verified tokens of one kind of caller, and how such a token becomes an identity.
pub(super) struct TokenCache<T> {
    pub(super) identity_of: fn(&CheckedClaims<'_>) -> Result<T, TokenRefusal>,
    verified: sync::Cache<TokenDigest, Arc<Verified<T>>, TokenBytes>,
}

impl<T> TokenCache<T> {
    /// Keeps tokens of `max_bytes` together, those used most and last. An entry takes about as much memory as its token
    /// is long; twice to three times that when it keeps all claims.
    pub(super) fn new(
        max_bytes: usize,
        identity_of: fn(&CheckedClaims<'_>) -> Result<T, TokenRefusal>,
    ) -> Self {
        let items = max_bytes / TOKEN_BYTES_TYPICAL;
        let verified = sync::Cache::with_weighter(items, max_bytes as u64, TokenBytes);
        Self { identity_of, verified }
    }

    pub(super) fn find(&self, digest: &TokenDigest) -> Option<Arc<Verified<T>>> {
        self.verified.get(digest)
    }

    pub(super) fn keep(&self, digest: TokenDigest, verified: Verified<T>) {
        self.verified.insert(digest, Arc::new(verified));
    }
}

#[derive(Clone)]
struct TokenBytes;

impl<T> Weighter<TokenDigest, Arc<Verified<T>>> for TokenBytes {
    fn weight(&self, _: &TokenDigest, verified: &Arc<Verified<T>>) -> u64 {
        verified.token_bytes as u64
    }
}

#[cfg(test)]
impl<T> TokenCache<T> {
    /// How many bytes the kept tokens have.
    pub(super) fn bytes(&self) -> u64 {
        self.verified.weight()
    }
}
