//! When a volume's secrets must be gone unless they are issued anew: kept in the volume itself, so that it outlives the
//! driver.

#[cfg(test)]
mod tests;

use std::{io, os::fd::AsFd};

use time::OffsetDateTime;

use crate::folder::{Access, Folder};

/// An empty file, last modified when the lease ends: a full volume has room for it, and one call changes it. Pods may
/// read it, and cannot write it.
pub(crate) const FILE: &str = "..lease";
/// The file until it has its time.
const FILE_TMP: &str = "..lease_tmp";
/// What reads the whole volume should not fail here.
const ACCESS: Access = Access { mode: 0o444, uid: None, gid: None };

/// When the lease of the volume whose root is `root` ends; nothing when it has none.
///
/// # Errors
/// When the volume cannot be read.
pub fn expiry(root: impl AsFd) -> io::Result<Option<OffsetDateTime>> {
    let Some(file) = Folder::open(root, ".")?.open_file(FILE)? else { return Ok(None) };
    Ok(Some(file.metadata()?.modified()?.into()))
}

/// Notes when the volume's lease ends, or that it has none.
///
/// # Errors
/// When the volume cannot be written.
pub fn set_expiry(root: impl AsFd, expires_at: Option<OffsetDateTime>) -> io::Result<()> {
    let root = Folder::open(root, ".")?;
    let Some(expires_at) = expires_at else { return root.remove(FILE) };
    if let Some(file) = root.open_file(FILE)? {
        return file.set_modified(expires_at.into());
    }
    root.remove(FILE_TMP)?;
    root.create_file(FILE_TMP, b"", ACCESS)?;
    if let Some(file) = root.open_file(FILE_TMP)? {
        file.set_modified(expires_at.into())?;
    }
    root.rename(FILE_TMP, FILE)
}
