//! Is an object as it should be? For the probes of restore plans. One look; who wants to wait looks again.

use super::Spec;
use super::api::{Api, Ask};
use super::kinds::Kind;
use crate::source::{Context, Say, SourceError};
use kube::api::ListParams;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One object and what must be so. With neither condition nor field, it must be there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Check {
    /// Its resource and group, such as `deployments.apps` or `configmaps`.
    pub resource: String,
    /// None: an object that belongs to no namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    pub name: String,
    /// Of `status.conditions`: `Available`, or `Degraded=False`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// A JSON pointer (RFC 6901), such as `/status/health/status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What the field must be: a text as it is, anything else as JSON. None: it must be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equals: Option<String>,
}

impl Check {
    /// Says what no type can.
    pub fn check(&self, say: &mut Say<'_>) {
        let bad = |c: char| c.is_ascii_uppercase() || c.is_whitespace() || c == '/';
        if self.resource.is_empty() || self.resource.contains(bad) {
            say("resource", "expected a resource and its group, such as configmaps or deployments.apps");
        }
        if self.namespace.as_deref().is_some_and(|name| !super::is_namespace(name)) {
            say("namespace", "expected the name of a namespace");
        }
        if self.name.is_empty() || self.name.contains('/') {
            say("name", "expected the name of an object");
        }
        if self.condition.as_deref().is_some_and(|text| text.is_empty() || text.starts_with('=')) {
            say("condition", "expected a condition such as Available, or Degraded=False");
        }
        if self.field.as_deref().is_some_and(|pointer| !pointer.starts_with('/')) {
            say("field", "expected a JSON pointer such as /status/phase");
        }
        if self.equals.is_some() && self.field.is_none() {
            say("equals", "a value is a field's: give field too");
        }
    }

    fn what(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{}/{} in {namespace}", self.resource, self.name),
            None => format!("{}/{}", self.resource, self.name),
        }
    }

    /// What is so, or what is instead.
    fn judge(&self, object: &Value) -> Result<String, String> {
        let mut lines = Vec::new();
        if let Some(condition) = &self.condition {
            lines.push(of_condition(object, condition)?);
        }
        if let Some(pointer) = &self.field {
            lines.push(self.of_field(object, pointer)?);
        }
        Ok(if lines.is_empty() { "is there".into() } else { lines.join(", ") })
    }

    fn of_field(&self, object: &Value, pointer: &str) -> Result<String, String> {
        let there = match object.pointer(pointer) {
            None | Some(Value::Null) => return Err(format!("{pointer} is not there")),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        // A Secret's values are nobody's to tell, nor what they should be.
        let secret = self.resource == "secrets";
        match &self.equals {
            Some(wanted) if *wanted != there && secret => Err(format!("{pointer} holds another value")),
            Some(wanted) if *wanted != there => Err(format!("{pointer} is {there}, and should be {wanted}")),
            Some(_) if secret => Ok(format!("{pointer} is what it should be")),
            Some(wanted) => Ok(format!("{pointer} is {wanted}")),
            None => Ok(format!("{pointer} is there")),
        }
    }
}

fn of_condition(object: &Value, condition: &str) -> Result<String, String> {
    let (kind, wanted) = condition.split_once('=').unwrap_or((condition, "True"));
    // A status that is older than the spec says nothing of it.
    let (seen, newest) = (&object["status"]["observedGeneration"], &object["metadata"]["generation"]);
    if seen.is_number() && newest.is_number() && seen != newest {
        return Err("its controller has not seen its newest spec yet".into());
    }
    let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    let Some(found) = conditions.find(|one| one["type"] == kind) else {
        return Err(format!("it has no condition {kind}"));
    };
    let status = found["status"].as_str().unwrap_or("Unknown");
    if status == wanted {
        return Ok(format!("{kind} is {status}"));
    }
    let reason = found["reason"].as_str().unwrap_or("no reason given");
    Err(format!("{kind} is {status} ({reason}), and should be {wanted}"))
}

