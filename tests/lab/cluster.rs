//! A cluster of the lab, taken down when dropped.

use crate::support::command;
use serde_json::Value;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub struct Cluster {
    pub name: &'static str,
}

/// When it began, and its name.
pub type Job = (String, String);

/// Three tests at a time for two processors: with more, what they wait for comes too late.
pub struct Turn;

static AT_WORK: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

impl Turn {
    pub fn take() -> Self {
        let places = (3 * std::thread::available_parallelism().map_or(1, usize::from) / 2).max(1);
        let at_work = AT_WORK.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at_work =
            AT_WORK.1.wait_while(at_work, |at_work| *at_work >= places).unwrap_or_else(PoisonError::into_inner);
        *at_work += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *AT_WORK.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        AT_WORK.1.notify_one();
    }
}

/// Asks until there is an answer.
pub fn wait<T>(limit: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not in {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn script(name: &str) -> Command {
    command(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab").join(name))
}

fn number(name: &str) -> u8 {
    match name {
        "test-a" => 3,
        "test-b" => 4,
        "test-c" => 5,
        "test-d" => 6,
        "test-e" => 7,
        "test-f" => 8,
        _ => panic!("the tests have no cluster {name}"),
    }
}

#[expect(clippy::disallowed_methods, reason = "where the lab keeps its state")]
fn state_of(name: &str) -> PathBuf {
    let given = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let root = given("LIFEBOAT_LAB").unwrap_or_else(|| {
        let state = given("XDG_STATE_HOME").unwrap_or_else(|| given("HOME").unwrap().join(".local/state"));
        state.join("lifeboat/lab")
    });
    root.join(name)
}

fn succeed(command: &mut Command) -> Result<Vec<u8>, String> {
    let output = command.stdin(Stdio::null()).output().unwrap();
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

/// Begins to bring a cluster up and is killed half-way.
pub fn interrupt_up(name: &str) {
    let mut up = script("up").arg(name).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let log = state_of(name).join("logs/kube-apiserver.log");
    wait(Duration::from_mins(2), "the start of the API server", || log.exists().then_some(()));
    up.kill().unwrap();
    up.wait().unwrap();
}

impl Cluster {
    pub fn up(name: &'static str) -> Self {
        // From now on there may be something to take down.
        let cluster = Self { name };
        let table = cluster.lab("up", &[]);
        assert!(table.contains("coredns") && !table.contains("Not ready"), "{table}");
        cluster
    }

    /// Runs one of the lab's scripts on it.
    #[track_caller]
    pub fn lab(&self, name: &str, arguments: &[&str]) -> String {
        let output = succeed(script(name).arg(self.name).args(arguments));
        String::from_utf8(output.unwrap_or_else(|error| panic!("tests/lab/{name} {}: {error}", self.name))).unwrap()
    }

    /// Lifeboat's own image, with the program under test.
    pub fn load_lifeboat(&self) {
        let archive = tempfile::NamedTempFile::new().unwrap();
        succeed(script("lifeboat-image").arg(env!("CARGO_BIN_EXE_lifeboat")).arg(archive.path())).unwrap();
        self.lab("load", &[archive.path().to_str().unwrap()]);
    }

    pub fn state(&self) -> PathBuf {
        state_of(self.name)
    }

    /// What `/etc/kubernetes` is elsewhere.
    pub fn etc(&self) -> PathBuf {
        self.state().join("kubernetes")
    }

    pub fn pki(&self) -> PathBuf {
        self.etc().join("pki")
    }

    /// 1: of this machine, on the link to the cluster; 2: of the node.
    pub fn address(&self, end: u8) -> String {
        format!("10.201.{}.{end}", number(self.name))
    }

    pub fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        let output = succeed(script("kubectl").arg(self.name).arg("--request-timeout=30s").args(arguments));
        output.map(|output| String::from_utf8(output).unwrap())
    }

    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments).unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }

    #[track_caller]
    pub fn get(&self, arguments: &[&str]) -> String {
        self.kubectl(&[&["get"], arguments].concat())
    }

    pub fn apply(&self, manifest: &Value) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(manifest.to_string().as_bytes()).unwrap();
        self.kubectl(&["apply", "-f", file.path().to_str().unwrap()]);
    }

    pub fn etcd(&self, arguments: &[&str]) -> Vec<u8> {
        let pki = self.pki();
        let mut ctl = command(self.state().join("bin/etcdctl"));
        ctl.args(["--endpoints", &format!("https://{}:2379", self.address(2))]);
        for (option, file) in [("--cacert", "etcd-ca.crt"), ("--cert", "etcd-client.crt"), ("--key", "etcd-client.key")]
        {
            ctl.arg(option).arg(pki.join(file));
        }
        succeed(ctl.args(arguments)).unwrap_or_else(|error| panic!("etcdctl {arguments:?}: {error}"))
    }

    fn jobs(&self, namespace: &str) -> Vec<Value> {
        let list = self.get(&["-n", namespace, "jobs", "-o", "json"]);
        serde_json::from_str::<Value>(&list).unwrap()["items"].as_array().unwrap().clone()
    }

    pub fn finished_jobs(&self, namespace: &str) -> Vec<Job> {
        self.jobs(namespace).iter().filter(|job| job["status"]["succeeded"] == 1).map(identify).collect()
    }

    pub fn newest_job(&self, namespace: &str) -> Option<Job> {
        self.jobs(namespace).iter().map(identify).max()
    }
}

fn identify(job: &Value) -> Job {
    let metadata = &job["metadata"];
    let field = |name: &str| metadata[name].as_str().unwrap_or_default().to_owned();
    (field("creationTimestamp"), field("name"))
}

impl Cluster {
    /// What may explain a failure.
    fn tell(&self) {
        let pods = self.try_kubectl(&["get", "pods,jobs,nodes", "-A", "-o", "wide"]);
        let events = self.try_kubectl(&["get", "events", "-A", "--field-selector", "type=Warning"]);
        eprintln!("{}: {}\n{}", self.name, pods.unwrap_or_else(|why| why), events.unwrap_or_else(|why| why));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell();
            let _ = succeed(script("down").arg(self.name));
            return;
        }
        self.lab("down", &[]);
    }
}

/// No process, mount, network link, control group or file of it.
pub fn assert_nothing_is_left(name: &str) {
    let state = state_of(name);
    assert!(!state.exists(), "{}", state.display());
    let mark = state.to_str().unwrap().as_bytes();
    for process in fs::read_dir("/proc").unwrap() {
        let line = fs::read(process.unwrap().path().join("cmdline")).unwrap_or_default();
        let found = line.windows(mark.len()).any(|window| window == mark);
        assert!(!found, "{}", String::from_utf8_lossy(&line));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(state.to_str().unwrap()), "{mounts}");
    assert!(!Path::new(&format!("/sys/class/net/lifeboat-{}", number(name))).exists());
    let mut directories = vec![PathBuf::from("/sys/fs/cgroup")];
    for _ in 0..2 {
        directories = directories
            .iter()
            .flat_map(|directory| fs::read_dir(directory).unwrap())
            .map(|e| e.unwrap().path())
            .collect();
        let own = directories.iter().find(|path| path.ends_with(format!("lifeboat-{name}")));
        assert_eq!(own, None);
        directories.retain(|path| path.is_dir());
    }
}
