//! The files of a Kubernetes volume: a PersistentVolumeClaim that the machine of the capture has mounted.
//!
//! A snapshot holds `claim.yaml`, the claim as the API server has it; `files`, the volume's root, and what is in it; and
//! `streams/…`, what the pods' `k8up.io/backupcommand` wrote. The files are walked as those of a directory are
//! ([`super::files`]). Before, programs are run in the pods that use the claim, which bring what is on the disk into order or
//! hold it still; afterwards, when every byte has been read, others let go again: also when the capture failed or was
//! broken off.
//!
//! Where the document asks for a CSI snapshot, what is mounted is a volume that was made of one ([`by_snapshot`]); the
//! programs have run around the moment that it shows, and that moment is the recovery point.
//!
//! A volume is known by its claim's uid. A claim that was restored carries the uid of the one that was captured, so that it
//! is the same volume from then on.
//!
//! Deliberately absent: mounting (`lifeboat schedule render` makes CronJobs that have the claim mounted), the
//! PersistentVolume behind a claim, raw block devices, a file system's `lost+found`.

mod below;
pub mod by_snapshot;
mod claim;
mod hooks;
mod pods;
mod restore;
pub mod snapshot;
pub mod stream;

pub use restore::{Named, Restoring};

use super::kubernetes::api::Api;
use super::{Context, Needs, Say, Source, SourceError, files, kubernetes, unpack};
use crate::entry::{Facts, Layout, Problem, Sink};
use crate::source::command::plain_file;
use below::Below;
use claim::Claim;
use hooks::{Found, Frozen, Hooks};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The claim's manifest in a snapshot.
const CLAIM: &str = "claim.yaml";
/// The volume's root in a snapshot, and, in a pod that a claim is restored by, below [`ROOT`].
pub const FILES: &str = "files";
pub const ROOT: &str = "/volume";
/// What programs in the pods wrote.
const STREAMS: &str = "streams";

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    pub namespace: String,
    /// The PersistentVolumeClaim's name.
    pub claim: String,
    /// Where it is mounted where it is captured; `/sources/NAMESPACE/CLAIM`, if not given.
    pub path: Option<PathBuf>,
    /// As the `files` source's.
    #[serde(default)]
    pub include: Vec<String>,
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Labels of the pods that use the claim: the backup runs on their node, and its programs in them. Without, they are
    /// those that mount the claim, and the backup runs where the scheduler puts it.
    #[serde(default)]
    pub pods: BTreeMap<String, String>,
    #[serde(default)]
    pub hooks: Hooks,
    /// What is read is a CSI snapshot of the claim, and not the claim itself.
    pub snapshot: Option<snapshot::Wanted>,
    /// The image of the pod by which the claim is restored: Lifeboat's own.
    pub image: Option<String>,
    /// Where the cluster is and who asks; in the cluster itself, if it is not given, the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context, if it is not the current one.
    pub context: Option<String>,
}

impl Spec {
    /// Where the volume's root is.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        let usual = || Path::new("/sources").join(&self.namespace).join(&self.claim);
        self.path.clone().unwrap_or_else(usual)
    }

    pub(super) fn check(&mut self, directory: &Path, say: &mut Say<'_>) {
        if !kubernetes::is_namespace(&self.namespace) {
            say("namespace", "expected the name of a namespace");
        }
        if !claim::is_name(&self.claim) {
            say("claim", "expected the name of a PersistentVolumeClaim");
        }
        if self.context.is_some() && self.kubeconfig.is_none() {
            say("context", "a context is one of a kubeconfig: give kubeconfig too");
        }
        if let Some(path) = &mut self.kubeconfig {
            *path = directory.join(&*path);
        }
        self.hooks.check(say);
        if let Some(snapshot) = &self.snapshot {
            snapshot.check(say);
        }
        self.files().check(say);
    }

    pub(super) fn needs(&self) -> Needs<'_> {
        Needs {
            files: self.kubeconfig.iter().map(PathBuf::as_path).collect(),
            account: self.kubeconfig.is_none(),
            ..Needs::default()
        }
    }

    fn cluster(&self) -> kubernetes::Spec {
        kubernetes::Spec {
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
            ..kubernetes::Spec::default()
        }
    }

    fn files(&self) -> files::Spec {
        let mut exclude = self.exclude.clone();
        exclude.push("/lost+found/".into());
        exclude.push(format!("/{}*/", stream::BEFORE));
        files::Spec { path: self.root(), include: self.include.clone(), exclude, one_file_system: true }
    }

    fn what(&self) -> String {
        format!("persistentvolumeclaim {}/{}", self.namespace, self.claim)
    }
}

