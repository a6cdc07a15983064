//! `keyfold secret get`, `list` and `history`.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use keyfold_core::name::check_field_name;
use keyfold_proto::keyfold::v1::{
    Field, GetSecretHistoryRequest, GetSecretHistoryResponse, GetSecretRequest, GetSecretResponse,
    ListSecretsRequest, SecretSummary, VersionState, VersionSummary,
};
use serde::{Serialize, Serializer, ser::SerializeMap as _};
use zeroize::Zeroizing;

use crate::{
    args::{Format, Global},
    client::Client,
    exit::{Exit, Failure, io_reason},
    output,
};

/// Arguments of `secret get`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "The table shows names and sizes only. Values are shown with -o json or -o yaml: text under \
    `fields`, anything else in base64 under `base64_fields`.\n\n\
    Examples:\n  keyfold secret get payments/db -o json\n  \
    keyfold secret get payments/db --version 2 --field password\n  \
    keyfold secret get payments/db --out-dir db"
)]
pub struct GetArgs {
    /// The secret's path, such as payments/db
    path: String,
    /// Version to read; the current one without it
    #[arg(long, value_name = "N")]
    version: Option<u32>,
    /// Write this field's bytes to standard output, exactly
    #[arg(long, value_name = "NAME", conflicts_with = "out_dir")]
    field: Option<String>,
    /// Write each field to a new file of its name in this folder, readable by its owner only
    #[arg(long, value_name = "DIR")]
    out_dir: Option<PathBuf>,
}

/// Arguments of `secret list`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  keyfold secret list\n  keyfold secret list payments/eu")]
pub struct ListArgs {
    /// Whole segments that paths begin with: a keyspace, or a deeper prefix
    prefix: Option<String>,
}

/// Arguments of `secret history`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  keyfold secret history payments/db")]
pub struct HistoryArgs {
    /// The secret's path, such as payments/db
    path: String,
}

/// A version with its values.
struct SecretView<'a>(&'a GetSecretResponse);

/// The fields whose values are text, or those whose values are not.
struct FieldsView<'a> {
    fields: &'a [Field],
    text: bool,
}

#[derive(Serialize)]
struct SummaryView {
    path: String,
    current_version: u32,
    newest_version: u32,
    updated_at: Option<String>,
}

#[derive(Serialize)]
struct HistoryView {
    path: String,
    versions: Vec<VersionView>,
}

#[derive(Serialize)]
struct VersionView {
    version: u32,
    state: &'static str,
    labels: Vec<String>,
    created_at: Option<String>,
    created_by: String,
    kek_version: u32,
}

/// Reads one version's values.
///
/// # Errors
/// When there is no such secret, version or field, the server refuses, or a file cannot be written.
pub async fn get(global: &Global, args: &GetArgs) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    let what = format!("cannot read secret {}", args.path);
    let request = GetSecretRequest { path: args.path.clone(), version: args.version };
    let secret = client.call(&what, client.secrets().get_secret(request)).await?;
    match (&args.field, &args.out_dir, global.output) {
        (Some(name), _, _) => output::write(&find(&secret, name, &what)?.value)?,
        (None, Some(folder), _) => write_files(&secret, folder, &what)?,
        (None, None, Format::Table) => {
            output::text(&draw_fields(&secret))?;
            output::note("values are left out here: see them with -o json, --field NAME or --out-dir DIR");
        }
        (None, None, format) => {
            let len = secret.fields.iter().map(|field| field.name.len() + field.value.len()).sum();
            output::print_secret(format, &SecretView(&secret), len)?;
        }
    }
    Ok(Exit::Done)
}

/// Lists paths under a prefix, all pages.
///
/// # Errors
/// When the server refuses.
pub async fn list(global: &Global, args: &ListArgs) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    let mut secrets = Vec::new();
    let mut request =
        ListSecretsRequest { prefix: args.prefix.clone().unwrap_or_default(), ..Default::default() };
    loop {
        let page = client.call("cannot list secrets", client.secrets().list_secrets(request.clone())).await?;
        secrets.extend(page.secrets.into_iter().map(SummaryView::from));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    output::print(global.output, &secrets, |secrets| draw_list(secrets))?;
    Ok(Exit::Done)
}

/// Lists a secret's versions.
///
/// # Errors
/// When there is no such secret, or the server refuses.
pub async fn history(global: &Global, args: &HistoryArgs) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    let history = fetch_history(&client, &args.path).await?;
    let view = HistoryView {
        path: history.path,
        versions: history.versions.into_iter().map(VersionView::from).collect(),
    };
    output::print(global.output, &view, draw_history)?;
    Ok(Exit::Done)
}

/// A secret's versions, newest first.
pub(super) async fn fetch_history(client: &Client, path: &str) -> Result<GetSecretHistoryResponse, Failure> {
    let what = format!("cannot read the history of secret {path}");
    let request = GetSecretHistoryRequest { path: path.into() };
    client.call(&what, client.secrets().get_secret_history(request)).await
}

