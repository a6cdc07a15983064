//! How fast DEKs are moved: never faster than configured, and slower while that makes pods wait for their secrets.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Issues that took longer than this many times what they take in quiet times are slowed by the rewrap. The mean: the
/// slowest hundredth, which is to stay below twice its quiet value, rises faster.
const SLOWED_FACTOR: f64 = 1.25;
/// An issue takes at least this long, as far as is cared: what is below cannot be told from chance.
const QUIET_MIN: Duration = Duration::from_millis(1);
/// Quiet times begin this long after the last batch, which is longer than any pause: issues between two batches still wait
/// for what the first one left behind, and if they counted, what a rewrap makes of them would soon pass for quiet.
const QUIET_AFTER: Duration = Duration::from_secs(1);
/// Without an issue for this long, nobody waits.
const RECENT_MAX: Duration = Duration::from_secs(1);
/// While somebody waits, a pause has so many times the time of the batch before it: a processor that is busy for half of the time
/// makes others wait even where most of them find it free.
const PAUSE_FACTOR: u32 = 4;
/// The first pause between two batches, once issues are slowed.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// The longest: a rewrap never stops fully.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// Weight of the newest issue in the mean of the present, and in that of quiet times. One slow issue among fifty is chance.
const NOW_WEIGHT: f64 = 0.02;
const QUIET_WEIGHT: f64 = 0.005;

/// Most rows of one batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowsMax {
    /// While nobody waits: enough to share a commit, few enough to hold row locks only for a moment.
    pub(crate) alone: i64,
    /// While pods wait for their secrets, who lose a processor to it for as long: some milliseconds.
    pub(crate) shared: i64,
}

/// Tells workers when to go on, and how far.
pub(crate) struct Pace {
    /// DEKs a second; absent: as many as can be.
    per_second: Option<f64>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    issues: Issues,
    /// Batches in work.
    batches: u32,
    /// When the last one that moved something ended.
    batch_at: Option<Instant>,
    pause: Duration,
    /// When the rate allows the next batch.
    next_at: Option<Instant>,
    /// When it may begin.
    ready_at: Option<Instant>,
}

/// How long issues take.
#[derive(Default)]
struct Issues {
    in_work: u32,
    last_at: Option<Instant>,
    /// Weighted means in seconds.
    now_secs: Option<f64>,
    quiet_secs: Option<f64>,
}

impl Pace {
    /// At most that many DEKs a second; 0: as many as can be.
    pub(crate) fn new(per_second: u32) -> Self {
        Self { per_second: (per_second > 0).then(|| per_second.into()), state: Mutex::default() }
    }

    /// Measures one issue until what is returned is dropped.
    pub(crate) fn issue(&self) -> IssueInWork<'_> {
        self.locked().issues.in_work += 1;
        IssueInWork { pace: self, start: Instant::now() }
    }

    /// Waits until the next batch may begin, and marks it as in work until what is returned is dropped.
    pub(crate) async fn batch(&self, rows_max: RowsMax) -> BatchInWork<'_> {
        let ready_at = self.locked().ready_at;
        if let Some(ready_at) = ready_at {
            tokio::time::sleep_until(ready_at).await;
        }
        let start = Instant::now();
        let mut state = self.locked();
        state.batches += 1;
        let rows_max = match state.issues.are_slowed(start) {
            None => rows_max.alone,
            Some(_) => rows_max.shared,
        };
        BatchInWork { pace: self, start, rows_max }
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// When the next batch may begin, after one that took so long. While somebody waits, most of the time is theirs.
    fn after(&mut self, deks: u64, took: Duration, per_second: Option<f64>, now: Instant) -> Instant {
        let theirs = took * PAUSE_FACTOR;
        self.pause = match self.issues.are_slowed(now) {
            Some(true) => (self.pause * 2).max(theirs).clamp(PAUSE_MIN, PAUSE_MAX),
            Some(false) => (self.pause / 2).max(theirs).min(PAUSE_MAX),
            None => Duration::ZERO,
        };
        let allowed = per_second.map(|rate| {
            #[allow(clippy::cast_precision_loss, reason = "a batch has some hundred DEKs")]
            let takes = Duration::from_secs_f64(deks as f64 / rate);
            let unused = now - takes;
            self.next_at.unwrap_or(unused).max(unused) + takes
        });
        self.next_at = allowed;
        allowed.unwrap_or(now).max(now + self.pause)
    }
}

impl Issues {
    /// Whether issues take longer than in quiet times; `None` when there are none.
    fn are_slowed(&self, now: Instant) -> Option<bool> {
        let is_recent = self.last_at.is_some_and(|at| now - at <= RECENT_MAX);
        if self.in_work == 0 && !is_recent {
            return None;
        }
        let floor = QUIET_MIN.as_secs_f64();
        let quiet = self.quiet_secs.unwrap_or(floor).max(floor);
        Some(self.now_secs.is_some_and(|present| present > quiet * SLOWED_FACTOR))
    }

    fn note(&mut self, took: Duration, is_quiet: bool, now: Instant) {
        self.last_at = Some(now);
        self.now_secs = Some(mean(self.now_secs, took, NOW_WEIGHT));
        if is_quiet {
            self.quiet_secs = Some(mean(self.quiet_secs, took, QUIET_WEIGHT));
        }
    }
}

fn mean(before: Option<f64>, took: Duration, weight: f64) -> f64 {
    let took = took.as_secs_f64();
    before.map_or(took, |before| before + (took - before) * weight)
}

/// An issue that is being worked on.
pub(crate) struct IssueInWork<'a> {
    pace: &'a Pace,
    start: Instant,
}

