use proptest::prelude::*;
use time::{Duration, macros::datetime};

use super::*;

fn next(cron: &str, zone: &str, after: OffsetDateTime, count: usize) -> Vec<OffsetDateTime> {
    let (cron, zone) = (CronExpression::parse(cron).unwrap(), Zone::parse(zone).unwrap());
    let next = |at: &OffsetDateTime| cron.next_after(&zone.0, *at);
    std::iter::successors(next(&after), next).take(count).collect()
}

#[test]
fn a_time_that_never_comes_runs_once_when_the_clock_leaps_over_it() {
    // Berlin, 28 March 2027: 02:00 becomes 03:00, at 01:00 UTC.
    let before = datetime!(2027-03-27 12:00 UTC);
    for cron in ["30 2 * * *", "0 2 * * *", "10,20,50 2 * * *", "59 2 * * *"] {
        let runs = next(cron, "Europe/Berlin", before, 2);
        assert_eq!(runs[0], datetime!(2027-03-28 01:00 UTC), "{cron}");
        assert_eq!(runs[1].date(), datetime!(2027-03-29 00:00 UTC).date(), "{cron}");
    }
    // What the leap and the hour after it both want is one run.
    assert_eq!(
        next("0 2,3 * * *", "Europe/Berlin", before, 2),
        [datetime!(2027-03-28 01:00 UTC), datetime!(2027-03-29 00:00 UTC)]
    );
}

#[test]
fn a_time_that_comes_twice_runs_at_its_first() {
    // Berlin, 25 October 2026: 03:00 becomes 02:00, at 01:00 UTC.
    for cron in ["30 2 * * *", "30 2,14 * * *"] {
        let runs = next(cron, "Europe/Berlin", datetime!(2026-10-24 12:30 UTC), 2);
        assert_eq!(runs[0], datetime!(2026-10-25 00:30 UTC), "{cron}");
        assert!(runs[1] > datetime!(2026-10-25 02:00 UTC), "{cron}");
    }
    // Also for who asks within the second half.
    assert_eq!(
        next("30 2 * * *", "Europe/Berlin", datetime!(2026-10-25 01:10 UTC), 1),
        [datetime!(2026-10-26 01:30 UTC)]
    );
}

#[test]
fn a_whole_day_that_a_zone_left_out_counts_once() {
    // Samoa left out 30 December 2011; the day before ended at 10:00 UTC.
    assert_eq!(
        next("0 12 * * *", "Pacific/Apia", datetime!(2011-12-29 23:00 UTC), 2),
        [datetime!(2011-12-30 10:00 UTC), datetime!(2011-12-30 22:00 UTC)]
    );
}

#[test]
fn the_zone_decides_what_time_it_is() {
    let after = datetime!(2026-11-23 05:00 UTC);
    assert_eq!(next("0 3 * * 1", "UTC", after, 1), [datetime!(2026-11-30 03:00 UTC)]);
    assert_eq!(next("0 3 * * 1", "Europe/Berlin", after, 1), [datetime!(2026-11-30 02:00 UTC)]);
    assert_eq!(next("0 3 * * MON", "America/Los_Angeles", after, 1), [datetime!(2026-11-23 11:00 UTC)]);
    assert_eq!(next("0 0 L * *", "UTC", after, 1), [datetime!(2026-11-30 00:00 UTC)]);
    assert_eq!(next("0 0 29 2 *", "UTC", after, 1), [datetime!(2028-02-29 00:00 UTC)]);
}

#[test]
fn what_is_no_expression_or_never_comes_is_refused() {
    for (text, reason) in [
        ("0 3 * *", "write five fields"),
        ("0 0 3 * * 1", "write five fields"),
        ("@daily", "write five fields"),
        ("", "write five fields"),
        ("60 3 * * 1", "is not a cron expression"),
        ("0 3 * * 8", "is not a cron expression"),
        ("a b c d e", "is not a cron expression"),
        ("0 3 30 2 *", "never comes"),
        ("0 3 31 4,6,9,11 *", "never comes"),
    ] {
        let refused = CronExpression::parse(text).unwrap_err().to_string();
        assert!(refused.contains(reason), "{text:?}: {refused}");
    }
}

#[test]
fn an_expression_is_kept_as_it_was_written() {
    assert_eq!(CronExpression::parse(" 0  3 * *   mon ").unwrap().as_str(), "0 3 * * mon");
}

