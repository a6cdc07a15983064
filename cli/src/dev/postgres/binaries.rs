//! Which Postgres this machine has, and the account that it runs as.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::geteuid;

use crate::{
    dev::process::Account,
    exit::{Exit, Failure},
};

/// The oldest major version that Keyfold works with.
const OLDEST: u32 = 15;
/// Where Debian's packages put each major version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// The folder of the newest Postgres, at least version 15: of Debian's packages, or on the PATH.
///
/// # Errors
/// When there is none.
pub fn newest() -> Result<PathBuf, Failure> {
    newest_below(Path::new(DEBIAN)).or_else(on_path).ok_or_else(|| {
        Failure::new(
            Exit::Internal,
            "cannot start Postgres",
            format!("there is no version {OLDEST} or later in {DEBIAN}/*/bin or on the PATH"),
        )
        .advise("Run `make setup`, or install your system's package `postgresql`")
    })
}

fn newest_below(folder: &Path) -> Option<PathBuf> {
    fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|version| *version >= OLDEST && has_server(&bin_below(folder, *version)))
        .max()
        .map(|version| bin_below(folder, version))
}

fn bin_below(folder: &Path, version: u32) -> PathBuf {
    folder.join(version.to_string()).join("bin")
}

fn on_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).find(|folder| has_server(folder) && version(folder) >= Some(OLDEST))
}

fn has_server(folder: &Path) -> bool {
    folder.join("postgres").exists() && folder.join("initdb").exists()
}

/// The major version that `postgres --version` tells: `postgres (PostgreSQL) 15.14 (Debian …)`.
fn version(folder: &Path) -> Option<u32> {
    let output = Command::new(folder.join("postgres")).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.split_whitespace().nth(2)?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The account for Postgres, which refuses to run as root: `postgres` then, and our own (none) otherwise.
///
/// # Errors
/// When we are root and there is no such account.
pub fn account() -> Result<Option<Account>, Failure> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let id = |flag| -> Option<u32> {
        let output = Command::new("id").args([flag, "postgres"]).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    match (id("--user"), id("--group")) {
        (Some(uid), Some(gid)) => Ok(Some(Account { uid, gid })),
        _ => Err(Failure::new(
            Exit::Internal,
            "cannot start Postgres",
            "it refuses to run as root, and there is no account `postgres`",
        )
        .advise("Run this as another user, or create the account")),
    }
}
