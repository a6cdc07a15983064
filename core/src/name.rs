//! Names: of objects (keyspaces, issuers, app roles) and of the fields of a secret.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest object name, in bytes: that of a DNS label, so that a name fits wherever Kubernetes wants one.
pub const OBJECT_NAME_MAX: usize = 63;

/// The longest field name, in bytes. A field becomes a file, and Linux takes 255; Kubernetes' own Secrets take 253.
pub const FIELD_NAME_MAX: usize = 253;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not an object name.
    #[error(
        "{0:?} is not a name: use 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit"
    )]
    Object(String),
    /// Not a field name.
    #[error(
        "{0:?} is not a field name: use 1 to 253 of A-Z, a-z, 0-9, '.', '_' and '-', \
         neither '.' nor beginning with '..'"
    )]
    Field(String),
}

/// The name of a keyspace, an issuer or an app role. Also a valid path segment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectName(String);

impl ObjectName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ObjectName {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let bytes = name.as_bytes();
        let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        if bytes.len() > OBJECT_NAME_MAX
            || !edge(bytes.first())
            || !edge(bytes.last())
            || !bytes.iter().all(inner)
        {
            return Err(NameError::Object(shortened(&name)));
        }
        Ok(Self(name))
    }
}

impl TryFrom<&str> for ObjectName {
    type Error = NameError;

    fn try_from(name: &str) -> Result<Self, NameError> {
        Self::try_from(name.to_owned())
    }
}

impl From<ObjectName> for String {
    fn from(name: ObjectName) -> Self {
        name.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks a field name: what Kubernetes takes as a key of a Secret, so every field can become a file or a variable.
///
/// # Errors
/// `NameError::Field` when it is empty, longer than 253 bytes, `.`, begins with `..`, or holds another character.
pub fn check_field_name(name: &str) -> Result<(), NameError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let safe = !name.is_empty() && name != "." && !name.starts_with("..");
    if !safe || name.len() > FIELD_NAME_MAX || !name.bytes().all(allowed) {
        return Err(NameError::Field(shortened(name)));
    }
    Ok(())
}

/// At most 64 characters of foreign text, for a message.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(64) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// `text`, cut to at most `max_bytes` with a mark at its end when it is longer.
pub fn cut(text: &str, max_bytes: usize) -> String {
    const MARK: &str = "…";
    if text.len() <= max_bytes {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(max_bytes.saturating_sub(MARK.len()));
    format!("{}{MARK}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attack_07_object_names_are_dns_labels() {
        for good in ["a", "payments", "a-1", "0"] {
            assert!(ObjectName::try_from(good).is_ok(), "{good}");
        }
        let long = "a".repeat(64);
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "ä", "a b", "a\0", " a", long.as_str()] {
            assert!(ObjectName::try_from(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn attack_24_field_names_are_safe_file_names() {
        for good in ["username", "DB_URL", "tls.crt", ".dockerconfigjson", "a..b", "-"] {
            assert!(check_field_name(good).is_ok(), "{good}");
        }
        let long = "a".repeat(300);
        for bad in ["", ".", "..", "..data", "../../etc/passwd", "a/b", "a\0", "ä", " ", long.as_str()] {
            assert!(check_field_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_cut_is_within_its_limit_and_on_a_character() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdefg", 6), "abc…");
        assert_eq!(cut("äöü", 5), "ä…");
        for max in 3..20 {
            assert!(cut(&"ö".repeat(20), max).len() <= max);
        }
    }
}
