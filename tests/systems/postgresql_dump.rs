//! Dumps of the databases of real PostgreSQL servers, through the program and its repository, and back into servers.

use crate::support::collect::{Collect, context, runtime};
use crate::support::etcd;
use crate::support::free_port;
use crate::support::output;
use crate::support::postgresql::{Cluster, give};
use crate::support::proxy;
use crate::support::world::{World, made};
use lifeboat::entry::{Body, Entry, Facts, Supply, Visit};
use lifeboat::id::SourceName;
use lifeboat::secret::SecretRef;
use lifeboat::source::connection::Tls;
use lifeboat::source::postgresql_dump::Spec as Dump;
use lifeboat::source::probe::{Probe, Sql};
use lifeboat::source::target::{Action, Applied, Existing, Options, Plan};
use lifeboat::source::{SourceError, Spec};
use std::fs;
use std::io;
use std::path::Path;
use std::process::Stdio;

const RULES: &str = "host all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256";
const PASSWORD: &str = "correct-horse-battery";
/// A name that could be taken for a connection string, and that no file can have.
const ODD: &str = "host=nowhere %/\"x";
const ROWS: i64 = 40_000;

fn document(world: &World, port: u16) {
    fs::write(world.path("password"), PASSWORD).unwrap();
    let text = format!(
        "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: db}}\nspec:\n  postgresqlDump:\n    \
         host: 127.0.0.1\n    port: {port}\n    user: keeper\n    password: {{file: {}}}\n",
        world.path("password").display()
    );
    world.document("source.yaml", &text);
}

const BACKUP: &[&str] = &["--writer-key", "writer.key", "backup", "db", "--json"];

fn sql(cluster: &Cluster, database: &str, text: &str) -> String {
    let mut psql = cluster.client("psql");
    psql.env("PGDATABASE", database).args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text]);
    output(&mut psql).trim().to_owned()
}

fn add_role(cluster: &Cluster) {
    cluster.sql(&format!("CREATE ROLE keeper SUPERUSER LOGIN PASSWORD '{PASSWORD}'"));
}

/// Roles and databases with all that is easily lost.
fn fill(cluster: &Cluster) {
    cluster.sql("CREATE ROLE app LOGIN PASSWORD 'of the snapshot'");
    cluster.sql("CREATE ROLE readers; GRANT readers TO app");
    cluster.sql("ALTER ROLE app SET work_mem = '7MB'; COMMENT ON ROLE app IS 'it''s; \\odd'");
    for command in [
        "CREATE DATABASE shop OWNER app ENCODING 'UTF8' TEMPLATE template0",
        "ALTER DATABASE shop SET work_mem = '9MB'",
        "ALTER DATABASE shop CONNECTION LIMIT 50",
        "CREATE DATABASE other",
        &format!("CREATE DATABASE \"{}\"", ODD.replace('"', "\"\"")),
    ] {
        cluster.sql(command);
    }
    sql(
        cluster,
        "shop",
        &format!(
            "CREATE EXTENSION hstore; CREATE SCHEMA stock AUTHORIZATION app; CREATE TYPE stock.size AS ENUM ('s', 'l');
             CREATE TABLE stock.goods (n bigserial PRIMARY KEY, name text NOT NULL, size stock.size, more hstore);
             INSERT INTO stock.goods (name, size, more)
                SELECT 'ware ☂ \\.' || n, 's', 'a=>1' FROM generate_series(1, {ROWS}) AS n;
             CREATE TABLE seen (at timestamptz, n bigint REFERENCES stock.goods (n));
             CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
-- Name: no; Type: DATABASE PROPERTIES; Schema: -
BEGIN INSERT INTO public.seen VALUES (now(), NEW.n); RETURN NEW; END $$;
             CREATE TRIGGER see AFTER INSERT ON stock.goods FOR EACH ROW EXECUTE FUNCTION see();
             CREATE MATERIALIZED VIEW few AS SELECT name FROM stock.goods WHERE n < 10;
             ALTER TABLE stock.goods OWNER TO app; GRANT SELECT ON stock.goods TO readers;
             ALTER TABLE stock.goods ENABLE ROW LEVEL SECURITY;
             SELECT lo_from_bytea(4711, '\\x0102')"
        ),
    );
    sql(cluster, "other", "CREATE TABLE own AS SELECT 1 AS n");
    sql(cluster, ODD, "CREATE TABLE t AS SELECT generate_series(1, 5) AS n");
}

