//! `keyfold secret`: secrets and their versions.

pub mod fields;
pub mod put;
pub mod read;
pub mod versions;

use crate::{
    args::Global,
    exit::{Exit, Failure},
};

/// Arguments of `secret`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands of `secret`.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Write a new version, which becomes current; values come from files or standard input only
    Put(put::Args),
    /// Read a secret's values
    Get(read::GetArgs),
    /// List secrets' paths
    List(read::ListArgs),
    /// List a secret's versions, without values
    History(read::HistoryArgs),
    /// Make an older version current again
    Rollback(versions::RollbackArgs),
    /// Hide versions; `undelete` brings them back
    Delete(versions::DeleteArgs),
    /// Bring deleted versions back
    Undelete(versions::UndeleteArgs),
    /// Remove versions for good
    Destroy(versions::DestroyArgs),
}

/// Runs a subcommand.
///
/// # Errors
/// When the arguments or files are wrong, or the server refuses.
pub async fn run(global: &Global, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Put(args) => put::run(global, &args).await,
        Command::Get(args) => read::get(global, &args).await,
        Command::List(args) => read::list(global, &args).await,
        Command::History(args) => read::history(global, &args).await,
        Command::Rollback(args) => versions::rollback(global, &args).await,
        Command::Delete(args) => versions::delete(global, &args).await,
        Command::Undelete(args) => versions::undelete(global, &args).await,
        Command::Destroy(args) => versions::destroy(global, &args).await,
    }
}
