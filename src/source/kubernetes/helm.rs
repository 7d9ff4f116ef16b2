//! Helm's releases, as its drivers keep them (`helm.sh/helm/v3/pkg/storage/driver`): an object
//! `sh.helm.release.v1.NAME.vREVISION` per revision, a Secret or a ConfigMap, whose key `release` holds the release as JSON,
//! gzipped, in base64 (that of Kubernetes' Secrets around it). Values may be secrets: what is compared is told by the names
//! of keys, as everywhere. Deliberately absent: charts' templates.

use super::yaml;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;

const PREFIX: &str = "sh.helm.release.v1.";
/// Unpacked. Helm's objects are below 1 MiB, packed.
const LARGEST: u64 = 64 << 20;
/// So many differences are named.
const NAMED: usize = 20;

/// A release of one revision.
#[derive(Clone, PartialEq, Deserialize)]
pub struct Release {
    #[serde(rename = "version")]
    pub revision: u64,
    #[serde(default)]
    info: Info,
    #[serde(default)]
    chart: Chart,
    /// What people gave; the chart's own values are not in it.
    #[serde(default)]
    config: Value,
    #[serde(default)]
    manifest: String,
}

#[derive(Clone, Default, PartialEq, Deserialize)]
struct Info {
    #[serde(default)]
    status: String,
}

#[derive(Clone, Default, PartialEq, Deserialize)]
struct Chart {
    #[serde(default)]
    metadata: Option<Metadata>,
    #[serde(default)]
    values: Value,
}

#[derive(Clone, PartialEq, Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    version: String,
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, version) = self.chart();
        write!(f, "{name} {version}, revision {}, {}", self.revision, self.info.status)
    }
}

/// The release that an object's name belongs to, and its revision.
pub fn named(word: &str, name: &str) -> Option<(String, u64)> {
    let rest = name.strip_prefix(PREFIX).filter(|_| matches!(word, "secrets" | "configmaps"))?;
    let (release, revision) = rest.rsplit_once(".v")?;
    Some((release.to_owned(), revision.parse().ok()?))
}

/// `NAMESPACE/RELEASE` and the revision that the path of an entry belongs to.
pub fn at(path: &[u8]) -> Option<(String, u64)> {
    let place = super::order::Place::parse(path)?;
    let (release, revision) = named(&place.word, &place.name)?;
    Some((format!("{}/{release}", place.namespace?), revision))
}

/// What an object holds of a release: JSON of the type that is asked for.
///
/// # Errors
/// Why it holds none. The text does not repeat it.
pub fn unpack<T: serde::de::DeserializeOwned>(object: &Value) -> Result<T, String> {
    let text = object["data"]["release"].as_str().ok_or("it has no key release")?;
    let decode = |text: &[u8]| STANDARD.decode(text).map_err(|_| "it is not base64".to_owned());
    let mut bytes = text.as_bytes().to_vec();
    if object["kind"] == "Secret" {
        bytes = decode(&bytes)?;
    }
    bytes = decode(&bytes)?;
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut unpacked = Vec::new();
        let read = MultiGzDecoder::new(&bytes[..]).take(LARGEST + 1).read_to_end(&mut unpacked);
        match read {
            Ok(length) if length as u64 > LARGEST => return Err("it is too large".into()),
            Ok(_) => bytes = unpacked,
            Err(_) => return Err("it is not gzipped as it should be".into()),
        }
    }
    serde_json::from_slice(&bytes)
        .map_err(|why| format!("it is no release (line {}, column {})", why.line(), why.column()))
}

impl Release {
    /// # Errors
    /// Why it is none. The text does not repeat it.
    pub fn of(object: &Value) -> Result<Self, String> {
        unpack(object)
    }

