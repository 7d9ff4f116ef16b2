//! `lifeboat restore app|service|cluster|region PLAN`: a RestorePlan document, resolved, shown, confirmed, carried out.

use super::edge::{Edge, Keep};
use super::kept::{self, Kept};
use super::rivals::{Busy, Turn};
use super::shown::{self, Seen};
use super::world;
use crate::cli::context::{Context, Opened, Use};
use crate::cli::fault::{Exit, Failure, Fault, chain, of_the_store};
use crate::cli::output::{clock, print, tell};
use crate::cli::reference::numbered;
use crate::id::{Sequence, SourceName};
use crate::repo::Journals;
use crate::restore::plan::execute::{End, Execution};
use crate::restore::plan::hands::{Facts, Worker};
use crate::restore::plan::journal::{Event, History, JournalError, State, Verdict};
use crate::restore::plan::report::{Report, shown as length};
use crate::restore::plan::resolve::follows;
use crate::restore::plan::{Doing, Finding, Level, Plan, Resolved, resolve};
use crate::source::target::Existing;
use jiff::Timestamp;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

#[derive(clap::Args)]
pub struct Args {
    /// Name of a RestorePlan document
    #[arg(value_name = "PLAN", required_unless_present_any = ["resume", "abort"])]
    plan: Option<String>,
    /// Go back to this moment: the newest recovery points at or before it (RFC 3339)
    #[arg(long, value_name = "TIME", conflicts_with_all = ["run", "resume", "abort"])]
    at: Option<Timestamp>,
    /// Only what this run captured, so that all parts belong together (`lifeboat show` has a snapshot's run)
    #[arg(long, value_name = "RUN", conflicts_with_all = ["resume", "abort"])]
    run: Option<String>,
    /// This snapshot of its source, and no other; the only way to take one that is in quarantine; repeatable
    #[arg(long, value_name = "SOURCE@NUMBER", value_parser = numbered, conflicts_with_all = ["resume", "abort"])]
    snapshot: Vec<(SourceName, Sequence)>,
    /// Say what would happen, and change nothing
    #[arg(long, conflicts_with_all = ["resume", "abort"])]
    dry_run: bool,
    /// Go on with a restore that was interrupted or failed
    #[arg(long, value_name = "ID", conflicts_with = "plan")]
    resume: Option<String>,
    /// Give a restore up: let go what its fences hold back
    #[arg(long, value_name = "ID", conflicts_with_all = ["plan", "resume"])]
    abort: Option<String>,
    /// This restore, which somebody seems to be at on another machine, is not: that machine is gone; repeatable
    #[arg(long, value_name = "ID", conflicts_with = "dry_run")]
    dead: Vec<String>,
    /// Do not ask whether targets may be overwritten; each must be named with --target-id
    #[arg(long, requires = "target_id")]
    yes: bool,
    /// A target that may be overwritten or held back, as --dry-run shows it; repeatable
    #[arg(long, value_name = "ID")]
    target_id: Vec<String>,
    /// Confirm what this step asks; repeatable
    #[arg(long, value_name = "STEP")]
    answer: Vec<String>,
    /// Do not capture what is about to be overwritten
    #[arg(long)]
    no_safety_snapshot: bool,
    /// Write the final report into this directory, as Markdown, HTML and JSON
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

/// A target that is not there yet is waited for no longer than this when the plan is shown.
const LOOK: Duration = Duration::from_secs(20);

pub async fn run(context: &Context, level: Level, args: Args) -> Result<Exit, Failure> {
    if let Some(id) = &args.abort {
        return Box::pin(give_up(context, level, &args, id)).await;
    }
    let (opened, journals) = reach(context, if args.dry_run { Use::Read } else { Use::Write }).await?;
    if let Some(id) = &args.resume {
        let (kept, history) = Kept::resume(id, journals.clone(), args.dead.contains(id)).await?;
        is_of(level, &history.resolved.plan, history.resolved.level)?;
        return go_on(context, &opened, &args, (kept, journals), history);
    }
    let name = args.plan.as_deref().unwrap_or_default();
    let plan = context.plan(name)?;
    is_of(level, name, plan.level)?;
    let asked = Asked { at: args.at, run: args.run.clone(), chosen: args.snapshot.iter().cloned().collect() };
    let resolved = Box::pin(resolved(context, &opened, plan, journals.as_ref(), asked)).await?;
    let now = resolved.resolved_at;
    let id = format!("{name}-{}", now.strftime("%Y%m%d-%H%M%S"));
    let history = History::new(resolved, now);
    if args.dry_run {
        let edge = Edge::new(context, &args.answer, None);
        let worker = worker(context, Some(&opened), &id, &history, &edge)?;
        let seen = look(&worker, &history.resolved)?;
        shown::print_plan(context, &history.resolved, &seen)?;
        return Ok(if seen.refused() { Exit::Failed } else { Exit::Ok });
    }
    let kept = Begin { id, journals };
    begin(context, &opened, &args, &kept, history)
}

/// The recovery points that are wanted, where it is not the newest.
#[derive(Default)]
struct Asked {
    at: Option<Timestamp>,
    run: Option<String>,
    chosen: BTreeMap<SourceName, Sequence>,
}

/// # Errors
/// [`Unfit`]: it cannot be carried out as it is asked for.
async fn resolved(
    context: &Context,
    opened: &Opened,
    plan: &Plan,
    journals: Option<&Journals>,
    asked: Asked,
) -> Result<Resolved, Failure> {
    let mut world = world::look(context, opened, plan, journals).await?;
    (world.at, world.run, world.chosen) = (asked.at, asked.run, asked.chosen);
    world::fill(context, opened, plan, &mut world).await?;
    let unfit = |findings| Unfit { plan: plan.name.clone(), findings };
    let resolved = resolve(&plan.name, &world).map_err(unfit)?;
    let findings = world::lacking(context, opened, &resolved).await?;
    if findings.is_empty() { Ok(resolved) } else { Err(unfit(findings).into()) }
}

/// Whether the repository has what a plan restores; says how much would be lost.
pub async fn readiness(context: &Context, opened: &Opened, plan: &Plan) -> Result<String, Failure> {
    let resolved = resolved(context, opened, plan, None, Asked::default()).await?;
    let losses = resolved.tasks.iter().filter_map(|task| Some(task.choice.as_ref()?.loss_ms));
    let (restores, steps) = (losses.clone().count(), resolved.tasks.len());
    let lost = losses.max().map_or_else(String::new, |most| format!("; at most {} would be lost", length(most)));
    Ok(format!("what {restores} of its {steps} steps restore is there{lost}"))
}

pub async fn list(context: &Context) -> Result<Exit, Failure> {
    match reach(context, Use::Read).await {
        Ok((_, journals)) => shown::list(context, journals.as_ref()).await,
        // Whoever has lost the bucket in the middle of a restore looks for its id.
        Err(failure) if !kept::here().is_empty() => {
            shown::list(context, None).await?;
            Err(failure)
        }
        Err(failure) => Err(failure),
    }
}

/// What keeps a plan from being carried out.
#[derive(Debug, thiserror::Error)]
#[error("the plan {plan} cannot be carried out:{}", findings.iter().map(|finding| format!("\n  {finding}")).collect::<String>())]
pub struct Unfit {
    plan: String,
    pub findings: Vec<Finding>,
}

struct Begin {
    id: String,
    journals: Option<Journals>,
}

impl Begin {
    /// Two restores of a plan may begin within the same second, here and elsewhere.
    fn journal(&self, history: &History) -> Result<(String, Kept), Failure> {
        let first = kept::first(history);
        for number in 1..=9 {
            let id = if number == 1 { self.id.clone() } else { format!("{}-{number}", self.id) };
            if let Some(kept) = Kept::begin(&id, self.journals.as_ref(), &first)? {
                return Ok((id, kept));
            }
        }
        Err(Fault::usage(format!("there is a restore {} already", self.id), "wait a second, then try again").into())
    }
}

/// The repository, and where it has its journals.
async fn reach(context: &Context, use_: Use) -> Result<(Opened, Option<Journals>), Failure> {
    let opened = context.open(use_).await?;
    // Without the recovery identity the contents may still be readable (a drill's, an escrow's).
    let identity = context.require_identity(&opened)?;
    let journals = opened.repository.journals(&identity).ok();
    if journals.is_none() {
        tracing::warn!("this identity cannot write a journal into the repository: only this machine can go on");
    }
    Ok((opened, journals))
}

fn is_of(asked: Level, plan: &str, level: Level) -> Result<(), Failure> {
    if asked == level {
        return Ok(());
    }
    let hint = format!("lifeboat restore {level} …");
    Err(Fault::usage(format!("{plan} is a plan of level {level}"), hint).into())
}

fn worker<'a>(
    context: &Context,
    opened: Option<&Opened>,
    id: &str,
    history: &History,
    edge: &'a Edge,
) -> Result<Worker<'a>, Failure> {
    let sources = &context.config()?.sources;
    let contents = |opened: &Opened| Ok::<_, Failure>((opened.repository.clone(), context.access_to_contents(opened)?));
    Ok(Worker {
        id: id.to_owned(),
        contents: opened.map(contents).transpose()?,
        documents: sources.iter().map(|(name, source)| (name.clone(), source.capture.clone())).collect(),
        confirmed: history.consent(kept::machine().as_deref()),
        machine: kept::machine(),
        threads: super::threads(),
        runtime: tokio::runtime::Handle::current(),
        cancel: edge.cancel.clone(),
        outside: edge,
    })
}

