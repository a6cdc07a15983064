//! What is to be done next for one keyset. A worker loads it, asks here, and does the steps, each in a transaction of
//! its own that looks once more whether the step is still right.

use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use super::{
    Purpose,
    policy::RotationPolicy,
    schedule::{Due, MISSED_AFTER, due, offset},
    span::{rough, signed, text},
    state::{KeyState, KeyVersion, Keyset, KeysetError},
};

#[cfg(test)]
mod tests;

/// A keyset as a worker has loaded it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeysetView {
    /// Its id, from which its offset in the schedule is derived.
    pub id: Uuid,
    /// What its keys are for.
    pub purpose: Purpose,
    /// What holds for it: of its keyspace, or [`RotationPolicy::default_of`] its purpose.
    pub policy: RotationPolicy,
    /// Since when that policy holds, such as since its object's last change: what a cron would have run before it was
    /// declared was not missed. Absent: always.
    pub policy_since: Option<OffsetDateTime>,
    /// Whether its schedule is paused. A turn that has begun is finished, a command is followed, and a destruction that
    /// is scheduled takes place.
    pub paused: bool,
    /// Whether somebody has commanded a turn that has not begun. Done with the pre-active key.
    pub rotate_requested: bool,
    /// All its versions, also those destroyed.
    pub keys: Vec<KeyView>,
    /// The last run that was run or passed over.
    pub last_scheduled_run: Option<OffsetDateTime>,
}

/// One version of a key as a worker has loaded it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyView {
    /// Counts up from 1.
    pub version: u32,
    /// Its state.
    pub state: KeyState,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When it began to wrap.
    pub activated_at: Option<OffsetDateTime>,
    /// When it ceased to.
    pub deactivated_at: Option<OffsetDateTime>,
    /// When it is to be destroyed, if that is scheduled.
    pub destroy_at: Option<OffsetDateTime>,
    /// How much is wrapped by it, of every kind.
    pub deks_wrapped: u64,
    /// How much of that is in quarantine.
    pub quarantined: u64,
    /// Of a pre-active key: whether all live replicas have acknowledged it.
    pub acknowledged: bool,
}

/// What is to be done, and how the keyset stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sweep {
    /// In this order; each stands for itself.
    pub steps: Vec<Step>,
    /// Whether the active key is older than its cryptoperiod and its offset allow, and no turn began in the last
    /// [`MISSED_AFTER`]; or the last turn or run lies in the future, so that none would come for as long: a clock was
    /// ahead and was put right.
    pub overdue: bool,
    /// When the schedule's next run comes, if none is due. A paused schedule has one too; it would be missed.
    pub next_run: Option<OffsetDateTime>,
}

/// One thing to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What.
    pub action: Action,
    /// Why, for people.
    pub reason: String,
}

/// What is to be done with a keyset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Make a key and hand it to the replicas.
    CreatePreActive {
        /// The new one.
        version: u32,
        /// The run that is done with this, to be stored as the last; none for a turn by command, which is done with.
        run: Option<OffsetDateTime>,
    },
    /// Let the pre-active key take the active one's place.
    Activate {
        /// The pre-active one.
        version: u32,
    },
    /// Set a day for a key's destruction.
    ScheduleDestruction {
        /// Which.
        version: u32,
        /// When.
        destroy_at: OffsetDateTime,
    },
    /// Prove that nothing is under a key, and remove its material.
    Destroy {
        /// Which.
        version: u32,
    },
    /// Store a missed run as the last, without a turn.
    SkipRun {
        /// The latest that was missed.
        run: OffsetDateTime,
    },
}

/// What is to be done with a keyset at this moment.
///
/// # Errors
/// When the rows are no keyset; nothing must be done with it then.
pub fn sweep(view: &KeysetView, now: OffsetDateTime) -> Result<Sweep, KeysetError> {
    let versions =
        view.keys.iter().map(|key| KeyVersion { version: key.version, state: key.state, restored: None });
    let keyset = Keyset::load(versions)?;
    let (turn, next_run) = turn(view, &keyset, now);
    let begins = matches!(turn, Some(Step { action: Action::CreatePreActive { .. }, .. }));
    let overdue = !begins && view.is_overdue(&keyset, now);
    let ends = view.keys.iter().filter_map(|key| end(view, key, now));
    Ok(Sweep { steps: turn.into_iter().chain(ends).collect(), overdue, next_run })
}

