//! An issuer's keys on curves, and tokens that they sign.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use keyfold_core::object::Algorithm;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
};
use serde_json::{Value, json};

/// One key for ES256 and one for EdDSA.
pub struct IssuerKeys {
    p256: EcdsaKeyPair,
    ed25519: Ed25519KeyPair,
}

impl IssuerKeys {
    /// New keys.
    pub fn generate() -> Self {
        let random = SystemRandom::new();
        let signing = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let p256 = EcdsaKeyPair::generate_pkcs8(signing, &random).expect("a key");
        let ed25519 = Ed25519KeyPair::generate_pkcs8(&random).expect("a key");
        Self {
            p256: EcdsaKeyPair::from_pkcs8(signing, p256.as_ref(), &random).expect("a key"),
            ed25519: Ed25519KeyPair::from_pkcs8(ed25519.as_ref()).expect("a key"),
        }
    }

    /// The public halves, as entries of a JWKS.
    pub fn jwks(&self) -> [Value; 2] {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        // 0x04, then both coordinates: SEC 1, section 2.3.3.
        let (x, y) = self.p256.public_key().as_ref()[1..].split_at(32);
        let p256 = json!({"kty": "EC", "crv": "P-256", "x": encode(x), "y": encode(y)});
        let ed25519 =
            json!({"kty": "OKP", "crv": "Ed25519", "x": encode(self.ed25519.public_key().as_ref())});
        [(p256, Algorithm::ES256), (ed25519, Algorithm::EdDSA)].map(|(mut jwk, algorithm)| {
            (jwk["use"], jwk["kid"]) = (json!("sig"), json!(algorithm));
            jwk
        })
    }

    /// The public point of the key for ES256.
    pub fn p256_public(&self) -> &[u8] {
        self.p256.public_key().as_ref()
    }

    /// A signature of the key for ES256, in the fixed form of RFC 7518, section 3.4.
    pub fn sign_p256(&self, message: &[u8]) -> Vec<u8> {
        self.p256.sign(&SystemRandom::new(), message).expect("randomness").as_ref().to_vec()
    }

    /// The same claims in a token that is signed with `algorithm`; a token of RS256 as it is.
    pub fn signed_anew(&self, token: String, algorithm: Algorithm) -> String {
        if algorithm == Algorithm::RS256 {
            return token;
        }
        let claims = token.split('.').nth(1).expect("a token has three parts");
        let header = json!({"alg": algorithm, "kid": algorithm}).to_string();
        let input = format!("{}.{claims}", URL_SAFE_NO_PAD.encode(header));
        let signature = match algorithm {
            Algorithm::ES256 => self.sign_p256(input.as_bytes()),
            _ => self.ed25519.sign(input.as_bytes()).as_ref().to_vec(),
        };
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}
