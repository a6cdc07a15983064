//! Tokens shaped exactly like the ones that Kubernetes projects into pods.
//!
//! Shape, key order and key ids are those of Kubernetes 1.36 (`pkg/serviceaccount/claims.go` and `jwt.go`): the
//! tests compare them with recorded tokens.

use std::{path::Path, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use keyfold_core::entropy::{Entropy as _, SystemEntropy};
use ring::{
    digest::{SHA256, digest},
    rand::SystemRandom,
    signature::{RSA_PKCS1_SHA256, RsaKeyPair},
};
use rsa::{
    RsaPrivateKey, RsaPublicKey,
    pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, EncodePublicKey as _, LineEnding},
    traits::PublicKeyParts as _,
};
use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::files::{read_text, write_private};
use crate::exit::{Exit, Failure};

/// The audience that Keyfold's own tokens carry.
pub const AUDIENCE: &str = "keyfold";

/// An issuer's RSA key of 2048 bits, which signs with RS256.
pub struct SigningKey {
    private: RsaPrivateKey,
    signer: RsaKeyPair,
    kid: String,
}

impl SigningKey {
    /// A new key. Takes from a tenth of a second to a few.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn generate() -> Result<Self, Failure> {
        let private = RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).map_err(unusable)?;
        Self::from_private(private)
    }

    /// The key in `path` (PKCS#8, PEM); a new one is written there first, with mode 0600, when there is none.
    ///
    /// # Errors
    /// When the file cannot be read or written, or holds something else.
    pub fn load_or_generate(path: &Path) -> Result<Self, Failure> {
        if !path.exists() {
            let key = Self::generate()?;
            let pem = key.private.to_pkcs8_pem(LineEnding::LF).map_err(unusable)?;
            write_private(path, pem.as_bytes())?;
            return Ok(key);
        }
        Self::load(path)
    }

    /// The key in `path` (PKCS#8, PEM).
    ///
    /// # Errors
    /// When the file cannot be read, or holds something else.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        let pem = Zeroizing::new(read_text(path)?);
        let private = RsaPrivateKey::from_pkcs8_pem(&pem).map_err(unusable)?;
        Self::from_private(private)
    }

    fn from_private(private: RsaPrivateKey) -> Result<Self, Failure> {
        let der = private.to_pkcs8_der().map_err(unusable)?;
        let signer = RsaKeyPair::from_pkcs8(der.as_bytes()).map_err(unusable)?;
        let kid = key_id(&private.to_public_key())?;
        Ok(Self { private, signer, kid })
    }

    /// The key's id, as Kubernetes computes it: base64url of the SHA-256 of the DER public key.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The public half as an entry of a JWKS, with the members that Kubernetes writes.
    pub fn jwk(&self) -> Value {
        json!({
            "use": "sig",
            "kty": "RSA",
            "kid": self.kid,
            "alg": "RS256",
            "n": URL_SAFE_NO_PAD.encode(self.private.n().to_bytes_be()),
            "e": URL_SAFE_NO_PAD.encode(self.private.e().to_bytes_be()),
        })
    }

    /// A JWT of exactly `header` and `claims`, signed with RS256 whatever they say: for tests of wrong tokens.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn sign(
        &self,
        header: &impl Serialize,
        claims: &impl Serialize,
    ) -> Result<Zeroizing<String>, Failure> {
        let input = format!("{}.{}", encode(header)?, encode(claims)?);
        let mut signature = vec![0; self.signer.public().modulus_len()];
        self.signer
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), input.as_bytes(), &mut signature)
            .map_err(unusable)?;
        Ok(Zeroizing::new(format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))))
    }
}

fn key_id(public: &RsaPublicKey) -> Result<String, Failure> {
    let der = public.to_public_key_der().map_err(unusable)?;
    Ok(URL_SAFE_NO_PAD.encode(digest(&SHA256, der.as_bytes())))
}

fn encode(part: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_vec(part).map(|json| URL_SAFE_NO_PAD.encode(json)).map_err(unusable)
}

fn unusable(error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Internal, "cannot use the development issuer's key", error.to_string())
}

/// Whom a token is for, as the TokenRequest API is asked for it.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's service account.
    pub service_account: String,
    /// The pod; absent for a token that is bound to none.
    pub pod: Option<String>,
    /// The node that the pod runs on; only told of a token that is bound to a pod.
    pub node: Option<String>,
    /// Who shall accept the token.
    pub audience: String,
    /// How long the token holds.
    pub ttl: Duration,
}

