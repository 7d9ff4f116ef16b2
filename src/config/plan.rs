//! `kind: RestorePlan`: what to bring back, in which order.

use super::At;
use super::decode::Wrong;
use super::node::Node;
use crate::restore::plan::Plan;
use crate::restore::plan::document::Document;
use std::path::Path;

pub(super) fn into_plan(
    spec: Document,
    name: String,
    at: At,
    document: &Node,
    directory: &Path,
) -> Result<Plan, Vec<Wrong>> {
    let mut wrong = Vec::new();
    let mut steps = Vec::new();
    let mut before: Option<String> = None;
    if spec.steps.is_empty() {
        let field = "spec.steps".to_owned();
        wrong.push(Wrong { line: document.line_of(&field), field, message: "expected at least one step".into() });
    }
    for (index, step) in spec.steps.into_iter().enumerate() {
        let place = format!("spec.steps[{index}]");
        let own = step.name.clone();
        let mut say = |field: &str, message: &str| {
            let field = if field.is_empty() { place.clone() } else { format!("{place}.{field}") };
            wrong.push(Wrong { line: document.line_of(&field), field, message: message.into() });
        };
        steps.extend(step.into_step(document.line_of(&place), before.as_deref(), directory, &mut say));
        before = Some(own);
    }
    if wrong.is_empty() {
        let At { file, line } = at;
        let (level, tier, about) = (spec.level, spec.tier, spec.about);
        Ok(Plan { name, file, line, level, tier, about, steps })
    } else {
        Err(wrong)
    }
}
