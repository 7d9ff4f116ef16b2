//! jiff's times as croner asks for them (croner itself knows an older jiff).

use croner::errors::CronError;
use croner::{CivilDate, CivilDateTime, CivilTime, CronDateTime, Resolution, Weekday};
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp, ZonedDateTime};
use std::cmp::Ordering;

/// A moment, with the zone whose wall clock the pattern speaks of.
#[derive(Clone, Debug)]
pub(super) struct Moment(pub ZonedDateTime);

impl Moment {
    pub fn new(time: Timestamp, zone: &TimeZone) -> Self {
        Self(ZonedDateTime::new(time, zone.clone()))
    }
}

fn number(value: i8) -> u32 {
    u32::try_from(value).unwrap_or_default()
}

fn small(value: u32) -> Result<i8, CronError> {
    i8::try_from(value).map_err(|_| CronError::InvalidTime)
}

impl CronDateTime for Moment {
    fn to_civil(&self) -> CivilDateTime {
        let at = self.0.datetime();
        let date = CivilDate::from_parts_unchecked(at.year().into(), number(at.month()), number(at.day()));
        let time = CivilTime::from_parts_unchecked(number(at.hour()), number(at.minute()), number(at.second()));
        CivilDateTime::new(date, time)
    }

    fn civil_weekday(&self) -> Weekday {
        Weekday::from_days_from_sunday(number(self.0.weekday().to_sunday_zero_offset()))
    }

    fn resolve_civil(&self, civil: CivilDateTime) -> Result<Resolution<Self>, CronError> {
        let year = i16::try_from(civil.year()).map_err(|_| CronError::InvalidDate)?;
        let (month, day) = (small(civil.month())?, small(civil.day())?);
        let (hour, minute, second) = (small(civil.hour())?, small(civil.minute())?, small(civil.second())?);
        let at = DateTime::new(year, month, day, hour, minute, second, 0).map_err(|_| CronError::InvalidDate)?;
        let there = self.0.time_zone().to_ambiguous_zoned_datetime(at);
        let moment = |zoned: Result<ZonedDateTime, _>| zoned.map(Self).map_err(|_: jiff::Error| CronError::InvalidTime);
        Ok(match there.offset() {
            AmbiguousOffset::Unambiguous { .. } => Resolution::Single(moment(there.unambiguous())?),
            AmbiguousOffset::Fold { .. } => {
                Resolution::Ambiguous(moment(there.clone().earlier())?, moment(there.later())?)
            }
            AmbiguousOffset::Gap { .. } => Resolution::Gap,
        })
    }

    fn checked_add_seconds(&self, seconds: i64) -> Option<Self> {
        self.0.checked_add(SignedDuration::from_secs(seconds)).ok().map(Self)
    }

    fn cmp_instant(&self, other: &Self) -> Ordering {
        self.0.timestamp().cmp(&other.0.timestamp())
    }
}
