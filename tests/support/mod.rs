//! Real servers for the tests: on free loopback ports, in temporary directories, killed when dropped.
#![allow(dead_code, reason = "each test crate uses its part")]
#![allow(clippy::unwrap_used, reason = "tests")]

pub mod collect;
pub mod etcd;
pub mod kubernetes;
pub mod mariadb;
pub mod picture;
pub mod postgresql;
pub mod proxy;
pub mod taken;
mod tool;
pub mod vault;
pub mod world;

pub use tool::tool;

use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
use lifeboat::store::s3::{Credentials, LockMode, Settings};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener as TokioListener, TcpStream as TokioStream};
use tokio::sync::watch;

pub const ACCESS_KEY: &str = "lifeboat-tests";
pub const SECRET_KEY: &str = "not-a-secret-but-long-enough";

const READY: Duration = Duration::from_mins(1);

/// A running server.
pub struct Server {
    child: Child,
    pub dir: tempfile::TempDir,
    host: String,
    pub port: u16,
}

impl Server {
    pub fn url(&self) -> String {
        format!("http://{}:{}", self.host, self.port)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        kill_group(&mut self.child);
    }
}

#[expect(clippy::disallowed_methods, reason = "the tests start real programs")]
pub fn command(program: impl AsRef<Path>) -> Command {
    Command::new(program.as_ref())
}

