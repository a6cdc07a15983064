use time::macros::datetime;

use super::*;

mod simulation;

const BORN: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

fn policy(rotation: &str) -> RotationPolicy {
    let policy: RotationPolicy = serde_json::from_str(rotation).unwrap();
    policy.check().unwrap();
    policy
}

fn key(version: u32, state: KeyState) -> KeyView {
    let was_active = !matches!(state, KeyState::PreActive);
    KeyView {
        version,
        state,
        created_at: BORN,
        activated_at: was_active.then_some(BORN),
        deactivated_at: (was_active && state != KeyState::Active).then_some(BORN),
        destroy_at: (state == KeyState::DestroyScheduled).then_some(BORN + Duration::days(7)),
        deks_wrapped: 0,
        quarantined: 0,
        acknowledged: false,
    }
}

fn view(rotation: &str, keys: &[KeyView]) -> KeysetView {
    KeysetView {
        id: Uuid::from_u128(1),
        purpose: Purpose::Data,
        policy: policy(rotation),
        policy_since: None,
        paused: false,
        rotate_requested: false,
        keys: keys.to_vec(),
        last_scheduled_run: None,
    }
}

fn steps(view: &KeysetView, now: OffsetDateTime) -> Vec<Action> {
    sweep(view, now).unwrap().steps.iter().map(|step| step.action).collect()
}

fn days(n: i64) -> OffsetDateTime {
    BORN + Duration::days(n)
}

