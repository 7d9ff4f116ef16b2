//! Disasters, and the one command that each of them takes: a restore plan carried out on real systems. What is judged is
//! what the systems hold afterwards.

use crate::support::kubernetes::Server as Cluster;
use crate::support::mariadb::{PASSWORD, Server as Mariadb};
use crate::support::picture::{Picture, assert_same, picture};
use crate::support::vault::Vault;
use crate::support::world::{Ran, World, kill};
use crate::support::{Bucket, bucket, command, etcd_on, minio, tool};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const APP: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: shop}
data: {colour: blue}
---
apiVersion: v1
kind: Secret
metadata: {name: password, namespace: shop}
stringData: {word: hunter2}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: 'example.com/web:1'}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: writers}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: import, namespace: writers}
spec:
  schedule: '0 0 1 1 *'
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: i, image: 'example.com/i:1'}]}}}}
";

pub fn source(name: &str, spec: &str) -> String {
    format!("apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n")
}

pub fn plan(name: &str, level: &str, steps: &str) -> String {
    format!(
        "apiVersion: lifeboat.dev/v1\nkind: RestorePlan\nmetadata: {{name: {name}}}\nspec:\n  level: {level}\n  \
         steps:\n{steps}"
    )
}

fn mariadb(world: &World, name: &str, port: u16) -> String {
    fs::write(world.path("password"), PASSWORD).unwrap();
    let file = world.path("password");
    source(
        name,
        &format!("mariadb: {{host: 127.0.0.1, port: {port}, user: backup, password: {{file: {}}}}}", file.display()),
    )
}

