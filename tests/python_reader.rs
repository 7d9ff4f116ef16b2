//! What Lifeboat writes, an independent reader made from docs/format.md restores.
#![allow(clippy::unwrap_used)]

use lifeboat::entry::{Content, Entry, Facts, Input, Kind, Layout, OnError, Sink, Verdict};
use lifeboat::repo::{Access, Identity, Options, Recipient, Repository, Role, RootKeys, State, Summary};
use lifeboat::store::Local;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const NOW: &str = "2026-01-02T03:04:05Z";
const PAGE: usize = 4096;

struct Bytes(io::Cursor<Vec<u8>>);

impl Content for Bytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }

    fn finish(self: Box<Self>) -> io::Result<Verdict> {
        Ok(Verdict::Consistent)
    }
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut output = vec![0; length];
    let mut state = seed;
    for byte in &mut output {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = (state >> 56) as u8;
    }
    output
}

fn entry(path: &str, kind: Kind, size: usize) -> Entry {
    let mode = if kind == Kind::Directory { 0o750 } else { 0o640 };
    Entry {
        path: path.into(),
        kind,
        mode,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime_ns: 1_500_000_000_123_456_789,
        size: size as u64,
        link: None,
        rdev: None,
        xattrs: None,
        sparse: None,
    }
}

fn input(bytes: &[u8], layout: Layout) -> Input {
    let bytes = bytes.to_vec();
    let open = Box::new(move || Ok(Box::new(Bytes(io::Cursor::new(bytes))) as Box<dyn Content>));
    Input { layout, fingerprint: None, on_error: OnError::Fail, open }
}

