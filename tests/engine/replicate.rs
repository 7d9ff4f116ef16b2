//! A second copy of a repository: correct at every moment, whatever is cut off, damaged or pruned.

use crate::world::{File, Tree, World, contents, noise, now, runtime};
use jiff::SignedDuration;
use lifeboat::id::Sequence;
use lifeboat::repo::{
    Access, Depth, Locking, Replicated, Replicating, Replication, RepoError, Repository, Selector, Snapshot,
};
use lifeboat::store::{Fault, Faults, Faulty, Memory, PutOptions, Store, StoreErrorKind, list_all};
use std::sync::Arc;
use std::time::Duration;

const GRACE: Duration = Duration::from_hours(72);

pub fn trees() -> [Tree; 3] {
    let mut first = Tree::new();
    for i in 0..20u64 {
        first.insert(format!("f{i:02}"), File { version: Some(1), ..File::content(noise(i, 2000)) });
    }
    first.insert("pages".into(), File::pages(noise(50, 80_000), 4096));
    let mut second = first.clone();
    second.insert("new".into(), File::content(noise(98, 600_000)));
    second.get_mut("pages").unwrap().bytes[5000..9000].fill(7);
    let mut third = second.clone();
    third.insert("newer".into(), File::content(noise(99, 300_000)));
    [first, second, third]
}

/// A repository with `trees` as its snapshots, and the store it is in.
pub async fn origin(trees: &[Tree]) -> (Arc<Memory>, World) {
    let memory = Arc::new(Memory::new());
    memory.set_now(now());
    let world = World::new(memory.clone()).await;
    for tree in trees {
        world.backup(tree).await.unwrap();
    }
    (memory, world)
}

fn how() -> Replicating {
    Replicating { locking: Locking::new(None, now()), dry_run: false }
}

fn dry_run() -> Replicating {
    Replicating { dry_run: true, ..how() }
}

pub async fn replicate_as(from: &Repository, to: Arc<dyn Store>, how: Replicating) -> Result<Replicated, RepoError> {
    let replication = Replication::begin(from, to, how).await?;
    let mut all = replication.root.clone();
    for source in from.sources().await? {
        let done = replication.source(&source, &Access::None).await?;
        all.snapshots += done.snapshots;
        all.packs += done.packs;
        all.bytes += done.bytes;
        all.findings.extend(done.findings);
        (all.from, all.to) = (done.from, done.to);
    }
    Ok(all)
}

/// [`origin`], and a replica of it.
pub async fn replicated(trees: &[Tree]) -> (Arc<Memory>, World, Arc<Memory>) {
    let (memory, world) = origin(trees).await;
    let replica = Arc::new(Memory::new());
    replicate(&world, &replica).await;
    (memory, world, replica)
}

pub async fn replicate(from: &World, to: &Arc<Memory>) -> Replicated {
    let store: Arc<dyn Store> = to.clone();
    replicate_as(&from.repository, store, how()).await.unwrap()
}

/// The numbers of the snapshots in a store, each of which reads back as what it is a snapshot of.
pub async fn sound(world: &World, store: Arc<dyn Store>, trees: &[Tree]) -> Vec<u64> {
    let replica = match world.through(store).await {
        Err(RepoError::NoRepository { .. }) => return Vec::new(),
        other => other.unwrap(),
    };
    let (snapshots, over) = replica.reading().snapshots().await.unwrap();
    assert!(over.is_empty(), "{over:?}");
    for snapshot in &snapshots {
        let read = replica.read(&Selector::Number(snapshot.sequence())).await.unwrap();
        assert_eq!(contents(&read), contents(&trees[snapshot.sequence().0 as usize - 1]));
    }
    let verified = replica.reading().verify(Depth::Data, 1.0, 0).await.unwrap();
    assert_eq!(verified.findings, []);
    snapshots.iter().rev().map(|s| s.sequence().0).collect()
}

async fn packs(store: &Memory) -> usize {
    list_all(store, "data/packs/").await.unwrap().len()
}

