//! The node is lost with all that was on it. What is left is the bucket, the kit and the documents; what is new is a machine
//! with the programs and the address. One command brings the cluster back, and goes on where it was killed. The same one does
//! where etcd's disk is lost, and nothing else.

use crate::cluster::Cluster;
use crate::support::{ACCESS_KEY, SECRET_KEY, command};
use crate::{output, text};
use base64::Engine as _;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const COMPONENTS: [&str; 6] =
    ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"];

/// An address of an API server that is no more, though one answers there: that of the node on the pods' network.
const GONE: &str = "10.202.3.1";

/// What the cluster serves, and what shall be seen of it again.
pub fn serve(cluster: &Cluster) {
    let page = "mkdir /tmp/www && echo sings >/tmp/www/index.html && exec httpd -f -p 8080 -h /tmp/www";
    let bound = |name: &str, role: &str| {
        json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": { "name": name, "namespace": "work" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
            "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": "work" }] })
    };
    cluster.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "recovery", "namespace": "work" } },
        bound("recovery", "admin"),
        { "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web", "namespace": "work" },
          "spec": { "selector": { "matchLabels": { "app": "web" } }, "template": {
            "metadata": { "labels": { "app": "web" } },
            "spec": { "terminationGracePeriodSeconds": 1, "containers": [{
                "name": "web", "image": "lifeboat.lab/busybox:1", "imagePullPolicy": "Never",
                "command": ["sh", "-c", page],
                "readinessProbe": { "httpGet": { "path": "/", "port": 8080 }, "periodSeconds": 1 } }] },
          } } },
        { "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "work" },
          "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": 8080 }] } },
    ] }));
    cluster.kubectl(&["-n", "work", "rollout", "status", "deployment/web", "--timeout=60s"]);
    let lease = json!({ "apiVersion": "v1", "kind": "Endpoints", "metadata": { "name": "gone" },
        "subsets": [{ "addresses": [{ "ip": GONE }] }] });
    cluster.etcd(&["put", &format!("/registry/masterleases/{GONE}"), &lease.to_string()]);
}

/// A disk that has etcd alone. Its process cannot do without; everything else of the node lives on.
pub fn lose_etcd(cluster: &Cluster) {
    cluster.lab("component", &["stop", "etcd"]);
    output(command("find").arg(cluster.state().join("etcd")).args(["-mindepth", "1", "-delete"]));
}

pub fn api_servers(cluster: &Cluster) -> String {
    cluster.get(&["endpointslices", "kubernetes", "-o", "jsonpath={.endpoints[*].addresses[*]}"])
}

/// Where the recovery is begun: a directory with the kit and the documents.
pub struct Desk {
    home: tempfile::TempDir,
    lab: PathBuf,
}

/// How a recovery went.
pub struct Recovered {
    pub report: Value,
    /// How often it was killed.
    pub killed: usize,
}

impl Recovered {
    /// Of the source's recovery point.
    pub fn part(&self, source: &str) -> &Value {
        let parts = self.report["parts"].as_array().unwrap();
        parts.iter().find(|part| part["snapshot"].as_str().unwrap().starts_with(&format!("{source}@"))).unwrap()
    }

    pub fn moment(&self, source: &str) -> Timestamp {
        self.part(source)["moment"].as_str().unwrap().parse().unwrap()
    }

    pub fn tell(&self) {
        eprintln!("lab: recovery killed {} times, took {} ms", self.killed, self.report["tookMs"]);
        for step in self.report["steps"].as_array().unwrap() {
            eprintln!("lab:   {} at {} ms, {} ms, {}", step["step"], step["beganMs"], step["tookMs"], step["lines"]);
        }
    }
}

