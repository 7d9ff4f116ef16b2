//! The programs that restore-plans/platform.yaml runs, with the paths of a directory in place of those of a node. etcdutl and
//! etcdctl are real. systemctl and crictl are not: what stands for them takes the words that the real ones take
//! (systemctl(1), crictl(1)) and no others.

#![expect(clippy::disallowed_methods, reason = "the programs are started as a plan does")]

use crate::support::etcd::Cluster;
use crate::support::{output, tool};
use lifeboat::config::Config;
use lifeboat::restore::plan::Doing;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const SYSTEMCTL: &str = r#"#!/bin/sh
echo "systemctl $*" >>"$NODE/log"
case "$*" in "stop kubelet" | "restart kubelet") ;; *) exit 1 ;; esac
"#;

const CRICTL: &str = r#"#!/bin/sh
echo "crictl $*" >>"$NODE/log"
[ "$CONTAINER_RUNTIME_ENDPOINT" = unix:///run/containerd/containerd.sock ] || exit 1
[ ! -e "$NODE/no-runtime" ] || exit 1
case "$1 $2 $3" in
"ps --quiet --name")
  [ -e "$NODE/names" ] || exit 0
  grep -E "$4" "$NODE/names" | sed 's/^/id-of-/'
  ;;
"stop --timeout=10 id-of-"*) ;;
*) exit 1 ;;
esac
"#;

/// A directory that stands for a node.
struct Node {
    root: tempfile::TempDir,
    config: Config,
}

impl Node {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let top = Path::new(env!("CARGO_MANIFEST_DIR"));
        let config = Config::load(&[top.join("schedules"), top.join("restore-plans")]).unwrap();
        let node = Self { root, config };
        for (name, text) in [("systemctl", SYSTEMCTL), ("crictl", CRICTL)] {
            let program = node.write(&format!("bin/{name}"), text);
            fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
        }
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name.trim_start_matches('/'))
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The words that a step runs, with `changed` in them.
    fn words(&self, step: &str, changed: &[(&str, &str)]) -> Vec<String> {
        let step = self.config.plans["platform"].steps.iter().find(|one| one.name == step).unwrap();
        let Doing::Run(run) = &step.doing else { panic!("{} runs nothing", step.name) };
        let change = |word: &String| changed.iter().fold(word.clone(), |word, (from, to)| word.replace(from, to));
        run.command.iter().map(change).collect()
    }

    fn run(&self, step: &str, changed: &[(&str, &str)]) -> Output {
        let words = self.words(step, changed);
        let tools = tool("etcdutl").parent().unwrap().display().to_string();
        let path = format!("{}:{tools}:/usr/bin:/bin", self.path("bin").display());
        Command::new(&words[0]).args(&words[1..]).env("PATH", path).env("NODE", self.root.path()).output().unwrap()
    }

    /// With the directories of a node below this one.
    #[track_caller]
    fn succeeds(&self, step: &str) {
        let ran = self.run_here(step);
        assert!(ran.status.success(), "{step}: {}", String::from_utf8_lossy(&ran.stderr));
    }

    fn run_here(&self, step: &str) -> Output {
        let own = ["/etc/kubernetes", "/var/lib/lifeboat", "/var/lib/kubelet", "/var/lib/etcd"]
            .map(|path| (path, self.path(path).display().to_string()));
        let changed: Vec<_> = own.iter().map(|(from, to)| (*from, to.as_str())).collect();
        self.run(step, &changed)
    }
}

#[test]
fn the_control_plane_is_stopped_and_nothing_else() {
    let node = Node::new();
    let ps = "crictl ps --quiet --name ^(etcd|kube-apiserver|kube-controller-manager|kube-scheduler)$";
    node.succeeds("stop");
    assert_eq!(node.read("log").lines().collect::<Vec<_>>(), ["systemctl stop kubelet", ps]);
    fs::remove_file(node.path("log")).unwrap();
    node.write("names", "etcd\nkube-apiserver\nkube-apiserver-proxy\ncoredns\nmy-etcd\nkube-scheduler\n");
    node.succeeds("stop");
    let log = node.read("log");
    let stopped = "crictl stop --timeout=10 id-of-etcd id-of-kube-apiserver id-of-kube-scheduler";
    assert_eq!(log.lines().collect::<Vec<_>>(), ["systemctl stop kubelet", ps, stopped]);
    // Nobody knows what runs: nothing may be replaced below it.
    node.write("no-runtime", "");
    assert!(!node.run_here("stop").status.success());
    fs::remove_file(node.path("log")).unwrap();
    node.succeeds("start");
    assert_eq!(node.read("log"), "systemctl restart kubelet\n");
}