impl Drop for IssueInWork<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.pace.locked();
        let is_quiet =
            state.batches == 0 && state.batch_at.is_none_or(|ended| self.start - ended > QUIET_AFTER);
        state.issues.in_work -= 1;
        state.issues.note(now - self.start, is_quiet, now);
    }
}

/// A batch that is being worked on.
pub(crate) struct BatchInWork<'a> {
    pace: &'a Pace,
    start: Instant,
    rows_max: i64,
}

impl BatchInWork<'_> {
    /// How many rows it may have.
    pub(crate) fn rows_max(&self) -> i64 {
        self.rows_max
    }

    /// Notes how many DEKs it moved, which says when the next may begin.
    pub(crate) fn done(self, deks: u64) {
        let (now, mut state) = (Instant::now(), self.pace.locked());
        let took = now - self.start;
        if deks > 0 {
            state.batch_at = Some(now);
        }
        state.ready_at = Some(state.after(deks, took, self.pace.per_second, now));
    }
}

impl Drop for BatchInWork<'_> {
    fn drop(&mut self) {
        self.pace.locked().batches -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);
    const ROWS: RowsMax = RowsMax { alone: 500, shared: 50 };

    fn with_issues(quiet: Duration, present: Duration, now: Instant) -> State {
        let mut state = State::default();
        for _ in 0..200 {
            state.issues.note(quiet, true, now);
        }
        for _ in 0..200 {
            state.issues.note(present, false, now);
        }
        state
    }

    #[test]
    fn without_issues_only_the_rate_bounds_a_rewrap() {
        let now = Instant::now();
        let mut unbounded = State::default();
        assert_eq!(unbounded.after(500, Duration::ZERO, None, now), now);
        let mut bounded = State::default();
        // A batch that took no time at all is followed by the time that it may take.
        let first = bounded.after(500, Duration::ZERO, Some(1000.0), now);
        assert_eq!(first - now, Duration::ZERO, "what was not used before the first batch counts for it");
        let second = bounded.after(500, Duration::ZERO, Some(1000.0), now);
        assert_eq!(second - now, 500 * MILLI);
        let third = bounded.after(500, Duration::ZERO, Some(1000.0), second);
        assert_eq!(third - now, 1000 * MILLI);
    }

    #[test]
    fn time_that_was_not_used_is_not_saved_up() {
        let now = Instant::now();
        let mut state = State::default();
        state.after(500, Duration::ZERO, Some(1000.0), now);
        let later = now + Duration::from_secs(3600);
        assert_eq!(state.after(500, Duration::ZERO, Some(1000.0), later), later);
        assert_eq!(state.after(500, Duration::ZERO, Some(1000.0), later) - later, 500 * MILLI);
    }

    #[test]
    fn issues_that_are_slowed_double_the_pause_up_to_a_bound_and_quiet_ones_halve_it() {
        let now = Instant::now();
        let mut state = with_issues(4 * MILLI, 40 * MILLI, now);
        let pauses: Vec<_> = (0..9).map(|_| state.after(500, Duration::ZERO, None, now) - now).collect();
        assert_eq!(pauses[..3], [5 * MILLI, 10 * MILLI, 20 * MILLI]);
        assert_eq!(pauses[8], PAUSE_MAX, "it never stops fully");
        let mut calm = State { pause: PAUSE_MAX, ..with_issues(4 * MILLI, 5 * MILLI, now) };
        assert_eq!(calm.after(500, Duration::ZERO, None, now) - now, PAUSE_MAX / 2);
        calm.pause = Duration::ZERO;
        assert_eq!(calm.after(500, 7 * MILLI, None, now) - now, 28 * MILLI, "most of the time is theirs");
    }

    #[test]
    fn issues_of_long_ago_slow_nothing() {
        let then = Instant::now();
        let mut state = with_issues(4 * MILLI, 40 * MILLI, then);
        let now = then + 2 * RECENT_MAX;
        assert_eq!(state.after(500, Duration::ZERO, None, now), now);
        state.issues.in_work = 1;
        assert!(state.after(500, Duration::ZERO, None, now) > now, "one that is still in work counts");
    }

    #[tokio::test(start_paused = true)]
    async fn while_somebody_waits_a_batch_is_small() {
        let pace = Pace::new(0);
        assert_eq!(pace.batch(ROWS).await.rows_max(), 500);
        let _issue = pace.issue();
        assert_eq!(pace.batch(ROWS).await.rows_max(), 50);
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_batch_waits_and_not_the_one_that_is_done() {
        let (pace, start) = (Pace::new(1000), Instant::now());
        for _ in 0..3 {
            pace.batch(ROWS).await.done(500);
        }
        assert_eq!(Instant::now() - start, 500 * MILLI, "the first counts for the time before it");
        pace.batch(ROWS).await.done(0);
        assert_eq!(Instant::now() - start, 1000 * MILLI);
        assert_eq!(pace.locked().batches, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_issues_take_while_deks_are_moved_is_not_taken_for_quiet() {
        let pace = Pace::new(0);
        drop(pace.issue());
        let quiet = pace.locked().issues.quiet_secs;
        assert!(quiet.is_some());
        let issue_of = async |took| {
            let _issue = pace.issue();
            tokio::time::advance(took).await;
        };
        let batch = pace.batch(ROWS).await;
        issue_of(MILLI).await;
        batch.done(1);
        tokio::time::advance(PAUSE_MAX).await;
        issue_of(MILLI).await;
        assert_eq!(pace.locked().issues.quiet_secs, quiet, "between two batches nothing is quiet");
        tokio::time::advance(QUIET_AFTER).await;
        issue_of(MILLI).await;
        assert_ne!(pace.locked().issues.quiet_secs, quiet);
        assert_eq!(pace.locked().issues.in_work, 0);
    }
}
