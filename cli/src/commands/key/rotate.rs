//! `keyfold key rotate`.

use keyfold_proto::keyfold::v1::RotateKeyRequest;
use serde::Serialize;

use super::{keyset, schedule::KeysetArgs, status};
use crate::{
    args::{Format, Global},
    client::Client,
    exit::{Exit, Failure},
    output,
};

/// Arguments of `key rotate`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Turns at once, whatever the schedule says and also while it is paused. The server goes on \
    with the rewrap by itself: without --watch and --no-wait the command waits for it as long as --timeout says.\n\n\
    Example:\n  keyfold key rotate payments --watch"
)]
pub struct Args {
    #[command(flatten)]
    keyset: KeysetArgs,
    /// Turn at once: what happens anyway, for scripts that want to say so
    #[arg(long)]
    now: bool,
    /// Show the rewrap's progress until it is done
    #[arg(long, conflicts_with = "no_wait")]
    watch: bool,
    /// Return once the new key is active
    #[arg(long)]
    no_wait: bool,
}

#[derive(Serialize)]
pub(super) struct Rotated {
    pub(super) keyspace: String,
    #[serde(skip_serializing_if = "is_data")]
    pub(super) purpose: String,
    pub(super) old_version: u32,
    pub(super) new_version: u32,
    pub(super) rewrapped_deks: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) pending_deks: u64,
}

pub(super) fn is_data(purpose: &str) -> bool {
    purpose == "data"
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Turns the key.
///
/// # Errors
/// When there is no such key, or the server refuses.
pub async fn run(global: &Global, args: Args) -> Result<Exit, Failure> {
    let (keyspace, purpose) = args.keyset.named()?;
    let what = match keyspace.as_str() {
        "" => format!("cannot rotate {}", keyset("", &purpose)),
        keyspace => format!("cannot rotate the key of keyspace {keyspace}"),
    };
    let client = Client::operator(global)?;
    let no_wait = args.watch || args.no_wait;
    let request = RotateKeyRequest { keyspace: keyspace.clone(), purpose: purpose.clone(), no_wait };
    let answer = client.call(&what, client.keys().rotate_key(request)).await?;
    let mut rotated = Rotated {
        keyspace: keyspace.clone(),
        purpose,
        old_version: answer.old_version,
        new_version: answer.new_version,
        rewrapped_deks: answer.rewrapped_deks,
        pending_deks: answer.pending_deks,
    };
    if args.watch {
        status::watch(&client, &keyspace, global.output == Format::Table).await?;
        rotated.rewrapped_deks += std::mem::take(&mut rotated.pending_deks);
    }
    output::print(global.output, &rotated, describe)?;
    Ok(Exit::Done)
}

pub(super) fn describe(rotated: &Rotated) -> String {
    let Rotated { keyspace, purpose, old_version, new_version, rewrapped_deks, pending_deks } = rotated;
    let name = keyset(keyspace, purpose);
    let left = match pending_deks {
        0 => String::new(),
        left => format!(", {left} to go: keyfold key status {keyspace}"),
    };
    let moved = match keyspace.as_str() {
        "" => String::new(),
        _ => format!(", {rewrapped_deks} data keys rewrapped{left}"),
    };
    format!("{name}: key version {old_version} -> {new_version}{moved}\n")
}
