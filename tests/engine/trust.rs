//! Rot, forgery and wrong keys.

use crate::world::{File, Tree, World, contents, noise, now, recipient, runtime};
use lifeboat::id::Sequence;
use lifeboat::repo::{Access, Depth, Identity, Reader, Recipient, RepoError, Role, Selector, Summary};
use lifeboat::store::{Corruption, Faults, Faulty, Memory, PutOptions, Store, list_all};
use std::sync::Arc;

fn tree() -> Tree {
    let mut tree = Tree::new();
    for i in 0..50u64 {
        tree.insert(format!("secret-name-{i:02}"), File { version: Some(1), ..File::content(noise(i, 3000)) });
    }
    tree.insert("pages".into(), File::pages(noise(50, 80_000), 4096));
    tree.insert("plain".into(), File::content("a very secret sentence ".repeat(50)));
    tree
}

async fn two_snapshots() -> (Arc<Memory>, World, Tree) {
    let memory = Arc::new(Memory::new());
    let world = World::new(memory.clone()).await;
    let mut first = tree();
    world.backup(&first).await.unwrap();
    first.insert("plain".into(), File::content("another very secret sentence ".repeat(50)));
    world.backup(&first).await.unwrap();
    (memory, world, first)
}

/// Any object, a bit anywhere or cut off anywhere: what is read is right, or the error names the object; and `verify`
/// finds it.
#[test]
fn rot_is_found_and_named_and_never_read_as_data() {
    runtime().block_on(async {
        let (memory, world, second) = two_snapshots().await;
        let expected = [tree(), second];
        let objects = list_all(memory.as_ref(), "data/").await.unwrap();
        assert!(objects.len() >= 5, "{objects:?}");
        for object in objects {
            let spots = [0, 9, 30, object.size / 2, object.size - 70, object.size - 20, object.size - 1];
            let flips = spots.into_iter().filter(|at| *at < object.size).map(Corruption::FlipBit);
            let cuts = [0, object.size / 2, object.size - 1].map(Corruption::Truncate);
            for corruption in flips.chain(cuts) {
                let faults = Arc::new(Faults::default());
                let rotten = Arc::new(Faulty::new(memory.clone(), faults.clone()));
                faults.corrupt(&object.key, corruption);
                let what = format!("{} {corruption:?}", object.key);
                let Ok(rotten) = world.through(rotten).await else { panic!("{what}") };
                let mut hurt = 0;
                for (number, tree) in (1..).zip(&expected) {
                    match rotten.read(&Selector::Number(Sequence(number))).await {
                        Ok(read) => assert_eq!(contents(&read), contents(tree), "{what}"),
                        Err(error) => {
                            hurt += 1;
                            let text = chain(&error);
                            assert!(text.contains(&object.key), "{what}: {text}");
                        }
                    }
                }
                let verified = rotten.reading().verify(Depth::Data, 1.0, 0).await;
                let found = verified.map_or(true, |v| v.findings.iter().any(|f| f.object.contains(&object.key)));
                assert!(found || hurt == 0, "{what}: verify says nothing, {hurt} snapshots are hurt");
                if object.key.contains("/packs/") {
                    let scrub = world.through(Arc::new(Faulty::new(memory.clone(), faults.clone()))).await.unwrap();
                    let without_keys = Arc::new(scrub.repository.lineage(&scrub.source, Access::None));
                    let scrubbed = without_keys.verify(Depth::Scrub, 1.0, 0).await.unwrap();
                    assert!(hurt == 0 || !scrubbed.findings.is_empty(), "{what}: a scrub without keys finds nothing");
                }
            }
        }
    });
}

