//! Single secrets out of a snapshot, into the live Vault.
//!
//! The plan opens the snapshot in a Vault beside the live one ([`Aside`]), takes what was asked for into memory, ends that
//! Vault, and compares. What is told names keys, never values. The newest version in the snapshot becomes a new version of
//! the live secret, on the condition that the live one is still what the plan saw; what was there stays in its history,
//! where an engine keeps one. Deliberately absent: earlier versions, other engines than key-value.

use super::aside::{Aside, Opening};
use super::client::Client;
use super::keyvalue::{Engine, Fields, Held, Settings, compared, same};
use super::restore::{SHAMIR, detail, unseal_keys};
use super::{SEAL, Spec};
use crate::entry::{Facts, Problem, Supply};
use crate::source::http::{self, Failure};
use crate::source::target::{Action, Applied, Change, Existing, Options, Plan, Target};
use crate::source::{Context, SourceError};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// More is not held in memory.
const MAX_SECRETS: usize = 10_000;
const MAX_BYTES: usize = 64 << 20;

pub struct Secrets {
    spec: Spec,
    options: Options,
    /// Made by the plan.
    ready: Option<(Client, Vec<Step>)>,
}

impl Secrets {
    pub fn new(spec: Spec, options: Options) -> Self {
        Self { spec, options, ready: None }
    }
}

/// One secret of the snapshot.
struct Captured {
    engine: Engine,
    name: String,
    fields: Fields,
    settings: Settings,
}

struct Step {
    captured: Captured,
    live: Held,
    action: Action,
}

impl Target for Secrets {
    fn plan(&mut self, context: &Context, supply: &dyn Supply) -> Result<Plan, SourceError> {
        let facts = supply.facts();
        let mut client = Client::new(&self.spec)?;
        let health = client.health(context)?;
        health.must_be_unsealed(&client)?;
        client.log_in(context, &self.spec.auth)?;
        let target = health.cluster_id.clone().unwrap_or_else(|| client.address().to_owned());
        self.must_fit(&client, facts, &target)?;
        let opening = self.opening(&client, facts)?;
        let (found, version) = {
            let aside = Aside::open(context, supply, detail(facts, "version"), &opening)?;
            (self.captured(context, &aside.client)?, aside.version.clone())
        };
        let mut steps = Vec::new();
        for captured in found {
            steps.push(self.step(context, &client, captured)?);
        }
        let moment = facts.recovery_point_ms.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        let captured = moment.map(|moment| moment.to_string()).unwrap_or_default();
        let mut about = vec![
            format!("{} at {}, cluster {target}", health.describe(), client.address()),
            format!("the snapshot: Vault {}, {captured}, opened in a Vault {version}", detail(facts, "version")),
        ];
        about.extend(steps.iter().filter_map(Step::difference));
        forbid(context, &client, &mut steps)?;
        let changes = steps.iter().map(Step::change).collect();
        self.ready = Some((client, steps));
        Ok(Plan { target, about, changes })
    }

    fn apply(&mut self, context: &Context, _supply: &dyn Supply, _plan: &Plan) -> Result<Applied, SourceError> {
        let Some((client, mut steps)) = self.ready.take() else {
            return Err(SourceError::System {
                attempt: "restore secrets".into(),
                text: "it was not planned".into(),
                need: String::new(),
            });
        };
        let mut applied = Applied::default();
        for step in &mut steps {
            context.go_on()?;
            if matches!(step.action, Action::Create | Action::Update | Action::Replace) {
                write(context, &client, step, &mut applied)?;
            }
            applied.changes.push(step.change());
        }
        Ok(applied)
    }
}

impl Step {
    fn path(&self) -> String {
        self.captured.engine.path(&self.captured.name)
    }

    fn change(&self) -> Change {
        Change { what: self.path(), action: self.action.clone() }
    }

