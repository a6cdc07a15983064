//! Looks for planted values where they must not be: in logs, messages, entries and the files of Postgres, in every form
//! that a careless line could give them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use aho_corasick::AhoCorasick;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// Shorter forms would be found by chance.
const FORM_BYTES_MIN: usize = 10;

/// The values to look for, in all their forms.
pub struct Search {
    automaton: AhoCorasick,
    /// What each pattern of the automaton is.
    names: Vec<String>,
}

impl Search {
    /// Looks for these values, each with a name for messages.
    ///
    /// # Panics
    /// When a value is too short to be told from chance.
    pub fn of<'a>(planted: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let (mut names, mut patterns) = (Vec::new(), Vec::new());
        for (name, value) in planted {
            for (form, pattern) in forms(value) {
                assert!(pattern.len() >= FORM_BYTES_MIN, "{name}: {form} is too short to look for");
                names.push(format!("{name} ({form})"));
                patterns.push(pattern);
            }
        }
        Self { automaton: AhoCorasick::new(patterns).expect("a few hundred patterns"), names }
    }

    /// What is in `bytes`.
    pub fn found_in(&self, bytes: &[u8]) -> BTreeSet<&str> {
        let found = self.automaton.find_overlapping_iter(bytes);
        found.map(|found| self.names[found.pattern().as_usize()].as_str()).collect()
    }

    /// What is in the files below `folder`, each as `FILE: VALUE`, without the files and folders in `meant_to_hold`.
    ///
    /// # Panics
    /// When one cannot be read.
    pub fn found_below(&self, folder: &Path, meant_to_hold: &[PathBuf]) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).expect("the folder can be read") {
            let path = entry.expect("the folder can be read").path();
            let kind = fs::symlink_metadata(&path).expect("the file is there").file_type();
            if meant_to_hold.contains(&path) {
                continue;
            }
            if kind.is_dir() {
                found.extend(self.found_below(&path, meant_to_hold));
            } else if kind.is_file() {
                let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                found.extend(self.found_in(&bytes).iter().map(|name| format!("{}: {name}", path.display())));
            }
        }
        found
    }
}

/// Everything that `value` may look like in a log, a message or a file; of a long one also its halves.
fn forms(value: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut forms = whole_forms(value);
    if value.len() >= 4 * FORM_BYTES_MIN {
        let (first, second) = value.split_at(value.len() / 2);
        forms.extend([("first half", first.to_vec()), ("second half", second.to_vec())]);
    }
    forms
}

fn whole_forms(value: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let decimals: Vec<_> = value.iter().map(ToString::to_string).collect();
    let octal = |byte: &u8| match byte {
        b'\\' => "\\\\".to_owned(),
        b' '..=b'~' => char::from(*byte).to_string(),
        other => format!("\\{other:03o}"),
    };
    let mut forms = vec![
        ("as it is", value.to_vec()),
        ("hexadecimal", hex::encode(value).into_bytes()),
        ("hexadecimal, upper case", hex::encode_upper(value).into_bytes()),
        ("a list of numbers", decimals.join(", ").into_bytes()),
        ("a list of numbers in JSON", decimals.join(",").into_bytes()),
        ("escaped by Rust", value.escape_ascii().to_string().into_bytes()),
        ("escaped by Postgres", value.iter().map(octal).collect::<String>().into_bytes()),
    ];
    if let Ok(text) = str::from_utf8(value) {
        let json = serde_json::to_string(text).expect("text is JSON");
        forms.push(("escaped in JSON", json.trim_matches('"').as_bytes().to_vec()));
    }
    for shift in 0..3 {
        forms.push(("base64", base64_inside(value, shift, &STANDARD_NO_PAD)));
        forms.push(("base64url", base64_inside(value, shift, &URL_SAFE_NO_PAD)));
    }
    forms.sort_by(|a, b| a.1.cmp(&b.1));
    forms.dedup_by(|a, b| a.1 == b.1);
    forms
}

/// The characters that only `value` decides, where base64 encodes it after `shift` other bytes.
fn base64_inside(value: &[u8], shift: usize, engine: &impl base64::Engine) -> Vec<u8> {
    let shifted = [vec![0; shift], value.to_vec()].concat();
    let encoded = engine.encode(&shifted);
    encoded.as_bytes()[(shift * 8).div_ceil(6)..shifted.len() * 8 / 6].to_vec()
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    use super::*;

    #[test]
    fn a_value_is_found_in_every_form_and_place() {
        let value: Vec<u8> = (0..48).map(|n: u8| n.wrapping_mul(37) ^ 0x85).collect();
        let search = Search::of([("planted", value.as_slice())]);
        for before in 0..4 {
            let around = [&vec![b'.'; before], value.as_slice(), b"after"].concat();
            for text in [
                around.clone(),
                hex::encode(&around).into_bytes(),
                STANDARD.encode(&around).into_bytes(),
                URL_SAFE_NO_PAD.encode(&around).into_bytes(),
                format!("{around:?}").into_bytes(),
                around.escape_ascii().to_string().into_bytes(),
            ] {
                let found = search.found_in(&text);
                assert!(!found.is_empty(), "{}", String::from_utf8_lossy(&text));
            }
        }
        assert!(search.found_in(&value[..24]).contains("planted (first half)"));
        assert!(search.found_in(&[0; 4096]).is_empty());
    }

    #[test]
    fn a_file_is_found_unless_it_is_meant_to_hold_the_value() {
        let (folder, value) = (tempfile::tempdir().unwrap(), b"planted-value");
        let (file, below) = (folder.path().join("a"), folder.path().join("b/c"));
        fs::create_dir_all(&below).unwrap();
        fs::write(&file, [b"x", value.as_slice()].concat()).unwrap();
        fs::write(below.join("d"), hex::encode(value)).unwrap();
        let search = Search::of([("it", value.as_slice())]);
        assert_eq!(search.found_below(folder.path(), &[]).len(), 2);
        assert_eq!(search.found_below(folder.path(), &[file]).len(), 1);
        assert_eq!(search.found_below(folder.path(), &[folder.path().join("b")]).len(), 1);
    }
}
