//! Putting states back under Terraform's own rules: the lineage stays, the serial becomes one more than any before.

use super::backend::{Backend, Lock, UNLOCKING};
use super::state::{MAX_STATE, State, same, with_serial};
use super::{FILE, Found, Spec};
use crate::entry::{Problem, Supply};
use crate::source::target::{Action, Applied, Change, Existing, Options, Plan, Target};
use crate::source::{Context, SourceError};
use std::io;

pub struct Restoring {
    spec: Spec,
    options: Options,
}

impl Restoring {
    pub fn new(spec: Spec, options: Options) -> Self {
        Self { spec, options }
    }
}

/// What is to be done for one workspace.
struct Step {
    found: Found,
    current: Option<Current>,
    /// What is there is right, and Terraform does not take it.
    refused: bool,
    action: Action,
}

/// What is there now; without a state it is a file that is none, damaged perhaps.
struct Current {
    bytes: Vec<u8>,
    state: Option<State>,
}

impl Restoring {
    fn steps(&self, context: &Context, backend: &dyn Backend, supply: &dyn Supply) -> Result<Vec<Step>, SourceError> {
        let mut steps = Vec::new();
        for found in captured(supply)? {
            let current = backend.read(context, &found.workspace)?.map(|bytes| {
                let state = State::parse(&bytes).ok();
                Current { bytes, state }
            });
            let action = match backend.holder(context, &found.workspace)? {
                Some(holder) => Action::Conflict(format!("it is locked by {holder}")),
                None => self.action(&found, current.as_ref()),
            };
            let refused = match (&action, &current) {
                (Action::Unchanged, Some(now)) => !backend.agrees(context, &found.workspace, &now.bytes)?,
                _ => false,
            };
            let action = if refused { Action::Update } else { action };
            steps.push(Step { found, current, refused, action });
        }
        Ok(steps)
    }

    fn action(&self, found: &Found, current: Option<&Current>) -> Action {
        let Some(Current { bytes, state }) = current else { return Action::Create };
        let Some(state) = state else {
            return match self.options.existing {
                Existing::Skip => Action::Conflict(
                    "what is there is no state (damaged?); --existing replace puts the captured one in its place"
                        .into(),
                ),
                Existing::Update | Existing::Replace => Action::Replace,
            };
        };
        if state.lineage != found.state.lineage && !self.options.foreign {
            let Found { state: State { lineage, .. }, .. } = found;
            return Action::Conflict(format!(
                "it holds another state, of lineage {}, and the snapshot is of {lineage} (--foreign replaces it)",
                state.lineage
            ));
        }
        if *bytes == found.bytes || !found.state.encrypted && same(bytes, &found.bytes) {
            return Action::Unchanged;
        }
        if found.state.encrypted && self.options.existing != Existing::Skip && found.state.serial <= state.serial {
            let (was, is) = (found.state.serial, state.serial);
            return Action::Conflict(format!(
                "the captured state is encrypted, so that its serial, {was}, cannot be raised above {is}: move the state \
                 that is there out of the way first"
            ));
        }
        match self.options.existing {
            Existing::Skip => Action::Skip,
            Existing::Update => Action::Update,
            Existing::Replace => Action::Replace,
        }
    }
}

/// The states in the snapshot.
fn captured(supply: &dyn Supply) -> Result<Vec<Found>, SourceError> {
    let mut all = Vec::new();
    let read = supply.entries(&mut |entry, body| {
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        let damaged = |why: String| io::Error::new(io::ErrorKind::InvalidData, format!("{path}: {why}"));
        let workspace = path.strip_suffix(FILE).and_then(|front| front.strip_suffix('/'));
        let workspace = workspace.ok_or_else(|| damaged("it is no workspace's state".into()))?.to_owned();
        if entry.size > MAX_STATE as u64 {
            return Err(damaged("it is too large".into()));
        }
        let mut bytes = Vec::new();
        body.copy(&mut bytes)?;
        let state = State::parse(&bytes).map_err(damaged)?;
        all.push(Found { workspace, bytes, state });
        Ok(())
    });
    read.map_err(|source| SourceError::Snapshot { what: "the states".into(), source })?;
    Ok(all)
}