/// Looks at the targets, on threads that may block.
fn look(worker: &Worker<'_>, resolved: &Resolved) -> Result<Seen, Failure> {
    let facts = tokio::task::block_in_place(|| worker.survey(resolved, LOOK));
    if worker.cancel.is_cancelled() {
        return Err(unchanged());
    }
    Ok(Seen { facts })
}

fn unchanged() -> Failure {
    Fault::Interrupted { left: None }.into()
}

fn begin(
    context: &Context,
    opened: &Opened,
    args: &Args,
    begin: &Begin,
    mut history: History,
) -> Result<Exit, Failure> {
    let edge = Edge::new(context, &args.answer, keep(context, opened, args)?);
    let seen = look(&worker(context, Some(opened), &begin.id, &history, &edge)?, &history.resolved)?;
    if let Some(facts) = seen.facts.iter().find(|facts| facts.refused.is_some()) {
        let why = facts.refused.as_deref().unwrap_or_default();
        let step = &history.resolved.tasks[facts.task].name;
        let message = format!("{step} would not be done: {}: {why}", facts.place);
        let hint = "nothing was changed; `lifeboat restore list` says whether another restore is at it";
        return Err(Fault::usage(message, hint).into());
    }
    let confirmed = confirm(context, args, &history, &seen, &edge)?;
    for warning in &history.resolved.warnings {
        tracing::warn!("{warning}");
    }
    // The clock starts when people have decided.
    history.began = clock();
    let turn = tokio::task::block_in_place(Turn::take)?;
    let (id, mut kept) = begin.journal(&history)?;
    if !context.globals.json {
        let level = history.resolved.level;
        // Whoever reads may have gone.
        let _ =
            writeln!(io::stderr(), "This restore is {id}: `lifeboat restore {level} --resume {id}` goes on with it");
    }
    let worker = worker(context, Some(opened), &id, &history, &edge)?;
    let entry = Entry { turn, journals: begin.journals.as_ref(), dead: &args.dead, confirmed };
    carry_out(context, args, worker, &edge, &mut kept, history, entry)
}

