//! Carries a resolved plan out: every step as soon as those that it follows have ended, each on a thread of its own.
//!
//! [`Hands`] do one step; what is here decides when, writes the journal, and knows nothing of what steps do. A process may
//! be killed at any moment: whoever begins again with the journal's history ends in the same state.

use super::document::OnFailure;
use super::journal::{Event, History, Journal, JournalError, Outcome, Record, State, Verdict};
use super::resolve::{Task, follows};
use crossbeam_channel::{Receiver, Sender, bounded};
use jiff::Timestamp;
use serde_json::Value;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Steps at a time.
const AT_ONCE: usize = 8;
/// Between two attempts; doubled from one to the next.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(100);
/// The journal is written to at least so often, so that others see that somebody is at it.
const BEAT: Duration = Duration::from_secs(30);
/// Somebody is waited for no longer who gives a plan up: nothing is written to the journal meanwhile.
const ANSWER: Duration = Duration::from_secs(90);
/// Whoever wrote nothing for so long is taken to be dead: four beats, of which a slow bucket may swallow two.
pub const LEASE: Duration = Duration::from_mins(2);

/// One attempt at one step.
pub struct Attempt<'a> {
    pub task: &'a Task,
    pub index: usize,
    /// The fence that an `unfence` opens.
    pub fence: Option<&'a Task>,
    /// What an earlier attempt noted; of an `unfence`, what its fence did.
    pub noted: Option<Value>,
    /// What the fences noted that are closed until this step has ended.
    pub closed: Vec<Value>,
    /// The step is given up then.
    pub deadline: Instant,
    messages: Sender<Message>,
}

impl Attempt<'_> {
    /// Writes down what must be known to do this step again or undo it. Only then it may be done.
    ///
    /// # Errors
    /// The journal could not be written; the step must not be done.
    pub fn note(&mut self, note: Value) -> Result<(), Failure> {
        let (answer, written) = bounded(1);
        let message = Message::Note { task: self.index, note: note.clone(), answer };
        self.messages.send(message).map_err(|_| Failure::Interrupted)?;
        match written.recv() {
            Ok(true) => {
                self.noted = Some(note);
                Ok(())
            }
            _ => Err(Failure::Interrupted),
        }
    }
}

/// Why a step did not do what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Perhaps it does the next time.
    Failed(String),
    /// It would not the next time either.
    Refused(String),
    /// Somebody asked for the end.
    Interrupted,
}

impl Failure {
    fn text(&self) -> &str {
        match self {
            Self::Failed(text) | Self::Refused(text) => text,
            Self::Interrupted => "interrupted",
        }
    }
}

/// Does steps. All calls block.
pub trait Hands: Sync {
    /// Done twice, it ends in the same state as done once.
    fn perform(&self, attempt: &mut Attempt<'_>) -> Result<Outcome, Failure>;

    /// Opens a fence, given what it noted, for whoever gives the plan up.
    fn open(&self, fence: &Task, note: &Value, deadline: Instant) -> Result<Vec<String>, Failure>;

    /// Removes what a step that did not reach its end left in its target, for whoever gives the plan up. Says what it did.
    fn abandon(&self, index: usize, task: &Task) -> Result<Vec<String>, Failure>;

    /// Whether somebody says that it may stay, since it could not be removed.
    fn may_stay(&self, task: &Task, why: &str, deadline: Instant) -> Result<(), Failure>;

    fn clock(&self) -> Timestamp;

    /// Somebody asked for the end.
    fn interrupted(&self) -> bool;

    /// Somebody else carries the plan out: ends what is at work.
    fn stop(&self);

    /// Told of everything that happens.
    fn watch(&self, history: &History, record: &Record);
}

/// How an execution ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Ended(Verdict),
    /// A step failed that the others need: the index of each.
    Stopped(Vec<usize>),
    Interrupted,
}

enum Message {
    Note { task: usize, note: Value, answer: Sender<bool> },
    Retry { task: usize, attempt: u32 },
    Ended { task: usize, result: Result<Outcome, Failure> },
}

/// An execution under way.
pub struct Execution<'a> {
    pub history: History,
    journal: &'a mut dyn Journal,
    hands: &'a dyn Hands,
    beat: Instant,
}

impl<'a> Execution<'a> {
    /// From where `history` ends; its records are in the journal already.
    pub fn new(history: History, journal: &'a mut dyn Journal, hands: &'a dyn Hands) -> Self {
        Self { history, journal, hands, beat: Instant::now() }
    }

    /// # Errors
    /// The journal could not be written: nothing further was begun.
    pub fn record(&mut self, event: Event) -> Result<(), JournalError> {
        let record = Record { number: self.history.next, at: self.hands.clock(), event };
        self.journal.write(&record)?;
        self.beat = Instant::now();
        self.history.take(&record);
        self.hands.watch(&self.history, &record);
        Ok(())
    }

