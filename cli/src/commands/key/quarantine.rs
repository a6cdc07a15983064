//! `keyfold key quarantine`.

use keyfold_proto::keyfold::v1::{ListQuarantineRequest, QuarantinedDek, RetryQuarantineRequest};
use serde::Serialize;

use crate::{
    args::Global,
    client::Client,
    exit::{Exit, Failure},
    output,
};

/// Arguments of `key quarantine`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "A data key in quarantine keeps its key from being destroyed. Put its row back from a backup, \
    or destroy the secret's version, then have it tried again.\n\n\
    Example:\n  keyfold key quarantine payments --retry"
)]
pub struct Args {
    /// One keyspace; all of them without it
    #[arg(required_if_eq("retry", "true"))]
    keyspace: Option<String>,
    /// Let the rewrap try them again
    #[arg(long)]
    retry: bool,
}

#[derive(Serialize)]
struct DekView {
    keyspace: String,
    dek_id: String,
    path: String,
    version: u32,
    key_version: u32,
    reason: String,
    found_at: Option<String>,
}

#[derive(Serialize)]
struct Released {
    keyspace: String,
    released: u64,
}

/// Lists the quarantine, or empties it.
///
/// # Errors
/// When there is no such keyspace, or the server refuses.
pub async fn run(global: &Global, args: Args) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    let keyspace = args.keyspace.unwrap_or_default();
    if args.retry {
        let what = format!("cannot retry the quarantine of keyspace {keyspace}");
        let request = RetryQuarantineRequest { keyspace: keyspace.clone() };
        let answer = client.call(&what, client.keys().retry_quarantine(request)).await?;
        let released = Released { keyspace, released: answer.released };
        output::print(global.output, &released, |done| {
            format!("{}: {} data keys are tried again\n", done.keyspace, done.released)
        })?;
        return Ok(Exit::Done);
    }
    let request = ListQuarantineRequest { keyspace };
    let answer = client.call("cannot list the quarantine", client.keys().list_quarantine(request)).await?;
    let deks: Vec<DekView> = answer.deks.into_iter().map(DekView::from).collect();
    output::print(global.output, &deks, |deks| draw(deks))?;
    Ok(Exit::Done)
}

impl From<QuarantinedDek> for DekView {
    fn from(dek: QuarantinedDek) -> Self {
        Self {
            keyspace: dek.keyspace,
            dek_id: dek.dek_id,
            path: dek.path,
            version: dek.version,
            key_version: dek.key_version,
            reason: dek.reason,
            found_at: output::time(dek.found_at),
        }
    }
}

fn draw(deks: &[DekView]) -> String {
    let rows = deks.iter().map(|dek| {
        [
            dek.path.clone(),
            dek.version.to_string(),
            dek.key_version.to_string(),
            output::table_time(&dek.found_at),
            dek.reason.clone(),
        ]
    });
    output::table(["PATH", "VERSION", "KEY VERSION", "FOUND", "REASON"], rows)
}
