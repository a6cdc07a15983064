//! One file a command; each holds its arguments and what it does with the server's answer.

pub mod admin;
pub mod apply;
pub mod approval;
pub mod audit;
pub mod ca;
pub mod completions;
pub mod explain;
pub mod get;
pub mod init;
pub mod key;
pub mod lint;
pub mod login;
pub mod logout;
pub mod policy;
pub mod recovery;
pub mod role;
pub mod root;
pub mod secret;
pub mod status;
pub mod unseal;
pub mod whoami;

use crate::{
    args::{Cli, Command, Format},
    dev,
    exit::{Exit, Failure},
};

/// Runs the command that the command line names.
///
/// # Errors
/// When the command failed; the failure carries the exit code.
pub async fn run(cli: Cli) -> Result<Exit, Failure> {
    let global = &cli.global;
    if global.output == Format::Sarif && !matches!(cli.command, Command::Lint(_)) {
        return Err(Failure::usage(
            "cannot print the result",
            "only `lint` has findings, which SARIF is for",
        ));
    }
    match cli.command {
        Command::Init(args) => init::run(global, &args).await,
        Command::Status(args) => status::run(global, &args).await,
        Command::Login(args) => login::run(global, &args).await,
        Command::Logout(args) => logout::run(global, &args),
        Command::Whoami(args) => whoami::run(global, &args).await,
        Command::Explain(args) => explain::run(global, args).await,
        Command::Admin(args) => admin::run(global, args.command).await,
        Command::Lint(args) => lint::run(global, &args).await,
        Command::Apply(args) => apply::apply(global, &args).await,
        Command::Diff(args) => apply::diff(global, &args).await,
        Command::Get(args) => get::get(global, &args).await,
        Command::Delete(args) => get::delete(global, &args).await,
        Command::Secret(args) => secret::run(global, args.command).await,
        Command::Role(args) => role::run(global, args.command).await,
        Command::Policy(args) => policy::run(global, &args.command),
        Command::Approval(args) => approval::run(global, args.command).await,
        Command::Key(args) => key::run(global, args.command).await,
        Command::Root(args) => root::run(global, args.command).await,
        Command::Unseal(args) => unseal::run(global, &args).await,
        Command::Recovery(args) => recovery::run(global, args.command).await,
        Command::Ca(args) => ca::run(global, args.command).await,
        Command::Audit(args) => audit::run(global, args.command).await,
        Command::Completions(args) => completions::run(&args),
        Command::Dev(args) => dev::run(args).await,
    }
}
