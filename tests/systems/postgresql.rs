//! Capture of real PostgreSQL clusters, through the program and its repository.

use crate::support::collect::{context, runtime};
use crate::support::etcd;
use crate::support::free_port;
use crate::support::output;
use crate::support::postgresql;
use crate::support::postgresql::{Cluster, give};
use crate::support::proxy::interrupted;
use crate::support::world::{World, made};
use lifeboat::secret::SecretRef;
use lifeboat::source::connection::Tls;
use lifeboat::source::postgresql::Spec as Postgresql;
use lifeboat::source::{SourceError, Spec};
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

const RULES: &str = "host replication all 127.0.0.1/32 scram-sha-256";
const PASSWORD: &str = "correct-horse-battery";

/// A role that may take base backups.
fn add_role(cluster: &Cluster) {
    cluster.sql(&format!("CREATE ROLE backup LOGIN REPLICATION PASSWORD '{PASSWORD}'"));
}

fn document(world: &World, port: u16) {
    fs::write(world.path("password"), PASSWORD).unwrap();
    let text = format!(
        "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: db}}\nspec:\n  postgresql:\n    \
         host: 127.0.0.1\n    port: {port}\n    user: backup\n    password: {{file: {}}}\n",
        world.path("password").display()
    );
    world.document("source.yaml", &text);
}

const BACKUP: &[&str] = &["--writer-key", "writer.key", "backup", "db", "--json"];

/// A program of PostgreSQL that runs beside the test.
struct Load(Child);

impl Load {
    fn start(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What transactions of pgbench keep equal.
const BALANCES: &str = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(tbalance) FROM pgbench_tellers) \
     AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(bbalance) FROM pgbench_branches) \
     AND (SELECT coalesce(sum(delta), 0) FROM pgbench_history) = (SELECT sum(bbalance) FROM pgbench_branches)";

fn examine(cluster: &Cluster) {
    output(cluster.client("pg_amcheck").args(["--all", "--heapallindexed", "--install-missing"]));
    output(cluster.client("pg_dumpall").args(["--no-sync", "-f", "/dev/null"]));
    assert_eq!(cluster.sql(BALANCES), "t");
}

fn number(cluster: &Cluster, query: &str) -> i64 {
    cluster.sql(query).parse().unwrap()
}

