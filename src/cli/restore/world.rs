//! What a plan is resolved against: the documents, the recovery points, how long steps took before.

use super::kept;
use crate::cli::context::{Context, Opened};
use crate::cli::fault::Failure;
use crate::cli::output::clock;
use crate::cli::reference::{warn_missing, warn_stepped_over};
use crate::id::SourceName;
use crate::repo::{Access, Journals, Selector, Snapshot, State};
use crate::restore::plan::resolve::{Took, sources};
use crate::restore::plan::{Finding, Plan, Point, Resolved, World};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::path::PathBuf;

/// Earlier executions of the same plan that predictions come from.
const EARLIER: usize = 2;

/// All but the recovery points, which depend on what is asked for.
pub async fn look<'a>(
    context: &'a Context,
    opened: &Opened,
    plan: &Plan,
    journals: Option<&Journals>,
) -> Result<World<'a>, Failure> {
    let config = context.config()?;
    for source in sources(&config.plans, plan).iter().filter(|source| context.is_left_out(source)) {
        let source = source.as_str();
        tracing::warn!(source, "its document is left out: what it needs, and is captured after, is not known");
    }
    Ok(World {
        repository: opened.settings.url.to_string(),
        now: clock(),
        at: None,
        run: None,
        chosen: BTreeMap::new(),
        plans: &config.plans,
        documents: config.known(),
        ties: config.ties(),
        points: BTreeMap::new(),
        history: history(&plan.name, journals).await,
    })
}

/// Reads the recovery points of the sources that the plan restores, as far back as they are needed.
pub async fn fill(context: &Context, opened: &Opened, plan: &Plan, world: &mut World<'_>) -> Result<(), Failure> {
    let access = context.access_to_contents(opened)?;
    let wanted = sources(world.plans, plan);
    let follows = |source: &SourceName| world.ties.after.get(source).is_some_and(|earlier| !earlier.is_empty());
    // What is captured after others comes first: of those, one that goes with it is looked for.
    let (later, earlier): (Vec<_>, Vec<_>) = wanted.into_iter().partition(follows);
    for source in later.into_iter().chain(earlier) {
        let points = points(opened, &access, &source, world).await?;
        world.points.insert(source, points);
    }
    Ok(())
}

/// The moment of the oldest that will be chosen of those that are captured after `source`.
fn followed(world: &World<'_>, source: &SourceName) -> Option<Timestamp> {
    let after = world.ties.after.iter().filter(|(_, earlier)| earlier.contains(source));
    let oldest = |points: &Vec<Point>| {
        let good = points.iter().filter(|point| point.state != State::Quarantined);
        good.filter(|point| world.at.is_none_or(|at| point.moment <= at)).map(|point| point.moment).max()
    };
    after.filter_map(|(name, _)| oldest(world.points.get(name)?)).min()
}

async fn points(
    opened: &Opened,
    access: &Access,
    source: &SourceName,
    world: &World<'_>,
) -> Result<Vec<Point>, Failure> {
    let lineage = opened.lineage(source, access);
    let followed = followed(world, source);
    let enough = |snapshot: &Snapshot| {
        let run = snapshot.catalogue.as_ref().map(|catalogue| &catalogue.run);
        snapshot.state() != State::Quarantined
            && world.at.is_none_or(|at| snapshot.recovery_point() <= at)
            && followed.is_none_or(|moment| snapshot.recovery_point() <= moment)
            && world.run.as_ref().is_none_or(|wanted| run == Some(wanted))
    };
    let (mut snapshots, stepped_over) = lineage.back_to(enough).await?;
    warn_stepped_over(source, &stepped_over);
    warn_missing(&lineage).await?;
    if let Some(sequence) = world.chosen.get(source)
        && !snapshots.iter().any(|snapshot| snapshot.sequence() == *sequence)
    {
        snapshots.push(lineage.find(&Selector::Number(*sequence)).await?.0);
    }
    let point = |snapshot: Snapshot| {
        let (sequence, state, moment) = (snapshot.sequence(), snapshot.state(), snapshot.recovery_point());
        let catalogue = snapshot.catalogue?;
        Some(Point { sequence, state, moment, bytes: catalogue.bytes, run: catalogue.run, kind: catalogue.kind })
    };
    Ok(snapshots.into_iter().filter_map(point).collect())
}

/// The snapshots that were chosen and are not whole: nothing is begun with those.
pub async fn lacking(context: &Context, opened: &Opened, resolved: &Resolved) -> Result<Vec<Finding>, Failure> {
    let access = context.access_to_contents(opened)?;
    let mut findings = Vec::new();
    // Several steps may restore parts of one snapshot.
    let mut looked = BTreeMap::new();
    for task in &resolved.tasks {
        let Some(choice) = &task.choice else { continue };
        let lacks = match looked.entry((&choice.source, choice.sequence)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let lineage = opened.lineage(&choice.source, &access);
                let (snapshot, _) = lineage.find(&Selector::Number(choice.sequence)).await?;
                unknown.insert(lineage.lacks(&snapshot).await?)
            }
        };
        if let [first, more @ ..] = lacks.as_slice() {
            let more = if more.is_empty() { String::new() } else { format!(", and {} more", more.len()) };
            let text = format!(
                "{}@{} lacks {first}{more}: choose another with --snapshot or --at, or heal it from a replica \
                 (lifeboat verify --repair-from)",
                choice.source, choice.sequence
            );
            let what = format!("{}/{}", resolved.plan, task.name);
            findings.push(Finding { file: PathBuf::new(), line: 0, what, text });
        }
    }
    Ok(findings)
}

/// How long the plan's steps took. That this is not known must not keep anybody from restoring.
async fn history(plan: &str, journals: Option<&Journals>) -> BTreeMap<(String, String), Took> {
    let mut ids: BTreeSet<String> = kept::here().into_iter().collect();
    if let Some(journals) = journals {
        ids.extend(journals.list().await.unwrap_or_default().into_keys());
    }
    let mine = |id: &&String| {
        id.strip_prefix(plan)
            .and_then(|rest| rest.strip_prefix('-'))
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let newest: Vec<_> = ids.iter().filter(mine).rev().take(EARLIER).collect();
    let mut all = BTreeMap::new();
    for id in newest.into_iter().rev() {
        if let Ok((history, _)) = kept::look(id, journals).await {
            if history.verdict.is_none() {
                let (level, newest) = (history.resolved.level, history.last);
                tracing::warn!(
                    id, %newest,
                    "a restore of this plan has not ended: `lifeboat restore {level} --resume {id}` goes on with it, --abort \
                     {id} opens its fences"
                );
            }
            all.extend(history.took());
        }
    }
    all
}
