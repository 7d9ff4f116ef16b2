//! `lifeboat schedule check`

use super::context::Context;
use super::fault::{Exit, Failure, Fault};
use super::output::{clock, print, print_json};
use serde_json::json;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Check the documents, and each schedule's worst case against its tier
    Check,
}

pub fn run(context: &Context, command: &Command) -> Result<Exit, Failure> {
    let Command::Check = command;
    let config = context.config()?;
    if config.schedules.is_empty() {
        return Err(Fault::usage("there are no Schedule documents", "give them with --config FILE or DIR").into());
    }
    let now = clock();
    let mut documents = Vec::new();
    let mut text = String::new();
    for schedule in config.schedules.values() {
        let worst = schedule.worst_case(now, None);
        let (meets, arithmetic) = (worst.meets(schedule.tier), worst.arithmetic(schedule.tier));
        let next = schedule.timetable.next_after(now);
        let verdict = if meets { "ok    " } else { "FAILED" };
        text += &format!("{verdict}  {}: {arithmetic}\n", schedule.name);
        documents.push(json!({
            "name": schedule.name,
            "tier": schedule.tier,
            "meets": meets,
            "worstCaseSeconds": worst.total().as_secs(),
            "arithmetic": arithmetic,
            "next": next,
            "suspended": schedule.suspend,
        }));
    }
    let mistakes = config.lint(now, |_| None);
    if context.globals.json {
        print_json(&json!({ "schedules": documents, "mistakes": mistakes }))?;
    } else {
        print(&text)?;
    }
    if mistakes.is_empty() { Ok(Exit::Ok) } else { Err(Fault::Mistakes(mistakes).into()) }
}
