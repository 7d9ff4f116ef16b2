//! Real clusters. One starts, works, is backed up by a CronJob of its own, is lost, comes back by one command, and leaves
//! nothing behind; in another, an application is lost with its namespace ([`pictshare`]). They need root; `tests/lab/check`
//! says what a machine lacks.
#![allow(clippy::unwrap_used, reason = "tests")]

mod claims;
mod cluster;
mod csi;
mod forward;
mod ledger;
mod people;
mod pictshare;
mod plan;
mod platform;
mod records;
mod recovery;
mod region;
mod secrets;
mod shop;
mod states;
#[path = "../support/mod.rs"]
mod support;
mod volumes;

use cluster::{Cluster, Turn, wait};
use ledger::{Ledger, Loss};
use recovery::Desk;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use support::{ACCESS_KEY, Bucket, SECRET_KEY, Server, bucket, command, minio_at};

const IMAGE: &str = "lifeboat.lab/lifeboat:1";

#[test]
fn a_cluster_works_is_backed_up_from_inside_is_lost_and_comes_back_by_one_command() {
    let _turn = Turn::take();
    cluster::interrupt_up("test-a");
    let a = Cluster::up("test-a");
    names_are_served(&a, "before");
    workload(&a);
    secrets_are_encrypted(&a);
    a_node_may_not_do_what_it_likes(&a);
    plan::holds_writers_and_runs_jobs(&a);

    recovery::serve(&a);
    let ledger = Ledger::start(&a);
    let store = minio_at(&a.address(1));
    let home = tempfile::tempdir().unwrap();
    let owner = Owner { home: home.path() };
    owner.create_repository(&store);
    owner.backs_up_from_outside(&a, &store);
    let before = Before::look(&a);
    backs_itself_up(&a, &owner, &store);
    wait(Duration::from_mins(3), "a run of a CronJob", || a.finished_jobs("work").pop());
    let given = ledger.given();
    a.kubectl(&["-n", "work", "create", "configmap", "later", "--from-literal=k=v"]);
    ledger.goes_on(&a);
    let credentials = "{accessKeyId: {env: TEST_KEY}, secretAccessKey: {env: TEST_SECRET}}";
    let bucket = repository(&store, credentials, "").replace("  writerKey: {file: }\n", "");
    let desk = Desk::new(&a, &home.path().join("kit.txt"), &bucket);

    a.lab("down", &[]);
    ledger.close();
    a.lab("machine", &[]);
    let recovered = desk.recover();
    recovered.tell();
    before.is_back(&a);
    let loss = ledger.judge(&a, recovered.moment("cluster-etcd"), given);
    eprintln!("lab: {loss:?}, and {} ms of it as the report has it", recovered.part("cluster-etcd")["lossMs"]);
    assert!(loss.records > 0 && loss.milliseconds <= recovered.part("cluster-etcd")["lossMs"].as_i64().unwrap().into());
    names_are_served(&a, "after");
    ticks(&a);

    a.lab("down", &[]);
    a.lab("machine", &[]);
    let again = desk.recover_though_killed(text(&recovered.part("cluster-etcd")["snapshot"]));
    again.tell();
    assert!(again.killed >= 5, "it was killed {} times only", again.killed);
    before.is_back(&a);
    let again_lost = ledger.judge(&a, again.moment("cluster-etcd"), given);
    assert_eq!(again_lost.kept, loss.kept);
    names_are_served(&a, "after");

    etcd_loses_its_disk(&a, &owner, &desk, (&ledger, &before, &again_lost));
    drop(a);
    cluster::assert_nothing_is_left("test-a");
}

