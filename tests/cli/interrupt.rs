//! Commands that are interrupted or killed.

use crate::world::{DEADLINE, SLOW, World, finish};
use std::fs;
use std::time::{Duration, Instant};

#[test]
fn an_interrupt_ends_a_backup_cleanly() {
    let world = World::with_repository();
    world.script(SLOW);
    let (child, sleeper) = world.begin_slow_backup();
    let program = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(program, rustix::process::Signal::INT).unwrap();
    let ran = finish(child).expect(130);
    assert!(ran.err.contains("interrupted"), "{}", ran.err);
    let _ = rustix::process::kill_process(sleeper, rustix::process::Signal::KILL);
    assert!(world.manifests("dump").is_empty());
    assert_goes_on(&world);
}

#[test]
fn a_killed_backup_leaves_the_repository_whole() {
    let world = World::with_repository();
    world.script("echo whole");
    world.as_writer(&["--config", "source.yaml", "backup", "dump"]).expect(0);
    world.script(SLOW);
    let (mut child, sleeper) = world.begin_slow_backup();
    child.kill().unwrap();
    child.wait().unwrap();
    let _ = rustix::process::kill_process(sleeper, rustix::process::Signal::KILL);
    assert_eq!(world.manifests("dump").len(), 1);
    assert_eq!(world.as_owner(&["export", "dump", "-o", "-"]).expect(0).out, "whole\n");
    assert_goes_on(&world);
}

fn assert_goes_on(world: &World) {
    world.as_owner(&["verify", "--read-data"]).expect(0);
    world.script("echo after");
    world.as_writer(&["--config", "source.yaml", "backup", "dump"]).expect(0);
    assert_eq!(world.as_owner(&["export", "dump", "-o", "-"]).expect(0).out, "after\n");
}

#[test]
fn an_interrupted_restore_names_what_it_leaves() {
    let world = World::with_repository();
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    });
    fs::write(world.path("tree/noise"), noise.take(12 << 20).collect::<Vec<_>>()).unwrap();
    world.backup().expect(0);
    let url = format!("file://{}", world.path("repository").display());
    world.document(
        "slow.yaml",
        &format!(
            "apiVersion: lifeboat.dev/v1\nkind: Repository\nmetadata: {{name: slow}}\n\
             spec: {{url: '{url}', limits: {{download: 1MB}}}}\n"
        ),
    );
    let arguments = ["--config", "slow.yaml", "-r", "slow", "--identity", "kit.txt", "restore", "snapshot", "docs"];
    let child = world.command(&[&arguments[..], &["--to", "back"]].concat()).spawn().unwrap();
    let until = Instant::now() + DEADLINE;
    while !world.path("back/noise").exists() {
        assert!(Instant::now() < until, "the restore did not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    let ran = finish(child).expect(130);
    assert!(ran.err.contains("back is incomplete"), "{}", ran.err);
}
