//! Real SQLite databases, captured while somebody writes to them; programs start from what is restored.

use crate::support;
use crate::support::collect::{Collect, context, runtime};
use crate::support::world;
use crate::support::world::{World, made};
use lifeboat::source::{Context, SourceError, Spec};
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const BACKUP: &[&str] = &["--writer-key", "writer.key", "backup", "grafana", "--json"];
/// As Grafana's, in short. What there is is counted with every change.
const TABLES: &str = "CREATE TABLE dashboard (id INTEGER PRIMARY KEY, uid TEXT UNIQUE, title TEXT, data BLOB);
    CREATE TABLE \"data \"\"source\" (uid TEXT PRIMARY KEY, secure BLOB) WITHOUT ROWID;
    CREATE TABLE total (dashboards INTEGER); CREATE INDEX titles ON dashboard (title);
    INSERT INTO total VALUES (0); INSERT INTO \"data \"\"source\" VALUES ('p', x'00ff');\n";
const ADD: &str = "BEGIN IMMEDIATE; INSERT INTO dashboard (uid, title) VALUES (hex(randomblob(8)), 'new'); \
                   UPDATE total SET dashboards = dashboards + 1; COMMIT;\n";
const COUNTS: &str = "SELECT count(*), (SELECT dashboards FROM total) FROM dashboard";

