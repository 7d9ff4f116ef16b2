//! What is said, and to whom.

use crate::world::{self, World};
use serde_json::Value;

#[test]
fn mistakes_are_told_with_what_to_do() {
    let world = World::new();
    let none = world.as_owner(&["snapshots"]).expect(10);
    assert!(
        none.err.contains("there is no repository at file://") && none.err.contains("lifeboat init"),
        "{}",
        none.err
    );
    world.run(&["init", "--kit", "kit.txt"]).expect(0);
    world.run(&["init", "--kit", "kit.txt"]).expect(2);
    let twice = world.run(&["init", "--kit", "other.txt"]).expect(1);
    assert!(twice.err.contains("already") && !world.path("other.txt").exists(), "{}", twice.err);
    // The kit holds the writer key as well.
    world.run(&["--writer-key", "kit.txt", "backup", "--files", "tree", "--name", "docs"]).expect(0);
    let unknown = world.as_owner(&["ls", "dosc"]).expect(2);
    assert!(unknown.err.contains("did you mean docs?"), "{}", unknown.err);
    world.as_owner(&["ls", "docs@7"]).expect(1);
    world.run(&["ls", "docs@yesterday"]).expect(2);
    world.run(&["no-such-command"]).expect(2);
    for wrong in [&["no-such-command", "--json"][..], &["--json", "ls"], &["backup", "--json", "--paralel", "3"]] {
        let error: Value = serde_json::from_str(&world.run(wrong).expect(2).err).unwrap();
        assert_eq!(error["code"], 2);
        let text = error["error"].as_str().unwrap();
        assert!(!text.is_empty() && !text.starts_with("error:") && error["hint"].is_string(), "{error}");
    }
    world.document("bad.yaml", "apiVersion: lifeboat.dev/v1\nkind: Suorce\nmetadata: {name: x}\nspec: {}\n");
    let bad = world.run(&["--config", "bad.yaml", "backup", "--all"]).expect(2);
    assert!(bad.err.contains("bad.yaml:2") && bad.err.contains("\"Source\""), "{}", bad.err);
}

#[test]
fn a_mistake_in_a_document_does_not_keep_a_restore_from_the_others() {
    let world = World::with_repository();
    let document = |kind: &str, name: &str, spec: String| {
        let text = format!("apiVersion: lifeboat.dev/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n");
        world.document(&format!("documents/{name}.yaml"), &text);
    };
    std::fs::create_dir(world.path("documents")).unwrap();
    document("Repository", "main", format!("{{url: '{}'}}", world.path("repository").display()));
    document("Source", "docs", format!("{{files: {{path: {}}}}}", world.path("tree").display()));
    let plan = |name: &str, to: &str| {
        document(
            "RestorePlan",
            name,
            format!("{{level: app, steps: [{{name: put, restore: {{source: docs, to: {to}}}}}]}}"),
        );
    };
    plan("site", world.path("back").to_str().unwrap());
    let with = ["--config", "documents", "--identity", "kit.txt"];
    let run = |arguments: &[&str]| {
        let mut command = world.command(&[&with, arguments].concat());
        world::finish(command.env_remove("LIFEBOAT_REPOSITORY").spawn().unwrap())
    };
    run(&["backup", "docs"]).expect(0);
    plan("shop", "[");

    let refused = run(&["backup", "docs"]).expect(2);
    assert!(refused.err.contains("documents/shop.yaml:4: cannot be read as YAML"), "{}", refused.err);
    let status = run(&["-r", "main", "status", "--json"]).expect(2).json();
    assert_eq!(
        (status["sources"][0]["source"].as_str(), status["mistakes"][0]["line"].as_u64()),
        (Some("docs"), Some(4))
    );
    let unsure = run(&["restore", "app", "site"]).expect(2);
    assert!(unsure.err.contains("left out") && unsure.err.contains("-r main"), "{}", unsure.err);
    let missing = run(&["-r", "main", "restore", "app", "shop"]).expect(2);
    assert!(missing.err.contains("no RestorePlan") && missing.err.contains("mend those"), "{}", missing.err);
    let restored = run(&["-r", "main", "restore", "app", "site"]).expect(0);
    assert!(restored.err.contains("documents/shop.yaml:4"), "{}", restored.err);
    assert_eq!(std::fs::read(world.path("back/a")).unwrap(), b"first");
}

#[test]
fn log_lines_carry_the_runs_id() {
    let world = World::with_repository();
    let run =
        ["--log-format", "json", "--writer-key", "writer.key", "backup", "--files", "tree", "--name", "docs", "--json"];
    let ran = world.run(&run).expect(0);
    let id = ran.json()["run"].clone();
    let lines: Vec<Value> = ran.err.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() >= 2, "{}", ran.err);
    assert!(lines.iter().all(|line| line["run"] == id), "{}", ran.err);
    assert_eq!(world.as_writer(&["show", "docs", "--json"]).expect(0).json()["run"], id);
    let failed = world.as_writer(&["--log-format", "json", "ls", "docs"]).expect(12).err;
    let line: Value = serde_json::from_str(failed.trim_end()).unwrap();
    assert_eq!((&line["level"], &line["code"]), (&"error".into(), &12.into()));
}

#[test]
fn help_completions_and_manual_are_there() {
    let world = World::new();
    let help = world.run(&["--help"]).expect(0).out;
    for command in ["init", "backup", "snapshots", "restore", "export", "status", "verify", "prune", "doctor"] {
        assert!(help.contains(&format!("  {command}")), "{command}");
    }
    assert!(world.run(&["completions", "bash"]).expect(0).out.contains("_lifeboat"));
    assert!(world.run(&["man", "restore", "snapshot"]).expect(0).out.contains(r"\-\-to"));
}
