//! Keyfold's pure logic: secret types, the envelope, paths, identities, the policy decision, the life of keys and
//! audit entries. No I/O and no async: `Cargo.toml` is the proof. The clock and randomness are parameters.

pub mod audit;
pub mod clock;
pub mod condition;
pub mod config;
pub mod explain;
pub mod foreign_text;
pub mod glob;
pub mod identity;
pub mod key;
pub mod name;
pub mod object;
pub mod path;
pub mod pattern;
pub mod plan;
pub mod policy;
pub mod refusal;
pub mod rights;
pub mod selector;
pub mod shamir;
pub mod token;
pub mod volume;

mod encoder;
pub mod entropy;
pub mod envelope;
pub mod payload;
pub mod row_mac;
pub mod secret;
