//! A volume's files back into a claim, before the workload starts.
//!
//! A claim that is not there is made as the snapshot has it. A pod of Lifeboat mounts it, and the files are sent into that
//! pod from here, where the recovery key is: it never enters the cluster. A claim that a pod uses is refused, and so is one
//! that holds anything, unless it may be replaced; whether it does is seen when it is mounted. What a restore that was
//! broken off left behind is its own, and is removed by the next one of the same snapshot: the claim is marked until all
//! is there. Deliberately absent: looking into a volume while planning, since only a pod can.

pub(super) mod pod;

use super::claim::{self, Claim};
use super::stream::{Report, Sender, Standing};
use super::{CLAIM, FILES, Spec, VOLUME};
use crate::entry::{Entry, Facts, Problem, Supply};
use crate::source::kubernetes::api::{Api, Ask};
use crate::source::kubernetes::{normal, yaml};
use crate::source::target::{Action, Applied, Change, Existing, Options, Plan, Target};
use crate::source::{Context, SourceError};
use pod::Pod;
use serde_json::{Value, json};
use std::io::{self, BufWriter};

/// Among a snapshot's facts: when it was captured. With the volume, it tells the snapshot from every other.
pub const CAPTURED: &str = "captured";
/// On a claim that is being filled, and on one that was: from which snapshot.
const FILLING: &str = "lifeboat.dev/filling";
const FILLED: &str = "lifeboat.dev/filled";
/// Of a claim's manifest.
const LARGEST: usize = 1 << 20;
/// Bytes that are sent at a time.
const PIECE: usize = 256 << 10;

pub struct Restoring {
    spec: Spec,
    options: Options,
}

/// What the snapshot holds of what was asked for.
struct Wanted {
    /// Of the claim.
    manifest: Option<Value>,
    /// The volume as a whole, and not some of its files.
    whole: bool,
    entries: u64,
    /// Tells the snapshot from every other.
    id: String,
}

impl Wanted {
    fn read(supply: &dyn Supply) -> Result<Self, SourceError> {
        let facts = supply.facts();
        let id = format!("{}@{}", facts.system.as_deref().unwrap_or_default(), detail(facts, CAPTURED));
        let mut wanted = Self { manifest: None, whole: false, entries: 0, id };
        let mut text = Vec::new();
        let read = supply.entries(&mut |entry, body| {
            if entry.path == CLAIM.as_bytes() && entry.size <= LARGEST as u64 {
                body.copy(&mut text)?;
            } else if is_of_volume(entry) {
                wanted.whole |= entry.path == FILES.as_bytes();
                wanted.entries += 1;
            }
            Ok(())
        });
        read.map_err(|source| SourceError::Snapshot { what: CLAIM.into(), source })?;
        if !text.is_empty() {
            let text = String::from_utf8_lossy(&text);
            let manifest = yaml::read(&text).map_err(|why| SourceError::System {
                attempt: format!("read {CLAIM} of the snapshot"),
                text: why,
                need: String::new(),
            })?;
            wanted.manifest = Some(manifest);
        }
        Ok(wanted)
    }

    /// What becomes of what the volume holds.
    fn standing(&self, planned: &Action, there: Option<&Claim>) -> Standing {
        if !self.whole {
            Standing::Beside
        } else if *planned == Action::Replace || self.began(there) {
            Standing::Clear
        } else {
            Standing::Refuse
        }
    }

    /// A restore of this snapshot into the claim has begun and not ended.
    fn began(&self, there: Option<&Claim>) -> bool {
        there.is_some_and(|claim| claim.marked(FILLING) == Some(self.id.as_str()))
    }
}

fn is_of_volume(entry: &Entry) -> bool {
    entry.path.strip_prefix(FILES.as_bytes()).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

fn detail<'a>(facts: &'a Facts, name: &str) -> &'a str {
    facts.details.get(name).map_or("", String::as_str)
}

impl Restoring {
    pub fn new(spec: Spec, options: Options) -> Self {
        Self { spec, options }
    }

