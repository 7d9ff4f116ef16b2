//! Which kinds of objects the server has.

use super::api::{Api, Ask, Failure};
use crate::entry::Problem;
use crate::source::{Context, SourceError};
use futures_util::{StreamExt as _, stream};
use kube::api::ListParams;
use serde_json::Value;
use std::collections::BTreeSet;

const AT_ONCE: usize = 8;

/// A kind in the version that is used.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    pub group: String,
    pub version: String,
    /// What it is called in paths.
    pub plural: String,
    /// What it is called in objects.
    pub name: String,
    pub namespaced: bool,
    pub listable: bool,
    /// Its status is written by itself.
    pub status: bool,
}

impl Kind {
    /// `deployments.apps`; of the core group `configmaps`.
    pub fn word(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The path of its objects, in a namespace or of all.
    pub fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() { "/api" } else { "/apis" };
        match namespace {
            Some(namespace) => format!("{root}/{}/namespaces/{namespace}/{}", self.api_version(), self.plural),
            None => format!("{root}/{}/{}", self.api_version(), self.plural),
        }
    }
}

#[derive(Debug)]
pub struct Found {
    pub kinds: Vec<Kind>,
    /// Groups and versions, whichever of a kind's versions counts.
    pub served: BTreeSet<(String, String)>,
    /// Groups that their servers do not answer for.
    pub problems: Vec<Problem>,
}

impl Found {
    /// The kind of an object, in the object's own version.
    pub fn of(&self, object: &Value) -> Result<Kind, String> {
        let (api_version, kind) = (&object["apiVersion"], &object["kind"]);
        let api_version = api_version.as_str().unwrap_or_default();
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let Some(known) = self.kinds.iter().find(|known| known.group == group && kind == known.name.as_str()) else {
            return Err(format!("the cluster has no {kind} of {api_version}; install what defines it"));
        };
        if !self.served.contains(&(group.to_owned(), version.to_owned())) {
            return Err(format!("the cluster serves {} in {}, no longer in {version}", known.word(), known.version));
        }
        Ok(Kind { version: version.to_owned(), ..known.clone() })
    }

    pub fn by_word(&self, word: &str) -> Option<&Kind> {
        self.kinds.iter().find(|kind| kind.word() == word)
    }
}

/// Asks for every group. Of a kind that several versions have, the group's preferred one counts.
pub fn discover(context: &Context, api: &Api) -> Result<Found, SourceError> {
    context.wait(all(api))?
}

async fn all(api: &Api) -> Result<Found, SourceError> {
    let what = "ask which kinds of objects there are";
    let none = ListParams::default();
    let groups = api.send("/apis", &Ask::List(&none)).await.map_err(|failure| api.fatal(what, &failure))?;
    let mut versions = vec![(String::new(), "v1".to_owned())];
    for group in groups["groups"].as_array().into_iter().flatten() {
        let name = group["name"].as_str().unwrap_or_default();
        let preferred = group["preferredVersion"]["version"].as_str();
        let others = group["versions"].as_array().into_iter().flatten().filter_map(|one| one["version"].as_str());
        let others = others.filter(|version| Some(*version) != preferred);
        versions.extend(preferred.into_iter().chain(others).map(|version| (name.to_owned(), version.to_owned())));
    }
    let answers = stream::iter(versions).map(|(group, version)| async move {
        let path = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        let answer = api.send(&path, &Ask::List(&ListParams::default())).await;
        (group, version, answer)
    });
    let answers: Vec<_> = answers.buffered(AT_ONCE).collect().await;
    let (mut found, mut seen) =
        (Found { kinds: Vec::new(), served: BTreeSet::new(), problems: Vec::new() }, BTreeSet::new());
    for (group, version, answer) in answers {
        match answer {
            Ok(list) => {
                found.kinds.extend(of_version(&group, &version, &list, &mut seen));
                found.served.insert((group, version));
            }
            Err(failure @ (Failure::Transport(_) | Failure::Status { code: 401, .. })) => {
                return Err(api.fatal(what, &failure).into());
            }
            Err(failure) => {
                let text = format!("ask for the kinds of {group}/{version}: {}", failure.text());
                found.problems.push(Problem { path: Vec::new(), text });
            }
        }
    }
    Ok(found)
}

fn of_version(group: &str, version: &str, list: &Value, seen: &mut BTreeSet<(String, String)>) -> Vec<Kind> {
    let mut kinds = Vec::new();
    let names = list["resources"].as_array().into_iter().flatten().filter_map(|resource| resource["name"].as_str());
    let with_status: BTreeSet<&str> = names.filter_map(|name| name.strip_suffix("/status")).collect();
    for resource in list["resources"].as_array().into_iter().flatten() {
        let (Some(plural), Some(kind)) = (resource["name"].as_str(), resource["kind"].as_str()) else { continue };
        // Subresources have a slash.
        if plural.contains('/') || !seen.insert((group.to_owned(), plural.to_owned())) {
            continue;
        }
        let verbs = resource["verbs"].as_array();
        kinds.push(Kind {
            group: group.to_owned(),
            version: version.to_owned(),
            plural: plural.to_owned(),
            name: kind.to_owned(),
            namespaced: resource["namespaced"].as_bool().unwrap_or(false),
            listable: verbs.is_some_and(|verbs| verbs.iter().any(|verb| verb == "list")),
            status: with_status.contains(plural),
        });
    }
    kinds
}
