//! Rot and loss in one copy of a repository, healed from another.

use crate::replicate::{manifest, origin, prune, replicate, replicated, rot, sound, trees};
use crate::world::{File, World, now, runtime};
use jiff::SignedDuration;
use lifeboat::id::Sequence;
use lifeboat::repo::{Access, Depth, Locking, RepoError, Repository, Verified, Verifying};
use lifeboat::store::{Fault, Faults, Faulty, Memory, PutOptions, Store, StoreErrorKind, list_all};
use std::sync::Arc;
use std::time::Duration;

fn locking() -> Locking {
    Locking::new(None, now())
}

/// Repairs what is in `here` from `other`: what was put back, and what is still wrong.
async fn repair(here: Arc<dyn Store>, other: Arc<dyn Store>) -> Result<(Vec<String>, Verified), RepoError> {
    let other = Repository::open(other).await?;
    let mended = Repository::mend(here, &other, &locking()).await?;
    let source = "data".parse().unwrap();
    let lineage = Arc::new(mended.repository.lineage(&source, Access::None));
    let mut verified = lineage.repair(&other, &locking(), Depth::Scrub, &Verifying::default()).await?;
    let mut healed = mended.healed;
    healed.append(&mut verified.healed);
    Ok((healed, verified))
}

/// A repository with a recipient added, a key rotated and a snapshot pruned, and its replica.
async fn two_copies() -> (World, Arc<Memory>, Arc<Memory>) {
    let trees = trees();
    let (memory, world, replica) = replicated(&trees[..2]).await;
    let drill = lifeboat::repo::Identity::generate();
    let drill =
        lifeboat::repo::Recipient { name: "drill".into(), role: lifeboat::repo::Role::Drill, key: drill.public() };
    let repository = world.repository.add_recipient(&world.identity, drill, now()).await.unwrap();
    let (repository, keys) = repository.rotate_writer(&world.identity, now()).await.unwrap();
    let world = World { repository, keys, ..world };
    world.backup(&trees[2]).await.unwrap();
    prune(&world, &[1]).await;
    memory.set_now(now() + SignedDuration::from_hours(100));
    prune(&world, &[]).await;
    replicate(&world, &replica).await;
    (world, memory, replica)
}

async fn all(store: &Memory) -> Vec<(String, bytes::Bytes)> {
    let mut all = Vec::new();
    for object in list_all(store, "").await.unwrap() {
        all.push((object.key.clone(), store.get(&object.key).await.unwrap()));
    }
    all
}

/// Each object in turn, rotten, cut off or gone, in either copy: it is as it was before, and nothing else was touched.
#[test]
fn any_object_is_healed_in_both_directions() {
    runtime().block_on(async {
        let (world, memory, replica) = two_copies().await;
        let trees = trees();
        assert_eq!(sound(&world, replica.clone(), &trees).await, [1, 2, 3]);
        for (here, other) in [(&memory, &replica), (&replica, &memory)] {
            let before = all(here).await;
            assert!(before.len() >= 10, "{before:?}");
            for (key, bytes) in &before {
                for damage in ["rot", "cut", "loss"] {
                    match damage {
                        "rot" => rot(here, key).await,
                        _ => here.delete(key).await.unwrap(),
                    }
                    if damage == "cut" {
                        let cut = bytes.slice(..bytes.len() / 2);
                        here.put(key, cut, PutOptions::default()).await.unwrap();
                    }
                    let (healed, verified) = repair(here.clone(), other.clone()).await.unwrap();
                    let record = key.contains("/pruned");
                    let healable = if other.get(key).await.is_err() && !record {
                        // What was pruned where it comes from is only at the replica.
                        false
                    } else {
                        // The newest is missed only by who knows of it, a record only where it explains a gap, and nobody
                        // but who is to read it knows what a wrap holds.
                        match damage {
                            "loss" => *key != manifest(3) && (!record || Arc::ptr_eq(here, &memory)),
                            "rot" => !key.ends_with(".age.json"),
                            _ => true,
                        }
                    };
                    if !healable {
                        assert!(healed.is_empty(), "{key} {damage}: {healed:?}");
                        let seen = !verified.findings.is_empty();
                        assert!(seen || damage == "loss", "{key} {damage}");
                        here.delete(key).await.unwrap();
                        here.put(key, bytes.clone(), PutOptions::default()).await.unwrap();
                        continue;
                    }
                    assert_eq!(verified.findings, [], "{key} {damage}");
                    if record && damage == "loss" {
                        // Nothing says any more that a snapshot was pruned: it came back.
                        assert!(healed.contains(&manifest(1)), "{healed:?}");
                        for key in &healed {
                            here.delete(key).await.unwrap();
                        }
                        here.put(key, bytes.clone(), PutOptions::default()).await.unwrap();
                    } else {
                        assert_eq!(healed, [key.as_str()], "{damage}");
                    }
                    assert_eq!(all(here).await, before, "{key} {damage}");
                }
            }
        }
    });
}

#[test]
fn everything_at_once_is_healed() {
    runtime().block_on(async {
        let trees = trees();
        let (memory, world, replica) = replicated(&trees).await;
        let before = all(&memory).await;
        for (key, _) in before.iter().filter(|(key, _)| !key.contains("epoch.json")) {
            rot(&memory, key).await;
        }
        let (healed, verified) = repair(memory.clone(), replica).await.unwrap();
        assert_eq!((healed.len(), verified.findings), (before.len() - 1, Vec::new()));
        assert_eq!(all(&memory).await, before);
        assert_eq!(sound(&world, memory, &trees).await, [1, 2, 3]);
    });
}

