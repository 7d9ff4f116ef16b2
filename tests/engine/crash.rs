//! A process killed, or a store that fails, after any number of operations.

use crate::world::{File, Tree, World, contents, noise, now, runtime};
use lifeboat::id::Sequence;
use lifeboat::repo::{Depth, RepoError, Selector};
use lifeboat::store::{Fault, Faults, Faulty, Memory, PutOptions, Store, StoreErrorKind};
use std::sync::Arc;
use std::time::Duration;

fn trees() -> (Tree, Tree) {
    let mut first = Tree::new();
    for i in 0..20u64 {
        first.insert(format!("f{i:02}"), File { version: Some(1), ..File::content(noise(i, 2000)) });
    }
    first.insert("pages".into(), File::pages(noise(50, 80_000), 4096));
    let mut second = first.clone();
    second.insert("f03".into(), File { version: Some(2), ..File::content(noise(99, 3000)) });
    second.insert("new".into(), File::content(noise(98, 2_000_000)));
    second.get_mut("pages").unwrap().bytes[5000..9000].fill(7);
    (first, second)
}

async fn check_all(world: &World, expected: &[(Sequence, &Tree)]) {
    for (sequence, tree) in expected {
        let read = world.read(&Selector::Number(*sequence)).await.unwrap();
        assert_eq!(contents(&read), contents(tree), "snapshot {sequence}");
    }
    let verified = world.reading().verify(Depth::Data, 1.0, 0).await.unwrap();
    assert_eq!(verified.findings, [], "{expected:?}");
    assert_eq!(verified.snapshots, expected.len());
}

/// For every N of a small backup: the store fails from the N-th operation on, or the answer to it is lost.
#[test]
fn a_backup_cut_off_anywhere_loses_nothing_that_was_committed() {
    runtime().block_on(async {
        let (first, second) = trees();
        for fault in [Fault::From, Fault::KilledAfter, Fault::Only, Fault::AnswerLost] {
            for n in 1.. {
                let memory: Arc<dyn Store> = Arc::new(Memory::new());
                let world = World::new(memory.clone()).await;
                world.backup(&first).await.unwrap();
                let faults = Arc::new(Faults::default());
                let broken = world.through(Arc::new(Faulty::new(memory, faults.clone()))).await.unwrap();
                faults.set(fault(n));
                let result = broken.backup(&second).await;
                let reached = faults.operations() >= n;
                let (snapshots, stepped_over) = world.reading().snapshots().await.unwrap();
                assert!(stepped_over.is_empty());
                let mut expected = vec![(Sequence(1), &first)];
                if snapshots.len() == 2 {
                    expected.push((Sequence(2), &second));
                }
                if let Err(error) = &result {
                    assert!(matches!(error, RepoError::Store(_)), "{n}: {error:?}");
                } else {
                    assert_eq!(snapshots.len(), 2, "{n}: success means a snapshot");
                }
                check_all(&world, &expected).await;
                // The next run, on a healthy store, works and builds on what is there.
                let next = world.backup(&second).await.unwrap();
                expected.push((next.sequence, &second));
                check_all(&world, &expected).await;
                if !reached {
                    assert!(result.is_ok());
                    assert!(n > 5, "a backup has more operations than {n}");
                    break;
                }
            }
        }
    });
}

#[test]
fn a_full_store_fails_the_run_with_its_own_words() {
    runtime().block_on(async {
        let (first, second) = trees();
        let memory: Arc<dyn Store> = Arc::new(Memory::new());
        let world = World::new(memory.clone()).await;
        world.backup(&first).await.unwrap();
        let faults = Arc::new(Faults::default());
        let full = world.through(Arc::new(Faulty::new(memory, faults.clone()))).await.unwrap();
        for n in 4..8 {
            faults.set_as(Fault::From(n), StoreErrorKind::Full);
            match full.backup(&second).await {
                Err(RepoError::Store(error)) => assert_eq!(error.kind, StoreErrorKind::Full),
                other => panic!("{other:?}"),
            }
        }
        check_all(&world, &[(Sequence(1), &first)]).await;
    });
}

