//! Physical backups of real MariaDB servers, through the program and its repository, from which others start.

use crate::support;
use crate::support::collect::{Bytes, Collect, context, runtime};
use crate::support::command;
use crate::support::etcd;
use crate::support::mariadb::{PASSWORD, Server};
use crate::support::proxy;
use crate::support::world::{Ran, World, made};
use lifeboat::source::volume::stream::{Refusal, Report, Sender};
use lifeboat::source::{Spec, preparation};
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

const BACKUP: &[&str] = &["--writer-key", "writer.key", "backup", "shop", "--json"];
const RIGHTS: &str = "RELOAD, PROCESS, LOCK TABLES, BINLOG MONITOR";

fn account(server: &Server, name: &str, rights: &str) {
    server.sql(&format!(
        "CREATE USER {name}@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'; GRANT {rights} ON *.* TO {name}@'127.0.0.1'"
    ));
}

/// `more` are further fields.
fn document(world: &World, port: u16, user: &str, more: &str) {
    fs::write(world.path("password"), PASSWORD).unwrap();
    let text = format!(
        "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: shop}}\nspec:\n  mariadbBackup:\n    \
         host: 127.0.0.1\n    port: {port}\n    user: {user}\n    password: {{file: {}}}\n{more}",
        world.path("password").display()
    );
    world.document("source.yaml", &text);
}

/// Some tens of megabytes, 60 rows to a page.
fn fill_much(server: &Server) {
    server.sql(
        "USE shop; CREATE TABLE much (id INT PRIMARY KEY, n INT DEFAULT 0, filler VARBINARY(200)); \
         INSERT INTO much (id, filler) SELECT seq, CONCAT(REPEAT(UNHEX(SHA1(seq)), 10)) FROM seq_1_to_150000",
    );
}

const MUCH: &str = "CHECKSUM TABLE shop.goods, shop.seen, shop.much";

/// Restores a snapshot and starts a server from it, which finds everything sound.
fn restored(world: &World, reference: &str, settings: &[&str]) -> Server {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let done = world.as_owner(&["restore", "snapshot", reference, "--to", data.to_str().unwrap()]).expect(0);
    assert!(done.out.contains("mariadb-backup has applied InnoDB's log"), "{}", done.out);
    let server = Server::open(home, settings);
    let mut check = command("mariadb-check");
    check.args(["--no-defaults", "--user=root", "--all-databases", "--extended"]);
    let checked = check.arg(format!("--socket={}", server.home.path().join("socket").display())).output().unwrap();
    let said = String::from_utf8(checked.stdout).unwrap();
    assert!(checked.status.success() && said.lines().count() > 30, "{said}");
    // A MyISAM table counts who has it open in its file, and is sound all the same.
    let open = "shop.old\nwarning  : 1 client is using or hasn't closed the table properly\n";
    assert!(said.replace(open, "").lines().all(|line| line.trim_end().ends_with("OK")), "{said}");
    server
}

fn facts(ran: &Ran) -> serde_json::Value {
    ran.json()["backups"][0]["facts"].clone()
}

