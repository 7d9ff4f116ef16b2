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
        self.patch(object, &json!(self.text()), Some(self.held()))
    }

    /// The merge patch that puts it back.
    pub fn release(&self, object: &Value) -> Value {
        let mut patch = self.patch(object, &Value::Null, Some(self.value()));
        if self.made_policy(object) {
            patch["spec"]["syncPolicy"] = Value::Null;
        }
        patch
    }

    /// The merge patch that takes away the mark and nothing else.
    pub fn unmark(object: &Value) -> Value {
        let version = &object["metadata"]["resourceVersion"];
        json!({ "metadata": { "resourceVersion": version, "annotations": { HELD: null } } })
    }

    /// Was the ApplicationSet's policy made to hold it?
    fn made_policy(&self, object: &Value) -> bool {
        let only = object["spec"]["syncPolicy"].as_object().is_some_and(|policy| policy.len() == 1);
        *self == Self::ApplicationsSync(Value::Null) && only
    }

    /// Changes the field of an object in memory.
    fn set(&self, object: &mut Value, value: Value) {
        let Some((parent, field)) = self.pointer().rsplit_once('/') else { return };
        let parent = parent.trim_start_matches('/').split('/');
        let parent = parent.fold(object, |inner, part| &mut inner[part]);
        if value.is_null() {
            parent.as_object_mut().map(|map| map.remove(field));
        } else {
            parent[field] = value;
        }
    }

    fn patch(&self, object: &Value, mark: &Value, value: Option<Value>) -> Value {
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

/// Makes an object as if it were not held.
pub fn unhold(word: &str, object: &mut Value) {
    if What::of_resource(word).is_none() || object["metadata"]["annotations"][HELD].is_null() {
        return;
    }
    if let Some(before) = Before::marked(object).filter(|before| before.is_held(object)) {
        if before.made_policy(object) {
            object["spec"].as_object_mut().map(|spec| spec.remove("syncPolicy"));
        } else {
            before.set(object, before.value());
        }
    }
    object["metadata"]["annotations"].as_object_mut().map(|annotations| annotations.remove(HELD));
}

/// Holds `wanted` back if `live`, in whose place it will be, is held: releasing it makes it what it is now.
pub fn keep_held(word: &str, live: &Value, wanted: &mut Value) {
    if Before::marked(live).is_some_and(|before| before.is_held(live)) {
        make_held(word, wanted);
    }
}

/// Makes an object as if it had been held back as it is now.
pub fn make_held(word: &str, wanted: &mut Value) {
    let Some(what) = What::of_resource(word) else { return };
    if let Some(before) = Before::of(what, wanted) {
        before.set(wanted, before.held());
        wanted["metadata"]["annotations"][HELD] = json!(before.text());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the server makes of a merge patch (RFC 7386).
    fn merge(target: &mut Value, patch: &Value) {
        let Some(patch) = patch.as_object() else {
            *target = patch.clone();
            return;
        };
        if !target.is_object() {
            *target = json!({});
        }
        for (key, value) in patch {
            if value.is_null() {
                target.as_object_mut().unwrap().remove(key);
            } else {
                merge(&mut target[key], value);
            }
        }
    }

    #[test]
    fn held_and_released_it_is_what_it_was() {
        let spec = |spec: Value| json!({ "metadata": {"name": "one", "annotations": {"a": "b"}}, "spec": spec });
        for (what, word, object) in [
            (What::Deployment, "deployments.apps", spec(json!({"replicas": 3, "paused": true}))),
            (What::StatefulSet, "statefulsets.apps", spec(json!({"replicas": 1}))),
            (What::CronJob, "cronjobs.batch", spec(json!({"suspend": false}))),
            (What::Application, "applications.argoproj.io", spec(json!({"syncPolicy": {"automated": {}}}))),
            (
                What::Application,
                "applications.argoproj.io",
                spec(json!({"syncPolicy": {"automated": {"selfHeal": true}, "retry": {"limit": 2}}})),
            ),
            (What::ApplicationSet, "applicationsets.argoproj.io", spec(json!({"generators": []}))),
            (
                What::ApplicationSet,
                "applicationsets.argoproj.io",
                spec(json!({"syncPolicy": {"applicationsSync": "create-update", "preserveResourcesOnDeletion": true}})),
            ),
        ] {
            let before = Before::of(what, &object).unwrap();
            assert!(!before.is_held(&object));
            let mut held = object.clone();
            merge(&mut held, &before.hold(&object));
            assert!(before.is_held(&held), "{held}");
            assert_eq!(Before::marked(&held), Some(before.clone()));
            assert_eq!(Before::of(what, &held), None, "{held}");
            let mut released = held.clone();
            merge(&mut released, &before.release(&held));
            assert_eq!(released, object);
            let mut same = held.clone();
            unhold(word, &mut same);
            assert_eq!(same, object);
            keep_held(word, &held, &mut same);
            assert_eq!(same, held);
        }
    }

    #[test]
    fn what_does_nothing_is_not_held() {
        let of = |what: What, spec: Value| Before::of(what, &json!({ "spec": spec }));
        assert_eq!(of(What::Deployment, json!({"replicas": 0})), None);
        assert_eq!(of(What::StatefulSet, json!({})), Some(Before::Replicas(1)));
        assert_eq!(of(What::CronJob, json!({"suspend": true})), None);
        assert_eq!(of(What::Application, json!({"syncPolicy": {"automated": {"enabled": false}}})), None);
        assert_eq!(of(What::Application, json!({"syncPolicy": {"retry": {}}})), None);
        assert_eq!(of(What::ApplicationSet, json!({"syncPolicy": {"applicationsSync": "create-only"}})), None);
    }
}
