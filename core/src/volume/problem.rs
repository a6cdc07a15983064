//! What can be wrong with a volume's attributes. The texts stand in pods' events and in what `keyfold lint` reports.

use std::fmt;

use super::{FilePath, SECRETS};
use crate::{foreign_text::quoted, name::NameError};

/// One thing that is wrong with a volume's attributes. Its `Display` form says where, and names no value of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// An attribute that there is not.
    Unknown {
        /// Its key.
        attribute: String,
    },
    /// `role` is not the name of a role.
    Role(NameError),
    /// There is no `secrets`.
    Missing,
    /// `secrets` is not a list of 1 to 64 items.
    List {
        /// What is wrong.
        message: String,
        /// Where in the attribute's text, when the YAML parser knows.
        at: Option<Position>,
    },
    /// An item is wrong.
    Item {
        /// Its place in the list, from 0.
        index: usize,
        /// Everything that is wrong with it.
        mistakes: Vec<Mistake>,
    },
    /// Two items would write the same file.
    SameFile {
        /// Their places in the list, from 0.
        items: (usize, usize),
        /// The file.
        file: FilePath,
    },
    /// One of two items would write a file where the other needs a folder.
    FileAndFolder {
        /// Their places in the list, from 0.
        items: (usize, usize),
        /// Their files.
        files: (FilePath, FilePath),
    },
}

/// One thing that is wrong with an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The item's key that it is about; absent when it is about the whole.
    pub key: Option<String>,
    /// Whether the item has another shape than it should: an unknown key, a missing one, a value of another type.
    pub is_misfit: bool,
    /// What is wrong.
    pub message: String,
}

/// A place in a text: line and column in characters, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1.
    pub column: usize,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { attribute } => write!(
                f,
                "the volume attribute {} is unknown: there are `role` and `secrets`",
                quoted(attribute)
            ),
            Self::Role(error) => write!(f, "role: {error}"),
            Self::Missing => f.write_str("the volume attribute `secrets` is missing"),
            Self::List { message, .. } => write!(f, "{SECRETS}: {message}"),
            Self::Item { index, mistakes } => {
                let messages: Vec<_> = mistakes.iter().map(|mistake| mistake.message.as_str()).collect();
                write!(f, "{SECRETS}[{index}]: {}", messages.join(", "))
            }
            Self::SameFile { items: (first, second), file } => write!(
                f,
                "{SECRETS}[{first}] and {SECRETS}[{second}] both write {}: give one another `file`",
                quoted(&file.to_string())
            ),
            Self::FileAndFolder { items: (first, second), files: (a, b) } => write!(
                f,
                "{SECRETS}[{first}] and {SECRETS}[{second}]: one of {} and {} is a file where the other needs a folder",
                quoted(&a.to_string()),
                quoted(&b.to_string())
            ),
        }
    }
}
