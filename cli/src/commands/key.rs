//! `keyfold key`: key-encryption keys.

use keyfold_proto::keyfold::v1::{Key, ListKeysRequest, RotateKeyRequest};
use serde::Serialize;

use crate::{
    args::Global,
    client::Client,
    exit::{Exit, Failure},
    output,
};

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
        /// One keyspace; all of them without it
        keyspace: Option<String>,
    },
    /// Make a new key active for a keyspace and rewrap its data keys; secrets stay readable throughout
    #[command(after_help = "A keyspace of many secrets takes a while: see --timeout.\n\n\
        Example:\n  keyfold key rotate payments --timeout 5m")]
    Rotate {
        /// The keyspace
        keyspace: String,
    },
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
    deactivated_at: Option<String>,
}

#[derive(Serialize)]
struct Rotated {
    keyspace: String,
    old_version: u32,
    new_version: u32,
    rewrapped_deks: u64,
}

/// Runs a subcommand.
///
/// # Errors
/// When there is no such keyspace, or the server refuses.
pub async fn run(global: &Global, command: Command) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    match command {
        Command::List { keyspace } => {
            let request = ListKeysRequest { keyspace: keyspace.clone().unwrap_or_default() };
            let answer = client.call("cannot list keys", client.keys().list_keys(request)).await?;
            let keys: Vec<KeyView> = answer.keys.into_iter().map(KeyView::from).collect();
            if let (Some(keyspace), []) = (keyspace, &keys[..]) {
                let why = format!("there is no keyspace {keyspace}, or it has no key");
                return Err(Failure::new(Exit::NotFound, "cannot list keys", why));
            }
            output::print(global.output, &keys, |keys| draw(keys))?;
        }
        Command::Rotate { keyspace } => {
            let what = format!("cannot rotate the key of keyspace {keyspace}");
            let request = RotateKeyRequest { keyspace: keyspace.clone() };
            let answer = client.call(&what, client.keys().rotate_key(request)).await?;
            let rotated = Rotated {
                keyspace,
                old_version: answer.old_version,
                new_version: answer.new_version,
                rewrapped_deks: answer.rewrapped_deks,
            };
            output::print(global.output, &rotated, describe)?;
        }
    }
    Ok(Exit::Done)
}

fn describe(rotated: &Rotated) -> String {
    let Rotated { keyspace, old_version, new_version, rewrapped_deks } = rotated;
    format!("{keyspace}: key version {old_version} -> {new_version}, {rewrapped_deks} data keys rewrapped\n")
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
            deactivated_at: output::time(key.deactivated_at),
        }
    }
}

fn draw(keys: &[KeyView]) -> String {
    let rows = keys.iter().map(|key| {
        let (created, deactivated) =
            (output::table_time(&key.created_at), output::table_time(&key.deactivated_at));
        let (version, wrapped) = (key.version.to_string(), key.wrapped_deks.to_string());
        [key.keyspace.clone(), key.purpose.clone(), version, key.state.clone(), wrapped, created, deactivated]
    });
    output::table(["KEYSPACE", "PURPOSE", "VERSION", "STATE", "DATA KEYS", "CREATED", "DEACTIVATED"], rows)
}

#[cfg(test)]
mod tests;
