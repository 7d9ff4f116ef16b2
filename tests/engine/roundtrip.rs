use crate::world::{Bytes, File, Tree, World, contents, entry, noise, now, runtime};
use lifeboat::entry::{Fingerprint, Input, Layout, OnError, Sink};
use lifeboat::id::Sequence;
use lifeboat::repo::{Depth, RepoError, Selector};
use lifeboat::store::{Fault, Faults, Faulty, Memory, Store};
use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

fn tree() -> Tree {
    let mut tree = Tree::new();
    for i in 0..3000u64 {
        tree.insert(format!("small/{i:05}"), File::content(noise(i, (i % 700) as usize)));
    }
    tree.insert("empty".into(), File::content(""));
    tree.insert("large".into(), File::content(noise(1, 9 << 20)));
    tree.insert("text".into(), File::content(b"the same line again\n".repeat(300_000)));
    let mut pages = noise(2, 3 << 20);
    pages[8192..40_960].fill(0);
    tree.insert("zz-pages".into(), File::pages(pages, 4096));
    tree.insert("zz-tail".into(), File::pages(noise(3, 10_001), 4096));
    tree
}

#[test]
fn what_goes_in_comes_out_and_unchanged_data_costs_little() {
    runtime().block_on(async {
        let world = World::new(Arc::new(Memory::new())).await;
        let mut tree = tree();
        let first = world.backup(&tree).await.unwrap();
        assert_eq!((first.sequence, first.catalogue.entries), (Sequence(1), tree.len() as u64));
        assert!(first.catalogue.stored_bytes < first.catalogue.bytes * 11 / 10);
        assert_eq!(contents(&world.read(&Selector::Latest).await.unwrap()), contents(&tree));

        let again = world.backup(&tree).await.unwrap();
        assert_eq!(again.catalogue.new_bytes, 0, "nothing changed");
        assert_eq!(again.catalogue.stored_bytes, 0);

        let pages = &mut tree.get_mut("zz-pages").unwrap().bytes;
        pages[..4096].fill(0); // held before
        pages[8192..12_288].copy_from_slice(&noise(9, 4096)); // zeros before
        pages.truncate(2 << 20);
        tree.get_mut("large").unwrap().bytes.splice(100..100, *b"inserted");
        tree.remove("small/00007");
        let third = world.backup(&tree).await.unwrap();
        assert!(third.catalogue.new_bytes < 6 << 20, "{}", third.catalogue.new_bytes);
        assert_eq!(contents(&world.read(&Selector::Latest).await.unwrap()), contents(&tree));

        // Shorter, then longer again, with zeros where there was something once.
        let pages = &mut tree.get_mut("zz-pages").unwrap().bytes;
        pages.resize(3 << 20, 0);
        world.backup(&tree).await.unwrap();
        assert_eq!(contents(&world.read(&Selector::Latest).await.unwrap()), contents(&tree));
        let old = world.read(&Selector::Number(Sequence(1))).await.unwrap();
        assert_eq!(contents(&old), contents(&self::tree()));
    });
}

#[test]
fn unchanged_files_are_not_read() {
    runtime().block_on(async {
        let world = World::new(Arc::new(Memory::new())).await;
        let mut tree = Tree::new();
        for i in 0..5000u64 {
            tree.insert(format!("{i:05}"), File { version: Some(7), ..File::content(noise(i, 300)) });
        }
        world.backup(&tree).await.unwrap();
        // The bytes change behind an unchanged fingerprint: whoever reads them sees it.
        let mut lying = tree.clone();
        for file in lying.values_mut() {
            file.bytes.fill(b'!');
        }
        let second = world.backup(&lying).await.unwrap();
        assert_eq!(second.catalogue.new_bytes, 0);
        assert_eq!(contents(&world.read(&Selector::Latest).await.unwrap()), contents(&tree));
        let changed = tree.get_mut("02500").unwrap();
        *changed = File { version: Some(8), ..File::content("new") };
        let third = world.backup(&tree).await.unwrap();
        assert!(third.catalogue.new_bytes < 2_000_000, "{}", third.catalogue.new_bytes);
        assert_eq!(contents(&world.read(&Selector::Latest).await.unwrap()), contents(&tree));
    });
}

