//! A plan's steps as a graph: included plans unfolded, names resolved, order found. Pure.

use super::Finding;
use super::document::{Doing, Plan, Step};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// One step that does something itself.
#[derive(Clone, Debug)]
pub struct Node<'a> {
    /// `STEP`, or `STEP/STEP` of an included plan.
    pub name: String,
    pub plan: &'a Plan,
    pub step: &'a Step,
    /// Indices of the steps that it follows; all are smaller than its own.
    pub after: Vec<usize>,
    /// The fence that an `unfence` opens.
    pub fence: Option<usize>,
}

/// The steps of a plan, each after those that it follows.
#[derive(Clone, Debug)]
pub struct Graph<'a> {
    pub nodes: Vec<Node<'a>>,
    /// All that must have ended before a node begins.
    before: Vec<BTreeSet<usize>>,
}

/// What has mistakes as far as the documents alone show.
pub fn finding(plan: &Plan, step: Option<&Step>, text: impl Into<String>) -> Finding {
    let what = step.map_or_else(|| plan.name.clone(), |step| format!("{}/{}", plan.name, step.name));
    Finding { file: plan.file.clone(), line: step.map_or(plan.line, |step| step.line), what, text: text.into() }
}

struct Unfolding<'a> {
    plans: &'a BTreeMap<String, Plan>,
    nodes: Vec<Node<'a>>,
    mistakes: Vec<Finding>,
    /// The plans that are being unfolded, outermost first.
    open: Vec<&'a str>,
}

impl<'a> Graph<'a> {
    /// # Errors
    /// What keeps the steps from having an order.
    pub fn of(plans: &'a BTreeMap<String, Plan>, plan: &'a Plan) -> Result<Self, Vec<Finding>> {
        let mut unfolding = Unfolding { plans, nodes: Vec::new(), mistakes: Vec::new(), open: Vec::new() };
        unfolding.plan(plan, "", &[]);
        let Unfolding { nodes, mistakes, .. } = unfolding;
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let mut before: Vec<BTreeSet<usize>> = Vec::with_capacity(nodes.len());
        for node in &nodes {
            let mut all: BTreeSet<usize> = node.after.iter().copied().collect();
            node.after.iter().for_each(|at| all.extend(before[*at].iter().copied()));
            before.push(all);
        }
        Ok(Self { nodes, before })
    }

    /// Whether `first` has always ended when `then` begins.
    #[must_use]
    pub fn precedes(&self, first: usize, then: usize) -> bool {
        self.before[then].contains(&first)
    }
}

impl<'a> Unfolding<'a> {
    /// Adds a plan's steps, in an order that puts each after those that it follows. Returns those that nothing follows.
    fn plan(&mut self, plan: &'a Plan, prefix: &str, enter: &[usize]) -> Vec<usize> {
        self.open.push(&plan.name);
        let Some(order) = self.order(plan) else {
            self.open.pop();
            return Vec::new();
        };
        // Which nodes a step of this plan stands for.
        let mut ends: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for step in order {
            let mut after: Vec<usize> = step.after.iter().flat_map(|name| ends[name.as_str()].clone()).collect();
            if step.after.is_empty() {
                after.extend_from_slice(enter);
            }
            after.sort_unstable();
            after.dedup();
            let name = format!("{prefix}{}", step.name);
            let end = match &step.doing {
                Doing::Plan(included) => self.include(plan, step, included, &name, &after),
                Doing::Unfence(fence) => vec![self.unfence(plan, step, fence, name, after, &ends)],
                _ => vec![self.add(Node { name, plan, step, after, fence: None })],
            };
            ends.insert(&step.name, end);
        }
        self.open.pop();
        let followed: BTreeSet<&str> = plan.steps.iter().flat_map(|step| &step.after).map(String::as_str).collect();
        ends.into_iter().filter(|(name, _)| !followed.contains(name)).flat_map(|(_, nodes)| nodes).collect()
    }