#[track_caller]
fn sqlite(file: &Path, commands: &str) -> String {
    let output = support::command("sqlite3")
        .args(["-bail", "-batch", "-cmd", ".timeout 60000"])
        .arg(file)
        .arg(commands)
        .output()
        .unwrap();
    assert!(output.status.success(), "{commands}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// All that it holds, in an order that does not depend on its pages.
fn content(file: &Path) -> String {
    let output = support::command("sqlite3").arg(file).arg(".sha3sum --schema").output().unwrap();
    assert!(output.status.success() && output.stdout.len() > 50, "{output:?}");
    assert_eq!(sqlite(file, "PRAGMA integrity_check"), "ok");
    String::from_utf8(output.stdout).unwrap()
}

/// With some megabytes of dashboards.
fn database(world: &World, mode: &str, page_size: u32) -> PathBuf {
    let file = world.path("data/grafana.db");
    let _ = fs::remove_dir_all(world.path("data")); // there may be none
    fs::create_dir(world.path("data")).unwrap();
    sqlite(&file, &format!("PRAGMA page_size = {page_size}; PRAGMA journal_mode = {mode}; {TABLES}"));
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) \
                INSERT INTO dashboard SELECT i, 'u' || i, 'title ' || i, randomblob(8000) FROM n; \
                UPDATE total SET dashboards = 500";
    sqlite(&file, rows);
    file
}

fn document(world: &World, path: &Path) {
    let text = format!(
        "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: grafana}}\nspec: {{sqlite: {{path: {}}}}}\n",
        path.display()
    );
    world.document("source.yaml", &text);
}

/// Adds dashboards one after the other, until it is dropped.
struct Writer(Child);

impl Writer {
    fn start(file: &Path) -> Self {
        let mut command = support::command("sqlite3");
        command.args(["-batch"]).arg(file).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::thread::spawn(move || {
            let settings = stdin.write_all(b".timeout 60000\nPRAGMA synchronous = OFF;\n");
            // Until it is killed.
            settings.and_then(|()| (0..10_000_000).try_for_each(|_| stdin.write_all(ADD.as_bytes())))
        });
        Self(child)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn restored(world: &World, reference: &str) -> PathBuf {
    let to = world.path("restored");
    let _ = fs::remove_dir_all(&to); // there may be none
    world.as_owner(&["restore", "snapshot", reference, "--to", to.to_str().unwrap()]).expect(0);
    to.join("grafana.db")
}

#[test]
fn what_is_lost_comes_back() {
    for (mode, page_size) in [("delete", 4096), ("wal", 4096), ("delete", 512), ("wal", 65_536)] {
        let world = World::local();
        let file = database(&world, mode, page_size);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        document(&world, &file);
        let doctor = world.as_writer(&["doctor"]);
        assert!(doctor.out.contains("an SQLite database"), "{} {}", doctor.out, doctor.err);
        let first = world.run(BACKUP).expect(0);
        assert!(made(&first).new_bytes > 3_000_000, "{}", first.out);
        let facts = first.json()["backups"][0]["facts"].clone();
        assert_eq!(facts["objects"], 502, "{facts}");
        assert_eq!((&facts["details"]["tables"], &facts["details"]["journal_mode"]), (&"3".into(), &mode.into()));
        assert!(facts["recovery_point_ms"].as_i64().unwrap() > 0);
        // What did not change costs nothing, and a change its pages.
        let again = made(&world.run(BACKUP).expect(0)).new_bytes;
        assert!(again < 1_000, "{mode} {page_size}: {again}");
        sqlite(&file, "UPDATE dashboard SET title = 'another' WHERE id = 250");
        let changed = made(&world.run(BACKUP).expect(0)).new_bytes;
        assert!(changed < 16_000 + 8 * u64::from(page_size), "{mode} {page_size}: {changed}");

        let before = content(&file);
        fs::remove_dir_all(file.parent().unwrap()).unwrap();
        let back = restored(&world, "grafana@3");
        assert_eq!(fs::metadata(&back).unwrap().permissions().mode() & 0o7777, 0o640);
        assert_eq!(content(&back), before);
        sqlite(&back, ADD);
        let back = restored(&world, "grafana@1");
        assert_eq!(sqlite(&back, "SELECT title FROM dashboard WHERE id = 250"), "title 250");
        // Without Lifeboat's restore.
        world.as_owner(&["export", "grafana@3", "-o", "exported.db"]).expect(0);
        assert_eq!(content(&world.path("exported.db")), before);
        world.assert_sound();
    }
}

#[test]
fn one_state_whoever_writes() {
    for mode in ["delete", "wal"] {
        let world = World::local();
        let file = database(&world, mode, 4096);
        document(&world, &file);
        let writer = Writer::start(&file);
        let number = |file: &Path| {
            let counts = sqlite(file, COUNTS);
            let (there, counted) = counts.split_once('|').unwrap();
            assert_eq!(there, counted, "{mode}");
            there.parse::<u64>().unwrap()
        };
        let deadline = Instant::now() + Duration::from_mins(1);
        let mut meanwhile = 0;
        for snapshot in 1..=5 {
            let before = number(&file);
            while number(&file) == before {
                assert!(Instant::now() < deadline, "nobody writes");
            }
            world.run(BACKUP).expect(0);
            let after = number(&file);
            let captured = number(&restored(&world, &format!("grafana@{snapshot}")));
            assert!((before + 1..=after).contains(&captured), "{mode}: {before} {captured} {after}");
            meanwhile += after - captured;
        }
        assert!(meanwhile > 0, "{mode}: nobody wrote while it was captured");
        drop(writer);
        world.assert_sound();
    }
}

#[test]
fn a_database_made_anew_goes_to_quarantine() {
    let world = World::local();
    let file = database(&world, "delete", 4096);
    document(&world, &file);
    world.run(BACKUP).expect(0);
    fs::remove_file(&file).unwrap();
    sqlite(&file, TABLES);
    let quarantined = world.run(BACKUP).expect(3).json();
    let reasons = quarantined["backups"][0]["reasons"].to_string();
    assert!(reasons.contains("2 objects, it had 502"), "{reasons}");
    let back = restored(&world, "grafana@latest");
    assert_eq!(sqlite(&back, COUNTS), "500|500");
}

#[test]
fn what_keeps_a_capture_away_is_said() {
    let world = World::local();
    let file = database(&world, "delete", 4096);
    fs::create_dir(world.path("tmp")).unwrap();
    let with = |name: &str, value: &Path| {
        let mut program = world.program(BACKUP);
        world::finish(program.env("TMPDIR", world.path("tmp")).env(name, value).spawn().unwrap())
    };
    let tmp = world.path("tmp");
    let fails = |path: &Path, text: &str| {
        document(&world, path);
        with("TMPDIR", &tmp).expect(1).says(text);
    };
    fails(&world.path("data/missing.db"), "missing.db");
    fails(&world.path("data"), "it is not a file");
    fs::write(world.path("data/empty.db"), "").unwrap();
    fails(&world.path("data/empty.db"), "holds nothing to capture");
    sqlite(&world.path("data/without.db"), "CREATE TABLE dashboard (id)");
    fails(&world.path("data/without.db"), "holds nothing to capture");
    fs::write(world.path("data/text.db"), "it says what it is, and that is no database").unwrap();
    fails(&world.path("data/text.db"), "file is not a database");
    // The root of a table is lost, and the file's last half.
    let bytes = fs::read(&file).unwrap();
    fs::File::options().write(true).open(&file).unwrap().write_all_at(&[0; 4096], 4096).unwrap();
    fails(&file, "it is damaged");
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    fails(&file, "the SQLite database");
    fs::write(&file, &bytes).unwrap();

    document(&world, &file);
    let nowhere = Path::new("/no/such/directory");
    with("PATH", nowhere).expect(1).says("start sqlite3 (is it installed");
    with("TMPDIR", nowhere).expect(1).says("TMPDIR says where");
    // The program falls while it copies.
    fs::create_dir(world.path("bin")).unwrap();
    let script =
        "#!/bin/sh\ncase \"$*\" in *.backup*) head -c 100000 /dev/urandom >\"$TMPDIR\"/*/copy; kill -9 $$;; esac\n";
    fs::write(world.path("bin/sqlite3"), script).unwrap();
    fs::set_permissions(world.path("bin/sqlite3"), fs::Permissions::from_mode(0o755)).unwrap();
    with("PATH", Path::new(&format!("{}:/usr/bin:/bin", world.path("bin").display()))).expect(1).says("signal 9");
    let listed = world.as_writer(&["snapshots", "--json"]).expect(0).json();
    assert_eq!(listed["snapshots"].as_array().unwrap().len(), 0, "{listed}");
    with("TMPDIR", &tmp).expect(0);
    assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0, "a copy is left");
}

#[test]
fn nobody_waits_for_a_lock_past_the_deadline() {
    let world = World::local();
    let file = database(&world, "delete", 4096);
    let mut holder = support::command("sqlite3");
    let mut holder = holder.arg(&file).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = holder.stdin.take().unwrap();
    stdin.write_all(b"BEGIN EXCLUSIVE; SELECT 'held';\n").unwrap();
    let mut held = [0; 5];
    holder.stdout.take().unwrap().read_exact(&mut held).unwrap();
    let runtime = runtime();
    // Shorter than it waits for a lock, and longer than a free database takes.
    let limited = || Context { deadline: Instant::now() + Duration::from_secs(5), ..context(&runtime) };
    let spec = Spec::Sqlite(lifeboat::source::sqlite::Spec { path: file });
    let refused = spec.open().unwrap().capture(&limited(), &mut Collect::default()).unwrap_err();
    assert!(matches!(refused, SourceError::Deadline), "{refused}");
    drop(stdin);
    assert!(holder.wait().unwrap().success());
    spec.open().unwrap().check(&limited()).unwrap();
}
