//! Keys of every type, and tokens that they sign.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    signature::{self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RsaKeyPair},
};
use rsa::{RsaPrivateKey, pkcs8::EncodePrivateKey as _, traits::PublicKeyParts as _};
use serde_json::{Value, json};

/// Of every token, if not said otherwise.
pub const PAYLOAD: &str = r#"{"iss":"https://issuer.example","sub":"someone"}"#;

/// Signs a message.
type Sign = Box<dyn Fn(&[u8]) -> Vec<u8>>;

/// A key, and what signs with it.
pub struct Signer {
    pub algorithm: &'static str,
    pub header: String,
    pub jwk: Value,
    /// The key's raw bytes: modulus or point.
    pub public: Vec<u8>,
    pub sign: Sign,
}

impl Signer {
    fn new(
        algorithm: &'static str,
        mut jwk: Value,
        public: Vec<u8>,
        sign: impl Fn(&[u8]) -> Vec<u8> + 'static,
    ) -> Self {
        jwk["kid"] = json!("k");
        jwk["alg"] = json!(algorithm);
        Self { algorithm, header: header_with(algorithm), jwk, public, sign: Box::new(sign) }
    }

    pub fn token(&self) -> String {
        self.token_of(&self.header)
    }

    pub fn token_of(&self, header: &str) -> String {
        self.signed(header, PAYLOAD)
    }

    pub fn signed(&self, header: &str, payload: &str) -> String {
        let input = format!("{}.{}", encoded(header), encoded(payload));
        format!("{input}.{}", URL_SAFE_NO_PAD.encode((self.sign)(input.as_bytes())))
    }

    pub fn signing_input(&self) -> String {
        format!("{}.{}", encoded(&self.header), encoded(PAYLOAD))
    }

    pub fn token_with(&self, signature: &[u8]) -> String {
        format!("{}.{}", self.signing_input(), URL_SAFE_NO_PAD.encode(signature))
    }
}

/// A new key of each type, signing with each of its algorithms.
pub fn signers() -> Vec<Signer> {
    let mut signers = rsa_signers();
    signers.extend([es256(), es384()]);
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
    let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("a key");
    let public = pair.public_key().as_ref().to_vec();
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(&public)});
    signers.push(Signer::new("EdDSA", jwk, public, move |message| pair.sign(message).as_ref().to_vec()));
    signers
}

fn rsa_signers() -> Vec<Signer> {
    let private = RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).expect("a key");
    let der = private.to_pkcs8_der().expect("a key");
    let modulus = private.n().to_bytes_be();
    let jwk = json!({
        "kty": "RSA",
        "n": URL_SAFE_NO_PAD.encode(&modulus),
        "e": URL_SAFE_NO_PAD.encode(private.e().to_bytes_be()),
    });
    let paddings: [(&str, &'static dyn signature::RsaEncoding); 6] = [
        ("RS256", &signature::RSA_PKCS1_SHA256),
        ("RS384", &signature::RSA_PKCS1_SHA384),
        ("RS512", &signature::RSA_PKCS1_SHA512),
        ("PS256", &signature::RSA_PSS_SHA256),
        ("PS384", &signature::RSA_PSS_SHA384),
        ("PS512", &signature::RSA_PSS_SHA512),
    ];
    let signer = |(algorithm, padding): (&'static str, &'static dyn signature::RsaEncoding)| {
        let pair = RsaKeyPair::from_pkcs8(der.as_bytes()).expect("a key");
        Signer::new(algorithm, jwk.clone(), modulus.clone(), move |message| {
            let mut signature = vec![0; pair.public().modulus_len()];
            pair.sign(padding, &SystemRandom::new(), message, &mut signature).expect("a signature");
            signature
        })
    };
    paddings.into_iter().map(signer).collect()
}

pub fn es256() -> Signer {
    ec_signer("ES256", "P-256", &signature::ECDSA_P256_SHA256_FIXED_SIGNING)
}

pub fn es384() -> Signer {
    ec_signer("ES384", "P-384", &signature::ECDSA_P384_SHA384_FIXED_SIGNING)
}

fn ec_signer(algorithm: &'static str, curve: &str, scheme: &'static EcdsaSigningAlgorithm) -> Signer {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(scheme, &random).expect("a key");
    let pair = EcdsaKeyPair::from_pkcs8(scheme, pkcs8.as_ref(), &random).expect("a key");
    let public = pair.public_key().as_ref().to_vec();
    let (x, y) = public[1..].split_at(public.len() / 2);
    let [x, y] = [x, y].map(|part| URL_SAFE_NO_PAD.encode(part));
    Signer::new(algorithm, json!({"kty": "EC", "crv": curve, "x": x, "y": y}), public, move |message| {
        pair.sign(&SystemRandom::new(), message).expect("a signature").as_ref().to_vec()
    })
}

pub fn header_with(algorithm: &str) -> String {
    format!(r#"{{"alg":"{algorithm}","kid":"k"}}"#)
}

pub fn encoded(part: &str) -> String {
    URL_SAFE_NO_PAD.encode(part)
}

pub fn parts(token: &str) -> [&str; 3] {
    let parts: Vec<_> = token.split('.').collect();
    parts.try_into().expect("three parts")
}
