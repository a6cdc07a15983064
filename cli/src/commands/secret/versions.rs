//! `keyfold secret rollback`, `delete`, `undelete` and `destroy`: what becomes of versions.

use std::io::{self, BufRead, IsTerminal as _, Write as _};

use keyfold_proto::keyfold::v1::{ChangeVersionsRequest, GetSecretHistoryResponse, RollbackSecretRequest};
use serde::Serialize;

use super::read::fetch_history;
use crate::{
    args::Global,
    client::Client,
    exit::{Exit, Failure},
    output,
    terminal::one_line,
};

/// Arguments of `secret rollback`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "No version is written: `current` points at the older one, `previous` at the one that \
    was current.\n\nExample:\n  keyfold secret rollback payments/db --version 2"
)]
pub struct RollbackArgs {
    /// The secret's path, such as payments/db
    path: String,
    /// Version to make current
    #[arg(long, value_name = "N")]
    version: u32,
}

/// Arguments of `secret delete`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  keyfold secret delete payments/db\n  \
    keyfold secret delete payments/db --versions 1,2")]
pub struct DeleteArgs {
    /// The secret's path, such as payments/db
    path: String,
    /// Versions to hide; the current one without it
    #[arg(long, value_name = "N,N…", value_delimiter = ',', num_args = 1)]
    versions: Vec<u32>,
}

/// Arguments of `secret undelete`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  keyfold secret undelete payments/db --versions 2")]
pub struct UndeleteArgs {
    /// The secret's path, such as payments/db
    path: String,
    /// Versions to bring back
    #[arg(long, value_name = "N,N…", value_delimiter = ',', num_args = 1, required = true)]
    versions: Vec<u32>,
}

/// Arguments of `secret destroy`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Values and data keys of the versions are gone from the database for good; backups and the \
    database's own logs keep them, encrypted, until their retention ends.\n\n\
    Example:\n  keyfold secret destroy payments/db --versions 1,2 --yes"
)]
pub struct DestroyArgs {
    /// The secret's path, such as payments/db
    path: String,
    /// Versions to destroy
    #[arg(long, value_name = "N,N…", value_delimiter = ',', num_args = 1, required = true)]
    versions: Vec<u32>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// A state that versions are brought into.
#[derive(Clone, Copy)]
struct Change {
    state: &'static str,
    /// What a version can be that stays as it was.
    else_already: &'static str,
}

const DELETED: Change = Change { state: "deleted", else_already: "deleted or destroyed" };
const UNDELETED: Change = Change { state: "live", else_already: "live, or destroyed" };
const DESTROYED: Change = Change { state: "destroyed", else_already: "destroyed" };

#[derive(Serialize)]
struct Changed<'a> {
    path: &'a str,
    change: &'static str,
    versions: Vec<u32>,
    unchanged: Vec<u32>,
    #[serde(skip)]
    else_already: &'static str,
}

#[derive(Serialize)]
struct RolledBack<'a> {
    path: &'a str,
    current_version: u32,
}

/// Points `current` at an older version.
///
/// # Errors
/// When there is no such live version, or the server refuses.
pub async fn rollback(global: &Global, args: &RollbackArgs) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    let what = format!("cannot roll secret {} back to version {}", args.path, args.version);
    let request = RollbackSecretRequest { path: args.path.clone(), version: args.version };
    let answer = client.call(&what, client.secrets().rollback_secret(request)).await?;
    output::print(
        global.output,
        &RolledBack { path: &args.path, current_version: answer.version },
        |view| format!("{}: version {} is current\n", view.path, view.current_version),
    )?;
    Ok(Exit::Done)
}

/// Hides versions.
///
/// # Errors
/// When there is no such version, or the server refuses.
pub async fn delete(global: &Global, args: &DeleteArgs) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    let versions = if args.versions.is_empty() {
        vec![current_version(&fetch_history(&client, &args.path).await?)?]
    } else {
        args.versions.clone()
    };
    let what = format!("cannot delete versions of secret {}", args.path);
    let request = ChangeVersionsRequest { path: args.path.clone(), versions: versions.clone() };
    let answer = client.call(&what, client.secrets().delete_versions(request)).await?;
    report(global, &args.path, DELETED, &versions, answer.changed)
}

/// Brings hidden versions back.
///
/// # Errors
/// When there is no such version, or the server refuses.
pub async fn undelete(global: &Global, args: &UndeleteArgs) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    let what = format!("cannot undelete versions of secret {}", args.path);
    let request = ChangeVersionsRequest { path: args.path.clone(), versions: args.versions.clone() };
    let answer = client.call(&what, client.secrets().undelete_versions(request)).await?;
    report(global, &args.path, UNDELETED, &args.versions, answer.changed)
}

/// Removes versions for good, once someone said yes.
///
/// # Errors
/// When nobody said yes, there is no such version, or the server refuses.
pub async fn destroy(global: &Global, args: &DestroyArgs) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    let what = format!("cannot destroy versions of secret {}", args.path);
    if !args.yes {
        let question = format!("Destroy {} of {} for good?", output::numbers(&args.versions), args.path);
        confirm(&what, &question, io::stdin().is_terminal(), &mut io::stdin().lock())?;
    }
    let request = ChangeVersionsRequest { path: args.path.clone(), versions: args.versions.clone() };
    let answer = client.call(&what, client.secrets().destroy_versions(request)).await?;
    report(global, &args.path, DESTROYED, &args.versions, answer.changed)
}

fn current_version(history: &GetSecretHistoryResponse) -> Result<u32, Failure> {
    let current =
        history.versions.iter().find(|version| version.labels.iter().any(|label| label == "current"));
    current.map(|version| version.version).ok_or_else(|| {
        Failure::new(
            Exit::NotFound,
            format!("cannot delete the current version of secret {}", history.path),
            "no version is current",
        )
        .advise("Name versions with --versions")
    })
}

/// Asks the person at the terminal.
///
/// # Errors
/// When there is none, or the answer is not yes. `what` names the failure.
pub fn confirm(what: &str, question: &str, terminal: bool, answers: &mut dyn BufRead) -> Result<(), Failure> {
    if !terminal {
        return Err(Failure::usage(what, "nobody can be asked, since standard input is not a terminal")
            .advise("Give --yes to go on without a question"));
    }
    // Without stderr there is no question, and the answer that comes is then hardly `yes`.
    let _ = write!(io::stderr(), "{} Type yes: ", one_line(question));
    let mut answer = String::new();
    answers.read_line(&mut answer).map_err(|error| Failure::io(what, &error))?;
    if answer.trim() == "yes" {
        return Ok(());
    }
    Err(Failure::usage(what, "the answer was not yes").advise("Nothing was changed"))
}

fn report(
    global: &Global,
    path: &str,
    change: Change,
    asked: &[u32],
    versions: Vec<u32>,
) -> Result<Exit, Failure> {
    let unchanged = asked.iter().copied().filter(|version| !versions.contains(version)).collect();
    let Change { state, else_already } = change;
    let changed = Changed { path, change: state, versions, unchanged, else_already };
    output::print(global.output, &changed, describe)?;
    Ok(Exit::Done)
}

fn describe(changed: &Changed<'_>) -> String {
    let line = |versions: &[u32], what: &str| match versions {
        [] => String::new(),
        [one] => format!("{}: version {one} {what}\n", changed.path),
        many => format!("{}: versions {} {what}\n", changed.path, output::numbers(many)),
    };
    line(&changed.versions, &format!("now {}", changed.change))
        + &line(&changed.unchanged, &format!("already {}", changed.else_already))
}

#[cfg(test)]
mod tests;