impl Desk {
    /// While the cluster is still there: what people keep in a safe.
    pub fn new(cluster: &Cluster, kit: &Path, repository: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::copy(kit, home.path().join("kit.txt")).unwrap();
        let token = cluster.kubectl(&["-n", "work", "create", "token", "recovery", "--duration=2h"]);
        let ca = base64::prelude::BASE64_STANDARD.encode(fs::read(cluster.pki().join("ca.crt")).unwrap());
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{ "name": "it", "cluster": {
                "server": format!("https://{}:6443", cluster.address(2)), "certificate-authority-data": ca } }],
            "users": [{ "name": "it", "user": { "token": token.trim() } }],
            "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "it" } }],
        });
        fs::write(home.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();
        let desk = Self { lab: cluster.state().parent().unwrap().to_owned(), home };
        let documents = documents(cluster, &desk.home.path().join("kubeconfig"));
        let documents: Vec<_> = documents.iter().map(Value::to_string).collect();
        fs::write(desk.home.path().join("documents.yaml"), format!("{repository}---\n{}\n", documents.join("\n---\n")))
            .unwrap();
        desk
    }

    fn lifeboat(&self, arguments: &[&str]) -> Command {
        let mut lifeboat = command(env!("CARGO_BIN_EXE_lifeboat"));
        lifeboat.args(["--config", "documents.yaml", "--identity", "kit.txt", "--json", "restore", "cluster"]);
        lifeboat.args(arguments).current_dir(&self.home).env("TEST_KEY", ACCESS_KEY).env("TEST_SECRET", SECRET_KEY);
        lifeboat.env("XDG_STATE_HOME", self.home.path().join("state")).env("LIFEBOAT_LAB", &self.lab);
        lifeboat.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        lifeboat
    }

    /// By one command.
    pub fn recover(&self) -> Recovered {
        let named = named(self.lifeboat(&["platform", "--dry-run"]));
        let named: Vec<_> = named.iter().map(String::as_str).collect();
        let yes: &[&str] = if named.is_empty() { &[] } else { &["--yes"] };
        finish(self.lifeboat(&[&["platform"], yes, &named].concat()).spawn().unwrap(), 0)
    }

    /// Killed whenever one more step is done, or several are; `snapshot` is what it goes back to.
    pub fn recover_though_killed(&self, snapshot: &str) -> Recovered {
        let begin = ["platform", "--snapshot", snapshot];
        though_killed(|_| self.home.path().join("state"), &begin, |_, arguments| self.lifeboat(arguments))
    }
}

/// What `restore` needs to be told after a look at what it would do.
pub fn named(mut look: Command) -> Vec<String> {
    let seen: Value = serde_json::from_str(&output(&mut look)).unwrap();
    let ids = seen["mustBeConfirmed"].as_array().unwrap().iter().map(text);
    ids.flat_map(|id| ["--target-id".to_owned(), id.to_owned()]).collect()
}

/// By one command, after a look at what it would do.
pub fn recover(lifeboat: impl Fn(&[&str]) -> Command, restore: &[&str], more: &[&str]) -> Recovered {
    let named = named(lifeboat(&[restore, &["--dry-run"]].concat()));
    let named: Vec<_> = named.iter().map(String::as_str).collect();
    finish(lifeboat(&[restore, more, &["--yes"], &named].concat()).spawn().unwrap(), 0)
}

/// A restore that is killed whenever one more step is done, or several are. `state` gives the directory of the machine that it
/// is on after having been killed so often, where its journal is.
pub fn though_killed(
    state: impl Fn(usize) -> PathBuf,
    begin: &[&str],
    restore: impl Fn(&Path, &[&str]) -> Command,
) -> Recovered {
    let journals = |killed| Journals(state(killed).join("lifeboat/restores"));
    let known = journals(0).all();
    let mut child = restore(&state(0), begin).spawn().unwrap();
    let (mut killed, mut before) = (0, 0);
    loop {
        let journals = journals(killed);
        let deadline = Instant::now() + Duration::from_mins(6);
        let id = loop {
            if child.try_wait().unwrap().is_some() {
                return finish(child, killed);
            }
            // One that is all done may end at any moment, and cannot be resumed then.
            if let Some((id, done, steps)) = journals.done(&known)
                && (before + 1..steps).contains(&done)
            {
                break id;
            }
            assert!(Instant::now() < deadline, "nothing is done any more");
            std::thread::sleep(Duration::from_millis(5));
        };
        // Only the program: what its steps were running ends with it.
        child.kill().unwrap();
        child.wait().unwrap();
        before = journals.done(&known).map_or(0, |(_, done, _)| done);
        killed += 1;
        child = restore(&state(killed), &["--resume", &id]).spawn().unwrap();
    }
}

/// The directory of them.
struct Journals(PathBuf);

impl Journals {
    fn all(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&self.0) else { return Vec::new() };
        entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "jsonl"))
            .collect()
    }

    /// The id of the restore that is not `known`, how many steps are done by its journal, and how many there are.
    fn done(&self, known: &[PathBuf]) -> Option<(String, usize, usize)> {
        let path = self.all().into_iter().find(|path| !known.contains(path))?;
        let text = fs::read_to_string(&path).ok()?;
        let first: Value = serde_json::from_str(text.lines().next()?).ok()?;
        let done = text.lines().filter(|line| line.contains("\"event\":{\"done\":")).count();
        Some((path.file_stem()?.to_str()?.to_owned(), done, first["event"]["resolved"]["tasks"].as_array()?.len()))
    }
}

fn finish(child: Child, killed: usize) -> Recovered {
    let output = child.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // 4: all was done, and something is older than it may be.
    assert!(matches!(output.status.code(), Some(0 | 4)), "{}: {out}{err}", output.status);
    let last: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    let recovered = Recovered { report: last["report"].clone(), killed };
    assert_eq!(recovered.report["verdict"], "complete", "{out}{err}");
    recovered
}

