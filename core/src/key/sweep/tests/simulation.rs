//! Years in memory: a store that does each step as the real one must, on a clock that the test moves.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::key::schedule::next_runs;

/// What a worker and Postgres do between them. Each step goes through a [`Keyset`], which refuses what is not legal.
struct World {
    view: KeysetView,
    /// When turns began, by the server's clock.
    turns: Vec<OffsetDateTime>,
    runs: Vec<OffsetDateTime>,
    destroyed: BTreeSet<u32>,
}

impl World {
    fn new(rotation: &str, id: u128) -> Self {
        let mut first = key(1, KeyState::Active);
        first.deks_wrapped = 10;
        let view = KeysetView { id: Uuid::from_u128(id), ..view(rotation, &[first]) };
        Self { view, turns: Vec::new(), runs: Vec::new(), destroyed: BTreeSet::new() }
    }

    /// One round of a worker. New keys are acknowledged by the next round.
    fn round(&mut self, now: OffsetDateTime) {
        for step in sweep(&self.view, now).unwrap().steps {
            self.act(step.action, now);
            self.check(now);
        }
    }

    /// Rounds until nothing is left to do, with all replicas quick and all rewraps done at once.
    fn settle(&mut self, now: OffsetDateTime) {
        for _ in 0..8 {
            if sweep(&self.view, now).unwrap().steps.is_empty() {
                return;
            }
            self.round(now);
            self.acknowledge();
            self.rewrap(u64::MAX);
        }
        panic!("a worker comes to no end at {now}: {:?}", sweep(&self.view, now));
    }

    fn act(&mut self, action: Action, now: OffsetDateTime) {
        let mut keyset = self.keyset();
        match action {
            Action::CreatePreActive { version, run } => {
                assert_eq!(keyset.create(), Ok(version));
                self.view.keys.push(KeyView { created_at: now, ..key(version, KeyState::PreActive) });
                self.turns.push(now);
                match run {
                    Some(run) => self.handle(run, now),
                    None => assert!(std::mem::take(&mut self.view.rotate_requested)),
                }
            }
            Action::Activate { version } => {
                assert!(self.key(version).acknowledged);
                let old = keyset.active();
                keyset.activate(version).unwrap();
                self.key(old).deactivated_at = Some(now);
                self.key(version).activated_at = Some(now);
            }
            Action::ScheduleDestruction { version, destroy_at } => {
                keyset.schedule_destruction(version).unwrap();
                assert!(destroy_at > now);
                self.key(version).destroy_at = Some(destroy_at);
            }
            Action::Destroy { version } => {
                let key = self.key(version);
                assert!(key.destroy_at.unwrap() <= now && key.deks_wrapped + key.quarantined == 0);
                keyset.destroy(version).unwrap();
                assert!(self.destroyed.insert(version), "destroyed twice");
            }
            Action::SkipRun { run } => self.handle(run, now),
        }
        for state in keyset.versions() {
            self.key(state.version).state = state.state;
        }
    }

    /// Each run is run or passed over once, and none before its time, whatever the clock does.
    fn handle(&mut self, run: OffsetDateTime, now: OffsetDateTime) {
        assert!(run <= now && !self.view.paused);
        assert!(self.view.last_scheduled_run.is_none_or(|last| run > last), "{run} a second time");
        self.view.last_scheduled_run = Some(run);
        self.runs.push(run);
    }

    fn check(&mut self, now: OffsetDateTime) {
        let keyset = self.keyset();
        assert!(keyset.state(keyset.active()).unwrap().wraps());
        for version in &self.destroyed {
            assert_eq!(keyset.state(*version), Some(KeyState::Destroyed), "{version} is back at {now}");
        }
        for key in &self.view.keys {
            assert!(
                key.state.unwraps_for_rewrap() || key.deks_wrapped == 0,
                "{key:?} keeps what nobody can open"
            );
        }
    }

    fn keyset(&self) -> Keyset {
        let version = |key: &KeyView| KeyVersion { version: key.version, state: key.state, restored: None };
        Keyset::load(self.view.keys.iter().map(version)).unwrap()
    }

    fn key(&mut self, version: u32) -> &mut KeyView {
        self.view.keys.iter_mut().find(|key| key.version == version).unwrap()
    }