/// How an execution is entered.
struct Entry<'a> {
    turn: Turn,
    journals: Option<&'a Journals>,
    dead: &'a [String],
    confirmed: BTreeSet<String>,
}

impl Entry<'_> {
    /// Says that somebody is at it, and sees that nobody is at another that would get into its way.
    fn pass(self, execution: &mut Execution<'_>, id: &str) -> Result<(), Failure> {
        let new = execution.history.next == 2;
        let written = if new { Ok(()) } else { execution.record(Event::Resumed) };
        let (targets, machine) = (self.confirmed, kept::machine());
        let known = targets.is_subset(&execution.history.consent(machine.as_deref()));
        let written = written
            .and_then(|()| if known { Ok(()) } else { execution.record(Event::ConfirmedOn { machine, targets }) });
        written.map_err(|error| unwritten(&error, &execution.history, id))?;
        let others = self.turn.exclude(id, &execution.history, self.journals, self.dead);
        let free = tokio::runtime::Handle::current().block_on(others);
        if free.is_err() && new {
            // It did nothing; nobody shall go on with it. Without that record it is forgotten after a while.
            let _ = execution.record(Event::Ended(Verdict::Aborted));
        } else if free.is_err() {
            execution.leave();
        }
        free
    }
}

fn go_on(
    context: &Context,
    opened: &Opened,
    args: &Args,
    (mut kept, journals): (Kept, Option<Journals>),
    mut history: History,
) -> Result<Exit, Failure> {
    let edge = Edge::new(context, &args.answer, keep(context, opened, args)?);
    let id = args.resume.clone().unwrap_or_default();
    let mut worker = worker(context, Some(opened), &id, &history, &edge)?;
    if let Some(verdict @ (Verdict::Complete | Verdict::Aborted)) = history.verdict {
        return Err(has_ended(&id, verdict));
    }
    let open = history.resolved.tasks.iter().zip(&history.tasks).filter(|(_, progress)| progress.state != State::Done);
    for (field, source) in open.flat_map(|(task, _)| task.doing.documents()) {
        if !worker.documents.contains_key(source) {
            let message = format!("{field}: there is no Source document named {source}; nothing was done");
            let hint = context.if_missing("give the documents that the restore was begun with (--config FILE)");
            return Err(Fault::usage(message, hint).into());
        }
    }
    redo_what_is_gone(&worker, &mut history);
    if history.verdict == Some(Verdict::Incomplete) {
        redo_what_is_lacking(&worker, &mut history);
    }
    worker.confirmed = history.consent(worker.machine.as_deref());
    // What was done is not looked at again, nor what is under way here: its own traces would look like somebody's data.
    let mut left = history.resolved.clone();
    for (task, progress) in left.tasks.iter_mut().zip(&history.tasks) {
        let under_way = |note: &Value| !note.is_null() && !worker.is_elsewhere(note);
        if progress.state == State::Done || progress.note.as_ref().is_some_and(under_way) {
            task.choice = None;
        }
    }
    let seen = look(&worker, &left)?;
    close_again(&mut history, &seen);
    let confirmed = confirm(context, args, &history, &seen, &edge)?;
    let turn = tokio::task::block_in_place(Turn::take)?;
    let entry = Entry { turn, journals: journals.as_ref(), dead: &args.dead, confirmed };
    carry_out(context, args, worker, &edge, &mut kept, history, entry)
}

