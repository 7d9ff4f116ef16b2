//! kill -9 at many moments of a run: what was committed is whole, nothing partial can be seen, the next run works.

use crate::support::picture::{Picture, assert_same, picture};
use crate::support::world::{World, kill, made, noise};
use crate::support::{Bucket, bucket, client, minio};
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

const MOMENTS: u32 = 15;

fn prepare(world: &World) {
    for number in 0..400 {
        world.file(&format!("{}/{number}", number % 7), noise(number, 3000));
    }
    world.file("constant", noise(1000, 6 << 20));
}

fn change(world: &World, step: u64) -> Picture {
    world.file("large", noise(2000 + step, 5 << 20));
    world.file(&format!("{}/new", step % 7), format!("step {step}"));
    picture(&world.path("tree"))
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let clock = Instant::now();
    let done = work();
    (done, clock.elapsed())
}

/// Starts a program and kills it after a share of the time that it usually takes.
fn kill_after(mut program: Command, usual: Duration, moment: u32, moments: u32) {
    let child = program.spawn().unwrap();
    std::thread::sleep(usual * (2 * moment + 1) / (2 * moments));
    kill(child);
}

/// Files of a repository in a directory are there as a whole or not at all.
fn assert_packs_are_whole(world: &World) {
    for key in world.objects("docs/packs") {
        let bytes = fs::read(world.path("repository").join(&key)).unwrap();
        assert!(bytes.starts_with(b"LBPACK\0\x01") && bytes.ends_with(b"LBPKEND\x01"), "{key} is not whole");
    }
}

fn backups_are_killed(world: &World) {
    prepare(world);
    let mut committed: BTreeMap<u64, Picture> = BTreeMap::new();
    let first = change(world, 0);
    committed.insert(world.backup().number, first);
    let second = change(world, 1);
    let (snapshot, mut usual) = timed(|| world.backup());
    committed.insert(snapshot.number, second);
    let mut cut_off = 0;
    for moment in 0..MOMENTS {
        let before = change(world, u64::from(2 + 2 * moment));
        kill_after(world.program(World::BACKUP), usual, moment, MOMENTS);
        let numbers = world.numbers("docs");
        cut_off += u32::from(numbers.len() == committed.len());
        for number in numbers {
            // Only the run that was killed can have added one, and then a whole one.
            committed.entry(number).or_insert_with(|| before.clone());
        }
        let newest = *committed.keys().last().unwrap();
        world.assert_restores(newest, &committed[&newest]);
        assert_packs_are_whole(world);
        let after = change(world, u64::from(3 + 2 * moment));
        let (ran, took) = timed(|| world.run(World::BACKUP).expect(0));
        committed.insert(made(&ran).number, after);
        usual = usual.min(took);
        world.assert_sound();
    }
    assert!(cut_off > MOMENTS / 2, "only {cut_off} runs were killed before they were through");
    assert_eq!(world.numbers("docs"), committed.keys().copied().collect::<Vec<_>>());
    for (number, picture) in &committed {
        world.assert_restores(*number, picture);
    }
}

#[test]
fn backups_into_a_directory_killed_at_any_moment_lose_nothing() {
    backups_are_killed(&World::local());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backups_into_a_bucket_killed_at_any_moment_lose_nothing() {
    let minio = minio();
    backups_are_killed(&World::bucket(&bucket(&minio, "killed", Bucket::Locked).await, 1));
}

#[test]
fn a_restore_that_was_killed_can_be_done_again() {
    const MOMENTS: u32 = 6;
    let world = World::local();
    prepare(&world);
    let expected = change(&world, 0);
    world.backup();
    let arguments = ["--identity", "kit.txt", "restore", "snapshot", "docs", "--to", "half"];
    let (ran, usual) = timed(|| world.run(&arguments));
    ran.expect(0);
    let mut partial = 0;
    for moment in 0..MOMENTS {
        fs::remove_dir_all(world.path("half")).unwrap_or_default();
        kill_after(world.program(&arguments), usual, moment, MOMENTS);
        let held: Vec<_> =
            fs::read_dir(world.path("half")).into_iter().flatten().map(|e| e.unwrap().file_name()).collect();
        // What is there is neither mixed with nor taken for a restore that is complete, by nobody.
        if held.iter().any(|name| name.to_string_lossy().starts_with(".lifeboat-unfinished-")) {
            world.run(&arguments).expect(1).says("broken off").says(".lifeboat-unfinished-");
            partial += 1;
        } else if !held.is_empty() {
            assert_same(&picture(&world.path("half")), &expected, "what is not marked is whole");
        }
        assert_same(&world.restored("docs"), &expected, "a further restore");
    }
    assert!(partial > 0, "no restore was killed half-way");
}

/// `packs` counts what the store holds.
fn prunes_are_killed(world: &World, moments: u32, packs: impl Fn() -> u64) {
    world.schedule("1s", "{last: 1}");
    // Backups keep the repository's own limits; only the keeper does not wait here.
    let patient = fs::read_to_string(world.path("config/repository.yaml")).unwrap();
    let impatient = format!("{patient}  gracePeriod: 2s\n  runLimit: 1s\n");
    let prune = ["--keeper-key", "keeper.key", "prune"];
    // Past the grace period for what was set free before.
    let prepare_to_prune = || {
        std::thread::sleep(Duration::from_millis(3100));
        world.document("repository.yaml", &impatient);
    };
    prepare(world);
    let mut expected = change(world, 0);
    let mut newest = made(&world.run(World::SCHEDULED).expect(0)).number;
    let mut usual = Duration::from_millis(100);
    for moment in 0..=moments {
        for step in 0..3 {
            expected = change(world, u64::from(10 + 3 * moment + step));
            newest = made(&world.run(World::SCHEDULED).expect(0)).number;
        }
        prepare_to_prune();
        if moment > 0 {
            kill_after(world.program(&prune), usual, moment - 1, moments);
            assert!(world.numbers("docs").contains(&newest));
            world.assert_restores(newest, &expected);
            world.assert_sound();
        }
        let (ran, took) = timed(|| world.run(&prune));
        ran.expect(0);
        usual = if moment == 0 { took } else { usual.min(took) };
        world.document("repository.yaml", &patient);
        assert_eq!(world.numbers("docs"), [newest]);
        world.assert_restores(newest, &expected);
        world.assert_sound();
    }
    // In the end nothing is left but what the last snapshot names.
    prepare_to_prune();
    world.run(&prune).expect(0);
    let shown = world.as_writer(&["show", "docs", "--json"]).expect(0).json();
    assert_eq!(packs(), shown["packs"].as_u64().unwrap());
    world.assert_restores(newest, &expected);
}

#[test]
fn a_prune_of_a_directory_that_was_killed_loses_nothing_and_is_finished_by_the_next() {
    let world = World::local();
    prunes_are_killed(&world, 6, || world.objects("docs/packs").len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prune_of_a_bucket_that_was_killed_loses_nothing_and_is_finished_by_the_next() {
    let minio = minio();
    let settings = bucket(&minio, "pruned", Bucket::Versioned).await;
    let s3 = client(&minio);
    let runtime = tokio::runtime::Handle::current();
    let packs = || {
        let listing = s3.list_object_versions().bucket(&settings.bucket).prefix("some/prefix/docs/packs/").send();
        let listing = tokio::task::block_in_place(|| runtime.block_on(listing).unwrap());
        assert!(listing.delete_markers().is_empty(), "nothing of a pack is left but what hides it");
        listing.versions().len() as u64
    };
    prunes_are_killed(&World::bucket(&settings, 0), 4, packs);
}
