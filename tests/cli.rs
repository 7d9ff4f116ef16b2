//! The real program, in directories of its own: what a newcomer does, what goes wrong, and what it says then.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use serde_json::Value;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_mins(1);

/// A place with a repository, its keys and a tree to back up.
struct World {
    home: tempfile::TempDir,
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|why| panic!("{why} in {:?} ({})", self.out, self.err))
    }

    #[track_caller]
    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "standard output: {}\nstandard error: {}", self.out, self.err);
        self
    }
}

impl World {
    fn new() -> Self {
        let world = Self { home: tempfile::tempdir().unwrap() };
        let files = world.path("tree/sub");
        fs::create_dir_all(&files).unwrap();
        fs::write(world.path("tree/a"), "first").unwrap();
        fs::write(world.path("tree/sub/b"), vec![7; 300_000]).unwrap();
        fs::hard_link(world.path("tree/a"), world.path("tree/sub/link")).unwrap();
        std::os::unix::fs::symlink("a", world.path("tree/sym")).unwrap();
        world
    }

    fn with_repository() -> Self {
        let world = Self::new();
        world
            .run(&["init", "--kit", "kit.txt", "--writer-key-out", "writer.key", "--keeper-key-out", "keeper.key"])
            .expect(0);
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn document(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// A `Source` whose program is a shell script.
    fn script(&self, script: &str) {
        let script = serde_json::to_string(script).unwrap();
        self.document(
            "source.yaml",
            &format!(
                "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: dump}}\n\
                 spec:\n  command:\n    argv: [sh, -c, {script}]\n    output: dump.sql\n"
            ),
        );
    }

    #[expect(clippy::disallowed_methods, reason = "the tests start the program itself")]
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command
            .args(arguments)
            .current_dir(self.home.path())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LIFEBOAT_REPOSITORY", format!("file://{}", self.path("repository").display()))
            .env("XDG_STATE_HOME", self.path("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        finish(self.command(arguments).spawn().unwrap())
    }

    fn as_writer(&self, arguments: &[&str]) -> Ran {
        self.run(&[&["--writer-key", "writer.key"], arguments].concat())
    }

    fn as_owner(&self, arguments: &[&str]) -> Ran {
        self.run(&[&["--identity", "kit.txt"], arguments].concat())
    }

    fn backup(&self) -> Ran {
        self.as_writer(&["backup", "--files", "tree", "--name", "docs", "--json"])
    }

    /// Starts a backup of the script that [`Self::script`] made and waits until the script has written `started`.
    fn begin_slow_backup(&self) -> (Child, rustix::process::Pid) {
        let arguments = ["--writer-key", "writer.key", "--config", "source.yaml", "backup", "dump"];
        let child = self.command(&arguments).spawn().unwrap();
        let until = Instant::now() + DEADLINE;
        let pid = loop {
            if let Ok(pid) = fs::read_to_string(self.path("started")) {
                break pid.trim().parse().unwrap();
            }
            assert!(Instant::now() < until, "the script did not begin");
            std::thread::sleep(Duration::from_millis(5));
        };
        (child, rustix::process::Pid::from_raw(pid).unwrap())
    }

    fn manifests(&self, source: &str) -> Vec<PathBuf> {
        let directory = self.path("repository").join(source).join("snapshots");
        let mut all: Vec<_> = fs::read_dir(directory).into_iter().flatten().map(|e| e.unwrap().path()).collect();
        // Newest first.
        all.sort();
        all
    }
}

const SLOW: &str = "head -c 3000000 /dev/urandom; echo $$ >now; mv now started; exec sleep 50";

fn finish(mut child: Child) -> Ran {
    let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = |mut pipe: Box<dyn std::io::Read + Send>| {
        std::thread::spawn(move || {
            let mut text = String::new();
            pipe.read_to_string(&mut text).unwrap();
            text
        })
    };
    let until = Instant::now() + DEADLINE;
    let (out, err) = (read(Box::new(out)), read(Box::new(err)));
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > until {
            child.kill().unwrap();
            panic!("the program did not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Ran { code: status.code().unwrap_or(-1), out: out.join().unwrap(), err: err.join().unwrap() }
}

#[expect(clippy::disallowed_methods, reason = "tools that are not Lifeboat judge its work")]
fn tool(program: &str, arguments: &[&str], directory: &Path) -> Output {
    Command::new(program).args(arguments).current_dir(directory).output().unwrap()
}

#[test]
fn a_newcomer_gets_everything_back() {
    let world = World::with_repository();
    let kit = fs::read_to_string(world.path("kit.txt")).unwrap();
    assert!(kit.contains("AGE-SECRET-KEY-") && kit.contains("lifeboat-writer-") && kit.contains("lifeboat-keeper-"));
    for secret in ["kit.txt", "writer.key", "keeper.key"] {
        assert_eq!(fs::metadata(world.path(secret)).unwrap().permissions().mode() & 0o777, 0o600, "{secret}");
    }
    let first = world.backup().expect(0).json();
    assert_eq!(first["backups"][0]["number"], 1);
    fs::write(world.path("tree/a"), "changed").unwrap();
    fs::write(world.path("tree/new"), "new").unwrap();
    assert_eq!(world.backup().expect(0).json()["backups"][0]["number"], 2);

    let listed = world.as_writer(&["snapshots", "docs", "--json"]).expect(0).json();
    let numbers: Vec<_> =
        listed["snapshots"].as_array().unwrap().iter().map(|s| s["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [2, 1]);
    let names = world.as_owner(&["ls", "docs@1"]).expect(0).out;
    assert_eq!(names, ".\na\nsub\nsub/b\nsub/link\nsym\n");
    let diff = world.as_owner(&["diff", "docs@1", "docs"]).expect(0).out;
    assert!(diff.contains("+ new\n") && diff.contains("M a (size"), "{diff}");

    // By time, by number, by a beginning of the id, with the kit alone.
    let id = listed["snapshots"][1]["id"].as_str().unwrap();
    world.as_owner(&["restore", "snapshot", &format!("docs@{}", &id[..12]), "--to", "old"]).expect(0);
    assert_eq!(fs::read_to_string(world.path("old/a")).unwrap(), "first");
    assert!(!world.path("old/new").exists());
    let time = listed["snapshots"][0]["recoveryPoint"].as_str().unwrap();
    world.as_owner(&["restore", "snapshot", &format!("docs@{time}"), "--to", "back"]).expect(0);
    assert!(tool("diff", &["-r", "tree", "back"], world.home.path()).status.success());
    let inode = |name: &str| fs::metadata(world.path(name)).unwrap().ino();
    assert_eq!(inode("back/a"), inode("back/sub/link"));
    assert_eq!(fs::read_link(world.path("back/sym")).unwrap(), Path::new("a"));
    let mtime = |name: &str| fs::metadata(world.path(name)).unwrap().modified().unwrap();
    assert_eq!(mtime("tree/sub"), mtime("back/sub"));

    world.as_owner(&["verify", "--read-data"]).expect(0);
    world.run(&["verify", "--scrub"]).expect(0);
}

#[test]
fn parts_and_exports_are_what_was_backed_up() {
    let world = World::with_repository();
    world.backup().expect(0);
    world.as_owner(&["restore", "snapshot", "docs", "--to", "part", "/sub/b"]).expect(0);
    assert_eq!(fs::read(world.path("part/sub/b")).unwrap(), vec![7; 300_000]);
    assert!(!world.path("part/a").exists());
    let missing = world.as_owner(&["restore", "snapshot", "docs", "--to", "none", "nothing"]).expect(1);
    assert!(missing.err.contains("nothing is not in the snapshot"), "{}", missing.err);

    world.as_owner(&["export", "docs", "-o", "docs.tar"]).expect(0);
    fs::create_dir(world.path("untarred")).unwrap();
    let untarred = tool("tar", &["xf", "../docs.tar"], &world.path("untarred"));
    assert!(untarred.status.success() && untarred.stderr.is_empty(), "{untarred:?}");
    assert!(tool("diff", &["-r", "tree", "untarred"], world.home.path()).status.success());
    // A further name of a file brings the file, asked for without the first name too.
    for name in ["a", "sub/link"] {
        assert_eq!(world.as_owner(&["export", "docs", name, "-o", "-"]).expect(0).out, "first");
    }
    world.as_owner(&["restore", "snapshot", "docs", "--to", "link", "sub"]).expect(0);
    assert_eq!(fs::read_to_string(world.path("link/sub/link")).unwrap(), "first");
    world.as_owner(&["export", "docs", "sub", "-o", "sub.tar"]).expect(0);
    assert!(tool("tar", &["xf", "sub.tar", "-C", "untarred/sub"], world.home.path()).status.success());
    assert!(tool("diff", &["-r", "tree/sub", "untarred/sub/sub"], world.home.path()).status.success());
    let again = world.as_owner(&["export", "docs", "-o", "docs.tar"]).expect(2);
    assert!(again.err.contains("exists already"), "{}", again.err);
    // What is there is not overwritten, and not by default mixed with.
    let full = world.as_owner(&["restore", "snapshot", "docs", "--to", "part"]).expect(1);
    assert!(full.err.contains("not empty"), "{}", full.err);
    fs::create_dir(world.path("mixed")).unwrap();
    fs::write(world.path("mixed/own"), "stays").unwrap();
    fs::set_permissions(world.path("mixed"), fs::Permissions::from_mode(0o701)).unwrap();
    world.as_owner(&["restore", "snapshot", "docs", "--to", "mixed", "--into-existing"]).expect(0);
    assert_eq!(fs::read_to_string(world.path("mixed/own")).unwrap(), "stays");
    assert_eq!(fs::read_to_string(world.path("mixed/a")).unwrap(), "first");
    assert_eq!(fs::metadata(world.path("mixed")).unwrap().permissions().mode() & 0o777, 0o701);
    // A file that is there is not overwritten.
    let twice = world.as_owner(&["restore", "snapshot", "docs", "--to", "mixed", "--into-existing"]).expect(1);
    assert!(twice.err.contains("exists already"), "{}", twice.err);
}

#[test]
fn a_programs_output_comes_back() {
    let world = World::with_repository();
    world.script("printf 'dump of %s' everything");
    let run = |arguments: &[&str]| world.as_writer(&[&["--config", "source.yaml"], arguments].concat());
    run(&["backup", "--all"]).expect(0);
    assert_eq!(world.as_owner(&["export", "dump", "-o", "-"]).expect(0).out, "dump of everything");
    world.script("echo half; exit 3");
    run(&["backup", "dump"]).expect(1);
    world.script("true");
    run(&["backup", "dump"]).expect(1);
    assert_eq!(world.manifests("dump").len(), 1);
    let misspelt = run(&["backup", "dunp"]).expect(2);
    assert!(misspelt.err.contains("did you mean dump?"), "{}", misspelt.err);
}

#[test]
fn keys_open_what_they_should_and_nothing_else() {
    let world = World::with_repository();
    world.backup().expect(0);
    for arguments in
        [&["ls", "docs"][..], &["restore", "snapshot", "docs", "--to", "out"], &["export", "docs", "-o", "x"]]
    {
        let refused = world.as_writer(arguments).expect(12);
        assert!(refused.err.contains("hint: ") && refused.err.contains("--identity"), "{}", refused.err);
        assert_eq!(refused.out, "");
    }
    assert!(!world.path("out").exists() && !world.path("x").exists());
    let other = World::with_repository();
    let foreign = other.path("kit.txt").display().to_string();
    world.run(&["--identity", &foreign, "ls", "docs"]).expect(12);
    let foreign = other.path("writer.key").display().to_string();
    let backup = ["--writer-key", &foreign, "backup", "--files", "tree", "--name", "docs"];
    world.run(&backup).expect(12);
    // With --json, errors are one JSON object too.
    let refused = world.as_writer(&["--json", "ls", "docs"]).expect(12);
    let error: Value = serde_json::from_str(&refused.err).unwrap();
    assert_eq!(error["code"], 12);
    // Without a key at all, that is said.
    let none = world.run(&["ls", "docs"]).expect(2);
    assert!(none.err.contains("no key is given"), "{}", none.err);
    assert_eq!(world.manifests("docs").len(), 1);
}

#[test]
fn recipients_come_and_go_and_the_writer_key_rotates() {
    let world = World::with_repository();
    world.backup().expect(0);
    let other = World::with_repository();
    let recipient = other.run(&["keys", "list", "--json"]).expect(0).json()["recipients"][0]["key"].clone();
    let add = ["keys", "add-recipient", "auditor", "--role", "escrow", "--key", recipient.as_str().unwrap()];
    world.as_owner(&add).expect(0);
    let escrow = other.path("kit.txt").display().to_string();
    assert!(world.run(&["--identity", &escrow, "ls", "docs"]).expect(0).out.contains("sub/b"));
    world.as_owner(&["keys", "remove-recipient", "auditor"]).expect(0);

    world.as_owner(&["keys", "rotate-writer", "--out", "new.key"]).expect(0);
    let old = world.backup().expect(1);
    assert!(old.err.contains("rotated"), "{}", old.err);
    let new = ["--writer-key", "new.key", "backup", "--files", "tree", "--name", "docs"];
    world.run(&new).expect(0);
    // Both before and after.
    world.as_owner(&["restore", "snapshot", "docs@1", "--to", "one"]).expect(0);
    world.as_owner(&["restore", "snapshot", "docs@2", "--to", "two"]).expect(0);
    assert!(tool("diff", &["-r", "one", "two"], world.home.path()).status.success());
    // What was written after removal and rotation is sealed for the one who left.
    world.run(&["--identity", &escrow, "ls", "docs@2"]).expect(12);
}

#[test]
fn mistakes_are_told_with_what_to_do() {
    let world = World::new();
    let none = world.as_owner(&["snapshots"]).expect(10);
    assert!(
        none.err.contains("there is no repository at file://") && none.err.contains("lifeboat init"),
        "{}",
        none.err
    );
    world.run(&["init", "--kit", "kit.txt"]).expect(0);
    world.run(&["init", "--kit", "kit.txt"]).expect(2);
    let twice = world.run(&["init", "--kit", "other.txt"]).expect(1);
    assert!(twice.err.contains("already") && !world.path("other.txt").exists(), "{}", twice.err);
    // The kit holds the writer key as well.
    world.run(&["--writer-key", "kit.txt", "backup", "--files", "tree", "--name", "docs"]).expect(0);
    let unknown = world.as_owner(&["ls", "dosc"]).expect(2);
    assert!(unknown.err.contains("did you mean docs?"), "{}", unknown.err);
    world.as_owner(&["ls", "docs@7"]).expect(1);
    world.run(&["ls", "docs@yesterday"]).expect(2);
    world.run(&["no-such-command"]).expect(2);
    world.document("bad.yaml", "apiVersion: lifeboat.dev/v1\nkind: Suorce\nmetadata: {name: x}\nspec: {}\n");
    let bad = world.run(&["--config", "bad.yaml", "backup", "--all"]).expect(2);
    assert!(bad.err.contains("bad.yaml:2") && bad.err.contains("\"Source\""), "{}", bad.err);
}

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
    assert!(text.err.contains("broken") && text.out.contains("dump@2: 1 entries"), "{} {}", text.err, text.out);
    let lines = world.run(&[&["--log-format", "json"], &both[..]].concat()).expect(3).err;
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|line| line["level"] == "error" && line["source"] == "broken"), "{lines:?}");
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

const SCHEDULE: &str = "
apiVersion: lifeboat.dev/v1
kind: Repository
metadata: {name: main}
spec:
  url: file://REPOSITORY
  gracePeriod: 3d
---
apiVersion: lifeboat.dev/v1
kind: Source
metadata: {name: docs}
spec:
  tier: standard
  files: {path: TREE}
---
apiVersion: lifeboat.dev/v1
kind: Schedule
metadata: {name: often}
spec:
  repository: main
  tier: standard
  cron: '*/10 * * * *'
  maxDuration: 5m
  sources: [docs]
  retention: {last: 2}
";

#[test]
fn a_schedule_is_backed_up_judged_and_pruned() {
    let world = World::with_repository();
    let text = SCHEDULE.replace("REPOSITORY", &world.path("repository").display().to_string());
    world.document("all.yaml", &text.replace("TREE", &world.path("tree").display().to_string()));
    let run = |arguments: &[&str]| world.run(&[&["--config", "all.yaml", "-r", "main"], arguments].concat());
    let never = run(&["status", "--json"]).expect(4).json();
    assert_eq!(never["sources"][0]["verdict"], "never");
    for text in ["1", "22", "333", "4444"] {
        fs::write(world.path("tree/a"), text).unwrap();
        run(&["--writer-key", "writer.key", "backup", "--schedule", "often"]).expect(0);
    }
    let met = run(&["status", "--json", "--writer-key", "writer.key"]).expect(0).json();
    assert_eq!((&met["sources"][0]["verdict"], &met["sources"][0]["snapshots"]), (&"met".into(), &4.into()));

    let plan = run(&["prune", "--dry-run", "--json"]).expect(0).json();
    assert_eq!(plan["sources"][0]["plan"]["remove"], serde_json::json!([2, 1]));
    assert_eq!(world.manifests("docs").len(), 4);
    run(&["--writer-key", "writer.key", "prune"]).expect(2);
    run(&["--keeper-key", "keeper.key", "prune"]).expect(0);
    assert_eq!(world.manifests("docs").len(), 2);
    world.as_owner(&["verify", "--read-data"]).expect(0);
    // A gap that a prune record explains is no cause for alarm.
    run(&["status"]).expect(0);
    run(&["schedule", "check"]).expect(0);
    run(&["doctor", "--writer-key", "writer.key"]).expect(0);

    // An hour later, by the store's own dates.
    let hour_ago = fs::metadata(world.path("kit.txt")).unwrap().modified().unwrap() - Duration::from_hours(1);
    for manifest in world.manifests("docs") {
        fs::set_permissions(&manifest, fs::Permissions::from_mode(0o600)).unwrap();
        fs::File::options().write(true).open(&manifest).unwrap().set_modified(hour_ago).unwrap();
    }
    let missed = run(&["status", "--json"]).expect(4).json();
    assert_eq!(missed["sources"][0]["verdict"], "missed");
}

#[test]
fn a_newest_snapshot_that_vanishes_is_noticed() {
    let world = World::with_repository();
    world.backup().expect(0);
    world.backup().expect(0);
    world.as_writer(&["status"]).expect(0);
    fs::remove_file(&world.manifests("docs")[0]).unwrap();
    let hidden = world.as_writer(&["status"]).expect(1);
    assert!(hidden.out.contains("snapshot 2 has vanished: the newest is 1 now"), "{}", hidden.out);
    fs::remove_dir_all(world.path("repository/docs")).unwrap();
    let gone = world.as_writer(&["status", "--json"]).expect(1).json();
    assert_eq!((&gone["sources"][0]["source"], &gone["sources"][0]["sound"]), (&"docs".into(), &false.into()));
}

#[test]
fn a_snapshot_that_somebody_took_away_is_noticed() {
    let world = World::with_repository();
    for _ in 0..3 {
        world.backup().expect(0);
    }
    fs::remove_file(&world.manifests("docs")[1]).unwrap();
    let status = world.as_writer(&["status"]).expect(1);
    assert!(status.out.contains("snapshots 2 are missing"), "{}", status.out);
    let restored = world.as_owner(&["restore", "snapshot", "docs", "--to", "back"]).expect(0);
    assert!(restored.err.contains("snapshots 2 are missing"), "{}", restored.err);
    let verified = world.run(&["verify"]).expect(1);
    assert!(verified.out.contains("missing"), "{}", verified.out);
}

#[test]
fn a_damaged_snapshot_is_stepped_over_and_told() {
    let world = World::with_repository();
    world.backup().expect(0);
    world.backup().expect(0);
    let newest = &world.manifests("docs")[0];
    let mut bytes = fs::read(newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(newest).unwrap();
    fs::write(newest, bytes).unwrap();
    let restored = world.as_owner(&["restore", "snapshot", "docs", "--to", "back", "--json"]).expect(0);
    assert_eq!(restored.json()["snapshot"], "docs@1");
    assert!(restored.err.contains("stepped over"), "{}", restored.err);
    assert!(world.as_writer(&["status"]).expect(1).out.contains("snapshot 2 does not count"));
    world.as_writer(&["verify"]).expect(1);
    world.as_writer(&["snapshots"]).expect(1);
}

#[test]
fn a_lost_pack_costs_the_files_in_it_and_no_more() {
    let world = World::with_repository();
    world.backup().expect(0);
    let first: Vec<_> = fs::read_dir(world.path("repository/docs/packs")).unwrap().map(|e| e.unwrap().path()).collect();
    let mut noise = vec![0; 2 << 20];
    let mut state = 1_u64;
    noise.fill_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    });
    fs::write(world.path("tree/later"), &noise).unwrap();
    world.backup().expect(0);
    // Rot in the pack that came second.
    let pack = fs::read_dir(world.path("repository/docs/packs")).unwrap().map(|e| e.unwrap().path());
    let pack = pack.filter(|p| !first.contains(p)).max_by_key(|p| fs::metadata(p).unwrap().len()).unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 0x10;
    fs::remove_file(&pack).unwrap();
    fs::write(&pack, bytes).unwrap();
    let report = world.as_owner(&["restore", "snapshot", "docs", "--to", "back", "--json"]).expect(3).json();
    assert_eq!(report["problems"][0]["path"], "later");
    assert!(!world.path("back/later").exists());
    assert_eq!(fs::read(world.path("back/sub/b")).unwrap(), vec![7; 300_000]);
    let scrub = world.run(&["verify", "--scrub", "--json"]).expect(1).json();
    assert_eq!(scrub["sources"]["docs"]["findings"][0]["snapshots"], serde_json::json!([2]));
}

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

/// Real etcd, real S3 with Object Lock, and an attacker who has the bucket's credentials.
#[test]
fn etcd_comes_back_from_a_locked_bucket_after_everything_was_deleted() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (etcd, minio) = (support::etcd(), support::minio());
    runtime.block_on(support::bucket(&minio, "locked", support::Bucket::Locked));
    let world = World::new();
    for name in ["id", "secret"] {
        let value = if name == "id" { support::ACCESS_KEY } else { support::SECRET_KEY };
        world.document(name, &format!("{value}\n"));
    }
    let documents = LOCKED.replace("ENDPOINT", &minio.url()).replace("ETCD", &etcd.url());
    world.document("all.yaml", &documents);
    let run = |arguments: &[&str]| world.run(&[&["--config", "all.yaml", "-r", "main"], arguments].concat());
    run(&["init", "--kit", "kit.txt"]).expect(0);
    let put = |value: &str| {
        let program = support::tool("etcdctl").display().to_string();
        let put = tool(&program, &["--endpoints", &etcd.url(), "put", "key", value], world.home.path());
        assert!(put.status.success(), "{put:?}");
    };
    put("first");
    run(&["--writer-key", "kit.txt", "backup", "--all"]).expect(0);
    put("second");
    let second = run(&["--writer-key", "kit.txt", "backup", "etcd-main", "--json"]).expect(0).json();
    assert_eq!(second["backups"][0]["facts"]["position"], 3);
    run(&["doctor", "--writer-key", "kit.txt"]).expect(0);

    let deleted = runtime.block_on(async {
        let client = support::client(&minio);
        let listed = client.list_objects_v2().bucket("locked").send().await.unwrap();
        for object in listed.contents() {
            client.delete_object().bucket("locked").key(object.key().unwrap()).send().await.unwrap();
        }
        listed.contents().len()
    });
    assert!(deleted >= 5, "{deleted} objects were there");
    run(&["--identity", "kit.txt", "verify", "--read-data"]).expect(0);
    run(&["--identity", "kit.txt", "export", "etcd-main", "-o", "snapshot.db"]).expect(0);
    let program = support::tool("etcdutl").display().to_string();
    let status = tool(&program, &["snapshot", "status", "snapshot.db", "-w", "json"], world.home.path());
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["revision"], 3);
    let restored = tool(&program, &["snapshot", "restore", "snapshot.db", "--data-dir", "data"], world.home.path());
    assert!(restored.status.success(), "{restored:?}");
}

const LOCKED: &str = "
apiVersion: lifeboat.dev/v1
kind: Repository
metadata: {name: main}
spec:
  url: s3://locked/prefix
  s3:
    endpoint: ENDPOINT
    pathStyle: true
    region: us-east-1
    credentials: {accessKeyId: {file: id}, secretAccessKey: {file: secret}}
    objectLock: {mode: governance, minimumDays: 1}
---
apiVersion: lifeboat.dev/v1
kind: Source
metadata: {name: etcd-main}
spec:
  etcd: {endpoints: ['ETCD']}
";

#[test]
fn log_lines_carry_the_runs_id() {
    let world = World::with_repository();
    let run =
        ["--log-format", "json", "--writer-key", "writer.key", "backup", "--files", "tree", "--name", "docs", "--json"];
    let ran = world.run(&run).expect(0);
    let id = ran.json()["run"].clone();
    let lines: Vec<Value> = ran.err.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() >= 2, "{}", ran.err);
    assert!(lines.iter().all(|line| line["run"] == id), "{}", ran.err);
    assert_eq!(world.as_writer(&["show", "docs", "--json"]).expect(0).json()["run"], id);
    let failed = world.as_writer(&["--log-format", "json", "ls", "docs"]).expect(12).err;
    let line: Value = serde_json::from_str(failed.trim_end()).unwrap();
    assert_eq!((&line["level"], &line["code"]), (&"error".into(), &12.into()));
}

#[test]
fn help_completions_and_manual_are_there() {
    let world = World::new();
    let help = world.run(&["--help"]).expect(0).out;
    for command in ["init", "backup", "snapshots", "restore", "export", "status", "verify", "prune", "doctor"] {
        assert!(help.contains(&format!("  {command}")), "{command}");
    }
    assert!(world.run(&["completions", "bash"]).expect(0).out.contains("_lifeboat"));
    assert!(world.run(&["man", "restore", "snapshot"]).expect(0).out.contains(r"\-\-to"));
}

#[test]
fn no_secret_reaches_a_log_or_an_error() {
    let world = World::with_repository();
    let kit = fs::read_to_string(world.path("kit.txt")).unwrap();
    let secrets: Vec<_> = kit.lines().filter(|l| l.starts_with("AGE-SECRET") || l.starts_with("lifeboat-")).collect();
    assert_eq!(secrets.len(), 3);
    let runs = [
        world.as_owner(&["-vvv", "backup", "--files", "tree", "--name", "docs"]).expect(0),
        world.as_owner(&["-vvv", "restore", "snapshot", "docs", "--to", "x"]).expect(0),
        // A key in the wrong place is not repeated.
        world.run(&["--identity", "writer.key", "ls", "docs"]).expect(12),
        world.run(&["--writer-key", "keeper.key", "backup", "--files", "tree", "--name", "docs"]).expect(12),
    ];
    for ran in runs {
        assert!(secrets.iter().all(|secret| !ran.err.contains(&secret[..30]) && !ran.out.contains(&secret[..30])));
    }
}
