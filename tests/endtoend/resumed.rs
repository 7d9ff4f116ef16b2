//! Restore plans that were stopped: killed, interrupted, on another machine, with a journal that somebody else wrote to,
//! without anybody at the terminal. What is judged is what is there when they have gone on.

use crate::endtoend::recovery::{plan, source};
use crate::support::command;
use crate::support::picture::{Picture, assert_same, picture};
use crate::support::world::{Ran, World, noise};
use std::fs;
use std::time::{Duration, Instant};

/// A plan that restores files alone, from `tree` into `out` and `out.tar`, and stops until there is a `proof`.
struct Plain {
    world: World,
    pictures: Picture,
}

impl Plain {
    fn new(steps: &str) -> Self {
        let world = World::local();
        for number in 1..=20 {
            world.file(&format!("{}/{number}", number % 3), format!("picture {number}"));
        }
        let files = source("pictures", &format!("files: {{path: {}}}", world.path("tree").display()));
        let at = |text: &str| text.replace("HOME", world.home.path().to_str().unwrap());
        world.document("plan.yaml", &(files + &plan("plain", "app", &at(steps))));
        world.as_writer(&["backup", "pictures"]).expect(0);
        let pictures = picture(&world.path("tree"));
        Self { world, pictures }
    }

    /// The id of the only restore.
    fn id(&self) -> String {
        let listed = self.world.as_owner(&["restore", "list", "--json"]).expect(0).json();
        listed["restores"][0]["id"].as_str().unwrap().to_owned()
    }

    fn resume(&self, more: &[&str]) -> Ran {
        self.world.as_owner(&[&["restore", "app", "--resume", &self.id()], more].concat())
    }
}

#[test]
fn a_restore_goes_on_at_every_record_on_a_machine_that_has_nothing() {
    let plain = Plain::new(
        "  - {name: hold, fence: {close: {command: [touch, HOME/closed]}, open: {command: [rm, '-f', HOME/closed]}}}\n  \
         - {name: pictures, restore: {source: pictures, to: HOME/out}}\n  \
         - {name: archive, restore: {source: pictures, export: HOME/out.tar}}\n  \
         - {name: proof, run: {command: [test, -e, HOME/proof]}}\n  \
         - {name: go, unfence: hold}\n  \
         - {name: seen, probe: {command: [test, -d, HOME/out/1]}}\n",
    );
    let world = &plain.world;
    world.as_owner(&["restore", "app", "plain"]).expect(1).says("the restore stopped at proof");
    let id = plain.id();
    fs::rename(world.path("state"), world.path("first")).unwrap();
    let records = world.path(format!("repository/_restores/{id}"));
    let mut all: Vec<_> = fs::read_dir(&records).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    let texts: Vec<_> = all.iter().map(|path| fs::read(path).unwrap()).collect();
    fs::write(world.path("proof"), "").unwrap();
    assert!(texts.len() >= 12, "{}", texts.len());
    for length in 1..=texts.len() {
        // It was killed after so many records, and the machine is lost.
        let _ = fs::remove_dir_all(world.path("state"));
        let _ = fs::remove_dir_all(world.path("out"));
        let _ = fs::remove_file(world.path("out.tar"));
        fs::remove_dir_all(&records).unwrap();
        fs::create_dir(&records).unwrap();
        for (path, text) in all.iter().zip(&texts).take(length) {
            fs::write(path, text).unwrap();
        }
        plain.resume(&["--dead", &id]).expect(0);
        assert_same(&picture(&world.path("out")), &plain.pictures, &format!("after {length} records"));
        assert!(fs::metadata(world.path("out.tar")).unwrap().len() > 0);
        assert!(!world.path("closed").exists());
    }
    // Somebody who can write to the bucket cannot keep this machine from going on.
    fs::remove_dir_all(world.path("state")).unwrap();
    fs::rename(world.path("first"), world.path("state")).unwrap();
    fs::remove_dir_all(&records).unwrap();
    fs::create_dir(&records).unwrap();
    fs::write(world.path("closed"), "").unwrap();
    fs::write(&all[0], "forged").unwrap();
    world.as_owner(&["restore", "app", "--abort", &id]).expect(0).says("is not believed");
    assert!(!world.path("closed").exists());
}

