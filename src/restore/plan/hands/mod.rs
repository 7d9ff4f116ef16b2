//! Does the steps of a plan: on repositories, systems, directories and programs.

mod restoring;

use super::document::{Doing, Fence, Run};
use super::execute::{Attempt, Failure, Hands};
use super::journal::{History, Outcome, Record};
use super::resolve::{Resolved, Task};
use crate::entry::Problem;
use crate::exec;
use crate::id::SourceName;
use crate::repo::{Access, RepoError, Repository};
use crate::restore::RestoreError;
use crate::secret;
use crate::source::kubernetes::fence::{self, Held};
use crate::source::kubernetes::{self, job};
use crate::source::probe::Probe;
use crate::source::target::Change;
use crate::source::{Cancel, Context, SourceError, Spec};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::error::Error;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// Between two looks of a probe.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Problems of one step that are kept by name.
const PROBLEMS: usize = 100;
/// Lines of a program's output that are kept.
const LINES: usize = 20;

/// What only the edge can do.
pub trait Outside: Sync {
    /// Asks a person, and waits. `on`: how somebody goes on who was not there.
    fn ask(&self, task: &str, text: &str, on: &str, deadline: Instant) -> Result<(), Failure>;

    /// Whether what is about to be overwritten is kept.
    fn keeps(&self) -> bool;

    /// Captures a system that is about to be overwritten; says as what.
    fn keep(&self, system: &SourceName, deadline: Instant) -> Result<String, Failure>;

    fn clock(&self) -> Timestamp;

    fn watch(&self, history: &History, record: &Record);
}

/// The repository, the systems' documents, and the rest of what steps need.
pub struct Worker<'a> {
    /// Names the execution.
    pub id: String,
    /// `None`: fences can be opened and steps given up, nothing can be restored.
    pub contents: Option<(Repository, Access)>,
    pub documents: BTreeMap<SourceName, Spec>,
    /// Targets that may be overwritten or held back, as [`Facts::target`] tells them.
    pub confirmed: BTreeSet<String>,
    /// Tells this machine from others that went on with the execution before.
    pub machine: Option<String>,
    /// For restoring into directories.
    pub threads: usize,
    pub runtime: Handle,
    pub cancel: Cancel,
    pub outside: &'a dyn Outside,
}

/// What is there where a step will restore to.
#[derive(Clone, Debug)]
pub struct Facts {
    pub task: usize,
    /// The system's name in the documents, or the path.
    pub place: String,
    /// Tells it from every other, if it could be reached.
    pub target: Option<String>,
    /// What is there, or why that is not known, a line each.
    pub about: Vec<String>,
    pub changes: Vec<Change>,
    pub overwrites: bool,
    /// The step would not be done.
    pub refused: Option<String>,
}

/// What a fence in a cluster notes.
#[derive(Debug, Serialize, Deserialize)]
struct Closed {
    cluster: String,
    held: Held,
}

