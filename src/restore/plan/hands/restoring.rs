//! Bringing one source back: into a directory, a file, a running system.

use super::{Facts, Worker, problems, read_note, refused, told, unknown};
use crate::entry::Supply as _;
use crate::id::SourceName;
use crate::repo::{Reader, Selector};
use crate::restore::export::{Flowing, format, write};
use crate::restore::plan::document::Restore;
use crate::restore::plan::execute::{Attempt, Failure};
use crate::restore::plan::journal::Outcome;
use crate::restore::plan::place::{Place, Product};
use crate::restore::plan::resolve::Choice;
use crate::restore::snapshot::{Progress, restore};
use crate::restore::supply::Supplied;
use crate::restore::tree::{self, Tree};
use crate::restore::{RestoreError, Selection};
use crate::source::target::{Action, Applied, Change, Existing, Plan};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

impl Worker<'_> {
    fn reader(&self, choice: &Choice) -> Result<Arc<Reader>, Failure> {
        let lineage = Arc::new(self.repository.lineage(&choice.source, self.access.clone()));
        let opened = self.runtime.block_on(async {
            let (snapshot, _) = lineage.find(&Selector::Number(choice.sequence)).await?;
            Reader::open(lineage.clone(), snapshot).await
        });
        opened.map(Arc::new).map_err(|error| self.unread(&error.into()))
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
        let mut outcome = if let Some(note) = &attempt.noted {
            // It is whole: what is left is to put it in its place.
            read_note(note)?
        } else {
            let occupied = place.is_occupied().map_err(|error| failed("look into", &error))?;
            if occupied && wanted.options.existing == Existing::Skip {
                let text = format!(
                    "{} is not empty; with options.existing: replace, what is there is moved aside",
                    to.display()
                );
                return Err(Failure::Refused(text));
            }
            let reader = self.reader(choice)?;
            let stage = place.stage().map_err(|error| failed("prepare", &error))?;
            let outcome = self.fill(&reader, wanted, &stage, attempt.deadline)?;
            attempt.note(json!(outcome))?;
            outcome
        };
        let before = place.swap().map_err(|error| failed("put what was restored into", &error))?;
        if let Some(before) = before {
            outcome.to_do.push(format!(
                "what was in {} is in {}: remove it when it is not needed",
                to.display(),
                before.display()
            ));
        }
        Ok(outcome)
    }

    fn fill(&self, reader: &Reader, wanted: &Restore, stage: &Path, deadline: Instant) -> Result<Outcome, Failure> {
        let selection = selection(wanted);
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
            Ok(done) => Ok(Outcome {
                lines: vec![format!("{} entries, {} bytes", done.entries, done.bytes)],
                problems: problems(done.problems),
                bytes: done.bytes,
                to_do: Vec::new(),
            }),
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
        let mut outcome: Outcome = if let Some(note) = &attempt.noted {
            read_note(note)?
        } else {
            if product.is_occupied() && restore.options.existing == Existing::Skip {
                let text = format!("{} exists; with options.existing: replace, it is moved aside", file.display());
                return Err(Failure::Refused(text));
            }
            let reader = self.reader(choice)?;
            let outcome = self.export(&reader, restore, &product).map_err(|error| match error {
                RestoreError::Export(error) => failed("write", &error),
                other => self.unread(&other),
            })?;
            attempt.note(json!(outcome))?;
            outcome
        };
        if let Some(before) = product.swap().map_err(|error| failed("name", &error))? {
            outcome.to_do.push(format!(
                "what was in {} is in {}: remove it when it is not needed",
                file.display(),
                before.display()
            ));
        }
        Ok(outcome)
    }

    fn export(&self, reader: &Arc<Reader>, restore: &Restore, product: &Product) -> Result<Outcome, RestoreError> {
        let format = self.runtime.block_on(format(reader, selection(restore)))?;
        if let Some(parent) = product.partial.parent() {
            std::fs::create_dir_all(parent).map_err(RestoreError::Export)?;
        }
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&product.partial);
        let file = file.map_err(RestoreError::Export)?;
        let out = Flowing::new(&file, &product.partial).map_err(RestoreError::Export)?;
        let _inside = self.runtime.enter();
        let (label, bytes) = write(reader, format, out)?;
        file.sync_all().map_err(RestoreError::Export)?;
        Ok(Outcome { lines: vec![format!("{label}, {bytes} bytes")], bytes, ..Outcome::default() })
    }

    pub(super) fn to_system(
        &self,
        attempt: &mut Attempt<'_>,
        restore: &Restore,
        choice: &Choice,
    ) -> Result<Outcome, Failure> {
        let system = restore.system().ok_or_else(|| refused("it has no target"))?;
        let target = self.document(system)?.target(restore.options.clone()).map_err(|error| self.failed(&error))?;
        let mut target = target.ok_or_else(|| refused(&format!("{system} is not brought back while it runs")))?;
        let reader = self.reader(choice)?;
        let supply = Supplied::new(&reader, selection(restore));
        let context = self.context(attempt.deadline);
        let _inside = self.runtime.enter();
        let plan = target.plan(&context, &supply).map_err(|error| self.failed(&error))?;
        // One object of a cluster may stay out; of anything else, a part is not what was asked for.
        let conflict = plan.changes.iter().find_map(|change| match &change.action {
            Action::Conflict(why) if choice.kind != "kubernetes" => Some(format!("{}: {why}", change.what)),
            _ => None,
        });
        if let Some(why) = conflict {
            return Err(Failure::Refused(why));
        }
        let mut outcome = Outcome { bytes: choice.bytes, ..Outcome::default() };
        if plan.overwrites() {
            self.may_overwrite(system, &plan, supply.facts().system.as_deref())?;
            // Only what was there before the first attempt is worth keeping.
            let kept = if let Some(note) = &attempt.noted {
                note["kept"].as_str().unwrap_or_default().to_owned()
            } else {
                let kept = self.outside.keep(system, attempt.deadline)?;
                attempt.note(json!({ "kept": kept }))?;
                kept
            };
            outcome.lines.push(kept);
        }
        let applied = target.apply(&context, &supply, &plan).map_err(|error| self.failed(&error))?;
        Ok(summary(outcome, applied))
    }

    /// Nobody overwrites what nobody named.
    fn may_overwrite(&self, system: &SourceName, plan: &Plan, captured: Option<&str>) -> Result<(), Failure> {
        // A foreign target that has been restored into is the captured system from then on.
        let again = captured == Some(&plan.target) && !self.confirmed.is_empty();
        if self.confirmed.contains(&plan.target) || again {
            return Ok(());
        }
        let about = plan.about.join("; ");
        Err(self.unconfirmed(system, &plan.target, &format!("what it holds may be overwritten ({about})")))
    }

    pub(super) fn look(&self, task: usize, restore: &Restore, choice: &Choice, limit: Duration) -> Facts {
        let mut facts = Facts::of(task, restore.system().map_or_else(|| restore.place(), ToString::to_string));
        let path = restore.to.as_ref().or(restore.export.as_ref());
        if let Some(path) = path {
            let occupied = match &restore.to {
                // What this restore left there when it was killed is nobody's data.
                Some(to) => Place::new(to, &self.step_id(task)).is_occupied(),
                None => Ok(Product::new(path, "").is_occupied()),
            };
            facts.target = Some(path.display().to_string());
            match occupied {
                Ok(false) => facts.about.push("nothing is there".into()),
                Ok(true) if restore.options.existing == Existing::Skip => {
                    let text = "something is there; with options.existing: replace it would be moved aside";
                    facts.refused = Some(text.into());
                }
                Ok(true) => {
                    facts.about.push("what is there will be moved aside".into());
                    facts.overwrites = true;
                }
                Err(error) => facts.refused = Some(told(&error)),
            }
            return facts;
        }
        match self.plan(restore, choice, limit) {
            Ok(plan) => {
                facts.overwrites = plan.overwrites();
                (facts.target, facts.about, facts.changes) = (Some(plan.target), plan.about, plan.changes);
            }
            Err(failure) => facts.about.push(unknown(failure)),
        }
        facts
    }

    fn plan(&self, restore: &Restore, choice: &Choice, limit: Duration) -> Result<Plan, Failure> {
        let system = restore.system().ok_or_else(|| refused("it has no target"))?;
        let target = self.document(system)?.target(restore.options.clone()).map_err(|error| self.failed(&error))?;
        let mut target = target.ok_or_else(|| refused(&format!("{system} is not brought back while it runs")))?;
        let reader = self.reader(choice)?;
        let supply = Supplied::new(&reader, selection(restore));
        let _inside = self.runtime.enter();
        target.plan(&self.context(Instant::now() + limit), &supply).map_err(|error| self.failed(&error))
    }
}

fn selection(restore: &Restore) -> Selection {
    Selection::new(restore.paths.iter().map(|path| path.clone().into_bytes()))
}

/// "create 12, unchanged 3"; conflicts are problems.
fn summary(mut outcome: Outcome, applied: Applied) -> Outcome {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for Change { what, action } in applied.changes {
        if let Action::Conflict(why) = &action {
            outcome.problems.push(format!("{what}: {why}"));
        } else {
            *counts.entry(action.to_string()).or_default() += 1;
        }
    }
    let counts: Vec<_> = counts.into_iter().map(|(action, number)| format!("{action} {number}")).collect();
    outcome.lines.push(if counts.is_empty() { "nothing to do".into() } else { counts.join(", ") });
    outcome.problems.extend(problems(applied.problems));
    outcome.lines.extend(applied.checked);
    outcome.to_do.extend(applied.to_do);
    outcome
}
