//! What a restore plan needs of the world outside: a person's word, the clock, a capture of what will be overwritten.

use super::live::Live;
use crate::backup::{self, Plan};
use crate::cli::context::Context;
use crate::cli::fault::chain;
use crate::cli::output::clock;
use crate::config::Source;
use crate::id::SourceName;
use crate::repo::{Options, Repository, WriterKey};
use crate::restore::plan::execute::Failure;
use crate::restore::plan::hands::Outside;
use crate::restore::plan::journal::{History, Record};
use crate::source::Cancel;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead as _, IsTerminal as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::runtime::Handle;

/// How what is about to be overwritten is captured.
pub struct Keep {
    pub repository: Repository,
    pub key: WriterKey,
    pub options: Options,
    pub sources: BTreeMap<SourceName, Source>,
    pub run: String,
}

pub struct Edge {
    live: Mutex<Live>,
    answers: BTreeSet<String>,
    interactive: bool,
    keep: Option<Keep>,
    /// Ends the execution early.
    pub cancel: Cancel,
    runtime: Handle,
}

impl Edge {
    pub fn new(context: &Context, answers: &[String], keep: Option<Keep>) -> Self {
        let (json, quiet) = (context.globals.json, context.globals.quiet);
        Self {
            live: Mutex::new(Live::new(json, quiet)),
            answers: answers.iter().cloned().collect(),
            interactive: io::stdin().is_terminal() && io::stderr().is_terminal() && !json,
            keep,
            cancel: Cancel::default(),
            runtime: Handle::current(),
        }
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn end(&self) {
        self.live().end();
    }
}

impl Outside for Edge {
    fn ask(&self, task: &str, text: &str) -> Result<(), Failure> {
        if self.answers.contains(task) {
            return Ok(());
        }
        if !self.interactive {
            let text = format!("a person must confirm: {text} (go on with --resume and --answer {task})");
            return Err(Failure::Refused(text));
        }
        let answered = self.live().suspend(|| {
            eprint!("{task}: {text}\nType {task} to go on: ");
            let mut line = String::new();
            io::stdin().lock().read_line(&mut line).map(|_| line.trim() == task)
        });
        match answered {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::Refused("not confirmed".into())),
            Err(why) => Err(Failure::Failed(format!("read the answer: {why}"))),
        }
    }

    fn keep(&self, system: &SourceName, deadline: Instant) -> Result<String, Failure> {
        let Some(keep) = &self.keep else { return Ok("what was there was not captured (--no-safety-snapshot)".into()) };
        let without = "; to go on without it, add --no-safety-snapshot";
        let source = keep.sources.get(system).ok_or_else(|| Failure::Refused(format!("no document names {system}")))?;
        // A lineage of its own: what is overwritten must not become what the next restore takes.
        let name = format!("before-{system}").parse().map_err(|_| {
            Failure::Refused(format!(
                "{system} cannot be captured before it is overwritten: its name is too long{without}"
            ))
        })?;
        let plan = Plan {
            source: name,
            capture: source.capture.clone(),
            guard: source.guard,
            accept: None,
            options: keep.options.clone(),
            max_duration: deadline.saturating_duration_since(Instant::now()),
        };
        let named = plan.source.clone();
        let work = backup::run(&keep.repository, &keep.key, plan, &keep.run, clock(), &self.cancel, |_| {});
        match self.runtime.block_on(work) {
            Ok(report) => Ok(format!("what it held is kept as {named}@{}", report.committed.sequence)),
            Err(_) if self.cancel.is_cancelled() => Err(Failure::Interrupted),
            Err(error) => Err(Failure::Failed(format!(
                "capture {system} before it is overwritten: {}{without}",
                chain(&error).join(": ")
            ))),
        }
    }

    fn clock(&self) -> Timestamp {
        clock()
    }

    fn watch(&self, history: &History, record: &Record) {
        self.live().watch(history, record);
    }
}
