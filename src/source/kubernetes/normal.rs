//! What of an object can be given to a cluster: without what the server, its controllers or an earlier cluster decided.
//! Two objects are the same when these forms are equal.

use super::fence::mark::{keep_held, unhold};
use super::order::VOLUMES;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

const METADATA: [&str; 9] = [
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "managedFields",
    "selfLink",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    // Put back with the owners' new UIDs.
    "ownerReferences",
];
const BOUND: &str = "pv.kubernetes.io/bound-by-controller";
/// On a claim that Lifeboat fills, and on one that it has filled: from which snapshot, and by which step of a plan.
pub const FILLING: &str = "lifeboat.dev/filling";
pub const FILLED: &str = "lifeboat.dev/filled";
pub const STEP: &str = "lifeboat.dev/step";
/// What the claim's volume is known by, if that is not the claim's own uid.
pub const VOLUME: &str = "lifeboat.dev/volume";
const ANNOTATIONS: [&str; 11] = [
    "deployment.kubernetes.io/revision",
    "deprecated.daemonset.template.generation",
    "pv.kubernetes.io/bind-completed",
    BOUND,
    "volume.kubernetes.io/selected-node",
    "volume.kubernetes.io/storage-provisioner",
    "volume.beta.kubernetes.io/storage-provisioner",
    // What was restored into this claim, and none that is made after it.
    FILLED,
    FILLING,
    STEP,
    VOLUME,
];
/// Of the server's own controllers, which set them again.
const FINALIZERS: [&str; 3] =
    ["kubernetes.io/pvc-protection", "kubernetes.io/pv-protection", "customresourcecleanup.apiextensions.k8s.io"];
const JOB_LABELS: [&str; 2] = ["controller-uid", "batch.kubernetes.io/controller-uid"];

/// Takes out what must not be repeated.
pub fn strip(word: &str, object: &mut Value) {
    unhold(word, object);
    let bound = object["metadata"]["annotations"][BOUND].is_string();
    if let Some(all) = object.as_object_mut() {
        all.remove("status");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        remove(metadata, &METADATA);
        for (field, names) in [("annotations", &ANNOTATIONS[..]), ("labels", &[][..])] {
            prune(metadata, field, |map| remove(map, names));
        }
        if let Some(list) = metadata.get_mut("finalizers").and_then(Value::as_array_mut) {
            list.retain(|name| !FINALIZERS.iter().any(|own| name == own));
            if list.is_empty() {
                metadata.remove("finalizers");
            }
        }
    }
    of_kind(word, bound, object);
}

fn of_kind(word: &str, bound: bool, object: &mut Value) {
    match word {
        "namespaces" => {
            if let Some(all) = object.as_object_mut() {
                // Its one finalizer is the server's.
                all.remove("spec");
            }
            if let Some(metadata) = object["metadata"].as_object_mut() {
                prune(metadata, "labels", |labels| remove(labels, &["kubernetes.io/metadata.name"]));
            }
        }
        "pods" => remove_from(&mut object["spec"], &["nodeName", "ephemeralContainers"]),
        "services" => service(&mut object["spec"]),
        "persistentvolumeclaims" if bound => remove_from(&mut object["spec"], &["volumeName"]),
        VOLUMES => remove_from(&mut object["spec"]["claimRef"], &["uid", "resourceVersion"]),
        "jobs.batch" if object["spec"]["manualSelector"] != true => {
            remove_from(&mut object["spec"], &["selector"]);
            for metadata in ["/metadata", "/spec/template/metadata"] {
                if let Some(metadata) = object.pointer_mut(metadata).and_then(Value::as_object_mut) {
                    prune(metadata, "labels", |labels| remove(labels, &JOB_LABELS));
                }
            }
        }
        "serviceaccounts" => {
            let prefix = format!("{}-token-", object["metadata"]["name"].as_str().unwrap_or_default());
            if let Some(all) = object.as_object_mut()
                && let Some(secrets) = all.get_mut("secrets").and_then(Value::as_array_mut)
            {
                secrets.retain(|secret| !secret["name"].as_str().is_some_and(|name| name.starts_with(&prefix)));
                if secrets.is_empty() {
                    all.remove("secrets");
                }
            }
        }
        _ => {}
    }
}

fn service(spec: &mut Value) {
    if spec["clusterIP"] != "None" {
        remove_from(spec, &["clusterIP", "clusterIPs"]);
    }
    remove_from(spec, &["healthCheckNodePort"]);
    for port in spec["ports"].as_array_mut().into_iter().flatten() {
        remove_from(port, &["nodePort"]);
    }
}

