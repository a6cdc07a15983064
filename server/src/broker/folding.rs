//! Floods of refusals: of a caller's equal ones the first few of a second have entries of their own, the others are
//! counted and share one, so that nobody can fill the database or hide others' entries. An operator who holds some right
//! is trusted further: each of their refusals is written.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use keyfold_core::audit::{Actor, Outcome, Record};
use tokio::time::Instant;

/// Equal refusals that are written one by one in each window.
const WRITTEN_MAX: u32 = 16;
/// How long equal refusals are counted together. What was counted is lost if the server ends within it.
const WINDOW: Duration = Duration::from_secs(1);

/// Callers, each with an operation and a reason, that are told apart at once; all others share. One takes some hundred
/// bytes to some thousand.
const WINDOWS_MAX: usize = 4096;

/// The refusals of the present second, by operation, reason and caller.
#[derive(Default)]
pub(crate) struct Folding {
    windows: Mutex<HashMap<(&'static str, String, String), Window>>,
}

struct Window {
    start: Instant,
    written: u32,
    folded: u64,
    first: Record,
    message: String,
}

impl Folding {
    /// Whether an entry is to be written now; otherwise it was counted.
    pub(crate) fn admits(&self, record: &Record, outcome: &Outcome, now: Instant) -> bool {
        let Outcome::Refused { reason, message, .. } = outcome else { return true };
        if record.actor.holds_rights() {
            return true;
        }
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let own = (record.operation.name(), reason.clone(), record.actor.name().to_owned());
        let shared = (own.0, own.1.clone(), Actor::unknown().name().to_owned());
        let key = if windows.len() < WINDOWS_MAX || windows.contains_key(&own) { own } else { shared };
        let window = windows.entry(key).or_insert_with(|| Window {
            start: now,
            written: 0,
            folded: 0,
            first: record.clone(),
            message: message.clone(),
        });
        if window.written < WRITTEN_MAX {
            window.written += 1;
            return true;
        }
        window.folded += 1;
        false
    }

    /// The entries of what was counted in seconds that are over.
    pub(crate) fn due(&self, now: Instant) -> Vec<(Record, Outcome)> {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let over = windows.extract_if(|_, window| now.duration_since(window.start) >= WINDOW);
        over.filter(|(_, window)| window.folded > 0)
            .map(|((_, reason, _), window)| {
                let Window { first, message, folded, .. } = window;
                (first, Outcome::Refused { reason, message, folded })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use keyfold_core::audit::Operation;
    use uuid::Uuid;

    use super::*;

    fn record(actor: Actor) -> Record {
        Record {
            request_id: Uuid::nil(),
            from: None,
            actor,
            driver: None,
            operation: Operation::AuditList {},
            approval: None,
            generation: None,
        }
    }

    #[test]
    fn attack_16_a_flood_is_counted_and_told_once() {
        let (folding, start) = (Folding::default(), Instant::now());
        let outcome = Outcome::refused("operator-token", "refused");
        let written =
            (0..1000).filter(|_| folding.admits(&record(Actor::unknown()), &outcome, start)).count();
        assert_eq!(written, 16);
        assert!(folding.due(start).is_empty(), "the second is not over");
        let due = folding.due(start + WINDOW);
        assert!(matches!(due[..], [(_, Outcome::Refused { folded: 984, .. })]));
        assert!(folding.due(start + WINDOW).is_empty(), "told once");
        assert!(folding.admits(&record(Actor::unknown()), &outcome, start + WINDOW));
    }

    #[test]
    fn another_reason_is_another_count() {
        let (folding, start) = (Folding::default(), Instant::now());
        for _ in 0..100 {
            folding.admits(&record(Actor::unknown()), &Outcome::refused("token-expired", ""), start);
        }
        assert!(folding.admits(&record(Actor::unknown()), &Outcome::refused("token-signature", ""), start));
    }

    #[test]
    fn who_holds_a_right_is_never_folded_and_who_holds_none_is() {
        let (folding, start) = (Folding::default(), Instant::now());
        let count = |actor: &Actor| {
            let refused = Outcome::refused("operator-not-bound", "");
            (0..100).filter(|_| folding.admits(&record(actor.clone()), &refused, start)).count()
        };
        let operator = |roles: &[&str]| Actor::Operator {
            name: "people/mallory".into(),
            roles: roles.iter().map(|role| (*role).into()).collect(),
            credential_id: None,
        };
        assert_eq!(count(&Actor::administrator("initial-administrator")), 100);
        assert_eq!(count(&operator(&["auditors"])), 100);
        assert_eq!(count(&operator(&[])), 16);
        assert!((0..100).all(|_| folding.admits(&record(operator(&[])), &Outcome::Allowed, start)));
    }

    #[test]
    fn attack_16_a_flood_of_many_names_takes_bounded_memory_and_few_entries() {
        let (folding, start) = (Folding::default(), Instant::now());
        let refused = Outcome::refused("operator-not-bound", "");
        let written = (0..100_000).filter(|n| {
            let name = format!("people/{n}");
            let actor = Actor::Operator { name, roles: Vec::new(), credential_id: None };
            folding.admits(&record(actor), &refused, start)
        });
        assert!(written.count() <= WINDOWS_MAX + 16);
        assert!(folding.windows.lock().unwrap().len() <= WINDOWS_MAX + 1);
    }
}
