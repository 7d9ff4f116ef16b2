//! `lifeboat doctor`: what would keep a backup or a restore from working, and what to do about it.

use super::context::{Context, Opened, Use};
use super::fault::{Exit, Failure, Fault, chain, classify};
use super::output::{clock, count, print, print_json};
use super::restore;
use super::status::control_plane_text;
use crate::config::Config;
use crate::policy::duration::Shown;
use crate::repo::Access;
use crate::restore::plan::lint::lint;
use crate::source;
use crate::source::escrow::{Newest, findings as escrow_findings};
use crate::source::files::control_plane;
use crate::store::{PutOptions, Store};
use bytes::Bytes;
use serde_json::{Value, json};
use std::time::Duration;

#[derive(clap::Args)]
pub struct Args {
    /// Do not write a test object; the clock and the right to write are not checked then
    #[arg(long)]
    read_only: bool,
    /// Look from the machine that restores: the recovery identity and every plan, not what agents do. Writes nothing
    #[arg(long)]
    restore: bool,
}

/// A clock further off than this would date recovery points wrongly.
const CLOCK: Duration = Duration::from_mins(1);
/// A source that does not answer by then is not reachable.
const PATIENCE: Duration = Duration::from_secs(30);

struct Check {
    name: String,
    result: Result<String, Failure>,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let mut checks = Vec::new();
    let mut add = |name: &str, result| checks.push(Check { name: name.into(), result });
    add("configuration", configuration(context));
    let settings = context.settings();
    let read_only = args.read_only || args.restore;
    let use_ = if read_only { Use::Read } else { Use::Write };
    match settings {
        Err(failure) => add("repository", Err(failure)),
        Ok(settings) => match context.open_as(settings, use_).await {
            Err(failure) => add("repository", Err(failure)),
            Ok(opened) => {
                let root = opened.repository.root();
                add("repository", Ok(format!("{} at {}", root.id, opened.settings.url)));
                let keys = if args.restore { identity(context, &opened) } else { keys(context, &opened) };
                let fit = keys.is_ok();
                add("keys", keys);
                if let Some(result) = kept(context, &opened).await.transpose() {
                    add("keys in snapshots", result);
                }
                if !read_only {
                    add("writing and clock", write(context, opened.repository.store().as_ref()).await);
                }
                if let (true, Ok(config)) = (args.restore && fit, context.config()) {
                    for plan in config.plans.values() {
                        let readiness = restore::readiness(context, &opened, plan).await;
                        add(&format!("plan {}", plan.name), readiness);
                    }
                }
            }
        },
    }
    if let Ok(config) = context.config() {
        checks.push(Check { name: "escrow".into(), result: escrow(config) });
        if !config.plans.is_empty() {
            checks.push(Check { name: "restore plans".into(), result: plans(config) });
        }
        for known in config.sources.values().filter(|_| !args.restore) {
            let name = format!("source {}", known.name);
            checks.push(Check { name, result: reach(&known.capture).await });
        }
    }
    let well = checks.iter().all(|check| check.result.is_ok());
    if context.globals.json {
        print_json(&json!({ "ok": well, "checks": checks.iter().map(describe).collect::<Vec<_>>() }))?;
    } else {
        print(&checks.iter().map(line).collect::<String>())?;
    }
    Ok(if well { Exit::Ok } else { Exit::Failed })
}

fn configuration(context: &Context) -> Result<String, Failure> {
    let config = context.config()?;
    let mistakes = config.lint(clock(), |_| None);
    if !mistakes.is_empty() {
        return Err(Fault::Mistakes(mistakes).into());
    }
    let sources = count(config.sources.len() as u64, "source", "sources");
    Ok(format!("{sources}, {}", count(config.schedules.len() as u64, "schedule", "schedules")))
}

/// Whether the keys that the sources' snapshots need are kept.
fn escrow(config: &Config) -> Result<String, Failure> {
    let missing = config.escrow();
    if missing.is_empty() {
        return Ok("no source lacks keys that its snapshots need, as far as the documents tell".into());
    }
    Err(Fault::Failed { message: missing.join("; "), hint: None }.into())
}

/// Whether the newest snapshots hold the keys that they are worth nothing without. `None`: there is nothing to say, or no
/// key to look with.
async fn kept(context: &Context, opened: &Opened) -> Result<Option<String>, Failure> {
    let (config, access) = (context.config()?, context.access(opened)?);
    let (mut planes, mut lacking, mut objects) = (Vec::new(), Vec::new(), Vec::new());
    for source in config.sources.values() {
        if !matches!(source.capture, source::Spec::Files(_) | source::Spec::Git(_) | source::Spec::Kubernetes(_)) {
            continue;
        }
        let newest = opened.lineage(&source.name, &access).newest().await?;
        let Some(catalogue) = newest.snapshot.and_then(|snapshot| snapshot.catalogue) else { continue };
        let (details, held_elsewhere) = (catalogue.facts.details, !source.held_elsewhere.is_empty());
        if !held_elsewhere {
            let found: Vec<_> =
                control_plane::findings(&details).map(|(name, state)| control_plane_text(name, state)).collect();
            if found.is_empty() && details.keys().any(|name| name.starts_with(control_plane::FACT)) {
                planes.push(source.name.as_str());
            }
            lacking.extend(found.into_iter().map(|text| format!("{}: {text}", source.name)));
            lacking.extend(source::kubernetes::escrow::decryption(&details));
        }
        objects.push((&source.name, details, held_elsewhere));
    }
    let newest = objects.iter().map(|(source, details, held_elsewhere)| Newest {
        source: source.as_str(),
        details,
        held_elsewhere: *held_elsewhere,
    });
    lacking.extend(escrow_findings(&newest.collect::<Vec<_>>(), &config.vaults()));
    if !lacking.is_empty() {
        return Err(Fault::Failed { message: lacking.join("; "), hint: None }.into());
    }
    let said = format!("the newest snapshots of {} hold what a control plane needs", planes.join(", "));
    Ok((!planes.is_empty()).then_some(said))
}

