//! Captures that fail, are incomplete or look wrong.

use crate::world::{Ran, World, finish};
use serde_json::Value;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[test]
fn one_failing_source_does_not_keep_the_others_from_being_safe() {
    let world = World::with_repository();
    world.script("echo whole");
    let failing = fs::read_to_string(world.path("source.yaml")).unwrap();
    let failing = failing.replace("name: dump", "name: broken").replace("echo whole", "echo half; exit 1");
    world.document("other.yaml", &failing);
    let both = ["--writer-key", "writer.key", "--config", "source.yaml", "--config", "other.yaml", "backup", "--all"];
    let report = world.run(&[&both[..], &["--json"]].concat()).expect(3).json();
    assert_eq!(report["backups"][0]["source"], "broken");
    assert!(report["backups"][0]["error"].is_string(), "{report}");
    assert_eq!(report["backups"][1]["number"], 1);
    assert!(world.manifests("broken").is_empty());
    let text = world.run(&both).expect(3);
    assert!(text.err.contains("broken") && text.out.contains("dump@2: 1 entry,"), "{} {}", text.err, text.out);
    let lines = world.run(&[&["--log-format", "json"], &both[..]].concat()).expect(3).err;
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|line| line["level"] == "error" && line["source"] == "broken"), "{lines:?}");
}

/// Rows before the files that they name, although both could be captured at once, and although the first named waits.
#[test]
fn a_source_is_captured_after_those_it_names() {
    let world = World::with_repository();
    let source = |name: &str, script: &str, after: &str| {
        format!(
            "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: {name}}}\nspec:\n  command: {{argv: [sh, -c, '{script}'], \
             output: out}}\n  captureAfter: [{after}]\n---\n"
        )
    };
    let marker = world.path("marker");
    let marker = marker.display();
    let both = source("files", &format!("cat {marker}"), "rows")
        + &source("rows", &format!("sleep 1; echo captured | tee {marker}"), "");
    world.document("both.yaml", &both);
    let backup = ["--writer-key", "writer.key", "--config", "both.yaml", "backup", "files", "rows", "--parallel"];
    for parallel in ["2", "1"] {
        let _ = fs::remove_file(world.path("marker"));
        world.run(&[&backup[..], &[parallel]].concat()).expect(0);
    }
    // Whatever becomes of the first, the second is captured.
    world.document("both.yaml", &both.replace("sleep 1; ", "exit 1; "));
    world.run(&[&backup[..], &["2"]].concat()).expect(3);
    assert_eq!((world.manifests("files").len(), world.manifests("rows").len()), (3, 2));
}

/// A volume's CronJob is a run of its own, and waits for that of the rows.
#[test]
fn a_run_waits_for_what_another_run_of_its_schedule_captures_first() {
    let world = World::with_repository();
    let source = |name: &str, script: &str, more: &str| {
        format!(
            "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: {name}}}\nspec:\n  command: {{argv: [sh, -c, '{script}'], \
             output: out}}\n{more}---\n"
        )
    };
    let marker = world.path("marker");
    let marker = marker.display();
    let url = world.path("repository");
    let url = url.display();
    let documents =
        format!("apiVersion: lifeboat.dev/v1\nkind: Repository\nmetadata: {{name: main}}\nspec: {{url: {url}}}\n---\n")
            + &source("files", &format!("cat {marker}"), "  captureAfter: [rows]\n")
            + &source("rows", &format!("echo captured | tee {marker}"), "")
            + "apiVersion: lifeboat.dev/v1\nkind: Schedule\nmetadata: {name: yearly}\nspec:\n  repository: main\n  \
           tier: standard\n  cron: '@yearly'\n  maxDuration: 10m\n  sources: [rows, files]\n";
    world.document("both.yaml", &documents);
    let backup = ["--writer-key", "writer.key", "-v", "--config", "both.yaml", "backup", "--schedule", "yearly"];
    let mut waiting = world.command(&[&backup[..], &["files"]].concat()).spawn().unwrap();
    let mut line = String::new();
    let mut said = BufReader::new(waiting.stderr.take().unwrap());
    while !line.contains("waiting until another run") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "it did not wait");
    }
    world.run(&[&backup[..], &["rows"]].concat()).expect(0);
    assert!(waiting.wait().unwrap().success());
    // They are there for this turn.
    let again = world.run(&[&backup[..], &["files"]].concat()).expect(0);
    assert!(!again.err.contains("waiting"), "{}", again.err);
}

