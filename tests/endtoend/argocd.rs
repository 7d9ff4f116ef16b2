//! Argo CD with its real controllers: its syncs are paused, and all that it knows comes back.

use crate::support::collect::{context, runtime};
use crate::support::free_ports;
use crate::support::kubernetes::Server;
use crate::support::world::World;
use crate::support::{command, tool};
use lifeboat::source::kubernetes::Spec;
use lifeboat::source::kubernetes::fence::{Hold, Paused, What, hold, look, release};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

const CONTROLLERS: [&str; 3] =
    ["argocd-repo-server", "argocd-application-controller", "argocd-applicationset-controller"];

struct ArgoCd {
    server: Server,
    ports: [u16; 7],
}

impl ArgoCd {
    /// A control plane with Argo CD's kinds and settings, and its controllers at work.
    fn start() -> Self {
        let server = Server::start();
        let directory = server.directory.path();
        for name in CONTROLLERS {
            let script = format!(
                "#!/bin/sh\nexec env ARGOCD_BINARY_NAME={name} ARGOCD_GPG_ENABLED=false HOME=$PWD KUBECONFIG=admin.conf {} \"$@\"\n",
                tool("argocd").display()
            );
            fs::write(directory.join(name), script).unwrap();
            command("chmod").arg("+x").arg(directory.join(name)).status().unwrap();
        }
        let redis = command("sh").args(["-c", "command -v redis-check-rdb"]).output().unwrap();
        let redis = String::from_utf8(redis.stdout).unwrap();
        std::os::unix::fs::symlink(redis.trim(), directory.join("redis-server")).unwrap();
        let mut own = Self { server, ports: free_ports() };
        own.install();
        own.server.run("redis-server", &format!("--bind 127.0.0.1 --port {}", own.ports[0]));
        own.begin();
        own
    }

    fn begin(&mut self) {
        let [redis, repo, metrics, ..] = self.ports;
        let [.., controller, sets, probes, hooks] = self.ports;
        self.server.run(
            CONTROLLERS[0],
            &format!(
                "--redis 127.0.0.1:{redis} --address 127.0.0.1 --port {repo} --metrics-address 127.0.0.1 \
                      --metrics-port {metrics} --disable-tls"
            ),
        );
        let repo = format!("127.0.0.1:{repo} --repo-server-plaintext --kubeconfig admin.conf --namespace argocd");
        self.server.run(
            CONTROLLERS[1],
            &format!("--redis 127.0.0.1:{redis} --metrics-port {controller} --self-heal-timeout-seconds 1 --repo-server {repo}"),
        );
        self.server.run(
            CONTROLLERS[2],
            &format!(
                "--metrics-addr 127.0.0.1:{sets} --probe-addr 127.0.0.1:{probes} --webhook-addr 127.0.0.1:{hooks} \
                      --argocd-repo-server {repo}"
            ),
        );
    }

    fn stop(&mut self) {
        for name in CONTROLLERS {
            self.server.kill(name);
        }
    }

    /// Argo CD's kinds.
    fn define(&self) {
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/build");
        let source = command(build).args(["--source", "argocd"]).stderr(Stdio::inherit()).output().unwrap();
        let source = String::from_utf8(source.stdout).unwrap();
        for kind in ["application", "applicationset", "appproject"] {
            let file = format!("{}/manifests/crds/{kind}-crd.yaml", source.trim());
            self.server.kubectl(&["apply", "--server-side", "-f", &file]);
            self.server.until_established(&format!("{kind}s.argoproj.io"));
        }
    }

    fn install(&self) {
        self.define();
        let directory = self.server.directory.path();
        let kubeconfig = fs::read_to_string(directory.join("admin.conf")).unwrap();
        let cluster = kubeconfig.split("server: '").nth(1).unwrap().split('\'').next().unwrap();
        let authority = fs::read(directory.join("ca.pem")).unwrap();
        let encoded = self.server.try_kubectl(
            &[
                "create",
                "secret",
                "generic",
                "x",
                "--dry-run=client",
                "-o",
                "jsonpath={.data.x}",
                "--from-file=x=ca.pem",
            ],
            "",
        );
        assert!(!authority.is_empty());
        let text = SETTINGS
            .replace("CLUSTER", cluster)
            .replace("AUTHORITY", &encoded.unwrap())
            .replace("REPOSITORY", &repository(directory, cluster));
        self.server.until("Argo CD's objects can be made", || {
            self.server.try_kubectl(&["apply", "--server-side", "-f", "-"], &text).is_ok()
        });
    }

