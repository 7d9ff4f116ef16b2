//! Which objects without a namespace the captured ones cannot be without.

use super::kinds::Kind;
use super::order::{CLUSTER_ROLES, CRDS, NAMESPACES, VOLUMES};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Fields that name such an object, wherever they stand (a claim, the template of one, a pod's template).
const FIELDS: [(&str, &str); 7] = [
    ("storageClassName", "storageclasses.storage.k8s.io"),
    ("priorityClassName", "priorityclasses.scheduling.k8s.io"),
    ("ingressClassName", "ingressclasses.networking.k8s.io"),
    ("runtimeClassName", "runtimeclasses.node.k8s.io"),
    ("gatewayClassName", "gatewayclasses.gateway.networking.k8s.io"),
    ("volumeSnapshotClassName", "volumesnapshotclasses.snapshot.storage.k8s.io"),
    ("boundVolumeSnapshotContentName", "volumesnapshotcontents.snapshot.storage.k8s.io"),
];

#[derive(Debug, Default)]
pub struct Needs {
    names: BTreeMap<&'static str, BTreeSet<String>>,
    service_accounts: BTreeSet<(String, String)>,
    pub namespaces: BTreeSet<String>,
}

impl Needs {
    /// Takes note of a captured object.
    pub fn note(&mut self, kind: &Kind, object: &Value) {
        if kind.group.contains('.') {
            self.add(CRDS, &format!("{}.{}", kind.plural, kind.group));
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if kind.namespaced {
            self.namespace(&text(&object["metadata"]["namespace"]));
        }
        match &*kind.word() {
            "configmaps" | "secrets" => return,
            "serviceaccounts" => {
                let metadata = &object["metadata"];
                self.service_accounts.insert((text(&metadata["namespace"]), text(&metadata["name"])));
            }
            "persistentvolumeclaims" => self.add(VOLUMES, &text(&object["spec"]["volumeName"])),
            "rolebindings.rbac.authorization.k8s.io" | "clusterrolebindings.rbac.authorization.k8s.io"
                if object["roleRef"]["kind"] == "ClusterRole" =>
            {
                self.add(CLUSTER_ROLES, &text(&object["roleRef"]["name"]));
            }
            _ => {}
        }
        self.walk(object);
    }

    pub fn namespace(&mut self, name: &str) {
        if !self.namespaces.contains(name) {
            self.add(NAMESPACES, name);
            self.namespaces.insert(name.to_owned());
        }
    }

    pub fn add(&mut self, word: &'static str, name: &str) {
        let known = self.names.get(word).is_some_and(|names| names.contains(name));
        if !name.is_empty() && !known {
            self.names.entry(word).or_default().insert(name.to_owned());
        }
    }

    fn walk(&mut self, value: &Value) {
        match value {
            Value::Array(list) => list.iter().for_each(|item| self.walk(item)),
            Value::Object(map) => {
                for (key, value) in map {
                    let field = FIELDS.iter().find(|(field, _)| field == key);
                    match (field, value) {
                        (Some((_, word)), Value::String(name)) => self.add(word, name),
                        _ => self.walk(value),
                    }
                }
            }
            _ => {}
        }
    }

    pub fn names(&self, word: &str) -> impl Iterator<Item = &String> {
        self.names.get(word).into_iter().flatten()
    }

    /// Does the binding give a captured service account, or all of a captured namespace, its rights?
    pub fn is_bound(&self, binding: &Value) -> bool {
        binding["subjects"].as_array().into_iter().flatten().any(|subject| {
            let text = |name: &str| subject[name].as_str().unwrap_or_default();
            match text("kind") {
                "ServiceAccount" => {
                    self.service_accounts.contains(&(text("namespace").to_owned(), text("name").to_owned()))
                }
                "Group" => text("name")
                    .strip_prefix("system:serviceaccounts:")
                    .is_some_and(|namespace| self.namespaces.contains(namespace)),
                _ => false,
            }
        })
    }

    /// Does a webhook configuration or an API service point into a captured namespace?
    pub fn is_served(&self, object: &Value) -> bool {
        let captured =
            |service: &Value| service["namespace"].as_str().is_some_and(|name| self.namespaces.contains(name));
        let webhooks = object["webhooks"].as_array().into_iter().flatten();
        captured(&object["spec"]["service"])
            || webhooks.into_iter().any(|webhook| captured(&webhook["clientConfig"]["service"]))
    }
}

/// Is a ClusterRole one of those that `aggregated` is put together from?
pub fn is_part(aggregated: &Value, role: &Value) -> bool {
    let selectors = aggregated["aggregationRule"]["clusterRoleSelectors"].as_array().into_iter().flatten();
    selectors.into_iter().filter_map(|selector| selector["matchLabels"].as_object()).any(|labels| {
        !labels.is_empty() && labels.iter().all(|(name, value)| role["metadata"]["labels"][name] == *value)
    })
}
