//! Region A is lost with its bucket. What is left: the replica of the repository in region B, where a standby cluster has nothing
//! of the application, and what people keep in a safe and in a checkout. The shipped plan brings the application up there by
//! one command, which is killed at every step and goes on each time on another machine.

use crate::cluster::{Cluster, wait};
use crate::forward::Forwarded;
use crate::people::{People, Pictures};
use crate::pictshare::{Application, NAMESPACE, define_argo_cd, is_back, make_volumes, place, shipped};
use crate::recovery::{Recovered, named, though_killed};
use crate::secrets::Vault;
use crate::support::{ACCESS_KEY, Bucket, SECRET_KEY, Server, bucket, command, minio_at};
use crate::{in_tree, output, repository};
use serde_json::{Value, json};
use std::fs;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Of region A's images, and of region B's.
const REGISTRIES: [&str; 2] = ["lifeboat.lab", "region-b.lab"];
const REPLICATION: &str = "lifeboat-replicate-critical";
const FORGE: &str = "    url: https://git.example.org/platform/gitops.git\n    username: lifeboat\n    \
                     token: {file: /etc/lifeboat/gitops/token}\n";
const FORGE_B: &str = "    url: https://git.region-b.example.org/platform/gitops.git\n    username: lifeboat\n    \
                       token: {file: /secure/region-b/git-token}\n";

/// Region B: a cluster with storage, registry, forge, Argo CD and Vault of its own, and a desk.
pub struct Standby {
    cluster: Cluster,
    store: Server,
    /// Of whoever is on call: a checkout, and below `secure` what a safe has.
    desk: tempfile::TempDir,
    /// Where people's traffic comes in.
    port: u16,
}

impl Standby {
    pub fn prepare() -> Self {
        let cluster = Cluster::up("test-f");
        let desk = tempfile::tempdir().unwrap();
        cluster.load_lifeboat();
        for image in ["lifeboat:1", "pictshare:1"] {
            let [from, to] = REGISTRIES.map(|registry| format!("{registry}/{image}"));
            let socket = cluster.state().join("run/containerd.sock");
            let images = ["ctr", "--address", socket.to_str().unwrap(), "--namespace", "k8s.io", "images"];
            cluster.lab("node", &[&images[..], &["tag", &from, &to]].concat());
            cluster.lab("node", &[&images[..], &["remove", &from]].concat());
        }
        make_volumes(&cluster, "region-b-fast", false);
        define_argo_cd(&cluster);
        cluster.lab("platform/vault", &[]);
        let store = minio_at(&cluster.address(1));
        tokio::runtime::Runtime::new().unwrap().block_on(bucket(&store, "lab", Bucket::Locked));
        output(
            command("git")
                .args(["init", "--quiet", "--bare", "--initial-branch=main", "gitops.git"])
                .current_dir(&desk),
        );
        let port = balance(desk.path().join("balancer"));
        Self { cluster, store, desk, port }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.desk.path().join(name)
    }