/// That what lies at a path may be overwritten was said of one machine.
#[test]
fn what_lies_at_the_path_on_another_machine_is_asked_for() {
    let plain = Plain::new(
        "  - {name: proof, run: {command: [test, -e, HOME/proof]}}\n  \
         - {name: pictures, restore: {source: pictures, to: HOME/out, options: {existing: replace}}}\n",
    );
    let world = &plain.world;
    let out = world.path("out").display().to_string();
    fs::create_dir(&out).unwrap();
    let may = ["--yes", "--target-id", &out];
    world.as_owner(&[&["restore", "app", "plain"], &may[..]].concat()).expect(1).says("the restore stopped at proof");
    fs::rename(world.path("state"), world.path("first")).unwrap();
    fs::write(world.path("out/theirs"), "another machine's").unwrap();
    fs::write(world.path("proof"), "").unwrap();
    plain.resume(&[]).expect(2).says(&format!("--target-id {out}"));
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
    plain.resume(&may).expect(0);
    assert_same(&picture(&world.path("out")), &plain.pictures, "the pictures");
    let aside = world.path(format!("out.before-{}-1", plain.id()));
    assert_eq!(fs::read_to_string(aside.join("theirs")).unwrap(), "another machine's");
}

/// What a machine is worth that somebody restores from, where nothing that agents reach can be reached.
#[test]
fn a_machine_is_ready_to_restore_or_says_why_not() {
    let plain = Plain::new(
        "  - {name: pictures, restore: {source: pictures, to: HOME/out}}\n  - {name: seen, probe: {command: [test, -d, HOME/out/1]}}\n",
    );
    let world = &plain.world;
    fs::remove_dir_all(world.path("tree")).unwrap();
    let objects = world.objects("");
    assert!(world.as_owner(&["doctor", "--read-only"]).expect(1).out.contains("FAILED  source pictures"));
    let ran = world.as_owner(&["doctor", "--restore"]).expect(0);
    assert!(ran.out.contains("ok      plan plain: what 1 of its 2 steps restore is there"), "{}", ran.out);
    let ran = world.as_writer(&["doctor", "--restore"]).expect(1);
    assert!(ran.out.contains("FAILED  keys: this needs the recovery identity"), "{}", ran.out);
    assert_eq!(world.objects(""), objects);
    for pack in world.objects("pictures/packs") {
        fs::remove_file(world.path("repository").join(pack)).unwrap();
    }
    let ran = world.as_owner(&["doctor", "--restore"]).expect(1);
    assert!(ran.out.contains("FAILED  plan plain: ") && ran.out.contains("pictures@1 lacks"), "{}", ran.out);
}

/// A step that cannot be done without a document is not found out behind a closed fence.
#[test]
fn a_document_that_is_left_out_since_stops_it_before_anything_is_done() {
    let plain = Plain::new(
        "  - {name: proof, run: {command: [sh, -c, 'echo once >>HOME/ran; test -e HOME/proof']}}\n  \
         - {name: pictures, restore: {source: pictures, to: HOME/out}}\n  \
         - {name: seen, probe: {source: pictures}}\n",
    );
    let world = &plain.world;
    world.as_owner(&["restore", "app", "plain"]).expect(1).says("the restore stopped at proof");
    fs::write(world.path("proof"), "").unwrap();
    let text = fs::read_to_string(world.path("config/plan.yaml")).unwrap();
    world.document("plan.yaml", &text.replacen("files:", "filse:", 1));
    let refused = plain.resume(&[]).expect(2);
    refused.says("there is no Source document named pictures; nothing was done").says("left out").says("plan.yaml:");
    assert_eq!(fs::read_to_string(world.path("ran")).unwrap(), "once\n");
    world.document("plan.yaml", &text);
    plain.resume(&[]).expect(0);
    assert_same(&picture(&world.path("out")), &plain.pictures, "the pictures");
}

