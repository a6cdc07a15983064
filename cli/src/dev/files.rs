//! What the parts are set up from: files and folders that only their owner may read, random bytes, free ports.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use keyfold_core::entropy::{Entropy as _, SystemEntropy};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::exit::{Exit, Failure};

/// Writes `content` to `path` with mode 0600. A reader sees the old file or the new one, never a part of either.
///
/// # Errors
/// When the folder does not exist or cannot be written.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = Path::new(&name);
    replace(new, path, content)
        .map_err(|error| Failure::io(format!("cannot write {}", path.display()), &error))
}

fn replace(new: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    remove_if_there(new)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)?;
    file.write_all(content)?;
    fs::rename(new, path)
}

/// Removes the file at `path`, if there is one.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Creates the folder `path`, and those above it, with mode 0700; one that stands already gets that mode.
///
/// # Errors
/// When it cannot be created, or belongs to somebody else.
pub fn private_folder(path: &Path) -> Result<(), Failure> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o700)))
        .map_err(|error| Failure::io(format!("cannot create the folder {}", path.display()), &error))
}

/// The text of the file at `path`.
///
/// # Errors
/// When it cannot be read or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| Failure::io(format!("cannot read {}", path.display()), &error))
}

/// Writes `document` to `path` as YAML, with mode 0600.
///
/// # Errors
/// As for [`write_private`].
pub fn write_yaml(path: &Path, document: &Value) -> Result<(), Failure> {
    let yaml = serde_saphyr::to_string(document).map_err(|error| {
        Failure::new(Exit::Internal, format!("cannot write {}", path.display()), error.to_string())
    })?;
    write_private(path, yaml.as_bytes())
}

/// 32 bytes of the system's randomness.
///
/// # Errors
/// When there is none.
pub fn random() -> Result<Zeroizing<[u8; 32]>, Failure> {
    let mut bytes = Zeroizing::new([0; 32]);
    SystemEntropy
        .fill(&mut *bytes)
        .map_err(|error| Failure::new(Exit::Internal, "cannot choose a secret", error.to_string()))?;
    Ok(bytes)
}

/// A port on 127.0.0.1 that was free a moment ago, for programs that cannot choose one themselves.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Result<u16, Failure> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| Failure::io("cannot find a free port", &error))
}
