//! Which key opens what.

use crate::world::{World, tool};
use serde_json::Value;
use std::fs;

#[test]
fn keys_open_what_they_should_and_nothing_else() {
    let world = World::with_repository();
    world.backup().expect(0);
    for arguments in
        [&["ls", "docs"][..], &["restore", "snapshot", "docs", "--to", "out"], &["export", "docs", "-o", "x"]]
    {
        let refused = world.as_writer(arguments).expect(12);
        assert!(refused.err.contains("hint: ") && refused.err.contains("--identity"), "{}", refused.err);
        assert_eq!(refused.out, "");
    }
    assert!(!world.path("out").exists() && !world.path("x").exists());
    let other = World::with_repository();
    let foreign = other.path("kit.txt").display().to_string();
    let refused = world.run(&["--identity", &foreign, "ls", "docs"]).expect(12);
    let its_url = format!("at file://{}", other.path("repository").display());
    assert!(refused.err.contains("the kit at hand") && refused.err.contains(&its_url), "{}", refused.err);
    let foreign = other.path("writer.key").display().to_string();
    let backup = ["--writer-key", &foreign, "backup", "--files", "tree", "--name", "docs"];
    world.run(&backup).expect(12);
    // With --json, errors are one JSON object too.
    let refused = world.as_writer(&["--json", "ls", "docs"]).expect(12);
    let error: Value = serde_json::from_str(&refused.err).unwrap();
    assert_eq!(error["code"], 12);
    // Without a key at all, that is said.
    let none = world.run(&["ls", "docs"]).expect(2);
    assert!(none.err.contains("no key is given"), "{}", none.err);
    assert_eq!(world.manifests("docs").len(), 1);
}

#[test]
fn recipients_come_and_go_and_the_writer_key_rotates() {
    let world = World::with_repository();
    world.backup().expect(0);
    let other = World::with_repository();
    let recipient = other.run(&["keys", "list", "--json"]).expect(0).json()["recipients"][0]["key"].clone();
    let add = ["keys", "add-recipient", "auditor", "--role", "escrow", "--key", recipient.as_str().unwrap()];
    world.as_owner(&add).expect(0);
    // A kit is for its own repository: the identity alone is a file of its own.
    let kit = other.path("kit.txt");
    let refused = world.run(&["--identity", &kit.display().to_string(), "ls", "docs"]).expect(12);
    assert!(refused.err.contains("the kit at hand is that of repository"), "{}", refused.err);
    let identity = fs::read_to_string(kit).unwrap();
    let identity = identity.lines().find(|line| line.starts_with("AGE-SECRET-KEY-")).unwrap();
    other.document("identity", identity);
    let escrow = other.path("identity").display().to_string();
    assert!(world.run(&["--identity", &escrow, "ls", "docs"]).expect(0).out.contains("sub/b"));
    world.as_owner(&["keys", "remove-recipient", "auditor"]).expect(0);
    let own = world.as_owner(&["keys", "remove-recipient", "recovery"]).expect(2);
    assert!(own.err.contains("recovery is the identity in use"), "{}", own.err);

    world.as_owner(&["keys", "rotate-writer", "--out", "new.key"]).expect(0);
    let old = world.backup().expect(12);
    assert!(old.err.contains("rotated") && old.err.contains("show-writer"), "{}", old.err);
    world.as_writer(&["doctor"]).expect(1);
    let new = ["--writer-key", "new.key", "backup", "--files", "tree", "--name", "docs"];
    // What the old key sealed cannot be compared with, and that is said.
    let first = world.run(&new).expect(0);
    assert!(first.out.contains("not compared with snapshot 1") && first.out.contains("lifeboat diff docs@1 docs@2"));
    assert!(!world.run(&new).expect(0).out.contains("not compared"));
    // Both before and after.
    world.as_owner(&["restore", "snapshot", "docs@1", "--to", "one"]).expect(0);
    world.as_owner(&["restore", "snapshot", "docs@2", "--to", "two"]).expect(0);
    assert!(tool("diff", &["-r", "one", "two"], world.home.path()).status.success());
    // What was written after removal and rotation is sealed for the one who left.
    world.run(&["--identity", &escrow, "ls", "docs@2"]).expect(12);
}

#[test]
fn no_secret_reaches_a_log_or_an_error() {
    let world = World::with_repository();
    let kit = fs::read_to_string(world.path("kit.txt")).unwrap();
    let secrets: Vec<_> = kit.lines().filter(|l| l.starts_with("AGE-SECRET") || l.starts_with("lifeboat-")).collect();
    assert_eq!(secrets.len(), 3);
    let runs = [
        world.as_owner(&["-vvv", "backup", "--files", "tree", "--name", "docs"]).expect(0),
        world.as_owner(&["-vvv", "restore", "snapshot", "docs", "--to", "x"]).expect(0),
        // A key in the wrong place is not repeated.
        world.run(&["--identity", "writer.key", "ls", "docs"]).expect(12),
        world.run(&["--writer-key", "keeper.key", "backup", "--files", "tree", "--name", "docs"]).expect(12),
    ];
    for ran in runs {
        assert!(secrets.iter().all(|secret| !ran.err.contains(&secret[..30]) && !ran.out.contains(&secret[..30])));
    }
}
