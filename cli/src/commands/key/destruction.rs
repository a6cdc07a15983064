//! `keyfold key destroy` and `cancel-destroy`.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use keyfold_proto::keyfold::v1::{CancelKeyDestructionRequest, ScheduleKeyDestructionRequest};
use serde::Serialize;

use super::{keyset, rotate::is_data, schedule::KeysetArgs};
use crate::{
    args::Global,
    client::Client,
    commands::secret::versions::confirm,
    exit::{Exit, Failure},
    output,
};

/// Arguments of `key destroy`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Possible once nothing needs the key. From then on it opens nothing; after the delay its \
    material is removed, and a signed certificate says so. A version that was never in use goes at once, such as one \
    that no server can open. Keys of purpose audit-sign that have signed are kept.\n\n\
    Examples:\n  keyfold key destroy payments --key-version 1 --after 7d\n  \
    keyfold key destroy --purpose row-mac --key-version 1"
)]
pub struct DestroyArgs {
    #[command(flatten)]
    keyset: KeysetArgs,
    /// The version
    #[arg(long = "key-version", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    version: u32,
    /// How long it can be cancelled, such as 7d; without it what the key's policy says. An approval rule wants it named
    #[arg(long, value_parser = crate::args::duration, value_name = "TIME")]
    after: Option<Duration>,
    /// Do not ask first
    #[arg(long)]
    yes: bool,
}

/// Arguments of `key cancel-destroy`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  keyfold key cancel-destroy payments --key-version 1")]
pub struct CancelArgs {
    #[command(flatten)]
    keyset: KeysetArgs,
    /// The version
    #[arg(long = "key-version", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    version: u32,
}

#[derive(Serialize)]
struct Scheduled {
    keyspace: String,
    #[serde(skip_serializing_if = "is_data")]
    purpose: String,
    version: u32,
    destroy_at: Option<String>,
    does_not_reach: String,
}

#[derive(Serialize)]
struct Cancelled {
    keyspace: String,
    #[serde(skip_serializing_if = "is_data")]
    purpose: String,
    version: u32,
    state: String,
}

/// Has a key destroyed later, once someone said yes.
///
/// # Errors
/// When nobody said yes, the key is still needed, or the server refuses.
pub async fn destroy(global: &Global, args: DestroyArgs) -> Result<Exit, Failure> {
    let DestroyArgs { keyset: wanted, version, after, yes } = args;
    let (keyspace, purpose) = wanted.named()?;
    let client = Client::operator(global)?;
    let what = format!("cannot have key version {version} of {} destroyed", named(&keyspace, &purpose));
    if !yes {
        let question = format!("Destroy key version {version} of {}?", keyset(&keyspace, &purpose));
        confirm(&what, &question, io::stdin().is_terminal(), &mut io::stdin().lock())?;
    }
    let delay_seconds = after.map(|after| after.as_secs());
    let request = ScheduleKeyDestructionRequest {
        keyspace: keyspace.clone(),
        version,
        delay_seconds,
        purpose: purpose.clone(),
    };
    let answer = client.call(&what, client.keys().schedule_key_destruction(request)).await?;
    let scheduled = Scheduled {
        keyspace,
        purpose,
        version,
        destroy_at: output::time(answer.destroy_at),
        does_not_reach: answer.does_not_reach,
    };
    output::print(global.output, &scheduled, |done| {
        format!(
            "{key}: key version {version} opens nothing any more and is destroyed at {at}\n\
             Until then: keyfold key cancel-destroy {argument} --key-version {version}\n\
             Not reached by it: {horizon}\n",
            key = keyset(&done.keyspace, &done.purpose),
            argument = match done.keyspace.as_str() {
                "" => format!("--purpose {}", done.purpose),
                keyspace => keyspace.to_owned(),
            },
            version = done.version,
            at = output::table_time(&done.destroy_at),
            horizon = done.does_not_reach,
        )
    })?;
    Ok(Exit::Done)
}

/// Cancels a destruction.
///
/// # Errors
/// When none is scheduled, or the server refuses.
pub async fn cancel(global: &Global, args: CancelArgs) -> Result<Exit, Failure> {
    let CancelArgs { keyset: wanted, version } = args;
    let (keyspace, purpose) = wanted.named()?;
    let client = Client::operator(global)?;
    let key = named(&keyspace, &purpose);
    let what = format!("cannot cancel the destruction of key version {version} of {key}");
    let request =
        CancelKeyDestructionRequest { keyspace: keyspace.clone(), version, purpose: purpose.clone() };
    let answer = client.call(&what, client.keys().cancel_key_destruction(request)).await?;
    let cancelled = Cancelled { keyspace, purpose, version, state: answer.state };
    output::print(global.output, &cancelled, |done| {
        let key = keyset(&done.keyspace, &done.purpose);
        format!("{key}: key version {} is {} again\n", done.version, done.state)
    })?;
    Ok(Exit::Done)
}

fn named(keyspace: &str, purpose: &str) -> String {
    match keyspace {
        "" => keyset("", purpose),
        keyspace => format!("keyspace {keyspace}"),
    }
}
