//! `store check` against real servers.

use crate::support::world::World;
use crate::support::{Bucket, Server, bucket, minio, versitygw};
use lifeboat::store::s3::Credentials;

async fn check(server: &Server, kind: Bucket, name: &str) {
    let world = World::in_bucket(&bucket(server, name, kind).await, 1);
    let report = world.run(&["store", "check", "--large", "6", "--json"]).expect(0).json();
    assert_eq!(report["lock"], kind == Bucket::Locked, "{report}");
    assert_eq!(report["versions"], kind != Bucket::Plain, "{report}");
    assert!(report["checks"].as_array().unwrap().len() > 10, "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_check_passes_real_servers_and_says_what_is_wrong() {
    let minio = minio();
    for (kind, name) in [(Bucket::Plain, "plain"), (Bucket::Versioned, "versioned"), (Bucket::Locked, "locked")] {
        check(&minio, kind, name).await;
    }
    let versitygw = versitygw(true);
    for (kind, name) in [(Bucket::Plain, "plain"), (Bucket::Locked, "locked")] {
        check(&versitygw, kind, name).await;
    }

    let mut settings = bucket(&minio, "refused", Bucket::Plain).await;
    settings.credentials =
        Credentials::Static { access_key: "nobody-here".into(), secret_key: "nothing".into(), session_token: None };
    let refused = World::in_bucket(&settings, 1).run(&["store", "check"]).expect(1);
    refused.says("s3://refused").says("access denied").says("credentials");
    settings = bucket(&minio, "another", Bucket::Plain).await;
    settings.bucket = "no-such-bucket".into();
    let missing = World::in_bucket(&settings, 1).run(&["store", "check"]).expect(1);
    missing.says("s3://no-such-bucket").says("does not exist");
    // A bucket that cannot lock, where locks are wanted.
    settings.bucket = "another".into();
    settings.lock = Some(lifeboat::store::s3::LockMode::Governance);
    World::in_bucket(&settings, 1).run(&["store", "check"]).expect(1).says("Object Lock is wanted and not enabled");
    let path = tempfile::tempdir().unwrap();
    let nowhere = World::without_repository();
    nowhere.document("repository.yaml", &World::directory(&path.path().join("not-mounted")));
    nowhere.run(&["store", "check"]).expect(1).says("does not exist");
}
