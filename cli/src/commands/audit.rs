//! `keyfold audit`: the audit log.

use std::time::SystemTime;

use keyfold_core::clock::{Clock as _, SystemClock};
use keyfold_proto::keyfold::v1::{AuditEntry, ListEntriesRequest, Outcome};
use prost_types::Timestamp;
use serde_json::{Map, Value};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    args::{Format, Global, duration},
    client::Client,
    exit::{Exit, Failure},
    output,
    terminal::{Notation, escaped},
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
    let client = Client::operator(global)?;
    let mut pages = Pages::new(&filter);
    match global.output {
        Format::Table => {
            let mut rows = Vec::new();
            while let Some(page) = pages.next(&client).await? {
                rows.extend(page.iter().map(row));
            }
            output::text(&draw(rows))?;
        }
        Format::Json | Format::Sarif => {
            while let Some(page) = pages.next(&client).await? {
                let lines: Result<String, Failure> = page.iter().map(json_line).collect();
                if !output::offer(lines?.as_bytes())? {
                    break;
                }
            }
        }
        Format::Yaml => {
            let mut views = Vec::new();
            while let Some(page) = pages.next(&client).await? {
                views.extend(page.iter().map(value).collect::<Result<Vec<_>, _>>()?);
            }
            output::encoded(Format::Yaml, &views)?;
        }
    }
    Ok(Exit::Done)
}

/// The way through the log, page by page, as far as `--limit`.
struct Pages {
    /// Of the next page; none once the last entry is seen.
    request: Option<ListEntriesRequest>,
    /// Entries still wanted.
    left: u32,
}

impl Pages {
    fn new(filter: &Filter) -> Self {
        let page_size = PAGE_LEN.min(filter.limit);
        Self { request: Some(ListEntriesRequest { page_size, ..request(filter) }), left: filter.limit }
    }

    async fn next(&mut self, client: &Client) -> Result<Option<Vec<AuditEntry>>, Failure> {
        let Some(request) = self.request.clone() else { return Ok(None) };
        let answer = client.call("cannot list audit entries", client.audit().list_entries(request)).await?;
        Ok(self.take(answer.entries))
    }

    /// The page as far as it is wanted. A page holds as many entries as the server finds fit for one message, so
    /// only an empty one is the end.
    fn take(&mut self, mut page: Vec<AuditEntry>) -> Option<Vec<AuditEntry>> {
        page.truncate(self.left as usize);
        self.left -= page.len() as u32;
        let next = self.request.take().map(|request| ListEntriesRequest {
            page_size: PAGE_LEN.min(self.left),
            before_index: page.last().map_or(0, |entry| entry.index),
            ..request
        });
        // Index 0 is the first entry of all; as `before_index` it would ask for the newest again.
        self.request = next.filter(|next| next.page_size > 0 && next.before_index > 0);
        (!page.is_empty()).then_some(page)
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
/// Servers write entries in printable ASCII; in any other one the rest is escaped, and its hash no longer fits.
fn json_line(entry: &AuditEntry) -> Result<String, Failure> {
    let (text, _) = parse(entry)?;
    let members = escaped(&text[1..], Notation::Json);
    let hash = hex::encode(&entry.leaf_hash);
    Ok(format!(r#"{{"index":{},"leaf_hash":"{hash}",{}"#, entry.index, *members) + "\n")
}

fn value(entry: &AuditEntry) -> Result<Value, Failure> {
    let (_, mut members) = parse(entry)?;
    members.insert("index".into(), entry.index.into());
    members.insert("leaf_hash".into(), hex::encode(&entry.leaf_hash).into());
    Ok(members.into())
}

/// The entry's text, which begins with `{`, and its members, which are one at least.
fn parse(entry: &AuditEntry) -> Result<(&str, Map<String, Value>), Failure> {
    let text = std::str::from_utf8(&entry.entry).unwrap_or_default();
    // JSON takes white space between its parts, which no server writes.
    let compact = text.starts_with('{') && !text.contains(['\n', '\r', '\t']);
    match serde_json::from_str::<Map<String, Value>>(text) {
        Ok(members) if compact && !members.is_empty() => Ok((text, members)),
        _ => Err(Failure::new(
            Exit::Internal,
            "cannot show the audit log",
            format!("entry {} is not one line with a JSON object", entry.index),
        )
        .advise("Verify the log: this entry may have been changed")),
    }
}

fn draw(rows: Vec<[String; 6]>) -> String {
    output::table(["INDEX", "TIME", "OPERATION", "ACTOR", "ON", "OUTCOME"], rows)
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
