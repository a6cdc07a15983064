//! The life of keys: their states and legal moves, when they turn, what is to be done next, and the proof of a
//! destruction. All pure; the server's workers load, ask here, and write what comes out.

pub mod certificate;
pub mod cron;
pub mod policy;
pub mod schedule;
pub(crate) mod span;
pub mod state;
pub mod sweep;

pub use self::{
    certificate::{CertificateError, Check, CheckName, DestructionCertificate, SignedCertificate},
    policy::{MissedRun, PolicyError, RotationPolicy},
    schedule::{Due, MISSED_AFTER, due, next_runs},
    state::{IllegalMove, KeyState, KeyVersion, Keyset, KeysetError, Move, Restored},
    sweep::{Action, KeyView, KeysetView, Step, Sweep, sweep},
};

use std::fmt;

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Wraps the DEKs of one keyspace.
    Data,
    /// Makes the MACs of rows. One for the installation.
    RowMac,
    /// Seed of the Ed25519 key that signs checkpoints of the audit log and certificates. One for the installation.
    AuditSign,
    /// Wraps the private keys of the internal certificate authority. One for the installation.
    InternalCa,
}

impl Purpose {
    /// All purposes.
    pub const ALL: [Self; 4] = [Self::Data, Self::RowMac, Self::AuditSign, Self::InternalCa];

    /// Its name, as stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::RowMac => "row-mac",
            Self::AuditSign => "audit-sign",
            Self::InternalCa => "internal-ca",
        }
    }

    /// The purpose of that exact name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|purpose| purpose.as_str() == name)
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
