//! `keyfold key compromise` and `exposed`.

use std::io::{self, IsTerminal as _};

use keyfold_proto::keyfold::v1::{CompromiseKeyRequest, ExposedSecret, Holder, ListExposedSecretsRequest};
use serde::Serialize;

use super::status;
use crate::{
    args::{Format, Global},
    client::Client,
    commands::secret::versions::confirm,
    exit::{Exit, Failure},
    output,
};

/// Secrets that are asked for at once.
const PAGE: u32 = 500;

/// Arguments of `key compromise`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "The key is turned if it is active, and every payload that it ever reached gets a new data key \
    and is encrypted anew. Who held the old key and a copy of the database has the secrets all the same: rotate them at \
    their source, as keyfold key exposed lists them.\n\n\
    Example:\n  keyfold key compromise payments --watch"
)]
pub struct Args {
    /// The keyspace
    keyspace: String,
    /// The version; the active one without it
    #[arg(long = "key-version", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    version: Option<u32>,
    /// Show the progress until all payloads are encrypted anew
    #[arg(long)]
    watch: bool,
    /// Do not ask first
    #[arg(long)]
    yes: bool,
}

/// Arguments of `key exposed`.
#[derive(clap::Args, Debug)]
#[command(after_help = "A secret is listed until a new version of it is current.\n\n\
    Example:\n  keyfold key exposed payments -o json")]
pub struct ExposedArgs {
    /// The keyspace
    keyspace: String,
}

#[derive(Serialize)]
struct Compromised {
    keyspace: String,
    compromised_version: u32,
    active_version: u32,
    payloads: u64,
    exposed_secrets: u64,
}

#[derive(Serialize)]
struct ExposedView {
    path: String,
    versions: Vec<u32>,
    current: bool,
    key_version: u32,
    exposed_at: Option<String>,
    holders: Vec<HolderView>,
}

#[derive(Serialize)]
struct HolderView {
    actor: String,
    version: u32,
    last_given_at: Option<String>,
}

/// Declares a key compromised, once someone said yes.
///
/// # Errors
/// When nobody said yes, there is no such key, or the server refuses.
pub async fn run(global: &Global, args: Args) -> Result<Exit, Failure> {
    let Args { keyspace, version, watch, yes } = args;
    let client = Client::operator(global)?;
    let what = format!("cannot declare the key of keyspace {keyspace} compromised");
    // Named, so that a second person can sign it, and a turn meanwhile changes nothing.
    let version = match version {
        Some(version) => version,
        None => status::active_version(&client, &keyspace, &what).await?,
    };
    if !yes {
        let question =
            format!("Declare key version {version} of {keyspace} compromised? This cannot be taken back.");
        confirm(&what, &question, io::stdin().is_terminal(), &mut io::stdin().lock())?;
    }
    let request = CompromiseKeyRequest { keyspace: keyspace.clone(), version };
    let answer = client.call(&what, client.keys().compromise_key(request)).await?;
    if watch {
        status::watch(&client, &keyspace, global.output == Format::Table).await?;
    }
    let compromised = Compromised {
        keyspace,
        compromised_version: answer.compromised_version,
        active_version: answer.active_version,
        payloads: answer.payloads,
        exposed_secrets: answer.exposed_secrets,
    };
    output::print(global.output, &compromised, describe)?;
    Ok(Exit::Done)
}

fn describe(done: &Compromised) -> String {
    let Compromised { keyspace, compromised_version, active_version, payloads, exposed_secrets } = done;
    format!(
        "{keyspace}: key version {compromised_version} is compromised, version {active_version} is active\n\
         {payloads} payloads get new data keys: keyfold key status {keyspace}\n\
         {exposed_secrets} secrets must themselves be rotated: keyfold key exposed {keyspace}\n"
    )
}

/// Lists the secrets that compromised keys exposed.
///
/// # Errors
/// When there is no such keyspace, or the server refuses.
pub async fn exposed(global: &Global, args: ExposedArgs) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    let mut secrets = Vec::new();
    let mut after = String::new();
    loop {
        let request = ListExposedSecretsRequest { keyspace: args.keyspace.clone(), after, page_size: PAGE };
        let page =
            client.call("cannot list exposed secrets", client.keys().list_exposed_secrets(request)).await?;
        secrets.extend(page.secrets.into_iter().map(ExposedView::from));
        if page.next.is_empty() {
            break;
        }
        after = page.next;
    }
    output::print(global.output, &secrets, |secrets| draw(secrets))?;
    Ok(Exit::Done)
}

impl From<ExposedSecret> for ExposedView {
    fn from(secret: ExposedSecret) -> Self {
        Self {
            path: secret.path,
            versions: secret.versions,
            current: secret.current,
            key_version: secret.key_version,
            exposed_at: output::time(secret.exposed_at),
            holders: secret.holders.into_iter().map(HolderView::from).collect(),
        }
    }
}

impl From<Holder> for HolderView {
    fn from(holder: Holder) -> Self {
        Self {
            actor: holder.actor,
            version: holder.version,
            last_given_at: output::time(holder.last_given_at),
        }
    }
}

/// One line a holder, so that grep and awk find them; a secret that nobody was given has one line too.
fn draw(secrets: &[ExposedView]) -> String {
    let rows = secrets.iter().flat_map(|secret| {
        let cells = |version: String, holder: String, at: String| {
            [secret.path.clone(), output::numbers(&secret.versions), holder, version, at]
        };
        match &secret.holders[..] {
            [] => vec![cells("-".into(), "-".into(), "-".into())],
            holders => holders
                .iter()
                .map(|holder| {
                    let at = output::table_time(&holder.last_given_at);
                    cells(holder.version.to_string(), holder.actor.clone(), at)
                })
                .collect(),
        }
    });
    output::table(["PATH", "EXPOSED VERSIONS", "HOLDER", "HOLDS", "LAST GIVEN"], rows)
}
