//! The documents that people write: `Repository`, `Source`, `Schedule`, `RestorePlan`, in Kubernetes' form.
//!
//! Invariants: every mistake of every file is reported at once, with its file, line and field; a configuration with a
//! mistake is no configuration, but for reading and restoring, which take what is right of it ([`Config::sound`]). A document
//! never holds a secret, and no message repeats a value that might be one.
//! Deliberately absent: reading secrets, the clock, and defaults that depend on the machine.

mod cronjob;
mod decode;
mod escrow;
mod mistake;
mod node;
mod plan;
mod quantity;
mod repository;
mod schedule;
mod source;

pub use cronjob::{CronJob, CronJobError, Target, cronjobs, name_of_volume};
pub use mistake::{Mistake, nearest};
pub use quantity::{InvalidSize, Size};
pub use repository::{
    Compression, Credentials, Encryption, InvalidUrl, Limits, LockMode, ObjectLock, Repository, S3,
    ServerSideEncryption, Url,
};
pub use schedule::{Replica, Schedule};
pub use source::Source;

use crate::id::SourceName;
use crate::policy::Tier;
use crate::policy::duration::Shown;
use crate::restore::plan::document::{Document, Doing, Plan};
use crate::restore::plan::lint::{Ties, lint};
use crate::restore::plan::resolve::Known;
use crate::source::Spec;
use crate::source::target::Options;
use decode::{Wrong, decode};
use jiff::Timestamp;
use mistake::allowed;
use node::Node;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

const API_VERSION: &str = "lifeboat.dev/v1";
const KINDS: [&str; 4] = ["Repository", "Source", "Schedule", "RestorePlan"];
const LATER_KINDS: [&str; 1] = ["Drill"];

/// Where a document begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    pub file: PathBuf,
    pub line: u64,
}

/// What is right of documents that may have mistakes.
#[derive(Clone, Debug, Default)]
pub struct Sound {
    pub config: Config,
    /// All of what is left out.
    pub mistakes: Vec<Mistake>,
    /// Whether a `Repository` may be among what is left out.
    pub lacks_repository: bool,
    /// Sources that are left out, as far as they are known.
    pub left_out: BTreeSet<String>,
}

/// All documents, by kind and name.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub repositories: BTreeMap<String, Repository>,
    pub sources: BTreeMap<SourceName, Source>,
    pub schedules: BTreeMap<String, Schedule>,
    pub plans: BTreeMap<String, Plan>,
}

impl Config {
    /// Reads files, and the `*.yaml` and `*.yml` files of directories (not of those below them).
    ///
    /// # Errors
    /// Every mistake found, by file and line.
    pub fn load(paths: &[PathBuf]) -> Result<Self, Vec<Mistake>> {
        let Sound { config, mistakes, .. } = Self::sound(paths);
        if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
    }

    /// Likewise, of documents that may have mistakes: those that have none and need none that has, and every mistake of the
    /// others. Sources and schedules stay, whatever becomes of the sources that they name.
    #[must_use]
    pub fn sound(paths: &[PathBuf]) -> Sound {
        let mut reader = Reader::default();
        for path in paths {
            match files(path) {
                Ok(files) => files.iter().for_each(|file| reader.file(file)),
                Err(why) => reader.unread(Mistake::of_file(path, format!("cannot be read: {why}"))),
            }
        }
        reader.references();
        reader.order();
        reader.leave_out();
        reader.plans();
        reader.leave_out();
        reader.mistakes.sort();
        reader.mistakes.dedup();
        let Reader { config, mistakes, lacks_repository, seen, .. } = reader;
        let sources = seen.into_keys().filter(|(kind, _)| kind == "Source").map(|(_, name)| name);
        let left_out = sources.filter(|name| !config.has("Source", name)).collect();
        Sound { config, mistakes, lacks_repository, left_out }
    }

