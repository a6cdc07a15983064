//! The tmpfs of a volume: made, filled while nobody can see it, then attached to its target in one step. So a crash at
//! any moment leaves either no mount or a complete one.

#[cfg(test)]
pub(crate) mod tests;

use std::{
    fs, io,
    io::BufRead,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStringExt, fs::DirBuilderExt},
    },
    path::{Path, PathBuf},
    sync::Once,
};

use procfs_core::process::MountInfo;
use rustix::{
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags},
};

use crate::{
    folder::{Access, Folder},
    volume::TargetPath,
};

/// The mount's source in mountinfo and `findmnt`, which tells this driver's mounts from those of others.
const SOURCE: &str = "keyfold";

/// Why something could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A step failed.
    #[error("{0} failed: {1}")]
    Io(&'static str, #[source] io::Error),
    /// The kernel refused to mount.
    #[error("the driver may not mount: it needs CAP_SYS_ADMIN in its mount namespace")]
    NotPermitted,
    /// Something that is not a tmpfs of this driver's is mounted at the target: its type, and its source.
    #[error("a file system of type {0:?} from {1:?} is mounted at the target, which is not Keyfold's")]
    Foreign(String, String),
    /// Symbolic links lead the target out of kubelet's folder, or its last part is one.
    #[error("a symbolic link leads the target path out of kubelet's pods folder")]
    Outside,
}

/// A target with all symbolic links above it resolved, as mountinfo shows it.
#[derive(Debug, Clone)]
pub struct MountPoint(PathBuf);

/// What is at a mount point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No mount.
    Absent,
    /// A tmpfs that was never written.
    Empty,
    /// A tmpfs with a volume's files.
    Written,
}

impl MountPoint {
    /// Resolves a target; nothing when the folder that should hold it does not exist.
    ///
    /// # Errors
    /// When a symbolic link leads out of `pods_dir`.
    pub fn resolve(target: &TargetPath, pods_dir: &Path) -> Result<Option<Self>, MountError> {
        let path = target.as_path();
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(MountError::Outside);
        };
        let parent = match parent.canonicalize() {
            Ok(parent) => parent,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(MountError::Io("resolving the target path", error)),
        };
        let pods_dir = pods_dir
            .canonicalize()
            .map_err(|error| MountError::Io("resolving kubelet's pods folder", error))?;
        if parent.starts_with(pods_dir) {
            Ok(Some(Self(parent.join(name))))
        } else {
            Err(MountError::Outside)
        }
    }

    /// What is mounted here now, from mountinfo alone, so that it holds across restarts.
    ///
    /// # Errors
    /// When mountinfo cannot be read, or a foreign file system is mounted.
    pub fn state(&self) -> Result<State, MountError> {
        if !self.is_mounted()? {
            return Ok(State::Absent);
        }
        let root = self.open()?;
        let written = crate::atomic_writer::is_written(&root);
        match written.map_err(|error| MountError::Io("reading the volume", error))? {
            true => Ok(State::Written),
            false => Ok(State::Empty),
        }
    }

    /// Opens the folder at the mount point: the root of what is mounted there.
    ///
    /// # Errors
    /// When it is not a folder.
    pub fn open(&self) -> Result<OwnedFd, MountError> {
        let flags =
            rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
        rustix::fs::open(&self.0, flags, rustix::fs::Mode::empty()).map_err(step("opening the target path"))
    }

    /// Attaches a filled tmpfs here. The folder is made when it does not exist, and removed again on failure.
    ///
    /// # Errors
    /// When the folder cannot be made or the kernel refuses the mount.
    pub fn attach(&self, tmpfs: Tmpfs) -> Result<(), MountError> {
        self.create_folder()?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        let attached = self.open().and_then(|folder| {
            rustix::mount::move_mount(&tmpfs.mount, "", &folder, "", flags)
                .map_err(refused("attaching the tmpfs"))
        });
        if attached.is_err() {
            // Best effort: kubelet unpublishes what it could not publish, and that removes the folder as well.
            let _ = fs::remove_dir(&self.0);
        }
        attached
    }

    /// Unmounts all that is mounted here and removes the folder. Fine when there is nothing.
    ///
    /// # Errors
    /// When a foreign file system is mounted, or the folder holds files.
    pub fn remove(&self) -> Result<(), MountError> {
        while self.is_mounted()? {
            self.unmount()?;
        }
        match fs::remove_dir(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(MountError::Io("removing the target folder", error))
            }
            _ => Ok(()),
        }
    }

    /// Unmounts the topmost mount. When a process of the host stands in it, it goes as soon as that leaves.
    fn unmount(&self) -> Result<(), MountError> {
        match rustix::mount::unmount(&self.0, UnmountFlags::NOFOLLOW) {
            // INVAL: it went in the meantime.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(Errno::BUSY) => {
                rustix::mount::unmount(&self.0, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
                    .map_err(refused("unmounting"))
            }
            Err(error) => Err(refused("unmounting")(error)),
        }
    }

    /// Whether the topmost mount here is Keyfold's. An error when it is another's.
    fn is_mounted(&self) -> Result<bool, MountError> {
        let table = fs::File::open("/proc/self/mountinfo").map(io::BufReader::new);
        let top = table
            .and_then(|table| mount_at(table, &self.0))
            .map_err(|error| MountError::Io("reading /proc/self/mountinfo", error))?;
        match top {
            None => Ok(false),
            Some(mount) if mount.fs_type == "tmpfs" && mount.source == SOURCE => Ok(true),
            Some(mount) => Err(MountError::Foreign(mount.fs_type, mount.source)),
        }
    }

    fn create_folder(&self) -> Result<(), MountError> {
        match fs::DirBuilder::new().mode(0o750).create(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(MountError::Io("making the target folder", error))
            }
            _ => Ok(()),
        }
    }
}

