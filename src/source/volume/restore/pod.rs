//! The pod that a claim is restored by. It has no credentials and no network to speak of: it waits, and `lifeboat receive` is
//! run in it. It ends itself when the restore must have ended, whatever becomes of this process.

use super::super::stream::{Report, Terms};
use super::super::{FILES, ROOT, claim, pods};
use super::Place;
use crate::source::kubernetes::api::{Api, Ask};
use crate::source::kubernetes::attach::{Attached, Container};
use crate::source::{Context, SourceError};
use serde_json::{Value, json};
use std::io::Read;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(500);
/// For removing it when the run is over.
const REMOVAL: Duration = Duration::from_secs(15);
const NAME: &str = "restore";
/// Of what the receiving end says.
const LARGEST: u64 = 4 << 20;

pub struct Pod<'a> {
    context: &'a Context,
    api: &'a Api,
    namespace: &'a str,
    name: String,
    uid: String,
    ended: bool,
}

impl<'a> Pod<'a> {
    /// Removes one that a restore before this left behind, and gives what can be made in its place.
    ///
    /// # Errors
    /// It is still there.
    pub fn clear(context: &'a Context, api: &'a Api, place: &'a Place) -> Result<Self, SourceError> {
        let name = pods::name("lifeboat-restore", &place.namespace, &place.claim);
        let mut pod = Self { context, api, namespace: &place.namespace, name, uid: String::new(), ended: true };
        if let Some(left) = pod.get(context)? {
            pod.uid = uid(&left);
            pod.remove(context)?;
        }
        Ok(pod)
    }

    /// Makes it and waits until it runs. One that a restore before this left behind is removed first.
    ///
    /// # Errors
    /// It does not run, and why.
    pub fn start(context: &'a Context, api: &'a Api, place: &'a Place) -> Result<Self, SourceError> {
        let mut pod = Self::clear(context, api, place)?;
        let body = manifest(context, &pod.name, place);
        let made = api.ask(context, &claim::pods(&place.namespace), &Ask::Create { body: &body })?;
        let made = made.map_err(|failure| {
            let need = "the namespace must be there, and take a pod whose user is root with the capabilities to set owners \
                        and modes (pod-security.kubernetes.io/enforce: baseline, or less)";
            pod.failed(failure.text().to_owned(), need)
        })?;
        pod.uid = uid(&made);
        pod.ended = false;
        pod.wait()?;
        Ok(pod)
    }

    fn what(&self) -> String {
        format!("pod {}/{}", self.namespace, self.name)
    }

    fn failed(&self, text: String, need: &str) -> SourceError {
        SourceError::System { attempt: format!("start {} to restore by", self.what()), text, need: need.into() }
    }

    fn get(&self, context: &Context) -> Result<Option<Value>, SourceError> {
        match self.api.ask(context, &claim::pods(self.namespace), &Ask::Get(&self.name))? {
            Ok(pod) => Ok(Some(pod)),
            Err(failure) if failure.code() == 404 => Ok(None),
            Err(failure) => Err(self.api.fatal(&format!("look at {}", self.what()), &failure).into()),
        }
    }

    fn wait(&self) -> Result<(), SourceError> {
        let mut before = String::new();
        loop {
            let pod = self.get(self.context)?.ok_or_else(|| self.failed("somebody has deleted it".into(), ""))?;
            match pod["status"]["phase"].as_str() {
                Some("Running") => return Ok(()),
                Some("Succeeded" | "Failed") => return Err(self.failed(pods::standing(&pod), "")),
                _ => {}
            }
            let now = pods::standing(&pod);
            if now != before {
                tracing::info!(pod = self.name, state = now, "waiting for the pod to restore by");
                before = now;
            }
            self.context.sleep(PAUSE).map_err(|stop| match stop {
                SourceError::Deadline => {
                    let context = self.context.afterwards(REMOVAL);
                    let why = pods::warning(&context, self.api, self.namespace, &self.name).unwrap_or_default();
                    self.failed(format!("it does not run by the deadline: {before}{why}"), "")
                }
                other => other,
            })?;
        }
    }

    fn container(&self) -> Container {
        Container { namespace: self.namespace.to_owned(), pod: self.name.clone(), name: NAME.to_owned() }
    }

