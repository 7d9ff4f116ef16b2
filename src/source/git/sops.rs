//! The keys that SOPS encrypts a repository's files to, as its `.sops.yaml` files say.
//!
//! A rule's keys each open what it encrypts; of a rule with groups of keys, one of every group is needed (a lower
//! `shamir_threshold` is not looked at). Deliberately absent: what files were really encrypted to, which may be older rules.

use super::program::Program;
use crate::source::escrow::{SOPS, SOPS_UNREAD, sops_fact};
use crate::source::kubernetes::yaml;
use crate::source::{Context, SourceError};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

pub(super) const FILES: [&str; 2] = [":(glob)**/.sops.yaml", ":(glob)**/.sops.yml"];
/// How a rule names keys, and a group of keys does.
const FIELDS: [(&str, &str); 7] = [
    ("age", "age"),
    ("pgp", "pgp"),
    ("kms", "kms"),
    ("gcp_kms", "gcp_kms"),
    ("azure_keyvault", "azure_keyvault"),
    ("hc_vault_transit_uri", "hc_vault"),
    ("hc_vault", "hc_vault"),
];

/// Of `files`, as git names them (`TREE:PATH`). Nothing, where there are none.
pub(super) fn facts(
    context: &Context,
    git: &Program,
    files: &[String],
) -> Result<BTreeMap<String, String>, SourceError> {
    let (mut needed, mut unread) = (BTreeSet::new(), Vec::new());
    for file in files {
        let text = git.ask(context, "read what SOPS is told", &["show", file])?;
        match yaml::read(&text) {
            Ok(document) => needed.extend(rules(&document)),
            Err(_) => unread.push(file.split_once(':').map_or(file.as_str(), |(_, path)| path)),
        }
    }
    let mut facts = BTreeMap::new();
    if !needed.is_empty() {
        facts.insert(SOPS.to_owned(), sops_fact(&needed));
    }
    if !unread.is_empty() {
        facts.insert(SOPS_UNREAD.to_owned(), unread.join(", "));
    }
    Ok(facts)
}

/// Sets of keys, of each of which one is needed.
fn rules(document: &Value) -> Vec<Vec<String>> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let again = list(&document["destination_rules"]).into_iter().map(|rule| rule["recreation_rule"].clone());
    let rules = list(&document["creation_rules"]).into_iter().chain(again);
    let sets = rules.flat_map(|rule| {
        let groups = list(&rule["key_groups"]);
        if groups.is_empty() { vec![keys(&rule)] } else { groups.iter().map(keys).collect() }
    });
    sets.filter(|set| !set.is_empty()).collect()
}

fn keys(group: &Value) -> Vec<String> {
    let named = FIELDS.iter().flat_map(|(field, kind)| {
        let keys = texts(&group[*field]);
        keys.into_iter().map(move |key| format!("{kind} {key}"))
    });
    let merged = group["merge"].as_array().into_iter().flatten().flat_map(keys);
    let all: BTreeSet<_> = named.chain(merged).collect();
    all.into_iter().collect()
}

fn texts(value: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match value {
        Value::String(list) => {
            list.split(',').map(str::trim).filter(|key| !key.is_empty()).map(str::to_owned).collect()
        }
        Value::Array(list) => list.iter().flat_map(texts).collect(),
        Value::Object(key) => {
            let vault = text(&value["vaultUrl"]).zip(text(&value["key"]));
            let azure = vault.map(|(vault, key)| format!("{vault}/keys/{key}"));
            let plain = ["arn", "resource_id"].iter().find_map(|name| key.get(*name).and_then(text));
            plain.or(azure).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_name_keys_in_every_form() {
        let document = yaml::read(
            "creation_rules:\n\
             - {path_regex: a, age: 'age1b, age1a', pgp: FBC7}\n\
             - path_regex: b\n  \
               key_groups:\n  \
               - {age: [age1c], kms: [{arn: 'arn:aws:kms:x', role: r}], merge: [{pgp: [ABCD]}]}\n  \
               - {azure_keyvault: [{vaultUrl: 'https://v', key: k, version: '1'}], gcp_kms: [{resource_id: p/k}]}\n\
             - {path_regex: c, unencrypted_suffix: x}\n\
             destination_rules:\n\
             - {s3_bucket: s, recreation_rule: {hc_vault_transit_uri: 'https://vault:8200/v1/sops/keys/a'}}\n",
        );
        let sets: Vec<_> = rules(&document.unwrap()).iter().map(|set| set.join(", ")).collect();
        assert_eq!(
            sets,
            [
                "age age1a, age age1b, pgp FBC7",
                "age age1c, kms arn:aws:kms:x, pgp ABCD",
                "azure_keyvault https://v/keys/k, gcp_kms p/k",
                "hc_vault https://vault:8200/v1/sops/keys/a",
            ]
        );
        assert!(rules(&Value::Null).is_empty());
    }
}
