//! Bringing one source back: into a directory, a file, a running system.

use super::{Closed, Facts, Worker, problems, read_note, refused, told, unknown};
use crate::entry::{Problem, Supply as _};
use crate::id::SourceName;
use crate::repo::{Reader, RepoError, Selector};
use crate::restore::export::{Flowing, format, write};
use crate::restore::plan::document::{Doing, Restore};
use crate::restore::plan::execute::{Attempt, Failure};
use crate::restore::plan::journal::{Outcome, is_local};
use crate::restore::plan::place::{Look, Mark, Place, Product};
use crate::restore::plan::resolve::{Choice, Task};
use crate::restore::snapshot::{Progress, restore};
use crate::restore::supply::Supplied;
use crate::restore::tree::{self, Tree};
use crate::restore::{RestoreError, Selection};
use crate::source::kubernetes::fence::Held;
use crate::source::target::{Action, Applied, Change, Existing, Options, Plan, Target, summary};
use crate::source::volume;
use crate::source::{Context, Spec, preparation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// That are shown of a plan.
const CONFLICTS: usize = 5;

/// What a step notes that restores files.
#[derive(Debug, Serialize, Deserialize)]
struct Staged {
    outcome: Outcome,
    /// A directory's content is in its place.
    placed: bool,
    /// The directory itself, once it is.
    look: Option<Look>,
    /// Of a file.
    mark: Option<Mark>,
    /// On which this was. Journals of before do not say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    machine: Option<String>,
}

/// What a step notes that restores into a system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Begun {
    /// In which target, seen from which machine: an address may lead elsewhere from another.
    target: String,
    machine: Option<String>,
    /// What became of what was there, before the first attempt that overwrites.
    kept: Option<String>,
    /// What was made where nothing was ([`Target::unmarked`]).
    made: BTreeSet<String>,
}

/// Ends when the step must.
struct Timed {
    out: Flowing,
    context: Context,
}

