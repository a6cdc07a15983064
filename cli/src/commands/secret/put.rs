//! `keyfold secret put`.

use std::io;

use keyfold_proto::keyfold::v1::PutSecretRequest;
use serde::Serialize;

use super::fields;
use crate::{
    args::Global,
    client::Client,
    exit::{Exit, Failure},
    output,
};

/// Arguments of `secret put`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "The new version holds exactly the given fields; fields of older versions are not carried \
    over.\nA file's bytes are taken as they are, a line break at the end too. In an env file each line is \
    NAME=VALUE, the value taken as it is to the end of the line; empty lines and lines that begin with # are \
    left out.\n\n\
    Examples:\n  keyfold secret put payments/db --from-file password=pw.txt --from-file ca.crt=db-ca.pem\n  \
    keyfold secret put payments/db --json db.json --expected-version 3\n  \
    keyfold secret get old/db --field key | keyfold secret put new/db --from-file key=-"
)]
pub struct Args {
    /// The secret's path, such as payments/db
    path: String,
    #[command(flatten)]
    sources: fields::Sources,
    /// Write only if the newest version has this number; 0: only if the secret does not exist
    #[arg(long, value_name = "N")]
    expected_version: Option<u32>,
}

#[derive(Serialize)]
struct Written<'a> {
    path: &'a str,
    version: u32,
}

/// Writes the version.
///
/// # Errors
/// When a source of values is wrong, or the server refuses.
pub async fn run(global: &Global, args: &Args) -> Result<Exit, Failure> {
    let fields = fields::read(&args.sources, &mut io::stdin())?;
    let client = Client::operator(global)?;
    let request =
        PutSecretRequest { path: args.path.clone(), fields, expected_version: args.expected_version };
    let what = format!("cannot write secret {}", args.path);
    let answer = client.call(&what, client.secrets().put_secret(request)).await?;
    output::print(global.output, &Written { path: &args.path, version: answer.version }, |written| {
        format!("{}: version {} written\n", written.path, written.version)
    })?;
    Ok(Exit::Done)
}
