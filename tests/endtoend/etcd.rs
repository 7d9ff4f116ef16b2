//! A real etcd that is being written to, backed up into every kind of store and started again by its own tools.

use crate::support::world::{World, made};
use crate::support::{self, Bucket, Server, bucket, command, etcd_on, minio, tool, versitygw};
use etcd_client::{Client, GetOptions};
use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const KEYS: u64 = 3000;
const PAGE: usize = 4096;

async fn connect(server: &Server) -> Client {
    Client::connect([server.url()], None).await.unwrap()
}

async fn put(client: &mut Client, key: &str, generation: u64) -> u64 {
    let value = format!("{key} in generation {generation} {}", "x".repeat(500));
    let answer = client.put(key, value, None).await.unwrap();
    answer.header().unwrap().revision().cast_unsigned()
}

/// Keys with a common beginning and the generation in their values.
async fn read(server: &Server, prefix: &str) -> HashMap<String, String> {
    // The longer the test takes, the more the traffic has written.
    let mut keys = connect(server).await.kv_client().max_decoding_message_size(256 << 20);
    let answer = keys.get(prefix, Some(GetOptions::new().with_prefix())).await.unwrap();
    let pairs = answer.kvs().iter().map(|kv| (kv.key_str().unwrap().to_owned(), kv.value_str().unwrap().to_owned()));
    pairs.map(|(key, value)| (key, value.trim_end_matches('x').trim_end().to_owned())).collect()
}

