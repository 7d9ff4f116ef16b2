//! What a `RestorePlan` document says.
//!
//! A step without `after` follows the one before it, so a list is carried out from top to bottom; `after: []` begins at
//! once. Names of steps are unique in their plan; the steps of an included plan are `STEP/ITS-STEP`.

use crate::id::SourceName;
use crate::policy::{Tier, duration};
use crate::secret::SecretRef;
use crate::source::kubernetes::fence::Hold;
use crate::source::kubernetes::job;
use crate::source::probe::Probe;
use crate::source::target::{Existing, Options};
use crate::source::volume;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How much comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// One application: its objects, database, volumes, secrets.
    App,
    /// Several applications and what they share.
    Service,
    /// A control plane and what runs on it.
    Cluster,
    /// Everything, somewhere else.
    Region,
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::App => "app",
            Self::Service => "service",
            Self::Cluster => "cluster",
            Self::Region => "region",
        })
    }
}

/// A plan whose document was found right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub name: String,
    pub file: PathBuf,
    pub line: u64,
    pub level: Level,
    /// Whose recovery time objective holds; without one, the strictest of the sources that it restores.
    pub tier: Option<Tier>,
    /// For whoever reads the plan at night.
    pub about: String,
    pub steps: Vec<Step>,
}

/// The document's spec.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Document {
    pub level: Level,
    pub tier: Option<Tier>,
    #[serde(default)]
    pub about: String,
    pub steps: Vec<StepDocument>,
}

/// A step as it is written: the kinds are fields, so that a decoder can name them.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StepDocument {
    pub name: String,
    pub after: Option<Vec<String>>,
    #[serde(default, deserialize_with = "duration::text::optional")]
    pub timeout: Option<Duration>,
    #[serde(default)]
    pub retries: u32,
    #[serde(default)]
    pub on_failure: OnFailure,
    #[serde(default, deserialize_with = "duration::text::optional")]
    pub budget: Option<Duration>,
    pub restore: Option<Box<Restore>>,
    pub plan: Option<String>,
    pub probe: Option<Probe>,
    pub fence: Option<Fence>,
    pub unfence: Option<String>,
    pub run: Option<Run>,
    pub job: Option<Job>,
    pub ask: Option<String>,
}

/// How long one attempt may take, if the document does not say it.
fn patience(doing: &Doing) -> Duration {
    match doing {
        Doing::Probe(_) => Duration::from_mins(5),
        // People must be found first.
        Doing::Ask(_) => Duration::from_hours(24),
        _ => Duration::from_hours(1),
    }
}

const KINDS: &str = "restore, plan, probe, fence, unfence, run, job, ask";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub name: String,
    pub line: u64,
    /// The steps that must have ended well before.
    pub after: Vec<String>,
    /// Of one attempt; how long a probe is waited for.
    pub timeout: Duration,
    /// Further attempts after the first.
    pub retries: u32,
    pub on_failure: OnFailure,
    /// What it may take of the plan's recovery time objective.
    pub budget: Option<Duration>,
    pub doing: Doing,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// Nothing more is begun; fences stay closed; `--resume` goes on here.
    #[default]
    Stop,
    /// What follows goes on without it, and the end is "incomplete".
    Continue,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Doing {
    Restore(Box<Restore>),
    /// Carries out another plan; not in a resolved plan, which holds that plan's steps instead.
    Plan(String),
    Probe(Probe),
    Fence(Fence),
    /// Opens the fence that a step closed.
    Unfence(String),
    Run(Run),
    Job(Job),
    /// A person confirms what the text asks.
    Ask(String),
}