    fn has(&self, kind: &str, name: &str) -> bool {
        match kind {
            "Repository" => self.repositories.contains_key(name),
            "Source" => self.sources.keys().any(|source| source.as_str() == name),
            "RestorePlan" => self.plans.contains_key(name),
            _ => self.schedules.contains_key(name),
        }
    }

    /// The strictest that is asked for a source: by itself, else by the schedules that name it.
    #[must_use]
    pub fn tier(&self, source: &SourceName) -> Option<Tier> {
        let own = self.sources.get(source).and_then(|s| s.tier);
        own.or_else(|| self.schedules_of(source).map(|s| s.tier).min())
    }

    /// What matters of the sources to a restore plan.
    #[must_use]
    pub fn known(&self) -> BTreeMap<SourceName, Known> {
        let known = |source: &Source| Known {
            kind: source.capture.field(),
            tier: self.tier(&source.name),
            running: matches!(source.capture.target(Options::default()), Ok(Some(_))),
        };
        self.sources.values().map(|source| (source.name.clone(), known(source))).collect()
    }

    /// How the sources hang together.
    #[must_use]
    pub fn ties(&self) -> Ties {
        let mut ties = Ties::default();
        for source in self.sources.values() {
            ties.needs.insert(source.name.clone(), source.needs.iter().cloned().collect());
            ties.after.insert(source.name.clone(), source.capture_after.iter().cloned().collect());
            if let Spec::Kubernetes(spec) = &source.capture {
                ties.clusters.insert(source.name.clone(), spec.way());
            }
        }
        ties
    }

    pub fn schedules_of(&self, source: &SourceName) -> impl Iterator<Item = &Schedule> {
        self.schedules.values().filter(move |s| s.sources.contains(source))
    }

    /// What cannot keep its promise: schedules whose worst case exceeds their tier's RPO, and sources that no schedule
    /// treats as strictly as they ask. `measured` gives what a schedule's runs took, upload included, if that is known.
    pub fn lint(&self, now: Timestamp, measured: impl Fn(&Schedule) -> Option<Duration>) -> Vec<Mistake> {
        let at = |at: &At, field: &str, message| Mistake {
            file: at.file.clone(),
            line: Some(at.line),
            field: field.into(),
            message,
        };
        let mut mistakes = Vec::new();
        for schedule in self.schedules.values() {
            let worst = schedule.worst_case(now, measured(schedule));
            if !worst.meets(schedule.tier) {
                let text = format!(
                    "schedule {}: its worst case exceeds its tier's RPO: {}",
                    schedule.name,
                    worst.arithmetic(schedule.tier)
                );
                mistakes.push(at(&schedule.at, "spec", text));
            }
            if let Some(worst) = schedule.worst_lag(now).filter(|worst| !worst.meets(schedule.tier)) {
                let text = format!(
                    "schedule {}: its replica can fall further behind than its tier's RPO: {}",
                    schedule.name,
                    worst.arithmetic(schedule.tier)
                );
                mistakes.push(at(&schedule.at, "spec.replica", text));
            }
            let limit = self.repositories.get(&schedule.repository).map(|r| r.run_limit);
            if let Some(limit) = limit.filter(|limit| *limit < schedule.max_duration) {
                let (most, limit) = (Shown(schedule.max_duration), Shown(limit));
                let text =
                    format!("schedule {}: {most} is more than its repository's runLimit ({limit})", schedule.name);
                mistakes.push(at(&schedule.at, "spec.maxDuration", text));
            }
        }
        for source in self.sources.values() {
            let strictest = self.schedules_of(&source.name).map(|s| s.tier).min();
            if let (Some(asked), Some(given)) = (source.tier, strictest)
                && given > asked
            {
                let text = format!("source {} asks for {asked}, but its strictest schedule is {given}", source.name);
                mistakes.push(at(&source.at, "spec.tier", text));
            }
        }
        mistakes.sort();
        mistakes
    }
}

