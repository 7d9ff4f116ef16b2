//! What a restore plan needs of the world outside: a person's word, the clock, a capture of what will be overwritten.

use super::live::Live;
use crate::backup::{self, Plan};
use crate::cli::context::Context;
use crate::cli::fault::chain;
use crate::cli::output::{clock, count};
use crate::cli::snapshots;
use crate::config::Source;
use crate::id::SourceName;
use crate::repo::{Committed, Options, Repository, State, WriterKey};
use crate::restore::plan::execute::Failure;
use crate::restore::plan::hands::Outside;
use crate::restore::plan::journal::{History, Record};
use crate::source::Cancel;
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// How often somebody who waits for an answer looks whether to go on.
const TICK: Duration = Duration::from_millis(100);

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
    /// The line that is being read, for whoever asks next too: an abandoned question leaves its reader behind.
    reading: Mutex<Option<Receiver<io::Result<String>>>>,
    turn: Mutex<()>,
    listening: JoinHandle<()>,
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Edge {
    pub fn new(context: &Context, answers: &[String], keep: Option<Keep>) -> Self {
        let (json, quiet) = (context.globals.json, context.globals.quiet);
        let cancel = Cancel::default();
        let listening = tokio::spawn({
            let (interrupt, cancel) = (context.interrupt.clone(), cancel.clone());
            async move {
                interrupt.requested().await;
                cancel.cancel();
            }
        });
        Self {
            live: Mutex::new(Live::new(json, quiet)),
            answers: answers.iter().cloned().collect(),
            interactive: super::is_interactive(context),
            keep,
            cancel,
            runtime: Handle::current(),
            reading: Mutex::default(),
            turn: Mutex::default(),
            listening,
        }
    }

    /// The next line that a person types.
    ///
    /// # Errors
    /// `Interrupted`, or nobody typed one before the deadline.
    pub fn line(&self, deadline: Option<Instant>) -> Result<String, Failure> {
        let late = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
        let fail = |why: io::Error| Failure::Failed(format!("read the answer: {why}"));
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = if let Some(lines) = reading.take() {
            lines
        } else {
            let (send, lines) = bounded(1);
            let read = move || {
                let mut line = String::new();
                let read = io::stdin().lock().read_line(&mut line).map(|_| line);
                let _ = send.send(read); // nobody may be waiting any more
            };
            std::thread::Builder::new().name("stdin".into()).spawn(read).map_err(fail)?;
            lines
        };
        loop {
            match lines.recv_timeout(TICK) {
                Ok(line) => return line.map_err(fail),
                Err(RecvTimeoutError::Disconnected) => return Err(fail(io::ErrorKind::UnexpectedEof.into())),
                Err(RecvTimeoutError::Timeout) if self.cancel.is_cancelled() || late() => {
                    *reading = Some(lines);
                    let late = Failure::Failed("nobody answered within its timeout".into());
                    return Err(if self.cancel.is_cancelled() { Failure::Interrupted } else { late });
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
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
    fn ask(&self, task: &str, text: &str, on: &str, deadline: Instant) -> Result<(), Failure> {
        if self.answers.contains(task) {
            return Ok(());
        }
        if !self.interactive {
            let text = format!("a person must confirm: {text} (go on with {on} and --answer {task})");
            return Err(Failure::Refused(text));
        }
        // One question at a time.
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.live().ask(&format!("{task}: {text}\nType {task} to go on: "));
        let answered = self.line(Some(deadline));
        self.live().answered();
        if answered?.trim() == task { Ok(()) } else { Err(Failure::Refused("not confirmed".into())) }
    }

    fn keeps(&self) -> bool {
        self.keep.is_some()
    }

    fn keep(&self, system: &SourceName, deadline: Instant) -> Result<String, Failure> {
        let keep = self.keep.as_ref().ok_or_else(|| Failure::Refused("nothing is kept".into()))?;
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
            Ok(report) => kept(&named, &report.committed).map_err(|why| Failure::Failed(format!("{why}{without}"))),
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

/// What a capture is worth to whoever wants back what was overwritten.
///
/// # Errors
/// Not all is in it.
fn kept(name: &SourceName, committed: &Committed) -> Result<String, String> {
    let number = format!("{name}@{}", committed.sequence);
    let (state, found) = (snapshots::state(committed.state), committed.problems.len() as u64);
    let found = count(found, "problem", "problems");
    match committed.state {
        State::Good => Ok(format!("what it held is kept as {number} ({state}, {found})")),
        // It may be what made somebody restore: the guard finds it empty, younger or foreign.
        State::Quarantined => Ok(format!(
            "what it held is kept as {number} ({state}, {found}): take it by this number, it is never the newest"
        )),
        State::Incomplete => Err(format!(
            "not all that it holds could be kept before it is overwritten: {number} is {state}, with {found}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Problem;
    use crate::id::Sequence;
    use crate::repo::Catalogue;

    #[test]
    fn what_is_kept_in_part_is_not_kept() {
        let kept = |state, problems: usize| {
            let problem = Problem { path: Vec::new(), text: "no".into() };
            let (sequence, problems) = (Sequence(7), vec![problem; problems]);
            kept(
                &"before-shop".parse().unwrap(),
                &Committed { sequence, state, catalogue: Catalogue::default(), problems, packs: 0 },
            )
        };
        assert!(kept(State::Good, 0).unwrap().contains("before-shop@7 (good, 0 problems)"));
        assert!(
            kept(State::Quarantined, 1)
                .unwrap()
                .contains("before-shop@7 (quarantined, 1 problem): take it by this number")
        );
        assert!(kept(State::Incomplete, 2).unwrap_err().contains("before-shop@7 is incomplete, with 2 problems"));
    }
}