impl io::Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.context.go_on().map_err(io::Error::other)?;
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Worker<'_> {
    fn reader(&self, choice: &Choice, deadline: Instant) -> Result<Arc<Reader>, Failure> {
        let (repository, access) = self.contents.as_ref().ok_or_else(|| refused("the repository cannot be reached"))?;
        let lineage = Arc::new(repository.lineage(&choice.source, access.clone()));
        let opened = self.context(deadline).wait(async {
            let (snapshot, _) = lineage.find(&Selector::Number(choice.sequence)).await?;
            Reader::open(lineage.clone(), snapshot).await
        });
        let opened = opened.map_err(|error| self.failed(&error))?.map_err(|error| match error {
            RepoError::NoSnapshot { .. } => refused(&format!(
                "{}@{}, which the plan chose, is not in the repository any more: begin a new restore, after --abort {} if \
                 fences are closed",
                choice.source, choice.sequence, self.id
            )),
            other => self.unread(&other.into()),
        })?;
        // A journal may be gone on with in another repository: a replica's snapshots are the same, others' are not.
        if (opened.snapshot().recovery_point(), &opened.catalogue().run) != (choice.moment, &choice.run) {
            let text = format!("{}@{} is another snapshot than the plan chose", choice.source, choice.sequence);
            return Err(refused(&format!("{text}: is this another repository (-r)?")));
        }
        Ok(Arc::new(opened))
    }

    fn step_id(&self, index: usize) -> String {
        format!("{}-{index}", self.id)
    }

    pub(super) fn to_directory(
        &self,
        attempt: &mut Attempt<'_>,
        wanted: &Restore,
        choice: &Choice,
        to: &Path,
    ) -> Result<Outcome, Failure> {
        let place = Place::new(to, &self.step_id(attempt.index));
        let failed =
            |what: &str, error: &io::Error| Failure::Failed(format!("{what} {}: {}", to.display(), told(error)));
        let unhindered = || {
            let mounted = place.mounted().map_err(|error| failed("look what is mounted in", &error))?;
            hindered(&mounted).map_or(Ok(()), |why| Err(Failure::Refused(why)))
        };
        let occupied = place.is_occupied().map_err(|error| failed("look into", &error))?;
        // What was staged on another machine is not here: it is restored anew.
        let is_placed = |noted: &Staged| occupied && (place.has_traces() || !self.is_of_another(noted));
        let noted = noted(attempt)?.filter(|noted| if noted.placed { is_placed(noted) } else { place.is_staged() });
        if occupied && noted.as_ref().is_none_or(|noted| !noted.placed && !place.is_cleared()) {
            self.may_move_aside(wanted, to)?;
        }
        let mut staged = if let Some(noted) = noted {
            noted
        } else {
            if attempt.noted.is_some() {
                attempt.note(Value::Null)?; // it would vouch for a stage that is not whole yet
            }
            unhindered()?;
            let reader = self.reader(choice, attempt.deadline)?;
            let stage = place.stage().map_err(|error| failed("prepare", &error))?;
            let outcome = self.fill(&reader, wanted, &stage, attempt.deadline)?;
            // A directory of pictures without one of them is still worth having; a database without a file is not.
            if choice.kind != "files" && !outcome.problems.is_empty() {
                let text = format!(
                    "{}@{} does not come back whole, and nothing was put in its place: {}",
                    choice.source,
                    choice.sequence,
                    outcome.problems.join("; ")
                );
                return Err(Failure::Refused(text));
            }
            let machine = self.machine.clone();
            let staged = Staged { outcome, placed: false, look: None, mark: None, machine };
            attempt.note(json!(staged))?;
            staged
        };
        if !staged.placed {
            if !place.is_cleared() {
                unhindered()?;
            }
            place.swap().map_err(|error| failed("put what was restored into", &error))?;
            staged.placed = true;
            staged.machine.clone_from(&self.machine);
            staged.look = Some(place.look().map_err(|error| failed("look at", &error))?);
            attempt.note(json!(staged))?;
        }
        let mut outcome = staged.outcome;
        if let Some(before) = place.finish(staged.look.as_ref()).map_err(|error| failed("finish", &error))? {
            outcome.to_do.push(left_aside(to, &before));
        }
        Ok(outcome)
    }

    /// What is there is only moved if the plan says so and somebody named it.
    fn may_move_aside(&self, wanted: &Restore, path: &Path) -> Result<(), Failure> {
        let shown = path.display().to_string();
        if wanted.options.existing == Existing::Skip {
            let text = format!(
                "{shown} holds something; with options.existing: replace, what is there is moved aside; \
                 otherwise move it away yourself"
            );
            return Err(Failure::Refused(text));
        }
        if self.confirmed.contains(&shown) {
            return Ok(());
        }
        Err(self.unconfirmed("it", &shown, "what it holds now may be moved aside"))
    }

    fn fill(&self, reader: &Reader, wanted: &Restore, stage: &Path, deadline: Instant) -> Result<Outcome, Failure> {
        let selection = selection(wanted);
        let preparation = preparation(&reader.catalogue().kind).filter(|_| selection.is_all());
        if let Some(preparation) = preparation {
            let ready = preparation.check(&self.context(deadline), reader.catalogue().facts.version());
            ready.map_err(|error| Failure::Refused(told(&error)))?;
        }
        let tree = Tree::create(stage, tree::Options::default()).map_err(|error| self.unread(&error.into()))?;
        let (progress, done) = (Progress::default(), crossbeam_channel::bounded::<()>(0));
        let result = std::thread::scope(|scope| {
            let (progress, ended) = (&progress, done.1);
            scope.spawn(move || {
                let tick = Duration::from_millis(100);
                while ended.recv_timeout(tick) == Err(crossbeam_channel::RecvTimeoutError::Timeout) {
                    if self.cancel.is_cancelled() || Instant::now() >= deadline {
                        progress.stop();
                    }
                }
            });
            let _inside = self.runtime.enter();
            let filled = restore(reader, tree, &selection, self.threads, progress);
            drop(done.0);
            filled
        });
        match result {
            Ok(done) => {
                let mut lines = vec![format!("{} entries, {} bytes", done.entries, done.bytes)];
                // What is incomplete is not fit for it.
                if let Some(preparation) = preparation.filter(|_| done.problems.is_empty()) {
                    let prepared = preparation.run(&self.context(deadline), stage);
                    lines.push(prepared.map_err(|error| self.failed(&error))?);
                }
                Ok(Outcome { lines, problems: problems(done.problems), bytes: done.bytes, to_do: Vec::new() })
            }
            Err(RestoreError::Stopped) if !self.cancel.is_cancelled() => {
                Err(Failure::Failed("it did not end within its timeout".into()))
            }
            Err(error) => Err(self.unread(&error)),
        }
    }

    pub(super) fn to_file(
        &self,
        attempt: &mut Attempt<'_>,
        restore: &Restore,
        choice: &Choice,
        file: &Path,
    ) -> Result<Outcome, Failure> {
        let product = Product::new(file, &self.step_id(attempt.index));
        let failed =
            |what: &str, error: &io::Error| Failure::Failed(format!("{what} {}: {}", file.display(), told(error)));
        let mounted = product.mounted().map_err(|error| failed("look what is mounted on", &error))?;
        if let Some(why) = hindered(&mounted) {
            return Err(Failure::Refused(why));
        }
        let noted = noted(attempt)?.filter(|noted| noted.mark.is_some_and(|mark| product.is_here(mark)));
        let mut outcome = if let Some(noted) = noted {
            noted.outcome
        } else {
            if product.is_occupied() {
                self.may_move_aside(restore, file)?;
            }
            let reader = self.reader(choice, attempt.deadline)?;
            let outcome = self.export(&reader, restore, &product, attempt.deadline)?;
            let mark = product.mark().map_err(|error| failed("look at", &error))?;
            let machine = self.machine.clone();
            let staged = Staged { outcome, placed: false, look: None, mark: Some(mark), machine };
            attempt.note(json!(staged))?;
            staged.outcome
        };
        if let Some(before) = product.swap().map_err(|error| failed("name", &error))? {
            outcome.to_do.push(left_aside(file, &before));
        }
        Ok(outcome)
    }

    fn export(
        &self,
        reader: &Arc<Reader>,
        restore: &Restore,
        product: &Product,
        deadline: Instant,
    ) -> Result<Outcome, Failure> {
        let export = || {
            let format = self.runtime.block_on(format(reader, selection(restore)))?;
            if let Some(parent) = product.partial.parent() {
                std::fs::create_dir_all(parent).map_err(RestoreError::Export)?;
            }
            let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&product.partial);
            let file = file.map_err(RestoreError::Export)?;
            let out = Flowing::new(&file, &product.partial).map_err(RestoreError::Export)?;
            let _inside = self.runtime.enter();
            let (label, bytes) = write(reader, format, Timed { out, context: self.context(deadline) })?;
            file.sync_all().map_err(RestoreError::Export)?;
            Ok(Outcome { lines: vec![format!("{label}, {bytes} bytes")], bytes, ..Outcome::default() })
        };
        export().map_err(|error| match error {
            _ if self.cancel.is_cancelled() => Failure::Interrupted,
            _ if Instant::now() >= deadline => Failure::Failed("it did not end within its timeout".into()),
            RestoreError::Export(error) => {
                Failure::Failed(format!("write {}: {}", product.partial.display(), told(&error)))
            }
            other => self.unread(&other),
        })
    }

    pub(super) fn to_system(
        &self,
        attempt: &mut Attempt<'_>,
        restore: &Restore,
        choice: &Choice,
    ) -> Result<Outcome, Failure> {
        let begun: Begun = attempt.noted.as_ref().map(read_note).transpose()?.unwrap_or_default();
        let mut options = self.options(restore, attempt.index);
        options.held = attempt.closed.iter().filter_map(held).collect();
        let mut target = self.target(restore, choice, options.clone())?;
        let reader = self.reader(choice, attempt.deadline)?;
        let supply = Supplied::new(&reader, selection(restore));
        let context = self.context(attempt.deadline);
        let _inside = self.runtime.enter();
        let mut plan = target.plan(&context, &supply).map_err(|error| self.failed(&error))?;
        // A foreign target that this step has restored into is the captured system from then on.
        let captured = supply.facts().system.as_deref();
        let again = begun.kept.is_some() && restore.options.foreign && captured == Some(&plan.target);
        let here = begun.machine == self.machine || !is_local(&plan.target);
        let begun = if again || here && begun.target == plan.target { begun } else { Begun::default() };
        if !begun.made.is_empty() {
            options.made.clone_from(&begun.made);
            target = self.target(restore, choice, options)?;
            plan = target.plan(&context, &supply).map_err(|error| self.failed(&error))?;
        }
        // One object of a cluster may stay out; of anything else, a part is not what was asked for.
        let conflict = plan.changes.iter().find_map(|change| match &change.action {
            Action::Conflict(why) if choice.kind != "kubernetes" => Some(format!("{}: {why}", change.what)),
            _ => None,
        });
        if let Some(why) = conflict {
            return Err(Failure::Refused(why));
        }
        let mut outcome = Outcome { bytes: choice.bytes, ..Outcome::default() };
        let mut now = begun.clone();
        if plan.overwrites() {
            if !again && !self.confirmed.contains(&plan.target) {
                let text = format!("what it holds may be overwritten ({})", plan.about.join("; "));
                let place = restore.system().map_or_else(|| restore.place(), ToString::to_string);
                return Err(self.unconfirmed(&place, &plan.target, &text));
            }
            // Only what was there before the first attempt is worth keeping; of what the step made itself, what somebody may
            // have done in it since.
            let remade =
                plan.changes.iter().any(|change| change.action == Action::Replace && begun.made.contains(&change.what));
            let kept = match (begun.kept.clone().filter(|_| !remade), restore.system()) {
                (Some(kept), _) => kept,
                _ if !self.outside.keeps() => "what was there is not kept (--no-safety-snapshot)".into(),
                _ if target.keeps() => "what was there is moved aside in it".into(),
                (None, Some(system)) => self.outside.keep(system, attempt.deadline)?,
                (None, None) => return Err(refused("it cannot keep what it overwrites")),
            };
            outcome.lines.push(kept.clone());
            now.kept = Some(kept);
        }
        now.made.extend(target.unmarked(&plan));
        if now != begun {
            (now.target, now.machine) = (plan.target.clone(), self.machine.clone());
            attempt.note(json!(now))?;
        }
        let applied = target.apply(&context, &supply, &plan).map_err(|error| self.failed(&error))?;
        Ok(outcome_of(outcome, applied))
    }

    /// Whether what a step restored, as its record and what it noted say, is not on this machine. Something else may be in its
    /// place, if it was done on another.
    #[must_use]
    pub fn is_gone(&self, index: usize, task: &Task, note: Option<&Value>) -> bool {
        let Doing::Restore(restore) = &task.doing else { return false };
        let staged = note.and_then(|note| read_note::<Staged>(note).ok());
        let elsewhere = staged.filter(|staged| self.is_of_another(staged));
        match (&restore.to, &restore.export) {
            (Some(to), _) => {
                // Two machines may share a disk: what the step moved aside tells.
                let other = elsewhere.is_some() && !Place::new(to, &self.step_id(index)).has_traces();
                other || Place::new(to, "").is_occupied().is_ok_and(|occupied| !occupied)
            }
            (_, Some(file)) => {
                let product = Product::new(file, "");
                // A file is known from every other.
                let other = elsewhere.and_then(|staged| staged.mark).is_some_and(|mark| !product.is_here(mark));
                other || !product.is_occupied()
            }
            (None, None) => false,
        }
    }

    /// Whether what a step noted is of another machine: of its files, or of what its addresses led to.
    #[must_use]
    pub fn is_elsewhere(&self, note: &Value) -> bool {
        if let Ok(staged) = read_note::<Staged>(note) {
            return self.is_of_another(&staged);
        }
        read_note::<Begun>(note).is_ok_and(|begun| is_local(&begun.target) && begun.machine != self.machine)
    }

    fn is_of_another(&self, staged: &Staged) -> bool {
        staged.machine.is_some() && staged.machine != self.machine
    }

    /// Where a step that restores into a directory has put what was there before.
    #[must_use]
    pub fn aside(&self, index: usize, directory: &Path) -> Option<PathBuf> {
        Place::new(directory, &self.step_id(index)).aside()
    }

    pub(super) fn look(&self, task: usize, restore: &Restore, choice: &Choice, limit: Duration) -> Facts {
        let mut facts = Facts::of(task, restore.system().map_or_else(|| restore.place(), ToString::to_string));
        if let Some(path) = restore.path() {
            let (occupied, mounted) = if let Some(to) = &restore.to {
                // What this restore left there when it was killed is nobody's data.
                let place = Place::new(to, &self.step_id(task));
                (place.is_occupied(), place.mounted())
            } else {
                let product = Product::new(path, "");
                (Ok(product.is_occupied()), product.mounted())
            };
            facts.target = Some(path.display().to_string());
            match occupied.and_then(|occupied| Ok((occupied, mounted?))) {
                Ok((_, mounted)) if !mounted.is_empty() => facts.refused = hindered(&mounted),
                Ok((occupied, _)) => Self::look_at_path(restore, occupied, &mut facts),
                Err(error) => facts.refused = Some(told(&error)),
            }
            return facts;
        }
        match self.plan(restore, choice, (task, limit)) {
            Ok(plan) => {
                let conflicts = plan.changes.iter().filter_map(|change| match &change.action {
                    Action::Conflict(why) => Some(format!("{}: {why}", change.what)),
                    _ => None,
                });
                let conflicts: Vec<_> = conflicts.collect();
                // What is in the way now may be out of it by then: a workload, by a fence.
                let replaces = restore.options.existing == Existing::Replace;
                facts.overwrites = plan.overwrites() || replaces && !conflicts.is_empty();
                (facts.target, facts.about, facts.changes) = (Some(plan.target), plan.about, plan.changes);
                facts.about.extend(conflicts.into_iter().take(CONFLICTS));
            }
            Err(failure) => facts.about.push(unknown(failure)),
        }
        facts
    }

    fn look_at_path(restore: &Restore, occupied: bool, facts: &mut Facts) {
        match (occupied, restore.options.existing) {
            (false, _) => facts.about.push("nothing is there".into()),
            (true, Existing::Skip) => {
                let text = "something is there; with options.existing: replace it would be moved aside";
                facts.refused = Some(text.into());
            }
            (true, _) => {
                facts.about.push("what is there will be moved aside".into());
                facts.overwrites = true;
            }
        }
    }

    /// Removes what a step that is given up left in its target, or ends what it had all but done.
    pub(super) fn clear(&self, index: usize, task: &Task) -> Result<Vec<String>, Failure> {
        let (Doing::Restore(restore), Some(choice)) = (&task.doing, &task.choice) else { return Ok(Vec::new()) };
        let (id, path) = (self.step_id(index), restore.place());
        let cleared = match (&restore.to, &restore.export) {
            (Some(to), _) => Place::new(to, &id).abandon(),
            (_, Some(file)) => Product::new(file, &id).abandon(),
            // Of other systems, what was restored stays.
            (None, None) if restore.system().is_some_and(|name| !self.is_volume(name)) => return Ok(Vec::new()),
            (None, None) => {
                let mut target = self.target(restore, choice, self.options(restore, index))?;
                let context = self.context(Instant::now() + task.timeout);
                return target.abandon(&context).map_err(|error| self.failed(&error));
            }
        };
        cleared.map_err(|error| Failure::Failed(format!("give up what is in {path}: {}", told(&error))))
    }

    fn is_volume(&self, name: &SourceName) -> bool {
        matches!(self.documents.get(name), Some(Spec::Volume(_)))
    }

    fn options(&self, restore: &Restore, index: usize) -> Options {
        Options { step: Some(self.step_id(index)), aside: self.outside.keeps(), ..restore.options.clone() }
    }

    /// What a step restores into that is not on this machine.
    fn target(&self, restore: &Restore, choice: &Choice, options: Options) -> Result<Box<dyn Target>, Failure> {
        if let Some(claim) = &restore.claim {
            let id = format!("{}@{} of {}", choice.source, choice.sequence, choice.moment);
            let snapshot = (choice.kind.as_str(), id, restore.paths.is_empty());
            return Ok(Box::new(volume::Restoring::named(self.cluster(&claim.cluster)?, claim, snapshot, options)));
        }
        let system = restore.system().ok_or_else(|| refused("it has no target"))?;
        let target = self.document(system)?.target(options).map_err(|error| self.failed(&error))?;
        target.ok_or_else(|| refused(&format!("{system} is not brought back while it runs")))
    }

    fn plan(&self, restore: &Restore, choice: &Choice, (task, limit): (usize, Duration)) -> Result<Plan, Failure> {
        let mut target = self.target(restore, choice, self.options(restore, task))?;
        let deadline = Instant::now() + limit;
        let reader = self.reader(choice, deadline)?;
        let supply = Supplied::new(&reader, selection(restore));
        let _inside = self.runtime.enter();
        target.plan(&self.context(deadline), &supply).map_err(|error| self.failed(&error))
    }
}

