//! Holding back what would fight a restore: workloads that write, automatic syncs, CronJobs.
//!
//! [`look`] finds out what is to be changed and writes down what was there before; [`hold`] changes it; [`release`] puts it
//! back. An object that is held says so itself: the annotation [`HELD`] has what was there before. It is set and taken away
//! in the same request as the change, so an object is either as it was or held and marked, and whoever finds it marked can
//! put it back without a journal. What lost its mark, or is not as [`hold`] left it, belongs to somebody else and stays as
//! it is. A restore keeps objects held that are, and a snapshot of a held object is restored as if it were not. Deliberately
//! absent: what KEDA, operators or other controllers scale by themselves; deleting anything.

mod act;
mod look;
pub(super) mod mark;

pub use act::{hold, release};
pub use look::look;
pub use mark::{Before, HELD};

use crate::source::Say;
use serde::{Deserialize, Serialize};

/// What a plan's `fence` step holds back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Hold {
    /// Deployments and StatefulSets that are scaled to zero.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scale: Vec<Scaled>,
    /// Argo CD Applications whose automated sync is taken away, and with them the ApplicationSets and parent Applications
    /// that would put it back.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pause_sync: Vec<Paused>,
    /// CronJobs that are suspended.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub suspend: Vec<Suspended>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Scaled {
    pub namespace: String,
    /// `deployment/NAME` or `statefulset/NAME`; the name may be `*`. None: all Deployments and StatefulSets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Paused {
    pub namespace: String,
    /// Of Applications. None: all of the namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Suspended {
    pub namespace: String,
    /// Of CronJobs. None: all of the namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

/// What was there before, object by object, enough to put it back: written to a journal before anything is changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Held {
    /// In the order of holding: what would undo a change comes before what it would undo.
    pub objects: Vec<HeldObject>,
    /// What was looked for and needs no holding back, or may go on in spite of it; a line each.
    #[serde(default)]
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeldObject {
    pub what: What,
    pub namespace: String,
    pub name: String,
    pub before: Before,
}

/// The kinds that can be held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum What {
    ApplicationSet,
    Application,
    CronJob,
    Deployment,
    StatefulSet,
}

impl What {
    /// The path of its objects.
    fn path(self, namespace: &str) -> String {
        let (group, plural) = match self {
            Self::ApplicationSet => ("argoproj.io/v1alpha1", "applicationsets"),
            Self::Application => ("argoproj.io/v1alpha1", "applications"),
            Self::CronJob => ("batch/v1", "cronjobs"),
            Self::Deployment => ("apps/v1", "deployments"),
            Self::StatefulSet => ("apps/v1", "statefulsets"),
        };
        format!("/apis/{group}/namespaces/{namespace}/{plural}")
    }

    /// By its resource and group.
    fn of_resource(word: &str) -> Option<Self> {
        Some(match word {
            "applicationsets.argoproj.io" => Self::ApplicationSet,
            "applications.argoproj.io" => Self::Application,
            "cronjobs.batch" => Self::CronJob,
            "deployments.apps" => Self::Deployment,
            "statefulsets.apps" => Self::StatefulSet,
            _ => return None,
        })
    }

    fn word(self) -> &'static str {
        match self {
            Self::ApplicationSet => "applicationset",
            Self::Application => "application",
            Self::CronJob => "cronjob",
            Self::Deployment => "deployment",
            Self::StatefulSet => "statefulset",
        }
    }
}

impl HeldObject {
    /// Whether it is that object, of a resource and group.
    pub(super) fn names(&self, word: &str, namespace: Option<&str>, name: &str) -> bool {
        let what = What::of_resource(word);
        (what, namespace, name) == (Some(self.what), Some(self.namespace.as_str()), self.name.as_str())
    }

    fn describe(&self) -> String {
        format!("{}/{} in {}", self.what.word(), self.name, self.namespace)
    }
}

impl Hold {
    /// What this and another hold back both, if they are closed at once.
    #[must_use]
    pub fn in_common(&self, other: &Self) -> Option<String> {
        let (own, theirs) = (self.parts(), other.parts());
        let same = |one: &str, another: &str| one == another || one == "*" || another == "*";
        let both = |(what, namespace, name): &&(What, &str, &str)| {
            theirs.iter().any(|(its, where_, named)| (what, namespace) == (its, where_) && same(name, named))
        };
        let (what, namespace, name) = own.iter().find(both)?;
        Some(format!("{}/{name} in {namespace}", what.word()))
    }

    /// Both pause syncs in one namespace; what manages the Applications is paused with them.
    #[must_use]
    pub fn may_have_parents_in_common(&self, other: &Self) -> bool {
        self.pause_sync.iter().any(|one| other.pause_sync.iter().any(|another| one.namespace == another.namespace))
    }

    /// What is named, `*` for all.
    fn parts(&self) -> Vec<(What, &str, &str)> {
        fn named(names: &[String]) -> Vec<&str> {
            if names.is_empty() { vec!["*"] } else { names.iter().map(String::as_str).collect() }
        }
        let mut parts = Vec::new();
        for Scaled { namespace, names } in &self.scale {
            if names.is_empty() {
                parts.extend([What::Deployment, What::StatefulSet].map(|what| (what, namespace.as_str(), "*")));
            }
            let names = names.iter().filter_map(|name| look::workload(name));
            parts.extend(names.map(|(what, name)| (what, namespace.as_str(), name)));
        }
        for Paused { namespace, names } in &self.pause_sync {
            parts.extend(named(names).into_iter().map(|name| (What::Application, namespace.as_str(), name)));
        }
        for Suspended { namespace, names } in &self.suspend {
            parts.extend(named(names).into_iter().map(|name| (What::CronJob, namespace.as_str(), name)));
        }
        parts
    }

    /// Says what no type can.
    pub fn check(&self, say: &mut Say<'_>) {
        if self.scale.is_empty() && self.pause_sync.is_empty() && self.suspend.is_empty() {
            say("", "expected something to hold back: scale, pauseSync or suspend");
        }
        for (index, scaled) in self.scale.iter().enumerate() {
            namespace(&scaled.namespace, &format!("scale[{index}]"), say);
            for (at, name) in scaled.names.iter().enumerate() {
                if look::workload(name).is_none() {
                    let field = format!("scale[{index}].names[{at}]");
                    say(&field, "expected deployment/NAME or statefulset/NAME, where NAME may be * for all");
                }
            }
        }
        let paused = self.pause_sync.iter().map(|one| (&one.namespace, &one.names));
        let suspended = self.suspend.iter().map(|one| (&one.namespace, &one.names));
        let lists = paused.enumerate().map(|(index, one)| (format!("pauseSync[{index}]"), one));
        let lists = lists.chain(suspended.enumerate().map(|(index, one)| (format!("suspend[{index}]"), one)));
        for (field, (space, names)) in lists {
            namespace(space, &field, say);
            for (at, name) in names.iter().enumerate() {
                if name.is_empty() || name.contains('/') {
                    say(&format!("{field}.names[{at}]"), "expected the name of an object, without its kind");
                }
            }
        }
    }
}

fn namespace(name: &str, field: &str, say: &mut Say<'_>) {
    if !super::is_namespace(name) {
        say(&format!("{field}.namespace"), "expected the name of a namespace");
    }
}