/// Whether somebody would notice what a plan does not bring back.
fn plans(config: &Config) -> Result<String, Failure> {
    let ties = config.ties();
    let found = config.plans.values().flat_map(|plan| lint(&config.plans, plan, &ties).warnings);
    let found: Vec<_> = found.map(|finding| finding.to_string()).collect();
    if found.is_empty() {
        return Ok(count(config.plans.len() as u64, "plan", "plans") + ", each step of which is looked at afterwards");
    }
    Err(Fault::Failed { message: found.join("; "), hint: Some("see docs/plans.md".into()) }.into())
}

fn identity(context: &Context, opened: &Opened) -> Result<String, Failure> {
    let (root, identity) = (opened.repository.root(), context.require_identity(opened)?);
    let Err(error) = root.unlock(&identity) else { return Ok("the recovery identity fits".into()) };
    let key = identity.public();
    let own = root.recipients().iter().find(|one| one.key == key).ok_or(error)?;
    Ok(format!("the identity of {} opens contents; it is no recovery identity, and keeps no journals here", own.name))
}

fn keys(context: &Context, opened: &Opened) -> Result<String, Failure> {
    let root = opened.repository.root();
    let mut said = Vec::new();
    if let Some(key) = context.writer_key(opened)? {
        root.accept_writer(&key)?;
        said.push("the writer key fits");
    }
    if let Access::Recipient(identity) = context.access(opened)? {
        root.unlock(&identity)?;
        said.push("the recovery identity fits");
    }
    if said.is_empty() {
        let hint = "give --writer-key FILE to back up, --identity FILE to restore";
        return Err(Fault::usage("no key is given", hint).into());
    }
    Ok(said.join(", "))
}

/// Writes a small object, which also tells the store's time, reads it back and removes it.
async fn write(context: &Context, store: &dyn Store) -> Result<String, Failure> {
    let key = format!("_check/doctor-{}", context.run);
    let before = clock();
    store.put(&key, Bytes::from_static(b"lifeboat doctor"), PutOptions::default()).await?;
    let met = store.head(&key).await;
    let removed = store.delete(&key).await;
    let ahead = met?.modified.duration_since(before);
    if ahead.unsigned_abs() > CLOCK {
        let message = format!("the store's clock and this machine's are {} apart", Shown(ahead.unsigned_abs()));
        let hint = Some("set both by NTP: ages and retention go by them".into());
        return Err(Fault::Failed { message, hint }.into());
    }
    Ok(match removed {
        Ok(()) => "an object was written, read and removed; the clocks agree".into(),
        // As it should be: the agent need not be able to delete.
        Err(_) => format!("an object was written and read, and may not be removed ({key} stays); the clocks agree"),
    })
}

async fn reach(capture: &source::Spec) -> Result<String, Failure> {
    let mut opened = capture.open()?;
    let world = source::Context::new(source::Cancel::default(), clock(), PATIENCE);
    let cancel = world.cancel.clone();
    let checking = tokio::task::spawn_blocking(move || opened.check(&world));
    if let Ok(checked) = tokio::time::timeout(PATIENCE, checking).await {
        return Ok(checked??.join("; "));
    }
    cancel.cancel();
    let hint = Some("is it reachable from here?".into());
    Err(Fault::Failed { message: format!("it did not answer within {}", Shown(PATIENCE)), hint }.into())
}

fn line(check: &Check) -> String {
    match &check.result {
        Ok(said) => format!("ok      {}: {said}\n", check.name),
        Err(failure) => {
            let mut text = format!("FAILED  {}: {}\n", check.name, chain(failure.as_ref()).join(": "));
            if let Some(Fault::Mistakes(mistakes)) = failure.downcast_ref::<Fault>() {
                text.extend(mistakes.iter().map(|mistake| format!("          {mistake}\n")));
            }
            if let (_, Some(hint)) = classify(failure.as_ref()) {
                text += &format!("        hint: {hint}\n");
            }
            text
        }
    }
}

fn describe(check: &Check) -> Value {
    match &check.result {
        Ok(said) => json!({ "check": check.name, "ok": true, "text": said }),
        Err(failure) => {
            let hint = classify(failure.as_ref()).1;
            json!({ "check": check.name, "ok": false, "text": chain(failure.as_ref()).join(": "), "hint": hint })
        }
    }
}
