//! Makes `tests/golden/format-<n>`, a small repository of everything that the format has, with its keys (which protect
//! nothing) and what each snapshot holds; and the inputs `tests/fuzz/corpus/*/valid-*`, from the same data:
//!
//!     cargo run --example golden
//!
//! Only for a new format. One that was released stays as it is: that it can still be read is what `tests/golden.rs` shows.
#![allow(clippy::unwrap_used, reason = "a tool for developers")]

mod listing;

use jiff::Timestamp;
use lifeboat::entry::{
    Content, Entry, Facts, Fingerprint, Input, Kind, Layout, OnError, Problem, Sink, Verdict, Xattr,
};
use lifeboat::id::{Sequence, SourceName};
use lifeboat::repo::{Access, FORMAT, Identity, Options, Recipient, Repository, Role, RootKeys, Summary, fuzzing};
use lifeboat::store::Local;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const PAGE: usize = 4096;

struct Bytes(io::Cursor<Vec<u8>>);

impl Content for Bytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        io::Read::read(&mut self.0, buffer)
    }

    fn finish(self: Box<Self>) -> io::Result<Verdict> {
        Ok(Verdict::Consistent)
    }
}

/// Bytes without a pattern, the same for the same seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

fn entry(path: &str, kind: Kind) -> Entry {
    Entry {
        path: path.into(),
        kind,
        mode: if kind == Kind::Directory { 0o2750 } else { 0o640 },
        uid: 1000,
        gid: 1001,
        mtime_ns: 1_500_000_000_123_456_789,
        size: 0,
        link: None,
        rdev: None,
        xattrs: None,
        sparse: None,
    }
}

type Captured = (Entry, Option<(Vec<u8>, Layout)>);

fn file(path: &str, bytes: impl Into<Vec<u8>>) -> Captured {
    let bytes = bytes.into();
    let entry = Entry { size: bytes.len() as u64, ..entry(path, Kind::File) };
    (entry, Some((bytes, Layout::Content)))
}

fn files(stage: u64) -> Vec<Captured> {
    let mut large = noise(1, 170_000);
    // Changes once, or every snapshot would cost another pack of its size.
    large.splice(100_000..100_000, noise(100, if stage < 2 { 0 } else { 10 }));
    let link = |path, kind, to: &str| (Entry { link: Some(to.into()), ..entry(path, kind) }, None);
    let xattr = |name: &str, value: &[u8]| Xattr { name: name.into(), value: value.into() };
    let mut all = vec![
        (entry(".", Kind::Directory), None),
        (entry("dir", Kind::Directory), None),
        file("dir/large", large),
        file("dir/empty", ""),
        file("dir/text", "one line after another\n".repeat(3_000)),
        link("dir/hard", Kind::Hardlink, "dir/large"),
        link("symlink", Kind::Symlink, "../else\u{fffd}where"),
        (entry("fifo", Kind::Fifo), None),
        (entry("socket", Kind::Socket), None),
        (Entry { rdev: Some(0x103), ..entry("null", Kind::CharDevice) }, None),
        (Entry { rdev: Some(0x700), ..entry("loop", Kind::BlockDevice) }, None),
        file("stage", format!("stage {stage}")),
    ];
    let mut holes = vec![0; 300_000];
    holes[200_000..200_100].fill(7);
    let mut sparse = file("holes", holes);
    sparse.0.sparse = Some(true);
    let mut named = file("xattrs", "with attributes");
    named.0.path = b"not \xff text".to_vec();
    named.0.xattrs = Some(vec![xattr("user.comment", b"\x00\x01"), xattr("user.empty", b"")]);
    named.0.mtime_ns = -1;
    all.extend([sparse, named]);
    all.extend((0..16 + stage).map(|i| file(&format!("many-{i:02}"), noise(1_000 + i, 100))));
    all
}

/// A file of pages that change, become zeros, stop being zeros; the file grows and shrinks.
fn database(stage: u64) -> Vec<Captured> {
    let mut pages: Vec<u8> = (0..60_u64).flat_map(|page| noise(page, 64).repeat(PAGE / 64)).collect();
    pages[5 * PAGE..9 * PAGE].fill(0);
    for stage in 1..=stage as usize {
        pages[(10 + stage) * PAGE..(12 + stage) * PAGE].copy_from_slice(&noise(stage as u64, 128).repeat(PAGE / 64));
        pages[(20 + stage) * PAGE..(25 + stage) * PAGE].fill(0);
        pages[6 * PAGE] = stage as u8;
        pages.resize(if stage == 2 { 66 * PAGE } else { 50 * PAGE + 7 }, 3);
    }
    let mut db = file("db", pages);
    db.1 = db.1.map(|(bytes, _)| (bytes, Layout::Pages(PAGE as u32)));
    vec![db]
}

struct World {
    repository: Repository,
    keys: RootKeys,
    snapshots: Vec<Value>,
    clock: Timestamp,
}

