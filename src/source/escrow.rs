//! What snapshots need that others must hold: the facts of all sources' newest snapshots, laid side by side.

use super::kubernetes::escrow::{AGE_HELD, sealed};
use std::collections::{BTreeMap, BTreeSet};

/// Sets of keys, of each of which one is needed to open what SOPS encrypts; and files that could not be read for it.
pub(super) const SOPS: &str = "sops_keys";
pub(super) const SOPS_UNREAD: &str = "sops_configuration_not_understood";
const BETWEEN_SETS: &str = "; ";
const BETWEEN_KEYS: &str = ", ";

/// The newest snapshot of a source.
pub struct Newest<'a> {
    pub source: &'a str,
    pub details: &'a BTreeMap<String, String>,
    /// Its document says that people keep what it lacks.
    pub held_elsewhere: bool,
}

pub(super) fn sops_fact(sets: &BTreeSet<Vec<String>>) -> String {
    let sets: Vec<_> = sets.iter().map(|set| set.join(BETWEEN_KEYS)).collect();
    sets.join(BETWEEN_SETS)
}

/// What they together do not hold, a sentence each with what to do. `vaults` are the addresses of those that are captured.
#[must_use]
pub fn findings(all: &[Newest<'_>], vaults: &[&str]) -> Vec<String> {
    let age = all.iter().filter_map(|newest| newest.details.get(AGE_HELD));
    let age: BTreeSet<_> = age.flat_map(|held| held.split(BETWEEN_KEYS)).collect();
    let is_held = |key: &str| match key.split_once(' ') {
        Some(("age", recipient)) => age.contains(recipient),
        // The key is in the Vault, and so in its snapshots.
        Some(("hc_vault", uri)) => {
            let below =
                |vault: &&str| uri.strip_prefix(vault.trim_end_matches('/')).is_some_and(|r| r.starts_with('/'));
            vaults.iter().any(below)
        }
        _ => false,
    };
    let mut found: Vec<_> = sealed(all).into_iter().collect();
    for Newest { source, details, .. } in all.iter().filter(|newest| !newest.held_elsewhere) {
        let sets = details.get(SOPS).map(|fact| fact.split(BETWEEN_SETS)).into_iter().flatten();
        let lacking: Vec<_> = sets.filter(|set| !set.split(BETWEEN_KEYS).any(is_held)).collect();
        if !lacking.is_empty() {
            found.push(format!(
                "{source}: its .sops.yaml encrypts to keys of which no snapshot holds one ({}): capture the Secret with the \
                 age key, or the Vault, or say in heldElsewhere who keeps them",
                lacking.join(BETWEEN_SETS)
            ));
        }
        if let Some(files) = details.get(SOPS_UNREAD) {
            found.push(format!(
                "{source}: {files} is not YAML, so nobody knows which keys open what SOPS encrypts there"
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A source, its facts, and whether its keys are held elsewhere.
    type Told<'a> = (&'a str, &'a [(&'a str, &'a str)], bool);

    fn told(facts: &[Told<'_>], vaults: &[&str]) -> Vec<String> {
        let facts: Vec<_> = facts
            .iter()
            .map(|(source, facts, held)| {
                let details: BTreeMap<_, _> =
                    facts.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
                (*source, details, *held)
            })
            .collect();
        let all: Vec<_> = facts
            .iter()
            .map(|(source, details, held_elsewhere)| Newest { source, details, held_elsewhere: *held_elsewhere })
            .collect();
        findings(&all, vaults)
    }

    #[test]
    fn one_key_of_each_set_must_be_held() {
        let needs = [(SOPS, "age age1a, age age1b; hc_vault https://vault:8200/v1/sops/keys/a; pgp FBC7")];
        let git: (&str, &[_], bool) = ("infra", &needs, false);
        let found = told(&[git], &[]);
        assert!(found[0].starts_with("infra: ") && found[0].contains("(age age1a, age age1b; hc_vault "), "{found:?}");
        let cluster: (&str, &[_], bool) = ("cluster", &[(AGE_HELD, "age1z, age1b")], true);
        let found = told(&[git, cluster], &["https://vault:8200/"]);
        assert!(found.len() == 1 && found[0].contains("(pgp FBC7)"), "{found:?}");
        assert_eq!(told(&[("infra", &needs, true)], &[]), [""; 0]);
        assert!(told(&[git], &["https://vault:82"])[0].contains("hc_vault"));
        assert!(told(&[("infra", &[(SOPS_UNREAD, "a/.sops.yaml")], false)], &[])[0].contains("a/.sops.yaml"));
    }
}
