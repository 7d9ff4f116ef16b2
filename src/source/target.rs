//! Bringing a snapshot back into a running system.
//!
//! First [`Target::plan`], which looks and changes nothing, then [`Target::apply`]. What a plan says is printed by a dry
//! run; whether a person must confirm depends on it, not on the kind of system. Deliberately absent: reading snapshots.

use super::{Context, Say, SourceError, kubernetes, vault};
use crate::entry::{Problem, Supply};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// How people want a snapshot to be brought back. All but `existing`, `foreign` and `vault_paths` is for objects of
/// Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Options {
    /// What becomes of objects that are there already.
    pub existing: Existing,
    /// Go on although the target is another system than the one that was captured.
    pub foreign: bool,
    /// Namespaces that are restored under another name.
    pub namespaces: BTreeMap<String, String>,
    /// Storage classes that volumes and claims get instead of those they had.
    pub storage_classes: BTreeMap<String, String>,
    /// Beginnings of containers' images, and what they become. The longest that fits counts; it ends where a part of the
    /// image's name does.
    pub images: BTreeMap<String, String>,
    /// Objects that are brought back, if not all: `RESOURCE`, such as `deployments.apps`, or `NAMESPACE/RESOURCE/NAME` (the
    /// namespace is `_cluster` for objects that have none), with `*` and the other wildcards of shells. The namespaces and
    /// definitions that they need are made with them, if they are missing.
    pub include: Vec<String>,
    /// Objects that are not brought back, even if `include` or `selector` fit them.
    pub exclude: Vec<String>,
    /// A label selector, as `kubectl get -l` takes it, for the objects' labels in the snapshot.
    pub selector: Option<String>,
    /// Changes of single objects, made after all others.
    pub patches: Vec<Patch>,
    /// Custom objects that are made get the status back that they had.
    pub status: bool,
    /// Secrets of a Vault that are brought back, if not all of it: API paths (`secret/data/NAME`), of folders with a slash
    /// at their end.
    pub vault_paths: Vec<String>,
    /// Names what is done; the same when it is done again.
    #[serde(skip)]
    pub step: Option<String>,
    /// A target that can move aside what it replaces does so, under the step's name.
    #[serde(skip)]
    pub aside: bool,
    /// What this step had begun to make where nothing was ([`Target::unmarked`]): it goes on with it.
    #[serde(skip)]
    pub made: BTreeSet<String>,
    /// What fences hold back, by the cluster's id: an object that is made anew is made held.
    #[serde(skip)]
    pub held: Vec<(String, kubernetes::fence::Held)>,
}

impl Options {
    /// What to do in a plan about tables that are in the way.
    #[must_use]
    pub fn way_out(&self) -> &'static str {
        if self.step.is_none() {
            return "";
        }
        " (if they may go: --abort, and begin again with options.existing: replace)"
    }
}

/// A change of the objects of one kind before they are brought back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Patch {
    /// Resource and group, such as `deployments.apps`.
    pub kind: String,
    /// `NAME` or `NAMESPACE/NAME` in the snapshot, with wildcards.
    pub name: String,
    /// JSON Patch (RFC 6902).
    pub patch: json_patch::Patch,
}

impl Options {
    /// Says what no type can.
    pub fn check(&self, say: &mut Say<'_>) {
        kubernetes::check_options(self, say);
        vault::check_paths(&self.vault_paths, say);
    }

    /// What is wrong with them for other kinds than Kubernetes, which know those of `known` all the same.
    pub(super) fn of_objects(&self, known: &[&str]) -> Option<String> {
        let given = [
            (!self.namespaces.is_empty(), "namespaces"),
            (!self.storage_classes.is_empty(), "storageClasses"),
            (!self.images.is_empty(), "images"),
            (!self.include.is_empty(), "include"),
            (!self.exclude.is_empty(), "exclude"),
            (self.selector.is_some(), "selector"),
            (!self.patches.is_empty(), "patches"),
            (self.status, "status"),
        ];
        let given = given.into_iter().find(|(given, name)| *given && !known.contains(name));
        given.map(|(_, name)| format!("the option {name} is for objects of Kubernetes"))
    }

