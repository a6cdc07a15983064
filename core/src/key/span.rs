//! Lengths of time as people write them: `90d` rather than `2months 29days 2h 52m 48s`.

use std::time::Duration;

use serde::Serializer;

const UNITS: [(u64, &str); 4] = [(24 * 60 * 60, "d"), (60 * 60, "h"), (60, "m"), (1, "s")];

/// In the largest unit that measures it whole; `humantime` reads it back.
pub(crate) fn text(span: Duration) -> String {
    if span.subsec_nanos() > 0 || span.is_zero() {
        return humantime::format_duration(span).to_string();
    }
    let secs = span.as_secs();
    let (unit_secs, unit) =
        UNITS.into_iter().find(|(unit, _)| secs.is_multiple_of(*unit)).unwrap_or((1, "s"));
    format!("{}{unit}", secs / unit_secs)
}

/// The same in at most two units, for telling people how long something was: `34d 6h`.
pub(crate) fn rough(span: time::Duration) -> String {
    let secs = span.whole_seconds().unsigned_abs();
    let Some(at) = UNITS.iter().position(|(unit, _)| secs >= *unit) else { return "0s".to_owned() };
    let (unit_secs, unit) = UNITS[at];
    let whole = format!("{}{unit}", secs / unit_secs);
    match UNITS.get(at + 1).map(|(smaller, name)| (secs % unit_secs / smaller, name)) {
        Some((rest, name)) if rest > 0 => format!("{whole} {rest}{name}"),
        _ => whole,
    }
}

/// For fields of specs, beside `humantime_serde::deserialize`.
pub(crate) fn serialize<S: Serializer>(span: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match span {
        Some(span) => serializer.serialize_str(&text(*span)),
        None => serializer.serialize_none(),
    }
}

/// For arithmetic with points in time. What is longer than any of them is cut.
pub(crate) fn signed(span: Duration) -> time::Duration {
    time::Duration::try_from(span).unwrap_or(time::Duration::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spans_are_written_as_people_write_them() {
        let cases =
            [(90 * 86_400, "90d"), (36 * 3600, "36h"), (90, "90s"), (3600, "1h"), (0, "0s"), (61, "61s")];
        for (secs, expected) in cases {
            assert_eq!(text(Duration::from_secs(secs)), expected);
        }
        let cases =
            [(0, "0s"), (59, "59s"), (60, "1m"), (3_661, "1h 1m"), (2_959_261, "34d 6h"), (-90, "1m 30s")];
        for (secs, expected) in cases {
            assert_eq!(rough(time::Duration::seconds(secs)), expected);
        }
    }

    proptest! {
        #[test]
        fn spans_read_back_as_they_were(millis in 0u64..400_000_000_000) {
            let span = Duration::from_millis(millis);
            prop_assert_eq!(humantime::parse_duration(&text(span)).unwrap(), span);
        }
    }
}
