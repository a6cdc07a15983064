//! Writes all files of a volume at once, in the layout that kubelet uses for its own volumes:
//!
//! ```text
//! ..2026_11_23_06_12_30.123456789/db/password   one generation of files
//! ..data -> ..2026_11_23_06_12_30.123456789     replaced by rename: the one moment of change
//! db     -> ..data/db                           what the pod opens
//! ```
//!
//! A reader that holds `..data` open, or opens one file, sees one whole generation with its final access.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, BorrowedFd},
};

use keyfold_core::volume::FilePath;
use time::{OffsetDateTime, macros::format_description};

use crate::{
    file_set::{File, FileSet},
    folder::{Access, Folder, Ownership},
    lease,
};

/// The link to the present generation.
const DATA: &str = "..data";
/// The link that becomes `..data`.
const DATA_TMP: &str = "..data_tmp";
/// Names that begin so are the writer's own; no file of a volume may.
const OWN_PREFIX: &str = "..";

/// What a write did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// The files were there already, byte by byte.
    Unchanged,
    /// A new generation of files is visible.
    Swapped(Ownership),
}

/// Why a write failed. The files of before are still visible, and nothing of the new ones is left.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The volume has no room.
    #[error("the volume is full")]
    Full,
    /// Something else.
    #[error("{0} failed: {1}")]
    Io(&'static str, #[source] io::Error),
}

/// Whether the volume whose root is `root` has ever been written.
///
/// # Errors
/// When the root cannot be read.
pub fn is_written(root: impl AsFd) -> io::Result<bool> {
    Ok(Folder::open(root, ".")?.link_target(DATA)?.is_some())
}

/// Makes `files` the content of the volume whose root is `root`. `folders` is the access of every folder, and `now`
/// names the generation.
///
/// # Errors
/// When the volume is full or cannot be written; what was visible before still is.
pub fn write(
    root: BorrowedFd<'_>,
    files: &FileSet,
    folders: Access,
    now: OffsetDateTime,
) -> Result<Written, WriteError> {
    let root = Folder::open(root, ".").map_err(io_error("opening the volume"))?;
    let current = current_generation(&root).map_err(io_error("reading the volume"))?;
    remove_leftovers(&root, current.as_deref()).map_err(io_error("removing what a crash left"))?;
    let names = files.iter().map(|(path, _)| path.top().to_owned()).collect();
    if let Some(current) = &current
        && holds(&root, current, files).map_err(io_error("reading the present files"))?
    {
        link(&root, &names)
            .and_then(|()| unlink_others(&root, &names))
            .map_err(io_error("linking the files"))?;
        return Ok(Written::Unchanged);
    }
    let written = write_generation(&root, files, folders, now).and_then(|(generation, ownership)| {
        link(&root, &names)
            .and_then(|()| swap(&root, &generation))
            .map_err(io_error("swapping the files"))?;
        Ok(ownership)
    });
    match written {
        Ok(ownership) => {
            tidy(&root, current, &names);
            Ok(Written::Swapped(ownership))
        }
        Err(error) => {
            undo(&root, current.as_deref());
            Err(error)
        }
    }
}

/// After a swap: removes stale names and the old generation. A failure is no reader's concern, and the next write
/// tries again.
fn tidy(root: &Folder, old: Option<String>, names: &BTreeSet<String>) {
    let _ = unlink_others(root, names);
    if let Some(old) = old {
        let _ = root.remove(&old);
    }
}

/// After a failure before the swap: removes all of the new generation. What cannot be removed, the next write does.
fn undo(root: &Folder, current: Option<&str>) {
    let _ = remove_leftovers(root, current);
    let names = current.and_then(|current| root.child(current).ok()?.names().ok()).unwrap_or_default();
    let _ = unlink_others(root, &names.into_iter().collect());
}

/// Name of the generation that `..data` shows.
fn current_generation(root: &Folder) -> io::Result<Option<String>> {
    let Some(name) = root.link_target(DATA)? else { return Ok(None) };
    // Only a folder that this writer could have made; anything else is replaced without looking into it.
    let own = name.starts_with(OWN_PREFIX) && name.len() > OWN_PREFIX.len() && !name.contains('/');
    Ok((own && name != DATA && root.is_folder(&name)? == Some(true)).then_some(name))
}