    /// What is wrong with them for other kinds than Vault.
    pub(super) fn of_vault(&self) -> Option<String> {
        (!self.vault_paths.is_empty()).then(|| "single paths are for secrets of Vault".into())
    }
}

/// What becomes of an object that is there already and is not what the snapshot holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Existing {
    /// It stays as it is.
    #[default]
    Skip,
    /// It is changed to what the snapshot holds.
    Update,
    /// It is deleted and made anew.
    Replace,
}

/// What happens to one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Create,
    Update,
    Replace,
    /// It outlived what it belonged to, and is joined to that again; nothing of it is lost.
    Adopt,
    /// It is as the snapshot holds it.
    Unchanged,
    /// It is there, differs, and is left alone.
    Skip,
    /// It cannot be done, and why.
    Conflict(String),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create => f.write_str("create"),
            Self::Update => f.write_str("update"),
            Self::Replace => f.write_str("replace"),
            Self::Adopt => f.write_str("adopt"),
            Self::Unchanged => f.write_str("unchanged"),
            Self::Skip => f.write_str("skip"),
            Self::Conflict(why) => write!(f, "conflict: {why}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The object, as the system's own tools name it.
    pub what: String,
    pub action: Action,
}

/// "create 12, update 3", or that there is nothing to do.
#[must_use]
pub fn summary<'a>(changes: impl IntoIterator<Item = &'a Change>) -> String {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for change in changes {
        let action = match &change.action {
            Action::Conflict(_) => "conflict".into(),
            other => other.to_string(),
        };
        *counts.entry(action).or_default() += 1;
    }
    let counts: Vec<_> = counts.into_iter().map(|(action, number)| format!("{action} {number}")).collect();
    if counts.is_empty() { "nothing to do".into() } else { counts.join(", ") }
}

/// What a restore would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Tells the target from every other: a cluster's or system's id, or its address if it has none yet. A person repeats
    /// it before anything is overwritten.
    pub target: String,
    /// What is there now, a line each: server, version, age, how much it holds.
    pub about: Vec<String>,
    pub changes: Vec<Change>,
}

impl Plan {
    /// What is made where nothing is.
    pub(super) fn creates(&self) -> BTreeSet<String> {
        let created = self.changes.iter().filter(|change| change.action == Action::Create);
        created.map(|change| change.what.clone()).collect()
    }

    /// Whether something that is there now will be lost.
    #[must_use]
    pub fn overwrites(&self) -> bool {
        self.changes.iter().any(|change| matches!(change.action, Action::Update | Action::Replace))
    }
}

/// What a restore did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    pub changes: Vec<Change>,
    /// What could not be brought back, by path in the snapshot.
    pub problems: Vec<Problem>,
    /// What was seen working afterwards, a line each.
    pub checked: Vec<String>,
    /// What a person still has to do.
    pub to_do: Vec<String>,
}

/// A system that a snapshot can be brought back into. All calls block; run them on a blocking thread.
pub trait Target: Send {
    /// Finds out what is there and whether the restore can succeed. Changes nothing.
    fn plan(&mut self, context: &Context, supply: &dyn Supply) -> Result<Plan, SourceError>;

    /// Carries out `plan`, which this target made just before. Doing it again after it was interrupted ends in the same
    /// state.
    fn apply(&mut self, context: &Context, supply: &dyn Supply, plan: &Plan) -> Result<Applied, SourceError>;

    /// Of what `plan` creates: what this target, once it was broken off, cannot tell from what was there before. Whoever does
    /// the step again gives it back ([`Options::made`]).
    fn unmarked(&self, _plan: &Plan) -> BTreeSet<String> {
        BTreeSet::new()
    }

    /// Whether it can itself keep what it replaces ([`Options::aside`]). If not, that must be captured first.
    fn keeps(&self) -> bool {
        false
    }

    /// Undoes what its step did not bring to its end, as far as it can. Says what it did.
    fn abandon(&mut self, _context: &Context) -> Result<Vec<String>, SourceError> {
        Ok(Vec::new())
    }
}
