//! What is known of an API server that did not answer, so that not every caller finds it out by waiting.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use time::OffsetDateTime;

/// How long an API server that did not answer is left alone. Long enough to keep its places free, short enough that
/// nobody notices when it is back.
const PAUSE: Duration = Duration::from_secs(1);

/// An outage, while there is one.
#[derive(Default)]
pub(super) struct Outage {
    noticed_at: Mutex<Option<OffsetDateTime>>,
    probe: tokio::sync::Mutex<()>,
}

/// May ask. During an outage one holder at a time has it, as the probe.
pub(super) struct Pass<'a> {
    probe: Option<tokio::sync::MutexGuard<'a, ()>>,
}

impl Pass<'_> {
    pub(super) fn is_probe(&self) -> bool {
        self.probe.is_some()
    }
}

impl Outage {
    /// None during an outage, for all but one probe after each pause.
    pub(super) fn admit(&self, now: OffsetDateTime) -> Option<Pass<'_>> {
        let Some(noticed_at) = *self.noticed_at() else { return Some(Pass { probe: None }) };
        if super::within(noticed_at, PAUSE, now) {
            return None;
        }
        let probe = self.probe.try_lock().ok()?;
        Some(Pass { probe: Some(probe) })
    }

    /// Nobody answered.
    pub(super) fn notice(&self, now: OffsetDateTime) {
        *self.noticed_at() = Some(now);
    }

    /// Somebody answered, whatever it was.
    pub(super) fn end(&self) {
        *self.noticed_at() = None;
    }

    fn noticed_at(&self) -> MutexGuard<'_, Option<OffsetDateTime>> {
        self.noticed_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-23 12:00 UTC);

    #[test]
    fn during_an_outage_one_probe_at_a_time_may_ask_after_each_pause() {
        let outage = Outage::default();
        assert!(outage.admit(NOW).is_some_and(|pass| !pass.is_probe()));
        outage.notice(NOW);
        assert!(outage.admit(NOW).is_none());
        assert!(outage.admit(NOW + PAUSE - Duration::from_millis(1)).is_none());

        let probe = outage.admit(NOW + PAUSE).expect("a probe");
        assert!(probe.is_probe());
        assert!(outage.admit(NOW + PAUSE).is_none(), "one at a time");
        drop(probe);
        assert!(outage.admit(NOW + PAUSE).is_some(), "one that was given up keeps nobody out");

        outage.notice(NOW + PAUSE);
        assert!(outage.admit(NOW + PAUSE).is_none(), "the pause begins anew");
        outage.end();
        assert!(outage.admit(NOW + PAUSE).is_some_and(|pass| !pass.is_probe()));
    }

    #[test]
    fn a_clock_that_went_back_ends_the_pause() {
        let outage = Outage::default();
        outage.notice(NOW);
        assert!(outage.admit(NOW - Duration::from_secs(60)).is_some());
    }
}