const GOODS: &str = "SELECT count(*), min(n), max(n), sum(n), md5(string_agg(n || name || size || more::text, ',' ORDER BY n)) \
     FROM stock.goods";

/// What the shop must be like.
fn assert_shop(cluster: &Cluster, goods: &str) {
    let ask = |query: &str| sql(cluster, "shop", query);
    assert_eq!(ask(GOODS), goods);
    assert!(goods.starts_with(&format!("{ROWS}|1|{ROWS}|{}|", ROWS * (ROWS + 1) / 2)), "{goods}");
    assert_eq!(ask("SHOW work_mem"), "9MB");
    assert_eq!(ask("SELECT datconnlimit, pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'shop'"), "50|app");
    assert_eq!(ask("SELECT encode(lo_get(4711), 'hex')"), "0102");
    assert_eq!(ask("SELECT count(*) FROM few"), "9");
    assert_eq!(ask("SELECT tableowner, rowsecurity FROM pg_tables WHERE tablename = 'goods'"), "app|t");
    assert_eq!(ask("SELECT has_table_privilege('readers', 'stock.goods', 'SELECT')"), "t");
    assert_eq!(ask("SELECT reltuples FROM pg_class WHERE oid = 'stock.goods'::regclass"), ROWS.to_string());
}

#[test]
fn a_dropped_database_comes_back_and_the_others_stay() {
    let cluster = Cluster::new(RULES, &[]);
    add_role(&cluster);
    fill(&cluster);
    let world = World::local();
    document(&world, cluster.port);
    let goods = sql(&cluster, "shop", GOODS);

    let first = world.run(BACKUP).expect(0);
    assert_eq!(made(&first).number, 1);
    let facts = first.json()["backups"][0]["facts"].clone();
    let system = cluster.sql("SELECT system_identifier FROM pg_control_system()");
    assert_eq!((&facts["system"], &facts["objects"]), (&system.as_str().into(), &4.into()), "{facts}");
    let databases = serde_json::json!([ODD, "other", "postgres", "shop"]).to_string();
    assert_eq!(facts["details"]["databases"], databases.as_str());
    let tables = serde_json::json!({ODD: 1, "other": 1, "postgres": 0, "shop": 2}).to_string();
    assert_eq!(facts["details"]["tables"], tables.as_str());
    let position = facts["position"].as_u64().unwrap();
    assert_eq!(cluster.sql(&format!("SELECT pg_current_wal_lsn() - '0/0' >= {position}")), "t");
    let point = facts["recovery_point_ms"].as_i64().unwrap();
    assert_eq!(cluster.sql(&format!("SELECT to_timestamp({point} / 1000.0) < clock_timestamp()")), "t");
    let listed = world.as_owner(&["ls", "db@1"]).expect(0).out;
    for path in ["globals.sql", "shop.sql", "other.sql", "postgres.sql", "host=nowhere %25%2F\"x.sql"] {
        assert!(listed.contains(path), "{path} is not in {listed}");
    }

    // The same again costs only the lines that must differ.
    sql(&cluster, "other", "INSERT INTO own VALUES (2)");
    let second = world.run(BACKUP).expect(0);
    let total = second.json()["backups"][0]["bytes"].as_u64().unwrap();
    let new = made(&second).new_bytes;
    println!("{total} bytes, {new} new");
    assert!(second.json()["backups"][0]["facts"]["position"].as_u64().unwrap() > position);
    assert!(total > 1 << 20 && new < total / 4, "{new} new bytes of {total}");

    cluster.sql("DROP DATABASE shop");
    sql(&cluster, "other", "INSERT INTO own VALUES (3)");
    let one = ["restore", "snapshot", "db@1", "shop.sql", "--into", "db"];
    let planned = world.as_owner(&[&one[..], &["--dry-run", "--json"]].concat()).expect(0).json();
    assert_eq!(planned["changes"], serde_json::json!([{"what": "database shop", "action": "create"}]));
    assert_eq!((&planned["target"], &planned["overwrites"]), (&system.as_str().into(), &false.into()));
    let applied = world.as_owner(&[&one[..], &["--json"]].concat()).expect(0).json();
    assert_eq!(applied["checked"], serde_json::json!(["database shop: 2 tables, analyzed"]));
    assert_shop(&cluster, &goods);
    assert_eq!(sql(&cluster, "other", "SELECT string_agg(n::text, ',' ORDER BY n) FROM own"), "1,2,3");
    sql(&cluster, "shop", "INSERT INTO stock.goods (name) VALUES ('new'); UPDATE stock.goods SET name = 'spoilt'");
    assert_eq!(sql(&cluster, "shop", "SELECT n FROM seen"), (ROWS + 1).to_string());

    // It holds something now: it is only replaced by order, under the eyes of who works with it.
    let refused = world.as_owner(&[&one[..], &["--json"]].concat()).expect(3).json();
    let action = refused["changes"][0]["action"].as_str().unwrap();
    assert!(action.starts_with("conflict: it holds 2 tables"), "{refused}");
    assert_eq!(sql(&cluster, "shop", "SELECT count(*) FROM stock.goods WHERE name = 'spoilt'"), (ROWS + 1).to_string());
    let mut session = cluster.client("psql");
    session.args(["-X", "-d", "shop", "-c", "SELECT pg_sleep(1000)"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut session = session.spawn().unwrap();
    while cluster.sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'") != "1" {
        std::thread::yield_now();
    }
    let replace = [&one[..], &["--existing", "replace", "--json"]].concat();
    world.as_owner(&replace).expect(2).says(&format!("--target-id {system}"));
    for _ in 0..2 {
        world.as_owner(&[&replace[..], &["--yes", "--target-id", &system]].concat()).expect(0);
        assert_shop(&cluster, &goods);
    }
    assert!(!session.wait().unwrap().success(), "the session outlived its database");
    assert_eq!(sql(&cluster, "other", "SELECT string_agg(n::text, ',' ORDER BY n) FROM own"), "1,2,3");
    world.assert_sound();
}

#[test]
fn all_of_it_comes_back_into_another_server() {
    let cluster = Cluster::new(RULES, &[]);
    add_role(&cluster);
    fill(&cluster);
    sql(&cluster, "postgres", "CREATE TABLE common AS SELECT 7 AS n");
    let goods = sql(&cluster, "shop", GOODS);
    let verifier = cluster.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'app'");
    let world = World::local();
    document(&world, cluster.port);
    world.run(BACKUP).expect(0);
    drop(cluster);

    let fresh = Cluster::new(RULES, &[]);
    add_role(&fresh);
    fresh.sql("CREATE ROLE readers LOGIN PASSWORD 'of the server'");
    let kept = fresh.sql("SELECT string_agg(rolpassword, ' ' ORDER BY rolname) FROM pg_authid");
    document(&world, fresh.port);
    let whole = ["restore", "snapshot", "db@1", "--into", "db", "--json"];
    let planned = world.as_owner(&[&whole[..], &["--dry-run"]].concat()).expect(0).json();
    let expected = ["role app", &format!("database {ODD}"), "database other", "database postgres", "database shop"];
    let changes: Vec<_> = planned["changes"].as_array().unwrap().iter().map(|change| &change["what"]).collect();
    assert_eq!(changes, expected);
    let differ = "are left as they are: keeper, readers";
    assert!(
        planned["about"].as_array().unwrap().iter().any(|line| line.as_str().unwrap().contains(differ)),
        "{planned}"
    );
    assert_eq!(fresh.sql("SELECT count(*) FROM pg_database"), "3", "the plan changed something");

    let applied = world.as_owner(&whole).expect(0);
    for secret in [&verifier, &kept, "SCRAM"] {
        assert!(!applied.out.contains(secret) && !applied.err.contains(secret), "{} {}", applied.out, applied.err);
    }
    let applied = applied.json();
    assert!(
        applied["toDo"].as_array().unwrap().iter().any(|line| line.as_str().unwrap().contains(differ)),
        "{applied}"
    );
    assert_shop(&fresh, &goods);
    assert_eq!(sql(&fresh, ODD, "SELECT sum(n) FROM t"), "15");
    assert_eq!(sql(&fresh, "postgres", "SELECT n FROM common"), "7");
    assert_eq!(fresh.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'app'"), verifier);
    let others = "SELECT string_agg(rolpassword, ' ' ORDER BY rolname) FROM pg_authid WHERE rolname <> 'app'";
    assert_eq!(fresh.sql(others), kept);
    assert_eq!(fresh.sql("SELECT pg_has_role('app', 'readers', 'MEMBER')"), "t");
    assert_eq!(fresh.sql("SELECT rolconfig FROM pg_roles WHERE rolname = 'app'"), "{work_mem=7MB}");
    assert_eq!(fresh.sql("SELECT shobj_description('app'::regrole, 'pg_authid')"), "it's; \\odd");

    // Of another system than the one that was captured, nothing is dropped without saying so.
    let replace = [&whole[..], &["--existing", "replace", "--dry-run"]].concat();
    let planned = world.as_owner(&replace).expect(3).json();
    assert!(planned["changes"][0]["action"].as_str().unwrap().contains("another system"), "{planned}");
    let planned = world.as_owner(&[&replace[..], &["--foreign"]].concat()).expect(0).json();
    assert_eq!(planned["overwrites"], true);
}

fn spec(port: u16, user: &str, password: &Path) -> Dump {
    Dump {
        host: Some("127.0.0.1".into()),
        socket: None,
        port,
        user: user.into(),
        password: Some(SecretRef::File(password.to_owned())),
        tls: None,
        insecure: false,
        databases: Vec::new(),
        globals: true,
    }
}

/// A snapshot in memory.
struct Taken {
    facts: Facts,
    sink: Collect,
    /// Its contents cannot be read past so many bytes.
    broken: Option<usize>,
}

struct Bytes<'a>(&'a [u8], Option<usize>);

impl Body for Bytes<'_> {
    fn copy(&self, out: &mut dyn io::Write) -> io::Result<()> {
        match self.1 {
            Some(limit) if limit < self.0.len() => {
                out.write_all(&self.0[..limit])?;
                Err(io::Error::new(io::ErrorKind::BrokenPipe, "the repository is gone"))
            }
            _ => out.write_all(self.0),
        }
    }
}

