//! Prometheus and Alertmanager over TLS: by their own web configuration, which wants a password and a certificate, and behind
//! a proxy that wants a token.

use crate::support;
use crate::support::etcd;
use crate::support::world;
use crate::support::world::World;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const PASSWORD: &str = "correct-horse-battery";
/// Of that password.
const HASH: &str = "$2b$04$abcdefghijklmnopqrstuupOWRSKKNe562z1DsLEArFuJDHVyRIMa";
const TOKEN: &str = "correct-horse-staple";
const WRONG: &str = "incorrect-pony";
const SOURCES: [&str; 2] = ["metrics", "alerts"];
/// One block of an old moment.
const SAMPLES: &str = "# HELP old x\n# TYPE old gauge\nold 1 1700000000\nold 2 1700000060\n# EOF\n";
const POST: [&str; 4] = [
    "-H",
    "Content-Type: application/json",
    "-d",
    r#"{"matchers": [{"name": "alertname", "value": "Down", "isRegex": false}], "createdBy": "me", "comment": "works",
        "startsAt": "2024-01-01T00:00:00Z", "endsAt": "2090-01-01T00:00:00Z"}"#,
];

/// A server on a free port of loopback, killed at the end.
struct Daemon {
    child: Child,
    port: u16,
}

impl Daemon {
    fn start(home: &Path, program: &str, arguments: impl FnOnce(u16) -> Vec<String>) -> Self {
        let (port, log) = (support::free_port(), home.join("log"));
        let file = fs::File::create(&log).unwrap();
        let mut command = support::command(program);
        command.current_dir(home).args(arguments(port)).process_group(0).stdin(Stdio::null());
        let child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        let mut daemon = Self { child, port };
        let deadline = Instant::now() + Duration::from_mins(1);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = daemon.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "{program}: {}", fs::read_to_string(log).unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon
    }

    /// What comes after its options is `further`.
    fn prometheus(world: &World, further: &[String]) -> Self {
        let home = world.path("prometheus");
        fs::create_dir(&home).unwrap();
        fs::write(home.join("prometheus.yml"), "global: {external_labels: {cluster: test}}\n").unwrap();
        fs::write(home.join("samples"), SAMPLES).unwrap();
        let mut blocks = support::command("promtool");
        blocks.current_dir(&home).args(["tsdb", "create-blocks-from", "openmetrics", "samples", "data"]);
        assert!(blocks.output().unwrap().status.success());
        Self::start(&home, "prometheus", |port| {
            let own = [
                "--config.file=prometheus.yml",
                "--storage.tsdb.path=data",
                "--storage.tsdb.retention.time=100y",
                "--web.enable-admin-api",
                &format!("--web.listen-address=127.0.0.1:{port}"),
            ];
            own.map(str::to_owned).into_iter().chain(further.iter().cloned()).collect()
        })
    }

    fn alertmanager(world: &World, name: &str, further: &[String]) -> Self {
        let home = world.path(name);
        fs::create_dir(&home).unwrap();
        fs::write(home.join("alertmanager.yml"), "route: {receiver: none}\nreceivers: [{name: none}]\n").unwrap();
        Self::start(&home, "prometheus-alertmanager", |port| {
            let own = [
                "--config.file=alertmanager.yml",
                "--storage.path=data",
                "--cluster.listen-address=",
                &format!("--web.listen-address=127.0.0.1:{port}"),
            ];
            own.map(str::to_owned).into_iter().chain(further.iter().cloned()).collect()
        })
    }