    fn acknowledge(&mut self) {
        for key in &mut self.view.keys {
            key.acknowledged |= key.state == KeyState::PreActive;
        }
    }

    /// Moves up to so many DEKs of each old key to the active one.
    fn rewrap(&mut self, most: u64) {
        let active = self.keyset().active();
        let mut moved = 0;
        for key in self.view.keys.iter_mut().filter(|key| key.version != active) {
            let step = key.deks_wrapped.min(most);
            key.deks_wrapped -= step;
            moved += step;
        }
        self.key(active).deks_wrapped += moved;
    }
}

/// Runs a quiet year with one round every `step`; how many turns there were.
fn quiet_year(rotation: &str, step: Duration) -> World {
    let mut world = World::new(rotation, 1);
    let mut now = BORN;
    while now <= days(365) {
        world.settle(now);
        now += step;
    }
    world
}

#[test]
fn a_quiet_year_has_the_turns_of_its_schedule() {
    let hour = Duration::HOUR;
    for (rotation, step, turns) in [
        (r#"{"cron":"0 3 * * 1"}"#, Duration::MINUTE * 10, 52),
        (r#"{"cron":"0 3 * * 1","zone":"Pacific/Auckland","jitter":"5h"}"#, hour, 52),
        (r#"{"cron":"30 2 * * *","zone":"Europe/Berlin","keepDeactivated":"0s"}"#, hour, 365),
        (r#"{"cron":"0 0 1 * *"}"#, Duration::DAY, 12),
        (r#"{"every":"30d"}"#, hour, 12),
        ("{}", Duration::DAY, 4),
        (r#"{"cryptoperiod":"365d"}"#, Duration::DAY, 1),
    ] {
        let world = quiet_year(rotation, step);
        assert_eq!(world.turns.len(), turns, "{rotation}");
        for (turn, run) in world.turns.iter().zip(&world.runs) {
            assert!(*turn - *run < step, "{rotation}: the run of {run} was late, at {turn}");
        }
    }
}

#[test]
fn hours_looked_at_every_minute_turn_with_each_minute() {
    let mut world = World::new(r#"{"cron":"* * * * *","keepDeactivated":"0s","destroyAfter":"1s"}"#, 1);
    for minute in 0..=6 * 60 {
        world.settle(BORN + Duration::minutes(minute));
    }
    assert_eq!(world.turns.len(), 6 * 60);
    assert!(world.destroyed.len() > 6 * 60 - 3, "all but the last are gone");
}

#[test]
fn a_year_of_keys_is_destroyed_in_its_time() {
    let world = quiet_year(r#"{"every":"30d","keepDeactivated":"30d","destroyAfter":"7d"}"#, Duration::HOUR);
    // Turns on days 30, 60, … 360; a key of day d is gone on day d + 37, and so are those up to day 328.
    assert_eq!(world.turns.len(), 12);
    assert_eq!(world.destroyed, (1..=10).collect());
}

#[test]
fn a_clock_that_jumps_ahead_and_back_turns_once_and_waits_for_its_time() {
    let mut world = World::new(r#"{"cron":"0 3 * * *"}"#, 1);
    world.settle(days(1));
    world.settle(days(200));
    assert_eq!(world.turns.len(), 2, "however many runs the jump leapt over");
    for day in 2..=200 {
        world.settle(days(day));
        assert_eq!(world.turns.len(), 2, "on day {day}");
    }
    world.settle(days(201));
    assert_eq!(world.turns.len(), 3);
}

/// What happens in a year, one after the other.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// Time passes, and the worker looks.
    Look { mins: i64 },
    /// Time passes, and no server is up.
    Down { mins: i64 },
    /// The server's clock is set wrong by so much from now on; 0 sets it right.
    Clock { wrong_mins: i64 },
    /// Replicas acknowledge what they were handed.
    Acknowledge,
    /// So many DEKs are rewrapped.
    Rewrap { deks: u64 },
    /// Somebody commands a turn.
    Rotate,
    /// Somebody pauses the schedule, or resumes it.
    Pause,
}

fn event() -> impl Strategy<Value = Event> {
    let day = 24 * 60;
    prop_oneof![
        10 => prop::sample::select(vec![1, 7, 60, 12 * 60, day, 3 * day]).prop_map(|mins| Event::Look { mins }),
        2 => (0..20 * day).prop_map(|mins| Event::Down { mins }),
        1 => prop::sample::select(vec![0, 0, 5, -5, 90, -90, day, -day, 40 * day, -40 * day])
            .prop_map(|wrong_mins| Event::Clock { wrong_mins }),
        6 => Just(Event::Acknowledge),
        4 => (0u64..12).prop_map(|deks| Event::Rewrap { deks }),
        1 => Just(Event::Rotate),
        1 => Just(Event::Pause),
    ]
}

const POLICIES: [&str; 6] = [
    r#"{"cron":"0 3 * * 1","zone":"Europe/Berlin","keepDeactivated":"3d","destroyAfter":"1d"}"#,
    r#"{"cron":"30 2 * * *","zone":"America/New_York","jitter":"3h","missedRun":"skip","keepDeactivated":"0s"}"#,
    r#"{"cron":"*/10 * * * *","keepDeactivated":"1h","destroyAfter":"1h"}"#,
    r#"{"every":"2d","jitter":"10h","keepDeactivated":"1d","destroyAfter":"1h"}"#,
    r#"{"every":"12h","missedRun":"skip"}"#,
    r#"{"cryptoperiod":"5d","keepDeactivated":"10d"}"#,
];

proptest! {
    #[test]
    fn no_year_breaks_a_keyset(
        rotation in prop::sample::select(POLICIES.to_vec()), id in 0u128..20,
        events in prop::collection::vec(event(), 300)
    ) {
        let mut world = World::new(rotation, id);
        let (mut time, mut wrong) = (BORN, Duration::ZERO);
        let mut commanded = 0;
        for event in events {
            match event {
                Event::Look { mins } => {
                    time += Duration::minutes(mins);
                    world.round(time + wrong);
                }
                Event::Down { mins } => time += Duration::minutes(mins),
                Event::Clock { wrong_mins } => wrong = Duration::minutes(wrong_mins),
                Event::Acknowledge => world.acknowledge(),
                Event::Rewrap { deks } => world.rewrap(deks),
                Event::Rotate => {
                    commanded += usize::from(!world.view.rotate_requested);
                    world.view.rotate_requested = true;
                }
                Event::Pause => world.view.paused = !world.view.paused,
            }
        }
        commanded -= usize::from(world.view.rotate_requested);
        // A turn is a run's or a command's; and there is a version for each, and the first.
        prop_assert!(world.turns.len() <= world.runs.len() + commanded);
        prop_assert_eq!(world.view.keys.len(), world.turns.len() + 1);
    }
}

proptest! {
    // Each runs through months.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn runs_missed_while_down_are_handled_as_the_policy_says(
        missed_run in prop::sample::select(vec!["run-once", "skip"]), id in 0u128..20,
        cron in prop::sample::select(vec!["0 3 * * 1", "30 2 * * *", "0 */6 * * *"]),
        looks in prop::collection::vec(prop_oneof![5 => 1i64..5, 2 => 5i64..600, 2 => 600i64..10_000], 100)
    ) {
        let rotation =
            format!(r#"{{"cron":"{cron}","zone":"Europe/Berlin","jitter":"1h","missedRun":"{missed_run}"}}"#);
        let mut world = World::new(&rotation, id);
        let runs = next_runs(&world.view.policy, world.view.id, BORN, BORN, 3_000);

        prop_assert!(runs[2_999] > BORN + Duration::minutes(100 * 10_000));

        // Told from the list of runs alone: those that came since the last look count as one turn, and with `skip`
        // only if the latest came within the grace.
        let (mut now, mut expected) = (BORN, 0);
        for mins in looks {
            let last_look = now;
            now += Duration::minutes(mins);
            let come: Vec<_> = runs.iter().filter(|run| **run > last_look && **run <= now).collect();
            if let Some(latest) = come.last() {
                expected += usize::from(missed_run == "run-once" || now - **latest <= Duration::minutes(5));
            }
            world.settle(now);
            prop_assert_eq!(world.turns.len(), expected);
        }
    }
}
