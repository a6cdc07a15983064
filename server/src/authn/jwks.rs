//! An issuer's published keys (RFC 7517), each with the algorithms that it may verify.

use std::collections::HashMap;

use jsonwebtoken::{
    Algorithm as JwtAlgorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use keyfold_core::{
    object::Algorithm,
    token::{TokenRefusal, UnverifiedToken},
};
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
pub(super) struct KeySet(HashMap<String, PublicKey>);

struct PublicKey {
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
    pub(super) fn parse(json: &[u8]) -> Result<Self, KeysError> {
        let document: Document = serde_json::from_slice(json)
            .map_err(|_| KeysError::new("the set of keys is not a JWKS document"))?;
        if document.keys.len() > KEYS_MAX {
            return Err(KeysError::new(format!("the set has more than {KEYS_MAX} keys")));
        }
        let mut keys = HashMap::new();
        for (key_id, key) in document.keys.into_iter().filter_map(public_key) {
            if keys.contains_key(&key_id) {
                return Err(KeysError::new(format!("the set has two keys with the kid {key_id:?}")));
            }
            keys.insert(key_id, key);
        }
        Ok(Self(keys))
    }

    pub(super) fn contains(&self, key_id: &str) -> bool {
        self.0.contains_key(key_id)
    }

    /// Verifies the token's signature with the key that it names.
    ///
    /// # Errors
    /// `KeyUnknown`, `KeyUnfit` or `SignatureInvalid`.
    pub(super) fn verify(
        &self,
        token: &UnverifiedToken<'_>,
        algorithm: Algorithm,
    ) -> Result<(), TokenRefusal> {
        let key_id = token.key_id().to_owned();
        let Some(found) = self.0.get(&key_id) else { return Err(TokenRefusal::KeyUnknown { key_id }) };
        if !found.algorithms.contains(&algorithm) {
            return Err(TokenRefusal::KeyUnfit { key_id });
        }
        let message = token.signing_input().as_bytes();
        match jsonwebtoken::crypto::verify(token.signature(), message, &found.key, jwt_algorithm(algorithm)) {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(TokenRefusal::SignatureInvalid),
        }
    }
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

fn public_key(json: Value) -> Option<(String, PublicKey)> {
    let jwk: Jwk = serde_json::from_value(json).ok()?;
    let for_signatures =
        !matches!(&jwk.common.public_key_use, Some(usage) if *usage != PublicKeyUse::Signature);
    let may_verify =
        jwk.common.key_operations.as_ref().is_none_or(|ops| ops.contains(&KeyOperations::Verify));
    if !for_signatures || !may_verify {
        return None;
    }
    let key_id = jwk.common.key_id.clone().filter(|key_id| !key_id.is_empty())?;
    let mut algorithms = algorithms_of_type(&jwk.algorithm)?.to_vec();
    if let Some(own) = jwk.common.key_algorithm {
        algorithms.retain(|&algorithm| own == jwt_algorithm(algorithm).into());
    }
    Some((key_id, PublicKey { key: DecodingKey::from_jwk(&jwk).ok()?, algorithms }))
}

/// The algorithms that fit a key's type and length; none at all for a symmetric "public" key. A short RSA key stays
/// in the set without any, so that the refusal can say what is wrong with it.
fn algorithms_of_type(parameters: &AlgorithmParameters) -> Option<&'static [Algorithm]> {
    match parameters {
        AlgorithmParameters::RSA(rsa) if rsa_is_long_enough(&rsa.n) => Some(RSA),
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

/// At least 2048 bits (NIST SP 800-131A). The modulus has no leading zeros (RFC 7518, section 6.3.1.1), so its first
/// byte counts; ring checks the exact number again.
fn rsa_is_long_enough(modulus_base64: &str) -> bool {
    const BASE64_CHARS_OF_2048_BITS: usize = 342;
    modulus_base64.len() >= BASE64_CHARS_OF_2048_BITS
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
