//! Every store against the conformance suite, and what only real servers and file systems show.

use bytes::Bytes;
use lifeboat::store::{Local, PutOptions, Store, StoreErrorKind, list_all};
use std::fs;
use std::time::{Duration, SystemTime};

const OPTIONS: PutOptions = PutOptions { retain_until: None };

async fn keys(store: &dyn Store, prefix: &str) -> Vec<String> {
    list_all(store, prefix).await.unwrap().into_iter().map(|o| o.key).collect()
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
