//! The volume attributes, which the pod's author writes: `role`, and `secrets` as a YAML list.

use std::collections::HashMap;

use keyfold_core::{
    name::{ObjectName, cut},
    path::SecretPath,
};
use serde::Deserialize;
use serde_json::Value;
use serde_saphyr::budget::BudgetBreach;

use super::{InvalidRequest, Item, KUBELET_PREFIX, invalid};
use crate::{
    file_path::FilePath,
    foreign_text::{escaped, quoted},
    render::Format,
};

const ROLE: &str = "role";
const SECRETS: &str = "secrets";

/// Longest `secrets` attribute in bytes: 64 generous items.
const SECRETS_BYTES_MAX: usize = 64 * 1024;
/// Most items, of `IssueSecretsRequest`.
const ITEMS_MAX: usize = 64;
/// Most YAML nodes: twice what 64 items with every key have, so that a list that is a little too long is still counted.
const NODES_MAX: usize = ITEMS_MAX * 32;
/// Most bytes of all YAML scalars. An escape such as `\L` is shorter than its character, by less than half.
const SCALAR_BYTES_MAX: usize = 2 * SECRETS_BYTES_MAX;
/// Most bytes of what a parser says about one mistake.
const REASON_BYTES_MAX: usize = 256;
/// Readable by root and the pod's fsGroup.
const DEFAULT_MODE: u32 = 0o440;

/// Parses the volume context. Keys of kubelet's own are not looked at.
pub(super) fn parse(
    context: &HashMap<String, String>,
) -> Result<(Option<ObjectName>, Vec<Item>), InvalidRequest> {
    let mut problems = unknown_attributes(context);
    let role = context.get(ROLE).map(|role| ObjectName::try_from(role.as_str())).transpose();
    let role = role.unwrap_or_else(|error| {
        problems.push(format!("role: {error}"));
        None
    });
    let items = match context.get(SECRETS) {
        Some(yaml) => parse_items(yaml, &mut problems),
        None => {
            problems.push("the volume attribute `secrets` is missing".into());
            Vec::new()
        }
    };
    if problems.is_empty() { Ok((role, items)) } else { Err(invalid(problems.join("; "))) }
}

fn unknown_attributes(context: &HashMap<String, String>) -> Vec<String> {
    let known = |key: &&String| *key == ROLE || *key == SECRETS || key.starts_with(KUBELET_PREFIX);
    let mut unknown: Vec<_> = context.keys().filter(|key| !known(key)).collect();
    unknown.sort();
    let refuse =
        |key| format!("the volume attribute {} is unknown: there are `role` and `secrets`", quoted(key));
    unknown.into_iter().map(|key| refuse(key)).collect()
}

fn parse_items(yaml: &str, problems: &mut Vec<String>) -> Vec<Item> {
    let raw = match parse_list(yaml) {
        Ok(raw) => raw,
        Err(problem) => {
            problems.push(problem);
            return Vec::new();
        }
    };
    let before = problems.len();
    let mut items = Vec::with_capacity(raw.len());
    for (index, item) in raw.into_iter().enumerate() {
        match parse_item(item) {
            Ok(item) => items.push(item),
            Err(reasons) => problems.push(format!("secrets[{index}]: {}", reasons.join(", "))),
        }
    }
    // Indices of what parsed are those of the list only when everything did.
    if problems.len() == before {
        problems.extend(conflicts(&items));
    }
    items
}