    fn run(&self, arguments: Vec<String>, fed: bool) -> Result<Attached, SourceError> {
        let mut command = ["lifeboat", "receive", ROOT].map(str::to_owned).to_vec();
        command.extend(arguments);
        let started = Attached::start(self.context, self.api, &self.container(), &command, fed)?;
        started.map_err(|failure| {
            let need = "the image must be Lifeboat's own, and pods/exec needs the verbs create and get";
            self.failed(failure.text().to_owned(), need)
        })
    }

    /// Whether the volume would be filled on these terms.
    ///
    /// # Errors
    /// It cannot be looked into.
    pub fn look(&self, terms: &Terms) -> Result<Report, SourceError> {
        let mut arguments = terms.arguments();
        arguments.push("--look".into());
        self.report(self.run(arguments, false)?)
    }

    /// Starts the receiving end.
    ///
    /// # Errors
    /// It does not start.
    pub fn receive(&self, terms: &Terms) -> Result<Attached, SourceError> {
        self.run(terms.arguments(), true)
    }

    /// Undoes what a step did not bring to its end.
    ///
    /// # Errors
    /// It is half undone.
    pub fn give_back(&self, step: &str) -> Result<Report, SourceError> {
        self.report(self.run(vec![format!("--back={step}")], false)?)
    }

    /// Waits for the receiving end, and gives what it did.
    ///
    /// # Errors
    /// It failed.
    pub fn report(&self, mut attached: Attached) -> Result<Report, SourceError> {
        let mut text = Vec::new();
        let read = (&mut attached).take(LARGEST).read_to_end(&mut text);
        read.map_err(|error| SourceError::of_stream("the pod's report", error))?;
        attached.wait()?;
        serde_json::from_slice(&text).map_err(|error| {
            let need = "is the image's Lifeboat of the same version as this one?";
            self.failed(format!("what was done in it cannot be read: {error}"), need)
        })
    }

    /// Removes it, and waits until it is gone: the volume is free then.
    ///
    /// # Errors
    /// It is still there.
    pub fn end(mut self) -> Result<(), SourceError> {
        self.ended = true;
        self.remove(&self.context.afterwards(REMOVAL))
    }

    fn remove(&self, context: &Context) -> Result<(), SourceError> {
        let gone = |code: u16| matches!(code, 404 | 409);
        let ask = Ask::Delete { name: &self.name, uid: &self.uid };
        match self.api.ask(context, &claim::pods(self.namespace), &ask)? {
            Err(failure) if !gone(failure.code()) => {
                return Err(self.api.fatal(&format!("remove {}", self.what()), &failure).into());
            }
            _ => {}
        }
        while self.get(context)?.is_some_and(|pod| pod["metadata"]["uid"] == self.uid.as_str()) {
            context.sleep(PAUSE).map_err(|stop| match stop {
                SourceError::Deadline => SourceError::System {
                    attempt: format!("remove {}", self.what()),
                    text: "it is still there".into(),
                    need: "look at its node; it keeps the claim from being used elsewhere".into(),
                },
                other => other,
            })?;
        }
        Ok(())
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        if !self.ended
            && let Err(error) = self.remove(&self.context.afterwards(REMOVAL))
        {
            let error = &error as &dyn std::error::Error;
            tracing::error!(pod = self.what(), error, "the pod that a claim was restored by is left: delete it");
        }
    }
}

fn uid(pod: &Value) -> String {
    pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned()
}

fn manifest(context: &Context, name: &str, place: &Place) -> Value {
    let left = context.deadline.saturating_duration_since(Instant::now()).as_secs().max(1);
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": place.namespace,
            "labels": { "app.kubernetes.io/name": "lifeboat", "app.kubernetes.io/component": "restore" },
        },
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": left,
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "securityContext": { "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{
                "name": NAME,
                "image": place.image,
                "command": ["sleep", left.to_string()],
                "resources": { "requests": { "cpu": "100m", "memory": "64Mi" }, "limits": { "memory": "512Mi" } },
                // Files get back the owners that they had, whoever those are.
                "securityContext": {
                    "runAsUser": 0,
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {
                        "drop": ["ALL"],
                        "add": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD", "SETFCAP"],
                    },
                },
                "volumeMounts": [{ "name": "volume", "mountPath": format!("{ROOT}/{FILES}") }],
            }],
            "volumes": [{ "name": "volume", "persistentVolumeClaim": { "claimName": place.claim } }],
        },
    })
}