impl World {
    async fn backup(&mut self, source: &str, captured: Vec<Captured>, problem: Option<&str>, reason: Option<&str>) {
        self.clock += Duration::from_hours(1);
        let now = self.clock;
        let access = Access::Writer(self.keys.writer.clone());
        let lineage = Arc::new(self.repository.lineage(&source.parse().unwrap(), access));
        let options = Options { level: 3, threads: 2, run_limit: Duration::from_hours(1), retain: None };
        let mut writer = lineage.begin(options, now).await.unwrap();
        let lines = captured.iter().map(|(entry, content)| listing::line(entry, content.as_ref().map(|c| &c.0[..])));
        let entries: Vec<Value> = lines.collect();
        let problem = problem.map(|text| Problem { path: b"unreadable".to_vec(), text: text.into() });
        let writer = tokio::task::spawn_blocking(move || {
            for (number, (entry, content)) in (1..).zip(captured) {
                let (size, mtime_ns) = (entry.size, entry.mtime_ns);
                let fingerprint = Fingerprint { size, mtime_ns, ctime_ns: 1, inode: number };
                let input = content.map(|(bytes, layout)| Input {
                    layout,
                    fingerprint: (entry.path.starts_with(b"many")).then_some(fingerprint),
                    on_error: OnError::Fail,
                    open: Box::new(|| Ok(Box::new(Bytes(io::Cursor::new(bytes))))),
                });
                writer.add(entry, input).unwrap();
            }
            if let Some(problem) = problem {
                writer.problem(problem);
            }
            writer
        });
        let details = BTreeMap::from([("version".into(), "3.6".into())]);
        let facts = Facts { system: Some("a1b2".into()), position: Some(77), details, ..Facts::default() };
        let reasons = reason.map(str::to_owned).into_iter().collect();
        let summary = Summary { kind: "files".into(), started: now, facts, reasons, run: "golden".into() };
        let committed = writer.await.unwrap().commit(summary).await.unwrap();
        self.snapshots.push(json!({
            "source": source,
            "number": committed.sequence.0,
            "state": committed.state,
            "entries": entries,
        }));
    }

    async fn prune(&mut self, identity: &Identity, source: &str, number: u64) {
        let access = Access::Recipient(identity.clone());
        let lineage = self.repository.lineage(&source.parse().unwrap(), access);
        let plan = lineage.plan_prune(&[Sequence(number)], &[]).await.unwrap();
        lineage.prune(&plan, &self.keys.keeper, Duration::ZERO, self.clock).await.unwrap();
        self.snapshots.retain(|s| s["source"] != source || s["number"] != number);
    }
}

#[tokio::main]
async fn main() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let place = tests.join(format!("golden/format-{FORMAT}"));
    let _ = std::fs::remove_dir_all(&place);
    let store = Arc::new(Local::create(place.join("repository")).unwrap());
    let (identity, drill) = (Identity::generate(), Identity::generate());
    let recipient =
        |name: &str, role, identity: &Identity| Recipient { name: name.into(), role, key: identity.public() };
    let clock: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
    let recipients = vec![recipient("recovery", Role::Recovery, &identity)];
    let (repository, keys) = Repository::create(store, recipients, clock).await.unwrap();
    let mut world = World { repository, keys, snapshots: Vec::new(), clock };
    for stage in 0..3 {
        world.backup("files", files(stage), None, None).await;
        world.backup("database", database(stage), None, None).await;
    }
    world.backup("files", files(3), Some("permission denied"), None).await;
    world.backup("files", vec![file("almost", "nothing")], None, Some("it holds 1 file instead of 34")).await;
    let drill_recipient = recipient("drill", Role::Drill, &drill);
    world.repository = world.repository.add_recipient(&identity, drill_recipient, clock).await.unwrap();
    for source in ["files", "database"] {
        world.prune(&identity, source, 2).await;
    }
    (world.repository, world.keys) = world.repository.rotate_writer(&identity, clock).await.unwrap();
    for stage in 4..6 {
        world.backup("files", files(stage), None, None).await;
        world.backup("database", database(stage), None, None).await;
    }
    let write = |name: &str, text: String| std::fs::write(place.join(name), text + "\n").unwrap();
    write("identity", identity.to_text());
    write("drill-identity", drill.to_text());
    write("writer-key", world.keys.writer.to_text());
    write("keeper-key", world.keys.keeper.to_text());
    let contents = json!({"id": world.repository.root().id.to_string(), "snapshots": world.snapshots});
    write("contents.json", serde_json::to_string_pretty(&contents).unwrap());
    corpus(&tests.join("fuzz/corpus"), &world, &identity).await;
}

/// The smallest valid inputs of each target.
async fn corpus(place: &Path, world: &World, identity: &Identity) {
    const EACH: usize = 3;
    let entries: Vec<Entry> = files(0).into_iter().take(14).map(|(entry, _)| entry).collect();
    let entries = minicbor::to_vec(entries).unwrap();
    let mut seeds = vec![("tar", entries.clone()), ("tree", entries)];
    let keys = [world.keys.writer.to_text(), world.keys.keeper.to_text(), identity.to_text()];
    seeds.extend(keys.map(|key| ("key", key.into_bytes())));
    for source in ["files", "database"] {
        let source: SourceName = source.parse().unwrap();
        let lineage = Arc::new(world.repository.lineage(&source, Access::Recipient(identity.clone())));
        seeds.extend(fuzzing::seeds(&lineage).await.unwrap());
    }
    let mut by_target = BTreeMap::<&str, Vec<Vec<u8>>>::new();
    for (target, bytes) in seeds {
        by_target.entry(target).or_default().push(bytes);
    }
    for (target, mut inputs) in by_target {
        inputs.sort_by_key(Vec::len);
        inputs.dedup();
        std::fs::create_dir_all(place.join(target)).unwrap();
        for (number, input) in (1..).zip(inputs.iter().take(EACH)) {
            std::fs::write(place.join(target).join(format!("valid-{number}")), input).unwrap();
        }
    }
}
