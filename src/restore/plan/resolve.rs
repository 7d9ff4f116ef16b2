//! From what documents ask to what will be done: every choice, made once. Pure.

use super::document::{Doing, Level, OnFailure, Plan, Restore};
use super::graph::{Graph, Node, critical_path, finding};
use super::lint::{Ties, lint};
use super::{Finding, between, milliseconds};
use crate::id::{Sequence, SourceName};
use crate::policy::Tier;
use crate::policy::duration::{self, Shown};
use crate::repo::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A recovery point: today a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    pub sequence: Sequence,
    pub state: State,
    /// The moment that the data represents.
    pub moment: Timestamp,
    /// Bytes of all contents.
    pub bytes: u64,
    /// The run that captured it: those of one run belong together.
    pub run: String,
    /// Of the source when it was captured.
    pub kind: String,
}

/// What a Source document says that matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub kind: &'static str,
    pub tier: Option<Tier>,
    /// Its snapshots can be brought back into a running system.
    pub running: bool,
}

/// How long a step took when it was last done, and for how many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Took {
    pub time: Duration,
    pub bytes: u64,
}

/// All that a plan is resolved against.
#[derive(Clone, Debug)]
pub struct World<'a> {
    pub repository: String,
    pub now: Timestamp,
    /// The moment to go back to; the newest recovery points without it.
    pub at: Option<Timestamp>,
    /// Only what this run captured: a recovery-point set.
    pub run: Option<String>,
    /// Snapshots that a person chose, in quarantine or not.
    pub chosen: BTreeMap<SourceName, Sequence>,
    pub plans: &'a BTreeMap<String, Plan>,
    pub documents: BTreeMap<SourceName, Known>,
    pub ties: Ties,
    /// Recovery points of each source in the repository, newest first.
    pub points: BTreeMap<SourceName, Vec<Point>>,
    /// By plan and step.
    pub history: BTreeMap<(String, String), Took>,
}

/// A plan with every choice made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resolved {
    pub plan: String,
    pub level: Level,
    pub about: String,
    pub tier: Option<Tier>,
    pub repository: String,
    pub resolved_at: Timestamp,
    pub at: Option<Timestamp>,
    /// Each follows those before it that its `after` names.
    pub tasks: Vec<Task>,
    /// Milliseconds between the oldest and the newest recovery point.
    pub skew_ms: u64,
    /// The run that captured all of them, if one did.
    pub run: Option<String>,
    /// Steps that take longest one after the other, and how long, as far as known.
    pub critical_path: Vec<usize>,
    pub predicted_ms: u64,
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    pub name: String,
    pub after: Vec<usize>,
    #[serde(with = "duration::text")]
    pub timeout: Duration,
    pub retries: u32,
    pub on_failure: OnFailure,
    pub doing: Doing,
    /// The fence that an `unfence` opens.
    pub fence: Option<usize>,
    pub choice: Option<Choice>,
    /// From earlier executions, else the step's budget.
    pub predicted_ms: Option<u64>,
}

/// The recovery point that a step brings back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Choice {
    pub source: SourceName,
    pub sequence: Sequence,
    pub moment: Timestamp,
    pub bytes: u64,
    pub kind: String,
    pub run: String,
    /// Milliseconds of data that are lost, up to the moment that was asked for.
    pub loss_ms: u64,
    /// What the source's tier allows.
    pub rpo_ms: Option<u64>,
}

impl Resolved {
    /// Those that a fence's `unfence` step opens, by the index of the fence.
    pub fn fences(&self) -> impl Iterator<Item = usize> {
        self.tasks.iter().enumerate().filter(|(_, task)| matches!(task.doing, Doing::Fence(_))).map(|(at, _)| at)
    }
}

