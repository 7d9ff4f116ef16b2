//! Every store against the conformance suite, and what only real servers and file systems show.

mod support;

use bytes::Bytes;
use jiff::Timestamp;
use lifeboat::store::conformance::{self, Outcome, Report, Rival};
use lifeboat::store::s3::Settings;
use lifeboat::store::{
    Fault, Faults, Faulty, Limited, Local, Memory, PutOptions, Rates, ReadOnly, RetryPolicy, Retrying, S3, Store,
    StoreErrorKind, list_all,
};
use std::fs;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use support::Bucket;

const OPTIONS: PutOptions = PutOptions { retain_until: None };

async fn keys(store: &dyn Store, prefix: &str) -> Vec<String> {
    list_all(store, prefix).await.expect("a listing").into_iter().map(|o| o.key).collect()
}

#[expect(clippy::disallowed_methods, reason = "compared with the clocks of servers")]
fn now() -> Timestamp {
    Timestamp::now()
}

/// Everything but what the store cannot do must be right.
async fn conforms(store: &dyn Store, rival: Option<&dyn Rival>, not_supported: &[&str]) -> Report {
    let report = conformance::check(store, conformance::Options { now: now(), large: 17_000_001, rival }).await;
    let shown = serde_json::to_string_pretty(&report).expect("a report");
    assert!(report.passed(), "{shown}");
    let missing: Vec<&str> = report
        .checks
        .iter()
        .filter(|check| matches!(check.outcome, Outcome::NotSupported { .. }))
        .map(|check| check.name)
        .collect();
    assert_eq!(missing, not_supported);
    report
}

const VERSIONS: &str = "the first version is the true one";

#[tokio::test]
async fn memory_conforms() {
    let store = Memory::new();
    store.set_now(now());
    let report = conforms(&store, None, &[VERSIONS, "lock"]).await;
    assert!(report.left.is_empty() && keys(&store, "").await.is_empty());
    let store = Memory::with_lock();
    store.set_now(now());
    let report = conforms(&store, None, &[VERSIONS]).await;
    assert_eq!(report.left.len(), 2);
}

