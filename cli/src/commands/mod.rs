//! One file a command; each holds its arguments and what it does with the server's answer.

pub mod apply;
pub mod audit;
pub mod completions;
pub mod get;
pub mod init;
pub mod key;
pub mod role;
pub mod secret;
pub mod status;

use crate::{
    args::{Cli, Command},
    dev,
    exit::{Exit, Failure},
};

/// Runs the command that the command line names.
///
/// # Errors
/// When the command failed; the failure carries the exit code.
pub async fn run(cli: Cli) -> Result<Exit, Failure> {
    let global = &cli.global;
    match cli.command {
        Command::Init(args) => init::run(global, &args).await,
        Command::Status(args) => status::run(global, &args).await,
        Command::Apply(args) => apply::apply(global, &args).await,
        Command::Diff(args) => apply::diff(global, &args).await,
        Command::Get(args) => get::get(global, &args).await,
        Command::Delete(args) => get::delete(global, &args).await,
        Command::Secret(args) => secret::run(global, args.command).await,
        Command::Role(args) => role::run(global, args.command).await,
        Command::Key(args) => key::run(global, args.command).await,
        Command::Audit(args) => audit::run(global, args.command).await,
        Command::Completions(args) => completions::run(&args),
        Command::Dev(args) => dev::run(args).await,
    }
}
