//! How figures are written.

use std::{fs, path::Path};

use serde::Serialize;

/// Writes `figures` into the file `name` of a folder, which is made if need be, and says so.
///
/// # Panics
/// When it cannot be written.
pub(crate) fn write_json(folder: &Path, name: &str, figures: &impl Serialize) {
    save_json(folder, name, figures);
    println!("\nWritten to {}", folder.join(name).display());
}

/// The same without a word.
///
/// # Panics
/// When it cannot be written.
pub(crate) fn save_json(folder: &Path, name: &str, figures: &impl Serialize) {
    let file = folder.join(name);
    let json = serde_json::to_vec_pretty(figures).expect("figures are JSON");
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&file, json))
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

/// Whether this program was built with optimisation, as JSON files state it.
pub(crate) fn profile() -> &'static str {
    if cfg!(debug_assertions) { "dev" } else { "release" }
}

/// Nanoseconds in the unit of all tables.
pub(crate) fn micros(nanos: f64) -> String {
    format!("{:.1} µs", nanos / 1000.0)
}