/// Several lists of hints, in the order of the snapshot before and in any other.
#[test]
fn unchanged_files_are_not_read_in_whatever_order_they_come() {
    runtime().block_on(async {
        let world = World::new(Arc::new(Memory::new())).await;
        let all: Vec<u64> = (0..12_000).collect();
        let content = |file: u64| file.to_le_bytes().repeat(16);
        let backup = async |files: Vec<u64>| {
            let writer = world.writing().begin(crate::world::options(), now()).await.unwrap();
            let read = Arc::new(AtomicUsize::new(0));
            let seen = read.clone();
            let captured = tokio::task::spawn_blocking(move || {
                let mut writer = writer;
                for file in files {
                    let (bytes, seen) = (content(file), seen.clone());
                    let stamp = file.cast_signed();
                    let input = Input {
                        layout: Layout::Content,
                        fingerprint: Some(Fingerprint { size: 128, mtime_ns: stamp, ctime_ns: stamp, inode: file }),
                        on_error: OnError::Fail,
                        open: Box::new(move || {
                            seen.fetch_add(1, Ordering::Relaxed);
                            Ok(Box::new(Bytes(Cursor::new(bytes))))
                        }),
                    };
                    writer.add(entry(&format!("file-{file}"), 128), Some(input)).unwrap();
                }
                writer
            });
            captured.await.unwrap().commit(crate::world::summary(now())).await.unwrap();
            read.load(Ordering::Relaxed)
        };
        assert_eq!(backup(all.clone()).await, 12_000);
        assert_eq!(backup(all.clone()).await, 0);
        assert_eq!(backup(all.iter().rev().copied().collect()).await, 0);
        let strides = (0..7).flat_map(|from| all.iter().skip(from).step_by(7).copied()).collect();
        assert_eq!(backup(strides).await, 0);
        let fewer_and_more: Vec<u64> =
            all.iter().copied().filter(|n| !(2_000..9_000).contains(n)).chain(20_000..20_010).collect();
        assert_eq!(backup(fewer_and_more.clone()).await, 10);
        let read = world.read(&Selector::Latest).await.unwrap();
        assert_eq!(read.len(), fewer_and_more.len());
        assert!(fewer_and_more.iter().all(|n| read[&format!("file-{n}")].bytes == content(*n)));
    });
}

/// While one list is gone through, others are on their way, out of packs that its entries need too: nobody waits for ever.
#[test]
fn lists_out_of_many_packs_are_checked() {
    runtime().block_on(async {
        let faults = Arc::new(Faults::default());
        let world = World::new(Arc::new(Faulty::new(Arc::new(Memory::new()), faults.clone()))).await;
        let mut tree: Tree =
            (0..16_000_u64).map(|file| (format!("{file:05}"), File::content(file.to_le_bytes().repeat(8)))).collect();
        world.backup(&tree).await.unwrap();
        // The first list comes to name all packs; each of the others lies in one of its own.
        for step in 1..8_u64 {
            for file in [step, 2_000 * step + 1_000] {
                tree.insert(format!("{file:05}"), File::content(noise(file, 1_000)));
            }
            world.backup(&tree).await.unwrap();
        }
        faults.set(Fault::Delay(Duration::from_millis(20)));
        let lineage = world.reading();
        let verified = tokio::time::timeout(Duration::from_mins(2), lineage.verify(Depth::Data, 1.0, 0)).await;
        assert_eq!(verified.expect("it waits for itself").unwrap().findings, []);
    });
}

#[test]
fn a_capture_of_nothing_is_an_error_and_leaves_no_snapshot() {
    runtime().block_on(async {
        let store = Arc::new(Memory::new());
        let world = World::new(store.clone()).await;
        assert!(matches!(world.backup(&Tree::new()).await, Err(RepoError::EmptyCapture)));
        assert!(store.list("data/snapshots/", None, 10).await.unwrap().is_empty());
    });
}

#[test]
fn two_writers_at_once_both_commit() {
    runtime().block_on(async {
        let world = Arc::new(World::new(Arc::new(Memory::new())).await);
        let trees: Vec<Tree> = (0..6u64)
            .map(|i| Tree::from([("a".into(), File::content(noise(i, 400_000))), ("b".into(), File::content("b"))]))
            .collect();
        let runs = trees.iter().map(|tree| {
            let (world, tree) = (world.clone(), tree.clone());
            tokio::spawn(async move { world.backup(&tree).await.unwrap().sequence })
        });
        for (tree, run) in trees.iter().zip(runs.collect::<Vec<_>>()) {
            let sequence = run.await.unwrap();
            assert_eq!(contents(&world.read(&Selector::Number(sequence)).await.unwrap()), contents(tree));
        }
    });
}

/// A page file that is rewritten at random: the number of packs a snapshot names stays small, and so does what is stored.
#[test]
fn many_page_snapshots_stay_bounded() {
    runtime().block_on(async {
        let world = World::new(Arc::new(Memory::new())).await;
        let mut bytes = noise(1, 8 << 20);
        let (mut most_packs, mut new_bytes) = (0, 0);
        for round in 0..120u64 {
            for i in 0..100 {
                let page = noise(round * 1000 + i, 8)[..4].iter().fold(0usize, |a, b| a * 256 + usize::from(*b)) % 2048;
                bytes[page * 4096..][..4096].copy_from_slice(&noise(round * 7919 + i, 4096));
            }
            let tree =
                Tree::from([("db".into(), File { layout: Layout::Pages(4096), ..File::content(bytes.clone()) })]);
            let done = world.backup(&tree).await.unwrap();
            most_packs = most_packs.max(done.packs);
            new_bytes += if round == 0 { 0 } else { done.catalogue.new_bytes };
            if round % 30 == 29 {
                assert_eq!(contents(&world.read(&Selector::Latest).await.unwrap()), contents(&tree));
            }
        }
        assert!(most_packs <= 60, "{most_packs}");
        assert!(new_bytes < 119 * 100 * 4096 * 2, "{new_bytes}");
    });
}