#[test]
fn a_prune_cut_off_anywhere_loses_nothing_that_stays() {
    runtime().block_on(async {
        let (first, second) = trees();
        for fault in [Fault::From, Fault::KilledAfter] {
            for n in 1.. {
                let memory = Arc::new(Memory::new());
                memory.set_now(now());
                let world = World::new(memory.clone()).await;
                world.backup(&first).await.unwrap();
                world.backup(&second).await.unwrap();
                world.backup(&first).await.unwrap();
                memory.set_now(now() + jiff::SignedDuration::from_hours(100));
                let faults = Arc::new(Faults::default());
                let broken = world.through(Arc::new(Faulty::new(memory.clone(), faults.clone()))).await.unwrap();
                faults.set(fault(n));
                let prune = async |world: &World| {
                    let lineage = world.reading();
                    let plan = lineage.plan_prune(&[Sequence(1)], &[]).await?;
                    lineage.prune(&plan, &world.keys.keeper, Duration::from_hours(72), now()).await
                };
                let result = prune(&broken).await;
                let reached = faults.operations() >= n;
                for (sequence, tree) in [(Sequence(2), &second), (Sequence(3), &first)] {
                    assert_eq!(contents(&world.read(&Selector::Number(sequence)).await.unwrap()), contents(tree));
                }
                // Again, on a healthy store, it comes to the same end.
                let again = world.reading().plan_prune(&[], &[]).await.unwrap();
                world.reading().prune(&again, &world.keys.keeper, Duration::from_hours(72), now()).await.unwrap();
                if result.is_ok() {
                    check_all(&world, &[(Sequence(2), &second), (Sequence(3), &first)]).await;
                }
                if !reached {
                    break;
                }
            }
        }
    });
}

/// Cut off after its record, or held by a lock, and then the writer key was rotated.
#[test]
fn what_a_prune_left_is_pruned_after_a_rotation_too() {
    runtime().block_on(async {
        let (first, second) = trees();
        let memory = Arc::new(Memory::new());
        let world = World::new(memory.clone()).await;
        world.backup(&first).await.unwrap();
        world.backup(&second).await.unwrap();
        let object = "data/snapshots/9999999998-1";
        let left = memory.get(object).await.unwrap();
        let prune = async |world: &World| {
            let lineage = world.reading();
            let plan = lineage.plan_prune(&[Sequence(1)], &[]).await.unwrap();
            lineage.prune(&plan, &world.keys.keeper, Duration::from_hours(72), now()).await.unwrap()
        };
        prune(&world).await;
        memory.put(object, left, PutOptions::default()).await.unwrap();
        let (repository, keys) = world.repository.rotate_writer(&world.identity, now()).await.unwrap();
        let rotated = World { repository, keys, identity: world.identity.clone(), source: world.source.clone() };
        rotated.backup(&second).await.unwrap();
        assert_eq!(contents(&rotated.read(&Selector::Number(Sequence(1))).await.unwrap()), contents(&first));
        assert_eq!(prune(&rotated).await.removed, [Sequence(1)]);
        assert!(memory.head(object).await.is_err());
        let records = memory.list("data/pruned/", None, 10).await.unwrap().len();
        assert_eq!(records, 1, "the record says it already");
    });
}

/// A backup begins, its base is pruned and swept meanwhile, and it commits.
#[test]
fn a_sweep_spares_what_a_running_backup_builds_on() {
    runtime().block_on(async {
        let (first, second) = trees();
        let hours = |h| now() + jiff::SignedDuration::from_hours(h);
        let memory = Arc::new(Memory::new());
        memory.set_now(hours(0));
        let world = World::new(memory.clone()).await;
        world.backup(&first).await.unwrap();
        let running = world.writing().begin(crate::world::options(), now()).await.unwrap();
        // Meanwhile another run commits something else, and the base goes.
        memory.set_now(hours(80));
        let other = Tree::from([("other".into(), File::content("other"))]);
        world.backup(&other).await.unwrap();
        let lineage = world.reading();
        let plan = lineage.plan_prune(&[Sequence(1)], &[]).await.unwrap();
        assert!(plan.freed >= 1);
        let grace = Duration::from_hours(72);
        let pruned = lineage.prune(&plan, &world.keys.keeper, grace, now()).await.unwrap();
        assert_eq!((pruned.deleted_packs, pruned.waiting), (0, plan.freed));
        let none = lineage.plan_prune(&[], &[]).await.unwrap();
        memory.set_now(hours(80 + 71));
        let pruned = lineage.prune(&none, &world.keys.keeper, grace, now()).await.unwrap();
        assert_eq!(pruned.deleted_packs, 0, "the grace period has not passed since the record");
        let tree = second.clone();
        let running = tokio::task::spawn_blocking(move || crate::world::capture(running, &tree)).await.unwrap();
        let committed = running.commit(crate::world::summary(now())).await.unwrap();
        memory.set_now(hours(80 + 200));
        lineage.prune(&none, &world.keys.keeper, grace, now()).await.unwrap();
        let read = world.read(&Selector::Number(committed.sequence)).await.unwrap();
        assert_eq!(contents(&read), contents(&second));
    });
}

