//! What commands print on stdout: tables for people, JSON for programs, YAML for files.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsFd as _,
};

use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use prost_types::Timestamp;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::{
    args::Format,
    exit::{Exit, Failure},
    terminal::{Notation, escaped, is_plain, one_line},
};

/// Prints `view` in the wanted form; `table` draws it for people.
///
/// # Errors
/// When stdout cannot be written.
pub fn print<V: Serialize>(
    format: Format,
    view: &V,
    table: impl FnOnce(&V) -> String,
) -> Result<(), Failure> {
    match format {
        Format::Table => text(&table(view)),
        Format::Json | Format::Yaml | Format::Sarif => encoded(format, view),
    }
}

/// Prints `view` for programs: as YAML, or else as JSON.
///
/// # Errors
/// When stdout cannot be written.
pub fn encoded<V: Serialize>(format: Format, view: &V) -> Result<(), Failure> {
    write(encode(format, view, 0)?.as_bytes())
}

/// Like `print` for what holds secret values: always machine-readable, and wiped from memory once written.
///
/// `len` is the length of all names and values in bytes. The buffer made from it never grows, since growing would
/// leave a copy.
///
/// # Errors
/// When stdout cannot be written.
pub fn print_secret<V: Serialize>(format: Format, view: &V, len: usize) -> Result<(), Failure> {
    // The most that either form makes of a byte is six: \u001f in JSON. The rest is punctuation.
    write(encode(format, view, len * 6 + 64 * 1024)?.as_bytes())
}

/// Writes lines for people: none of them can steer the terminal.
///
/// # Errors
/// When stdout cannot be written.
pub fn text(lines: &str) -> Result<(), Failure> {
    write(plain(lines).as_bytes())
}

/// Writes bytes to stdout as they are, past the standard library's buffer, which would keep a copy. A reader
/// that went away (`keyfold … | head`) is not an error.
///
/// # Errors
/// When stdout cannot be written.
pub fn write(bytes: &[u8]) -> Result<(), Failure> {
    offer(bytes).map(drop)
}

/// Like `write`; says whether somebody still reads, and so whether more is worth fetching.
///
/// # Errors
/// When stdout cannot be written.
pub fn offer(bytes: &[u8]) -> Result<bool, Failure> {
    let written = io::stdout().as_fd().try_clone_to_owned().and_then(|fd| File::from(fd).write_all(bytes));
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::io("cannot write to standard output", &error)),
    }
}

/// A remark for the person at the terminal, on stderr.
pub fn note(text: &str) {
    // A closed stderr means that nobody wants remarks.
    let _ = writeln!(io::stderr(), "keyfold: {}", one_line(text));
}

/// Columns under a header, without lines or colours, one row a line, so that grep and awk work on it.
pub fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    columns([header.map(str::to_owned)].into_iter().chain(rows))
}

/// Columns without a header.
pub fn columns<const N: usize>(rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    for row in rows {
        table.add_row(row.map(|cell| one_line(&cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// A time as RFC 3339 in UTC, as exact as the server gave it; absent when it is absent.
pub fn time(at: Option<Timestamp>) -> Option<String> {
    at.map(|at| at.to_string())
}

/// A time for a table: RFC 3339 in UTC to the second, `-` when absent.
pub fn table_time(at: &Option<String>) -> String {
    let Some(at) = at else { return "-".into() };
    match at.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => at.clone(),
    }
}

/// Numbers as people list them: `1, 2, 5`.
pub fn numbers(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

/// `view` as text that ends with a line break and cannot steer a terminal: what would is escaped, so that it loads
/// as it was. The text and what it is made from are in buffers of `capacity` bytes at least.
///
/// # Errors
/// When the format has no form for the view.
pub fn encode<V: Serialize>(format: Format, view: &V, capacity: usize) -> Result<Zeroizing<String>, Failure> {
    if format == Format::Yaml {
        let mut yaml = Zeroizing::new(String::with_capacity(capacity));
        serde_saphyr::to_fmt_writer(&mut *yaml, view).map_err(|error| unprintable(&error))?;
        if is_plain(&yaml) {
            return Ok(yaml);
        }
    }
    let mut json = Zeroizing::new(Vec::with_capacity(capacity));
    serde_json::to_writer_pretty(&mut *json, view).map_err(|error| unprintable(&error))?;
    json.push(b'\n');
    let json = std::str::from_utf8(&json).map_err(|error| unprintable(&error))?;
    // Most forms of YAML's strings know no escapes; JSON, which is YAML too, has one form that does.
    Ok(escaped(json, if format == Format::Yaml { Notation::Yaml } else { Notation::Json }))
}

/// Each line without what could steer the terminal.
fn plain(lines: &str) -> String {
    lines.lines().map(|line| one_line(line) + "\n").collect()
}

fn unprintable(error: &dyn std::error::Error) -> Failure {
    Failure::new(Exit::Internal, "cannot print the result", error.to_string())
}

#[cfg(test)]
mod tests;
