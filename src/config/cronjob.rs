//! A schedule as Kubernetes CronJobs: one for each of its volumes, which can only be mounted in the claim's own namespace, one
//! for all its other sources, and one for the replica that it asks for.
//!
//! Invariants: pure; the manifests name secrets and hold none. The documents come from the ConfigMap
//! `lifeboat-documents`. A file that they name as /etc/lifeboat/NAME/KEY is the key KEY of the Secret `lifeboat-NAME`, an
//! environment variable is a key of the Secret `lifeboat-environment`. Keys that a backup does not need are not mounted.
//! Whoever replicates is somebody else, so that a stolen agent cannot reach the second copy: the same documents, with the
//! Secrets `lifeboat-replicate-NAME` and `lifeboat-replicate-environment` in their places, and no key at all.
//!
//! A volume is mounted read-only into the container. Its pod prefers the node of the pods that the document names (`pods`): a
//! volume that only one node can have is there. It only prefers it, so that the volume is backed up also when none of
//! them runs. It may read all files, so its user is root, with no more rights than that; an fsGroup it must not have, or the
//! kubelet would change the files' owners.
//!
//! Of a volume that is read by a CSI snapshot, that pod is a PodTemplate, and the CronJob runs who takes the snapshot, gives
//! it a pod and removes both ([`volume::by_snapshot`]): somebody else, who has no key.
//!
//! Deliberately absent: directories of nodes, and the choice of a node for those. Only the cluster's owner knows them; a
//! kustomize patch adds them, and [`CronJob::unmounted`] says for which paths.

use super::{Config, Repository, Schedule};
use crate::id::SourceName;
use crate::policy::schedule::Timetable;
use crate::secret::SecretRef;
use crate::source::{self, volume};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

const HOME: &str = "/etc/lifeboat";
const DOCUMENTS: &str = "documents";
const TMP: &str = "tmp";
/// The claim that is captured.
const SOURCE: &str = volume::by_snapshot::VOLUME;
/// Who takes snapshots.
const SNAPSHOT: &str = "snapshot";
const USER: u32 = 65_532;
/// The agent keeps the schedule's limit itself, and says so; Kubernetes ends what does not even do that.
const PATIENCE: u64 = 60;
/// A CronJob controller that looks every ten seconds misses what must start sooner.
const SHORTEST_DEADLINE: u64 = 10;
/// Seconds. A pod that has ended keeps a claim from being deleted, as one that runs does; and what was made for it.
const STAYS: u32 = 300;
/// So that the names of its Jobs and Pods are valid too.
const LONGEST_NAME: usize = 52;

/// What the documents do not say.
pub struct Target<'a> {
    pub image: &'a str,
    pub namespace: &'a str,
}

/// Or a PodTemplate.
#[derive(Debug)]
pub struct CronJob {
    pub manifest: Value,
    /// Paths that the schedule's sources need and that the manifest does not mount.
    pub unmounted: BTreeSet<PathBuf>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CronJobError {
    #[error("the schedule {schedule} cannot be a CronJob: Kubernetes does not know the cron pattern {pattern:?}")]
    Pattern { schedule: String, pattern: String },
    #[error("the schedule {schedule} cannot be a CronJob: {name} is longer than {LONGEST_NAME} characters")]
    Name { schedule: String, name: String },
    #[error("the schedule {schedule} cannot be a CronJob: its time zone has no IANA name")]
    Zone { schedule: String },
}

/// What one CronJob does, and as whom.
struct Work<'a> {
    name: String,
    namespace: &'a str,
    /// `backup`, `snapshot` or `replicate`; also the name of the container.
    component: &'static str,
    /// Before a Secret's name.
    prefix: &'static str,
    /// None: its pods are made as they are needed.
    timetable: Option<&'a Timetable>,
    max_duration: Duration,
    arguments: Vec<String>,
    needs: Needs,
    volume: Option<&'a volume::Spec>,
}

/// The volumes come after the other sources, the replica last; after the CronJob of a volume that is read by a snapshot, its
/// PodTemplate.
///
/// # Errors
/// Kubernetes would not take one of them.
pub fn cronjobs(config: &Config, schedule: &Schedule, target: &Target<'_>) -> Result<Vec<CronJob>, CronJobError> {
    let volume = |name: &SourceName| match config.sources.get(name).map(|source| &source.capture) {
        Some(source::Spec::Volume(spec)) => Some(spec),
        _ => None,
    };
    let (volumes, others): (Vec<_>, Vec<_>) = schedule.sources.iter().partition(|name| volume(name).is_some());
    let mut all = Vec::new();
    if !others.is_empty() {
        let work = Work::backup(config, schedule, target.namespace, &others);
        // Those that have a CronJob of their own are not this one's.
        all.push(if volumes.is_empty() { work } else { work.only(&others) });
    }
    for name in volumes {
        let Some(spec) = volume(name) else { continue };
        let mut work = Work::backup(config, schedule, &spec.namespace, &[name]).only(&[name]);
        (work.name, work.volume) = (name_of_volume(schedule, name), Some(spec));
        if spec.snapshot.is_some() {
            all.push(Work::snapshot(schedule, name, spec));
            work.timetable = None;
        }
        all.push(work);
    }
    all.extend(Work::replication(config, schedule, target.namespace));
    all.into_iter().map(|work| work.cronjob(schedule, target.image)).collect()
}