fn has_ended(id: &str, verdict: Verdict) -> Failure {
    let how = if verdict == Verdict::Complete { "is complete" } else { "was given up" };
    Fault::usage(format!("restore {id} {how}"), "begin a new one").into()
}

/// Somebody may have let go meanwhile of what is held back in a cluster: it would write into what is restored. Not once a fence
/// has begun to open; nor what a program of the plan may have started itself.
fn close_again(history: &mut History, seen: &Seen) {
    for fence in history.closed.clone() {
        let (resolved, tasks) = (&history.resolved, &history.tasks);
        let is_there = seen.facts.iter().any(|facts| facts.task == fence && facts.target.is_some());
        let is_open = |at: usize| resolved.tasks[at].fence == Some(fence) && tasks[at].state != State::Waiting;
        let has_run = |at: usize| {
            let runs = matches!(resolved.tasks[at].doing, Doing::Run(_) | Doing::Job(_));
            runs && tasks[at].state != State::Waiting && follows(&resolved.tasks, at, fence)
        };
        if !is_there || tasks[fence].state != State::Done || (0..tasks.len()).any(is_open) {
            continue;
        }
        if (0..tasks.len()).any(has_run) {
            let step = resolved.tasks[fence].name.as_str();
            tracing::warn!(
                step,
                "it is not closed again, since the plan has run programs since: see that nothing writes"
            );
        } else {
            history.redo(fence);
        }
    }
}

fn redo_what_is_gone(worker: &Worker<'_>, history: &mut History) {
    for at in 0..history.tasks.len() {
        let (task, progress) = (&history.resolved.tasks[at], &history.tasks[at]);
        if progress.state == State::Done && worker.is_gone(at, task, progress.note.as_ref()) {
            let step = task.name.as_str();
            tracing::warn!(step, "it was done, and what it restored is not on this machine: it is done again");
            history.redo_here(at);
        }
    }
}

/// What lacks a part may be whole by now. Only what is in a directory is done again: of systems, which are at work, not all that
/// was missing the first time would be told the second time.
fn redo_what_is_lacking(worker: &Worker<'_>, history: &mut History) {
    for at in 0..history.tasks.len() {
        let task = &history.resolved.tasks[at];
        let Doing::Restore(restore) = &task.doing else { continue };
        if !history.is_lacking(at) {
            continue;
        }
        let step = task.name.as_str();
        let Some(to) = &restore.to else {
            tracing::warn!(step, "it has problems, and is not done again: mend them by hand, or begin a new restore");
            continue;
        };
        let aside = worker.aside(at, to);
        if restore.options.existing == Existing::Skip {
            tracing::warn!(step, "it has problems; to have it done again, move away what is in its directory");
        } else if let Some(aside) = aside {
            let aside = aside.display();
            tracing::warn!(step, %aside, "it has problems; to have it done again, move away what it has moved aside");
        } else {
            tracing::warn!(step, "it has problems: it is done again");
            history.redo(at);
        }
    }
}