impl Supply for Taken {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn entries(&self, visit: &mut Visit<'_>) -> io::Result<()> {
        let mut visit = |(entry, content): &(Entry, Vec<u8>)| visit(entry, &Bytes(content, self.broken));
        self.sink.entries.iter().try_for_each(&mut visit)
    }
}

fn capture(spec: &Dump) -> Result<Taken, SourceError> {
    let mut sink = Collect::default();
    let facts = Spec::PostgresqlDump(spec.clone()).open()?.capture(&context(&runtime()), &mut sink)?;
    Ok(Taken { facts, sink, broken: None })
}

fn restore(spec: &Dump, taken: &Taken, existing: Existing) -> (Plan, Result<Applied, SourceError>) {
    let runtime = runtime();
    let options = Options { existing, ..Options::default() };
    let mut target = Spec::PostgresqlDump(spec.clone()).target(options).unwrap().unwrap();
    let plan = target.plan(&context(&runtime), taken).unwrap();
    let applied = target.apply(&context(&runtime), taken, &plan);
    (plan, applied)
}

#[test]
fn a_restore_that_breaks_off_leaves_nothing_half() {
    let cluster = Cluster::new(RULES, &[]);
    add_role(&cluster);
    fill(&cluster);
    let home = tempfile::tempdir().unwrap();
    let password = home.path().join("password");
    fs::write(&password, PASSWORD).unwrap();
    let goods = sql(&cluster, "shop", GOODS);
    let spec = Dump { databases: vec!["shop".into()], ..spec(cluster.port, "keeper", &password) };
    let mut taken = capture(&spec).unwrap();
    let paths: Vec<_> = taken.sink.entries.iter().map(|(entry, _)| String::from_utf8_lossy(&entry.path)).collect();
    assert_eq!(paths, ["globals.sql", "shop.sql"]);
    let empty = |taken: &Taken, text: &str| {
        let (plan, applied) = restore(&spec, taken, Existing::Skip);
        assert_eq!(plan.changes[0].action, Action::Create, "{plan:?}");
        let error = applied.unwrap_err();
        let said = lifeboat_causes(&error);
        assert!(said.contains(text), "{said}");
        assert_eq!(
            sql(&cluster, "shop", "SELECT count(*) FROM pg_tables WHERE schemaname IN ('public', 'stock')"),
            "0"
        );
    };
    cluster.sql("DROP DATABASE shop");
    taken.broken = Some(taken.sink.entries[1].1.len() / 2);
    empty(&taken, "the repository is gone");
    taken.broken = None;
    // What the server refuses at the very end undoes all.
    let whole = taken.sink.entries[1].1.clone();
    taken.sink.entries[1].1 = [&whole[..], b"NONSENSE;\n"].concat();
    empty(&taken, "syntax error at or near \"NONSENSE\"");
    // Nor does it reach the machine of whoever restores.
    let owned = home.path().join("owned");
    taken.sink.entries[1].1 = [&whole[..], format!("SELECT 1 \\! touch {}\n;\n", owned.display()).as_bytes()].concat();
    empty(&taken, "only \\unrestrict is allowed");
    let key = whole.split(|byte| *byte == b'\n').find(|line| line.starts_with(b"\\restrict ")).unwrap();
    let leave = [b"\\un", &key[1..], b"\n\\! touch ", owned.display().to_string().as_bytes(), b"\n"].concat();
    taken.sink.entries[1].1 = [&whole[..], &leave].concat();
    empty(&taken, "only \\unrestrict is allowed");
    taken.sink.entries[1].1 =
        [&whole[..], format!("SELECT 1 \\unrestrict `touch {}`\n;\n", owned.display()).as_bytes()].concat();
    empty(&taken, "which psql would act on");
    assert!(!owned.exists());
    taken.sink.entries[1].1 = b"SELECT 1;\n".to_vec();
    let (_, applied) = restore(&spec, &taken, Existing::Skip);
    let said = applied.unwrap_err().to_string();
    assert!(said.contains("makes no database"), "{said}");
    taken.sink.entries[1].1 = whole;
    restore(&spec, &taken, Existing::Skip).1.unwrap();
    assert_shop(&cluster, &goods);
    // A step of a plan that was killed after this one of its databases asks before it goes on: somebody may be at work in it.
    sql(&cluster, "shop", "DELETE FROM stock.goods");
    let running = runtime();
    for (made, action, overwrites) in [(&[][..], "conflict: it holds", false), (&["database shop"], "replace", true)] {
        let options = Options { made: made.iter().map(|what| (*what).to_owned()).collect(), ..Options::default() };
        let mut target = Spec::PostgresqlDump(spec.clone()).target(options).unwrap().unwrap();
        let plan = target.plan(&context(&running), &taken).unwrap();
        assert!(plan.changes[0].action.to_string().starts_with(action) && plan.overwrites() == overwrites, "{plan:?}");
        if overwrites {
            target.apply(&context(&running), &taken, &plan).unwrap();
            assert_shop(&cluster, &goods);
        }
    }

    let shop = |sql: Sql| Probe::Sql(sql).look(&context(&runtime()), Some(&Spec::PostgresqlDump(spec.clone())));
    let probe = Sql {
        source: "db".parse::<SourceName>().unwrap(),
        database: Some("shop".into()),
        query: "SELECT count(*) FROM stock.goods".into(),
        equals: Some(ROWS.to_string()),
        at_least: None,
    };
    shop(probe.clone()).unwrap();
    assert!(shop(Sql { equals: Some("1".into()), ..probe }).is_err());
}

