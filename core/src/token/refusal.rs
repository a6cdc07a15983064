//! Why a token does not prove an identity.

use time::OffsetDateTime;

use crate::name::shortened;

/// Why a token does not prove an identity. The text completes "the pod's token was refused: …"; it may quote a claim,
/// shortened, and never holds the token or its signature. The code is stable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefusal {
    /// Longer than any projected token.
    #[error("it is longer than {max_bytes} bytes")]
    TooLarge {
        /// The limit.
        max_bytes: usize,
    },
    /// Not a signed JWT in compact form (RFC 7515, section 7.1).
    #[error("it is not a signed JWT: {0}")]
    Malformed(&'static str),
    /// A name appears twice in one JSON object, so two readers could see two different values.
    #[error("it names a claim or header twice")]
    DuplicateName,
    /// The JSON is nested more deeply than any real token's.
    #[error("its JSON is nested too deeply")]
    TooDeep,
    /// The algorithm is not in the issuer's list: also `none` and all HMAC, which no issuer can list.
    #[error("its signature algorithm {:?} is not among those that the issuer may use", shortened(.algorithm))]
    AlgorithmNotAllowed {
        /// The header's `alg`.
        algorithm: String,
    },
    /// The header brings a key of its own, or a link to one.
    #[error("its header brings its own key in `{header}`; only the issuer's published keys count")]
    EmbeddedKey {
        /// The header parameter.
        header: &'static str,
    },
    /// The header asks for an extension (`crit`, RFC 7515 section 4.1.11) or compression. None is supported.
    #[error("its header asks for an extension in `{header}`, and none is supported")]
    ExtensionHeader {
        /// The header parameter.
        header: &'static str,
    },
    /// The payload is said to be something other than claims.
    #[error("its `cty` header says that it holds another token")]
    NestedToken,
    /// `typ` is present and not `JWT`.
    #[error("its `typ` header says that it is not a JWT")]
    NotAJwt,
    /// No `kid` in the header.
    #[error("its header names no key (`kid`)")]
    KeyIdMissing,
    /// The issuer publishes no such key.
    #[error("the issuer publishes no key {:?}", shortened(.key_id))]
    KeyUnknown {
        /// The header's `kid`.
        key_id: String,
    },
    /// The named key is of another type, meant for another algorithm, too short, or of a weak generator.
    #[error(
        "the issuer's key {:?} may not verify this token: it is too weak or meant for another algorithm",
        shortened(.key_id)
    )]
    KeyUnfit {
        /// The header's `kid`.
        key_id: String,
    },
    /// The signature does not match.
    #[error("its signature is wrong")]
    SignatureInvalid,
    /// No issuer object has this URL.
    #[error("its issuer {:?} is not among the configured issuers", shortened(.url))]
    IssuerUnknown {
        /// The claim `iss`.
        url: String,
    },
    /// `aud` holds none of the issuer object's audiences.
    #[error("it is meant for audience {}, not for {expected}", shortened(.found))]
    AudienceOther {
        /// The claim `aud`.
        found: String,
        /// The issuer object's audiences.
        expected: String,
    },
    /// An OpenID provider's token is also meant for audiences that the issuer object does not list.
    #[error(
        "it is also meant for audience {}: ask for a token for Keyfold alone, or list that audience in the issuer object",
        shortened(.others)
    )]
    AudienceShared {
        /// Those of the claim `aud` that are not listed.
        others: String,
    },
    /// A claim that is required is missing.
    #[error("it lacks the claim `{claim}`")]
    ClaimMissing {
        /// The claim.
        claim: &'static str,
    },
    /// A claim has the wrong type, is empty, too long, or not printable.
    #[error("its claim `{claim}` is malformed")]
    ClaimMalformed {
        /// The claim.
        claim: &'static str,
    },
    /// A moment is not a whole JSON number of seconds, or out of range.
    #[error("its claim `{claim}` is not a whole number of seconds since 1970")]
    TimeMalformed {
        /// The claim.
        claim: &'static str,
    },
    /// Past `exp`.
    #[error("it expired at {}", moment(.0))]
    Expired(OffsetDateTime),
    /// Before `nbf`.
    #[error("it is not valid before {}", moment(.0))]
    NotYetValid(OffsetDateTime),
    /// `iat` lies ahead: the issuer's clock, or ours, is wrong.
    #[error("it was issued at {}, which is in the future: compare the clocks of the issuer and of Keyfold", moment(.0))]
    IssuedInFuture(OffsetDateTime),
    /// `exp` - `iat` is longer than the issuer object allows.
    #[error("it lives for {lifetime_secs} s, and the issuer's maxTokenLifetime is {max_secs} s")]
    LifetimeTooLong {
        /// The token's.
        lifetime_secs: i64,
        /// The issuer object's.
        max_secs: u64,
    },
    /// The token of an OpenID provider in the place of a pod's or a driver's.
    #[error("its issuer is an OpenID provider, not a Kubernetes cluster")]
    NotOfACluster,
    /// No pod in `kubernetes.io`: a token that outlives its pod, or was never meant for one.
    #[error("it is not bound to a pod: use a projected token, or TokenRequest with a bound object")]
    NotBoundToPod,
    /// `sub` and `kubernetes.io` disagree.
    #[error("its subject does not agree with its namespace and service account")]
    SubjectMismatch,
}

impl TokenRefusal {
    /// The stable code of this refusal.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "token-too-large",
            Self::Malformed(_) => "token-malformed",
            Self::DuplicateName => "token-duplicate-name",
            Self::TooDeep => "token-too-deep",
            Self::AlgorithmNotAllowed { .. } => "token-algorithm",
            Self::EmbeddedKey { .. } => "token-embedded-key",
            Self::ExtensionHeader { .. } => "token-extension",
            Self::NestedToken => "token-nested",
            Self::NotAJwt => "token-type",
            Self::KeyIdMissing => "token-key-missing",
            Self::KeyUnknown { .. } => "token-key-unknown",
            Self::KeyUnfit { .. } => "token-key-unfit",
            Self::SignatureInvalid => "token-signature",
            Self::IssuerUnknown { .. } => "token-issuer",
            Self::AudienceOther { .. } => "token-audience",
            Self::AudienceShared { .. } => "token-audience-shared",
            Self::ClaimMissing { .. } => "token-claim-missing",
            Self::ClaimMalformed { .. } => "token-claim-malformed",
            Self::TimeMalformed { .. } => "token-time-malformed",
            Self::Expired(_) => "token-expired",
            Self::NotYetValid(_) => "token-not-yet-valid",
            Self::IssuedInFuture(_) => "token-issued-in-future",
            Self::LifetimeTooLong { .. } => "token-lifetime",
            Self::NotOfACluster => "token-not-of-a-cluster",
            Self::NotBoundToPod => "token-not-bound-to-a-pod",
            Self::SubjectMismatch => "token-subject",
        }
    }
}

fn moment(at: &OffsetDateTime) -> String {
    at.format(&time::format_description::well_known::Rfc3339).unwrap_or_else(|_| at.to_string())
}