fn chain(error: &RepoError) -> String {
    let first: &dyn std::error::Error = error;
    let chain = std::iter::successors(Some(first), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[test]
fn the_writer_key_alone_reads_neither_names_nor_contents() {
    runtime().block_on(async {
        let (memory, world, _) = two_snapshots().await;
        let lineage = world.writing();
        let (snapshot, _) = lineage.find(&Selector::Latest).await.unwrap();
        let reader = Reader::open(lineage, snapshot).await.unwrap();
        assert_eq!(reader.catalogue().entries, 52, "the catalogue is the writer's");
        let refused = reader.items().await.unwrap_err();
        assert!(matches!(refused, RepoError::WrongKey { .. }), "{refused:?}");
        assert!(matches!(reader.problems(), Err(RepoError::WrongKey { .. })));
        for object in list_all(memory.as_ref(), "").await.unwrap() {
            let bytes = memory.get(&object.key).await.unwrap();
            for secret in [&b"secret-name"[..], b"very secret sentence", &noise(3, 3000)[100..116]] {
                assert!(!bytes.windows(secret.len()).any(|w| w == secret), "{} holds {secret:?}", object.key);
            }
        }
    });
}

#[test]
fn wrong_keys_are_told_apart_from_damage() {
    runtime().block_on(async {
        let (_, world, _) = two_snapshots().await;
        let stranger = Identity::generate();
        let lineage = Arc::new(world.repository.lineage(&world.source, Access::Recipient(stranger)));
        assert!(matches!(lineage.find(&Selector::Latest).await, Err(RepoError::WrongKey { .. })));
        let other = World::new(Arc::new(Memory::new())).await;
        let foreign_key = Access::Writer(other.keys.writer.clone());
        let lineage = Arc::new(world.repository.lineage(&world.source, foreign_key));
        assert!(matches!(lineage.begin(crate::world::options(), now()).await, Err(RepoError::WrongKey { .. })));
        let plan = world.reading().plan_prune(&[Sequence(1)], &[]).await.unwrap();
        let refused = world.reading().prune(&plan, &other.keys.keeper, std::time::Duration::ZERO, now()).await;
        assert!(matches!(refused, Err(RepoError::WrongKey { .. })));
    });
}

/// Manifests that someone put there: from another repository, or one of ours under another number.
#[test]
fn foreign_and_replaced_manifests_are_stepped_over_and_reported() {
    runtime().block_on(async {
        let (memory, world, second) = two_snapshots().await;
        let other_store = Arc::new(Memory::new());
        let other = World::new(other_store.clone()).await;
        other.backup(&tree()).await.unwrap();
        let name = |n| format!("data/snapshots/{}", Sequence(n).object_name());
        let foreign = other_store.get(&name(1)).await.unwrap();
        let ours = memory.get(&name(1)).await.unwrap();
        memory.put(&name(3), foreign, PutOptions::default()).await.unwrap();
        memory.put(&name(4), ours, PutOptions::default()).await.unwrap();
        memory.put(&name(5), bytes::Bytes::from_static(b"rubbish"), PutOptions::default()).await.unwrap();
        let lineage = world.reading();
        let (latest, stepped_over) = lineage.find(&Selector::Latest).await.unwrap();
        assert_eq!(latest.sequence(), Sequence(2));
        assert_eq!(stepped_over.iter().map(|s| s.sequence.0).collect::<Vec<_>>(), [5, 4, 3]);
        assert_eq!(contents(&world.read(&Selector::Latest).await.unwrap()), contents(&second));
        assert!(matches!(world.read(&Selector::Number(Sequence(4))).await, Err(RepoError::Foreign { .. })));
        // Nothing is removed on a guess, and the next backup goes on above them.
        assert!(matches!(lineage.plan_prune(&[Sequence(1)], &[]).await, Err(RepoError::PruneBlocked { .. })));
        assert_eq!(world.backup(&second).await.unwrap().sequence, Sequence(6));
    });
}

#[test]
fn a_snapshot_that_vanished_is_missed_and_one_that_was_pruned_is_not() {
    runtime().block_on(async {
        let (memory, world, second) = two_snapshots().await;
        world.backup(&second).await.unwrap();
        let lineage = world.reading();
        let plan = lineage.plan_prune(&[Sequence(1)], &[]).await.unwrap();
        lineage.prune(&plan, &world.keys.keeper, std::time::Duration::from_hours(72), now()).await.unwrap();
        assert_eq!(lineage.verify(Depth::Structure, 1.0, 0).await.unwrap().findings, []);
        assert_eq!((lineage.missing().await.unwrap(), lineage.missing_lately().await.unwrap()), (vec![], vec![]));
        memory.delete(&format!("data/snapshots/{}", Sequence(2).object_name())).await.unwrap();
        assert_eq!(lineage.missing().await.unwrap(), [Sequence(2)]);
        assert_eq!(lineage.missing_lately().await.unwrap(), [Sequence(2)]);
        let findings = lineage.verify(Depth::Structure, 1.0, 0).await.unwrap().findings;
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].problem.contains("missing"));
    });
}