    /// What of it is not now as the snapshot holds it.
    fn difference(&self) -> Option<String> {
        let path = self.path();
        match &self.live {
            Held::Secret(now, _) if same(now, &self.captured.fields) => None,
            Held::Secret(now, 0) => Some(format!("{path}: {}", compared(now, &self.captured.fields))),
            Held::Secret(now, version) => {
                Some(format!("{path}: {} (now version {version})", compared(now, &self.captured.fields)))
            }
            Held::Deleted(version) => {
                let brings = compared(&Fields::new(), &self.captured.fields);
                Some(format!("{path}: version {version} is deleted; {brings}"))
            }
            Held::Nothing => Some(format!("{path}: not there; {}", compared(&Fields::new(), &self.captured.fields))),
        }
    }
}

impl Secrets {
    fn must_fit(&self, client: &Client, facts: &Facts, target: &str) -> Result<(), SourceError> {
        if self.spec.namespace.is_some() {
            let need = "restore the whole snapshot into another Vault, and copy them";
            return Err(client.error("restore secrets into", "single secrets of namespaces are not supported", need));
        }
        if facts.system.as_deref() != Some(target) && !self.options.foreign {
            let captured = facts.system.as_deref().unwrap_or("unknown");
            let text = format!("it is cluster {target}, and the snapshot is of cluster {captured}");
            return Err(client.error("restore secrets into", text, "if that is meant, add --foreign"));
        }
        Ok(())
    }

    /// What opens the snapshot.
    fn opening(&self, client: &Client, facts: &Facts) -> Result<Opening, SourceError> {
        let attempt = "restore secrets into";
        let (kind, seal) = (detail(facts, SEAL), self.spec.restore.seal_configuration.clone());
        if kind != SHAMIR && seal.is_none() {
            let text =
                format!("the captured Vault was unsealed by {kind}, and the document does not say how to reach that");
            let need = "name a file with the seal block of its configuration in restore.sealConfiguration, and its recovery keys \
                        in restore.unsealKeys";
            return Err(client.error(attempt, text, need));
        }
        let keys = unseal_keys(&self.spec, client, facts, attempt, "the snapshot")?;
        Ok(Opening { keys, seal: seal.filter(|_| kind != SHAMIR) })
    }

    /// What was asked for, out of the Vault that the snapshot was opened in.
    fn captured(&self, context: &Context, aside: &Client) -> Result<Vec<Captured>, SourceError> {
        let mut all: Vec<Captured> = Vec::new();
        let mut bytes = 0;
        for path in &self.options.vault_paths {
            let bad = |text: String| SourceError::System {
                attempt: format!("look for {path} in the snapshot"),
                text,
                need: String::new(),
            };
            let engine = Engine::of(context, aside, path)?;
            let wanted = engine.within(path).map_err(bad)?;
            let is_folder = wanted.is_empty() || wanted.ends_with('/');
            let names =
                if is_folder { engine.below(context, aside, wanted, MAX_SECRETS)? } else { vec![wanted.to_owned()] };
            let before = all.len();
            for name in names {
                context.go_on()?;
                let Held::Secret(fields, _) = engine.read(context, aside, &name)? else { continue };
                bytes += fields.iter().map(|(key, value)| key.len() + value.get().len()).sum::<usize>();
                if all.len() >= MAX_SECRETS || bytes > MAX_BYTES {
                    return Err(bad(format!("it holds more than {MAX_SECRETS} secrets, or {} MiB", MAX_BYTES >> 20)));
                }
                let settings = if engine.versioned { engine.kept(context, aside, &name)? } else { Settings::default() };
                all.push(Captured { engine: engine.clone(), name, fields, settings });
            }
            if all.len() == before {
                let below = if is_folder { 0 } else { engine.below(context, aside, &format!("{wanted}/"), 1)?.len() };
                return Err(bad(match below {
                    0 => "it is not there, or was deleted by then".into(),
                    _ => format!("it is no secret, but a folder: ask for {path}/"),
                }));
            }
        }
        all.sort_by(|a, b| (&a.engine.mount, &a.name).cmp(&(&b.engine.mount, &b.name)));
        all.dedup_by(|a, b| a.engine == b.engine && a.name == b.name);
        Ok(all)
    }

