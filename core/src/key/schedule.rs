//! When a keyset's runs come, and whether one is due.
//!
//! A run is an occurrence of the policy's rhythm and the keyset's stable offset together; all points in time here and in
//! what is stored are those of runs.

use ring::digest::{SHA256, digest};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::{
    policy::{MissedRun, Rhythm, RotationPolicy},
    span::signed,
};
use crate::encoder::Encoder;

#[cfg(test)]
mod tests;

/// A run that is noticed later than this counts as missed: far longer than a worker takes to look again, or a server
/// to start.
pub const MISSED_AFTER: Duration = Duration::minutes(5);

/// The next runs after `after`, at most `count`. With an interval they are counted from `anchor`: the last turn, or
/// the key's creation.
pub fn next_runs(
    policy: &RotationPolicy,
    keyset: Uuid,
    after: OffsetDateTime,
    anchor: OffsetDateTime,
    count: usize,
) -> Vec<OffsetDateTime> {
    let schedule = Schedule::new(policy, keyset, anchor);
    let first = schedule.next_after(after);
    std::iter::successors(first, |run| schedule.next_after(*run)).take(count).collect()
}

/// Whether a run is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Not yet.
    Later {
        /// When; none while points in time last.
        next: Option<OffsetDateTime>,
    },
    /// The key is to turn now.
    Turn {
        /// The latest run that has come: it and all before it are done with this turn.
        run: OffsetDateTime,
    },
    /// Runs were missed, and the policy leaves them out.
    PassOver {
        /// The latest of them.
        run: OffsetDateTime,
    },
}

/// Whether a run is due `now`, where all runs up to `handled_until` were run or passed over. When the clock has gone
/// back behind that, nothing is.
pub fn due(
    policy: &RotationPolicy,
    keyset: Uuid,
    handled_until: OffsetDateTime,
    anchor: OffsetDateTime,
    now: OffsetDateTime,
) -> Due {
    let schedule = Schedule::new(policy, keyset, anchor);
    let next = schedule.next_after(handled_until);
    let Some(first) = next.filter(|next| *next <= now) else { return Due::Later { next } };
    let run = schedule.latest_until(now).unwrap_or(first);
    let missed = now - run > MISSED_AFTER;
    match policy.missed_run() {
        MissedRun::Skip if missed => Due::PassOver { run },
        MissedRun::Skip | MissedRun::RunOnce => Due::Turn { run },
    }
}

/// By how much each run of a keyset comes later: at least nothing and less than the policy's jitter, in whole seconds.
/// Always the same for a keyset, and unrelated between two.
pub(super) fn offset(policy: &RotationPolicy, keyset: Uuid) -> Duration {
    let encoded = Encoder::new("keyfold/v1/jitter").uuid(keyset).finish();
    let hash = digest(&SHA256, &encoded);
    let mut fraction = [0; 8];
    fraction.copy_from_slice(&hash.as_ref()[..8]);
    let jitter_secs = u128::from(policy.jitter().as_secs());
    let secs = (u128::from(u64::from_be_bytes(fraction)) * jitter_secs) >> 64;
    Duration::seconds(i64::try_from(secs).unwrap_or(0))
}

struct Schedule<'a> {
    rhythm: Rhythm<'a>,
    offset: Duration,
    anchor: OffsetDateTime,
}

impl<'a> Schedule<'a> {
    fn new(policy: &'a RotationPolicy, keyset: Uuid, anchor: OffsetDateTime) -> Self {
        Self { rhythm: policy.rhythm(), offset: offset(policy, keyset), anchor }
    }

    fn next_after(&self, after: OffsetDateTime) -> Option<OffsetDateTime> {
        match self.rhythm {
            Rhythm::Cron(cron, zone) => {
                cron.next_after(zone, after.checked_sub(self.offset)?)?.checked_add(self.offset)
            }
            Rhythm::Every(interval) => {
                let period = self.period(interval);
                let elapsed = after - self.anchor;
                match elapsed.is_negative() {
                    true => self.anchor.checked_add(period),
                    false => after.checked_add(period - remainder(elapsed, period)),
                }
            }
        }
    }

    fn latest_until(&self, until: OffsetDateTime) -> Option<OffsetDateTime> {
        match self.rhythm {
            Rhythm::Cron(cron, zone) => {
                cron.latest_until(zone, until.checked_sub(self.offset)?)?.checked_add(self.offset)
            }
            Rhythm::Every(interval) => {
                let period = self.period(interval);
                let elapsed = until - self.anchor;
                (elapsed >= period).then(|| until - remainder(elapsed, period))
            }
        }
    }

    /// With an interval, the offset makes each a little longer: a key turns when it is that old.
    fn period(&self, interval: std::time::Duration) -> Duration {
        signed(interval) + self.offset
    }
}

/// What is left of `elapsed` after whole periods. Periods are at most some ten years, so that nanoseconds fit.
fn remainder(elapsed: Duration, period: Duration) -> Duration {
    let rest = elapsed.whole_nanoseconds() % period.whole_nanoseconds();
    Duration::nanoseconds(i64::try_from(rest).unwrap_or(0))
}
