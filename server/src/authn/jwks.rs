//! An issuer's published keys (RFC 7517), each with the algorithms that it may verify.

mod roca;

use std::{collections::HashMap, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{
    Algorithm as JwtAlgorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use keyfold_core::{
    object::Algorithm,
    token::{TokenRefusal, UnverifiedToken},
};
use ring::digest;
use serde::Deserialize;
use serde_json::Value;

use super::KeysError;

/// The most bytes that a set of keys, or a discovery document, may have.
pub(super) const DOCUMENT_MAX_BYTES: usize = 1024 * 1024;

/// The most keys in a set. Issuers publish two or three: the last, the present and the next.
const KEYS_MAX: usize = 100;

const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// Public keys by `kid`.
pub struct KeySet {
    keys: HashMap<String, Arc<PublicKey>>,
    /// Of the document that it was read from.
    digest: Digest,
}

/// SHA-256.
type Digest = [u8; 32];

/// One of an issuer's keys.
pub(super) struct PublicKey {
    id: String,
    /// Of its JWK, all of it: another key under the same `kid` is another key.
    digest: Digest,
    key: DecodingKey,
    /// What it may verify: by its type, its length and its own `alg`. Never chosen by a token.
    algorithms: Vec<Algorithm>,
}

impl KeySet {
    /// Reads a JWKS document. Keys that could verify no token (encryption keys, unknown types) are left out, as
    /// RFC 7517 section 5 wants it.
    ///
    /// # Errors
    /// When it is not a JWKS, has too many keys, or uses one `kid` twice.
    pub fn parse(json: &[u8]) -> Result<Self, KeysError> {
        let document: Document = serde_json::from_slice(json)
            .map_err(|_| KeysError::new("the set of keys is not a JWKS document"))?;
        if document.keys.len() > KEYS_MAX {
            return Err(KeysError::new(format!("the set has more than {KEYS_MAX} keys")));
        }
        let mut keys = HashMap::new();
        for key in document.keys.into_iter().filter_map(public_key) {
            if keys.contains_key(&key.id) {
                return Err(KeysError::new(format!("the set has two keys with the kid {:?}", key.id)));
            }
            keys.insert(key.id.clone(), Arc::new(key));
        }
        Ok(Self { keys, digest: sha256(json) })
    }

    /// Whether a key of that `kid` is in the set.
    pub fn contains(&self, key_id: &str) -> bool {
        self.keys.contains_key(key_id)
    }

    /// Whether this very key is in the set.
    pub(super) fn holds(&self, key: &PublicKey) -> bool {
        self.keys.get(&key.id).is_some_and(|found| found.digest == key.digest)
    }

    /// Whether both were read from the same bytes.
    pub(super) fn has_bytes_of(&self, other: &Self) -> bool {
        self.digest == other.digest
    }

    /// Verifies the token's signature with the key that it names.
    ///
    /// # Errors
    /// `KeyUnknown`, `KeyUnfit` or `SignatureInvalid`.
    pub fn verify(&self, token: &UnverifiedToken<'_>, algorithm: Algorithm) -> Result<(), TokenRefusal> {
        self.key_that_signed(token, algorithm).map(|_| ())
    }

    /// The same, and tells the key.
    pub(super) fn key_that_signed(
        &self,
        token: &UnverifiedToken<'_>,
        algorithm: Algorithm,
    ) -> Result<&Arc<PublicKey>, TokenRefusal> {
        let message = token.signing_input().as_bytes();
        self.key_of_signature(token.key_id(), algorithm, message, token.signature())
    }

    /// Verifies a signature, in base64url without padding, over any bytes with the key `key_id`.
    ///
    /// # Errors
    /// `KeyUnknown`, `KeyUnfit` or `SignatureInvalid`.
    pub fn verify_signature(
        &self,
        key_id: &str,
        algorithm: Algorithm,
        message: &[u8],
        signature: &str,
    ) -> Result<(), TokenRefusal> {
        self.key_of_signature(key_id, algorithm, message, signature).map(|_| ())
    }

    fn key_of_signature(
        &self,
        key_id: &str,
        algorithm: Algorithm,
        message: &[u8],
        signature: &str,
    ) -> Result<&Arc<PublicKey>, TokenRefusal> {
        let key_id = key_id.to_owned();
        let Some(found) = self.keys.get(&key_id) else { return Err(TokenRefusal::KeyUnknown { key_id }) };
        if !found.algorithms.contains(&algorithm) {
            return Err(TokenRefusal::KeyUnfit { key_id });
        }
        match jsonwebtoken::crypto::verify(signature, message, &found.key, jwt_algorithm(algorithm)) {
            Ok(true) => Ok(found),
            Ok(false) | Err(_) => Err(TokenRefusal::SignatureInvalid),
        }
    }
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

fn sha256(bytes: &[u8]) -> Digest {
    let mut digest = Digest::default();
    digest.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    digest
}

fn public_key(json: Value) -> Option<PublicKey> {
    let digest = sha256(json.to_string().as_bytes());
    let jwk: Jwk = serde_json::from_value(json).ok()?;
    let for_signatures =
        !matches!(&jwk.common.public_key_use, Some(usage) if *usage != PublicKeyUse::Signature);
    let may_verify =
        jwk.common.key_operations.as_ref().is_none_or(|ops| ops.contains(&KeyOperations::Verify));
    if !for_signatures || !may_verify {
        return None;
    }
    let id = jwk.common.key_id.clone().filter(|id| !id.is_empty())?;
    let mut algorithms = algorithms_of_type(&jwk.algorithm)?.to_vec();
    if let Some(own) = jwk.common.key_algorithm {
        algorithms.retain(|&algorithm| own == jwt_algorithm(algorithm).into());
    }
    Some(PublicKey { id, digest, key: DecodingKey::from_jwk(&jwk).ok()?, algorithms })
}

/// The algorithms that fit a key's type and strength; none at all for a symmetric "public" key. A weak RSA key stays
/// in the set without any, so that the refusal can say what is wrong with it.
fn algorithms_of_type(parameters: &AlgorithmParameters) -> Option<&'static [Algorithm]> {
    match parameters {
        AlgorithmParameters::RSA(rsa) if rsa_is_strong_enough(&rsa.n) => Some(RSA),
        AlgorithmParameters::RSA(_) => Some(&[]),
        AlgorithmParameters::EllipticCurve(ec) => match ec.curve {
            EllipticCurve::P256 => Some(&[Algorithm::ES256]),
            EllipticCurve::P384 => Some(&[Algorithm::ES384]),
            _ => None,
        },
        AlgorithmParameters::OctetKeyPair(okp) if okp.curve == EllipticCurve::Ed25519 => {
            Some(&[Algorithm::EdDSA])
        }
        _ => None,
    }
}

/// At least 2048 bits (NIST SP 800-131A), and not of a generator known to be weak. The modulus has no leading zeros
/// (RFC 7518, section 6.3.1.1), so its length counts; ring checks the exact number again.
fn rsa_is_strong_enough(modulus_base64: &str) -> bool {
    const BASE64_CHARS_OF_2048_BITS: usize = 342;
    modulus_base64.len() >= BASE64_CHARS_OF_2048_BITS
        && URL_SAFE_NO_PAD.decode(modulus_base64).is_ok_and(|modulus| !roca::is_weak(&modulus))
}

fn jwt_algorithm(algorithm: Algorithm) -> JwtAlgorithm {
    match algorithm {
        Algorithm::RS256 => JwtAlgorithm::RS256,
        Algorithm::RS384 => JwtAlgorithm::RS384,
        Algorithm::RS512 => JwtAlgorithm::RS512,
        Algorithm::PS256 => JwtAlgorithm::PS256,
        Algorithm::PS384 => JwtAlgorithm::PS384,
        Algorithm::PS512 => JwtAlgorithm::PS512,
        Algorithm::ES256 => JwtAlgorithm::ES256,
        Algorithm::ES384 => JwtAlgorithm::ES384,
        Algorithm::EdDSA => JwtAlgorithm::EdDSA,
    }
}

#[cfg(test)]
mod tests;
