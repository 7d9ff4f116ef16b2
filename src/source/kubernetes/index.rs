//! What a snapshot holds, without the objects themselves: which of them are brought back, and what belongs to what.

use super::capture::is_in_every_namespace;
use super::choose::Choice;
use super::order::{CLAIMS, CRDS, NAMESPACES, Place, VOLUMES};
use super::{KubernetesError, yaml};
use crate::entry::{Body, Supply};
use crate::source::{Context, SourceError};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::io;

/// Why an object is not brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Left {
    /// Its owner, which is in the snapshot, makes it again.
    Controlled,
    /// A service account's token: the cluster issues its own.
    Token,
    /// The control plane makes it.
    Automatic,
    /// A pod or job that has done its work and would do it again.
    Finished,
    /// It was being deleted.
    Going,
    /// A volume that went with its claim.
    Volume,
    /// People have chosen others.
    NotChosen,
}

impl Left {
    pub fn describe(self) -> &'static str {
        match self {
            Self::Controlled => "are made again by their controllers",
            Self::Token => "are service accounts' tokens, which the cluster issues itself",
            Self::Automatic => "are made by the cluster itself",
            Self::Finished => "are pods or jobs that had ended",
            Self::Going => "were being deleted",
            Self::Volume => "are volumes that were deleted with their claims; the claims get new, empty ones",
            Self::NotChosen => "were not chosen",
        }
    }
}

/// Cluster-scoped objects that describe a cluster's own machinery.
const MACHINERY: [&str; 9] = [
    "nodes",
    "csinodes.storage.k8s.io",
    "volumeattachments.storage.k8s.io",
    "csistoragecapacities.storage.k8s.io",
    "certificatesigningrequests.certificates.k8s.io",
    "ipaddresses.networking.k8s.io",
    "servicecidrs.networking.k8s.io",
    "leases.coordination.k8s.io",
    "storageversions.internal.apiserver.k8s.io",
];
/// Data that no controller can make again, whoever owns it. (An Application's history is not its ApplicationSet's to make.)
const DATA: [&str; 4] = ["secrets", "configmaps", CLAIMS, "applications.argoproj.io"];

#[derive(Clone, Debug)]
pub struct Owner {
    pub uid: String,
    /// As it stands in the object.
    pub reference: Value,
}

#[derive(Clone, Debug)]
pub struct Item {
    pub place: Place,
    pub uid: String,
    pub owners: Vec<Owner>,
    pub left: Option<Left>,
    /// It was not chosen, but what was chosen cannot be without it: it is made if it is missing; a volume that its claim's
    /// deletion released is given back.
    pub along: bool,
    /// Where a volume's claim lies in the snapshot.
    claim: Option<String>,
}

#[derive(Debug, Default)]
pub struct Index {
    pub items: BTreeMap<Vec<u8>, Item>,
}

impl Index {
    /// Reads the whole snapshot once.
    pub fn read(supply: &dyn Supply, choice: &Choice) -> io::Result<Self> {
        let mut index = Self::default();
        supply.entries(&mut |entry, body| {
            if let Some(place) = Place::parse(&entry.path) {
                let object = object(&entry.path, body)?;
                let left = if choice.takes(&place, &object) { left(&place, &object) } else { Some(Left::NotChosen) };
                index.items.insert(entry.path.clone(), item(place, &object, left));
            }
            Ok(())
        })?;
        let uids: HashSet<String> = index.items.values().map(|item| item.uid.clone()).collect();
        for item in index.items.values_mut() {
            let controlled = |owner: &Owner| owner.reference["controller"] == true && uids.contains(&owner.uid);
            if item.left.is_none() && !DATA.contains(&&*item.place.word) && item.owners.iter().any(controlled) {
                item.left = Some(Left::Controlled);
            }
        }
        index.bring_along(choice);
        Ok(index)
    }

