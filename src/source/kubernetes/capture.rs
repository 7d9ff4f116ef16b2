//! The capture: every wanted kind, page by page, then what has no namespace.

use super::api::{Api, Ask, Failure};
use super::kinds::{Found, Kind, discover};
use super::needed::{Needs, is_part};
use super::order::{CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, LATE, NAMESPACES, Place, rank};
use super::pages::{List, open};
use super::{ClusterScoped, KubernetesError, Spec, escrow, helm, yaml};
use crate::entry::{Facts, Layout, Problem, Sink};
use crate::source::command::plain_file;
use crate::source::{Context, SourceError, unpack};
use futures_util::StreamExt as _;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What controllers and the server make again by themselves, or what is no state at all.
const NEVER: [&str; 7] = [
    "events",
    "events.events.k8s.io",
    "endpoints",
    "endpointslices.discovery.k8s.io",
    "componentstatuses",
    "bindings",
    "leasecandidates.coordination.k8s.io",
];
const NEVER_GROUPS: [&str; 3] = ["metrics.k8s.io", "custom.metrics.k8s.io", "external.metrics.k8s.io"];
/// So many of Helm's releases are facts of a snapshot.
const RELEASES: usize = 200;
/// Nodes' heartbeats.
const HEARTBEATS: (&str, &str) = ("leases.coordination.k8s.io", "kube-node-lease");

pub fn capture(context: &Context, spec: &Spec, sink: &mut dyn Sink) -> Result<Facts, SourceError> {
    let api = Arc::new(Api::connect(context, spec)?);
    let version = api.version(context)?;
    let system = api.system(context)?;
    let found = discover(context, &api)?;
    let mut run = Run {
        context,
        api,
        sink,
        needs: Needs::default(),
        asked: BTreeSet::new(),
        went_round: false,
        counts: Counts::default(),
    };
    for problem in &found.problems {
        run.problem(&problem.path, problem.text.clone());
    }
    let (namespaced, cluster) = wanted(spec, &found)?;
    let lists = run.lists(spec, &found, &namespaced)?;
    run.all(lists)?;
    if spec.cluster_scoped == ClusterScoped::All {
        let list = |kind: &Kind| List { kind: kind.clone(), namespace: None, selector: spec.selector.clone() };
        run.all(cluster.iter().map(list).collect())?;
    } else if run.counts.own > 0 && spec.cluster_scoped == ClusterScoped::Needed {
        run.needed(&cluster)?;
    }
    run.facts(spec, system, version)
}

/// The kinds to list, with a namespace and without, in the order of restoring.
fn wanted(spec: &Spec, found: &Found) -> Result<(Vec<Kind>, Vec<Kind>), SourceError> {
    if let Some(word) = spec.include_kinds.iter().find(|word| found.by_word(word).is_none()) {
        let what = format!("the cluster has no kind of objects called {word}, which includeKinds names");
        return Err(SourceError::Spec { what });
    }
    let mut kinds: Vec<_> = found.kinds.iter().filter(|kind| kind.listable).cloned().collect();
    kinds.retain(|kind| {
        let word = kind.word();
        let state = !NEVER.contains(&&*word) && !NEVER_GROUPS.contains(&&*kind.group);
        // What has no namespace and is needed is captured whatever kinds are asked for.
        let asked = spec.include_kinds.is_empty()
            || spec.include_kinds.contains(&word)
            || !kind.namespaced && spec.cluster_scoped == ClusterScoped::Needed;
        state && asked && !spec.exclude_kinds.contains(&word)
    });
    kinds.sort_by(|a, b| rank(&a.word()).cmp(&rank(&b.word())));
    Ok(kinds.into_iter().partition(|kind| kind.namespaced))
}

