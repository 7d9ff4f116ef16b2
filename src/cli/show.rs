//! `lifeboat show REF`

use super::context::{Context, Use};
use super::fault::{Exit, Failure};
use super::output::{bytes, count, name, print, print_json, time};
use super::reference::{Reference, id};
use super::snapshots::{describe, state, way_out};
use crate::entry::Problem;
use crate::id::SourceName;
use crate::repo::{Access, Reader, Snapshot, State};
use serde_json::json;
use std::fmt::Write as _;

#[derive(clap::Args)]
pub struct Args {
    /// SOURCE[@latest | @TIME | @NUMBER | @ID]
    #[arg(value_name = "REF")]
    reference: Reference,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let opened = context.open(Use::Read).await?;
    let access = context.access(&opened)?;
    let (lineage, snapshot) = args.reference.find(&opened, &access).await?;
    let problems = match access {
        Access::Recipient(_) => Some(Reader::open(lineage, snapshot.clone()).await?.problems()?),
        _ => None,
    };
    let source = &args.reference.source;
    if context.globals.json {
        let mut document = describe(source, &snapshot);
        if let Some(problems) = &problems {
            let all = problems.iter().map(|p| json!({"path": name(&p.path), "text": p.text}));
            document["problemList"] = all.collect();
        }
        print_json(&document)?;
    } else {
        print(&text(source, &snapshot, problems.as_deref()))?;
    }
    Ok(Exit::Ok)
}

fn text(source: &SourceName, snapshot: &Snapshot, problems: Option<&[Problem]>) -> String {
    let mut text = String::new();
    // Writing to a text does not fail.
    let mut line = |label: &str, value: String| {
        let _ = writeln!(text, "{:<19} {value}", format!("{label}:"));
    };
    let header = &snapshot.manifest.header;
    line("Snapshot", format!("{source}@{}", snapshot.sequence()));
    line("Id", id(snapshot));
    line("State", state(snapshot.state()).into());
    line("Recovery point", time(snapshot.recovery_point()));
    line("Stored", time(snapshot.stored_at));
    if let Some(parent) = &header.parent {
        line("Builds on", format!("{source}@{}", parent.sequence));
    }
    let packs: u64 = header.packs.iter().map(|p| p.size).sum();
    line("Needs", format!("{} of {} in all", count(header.packs.len() as u64, "pack", "packs"), bytes(packs)));
    let Some(catalogue) = &snapshot.catalogue else {
        line("Contents", "sealed; give --writer-key or --identity to see more".into());
        return text;
    };
    line("Kind", catalogue.kind.clone());
    line("Contents", format!("{}, {}", count(catalogue.entries, "entry", "entries"), bytes(catalogue.bytes)));
    let (new, stored) = (bytes(catalogue.new_bytes), bytes(catalogue.stored_bytes));
    line("Added", format!("{new}, stored as {stored}"));
    let facts = &catalogue.facts;
    if let Some(system) = &facts.system {
        line("System", system.clone());
    }
    if let Some(position) = facts.position {
        line("Position", position.to_string());
    }
    if let Some(objects) = facts.objects {
        line("Objects", objects.to_string());
    }
    for (label, value) in &facts.details {
        line(label, value.clone());
    }
    line("Run", format!("{} ({})", catalogue.run, catalogue.agent));
    for reason in &catalogue.reasons {
        line("In quarantine", reason.clone());
    }
    if snapshot.state() == State::Quarantined {
        line("What to do", way_out(source, snapshot.sequence()));
    }
    match problems {
        Some(problems) => {
            for problem in problems {
                let path = if problem.path.is_empty() { "(the source)".into() } else { name(&problem.path) };
                line("Problem", format!("{path}: {}", problem.text));
            }
        }
        None if catalogue.problems > 0 => {
            line("Problems", format!("{}; give --identity to see them", catalogue.problems));
        }
        None => {}
    }
    text
}
