//! From a volume's context to its items.

use std::collections::HashMap;

use serde_json::Value;
use serde_saphyr::budget::BudgetBreach;

use super::{Attributes, Item, KUBELET_PREFIX, Position, Problem, ROLE, SECRETS, item::reason};
use crate::name::ObjectName;

/// Longest `secrets` attribute in bytes: 64 generous items.
const SECRETS_BYTES_MAX: usize = 64 * 1024;
/// Most items, of `IssueSecretsRequest`.
const ITEMS_MAX: usize = 64;
/// Most YAML nodes: twice what 64 items with every key have, so that a list that is a little too long is still counted.
const NODES_MAX: usize = ITEMS_MAX * 32;
/// Most bytes of all YAML scalars. An escape such as `\L` is shorter than its character, by less than half.
const SCALAR_BYTES_MAX: usize = 2 * SECRETS_BYTES_MAX;

pub(super) fn parse(context: &HashMap<String, String>) -> Result<Attributes, Vec<Problem>> {
    let mut problems = unknown_attributes(context);
    let role = context.get(ROLE).map(|role| ObjectName::try_from(role.as_str())).transpose();
    let role = role.unwrap_or_else(|error| {
        problems.push(Problem::Role(error));
        None
    });
    let items = match context.get(SECRETS) {
        Some(yaml) => parse_items(yaml, &mut problems),
        None => {
            problems.push(Problem::Missing);
            Vec::new()
        }
    };
    if problems.is_empty() { Ok(Attributes { role, items }) } else { Err(problems) }
}

fn unknown_attributes(context: &HashMap<String, String>) -> Vec<Problem> {
    let known = |key: &&String| *key == ROLE || *key == SECRETS || key.starts_with(KUBELET_PREFIX);
    let mut unknown: Vec<_> = context.keys().filter(|key| !known(key)).cloned().collect();
    unknown.sort();
    unknown.into_iter().map(|attribute| Problem::Unknown { attribute }).collect()
}

fn parse_items(yaml: &str, problems: &mut Vec<Problem>) -> Vec<Item> {
    let raw = match parse_list(yaml) {
        Ok(raw) => raw,
        Err((message, at)) => {
            problems.push(Problem::List { message, at });
            return Vec::new();
        }
    };
    let before = problems.len();
    let mut items = Vec::with_capacity(raw.len());
    for (index, item) in raw.into_iter().enumerate() {
        match Item::parse(item) {
            Ok(item) => items.push(item),
            Err(mistakes) => problems.push(Problem::Item { index, mistakes }),
        }
    }
    // Indices of what parsed are those of the list only when everything did.
    if problems.len() == before {
        problems.extend(conflicts(&items));
    }
    items
}

fn parse_list(yaml: &str) -> Result<Vec<Value>, (String, Option<Position>)> {
    let refuse = |message: String| Err((message, None));
    if yaml.len() > SECRETS_BYTES_MAX {
        return refuse(format!("longer than {SECRETS_BYTES_MAX} bytes"));
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
    let value: Value = serde_saphyr::from_str_with_options(yaml, options)
        .map_err(|error| (yaml_problem(&error), position(&error)))?;
    match value {
        Value::Array(items) if items.is_empty() => refuse("the list is empty".into()),
        Value::Array(items) if items.len() > ITEMS_MAX => {
            refuse(format!("{} items, at most {ITEMS_MAX} are possible", items.len()))
        }
        Value::Array(items) => Ok(items),
        _ => refuse("must be a YAML list of items such as `- path: payments/db`".into()),
    }
}

fn yaml_problem(error: &serde_saphyr::Error) -> String {
    match error {
        serde_saphyr::Error::Budget {
            breach: BudgetBreach::Aliases { .. } | BudgetBreach::Anchors { .. },
            ..
        } => "YAML anchors (`&name`) and aliases (`*name`) are not supported: write each item out".into(),
        serde_saphyr::Error::Budget { breach: BudgetBreach::Nodes { .. }, .. } => {
            format!("too many YAML nodes, at most {ITEMS_MAX} items are possible")
        }
        error => format!("not YAML: {}", reason(error)),
    }
}

fn position(error: &serde_saphyr::Error) -> Option<Position> {
    let at = error.location()?;
    let known = |number: u64| usize::try_from(number).ok().filter(|number| *number > 0);
    Some(Position { line: known(at.line())?, column: known(at.column())? })
}

/// Pairs of items that would write the same file, or one a file where the other needs a folder.
fn conflicts(items: &[Item]) -> Vec<Problem> {
    let mut found = Vec::new();
    for (second, b) in items.iter().enumerate() {
        for (first, a) in items[..second].iter().enumerate() {
            let pair = (first, second);
            if a.file == b.file {
                found.push(Problem::SameFile { items: pair, file: a.file.clone() });
            } else if a.blocks(b) || b.blocks(a) {
                let files = (a.file.clone(), b.file.clone());
                found.push(Problem::FileAndFolder { items: pair, files });
            }
        }
    }
    found
}
