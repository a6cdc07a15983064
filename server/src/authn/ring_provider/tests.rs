use jsonwebtoken::{EncodingKey, crypto};
use ring::{
    rand::SystemRandom,
    signature::{EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RsaEncoding, RsaKeyPair},
};
use rsa::pkcs8::EncodePrivateKey as _;

use super::*;

const MESSAGE: &[u8] = b"header.claims";

/// Verifies `signature` with `key`, and that no changed message, changed signature or other algorithm passes.
fn assert_verifies_only(algorithm: Algorithm, key: &DecodingKey, signature: &[u8]) {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    install().expect("ring");
    let verify = |message: &[u8], signature: &[u8], algorithm| {
        crypto::verify(&URL_SAFE_NO_PAD.encode(signature), message, key, algorithm).unwrap_or(false)
    };
    assert!(verify(MESSAGE, signature, algorithm), "{algorithm:?}");
    assert!(!verify(b"header.Claims", signature, algorithm), "{algorithm:?}");
    let mut flipped = signature.to_vec();
    flipped[10] ^= 1;
    for bad in [flipped.as_slice(), &signature[1..], &[], &[0; 64]] {
        assert!(!verify(MESSAGE, bad, algorithm), "{algorithm:?}");
    }
    for other in ALL.into_iter().filter(|&other| other != algorithm) {
        assert!(!verify(MESSAGE, signature, other), "{other:?} in place of {algorithm:?}");
    }
}

const ALL: [Algorithm; 12] = [
    Algorithm::HS256,
    Algorithm::HS384,
    Algorithm::HS512,
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

fn rsa_key(bits: usize) -> rsa::RsaPrivateKey {
    rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, bits).expect("a key")
}

#[test]
fn rsa_signatures_are_verified() {
    let pkcs8 = rsa_key(2048).to_pkcs8_der().expect("PKCS#8");
    let pair = RsaKeyPair::from_pkcs8(pkcs8.as_bytes()).expect("a key");
    let parts: ring::rsa::PublicKeyComponents<Vec<u8>> = pair.public().into();
    let by_parts = DecodingKey::from_rsa_raw_components(&parts.n, &parts.e);
    let by_der = DecodingKey::from_rsa_der(pair.public_key().as_ref());
    let schemes: [(Algorithm, &dyn RsaEncoding); 6] = [
        (Algorithm::RS256, &signature::RSA_PKCS1_SHA256),
        (Algorithm::RS384, &signature::RSA_PKCS1_SHA384),
        (Algorithm::RS512, &signature::RSA_PKCS1_SHA512),
        (Algorithm::PS256, &signature::RSA_PSS_SHA256),
        (Algorithm::PS384, &signature::RSA_PSS_SHA384),
        (Algorithm::PS512, &signature::RSA_PSS_SHA512),
    ];
    for (algorithm, encoding) in schemes {
        let mut signature = vec![0; pair.public().modulus_len()];
        pair.sign(encoding, &SystemRandom::new(), MESSAGE, &mut signature).expect("a signature");
        assert_verifies_only(algorithm, &by_parts, &signature);
        assert_verifies_only(algorithm, &by_der, &signature);
    }
}

#[test]
fn a_right_signature_of_a_short_rsa_key_is_refused() {
    use rsa::traits::PublicKeyParts as _;
    use rsa::{
        pkcs1v15::SigningKey,
        sha2::Sha256,
        signature::{SignatureEncoding as _, Signer as _},
    };
    let key = rsa_key(1024);
    let decoding = DecodingKey::from_rsa_raw_components(&key.n().to_bytes_be(), &key.e().to_bytes_be());
    let signature = SigningKey::<Sha256>::new(key).sign(MESSAGE).to_vec();
    let verifier = verifier_factory(&Algorithm::RS256, &decoding).expect("a verifier");
    assert!(verifier.verify(MESSAGE, &signature).is_err());
}

#[test]
fn ecdsa_signatures_in_fixed_form_are_verified() {
    let curves: [(Algorithm, &EcdsaSigningAlgorithm); 2] = [
        (Algorithm::ES256, &signature::ECDSA_P256_SHA256_FIXED_SIGNING),
        (Algorithm::ES384, &signature::ECDSA_P384_SHA384_FIXED_SIGNING),
    ];
    let random = SystemRandom::new();
    for (algorithm, curve) in curves {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(curve, &random).expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(curve, pkcs8.as_ref(), &random).expect("a key");
        let signature = pair.sign(&random, MESSAGE).expect("a signature");
        let key = DecodingKey::from_ec_der(pair.public_key().as_ref());
        assert_verifies_only(algorithm, &key, signature.as_ref());
    }
}

#[test]
fn ed25519_signatures_are_verified() {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
    let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("a key");
    let key = DecodingKey::from_ed_der(pair.public_key().as_ref());
    assert_verifies_only(Algorithm::EdDSA, &key, pair.sign(MESSAGE).as_ref());
}

#[test]
fn attack_03_nothing_is_signed_and_no_hmac_is_verified() {
    install().expect("ring");
    let key = EncodingKey::from_secret(b"secret");
    assert!(ALL.into_iter().all(|algorithm| crypto::sign(MESSAGE, &key, algorithm).is_err()));
    let secret = DecodingKey::from_secret(b"secret");
    assert!(ALL.into_iter().all(|algorithm| verifier_factory(&algorithm, &secret).is_err()));
}

#[test]
fn installing_again_is_harmless() {
    assert_eq!((install(), install()), (Ok(()), Ok(())));
}
