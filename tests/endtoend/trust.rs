//! Wrong keys, foreign manifests and rot, in a repository in a directory.

use crate::support::picture::{assert_same, picture};
use crate::support::world::{World, noise};
use lifeboat::id::Sequence;
use std::fs;

fn manifest(number: u64) -> String {
    format!("docs/snapshots/{}", Sequence(number).object_name())
}

#[test]
fn wrong_keys_and_places_are_told_apart() {
    let (world, other) = (World::local(), World::local());
    world.file("a", "content");
    world.backup();
    let foreign = other.path("kit.txt").display().to_string();
    world.run(&["--identity", &foreign, "restore", "snapshot", "docs", "--to", "x"]).expect(12).says("--identity FILE");
    world.run(&["--identity", &foreign, "verify", "--read-data"]).expect(12);
    world.run(&["--writer-key", &foreign, "backup", "--files", "tree", "--name", "docs"]).expect(12);
    world.as_writer(&["restore", "snapshot", "docs", "--to", "x"]).expect(12).says("--identity FILE");
    assert!(!world.path("x").exists());
    assert_eq!(world.numbers("docs"), [1]);
    let nowhere = World::without_repository();
    nowhere.document("repository.yaml", &World::directory(&nowhere.path("nothing")));
    nowhere.run(&["snapshots"]).expect(10).says("there is no repository at file://");
}

#[test]
fn foreign_and_moved_manifests_do_not_count_and_are_told() {
    let (world, other) = (World::local(), World::local());
    world.file("a", "first");
    world.backup();
    world.file("a", "second");
    world.backup();
    let second = picture(&world.path("tree"));
    other.file("a", "of somebody else");
    other.backup();
    let place = |world: &World, number| world.path("repository").join(manifest(number));
    fs::copy(place(&other, 1), place(&world, 3)).unwrap();
    fs::copy(place(&world, 1), place(&world, 4)).unwrap();

    let listed = world.as_writer(&["snapshots"]).expect(1).out;
    assert!(listed.contains("docs@3 does not count") && listed.contains("docs@4 does not count"), "{listed}");
    let latest = world.as_owner(&["restore", "snapshot", "docs", "--to", "latest"]).expect(3);
    latest.says("stepped over");
    assert!(!latest.err.contains('\x1b'), "colours, and no terminal: {}", latest.err);
    assert_same(&picture(&world.path("latest")), &second, "latest");
    for number in [3, 4] {
        let refused = world.as_owner(&["restore", "snapshot", &format!("docs@{number}"), "--to", "x"]).expect(1);
        refused.says(&manifest(number)).says("someone else may have written");
    }
    let found = world.as_owner(&["verify", "--read-data"]).expect(1).out;
    assert!(found.contains(&manifest(3)) && found.contains(&manifest(4)), "{found}");
    world.file("a", "third");
    let third = picture(&world.path("tree"));
    assert_eq!(world.backup().number, 5);
    world.assert_restores(5, &third);
    world.assert_restores(2, &second);
}

#[test]
fn a_flipped_bit_is_found_and_named_and_costs_only_what_it_hit() {
    let world = World::local();
    world.file("old", noise(1, 300_000));
    world.backup();
    let first = picture(&world.path("tree"));
    let before = world.objects("docs/packs");
    world.file("new", noise(2, 300_000));
    world.backup();
    let pack = world.objects("docs/packs").into_iter().find(|pack| !before.contains(pack)).unwrap();
    // Among its frames: the content.
    world.tamper(&pack, |bytes| bytes[1000] ^= 4);
    for arguments in [&["verify", "--read-data", "--json"][..], &["verify", "--scrub", "--json"]] {
        let report = world.as_owner(arguments).expect(1).json();
        let findings = &report["sources"]["docs"]["findings"];
        assert!(findings[0]["object"].as_str().unwrap().contains(&pack), "{report}");
        assert_eq!(findings[0]["snapshots"], serde_json::json!([2]));
    }
    let hurt = world.as_owner(&["restore", "snapshot", "docs@2", "--to", "hurt", "--json"]).expect(3).json();
    assert_eq!(hurt["problems"][0]["path"], "new");
    assert!(hurt["problems"][0]["text"].as_str().unwrap().contains(&pack), "{hurt}");
    assert!(!world.path("hurt/new").exists());
    assert_eq!(fs::read(world.path("hurt/old")).unwrap(), noise(1, 300_000));
    world.as_owner(&["export", "docs@2", "-o", "out.tar"]).expect(1).says(&pack);
    assert!(!world.path("out.tar").exists());
    world.assert_restores(1, &first);
    // Its manifest: the snapshot no longer counts, and the one before is the latest.
    world.tamper(&manifest(2), |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    world.as_owner(&["restore", "snapshot", "docs@2", "--to", "x"]).expect(1).says(&manifest(2));
    world.as_owner(&["restore", "snapshot", "docs@latest", "--to", "latest"]).expect(3);
    assert_same(&picture(&world.path("latest")), &first, "latest");
}