#[test]
fn zones_have_one_spelling_and_unknown_ones_are_refused() {
    assert_eq!(Zone::parse("europe/berlin").unwrap(), Zone::parse("Europe/Berlin").unwrap());
    assert_eq!(Zone::parse("europe/berlin").unwrap().name(), "Europe/Berlin");
    assert_eq!(Zone::parse("UTC").unwrap().name(), "UTC");
    for name in ["", "Europe/Bonn", "+01:00", "Etc/Unknown", "../../etc/passwd", "CET-1"] {
        let refused = Zone::parse(name).unwrap_err().to_string();
        assert!(refused.contains("is not a time zone"), "{refused}");
    }
}

/// Occurrences found by watching the wall clock minute by minute, with none of the code under test: whenever it shows
/// what it has not shown before, all that it showed or leapt over since has come.
fn watched(cron: &CronExpression, zone: &Zone, from: OffsetDateTime, minutes: i64) -> Vec<OffsetDateTime> {
    let wall_at = |at| zone.0.to_datetime(timestamp(at).unwrap());
    // The clock's highest stand before the watch begins: a zone may be in a repeated hour then.
    let mut shown = (0..24 * 60).map(|minute| wall_at(from - Duration::minutes(minute))).max().unwrap();
    let mut occurrences = Vec::new();
    for minute in 1..=minutes {
        let at = from + Duration::minutes(minute);
        let wall = wall_at(at);
        let mut comes = false;
        while shown < wall {
            shown = shown.checked_add(1.minute()).unwrap();
            comes |= cron.cron.is_time_matching(&shown).unwrap();
        }
        if comes {
            occurrences.push(at);
        }
    }
    occurrences
}

const CHANGES: [(&str, OffsetDateTime); 9] = [
    ("Europe/Berlin", datetime!(2027-03-28 01:00 UTC)),
    ("Europe/Berlin", datetime!(2026-10-25 01:00 UTC)),
    ("America/New_York", datetime!(2026-11-01 06:00 UTC)),
    ("Australia/Lord_Howe", datetime!(2026-10-03 15:30 UTC)),
    ("Australia/Lord_Howe", datetime!(2027-04-03 15:00 UTC)),
    ("America/Havana", datetime!(2027-03-14 05:00 UTC)),
    ("Antarctica/Troll", datetime!(2026-10-25 01:00 UTC)),
    ("Africa/Casablanca", datetime!(2027-02-07 02:00 UTC)),
    ("Pacific/Apia", datetime!(2011-12-30 10:00 UTC)),
];

fn expression() -> impl Strategy<Value = String> {
    let minute = prop::sample::select(vec!["0", "30", "*/15", "7,37", "*", "59"]);
    let hour = prop::sample::select(vec!["*", "0", "1", "2", "1-3", "2,14", "*/6", "23"]);
    let day =
        prop::sample::select(vec!["* * *", "* * *", "25 * *", "L * *", "* * 0", "* 3,10 1-6", "* * 0#1"]);
    (minute, hour, day).prop_map(|(minute, hour, day)| format!("{minute} {hour} {day}"))
}

proptest! {
    #[test]
    fn occurrences_are_those_of_a_watched_clock(
        cron in expression(), change in prop::sample::select(CHANGES.to_vec()), ahead in 0i64..2880
    ) {
        let (cron, zone) = (CronExpression::parse(&cron).unwrap(), Zone::parse(change.0).unwrap());
        let from = change.1 - Duration::minutes(ahead);
        let watched = watched(&cron, &zone, from, 2880);
        let end = from + Duration::minutes(2880);
        let next = |at: &OffsetDateTime| cron.next_after(&zone.0, *at);
        let found: Vec<_> = std::iter::successors(next(&from), next).take_while(|at| *at <= end).collect();
        prop_assert_eq!(&found, &watched);

        // Looking back finds the same, from an occurrence and from any moment before the next.
        for (at, run) in watched.iter().enumerate() {
            let following = watched.get(at + 1).copied().unwrap_or(end + Duration::SECOND);
            for until in [*run, *run + (following - *run) / 2, following - Duration::SECOND] {
                prop_assert_eq!(cron.latest_until(&zone.0, until), Some(*run));
            }
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "[0-9*/,LW#?+ -]{0,24}", wild in "\\PC{0,24}") {
        let _ = CronExpression::parse(&text);
        let _ = CronExpression::parse(&wild);
        let _ = CronExpression::parse(&format!("0 0 {text} * *"));
        let _ = Zone::parse(&wild);
    }
}