fn lifeboat_causes(error: &SourceError) -> String {
    let (mut text, mut next) = (error.to_string(), std::error::Error::source(error));
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}

#[test]
fn a_server_that_dies_half_way_leaves_no_snapshot() {
    let mut cluster = Cluster::new(RULES, &[]);
    add_role(&cluster);
    fill(&cluster);
    let world = World::local();
    let (port, enough) = (cluster.port, 1_500_000);
    let none = || {
        let listed = world.as_writer(&["snapshots", "--json"]).expect(0).json();
        assert_eq!(listed["snapshots"].as_array().unwrap().len(), 0, "{listed}");
    };
    document(&world, proxy::all_interrupted(port, enough, || {}));
    world.run(BACKUP).expect(1).says("dump the database").says("pg_dump failed with exit status");
    none();
    document(&world, proxy::all_interrupted(port, enough, move || cluster.kill()));
    world.run(BACKUP).expect(1).says("dump the database").says("pg_dump failed with exit status");
    none();
}

#[test]
fn a_standby_is_captured_too() {
    let cluster = Cluster::new(RULES, &[]);
    add_role(&cluster);
    fill(&cluster);
    let home = Cluster::home();
    let data = home.path().join("data");
    output(cluster.client("pg_basebackup").args(["-R", "-X", "stream", "-c", "fast", "-D"]).arg(&data));
    let standby = Cluster::start(home, data, &[]);
    let moment = cluster.sql("CREATE TABLE later AS SELECT 1; SELECT pg_current_wal_lsn()");
    while standby.sql(&format!("SELECT pg_last_wal_replay_lsn() >= '{moment}'")) != "t" {
        std::thread::yield_now();
    }
    let home = tempfile::tempdir().unwrap();
    let password = home.path().join("password");
    fs::write(&password, PASSWORD).unwrap();
    let primary = capture(&spec(cluster.port, "keeper", &password)).unwrap();
    let there = spec(standby.port, "keeper", &password);
    let taken = capture(&there).unwrap();
    assert_eq!((&taken.facts.details["role"], &taken.facts.system), (&"standby".to_owned(), &primary.facts.system));
    let position = taken.facts.position.unwrap();
    assert_eq!(
        cluster.sql(&format!("SELECT {position} BETWEEN '{moment}' - '0/0'::pg_lsn AND pg_current_wal_lsn() - '0/0'")),
        "t"
    );
    assert_eq!(taken.facts.objects, Some(5));
    let mut target = Spec::PostgresqlDump(there).target(Options::default()).unwrap().unwrap();
    let refused = target.plan(&context(&runtime()), &taken).unwrap_err().to_string();
    assert!(refused.contains("it is a standby"), "{refused}");
}

