//! `keyfold status`.

use keyfold_proto::keyfold::v1::{GetStatusRequest, GetStatusResponse, State};
use serde::Serialize;

use crate::{
    args::Global,
    client::Client,
    exit::{Exit, Failure},
    output,
};

/// Arguments of `status`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Answers without a token too, then without details. \
    Exit code 0 only when the server is serving, 6 otherwise.\n\n\
    Example:\n  keyfold status --server https://keyfold.example:8443 --ca-file ca.crt")]
pub struct Args {}

#[derive(Serialize)]
struct View {
    state: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
}

#[derive(Serialize)]
struct Details {
    server_version: String,
    schema_version: i64,
    installation_id: String,
    root_key_id: String,
    audit_entries: u64,
    initial_administrator_active: bool,
}

/// Asks the server for its state and prints it.
///
/// # Errors
/// When the server cannot be asked.
pub async fn run(global: &Global, _: &Args) -> Result<Exit, Failure> {
    let client = Client::anyone(global)?;
    let answer = client
        .call("cannot read the server's status", client.system().get_status(GetStatusRequest {}))
        .await?;
    let serving = answer.state() == State::Serving;
    let view = View::from(answer);
    output::print(global.output, &view, draw)?;
    if view.details.as_ref().is_some_and(|details| details.initial_administrator_active) {
        output::note(
            "warning: the initial administrator is still active; revoke it once operators have roles",
        );
    }
    Ok(if serving { Exit::Done } else { Exit::Unavailable })
}

impl From<GetStatusResponse> for View {
    fn from(answer: GetStatusResponse) -> Self {
        let state = match answer.state() {
            State::Unspecified => "unknown",
            State::Uninitialized => "uninitialised",
            State::Sealed => "sealed",
            State::Serving => "serving",
        };
        let details = answer.details.map(|details| Details {
            server_version: details.server_version,
            schema_version: details.schema_version,
            installation_id: details.installation_id,
            root_key_id: details.root_key_id,
            audit_entries: details.audit_entries,
            initial_administrator_active: details.initial_administrator_active,
        });
        Self { state, message: answer.message, details }
    }
}

fn draw(view: &View) -> String {
    let mut rows = vec![["state".to_owned(), view.state.to_owned()]];
    let mut row = |name: &str, value: String| rows.push([name.to_owned(), value]);
    if !view.message.is_empty() {
        row("message", view.message.clone());
    }
    if let Some(details) = &view.details {
        row("version", details.server_version.clone());
        row("schema", details.schema_version.to_string());
        row("installation", details.installation_id.clone());
        row("root key", details.root_key_id.clone());
        row("audit entries", details.audit_entries.to_string());
    }
    output::columns(rows)
}

#[cfg(test)]
mod tests;
