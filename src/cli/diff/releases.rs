//! Helm's releases in two snapshots of Kubernetes objects. Their contents are read; what is told names keys and objects,
//! never values.

use crate::cli::fault::Failure;
use crate::repo::{Reader, RepoError};
use crate::restore::Selection;
use crate::restore::supply::Supplied;
use crate::source::kubernetes::helm::{Difference, Release, at};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

/// The newest revision of a release in each of the snapshots. The inner error: why it cannot be read.
pub struct Compared {
    release: String,
    was: Option<Result<Release, String>>,
    is: Option<Result<Release, String>>,
}

/// Releases whose newest revisions differ. `changed` are paths in both snapshots with other contents.
pub async fn compare(
    from: &Arc<Reader>,
    to: &Arc<Reader>,
    changed: &BTreeSet<&[u8]>,
) -> Result<Vec<Compared>, Failure> {
    if [from, to].iter().any(|reader| reader.catalogue().kind != "kubernetes") {
        return Ok(Vec::new());
    }
    let (mut old, mut new) = (newest(from).await?, newest(to).await?);
    let same = |release: &String, path: &Vec<u8>| new.get(release) == Some(path) && !changed.contains(&path[..]);
    let same: Vec<_> = old.iter().filter(|(release, path)| same(release, path)).map(|(name, _)| name.clone()).collect();
    for release in same {
        old.remove(&release);
        new.remove(&release);
    }
    let names: BTreeSet<_> = old.keys().chain(new.keys()).cloned().collect();
    let (mut old, mut new) = (read(from, old).await?, read(to, new).await?);
    Ok(names
        .into_iter()
        .map(|name| Compared { was: old.remove(&name), is: new.remove(&name), release: name })
        .collect())
}

/// Where the highest revision of each release lies.
async fn newest(reader: &Reader) -> Result<BTreeMap<String, Vec<u8>>, RepoError> {
    let mut newest: BTreeMap<String, (u64, Vec<u8>)> = BTreeMap::new();
    reader
        .segments::<RepoError>(|items| {
            for path in items.into_iter().map(|item| item.entry.path) {
                let Some((release, revision)) = at(&path) else { continue };
                if newest.get(&release).is_none_or(|(known, _)| *known < revision) {
                    newest.insert(release, (revision, path));
                }
            }
            Ok(())
        })
        .await?;
    Ok(newest.into_iter().map(|(release, (_, path))| (release, path)).collect())
}

async fn read(
    reader: &Arc<Reader>,
    wanted: BTreeMap<String, Vec<u8>>,
) -> Result<BTreeMap<String, Result<Release, String>>, Failure> {
    if wanted.is_empty() {
        return Ok(BTreeMap::new());
    }
    let reader = reader.clone();
    let work = move || {
        let mut found = BTreeMap::new();
        let supplied = Supplied::new(&reader, Selection::new(wanted.into_values()));
        crate::entry::Supply::entries(&supplied, &mut |entry, body| {
            let mut text = Vec::new();
            body.copy(&mut text)?;
            found.extend(at(&entry.path).map(|(release, _)| (release, Release::read(&text))));
            Ok(())
        })?;
        Ok::<_, io::Error>(found)
    };
    Ok(tokio::task::spawn_blocking(work).await?.map_err(crate::restore::RestoreError::of_export)?)
}

impl Compared {
    fn differences(&self) -> Option<(Difference, Difference)> {
        let (Some(Ok(was)), Some(Ok(is))) = (&self.was, &self.is) else { return None };
        Some((is.values_since(was), is.objects_since(was)))
    }

    pub fn text(&self) -> String {
        let told = |release: &Result<Release, String>| match release {
            Ok(release) => release.to_string(),
            Err(why) => format!("a revision that cannot be read ({why})"),
        };
        let mut text = match (&self.was, &self.is) {
            (Some(was), Some(is)) => format!("release {}: {} -> {}\n", self.release, told(was), told(is)),
            (None, Some(is)) => format!("release {}: new, {}\n", self.release, told(is)),
            (Some(was), None) => format!("release {}: gone, was {}\n", self.release, told(was)),
            (None, None) => String::new(),
        };
        if let Some((values, objects)) = self.differences() {
            for (what, difference) in [("values", values), ("objects", objects)] {
                if !difference.is_empty() {
                    text += &format!("  {what}: {difference}\n");
                }
            }
        }
        text
    }

    pub fn document(&self) -> Value {
        let told = |release: &Option<Result<Release, String>>| match release {
            Some(Ok(release)) => {
                let (chart, version) = release.chart();
                json!({"chart": chart, "version": version, "revision": release.revision, "status": release.status()})
            }
            Some(Err(why)) => json!({"error": why}),
            None => Value::Null,
        };
        let mut document = json!({"release": self.release, "was": told(&self.was), "is": told(&self.is)});
        if let Some((values, objects)) = self.differences() {
            document["values"] = json!(values);
            document["objects"] = json!(objects);
        }
        document
    }
}