async fn snapshot(repository: &Repository, keys: &RootKeys, files: &[(&'static str, Vec<u8>, Layout)]) {
    let lineage = Arc::new(repository.lineage(&"mixed".parse().unwrap(), Access::Writer(keys.writer.clone())));
    let options = Options { level: 3, threads: 2, run_limit: Duration::from_hours(1), retain: None };
    let now = NOW.parse().unwrap();
    let mut writer = lineage.begin(options, now).await.unwrap();
    let names: Vec<_> = files.iter().map(|(path, bytes, layout)| (*path, bytes.clone(), *layout)).collect();
    let writer = tokio::task::spawn_blocking(move || {
        writer.add(entry(".", Kind::Directory, 0), None).unwrap();
        writer.add(entry("dir", Kind::Directory, 0), None).unwrap();
        for (path, bytes, layout) in names {
            writer.add(entry(path, Kind::File, bytes.len()), Some(input(&bytes, layout))).unwrap();
        }
        let link = |path, kind, to: &str| Entry { link: Some(to.into()), ..entry(path, kind, 0) };
        writer.add(link("dir/hard", Kind::Hardlink, "dir/large"), None).unwrap();
        writer.add(link("symlink", Kind::Symlink, "dir/elsewhere"), None).unwrap();
        writer
    });
    let summary = Summary {
        kind: "files".into(),
        started: now,
        facts: Facts::default(),
        reasons: Vec::new(),
        run: "test".into(),
    };
    let committed = writer.await.unwrap().commit(summary).await.unwrap();
    assert_eq!(committed.state, State::Good);
}

/// A child process, run to its end.
fn run(program: &str, arguments: &[&str]) -> std::process::Output {
    #[expect(clippy::disallowed_methods, reason = "a test starts the reader itself")]
    let output = std::process::Command::new(program).args(arguments).output().unwrap();
    output
}

fn python() -> String {
    let output = run("tests/tools/setup", &["--python"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn read(arguments: &[&str]) -> Result<String, String> {
    let output = run(&python(), &[&["tests/reader/lifeboat_reader.py"], arguments].concat());
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_independent_reader_restores_every_snapshot() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let store = Arc::new(Local::create(path("repository")).unwrap());
    let identity = Identity::generate();
    std::fs::write(path("identity"), format!("# offline\n{}\n", identity.to_text())).unwrap();
    let recipient = Recipient { name: "recovery".into(), role: Role::Recovery, key: identity.public() };
    let (repository, keys) = Repository::create(store, vec![recipient], NOW.parse().unwrap()).await.unwrap();

    let mut pages = noise(1, 300 * PAGE + 100);
    pages[10 * PAGE..14 * PAGE].fill(0);
    let mut large = noise(2, 5 << 20);
    let text = b"one line after another\n".repeat(20_000);
    let mut stages = Vec::new();
    for stage in 0..4_usize {
        let files = vec![
            ("dir/large", large.clone(), Layout::Content),
            ("empty", Vec::new(), Layout::Content),
            ("text", text.clone(), Layout::Content),
            ("db", pages.clone(), Layout::Pages(PAGE as u32)),
        ];
        snapshot(&repository, &keys, &files).await;
        stages.push(files);
        // Pages change, become zeros, stop being zeros; the file grows and shrinks; a chunk moves.
        pages[(20 + stage) * PAGE..(22 + stage) * PAGE].copy_from_slice(&noise(stage as u64 + 9, 2 * PAGE));
        pages[(40 + stage) * PAGE..(50 + stage) * PAGE].fill(0);
        pages[11 * PAGE] = stage as u8 + 1;
        pages.resize(if stage == 0 { 310 * PAGE } else { 290 * PAGE + 7 }, 3);
        large.splice(1000..1000, noise(77, 10));
    }

    let listed = read(&["--repository", &path("repository"), "--identity", &path("identity"), "list"]).unwrap();
    assert_eq!(listed.lines().count(), 4, "{listed}");
    for (number, files) in (1..).zip(&stages) {
        let target = path(&format!("restored-{number}"));
        let reference = format!("mixed@{number}");
        read(&["--repository", &path("repository"), "--identity", &path("identity"), "restore", &reference, &target])
            .unwrap();
        let target = Path::new(&target);
        for (name, bytes, _) in files {
            assert!(std::fs::read(target.join(name)).unwrap() == *bytes, "{name} of snapshot {number}");
        }
        let large = std::fs::metadata(target.join("dir/large")).unwrap();
        assert_eq!((large.nlink(), large.permissions().mode() & 0o7777), (2, 0o640));
        assert_eq!(large.mtime() * 1_000_000_000 + large.mtime_nsec(), 1_500_000_000_123_456_789);
        assert_eq!(std::fs::read_link(target.join("symlink")).unwrap(), Path::new("dir/elsewhere"));
        assert_eq!(std::fs::metadata(target.join("dir")).unwrap().permissions().mode() & 0o7777, 0o750);
    }

    let shares = lifeboat::repo::shares::split(&identity, repository.root().id, 3, 5).unwrap();
    for share in &shares {
        std::fs::write(path(&format!("share-{}", share.number)), share.to_text().as_bytes()).unwrap();
    }
    let [first, third, fifth] = [1, 3, 5].map(|number| path(&format!("share-{number}")));
    let with = |last: &str| {
        let identity = ["--identity", &first, "--identity", &third, "--identity", last];
        read(&[&["--repository", &path("repository")], &identity[..], &["list"]].concat())
    };
    assert_eq!(with(&fifth).unwrap(), listed);
    let typed = std::fs::read_to_string(&fifth).unwrap().replace("\n4  ", "\n4  0");
    std::fs::write(path("typed"), typed).unwrap();
    with(&path("typed")).unwrap_err();

    let other = Identity::generate();
    std::fs::write(path("other"), other.to_text()).unwrap();
    let refused = read(&["--repository", &path("repository"), "--identity", &path("other"), "list"]).unwrap_err();
    assert!(refused.contains("this identity does not open it"), "{refused}");

    let manifest = place.path().join("repository/mixed/snapshots/9999999995-4");
    let mut bytes = std::fs::read(&manifest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::set_permissions(&manifest, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::write(&manifest, bytes).unwrap();
    let target = path("after-damage");
    let restored =
        read(&["--repository", &path("repository"), "--identity", &path("identity"), "restore", "mixed", &target]);
    assert!(restored.unwrap().contains("mixed@3"), "a forged newest snapshot is stepped over");
}