/// For every N: the replica's store fails from the N-th operation on, or its answer is lost.
#[test]
fn a_replication_cut_off_anywhere_leaves_a_repository_that_reads_back() {
    runtime().block_on(async {
        let trees = trees();
        for fault in [Fault::From, Fault::KilledAfter, Fault::Only, Fault::AnswerLost] {
            for n in 1.. {
                let (memory, world) = origin(&trees[..1]).await;
                let replica = Arc::new(Memory::new());
                // Half of the time there is a replica already.
                if n % 2 == 0 {
                    replicate(&world, &replica).await;
                }
                world.backup(&trees[1]).await.unwrap();
                world.backup(&trees[2]).await.unwrap();
                let faults = Arc::new(Faults::default());
                faults.set(fault(n));
                let broken: Arc<dyn Store> = Arc::new(Faulty::new(replica.clone(), faults.clone()));
                let result = replicate_as(&world.repository, broken, how()).await;
                let reached = faults.operations() >= n;
                let before = sound(&world, replica.clone(), &trees).await;
                assert_eq!(before, (1..=before.len() as u64).collect::<Vec<_>>(), "in order, without gaps");
                match &result {
                    Ok(done) => assert_eq!((done.findings.as_slice(), before.len()), (&[][..], 3)),
                    Err(error) => assert!(matches!(error, RepoError::Store(_)), "{n}: {error:?}"),
                }
                let had = packs(&replica).await;
                let rest = replicate(&world, &replica).await;
                assert_eq!(rest.findings, [], "{n}");
                assert_eq!(
                    (rest.snapshots, rest.packs),
                    (3 - before.len(), packs(&memory).await - had),
                    "only the rest"
                );
                assert_eq!(sound(&world, replica, &trees).await, [1, 2, 3]);
                if !reached && n % 2 == 1 {
                    assert!(result.is_ok());
                    assert!(n > 15, "a replication has more operations than {n}");
                    break;
                }
            }
        }
    });
}

#[test]
fn the_origin_failing_anywhere_is_an_error_and_the_replica_stays_sound() {
    runtime().block_on(async {
        let trees = trees();
        let (memory, world) = origin(&trees).await;
        for n in 1.. {
            let replica = Arc::new(Memory::new());
            let faults = Arc::new(Faults::default());
            let through = world.through(Arc::new(Faulty::new(memory.clone(), faults.clone()))).await.unwrap();
            faults.set_as(Fault::From(n), StoreErrorKind::Unavailable);
            let result = replicate_as(&through.repository, replica.clone(), how()).await;
            let reached = faults.operations() >= n;
            assert_eq!(result.is_err(), reached, "{n}: {result:?}");
            sound(&world, replica, &trees).await;
            if !reached {
                break;
            }
        }
    });
}

/// Nothing is read of what did not change: neither a pack nor, but for the newest, a manifest.
#[test]
fn an_unchanged_source_costs_listings() {
    runtime().block_on(async {
        let trees = trees();
        let (memory, world) = origin(&trees).await;
        for i in 0..30 {
            let mut tree = trees[2].clone();
            tree.insert("more".into(), File::content(noise(i, 5000)));
            world.backup(&tree).await.unwrap();
        }
        let replica = Arc::new(Memory::new());
        replicate(&world, &replica).await;
        let counts = [Arc::new(Faults::default()), Arc::new(Faults::default())];
        let through = world.through(Arc::new(Faulty::new(memory, counts[0].clone()))).await.unwrap();
        for count in &counts {
            count.set(Fault::Nothing);
        }
        let to: Arc<dyn Store> = Arc::new(Faulty::new(replica, counts[1].clone()));
        let again = replicate_as(&through.repository, to, how()).await.unwrap();
        assert_eq!((again.snapshots, again.packs, again.bytes, again.findings), (0, 0, 0, Vec::new()));
        assert_eq!((again.from, again.to.is_some()), (again.to, true));
        let [from, to] = counts.map(|count| count.operations());
        assert!(from <= 16 && to <= 16, "{from} operations where it comes from, {to} at the replica");
    });
}

#[test]
fn a_dry_run_counts_and_writes_nothing() {
    runtime().block_on(async {
        let trees = trees();
        let (memory, world) = origin(&trees).await;
        let replica = Arc::new(Memory::new());
        let planned = replicate_as(&world.repository, replica.clone(), dry_run()).await.unwrap();
        assert!(list_all(replica.as_ref(), "").await.unwrap().is_empty());
        assert_eq!((planned.snapshots, planned.packs), (3, packs(&memory).await));
        assert_eq!(planned.lag(), None);
        let copied = replicate(&world, &replica).await;
        assert_eq!((copied.snapshots, copied.packs, copied.bytes), (planned.snapshots, planned.packs, planned.bytes));
        let all = |store: Arc<Memory>| async move {
            let listed = list_all(store.as_ref(), "").await.unwrap();
            listed.iter().map(|o| (o.key.clone(), o.size)).collect::<Vec<_>>()
        };
        assert_eq!(all(replica.clone()).await, all(memory).await, "a first copy has every object");
        world.backup_at(&trees[0], now() + SignedDuration::from_hours(5)).await.unwrap();
        let behind = replicate_as(&world.repository, replica, dry_run()).await.unwrap();
        let (snapshots, _) = world.reading().snapshots().await.unwrap();
        let times: Vec<_> = snapshots.iter().map(|s| s.manifest.header.time_ms).take(2).collect();
        let lag = Duration::from_millis((times[0] - times[1]).cast_unsigned());
        assert_eq!(behind.lag(), Some(lag));
        assert!(lag > Duration::from_hours(4), "{lag:?}");
    });
}