/// The name of a volume's CronJob.
#[must_use]
pub fn name_of_volume(schedule: &Schedule, source: &SourceName) -> String {
    format!("lifeboat-{}-{source}", schedule.name)
}

impl<'a> Work<'a> {
    fn backup(config: &Config, schedule: &'a Schedule, namespace: &'a str, sources: &[&SourceName]) -> Self {
        Self {
            name: format!("lifeboat-{}", schedule.name),
            namespace,
            component: "backup",
            prefix: "lifeboat-",
            timetable: Some(&schedule.timetable),
            max_duration: schedule.max_duration,
            arguments: vec!["backup".into(), format!("--schedule={}", schedule.name)],
            needs: Needs::of(config, schedule, sources),
            volume: None,
        }
    }

    /// Names the sources; without, all of the schedule are meant.
    fn only(mut self, sources: &[&SourceName]) -> Self {
        self.arguments.extend(sources.iter().map(ToString::to_string));
        self
    }

    /// Who takes a volume's snapshot and has it read.
    fn snapshot(schedule: &'a Schedule, name: &SourceName, spec: &'a volume::Spec) -> Self {
        let mut needs = Needs { account: spec.kubeconfig.is_none(), ..Needs::default() };
        spec.kubeconfig.iter().for_each(|path| needs.file(path));
        let of = [format!("--schedule={}", schedule.name), name.to_string()];
        let own = ["--pod=$(POD)", "--pod-uid=$(POD_UID)"].map(str::to_owned);
        Self {
            name: name_of_volume(schedule, name),
            namespace: &spec.namespace,
            component: SNAPSHOT,
            prefix: "lifeboat-",
            timetable: Some(&schedule.timetable),
            max_duration: schedule.max_duration,
            arguments: ["backup-by-snapshot".to_owned()].into_iter().chain(of).chain(own).collect(),
            needs,
            volume: None,
        }
    }

    /// What keeps the replica that a schedule asks for up to date.
    fn replication(config: &Config, schedule: &'a Schedule, namespace: &'a str) -> Option<Self> {
        let replica = schedule.replica.as_ref()?;
        let mut needs = Needs::default();
        let both = [&schedule.repository, &replica.to];
        both.into_iter().filter_map(|name| config.repositories.get(name)).for_each(|one| needs.store(one));
        Some(Self {
            name: format!("lifeboat-replicate-{}", schedule.name),
            namespace,
            component: "replicate",
            prefix: "lifeboat-replicate-",
            timetable: Some(&replica.timetable),
            max_duration: replica.max_duration,
            arguments: vec!["replicate".into(), format!("--schedule={}", schedule.name)],
            needs,
            volume: None,
        })
    }

    fn cronjob(self, schedule: &Schedule, image: &str) -> Result<CronJob, CronJobError> {
        if self.name.len() > LONGEST_NAME {
            return Err(CronJobError::Name { schedule: schedule.name.clone(), name: self.name });
        }
        let labels = json!({
            "app.kubernetes.io/name": "lifeboat",
            "app.kubernetes.io/component": self.component,
            "lifeboat.dev/schedule": schedule.name,
            "lifeboat.dev/tier": schedule.tier,
        });
        let metadata = json!({ "name": self.name, "namespace": self.namespace, "labels": labels });
        let template = json!({ "metadata": { "labels": labels }, "spec": self.pod(image) });
        let Some(timetable) = self.timetable else {
            let manifest =
                json!({ "apiVersion": "v1", "kind": "PodTemplate", "metadata": metadata, "template": template });
            return Ok(CronJob { manifest, unmounted: self.needs.unmounted });
        };
        let pattern = timetable.pattern();
        if !known_to_kubernetes(pattern) {
            return Err(CronJobError::Pattern { schedule: schedule.name.clone(), pattern: pattern.to_owned() });
        }
        let Some(zone) = timetable.zone().iana_name() else {
            return Err(CronJobError::Zone { schedule: schedule.name.clone() });
        };
        let mut manifest = json!({
            "apiVersion": "batch/v1",
            "kind": "CronJob",
            "metadata": metadata,
            "spec": {
                "schedule": pattern,
                "timeZone": zone,
                "suspend": schedule.suspend,
                "concurrencyPolicy": "Forbid",
                "startingDeadlineSeconds": schedule.start_delay.as_secs().max(SHORTEST_DEADLINE),
                "successfulJobsHistoryLimit": 3,
                "failedJobsHistoryLimit": 3,
                "jobTemplate": {
                    "metadata": { "labels": labels },
                    "spec": {
                        "activeDeadlineSeconds": self.max_duration.as_secs() + PATIENCE,
                        "backoffLimit": 1,
                        // What would end the same way again: a mistake in the documents, no repository, a wrong key.
                        "podFailurePolicy": { "rules": [{
                            "action": "FailJob",
                            "onExitCodes": { "containerName": self.component, "operator": "In", "values": [2, 10, 12] },
                        }] },
                        "template": template,
                    },
                },
            },
        });
        if self.volume.is_some() || self.component == SNAPSHOT {
            manifest["spec"]["jobTemplate"]["spec"]["ttlSecondsAfterFinished"] = json!(STAYS);
        }
        Ok(CronJob { manifest, unmounted: self.needs.unmounted })
    }

