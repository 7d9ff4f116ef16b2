//! The source-regression guard: does a capture look like the same system, further on?
//!
//! Deliberately absent: what becomes of a suspicious capture. The snapshot is kept in quarantine by whoever commits it.

use crate::entry::Facts;

/// What a capture must satisfy against the newest good snapshot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// The share of the previous number of objects that must still be there, 0 to 1; 0 switches the rule off.
    pub minimum_share: f64,
}

/// Systems smaller than this lose half of their objects in daily work.
const FEW_OBJECTS: u64 = 10;

impl Default for Rules {
    fn default() -> Self {
        Self { minimum_share: 0.5 }
    }
}

/// Why the capture belongs in quarantine; empty when it does not. `previous` is the newest good snapshot's, or that of one
/// in quarantine which a person has accepted.
#[must_use]
pub fn judge(previous: &Facts, now: &Facts, rules: &Rules) -> Vec<String> {
    let mut reasons = Vec::new();
    match (&previous.system, &now.system) {
        (Some(was), Some(is)) if was != is => {
            reasons.push(format!("it is another system: its identity is {is}, it was {was}"));
        }
        (Some(was), None) => reasons.push(format!("its identity is not known, it was {was}")),
        _ => {}
    }
    match (previous.position, now.position) {
        (Some(was), Some(is)) if is < was => {
            reasons.push(format!("it went back in time: its position is {is}, it was {was}"));
        }
        (Some(was), None) => reasons.push(format!("its position is not known, it was {was}")),
        _ => {}
    }
    if let (Some(was), Some(is)) = (previous.objects, now.objects)
        && rules.minimum_share > 0.0
    {
        let too_few = was >= FEW_OBJECTS && (is as f64) < was as f64 * rules.minimum_share;
        if is == 0 && was > 0 {
            reasons.push(format!("it is empty, it had {was} objects"));
        } else if too_few {
            let share = rules.minimum_share * 100.0;
            reasons.push(format!("it has {is} objects, it had {was} (at least {share:.0} % must remain)"));
        }
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(system: &str, position: u64, objects: u64) -> Facts {
        Facts { system: Some(system.into()), position: Some(position), objects: Some(objects), ..Facts::default() }
    }

    #[test]
    fn a_system_that_moved_on_is_fine() {
        assert!(judge(&facts("a", 5, 100), &facts("a", 5, 50), &Rules::default()).is_empty());
        assert!(judge(&Facts::default(), &facts("a", 5, 0), &Rules::default()).is_empty());
        assert!(judge(&facts("a", 5, 9), &facts("a", 6, 1), &Rules::default()).is_empty());
    }

    #[test]
    fn a_regression_is_named() {
        let reasons = judge(&facts("a", 9, 100), &facts("b", 8, 49), &Rules::default());
        insta::assert_snapshot!(reasons.join("\n"), @"
        it is another system: its identity is b, it was a
        it went back in time: its position is 8, it was 9
        it has 49 objects, it had 100 (at least 50 % must remain)
        ");
        let reasons = judge(&facts("a", 9, 3), &Facts { objects: Some(0), ..Facts::default() }, &Rules::default());
        insta::assert_snapshot!(reasons.join("\n"), @"
        its identity is not known, it was a
        its position is not known, it was 9
        it is empty, it had 3 objects
        ");
    }

    #[test]
    fn the_share_can_be_chosen() {
        let (was, is) = (facts("a", 1, 100), facts("a", 1, 85));
        assert_eq!(judge(&was, &is, &Rules { minimum_share: 0.9 }).len(), 1);
        assert!(judge(&was, &facts("a", 1, 0), &Rules { minimum_share: 0.0 }).is_empty());
    }
}
