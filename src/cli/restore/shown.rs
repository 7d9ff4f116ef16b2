//! A resolved plan, and the report of its execution, as people and programs read them.

use super::kept;
use crate::cli::context::Context;
use crate::cli::fault::{Exit, Failure, Fault};
use crate::cli::output::{bytes, name, print, print_json, table, time};
use crate::policy::duration::Shown;
use crate::repo::Journals;
use crate::restore::plan::Resolved;
use crate::restore::plan::hands::Facts;
use crate::restore::plan::journal::State;
use crate::restore::plan::report::{Report, describe, shown};
use crate::source::target::summary;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// What is there where the plan restores to.
pub struct Seen {
    pub facts: Vec<Facts>,
}

impl Seen {
    pub fn refused(&self) -> bool {
        self.facts.iter().any(|facts| facts.refused.is_some())
    }
}

pub fn plan(resolved: &Resolved, seen: &Seen) -> String {
    let mut text = format!("{} {}, from {}", resolved.level, resolved.plan, resolved.repository);
    match resolved.at {
        Some(at) => text += &format!(", as of {}\n", time(at)),
        None => text += ", newest recovery points\n",
    }
    if !resolved.about.is_empty() {
        text += &format!("{}\n", resolved.about.trim());
    }
    let mut rows =
        vec![["STEP", "WHAT", "FROM", "AS OF", ">LOST", ">SIZE", ">ABOUT", "AFTER"].map(str::to_owned).to_vec()];
    for task in &resolved.tasks {
        let choice = task.choice.as_ref();
        let after: Vec<_> = task.after.iter().map(|at| resolved.tasks[*at].name.as_str()).collect();
        rows.push(vec![
            task.name.clone(),
            name(describe(&task.doing).as_bytes()),
            choice.map(|choice| format!("{}@{}", choice.source, choice.sequence)).unwrap_or_default(),
            choice.map(|choice| time(choice.moment)).unwrap_or_default(),
            choice.map(|choice| shown(choice.loss_ms)).unwrap_or_default(),
            choice.map(|choice| bytes(choice.bytes)).unwrap_or_default(),
            task.predicted_ms.map_or_else(|| "?".into(), shown),
            after.join(", "),
        ]);
    }
    text += &format!("\n{}\n", table(&rows));
    for facts in &seen.facts {
        let step = &resolved.tasks[facts.task].name;
        text += &format!("{step}: {}", facts.place);
        if let Some(target) = facts.target.as_ref().filter(|target| **target != facts.place) {
            text += &format!(", which is {target}");
        }
        if facts.overwrites {
            text += "  [overwrites or holds back: must be confirmed]";
        }
        text.push('\n');
        for line in facts.about.iter().chain(&facts.refused) {
            text += &format!("  {}\n", name(line.as_bytes()));
        }
        if !facts.changes.is_empty() {
            text += &format!("  {}\n", summary(&facts.changes));
        }
    }
    if resolved.tasks.iter().filter(|task| task.choice.is_some()).count() > 1 {
        let together = match &resolved.run {
            Some(run) => format!(", all captured by the run {run}"),
            None => ", captured by several runs".into(),
        };
        text += &format!("Skew between parts: {}{together}\n", shown(resolved.skew_ms));
    }
    let unknown = resolved.tasks.iter().filter(|task| task.predicted_ms.is_none()).count();
    let path: Vec<_> = resolved.critical_path.iter().map(|at| resolved.tasks[*at].name.as_str()).collect();
    let rto = resolved.tier.map(|tier| format!(" of {} ({tier})", Shown(tier.rto()))).unwrap_or_default();
    if resolved.predicted_ms > 0 {
        text += &format!("Will take about {}{rto}: {}\n", shown(resolved.predicted_ms), path.join(" → "));
    } else if !rto.is_empty() {
        text += &format!("How long it will take is not known yet; it may take{}\n", rto.trim_start_matches(" of"));
    }
    if unknown > 0 && resolved.predicted_ms > 0 {
        text += &format!(
            "{unknown} of {} steps are not in that: they have never been done, and have no budget\n",
            resolved.tasks.len()
        );
    }
    for warning in &resolved.warnings {
        text += &format!("warning: {}\n", name(warning.as_bytes()));
    }
    text
}

