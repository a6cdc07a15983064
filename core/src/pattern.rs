//! Path patterns of grants. A pattern can only ever match whole segments, and a variable's value is compared as one,
//! so nothing that a caller controls can widen a grant.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    identity::WorkloadIdentity,
    name::shortened,
    path::{SEGMENTS_MAX, SEGMENTS_MIN, SecretPath, is_segment},
};

/// Why a pattern was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Too few or too many segments.
    #[error("pattern {0:?} must have 2 to 8 segments, such as payments/*")]
    Segments(String),
    /// The first segment is not a keyspace's name.
    #[error("pattern {0:?} must begin with the name of a keyspace")]
    Keyspace(String),
    /// `**` somewhere before the end.
    #[error("pattern {0:?} has ** before its end: ** stands for one or more segments at the end only")]
    RestInside(String),
    /// A segment is neither a literal, `*`, `**` nor a variable.
    #[error(
        "pattern {0:?} has the segment {1:?}: use a path segment, *, ** at the end, \
         or one of {{namespace}}, {{serviceAccount}}, {{issuer}}"
    )]
    Segment(String, String),
}

/// What an operator may write as `path:` of a grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    text: String,
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(String),
    Variable(Variable),
    Any,
    Rest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variable {
    Namespace,
    ServiceAccount,
    Issuer,
}

/// The values that a workload has for variables.
#[derive(Debug, Clone, Copy)]
pub struct Variables<'a> {
    /// Of `{namespace}`.
    pub namespace: &'a str,
    /// Of `{serviceAccount}`.
    pub service_account: &'a str,
    /// Of `{issuer}`.
    pub issuer: &'a str,
}

impl<'a> From<&'a WorkloadIdentity> for Variables<'a> {
    fn from(identity: &'a WorkloadIdentity) -> Self {
        Self {
            namespace: &identity.namespace,
            service_account: &identity.service_account.name,
            issuer: identity.issuer.as_str(),
        }
    }
}

impl Variable {
    fn value(self, values: Variables<'_>) -> &str {
        match self {
            Self::Namespace => values.namespace,
            Self::ServiceAccount => values.service_account,
            Self::Issuer => values.issuer,
        }
    }
}

impl Pattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// When the text breaks the grammar; the message says how.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let parts: Vec<&str> = text.split('/').collect();
        if !(SEGMENTS_MIN..=SEGMENTS_MAX).contains(&parts.len()) {
            return Err(PatternError::Segments(shortened(text)));
        }
        let segments = parts.iter().map(|part| segment(text, part)).collect::<Result<Vec<_>, _>>()?;
        if !matches!(segments[0], Segment::Literal(_)) {
            return Err(PatternError::Keyspace(shortened(text)));
        }
        if segments[..segments.len() - 1].contains(&Segment::Rest) {
            return Err(PatternError::RestInside(shortened(text)));
        }
        Ok(Self { text: text.to_owned(), segments })
    }

    /// Whether the pattern covers `path` for this caller.
    pub fn matches(&self, path: &SecretPath, identity: &WorkloadIdentity) -> bool {
        self.matches_for(path, identity.into())
    }

    /// Whether the pattern covers `path` for a workload with these values.
    pub fn matches_for(&self, path: &SecretPath, values: Variables<'_>) -> bool {
        self.matches_with(path, |variable| Some(variable.value(values)))
    }

    /// Whether the pattern covers `path` for a caller that has no values for variables: then they match nothing.
    pub fn matches_without_variables(&self, path: &SecretPath) -> bool {
        self.matches_with(path, |_| None)
    }

    /// The same for Postgres, as a regular expression over whole paths.
    pub fn to_regex(&self) -> String {
        let regexes: Vec<_> = self.segments.iter().map(Segment::to_regex).collect();
        format!("^{}$", regexes.join("/"))
    }

    /// Whether the pattern holds variables.
    pub fn has_variables(&self) -> bool {
        self.segments.iter().any(|segment| matches!(segment, Segment::Variable(_)))
    }

    fn matches_with<'a>(&self, path: &SecretPath, value: impl Fn(Variable) -> Option<&'a str>) -> bool {
        let mut wanted = path.segments();
        for segment in &self.segments {
            let Some(actual) = wanted.next() else { return false };
            let matched = match segment {
                Segment::Literal(literal) => literal == actual,
                Segment::Variable(variable) => value(*variable) == Some(actual),
                Segment::Any => true,
                Segment::Rest => return true,
            };
            if !matched {
                return false;
            }
        }
        wanted.next().is_none()
    }
}