/// The rest of the node lives on, what runs there too. What the snapshot does not know of is gone afterwards.
fn etcd_loses_its_disk(a: &Cluster, owner: &Owner<'_>, desk: &Desk, (ledger, before, gone): (&Ledger, &Before, &Loss)) {
    ledger.reopen(a, gone);
    owner.backs_up_etcd();
    let given = ledger.given();
    let stray = ["run", "stray", "--image=lifeboat.lab/busybox:1", "--image-pull-policy=Never", "--restart=Never"];
    a.kubectl(&[&stray[..], &["--", "sleep", "86399"]].concat());
    a.kubectl(&["wait", "--for=condition=Ready", "pod/stray", "--timeout=60s"]);
    let look = r#"for of in /proc/[0-9]*; do case $(tr '\0' ' ' <"$of/cmdline") in 'sleep 86399 ') echo "$of" ;; esac; done 2>&-"#;
    let strays = || a.lab("node", &["sh", "-c", look]);
    assert!(!strays().is_empty());
    let served = || a.get(&["-n", "work", "pods", "-l", "app=web", "-o", "jsonpath={..uid} {..containerID}"]);
    let web = served();
    ledger.goes_on(a);
    recovery::lose_etcd(a);
    ledger.close();

    let recovered = desk.recover();
    recovered.tell();
    before.is_back(a);
    let loss = ledger.judge(a, recovered.moment("cluster-etcd"), given);
    let part = recovered.part("cluster-etcd");
    eprintln!("lab: {loss:?}, and {} ms of it as the report has it", part["lossMs"]);
    assert!(loss.records > 0 && part["lossMs"].as_u64() < part["rpoMs"].as_u64(), "{part}");
    let report = &recovered.report;
    assert!(report["tookMs"].as_u64() < report["rtoMs"].as_u64(), "{report}");
    wait(Duration::from_mins(1), "the end of a pod that the cluster does not know any more", || {
        strays().is_empty().then_some(())
    });
    assert_eq!(served(), web, "another pod serves");
    ticks(a);
}

/// What tells the cluster that came back from every other.
struct Before {
    uid: String,
    version: String,
}

impl Before {
    fn look(cluster: &Cluster) -> Self {
        wait(Duration::from_secs(30), "the second API server", || {
            (recovery::api_servers(cluster).split(' ').count() == 2).then_some(())
        });
        let list = cluster.get(&["--raw", "/api/v1/namespaces/work/configmaps?limit=1"]);
        let version = &serde_json::from_str::<Value>(&list).unwrap()["metadata"]["resourceVersion"];
        Self { uid: cluster.get(&UID), version: text(version).to_owned() }
    }

    fn is_back(&self, cluster: &Cluster) {
        assert_eq!(cluster.get(&UID), self.uid);
        assert_eq!(cluster.get(&["-n", "work", "secret", "kept", "-o", "jsonpath={.data.k}"]), "c2VjcmV0");
        let later = cluster.try_kubectl(&["-n", "work", "get", "configmap", "later"]);
        assert!(later.unwrap_err().contains("NotFound"));
        let old =
            format!("/api/v1/namespaces/work/configmaps?watch=1&timeoutSeconds=5&resourceVersion={}", self.version);
        let watched = cluster.try_kubectl(&["get", "--raw", &old]).unwrap_or_else(|error| error);
        assert!(watched.contains("too old resource version"), "{watched}");
        wait(Duration::from_secs(30), "the end of what was said of an API server that is no more", || {
            (recovery::api_servers(cluster) == cluster.address(2)).then_some(())
        });
    }
}

const UID: [&str; 4] = ["namespace", "work", "-o", "jsonpath={.metadata.uid}"];

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is not text"))
}

/// By a pod, for a pod: network, service addresses and DNS work.
fn names_are_served(cluster: &Cluster, pod: &str) {
    let lookup = ["nslookup", "kubernetes.default.svc.cluster.local"];
    let image = ["--image=lifeboat.lab/busybox:1", "--image-pull-policy=Never", "--restart=OnFailure"];
    cluster.kubectl(&[&["run", pod], &image[..], &["--"], &lookup].concat());
    wait(Duration::from_mins(2), "a pod that looks a name up", || {
        (cluster.get(&["pod", pod, "-o", "jsonpath={.status.phase}"]) == "Succeeded").then_some(())
    });
    let said = cluster.kubectl(&["logs", pod]);
    assert!(said.contains("10.203.0.1"), "{said}");
}

fn workload(cluster: &Cluster) {
    cluster.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "work" } },
        { "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "kept", "namespace": "work" },
          "stringData": { "k": "secret" } },
        { "apiVersion": "batch/v1", "kind": "CronJob", "metadata": { "name": "tick", "namespace": "work" },
          "spec": { "schedule": "* * * * *", "jobTemplate": { "spec": { "template": { "spec": {
            "restartPolicy": "Never",
            "containers": [{ "name": "tick", "image": "lifeboat.lab/busybox:1", "imagePullPolicy": "Never",
                             "command": ["echo", "tick"] }],
          } } } } } },
    ] }));
}

