//! `lifeboat replicate`: a second copy of the repository, elsewhere.

use super::context::{Context, Opened, Use};
use super::fault::{Exit, Failure, Fault};
use super::output::{bytes, clock, count, print, print_json, time};
use super::progress::{self, Done};
use super::reference::check_source;
use crate::config::{self, Schedule};
use crate::id::SourceName;
use crate::policy::duration::Shown;
use crate::repo::{Access, Finding, Locking, Point, Replicated, Replicating, Replication, RepoError};
use crate::secret::SecretError;
use crate::store::{Memory, Store};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Sources at once; their packs share a limit of their own.
const SOURCES: usize = 4;

#[derive(clap::Args)]
pub struct Args {
    /// The replica: a Repository document's name, or a URL; made if there is nothing
    #[arg(long, value_name = "NAME|URL", required_unless_present = "schedule")]
    to: Option<String>,
    /// Only these sources
    #[arg(value_name = "SOURCE")]
    sources: Vec<SourceName>,
    /// The sources of this Schedule document, to the replica that it asks for
    #[arg(long, value_name = "SCHEDULE", conflicts_with_all = ["to", "sources"])]
    schedule: Option<String>,
    /// Say what would be copied, and copy nothing
    #[arg(long)]
    dry_run: bool,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let schedule = args.schedule.as_deref().map(|name| context.schedule(name)).transpose()?;
    let opened = context.open_for(schedule, Use::Read).await?;
    let access = access(context, &opened)?;
    let sources = sources(&opened, schedule, args.sources).await?;
    let asked = schedule.and_then(|schedule| schedule.replica.as_ref()).map(|replica| &replica.to);
    let Some(to) = args.to.as_ref().or(asked) else {
        let message = format!("the schedule {} asks for no replica", args.schedule.unwrap_or_default());
        return Err(Fault::usage(message, "add spec.replica to its document, or say --to").into());
    };
    let target = context.settings_of(to)?;
    if target.url == opened.settings.url && target.s3 == opened.settings.s3 {
        let hint = "name another place: a second bucket, region or provider";
        return Err(Fault::usage("a repository cannot be a replica of itself", hint).into());
    }
    let store = target_store(context, &target, args.dry_run).await?;
    let locking = Locking::new(Context::write_options(&target, 1).retain, clock());
    let how = Replicating { locking, dry_run: args.dry_run };
    let replication = Replication::begin(&opened.repository, store, how).await?;
    let bar = progress::show(context, "replicate", Some(0), {
        let seen = replication.seen.clone();
        move || Done {
            count: seen.packs.load(Ordering::Relaxed),
            unit: "packs",
            bytes: seen.bytes.load(Ordering::Relaxed),
            expected: seen.expected.load(Ordering::Relaxed),
        }
    });
    let (replication_ref, access) = (&replication, &access);
    let done: Vec<_> = futures_util::stream::iter(sources)
        .map(|source| async move { (replication_ref.source(&source, access).await, source) })
        .buffered(SOURCES)
        .collect()
        .await;
    drop(bar);
    // What keeps one source from being copied keeps no other.
    let (mut copied, mut failed): (Vec<(SourceName, Replicated)>, Vec<RepoError>) = (Vec::new(), Vec::new());
    for (done, source) in done {
        match done {
            Ok(done) => copied.push((source, done)),
            Err(error) => {
                let why = &error as &dyn std::error::Error;
                tracing::error!(source = source.as_str(), error = why, "that source is not copied");
                failed.push(error);
            }
        }
    }
    for (source, done) in &copied {
        tracing::info!(source = source.as_str(), snapshots = done.snapshots, bytes = done.bytes, "replicated");
    }
    let root = &replication.root;
    report(context, &opened, &target, args.dry_run, (root, &copied))?;
    if let Some(error) = failed.into_iter().next() {
        return if copied.is_empty() { Err(error.into()) } else { Ok(Exit::Incomplete) };
    }
    let whole =
        root.findings.is_empty() && copied.iter().all(|(_, done)| done.findings.is_empty() && done.parted.is_none());
    Ok(if whole { Exit::Ok } else { Exit::Incomplete })
}

