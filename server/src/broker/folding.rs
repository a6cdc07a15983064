//! Floods of refusals of callers who prove nothing: the first few equal ones of a second have entries of their own, the
//! others are counted and share one, so that such callers can neither fill the database nor hide others' entries.

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

/// The refusals of the present second, by operation and reason: both are closed sets, so there are few.
#[derive(Default)]
pub(crate) struct Folding {
    windows: Mutex<HashMap<(&'static str, String), Window>>,
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
        let (Actor::Unknown { .. }, Outcome::Refused { reason, message, .. }) = (&record.actor, outcome)
        else {
            return true;
        };
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let window = windows.entry((record.operation.name(), reason.clone())).or_insert_with(|| Window {
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
            .map(|((_, reason), window)| {
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
        }
    }

    #[test]
    fn a_flood_is_counted_and_told_once() {
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
    fn who_is_known_is_never_folded() {
        let (folding, start) = (Folding::default(), Instant::now());
        let operator = record(Actor::Operator { name: "o".into() });
        assert!((0..100).all(|_| folding.admits(&operator, &Outcome::refused("conflict", ""), start)));
        assert!((0..100).all(|_| folding.admits(&record(Actor::unknown()), &Outcome::Allowed, start)));
    }
}
