//! A tree of files into a claim, before the workload starts: a volume's snapshot into the claim that it is of, or that of
//! anything else into a claim that somebody names.
//!
//! A claim that is not there is made as a volume's snapshot has it. A pod of Lifeboat mounts it, and the files are sent into
//! that pod from here, where the recovery key is: it never enters the cluster. A claim that a pod uses is refused, and so is
//! one that holds anything, unless it may be replaced; whether it does, and has room, is seen when it is mounted. What a
//! restore that was broken off left behind is its own, and is removed by the next one of the same snapshot: the claim is
//! marked until all is there. A file that the repository has lost is left out and named, as in a directory; a step of a plan
//! that brings back what must be whole, a database, fails instead. Deliberately absent: looking into a volume while planning,
//! since only a pod can.

mod pod;
mod wanted;

use super::claim::{self, Claim};
use super::stream::{Refusal, Report, Standing, Terms};
use super::{CLAIM, FILES, Spec};
use crate::entry::{Facts, Problem, Supply};
use crate::id::SourceName;
use crate::source::kubernetes;
use crate::source::kubernetes::api::{Api, Ask};
use crate::source::kubernetes::normal::{self, FILLED, FILLING, STEP, VOLUME};
use crate::source::target::{Action, Applied, Change, Existing, Options, Plan, Target};
use crate::source::{Context, Say, SourceError, preparation};
use pod::Pod;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::BufWriter;
use std::time::Duration;
use wanted::{Layout, Sending, Wanted};

/// Among a snapshot's facts: when it was captured. With the volume, it tells the snapshot from every other.
pub const CAPTURED: &str = "captured";
/// Bytes that are sent at a time.
const PIECE: usize = 256 << 10;
const PAUSE: Duration = Duration::from_millis(500);

/// A claim as a restore plan names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Named {
    /// A Source document of kind kubernetes.
    pub cluster: SourceName,
    pub namespace: String,
    pub name: String,
    /// Of the pod by which it is filled: Lifeboat's own.
    pub image: String,
}

impl Named {
    /// Says what no type can.
    pub fn check(&self, say: &mut Say<'_>) {
        if !kubernetes::is_namespace(&self.namespace) {
            say("namespace", "expected the name of a namespace");
        }
        if !claim::is_name(&self.name) {
            say("name", "expected the name of a PersistentVolumeClaim");
        }
        if self.image.is_empty() {
            say("image", "expected Lifeboat's own image");
        }
    }
}

/// The claim that is restored into.
struct Place {
    cluster: kubernetes::Spec,
    namespace: String,
    claim: String,
    /// Of the pod.
    image: Option<String>,
}

impl Place {
    fn what(&self) -> String {
        format!("persistentvolumeclaim {}/{}", self.namespace, self.claim)
    }
}

pub struct Restoring {
    place: Place,
    layout: Layout,
    /// The snapshot's kind, if its files must be prepared once they are there.
    prepare: Option<String>,
    /// Without any one of its files, it is worth nothing.
    needed: bool,
    options: Options,
}

impl Restoring {
    /// A volume's snapshot, into the claim that its document names.
    pub fn new(spec: &Spec, options: Options) -> Self {
        let (namespace, claim, image) = (spec.namespace.clone(), spec.claim.clone(), spec.image.clone());
        let place = Place { cluster: spec.cluster(), namespace, claim, image };
        Self { place, layout: Layout::Volume, prepare: None, needed: false, options }
    }

    /// A snapshot into a claim that somebody names. `whole`: not some of its entries. `id` tells the snapshot from every
    /// other.
    #[must_use]
    pub fn named(
        cluster: &kubernetes::Spec,
        claim: &Named,
        (kind, id, whole): (&str, String, bool),
        options: Options,
    ) -> Self {
        let Named { namespace, name, image, .. } = claim.clone();
        let place = Place { cluster: cluster.clone(), namespace, claim: name, image: Some(image) };
        let layout = if kind == "volume" { Layout::Volume } else { Layout::Tree { id, whole } };
        let prepare = preparation(kind).filter(|_| whole).map(|_| kind.to_owned());
        let needed = options.step.is_some() && !matches!(kind, "files" | "volume");
        // Whose claim it is, its name says.
        Self { place, layout, prepare, needed, options: Options { foreign: true, ..options } }
    }

