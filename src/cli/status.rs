//! `lifeboat status`: does every source keep its promise, here and at the replica?

mod replica;

use super::context::{Context, Opened, Use};
use super::fault::{Exit, Failure, chain, classify, is_away};
use super::output::{bytes, clock, print, print_json, table, time};
use super::reference::missing_text;
use super::snapshots::{state, way_out};
use crate::config::Config;
use crate::id::{Sequence, SourceName};
use crate::policy::Tier;
use crate::policy::duration::Shown;
use crate::policy::objective::{self, Objective, Verdict};
use crate::repo::{Access, Lineage, Newest, Selector, Snapshot, State};
use crate::source::escrow;
use crate::source::files::control_plane;
use crate::source::kubernetes;
use jiff::SignedDuration;
use replica::{Copied, Replicas};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

#[derive(clap::Args)]
pub struct Args {
    /// Only these sources
    #[arg(value_name = "SOURCE")]
    sources: Vec<SourceName>,
    /// Do not look at the replicas that schedules ask for
    #[arg(long)]
    no_replicas: bool,
}

/// What is said of one source.
struct Report {
    source: SourceName,
    tier: Option<Tier>,
    newest: Option<Snapshot>,
    snapshots: usize,
    objective: Objective,
    /// Change of the content's size over about a day.
    growth: Option<i64>,
    warnings: Vec<String>,
    /// How far each replica is that schedules ask for.
    replicas: Vec<Copied>,
    /// Snapshots that should be there are not, or are not sound.
    unsound: bool,
}

/// Clocks differ by less.
const AHEAD: SignedDuration = SignedDuration::from_mins(1);