#[test]
fn an_empty_capture_is_a_failure_and_commits_nothing() {
    let world = World::with_repository();
    fs::create_dir(world.path("empty")).unwrap();
    let empty = world.as_writer(&["backup", "--files", "empty", "--name", "docs"]).expect(1);
    assert!(empty.err.starts_with("error: "), "{}", empty.err);
    world.as_writer(&["backup", "--files", "nowhere", "--name", "docs"]).expect(1);
    assert!(world.manifests("docs").is_empty());
}

#[test]
fn what_changes_while_it_is_read_makes_an_incomplete_snapshot() {
    let world = World::with_repository();
    let busy = world.path("tree/busy");
    fs::write(&busy, vec![1; 64 << 20]).unwrap();
    let mut file = fs::OpenOptions::new().append(true).open(&busy).unwrap();
    let done = AtomicBool::new(false);
    let ran = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                file.write_all(b"more").unwrap();
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let ran = world.backup();
        done.store(true, Ordering::Relaxed);
        ran
    });
    let report = ran.expect(3).json();
    assert_eq!(report["backups"][0]["state"], "incomplete");
    assert_eq!(report["backups"][0]["problems"][0]["path"], "busy");
    // The rest is safe, and both know.
    let shown = world.as_owner(&["show", "docs", "--json"]).expect(0).json();
    assert_eq!(shown["problemList"][0]["path"], "busy");
    world.as_owner(&["restore", "snapshot", "docs", "--to", "back", "sub"]).expect(0);
    assert_eq!(fs::read(world.path("back/sub/b")).unwrap(), vec![7; 300_000]);
}

#[test]
fn what_shrank_goes_to_quarantine() {
    let world = World::with_repository();
    for number in 0..40 {
        fs::write(world.path(&format!("tree/f{number}")), "x").unwrap();
    }
    world.backup().expect(0);
    for number in 0..39 {
        fs::remove_file(world.path(&format!("tree/f{number}"))).unwrap();
    }
    let report = world.backup().expect(3).json();
    assert_eq!(report["backups"][0]["state"], "quarantined");
    // `latest` is the one before.
    assert_eq!(world.as_owner(&["show", "docs", "--json"]).expect(0).json()["number"], 1);
    let status = world.as_writer(&["status"]).expect(0);
    assert!(status.out.contains("snapshot 2 is in quarantine: it has"), "{}", status.out);
}