#[test]
fn a_missing_pack_of_pages_is_an_error_and_not_zeros() {
    runtime().block_on(async {
        let memory = Arc::new(Memory::new());
        let world = World::new(memory.clone()).await;
        let mut tree = Tree::from([("db".into(), File::pages(noise(1, 400_000), 4096))]);
        world.backup(&tree).await.unwrap();
        tree.get_mut("db").unwrap().bytes[..4096].fill(1);
        world.backup(&tree).await.unwrap();
        let first = list_all(memory.as_ref(), "data/packs/").await.unwrap().into_iter().max_by_key(|o| o.size).unwrap();
        memory.delete(&first.key).await.unwrap();
        let error = world.read(&Selector::Latest).await.unwrap_err();
        assert!(chain(&error).contains(&first.key), "{error:?}");
    });
}

/// A pack is gone, also one that holds nothing but contents: the next snapshot relies on none that is not there.
#[test]
fn what_a_lost_pack_held_is_stored_again() {
    runtime().block_on(async {
        let (memory, world, second) = two_snapshots().await;
        let packs = list_all(memory.as_ref(), "data/packs/").await.unwrap();
        for lost in &packs {
            let copy = Arc::new(Memory::new());
            for object in list_all(memory.as_ref(), "").await.unwrap().iter().filter(|one| one.key != lost.key) {
                let bytes = memory.get(&object.key).await.unwrap();
                copy.put(&object.key, bytes, PutOptions::default()).await.unwrap();
            }
            let world = world.through(copy.clone()).await.unwrap();
            assert!(
                world.read(&Selector::Latest).await.is_err()
                    || world.read(&Selector::Number(Sequence(1))).await.is_err()
            );
            world.backup(&second).await.unwrap();
            assert_eq!(contents(&world.read(&Selector::Latest).await.unwrap()), contents(&second), "{}", lost.key);
        }
        // Half a pack is none.
        let cut = packs.iter().max_by_key(|pack| pack.size).unwrap();
        let bytes = memory.get(&cut.key).await.unwrap();
        memory.delete(&cut.key).await.unwrap();
        memory.put(&cut.key, bytes.slice(..bytes.len() / 2), PutOptions::default()).await.unwrap();
        let world = world.through(memory).await.unwrap();
        world.backup(&second).await.unwrap();
        assert_eq!(contents(&world.read(&Selector::Latest).await.unwrap()), contents(&second));
    });
}