#[test]
fn what_appears_in_the_meantime_is_not_moved_without_a_word() {
    let plain = Plain::new(
        "  - {name: somebody, run: {command: [mkdir, -p, HOME/out/theirs]}}\n  \
         - {name: pictures, restore: {source: pictures, to: HOME/out, options: {existing: replace}}}\n  \
         - {name: seen, probe: {command: [test, -d, HOME/out/1]}}\n",
    );
    let out = plain.world.path("out").display().to_string();
    let ran = plain.world.as_owner(&["restore", "app", "plain"]).expect(1);
    ran.says("nobody has confirmed").says(&format!("--target-id {out}"));
    assert!(plain.world.path("out/theirs").exists());
    plain.resume(&["--yes", "--target-id", &out]).expect(0);
    assert_same(&picture(&plain.world.path("out")), &plain.pictures, "the pictures");
}

#[test]
fn nothing_secret_is_told_and_nobody_has_to_listen() {
    let plain = Plain::new(
        "  - {name: pictures, restore: {source: pictures, to: HOME/out}}\n  \
         - {name: token, run: {command: [sh, -c, 'echo it is $TOKEN'], env: {TOKEN: {file: HOME/token}}}}\n  \
         - {name: proof, run: {command: [sh, -c, 'echo no $TOKEN >&2; test -e HOME/proof'], env: {TOKEN: {file: HOME/token}}}}\n",
    );
    let world = &plain.world;
    fs::write(world.path("token"), "hunter2\n").unwrap();
    let ran = world.as_owner(&["restore", "app", "plain", "--report", "reports"]).expect(1);
    let journal = fs::read_to_string(world.path(format!("state/lifeboat/restores/{}.jsonl", plain.id()))).unwrap();
    let report = fs::read_to_string(world.path(format!("reports/{}.md", plain.id()))).unwrap();
    for text in [&journal, &report, &ran.out, &ran.err] {
        assert!(text.contains("the value of TOKEN") && !text.contains("hunter2"), "{text}");
    }
    // Standard error is closed, as when a terminal went away.
    fs::write(world.path("proof"), "").unwrap();
    let resume = ["--identity", "kit.txt", "restore", "app", "--resume", &plain.id()];
    let mut child = world.program(&resume).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn an_export_and_a_question_end_in_time_and_hold_nobody_up() {
    let plain = Plain::new(
        "  - {name: archive, after: [], timeout: 2s, restore: {source: pictures, export: HOME/out.tar}}\n  \
         - {name: person, after: [], timeout: 2s, ask: 'Is the load balancer drained?'}\n  \
         - {name: other, after: [], run: {command: [touch, HOME/other]}}\n  \
         - {name: next, after: [other], run: {command: [touch, HOME/next]}}\n",
    );
    let world = &plain.world;
    let noise: Vec<u8> =
        (0..200_000u32).flat_map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[..10].to_vec()).collect();
    world.file("noise", noise);
    world.as_writer(&["backup", "pictures"]).expect(0);
    let slow = World::directory(&world.path("repository")) + "  limits: {download: 100KiB}\n";
    world.document("repository.yaml", &slow);
    // A terminal at which nobody types.
    let program = world.program(&["--identity", "kit.txt", "restore", "app", "plain"]);
    let words: Vec<_> = std::iter::once(program.get_program()).chain(program.get_args()).collect();
    let line = words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ");
    let mut script = command("script");
    script
        .args(["-qec", &line, "/dev/null"])
        .current_dir(world.home.path())
        .envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    script.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = script.spawn().unwrap();
    let keyboard = child.stdin.take();
    let ran = child.wait_with_output().unwrap();
    drop(keyboard);
    let shown = String::from_utf8_lossy(&ran.stdout);
    assert!(shown.contains("nobody answered within its timeout"), "{shown}");
    assert!(shown.contains("archive: FAILED: it did not end within its timeout"), "{shown}");
    assert_eq!(ran.status.code(), Some(1), "{shown}");
    // What does not follow the question did not wait for it.
    assert!(world.path("next").exists(), "{shown}");
}