/// Cut off anywhere: again is safe, and what was sound stays.
#[test]
fn a_repair_cut_off_anywhere_is_taken_up_again() {
    runtime().block_on(async {
        let trees = trees();
        let (memory, _world, replica) = replicated(&trees).await;
        let before = all(&memory).await;
        let pack = list_all(memory.as_ref(), "data/packs/").await.unwrap().remove(0);
        for fault in [Fault::From, Fault::KilledAfter] {
            for n in 1.. {
                rot(&memory, &pack.key).await;
                rot(&memory, &manifest(2)).await;
                let faults = Arc::new(Faults::default());
                faults.set(fault(n));
                let broken = Arc::new(Faulty::new(memory.clone(), faults.clone()));
                let result = repair(broken, replica.clone()).await;
                let reached = faults.operations() >= n;
                let (_, verified) = repair(memory.clone(), replica.clone()).await.unwrap();
                assert_eq!(verified.findings, [], "{n}");
                assert_eq!(all(&memory).await, before, "{n}");
                if !reached {
                    assert!(result.is_ok() && n > 20, "{n}");
                    break;
                }
            }
        }
    });
}

#[test]
fn what_a_lock_holds_is_left_and_said() {
    runtime().block_on(async {
        let trees = trees();
        let (_, world) = origin(&trees).await;
        let replica = Arc::new(Memory::with_lock());
        replica.set_now(now());
        let locking = Locking::new(Some(Duration::from_hours(240)), now());
        let how = lifeboat::repo::Replicating { locking, dry_run: false };
        crate::replicate::replicate_as(&world.repository, replica.clone(), how).await.unwrap();
        let pack = list_all(replica.as_ref(), "data/packs/").await.unwrap().remove(0).key;
        // Rot below the store: it reads otherwise, and cannot be removed.
        let faults = Arc::new(Faults::default());
        faults.corrupt(&pack, lifeboat::store::Corruption::FlipBit(100));
        let rotten = Arc::new(Faulty::new(replica.clone(), faults));
        let before = all(&replica).await;
        let (healed, verified) = repair(rotten, world.repository.store().clone()).await.unwrap();
        assert!(healed.is_empty());
        let finding = &verified.findings[0];
        assert!(finding.object.starts_with(&pack) && finding.problem.contains("retention date"), "{finding:?}");
        assert_eq!(all(&replica).await, before);
        assert_eq!(replica.delete(&pack).await.unwrap_err().kind, StoreErrorKind::Locked);
    });
}

#[test]
fn nothing_is_put_into_another_repository_or_from_an_unsound_copy() {
    runtime().block_on(async {
        let trees = trees();
        let (memory, world) = origin(&trees[..1]).await;
        let (other, _) = origin(&trees[..1]).await;
        let refused = repair(memory.clone(), other.clone()).await.unwrap_err();
        assert!(refused.to_string().contains("is no copy of repository"), "{refused}");
        // Not even where the root is gone: what is left is not signed by the other's writer.
        let root = memory.get("lifeboat.json").await.unwrap();
        memory.delete("lifeboat.json").await.unwrap();
        let refused = repair(memory.clone(), other.clone()).await.unwrap_err();
        assert!(refused.to_string().contains("is no copy of repository"), "{refused}");
        let empty = Arc::new(Memory::new());
        assert!(matches!(repair(empty, other.clone()).await, Err(RepoError::Refused(_))));
        assert!(memory.get("lifeboat.json").await.is_err());
        memory.put("lifeboat.json", root, PutOptions::default()).await.unwrap();
        // The same pack is rotten in both.
        let replica = Arc::new(Memory::new());
        replicate(&world, &replica).await;
        let pack = list_all(memory.as_ref(), "data/packs/").await.unwrap().remove(0).key;
        rot(&memory, &pack).await;
        rot(&replica, &pack).await;
        let before = all(&memory).await;
        let (healed, verified) = repair(memory.clone(), replica).await.unwrap();
        assert!(healed.is_empty());
        assert!(verified.findings[0].problem.contains("none that is sound either"), "{:?}", verified.findings);
        assert_eq!(all(&memory).await, before);
    });
}

/// A replica's keeper has a record of the same number: it must not take anything away where it came from.
#[test]
fn a_rotten_prune_record_is_not_replaced_by_another_keepers() {
    runtime().block_on(async {
        let mut trees = trees().to_vec();
        let (memory, world) = origin(&trees).await;
        let replica = Arc::new(Memory::new());
        replica.set_now(now());
        replicate(&world, &replica).await;
        prune(&world, &[1]).await;
        let there = world.through(replica.clone()).await.unwrap();
        prune(&there, &[2]).await;
        let record = format!("data/pruned/{}", Sequence(1).object_name());
        let ours = memory.get(&record).await.unwrap();
        assert_ne!(ours, replica.get(&record).await.unwrap());
        rot(&memory, &record).await;
        let (healed, verified) = repair(memory.clone(), replica.clone()).await.unwrap();
        // What it explained is missed, and comes back; that is all.
        assert_eq!(healed, [manifest(1)]);
        assert!(verified.findings.iter().any(|f| f.object == record && f.problem.contains("not repaired")));
        // Once it was copied, the right one comes back.
        memory.delete(&manifest(1)).await.unwrap();
        memory.delete(&record).await.unwrap();
        memory.put(&record, ours.clone(), PutOptions::default()).await.unwrap();
        trees.push([("x".to_owned(), File::content("x"))].into());
        world.backup(&trees[3]).await.unwrap();
        replicate(&world, &replica).await;
        rot(&memory, &record).await;
        let (healed, verified) = repair(memory.clone(), replica).await.unwrap();
        assert_eq!((healed, verified.findings), (vec![record.clone()], Vec::new()));
        assert_eq!(memory.get(&record).await.unwrap(), ours);
        assert_eq!(sound(&world, memory, &trees).await, [2, 3, 4]);
    });
}