#[test]
fn what_was_made_smaller_on_purpose_is_accepted_by_name_and_once() {
    let world = World::with_repository();
    let keep = |wanted: usize| {
        let _ = fs::remove_dir_all(world.path("tree/many"));
        fs::create_dir(world.path("tree/many")).unwrap();
        for number in 0..wanted {
            fs::write(world.path("tree/many").join(number.to_string()), "x").unwrap();
        }
    };
    let accept =
        |what: &str| world.as_writer(&["backup", "--files", "tree", "--name", "docs", "--json", "--accept", what]);
    keep(200);
    world.backup().expect(0);
    accept("docs@1").expect(2);
    keep(80);
    let told = world.as_writer(&["backup", "--files", "tree", "--name", "docs"]).expect(3);
    let command = "lifeboat backup docs --accept docs@2";
    assert!(told.out.contains(command) && told.err.is_empty(), "{} {}", told.out, told.err);
    assert!(world.as_writer(&["status"]).expect(0).out.contains(command));
    assert!(world.as_writer(&["show", "docs@2"]).expect(0).out.contains(command));
    // It says what it is about, and no schedule's order can.
    for (wrong, says) in [("docs@1", "not in quarantine"), ("other@2", "not about what is to be backed up")] {
        let refused = accept(wrong).expect(2);
        assert!(refused.err.contains(says), "{}", refused.err);
    }
    assert_eq!(accept("docs@7").expect(1).out, "");
    world.as_writer(&["backup", "--accept", "docs@2", "--all"]).expect(2);
    assert_eq!(world.manifests("docs").len(), 2);
    // Smaller still: that is not what was looked at.
    keep(30);
    let smaller = accept("docs@2").expect(3).json()["backups"][0].clone();
    assert_eq!(smaller["state"], "quarantined");
    assert!(smaller["reasons"][0].as_str().unwrap().contains("not as snapshot 2, which was accepted"), "{smaller}");
    keep(80);
    let accepted = accept("docs@2").expect(0).json()["backups"][0].clone();
    assert_eq!((&accepted["state"], &accepted["number"]), (&"good".into(), &4.into()));
    let shown = world.as_owner(&["show", "docs", "--json"]).expect(0).json();
    assert_eq!(shown["number"], 4);
    assert!(shown["facts"]["details"]["accepted"].as_str().unwrap().starts_with("as snapshot 2: it has "), "{shown}");
    // The same order again, from a shell's history: it accepts nothing more.
    let again = accept("docs@2").expect(2);
    assert!(again.err.contains("snapshot 4 came after it"), "{}", again.err);
    // From here on, that is the base.
    assert_eq!(world.backup().expect(0).json()["backups"][0]["facts"]["details"]["accepted"], Value::Null);
    keep(20);
    assert_eq!(world.backup().expect(3).json()["backups"][0]["state"], "quarantined");
}

/// As a Job made from the CronJob of a schedule does it: of the schedule's sources, the one is captured.
#[test]
fn a_schedules_order_with_an_acceptance_concerns_that_source() {
    let world = World::with_repository();
    let source = |name: &str| {
        format!(
            "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: {name}}}\nspec: {{files: {{path: {}}}}}\n---\n",
            world.path("tree").display()
        )
    };
    let documents = format!(
        "apiVersion: lifeboat.dev/v1\nkind: Repository\nmetadata: {{name: main}}\nspec: {{url: {}}}\n---\n{}{}\
         apiVersion: lifeboat.dev/v1\nkind: Schedule\nmetadata: {{name: yearly}}\nspec: {{repository: main, tier: standard, \
         cron: '@yearly', maxDuration: 10m, sources: [docs, other]}}\n",
        world.path("repository").display(),
        source("docs"),
        source("other"),
    );
    world.document("both.yaml", &documents);
    let backup =
        |more: &[&str]| world.as_writer(&[&["--config", "both.yaml", "backup", "--schedule", "yearly"], more].concat());
    backup(&[]).expect(0);
    for file in ["tree/a", "tree/sub/link", "tree/sub/b"] {
        fs::write(world.path(file), "").unwrap();
    }
    backup(&[]).expect(3);
    let told = backup(&["other", "--accept", "docs@2"]).expect(2);
    assert!(told.err.contains("not about what is to be backed up"), "{}", told.err);
    // As the CronJob of a schedule has it whose volumes have others.
    backup(&["docs", "other", "--accept", "docs@2"]).expect(0);
    assert_eq!((world.manifests("docs").len(), world.manifests("other").len()), (3, 2));
    let told = backup(&["--accept", "docs@3"]).expect(2);
    assert!(told.err.contains("not in quarantine"), "{}", told.err);
}

