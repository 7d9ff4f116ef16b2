//! A capture by a CSI snapshot: a claim is snapshotted, and a pod that has a volume of the snapshot backs that up.
//!
//! The pod is made of a PodTemplate, beside the CronJob that this runs in. It is the one that has the writer key and reaches
//! the bucket; who runs this makes pods, and needs neither. The volume is an ephemeral one: the cluster makes its claim with
//! the pod, and removes it with the pod. Programs in the claim's pods hold still what they write only until the moment is
//! taken.
//!
//! What is made has fixed names, and the pod that this runs in as its owner. So it is gone when this ends, whichever way;
//! after a SIGKILL or the loss of a node the next run removes it, or the cluster does once the owner is removed. The pod
//! that reads ends itself at the run's deadline.

use super::claim::{self, Claim};
use super::hooks::{self, Found, Frozen};
use super::pods::{self, standing};
use super::{Spec, snapshot};
use crate::source::kubernetes::KubernetesError;
use crate::source::kubernetes::api::{Api, Ask};
use crate::source::{Context, SourceError};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_secs(1);
/// For removing what was made, when the run is over.
const REMOVAL: Duration = Duration::from_secs(15);
/// Of the log's end.
const LINES: i64 = 500;
/// The pod's volume that the claim is. The template has the claim itself in its place.
pub const VOLUME: &str = "source";

/// The pod that this runs in.
pub struct Owner {
    pub pod: String,
    pub uid: String,
}

/// The pod that reads the snapshot.
pub struct Reader {
    /// Name of the PodTemplate that it is made of.
    pub template: String,
    /// Arguments of its program, after those of the template.
    pub further: Vec<String>,
}

/// How the pod that read it ended.
pub struct Ended {
    /// Its exit status.
    pub code: i64,
    pub log: String,
    /// What a person must look at.
    pub left: Vec<String>,
}

/// Takes the snapshot, has it backed up by a pod, and removes both.
///
/// # Errors
/// No pod has read it to its end.
pub fn back_up(
    context: &Context,
    spec: &Spec,
    wanted: &snapshot::Wanted,
    reader: &Reader,
    owner: Option<&Owner>,
) -> Result<Ended, SourceError> {
    let api = Api::connect(context, &spec.cluster())?;
    let work = Work { context, api: &api, spec, wanted, owner, name: snapshot::name(spec) };
    let claim = Claim::wanted(context, &api, spec)?;
    let class = wanted.storage_class.as_deref().or(claim.class()).filter(|class| !class.is_empty());
    let need = "name one by which a volume is made of its snapshot (snapshot.storageClass)";
    let class = class.ok_or_else(|| work.failed("the claim has no storage class", need))?;
    work.check_classes(&claim, class)?;
    let template = work.template(reader)?;
    let found = hooks::of(context, &api, spec)?;
    work.refuse_to_meet_another()?;
    work.clear(context)?;
    let (done, left) = work.carry_out(&claim, class, template, found);
    if let Err(error) = work.clear(&context.afterwards(REMOVAL)) {
        // The next run waits for it, or says why that cannot be.
        tracing::warn!(error = &error as &dyn std::error::Error, "what the run made is still there");
    }
    done.map(|(code, log)| Ended { code, log, left })
}

struct Work<'a> {
    context: &'a Context,
    api: &'a Api,
    spec: &'a Spec,
    wanted: &'a snapshot::Wanted,
    owner: Option<&'a Owner>,
    name: String,
}

