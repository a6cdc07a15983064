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
    exit::{Exit, Failure, one_line},
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
        Format::Table => write(table(view).as_bytes()),
        Format::Json | Format::Yaml => encoded(format, view),
    }
}

/// Prints `view` for programs: as YAML, or else as JSON.
///
/// # Errors
/// When stdout cannot be written.
pub fn encoded<V: Serialize>(format: Format, view: &V) -> Result<(), Failure> {
    write(&encode(format, view, 0)?)
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
    write(&encode(format, view, len * 6 + 64 * 1024)?)
}

/// Writes bytes to stdout as they are, past the standard library's buffer, which would keep a copy. A reader
/// that went away (`keyfold … | head`) is not an error.
///
/// # Errors
/// When stdout cannot be written.
pub fn write(bytes: &[u8]) -> Result<(), Failure> {
    let written = io::stdout().as_fd().try_clone_to_owned().and_then(|fd| File::from(fd).write_all(bytes));
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::io("cannot write to standard output", &error))
        }
        _ => Ok(()),
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

fn encode<V: Serialize>(format: Format, view: &V, capacity: usize) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
    let encoded = match format {
        Format::Yaml => serde_saphyr::to_io_writer(&mut *bytes, view).map_err(|error| error.to_string()),
        Format::Table | Format::Json => {
            serde_json::to_writer_pretty(&mut *bytes, view).map_err(|error| error.to_string())
        }
    };
    encoded.map_err(|error| Failure::new(Exit::Internal, "cannot print the result", error))?;
    if !bytes.ends_with(b"\n") {
        bytes.push(b'\n');
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