/// Without any capability, so that the superuser, too, may not read what a file's mode forbids.
#[expect(clippy::disallowed_methods, reason = "the tests start the program itself")]
fn run_without_capabilities(program: &std::process::Command) -> Ran {
    let mut command = std::process::Command::new("setpriv");
    if rustix::process::geteuid().is_root() {
        command.args(["--bounding-set=-all", "--inh-caps=-all"]);
    }
    command
        .arg("--")
        .arg(program.get_program())
        .args(program.get_args())
        .current_dir(program.get_current_dir().unwrap());
    command.env_clear().envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    finish(command.spawn().unwrap())
}

#[test]
fn what_lost_all_its_contents_is_not_the_newest() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::with_repository();
    let backup = ["--writer-key", "writer.key", "backup", "--files", "tree", "--name", "docs", "--json"];
    let why = |ran: &Ran| ran.json()["backups"][0]["reasons"].to_string();
    world.backup().expect(0);

    // Nothing can be read.
    let files = ["tree/a", "tree/sub/b"].map(|name| world.path(name));
    for file in &files {
        fs::set_permissions(file, fs::Permissions::from_mode(0o000)).unwrap();
    }
    let unread = run_without_capabilities(&world.command(&backup)).expect(3);
    assert!(why(&unread).contains("it is empty, it had 2 objects"), "{}", unread.out);
    for file in &files {
        fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
    }
    // All are there, and empty.
    let kept = files.each_ref().map(|file| fs::read(file).unwrap());
    for file in &files {
        fs::write(file, "").unwrap();
    }
    assert!(why(&world.backup().expect(3)).contains("there is nothing in it"));
    for (file, content) in files.iter().zip(kept) {
        fs::write(file, content).unwrap();
    }
    assert_eq!(world.as_owner(&["show", "docs", "--json"]).expect(0).json()["number"], 1);
    world.backup().expect(0);
    assert_eq!(world.as_owner(&["show", "docs", "--json"]).expect(0).json()["number"], 4);
}

#[test]
fn a_source_that_was_never_captured_is_missed_and_no_flaw_of_the_repository() {
    let world = World::with_repository();
    world.backup().expect(0);
    world.as_writer(&["backup", "--files", "/nonexistent", "--name", "never"]).expect(1);
    world.as_owner(&["kit", "check"]).expect(0);
    assert!(!world.as_writer(&["status"]).expect(0).out.contains("never"));
    let text =
        "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {name: never}\nspec: {files: {path: /nonexistent}}\n";
    world.document("source.yaml", text);
    let status = world.run(&["--writer-key", "writer.key", "--config", "source.yaml", "status"]).expect(4);
    assert!(status.out.contains("never"), "{}", status.out);
    // A document's name is no name for another directory.
    let other =
        ["--writer-key", "writer.key", "--config", "source.yaml", "backup", "--files", "tree", "--name", "never"];
    assert!(world.run(&other).expect(2).err.contains("a Source document is named never already"));
}

#[test]
fn a_place_that_holds_something_becomes_no_repository() {
    let world = World::with_repository();
    world.backup().expect(0);
    let root = world.path("repository/lifeboat.json");
    let kept = fs::read(&root).unwrap();
    fs::remove_file(&root).unwrap();
    let lost = world.as_owner(&["snapshots"]).expect(10);
    assert!(lost.err.contains("--repair-from"), "{}", lost.err);
    let refused = world.run(&["init", "--kit", "second.txt"]).expect(1);
    assert!(
        refused.err.contains("holds something already") && refused.err.contains("--repair-from"),
        "{}",
        refused.err
    );
    assert!(!world.path("second.txt").exists() && !root.exists());
    fs::write(&root, kept).unwrap();
    world.as_owner(&["verify", "--read-data"]).expect(0);
    // Nor does the kit lie in it.
    let beside = ["init", "--repository", "./new", "--kit", "new/kit.txt"];
    assert!(world.run(&beside).expect(2).err.contains("would lie in the repository"));
    assert!(!world.path("new").exists());
}
