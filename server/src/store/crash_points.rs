//! Places where a test can have the server die: just before and just after the commit of each transaction. Only builds
//! for development have them. `KEYFOLD_CRASH_AT=key.activate:after` names a transaction and a moment;
//! `key.rewrap:before:3` means the third time that one is passed.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

/// When, seen from a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// Nothing is durable yet.
    Before,
    /// Everything is.
    After,
}

#[derive(Debug, PartialEq, Eq)]
struct CrashPoint {
    transaction: String,
    moment: Moment,
    /// Counts from 1.
    nth: u32,
}

/// Ends the process if this is the place.
///
/// # Panics
/// When the variable is not as described: a test would wait for a crash that never comes.
pub(super) fn pass(transaction: &'static str, moment: Moment) {
    static WANTED: OnceLock<Option<CrashPoint>> = OnceLock::new();
    static PASSED: AtomicU32 = AtomicU32::new(0);
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("KEYFOLD_CRASH_AT").ok()?;
        Some(
            parse(&text)
                .unwrap_or_else(|| panic!("KEYFOLD_CRASH_AT: {text:?} is not NAME:before|after[:NTH]")),
        )
    });
    let Some(wanted) = wanted else { return };
    if wanted.transaction == transaction
        && wanted.moment == moment
        && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == wanted.nth
    {
        tracing::error!(transaction, ?moment, "crash point");
        std::process::abort();
    }
}

fn parse(text: &str) -> Option<CrashPoint> {
    let mut parts = text.split(':');
    let (transaction, moment) = (parts.next()?.to_owned(), parts.next()?);
    let moment = match moment {
        "before" => Moment::Before,
        "after" => Moment::After,
        _ => return None,
    };
    let nth = parts.next().map_or(Some(1), |nth| nth.parse().ok().filter(|nth| *nth > 0))?;
    (parts.next().is_none() && !transaction.is_empty()).then_some(CrashPoint { transaction, moment, nth })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_point_names_a_transaction_a_moment_and_which_time() {
        let point = |nth, moment| Some(CrashPoint { transaction: "key.rewrap".into(), moment, nth });
        assert_eq!(parse("key.rewrap:before"), point(1, Moment::Before));
        assert_eq!(parse("key.rewrap:after:3"), point(3, Moment::After));
        for wrong in
            ["", "key.rewrap", "key.rewrap:during", "key.rewrap:after:0", "key.rewrap:after:1:2", ":after"]
        {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
