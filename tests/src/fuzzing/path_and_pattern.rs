//! Secrets' paths, grants' patterns, whether a pattern covers a path for a caller, and the globs of roles' bindings.

use keyfold_core::{glob::NameGlob, identity::WorkloadIdentity, path::SecretPath, pattern::Pattern};
use serde_json::{Value, json};

use super::token::identity_of;

/// Lines: a path, a pattern, the caller's namespace and service account, and a glob.
pub fn path_and_pattern(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let mut line = || lines.next().unwrap_or_default();
    let (path, pattern, namespace, service_account, glob) = (line(), line(), line(), line(), line());
    let path = check_path(path);
    let pattern = check_pattern(pattern);
    if let (Some(path), Some(pattern)) = (path, pattern) {
        check_match(&path, &pattern, &identity_of(namespace, service_account));
    }
    if let Ok(glob) = NameGlob::try_from(glob.to_owned()) {
        [namespace, service_account, glob.as_str()].into_iter().for_each(|name| check_glob(&glob, name));
    }
}

fn check_path(text: &str) -> Option<SecretPath> {
    let parsed = SecretPath::parse(text).ok();
    assert_eq!(parsed.is_some(), is_path(text), "{text:?}");
    let from_json = serde_json::from_value::<SecretPath>(json!(text)).ok();
    assert_eq!(from_json, parsed, "{text:?} by another way in");
    let path = parsed?;
    assert_eq!(path.as_str(), text);
    assert_eq!(path.to_string(), text);
    assert_eq!(path.segments().collect::<Vec<_>>().join("/"), text);
    assert!(text.starts_with(&format!("{}/", path.keyspace())));
    Some(path)
}

/// The grammar once more, from its description.
fn is_path(text: &str) -> bool {
    let segments: Vec<_> = text.split('/').collect();
    (2..=8).contains(&segments.len()) && segments.into_iter().all(is_segment)
}

fn is_segment(segment: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| matches!(c, 'a'..='z' | '0'..='9'));
    let inner = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-');
    segment.chars().all(inner)
        && edge(segment.chars().next())
        && edge(segment.chars().last())
        && segment.len() <= 128
}

fn check_pattern(text: &str) -> Option<Pattern> {
    let parsed = Pattern::parse(text).ok();
    let from_json = serde_json::from_value::<Pattern>(json!(text)).ok();
    assert_eq!(from_json, parsed, "{text:?} by another way in");
    let pattern = parsed?;
    assert_eq!(pattern.to_string(), text);
    assert_eq!(serde_json::to_value(&pattern).ok(), Some(Value::from(text)));
    let segments: Vec<_> = text.split('/').collect();
    assert!((2..=8).contains(&segments.len()), "{text:?}");
    assert!(is_segment(segments[0]), "{text:?} has no keyspace");
    for (at, segment) in segments.iter().enumerate() {
        let whole = is_segment(segment) || is_wildcard(segment) || *segment == "**";
        assert!(whole, "{text:?} has {segment:?}");
        assert!(*segment != "**" || at + 1 == segments.len(), "{text:?} goes on after **");
    }
    Some(pattern)
}

fn is_wildcard(segment: &str) -> bool {
    ["*", "{namespace}", "{serviceAccount}", "{issuer}"].contains(&segment)
}

/// Each segment of the pattern stands for exactly one of the path, but for a last `**`; a variable only for the
/// caller's own value, which is never itself a pattern.
fn check_match(path: &SecretPath, pattern: &Pattern, identity: &WorkloadIdentity) {
    let matches = pattern.matches(path, identity);
    let text = pattern.to_string();
    let wanted: Vec<_> = text.split('/').collect();
    let found: Vec<_> = path.segments().collect();
    let length = match wanted.last() {
        Some(&"**") => found.len() >= wanted.len(),
        _ => found.len() == wanted.len(),
    };
    let covers = |(wanted, found): (&&str, &&str)| match *wanted {
        "*" | "**" => true,
        "{namespace}" => identity.namespace == **found,
        "{serviceAccount}" => identity.service_account.name == **found,
        "{issuer}" => identity.issuer.as_str() == *found,
        literal => literal == *found,
    };
    let expected = length && wanted.iter().zip(&found).all(covers);
    assert_eq!(matches, expected, "{pattern} on {path} for {identity:?}");
    if !text.contains(['*', '{']) {
        assert_eq!(matches, text == path.as_str(), "{pattern} on {path}");
    }
    if text.contains("{namespace}") && !is_segment(&identity.namespace) {
        assert!(!matches, "{pattern} covers {path} for namespace {:?}", identity.namespace);
    }
}

/// A star is any run of characters, and what it stands for is a name that Kubernetes gives.
fn check_glob(glob: &NameGlob, name: &str) {
    let expected = is_kubernetes_name(name) && stands_for(glob.as_str().as_bytes(), name.as_bytes());
    assert_eq!(glob.matches(name), expected, "{:?} on {name:?}", glob.as_str());
}

fn is_kubernetes_name(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| matches!(c, 'a'..='z' | '0'..='9'));
    let inner = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '-');
    name.chars().all(inner) && edge(name.chars().next()) && edge(name.chars().last()) && name.len() <= 253
}

/// Of each length of the name's beginning: whether the glob's beginning stands for it.
fn stands_for(glob: &[u8], name: &[u8]) -> bool {
    let mut reached = vec![false; name.len() + 1];
    reached[0] = true;
    for wanted in glob {
        let before = reached.clone();
        for at in 0..=name.len() {
            reached[at] = match wanted {
                b'*' => before[at] || at > 0 && reached[at - 1],
                literal => at > 0 && before[at - 1] && name[at - 1] == *literal,
            };
        }
    }
    reached[name.len()]
}