    fn field(&self, namespace: &str, object: &str, path: &str) -> String {
        let path = format!("jsonpath={{{path}}}");
        self.server.try_kubectl(&["-n", namespace, "get", object, "-o", &path], "").unwrap_or_default()
    }

    fn until_is(&self, namespace: &str, object: &str, path: &str, wanted: &str) {
        let deadline = Instant::now() + Duration::from_mins(2);
        while self.field(namespace, object, path) != wanted {
            if Instant::now() > deadline {
                let now = self.server.try_kubectl(&["-n", namespace, "get", object, "-o", "yaml"], "");
                let logs = CONTROLLERS.map(|name| {
                    let log = fs::read_to_string(self.server.directory.path().join(format!("{name}.log"))).unwrap();
                    let last: Vec<_> = log.lines().rev().take(15).collect();
                    format!("{name}:\n{}\n", last.join("\n"))
                });
                panic!("{object}{path} is not {wanted}: {now:#?}\n{}", logs.concat());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn colour(&self, colour: &str) {
        let patch = format!(r#"{{"data": {{"colour": "{colour}"}}}}"#);
        self.server.kubectl(&["-n", "web", "patch", "configmap", "web", "--type=merge", "-p", &patch]);
    }

    /// `argocd admin …`
    fn admin(&self, arguments: &[&str], input: &str) -> String {
        use std::io::Write as _;
        let directory = self.server.directory.path();
        let mut argocd = command(tool("argocd"));
        argocd.arg("admin").args(arguments).args(["--kubeconfig", "admin.conf", "--namespace", "argocd"]);
        argocd.current_dir(directory).env("HOME", directory);
        argocd.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = argocd.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What Argo CD itself says that it knows.
    fn known(&self) -> Vec<Value> {
        documents(&self.admin(&["export"], ""))
    }
}

/// Objects of an export, by kind and name. Who applied an object last is not Argo CD's.
fn documents(export: &str) -> Vec<Value> {
    let documents = export.split("---\n").filter(|text| !text.trim().is_empty());
    let mut all: Vec<Value> = documents.map(|text| serde_saphyr::from_str(text).unwrap()).collect();
    all.sort_by_key(|object| format!("{} {}", object["kind"], object["metadata"]["name"]));
    all
}

fn names(objects: &[Value]) -> Vec<String> {
    let name = |object: &Value| {
        format!("{}/{}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap())
    };
    objects.iter().map(name).collect()
}

#[track_caller]
fn assert_same(before: &[Value], after: &[Value]) {
    assert_eq!(names(before), names(after));
    for (before, after) in before.iter().zip(after) {
        assert!(before == after, "before: {before:#}\nafter: {after:#}");
    }
}

/// In git: what is deployed, and an Application that is deployed by another.
fn repository(directory: &Path, cluster: &str) -> String {
    let repository = directory.join("repository");
    let url = format!("file://{}", repository.display());
    for name in ["web", "one", "two"] {
        fs::create_dir_all(repository.join(name)).unwrap();
        let text = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{colour: blue}}\n");
        fs::write(repository.join(name).join("settings.yaml"), text).unwrap();
    }
    fs::create_dir_all(repository.join("applications")).unwrap();
    let text = format!(
        "apiVersion: argoproj.io/v1alpha1\nkind: Application\nmetadata: {{name: web, namespace: argocd}}\nspec: {{project: \
         default, source: {{repoURL: '{url}', path: web, targetRevision: main}}, destination: {{server: '{cluster}', \
         namespace: web}}, syncPolicy: {{automated: {{selfHeal: true}}}}}}\n"
    );
    fs::write(repository.join("applications/web.yaml"), text).unwrap();
    let name = ["-c", "user.name=test", "-c", "user.email=test@example.com"];
    let commit = [&name[..], &["commit", "-q", "-m", "first"]].concat();
    for arguments in [&["init", "-q", "-b", "main"][..], &["add", "."], &commit] {
        let status = command("git").args(arguments).current_dir(&repository).env("HOME", directory).status().unwrap();
        assert!(status.success(), "git {arguments:?}");
    }
    url
}

const SETTINGS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: argocd}
---
apiVersion: v1
kind: Namespace
metadata: {name: web}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: argocd-cm, namespace: argocd, labels: {app.kubernetes.io/part-of: argocd}}
data: {application.resourceTrackingMethod: annotation}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: argocd-rbac-cm, namespace: argocd, labels: {app.kubernetes.io/part-of: argocd}}
data: {policy.default: 'role:readonly'}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: argocd-ssh-known-hosts-cm, namespace: argocd, labels: {app.kubernetes.io/part-of: argocd}}
data: {ssh_known_hosts: ''}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: argocd-tls-certs-cm, namespace: argocd, labels: {app.kubernetes.io/part-of: argocd}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: argocd-cmd-params-cm, namespace: argocd, labels: {app.kubernetes.io/part-of: argocd}}
---
apiVersion: v1
kind: Secret
metadata: {name: argocd-secret, namespace: argocd, labels: {app.kubernetes.io/part-of: argocd}}
stringData: {server.secretkey: not-a-secret-but-long-enough}
---
apiVersion: v1
kind: Secret
metadata: {name: not-argocds, namespace: argocd}
stringData: {word: hunter2}
---
apiVersion: v1
kind: Secret
metadata: {name: here, namespace: argocd, labels: {argocd.argoproj.io/secret-type: cluster}}
stringData:
  name: here
  server: CLUSTER
  config: '{"bearerToken": "admin-token", "tlsClientConfig": {"caData": "AUTHORITY"}}'
