//! The keys without which snapshots are worth nothing, and which no snapshot of the system itself holds.
//!
//! Either another source captures them, or the document says who keeps them (`heldElsewhere`). What is said is not checked.

use super::{Config, Source};
use crate::source::{Spec, files};
use std::path::Path;

/// Any of these makes a control plane of an etcd snapshot: kubeadm's service account key, k3s' and RKE2's token.
const CONTROL_PLANE: [&str; 3] =
    ["/etc/kubernetes/pki/sa.key", "/var/lib/rancher/k3s/server/token", "/var/lib/rancher/rke2/server/token"];

impl Config {
    /// What is missing, a sentence each with what to do.
    #[must_use]
    pub fn escrow(&self) -> Vec<String> {
        let sources = self.sources.values().filter(|source| source.held_elsewhere.is_empty());
        sources.filter_map(|source| self.lacks(source)).collect()
    }

    /// The addresses of the Vaults that are captured, and with them the keys that they keep.
    #[must_use]
    pub fn vaults(&self) -> Vec<&str> {
        let captured = self.sources.values().map(|source| &source.capture);
        captured.filter_map(|spec| if let Spec::Vault(vault) = spec { Some(&*vault.address) } else { None }).collect()
    }

    fn lacks(&self, source: &Source) -> Option<String> {
        let name = &source.name;
        match &source.capture {
            Spec::Etcd(_) if !self.captures_control_plane() => Some(format!(
                "{name}: no source captures the control plane's files ({}, and what is beside it), without which an etcd \
                 snapshot is no cluster: add a files source, or say in heldElsewhere who keeps them",
                CONTROL_PLANE[0]
            )),
            Spec::Vault(_) => Some(format!(
                "{name}: its snapshots open with its unseal keys, or the KMS that unseals it, alone: say in heldElsewhere \
                 who keeps those"
            )),
            _ => None,
        }
    }

    fn captures_control_plane(&self) -> bool {
        let captures = |spec: &files::Spec| CONTROL_PLANE.iter().any(|key| takes(spec, Path::new(key)));
        self.sources.values().any(|source| matches!(&source.capture, Spec::Files(spec) if captures(spec)))
    }
}

/// Whether a walk comes to `file`, as far as the document tells.
fn takes(spec: &files::Spec, file: &Path) -> bool {
    let Ok(below) = file.strip_prefix(&spec.path) else { return false };
    let matches = |patterns: &[String]| {
        let mut globs = patterns.iter().filter_map(|pattern| globset::Glob::new(pattern).ok());
        // A pattern that matches a directory stands for all below it.
        globs.any(|glob| {
            let glob = glob.compile_matcher();
            below.ancestors().any(|part| glob.is_match(part))
        })
    };
    (spec.include.is_empty() || matches(&spec.include)) && !matches(&spec.exclude)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn missing(sources: &[(&str, &str)]) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        for (name, spec) in sources {
            let text =
                format!("apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n");
            fs::write(directory.path().join(format!("{name}.yaml")), text).unwrap();
        }
        Config::load(&[directory.path().into()]).unwrap().escrow()
    }

    const ETCD: (&str, &str) = ("state", "etcd: {endpoints: ['https://a:2379']}");

    #[test]
    fn an_etcd_snapshot_needs_the_control_planes_files() {
        assert!(missing(&[ETCD])[0].starts_with("state: no source captures"));
        for files in ["path: /etc/kubernetes", "path: /etc, include: ['kubernetes/pki']", "path: /var/lib/rancher"] {
            assert_eq!(missing(&[ETCD, ("files", &format!("files: {{{files}}}"))]), [""; 0], "{files}");
        }
        for files in ["path: /etc/kubernetes, exclude: [pki]", "path: /etc, include: [ssh]", "path: /srv"] {
            assert_eq!(missing(&[ETCD, ("files", &format!("files: {{{files}}}"))]).len(), 1, "{files}");
        }
        let held = format!("{}, heldElsewhere: [in the safe]", ETCD.1);
        assert_eq!(missing(&[(ETCD.0, &held)]), [""; 0]);
    }

    #[test]
    fn a_vault_snapshot_needs_the_unseal_keys() {
        let vault = "vault: {address: 'https://a:8200', auth: {token: {env: T}}}";
        assert!(missing(&[("secrets", vault)])[0].contains("unseal keys"));
        assert_eq!(missing(&[("secrets", &format!("{vault}, heldElsewhere: [ann and bob]"))]), [""; 0]);
    }
}
