//! From secrets to files: one format a module.

mod env;
mod json;
mod raw;
#[cfg(test)]
mod tests;

use keyfold_core::{
    foreign_text::quoted,
    name::cut,
    secret::SecretBytes,
    volume::{FilePath, Format, Item},
};
use keyfold_proto::keyfold::v1::{Field, IssuedSecret};

use crate::{
    file_set::{File, FileSet},
    volume::Volume,
};

/// Most files of a volume: each takes kernel memory that the tmpfs' size does not limit. Eight secrets with the most
/// fields that a secret can have.
pub const FILES_MAX: usize = 1024;
/// Most bytes of what is said about one item, so that one cannot hide the others.
const PROBLEM_BYTES_MAX: usize = 512;

/// Why secrets cannot become files. Names items, fields and files, never a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// Items that cannot be files, each with its reasons.
    #[error("{}", .0.join("; "))]
    Items(Vec<String>),
    /// The files have more bytes than the volume.
    #[error("the files are larger than the volume")]
    TooLarge,
    /// The volume would have too many files.
    #[error(
        "the volume would have more than {FILES_MAX} files: split it, or give items `format: env` or `format: json`, \
         which make one file of a secret"
    )]
    TooManyFiles,
}

/// A file's path and its content.
type Rendered = (FilePath, SecretBytes);

/// The files of `volume`, made from the secrets that were issued for it. An item whose secret was not issued is left
/// out when it is optional.
///
/// A secret may stand in many items and grow in each, so this stops at the first item that goes beyond `bytes_max` or
/// [`FILES_MAX`].
///
/// # Errors
/// Beyond a limit; else with everything that is wrong: a field that cannot be a file name or a variable, a value that
/// the format cannot hold, two fields for one file.
pub fn render(volume: &Volume, issued: &[IssuedSecret], bytes_max: u64) -> Result<FileSet, RenderError> {
    let mut files = FileSet::default();
    let mut problems = Vec::new();
    for (index, item) in volume.items.iter().enumerate() {
        let name = format!("secrets[{index}] ({})", item.path);
        let Some(secret) = issued.iter().find(|secret| secret.path == item.path.as_str()) else {
            if !item.optional {
                problems.push(format!("{name}: the server did not issue it"));
            }
            continue;
        };
        match render_item(item, &secret.fields) {
            Ok(rendered) => problems
                .extend(add(&mut files, rendered, item, volume.group).map(|why| format!("{name}: {why}"))),
            Err(reasons) => {
                problems.push(cut(&format!("{name}: {}", reasons.join(", ")), PROBLEM_BYTES_MAX));
            }
        }
        check_size(&files, bytes_max)?;
    }
    if problems.is_empty() { Ok(files) } else { Err(RenderError::Items(problems)) }
}

fn check_size(files: &FileSet, bytes_max: u64) -> Result<(), RenderError> {
    if files.bytes() > bytes_max {
        return Err(RenderError::TooLarge);
    }
    if files.len() > FILES_MAX {
        return Err(RenderError::TooManyFiles);
    }
    Ok(())
}

fn render_item(item: &Item, fields: &[Field]) -> Result<Vec<Rendered>, Vec<String>> {
    match item.format {
        Format::Raw => raw::render(&item.file, fields),
        Format::Env => env::render(fields).map(|content| vec![(item.file.clone(), content)]),
        Format::Json => json::render(fields).map(|content| vec![(item.file.clone(), content)]),
    }
}

fn add(files: &mut FileSet, rendered: Vec<Rendered>, item: &Item, group: Option<u32>) -> Option<String> {
    rendered.into_iter().find_map(|(path, content)| {
        let file = File { content, mode: item.mode, uid: item.uid, gid: item.gid.or(group) };
        let shown = path.to_string();
        let other = files.insert(path, file).err()?;
        Some(format!("its file {shown:?} and {:?} are in each other's way", other.to_string()))
    })
}

/// The fields in the order of their names, so that equal secrets give equal files.
fn sorted(fields: &[Field]) -> Vec<&Field> {
    let mut sorted: Vec<_> = fields.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    sorted
}

/// A field's value as text.
fn text(field: &Field) -> Result<&str, String> {
    str::from_utf8(&field.value).map_err(|_| {
        format!("field {} is not UTF-8 text, which only `format: raw` can hold", quoted(&field.name))
    })
}
