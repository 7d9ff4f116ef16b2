//! Real Prometheus servers, captured by their own snapshots; another server starts from what is restored.

use crate::support;
use crate::support::collect;
use crate::support::proxy;
use crate::support::world::{World, made, noise};
use lifeboat::entry::{Entry, Input, Problem, Sink, Stopped};
use lifeboat::source::prometheus::Spec as Prometheus;
use lifeboat::source::{SourceError, Spec};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const BACKUP: &[&str] = &["--writer-key", "writer.key", "backup", "metrics", "--json"];
const ADMIN: &str = "--web.enable-admin-api";
const PASSWORD: &str = "correct-horse-battery";
/// Of that password.
const HASH: &str = "$2b$04$abcdefghijklmnopqrstuupOWRSKKNe562z1DsLEArFuJDHVyRIMa";
const RULES: &str = "groups:\n- name: nodes\n  interval: 30s\n  rules:\n  - alert: Down\n    expr: up == 0\n    for: 5m\n    \
                     labels: {severity: page}\n    annotations: {summary: 'it is down'}\n  - record: job:up:sum\n    \
                     expr: sum by (job) (up)\n";

#[track_caller]
fn output(program: &str, arguments: &[&str]) -> String {
    let output = support::command(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

struct Server {
    home: TempDir,
    port: u16,
    child: Child,
}

impl Server {
    /// On the data directory that is there, or a new one.
    fn start_in(home: TempDir, settings: &[&str], scrape: bool) -> Self {
        let port = support::free_port();
        let mut config =
            String::from("global: {scrape_interval: 1s, external_labels: {cluster: test}}\nrule_files: [rules.yml]\n");
        if scrape {
            write!(
                config,
                "scrape_configs:\n- job_name: self\n  basic_auth: {{username: me, password: tell-nobody}}\n  \
                 static_configs: [{{targets: ['127.0.0.1:{port}']}}]\n"
            )
            .unwrap();
        }
        fs::write(home.path().join("prometheus.yml"), config).unwrap();
        fs::write(home.path().join("rules.yml"), RULES).unwrap();
        let log = fs::File::create(home.path().join("log")).unwrap();
        let mut command = support::command("prometheus");
        command.current_dir(home.path()).args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"]);
        // Blocks stay as they are.
        command.args(["--storage.tsdb.min-block-duration=2h", "--storage.tsdb.max-block-duration=2h"]);
        command.arg(format!("--web.listen-address=127.0.0.1:{port}")).args(settings);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        let server = Self { port, child: command.spawn().unwrap(), home };
        let deadline = Instant::now() + Duration::from_mins(1);
        while server.get("/-/ready").is_none_or(|answer| !answer.contains("Ready") && !answer.contains("Unauthorized"))
        {
            let log = fs::read_to_string(server.home.path().join("log")).unwrap();
            assert!(Instant::now() < deadline, "Prometheus did not start: {log}");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// With half a day of samples in blocks, a minute apart, and what it scrapes itself.
    fn filled(settings: &[&str]) -> Self {
        let home = tempfile::tempdir().unwrap();
        let now = now();
        let values = noise(3, 100 * 720 * 4);
        let mut samples = String::from("# HELP old x\n# TYPE old gauge\n");
        for (index, value) in values.chunks(4).enumerate() {
            let (series, sample) = (index / 720, index % 720);
            let value = u32::from_le_bytes(value.try_into().unwrap());
            let at = now - 2 * 86_400 + sample as u64 * 60;
            writeln!(samples, "old{{series=\"{series}\"}} {value} {at}").unwrap();
        }
        samples.push_str("# EOF\n");
        fs::write(home.path().join("samples"), samples).unwrap();
        let (samples, data) = (home.path().join("samples"), home.path().join("data"));
        let words = ["tsdb", "create-blocks-from", "openmetrics"];
        output("promtool", &[&words[..], &[samples.to_str().unwrap(), data.to_str().unwrap()]].concat());
        let server = Self::start_in(home, settings, true);
        let deadline = Instant::now() + Duration::from_mins(1);
        while server.query("count(up)", "").is_none() {
            assert!(Instant::now() < deadline, "it scrapes nothing");
            std::thread::sleep(Duration::from_millis(100));
        }
        server
    }

    fn get(&self, path: &str) -> Option<String> {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let output = support::command("curl").args(["-sg", &url]).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    /// The value of a query with one result.
    fn query(&self, query: &str, time: &str) -> Option<String> {
        let query = query.replace(' ', "%20").replace('"', "%22").replace('+', "%2B");
        let answer: Value = serde_json::from_str(&self.get(&format!("/api/v1/query?query={query}{time}"))?).unwrap();
        Some(answer["data"]["result"][0]["value"][1].as_str()?.to_owned())
    }

    fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    fn snapshots(&self) -> usize {
        fs::read_dir(self.data().join("snapshots")).map_or(0, Iterator::count)
    }

    fn kill(&mut self) {
        support::kill_group(&mut self.child);
    }

    /// A file in the oldest block.
    fn file_of_block(&self, name: &str) -> PathBuf {
        let blocks = fs::read_dir(self.data()).unwrap().map(|entry| entry.unwrap().path());
        blocks.filter(|path| path.join("meta.json").exists()).min().unwrap().join(name)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn now() -> u64 {
    output("date", &["+%s"]).trim().parse().unwrap()
}

fn document(world: &World, port: u16, data: &Path, further: &str) {
    let text = format!(
        "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: metrics}}\nspec:\n  prometheus:\n    \
         address: http://127.0.0.1:{port}\n    dataDirectory: {}\n{further}",
        data.display()
    );
    world.document("source.yaml", &text);
}

#[test]
fn a_server_starts_from_what_is_restored_and_answers_the_same() {
    let mut server = Server::filled(&[ADMIN]);
    let world = World::local();
    document(&world, server.port, &server.data(), "");
    let before = i64::try_from(now()).unwrap() * 1000;
    let first = world.run(BACKUP).expect(0);
    assert_eq!(server.snapshots(), 0);
    let facts = first.json()["backups"][0]["facts"].clone();
    let moment = facts["recovery_point_ms"].as_i64().unwrap();
    // As old as the newest sample, which is a second or so.
    assert!((before - 10_000..before + 60_000).contains(&moment), "{moment} {before} {facts}");
    assert_eq!(facts["position"].as_i64(), Some(moment));
    assert_eq!(facts["system"], "cluster=test");
    assert!(facts["objects"].as_u64().unwrap() > 72_000, "{facts}");
    assert_eq!(facts["details"]["secrets_masked_in_config"], "1");
    assert!(made(&first).new_bytes > 200_000);
    // Blocks that are there already cost nothing; what was in memory is a new block.
    let again = made(&world.run(BACKUP).expect(0));
    assert!(again.new_bytes < 150_000, "{}", again.new_bytes);

    // Their files are not even read: this damage goes unseen.
    let segment = server.file_of_block("chunks/000001");
    let (bytes, times) = (fs::read(&segment).unwrap(), fs::metadata(&segment).unwrap().modified().unwrap());
    let write = |bytes: &[u8]| {
        fs::write(&segment, bytes).unwrap();
        fs::File::options().write(true).open(&segment).unwrap().set_modified(times).unwrap();
    };
    write(&vec![0; bytes.len()]);
    world.run(BACKUP).expect(0);
    write(&bytes);

    let at = format!("&time={}.{:03}", moment / 1000, moment % 1000);
    let asked = [
        ("sum(sum_over_time(old[3d]))", at.as_str()),
        ("sum(count_over_time(old{series=\"42\"}[3d]))", &at),
        ("sum(up)", &at),
        ("count({__name__=~\".+\"})", &at),
        ("sum(prometheus_tsdb_head_series)", &at),
    ];
    let answers = asked.map(|(query, time)| server.query(query, time).unwrap());
    server.kill();
    fs::remove_dir_all(server.data()).unwrap();
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    world.as_owner(&["restore", "snapshot", "metrics@1", "--to", data.to_str().unwrap()]).expect(0);
    let listed = output("promtool", &["tsdb", "list", data.to_str().unwrap()]);
    assert!(listed.lines().count() > 6, "{listed}");
    output("promtool", &["check", "rules", data.join("config/rules/rules.yml").to_str().unwrap()]);
    let config = fs::read_to_string(data.join("config/prometheus.yml")).unwrap();
    assert!(config.contains("<secret>") && !config.contains("tell-nobody"), "{config}");
    let restored = Server::start_in(home, &[], false);
    assert_eq!(asked.map(|(query, time)| restored.query(query, time).unwrap()), answers);
    world.assert_sound();
}

#[test]
fn damage_on_the_servers_disk_is_said() {
    let server = Server::filled(&[ADMIN]);
    let world = World::local();
    document(&world, server.port, &server.data(), "");
    let damage = |name: &str, at: fn(usize) -> usize| {
        let path = server.file_of_block(name);
        let mut bytes = fs::read(&path).unwrap();
        let at = at(bytes.len());
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    // In the first chunk's samples.
    damage("chunks/000001", |_| 15);
    let damaged = world.run(BACKUP).expect(3).json();
    let problems = damaged["backups"][0]["problems"].to_string();
    assert!(problems.contains("does not match its checksum") && problems.contains("chunks/000001"), "{problems}");
    // And again, as long as it is so.
    assert!(world.run(BACKUP).expect(3).out.contains("does not match its checksum"));
    damage("index", |length| length - 10);
    let damaged = world.run(BACKUP).expect(3).json();
    let problems = damaged["backups"][0]["problems"].to_string();
    assert!(problems.contains("its index is damaged"), "{problems}");
    assert_eq!(server.snapshots(), 0);
}

#[test]
fn lost_data_does_not_become_the_latest() {
    let mut server = Server::filled(&[ADMIN]);
    let world = World::local();
    document(&world, server.port, &server.data(), "");
    world.run(BACKUP).expect(0);
    server.kill();
    // The same configuration, on a new volume.
    let fresh = Server::start_in(tempfile::tempdir().unwrap(), &[ADMIN], true);
    let deadline = Instant::now() + Duration::from_mins(1);
    while fresh.query("count(up)", "").is_none() {
        assert!(Instant::now() < deadline, "it scrapes nothing");
        std::thread::sleep(Duration::from_millis(100));
    }
    document(&world, fresh.port, &fresh.data(), "");
    let quarantined = world.run(BACKUP).expect(3).json();
    let reasons = quarantined["backups"][0]["reasons"].to_string();
    assert!(reasons.contains("objects, it had"), "{reasons}");
    assert_eq!(fresh.snapshots(), 0);
}

#[test]
fn what_keeps_a_snapshot_away_is_said() {
    let world = World::local();
    let none = || {
        let listed = world.as_writer(&["snapshots", "--json"]).expect(0).json();
        assert_eq!(listed["snapshots"].as_array().unwrap().len(), 0, "{listed}");
    };
    let without = Server::start_in(tempfile::tempdir().unwrap(), &[], false);
    document(&world, without.port, &without.data(), "");
    world.run(BACKUP).expect(1).says("admin APIs disabled").says("--web.enable-admin-api");

    let empty = Server::start_in(tempfile::tempdir().unwrap(), &[ADMIN], false);
    document(&world, empty.port, &empty.data(), "");
    world.run(BACKUP).expect(1).says("holds nothing to capture");
    assert_eq!(empty.snapshots(), 0);
    document(&world, empty.port, Path::new("/no/such/directory"), "");
    world.run(BACKUP).expect(1).says("use Prometheus' data directory /no/such/directory").says("mount it");
    // Another server's directory.
    document(&world, empty.port, &without.data(), "");
    world.run(BACKUP).expect(1).says("is the data directory that of this server?");

    document(&world, support::free_port(), &empty.data(), "");
    world.run(BACKUP).expect(1).says("ask Prometheus at http://127.0.0.1");
    none();
}

#[test]
fn users_are_asked_for_their_passwords() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("web.yml"), format!("basic_auth_users: {{backup: '{HASH}'}}\n")).unwrap();
    let server = Server::start_in(home, &[ADMIN, "--web.config.file=web.yml"], false);
    let world = World::local();
    fs::write(world.path("right"), PASSWORD).unwrap();
    fs::write(world.path("wrong"), "incorrect-pony").unwrap();
    let login = |name: &str| format!("    username: backup\n    password: {{file: {}}}\n", world.path(name).display());
    for (login, text) in
        [(login("wrong"), "denied access"), (String::new(), "denied access"), (login("right"), "nothing to")]
    {
        document(&world, server.port, &server.data(), &login);
        let failed = world.run(BACKUP).expect(1);
        failed.says(text);
        assert!(!failed.err.contains("incorrect-pony") && !failed.err.contains(PASSWORD), "{}", failed.err);
    }
}

/// Takes so many entries, then stops the run.
struct Few(usize);

impl Sink for Few {
    fn add(&mut self, _: Entry, _: Option<Input>) -> Result<(), Stopped> {
        self.0 = self.0.checked_sub(1).ok_or(Stopped)?;
        Ok(())
    }

    fn problem(&mut self, problem: Problem) {
        panic!("{problem:?}");
    }
}

#[test]
fn a_run_that_fails_leaves_nothing_on_the_servers_disk() {
    let mut server = Server::filled(&[ADMIN]);
    let runtime = collect::runtime();
    let spec = |port: u16| {
        let address = format!("http://127.0.0.1:{port}");
        let data_directory = server.data();
        Spec::Prometheus(Prometheus { address, tls: None, username: None, password: None, token: None, data_directory })
    };
    for few in [0, 4, 20] {
        let failed = spec(server.port).open().unwrap().capture(&collect::context(&runtime), &mut Few(few));
        assert!(matches!(failed, Err(SourceError::Stopped(_))), "{failed:?}");
        assert_eq!(server.snapshots(), 0);
    }
    let world = World::local();
    // It falls while it answers.
    for limit in [100, 2_500] {
        document(&world, proxy::interrupted(server.port, limit, || false), &server.data(), "");
        world.run(BACKUP).expect(1).says("Prometheus at http://127.0.0.1");
    }
    server.kill();
    document(&world, server.port, &server.data(), "");
    world.run(BACKUP).expect(1).says("Connection refused");
    let listed = world.as_writer(&["snapshots", "--json"]).expect(0).json();
    assert_eq!(listed["snapshots"].as_array().unwrap().len(), 0, "{listed}");
}