/// Gives `wanted`, which is stripped, what the live object has in its place, so that it can be put over it.
pub fn carry(word: &str, live: &Value, wanted: &mut Value) {
    let mut from_live = |pointer: &str, field: &str| {
        let value = live.pointer(pointer).and_then(|parent| parent.get(field)).filter(|value| !value.is_null());
        if let (Some(value), Some(parent)) = (value, wanted.pointer_mut(pointer).and_then(Value::as_object_mut)) {
            parent.entry(field).or_insert_with(|| value.clone());
        }
    };
    for field in ["resourceVersion", "uid", "ownerReferences"] {
        from_live("/metadata", field);
    }
    match word {
        "pods" => from_live("/spec", "nodeName"),
        "persistentvolumeclaims" => from_live("/spec", "volumeName"),
        "jobs.batch" => from_live("/spec", "selector"),
        _ => {}
    }
    if let (Some(status), Some(all)) = (live.get("status"), wanted.as_object_mut()) {
        all.insert("status".to_owned(), status.clone());
    }
    let annotations = live["metadata"]["annotations"].as_object();
    for (name, value) in annotations.into_iter().flatten().filter(|(name, _)| ANNOTATIONS.contains(&name.as_str())) {
        wanted["metadata"]["annotations"][name] = value.clone();
    }
    for name in live["metadata"]["finalizers"].as_array().into_iter().flatten() {
        if FINALIZERS.iter().any(|own| name == own) {
            match wanted["metadata"]["finalizers"].as_array_mut() {
                Some(list) => list.push(name.clone()),
                None => wanted["metadata"]["finalizers"] = Value::Array(vec![name.clone()]),
            }
        }
    }
    if word == "jobs.batch"
        && let Some(labels) = live.pointer("/spec/template/metadata/labels")
    {
        wanted["spec"]["template"]["metadata"]["labels"] = labels.clone();
    }
    keep_held(word, live, wanted);
}

/// Moves an object, and what it says of others, to the namespaces that theirs are restored as.
pub fn relocate(word: &str, object: &mut Value, namespaces: &BTreeMap<String, String>) {
    if namespaces.is_empty() {
        return;
    }
    let moved = |value: &mut Value| {
        if let Some(to) = value.as_str().and_then(|name| namespaces.get(name)) {
            *value = to.as_str().into();
        }
    };
    if let Some(namespace) = object.pointer_mut("/metadata/namespace") {
        moved(namespace);
    }
    if word == "namespaces"
        && let Some(name) = object.pointer_mut("/metadata/name")
    {
        moved(name);
    }
    for pointer in [
        "/spec/claimRef/namespace",
        "/spec/service/namespace",
        "/spec/conversion/webhook/clientConfig/service/namespace",
    ] {
        if let Some(namespace) = object.pointer_mut(pointer) {
            moved(namespace);
        }
    }
    for (list, below) in [("subjects", "/namespace"), ("webhooks", "/clientConfig/service/namespace")] {
        for item in object.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(namespace) = item.pointer_mut(below) {
                moved(namespace);
            }
        }
    }
    if word == "networkpolicies.networking.k8s.io" {
        selectors(&mut object["spec"], &moved);
    }
}

/// Namespaces that network policies name by the label that each has.
fn selectors(value: &mut Value, moved: &dyn Fn(&mut Value)) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(|item| selectors(item, moved)),
        Value::Object(map) => {
            for (key, value) in map {
                let name = value.pointer_mut("/matchLabels/kubernetes.io~1metadata.name");
                match name {
                    Some(name) if key == "namespaceSelector" => moved(name),
                    _ => selectors(value, moved),
                }
            }
        }
        _ => {}
    }
}

fn remove(map: &mut Map<String, Value>, names: &[&str]) {
    for name in names {
        map.remove(*name);
    }
}

fn remove_from(value: &mut Value, names: &[&str]) {
    if let Some(map) = value.as_object_mut() {
        remove(map, names);
    }
}

/// Changes a map inside a map, and drops it if nothing is left of it.
fn prune(parent: &mut Map<String, Value>, field: &str, change: impl FnOnce(&mut Map<String, Value>)) {
    if let Some(map) = parent.get_mut(field).and_then(Value::as_object_mut) {
        change(map);
        if map.is_empty() {
            parent.remove(field);
        }
    }
}