impl Segment {
    /// Of the characters that a literal can have, only the dot means more than itself.
    fn to_regex(&self) -> String {
        match self {
            Self::Literal(literal) => literal.replace('.', "[.]"),
            Self::Any => "[^/]+".to_owned(),
            Self::Rest => ".+".to_owned(),
            // In no path is a segment a slash.
            Self::Variable(_) => "/".to_owned(),
        }
    }
}

fn segment(pattern: &str, part: &str) -> Result<Segment, PatternError> {
    match part {
        "*" => Ok(Segment::Any),
        "**" => Ok(Segment::Rest),
        "{namespace}" => Ok(Segment::Variable(Variable::Namespace)),
        "{serviceAccount}" => Ok(Segment::Variable(Variable::ServiceAccount)),
        "{issuer}" => Ok(Segment::Variable(Variable::Issuer)),
        literal if is_segment(literal) => Ok(Segment::Literal(literal.to_owned())),
        other => Err(PatternError::Segment(shortened(pattern), shortened(other))),
    }
}

impl TryFrom<String> for Pattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        Self::parse(&text)
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.text
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::tests::identity;

    fn matches(pattern: &str, path: &str) -> bool {
        Pattern::parse(pattern)
            .unwrap()
            .matches(&SecretPath::parse(path).unwrap(), &identity("payments", "api"))
    }

    #[test]
    fn attack_06_a_star_is_exactly_one_segment() {
        assert!(matches("payments/*", "payments/db"));
        assert!(!matches("payments/*", "payments/eu/db"));
        assert!(!matches("payments/*/db", "payments/db"));
        assert!(!matches("payments/*", "paymentsx/db"));
    }

    #[test]
    fn attack_06_two_stars_are_one_or_more_segments_at_the_end() {
        assert!(matches("payments/**", "payments/db"));
        assert!(matches("payments/**", "payments/eu/west/db"));
        assert!(!matches("payments/eu/**", "payments/eu"));
    }

    #[test]
    fn a_variable_is_the_callers_own_value_and_nothing_else() {
        assert!(matches("shared/{namespace}/**", "shared/payments/x"));
        assert!(!matches("shared/{namespace}/**", "shared/shop/x"));
        assert!(matches("shared/{namespace}/{serviceAccount}", "shared/payments/api"));
        assert!(matches("shared/{issuer}/x", "shared/prod/x"));
    }

    #[test]
    fn attack_08_a_variables_value_never_widens_a_pattern() {
        let pattern = Pattern::parse("shared/{namespace}/x").unwrap();
        for value in ["*", "**", "payments/eu", "{serviceAccount}", "pay*", "payments,shop"] {
            let path = SecretPath::parse("shared/payments/x").unwrap();
            assert!(!pattern.matches(&path, &identity(value, "api")), "{value}");
        }
    }

    #[test]
    fn attack_07_patterns_outside_the_grammar_are_refused() {
        for bad in [
            "",
            "payments",
            "*/db",
            "**",
            "{namespace}/db",
            "payments/**/db",
            "payments/d*",
            "payments/{pod}",
            "payments/{ namespace}",
            "payments//db",
            "payments/../db",
            "Payments/*",
            "payments/{namespace}x",
        ] {
            assert!(Pattern::parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "[a-z*{}/.A-Z%]{0,40}") {
            let _ = Pattern::parse(&text);
        }

        /// Rust's expressions read what is used here as Postgres's do.
        #[test]
        fn attack_06_the_regular_expression_of_a_pattern_matches_the_same_paths(
            pattern in r"[ab](/([ab.]{1,2}|\*|\{namespace\})){1,3}(/\*\*)?",
            path in "[ab](/[ab.]{1,2}){1,4}",
        ) {
            let (Ok(pattern), Ok(path)) = (Pattern::parse(&pattern), SecretPath::parse(&path)) else {
                return Ok(());
            };
            let regex = regex::Regex::new(&pattern.to_regex()).unwrap();
            prop_assert_eq!(regex.is_match(path.as_str()), pattern.matches_without_variables(&path));
        }

        #[test]
        fn a_pattern_without_wildcards_matches_only_itself(
            left in "[a-z]{1,3}(/[a-z]{1,3}){1,3}",
            right in "[a-z]{1,3}(/[a-z]{1,3}){1,3}",
        ) {
            let pattern = Pattern::parse(&left).unwrap();
            let path = SecretPath::parse(&right).unwrap();
            prop_assert_eq!(pattern.matches(&path, &identity("payments", "api")), left == right);
        }
    }
}
