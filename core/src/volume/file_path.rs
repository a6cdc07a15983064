//! Paths of files inside a volume: relative, and unable to leave it or to touch the writer's own entries.

use std::fmt;

/// Longest component in bytes: Linux' `NAME_MAX`.
const COMPONENT_BYTES_MAX: usize = 255;
/// Longest path in bytes; far below Linux' `PATH_MAX`, so that it stays usable below any mount point.
const PATH_BYTES_MAX: usize = 1024;
/// Most components of a path that is parsed. Each is a folder, which takes kernel memory that no tmpfs size limits.
const COMPONENTS_MAX: usize = 16;

/// A file's path relative to the volume's root, such as `db/username`.
///
/// Ordered by components, so that a folder stands directly before what lies in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FilePath(Vec<String>);

/// Why a text cannot be a file's path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilePathError {
    /// Begins with `/`.
    #[error("it must be relative")]
    Absolute,
    /// The whole is empty, or a component is, as with `a//b` or `a/`.
    #[error("it has an empty part")]
    Empty,
    /// A component is `.`, `..`, or begins with `..`, which is how the volume's own entries begin.
    #[error("no part of it may be '.' or begin with '..'")]
    Dots,
    /// A component or the whole is too long, or there are too many.
    #[error("a part is longer than 255 bytes, or the whole longer than 1024 bytes or 16 parts")]
    TooLong,
    /// Holds NUL, a line break or another control character.
    #[error("it holds a control character")]
    Control,
    /// A single name was wanted.
    #[error("it must not hold '/'")]
    Slash,
}

impl FilePath {
    /// Parses `text`; nothing is normalised.
    ///
    /// # Errors
    /// When the path could leave the volume, or cannot be a file's name on Linux.
    pub fn parse(text: &str) -> Result<Self, FilePathError> {
        if text.starts_with('/') {
            return Err(FilePathError::Absolute);
        }
        if text.len() > PATH_BYTES_MAX || text.split('/').count() > COMPONENTS_MAX {
            return Err(FilePathError::TooLong);
        }
        text.split('/').map(component).collect::<Result<_, _>>().map(Self)
    }

    /// The file `name` in the folder `self`.
    ///
    /// # Errors
    /// When `name` is not a single, safe file name.
    pub fn join(&self, name: &str) -> Result<Self, FilePathError> {
        if name.contains('/') {
            return Err(FilePathError::Slash);
        }
        let joined = Self(self.0.iter().cloned().chain([component(name)?]).collect());
        if joined.to_string().len() > PATH_BYTES_MAX {
            return Err(FilePathError::TooLong);
        }
        Ok(joined)
    }

    /// The first component, which the volume's root shows as a symbolic link.
    pub fn top(&self) -> &str {
        &self.0[0]
    }

    /// The folders above the file, and its name.
    pub fn split(&self) -> (&[String], &str) {
        let (name, folders) = self.0.split_last().expect("a path has at least one component");
        (folders, name)
    }

    /// Whether `self` is a folder above `other`.
    pub fn is_above(&self, other: &Self) -> bool {
        self.0.len() < other.0.len() && other.0.starts_with(&self.0)
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("/"))
    }
}

fn component(text: &str) -> Result<String, FilePathError> {
    if text.is_empty() {
        return Err(FilePathError::Empty);
    }
    if text == "." || text.starts_with("..") {
        return Err(FilePathError::Dots);
    }
    if text.len() > COMPONENT_BYTES_MAX {
        return Err(FilePathError::TooLong);
    }
    if text.chars().any(char::is_control) {
        return Err(FilePathError::Control);
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::{Component, Path};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ordinary_names_and_nested_paths_are_taken_as_they_are() {
        for good in ["db", "db/username", "tls.crt", ".pgpass", "a..b", "a b", "é", "a/b/c/d"] {
            assert_eq!(FilePath::parse(good).unwrap().to_string(), good);
        }
        assert_eq!(FilePath::parse("a/b/c").unwrap().top(), "a");
    }

    #[test]
    fn attack_24_a_path_that_could_leave_the_volume_is_refused() {
        let long = "a".repeat(300);
        let deep = "a/".repeat(600) + "a";
        for (bad, why) in [
            ("", FilePathError::Empty),
            ("/etc/passwd", FilePathError::Absolute),
            ("../../etc/passwd", FilePathError::Dots),
            ("a/../b", FilePathError::Dots),
            ("..data", FilePathError::Dots),
            ("..data/db", FilePathError::Dots),
            ("a/..2026", FilePathError::Dots),
            (".", FilePathError::Dots),
            ("./a", FilePathError::Dots),
            ("a//b", FilePathError::Empty),
            ("a/", FilePathError::Empty),
            ("a\0b", FilePathError::Control),
            ("a\nb", FilePathError::Control),
            (long.as_str(), FilePathError::TooLong),
            (deep.as_str(), FilePathError::TooLong),
        ] {
            assert_eq!(FilePath::parse(bad), Err(why), "{bad:?}");
        }
    }

    #[test]
    fn attack_24_a_field_name_is_one_component() {
        let folder = FilePath::parse("db").unwrap();
        assert_eq!(folder.join("username").unwrap().to_string(), "db/username");
        for bad in ["", "a/b", "../x", "..data", ".", "a\0"] {
            assert!(folder.join(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn attack_24_an_accepted_path_stays_below_the_volume(text in "[a./\\x00\\n-]{0,12}|\\PC{0,40}") {
            if let Ok(path) = FilePath::parse(&text) {
                prop_assert_eq!(path.to_string(), text.clone());
                prop_assert!(Path::new(&text).components().all(|part| matches!(part, Component::Normal(_))));
                prop_assert!(text.split('/').all(|part| !part.starts_with("..")));
            }
        }
    }
}
