//! `lifeboat restore …`

mod edge;
mod into;
mod kept;
mod live;
mod options;
mod plan;
mod rivals;
mod shown;
mod world;

pub use plan::{Unfit, readiness};
pub use rivals::Busy;

use super::context::Context;
use super::fault::{Exit, Failure, Fault};
use super::output::{bytes, clock, count, name, print, print_json, problems_json, problems_text, random_id};
use super::progress::{self, Done, pace};
use super::reference::{Reference, open_reader};
use crate::entry::Problem;
use crate::repo::State;
use crate::restore::plan::Level;
use crate::restore::snapshot::{Progress, Restored, restore};
use crate::restore::tree::{self, Mark, Tree};
use crate::restore::{RestoreError, Selection};
use crate::source::{self, SourceError, preparation};
use serde_json::json;
use std::ffi::OsString;
use std::io::{self, IsTerminal as _};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Bring a snapshot back: its entries into a directory, or its system's state into a running system
    Snapshot(Box<Args>),
    /// Bring one application back, by a RestorePlan document
    App(plan::Args),
    /// Bring several applications and what they share back
    Service(plan::Args),
    /// Bring a control plane and what runs on it back
    Cluster(plan::Args),
    /// Bring everything back somewhere else
    Region(plan::Args),
    /// List the restore plans that were carried out, or are under way
    List,
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

#[derive(clap::Args)]
pub struct Args {
    /// SOURCE[@latest | @TIME | @NUMBER | @ID]
    #[arg(value_name = "REF")]
    reference: Reference,
    /// Only these entries and what is below them
    #[arg(value_name = "PATH")]
    paths: Vec<OsString>,
    /// The directory to restore into; made if it is not there
    #[arg(long, value_name = "DIR", required_unless_present = "system")]
    to: Option<PathBuf>,
    /// The directory may hold something already; nothing in it is overwritten
    #[arg(long, requires = "to")]
    into_existing: bool,
    #[command(flatten)]
    system: into::SystemArgs,
}

/// That restore files.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).max(2)
}

/// Whether a person can be asked.
fn is_interactive(context: &Context) -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal() && !context.globals.json
}

pub async fn run(context: &Context, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Snapshot(args) => snapshot(context, *args).await,
        Command::App(args) => plan::run(context, Level::App, args).await,
        Command::Service(args) => plan::run(context, Level::Service, args).await,
        Command::Cluster(args) => plan::run(context, Level::Cluster, args).await,
        Command::Region(args) => plan::run(context, Level::Region, args).await,
        Command::List => plan::list(context).await,
        Command::Other(words) => {
            let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
            let hint = format!(
                "one snapshot: lifeboat restore snapshot {}; an application: lifeboat restore app PLAN",
                words.join(" ")
            );
            Err(Fault::usage(format!("there is no `restore {}`", words[0]), hint).into())
        }
    }
}

async fn snapshot(context: &Context, args: Args) -> Result<Exit, Failure> {
    let selection = Selection::new(args.paths.into_iter().map(OsStringExt::into_vec));
    let Some(to) = args.to else { return Box::pin(into::run(context, &args.reference, selection, args.system)).await };
    let (passed_over, reader) = open_reader(context, &args.reference).await?;
    let clock = Instant::now();
    let threads = threads();
    // Whoever may not read the contents learns so before anything is made.
    reader.check_access()?;
    let preparation = preparation(&reader.catalogue().kind).filter(|_| selection.is_all());
    if let Some(preparation) = preparation {
        if args.into_existing {
            let kind = &reader.catalogue().kind;
            let message = format!("a snapshot of kind {kind} is restored into a directory of its own");
            return Err(Fault::usage(message, "leave --into-existing out, or name a PATH of the snapshot").into());
        }
        let version = reader.catalogue().facts.version().to_owned();
        prepared(context, None, move |world| preparation.check(world, &version)).await?;
    }
    let what = format!("{}@{}", args.reference.source, reader.snapshot().sequence());
    let mark = Mark::new(&random_id(), &what);
    // What is not prepared is as little fit for anything as what is not whole.
    let mark = if preparation.is_some() { mark.staying() } else { mark };
    let options = tree::Options { into_existing: args.into_existing, mark: Some(mark.clone()) };
    let tree = Tree::create(&to, options)?;
    let progress = Arc::new(Progress::default());
    let expected = selection.is_all().then(|| reader.catalogue().bytes);
    warn_of_little_room(&to, expected);
    let bar = progress::show(context, "restore", expected, {
        let progress = progress.clone();
        move || Done {
            count: progress.entries.load(Ordering::Relaxed),
            unit: "entries",
            bytes: progress.bytes.load(Ordering::Relaxed),
            expected: 0,
        }
    });
    let work = tokio::task::spawn_blocking({
        let (reader, progress) = (reader.clone(), progress.clone());
        move || restore(&reader, tree, &selection, threads, &progress)
    });
    let mut work = std::pin::pin!(work);
    let result = tokio::select! {
        result = &mut work => result,
        () = context.interrupt.requested() => {
            progress.stop();
            work.await
        }
    };
    drop(bar);
    let mut restored = match result? {
        Err(RestoreError::Stopped) => return Err(Fault::Interrupted { left: Some(to) }.into()),
        other => other.map_err(|source| Unfinished { target: to.clone(), own: !args.into_existing, source })?,
    };
    tracing::info!(
        source = args.reference.source.as_str(),
        entries = restored.entries,
        bytes = restored.bytes,
        milliseconds = clock.elapsed().as_millis() as u64,
        "restored"
    );
    let (mut done, mut unfit) = (None, None);
    if let Some(preparation) = preparation {
        unfit = why_unfit(&restored.problems);
        if unfit.is_none() {
            let (left, within) = (Some(to.clone()), to.clone());
            done = Some(prepared(context, left, move |world| preparation.run(world, &within)).await?);
            mark.remove(&to).map_err(Fault::file("remove the mark in", &to))?;
        }
    }
    let prepared = Ready { done, unfit };
    // Whoever asked for the newest is to know that this is not it.
    restored.problems.extend(passed_over);
    say(context, &what, reader.snapshot().state(), &to, &restored, &prepared, clock.elapsed())?;
    Ok(if restored.problems.is_empty() { Exit::Ok } else { Exit::Incomplete })
}