#[test]
fn a_backup_comes_back_to_life_and_costs_what_changed() {
    let server = Server::start(&["--log-bin=binlog", "--server-id=1"]);
    server.fill();
    fill_much(&server);
    server.sql("CREATE DATABASE `od/d ☂`; CREATE TABLE `od/d ☂`.`t/t` (i INT); INSERT INTO `od/d ☂`.`t/t` VALUES (42)");
    account(&server, "keeper", RIGHTS);
    let world = World::local();
    document(&world, server.port, "keeper", "");
    let gtid = server.sql("SELECT @@gtid_current_pos");
    let first = world.run(BACKUP).expect(0);
    let told = facts(&first);
    // Three tables and a view of the shop, and the odd one.
    assert_eq!(told["objects"], 5);
    assert_eq!(told["details"]["page_size"], "16384");
    assert!(told["details"]["binlog_position"].as_str().unwrap().ends_with(&format!("'{gtid}'")), "{told}");
    let (checksums, first) = (server.sql(MUCH), made(&first));

    let second = world.run(BACKUP).expect(0);
    let position = |told: &serde_json::Value| told["position"].as_u64().unwrap();
    assert_eq!(facts(&second)["system"], told["system"]);
    server.sql("UPDATE shop.much SET n = 1 WHERE id BETWEEN 70001 AND 71500");
    let third = world.run(BACKUP).expect(0);
    let later = server.sql(MUCH);
    assert_ne!(later, checksums);
    assert!(position(&facts(&third)) > position(&told), "{told}");
    let total = third.json()["backups"][0]["bytes"].as_u64().unwrap();
    server.sql("UPDATE shop.much SET n = 2 WHERE id % 100 = 7");
    let fourth = made(&world.run(BACKUP).expect(0));
    let (second, third) = (made(&second), made(&third));
    let costs = [("all", &first), ("again", &second), ("1 % of the rows", &third), ("1 % everywhere", &fourth)];
    for (what, made) in costs {
        println!("{what}: {total} bytes, {} new, {} stored", made.new_bytes, made.stored_bytes);
    }
    assert!(total > 50 << 20, "{total} bytes");
    assert!(third.new_bytes < total / 6, "{} new bytes of {total}", third.new_bytes);
    drop(server);

    let fresh = restored(&world, "shop@1", &["--log-bin=binlog"]);
    assert_eq!(fresh.sql(MUCH), checksums);
    assert_eq!(fresh.sql("SELECT name FROM shop.few WHERE id = 7"), "ware ☂ 7");
    assert_eq!(fresh.sql("SELECT shop.twice(21)"), "42");
    assert_eq!(fresh.sql("SELECT i FROM `od/d ☂`.`t/t`"), "42");
    fresh.sql("INSERT INTO shop.goods (name) VALUES ('new')");
    assert_eq!(restored(&world, "shop@3", &[]).sql(MUCH), later);

    // It is the same system as it was three snapshots ago, and the guard says so; another is another.
    document(&world, fresh.port, "keeper", "");
    let older = world.run(BACKUP).expect(3).json();
    let reasons = older["backups"][0]["reasons"].as_array().unwrap();
    assert!(reasons.len() == 1 && reasons[0].as_str().unwrap().contains("went back in time"), "{older}");
    let other = Server::start(&[]);
    other.fill();
    account(&other, "keeper", RIGHTS);
    document(&world, other.port, "keeper", "");
    let other = world.run(BACKUP).expect(3).json();
    assert_eq!(other["backups"][0]["state"], "quarantined", "{other}");
    world.assert_sound();
}

/// Transactions that keep two tables equal, until it is stopped. Gives the number and the moment of each that was
/// acknowledged.
#[expect(clippy::disallowed_methods, reason = "compared with the server's clock")]
fn write(server: &Server, stop: &AtomicBool) -> Vec<(u64, i64)> {
    let mut done = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let number = done.len() as u64 + 1;
        server.sql(&format!(
            "START TRANSACTION; INSERT INTO shop.ticks (id) VALUES ({number}); \
             UPDATE shop.total SET n = n + 1; COMMIT; INSERT INTO shop.old VALUES ({number})"
        ));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        done.push((number, i64::try_from(now).unwrap()));
    }
    done
}

#[test]
fn what_was_committed_before_the_recovery_point_is_there() {
    // Pages of another size, and the data directory under another name than the server's.
    let server = Server::start(&["--innodb-page-size=32k"]);
    server.fill();
    server.sql(
        "CREATE TABLE shop.ticks (id INT PRIMARY KEY); CREATE TABLE shop.total (n INT); INSERT INTO shop.total VALUES (0); \
         CREATE TABLE shop.old (id INT) ENGINE = MyISAM",
    );
    account(&server, "keeper", RIGHTS);
    let world = World::local();
    std::os::unix::fs::symlink(server.home.path().join("data"), world.path("mounted")).unwrap();
    let mounted = format!("    dataDirectory: {}\n", world.path("mounted").display());
    document(&world, server.port, "keeper", &mounted);
    let stop = AtomicBool::new(false);
    let (captured, acknowledged) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(&server, &stop));
        while server.sql("SELECT COUNT(*) FROM shop.ticks").parse::<u64>().unwrap() < 20 {
            std::thread::yield_now();
        }
        let captured = world.run(BACKUP);
        stop.store(true, Ordering::Relaxed);
        (captured, writer.join().unwrap())
    });
    let told = facts(&captured.expect(0));
    assert_eq!(told["details"]["page_size"], "32768");
    drop(server);
    let point = told["recovery_point_ms"].as_i64().unwrap();
    let certain = acknowledged.iter().filter(|(_, at)| *at < point).count();
    assert!(certain >= 20, "{certain}");
    let fresh = restored(&world, "shop@1", &["--innodb-page-size=32k"]);
    let number = |query: &str| fresh.sql(query).parse::<usize>().unwrap();
    let there = number("SELECT COUNT(*) FROM shop.ticks");
    assert!((certain..=acknowledged.len()).contains(&there), "{there} of {certain} to {}", acknowledged.len());
    assert_eq!(number("SELECT MAX(id) FROM shop.ticks"), there);
    assert_eq!(number("SELECT n FROM shop.total"), there);
    // What is not transactional is of the same moment.
    let old = number("SELECT COUNT(*) FROM shop.old");
    assert!(old == there || old + 1 == there, "{old} of {there}");
}

