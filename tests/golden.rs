//! Repositories that earlier versions wrote can still be read: `tests/golden/format-<n>`, made by `tests/golden/make.rs`.
#![allow(clippy::unwrap_used, reason = "a test that meets an error is to fail")]

#[path = "golden/listing.rs"]
mod listing;

use lifeboat::entry::Kind;
use lifeboat::id::{Sequence, SourceName};
use lifeboat::repo::{Access, Depth, Identity, KeeperKey, Reader, RepoError, Repository, Selector, State, WriterKey};
use lifeboat::restore::Selection;
use lifeboat::restore::snapshot::{Progress, restore};
use lifeboat::restore::tree::{Options, Tree};
use lifeboat::store::{Local, ReadOnly};
use serde_json::Value;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn place() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/format-1")
}

fn text(name: &str) -> String {
    std::fs::read_to_string(place().join(name)).unwrap()
}

fn contents() -> Value {
    serde_json::from_str(&text("contents.json")).unwrap()
}

async fn open() -> Repository {
    let store = Local::open(place().join("repository")).unwrap();
    Repository::open(Arc::new(ReadOnly::new(Arc::new(store)))).await.unwrap()
}

fn source(snapshot: &Value) -> SourceName {
    snapshot["source"].as_str().unwrap().parse().unwrap()
}

/// Reads a snapshot and says what it holds as the listing does.
fn read(reader: &Reader, items: Vec<lifeboat::repo::Item>) -> Vec<Value> {
    let line = |item: lifeboat::repo::Item| {
        if item.entry.kind != Kind::File {
            return listing::line(&item.entry, None);
        }
        let mut content = vec![0; item.entry.size as usize];
        for part in &reader.parts(&item).unwrap() {
            let put = &mut |at: u64, bytes: &[u8]| {
                content[at as usize..][..bytes.len()].copy_from_slice(bytes);
                Ok(())
            };
            reader.read(&item, part, put).unwrap();
        }
        listing::line(&item.entry, Some(&content))
    };
    items.into_iter().map(line).collect()
}

async fn every_snapshot_reads_as_listed(identity: &str) {
    let (repository, identity) = (open().await, Identity::from_text(&text(identity)).unwrap());
    let contents = contents();
    assert_eq!(repository.root().id.to_string(), contents["id"]);
    let listed = contents["snapshots"].as_array().unwrap();
    assert!(listed.len() > 8, "{}", listed.len());
    for snapshot in listed {
        let what = format!("{} {}", snapshot["source"], snapshot["number"]);
        let access = Access::Recipient(identity.clone());
        let lineage = Arc::new(repository.lineage(&source(snapshot), access));
        let number = Selector::Number(Sequence(snapshot["number"].as_u64().unwrap()));
        let (found, _) = lineage.find(&number).await.unwrap();
        assert_eq!(serde_json::to_value(found.state()).unwrap(), snapshot["state"], "{what}");
        let reader = Arc::new(Reader::open(lineage, found).await.unwrap());
        let problems = reader.problems().unwrap().len();
        assert_eq!(problems == 0, snapshot["state"] != "incomplete", "{what}");
        let items = reader.items().await.unwrap();
        let listed = snapshot["entries"].as_array().unwrap().clone();
        let read = tokio::task::spawn_blocking({
            let reader = reader.clone();
            move || read(&reader, items)
        });
        assert_eq!(read.await.unwrap(), listed, "{what}");
        tokio::task::spawn_blocking(move || check_restored(&reader, &listed, &what)).await.unwrap();
    }
}

/// Brings a snapshot back to a disk. Owners, devices and attributes depend on who runs the test.
fn check_restored(reader: &Reader, listed: &[Value], what: &str) {
    let target = tempfile::tempdir().unwrap();
    let tree = Tree::create(target.path(), Options::default()).unwrap();
    restore(reader, tree, &Selection::default(), 2, &Progress::default()).unwrap();
    let mut files = 0;
    for line in listed.iter().filter(|line| line["kind"] == "File" || line["kind"] == "Hardlink") {
        let of = if line["link"].is_null() { &line["path"] } else { &line["link"] };
        let expected = listed.iter().find(|line| line["path"] == *of).unwrap();
        let name = line["path"].as_str().unwrap();
        // The one name of the listing that is not written as it is.
        let raw = if name.contains("\\xff") { b"not \xff text" } else { name.as_bytes() };
        let path = target.path().join(OsStr::from_bytes(raw));
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(expected["blake3"], blake3::hash(&bytes).to_string(), "{name} of {what}");
        files += 1;
    }
    assert!(files > 0, "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recovery_identity_reads_everything() {
    every_snapshot_reads_as_listed("identity").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recipient_who_came_later_reads_everything() {
    every_snapshot_reads_as_listed("drill-identity").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_verifies() {
    let repository = open().await;
    let identity = Identity::from_text(&text("identity")).unwrap();
    let sources = repository.sources().await.unwrap();
    assert_eq!(sources.iter().map(SourceName::as_str).collect::<Vec<_>>(), ["database", "files"]);
    for source in sources {
        let lineage = Arc::new(repository.lineage(&source, Access::Recipient(identity.clone())));
        let verified = lineage.verify(Depth::Data, 1.0, 0).await.unwrap();
        assert_eq!(verified.findings, [], "{source}");
        assert!(verified.snapshots >= 4 && verified.bytes_read > 0, "{verified:?}");
        let pruned = lineage.find(&Selector::Number(Sequence(2))).await;
        assert!(matches!(pruned, Err(RepoError::NoSnapshot { .. })), "{pruned:?}");
        let (latest, stepped_over) = lineage.find(&Selector::Latest).await.unwrap();
        assert_eq!((latest.state(), stepped_over.len()), (State::Good, 0));
    }
}

#[tokio::test]
async fn the_keys_are_those_of_the_repository() {
    let repository = open().await;
    let (writer, keeper) = (text("writer-key"), text("keeper-key"));
    let keys = repository.root().unlock(&Identity::from_text(&text("identity")).unwrap()).unwrap();
    assert_eq!((keys.writer.to_text(), keys.keeper.to_text()), (writer.trim().into(), keeper.trim().into()));
    let generation = repository.root().accept_writer(&WriterKey::from_text(&writer).unwrap()).unwrap();
    assert_eq!(generation, 2, "it was rotated once");
    repository.root().accept_keeper(&KeeperKey::from_text(&keeper).unwrap()).unwrap();
    let drill = Identity::from_text(&text("drill-identity")).unwrap();
    assert!(repository.root().unlock(&drill).is_err());
}