fn remove_leftovers(root: &Folder, current: Option<&str>) -> io::Result<()> {
    for name in root.names()? {
        let kept = name == DATA || name == lease::FILE || Some(name.as_str()) == current;
        if name.starts_with(OWN_PREFIX) && !kept {
            root.remove(&name)?;
        }
    }
    Ok(())
}

/// Whether a generation holds exactly `files`, with their permission bits. Owners are not compared: attributes cannot
/// change in a pod's life, and an owner that the kernel refused would make every refresh a swap.
fn holds(root: &Folder, generation: &str, files: &FileSet) -> io::Result<bool> {
    let folder = root.child(generation)?;
    if count_files(&folder)? != files.len() {
        return Ok(false);
    }
    for (path, file) in files.iter() {
        if !holds_file(&folder, path, file)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn count_files(folder: &Folder) -> io::Result<usize> {
    let mut count = 0;
    for name in folder.names()? {
        count += if folder.is_folder(&name)? == Some(true) { count_files(&folder.child(&name)?)? } else { 1 };
    }
    Ok(count)
}

fn holds_file(generation: &Folder, path: &FilePath, file: &File) -> io::Result<bool> {
    let (folders, name) = path.split();
    let mut parent = generation.child(".")?;
    for folder in folders {
        if parent.is_folder(folder)? != Some(true) {
            return Ok(false);
        }
        parent = parent.child(folder)?;
    }
    if parent.is_folder(name)? != Some(false) {
        return Ok(false);
    }
    let found = parent.read_file(name)?;
    Ok(found.is_some_and(|(content, mode)| mode == file.mode && content.as_slice() == file.content.expose()))
}

/// Writes a generation that nothing points at yet.
fn write_generation(
    root: &Folder,
    files: &FileSet,
    folders: Access,
    now: OffsetDateTime,
) -> Result<(String, Ownership), WriteError> {
    let (name, folder) = create_generation(root, now).map_err(io_error("making a folder"))?;
    let ownership = fill(&folder, files, folders).map_err(io_error("writing the files"))?;
    Ok((name, ownership))
}

/// A new folder named after the time; with a number when the clock stood still or was set back.
fn create_generation(root: &Folder, now: OffsetDateTime) -> io::Result<(String, Folder)> {
    let format = format_description!("[year]_[month]_[day]_[hour]_[minute]_[second].[subsecond digits:9]");
    let stamp = now.format(format).map_err(io::Error::other)?;
    let numbered = (1..100).map(|number| format!("{OWN_PREFIX}{stamp}_{number}"));
    for name in [format!("{OWN_PREFIX}{stamp}")].into_iter().chain(numbered) {
        match root.create_child(&name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return result.map(|folder| (name, folder)),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn fill(generation: &Folder, files: &FileSet, folders: Access) -> io::Result<Ownership> {
    let mut ownership = generation.set_access(folders)?;
    let mut note = |found| {
        if found == Ownership::Refused {
            ownership = found
        }
    };
    for (path, file) in files.iter() {
        let (above, name) = path.split();
        let mut parent = generation.child(".")?;
        for folder in above {
            parent = parent.ensure_child(folder)?;
            note(parent.set_access(folders)?);
        }
        let access = Access { mode: file.mode, uid: file.uid, gid: file.gid };
        note(parent.create_file(name, file.content.expose(), access)?);
    }
    Ok(ownership)
}

/// Makes the root show `names` as links through `..data`. Links that stand already are not touched; a new one leads
/// nowhere until the swap, and shows its file from then on.
fn link(root: &Folder, names: &BTreeSet<String>) -> io::Result<()> {
    for name in names {
        let target = format!("{DATA}/{name}");
        if root.link_target(name)?.as_ref() != Some(&target) {
            root.remove(name)?;
            root.create_link(name, &target)?;
        }
    }
    Ok(())
}

/// The one moment of change.
fn swap(root: &Folder, generation: &str) -> io::Result<()> {
    root.create_link(DATA_TMP, generation)?;
    root.rename(DATA_TMP, DATA)
}

/// Removes what the root shows besides `names`.
fn unlink_others(root: &Folder, names: &BTreeSet<String>) -> io::Result<()> {
    for name in root.names()? {
        if !name.starts_with(OWN_PREFIX) && !names.contains(&name) {
            root.remove(&name)?;
        }
    }
    Ok(())
}

fn io_error(step: &'static str) -> impl Fn(io::Error) -> WriteError {
    move |error| match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => WriteError::Full,
        _ => WriteError::Io(step, error),
    }
}
