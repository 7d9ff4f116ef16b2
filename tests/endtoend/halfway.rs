//! What a restore that does not reach its end leaves behind: processes, stages, things moved aside. And what keeps it from
//! beginning, because it would stop half-way: mount points.

use crate::endtoend::recovery::{plan, source};
use crate::support::command;
use crate::support::picture::{assert_same, picture};
use crate::support::world::{Ran, World, finish, kill, noise};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

fn world(steps: &str) -> World {
    let world = World::local();
    for number in 1..=20 {
        world.file(&format!("{}/{number}", number % 3), format!("picture {number}"));
    }
    let files = source("pictures", &format!("files: {{path: {}}}", world.path("tree").display()));
    let steps = steps.replace("HOME", world.home.path().to_str().unwrap());
    world.document("plan.yaml", &(files + &plan("plain", "app", &steps)));
    world.as_writer(&["backup", "pictures"]).expect(0);
    world
}

fn out(world: &World) -> String {
    world.path("out").display().to_string()
}

fn confirmed<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["--identity", "kit.txt", "restore", "app", "plain", "--yes", "--target-id", out], more].concat()
}

/// In mounts of its own, which `prepare` makes and which go with it; `after` sees what became of them.
fn with_mounts(world: &World, prepare: &str, after: &str, arguments: &[&str]) -> Ran {
    let program = world.program(arguments);
    let script = format!("set -e; {prepare}; code=0; \"$@\" || code=$?; {after}; exit $code");
    let mut unshare = command("unshare");
    unshare.args(["--mount", "sh", "-c", &script, "sh"]).arg(program.get_program()).args(program.get_args());
    unshare.current_dir(world.home.path()).env_clear();
    unshare.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    unshare
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    finish(unshare.spawn().unwrap())
}

/// Names in a directory, hidden ones too.
fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_mount_point_below_the_target_is_seen_before_anything_is_touched() {
    let world = world(
        "  - {name: somebody, run: {command: [sh, -c, 'test ! -e HOME/late || mount -t tmpfs none HOME/out/inner']}}\n  \
         - {name: pictures, restore: {source: pictures, to: HOME/out, options: {existing: replace}}}\n",
    );
    fs::create_dir_all(world.path("out/deep/inner")).unwrap();
    fs::create_dir_all(world.path("out/inner")).unwrap();
    fs::write(world.path("out/old"), "old").unwrap();
    let before = names(&world.path("out"));
    let out = out(&world);
    let arguments = confirmed(&out, &[]);
    // Another file system, the same one bound there, one further down, and a file.
    for mount in [
        "mount -t tmpfs none out/inner",
        "mount --bind tree out/inner",
        "mount -t tmpfs none out/deep/inner",
        "mount --bind tree/1/1 out/old",
    ] {
        let ran = with_mounts(&world, mount, "true", &arguments).expect(2);
        ran.says("pictures would not be done").says("is a mount point");
        assert_eq!(names(&world.path("out")), before, "{mount}");
    }
    // One that appears when the plan is under way.
    fs::write(world.path("late"), "").unwrap();
    with_mounts(&world, "true", "true", &arguments)
        .expect(1)
        .says("the restore stopped at pictures")
        .says("out/inner is a mount point");
    assert_eq!(names(&world.path("out")), before);
    fs::remove_file(world.path("late")).unwrap();
    // The target itself may be one.
    let pictures = picture(&world.path("tree"));
    let ran = with_mounts(&world, "mount -t tmpfs none out; echo old >out/old", "cp -a out seen", &arguments);
    ran.expect(0);
    let aside: Vec<_> =
        names(&world.path("seen")).into_iter().filter(|name| name.starts_with(".lifeboat-before-")).collect();
    assert_eq!(aside.len(), 1, "{aside:?}");
    assert_eq!(names(&world.path("seen").join(&aside[0])), ["old"]);
    fs::remove_dir_all(world.path("seen").join(&aside[0])).unwrap();
    let mut seen = picture(&world.path("seen"));
    let mut pictures = pictures;
    // The time of the root is that of the copy.
    seen.retain(|path, _| !path.as_os_str().is_empty());
    pictures.retain(|path, _| !path.as_os_str().is_empty());
    assert_same(&seen, &pictures, "the pictures");
}

#[test]
fn what_is_given_up_leaves_the_target_as_it_was() {
    let world = world(
        "  - {name: hold, fence: {close: {command: [touch, HOME/closed]}, open: {command: [rm, '-f', HOME/closed]}}}\n  \
         - {name: pictures, after: [hold], restore: {source: pictures, to: HOME/out, options: {existing: replace}}}\n  \
         - {name: archive, after: [hold], restore: {source: pictures, export: HOME/out.tar}}\n",
    );
    world.file("noise", noise(3, 4 << 20));
    world.as_writer(&["backup", "pictures"]).expect(0);
    fs::create_dir(world.path("out")).unwrap();
    fs::write(world.path("out/old"), "old").unwrap();
    let fast = World::directory(&world.path("repository"));
    world.document("repository.yaml", &(fast.clone() + "  limits: {download: 100KiB}\n"));
    let target = out(&world);
    let child = world.program(&confirmed(&target, &[])).spawn().unwrap();
    let half = |world: &World| {
        let staged = names(&world.path("out")).iter().any(|name| name.starts_with(".lifeboat-"));
        staged && names(world.home.path()).iter().any(|name| name.starts_with("out.tar.partial-"))
    };
    let deadline = Instant::now() + Duration::from_mins(1);
    while !half(&world) {
        assert!(Instant::now() < deadline, "nothing is being restored");
        std::thread::sleep(Duration::from_millis(20));
    }
    kill(child);
    assert!(half(&world) && world.path("closed").exists());
    world.document("repository.yaml", &fast);
    let listed = world.as_owner(&["restore", "list", "--json"]).expect(0).json();
    let id = listed["restores"][0]["id"].as_str().unwrap();
    assert!(world.as_owner(&["restore", "list"]).expect(0).out.contains("nobody: --resume or --abort"));
    let ran = world.as_owner(&["restore", "app", "--abort", id]).expect(0);
    ran.says("pictures: given up").says("archive: given up");
    assert_eq!(names(&world.path("out")), ["old"]);
    assert!(!names(world.home.path()).iter().any(|name| name.starts_with("out.tar")));
    assert!(!world.path("closed").exists());
    // It can be begun anew.
    world.run(&confirmed(&target, &[])).expect(0);
    assert_same(&picture(&world.path("out")), &picture(&world.path("tree")), "the pictures");
}