    fn pod(&self, image: &str) -> Value {
        let Self { component, prefix, needs, .. } = self;
        let (volumes, mounts) = self.volumes();
        let mut arguments = vec![format!("--config={HOME}/{DOCUMENTS}"), "--log-format=json".to_owned()];
        arguments.extend(self.arguments.iter().cloned());
        let secret = |name| json!({ "secretKeyRef": { "name": format!("{prefix}environment"), "key": name } });
        let mut environment: Vec<_> =
            needs.environment.iter().map(|name| json!({ "name": name, "valueFrom": secret(name) })).collect();
        if *component == SNAPSHOT {
            let field = |name, path| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
            environment.extend([field("POD", "metadata.name"), field("POD_UID", "metadata.uid")]);
        }
        let mut container = json!({
            "name": component,
            "image": image,
            "args": arguments,
            "env": environment,
            "resources": {
                "requests": { "cpu": "100m", "memory": "256Mi" },
                "limits": { "memory": "1Gi" },
            },
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": { "drop": ["ALL"] },
                "readOnlyRootFilesystem": true,
            },
            "volumeMounts": mounts,
        });
        let mut user = json!({
            "runAsNonRoot": true,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": { "type": "RuntimeDefault" },
        });
        if self.volume.is_some() {
            user = json!({ "runAsUser": 0, "seccompProfile": { "type": "RuntimeDefault" } });
            container["securityContext"]["capabilities"]["add"] = json!(["DAC_OVERRIDE"]);
        }
        let mut pod = json!({
            "restartPolicy": "Never",
            "serviceAccountName": format!("lifeboat-{component}"),
            "automountServiceAccountToken": needs.account,
            "securityContext": user,
            "containers": [container],
            "volumes": volumes,
        });
        // A volume that is made of a snapshot is wherever its pod is.
        let beside = self.volume.filter(|volume| volume.snapshot.is_none()).map(|volume| &volume.pods);
        if let Some(labels) = beside.filter(|labels| !labels.is_empty()) {
            let term = json!({ "topologyKey": "kubernetes.io/hostname", "labelSelector": { "matchLabels": labels } });
            let preferred = json!([{ "weight": 100, "podAffinityTerm": term }]);
            pod["affinity"] =
                json!({ "podAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": preferred } });
        }
        pod
    }

    /// Volumes, and where they are mounted.
    fn volumes(&self) -> (Vec<Value>, Vec<Value>) {
        let mut volumes = vec![json!({ "name": DOCUMENTS, "configMap": { "name": format!("lifeboat-{DOCUMENTS}") } })];
        let mut mounts =
            vec![json!({ "name": DOCUMENTS, "mountPath": format!("{HOME}/{DOCUMENTS}"), "readOnly": true })];
        for name in &self.needs.secrets {
            let secret = json!({ "secretName": format!("{}{name}", self.prefix), "defaultMode": 0o440 });
            volumes.push(json!({ "name": name, "secret": secret }));
            mounts.push(json!({ "name": name, "mountPath": format!("{HOME}/{name}"), "readOnly": true }));
        }
        // Programs that sources call may want to write there; nothing else can be written.
        volumes.push(json!({ "name": TMP, "emptyDir": {} }));
        mounts.push(json!({ "name": TMP, "mountPath": "/tmp" }));
        if let Some(spec) = self.volume {
            // Read-only for the container alone: not every driver can attach a volume so beside a pod that writes.
            volumes.push(json!({ "name": SOURCE, "persistentVolumeClaim": { "claimName": spec.claim } }));
            mounts.push(json!({ "name": SOURCE, "mountPath": spec.root(), "readOnly": true }));
        }
        (volumes, mounts)
    }
}