/// Looks once. `Ok`: it holds, in a line that says so.
///
/// # Errors
/// It does not hold: what is, and what should be. Or the server cannot be asked.
pub fn check(context: &Context, spec: &Spec, check: &Check) -> Result<String, SourceError> {
    let api = Api::connect(context, spec)?;
    let what = check.what();
    let kind = kind(context, &api, &check.resource)?;
    let object = match api.ask(context, &kind.path(check.namespace.as_deref()), &Ask::Get(&check.name))? {
        Ok(object) => Ok(object),
        Err(failure) if failure.code() == 404 => Err("it is not there".to_owned()),
        Err(failure) => return Err(api.fatal(&format!("look at {what}"), &failure).into()),
    };
    match object.and_then(|object| check.judge(&object)) {
        Ok(line) => Ok(format!("{what}: {line}")),
        Err(text) => Err(SourceError::System { attempt: format!("check {what}"), text, need: String::new() }),
    }
}

/// In the version that the server prefers.
fn kind(context: &Context, api: &Api, word: &str) -> Result<Kind, SourceError> {
    let (plural, group) = word.split_once('.').unwrap_or((word, ""));
    let version = if group.is_empty() {
        "v1".to_owned()
    } else {
        match api.ask(context, &format!("/apis/{group}"), &Ask::List(&ListParams::default()))? {
            Ok(found) => found["preferredVersion"]["version"].as_str().unwrap_or_default().to_owned(),
            Err(failure) if failure.code() == 404 => {
                return Err(SourceError::System {
                    attempt: format!("look for {word}"),
                    text: format!("the cluster has no group {group}"),
                    need: "install what defines it, or correct the resource's name".into(),
                });
            }
            Err(failure) => return Err(api.fatal(&format!("ask for the group {group}"), &failure).into()),
        }
    };
    let (group, plural) = (group.to_owned(), plural.to_owned());
    Ok(Kind { group, version, plural, name: String::new(), namespaced: true, listable: true, status: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_and_what_should_be() {
        let object = json!({
            "metadata": {"generation": 3},
            "status": {
                "observedGeneration": 3, "replicas": 2, "phase": "Bound",
                "conditions": [{"type": "Available", "status": "False", "reason": "MinimumReplicasUnavailable"}]
            }
        });
        let judge = |condition: &str, field: &str, equals: &str, object: &Value| {
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let (condition, field, equals) = (some(condition), some(field), some(equals));
            let resource = "deployments.apps".to_owned();
            Check { resource, namespace: None, name: "web".into(), condition, field, equals }.judge(object)
        };
        let not = judge("Available", "", "", &object).unwrap_err();
        assert_eq!(not, "Available is False (MinimumReplicasUnavailable), and should be True");
        assert_eq!(
            judge("Available=False", "/status/replicas", "2", &object).unwrap(),
            "Available is False, /status/replicas is 2"
        );
        assert_eq!(judge("", "/status/phase", "Bound", &object).unwrap(), "/status/phase is Bound");
        assert_eq!(
            judge("", "/status/phase", "Lost", &object).unwrap_err(),
            "/status/phase is Bound, and should be Lost"
        );
        assert!(judge("", "/status/none", "", &object).is_err());
        assert_eq!(judge("", "", "", &object).unwrap(), "is there");
        let secret = |equals: &str| {
            let (condition, field, equals) = (None, Some("/data/k".to_owned()), Some(equals.to_owned()));
            let secret =
                Check { resource: "secrets".into(), namespace: None, name: "s".into(), condition, field, equals };
            secret.judge(&json!({"data": {"k": "c2VjcmV0"}}))
        };
        assert_eq!(secret("c2VjcmV0").unwrap(), "/data/k is what it should be");
        assert_eq!(secret("b3RoZXI=").unwrap_err(), "/data/k holds another value");
        let mut stale = object;
        stale["metadata"]["generation"] = json!(4);
        assert!(judge("Available=False", "", "", &stale).unwrap_err().contains("newest spec"));
    }
}