/// restore-plans/platform.yaml, as it is for the lab.
fn documents(cluster: &Cluster, kubeconfig: &Path) -> [Value; 3] {
    let pki = |file: &str| cluster.pki().join(file);
    let source = |name: &str, spec: &Value| json!({ "apiVersion": "lifeboat.dev/v1", "kind": "Source", "metadata": { "name": name }, "spec": spec });
    let etcd = format!("https://{}:2379", cluster.address(2));
    [
        source(
            "cluster-etcd",
            &json!({ "tier": "critical", "etcd": { "endpoints": [etcd], "tls": {
                "ca": pki("etcd-ca.crt"), "certificate": pki("etcd-client.crt"), "key": pki("etcd-client.key") } } }),
        ),
        source("platform-admin", &json!({ "kubernetes": { "kubeconfig": kubeconfig, "namespaces": ["work"] } })),
        json!({ "apiVersion": "lifeboat.dev/v1", "kind": "RestorePlan", "metadata": { "name": "platform" },
            "spec": { "level": "cluster", "tier": "critical", "steps": steps(cluster) } }),
    ]
}

fn steps(cluster: &Cluster) -> Value {
    let component = |action: &str| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/component");
        let words = [script.to_str().unwrap(), cluster.name, action];
        json!({ "command": words.into_iter().chain(COMPONENTS).collect::<Vec<_>>() })
    };
    let (pki, state, node) = (cluster.pki(), cluster.state(), cluster.address(2));
    let (pki, state) = (pki.display(), state.display());
    let member = format!(
        "exec 9>{state}/etcd.lock; flock 9
         rm -rf {state}/etcd/restored
         {state}/bin/etcdutl snapshot restore {state}/etcd.snapshot --data-dir {state}/etcd/restored --name lab \
         --initial-cluster lab=https://127.0.0.1:2380 --initial-advertise-peer-urls https://127.0.0.1:2380 \
         --bump-revision 1000000000 --mark-compacted
         if [ -d {state}/etcd/member ]; then mv {state}/etcd/member {state}/etcd/member.before-$(date +%s); fi
         mv {state}/etcd/restored/member {state}/etcd/member
         rmdir {state}/etcd/restored"
    );
    let etcdctl = format!(
        "{state}/bin/etcdctl --endpoints=https://{node}:2379 --cacert={pki}/etcd-ca.crt --cert={pki}/etcd-client.crt \
         --key={pki}/etcd-client.key del --prefix /registry/masterleases/"
    );
    let object = |resource: &str, name: &str, what: Value| {
        let mut object = json!({ "resource": resource, "namespace": "work", "name": name });
        object.as_object_mut().unwrap().extend(what.as_object().unwrap().clone());
        json!({ "kubernetes": { "cluster": "platform-admin", "object": object } })
    };
    // A static busybox: its wget crashes at names and at -T; its nslookup asks the DNS of the cluster.
    let asks = "until nslookup web.work.svc.cluster.local >/dev/null && \
                wget -q -O - http://$WEB_SERVICE_HOST:$WEB_SERVICE_PORT/; do sleep 1; done";
    let job = json!({ "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": "asks", "namespace": "work" },
        "spec": { "activeDeadlineSeconds": 240, "template": { "spec": { "restartPolicy": "OnFailure", "containers": [{
            "name": "asks", "image": "lifeboat.lab/busybox:1", "imagePullPolicy": "Never",
            "command": ["sh", "-c", asks] }] } } } });
    json!([
        { "name": "stop", "run": component("stop") },
        { "name": "files", "after": ["stop"],
          "restore": { "source": "control-plane", "to": cluster.etc(), "options": { "existing": "replace" } } },
        { "name": "state", "after": ["stop"], "restore": {
            "source": "cluster-etcd", "export": format!("{state}/etcd.snapshot"), "options": { "existing": "replace" } } },
        { "name": "member", "after": ["files", "state"], "run": { "command": ["/bin/sh", "-euc", member] } },
        { "name": "start", "run": component("start") },
        { "name": "etcd", "timeout": "2m", "probe": { "source": "cluster-etcd" } },
        { "name": "leases", "retries": 3,
          "run": { "command": etcdctl.split(' ').collect::<Vec<_>>() } },
        { "name": "api", "timeout": "2m", "probe": { "http": {
            "url": format!("https://{node}:6443/readyz"), "tls": { "ca": format!("{pki}/ca.crt") } } } },
        { "name": "secrets-open", "timeout": "2m",
          "probe": object("secrets", "kept", json!({ "field": "/data/k", "equals": "c2VjcmV0" })) },
        { "name": "pods-run", "timeout": "5m", "job": { "cluster": "platform-admin", "manifest": job } },
        { "name": "web", "timeout": "2m", "probe": object("deployments.apps", "web", json!({ "condition": "Available" })) },
    ])
}
