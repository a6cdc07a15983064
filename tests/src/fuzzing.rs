//! One function for each parser of foreign bytes. It takes any bytes and panics when something that must always hold
//! does not. `make fuzz` searches for such bytes; the tests run each over its corpus and seeded changes of it.

mod blob;
mod csi_request;
mod jwks;
mod path_and_pattern;
mod role_file;
mod token;

pub use self::{
    blob::blob, csi_request::csi_request, jwks::jwks, path_and_pattern::path_and_pattern,
    role_file::role_file, token::token,
};

/// A target takes any bytes, and panics when it finds a fault.
pub type Target = fn(&[u8]);

/// All targets by name: that of the fuzzing binary, and of the folder in `fuzz/corpus`.
pub const TARGETS: [(&str, Target); 6] = [
    ("blob", blob),
    ("csi_request", csi_request),
    ("jwks", jwks),
    ("path_and_pattern", path_and_pattern),
    ("role_file", role_file),
    ("token", token),
];
