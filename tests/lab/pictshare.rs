//! An application is lost with its namespace: its objects, its database and its pictures. Later its database is dropped, then
//! Vault is overwritten with garbage, and at last its region is lost ([`crate::region`]). The shipped plans bring each back by
//! one command, from an operator's desk.

use crate::cluster::{Cluster, Turn, wait};
use crate::people::{People, Pictures};
use crate::recovery::{Recovered, named, recover, though_killed};
use crate::region::{self, Standby};
use crate::secrets::{Vault, certificate, certificate_secret};
use crate::support::{ACCESS_KEY, Bucket, SECRET_KEY, Server, bucket, command, minio_at, tool};
use crate::{IMAGE, in_tree, output, repository, text};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

pub const NAMESPACE: &str = "pictshare-production";
const VOLUMES: [&str; 2] = ["database", "uploads"];
pub const ROWS: &str = "pictshare-production-database";
pub const FILES: &str = "pictshare-production-uploads";
/// By a run of their own, as in a cluster.
const OTHERS: [&str; 3] = ["critical-objects", ROWS, "vault"];
/// Of the volume.
const CRONJOB: &str = "lifeboat-critical-pictshare-production-uploads";
/// In Vault.
const PASSWORDS: &str = "secret/pictshare-production/database";

#[test]
fn an_application_and_what_it_needs_are_lost_and_come_back_by_one_command() {
    let _turn = Turn::take();
    // Region B comes up meanwhile.
    std::thread::scope(|scope| disasters(scope.spawn(Standby::prepare)));
}

fn disasters(standby: ScopedJoinHandle<'_, Standby>) {
    let cluster = Cluster::up("test-c");
    let application = Application::install(&cluster);
    let store = minio_at(&cluster.address(1));
    tokio::runtime::Runtime::new().unwrap().block_on(bucket(&store, "lab", Bucket::Locked));
    let credentials = "{accessKeyId: {env: TEST_KEY}, secretAccessKey: {env: TEST_SECRET}}";
    let key = application.path("writer.key").display().to_string();
    application.document("repository.yaml", &repository(&store, credentials, &key));
    application.documents();
    application.succeed(&["init", "--kit", "kit.txt", "--writer-key-out", &key]);
    application.schedule_uploads(&store);

    let mut people = People::begin(&application.site(), 0);
    // It waits for the rows, however early it comes.
    application.begin_to_back_up_uploads("first");
    application.back_up_others();
    application.uploads_are_backed_up("first");
    let given = people.given();
    people.go_on(20);
    application.lose();
    people.end();
    application.is_back(&application.recover(), &people, given);
    application.is_as_it_was();

    let mut people = People::begin(&application.site(), people.given());
    application.back_up_others();
    application.begin_to_back_up_uploads("second");
    application.uploads_are_backed_up("second");
    let given = people.given();
    people.go_on(20);
    application.drop_database();
    people.end();
    let recovered = application.recover_though_killed();
    application.is_back(&recovered, &people, given);
    assert!(recovered.killed >= 3, "it was killed {} times only", recovered.killed);
    // What was there, without its database, is still to be had.
    let aside = text(&recovered.report["toDo"][0]).to_owned();
    assert!(aside.contains("persistentvolumeclaim pictshare-production/database held"), "{:#}", recovered.report);
    let mut people = People::begin(&application.site(), people.given());
    people.end();

    application.vault.corrupt();
    application.vault.replace();
    let recovered = application.recover_vault();
    recovered.tell();
    application.vault.sings();
    application.succeed(&["backup", "vault"]);

    region::is_lost_and_comes_back(application, store, &standby.join().unwrap(), people.given());
}

pub struct Application<'a> {
    pub cluster: &'a Cluster,
    vault: Vault<'a>,
    /// Of whoever backs up and recovers: documents and keys.
    home: tempfile::TempDir,
}