    /// Of an entry's content.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn read(text: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(text).map_err(|_| "it is not text")?;
        Self::of(&yaml::read(text)?)
    }

    pub fn chart(&self) -> (&str, &str) {
        self.chart.metadata.as_ref().map_or(("?", "?"), |chart| (&chart.name, &chart.version))
    }

    pub fn status(&self) -> &str {
        &self.info.status
    }

    /// The values that differ from `old`'s, the chart's own included.
    #[must_use]
    pub fn values_since(&self, old: &Self) -> Difference {
        Difference::of(&old.values(), &self.values())
    }

    /// The objects that differ from `old`'s.
    #[must_use]
    pub fn objects_since(&self, old: &Self) -> Difference {
        Difference::of(&old.objects(), &self.objects())
    }

    /// By the names of their keys (`image.tag`). A value that people gave counts before the chart's.
    fn values(&self) -> BTreeMap<String, Value> {
        let mut all = BTreeMap::new();
        flatten("", &self.chart.values, &mut all);
        let mut given = BTreeMap::new();
        flatten("", &self.config, &mut given);
        for (key, value) in given {
            // What was a map and is none now, or the other way round.
            let below = format!("{key}.");
            all.retain(|known: &String, _| !known.starts_with(&below) && !key.starts_with(&format!("{known}.")));
            all.insert(key, value);
        }
        all
    }

    fn objects(&self) -> BTreeMap<String, Value> {
        let documents = format!("\n{}", self.manifest);
        let documents = documents.split("\n---").filter_map(|text| yaml::read(text).ok()).filter(Value::is_object);
        let named = documents.map(|object| {
            let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
            let (kind, metadata) = (text(&object["kind"]), &object["metadata"]);
            let namespace = metadata["namespace"].as_str().map(|name| format!("{name}/")).unwrap_or_default();
            (format!("{kind} {namespace}{}", text(&metadata["name"])), object)
        });
        named.collect()
    }
}

fn flatten(at: &str, value: &Value, all: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                flatten(&at, value, all);
            }
        }
        _ if at.is_empty() => {}
        other => _ = all.insert(at.to_owned(), other.clone()),
    }
}

/// What two releases do not have in common, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub removed: Vec<String>,
}

impl Difference {
    fn of(old: &BTreeMap<String, Value>, new: &BTreeMap<String, Value>) -> Self {
        let lacking = |from: &BTreeMap<String, Value>, of: &BTreeMap<String, Value>| {
            of.keys().filter(|key| !from.contains_key(*key)).cloned().collect()
        };
        let changed = new.iter().filter(|(key, value)| old.get(*key).is_some_and(|old| old != *value));
        let changed = changed.map(|(key, _)| key.clone()).collect();
        Self { added: lacking(old, new), changed, removed: lacking(new, old) }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [("added", &self.added), ("changed", &self.changed), ("removed", &self.removed)];
        let told = parts.into_iter().filter(|(_, names)| !names.is_empty()).map(|(what, names)| {
            let named = names[..names.len().min(NAMED)].join(", ");
            let more = names.len().saturating_sub(NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("{what} {named}{more}")
        });
        f.write_str(&told.collect::<Vec<_>>().join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn release(config: &Value, manifest: &str) -> Release {
        let text = json!({
            "version": 2, "info": {"status": "deployed"}, "config": config, "manifest": manifest,
            "chart": {"metadata": {"name": "web", "version": "1.2.3"}, "values": {"image": {"tag": "1", "name": "web"}}},
        });
        let packed = STANDARD.encode(STANDARD.encode(text.to_string()));
        Release::of(&json!({"kind": "Secret", "data": {"release": packed}})).unwrap()
    }

    #[test]
    fn releases_are_compared_by_names() {
        let old = release(&json!({"image": {"tag": "2"}, "old": [1]}), "---\nkind: ConfigMap\nmetadata: {name: a}\n");
        let new = release(
            &json!({"image": {"tag": "3"}, "word": "hunter2"}),
            "# Source: x\nkind: ConfigMap\nmetadata: {name: a}\ndata: {x: y}\n---\nkind: Job\nmetadata: {name: b, namespace: n}\n",
        );
        assert_eq!(new.to_string(), "web 1.2.3, revision 2, deployed");
        assert_eq!(new.values_since(&old).to_string(), "added word; changed image.tag; removed old");
        assert_eq!(new.objects_since(&old).to_string(), "added Job n/b; changed ConfigMap a");
        assert!(new.values_since(&new).is_empty());
        let bare = release(&json!({"image": "x"}), "");
        assert_eq!(bare.values_since(&old).to_string(), "added image; removed image.name, image.tag, old");
    }

    #[test]
    fn names_tell_releases() {
        assert_eq!(at(b"apps/secrets/sh.helm.release.v1.my.app.v12.yaml"), Some(("apps/my.app".into(), 12)));
        assert_eq!(at(b"apps/pods/sh.helm.release.v1.web.v1.yaml"), None);
        assert_eq!(named("secrets", "token"), None);
        for bad in
            [json!({}), json!({"kind": "Secret", "data": {"release": "%"}}), json!({"data": {"release": "e30="}})]
        {
            assert!(Release::of(&bad).is_err(), "{bad}");
        }
    }
}