/// Fences hold production down: neither a bucket that has gone nor a target that cannot be cleared keeps them closed for good.
#[test]
fn fences_are_opened_without_the_bucket_and_behind_what_cannot_be_cleared() {
    let fence = |name: &str| {
        let (close, open) = (format!("[touch, HOME/{name}]"), format!("[rm, '-f', HOME/{name}]"));
        format!("  - {{name: {name}, fence: {{close: {{command: {close}}}, open: {{command: {open}}}}}}}\n")
    };
    let pictures = "  - {name: pictures, after: [hold], restore: {source: pictures, to: HOME/out}}\n";
    let world = world(&(fence("hold") + &fence("other") + pictures));
    world.file("noise", noise(3, 4 << 20));
    world.as_writer(&["backup", "pictures"]).expect(0);
    world
        .document("repository.yaml", &(World::directory(&world.path("repository")) + "  limits: {download: 100KiB}\n"));
    let child = world.program(&["--identity", "kit.txt", "restore", "app", "plain"]).spawn().unwrap();
    let staged = || {
        let out = world.path("out");
        out.exists() && names(&out).iter().any(|name| name.starts_with(".lifeboat-"))
    };
    let deadline = Instant::now() + Duration::from_mins(1);
    while !(staged() && world.path("hold").exists() && world.path("other").exists()) {
        assert!(Instant::now() < deadline, "nothing is being restored");
        std::thread::sleep(Duration::from_millis(20));
    }
    kill(child);
    fs::rename(world.path("repository"), world.path("away")).unwrap();
    let listed = world.as_owner(&["restore", "list"]).expect(10);
    assert!(listed.out.contains("nobody here"), "{}", listed.out);
    let id = listed.out.split_whitespace().find(|word| word.starts_with("plain-")).unwrap();
    let abort = ["--identity", "kit.txt", "restore", "app", "--abort", id];
    // Somebody may be at it on a machine that does reach the bucket.
    world.run(&abort).expect(10).says(&format!("--abort {id} --dead {id}"));
    assert!(world.path("hold").exists() && world.path("other").exists());
    let mount = "for d in out/.lifeboat-*; do mkdir -p $d/m; mount -t tmpfs none $d/m; done";
    let alone = [&abort[..], &["--dead", id]].concat();
    let ran = with_mounts(&world, mount, "true", &alone).expect(1);
    ran.says("this machine's journal counts").says("--answer pictures").says("still held back: hold");
    assert!(world.path("hold").exists() && !world.path("other").exists(), "only what nothing half restored is behind");
    let ran = with_mounts(&world, mount, "true", &[&alone[..], &["--answer", "pictures"]].concat()).expect(0);
    ran.says("pictures: given up; it stays as it is");
    assert!(!world.path("hold").exists());
    fs::rename(world.path("away"), world.path("repository")).unwrap();
    assert!(world.as_owner(&["restore", "list"]).expect(0).out.contains("given up"));
}

#[test]
fn what_a_killed_restore_had_started_ends_with_it() {
    let script = "sleep 1000 & echo $! >HOME/pid; wait";
    let world = world(&format!("  - {{name: program, run: {{command: [sh, -c, '{script}']}}}}\n"));
    for signal in ["-KILL", "-INT"] {
        let mut child = world.program(&["--identity", "kit.txt", "restore", "app", "plain"]).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_mins(1);
        let until = |done: &dyn Fn() -> bool, what: &str| {
            while !done() {
                assert!(Instant::now() < deadline, "{what}");
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        let pid = || fs::read_to_string(world.path("pid")).ok().filter(|text| text.ends_with('\n'));
        until(&|| pid().is_some(), "the program was not started");
        let sleeper = Path::new("/proc").join(pid().unwrap().trim());
        assert!(sleeper.exists());
        assert!(command("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        child.wait().unwrap();
        // Until its parent's heir has waited for it, it is there as a zombie.
        let lives = || fs::read_to_string(sleeper.join("status")).is_ok_and(|text| !text.contains("State:\tZ"));
        until(&|| !lives(), "what the restore had started runs on");
        fs::remove_file(world.path("pid")).unwrap();
    }
    // A program that is not there, one that fails and one that is killed are told apart.
    for (program, says) in [
        ("no-such-program", "is it installed, and on the PATH"),
        ("sh, -c, exit 7", "sh failed with exit status 7"),
        ("sh, -c, kill -9 $$", "sh failed with exit status 137"),
    ] {
        let steps = format!("  - {{name: program, run: {{command: [{program}]}}}}\n");
        world.document("plan.yaml", &plan("plain", "app", &steps));
        world.as_owner(&["restore", "app", "plain"]).expect(1).says(says);
    }
}
