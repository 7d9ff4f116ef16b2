//! What documents alone show of plans: mistakes, which make a configuration unfit, and warnings. Pure.

use super::Finding;
use super::document::{Doing, Fence, Plan, overlap};
use super::graph::{Graph, critical_path, finding};
use crate::id::SourceName;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How sources hang together, as their documents say.
#[derive(Clone, Debug, Default)]
pub struct Ties {
    /// What each needs to be back before it.
    pub needs: BTreeMap<SourceName, BTreeSet<SourceName>>,
    /// What each is captured after.
    pub after: BTreeMap<SourceName, BTreeSet<SourceName>>,
    /// Of clusters, the way to them: documents with the same way mean the same cluster.
    pub clusters: BTreeMap<SourceName, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lint {
    pub mistakes: Vec<Finding>,
    pub warnings: Vec<Finding>,
}

/// Looks at one plan and what it includes.
#[must_use]
pub fn lint(plans: &BTreeMap<String, Plan>, plan: &Plan, ties: &Ties) -> Lint {
    let graph = match Graph::of(plans, plan) {
        Ok(graph) => graph,
        Err(mistakes) => return Lint { mistakes, warnings: Vec::new() },
    };
    let mut lint = Lint::default();
    order(&graph, &ties.needs, &mut lint.mistakes);
    fences(&graph, ties, &mut lint);
    unseen(plan, &graph, &mut lint.warnings);
    budgets(plan, &graph, &mut lint.warnings);
    lint
}

/// Restores that get into each other's way, or come before what they need.
fn order(graph: &Graph<'_>, needs: &BTreeMap<SourceName, BTreeSet<SourceName>>, mistakes: &mut Vec<Finding>) {
    let restores: Vec<_> = graph
        .nodes
        .iter()
        .enumerate()
        .filter_map(|(at, node)| match &node.step.doing {
            Doing::Restore(restore) => Some((at, node, restore)),
            _ => None,
        })
        .collect();
    for (later, node, restore) in &restores {
        for (earlier, other, its) in restores.iter().filter(|(earlier, ..)| earlier < later) {
            if overlap(&restore.place(), &its.place()) && !graph.precedes(*earlier, *later) {
                let text = format!("it and {} restore into {} at the same time", other.name, restore.place());
                mistakes.push(finding(node.plan, Some(node.step), text));
            }
        }
        let needed = needs.get(&restore.source).into_iter().flatten();
        for provider in needed {
            let mut provided = restores.iter().filter(|(.., its)| its.source == *provider).peekable();
            if provided.peek().is_some() && !provided.any(|(at, ..)| graph.precedes(*at, *later)) {
                let text = format!("{} needs {provider}, which this plan restores later or meanwhile", restore.source);
                mistakes.push(finding(node.plan, Some(node.step), text));
            }
        }
    }
}

/// Fences that hold the same back at the same time: the first that opens would let go what the other still holds.
fn fences(graph: &Graph<'_>, ties: &Ties, lint: &mut Lint) {
    let fences: Vec<_> = graph
        .nodes
        .iter()
        .enumerate()
        .filter_map(|(at, node)| match &node.step.doing {
            Doing::Fence(Fence { cluster: Some(cluster), hold, .. }) => Some((at, node, cluster, hold)),
            _ => None,
        })
        .collect();
    let way = |cluster: &SourceName| ties.clusters.get(cluster).cloned().unwrap_or_else(|| cluster.to_string());
    let opened_before = |fence: usize, then: usize| {
        let mut opens = graph.nodes.iter().enumerate().filter(|(_, node)| node.fence == Some(fence));
        opens.any(|(at, _)| graph.precedes(at, then))
    };
    for (later, node, cluster, hold) in &fences {
        for (earlier, other, its, held) in fences.iter().filter(|(earlier, ..)| earlier < later) {
            if way(cluster) != way(its) || opened_before(*earlier, *later) || opened_before(*later, *earlier) {
                continue;
            }
            if let Some(what) = hold.in_common(held) {
                let text = format!(
                    "it and {} hold back {what} at the same time, and the first that opens lets it go: let one follow the \
                     other's unfence step, or leave it to one of them",
                    other.name
                );
                lint.mistakes.push(finding(node.plan, Some(node.step), text));
            } else if hold.may_have_parents_in_common(held) {
                let text = format!(
                    "it and {} pause applications of one namespace at the same time: if these have a parent in common, the \
                     first that opens lets it go",
                    other.name
                );
                lint.warnings.push(finding(node.plan, Some(node.step), text));
            }
        }
    }
}

/// What nobody would notice: a restore that nothing looks at, a fence that stays closed.
fn unseen(plan: &Plan, graph: &Graph<'_>, warnings: &mut Vec<Finding>) {
    let mut nothing = true;
    for (at, node) in graph.nodes.iter().enumerate() {
        let mut later = graph.nodes.iter().enumerate().skip(at + 1).filter(|(later, _)| graph.precedes(at, *later));
        match &node.step.doing {
            Doing::Restore(_) => {
                nothing = false;
                if !later.any(|(_, node)| matches!(node.step.doing, Doing::Probe(_))) {
                    let text = "no probe follows it: nobody will have seen it working";
                    warnings.push(finding(node.plan, Some(node.step), text));
                }
            }
            Doing::Fence(_) if !graph.nodes.iter().any(|node| node.fence == Some(at)) => {
                warnings.push(finding(node.plan, Some(node.step), "no unfence step opens it again"));
            }
            _ => {}
        }
    }
    if nothing {
        warnings.push(finding(plan, None, "it restores nothing"));
    }
}

fn budgets(plan: &Plan, graph: &Graph<'_>, warnings: &mut Vec<Finding>) {
    let Some(tier) = plan.tier else { return };
    let after: Vec<_> = graph.nodes.iter().map(|node| node.after.clone()).collect();
    let takes: Vec<_> = graph.nodes.iter().map(|node| node.step.budget.unwrap_or(Duration::ZERO)).collect();
    let (length, path) = critical_path(&after, &takes);
    if length > tier.rto() {
        let way: Vec<_> = path.into_iter().map(|at| graph.nodes[at].name.as_str()).collect();
        let shown = crate::policy::duration::Shown;
        let text = format!(
            "its budgets add up to {} ({}), and the {tier} tier's recovery time objective is {}",
            shown(length),
            way.join(" → "),
            shown(tier.rto())
        );
        warnings.push(finding(plan, None, text));
    }
}
