//! Random sequences of backups, prunes and crashes, against a map of what must be there.

use crate::world::{File, Tree, World, contents, noise, now, runtime};
use lifeboat::id::Sequence;
use lifeboat::repo::{Depth, Selector};
use lifeboat::store::{Fault, Faults, Faulty, Memory};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Debug)]
enum Step {
    /// Changes `count` things, chosen by `seed`, and backs up; the store fails from operation `fail` on, if given.
    Backup { seed: u64, count: u8, fail: Option<u64> },
    /// Removes the snapshots whose bits are set, oldest first; the store fails as above.
    Prune { which: u8, fail: Option<u64> },
    /// The store's clock moves on.
    Wait { hours: i64 },
}

fn step() -> impl Strategy<Value = Step> {
    let fail = || prop::option::weighted(0.3, 1u64..25);
    prop_oneof![
        5 => (any::<u64>(), 0u8..12, fail()).prop_map(|(seed, count, fail)| Step::Backup { seed, count, fail }),
        2 => (any::<u8>(), fail()).prop_map(|(which, fail)| Step::Prune { which, fail }),
        2 => (1i64..100).prop_map(|hours| Step::Wait { hours }),
    ]
}

fn change(tree: &mut Tree, seed: u64, count: u8) {
    for i in 0..u64::from(count) {
        let dice = noise(seed.wrapping_add(i), 16);
        let name = format!("f{}", dice[0] % 12);
        let length = usize::from(dice[1]) * 40;
        match dice[2] % 5 {
            0 => drop(tree.remove(&name)),
            1 => {
                let db = tree.entry("db".into()).or_insert_with(|| File::pages(Vec::new(), 512));
                db.bytes.resize(usize::from(dice[3]) * 300, 0);
                let at = usize::from(dice[4]) * 290;
                if at + 600 < db.bytes.len() {
                    let fill = if dice[5].is_multiple_of(3) { 0 } else { dice[5] };
                    db.bytes[at..at + 600].fill(fill);
                }
            }
            _ => drop(tree.insert(name, File { version: Some(seed ^ i), ..File::content(noise(seed ^ i, length)) })),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn committed_snapshots_read_back_whatever_happens(steps in prop::collection::vec(step(), 1..16)) {
        runtime().block_on(async {
            let memory = Arc::new(Memory::new());
            let mut clock = now();
            memory.set_now(clock);
            let world = World::new(memory.clone()).await;
            let faults = Arc::new(Faults::default());
            let broken = world.through(Arc::new(Faulty::new(memory.clone(), faults.clone()))).await.unwrap();
            let mut tree = Tree::from([("always".into(), File::content("here"))]);
            let mut model: BTreeMap<Sequence, Tree> = BTreeMap::new();
            // What a prune that was cut off has recorded as gone, the next one removes.
            let mut doomed: BTreeSet<Sequence> = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Wait { hours } => {
                        clock += jiff::SignedDuration::from_hours(hours);
                        memory.set_now(clock);
                    }
                    Step::Backup { seed, count, fail } => {
                        change(&mut tree, seed, count);
                        faults.set(fail.map_or(Fault::Nothing, Fault::From));
                        if let Ok(done) = broken.backup_at(&tree, clock).await {
                            model.insert(done.sequence, tree.clone());
                        }
                    }
                    Step::Prune { which, fail } => {
                        let newest = model.keys().max().copied();
                        let numbers = model.keys().copied().filter(|s| Some(*s) != newest).enumerate();
                        let remove: Vec<_> = numbers.filter(|(i, _)| which >> (i % 8) & 1 == 1).map(|(_, s)| s).collect();
                        faults.set(fail.map_or(Fault::Nothing, Fault::From));
                        let lineage = broken.reading();
                        let grace = Duration::from_hours(72);
                        if let Ok(plan) = lineage.plan_prune(&remove, &[]).await {
                            let _ = lineage.prune(&plan, &world.keys.keeper, grace, clock).await;
                        }
                        // Cut off or not, each of them is whole or gone.
                        let (left, over) = world.reading().snapshots().await.unwrap();
                        assert!(over.is_empty());
                        let left: Vec<_> = left.iter().map(lifeboat::repo::Snapshot::sequence).collect();
                        doomed.extend(remove);
                        model.retain(|s, _| left.contains(s) || !doomed.contains(s));
                    }
                }
                faults.set(Fault::Nothing);
            }
            for (sequence, tree) in &model {
                let read = world.read(&Selector::Number(*sequence)).await.unwrap();
                assert_eq!(contents(&read), contents(tree), "snapshot {sequence}");
            }
            let verified = world.reading().verify(Depth::Data, 1.0, 0).await.unwrap();
            assert_eq!(verified.snapshots, model.len());
            assert!(verified.findings.is_empty(), "{:?}", verified.findings);
        });
    }
}
