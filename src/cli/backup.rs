//! `lifeboat backup [SOURCE…]`

use super::context::{Context, Opened, Use};
use super::fault::{Exit, Failure, Fault, chain, classify};
use super::globals::LogFormat;
use super::output::{bytes, clock, count, print, print_json, tell};
use super::progress::{self, Done, pace};
use super::reference::numbered;
use super::snapshots::{state, way_out};
use crate::backup::{self, ACCEPTED, BackupError, Plan, Report};
use crate::config::{Config, Schedule, nearest};
use crate::id::{Sequence, SourceName};
use crate::policy::guard;
use crate::repo::{Access, Progress, Repository, State, WriterKey};
use crate::source::{self, Cancel, Spec};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Between two looks whether another run has captured something.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub struct Args {
    /// Names of Source documents
    #[arg(value_name = "SOURCE")]
    sources: Vec<SourceName>,
    /// The sources of a schedule, or those of them that are named, in its repository
    #[arg(long, value_name = "NAME")]
    schedule: Option<String>,
    /// Every source there is a document of
    #[arg(long, conflicts_with_all = ["sources", "schedule"])]
    all: bool,
    /// Without documents: capture all of this directory (a Source document can leave things out)
    #[arg(long, value_name = "PATH", requires = "name", conflicts_with_all = ["sources", "schedule", "all"])]
    files: Option<PathBuf>,
    /// Without documents: capture the etcd cluster with these client URLs, without TLS keys or a password (for those, write
    /// a Source document)
    #[arg(long, value_name = "URL,…", value_delimiter = ',', requires = "name",
          conflicts_with_all = ["sources", "schedule", "all", "files"])]
    etcd: Vec<String>,
    /// The source's name in the repository, with --files or --etcd
    #[arg(long, value_name = "NAME")]
    name: Option<SourceName>,
    /// A snapshot in quarantine that shows the one source to be captured as it is meant to be from now on (rebuilt, moved,
    /// made smaller): the new capture is good if it looks like that one. Holds once. With --schedule, only that source is
    /// captured
    #[arg(long, value_name = "SOURCE@NUMBER", value_parser = numbered, conflicts_with = "all")]
    accept: Option<(SourceName, Sequence)>,
    /// How many sources are captured at once
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    parallel: u8,
}

/// What is to be captured, before anything is opened.
struct Job {
    source: SourceName,
    capture: Spec,
    guard: guard::Rules,
    accept: Option<Sequence>,
    max_duration: Option<Duration>,
    /// What is captured first, if this run captures it.
    after: Vec<SourceName>,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let mut jobs = jobs(context, &args)?;
    if let Some(accept) = args.accept {
        accept_into(&mut jobs, accept)?;
    }
    let schedule = args.schedule.as_deref().map(|name| context.schedule(name)).transpose()?;
    let opened = context.open_for(schedule, Use::Write).await?;
    if let Some(schedule) = schedule {
        warn_too_slow(schedule);
    }
    let key = context.require_writer(&opened)?;
    opened.repository.root().accept_writer(&key)?;
    let at_once = usize::from(args.parallel).min(jobs.len());
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let threads = (cores / at_once.max(1)).max(2);
    let cancel = Cancel::default();
    let watcher = tokio::spawn({
        let (interrupt, cancel) = (context.interrupt.clone(), cancel.clone());
        async move {
            interrupt.requested().await;
            cancel.cancel();
        }
    });
    let (repository, run) = (&opened.repository, Run { context, key: &key, cancel: &cancel });
    let turns: BTreeMap<_, _> = jobs.iter().map(|job| (job.source.clone(), watch::Sender::new(false))).collect();
    let (opened, run, turns) = (&opened, &run, &turns);
    let results: Vec<_> = futures_util::stream::iter(in_order(jobs))
        .map(|job| async move {
            for earlier in job.after.iter().filter_map(|name| turns.get(name)) {
                // The sender lives as long as the run.
                let _ = earlier.subscribe().wait_for(|ended| *ended).await;
            }
            let begun = Instant::now();
            if let Some(schedule) = schedule {
                for earlier in job.after.iter().filter(|name| !turns.contains_key(name)) {
                    captured_elsewhere(opened, run, schedule, earlier).await;
                }
            }
            let mut job = job;
            job.max_duration = job.max_duration.map(|limit| limit.saturating_sub(begun.elapsed()));
            let result = Box::pin(one(repository, run, plan(opened, job, threads))).await;
            turns[&result.0].send_replace(true);
            result
        })
        .buffer_unordered(at_once)
        .collect()
        .await;
    watcher.abort();
    finish(context, results)
}

