//! Programs that are run in the pods that use a claim: before it is read (`pre`), afterwards (`post`), and those whose output
//! is captured.
//!
//! The document names them, and pods do, by annotations that people have already: Velero's `pre.hook.backup.velero.io/…` and
//! `post.hook.backup.velero.io/…` (`command`, `container`, `timeout`, `on-error`), and K8up's `k8up.io/backupcommand`,
//! `k8up.io/file-extension` and `k8up.io/backupcommand-container`. As with Velero, a pod's own take the place of the
//! document's. What has been begun is always ended: see [`Frozen`].

use super::claim::{self, is_running};
use super::{STREAMS, Spec};
use crate::entry::{Layout, Sink};
use crate::source::command::plain_file;
use crate::source::kubernetes::api::Api;
use crate::source::kubernetes::attach::{Attached, Container};
use crate::source::{Context, Say, SourceError, unpack};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{self, Read};
use std::time::{Duration, Instant};

/// As Velero's.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often a program of `post` is begun that the server does not start.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);
const VELERO: &str = "hook.backup.velero.io";
const COMMAND: &str = "k8up.io/backupcommand";
const CONTAINER: &str = "k8up.io/backupcommand-container";
const EXTENSION: &str = "k8up.io/file-extension";

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Hooks {
    /// What the pods' annotations name, too.
    pub annotations: bool,
    pub pre: Vec<Hook>,
    pub post: Vec<Hook>,
}

impl Default for Hooks {
    fn default() -> Self {
        Self { annotations: true, pre: Vec::new(), post: Vec::new() }
    }
}

/// A program, run in every running pod that uses the claim.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hook {
    /// The program and its arguments; no shell is involved.
    pub command: Vec<String>,
    /// The pod's first, if not given.
    pub container: Option<String>,
    /// How long it is waited for ("30s", which is also the default).
    pub timeout: Option<String>,
    #[serde(default)]
    pub on_error: Failing,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Failing {
    /// Before: nothing is captured. Afterwards: the snapshot is incomplete.
    #[default]
    Fail,
    /// It is warned of.
    Continue,
}

impl Hooks {
    pub fn may_be_any(&self) -> bool {
        self.annotations || !self.pre.is_empty() || !self.post.is_empty()
    }

    pub fn check(&self, say: &mut Say<'_>) {
        for (phase, hooks) in [("pre", &self.pre), ("post", &self.post)] {
            for (index, hook) in hooks.iter().enumerate() {
                let mut say = |field: &str, text: &str| say(&format!("hooks.{phase}[{index}].{field}"), text);
                if hook.command.first().is_none_or(String::is_empty) {
                    say("command", "expected a program and its arguments");
                }
                if hook.timeout.as_deref().is_some_and(|text| duration(text).is_none()) {
                    say("timeout", "expected a duration such as 30s or 5m");
                }
            }
        }
    }
}

fn duration(text: &str) -> Option<Duration> {
    let parsed = text.parse::<jiff::SignedDuration>().ok()?;
    Duration::try_from(parsed).ok().filter(|duration| !duration.is_zero())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Pre,
    Post,
}

impl Phase {
    fn word(self) -> &'static str {
        match self {
            Self::Pre => "pre",
            Self::Post => "post",
        }
    }
}

/// A program to be run in a certain container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    at: Container,
    command: Vec<String>,
    timeout: Duration,
    failing: Failing,
}

/// A program whose output is captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    at: Container,
    command: Vec<String>,
    name: String,
}

/// What is to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub pre: Vec<Run>,
    pub post: Vec<Run>,
    pub streams: Vec<Stream>,
}

impl Found {
    pub fn describe(&self) -> Vec<String> {
        let runs = self.pre.iter().map(|run| ("before", run)).chain(self.post.iter().map(|run| ("afterwards", run)));
        let mut lines: Vec<_> = runs.map(|(when, run)| format!("{when}, a program runs in {}", run.at)).collect();
        lines.extend(
            self.streams.iter().map(|stream| format!("{} is what a program in {} writes", stream.name, stream.at)),
        );
        lines
    }

    pub fn details(&self) -> Vec<(String, String)> {
        let counts = [("hooks_pre", self.pre.len()), ("hooks_post", self.post.len()), (STREAMS, self.streams.len())];
        let counts = counts.into_iter().filter(|(_, count)| *count > 0);
        counts.map(|(name, count)| (name.to_owned(), count.to_string())).collect()
    }
}

