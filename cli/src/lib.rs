//! `keyfold`: the operators' command line, and the development environment (`keyfold dev`).

pub mod args;
pub mod client;
pub mod commands;
pub mod credentials;
pub mod dev;
pub mod documents;
pub mod exit;
pub mod lint;
pub mod output;
pub mod terminal;