#[test]
fn an_interrupted_export_goes_on_and_a_pruned_snapshot_is_not_replaced() {
    let plain = Plain::new(
        "  - {name: archive, restore: {source: pictures, export: HOME/out.tar}}\n  \
         - {name: proof, run: {command: [test, -e, HOME/proof]}}\n  \
         - {name: pictures, restore: {source: pictures, to: HOME/out}}\n",
    );
    let world = &plain.world;
    let noise: Vec<u8> =
        (0..400_000u32).flat_map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[..10].to_vec()).collect();
    world.file("noise", noise);
    world.as_writer(&["backup", "pictures"]).expect(0);
    let fast = World::directory(&world.path("repository"));
    world.document("repository.yaml", &(fast.clone() + "  limits: {download: 100KiB}\n"));
    let mut child = world.program(&["--identity", "kit.txt", "restore", "app", "plain"]).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_mins(1);
    let partial = |world: &World| {
        let names = fs::read_dir(world.home.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.into_iter().any(|name| name.to_str().unwrap().starts_with("out.tar.partial"))
    };
    while !partial(world) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(command("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    world.document("repository.yaml", &fast);
    plain.resume(&[]).expect(1).says("the restore stopped at proof");
    assert!(!partial(world) && world.path("out.tar").exists());

    // The snapshot that was chosen is pruned, and there is a newer one.
    let manifests = world.path("repository/pictures/snapshots");
    let old: Vec<_> = fs::read_dir(manifests).unwrap().map(|entry| entry.unwrap().path()).collect();
    world.file("1/new", "new");
    world.as_writer(&["backup", "pictures"]).expect(0);
    for path in old {
        fs::remove_file(path).unwrap();
    }
    fs::write(world.path("proof"), "").unwrap();
    plain.resume(&[]).expect(1).says("which the plan chose, is not in the repository any more");
    assert!(!world.path("out").exists());
}

/// What one machine has restored says nothing of what is at the same path of another.
#[test]
fn what_is_there_on_another_machine_is_not_taken_for_what_was_restored() {
    let plain = Plain::new(
        "  - {name: pictures, restore: {source: pictures, to: HOME/out, options: {existing: replace}}}\n  \
         - {name: proof, run: {command: [test, -e, HOME/proof]}}\n",
    );
    let world = &plain.world;
    let out = world.path("out").display().to_string();
    world.as_owner(&["restore", "app", "plain"]).expect(1).says("the restore stopped at proof");
    let id = plain.id();
    fs::rename(world.path("state"), world.path("first")).unwrap();
    fs::rename(world.path("out"), world.path("restored")).unwrap();
    fs::create_dir(world.path("out")).unwrap();
    fs::write(world.path("out/theirs"), "theirs").unwrap();
    fs::write(world.path("proof"), "").unwrap();
    plain.resume(&[]).expect(2).says("is not on this machine").says(&format!("--target-id {out}"));
    assert!(world.path("out/theirs").exists());
    plain.resume(&["--yes", "--target-id", &out]).expect(0);
    assert_same(&picture(&world.path("out")), &plain.pictures, "the pictures");
    assert!(world.path(format!("out.before-{id}-0/theirs")).exists());
}

#[test]
fn what_lacked_a_part_is_done_again_once_that_is_healed() {
    let plain =
        Plain::new("  - {name: pictures, restore: {source: pictures, to: HOME/out, options: {existing: replace}}}\n");
    let world = &plain.world;
    let out = world.path("out").display().to_string();
    let before = world.objects("pictures/packs");
    world.file("noise", noise(7, 300_000));
    world.as_writer(&["backup", "pictures"]).expect(0);
    let pack = world.objects("pictures/packs").into_iter().find(|pack| !before.contains(pack)).unwrap();
    // Among its frames: the content.
    world.tamper(&pack, |bytes| bytes[1000] ^= 4);
    world.as_owner(&["restore", "app", "plain"]).expect(3).says("(1 problems)");
    assert!(world.path("out/1").exists() && !world.path("out/noise").exists());
    world.tamper(&pack, |bytes| bytes[1000] ^= 4);
    // Systems may be at work by now: somebody has to say once more that what is there may go.
    plain.resume(&[]).expect(2).says("it is done again").says(&format!("--target-id {out}"));
    plain.resume(&["--yes", "--target-id", &out]).expect(0);
    assert_same(&picture(&world.path("out")), &picture(&world.path("tree")), "the pictures");
    plain.resume(&[]).expect(2).says("is complete");
}
