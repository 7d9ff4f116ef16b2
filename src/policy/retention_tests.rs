use super::*;
use proptest::prelude::*;

const NOW: &str = "2026-03-01T12:00:00Z";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn candidate(sequence: u64, time: Timestamp, standing: Standing) -> Candidate {
    Candidate { sequence: Sequence(sequence), time, standing }
}

/// One snapshot an hour, the newest now, numbered from 1; `standing` by number.
fn hourly(count: u64, standing: impl Fn(u64) -> Standing) -> Vec<Candidate> {
    let age = |n: u64| SignedDuration::from_hours(i64::try_from(count - n).unwrap());
    (1..=count).map(|n| candidate(n, now() - age(n), standing(n))).collect()
}

fn kept(decisions: &[Decision]) -> Vec<u64> {
    decisions.iter().filter(|d| d.keep).map(|d| d.sequence.0).collect()
}

fn plan(candidates: &[Candidate], policy: Policy) -> Vec<Decision> {
    select(candidates, &policy, now(), &TimeZone::UTC)
}

#[test]
fn rules_add_up_and_say_why() {
    let candidates = hourly(100, |_| Standing::Good);
    let decisions = plan(&candidates, Policy { last: 2, daily: 3, monthly: 2, ..Policy::default() });
    // 100 is Sunday 2026-03-01 12:00; 87 is 23:00 on Saturday, 63 on Friday; 87 is also the last of February.
    assert_eq!(kept(&decisions), [100, 99, 87, 63]);
    let text: Vec<_> = decisions
        .iter()
        .filter(|d| d.keep)
        .map(|d| {
            let reasons: Vec<_> = d.reasons.iter().map(ToString::to_string).collect();
            format!("{}: {}", d.sequence.0, reasons.join(", "))
        })
        .collect();
    insta::assert_snapshot!(text.join("\n"), @"
    100: newest good, highest number, last, daily, monthly
    99: last
    87: daily, monthly
    63: daily
    ");
}

#[test]
fn days_are_those_of_the_zone() {
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let candidates = [
        candidate(1, at("2026-02-27T22:30:00Z"), Standing::Good),
        candidate(2, at("2026-02-27T23:30:00Z"), Standing::Good),
        candidate(3, at("2026-02-28T22:30:00Z"), Standing::Good),
    ];
    let policy = Policy { daily: 2, ..Policy::default() };
    let in_zone = |zone: &str| kept(&select(&candidates, &policy, now(), &TimeZone::get(zone).unwrap()));
    assert_eq!(in_zone("UTC"), [3, 2]);
    assert_eq!(in_zone("Europe/Oslo"), [3, 1]);
}

#[test]
fn weeks_and_years_are_iso_where_they_meet() {
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    // Monday 2025-12-29 begins the first week of 2026.
    let candidates = [
        candidate(1, at("2025-12-28T12:00:00Z"), Standing::Good),
        candidate(2, at("2025-12-29T12:00:00Z"), Standing::Good),
        candidate(3, at("2026-01-02T12:00:00Z"), Standing::Good),
    ];
    assert_eq!(kept(&plan(&candidates, Policy { weekly: 2, ..Policy::default() })), [3, 1]);
    assert_eq!(kept(&plan(&candidates, Policy { yearly: 2, ..Policy::default() })), [3, 2]);
}

#[test]
fn an_hour_that_the_clock_repeats_is_two() {
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let candidates = [
        candidate(1, at("2025-10-26T00:30:00Z"), Standing::Good),
        candidate(2, at("2025-10-26T01:30:00Z"), Standing::Good),
    ];
    let oslo = TimeZone::get("Europe/Oslo").unwrap();
    assert_eq!(kept(&select(&candidates, &Policy { hourly: 2, ..Policy::default() }, now(), &oslo)), [2, 1]);
}

#[test]
fn incomplete_snapshots_push_no_good_one_out() {
    let candidates = hourly(20, |n| if n > 3 { Standing::Incomplete } else { Standing::Good });
    assert_eq!(kept(&plan(&candidates, Policy { last: 3, ..Policy::default() })), [20, 19, 18, 3, 2, 1]);
    // A good one later in the same day takes the incomplete one's place.
    let candidates = hourly(10, |n| if n == 10 { Standing::Incomplete } else { Standing::Good });
    assert_eq!(kept(&plan(&candidates, Policy { yearly: 1, ..Policy::default() })), [10, 9]);
}

#[test]
fn the_highest_number_stays_whatever_it_is() {
    let candidates = hourly(5, |n| if n == 5 { Standing::Incomplete } else { Standing::Good });
    let decisions = plan(&candidates, Policy { last: 1, ..Policy::default() });
    assert_eq!(kept(&decisions), [5, 4]);
    assert!(decisions[0].reasons.contains(&Reason::HighestNumber));
}

#[test]
fn quarantine_stays_while_nothing_later_is_good_and_a_month_after() {
    let day = SignedDuration::from_hours(24);
    let good = |n, age: i32| candidate(n, now() - day * age, Standing::Good);
    let bad = |n, age: i32| candidate(n, now() - day * age, Standing::Quarantined);
    let policy = Policy { last: 1, ..Policy::default() };
    assert_eq!(kept(&plan(&[good(1, 400), bad(2, 300), bad(3, 200)], policy)), [3, 2, 1]);
    assert_eq!(kept(&plan(&[bad(1, 40), bad(2, 29), good(3, 0)], policy)), [3, 2]);
    let long = Policy { within: Some(Duration::from_hours(50 * 24)), ..policy };
    assert_eq!(kept(&plan(&[bad(1, 40), bad(2, 29), good(3, 0)], long)), [3, 2, 1]);
}

#[test]
fn a_date_in_the_future_takes_no_place() {
    let mut candidates = hourly(3, |_| Standing::Good);
    let tomorrow = now() + SignedDuration::from_hours(24);
    candidates.extend((4..=9).map(|n| candidate(n, tomorrow, Standing::Good)));
    let decisions = plan(&candidates, Policy { last: 2, hourly: 2, ..Policy::default() });
    assert_eq!(kept(&decisions), [9, 8, 7, 6, 5, 4, 3, 2]);
    assert_eq!(decisions[1].reasons, [Reason::Future]);
}

#[test]
fn history_stays_when_backups_stop() {
    let day = SignedDuration::from_hours(24);
    let candidates = [200, 100, 95, 90].map(|age: i32| now() - day * age);
    let candidates: Vec<_> = (1..).zip(candidates).map(|(n, time)| candidate(n, time, Standing::Good)).collect();
    let policy = Policy { within: Some(Duration::from_hours(7 * 24)), ..Policy::default() };
    assert_eq!(kept(&plan(&candidates, policy)), [4, 3]);
}

fn standings() -> impl Strategy<Value = Standing> {
    prop_oneof![
        5 => Just(Standing::Good),
        2 => Just(Standing::Incomplete),
        1 => Just(Standing::Quarantined),
    ]
}

/// Times are mostly in order, now and then anything, the future included.
fn histories() -> impl Strategy<Value = Vec<Candidate>> {
    let one = (0_i64..400_000, standings(), prop::option::weighted(0.1, -2_000_i64..40_000_000));
    prop::collection::vec(one, 0..60).prop_map(|parts| {
        let mut age: i64 = parts.iter().map(|(step, ..)| step).sum();
        let mut candidates = Vec::new();
        for (n, (step, standing, odd)) in (1..).zip(parts) {
            age -= step;
            let time = now() - SignedDuration::from_secs(odd.unwrap_or(age));
            candidates.push(candidate(n, time, standing));
        }
        candidates
    })
}

fn policies() -> impl Strategy<Value = Policy> {
    let few = || 0_u32..6;
    let within = prop::option::weighted(0.3, (0_u64..9_000_000).prop_map(Duration::from_secs));
    (few(), few(), few(), few(), few(), few(), within).prop_map(
        |(last, hourly, daily, weekly, monthly, yearly, within)| Policy {
            last,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
            within,
        },
    )
}

fn zones() -> impl Strategy<Value = TimeZone> {
    prop::sample::select(vec!["UTC", "Europe/Oslo", "Asia/Kathmandu", "America/St_Johns"])
        .prop_map(|name| TimeZone::get(name).unwrap())
}

proptest! {
    #[test]
    fn the_newest_good_and_the_highest_number_stay(history in histories(), policy in policies(), zone in zones()) {
        let kept = kept(&select(&history, &policy, now(), &zone));
        if let Some(good) = history.iter().filter(|c| c.standing == Standing::Good).map(|c| c.sequence.0).max() {
            prop_assert!(kept.contains(&good));
        }
        if let Some(highest) = history.iter().map(|c| c.sequence.0).max() {
            prop_assert!(kept.contains(&highest));
        }
    }

    #[test]
    fn an_empty_policy_keeps_everything(history in histories(), zone in zones()) {
        prop_assert_eq!(kept(&select(&history, &Policy::default(), now(), &zone)).len(), history.len());
    }

    #[test]
    fn asking_for_more_never_keeps_less(history in histories(), policy in policies(), zone in zones(), more in policies()) {
        prop_assume!(!policy.is_empty());
        let greater = Policy {
            last: policy.last + more.last,
            hourly: policy.hourly + more.hourly,
            daily: policy.daily + more.daily,
            weekly: policy.weekly + more.weekly,
            monthly: policy.monthly + more.monthly,
            yearly: policy.yearly + more.yearly,
            within: policy.within.max(more.within),
        };
        let less = kept(&select(&history, &policy, now(), &zone));
        let more = kept(&select(&history, &greater, now(), &zone));
        prop_assert!(less.iter().all(|n| more.contains(n)), "{less:?} {more:?}");
    }

    #[test]
    fn a_second_time_changes_nothing(history in histories(), policy in policies(), zone in zones()) {
        let first = kept(&select(&history, &policy, now(), &zone));
        let rest: Vec<_> = history.iter().filter(|c| first.contains(&c.sequence.0)).copied().collect();
        prop_assert_eq!(kept(&select(&rest, &policy, now(), &zone)), first);
    }

    #[test]
    fn order_does_not_matter(
        (history, shuffled) in histories().prop_flat_map(|h| (Just(h.clone()), Just(h).prop_shuffle())),
        policy in policies(), zone in zones(),
    ) {
        prop_assert_eq!(select(&history, &policy, now(), &zone), select(&shuffled, &policy, now(), &zone));
    }

    /// Whatever quarantined, incomplete or future snapshots are added later, no good one goes that would have stayed.
    #[test]
    fn what_is_not_good_pushes_nothing_out(history in histories(), policy in policies(), zone in zones(), added in prop::collection::vec(
        (any::<bool>(), -40_000_000_i64..40_000_000), 0..20,
    )) {
        let good: Vec<_> = history.iter().filter(|c| c.standing == Standing::Good).copied().collect();
        let stay = kept(&select(&good, &policy, now(), &zone));
        let mut history = good.clone();
        for (n, (incomplete, age)) in (1_000..).zip(added) {
            let standing = if incomplete { Standing::Incomplete } else { Standing::Quarantined };
            history.push(candidate(n, now() - SignedDuration::from_secs(age), standing));
        }
        let kept = kept(&select(&history, &policy, now(), &zone));
        prop_assert!(stay.iter().all(|n| kept.contains(n)), "{stay:?} {kept:?}");
    }
}

#[test]
fn the_newest_that_is_not_in_quarantine_stays_though_it_is_incomplete() {
    let standing = [Standing::Good, Standing::Incomplete, Standing::Quarantined];
    let all: Vec<_> = (1..).zip(standing).map(|(n, standing)| candidate(n, now(), standing)).collect();
    let decisions = plan(&all, Policy { daily: 14, ..Policy::default() });
    assert_eq!(kept(&decisions), [3, 2, 1]);
    assert_eq!(decisions[1].reasons, [Reason::Latest]);
}