/// A source that is other than it was is captured again and again before somebody looks at it.
#[test]
fn what_is_in_quarantine_is_not_stored_again() {
    runtime().block_on(async {
        let world = World::new(Arc::new(Memory::new())).await;
        let of = |seed: u64, bytes: usize| Tree::from([("db".into(), File::content(noise(seed, bytes)))]);
        let suspect = |tree: Tree| async {
            let writer = world.writing().begin(crate::world::options(), now()).await.unwrap();
            let writer = tokio::task::spawn_blocking(move || crate::world::capture(writer, &tree)).await.unwrap();
            let reasons = vec!["another system".to_owned()];
            writer.commit(Summary { reasons, ..crate::world::summary(now()) }).await.unwrap().catalogue.new_bytes
        };
        world.backup(&of(1, 3_000_000)).await.unwrap();
        assert!(suspect(of(2, 3_000_000)).await >= 3_000_000);
        // One run may have gone astray: the next is compared with what was there before it.
        assert!(suspect(of(1, 3_000_000)).await < 100_000);
        assert!(suspect(of(2, 3_000_000)).await >= 3_000_000);
        assert!(suspect(of(2, 3_000_000)).await < 100_000);
        // Next to nothing is in this one: what comes back is in the one before.
        assert!(suspect(of(3, 1000)).await < 100_000);
        let back = world.backup(&of(1, 3_000_000)).await.unwrap();
        assert!(back.catalogue.new_bytes < 100_000, "{}", back.catalogue.new_bytes);
        assert_eq!(contents(&world.read(&Selector::Latest).await.unwrap()), contents(&of(1, 3_000_000)));
    });
}

#[test]
fn recipients_come_and_go_and_a_rotated_writer_is_refused() {
    runtime().block_on(async {
        let (memory, world, second) = two_snapshots().await;
        let drill = Identity::generate();
        let added = Recipient { name: "drill".into(), role: Role::Drill, key: drill.public() };
        let repository = world.repository.add_recipient(&world.identity, added, now()).await.unwrap();
        let by_drill = World { repository, identity: drill.clone(), ..world.through(memory.clone()).await.unwrap() };
        assert_eq!(contents(&by_drill.read(&Selector::Latest).await.unwrap()), contents(&second));
        assert!(by_drill.repository.root().unlock(&drill).is_err(), "a drill identity does not open the writer key");

        let repository = by_drill.repository.remove_recipient(&world.identity, "drill", now()).await.unwrap();
        let (repository, keys) = repository.rotate_writer(&world.identity, now()).await.unwrap();
        let old = Arc::new(repository.lineage(&world.source, Access::Writer(world.keys.writer.clone())));
        let refused = old.begin(crate::world::options(), now()).await.err().unwrap();
        assert!(refused.to_string().contains("rotated"), "{refused}");
        let rotated = World { repository, identity: world.identity.clone(), keys, source: world.source.clone() };
        let third = rotated.backup(&second).await.unwrap();
        assert!(third.catalogue.new_bytes > 0, "a new epoch shares nothing with the old one");
        assert_eq!(contents(&rotated.read(&Selector::Latest).await.unwrap()), contents(&second));
        assert_eq!(contents(&rotated.read(&Selector::Number(Sequence(1))).await.unwrap()), contents(&tree()));

        // The stolen old key goes on signing, against the old root: its snapshot does not count.
        let stolen = world.backup(&Tree::from([("evil".into(), File::content("evil"))])).await.unwrap();
        let (latest, over) = rotated.reading().find(&Selector::Latest).await.unwrap();
        assert_eq!((latest.sequence(), over.len()), (third.sequence, 1));
        assert_eq!(over[0].sequence, stolen.sequence);

        // Whoever was removed reads what was written before, and nothing after.
        let removed = World { identity: drill, ..rotated };
        assert!(removed.read(&Selector::Number(Sequence(1))).await.is_ok());
        assert!(matches!(removed.read(&Selector::Number(third.sequence)).await, Err(RepoError::WrongKey { .. })));
    });
}

