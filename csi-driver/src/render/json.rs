//! `format: json`: one file with an object of strings, keys in byte order.

use std::io;

use keyfold_core::{foreign_text::quoted, secret::SecretBytes};
use keyfold_proto::keyfold::v1::Field;
use serde::{Serializer, ser::SerializeMap};

use super::{sorted, text};

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
    const INFALLIBLE: &str = "writing strings to memory cannot fail";
    // Exactly the room for all: growing would leave a copy of the values behind, and most values need no escapes, of
    // which the longest, `\u0000`, has six bytes.
    let mut counter = Counter(0);
    write_object(&mut counter, entries).expect(INFALLIBLE);
    let mut out = Vec::with_capacity(counter.0 + 1);
    write_object(&mut out, entries).expect(INFALLIBLE);
    out.push(b'\n');
    SecretBytes::new(out)
}

/// Counts what is written.
struct Counter(usize);

impl io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_object(out: impl io::Write, entries: &[(&str, &str)]) -> serde_json::Result<()> {
    let mut serializer = serde_json::Serializer::new(out);
    let mut map = serializer.serialize_map(Some(entries.len()))?;
    for (name, value) in entries {
        map.serialize_entry(name, value)?;
    }
    map.end()
}