fn keep(context: &Context, opened: &Opened, args: &Args) -> Result<Option<Keep>, Failure> {
    if args.no_safety_snapshot || args.dry_run {
        return Ok(None);
    }
    Ok(Some(Keep {
        repository: opened.repository.clone(),
        key: context.require_writer(opened)?,
        options: Context::write_options(&opened.settings, 2),
        sources: context.config()?.sources.clone(),
        run: context.run.clone(),
    }))
}

/// # Errors
/// Nobody said that what is there may be overwritten.
fn confirm(
    context: &Context,
    args: &Args,
    history: &History,
    seen: &Seen,
    edge: &Edge,
) -> Result<BTreeSet<String>, Failure> {
    let named: BTreeSet<String> = args.target_id.iter().cloned().collect();
    let known: BTreeSet<&String> = seen.facts.iter().filter_map(|facts| facts.target.as_ref()).collect();
    // Of what is under way, nothing is looked at.
    let all_known = args.resume.is_none() && seen.facts.iter().all(|facts| facts.target.is_some());
    if let Some(other) = named.iter().find(|id| all_known && !known.contains(id)) {
        let is: Vec<_> = known.iter().map(|id| id.as_str()).collect();
        let message = format!("no step concerns {other}: the targets are {}", is.join(", "));
        return Err(Fault::usage(message, "nothing was changed; look again at what is to be restored where").into());
    }
    let given = history.consent(kept::machine().as_deref());
    let asked = |facts: &&Facts| facts.overwrites && facts.target.as_ref().is_some_and(|id| !given.contains(id));
    let needed: BTreeSet<String> = seen.facts.iter().filter(asked).filter_map(|facts| facts.target.clone()).collect();
    let missing: Vec<&String> = needed.difference(&named).collect();
    if missing.is_empty() && (args.yes || needed.is_empty()) {
        return Ok(if args.yes { named } else { needed });
    }
    if !super::is_interactive(context) || args.yes {
        let ids: Vec<_> = needed.iter().map(|id| format!("--target-id {id}")).collect();
        let message = format!(
            "the plan {} overwrites or holds back what is there now; nothing was changed",
            history.resolved.plan
        );
        let hint = format!("see it with --dry-run; if it is meant, add: --yes {}", ids.join(" "));
        return Err(Fault::usage(message, hint).into());
    }
    tell(&shown::plan(&history.resolved, seen));
    for id in &needed {
        let places: Vec<_> =
            seen.facts.iter().filter(|facts| facts.target.as_ref() == Some(id)).map(|f| f.place.as_str()).collect();
        let places = places.join(", ");
        tell(&format!("What is in {places} now will be overwritten or held back. Type {id} to go on: "));
        let line = tokio::task::block_in_place(|| edge.line(None)).map_err(|_| unchanged())?;
        if line.trim() != id {
            return Err(Fault::Failed { message: "not confirmed; nothing was changed".into(), hint: None }.into());
        }
    }
    Ok(needed)
}

fn carry_out(
    context: &Context,
    args: &Args,
    mut worker: Worker<'_>,
    edge: &Edge,
    kept: &mut Kept,
    history: History,
    entry: Entry<'_>,
) -> Result<Exit, Failure> {
    worker.confirmed.extend(entry.confirmed.clone());
    let id = worker.id.clone();
    let (end, history) = tokio::task::block_in_place(|| {
        let mut execution = Execution::new(history, kept, &worker);
        let end = entry.pass(&mut execution, &id).map(|()| execution.run());
        (end, execution.history)
    });
    edge.end();
    let end = end?;
    let report = Report::new(&id, &history);
    // How the restore ended is more important than that its report has no place.
    let written = args.report.as_ref().map_or(Ok(()), |directory| shown::write_report(directory, &report));
    let end = end.map_err(|error| unwritten(&error, &history, &id))?;
    let printed = shown::print_report(context, &report);
    match end {
        End::Ended(_) if written.is_err() || printed.is_err() => written.and(printed).map(|()| Exit::Failed),
        End::Ended(Verdict::Complete) if report.missed() => Ok(Exit::Missed),
        End::Ended(Verdict::Complete) => Ok(Exit::Ok),
        End::Ended(_) => Ok(Exit::Incomplete),
        End::Interrupted => Err(Fault::Paused { level: history.resolved.level.to_string(), id }.into()),
        End::Stopped(steps) => {
            let names: Vec<_> = steps.iter().map(|at| history.resolved.tasks[*at].name.as_str()).collect();
            let why = steps.iter().find_map(|at| match &history.tasks[*at].state {
                State::Failed(text) => Some(text.clone()),
                _ => None,
            });
            let level = history.resolved.level;
            let message = format!("the restore stopped at {}: {}", names.join(", "), why.unwrap_or_default());
            let mut hint = format!("mend the cause, then go on: lifeboat restore {level} --resume {id}");
            if !history.closed.is_empty() {
                hint +=
                    &format!("; what fences hold back stays so until then, or: lifeboat restore {level} --abort {id}");
            }
            Err(Fault::Failed { message, hint: Some(hint) }.into())
        }
    }
}