#[test]
fn a_backup_under_load_comes_back_to_life() {
    let mut cluster = Cluster::new(RULES, &["max_wal_size=4GB"]);
    add_role(&cluster);
    output(cluster.client("pgbench").args(["-i", "-q", "-s", "12", "postgres"]));
    let space = cluster.directory("space");
    cluster.sql(&format!("CREATE TABLESPACE elsewhere LOCATION '{}'", space.display()));
    cluster.sql("CREATE TABLE far TABLESPACE elsewhere AS SELECT generate_series(1, 10000) AS n");
    cluster.sql("CREATE TABLE numbers (n bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp())");
    let script = cluster.home.path().join("writer.sql");
    fs::write(&script, "INSERT INTO numbers DEFAULT VALUES;\n").unwrap();
    let world = World::local();
    document(&world, cluster.port);

    let writer = Load::start(cluster.client("pgbench").args(["-n", "-T", "1000", "-f"]).arg(&script).arg("postgres"));
    let traffic = Load::start(cluster.client("pgbench").args(["-n", "-T", "1000", "-R", "300", "postgres"]));
    while number(&cluster, "SELECT count(*) FROM numbers") < 100 {
        std::thread::yield_now();
    }
    let committed = number(&cluster, "SELECT max(n) FROM numbers");
    let first = world.run(BACKUP).expect(0);
    let facts = first.json()["backups"][0]["facts"].clone();
    assert_eq!(made(&first).number, 1);
    drop((writer, traffic));
    let system = cluster.sql("SELECT system_identifier FROM pg_control_system()");
    assert_eq!(facts["system"], system.as_str());
    let end: u64 = facts["position"].as_u64().unwrap();
    assert_eq!(
        cluster.sql(&format!("SELECT '{}'::pg_lsn - '0/0' = {end}", facts["details"]["end_lsn"].as_str().unwrap())),
        "t"
    );
    // pgbench's 4 tables and 3 keys, far, numbers, its key and its sequence.
    assert_eq!(facts["objects"], 11);
    // One writer: whatever has a successor that began before the recovery point was committed before it.
    let point = facts["recovery_point_ms"].as_i64().unwrap();
    let certain = number(
        &cluster,
        &format!("SELECT coalesce(max(n), 1) - 1 FROM numbers WHERE at <= to_timestamp({point} / 1000.0)"),
    );

    // Little changes: unchanged pages cost nothing.
    cluster.sql("VACUUM FREEZE");
    made(&world.run(BACKUP).expect(0));
    cluster.sql("UPDATE pgbench_accounts SET abalance = abalance WHERE aid % 100000 = 1");
    let third = world.run(BACKUP).expect(0);
    let total = third.json()["backups"][0]["bytes"].as_u64().unwrap();
    let new = made(&third).new_bytes;
    println!("{total} bytes, {new} new");
    assert!(total > 180 << 20, "{total} bytes");
    assert!(new < total / 6, "{new} new bytes of {total}");

    cluster.kill();
    fs::remove_dir_all(&cluster.data).unwrap();
    fs::remove_dir_all(&space).unwrap();
    drop(cluster);

    let home = Cluster::home();
    let data = home.path().join("data");
    world.as_owner(&["restore", "snapshot", "db@1", "--to", data.to_str().unwrap()]).expect(0);
    output(postgresql::program("pg_verifybackup").arg(&data));
    // Nobody has said yet where the tablespace shall be.
    let refusal = Cluster::refuses_to_start(&home, &data);
    assert!(refusal.contains("could not remove directory \"pg_tblspc/"), "{refusal}");
    let map = fs::read_to_string(data.join("tablespace_map")).unwrap();
    let (oid, was) = map.trim_end().split_once(' ').unwrap();
    assert_eq!(Path::new(was), space);
    let space = home.path().join("elsewhere");
    fs::rename(data.join("pg_tblspc").join(oid), &space).unwrap();
    fs::write(data.join("tablespace_map"), format!("{oid} {}\n", space.display())).unwrap();

    let restored = Cluster::start(home, data, &[]);
    examine(&restored);
    assert_eq!(restored.sql("SELECT count(*) FROM far"), "10000");
    assert_eq!(
        restored.sql("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'elsewhere'"),
        space.to_str().unwrap()
    );
    let last = number(&restored, "SELECT max(n) FROM numbers");
    assert!(last >= committed && last >= certain, "{last} is the last, {committed} and {certain} were committed");
    assert_eq!(number(&restored, "SELECT count(*) FROM numbers"), last, "numbers are missing");
    // It is the same system as it was two snapshots ago, and the guard says so.
    document(&world, restored.port);
    let older = world.run(BACKUP).expect(3).json();
    let reasons = older["backups"][0]["reasons"].as_array().unwrap();
    assert!(reasons.len() == 1 && reasons[0].as_str().unwrap().contains("went back in time"), "{older}");
    world.assert_sound();
}

