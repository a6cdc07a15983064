//! A mounted volume as the pod sees it.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::exit::Failure;

/// One file of a volume.
#[derive(Debug)]
pub struct VolumeFile {
    /// Its path inside the volume.
    pub name: String,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner and group.
    pub owner: (u32, u32),
    /// What it holds.
    pub content: String,
}

/// The volume's files by name, read as a pod reads them: through the links that point into `..data`.
///
/// # Errors
/// When a file cannot be read.
pub fn read(volume: &Path) -> Result<Vec<VolumeFile>, Failure> {
    let mut files = Vec::new();
    collect(volume, "", &mut files)
        .map_err(|error| Failure::io(format!("cannot read the volume {}", volume.display()), &error))?;
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// Adds the files of `folder`, whose names begin with `prefix`.
fn collect(folder: &Path, prefix: &str, files: &mut Vec<VolumeFile>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().display());
        // `..data` and the folder that it points to are the writer's own.
        if name.starts_with("..") {
            continue;
        }
        let (path, meta) = (entry.path(), fs::metadata(entry.path())?);
        if meta.is_dir() {
            collect(&path, &format!("{name}/"), files)?;
            continue;
        }
        let content = fs::read_to_string(&path)?;
        files.push(VolumeFile { name, mode: meta.mode() & 0o7777, owner: (meta.uid(), meta.gid()), content });
    }
    Ok(())
}

/// Where `..data` points: the generation of files that the pod sees.
///
/// # Errors
/// When there is no such link.
pub fn generation(volume: &Path) -> Result<PathBuf, Failure> {
    fs::read_link(volume.join("..data")).map_err(|error| Failure::io("the volume has no ..data", &error))
}

impl VolumeFile {
    /// Permission bits as `ls -l` writes them.
    pub fn permissions(&self) -> String {
        let bit = |index: u32| {
            if self.mode >> (8 - index) & 1 == 1 { ['r', 'w', 'x'][index as usize % 3] } else { '-' }
        };
        (0..9).map(bit).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_written_as_ls_writes_them() {
        let file = |mode| VolumeFile { name: String::new(), mode, owner: (0, 0), content: String::new() };
        assert_eq!(file(0o440).permissions(), "r--r-----");
        assert_eq!(file(0o751).permissions(), "rwxr-x--x");
    }
}
