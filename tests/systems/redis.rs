//! Capture of real Redis servers, through the program and its repository.

use crate::support;
use crate::support::collect::{context, runtime};
use crate::support::etcd;
use crate::support::free_port;
use crate::support::proxy;
use crate::support::proxy::interrupted;
use crate::support::world::{World, made};
use lifeboat::secret::SecretRef;
use lifeboat::source::connection::Tls;
use lifeboat::source::redis::Spec as Redis;
use lifeboat::source::{SourceError, Spec};
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PASSWORD: &str = "correct-horse-battery";

struct Server {
    home: TempDir,
    port: u16,
    /// For its own client.
    access: Vec<String>,
    child: Child,
}

impl Server {
    fn start(settings: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), settings)
    }

    /// With the dump.rdb that lies there, if one does.
    fn start_in(home: TempDir, settings: &[&str]) -> Self {
        let port = free_port();
        let log = fs::File::create(home.path().join("log")).unwrap();
        // One program, and what it does goes by the name that it is called by.
        let mut command = support::command("redis-check-rdb");
        command.arg0("redis-server");
        command.current_dir(home.path()).args(["--save", "", "--bind", "127.0.0.1"]);
        command.args(["--unixsocket", "socket", "--repl-diskless-sync-delay", "0"]);
        if settings.contains(&"--tls-port") {
            command.args(["--port", "0"]);
        } else {
            command.args(["--port", &port.to_string()]);
        }
        command.args(settings.iter().map(|word| word.replace("PORT", &port.to_string())));
        command.stdin(Stdio::null()).stdout(log).stderr(Stdio::null()).process_group(0);
        let server = Self { port, access: Vec::new(), child: command.spawn().unwrap(), home };
        let deadline = Instant::now() + Duration::from_mins(1);
        while !server.client(&["PING"]).is_some_and(|answer| answer.contains("PONG") || answer.contains("NOAUTH")) {
            let log = fs::read_to_string(server.home.path().join("log")).unwrap();
            assert!(Instant::now() < deadline, "Redis did not start: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn client(&self, words: &[&str]) -> Option<String> {
        let mut command = support::command("redis-cli");
        command.arg("-s").arg(self.home.path().join("socket")).args(&self.access).args(words);
        let output = command.output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }

    #[track_caller]
    fn ask(&self, words: &[&str]) -> String {
        self.client(words).unwrap()
    }

    /// Keys of all kinds, and a million bytes in small ones.
    fn fill(&self) {
        let script = "for n = 1, 5000 do redis.call('SET', 'key:' .. n, string.rep(n .. '-', 40)) end \
                      redis.call('HSET', 'hash', 'a', '1', 'b', '2') redis.call('RPUSH', 'list', 'x', 'y', 'z') \
                      redis.call('SADD', 'set', '1', '2', 'three') redis.call('ZADD', 'sorted', 1.5, 'one', 2, 'two') \
                      redis.call('XADD', 'stream', '1-1', 'field', 'value') \
                      redis.call('SET', 'late', 'v', 'PXAT', '4102444800000')";
        self.ask(&["EVAL", script, "0"]);
        self.ask(&["-n", "3", "SET", "elsewhere", "here"]);
    }

    /// Changes with anything that a key holds.
    fn digest(&self) -> String {
        self.ask(&["DEBUG", "DIGEST"])
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

const DEBUG: [&str; 2] = ["--enable-debug-command", "local"];
const BACKUP: &[&str] = &["--writer-key", "writer.key", "backup", "cache", "--json"];

fn document(world: &World, port: u16) {
    let text = format!(
        "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: cache}}\nspec:\n  redis:\n    \
         host: 127.0.0.1\n    port: {port}\n"
    );
    world.document("source.yaml", &text);
}

/// A server that starts from a snapshot.
fn restored(world: &World, reference: &str) -> Server {
    let home = tempfile::tempdir().unwrap();
    world.as_owner(&["restore", "snapshot", reference, "--to", home.path().to_str().unwrap()]).expect(0);
    let rdb = home.path().join("dump.rdb");
    let check = support::command("redis-check-rdb").arg(&rdb).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    Server::start_in(home, &DEBUG)
}

#[test]
fn a_data_set_comes_back() {
    // From the disk of the server, and without.
    for (diskless, way) in [("yes", "diskless"), ("no", "disk")] {
        // It waits for more replicas first, as it does by default.
        let waits = ["--repl-diskless-sync", diskless, "--repl-diskless-sync-delay", "1"];
        let server = Server::start(&[&DEBUG[..], &waits].concat());
        let world = World::local();
        document(&world, server.port);
        // A server that holds nothing is one all the same.
        let empty = world.run(BACKUP).expect(0);
        assert_eq!(empty.json()["backups"][0]["facts"]["objects"], 0);
        server.fill();
        let digest = server.digest();
        let captured = world.run(BACKUP).expect(0);
        assert_eq!(made(&captured).number, 2);
        let facts = captured.json()["backups"][0]["facts"].clone();
        assert_eq!(facts["details"]["sent_from"], way);
        assert_eq!(facts["objects"], 5007);
        assert!(facts["recovery_point_ms"].as_i64().unwrap() > 0 && facts["system"].is_null(), "{facts}");

        server.ask(&["FLUSHALL"]);
        let emptied = world.run(BACKUP).expect(3).json();
        let reasons = emptied["backups"][0]["reasons"].to_string();
        assert!(reasons.contains("it is empty, it had 5007 objects"), "{reasons}");
        drop(server);
        let again = restored(&world, "cache@latest");
        assert_eq!(again.digest(), digest);
        assert_eq!(again.ask(&["GET", "key:4711"]), "4711-".repeat(40));
        assert_eq!(again.ask(&["-n", "3", "GET", "elsewhere"]), "here");
        assert_eq!(again.ask(&["PEXPIRETIME", "late"]), "4102444800000");
        drop(again);
        assert_eq!(restored(&world, "cache@1").ask(&["DBSIZE"]), "0");
        world.assert_sound();
    }
}

#[test]
fn a_server_that_dies_half_way_leaves_no_snapshot() {
    for diskless in ["yes", "no"] {
        let mut server = Server::start(&["--repl-diskless-sync", diskless]);
        server.fill();
        let world = World::local();
        let none = || {
            let listed = world.as_writer(&["snapshots", "--json"]).expect(0).json();
            assert_eq!(listed["snapshots"].as_array().unwrap().len(), 0, "{listed}");
        };
        let port = server.port;
        document(&world, interrupted(port, 100_000, || false));
        world.run(BACKUP).expect(1).says("the server closed the connection");
        none();
        let fall = move || {
            server.kill();
            false
        };
        document(&world, interrupted(port, 100_000, fall));
        world.run(BACKUP).expect(1).says("the server closed the connection");
        none();
    }
}

#[test]
fn damage_on_the_way_is_found() {
    let server = Server::start(&["--repl-diskless-sync", "no"]);
    server.fill();
    let world = World::local();
    document(&world, proxy::damaging(server.port, 100_000));
    world.run(BACKUP).expect(1).says("it is damaged: its checksum is");
    let listed = world.as_writer(&["snapshots", "--json"]).expect(0).json();
    assert_eq!(listed["snapshots"].as_array().unwrap().len(), 0, "{listed}");
}

fn spec(port: u16, user: Option<&str>, password: Option<&Path>) -> Redis {
    Redis {
        host: Some("127.0.0.1".into()),
        port,
        socket: None,
        user: user.map(str::to_owned),
        password: password.map(|path| SecretRef::File(path.to_owned())),
        tls: None,
        insecure: false,
    }
}

/// Checks, then captures.
fn capture(spec: Redis) -> Result<Vec<String>, SourceError> {
    let runtime = runtime();
    let mut source = Spec::Redis(spec).open()?;
    let lines = source.check(&context(&runtime))?;
    let mut sink = Refuse;
    match source.capture(&context(&runtime), &mut sink) {
        // It was offered: that is enough here.
        Err(SourceError::Stopped(_)) => Ok(lines),
        other => other.map(|_| lines),
    }
}

/// Stops the run as soon as there is something to capture.
struct Refuse;

impl lifeboat::entry::Sink for Refuse {
    fn add(
        &mut self,
        entry: lifeboat::entry::Entry,
        _: Option<lifeboat::entry::Input>,
    ) -> Result<(), lifeboat::entry::Stopped> {
        assert_eq!(entry.path, b"dump.rdb");
        Err(lifeboat::entry::Stopped)
    }

    fn problem(&mut self, problem: lifeboat::entry::Problem) {
        panic!("{problem:?}");
    }
}

#[test]
fn users_rights_and_tls() {
    let home = tempfile::tempdir().unwrap();
    etcd::certificates(home.path());
    let file = |name: &str| home.path().join(name);
    let [certificate, key, ca] = ["server.pem", "server.key", "ca.pem"].map(|name| file(name).display().to_string());
    let tls_settings = [
        "--tls-port",
        "PORT",
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        "optional",
    ];
    fs::write(file("right"), format!("{PASSWORD}\n")).unwrap();
    fs::write(file("wrong"), "incorrect-pony\n").unwrap();
    for secured in [false, true] {
        let mut settings = vec!["--requirepass", PASSWORD];
        if secured {
            settings.extend_from_slice(&tls_settings);
        }
        let mut server = Server::start(&settings);
        server.access = ["--no-auth-warning", "-a", PASSWORD].map(str::to_owned).to_vec();
        let tls = secured.then(|| Tls { ca: file("ca.pem"), certificate: None, key: None, server_name: None });
        let with = |user: Option<&str>, password: &str| Redis {
            tls: tls.clone(),
            ..spec(server.port, user, Some(&file(password)))
        };
        let secret = format!(">{PASSWORD}");
        server.ask(&["ACL", "SETUSER", "backup", "on", &secret, "+info", "+replconf", "+psync"]);
        server.ask(&["ACL", "SETUSER", "looker", "on", &secret, "+info"]);
        let lines = capture(with(Some("backup"), "right")).unwrap();
        assert!(lines[0].contains("Redis 7") && lines[0].contains("master, 0 keys"), "{lines:?}");
        capture(with(None, "right")).unwrap();
        let failure = |spec: Redis| {
            let text = capture(spec).unwrap_err().to_string();
            assert!(!text.contains("incorrect-pony") && !text.contains(PASSWORD), "{text}");
            text
        };
        for wrong in [with(Some("backup"), "wrong"), with(None, "wrong"), with(Some("nobody"), "right")] {
            let text = failure(wrong);
            assert!(text.contains("denied access: WRONGPASS"), "{text}");
        }
        let text = failure(Redis { tls: tls.clone(), ..spec(server.port, None, None) });
        assert!(text.contains("denied access: NOAUTH"), "{text}");
        let text = failure(with(Some("looker"), "right"));
        assert!(text.contains("denied access: NOPERM"), "{text}");
        if let Some(tls) = &tls {
            let foreign = Tls { ca: file("other-ca.pem"), ..tls.clone() };
            let text = failure(Redis { tls: Some(foreign), ..with(None, "right") });
            assert!(text.to_lowercase().contains("certificate"), "{text}");
        }
    }
    let gone = free_port();
    let text = capture(spec(gone, None, None)).unwrap_err().to_string();
    assert!(text.contains(&format!("127.0.0.1:{gone}")) && text.contains("refused"), "{text}");
}

#[test]
fn a_probe_sees_a_key() {
    let server = Server::start(&["--requirepass", PASSWORD]);
    let password = server.home.path().join("password");
    fs::write(&password, PASSWORD).unwrap();
    let mut server = server;
    server.access = vec!["-a".into(), PASSWORD.into()];
    server.ask(&["SET", "canary", "sings"]);
    server.ask(&["RPUSH", "list", "x"]);
    let spec = Spec::Redis(Redis {
        host: Some("127.0.0.1".into()),
        port: server.port,
        socket: None,
        user: None,
        password: Some(SecretRef::File(password)),
        tls: None,
        insecure: false,
    });
    let runtime = runtime();
    let look = |key: &str, equals: Option<&str>| {
        let key = serde_json::json!({ "redis": { "source": "cache", "key": key, "equals": equals } });
        let probe: lifeboat::source::probe::Probe = serde_json::from_value(key).unwrap();
        probe.look(&context(&runtime), Some(&spec)).map_err(|error| error.to_string())
    };
    look("canary", None).unwrap();
    look("canary", Some("sings")).unwrap();
    look("list", None).unwrap();
    let other = look("canary", Some("is silent")).unwrap_err();
    assert!(other.contains("another value") && !other.contains("sings"), "{other}");
    assert!(look("none", None).unwrap_err().contains("there is no key"));
}
