//! Where an object lies in a snapshot, and in which order objects are brought back.
//!
//! The order is Velero's, which grew out of what went wrong: what others need comes first. Webhook configurations come
//! last: until their servers run, they would refuse everything else.

use super::CLUSTER;
use super::kinds::Kind;

pub const CRDS: &str = "customresourcedefinitions.apiextensions.k8s.io";
pub const NAMESPACES: &str = "namespaces";
pub const VOLUMES: &str = "persistentvolumes";
pub const CLAIMS: &str = "persistentvolumeclaims";
pub const CLUSTER_ROLES: &str = "clusterroles.rbac.authorization.k8s.io";
pub const CLUSTER_ROLE_BINDINGS: &str = "clusterrolebindings.rbac.authorization.k8s.io";
pub const LATE: [&str; 5] = [
    "validatingadmissionpolicybindings.admissionregistration.k8s.io",
    "mutatingadmissionpolicybindings.admissionregistration.k8s.io",
    "validatingwebhookconfigurations.admissionregistration.k8s.io",
    "mutatingwebhookconfigurations.admissionregistration.k8s.io",
    "apiservices.apiregistration.k8s.io",
];

/// Before everything else that belongs to a namespace, or to none.
const FIRST: [&str; 25] = [
    CRDS,
    NAMESPACES,
    "storageclasses.storage.k8s.io",
    "volumesnapshotclasses.snapshot.storage.k8s.io",
    "volumesnapshotcontents.snapshot.storage.k8s.io",
    "volumesnapshots.snapshot.storage.k8s.io",
    VOLUMES,
    CLAIMS,
    CLUSTER_ROLES,
    "roles.rbac.authorization.k8s.io",
    "serviceaccounts",
    CLUSTER_ROLE_BINDINGS,
    "rolebindings.rbac.authorization.k8s.io",
    "secrets",
    "configmaps",
    "limitranges",
    "priorityclasses.scheduling.k8s.io",
    "pods",
    "replicasets.apps",
    "endpoints",
    "services",
    "ingressclasses.networking.k8s.io",
    // Their CRDs' operators read these before the objects that name them.
    "issuers.cert-manager.io",
    "clusterissuers.cert-manager.io",
    "certificates.cert-manager.io",
];

/// Sorts resources into the order of restoring.
pub fn rank(word: &str) -> (usize, &str) {
    let group = word.split_once('.').map_or("", |(_, group)| group);
    if LATE.contains(&word) {
        return (FIRST.len() + 2, word);
    }
    if group == "cluster.x-k8s.io" || group.ends_with(".cluster.x-k8s.io") || group == "kappctrl.k14s.io" {
        return (FIRST.len() + 1, word);
    }
    (FIRST.iter().position(|first| *first == word).unwrap_or(FIRST.len()), word)
}

/// The passes of a restore; each needs the ones before to be complete. Inside, the order is the snapshot's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Definitions,
    Cluster,
    Namespaced,
    Late,
}

impl Stage {
    pub const ALL: [Self; 4] = [Self::Definitions, Self::Cluster, Self::Namespaced, Self::Late];
}

/// `<namespace>/<resource>/<name>.yaml`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub namespace: Option<String>,
    pub word: String,
    pub name: String,
}

impl Place {
    pub fn of(kind: &Kind, namespace: Option<&str>, name: &str) -> Self {
        Self { namespace: namespace.map(str::to_owned), word: kind.word(), name: name.to_owned() }
    }

    pub fn path(&self) -> String {
        format!("{}/{}/{}.yaml", self.namespace.as_deref().unwrap_or(CLUSTER), self.word, self.name)
    }

    /// `None`: not the path of an object.
    pub fn parse(path: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(path).ok()?.split('/');
        let (namespace, word, name) = (parts.next()?, parts.next()?, parts.next()?.strip_suffix(".yaml")?);
        let namespace = (namespace != CLUSTER).then(|| namespace.to_owned());
        parts.next().is_none().then(|| Self { namespace, word: word.to_owned(), name: name.to_owned() })
    }

    pub fn stage(&self) -> Stage {
        match (&self.namespace, &*self.word) {
            (None, CRDS) => Stage::Definitions,
            (None, word) if LATE.contains(&word) => Stage::Late,
            (None, _) => Stage::Cluster,
            (Some(_), _) => Stage::Namespaced,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_need_comes_first() {
        let mut words = [
            "validatingwebhookconfigurations.admissionregistration.k8s.io",
            "machines.cluster.x-k8s.io",
            "deployments.apps",
            "services",
            "cronjobs.batch",
            "secrets",
            "serviceaccounts",
            "namespaces",
            CRDS,
        ];
        words.sort_by_key(|word| rank(word));
        let expected = [
            CRDS,
            "namespaces",
            "serviceaccounts",
            "secrets",
            "services",
            "cronjobs.batch",
            "deployments.apps",
            "machines.cluster.x-k8s.io",
            "validatingwebhookconfigurations.admissionregistration.k8s.io",
        ];
        assert_eq!(words, expected);
    }

    #[test]
    fn a_path_tells_the_object() {
        let place = Place::parse(b"shop/deployments.apps/web.v1.yaml").unwrap();
        assert_eq!(
            (place.namespace.as_deref(), &*place.word, &*place.name),
            (Some("shop"), "deployments.apps", "web.v1")
        );
        assert_eq!(place.path(), "shop/deployments.apps/web.v1.yaml");
        assert_eq!(Place::parse(b"_cluster/namespaces/shop.yaml").unwrap().stage(), Stage::Cluster);
        for other in [&b"shop/secrets"[..], b"shop/secrets/a", b"a/b/c/d.yaml", b"\xff/a/b.yaml", b""] {
            assert_eq!(Place::parse(other), None);
        }
    }
}
