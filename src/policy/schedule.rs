//! When a schedule runs, and the worst that it can lose.

use super::Tier;
use super::duration::Shown;
use super::moment::Moment;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use std::fmt;
use std::time::Duration;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TimetableError {
    #[error("expected five fields (minute hour day-of-month month day-of-week) or a name such as @hourly: {0}")]
    Pattern(String),
    #[error("no moment matches it")]
    Never,
}

/// A cron pattern in a time zone.
#[derive(Clone, Debug)]
pub struct Timetable {
    cron: Cron,
    pattern: String,
    zone: TimeZone,
}

impl Timetable {
    /// # Errors
    /// The pattern is not one, or matches no moment at all.
    pub fn new(pattern: &str, zone: TimeZone) -> Result<Self, TimetableError> {
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(pattern).map_err(|why| TimetableError::Pattern(why.to_string()))?;
        let this = Self { cron, pattern: pattern.to_owned(), zone };
        // The calendar repeats after 28 years, but for skipped leap days.
        match this.next_after(Timestamp::UNIX_EPOCH) {
            Some(_) => Ok(this),
            None => Err(TimetableError::Never),
        }
    }

    #[must_use]
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    #[must_use]
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// The first run later than `time`.
    #[must_use]
    pub fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        let next = self.cron.find_next_occurrence(&Moment::new(time, &self.zone), false);
        next.ok().map(|moment| moment.0.timestamp())
    }

    /// The last run at or before `time`.
    #[must_use]
    pub fn last_at_or_before(&self, time: Timestamp) -> Option<Timestamp> {
        let last = self.cron.find_previous_occurrence(&Moment::new(time, &self.zone), true);
        last.ok().map(|moment| moment.0.timestamp())
    }

    /// The longest time between two runs, over at least a year from `from`, changes of the clock included.
    ///
    /// All days of 24 hours that have runs have the same ones, so only the first of them and the days on which the clock
    /// changes are walked run by run.
    #[must_use]
    pub fn longest_interval(&self, from: Timestamp) -> Duration {
        let end = from.checked_add(SignedDuration::from_hours(366 * 24)).unwrap_or(Timestamp::MAX);
        let start = from.to_zoned_datetime(self.zone.clone()).start_of_day().map_or(from, |z| z.timestamp());
        let mut longest = Duration::ZERO;
        let mut walked = false;
        let mut first = self.last_at_or_before(start).or_else(|| self.next_after(start));
        while let Some(run) = first.filter(|run| *run <= end) {
            let (last, ordinary) = self.last_of_day(run);
            let mut at = if ordinary && walked { last } else { run };
            walked |= ordinary && run >= start;
            loop {
                let Some(next) = self.next_after(at) else { return longest };
                longest = longest.max(Duration::try_from(next.duration_since(at)).unwrap_or_default());
                if at >= last {
                    first = Some(next);
                    break;
                }
                at = next;
            }
        }
        longest
    }

    /// The last run of the day of `run`, and whether that day has 24 hours.
    fn last_of_day(&self, run: Timestamp) -> (Timestamp, bool) {
        let today = run.to_zoned_datetime(self.zone.clone()).start_of_day();
        let tomorrow = today.as_ref().ok().and_then(|day| day.tomorrow().ok()?.start_of_day().ok());
        let (Ok(today), Some(tomorrow)) = (today, tomorrow) else { return (run, false) };
        let ordinary = today.duration_until(&tomorrow) == SignedDuration::from_hours(24);
        let before = tomorrow.timestamp() - SignedDuration::from_secs(1);
        (self.last_at_or_before(before).unwrap_or(run).max(run), ordinary)
    }
}

/// Where a run's duration comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Took {
    /// The schedule's own limit: a run past it commits nothing.
    Limit(Duration),
    /// What past runs took, upload included.
    Measured(Duration),
}

/// The greatest age that a schedule's newest recovery point can reach while every run succeeds: the interval, and the
/// delay and duration of the run that ends it, upload included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorstCase {
    pub interval: Duration,
    pub start_delay: Duration,
    pub took: Took,
}

impl WorstCase {
    #[must_use]
    pub fn total(&self) -> Duration {
        let (Took::Limit(took) | Took::Measured(took)) = self.took;
        self.interval.saturating_add(self.start_delay).saturating_add(took)
    }

    #[must_use]
    pub fn meets(&self, tier: Tier) -> bool {
        self.total() <= tier.rpo()
    }

    /// The arithmetic: "every 5 m + start delay 30 s + duration 60 s = 6 m 30 s > 5 m (critical)".
    #[must_use]
    pub fn arithmetic(&self, tier: Tier) -> String {
        let sign = if self.meets(tier) { "≤" } else { ">" };
        format!("{self} {sign} {} ({tier})", Shown(tier.rpo()))
    }
}

