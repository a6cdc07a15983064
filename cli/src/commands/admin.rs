//! `keyfold admin`: the initial administrator.

use keyfold_proto::keyfold::v1::RevokeInitialAdministratorRequest;
use serde::Serialize;

use crate::{
    args::Global,
    client::Client,
    exit::{Exit, Failure},
    output,
};

/// Arguments of `admin`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands of `admin`.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Make the initial administrator's token void for good
    #[command(
        after_help = "Exit code 5 when it is done with that token itself: sign in as another operator whose\n\
        role allows operators:write, so that it is certain that somebody still can.\n\n\
        Example:\n  keyfold admin revoke"
    )]
    Revoke,
}

#[derive(Serialize)]
struct Revoked {
    revoked: bool,
}

/// Runs a subcommand.
///
/// # Errors
/// When the server refuses.
pub async fn run(global: &Global, command: Command) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    match command {
        Command::Revoke => {
            let mut system = client.system();
            let call = system.revoke_initial_administrator(RevokeInitialAdministratorRequest {});
            let answer = client.call("cannot revoke the initial administrator", call).await?;
            output::print(global.output, &Revoked { revoked: answer.revoked }, describe)?;
        }
    }
    Ok(Exit::Done)
}

fn describe(done: &Revoked) -> String {
    let text = if done.revoked {
        "the initial administrator's token is void"
    } else {
        "the initial administrator's token was void already"
    };
    format!("{text}\n")
}
