//! What is there to hold back. Reads only.

use super::mark::Before;
use super::{Held, HeldObject, Hold, Paused, Scaled, Suspended, What};
use crate::source::kubernetes::Spec;
use crate::source::kubernetes::api::{Api, Ask};
use crate::source::{Context, SourceError};
use kube::api::ListParams;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Objects of a page.
const PAGE: u32 = 100;

/// Finds out what is to be changed and what it is like now. Changes nothing.
///
/// # Errors
/// The server cannot be reached or does not let this user read. Objects that are not there are no error: there is nothing
/// of them to hold back.
pub fn look(context: &Context, spec: &Spec, hold: &Hold) -> Result<Held, SourceError> {
    let api = Api::connect(context, spec)?;
    let mut look = Look { context, api: &api, objects: BTreeMap::new(), notes: Vec::new() };
    for paused in &hold.pause_sync {
        look.pause(paused)?;
    }
    for suspended in &hold.suspend {
        look.suspend(suspended)?;
    }
    for scaled in &hold.scale {
        look.scale(scaled)?;
    }
    let objects = look.objects.into_iter();
    let objects = objects.map(|((what, namespace, name), before)| HeldObject { what, namespace, name, before });
    Ok(Held { objects: objects.collect(), notes: look.notes })
}

/// `deployment/web`, with the name or `*`.
pub(super) fn workload(text: &str) -> Option<(What, &str)> {
    let (kind, name) = text.split_once('/')?;
    let what = match kind {
        "deployment" | "deployments" => What::Deployment,
        "statefulset" | "statefulsets" => What::StatefulSet,
        _ => return None,
    };
    (!name.is_empty() && !name.contains('/')).then_some((what, name))
}

struct Look<'a> {
    context: &'a Context,
    api: &'a Api,
    objects: BTreeMap<(What, String, String), Before>,
    notes: Vec<String>,
}

/// What the look at an Application leaves behind.
struct Application {
    before: Option<Before>,
    syncing: bool,
    above: Vec<Above>,
}

/// What would give an Application its sync back.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Above {
    Application { namespace: Option<String>, name: String },
    Set(String),
}

impl Look<'_> {
    fn add(&mut self, what: What, namespace: &str, name: &str, before: Before) {
        self.objects.insert((what, namespace.to_owned(), name.to_owned()), before);
    }

    fn note(&mut self, what: What, namespace: &str, name: &str, text: &str) {
        self.notes.push(format!("{}/{name} in {namespace} {text}", what.word()));
    }

    fn scale(&mut self, scaled: &Scaled) -> Result<(), SourceError> {
        for what in [What::Deployment, What::StatefulSet] {
            let names = scaled.names.iter().filter_map(|name| workload(name));
            let names: Vec<&str> = names.filter(|(of, _)| *of == what).map(|(_, name)| name).collect();
            if scaled.names.is_empty() || names.contains(&"*") {
                self.all(what, &scaled.namespace)?;
            } else {
                self.some(what, &scaled.namespace, &names)?;
            }
        }
        Ok(())
    }

    fn suspend(&mut self, suspended: &Suspended) -> Result<(), SourceError> {
        let names: Vec<_> = suspended.names.iter().map(String::as_str).collect();
        if names.is_empty() || names.contains(&"*") {
            self.all(What::CronJob, &suspended.namespace)
        } else {
            self.some(What::CronJob, &suspended.namespace, &names)
        }
    }

    fn all(&mut self, what: What, namespace: &str) -> Result<(), SourceError> {
        let (context, api) = (self.context, self.api);
        each(context, api, what, namespace, &mut |object| {
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            self.object(what, namespace, &name, object);
        })
    }

    fn some(&mut self, what: What, namespace: &str, names: &[&str]) -> Result<(), SourceError> {
        for name in names {
            match get(self.context, self.api, what, namespace, name)? {
                Some(object) => self.object(what, namespace, name, &object),
                None => self.note(what, namespace, name, "is not there"),
            }
        }
        Ok(())
    }

    fn object(&mut self, what: What, namespace: &str, name: &str, object: &Value) {
        match before(what, object) {
            Some(before) => self.add(what, namespace, name, before),
            None => self.note(what, namespace, name, "does nothing already"),
        }
        let running = object["status"]["active"].as_array().map_or(0, Vec::len);
        if running > 0 {
            self.note(what, namespace, name, &format!("has {running} jobs running, which go on"));
        }
    }

    /// Applications, and upwards from them whatever would give them their syncs back.
    fn pause(&mut self, paused: &Paused) -> Result<(), SourceError> {
        let (namespace, mut all) = (&paused.namespace, BTreeMap::new());
        each(self.context, self.api, What::Application, namespace, &mut |object| {
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            all.insert(name, application(object));
        })?;
        let everything = paused.names.is_empty() || paused.names.iter().any(|name| name == "*");
        let mut ahead: Vec<String> = if everything { all.keys().cloned().collect() } else { paused.names.clone() };
        for name in ahead.iter().filter(|name| !all.contains_key(*name)) {
            self.note(What::Application, namespace, name, "is not there");
        }
        let mut seen = BTreeSet::new();
        while let Some(name) = ahead.pop() {
            let Some(application) = all.get(&name).filter(|_| seen.insert(name.clone())) else { continue };
            if application.syncing {
                self.note(What::Application, namespace, &name, "is syncing at this moment, which goes on");
            }
            match &application.before {
                Some(before) => self.add(What::Application, namespace, &name, before.clone()),
                None => self.note(What::Application, namespace, &name, "does not sync by itself"),
            }
            let mut above = application.above.clone();
            while let Some(one) = above.pop() {
                match one {
                    Above::Application { namespace: Some(other), name: parent } if other != *namespace => {
                        let text = format!("is managed by the application {parent} in {other}: pause that too");
                        self.note(What::Application, namespace, &name, &text);
                    }
                    Above::Application { name, .. } => ahead.push(name),
                    Above::Set(set) => above.extend(self.set(namespace, &set)?),
                }
            }
        }
        Ok(())
    }

    /// An ApplicationSet, and what manages it.
    fn set(&mut self, namespace: &str, name: &str) -> Result<Option<Above>, SourceError> {
        if self.objects.contains_key(&(What::ApplicationSet, namespace.to_owned(), name.to_owned())) {
            return Ok(None);
        }
        let Some(object) = get(self.context, self.api, What::ApplicationSet, namespace, name)? else { return Ok(None) };
        if let Some(before) = before(What::ApplicationSet, &object) {
            self.add(What::ApplicationSet, namespace, name, before);
        }
        Ok(parent(&object))
    }
}

