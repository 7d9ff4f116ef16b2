//! `lifeboat prune`: a plan from each schedule's retention, printed by `--dry-run`, else carried out.

use super::context::{Context, Opened, Use};
use super::fault::{Exit, Failure, Fault, is_away};
use super::output::{bytes, clock, count, print, print_json, time};
use super::reference::numbered;
use crate::config::{Config, Schedule};
use crate::id::{Sequence, SourceName};
use crate::policy::duration::Shown;
use crate::policy::retention::{Candidate, Decision, Standing, select};
use crate::repo::{Access, KeeperKey, PrunePlan, Pruned, Snapshot, State};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;

#[derive(clap::Args)]
pub struct Args {
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Only the sources of this schedule
    #[arg(long, value_name = "NAME")]
    schedule: Option<String>,
    /// A manifest that cannot be read and that you have found to be foreign: it is taken to need nothing (repeatable)
    #[arg(long, value_name = "SOURCE@NUMBER", value_parser = numbered)]
    foreign: Vec<(SourceName, Sequence)>,
}

struct Outcome {
    source: SourceName,
    decisions: Vec<Decision>,
    times: BTreeMap<Sequence, Timestamp>,
    plan: PrunePlan,
    pruned: Option<Pruned>,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let config = context.config()?;
    let only = args.schedule.as_deref().map(|name| context.schedule(name)).transpose()?;
    let opened = context.open_for(only, if args.dry_run { Use::Read } else { Use::Write }).await?;
    let keeper = if args.dry_run { None } else { Some(context.require_keeper(&opened)?) };
    let present = opened.repository.sources().await?;
    let (mut outcomes, mut blocked) = (Vec::new(), Vec::new());
    for (source, schedules) in retained(config, &opened, only)? {
        if !present.contains(&source) {
            continue;
        }
        match one(&opened, source, &schedules, keeper.as_ref(), &args.foreign).await {
            Ok(outcome) => outcomes.push(outcome),
            Err(failure) if is_away(failure.as_ref()) => return Err(failure),
            // It concerns that source, and no other.
            Err(failure) => {
                tracing::error!(error = failure.as_ref() as &dyn std::error::Error, "nothing of that source is pruned");
                blocked.push(failure);
            }
        }
    }
    if context.globals.json {
        let all: Vec<Value> = outcomes.iter().map(describe).collect();
        print_json(&json!({ "dryRun": args.dry_run, "sources": all }))?;
    } else {
        print(&outcomes.iter().map(|outcome| text(outcome, opened.settings.grace_period)).collect::<String>())?;
    }
    blocked.into_iter().next().map_or(Ok(Exit::Ok), Err)
}

/// The sources that schedules speak of, with those schedules.
fn retained<'a>(
    config: &'a Config,
    opened: &Opened,
    only: Option<&Schedule>,
) -> Result<BTreeMap<SourceName, Vec<&'a Schedule>>, Failure> {
    let by_name = config.repositories.contains_key(&opened.settings.name);
    let here = |s: &Schedule| !by_name || s.repository == opened.settings.name;
    let asked = config.schedules.values().filter(|s| here(s) && only.is_none_or(|only| only.name == s.name));
    let mut sources: BTreeMap<SourceName, Vec<&Schedule>> = BTreeMap::new();
    for source in asked.flat_map(|s| &s.sources) {
        // Every schedule of a source has its say, whichever was named: what one of them keeps stays.
        sources.entry(source.clone()).or_insert_with(|| config.schedules_of(source).filter(|s| here(s)).collect());
    }
    if sources.is_empty() {
        let hint = "give the documents with --config FILE; what no schedule names is never pruned";
        return Err(Fault::usage("no Schedule document says what to keep in this repository", hint).into());
    }
    Ok(sources)
}

async fn one(
    opened: &Opened,
    source: SourceName,
    schedules: &[&Schedule],
    keeper: Option<&KeeperKey>,
    foreign: &[(SourceName, Sequence)],
) -> Result<Outcome, Failure> {
    let lineage = opened.lineage(&source, &Access::None);
    let (snapshots, _) = lineage.snapshots().await?;
    let decisions = decide(&snapshots, schedules, clock());
    let remove: Vec<_> = decisions.iter().filter(|d| !d.keep).map(|d| d.sequence).collect();
    let ignore: Vec<_> = foreign.iter().filter(|(of, _)| *of == source).map(|(_, number)| *number).collect();
    let plan = lineage.plan_prune(&remove, &ignore).await?;
    let pruned = match keeper {
        None => None,
        Some(keeper) => Some(lineage.prune(&plan, keeper, opened.settings.grace_period, clock()).await?),
    };
    if let Some(pruned) = &pruned {
        tracing::info!(
            source = source.as_str(),
            removed = pruned.removed.len(),
            deleted_packs = pruned.deleted_packs,
            deleted_bytes = pruned.deleted_bytes,
            "pruned"
        );
    }
    let times = snapshots.iter().map(|s| (s.sequence(), s.stored_at)).collect();
    Ok(Outcome { source, decisions, times, plan, pruned })
}