/// Brings one source back: into a running system (`into`, by default its own), a directory (`to`), a claim (`claim`), or a
/// file in its system's own format (`export`).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Restore {
    pub source: SourceName,
    /// A Source document that describes the target.
    pub into: Option<SourceName>,
    /// The directory's former content is moved aside, if `existing` allows it.
    pub to: Option<PathBuf>,
    /// The entries become the claim's content, through the API server. What it holds is moved aside as with `to`.
    pub claim: Option<volume::Named>,
    pub export: Option<PathBuf>,
    /// Only these entries and what is below them.
    #[serde(default)]
    pub paths: Vec<String>,
    #[serde(default)]
    pub options: Options,
}

impl Restore {
    /// The running system that it goes into.
    #[must_use]
    pub fn system(&self) -> Option<&SourceName> {
        match (&self.to, &self.claim, &self.export) {
            (None, None, None) => Some(self.into.as_ref().unwrap_or(&self.source)),
            _ => None,
        }
    }

    /// What it writes to on this machine.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.to.as_deref().or(self.export.as_deref())
    }

    /// Names what it writes to, the same for two steps that write to the same place.
    #[must_use]
    pub fn place(&self) -> String {
        match (self.system(), &self.claim, self.path()) {
            (Some(system), ..) => format!("the system {system}"),
            (_, Some(claim), _) => {
                format!("persistentvolumeclaim {}/{} of {}", claim.namespace, claim.name, claim.cluster)
            }
            (_, _, Some(path)) => path.display().to_string(),
            (None, None, None) => String::new(),
        }
    }
}

/// Whether two places, as [`Restore::place`] names them, are the same or one lies in the other.
#[must_use]
pub fn overlap(one: &str, other: &str) -> bool {
    let below = |inner: &str, outer: &str| outer.starts_with('/') && Path::new(inner).starts_with(outer);
    one == other || below(one, other) || below(other, one)
}

/// Holds something back until an `unfence` step: workloads, syncs and schedules of a cluster, or whatever a program does.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fence {
    /// A Source document of kind kubernetes.
    pub cluster: Option<SourceName>,
    #[serde(default)]
    pub hold: Hold,
    /// Closes the fence; done twice, it must be as done once.
    pub close: Option<Run>,
    /// Opens it again.
    pub open: Option<Run>,
}

/// A program, without a shell. The step lasts until its output is closed: what it starts and leaves running must be given an
/// output of its own.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Run {
    pub command: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, SecretRef>,
}

/// A Job of a cluster, run to its end.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Job {
    pub cluster: SourceName,
    /// A `batch/v1` Job.
    pub manifest: Value,
}

/// Takes a mistake: the field below the step, and what is wrong.
type Say<'a> = dyn FnMut(&str, &str) + 'a;

impl StepDocument {
    /// `before`: the step that it follows if it says nothing else. Says what no type can.
    pub fn into_step(self, line: u64, before: Option<&str>, directory: &Path, say: &mut Say<'_>) -> Option<Step> {
        let mut kinds: Vec<Doing> = [
            self.restore.map(Doing::Restore),
            self.plan.map(Doing::Plan),
            self.probe.map(Doing::Probe),
            self.fence.map(Doing::Fence),
            self.unfence.map(Doing::Unfence),
            self.run.map(Doing::Run),
            self.job.map(Doing::Job),
            self.ask.map(Doing::Ask),
        ]
        .into_iter()
        .flatten()
        .collect();
        if self.name.parse::<SourceName>().is_err() {
            say("name", "expected a name of lower-case letters, digits and hyphens");
        }
        if kinds.len() != 1 {
            say("", &format!("expected exactly one of {KINDS}"));
        }
        let mut doing = kinds.pop()?;
        doing.check(directory, say);
        Some(Step {
            name: self.name,
            line,
            after: self.after.unwrap_or_else(|| before.map(str::to_owned).into_iter().collect()),
            timeout: self.timeout.unwrap_or_else(|| patience(&doing)),
            retries: self.retries,
            on_failure: self.on_failure,
            budget: self.budget,
            doing,
        })
    }
}

