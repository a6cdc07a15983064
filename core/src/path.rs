//! Secret paths: lower-case segments joined by `/`. A path that breaks the grammar is refused, never normalised,
//! so one secret has exactly one spelling.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::name::shortened;

/// Fewest segments of a path: the keyspace and a name.
pub const SEGMENTS_MIN: usize = 2;
/// Most segments of a path.
pub const SEGMENTS_MAX: usize = 8;
/// Longest segment, in bytes. It may become a file name, with an ending added.
pub const SEGMENT_BYTES_MAX: usize = 128;

/// Why a path was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Too few or too many segments.
    #[error("path {0:?} has {1} segments: a path has 2 to 8, such as payments/db")]
    Segments(String, usize),
    /// One segment breaks the grammar.
    #[error(
        "path {0:?} has the segment {1:?}: a segment is 1 to 128 of a-z, 0-9, '.', '_' and '-', \
         beginning and ending with a letter or digit"
    )]
    Segment(String, String),
}

/// The path of a secret, such as `payments/db`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretPath(String);

impl SecretPath {
    /// Parses a path.
    ///
    /// # Errors
    /// When the text breaks the grammar; nothing is trimmed, folded or decoded first.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        let count = text.split('/').count();
        if !(SEGMENTS_MIN..=SEGMENTS_MAX).contains(&count) {
            return Err(PathError::Segments(shortened(text), count));
        }
        match text.split('/').find(|segment| !is_segment(segment)) {
            Some(bad) => Err(PathError::Segment(shortened(text), shortened(bad))),
            None => Ok(Self(text.to_owned())),
        }
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first segment: the keyspace.
    pub fn keyspace(&self) -> &str {
        self.segments().next().unwrap_or_default()
    }

    /// The segments in order.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

impl TryFrom<String> for SecretPath {
    type Error = PathError;

    fn try_from(text: String) -> Result<Self, PathError> {
        Self::parse(&text)
    }
}

impl From<SecretPath> for String {
    fn from(path: SecretPath) -> Self {
        path.0
    }
}

impl fmt::Display for SecretPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether `text` is one segment: `[a-z0-9]([a-z0-9._-]*[a-z0-9])?`, at most 128 bytes.
pub fn is_segment(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
    bytes.len() <= SEGMENT_BYTES_MAX && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn good_paths_parse_unchanged() {
        for good in ["payments/db", "a/b/c/d/e/f/g/h", "shared/eu-1/tls.crt", "a/b_c", "0/1"] {
            let path = SecretPath::parse(good).unwrap();
            assert_eq!(path.as_str(), good);
        }
        assert_eq!(SecretPath::parse("payments/eu/db").unwrap().keyspace(), "payments");
    }

    #[test]
    fn attack_07_another_spelling_of_a_path_is_refused() {
        let long = format!("a/{}", "b".repeat(129));
        for bad in [
            "",
            "payments",
            "/payments/db",
            "payments/db/",
            "payments//db",
            "payments/./db",
            "payments/../db",
            "Payments/db",
            "payments/DB",
            "payments/%2fdb",
            "payments/db\0",
            "payments/dв",
            "payments/db ",
            " payments/db",
            "payments\\db",
            "a/b/c/d/e/f/g/h/i",
            "payments/*",
            "payments/{x}",
            "payments/.db",
            "payments/db-",
            long.as_str(),
        ] {
            assert!(SecretPath::parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_never_changes_text(text in ".{0,80}") {
            if let Ok(path) = SecretPath::parse(&text) {
                prop_assert_eq!(path.as_str(), text);
            }
        }
    }
}
