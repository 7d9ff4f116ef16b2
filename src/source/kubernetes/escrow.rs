//! Keys that captured objects are worth nothing without: Sealed Secrets' private keys, and those with which Flux opens what
//! SOPS has encrypted. Whether they are in a snapshot is a fact of it; so are the age keys that its Secrets hold, by their
//! public halves, which repositories encrypt to. Deliberately absent: keys outside of the cluster (a KMS), which nothing in
//! it tells, and the fingerprints of OpenPGP keys.

use crate::source::escrow::Newest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use zeroize::Zeroizing;

const SEALED: &str = "sealed_secrets";
const SEALING_KEYS: &str = "sealed_secrets_keys";
const MISSING: &str = "decryption_keys_missing";
/// Public halves, with a comma and a blank between them.
pub(in crate::source) const AGE_HELD: &str = "age_recipients_held";
const AGE_SECRET: &str = "AGE-SECRET-KEY-1";
const KEY_LABEL: &str = "sealedsecrets.bitnami.com/sealed-secrets-key";

#[derive(Debug, Default)]
pub struct Keys {
    sealed: u64,
    sealing: u64,
    /// Secrets that hold an age or OpenPGP key, and those that Kustomizations decrypt with.
    held: BTreeSet<String>,
    wanted: BTreeSet<String>,
    /// Public halves.
    age: BTreeSet<String>,
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
                let data = object["data"].as_object();
                if data.is_some_and(|data| data.keys().any(is_key)) {
                    self.held.insert(place(&metadata["name"]));
                }
                self.age.extend(data.into_iter().flat_map(|data| data.values()).flat_map(recipients));
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
        if !self.age.is_empty() {
            facts.insert(AGE_HELD.to_owned(), self.age.iter().map(String::as_str).collect::<Vec<_>>().join(", "));
        }
        facts
    }
}

/// The public halves of the age keys in a Secret's value.
fn recipients(value: &Value) -> Vec<String> {
    let Ok(bytes) = STANDARD.decode(value.as_str().unwrap_or_default()).map(Zeroizing::new) else { return Vec::new() };
    let text = std::str::from_utf8(&bytes).unwrap_or_default();
    let keys = text.split_whitespace().filter(|word| word.starts_with(AGE_SECRET));
    keys.filter_map(|key| Some(key.parse::<age::x25519::Identity>().ok()?.to_public().to_string())).collect()
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

/// Whether SealedSecrets are captured, and nowhere what opens them.
pub(in crate::source) fn sealed(all: &[Newest<'_>]) -> Option<String> {
    let mut needing = all.iter().filter(|newest| !newest.held_elsewhere);
    let held = all.iter().any(|newest| newest.details.contains_key(SEALING_KEYS));
    (needing.any(|newest| newest.details.contains_key(SEALED)) && !held).then(|| {
        format!(
            "SealedSecrets are captured, and no snapshot holds the controller's keys (Secrets with the label {KEY_LABEL}), \
             without which they cannot be opened: capture its namespace, or say in heldElsewhere who keeps them"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lacks(all: &[&Keys]) -> (Vec<String>, Option<String>) {
        let facts: Vec<_> = all.iter().map(|keys| keys.facts()).collect();
        let newest = |details| Newest { source: "cluster", details, held_elsewhere: false };
        let all: Vec<_> = facts.iter().map(newest).collect();
        (facts.iter().filter_map(decryption).collect(), sealed(&all))
    }

    #[test]
    fn keys_that_are_not_there_are_said() {
        let mut keys = Keys::default();
        keys.note("sealedsecrets.bitnami.com", &json!({"metadata": {"namespace": "shop", "name": "a"}}));
        let flux = json!({"metadata": {"namespace": "flux"}, "spec": {"decryption": {"secretRef": {"name": "age"}}}});
        keys.note("kustomizations.kustomize.toolkit.fluxcd.io", &flux);
        let (found, closed) = lacks(&[&keys]);
        assert!(
            found[0].contains("decrypt with flux/age,") && closed.unwrap().starts_with("SealedSecrets are captured")
        );

        let secret = json!({"metadata": {"namespace": "flux", "name": "age"}, "data": {"x.agekey": ""}});
        keys.note("secrets", &secret);
        assert_eq!(lacks(&[&keys]).0.len(), 0);
        // They may be another source's.
        let mut controller = Keys::default();
        controller.note("secrets", &json!({"metadata": {"labels": {KEY_LABEL: "active"}}}));
        assert_eq!(lacks(&[&keys, &controller]).1, None);
    }

    #[test]
    fn age_keys_are_known_by_their_public_halves() {
        use age::secrecy::ExposeSecret as _;
        let identity = age::x25519::Identity::generate();
        let file = format!("# public key: x\n{}\n", identity.to_string().expose_secret());
        let mut keys = Keys::default();
        keys.note("secrets", &json!({"data": {"keys.txt": STANDARD.encode(file), "other": "JSUl", "bad": "%"}}));
        assert_eq!(keys.facts()[AGE_HELD], identity.to_public().to_string());
    }
}