/// The targets that a plan asks to be named.
fn ids(world: &World, level: &str, plan: &str) -> Vec<String> {
    let planned = world.as_owner(&["restore", level, plan, "--dry-run", "--json"]).expect(0).json();
    planned["mustBeConfirmed"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
}

fn named(ids: &[String]) -> Vec<&str> {
    let named = ids.iter().flat_map(|id| ["--target-id", id.as_str()]);
    std::iter::once("--yes").chain(named).collect()
}

/// The report, which is the last of the JSON lines.
fn report(ran: &Ran) -> Value {
    let last: Value = serde_json::from_str(ran.out.lines().last().unwrap()).unwrap();
    last["report"].clone()
}

#[test]
fn an_application_comes_back_by_one_command() {
    let (cluster, database, world) = (Cluster::start(), Mariadb::start(&[]), World::local());
    cluster.apply(APP);
    database.fill();
    database.sql("USE shop; CREATE TABLE orders (n INT PRIMARY KEY) AS SELECT seq AS n FROM seq_1_to_500");
    for number in 1..=200 {
        world.file(&format!("{}/{number}", number % 9), format!("picture {number}"));
    }
    let pictures = picture(&world.path("tree"));
    let kubeconfig = cluster.directory.path().join("admin.conf");
    let documents = [
        source(
            "objects",
            &format!("kubernetes: {{kubeconfig: {}, namespaces: [shop]}}, needs: [database]", kubeconfig.display()),
        ),
        source("platform", &format!("kubernetes: {{kubeconfig: {}, namespaces: [writers]}}", kubeconfig.display())),
        source("pictures", &format!("files: {{path: {}}}", world.path("tree").display())),
        mariadb(&world, "database", database.port),
        plan(
            "shop",
            "app",
            &format!(
                "  - {{name: writers, fence: {{cluster: platform, hold: {{suspend: [{{namespace: writers}}]}}}}}}\n  \
                 - {{name: database, restore: {{source: database, options: {{existing: replace}}}}}}\n  \
                 - {{name: pictures, after: [writers], restore: {{source: pictures, to: {}, options: {{existing: replace}}}}}}\n  \
                 - {{name: objects, after: [database, pictures], restore: {{source: objects}}}}\n  \
                 - {{name: go, unfence: writers}}\n  \
                 - {{name: rows, probe: {{sql: {{source: database, query: 'SELECT COUNT(*) FROM shop.orders', atLeast: 500}}}}}}\n  \
                 - {{name: web, probe: {{kubernetes: {{cluster: objects, object: {{resource: deployments.apps, namespace: shop, \
                 name: web, field: /spec/replicas, equals: '3'}}}}}}}}\n",
                world.path("tree").display()
            ),
        ),
    ];
    world.document("app.yaml", &documents.concat());
    let backed_up = world.as_writer(&["backup", "--all", "--json"]).expect(0).json();
    let checksums = database.checksums();

    // What comes after the last backup is lost, and only that.
    database.sql("USE shop; INSERT INTO orders SELECT seq FROM seq_501_to_520");
    cluster.kubectl(&["delete", "namespace", "shop", "--timeout=100s"]);
    database.sql("DROP DATABASE shop");
    fs::remove_dir_all(world.path("tree/3")).unwrap();
    world.file("4/stray", "nobody's");

    let ids = ids(&world, "app", "shop");
    assert_eq!(ids.len(), 3, "{ids:?}");
    world.as_owner(&["restore", "app", "shop"]).expect(2).says(&ids[0]).says(&ids[1]).says(&ids[2]);
    let partly = [&["restore", "app", "shop"], &named(&ids[1..])[..]].concat();
    world.as_owner(&partly).expect(2).says(&ids[0]);
    let restore = [&["--json", "restore", "app", "shop", "--report", "reports"], &named(&ids)[..]].concat();
    let ran = world.as_owner(&restore).expect(0);
    let report = report(&ran);
    assert_eq!(
        (&report["verdict"], report["parts"].as_array().unwrap().len()),
        (&Value::from("complete"), 3),
        "{report}"
    );
    assert_eq!(database.sql("SELECT COUNT(*), MIN(n), MAX(n) FROM shop.orders"), "500\t1\t500");
    assert_eq!(database.checksums(), checksums);
    assert_same(&picture(&world.path("tree")), &pictures, "the pictures");
    assert_eq!(
        cluster.kubectl(&["-n", "shop", "get", "configmap", "settings", "-o", "jsonpath={.data.colour}"]),
        "blue"
    );
    assert_eq!(
        cluster.kubectl(&["-n", "shop", "get", "secret", "password", "-o", "jsonpath={.data.word}"]),
        "aHVudGVyMg=="
    );
    // The fence is open again, and what was moved aside is still there.
    assert_eq!(
        cluster.kubectl(&["-n", "writers", "get", "cronjob", "import", "-o", "jsonpath={.spec.suspend}"]),
        "false"
    );
    let to_do =
        report["toDo"].as_array().unwrap().iter().find_map(|line| line.as_str()?.split(" is in ").nth(1)).unwrap();
    assert_eq!(
        fs::read_to_string(Path::new(to_do.split(": remove").next().unwrap()).join("4/stray")).unwrap(),
        "nobody's"
    );
    // What was overwritten was captured before, and is nobody's newest state.
    let before = world.as_owner(&["export", "before-database@latest", "-o", "before.sql"]).expect(0);
    assert!(!fs::read_to_string(world.path("before.sql")).unwrap().contains("CREATE TABLE `goods`"), "{}", before.out);
    for (suffix, text) in
        [("md", "| database | database@1 |"), ("html", "<td>database@1</td>"), ("json", "\"complete\"")]
    {
        let file = world.path(format!("reports/{}.{suffix}", report["id"].as_str().unwrap()));
        assert!(fs::read_to_string(&file).unwrap().contains(text), "{}", file.display());
    }
    // The three were captured by one run, and can be asked for by its name.
    let run = backed_up["run"].as_str().unwrap();
    let set = world.as_owner(&["restore", "app", "shop", "--run", run, "--dry-run", "--json"]).expect(0).json();
    assert_eq!(set["plan"]["run"], run);
    assert!(set["plan"]["predictedMs"].as_u64().unwrap() > 0, "{set}");
    world
        .as_owner(&["restore", "app", "shop", "--run", "0000", "--dry-run"])
        .expect(1)
        .says("the run 0000 left no snapshot");
    world.as_owner(&["restore", "app", "shop", "--at", "2020-01-01T00:00:00Z"]).expect(1).says("no recovery point");
    world.as_owner(&["restore", "service", "shop"]).expect(2).says("level app");
}

/// A plan of cheap steps, whose process is killed again and again.
struct Cheap {
    world: World,
    database: Mariadb,
    checksums: String,
    pictures: Picture,
}

impl Cheap {
    fn new() -> Self {
        let (world, database) = (World::local(), Mariadb::start(&[]));
        database.fill();
        for number in 1..=50 {
            world.file(&format!("{}/{number}", number % 3), format!("picture {number}"));
        }
        let (tree, closed) = (world.path("tree"), world.path("closed"));
        let documents = [
            source("pictures", &format!("files: {{path: {}}}", tree.display())),
            mariadb(&world, "database", database.port),
            plan(
                "shop",
                "app",
                &format!(
                    "  - {{name: hold, fence: {{close: {{command: [touch, {closed}]}}, open: {{command: [rm, '-f', {closed}]}}}}}}\n  \
                     - {{name: pictures, restore: {{source: pictures, to: {tree}, options: {{existing: replace}}}}}}\n  \
                     - {{name: database, restore: {{source: database, options: {{existing: replace}}}}}}\n  \
                     - {{name: dump, after: [hold], restore: {{source: database, export: {dump}}}}}\n  \
                     - {{name: go, after: [database, dump], unfence: hold}}\n  \
                     - {{name: rows, probe: {{sql: {{source: database, query: 'SELECT COUNT(*) FROM shop.goods', equals: '20000'}}}}}}\n",
                    tree = tree.display(),
                    closed = closed.display(),
                    dump = world.path("dump.sql").display()
                ),
            ),
        ];
        world.document("app.yaml", &documents.concat());
        world.as_writer(&["backup", "--all"]).expect(0);
        let (checksums, pictures) = (database.checksums(), picture(&tree));
        Self { world, database, checksums, pictures }
    }

    fn damage(&self) {
        self.database.sql("DROP DATABASE IF EXISTS shop; CREATE DATABASE shop; CREATE TABLE shop.rubbish (n INT)");
        self.world.file("1/1", "rubbish");
        let _ = fs::remove_dir_all(self.world.path("tree/2"));
        let _ = fs::remove_file(self.world.path("dump.sql"));
    }

    #[track_caller]
    fn assert_well(&self) {
        assert_eq!(self.database.checksums(), self.checksums);
        assert_eq!(
            self.database.sql("SELECT COUNT(*) FROM information_schema.tables WHERE table_name = 'rubbish'"),
            "0"
        );
        assert_same(&picture(&self.world.path("tree")), &self.pictures, "the pictures");
        assert!(!self.world.path("closed").exists(), "the fence is still closed");
        assert!(fs::read_to_string(self.world.path("dump.sql")).unwrap().contains("ware"));
    }

    /// The journal of the newest restore: its id, and how many records it has.
    fn journal(&self, known: &[String]) -> Option<(String, usize)> {
        let entries = fs::read_dir(self.world.path("state/lifeboat/restores")).ok()?;
        let name = |entry: std::io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
        let id = entries.filter_map(name).filter_map(|name| Some(name.strip_suffix(".jsonl")?.to_owned()));
        let id = id.into_iter().find(|id| !known.contains(id))?;
        let text = fs::read_to_string(self.world.path(format!("state/lifeboat/restores/{id}.jsonl"))).ok()?;
        Some((id, text.lines().count()))
    }
}

#[test]
fn a_restore_that_is_killed_goes_on_anywhere() {
    let cheap = Cheap::new();
    let world = &cheap.world;
    cheap.damage();
    let ids = ids(world, "app", "shop");
    let restore = [&["--identity", "kit.txt", "restore", "app", "shop"], &named(&ids)[..]].concat();
    let mut known = Vec::new();
    let mut cut_off = 0;
    for records in 1.. {
        cheap.damage();
        let mut child = world.program(&restore).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_mins(1);
        let mut id = None;
        let mut ended = None;
        while ended.is_none() && Instant::now() < deadline {
            ended = child.try_wait().unwrap();
            if let Some((found, count)) = cheap.journal(&known) {
                id = Some(found);
                if count >= records {
                    break;
                }
            }
        }
        kill(child);
        let id = id.expect("a restore has a journal");
        known.push(id.clone());
        if ended.is_some() {
            cheap.assert_well();
            break;
        }
        cut_off += 1;
        // Every other time on another machine, which knows the repository alone.
        if records % 2 == 0 {
            fs::rename(world.path("state"), world.path(format!("state-{records}"))).unwrap();
            known.clear();
        }
        let listed = world.as_owner(&["restore", "list"]).expect(0);
        assert!(listed.out.contains(&id), "{}", listed.out);
        // The other machine cannot know that the first one is gone.
        let resume = ["restore", "app", "--resume", &id, "--dead", &id];
        let resumed = world.as_owner(&resume);
        if resumed.err.contains("is complete") {
            // Killed between its last record and its end.
            cheap.assert_well();
            break;
        }
        if resumed.code == 2 {
            // Killed before it was written down what was confirmed; or it was on another machine, whose paths are others.
            assert!(records == 1 || records % 2 == 0, "{}", resumed.err);
            world.as_owner(&[&resume[..], &named(&ids)].concat()).expect(0);
        } else {
            resumed.expect(0);
        }
        known.push(id.clone());
        cheap.assert_well();
        world.as_owner(&["restore", "app", "--resume", &id]).expect(2).says("is complete");
    }
    assert!(cut_off >= 8, "only {cut_off} restores were killed");
}

#[test]
fn a_restore_that_fails_says_where_it_goes_on_or_is_given_up() {
    let cheap = Cheap::new();
    let world = &cheap.world;
    let text = fs::read_to_string(world.path("config/app.yaml")).unwrap();
    let steps = "  - {name: person, ask: 'Is the load balancer drained?'}\n  - {name: last, timeout: 2s, probe: {command: [test, -e, proof]}}\n";
    world.document("app.yaml", &(text + steps));
    cheap.damage();
    let ids = ids(world, "app", "shop");
    let restore = [&["restore", "app", "shop"], &named(&ids)[..]].concat();
    // Nobody is there to answer.
    let ran = world.as_owner(&restore).expect(1);
    let hint = ran.says("person").says("--answer person").err.split("--resume ").last().unwrap().to_owned();
    let id = hint.split_whitespace().next().unwrap().trim_end_matches(['`', ';']).to_owned();
    cheap.assert_well();
    world.as_owner(&["restore", "app", "--resume", &id, "--answer", "person"]).expect(1).says("not within its timeout");
    fs::write(world.path("proof"), "").unwrap();
    world.as_owner(&["restore", "cluster", "--resume", &id]).expect(2).says("level app");
    world.as_owner(&["restore", "app", "--resume", &id]).expect(0);

    // The database goes away in the middle: nothing is let go, until somebody gives up.
    cheap.damage();
    let text = fs::read_to_string(world.path("config/app.yaml")).unwrap();
    world.document("app.yaml", &text.replace("user: backup", "user: nobody"));
    let refused = world.as_owner(&["restore", "app", "shop", "--dry-run"]).expect(0);
    assert!(refused.out.contains("not known yet") && refused.out.contains("denied"), "{}", refused.out);
    let tree = world.path("tree").display().to_string();
    let ran = world.as_owner(&["restore", "app", "shop", "--yes", "--target-id", &tree]).expect(1);
    ran.says("database").says("--abort");
    assert!(world.path("closed").exists());
    let id = ran.err.split("--abort ").last().unwrap().split_whitespace().next().unwrap().to_owned();
    world.as_owner(&["restore", "app", "--abort", &id]).expect(0);
    assert!(!world.path("closed").exists());
    world.as_owner(&["restore", "app", "--resume", &id]).expect(2).says("was given up");

    // A target that holds something is not touched unless the plan says so.
    world.document(
        "app.yaml",
        &text.replace(&format!("to: {tree}, options: {{existing: replace}}"), &format!("to: {tree}")),
    );
    let _ = fs::remove_file(world.path("dump.sql"));
    let ran = world.as_owner(&[&["restore", "app", "shop"], &named(&ids)[..]].concat()).expect(2);
    ran.says("pictures would not be done").says("moved aside");
    world.document("app.yaml", &text);
    world
        .as_owner(&["restore", "app", "shop", "--yes", "--target-id", "10.0.0.1:3306"])
        .expect(2)
        .says("no step concerns");
}

/// Nothing is begun with a snapshot of which a part is gone, and nothing is put in the place of data that do not read.
#[test]
fn a_snapshot_that_is_not_whole_replaces_nothing() {
    let (world, database) = (World::local(), Mariadb::start(&[]));
    database.fill();
    let data = world.path("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("page"), "what is there").unwrap();
    let said = "command: {argv: [sh, '-c', 'seq 200000; echo one'], output: numbers}";
    let documents = [
        source("numbers", said),
        mariadb(&world, "database", database.port),
        plan(
            "whole",
            "app",
            &format!(
                "  - {{name: numbers, restore: {{source: numbers, to: {}, options: {{existing: replace}}}}}}\n  \
             - {{name: database, restore: {{source: database, options: {{existing: replace}}}}}}\n  \
             - {{name: well, probe: {{source: database}}}}\n",
                data.display()
            ),
        ),
    ];
    world.document("whole.yaml", &documents.concat());
    world.as_writer(&["backup", "--all"]).expect(0);
    let ids = ids(&world, "app", "whole");
    let restore = [&["restore", "app", "whole"], &named(&ids)[..]].concat();
    // Rot, which only reading shows.
    for pack in world.objects("numbers/packs") {
        world.tamper(&pack, |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle..middle + 64].fill(0);
        });
    }
    world.as_owner(&restore).expect(1).says("numbers");
    assert_eq!(fs::read_to_string(data.join("page")).unwrap(), "what is there");
    assert!(!world.path("data/numbers").exists());
    // A part that is gone is seen before anything is begun.
    let checksums = database.checksums();
    for pack in world.objects("database/packs") {
        fs::remove_file(world.path("repository").join(&pack)).unwrap();
    }
    world.as_owner(&restore).expect(1).says("database@1 lacks database/packs/").says("--repair-from");
    world.as_owner(&["restore", "app", "whole", "--dry-run"]).expect(1).says("lacks");
    assert_eq!(database.checksums(), checksums);
}