/// Whether a task comes after another, however many are between them.
#[must_use]
pub fn follows(tasks: &[Task], task: usize, earlier: usize) -> bool {
    let (mut before, mut seen) = (vec![task], vec![false; tasks.len()]);
    while let Some(one) = before.pop() {
        if !std::mem::replace(&mut seen[one], true) {
            before.extend(&tasks[one].after);
        }
    }
    task != earlier && seen[earlier]
}

/// # Errors
/// Everything that keeps the plan from being carried out.
pub fn resolve(plan: &str, world: &World<'_>) -> Result<Resolved, Vec<Finding>> {
    let Some(plan) = world.plans.get(plan) else {
        let text = "there is no RestorePlan document of this name".into();
        return Err(vec![Finding { file: "".into(), line: 0, what: plan.into(), text }]);
    };
    let looked = lint(world.plans, plan, &world.ties);
    if !looked.mistakes.is_empty() {
        return Err(looked.mistakes);
    }
    let graph = Graph::of(world.plans, plan)?;
    let mut resolving = Resolving { world, mistakes: Vec::new(), warnings: looked.warnings };
    let tasks: Vec<Task> = graph.nodes.iter().map(|node| resolving.task(plan, node)).collect();
    resolving.captured_in_order(&graph, &tasks);
    let Resolving { mut mistakes, mut warnings, .. } = resolving;
    let restores = graph.nodes.iter().filter_map(|node| match &node.step.doing {
        Doing::Restore(restore) => Some(&restore.source),
        _ => None,
    });
    let brought: BTreeSet<_> = restores.collect();
    for (source, sequence) in world.chosen.iter().filter(|(source, _)| !brought.contains(source)) {
        mistakes.push(finding(plan, None, format!("{source}@{sequence} was chosen, and no step restores {source}")));
    }
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let choices: Vec<&Choice> = tasks.iter().filter_map(|task| task.choice.as_ref()).collect();
    let tier = plan.tier.or_else(|| choices.iter().filter_map(|choice| world.tier(&choice.source)).min());
    let moments = choices.iter().map(|choice| choice.moment);
    let skew_ms = match (moments.clone().min(), moments.max()) {
        (Some(oldest), Some(newest)) => milliseconds(between(oldest, newest)),
        _ => 0,
    };
    let first = choices.first().map(|choice| &choice.run);
    let run = first.filter(|run| choices.iter().all(|choice| choice.run == **run)).cloned();
    let after: Vec<_> = tasks.iter().map(|task| task.after.clone()).collect();
    let takes: Vec<_> = tasks.iter().map(|t| Duration::from_millis(t.predicted_ms.unwrap_or(0))).collect();
    let (length, critical_path) = critical_path(&after, &takes);
    if let Some(tier) = tier.filter(|tier| length > tier.rto()) {
        let text = format!(
            "it will take about {}, and the {tier} tier's recovery time objective is {}",
            Shown(length),
            Shown(tier.rto())
        );
        warnings.push(finding(plan, None, text));
    }
    Ok(Resolved {
        plan: plan.name.clone(),
        level: plan.level,
        about: plan.about.clone(),
        tier,
        repository: world.repository.clone(),
        resolved_at: world.now,
        at: world.at,
        tasks,
        skew_ms,
        run,
        critical_path,
        predicted_ms: milliseconds(length),
        warnings: warnings.into_iter().map(|finding| finding.to_string()).collect(),
    })
}

/// What a plan, and those that it includes, restore. Nothing of one that has no order; [`resolve`] says why.
#[must_use]
pub fn sources(plans: &BTreeMap<String, Plan>, plan: &Plan) -> BTreeSet<SourceName> {
    let nodes = Graph::of(plans, plan).map_or_else(|_| Vec::new(), |graph| graph.nodes);
    let restored = nodes.iter().filter_map(|node| match &node.step.doing {
        Doing::Restore(restore) => Some(restore.source.clone()),
        _ => None,
    });
    restored.collect()
}

struct Resolving<'a> {
    world: &'a World<'a>,
    mistakes: Vec<Finding>,
    warnings: Vec<Finding>,
}

