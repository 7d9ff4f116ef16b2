//! Which snapshots stay: a plan, made before anything is removed.
//!
//! - A policy that asks for nothing keeps everything.
//! - The newest good snapshot stays, and the one with the highest number, whatever it is: the next number follows it.
//! - `last`, `hourly`, … count good snapshots. An incomplete one fills only a place that no good one fills, newer than the
//!   oldest good one the rule keeps; so incomplete snapshots never push good ones out, however many there are.
//! - `within` reaches back from the newest good snapshot, not from now: when backups stop, history stays.
//! - A quarantined snapshot counts for nothing. It stays while no later one is good (it may be the truth after all), and
//!   then for [`QUARANTINE`], or `within` if that is longer, since someone may still ask what happened.
//! - `time` is the store's time of the manifest, never the writer's clock. A snapshot dated later than now stays and
//!   counts for nothing, so that a mistaken date pushes nothing out.
//!
//! Deliberately absent: removing anything. A sweep reads the references again before it does.

use crate::id::Sequence;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// How long a quarantined snapshot stays after a later one was good.
pub const QUARANTINE: Duration = Duration::from_hours(30 * 24);

/// Clocks of a store and of whoever asks may differ by this much.
const SKEW: SignedDuration = SignedDuration::from_mins(5);

/// What a snapshot is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    Good,
    Incomplete,
    Quarantined,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub sequence: Sequence,
    /// When the store received the manifest.
    pub time: Timestamp,
    pub standing: Standing,
}

/// How many snapshots to keep by each rule; what any rule keeps stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Policy {
    pub last: u32,
    pub hourly: u32,
    pub daily: u32,
    /// Weeks begin on Monday (ISO 8601).
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
    #[serde(deserialize_with = "within")]
    pub within: Option<Duration>,
}

fn within<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    super::duration::parse(&text).map(Some).map_err(serde::de::Error::custom)
}

impl Policy {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.within.is_none() && self.counts().iter().all(|(_, count)| *count == 0)
    }

    fn counts(&self) -> [(Rule, u32); 6] {
        [
            (Rule::Last, self.last),
            (Rule::Hourly, self.hourly),
            (Rule::Daily, self.daily),
            (Rule::Weekly, self.weekly),
            (Rule::Monthly, self.monthly),
            (Rule::Yearly, self.yearly),
        ]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Last,
    Hourly,
    Daily,
    Weekly,
    Monthly,
    Yearly,
}

/// Names a rule's place; a later place is greater.
type Place = (i64, i8, i8);

impl Rule {
    fn place(self, candidate: &Candidate, zone: &TimeZone) -> Place {
        let local = candidate.time.to_zoned_datetime(zone.clone());
        let (year, month, day) = (i64::from(local.year()), local.month(), local.day());
        match self {
            Self::Last => (i64::try_from(candidate.sequence.0).unwrap_or(i64::MAX), 0, 0),
            // Hours of the world, cut where the zone cuts them: one that the clock repeats is two.
            Self::Hourly => {
                let shift = i64::from(local.offset().seconds()).rem_euclid(3_600);
                ((candidate.time.as_second() + shift).div_euclid(3_600), 0, 0)
            }
            Self::Daily => (year, month, day),
            Self::Weekly => {
                let week = local.date().iso_week_date();
                (i64::from(week.year()), week.week(), 0)
            }
            Self::Monthly => (year, month, 0),
            Self::Yearly => (year, 0, 0),
        }
    }

    fn reason(self) -> Reason {
        match self {
            Self::Last => Reason::Last,
            Self::Hourly => Reason::Hourly,
            Self::Daily => Reason::Daily,
            Self::Weekly => Reason::Weekly,
            Self::Monthly => Reason::Monthly,
            Self::Yearly => Reason::Yearly,
        }
    }
}

/// Why a snapshot stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    /// The policy asks for nothing.
    NoPolicy,
    NewestGood,
    /// The newest that is not in quarantine, though it is incomplete.
    Latest,
    HighestNumber,
    Last,
    Hourly,
    Daily,
    Weekly,
    Monthly,
    Yearly,
    Within,
    Quarantined,
    /// The store dates it later than now.
    Future,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPolicy => "no policy",
            Self::NewestGood => "newest good",
            Self::Latest => "latest",
            Self::HighestNumber => "highest number",
            Self::Last => "last",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
            Self::Within => "within",
            Self::Quarantined => "quarantined",
            Self::Future => "dated in the future",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub sequence: Sequence,
    pub keep: bool,
    /// Why it stays, in order; empty when it goes.
    pub reasons: Vec<Reason>,
}