---
apiVersion: v1
kind: Secret
metadata: {name: repository, namespace: argocd, labels: {argocd.argoproj.io/secret-type: repository}}
stringData: {url: 'REPOSITORY', type: git}
---
apiVersion: argoproj.io/v1alpha1
kind: AppProject
metadata: {name: default, namespace: argocd}
spec: {sourceRepos: ['*'], destinations: [{server: '*', namespace: '*'}]}
---
apiVersion: argoproj.io/v1alpha1
kind: Application
metadata: {name: root, namespace: argocd}
spec:
  project: default
  source: {repoURL: 'REPOSITORY', path: applications, targetRevision: main}
  destination: {server: CLUSTER, namespace: argocd}
  syncPolicy: {automated: {selfHeal: true}}
---
apiVersion: argoproj.io/v1alpha1
kind: ApplicationSet
metadata: {name: many, namespace: argocd}
spec:
  syncPolicy: {preserveResourcesOnDeletion: true}
  generators: [{list: {elements: [{name: one}]}}]
  template:
    metadata: {name: 'many-{{name}}'}
    spec:
      project: default
      source: {repoURL: 'REPOSITORY', path: '{{name}}', targetRevision: main}
      destination: {server: CLUSTER, namespace: web}
      syncPolicy: {automated: {selfHeal: true}}
"#;

#[test]
fn argo_cd_is_paused_and_comes_back() {
    let mut argocd = ArgoCd::start();
    for (application, map) in [("root", None), ("web", Some("web")), ("many-one", Some("one"))] {
        argocd.until_is("argocd", &format!("application/{application}"), ".status.sync.status", "Synced");
        if let Some(map) = map {
            argocd.until_is("web", &format!("configmap/{map}"), ".data.colour", "blue");
        }
    }
    // It heals itself, as long as nobody holds it back.
    argocd.colour("red");
    argocd.until_is("web", "configmap/web", ".data.colour", "blue");
    syncs_are_paused(&argocd);

    argocd.stop();
    let world = World::local();
    let document = format!(
        "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: argocd}}\n\
         spec: {{kubernetes: {{kubeconfig: {}, namespaces: [argocd]}}}}\n",
        argocd.server.directory.path().join("admin.conf").display()
    );
    world.document("argocd.yaml", &document);
    world.as_writer(&["backup", "argocd"]).expect(0);
    let before = argocd.known();
    let expected = [
        "Application/many-one",
        "Application/many-two",
        "Application/root",
        "Application/web",
        "ApplicationSet/many",
        "AppProject/default",
    ];
    for name in expected {
        assert!(names(&before).iter().any(|known| known == name), "{name} is not among {:?}", names(&before));
    }
    lose(&argocd);
    world.as_owner(&["restore", "snapshot", "argocd", "--into", "argocd", "--status"]).expect(0);
    assert_same(&before, &argocd.known());
    let set = argocd.field("argocd", "applicationset/many", ".metadata.uid");
    argocd.until_is("argocd", "application/many-one", ".metadata.ownerReferences[0].uid", &set);

    // What Argo CD's own import takes.
    world.as_owner(&["export", "argocd", "--format", "argocd", "-o", "backup.yaml"]).expect(0);
    let backup = fs::read_to_string(world.path("backup.yaml")).unwrap();
    assert!(!backup.contains("not-argocds"), "{backup}");
    assert_same(&before, &documents(&backup));
    lose(&argocd);
    argocd.define();
    let bare = "apiVersion: v1\nkind: Namespace\nmetadata: {name: argocd}\n---\napiVersion: v1\nkind: ConfigMap\n\
                metadata: {name: argocd-cmd-params-cm, namespace: argocd}\n";
    argocd.server.apply(bare);
    let imported = argocd.admin(&["import", "-"], &backup);
    assert!(imported.contains("Import process completed successfully"), "{imported}");
    // Its import does not give ApplicationSets their status.
    let without = |objects: Vec<Value>| {
        let set = |mut object: Value| {
            if object["kind"] == "ApplicationSet" {
                object["status"].take();
            }
            object
        };
        objects.into_iter().map(set).collect::<Vec<_>>()
    };
    assert_same(&without(before), &without(argocd.known()));

    // It goes on where it was: what it has looked at a moment ago it looks at again when it is asked to.
    argocd.colour("red");
    argocd.begin();
    let refresh = ["annotate", "application", "web", "argocd.argoproj.io/refresh=normal"];
    argocd.server.kubectl(&[&["-n", "argocd"], &refresh[..]].concat());
    argocd.until_is("web", "configmap/web", ".data.colour", "blue");
    world.file("a", "content");
    world.backup();
    world.as_owner(&["export", "docs", "--format", "argocd", "-o", "x"]).expect(2).says("has no format argocd");
}

