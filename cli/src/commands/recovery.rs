//! `keyfold recovery`: a second way to the keys, held by people.

use std::path::PathBuf;

use keyfold_proto::keyfold::v1::{CreateRecoveryRequest, DrillRecoveryRequest};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::{
    args::{Format, Global},
    client::Client,
    commands::unseal::read_shares,
    exit::{Exit, Failure},
    output,
};

/// Arguments of `recovery`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands of `recovery`.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Make a recovery key, and print its shares once
    #[command(after_help = "Shares of an earlier recovery key are good for nothing from then on.\n\n\
        Example:\n  keyfold recovery create --shares 5 --threshold 3")]
    Create {
        /// How many shares
        #[arg(long, default_value_t = 5, value_name = "N")]
        shares: u32,
        /// How many of them open the keys
        #[arg(long, default_value_t = 3, value_name = "M")]
        threshold: u32,
    },
    /// Prove that the shares open a backup, which stands in the scratch database of the server's configuration
    #[command(
        after_help = "Restore a backup into the database that `recovery.drill_database` names, then enter the shares: \
        one a line, in files or on standard input. Exit code 1 when something in the backup does not open.\n\n\
        Example:\n  keyfold recovery drill --share-file alice.share --share-file bob.share --share-file carol.share"
    )]
    Drill {
        /// File with a share; as often as there are shares. Without any, they are read from standard input
        #[arg(long = "share-file", value_name = "FILE")]
        share_files: Vec<PathBuf>,
    },
}

#[derive(Serialize)]
struct Shares<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery_key_id: Option<&'a str>,
    shares: &'a [String],
    threshold: u32,
}

#[derive(Serialize)]
struct Drilled {
    installation_id: String,
    audit_entries: u64,
    last_entry_at: Option<String>,
    keys_opened: u64,
    secrets_opened: u64,
    failures: Vec<String>,
}

/// Runs a subcommand.
///
/// # Errors
/// When the shares are wrong, or the server refuses.
pub async fn run(global: &Global, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Create { shares, threshold } => create(global, shares, threshold).await,
        Command::Drill { share_files } => drill(global, &share_files).await,
    }
}

async fn create(global: &Global, shares: u32, threshold: u32) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    let request = CreateRecoveryRequest { shares, threshold };
    let answer = client.call("cannot make a recovery key", client.root().create_recovery(request)).await?;
    output::note(&format!(
        "put recovery: {{key_id: {id}}} into the configuration of every server, and keep the id with the shares: without \
         it no server takes them",
        id = answer.recovery_key_id
    ));
    let recovery_key_id = Some(answer.recovery_key_id.as_str());
    print(global.output, &Shares { recovery_key_id, shares: &answer.shares, threshold })?;
    Ok(Exit::Done)
}

/// Prints shares of a root key, one a line.
///
/// # Errors
/// When stdout cannot be written.
pub fn print_shares(format: Format, shares: &[String], threshold: u32) -> Result<(), Failure> {
    print(format, &Shares { recovery_key_id: None, shares, threshold })
}

fn print(format: Format, printed: &Shares<'_>) -> Result<(), Failure> {
    let Shares { recovery_key_id, shares, threshold } = *printed;
    output::note(&format!(
        "{} shares follow on standard output, this once: give each to another person. {threshold} of them open the keys",
        shares.len()
    ));
    let len = shares.iter().map(String::len).sum::<usize>() + recovery_key_id.map_or(0, str::len);
    match format {
        Format::Table => {
            let mut lines = Zeroizing::new(Vec::with_capacity(len + shares.len()));
            for share in shares {
                lines.extend_from_slice(share.as_bytes());
                lines.push(b'\n');
            }
            output::write(&lines)
        }
        format => output::print_secret(format, printed, len),
    }
}

async fn drill(global: &Global, files: &[PathBuf]) -> Result<Exit, Failure> {
    let what = "cannot drill recovery";
    let client = Client::operator(global)?;
    let shares = read_shares(what, files)?.iter().map(|share| share.to_string()).collect();
    let answer = client.call(what, client.root().drill_recovery(DrillRecoveryRequest { shares })).await?;
    let drilled = Drilled {
        installation_id: answer.installation_id,
        audit_entries: answer.audit_entries,
        last_entry_at: output::time(answer.last_entry_at),
        keys_opened: answer.keys_opened,
        secrets_opened: answer.secrets_opened,
        failures: answer.failures,
    };
    output::print(global.output, &drilled, describe)?;
    Ok(if drilled.failures.is_empty() { Exit::Done } else { Exit::Found })
}

fn describe(drilled: &Drilled) -> String {
    let mut text = format!(
        "The shares open the backup of installation {}: {} keys and {} secrets' versions.\n\
         Its audit log has {} entries, the last of {}.\n",
        drilled.installation_id,
        drilled.keys_opened,
        drilled.secrets_opened,
        drilled.audit_entries,
        output::table_time(&drilled.last_entry_at),
    );
    for failure in &drilled.failures {
        text += &format!("Does not open: {failure}\n");
    }
    text
}