/// What to do when the journal could not be written.
fn unwritten(error: &JournalError, history: &History, id: &str) -> Failure {
    let level = history.resolved.level;
    let hint = match error {
        JournalError::Elsewhere { .. } => format!(
            "let whoever is at it finish, or end that process; then: lifeboat restore {level} --resume {id}, there or on a \
             machine that has no journal of it"
        ),
        _ => format!("nothing further was begun; mend the cause, then go on: lifeboat restore {level} --resume {id}"),
    };
    Fault::Failed { message: chain(error).join(": "), hint: Some(hint) }.into()
}

/// What fences hold back need not wait for the bucket: this machine's journal knows it.
async fn give_up(context: &Context, level: Level, args: &Args, id: &str) -> Result<Exit, Failure> {
    let dead = args.dead.iter().any(|other| other == id);
    let asked = async {
        let (opened, journals) = reach(context, Use::Write).await?;
        let (kept, history) = Kept::resume(id, journals.clone(), dead).await?;
        Ok::<_, Failure>((Some(opened), journals, kept, history))
    };
    let (opened, journals, mut kept, history) = match asked.await {
        Ok(found) => found,
        Err(failure) if !kept::here().iter().any(|known| known == id) => return Err(failure),
        Err(failure) if failure.is::<Busy>() => return Err(failure),
        Err(source) if of_the_store(source.as_ref()).is_some() && !dead => {
            return Err(Fault::Unasked { level: level.to_string(), id: id.into(), source }.into());
        }
        Err(failure) if dead => {
            let error = failure.as_ref() as &dyn std::error::Error;
            tracing::warn!(error, "the repository cannot be used: this machine's journal counts");
            let (kept, history) = Kept::resume(id, None, dead).await?;
            (None, None, kept, history)
        }
        Err(failure) => return Err(failure),
    };
    is_of(level, &history.resolved.plan, history.resolved.level)?;
    if history.verdict == Some(Verdict::Complete) && history.closed.is_empty() {
        return Err(has_ended(id, Verdict::Complete));
    }
    let edge = Edge::new(context, &args.answer, None);
    let worker = worker(context, opened.as_ref(), id, &history, &edge)?;
    let turn = tokio::task::block_in_place(Turn::take)?;
    let entry = Entry { turn, journals: journals.as_ref(), dead: &args.dead, confirmed: BTreeSet::new() };
    let (failures, history) = tokio::task::block_in_place(|| {
        let mut execution = Execution::new(history, &mut kept, &worker);
        let failures = entry.pass(&mut execution, id).map(|()| execution.abort());
        (failures, execution.history)
    });
    edge.end();
    let failures = failures??;
    let report = Report::new(id, &history);
    if let Some(directory) = &args.report {
        shown::write_report(directory, &report)?;
    }
    if !failures.is_empty() {
        let mut message = format!("the restore could not be given up as a whole: {}", failures.join("; "));
        let closed: Vec<_> = history.closed.iter().map(|at| history.resolved.tasks[*at].name.as_str()).collect();
        if !closed.is_empty() {
            message += &format!("; still held back: {}", closed.join(", "));
        }
        let hint = "mend the cause and run the same command again".to_owned();
        return Err(Fault::Failed { message, hint: Some(hint) }.into());
    }
    if !context.globals.json {
        print(&format!("Restore {id} is given up; nothing is held back any more. What was restored stays.\n"))?;
    }
    Ok(Exit::Ok)
}
