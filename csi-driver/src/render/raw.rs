//! `format: raw`: one file a field, with exactly the field's bytes.

use keyfold_core::{foreign_text::quoted, secret::SecretBytes, volume::FilePath};
use keyfold_proto::keyfold::v1::Field;

use super::Rendered;

/// Files `<folder>/<field>`, or every field whose name cannot be a file's.
pub(super) fn render(folder: &FilePath, fields: &[Field]) -> Result<Vec<Rendered>, Vec<String>> {
    let mut files = Vec::with_capacity(fields.len());
    let mut problems = Vec::new();
    for field in fields {
        match folder.join(&field.name) {
            Ok(path) => files.push((path, SecretBytes::new(field.value.clone()))),
            Err(error) => {
                problems.push(format!("field {} cannot be a file's name: {error}", quoted(&field.name)))
            }
        }
    }
    if problems.is_empty() { Ok(files) } else { Err(problems) }
}
