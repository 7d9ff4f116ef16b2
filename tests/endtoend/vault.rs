//! Vault: captured, lost, brought back into itself and into another server.

use crate::support::vault::{Vault, vault};
use crate::support::{Wire, free_port};
use crate::world::{Ran, World, made};
use reqwest::Method;
use serde_json::json;
use std::fs;

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
