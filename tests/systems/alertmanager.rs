//! Real Alertmanagers: silences captured, lost, and posted to a fresh server.

use crate::support;
use crate::support::proxy;
use crate::support::world::{Ran, World, finish, made};
use serde_json::Value;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const BACKUP: &[&str] = &["--writer-key", "writer.key", "backup", "alerts", "--json"];
const PASSWORD: &str = "correct-horse-battery";
/// Of that password.
const HASH: &str = "$2b$04$abcdefghijklmnopqrstuupOWRSKKNe562z1DsLEArFuJDHVyRIMa";
const CONFIG: &str = "route: {receiver: people}\nreceivers:\n- name: people\n  webhook_configs:\n  - url: http://127.0.0.1:1/\n    \
                      http_config: {basic_auth: {username: me, password: tell-nobody}}\n";

struct Server {
    home: TempDir,
    port: u16,
    child: Child,
}

impl Server {
    fn start(settings: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), settings)
    }

    fn start_in(home: TempDir, settings: &[&str]) -> Self {
        let port = support::free_port();
        fs::write(home.path().join("alertmanager.yml"), CONFIG).unwrap();
        let log = fs::File::create(home.path().join("log")).unwrap();
        let mut command = support::command("prometheus-alertmanager");
        command.current_dir(home.path()).args(["--config.file=alertmanager.yml", "--storage.path=data"]);
        command.args(["--cluster.listen-address=", &format!("--web.listen-address=127.0.0.1:{port}")]).args(settings);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        let server = Self { port, child: command.spawn().unwrap(), home };
        let deadline = Instant::now() + Duration::from_mins(1);
        let url = format!("http://127.0.0.1:{port}/-/ready");
        while !support::command("curl").args(["-s", "-o", "/dev/null", &url]).status().unwrap().success() {
            let log = fs::read_to_string(server.home.path().join("log")).unwrap();
            assert!(Instant::now() < deadline, "Alertmanager did not start: {log}");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    #[track_caller]
    fn tool(&self, arguments: &[&str]) -> String {
        let url = format!("--alertmanager.url=http://127.0.0.1:{}", self.port);
        let output = support::command("amtool").arg(url).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Of three kinds, and one that has ended. The id of the first.
    fn fill(&self) -> String {
        let add = |words: &[&str]| self.tool(&[&["silence", "add", "--author=me"], words].concat());
        let first = add(&["--comment=works", "--duration=2h", "alertname=Down", "instance=~web.*"]);
        add(&["--comment=not these", "--duration=3h", "severity!=page", "team!~\"a|b\""]);
        add(&["--comment=later", "--start=2090-01-01T00:00:00Z", "--end=2091-01-01T00:00:00Z", "job=nightly"]);
        let ended = add(&["--comment=over", "--duration=1h", "alertname=Over"]);
        self.tool(&["silence", "expire", &ended]);
        first
    }

    /// What lasts: matchers, ends, comments, not ids.
    fn silences(&self) -> Vec<String> {
        let listed: Value = serde_json::from_str(&self.tool(&["silence", "query", "-o", "json"])).unwrap();
        let silences = listed.as_array().unwrap().iter();
        let mut silences: Vec<_> = silences
            .map(|s| format!("{} {} {} {}", s["matchers"], s["endsAt"], s["createdBy"], s["comment"]))
            .collect();
        silences.sort();
        silences
    }

    fn kill(&mut self) {
        support::kill_group(&mut self.child);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn document(world: &World, port: u16, further: &str) {
    let text = format!(
        "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: alerts}}\nspec:\n  alertmanager:\n    \
         address: http://127.0.0.1:{port}\n{further}"
    );
    world.document("source.yaml", &text);
}

fn restore(world: &World, further: &[&str]) -> Ran {
    world.as_owner(&[&["restore", "snapshot", "alerts@1", "--into", "alerts", "--json"], further].concat())
}

fn actions(ran: &Ran) -> Vec<String> {
    let changes = ran.json()["changes"].clone();
    changes.as_array().unwrap().iter().map(|change| change["action"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn silences_come_back_once() {
    let mut server = Server::start(&[]);
    let first = server.fill();
    let world = World::local();
    let config = server.home.path().join("alertmanager.yml");
    document(&world, server.port, &format!("    configFile: {}\n", config.display()));
    let captured = world.run(BACKUP).expect(0);
    let facts = captured.json()["backups"][0]["facts"].clone();
    assert_eq!(facts["objects"], 4, "{facts}");
    assert_eq!((&facts["details"]["silences"], &facts["details"]["silences_ended"]), (&"3".into(), &"1".into()));
    assert!(facts["recovery_point_ms"].as_i64().unwrap() > 0);
    let again = made(&world.run(BACKUP).expect(0));
    assert!(again.new_bytes < 1_000, "{}", again.new_bytes);
    let silences = server.silences();
    assert_eq!(silences.len(), 3);
    world.as_owner(&["export", "alerts@1", "config/alertmanager.yml", "-o", "config.yml"]).expect(0);
    assert_eq!(fs::read_to_string(world.path("config.yml")).unwrap(), CONFIG);

    // To the server itself: nothing. Then somebody ends one.
    assert_eq!(actions(&restore(&world, &[]).expect(0)), ["unchanged"; 3]);
    server.tool(&["silence", "expire", &first]);
    let kept = restore(&world, &[]).expect(0);
    assert_eq!(actions(&kept).iter().filter(|action| *action == "skip").count(), 1, "{}", kept.out);
    assert_eq!(server.silences().len(), 2);
    let target = format!("http://127.0.0.1:{}", server.port);
    let updated = restore(&world, &["--existing", "update", "--yes", "--target-id", &target]).expect(0);
    assert_eq!(actions(&updated).iter().filter(|action| *action == "update").count(), 1, "{}", updated.out);
    assert_eq!(server.silences(), silences);

    server.kill();
    let fresh = Server::start(&[]);
    document(&world, fresh.port, "");
    let planned = restore(&world, &["--dry-run"]).expect(0);
    assert_eq!((actions(&planned), fresh.silences().len()), (vec!["create".into(); 3], 0));
    let restored = restore(&world, &[]).expect(0);
    assert!(restored.out.contains("3 of 3 silences that last are there"), "{}", restored.out);
    assert_eq!(fresh.silences(), silences);
    // A second time nothing is made a second time.
    assert_eq!(actions(&restore(&world, &[]).expect(0)), ["unchanged"; 3]);
    assert_eq!(fresh.silences(), silences);

    // Without Lifeboat, by Alertmanager's own tool.
    let third = Server::start(&[]);
    world.as_owner(&["export", "alerts@1", "-o", "silences.json"]).expect(0);
    third.tool(&["silence", "import", "--force", world.path("silences.json").to_str().unwrap()]);
    assert_eq!(third.silences(), silences);
    world.assert_sound();
}

#[test]
fn what_has_ended_since_stays_ended() {
    let server = Server::start(&[]);
    server.tool(&["silence", "add", "--author=me", "--comment=short", "--duration=4s", "alertname=Short"]);
    server.tool(&["silence", "add", "--author=me", "--comment=long", "--duration=1h", "alertname=Long"]);
    let world = World::local();
    document(&world, server.port, "");
    world.run(BACKUP).expect(0);
    let deadline = Instant::now() + Duration::from_mins(1);
    while server.silences().len() > 1 {
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(100));
    }
    let fresh = Server::start(&[]);
    document(&world, fresh.port, "");
    let planned = restore(&world, &["--dry-run"]).expect(0);
    assert!(planned.out.contains("1 silences of the snapshot have ended"), "{}", planned.out);
    restore(&world, &[]).expect(0);
    assert_eq!(fresh.silences(), server.silences());
}

#[test]
fn a_server_that_lost_its_volume_goes_to_quarantine() {
    let server = Server::start(&[]);
    let world = World::local();
    document(&world, server.port, "");
    // None at all is a legal state; the configuration is what the server tells of it.
    let empty = world.run(BACKUP).expect(0);
    let facts = empty.json()["backups"][0]["facts"].clone();
    assert_eq!((&facts["objects"], &facts["details"]["secrets_masked_in_config"]), (&0.into(), &"1".into()), "{facts}");
    world.as_owner(&["export", "alerts@1", "config/alertmanager.yml", "-o", "config.yml"]).expect(0);
    let config = fs::read_to_string(world.path("config.yml")).unwrap();
    assert!(config.contains("receiver: people") && !config.contains("tell-nobody"), "{config}");

    server.fill();
    world.run(BACKUP).expect(0);
    let fresh = Server::start(&[]);
    document(&world, fresh.port, "");
    let quarantined = world.run(BACKUP).expect(3).json();
    let reasons = quarantined["backups"][0]["reasons"].to_string();
    assert!(reasons.contains("it is empty, it had 4 objects"), "{reasons}");
}

#[test]
fn what_keeps_a_capture_away_is_said() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("web.yml"), format!("basic_auth_users: {{backup: '{HASH}'}}\n")).unwrap();
    let mut server = Server::start_in(home, &["--web.config.file=web.yml"]);
    let world = World::local();
    fs::write(world.path("right"), PASSWORD).unwrap();
    fs::write(world.path("wrong"), "incorrect-pony").unwrap();
    fs::write(world.path("empty.yml"), "").unwrap();
    let login = |name: &str| format!("    username: backup\n    password: {{file: {}}}\n", world.path(name).display());
    let config = |path: &str| format!("{}    configFile: {path}\n", login("right"));
    let fails = |port: u16, further: &str, text: &str| {
        document(&world, port, further);
        let failed = world.run(BACKUP).expect(1);
        failed.says(text);
        assert!(!failed.err.contains("incorrect-pony") && !failed.err.contains(PASSWORD), "{}", failed.err);
    };
    fails(server.port, &login("wrong"), "denied access");
    fails(server.port, "", "denied access");
    fails(server.port, &config("/no/such/file"), "read Alertmanager's configuration /no/such/file");
    fails(server.port, &config(&world.path("empty.yml").display().to_string()), "it is empty");
    // It falls while it answers.
    fails(proxy::interrupted(server.port, 200, || false), &login("right"), "ask Alertmanager at");
    fails(proxy::interrupted(server.port, 900, || false), &login("right"), "Alertmanager at");
    let another = support::minio();
    fails(another.port, &login("right"), "Alertmanager at");
    server.kill();
    fails(server.port, &login("right"), "ask Alertmanager at");
    let listed = world.as_writer(&["snapshots", "--json"]).expect(0).json();
    assert_eq!(listed["snapshots"].as_array().unwrap().len(), 0, "{listed}");
}

/// As where a cluster's DNS has too much to do.
#[test]
fn a_name_that_is_not_known_yet_is_asked_for_again() {
    let server = Server::start(&[]);
    server.fill();
    let world = World::local();
    let text = "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {name: alerts}\nspec:\n  alertmanager:\n    \
                address: http://alerts.test:";
    world.document("source.yaml", &format!("{text}{}\n", server.port));
    let (hosts, order) = (world.path("hosts"), world.path("nsswitch.conf"));
    fs::write(&order, "hosts: files\n").unwrap();
    let begin = || {
        fs::write(&hosts, "").unwrap();
        let own =
            "mount --bind hosts /etc/hosts && mount --bind nsswitch.conf /etc/nsswitch.conf && exec \"$0\" \"$@\"";
        let program = world.program(BACKUP);
        let mut command = support::command("unshare");
        command.args(["--mount", "sh", "-c", own]).arg(program.get_program()).args(program.get_args()).env_clear();
        command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.current_dir(world.home.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    finish(begin()).expect(1).says("dns error").says("alerts.test");
    let backup = begin();
    std::thread::sleep(Duration::from_millis(1500));
    fs::write(&hosts, "127.0.0.1 alerts.test\n").unwrap();
    assert_eq!(made(&finish(backup).expect(0)).number, 1);
}