/// Everything of Argo CD, as if the cluster were another.
fn lose(argocd: &ArgoCd) {
    argocd.server.kubectl(&["delete", "namespace", "argocd", "--wait", "--timeout=100s"]);
    for kind in ["applications", "applicationsets", "appprojects"] {
        argocd.server.kubectl(&["delete", "crd", &format!("{kind}.argoproj.io"), "--wait", "--timeout=60s"]);
    }
}

fn syncs_are_paused(argocd: &ArgoCd) {
    let runtime = runtime();
    let context = context(&runtime);
    let spec = Spec { kubeconfig: Some(argocd.server.directory.path().join("admin.conf")), ..Spec::default() };
    let names = ["web", "many-one"].map(str::to_owned).into();
    let wanted = Hold { pause_sync: vec![Paused { namespace: "argocd".into(), names }], ..Hold::default() };
    let held = look(&context, &spec, &wanted).unwrap();
    let found: Vec<_> = held.objects.iter().map(|one| (one.what, &*one.name)).collect();
    let expected = [
        (What::ApplicationSet, "many"),
        (What::Application, "many-one"),
        (What::Application, "root"),
        (What::Application, "web"),
    ];
    assert_eq!(found, expected, "with what would give them their syncs back");
    hold(&context, &spec, &held).unwrap();

    // Its controller sees the difference, and leaves it.
    argocd.colour("red");
    argocd.until_is("argocd", "application/web", ".status.sync.status", "OutOfSync");
    // The ApplicationSet's has been at work too when it has made another.
    let elements = r#"[{"op": "add", "path": "/spec/generators/0/list/elements/-", "value": {"name": "two"}}]"#;
    argocd.server.kubectl(&["-n", "argocd", "patch", "applicationset", "many", "--type=json", "-p", elements]);
    argocd.until_is("argocd", "application/many-two", ".status.sync.status", "Synced");
    for name in ["web", "many-one", "root"] {
        let automated = argocd.field("argocd", &format!("application/{name}"), ".spec.syncPolicy.automated");
        assert_eq!(automated, "", "{name}");
    }
    assert_eq!(argocd.field("web", "configmap/web", ".data.colour"), "red");

    let lines = release(&context, &spec, &held).unwrap();
    assert!(lines.iter().any(|line| line == "application/web in argocd: syncs by itself again"), "{lines:#?}");
    argocd.until_is("web", "configmap/web", ".data.colour", "blue");
    for name in ["web", "many-one", "root"] {
        argocd.until_is("argocd", &format!("application/{name}"), ".spec.syncPolicy.automated.selfHeal", "true");
        argocd.until_is("argocd", &format!("application/{name}"), ".status.sync.status", "Synced");
    }
}