    /// Carries out what is left.
    ///
    /// # Errors
    /// The journal could not be written.
    pub fn run(&mut self) -> Result<End, JournalError> {
        let tasks = self.history.resolved.tasks.clone();
        let (messages, inbox) = bounded(AT_ONCE * 2);
        // A step that failed before is tried again.
        let again = |state: &State| !matches!(state, State::Done);
        let mut left: Vec<usize> = (0..tasks.len()).filter(|at| again(&self.history.tasks[*at].state)).collect();
        let mut ended: Vec<bool> = self.history.tasks.iter().map(|task| !again(&task.state)).collect();
        std::thread::scope(|scope| {
            let (mut running, mut stopped, mut trouble) = (0, Vec::new(), None);
            loop {
                let go_on = stopped.is_empty() && trouble.is_none() && !self.hands.interrupted();
                while go_on && running < AT_ONCE {
                    let ready = |at: &usize| is_ready(&tasks, *at, &ended);
                    let Some(position) = left.iter().position(ready) else { break };
                    let index = left.remove(position);
                    let number = self.history.tasks[index].attempts + 1;
                    if let Err(error) = self.record(Event::Began { task: index, attempt: number }) {
                        trouble = Some(self.troubled(error));
                        break;
                    }
                    let (noted, closed) = (self.noted(&tasks[index], index), self.closed(index));
                    let (hands, tasks, messages) = (self.hands, tasks.as_slice(), messages.clone());
                    scope.spawn(move || work(hands, tasks, index, number, (noted, closed), &messages));
                    running += 1;
                }
                if running == 0 {
                    break;
                }
                let heard = match receive(&inbox) {
                    Some(message) => self.hear(message, &tasks, &mut running, &mut ended, &mut stopped),
                    None if trouble.is_none() && self.beat.elapsed() >= BEAT => self.record(Event::Alive),
                    None => Ok(()),
                };
                if let Err(error) = heard {
                    let error = self.troubled(error);
                    trouble.get_or_insert(error);
                }
            }
            if let Some(error) = trouble {
                return Err(error);
            }
            if !stopped.is_empty() {
                self.leave();
                return Ok(End::Stopped(stopped));
            }
            if !left.is_empty() || ended.contains(&false) {
                self.leave();
                return Ok(End::Interrupted);
            }
            let whole = |task: &super::journal::Progress| task.state == State::Done && task.outcome.problems.is_empty();
            let verdict = if self.history.tasks.iter().all(whole) { Verdict::Complete } else { Verdict::Incomplete };
            if self.history.verdict != Some(verdict) {
                self.record(Event::Ended(verdict))?;
            }
            Ok(End::Ended(verdict))
        })
    }

    /// Says that nobody is at it any more. Without that, others wait for the lease to end.
    pub fn leave(&mut self) {
        let _ = self.record(Event::Left);
    }

    fn troubled(&self, error: JournalError) -> JournalError {
        if matches!(error, JournalError::Elsewhere { .. }) {
            self.hands.stop();
        }
        error
    }

    /// Takes what a step says.
    fn hear(
        &mut self,
        message: Message,
        tasks: &[Task],
        running: &mut usize,
        ended: &mut [bool],
        stopped: &mut Vec<usize>,
    ) -> Result<(), JournalError> {
        match message {
            Message::Note { task, note, answer } => {
                let written = self.record(Event::Noted { task, note });
                let _ = answer.send(written.is_ok()); // the step may have been given up
                written
            }
            Message::Retry { task, attempt } => self.record(Event::Began { task, attempt }),
            Message::Ended { task, result } => {
                *running -= 1;
                match result {
                    Ok(outcome) => {
                        ended[task] = true;
                        self.record(Event::Done { task, outcome })
                    }
                    Err(Failure::Interrupted) => Ok(()),
                    Err(Failure::Failed(text) | Failure::Refused(text)) => {
                        match tasks[task].on_failure {
                            OnFailure::Stop => stopped.push(task),
                            OnFailure::Continue => ended[task] = true,
                        }
                        self.record(Event::Failed { task, text })
                    }
                }
            }
        }
    }

    fn noted(&self, task: &Task, index: usize) -> Option<Value> {
        self.history.tasks[task.fence.unwrap_or(index)].note.clone()
    }

    /// Of a fence that is opened while the step is at work, nothing may be made held: nobody would let it go.
    fn closed(&self, index: usize) -> Vec<Value> {
        let tasks = &self.history.resolved.tasks;
        let opens_later =
            |fence: usize| (0..tasks.len()).any(|at| tasks[at].fence == Some(fence) && follows(tasks, at, index));
        let closed = self.history.closed.iter().filter(|fence| follows(tasks, index, **fence) && opens_later(**fence));
        closed.filter_map(|fence| self.history.tasks[*fence].note.clone()).collect()
    }

