//! What the end-to-end tests share: databases cloned from a migrated template, and a world of real parts around them.
//!
//! Everything runs for real: Postgres, the server and the driver as processes, TLS, sockets, tmpfs mounts. The parts
//! come from `keyfold::dev`, which `keyfold dev` is made of as well.

mod cli;
mod database;
pub mod faults;
mod installation;
mod leak;
mod manifests;
mod recorded;
pub mod tls;
mod world;

pub use cli::{Cli, Ran};
pub use database::Database;
pub use installation::{Installation, OBJECTS, masked};
pub use leak::Search;
pub use manifests::parse_volume;
pub use recorded::{Recorded, fixture};
pub use world::{PAYMENTS_SECRETS, World, server_setup};

use std::path::PathBuf;

/// The folder of the built programs.
///
/// # Panics
/// When they are not built: `cargo nextest` alone builds no programs of other packages.
pub fn bin_dir() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let folder = test.parent().and_then(|deps| deps.parent()).expect("tests lie in target/PROFILE/deps");
    for program in ["keyfold", "keyfold-server", "keyfold-csi"] {
        assert!(
            folder.join(program).is_file(),
            "{program} is not built: run `make test`, or `make build` first"
        );
    }
    folder.to_owned()
}
