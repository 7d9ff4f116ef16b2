//! What has happened in an execution of a plan, record by record; from its records alone an execution goes on.
//!
//! Invariants: a record is durable before what follows from it is begun; the first holds the resolved plan. Pure, but for
//! [`Journal`], which is the plug point for where records are kept.

use super::between;
use super::document::{Doing, Fence, overlap};
use super::resolve::{Resolved, Took};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What a clock is corrected by without its being set.
const SLEWED: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Counted from 1.
    pub number: u32,
    pub at: Timestamp,
    pub event: Event,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Event {
    /// The first record.
    Resolved(Box<Resolved>),
    /// A person, or the command line, named these targets: what is there may be overwritten. Of paths, on this machine.
    ConfirmedOn {
        machine: Option<String>,
        targets: BTreeSet<String>,
    },
    /// The same, in journals that do not say where.
    Confirmed(BTreeSet<String>),
    Began {
        task: usize,
        attempt: u32,
    },
    /// What a task needs to be done again or undone.
    Noted {
        task: usize,
        note: Value,
    },
    Done {
        task: usize,
        outcome: Outcome,
    },
    Failed {
        task: usize,
        text: String,
    },
    /// A fence is about to be opened without its `unfence` step: whoever goes on in spite of that closes it again.
    Opening {
        task: usize,
    },
    /// What a step that is given up had left in its target was cleared away.
    Cleared {
        task: usize,
        lines: Vec<String>,
    },
    /// It was opened.
    Opened {
        task: usize,
        lines: Vec<String>,
    },
    Ended(Verdict),
    /// Whoever carries it out lives, though nothing else happened.
    Alive,
    /// Somebody goes on with it.
    Resumed,
    /// It ended before its end, in order: nobody is at it.
    Left,
    /// The restore `by` took whoever was at this one to be dead: the next record of theirs finds its number taken.
    Displaced {
        by: String,
    },
}

/// What a step did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Outcome {
    /// What was done and seen, a line each.
    pub lines: Vec<String>,
    /// What could not be brought back.
    pub problems: Vec<String>,
    /// What a person still has to do.
    pub to_do: Vec<String>,
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// All steps were done, without problems.
    Complete,
    /// All that stop a plan were done; some part is missing.
    Incomplete,
    /// Somebody gave it up; fences are open.
    Aborted,
}

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("write the journal {place}")]
    Write { place: String, source: std::io::Error },
    #[error("restore {id} is being carried out elsewhere: its journal has a record {number} of somebody else's")]
    Elsewhere { id: String, number: u32 },
    #[error("the journal of restore {id} cannot be read: {why}")]
    Unreadable { id: String, why: String },
}

/// Where records are kept. A record is durable when the call returns.
pub trait Journal: Send {
    fn write(&mut self, record: &Record) -> Result<(), JournalError>;
}

/// Whether a target is another one on every machine: a path, a loopback address. Rather too often than not.
#[must_use]
pub fn is_local(target: &str) -> bool {
    target.starts_with('/') || ["localhost", "127.", "::1"].iter().any(|name| target.contains(name))
}

/// How far a task is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub began: Option<Timestamp>,
    pub ended: Option<Timestamp>,
    pub attempts: u32,
    pub note: Option<Value>,
    pub state: State,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    #[default]
    Waiting,
    /// Also: it was, when the process ended.
    Running,
    Done,
    Failed(String),
}

/// All that is known of an execution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    pub resolved: Resolved,
    pub began: Timestamp,
    /// The newest record's.
    pub last: Timestamp,
    /// Targets that may be overwritten, and on which machine that was said last.
    pub confirmed: BTreeMap<String, Option<String>>,
    pub tasks: Vec<Progress>,
    /// Fences that are closed, or might be.
    pub closed: Vec<usize>,
    pub verdict: Option<Verdict>,
    /// A record is older than the one before: a clock was set back, or two machines' differ. How long it took is not known.
    pub set_back: bool,
    /// Whoever wrote the newest record meant to go on.
    pub at_work: bool,
    /// Of the next record.
    pub next: u32,
}

