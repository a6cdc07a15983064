//! One entry of the volume attribute `secrets`.

use serde::Deserialize;
use serde_json::Value;

use super::{FilePath, Format, Mistake};
use crate::{
    foreign_text::{escaped, quoted},
    name::cut,
    path::SecretPath,
};

/// Most bytes of what a parser says about one mistake.
const REASON_BYTES_MAX: usize = 256;
/// Readable by root and the pod's fsGroup.
const DEFAULT_MODE: u32 = 0o440;

/// One entry of the volume attribute `secrets`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The secret.
    pub path: SecretPath,
    /// Leave the item out when the secret does not exist or is not granted.
    pub optional: bool,
    /// How its fields become files.
    pub format: Format,
    /// The file, or for raw fields the folder, that the item writes.
    pub file: FilePath,
    /// Permission bits of its files, `0o000` to `0o777`.
    pub mode: u32,
    /// Owner of its files; root when absent.
    pub uid: Option<u32>,
    /// Group of its files; the volume's group when absent.
    pub gid: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawItem {
    path: String,
    file: Option<String>,
    format: Option<String>,
    mode: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
    #[serde(default)]
    optional: bool,
}

impl Item {
    /// The item, or everything that is wrong with it.
    pub(super) fn parse(value: Value) -> Result<Self, Vec<Mistake>> {
        if !value.is_object() {
            let message = "must be a map such as `path: payments/db`".into();
            return Err(vec![Mistake { key: None, is_misfit: true, message }]);
        }
        let raw: RawItem = serde_path_to_error::deserialize(value).map_err(|error| vec![misfit(error)])?;
        let mut mistakes = Vec::new();
        let path =
            noted(&mut mistakes, "path", SecretPath::parse(&raw.path).map_err(|error| error.to_string()));
        let format = noted(&mut mistakes, "format", parse_format(raw.format.as_deref()));
        let mode = noted(&mut mistakes, "mode", parse_mode(raw.mode.as_deref()));
        for (key, id) in [("uid", raw.uid), ("gid", raw.gid)] {
            // The kernel takes it for "no change".
            if id == Some(u32::MAX) {
                mistakes.push(Mistake::of(key, format!("{key}: {} is not an id", u32::MAX)));
            }
        }
        let file = raw.file.map(|text| noted(&mut mistakes, "file", parse_file(&text)));
        let (Some(path), Some(format), Some(mode), true) = (path, format, mode, mistakes.is_empty()) else {
            return Err(mistakes);
        };
        let file = match file.flatten() {
            Some(file) => file,
            None => default_file(&path, format).map_err(|message| vec![Mistake::of("path", message)])?,
        };
        Ok(Self { path, optional: raw.optional, format, file, mode, uid: raw.uid, gid: raw.gid })
    }

    /// Whether this writes a file where `other` needs a folder. Below a folder of raw fields there may be other files.
    pub(super) fn blocks(&self, other: &Self) -> bool {
        self.format != Format::Raw && self.file.is_above(&other.file)
    }
}

impl Mistake {
    fn of(key: &str, message: String) -> Self {
        Self { key: Some(key.to_owned()), is_misfit: false, message }
    }
}

/// A key that there is not, a missing one, or a value of another type.
fn misfit(error: serde_path_to_error::Error<serde_json::Error>) -> Mistake {
    let key = error.path().iter().find_map(|segment| match segment {
        serde_path_to_error::Segment::Map { key } => Some(key.clone()),
        _ => None,
    });
    Mistake { key, is_misfit: true, message: reason(error.inner()) }
}

fn noted<T>(mistakes: &mut Vec<Mistake>, key: &str, result: Result<T, String>) -> Option<T> {
    result.map_err(|message| mistakes.push(Mistake::of(key, message))).ok()
}

fn parse_format(text: Option<&str>) -> Result<Format, String> {
    let Some(text) = text else { return Ok(Format::Raw) };
    Format::parse(text).ok_or_else(|| {
        let supported: Vec<_> = Format::ALL.iter().map(|format| format.name()).collect();
        format!("format: {} is not supported, only {}", quoted(text), supported.join(", "))
    })
}

/// Three octal digits, with or without a leading zero.
fn parse_mode(text: Option<&str>) -> Result<u32, String> {
    let Some(text) = text else { return Ok(DEFAULT_MODE) };
    let digits = if text.len() == 4 { text.strip_prefix('0') } else { Some(text) };
    digits
        .filter(|digits| digits.len() == 3 && digits.bytes().all(|b| matches!(b, b'0'..=b'7')))
        .and_then(|digits| u32::from_str_radix(digits, 8).ok())
        .ok_or_else(|| format!("mode: {} is not \"0000\" to \"0777\", in octal digits", quoted(text)))
}

fn parse_file(text: &str) -> Result<FilePath, String> {
    FilePath::parse(text).map_err(|error| format!("file: {} cannot be used: {error}", quoted(text)))
}

/// `payments/db` becomes the folder `db`, or the file `db.env` or `db.json`.
fn default_file(path: &SecretPath, format: Format) -> Result<FilePath, String> {
    let last = path.segments().last().unwrap_or_default();
    parse_file(&format!("{last}{}", format.suffix()))
}

/// The first line of what a parser says. It may quote any key or value of the text.
pub(super) fn reason(error: &impl ToString) -> String {
    let text = error.to_string();
    escaped(&cut(text.lines().next().unwrap_or_default(), REASON_BYTES_MAX))
}
