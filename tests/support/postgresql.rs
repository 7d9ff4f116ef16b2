//! A real PostgreSQL cluster on loopback, in a temporary directory.
#![allow(clippy::disallowed_methods, reason = "the tests start their servers themselves")]

use crate::support::{free_port, output};
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
/// Debian's user and group of nobody.
const NOBODY: u32 = 65_534;

/// A program that must not run as root.
pub fn unprivileged(program: impl AsRef<Path>) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program.as_ref());
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--pdeathsig=KILL", "--"]);
    command.arg(program.as_ref());
    command
}

/// Gives a file to whom such programs run as.
pub fn give(path: &Path) {
    if rustix::process::geteuid().is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

pub fn program(name: &str) -> Command {
    let mut command = unprivileged(Path::new(PROGRAMS).join(name));
    command.env("LC_ALL", "C").env("HOME", "/").current_dir("/").stdin(Stdio::null());
    command
}

pub struct Cluster {
    /// Sockets, logs and whatever a test puts there.
    pub home: TempDir,
    pub data: PathBuf,
    pub port: u16,
    child: Option<Child>,
}

impl Cluster {
    /// A new one that trusts its socket file, and demands passwords over TCP as `rules` (of pg_hba.conf) say.
    pub fn new(rules: &str, settings: &[&str]) -> Self {
        let home = Self::home();
        let data = home.path().join("data");
        output(program("initdb").arg("-D").arg(&data).args(["-U", "postgres", "--no-sync", "-A", "trust"]));
        let rules = format!("local all all trust\nlocal replication all trust\n{rules}\n");
        fs::write(data.join("pg_hba.conf"), rules).unwrap();
        Self::start(home, data, settings)
    }

    pub fn home() -> TempDir {
        let home = TempDir::new().unwrap();
        give(home.path());
        home
    }

    pub fn start(home: TempDir, data: PathBuf, settings: &[&str]) -> Self {
        let mut cluster = Self { home, data, port: 0, child: None };
        cluster.up(settings);
        cluster
    }

    fn up(&mut self, settings: &[&str]) {
        self.port = free_port();
        let mut command = self.server(settings);
        self.child = Some(command.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_mins(2);
        let port = self.port.to_string();
        let ready = || {
            let mut ask = program("pg_isready");
            ask.arg("-q").arg("-h").arg(self.home.path()).args(["-p", &port, "-U", "postgres"]);
            ask.status().unwrap().success()
        };
        while !ready() {
            assert!(Instant::now() < deadline, "PostgreSQL did not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn server(&self, settings: &[&str]) -> Command {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.home.path().join("log")).unwrap();
        let mut command = program("postgres");
        command.arg("-D").arg(&self.data).arg("-k").arg(self.home.path()).args(["-p", &self.port.to_string()]);
        command.args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]);
        for setting in settings {
            command.args(["-c", setting]);
        }
        command.stdout(Stdio::null()).stderr(log);
        command
    }

    /// A server on `data` that is expected to end by itself.
    pub fn refuses_to_start(home: &TempDir, data: &Path) -> String {
        let port = free_port();
        let mut command = program("postgres");
        command.arg("-D").arg(data).arg("-k").arg(home.path()).args(["-p", &port.to_string()]);
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }

    /// A client program on the socket file.
    pub fn client(&self, name: &str) -> Command {
        let mut command = program(name);
        command.arg("-h").arg(self.home.path()).args(["-p", &self.port.to_string(), "-U", "postgres"]);
        command
    }

    #[track_caller]
    pub fn sql(&self, text: &str) -> String {
        let answer = output(self.client("psql").args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text]));
        answer.trim().to_owned()
    }

    /// As a power failure ends it.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let process = rustix::process::Pid::from_child(&child);
            let _ = rustix::process::kill_process(process, rustix::process::Signal::QUIT);
            let _ = child.wait();
        }
    }

    /// A directory that the server may write to.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.home.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        give(&path);
        path
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill();
    }
}