/// A host sleeps in the middle of a run, its clock with it, until all that it stored has been swept.
#[test]
fn what_was_swept_under_a_sleeping_run_is_not_committed() {
    runtime().block_on(async {
        let (first, second) = trees();
        let grace = Duration::from_hours(72);
        for base_goes_too in [false, true] {
            let memory = Arc::new(Memory::new());
            memory.set_now(now());
            let world = World::new(memory.clone()).await;
            world.backup(&first).await.unwrap();
            let running = world.writing().begin(crate::world::options(), now()).await.unwrap();
            let tree = if base_goes_too { first.clone() } else { second.clone() };
            let running = tokio::task::spawn_blocking(move || crate::world::capture(running, &tree)).await.unwrap();
            let finished = running.finish().await.unwrap();
            let mut remove = Vec::new();
            if base_goes_too {
                world.backup(&Tree::from([("other".into(), File::content("other"))])).await.unwrap();
                remove.push(Sequence(1));
            }
            let lineage = world.reading();
            for hours in [0, 100] {
                memory.set_now(now() + jiff::SignedDuration::from_hours(hours));
                let plan = lineage.plan_prune(&remove, &[]).await.unwrap();
                lineage.prune(&plan, &world.keys.keeper, grace, now()).await.unwrap();
                remove.clear();
            }
            let before = lineage.list().await.unwrap().len();
            let refused = finished.commit(crate::world::summary(now())).await.unwrap_err();
            assert!(matches!(refused, RepoError::Swept { .. }), "{refused}");
            assert_eq!(lineage.list().await.unwrap().len(), before);
            assert!(world.read(&Selector::Latest).await.is_ok());
        }
    });
}

/// Two runs overlap: whichever commits last, the newest snapshot is that of the later moment.
#[test]
fn an_older_capture_does_not_become_the_newest() {
    runtime().block_on(async {
        let (first, second) = trees();
        let (early, late) = (now(), now() + jiff::SignedDuration::from_mins(5));
        for older_first in [true, false] {
            let world = World::new(Arc::new(Memory::new())).await;
            let finished = |tree: Tree, at| {
                let lineage = world.writing();
                async move {
                    let writer = lineage.begin(crate::world::options(), at).await.unwrap();
                    let writer = tokio::task::spawn_blocking(move || crate::world::capture(writer, &tree)).await;
                    writer.unwrap().finish().await.unwrap()
                }
            };
            let older = finished(first.clone(), early).await;
            let newer = finished(second.clone(), late).await;
            if older_first {
                older.commit(crate::world::summary(early)).await.unwrap();
                newer.commit(crate::world::summary(late)).await.unwrap();
            } else {
                newer.commit(crate::world::summary(late)).await.unwrap();
                let refused = older.commit(crate::world::summary(early)).await.unwrap_err();
                assert!(matches!(refused, RepoError::Overtaken { by: Sequence(1), .. }), "{refused}");
            }
            assert_eq!(contents(&world.read(&Selector::Latest).await.unwrap()), contents(&second));
        }
    });
}

#[test]
fn unreferenced_packs_go_when_their_grace_is_over() {
    runtime().block_on(async {
        let (first, second) = trees();
        let memory = Arc::new(Memory::new());
        memory.set_now(now());
        let world = World::new(memory.clone()).await;
        world.backup(&first).await.unwrap();
        world.backup(&second).await.unwrap();
        let before = memory.list("data/packs/", None, 1000).await.unwrap().len();
        let lineage = world.reading();
        let plan = lineage.plan_prune(&[Sequence(1)], &[]).await.unwrap();
        let grace = Duration::from_hours(72);
        lineage.prune(&plan, &world.keys.keeper, grace, now()).await.unwrap();
        // A keeper whose own clock is years ahead does not sweep earlier: the store's time counts.
        let ahead = now() + jiff::SignedDuration::from_hours(100_000);
        let none = lineage.plan_prune(&[], &[]).await.unwrap();
        let early = lineage.prune(&none, &world.keys.keeper, grace, ahead).await.unwrap();
        assert_eq!(early.deleted_packs, 0);
        memory.set_now(now() + jiff::SignedDuration::from_hours(73));
        let swept = lineage.prune(&none, &world.keys.keeper, grace, now()).await.unwrap();
        let after = memory.list("data/packs/", None, 1000).await.unwrap().len();
        assert_eq!(before - after, swept.deleted_packs);
        check_all(&world, &[(Sequence(2), &second)]).await;
    });
}

#[test]
fn the_newest_good_snapshot_is_never_removed() {
    runtime().block_on(async {
        let (first, _) = trees();
        let world = World::new(Arc::new(Memory::new())).await;
        world.backup(&first).await.unwrap();
        let refused = world.reading().plan_prune(&[Sequence(1)], &[]).await.unwrap_err();
        assert!(refused.to_string().contains("never removed"), "{refused}");
    });
}