    /// TLS in front of the server at `behind` for whoever has the token; what is below `/elsewhere` leads to `trap`.
    fn proxy(world: &World, name: &str, behind: u16, trap: u16) -> Self {
        let home = world.path(name);
        fs::create_dir(&home).unwrap();
        let at = world.home.path().display();
        Self::start(&home, "/usr/sbin/lighttpd", |port| {
            let config = format!(
                "server.modules = (\"mod_access\", \"mod_redirect\", \"mod_proxy\", \"mod_openssl\")\n\
                 server.document-root = \"{at}/{name}\"\nserver.bind = \"127.0.0.1\"\nserver.port = {port}\n\
                 ssl.engine = \"enable\"\nssl.pemfile = \"{at}/server.pem\"\nssl.privkey = \"{at}/server.key\"\n\
                 $HTTP[\"url\"] =~ \"^/elsewhere/\" {{\n  url.redirect = (\"\" => \"http://127.0.0.1:{trap}/\")\n}}\n\
                 else $REQUEST_HEADER[\"Authorization\"] != \"Bearer {TOKEN}\" {{\n  url.access-deny = (\"\")\n}}\n\
                 proxy.server = (\"\" => ((\"host\" => \"127.0.0.1\", \"port\" => {behind})))\n"
            );
            fs::write(home.join("lighttpd.conf"), config).unwrap();
            ["-D", "-f", "lighttpd.conf"].map(str::to_owned).to_vec()
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        support::kill_group(&mut self.child);
    }
}

/// Both sources; `further` are more fields of each.
fn documents(world: &World, prometheus: &str, alertmanager: &str, further: &str) {
    let text = format!(
        "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: metrics}}\nspec:\n  prometheus:\n    \
         address: {prometheus}\n    dataDirectory: {}\n{further}---\napiVersion: lifeboat.dev/v1\nkind: Source\n\
         metadata: {{name: alerts}}\nspec:\n  alertmanager:\n    address: {alertmanager}\n{further}",
        world.path("prometheus/data").display()
    );
    world.document("sources.yaml", &text);
}

fn backup(world: &World, source: &str) -> world::Ran {
    world.as_writer(&["backup", source, "--json"])
}

/// No capture, for this reason, and no secret is told.
#[track_caller]
fn fail(world: &World, text: &str) {
    for source in SOURCES {
        let failed = backup(world, source).expect(1);
        failed.says(text);
        let said = format!("{}{}", failed.out, failed.err);
        assert!(![PASSWORD, TOKEN, WRONG].iter().any(|secret| said.contains(secret)), "{said}");
    }
    let listed = world.as_writer(&["snapshots", "--json"]).expect(0).json();
    assert_eq!(listed["snapshots"].as_array().unwrap().len(), 0, "{listed}");
}

/// What an Alertmanager says of its silences to somebody whom it knows by `login`, after it was told something.
#[track_caller]
fn silences(address: &str, login: &[&str], tell: &[&str]) -> String {
    let mut curl = support::command("curl");
    let output = curl.args(["-sSf", &format!("{address}/api/v2/silences")]).args(login).args(tell).output().unwrap();
    assert!(output.status.success(), "{address}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_password_and_a_certificate() {
    let world = World::local();
    let at = world.home.path().display().to_string();
    etcd::certificates(world.home.path());
    fs::write(world.path("right"), format!("{PASSWORD}\n")).unwrap();
    fs::write(world.path("wrong"), format!("{WRONG}\n")).unwrap();
    let web = format!(
        "tls_server_config: {{cert_file: {at}/server.pem, key_file: {at}/server.key, client_ca_file: {at}/ca.pem, \
         client_auth_type: RequireAndVerifyClientCert}}\nbasic_auth_users: {{backup: '{HASH}'}}\n"
    );
    fs::write(world.path("web.yml"), web).unwrap();
    let secured = [format!("--web.config.file={at}/web.yml")];
    let prometheus = Daemon::prometheus(&world, &secured);
    let alertmanager = Daemon::alertmanager(&world, "alertmanager", &secured);
    let address = |daemon: &Daemon| format!("https://127.0.0.1:{}", daemon.port);
    let login = |password: &str| format!("    username: backup\n    password: {{file: {at}/{password}}}\n");
    let tls = |ca: &str, client: bool| {
        let client =
            if client { format!(", certificate: {at}/client.pem, key: {at}/client.key") } else { String::new() };
        format!("    tls: {{ca: {at}/{ca}.pem{client}}}\n")
    };
    let known = ["--cacert", "ca.pem", "--cert", "client.pem", "--key", "client.key"].map(|word| match word {
        file if file.contains('.') => format!("{at}/{file}"),
        option => option.to_owned(),
    });
    let user = format!("backup:{PASSWORD}");
    let known: Vec<_> = known.iter().map(String::as_str).chain(["-u", &user]).collect();
    silences(&address(&alertmanager), &known, &POST);

    let both = |further: &str| documents(&world, &address(&prometheus), &address(&alertmanager), further);
    both(&(login("wrong") + &tls("ca", true)));
    fail(&world, "denied access");
    both(&tls("ca", true));
    fail(&world, "denied access");
    both(&(login("right") + &tls("other-ca", true)));
    fail(&world, "certificate");
    both(&(login("right") + &tls("ca", false)));
    fail(&world, "received fatal alert");
    both(&(login("right") + &tls("missing", true)));
    fail(&world, "missing.pem");
    let plain = |daemon: &Daemon| format!("http://127.0.0.1:{}", daemon.port);
    documents(&world, &plain(&prometheus), &plain(&alertmanager), &login("right"));
    fail(&world, "400 Bad Request");

    both(&(login("right") + &tls("ca", true)));
    let doctor = world.as_writer(&["doctor"]);
    assert!(doctor.out.contains("Prometheus 2.") && doctor.out.contains(", 1 silences"), "{}", doctor.out);
    for source in SOURCES {
        backup(&world, source).expect(0);
    }
    let fresh = Daemon::alertmanager(&world, "fresh", &secured);
    documents(&world, &address(&prometheus), &address(&fresh), &(login("right") + &tls("ca", true)));
    let restored = world.as_owner(&["restore", "snapshot", "alerts@1", "--into", "alerts"]).expect(0);
    assert!(restored.out.contains("1 of 1 silences that last are there"), "{}", restored.out);
    let listed = silences(&address(&fresh), &known, &[]);
    assert!(listed.contains("works"), "{listed}");
    world.assert_sound();
}

#[test]
fn a_token_behind_a_proxy() {
    let world = World::local();
    let at = world.home.path().display().to_string();
    etcd::certificates(world.home.path());
    fs::write(world.path("token"), format!("{TOKEN}\n")).unwrap();
    fs::write(world.path("wrong"), format!("{WRONG}\n")).unwrap();
    let below = |path: &str| [format!("--web.external-url=http://127.0.0.1/{path}")];
    let prometheus = Daemon::prometheus(&world, &below("prometheus"));
    let alertmanager = Daemon::alertmanager(&world, "alertmanager", &below("alertmanager"));
    let inside = |daemon: &Daemon| format!("http://127.0.0.1:{}/alertmanager", daemon.port);
    silences(&inside(&alertmanager), &[], &POST);
    let trap = TcpListener::bind("127.0.0.1:0").unwrap();
    let trap_port = trap.local_addr().unwrap().port();
    let first = Daemon::proxy(&world, "first", prometheus.port, trap_port);
    let second = Daemon::proxy(&world, "second", alertmanager.port, trap_port);
    let both = |paths: [&str; 2], further: &str| {
        let address = |daemon: &Daemon, path: &str| format!("https://127.0.0.1:{}{path}", daemon.port);
        documents(&world, &address(&first, paths[0]), &address(&second, paths[1]), further);
    };
    let right = ["/prometheus", "/alertmanager/"];
    let with = |token: &str| format!("    token: {{file: {at}/{token}}}\n    tls: {{ca: {at}/ca.pem}}\n");
    both(right, &with("wrong"));
    fail(&world, "denied access");
    both(right, &format!("    tls: {{ca: {at}/ca.pem}}\n"));
    fail(&world, "denied access");
    both(["", "/no/such"], &with("token"));
    fail(&world, "404 Not Found");
    // A token does not go where a server says.
    both(["/elsewhere"; 2], &with("token"));
    fail(&world, "redirections are not followed");
    trap.set_nonblocking(true).unwrap();
    assert_eq!(trap.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);

    both(right, &with("token"));
    for source in SOURCES {
        backup(&world, source).expect(0);
    }
    let fresh = Daemon::alertmanager(&world, "fresh", &below("alertmanager"));
    let third = Daemon::proxy(&world, "third", fresh.port, trap_port);
    documents(&world, "https://127.0.0.1:1", &format!("https://127.0.0.1:{}/alertmanager", third.port), &with("token"));
    let restored = world.as_owner(&["restore", "snapshot", "alerts@1", "--into", "alerts"]).expect(0);
    assert!(restored.out.contains("1 of 1 silences that last are there"), "{}", restored.out);
    let listed = silences(&inside(&fresh), &[], &[]);
    assert!(listed.contains("works"), "{listed}");
    world.assert_sound();
}