#[test]
fn a_server_that_dies_half_way_leaves_no_snapshot() {
    let world = World::local();
    // Bytes that the server answers: before anything is copied, and when all tables are.
    for limit in [10_000, 29_000] {
        let mut server = Server::start(&[]);
        server.fill();
        let port = server.port;
        let fall = move || server.kill();
        document(&world, proxy::all_interrupted(port, limit, fall), "backup", "");
        world.run(BACKUP).expect(1).says("mariadb-backup failed with exit status");
        let listed = world.as_writer(&["snapshots", "--json"]).expect(0).json();
        assert_eq!(listed["snapshots"].as_array().unwrap().len(), 0, "{listed}");
    }
}

#[test]
fn what_cannot_be_backed_up_is_said() {
    let server = Server::start(&[]);
    account(&server, "keeper", RIGHTS);
    account(&server, "poor", "PROCESS");
    let world = World::local();
    let fails = |text: &str| {
        let ran = world.run(BACKUP).expect(1);
        ran.says(text);
        assert!(!ran.err.contains(PASSWORD) && !ran.err.contains("incorrect-pony"), "{}", ran.err);
        assert!(!ran.err.contains("IDENTIFIED"), "{}", ran.err);
        assert_eq!(world.numbers("shop"), [0; 0]);
    };
    document(&world, server.port, "keeper", "");
    fails("holds nothing to capture");
    server.fill();
    document(&world, server.port, "poor", "");
    fails("the account poor lacks RELOAD, LOCK TABLES, BINLOG MONITOR on *.*");
    document(&world, server.port, "keeper", "    dataDirectory: /nowhere\n");
    fails("mariadb-backup reads the files themselves");
    document(&world, support::free_port(), "keeper", "");
    fails("Can't connect to server on '127.0.0.1'");
    document(&world, server.port, "keeper", "");
    fs::write(world.path("password"), "incorrect-pony").unwrap();
    fails("denied access");
    fs::write(world.path("password"), PASSWORD).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let path = elsewhere.path().display();
    server.sql(&format!("CREATE TABLE shop.far (i INT) DATA DIRECTORY = '{path}'"));
    fails("shop/far lies outside of the data directory");
    server.sql("DROP TABLE shop.far");
    let keys = world.path("keys");
    fs::write(&keys, format!("1;{}\n", "a7addd9adea9978f".repeat(4))).unwrap();
    let keys = format!("--file-key-management-filename={}", keys.display());
    let encrypted = Server::start(&["--plugin-load-add=file_key_management", &keys]);
    encrypted.fill();
    document(&world, encrypted.port, "backup", "");
    fails("the plugin file_key_management is loaded");
    document(&world, server.port, "keeper", "");
    made(&world.run(BACKUP).expect(0));
}

#[test]
fn it_is_taken_over_tls() {
    let world = World::local();
    etcd::certificates(world.home.path());
    let at = world.home.path().display();
    let [certificate, key] = ["cert=server.pem", "key=server.key"].map(|option| {
        let (name, file) = option.split_once('=').unwrap();
        format!("--ssl-{name}={at}/{file}")
    });
    let server = Server::start(&[&certificate, &key]);
    server.fill();
    account(&server, "keeper", RIGHTS);
    server.sql("ALTER USER keeper@'127.0.0.1' REQUIRE SSL");
    let over = |ca: &str, more: &str| {
        document(&world, server.port, "keeper", &format!("    tls: {{ca: {at}/{ca}.pem{more}}}\n"));
    };
    document(&world, server.port, "keeper", "");
    world.run(BACKUP).expect(1).says("denied access");
    over("other-ca", "");
    world.run(BACKUP).expect(1).says("certificate");
    over("ca", ", serverName: localhost");
    world.run(BACKUP).expect(2).says("mariadbBackup.tls.serverName");
    assert_eq!(world.numbers("shop"), [0; 0]);
    over("ca", "");
    made(&world.run(BACKUP).expect(0));
    let checksum = "CHECKSUM TABLE shop.goods, shop.seen";
    assert_eq!(restored(&world, "shop@latest", &[]).sql(checksum), server.sql(checksum));
}

