//! `keyfold key status`, and the progress bar of a rewrap.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use keyfold_proto::keyfold::v1::{GetKeyStatusRequest, GetKeyStatusResponse, KeysetStatus, Replica};
use serde::Serialize;

use super::named;
use crate::{
    args::{Format, Global},
    client::Client,
    exit::{Exit, Failure},
    output,
};

const WHAT: &str = "cannot read the keys' status";

/// How often the progress is asked for.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// Arguments of `key status`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Exit code 3 when there is no such keyspace.\n\nExample:\n  keyfold key status payments -o json"
)]
pub struct Args {
    /// One keyspace; all of them, and the installation's own keys, without it
    keyspace: Option<String>,
    /// Show the progress of the keyspace's rewrap until it is done
    #[arg(long, requires = "keyspace")]
    watch: bool,
}

#[derive(Serialize)]
struct View {
    keysets: Vec<KeysetView>,
    replicas: Vec<ReplicaView>,
}

#[derive(Serialize)]
struct KeysetView {
    keyspace: String,
    purpose: String,
    active_version: u32,
    #[serde(skip_serializing_if = "is_zero")]
    pre_active_version: u32,
    deks_done: u64,
    deks_pending: u64,
    reencryptions_pending: u64,
    quarantined: u64,
    deks_per_second: f64,
    seconds_left: Option<f64>,
    paused: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    paused_by: String,
    active_since: Option<String>,
    next_rotation_at: Option<String>,
    overdue: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    waiting_for: String,
}

#[derive(Serialize)]
struct ReplicaView {
    id: String,
    name: String,
    version: String,
    heartbeat_at: Option<String>,
    holds_newest_keys: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    failure: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// Shows the status.
///
/// # Errors
/// When there is no such keyspace, or the server refuses.
pub async fn run(global: &Global, args: Args) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    let keyspace = args.keyspace.unwrap_or_default();
    if args.watch {
        watch(&client, &keyspace, global.output == Format::Table).await?;
    }
    let view = View::from(fetch(&client, &keyspace).await?);
    output::print(global.output, &view, draw)?;
    Ok(Exit::Done)
}

async fn fetch(client: &Client, keyspace: &str) -> Result<GetKeyStatusResponse, Failure> {
    let request = GetKeyStatusRequest { keyspace: keyspace.to_owned() };
    let answer = client.call(WHAT, client.keys().get_key_status(request)).await?;
    if answer.keysets.is_empty() && !keyspace.is_empty() {
        return Err(Failure::new(Exit::NotFound, WHAT, format!("there is no keyspace {keyspace}")));
    }
    Ok(answer)
}

/// The version of a keyspace's key that is active.
///
/// # Errors
/// When there is no such keyspace, or the server refuses; says that `what` failed.
pub(super) async fn active_version(client: &Client, keyspace: &str, what: &str) -> Result<u32, Failure> {
    let request = GetKeyStatusRequest { keyspace: keyspace.to_owned() };
    let answer = client.call(what, client.keys().get_key_status(request)).await?;
    let missing = || Failure::new(Exit::NotFound, what, format!("there is no keyspace {keyspace}"));
    Ok(answer.keysets.first().ok_or_else(missing)?.active_version)
}