impl History {
    #[must_use]
    pub fn new(resolved: Resolved, at: Timestamp) -> Self {
        let tasks = vec![Progress::default(); resolved.tasks.len()];
        let (confirmed, closed) = (BTreeMap::new(), Vec::new());
        let (verdict, set_back) = (None, false);
        Self { resolved, began: at, last: at, confirmed, tasks, closed, verdict, set_back, at_work: true, next: 2 }
    }

    /// # Errors
    /// `Unreadable`: these are not the records of one execution.
    pub fn of(id: &str, records: Vec<Record>) -> Result<Self, JournalError> {
        let unreadable = |why: String| JournalError::Unreadable { id: id.into(), why };
        let mut records = records.into_iter();
        let (at, resolved) = match records.next() {
            Some(Record { number: 1, at, event: Event::Resolved(resolved) }) => (at, *resolved),
            _ => return Err(unreadable("it does not begin with a resolved plan".into())),
        };
        let mut history = Self::new(resolved, at);
        for record in records {
            if record.number != history.next || !history.fits(&record.event) {
                return Err(unreadable(format!("record {} does not follow the one before", record.number)));
            }
            history.take(&record);
        }
        Ok(history)
    }

    fn fits(&self, event: &Event) -> bool {
        match event {
            Event::Resolved(_) => false,
            Event::ConfirmedOn { .. }
            | Event::Confirmed(_)
            | Event::Ended(_)
            | Event::Alive
            | Event::Resumed
            | Event::Left
            | Event::Displaced { .. } => true,
            Event::Began { task, .. }
            | Event::Noted { task, .. }
            | Event::Done { task, .. }
            | Event::Failed { task, .. }
            | Event::Opening { task }
            | Event::Cleared { task, .. }
            | Event::Opened { task, .. } => *task < self.tasks.len(),
        }
    }

    /// Takes a record that follows.
    pub fn take(&mut self, record: &Record) {
        // Another machine's clock is none of this one's.
        if !matches!(record.event, Event::Displaced { .. }) {
            self.set_back |= record.at + SLEWED < self.last;
        }
        (self.next, self.last) = (record.number + 1, record.at);
        self.at_work = !matches!(record.event, Event::Ended(_) | Event::Left | Event::Displaced { .. });
        match &record.event {
            Event::Resolved(_) | Event::Alive | Event::Left | Event::Displaced { .. } => {}
            Event::Resumed => self.verdict = None,
            Event::ConfirmedOn { targets, machine } => {
                self.confirmed.extend(targets.iter().map(|target| (target.clone(), machine.clone())));
            }
            Event::Confirmed(targets) => {
                self.confirmed.extend(targets.iter().map(|target| (target.clone(), None)));
            }
            Event::Began { task, attempt } => {
                let progress = &mut self.tasks[*task];
                (progress.state, progress.attempts) = (State::Running, *attempt);
                progress.began.get_or_insert(record.at);
                self.verdict = None;
            }
            Event::Noted { task, note } => {
                self.tasks[*task].note = Some(note.clone());
                if self.resolved.fences().any(|fence| fence == *task) && !self.closed.contains(task) {
                    self.closed.push(*task);
                }
            }
            Event::Done { task, outcome } => {
                let progress = &mut self.tasks[*task];
                (progress.state, progress.ended, progress.outcome) = (State::Done, Some(record.at), outcome.clone());
                let opened = self.resolved.tasks[*task].fence;
                self.closed.retain(|fence| Some(*fence) != opened);
            }
            Event::Failed { task, text } => {
                let progress = &mut self.tasks[*task];
                (progress.state, progress.ended) = (State::Failed(text.clone()), Some(record.at));
            }
            Event::Opening { task } => self.redo(*task),
            Event::Cleared { task, .. } => {
                self.redo(*task);
                self.tasks[*task].note = None;
            }
            Event::Opened { task, .. } => {
                self.closed.retain(|fence| fence != task);
                self.tasks[*task].note = None;
            }
            Event::Ended(verdict) => {
                self.verdict = Some(*verdict);
                if *verdict == Verdict::Incomplete {
                    self.forget_consent();
                }
            }
        }
    }

