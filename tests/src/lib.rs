//! What the end-to-end tests share: databases cloned from a migrated template, and a world of real parts around them.
//!
//! Everything runs for real: Postgres, the server and the driver as processes, TLS, sockets, tmpfs mounts. The parts
//! come from `keyfold::dev`, which `keyfold dev` is made of as well.

pub mod aged;
pub mod api_server;
pub mod attacker;
pub mod certificates;
mod cli;
pub mod custody;
mod database;
pub mod faults;
pub mod faulty_issuer;
pub mod fuzzing;
mod installation;
pub mod key_invariants;
pub mod key_works;
pub mod kms_plugin;
mod leak;
mod manifests;
pub mod memory;
mod operators;
pub mod proxy;
pub mod raw;
mod recorded;
pub mod softhsm;
pub mod tls;
pub mod two_persons;
mod world;
pub mod wycheproof;

pub use cli::{Cli, Ran};
pub use database::Database;
pub use installation::{Installation, OBJECTS, masked};
pub use leak::Search;
pub use manifests::parse_volume;
pub use operators::{PEOPLE, People, Person};
pub use recorded::{Recorded, fixture};
pub use world::{PAYMENTS_SECRETS, WAIT_VARIABLE, World, server_setup};

use std::path::PathBuf;

/// The folder of the built programs.
///
/// # Panics
/// When they are not built: `cargo nextest` alone builds no programs of other packages.
pub fn bin_dir() -> PathBuf {
    let own = std::env::current_exe().expect("a program knows its own path");
    let folder = own.parent().expect("a program lies in a folder");
    // Tests and examples lie one folder below the programs.
    let folder = if folder.ends_with("deps") || folder.ends_with("examples") {
        folder.parent().expect("tests lie in target/PROFILE/deps")
    } else {
        folder
    };
    for program in ["keyfold", "keyfold-server", "keyfold-csi"] {
        assert!(
            folder.join(program).is_file(),
            "{program} is not built: run `make test`, or `make build` first"
        );
    }
    folder.to_owned()
}
