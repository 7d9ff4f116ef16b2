//! No decoder of untrusted bytes panics, or takes memory on anyone's word. The same targets run under libFuzzer
//! (`tests/fuzz/run`); here they get valid inputs of the engine, altered the same way on every run, and the corpus.
#![allow(clippy::unwrap_used, reason = "a test that meets an error is to fail")]

#[path = "fuzz/targets.rs"]
mod targets;
#[path = "engine/world.rs"]
#[allow(dead_code, reason = "shared with the tests of the engine")]
mod world;

use lifeboat::repo::{Identity, Recipient, Role, fuzzing};
use lifeboat::store::Memory;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use world::{File, Tree, World, noise, now};

const CASES: u32 = 2_000;

#[derive(Clone, Debug)]
enum Change {
    Flip(prop::sample::Index, u8),
    /// Numbers at the edges, as CBOR writes them, and texts that parsers trip over.
    Overwrite(prop::sample::Index, &'static [u8]),
    Insert(prop::sample::Index, Vec<u8>),
    Delete(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize, prop::sample::Index),
    CutOff(prop::sample::Index),
}

const EDGES: [&[u8]; 10] = [
    b"\x1b\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x1b\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\x1a\xff\xff\xff\xff",
    b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x5b\x00\xff\xff\xff\xff\xff\xff\xff",
    b"\x00",
    b"\xff\xff\xff\xff",
    b"\"\\ud800",
    b"../",
    b"18446744073709551615",
];

fn change() -> impl Strategy<Value = Change> {
    let at = || any::<prop::sample::Index>();
    prop_oneof![
        (at(), 1..=255_u8).prop_map(|(at, bits)| Change::Flip(at, bits)),
        (at(), prop::sample::select(&EDGES[..])).prop_map(|(at, bytes)| Change::Overwrite(at, bytes)),
        (at(), prop::collection::vec(any::<u8>(), 1..16)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        (at(), 1..64_usize).prop_map(|(at, length)| Change::Delete(at, length)),
        (at(), 1..64_usize, at()).prop_map(|(from, length, to)| Change::Repeat(from, length, to)),
        at().prop_map(Change::CutOff),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    let place = |at: &prop::sample::Index, bytes: &[u8]| at.index(bytes.len() + 1);
    let end = |at: usize, length: usize, bytes: &[u8]| (at + length).min(bytes.len());
    match change {
        Change::Flip(at, bits) if !bytes.is_empty() => {
            let at = at.index(bytes.len());
            bytes[at] ^= bits;
        }
        Change::Flip(..) => {}
        Change::Overwrite(at, with) => {
            let at = place(at, bytes);
            bytes.splice(at..end(at, with.len(), bytes), with.iter().copied());
        }
        Change::Insert(at, with) => {
            let at = place(at, bytes);
            bytes.splice(at..at, with.iter().copied());
        }
        Change::Delete(at, length) => {
            let at = place(at, bytes);
            bytes.drain(at..end(at, *length, bytes));
        }
        Change::Repeat(from, length, to) => {
            let (from, to) = (place(from, bytes), place(to, bytes));
            let piece = bytes[from..end(from, *length, bytes)].to_vec();
            bytes.splice(to..to, piece);
        }
        Change::CutOff(at) => bytes.truncate(place(at, bytes)),
    }
}

/// A lineage that has something of everything: two epochs, a later recipient, a prune record, chunks, pages and zeros.
async fn of_the_engine() -> Vec<(&'static str, Vec<u8>)> {
    let mut world = World::new(Arc::new(Memory::new())).await;
    let mut tree = Tree::new();
    for i in 0..30 {
        let file = File { version: Some(i), ..File::content(noise(i, 500)) };
        tree.insert(format!("file-{i:02}"), file);
    }
    let mut pages = noise(99, 40 * 512);
    for number in 0..3_usize {
        pages[number * 1024..][..512].fill(0);
        tree.insert("pages".into(), File::pages(pages.clone(), 512));
        world.backup(&tree).await.unwrap();
    }
    let reading = world.reading();
    let plan = reading.plan_prune(&[lifeboat::id::Sequence(1)], &[]).await.unwrap();
    reading.prune(&plan, &world.keys.keeper, Duration::ZERO, now()).await.unwrap();
    let drill = Recipient { name: "drill".into(), role: Role::Drill, key: Identity::generate().public() };
    world.repository = world.repository.add_recipient(&world.identity, drill, now()).await.unwrap();
    let rotated = world.repository.rotate_writer(&world.identity, now()).await.unwrap();
    (world.repository, world.keys) = rotated;
    world.backup(&tree).await.unwrap();
    fuzzing::seeds(&world.reading()).await.unwrap()
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus")
}

fn inputs(target: &str) -> Vec<PathBuf> {
    let inputs = std::fs::read_dir(corpus().join(target)).unwrap_or_else(|why| panic!("corpus of {target}: {why}"));
    inputs.map(|input| input.unwrap().path()).collect()
}

/// Valid inputs: of this engine, and those of the corpus that are called so.
fn seeds() -> BTreeMap<&'static str, Vec<Vec<u8>>> {
    let engine = world::runtime().block_on(of_the_engine());
    let mut seeds = BTreeMap::<&str, Vec<Vec<u8>>>::new();
    for (target, bytes) in engine {
        seeds.entry(target).or_default().push(bytes);
    }
    for (target, _) in targets::targets() {
        let valid =
            inputs(target).into_iter().filter(|path| path.file_name().unwrap().as_bytes().starts_with(b"valid-"));
        seeds.entry(target).or_default().extend(valid.map(|path| std::fs::read(path).unwrap()));
    }
    seeds
}

/// The most memory that this process ever had, bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

#[test]
fn valid_inputs_decode_and_altered_ones_never_panic() {
    let seeds = seeds();
    for (name, target) in targets::targets() {
        let valid = &seeds[name];
        assert!(!valid.is_empty(), "{name} has no valid inputs");
        for (number, seed) in valid.iter().enumerate() {
            assert!(target(seed), "valid input {number} of {name} does not decode");
        }
        let before = peak();
        let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        let cases = (prop::sample::select(valid.clone()), prop::collection::vec(change(), 1..6));
        let outcome = runner.run(&cases, |(mut bytes, changes)| {
            for change in &changes {
                apply(&mut bytes, change);
            }
            target(&bytes);
            Ok(())
        });
        outcome.unwrap_or_else(|why| panic!("{name}: {why}"));
        // The kernel adds up what its threads have counted now and then: the sum may go back a little.
        let grown = peak().saturating_sub(before);
        assert!(grown < 256 << 20, "{name} took {grown} bytes for inputs of a few kB");
    }
}

#[test]
fn the_corpus_never_panics() {
    for (name, target) in targets::targets() {
        for input in inputs(name) {
            let valid = target(&std::fs::read(&input).unwrap());
            assert!(valid || !input.file_name().unwrap().as_bytes().starts_with(b"valid-"), "{}", input.display());
        }
    }
    let known: Vec<_> = targets::targets().iter().map(|target| target.0).collect();
    let strays = std::fs::read_dir(corpus()).unwrap().map(|entry| entry.unwrap().file_name());
    let strays: Vec<_> = strays.filter(|name| !known.iter().any(|known| name == *known)).collect();
    assert!(strays.is_empty(), "{strays:?} are no targets");
}