fn parse_list(yaml: &str) -> Result<Vec<Value>, String> {
    if yaml.len() > SECRETS_BYTES_MAX {
        return Err(format!("secrets: longer than {SECRETS_BYTES_MAX} bytes"));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: NODES_MAX,
            max_total_scalar_bytes: SCALAR_BYTES_MAX,
            // An alias copies what it stands for, so a short text could take a lot of memory.
            max_anchors: 0,
            max_aliases: 0,
        },
        // `mode: 0400` without quotes is then the text that its writer meant, not the number 400.
        leading_zero_numbers_as_strings: true,
        // YAML 1.2: `file: on` is text.
        strict_booleans: true,
        with_snippet: false
    };
    let value: Value =
        serde_saphyr::from_str_with_options(yaml, options).map_err(|error| yaml_problem(&error))?;
    match value {
        Value::Array(items) if items.is_empty() => Err("secrets: the list is empty".into()),
        Value::Array(items) if items.len() > ITEMS_MAX => {
            Err(format!("secrets: {} items, at most {ITEMS_MAX} are possible", items.len()))
        }
        Value::Array(items) => Ok(items),
        _ => Err("secrets: must be a YAML list of items such as `- path: payments/db`".into()),
    }
}

fn yaml_problem(error: &serde_saphyr::Error) -> String {
    match error {
        serde_saphyr::Error::Budget {
            breach: BudgetBreach::Aliases { .. } | BudgetBreach::Anchors { .. },
            ..
        } => "secrets: YAML anchors (`&name`) and aliases (`*name`) are not supported: write each item out"
            .into(),
        serde_saphyr::Error::Budget { breach: BudgetBreach::Nodes { .. }, .. } => {
            format!("secrets: too many YAML nodes, at most {ITEMS_MAX} items are possible")
        }
        error => format!("secrets: not YAML: {}", reason(error)),
    }
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

/// The item, or everything that is wrong with it.
fn parse_item(value: Value) -> Result<Item, Vec<String>> {
    if !value.is_object() {
        return Err(vec!["must be a map such as `path: payments/db`".into()]);
    }
    let raw: RawItem = serde_json::from_value(value).map_err(|error| vec![reason(&error)])?;
    let mut problems = Vec::new();
    let path = noted(&mut problems, SecretPath::parse(&raw.path).map_err(|error| error.to_string()));
    let format = noted(&mut problems, parse_format(raw.format.as_deref()));
    let mode = noted(&mut problems, parse_mode(raw.mode.as_deref()));
    for (key, id) in [("uid", raw.uid), ("gid", raw.gid)] {
        if id == Some(u32::MAX) {
            problems.push(format!("{key}: {} is not an id", u32::MAX));
        }
    }
    let file = raw.file.map(|text| noted(&mut problems, parse_file(&text)));
    let (Some(path), Some(format), Some(mode), true) = (path, format, mode, problems.is_empty()) else {
        return Err(problems);
    };
    let file = match file.flatten() {
        Some(file) => file,
        None => default_file(&path, format).map_err(|problem| vec![problem])?,
    };
    Ok(Item { path, optional: raw.optional, format, file, mode, uid: raw.uid, gid: raw.gid })
}

fn noted<T>(problems: &mut Vec<String>, result: Result<T, String>) -> Option<T> {
    result.map_err(|problem| problems.push(problem)).ok()
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

/// Pairs of items that would write the same file, or one a file where the other needs a folder.
fn conflicts(items: &[Item]) -> Vec<String> {
    let mut found = Vec::new();
    for (second, b) in items.iter().enumerate() {
        for (first, a) in items[..second].iter().enumerate() {
            if a.file == b.file {
                found.push(format!(
                    "secrets[{first}] and secrets[{second}] both write {}: give one another `file`",
                    quoted(&a.file.to_string())
                ));
            } else if blocks(a, b) || blocks(b, a) {
                found.push(format!(
                    "secrets[{first}] and secrets[{second}]: one of {} and {} is a file where the other needs a folder",
                    quoted(&a.file.to_string()),
                    quoted(&b.file.to_string())
                ));
            }
        }
    }
    found
}

/// Whether `a` writes a file where `b` needs a folder. Below a folder of raw fields there may be other files.
fn blocks(a: &Item, b: &Item) -> bool {
    a.format != Format::Raw && a.file.is_above(&b.file)
}

/// The first line of what a parser says. It may quote any key or value of the text.
fn reason(error: &impl ToString) -> String {
    let text = error.to_string();
    escaped(&cut(text.lines().next().unwrap_or_default(), REASON_BYTES_MAX))
}
