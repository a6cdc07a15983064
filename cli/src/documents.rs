//! Declarative files: the YAML documents that `apply` and `diff` read and `get` prints.

use std::{
    collections::BTreeMap,
    fmt::{Display, Formatter},
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use keyfold_proto::keyfold::v1;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use serde_saphyr::UserMessageFormatter;

use crate::{
    args::Format,
    exit::{Failure, io_reason},
    output,
};

/// Largest file that is read. 256 objects with a CA bundle each stay far below it.
const FILE_LEN_MAX: u64 = 8 * 1024 * 1024;

/// One object, as files hold it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(
    rename_all = "camelCase",
    deny_unknown_fields,
    expecting = "a map with apiVersion, kind, metadata and spec"
)]
pub struct Document {
    /// The version of the object's form.
    pub api_version: ApiVersion,
    /// What the object is.
    pub kind: Kind,
    /// How it is called.
    pub metadata: Metadata,
    /// What it says; the server knows which fields each kind has.
    #[serde(default)]
    pub spec: Map<String, Value>,
}

/// Versions of the objects' form.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub enum ApiVersion {
    /// The first.
    #[serde(rename = "keyfold.dev/v1")]
    V1,
}

/// Kinds of objects.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
pub enum Kind {
    /// First segment of secrets' paths, with keys of its own
    #[value(name = "keyspace", alias = "keyspaces")]
    Keyspace,
    /// Trusted source of tokens
    #[value(name = "issuer", alias = "issuers")]
    Issuer,
    /// Named right of workloads
    #[value(name = "approle", aliases = ["approles", "role", "roles"])]
    AppRole,
    /// Named right of operators
    #[value(name = "operatorrole", alias = "operatorroles")]
    OperatorRole,
    /// Operations that need a second person
    #[value(name = "approvalrule", alias = "approvalrules")]
    ApprovalRule,
}

impl Kind {
    /// The kind as documents and the API spell it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Keyspace => "Keyspace",
            Kind::Issuer => "Issuer",
            Kind::AppRole => "AppRole",
            Kind::OperatorRole => "OperatorRole",
            Kind::ApprovalRule => "ApprovalRule",
        }
    }
}

impl Display for Kind {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What names an object.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, expecting = "a map with name")]
pub struct Metadata {
    /// Unique among objects of the kind.
    pub name: String,
}

impl Document {
    /// The document as a request carries it.
    pub fn to_object(&self) -> v1::Object {
        v1::Object {
            kind: self.kind.name().to_owned(),
            name: self.metadata.name.clone(),
            spec_json: Value::Object(self.spec.clone()).to_string(),
            ..Default::default()
        }
    }

    /// The document of an object that the server gave.
    ///
    /// # Errors
    /// When the object has a form that this program does not know; the text says which.
    pub fn from_object(object: &v1::Object) -> Result<Self, String> {
        let kind = Kind::value_variants().iter().copied().find(|kind| kind.name() == object.kind);
        Ok(Self {
            api_version: ApiVersion::V1,
            kind: kind
                .ok_or_else(|| format!("the server has a kind {:?} that is not known here", object.kind))?,
            metadata: Metadata { name: object.name.clone() },
            spec: serde_json::from_str(&object.spec_json)
                .map_err(|_| format!("the spec of {} {} is not a JSON object", object.kind, object.name))?,
        })
    }
}

/// Reads all documents of the named files, in order. `-` is standard input; a folder stands for its `*.yaml`
/// and `*.yml` files by name, folders inside it left out.
///
/// # Errors
/// When any of it is wrong: then nothing of it should be used. The message names file, document and field.
pub fn read(paths: &[PathBuf], stdin: &mut dyn Read) -> Result<Vec<Document>, Failure> {
    let mut documents = Vec::new();
    let mut places: BTreeMap<(Kind, String), String> = BTreeMap::new();
    for (place, document) in read_with(paths, stdin, from_value::<Document>)? {
        let key = (document.kind, document.metadata.name.clone());
        if let Some(first) = places.insert(key, place.clone()) {
            let twice = format!("{} {} stands in {first} already", document.kind, document.metadata.name);
            return Err(wrong(&place, twice).advise("Keep one of them"));
        }
        documents.push(document);
    }
    Ok(documents)
}

