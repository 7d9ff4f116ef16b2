//! Does the newest recovery point keep its tier's promise?

use super::Tier;
use jiff::Timestamp;
use serde::Serialize;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Met,
    Missed,
    /// There is no recovery point at all.
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Objective {
    pub verdict: Verdict,
    /// Age of the newest recovery point: what a disaster now would lose. One dated in the future counts as of now.
    pub age: Option<Duration>,
    /// Time until the objective is missed; zero once it is.
    pub remaining: Duration,
}

/// Judges the moment that the newest good snapshot's data represents.
#[must_use]
pub fn judge(tier: Tier, recovery_point: Option<Timestamp>, now: Timestamp) -> Objective {
    let Some(point) = recovery_point else {
        return Objective { verdict: Verdict::Never, age: None, remaining: Duration::ZERO };
    };
    let age = Duration::try_from(now.duration_since(point)).unwrap_or_default();
    let verdict = if age <= tier.rpo() { Verdict::Met } else { Verdict::Missed };
    Objective { verdict, age: Some(age), remaining: tier.rpo().saturating_sub(age) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_held_against_the_tier() {
        let now: Timestamp = "2026-03-01T12:00:00Z".parse().unwrap();
        let at = |seconds| judge(Tier::Critical, Some(now - Duration::from_secs(seconds)), now);
        assert_eq!((at(299).verdict, at(299).remaining), (Verdict::Met, Duration::from_secs(1)));
        assert_eq!((at(300).verdict, at(300).remaining), (Verdict::Met, Duration::ZERO));
        assert_eq!((at(301).verdict, at(301).remaining), (Verdict::Missed, Duration::ZERO));
        assert_eq!(judge(Tier::Critical, None, now).verdict, Verdict::Never);
        let future = judge(Tier::Standard, Some(now + Duration::from_mins(1)), now);
        assert_eq!((future.verdict, future.age), (Verdict::Met, Some(Duration::ZERO)));
    }
}
