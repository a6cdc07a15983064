//! Keyfold's server: authenticates pods, decides, audits and issues secrets; keeps all state in Postgres.

pub mod api;
pub mod authn;
mod body;
pub mod broker;
pub mod config;
pub mod error;
pub mod keys;
pub mod listener;
pub mod seal;
pub mod serve;
mod shares;
pub mod store;
pub mod telemetry;
