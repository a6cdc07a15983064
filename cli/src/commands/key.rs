//! `keyfold key`: the keys that wrap data keys, and the installation's own.

use keyfold_proto::keyfold::v1::{Key, ListKeysRequest};
use serde::Serialize;

use crate::{
    args::Global,
    client::Client,
    exit::{Exit, Failure},
    output,
};

pub mod certificate;
pub mod compromise;
pub mod destruction;
pub mod quarantine;
pub mod rotate;
pub mod schedule;
pub mod status;

/// Arguments of `key`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands of `key`.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// List keys, and how many data keys each wraps
    #[command(
        after_help = "Exit code 3 when there is no such keyspace.\n\nExample:\n  keyfold key list payments"
    )]
    List {
        /// One keyspace; all of them, and the installation's own keys, without it
        keyspace: Option<String>,
    },
    /// Show how turns and rewraps stand, and which replicas hold the newest keys
    Status(status::Args),
    /// Make a new key active and rewrap the data keys under it; secrets stay readable throughout
    Rotate(rotate::Args),
    /// Show when the schedule will turn keys
    Schedule(schedule::Args),
    /// Pause the schedule of a key; a turn that has begun is finished
    #[command(after_help = "Example:\n  keyfold key pause payments")]
    Pause(schedule::KeysetArgs),
    /// Let the schedule of a key go on
    #[command(after_help = "Example:\n  keyfold key resume payments\n  keyfold key resume --purpose row-mac")]
    Resume(schedule::KeysetArgs),
    /// Declare a key compromised: turn it, and encrypt anew every payload that it reached
    Compromise(compromise::Args),
    /// List the secrets that a compromised key exposed, and who was given them
    Exposed(compromise::ExposedArgs),
    /// Have an old key destroyed, after a delay in which it can be cancelled
    Destroy(destruction::DestroyArgs),
    /// Cancel a destruction that has not happened yet
    CancelDestroy(destruction::CancelArgs),
    /// Show and verify the signed proofs of keys' destruction
    Certificate(certificate::Args),
    /// List data keys that could not be opened, or have them tried again
    Quarantine(quarantine::Args),
}

#[derive(Serialize)]
struct KeyView {
    keyspace: String,
    purpose: String,
    version: u32,
    state: String,
    id: String,
    wrapped_deks: u64,
    created_at: Option<String>,
    activated_at: Option<String>,
    deactivated_at: Option<String>,
    compromised_at: Option<String>,
    destroy_at: Option<String>,
    destroyed_at: Option<String>,
}

/// Runs a subcommand.
///
/// # Errors
/// When there is no such keyspace or key, or the server refuses.
pub async fn run(global: &Global, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::List { keyspace } => list(global, keyspace).await,
        Command::Status(args) => status::run(global, args).await,
        Command::Rotate(args) => rotate::run(global, args).await,
        Command::Schedule(args) => schedule::show(global, args).await,
        Command::Pause(args) => schedule::pause(global, args).await,
        Command::Resume(args) => schedule::resume(global, args).await,
        Command::Compromise(args) => compromise::run(global, args).await,
        Command::Exposed(args) => compromise::exposed(global, args).await,
        Command::Destroy(args) => destruction::destroy(global, args).await,
        Command::CancelDestroy(args) => destruction::cancel(global, args).await,
        Command::Certificate(args) => certificate::run(global, args.command).await,
        Command::Quarantine(args) => quarantine::run(global, args).await,
    }
}

async fn list(global: &Global, keyspace: Option<String>) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    let request = ListKeysRequest { keyspace: keyspace.clone().unwrap_or_default() };
    let answer = client.call("cannot list keys", client.keys().list_keys(request)).await?;
    let keys: Vec<KeyView> = answer.keys.into_iter().map(KeyView::from).collect();
    if let (Some(keyspace), []) = (keyspace, &keys[..]) {
        let why = format!("there is no keyspace {keyspace}, or it has no key");
        return Err(Failure::new(Exit::NotFound, "cannot list keys", why));
    }
    output::print(global.output, &keys, |keys| draw(keys))?;
    Ok(Exit::Done)
}

impl From<Key> for KeyView {
    fn from(key: Key) -> Self {
        Self {
            keyspace: key.keyspace,
            purpose: key.purpose,
            version: key.version,
            state: key.state,
            id: key.id,
            wrapped_deks: key.wrapped_deks,
            created_at: output::time(key.created_at),
            activated_at: output::time(key.activated_at),
            deactivated_at: output::time(key.deactivated_at),
            compromised_at: output::time(key.compromised_at),
            destroy_at: output::time(key.destroy_at),
            destroyed_at: output::time(key.destroyed_at),
        }
    }
}

fn draw(keys: &[KeyView]) -> String {
    let rows = keys.iter().map(|key| {
        let (created, deactivated) =
            (output::table_time(&key.created_at), output::table_time(&key.deactivated_at));
        let (version, wrapped) = (key.version.to_string(), key.wrapped_deks.to_string());
        let state = match (&key.destroy_at, key.state.as_str()) {
            (at @ Some(_), "destroy-scheduled") => format!("destroy-scheduled {}", output::table_time(at)),
            (_, state) => state.to_owned(),
        };
        [named(&key.keyspace), key.purpose.clone(), version, state, wrapped, created, deactivated]
    });
    output::table(["KEYSPACE", "PURPOSE", "VERSION", "STATE", "DATA KEYS", "CREATED", "DEACTIVATED"], rows)
}

/// The keyspace in a table; `-` for the installation's own keys.
fn named(keyspace: &str) -> String {
    if keyspace.is_empty() { "-".into() } else { keyspace.to_owned() }
}

/// A keyset in words.
fn keyset(keyspace: &str, purpose: &str) -> String {
    match keyspace {
        "" => format!("the installation's {purpose} key"),
        keyspace => keyspace.to_owned(),
    }
}

#[cfg(test)]
mod tests;