/// One that was put back from a replica was stored just now: it is no younger than its successors. But no older than it says of
/// itself, so that a successor with a wrong date moves no other.
fn in_order(times: BTreeMap<Sequence, (Timestamp, Timestamp)>) -> BTreeMap<Sequence, Timestamp> {
    let (mut earliest, mut ordered) = (Timestamp::MAX, BTreeMap::new());
    for (sequence, (stored, signed)) in times.into_iter().rev() {
        let time = stored.min(earliest.max(signed));
        earliest = earliest.min(time);
        ordered.insert(sequence, time);
    }
    ordered
}

/// A snapshot stays if any schedule keeps it.
fn decide(snapshots: &[Snapshot], schedules: &[&Schedule], now: Timestamp) -> Vec<Decision> {
    let signed = |s: &Snapshot| Timestamp::from_millisecond(s.manifest.header.time_ms).unwrap_or(s.stored_at);
    let stored = in_order(snapshots.iter().map(|s| (s.sequence(), (s.stored_at, signed(s)))).collect());
    let candidates: Vec<_> = snapshots
        .iter()
        .map(|s| Candidate {
            sequence: s.sequence(),
            time: stored[&s.sequence()],
            standing: match s.state() {
                State::Good => Standing::Good,
                State::Incomplete => Standing::Incomplete,
                State::Quarantined => Standing::Quarantined,
            },
        })
        .collect();
    let mut decisions: BTreeMap<Sequence, Decision> = BTreeMap::new();
    for schedule in schedules {
        for decision in select(&candidates, &schedule.retention, now, schedule.timetable.zone()) {
            match decisions.get_mut(&decision.sequence) {
                None => _ = decisions.insert(decision.sequence, decision),
                Some(known) => {
                    known.keep |= decision.keep;
                    known.reasons.extend(decision.reasons);
                    known.reasons.sort();
                    known.reasons.dedup();
                }
            }
        }
    }
    decisions.into_values().rev().collect()
}

fn text(outcome: &Outcome, grace: std::time::Duration) -> String {
    let Outcome { source, decisions, times, plan, pruned } = outcome;
    let mut text =
        format!("{source}: {} of {} go\n", plan.remove.len(), count(decisions.len() as u64, "snapshot", "snapshots"));
    for decision in decisions {
        let at = times.get(&decision.sequence).map_or_else(String::new, |at| time(*at));
        let why: Vec<_> = decision.reasons.iter().map(ToString::to_string).collect();
        let verdict = if decision.keep { format!("stays ({})", why.join(", ")) } else { "goes".into() };
        text += &format!("  {source}@{}  {at}  {verdict}\n", decision.sequence);
    }
    text += &match pruned {
        None => format!(
            "  would set {} packs ({}) free, to be deleted {} later; {} packs ({}) are free already\n",
            plan.freed,
            bytes(plan.freed_bytes),
            Shown(grace),
            plan.unreferenced,
            bytes(plan.unreferenced_bytes),
        ),
        Some(pruned) => format!(
            "  deleted {} packs ({}); {} packs wait for the grace period of {}, {} are still locked\n",
            pruned.deleted_packs,
            bytes(pruned.deleted_bytes),
            pruned.waiting,
            Shown(grace),
            pruned.locked,
        ),
    };
    text
}

fn describe(outcome: &Outcome) -> Value {
    let decisions = outcome.decisions.iter().map(|d| {
        json!({"number": d.sequence.0, "keep": d.keep, "reasons": d.reasons, "storedAt": outcome.times.get(&d.sequence)})
    });
    json!({
        "source": outcome.source.as_str(),
        "decisions": decisions.collect::<Vec<_>>(),
        "plan": outcome.plan,
        "pruned": outcome.pruned,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_back_is_as_old_as_it_was() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let of = |stored: [i64; 4]| {
            let signed = [10, 20, 30, 40];
            let times = (1..).zip(stored.into_iter().zip(signed)).map(|(n, (a, b))| (Sequence(n), (at(a), at(b))));
            in_order(times.collect()).into_values().map(Timestamp::as_second).collect::<Vec<_>>()
        };
        assert_eq!(of([10, 20, 30, 40]), [10, 20, 30, 40]);
        assert_eq!(of([10, 99, 30, 40]), [10, 30, 30, 40]);
        // One with a wrong date moves no other.
        assert_eq!(of([10, 20, 30, 0]), [10, 20, 30, 0]);
        assert_eq!(of([10, 20, 0, 40]), [10, 20, 0, 40]);
    }
}
