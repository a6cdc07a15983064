//! The rotation policy: the field `rotation` of a keyspace.

use std::time::Duration;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

pub use super::cron::{CronExpression, Zone};
use super::{Purpose, span};

#[cfg(test)]
mod tests;

const MINUTE: Duration = Duration::from_secs(60);

/// Short enough to try out, long enough for a key to reach every replica.
const INTERVAL_MIN: Duration = MINUTE;
/// Beyond it, a policy says nothing.
const SPAN_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// Spreads the load of many keyspaces; it is no schedule of its own.
const JITTER_MAX: Duration = Duration::from_secs(31 * 24 * 60 * 60);
/// Some time to call a destruction off.
const DESTROY_AFTER_MIN: Duration = Duration::from_secs(1);

/// Of keys that wrap DEKs; NIST SP 800-57 part 1, section 5.3.6 allows such keys up to two years.
const CRYPTOPERIOD: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// Of the installation's own keys, which are used far less.
const SYSTEM_CRYPTOPERIOD: Duration = Duration::from_secs(365 * 24 * 60 * 60);
const DESTROY_AFTER: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Of the installation's own keys but for the one that signs: who has an old database and one of them could forge rows,
/// or read an authority's key.
const SYSTEM_KEEP: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// When a key turns, and what becomes of those that it had before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RotationPolicy {
    /// Turns by the wall clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cron: Option<CronExpression>,
    /// Whose wall clock; UTC unless named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zone: Option<Zone>,
    /// Turns this long after the last turn.
    #[serde(default, with = "optional_span", skip_serializing_if = "Option::is_none")]
    every: Option<Duration>,
    /// Each run comes later by up to this, always the same for a keyset, so that not all turn at once.
    #[serde(default, with = "optional_span", skip_serializing_if = "Option::is_none")]
    jitter: Option<Duration>,
    #[serde(default, skip_serializing_if = "MissedRun::is_run_once")]
    missed_run: MissedRun,
    /// The age at which a key is overdue; with neither `cron` nor `every`, that at which it turns.
    #[serde(default, with = "optional_span", skip_serializing_if = "Option::is_none")]
    cryptoperiod: Option<Duration>,
    /// How long a deactivated key with nothing under it is kept before its destruction is scheduled; absent: until
    /// somebody commands it.
    #[serde(default, with = "optional_span", skip_serializing_if = "Option::is_none")]
    keep_deactivated: Option<Duration>,
    /// How long a destruction can still be called off.
    #[serde(default, with = "optional_span", skip_serializing_if = "Option::is_none")]
    destroy_after: Option<Duration>,
}

mod optional_span {
    pub(super) use crate::key::span::serialize;
    pub(super) use humantime_serde::deserialize;
}

/// What happens to runs that came while no server was up, or while the schedule was paused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MissedRun {
    /// One turn as soon as possible, however many were missed.
    #[default]
    RunOnce,
    /// None; the next run counts.
    Skip,
}

impl MissedRun {
    fn is_run_once(&self) -> bool {
        *self == Self::RunOnce
    }
}

/// Why a policy was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PolicyError(pub(super) String);

/// What sets the pace.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rhythm<'a> {
    /// The wall clock.
    Cron(&'a CronExpression, &'a TimeZone),
    /// The last turn.
    Every(Duration),
}

impl RotationPolicy {
    /// What holds where nothing is declared: for `data`, a turn every 90 days, and nothing is destroyed by itself; for the
    /// installation's own keys a turn once a year. Those of purpose `row-mac` and `internal-ca` are destroyed by themselves
    /// 37 days after that; the public keys of those that sign verify certificates for ever.
    pub fn default_of(purpose: Purpose) -> Self {
        let (cryptoperiod, keep_deactivated) = match purpose {
            Purpose::Data => (None, None),
            Purpose::AuditSign => (Some(SYSTEM_CRYPTOPERIOD), None),
            Purpose::RowMac | Purpose::InternalCa => (Some(SYSTEM_CRYPTOPERIOD), Some(SYSTEM_KEEP)),
        };
        Self { cryptoperiod, keep_deactivated, ..Self::default() }
    }

    /// The age at which a key is overdue. 90 days unless declared.
    pub fn cryptoperiod(&self) -> Duration {
        self.cryptoperiod.unwrap_or(CRYPTOPERIOD)
    }

    /// The longest that a run comes after its time. None unless declared.
    pub fn jitter(&self) -> Duration {
        self.jitter.unwrap_or_default()
    }

    /// What happens to missed runs.
    pub fn missed_run(&self) -> MissedRun {
        self.missed_run
    }

    /// How long a deactivated key with nothing under it is kept; absent: until somebody commands its destruction.
    pub fn keep_deactivated(&self) -> Option<Duration> {
        self.keep_deactivated
    }

    /// From destroy-scheduled to destroyed. 7 days unless declared.
    pub fn destroy_after(&self) -> Duration {
        self.destroy_after.unwrap_or(DESTROY_AFTER)
    }

    /// The schedule in words, such as `every 90d` or `cron "0 3 * * 1" in Europe/Berlin`.
    pub fn schedule_text(&self) -> String {
        match (&self.cron, &self.zone) {
            (Some(cron), zone) => {
                format!("cron {:?} in {}", cron.as_str(), zone.as_ref().map_or("UTC", Zone::name))
            }
            (None, _) => format!("every {}", span::text(self.interval())),
        }
    }

    pub(super) fn is_by_wall_clock(&self) -> bool {
        self.cron.is_some()
    }

    pub(super) fn rhythm(&self) -> Rhythm<'_> {
        const UTC: &TimeZone = &TimeZone::UTC;
        match &self.cron {
            Some(cron) => Rhythm::Cron(cron, self.zone.as_ref().map_or(UTC, Zone::time_zone)),
            None => Rhythm::Every(self.interval()),
        }
    }

    fn interval(&self) -> Duration {
        self.every.unwrap_or_else(|| self.cryptoperiod())
    }

    /// Checks what no single field can tell.
    ///
    /// # Errors
    /// Names the field, as a path below the policy.
    pub fn check(&self) -> Result<(), PolicyError> {
        let fail = |text: String| Err(PolicyError(text));
        if self.cron.is_some() && self.every.is_some() {
            return fail("every: name either cron or every, not both".into());
        }
        if self.zone.is_some() && self.cron.is_none() {
            return fail("zone: has a meaning only with cron".into());
        }
        for (field, span, min, max) in [
            ("every", self.every, INTERVAL_MIN, SPAN_MAX),
            ("cryptoperiod", self.cryptoperiod, INTERVAL_MIN, SPAN_MAX),
            ("jitter", self.jitter, Duration::ZERO, JITTER_MAX),
            ("keepDeactivated", self.keep_deactivated, Duration::ZERO, SPAN_MAX),
            ("destroyAfter", self.destroy_after, DESTROY_AFTER_MIN, SPAN_MAX),
        ] {
            if span.is_some_and(|span| span < min || span > max) {
                let (min, max) = (span::text(min), span::text(max));
                return fail(format!("{field}: must be at least {min}, and at most {max}"));
            }
        }
        if self.cron.is_none() && self.jitter() > self.interval() {
            return fail("jitter: must not be longer than the interval between two turns".into());
        }
        match self.every {
            Some(every) if every > self.cryptoperiod() => fail(format!(
                "every: is longer than the cryptoperiod of {}, so the key would be overdue before it turns: name a cryptoperiod that is at least as long",
                span::text(self.cryptoperiod())
            )),
            _ => Ok(()),
        }
    }
}
