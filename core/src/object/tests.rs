use super::*;

const ROLE: &str = r#"{"bind":[{"issuer":"prod","namespaces":["payments"],"serviceAccounts":["api"]}],
    "grants":[{"path":"payments/*","allow":["read"]},{"path":"shared/{namespace}/**","allow":["read"]}]}"#;

const ISSUER: &str = r#"{"type":"kubernetes","url":"https://kubernetes.default.svc.cluster.local",
    "audiences":["keyfold"],"keys":{"file":"prod.json"}}"#;

fn refusal(kind: Kind, json: &str) -> String {
    Spec::parse(kind, json).unwrap_err().to_string()
}

#[test]
fn the_design_examples_parse_and_come_back_the_same() {
    for (kind, json) in [(Kind::AppRole, ROLE), (Kind::Issuer, ISSUER), (Kind::Keyspace, "{}")] {
        let spec = Spec::parse(kind, json).unwrap();
        assert_eq!(Spec::parse(kind, &spec.to_json()).unwrap(), spec);
    }
}

#[test]
fn safe_defaults_stand_where_nothing_is_said() {
    let Spec::AppRole(role) = Spec::parse(Kind::AppRole, ROLE).unwrap() else { unreachable!() };
    assert_eq!(role.node_binding, NodeBinding::Required);
    let Spec::Issuer(issuer) = Spec::parse(Kind::Issuer, ISSUER).unwrap() else { unreachable!() };
    assert_eq!(issuer.algorithms, BTreeSet::from([Algorithm::RS256]));
    assert!(issuer.drivers.is_empty());
}

#[test]
fn a_refusal_names_the_field() {
    let cases = [
        (Kind::AppRole, ROLE.replace("\"grants\"", "\"grant\""), "spec.grant: unknown field `grant`"),
        (
            Kind::AppRole,
            ROLE.replace("[\"read\"]", "[\"raed\"]"),
            "spec.grants[0].allow[0]: unknown variant `raed`",
        ),
        (Kind::AppRole, ROLE.replace("[\"read\"]", "[]"), "spec.grants[0].allow: name at least one"),
        (Kind::AppRole, ROLE.replace("payments/*", "payments/**/x"), "spec.grants[0].path: "),
        (
            Kind::AppRole,
            ROLE.replace("[\"api\"]", "[\"a?i\"]"),
            "spec.bind[0].serviceAccounts[0]: \"a?i\" is not a Kubernetes name",
        ),
        (Kind::AppRole, ROLE.replace("[\"read\"]", "[\"write\"]"), "spec.grants[0].allow: a workload can be"),
        (Kind::AppRole, ROLE.replace("\"prod\"", "\"Prod\""), "spec.bind[0].issuer: \"Prod\" is not a name"),
        (Kind::Issuer, ISSUER.replace("https://", "http://"), "spec.url: must begin with https://"),
        (
            Kind::Issuer,
            ISSUER.replace("prod.json", "../prod.json"),
            "spec.keys.file: must be a plain file name",
        ),
        (Kind::Issuer, ISSUER.replace("[\"keyfold\"]", "[]"), "spec.audiences: name at least one"),
        (Kind::Keyspace, "[]".into(), "spec: "),
    ];
    for (kind, json, expected) in cases {
        let message = refusal(kind, &json);
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn attack_03_no_issuer_can_allow_none_or_hmac() {
    for algorithm in ["none", "HS256", "rs256"] {
        let json = ISSUER.replace("\"keys\"", &format!("\"algorithms\":[\"{algorithm}\"],\"keys\""));
        assert!(refusal(Kind::Issuer, &json).starts_with("spec.algorithms[0]: unknown variant"));
    }
}

#[test]
fn a_lease_has_sensible_limits() {
    let with = |lease: &str| ROLE.replacen('{', &format!(r#"{{"lease":{lease},"#), 1);
    for (lease, reason) in [
        (r#"{"ttl":"299s","max":"1h"}"#, "spec.lease.ttl: must be at least 5m"),
        (r#"{"ttl":"1h","max":"59m"}"#, "spec.lease.max: must be at least ttl"),
        (r#"{"ttl":"1h","max":"366days"}"#, "at most a year"),
        (r#"{"ttl":"1h"}"#, "missing field `max`"),
    ] {
        let refused = refusal(Kind::AppRole, &with(lease));
        assert!(refused.contains(reason), "{lease}: {refused}");
    }
    for lease in [r#"{"ttl":"5m","max":"5m"}"#, r#"{"ttl":"1h","max":"365days"}"#] {
        let spec = Spec::parse(Kind::AppRole, &with(lease)).unwrap();
        assert_eq!(Spec::parse(Kind::AppRole, &spec.to_json()).unwrap(), spec);
    }
}

#[test]
fn a_lease_is_renewed_by_its_ttl_and_never_beyond_its_whole_time() {
    use time::{Duration, macros::datetime};
    let hours = |n: u64| std::time::Duration::from_secs(n * 3600);
    let (lease, start) = (LeaseSpec { ttl: hours(1), max: hours(24) }, datetime!(2026-11-23 06:00 UTC));
    let after = |age: Duration| lease.expiry(start, start + age).map(|end| end - start);
    assert_eq!(after(Duration::ZERO), Some(Duration::hours(1)));
    assert_eq!(
        after(Duration::hours(10)),
        Some(Duration::hours(11)),
        "also when it was not renewed for long"
    );
    assert_eq!(after(Duration::minutes(23 * 60 + 30)), Some(Duration::hours(24)));
    assert_eq!(after(Duration::hours(24) - Duration::MICROSECOND), Some(Duration::hours(24)));
    assert_eq!(after(Duration::hours(24)), None);
    assert_eq!(after(Duration::hours(-1)), Some(Duration::ZERO), "by the slow clock of another replica");
}