#[test]
fn a_standby_is_captured_too() {
    let cluster = Cluster::new(RULES, &[]);
    add_role(&cluster);
    output(cluster.client("pgbench").args(["-i", "-q", "-s", "1", "postgres"]));
    let home = Cluster::home();
    let data = home.path().join("data");
    output(cluster.client("pg_basebackup").args(["-R", "-X", "stream", "-c", "fast", "-D"]).arg(&data));
    let standby = Cluster::start(home, data, &[]);
    let world = World::local();
    document(&world, cluster.port);
    let primary = world.run(BACKUP).expect(0).json();
    let moment = cluster.sql("CREATE TABLE later AS SELECT 1; SELECT pg_current_wal_lsn()");
    while standby.sql(&format!("SELECT pg_last_wal_replay_lsn() >= '{moment}'")) != "t" {
        std::thread::yield_now();
    }
    document(&world, standby.port);
    let captured = world.run(BACKUP).expect(0);
    assert_eq!(made(&captured).number, 2);
    let (before, facts) = (&primary["backups"][0]["facts"], &captured.json()["backups"][0]["facts"]);
    assert_eq!(facts["details"]["role"], "standby");
    assert_eq!(facts["system"], before["system"]);
    assert!(facts["position"].as_u64() > before["position"].as_u64(), "{facts} {before}");
    drop((standby, cluster));
    let home = Cluster::home();
    let data = home.path().join("data");
    world.as_owner(&["restore", "snapshot", "db@2", "--to", data.to_str().unwrap()]).expect(0);
    output(postgresql::program("pg_verifybackup").arg(&data));
    // The copy of a standby would go on as one.
    fs::remove_file(data.join("standby.signal")).unwrap();
    let restored = Cluster::start(home, data, &[]);
    examine(&restored);
    assert_eq!(restored.sql("SELECT count(*) FROM later"), "1");
}

#[test]
fn a_server_that_dies_half_way_leaves_no_snapshot() {
    let mut cluster = Cluster::new(RULES, &[]);
    add_role(&cluster);
    output(cluster.client("pgbench").args(["-i", "-q", "-s", "3", "postgres"]));
    let world = World::local();
    let (port, enough) = (cluster.port, 12 << 20);
    let none = || {
        let listed = world.as_writer(&["snapshots", "--json"]).expect(0).json();
        assert_eq!(listed["snapshots"].as_array().unwrap().len(), 0, "{listed}");
    };
    document(&world, interrupted(port, enough, || false));
    world.run(BACKUP).expect(1).says("the stream broke while");
    none();
    let fall = move || {
        cluster.kill();
        true
    };
    document(&world, interrupted(port, enough, fall));
    world.run(BACKUP).expect(1).says("the stream broke while");
    none();
}

fn spec(cluster: &Cluster, user: &str, password: Option<&Path>) -> Postgresql {
    Postgresql {
        host: Some("127.0.0.1".into()),
        socket: None,
        port: cluster.port,
        user: user.into(),
        password: password.map(|path| SecretRef::File(path.to_owned())),
        tls: None,
        insecure: false,
    }
}

fn check(spec: Postgresql) -> Result<Vec<String>, SourceError> {
    Spec::Postgresql(spec).open()?.check(&context(&runtime()))
}