/// Whether the files can be started from, of those that must be prepared for it.
struct Ready {
    done: Option<String>,
    /// Why it was not done.
    unfit: Option<String>,
}

/// What is incomplete is not prepared: a server that starts from it would lose more.
fn why_unfit(problems: &[Problem]) -> Option<String> {
    let first = problems.first()?;
    let found = count(problems.len() as u64, "problem", "problems");
    Some(format!("{found}, the first: {}: {}", name(&first.path), first.text))
}

/// No more than a warning: files may have holes, and file systems compress.
fn warn_of_little_room(to: &Path, expected: Option<u64>) {
    let Ok(system) = rustix::fs::statvfs(to) else { return };
    let free = system.f_bavail.saturating_mul(system.f_frsize);
    if let Some(expected) = expected.filter(|expected| *expected > free) {
        tracing::warn!(free = bytes(free), snapshot = bytes(expected), "{} may become full", to.display());
    }
}

/// As long as somebody waits.
const PATIENCE: Duration = Duration::from_hours(24);

/// What makes files fit to be started from, or finds out whether it could; until somebody has enough of it, which leaves
/// `left`.
async fn prepared<T: Send + 'static>(
    context: &Context,
    left: Option<PathBuf>,
    work: impl FnOnce(&source::Context) -> Result<T, SourceError> + Send + 'static,
) -> Result<T, Failure> {
    let world = source::Context::new(source::Cancel::default(), clock(), PATIENCE);
    let cancel = world.cancel.clone();
    let done = context.interrupt.blocking(&cancel, move || work(&world)).await?;
    // Whatever it says then.
    if cancel.is_cancelled() { Err(Fault::Interrupted { left }.into()) } else { Ok(done?) }
}

/// What was begun is still there.
#[derive(Debug, thiserror::Error)]
#[error("the restore into {} did not complete; {}", target.display(), if *own { "remove it before the next try" } else {
    "a part of it may be there, beside what was there before"
})]
struct Unfinished {
    target: PathBuf,
    /// It was made for this, or empty.
    own: bool,
    source: RestoreError,
}

fn say(
    context: &Context,
    what: &str,
    state: State,
    target: &Path,
    restored: &Restored,
    ready: &Ready,
    took: Duration,
) -> Result<(), Failure> {
    let Restored { entries, bytes, problems } = restored;
    let Ready { done, unfit } = ready;
    if context.globals.json {
        return print_json(&json!({
            "snapshot": what, "state": state, "target": target, "entries": entries, "bytes": bytes,
            "seconds": took.as_secs_f64(), "problems": problems_json(problems), "prepared": done, "notPrepared": unfit,
        }));
    }
    let (entries, pace) = (count(*entries, "entry", "entries"), pace(*bytes, took));
    let mut text = format!("Restored {what} into {}: {entries}, {pace}\n", target.display());
    if state != State::Good {
        text += &format!("The snapshot itself is {}: see `lifeboat show {what}`\n", super::snapshots::state(state));
    }
    text.extend(done.as_ref().map(|done| format!("{done}\n")));
    text.extend(unfit.as_ref().map(|why| format!("NOT prepared: no server may start from it ({why})\n")));
    print(&(text + &problems_text(problems)))
}
