//! A claim, and who uses it.

use super::Spec;
use crate::source::kubernetes::api::{Api, Ask, Failure};
use crate::source::kubernetes::normal::{FILLING, VOLUME};
use crate::source::kubernetes::yaml;
use crate::source::{Context, SourceError};
use kube::api::ListParams;
use serde_json::Value;
use std::collections::BTreeMap;

/// Pods of a page.
const PAGE: u32 = 200;
/// On every pod of Lifeboat's own.
const NAME: &str = "app.kubernetes.io/name";
const OWN: &str = "lifeboat";
const COMPONENT: &str = "app.kubernetes.io/component";

pub struct Claim(pub Value);

/// A DNS subdomain, as the API server wants it.
pub fn is_name(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    name.len() <= 253 && name.bytes().all(fits) && edge(name.bytes().next()) && edge(name.bytes().last())
}

pub fn path(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims")
}

pub fn pods(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

pub fn denied(api: &Api, what: &str, failure: &Failure, need: &str) -> SourceError {
    match failure.code() {
        403 => SourceError::System {
            attempt: format!("{what} at {}", api.server),
            text: failure.text().to_owned(),
            need: need.into(),
        },
        _ => api.fatal(what, failure).into(),
    }
}

impl Claim {
    /// `None`: there is no such claim.
    pub fn get(context: &Context, api: &Api, namespace: &str, name: &str) -> Result<Option<Self>, SourceError> {
        let what = format!("look at persistentvolumeclaim {namespace}/{name}");
        match api.ask(context, &path(namespace), &Ask::Get(name))? {
            Ok(object) => Ok(Some(Self(object))),
            Err(failure) if failure.code() == 404 => Ok(None),
            Err(failure) => Err(denied(
                api,
                &what,
                &failure,
                "grant get on persistentvolumeclaims in the namespace (deploy/volume)",
            )),
        }
    }

    /// The claim that is to be captured.
    pub fn wanted(context: &Context, api: &Api, spec: &Spec) -> Result<Self, SourceError> {
        let failed = |text: &str, need: &str| SourceError::System {
            attempt: format!("capture {} at {}", spec.what(), api.server),
            text: text.into(),
            need: need.into(),
        };
        let claim = Self::get(context, api, &spec.namespace, &spec.claim)?;
        let need = "was it deleted, or is this another cluster? If it is gone for good, remove the source";
        let claim = claim.ok_or_else(|| failed("there is no such claim", need))?;
        if claim.0["spec"]["volumeMode"] == "Block" {
            return Err(failed("it is a raw block device", "only volumes with a file system can be captured as files"));
        }
        if claim.marked(FILLING).is_some() {
            let need = "wait until it has ended; one that was broken off must be gone on with or given up (if all is well, \
                        remove the claim's annotation lifeboat.dev/filling)";
            return Err(failed("a restore into it has not ended", need));
        }
        Ok(claim)
    }

    pub fn uid(&self) -> Option<&str> {
        self.0["metadata"]["uid"].as_str()
    }

    /// What a mark of this claim says, if it was made for this claim and not for one that this is a copy of.
    pub fn marked(&self, name: &str) -> Option<&str> {
        let mark = self.0["metadata"]["annotations"][name].as_str()?;
        mark.strip_prefix(self.uid()?)?.strip_prefix(' ')
    }

    /// A mark of this claim.
    pub fn mark(&self, text: &str) -> String {
        format!("{} {text}", self.uid().unwrap_or_default())
    }

    /// What the volume is known by.
    pub fn volume(&self) -> Option<String> {
        self.marked(VOLUME).or(self.uid()).map(str::to_owned)
    }

    pub fn class(&self) -> Option<&str> {
        self.0["spec"]["storageClassName"].as_str()
    }

    pub fn is_bound(&self) -> bool {
        self.0["status"]["phase"] == "Bound"
    }

    fn size(&self) -> &str {
        let there = self.0["status"]["capacity"]["storage"].as_str();
        there.or(self.0["spec"]["resources"]["requests"]["storage"].as_str()).unwrap_or("of unknown size")
    }

    fn modes(&self) -> String {
        let modes = self.0["spec"]["accessModes"].as_array().into_iter().flatten().filter_map(Value::as_str);
        modes.collect::<Vec<_>>().join(", ")
    }

    pub fn describe(&self) -> String {
        let class = self
            .class()
            .filter(|class| !class.is_empty())
            .map_or("no storage class".into(), |class| format!("storage class {class}"));
        let phase = self.0["status"]["phase"].as_str().unwrap_or("new");
        format!("{phase}, {}, {}, {class}", self.size(), self.modes())
    }

    pub fn details(&self) -> BTreeMap<String, String> {
        let metadata = |field: &str| self.0["metadata"][field].as_str().unwrap_or_default().to_owned();
        let details = [
            ("namespace", metadata("namespace")),
            ("claim", metadata("name")),
            ("claim_uid", metadata("uid")),
            ("storage_class", self.class().unwrap_or_default().to_owned()),
            ("capacity", self.size().to_owned()),
            ("access_modes", self.modes()),
            ("volume", self.0["spec"]["volumeName"].as_str().unwrap_or_default().to_owned()),
        ];
        details.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// As YAML, as the API server has it.
    pub fn manifest(&self) -> Result<String, SourceError> {
        let mut object = self.0.clone();
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        yaml::write(&object).map_err(|text| SourceError::System {
            attempt: "write down the claim".into(),
            text,
            need: String::new(),
        })
    }
}

/// The pods that have the claim among their volumes and have not ended, Lifeboat's own left out.
pub fn users(context: &Context, api: &Api, namespace: &str, claim: &str) -> Result<Vec<Value>, SourceError> {
    let mut found = mounting(context, api, namespace, claim)?;
    found.retain(|pod| !is_own(pod));
    Ok(found)
}

/// Likewise, those by which Lifeboat captures it.
pub fn backups(context: &Context, api: &Api, namespace: &str, claim: &str) -> Result<Vec<Value>, SourceError> {
    let mut found = mounting(context, api, namespace, claim)?;
    found.retain(|pod| is_own(pod) && pod["metadata"]["labels"][COMPONENT] == "backup");
    Ok(found)
}

fn is_own(pod: &Value) -> bool {
    pod["metadata"]["labels"][NAME] == OWN
}

fn mounting(context: &Context, api: &Api, namespace: &str, claim: &str) -> Result<Vec<Value>, SourceError> {
    let mut parameters = ListParams::default().limit(PAGE);
    let mut found = Vec::new();
    loop {
        let list = api.ask(context, &pods(namespace), &Ask::List(&parameters))?;
        let mut list = list.map_err(|failure| {
            let what = format!("look for the pods that use persistentvolumeclaim {namespace}/{claim}");
            let need = "grant list on pods in the namespace (deploy/volume); to capture without running any programs in \
                        them, set volume.hooks.annotations: false";
            denied(api, &what, &failure, need)
        })?;
        let next = list["metadata"]["continue"].as_str().filter(|token| !token.is_empty()).map(str::to_owned);
        if let Value::Array(items) = list["items"].take() {
            found.extend(items.into_iter().filter(|pod| uses(pod, claim)));
        }
        match next {
            Some(token) => parameters.continue_token = Some(token),
            None => return Ok(found),
        }
    }
}

fn uses(pod: &Value, claim: &str) -> bool {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let mut volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    !ended
        && volumes.any(|volume| {
            volume["persistentVolumeClaim"]["claimName"] == claim
                || volume["ephemeral"].is_object()
                    && volume["name"].as_str().is_some_and(|volume| format!("{name}-{volume}") == claim)
        })
}

/// Whether a pod of [`users`] can run a program.
pub fn is_running(pod: &Value) -> bool {
    pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_mark_is_of_one_claim() {
        let mut claim = Claim(json!({"metadata": {"uid": "1", "annotations": {VOLUME: "1 old"}}}));
        assert_eq!((claim.volume().as_deref(), claim.mark("x").as_str()), (Some("old"), "1 x"));
        claim.0["metadata"]["uid"] = json!("2");
        assert_eq!(claim.volume().as_deref(), Some("2"));
    }

    #[test]
    fn pods_that_use_a_claim() {
        let pod = |volume: Value, phase: &str, app: &str| {
            json!({
                "metadata": {"name": "web-0", "labels": {NAME: app}}, "spec": {"volumes": [{"name": "x"}, volume]},
                "status": {"phase": phase},
            })
        };
        let claim = json!({"name": "v", "persistentVolumeClaim": {"claimName": "data"}});
        assert!(uses(&pod(claim.clone(), "Pending", "shop"), "data"));
        assert!(!uses(&pod(claim.clone(), "Running", "shop"), "other"));
        assert!(!uses(&pod(claim.clone(), "Succeeded", "shop"), "data"));
        assert!(is_own(&pod(claim.clone(), "Running", OWN)) && !is_own(&pod(claim, "Running", "shop")));
        assert!(uses(&pod(json!({"name": "scratch", "ephemeral": {}}), "Running", "shop"), "web-0-scratch"));
    }
}