    fn failed(&self, text: impl Into<String>, need: &str) -> SourceError {
        SourceError::System {
            attempt: format!("restore {}", self.spec.what()),
            text: text.into(),
            need: need.to_owned(),
        }
    }

    fn claim(&self, context: &Context, api: &Api) -> Result<Option<Claim>, SourceError> {
        Claim::get(context, api, &self.spec.namespace, &self.spec.claim)
    }

    fn files(&self) -> String {
        format!("files of {}", self.spec.what())
    }

    /// The claim as it is to be made.
    fn manifest(&self, wanted: &Wanted) -> Result<Value, SourceError> {
        let need = format!("restore {CLAIM} of the snapshot too, or make the claim first");
        let missing = || self.failed("there is no such claim, and the snapshot's was not asked for", &need);
        let mut object = wanted.manifest.clone().ok_or_else(missing)?;
        let class = object["spec"]["storageClassName"].as_str().unwrap_or_default().to_owned();
        normal::strip("persistentvolumeclaims", &mut object);
        if let Some(annotations) = object["metadata"].get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.retain(|name, _| ![FILLING, FILLED, VOLUME].contains(&name.as_str()));
        }
        object["metadata"]["name"] = json!(self.spec.claim);
        object["metadata"]["namespace"] = json!(self.spec.namespace);
        if let Some(other) = self.options.storage_classes.get(&class) {
            object["spec"]["storageClassName"] = json!(other);
        }
        if let Some(spec) = object["spec"].as_object_mut() {
            // It was made from something else once; now it is filled from here.
            spec.remove("dataSource");
            spec.remove("dataSourceRef");
        }
        Ok(object)
    }

    /// What would be done with the files, given what is there.
    fn action(&self, wanted: &Wanted, facts: &Facts, there: Option<&Claim>, users: &[Value]) -> Action {
        let Some(claim) = there else { return Action::Create };
        let replace = self.options.existing == Existing::Replace;
        if let Some(pod) = users.first() {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            return Action::Conflict(format!(
                "pod {name} uses it: scale what it belongs to down first (a fence of a plan does)"
            ));
        }
        if claim.0["metadata"]["deletionTimestamp"].is_string() {
            return Action::Conflict("it is being deleted".into());
        }
        if !wanted.whole && replace {
            let why = "only the whole volume can be replaced; single files are put beside what is there";
            return Action::Conflict(why.into());
        }
        if !wanted.whole {
            return Action::Create;
        }
        if wanted.began(there) {
            return Action::Create;
        }
        if !replace {
            let done = claim.marked(FILLED) == Some(wanted.id.as_str());
            return if done { Action::Unchanged } else { Action::Create };
        }
        if facts.system != claim.volume() && !self.options.foreign {
            return Action::Conflict(
                "it is another volume than the one that was captured (--foreign replaces it all the same)".into(),
            );
        }
        Action::Replace
    }

    fn about(
        &self,
        context: &Context,
        api: &Api,
        wanted: &Wanted,
        there: Option<&Claim>,
    ) -> Result<Vec<String>, SourceError> {
        let mut about = vec![format!("cluster at {}", api.server)];
        let Some(claim) = there else {
            let made = Claim(self.manifest(wanted)?);
            about.push(format!("the claim is not there; it would be {}", made.describe()));
            about.extend(missing_class(context, api, &made)?);
            return Ok(about);
        };
        about.push(format!("the claim is {}", claim.describe()));
        if claim.marked(FILLING).is_some() && !wanted.began(there) {
            about.push("a restore of another snapshot into it was broken off".into());
        }
        if claim.is_bound() && wanted.whole && self.options.existing != Existing::Replace {
            about.push("if it holds anything, nothing is done (--existing replace removes what it holds)".into());
        }
        Ok(about)
    }

    fn make(&self, context: &Context, api: &Api, wanted: &Wanted) -> Result<(), SourceError> {
        let body = self.manifest(wanted)?;
        let made = api.ask(context, &claim::path(&self.spec.namespace), &Ask::Create { body: &body })?;
        match made {
            Ok(_) => Ok(()),
            Err(failure) if failure.code() == 409 => Ok(()),
            Err(failure) => Err(api.fatal(&format!("make {}", self.spec.what()), &failure).into()),
        }
    }

    /// Sets or removes marks of the claim. They name the claim's own uid: on a copy of its manifest they mean nothing.
    fn mark(&self, context: &Context, api: &Api, marks: &[(&str, Option<&str>)]) -> Result<(), SourceError> {
        let claim = self.claim(context, api)?.ok_or_else(|| self.failed("somebody has deleted the claim", ""))?;
        let value = |mark: Option<&str>| mark.map_or(Value::Null, |text| json!(claim.mark(text)));
        let marks = marks.iter().map(|(name, mark)| ((*name).to_owned(), value(*mark)));
        let body = json!({ "metadata": { "annotations": marks.collect::<serde_json::Map<_, _>>() } });
        let ask = Ask::Merge { name: &self.spec.claim, body: &body };
        let done = api.ask(context, &claim::path(&self.spec.namespace), &ask)?;
        done.map_err(|failure| api.fatal(&format!("mark {}", self.spec.what()), &failure))?;
        Ok(())
    }

    /// Sends the files into the pod, which has the claim mounted.
    fn fill(
        &self,
        context: &Context,
        api: &Api,
        supply: &dyn Supply,
        (wanted, standing): (&Wanted, Standing),
        pod: &Pod<'_>,
    ) -> Result<Report, SourceError> {
        // Nothing that is not this restore's own may ever be marked as such.
        if standing == Standing::Refuse {
            self.empty(&pod.look()?)?;
        }
        if wanted.whole {
            self.mark(context, api, &[(FILLING, Some(wanted.id.as_str())), (FILLED, None)])?;
        }
        let mut out = BufWriter::with_capacity(PIECE, pod.receive(standing)?);
        let sent = send(supply, &mut out);
        let (mut attached, _) = out.into_parts();
        let sent = match sent {
            Err(Sending::Snapshot(source)) => return Err(SourceError::Snapshot { what: self.spec.what(), source }),
            Err(Sending::Gone) => None,
            Ok(sent) => {
                attached.close()?;
                Some(sent)
            }
        };
        // Its own end tells more than what could not be sent.
        let report = pod.report(attached)?;
        if report.occupied.is_some() {
            self.mark(context, api, &[(FILLING, None)])?;
            self.empty(&report)?;
        }
        if sent == Some(report.entries) {
            return Ok(report);
        }
        Err(self.failed(format!("of {} entries, {} arrived", wanted.entries, report.entries), "run the restore again"))
    }

    fn empty(&self, report: &Report) -> Result<(), SourceError> {
        let Some(first) = &report.occupied else { return Ok(()) };
        let need = "if all that it holds may go, restore with --existing replace (in a plan: options.existing)";
        Err(self.failed(format!("it is not empty: it holds {first}; nothing was done"), need))
    }
}