struct Run<'a> {
    context: &'a Context,
    api: Arc<Api>,
    sink: &'a mut dyn Sink,
    needs: Needs,
    /// (resource, name) of what is needed and has been asked for.
    asked: BTreeSet<(String, String)>,
    went_round: bool,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    objects: u64,
    /// Without what every namespace has.
    own: u64,
    /// By resource.
    kinds: BTreeMap<String, u64>,
    /// Lists that were answered.
    answered: u64,
    /// The first that was not.
    refused: Option<String>,
    expired: u32,
    /// The highest resource version of a list.
    newest: u64,
    /// The newest revision of each of Helm's releases, and what it is.
    releases: BTreeMap<String, (u64, String)>,
    keys: escrow::Keys,
}

impl Counts {
    fn release(&mut self, place: &Place, object: &Value) {
        let Some((name, revision)) = helm::named(&place.word, &place.name) else { return };
        let name = format!("{}/{name}", place.namespace.as_deref().unwrap_or_default());
        if self.releases.get(&name).is_none_or(|(known, _)| *known < revision) {
            let text = match helm::Release::of(object) {
                Ok(release) => release.to_string(),
                Err(why) => format!("revision {revision} cannot be read: {why}"),
            };
            self.releases.insert(name, (revision, text));
        }
    }
}