#[test]
fn ways_of_authentication() {
    let home = tempfile::tempdir().unwrap();
    etcd::certificates(home.path());
    let tls_settings: Vec<String> = ["cert_file=server.pem", "key_file=server.key", "ca_file=ca.pem"]
        .iter()
        .map(|setting| {
            let (name, file) = setting.split_once('=').unwrap();
            give(&home.path().join(file));
            format!("ssl_{name}={}", home.path().join(file).display())
        })
        .collect();
    give(home.path());
    let mut settings: Vec<&str> = tls_settings.iter().map(String::as_str).collect();
    settings.push("ssl=on");
    let rules = "hostssl replication backup 127.0.0.1/32 scram-sha-256\n\
                 hostssl replication certified 127.0.0.1/32 cert\n\
                 hostssl replication clear 127.0.0.1/32 password\nhostnossl replication clear 127.0.0.1/32 password\n\
                 hostnossl replication old 127.0.0.1/32 md5\nhost replication plain 127.0.0.1/32 scram-sha-256";
    let cluster = Cluster::new(rules, &settings);
    for role in ["backup", "clear", "certified", "client"] {
        cluster.sql(&format!("CREATE ROLE {role} LOGIN REPLICATION PASSWORD '{PASSWORD}'"));
    }
    cluster.sql(&format!("CREATE ROLE plain LOGIN PASSWORD '{PASSWORD}'"));
    cluster.sql(&format!("SET password_encryption = md5; CREATE ROLE old LOGIN REPLICATION PASSWORD '{PASSWORD}'"));
    let file = |name: &str, text: &str| {
        let path = home.path().join(name);
        fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        path
    };
    let (right, wrong) = (file("right", &format!("{PASSWORD}\n")), file("wrong", "incorrect-pony\n"));
    let tls = Tls { ca: home.path().join("ca.pem"), certificate: None, key: None, server_name: None };
    let secured =
        |user: &str, password: &Path| Postgresql { tls: Some(tls.clone()), ..spec(&cluster, user, Some(password)) };

    let lines = check(secured("backup", &right)).unwrap();
    assert!(lines[0].contains("PostgreSQL 15") && lines[0].contains("primary"), "{lines:?}");
    let named = Tls { server_name: Some("localhost".into()), ..tls.clone() };
    check(Postgresql { tls: Some(named), ..secured("backup", &right) }).unwrap();
    check(secured("clear", &right)).unwrap();
    check(spec(&cluster, "old", Some(&right))).unwrap();
    let socket = Postgresql { host: None, socket: Some(cluster.home.path().into()), ..spec(&cluster, "backup", None) };
    check(socket).unwrap();

    let failure = |spec: Postgresql| {
        let failure = check(spec).unwrap_err();
        let text = failure.to_string();
        assert!(!text.contains("incorrect-pony") && !text.contains(PASSWORD), "{text}");
        text
    };
    for refused in [secured("backup", &wrong), secured("clear", &wrong), spec(&cluster, "old", Some(&wrong))] {
        let text = failure(refused);
        assert!(text.contains("denied access: password authentication failed"), "{text}");
    }
    // Nothing is sent in plain.
    let text = failure(spec(&cluster, "clear", Some(&right)));
    assert!(text.contains("it was not sent"), "{text}");
    // A connection without TLS, where the server wants it.
    let text = failure(spec(&cluster, "backup", Some(&right)));
    assert!(text.contains("denied access: no pg_hba.conf entry"), "{text}");
    let text = failure(spec(&cluster, "plain", Some(&right)));
    assert!(text.contains("denied access") && text.contains("replication role"), "{text}");
    let text = failure(spec(&cluster, "old", None));
    assert!(text.contains("asks for a password"), "{text}");
    let foreign = Tls { ca: home.path().join("other-ca.pem"), ..tls.clone() };
    let text = failure(Postgresql { tls: Some(foreign), ..secured("backup", &right) });
    assert!(text.to_lowercase().contains("certificate"), "{text}");
    let misnamed = Tls { server_name: Some("db.example.org".into()), ..tls.clone() };
    let text = failure(Postgresql { tls: Some(misnamed), ..secured("backup", &right) });
    assert!(text.to_lowercase().contains("certificate"), "{text}");
    let text = failure(secured("certified", &right));
    assert!(text.contains("denied access"), "{text}");

    let gone = Postgresql { port: free_port(), ..spec(&cluster, "old", Some(&right)) };
    let port = gone.port;
    let text = failure(gone);
    assert!(text.contains(&format!("127.0.0.1:{port}")) && text.contains("refused"), "{text}");
}

#[test]
fn a_server_without_tls_gets_nothing_in_plain() {
    let cluster = Cluster::new(RULES, &[]);
    let home = tempfile::tempdir().unwrap();
    etcd::certificates(home.path());
    let tls = Tls { ca: home.path().join("ca.pem"), certificate: None, key: None, server_name: None };
    let failure = check(Postgresql { tls: Some(tls), ..spec(&cluster, "postgres", None) }).unwrap_err();
    assert!(failure.to_string().contains("does not offer TLS"), "{failure}");
}