#[test]
fn what_the_kubelet_has_already_stays() {
    let node = Node::new();
    let from = "/var/lib/lifeboat/kubelet";
    for (name, text) in [("config.yaml", "old"), ("kubeadm-flags.env", "old"), ("pki/kubelet-client-1.pem", "old")] {
        node.write(&format!("{from}/{name}"), text);
    }
    let key = node.path(from).join("pki/kubelet-client-1.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    symlink("kubelet-client-1.pem", node.path(from).join("pki/kubelet-client-current.pem")).unwrap();
    node.write("/var/lib/kubelet/config.yaml", "new");
    for _ in 0..2 {
        node.succeeds("kubelet");
        assert_eq!(node.read("/var/lib/kubelet/config.yaml"), "new");
        assert_eq!(node.read("/var/lib/kubelet/kubeadm-flags.env"), "old");
        assert_eq!(node.read("/var/lib/kubelet/pki/kubelet-client-current.pem"), "old");
        let mode = fs::metadata(node.path("/var/lib/kubelet/pki/kubelet-client-1.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    // A machine that has nothing of it yet.
    fs::remove_dir_all(node.path("/var/lib/kubelet")).unwrap();
    node.succeeds("kubelet");
    assert_eq!(node.read("/var/lib/kubelet/pki/kubelet-client-1.pem"), "old");
    let link = node.path("/var/lib/kubelet/pki/kubelet-client-current.pem");
    assert_eq!(fs::read_link(link).unwrap(), Path::new("kubelet-client-1.pem"));
}

#[test]
fn the_member_comes_back_however_often_it_is_begun() {
    let (node, old) = (Node::new(), Cluster::start(1, false));
    for number in 0..50 {
        old.ctl(&["put", &format!("n/{number}"), "x"]);
    }
    fs::create_dir_all(node.path("/var/lib/lifeboat")).unwrap();
    old.ctl(&["snapshot", "save", node.path("/var/lib/lifeboat/etcd.snapshot").to_str().unwrap()]);
    let manifest = "\
spec:
  containers:
  - command:
    - etcd
    - --advertise-client-urls=https://10.0.0.1:2379
    - --data-dir=/var/lib/etcd
    - --initial-advertise-peer-urls=https://10.0.0.1:2380
    - --initial-cluster=node-1=https://10.0.0.1:2380
    - --name=node-1
    - --peer-cert-file=/etc/kubernetes/pki/etcd/peer.crt
";
    node.write("/etc/kubernetes/manifests/etcd.yaml", "spec: {}\n");
    let refused = node.run_here("member");
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("does not say"), "{refused:?}");
    node.write("/etc/kubernetes/manifests/etcd.yaml", manifest);
    node.write("/var/lib/etcd/member/wal", "what was there");
    // What one that was killed left, half restored.
    node.write("/var/lib/etcd/restored/member/snap/db", "half");
    node.succeeds("member");
    let aside = || {
        let names = fs::read_dir(node.path("/var/lib/etcd")).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    };
    let names = aside();
    assert!(names.len() == 2 && names[0] == "member" && names[1].starts_with("member.before-"), "{names:?}");
    assert_eq!(node.read(&format!("/var/lib/etcd/{}/wal", names[1])), "what was there");
    // Killed between the two moves.
    fs::create_dir(node.path("/var/lib/etcd/restored")).unwrap();
    fs::rename(node.path("/var/lib/etcd/member"), node.path("/var/lib/etcd/restored/member")).unwrap();
    node.succeeds("member");
    assert_eq!(aside(), names);
    // etcd itself says what is in it.
    let db = node.path("/var/lib/etcd/member/snap/db").display().to_string();
    let status = output(Command::new(tool("etcdutl")).args(["snapshot", "status", &db, "--write-out=json"]));
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert!(status["totalKey"].as_u64().unwrap() >= 50, "{status}");
    assert!(status["revision"].as_u64().unwrap() > 1_000_000_000, "{status}");
}

#[test]
fn only_the_leases_of_api_servers_are_removed() {
    let (node, cluster) = (Node::new(), Cluster::start(1, true));
    for key in ["/registry/masterleases/10.0.0.1", "/registry/masterleases/10.0.0.2", "/registry/leases/kept"] {
        cluster.ctl(&["put", key, "x"]);
    }
    let file = |name: &str| cluster.directory.path().join(name).display().to_string();
    let pki = "/etc/kubernetes/pki/etcd";
    let changed = [
        ("https://127.0.0.1:2379".to_owned(), cluster.endpoints[0].clone()),
        (format!("{pki}/ca.crt"), file("ca.pem")),
        (format!("{pki}/healthcheck-client.crt"), file("client.pem")),
        (format!("{pki}/healthcheck-client.key"), file("client.key")),
    ];
    let changed: Vec<_> = changed.iter().map(|(from, to)| (from.as_str(), to.as_str())).collect();
    for _ in 0..2 {
        let ran = node.run("leases", &changed);
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        assert_eq!(cluster.ctl(&["get", "--prefix", "/registry/", "--keys-only"]).trim(), "/registry/leases/kept");
    }
}
