//! What is compared.

use std::{iter, time::Duration};

use keyfold_core::entropy::SystemEntropy;
use keyfold_server::authn::generate_admin_token;
use serde::Serialize;

use super::{
    probe::{Probe, Question},
    stand::{NODE, Names, Stand},
};

/// Two arms that must get the same answer in the same time, or a control.
pub(crate) struct Pair {
    /// Who asks, and for what.
    pub(crate) name: &'static str,
    pub(crate) expected: Expected,
    /// What exists.
    pub(crate) a: Arm,
    /// What does not.
    pub(crate) b: Arm,
}

/// What a pair is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Expected {
    /// Its arms must not be told apart.
    Alike,
    /// It shows that the test finds what is there.
    Differ,
}

/// Requests of one kind. Each time one of them is picked, so that nothing depends on a single name.
pub(crate) struct Arm {
    pub(crate) probes: Vec<Probe>,
    /// Added to each of its times, by waiting.
    pub(crate) delay: Duration,
}

impl From<Vec<Probe>> for Arm {
    fn from(probes: Vec<Probe>) -> Self {
        Self { probes, delay: Duration::ZERO }
    }
}

/// All pairs.
///
/// # Panics
/// When there is no randomness, or Postgres refuses.
pub(super) fn all(stand: &Stand, names: &Names) -> Vec<Pair> {
    let pairs = of_pods(stand, names).into_iter().chain(of_operators(stand, names));
    pairs.map(alike).chain(controls(stand, names)).collect()
}

/// What a pair's name says, what exists, what does not.
type Compared = (&'static str, Vec<Probe>, Vec<Probe>);

fn alike((name, a, b): Compared) -> Pair {
    Pair { name, expected: Expected::Alike, a: a.into(), b: b.into() }
}

fn of_pods(stand: &Stand, names: &Names) -> Vec<Compared> {
    let driver = driver_token(stand);
    // As many pods as names: of few that ask so often, nearly all refusals would be folded into one audit entry.
    let own: Vec<_> =
        (0..names.existing.len()).map(|at| stand.pod_token("own", &format!("own-{at}"), NODE)).collect();
    let of_other_node = |name: &str| stand.pod_token("others", name, "other-node");
    let signed_by_another = |name: &str| {
        let token = || stand.pod_token("others", name, NODE);
        forged(&token(), &token())
    };
    vec![
        compared("pod: another's role", names, |at, name| issue(&driver, &own[at], name, "own/db", name)),
        compared("pod: another's path", names, |at, name| {
            issue(&driver, &own[at], "own", &format!("shop/{name}"), name)
        }),
        compared("pod: subject of a stolen token", names, |_, name| {
            issue(&driver, &of_other_node(name), "own", "own/db", name)
        }),
        compared("pod: subject of a forged token", names, |_, name| {
            issue(&driver, &signed_by_another(name), "own", "own/db", name)
        }),
    ]
}

fn of_operators(stand: &Stand, names: &Names) -> Vec<Compared> {
    let own = stand.people.token("own", &[]);
    let signed_by_another = |name: &str| {
        let token = || stand.people.token(name, &[]);
        forged(&token(), &token())
    };
    let revoked = names.existing.iter().map(|name| with_token(revoked_token(stand, name)));
    let nearly_live = names.existing.iter().map(|name| with_token(with_end(&stand.admin_token, name)));
    vec![
        compared("operator: another's path", names, |_, name| get(&own, &format!("shop/{name}"), name)),
        compared("operator: subject of a forged token", names, |_, name| {
            get(&signed_by_another(name), "own/db", name)
        }),
        ("operator: revoked token", revoked.collect(), with_unknown_tokens(names)),
        ("operator: live token but for its end", nearly_live.collect(), with_unknown_tokens(names)),
    ]
}

/// Pairs that differ, so that a run shows what it can find.
fn controls(stand: &Stand, names: &Names) -> Vec<Pair> {
    let driver = driver_token(stand);
    let own = stand.pod_token("own", "own", NODE);
    let refused = || names.missing.iter().map(|name| issue(&driver, &own, name, "own/db", name)).collect();
    let granted = iter::once(issue(&driver, &own, "own", "own/db", "own"));
    let control = |name, a, b| Pair { name, expected: Expected::Differ, a, b };
    let delayed = |probes, micros| Arm { probes, delay: Duration::from_micros(micros) };
    vec![
        control(
            "control: operator, 20 µs more",
            with_unknown_tokens(names).into(),
            delayed(with_unknown_tokens(names), 20),
        ),
        control("control: pod, 100 µs more", Arm::from(refused()), delayed(refused(), 100)),
        control("control: pod, granted and refused", granted.collect::<Vec<_>>().into(), refused().into()),
    ]
}

/// The probe of each name, by its place among those of its arm.
fn compared(pair: &'static str, names: &Names, probe: impl Fn(usize, &str) -> Probe) -> Compared {
    let arm = |names: &[String]| names.iter().enumerate().map(|(at, name)| probe(at, name)).collect();
    (pair, arm(&names.existing), arm(&names.missing))
}

fn issue(driver_token: &str, pod_token: &str, role: &str, path: &str, name: &str) -> Probe {
    let [driver_token, pod_token, role, path] = [driver_token, pod_token, role, path].map(str::to_owned);
    Probe { question: Question::Issue { driver_token, pod_token, role, path }, name: name.to_owned() }
}

fn get(token: &str, path: &str, name: &str) -> Probe {
    Probe { question: Question::Get { token: token.into(), path: path.into() }, name: name.to_owned() }
}

fn with_token(token: String) -> Probe {
    get(&token, "own/db", &token)
}

fn with_unknown_tokens(names: &Names) -> Vec<Probe> {
    names.missing.iter().map(|_| with_token(new_admin_token())).collect()
}

fn driver_token(stand: &Stand) -> String {
    stand.pod_token("keyfold-system", "keyfold-csi", NODE)
}

/// The first token with the signature of the second one, by the same key.
fn forged(token: &str, other: &str) -> String {
    let parts = |token: &str| {
        token.rsplit_once('.').map(|(signed, signature)| (signed.to_owned(), signature.to_owned()))
    };
    let ((signed, _), (_, signature)) = parts(token).zip(parts(other)).expect("a JWT has three parts");
    format!("{signed}.{signature}")
}

fn new_admin_token() -> String {
    let (token, _) = generate_admin_token(&SystemEntropy).expect("randomness");
    String::from_utf8(token.into_vec()).expect("a token is text")
}

/// A token that Postgres knows as revoked.
fn revoked_token(stand: &Stand, name: &str) -> String {
    let token = new_admin_token();
    stand.database.sql(&format!(
        "INSERT INTO admin_tokens (id, name, token_hash, created_at, revoked_at)
         VALUES (gen_random_uuid(), '{name}', sha256('{token}'), now(), now())"
    ));
    token
}

fn with_end(token: &str, end: &str) -> String {
    format!("{}{end}", &token[..token.len() - end.len()])
}