/// Copying needs no key: one that the documents name, and that whoever replicates does not have, is done without.
fn access(context: &Context, opened: &Opened) -> Result<Access, Failure> {
    let given = context.globals.identity.is_some() || context.globals.writer_key.is_some();
    match context.access(opened) {
        Err(failure) if !given && failure.is::<SecretError>() => Ok(Access::None),
        other => other,
    }
}

/// Those that were named, or all. What a schedule names may have no snapshots yet.
async fn sources(
    opened: &Opened,
    schedule: Option<&Schedule>,
    named: Vec<SourceName>,
) -> Result<Vec<SourceName>, Failure> {
    let mut all = opened.repository.sources().await?;
    if let Some(schedule) = schedule {
        all.retain(|source| schedule.sources.contains(source));
        return Ok(all);
    }
    if named.is_empty() {
        return Ok(all);
    }
    for source in &named {
        check_source(&opened.repository, source).await?;
    }
    Ok(named)
}

/// Opens the place of the replica; a dry run makes none.
async fn target_store(
    context: &Context,
    target: &config::Repository,
    dry_run: bool,
) -> Result<Arc<dyn Store>, Failure> {
    if !dry_run {
        return context.store(target, Use::Create).await;
    }
    match &target.url {
        config::Url::Directory(path) if !path.exists() => Ok(Arc::new(Memory::new())),
        _ => context.store(target, Use::Read).await,
    }
}

fn report(
    context: &Context,
    opened: &Opened,
    target: &config::Repository,
    dry_run: bool,
    (root, copied): (&Replicated, &[(SourceName, Replicated)]),
) -> Result<(), Failure> {
    if context.globals.json {
        let sources: Vec<Value> = copied.iter().map(|(source, done)| describe(source, done)).collect();
        return print_json(&json!({
            "repository": opened.repository.root().id.to_string(),
            "from": opened.settings.url.to_string(),
            "to": target.url.to_string(),
            "dryRun": dry_run,
            "findings": root.findings,
            "sources": sources,
        }));
    }
    let mut text = findings(&root.findings);
    for (source, done) in copied {
        let verb = if dry_run { "to copy" } else { "copied" };
        text += &format!(
            "{source}: {verb} {}, {}, {}; {}\n{}",
            count(done.snapshots as u64, "snapshot", "snapshots"),
            count(done.packs as u64, "pack", "packs"),
            bytes(done.bytes),
            standing(source, done),
            findings(&done.findings)
        );
    }
    print(&text)
}

fn standing(source: &SourceName, done: &Replicated) -> String {
    let parted =
        done.parted.map(|own| format!("the replica has another {source}@{own}, not from here; of what is from here, "));
    parted.unwrap_or_default() + &lag(source, done)
}

fn lag(source: &SourceName, done: &Replicated) -> String {
    match (done.to, done.lag()) {
        (None, _) => "the replica has no snapshot that counts".into(),
        (Some(at), None) => format!("the replica is at {source}@{}, and there is none here", at.sequence),
        (Some(at), Some(lag)) if lag.is_zero() => {
            format!("the replica is up to date at {source}@{} ({})", at.sequence, time(at.time))
        }
        (Some(at), Some(lag)) => {
            format!("the replica is {} behind, at {source}@{} ({})", Shown(lag), at.sequence, time(at.time))
        }
    }
}

fn findings(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("  {}: {}\n", finding.object, finding.problem)).collect()
}

fn describe(source: &SourceName, done: &Replicated) -> Value {
    let point = |point: Option<Point>| point.map(|p| json!({"number": p.sequence, "recoveryPoint": p.time}));
    json!({
        "source": source.as_str(),
        "snapshots": done.snapshots,
        "packs": done.packs,
        "bytes": done.bytes,
        "newest": point(done.from),
        "replicaNewest": point(done.to),
        "replicaParted": done.parted,
        "lagSeconds": done.lag().map(|lag| lag.as_secs()),
        "findings": done.findings,
    })
}