    fn failed(&self, text: impl Into<String>, need: &str) -> SourceError {
        SourceError::System {
            attempt: format!("restore {}", self.place.what()),
            text: text.into(),
            need: need.to_owned(),
        }
    }

    fn claim(&self, context: &Context, api: &Api) -> Result<Option<Claim>, SourceError> {
        Claim::get(context, api, &self.place.namespace, &self.place.claim)
    }

    fn users(&self, context: &Context, api: &Api) -> Result<Vec<Value>, SourceError> {
        claim::users(context, api, &self.place.namespace, &self.place.claim)
    }

    fn files(&self) -> String {
        format!("files of {}", self.place.what())
    }

    /// The claim as it is to be made.
    fn manifest(&self, wanted: &Wanted) -> Result<Value, SourceError> {
        let need = match self.layout {
            Layout::Volume => format!("restore {CLAIM} of the snapshot too, or make the claim first"),
            Layout::Tree { .. } => "bring it back first, with the objects of its namespace".into(),
        };
        let missing = || self.failed("there is no such claim, and nothing says what it was like", &need);
        let mut object = wanted.manifest.clone().ok_or_else(missing)?;
        let class = object["spec"]["storageClassName"].as_str().unwrap_or_default().to_owned();
        normal::strip("persistentvolumeclaims", &mut object);
        object["metadata"]["name"] = json!(self.place.claim);
        object["metadata"]["namespace"] = json!(self.place.namespace);
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
        let replace = self.options.existing == Existing::Replace;
        // One that is made by then may get a volume that was there before.
        let Some(claim) = there else { return if replace && wanted.whole { Action::Replace } else { Action::Create } };
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
        let step = self.options.step.as_deref();
        if claim.marked(FILLED) == Some(wanted.id.as_str())
            && (!replace || step.is_some() && claim.marked(STEP) == step)
        {
            return Action::Unchanged;
        }
        if !replace {
            return Action::Create;
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
            if let Layout::Tree { .. } = self.layout {
                about.push("the claim is not there: a step before must bring it back".into());
                return Ok(about);
            }
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

    /// One that is at work would take what is half restored for the volume.
    fn outlast_backups(&self, context: &Context, api: &Api) -> Result<(), SourceError> {
        while let Some(pod) = claim::backups(context, api, &self.place.namespace, &self.place.claim)?.first() {
            tracing::info!(pod = pod["metadata"]["name"].as_str(), "waiting for a backup of the volume to end");
            context.sleep(PAUSE)?;
        }
        Ok(())
    }

    fn make(&self, context: &Context, api: &Api, wanted: &Wanted) -> Result<(), SourceError> {
        let body = self.manifest(wanted)?;
        let made = api.ask(context, &claim::path(&self.place.namespace), &Ask::Create { body: &body })?;
        match made {
            Ok(_) => Ok(()),
            Err(failure) if failure.code() == 409 => Ok(()),
            Err(failure) => Err(api.fatal(&format!("make {}", self.place.what()), &failure).into()),
        }
    }

    /// Sets or removes marks of the claim. They name the claim's own uid: on a copy of its manifest they mean nothing.
    fn mark(&self, context: &Context, api: &Api, marks: &[(&str, Option<&str>)]) -> Result<(), SourceError> {
        let claim = self.claim(context, api)?.ok_or_else(|| self.failed("somebody has deleted the claim", ""))?;
        let value = |mark: Option<&str>| mark.map_or(Value::Null, |text| json!(claim.mark(text)));
        let marks = marks.iter().map(|(name, mark)| ((*name).to_owned(), value(*mark)));
        let body = json!({ "metadata": { "annotations": marks.collect::<serde_json::Map<_, _>>() } });
        let ask = Ask::Merge { name: &self.place.claim, body: &body };
        let done = api.ask(context, &claim::path(&self.place.namespace), &ask)?;
        done.map_err(|failure| api.fatal(&format!("mark {}", self.place.what()), &failure))?;
        Ok(())
    }

    /// Sends the files into the pod, which has the claim mounted. Gives also what was left out.
    fn fill(
        &self,
        context: &Context,
        api: &Api,
        supply: &dyn Supply,
        (wanted, terms): (&Wanted, &Terms),
        pod: &Pod<'_>,
    ) -> Result<(Report, Vec<Problem>), SourceError> {
        // Nothing that is not this restore's own may ever be marked as such.
        self.refused(&pod.look(terms)?, terms)?;
        if wanted.whole {
            let step = self.options.step.as_deref();
            self.mark(context, api, &[(FILLING, Some(wanted.id.as_str())), (FILLED, None), (STEP, step)])?;
        }
        let mut out = BufWriter::with_capacity(PIECE, pod.receive(terms)?);
        let sent = wanted.send(supply, self.needed, &mut out);
        let (mut attached, _) = out.into_parts();
        let sent = match sent {
            Err(Sending::Snapshot(at, source)) => {
                return Err(SourceError::Snapshot { what: format!("{} ({at})", self.place.what()), source });
            }
            Err(Sending::Gone) => None,
            Ok(sent) => {
                attached.close()?;
                Some(sent)
            }
        };
        // Its own end tells more than what could not be sent.
        let report = pod.report(attached)?;
        if report.refused.is_some() {
            self.mark(context, api, &[(FILLING, None)])?;
            self.refused(&report, terms)?;
        }
        if let Some(sent) = sent.filter(|sent| sent.entries == report.entries) {
            self.fit(terms, &report, &sent.lost)?;
            return Ok((report, sent.lost));
        }
        Err(self.failed(format!("of {} entries, {} arrived", wanted.entries, report.entries), "run the restore again"))
    }

    /// What had to be prepared and was not looks whole, and must not be taken for a database that is back.
    fn fit(&self, terms: &Terms, report: &Report, lost: &[Problem]) -> Result<(), SourceError> {
        if terms.prepare.is_none() || report.prepared.is_some() {
            return Ok(());
        }
        let why = match lost.first() {
            Some(Problem { path, text }) => format!("{}: {text}", String::from_utf8_lossy(path)),
            None => "the pod does not say that it did so".into(),
        };
        let need = "restore another snapshot, or heal this one from a replica first (lifeboat verify --repair-from)";
        Err(self.failed(format!("NOT prepared: no server may start from it: {why}"), need))
    }

    fn refused(&self, report: &Report, terms: &Terms) -> Result<(), SourceError> {
        match &report.refused {
            None => Ok(()),
            Some(Refusal::Occupied(first)) => {
                let need = "if all that it holds may go, restore with --existing replace (in a plan: options.existing)";
                Err(self.failed(format!("it is not empty: it holds {first}; nothing was done"), need))
            }
            Some(Refusal::Unprepared(why)) => {
                let need = "the pod's image must have what prepares it: volume.image, or the image of the claim";
                Err(self.failed(format!("{why}; nothing was done"), need))
            }
            Some(Refusal::Short(room)) => {
                let need = match terms.standing {
                    Standing::Aside(_) => {
                        "make it larger, or give up what it holds now: with --no-safety-snapshot that is not kept beside"
                    }
                    _ => "make it larger, or restore into a larger one",
                };
                let text = format!("it has room for {room} bytes, and {} are needed; nothing was done", terms.needs);
                Err(self.failed(text, need))
            }
        }
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

impl Target for Restoring {
    fn plan(&mut self, context: &Context, supply: &dyn Supply) -> Result<Plan, SourceError> {
        if self.place.image.is_none() {
            let need = "set volume.image in the Source document to Lifeboat's own image";
            return Err(self.failed("it is not said which image the pod has that it is restored by", need));
        }
        let wanted = Wanted::read(supply, &self.layout)?;
        if wanted.entries == 0 {
            return Err(self.failed("nothing of the volume's files was asked for", &format!("they are below {FILES}")));
        }
        let api = Api::connect(context, &self.place.cluster)?;
        let cluster = api.system(context)?.unwrap_or_else(|| api.server.clone());
        let there = self.claim(context, &api)?;
        let users = match &there {
            Some(_) => self.users(context, &api)?,
            None => Vec::new(),
        };
        let mut changes = Vec::new();
        if there.is_none() && matches!(self.layout, Layout::Volume) {
            changes.push(Change { what: self.place.what(), action: Action::Create });
        }
        let action = self.action(&wanted, supply.facts(), there.as_ref(), &users);
        changes.push(Change { what: self.files(), action });
        Ok(Plan {
            target: format!("{cluster}/{}/{}", self.place.namespace, self.place.claim),
            about: self.about(context, &api, &wanted, there.as_ref())?,
            changes,
        })
    }

    fn apply(&mut self, context: &Context, supply: &dyn Supply, plan: &Plan) -> Result<Applied, SourceError> {
        let mut applied = Applied { changes: plan.changes.clone(), ..Applied::default() };
        let files = plan.changes.iter().find(|change| change.what == self.files());
        if !files.is_some_and(|change| matches!(change.action, Action::Create | Action::Replace)) {
            return Ok(applied);
        }
        let wanted = Wanted::read(supply, &self.layout)?;
        let api = Api::connect(context, &self.place.cluster)?;
        let there = self.claim(context, &api)?;
        if there.is_none() {
            self.make(context, &api, &wanted)?;
        }
        if let Some(pod) = self.users(context, &api)?.first() {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            return Err(self.failed(format!("pod {name} uses it by now"), "scale what it belongs to down first"));
        }
        self.outlast_backups(context, &api)?;
        let version = supply.facts().version().to_owned();
        let prepare = self.prepare.clone().map(|kind| (kind, version));
        let terms = Terms { standing: wanted.standing(&self.options, there.as_ref()), needs: wanted.bytes, prepare };
        let pod = Pod::start(context, &api, &self.place)?;
        let filled = self.fill(context, &api, supply, (&wanted, &terms), &pod);
        let ended = pod.end();
        let (report, lost) = filled?;
        ended?;
        if wanted.whole {
            // Done again, it is not taken for what is there already.
            let filled = lost.is_empty().then_some(wanted.id.as_str());
            let mut marks = vec![(FILLING, None), (FILLED, filled)];
            if let (Layout::Volume, Some(volume)) = (&self.layout, &supply.facts().system) {
                marks.push((VOLUME, Some(volume.as_str())));
            }
            // In one request: killed between two, it would be filled for good without saying whose volume it is.
            self.mark(context, &api, &marks)?;
        }
        let problems = report.problems.into_iter().map(|(path, text)| Problem { path: path.into_bytes(), text });
        applied.problems = lost.into_iter().chain(problems).collect();
        applied.checked.push(format!("{} entries, {} bytes are on the volume", report.entries, report.bytes));
        applied.checked.extend(report.prepared);
        applied.to_do.extend(report.aside.map(|aside| {
            let what = self.place.what();
            format!("what {what} held is in its directory {aside}: remove it when it is not needed")
        }));
        Ok(applied)
    }

    fn keeps(&self) -> bool {
        true
    }

    fn abandon(&mut self, context: &Context) -> Result<Vec<String>, SourceError> {
        let Some(step) = &self.options.step else { return Ok(Vec::new()) };
        let api = Api::connect(context, &self.place.cluster)?;
        let claim = self.claim(context, &api)?;
        let is_own = |claim: &Claim| claim.marked(STEP) == Some(step.as_str());
        if claim.as_ref().is_some_and(|claim| claim.marked(FILLING).is_some() && !is_own(claim)) {
            return Ok(Vec::new());
        }
        // A restore that was killed before it set its marks has left its pod all the same, which holds the claim.
        Pod::clear(context, &api, &self.place)?;
        if claim.is_none_or(|claim| claim.marked(FILLING).is_none()) {
            return Ok(Vec::new());
        }
        let pod = Pod::start(context, &api, &self.place)?;
        let given = pod.give_back(step);
        let ended = pod.end();
        let report = given?;
        ended?;
        self.mark(context, &api, &[(FILLING, None), (STEP, None)])?;
        let what = self.place.what();
        Ok(vec![match report.aside {
            Some(_) => format!("what was restored in part is removed from {what}; what it held is back"),
            None => format!("{what} holds what was restored in part: it was empty, or what it held was not kept"),
        }])
    }
}
