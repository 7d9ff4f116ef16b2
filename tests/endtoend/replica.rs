//! A second copy of the repository on other stores: kept up to date, killed, restored from alone, healed both ways.

use crate::endtoend::agent::{documented, limited};
use crate::endtoend::clock;
use crate::support::kubernetes::Server as Cluster;
use crate::support::picture::{Picture, assert_same, picture};
use crate::support::world::{World, kill, noise};
use crate::support::{Bucket, bucket, client, minio, versitygw};
use lifeboat::id::Sequence;
use lifeboat::store::s3::Settings;
use serde_json::Value;
use std::fs;
use std::path::Path;

/// A repository in a directory with `snapshots` snapshots of `docs`, and what they are of.
fn origin(snapshots: u64) -> (World, Vec<Picture>) {
    let world = World::local();
    let mut pictures = Vec::new();
    for number in 0..snapshots {
        world.file("large", noise(number, 3 << 20));
        world.file(&format!("d/{number}"), noise(100 + number, 20_000));
        pictures.push(picture(&world.path("tree")));
        world.backup();
    }
    (world, pictures)
}

fn replicate(world: &World, more: &[&str]) -> Value {
    world.run(&[&["-r", "main", "replicate", "--to", "replica", "--json"], more].concat()).expect(0).json()
}

fn prune(world: &World, repository: &str) {
    world.run(&["-r", repository, "--keeper-key", "keeper.key", "prune"]).expect(0);
}

/// Of the snapshots, newest first.
fn numbers(world: &World, repository: &str) -> Vec<u64> {
    let listed = world.as_writer(&["-r", repository, "snapshots", "docs", "--json"]).expect(0).json();
    listed["snapshots"].as_array().unwrap().iter().map(|s| s["number"].as_u64().unwrap()).collect()
}

fn source(report: &Value) -> &Value {
    &report["sources"][0]
}

/// Restores every snapshot from the replica, where nothing else is left.
fn assert_restores_alone(world: &World, pictures: &[Picture]) {
    fs::rename(world.path("repository"), world.path("gone")).unwrap();
    for (number, expected) in (1..).zip(pictures) {
        let from = ["-r", "replica", "restore", "snapshot", &format!("docs@{number}"), "--to", "restored"];
        world.as_owner(&from).expect(0);
        assert_same(&picture(&world.path("restored")), expected, &format!("snapshot {number}"));
        fs::remove_dir_all(world.path("restored")).unwrap();
    }
    world.as_owner(&["-r", "replica", "verify", "--read-data"]).expect(0);
    fs::rename(world.path("gone"), world.path("repository")).unwrap();
}

fn replica_in(world: &World, settings: &Settings) {
    world.document("replica.yaml", &World::bucket_document("replica", settings, 2));
}