impl Target for Restoring {
    fn plan(&mut self, context: &Context, supply: &dyn Supply) -> Result<Plan, SourceError> {
        let backend = self.spec.open(context)?;
        let steps = self.steps(context, backend.as_ref(), supply)?;
        let mut about = Vec::new();
        for Step { found, current, refused, .. } in &steps {
            let (name, state) = (&found.workspace, &found.state);
            let now = match current {
                Some(Current { state: Some(now), .. }) => format!("serial {}, {} resources", now.serial, now.resources),
                Some(_) => "something that is no state".into(),
                None => "no state".into(),
            };
            about.push(format!(
                "workspace {name}: now {now}; captured serial {}, {} resources",
                state.serial, state.resources
            ));
            if *refused {
                about.push(format!(
                    "workspace {name}: DynamoDB has another state's digest, so Terraform refuses this one"
                ));
            }
        }
        let changes = steps.into_iter().map(|step| Change { what: step.found.workspace, action: step.action });
        Ok(Plan { target: backend.place(), about, changes: changes.collect() })
    }

    fn apply(&mut self, context: &Context, supply: &dyn Supply, plan: &Plan) -> Result<Applied, SourceError> {
        let backend = self.spec.open(context)?;
        let mut applied = Applied::default();
        for step in self.steps(context, backend.as_ref(), supply)? {
            let workspace = step.found.workspace.clone();
            let planned = plan.changes.iter().find(|change| change.what == workspace);
            let mut action = step.action.clone();
            if planned.is_none_or(|change| change.action != action) {
                action = Action::Conflict("it has changed since it was looked at; run the command again".into());
            }
            if matches!(action, Action::Create | Action::Update | Action::Replace) {
                match self.put(context, backend.as_ref(), &step, &mut applied)? {
                    Ok(()) => {}
                    Err(why) => action = Action::Conflict(why),
                }
            }
            applied.changes.push(Change { what: workspace, action });
        }
        Ok(applied)
    }
}

impl Restoring {
    /// Writes one state under the lock and reads it again. The inner error: why it was not done.
    fn put(
        &self,
        context: &Context,
        backend: &dyn Backend,
        step: &Step,
        applied: &mut Applied,
    ) -> Result<Result<(), String>, SourceError> {
        let Step { found, current, .. } = step;
        let workspace = found.workspace.as_str();
        let lock = Lock::new(context)?;
        if let Err(holder) = backend.lock(context, workspace, &lock)? {
            return Ok(Err(format!("it is locked by {holder}")));
        }
        let written = Self::write(context, backend, found, current.as_ref(), &lock);
        // Also when the run has been ended: a lock that stays keeps everybody out.
        let unlocked = backend.unlock(&context.afterwards(UNLOCKING), workspace, &lock);
        if let (Err(_), Err(error)) = (&written, &unlocked) {
            let id = &lock.id;
            tracing::error!(workspace, id, error = error as &dyn std::error::Error, "the state stays locked");
        }
        let done = written?;
        if let Err(error) = unlocked {
            let path = format!("{workspace}/{FILE}").into_bytes();
            applied.problems.push(Problem { path, text: error.to_string() });
            applied.to_do.push(format!("unlock the workspace {workspace}: terraform force-unlock {}", lock.id));
        }
        Ok(done.map(|serial| {
            applied.checked.push(format!("workspace {workspace}: read back with serial {serial}"));
            if matches!(&self.spec.backend, super::Backend::S3(s3) if s3.dynamodb_table.is_none()) {
                let text =
                    "if this backend locks by DynamoDB, name its dynamodbTable in the source and restore again, or delete \
                     the item whose LockID ends in \"-md5\" for workspace";
                applied.to_do.push(format!("{text} {workspace}: its digest is of the state before"));
            }
        }))
    }

    fn write(
        context: &Context,
        backend: &dyn Backend,
        found: &Found,
        current: Option<&Current>,
        lock: &Lock,
    ) -> Result<Result<u64, String>, SourceError> {
        let now = backend.read(context, &found.workspace)?;
        if now.as_deref() != current.map(|current| &current.bytes[..]) {
            return Ok(Err("it has changed since it was looked at; run the command again".into()));
        }
        // Terraform takes nothing that is older than what it has seen.
        let serial = match current {
            Some(Current { state, .. }) if !found.state.encrypted => {
                let now = state.as_ref().map_or(0, |state| state.serial);
                now.max(found.state.serial) + 1
            }
            _ => found.state.serial,
        };
        let bad = |text: String| SourceError::System {
            attempt: format!("restore the state of workspace {} at {}", found.workspace, backend.place()),
            text,
            need: String::new(),
        };
        let bytes = if serial == found.state.serial {
            found.bytes.clone()
        } else {
            with_serial(&found.bytes, serial).map_err(|error| bad(error.to_string()))?
        };
        backend.write(context, &found.workspace, &bytes, lock)?;
        if backend.read(context, &found.workspace)?.as_deref() != Some(&bytes[..]) {
            return Err(bad("what is read back is not what was written".into()));
        }
        Ok(Ok(serial))
    }
}