impl fmt::Display for WorstCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, took) = match self.took {
            Took::Limit(took) => ("duration limit", took),
            Took::Measured(took) => ("measured duration", took),
        };
        write!(f, "every {} + start delay {}", Shown(self.interval), Shown(self.start_delay))?;
        write!(f, " + {what} {} = {}", Shown(took), Shown(self.total()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn timetable(pattern: &str, zone: &str) -> Timetable {
        Timetable::new(pattern, TimeZone::get(zone).unwrap()).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    const HOUR: u64 = 3_600;

    #[test]
    fn runs_are_found_on_both_sides() {
        let table = timetable("*/5 * * * *", "UTC");
        assert_eq!(table.next_after(at("2026-03-01T12:00:00Z")), Some(at("2026-03-01T12:05:00Z")));
        assert_eq!(table.last_at_or_before(at("2026-03-01T12:00:00Z")), Some(at("2026-03-01T12:00:00Z")));
        assert_eq!(table.last_at_or_before(at("2026-03-01T12:00:00.5Z")), Some(at("2026-03-01T12:00:00Z")));
        let oslo = timetable("30 2 * * *", "Europe/Oslo");
        assert_eq!(oslo.next_after(at("2026-01-01T12:00:00Z")), Some(at("2026-01-02T01:30:00Z")));
        assert_eq!(oslo.next_after(at("2026-07-01T12:00:00Z")), Some(at("2026-07-02T00:30:00Z")));
    }

    #[test]
    fn bad_patterns_are_refused() {
        let new = |pattern| Timetable::new(pattern, TimeZone::UTC).map(|_| ());
        assert!(matches!(new("*/5 * * *"), Err(TimetableError::Pattern(_))));
        assert!(matches!(new("0 */5 * * * *"), Err(TimetableError::Pattern(_))), "seconds are not in the language");
        assert!(matches!(new("61 * * * *"), Err(TimetableError::Pattern(_))));
        assert!(matches!(new(""), Err(TimetableError::Pattern(_))));
        assert_eq!(new("0 0 31 2 *"), Err(TimetableError::Never));
        assert_eq!(new("@hourly"), Ok(()));
    }

    #[test]
    fn the_longest_interval_counts_changes_of_the_clock() {
        let from = at("2026-01-15T10:20:30Z");
        let longest = |pattern, zone| timetable(pattern, zone).longest_interval(from).as_secs();
        assert_eq!(longest("*/5 * * * *", "UTC"), 300);
        assert_eq!(longest("0,10,40 * * * *", "UTC"), 30 * 60);
        assert_eq!(longest("0 3 * * *", "UTC"), 24 * HOUR);
        assert_eq!(longest("0 3 * * *", "Europe/Oslo"), 25 * HOUR);
        assert_eq!(longest("0 9 * * MON-FRI", "Europe/Oslo"), 73 * HOUR);
        assert_eq!(longest("0 0 1 * *", "UTC"), 31 * 24 * HOUR);
        assert!(longest("0 0 29 2 *", "UTC") >= 4 * 365 * 24 * HOUR);
        // Every two hours of the wall clock: an hour more when the clock goes back between two runs, at most.
        assert!((2 * HOUR..=3 * HOUR).contains(&longest("30 */2 * * *", "Europe/Oslo")));
    }

    #[test]
    fn the_arithmetic_is_shown() {
        let case = |took| WorstCase { interval: Duration::from_mins(5), start_delay: Duration::from_secs(30), took };
        let refused = case(Took::Limit(Duration::from_mins(1)));
        assert!(!refused.meets(Tier::Critical) && refused.meets(Tier::Standard));
        insta::assert_snapshot!(refused.arithmetic(Tier::Critical), @"every 5 m + start delay 30 s + duration limit 1 m = 6 m 30 s > 5 m (critical)");
        let measured = case(Took::Measured(Duration::from_secs(12)));
        insta::assert_snapshot!(measured.arithmetic(Tier::Standard), @"every 5 m + start delay 30 s + measured duration 12 s = 5 m 42 s ≤ 30 m (standard)");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// The shortcut over ordinary days against walking every run.
        #[test]
        fn the_longest_interval_is_what_walking_finds(
            minute in 0_u8..60, every in 1_u8..13, days in prop::sample::select(vec!["*", "1", "*/3", "10-20"]),
            weekdays in prop::sample::select(vec!["*", "SUN", "MON-FRI"]),
            zone in prop::sample::select(vec!["UTC", "Europe/Oslo", "America/New_York", "Australia/Lord_Howe"]),
            day in 0_i64..366,
        ) {
            let table = timetable(&format!("{minute} */{every} {days} * {weekdays}"), zone);
            let from = at("2026-01-01T05:00:00Z") + SignedDuration::from_hours(24 * day);
            let end = from + SignedDuration::from_hours(366 * 24);
            let mut run = table.next_after(from).unwrap();
            let mut longest = Duration::ZERO;
            while run <= end {
                let next = table.next_after(run).unwrap();
                longest = longest.max(next.duration_since(run).try_into().unwrap());
                run = next;
            }
            // The shortcut begins at the run before `from`, so it may see one interval more.
            let found = table.longest_interval(from);
            let first = table.last_at_or_before(from - SignedDuration::from_hours(48)).unwrap();
            let mut before = Duration::ZERO;
            let mut run = first;
            while run <= from {
                let next = table.next_after(run).unwrap();
                before = before.max(next.duration_since(run).try_into().unwrap());
                run = next;
            }
            prop_assert!(found >= longest && found <= longest.max(before), "{found:?} {longest:?} {before:?}");
        }
    }
}
