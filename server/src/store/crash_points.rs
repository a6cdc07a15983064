//! Places where a test can have the server die: just before and just after the commit of each transaction. Only builds
//! for development have them. `KEYFOLD_CRASH_AT=key.activate:after` names a transaction and a moment;
//! `key.rewrap:before:3` means the third time that one is passed. `@FILE` means what the file says at that time, if there
//! is one: a test can make up its mind while the server runs.

use std::sync::{Mutex, PoisonError};

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
    /// What was wanted last, and how often that was passed.
    static PASSED: Mutex<(String, u32)> = Mutex::new((String::new(), 0));
    let Some(text) = wanted() else { return };
    let wanted =
        parse(&text).unwrap_or_else(|| panic!("KEYFOLD_CRASH_AT: {text:?} is not NAME:before|after[:NTH]"));
    if wanted.transaction != transaction || wanted.moment != moment {
        return;
    }
    let mut passed = PASSED.lock().unwrap_or_else(PoisonError::into_inner);
    if passed.0 != text {
        *passed = (text, 0);
    }
    passed.1 += 1;
    if passed.1 == wanted.nth {
        tracing::error!(transaction, ?moment, "crash point");
        std::process::abort();
    }
}

fn wanted() -> Option<String> {
    let text = std::env::var("KEYFOLD_CRASH_AT").ok()?;
    match text.strip_prefix('@') {
        Some(file) => std::fs::read_to_string(file).ok(),
        None => Some(text),
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