    /// Namespaces, definitions and volumes that chosen objects cannot be without.
    fn bring_along(&mut self, choice: &Choice) {
        let chosen = || self.items.values().filter(|item| item.left.is_none()).map(|item| &item.place);
        let namespaces: HashSet<String> = chosen().filter_map(|place| place.namespace.clone()).collect();
        let words: HashSet<String> = chosen().map(|place| place.word.clone()).collect();
        let claims: HashSet<String> = chosen().filter(|place| place.word == CLAIMS).map(Place::path).collect();
        for item in self.items.values_mut().filter(|item| item.left == Some(Left::NotChosen)) {
            let needed = match (&item.place.namespace, &*item.place.word) {
                (None, NAMESPACES) => namespaces.contains(&item.place.name),
                (None, CRDS) => words.contains(&item.place.name),
                (None, VOLUMES) => item.claim.as_ref().is_some_and(|claim| claims.contains(claim)),
                _ => false,
            };
            if needed && !choice.excludes(&item.place) {
                (item.left, item.along) = (None, true);
            }
        }
    }

    /// Those that are left out, counted.
    pub fn left(&self) -> BTreeMap<Left, usize> {
        let mut counts = BTreeMap::new();
        for left in self.items.values().filter_map(|item| item.left) {
            *counts.entry(left).or_default() += 1;
        }
        counts
    }

    /// The item at a path, if it is brought back.
    pub fn wanted(&self, path: &[u8]) -> Option<&Item> {
        self.items.get(path).filter(|item| item.left.is_none())
    }
}

fn item(place: Place, object: &Value, left: Option<Left>) -> Item {
    let metadata = &object["metadata"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let owners = metadata["ownerReferences"].as_array().into_iter().flatten();
    let owners = owners.map(|owner| Owner { uid: text(&owner["uid"]), reference: owner.clone() }).collect();
    let claim = &object["spec"]["claimRef"];
    let kept = place.word == VOLUMES && object["spec"]["persistentVolumeReclaimPolicy"] != "Delete";
    let claim = (kept && claim.is_object())
        .then(|| format!("{}/{CLAIMS}/{}.yaml", text(&claim["namespace"]), text(&claim["name"])));
    Item { uid: text(&metadata["uid"]), owners, left, place, along: false, claim }
}

fn left(place: &Place, object: &Value) -> Option<Left> {
    let (word, status) = (&*place.word, &object["status"]);
    if object["metadata"]["deletionTimestamp"].is_string() {
        return Some(Left::Going);
    }
    let automatic = MACHINERY.contains(&word)
        || word == "configmaps" && is_in_every_namespace(word, &place.name)
        || word == "apiservices.apiregistration.k8s.io" && !object["spec"]["service"].is_object();
    if automatic {
        return Some(Left::Automatic);
    }
    let ended = |kind: &str| {
        let conditions = status["conditions"].as_array().into_iter().flatten();
        conditions.into_iter().any(|condition| condition["type"] == kind && condition["status"] == "True")
    };
    match word {
        "secrets" if object["type"] == "kubernetes.io/service-account-token" => Some(Left::Token),
        "pods" if status["phase"] == "Succeeded" || status["phase"] == "Failed" => Some(Left::Finished),
        "jobs.batch" if ended("Complete") || ended("Failed") => Some(Left::Finished),
        VOLUMES if object["spec"]["persistentVolumeReclaimPolicy"] == "Delete" => Some(Left::Volume),
        _ => None,
    }
}

/// The object that an entry holds.
pub fn object(path: &[u8], body: &dyn Body) -> io::Result<Value> {
    let mut bytes = Vec::new();
    body.copy(&mut bytes)?;
    let bad = |text: String| {
        let path = String::from_utf8_lossy(path).into_owned();
        io::Error::new(io::ErrorKind::InvalidData, KubernetesError::Object { path, text })
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| bad("it is not text".to_owned()))?;
    let object = yaml::read(text).map_err(bad)?;
    if object["kind"].is_string() && object["apiVersion"].is_string() && object["metadata"]["name"].is_string() {
        Ok(object)
    } else {
        Err(bad("it is not an object of Kubernetes".to_owned()))
    }
}

/// An error of the snapshot, or one of ours that had to pass through it.
pub fn unwrapped(context: &Context, error: io::Error) -> SourceError {
    if let Err(stop) = context.go_on() {
        return stop;
    }
    error
        .downcast::<SourceError>()
        .unwrap_or_else(|error| SourceError::Snapshot { what: "the objects".into(), source: error })
}
