//! Running a Job of a restore plan to its end. A Job is known by its name, which is made of the run's id: run again, the
//! same Job is joined and not made twice, unless it has failed: then a new one is made. It stays for a day, so that an
//! interrupted run finds it. Deliberately absent: deleting Jobs; following logs.

use super::api::{Api, Ask};
use super::{MANAGER, Spec};
use crate::source::{Context, Say, SourceError};
use kube::api::ListParams;
use serde_json::{Value, json};
use std::time::Duration;

const PAUSE: Duration = Duration::from_millis(500);
/// Seconds that a Job stays after its end.
const STAYS: u32 = 86_400;
/// The run that made a Job.
const RUN: &str = "lifeboat.dev/run";
/// Of a log's end.
const LINES: i64 = 20;
const BYTES: usize = 4 << 10;

/// Says what is wrong with a Job's manifest.
pub fn check(manifest: &Value, say: &mut Say<'_>) {
    if manifest["apiVersion"] != "batch/v1" || manifest["kind"] != "Job" {
        say("", "expected a Job of batch/v1");
    }
    if !manifest["metadata"]["namespace"].as_str().is_some_and(super::is_namespace) {
        say("metadata.namespace", "expected the namespace that it runs in");
    }
    if !manifest["spec"]["template"]["spec"].is_object() {
        say("spec.template.spec", "expected the pod that does the work");
    }
}

/// Runs the Job and waits for its end. Gives how it ended and the end of its pod's log, which is as public as its author made
/// it.
///
/// # Errors
/// It failed (with the end of its log), did not end before the deadline, or could not be made.
pub fn run_job(context: &Context, spec: &Spec, manifest: &Value, id: &str) -> Result<String, SourceError> {
    let mut mistakes = Vec::new();
    check(manifest, &mut |field, text| mistakes.push(format!("{field}: {text}")));
    if !mistakes.is_empty() {
        return Err(failed("read the manifest of a Job", mistakes.join("; "), ""));
    }
    let api = Api::connect(context, spec)?;
    let mut failures = 0;
    loop {
        let id = if failures == 0 { id.to_owned() } else { format!("{id}-{failures}") };
        let job = Job::new(context, &api, manifest, &id);
        if job.make(manifest, &id)? {
            return job.wait();
        }
        failures += 1;
    }
}

fn failed(attempt: &str, text: impl Into<String>, need: &str) -> SourceError {
    SourceError::System { attempt: attempt.to_owned(), text: text.into(), need: need.to_owned() }
}

struct Job<'a> {
    context: &'a Context,
    api: &'a Api,
    namespace: &'a str,
    name: String,
}

impl<'a> Job<'a> {
    fn new(context: &'a Context, api: &'a Api, manifest: &'a Value, id: &str) -> Self {
        let metadata = &manifest["metadata"];
        let own = metadata["name"].as_str().or_else(|| metadata["generateName"].as_str()).unwrap_or(MANAGER);
        // A pod's name is the Job's and six characters, and may have 63.
        let own: String = own.chars().take(40).collect();
        let hash = blake3::hash(id.as_bytes()).to_hex();
        let name = format!("{}-{}", own.trim_end_matches(['-', '.']), &hash[..10]);
        Self { context, api, namespace: metadata["namespace"].as_str().unwrap_or_default(), name }
    }

    fn what(&self) -> String {
        format!("job/{} in {}", self.name, self.namespace)
    }

    fn path(&self) -> String {
        format!("/apis/batch/v1/namespaces/{}/jobs", self.namespace)
    }

    /// Makes it, unless it is there. False: it is, and has failed.
    fn make(&self, manifest: &Value, id: &str) -> Result<bool, SourceError> {
        let mut body = manifest.clone();
        if let Some(metadata) = body["metadata"].as_object_mut() {
            metadata.remove("generateName");
            metadata.insert("name".into(), json!(self.name));
        }
        body["metadata"]["annotations"][RUN] = json!(id);
        body["spec"]["ttlSecondsAfterFinished"] = json!(STAYS);
        let made = self.api.ask(self.context, &self.path(), &Ask::Create { body: &body })?;
        match made {
            Ok(_) => Ok(true),
            Err(failure) if failure.code() == 409 => {
                let there = self.get()?;
                if there["metadata"]["annotations"][RUN] == id {
                    let mut conditions = there["status"]["conditions"].as_array().into_iter().flatten();
                    return Ok(!conditions.any(|one| one["type"] == "Failed" && one["status"] == "True"));
                }
                let text = "another Job has its name";
                Err(failed(&format!("make {}", self.what()), text, "give the Job of the plan another name"))
            }
            Err(failure) => Err(self.api.fatal(&format!("make {}", self.what()), &failure).into()),
        }
    }

    fn get(&self) -> Result<Value, SourceError> {
        self.api.ask(self.context, &self.path(), &Ask::Get(&self.name))?.map_err(|failure| {
            if failure.code() == 404 {
                return failed(&format!("wait for {}", self.what()), "somebody has deleted it", "");
            }
            self.api.fatal(&format!("look at {}", self.what()), &failure).into()
        })
    }

    fn wait(&self) -> Result<String, SourceError> {
        let late = |stop| match stop {
            SourceError::Deadline => {
                let need = "it may run on: look at its pod, delete it, or give the step more time";
                failed(&format!("wait for {}", self.what()), "it has not ended by the deadline", need)
            }
            other => other,
        };
        loop {
            self.context.go_on().map_err(late)?;
            let job = self.get().map_err(late)?;
            let conditions = job["status"]["conditions"].as_array().into_iter().flatten();
            for condition in conditions.filter(|condition| condition["status"] == "True") {
                if condition["type"] == "Complete" {
                    return Ok(format!("{} is complete{}", self.what(), self.log()?));
                }
                if condition["type"] == "Failed" {
                    let reason = condition["reason"].as_str().unwrap_or("no reason given");
                    return Err(failed(
                        &format!("run {}", self.what()),
                        format!("it failed: {reason}{}", self.log()?),
                        "",
                    ));
                }
            }
            self.context.sleep(PAUSE).map_err(late)?;
        }
    }

    /// The end of the log of its newest pod, or why there is none.
    fn log(&self) -> Result<String, SourceError> {
        let pods = format!("/api/v1/namespaces/{}/pods", self.namespace);
        let parameters = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={}", self.name)).limit(50);
        let list = match self.api.ask(self.context, &pods, &Ask::List(&parameters))? {
            Ok(list) => list,
            Err(failure) => return Ok(format!(" (its log cannot be read: {})", failure.text())),
        };
        let made = |pod: &&Value| pod["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned();
        let newest = list["items"].as_array().into_iter().flatten().max_by_key(made);
        let Some(pod) = newest else { return Ok(" (its pod is gone)".into()) };
        let container = pod["spec"]["containers"][0]["name"].as_str().unwrap_or_default();
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        Ok(match self.context.wait(self.api.log(&pods, name, container, LINES))? {
            Ok(text) if text.trim().is_empty() => " (its log is empty)".into(),
            Ok(text) => format!("; the end of its log:\n{}", end(text.trim_end())),
            Err(failure) => format!(" (its log cannot be read: {})", failure.text()),
        })
    }
}

fn end(text: &str) -> &str {
    let from = text.ceil_char_boundary(text.len().saturating_sub(BYTES));
    &text[from..]
}
