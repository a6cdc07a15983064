//! `format: json`: one file with an object of strings, keys in byte order.

use keyfold_core::secret::SecretBytes;
use keyfold_proto::keyfold::v1::Field;
use serde::{Serializer, ser::SerializeMap};

use super::{quoted, sorted, text};

/// Most bytes that JSON makes of one: `\u0000`.
const ESCAPED_BYTES_MAX: usize = 6;

/// The JSON text, or every field that it cannot hold.
pub(super) fn render(fields: &[Field]) -> Result<SecretBytes, Vec<String>> {
    let mut problems = Vec::new();
    let mut entries: Vec<(&str, &str)> = Vec::with_capacity(fields.len());
    for field in sorted(fields) {
        if entries.last().is_some_and(|(name, _)| *name == field.name) {
            problems.push(format!("the field {} occurs twice", quoted(&field.name)));
        }
        match text(field) {
            Ok(value) => entries.push((&field.name, value)),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(object(&entries)) } else { Err(problems) }
}

fn object(entries: &[(&str, &str)]) -> SecretBytes {
    // Room for all from the start: growing would leave a copy of the values behind.
    let entry_len = |(name, value): &(&str, &str)| ESCAPED_BYTES_MAX * (name.len() + value.len()) + 6;
    let mut out = Vec::with_capacity(entries.iter().map(entry_len).sum::<usize>() + 3);
    write_object(&mut out, entries).expect("writing strings to memory cannot fail");
    out.push(b'\n');
    SecretBytes::new(out)
}

fn write_object(out: &mut Vec<u8>, entries: &[(&str, &str)]) -> serde_json::Result<()> {
    let mut serializer = serde_json::Serializer::new(out);
    let mut map = serializer.serialize_map(Some(entries.len()))?;
    for (name, value) in entries {
        map.serialize_entry(name, value)?;
    }
    map.end()
}