#[tokio::test]
async fn a_directory_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let store = Local::open(dir.path()).unwrap();
    let report = conforms(&store, None, &[VERSIONS, "lock"]).await;
    assert!(report.left.is_empty() && keys(&store, "").await.is_empty());
    assert_eq!(fs::read_dir(dir.path().join(".tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn decorators_forward_everything() {
    let memory = Memory::with_lock();
    memory.set_now(now());
    let fast = NonZeroU64::new(1 << 40);
    let store = Faulty::new(Arc::new(memory), Arc::new(Faults::default()));
    let store = Limited::new(Arc::new(store), Rates { upload: fast, download: fast });
    let store = Retrying::new(Arc::new(store), RetryPolicy::default());
    conforms(&store, None, &[VERSIONS]).await;
}

#[tokio::test]
async fn a_read_only_store_refuses_every_write() {
    let memory = Memory::new();
    memory.put("a", Bytes::from_static(b"x"), OPTIONS).await.unwrap();
    let store = ReadOnly::new(Arc::new(memory));
    assert_eq!(store.put("b", Bytes::new(), OPTIONS).await.unwrap_err().kind, StoreErrorKind::ReadOnly);
    assert_eq!(store.upload("b", OPTIONS).await.err().unwrap().kind, StoreErrorKind::ReadOnly);
    assert_eq!(store.delete("a").await.unwrap_err().kind, StoreErrorKind::ReadOnly);
    assert_eq!(store.retain("a", Timestamp::MAX).await.unwrap_err().kind, StoreErrorKind::ReadOnly);
    assert_eq!(store.get("a").await.unwrap(), "x");
    assert_eq!(keys(&store, "").await, ["a"]);
}

/// The suite must find what it is there to find.
#[tokio::test]
async fn a_store_that_lies_does_not_conform() {
    let faults = Arc::new(Faults::default());
    let store = Faulty::new(Arc::new(Memory::new()), Arc::clone(&faults));
    faults.set(Fault::Only(2));
    let report = conformance::check(&store, conformance::Options { now: now(), large: 1000, rival: None }).await;
    assert!(!report.passed());
    let failed: Vec<&str> = report
        .checks
        .iter()
        .filter(|check| matches!(check.outcome, Outcome::Failed { .. }))
        .map(|check| check.name)
        .collect();
    assert_eq!(failed, ["create only", "clock"]);
}

async fn open(settings: Settings) -> S3 {
    S3::open(settings).await.expect("the bucket opens")
}

#[tokio::test(flavor = "multi_thread")]
async fn minio_conforms() {
    let server = support::minio();
    let plain = open(support::bucket(&server, "plain", Bucket::Plain).await).await;
    conforms(&plain, Some(&plain), &[VERSIONS, "lock"]).await;
    assert!(keys(&plain, "").await.is_empty());

    let versioned = open(support::bucket(&server, "versioned", Bucket::Versioned).await).await;
    conforms(&versioned, Some(&versioned), &["lock"]).await;
    let left = support::client(&server).list_object_versions().bucket("versioned").send().await.unwrap();
    assert!(left.versions().is_empty(), "deleting removes all versions");

    let locked = open(support::bucket(&server, "locked", Bucket::Locked).await).await;
    let report = conforms(&locked, Some(&locked), &[]).await;
    assert_eq!(report.left.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn versitygw_conforms() {
    let server = support::versitygw(false);
    let plain = open(support::bucket(&server, "plain", Bucket::Plain).await).await;
    conforms(&plain, Some(&plain), &[VERSIONS, "lock"]).await;
    drop(server);

    let server = support::versitygw(true);
    let versioned = open(support::bucket(&server, "versioned", Bucket::Versioned).await).await;
    conforms(&versioned, Some(&versioned), &["lock"]).await;
    let locked = open(support::bucket(&server, "locked", Bucket::Locked).await).await;
    conforms(&locked, Some(&locked), &[]).await;
}

#[tokio::test]
async fn a_directory_lists_in_key_order_page_by_page() {
    let dir = tempfile::tempdir().unwrap();
    let store = Local::create(dir.path().join("new/store")).unwrap();
    let mut all: Vec<String> = (0..2500).map(|n| format!("db/packs/{n:04x}")).collect();
    all.extend(["a", "db-a", "db.x", "db/log/1", "db/packs-x", "db0", "z/y/x"].map(str::to_owned));
    for key in &all {
        let path = dir.path().join("new/store").join(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"x").unwrap();
    }
    fs::create_dir_all(dir.path().join("new/store/empty/deeper")).unwrap();
    all.sort();
    assert_eq!(keys(&store, "").await, all);
    let packs: Vec<String> = all.iter().filter(|k| k.starts_with("db/packs/0")).cloned().collect();
    assert_eq!(keys(&store, "db/packs/0").await, packs);
    for step in [1, 7, 333] {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = store.list("db", after.as_deref(), step).await.unwrap();
            found.extend(page.iter().map(|o| o.key.clone()));
            after = found.last().cloned();
            if page.len() < step || found.len() > 50 * step {
                break;
            }
        }
        let expected = all.iter().filter(|k| k.starts_with("db")).take(found.len());
        assert!(found.iter().eq(expected), "step {step}");
        assert!(!found.is_empty());
    }
    assert!(keys(&store, "nothing/here").await.is_empty());
    assert_eq!(store.list_roots().await.unwrap(), ["db", "z"]);
}

#[tokio::test]
async fn a_directory_that_vanished_is_not_an_empty_store() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    assert_eq!(Local::open(&root).unwrap_err().kind, StoreErrorKind::NotFound);
    let store = Local::create(&root).unwrap();
    fs::remove_dir(&root).unwrap();
    assert_eq!(store.list("", None, 10).await.unwrap_err().kind, StoreErrorKind::NotFound);
    assert!(store.list_roots().await.is_err());
}

#[tokio::test]
async fn what_killed_writers_left_is_removed_a_day_later() {
    let dir = tempfile::tempdir().unwrap();
    let killed = Local::create(dir.path()).unwrap();
    let mut upload = killed.upload("db/packs/1", OPTIONS).await.unwrap();
    upload.write(Bytes::from_static(b"half a pack")).await.unwrap();
    std::mem::forget(upload);
    let left = |dir: &std::path::Path| fs::read_dir(dir.join(".tmp")).unwrap().count();
    assert_eq!(left(dir.path()), 1);

    let next = Local::open(dir.path()).unwrap();
    next.put("db/a", Bytes::new(), OPTIONS).await.unwrap();
    assert_eq!(left(dir.path()), 1, "it may still be written");

    let file = fs::read_dir(dir.path().join(".tmp")).unwrap().next().unwrap().unwrap().path();
    #[expect(clippy::disallowed_methods, reason = "compared with the file system's clock")]
    let two_days_ago = SystemTime::now() - Duration::from_hours(48);
    fs::File::options().write(true).open(file).unwrap().set_modified(two_days_ago).unwrap();
    let later = Local::open(dir.path()).unwrap();
    later.put("db/b", Bytes::new(), OPTIONS).await.unwrap();
    assert_eq!(left(dir.path()), 0);
    assert_eq!(keys(&later, "").await, ["db/a", "db/b"]);
}