#[test]
fn only_the_same_release_prepares() {
    let runtime = runtime();
    let check = |version: &str| {
        preparation("mariadbBackup").unwrap().check(&context(&runtime), version).map_err(|error| error.to_string())
    };
    let own = Server::start(&[]).sql("SELECT @@version");
    check(&own).unwrap();
    for other in ["10.6.18-MariaDB", "11.4.2-MariaDB"] {
        let text = check(other).unwrap_err();
        let release = other.rsplit_once('.').unwrap().0;
        assert!(text.contains(&format!("of MariaDB {other}")), "{text}");
        assert!(text.contains(&format!("install that of {release}")), "{text}");
    }
}

#[test]
fn a_plan_prepares_too() {
    let server = Server::start(&[]);
    server.fill();
    let checksums = server.checksums();
    let world = World::local();
    document(&world, server.port, "backup", "");
    made(&world.run(BACKUP).expect(0));
    drop(server);
    let home = TempDir::new().unwrap();
    let data = home.path().join("data");
    let plan = format!(
        "apiVersion: lifeboat.dev/v1\nkind: RestorePlan\nmetadata: {{name: shop}}\nspec:\n  level: app\n  \
         steps:\n    - name: database\n      restore: {{source: shop, to: {}}}\n",
        data.display()
    );
    world.document("plan.yaml", &plan);
    world.as_owner(&["restore", "app", "shop"]).expect(0);
    let fresh = Server::open(home, &[]);
    assert_eq!(fresh.checksums(), checksums);
    assert!(!Path::new(&data).join(".lifeboat").exists());
}

/// What the pod of a claim is sent.
fn sent(directory: &Path) -> Vec<u8> {
    let mut files = Collect::default();
    let spec = lifeboat::source::files::Spec {
        path: directory.to_owned(),
        include: Vec::new(),
        exclude: Vec::new(),
        one_file_system: false,
    };
    Spec::Files(spec).open().unwrap().capture(&context(&runtime()), &mut files).unwrap();
    let mut out = Vec::new();
    let mut sender = Sender::new(&mut out).unwrap();
    for (mut entry, content) in files.entries {
        entry.path = if entry.path == b"." { b"files".to_vec() } else { [b"files/", &entry.path[..]].concat() };
        sender.send(&entry, &Bytes(&content)).unwrap();
    }
    sender.end().unwrap();
    out
}

#[test]
fn it_is_prepared_in_the_pod_of_a_claim() {
    let server = Server::start(&[]);
    server.fill();
    let (checksums, version) = (server.checksums(), server.sql("SELECT @@version"));
    let world = World::local();
    document(&world, server.port, "backup", "");
    made(&world.run(BACKUP).expect(0));
    drop(server);
    // As it was taken.
    world.as_owner(&["export", "shop", "-o", "backup.tar"]).expect(0);
    fs::create_dir(world.path("taken")).unwrap();
    let untar =
        command("tar").args(["-xf", "backup.tar", "-C", "taken"]).current_dir(world.home.path()).output().unwrap();
    assert!(untar.status.success(), "{}", String::from_utf8_lossy(&untar.stderr));
    let bytes = sent(&world.path("taken"));
    let home = TempDir::new().unwrap();
    let volume = home.path().join("files");
    fs::create_dir_all(volume.join("lost+found")).unwrap();
    let receive = |version: &str| {
        let root = home.path().to_str().unwrap();
        let mut program = command(env!("CARGO_BIN_EXE_lifeboat"));
        program.args(["receive", root, "--prepare=mariadbBackup", "--version-of", version]);
        let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(&bytes); // it may not read
        let done = child.wait_with_output().unwrap();
        assert!(done.status.success());
        serde_json::from_slice::<Report>(&done.stdout).unwrap()
    };
    let refused = receive("11.4.2-MariaDB").refused;
    assert!(matches!(&refused, Some(Refusal::Unprepared(why)) if why.contains("install that of 11.4")), "{refused:?}");
    assert_eq!(fs::read_dir(&volume).unwrap().count(), 1);
    let report = receive(&version);
    assert_eq!((report.refused, report.problems), (None, Vec::new()));
    assert!(report.prepared.unwrap().contains("has applied InnoDB's log"));
    fs::rename(&volume, home.path().join("data")).unwrap();
    assert_eq!(Server::open(home, &[]).checksums(), checksums);
}