    fn add(&mut self, node: Node<'a>) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn include(&mut self, plan: &'a Plan, step: &'a Step, name: &str, prefix: &str, after: &[usize]) -> Vec<usize> {
        let Some(included) = self.plans.get(name) else {
            self.mistakes.push(finding(plan, Some(step), format!("there is no RestorePlan named {name:?}")));
            return Vec::new();
        };
        if self.open.contains(&name) {
            let way = self.open.join(" → ");
            self.mistakes.push(finding(plan, Some(step), format!("the plans include each other: {way} → {name}")));
            return Vec::new();
        }
        if included.level > plan.level {
            let text = format!("{} {name} is of a higher level than {} {}", included.level, plan.level, plan.name);
            self.mistakes.push(finding(plan, Some(step), text));
        }
        let ends = self.plan(included, &format!("{prefix}/"), after);
        // A plan of nothing must not break the order around it.
        if ends.is_empty() { after.to_vec() } else { ends }
    }

    fn unfence(
        &mut self,
        plan: &'a Plan,
        step: &'a Step,
        fence: &str,
        name: String,
        after: Vec<usize>,
        ends: &BTreeMap<&str, Vec<usize>>,
    ) -> usize {
        let found = ends.get(fence).and_then(|nodes| nodes.first()).copied();
        let found = found.filter(|at| matches!(self.nodes[*at].step.doing, Doing::Fence(_)));
        if found.is_none() {
            let text = format!("{fence:?} is no fence of this plan that this step follows");
            self.mistakes.push(finding(plan, Some(step), text));
        }
        self.add(Node { name, plan, step, after, fence: found })
    }

    /// The plan's own steps in an order that each follows those before it (Kahn's, in the document's order).
    fn order(&mut self, plan: &'a Plan) -> Option<Vec<&'a Step>> {
        let mistakes = self.mistakes.len();
        let mut names = BTreeSet::new();
        for step in &plan.steps {
            if !names.insert(step.name.as_str()) {
                self.mistakes.push(finding(plan, Some(step), "there is a step of this name already"));
            }
        }
        for step in &plan.steps {
            for name in step.after.iter().filter(|name| !names.contains(name.as_str())) {
                let text = format!("it is to follow {name:?}, and the plan has no such step");
                self.mistakes.push(finding(plan, Some(step), text));
            }
        }
        if self.mistakes.len() > mistakes {
            return None;
        }
        let (mut order, mut done) = (Vec::new(), BTreeSet::new());
        let mut rest: Vec<&Step> = plan.steps.iter().collect();
        while !rest.is_empty() {
            let Some(at) = rest.iter().position(|step| step.after.iter().all(|name| done.contains(name.as_str())))
            else {
                let circle: Vec<_> = rest.iter().map(|step| step.name.as_str()).collect();
                let text = format!("these steps wait for each other: {}", circle.join(", "));
                self.mistakes.push(finding(plan, Some(rest[0]), text));
                return None;
            };
            let step = rest.remove(at);
            done.insert(step.name.as_str());
            order.push(step);
        }
        Some(order)
    }
}

/// The longest way through steps that take `takes`, and how long it is; `after` as in [`Node`].
#[must_use]
pub fn critical_path(after: &[Vec<usize>], takes: &[Duration]) -> (Duration, Vec<usize>) {
    let mut ends: Vec<(Duration, Option<usize>)> = Vec::with_capacity(after.len());
    for (at, before) in after.iter().enumerate() {
        let latest = before.iter().copied().max_by_key(|before| ends[*before].0);
        let begin = latest.map_or(Duration::ZERO, |before| ends[before].0);
        ends.push((begin + takes[at], latest));
    }
    let Some(mut at) = (0..ends.len()).max_by_key(|at| ends[*at].0) else { return (Duration::ZERO, Vec::new()) };
    let (length, mut path) = (ends[at].0, vec![at]);
    while let Some(before) = ends[at].1 {
        path.push(before);
        at = before;
    }
    path.reverse();
    (length, path)
}