impl Report {
    /// One of which nothing can be said.
    fn unread(source: SourceName, config: &Config, failure: &(dyn std::error::Error + 'static)) -> Self {
        let tier = config.tier(&source);
        let objective = objective::judge(tier.unwrap_or(Tier::Development), None, clock());
        let warnings = vec![format!("it cannot be judged: {}", chain(failure).join(": "))];
        let (newest, growth, replicas) = (None, None, Vec::new());
        Self { source, tier, newest, snapshots: 0, objective, growth, warnings, replicas, unsound: true }
    }
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let opened = context.open(Use::Read).await?;
    let access = context.access(&opened)?;
    let mut memory = Memory::load(&opened);
    let mut replicas = Replicas::default();
    let mut reports = Vec::new();
    for source in sources(context, &opened, &memory, &args).await? {
        let mut report = match look(context, &opened, &access, &mut memory, source.clone()).await {
            Err(failure) if !is_away(failure.as_ref()) && classify(failure.as_ref()).0 != Exit::WrongKey => {
                Report::unread(source, context.config()?, failure.as_ref())
            }
            looked => looked?,
        };
        // A first backup that failed leaves a name and keys.
        let asked_for = !args.sources.is_empty() || context.config()?.sources.contains_key(&report.source);
        if report.snapshots == 0 && !report.unsound && !asked_for {
            continue;
        }
        if !args.no_replicas {
            let copies = replicas.look(context, &opened, &access, &report.source, report.newest.as_ref()).await?;
            report.warnings.extend(copies.iter().filter_map(Copied::warning));
            report.unsound |= copies.iter().any(Copied::has_its_own);
            report.replicas = copies;
        }
        reports.push(report);
    }
    if let Err(why) = memory.save() {
        tracing::warn!(
            error = why.as_ref() as &dyn std::error::Error,
            "the state file cannot be written: a hidden newest snapshot will not be noticed"
        );
    }
    // Another source may hold it, or its document say who does: only all of them together tell.
    let mut findings = Vec::new();
    if context.mistakes().is_empty() {
        findings = context.config()?.escrow();
        if args.sources.is_empty() {
            findings.extend(together(context.config()?, &reports));
        }
    }
    if context.globals.json {
        let all: Vec<Value> = reports.iter().map(describe).collect();
        let repository = opened.repository.root().id.to_string();
        let mistakes = context.mistakes();
        print_json(&json!({ "repository": repository, "sources": all, "findings": findings, "mistakes": mistakes }))?;
    } else {
        let findings: String = findings.iter().map(|finding| format!("! {finding}\n")).collect();
        print(&(text(&reports) + &findings))?;
    }
    let any = |bad: fn(&Report) -> bool| reports.iter().any(bad);
    Ok(if any(|r| r.unsound) {
        Exit::Failed
    } else if any(|r| (r.tier.is_some() || r.newest.is_none()) && r.objective.verdict != Verdict::Met)
        || any(|r| r.replicas.iter().any(|copy| !copy.keeps(r.tier)))
    {
        Exit::Missed
    } else if !context.mistakes().is_empty() {
        Exit::Usage // what is left out was not judged
    } else if any(|r| r.newest.as_ref().is_some_and(|newest| newest.state() == State::Incomplete)) {
        Exit::Incomplete
    } else {
        Exit::Ok
    })
}

/// What the newest snapshots together do not hold of the keys that they are worth nothing without.
fn together(config: &Config, reports: &[Report]) -> Vec<String> {
    let newest = reports.iter().filter_map(|report| {
        let catalogue = report.newest.as_ref()?.catalogue.as_ref()?;
        let held_elsewhere = config.sources.get(&report.source).is_some_and(|source| !source.held_elsewhere.is_empty());
        Some(escrow::Newest { source: report.source.as_str(), details: &catalogue.facts.details, held_elsewhere })
    });
    escrow::findings(&newest.collect::<Vec<_>>(), &config.vaults())
}

/// Those that have snapshots, should have some, or had some.
async fn sources(
    context: &Context,
    opened: &Opened,
    memory: &Memory,
    args: &Args,
) -> Result<BTreeSet<SourceName>, Failure> {
    if !args.sources.is_empty() {
        return Ok(args.sources.iter().cloned().collect());
    }
    let mut all: BTreeSet<_> = opened.repository.sources().await?.into_iter().collect();
    all.extend(memory.state.sources.keys().filter_map(|name| name.parse().ok()));
    let config = context.config()?;
    let here = |repository: &str| repository == opened.settings.name;
    let scheduled = config.schedules.values().filter(|s| here(&s.repository)).flat_map(|s| s.sources.clone());
    all.extend(scheduled);
    // Without schedules, every document is meant for the one repository there is.
    if config.schedules.is_empty() && context.mistakes().is_empty() {
        all.extend(config.sources.keys().cloned());
    }
    Ok(all)
}

async fn look(
    context: &Context,
    opened: &Opened,
    access: &Access,
    memory: &mut Memory,
    source: SourceName,
) -> Result<Report, Failure> {
    let lineage = opened.lineage(&source, access);
    let listed = lineage.list().await?;
    let newest = lineage.newest().await?;
    let mut warnings = Vec::new();
    let vanished = memory.compare(&source, newest.highest(), &mut warnings);
    for step in &newest.stepped_over {
        warnings.push(format!("snapshot {} does not count: {}", step.sequence, chain(&step.error).join(": ")));
    }
    let missing = lineage.missing_lately().await?;
    if !missing.is_empty() {
        warnings.push(format!("{}, and no prune record explains it", missing_text(&missing)));
    }
    quarantine(&lineage, &newest, &mut warnings).await?;
    let growth = match &newest.snapshot {
        Some(snapshot) => growth(&lineage, snapshot, &listed).await?,
        None => None,
    };
    if newest.snapshot.as_ref().is_some_and(|s| s.state() == State::Incomplete) {
        warnings.push("the newest snapshot is incomplete: see `lifeboat show`".into());
    }
    let held = |source: &SourceName| {
        context.config().is_ok_and(|config| config.sources.get(source).is_some_and(|s| !s.held_elsewhere.is_empty()))
    };
    if let Some(catalogue) = newest.snapshot.as_ref().and_then(|s| s.catalogue.as_ref()).filter(|_| !held(&source)) {
        for (name, state) in control_plane::findings(&catalogue.facts.details) {
            warnings.push(control_plane_text(name, state));
        }
        warnings.extend(kubernetes::escrow::decryption(&catalogue.facts.details));
    }
    let tier = context.config()?.tier(&source);
    // No data are younger than the snapshot that they are in.
    let point = newest.snapshot.as_ref().map(|snapshot| snapshot.recovery_point().min(snapshot.stored_at));
    let dated_ahead = point.is_some_and(|point| point.duration_since(clock()) > AHEAD);
    if dated_ahead {
        warnings.push(
            "the newest snapshot is dated in the future: a clock is wrong, and how old it is is not known".into(),
        );
    }
    let unsound = vanished || !missing.is_empty() || !newest.stepped_over.is_empty() || dated_ahead;
    // Without a tier there is no objective; the age counts all the same.
    let objective = objective::judge(tier.unwrap_or(Tier::Development), point, clock());
    let (snapshots, replicas) = (listed.len(), Vec::new());
    Ok(Report { source, tier, newest: newest.snapshot, snapshots, objective, growth, warnings, replicas, unsound })
}

/// Says that a snapshot does not hold what a control plane needs.
pub fn control_plane_text(name: &str, state: &str) -> String {
    let place = name.split_once(' ').map_or_else(String::new, |(_, at)| format!(" (in {at})"));
    format!(
        "the newest snapshot cannot rebuild a control plane that reads an etcd snapshot{place}: {state}; capture that too, \
         or say in heldElsewhere who keeps it"
    )
}

/// Names the snapshots in quarantine that are newer than the newest good one.
async fn quarantine(lineage: &Lineage, newest: &Newest, warnings: &mut Vec<String>) -> Result<(), Failure> {
    let good = newest.snapshot.as_ref().map(Snapshot::sequence);
    let Some((tip, _)) = newest.tip.filter(|(tip, _)| Some(*tip) != good) else { return Ok(()) };
    let (snapshot, _) = lineage.find(&Selector::Number(tip)).await?;
    let reasons = snapshot.catalogue.map_or_else(|| "give a key to see why".into(), |c| c.reasons.join("; "));
    let what_to_do = way_out(lineage.source(), tip);
    warnings.push(format!("snapshot {tip} is in quarantine: {reasons}; {what_to_do}"));
    Ok(())
}

/// How much larger the newest is than the one a day before it.
async fn growth(
    lineage: &Lineage,
    newest: &Snapshot,
    listed: &[(Sequence, crate::store::ObjectMeta)],
) -> Result<Option<i64>, Failure> {
    let Some(now) = &newest.catalogue else { return Ok(None) };
    let day_before = newest.stored_at.saturating_sub(SignedDuration::from_hours(24))?;
    let older = listed.iter().filter(|(sequence, _)| *sequence < newest.sequence());
    let Some((sequence, meta)) = older.min_by_key(|(_, meta)| meta.modified.duration_since(day_before).abs()) else {
        return Ok(None);
    };
    // One that does not count has been reported, or will be by `verify`.
    let then = lineage.read(*sequence, meta).await.ok().and_then(|s| s.catalogue);
    Ok(then.map(|then| now.bytes.cast_signed() - then.bytes.cast_signed()))
}

fn text(reports: &[Report]) -> String {
    if reports.is_empty() {
        return "no sources yet: lifeboat backup\n".into();
    }
    let heading =
        ["SOURCE", "TIER", "RECOVERY POINT", ">AGE", ">OBJECTIVE", "VERDICT", ">SNAPSHOTS", ">SIZE", ">A DAY"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    let copied = reports.iter().any(|report| !report.replicas.is_empty());
    if copied {
        rows[0].push("REPLICA".into());
    }
    let mut notes = String::new();
    for report in reports {
        let mut cells = row(report);
        if copied {
            cells.push(report.replicas.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
        }
        rows.push(cells);
        for warning in &report.warnings {
            notes += &format!("! {}: {warning}\n", report.source);
        }
    }
    table(&rows) + &notes
}

fn row(report: &Report) -> Vec<String> {
    let none = || "-".to_owned();
    let catalogue = report.newest.as_ref().and_then(|s| s.catalogue.as_ref());
    let growth = report.growth.map(|g| format!("{}{}", if g < 0 { "-" } else { "+" }, bytes(g.unsigned_abs())));
    vec![
        report.source.to_string(),
        report.tier.map_or_else(none, |tier| tier.to_string()),
        report.newest.as_ref().map_or_else(none, |s| time(s.recovery_point())),
        report.objective.age.map_or_else(none, |age| Shown(age).to_string()),
        report.tier.map_or_else(none, |tier| Shown(tier.rpo()).to_string()),
        verdict(report).into(),
        report.snapshots.to_string(),
        catalogue.map_or_else(none, |c| bytes(c.bytes)),
        growth.unwrap_or_else(none),
    ]
}

fn verdict(report: &Report) -> &'static str {
    match (report.tier, report.objective.verdict) {
        (_, Verdict::Never) => "never",
        (None, _) => "no tier",
        (_, Verdict::Met) => "met",
        (_, Verdict::Missed) => "missed",
    }
}

fn describe(report: &Report) -> Value {
    let catalogue = report.newest.as_ref().and_then(|s| s.catalogue.as_ref());
    let seconds = |duration: Duration| duration.as_secs_f64();
    json!({
        "source": report.source.as_str(),
        "tier": report.tier,
        "verdict": verdict(report),
        "recoveryPoint": report.newest.as_ref().map(Snapshot::recovery_point),
        "ageSeconds": report.objective.age.map(seconds),
        "rpoSeconds": report.tier.map(|t| seconds(t.rpo())),
        "number": report.newest.as_ref().map(|s| s.sequence().0),
        "state": report.newest.as_ref().map(|s| state(s.state())),
        "snapshots": report.snapshots,
        "replicas": report.replicas.iter().map(|copy| copy.describe(report.tier)).collect::<Vec<_>>(),
        "bytes": catalogue.map(|c| c.bytes),
        "newBytes": catalogue.map(|c| c.new_bytes),
        "storedBytes": catalogue.map(|c| c.stored_bytes),
        "growthBytes": report.growth,
        "sound": !report.unsound,
        "warnings": report.warnings,
    })
}

/// The highest number ever seen of each source. A store that hides the newest snapshot is found out by it alone.
struct Memory {
    path: Option<PathBuf>,
    state: Seen,
}

#[derive(Default, Serialize, Deserialize)]
struct Seen {
    sources: BTreeMap<String, u64>,
}

impl Memory {
    fn load(opened: &Opened) -> Self {
        let path = state_directory().map(|d| d.join("lifeboat").join(format!("{}.json", opened.repository.root().id)));
        let text = path.as_deref().and_then(|path| std::fs::read_to_string(path).ok());
        let state = text.map(|text| {
            serde_json::from_str(&text).unwrap_or_else(|error| {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the state file cannot be read; it begins afresh"
                );
                Seen::default()
            })
        });
        Self { path, state: state.unwrap_or_default() }
    }

    /// Remembers the highest number, and says if a higher one was seen before.
    fn compare(&mut self, source: &SourceName, highest: Option<Sequence>, warnings: &mut Vec<String>) -> bool {
        let highest = highest.map_or(0, |s| s.0);
        let before = self.state.sources.get(source.as_str()).copied().unwrap_or(0);
        if highest > before {
            self.state.sources.insert(source.to_string(), highest);
        }
        if highest < before {
            let last = if highest == 0 { "none is there now".into() } else { format!("the newest is {highest} now") };
            warnings.push(format!(
                "snapshot {before} has vanished: {last}, and the newest is never pruned; find out who removed it"
            ));
        }
        highest < before
    }

    fn save(&self) -> Result<(), Failure> {
        let Some(path) = &self.path else { return Err("neither XDG_STATE_HOME nor HOME is set".into()) };
        let parent = path.parent().ok_or("the state file has no directory")?;
        std::fs::create_dir_all(parent)?;
        let temporary = path.with_extension(format!("{}.partial", std::process::id()));
        std::fs::write(&temporary, serde_json::to_vec(&self.state)?)?;
        Ok(std::fs::rename(&temporary, path)?)
    }
}

#[expect(clippy::disallowed_methods, reason = "the edge reads the environment")]
pub fn state_directory() -> Option<PathBuf> {
    let given = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    given("XDG_STATE_HOME").or_else(|| Some(given("HOME")?.join(".local/state")))
}
