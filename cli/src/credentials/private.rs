//! Files that are their owner's alone, in a folder that is too. Anything else there is refused, not repaired: others may
//! have read or written it.

use std::{
    ffi::OsStr,
    fs::{DirBuilder, File},
    io::{self, Read as _, Write as _},
    os::{fd::AsFd, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
};

use keyfold_core::entropy::{Entropy as _, SystemEntropy};
use rustix::{
    fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags},
    io::Errno,
    process::geteuid,
};
use zeroize::Zeroizing;

use crate::exit::io_reason;

/// A folder of mode 0700 that belongs to this user. Files are reached through it, so that nobody who can move a folder
/// above it leads a read or a write elsewhere.
pub struct PrivateFolder {
    folder: File,
    path: PathBuf,
}

impl PrivateFolder {
    /// Opens the folder; `None` when it is not there.
    ///
    /// # Errors
    /// When it is a link, belongs to another user, or is open to others.
    pub fn open(path: &Path) -> Result<Option<Self>, String> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(folder) => File::from(folder),
            // Also below a home that this user cannot enter or that is no folder, as daemons have it.
            Err(_) if rustix::fs::lstat(path).is_err() => return Ok(None),
            Err(error) => return Err(unusable(path, error)),
        };
        let folder = Self { folder, path: path.to_owned() };
        refuse_others(&folder.folder, path, FileType::Directory, 0o700)?;
        Ok(Some(folder))
    }

    /// Opens the folder; makes it, and those above it, where they are not there.
    ///
    /// # Errors
    /// As for `open`, or when it cannot be made.
    pub fn open_or_make(path: &Path) -> Result<Self, String> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        // What stands there instead is told by opening it.
        made.or_else(|error| if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) })
            .map_err(|error| {
                format!("the folder {} cannot be made: {}", path.display(), io_reason(&error))
            })?;
        Self::open(path)?.ok_or_else(|| unusable(path, Errno::NOENT))
    }

    /// Waits until no other process holds this lock, and holds it until the folder is dropped.
    ///
    /// # Errors
    /// When the file system knows no locks.
    pub fn lock(&self) -> Result<(), String> {
        rustix::fs::flock(&self.folder, FlockOperation::LockExclusive)
            .map_err(|error| unusable(&self.path, error))
    }

    /// The content of a file, at most `len_max` bytes; `None` when it is not there.
    ///
    /// # Errors
    /// When it is a link or no file, belongs to another user, is open to others, or is longer.
    pub fn read(&self, name: &OsStr, len_max: usize) -> Result<Option<Zeroizing<Vec<u8>>>, String> {
        let path = self.path.join(name);
        // A pipe in its place must not make this wait.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.folder, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(unusable(&path, error)),
        };
        refuse_others(&file, &path, FileType::RegularFile, 0o600)?;
        let mut content = Zeroizing::new(Vec::with_capacity(len_max + 1));
        file.take(len_max as u64 + 1)
            .read_to_end(&mut content)
            .map_err(|error| format!("{} cannot be read: {}", path.display(), io_reason(&error)))?;
        if content.len() > len_max {
            return Err(format!("{} is longer than {} KiB", path.display(), len_max / 1024));
        }
        Ok(Some(content))
    }

    /// Writes a file of mode 0600. A reader sees the old content or the new, whoever else writes at the same time.
    ///
    /// # Errors
    /// When it cannot be written; the old content stays.
    pub fn write(&self, name: &OsStr, content: &[u8]) -> Result<(), String> {
        let new = self.new_name(name)?;
        let written = self
            .write_new(new.as_ref(), content)
            .and_then(|()| Ok(rustix::fs::renameat(&self.folder, &*new, &self.folder, name)?));
        written.map_err(|error| {
            // What is left of it would be removed by `remove`.
            let _ = rustix::fs::unlinkat(&self.folder, &*new, AtFlags::empty());
            format!("{} cannot be written: {}", self.path.join(name).display(), io_reason(&error))
        })
    }

    /// Removes a file, whatever it is, and what writers of it left behind that were killed.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, name: &OsStr) -> Result<(), String> {
        self.remove_all(name).map_err(|error| {
            format!("{} cannot be removed: {}", self.path.join(name).display(), io_reason(&error))
        })
    }

    fn write_new(&self, name: &OsStr, content: &[u8]) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&self.folder, name, flags, Mode::RUSR | Mode::WUSR)?);
        file.write_all(content)?;
        file.sync_all()
    }

    /// A name that no other writer of `name` uses, and that tells whose it is.
    fn new_name(&self, name: &OsStr) -> Result<String, String> {
        let mut random = [0; 8];
        SystemEntropy.fill(&mut random).map_err(|error| error.to_string())?;
        Ok(format!("{}{}", new_prefix(name), hex::encode(random)))
    }

    fn remove_all(&self, name: &OsStr) -> io::Result<()> {
        let prefix = new_prefix(name);
        for entry in Dir::read_from(&self.folder)? {
            let entry = entry?;
            let found = entry.file_name().to_bytes();
            if found == name.as_encoded_bytes() || found.starts_with(prefix.as_bytes()) {
                match rustix::fs::unlinkat(&self.folder, entry.file_name(), AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}

fn new_prefix(name: &OsStr) -> String {
    format!(".{}.", name.to_string_lossy())
}

/// Refuses what is of another kind, belongs to another user, or is open to others.
pub(crate) fn refuse_others(file: impl AsFd, path: &Path, kind: FileType, mode: u32) -> Result<(), String> {
    let found = rustix::fs::fstat(file).map_err(|error| unusable(path, error))?;
    let path = path.display();
    if FileType::from_raw_mode(found.st_mode) != kind {
        return Err(format!("{path} is no regular file"));
    }
    if found.st_uid != geteuid().as_raw() {
        return Err(format!("{path} belongs to another user, with id {}", found.st_uid));
    }
    let found = found.st_mode & 0o7777;
    if found & 0o077 != 0 {
        return Err(format!("{path} is open to others: its mode is {found:04o} where it must be {mode:04o}"));
    }
    Ok(())
}

fn unusable(path: &Path, error: Errno) -> String {
    let reason = match error {
        // What the kernel says of a link, where none may be followed, to a file and to a folder.
        Errno::LOOP | Errno::NOTDIR => "it is a link, or not what it must be".to_owned(),
        error => io_reason(&error.into()),
    };
    format!("{} cannot be used: {reason}", path.display())
}

#[cfg(test)]
mod tests;