impl Hands for Worker<'_> {
    fn perform(&self, attempt: &mut Attempt<'_>) -> Result<Outcome, Failure> {
        let task = attempt.task;
        let context = self.context(attempt.deadline);
        match &task.doing {
            Doing::Restore(restore) => {
                let choice = task.choice.as_ref().ok_or_else(|| refused("no recovery point was chosen for it"))?;
                match (&restore.to, &restore.export) {
                    (Some(to), _) => self.to_directory(attempt, restore, choice, to),
                    (_, Some(file)) => self.to_file(attempt, restore, choice, file),
                    (None, None) => self.to_system(attempt, restore, choice),
                }
            }
            Doing::Probe(probe) => self.probe(&context, probe),
            Doing::Fence(fence) => self.close(attempt, &context, fence),
            Doing::Unfence(_) => {
                let note = attempt.noted.as_ref().ok_or_else(|| refused("its fence was never closed"))?;
                let fence = attempt.fence.ok_or_else(|| refused("it has no fence"))?;
                self.open(fence, note, attempt.deadline).map(lines)
            }
            Doing::Run(run) => Ok(lines(self.run(&context, run)?)),
            Doing::Job(its) => {
                let spec = self.cluster(&its.cluster)?;
                let id = format!("{}-{}", self.id, task.name.replace('/', "-"));
                let said = job::run_job(&context, spec, &its.manifest, &id).map_err(|error| self.failed(&error))?;
                Ok(lines(said.lines().map(str::to_owned).collect()))
            }
            Doing::Ask(text) => {
                self.outside.ask(&task.name, text, "--resume", attempt.deadline)?;
                Ok(lines(vec!["confirmed".into()]))
            }
            Doing::Plan(plan) => Err(refused(&format!("the plan {plan} was not unfolded"))),
        }
    }

    fn open(&self, fence: &Task, note: &Value, deadline: Instant) -> Result<Vec<String>, Failure> {
        let Doing::Fence(doing) = &fence.doing else { return Err(refused("it is no fence")) };
        self.release(doing, note, &self.context(deadline))
    }

    fn abandon(&self, index: usize, task: &Task) -> Result<Vec<String>, Failure> {
        self.clear(index, task)
    }

    fn may_stay(&self, task: &Task, why: &str, deadline: Instant) -> Result<(), Failure> {
        let text = format!("{why}; what it left would stay as it is, and the fences before it be opened");
        self.outside.ask(&task.name, &text, "--abort", deadline)
    }

    fn clock(&self) -> Timestamp {
        self.outside.clock()
    }

    fn interrupted(&self) -> bool {
        self.cancel.is_cancelled()
    }

    fn stop(&self) {
        self.cancel.cancel();
    }

    fn watch(&self, history: &History, record: &Record) {
        self.outside.watch(history, record);
    }
}

impl Facts {
    fn of(task: usize, place: String) -> Self {
        let (about, changes) = (Vec::new(), Vec::new());
        Self { task, place, target: None, about, changes, overwrites: false, refused: None }
    }
}

/// An earlier step may make what is not there yet.
fn unknown(failure: Failure) -> String {
    match failure {
        Failure::Interrupted => "interrupted".into(),
        Failure::Refused(text) | Failure::Failed(text) => format!("not known yet: {text}"),
    }
}

fn read_note<T: serde::de::DeserializeOwned>(note: &Value) -> Result<T, Failure> {
    serde_json::from_value(note.clone()).map_err(|why| refused(&format!("what it noted cannot be read: {why}")))
}

fn refused(text: &str) -> Failure {
    Failure::Refused(text.to_owned())
}

fn lines(lines: Vec<String>) -> Outcome {
    Outcome { lines, ..Outcome::default() }
}

fn told(error: &dyn Error) -> String {
    exec::causes(error.to_string(), error.source())
}

/// Problems as lines; of many, the first and how many more there are.
fn problems(found: Vec<Problem>) -> Vec<String> {
    let more = found.len().saturating_sub(PROBLEMS);
    let line = |problem: Problem| match problem.path.as_slice() {
        [] => problem.text,
        path => format!("{}: {}", String::from_utf8_lossy(path), problem.text),
    };
    let mut lines: Vec<String> = found.into_iter().take(PROBLEMS).map(line).collect();
    if more > 0 {
        lines.push(format!("… and {more} more"));
    }
    lines
}

