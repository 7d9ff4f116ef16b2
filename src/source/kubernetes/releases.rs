//! Helm's releases as files that `helm` and `kubectl` take, in a tar archive: for each `NAMESPACE/RELEASE/`
//!
//! - `records/`, the objects of all revisions: `kubectl apply -f` makes them anew, and `helm list`, `history` and `rollback`
//!   know the release again;
//! - of the revision that was deployed (of none, the newest): `chart/`, which `helm upgrade --install` takes with
//!   `values.yaml`; and `manifest.yaml` and `hooks.yaml`, the objects that this made.
//!
//! Helm keeps no charts that a chart depends on: `helm dependency build` fetches those that `Chart.yaml` names.

use super::helm::{at, unpack};
use super::index::object;
use super::order::Place;
use super::{normal, yaml};
use crate::entry::Supply;
use crate::source::Native;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Component, Path};
use tar::{Builder, EntryType, Header};

pub struct Releases;

/// As Helm has it.
#[derive(Deserialize)]
struct Release {
    #[serde(default)]
    info: Info,
    chart: Chart,
    /// What people gave.
    config: Option<Value>,
    #[serde(default)]
    manifest: String,
    hooks: Option<Vec<Hook>>,
}

#[derive(Default, Deserialize)]
struct Info {
    #[serde(default)]
    status: String,
}

#[derive(Deserialize)]
struct Hook {
    #[serde(default)]
    manifest: String,
}

#[derive(Deserialize)]
struct Chart {
    metadata: Value,
    lock: Option<Value>,
    templates: Option<Vec<File>>,
    values: Option<Value>,
    /// In base64, as all that Go calls bytes.
    schema: Option<String>,
    files: Option<Vec<File>>,
}

#[derive(Deserialize)]
struct File {
    name: String,
    data: Option<String>,
}

impl Native for Releases {
    fn label(&self) -> &'static str {
        "Helm releases"
    }

    fn write(&self, supply: &dyn Supply, out: &mut dyn Write) -> io::Result<()> {
        // By release: the paths of its records by revision, and the revision whose chart is written.
        let mut found: BTreeMap<String, (BTreeMap<u64, Vec<u8>>, u64)> = BTreeMap::new();
        supply.entries(&mut |entry, body| {
            let Some((release, revision)) = at(&entry.path) else { return Ok(()) };
            let status = read(&entry.path, &object(&entry.path, body)?)?.info.status;
            let (records, deployed) = found.entry(release).or_default();
            if status == "deployed" {
                *deployed = revision.max(*deployed);
            }
            records.insert(revision, entry.path.clone());
            Ok(())
        })?;
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the snapshot holds no releases of Helm"));
        }
        let mut archive = Builder::new(out);
        supply.entries(&mut |entry, body| {
            let Some((name, revision)) = at(&entry.path) else { return Ok(()) };
            let Some((records, deployed)) = found.get(&name) else { return Ok(()) };
            let newest = records.keys().last().copied();
            let mut object = object(&entry.path, body)?;
            if Some(revision) == Some(*deployed).filter(|deployed| *deployed > 0).or(newest) {
                files(&mut archive, &name, &read(&entry.path, &object)?)?;
            }
            let Some(place) = Place::parse(&entry.path) else { return Ok(()) };
            normal::strip(&place.word, &mut object);
            add(&mut archive, &format!("{name}/records/{}.yaml", place.name), written(&object)?.as_bytes())
        })?;
        archive.into_inner()?.flush()
    }
}

fn read(path: &[u8], object: &Value) -> io::Result<Release> {
    unpack(object).map_err(|why| bad(&format!("{}: {why}", String::from_utf8_lossy(path))))
}

fn bad(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}

fn written(value: &Value) -> io::Result<String> {
    yaml::write(value).map_err(|why| bad(&why))
}

fn files(archive: &mut Builder<&mut dyn Write>, name: &str, release: &Release) -> io::Result<()> {
    let Release { chart, config, manifest, hooks, .. } = release;
    let mut add = |path: &str, bytes: &[u8]| add(archive, &format!("{name}/{path}"), bytes);
    let empty = Value::Object(serde_json::Map::new());
    let map = |value: &Option<Value>| written(value.as_ref().filter(|value| value.is_object()).unwrap_or(&empty));
    add("values.yaml", map(config)?.as_bytes())?;
    add("manifest.yaml", manifest.as_bytes())?;
    let hooks: String = hooks.iter().flatten().map(|hook| format!("---\n{}\n", hook.manifest.trim_end())).collect();
    if !hooks.is_empty() {
        add("hooks.yaml", hooks.as_bytes())?;
    }
    add("chart/Chart.yaml", written(&chart.metadata)?.as_bytes())?;
    add("chart/values.yaml", map(&chart.values)?.as_bytes())?;
    if let Some(lock) = chart.lock.as_ref().filter(|lock| lock.is_object()) {
        add("chart/Chart.lock", written(lock)?.as_bytes())?;
    }
    let bytes = |text: &str| STANDARD.decode(text).map_err(|_| bad("a file of the chart is not base64"));
    if let Some(schema) = chart.schema.as_deref().filter(|schema| !schema.is_empty()) {
        add("chart/values.schema.json", &bytes(schema)?)?;
    }
    for file in chart.templates.iter().chain(&chart.files).flatten() {
        // It comes from a chart that anybody may have made.
        let inside = Path::new(&file.name).components().all(|part| matches!(part, Component::Normal(_)));
        if !inside || file.name.is_empty() {
            return Err(bad(&format!("{name}: the chart has a file {:?}, which is outside of it", file.name)));
        }
        add(&format!("chart/{}", file.name), &bytes(file.data.as_deref().unwrap_or_default())?)?;
    }
    Ok(())
}

fn add(archive: &mut Builder<&mut dyn Write>, path: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o600);
    header.set_size(bytes.len() as u64);
    archive.append_data(&mut header, path, bytes)
}