/// A mounted file system.
#[derive(Debug, PartialEq, Eq)]
struct Mounted {
    fs_type: String,
    source: String,
}

/// The topmost file system mounted at `target`, in a table of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)). Lines that
/// cannot be parsed are other people's mounts.
fn mount_at(mountinfo: impl BufRead, target: &Path) -> io::Result<Option<Mounted>> {
    let mut found = None;
    for line in mountinfo.split(b'\n') {
        let Ok(line) = String::from_utf8(line?) else { continue };
        let Ok(mount) = MountInfo::from_line(&line) else { continue };
        if unescaped(&mount.mount_point) == target {
            let source = mount.mount_source.unwrap_or_else(|| "none".to_owned());
            found = Some(Mounted { fs_type: mount.fs_type, source });
        }
    }
    Ok(found)
}

/// The kernel writes space, tab, line break and backslash as three octal digits.
fn unescaped(path: &Path) -> PathBuf {
    let bytes = path.as_os_str().as_encoded_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                out.push(byte);
                rest = &after[3..];
            }
            _ => {
                out.push(*first);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

/// A tmpfs that is mounted nowhere yet. It is gone when dropped before [`MountPoint::attach`].
pub struct Tmpfs {
    mount: OwnedFd,
    root: Folder,
}

impl Tmpfs {
    /// Makes a tmpfs of at most `size_bytes`, whose root has the given access.
    ///
    /// # Errors
    /// When the kernel refuses it. That it refuses `noswap`, or a group that the user namespace does not have, is
    /// logged and no error.
    pub fn create(size_bytes: u64, access: Access) -> Result<Self, MountError> {
        let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(refused("opening a tmpfs"))?;
        let set =
            |key: &str, value: String| rustix::mount::fsconfig_set_string(&context, key, value.as_str());
        set("source", SOURCE.into()).map_err(refused("naming the tmpfs"))?;
        set("size", size_bytes.to_string()).map_err(refused("limiting the tmpfs"))?;
        set("mode", format!("{:o}", access.mode)).map_err(refused("setting the tmpfs' mode"))?;
        for (key, id) in [("uid", access.uid), ("gid", access.gid)] {
            if let Some(id) = id
                && set(key, id.to_string()).is_err()
            {
                tracing::warn!("the user namespace has no {key} {id}: the volume's root stays the driver's");
            }
        }
        if rustix::mount::fsconfig_set_flag(&context, "noswap").is_err() {
            log_swap_once();
        }
        rustix::mount::fsconfig_create(&context).map_err(refused("making the tmpfs"))?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(refused("mounting the tmpfs"))?;
        let root = Folder::open(&mount, ".").map_err(|error| MountError::Io("opening the tmpfs", error))?;
        Ok(Self { mount, root })
    }

    /// The root folder, for writing.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

fn log_swap_once() {
    static LOGGED: Once = Once::new();
    LOGGED.call_once(|| {
        tracing::warn!(
            "the kernel refused noswap, which needs Linux 6.3 and no user namespace: files of volumes may reach \
             swap, so turn swap off or encrypt it"
        );
    });
}

fn step(name: &'static str) -> impl Fn(Errno) -> MountError {
    move |error| MountError::Io(name, error.into())
}

fn refused(name: &'static str) -> impl Fn(Errno) -> MountError {
    move |error| match error {
        Errno::PERM => MountError::NotPermitted,
        error => MountError::Io(name, error.into()),
    }
}
