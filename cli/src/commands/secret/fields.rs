//! Where the values of a new version come from: files and standard input, never the command line. Messages
//! name files, fields and lines, never what stands in them.

use std::{
    fmt::Formatter,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use keyfold_core::name::check_field_name;
use keyfold_proto::keyfold::v1::Field;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use zeroize::Zeroizing;

use crate::{
    documents::title,
    exit::{Failure, io_reason},
};

/// Largest source that is read: twice what the server takes for a secret, since JSON escapes some bytes.
const SOURCE_LEN_MAX: u64 = 1024 * 1024;

/// Options that name sources of values.
#[derive(clap::Args, Debug)]
#[group(required = true, multiple = true)]
pub struct Sources {
    /// One field from a file's bytes, - for standard input; may be repeated
    #[arg(long, value_name = "NAME=FILE", value_parser = named_file)]
    from_file: Vec<(String, PathBuf)>,
    /// Fields from a JSON object whose values are strings, - for standard input
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fields from lines of the form NAME=VALUE, - for standard input
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
}

/// Reads the fields of all sources.
///
/// # Errors
/// When a source cannot be read or has another form, a field is given twice, or `-` is.
pub fn read(sources: &Sources, stdin: &mut dyn Read) -> Result<Vec<Field>, Failure> {
    let mut stdin = Some(stdin);
    let mut fields = Vec::new();
    for (name, file) in &sources.from_file {
        let value = std::mem::take(&mut *bytes(file, &mut stdin)?);
        fields.push(Field { name: name.clone(), value });
    }
    if let Some(file) = &sources.json {
        fields.extend(parse_json(file, &bytes(file, &mut stdin)?)?);
    }
    if let Some(file) = &sources.env_file {
        fields.extend(parse_env(file, &bytes(file, &mut stdin)?)?);
    }
    for (index, field) in fields.iter().enumerate() {
        check_field_name(&field.name).map_err(|error| wrong(error.to_string()))?;
        if fields[..index].iter().any(|earlier| earlier.name == field.name) {
            return Err(wrong(format!("the field {:?} is given twice", field.name)));
        }
    }
    if fields.is_empty() {
        return Err(wrong("the given sources hold no field").advise("A secret has at least one field"));
    }
    Ok(fields)
}

fn named_file(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => Ok((name.into(), file.into())),
        _ => Err("must have the form NAME=FILE".into()),
    }
}

fn bytes(file: &Path, stdin: &mut Option<&mut dyn Read>) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let read = if file == Path::new("-") {
        let stdin = stdin
            .take()
            .ok_or_else(|| wrong("`-` is given twice").advise("Standard input can be read once"))?;
        read_whole(stdin, SOURCE_LEN_MAX)
    } else {
        File::open(file).and_then(|open| {
            let len = open.metadata()?.len();
            read_whole(open, if len == 0 { SOURCE_LEN_MAX } else { len.min(SOURCE_LEN_MAX) })
        })
    };
    let bytes =
        read.map_err(|error| wrong(format!("{} cannot be read: {}", title(file), io_reason(&error))))?;
    if bytes.len() as u64 > SOURCE_LEN_MAX {
        return Err(wrong(format!("{} is larger than 1 MiB", title(file))));
    }
    Ok(bytes)
}

/// Reads into one allocation made for `expected_len` bytes, so that growing leaves no copy behind.
fn read_whole(from: impl Read, expected_len: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(expected_len as usize + 64));
    from.take(SOURCE_LEN_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn parse_json(file: &Path, bytes: &[u8]) -> Result<Vec<Field>, Failure> {
    match serde_json::from_slice::<Fields>(bytes) {
        Ok(fields) => Ok(fields.0),
        // serde's own message may repeat the value.
        Err(error) => Err(wrong(format!(
            "{} is not a JSON object whose values are all strings (line {}, column {})",
            title(file),
            error.line(),
            error.column()
        ))),
    }
}

fn parse_env(file: &Path, bytes: &[u8]) -> Result<Vec<Field>, Failure> {
    let mut fields = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.trim_ascii().is_empty() || line.starts_with(b"#") {
            continue;
        }
        let bad =
            || wrong(format!("line {} of {} does not have the form NAME=VALUE", index + 1, title(file)));
        let equals = line.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
        let name = std::str::from_utf8(&line[..equals]).map_err(|_| bad())?;
        // Without the name in the message: in a file of another form it may be a part of a value.
        check_field_name(name).map_err(|_| bad())?;
        fields.push(Field { name: name.into(), value: line[equals + 1..].to_vec() });
    }
    Ok(fields)
}

/// The members of a JSON object, doubles included, straight into types that wipe themselves.
struct Fields(Vec<Field>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Fields;
            fn expecting(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(name) = map.next_key()? {
                    let text: Zeroizing<String> = Zeroizing::new(map.next_value()?);
                    fields.push(Field { name, value: text.as_bytes().to_vec() });
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

fn wrong(reason: impl Into<String>) -> Failure {
    Failure::usage("cannot read the fields", reason)
}

#[cfg(test)]
mod tests;