impl Doing {
    /// The field of a document that holds it.
    #[must_use]
    pub fn field(&self) -> &'static str {
        match self {
            Self::Restore(_) => "restore",
            Self::Plan(_) => "plan",
            Self::Probe(_) => "probe",
            Self::Fence(_) => "fence",
            Self::Unfence(_) => "unfence",
            Self::Run(_) => "run",
            Self::Job(_) => "job",
            Self::Ask(_) => "ask",
        }
    }

    /// The Source documents that it needs, by the field that names them.
    #[must_use]
    pub fn documents(&self) -> Vec<(&'static str, &SourceName)> {
        match self {
            // A source that is restored as files needs no document: the repository knows it.
            Self::Restore(restore) => match (restore.system(), &restore.into, &restore.claim) {
                (Some(system), Some(_), _) => vec![("restore.into", system)],
                (Some(system), None, _) => vec![("restore.source", system)],
                (None, _, Some(claim)) => vec![("restore.claim.cluster", &claim.cluster)],
                (None, _, None) => Vec::new(),
            },
            Self::Probe(probe) => probe.document().into_iter().map(|name| ("probe", name)).collect(),
            Self::Fence(fence) => fence.cluster.iter().map(|name| ("fence.cluster", name)).collect(),
            Self::Job(job) => vec![("job.cluster", &job.cluster)],
            Self::Plan(_) | Self::Unfence(_) | Self::Run(_) | Self::Ask(_) => Vec::new(),
        }
    }

    fn check(&mut self, directory: &Path, say: &mut Say<'_>) {
        match self {
            Self::Restore(restore) => restore.check(say),
            Self::Probe(probe) => probe.lint(directory, &mut |field, text| say(&format!("probe.{field}"), text)),
            Self::Fence(fence) => fence.check(say),
            Self::Run(run) => run.check("run", say),
            Self::Job(its) => {
                job::check(&its.manifest, &mut |field, text| say(&format!("job.manifest.{field}"), text));
            }
            Self::Ask(text) if text.trim().is_empty() => say("ask", "expected what a person is to confirm"),
            Self::Ask(_) | Self::Plan(_) | Self::Unfence(_) => {}
        }
    }
}

impl Restore {
    fn check(&self, say: &mut Say<'_>) {
        let given = [self.into.is_some(), self.to.is_some(), self.claim.is_some(), self.export.is_some()];
        if given.into_iter().filter(|given| *given).count() > 1 {
            say("restore", "expected at most one of into, to, claim and export");
        }
        if let Some(claim) = &self.claim {
            claim.check(&mut |field, text| say(&format!("restore.claim.{field}"), text));
        }
        for (field, path) in [("restore.to", &self.to), ("restore.export", &self.export)] {
            if path.as_ref().is_some_and(|path| !path.is_absolute() || path.parent().is_none()) {
                say(field, "expected an absolute path, and not the root");
            }
        }
        self.options.check(&mut |field, text| say(&format!("restore.options.{field}"), text));
        if self.system().is_none()
            && self.options != (Options { existing: self.options.existing, ..Options::default() })
        {
            say("restore.options", "files are restored as they are: only existing has a meaning here");
        }
        if (self.to.is_some() || self.claim.is_some()) && self.options.existing == Existing::Update {
            say("restore.options.existing", "what is there is replaced or left alone: expected skip or replace");
        }
    }
}

impl Fence {
    fn check(&self, say: &mut Say<'_>) {
        match (&self.cluster, &self.close, &self.open) {
            (Some(_), None, None) => self.hold.check(&mut |field, text| say(&format!("fence.hold.{field}"), text)),
            (None, Some(close), Some(open)) => {
                close.check("fence.close", say);
                open.check("fence.open", say);
            }
            _ => say("fence", "expected either cluster and hold, or the programs close and open"),
        }
    }
}

impl Run {
    fn check(&self, field: &str, say: &mut Say<'_>) {
        if self.command.first().is_none_or(String::is_empty) {
            say(&format!("{field}.command"), "expected a program and its arguments");
        }
    }
}
