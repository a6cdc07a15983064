//! The places that a blob can be bound to. Moved to any other place, it does not open.
//!
//! Each encoding starts with a domain string of its own, so no two places encode alike.

use ring::digest::{SHA256, digest};
use uuid::Uuid;

use crate::encoder::Encoder;

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
        let encoding = Encoder::new("keyfold/v1/payload")
            .uuid(self.installation)
            .uuid(self.keyspace)
            .uuid(self.secret)
            .bytes(&self.version.to_be_bytes())
            .uuid(self.dek)
            .bytes(&self.metadata_digest)
            .finish();
        AssociatedData(encoding)
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
        let encoding = Encoder::new("keyfold/v1/dek")
            .uuid(self.installation)
            .uuid(self.keyspace)
            .uuid(self.secret)
            .bytes(&self.version.to_be_bytes())
            .uuid(self.dek)
            .uuid(self.kek)
            .bytes(&self.kek_version.to_be_bytes())
            .finish();
        AssociatedData(encoding)
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
        let encoding = Encoder::new("keyfold/v1/kek")
            .uuid(self.installation)
            .uuid(self.keyspace)
            .string(self.purpose)
            .uuid(self.kek)
            .bytes(&self.kek_version.to_be_bytes())
            .uuid(self.root_key_id)
            .finish();
        AssociatedData(encoding)
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
        let encoding = Encoder::new("keyfold/v1/rwk")
            .uuid(self.installation)
            .uuid(self.rwk)
            .bytes(&self.rwk_version.to_be_bytes())
            .uuid(self.root_key_id)
            .finish();
        AssociatedData(encoding)
    }
}

/// Place of the RWK's second copy, sealed by the recovery key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecoveryContext {
    /// The installation.
    pub installation: Uuid,
    /// The RWK.
    pub rwk: Uuid,
    /// Its version.
    pub rwk_version: u32,
    /// From [`recovery_key_id`](super::recovery_key_id).
    pub recovery_key_id: Uuid,
}

impl RecoveryContext {
    /// The encoding for [`seal`](super::seal) and [`open`](super::open) of the RWK.
    pub fn rwk_associated_data(&self) -> AssociatedData {
        self.encode("keyfold/v1/rwk-recovery")
    }

    /// That of the recovery key itself, wrapped by the RWK.
    pub fn recovery_key_associated_data(&self) -> AssociatedData {
        self.encode("keyfold/v1/recovery-key")
    }

    fn encode(&self, domain: &str) -> AssociatedData {
        let encoding = Encoder::new(domain)
            .uuid(self.installation)
            .uuid(self.rwk)
            .bytes(&self.rwk_version.to_be_bytes())
            .uuid(self.recovery_key_id)
            .finish();
        AssociatedData(encoding)
    }
}

/// Place of a private key of the internal certificate authority, wrapped by a KEK of purpose `internal-ca`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaKeyContext {
    /// The installation.
    pub installation: Uuid,
    /// The authority's version.
    pub ca_version: u32,
    /// The KEK that wraps it.
    pub kek: Uuid,
    /// The KEK's version.
    pub kek_version: u32,
}

impl CaKeyContext {
    /// The encoding for [`seal`](super::seal) and [`open`](super::open).
    pub fn associated_data(&self) -> AssociatedData {
        let encoding = Encoder::new("keyfold/v1/ca-key")
            .uuid(self.installation)
            .bytes(&self.ca_version.to_be_bytes())
            .uuid(self.kek)
            .bytes(&self.kek_version.to_be_bytes())
            .finish();
        AssociatedData(encoding)
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
    sum.copy_from_slice(digest(&SHA256, &encoded).as_ref());
    sum
}