/// Decides about every snapshot of a source, newest number first. The order of `candidates` does not matter.
#[must_use]
pub fn select(candidates: &[Candidate], policy: &Policy, now: Timestamp, zone: &TimeZone) -> Vec<Decision> {
    let mut reasons: BTreeMap<Sequence, BTreeSet<Reason>> =
        candidates.iter().map(|c| (c.sequence, BTreeSet::new())).collect();
    let mut keep = |sequence: Sequence, reason| {
        reasons.entry(sequence).or_default().insert(reason);
    };
    if policy.is_empty() {
        for candidate in candidates {
            keep(candidate.sequence, Reason::NoPolicy);
        }
    }
    let latest = now.checked_add(SKEW).unwrap_or(Timestamp::MAX);
    let newest_of = |standing| candidates.iter().filter(|c| c.standing == standing).max_by_key(|c| c.sequence);
    let newest_good = newest_of(Standing::Good);
    if let Some(good) = newest_good {
        keep(good.sequence, Reason::NewestGood);
    }
    // A partial one that is newer is what `latest` means.
    if let Some(newest) =
        newest_of(Standing::Incomplete).filter(|one| newest_good.is_none_or(|good| good.sequence < one.sequence))
    {
        keep(newest.sequence, Reason::Latest);
    }
    if let Some(highest) = candidates.iter().map(|c| c.sequence).max() {
        keep(highest, Reason::HighestNumber);
    }
    let anchor = newest_good.or_else(|| newest_of(Standing::Incomplete)).map_or(now, |c| c.time.min(now));
    let reaches = |within: Duration| anchor.checked_sub(within).unwrap_or(Timestamp::MIN);
    let mut counted = Vec::new();
    for candidate in candidates {
        let Candidate { sequence, time, standing } = *candidate;
        if standing == Standing::Quarantined {
            let unresolved = newest_good.is_none_or(|good| good.sequence < sequence);
            if unresolved || time >= reaches(QUARANTINE.max(policy.within.unwrap_or_default())) {
                keep(sequence, Reason::Quarantined);
            }
        } else if time > latest {
            keep(sequence, Reason::Future);
        } else {
            counted.push(candidate);
            if policy.within.is_some_and(|within| time >= reaches(within)) {
                keep(sequence, Reason::Within);
            }
        }
    }
    for (rule, count) in policy.counts() {
        for sequence in fill(&counted, rule, count as usize, zone) {
            keep(sequence, rule.reason());
        }
    }
    let decide = |(sequence, reasons): (Sequence, BTreeSet<Reason>)| Decision {
        sequence,
        keep: !reasons.is_empty(),
        reasons: reasons.into_iter().collect(),
    };
    reasons.into_iter().rev().map(decide).collect()
}

/// The newest snapshot of each of a rule's `count` newest places.
fn fill(counted: &[&Candidate], rule: Rule, count: usize, zone: &TimeZone) -> Vec<Sequence> {
    if count == 0 {
        return Vec::new();
    }
    let places = |standing| {
        let mut places: BTreeMap<Place, (Timestamp, Sequence)> = BTreeMap::new();
        for candidate in counted.iter().filter(|c| c.standing == standing) {
            let this = (candidate.time, candidate.sequence);
            let best = places.entry(rule.place(candidate, zone)).or_insert(this);
            *best = this.max(*best);
        }
        places
    };
    let (good, incomplete) = (places(Standing::Good), places(Standing::Incomplete));
    // Older than this, an incomplete snapshot is not kept where a good one would not be.
    let horizon = good.keys().rev().nth(count - 1);
    let instead = incomplete.iter().rev().filter(|(place, _)| !good.contains_key(*place));
    let instead = instead.take_while(|(place, _)| horizon.is_none_or(|horizon| *place > horizon));
    let kept = good.values().rev().take(count).chain(instead.map(|(_, best)| best).take(count));
    kept.map(|(_, sequence)| *sequence).collect()
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
