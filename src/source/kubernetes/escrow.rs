//! Keys that captured objects are worth nothing without: Sealed Secrets' private keys, and those with which Flux opens what
//! SOPS has encrypted. Whether they are in a snapshot is a fact of it. Deliberately absent: keys outside of the cluster (a
//! KMS), which nothing in it tells.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const SEALED: &str = "sealed_secrets";
const SEALING_KEYS: &str = "sealed_secrets_keys";
const MISSING: &str = "decryption_keys_missing";
const KEY_LABEL: &str = "sealedsecrets.bitnami.com/sealed-secrets-key";

#[derive(Debug, Default)]
pub struct Keys {
    sealed: u64,
    sealing: u64,
    /// Secrets that hold an age or OpenPGP key, and those that Kustomizations decrypt with.
    held: BTreeSet<String>,
    wanted: BTreeSet<String>,
}

impl Keys {
    pub fn note(&mut self, word: &str, object: &Value) {
        let metadata = &object["metadata"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let place = |name: &Value| format!("{}/{}", text(&metadata["namespace"]), text(name));
        match word {
            "sealedsecrets.bitnami.com" => self.sealed += 1,
            "secrets" if metadata["labels"][KEY_LABEL].is_string() => self.sealing += 1,
            "secrets" => {
                let is_key = |name: &String| name.rsplit('.').next().is_some_and(|end| matches!(end, "agekey" | "asc"));
                if object["data"].as_object().is_some_and(|data| data.keys().any(is_key)) {
                    self.held.insert(place(&metadata["name"]));
                }
            }
            "kustomizations.kustomize.toolkit.fluxcd.io" => {
                let secret = &object["spec"]["decryption"]["secretRef"]["name"];
                if secret.is_string() {
                    self.wanted.insert(place(secret));
                }
            }
            _ => {}
        }
    }

    /// Nothing, where nothing is sealed.
    pub fn facts(&self) -> BTreeMap<String, String> {
        let mut facts = BTreeMap::new();
        for (name, number) in [(SEALED, self.sealed), (SEALING_KEYS, self.sealing)] {
            if number > 0 {
                facts.insert(name.to_owned(), number.to_string());
            }
        }
        let missing: Vec<_> = self.wanted.difference(&self.held).map(String::as_str).collect();
        if !missing.is_empty() {
            facts.insert(MISSING.to_owned(), missing.join(", "));
        }
        facts
    }
}

/// What one snapshot's facts say is missing.
pub fn decryption(details: &BTreeMap<String, String>) -> Option<String> {
    details.get(MISSING).map(|missing| {
        format!(
            "Kustomizations decrypt with {missing}, which the snapshot does not hold as keys of age or OpenPGP: capture \
             that, or say in heldElsewhere who keeps them"
        )
    })
}

/// What the facts of all sources' newest snapshots together say is missing.
pub fn findings(all: &[BTreeMap<String, String>]) -> Vec<String> {
    let any = |name: &str| all.iter().any(|details| details.contains_key(name));
    let mut found: Vec<_> = all.iter().filter_map(decryption).collect();
    if any(SEALED) && !any(SEALING_KEYS) {
        found.push(format!(
            "SealedSecrets are captured, and no snapshot holds the controller's keys (Secrets with the label {KEY_LABEL}), \
             without which they cannot be opened: capture its namespace, or say in heldElsewhere who keeps them"
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_that_are_not_there_are_said() {
        let mut keys = Keys::default();
        keys.note("sealedsecrets.bitnami.com", &json!({"metadata": {"namespace": "shop", "name": "a"}}));
        let flux = json!({"metadata": {"namespace": "flux"}, "spec": {"decryption": {"secretRef": {"name": "age"}}}});
        keys.note("kustomizations.kustomize.toolkit.fluxcd.io", &flux);
        let facts = keys.facts();
        let found = findings(&[facts]);
        assert!(found[0].contains("decrypt with flux/age,") && found[1].starts_with("SealedSecrets are captured"));

        let secret = json!({"metadata": {"namespace": "flux", "name": "age"}, "data": {"x.agekey": ""}});
        keys.note("secrets", &secret);
        assert_eq!(findings(&[keys.facts()]).len(), 1);
        // They may be another source's.
        let mut controller = Keys::default();
        controller.note("secrets", &json!({"metadata": {"labels": {KEY_LABEL: "active"}}}));
        assert_eq!(findings(&[keys.facts(), controller.facts()]), [""; 0]);
    }
}
