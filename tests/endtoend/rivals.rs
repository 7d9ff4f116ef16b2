//! Two restores at once: of the same plan, of plans that share a target, on one machine and on two.

use crate::endtoend::recovery::{plan, source};
use crate::support::world::{Ran, World, finish, kill};
use crate::support::{Bucket, bucket, command, minio, versitygw};
use std::fs;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// A plan that waits for a `proof`, one of the same target, and one of another.
fn world() -> World {
    prepared(World::local())
}

fn prepared(world: World) -> World {
    for number in 1..=20 {
        world.file(&format!("{number}"), format!("picture {number}"));
    }
    let home = world.home.path().display().to_string();
    let waits = "touch HOME/began-$$; until test -e HOME/proof; do sleep 0.1; done".replace("HOME", &home);
    let pictures = |to: &str| format!("restore: {{source: pictures, to: {home}/{to}}}");
    let documents = [
        source("pictures", &format!("files: {{path: {}}}", world.path("tree").display())),
        plan(
            "waits",
            "app",
            &format!(
                "  - {{name: wait, run: {{command: [sh, -c, '{waits}']}}}}\n  - {{name: pictures, {}}}\n",
                pictures("out")
            ),
        ),
        "---\n".into(),
        plan("shares", "app", &format!("  - {{name: pictures, {}}}\n", pictures("out"))),
        "---\n".into(),
        plan("other", "app", &format!("  - {{name: pictures, {}}}\n", pictures("elsewhere"))),
        "---\n".into(),
        plan(
            "alone",
            "app",
            &format!(
                "  - {{name: only, run: {{command: [sh, -c, 'mkdir {home}/only && sleep 0.3 && rmdir {home}/only']}}}}\n"
            ),
        ),
    ];
    world.document("plans.yaml", &documents.concat());
    world.as_writer(&["backup", "pictures"]).expect(0);
    world
}

/// The program on a machine that has nothing but the documents and the kit.
fn on(world: &World, machine: &str, arguments: &[&str]) -> Command {
    let mut program = world.program(&[&["--identity", "kit.txt"], arguments].concat());
    program.env("XDG_STATE_HOME", world.path(machine));
    program
}

fn run(world: &World, machine: &str, arguments: &[&str]) -> Ran {
    finish(on(world, machine, arguments).spawn().unwrap())
}

