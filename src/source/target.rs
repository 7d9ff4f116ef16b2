//! Bringing a snapshot back into a running system.
//!
//! First [`Target::plan`], which looks and changes nothing, then [`Target::apply`]. What a plan says is printed by a dry
//! run; whether a person must confirm depends on it, not on the kind of system. Deliberately absent: reading snapshots.

use super::{Context, SourceError};
use crate::entry::{Problem, Supply};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// How people want a snapshot to be brought back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Options {
    /// What becomes of objects that are there already.
    pub existing: Existing,
    /// Namespaces that are restored under another name.
    pub namespaces: BTreeMap<String, String>,
    /// Go on although the target is another system than the one that was captured.
    pub foreign: bool,
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
}