/// A warning, if the claim's storage class is not there.
fn missing_class(context: &Context, api: &Api, claim: &Claim) -> Result<Option<String>, SourceError> {
    let Some(class) = claim.class().filter(|class| !class.is_empty()) else { return Ok(None) };
    Ok(match api.ask(context, "/apis/storage.k8s.io/v1/storageclasses", &Ask::Get(class))? {
        Err(failure) if failure.code() == 404 => Some(format!(
            "there is no storage class {class}: unless a volume of it is there already, map it to another \
             (--map-storage-class {class}=OTHER)"
        )),
        _ => None,
    })
}

enum Sending {
    /// The snapshot cannot be read.
    Snapshot(io::Error),
    /// The pod takes nothing more.
    Gone,
}

/// Sends what is of the volume. Gives the number of entries.
fn send(supply: &dyn Supply, out: &mut dyn io::Write) -> Result<u64, Sending> {
    let mut out = Telling { out, failed: false };
    let sent = pour(supply, &mut out);
    sent.map_err(|error| if out.failed { Sending::Gone } else { Sending::Snapshot(error) })
}

fn pour(supply: &dyn Supply, out: &mut Telling<'_>) -> io::Result<u64> {
    let mut sender = Sender::new(out)?;
    supply.entries(&mut |entry, body| if is_of_volume(entry) { sender.send(entry, body) } else { Ok(()) })?;
    let entries = sender.entries;
    sender.end()?;
    Ok(entries)
}

