//! Clocks that are wrong, or jump while a run is under way. Only the program's clock is: the file system's, which stands
//! for the store's, goes on as it was.

use crate::support::picture::{assert_same, picture};
use crate::support::world::{Ran, World, finish, made, noise};
use crate::support::{Bucket, bucket, minio};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

fn library() -> PathBuf {
    let path = PathBuf::from(format!("/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1", std::env::consts::ARCH));
    assert!(path.exists(), "{} is missing: tests/tools/setup test", path.display());
    path
}

/// The program reads its offset from the file `offset`, again and again.
fn with_its_own_clock(world: &World, arguments: &[&str]) -> Command {
    let mut program = world.program(arguments);
    program.env("LD_PRELOAD", library()).env("FAKETIME_TIMESTAMP_FILE", world.path("offset"));
    program.env("FAKETIME_NO_CACHE", "1").env("NO_FAKE_STAT", "1").env("DONT_FAKE_MONOTONIC", "1");
    program
}

pub fn at(world: &World, offset: &str, arguments: &[&str]) -> Ran {
    fs::write(world.path("offset"), offset).unwrap();
    finish(with_its_own_clock(world, arguments).spawn().unwrap())
}

#[test]
fn snapshots_of_a_wrong_clock_read_back_and_push_nothing_out() {
    let world = World::local();
    let mut pictures = Vec::new();
    for (number, offset) in (1_u64..).zip(["+0d", "+400d", "-400d", "+0d", "+3d"]) {
        world.file("a", format!("with the clock at {offset}"));
        world.file(&format!("noise-{number}"), noise(number, 200_000));
        pictures.push(picture(&world.path("tree")));
        let ran = at(&world, offset, World::BACKUP).expect(0);
        assert_eq!(made(&ran).number, number);
    }
    let listed = world.as_writer(&["snapshots", "docs", "--json"]).expect(0).json();
    let point = |index: usize| listed["snapshots"][index]["recoveryPoint"].as_str().unwrap()[..4].to_owned();
    assert!(point(3) > point(1) && point(2) < point(1), "the clock was not wrong: {listed}");
    for (number, picture) in (1..).zip(&pictures) {
        world.assert_restores(number, picture);
    }
    assert_same(&world.restored("docs@latest"), &pictures[4], "latest");
    world.assert_sound();

    // By the agents' clocks they are of three years, by the store's of one day.
    let retention = |text: &str| world.schedule("5m", text);
    let prune = ["--keeper-key", "keeper.key", "prune", "--json"];
    let removed = |ran: Ran| ran.json()["sources"][0]["plan"]["remove"].as_array().unwrap().len();
    retention("{within: 1h}");
    for offset in ["+0d", "+400d", "-400d"] {
        assert_eq!(removed(at(&world, offset, &prune).expect(0)), 0, "a keeper at {offset} removes what is to stay");
    }
    assert_eq!(world.numbers("docs"), [1, 2, 3, 4, 5]);
    retention("{last: 2}");
    assert_eq!(removed(at(&world, "-400d", &prune).expect(0)), 0, "what is dated in the future is not judged");
    assert_eq!(removed(at(&world, "+400d", &prune).expect(0)), 3);
    assert_eq!(world.numbers("docs"), [4, 5]);
    // A keeper's clock that runs ahead does not end the grace period.
    assert!(world.objects("docs/packs").len() >= 5, "packs are gone before their time");
    world.assert_restores(4, &pictures[3]);
    world.assert_restores(5, &pictures[4]);
    world.assert_sound();
}

#[test]
fn a_clock_that_jumps_during_a_run_harms_nothing() {
    let world = World::local();
    for (number, jump) in (1_u64..).zip(["+400d", "-400d"]) {
        let script = format!(
            "head -c 3000000 /dev/zero; echo {jump} >'{}'; echo after {number}",
            world.path("offset").display()
        );
        let text = format!(
            "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: dump}}\n\
             spec:\n  command:\n    argv: [sh, -c, {}]\n    output: dump\n",
            serde_json::to_string(&script).unwrap()
        );
        world.document("source.yaml", &text);
        let ran = at(&world, "+0d", &["--writer-key", "writer.key", "backup", "dump", "--json"]).expect(0);
        assert_eq!(made(&ran).number, number);
        assert_eq!(fs::read_to_string(world.path("offset")).unwrap().trim(), jump);
        world.as_owner(&["export", "dump", "-o", "out"]).expect(0);
        let out = fs::read(world.path("out")).unwrap();
        assert!(out.len() > 3_000_000 && out.ends_with(format!("after {number}\n").as_bytes()));
        fs::remove_file(world.path("out")).unwrap();
    }
    world.assert_sound();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_refuses_a_wrong_clock_is_understood() {
    let minio = minio();
    let world = World::bucket(&bucket(&minio, "clock", Bucket::Locked).await, 1);
    world.file("a", "content");
    let expected = picture(&world.path("tree"));
    let ran = at(&world, "+2d", World::BACKUP);
    // Requests are signed with the date.
    ran.expect(1).says("RequestTimeTooSkewed");
    assert_eq!(world.backup().number, 1);
    world.assert_restores(1, &expected);
}