impl Resolving<'_> {
    fn task(&mut self, plan: &Plan, node: &Node<'_>) -> Task {
        let step = node.step;
        for (field, name) in step.doing.documents() {
            if !self.world.documents.contains_key(name) {
                self.mistake(node, format!("{field}: there is no Source document named {name}"));
            }
        }
        let choice = match &step.doing {
            Doing::Restore(restore) => self.choose(node, restore),
            _ => None,
        };
        let took = self.world.history.get(&(plan.name.clone(), node.name.clone()));
        let predicted = took.map(|took| scaled(took, choice.as_ref())).or(step.budget);
        Task {
            name: node.name.clone(),
            after: node.after.clone(),
            timeout: step.timeout,
            retries: step.retries,
            on_failure: step.on_failure,
            doing: step.doing.clone(),
            fence: node.fence,
            choice,
            predicted_ms: predicted.map(milliseconds),
        }
    }

    fn choose(&mut self, node: &Node<'_>, restore: &Restore) -> Option<Choice> {
        let (world, source) = (self.world, &restore.source);
        let Some(points) = world.points.get(source).filter(|points| !points.is_empty()) else {
            self.mistake(node, format!("the repository has no snapshots of {source}"));
            return None;
        };
        let limit = world.at.unwrap_or(Timestamp::MAX);
        let wanted = |point: &&Point| match (world.chosen.get(source), &world.run) {
            (Some(sequence), _) => point.sequence == *sequence,
            (None, Some(run)) => point.run == *run && point.state != State::Quarantined,
            (None, None) => point.moment <= limit && point.state != State::Quarantined,
        };
        // Newest by the moment of its data: of two with the same, the later capture.
        let Some(point) = points.iter().filter(wanted).max_by_key(|point| (point.moment, point.sequence)) else {
            self.mistake(node, none_fits(source, points, world));
            return None;
        };
        self.judge(node, restore, points, point);
        let until = world.at.unwrap_or(world.now);
        Some(Choice {
            source: source.clone(),
            sequence: point.sequence,
            moment: point.moment,
            bytes: point.bytes,
            kind: point.kind.clone(),
            run: point.run.clone(),
            loss_ms: milliseconds(between(point.moment, until)),
            rpo_ms: world.tier(source).map(|tier| milliseconds(tier.rpo())),
        })
    }

    /// Files are to be captured after the rows that name them, or a row may come back without its file. Within a run it is
    /// so. A volume's CronJob is a run of its own.
    fn captured_in_order(&mut self, graph: &Graph<'_>, tasks: &[Task]) {
        let world = self.world;
        let chosen =
            |name: &SourceName| tasks.iter().filter_map(|task| task.choice.as_ref()).find(|it| it.source == *name);
        for (node, task) in graph.nodes.iter().zip(tasks) {
            let Some(files) = &task.choice else { continue };
            for rows in world.ties.after.get(&files.source).into_iter().flatten().filter_map(chosen) {
                if rows.run == files.run || rows.moment <= files.moment {
                    continue;
                }
                let mut text = format!(
                    "{}@{} was captured {} before {}@{}, and should have been after it: what this names of that time is not \
                     there",
                    files.source,
                    files.sequence,
                    Shown(between(files.moment, rows.moment)),
                    rows.source,
                    rows.sequence,
                );
                let good = |source| {
                    let points = world.points.get(source).into_iter().flatten();
                    points.filter(|point: &&Point| point.state != State::Quarantined)
                };
                if let Some(earlier) =
                    good(&rows.source).filter(|it| it.moment <= files.moment).max_by_key(|it| it.moment)
                {
                    let (source, more) = (&rows.source, Shown(between(earlier.moment, rows.moment)));
                    text += &format!("; --snapshot {source}@{} goes with it, and loses {more} more", earlier.sequence);
                }
                // Younger than what was asked for.
                if let Some(later) =
                    good(&files.source).filter(|it| it.moment >= rows.moment).min_by_key(|it| it.moment)
                {
                    text +=
                        &format!("; --snapshot {}@{}, of {}, has it all", files.source, later.sequence, later.moment);
                }
                self.warn(node, text);
            }
        }
    }

    /// What somebody should know of a choice, and whether its target takes it.
    fn judge(&mut self, node: &Node<'_>, restore: &Restore, points: &[Point], point: &Point) {
        let (world, source) = (self.world, &restore.source);
        let named = format!("{source}@{}", point.sequence);
        if let Some(document) = restore.system().and_then(|system| world.documents.get(system)) {
            let system = restore.system().map(ToString::to_string).unwrap_or_default();
            if document.kind != point.kind {
                let text = format!("{named} is of kind {}, and {system} is of kind {}", point.kind, document.kind);
                self.mistake(node, text);
            } else if !document.running {
                let text = format!(
                    "a snapshot of kind {} is not brought back into a running system: say to or export",
                    point.kind
                );
                self.mistake(node, text);
            }
        }
        let cluster = restore.claim.as_ref().and_then(|claim| Some((claim, world.documents.get(&claim.cluster)?)));
        if let Some((claim, document)) = cluster.filter(|(_, document)| document.kind != "kubernetes") {
            self.mistake(node, format!("{} is of kind {}, and not a cluster", claim.cluster, document.kind));
        }
        match point.state {
            State::Good => {}
            State::Incomplete => self.warn(node, format!("{named} is incomplete: see `lifeboat show {named}`")),
            State::Quarantined => self.warn(node, format!("{named} is in quarantine, and was chosen by hand")),
        }
        let newer = |other: &&Point| other.state == State::Quarantined && other.sequence > point.sequence;
        if let Some(other) = points.iter().find(newer) {
            let text = format!(
                "{source}@{} is newer and in quarantine (`lifeboat show` says why); --snapshot {source}@{} would take it",
                other.sequence, other.sequence
            );
            self.warn(node, text);
        }
        let loss = between(point.moment, world.at.unwrap_or(world.now));
        if let Some(tier) = world.tier(source).filter(|tier| loss > tier.rpo()) {
            let text = format!(
                "{named} loses {}, and the {tier} tier's recovery point objective is {}",
                Shown(loss),
                Shown(tier.rpo())
            );
            self.warn(node, text);
        }
    }

    fn mistake(&mut self, node: &Node<'_>, text: String) {
        self.mistakes.push(finding(node.plan, Some(node.step), text));
    }

    fn warn(&mut self, node: &Node<'_>, text: String) {
        self.warnings.push(finding(node.plan, Some(node.step), text));
    }
}

