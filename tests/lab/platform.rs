//! The whole platform (`tests/lab/platform/up`), backed up by the shipped schedules as CronJobs while everything is written to.
//! Then databases and Vault are destroyed ([`crate::shop`]), so are Terraform's states and the forge ([`crate::states`]), and what
//! watches the platform is lost with its namespace and its data. Plans bring each back by one command; Argo CD makes monitoring anew meanwhile.

use crate::cluster::{Cluster, Turn, wait};
use crate::forward::Forwarded;
use crate::pictshare::shipped;
use crate::records::Records;
use crate::recovery::{Recovered, recover};
use crate::shop::came_back;
use crate::support::command;
use crate::{IMAGE, in_tree, output, text};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Where Lifeboat's CronJobs are, what `schedule render` makes of each schedule, and the Secrets that those mount.
const PLACES: [Place; 6] = [
    Place {
        namespace: "lifeboat",
        base: "base",
        component: None,
        schedules: &["critical", "standard", "development", "lab"],
        secrets: &[
            "secrets",
            "vault",
            "pictshare-production",
            "pictshare-staging",
            "pictshare-development",
            "terraform",
            "gitops",
            "shop",
            "replicate-secrets",
            "replicate-platform-b",
        ],
    },
    Place {
        namespace: "lifeboat-node",
        base: "",
        component: Some("node"),
        schedules: &["control-plane"],
        secrets: &["secrets"],
    },
    Place {
        namespace: "monitoring",
        base: "volume",
        component: Some("monitoring"),
        schedules: &["monitoring"],
        secrets: &["secrets"],
    },
    Place::of_a_volume("pictshare-production"),
    Place::of_a_volume("pictshare-staging"),
    Place::of_a_volume("pictshare-development"),
];

struct Place {
    namespace: &'static str,
    /// Below `deploy`.
    base: &'static str,
    component: Option<&'static str>,
    schedules: &'static [&'static str],
    secrets: &'static [&'static str],
}

impl Place {
    /// The CronJob for it is rendered with those of the namespace lifeboat.
    const fn of_a_volume(namespace: &'static str) -> Self {
        Self { namespace, base: "volume", component: None, schedules: &[], secrets: &["secrets"] }
    }
}

#[test]
fn the_platform_is_backed_up_by_its_schedules_and_what_is_lost_of_it_comes_back() {
    let _turn = Turn::take();
    let cluster = Cluster::up("test-d");
    let table = cluster.lab("platform/up", &[]);
    assert!(table.contains("monitoring/Deployment/prometheus") && !table.contains("Not ready"), "{table}");
    let platform = Platform::new(&cluster);
    platform.documents();
    platform.succeed(&[
        "-r",
        "platform",
        "init",
        "--kit",
        "kit.txt",
        "--writer-key-out",
        &platform.secret("secrets/writer-key"),
    ]);
    platform.schedules();

    let vault = platform.prepare_shop();

    let seen = platform.is_watched();
    let records = Records(&cluster);
    records.start();
    platform.backs_itself_up();
    platform.keeps_its_promises();
    for system in ["mariadb", "prometheus", "redis", "vault"] {
        records.go_on(system);
    }

    platform.lose_shop();
    vault.corrupt();
    let commit = platform.lose_what_describes_it();
    platform.lose_monitoring();
    records.stop();

    platform.recover_shop(&records);
    platform.recover_vault(&vault, &records);
    platform.recover_what_describes_it(&commit);
    let recovered = platform.recover_monitoring();
    platform.is_watched_again(&seen);
    came_back(&recovered, "prometheus", &records, "prometheus");
    // What nothing happened to.
    for system in ["kubernetes", "pictshare"] {
        assert_eq!(records.judge(system, Timestamp::UNIX_EPOCH), 0);
    }
}

pub struct Platform<'a> {
    pub cluster: &'a Cluster,
    /// Of whoever backs up and recovers: documents and manifests.
    home: tempfile::TempDir,
}

/// What was there before the loss.
struct Seen {
    moment: String,
    targets: String,
}

