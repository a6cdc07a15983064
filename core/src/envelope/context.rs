//! The places that a blob can be bound to. Moved to any other place, it does not open.
//!
//! Each encoding starts with a domain string of its own. Integers are big-endian; strings and the domain are
//! prefixed with their length in bytes as a u32; identifiers are their 16 raw bytes. So no two places encode alike.

use ring::digest::{SHA256, digest};
use uuid::Uuid;

/// The encoding of a place, for the AEAD's associated data. Holds identifiers only, no material.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssociatedData(Vec<u8>);

impl AssociatedData {
    /// The exact bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// These bytes after a blob's header, whose length is fixed.
    pub(super) fn after(&self, header: &[u8]) -> Vec<u8> {
        [header, &self.0].concat()
    }
}

/// Place of a secret version's payload, sealed under its DEK. Names no KEK, so that a rewrap never touches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PayloadContext {
    /// The installation.
    pub installation: Uuid,
    /// The keyspace of the secret.
    pub keyspace: Uuid,
    /// The secret.
    pub secret: Uuid,
    /// The secret's version.
    pub version: u32,
    /// The DEK that seals this payload alone.
    pub dek: Uuid,
    /// From [`metadata_digest`].
    pub metadata_digest: [u8; 32],
}

impl PayloadContext {
    /// The encoding for [`seal`](super::seal) and [`open`](super::open).
    pub fn associated_data(&self) -> AssociatedData {
        Encoder::new("keyfold/v1/payload")
            .uuid(self.installation)
            .uuid(self.keyspace)
            .uuid(self.secret)
            .bytes(&self.version.to_be_bytes())
            .uuid(self.dek)
            .bytes(&self.metadata_digest)
            .finish()
    }
}

/// Place of a DEK, wrapped by a KEK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DekContext {
    /// The installation.
    pub installation: Uuid,
    /// The keyspace of the secret.
    pub keyspace: Uuid,
    /// The secret.
    pub secret: Uuid,
    /// The secret's version.
    pub version: u32,
    /// The wrapped DEK.
    pub dek: Uuid,
    /// The KEK that wraps it.
    pub kek: Uuid,
    /// The KEK's version.
    pub kek_version: u32,
}

impl DekContext {
    /// The encoding for [`seal`](super::seal) and [`open`](super::open).
    pub fn associated_data(&self) -> AssociatedData {
        Encoder::new("keyfold/v1/dek")
            .uuid(self.installation)
            .uuid(self.keyspace)
            .uuid(self.secret)
            .bytes(&self.version.to_be_bytes())
            .uuid(self.dek)
            .uuid(self.kek)
            .bytes(&self.kek_version.to_be_bytes())
            .finish()
    }
}

/// Place of a KEK, wrapped by the root-wrapping key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KekContext<'a> {
    /// The installation.
    pub installation: Uuid,
    /// The keyspace that the KEK serves.
    pub keyspace: Uuid,
    /// What the KEK is for, such as `data`.
    pub purpose: &'a str,
    /// The wrapped KEK.
    pub kek: Uuid,
    /// Its version.
    pub kek_version: u32,
    /// From [`root_key_id`](super::root_key_id).
    pub root_key_id: Uuid,
}

impl KekContext<'_> {
    /// The encoding for [`seal`](super::seal) and [`open`](super::open).
    pub fn associated_data(&self) -> AssociatedData {
        Encoder::new("keyfold/v1/kek")
            .uuid(self.installation)
            .uuid(self.keyspace)
            .string(self.purpose)
            .uuid(self.kek)
            .bytes(&self.kek_version.to_be_bytes())
            .uuid(self.root_key_id)
            .finish()
    }
}

/// Place of the root-wrapping key (RWK), sealed by the root key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RwkContext {
    /// The installation.
    pub installation: Uuid,
    /// The RWK.
    pub rwk: Uuid,
    /// Its version.
    pub rwk_version: u32,
    /// From [`root_key_id`](super::root_key_id).
    pub root_key_id: Uuid,
}

impl RwkContext {
    /// The encoding for [`seal`](super::seal) and [`open`](super::open).
    pub fn associated_data(&self) -> AssociatedData {
        Encoder::new("keyfold/v1/rwk")
            .uuid(self.installation)
            .uuid(self.rwk)
            .bytes(&self.rwk_version.to_be_bytes())
            .uuid(self.root_key_id)
            .finish()
    }
}

/// SHA-256 over what is immutable about a secret version: its path, the time of its creation in microseconds
/// since 1970, and who created it.
pub fn metadata_digest(path: &str, created_at_micros: i64, created_by: &str) -> [u8; 32] {
    let encoded = Encoder::new("keyfold/v1/metadata")
        .string(path)
        .bytes(&created_at_micros.to_be_bytes())
        .string(created_by)
        .finish();
    let mut sum = [0; 32];
    sum.copy_from_slice(digest(&SHA256, encoded.as_bytes()).as_ref());
    sum
}

struct Encoder(Vec<u8>);

impl Encoder {
    fn new(domain: &str) -> Self {
        Self(Vec::new()).string(domain)
    }

    /// # Panics
    /// On a string of 4 GiB; names and paths are limited to far less where they enter.
    fn string(self, text: &str) -> Self {
        let len = u32::try_from(text.len()).expect("names and paths are shorter than 4 GiB");
        self.bytes(&len.to_be_bytes()).bytes(text.as_bytes())
    }

    fn uuid(self, id: Uuid) -> Self {
        self.bytes(id.as_bytes())
    }

    /// Only for lengths that are fixed, else two places could encode alike.
    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn finish(self) -> AssociatedData {
        AssociatedData(self.0)
    }
}