impl Run<'_> {
    fn problem(&mut self, path: &[u8], text: String) {
        self.counts.refused.get_or_insert_with(|| text.clone());
        self.sink.problem(Problem { path: path.to_vec(), text });
    }

    /// Every kind in every namespace that is asked for. A namespace that is not there is reported.
    fn lists(&mut self, spec: &Spec, found: &Found, kinds: &[Kind]) -> Result<Vec<List>, SourceError> {
        let mut namespaces = Vec::new();
        for name in &spec.namespaces {
            let Some(kind) = found.by_word(NAMESPACES) else { break };
            match self.api.ask(self.context, &kind.path(None), &Ask::Get(name))? {
                Err(failure) if failure.code() == 404 => {
                    let text = "this namespace does not exist; was it deleted, or is this another cluster?";
                    self.sink.problem(Problem { path: name.clone().into_bytes(), text: text.to_owned() });
                    continue;
                }
                // Its objects may be readable all the same.
                Err(failure) if failure.code() == 403 => {}
                Err(failure) => return Err(self.api.fatal("look for a namespace", &failure).into()),
                Ok(_) => self.needs.namespace(name),
            }
            namespaces.push(Some(name.clone()));
        }
        if spec.namespaces.is_empty() {
            namespaces.push(None);
        }
        let list = |kind: &Kind, namespace: &Option<String>| List {
            kind: kind.clone(),
            namespace: namespace.clone(),
            selector: spec.selector.clone(),
        };
        Ok(kinds.iter().flat_map(|kind| namespaces.iter().map(move |namespace| list(kind, namespace))).collect())
    }

    fn all(&mut self, lists: Vec<List>) -> Result<(), SourceError> {
        self.each(lists, &mut |run, kind, object| run.add(kind, object))
    }

    /// Gives the objects of all lists to `each`.
    fn each(
        &mut self,
        lists: Vec<List>,
        each: &mut dyn FnMut(&mut Self, &Kind, Value) -> Result<(), SourceError>,
    ) -> Result<(), SourceError> {
        let context = self.context;
        let mut listings = open(context, &self.api, lists);
        while let Some(mut listing) = context.wait(listings.next())? {
            while let Some(page) = listing.page(context)? {
                match page {
                    Ok((items, version)) => {
                        self.counts.newest = self.counts.newest.max(version.parse().unwrap_or(0));
                        for item in items {
                            each(self, &listing.list.kind, item)?;
                        }
                        self.counts.answered += 1;
                    }
                    Err(failure) => {
                        self.refused(&listing.list, &failure)?;
                        break;
                    }
                }
            }
            self.counts.expired += listing.expired;
        }
        Ok(())
    }

    /// A list that failed: a problem of its kind, or of the server?
    fn refused(&mut self, list: &List, failure: &Failure) -> Result<(), SourceError> {
        let fatal = match failure {
            Failure::Transport(_) | Failure::Status { code: 401, .. } => true,
            // Gone in the meantime, or nothing that can be listed.
            Failure::Status { code: 404 | 405, .. } => return Ok(()),
            Failure::Status { code: 403, .. } => false,
            Failure::Status { .. } => !self.api.is_well(self.context)?,
        };
        if fatal {
            return Err(self.api.fatal(&list.describe(), failure).into());
        }
        let word = list.kind.word();
        let path = list.namespace.as_ref().map_or_else(|| word.clone(), |namespace| format!("{namespace}/{word}"));
        self.problem(path.as_bytes(), format!("{}: {}", list.describe(), failure.text()));
        Ok(())
    }

    /// Hands an object over, as `kind` has it.
    fn add(&mut self, kind: &Kind, mut object: Value) -> Result<(), SourceError> {
        let word = kind.word();
        let metadata = &mut object["metadata"];
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.remove("managedFields");
        }
        let name = metadata["name"].as_str().unwrap_or_default().to_owned();
        let namespace = metadata["namespace"].as_str().map(str::to_owned);
        if (&*word, namespace.as_deref()) == (HEARTBEATS.0, Some(HEARTBEATS.1)) {
            return Ok(());
        }
        let place = Place::of(kind, namespace.as_deref(), &name);
        // In the items of a list, both go without saying.
        object["apiVersion"] = kind.api_version().into();
        object["kind"] = kind.name.as_str().into();
        if Place::parse(place.path().as_bytes()).as_ref() != Some(&place) || matches!(&*name, "" | "." | "..") {
            self.problem(word.as_bytes(), format!("{word} {name:?} has a name that no file can have"));
            return Ok(());
        }
        let text = match yaml::write(&object) {
            Ok(text) => text,
            Err(why) => {
                self.problem(place.path().as_bytes(), format!("write {word} {name}: {why}"));
                return Ok(());
            }
        };
        self.needs.note(kind, &object);
        self.counts.release(&place, &object);
        self.counts.keys.note(&word, &object);
        let made = object["metadata"]["creationTimestamp"].as_str().and_then(|text| text.parse().ok());
        let entry = plain_file(place.path().into_bytes(), text.len() as u64, made.unwrap_or(self.context.started));
        unpack::hand_over(self.context, self.sink, entry, Layout::Content, &mut text.as_bytes())?;
        self.counts.objects += 1;
        self.counts.own += u64::from(kind.namespaced && !is_in_every_namespace(&word, &name));
        *self.counts.kinds.entry(word).or_default() += 1;
        Ok(())
    }

    /// What the captured objects refer to, in the order of restoring.
    fn needed(&mut self, kinds: &[Kind]) -> Result<(), SourceError> {
        let list = |kind: &Kind| vec![List { kind: kind.clone(), namespace: None, selector: None }];
        let mut bindings = Vec::new();
        if let Some(kind) = kinds.iter().find(|kind| kind.word() == CLUSTER_ROLE_BINDINGS) {
            self.each(list(kind), &mut |run, kind, binding| {
                if run.needs.is_bound(&binding) {
                    run.needs.note(kind, &binding);
                    bindings.push(binding);
                }
                Ok(())
            })?;
        }
        // Some of what is needed needs more: a custom object its definition, a content its class.
        while self.needed_once(kinds, &mut bindings)? {}
        Ok(())
    }

    /// One round; whether anything new was taken.
    fn needed_once(&mut self, kinds: &[Kind], bindings: &mut Vec<Value>) -> Result<bool, SourceError> {
        let list = |kind: &Kind| vec![List { kind: kind.clone(), namespace: None, selector: None }];
        let before = self.counts.objects;
        let first = !std::mem::replace(&mut self.went_round, true);
        for kind in kinds {
            let word = kind.word();
            if word == CLUSTER_ROLE_BINDINGS {
                for binding in std::mem::take(bindings) {
                    self.add(kind, binding)?;
                }
            } else if LATE.contains(&&*word) {
                if first {
                    self.each(list(kind), &mut |run, kind, object| {
                        if run.needs.is_served(&object) { run.add(kind, object) } else { Ok(()) }
                    })?;
                }
            } else {
                self.by_name(kind, &word)?;
            }
        }
        Ok(self.counts.objects > before)
    }

    fn by_name(&mut self, kind: &Kind, word: &str) -> Result<(), SourceError> {
        let names: Vec<String> = self.needs.names(word).cloned().collect();
        let names: Vec<_> = names.into_iter().filter(|name| self.asked.insert((word.into(), name.clone()))).collect();
        let mut aggregated = Vec::new();
        for name in &names {
            match self.api.ask(self.context, &kind.path(None), &Ask::Get(name))? {
                Ok(object) => {
                    if word == CLUSTER_ROLES && object["aggregationRule"].is_object() {
                        aggregated.push(object.clone());
                    }
                    self.add(kind, object)?;
                }
                Err(failure) if failure.code() == 404 => {}
                Err(failure) => {
                    let list = List { kind: kind.clone(), namespace: None, selector: None };
                    self.refused(&list, &failure)?;
                    break;
                }
            }
        }
        if aggregated.is_empty() {
            return Ok(());
        }
        let all = vec![List { kind: kind.clone(), namespace: None, selector: None }];
        self.each(all, &mut |run, kind, role| {
            let name = role["metadata"]["name"].as_str().unwrap_or_default();
            let part = aggregated.iter().any(|whole| is_part(whole, &role));
            let new = part && run.asked.insert((kind.word(), name.to_owned()));
            if new { run.add(kind, role) } else { Ok(()) }
        })
    }

    fn facts(self, spec: &Spec, system: Option<String>, version: String) -> Result<Facts, SourceError> {
        let (counts, server) = (self.counts, self.api.server.clone());
        if counts.own == 0 {
            return Err(match counts.refused {
                Some(first) if counts.answered == 0 => KubernetesError::Forbidden { server, first },
                _ => KubernetesError::Nothing { server, what: what(spec) },
            }
            .into());
        }
        let mut by_count: Vec<_> = counts.kinds.iter().collect();
        by_count.sort_by_key(|(word, count)| (std::cmp::Reverse(**count), (*word).clone()));
        let most: Vec<_> = by_count.iter().take(8).map(|(word, count)| format!("{word} {count}")).collect();
        let mut details = BTreeMap::from([
            ("server".to_owned(), server),
            ("version".to_owned(), version),
            ("kinds".to_owned(), counts.kinds.len().to_string()),
            ("namespaces".to_owned(), self.needs.namespaces.len().to_string()),
            ("most".to_owned(), most.join(", ")),
        ]);
        details.extend(counts.keys.facts());
        if !counts.releases.is_empty() {
            details.insert("releases".to_owned(), counts.releases.len().to_string());
            let told = counts.releases.into_iter().take(RELEASES);
            details.extend(told.map(|(name, (_, text))| (format!("release {name}"), text)));
        }
        if counts.expired > 0 {
            details.insert("lists_expired".to_owned(), counts.expired.to_string());
        }
        Ok(Facts {
            system,
            position: (counts.newest > 0).then_some(counts.newest),
            objects: Some(counts.objects),
            recovery_point_ms: None,
            details,
        })
    }
}

/// The control plane puts these into each namespace: they do not make it worth capturing.
pub fn is_in_every_namespace(word: &str, name: &str) -> bool {
    matches!(
        (word, name),
        ("configmaps", "kube-root-ca.crt" | "openshift-service-ca.crt") | ("serviceaccounts", "default")
    )
}

fn what(spec: &Spec) -> String {
    let place = match &*spec.namespaces {
        [] => "any namespace".to_owned(),
        names => format!("the namespaces {}", names.join(", ")),
    };
    match &spec.selector {
        Some(selector) => format!("{place} with labels {selector}"),
        None => place,
    }
}
