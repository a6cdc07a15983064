use super::*;
use crate::object::{Kind, Spec};

fn spec(rotation: &str) -> Spec {
    Spec::parse(Kind::Keyspace, &format!(r#"{{"rotation":{rotation}}}"#)).unwrap()
}

fn policy(rotation: &str) -> RotationPolicy {
    let Spec::Keyspace(keyspace) = spec(rotation) else { unreachable!() };
    keyspace.rotation.unwrap()
}

fn refusal(rotation: &str) -> String {
    Spec::parse(Kind::Keyspace, &format!(r#"{{"rotation":{rotation}}}"#)).unwrap_err().to_string()
}

#[test]
fn a_keyspace_without_a_policy_is_written_as_before() {
    for json in ["{}", r#"{"description":"of the payments team"}"#] {
        assert_eq!(Spec::parse(Kind::Keyspace, json).unwrap().to_json(), json);
    }
}

#[test]
fn a_policy_is_written_as_people_write_it() {
    let whole = r#"{"cron":"0 3 * * 1","zone":"Europe/Berlin","jitter":"2h","missedRun":"skip","cryptoperiod":"90d","keepDeactivated":"30d","destroyAfter":"7d"}"#;
    assert_eq!(spec(whole).to_json(), format!(r#"{{"rotation":{whole}}}"#));
    let spelled = r#"{"every":"4weeks 2days","missedRun":"run-once","keepDeactivated":"0s"}"#;
    assert_eq!(spec(spelled).to_json(), r#"{"rotation":{"every":"30d","keepDeactivated":"0s"}}"#);
    assert_eq!(spec("{}").to_json(), r#"{"rotation":{}}"#);
}

#[test]
fn defaults_stand_where_nothing_is_said() {
    let day = |days: u64| Duration::from_secs(days * 86_400);
    let absent = policy("{}");
    assert_eq!(absent, RotationPolicy::default_of(Purpose::Data));
    assert_eq!(absent.schedule_text(), "every 90d");
    assert_eq!((absent.cryptoperiod(), absent.jitter()), (day(90), Duration::ZERO));
    assert_eq!((absent.missed_run(), absent.keep_deactivated()), (MissedRun::RunOnce, None));
    assert_eq!(absent.destroy_after(), day(7));
    for purpose in [Purpose::RowMac, Purpose::AuditSign, Purpose::InternalCa] {
        let system = RotationPolicy::default_of(purpose);
        assert_eq!((system.schedule_text().as_str(), system.cryptoperiod()), ("every 365d", day(365)));
        let keep = (purpose != Purpose::AuditSign).then_some(day(30));
        assert_eq!(system.keep_deactivated(), keep, "what has signed is verified for ever: {purpose}");
        assert_eq!(system.check(), Ok(()));
    }
    assert_eq!(policy(r#"{"cryptoperiod":"1m"}"#).schedule_text(), "every 1m");
    assert_eq!(policy(r#"{"cron":"0 3 * * 1"}"#).schedule_text(), r#"cron "0 3 * * 1" in UTC"#);
}

#[test]
fn a_refusal_names_the_field() {
    for (rotation, reason) in [
        (r#"{"cron":"0 3 * * 1","every":"30d"}"#, "spec.rotation.every: name either cron or every"),
        (r#"{"zone":"Europe/Berlin"}"#, "spec.rotation.zone: has a meaning only with cron"),
        (
            r#"{"cron":"0 3 * * 1","zone":"Europe/Bonn"}"#,
            "spec.rotation.zone: \"Europe/Bonn\" is not a time zone",
        ),
        (r#"{"cron":"0 3 30 2 *"}"#, "spec.rotation.cron: \"0 3 30 2 *\" never comes"),
        (r#"{"cron":"*/10 * * * * *"}"#, "spec.rotation.cron: "),
        (r#"{"every":"59s"}"#, "spec.rotation.every: must be at least 1m, and at most 3650d"),
        (r#"{"every":"3651d","cryptoperiod":"3651d"}"#, "spec.rotation.every: must be at least 1m"),
        (r#"{"cryptoperiod":"1s"}"#, "spec.rotation.cryptoperiod: must be at least 1m"),
        (r#"{"cryptoperiod":"11years"}"#, "spec.rotation.cryptoperiod: must be at least 1m"),
        (r#"{"every":"91d"}"#, "spec.rotation.every: is longer than the cryptoperiod of 90d"),
        (r#"{"every":"1h","jitter":"61m"}"#, "spec.rotation.jitter: must not be longer than the interval"),
        (
            r#"{"cron":"0 3 * * 1","jitter":"32d"}"#,
            "spec.rotation.jitter: must be at least 0s, and at most 31d",
        ),
        (r#"{"destroyAfter":"0s"}"#, "spec.rotation.destroyAfter: must be at least 1s"),
        (r#"{"keepDeactivated":"11years"}"#, "spec.rotation.keepDeactivated: must be at least 0s"),
        (r#"{"every":"soon"}"#, "spec.rotation.every: "),
        (r#"{"missedRun":"never"}"#, "spec.rotation.missedRun: unknown variant `never`"),
        (r#"{"period":"30d"}"#, "spec.rotation.period: unknown field `period`"),
    ] {
        let refused = refusal(rotation);
        assert!(refused.starts_with(reason), "{rotation}: {refused}");
    }
}