/// Remembers whether writing failed.
struct Telling<'a> {
    out: &'a mut dyn io::Write,
    failed: bool,
}

impl io::Write for Telling<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes).inspect_err(|_| self.failed = true)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush().inspect_err(|_| self.failed = true)
    }
}

impl Target for Restoring {
    fn plan(&mut self, context: &Context, supply: &dyn Supply) -> Result<Plan, SourceError> {
        if self.spec.image.is_none() {
            let need = "set volume.image in the Source document to Lifeboat's own image";
            return Err(self.failed("it is not said which image the pod has that it is restored by", need));
        }
        let wanted = Wanted::read(supply)?;
        if wanted.entries == 0 {
            return Err(self.failed("nothing of the volume's files was asked for", &format!("they are below {FILES}")));
        }
        let api = Api::connect(context, &self.spec.cluster())?;
        let cluster = api.system(context)?.unwrap_or_else(|| api.server.clone());
        let there = self.claim(context, &api)?;
        let users = match &there {
            Some(_) => claim::users(context, &api, &self.spec.namespace, &self.spec.claim)?,
            None => Vec::new(),
        };
        let mut changes = Vec::new();
        if there.is_none() {
            changes.push(Change { what: self.spec.what(), action: Action::Create });
        }
        let action = self.action(&wanted, supply.facts(), there.as_ref(), &users);
        changes.push(Change { what: self.files(), action });
        Ok(Plan {
            target: format!("{cluster}/{}/{}", self.spec.namespace, self.spec.claim),
            about: self.about(context, &api, &wanted, there.as_ref())?,
            changes,
        })
    }

    fn apply(&mut self, context: &Context, supply: &dyn Supply, plan: &Plan) -> Result<Applied, SourceError> {
        let mut applied = Applied { changes: plan.changes.clone(), ..Applied::default() };
        let files = plan.changes.iter().find(|change| change.what == self.files());
        let Some(change) = files.filter(|change| matches!(change.action, Action::Create | Action::Replace)) else {
            return Ok(applied);
        };
        let wanted = Wanted::read(supply)?;
        let api = Api::connect(context, &self.spec.cluster())?;
        let there = self.claim(context, &api)?;
        if there.is_none() {
            self.make(context, &api, &wanted)?;
        }
        if let Some(pod) = claim::users(context, &api, &self.spec.namespace, &self.spec.claim)?.first() {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            return Err(self.failed(format!("pod {name} uses it by now"), "scale what it belongs to down first"));
        }
        let standing = wanted.standing(&change.action, there.as_ref());
        let image = self.spec.image.as_deref().unwrap_or_default();
        let pod = Pod::start(context, &api, &self.spec, image)?;
        let filled = self.fill(context, &api, supply, (&wanted, standing), &pod);
        let ended = pod.end();
        let report = filled?;
        ended?;
        if wanted.whole {
            let volume = supply.facts().system.as_deref();
            self.mark(context, &api, &[(FILLING, None), (FILLED, Some(wanted.id.as_str())), (VOLUME, volume)])?;
        }
        let problems = report.problems.into_iter();
        applied.problems = problems.map(|(path, text)| Problem { path: path.into_bytes(), text }).collect();
        applied.checked.push(format!("{} entries, {} bytes are on the volume", report.entries, report.bytes));
        Ok(applied)
    }
}