/// A run of the CronJob that began on this cluster succeeds.
fn ticks(cluster: &Cluster) {
    let began = cluster.newest_job("work");
    wait(Duration::from_mins(3), "a run of a CronJob", || {
        cluster.finished_jobs("work").into_iter().find(|job| began.as_ref().is_none_or(|began| job > began))
    });
}

fn secrets_are_encrypted(cluster: &Cluster) {
    let stored = cluster.etcd(&["get", "/registry/secrets/work/kept", "--print-value-only"]);
    assert!(stored.starts_with(b"k8s:enc:secretbox:v1:key1:"), "{}", String::from_utf8_lossy(&stored));
    let plain = cluster.etcd(&["get", "/registry/namespaces/work", "--print-value-only"]);
    assert!(plain.starts_with(b"k8s\0"), "{}", String::from_utf8_lossy(&plain));
}

fn a_node_may_not_do_what_it_likes(cluster: &Cluster) {
    let kubelet = cluster.etc().join("kubelet.conf");
    let as_node = ["--kubeconfig", kubelet.to_str().unwrap()];
    let label = ["label", "node", cluster.name, "node-restriction.kubernetes.io/x=y"];
    for forbidden in [&label[..], &["get", "secrets", "-n", "work"]] {
        let answer = cluster.try_kubectl(&[&as_node, forbidden].concat()).expect_err("this is forbidden");
        assert!(answer.contains("orbidden"), "{answer}");
    }
}

/// Who holds every key, outside of any cluster.
pub struct Owner<'a> {
    pub home: &'a Path,
}

impl Owner<'_> {
    fn run(&self, arguments: &[&str]) -> String {
        let mut lifeboat = command(env!("CARGO_BIN_EXE_lifeboat"));
        lifeboat.args(arguments).current_dir(self.home).env("TEST_KEY", ACCESS_KEY).env("TEST_SECRET", SECRET_KEY);
        output(&mut lifeboat)
    }

    fn lifeboat(&self, arguments: &[&str]) -> String {
        self.run(&[&["--config", "outside.yaml"], arguments].concat())
    }

    fn create_repository(&self, store: &Server) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(bucket(store, "lab", Bucket::Locked));
        let credentials = "{accessKeyId: {env: TEST_KEY}, secretAccessKey: {env: TEST_SECRET}}";
        self.document("outside.yaml", &repository(store, credentials, "writer.key"));
        self.lifeboat(&["init", "--kit", "kit.txt", "--writer-key-out", "writer.key"]);
    }

    pub fn document(&self, name: &str, text: &str) {
        fs::write(self.home.join(name), text).unwrap();
    }

    /// Everything that a control plane is: etcd, and the keys without which its Secrets are noise.
    fn backs_up_from_outside(&self, cluster: &Cluster, store: &Server) {
        let pki = cluster.pki();
        let credentials = "{accessKeyId: {env: TEST_KEY}, secretAccessKey: {env: TEST_SECRET}}";
        let etcd = |name| etcd(name, cluster, &pki, "etcd-ca.crt", "etcd-client.crt", "etcd-client.key");
        let all = repository(store, credentials, "writer.key")
            + &etcd("outside-etcd")
            + &source("control-plane", &format!("files: {{path: {}}}", cluster.etc().display()));
        self.document("outside.yaml", &all);
        self.document("etcd.yaml", &etcd("cluster-etcd"));
        self.lifeboat(&["--writer-key", "writer.key", "backup", "--all"]);
        let listed = self.lifeboat(&["--writer-key", "writer.key", "snapshots"]);
        assert!(listed.contains("outside-etcd") && listed.contains("control-plane"), "{listed}");
    }

    /// What the cluster's own CronJob does, whose image is not on a new machine.
    fn backs_up_etcd(&self) {
        self.lifeboat(&["--config", "etcd.yaml", "--writer-key", "writer.key", "backup", "cluster-etcd"]);
    }
}

fn repository(store: &Server, credentials: &str, writer_key: &str) -> String {
    format!(
        "apiVersion: lifeboat.dev/v1\nkind: Repository\nmetadata: {{name: platform}}\nspec:\n  url: s3://lab/platform\n  \
         writerKey: {{file: {writer_key}}}\n  s3:\n    endpoint: {}\n    region: us-east-1\n    pathStyle: true\n    \
         objectLock: {{mode: governance, minimumDays: 1}}\n    credentials: {credentials}\n",
        store.url()
    )
}