    /// Where people find PictShare, in whichever region.
    fn site(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn lead_people_to(&self, place: &str) {
        fs::write(self.path("balancer"), place).unwrap();
    }

    /// What there is outside of region A: a checkout with region B's addresses, the kit, what Vault's holders have.
    fn keep(&self, application: &Application<'_>, vault: u16) {
        let secure = self.path("secure");
        fs::create_dir_all(secure.join("region-b")).unwrap();
        output(command("cp").arg("-r").arg(application.path("secrets/vault")).arg(&secure));
        for name in ["kit.txt", "writer.key"] {
            fs::copy(application.path(name), self.path(name)).unwrap();
        }
        fs::copy(self.cluster.state().join("secrets/vault/ca.crt"), secure.join("vault/ca.crt")).unwrap();
        let safe = fs::read_to_string(self.cluster.state().join("safe/vault.json")).unwrap();
        let safe: Value = serde_json::from_str(&safe).unwrap();
        fs::write(secure.join("vault/token-of-the-fresh-vault"), safe["root_token"].as_str().unwrap()).unwrap();
        fs::copy(self.cluster.etc().join("admin.conf"), secure.join("region-b/kubeconfig")).unwrap();

        for directory in ["schedules", "restore-plans"] {
            output(command("cp").arg("-r").arg(in_tree(&format!("../../{directory}"))).arg(self.desk.path()));
        }
        let here = secure.display().to_string();
        let secrets = [
            ("/secure", here.clone()),
            ("/etc/lifeboat/vault/ca.crt", format!("{here}/vault/ca.crt")),
            ("vault.vault.svc:8200", format!("127.0.0.1:{vault}")),
        ];
        fs::write(self.path("restore-plans/secrets.yaml"), shipped("restore-plans/secrets.yaml", &secrets)).unwrap();
        let [registry_a, registry_b] = REGISTRIES.map(str::to_owned);
        let plan = [
            (FORGE_B, format!("    url: {}\n", self.path("gitops.git").display())),
            ("registry.region-b.example.org/lifeboat:VERSION", format!("{registry_b}/lifeboat:1")),
            ("registry.region-a.example.org", registry_a),
            ("registry.region-b.example.org", registry_b),
            ("/secure", here),
            ("/usr/local/bin/switch-traffic", self.path("switch-traffic").display().to_string()),
            ("https://pictshare.example.org", self.site()),
        ];
        fs::write(self.path("restore-plans/region-b.yaml"), shipped("restore-plans/region-b.yaml", &plan)).unwrap();
        let (kubectl, kubeconfig) = (self.cluster.state().join("bin/kubectl"), secure.join("region-b/kubeconfig"));
        let switch = format!(
            "#!/bin/sh -eu\n[ \"$1\" = region-b ]\nport=$({kubectl} --kubeconfig {kubeconfig} -n {NAMESPACE} get service \
             pictshare-frontend -o 'jsonpath={{.spec.ports[0].nodePort}}')\necho \"{node}:$port\" >{file}.new\n\
             mv {file}.new {file}\n",
            kubectl = kubectl.display(),
            kubeconfig = kubeconfig.display(),
            node = self.cluster.address(2),
            file = self.path("balancer").display(),
        );
        fs::write(self.path("switch-traffic"), switch).unwrap();
        output(command("chmod").arg("755").arg(self.path("switch-traffic")));
    }

    /// With the bucket of region B and what this machine, whose state is in `state`, has.
    fn lifeboat(&self, state: &Path, arguments: &[&str]) -> Command {
        let mut lifeboat = command(env!("CARGO_BIN_EXE_lifeboat"));
        lifeboat.args(["--json", "--repository", "s3://lab/platform", "--s3-region=us-east-1", "--s3-path-style"]);
        lifeboat.arg("--s3-endpoint").arg(self.store.url()).args(arguments).current_dir(&self.desk);
        lifeboat.env("AWS_ACCESS_KEY_ID", ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        lifeboat.env("LIFEBOAT_CONFIG", "schedules:restore-plans").env("XDG_STATE_HOME", state);
        lifeboat.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        lifeboat
    }

    /// By one command, each time that it is killed on a machine that knows nothing of it but its id.
    fn recover(&self) -> Recovered {
        let state = |killed: usize| self.path(&format!("state-{killed}"));
        let restore = |state: &Path, arguments: &[&str]| {
            let given = ["--identity", "kit.txt", "restore", "region"];
            let answers = ["--answer", "vault/keys", "--answer", "sure"];
            let mut all = [&given[..], arguments, &answers].concat();
            if let ["--resume", id] = arguments {
                all.extend(["--dead", *id]);
            }
            self.lifeboat(state, &all)
        };
        let named =
            named(self.lifeboat(&state(0), &["--identity", "kit.txt", "restore", "region", "region-b", "--dry-run"]));
        let named: Vec<_> = named.iter().map(String::as_str).collect();
        though_killed(state, &[&["region-b", "--yes"], &named[..]].concat(), restore)
    }

    fn get(&self, arguments: &[&str]) -> String {
        self.cluster.get(&[&["-n", NAMESPACE], arguments].concat())
    }

    /// As region B has it: its storage classes, images, ingresses, forge and clusters.
    fn is_its_own(&self, gitops: &str) {
        for claim in ["database", "uploads"] {
            assert_eq!(self.get(&["pvc", claim, "-o", "jsonpath={.spec.storageClassName}"]), "region-b-fast");
        }
        let images = self.get(&["pods", "-o", "jsonpath={.items[*].spec.containers[*].image}"]);
        assert!(!images.is_empty() && images.split(' ').all(|image| image.starts_with("region-b.lab/")), "{images}");
        assert_eq!(self.get(&["ingress", "pictshare", "-o", "jsonpath={.spec.ingressClassName}"]), "nginx-region-b");
        let fields = "jsonpath={.spec.destination.server} {.spec.syncPolicy.automated.selfHeal}";
        let application = self.cluster.get(&["-n", "argocd", "application", NAMESPACE, "-o", fields]);
        assert_eq!(application, "https://kubernetes.default.svc true");
        // They would write into region A's bucket, should that come back.
        assert_eq!(self.get(&["cronjobs", "-o", "name"]), "");
        assert_eq!(head(&self.path("gitops.git")), gitops);
    }

    /// The replica is the repository from now on, and who backs up is known to the Vault that came back.
    fn backs_itself_up(&self, vault: u16) {
        self.cluster.kubectl(&["apply", "-k", &in_tree("../../deploy/base")]);
        let token = ["-n", "lifeboat", "create", "token", "lifeboat-backup", "--duration=1h"];
        fs::write(self.path("account"), self.cluster.kubectl(&token)).unwrap();
        let source = json!({ "apiVersion": "lifeboat.dev/v1", "kind": "Source", "metadata": { "name": "vault" },
            "spec": { "tier": "critical", "heldElsewhere": ["with their holders"], "vault": {
                "address": format!("https://127.0.0.1:{vault}"), "tls": { "ca": self.path("secure/vault/ca.crt") },
                "auth": { "kubernetes": { "role": "lifeboat-backup", "token": self.path("account") } } } } });
        fs::write(self.path("later.yaml"), source.to_string()).unwrap();
        let mut backup = self.lifeboat(&self.path("state"), &["--writer-key", "writer.key", "backup", "vault"]);
        output(backup.env("LIFEBOAT_CONFIG", "later.yaml"));
    }
}

/// What region A lacked of replication: a forge, the second repository, the CronJob of the schedule's replica.
fn replicate_from(application: &Application<'_>, standby: &Standby) {
    let (bare, work) = (application.path("gitops.git"), application.path("gitops"));
    output(command("git").args(["init", "--quiet", "--initial-branch=main"]).arg(&work));
    output(command("cp").arg("-r").arg(in_tree("pictshare")).arg(&work));
    let git = |arguments: &[&str]| output(command("git").arg("-C").arg(&work).args(arguments));
    git(&["add", "--all"]);
    git(&["-c", "user.name=lab", "-c", "user.email=lab@example.org", "commit", "--quiet", "-m", "PictShare"]);
    output(command("git").args(["clone", "--quiet", "--bare"]).arg(&work).arg(&bare));
    let forge = (FORGE, format!("    url: {}\n", bare.display()));
    application.document("standard.yaml", &shipped("schedules/standard.yaml", &[forge]));

    let second = |credentials: &str| {
        let text = repository(&standby.store, credentials, "").replace("  writerKey: {file: }\n", "");
        text.replace("name: platform}", "name: platform-b}")
    };
    application
        .document("replica.yaml", &second("{accessKeyId: {env: TEST_KEY}, secretAccessKey: {env: TEST_SECRET}}"));
    let inside = application.path("in-the-cluster");
    let secrets = "/etc/lifeboat/repository";
    let credentials =
        format!("{{accessKeyId: {{file: {secrets}/key-id}}, secretAccessKey: {{file: {secrets}/secret-key}}}}");
    fs::write(inside.join("documents/replica.yaml"), second(&credentials)).unwrap();
    let wanted = [("# replica: {to: platform-b}", "replica: {to: platform-b}".to_owned())];
    fs::write(inside.join("documents/critical.yaml"), shipped("schedules/critical.yaml", &wanted)).unwrap();

    let cluster = application.cluster;
    let create = |kind: &[&str], files: &[&str]| {
        let files: Vec<_> = files.iter().map(|file| format!("--from-file={}", inside.join(file).display())).collect();
        let files: Vec<_> = files.iter().map(String::as_str).collect();
        cluster.kubectl(&[&["-n", "lifeboat", "create"], kind, &files].concat());
    };
    create(&["configmap", "lifeboat-documents"], &["documents"]);
    create(&["secret", "generic", "lifeboat-replicate-repository"], &["key-id", "secret-key"]);
    cluster.apply(&application.rendered(REPLICATION));
}

pub fn is_lost_and_comes_back(application: Application<'_>, store: Server, standby: &Standby, used: u32) {
    replicate_from(&application, standby);
    let cluster = application.cluster;
    standby.lead_people_to(&place(cluster));
    let vault = Forwarded::to(&standby.cluster, "vault", "svc/vault", 8200);
    standby.keep(&application, vault.port);

    let mut people = People::begin(&standby.site(), used);
    application.back_up_others();
    application.begin_to_back_up_uploads("third");
    application.succeed(&["backup", "gitops"]);
    application.uploads_are_backed_up("third");
    application.succeed(&["replicate", "--to", "platform-b", "gitops"]);
    cluster.kubectl(&["-n", "lifeboat", "create", "job", "copy", &format!("--from=cronjob/{REPLICATION}")]);
    wait(Duration::from_mins(2), "the copy in region B", || cluster.finished_jobs("lifeboat").into_iter().next());
    let gitops = head(&application.path("gitops.git"));
    let given = people.given();
    people.go_on(20);
    // The bucket, the cluster with all of its files, and whatever stood beside it.
    drop(store);
    cluster.lab("down", &[]);
    drop(application);
    people.end();

    let recovered = standby.recover();
    let volume = standby.get(&["pvc", "uploads", "-o", "jsonpath={.spec.volumeName}"]);
    let uploads = standby.cluster.state().join("volumes").join(NAMESPACE).join(volume);
    is_back(&recovered, &people, given, &Pictures::look(&standby.site(), &uploads));
    assert!(recovered.killed >= 5, "it was killed {} times only", recovered.killed);
    standby.is_its_own(&gitops);
    Vault::at(&standby.cluster, &standby.path("secure/vault")).sings();
    standby.backs_itself_up(vault.port);
    People::begin(&standby.site(), people.given()).end();
}

fn head(repository: &Path) -> String {
    output(command("git").arg("-C").arg(repository).args(["rev-parse", "main"]))
}

/// Passes connections on to the place that the file names at the moment.
fn balance(file: PathBuf) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let place: SocketAddr = fs::read_to_string(&file).unwrap().trim().parse().unwrap();
            std::thread::spawn(move || pass(near.unwrap(), place));
        }
    });
    port
}

fn pass(mut near: TcpStream, place: SocketAddr) {
    let Ok(mut far) = TcpStream::connect_timeout(&place, Duration::from_secs(5)) else { return };
    let (mut up_in, mut up_out) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    std::thread::spawn(move || io::copy(&mut up_in, &mut up_out));
    let _ = io::copy(&mut far, &mut near); // it ends somehow
    let _ = (near.shutdown(Shutdown::Both), far.shutdown(Shutdown::Both));
}
