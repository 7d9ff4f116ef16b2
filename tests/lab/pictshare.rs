//! An application is lost with its namespace: its objects, its database and its pictures. The shipped plan brings it back by
//! one command.

use crate::cluster::{Cluster, wait};
use crate::people::{People, Pictures, upload_one};
use crate::recovery::{Recovered, finish};
use crate::secrets::{Vault, certificate, certificate_secret};
use crate::support::{ACCESS_KEY, Bucket, SECRET_KEY, bucket, command, minio_at, tool};
use crate::{in_tree, output, repository, text};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const NAMESPACE: &str = "pictshare-production";
const VOLUMES: [&str; 2] = ["database", "uploads"];
/// In the order of their capture: the rows before the files, so that each row that is captured has its file.
const SOURCES: [&str; 4] =
    ["critical-objects", "pictshare-production-database", "pictshare-production-uploads", "vault"];
/// In Vault.
const PASSWORDS: &str = "secret/pictshare-production/database";
/// A number that nobody else comes to.
const LATER: u32 = 100_000_000;

#[test]
fn an_application_is_lost_with_its_namespace_and_comes_back_by_one_command() {
    let cluster = Cluster::up("test-c");
    let application = Application::install(&cluster);
    let store = minio_at(&cluster.address(1));
    tokio::runtime::Runtime::new().unwrap().block_on(bucket(&store, "lab", Bucket::Locked));
    let credentials = "{accessKeyId: {env: TEST_KEY}, secretAccessKey: {env: TEST_SECRET}}";
    let key = application.path("writer.key").display().to_string();
    application.document("repository.yaml", &repository(&store, credentials, &key));
    application.documents();
    application.succeed(&["init", "--kit", "kit.txt", "--writer-key-out", &key]);

    let mut people = People::begin(&application.site());
    application.succeed(&[&["backup"][..], &SOURCES].concat());
    let given = people.given();
    people.go_on(20);

    application.lose();
    people.end();
    let recovered = application.recover();
    recovered.tell();
    let report = &recovered.report;
    assert!(report["tookMs"].as_u64() < report["rtoMs"].as_u64(), "{report}");
    for source in &SOURCES[..3] {
        let part = recovered.part(source);
        assert!(part["lossMs"].as_u64() < part["rpoMs"].as_u64(), "{part}");
    }

    let site = application.site();
    let pictures = Pictures::look(&site, &application.volume("uploads"));
    assert!(pictures.torn.is_empty(), "rows without their pictures: {:?}", pictures.torn);
    let [rows, files] = [SOURCES[1], SOURCES[2]].map(|source| recovered.moment(source));
    let loss = people.judge(&pictures, rows.min(files), given);
    eprintln!("lab: of the pictures {loss:?}; {} files without a row", pictures.without_row.len());
    assert!(loss.records > 0, "nothing was uploaded after the snapshot");
    upload_one(&site, LATER);
    assert!(Pictures::look(&site, &application.volume("uploads")).whole.contains(&LATER));
    application.is_as_it_was();
}

struct Application<'a> {
    cluster: &'a Cluster,
    vault: Vault<'a>,
    /// Of whoever backs up and recovers: documents and keys.
    home: tempfile::TempDir,
}

impl<'a> Application<'a> {
    fn install(cluster: &'a Cluster) -> Self {
        let home = tempfile::tempdir().unwrap();
        let application = Self { cluster, vault: Vault::install(cluster, &home.path().join("secrets/vault")), home };
        application.load_image();
        application.make_volumes();
        application.make_secrets();
        application.define_argo_cd();
        application.helm(&["install", "--set", "frontend.serviceType=NodePort", "pictshare", &in_tree("pictshare")]);
        application.serves();
        application
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn document(&self, name: &str, text: &str) {
        let directory = self.path("documents");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(name), text).unwrap();
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.cluster.state().join("volumes").join(NAMESPACE).join(name)
    }

    fn load_image(&self) {
        let archive = self.path("pictshare.tar");
        let packages = output(command(in_tree("layer")).arg(in_tree("pictshare/packages")));
        let mut make = command(in_tree("image"));
        make.arg(&archive).arg("lifeboat.lab/pictshare:1").arg(packages.trim()).arg(in_tree("pictshare/root"));
        output(&mut make);
        self.cluster.lab("load", &[archive.to_str().unwrap()]);
        fs::remove_file(archive).unwrap();
    }