/// The one step that brings a turn on.
fn turn(view: &KeysetView, keyset: &Keyset, now: OffsetDateTime) -> (Option<Step>, Option<OffsetDateTime>) {
    let anchor = view.anchor(keyset);
    // An interval is an age, and a key that has it already when the policy is declared turns at once.
    let since = view.policy_since.filter(|_| view.policy.is_by_wall_clock());
    // A turn, however it came about, counts for the runs before it.
    let handled_until = [view.last_scheduled_run, since].into_iter().flatten().fold(anchor, Ord::max);
    let due = due(&view.policy, view.id, handled_until, anchor, now);
    let next_run = match due {
        Due::Later { next } => next,
        Due::Turn { .. } | Due::PassOver { .. } => None,
    };
    if let Some(version) = keyset.pre_active() {
        return (activate(view, version), next_run);
    }
    let version = keyset.next_version();
    let step = match due {
        _ if view.rotate_requested => {
            step(Action::CreatePreActive { version, run: None }, "a turn was commanded".into())
        }
        _ if view.paused => return (None, next_run),
        Due::Later { .. } => return (None, next_run),
        Due::Turn { run } => {
            step(Action::CreatePreActive { version, run: Some(run) }, run_reason(view, run, now))
        }
        Due::PassOver { run } => step(
            Action::SkipRun { run },
            format!("the run of {} was missed by {}, and missedRun is skip", shown(run), rough(now - run)),
        ),
    };
    (Some(step), next_run)
}

fn activate(view: &KeysetView, version: u32) -> Option<Step> {
    let key = view.keys.iter().find(|key| key.version == version)?;
    key.acknowledged
        .then(|| step(Action::Activate { version }, "every live replica has acknowledged it".into()))
}

fn run_reason(view: &KeysetView, run: OffsetDateTime, now: OffsetDateTime) -> String {
    let late = match now - run > MISSED_AFTER {
        true => format!(", missed by {} and made up for once", rough(now - run)),
        false => String::new(),
    };
    format!("its schedule ({}) had a run at {}{late}", view.policy.schedule_text(), shown(run))
}

/// The step that brings a key nearer to its end.
fn end(view: &KeysetView, key: &KeyView, now: OffsetDateTime) -> Option<Step> {
    if key.deks_wrapped > 0 || key.quarantined > 0 {
        return None;
    }
    let version = key.version;
    match key.state {
        KeyState::Deactivated | KeyState::Compromised if !view.paused => {
            let keep = view.policy.keep_deactivated()?;
            if key.deactivated_at?.saturating_add(signed(keep)) > now {
                return None;
            }
            let destroy_at = now.saturating_add(signed(view.policy.destroy_after()));
            let reason = format!("nothing is under it, and it was {} for {}", key.state, text(keep));
            Some(step(Action::ScheduleDestruction { version, destroy_at }, reason))
        }
        KeyState::DestroyScheduled if key.destroy_at? <= now => {
            Some(step(Action::Destroy { version }, "its destruction was scheduled for now".into()))
        }
        _ => None,
    }
}

fn shown(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}

fn step(action: Action, reason: String) -> Step {
    Step { action, reason }
}

impl KeysetView {
    /// The last turn, or the creation of a key that never turned.
    fn anchor(&self, keyset: &Keyset) -> OffsetDateTime {
        let active = self.keys.iter().find(|key| key.version == keyset.active());
        active.map_or(OffsetDateTime::UNIX_EPOCH, |key| key.activated_at.unwrap_or(key.created_at))
    }

    fn is_overdue(&self, keyset: &Keyset, now: OffsetDateTime) -> bool {
        let turn_began =
            |key: &KeyView| key.state == KeyState::PreActive && now - key.created_at <= MISSED_AFTER;
        let anchor = self.anchor(keyset);
        let is_ahead = |at: OffsetDateTime| at - now > MISSED_AFTER;
        is_ahead(anchor)
            || self.last_scheduled_run.is_some_and(is_ahead)
            || (now - anchor > self.age_max() && !self.keys.iter().any(turn_began))
    }

    fn age_max(&self) -> Duration {
        signed(self.policy.cryptoperiod()).saturating_add(offset(&self.policy, self.id))
    }
}
