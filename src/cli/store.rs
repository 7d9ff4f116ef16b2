//! `lifeboat store check`

use super::context::{Context, Use};
use super::fault::{Exit, Failure};
use super::output::{clock, print, print_json, time};
use crate::store::conformance::{Options, Outcome, Report, check};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Check that a bucket or directory keeps what a repository relies on; writes and removes objects below _check/
    Check(Args),
}

#[derive(clap::Args)]
pub struct Args {
    /// Size of the large object, in MiB; above the part size, uploads in parts are checked too
    #[arg(long, value_name = "MIB", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=4096))]
    large: u16,
}

pub async fn run(context: &Context, command: Command) -> Result<Exit, Failure> {
    let Command::Check(args) = command;
    let settings = context.settings()?;
    let store = context.store(&settings, Use::Write).await?;
    let options = Options { now: clock(), large: usize::from(args.large) << 20, rival: None };
    let report = check(store.as_ref(), options).await;
    if context.globals.json {
        print_json(&report)?;
    } else {
        print(&text(&report))?;
    }
    Ok(if report.passed() { Exit::Ok } else { Exit::Failed })
}

fn text(report: &Report) -> String {
    let yes = |b| if b { "yes" } else { "no" };
    let mut text = format!("{}\nObject Lock: {}; versions: {}\n", report.url, yes(report.lock), yes(report.versions));
    for check in &report.checks {
        text += &match &check.outcome {
            Outcome::Ok => format!("ok      {}\n", check.name),
            Outcome::Failed { why } => format!("FAILED  {}: {why}\n", check.name),
            Outcome::NotSupported { why } => format!("-       {}: {why}\n", check.name),
        };
    }
    for latency in &report.latencies {
        text += &format!(
            "{:<8}median {:.1} ms, longest {:.1} ms\n",
            latency.operation, latency.median_ms, latency.longest_ms
        );
    }
    for key in &report.left {
        let until = report.locked_until.map_or_else(String::new, |until| format!(" (locked until {})", time(until)));
        text += &format!("left behind: {key}{until}\n");
    }
    text
}
