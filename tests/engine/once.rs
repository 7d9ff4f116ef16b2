//! A restore to a disk fetches what is stored once, wherever the packs have what the list names.

use crate::world::{File, Tree as Files, World, contents, noise, runtime};
use lifeboat::repo::{Reader, Selector};
use lifeboat::restore::Selection;
use lifeboat::restore::snapshot::{Progress, Restored, restore};
use lifeboat::restore::tree::{Options, Tree};
use lifeboat::store::{Fault, Faults, Faulty, Memory};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

struct Counted {
    world: World,
    faults: Arc<Faults>,
}

impl Counted {
    async fn new() -> Self {
        let faults = Arc::new(Faults::default());
        let store = Faulty::new(Arc::new(Memory::new()), faults.clone());
        Self { world: World::new(Arc::new(store)).await, faults }
    }

    /// Restores the newest snapshot, and says how many bytes were fetched.
    async fn restore(&self, to: &Path, selection: Selection) -> (Restored, u64) {
        let lineage = self.world.reading();
        let (snapshot, _) = lineage.find(&Selector::Latest).await.unwrap();
        let reader = Reader::open(lineage, snapshot).await.unwrap();
        self.faults.set(Fault::Nothing);
        let tree = Tree::create(to, Options::default()).unwrap();
        let work = move || restore(&reader, tree, &selection, 2, &Progress::default()).unwrap();
        (tokio::task::spawn_blocking(work).await.unwrap(), self.faults.fetched())
    }
}

fn on_disk(root: &Path, files: &Files) -> BTreeMap<String, Vec<u8>> {
    files.keys().map(|path| (path.clone(), std::fs::read(root.join(path)).unwrap())).collect()
}

fn same(root: &Path, files: &Files) {
    let is = on_disk(root, files);
    let is: BTreeMap<&str, &[u8]> = is.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
    assert!(is == contents(files));
}

/// Large files among small ones, whose chunks two threads put into the same packs.
fn mixed() -> Files {
    let mut files = Files::new();
    for i in 0..12u64 {
        files.insert(format!("{i:02}/large"), File::content(noise(i + 1, 9 << 20)));
        for k in 0..120 {
            let content = noise(1000 * (i + 1) + k, 20_000 + 100 * k as usize);
            files.insert(format!("{i:02}/small-{k:03}"), File::content(content));
        }
    }
    files
}

#[test]
fn copies_and_neighbours_are_fetched_once() {
    runtime().block_on(async {
        let counted = Counted::new().await;
        let mut files = mixed();
        for i in 0..300u64 {
            let of = format!("{:02}/small-{:03}", i * 7 % 12, i * 37 % 120);
            files.insert(format!("copies/{i:03}"), files[&of].clone());
        }
        files.insert("copies/large".into(), files["05/large"].clone());
        let stored = counted.world.backup(&files).await.unwrap().catalogue.stored_bytes;
        let to = tempfile::tempdir().unwrap();
        let (restored, fetched) = counted.restore(to.path(), Selection::default()).await;
        assert_eq!((restored.entries, restored.problems.len()), (files.len() as u64, 0));
        same(to.path(), &files);
        assert!(fetched <= stored + stored / 20, "{fetched} of {stored}");
    });
}

/// Every tenth file changes between snapshots, so that neighbours lie in many packs.
#[test]
fn what_lies_in_many_packs_is_fetched_once() {
    runtime().block_on(async {
        let counted = Counted::new().await;
        let mut files = Files::new();
        let content = |path: u64, round: u64| File::content(noise(path * 100 + round + 1, 30_000));
        (0..2000).for_each(|i| _ = files.insert(format!("{i:04}"), content(i, 0)));
        counted.world.backup(&files).await.unwrap();
        // What the last ten stored is all that there is now.
        let mut stored = 0;
        for round in 1..16 {
            (round % 10..2000).step_by(10).for_each(|i| _ = files.insert(format!("{i:04}"), content(i, round)));
            let made = counted.world.backup(&files).await.unwrap();
            stored += if round > 5 { made.catalogue.stored_bytes } else { 0 };
        }
        let to = tempfile::tempdir().unwrap();
        let (_, fetched) = counted.restore(to.path(), Selection::default()).await;
        same(to.path(), &files);
        assert!(fetched <= stored + stored / 20, "{fetched} of {stored}");
    });
}

/// The first of two files was changed, or closed to readers, before the second could be copied from it.
#[test]
fn a_copy_is_made_of_what_is_right() {
    runtime().block_on(async {
        let counted = Counted::new().await;
        let mut files = Files::new();
        for path in ["a", "b"] {
            files.insert(path.into(), File::content(noise(1, 100_000)));
        }
        // So much lies between them that they are not made at the same time.
        (0..40_000).for_each(|i| _ = files.insert(format!("aa/{i:05}"), File::content(noise(i + 2, 1))));
        counted.world.backup(&files).await.unwrap();
        let to = tempfile::tempdir().unwrap();
        let first = to.path().join("a");
        let changing = std::thread::spawn(move || {
            let whole =
                |first: &Path| std::fs::metadata(first).is_ok_and(|is| is.permissions().mode() & 0o777 == 0o644);
            while !whole(&first) {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            std::fs::write(&first, noise(9, 100_000)).unwrap();
        });
        counted.restore(to.path(), Selection::default()).await;
        changing.join().unwrap();
        assert!(std::fs::read(to.path().join("b")).unwrap() == files["b"].bytes);
    });
}