impl Work<'_> {
    fn failed(&self, text: impl Into<String>, need: &str) -> SourceError {
        let attempt = format!("back {} up by a snapshot", self.spec.what());
        SourceError::System { attempt, text: text.into(), need: need.into() }
    }

    fn what(&self) -> String {
        format!("pod {}/{}", self.spec.namespace, self.name)
    }

    fn owners(&self) -> Value {
        let owner = |owner: &Owner| json!({ "apiVersion": "v1", "kind": "Pod", "name": owner.pod, "uid": owner.uid });
        json!(self.owner.map(owner).into_iter().collect::<Vec<_>>())
    }

    /// With others, each run would leave a volume or a snapshot that nobody removes.
    fn check_classes(&self, claim: &Claim, class: &str) -> Result<(), SourceError> {
        let volumes = self.class("/apis/storage.k8s.io/v1/storageclasses", class)?;
        let snapshots = self.class("/apis/snapshot.storage.k8s.io/v1/volumesnapshotclasses", &self.wanted.class)?;
        let kept = [
            ("storageclass", class, &volumes["reclaimPolicy"]),
            ("volumesnapshotclass", &self.wanted.class, &snapshots["deletionPolicy"]),
        ];
        if let Some((kind, name, _)) = kept.into_iter().find(|(_, _, policy)| *policy == "Retain") {
            let text = format!("what is made by the {kind} {name} and deleted stays (its policy is Retain)");
            return Err(
                self.failed(text, "name a class with the policy Delete (snapshot.class, snapshot.storageClass)")
            );
        }
        let own = &claim.0["metadata"]["annotations"]["volume.kubernetes.io/storage-provisioner"];
        let driver = &snapshots["driver"];
        match [&volumes["provisioner"], own].into_iter().find(|other| other.is_string() && *other != driver) {
            Some(other) => {
                let text = format!(
                    "the volumesnapshotclass {} is of the driver {driver}, the volume's is {other}",
                    self.wanted.class
                );
                Err(self.failed(text, "name a class of the volume's driver (snapshot.class), if that takes snapshots"))
            }
            None => Ok(()),
        }
    }

    fn class(&self, path: &str, name: &str) -> Result<Value, SourceError> {
        let found = self.api.ask(self.context, path, &Ask::Get(name))?;
        found.map_err(|failure| {
            if failure.code() == 404 {
                return self.failed(failure.text(), "correct the Source document, or install what is missing");
            }
            let need = "bind the ClusterRole lifeboat-snapshot-classes (deploy/volume/snapshots)";
            claim::denied(self.api, &format!("look at the class {name}"), &failure, need)
        })
    }

    /// With the reader's arguments.
    fn template(&self, reader: &Reader) -> Result<Value, SourceError> {
        let path = format!("/api/v1/namespaces/{}/podtemplates", self.spec.namespace);
        let name = &reader.template;
        let found = self.api.ask(self.context, &path, &Ask::Get(name))?;
        let mut template = found.map_err(|failure| {
            if failure.code() == 404 {
                let text = format!("there is no podtemplate {}/{name}", self.spec.namespace);
                return self.failed(text, "apply what `lifeboat schedule render` makes");
            }
            let need = "grant get on podtemplates in the namespace (deploy/volume/snapshots)";
            claim::denied(self.api, &format!("look at podtemplate {name}"), &failure, need)
        })?;
        if let Some(arguments) = template["template"]["spec"]["containers"][0]["args"].as_array_mut() {
            arguments.extend(reader.further.iter().map(|argument| json!(argument)));
        }
        Ok(template)
    }

    fn pod(&self, context: &Context, name: &str) -> Result<Option<Value>, SourceError> {
        match self.api.ask(context, &claim::pods(&self.spec.namespace), &Ask::Get(name))? {
            Ok(pod) => Ok(Some(pod)),
            Err(failure) if failure.code() == 404 => Ok(None),
            Err(failure) => {
                let need = "grant get on pods in the namespace (deploy/volume/snapshots)";
                Err(claim::denied(self.api, &format!("look at pod {name}"), &failure, need))
            }
        }
    }

    /// One by hand beside the timetable's, or of another schedule: the names are the same.
    fn refuse_to_meet_another(&self) -> Result<(), SourceError> {
        let Some(there) = snapshot::get(self.context, self.api, self.spec)? else { return Ok(()) };
        let owner = &there["metadata"]["ownerReferences"][0];
        let Some(name) = owner["name"].as_str() else { return Ok(()) };
        let other = self.pod(self.context, name)?.filter(|pod| {
            let lives = matches!(pod["status"]["phase"].as_str(), Some("Pending" | "Running"));
            lives && pod["metadata"]["uid"] == owner["uid"] && self.owner.is_none_or(|own| own.pod != name)
        });
        match other {
            Some(_) => Err(self.failed(format!("pod {name} is at it"), "try again when that has ended")),
            None => Ok(()),
        }
    }

    /// Removes what is there of the pod, its claim and the snapshot, and waits until it is gone.
    fn clear(&self, context: &Context) -> Result<(), SourceError> {
        self.delete(context, &claim::pods(&self.spec.namespace), self.pod(context, &self.name)?)?;
        let snapshots = snapshot::path(self.spec);
        self.delete(context, &snapshots, snapshot::get(context, self.api, self.spec)?)?;
        while let Some(left) = self.left(context)? {
            context.sleep(PAUSE).map_err(|stop| match stop {
                SourceError::Deadline => SourceError::System {
                    attempt: "remove what a run made".into(),
                    text: format!("{left} {}/{} is still there", self.spec.namespace, self.name),
                    need: "a pod is removed by its node, a snapshot by its driver's csi-snapshotter: look at those"
                        .into(),
                },
                other => other,
            })?;
        }
        Ok(())
    }

    fn left(&self, context: &Context) -> Result<Option<&'static str>, SourceError> {
        if self.pod(context, &self.name)?.is_some() {
            return Ok(Some("pod"));
        }
        let volume = format!("{}-{VOLUME}", self.name);
        if Claim::get(context, self.api, &self.spec.namespace, &volume)?.is_some() {
            return Ok(Some("the claim of pod"));
        }
        Ok(snapshot::get(context, self.api, self.spec)?.map(|_| "volumesnapshot"))
    }

    fn delete(&self, context: &Context, path: &str, object: Option<Value>) -> Result<(), SourceError> {
        let Some(object) = object else { return Ok(()) };
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        match self.api.ask(context, path, &Ask::Delete { name: &self.name, uid })? {
            Err(failure) if !matches!(failure.code(), 404 | 409) => {
                let need = "grant delete on pods and volumesnapshots in the namespace (deploy/volume/snapshots)";
                Err(claim::denied(self.api, &format!("remove {} at {path}", self.name), &failure, need))
            }
            _ => Ok(()),
        }
    }

    /// How the pod ended, and its log; and which programs failed that should have let go of what was held still.
    fn carry_out(
        &self,
        claim: &Claim,
        class: &str,
        template: Value,
        found: Found,
    ) -> (Result<(i64, String), SourceError>, Vec<String>) {
        // What programs write is captured by the pod that reads.
        let frozen = match Frozen::freeze(self.context, self.api, Found { streams: Vec::new(), ..found }) {
            Ok(frozen) => frozen,
            Err(error) => return (Err(error), Vec::new()),
        };
        let taken = snapshot::take(self.context, self.api, self.spec, &self.wanted.class, &self.owners());
        let left = frozen.thaw();
        (taken.and_then(|()| self.have_it_read(claim, class, template)), left)
    }

    fn have_it_read(&self, claim: &Claim, class: &str, template: Value) -> Result<(i64, String), SourceError> {
        let size = snapshot::ready(self.context, self.api, self.spec)?;
        let body = self.reader(claim, class, template, size.as_deref());
        let pods = claim::pods(&self.spec.namespace);
        self.api.ask(self.context, &pods, &Ask::Create { body: &body })?.map_err(|failure| {
            let need = "grant create on pods in the namespace (deploy/volume/snapshots), which must take a pod whose user is \
                        root (pod-security.kubernetes.io/enforce: baseline, or less)";
            self.failed(format!("{} cannot be made: {}", self.what(), failure.text()), need)
        })?;
        let pod = self.wait()?;
        let container = &pod["spec"]["containers"][0]["name"];
        let log = self.api.log(&pods, &self.name, container.as_str().unwrap_or_default(), LINES);
        let log =
            self.context.wait(log)?.unwrap_or_else(|failure| format!("its log cannot be read: {}", failure.text()));
        let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
        match ended["exitCode"].as_i64() {
            Some(code) => Ok((code, log)),
            None => Err(self.failed(format!("{} ended: {}", self.what(), standing(&pod)), "")),
        }
    }

    /// The template's pod, with a volume that is made of the snapshot in the place of the claim.
    fn reader(&self, claim: &Claim, class: &str, mut template: Value, size: Option<&str>) -> Value {
        let capacity = claim.0["status"]["capacity"]["storage"].as_str();
        let volume = json!({ "name": VOLUME, "ephemeral": { "volumeClaimTemplate": {
            "metadata": { "labels": { "app.kubernetes.io/name": "lifeboat" } },
            "spec": {
                "accessModes": claim.0["spec"]["accessModes"],
                "storageClassName": class,
                "resources": { "requests": { "storage": size.or(capacity) } },
                "dataSource": snapshot::source(self.spec),
            },
        } } });
        let mut spec = template["template"]["spec"].take();
        for place in spec["volumes"].as_array_mut().into_iter().flatten().filter(|one| one["name"] == VOLUME) {
            *place = volume.clone();
        }
        let left = self.context.deadline.saturating_duration_since(Instant::now()).as_secs().max(1);
        spec["activeDeadlineSeconds"] = json!(left);
        let mut metadata = template["template"]["metadata"].take();
        metadata["name"] = json!(self.name);
        metadata["ownerReferences"] = self.owners();
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec })
    }

    /// Waits until the pod has ended.
    fn wait(&self) -> Result<Value, SourceError> {
        let mut before = String::new();
        loop {
            let now = match self.pod(self.context, &self.name) {
                Ok(None) => return Err(self.failed(format!("somebody has deleted {}", self.what()), "")),
                Ok(Some(pod)) if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) => {
                    return Ok(pod);
                }
                Ok(Some(pod)) => standing(&pod),
                // It reads on meanwhile.
                Err(error @ SourceError::Kubernetes(KubernetesError::Unreachable { .. })) => error.to_string(),
                Err(error) => return Err(error),
            };
            if now != before {
                tracing::info!(pod = self.name, state = now, "waiting for the pod that reads the snapshot");
                before = now;
            }
            self.context.sleep(PAUSE).map_err(|stop| match stop {
                SourceError::Deadline => {
                    let why = self.why();
                    self.failed(format!("{} has not ended by the deadline: {before}{why}", self.what()), "")
                }
                other => other,
            })?;
        }
    }

    /// What the cluster last said of the pod and of its claim.
    fn why(&self) -> String {
        let context = self.context.afterwards(REMOVAL);
        let names = [self.name.clone(), format!("{}-{VOLUME}", self.name)];
        names.iter().filter_map(|name| pods::warning(&context, self.api, &self.spec.namespace, name)).collect()
    }
}