/// What an object was like before it was held, now or by an earlier run. `None`: there is nothing to hold back.
pub(super) fn before(what: What, object: &Value) -> Option<Before> {
    let marked = Before::marked(object).filter(|before| before.is_held(object));
    marked.or_else(|| Before::of(what, object))
}

fn application(object: &Value) -> Application {
    let owners = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    let sets = owners.filter(|owner| owner["kind"] == "ApplicationSet").filter_map(|owner| owner["name"].as_str());
    Application {
        before: before(What::Application, object),
        syncing: object["status"]["operationState"]["phase"] == "Running",
        above: sets.map(|name| Above::Set(name.to_owned())).chain(parent(object)).collect(),
    }
}

/// The Application that an object is part of, by Argo CD's tracking: `[NAMESPACE_]NAME:…`, or a label that others use too.
fn parent(object: &Value) -> Option<Above> {
    let metadata = &object["metadata"];
    let tracked = metadata["annotations"]["argocd.argoproj.io/tracking-id"].as_str();
    let tracked = tracked.and_then(|id| id.split(':').next());
    let name = tracked.or_else(|| metadata["labels"]["app.kubernetes.io/instance"].as_str())?;
    Some(match name.split_once('_') {
        Some((namespace, name)) => Above::Application { namespace: Some(namespace.to_owned()), name: name.to_owned() },
        None => Above::Application { namespace: None, name: name.to_owned() },
    })
}

/// `None`: it is not there, or its kind is not.
pub(super) fn get(
    context: &Context,
    api: &Api,
    what: What,
    namespace: &str,
    name: &str,
) -> Result<Option<Value>, SourceError> {
    match api.ask(context, &what.path(namespace), &Ask::Get(name))? {
        Ok(object) => Ok(Some(object)),
        Err(failure) if failure.code() == 404 => Ok(None),
        Err(failure) => Err(api.fatal(&format!("look at {}/{name} in {namespace}", what.word()), &failure).into()),
    }
}

/// Nothing, where the kind itself is not there.
fn each(
    context: &Context,
    api: &Api,
    what: What,
    namespace: &str,
    take: &mut dyn FnMut(&Value),
) -> Result<(), SourceError> {
    let mut parameters = ListParams::default().limit(PAGE);
    loop {
        let list = match api.ask(context, &what.path(namespace), &Ask::List(&parameters))? {
            Ok(list) => list,
            Err(failure) if failure.code() == 404 => return Ok(()),
            Err(failure) => {
                return Err(api.fatal(&format!("list {}s in {namespace}", what.word()), &failure).into());
            }
        };
        list["items"].as_array().into_iter().flatten().for_each(&mut *take);
        match list["metadata"]["continue"].as_str().filter(|token| !token.is_empty()) {
            Some(token) => parameters.continue_token = Some(token.to_owned()),
            None => return Ok(()),
        }
    }
}
