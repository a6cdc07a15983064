//! Keyfold's server: authenticates pods, decides, audits and issues secrets; keeps all state in Postgres.

pub mod api;
pub mod authn;
mod body;
pub mod broker;
pub mod ca;
mod callers;
pub mod config;
pub mod directory;
pub mod error;
pub mod integrity;
pub mod k8s;
pub mod keys;
pub mod listener;
pub mod open_files;
mod replies;
pub mod seal;
mod secret_cache;
pub mod serve;
mod shares;
pub mod store;
pub mod telemetry;
mod turns;