/// Like `read`, with each document as `convert` makes it, and its place.
///
/// # Errors
/// Like `read`.
pub(crate) fn read_with<T>(
    paths: &[PathBuf],
    stdin: &mut dyn Read,
    convert: fn(Value) -> Result<T, String>,
) -> Result<Vec<(String, T)>, Failure> {
    let mut documents = Vec::new();
    let mut stdin = Some(stdin);
    for file in expand(paths)? {
        let text = if file == Path::new("-") {
            let stdin = stdin.take().ok_or_else(|| {
                Failure::usage("cannot read standard input", "`-` is given twice").advise("Give it once")
            })?;
            read_text(stdin, &file)?
        } else {
            let open = fs::File::open(&file).map_err(|error| unreadable(&file, &error))?;
            read_text(open, &file)?
        };
        documents.extend(parse(&title(&file), &text, convert)?);
    }
    if documents.is_empty() {
        return Err(Failure::usage("cannot use the files", "they hold no document"));
    }
    Ok(documents)
}

/// Documents as one YAML text that `read` takes back unchanged.
///
/// # Errors
/// When a document cannot be written as YAML.
pub fn to_yaml<'a>(documents: impl IntoIterator<Item = &'a Document>) -> Result<String, Failure> {
    let mut yaml = String::new();
    for document in documents {
        if !yaml.is_empty() {
            yaml.push_str("---\n");
        }
        yaml.push_str(&output::encode(Format::Yaml, document, 0)?);
    }
    Ok(yaml)
}

/// Each document of a text with its place, such as `roles.yaml, document 2`. Empty documents do not count.
fn parse<T>(
    title: &str,
    text: &str,
    convert: fn(Value) -> Result<T, String>,
) -> Result<Vec<(String, T)>, Failure> {
    let options = serde_saphyr::options! {
        // YAML 1.2: `on` and `yes` are words, so what one tool wrote as a word stays one.
        strict_booleans: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    };
    let mut reader = text.as_bytes();
    serde_saphyr::read_with_options::<_, Value>(&mut reader, options)
        .enumerate()
        .map(|(index, value)| {
            let place = format!("{title}, document {}", index + 1);
            let value = value.map_err(|error| error.render_with_formatter(&UserMessageFormatter));
            match value.and_then(convert) {
                Ok(document) => Ok((place, document)),
                Err(reason) => Err(wrong(&place, reason)),
            }
        })
        .collect()
}

/// The document of a YAML value; the reason names the field.
pub(crate) fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    // serde would take a list for a struct, its items in the order of the fields.
    for (field, part) in [("", Some(&value)), ("metadata: ", value.get("metadata"))] {
        if part.is_some_and(Value::is_array) {
            return Err(format!("{field}a list stands where a map belongs"));
        }
    }
    serde_path_to_error::deserialize(value).map_err(|error| match error.path().iter().next() {
        None => error.inner().to_string(),
        Some(_) => format!("{}: {}", error.path(), error.inner()),
    })
}

fn expand(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for path in paths {
        if path == Path::new("-") || !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let found = yaml_files(path).map_err(|error| unreadable(path, &error))?;
        if found.is_empty() {
            return Err(Failure::usage(
                format!("cannot use {}", path.display()),
                "the folder holds no YAML file",
            )
            .advise("Files must end in .yaml or .yml"));
        }
        files.extend(found);
    }
    Ok(files)
}

fn yaml_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "yaml" || end == "yml") && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_text(from: impl Read, file: &Path) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    from.take(FILE_LEN_MAX + 1).read_to_end(&mut bytes).map_err(|error| unreadable(file, &error))?;
    if bytes.len() as u64 > FILE_LEN_MAX {
        return Err(wrong(&title(file), format!("it is larger than {} MiB", FILE_LEN_MAX >> 20)));
    }
    String::from_utf8(bytes).map_err(|_| wrong(&title(file), "it is not UTF-8 text"))
}

/// How messages call a file.
pub(crate) fn title(file: &Path) -> String {
    if file == Path::new("-") { "standard input".into() } else { file.display().to_string() }
}

/// What stands at this place is wrong.
pub(crate) fn wrong(place: &str, reason: impl Into<String>) -> Failure {
    Failure::usage(format!("cannot use {place}"), reason)
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::usage(format!("cannot read {}", title(path)), io_reason(error))
}

#[cfg(test)]
mod tests;
