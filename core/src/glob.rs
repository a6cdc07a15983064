//! Globs over the names of namespaces and service accounts.

use std::fmt;

use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

use crate::name::shortened;

/// Why a glob was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a Kubernetes name: use 1 to 253 of a-z, 0-9, - and ., beginning and ending with a letter or digit; \
     * stands for any run of them"
)]
pub struct GlobError(String);

/// A Kubernetes name (RFC 1123) in which `*` stands for any run of characters, none included.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NameGlob(String);

impl NameGlob {
    /// Whether `name` is one of those that the glob stands for. Never a name that Kubernetes would not give.
    pub fn matches(&self, name: &str) -> bool {
        match self.0.contains('*') {
            false => self.0 == name,
            true => is_kubernetes_name(name) && WildMatch::new(&self.0).matches(name),
        }
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// RFC 1123, dots allowed, at most 253 bytes.
fn is_kubernetes_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    name.len() <= 253 && edge(name.bytes().next()) && edge(name.bytes().last()) && name.bytes().all(inner)
}

impl TryFrom<String> for NameGlob {
    type Error = GlobError;

    /// With each `*` replaced by a letter it must be a name.
    fn try_from(text: String) -> Result<Self, GlobError> {
        if is_kubernetes_name(&text.replace('*', "x")) {
            return Ok(Self(text));
        }
        Err(GlobError(shortened(&text)))
    }
}

impl From<NameGlob> for String {
    fn from(glob: NameGlob) -> Self {
        glob.0
    }
}

impl fmt::Display for NameGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn glob(text: &str) -> NameGlob {
        NameGlob::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn a_star_is_any_run_of_characters() {
        for (pattern, name, matches) in [
            ("team-*", "team-a", true),
            ("team-*", "team-", false),
            ("team-*", "steam-a", false),
            ("*", "default", true),
            ("*-api", "payments-api", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("api", "api", true),
            ("api", "api2", false),
            ("team-*", "team-*", false),
            ("*", "*", false),
        ] {
            assert_eq!(glob(pattern).matches(name), matches, "{pattern} {name}");
        }
    }

    #[test]
    fn attack_08_a_name_that_looks_like_a_glob_matches_nothing() {
        for name in ["*", "team-*", "", "team-a/x", "Team-a", "team-a\n", "team-{a,b}"] {
            assert!(!glob("team-*").matches(name), "{name:?}");
        }
    }

    #[test]
    fn what_no_name_can_be_is_refused() {
        for bad in ["", "Team", "a?b", "a b", "[ab]", "-a", "a/b", "ä*"] {
            assert!(NameGlob::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_glob_without_a_star_matches_itself_alone(left in "[a-z0-9]{1,4}", right in "[a-z0-9*]{1,4}") {
            prop_assert_eq!(glob(&left).matches(&right), left == right);
        }
    }
}
