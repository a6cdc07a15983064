//! `keyfold key schedule`, `pause` and `resume`.

use keyfold_proto::keyfold::v1::{
    GetRotationScheduleRequest, PauseRotationRequest, ResumeRotationRequest, RotationSchedule,
};
use serde::Serialize;

use super::{keyset, named};
use crate::{
    args::Global,
    client::Client,
    exit::{Exit, Failure},
    output,
};

/// Arguments of `key schedule`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "The policy is `rotation` of the keyspace: keyfold get keyspace payments -o yaml.\n\n\
    Example:\n  keyfold key schedule payments"
)]
pub struct Args {
    /// One keyspace; all of them, and the installation's own keys, without it
    keyspace: Option<String>,
    /// How many times to show of each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100), value_name = "N")]
    count: u32,
}

/// Which key.
#[derive(clap::Args, Debug)]
pub struct KeysetArgs {
    /// The keyspace
    #[arg(required_unless_present = "purpose")]
    keyspace: Option<String>,
    /// A key of the installation instead: row-mac, audit-sign or internal-ca
    #[arg(long, conflicts_with = "keyspace", value_name = "PURPOSE")]
    purpose: Option<String>,
}

impl KeysetArgs {
    /// Its keyspace, or none, and its purpose.
    ///
    /// # Errors
    /// For `--purpose data`, which needs a keyspace.
    pub(super) fn named(self) -> Result<(String, String), Failure> {
        match (self.keyspace, self.purpose) {
            (Some(keyspace), _) => Ok((keyspace, "data".into())),
            (None, Some(purpose)) if purpose != "data" => Ok((String::new(), purpose)),
            (None, _) => Err(Failure::usage("cannot tell which key is meant", "no keyspace is given")
                .advise("Name a keyspace, or --purpose row-mac, audit-sign or internal-ca")),
        }
    }
}

#[derive(Serialize)]
struct ScheduleView {
    keyspace: String,
    purpose: String,
    policy: String,
    next: Vec<String>,
    paused: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    paused_by: String,
    paused_at: Option<String>,
    last_run: Option<String>,
}

#[derive(Serialize)]
struct Changed {
    keyspace: String,
    purpose: String,
    paused: bool,
    changed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_rotation_at: Option<String>,
}

/// Shows when keys will be turned.
///
/// # Errors
/// When there is no such keyspace, or the server refuses.
pub async fn show(global: &Global, args: Args) -> Result<Exit, Failure> {
    let client = Client::operator(global)?;
    let keyspace = args.keyspace.unwrap_or_default();
    let request = GetRotationScheduleRequest { keyspace, count: args.count };
    let answer =
        client.call("cannot read the schedule", client.keys().get_rotation_schedule(request)).await?;
    let schedules: Vec<ScheduleView> = answer.schedules.into_iter().map(ScheduleView::from).collect();
    output::print(global.output, &schedules, |schedules| draw(schedules))?;
    Ok(Exit::Done)
}

/// Pauses a schedule.
///
/// # Errors
/// When there is no such key, or the server refuses.
pub async fn pause(global: &Global, args: KeysetArgs) -> Result<Exit, Failure> {
    let (keyspace, purpose) = args.named()?;
    let client = Client::operator(global)?;
    let what = format!("cannot pause the schedule of {}", keyset(&keyspace, &purpose));
    let request = PauseRotationRequest { keyspace: keyspace.clone(), purpose: purpose.clone() };
    let answer = client.call(&what, client.keys().pause_rotation(request)).await?;
    let changed =
        Changed { keyspace, purpose, paused: true, changed: answer.changed, next_rotation_at: None };
    output::print(global.output, &changed, describe)?;
    Ok(Exit::Done)
}

/// Lets a schedule go on.
///
/// # Errors
/// When there is no such key, or the server refuses.
pub async fn resume(global: &Global, args: KeysetArgs) -> Result<Exit, Failure> {
    let (keyspace, purpose) = args.named()?;
    let client = Client::operator(global)?;
    let what = format!("cannot resume the schedule of {}", keyset(&keyspace, &purpose));
    let request = ResumeRotationRequest { keyspace: keyspace.clone(), purpose: purpose.clone() };
    let answer = client.call(&what, client.keys().resume_rotation(request)).await?;
    let next_rotation_at = output::time(answer.next_rotation_at);
    let changed = Changed { keyspace, purpose, paused: false, changed: answer.changed, next_rotation_at };
    output::print(global.output, &changed, describe)?;
    Ok(Exit::Done)
}

fn describe(changed: &Changed) -> String {
    let name = keyset(&changed.keyspace, &changed.purpose);
    let next = match &changed.next_rotation_at {
        at @ Some(_) => format!(", next rotation {}", output::table_time(at)),
        None => String::new(),
    };
    match (changed.paused, changed.changed) {
        (true, true) => format!("{name}: schedule paused; keyfold key rotate still turns the key\n"),
        (true, false) => format!("{name}: schedule already paused\n"),
        (false, true) => format!("{name}: schedule resumed{next}\n"),
        (false, false) => format!("{name}: schedule was not paused{next}\n"),
    }
}

impl From<RotationSchedule> for ScheduleView {
    fn from(schedule: RotationSchedule) -> Self {
        Self {
            keyspace: schedule.keyspace,
            purpose: schedule.purpose,
            policy: schedule.policy,
            next: schedule.next.into_iter().filter_map(|at| output::time(Some(at))).collect(),
            paused: schedule.paused,
            paused_by: schedule.paused_by,
            paused_at: output::time(schedule.paused_at),
            last_run: output::time(schedule.last_run),
        }
    }
}

fn draw(schedules: &[ScheduleView]) -> String {
    let rows = schedules.iter().flat_map(|schedule| {
        let cells = |next: String| {
            [named(&schedule.keyspace), schedule.purpose.clone(), next, schedule.policy.clone()]
        };
        match schedule.paused {
            true => vec![cells(format!("paused by {}", schedule.paused_by))],
            false => schedule.next.iter().map(|at| cells(output::table_time(&Some(at.clone())))).collect(),
        }
    });
    output::table(["KEYSPACE", "PURPOSE", "NEXT ROTATION", "POLICY"], rows)
}
