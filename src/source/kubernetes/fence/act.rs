//! Holding and releasing.

use super::look::get;
use super::mark::Before;
use super::{Held, HeldObject, What};
use crate::source::kubernetes::Spec;
use crate::source::kubernetes::api::{Api, Ask};
use crate::source::{Context, SourceError};
use kube::api::ListParams;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

/// How often a change is begun again that somebody else comes in between of.
const TRIES: usize = 5;
const PAUSE: Duration = Duration::from_millis(500);
/// Pods of a page.
const PAGE: u32 = 100;

/// Holds back what [`super::look`] found, and waits until the pods of what was scaled to zero are gone. Doing it again does no
/// harm. Gives what was done, a line each.
///
/// # Errors
/// The server does not let it, pods are still there at the deadline, or somebody else undoes it.
pub fn hold(context: &Context, spec: &Spec, held: &Held) -> Result<Vec<String>, SourceError> {
    let api = Api::connect(context, spec)?;
    let mut lines = held.notes.clone();
    for object in &held.objects {
        lines.push(hold_one(context, &api, object)?.1);
    }
    // What gave an object its sync or its replicas back before it was held itself does so no more.
    for object in &held.objects {
        let (changed, line) = hold_one(context, &api, object)?;
        lines.extend(changed.then(|| format!("{line}, again")));
    }
    for object in &held.objects {
        wait(context, &api, object)?;
    }
    // What came in between while pods were waited for.
    for object in &held.objects {
        see(context, &api, object)?;
    }
    Ok(lines)
}

/// Puts back what [`hold`] changed. Doing it again does no harm. What is gone, or was changed by somebody else since, is told
/// and left as it is. Gives what was done, a line each.
///
/// # Errors
/// The server cannot be reached or does not let it: what comes after was tried all the same.
pub fn release(context: &Context, spec: &Spec, held: &Held) -> Result<Vec<String>, SourceError> {
    let api = Api::connect(context, spec)?;
    let (mut lines, mut failed) = (Vec::new(), None);
    // A sync that goes on before its workloads do would find them different from git.
    for object in held.objects.iter().rev() {
        match release_one(context, &api, object) {
            Ok((_, line)) => lines.push(line),
            Err(error) => {
                context.go_on()?;
                failed.get_or_insert(error);
            }
        }
    }
    failed.map_or(Ok(lines), Err)
}

/// Whether it was changed, and a line.
fn hold_one(context: &Context, api: &Api, object: &HeldObject) -> Result<(bool, String), SourceError> {
    let what = object.describe();
    change(context, api, object, "hold back", |there| {
        if Before::marked(there).is_some_and(|before| before.is_held(there)) {
            return Err(format!("{what} is held already"));
        }
        match Before::of(object.what, there) {
            Some(now) => {
                // Somebody let it go while this fence was closed: what it gets back is what it had at first.
                let first = Before::marked(there).filter(|marked| *marked == object.before);
                let before = first.unwrap_or(now);
                Ok((before.hold(there), format!("{what}: {}", before.done())))
            }
            None => Err(format!("{what} does nothing already")),
        }
    })
}

fn release_one(context: &Context, api: &Api, object: &HeldObject) -> Result<(bool, String), SourceError> {
    let what = object.describe();
    change(context, api, object, "release", |there| match Before::marked(there) {
        Some(before) if before.is_held(there) => Ok((before.release(there), format!("{what}: {}", before.undone()))),
        Some(_) => Ok((Before::unmark(there), format!("{what} was changed by somebody since, and stays as it is"))),
        None if there["metadata"]["annotations"][super::HELD].is_string() => {
            let text = "has a mark that cannot be read, and stays as it is; it was";
            Err(format!("{what} {text} {}", object.before.value()))
        }
        None => match Before::of(object.what, there) {
            Some(_) => Err(format!("{what} is not held: it was restored, or released before")),
            None => Err(format!(
                "{what} does nothing, but is not marked as held: it stays as it is (it was {} before)",
                object.before.value()
            )),
        },
    })
}

/// Gives an object what `patch` makes of it, or the line that says why not.
fn change(
    context: &Context,
    api: &Api,
    object: &HeldObject,
    verb: &str,
    patch: impl Fn(&Value) -> Result<(Value, String), String>,
) -> Result<(bool, String), SourceError> {
    let mut tries = 0;
    loop {
        let Some(there) = get(context, api, object.what, &object.namespace, &object.name)? else {
            return Ok((false, format!("{} is not there", object.describe())));
        };
        let (body, line) = match patch(&there) {
            Ok(change) => change,
            Err(line) => return Ok((false, line)),
        };
        let ask = Ask::Merge { name: &object.name, body: &body };
        tries += 1;
        match api.ask(context, &object.what.path(&object.namespace), &ask)? {
            Ok(_) => return Ok((true, line)),
            // Somebody changed it meanwhile, or it has just gone.
            Err(failure) if matches!(failure.code(), 404 | 409) && tries < TRIES => {}
            Err(failure) => return Err(api.fatal(&format!("{verb} {}", object.describe()), &failure).into()),
        }
    }
}

