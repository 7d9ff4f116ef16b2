//! One moment of a claim: a VolumeSnapshot by its CSI driver. It is known by its name, which is made of the claim's, so that
//! the next run finds what one before left behind.

use super::{Spec, claim, pods};
use crate::source::kubernetes::api::{Api, Ask};
use crate::source::{Context, Say, SourceError};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(500);
/// Programs in the pods may hold still what they write until the moment is taken: no longer than this.
const TAKING: Duration = Duration::from_mins(1);
/// Controllers also report what they then do better.
const TRYING: Duration = Duration::from_secs(10);
const GROUP: &str = "snapshot.storage.k8s.io";

/// How it is to be taken and read.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Wanted {
    /// The VolumeSnapshotClass.
    pub class: String,
    /// Of the claim that is made of it to be read; the captured claim's own, if not given.
    pub storage_class: Option<String>,
}

impl Wanted {
    pub fn check(&self, say: &mut Say<'_>) {
        if !claim::is_name(&self.class) {
            say("snapshot.class", "expected the name of a VolumeSnapshotClass");
        }
        if self.storage_class.as_deref().is_some_and(|name| !claim::is_name(name)) {
            say("snapshot.storageClass", "expected the name of a StorageClass");
        }
    }
}

/// The snapshot's name, and that of the pod that reads it.
pub fn name(spec: &Spec) -> String {
    pods::name("lifeboat", &spec.namespace, &spec.claim)
}

pub fn path(spec: &Spec) -> String {
    format!("/apis/{GROUP}/v1/namespaces/{}/volumesnapshots", spec.namespace)
}

fn what(spec: &Spec) -> String {
    format!("volumesnapshot {}/{}", spec.namespace, name(spec))
}

/// `None`: there is none.
pub fn get(context: &Context, api: &Api, spec: &Spec) -> Result<Option<Value>, SourceError> {
    match api.ask(context, &path(spec), &Ask::Get(&name(spec)))? {
        Ok(snapshot) => Ok(Some(snapshot)),
        Err(failure) if failure.code() == 404 => Ok(None),
        Err(failure) => {
            let need = "grant get on volumesnapshots in the namespace (deploy/volume/snapshots)";
            Err(claim::denied(api, &format!("look at {}", what(spec)), &failure, need))
        }
    }
}

/// What a claim needs to be made of it.
pub fn source(spec: &Spec) -> Value {
    json!({ "apiGroup": GROUP, "kind": "VolumeSnapshot", "name": name(spec) })
}

/// Has it taken, and waits until it is. Whether it can be read by then is another matter: see [`ready`].
///
/// # Errors
/// It was not taken, and why.
pub fn take(context: &Context, api: &Api, spec: &Spec, class: &str, owners: &Value) -> Result<(), SourceError> {
    let failed = |text: String, need: &str| SourceError::System {
        attempt: format!("take {} of {}", what(spec), spec.what()),
        text,
        need: need.into(),
    };
    let body = json!({
        "apiVersion": format!("{GROUP}/v1"),
        "kind": "VolumeSnapshot",
        "metadata": {
            "name": name(spec),
            "namespace": spec.namespace,
            "labels": { "app.kubernetes.io/name": "lifeboat" },
            "ownerReferences": owners,
        },
        "spec": { "volumeSnapshotClassName": class, "source": { "persistentVolumeClaimName": spec.claim } },
    });
    let made = api.ask(context, &path(spec), &Ask::Create { body: &body })?;
    made.map_err(|failure| {
        let need = match failure.code() {
            404 => "the cluster has no VolumeSnapshots: install their definitions and the snapshot-controller",
            403 => "grant create on volumesnapshots in the namespace (deploy/volume/snapshots), or raise its quota",
            _ => "",
        };
        failed(failure.text().to_owned(), need)
    })?;
    let (begun, mut error) = (Instant::now(), None);
    loop {
        let snapshot = get(context, api, spec)?.ok_or_else(|| failed("somebody has deleted it".into(), ""))?;
        if moment(&snapshot).is_some() {
            return Ok(());
        }
        let now = said(&snapshot);
        if now.is_none() || error.as_ref().is_none_or(|(before, _)| Some(before) != now.as_ref()) {
            error = now.map(|text| (text, Instant::now()));
        }
        if let Some((text, since)) = &error
            && since.elapsed() > TRYING
        {
            return Err(failed(text.clone(), "look at the class and at the driver's csi-snapshotter"));
        }
        if begun.elapsed() > TAKING {
            let text = format!("it was not taken within {TAKING:?}");
            return Err(failed(text, "do the snapshot-controller and the driver's csi-snapshotter run?"));
        }
        context.sleep(PAUSE)?;
    }
}

/// Waits until a volume can be made of it. Gives the size that it must have, if that is known.
///
/// # Errors
/// It is not ready by the deadline, and why.
pub fn ready(context: &Context, api: &Api, spec: &Spec) -> Result<Option<String>, SourceError> {
    let failed = |text: String| SourceError::System {
        attempt: format!("wait until {} can be read", what(spec)),
        text,
        need: String::new(),
    };
    loop {
        let snapshot = get(context, api, spec)?.ok_or_else(|| failed("somebody has deleted it".into()))?;
        if snapshot["status"]["readyToUse"] == true {
            let size = snapshot["status"]["restoreSize"].as_str().filter(|size| *size != "0");
            return Ok(size.map(str::to_owned));
        }
        context.sleep(PAUSE).map_err(|stop| match stop {
            SourceError::Deadline => failed(said(&snapshot).unwrap_or_else(|| "it is not by the deadline".into())),
            other => other,
        })?;
    }
}

/// The moment of the snapshot that the volume which is read was made of.
///
/// # Errors
/// There is none.
pub fn taken(context: &Context, api: &Api, spec: &Spec) -> Result<Timestamp, SourceError> {
    let failed = |text: &str| SourceError::System {
        attempt: format!("look at {}", what(spec)),
        text: text.into(),
        need:
            "what is read must be a volume that was made of it: run the CronJob that `lifeboat schedule render` makes \
               (kubectl create job --from=cronjob/NAME)"
                .into(),
    };
    let snapshot = get(context, api, spec)?.ok_or_else(|| failed("it is not there"))?;
    let moment = moment(&snapshot).ok_or_else(|| failed("it has not been taken"))?;
    // A storage system's clock may be ahead.
    Ok(moment.min(context.now()))
}

fn moment(snapshot: &Value) -> Option<Timestamp> {
    snapshot["status"]["creationTime"].as_str()?.parse().ok()
}

/// What its controllers say is wrong.
fn said(snapshot: &Value) -> Option<String> {
    let text = snapshot["status"]["error"]["message"].as_str();
    text.map(|text| text.trim_end_matches(['.', ' ']).to_owned())
}
