//! The files of one volume, in memory.

use std::collections::BTreeMap;

use keyfold_core::secret::SecretBytes;

use crate::file_path::FilePath;

/// One file: its content, and who may read it.
pub struct File {
    /// The bytes. Wiped on drop.
    pub content: SecretBytes,
    /// Permission bits.
    pub mode: u32,
    /// Owner; root when absent.
    pub uid: Option<u32>,
    /// Group; root's when absent.
    pub gid: Option<u32>,
}

/// All files of a volume by path. No file stands where another needs a folder.
#[derive(Default)]
pub struct FileSet(BTreeMap<FilePath, File>);

impl FileSet {
    /// Adds a file. Gives back the path of another one that it cannot stand beside.
    pub fn insert(&mut self, path: FilePath, file: File) -> Result<(), FilePath> {
        let collides = |other: &&FilePath| **other == path || other.is_above(&path) || path.is_above(other);
        match self.0.keys().find(collides) {
            Some(other) => Err(other.clone()),
            None => {
                self.0.insert(path, file);
                Ok(())
            }
        }
    }

    /// The files in the order of their paths.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&FilePath, &File)> {
        self.0.iter()
    }

    /// The file at `path`.
    pub fn get(&self, path: &FilePath) -> Option<&File> {
        self.0.get(path)
    }

    /// Number of files.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no file.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