/// Writes one key after another until told to stop, and counts those that etcd acknowledged.
struct Traffic {
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Traffic {
    async fn on(server: &Server) -> Self {
        let mut client = connect(server).await;
        let (acknowledged, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, ended) = (acknowledged.clone(), stop.clone());
        let task = tokio::spawn(async move {
            for number in 0..200_000 {
                if ended.load(Ordering::Acquire) {
                    return;
                }
                put(&mut client, &format!("live/{number:06}"), 0).await;
                counter.store(number + 1, Ordering::Release);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        Self { acknowledged, stop, task }
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Release);
        self.task.await.unwrap();
    }
}

/// Pages of `new` that are not in `old` at the same place.
fn changed_pages(old: &[u8], new: &[u8]) -> usize {
    let page = |number: usize| old.get(number * PAGE..(number + 1) * PAGE);
    new.chunks_exact(PAGE).enumerate().filter(|(number, bytes)| page(*number) != Some(bytes)).count()
}

fn etcdutl(world: &World, arguments: &[&str]) -> Vec<u8> {
    let output = command(tool("etcdutl")).args(arguments).current_dir(world.home.path()).output().unwrap();
    assert!(output.status.success(), "etcdutl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn backup_of(url: &str) -> [&str; 8] {
    ["--writer-key", "writer.key", "backup", "--etcd", url, "--name", "etcd", "--json"]
}

/// Three snapshots under load; each is exported, examined and brought to life.
async fn round_trip(server: &Server, traffic: &Traffic, generation: u64, world: &World) {
    let mut client = connect(server).await;
    let url = server.url();
    let mut exported: Vec<Vec<u8>> = Vec::new();
    for round in 0..3 {
        let mut revision = 0;
        for key in 0..20 {
            revision = put(&mut client, &format!("base/{:05}", key * 150 + round), generation + round).await;
        }
        let acknowledged = traffic.acknowledged();
        let expected = read(server, "base/").await;
        assert_eq!(expected.len() as u64, KEYS);
        let made = made(&world.run(&backup_of(&url)).expect(0));
        let reference = format!("etcd@{}", made.number);
        let (file, data) = (format!("{}.db", made.number), format!("{}.data", made.number));
        world.as_owner(&["export", &reference, "-o", &file]).expect(0);

        let status: serde_json::Value =
            serde_json::from_slice(&etcdutl(world, &["snapshot", "status", &file, "-w", "json"])).unwrap();
        let shown = world.as_writer(&["show", &reference, "--json"]).expect(0).json();
        let recorded = shown["facts"]["position"].as_u64().unwrap();
        assert!(recorded >= revision, "{recorded} recorded, {revision} acknowledged before");
        assert!(status["revision"].as_u64().unwrap() >= recorded, "{status}, {recorded} recorded");

        etcdutl(world, &["snapshot", "restore", &file, "--data-dir", &data]);
        let restored = etcd_on(&world.path(&data));
        assert_eq!(read(&restored, "base/").await, expected);
        let live = read(&restored, "live/").await;
        let lost: Vec<_> = (0..acknowledged).filter(|n| !live.contains_key(&format!("live/{n:06}"))).collect();
        assert!(lost.is_empty(), "{} acknowledged keys are lost: {lost:?}", lost.len());

        let database = fs::read(world.path(&file)).unwrap();
        if let Some(previous) = exported.last() {
            let changed = (changed_pages(previous, &database) * PAGE) as u64;
            let limit = changed + changed / 2 + (64 << 10);
            assert!(made.new_bytes <= limit, "{} new bytes for {changed} in changed pages", made.new_bytes);
            assert!(made.stored_bytes <= limit, "{} bytes stored for {changed} in changed pages", made.stored_bytes);
            assert!(made.stored_bytes < database.len() as u64 / 4, "{} bytes stored", made.stored_bytes);
        }
        exported.push(database);
    }
    // The older ones are still what they were.
    for (number, database) in (1..).zip(&exported) {
        world.as_owner(&["export", &format!("etcd@{number}"), "-o", "again.db"]).expect(0);
        assert!(fs::read(world.path("again.db")).unwrap() == *database, "snapshot {number}");
        fs::remove_file(world.path("again.db")).unwrap();
    }
    world.assert_sound();
}

async fn fill(server: &Server) {
    let mut clients = Vec::new();
    for part in 0..8 {
        let mut client = connect(server).await;
        clients.push(tokio::spawn(async move {
            for key in (0..KEYS).filter(|key| key % 8 == part) {
                put(&mut client, &format!("base/{key:05}"), 0).await;
            }
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_under_load_comes_back_from_every_kind_of_store() {
    let server = support::etcd();
    fill(&server).await;
    let traffic = Traffic::on(&server).await;
    {
        let minio = minio();
        let locked = bucket(&minio, "platform", Bucket::Locked).await;
        round_trip(&server, &traffic, 10, &World::bucket(&locked, 2)).await;
    }
    {
        let versitygw = versitygw(false);
        let plain = bucket(&versitygw, "platform", Bucket::Plain).await;
        round_trip(&server, &traffic, 20, &World::bucket(&plain, 0)).await;
    }
    let world = World::local();
    round_trip(&server, &traffic, 30, &world).await;
    traffic.end().await;
    drop(server);

    // What was restored is another cluster, further back: it must not become the latest by itself.
    let restored = etcd_on(&world.path("1.data"));
    let suspicious = world.run(&backup_of(&restored.url())).expect(3).json();
    let report = &suspicious["backups"][0];
    assert_eq!(report["state"], "quarantined", "{report}");
    assert!(report["reasons"][0].as_str().unwrap().contains("it is another system"), "{report}");
    world.as_owner(&["export", "etcd@latest", "-o", "latest.db"]).expect(0);
    assert!(fs::read(world.path("latest.db")).unwrap() == fs::read(world.path("3.db")).unwrap());
    // Unless a person says that this is the cluster now.
    let url = restored.url();
    let accepting = [&backup_of(&url)[..], &["--accept", "etcd@4"]].concat();
    let accepted = world.run(&accepting).expect(0);
    assert_eq!(made(&accepted).number, 5);
    let facts = accepted.json()["backups"][0]["facts"].clone();
    assert!(facts["details"]["accepted"].as_str().unwrap().contains("it is another system"), "{facts}");
    world.run(&accepting).expect(2).says("snapshot 5 came after it");
    assert_eq!(made(&world.run(&backup_of(&url)).expect(0)).number, 6);
    world.as_owner(&["export", "etcd@latest", "-o", "new.db"]).expect(0);
    etcdutl(&world, &["snapshot", "restore", "new.db", "--data-dir", "new.data"]);
    drop(restored);
    let again = etcd_on(&world.path("new.data"));
    assert_eq!(read(&again, "base/").await.len() as u64, KEYS);
    world.assert_sound();
}
