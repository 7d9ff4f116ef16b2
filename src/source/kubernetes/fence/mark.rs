//! What an object is like when it is held, and how it says what was there before. No I/O.

use super::What;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The annotation of an object that is held; its value is a [`Before`] as JSON.
pub const HELD: &str = "lifeboat.dev/held";
/// The policy under which an ApplicationSet leaves its Applications as they are.
const LEAVE: &str = "create-only";

/// What a held object was like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Before {
    /// A workload's `spec.replicas`, more than 0.
    Replicas(i64),
    /// An Application's `spec.syncPolicy.automated`.
    Automated(Value),
    /// An ApplicationSet's `spec.syncPolicy.applicationsSync`, or null.
    ApplicationsSync(Value),
    /// A CronJob's `spec.suspend`: it was not.
    Suspend(bool),
}

impl Before {
    /// Of an object that is not held. `None`: there is nothing in it to hold back.
    pub fn of(what: What, object: &Value) -> Option<Self> {
        let spec = &object["spec"];
        match what {
            What::Deployment | What::StatefulSet => {
                let replicas = spec["replicas"].as_i64().unwrap_or(1);
                (replicas != 0).then_some(Self::Replicas(replicas))
            }
            What::Application => {
                let automated = &spec["syncPolicy"]["automated"];
                (automated.is_object() && automated["enabled"] != false).then(|| Self::Automated(automated.clone()))
            }
            What::ApplicationSet => {
                let policy = &spec["syncPolicy"]["applicationsSync"];
                // Under these two it does not change Applications that are there.
                let leaves = policy == LEAVE || policy == "create-delete";
                (!leaves).then(|| Self::ApplicationsSync(policy.clone()))
            }
            What::CronJob => (spec["suspend"] != true).then_some(Self::Suspend(false)),
        }
    }

    /// What the object itself says it was like.
    pub fn marked(object: &Value) -> Option<Self> {
        serde_json::from_str(object["metadata"]["annotations"][HELD].as_str()?).ok()
    }

    /// Is the object still as holding it left it?
    pub fn is_held(&self, object: &Value) -> bool {
        object.pointer(self.pointer()).unwrap_or(&Value::Null) == &self.held()
    }

    fn pointer(&self) -> &'static str {
        match self {
            Self::Replicas(_) => "/spec/replicas",
            Self::Automated(_) => "/spec/syncPolicy/automated",
            Self::ApplicationsSync(_) => "/spec/syncPolicy/applicationsSync",
            Self::Suspend(_) => "/spec/suspend",
        }
    }

    /// The field's value while it is held; null: it is not there.
    fn held(&self) -> Value {
        match self {
            Self::Replicas(_) => json!(0),
            Self::Automated(_) => Value::Null,
            Self::ApplicationsSync(_) => json!(LEAVE),
            Self::Suspend(_) => json!(true),
        }
    }

    /// The field's value before.
    pub fn value(&self) -> Value {
        match self {
            Self::Replicas(replicas) => json!(replicas),
            Self::Automated(value) | Self::ApplicationsSync(value) => value.clone(),
            Self::Suspend(suspend) => json!(suspend),
        }
    }

    /// The merge patch that holds the object, as long as it is in the version that was looked at.
    pub fn hold(&self, object: &Value) -> Value {
        self.patch(object, json!(self.text()), Some(self.held()))
    }

    /// The merge patch that puts it back; with `mark_only`, that takes away the mark and nothing else.
    pub fn release(&self, object: &Value, mark_only: bool) -> Value {
        self.patch(object, Value::Null, (!mark_only).then(|| self.value()))
    }

    fn patch(&self, object: &Value, mark: Value, value: Option<Value>) -> Value {
        let version = &object["metadata"]["resourceVersion"];
        let mut patch = json!({ "metadata": { "resourceVersion": version, "annotations": { HELD: mark } } });
        if let Some(value) = value {
            let mut parts = self.pointer().trim_start_matches('/').split('/').rev();
            let innermost = parts.next().map(|part| json!({ part: value })).unwrap_or_default();
            let outer = parts.fold(innermost, |inner, part| json!({ part: inner }));
            patch["spec"] = outer["spec"].clone();
        }
        patch
    }

    /// What was done to hold it.
    pub fn done(&self) -> String {
        match self {
            Self::Replicas(replicas) => format!("scaled to zero, from {replicas}"),
            Self::Automated(_) => "automated sync taken away".into(),
            Self::ApplicationsSync(_) => "leaves its Applications as they are".into(),
            Self::Suspend(_) => "suspended".into(),
        }
    }

    /// What was done to put it back.
    pub fn undone(&self) -> String {
        match self {
            Self::Replicas(replicas) => format!("scaled to {replicas} again"),
            Self::Automated(_) => "syncs by itself again".into(),
            Self::ApplicationsSync(_) => "changes its Applications again".into(),
            Self::Suspend(_) => "no longer suspended".into(),
        }
    }

    fn text(&self) -> String {
        json!(self).to_string()
    }
}