    /// Directories of the node, which outlive their claims.
    fn make_volumes(&self) {
        let mut objects =
            vec![json!({ "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": "local" },
            "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer" })];
        let here = json!({ "nodeSelectorTerms": [{ "matchExpressions": [
            { "key": "kubernetes.io/hostname", "operator": "In", "values": [self.cluster.name] }] }] });
        for name in VOLUMES {
            let path = self.volume(name);
            fs::create_dir_all(&path).unwrap();
            objects.push(json!({ "apiVersion": "v1", "kind": "PersistentVolume",
                "metadata": { "name": format!("{NAMESPACE}-{name}") },
                "spec": { "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"], "storageClassName": "local",
                    "persistentVolumeReclaimPolicy": "Retain", "local": { "path": path }, "nodeAffinity": { "required": here },
                    "claimRef": { "namespace": NAMESPACE, "name": name } } }));
        }
        self.cluster.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": objects }));
    }

    /// Passwords, which Vault has, and a certificate of the database's name.
    fn make_secrets(&self) {
        let secrets = self.path("secrets").join(NAMESPACE);
        certificate(&secrets, &["pictshare-database", &format!("pictshare-database.{NAMESPACE}.svc")]);
        let passwords = [("password", "of the application"), ("lifeboat-password", "of whoever backs up")];
        self.vault.write(PASSWORDS, &passwords);
        let [password, lifeboat] = passwords.map(|(name, _)| self.vault.read(PASSWORDS, name));
        fs::write(secrets.join("password"), &lifeboat).unwrap();
        self.cluster.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": [
            { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE, "labels": { "tier": "critical" } } },
            { "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "pictshare-database", "namespace": NAMESPACE },
              "stringData": { "password": password, "lifeboat-password": lifeboat } },
            certificate_secret(&secrets, NAMESPACE, "pictshare-database-tls"),
        ] }));
    }

    /// The Application of which the plan takes the sync. Nobody carries it out here.
    fn define_argo_cd(&self) {
        let source = output(command(in_tree("../tools/build")).args(["--source", "argocd"]));
        let definition = format!("{}/manifests/crds/application-crd.yaml", source.trim());
        self.cluster.kubectl(&["apply", "--server-side", "-f", &definition]);
        wait(Duration::from_mins(1), "Argo CD's kind", || {
            self.cluster.try_kubectl(&["get", "applications.argoproj.io", "-A"]).ok()
        });
        self.cluster.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": [
            { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "argocd" } },
            { "apiVersion": "argoproj.io/v1alpha1", "kind": "Application",
              "metadata": { "name": NAMESPACE, "namespace": "argocd" },
              "spec": { "project": "default", "syncPolicy": { "automated": { "selfHeal": true } },
                "source": { "repoURL": "https://git.example.org/platform/gitops.git", "path": NAMESPACE },
                "destination": { "server": "https://kubernetes.default.svc", "namespace": NAMESPACE } } },
        ] }));
    }

    fn helm(&self, arguments: &[&str]) -> String {
        let mut helm = command(tool("helm"));
        helm.arg("--kubeconfig").arg(self.kubeconfig()).args(["--namespace", NAMESPACE]).args(arguments);
        output(helm.env("HOME", self.home.path()))
    }

    fn kubeconfig(&self) -> PathBuf {
        self.cluster.etc().join("admin.conf")
    }

    /// Where people find it: on a port that the cluster gives, on its node.
    fn site(&self) -> String {
        let port = ["service", "pictshare-frontend", "-o", "jsonpath={.spec.ports[0].nodePort}"];
        let port = self.cluster.get(&[&["-n", NAMESPACE], &port[..]].concat());
        format!("http://{}:{port}", self.cluster.address(2))
    }

    fn serves(&self) {
        for workload in
            ["statefulset/pictshare-database", "deployment/pictshare-backend", "deployment/pictshare-frontend"]
        {
            self.cluster.kubectl(&[
                "-n",
                NAMESPACE,
                "rollout",
                "status",
                workload,
                "--request-timeout=0",
                "--timeout=3m",
            ]);
        }
    }

    /// The shipped ones, with the paths of this machine.
    fn documents(&self) {
        let (secrets, volumes) = (self.path("secrets"), self.cluster.state().join("volumes"));
        let (secrets, volumes) = (secrets.display(), volumes.display());
        let namespaces = "    namespaces: [argocd, vault, pictshare-production]\n";
        let here = [
            (namespaces, format!("    kubeconfig: {}\n{namespaces}", self.kubeconfig().display())),
            ("{role: lifeboat-backup}", format!("{{role: lifeboat-backup, token: {secrets}/vault/account}}")),
            ("/etc/lifeboat", secrets.to_string()),
            ("/sources", volumes.to_string()),
        ];
        self.document("critical.yaml", &shipped("schedules/critical.yaml", &here));
        let plan = shipped(&format!("restore-plans/{NAMESPACE}.yaml"), &[("/restore", volumes.to_string())]);
        self.document("plan.yaml", &plan);
    }

    /// On the node, which has the volumes, and the names of the services.
    fn lifeboat(&self, arguments: &[&str]) -> Command {
        let home = self.home.path();
        let mut lifeboat = command(in_tree("node"));
        lifeboat.arg(self.cluster.name).args(["env", "-C"]).arg(home).arg(env!("CARGO_BIN_EXE_lifeboat"));
        lifeboat.args(["--config", "documents", "-r", "platform", "--json"]).args(arguments);
        lifeboat.env("TEST_KEY", ACCESS_KEY).env("TEST_SECRET", SECRET_KEY).env("XDG_STATE_HOME", home.join("state"));
        lifeboat.env("LIFEBOAT_LAB", self.cluster.state().parent().unwrap());
        lifeboat.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        lifeboat
    }

    fn succeed(&self, arguments: &[&str]) -> String {
        output(&mut self.lifeboat(arguments))
    }

    /// The namespace, and all that was on its volumes.
    fn lose(&self) {
        self.cluster.kubectl(&["delete", "namespace", NAMESPACE, "--request-timeout=0", "--timeout=3m"]);
        for name in VOLUMES {
            for entry in fs::read_dir(self.volume(name)).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
            }
        }
    }

    /// By one command, after a look at what it would do.
    fn recover(&self) -> Recovered {
        let restore = ["--identity", "kit.txt", "restore", "app", NAMESPACE];
        let seen: Value = serde_json::from_str(&self.succeed(&[&restore[..], &["--dry-run"]].concat())).unwrap();
        let ids = seen["mustBeConfirmed"].as_array().unwrap().iter().map(text);
        let named: Vec<_> = ids.flat_map(|id| ["--target-id", id]).collect();
        finish(self.lifeboat(&[&restore[..], &["--yes"], &named].concat()).spawn().unwrap(), 0)
    }

    /// Objects, Helm's release, Argo CD's sync.
    fn is_as_it_was(&self) {
        let compare = ["--identity", "kit.txt", "restore", "snapshot", "critical-objects@latest"];
        let into = ["--into", "critical-objects", "--existing", "update", "--dry-run"];
        let compared: Value = serde_json::from_str(&self.succeed(&[compare, into].concat())).unwrap();
        let changes = compared["changes"].as_array().unwrap();
        let differing: Vec<_> = changes.iter().filter(|change| change["action"] != "unchanged").collect();
        assert!(!changes.is_empty() && differing.is_empty(), "{differing:#?}");
        assert!(self.helm(&["status", "pictshare"]).contains("STATUS: deployed"));
        self.helm(&["upgrade", "--reuse-values", "--wait", "pictshare", &in_tree("pictshare")]);
        assert!(self.helm(&["history", "pictshare", "--max", "2"]).contains("superseded"));
        let sync = ["application", NAMESPACE, "-o", "jsonpath={.spec.syncPolicy.automated.selfHeal}"];
        assert_eq!(self.cluster.get(&[&["-n", "argocd"], &sync[..]].concat()), "true");
        for kind in ["ingress/pictshare", "networkpolicy/database", "resourcequota/pictshare", "pdb/pictshare-backend"]
        {
            self.cluster.get(&["-n", NAMESPACE, kind]);
        }
        let scaled = ["hpa", "pictshare-backend", "-o", "jsonpath={.spec.minReplicas}"];
        assert_eq!(self.cluster.get(&[&["-n", NAMESPACE], &scaled[..]].concat()), "2");
    }
}

/// A document of the tree, in which each of these texts is another here.
pub fn shipped(file: &str, here: &[(&str, String)]) -> String {
    let mut text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    for (there, here) in here {
        assert!(text.contains(there), "{file} has no {there:?} any more");
        text = text.replace(there, here);
    }
    text
}