/// Finds out what is to be run in the pods that use the claim.
pub fn of(context: &Context, api: &Api, spec: &Spec) -> Result<Found, SourceError> {
    if !spec.hooks.may_be_any() {
        return Ok(Found::default());
    }
    find(spec, &claim::users(context, api, &spec.namespace, &spec.claim)?)
}

fn find(spec: &Spec, pods: &[Value]) -> Result<Found, SourceError> {
    let chosen = |pod: &&Value| {
        let labels = &pod["metadata"]["labels"];
        is_running(pod) && spec.pods.iter().all(|(name, value)| labels[name] == value.as_str())
    };
    let mut pods: Vec<&Value> = pods.iter().filter(chosen).collect();
    pods.sort_by_key(|pod| name_of(pod));
    let (mut found, mut makers) = (Found::default(), BTreeSet::new());
    for pod in pods {
        for (phase, hooks) in [(Phase::Pre, &spec.hooks.pre), (Phase::Post, &spec.hooks.post)] {
            let own = if spec.hooks.annotations { annotated(spec, pod, phase)? } else { None };
            let runs = match own {
                Some(run) => vec![run],
                None => hooks.iter().map(|hook| documented(spec, pod, hook)).collect(),
            };
            if phase == Phase::Pre { &mut found.pre } else { &mut found.post }.extend(runs);
        }
        // Of replicas, one speaks for all.
        let maker = pod["metadata"]["ownerReferences"][0]["uid"].as_str().or(pod["metadata"]["uid"].as_str());
        if spec.hooks.annotations && annotation(pod, COMMAND).is_some() && makers.insert(maker) {
            let stream = stream(spec, pod, &found.streams)?;
            found.streams.push(stream);
        }
    }
    // What was held still last is let go first.
    found.post.reverse();
    Ok(found)
}