impl<'a> Platform<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        cluster.load_lifeboat();
        Self { cluster, home: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    /// What is `/etc/lifeboat/NAME` in a pod.
    pub fn secret(&self, name: &str) -> String {
        format!("{}/secrets/{name}", self.cluster.state().display())
    }

    /// The shipped ones, with the addresses and paths of the lab; for the pods below `inside`, for people below `outside`.
    fn documents(&self) {
        let store =
            |port: u16| format!("    endpoint: http://{}:{port}\n    pathStyle: true\n", self.cluster.address(2));
        let region = "    region: eu-central-1\n";
        let with_store = (region, format!("{region}{}", store(30900)));
        let state_region = "        region: eu-central-1\n";
        let state_store = store(30900).replace("    ", "        ");
        let forge = "    url: https://git.example.org/platform/gitops.git\n";
        let own_forge =
            "    url: https://git.forge.svc/git/platform/gitops.git\n    tls: {ca: /etc/lifeboat/gitops/ca.crt}\n";
        let image = ("registry.example.org/lifeboat:VERSION", IMAGE.to_owned());
        let texts = [
            ("repository.yaml", shipped("schedules/repository.yaml", &[with_store])),
            (
                "critical.yaml",
                shipped(
                    "schedules/critical.yaml",
                    &[
                        ("pki/etcd/ca.crt", "pki/etcd-ca.crt".into()),
                        ("pki/etcd/healthcheck-client", "pki/etcd-client".into()),
                        ("- /config.yaml", "- /kubelet.yaml".into()),
                        ("# replica: {to: platform-b}", "replica: {to: platform-b}".into()),
                        image.clone(),
                    ],
                ),
            ),
            (
                "standard.yaml",
                shipped(
                    "schedules/standard.yaml",
                    &[(state_region, format!("{state_region}{state_store}")), (forge, own_forge.into()), image.clone()],
                ),
            ),
            ("development.yaml", shipped("schedules/development.yaml", std::slice::from_ref(&image))),
            ("lab.yaml", LAB.replace("STORE_B", store(30901).trim_end())),
        ];
        for (name, text) in texts {
            self.write(&format!("inside/{name}"), &text);
            let standard = "    namespaces: [monitoring, pictshare-staging]\n";
            let kubeconfig = self.cluster.etc().join("admin.conf");
            let reached = format!("    kubeconfig: {}\n{standard}", kubeconfig.display());
            let outside = text.replace("/etc/lifeboat/", &self.secret("")).replace(standard, &reached);
            self.write(&format!("outside/{name}"), &outside);
        }
        self.write("outside/plan.yaml", &shipped("restore-plans/monitoring.yaml", &[image]));
        for replica in ["platform-b", "replicate-secrets", "replicate-platform-b"] {
            let directory = self.secret(replica);
            fs::create_dir_all(&directory).unwrap();
            for key in ["access-key-id", "secret-access-key"] {
                fs::copy(self.secret(&format!("terraform/{key}")), Path::new(&directory).join(key)).unwrap();
            }
        }
    }

    fn volumes(&self) -> PathBuf {
        self.cluster.state().join("volumes/monitoring")
    }

    /// On the node, which has the volumes and the names of the services.
    fn lifeboat(&self, arguments: &[&str]) -> Command {
        let mut lifeboat = command(in_tree("node"));
        lifeboat.arg(self.cluster.name).args(["env", "-C"]).arg(self.home.path()).arg(env!("CARGO_BIN_EXE_lifeboat"));
        lifeboat.env("LIFEBOAT_LAB", self.cluster.state().parent().unwrap());
        // As many machines have it: the document's authority counts.
        lifeboat.env("GIT_SSL_CAINFO", "/etc/ssl/certs/ca-certificates.crt");
        self.dressed(lifeboat, arguments)
    }

    /// With the documents.
    fn dressed(&self, mut lifeboat: Command, arguments: &[&str]) -> Command {
        let home = self.home.path();
        lifeboat.args(["--config", "outside", "--json"]).args(arguments).env("XDG_STATE_HOME", home.join("state"));
        lifeboat.current_dir(home).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        lifeboat
    }

    pub fn succeed(&self, arguments: &[&str]) -> String {
        output(&mut self.lifeboat(arguments))
    }

    /// What an owner does: `deploy` and the rendered CronJobs, with the documents and Secrets in each namespace. They are
    /// suspended, and run when the test asks.
    fn schedules(&self) {
        output(command("cp").args(["-r", &in_tree("../../deploy")]).arg(self.home.path()));
        for place in &PLACES {
            let mut resources = Vec::new();
            if !place.base.is_empty() {
                resources.push(format!("../deploy/{}", place.base));
            }
            if !place.schedules.is_empty() {
                let mut render = command(env!("CARGO_BIN_EXE_lifeboat"));
                render.arg("--config").arg(self.path("inside")).args(["schedule", "render", "--image", IMAGE]);
                render.args(["--namespace", place.namespace]).args(place.schedules);
                self.write(&format!("{}/cronjobs.yaml", place.namespace), &output(&mut render));
                resources.push("cronjobs.yaml".into());
            }
            let components: Vec<_> = place.component.iter().map(|name| format!("../deploy/{name}")).collect();
            let suspend = json!([{ "op": "replace", "path": "/spec/suspend", "value": true }]);
            let mut overlay = json!({
                "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
                "resources": resources, "components": components,
                "patches": [{ "target": { "kind": "CronJob" }, "patch": suspend.to_string() }],
            });
            if place.base == "volume" {
                overlay["namespace"] = json!(place.namespace);
            }
            if place.namespace == "lifeboat-node" {
                let patches = overlay["patches"].as_array_mut().unwrap();
                patches.push(json!({ "target": { "kind": "CronJob" }, "patch": self.paths_of_the_node().to_string() }));
            }
            self.write(&format!("{}/kustomization.yaml", place.namespace), &overlay.to_string());
            self.cluster.kubectl(&["apply", "-k", self.path(place.namespace).to_str().unwrap()]);
            self.cluster.apply(&self.documents_and_secrets(place));
        }
    }

    /// What a node's `/etc/kubernetes` is here has the kubelet's configuration, too.
    fn paths_of_the_node(&self) -> Value {
        let volume = |name: &str| json!({ "name": name, "hostPath": { "path": self.cluster.etc() } });
        json!({ "apiVersion": "batch/v1", "kind": "CronJob", "metadata": { "name": "any" },
            "spec": { "jobTemplate": { "spec": { "template": { "spec": {
                "volumes": [volume("kubernetes"), volume("kubelet")] } } } } } })
    }

    fn documents_and_secrets(&self, place: &Place) -> Value {
        let files = |directory: &Path| {
            let files = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
            files.map(|file| (file.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&file).unwrap()))
        };
        let metadata = |name: &str| json!({ "name": format!("lifeboat-{name}"), "namespace": place.namespace });
        let documents: Map<_, _> = files(&self.path("inside"))
            .map(|(name, content)| (name, json!(String::from_utf8(content).unwrap())))
            .collect();
        let mut all = vec![
            json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("documents"), "data": documents }),
        ];
        for name in place.secrets {
            let data: Map<_, _> = files(Path::new(&self.secret(name)))
                .map(|(name, content)| (name, json!(BASE64_STANDARD.encode(content))))
                .collect();
            all.push(json!({ "apiVersion": "v1", "kind": "Secret", "metadata": metadata(name), "data": data }));
        }
        json!({ "apiVersion": "v1", "kind": "List", "items": all })
    }

    /// A Job made from each CronJob succeeds, the replica's last.
    fn backs_itself_up(&self) {
        let list = self.cluster.get(&[
            "cronjobs",
            "-A",
            "-o",
            "jsonpath={range .items[*]}{.metadata.namespace} {.metadata.name} {end}",
        ]);
        let words: Vec<_> = list.split_whitespace().collect();
        let (replicas, backups): (Vec<_>, Vec<_>) =
            words.chunks(2).map(|one| (one[0], one[1])).partition(|(_, name)| name.starts_with("lifeboat-replicate-"));
        assert_eq!((replicas.len(), backups.len()), (1, 9), "{list}");
        for jobs in [backups, replicas] {
            for (namespace, name) in &jobs {
                self.cluster.kubectl(&["-n", namespace, "create", "job", "--from", &format!("cronjob/{name}"), name]);
            }
            for (namespace, name) in jobs {
                self.has_succeeded(namespace, name);
            }
        }
    }

    fn has_succeeded(&self, namespace: &str, name: &str) {
        let log = || self.cluster.kubectl(&["-n", namespace, "logs", &format!("job/{name}"), "--tail=-1"]);
        wait(Duration::from_mins(4), &format!("the end of the Job {namespace}/{name}"), || {
            let status = self.cluster.get(&["-n", namespace, "job", name, "-o", "jsonpath={.status}"]);
            let status: Value = serde_json::from_str(&status).unwrap();
            // A Job tries twice.
            let failed = status["conditions"].as_array().into_iter().flatten().any(|one| one["type"] == "Failed");
            assert!(!failed, "{namespace}/{name}: {}", log());
            (status["succeeded"] == 1).then_some(())
        });
        let log = log();
        let lines: Vec<_> = log.lines().filter(|line| line.starts_with('{')).collect();
        assert!(!lines.is_empty(), "{namespace}/{name} logs nothing: {log}");
        for line in lines {
            serde_json::from_str::<Value>(line).unwrap_or_else(|why| panic!("{why}: {line}"));
        }
    }

    /// Seen from outside: a good snapshot of each source that a schedule names, within its tier's objective, and the second
    /// region has those of the critical ones.
    fn keeps_its_promises(&self) {
        let status: Value = serde_json::from_str(&self.succeed(&["-r", "platform", "status"])).unwrap();
        let sources = status["sources"].as_array().unwrap();
        let names: BTreeSet<_> = sources.iter().map(|source| text(&source["source"])).collect();
        assert_eq!(names.len(), 21, "{names:?}");
        for source in sources {
            assert_eq!((&source["verdict"], &source["state"]), (&json!("met"), &json!("good")), "{source:#}");
        }
        eprintln!("lab: {} sources, {}", names.len(), status["findings"]);
    }

    /// A pod is ready a moment before its service leads there.
    fn ask(&self, arguments: &[&str]) -> Value {
        wait(Duration::from_secs(30), &format!("an answer to curl {arguments:?}"), || self.try_ask(arguments).ok())
    }

    fn try_ask(&self, arguments: &[&str]) -> Result<Value, String> {
        let mut curl = command(in_tree("node"));
        curl.arg(self.cluster.name).args(["curl", "-sS", "--fail-with-body", "--max-time", "10", "--noproxy", "*"]);
        let output = curl.args(arguments).output().unwrap();
        let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            return Err(format!("{error}{out}"));
        }
        serde_json::from_str(&out).map_err(|why| format!("{why}: {out}"))
    }

    /// What Prometheus knows of its targets, at a moment or now.
    fn targets(&self, at: &str) -> Result<Value, String> {
        let time = format!("time={at}");
        let moment: &[&str] = if at.is_empty() { &[] } else { &["--data-urlencode", &time] };
        let query =
            ["--get", "--data-urlencode", "query=count(up == 1)", "http://prometheus.monitoring.svc:9090/api/v1/query"];
        self.try_ask(&[moment, &query].concat()).map(|answer| answer["data"]["result"][0]["value"].clone())
    }

    /// Prometheus sees all its targets, somebody silences an alert, somebody keeps a dashboard.
    fn is_watched(&self) -> Seen {
        let seen = wait(Duration::from_mins(1), "samples of five targets", || {
            let value = self.targets("").ok()?;
            (value[1] == "5").then(|| Seen { moment: value[0].to_string(), targets: "5".into() })
        });
        let silence = json!({ "matchers": [{ "name": "alertname", "value": "TargetDown", "isRegex": false, "isEqual": true }],
            "startsAt": "2026-01-01T00:00:00Z", "endsAt": "2099-01-01T00:00:00Z", "createdBy": "ann", "comment": "known" });
        let dashboard =
            json!({ "dashboard": { "uid": "pictures", "title": "Pictures", "panels": [{ "expr": "up" }] } });
        for (url, body) in [
            ("http://alertmanager.monitoring.svc:9093/api/v2/silences", silence),
            ("http://grafana.monitoring.svc:3000/api/dashboards/db", dashboard),
        ] {
            self.ask(&["-H", "Content-Type: application/json", "-d", &body.to_string(), url]);
        }
        seen
    }

    /// The namespace, and all that was on its volumes. Argo CD makes what is in git anew.
    fn lose_monitoring(&self) {
        self.cluster.kubectl(&["delete", "namespace", "monitoring", "--request-timeout=0", "--timeout=3m"]);
        for volume in fs::read_dir(self.volumes()).unwrap() {
            empty(&volume.unwrap().path());
        }
        wait(Duration::from_mins(3), "Argo CD to make monitoring anew", || {
            self.cluster.try_kubectl(&["-n", "monitoring", "get", "deployment", "prometheus"]).ok()?;
            self.application("{.status.sync.status} {.status.operationState.phase}")
                .starts_with("Synced Succeeded")
                .then_some(())
        });
    }

    fn application(&self, fields: &str) -> String {
        self.cluster.get(&["-n", "argocd", "application", "monitoring", "-o", &format!("jsonpath={fields}")])
    }

    /// By one command, after a look at what it would do, and in the time that its tier allows.
    pub fn recover(&self, service: &str, more: &[&str]) -> Recovered {
        recover_by(service, more, |restore| self.lifeboat(restore))
    }

    /// At an operator's desk.
    fn recover_monitoring(&self) -> Recovered {
        let alertmanager = Forwarded::to(self.cluster, "monitoring", "svc/alertmanager", 9093);
        let plan = fs::read_to_string(self.path("outside/plan.yaml")).unwrap();
        self.write("outside/plan.yaml", &plan.replace("127.0.0.1:9093", &format!("127.0.0.1:{}", alertmanager.port)));
        let desk = |restore: &[&str]| self.dressed(command(env!("CARGO_BIN_EXE_lifeboat")), restore);
        recover_by("monitoring", &[], desk)
    }

    fn is_watched_again(&self, seen: &Seen) {
        let value = wait(Duration::from_secs(30), "Prometheus' service", || self.targets(&seen.moment).ok());
        assert_eq!(value[1], seen.targets.as_str(), "what Prometheus knew then");
        wait(Duration::from_mins(1), "samples of five targets", || (self.targets("").ok()?[1] == "5").then_some(()));
        let silences = self.ask(&["http://alertmanager.monitoring.svc:9093/api/v2/silences"]);
        assert!(silences[0]["comment"] == "known" && silences[0]["status"]["state"] == "active", "{silences}");
        let dashboard = self.ask(&["http://grafana.monitoring.svc:3000/api/dashboards/uid/pictures"]);
        assert_eq!(dashboard["dashboard"]["title"], "Pictures");
        wait(Duration::from_mins(2), "Argo CD to be at one with git", || {
            let fields = "{.status.sync.status} {.status.health.status} {.spec.syncPolicy.automated.selfHeal}";
            (self.application(fields) == "Synced Healthy true").then_some(())
        });
        let suspended = ["-n", "monitoring", "cronjob", "lifeboat-monitoring", "-o", "jsonpath={.spec.suspend}"];
        assert_eq!(self.cluster.get(&suspended), "true");
        let table = self.cluster.lab("status", &[]);
        assert!(!table.contains("Not ready"), "{table}");
    }
}