/// Begins the plan that waits, and waits until it does.
fn begun(world: &World, machine: &str) -> (Child, String) {
    let began = |world: &World| {
        let names = fs::read_dir(world.home.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.into_iter().filter(|name| name.to_str().unwrap().starts_with("began-")).count()
    };
    let before = began(world);
    let child = on(world, machine, &["restore", "app", "waits"]).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_mins(1);
    while began(world) == before {
        assert!(Instant::now() < deadline, "the plan was not begun");
        std::thread::sleep(Duration::from_millis(20));
    }
    let journals = fs::read_dir(world.path(machine).join("lifeboat/restores")).unwrap();
    let names = journals.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let id =
        names.filter_map(|name| name.strip_suffix(".jsonl").filter(|id| id.starts_with("waits-")).map(str::to_owned));
    (child, id.max().unwrap())
}

#[test]
fn what_somebody_is_at_is_refused() {
    let world = world();
    let (child, id) = begun(&world, "here");
    for (machine, says) in [("here", "by another process of this machine"), ("there", "on another machine")] {
        for arguments in [
            &["restore", "app", "waits"][..],
            &["restore", "app", "shares"],
            &["restore", "app", "--resume", &id],
            &["restore", "app", "--abort", &id],
        ] {
            run(&world, machine, arguments).expect(11).says(&format!("restore {id} is being carried out {says}"));
        }
        let listed = run(&world, machine, &["restore", "list"]).expect(0).out;
        assert!(listed.contains(&id) && listed.contains(says), "{listed}");
        run(&world, machine, &["restore", "app", "shares"]).expect(11).says("/out too");
    }
    run(&world, "there", &["restore", "app", "shares"]).expect(11).says(&format!("--dead {id}"));
    // A process that lives is not dead, whatever is said.
    run(&world, "here", &["restore", "app", "shares", "--dead", &id]).expect(11);
    assert!(!world.path("out").exists());
    run(&world, "there", &["restore", "app", "other"]).expect(0);
    fs::write(world.path("proof"), "").unwrap();
    finish(child).expect(0);
    assert!(world.path("out/1").exists());
    // What has ended holds nobody up, and what was refused cannot be gone on with.
    fs::rename(world.path("out"), world.path("first")).unwrap();
    run(&world, "there", &["restore", "app", "shares"]).expect(0);
    let listed = run(&world, "there", &["restore", "list", "--json"]).expect(0).json();
    let states: Vec<_> =
        listed["restores"].as_array().unwrap().iter().map(|one| one["state"].as_str().unwrap()).collect();
    assert_eq!(states.iter().filter(|state| **state == "complete").count(), 3, "{listed}");
    assert!(states.iter().all(|state| ["complete", "given up"].contains(state)), "{listed}");
}

#[test]
fn a_machine_that_is_gone_holds_nobody_up_for_long() {
    let world = world();
    // It was killed here: this machine knows that at once.
    let (child, id) = begun(&world, "here");
    kill(child);
    run(&world, "there", &["restore", "app", "shares"]).expect(11).says("last heard of");
    run(&world, "here", &["restore", "app", "shares"]).expect(0);
    fs::rename(world.path("out"), world.path("first")).unwrap();
    // By the store's clock it has been silent for three minutes: nobody has to say anything.
    for record in fs::read_dir(world.path(format!("repository/_restores/{id}"))).unwrap() {
        let file = fs::File::options().write(true).open(record.unwrap().path()).unwrap();
        file.set_modified(file.metadata().unwrap().modified().unwrap() - Duration::from_mins(3)).unwrap();
    }
    run(&world, "there", &["restore", "app", "shares"]).expect(0).says("is taken to be dead");
    fs::rename(world.path("out"), world.path("again")).unwrap();
    // Sooner, it takes a person's word; that it lives after all is noticed where it lives.
    let (child, second) = begun(&world, "here");
    run(&world, "there", &["restore", "app", "shares", "--dead", &id]).expect(11).says(&second);
    run(&world, "there", &["restore", "app", "shares", "--dead", &id, "--dead", &second])
        .expect(0)
        .says("is taken to be dead");
    finish(child).expect(1).says("is being carried out elsewhere");
    // It stopped in order, and can be gone on with from anywhere.
    fs::rename(world.path("out"), world.path("second")).unwrap();
    fs::write(world.path("proof"), "").unwrap();
    run(&world, "there", &["restore", "app", "--resume", &second]).expect(0);
    assert!(world.path("out/1").exists());
}

/// One that was stopped must not be gone on with, nor its fences be opened, while another is at work.
#[test]
fn what_was_stopped_stays_so_while_another_is_at_work() {
    let world = world();
    let (mut child, first) = begun(&world, "here");
    assert!(command("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    // Stopped in order, it holds nobody up, wherever.
    let (child, second) = begun(&world, "there");
    for machine in ["here", "there", "elsewhere"] {
        for what in ["--resume", "--abort"] {
            run(&world, machine, &["restore", "app", what, &first])
                .expect(11)
                .says(&format!("restore {second} is being"));
        }
    }
    fs::write(world.path("proof"), "").unwrap();
    finish(child).expect(0);
    run(&world, "elsewhere", &["restore", "app", "--abort", &first]).expect(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_tells_machines_of_each_other() {
    let (minio, versitygw) = (minio(), versitygw(true));
    for (store, kind) in [(&minio, Bucket::Locked), (&versitygw, Bucket::Plain)] {
        let world = prepared(World::bucket(&bucket(store, "restores", kind).await, 1));
        let (child, id) = begun(&world, "here");
        run(&world, "there", &["restore", "app", "waits"]).expect(11).says(&format!("--dead {id}"));
        run(&world, "there", &["restore", "app", "shares", "--dead", &id]).expect(0);
        finish(child).expect(1).says("is being carried out elsewhere");
        let alone = ["restore", "app", "alone"];
        for _ in 0..2 {
            let both = ["here", "there"].map(|machine| on(&world, machine, &alone).spawn().unwrap()).map(finish);
            assert!(both.iter().all(|ran| [0, 11].contains(&ran.code)), "{} {}", both[0].err, both[1].err);
        }
        run(&world, "there", &alone).expect(0);
    }
}

#[test]
fn of_two_that_begin_at_the_same_moment_one_gives_way() {
    let world = world();
    let alone = ["restore", "app", "alone"];
    for (machines, at_least) in [(["here", "here"], 1), (["here", "there"], 0)] {
        for _ in 0..4 {
            let both = machines.map(|machine| on(&world, machine, &alone).spawn().unwrap());
            let both = both.map(finish);
            // The step itself fails if another is at it.
            assert!(both.iter().all(|ran| [0, 11].contains(&ran.code)), "{} {}", both[0].err, both[1].err);
            assert!(both.iter().filter(|ran| ran.code == 0).count() >= at_least, "{} {}", both[0].err, both[1].err);
        }
    }
    run(&world, "there", &alone).expect(0);
}
