//! `keyfold ca`: the internal certificate authority.

use keyfold_proto::keyfold::v1::{AuthorityCertificate, GetBundleRequest, RotateAuthorityRequest};
use serde::Serialize;

use crate::{
    args::{Format, Global},
    client::Client,
    exit::{Exit, Failure},
    output,
};

/// Arguments of `ca`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands of `ca`.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Print the certificates that clients are to trust, in PEM
    #[command(after_help = "Needs no token.\n\nExample:\n  keyfold ca bundle > keyfold-ca.crt")]
    Bundle,
    /// Show the authority's certificates
    #[command(after_help = "Needs no token.\n\nExample:\n  keyfold ca status")]
    Status,
    /// Turn the authority's key: the new certificate is trusted at once and signs after the overlap
    #[command(after_help = "Example:\n  keyfold ca rotate")]
    Rotate,
}

#[derive(Serialize)]
struct Authority {
    version: u32,
    state: String,
    expires_at: Option<String>,
    fingerprint: String,
}

#[derive(Serialize)]
struct Rotated {
    version: u32,
    active_at: Option<String>,
}

/// Runs a subcommand.
///
/// # Errors
/// When the server refuses.
pub async fn run(global: &Global, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Bundle => bundle(global).await,
        Command::Status => status(global).await,
        Command::Rotate => rotate(global).await,
    }
}

async fn bundle(global: &Global) -> Result<Exit, Failure> {
    let client = Client::anyone(global)?;
    let answer =
        client.call("cannot get the bundle", client.certificates().get_bundle(GetBundleRequest {})).await?;
    match global.output {
        Format::Table => output::text(&answer.bundle)?,
        format => output::encoded(format, &serde_json::json!({ "bundle": answer.bundle }))?,
    }
    Ok(Exit::Done)
}

async fn status(global: &Global) -> Result<Exit, Failure> {
    let client = Client::anyone(global)?;
    let answer = client
        .call("cannot read the authority's status", client.certificates().get_bundle(GetBundleRequest {}))
        .await?;
    let authorities: Vec<Authority> = answer.authorities.into_iter().map(Authority::from).collect();
    output::print(global.output, &authorities, |authorities| draw(authorities))?;
    Ok(Exit::Done)
}

async fn rotate(global: &Global) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    let request = RotateAuthorityRequest {};
    let answer =
        client.call("cannot turn the authority", client.certificates().rotate_authority(request)).await?;
    let rotated = Rotated { version: answer.version, active_at: output::time(answer.active_at) };
    output::print(global.output, &rotated, |rotated| {
        let at = output::table_time(&rotated.active_at);
        format!("Authority version {} is trusted now and signs from {at}.\n", rotated.version)
    })?;
    Ok(Exit::Done)
}

impl From<AuthorityCertificate> for Authority {
    fn from(authority: AuthorityCertificate) -> Self {
        Self {
            version: authority.version,
            state: authority.state,
            expires_at: output::time(authority.expires_at),
            fingerprint: authority.fingerprint,
        }
    }
}

fn draw(authorities: &[Authority]) -> String {
    let rows = authorities.iter().map(|authority| {
        let expires = output::table_time(&authority.expires_at);
        [authority.version.to_string(), authority.state.clone(), expires, authority.fingerprint.clone()]
    });
    output::table(["VERSION", "STATE", "EXPIRES", "SHA-256"], rows)
}