/// Is the object still held?
fn see(context: &Context, api: &Api, object: &HeldObject) -> Result<Option<Value>, SourceError> {
    let Some(there) = get(context, api, object.what, &object.namespace, &object.name)? else { return Ok(None) };
    if Before::of(object.what, &there).is_some() {
        return Err(SourceError::System {
            attempt: format!("hold back {}", object.describe()),
            text: "somebody undoes it".into(),
            need: "find out who (an Argo CD Application above it, an operator, KEDA, an autoscaler that starts from \
                   zero) and hold that back first"
                .into(),
        });
    }
    Ok(Some(there))
}

/// Waits until the pods of a workload are gone.
fn wait(context: &Context, api: &Api, object: &HeldObject) -> Result<(), SourceError> {
    if !matches!(object.what, What::Deployment | What::StatefulSet) {
        return Ok(());
    }
    let mut left = Vec::new();
    loop {
        if let Err(stop) = context.go_on() {
            return Err(if matches!(stop, SourceError::Deadline) { late(object, &left) } else { stop });
        }
        let Some(there) = see(context, api, object)? else { return Ok(()) };
        left = pods(context, api, object, &there)?;
        if left.is_empty() {
            return Ok(());
        }
        // The deadline is told above.
        let _ = context.sleep(PAUSE);
    }
}

fn late(object: &HeldObject, left: &[String]) -> SourceError {
    SourceError::System {
        attempt: format!("wait until the pods of {} are gone", object.describe()),
        text: match left {
            [] => "there was no time".into(),
            some => format!("{} are still there ({}, …)", some.len(), some[0]),
        },
        need: "a pod ends within its grace period if its node answers: give the step more time, or look at the node"
            .into(),
    }
}

/// The pods that a workload has made and that are not gone.
fn pods(context: &Context, api: &Api, object: &HeldObject, there: &Value) -> Result<Vec<String>, SourceError> {
    let uid = there["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let selector = selector(&there["spec"]["selector"]);
    let core = format!("/api/v1/namespaces/{}/pods", object.namespace);
    let mut makers = BTreeSet::from([uid]);
    if object.what == What::Deployment {
        let sets = format!("/apis/apps/v1/namespaces/{}/replicasets", object.namespace);
        let of_deployment = owned(context, api, &sets, &selector, &makers)?;
        makers.extend(of_deployment.into_iter().map(|(uid, _)| uid));
    }
    Ok(owned(context, api, &core, &selector, &makers)?.into_iter().map(|(_, name)| name).collect())
}

/// UIDs and names of the objects that have one of `makers` for their controller.
fn owned(
    context: &Context,
    api: &Api,
    path: &str,
    selector: &str,
    makers: &BTreeSet<String>,
) -> Result<Vec<(String, String)>, SourceError> {
    let mut parameters = ListParams::default().labels(selector).limit(PAGE);
    let mut found = Vec::new();
    loop {
        let list = api.ask(context, path, &Ask::List(&parameters))?;
        let list = list.map_err(|failure| api.fatal("look for the pods of a workload", &failure))?;
        for item in list["items"].as_array().into_iter().flatten() {
            let metadata = &item["metadata"];
            let mut owners = metadata["ownerReferences"].as_array().into_iter().flatten();
            let ours = owners.any(|owner| {
                owner["controller"] == true && owner["uid"].as_str().is_some_and(|uid| makers.contains(uid))
            });
            let ended = matches!(item["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
            if ours && !ended {
                let text = |field: &str| metadata[field].as_str().unwrap_or_default().to_owned();
                found.push((text("uid"), text("name")));
            }
        }
        match list["metadata"]["continue"].as_str().filter(|token| !token.is_empty()) {
            Some(token) => parameters.continue_token = Some(token.to_owned()),
            None => return Ok(found),
        }
    }
}

/// A workload's selector, as requests take it.
fn selector(selector: &Value) -> String {
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let mut parts: Vec<String> =
        labels.map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect();
    for one in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = one["key"].as_str().unwrap_or_default();
        let values = one["values"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let values = values.collect::<Vec<_>>().join(",");
        match one["operator"].as_str() {
            Some("In") => parts.push(format!("{key} in ({values})")),
            Some("NotIn") => parts.push(format!("{key} notin ({values})")),
            Some("Exists") => parts.push(key.to_owned()),
            Some("DoesNotExist") => parts.push(format!("!{key}")),
            _ => {}
        }
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_selector_as_requests_take_it() {
        let both = json!({
            "matchLabels": {"app": "web", "part": "front"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["a", "b"]},
                {"key": "old", "operator": "DoesNotExist"}
            ]
        });
        assert_eq!(selector(&both), "app=web,part=front,tier in (a,b),!old");
    }
}
