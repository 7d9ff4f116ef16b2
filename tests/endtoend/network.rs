//! A network that goes away while a backup is under way, and a server that has too much to do.

use crate::support::picture::{assert_same, picture};
use crate::support::world::{World, finish, made, noise};
use crate::support::{Bucket, Wire, bucket, minio, minio_that_throttles};
use std::fs;
use std::process::Child;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_mins(1);

/// Starts the program and waits until so many bytes of it have gone over the wire.
fn begin(world: &World, arguments: &[&str], wire: &Wire, bytes: u64) -> Child {
    let goal = wire.sent() + bytes;
    let mut child = world.program(arguments).spawn().unwrap();
    let until = Instant::now() + DEADLINE;
    while wire.sent() < goal {
        assert!(child.try_wait().unwrap().is_none(), "{arguments:?} ended before {bytes} bytes were sent");
        assert!(Instant::now() < until, "{bytes} bytes were not sent in {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_begins_while_the_wire_is_cut_waits_for_it() {
    let minio = minio();
    let wire = Wire::to(&minio).await;
    let mut settings = bucket(&minio, "later", Bucket::Versioned).await;
    settings.endpoint = Some(format!("http://127.0.0.1:{}", wire.port));
    let world = World::bucket(&settings, 0);
    world.file("a", "content");
    wire.cut(true);
    let backup = world.program(World::BACKUP).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    wire.cut(false);
    assert_eq!(made(&finish(backup).expect(0)).number, 1);
}

fn cut_for_a_second(wire: &Wire) {
    wire.cut(true);
    std::thread::sleep(Duration::from_secs(1));
    wire.cut(false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_cuts_are_survived_and_a_long_one_commits_nothing() {
    let minio = minio();
    let wire = Wire::to(&minio).await;
    let mut settings = bucket(&minio, "wire", Bucket::Locked).await;
    settings.endpoint = Some(format!("http://127.0.0.1:{}", wire.port));
    let world = World::bucket(&settings, 1);
    world.file("a", noise(1, 3 << 20));
    world.backup();
    let first = picture(&world.path("tree"));

    // Lost connections at several places of one upload, and a second without any.
    world.file("large", noise(2, 48 << 20));
    let second = picture(&world.path("tree"));
    let child = begin(&world, World::BACKUP, &wire, 4 << 20);
    for _ in 0..3 {
        wire.cut(true);
        wire.cut(false);
        std::thread::sleep(Duration::from_millis(100));
    }
    cut_for_a_second(&wire);
    let number = made(&finish(child).expect(0)).number;
    world.assert_restores(number, &second);

    // Answers lost: what was asked for has happened, and is neither done twice nor reported as a conflict.
    world.file("b", noise(3, 2 << 20));
    let third = picture(&world.path("tree"));
    let child = begin(&world, World::BACKUP, &wire, 1 << 20);
    wire.lose_answers(2);
    let number = made(&finish(child).expect(0)).number;
    assert_eq!(wire.still_to_lose(), 0);
    assert_eq!(number, 3);
    world.assert_restores(number, &third);

    // The same for reads.
    let restore = ["--identity", "kit.txt", "restore", "snapshot", "docs@3", "--to", "cut"];
    wire.lose_answers(2);
    let before = wire.sent();
    world.run(&restore).expect(0);
    let usual = wire.sent() - before;
    assert_eq!(wire.still_to_lose(), 0);
    fs::remove_dir_all(world.path("cut")).unwrap();
    let child = begin(&world, &restore, &wire, usual / 2);
    cut_for_a_second(&wire);
    finish(child).expect(0);
    assert_same(&picture(&world.path("cut")), &third, "over a wire that was cut");
    fs::remove_dir_all(world.path("cut")).unwrap();

    // It does not come back: an error in bounded time.
    world.file("large", noise(4, 48 << 20));
    let child = begin(&world, World::BACKUP, &wire, 4 << 20);
    wire.cut(true);
    let failed = finish(child).expect(1);
    failed.says("docs/packs/").says("unavailable").says("check the network");
    world.as_writer(&["snapshots"]).expect(1).says("unavailable");
    wire.cut(false);
    let child = begin(&world, &restore, &wire, usual / 2);
    wire.cut(true);
    finish(child).expect(1).says("unavailable").says("did not complete");
    wire.cut(false);
    assert_eq!(world.numbers("docs"), [1, 2, 3]);
    world.assert_restores(1, &first);
    world.assert_restores(3, &third);
    assert_eq!(world.backup().number, 4);
    world.assert_sound();
}

/// Everything is captured in no time; what is sent gets nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_ends_with_its_time_though_uploads_hang() {
    let minio = minio();
    let wire = Wire::to(&minio).await;
    let mut settings = bucket(&minio, "hangs", Bucket::Versioned).await;
    settings.endpoint = Some(format!("http://127.0.0.1:{}", wire.port));
    let world = World::bucket(&settings, 1);
    for number in 0..4 {
        world.file(&format!("large-{number}"), noise(number, 40 << 20));
    }
    world.schedule("3s", "{last: 5}");
    let run = ["--writer-key", "writer.key", "backup", "--schedule", "often", "--json"];
    let child = begin(&world, &run, &wire, 1 << 20);
    wire.stall(true);
    finish(child).expect(1).says("did not end within 3 s");
    wire.stall(false);
    assert_eq!(world.numbers("docs"), [0; 0]);
    world.schedule("1m", "{last: 5}");
    assert_eq!(made(&world.run(&run).expect(0)).number, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_throttles_is_waited_for() {
    let minio = minio_that_throttles();
    let world = World::bucket(&bucket(&minio, "slow", Bucket::Locked).await, 1);
    for number in 0..12 {
        world.file(&format!("large-{number}"), noise(number, 6 << 20));
    }
    let before = picture(&world.path("tree"));
    world.run(&[&["-vv"], World::BACKUP].concat()).expect(0).says("trying again");
    let restore = ["-vv", "--identity", "kit.txt", "restore", "snapshot", "docs@1", "--to", "back"];
    world.run(&restore).expect(0).says("trying again");
    assert_same(&picture(&world.path("back")), &before, "from a server that throttles");
    world.assert_sound();
}
