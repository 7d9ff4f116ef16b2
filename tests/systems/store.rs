//! Every store against the conformance suite, and what only real servers and file systems show.

use crate::support;
use crate::support::Bucket;
use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
use bytes::Bytes;
use jiff::Timestamp;
use lifeboat::store::conformance::{self, Outcome, Report, Rival};
use lifeboat::store::s3::{Credentials, Encryption, LockMode, Settings};
use lifeboat::store::{
    Fault, Faults, Faulty, Limited, Local, Memory, PutOptions, Rates, ReadOnly, RetryPolicy, Retrying, S3, Store,
    StoreErrorKind, list_all,
};
use std::fs;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

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

/// A file system with room for `kib`, unmounted when dropped.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(kib: u32) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let size = format!("size={kib}k");
        let mounted = support::command("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()).status();
        assert!(
            mounted.is_ok_and(|status| status.success()),
            "this test mounts a small file system and needs the right to"
        );
        Self(dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = support::command("umount").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_shows_nothing_and_frees_what_was_begun() {
    let disk = Small::mount(1024);
    let store = Local::open(disk.0.path()).unwrap();
    let body = Bytes::from(vec![7; 700 << 10]);
    store.put("a", body.clone(), OPTIONS).await.unwrap();
    assert_eq!(store.put("b", body.clone(), OPTIONS).await.unwrap_err().kind, StoreErrorKind::Full);

    let mut upload = store.upload("c", OPTIONS).await.unwrap();
    let mut failed = None;
    for piece in [body.slice(..100), body.clone()] {
        failed = upload.write(piece).await.err();
    }
    assert_eq!(failed.unwrap().kind, StoreErrorKind::Full);
    assert!(upload.write(Bytes::from_static(b"x")).await.is_err(), "a gap must not be papered over");
    assert!(upload.finish().await.is_err());

    assert_eq!(keys(&store, "").await, ["a"]);
    store.put("d", body.slice(..200 << 10), OPTIONS).await.expect("the room of what failed is free again");
    assert_eq!(store.get("a").await.unwrap(), body);
}

#[tokio::test]
async fn a_thief_s_deletes_and_overwrites_change_nothing_in_a_locked_bucket() {
    let server = support::minio();
    let settings = support::bucket(&server, "locked", Bucket::Locked).await;
    let (agent, thief) = (open(settings.clone()).await, support::client(&server));
    let until = now() + jiff::SignedDuration::from_hours(1);
    let body = |n: usize| Bytes::from(format!("the true content of {n}"));
    let all: Vec<String> = (0..5).map(|n| format!("db/snapshots/{n}")).collect();
    for (n, key) in all.iter().enumerate() {
        agent.put(key, body(n), PutOptions { retain_until: Some(until) }).await.unwrap();
    }
    let before = list_all(&agent, "").await.unwrap();
    let full = |key: &str| format!("some/prefix/{key}");
    let forge = |key: String| thief.put_object().bucket("locked").key(key).body(Bytes::from_static(b"forged").into());
    for key in &all[1..] {
        for _ in 0..7 {
            forge(full(key)).send().await.unwrap();
        }
    }
    for key in &all[..4] {
        thief.delete_object().bucket("locked").key(full(key)).send().await.unwrap();
    }
    forge(full(&all[2])).send().await.unwrap();
    thief.delete_object().bucket("locked").key(full("gone/altogether")).send().await.unwrap();
    let first = thief.list_object_versions().bucket("locked").prefix(full(&all[0])).send().await.unwrap();
    let version = first.versions()[0].version_id().unwrap();
    let erased = thief.delete_object().bucket("locked").key(full(&all[0])).version_id(version).send().await;
    assert!(erased.is_err(), "the lock holds");

    // The agent that wrote it, and one that knows nothing.
    for store in [&agent, &open(settings).await] {
        for (n, key) in all.iter().enumerate() {
            assert_eq!(store.get(key).await.unwrap(), body(n));
            assert_eq!(store.get_range(key, 4, 4).await.unwrap(), "true");
            assert_eq!(store.head(key).await.unwrap(), before[n]);
            assert_eq!(store.delete(key).await.unwrap_err().kind, StoreErrorKind::Locked);
            let again = store.put(key, Bytes::from_static(b"again"), OPTIONS).await;
            assert_eq!(again.unwrap_err().kind, StoreErrorKind::AlreadyExists);
            assert_eq!(store.get(key).await.unwrap(), body(n));
        }
        assert_eq!(list_all(store, "").await.unwrap(), before);
        for limit in 1..4 {
            let mut paged = Vec::new();
            while paged.len() < 6 {
                let after = paged.last().map(|o: &lifeboat::store::ObjectMeta| o.key.clone());
                let page = store.list("db/", after.as_deref(), limit).await.unwrap();
                let last = page.len() < limit;
                paged.extend(page);
                if last {
                    break;
                }
            }
            assert_eq!(paged, before, "pages of {limit}");
        }
        assert_eq!(store.list_roots().await.unwrap(), ["db"]);
    }
}

#[tokio::test]
async fn suspending_versioning_hides_nothing_that_was_there() {
    let server = support::minio();
    let settings = support::bucket(&server, "versioned", Bucket::Versioned).await;
    let (agent, thief) = (open(settings.clone()).await, support::client(&server));
    for key in ["overwritten", "hidden"] {
        agent.put(key, Bytes::from_static(b"true"), OPTIONS).await.unwrap();
    }
    let before = list_all(&agent, "").await.unwrap();
    let off = VersioningConfiguration::builder().status(BucketVersioningStatus::Suspended).build();
    thief.put_bucket_versioning().bucket("versioned").versioning_configuration(off).send().await.unwrap();
    agent.overwrite("overwritten", Bytes::from_static(b"forged")).await.unwrap();
    agent.hide("hidden").await.unwrap();

    let store = open(settings).await;
    assert_eq!(list_all(&store, "").await.unwrap(), before);
    for key in ["overwritten", "hidden"] {
        assert_eq!(store.get(key).await.unwrap(), "true");
    }
    store.put("later", Bytes::from_static(b"x"), OPTIONS).await.unwrap();
    assert_eq!(store.get("later").await.unwrap(), "x");
    store.delete("later").await.unwrap();
    assert_eq!(store.get("later").await.unwrap_err().kind, StoreErrorKind::NotFound);
}

#[tokio::test]
async fn an_upload_given_up_leaves_no_parts_in_the_bucket() {
    let server = support::minio();
    let settings = Settings { part_size: 5 << 20, ..support::bucket(&server, "plain", Bucket::Plain).await };
    let (store, client) = (open(settings).await, support::client(&server));
    // MinIO lists the uploads of a whole name only.
    let open_parts = async |key: &str| {
        let request = client.list_multipart_uploads().bucket("plain").prefix(format!("some/prefix/{key}"));
        request.send().await.unwrap().uploads().len()
    };
    let begin = async |key: &str| {
        let mut upload = store.upload(key, OPTIONS).await.unwrap();
        for _ in 0..12 {
            upload.write(Bytes::from(vec![1; 1 << 20])).await.unwrap();
        }
        upload
    };
    let upload = begin("aborted").await;
    assert_eq!(open_parts("aborted").await, 1);
    upload.abort().await;
    assert_eq!(open_parts("aborted").await, 0);

    drop(begin("dropped").await);
    let mut left = open_parts("dropped").await;
    for _ in 0..200 {
        if left == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        left = open_parts("dropped").await;
    }
    assert_eq!(left, 0);

    begin("taken").await.finish().await.unwrap();
    let late = begin("taken").await.finish().await.unwrap_err();
    assert_eq!(late.kind, StoreErrorKind::AlreadyExists);
    assert_eq!(store.head("taken").await.unwrap().size, 12 << 20);
}

#[tokio::test]
async fn a_bucket_that_cannot_be_used_is_explained() {
    let server = support::minio();
    let good = support::bucket(&server, "plain", Bucket::Plain).await;
    let refused = async |settings: Settings| {
        let error = S3::open(settings).await.unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(!text.contains(support::SECRET_KEY) && !text.contains("wrong-secret"), "{text}");
        error
    };
    let missing = refused(Settings { bucket: "missing".into(), ..good.clone() }).await;
    assert_eq!(missing.kind, StoreErrorKind::NotFound);
    let lock = Some(LockMode::Compliance);
    assert_eq!(refused(Settings { lock, ..good.clone() }).await.kind, StoreErrorKind::Other);
    let credentials = Credentials::Static {
        access_key: support::ACCESS_KEY.into(),
        secret_key: "wrong-secret".into(),
        session_token: None,
    };
    assert_eq!(refused(Settings { credentials, ..good.clone() }).await.kind, StoreErrorKind::Denied);
    drop(server);
    assert_eq!(refused(good.clone()).await.kind, StoreErrorKind::Unavailable);
    assert!(!format!("{good:?}").contains(support::SECRET_KEY));
}

#[tokio::test]
async fn etcd_starts() {
    let server = support::etcd();
    let mut client = etcd_client::Client::connect([server.url()], None).await.unwrap();
    client.put("a", "b", None).await.unwrap();
}

#[tokio::test]
async fn answers_lost_on_the_wire_are_neither_conflicts_nor_failures() {
    let server = support::minio();
    for (name, kind) in [("plain", Bucket::Plain), ("versioned", Bucket::Versioned)] {
        let settings = support::bucket(&server, name, kind).await;
        let wire = support::Wire::to(&server).await;
        let endpoint = Some(format!("http://127.0.0.1:{}", wire.port));
        let store = open(Settings { endpoint, part_size: 5 << 20, ..settings }).await;
        let policy = RetryPolicy { base: Duration::from_millis(10), ..RetryPolicy::default() };
        let store = Retrying::new(Arc::new(store), policy);

        wire.lose_answers(2);
        store.put("put", Bytes::from_static(b"mine"), OPTIONS).await.unwrap();
        wire.lose_answers(1);
        assert_eq!(store.get("put").await.unwrap(), "mine");
        wire.lose_answers(1);
        assert_eq!(keys(&store, "").await, ["put"]);

        let body = Bytes::from(vec![3; 11 << 20]);
        let mut upload = store.upload("upload", OPTIONS).await.unwrap();
        wire.lose_answers(3);
        upload.write(body.clone()).await.unwrap();
        wire.lose_answers(1);
        upload.finish().await.unwrap();
        assert_eq!(store.get("upload").await.unwrap(), body);

        let mut small = store.upload("small", OPTIONS).await.unwrap();
        small.write(body.slice(..100)).await.unwrap();
        wire.lose_answers(1);
        small.finish().await.unwrap();

        wire.lose_answers(1);
        store.delete("small").await.unwrap();
        assert_eq!(wire.still_to_lose(), 0);
        assert_eq!(keys(&store, "").await, ["put", "upload"]);
    }
}

#[tokio::test]
async fn the_server_is_told_to_encrypt() {
    let server = support::minio();
    let settings = support::bucket(&server, "plain", Bucket::Plain).await;
    let client = support::client(&server);
    let kms = Encryption::Kms { key_id: Some("tests".into()) };
    for (encryption, name, answer) in [(Encryption::Aes256, "s3", "AES256"), (kms, "kms", "aws:kms")] {
        let store = open(Settings { encryption, ..settings.clone() }).await;
        store.put(&format!("{name}/put"), Bytes::from_static(b"x"), OPTIONS).await.unwrap();
        let mut upload = store.upload(&format!("{name}/upload"), OPTIONS).await.unwrap();
        upload.write(Bytes::from(vec![0; 9 << 20])).await.unwrap();
        upload.finish().await.unwrap();
        for object in ["put", "upload"] {
            let key = format!("some/prefix/{name}/{object}");
            let head = client.head_object().bucket("plain").key(key).send().await.unwrap();
            assert_eq!(head.server_side_encryption().unwrap().as_str(), answer);
        }
    }
}
