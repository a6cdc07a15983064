//! What Postgres keeps of a root key, so that its keeper can give it again. No secret: it is encrypted by the keeper,
//! or commitments.

use std::fmt::{Display, Formatter};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Why something does not open that once did, and what to do.
pub(super) const NOT_AS_STORED: &str = "what Postgres keeps of the root key (root_wrapping_keys.custody) is not what was stored: restore it from a \
     backup, or recover with the recovery shares";

/// Who keeps a root key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CustodyKind {
    /// A mounted file that holds it.
    File,
    /// A PKCS#11 token, under a key that never leaves it.
    Pkcs11,
    /// A Kubernetes KMS v2 plugin, under a key of its own.
    KmsPlugin,
    /// People, with a share each.
    Shamir,
}

impl CustodyKind {
    const ALL: [Self; 4] = [Self::File, Self::Pkcs11, Self::KmsPlugin, Self::Shamir];

    /// Its name, as in Postgres and in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Pkcs11 => "pkcs11",
            Self::KmsPlugin => "kms-plugin",
            Self::Shamir => "shamir",
        }
    }

    /// The kind of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

impl Display for CustodyKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who keeps a root key, and what they need to give it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Custody {
    /// Who.
    pub kind: CustodyKind,
    /// JSON of the keeper's own shape; of `file` nothing.
    pub data: Vec<u8>,
}

impl Custody {
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, String> {
        read(&self.data)
    }
}

pub(super) fn read<T: DeserializeOwned>(data: &[u8]) -> Result<T, String> {
    serde_json::from_slice(data).map_err(|_| NOT_AS_STORED.to_owned())
}

pub(super) fn write<T: Serialize>(custody: &T) -> Vec<u8> {
    serde_json::to_vec(custody).expect("texts and numbers make JSON")
}

/// Bytes, which are base64 in JSON.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Base64Bytes(pub(super) Vec<u8>);

impl From<Base64Bytes> for String {
    fn from(bytes: Base64Bytes) -> Self {
        STANDARD.encode(bytes.0)
    }
}

impl TryFrom<String> for Base64Bytes {
    type Error = base64::DecodeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        STANDARD.decode(text).map(Self)
    }
}
