//! A bucket with Object Lock.

use crate::support;
use crate::world::{World, tool};
use serde_json::Value;

/// Real etcd, real S3 with Object Lock, and an attacker who has the bucket's credentials.
#[test]
fn etcd_comes_back_from_a_locked_bucket_after_everything_was_deleted() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (etcd, minio) = (support::etcd(), support::minio());
    runtime.block_on(support::bucket(&minio, "locked", support::Bucket::Locked));
    let world = World::new();
    for name in ["id", "secret"] {
        let value = if name == "id" { support::ACCESS_KEY } else { support::SECRET_KEY };
        world.document(name, &format!("{value}\n"));
    }
    let documents = LOCKED.replace("ENDPOINT", &minio.url()).replace("ETCD", &etcd.url());
    world.document("all.yaml", &documents);
    let run = |arguments: &[&str]| world.run(&[&["--config", "all.yaml", "-r", "main"], arguments].concat());
    run(&["init", "--kit", "kit.txt"]).expect(0);
    let put = |value: &str| {
        let program = support::tool("etcdctl").display().to_string();
        let put = tool(&program, &["--endpoints", &etcd.url(), "put", "key", value], world.home.path());
        assert!(put.status.success(), "{put:?}");
    };
    put("first");
    run(&["--writer-key", "kit.txt", "backup", "--all"]).expect(0);
    put("second");
    let second = run(&["--writer-key", "kit.txt", "backup", "etcd-main", "--json"]).expect(0).json();
    assert_eq!(second["backups"][0]["facts"]["position"], 3);
    run(&["doctor", "--writer-key", "kit.txt"]).expect(0);

    let deleted = runtime.block_on(async {
        let client = support::client(&minio);
        let listed = client.list_objects_v2().bucket("locked").send().await.unwrap();
        for object in listed.contents() {
            client.delete_object().bucket("locked").key(object.key().unwrap()).send().await.unwrap();
        }
        listed.contents().len()
    });
    assert!(deleted >= 5, "{deleted} objects were there");
    run(&["--identity", "kit.txt", "verify", "--read-data"]).expect(0);
    run(&["--identity", "kit.txt", "export", "etcd-main", "-o", "snapshot.db"]).expect(0);
    let program = support::tool("etcdutl").display().to_string();
    let status = tool(&program, &["snapshot", "status", "snapshot.db", "-w", "json"], world.home.path());
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["revision"], 3);
    let restored = tool(&program, &["snapshot", "restore", "snapshot.db", "--data-dir", "data"], world.home.path());
    assert!(restored.status.success(), "{restored:?}");
}

const LOCKED: &str = "
apiVersion: lifeboat.dev/v1
kind: Repository
metadata: {name: main}
spec:
  url: s3://locked/prefix
  s3:
    endpoint: ENDPOINT
    pathStyle: true
    region: us-east-1
    credentials: {accessKeyId: {file: id}, secretAccessKey: {file: secret}}
    objectLock: {mode: governance, minimumDays: 1}
---
apiVersion: lifeboat.dev/v1
kind: Source
metadata: {name: etcd-main}
spec:
  etcd: {endpoints: ['ETCD']}
  heldElsewhere: [nothing but this etcd is needed]
";