fn source(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: {name}}}\nspec:\n  tier: critical\n  {spec}\n"
    )
}

fn etcd(name: &str, cluster: &Cluster, directory: &Path, ca: &str, certificate: &str, key: &str) -> String {
    let file = |name: &str| directory.join(name).display().to_string();
    let tls = format!("{{ca: {}, certificate: {}, key: {}}}", file(ca), file(certificate), file(key));
    source(name, &format!("etcd: {{endpoints: ['https://{}:2379'], tls: {tls}}}", cluster.address(2)))
}

/// The CronJob that `lifeboat schedule render` makes, with Lifeboat's own image and service account.
fn backs_itself_up(cluster: &Cluster, owner: &Owner<'_>, store: &Server) {
    cluster.load_lifeboat();
    let secrets = "/etc/lifeboat/repository";
    let credentials =
        format!("{{accessKeyId: {{file: {secrets}/key-id}}, secretAccessKey: {{file: {secrets}/secret-key}}}}");
    let documents = repository(store, &credentials, &format!("{secrets}/writer-key"))
        + &etcd("cluster-etcd", cluster, Path::new("/etc/lifeboat/etcd"), "ca.crt", "tls.crt", "tls.key")
        + "---\napiVersion: lifeboat.dev/v1\nkind: Schedule\nmetadata: {name: critical}\nspec:\n  repository: platform\n  \
           tier: critical\n  cron: '* * * * *'\n  startDelay: 15s\n  maxDuration: 1m\n  sources: [cluster-etcd]\n";
    owner.document("platform.yaml", &documents);
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/base");
    cluster.kubectl(&["apply", "-k", base.to_str().unwrap()]);
    let in_home = |file: &str| owner.home.join(file).display().to_string();
    let pki = |file: &str| cluster.pki().join(file).display().to_string();
    let create = |kind: &[&str], name: &str, files: &[String]| {
        let files: Vec<_> = files.iter().map(|file| format!("--from-file={file}")).collect();
        let files: Vec<_> = files.iter().map(String::as_str).collect();
        cluster.kubectl(&[&["-n", "lifeboat", "create"], kind, &[name], &files].concat());
    };
    create(&["configmap"], "lifeboat-documents", &[in_home("platform.yaml")]);
    owner.document("key-id", ACCESS_KEY);
    owner.document("secret-key", SECRET_KEY);
    let key = format!("writer-key={}", in_home("writer.key"));
    create(&["secret", "generic"], "lifeboat-repository", &[key, in_home("key-id"), in_home("secret-key")]);
    let names = [("ca.crt", "etcd-ca.crt"), ("tls.crt", "etcd-client.crt"), ("tls.key", "etcd-client.key")];
    create(&["secret", "generic"], "lifeboat-etcd", &names.map(|(name, file)| format!("{name}={}", pki(file))));

    let manifest = owner.run(&["--config", "platform.yaml", "schedule", "render", "--image", IMAGE]);
    owner.document("cronjob.yaml", &manifest);
    cluster.kubectl(&["apply", "-f", &in_home("cronjob.yaml")]);
    let job = wait(Duration::from_mins(4), "a backup by the CronJob", || {
        cluster.finished_jobs("lifeboat").into_iter().next()
    });
    cluster.kubectl(&["-n", "lifeboat", "patch", "cronjob", "lifeboat-critical", "-p", r#"{"spec":{"suspend":true}}"#]);
    let log = cluster.kubectl(&["-n", "lifeboat", "logs", &format!("job/{}", job.1)]);
    let lines: Vec<_> = log.lines().filter(|line| line.starts_with('{')).collect();
    assert!(lines.iter().any(|line| line.contains("cluster-etcd")), "{log}");
    for line in lines {
        serde_json::from_str::<Value>(line).unwrap_or_else(|why| panic!("{why}: {line}"));
    }
    let listed = owner.lifeboat(&["--writer-key", "writer.key", "snapshots", "cluster-etcd"]);
    assert!(listed.contains("cluster-etcd"), "{listed}");
}

fn in_tree(name: &str) -> String {
    format!("{}/tests/lab/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {out}{err}");
    out.into_owned()
}