    /// Gives the plan up: clears away what is half restored, then opens the fences that it closed, the last one first.
    /// Returns what could not be done; the fences before a target that could not be cleared stay closed.
    ///
    /// # Errors
    /// The journal could not be written.
    pub fn abort(&mut self) -> Result<Vec<String>, JournalError> {
        let (tasks, mut uncleared) = (self.history.resolved.tasks.clone(), Vec::new());
        for (index, task) in tasks.iter().enumerate() {
            if matches!(self.history.tasks[index].state, State::Done | State::Waiting) {
                continue;
            }
            match self.hands.abandon(index, task) {
                Ok(lines) if lines.is_empty() => {}
                Ok(lines) => self.record(Event::Cleared { task: index, lines })?,
                Err(why) => uncleared.push((index, why)),
            }
        }
        // Nobody who is asked keeps back what is not in question.
        let (mut failures, mut left) = (Vec::new(), Vec::new());
        let mut closed = self.open_before(&tasks, &uncleared.iter().map(|(index, _)| *index).collect::<Vec<_>>())?;
        let some = !uncleared.is_empty();
        for (index, why) in uncleared {
            let (task, text) = (&tasks[index], why.text());
            let asked = match why {
                Failure::Interrupted => Err(Failure::Interrupted),
                _ => self.hands.may_stay(task, text, Instant::now() + ANSWER),
            };
            match asked {
                Ok(()) => {
                    let lines = vec![format!("it stays as it is: {text}")];
                    self.record(Event::Cleared { task: index, lines })?;
                }
                Err(said) => {
                    let why = if said.text().contains(text) { String::new() } else { format!("{text}: ") };
                    failures.push(format!("{}: {why}{}", task.name, said.text()));
                    left.push(index);
                }
            }
        }
        if some {
            closed = self.open_before(&tasks, &left)?;
        }
        failures.extend(closed);
        if failures.is_empty() && self.history.closed.is_empty() {
            self.record(Event::Ended(Verdict::Aborted))?;
            return Ok(failures);
        }
        if failures.is_empty() {
            failures.push(Failure::Interrupted.text().to_owned());
        }
        self.leave();
        Ok(failures)
    }

    /// Opens the fences that none of `steps` follows, the last one first. Returns what could not be opened.
    fn open_before(&mut self, tasks: &[Task], steps: &[usize]) -> Result<Vec<String>, JournalError> {
        let mut failures = Vec::new();
        for fence in self.history.closed.clone().into_iter().rev() {
            if self.hands.interrupted() || steps.iter().any(|step| follows(tasks, *step, fence)) {
                continue;
            }
            let task = &tasks[fence];
            let note = self.history.tasks[fence].note.clone().unwrap_or_default();
            // Written first: whoever carries the plan out elsewhere learns of it before it is opened.
            self.record(Event::Opening { task: fence })?;
            match self.hands.open(task, &note, Instant::now() + task.timeout) {
                Ok(lines) => self.record(Event::Opened { task: fence, lines })?,
                Err(why) => failures.push(format!("{}: {}", task.name, why.text())),
            }
        }
        Ok(failures)
    }
}

/// Whether all that a step follows has ended, and what that follows: of steps that were done, some are done again.
fn is_ready(tasks: &[Task], at: usize, ended: &[bool]) -> bool {
    (0..tasks.len()).all(|one| ended[one] || !follows(tasks, at, one))
}

fn receive(inbox: &Receiver<Message>) -> Option<Message> {
    inbox.recv_timeout(TICK).ok()
}

/// One step with all its attempts.
fn work(
    hands: &dyn Hands,
    tasks: &[Task],
    index: usize,
    first: u32,
    (noted, closed): (Option<Value>, Vec<Value>),
    messages: &Sender<Message>,
) {
    let task = &tasks[index];
    let fence = task.fence.map(|at| &tasks[at]);
    let (mut number, mut pause, mut noted) = (first, FIRST_PAUSE, noted);
    let result = loop {
        let deadline = Instant::now() + task.timeout;
        let mut attempt = Attempt {
            task,
            index,
            fence,
            noted: noted.take(),
            closed: closed.clone(),
            deadline,
            messages: messages.clone(),
        };
        // A step that never said that it ended would be waited for without end.
        let result = catch_unwind(AssertUnwindSafe(|| hands.perform(&mut attempt))).unwrap_or_else(|_| {
            Err(Failure::Refused("it broke off: a defect of Lifeboat, told on standard error".into()))
        });
        let again = matches!(result, Err(Failure::Failed(_))) && number - first < task.retries;
        if !again || hands.interrupted() {
            break result;
        }
        let end = Instant::now() + pause;
        while Instant::now() < end && !hands.interrupted() {
            std::thread::sleep(TICK);
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
        number += 1;
        noted = attempt.noted;
        // Whoever listened has ended: so does this.
        if messages.send(Message::Retry { task: index, attempt: number }).is_err() {
            return;
        }
    };
    let _ = messages.send(Message::Ended { task: index, result });
}