impl Worker<'_> {
    fn context(&self, deadline: Instant) -> Context {
        Context {
            runtime: self.runtime.clone(),
            cancel: self.cancel.clone(),
            started: self.outside.clock(),
            begun: Instant::now(),
            deadline,
        }
    }

    fn failed(&self, error: &SourceError) -> Failure {
        match error {
            _ if self.cancel.is_cancelled() => Failure::Interrupted,
            SourceError::Cancelled => Failure::Interrupted,
            SourceError::Deadline => Failure::Failed("it did not end within its timeout".into()),
            SourceError::Spec { .. } | SourceError::Secret(_) => Failure::Refused(told(error)),
            other => Failure::Failed(told(other)),
        }
    }

    fn unread(&self, error: &RestoreError) -> Failure {
        match error {
            _ if self.cancel.is_cancelled() => Failure::Interrupted,
            RestoreError::Stopped => Failure::Interrupted,
            RestoreError::Repo(RepoError::WrongKey { .. }) | RestoreError::NotThere(_) => Failure::Refused(told(error)),
            other => Failure::Failed(told(other)),
        }
    }

    fn document(&self, name: &SourceName) -> Result<&Spec, Failure> {
        self.documents.get(name).ok_or_else(|| refused(&format!("there is no Source document named {name}")))
    }

    fn cluster(&self, name: &SourceName) -> Result<&kubernetes::Spec, Failure> {
        match self.document(name)? {
            Spec::Kubernetes(spec) => Ok(spec),
            other => Err(refused(&format!("{name} is of kind {}, and not a cluster", other.field()))),
        }
    }

    fn unconfirmed(&self, system: &str, target: &str, what: &str) -> Failure {
        Failure::Refused(format!(
            "{system} is {target}, and nobody has confirmed that {what}; if that is meant, go on with --resume {} --yes \
             --target-id {target}",
            self.id
        ))
    }

    /// Who a cluster is.
    fn identity(&self, context: &Context, name: &SourceName) -> Result<String, Failure> {
        let found = kubernetes::identity(context, self.cluster(name)?).map_err(|error| self.failed(&error))?;
        found.ok_or_else(|| refused(&format!("{name} does not say which cluster it is")))
    }

    fn probe(&self, context: &Context, probe: &Probe) -> Result<Outcome, Failure> {
        let document = probe.document().map(|name| self.document(name)).transpose()?;
        let mut last = None;
        loop {
            match probe.look(context, document) {
                Ok(seen) => return Ok(lines(vec![seen])),
                Err(SourceError::Cancelled) => return Err(Failure::Interrupted),
                Err(SourceError::Deadline) => {}
                Err(error @ SourceError::Spec { .. }) => return Err(self.failed(&error)),
                Err(error) => last = Some(told(&error)),
            }
            let again = Instant::now() + LOOK_AGAIN;
            while Instant::now() < again {
                match context.go_on() {
                    Ok(()) => std::thread::sleep(Duration::from_millis(50)),
                    Err(SourceError::Cancelled) => return Err(Failure::Interrupted),
                    Err(_) => {
                        let text = last.unwrap_or_else(|| "no answer".into());
                        return Err(Failure::Failed(format!("not within its timeout; at last: {text}")));
                    }
                }
            }
        }
    }

    fn close(&self, attempt: &mut Attempt<'_>, context: &Context, doing: &Fence) -> Result<Outcome, Failure> {
        if let Some(run) = &doing.close {
            if attempt.noted.is_none() {
                attempt.note(Value::Null)?;
            }
            return Ok(lines(self.run(context, run)?));
        }
        let cluster = doing.cluster.as_ref().ok_or_else(|| refused("it names no cluster"))?;
        let spec = self.cluster(cluster)?;
        let held = if let Some(note) = &attempt.noted {
            self.closed_in(context, cluster, note)?
        } else {
            let identity = self.identity(context, cluster)?;
            if !self.confirmed.contains(&identity) {
                return Err(self.unconfirmed(cluster.as_str(), &identity, "it may be held back"));
            }
            let held = fence::look(context, spec, &doing.hold).map_err(|error| self.failed(&error))?;
            let closed = Closed { cluster: identity, held };
            attempt.note(json!(closed))?;
            closed.held
        };
        fence::hold(context, spec, &held).map(lines).map_err(|error| self.failed(&error))
    }

    /// What a fence holds back, if its document still names the cluster that it was closed in.
    fn closed_in(&self, context: &Context, cluster: &SourceName, note: &Value) -> Result<Held, Failure> {
        let closed: Closed = read_note(note)?;
        let identity = self.identity(context, cluster)?;
        if identity == closed.cluster {
            return Ok(closed.held);
        }
        let was = closed.cluster;
        Err(refused(&format!(
            "{cluster} is {identity} now, and the fence was closed in {was}: mend the Source document"
        )))
    }

    fn release(&self, doing: &Fence, note: &Value, context: &Context) -> Result<Vec<String>, Failure> {
        if let Some(run) = &doing.open {
            return self.run(context, run);
        }
        let cluster = doing.cluster.as_ref().ok_or_else(|| refused("it names no cluster"))?;
        let held = self.closed_in(context, cluster, note)?;
        fence::release(context, self.cluster(cluster)?, &held).map_err(|error| self.failed(&error))
    }

    /// The last lines that a program printed. What it was given in secret is not repeated.
    fn run(&self, context: &Context, run: &Run) -> Result<Vec<String>, Failure> {
        let Some((program, arguments)) = run.command.split_first() else { return Err(refused("it names no program")) };
        let secrets = run.env.iter().map(|(name, secret)| Ok((name.clone(), secret.read()?)));
        let env = secrets.collect::<Result<Vec<_>, SourceError>>().map_err(|error| self.failed(&error))?;
        let secrets = env.clone();
        let hide = |text: String| exec::hide(&text, &secrets);
        let cancel = self.cancel.clone();
        let command = exec::Command {
            program: program.clone(),
            inherits: exec::Inherits::AllBut(secret::named()),
            arguments: arguments.to_vec(),
            env,
            deadline: context.deadline,
            stop: Box::new(move || cancel.is_cancelled()),
        };
        let failed = |error: exec::ExecError| {
            if self.cancel.is_cancelled() { Failure::Interrupted } else { Failure::Failed(hide(told(&error))) }
        };
        // Whoever goes on with the restore must not meet what a killed process had begun.
        let mut running = command.start_bound().map_err(failed)?;
        let (mut tail, mut buffer) = (VecDeque::new(), vec![0; 16 << 10]);
        loop {
            let length = running.read(&mut buffer).map_err(failed)?;
            if length == 0 {
                break;
            }
            tail.extend(&buffer[..length]);
            let excess = tail.len().saturating_sub(buffer.len());
            tail.drain(..excess);
        }
        running.wait().map_err(failed)?;
        let tail = exec::whole_lines(tail.into(), buffer.len());
        let text = hide(String::from_utf8_lossy(&tail).into_owned());
        let all: Vec<_> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).map(str::to_owned).collect();
        Ok(all[all.len().saturating_sub(LINES)..].to_vec())
    }

    /// Looks at the places that the plan restores to. Changes nothing.
    #[must_use]
    pub fn survey(&self, resolved: &Resolved, limit: Duration) -> Vec<Facts> {
        let tasks = resolved.tasks.iter().enumerate();
        tasks
            .filter_map(|(at, task)| match (&task.doing, &task.choice) {
                (Doing::Restore(restore), Some(choice)) => Some(self.look(at, restore, choice, limit)),
                (Doing::Fence(Fence { cluster: Some(cluster), .. }), _) => Some(self.look_at_fence(at, cluster, limit)),
                _ => None,
            })
            .collect()
    }

    fn look_at_fence(&self, task: usize, cluster: &SourceName, limit: Duration) -> Facts {
        let mut facts = Facts::of(task, cluster.to_string());
        match self.identity(&self.context(Instant::now() + limit), cluster) {
            Ok(identity) => {
                facts.about.push("parts of it will be held back".into());
                (facts.target, facts.overwrites) = (Some(identity), true);
            }
            Err(failure) => facts.about.push(unknown(failure)),
        }
        facts
    }
}
