//! Vault: captured, lost, brought back into itself and into another server.

use crate::support::vault::{Vault, vault};
use crate::support::world::{Ran, World, finish, made};
use crate::support::{Wire, command, free_port, tool};
use reqwest::Method;
use serde_json::{Value, json};
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const BACKUP: [&str; 3] = ["backup", "vault", "--json"];

/// A document of the Vault at this port, with the token in the file `token`.
fn document(world: &World, name: &str, port: u16, token: &str, restore: &str) {
    fs::write(world.path(format!("{name}.token")), format!("{token}\n")).unwrap();
    let file = world.path(format!("{name}.token"));
    let text = format!(
        "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: {name}}}\nspec:\n  vault:\n    \
         address: http://127.0.0.1:{port}\n    auth: {{token: {{file: {}}}}}\n    restore: {{{restore}}}\n  \
         heldElsewhere: [in this test]\n",
        file.display()
    );
    world.document(&format!("{name}.yaml"), &text);
}

/// Keys of a captured Vault for the document of the one that it is restored into.
fn unseal_keys(world: &World, vault: &Vault, number: usize) -> String {
    let files = vault.keys[..number].iter().enumerate().map(|(index, key)| {
        let file = world.path(format!("unseal-{index}"));
        fs::write(&file, key).unwrap();
        format!("{{file: {}}}", file.display())
    });
    format!("unsealKeys: [{}]", files.collect::<Vec<_>>().join(", "))
}

fn into(world: &World, arguments: &[&str]) -> Ran {
    world.as_owner(&[&["restore", "snapshot", "vault@latest", "--into"], arguments].concat())
}