    /// What this restore and another would both change.
    #[must_use]
    pub fn in_common(&self, other: &Self) -> Option<String> {
        if self.resolved.plan == other.resolved.plan {
            return Some(format!("the plan {}", self.resolved.plan));
        }
        let theirs = other.targets();
        self.targets().into_iter().find(|target| theirs.iter().any(|its| overlap(target, its)))
    }

    /// Targets that may be overwritten from this machine: a path, or a loopback address, is another place on every other.
    #[must_use]
    pub fn consent(&self, machine: Option<&str>) -> BTreeSet<String> {
        let here = |(target, said): &(&String, &Option<String>)| {
            !is_local(target) || said.is_some() && said.as_deref() == machine
        };
        self.confirmed.iter().filter(here).map(|(target, _)| target.clone()).collect()
    }

    fn targets(&self) -> BTreeSet<String> {
        let places = self.resolved.tasks.iter().filter_map(|task| match &task.doing {
            Doing::Restore(restore) => Some(restore.place()),
            Doing::Fence(Fence { cluster: Some(cluster), .. }) => Some(format!("the system {cluster}")),
            _ => None,
        });
        places.chain(self.confirmed.keys().cloned()).collect()
    }

    /// What was done is to be done again.
    pub fn redo(&mut self, task: usize) {
        self.tasks[task].state = State::Waiting;
    }

    /// What was done elsewhere is to be done here, where nobody said that what is at the step's path may be overwritten.
    pub fn redo_here(&mut self, task: usize) {
        self.redo(task);
        self.tasks[task].note = None;
        if let Doing::Restore(restore) = &self.resolved.tasks[task].doing
            && let Some(path) = restore.path()
        {
            self.confirmed.remove(&path.display().to_string());
        }
    }

    /// It was done, and not all of it came back.
    #[must_use]
    pub fn is_lacking(&self, task: usize) -> bool {
        let (task, progress) = (&self.resolved.tasks[task], &self.tasks[task]);
        let problems = !progress.outcome.problems.is_empty();
        matches!(task.doing, Doing::Restore(_)) && progress.state == State::Done && problems
    }

    /// The fences are open and systems at work: whoever tries again what failed overwrites what is there now.
    fn forget_consent(&mut self) {
        self.confirmed.clear();
        for (task, progress) in self.resolved.tasks.iter().zip(&mut self.tasks) {
            let Doing::Restore(restore) = &task.doing else { continue };
            let forgotten = match progress.state {
                // Done again, it is done from its beginning.
                State::Done => restore.path().is_some() && !progress.outcome.problems.is_empty(),
                _ => restore.path().is_none(),
            };
            if forgotten {
                progress.note = None;
            }
        }
    }

    /// How long each step that was done took, for later predictions.
    #[must_use]
    pub fn took(&self) -> BTreeMap<(String, String), Took> {
        let mut all = BTreeMap::new();
        for (task, progress) in self.resolved.tasks.iter().zip(&self.tasks) {
            // A step that needed several attempts, or a night's sleep between two, says nothing of the next time.
            if let (State::Done, 1, Some(began), Some(ended)) =
                (&progress.state, progress.attempts, progress.began, progress.ended)
            {
                let time = between(began, ended);
                let bytes = task.choice.as_ref().map_or(0, |choice| choice.bytes);
                all.insert((self.resolved.plan.clone(), task.name.clone()), Took { time, bytes });
            }
        }
        all
    }

    /// How it stands, in a word.
    #[must_use]
    pub fn standing(&self) -> &'static str {
        match self.verdict {
            Some(Verdict::Complete) => "complete",
            Some(Verdict::Incomplete) => "incomplete",
            Some(Verdict::Aborted) => "given up",
            None => "not finished",
        }
    }
}
