//! `keyfold apply` and `keyfold diff`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io,
    path::PathBuf,
};

use keyfold_proto::keyfold::v1::{ApplyObjectsRequest, ChangeKind, Object, ObjectChange};
use serde::Serialize;
use serde_json::Value;

use crate::{
    args::Global,
    client::Client,
    documents::{self, Document},
    exit::{Exit, Failure},
    output,
    terminal::{Notation, escaped},
};

/// Arguments of `apply`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "All documents of all files are applied, or none. What they do not mention stays as it is.\n\n\
    Examples:\n  keyfold apply -f roles.yaml\n  keyfold apply -f deploy/objects --dry-run\n  \
    keyfold get role payments-api -o yaml | keyfold apply -f -"
)]
pub struct ApplyArgs {
    #[command(flatten)]
    files: Files,
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Arguments of `diff`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Exit code 0: nothing would change; 1: something would; 2 and above: a failure.\n\n\
    Example:\n  keyfold diff -f roles.yaml")]
pub struct DiffArgs {
    #[command(flatten)]
    files: Files,
}

#[derive(clap::Args, Debug)]
struct Files {
    /// YAML file, folder of *.yaml and *.yml files, or - for standard input; may be repeated
    #[arg(short, long = "file", value_name = "FILE", required = true, num_args = 1..)]
    files: Vec<PathBuf>,
}

#[derive(Serialize)]
struct View {
    kind: String,
    name: String,
    change: &'static str,
    /// What the object had before; 0 when it is created.
    generation_before: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fields: Vec<FieldChange>,
}

#[derive(Serialize)]
struct FieldChange {
    field: String,
    before: Option<Value>,
    after: Option<Value>,
}

/// Makes the objects so.
///
/// # Errors
/// When a file is wrong or the server refuses: then nothing was changed.
pub async fn apply(global: &Global, args: &ApplyArgs) -> Result<Exit, Failure> {
    let changes = send(global, &args.files, "cannot apply the files", args.dry_run).await?;
    let suffix = if args.dry_run { " (dry run)" } else { "" };
    output::print(global.output, &changes, |changes| {
        changes
            .iter()
            .map(|change| format!("{} {} {}{suffix}\n", change.kind, change.name, change.change))
            .collect()
    })?;
    Ok(Exit::Done)
}

/// Shows what `apply` would change.
///
/// # Errors
/// When a file is wrong or the server would refuse it.
pub async fn diff(global: &Global, args: &DiffArgs) -> Result<Exit, Failure> {
    let mut changes = send(global, &args.files, "cannot compare the files", true).await?;
    changes.retain(|change| change.change != "unchanged");
    output::print(global.output, &changes, |changes| draw(changes))?;
    Ok(if changes.is_empty() { Exit::Done } else { Exit::Found })
}

async fn send(global: &Global, files: &Files, what: &str, dry_run: bool) -> Result<Vec<View>, Failure> {
    let documents = documents::read(&files.files, &mut io::stdin())?;
    let client = Client::operator(global)?;
    let request =
        ApplyObjectsRequest { objects: documents.iter().map(Document::to_object).collect(), dry_run };
    let answer = client.call(what, client.config().apply_objects(request)).await?;
    Ok(answer.changes.iter().map(view).collect())
}

fn view(change: &ObjectChange) -> View {
    let after = change.after.as_ref().or(change.before.as_ref()).cloned().unwrap_or_default();
    View {
        generation_before: change.before.as_ref().map_or(0, |before| before.generation),
        fields: field_changes(change.before.as_ref(), change.after.as_ref()),
        kind: after.kind,
        name: after.name,
        change: match change.change() {
            ChangeKind::Unspecified => "unknown",
            ChangeKind::Created => "created",
            ChangeKind::Changed => "changed",
            ChangeKind::Unchanged => "unchanged",
        },
    }
}

fn draw(changes: &[View]) -> String {
    let mut text = String::new();
    for change in changes {
        let object = format!("{}/{}", change.kind, change.name);
        let _ = match change.generation_before {
            0 => writeln!(text, "--- (none)\n+++ {object}"),
            generation => writeln!(text, "--- {object} (generation {generation})\n+++ {object}"),
        };
        for field in &change.fields {
            for (sign, value) in [('-', &field.before), ('+', &field.after)] {
                if let Some(value) = value {
                    // Escaped, not blanked: a change in nothing but such characters must show.
                    let value = escaped(&value.to_string(), Notation::Json);
                    let _ = writeln!(text, "{sign}{}: {}", field.field, *value);
                }
            }
        }
    }
    text
}

/// Fields whose values differ, in byte order of their names.
fn field_changes(before: Option<&Object>, after: Option<&Object>) -> Vec<FieldChange> {
    let (mut before, mut after) = (leaves(before), leaves(after));
    let names: BTreeSet<String> = before.keys().chain(after.keys()).cloned().collect();
    names
        .into_iter()
        .map(|field| FieldChange { before: before.remove(&field), after: after.remove(&field), field })
        .filter(|change| change.before != change.after)
        .collect()
}

/// The spec's values by their full names, such as `spec.grants[0].path`. An empty list or map is a value.
fn leaves(object: Option<&Object>) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    if let Some(object) = object {
        // What is not JSON is compared as text: a newer server's form must not hide a change.
        let spec =
            serde_json::from_str(&object.spec_json).unwrap_or_else(|_| object.spec_json.clone().into());
        collect("spec".into(), spec, &mut found);
    }
    found
}

fn collect(name: String, value: Value, found: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (field, value) in fields {
                collect(format!("{name}.{field}"), value, found);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (index, value) in items.into_iter().enumerate() {
                collect(format!("{name}[{index}]"), value, found);
            }
        }
        leaf => {
            found.insert(name, leaf);
        }
    }
}

#[cfg(test)]
mod tests;