fn name_of(pod: &Value) -> String {
    pod["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn annotation<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    pod["metadata"]["annotations"][name].as_str().filter(|text| !text.is_empty())
}

fn container(spec: &Spec, pod: &Value, name: Option<&str>) -> Container {
    let name = name.or(pod["spec"]["containers"][0]["name"].as_str()).unwrap_or_default().to_owned();
    Container { namespace: spec.namespace.clone(), pod: name_of(pod), name }
}

fn documented(spec: &Spec, pod: &Value, hook: &Hook) -> Run {
    Run {
        at: container(spec, pod, hook.container.as_deref()),
        command: hook.command.clone(),
        timeout: hook.timeout.as_deref().and_then(duration).unwrap_or(TIMEOUT),
        failing: hook.on_error,
    }
}

fn bad(pod: &Value, annotation: &str, text: &str) -> SourceError {
    let what = format!("pod {} has the annotation {annotation}, which {text}", name_of(pod));
    SourceError::System {
        attempt: "find out which programs are to be run in pods".into(),
        text: what,
        need: "mend it, or set volume.hooks.annotations: false".into(),
    }
}

fn annotated(spec: &Spec, pod: &Value, phase: Phase) -> Result<Option<Run>, SourceError> {
    let prefix = format!("{}.{VELERO}", phase.word());
    let mut prefix = prefix.as_str();
    if phase == Phase::Pre && annotation(pod, &format!("{prefix}/command")).is_none() {
        // Before there were two phases.
        prefix = VELERO;
    }
    let of = |field: &str| annotation(pod, &format!("{prefix}/{field}"));
    let Some(command) = of("command") else { return Ok(None) };
    let timeout = match of("timeout") {
        Some(text) => {
            duration(text).ok_or_else(|| bad(pod, &format!("{prefix}/timeout"), "is not a duration such as 30s"))?
        }
        None => TIMEOUT,
    };
    let failing = match of("on-error") {
        None | Some("Fail") => Failing::Fail,
        Some("Continue") => Failing::Continue,
        Some(_) => return Err(bad(pod, &format!("{prefix}/on-error"), "is neither Fail nor Continue")),
    };
    let at = container(spec, pod, of("container"));
    Ok(Some(Run { at, command: velero_command(command), timeout, failing }))
}

/// A list in JSON, or a program alone.
fn velero_command(text: &str) -> Vec<String> {
    serde_json::from_str(text)
        .ok()
        .filter(|list: &Vec<String>| !list.is_empty())
        .unwrap_or_else(|| vec![text.to_owned()])
}

fn stream(spec: &Spec, pod: &Value, taken: &[Stream]) -> Result<Stream, SourceError> {
    let text = annotation(pod, COMMAND).unwrap_or_default();
    let command = shlex::split(text).filter(|command| !command.is_empty());
    let command = command.ok_or_else(|| bad(pod, COMMAND, "is no command: a quote is not closed"))?;
    let extension = annotation(pod, EXTENSION).unwrap_or_default();
    if extension.contains(['/', '\0']) {
        return Err(bad(pod, EXTENSION, "is no end of a file's name"));
    }
    let at = container(spec, pod, annotation(pod, CONTAINER));
    let mut name = format!("{STREAMS}/{}{extension}", at.name);
    if taken.iter().any(|stream| stream.name == name) {
        name = format!("{STREAMS}/{}-{}{extension}", at.pod, at.name);
    }
    Ok(Stream { at, command, name })
}

/// Runs a program to its end. `tries`: how often it is begun, if the server does not start it.
fn run(context: &Context, api: &Api, run: &Run, tries: u32) -> Result<(), SourceError> {
    let deadline = context.deadline.min(Instant::now() + run.timeout);
    let within = Context { deadline, ..context.clone() };
    let attempt = format!("run a program in {}", run.at);
    let in_time = |error| match error {
        SourceError::Deadline => SourceError::System {
            attempt: attempt.clone(),
            text: format!("it did not end within {:?}; it may go on there", run.timeout),
            need: String::new(),
        },
        other => other,
    };
    for left in (0..tries).rev() {
        match Attached::start(&within, api, &run.at, &run.command, false).map_err(in_time)? {
            Ok(attached) => return attached.wait().map_err(in_time),
            Err(failure) if left == 0 => {
                let need = "pods/exec needs the verbs create and get (deploy/volume)";
                let need = if failure.code() == 403 { need } else { "" };
                return Err(SourceError::System { attempt, text: failure.text().into(), need: need.into() });
            }
            Err(_) => within.sleep(PAUSE).map_err(in_time)?,
        }
    }
    Ok(())
}

impl Stream {
    /// Captures what it writes.
    pub fn capture(&self, context: &Context, api: &Api, sink: &mut dyn Sink) -> Result<(), SourceError> {
        let failed = |text: &str| SourceError::System {
            attempt: format!("capture what a program in {} writes", self.at),
            text: text.into(),
            need: String::new(),
        };
        let attached = Attached::start(context, api, &self.at, &self.command, false)?;
        let mut output = Counting { attached: attached.map_err(|failure| failed(failure.text()))?, bytes: 0 };
        let entry = plain_file(self.name.clone().into_bytes(), 0, context.started);
        unpack::hand_over_rest(context, sink, entry, Layout::Content, &mut output)?;
        output.attached.wait()?;
        if output.bytes == 0 { Err(failed("it wrote nothing")) } else { Ok(()) }
    }
}

struct Counting {
    attached: Attached,
    bytes: u64,
}

impl Read for Counting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.attached.read(buffer)?;
        self.bytes += read as u64;
        Ok(read)
    }
}

/// Pods in which something may be held still until the programs of `post` have run. They are run whatever happens, when this
/// is dropped at the latest, and whether or not the run is to go on.
pub struct Frozen<'a> {
    context: &'a Context,
    api: &'a Api,
    post: Vec<Run>,
}

impl<'a> Frozen<'a> {
    /// Runs the programs of `pre`.
    ///
    /// # Errors
    /// One failed: those of `post` have been run.
    pub fn freeze(context: &'a Context, api: &'a Api, found: Found) -> Result<Self, SourceError> {
        let frozen = Self { context, api, post: found.post };
        for pre in &found.pre {
            let Err(error) = run(context, api, pre, 1) else { continue };
            if pre.failing == Failing::Continue && context.go_on().is_ok() {
                tracing::warn!(error = &error as &dyn std::error::Error, "a program before the capture failed");
                continue;
            }
            let left = frozen.thaw();
            return Err(match error {
                SourceError::System { attempt, text, need } if !left.is_empty() => {
                    let needs: Vec<_> = std::iter::once(need).filter(|need| !need.is_empty()).chain(left).collect();
                    SourceError::System { attempt, text, need: needs.join("; ") }
                }
                other => other,
            });
        }
        Ok(frozen)
    }

    /// Runs the programs of `post`. Gives what a person must look at: those that failed.
    pub fn thaw(mut self) -> Vec<String> {
        self.run()
    }

