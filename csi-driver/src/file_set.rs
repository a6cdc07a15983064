//! The files of one volume, in memory.

use std::collections::BTreeMap;

use keyfold_core::{secret::SecretBytes, volume::FilePath};

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
pub struct FileSet {
    files: BTreeMap<FilePath, File>,
    bytes: u64,
}

impl FileSet {
    /// Adds a file. Gives back the path of another one that it cannot stand beside.
    pub fn insert(&mut self, path: FilePath, file: File) -> Result<(), FilePath> {
        // In the order of paths what lies in a folder follows it directly, and no file here lies below another. So a
        // file above the new one can only be the last before it, and one below it only the first after it.
        let last_before = self.files.range(..=&path).next_back().map(|(other, _)| other);
        let first_after = self.files.range(&path..).next().map(|(other, _)| other);
        let above = last_before.filter(|other| **other == path || other.is_above(&path));
        let below = first_after.filter(|other| path.is_above(other));
        if let Some(other) = above.or(below) {
            return Err(other.clone());
        }
        self.bytes += file.content.len() as u64;
        self.files.insert(path, file);
        Ok(())
    }

    /// Bytes of all contents together.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The files in the order of their paths.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&FilePath, &File)> {
        self.files.iter()
    }

    /// The file at `path`.
    pub fn get(&self, path: &FilePath) -> Option<&File> {
        self.files.get(path)
    }

    /// Number of files.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is no file.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn insert(files: &mut FileSet, path: &str) -> Result<(), String> {
        let file = File { content: SecretBytes::new(vec![b'x'; 3]), mode: 0o440, uid: None, gid: None };
        files.insert(FilePath::parse(path).unwrap(), file).map_err(|other| other.to_string())
    }

    #[test]
    fn a_file_and_a_folder_do_not_share_a_path() {
        let mut files = FileSet::default();
        for path in ["a/b/c", "a/b.d", "a/a", "b"] {
            insert(&mut files, path).unwrap();
        }
        for (path, other) in
            [("a", "a/a"), ("a/b", "a/b/c"), ("a/b/c", "a/b/c"), ("a/b/c/d/e", "a/b/c"), ("b/x", "b")]
        {
            assert_eq!(insert(&mut files, path), Err(other.to_owned()), "{path}");
        }
        assert_eq!((files.len(), files.bytes()), (4, 12), "what was refused does not count");
    }

    proptest! {
        #[test]
        fn neighbours_are_enough_to_find_what_is_in_the_way(paths in proptest::collection::vec("[ab.-](/[ab]){0,3}", 0..24)) {
            let mut files = FileSet::default();
            for path in paths.iter().filter(|path| !path.starts_with('.')) {
                let new = FilePath::parse(path).unwrap();
                let in_the_way = |other: &FilePath| *other == new || other.is_above(&new) || new.is_above(other);
                let free = !files.iter().any(|(other, _)| in_the_way(other));
                prop_assert_eq!(insert(&mut files, path).is_ok(), free);
            }
        }
    }
}