#[test]
fn a_lost_vault_comes_back_by_one_command() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (vault, fresh, world) =
        runtime.block_on(async { (Vault::start().await, Vault::start().await, World::local()) });
    runtime.block_on(vault.write("canary", "sings"));
    let file = |name: &str, text: &str| {
        fs::write(world.path(name), text).unwrap();
        world.path(name).display().to_string()
    };
    let (token, fresh_token) = (file("token", &vault.token), file("fresh", &fresh.token));
    let (one, two) = (file("key-1", &vault.keys[0]), file("key-2", &vault.keys[1]));
    let documents = [
        source(
            "vault",
            &format!(
                "vault: {{address: 'http://127.0.0.1:{}', auth: {{token: {{file: {token}}}}}}}, heldElsewhere: [here]",
                vault.server.port
            ),
        ),
        source(
            "fresh",
            &format!(
                "vault: {{address: 'http://127.0.0.1:{}', auth: {{token: {{file: {fresh_token}}}}}, restore: {{unsealKeys: \
                 [{{file: {one}}}, {{file: {two}}}], token: {{file: {token}}}}}}}, heldElsewhere: [here]",
                fresh.server.port
            ),
        ),
        plan(
            "secrets",
            "service",
            "  - {name: vault, restore: {source: vault, into: fresh, options: {foreign: true}}}\n  \
             - {name: canary, probe: {vault: {source: fresh, path: secret/data/canary}}}\n",
        ),
    ];
    world.document("vault.yaml", &documents.concat());
    world.as_writer(&["backup", "vault"]).expect(0);
    runtime.block_on(vault.write("canary", "is silent"));
    drop(vault.server);
    let ids = ids(&world, "service", "secrets");
    let ran = world.as_owner(&[&["--json", "restore", "service", "secrets"], &named(&ids)[..]].concat()).expect(0);
    assert_eq!(report(&ran)["verdict"], "complete");
    let restored = Vault { server: fresh.server, token: vault.token, keys: Vec::new() };
    assert_eq!(runtime.block_on(restored.read("canary")).as_deref(), Some("sings"));
}