/// Which person a token is for, as an OpenID provider is asked for it.
#[derive(Clone, Debug)]
pub struct PersonRequest {
    /// The claim `sub`.
    pub subject: String,
    /// The claim `groups`.
    pub groups: Vec<String>,
    /// Who shall accept the token.
    pub audience: String,
    /// How long the token holds.
    pub ttl: Duration,
}

/// A signed token.
pub struct Token {
    /// The JWT.
    pub jwt: Zeroizing<String>,
    /// When it stops to hold, in whole seconds.
    pub expires_at: OffsetDateTime,
}

/// Mints the tokens of one issuer.
pub struct Minter {
    /// The issuer's URL, exactly as `iss` carries it.
    pub issuer: String,
    /// The key that signs.
    pub key: SigningKey,
}

impl Minter {
    /// A token that holds from `now` for the requested time. UIDs follow from names, so that the same pod, node or
    /// service account keeps its own from token to token.
    ///
    /// # Errors
    /// When the time is out of range, or the system gives no randomness.
    pub fn mint(&self, request: &TokenRequest, now: OffsetDateTime) -> Result<Token, Failure> {
        self.sign(request.ttl, now, |iat, exp, jti| Claims::new(&self.issuer, request, iat, exp, jti))
    }

    /// A person's token that holds from `now` for the requested time.
    ///
    /// # Errors
    /// When the time is out of range, or the system gives no randomness.
    pub fn mint_person(&self, request: &PersonRequest, now: OffsetDateTime) -> Result<Token, Failure> {
        let PersonRequest { subject, groups, audience, ttl } = request;
        self.sign(*ttl, now, |iat, exp, jti| {
            json!({
                "aud": audience, "exp": exp, "groups": groups, "iat": iat, "iss": self.issuer, "jti": jti,
                "sub": subject,
            })
        })
    }

    /// A token of the claims for `iat`, `exp` and `jti`.
    fn sign<C: Serialize>(
        &self,
        ttl: Duration,
        now: OffsetDateTime,
        claims: impl FnOnce(i64, i64, String) -> C,
    ) -> Result<Token, Failure> {
        let too_long = || Failure::usage("cannot mint a token", "its lifetime is too long");
        let iat = now.unix_timestamp();
        let exp =
            i64::try_from(ttl.as_secs()).ok().and_then(|ttl| iat.checked_add(ttl)).ok_or_else(too_long)?;
        let expires_at = OffsetDateTime::from_unix_timestamp(exp).map_err(|_| too_long())?;
        let jti = SystemEntropy.uuid().map_err(unusable)?.to_string();
        let header = Header { alg: "RS256", kid: self.key.kid() };
        Ok(Token { jwt: self.key.sign(&header, &claims(iat, exp, jti))?, expires_at })
    }
}

#[derive(Serialize)]
struct Header<'a> {
    alg: &'a str,
    kid: &'a str,
}

#[derive(Serialize)]
struct Claims<'a> {
    aud: [&'a str; 1],
    exp: i64,
    iat: i64,
    iss: &'a str,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Kubernetes<'a>,
    nbf: i64,
    sub: String,
}

#[derive(Serialize)]
struct Kubernetes<'a> {
    namespace: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<Reference<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<Reference<'a>>,
    serviceaccount: Reference<'a>,
}

#[derive(Serialize)]
struct Reference<'a> {
    name: &'a str,
    uid: String,
}

impl<'a> Claims<'a> {
    fn new(iss: &'a str, request: &'a TokenRequest, now: i64, exp: i64, jti: String) -> Self {
        let TokenRequest { namespace, service_account, .. } = request;
        let pod = request.pod.as_deref();
        let node = request.node.as_deref().filter(|_| pod.is_some());
        Self {
            aud: [&request.audience],
            exp,
            iat: now,
            iss,
            jti,
            kubernetes: Kubernetes {
                namespace,
                node: node.map(|name| Reference { name, uid: uid("Node", "", name) }),
                pod: pod.map(|name| Reference { name, uid: uid("Pod", namespace, name) }),
                serviceaccount: Reference {
                    name: service_account,
                    uid: uid("ServiceAccount", namespace, service_account),
                },
            },
            nbf: now,
            sub: format!("system:serviceaccount:{namespace}:{service_account}"),
        }
    }
}

/// The UID that the development cluster gives the object `kind` of this name (`namespace` is empty for a node):
/// always the same, in the form of Kubernetes' own (a random UUID).
pub fn uid(kind: &str, namespace: &str, name: &str) -> String {
    let hash = digest(&SHA256, format!("keyfold-dev\0{kind}\0{namespace}\0{name}").as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.as_ref()[..16]);
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

#[cfg(test)]
mod tests;