/// The files that a path means.
fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.into()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        let yaml = file.extension().is_some_and(|e| e == "yaml" || e == "yml");
        if yaml && !file.is_dir() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn read(file: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(file)?.take(node::MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > node::MAX_BYTES {
        return Err(io::Error::other(format!("it is larger than {}", Size(node::MAX_BYTES))));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8"))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Envelope {
    #[serde(rename = "apiVersion")]
    _api_version: serde::de::IgnoredAny,
    #[serde(rename = "kind")]
    _kind: serde::de::IgnoredAny,
    metadata: Metadata,
    #[serde(rename = "spec")]
    _spec: serde::de::IgnoredAny,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Metadata {
    name: String,
    #[serde(default, rename = "namespace")]
    _namespace: Option<String>,
    #[serde(default, rename = "labels")]
    _labels: BTreeMap<String, String>,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
}

#[derive(Default)]
struct Reader {
    config: Config,
    mistakes: Vec<Mistake>,
    /// Where each (kind, name) was first given, whether its document is right or not.
    seen: BTreeMap<(String, String), At>,
    references: Vec<Reference>,
    /// Documents with mistakes of their own.
    wrong: BTreeSet<At>,
    lacks_repository: bool,
}

impl Reader {
    fn file(&mut self, file: &Path) {
        let documents = match read(file) {
            Ok(text) => node::parse(&text),
            Err(why) => return self.unread(Mistake::of_file(file, format!("cannot be read: {why}"))),
        };
        match documents {
            Ok(documents) => documents.iter().for_each(|document| {
                if let Err(wrong) = self.document(file, document) {
                    let kind = document.get("kind").and_then(Node::text);
                    self.lacks_repository |= !matches!(kind, Some("Source" | "Schedule" | "RestorePlan"));
                    self.wrong.insert(At { file: file.into(), line: document.line });
                    self.note(file, wrong);
                }
            }),
            Err(why) => self.unread(Mistake {
                line: why.line,
                ..Mistake::of_file(file, format!("cannot be read as YAML: {}", why.why))
            }),
        }
    }

    /// Nobody knows what is in that file.
    fn unread(&mut self, why: Mistake) {
        self.lacks_repository = true;
        self.mistakes.push(why);
    }

    fn note(&mut self, file: &Path, wrong: Vec<Wrong>) {
        self.mistakes.extend(wrong.into_iter().map(|Wrong { line, field, message }| Mistake {
            file: file.into(),
            line: Some(line),
            field,
            message,
        }));
    }

    fn document(&mut self, file: &Path, document: &Node) -> Result<(), Vec<Wrong>> {
        let wrong = |field: &str, message| vec![Wrong { line: document.line_of(field), field: field.into(), message }];
        let word = |field: &str| document.get(field).and_then(Node::text);
        match word("apiVersion") {
            Some(API_VERSION) => {}
            _ => return Err(wrong("apiVersion", format!("expected apiVersion: {API_VERSION}"))),
        }
        let kind = match word("kind") {
            Some(kind) if KINDS.contains(&kind) => kind,
            Some(kind) if LATER_KINDS.contains(&kind) => {
                let text = format!("documents of kind {kind} are not supported yet by this version");
                return Err(wrong("kind", text));
            }
            Some(kind) => return Err(wrong("kind", format!("{kind:?} is not known; {}", allowed(kind, KINDS)))),
            None => return Err(wrong("kind", format!("expected one of {}", KINDS.join(", ")))),
        };
        let place = Place { file, at: At { file: file.into(), line: document.line }, document };
        let mut found = Vec::new();
        let name = match decode::<Envelope>(document, document.line, "", place.directory()) {
            Ok(envelope) => {
                envelope.metadata.name.parse::<SourceName>().map_err(|why| wrong("metadata.name", why.rule.into()))
            }
            Err(more) => Err(more),
        };
        let name = name.map_err(|more| found.extend(more)).ok();
        if let Some(name) = &name {
            let key = (kind.to_owned(), name.to_string());
            if let Some(first) = self.seen.get(&key) {
                self.wrong.insert(first.clone()); // nobody knows which one is meant
                let text =
                    format!("there is a {kind} of this name already, in {}:{}", first.file.display(), first.line);
                found.extend(wrong("metadata.name", text));
            } else {
                self.seen.insert(key, place.at.clone());
            }
        }
        if let Some(spec) = document.get("spec")
            && let Err(more) = self.spec(kind, name, &place, spec)
        {
            found.extend(more);
        }
        if found.is_empty() { Ok(()) } else { Err(found) }
    }

    /// Decodes a spec. Without a name it is looked through for mistakes and not kept.
    fn spec(&mut self, kind: &str, name: Option<SourceName>, place: &Place<'_>, spec: &Node) -> Result<(), Vec<Wrong>> {
        let keep = name.is_some();
        let name = match name {
            Some(name) => name,
            None => "nameless".parse().map_err(|_| Vec::new())?,
        };
        let (at, directory, line) = (place.at.clone(), place.directory(), place.document.line_of("spec"));
        match kind {
            "Repository" => {
                let mut repository: Repository = decode(spec, line, "spec", directory)?;
                let wrong = repository.check(place.document);
                if !wrong.is_empty() {
                    return Err(wrong);
                }
                if matches!(repository.url, Url::S3 { .. }) {
                    repository.s3.get_or_insert_default();
                }
                repository.name = name.to_string();
                repository.at = at;
                if keep {
                    self.config.repositories.insert(name.to_string(), repository);
                }
            }
            "Source" => {
                let document: source::Document = decode(spec, line, "spec", directory)?;
                let source = document.into_source(name.clone(), at, place.document, directory)?;
                for (index, needed) in source.needs.iter().enumerate() {
                    self.refer(place, "Source", format!("spec.needs[{index}]"), needed.as_str());
                }
                for (index, earlier) in source.capture_after.iter().enumerate() {
                    self.refer(place, "Source", format!("spec.captureAfter[{index}]"), earlier.as_str());
                }
                if keep {
                    self.config.sources.insert(name, source);
                }
            }
            "RestorePlan" => {
                let document: Document = decode(spec, line, "spec", directory)?;
                let plan = plan::into_plan(document, name.to_string(), at, place.document, directory)?;
                for (index, step) in plan.steps.iter().enumerate() {
                    if let Doing::Plan(included) = &step.doing {
                        self.refer(place, "RestorePlan", format!("spec.steps[{index}].plan"), included);
                    }
                    for (field, source) in step.doing.documents() {
                        self.refer(place, "Source", format!("spec.steps[{index}].{field}"), source.as_str());
                    }
                }
                if keep {
                    self.config.plans.insert(name.to_string(), plan);
                }
            }
            _ => {
                self.refers(place, spec);
                let document: schedule::Document = decode(spec, line, "spec", directory)?;
                let schedule = document.into_schedule(name.to_string(), at, place.document)?;
                if keep {
                    self.config.schedules.insert(name.to_string(), schedule);
                }
            }
        }
        Ok(())
    }

    /// Notes what a schedule refers to, whatever else is wrong with it.
    fn refers(&mut self, place: &Place<'_>, spec: &Node) {
        let mut refer = |kind, field: String, node: &Node| {
            if let Some(name) = node.text() {
                self.refer(place, kind, field, name);
            }
        };
        if let Some(repository) = spec.get("repository") {
            refer("Repository", "spec.repository".into(), repository);
        }
        if let Some(to) = spec.get("replica").and_then(|replica| replica.get("to")) {
            refer("Repository", "spec.replica.to".into(), to);
        }
        if let Some(node::Value::List(sources)) = spec.get("sources").map(|s| &s.value) {
            sources.iter().enumerate().for_each(|(n, source)| refer("Source", format!("spec.sources[{n}]"), source));
        }
    }

    fn refer(&mut self, place: &Place<'_>, kind: &'static str, field: String, name: &str) {
        let line = place.document.line_of(&field);
        self.references.push(Reference { kind, name: name.to_owned(), from: place.at.clone(), line, field });
    }

    /// Takes away what is wrong, and what refers to that.
    fn leave_out(&mut self) {
        loop {
            let (config, wrong) = (&mut self.config, &self.wrong);
            config.repositories.retain(|_, repository| !wrong.contains(&repository.at));
            config.sources.retain(|_, source| !wrong.contains(&source.at));
            config.schedules.retain(|_, schedule| !wrong.contains(&schedule.at));
            config.plans.retain(|_, plan| !wrong.contains(&of_plan(plan)));
            // Of sources, only a plan that names one cannot do without.
            let is_plan = |at: &At| self.config.plans.values().any(|plan| of_plan(plan) == *at);
            let lost = self.references.iter().filter(|reference| {
                let Reference { kind, name, from, .. } = reference;
                let is_needed = *kind != "Source" || is_plan(from);
                is_needed && !wrong.contains(from) && !self.config.has(kind, name)
            });
            let lost: Vec<_> = lost.map(|reference| reference.from.clone()).collect();
            if lost.is_empty() {
                return;
            }
            self.wrong.extend(lost);
        }
    }

    /// What is wrong with plans that are right one by one: their order, and what they include.
    fn plans(&mut self) {
        let (plans, ties) = (&self.config.plans, self.config.ties());
        for plan in plans.values() {
            for finding in lint(plans, plan, &ties).mistakes {
                self.wrong.insert(of_plan(plan));
                self.mistakes.push(Mistake {
                    file: finding.file,
                    line: Some(finding.line),
                    field: String::new(),
                    message: format!("{}: {}", finding.what, finding.text),
                });
            }
        }
    }

    /// No source can be captured after itself.
    fn order(&mut self) {
        let sources = &self.config.sources;
        let comes_after = |source: &Source, wanted: &SourceName| {
            let (mut seen, mut open) = (BTreeSet::new(), source.capture_after.iter().collect::<Vec<_>>());
            while let Some(name) = open.pop() {
                if name == wanted {
                    return true;
                }
                if seen.insert(name) {
                    open.extend(sources.get(name).into_iter().flat_map(|source| &source.capture_after));
                }
            }
            false
        };
        for source in sources.values().filter(|source| comes_after(source, &source.name)) {
            self.wrong.insert(source.at.clone());
            self.mistakes.push(Mistake {
                file: source.at.file.clone(),
                line: Some(source.at.line),
                field: "spec.captureAfter".into(),
                message: format!("{} would be captured after itself", source.name),
            });
        }
    }

    /// Every name that is referred to must be there. One whose document has mistakes is.
    fn references(&mut self) {
        for Reference { kind, name, from, line, field } in &self.references {
            let known = self.seen.keys().filter(|(k, _)| k == kind).map(|(_, name)| name.as_str());
            if !known.clone().any(|known| known == name) {
                let message = format!("there is no {kind} named {name:?}; {}", allowed(name, known));
                let (file, field) = (from.file.clone(), field.clone());
                self.mistakes.push(Mistake { file, line: Some(*line), field, message });
            }
        }
    }
}

fn of_plan(plan: &Plan) -> At {
    At { file: plan.file.clone(), line: plan.line }
}

struct Place<'a> {
    file: &'a Path,
    at: At,
    document: &'a Node,
}

impl Place<'_> {
    /// What relative paths in the document are relative to.
    fn directory(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new(""))
    }
}

struct Reference {
    kind: &'static str,
    name: String,
    /// The document that refers to it.
    from: At,
    line: u64,
    field: String,
}
