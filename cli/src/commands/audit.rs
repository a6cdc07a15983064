//! `keyfold audit`: the audit log.

use std::time::SystemTime;

use keyfold_core::clock::{Clock as _, SystemClock};
use keyfold_proto::keyfold::v1::{AuditEntry, ListEntriesRequest, Outcome};
use prost_types::Timestamp;
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    args::{Format, Global, duration},
    client::Client,
    exit::{Exit, Failure},
    output,
};

/// Entries asked for in one call; the server's default.
const PAGE_LEN: u32 = 100;

/// Arguments of `audit`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands of `audit`.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// List entries, newest first
    #[command(after_help = "With -o json each entry is one line: its place in the log (`index`), its hash \
        (`leaf_hash`), then the entry exactly as it was hashed.\n\n\
        Examples:\n  keyfold audit list --since 1h --outcome refused\n  \
        keyfold audit list --path payments/db --operation secret.issue -o json\n  \
        keyfold audit list --actor system:serviceaccount:payments:api --limit 20")]
    List(Filter),
}

/// Which entries to list; all conditions given must hold.
#[derive(clap::Args, Debug)]
pub struct Filter {
    /// Operation's name, such as secret.issue
    #[arg(long, value_name = "NAME")]
    operation: Option<String>,
    /// Who, as entries name them, such as system:serviceaccount:payments:api
    #[arg(long, value_name = "NAME")]
    actor: Option<String>,
    /// A secret's path
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// How the operation ended
    #[arg(long, value_enum)]
    outcome: Option<Ending>,
    /// From this time on: RFC 3339, or how long ago, such as 1h
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<SystemTime>,
    /// Up to this time: RFC 3339, or how long ago, such as 30m
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<SystemTime>,
    /// At most so many entries
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

/// Values of `--outcome`.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Ending {
    /// It was done
    Allowed,
    /// It was refused
    Refused,
}

/// Runs a subcommand.
///
/// # Errors
/// When the server refuses, or sends what is not an entry.
pub async fn run(global: &Global, Command::List(filter): Command) -> Result<Exit, Failure> {
    let entries = list(&Client::operator(global)?, &filter).await?;
    match global.output {
        Format::Table => output::write(draw(&entries).as_bytes())?,
        Format::Json => {
            let lines: Result<String, Failure> = entries.iter().map(json_line).collect();
            output::write(lines?.as_bytes())?;
        }
        Format::Yaml => {
            let views: Result<Vec<Value>, Failure> = entries.iter().map(value).collect();
            output::encoded(Format::Yaml, &views?)?;
        }
    }
    Ok(Exit::Done)
}

async fn list(client: &Client, filter: &Filter) -> Result<Vec<AuditEntry>, Failure> {
    let mut entries: Vec<AuditEntry> = Vec::new();
    let mut request = request(filter);
    loop {
        request.page_size = PAGE_LEN.min(filter.limit - entries.len() as u32);
        let answer =
            client.call("cannot list audit entries", client.audit().list_entries(request.clone())).await?;
        let last_page = answer.entries.len() < request.page_size as usize;
        entries.extend(answer.entries);
        // Index 0 is the first entry of all; as `before_index` it would ask for the newest again.
        request.before_index = entries.last().map_or(0, |entry| entry.index);
        if last_page || entries.len() >= filter.limit as usize || request.before_index == 0 {
            return Ok(entries);
        }
    }
}

fn request(filter: &Filter) -> ListEntriesRequest {
    let outcome = match filter.outcome {
        None => Outcome::Unspecified,
        Some(Ending::Allowed) => Outcome::Allowed,
        Some(Ending::Refused) => Outcome::Refused,
    };
    ListEntriesRequest {
        operation: filter.operation.clone().unwrap_or_default(),
        actor: filter.actor.clone().unwrap_or_default(),
        path: filter.path.clone().unwrap_or_default(),
        outcome: outcome.into(),
        since: filter.since.map(Timestamp::from),
        until: filter.until.map(Timestamp::from),
        page_size: 0,
        before_index: 0,
    }
}

/// The entry's own bytes with two members put in front, so that the hashed bytes can be cut out of the line.
fn json_line(entry: &AuditEntry) -> Result<String, Failure> {
    value(entry)?;
    let text = String::from_utf8_lossy(&entry.entry);
    let members = text.trim_start_matches('{');
    Ok(format!(r#"{{"index":{},"leaf_hash":"{}",{members}"#, entry.index, hex(&entry.leaf_hash)) + "\n")
}

fn value(entry: &AuditEntry) -> Result<Value, Failure> {
    match serde_json::from_slice(&entry.entry) {
        Ok(Value::Object(members)) if !members.is_empty() && !entry.entry.contains(&b'\n') => {
            let mut value = serde_json::json!({"index": entry.index, "leaf_hash": hex(&entry.leaf_hash)});
            value.as_object_mut().into_iter().for_each(|all| all.extend(members.clone()));
            Ok(value)
        }
        _ => Err(Failure::new(
            Exit::Internal,
            "cannot show the audit log",
            format!("entry {} is not one line with a JSON object", entry.index),
        )
        .advise("Verify the log: this entry may have been changed")),
    }
}

fn draw(entries: &[AuditEntry]) -> String {
    output::table(["INDEX", "TIME", "OPERATION", "ACTOR", "ON", "OUTCOME"], entries.iter().map(row))
}

/// Newer servers' entries may hold more or other members; what is missing shows as an empty cell.
fn row(entry: &AuditEntry) -> [String; 6] {
    let value: Value = serde_json::from_slice(&entry.entry).unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let outcome = match text(&value["outcome"]["reason"]) {
        reason if reason.is_empty() => text(&value["outcome"]["result"]),
        reason => format!("{}: {reason}", text(&value["outcome"]["result"])),
    };
    let time = output::table_time(&value["at"].as_str().map(str::to_owned));
    let (operation, actor) = (text(&value["operation"]["name"]), text(&value["actor"]["name"]));
    [entry.index.to_string(), time, operation, actor, targets(&value["operation"]), outcome]
}

/// What the operation concerned: paths, a prefix, objects as `Kind/name`, a kind, or a keyspace.
fn targets(operation: &Value) -> String {
    let text =
        |part: &Value, name: &str| part[name].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let named = |part: &Value, name: &str| Some(format!("{}/{}", text(part, "kind")?, text(part, name)?));
    let list = |name: &str| operation[name].as_array().into_iter().flatten();
    let own = named(operation, "object")
        .or_else(|| ["path", "prefix", "keyspace", "kind"].iter().find_map(|name| text(operation, name)));
    let items = list("items").filter_map(|item| text(item, "path"));
    let objects = list("objects").filter_map(|object| named(object, "name"));
    own.into_iter().chain(items).chain(objects).collect::<Vec<_>>().join(" ")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A point in time: RFC 3339, or a duration before now.
fn moment(text: &str) -> Result<SystemTime, String> {
    if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(at.into());
    }
    let ago = duration(text)
        .map_err(|_| "must be RFC 3339 (2026-01-31T08:00:00Z), or a time ago such as 1h or 7d")?;
    SystemTime::from(SystemClock.now()).checked_sub(ago).ok_or_else(|| "is too long ago".into())
}

#[cfg(test)]
mod tests;