impl<'a> Application<'a> {
    fn install(cluster: &'a Cluster) -> Self {
        let home = tempfile::tempdir().unwrap();
        let application = Self { cluster, vault: Vault::install(cluster, &home.path().join("secrets/vault")), home };
        cluster.load_lifeboat();
        make_volumes(cluster, "fast", true);
        application.make_secrets();
        application.define_argo_cd();
        let set = "frontend.serviceType=NodePort,storageClass=fast";
        application.helm(&["install", "--set", set, "pictshare", &in_tree("pictshare")]);
        application.serves();
        application
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn document(&self, name: &str, text: &str) {
        let directory = self.path("documents");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(name), text).unwrap();
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.cluster.state().join("volumes").join(NAMESPACE).join(name)
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
        define_argo_cd(self.cluster);
        self.cluster.apply(&json!({ "apiVersion": "argoproj.io/v1alpha1", "kind": "Application",
            "metadata": { "name": NAMESPACE, "namespace": "argocd" },
            "spec": { "project": "default", "syncPolicy": { "automated": { "selfHeal": true } },
                "source": { "repoURL": "https://git.example.org/platform/gitops.git", "path": NAMESPACE },
                "destination": { "server": "https://region-a.example.org:6443", "namespace": NAMESPACE } } }));
    }

    fn helm(&self, arguments: &[&str]) -> String {
        let mut helm = command(tool("helm"));
        helm.arg("--kubeconfig").arg(self.kubeconfig()).args(["--namespace", NAMESPACE]).args(arguments);
        output(helm.env("HOME", self.home.path()))
    }

    fn kubeconfig(&self) -> PathBuf {
        self.cluster.etc().join("admin.conf")
    }