pub struct Volume {
    spec: Spec,
    files: files::Files,
}

impl Volume {
    pub fn new(spec: Spec) -> Result<Self, SourceError> {
        let files = files::Files::new(spec.files())?;
        Ok(Self { spec, files })
    }

    fn read(&mut self, context: &Context, sink: &mut dyn Sink) -> Result<Facts, SourceError> {
        let mut below = Below::new(sink, FILES);
        let facts = self.files.capture(context, &mut below)?;
        below.wait(context)?;
        Ok(facts)
    }
}

impl Source for Volume {
    fn kind(&self) -> &'static str {
        "volume"
    }

    fn check(&mut self, context: &Context) -> Result<Vec<String>, SourceError> {
        let api = Api::connect(context, &self.spec.cluster())?;
        let claim = Claim::wanted(context, &api, &self.spec)?;
        let found = hooks::of(context, &api, &self.spec)?;
        let mut lines = vec![format!("{}: {}", self.spec.what(), claim.describe())];
        lines.extend(found.describe());
        match &self.spec.snapshot {
            Some(wanted) => lines.push(format!("what is read is a snapshot of it, of the class {}", wanted.class)),
            None => lines.extend(self.files.check(context)?),
        }
        Ok(lines)
    }

    fn capture(&mut self, context: &Context, sink: &mut dyn Sink) -> Result<Facts, SourceError> {
        context.go_on()?;
        let api = Api::connect(context, &self.spec.cluster())?;
        let claim = Claim::wanted(context, &api, &self.spec)?;
        let taken = self.spec.snapshot.as_ref().map(|_| snapshot::taken(context, &api, &self.spec)).transpose()?;
        let mut found = hooks::of(context, &api, &self.spec)?;
        let mut details = claim.details();
        details.extend(found.details());
        let text = claim.manifest()?;
        let entry = plain_file(CLAIM.into(), text.len() as u64, context.started);
        unpack::hand_over(context, sink, entry, Layout::Content, &mut text.as_bytes())?;
        // Before anything is held still: a dump may have to write.
        for stream in &found.streams {
            stream.capture(context, &api, sink)?;
        }
        if let Some(wanted) = &self.spec.snapshot {
            // They ran when it was taken.
            found = Found::default();
            details.insert("snapshot_class".into(), wanted.class.clone());
        }
        let frozen = Frozen::freeze(context, &api, found)?;
        let moment = taken.unwrap_or_else(|| context.now());
        let read = self.read(context, sink);
        let left = frozen.thaw();
        let files = match (read, left.is_empty()) {
            (Ok(files), _) => files,
            (Err(error @ (SourceError::Stopped(_) | SourceError::Cancelled | SourceError::Deadline)), _)
            | (Err(error), true) => return Err(error),
            (Err(error), false) => {
                let text = crate::exec::causes(error.to_string(), std::error::Error::source(&error));
                return Err(SourceError::System { attempt: "read the volume".into(), text, need: left.join("; ") });
            }
        };
        for text in left {
            sink.problem(Problem { path: Vec::new(), text });
        }
        details.extend(files.details);
        details.insert(restore::CAPTURED.into(), context.started.to_string());
        Ok(Facts {
            system: claim.volume(),
            position: None,
            objects: files.objects,
            recovery_point_ms: Some(moment.as_millisecond()),
            details,
        })
    }
}