/// Waits until another run of the schedule has captured `earlier`: a volume's CronJob is its own, and the rows that name its
/// files are another's. For half of a run's time at most, since one that comes too early is better than none.
async fn captured_elsewhere(opened: &Opened, run: &Run<'_>, schedule: &Schedule, earlier: &SourceName) {
    let Some(turn) = schedule.timetable.last_at_or_before(clock()).filter(|_| schedule.sources.contains(earlier))
    else {
        return;
    };
    let lineage = opened.lineage(earlier, &Access::Writer(run.key.clone()));
    let limit = Instant::now() + schedule.max_duration / 2;
    let mut told = false;
    loop {
        let newest = match lineage.back_to(|_| true).await {
            Ok((newest, _)) => newest.into_iter().next(),
            // Perhaps these credentials are for the source's own lineage.
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(earlier = earlier.as_str(), error, "whether it was captured first cannot be seen");
                return;
            }
        };
        let started = newest.and_then(|snapshot| Some(snapshot.catalogue?.started_ms));
        if started.is_some_and(|started| started >= turn.as_millisecond()) || run.cancel.is_cancelled() {
            return;
        }
        if Instant::now() >= limit {
            tracing::warn!(
                earlier = earlier.as_str(),
                "it was to be captured first, and was not yet: going on without"
            );
            return;
        }
        if !std::mem::replace(&mut told, true) {
            tracing::info!(earlier = earlier.as_str(), "waiting until another run has captured what comes first");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// What others wait for comes before them; else they stay as they were named. So whoever waits, waits for what has begun.
fn in_order(mut jobs: Vec<Job>) -> Vec<Job> {
    let mut ordered: Vec<Job> = Vec::new();
    while !jobs.is_empty() {
        let waits = |job: &Job| jobs.iter().any(|other| job.after.contains(&other.source));
        // The documents have no circles.
        let next = jobs.iter().position(|job| !waits(job)).unwrap_or(0);
        ordered.push(jobs.remove(next));
    }
    ordered
}

/// Accepting concerns one source that somebody named.
fn accept_into(jobs: &mut [Job], (source, number): (SourceName, Sequence)) -> Result<(), Failure> {
    match jobs {
        [only] if only.source == source => {
            only.accept = Some(number);
            Ok(())
        }
        _ => {
            let hint = format!("back up {source} alone: lifeboat backup {source} --accept {source}@{number}");
            Err(Fault::usage(format!("--accept {source}@{number} is not about what is to be backed up"), hint).into())
        }
    }
}

/// A backup that comes too seldom is still better than none; `schedule check` refuses it.
fn warn_too_slow(schedule: &Schedule) {
    let worst = schedule.worst_case(clock(), None);
    if !worst.meets(schedule.tier) {
        let arithmetic = worst.arithmetic(schedule.tier);
        tracing::warn!(schedule = schedule.name, arithmetic, "its worst case exceeds its tier's objective");
    }
}

struct Run<'a> {
    context: &'a Context,
    key: &'a WriterKey,
    cancel: &'a Cancel,
}

fn plan(opened: &Opened, job: Job, threads: usize) -> Plan {
    let options = Context::write_options(&opened.settings, threads);
    let max_duration = job.max_duration.map_or(options.run_limit, |limit| limit.min(options.run_limit));
    let Job { source, capture, guard, accept, .. } = job;
    Plan { source, capture, guard, accept, options, max_duration }
}

async fn one(repository: &Repository, run: &Run<'_>, plan: Plan) -> (SourceName, Result<Report, BackupError>) {
    let source = plan.source.clone();
    let mut bar = None;
    let label = source.to_string();
    let watch = |progress: Arc<Progress>| {
        bar = Some(progress::show(run.context, &label, None, move || Done {
            count: progress.entries.load(Ordering::Relaxed),
            unit: "entries",
            bytes: progress.bytes.load(Ordering::Relaxed),
            expected: 0,
        }));
    };
    tracing::info!(source = source.as_str(), "backup begins");
    let context = run.context;
    let result = backup::run(repository, run.key, plan, &context.run, clock(), run.cancel, watch).await;
    drop(bar);
    if let Ok(Report { committed, took, not_compared_with }) = &result {
        tracing::info!(
            source = source.as_str(),
            snapshot = committed.sequence.0,
            state = state(committed.state),
            bytes = committed.catalogue.bytes,
            new_bytes = committed.catalogue.new_bytes,
            stored_bytes = committed.catalogue.stored_bytes,
            milliseconds = took.as_millis() as u64,
            "backup committed"
        );
        // People read it in what is printed.
        let for_machines = context.globals.json || context.globals.log_format == LogFormat::Json;
        if committed.state == State::Quarantined && for_machines {
            let reasons = committed.catalogue.reasons.join("; ");
            let snapshot = committed.sequence.0;
            let hint = way_out(&source, committed.sequence);
            tracing::error!(source = source.as_str(), snapshot, reasons, hint, "snapshot is in quarantine");
        }
        if let Some(accepted) = committed.catalogue.facts.details.get(ACCEPTED) {
            tracing::info!(source = source.as_str(), snapshot = committed.sequence.0, accepted, "accepted by a person");
        }
        if let Some(before) = not_compared_with {
            tracing::info!(
                source = source.as_str(),
                snapshot = committed.sequence.0,
                before = before.0,
                "not compared with the snapshot before, which an earlier writer key sealed"
            );
        }
    }
    (source, result)
}

/// Reports every source and finds the exit code: the worst, where one success makes a failure a partial one.
fn finish(context: &Context, mut results: Vec<(SourceName, Result<Report, BackupError>)>) -> Result<Exit, Failure> {
    results.sort_by(|a, b| a.0.cmp(&b.0));
    if results.iter().any(|(_, result)| matches!(result, Err(BackupError::Cancelled))) {
        say(context, &results)?;
        return Err(Fault::Interrupted { left: None }.into());
    }
    // A single source's error is the command's error.
    if let [(_, Err(_))] = results.as_slice()
        && let Some((_, Err(error))) = results.pop()
    {
        return Err(error.into());
    }
    say(context, &results)?;
    let mut exit = Exit::Ok;
    let mut failed = 0;
    for (_, result) in &results {
        match result {
            Ok(report) if report.committed.state == State::Good => {}
            // The data is safe, but somebody has to look at it.
            Ok(_) => exit = Exit::Incomplete,
            Err(_) => failed += 1,
        }
    }
    Ok(match failed {
        0 => exit,
        all if all == results.len() => Exit::Failed,
        _ => Exit::Incomplete,
    })
}

fn say(context: &Context, results: &[(SourceName, Result<Report, BackupError>)]) -> Result<(), Failure> {
    if context.globals.json {
        let all: Vec<Value> = results.iter().map(|(source, result)| describe(source, result)).collect();
        return print_json(&json!({ "run": context.run, "backups": all }));
    }
    let mut text = String::new();
    for (source, result) in results {
        match result {
            Ok(report) => text += &sentence(source, report),
            Err(error) if context.globals.log_format == LogFormat::Json => {
                let error = error as &dyn std::error::Error;
                tracing::error!(source = source.as_str(), error, "backup failed");
            }
            Err(error) => {
                let error = chain(error).join("\n  because: ");
                let named = error.contains(source.as_str());
                let of = if named { String::new() } else { format!("{source}: ") };
                tell(&format!("error: {of}{error}\n"));
            }
        }
    }
    print(&text)
}

fn sentence(source: &SourceName, Report { committed, took, not_compared_with }: &Report) -> String {
    let catalogue = &committed.catalogue;
    let mut text = format!(
        "{source}@{}: {}, {}; {} new, stored as {}\n",
        committed.sequence,
        count(catalogue.entries, "entry", "entries"),
        pace(catalogue.bytes, *took),
        bytes(catalogue.new_bytes),
        bytes(catalogue.stored_bytes),
    );
    for problem in committed.problems.iter().take(20) {
        let path = super::output::name(&problem.path);
        text += &format!("  not captured: {}{}{}\n", path, if path.is_empty() { "" } else { ": " }, problem.text);
    }
    if catalogue.problems > 20 {
        text += &format!("  … and {} more: lifeboat show {source}@{}\n", catalogue.problems - 20, committed.sequence);
    }
    for reason in &catalogue.reasons {
        text += &format!("  in quarantine, never `latest`: {reason}\n");
    }
    let this = committed.sequence;
    if committed.state == State::Quarantined {
        text += &format!("  {}\n", way_out(source, this));
    }
    if let Some(accepted) = catalogue.facts.details.get(ACCEPTED) {
        text += &format!("  accepted {accepted}\n");
    }
    if let Some(before) = not_compared_with {
        text += &format!(
            "  not compared with snapshot {before}, which an earlier writer key sealed; look at it once: \
             lifeboat diff {source}@{before} {source}@{this} --identity KIT\n"
        );
    }
    text
}

fn describe(source: &SourceName, result: &Result<Report, BackupError>) -> Value {
    let name = source.as_str();
    match result {
        Err(error) => {
            let texts = chain(error);
            let (exit, hint) = classify(error);
            json!({"source": name, "error": texts[0], "because": texts[1..], "code": exit as u8, "hint": hint})
        }
        Ok(Report { committed, took, not_compared_with }) => {
            let catalogue = &committed.catalogue;
            let problems =
                committed.problems.iter().map(|p| json!({"path": String::from_utf8_lossy(&p.path), "text": p.text}));
            json!({
                "source": name,
                "number": committed.sequence.0,
                "state": committed.state,
                "entries": catalogue.entries,
                "bytes": catalogue.bytes,
                "newBytes": catalogue.new_bytes,
                "storedBytes": catalogue.stored_bytes,
                "packs": committed.packs,
                "seconds": took.as_secs_f64(),
                "facts": catalogue.facts,
                "reasons": catalogue.reasons,
                "notComparedWith": not_compared_with.map(|number| number.0),
                "hint": (committed.state == State::Quarantined).then(|| way_out(source, committed.sequence)),
                "problems": problems.collect::<Vec<_>>(),
            })
        }
    }
}

fn jobs(context: &Context, args: &Args) -> Result<Vec<Job>, Failure> {
    if let Some(name) = &args.name {
        let capture = match &args.files {
            Some(path) => Spec::Files(source::files::Spec {
                path: std::path::absolute(path)?,
                include: Vec::new(),
                exclude: Vec::new(),
                one_file_system: false,
            }),
            None if args.etcd.is_empty() => {
                return Err(Fault::usage("--name needs --files or --etcd", "or name a Source document").into());
            }
            None => Spec::Etcd(source::etcd::Spec { endpoints: args.etcd.clone(), tls: None, user: None }),
        };
        // What is captured under a name must stay the same thing.
        if context.config()?.sources.contains_key(name) {
            let hint = format!("back up what it says: lifeboat backup {name}; or choose another name");
            return Err(Fault::usage(format!("a Source document is named {name} already"), hint).into());
        }
        return Ok(vec![Job {
            source: name.clone(),
            capture,
            guard: guard::Rules::default(),
            accept: None,
            max_duration: None,
            after: Vec::new(),
        }]);
    }
    let config = context.config()?;
    let (names, max_duration) = names(context, args)?;
    let jobs = names.into_iter().map(|name| {
        let known = config.sources.get(&name).ok_or_else(|| unknown(config, &name))?;
        let (capture, after) = (known.capture.clone(), known.capture_after.clone());
        Ok(Job { source: name, capture, guard: known.guard, accept: None, max_duration, after })
    });
    jobs.collect()
}

fn names(context: &Context, args: &Args) -> Result<(Vec<SourceName>, Option<Duration>), Failure> {
    let mut named = args.sources.clone();
    if let Some((accepted, _)) = &args.accept
        && (named.is_empty() || args.schedule.is_some() && named.contains(accepted))
    {
        named = vec![accepted.clone()];
    }
    if let Some(name) = &args.schedule {
        let schedule = context.schedule(name)?;
        if schedule.suspend {
            return Err(
                Fault::usage(format!("schedule {name} is suspended"), "set suspend: false in its document").into()
            );
        }
        if let Some(other) = named.iter().find(|name| !schedule.sources.contains(name)) {
            let of: Vec<_> = schedule.sources.iter().map(SourceName::as_str).collect();
            let hint = format!("its sources are {}", of.join(", "));
            return Err(Fault::usage(format!("{other} is not among the sources of the schedule {name}"), hint).into());
        }
        let is_meant = |name: &&SourceName| named.is_empty() || named.contains(name);
        return Ok((schedule.sources.iter().filter(is_meant).cloned().collect(), Some(schedule.max_duration)));
    }
    if args.all {
        let config = context.config()?;
        if config.sources.is_empty() {
            return Err(Fault::usage("there are no Source documents", "give them with --config FILE").into());
        }
        return Ok((config.sources.keys().cloned().collect(), None));
    }
    if named.is_empty() {
        return Err(Fault::usage(
            "nothing to back up is named",
            "name Source documents, or use --all, --schedule NAME, or --files PATH --name NAME",
        )
        .into());
    }
    named.sort();
    named.dedup();
    Ok((named, None))
}

fn unknown(config: &Config, name: &SourceName) -> Failure {
    let known: Vec<_> = config.sources.keys().map(SourceName::as_str).collect();
    let hint = match (nearest(name.as_str(), &known), known.is_empty()) {
        (Some(near), _) => format!("did you mean {near}?"),
        (None, true) => "give the documents with --config FILE, or use --files PATH --name NAME".into(),
        (None, false) => format!("the documents have {}", known.join(", ")),
    };
    Fault::usage(format!("there is no Source document named {name}"), hint).into()
}
