//! A folder held open, and what may be done in it. Every name is one component and no symbolic link is ever followed,
//! so nothing in a volume can lead a write out of it.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid},
    io::Errno,
};
use zeroize::Zeroizing;

/// An open folder.
pub struct Folder(OwnedFd);

/// Who may do what with a file or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Permission bits.
    pub mode: u32,
    /// Owner; unchanged when absent.
    pub uid: Option<u32>,
    /// Group; unchanged when absent.
    pub gid: Option<u32>,
}

/// Whether the kernel took an owner and group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// As asked.
    Set,
    /// The user namespace does not have that id: the file stays the driver's, which gives fewer rights, not more.
    Refused,
}

impl Folder {
    /// Opens the folder `name` in `parent`.
    pub fn open(parent: impl AsFd, name: &str) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(parent, name, flags, Mode::empty())?))
    }

    /// Opens the folder `name` in this one.
    pub fn child(&self, name: &str) -> io::Result<Self> {
        Self::open(&self.0, name)
    }

    /// Makes the folder `name`, which must not exist, reachable for its owner alone.
    pub fn create_child(&self, name: &str) -> io::Result<Self> {
        rustix::fs::mkdirat(&self.0, name, Mode::RWXU)?;
        self.child(name)
    }

    /// Opens the folder `name` and makes it first if need be.
    pub fn ensure_child(&self, name: &str) -> io::Result<Self> {
        match self.create_child(name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.child(name),
            result => result,
        }
    }

    /// Writes the file `name`, which must not exist. Nobody else can open it before its access is set.
    pub fn create_file(&self, name: &str, content: &[u8], access: Access) -> io::Result<Ownership> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&self.0, name, flags, Mode::RUSR | Mode::WUSR)?);
        file.write_all(content)?;
        set_access(&file, access)
    }

    /// Sets the folder's own access.
    pub fn set_access(&self, access: Access) -> io::Result<Ownership> {
        set_access(&self.0, access)
    }

    /// Opens the file `name` for reading; nothing when it does not exist.
    pub fn open_file(&self, name: &str) -> io::Result<Option<File>> {
        // NONBLOCK: opening a FIFO must not wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.0, name, flags, Mode::empty()) {
            Ok(file) => Ok(Some(file.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Content and permission bits of the file `name`; nothing when it does not exist or is not a plain file.
    pub fn read_file(&self, name: &str) -> io::Result<Option<(Zeroizing<Vec<u8>>, u32)>> {
        let Some(mut file) = self.open_file(name)? else { return Ok(None) };
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        // Room for all from the start: growing would leave a copy of the content behind.
        let mut content = Zeroizing::new(Vec::with_capacity(usize::try_from(stat.st_size).unwrap_or(0) + 1));
        file.read_to_end(&mut content)?;
        Ok(Some((content, stat.st_mode & 0o7777)))
    }

    /// Names of everything in the folder, `.` and `..` left out.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.0)? {
            match entry?.file_name().to_str() {
                Ok("." | "..") => {}
                Ok(name) => names.push(name.to_owned()),
                Err(_) => return Err(io::Error::other("a name in the volume is not UTF-8")),
            }
        }
        Ok(names)
    }

    /// Whether `name` is a folder; nothing when it does not exist.
    pub fn is_folder(&self, name: &str) -> io::Result<Option<bool>> {
        match rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Where the symbolic link `name` points; nothing when it does not exist or is something else.
    pub fn link_target(&self, name: &str) -> io::Result<Option<String>> {
        match rustix::fs::readlinkat(&self.0, name, Vec::new()) {
            Ok(target) => Ok(target.into_string().ok()),
            Err(Errno::NOENT | Errno::INVAL) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the symbolic link `name`, which must not exist.
    pub fn create_link(&self, name: &str, target: &str) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(target, &self.0, name)?)
    }

    /// Gives `old` the name `new`, in one step; what had that name is gone.
    pub fn rename(&self, old: &str, new: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.0, old, &self.0, new)?)
    }

    /// Removes `name` and, when it is a folder, all that lies in it. Fine when it does not exist.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match self.is_folder(name)? {
            None => return Ok(()),
            Some(false) => return Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::empty())?),
            Some(true) => {}
        }
        let child = self.child(name)?;
        for inner in child.names()? {
            child.remove(&inner)?;
        }
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::REMOVEDIR)?)
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Owner before mode: a change of owner clears bits of the mode.
fn set_access(fd: impl AsFd, access: Access) -> io::Result<Ownership> {
    let ownership = match (access.uid, access.gid) {
        (None, None) => Ownership::Set,
        (uid, gid) => {
            match rustix::fs::fchown(&fd, uid.map(Uid::from_raw), gid.map(Gid::from_raw)) {
                Ok(()) => Ownership::Set,
                // INVAL: the id has no place in this user namespace. PERM: no CAP_CHOWN.
                Err(Errno::INVAL | Errno::PERM) => Ownership::Refused,
                Err(error) => return Err(error.into()),
            }
        }
    };
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(access.mode))?;
    Ok(ownership)
}