#[test]
fn a_lost_etcd_comes_back_by_one_command() {
    let world = World::local();
    let server = etcd_on(&world.path("etcd"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let put = |url: String, numbers: std::ops::Range<u32>| {
        runtime.block_on(async {
            let mut client = etcd_client::Client::connect([url], None).await.unwrap();
            for number in numbers {
                client.put(format!("n/{number:04}"), "x", None).await.unwrap();
            }
        });
    };
    put(server.url(), 0..300);
    let utl = tool("etcdutl");
    let new = world.path("new").display().to_string();
    let snapshot = world.path("state.snap").display().to_string();
    let documents = [
        source("state", &format!("etcd: {{endpoints: ['{}']}}, heldElsewhere: [here]", server.url())),
        plan(
            "platform",
            "cluster",
            &format!(
                "  - {{name: snapshot, restore: {{source: state, export: {snapshot}}}}}\n  \
                 - {{name: member, run: {{command: [{}, snapshot, restore, {snapshot}, --data-dir, {new}, --bump-revision, \
                 '1000000000', --mark-compacted]}}}}\n  \
                 - {{name: start, ask: 'Start etcd from {new}, then confirm.'}}\n  \
                 - {{name: answers, probe: {{etcd: {{source: state, atLeast: 1000000000}}}}}}\n",
                utl.display()
            ),
        ),
    ];
    world.document("etcd.yaml", &documents.concat());
    world.as_writer(&["backup", "state"]).expect(0);
    put(server.url(), 300..320);
    drop(server);
    fs::remove_dir_all(world.path("etcd")).unwrap();
    let ran = world.as_owner(&["restore", "cluster", "platform"]).expect(1);
    let id = ran
        .says("a person must confirm")
        .err
        .split("--resume ")
        .last()
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .to_owned();
    let server = etcd_on(Path::new(&new));
    let text = fs::read_to_string(world.path("config/etcd.yaml")).unwrap();
    let old = text.split("endpoints: ['").nth(1).unwrap().split('\'').next().unwrap().to_owned();
    world.document("etcd.yaml", &text.replace(&old, &server.url()));
    world.as_owner(&["restore", "cluster", "--resume", &id, "--answer", "start"]).expect(0);
    let found = runtime.block_on(async {
        let mut client = etcd_client::Client::connect([server.url()], None).await.unwrap();
        let all = etcd_client::GetOptions::new().with_prefix().with_count_only();
        let answer = client.get("n/", Some(all)).await.unwrap();
        (answer.count(), answer.header().unwrap().revision())
    });
    assert_eq!(found.0, 300);
    assert!(found.1 > 1_000_000_000, "watchers of the old revisions must notice");
    assert!(command("test").arg("-s").arg(&snapshot).status().unwrap().success());
}

#[test]
fn a_lost_region_comes_back_from_the_replica() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (here, there) = (minio(), minio());
    let settings = runtime.block_on(bucket(&here, "region-a", Bucket::Locked));
    let far = runtime.block_on(bucket(&there, "region-b", Bucket::Versioned));
    let world = World::bucket(&settings, 1);
    let (a, b) = (Mariadb::start(&[]), Mariadb::start(&[]));
    a.fill();
    b.sql(&format!("CREATE USER backup@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'"));
    b.sql("GRANT ALL ON *.* TO backup@'127.0.0.1' WITH GRANT OPTION");
    for number in 1..=30 {
        world.file(&format!("{number}"), format!("picture {number}"));
    }
    let to = world.path("region-b/pictures");
    let steps = format!(
        "  - {{name: database, restore: {{source: database, into: database-b, options: {{existing: replace}}}}}}\n  \
         - {{name: pictures, after: [], restore: {{source: pictures, to: {}}}}}\n  \
         - {{name: rows, after: [database, pictures], probe: {{sql: {{source: database-b, query: 'SELECT COUNT(*) FROM \
         shop.goods', equals: '20000'}}}}}}\n  \
         - {{name: traffic, run: {{command: [touch, {}]}}}}\n",
        to.display(),
        world.path("switched").display()
    );
    world.document("replica.yaml", &World::bucket_document("replica", &far, 1));
    let documents = [
        source("pictures", &format!("files: {{path: {}}}", world.path("tree").display())),
        mariadb(&world, "database", a.port),
        mariadb(&world, "database-b", b.port),
        plan("region-b", "region", &steps),
    ];
    world.document("region.yaml", &documents.concat());
    let backup = ["-r", "main", "backup", "database", "pictures", "--json"];
    world.as_writer(&backup).expect(0);
    let (checksums, pictures) = (a.checksums(), picture(&world.path("tree")));
    world.run(&["-r", "main", "replicate", "--to", "replica"]).expect(0);
    // Not replicated any more: this is what the region takes with it.
    world.file("late", "lost");
    world.as_writer(&backup).expect(0);
    drop((here, a));
    fs::remove_dir_all(world.path("tree")).unwrap();

    world.as_owner(&["-r", "main", "restore", "region", "region-b", "--dry-run"]).expect(1);
    let seen =
        world.as_owner(&["-r", "replica", "restore", "region", "region-b", "--dry-run", "--json"]).expect(0).json();
    let chosen: Vec<_> =
        seen["plan"]["tasks"].as_array().unwrap().iter().filter_map(|t| t["choice"]["sequence"].as_u64()).collect();
    assert_eq!(chosen, [1, 1]);
    let ids: Vec<String> =
        seen["mustBeConfirmed"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().into()).collect();
    let restore = [&["-r", "replica", "--json", "restore", "region", "region-b"], &named(&ids)[..]].concat();
    let ran = world.as_owner(&restore).expect(0);
    let report = report(&ran);
    assert_eq!((&report["verdict"], &report["level"]), (&Value::from("complete"), &Value::from("region")));
    assert_eq!(b.checksums(), checksums);
    assert_same(&picture(&to), &pictures, "the pictures");
    assert!(world.path("switched").exists());
    // The replica is the repository from now on: its journals and its backups go on.
    let listed = world.as_owner(&["-r", "replica", "restore", "list"]).expect(0);
    assert!(listed.out.contains("complete"), "{}", listed.out);
    world.as_writer(&["-r", "replica", "backup", "database-b"]).expect(0);
}

/// What a step had begun to restore where nothing was is its own, and keeps nobody from going on.
#[test]
fn a_dump_that_was_killed_half_way_goes_on() {
    let (a, b, world) = (Mariadb::start(&[]), Mariadb::start(&[]), World::local());
    a.fill();
    a.sql("USE shop; CREATE TABLE last AS SELECT seq AS n, RANDOM_BYTES(1000) AS raw FROM seq_1_to_3000");
    b.sql(&format!("CREATE USER backup@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'"));
    b.sql("GRANT ALL ON *.* TO backup@'127.0.0.1' WITH GRANT OPTION");
    let documents = [
        mariadb(&world, "database", a.port),
        mariadb(&world, "database-b", b.port),
        plan("move", "app", "  - {name: database, restore: {source: database, into: database-b}}\n"),
    ];
    world.document("plan.yaml", &documents.concat());
    world.as_writer(&["backup", "database"]).expect(0);
    let ids = ids(&world, "app", "move");
    let fast = World::directory(&world.path("repository"));
    world.document("repository.yaml", &(fast.clone() + "  limits: {download: 100KiB}\n"));
    let arguments = [&["--identity", "kit.txt", "restore", "app", "move"], &named(&ids)[..]].concat();
    let child = world.program(&arguments).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_mins(1);
    while b.try_sql("SELECT COUNT(*) > 0 FROM shop.goods").ok().as_deref() != Some("1") {
        assert!(Instant::now() < deadline, "nothing is being restored");
        std::thread::sleep(Duration::from_millis(20));
    }
    kill(child);
    world.document("repository.yaml", &fast);
    let last = || b.try_sql("SELECT COUNT(*) FROM shop.last").ok();
    assert_ne!(last().as_deref(), Some("3000"), "it was not half way");
    let listed = world.as_owner(&["restore", "list", "--json"]).expect(0).json();
    let id = listed["restores"][0]["id"].as_str().unwrap();
    world.as_owner(&["restore", "app", "--resume", id]).expect(0);
    assert_eq!((b.checksums(), last().as_deref()), (a.checksums(), Some("3000")));
    // It is somebody's now.
    world.as_owner(&[&["restore", "app", "move"], &named(&ids)[..]].concat()).expect(1).says("a dump can only replace");
}