#[test]
fn what_cannot_be_captured_is_an_error() {
    let home = tempfile::tempdir().unwrap();
    etcd::certificates(home.path());
    give(home.path());
    let file = |name: &str| home.path().join(name);
    for name in ["server.pem", "server.key"] {
        give(&file(name));
    }
    let settings =
        [("cert", "server.pem"), ("key", "server.key")].map(|(n, f)| format!("ssl_{n}_file={}", file(f).display()));
    let rules = "hostssl all secured 127.0.0.1/32 scram-sha-256\nhost all keeper,looker 127.0.0.1/32 scram-sha-256";
    let cluster = Cluster::new(rules, &["ssl=on", &settings[0], &settings[1]]);
    add_role(&cluster);
    cluster.sql(&format!("CREATE ROLE secured SUPERUSER LOGIN PASSWORD '{PASSWORD}'"));
    cluster.sql(&format!("CREATE ROLE looker LOGIN PASSWORD '{PASSWORD}'"));
    fs::write(file("right"), format!("{PASSWORD}\n")).unwrap();
    fs::write(file("wrong"), "incorrect-pony\n").unwrap();
    let to = |user: &str, password: &str| spec(cluster.port, user, &file(password));
    let failure = |spec: &Dump| {
        let mut sink = Collect::default();
        let captured = Spec::PostgresqlDump(spec.clone()).open().and_then(|mut source| {
            source.check(&context(&runtime()))?;
            source.capture(&context(&runtime()), &mut sink)
        });
        let text = sink.failure.unwrap_or(captured.unwrap_err().to_string());
        assert!(!text.contains("incorrect-pony") && !text.contains(PASSWORD), "{text}");
        text
    };
    let text = failure(&to("keeper", "right"));
    assert!(text.contains("there is nothing to capture in postgres"), "{text}");
    fill(&cluster);
    capture(&to("keeper", "right")).unwrap();
    let text = failure(&to("keeper", "wrong"));
    assert!(text.contains("denied access") && text.contains("password authentication failed"), "{text}");
    let text = failure(&Dump { databases: vec!["shop".into(), "shoq".into()], ..to("keeper", "right") });
    assert!(text.contains("it has no database shoq"), "{text}");
    let gone = free_port();
    let text = failure(&spec(gone, "keeper", &file("right")));
    assert!(text.contains(&format!("127.0.0.1:{gone}")) && text.contains("refused"), "{text}");

    // Who may not read everything gets no dump that looks like all.
    let text = failure(&Dump { databases: vec!["shop".into()], globals: false, ..to("looker", "right") });
    assert!(text.contains("dump the database shop") && text.contains("permission denied"), "{text}");
    // Who may not read passwords gets the roles without them.
    let other = Dump { databases: vec!["other".into()], ..to("looker", "right") };
    sql(&cluster, "other", "GRANT SELECT ON own TO looker");
    let globals = |has: &str| {
        let taken = capture(&other).unwrap();
        assert_eq!(taken.facts.details["role_passwords"], has);
        String::from_utf8(taken.sink.entries[0].1.clone()).unwrap()
    };
    let text = globals("no");
    assert!(text.contains("CREATE ROLE app;") && !text.contains("SCRAM"), "{text}");
    cluster.sql("GRANT pg_read_all_data TO looker; ALTER ROLE looker BYPASSRLS");
    let text = globals("yes");
    assert!(text.contains("CREATE ROLE app;") && text.contains("SCRAM"), "{text}");
    let text = failure(&Dump { databases: vec!["shop".into()], ..to("looker", "right") });
    assert!(
        text.contains("dump the database shop") && text.contains("permission denied for large object 4711"),
        "{text}"
    );

    let tls = Tls { ca: file("ca.pem"), certificate: None, key: None, server_name: None };
    capture(&Dump { tls: Some(tls.clone()), ..to("secured", "right") }).unwrap();
    let text = failure(&to("secured", "right"));
    assert!(text.contains("denied access: database postgres: no pg_hba.conf entry"), "{text}");
    let foreign = Tls { ca: file("other-ca.pem"), ..tls.clone() };
    let text = failure(&Dump { tls: Some(foreign), ..to("secured", "right") });
    assert!(text.to_lowercase().contains("certificate"), "{text}");
    let named = Tls { server_name: Some("localhost".into()), ..tls };
    let text = failure(&Dump { tls: Some(named), ..to("secured", "right") });
    assert!(text.contains("postgresqlDump.tls.serverName"), "{text}");
}
