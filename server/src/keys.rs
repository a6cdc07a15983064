//! The key hierarchy: the root key opens the root-wrapping key, that one the KEKs, a KEK the DEK of one version.

pub mod destroy;
pub(crate) mod heartbeat;
pub mod keyring;
pub(crate) mod pace;
pub(crate) mod progress;
pub(crate) mod quarantine;
pub mod reencrypt;
pub mod rewrap;
pub mod root;
pub mod rwk;
pub(crate) mod schedule;
pub(crate) mod turn;
pub(crate) mod walk;
pub(crate) mod worker;