#[test]
fn a_repository_is_not_made_twice_and_needs_a_recovery_recipient() {
    runtime().block_on(async {
        let (memory, world, _) = two_snapshots().await;
        let again = lifeboat::repo::Repository::create(memory, vec![recipient(&world.identity)], now()).await;
        assert!(matches!(again, Err(RepoError::AlreadyInitialised { .. })));
        let drill = Recipient { role: Role::Drill, ..recipient(&world.identity) };
        let none = lifeboat::repo::Repository::create(Arc::new(Memory::new()), vec![drill], now()).await;
        assert!(matches!(none, Err(RepoError::Refused(_))));
        let missing = lifeboat::repo::Repository::open(Arc::new(Memory::new())).await;
        assert!(matches!(missing, Err(RepoError::NoRepository { .. })));
    });
}

/// Whoever can write to the bucket, but holds no key, leaves rubbish under every kind of name: nothing stops working.
#[test]
fn rubbish_under_any_name_stops_nothing() {
    runtime().block_on(async {
        let (memory, world, second) = two_snapshots().await;
        let last = Sequence(Sequence::MAX).object_name();
        for object in
            [format!("data/snapshots/{last}"), format!("_root/{last}"), "_root/!".into(), format!("data/pruned/{last}")]
        {
            memory.put(&object, bytes::Bytes::from_static(b"rubbish"), PutOptions::default()).await.unwrap();
        }
        let wrap = bytes::Bytes::from_static(b"{\"recipient\":\"x\",\"age\":\"\"}");
        memory.put("data/keys/0001/a.age.json", wrap, PutOptions::default()).await.unwrap();
        let world = world.through(memory.clone()).await.unwrap();
        assert_eq!(world.backup(&second).await.unwrap().sequence, Sequence(3));
        assert_eq!(contents(&world.read(&Selector::Latest).await.unwrap()), contents(&second));
        let findings = world.reading().verify(Depth::Data, 1.0, 0).await.unwrap().findings;
        assert_eq!(findings.len(), 2, "{findings:?}");
        // A person judges the manifest to be foreign; then pruning goes on, sweeping when the rubbish is old.
        let ignore = [Sequence(Sequence::MAX)];
        let plan = world.reading().plan_prune(&[Sequence(1)], &ignore).await.unwrap();
        let grace = std::time::Duration::from_hours(72);
        let pruned = world.reading().prune(&plan, &world.keys.keeper, grace, now()).await.unwrap();
        assert_eq!(pruned.removed, [Sequence(1)]);
        assert!(matches!(world.read(&Selector::Number(Sequence(1))).await, Err(RepoError::NoSnapshot { .. })));
        assert_eq!(contents(&world.read(&Selector::Latest).await.unwrap()), contents(&second));
    });
}

/// … and under the names that a change of keys takes next.
#[test]
fn rubbish_does_not_stop_a_change_of_keys() {
    runtime().block_on(async {
        let (memory, world, second) = two_snapshots().await;
        let rubbish = || bytes::Bytes::from_static(b"rubbish");
        let later = br#"{"record":{"lifeboat":2,"id":"00"},"signature":""}"#;
        let number = |n| Sequence(n).object_name();
        for (object, bytes) in [
            (format!("_root/{}", number(2)), rubbish()),
            (format!("_root/{}", number(3)), bytes::Bytes::from_static(later)),
            ("data/keys/0002/epoch.json".into(), rubbish()),
            ("data/keys/0003/epoch.json".into(), memory.get("data/keys/0001/epoch.json").await.unwrap()),
            ("data/keys/9999999999/epoch.json".into(), rubbish()),
            (format!("data/snapshots/{}", number(3)), bytes::Bytes::from_static(b"LBSNAP\x00\x02 later")),
        ] {
            memory.put(&object, bytes, PutOptions::default()).await.unwrap();
        }
        let world = world.through(memory.clone()).await.unwrap();
        assert_eq!(contents(&world.read(&Selector::Latest).await.unwrap()), contents(&second));
        let drill = Identity::generate();
        let added = Recipient { name: "drill".into(), role: Role::Drill, key: drill.public() };
        let repository = world.repository.add_recipient(&world.identity, added, now()).await.unwrap();
        let (repository, keys) = repository.rotate_writer(&world.identity, now()).await.unwrap();
        let rotated = World { repository, identity: world.identity.clone(), keys, source: world.source.clone() };
        assert_eq!(rotated.backup(&second).await.unwrap().sequence, Sequence(4));
        assert_eq!(rotated.backup(&second).await.unwrap().sequence, Sequence(5));
        let rotated = rotated.through(memory.clone()).await.unwrap();
        assert_eq!(contents(&rotated.read(&Selector::Latest).await.unwrap()), contents(&second));
        let by_drill = World { identity: drill, ..rotated };
        for number in [1, 5] {
            assert!(by_drill.read(&Selector::Number(Sequence(number))).await.is_ok(), "{number}");
        }
        let created = by_drill.repository.root().created();
        assert_eq!(created, world.repository.root().created(), "a change of keys does not make a repository younger");
        assert!(memory.head(&format!("_root/{}", number(5))).await.is_ok(), "states are counted past what is none");
        assert!(memory.head("data/keys/0004/epoch.json").await.is_ok(), "and so are epochs");
    });
}

