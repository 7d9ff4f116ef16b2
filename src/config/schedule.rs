//! `kind: Schedule`: which sources, when, how strictly, and what stays.

use super::At;
use super::decode::Wrong;
use super::mistake::nearest;
use super::node::Node;
use crate::id::SourceName;
use crate::policy::schedule::{Timetable, Took, WorstCase};
use crate::policy::{Tier, duration, retention};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Deserialize;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Schedule {
    pub name: String,
    pub at: At,
    /// Name of a `Repository`.
    pub repository: String,
    pub tier: Tier,
    pub timetable: Timetable,
    /// A run begins at most this long after its moment.
    pub start_delay: Duration,
    /// A run that takes longer is stopped and commits nothing.
    pub max_duration: Duration,
    pub sources: Vec<SourceName>,
    pub retention: retention::Policy,
    pub suspend: bool,
    pub replica: Option<Replica>,
}

/// The second copy that a schedule's sources are to have.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Name of a `Repository`.
    pub to: String,
    pub timetable: Timetable,
    pub max_duration: Duration,
}

impl Schedule {
    /// How far behind the replica can fall while every run succeeds.
    #[must_use]
    pub fn worst_lag(&self, from: Timestamp) -> Option<WorstCase> {
        let replica = self.replica.as_ref()?;
        let interval = replica.timetable.longest_interval(from);
        Some(WorstCase { interval, start_delay: self.start_delay, took: Took::Limit(replica.max_duration) })
    }

    /// The worst case, reckoned with what runs took, or with what they may take.
    #[must_use]
    pub fn worst_case(&self, from: Timestamp, measured: Option<Duration>) -> WorstCase {
        WorstCase {
            interval: self.timetable.longest_interval(from),
            start_delay: self.start_delay,
            took: measured.map_or(Took::Limit(self.max_duration), Took::Measured),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Document {
    repository: String,
    tier: Tier,
    cron: String,
    #[serde(default = "utc")]
    time_zone: String,
    #[serde(default = "half_a_minute", with = "duration::text")]
    start_delay: Duration,
    #[serde(with = "duration::text")]
    max_duration: Duration,
    sources: Vec<String>,
    #[serde(default)]
    retention: retention::Policy,
    #[serde(default)]
    suspend: bool,
    replica: Option<ReplicaDocument>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ReplicaDocument {
    to: String,
    /// Without it, the schedule's own.
    cron: Option<String>,
    #[serde(default, deserialize_with = "duration::text::optional")]
    max_duration: Option<Duration>,
}

fn utc() -> String {
    "UTC".into()
}

fn half_a_minute() -> Duration {
    Duration::from_secs(30)
}

impl Document {
    pub(super) fn into_schedule(self, name: String, at: At, document: &Node) -> Result<Schedule, Vec<Wrong>> {
        let mut wrong = Vec::new();
        let mut say = |field: &str, message: String| {
            wrong.push(Wrong { line: document.line_of(field), field: field.into(), message });
        };
        let zone = TimeZone::get(&self.time_zone).unwrap_or_else(|_| {
            let known: Vec<_> = jiff::tz::db().available().map(|name| name.to_string()).collect();
            let known: Vec<_> = known.iter().map(String::as_str).collect();
            let hint = match nearest(&self.time_zone, &known) {
                Some(near) => format!("did you mean {near:?}?"),
                None => "expected a name such as \"Europe/Oslo\" or \"UTC\"".into(),
            };
            say("spec.timeZone", format!("{:?} is not an IANA time zone; {hint}", self.time_zone));
            TimeZone::UTC
        });
        let timetable = Timetable::new(&self.cron, zone.clone());
        if let Err(why) = &timetable {
            say("spec.cron", format!("{:?} is not a timetable: {why}", self.cron));
        }
        if self.sources.is_empty() {
            say("spec.sources", "expected the name of at least one Source".into());
        }
        let mut sources = Vec::new();
        for (index, source) in self.sources.iter().enumerate() {
            let field = format!("spec.sources[{index}]");
            match source.parse::<SourceName>() {
                Ok(source) if sources.contains(&source) => say(&field, "it is in the list already".into()),
                Ok(source) => sources.push(source),
                Err(why) => say(&field, why.to_string()),
            }
        }
        let replica = self.replica.and_then(|replica| {
            if replica.to == self.repository {
                say("spec.replica.to", "a repository cannot be a replica of itself".into());
            }
            let timetable = Timetable::new(replica.cron.as_ref().unwrap_or(&self.cron), zone);
            if let (Err(why), Some(cron)) = (&timetable, &replica.cron) {
                say("spec.replica.cron", format!("{cron:?} is not a timetable: {why}"));
            }
            let max_duration = replica.max_duration.unwrap_or(self.max_duration);
            Some(Replica { to: replica.to, timetable: timetable.ok()?, max_duration })
        });
        let Ok(timetable) = timetable else { return Err(wrong) };
        if !wrong.is_empty() {
            return Err(wrong);
        }
        Ok(Schedule {
            name,
            at,
            repository: self.repository,
            tier: self.tier,
            timetable,
            start_delay: self.start_delay,
            max_duration: self.max_duration,
            sources,
            retention: self.retention,
            suspend: self.suspend,
            replica,
        })
    }
}
