//! Dumps of real MariaDB servers, through the program and its repository, and back into others.

use crate::support::collect::{Collect, context, runtime};
use crate::support::etcd;
use crate::support::free_port;
use crate::support::mariadb::{PASSWORD, Server};
use crate::support::proxy;
use crate::support::world::{World, made};
use lifeboat::entry::{Body, Entry, Facts, Supply, Visit};
use lifeboat::secret::SecretRef;
use lifeboat::source::connection::Tls;
use lifeboat::source::mariadb::Spec as Mariadb;
use lifeboat::source::target::{Action, Existing, Options};
use lifeboat::source::{SourceError, Spec};
use std::fs;
use std::io;
use std::path::Path;

const BACKUP: &[&str] = &["--writer-key", "writer.key", "backup", "shop", "--json"];

fn document(world: &World, port: u16) {
    fs::write(world.path("password"), PASSWORD).unwrap();
    let text = format!(
        "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: shop}}\nspec:\n  mariadb:\n    \
         host: 127.0.0.1\n    port: {port}\n    user: backup\n    password: {{file: {}}}\n",
        world.path("password").display()
    );
    world.document("source.yaml", &text);
}

fn spec(port: u16, user: &str, password: Option<&Path>) -> Mariadb {
    Mariadb {
        host: Some("127.0.0.1".into()),
        port,
        socket: None,
        user: user.into(),
        password: password.map(|path| SecretRef::File(path.to_owned())),
        tls: None,
        insecure: false,
    }
}

/// A dump in a file, as a snapshot gives it.
struct Dump {
    facts: Facts,
    sql: Vec<u8>,
}

impl Body for Dump {
    fn copy(&self, out: &mut dyn io::Write) -> io::Result<()> {
        out.write_all(&self.sql)
    }
}

impl Supply for Dump {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn entries(&self, visit: &mut Visit<'_>) -> io::Result<()> {
        let mut sink = Collect::default();
        let file = tempfile::tempdir()?;
        fs::write(file.path().join("dump.sql"), "")?;
        let files = lifeboat::source::files::Spec {
            path: file.path().to_owned(),
            include: Vec::new(),
            exclude: Vec::new(),
            one_file_system: false,
        };
        Spec::Files(files).open().unwrap().capture(&context(&runtime()), &mut sink).unwrap();
        let entry: &Entry = &sink.entries.iter().find(|(entry, _)| entry.path == b"dump.sql").unwrap().0;
        visit(entry, self)
    }
}

#[test]
fn a_dump_comes_back_into_a_server() {
    let server = Server::start(&["--log-bin=binlog", "--server-id=1"]);
    server.fill();
    let world = World::local();
    document(&world, server.port);
    let before = server.sql("SELECT @@gtid_current_pos");
    let captured = world.run(BACKUP).expect(0);
    assert_eq!(made(&captured).number, 1);
    let facts = captured.json()["backups"][0]["facts"].clone();
    assert_eq!(facts["details"]["gtid_position"], before.as_str());
    assert_eq!(facts["position"].as_u64().unwrap().to_string(), before.rsplit('-').next().unwrap());
    assert_eq!(facts["objects"], 2);
    let checksums = server.checksums();
    server.sql("INSERT INTO shop.goods (name) VALUES ('later')");
    assert_ne!(server.checksums(), checksums);
    let second = world.run(BACKUP).expect(0).json();
    assert!(second["backups"][0]["facts"]["position"].as_u64() > facts["position"].as_u64());
    drop(server);

    world.as_owner(&["restore", "snapshot", "shop@1", "--to", "out"]).expect(0);
    let sql = fs::read(world.path("out/dump.sql")).unwrap();
    assert!(String::from_utf8_lossy(&sql).contains("-- SET GLOBAL gtid_slave_pos="), "the position is not in the dump");
    let details = [("version".to_owned(), facts["details"]["version"].as_str().unwrap().to_owned())].into();
    let dump = Dump { facts: Facts { details, ..Facts::default() }, sql };

    let fresh = Server::start(&[]);
    fresh.sql("SET PASSWORD FOR root@'127.0.0.1' = PASSWORD('')");
    fresh.sql(&format!("CREATE USER backup@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'"));
    fresh.sql("GRANT ALL ON *.* TO backup@'127.0.0.1' WITH GRANT OPTION");
    let (runtime, password) = (runtime(), world.path("password"));
    let to = |options: Options| {
        let spec = Spec::Mariadb(spec(fresh.port, "backup", Some(&password)));
        spec.target(options).unwrap().unwrap()
    };
    let mut target = to(Options::default());
    let plan = target.plan(&context(&runtime), &dump).unwrap();
    assert!(plan.changes[0].action == Action::Create, "{plan:?}");
    assert!(plan.overwrites(), "the accounts of an empty server are lost all the same: {plan:?}");
    assert_eq!(fresh.sql("SHOW DATABASES LIKE 'shop'"), "");
    let applied = target.apply(&context(&runtime), &dump, &plan).unwrap();
    assert!(applied.checked[0].contains("2 tables"), "{applied:?}");
    assert_eq!(fresh.checksums(), checksums);
    assert_eq!(fresh.sql("SELECT name FROM shop.few WHERE id = 7"), "ware ☂ 7");
    assert_eq!(fresh.sql("SELECT shop.twice(21)"), "42");
    assert_eq!(fresh.sql("SELECT event_name FROM information_schema.events"), "later");
    fresh.sql("INSERT INTO shop.goods (name) VALUES ('new')");
    assert_eq!(fresh.sql("SELECT COUNT(*) FROM shop.seen"), "1");

    // It holds something now: only an order to replace it does.
    let mut target = to(Options::default());
    let plan = target.plan(&context(&runtime), &dump).unwrap();
    assert!(matches!(&plan.changes[0].action, Action::Conflict(why) if why.contains("2 tables")), "{plan:?}");
    assert!(target.apply(&context(&runtime), &dump, &plan).is_err());
    assert_ne!(fresh.checksums(), checksums);
    let mut target = to(Options { existing: Existing::Replace, ..Options::default() });
    let plan = target.plan(&context(&runtime), &dump).unwrap();
    assert!(plan.overwrites());
    target.apply(&context(&runtime), &dump, &plan).unwrap();
    assert_eq!(fresh.checksums(), checksums);

    // What the server refuses is told.
    let bad = Dump { facts: dump.facts.clone(), sql: b"CREATE DATABASE broken; NONSENSE;".to_vec() };
    let plan = target.plan(&context(&runtime), &bad).unwrap();
    let text = target.apply(&context(&runtime), &bad, &plan).unwrap_err().to_string();
    assert!(text.contains("ERROR 1064"), "{text}");
}