/// What a thief wrote with the key before it was rotated away does not count either, if somebody says where that began.
#[test]
fn a_rotation_may_go_back_to_before_the_theft() {
    runtime().block_on(async {
        let (memory, world, second) = two_snapshots().await;
        let evil = Tree::from([("evil".into(), File::content("evil"))]);
        assert_eq!(world.backup(&evil).await.unwrap().sequence, Sequence(3));
        let until = |number| [(world.source.clone(), Sequence(number))].into();
        let none = world.repository.rotate_writer_until(&world.identity, &until(9), now()).await;
        assert!(matches!(none, Err(RepoError::NoSnapshot { .. })));
        let rotated = world.repository.rotate_writer_until(&world.identity, &until(2), now()).await.unwrap();
        let (repository, keys) = rotated;
        let rotated = World { repository, keys, identity: world.identity.clone(), source: world.source.clone() };
        let (latest, over) = rotated.reading().find(&Selector::Latest).await.unwrap();
        assert_eq!((latest.sequence(), over.len()), (Sequence(2), 1));
        assert_eq!(rotated.backup(&second).await.unwrap().sequence, Sequence(4));
        let rotated = rotated.through(memory.clone()).await.unwrap();
        assert_eq!(contents(&rotated.read(&Selector::Latest).await.unwrap()), contents(&second));
        assert!(matches!(rotated.read(&Selector::Number(Sequence(3))).await, Err(RepoError::Foreign { .. })));
        // A prune waits for a person's word, since what it names may be needed.
        let blocked = rotated.reading().plan_prune(&[Sequence(1)], &[]).await;
        assert!(matches!(blocked, Err(RepoError::PruneBlocked { .. })));
        rotated.reading().plan_prune(&[Sequence(1)], &[Sequence(3)]).await.unwrap();
    });
}

/// Taken off the list and put on it again, under the same name and with another key.
#[test]
fn a_recipient_who_comes_again_reads_what_there_was() {
    runtime().block_on(async {
        let (memory, world, second) = two_snapshots().await;
        let mut repository = world.repository.clone();
        for turn in 0..2 {
            let identity = Identity::generate();
            let drill = Recipient { name: "drill".into(), role: Role::Drill, key: identity.public() };
            repository = repository.add_recipient(&world.identity, drill, now()).await.unwrap();
            let by_drill = World { identity, ..world.through(memory.clone()).await.unwrap() };
            let read = by_drill.read(&Selector::Latest).await;
            assert_eq!(contents(&read.unwrap()), contents(&second), "turn {turn}");
            repository = repository.remove_recipient(&world.identity, "drill", now()).await.unwrap();
        }
    });
}