#[test]
fn another_repository_is_never_copied_over() {
    runtime().block_on(async {
        let trees = trees();
        let (_, world) = origin(&trees).await;
        let (other, _) = origin(&trees[..1]).await;
        let before = list_all(other.as_ref(), "").await.unwrap();
        let refused = replicate_as(&world.repository, other.clone(), how()).await.unwrap_err();
        assert!(refused.to_string().contains("holds another repository"), "{refused}");
        assert_eq!(list_all(other.as_ref(), "").await.unwrap(), before);
    });
}

pub async fn rot(store: &Memory, key: &str) {
    let mut bytes = store.get(key).await.unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    store.delete(key).await.unwrap();
    store.put(key, bytes.into(), PutOptions::default()).await.unwrap();
}

pub fn manifest(number: u64) -> String {
    format!("data/snapshots/{}", Sequence(number).object_name())
}

#[test]
fn what_is_damaged_is_reported_and_the_rest_is_copied() {
    runtime().block_on(async {
        let trees = trees();
        let (memory, world) = origin(&trees[..1]).await;
        let first = list_all(memory.as_ref(), "data/packs/").await.unwrap();
        world.backup(&trees[1]).await.unwrap();
        let both = list_all(memory.as_ref(), "data/packs/").await.unwrap();
        let second = both.iter().find(|o| !first.contains(o)).unwrap();
        let whole = memory.get(&second.key).await.unwrap();
        // Snapshot 3 needs nothing that is new in 2.
        world.backup(&trees[0]).await.unwrap();
        let (snapshot, _) = world.reading().find(&Selector::Number(Sequence(3))).await.unwrap();
        let third_needs = |o: &str| snapshot.manifest.header.packs.iter().any(|p| o.ends_with(&p.pack.to_string()));
        assert!(!third_needs(&second.key));
        rot(&memory, &second.key).await;
        memory.put(&manifest(4), "rubbish".into(), PutOptions::default()).await.unwrap();
        let replica = Arc::new(Memory::new());
        let done = replicate(&world, &replica).await;
        let found: Vec<_> = done.findings.iter().map(|f| (f.object.as_str(), f.snapshots.as_slice())).collect();
        assert_eq!(
            found,
            [(manifest(4).as_str(), &[Sequence(4)][..]), (second.key.as_str(), &[Sequence(2)][..])],
            "{:?}",
            done.findings
        );
        assert!(replica.get(&second.key).await.is_err() && replica.get(&manifest(2)).await.is_err());
        let there = world.through(replica.clone()).await.unwrap();
        for (number, tree) in [(1, &trees[0]), (3, &trees[0])] {
            assert_eq!(contents(&there.read(&Selector::Number(Sequence(number))).await.unwrap()), contents(tree));
        }
        // When it is mended, the next run fills the gap.
        memory.delete(&second.key).await.unwrap();
        memory.put(&second.key, whole, PutOptions::default()).await.unwrap();
        memory.delete(&manifest(4)).await.unwrap();
        let done = replicate(&world, &replica).await;
        assert_eq!((done.snapshots, done.packs, done.findings), (1, 1, Vec::new()));
        let trees = [trees[0].clone(), trees[1].clone(), trees[0].clone()];
        assert_eq!(sound(&world, replica, &trees).await, [1, 2, 3]);
    });
}