    fn run(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        for post in std::mem::take(&mut self.post) {
            // The run may be over; this has a time of its own.
            let context = self.context.afterwards(post.timeout);
            let Err(error) = run(&context, self.api, &post, TRIES) else { continue };
            let text = "a program after the capture failed: what it should have let go may still be held";
            let place = post.at.to_string();
            if post.failing == Failing::Continue {
                tracing::warn!(place, error = &error as &dyn std::error::Error, text);
            } else {
                tracing::error!(place, error = &error as &dyn std::error::Error, text);
                left.push(format!("{text} (look at it now): {error}"));
            }
        }
        left
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.run();
    }
}

#[cfg(test)]
#[allow(clippy::needless_pass_by_value, reason = "json!(…) is passed as it is")]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(hooks: Value) -> Spec {
        serde_json::from_value(json!({"namespace": "shop", "claim": "data", "hooks": hooks})).unwrap()
    }

    fn pod(name: &str, annotations: Value) -> Value {
        json!({
            "metadata": {"name": name, "uid": name, "annotations": annotations, "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "main"}, {"name": "side"}]},
            "status": {"phase": "Running"},
        })
    }

    #[test]
    fn annotations_of_velero() {
        let annotations = json!({
            "pre.hook.backup.velero.io/command": "[\"fsfreeze\", \"--freeze\", \"/data\"]",
            "pre.hook.backup.velero.io/container": "side",
            "pre.hook.backup.velero.io/timeout": "1m30s",
            "pre.hook.backup.velero.io/on-error": "Continue",
            "post.hook.backup.velero.io/command": "/thaw it",
        });
        let found = find(&spec(json!({})), &[pod("web", annotations)]).unwrap();
        let pre = &found.pre[0];
        assert_eq!(pre.command, ["fsfreeze", "--freeze", "/data"]);
        assert_eq!(
            (pre.at.name.as_str(), pre.timeout, pre.failing),
            ("side", Duration::from_secs(90), Failing::Continue)
        );
        let post = &found.post[0];
        assert_eq!(post.command, ["/thaw it"]);
        assert_eq!((post.at.name.as_str(), post.timeout, post.failing), ("main", TIMEOUT, Failing::Fail));
        let old = find(&spec(json!({})), &[pod("web", json!({"hook.backup.velero.io/command": "sync"}))]).unwrap();
        assert_eq!(old.pre[0].command, ["sync"]);
        assert!(old.post.is_empty());
        let none =
            find(&spec(json!({"annotations": false})), &[pod("web", json!({"hook.backup.velero.io/command": "x"}))]);
        assert_eq!(none.unwrap(), Found::default());
        let wrong = json!({"hook.backup.velero.io/command": "x", "hook.backup.velero.io/on-error": "Stop"});
        assert!(find(&spec(json!({})), &[pod("web", wrong)]).unwrap_err().to_string().contains("on-error"));
    }

    #[test]
    fn a_pods_own_take_the_place_of_the_documents() {
        let hooks = json!({"pre": [{"command": ["a"]}, {"command": ["b"]}], "post": [{"command": ["c"]}]});
        let pods = [
            pod("two", json!({})),
            pod("one", json!({"pre.hook.backup.velero.io/command": "own"})),
            pod("x", json!({})),
        ];
        let mut gone = pods[2].clone();
        gone["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let found = find(&spec(hooks), &[pods[0].clone(), pods[1].clone(), gone]).unwrap();
        let names = |runs: &[Run]| -> Vec<String> {
            runs.iter().map(|run| format!("{} {}", run.at.pod, run.command.join(" "))).collect()
        };
        assert_eq!(names(&found.pre), ["one own", "two a", "two b"]);
        assert_eq!(names(&found.post), ["two c", "one c"]);
    }

    #[test]
    fn outputs_of_k8up() {
        let with = |extension: &str| json!({"k8up.io/backupcommand": "sh -c 'pg_dump \"$DB\"'", "k8up.io/file-extension": extension});
        let found =
            find(&spec(json!({})), &[pod("a", with(".sql")), pod("b", with(".sql")), pod("c", with(""))]).unwrap();
        let names: Vec<_> = found.streams.iter().map(|stream| stream.name.as_str()).collect();
        assert_eq!(names, ["streams/main.sql", "streams/b-main.sql", "streams/main"]);
        assert_eq!(found.streams[0].command, ["sh", "-c", "pg_dump \"$DB\""]);
        let mut replicas = [pod("a", with(".sql")), pod("b", with(".sql"))];
        for replica in &mut replicas {
            replica["metadata"]["ownerReferences"] = json!([{"uid": "one"}]);
        }
        assert_eq!(find(&spec(json!({})), &replicas).unwrap().streams.len(), 1);
        assert!(find(&spec(json!({})), &[pod("a", with("/../x"))]).is_err());
    }
}
