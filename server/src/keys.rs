//! The key hierarchy: the root key opens the root-wrapping key, that one the KEKs, a KEK the DEK of one version.

pub mod keyring;
pub mod rewrap;
pub mod root;