/// Kills a program that leads a group, with all that it has started.
pub fn kill_group(leader: &mut Child) {
    if let Some(group) = i32::try_from(leader.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = leader.wait();
}

/// What a program prints; it must succeed.
#[track_caller]
pub fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// An access control list, as the kernel keeps it.
pub fn posix_acl() -> Vec<u8> {
    // user::rw-, user:1234:r--, group::r--, mask::r--, other::---
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(1_u16, 6_u16, u32::MAX), (2, 4, 1234), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
    {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

/// A loopback port that is free, and still is when a server takes it: below those that the kernel gives to connections and
/// to whoever asks for any; no process gets one twice before it had them all.
pub fn free_port() -> u16 {
    const PORTS: u32 = 20_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let next =
        || (std::process::id().wrapping_mul(97).wrapping_add(GIVEN.fetch_add(1, Relaxed)) % PORTS) as u16 + 10_000;
    let mut ports = (0..PORTS).map(|_| next());
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

pub fn free_ports<const N: usize>() -> [u16; N] {
    [(); N].map(|()| free_port())
}

fn start(name: &str, ready: &str, configure: impl Fn(&mut Command, &Path, u16)) -> Server {
    start_at("127.0.0.1", name, ready, configure)
}

fn start_at(host: &str, name: &str, ready: &str, configure: impl Fn(&mut Command, &Path, u16)) -> Server {
    start_program(&tool(name), host, ready, configure)
}

/// Starts a server and waits until `ready` answers 200, or any answer if it is empty.
fn start_program(program: &Path, host: &str, ready: &str, configure: impl Fn(&mut Command, &Path, u16)) -> Server {
    let name = program.display();
    // Another process may take a port between its choice and its use.
    for _ in 0..3 {
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        fs::create_dir(dir.path().join("data")).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let mut command = command(program);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        command.current_dir(dir.path());
        configure(&mut command, dir.path(), port);
        let mut server = Server { child: command.spawn().unwrap(), dir, host: host.into(), port };
        let deadline = Instant::now() + READY;
        while server.child.try_wait().unwrap().is_none() {
            if answers(host, port, ready) {
                return server;
            }
            assert!(Instant::now() < deadline, "{name} is not ready after {READY:?}:\n{}", server.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        eprintln!("{name} ended at once:\n{}", server.log());
    }
    panic!("{name} does not start");
}

fn answers(host: &str, port: u16, path: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect((host, port)) else { return false };
    let mut head = [0; 12];
    let asked = stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .and_then(|()| write!(stream, "GET /{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"))
        .and_then(|()| stream.read_exact(&mut head));
    asked.is_ok() && head.starts_with(b"HTTP/1.") && (path.is_empty() || head.ends_with(b" 200"))
}

pub fn minio() -> Server {
    minio_at("127.0.0.1")
}

/// On another of this machine's own addresses.
pub fn minio_at(host: &str) -> Server {
    minio_with(host, &[])
}

/// It serves one request at a time, and tells all others to slow down.
pub fn minio_that_throttles() -> Server {
    minio_with("127.0.0.1", &[("MINIO_API_REQUESTS_MAX", "1"), ("MINIO_API_REQUESTS_DEADLINE", "10ms")])
}

fn minio_with(host: &str, settings: &[(&str, &str)]) -> Server {
    start_at(host, "minio", "minio/health/ready", |command, dir, port| {
        command.envs(settings.iter().copied());
        command.args(["server", "--quiet", "--address", &format!("{host}:{port}"), "data"]);
        command.env("MINIO_ROOT_USER", ACCESS_KEY).env("MINIO_ROOT_PASSWORD", SECRET_KEY);
        command.env("MINIO_BROWSER", "off").env("HOME", dir);
        // So that it can encrypt at rest.
        command.env("MINIO_KMS_SECRET_KEY", "tests:bGlmZWJvYXQtdGVzdHMtbGlmZWJvYXQtdGVzdHMtMTI=");
    })
}

/// With `versioning`, its buckets can be versioned and locked.
pub fn versitygw(versioning: bool) -> Server {
    start("versitygw", "", |command, dir, port| {
        command.args(["--quiet", "--port", &format!("127.0.0.1:{port}"), "posix"]);
        if versioning {
            fs::create_dir(dir.join("versions")).unwrap();
            command.arg("--versioning-dir").arg(dir.join("versions"));
        }
        command.arg("data").env("ROOT_ACCESS_KEY", ACCESS_KEY).env("ROOT_SECRET_KEY", SECRET_KEY);
    })
}

/// Has an empty DynamoDB, for whoever asks.
pub fn moto() -> Server {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/setup");
    let made = command(script).arg("--moto").output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let program = String::from_utf8(made.stdout).unwrap();
    start_program(Path::new(program.trim()), "127.0.0.1", "moto-api/", |command, _, port| {
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
    })
}

/// A web server for whoever has the password. Below `/states/` files are read and put; `/lock.sh` is a lock, in the file
/// `data/lock`.
pub fn states(user: &str, password: &str) -> Server {
    const LOCK: &str = "case $REQUEST_METHOD in\n\
        LOCK)\n  cat >data/lock.$$\n  if ln data/lock.$$ data/lock 2>/dev/null\n  \
        then printf 'Status: 200 OK\\r\\n\\r\\n'\n  else printf 'Status: 423 Locked\\r\\n\\r\\n'; cat data/lock\n  fi\n  \
        rm data/lock.$$\n  ;;\n\
        UNLOCK) rm data/lock; printf 'Status: 200 OK\\r\\n\\r\\n' ;;\n\
        *) printf 'Status: 405 Method Not Allowed\\r\\n\\r\\n' ;;\nesac\n";
    start_program(Path::new("/usr/sbin/lighttpd"), "127.0.0.1", "", |command, dir, port| {
        fs::create_dir_all(dir.join("data/states")).unwrap();
        fs::write(dir.join("lock.sh"), format!("cd {}\n{LOCK}", dir.display())).unwrap();
        fs::write(dir.join("passwords"), format!("{user}:{password}\n")).unwrap();
        let config = format!(
            "server.modules = (\"mod_auth\", \"mod_authn_file\", \"mod_alias\", \"mod_webdav\", \"mod_cgi\")\n\
             server.document-root = \"{0}/data\"\nserver.bind = \"127.0.0.1\"\nserver.port = {port}\n\
             server.stat-cache-engine = \"disable\"\n\
             auth.backend = \"plain\"\nauth.backend.plain.userfile = \"{0}/passwords\"\n\
             auth.require = (\"/\" => (\"method\" => \"basic\", \"realm\" => \"states\", \"require\" => \"valid-user\"))\n\
             alias.url = (\"/lock.sh\" => \"{0}/lock.sh\")\ncgi.assign = (\".sh\" => \"/bin/sh\")\n\
             $HTTP[\"url\"] =~ \"^/states/\" {{ webdav.activate = \"enable\" }}\n",
            dir.display()
        );
        fs::write(dir.join("lighttpd.conf"), config).unwrap();
        command.args(["-D", "-f", "lighttpd.conf"]);
    })
}

pub fn etcd() -> Server {
    etcd_on(Path::new("data/member"))
}

/// On a data directory that may hold something already.
pub fn etcd_on(data: &Path) -> Server {
    start("etcd", "health", |command, _, port| {
        let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", free_port()));
        command.arg("--data-dir").arg(data);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}"), "--log-level", "warn"]);
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Bucket {
    Plain,
    Versioned,
    Locked,
}

/// A client that goes past Lifeboat.
pub fn client(server: &Server) -> aws_sdk_s3::Client {
    let credentials = aws_sdk_s3::config::Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "tests");
    aws_sdk_s3::Client::from_conf(
        aws_sdk_s3::Config::builder()
            .behavior_version_latest()
            .region(aws_sdk_s3::config::Region::new("us-east-1"))
            .credentials_provider(credentials)
            .endpoint_url(server.url())
            .force_path_style(true)
            .build(),
    )
}

/// Makes a bucket and says how to use it.
pub async fn bucket(server: &Server, name: &str, kind: Bucket) -> Settings {
    let client = client(server);
    let locked = (kind == Bucket::Locked).then_some(true);
    client.create_bucket().bucket(name).set_object_lock_enabled_for_bucket(locked).send().await.unwrap();
    if kind == Bucket::Versioned {
        let on = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
        client.put_bucket_versioning().bucket(name).versioning_configuration(on).send().await.unwrap();
    }
    Settings {
        prefix: "some/prefix".into(),
        endpoint: Some(server.url()),
        path_style: true,
        credentials: Credentials::Static {
            access_key: ACCESS_KEY.into(),
            secret_key: SECRET_KEY.into(),
            session_token: None,
        },
        lock: (kind == Bucket::Locked).then_some(LockMode::Governance),
        ..Settings::new(name)
    }
}

/// A connection to a server that can be made to lose answers, or cut.
pub struct Wire {
    pub port: u16,
    faults: Arc<Faults>,
    task: tokio::task::JoinHandle<()>,
}

struct Faults {
    lose: AtomicU32,
    sent: AtomicU64,
    /// Bytes of answers still passed on before every connection ends.
    left: AtomicU64,
    cut: watch::Sender<bool>,
    stall: watch::Sender<bool>,
}

impl Wire {
    pub async fn to(server: &Server) -> Self {
        let listener = TokioListener::bind("127.0.0.1:0").await.unwrap();
        let (port, target) = (listener.local_addr().unwrap().port(), server.port);
        let (lose, sent, left) = (AtomicU32::new(0), AtomicU64::new(0), AtomicU64::new(u64::MAX));
        let faults =
            Arc::new(Faults { lose, sent, left, cut: watch::Sender::new(false), stall: watch::Sender::new(false) });
        let shared = Arc::clone(&faults);
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let faults = Arc::clone(&shared);
                tokio::spawn(async move {
                    let mut cut = faults.cut.subscribe();
                    tokio::select! { () = faults.pass(near, target) => {}, _ = cut.wait_for(|cut| *cut) => {} }
                });
            }
        });
        Self { port, faults, task }
    }

    /// Cuts the connection instead of passing the next `count` answers on.
    pub fn lose_answers(&self, count: u32) {
        self.faults.lose.store(count, Relaxed);
    }

    pub fn still_to_lose(&self) -> u32 {
        self.faults.lose.load(Relaxed)
    }

    /// Ends every connection, and each new one at once, until it is mended.
    pub fn cut(&self, cut: bool) {
        self.faults.cut.send_replace(cut);
    }

    /// Keeps what is sent to the server, and no connection ends, until it is mended.
    pub fn stall(&self, stall: bool) {
        self.faults.stall.send_replace(stall);
    }

    /// Ends every connection when so many bytes more of answers have been passed on.
    pub fn cut_after(&self, bytes: u64) {
        self.faults.left.store(bytes, Relaxed);
    }

    /// Bytes passed on to the server so far.
    pub fn sent(&self) -> u64 {
        self.faults.sent.load(Relaxed)
    }
}

impl Faults {
    async fn pass(&self, near: TokioStream, target: u16) {
        let Ok(far) = TokioStream::connect(("127.0.0.1", target)).await else { return };
        let ((mut near_in, mut near_out), (mut far_in, mut far_out)) = (near.into_split(), far.into_split());
        let requests = async {
            let mut buffer = vec![0; 1 << 16];
            let mut stall = self.stall.subscribe();
            while let Ok(n @ 1..) = near_in.read(&mut buffer).await {
                let _ = stall.wait_for(|stall| !*stall).await; // the sender is here
                self.sent.fetch_add(n as u64, Relaxed);
                if far_out.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
        };
        let answers = async {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(n @ 1..) = far_in.read(&mut buffer).await {
                // The interim answer 100 is not the one to lose.
                let interim = buffer.starts_with(b"HTTP/1.1 100");
                let fewer = |left: u32| left.checked_sub(1);
                if !interim && self.lose.fetch_update(Relaxed, Relaxed, fewer).is_ok() {
                    return;
                }
                let fewer = |left: u64| left.checked_sub(n as u64);
                if self.left.fetch_update(Relaxed, Relaxed, fewer).is_err() {
                    return;
                }
                if near_out.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! { () = requests => {}, () = answers => {} }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}