    fn site(&self) -> String {
        format!("http://{}", place(self.cluster))
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

    /// The shipped ones, with the paths and the image of this machine.
    fn documents(&self) {
        let secrets = self.path("secrets").display().to_string();
        let image = ("registry.example.org/lifeboat:VERSION", IMAGE.to_owned());
        let token = format!("{{role: lifeboat-backup, token: {secrets}/vault/account}}");
        let here = [("{role: lifeboat-backup}", token), ("/etc/lifeboat", secrets.clone()), image.clone()];
        self.document("critical.yaml", &shipped("schedules/critical.yaml", &here));
        self.document("plan.yaml", &shipped(&format!("restore-plans/{NAMESPACE}.yaml"), &[image]));
        let here = [("/etc/lifeboat", secrets.clone()), ("/secure", secrets)];
        self.document("secrets.yaml", &shipped("restore-plans/secrets.yaml", &here));
    }

    /// What the shipped schedule becomes in the application's namespace, with the rights of `deploy/volume` and no more.
    fn schedule_uploads(&self, store: &Server) {
        let home = self.path("in-the-cluster");
        fs::create_dir_all(home.join("documents")).unwrap();
        output(command("cp").arg("-r").arg(in_tree("../../deploy/volume")).arg(&home));
        let secrets = "/etc/lifeboat/repository";
        let credentials =
            format!("{{accessKeyId: {{file: {secrets}/key-id}}, secretAccessKey: {{file: {secrets}/secret-key}}}}");
        let platform = repository(store, &credentials, &format!("{secrets}/writer-key"));
        fs::write(home.join("documents/repository.yaml"), platform).unwrap();
        fs::write(home.join("documents/critical.yaml"), shipped("schedules/critical.yaml", &[])).unwrap();
        for (name, value) in [("key-id", ACCESS_KEY), ("secret-key", SECRET_KEY)] {
            fs::write(home.join(name), value).unwrap();
        }
        fs::copy(self.path("writer.key"), home.join("writer-key")).unwrap();
        let overlay = format!(
            "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: {NAMESPACE}\nresources: [volume]\n\
             generatorOptions: {{disableNameSuffixHash: true}}\nconfigMapGenerator:\n  - name: lifeboat-documents\n    \
             files: [documents/repository.yaml, documents/critical.yaml]\nsecretGenerator:\n  - name: lifeboat-repository\n    \
             files: [key-id, secret-key, writer-key]\n"
        );
        fs::write(home.join("kustomization.yaml"), overlay).unwrap();
        self.cluster.kubectl(&["apply", "-k", home.to_str().unwrap()]);
        self.cluster.apply(&self.rendered(CRONJOB));
    }

    /// What `schedule render` makes, for a test to run when it likes: its turns would come at any time.
    pub fn rendered(&self, name: &str) -> Value {
        let mut render = command(env!("CARGO_BIN_EXE_lifeboat"));
        render.arg("--config").arg(self.path("in-the-cluster/documents"));
        render.args(["--json", "schedule", "render", "--image", IMAGE]);
        let rendered: Value = serde_json::from_str(&output(&mut render)).unwrap();
        let mut all = rendered["items"].as_array().unwrap().iter();
        let mut cronjob = all.find(|cronjob| cronjob["metadata"]["name"] == name).unwrap().clone();
        cronjob["spec"]["suspend"] = json!(true);
        cronjob
    }

    /// By their CronJob.
    pub fn begin_to_back_up_uploads(&self, job: &str) {
        let from = format!("--from=cronjob/{CRONJOB}");
        self.cluster.kubectl(&["-n", NAMESPACE, "create", "job", job, &from]);
    }

    /// Everything else, by another run.
    pub fn back_up_others(&self) {
        self.succeed(&[&["backup", "--schedule", "critical"][..], &OTHERS].concat());
    }

    pub fn uploads_are_backed_up(&self, job: &str) {
        wait(Duration::from_mins(2), "the backup of the uploads", || {
            self.cluster.finished_jobs(NAMESPACE).into_iter().find(|ended| ended.1 == job)
        });
    }

    /// With the documents, the keys and a kubeconfig.
    fn dressed(&self, mut lifeboat: Command, arguments: &[&str]) -> Command {
        lifeboat.args(["--config", "documents", "-r", "platform", "--json", "--kubeconfig"]).arg(self.kubeconfig());
        lifeboat.args(arguments).env("TEST_KEY", ACCESS_KEY).env("TEST_SECRET", SECRET_KEY);
        lifeboat.env("XDG_STATE_HOME", self.path("state"));
        lifeboat.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        lifeboat
    }

    /// On the node, where services have their names, as for a pod.
    fn lifeboat(&self, arguments: &[&str]) -> Command {
        let mut lifeboat = command(in_tree("node"));
        lifeboat.arg(self.cluster.name).args(["env", "-C"]).arg(self.home.path()).arg(env!("CARGO_BIN_EXE_lifeboat"));
        lifeboat.env("LIFEBOAT_LAB", self.cluster.state().parent().unwrap());
        self.dressed(lifeboat, arguments)
    }

    pub fn succeed(&self, arguments: &[&str]) -> String {
        output(&mut self.lifeboat(arguments))
    }

    /// At an operator's desk: of the cluster, it sees the API server.
    fn desk(&self, arguments: &[&str]) -> Command {
        let mut lifeboat = command(env!("CARGO_BIN_EXE_lifeboat"));
        lifeboat.current_dir(self.home.path());
        self.dressed(lifeboat, arguments)
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

    /// While people use it, and everything else is well.
    fn drop_database(&self) {
        let pod = ["-n", NAMESPACE, "exec", "pictshare-database-0", "--"];
        let superuser = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "psql", "-c"];
        self.cluster.kubectl(&[&pod[..], &superuser, &["DROP DATABASE pictshare WITH (FORCE)", "postgres"]].concat());
    }

    fn recover(&self) -> Recovered {
        recover(|arguments| self.desk(arguments), &["--identity", "kit.txt", "restore", "app", NAMESPACE], &[])
    }

    fn recover_though_killed(&self) -> Recovered {
        let restore =
            |arguments: &[&str]| self.desk(&[&["--identity", "kit.txt", "restore", "app"], arguments].concat());
        let named = named(restore(&[NAMESPACE, "--dry-run"]));
        let named: Vec<_> = named.iter().map(String::as_str).collect();
        let begin = [&[NAMESPACE, "--yes"], &named[..]].concat();
        though_killed(|_| self.path("state"), &begin, |_, arguments| restore(arguments))
    }

    /// On the node, since it is asked by its name.
    fn recover_vault(&self) -> Recovered {
        let restore = ["--identity", "kit.txt", "restore", "service", "secrets"];
        recover(|arguments| self.lifeboat(arguments), &restore, &["--answer", "keys"])
    }

    fn is_back(&self, recovered: &Recovered, people: &People, given: u32) {
        is_back(recovered, people, given, &Pictures::look(&self.site(), &self.volume("uploads")));
    }

    /// Objects, Helm's release, Argo CD's sync.
    fn is_as_it_was(&self) {
        let compare = ["--identity", "kit.txt", "restore", "snapshot", "critical-objects@latest"];
        let into = ["--into", "critical-objects", "--existing", "update", "--dry-run"];
        let compared = output(&mut self.desk(&[&compare[..], &into].concat()));
        let compared: Value = serde_json::from_str(&compared).unwrap();
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

/// Within its tier's objectives, and every picture that was acknowledged before is served.
pub fn is_back(recovered: &Recovered, people: &People, given: u32, pictures: &Pictures) {
    recovered.tell();
    let report = &recovered.report;
    assert!(report["tookMs"].as_u64() < report["rtoMs"].as_u64(), "{report}");
    for source in ["critical-objects", ROWS, FILES] {
        let part = recovered.part(source);
        assert!(part["lossMs"].as_u64() < part["rpoMs"].as_u64(), "{part}");
    }
    assert!(pictures.torn.is_empty(), "rows without their pictures: {:?}", pictures.torn);
    assert!(recovered.moment(ROWS) <= recovered.moment(FILES), "{report:#}");
    let loss = people.judge(pictures, recovered.moment(ROWS), given);
    eprintln!("lab: of the pictures {loss:?}; {} files without a row", pictures.without_row.len());
    assert!(loss.records > 0, "nothing was uploaded after the snapshot");
}

/// Directories of the node, which outlive their claims; with `named`, a claim gets the one of its name.
pub fn make_volumes(cluster: &Cluster, class: &str, named: bool) {
    let mut objects =
        vec![json!({ "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": class },
            "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer" })];
    let here = json!({ "nodeSelectorTerms": [{ "matchExpressions": [
        { "key": "kubernetes.io/hostname", "operator": "In", "values": [cluster.name] }] }] });
    for name in VOLUMES {
        let path = cluster.state().join("volumes").join(NAMESPACE).join(name);
        fs::create_dir_all(&path).unwrap();
        let mut volume = json!({ "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": name },
            "spec": { "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"], "storageClassName": class,
                "persistentVolumeReclaimPolicy": "Retain", "local": { "path": path }, "nodeAffinity": { "required": here } } });
        if named {
            volume["spec"]["claimRef"] = json!({ "namespace": NAMESPACE, "name": name });
        }
        objects.push(volume);
    }
    cluster.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": objects }));
}

/// Its kind of objects, and its namespace. It does not run.
pub fn define_argo_cd(cluster: &Cluster) {
    let source = output(command(in_tree("../tools/build")).args(["--source", "argocd"]));
    let definition = format!("{}/manifests/crds/application-crd.yaml", source.trim());
    cluster.kubectl(&["apply", "--server-side", "-f", &definition]);
    wait(Duration::from_mins(1), "Argo CD's kind", || {
        cluster.try_kubectl(&["get", "applications.argoproj.io", "-A"]).ok()
    });
    cluster.kubectl(&["create", "namespace", "argocd"]);
}

/// Where people find it: on a port that the cluster gives, on its node.
pub fn place(cluster: &Cluster) -> String {
    let port = ["service", "pictshare-frontend", "-o", "jsonpath={.spec.ports[0].nodePort}"];
    format!("{}:{}", cluster.address(2), cluster.get(&[&["-n", NAMESPACE], &port[..]].concat()))
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
