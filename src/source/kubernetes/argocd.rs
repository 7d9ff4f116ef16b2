//! What of a snapshot `argocd admin export` would have written, as `argocd admin import` takes it.
//!
//! Its settings, the Secrets of repositories and clusters, projects, Applications, ApplicationSets, with their status. What
//! that format does not hold (`argocd-cmd-params-cm`, notifications, GPG keys, Argo CD's own workloads) is in the snapshot
//! and comes back with a restore of the namespace.

use super::index::object;
use super::order::Place;
use super::{normal, yaml};
use crate::entry::Supply;
use crate::source::Native;
use serde_json::{Map, Value};
use std::io;

const SETTINGS: [&str; 4] = ["argocd-cm", "argocd-rbac-cm", "argocd-ssh-known-hosts-cm", "argocd-tls-certs-cm"];
/// They may be in any namespace.
const KINDS: [&str; 3] = ["appprojects.argoproj.io", "applications.argoproj.io", "applicationsets.argoproj.io"];
/// Of an object's metadata.
const KEPT: [&str; 4] = ["name", "labels", "annotations", "finalizers"];

pub struct Backup;

impl Native for Backup {
    fn label(&self) -> &'static str {
        "Argo CD backup"
    }

    fn write(&self, supply: &dyn Supply, out: &mut dyn io::Write) -> io::Result<()> {
        let mut home = None;
        supply.entries(&mut |entry, _| {
            let place = Place::parse(&entry.path);
            home = home.take().or(place.filter(|place| place.word == "configmaps" && place.name == SETTINGS[0]));
            Ok(())
        })?;
        let home = home.and_then(|place| place.namespace).ok_or_else(|| {
            let text = "the snapshot holds no ConfigMap argocd-cm: it is not one of Argo CD's namespace";
            io::Error::new(io::ErrorKind::InvalidData, text)
        })?;
        supply.entries(&mut |entry, body| {
            let Some(place) = Place::parse(&entry.path).filter(|place| may_be_part(place, &home)) else {
                return Ok(());
            };
            let mut object = object(&entry.path, body)?;
            if place.word == "secrets" && !is_part(&object) {
                return Ok(());
            }
            strip(&place, &home, &mut object);
            let text = yaml::write(&object).map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?;
            writeln!(out, "{text}---")
        })?;
        out.flush()
    }
}

fn may_be_part(place: &Place, home: &str) -> bool {
    let at_home = place.namespace.as_deref() == Some(home);
    match &*place.word {
        "configmaps" => at_home && SETTINGS.contains(&&*place.name),
        "secrets" => at_home,
        word => place.namespace.is_some() && KINDS.contains(&word),
    }
}

/// As Argo CD tells its own Secrets from others.
fn is_part(secret: &Value) -> bool {
    let metadata = &secret["metadata"];
    metadata["name"] == "argocd-secret"
        || metadata["labels"]["argocd.argoproj.io/secret-type"].is_string()
        || metadata["annotations"]["managed-by"] == "argocd.argoproj.io"
}

fn strip(place: &Place, home: &str, object: &mut Value) {
    let status = object["status"].take();
    normal::strip(&place.word, object);
    if KINDS.contains(&&*place.word) && !status.is_null() {
        object["status"] = status;
    }
    let mut metadata: Map<String, Value> = Map::new();
    for field in KEPT {
        if let Some(value) = object["metadata"].get(field) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    if let Some(namespace) = place.namespace.as_deref().filter(|namespace| *namespace != home) {
        metadata.insert("namespace".to_owned(), namespace.into());
    }
    object["metadata"] = metadata.into();
}