#[test]
fn a_run_that_is_due_begins_a_turn_and_says_why() {
    let view = view(r#"{"cron":"0 3 * * 1"}"#, &[key(1, KeyState::Active)]);
    let run = datetime!(2026-01-05 03:00 UTC);
    let before = sweep(&view, run - Duration::SECOND).unwrap();
    assert_eq!((before.steps, before.next_run), (vec![], Some(run)));

    let due = sweep(&view, run).unwrap();
    assert_eq!(due.steps[0].action, Action::CreatePreActive { version: 2, run: Some(run) });
    assert_eq!(
        due.steps[0].reason,
        "its schedule (cron \"0 3 * * 1\" in UTC) had a run at 2026-01-05T03:00:00Z"
    );
    let late = sweep(&view, run + Duration::hours(30)).unwrap();
    assert!(late.steps[0].reason.ends_with(", missed by 1d 6h and made up for once"), "{:?}", late.steps);
}

#[test]
fn a_key_is_active_once_every_live_replica_has_it_and_not_before() {
    let mut pre_active = key(2, KeyState::PreActive);
    let waiting = view(r#"{"every":"1d"}"#, &[key(1, KeyState::Active), pre_active]);
    assert_eq!(steps(&waiting, days(5)), [], "no second turn while one is under way");
    pre_active.acknowledged = true;
    let ready = view(r#"{"every":"1d"}"#, &[key(1, KeyState::Active), pre_active]);
    assert_eq!(steps(&ready, days(5)), [Action::Activate { version: 2 }]);
}

#[test]
fn a_pause_holds_the_schedule_and_nothing_that_has_begun_or_was_commanded() {
    let mut paused = view(
        r#"{"every":"1d","keepDeactivated":"1d"}"#,
        &[key(1, KeyState::DestroyScheduled), key(2, KeyState::Deactivated), key(3, KeyState::Active)],
    );
    paused.paused = true;
    assert_eq!(steps(&paused, days(10)), [Action::Destroy { version: 1 }]);
    paused.rotate_requested = true;
    assert_eq!(steps(&paused, days(6)), [Action::CreatePreActive { version: 4, run: None }]);
    paused.rotate_requested = false;
    paused.keys.push(KeyView { acknowledged: true, ..key(4, KeyState::PreActive) });
    assert_eq!(steps(&paused, days(6)), [Action::Activate { version: 4 }]);
}

#[test]
fn a_missed_run_is_passed_over_where_the_policy_says_so() {
    let mut skipping = view(r#"{"every":"30d","missedRun":"skip"}"#, &[key(1, KeyState::Active)]);
    assert_eq!(steps(&skipping, days(61)), [Action::SkipRun { run: days(60) }]);
    skipping.last_scheduled_run = Some(days(60));
    assert_eq!(steps(&skipping, days(61)), []);
    assert_eq!(steps(&skipping, days(90)), [Action::CreatePreActive { version: 2, run: Some(days(90)) }]);
}

#[test]
fn a_turn_by_command_counts_for_the_runs_before_it() {
    let mut turned = key(2, KeyState::Active);
    turned.activated_at = Some(days(20));
    let keys = [key(1, KeyState::Deactivated), turned];
    assert_eq!(steps(&view(r#"{"every":"30d"}"#, &keys), days(49)), []);
    let run = days(50);
    assert_eq!(
        steps(&view(r#"{"every":"30d"}"#, &keys), run),
        [Action::CreatePreActive { version: 3, run: Some(run) }]
    );
    // The cron's run of the 19th day came before, the one of the next week is still to come.
    assert_eq!(steps(&view(r#"{"cron":"0 3 * * 2"}"#, &keys), days(24)), []);
}

#[test]
fn runs_before_a_cron_was_declared_were_not_missed() {
    let mut declared = view(r#"{"cron":"0 3 * * *"}"#, &[key(1, KeyState::Active)]);
    declared.policy_since = Some(days(80));
    assert_eq!(steps(&declared, days(80) + Duration::hours(1)), []);
    assert_eq!(steps(&declared, days(80) + Duration::hours(3)).len(), 1);
    // An interval speaks of the key's age.
    let mut declared = view(r#"{"every":"30d"}"#, &[key(1, KeyState::Active)]);
    declared.policy_since = Some(days(80));
    assert_eq!(steps(&declared, days(80)), [Action::CreatePreActive { version: 2, run: Some(days(60)) }]);
}

#[test]
fn a_key_is_scheduled_for_destruction_only_when_nothing_is_under_it() {
    let keep = r#"{"keepDeactivated":"30d","destroyAfter":"7d"}"#;
    for state in [KeyState::Deactivated, KeyState::Compromised] {
        let keys = |old| view(keep, &[old, key(2, KeyState::Active)]);
        let old = key(1, state);
        assert_eq!(steps(&keys(old), days(30) - Duration::SECOND), []);
        let destroy_at = days(37);
        assert_eq!(steps(&keys(old), days(30)), [Action::ScheduleDestruction { version: 1, destroy_at }]);
        assert_eq!(steps(&keys(KeyView { deks_wrapped: 1, ..old }), days(80)), []);
        assert_eq!(steps(&keys(KeyView { quarantined: 1, ..old }), days(80)), []);
        assert_eq!(steps(&keys(KeyView { deactivated_at: None, ..old }), days(80)), []);
        assert_eq!(
            steps(&view("{}", &[old, key(2, KeyState::Active)]), days(80)),
            [],
            "kept until commanded"
        );
    }
}

#[test]
fn a_key_is_destroyed_on_its_day_unless_something_is_under_it() {
    let keys = |old| view("{}", &[old, key(2, KeyState::Active)]);
    let old = key(1, KeyState::DestroyScheduled);
    assert_eq!(steps(&keys(old), days(7) - Duration::SECOND), []);
    assert_eq!(steps(&keys(old), days(7)), [Action::Destroy { version: 1 }]);
    assert_eq!(steps(&keys(KeyView { deks_wrapped: 1, ..old }), days(8)), []);
    assert_eq!(steps(&keys(KeyView { quarantined: 1, ..old }), days(8)), []);
    assert_eq!(steps(&keys(KeyView { destroy_at: None, ..old }), days(8)), []);
}

#[test]
fn a_key_is_overdue_beyond_its_cryptoperiod_unless_a_turn_has_just_begun() {
    let weekly = r#"{"cron":"0 3 * * 1","cryptoperiod":"10d"}"#;
    let overdue = |view: &KeysetView, now| sweep(view, now).unwrap().overdue;
    let mut paused = view(weekly, &[key(1, KeyState::Active)]);
    paused.paused = true;
    assert!(!overdue(&paused, days(10)));
    assert!(overdue(&paused, days(10) + Duration::SECOND));
    paused.paused = false;
    assert!(!overdue(&paused, days(11)), "the turn begins now");

    let created_at = days(11);
    paused.keys.push(KeyView { created_at, ..key(2, KeyState::PreActive) });
    assert!(!overdue(&paused, created_at + MISSED_AFTER));
    assert!(
        overdue(&paused, created_at + MISSED_AFTER + Duration::SECOND),
        "a replica does not acknowledge it"
    );

    let jittered = view(r#"{"cryptoperiod":"10d","jitter":"2h"}"#, &[key(1, KeyState::Active)]);
    assert!(!overdue(&jittered, days(10) + Duration::MINUTE), "its own offset is not held against it");
}

#[test]
fn a_turn_in_the_future_by_a_clock_that_was_ahead_shows_as_overdue() {
    let overdue = |view: &KeysetView, now| sweep(view, now).unwrap().overdue;
    let mut ahead = key(1, KeyState::Active);
    ahead.activated_at = Some(days(30));
    let turned = view(r#"{"every":"90d"}"#, &[ahead]);
    assert!(overdue(&turned, days(1)), "no turn would come for 119 days");
    assert!(!overdue(&turned, days(30) - MISSED_AFTER), "two servers' clocks differ by a little");
    assert!(!overdue(&turned, days(31)));

    let mut ran = view(r#"{"every":"90d"}"#, &[key(1, KeyState::Active)]);
    ran.last_scheduled_run = Some(days(30));
    assert!(overdue(&ran, days(1)));
    assert!(!overdue(&ran, days(30)));
}

#[test]
fn the_installations_own_keys_turn_once_a_year_and_go_a_month_later_but_for_those_that_sign() {
    for purpose in [Purpose::RowMac, Purpose::InternalCa, Purpose::AuditSign] {
        let mut own = view("{}", &[key(1, KeyState::Deactivated), key(2, KeyState::Active)]);
        own.purpose = purpose;
        own.policy = RotationPolicy::default_of(own.purpose);
        assert_eq!(steps(&own, days(30) - Duration::SECOND), []);
        let goes = Action::ScheduleDestruction { version: 1, destroy_at: days(37) };
        let ends = if purpose == Purpose::AuditSign { vec![] } else { vec![goes] };
        assert_eq!(steps(&own, days(30)), ends, "{purpose}");
        own.keys.remove(0);
        own.keys[0].version = 1;
        assert_eq!(steps(&own, days(364)), []);
        let run = Some(days(365));
        assert_eq!(steps(&own, days(365)), [Action::CreatePreActive { version: 2, run }]);
    }
}

#[test]
fn nothing_is_done_with_rows_that_are_no_keyset() {
    let revived = view(r#"{"every":"1d"}"#, &[key(1, KeyState::Active), key(2, KeyState::Active)]);
    assert_eq!(sweep(&revived, days(9)), Err(KeysetError::ActiveKeys { found: 2 }));
    let gone = view(r#"{"every":"1d"}"#, &[key(1, KeyState::Destroyed)]);
    assert_eq!(sweep(&gone, days(9)), Err(KeysetError::ActiveKeys { found: 0 }));
}