#[test]
fn what_differs_is_a_finding_and_never_overwritten() {
    runtime().block_on(async {
        let trees = trees();
        let (_, world, replica) = replicated(&trees[..1]).await;
        // Two histories: somebody backs up to the replica, and here it goes on too.
        let there = world.through(replica.clone()).await.unwrap();
        there.backup(&trees[2]).await.unwrap();
        world.backup(&trees[1]).await.unwrap();
        let done = replicate(&world, &replica).await;
        assert_eq!(done.findings.len(), 1, "{:?}", done.findings);
        assert_eq!(done.findings[0].object, manifest(2));
        assert_eq!(contents(&there.read(&Selector::Number(Sequence(2))).await.unwrap()), contents(&trees[2]));
        // A root state, a key or a pack that is another one.
        for which in ["lifeboat.json", "data/keys/", "data/packs/"] {
            let (_, world, replica) = replicated(&trees[..1]).await;
            let key = list_all(replica.as_ref(), which).await.unwrap().remove(0).key;
            let bytes = replica.get(&key).await.unwrap();
            replica.delete(&key).await.unwrap();
            replica.put(&key, bytes.slice(..bytes.len() - 1), PutOptions::default()).await.unwrap();
            replica.delete(&manifest(1)).await.unwrap();
            let store: Arc<dyn Store> = replica.clone();
            match replicate_as(&world.repository, store, how()).await {
                Ok(done) => assert!(done.findings.iter().any(|f| f.object == key), "{key}: {:?}", done.findings),
                Err(error) => assert_eq!((key.as_str(), error.object()), ("lifeboat.json", Some("lifeboat.json"))),
            }
            assert_eq!(replica.head(&key).await.unwrap().size + 1, bytes.len() as u64);
        }
    });
}

#[test]
fn a_snapshot_that_vanished_where_it_came_from_is_told_and_stays() {
    runtime().block_on(async {
        let trees = trees();
        let (memory, world, replica) = replicated(&trees).await;
        for number in [2, 3] {
            memory.delete(&manifest(number)).await.unwrap();
        }
        let done = replicate(&world, &replica).await;
        assert_eq!(done.findings.iter().map(|f| f.object.clone()).collect::<Vec<_>>(), [manifest(3)]);
        assert_eq!(sound(&world, replica, &trees).await, [1, 2, 3]);
    });
}

pub async fn prune(world: &World, remove: &[u64]) {
    let lineage = world.reading();
    let remove: Vec<_> = remove.iter().copied().map(Sequence).collect();
    let plan = lineage.plan_prune(&remove, &[]).await.unwrap();
    lineage.prune(&plan, &world.keys.keeper, GRACE, now()).await.unwrap();
}

/// The replica keeps what is pruned where it comes from, its own keeper prunes it, and a gap is explained in both.
#[test]
fn pruning_takes_nothing_from_the_replica_and_gaps_are_explained() {
    runtime().block_on(async {
        let trees = trees();
        let (memory, world) = origin(&trees[..2]).await;
        let replica = Arc::new(Memory::new());
        replica.set_now(now());
        replicate(&world, &replica).await;
        let mut all = vec![trees[0].clone(), trees[1].clone()];
        for i in 0..3 {
            let mut tree = trees[2].clone();
            tree.insert("more".into(), File::content(noise(i, 400_000)));
            world.backup(&tree).await.unwrap();
            all.push(tree);
        }
        // One record takes what the replica has and what it has not seen.
        prune(&world, &[1, 3]).await;
        memory.set_now(now() + SignedDuration::from_hours(100));
        prune(&world, &[]).await;
        let done = replicate(&world, &replica).await;
        assert_eq!((done.snapshots, done.findings), (2, Vec::new()));
        assert_eq!(sound(&world, replica.clone(), &all).await, [1, 2, 4, 5]);
        let there = world.through(replica.clone()).await.unwrap();
        assert_eq!(there.reading().missing().await.unwrap(), []);
        // The replica's keeper takes the numbers its own way, and nothing comes back.
        prune(&there, &[2]).await;
        replica.set_now(now() + SignedDuration::from_hours(100));
        prune(&there, &[]).await;
        assert_eq!(sound(&world, replica.clone(), &all).await, [1, 4, 5]);
        let before = packs(&replica).await;
        prune(&world, &[4]).await;
        let done = replicate(&world, &replica).await;
        assert_eq!((done.snapshots, done.packs, done.findings), (0, 0, Vec::new()));
        assert_eq!(packs(&replica).await, before);
        assert_eq!(sound(&world, replica.clone(), &all).await, [1, 4, 5]);
        // From the replica to a third copy, records and all; and back to where it came from.
        let third = Arc::new(Memory::new());
        let done = replicate(&there, &third).await;
        assert_eq!((done.snapshots, done.findings), (3, Vec::new()));
        assert_eq!(sound(&world, third.clone(), &all).await, [1, 4, 5]);
        assert_eq!(world.through(third).await.unwrap().reading().missing().await.unwrap(), []);
        let records = list_all(replica.as_ref(), "data/pruned-elsewhere/").await.unwrap().len();
        assert_eq!(records, 2);
    });
}