#[test]
fn a_server_that_dies_half_way_leaves_no_snapshot() {
    let mut server = Server::start(&[]);
    server.fill();
    let world = World::local();
    let port = server.port;
    // Of two connections the second is the dump's.
    let fall = move || {
        server.kill();
        false
    };
    document(&world, proxy::second_interrupted(port, 1_000_000, fall));
    world.run(BACKUP).expect(1).says("mariadb-dump failed with exit status");
    let listed = world.as_writer(&["snapshots", "--json"]).expect(0).json();
    assert_eq!(listed["snapshots"].as_array().unwrap().len(), 0, "{listed}");
}

fn check(spec: Mariadb) -> Result<Vec<String>, SourceError> {
    Spec::Mariadb(spec).open()?.check(&context(&runtime()))
}

#[test]
fn accounts_rights_and_tls() {
    let home = tempfile::tempdir().unwrap();
    etcd::certificates(home.path());
    let file = |name: &str| home.path().join(name);
    fs::write(file("right"), format!("{PASSWORD}\n")).unwrap();
    fs::write(file("wrong"), "incorrect-pony\n").unwrap();
    let [certificate, key] = [("cert", "server.pem"), ("key", "server.key")]
        .map(|(name, path)| format!("--ssl-{name}={}", file(path).display()));
    let (plain, secured) = (Server::start(&[]), Server::start(&[&certificate, &key]));
    plain.fill();
    secured.fill();
    secured.sql("ALTER USER backup@'127.0.0.1' REQUIRE SSL");
    plain.sql(&format!("CREATE USER looker@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'"));
    let tls = Tls { ca: file("ca.pem"), certificate: None, key: None, server_name: None };
    let over = |server: &Server, tls: &Tls, password: &str| Mariadb {
        tls: Some(tls.clone()),
        ..spec(server.port, "backup", Some(&file(password)))
    };
    let lines = check(over(&secured, &tls, "right")).unwrap();
    assert!(lines[0].contains("MariaDB 10") && lines[0].contains("2 tables"), "{lines:?}");
    check(spec(plain.port, "backup", Some(&file("right")))).unwrap();

    let failure = |spec: Mariadb| {
        let text = check(spec).unwrap_err().to_string();
        assert!(!text.contains("incorrect-pony") && !text.contains(PASSWORD), "{text}");
        text
    };
    for wrong in [over(&secured, &tls, "wrong"), spec(plain.port, "backup", Some(&file("wrong")))] {
        let text = failure(wrong);
        assert!(text.contains("denied access"), "{text}");
    }
    let text = failure(spec(secured.port, "backup", Some(&file("right"))));
    assert!(text.contains("denied access"), "{text}");
    let foreign = Tls { ca: file("other-ca.pem"), ..tls.clone() };
    let text = failure(over(&secured, &foreign, "right"));
    assert!(text.to_lowercase().contains("certificate"), "{text}");
    // No going back to plain text.
    let text = failure(over(&plain, &tls, "right"));
    assert!(text.contains("SSL"), "{text}");
    let named = Tls { server_name: Some("localhost".into()), ..tls.clone() };
    let text = failure(over(&secured, &named, "right"));
    assert!(text.contains("mariadb.tls.serverName"), "{text}");

    // What an account does not see would be missing from its dump.
    let mut sink = Collect::default();
    let looker = || Spec::Mariadb(spec(plain.port, "looker", Some(&file("right")))).open().unwrap();
    let mut refused = || looker().capture(&context(&runtime()), &mut sink).unwrap_err().to_string();
    let text = refused();
    assert!(text.contains("looker lacks SELECT, SHOW VIEW, TRIGGER, EVENT on *.*"), "{text}");
    plain.sql("GRANT SELECT ON *.* TO looker@'127.0.0.1'; GRANT ALL ON shop.* TO looker@'127.0.0.1'");
    let text = refused();
    assert!(text.contains("looker lacks SHOW VIEW, TRIGGER, EVENT on *.*"), "{text}");
    plain.sql("GRANT SHOW VIEW, TRIGGER, EVENT, LOCK TABLES, RELOAD ON *.* TO looker@'127.0.0.1'");
    looker().capture(&context(&runtime()), &mut sink).unwrap();
    assert!(String::from_utf8_lossy(&sink.entries[0].1).contains("CREATE DATABASE /*!32312 IF NOT EXISTS*/ `shop`"));

    let gone = free_port();
    let text = failure(spec(gone, "backup", Some(&file("right"))));
    assert!(text.contains(&format!("127.0.0.1:{gone}")), "{text}");
}
