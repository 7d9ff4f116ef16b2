//! Silences posted to an Alertmanager. The server gives new ids; what is there already, under whatever id, is not posted
//! again. Silences that have ended since are not brought back, and the configuration is not touched.

use super::silence::{self, FILE, Silence};
use super::{CONFIG, LARGEST_CONFIG, SILENCES_OF, Spec, connect, silences, status};
use crate::entry::{Problem, Supply};
use crate::source::http::Api;
use crate::source::target::{Action, Applied, Change, Existing, Options, Plan, Target};
use crate::source::{Context, SourceError};
use jiff::Timestamp;
use reqwest::Method;
use std::io;

pub struct Restoring {
    spec: Spec,
    options: Options,
}

/// What is to be done for one silence of the snapshot.
struct Step {
    silence: Silence,
    action: Action,
}

impl Restoring {
    pub fn new(spec: Spec, options: Options) -> Self {
        Self { spec, options }
    }

    /// And how many have ended.
    fn steps(&self, now: Timestamp, captured: Vec<Silence>, there: &[Silence]) -> (Vec<Step>, usize) {
        let all = captured.len();
        let lasting = captured.into_iter().filter(|silence| silence.ends_at > now);
        let steps: Vec<_> = lasting
            .map(|silence| {
                let same = there.iter().any(|other| other.lasts() && other.is_as(&silence, now));
                let changed = there.iter().any(|other| other.id == silence.id);
                let action = match self.options.existing {
                    _ if same => Action::Unchanged,
                    _ if !changed => Action::Create,
                    // Somebody has changed it since, or ended it.
                    Existing::Skip => Action::Skip,
                    Existing::Update | Existing::Replace => Action::Update,
                };
                Step { silence, action }
            })
            .collect();
        let ended = all - steps.len();
        (steps, ended)
    }
}

fn captured(supply: &dyn Supply) -> Result<Vec<Silence>, SourceError> {
    let mut found = None;
    let read = supply.entries(&mut |entry, body| {
        if entry.path == FILE.as_bytes() && entry.size <= LARGEST_CONFIG {
            let mut bytes = Vec::new();
            body.copy(&mut bytes)?;
            found = serde_json::from_slice(&bytes).ok().and_then(silence::parse);
        }
        Ok(())
    });
    let failed = |source| SourceError::Snapshot { what: "the silences".into(), source };
    read.map_err(failed)?;
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, format!("it holds no {FILE} that can be read"));
    found.ok_or_else(|| failed(invalid()))
}

impl Target for Restoring {
    fn plan(&mut self, context: &Context, supply: &dyn Supply) -> Result<Plan, SourceError> {
        let api = connect(&self.spec)?;
        let (version, _) = status(context, &api)?;
        let there = silences(context, &api)?;
        let lasting = there.iter().filter(|silence| silence.lasts()).count();
        let (steps, ended) = self.steps(context.now(), captured(supply)?, &there);
        let mut about = vec![format!("Alertmanager {version}, {lasting} silences")];
        if ended > 0 {
            about.push(format!("{ended} silences of the snapshot have ended, and are not brought back"));
        }
        let changes = steps.into_iter().map(|step| Change { what: step.silence.describe(), action: step.action });
        Ok(Plan { target: api.server.address.clone(), about, changes: changes.collect() })
    }

    fn apply(&mut self, context: &Context, supply: &dyn Supply, plan: &Plan) -> Result<Applied, SourceError> {
        let api = connect(&self.spec)?;
        let there = silences(context, &api)?;
        let (steps, _) = self.steps(context.now(), captured(supply)?, &there);
        let mut applied = Applied::default();
        for Step { silence, mut action } in steps {
            let what = silence.describe();
            let planned = plan.changes.iter().find(|change| change.what == what);
            if planned.is_none_or(|change| change.action != action) {
                action = Action::Conflict("it has changed since it was looked at; run the command again".into());
            }
            let id = match action {
                Action::Create => Some(None),
                Action::Update => Some(Some(silence.id.as_str())),
                _ => None,
            };
            if let Some(id) = id {
                let request = api.server.request(Method::POST, SILENCES_OF).json(&silence.body(id));
                match api.json(context, request)? {
                    Ok(_) => {}
                    Err(denied) if denied.is_denied() => return Err(api.failed("post a silence to", &denied, "")),
                    // What it does not take, it says; the others may be taken.
                    Err(failure) => action = Action::Conflict(failure.text),
                }
            }
            applied.changes.push(Change { what, action });
        }
        self.look(context, &api, supply, &mut applied)?;
        Ok(applied)
    }
}

impl Restoring {
    /// Sees whether all is there.
    fn look(
        &self,
        context: &Context,
        api: &Api,
        supply: &dyn Supply,
        applied: &mut Applied,
    ) -> Result<(), SourceError> {
        let (now, there) = (context.now(), silences(context, api)?);
        let (steps, _) = self.steps(now, captured(supply)?, &there);
        let number = steps.len();
        let missing: Vec<_> = steps.into_iter().filter(|step| step.action == Action::Create).collect();
        for Step { silence, .. } in &missing {
            let text = format!("{} is not there", silence.describe());
            applied.problems.push(Problem { path: FILE.into(), text });
        }
        applied.checked.push(format!("{} of {number} silences that last are there", number - missing.len()));
        applied.to_do.push(format!("compare the configuration with {CONFIG} of the snapshot: it cannot be posted"));
        Ok(())
    }
}