/// Follows a keyspace until nothing is left to move or encrypt anew.
///
/// # Errors
/// When the server refuses, or a turn cannot go on.
pub(super) async fn watch(client: &Client, keyspace: &str, is_for_people: bool) -> Result<(), Failure> {
    let bar = bar(is_for_people);
    loop {
        let status = fetch(client, keyspace).await?;
        let Some(keyset) = status.keysets.into_iter().next() else { return Ok(()) };
        let pending = keyset.deks_pending + keyset.reencryptions_pending;
        bar.set_length(keyset.deks_done + pending);
        bar.set_position(keyset.deks_done);
        bar.set_message(message(&keyset));
        if pending == 0 && keyset.pre_active_version == 0 {
            bar.finish_and_clear();
            if keyset.quarantined > 0 {
                output::note(&format!(
                    "warning: {} data keys are in quarantine: see keyfold key quarantine {keyspace}",
                    keyset.quarantined
                ));
            }
            return Ok(());
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// On standard error, and only where somebody looks at it.
fn bar(is_for_people: bool) -> ProgressBar {
    let target = match is_for_people && io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let style = ProgressStyle::with_template("[{bar:32}] {human_pos}/{human_len} data keys  {msg}");
    let bar = ProgressBar::with_draw_target(None, target);
    match style {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

fn message(keyset: &KeysetStatus) -> String {
    if !keyset.waiting_for.is_empty() {
        return format!("waiting for {}", crate::terminal::one_line(&keyset.waiting_for));
    }
    match keyset.seconds_left {
        Some(left) => format!("{:.0}/s, {} left", keyset.deks_per_second, in_words(left)),
        None => String::new(),
    }
}

fn in_words(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds.ceil()).unwrap_or(Duration::ZERO);
    humantime::format_duration(whole).to_string()
}

impl From<GetKeyStatusResponse> for View {
    fn from(answer: GetKeyStatusResponse) -> Self {
        Self {
            keysets: answer.keysets.into_iter().map(KeysetView::from).collect(),
            replicas: answer.replicas.into_iter().map(ReplicaView::from).collect(),
        }
    }
}

impl From<KeysetStatus> for KeysetView {
    fn from(keyset: KeysetStatus) -> Self {
        Self {
            keyspace: keyset.keyspace,
            purpose: keyset.purpose,
            active_version: keyset.active_version,
            pre_active_version: keyset.pre_active_version,
            deks_done: keyset.deks_done,
            deks_pending: keyset.deks_pending,
            reencryptions_pending: keyset.reencryptions_pending,
            quarantined: keyset.quarantined,
            deks_per_second: keyset.deks_per_second,
            seconds_left: keyset.seconds_left,
            paused: keyset.paused,
            paused_by: keyset.paused_by,
            active_since: output::time(keyset.active_since),
            next_rotation_at: output::time(keyset.next_rotation_at),
            overdue: keyset.overdue,
            waiting_for: keyset.waiting_for,
        }
    }
}

impl From<Replica> for ReplicaView {
    fn from(replica: Replica) -> Self {
        Self {
            id: replica.id,
            name: replica.name,
            version: replica.version,
            heartbeat_at: output::time(replica.heartbeat_at),
            holds_newest_keys: replica.holds_newest_keys,
            failure: replica.failure,
        }
    }
}

fn draw(view: &View) -> String {
    let keysets = view.keysets.iter().map(|keyset| {
        let pending = keyset.deks_pending + keyset.reencryptions_pending;
        let left = keyset.seconds_left.map_or_else(|| "-".to_owned(), in_words);
        [
            named(&keyset.keyspace),
            keyset.purpose.clone(),
            keyset.active_version.to_string(),
            keyset.deks_done.to_string(),
            pending.to_string(),
            left,
            keyset.quarantined.to_string(),
            output::table_time(&keyset.next_rotation_at),
            remark(keyset),
        ]
    });
    let header = [
        "KEYSPACE",
        "PURPOSE",
        "ACTIVE",
        "DONE",
        "PENDING",
        "LEFT",
        "QUARANTINED",
        "NEXT ROTATION",
        "REMARK",
    ];
    let replicas = view.replicas.iter().map(|replica| {
        let keys = match (replica.holds_newest_keys, replica.failure.as_str()) {
            (true, "") => "newest".to_owned(),
            (false, "") => "behind".to_owned(),
            (_, failure) => failure.to_owned(),
        };
        [replica.name.clone(), replica.version.clone(), output::table_time(&replica.heartbeat_at), keys]
    });
    output::table(header, keysets)
        + "\n"
        + &output::table(["REPLICA", "VERSION", "HEARTBEAT", "KEYS"], replicas)
}

fn remark(keyset: &KeysetView) -> String {
    let mut remarks = Vec::new();
    if keyset.pre_active_version > 0 {
        remarks.push(format!("version {} is being handed out", keyset.pre_active_version));
    }
    if !keyset.waiting_for.is_empty() {
        remarks.push(format!("waits for {}", keyset.waiting_for));
    }
    if keyset.paused {
        remarks.push(format!("paused by {}", keyset.paused_by));
    }
    if keyset.overdue {
        remarks.push("overdue".into());
    }
    if remarks.is_empty() { "-".into() } else { remarks.join("; ") }
}
