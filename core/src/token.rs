//! A caller's token: a JWT as a Kubernetes API server signs it for a pod, or an OpenID provider for a person. Parsing
//! is strict and trusts nothing; the server verifies the signature between [`UnverifiedToken::parse`] and
//! [`check_claims`].

mod claims;
mod refusal;
mod strict_json;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize as _;
use serde_json::{Map, Value};

pub use self::{
    claims::{CheckedClaims, Validity, check_claims},
    refusal::TokenRefusal,
};
use crate::object::{Algorithm, IssuerSpec};

/// The longest token that is read. Projected tokens have about 1 KiB; the API server's own limit on headers is far
/// above this.
pub const TOKEN_MAX_BYTES: usize = 16 * 1024;

/// A well-formed token that proves nothing yet. It has no `Debug`: it holds the whole token.
pub struct UnverifiedToken<'a> {
    signing_input: &'a str,
    signature: &'a str,
    algorithm: Algorithm,
    key_id: String,
    claims: Map<String, Value>,
}

impl<'a> UnverifiedToken<'a> {
    /// Reads a JWT in compact form.
    ///
    /// # Errors
    /// For everything that is not a plain signed JWT with a named key: see [`TokenRefusal`].
    pub fn parse(token: &'a str) -> Result<Self, TokenRefusal> {
        if token.len() > TOKEN_MAX_BYTES {
            return Err(TokenRefusal::TooLarge { max_bytes: TOKEN_MAX_BYTES });
        }
        let (signing_input, signature) = token.rsplit_once('.').ok_or(NOT_THREE_PARTS)?;
        let (header, payload) = signing_input.split_once('.').ok_or(NOT_THREE_PARTS)?;
        let header = strict_json::parse_object(&decode(header)?)?;
        let (algorithm, key_id) = check_header(&header)?;
        let claims = strict_json::parse_object(&decode(payload)?)?;
        decode(signature)?;
        Ok(Self { signing_input, signature, algorithm, key_id, claims })
    }

    /// The claim `iss`, to find the issuer object whose keys may verify this token.
    ///
    /// # Errors
    /// When it is missing or not text.
    pub fn issuer_url(&self) -> Result<&str, TokenRefusal> {
        claims::required_text(&self.claims, "iss", "iss")
    }

    /// The header's `alg`, if the issuer may use it.
    ///
    /// # Errors
    /// `AlgorithmNotAllowed`.
    pub fn algorithm_allowed_by(&self, issuer: &IssuerSpec) -> Result<Algorithm, TokenRefusal> {
        if issuer.algorithms.contains(&self.algorithm) {
            return Ok(self.algorithm);
        }
        Err(TokenRefusal::AlgorithmNotAllowed { algorithm: format!("{:?}", self.algorithm) })
    }

    /// The header's `kid`.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// What was signed: header and payload as they came.
    pub fn signing_input(&self) -> &str {
        self.signing_input
    }

    /// The signature in base64url without padding.
    pub fn signature(&self) -> &str {
        self.signature
    }
}

const NOT_THREE_PARTS: TokenRefusal = TokenRefusal::Malformed("it does not have three parts");

fn decode(part: &str) -> Result<Vec<u8>, TokenRefusal> {
    match URL_SAFE_NO_PAD.decode(part) {
        Ok(bytes) if !bytes.is_empty() => Ok(bytes),
        Ok(_) => Err(TokenRefusal::Malformed("a part is empty")),
        Err(_) => Err(TokenRefusal::Malformed("a part is not base64url without padding")),
    }
}

/// The algorithm and the key's id. Refused is every parameter that would change how the token is to be read or
/// verified; others that RFC 7515 defines or leaves to applications carry no such meaning and are ignored.
fn check_header(header: &Map<String, Value>) -> Result<(Algorithm, String), TokenRefusal> {
    let algorithm = match header.get("alg") {
        Some(Value::String(name)) => known_algorithm(name)?,
        _ => return Err(TokenRefusal::Malformed("its header names no algorithm")),
    };
    for name in ["jku", "jwk", "x5u", "x5c"] {
        if header.contains_key(name) {
            return Err(TokenRefusal::EmbeddedKey { header: name });
        }
    }
    for name in ["crit", "b64", "zip"] {
        if header.contains_key(name) {
            return Err(TokenRefusal::ExtensionHeader { header: name });
        }
    }
    if header.contains_key("cty") {
        return Err(TokenRefusal::NestedToken);
    }
    match header.get("typ") {
        None => {}
        Some(Value::String(typ)) if typ.eq_ignore_ascii_case("JWT") => {}
        Some(_) => return Err(TokenRefusal::NotAJwt),
    }
    match header.get("kid") {
        Some(Value::String(key_id)) if !key_id.is_empty() => Ok((algorithm, key_id.clone())),
        _ => Err(TokenRefusal::KeyIdMissing),
    }
}

/// An algorithm that some issuer may list. `none` and HMAC are not among them, so no configuration admits them.
fn known_algorithm(name: &str) -> Result<Algorithm, TokenRefusal> {
    Algorithm::deserialize(Value::from(name))
        .map_err(|_| TokenRefusal::AlgorithmNotAllowed { algorithm: name.to_owned() })
}

#[cfg(test)]
mod tests;