fn find<'a>(secret: &'a GetSecretResponse, name: &str, what: &str) -> Result<&'a Field, Failure> {
    secret.fields.iter().find(|field| field.name == name).ok_or_else(|| {
        let reason = format!("version {} has no field {name:?}", secret.version);
        Failure::new(Exit::NotFound, what, reason)
            .advise(format!("`keyfold secret get {}` lists its fields", secret.path))
    })
}

/// All files or none: what was written is removed when a later one fails.
fn write_files(secret: &GetSecretResponse, folder: &Path, what: &str) -> Result<(), Failure> {
    // The server refuses such names; a file outside the folder must not hang on that alone.
    for field in &secret.fields {
        check_field_name(&field.name)
            .map_err(|error| Failure::new(Exit::Internal, what, error.to_string()))?;
    }
    let failed = |path: &Path, error: &io::Error| {
        let reason = format!("{} cannot be written: {}", path.display(), io_reason(error));
        Failure::usage(what, reason).advise("Name a folder that holds no files of the fields' names")
    };
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(folder, &error)),
        _ => {}
    }
    let mut written: Vec<PathBuf> = Vec::new();
    for field in &secret.fields {
        let path = folder.join(&field.name);
        if let Err(error) = write_file(&path, &field.value) {
            for path in &written {
                // The first failure is the one to report.
                let _ = fs::remove_file(path);
            }
            return Err(failed(&path, &error));
        }
        written.push(path);
    }
    output::note(&format!("wrote {} files to {}", written.len(), folder.display()));
    Ok(())
}

fn write_file(path: &Path, value: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(value).inspect_err(|_| {
        // Half a value is worse than none; the write's own failure is the one to report.
        let _ = fs::remove_file(path);
    })
}

fn draw_fields(secret: &GetSecretResponse) -> String {
    let rows = secret.fields.iter().map(|field| [field.name.clone(), field.value.len().to_string()]);
    let heading = format!("{} version {}\n", secret.path, secret.version);
    heading + &output::table(["FIELD", "BYTES"], rows)
}

fn draw_list(secrets: &[SummaryView]) -> String {
    let number = |version: u32| if version == 0 { "-".to_owned() } else { version.to_string() };
    let rows = secrets.iter().map(|secret| {
        let updated = output::table_time(&secret.updated_at);
        [secret.path.clone(), number(secret.current_version), number(secret.newest_version), updated]
    });
    output::table(["PATH", "CURRENT", "NEWEST", "UPDATED"], rows)
}

fn draw_history(history: &HistoryView) -> String {
    let rows = history.versions.iter().map(|version| {
        let kek = if version.kek_version == 0 { "-".to_owned() } else { version.kek_version.to_string() };
        let (number, created) = (version.version.to_string(), output::table_time(&version.created_at));
        [number, version.state.into(), version.labels.join(","), kek, created, version.created_by.clone()]
    });
    output::table(["VERSION", "STATE", "LABELS", "KEY VERSION", "CREATED", "BY"], rows)
}

impl Serialize for SecretView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let secret = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("path", &secret.path)?;
        map.serialize_entry("version", &secret.version)?;
        map.serialize_entry("created_at", &output::time(secret.created_at))?;
        map.serialize_entry("fields", &FieldsView { fields: &secret.fields, text: true })?;
        if secret.fields.iter().any(|field| !is_text(field)) {
            map.serialize_entry("base64_fields", &FieldsView { fields: &secret.fields, text: false })?;
        }
        map.end()
    }
}

impl Serialize for FieldsView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for field in self.fields {
            match std::str::from_utf8(&field.value) {
                Ok(text) if self.text => map.serialize_entry(&field.name, text)?,
                Err(_) if !self.text => {
                    let encoded = Zeroizing::new(BASE64_STANDARD.encode(&field.value));
                    map.serialize_entry(&field.name, encoded.as_str())?;
                }
                _ => {}
            }
        }
        map.end()
    }
}

fn is_text(field: &Field) -> bool {
    std::str::from_utf8(&field.value).is_ok()
}

impl From<SecretSummary> for SummaryView {
    fn from(secret: SecretSummary) -> Self {
        Self {
            updated_at: output::time(secret.updated_at),
            path: secret.path,
            current_version: secret.current_version,
            newest_version: secret.newest_version,
        }
    }
}

impl From<VersionSummary> for VersionView {
    fn from(version: VersionSummary) -> Self {
        let state = match version.state() {
            VersionState::Unspecified => "unknown",
            VersionState::Live => "live",
            VersionState::Deleted => "deleted",
            VersionState::Destroyed => "destroyed",
        };
        Self {
            version: version.version,
            state,
            labels: version.labels,
            created_at: output::time(version.created_at),
            created_by: version.created_by,
            kek_version: version.kek_version,
        }
    }
}

#[cfg(test)]
mod tests;