/// Of a volume: nothing is on it any more.
pub fn empty(directory: &Path) {
    output(command("find").arg(directory).args(["-mindepth", "1", "-delete"]));
}

/// What the shipped documents do not speak of: a MariaDB, a Redis, states in Secrets, the second region.
const LAB: &str = "\
apiVersion: lifeboat.dev/v1
kind: Repository
metadata: {name: platform-b}
spec:
  url: s3://platform-lifeboat-b/production
  s3:
    region: eu-north-1
STORE_B
    credentials:
      accessKeyId: {file: /etc/lifeboat/platform-b/access-key-id}
      secretAccessKey: {file: /etc/lifeboat/platform-b/secret-access-key}
    objectLock: {mode: governance, minimumDays: 14}
---
apiVersion: lifeboat.dev/v1
kind: Source
metadata: {name: orders}
spec:
  tier: standard
  mariadb:
    host: orders.shop.svc
    user: lifeboat
    password: {file: /etc/lifeboat/shop/lifeboat-password}
    tls: {ca: /etc/lifeboat/shop/ca.crt}
---
apiVersion: lifeboat.dev/v1
kind: Source
metadata: {name: sessions}
spec:
  tier: standard
  redis:
    host: sessions.shop.svc
    password: {file: /etc/lifeboat/shop/redis-password}
    tls: {ca: /etc/lifeboat/shop/ca.crt}
---
apiVersion: lifeboat.dev/v1
kind: Source
metadata: {name: terraform-in-secrets}
spec:
  tier: standard
  terraform: {backend: {kubernetes: {namespace: terraform, secretSuffix: platform}}}
---
apiVersion: lifeboat.dev/v1
kind: Schedule
metadata: {name: lab}
spec:
  repository: platform
  tier: standard
  cron: '*/15 * * * *'
  startDelay: 1m
  maxDuration: 10m
  sources: [orders, sessions, terraform-in-secrets]
";

fn recover_by(service: &str, more: &[&str], lifeboat: impl Fn(&[&str]) -> Command) -> Recovered {
    let restore = ["-r", "platform", "--identity", "kit.txt", "restore", "service", service];
    let recovered = recover(lifeboat, &restore, more);
    recovered.tell();
    let report = &recovered.report;
    assert!(report["tookMs"].as_u64() < report["rtoMs"].as_u64(), "{report}");
    recovered
}