fn in_json(resolved: &Resolved, seen: &Seen) -> Value {
    let facts = seen.facts.iter().map(|facts| {
        let changes =
            facts.changes.iter().map(|change| json!({"what": change.what, "action": change.action.to_string()}));
        json!({
            "step": resolved.tasks[facts.task].name, "place": facts.place, "target": facts.target, "about": facts.about,
            "overwrites": facts.overwrites, "refused": facts.refused, "changes": changes.collect::<Vec<_>>(),
        })
    });
    let ids: BTreeSet<_> =
        seen.facts.iter().filter(|facts| facts.overwrites).filter_map(|f| f.target.as_ref()).collect();
    json!({ "plan": resolved, "targets": facts.collect::<Vec<_>>(), "mustBeConfirmed": ids })
}

pub fn print_plan(context: &Context, resolved: &Resolved, seen: &Seen) -> Result<(), Failure> {
    if context.globals.json { print_json(&in_json(resolved, seen)) } else { print(&plan(resolved, seen)) }
}

pub fn print_report(context: &Context, report: &Report) -> Result<(), Failure> {
    if context.globals.json { print_json(&json!({ "report": report })) } else { print(&report.markdown()) }
}

pub fn write_report(directory: &Path, report: &Report) -> Result<(), Failure> {
    std::fs::create_dir_all(directory).map_err(Fault::file("create", directory))?;
    let json = serde_json::to_string_pretty(report)?;
    for (suffix, text) in [("md", report.markdown()), ("html", report.html()), ("json", json)] {
        let file = directory.join(format!("{}.{suffix}", report.id));
        // What programs printed is in it.
        let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&file);
        opened.and_then(|mut out| out.write_all(text.as_bytes())).map_err(Fault::file("write", &file))?;
    }
    Ok(())
}

/// The restores that are known here and in the repository.
pub async fn list(context: &Context, journals: Option<&Journals>) -> Result<Exit, Failure> {
    let mut ids: BTreeSet<String> = kept::here().into_iter().collect();
    if let Some(journals) = journals {
        ids.extend(journals.list().await?.into_keys());
    }
    let mut rows = vec![["ID", "PLAN", "BEGAN", "STATE", ">STEPS", "AT WORK"].map(str::to_owned).to_vec()];
    let mut documents = Vec::new();
    for id in ids {
        let (history, all_ours) = match kept::look(&id, journals).await {
            Ok(looked) => looked,
            Err(why) => {
                tracing::warn!(id, error = why.as_ref() as &dyn std::error::Error, "a journal cannot be read");
                continue;
            }
        };
        let (state, at_work) = (history.standing(), kept::at_work(&id, &history, all_ours));
        let done = history.tasks.iter().filter(|task| task.state == State::Done).count();
        rows.push(vec![
            id.clone(),
            format!("{} {}", history.resolved.level, history.resolved.plan),
            time(history.began),
            state.into(),
            format!("{done}/{}", history.tasks.len()),
            match at_work {
                Some(place) => place.to_string(),
                None if history.verdict.is_none() && journals.is_none() => "nobody here".into(),
                None if history.verdict.is_none() => "nobody: --resume or --abort".into(),
                None => String::new(),
            },
        ]);
        documents.push(json!({
            "id": id, "level": history.resolved.level, "plan": history.resolved.plan, "began": history.began, "state": state,
            "atWork": at_work.map(|place| place.to_string()),
        }));
    }
    if context.globals.json {
        print_json(&json!({ "restores": documents }))?;
    } else if documents.is_empty() {
        print("No restore plan has been carried out yet.\n")?;
    } else {
        print(&table(&rows))?;
    }
    Ok(Exit::Ok)
}