fn replica_in_directory(world: &World) {
    let text = World::directory(&world.path("replica")).replace("name: main", "name: replica");
    world.document("replica.yaml", &text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_in_a_locked_bucket_restores_alone_and_stays_locked() {
    let minio = minio();
    let settings = bucket(&minio, "replica", Bucket::Locked).await;
    let (world, mut pictures) = origin(2);
    replica_in(&world, &settings);
    let dry = replicate(&world, &["--dry-run"]);
    assert_eq!((&source(&dry)["snapshots"], &source(&dry)["lagSeconds"]), (&2.into(), &Value::Null));
    world.run(&["-r", "replica", "snapshots"]).expect(10);
    let first = replicate(&world, &[]);
    assert_eq!((&source(&first)["snapshots"], &source(&first)["lagSeconds"]), (&2.into(), &0.into()));
    assert_eq!(source(&first)["bytes"], source(&dry)["bytes"]);
    world.file("more", noise(50, 1 << 20));
    pictures.push(picture(&world.path("tree")));
    world.run(&[&["-r", "main"], World::BACKUP].concat()).expect(0);
    // What is new, and no more.
    let second = replicate(&world, &[]);
    assert_eq!((&source(&second)["snapshots"], &source(&second)["replicaNewest"]["number"]), (&1.into(), &3.into()));
    assert!(source(&second)["bytes"].as_u64().unwrap() < 2 << 20, "{second}");
    assert_eq!(source(&replicate(&world, &[]))["bytes"], 0);
    assert_restores_alone(&world, &pictures);

    let objects = client(&minio).list_objects_v2().bucket("replica").prefix("some/prefix/").send().await.unwrap();
    let mut looked_at = 0;
    for object in objects.contents() {
        let key = object.key().unwrap();
        let head = client(&minio).head_object().bucket("replica").key(key).send().await.unwrap();
        assert!(head.object_lock_retain_until_date().is_some(), "{key} is not locked");
        looked_at += 1;
    }
    assert!(looked_at >= 8, "{looked_at}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_one_server_to_another() {
    let (minio, versitygw) = (minio(), versitygw(true));
    let world = World::bucket(&bucket(&minio, "origin", Bucket::Versioned).await, 1);
    world.file("a", noise(1, 12 << 20));
    let expected = picture(&world.path("tree"));
    world.run(&[&["-r", "main"], World::BACKUP].concat()).expect(0);
    for (kind, name) in [(Bucket::Plain, "plain"), (Bucket::Locked, "locked")] {
        replica_in(&world, &bucket(&versitygw, name, kind).await);
        assert_eq!(source(&replicate(&world, &[]))["snapshots"], 1);
        assert_eq!(source(&replicate(&world, &[]))["snapshots"], 0);
        world.as_owner(&["-r", "replica", "restore", "snapshot", "docs", "--to", name]).expect(0);
        assert_same(&picture(&world.path(name)), &expected, name);
    }
}

/// Files that are objects.
fn count(directory: &Path) -> usize {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    entries
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name() != ".tmp")
        .map(|entry| if entry.file_type().unwrap().is_dir() { count(&entry.path()) } else { 1 })
        .sum()
}

/// kill -9 after each object in turn: what the replica lists is whole, and the next run copies the rest.
#[test]
fn a_replication_killed_at_any_object_leaves_a_repository() {
    let (world, pictures) = origin(3);
    replica_in_directory(&world);
    let (replica, mut cut_off) = (world.path("replica"), 0);
    let whole = count(&world.path("repository"));
    for objects in 1..whole {
        let mut child = world.program(&["-r", "main", "replicate", "--to", "replica"]).spawn().unwrap();
        while count(&replica) < objects && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        kill(child);
        let listed = world.as_writer(&["-r", "replica", "snapshots", "docs", "--json"]);
        if listed.code == 0 {
            let numbers = listed.json()["snapshots"].as_array().unwrap().len();
            cut_off += usize::from(numbers < pictures.len());
            world.as_owner(&["-r", "replica", "verify", "--read-data"]).expect(0);
        } else {
            // Nothing is there yet, or nothing of this source.
            assert!([2, 10].contains(&listed.code), "{}: {}", listed.code, listed.err);
            cut_off += 1;
        }
        let had = count(&replica.join("docs/packs")) as u64;
        let rest = replicate(&world, &[]);
        assert_eq!(source(&rest)["packs"].as_u64().unwrap() + had, count(&world.path("repository/docs/packs")) as u64);
        assert_eq!(count(&replica), whole);
        fs::remove_dir_all(&replica).unwrap();
    }
    assert!(cut_off > 0, "no run was killed before it was through");
    replicate(&world, &[]);
    assert_restores_alone(&world, &pictures);
}

#[test]
fn rot_is_healed_in_both_directions() {
    let (world, pictures) = origin(2);
    replica_in_directory(&world);
    replicate(&world, &[]);
    let manifest = format!("docs/snapshots/{}", Sequence(1).object_name());
    for (here, other) in [("main", "replica"), ("replica", "main")] {
        let directory = world.path(if here == "main" { "repository" } else { "replica" });
        let pack = fs::read_dir(directory.join("docs/packs")).unwrap().next().unwrap().unwrap().path();
        for path in [&pack, &directory.join(&manifest)] {
            let mut bytes = fs::read(path).unwrap();
            bytes[300] ^= 1;
            fs::write(path, bytes).unwrap();
        }
        fs::remove_file(directory.join("lifeboat.json")).unwrap();
        world.as_owner(&["-r", here, "verify", "--scrub"]).expect(10);
        let report = world.run(&["-r", here, "verify", "--repair-from", other, "--json"]).expect(0).json();
        assert_eq!(report["root"]["healed"], serde_json::json!(["lifeboat.json"]));
        let healed = report["sources"]["docs"]["healed"].as_array().unwrap();
        assert_eq!(healed.len(), 2, "{report}");
        assert_eq!(report["sound"], true);
        world.as_owner(&["-r", here, "verify", "--read-data"]).expect(0);
    }
    assert_restores_alone(&world, &pictures);
    // What one of them alone has is no damage of the other, and told.
    let pack = &world.objects("docs/packs")[0];
    world.file("late", "newer");
    world.run(&[&["-r", "main"], World::BACKUP].concat()).expect(0);
    world.run(&["-r", "replica", "verify", "--repair-from", "main"]).expect(0).says("has newer snapshots");
    let back = world.run(&["-r", "main", "verify", "--repair-from", "replica"]).expect(0);
    assert!(!back.err.contains("newer"), "{}", back.err);
    // What is rotten in both cannot be healed, and is said.
    for directory in ["repository", "replica"] {
        let path = world.path(directory).join(pack);
        let mut bytes = fs::read(&path).unwrap();
        bytes[300] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    let out = world.run(&["-r", "main", "verify", "--repair-from", "replica"]).expect(1).out;
    assert!(out.contains(pack) && out.contains("none that is sound either"), "{out}");
    world.run(&["-r", "main", "verify", "--repair-from", "main"]).expect(2).says("from itself");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rot_in_a_bucket_is_healed() {
    let minio = minio();
    let (world, pictures) = origin(1);
    let pack = world.objects("docs/packs").remove(0);
    let key = format!("some/prefix/{pack}");
    let mut rotten = fs::read(world.path("repository").join(&pack)).unwrap();
    rotten[300] ^= 1;
    for (kind, name) in [(Bucket::Plain, "plain"), (Bucket::Versioned, "versioned")] {
        replica_in(&world, &bucket(&minio, name, kind).await);
        replicate(&world, &[]);
        let versions = client(&minio).list_object_versions().bucket(name).prefix(&key).send().await.unwrap();
        for version in versions.versions() {
            let delete = client(&minio).delete_object().bucket(name).key(&key);
            delete.set_version_id(version.version_id().map(str::to_owned)).send().await.unwrap();
        }
        client(&minio).put_object().bucket(name).key(&key).body(rotten.clone().into()).send().await.unwrap();
        world.run(&["-r", "replica", "verify", "--scrub"]).expect(1);
        let report = world.run(&["-r", "replica", "verify", "--repair-from", "main", "--json"]).expect(0).json();
        assert_eq!(report["sources"]["docs"]["healed"], serde_json::json!([pack]));
        world.run(&["-r", "replica", "verify", "--scrub"]).expect(0);
        assert_restores_alone(&world, &pictures);
    }
}

/// Somebody was there first, with another object under the name of a pack, in a bucket where nothing can be removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_differs_in_a_locked_bucket_is_told_and_not_relied_on() {
    let minio = minio();
    let (world, _) = origin(1);
    let pack = world.objects("docs/packs").remove(0);
    let mut planted = fs::read(world.path("repository").join(&pack)).unwrap();
    let last = planted.len() - 100;
    planted[last] ^= 1;
    replica_in(&world, &bucket(&minio, "locked", Bucket::Locked).await);
    let put = client(&minio).put_object().bucket("locked").key(format!("some/prefix/{pack}"));
    put.body(planted.into()).send().await.unwrap();
    let report = world.run(&["-r", "main", "replicate", "--to", "replica", "--json"]).expect(3).json();
    assert_eq!(source(&report)["findings"][0]["object"], pack.as_str());
    assert_eq!(source(&report)["replicaNewest"], Value::Null);
    let listed = world.as_writer(&["-r", "replica", "snapshots", "--json"]).expect(0).json();
    assert_eq!(listed["snapshots"], serde_json::json!([]));
}

#[test]
fn mistakes_and_findings_are_told() {
    let (world, _) = origin(2);
    let other = World::local();
    other.file("a", "of somebody else");
    other.backup();
    let place = other.path("repository").display().to_string();
    world.run(&["replicate", "--to", &place]).expect(1).says("holds another repository");
    assert_eq!(other.numbers("docs"), [1]);
    world.run(&["replicate", "--to", "main"]).expect(2).says("of itself");
    world.run(&["replicate", "--to", "nowhere"]).expect(2).says("no Repository document named");
    let to = world.path("copy").display().to_string();
    world.run(&["replicate", "--to", &to, "nothing"]).expect(2).says("no source nothing");
    // A pack that is damaged: what needs it is left out, the rest goes.
    let first = world.objects("docs/packs");
    let own = format!("docs/snapshots/{}", Sequence(2).object_name());
    world.tamper(&own, |bytes| bytes[200] ^= 1);
    let report = world.run(&["replicate", "--to", &to, "--json"]).expect(3).json();
    assert_eq!(source(&report)["snapshots"], 1);
    assert_eq!(source(&report)["findings"][0]["object"], own.as_str());
    assert!(!first.is_empty() && world.path("copy/docs/packs").exists());
    let told = world.run(&["replicate", "--to", &to]).expect(3);
    assert!(told.out.contains(&own), "{}", told.out);
}

/// What is pruned stays at the replica until its own keeper prunes there.
#[test]
fn a_replica_is_pruned_by_its_own_keeper() {
    let (world, pictures) = origin(3);
    replica_in_directory(&world);
    replicate(&world, &[]);
    world.schedule("1h", "{last: 1}");
    prune(&world, "main");
    world.file("last", "one");
    world.run(&[&["-r", "main"], World::SCHEDULED].concat()).expect(0);
    assert_eq!(source(&replicate(&world, &[]))["snapshots"], 1);
    assert_eq!((numbers(&world, "main"), numbers(&world, "replica")), (vec![4, 3], vec![4, 3, 2, 1]));
    world.as_owner(&["-r", "replica", "restore", "snapshot", "docs@1", "--to", "first"]).expect(0);
    assert_same(&picture(&world.path("first")), &pictures[0], "a snapshot that was pruned");
    // A third copy has the gap, and its explanation.
    let third = world.path("third").display().to_string();
    world.run(&["-r", "main", "replicate", "--to", &third]).expect(0);
    world.as_owner(&["-r", &third, "verify"]).expect(0);
}

/// The repository's part of docs/runbook.md, "Back again": what was the replica is written to and pruned, an empty place gets all of
/// it, goes on, and has a replica again. The place that was lost, with a history that has parted, is not written over.
#[test]
fn there_and_back_again() {
    let (world, mut pictures) = origin(3);
    replica_in_directory(&world);
    replicate(&world, &[]);
    world.schedule("1h", "{last: 2}");
    let document = "apiVersion: lifeboat.dev/v1\nkind: Schedule\nmetadata: {name: there}\nspec: {repository: replica, \
                    tier: standard, cron: '*/10 * * * *', maxDuration: 1h, sources: [docs], retention: {last: 2}, \
                    replica: {to: lost}}\n";
    let lost = World::directory(&world.path("lost")).replace("name: main", "name: lost");
    world.document("lost.yaml", &lost);
    world.document("there.yaml", document);
    let backup = |repository: &str, name: &str| {
        world.file(name, name);
        world.run(&[&["-r", repository], World::SCHEDULED].concat()).expect(0);
        picture(&world.path("tree"))
    };
    prune(&world, "main");
    backup("main", "never replicated");
    fs::rename(world.path("repository"), world.path("lost")).unwrap();

    fs::remove_file(world.path("tree/never replicated")).unwrap();
    pictures.push(backup("replica", "fourth"));
    prune(&world, "replica");
    assert_eq!(numbers(&world, "replica"), [4, 3]);
    let parted = world.run(&["-r", "replica", "replicate", "--to", "lost"]).expect(3);
    assert!(
        parted.out.contains("has another docs@4, not from here") && parted.out.contains(", at docs@3 ("),
        "{}",
        parted.out
    );
    let status = world.as_owner(&["-r", "replica", "status"]).expect(1);
    assert!(status.out.contains("the replica lost has another snapshot 4"), "{}", status.out);

    // Nor is the longer history taken for a copy of the shorter.
    pictures.push(backup("replica", "fifth"));
    let text = fs::read_to_string(world.path("config/there.yaml")).unwrap();
    world.document(
        "there.yaml",
        &text.replace("repository: replica", "repository: lost").replace("{to: lost}", "{to: replica}"),
    );
    let status = world.as_owner(&["-r", "lost", "status", "--json"]).expect(1).json();
    let copied = &status["sources"][0]["replicas"][0];
    assert_eq!(
        (&copied["number"], &copied["onlyThere"], &copied["parted"]),
        (&3.into(), &5.into(), &4.into()),
        "{copied}"
    );
    world.document("there.yaml", &text);

    world.run(&["-r", "replica", "replicate", "--to", "main"]).expect(0);
    pictures.push(backup("main", "sixth"));
    prune(&world, "main");
    assert_eq!(numbers(&world, "main"), [6, 5]);
    let third = world.path("third").display().to_string();
    for replica in ["replica", &third] {
        world.run(&["-r", "main", "replicate", "--to", replica]).expect(0);
    }
    for repository in ["main", "replica", &third] {
        for number in [5, 6] {
            let from = ["-r", repository, "restore", "snapshot", &format!("docs@{number}"), "--to", "restored"];
            world.as_owner(&from).expect(0);
            assert_same(&picture(&world.path("restored")), &pictures[number - 1], &format!("{repository} {number}"));
            fs::remove_dir_all(world.path("restored")).unwrap();
        }
        world.as_owner(&["-r", repository, "verify", "--read-data"]).expect(0);
    }
}

/// Asked for by a schedule, kept by the CronJob's own command without any key, and judged by `status`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schedule_asks_for_a_replica_and_status_judges_it() {
    let minio = minio();
    let world = World::bucket(&bucket(&minio, "main", Bucket::Locked).await, 1);
    replica_in(&world, &bucket(&minio, "replica", Bucket::Locked).await);
    world.schedule("1m", "{last: 5}");
    let text = fs::read_to_string(world.path("config/schedule.yaml")).unwrap();
    let schedule = text.replace("standard", "critical").replace("*/10", "*/2");
    let schedule = schedule.replace("retention:", "replica: {to: replica}, retention:");
    // A source that has no snapshots yet keeps nobody from copying the others.
    let other =
        "---\napiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {name: later}\nspec: {files: {path: /srv}}\n";
    world.document("schedule.yaml", &(schedule.replace("[docs]", "[docs, later]") + other));
    let repository = fs::read_to_string(world.path("config/repository.yaml")).unwrap();
    let key = "  writerKey: {file: /etc/lifeboat/keys/not-for-whoever-replicates}\n";
    world.document("repository.yaml", &(repository + key));
    let status = |code: i32| {
        let ran = world.as_writer(&["-r", "main", "status", "docs", "--json"]).expect(code);
        ran.json()["sources"][0]["replicas"][0].clone()
    };
    let rendered = world.run(&["schedule", "render", "--image", "example/lifeboat:1", "--json"]).expect(0).json();
    let jobs = rendered["items"].as_array().unwrap();
    assert_eq!(jobs.len(), 2);
    let words = jobs[1]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap();
    let words: Vec<_> =
        words.iter().map(|word| word.as_str().unwrap()).filter(|word| !word.starts_with("--config")).collect();
    let copy = || world.run(&words).expect(0);

    world.file("a", noise(1, 1 << 20));
    world.as_writer(&["-r", "main", "backup", "docs"]).expect(0);
    assert_eq!((&status(4)["verdict"], &status(4)["number"]), (&"missed".into(), &Value::Null));
    copy();
    assert_eq!((&status(0)["verdict"], &status(0)["lagSeconds"]), (&"met".into(), &0.0.into()));
    // The next one is of six minutes later, and is not copied.
    world.file("b", noise(2, 1 << 20));
    clock::at(&world, "+6m", &["--writer-key", "writer.key", "-r", "main", "backup", "docs"]).expect(0);
    let behind = status(4);
    assert_eq!((&behind["verdict"], &behind["number"]), (&"missed".into(), &1.into()), "{behind}");
    assert!(behind["lagSeconds"].as_f64().unwrap() > 300.0, "{behind}");
    let shown = world.as_writer(&["-r", "main", "status", "docs"]).expect(4).out;
    assert!(shown.contains("REPLICA") && shown.contains("replica: 6 m"), "{shown}");
    world.as_writer(&["-r", "main", "status", "docs", "--no-replicas"]).expect(0);
    copy();
    assert_eq!(status(0)["number"], 2);
    // What is only there was removed here.
    let s3 = client(&minio);
    let gone = format!("some/prefix/docs/snapshots/{}", Sequence(2).object_name());
    let versions = s3.list_object_versions().bucket("main").prefix(&gone).send().await.unwrap();
    for version in versions.versions() {
        let delete = s3.delete_object().bucket("main").key(&gone).bypass_governance_retention(true);
        delete.set_version_id(version.version_id().map(str::to_owned)).send().await.unwrap();
    }
    let told = world.as_writer(&["-r", "main", "status", "docs"]).expect(1).out;
    assert!(told.contains("only the replica replica has snapshot 2"), "{told}");
    // Somebody else's repository in its place is no replica.
    let other = World::local();
    world.document("replica.yaml", &World::directory(&other.path("repository")).replace("name: main", "name: replica"));
    let unknown = world.as_writer(&["-r", "main", "status", "docs", "--json"]);
    assert_eq!(unknown.json()["sources"][0]["replicas"][0]["verdict"], "unknown");
}

/// A real API server takes what is rendered, and the identity that it names is one of its own.
#[test]
fn a_cluster_takes_the_rendered_replication() {
    let (cluster, world) = (Cluster::start(), World::local());
    replica_in_directory(&world);
    world.schedule("1m", "{last: 5}");
    let text = fs::read_to_string(world.path("config/schedule.yaml")).unwrap();
    world.document(
        "schedule.yaml",
        &text.replace("retention:", "replica: {to: replica, cron: '1-59/10 * * * *'}, retention:"),
    );
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/base");
    cluster.kubectl(&["apply", "--kustomize", base.to_str().unwrap()]);
    cluster.apply(&world.run(&["schedule", "render", "--image", "example/lifeboat:1"]).expect(0).out);
    let get = |what: &[&str]| cluster.kubectl(&[&["--namespace", "lifeboat", "get"], what].concat());
    let pod = "{.spec.schedule} {.spec.jobTemplate.spec.template.spec.serviceAccountName}";
    let made = get(&["cronjob", "lifeboat-replicate-often", "-o", &format!("jsonpath={pod}")]);
    assert_eq!(made, "1-59/10 * * * * lifeboat-replicate");
    get(&["serviceaccount", "lifeboat-replicate"]);
    let bound = cluster.kubectl(&["get", "clusterrolebindings", "-o", "jsonpath={.items[*].subjects[*].name}"]);
    assert!(!bound.split(' ').any(|name| name == "lifeboat-replicate"), "it has rights in the cluster: {bound}");
}

/// Several sources at once, one of them alone, and one whose packs are larger than what is read at a time.
#[test]
fn sources_are_copied_side_by_side_or_alone() {
    let (world, _) = origin(1);
    world.file("huge", noise(7, 40 << 20));
    let expected = picture(&world.path("tree"));
    for name in ["a", "b", "c", "d", "e", "f"] {
        let backup = ["--writer-key", "writer.key", "backup", "--files", "tree", "--name", name];
        world.run(&backup).expect(0);
    }
    replica_in_directory(&world);
    let alone = replicate(&world, &["c"]);
    assert_eq!(alone["sources"].as_array().map(Vec::len), Some(1));
    assert!(world.path("replica/c/packs").exists() && !world.path("replica/a").exists());
    let all = replicate(&world, &[]);
    let copied = |name: &str| {
        let mut sources = all["sources"].as_array().unwrap().iter();
        sources.find(|s| s["source"] == name).map(|s| s["snapshots"].as_u64().unwrap())
    };
    assert_eq!((copied("a"), copied("c"), copied("docs"), copied("f")), (Some(1), Some(0), Some(1), Some(1)));
    fs::rename(world.path("repository"), world.path("gone")).unwrap();
    world.as_owner(&["-r", "replica", "restore", "snapshot", "e", "--to", "restored"]).expect(0);
    assert_same(&picture(&world.path("restored")), &expected, "e");
    world.as_owner(&["-r", "replica", "verify", "--read-data"]).expect(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_rights_suffice_to_replicate_and_to_repair() {
    let minio = minio();
    let main = bucket(&minio, "main", Bucket::Versioned).await;
    let replica = bucket(&minio, "replica", Bucket::Locked).await;
    let owner = World::bucket(&main, 0);
    owner.file("a", noise(1, 6 << 20));
    let expected = picture(&owner.path("tree"));
    owner.backup();
    // One program that may do this at the one and that at the other.
    let with = |at_main: &str, at_replica: &str| {
        let [Value::Array(mut statements), Value::Array(more)] =
            [documented(at_main, &main), documented(at_replica, &replica)]
        else {
            panic!("statements are lists")
        };
        statements.extend(more);
        let main = limited(&minio, &main, &Value::Array(statements));
        let world = World::in_bucket(&main, 0);
        replica_in(&world, &Settings { credentials: main.credentials, ..replica.clone() });
        world.take_keys(&owner, &["kit.txt"]);
        world
    };
    let copier = with("restorer", "replicator");
    for snapshots in [1, 0] {
        assert_eq!(source(&replicate(&copier, &[]))["snapshots"], snapshots);
    }
    copier.as_owner(&["-r", "replica", "restore", "snapshot", "docs", "--to", "restored"]).expect(0);
    assert_same(&picture(&copier.path("restored")), &expected, "the replica");
    copier.run(&["-r", "replica", "replicate", "--to", "main", "docs"]).expect(0);

    // Rot in the main bucket, below what versions guard against.
    let s3 = client(&minio);
    let listed = s3.list_objects_v2().bucket("main").prefix("some/prefix/docs/packs/").send().await.unwrap();
    let key = listed.contents()[0].key().unwrap();
    let version = s3.get_object().bucket("main").key(key).send().await.unwrap();
    let id = version.version_id().unwrap().to_owned();
    let mut rotten = version.body.collect().await.unwrap().to_vec();
    rotten[1000] ^= 1;
    s3.delete_object().bucket("main").key(key).version_id(id).send().await.unwrap();
    s3.put_object().bucket("main").key(key).body(rotten.clone().into()).send().await.unwrap();
    let repair = ["-r", "main", "verify", "--repair-from", "replica"];
    // The keeper may remove packs, and not put them: it removes nothing.
    with("keeper", "restorer").run(&repair).expect(1).says("access denied");
    let there = s3.get_object().bucket("main").key(key).send().await.unwrap();
    assert_eq!(there.body.collect().await.unwrap().to_vec(), rotten);
    with("repairer", "restorer").run(&repair).expect(0);
    owner.as_owner(&["verify", "--read-data"]).expect(0);
}