fn id(world: &World, name: &str, more: &[&str]) -> String {
    let planned = into(world, &[&[name, "--dry-run", "--json"], more].concat()).expect(0).json();
    assert_eq!(planned["overwrites"], true);
    planned["target"].as_str().unwrap().into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vault_is_brought_back_into_itself() {
    let vault = Vault::start().await;
    let world = World::local();
    vault.write("canary", "sings").await;
    let reader = vault.token_that_may("read").await;
    document(&world, "vault", vault.server.port, &reader, "");
    world.as_writer(&["doctor"]).expect(0);
    let first = world.as_writer(&BACKUP).expect(0).json();
    let facts = &first["backups"][0]["facts"];
    assert!(facts["position"].as_u64().unwrap() > 10, "{facts}");
    assert_eq!(facts["details"]["unseal_threshold"], "2", "{facts}");

    // Unchanged secrets cost nothing again, although the barrier seals them.
    for number in 0..40 {
        vault.write(&format!("bulk-{number}"), &"x".repeat(50_000)).await;
    }
    let filled = made(&world.as_writer(&BACKUP).expect(0));
    vault.write("one-more", "y").await;
    let next = world.as_writer(&BACKUP).expect(0).json();
    let bytes = next["backups"][0]["bytes"].as_u64().unwrap();
    let new = next["backups"][0]["newBytes"].as_u64().unwrap();
    assert!(bytes > 2_000_000 && filled.new_bytes > 1_500_000, "{next}");
    assert!(new < bytes / 2, "{next}");

    // What Vault's own tool says of the exported file.
    world.as_owner(&["export", "vault@latest", "-o", "exported.snap"]).expect(0);
    let inspected =
        vault.cli(&["operator", "raft", "snapshot", "inspect", world.path("exported.snap").to_str().unwrap()]);
    let index = next["backups"][0]["facts"]["position"].to_string();
    assert!(inspected.contains(&index), "{inspected}");

    vault.write("canary", "is silent").await;
    vault.write("later", "is lost").await;
    // Reading snapshots is not restoring them.
    into(&world, &["vault", "--dry-run"]).expect(1).says("permission denied").says("update");
    document(&world, "vault", vault.server.port, &vault.token, "canary: secret/data/canary");
    let refused = into(&world, &["vault"]).expect(2);
    let id = id(&world, "vault", &[]);
    refused.says("would overwrite").says(&id);
    into(&world, &["vault", "--yes", "--target-id", "another"]).expect(2).says(&id);
    assert_eq!(vault.read("canary").await.as_deref(), Some("is silent"));
    let restored = into(&world, &["vault", "--yes", "--target-id", &id]).expect(0);
    assert!(restored.out.contains("secret/data/canary is readable"), "{}", restored.out);
    assert_eq!(vault.read("canary").await.as_deref(), Some("sings"));
    assert_eq!(vault.read("later").await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_vault_is_brought_back_as_another_server() {
    let lost = Vault::start().await;
    let world = World::local();
    lost.write("canary", "sings").await;
    lost.put("transit/keys/orders", json!({})).await;
    let sealed = lost.put("transit/encrypt/orders", json!({"plaintext": "aGVsbG8="})).await;
    let ciphertext = sealed["data"]["ciphertext"].as_str().unwrap().to_owned();
    document(&world, "vault", lost.server.port, &lost.token, "");
    world.as_writer(&BACKUP).expect(0);
    let keys = unseal_keys(&world, &lost, 2);
    let too_few = unseal_keys(&world, &lost, 1);
    let token = world.path("vault.token");
    let Vault { server, token: old_token, .. } = lost;
    drop(server);

    let mut fresh = Vault::start().await;
    fresh.write("canary", "of another Vault").await;
    document(&world, "fresh", fresh.server.port, &fresh.token, "");
    into(&world, &["fresh", "--dry-run"]).expect(1).says("the snapshot is of cluster").says("--foreign");
    into(&world, &["fresh", "--foreign"]).expect(1).says("opens with 2 of the captured Vault's 3").says("unsealKeys");
    document(&world, "fresh", fresh.server.port, &fresh.token, &too_few);
    into(&world, &["fresh", "--foreign"]).expect(1).says("the document names 1");
    assert_eq!(fresh.read("canary").await.as_deref(), Some("of another Vault"), "nothing was overwritten");

    let restore = format!("{keys}, token: {{file: {}}}, canary: secret/data/canary", token.display());
    document(&world, "fresh", fresh.server.port, &fresh.token, &restore);
    let id = id(&world, "fresh", &["--foreign"]);
    let restored = into(&world, &["fresh", "--foreign", "--yes", "--target-id", &id]).expect(0);
    assert!(restored.out.contains("transit/"), "{}", restored.out);
    fresh.token = old_token;
    assert_eq!(fresh.read("canary").await.as_deref(), Some("sings"));
    let opened = fresh.put("transit/decrypt/orders", json!({"ciphertext": ciphertext})).await;
    assert_eq!(opened["data"]["plaintext"], "aGVsbG8=");

    // From now on it is that Vault: its backups go on where the lost one's ended.
    document(&world, "vault", fresh.server.port, &fresh.token, "");
    assert_eq!(made(&world.as_writer(&BACKUP).expect(0)).number, 2);
}

#[track_caller]
fn fails(world: &World, port: u16, token: &str, text: &str) {
    document(world, "vault", port, token, "");
    let failed = world.as_writer(&["backup", "vault"]).expect(1);
    failed.says(text);
    assert!(!failed.err.contains(token), "{}", failed.err);
    assert!(world.numbers("vault").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_captured_commits_nothing() {
    let vault = Vault::start().await;
    let world = World::local();
    let useless = vault.token_that_may("update").await;
    fails(&world, free_port(), "hvs.any-token", "check the address");
    fails(&world, vault.server.port, "hvs.no-such-token", "permission denied");
    fails(&world, vault.server.port, &useless, "capabilities = [\"read\"]");
    let etcd = crate::support::etcd();
    fails(&world, etcd.port, "hvs.any-token", "404 Not Found");

    // The connection ends in the middle of the snapshot.
    for number in 0..40 {
        vault.write(&format!("bulk-{number}"), &"x".repeat(50_000)).await;
    }
    let wire = Wire::to(&vault.server).await;
    wire.cut_after(1_000_000);
    fails(&world, wire.port, &vault.token, "the stream broke while");

    vault.call(Method::PUT, "sys/seal", Some(json!({}))).await;
    fails(&world, vault.server.port, &vault.token, "it is sealed; unseal it");
    let empty = self::vault();
    fails(&world, empty.port, "hvs.any-token", "not initialised");
}

/// A restore of single secrets, with the directory of a program `vault` on the PATH. It leaves nothing behind.
fn program(world: &World, vault: &Path, arguments: &[&str]) -> Command {
    let fixed = ["--identity", "kit.txt", "restore", "snapshot", "vault@latest", "--into", "vault"];
    let mut program = world.program(&[&fixed, arguments].concat());
    fs::create_dir_all(world.path("tmp")).unwrap();
    program.env("PATH", format!("{}:/usr/bin:/bin", vault.display())).env("TMPDIR", world.path("tmp"));
    program
}

#[track_caller]
fn secrets(world: &World, vault: &Path, arguments: &[&str]) -> Ran {
    let ran = finish(program(world, vault, arguments).spawn().unwrap());
    assert_nothing_is_left(world);
    ran
}

#[track_caller]
fn assert_nothing_is_left(world: &World) {
    let tmp = world.path("tmp");
    assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0);
    let tmp = tmp.to_str().unwrap().to_owned();
    let at_work = || {
        let lines = fs::read_dir("/proc").unwrap().map(|process| {
            String::from_utf8_lossy(&fs::read(process.unwrap().path().join("cmdline")).unwrap_or_default()).into_owned()
        });
        lines.filter(|line| line.contains(&tmp)).collect::<Vec<_>>()
    };
    // What was killed with its group is gone a moment later.
    let deadline = Instant::now() + Duration::from_secs(5);
    while !at_work().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", at_work());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn actions(ran: &Ran) -> Vec<(String, String)> {
    let changes = ran.json()["changes"].as_array().unwrap().clone();
    let text = |change: &Value, name: &str| change[name].as_str().unwrap().to_owned();
    changes.iter().map(|change| (text(change, "what"), text(change, "action"))).collect()
}

/// Versioned secrets below `app/`, one in an engine without versions, an audit device.
async fn filled() -> Vault {
    let vault = Vault::start().await;
    let audit = vault.server.dir.path().join("audit.log");
    vault.put("sys/audit/file", json!({"type": "file", "options": {"file_path": audit}})).await;
    vault.put("sys/mounts/old", json!({"type": "kv", "options": {"version": "1"}})).await;
    vault.put("old/config", json!({"word": "plain-as-it-was"})).await;
    vault.put("secret/data/app/db", json!({"data": {"user": "shop", "word": "as-it-was", "port": 5432}})).await;
    vault.put("secret/data/app/gone", json!({"data": {"number": 5_432_109_876_543_210u64}})).await;
    vault.put("secret/metadata/app/gone", json!({"max_versions": 7, "custom_metadata": {"owner": "ann"}})).await;
    vault.write("app/sub/deleted", "deleted").await;
    vault.write("app/same", "same").await;
    vault.write("other", "other").await;
    vault
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_secrets_come_back_out_of_a_snapshot() {
    let vault = filled().await;
    let world = World::local();
    let bin = tool("vault").parent().unwrap().to_owned();
    document(&world, "vault", vault.server.port, &vault.token, &unseal_keys(&world, &vault, 2));
    world.as_writer(&BACKUP).expect(0);
    vault.put("secret/data/app/db", json!({"data": {"user": "shop", "word": "as-it-is", "host": "db"}})).await;
    vault.call(Method::DELETE, "secret/metadata/app/gone", None).await;
    vault.call(Method::DELETE, "secret/data/app/sub/deleted", None).await;
    vault.write("other", "younger").await;
    vault.put("old/config", json!({"word": "plain-as-it-is"})).await;

    // The plan names keys, and neither it nor anything else tells values.
    let planned = secrets(&world, &bin, &["--path", "secret/data/app/", "--path", "old/config", "--dry-run"]).expect(0);
    for told in [
        "secret/data/app/db: adds port; changes word; removes host (now version 2)",
        "secret/data/app/gone: not there; adds number",
        "secret/data/app/sub/deleted: version 1 is deleted; adds value",
        "old/config: changes word",
        "opened in a Vault 1.",
    ] {
        assert!(planned.out.contains(told), "{told:?} is not in {}", planned.out);
    }
    for value in ["as-it-", "5432109876543210", &vault.token, &vault.keys[0], &vault.keys[1]] {
        assert!(!planned.out.contains(value) && !planned.err.contains(value), "{}{}", planned.out, planned.err);
    }
    assert_eq!(vault.read("app/sub/deleted").await, None, "a dry run changes nothing");

    // What is there stays, unless somebody says so and names the Vault.
    let app = ["--path", "secret/data/app/", "--path", "old/config", "--json"];
    let done = secrets(&world, &bin, &app).expect(0);
    let expected = [
        ("old/config", "skip"),
        ("secret/data/app/db", "skip"),
        ("secret/data/app/gone", "create"),
        ("secret/data/app/same", "unchanged"),
        ("secret/data/app/sub/deleted", "create"),
    ];
    assert_eq!(actions(&done), expected.map(|(what, action)| (what.to_owned(), action.to_owned())));
    assert_eq!(vault.read("app/sub/deleted").await.as_deref(), Some("deleted"));
    let (_, gone) = vault.call(Method::GET, "secret/data/app/gone", None).await;
    assert_eq!(gone["data"]["data"]["number"], 5_432_109_876_543_210u64);
    assert_eq!(gone["data"]["metadata"]["custom_metadata"]["owner"], "ann");
    let (_, kept) = vault.call(Method::GET, "secret/metadata/app/gone", None).await;
    assert_eq!(kept["data"]["max_versions"], 7);
    let (_, now) = vault.call(Method::GET, "secret/data/app/db", None).await;
    assert_eq!(now["data"]["data"]["word"], "as-it-is");

    let over = [&app[..], &["--existing", "update"]].concat();
    secrets(&world, &bin, &over).expect(2).says("would overwrite");
    let id = planned.out.split("which is ").nth(1).unwrap().split_whitespace().next().unwrap();
    let done = secrets(&world, &bin, &[&over[..], &["--yes", "--target-id", id]].concat()).expect(0);
    assert_eq!(actions(&done).iter().filter(|(_, action)| action == "update").count(), 2, "{}", done.out);
    let (_, now) = vault.call(Method::GET, "secret/data/app/db", None).await;
    assert_eq!(now["data"]["data"], json!({"user": "shop", "word": "as-it-was", "port": 5432}));
    assert_eq!(now["data"]["metadata"]["version"], 3);
    let (_, younger) = vault.call(Method::GET, "secret/data/app/db?version=2", None).await;
    assert_eq!(younger["data"]["data"]["word"], "as-it-is", "what was there is in the history");
    let (_, plain) = vault.call(Method::GET, "old/config", None).await;
    assert_eq!(plain["data"]["word"], "plain-as-it-was");
    assert_eq!(vault.read("other").await.as_deref(), Some("younger"), "it was not asked for");

    // The captured Vault has the same audit device: only the live one has written to it.
    let audit = fs::read_to_string(vault.server.dir.path().join("audit.log")).unwrap();
    assert!(audit.contains("secret/data/app/gone") && !audit.contains("generate-root"), "{audit}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_changes_while_somebody_looks_is_not_overwritten() {
    let vault = filled().await;
    let world = World::local();
    document(&world, "vault", vault.server.port, &vault.token, &unseal_keys(&world, &vault, 2));
    world.as_writer(&BACKUP).expect(0);
    vault.write("app/same", "changed").await;
    vault.put("old/config", json!({"word": "changed"})).await;
    let bin = tool("vault").parent().unwrap().to_owned();
    let over = ["--path", "secret/data/app/same", "--path", "old/config", "--existing", "update"];
    let program = program(&world, &bin, &over);
    let words: Vec<_> = std::iter::once(program.get_program()).chain(program.get_args()).collect();
    let line = words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ");
    // A terminal at which somebody types.
    let mut script = command("script");
    script.args(["-qec", &line, "/dev/null"]).current_dir(world.home.path());
    script.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut keyboard, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (mut shown, mut piece) = (String::new(), [0; 4096]);
    while !shown.contains("to go on:") {
        let length = screen.read(&mut piece).unwrap();
        assert!(length > 0, "{shown}");
        shown += &String::from_utf8_lossy(&piece[..length]);
    }
    assert!(shown.contains("secret/data/app/same: changes value"), "{shown}");
    assert_nothing_is_left(&world);
    vault.write("app/same", "younger").await;
    vault.put("old/config", json!({"word": "younger"})).await;
    let id = shown.split("Type ").nth(1).unwrap().split_whitespace().next().unwrap();
    keyboard.write_all(format!("{id}\n").as_bytes()).unwrap();
    screen.read_to_string(&mut shown).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3), "{shown}");
    assert_eq!(shown.matches("it has changed since it was looked at").count(), 2, "{shown}");
    assert_eq!(vault.read("app/same").await.as_deref(), Some("younger"));
    let (_, plain) = vault.call(Method::GET, "old/config", None).await;
    assert_eq!(plain["data"]["word"], "younger");
}

/// A Vault that was captured, whose document names two of its keys: with the directory of its program, and those keys.
async fn captured() -> (Vault, World, PathBuf, String) {
    let vault = filled().await;
    let world = World::local();
    let bin = tool("vault").parent().unwrap().to_owned();
    let keys = unseal_keys(&world, &vault, 2);
    document(&world, "vault", vault.server.port, &vault.token, &keys);
    world.as_writer(&BACKUP).expect(0);
    (vault, world, bin, keys)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_that_cannot_be_taken_out_are_told() {
    let (_vault, world, bin, _) = captured().await;
    let none = Path::new("/nonexistent");
    secrets(&world, none, &["--path", "secret/data/other"]).expect(1).says("on the PATH").says("install");
    for (path, told) in [
        ("secret/data/nothing", "it is not there"),
        ("secret/data/app", "ask for secret/data/app/"),
        ("secret/app/db", "secret/data/NAME"),
        ("transit/keys", "is a key-value engine mounted there"),
        ("no/such/engine", "find the engine of no/such/engine in the temporary Vault"),
    ] {
        secrets(&world, &bin, &["--path", path]).expect(1).says(told);
    }
    secrets(&world, &bin, &["--path", "/secret/data/other"]).expect(2).says("expected an API path");

    // Interrupted while the snapshot is being opened.
    let mut child = program(&world, &bin, &["--path", "secret/data/other"]).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_mins(1);
    let socket = |home: fs::DirEntry| home.path().join("socket").exists();
    while !fs::read_dir(world.path("tmp")).unwrap().any(|home| socket(home.unwrap())) {
        assert!(child.try_wait().unwrap().is_none() && Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(command("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert!(!child.wait().unwrap().success());
    assert_nothing_is_left(&world);

    // A program that is older than what it shall open.
    let older = world.path("older");
    fs::create_dir(&older).unwrap();
    fs::write(older.join("vault"), "#!/bin/sh\necho 'Vault v1.2.3 (0), built long ago'\n").unwrap();
    fs::set_permissions(older.join("vault"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    secrets(&world, &older, &["--path", "secret/data/other"]).expect(1).says("is of version 1.2.3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_come_out_only_with_the_right_keys_and_rights() {
    let (vault, world, bin, keys) = captured().await;
    let policy = "path \"secret/data/*\" { capabilities = [\"read\"] }";
    vault.put("sys/policies/acl/looks", json!({"policy": policy})).await;
    let looks = vault.put("auth/token/create", json!({"policies": ["looks"]})).await;
    vault.write("other", "younger").await;
    document(&world, "vault", vault.server.port, looks["auth"]["client_token"].as_str().unwrap(), &keys);
    let kept = secrets(&world, &bin, &["--path", "secret/data/other", "--existing", "update", "--json"]).expect(3);
    assert!(actions(&kept)[0].1.contains("capabilities"), "{}", kept.out);
    document(&world, "vault", vault.server.port, &vault.token, &unseal_keys(&world, &vault, 1));
    secrets(&world, &bin, &["--path", "secret/data/other"]).expect(1).says("the document names 1");
    let another = Vault::start().await;
    document(&world, "vault", vault.server.port, &vault.token, &unseal_keys(&world, &another, 2));
    let wrong = secrets(&world, &bin, &["--path", "secret/data/other"]).expect(1);
    wrong.says("name the captured Vault's unseal keys");
    assert!(!wrong.err.contains(&another.keys[0]), "{}", wrong.err);
    document(&world, "vault", another.server.port, &another.token, &unseal_keys(&world, &vault, 2));
    secrets(&world, &bin, &["--path", "secret/data/other"]).expect(1).says("--foreign");
    secrets(&world, &bin, &["--path", "secret/data/other", "--foreign"]).expect(0);
    assert_eq!(another.read("other").await.as_deref(), Some("other"));
    assert_eq!(vault.read("other").await.as_deref(), Some("younger"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vault_that_another_one_unseals() {
    let keeper = Vault::start().await;
    let seal = keeper.seal_for_another("ours").await;
    let lost = Vault::start_with(&seal).await;
    let world = World::local();
    let bin = tool("vault").parent().unwrap().to_owned();
    lost.write("canary", "sings").await;
    lost.write("other", "other").await;
    document(&world, "vault", lost.server.port, &lost.token, "");
    let facts = world.as_writer(&BACKUP).expect(0).json()["backups"][0]["facts"].clone();
    assert_eq!(facts["details"]["seal"], "transit", "{facts}");

    // One secret: only with that seal, and with the recovery keys.
    lost.write("other", "younger").await;
    let other = ["--path", "secret/data/other", "--existing", "update"];
    secrets(&world, &bin, &other).expect(1).says("unsealed by transit").says("restore.sealConfiguration");
    let configured = |seal: &str| {
        fs::write(world.path("seal.hcl"), seal).unwrap();
        format!("sealConfiguration: {}", world.path("seal.hcl").display())
    };
    document(&world, "vault", lost.server.port, &lost.token, &configured(&seal));
    secrets(&world, &bin, &other).expect(1).says("the document names 0");
    let keys = unseal_keys(&world, &lost, 2);
    let of_nothing = seal.replace(&keeper.server.port.to_string(), &free_port().to_string());
    for wrong in [of_nothing, keeper.seal_for_another("theirs").await] {
        document(&world, "vault", lost.server.port, &lost.token, &format!("{keys}, {}", configured(&wrong)));
        let failed = secrets(&world, &bin, &other).expect(1);
        failed.says("open the snapshot in").says("transit").says("restore.sealConfiguration");
        assert!(!failed.err.contains(&keeper.token), "{}", failed.err);
    }
    document(&world, "vault", lost.server.port, &lost.token, &format!("{keys}, {}", configured(&seal)));
    let planned = secrets(&world, &bin, &[&other[..], &["--dry-run", "--json"]].concat()).expect(0).json();
    let id = planned["target"].as_str().unwrap();
    secrets(&world, &bin, &[&other[..], &["--yes", "--target-id", id]].concat()).expect(0);
    assert_eq!(lost.read("other").await.as_deref(), Some("other"));

    // All of it: into one that the same key unseals, and without other keys.
    let token = world.path("vault.token");
    let Vault { server, token: old_token, .. } = lost;
    drop(server);
    let other_seal = Vault::start().await;
    document(&world, "fresh", other_seal.server.port, &other_seal.token, "");
    into(&world, &["fresh", "--foreign"]).expect(1).says("it is sealed by shamir").says("was by transit");
    let mut fresh = Vault::start_with(&seal).await;
    let restore = format!("token: {{file: {}}}, canary: secret/data/canary", token.display());
    document(&world, "fresh", fresh.server.port, &fresh.token, &restore);
    let id = self::id(&world, "fresh", &["--foreign"]);
    let restored = into(&world, &["fresh", "--foreign", "--yes", "--target-id", &id]).expect(0);
    assert!(restored.out.contains("secret/data/canary is readable"), "{}", restored.out);
    fresh.token = old_token;
    assert_eq!(fresh.read("canary").await.as_deref(), Some("sings"));
    assert_eq!(fresh.read("other").await.as_deref(), Some("other"));
}
