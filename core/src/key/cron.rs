//! Cron expressions and time zones.
//!
//! An expression speaks of the wall clock, and each of its times counts once: one that comes twice, because the clock
//! is put back, at its first; one that never comes, because the clock is put forward, at the moment of the change.

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{
    Timestamp, ToSpan,
    civil::{DateTime, date},
    tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase},
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::policy::PolicyError;
use crate::name::shortened;

#[cfg(test)]
mod tests;

/// Far more than any expression that somebody can read.
const EXPRESSION_BYTES_MAX: usize = 128;

/// A cron expression of five fields: minute, hour, day of the month, month, day of the week.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CronExpression {
    text: String,
    cron: Box<Cron>,
}

impl CronExpression {
    /// Reads an expression. Its fields are kept with one space between them.
    ///
    /// # Errors
    /// When it is none, has other than five fields, or stands for no day that ever comes.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let fields: Vec<_> = text.split_ascii_whitespace().collect();
        if fields.len() != 5 || text.len() > EXPRESSION_BYTES_MAX || !text.is_ascii() {
            return Err(PolicyError(format!(
                "{:?} is not a cron expression: write five fields (minute, hour, day of the month, month, day of the week), such as \"0 3 * * 1\"",
                shortened(text)
            )));
        }
        let text = fields.join(" ");
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser
            .parse(&text)
            .map_err(|error| PolicyError(format!("{text:?} is not a cron expression: {error}")))?;
        // Whatever comes at all comes within the calendar's cycle of 400 years.
        let first = cron.find_next_occurrence(&date(2001, 1, 1).at(0, 0, 0, 0), true);
        if first.map_or(true, |first| first.year() > 2401) {
            return Err(PolicyError(format!("{text:?} never comes: no such day exists")));
        }
        Ok(Self { text, cron: Box::new(cron) })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The first occurrence after `after`. None within the range of points in time.
    pub(super) fn next_after(&self, zone: &TimeZone, after: OffsetDateTime) -> Option<OffsetDateTime> {
        let after = timestamp(after)?;
        let mut wall = zone.to_datetime(after);
        loop {
            wall = self.cron.find_next_occurrence(&wall, false).ok()?;
            // Within a repeated hour, what the wall clock shows next may have counted the first time.
            let occurrence = instant(zone, wall)?;
            if occurrence > after {
                return offset_date_time(occurrence);
            }
        }
    }

    /// The last occurrence up to `until`, which counts. None within the range of points in time.
    pub(super) fn latest_until(&self, zone: &TimeZone, until: OffsetDateTime) -> Option<OffsetDateTime> {
        let until = timestamp(until)?;
        let mut wall = zone.to_datetime(until);
        if matches!(zone.to_ambiguous_timestamp(wall).offset(), AmbiguousOffset::Fold { .. }) {
            // Later times of the wall clock may have come already, before it was put back. No zone ever went back
            // further than a day.
            wall = wall.checked_add(1.day()).ok()?;
        }
        let mut found = self.cron.find_previous_occurrence(&wall, true).ok()?;
        loop {
            let occurrence = instant(zone, found)?;
            if occurrence <= until {
                return offset_date_time(occurrence);
            }
            found = self.cron.find_previous_occurrence(&found, false).ok()?;
        }
    }
}

impl TryFrom<String> for CronExpression {
    type Error = PolicyError;

    fn try_from(text: String) -> Result<Self, PolicyError> {
        Self::parse(&text)
    }
}

impl From<CronExpression> for String {
    fn from(expression: CronExpression) -> Self {
        expression.text
    }
}

/// A time zone of the IANA database, by name. The database is the one that this release brings, so that replicas
/// agree, whatever their hosts have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Zone(TimeZone);

impl Zone {
    /// The zone of that name; letters of either case.
    ///
    /// # Errors
    /// When there is none.
    pub fn parse(name: &str) -> Result<Self, PolicyError> {
        let zone = TimeZoneDatabase::bundled().get(name).ok().filter(|zone| zone.iana_name().is_some());
        zone.map(Self).ok_or_else(|| {
            PolicyError(format!(
                "{:?} is not a time zone: use a name of the IANA database, such as Europe/Berlin",
                shortened(name)
            ))
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.0.iana_name().unwrap_or("UTC")
    }

    pub(super) fn time_zone(&self) -> &TimeZone {
        &self.0
    }
}

impl TryFrom<String> for Zone {
    type Error = PolicyError;

    fn try_from(name: String) -> Result<Self, PolicyError> {
        Self::parse(&name)
    }
}

impl From<Zone> for String {
    fn from(zone: Zone) -> Self {
        zone.name().to_owned()
    }
}

/// When the wall clock shows `wall` for the first time, or leaps over it.
fn instant(zone: &TimeZone, wall: DateTime) -> Option<Timestamp> {
    match zone.to_ambiguous_timestamp(wall).offset() {
        AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(wall).ok(),
        AmbiguousOffset::Fold { before, .. } => before.to_timestamp(wall).ok(),
        AmbiguousOffset::Gap { after, .. } => {
            // Read with the offset that comes after, a time of the gap lies before the change.
            let before_change = after.to_timestamp(wall).ok()?;
            zone.following(before_change).next().map(|change| change.timestamp())
        }
    }
}

fn timestamp(at: OffsetDateTime) -> Option<Timestamp> {
    Timestamp::from_nanosecond(at.unix_timestamp_nanos()).ok()
}

fn offset_date_time(at: Timestamp) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(at.as_nanosecond()).ok()
}