    fn step(&self, context: &Context, client: &Client, captured: Captured) -> Result<Step, SourceError> {
        let path = captured.engine.path(&captured.name);
        let engine = Engine::of(context, client, &path)?;
        if engine != captured.engine {
            let kept = |engine: &Engine| if engine.versioned { "keeps versions" } else { "keeps none" };
            let (now, then) = (kept(&engine), kept(&captured.engine));
            let text = format!("{} {now}, and the captured one {then}", engine.mount);
            return Err(client.error(
                &format!("restore {path} into"),
                text,
                "mount an engine of the same version there",
            ));
        }
        let live = engine.read(context, client, &captured.name)?;
        let action = match &live {
            Held::Nothing | Held::Deleted(_) => Action::Create,
            Held::Secret(now, _) if same(now, &captured.fields) => Action::Unchanged,
            Held::Secret(..) => match self.options.existing {
                Existing::Skip => Action::Skip,
                Existing::Update => Action::Update,
                Existing::Replace => Action::Replace,
            },
        };
        Ok(Step { captured, live, action })
    }
}

/// Secrets that the login may not write are conflicts.
fn forbid(context: &Context, client: &Client, steps: &mut [Step]) -> Result<(), SourceError> {
    let writes = |step: &Step| matches!(step.action, Action::Create | Action::Update | Action::Replace);
    let paths: Vec<_> = steps.iter().filter(|step| writes(step)).map(Step::path).collect();
    if paths.is_empty() {
        return Ok(());
    }
    let request = client.request(Method::POST, "sys/capabilities-self").json(&json!({"paths": paths}));
    let answer = http::json(context, request)?;
    let answer = answer.map_err(|failure| client.failed("read the login's rights at", &failure, ""))?;
    for step in steps.iter_mut().filter(|step| writes(step)) {
        let path = step.path();
        let given = answer["data"][&path].as_array().or_else(|| answer[&path].as_array());
        let mut given = given.into_iter().flatten().filter_map(Value::as_str);
        if !given.any(|given| matches!(given, "root" | "create" | "update")) {
            let need = format!("path \"{path}\" {{ capabilities = [\"read\", \"create\", \"update\"] }}");
            step.action = Action::Conflict(format!("permission denied: the login's policy needs: {need}"));
        }
    }
    Ok(())
}

/// Writes one secret and reads it again. What keeps it from that becomes a conflict.
fn write(context: &Context, client: &Client, step: &mut Step, applied: &mut Applied) -> Result<(), SourceError> {
    let (path, seen) = (step.path(), step.live.version());
    let Captured { engine, name, fields, settings } = &step.captured;
    let changed = || Action::Conflict("it has changed since it was looked at; run the command again".into());
    // An engine without versions has no condition for it.
    if !engine.versioned {
        let unchanged = match (&step.live, &engine.read(context, client, name)?) {
            (Held::Secret(then, _), Held::Secret(now, _)) => same(then, now),
            (Held::Secret(..), _) | (_, Held::Secret(..)) => false,
            _ => true,
        };
        if !unchanged {
            step.action = changed();
            return Ok(());
        }
    }
    if let Err(failure) = engine.write(context, client, name, fields, seen)? {
        step.action = match &failure {
            Failure { status: Some(StatusCode::BAD_REQUEST), text } if text.contains("check-and-set") => changed(),
            failure => Action::Conflict(client.failed("write it to", failure, "").to_string()),
        };
        return Ok(());
    }
    match engine.read(context, client, name)? {
        Held::Secret(now, 0) if same(&now, fields) => applied.checked.push(format!("{path}: read back")),
        Held::Secret(now, version) if same(&now, fields) => {
            applied.checked.push(format!("{path}: read back as version {version}"));
        }
        _ => {
            let text = "what is read back is not what was written: somebody else has changed it".into();
            applied.problems.push(Problem { path: path.clone().into_bytes(), text });
        }
    }
    // Whoever is there keeps the settings that it has.
    if matches!(step.live, Held::Nothing)
        && engine.versioned
        && !settings.is_usual()
        && let Err(failure) = engine.keep(context, client, name, settings)?
    {
        applied.to_do.push(format!("{path}: set its metadata as it was captured: {}", failure.text));
    }
    Ok(())
}