/// The epoch's record has rotted: what hangs on it is told as lost, and backups go on.
#[test]
fn a_rotten_epoch_does_not_end_backups() {
    runtime().block_on(async {
        let (memory, world, second) = two_snapshots().await;
        memory.delete("data/keys/0001/epoch.json").await.unwrap();
        memory.put("data/keys/0001/epoch.json", b"{}".to_vec().into(), PutOptions::default()).await.unwrap();
        let world = world.through(memory).await.unwrap();
        assert!(matches!(world.read(&Selector::Latest).await, Err(RepoError::NoSnapshot { .. })));
        let third = world.backup(&second).await.unwrap();
        assert_eq!(third.sequence, Sequence(3));
        assert_eq!(contents(&world.read(&Selector::Latest).await.unwrap()), contents(&second));
        let findings = world.reading().verify(Depth::Data, 1.0, 0).await.unwrap().findings;
        assert!(findings.iter().any(|f| f.object.contains("keys/0001")), "{findings:?}");
    });
}

/// A thief of the writer key begins an epoch, and keeps its private half: backups go on under the one that there was.
#[test]
fn a_second_epoch_is_not_taken_up() {
    runtime().block_on(async {
        let (memory, world, second) = two_snapshots().await;
        // The same, but that nobody has the first epoch: the second is begun, and a snapshot made under it.
        let (elsewhere, first) = (Arc::new(Memory::new()), "data/keys/0001/epoch.json");
        for object in list_all(memory.as_ref(), "").await.unwrap() {
            let bytes = if object.key == first { "rubbish".into() } else { memory.get(&object.key).await.unwrap() };
            elsewhere.put(&object.key, bytes, PutOptions::default()).await.unwrap();
        }
        world.through(elsewhere.clone()).await.unwrap().backup(&second).await.unwrap();
        for object in list_all(elsewhere.as_ref(), "").await.unwrap() {
            let bytes = elsewhere.get(&object.key).await.unwrap();
            if memory.head(&object.key).await.is_err() {
                memory.put(&object.key, bytes, PutOptions::default()).await.unwrap();
            }
        }
        let world = world.through(memory).await.unwrap();
        let theirs = world.reading().find(&Selector::Latest).await.unwrap().0;
        assert_eq!((theirs.sequence(), theirs.manifest.header.epoch), (Sequence(3), 2));
        assert_eq!(world.reading().verify(Depth::Structure, 0.0, 0).await.unwrap().suspicious.len(), 1);
        world.backup(&second).await.unwrap();
        let (latest, over) = world.reading().find(&Selector::Latest).await.unwrap();
        assert_eq!((latest.sequence(), latest.manifest.header.epoch, over.len()), (Sequence(4), 1, 0));
    });
}

/// Another root in the place of ours: the agent does not write for it.
#[test]
fn a_replaced_root_is_refused() {
    runtime().block_on(async {
        let (memory, world, second) = two_snapshots().await;
        let other_store = Arc::new(Memory::new());
        World::new(other_store.clone()).await;
        let theirs = other_store.get("lifeboat.json").await.unwrap();
        let ours = memory.get("lifeboat.json").await.unwrap();
        memory.delete("lifeboat.json").await.unwrap();
        memory.put("lifeboat.json", theirs.clone(), PutOptions::default()).await.unwrap();
        let fooled = world.through(memory.clone()).await.unwrap();
        assert!(matches!(fooled.backup(&second).await, Err(RepoError::WrongKey { .. })));
        // With our id in it, its key does not fit.
        let id = |root: &[u8]| String::from_utf8_lossy(root).split("\"id\":\"").nth(1).unwrap()[..32].to_owned();
        let forged = String::from_utf8_lossy(&theirs).replace(&id(&theirs), &id(&ours));
        memory.delete("lifeboat.json").await.unwrap();
        memory.put("lifeboat.json", forged.into_bytes().into(), PutOptions::default()).await.unwrap();
        assert!(matches!(world.through(memory).await.map(|_| ()), Err(RepoError::Foreign { .. })));
    });
}
