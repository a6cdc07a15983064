//! `keyfold root`: custody of the root key.

use std::io::{self, IsTerminal as _};

use keyfold_proto::keyfold::v1::{ChangeRootRequest, ChangeRootResponse, GetRootRequest, GetRootResponse};
use serde::Serialize;

use crate::{
    args::Global,
    client::Client,
    commands::{recovery::print_shares, secret::versions::confirm},
    exit::{Exit, Failure},
    output,
};

/// Arguments of `root`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands of `root`.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Show where the root key lies, and whether it can be had now
    #[command(
        after_help = "Exit code 6 when what keeps the root key cannot be reached.\n\nExample:\n  keyfold root status"
    )]
    Status,
    /// Make a new root key of the custody in use, and move every key under it
    #[command(
        after_help = "With custody `file`, first put the new key into `root_key.file.current` and the one in use \
        into `previous`, on every replica. The shares of custody `shamir` are printed once.\n\n\
        Example:\n  keyfold root rotate"
    )]
    Rotate(RotateArgs),
    /// Move to the custody that the server's configuration names now
    #[command(
        after_help = "First give every replica the new `root_key` and, as `previous_root_key`, the one in use.\n\n\
        Example:\n  keyfold root migrate --to pkcs11"
    )]
    Migrate(MigrateArgs),
}

/// Arguments of `root rotate`.
#[derive(clap::Args, Debug)]
pub struct RotateArgs {
    /// Do not ask first
    #[arg(long)]
    yes: bool,
}

/// Arguments of `root migrate`.
#[derive(clap::Args, Debug)]
pub struct MigrateArgs {
    /// The custody: file, pkcs11, kms-plugin or shamir; the server refuses if it is configured for another
    #[arg(long, value_name = "CUSTODY", value_parser = ["file", "pkcs11", "kms-plugin", "shamir"])]
    to: String,
    /// Do not ask first
    #[arg(long)]
    yes: bool,
}

#[derive(Serialize)]
struct Status {
    custody: String,
    root_key_id: String,
    rwk_version: u32,
    since: Option<String>,
    configured_custody: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    problem: String,
    recovery: Option<RecoveryView>,
}

#[derive(Serialize)]
struct RecoveryView {
    recovery_key_id: String,
    shares: u32,
    threshold: u32,
    created_at: Option<String>,
    created_by: String,
    last_drilled_at: Option<String>,
}

/// Runs a subcommand.
///
/// # Errors
/// When nobody said yes, or the server refuses.
pub async fn run(global: &Global, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Status => status(global).await,
        Command::Rotate(args) => change(global, String::new(), args.yes).await,
        Command::Migrate(args) => change(global, args.to, args.yes).await,
    }
}

async fn status(global: &Global) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    let answer =
        client.call("cannot read the root's status", client.root().get_root(GetRootRequest {})).await?;
    let status = Status::from(answer);
    output::print(global.output, &status, draw)?;
    Ok(if status.problem.is_empty() { Exit::Done } else { Exit::Unavailable })
}

async fn change(global: &Global, custody: String, yes: bool) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    let (what, question) = match custody.as_str() {
        "" => ("cannot turn the root key".to_owned(), "Turn the root key?".to_owned()),
        to => (format!("cannot move the root to {to}"), format!("Move the root to {to}?")),
    };
    if !yes {
        confirm(&what, &question, io::stdin().is_terminal(), &mut io::stdin().lock())?;
    }
    // Of two who change it at once, one is refused, and a signed plan is good for this root key alone.
    let in_use = client.call(&what, client.root().get_root(GetRootRequest {})).await?;
    let request = ChangeRootRequest { custody, replaces_root_key_id: in_use.root_key_id };
    let answer = client.call(&what, client.root().change_root(request)).await?;
    output::note(&describe(&answer));
    match answer.shares.is_empty() {
        true => output::print(global.output, &Changed::from(&answer), |_| String::new())?,
        false => print_shares(global.output, &answer.shares, answer.threshold)?,
    }
    Ok(Exit::Done)
}

#[derive(Serialize)]
struct Changed {
    custody: String,
    old_root_key_id: String,
    new_root_key_id: String,
    rwk_version: u32,
    keys: u64,
}

impl From<&ChangeRootResponse> for Changed {
    fn from(answer: &ChangeRootResponse) -> Self {
        Self {
            custody: answer.custody.clone(),
            old_root_key_id: answer.old_root_key_id.clone(),
            new_root_key_id: answer.new_root_key_id.clone(),
            rwk_version: answer.rwk_version,
            keys: answer.keys,
        }
    }
}

fn describe(answer: &ChangeRootResponse) -> String {
    let ChangeRootResponse { custody, old_root_key_id, new_root_key_id, rwk_version, keys, .. } = answer;
    format!(
        "root key {old_root_key_id} -> {new_root_key_id} ({custody}), root-wrapping key version {rwk_version}, \
         {keys} keys moved"
    )
}

impl From<GetRootResponse> for Status {
    fn from(answer: GetRootResponse) -> Self {
        let recovery = answer.recovery.map(|recovery| RecoveryView {
            recovery_key_id: recovery.recovery_key_id,
            shares: recovery.shares,
            threshold: recovery.threshold,
            created_at: output::time(recovery.created_at),
            created_by: recovery.created_by,
            last_drilled_at: output::time(recovery.last_drilled_at),
        });
        Self {
            custody: answer.custody,
            root_key_id: answer.root_key_id,
            rwk_version: answer.rwk_version,
            since: output::time(answer.since),
            configured_custody: answer.configured_custody,
            problem: answer.problem,
            recovery,
        }
    }
}

fn draw(status: &Status) -> String {
    let mut rows = vec![
        ["custody".to_owned(), status.custody.clone()],
        ["root key".to_owned(), status.root_key_id.clone()],
        ["root-wrapping key".to_owned(), format!("version {}", status.rwk_version)],
        ["since".to_owned(), output::table_time(&status.since)],
    ];
    if status.configured_custody != status.custody {
        rows.push([
            "configured".to_owned(),
            format!("{}: run keyfold root migrate", status.configured_custody),
        ]);
    }
    if !status.problem.is_empty() {
        rows.push(["problem".to_owned(), status.problem.clone()]);
    }
    let recovery = match &status.recovery {
        None => "none: run keyfold recovery create".to_owned(),
        Some(recovery) => format!(
            "{} of {} shares, made {} by {}, last drilled {}",
            recovery.threshold,
            recovery.shares,
            output::table_time(&recovery.created_at),
            recovery.created_by,
            output::table_time(&recovery.last_drilled_at)
        ),
    };
    rows.push(["recovery".to_owned(), recovery]);
    if let Some(recovery) = &status.recovery {
        rows.push(["recovery key".to_owned(), recovery.recovery_key_id.clone()]);
    }
    output::columns(rows)
}