fn noted(attempt: &Attempt<'_>) -> Result<Option<Staged>, Failure> {
    attempt.noted.as_ref().filter(|note| !note.is_null()).map(read_note).transpose()
}

/// What a fence in a cluster holds back; one that is a program's noted nothing of that.
fn held(note: &Value) -> Option<(String, Held)> {
    read_note::<Closed>(note).ok().map(|closed| (closed.cluster, closed.held))
}

/// Why something mounted keeps a target from being restored.
fn hindered(mounted: &[PathBuf]) -> Option<String> {
    let first = mounted.first()?.display();
    Some(format!(
        "{first} is a mount point, which cannot be moved aside: unmount it first (what belongs on it is restored by a step of \
         its own, with that directory as its target)"
    ))
}

fn left_aside(path: &Path, before: &Path) -> String {
    format!("what was in {} is in {}: remove it when it is not needed", path.display(), before.display())
}

fn selection(restore: &Restore) -> Selection {
    Selection::new(restore.paths.iter().map(|path| path.clone().into_bytes()))
}

/// Conflicts are problems.
fn outcome_of(mut outcome: Outcome, applied: Applied) -> Outcome {
    let is_conflict = |change: &Change| matches!(change.action, Action::Conflict(_));
    let (conflicts, done): (Vec<_>, Vec<_>) = applied.changes.into_iter().partition(is_conflict);
    let conflicts = conflicts.into_iter().filter_map(|Change { what, action }| match action {
        Action::Conflict(text) => Some(Problem { path: what.into_bytes(), text }),
        _ => None,
    });
    outcome.lines.push(summary(&done));
    outcome.problems.extend(problems(conflicts.collect()));
    outcome.problems.extend(problems(applied.problems));
    outcome.lines.extend(applied.checked);
    outcome.to_do.extend(applied.to_do);
    outcome
}