/// After a rotation a number that was pruned must not be filled again by whoever holds the old key.
#[test]
fn a_pruned_number_is_not_filled_again_at_a_replica() {
    runtime().block_on(async {
        let trees = trees();
        let (memory, world, replica) = replicated(&trees).await;
        prune(&world, &[1]).await;
        let (repository, keys) = world.repository.rotate_writer(&world.identity, now()).await.unwrap();
        let rotated = World { repository, keys, identity: world.identity.clone(), source: world.source.clone() };
        rotated.backup(&trees[0]).await.unwrap();
        let done = replicate(&rotated, &replica).await;
        assert_eq!((done.snapshots, done.findings), (1, Vec::new()));
        let all = [&trees[..], &trees[..1]].concat();
        assert_eq!(sound(&rotated, replica.clone(), &all).await, [1, 2, 3, 4], "the pruned one is here, and it counts");
        // Another one of that number does not.
        let genuine = replica.get(&manifest(1)).await.unwrap();
        let old = Arc::new(Memory::new());
        for object in list_all(memory.as_ref(), "").await.unwrap() {
            if !object.key.starts_with("_root/") && !object.key.contains("/snapshots/") {
                old.put(&object.key, memory.get(&object.key).await.unwrap(), PutOptions::default()).await.unwrap();
            }
        }
        world.through(old.clone()).await.unwrap().backup(&trees[2]).await.unwrap();
        let stolen = old.get(&manifest(1)).await.unwrap();
        assert_ne!(genuine, stolen);
        replica.delete(&manifest(1)).await.unwrap();
        replica.put(&manifest(1), stolen, PutOptions::default()).await.unwrap();
        let there = rotated.through(replica).await.unwrap();
        let (snapshots, over) = there.reading().snapshots().await.unwrap();
        assert_eq!(snapshots.iter().map(Snapshot::sequence).map(|s| s.0).collect::<Vec<_>>(), [4, 3, 2]);
        assert!(over[0].error.to_string().contains("prune record"), "{over:?}");
    });
}

/// Whoever hides the newest root state brings no retired key to life at the replica.
#[test]
fn a_root_that_is_rolled_back_is_judged_by_the_replicas() {
    runtime().block_on(async {
        let trees = trees();
        let (memory, world) = origin(&trees[..2]).await;
        let (repository, _) = world.repository.rotate_writer(&world.identity, now()).await.unwrap();
        let replica = Arc::new(Memory::new());
        replicate_as(&repository, replica.clone(), how()).await.unwrap();
        for state in list_all(memory.as_ref(), "_root/").await.unwrap() {
            memory.delete(&state.key).await.unwrap();
        }
        let rolled_back = world.through(memory).await.unwrap();
        rolled_back.backup(&trees[2]).await.unwrap();
        let done = replicate(&rolled_back, &replica).await;
        assert_eq!((done.snapshots, done.findings.len()), (0, 1), "{:?}", done.findings);
        assert!(done.findings[0].problem.contains("rotated away"), "{:?}", done.findings);
        assert_eq!(sound(&rolled_back, replica, &trees).await, [1, 2]);
    });
}

#[test]
fn locks_follow_what_a_snapshot_names() {
    runtime().block_on(async {
        let trees = trees();
        let (_, world) = origin(&trees[..1]).await;
        let replica = Arc::new(Memory::with_lock());
        replica.set_now(now());
        let days = |n: i64| now() + SignedDuration::from_hours(24 * n);
        let keep = Some(Duration::from_hours(24 * 10));
        let how = |at| Replicating { locking: Locking::new(keep, at), dry_run: false };
        replicate_as(&world.repository, replica.clone(), how(days(0))).await.unwrap();
        world.backup(&trees[1]).await.unwrap();
        replica.set_now(days(9));
        let done = replicate_as(&world.repository, replica.clone(), how(days(9))).await.unwrap();
        assert_eq!((done.snapshots, done.packs), (1, 1));
        replica.set_now(days(18));
        let (snapshot, _) = world.reading().find(&Selector::Latest).await.unwrap();
        let named = snapshot.manifest.header.packs.iter().map(|p| format!("data/packs/{}", p.pack));
        let keys = ["lifeboat.json", "data/keys/0001/epoch.json"].map(str::to_owned);
        let locked: Vec<_> = named.chain(keys).chain([manifest(2)]).collect();
        assert!(locked.len() >= 5);
        for key in locked {
            let refused = replica.delete(&key).await.unwrap_err();
            assert_eq!(refused.kind, StoreErrorKind::Locked, "{key}");
        }
        replica.delete(&manifest(1)).await.unwrap();
    });
}
