//! Whether a captured tree holds what a Kubernetes control plane cannot be rebuilt without.
//!
//! An etcd snapshot is of no use to an API server with other keys: it could not read encrypted Secrets, and no service
//! account's token would be valid. What must be there is known by name; of the API server's manifest the flags that name
//! files are read, since the encryption configuration may lie anywhere. What is missing is a fact of the snapshot, which
//! `status` and `doctor` tell. Deliberately absent: looking into keys and certificates.

use crate::source::kubernetes::flags;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// The fact's name.
pub const FACT: &str = "control_plane";
/// How a set is described from which nothing is missing.
const COMPLETE: &str = "complete";
/// So many files are remembered by name; of larger trees the first in order, and what has one of the names below.
const MOST: usize = 4096;
/// The API server's manifest is not longer.
const MANIFEST: u64 = 1 << 20;

/// kubeadm's, below `/etc/kubernetes`.
const API_SERVER: &str = "manifests/kube-apiserver.yaml";
const ETCD: &str = "manifests/etcd.yaml";
const SIGNING_KEY: &str = "pki/sa.key";
const KUBEADM: [&str; 6] =
    ["pki/ca.crt", "pki/ca.key", SIGNING_KEY, "pki/sa.pub", "pki/front-proxy-ca.crt", "pki/front-proxy-ca.key"];
/// Where etcd is one of its pods.
const STACKED_ETCD: [&str; 2] = ["pki/etcd/ca.crt", "pki/etcd/ca.key"];
/// Flags of the API server that name what only people can make again.
const FLAGS: [&str; 10] = [
    "admission-control-config-file",
    "audit-policy-file",
    "authentication-config",
    "authorization-config",
    "client-ca-file",
    "encryption-provider-config",
    "etcd-cafile",
    "requestheader-client-ca-file",
    "service-account-key-file",
    "service-account-signing-key-file",
];
/// k3s' and RKE2's, below `/var/lib/rancher/…/server`. (Their authorities are in etcd too, sealed by the token.)
const TOKEN: &str = "server/token";
const RANCHER: [&str; 5] = [
    TOKEN,
    "server/tls/server-ca.key",
    "server/tls/client-ca.key",
    "server/tls/request-header-ca.key",
    "server/tls/service.key",
];
const NAMES: [&str; 6] = [API_SERVER, ETCD, SIGNING_KEY, TOKEN, "-ca.key", "service.key"];

/// The names of what was captured, relative to the root.
#[derive(Debug, Default)]
pub struct Seen(BTreeSet<String>);

impl Seen {
    pub fn note(&mut self, path: &[u8]) {
        if self.0.len() >= 2 * MOST {
            return;
        }
        let Ok(path) = std::str::from_utf8(path) else { return };
        if self.0.len() < MOST || NAMES.iter().any(|name| path.ends_with(name)) {
            self.0.insert(path.to_owned());
        }
    }

    /// What a snapshot of `root` says of the control planes in it, by the names of facts.
    pub fn facts(&self, root: &Path) -> BTreeMap<String, String> {
        let below = |name: &str| {
            let fits = |path: &&str| path.len() == name.len() || path[..path.len() - name.len()].ends_with('/');
            let paths = self.0.iter().map(String::as_str).filter(move |path| path.ends_with(name));
            paths.filter(fits).map(|path| path[..path.len() - name.len()].to_owned()).collect::<BTreeSet<_>>()
        };
        let kubeadm: BTreeSet<_> = below(API_SERVER).union(&below(SIGNING_KEY)).cloned().collect();
        let rancher = below(TOKEN).union(&below(RANCHER[1])).cloned().collect::<BTreeSet<_>>();
        let kubeadm = kubeadm.iter().map(|at| (at, "kubeadm", self.kubeadm(root, at)));
        let rancher = rancher.iter().map(|at| (at, "k3s or RKE2", self.lacking(at, &RANCHER)));
        let mut facts = BTreeMap::new();
        for (at, kind, lacking) in kubeadm.chain(rancher) {
            let name = if at.is_empty() { FACT.to_owned() } else { format!("{FACT} {}", at.trim_end_matches('/')) };
            let state = if lacking.is_empty() { COMPLETE.to_owned() } else { format!("lacks {}", lacking.join(", ")) };
            facts.insert(name, format!("{kind}, {state}"));
        }
        facts
    }