/// What a schedule's documents refer to.
#[derive(Default)]
struct Needs {
    secrets: BTreeSet<String>,
    environment: BTreeSet<String>,
    unmounted: BTreeSet<PathBuf>,
    /// The pod's own service account is somebody to one of the systems.
    account: bool,
}

impl Needs {
    fn of(config: &Config, schedule: &Schedule, sources: &[&SourceName]) -> Self {
        let mut needs = Self::default();
        if let Some(repository) = config.repositories.get(&schedule.repository) {
            repository.writer_key.iter().for_each(|secret| needs.secret(secret));
            needs.store(repository);
        }
        for source in sources.iter().filter_map(|name| config.sources.get(*name)) {
            let source::Needs { files, secrets, account } = source.capture.needs();
            needs.account |= account;
            for file in files {
                needs.file(file);
            }
            for secret in secrets {
                needs.secret(secret);
            }
        }
        needs
    }

    fn store(&mut self, repository: &Repository) {
        if let Some(credentials) = repository.s3.as_ref().and_then(|s3| s3.credentials.as_ref()) {
            self.secret(&credentials.access_key_id);
            self.secret(&credentials.secret_access_key);
            credentials.session_token.iter().for_each(|secret| self.secret(secret));
        }
    }

    fn secret(&mut self, secret: &SecretRef) {
        match secret {
            SecretRef::File(path) => self.file(path),
            SecretRef::Env(name) => {
                self.environment.insert(name.clone());
            }
        }
    }

    fn file(&mut self, path: &Path) {
        match secret_of(path) {
            Some(name) => self.secrets.insert(name.to_owned()),
            None => self.unmounted.insert(path.to_owned()),
        };
    }
}

/// NAME of /etc/lifeboat/NAME/KEY, if a Secret and a volume can have it.
fn secret_of(path: &Path) -> Option<&str> {
    let mut parts = path.strip_prefix(HOME).ok()?.iter();
    let (name, _key, end) = (parts.next()?.to_str()?, parts.next()?, parts.next());
    let fits = name.len() <= 54 && !name.starts_with('-') && !name.ends_with('-');
    let fits = fits && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    (fits && end.is_none() && ![DOCUMENTS, TMP, SOURCE].contains(&name)).then_some(name)
}

/// Whether a valid pattern has none of the extensions (L, W, #, Sunday as 7) that Kubernetes does not have.
fn known_to_kubernetes(pattern: &str) -> bool {
    const NAMES: [&str; 19] = [
        "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC", "SUN", "MON", "TUE", "WED",
        "THU", "FRI", "SAT",
    ];
    if let Some(name) = pattern.strip_prefix('@') {
        return ["yearly", "annually", "monthly", "weekly", "daily", "midnight", "hourly"].contains(&name);
    }
    let known = |value: &str| {
        let value = value.to_ascii_uppercase();
        matches!(&*value, "*" | "?") || value.parse::<u8>().is_ok() || NAMES.contains(&&*value)
    };
    pattern.split_whitespace().enumerate().all(|(index, field)| {
        field.split(',').all(|part| {
            let (range, step) = part.split_once('/').unwrap_or((part, "1"));
            step.parse::<u8>().is_ok()
                && range.split('-').all(|value| known(value) && !(index == 4 && value.parse::<u8>() == Ok(7)))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_that_kubernetes_knows() {
        for pattern in ["*/2 * * * *", "0,30 8-18/2 1 JAN-mar MON-FRI", "@hourly", "5 4 ? * 0"] {
            assert!(known_to_kubernetes(pattern), "{pattern}");
        }
        for pattern in ["0 0 L * *", "0 0 15W * *", "0 0 * * 5#3", "0 0 * * 7", "0 0 * * 5-7", "@reboot"] {
            assert!(!known_to_kubernetes(pattern), "{pattern}");
        }
    }

    #[test]
    fn secrets_are_found_by_their_path() {
        assert_eq!(secret_of(Path::new("/etc/lifeboat/etcd/ca.crt")), Some("etcd"));
        for path in
            ["/etc/lifeboat/ca.crt", "/etc/lifeboat/a/b/c", "/etc/lifeboat/Big/key", "/etc/kubernetes/pki/ca.crt"]
        {
            assert_eq!(secret_of(Path::new(path)), None, "{path}");
        }
        assert_eq!(secret_of(Path::new("/etc/lifeboat/documents/sources.yaml")), None);
    }
}