impl World<'_> {
    fn tier(&self, source: &SourceName) -> Option<Tier> {
        self.documents.get(source).and_then(|document| document.tier)
    }
}

fn none_fits(source: &SourceName, points: &[Point], world: &World<'_>) -> String {
    if let Some(sequence) = world.chosen.get(source) {
        return format!("{source}@{sequence}, which was chosen, is not in the repository");
    }
    if let Some(run) = &world.run {
        return format!("the run {run} left no snapshot of {source} that is not in quarantine");
    }
    let good = points.iter().filter(|point| point.state != State::Quarantined);
    match (good.min_by_key(|point| point.moment), world.at) {
        (Some(oldest), Some(at)) => {
            format!("{source} has no recovery point at or before {at}; its oldest is of {}", oldest.moment)
        }
        _ => format!(
            "all snapshots of {source} are in quarantine: look at them (`lifeboat snapshots {source}`) and choose one with \
             --snapshot {source}@NUMBER"
        ),
    }
}

/// What a step took before, for as many bytes as it has now.
fn scaled(took: &Took, choice: Option<&Choice>) -> Duration {
    match choice {
        Some(choice) if took.bytes > 0 => took.time.mul_f64(choice.bytes as f64 / took.bytes as f64),
        _ => took.time,
    }
}
