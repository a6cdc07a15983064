use proptest::prelude::*;
use time::macros::datetime;

use super::*;

const BORN: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

fn policy(rotation: &str) -> RotationPolicy {
    let policy: RotationPolicy = serde_json::from_str(rotation).unwrap();
    policy.check().unwrap();
    policy
}

fn keyset(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

#[test]
fn the_next_five_are_those_of_the_cron() {
    let weekly = policy(r#"{"cron":"0 3 * * 1","zone":"Europe/Berlin"}"#);
    let runs = next_runs(&weekly, keyset(1), datetime!(2026-10-10 00:00 UTC), BORN, 5);
    assert_eq!(
        runs,
        [
            datetime!(2026-10-12 01:00 UTC),
            datetime!(2026-10-19 01:00 UTC),
            datetime!(2026-10-26 02:00 UTC), // winter time
            datetime!(2026-11-02 02:00 UTC),
            datetime!(2026-11-09 02:00 UTC),
        ]
    );
}

#[test]
fn an_interval_counts_from_the_last_turn() {
    let monthly = policy(r#"{"every":"30d"}"#);
    let expected = [30, 60, 90].map(|days| BORN + Duration::days(days));
    assert_eq!(next_runs(&monthly, keyset(1), BORN, BORN, 3), expected);
    assert_eq!(next_runs(&monthly, keyset(1), BORN - Duration::days(400), BORN, 3), expected);
    assert_eq!(next_runs(&monthly, keyset(1), BORN + Duration::days(30), BORN, 2), expected[1..]);
    assert_eq!(next_runs(&policy("{}"), keyset(1), BORN, BORN, 1), [BORN + Duration::days(90)]);
}

#[test]
fn the_offset_is_always_the_same_and_below_the_jitter() {
    let with = |jitter: &str| policy(&format!(r#"{{"cron":"0 3 * * 1","jitter":"{jitter}"}}"#));
    // Frozen: another derivation would move the runs of every installation.
    assert_eq!(offset(&with("2h"), keyset(1)), FROZEN_OFFSET);
    assert_eq!(offset(&with("0s"), keyset(1)), Duration::ZERO);
    assert_eq!(offset(&policy("{}"), keyset(1)), Duration::ZERO);

    let offsets: Vec<_> = (0..1000).map(|n| offset(&with("2h"), keyset(n)).whole_seconds()).collect();
    assert!(offsets.iter().all(|secs| (0..7200).contains(secs)));
    // Spread over the whole range: a quarter of it holds about a quarter of them (250 ± 5 standard deviations).
    for quarter in 0..4 {
        let found = offsets.iter().filter(|secs| **secs / 1800 == quarter).count();
        assert!((180..320).contains(&found), "{found} in quarter {quarter}");
    }
}

/// The first 8 bytes of SHA-256 over the domain and the id, as a fraction of 7200 seconds; by Python's hashlib.
const FROZEN_OFFSET: Duration = Duration::seconds(829);

#[test]
fn a_run_is_due_from_its_moment_on_and_once() {
    let daily = policy(r#"{"cron":"0 3 * * *"}"#);
    let run = datetime!(2026-01-02 03:00 UTC);
    let at = |handled, now| due(&daily, keyset(1), handled, BORN, now);
    let before = run - Duration::SECOND;
    assert_eq!(at(run - Duration::DAY, before), Due::Later { next: Some(run) });
    assert_eq!(at(run - Duration::SECOND, run), Due::Turn { run });
    assert_eq!(at(run, run), Due::Later { next: Some(run + Duration::DAY) });
}

#[test]
fn missed_runs_are_made_up_for_once_or_left_out() {
    let once = policy(r#"{"cron":"0 3 * * *"}"#);
    let skip = policy(r#"{"cron":"0 3 * * *","missedRun":"skip"}"#);
    let run = datetime!(2026-02-01 03:00 UTC);
    let at = |policy, now| due(policy, keyset(1), datetime!(2026-01-10 03:00 UTC), BORN, now);
    for late in [Duration::ZERO, MISSED_AFTER] {
        assert_eq!(at(&once, run + late), Due::Turn { run });
        assert_eq!(
            at(&skip, run + late),
            Due::Turn { run },
            "the latest is in time, only older ones are missed"
        );
    }
    let too_late = MISSED_AFTER + Duration::SECOND;
    assert_eq!(at(&once, run + too_late), Due::Turn { run });
    assert_eq!(at(&skip, run + too_late), Due::PassOver { run });
}

#[test]
fn an_interval_that_was_missed_and_left_out_counts_on() {
    let skip = policy(r#"{"every":"30d","missedRun":"skip"}"#);
    let noticed = BORN + Duration::days(65);
    let run = BORN + Duration::days(60);
    assert_eq!(due(&skip, keyset(1), BORN, BORN, noticed), Due::PassOver { run });
    let next = Some(BORN + Duration::days(90));
    assert_eq!(due(&skip, keyset(1), run, BORN, noticed), Due::Later { next });
}

#[test]
fn a_clock_that_went_back_makes_nothing_due() {
    for rotation in [r#"{"cron":"* * * * *"}"#, r#"{"every":"1m"}"#] {
        let policy = policy(rotation);
        let handled = BORN + Duration::days(400);
        for back in [Duration::ZERO, Duration::MINUTE, Duration::days(300)] {
            let due = due(&policy, keyset(1), handled, handled, handled - back);
            assert!(matches!(due, Due::Later { next: Some(next) } if next > handled), "{rotation} {due:?}");
        }
    }
}

#[test]
fn a_schedule_ends_with_the_calendar_and_does_not_panic() {
    let end = datetime!(9999-12-31 23:59:59 UTC);
    for rotation in [r#"{"cron":"0 3 * * *","jitter":"1h"}"#, r#"{"every":"30d"}"#] {
        assert!(next_runs(&policy(rotation), keyset(1), end, end - Duration::DAY, 5).is_empty());
        assert!(matches!(due(&policy(rotation), keyset(1), end, end, end), Due::Later { next: None }));
    }
}

const POLICIES: [&str; 6] = [
    r#"{"cron":"0 3 * * 1","zone":"Europe/Berlin"}"#,
    r#"{"cron":"30 2 * * *","zone":"America/New_York","jitter":"26h"}"#,
    r#"{"cron":"*/7 * * * *","jitter":"3m"}"#,
    r#"{"every":"30d","jitter":"2h"}"#,
    r#"{"every":"1m"}"#,
    r#"{"cryptoperiod":"10h","jitter":"10h"}"#,
];

proptest! {
    #[test]
    fn runs_rise_and_are_the_same_whoever_asks(
        rotation in prop::sample::select(POLICIES.to_vec()), id in 0u128..50, secs in 0i64..40_000_000
    ) {
        let policy = policy(rotation);
        let after = BORN + Duration::seconds(secs);
        let runs = next_runs(&policy, keyset(id), after, BORN, 4);
        prop_assert_eq!(runs.len(), 4);
        prop_assert!(runs[0] > after && runs.is_sorted() && runs.windows(2).all(|pair| pair[0] < pair[1]));
        for (at, run) in runs.iter().enumerate() {
            prop_assert_eq!(due(&policy, keyset(id), after, BORN, *run), Due::Turn { run: *run });
            prop_assert_eq!(next_runs(&policy, keyset(id), *run - Duration::SECOND, BORN, 1)[0], *run);
            if let Some(next) = runs.get(at + 1) {
                let later = Due::Later { next: Some(*next) };
                prop_assert_eq!(due(&policy, keyset(id), *run, BORN, *run), later);
            }
        }
    }
}