    fn lacking(&self, at: &str, names: &[&str]) -> Vec<String> {
        names.iter().filter(|name| !self.0.contains(&format!("{at}{name}"))).map(|&name| name.to_owned()).collect()
    }

    fn kubeadm(&self, root: &Path, at: &str) -> Vec<String> {
        let mut lacking = self.lacking(at, &KUBEADM);
        if self.0.contains(&format!("{at}{ETCD}")) {
            lacking.extend(self.lacking(at, &STACKED_ETCD));
        }
        let manifest = format!("{at}{API_SERVER}");
        if !self.0.contains(&manifest) {
            lacking.push(API_SERVER.to_owned());
            return lacking;
        }
        let mut text = String::new();
        let read = File::open(root.join(&manifest)).and_then(|file| file.take(MANIFEST).read_to_string(&mut text));
        let named = match read.map_err(|error| error.to_string()).and_then(|_| flags::files(&text, &FLAGS)) {
            Ok(named) => named,
            Err(why) => {
                lacking.push(format!("{API_SERVER} in a form that can be read ({why})"));
                return lacking;
            }
        };
        for (flag, path) in named {
            // The captured directory may be mounted elsewhere than where the node has it.
            let usual = path.strip_prefix("/etc/kubernetes/").map(|rest| format!("{at}{rest}"));
            let own = Path::new(&path).strip_prefix(root).ok().and_then(|rest| rest.to_str()).map(str::to_owned);
            let is_there = [usual, own].into_iter().flatten().any(|path| self.0.contains(&path));
            let is_told = |told: &String| path.ends_with(&format!("/{}", told.split(' ').next().unwrap_or_default()));
            if !is_there && !lacking.iter().any(is_told) {
                lacking.push(format!("{path} (--{flag})"));
            }
        }
        lacking.sort();
        lacking
    }
}

/// What of a snapshot's facts is a finding: where, and what is missing.
pub fn findings(details: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    let planes = details.iter().filter(|(name, _)| name.split(' ').next() == Some(FACT));
    planes.filter(|(_, state)| !state.ends_with(COMPLETE)).map(|(name, state)| (name.as_str(), state.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const SERVER: &str = "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - command:\n    - kube-apiserver\n    \
        - --client-ca-file=/etc/kubernetes/pki/ca.crt\n    - --encryption-provider-config=/keys/enc.yaml\n    \
        - --service-account-key-file=/etc/kubernetes/pki/sa.pub\n    volumeMounts:\n    \
        - {name: keys, mountPath: /keys}\n  volumes:\n  - {name: keys, hostPath: {path: /etc/kubernetes/enc}}\n";

    fn said(root: &Path, names: &[&str]) -> BTreeMap<String, String> {
        let mut seen = Seen::default();
        for name in names {
            seen.note(name.as_bytes());
        }
        seen.facts(root)
    }

    #[test]
    fn what_a_control_plane_lacks_is_said() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("manifests")).unwrap();
        fs::write(root.path().join(API_SERVER), SERVER).unwrap();
        let mut names = [&KUBEADM[..], &STACKED_ETCD, &[API_SERVER, ETCD]].concat();
        let lacks = said(root.path(), &names);
        assert_eq!(
            lacks["control_plane"],
            "kubeadm, lacks /etc/kubernetes/enc/enc.yaml (--encryption-provider-config)"
        );
        assert_eq!(findings(&lacks).count(), 1);
        names.push("enc/enc.yaml");
        let whole = said(root.path(), &names);
        assert_eq!(whole["control_plane"], "kubeadm, complete");
        assert_eq!(findings(&whole).count(), 0);
        names.retain(|name| !matches!(*name, "pki/sa.key" | "pki/etcd/ca.key"));
        assert_eq!(said(root.path(), &names)["control_plane"], "kubeadm, lacks pki/etcd/ca.key, pki/sa.key");
    }

    #[test]
    fn rancher_needs_its_token() {
        let all = RANCHER.map(|name| format!("k3s/{name}"));
        let all: Vec<_> = all.iter().map(String::as_str).collect();
        let root = Path::new("/var/lib/rancher");
        assert_eq!(said(root, &all)["control_plane k3s"], "k3s or RKE2, complete");
        assert_eq!(said(root, &all[1..])["control_plane k3s"], "k3s or RKE2, lacks server/token");
        assert_eq!(said(root, &["some/token", "a/b-ca.key", "xserver/token"]), BTreeMap::new());
    }
}
