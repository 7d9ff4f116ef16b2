//! A volume of a cluster whose pods really run: captured by its own CronJob beside the pod that writes, held still and let go
//! whatever happens, destroyed, and filled again before the workload starts.

use crate::claims;
use crate::cluster::{self, Cluster, Turn, wait};
use crate::support::collect::{context, runtime};
use crate::support::{ACCESS_KEY, SECRET_KEY, Server, command, minio_at};
use crate::{IMAGE, Owner, output, repository, text};
use lifeboat::entry::{Entry, Input, Problem, Sink, Stopped};
use lifeboat::source::{self, Context, SourceError};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub const OUTSIDE: &str = "{accessKeyId: {env: TEST_KEY}, secretAccessKey: {env: TEST_SECRET}}";
pub const MINUTE: Duration = Duration::from_mins(1);

#[test]
fn a_volume_is_held_still_captured_destroyed_and_filled_before_its_workload_starts() {
    let _turn = Turn::take();
    let cluster = Cluster::up("test-b");
    let store = minio_at(&cluster.address(1));
    let home = tempfile::tempdir().unwrap();
    let owner = Owner { home: home.path() };
    owner.create_repository(&store);
    let lab = Lab { cluster: &cluster, owner, store: &store };
    cluster.load_lifeboat();
    lab.classes();
    lab.shop();
    lab.documents();

    lab.backs_itself_up();
    lab.lets_go_after_a_failure();
    lab.lets_go_when_it_is_stopped();
    lab.says_loudly_what_is_still_held();
    lab.refuses_what_is_in_use();

    let expected = lab.destroyed();
    lab.restored(&expected);
    lab.again(&expected);
    lab.refuses_what_is_not_empty();
    claims::takes_trees_into_claims(&lab);
    claims::takes_a_snapshot_into_a_claim(&lab);
    lab.restored_by_a_plan(&expected);
    lab.works_on();
    drop(cluster);
    cluster::assert_nothing_is_left("test-b");
}

pub struct Lab<'a> {
    pub cluster: &'a Cluster,
    pub owner: Owner<'a>,
    pub store: &'a Server,
}

/// How a command ended and what it said.
pub struct Said {
    pub code: Option<i32>,
    pub text: String,
}

pub fn said(command: &mut Command) -> Said {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    Said { code: output.status.code(), text }
}

impl Said {
    #[track_caller]
    pub fn expect(self, code: i32, part: &str) -> String {
        assert!(
            self.code == Some(code) && self.text.contains(part),
            "{:?} and not {code}, {part:?}: {}",
            self.code,
            self.text
        );
        self.text
    }
}

/// Everything about every file: what a restore must bring back.
pub type Picture = BTreeMap<String, String>;

pub fn picture(root: &Path) -> Picture {
    let (mut all, mut left) = (Picture::new(), vec![root.to_owned()]);
    while let Some(path) = left.pop() {
        let seen = fs::symlink_metadata(&path).unwrap();
        let mut content = String::new();
        if seen.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if seen.is_file() {
            content = blake3::hash(&fs::read(&path).unwrap()).to_string();
        } else if seen.is_symlink() {
            content = fs::read_link(&path).unwrap().display().to_string();
        }
        let mut attributes: Vec<_> = xattr::list(&path).into_iter().flatten().collect();
        attributes.sort();
        let attributes: Vec<_> = attributes.into_iter().map(|name| (xattr::get(&path, &name).unwrap(), name)).collect();
        let size = if seen.is_dir() { 0 } else { seen.len() };
        let links = if seen.is_dir() { 0 } else { seen.nlink() };
        let name = path.strip_prefix(root).unwrap().display().to_string();
        all.insert(
            name,
            format!(
                "{:o} {}:{} {}.{:09} {size} {links} {} {attributes:?} {content}",
                seen.mode(),
                seen.uid(),
                seen.gid(),
                seen.mtime(),
                seen.mtime_nsec(),
                seen.rdev(),
            ),
        );
    }
    all
}

impl Lab<'_> {
    /// Where the volume of that name is on the node.
    pub fn disk(&self, name: &str) -> PathBuf {
        self.cluster.state().join("volumes").join(name)
    }

    pub fn path(&self, name: &str) -> String {
        self.owner.home.join(name).display().to_string()
    }

    /// Volumes of two storage classes, each a directory of the node.
    fn classes(&self) {
        let class = |name: &str| {
            json!({ "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": name },
                "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer" })
        };
        let mut items = vec![class("first"), class("other")];
        for (name, class) in [("a", "first"), ("b", "other"), ("c", "other"), ("d", "other")] {
            fs::create_dir(self.disk(name)).unwrap();
            items.push(self.volume_of(name, class));
        }
        // A claim takes the smallest that will do, and this one is kept for a claim that names it.
        items.last_mut().unwrap()["spec"]["capacity"]["storage"] = json!("128Mi");
        self.cluster.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": items }));
        build(&self.disk("a"));
    }

    /// A directory of the node.
    pub fn volume_of(&self, name: &str, class: &str) -> Value {
        json!({ "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": name },
            "spec": { "capacity": { "storage": "64Mi" }, "accessModes": ["ReadWriteOnce"], "storageClassName": class,
                "persistentVolumeReclaimPolicy": "Retain", "local": { "path": self.disk(name) },
                "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [
                    { "key": "kubernetes.io/hostname", "operator": "In", "values": [self.cluster.name] }] }] } } } })
    }

    fn deployment(&self) {
        let write = "while :; do [ -e /tmp/hold ] || date >>/data/journal; sleep 1; done";
        let hook = |script: &str| json!(["sh", "-c", script]).to_string();
        let annotations = json!({
            "pre.hook.backup.velero.io/command":
                hook("echo pre >>/tmp/hooks; touch /tmp/hold; sleep 2; echo held >/data/state"),
            "post.hook.backup.velero.io/command":
                hook("echo free >/data/state; rm -f /tmp/hold; echo post >>/tmp/hooks"),
            "k8up.io/backupcommand": "sh -c 'echo \"a dump of $HOSTNAME\"'",
            "k8up.io/file-extension": ".txt",
        });
        self.cluster.apply(&json!({ "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "name": "shop", "namespace": "shop" },
            "spec": { "replicas": 1, "strategy": { "type": "Recreate" }, "selector": { "matchLabels": { "app": "shop" } },
                "template": { "metadata": { "labels": { "app": "shop" }, "annotations": annotations },
                    "spec": { "terminationGracePeriodSeconds": 1,
                        "containers": [{ "name": "main", "image": "lifeboat.lab/busybox:1", "imagePullPolicy": "Never",
                            "command": ["sh", "-c", write], "volumeMounts": [{ "name": "data", "mountPath": "/data" }] }],
                        "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": "data" } }] } } } }));
        self.cluster.kubectl(&["-n", "shop", "rollout", "status", "deployment/shop", "--timeout=60s"]);
        wait(MINUTE, "what the shop writes", || self.in_shop("cat /data/journal").ok());
    }

    fn shop(&self) {
        self.cluster.kubectl(&["create", "namespace", "shop"]);
        self.cluster.apply(&claim("data", "first"));
        self.deployment();
    }

    fn in_shop(&self, script: &str) -> Result<String, String> {
        self.cluster.try_kubectl(&["-n", "shop", "exec", "deployment/shop", "--", "sh", "-c", script])
    }

    /// What ran in the pod so far.
    fn hooks(&self) -> String {
        self.in_shop("cat /tmp/hooks 2>/dev/null || true").unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn source(&self, name: &str, claim: &str, disk: &Path, more: &str) -> String {
        format!(
            "---\napiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: {name}}}\nspec:\n  tier: standard\n  volume:\n    \
             namespace: shop\n    claim: {claim}\n    path: {}\n    image: {IMAGE}\n    kubeconfig: {}\n{more}",
            disk.display(),
            self.cluster.etc().join("admin.conf").display(),
        )
    }

    fn documents(&self) {
        let text = repository(self.store, OUTSIDE, "writer.key")
            + &self.source("shop-data", "data", &self.disk("a"), "")
            + &self.source("missing", "data", &self.disk("nowhere"), "")
            + &self.source("stuck", "data", &self.disk("a"), STUCK)
            + &self.source("other", "other", &self.disk("d"), "")
            + "---\napiVersion: lifeboat.dev/v1\nkind: RestorePlan\nmetadata: {name: shop}\nspec:\n  level: app\n  \
               tier: standard\n  steps:\n    - name: files\n      restore:\n        source: shop-data\n        \
               options: {storageClasses: {first: other}}\n";
        self.owner.document("outside.yaml", &text);
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut lifeboat = command(env!("CARGO_BIN_EXE_lifeboat"));
        lifeboat
            .args(["--config", "outside.yaml", "--writer-key", "writer.key", "--identity", "kit.txt"])
            .args(arguments);
        lifeboat.current_dir(self.owner.home).env("TEST_KEY", ACCESS_KEY).env("TEST_SECRET", SECRET_KEY);
        lifeboat.env("XDG_STATE_HOME", self.owner.home.join("state")).stdin(Stdio::null());
        lifeboat
    }

    pub fn lifeboat(&self, arguments: &[&str]) -> Said {
        said(&mut self.command(arguments))
    }

    /// The id of the first restore by that plan.
    pub fn begun(&self, plan: &str) -> String {
        let known = self.command(&["--json", "restore", "list"]).output().unwrap().stdout;
        let known: Value = serde_json::from_slice(&known).unwrap();
        let mut begun = known["restores"].as_array().unwrap().iter().filter(|one| one["plan"] == plan);
        text(&begun.next().unwrap_or_else(|| panic!("{known:#}"))["id"]).to_owned()
    }

    fn newest(&self) -> Value {
        let shown = self.command(&["--json", "show", "shop-data@latest"]).output().unwrap();
        serde_json::from_slice(&shown.stdout).unwrap()
    }

    /// Puts the CronJobs of `documents` into the namespace of the shop, with what they need there: of `deploy/volume` these
    /// components.
    pub fn install(&self, documents: &str, components: &[&str]) {
        let secrets = "/etc/lifeboat/repository";
        let credentials =
            format!("{{accessKeyId: {{file: {secrets}/key-id}}, secretAccessKey: {{file: {secrets}/secret-key}}}}");
        let documents = repository(self.store, &credentials, &format!("{secrets}/writer-key")) + documents;
        self.owner.document("platform.yaml", &documents);
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/volume");
        output(command("cp").arg("-r").arg(deploy).arg(self.path("volume")));
        let components: Vec<_> = components.iter().map(|name| format!("volume/{name}")).collect();
        let overlay = json!({ "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
            "namespace": "shop", "resources": ["volume"], "components": components });
        self.owner.document("kustomization.yaml", &overlay.to_string());
        self.cluster.kubectl(&["apply", "-k", &self.path("")]);
        for (name, value) in [("key-id", ACCESS_KEY), ("secret-key", SECRET_KEY)] {
            self.owner.document(name, value);
        }
        let create = |kind: &[&str], files: &[(&str, &str)]| {
            let files: Vec<_> =
                files.iter().map(|(key, file)| format!("--from-file={key}={}", self.path(file))).collect();
            let files: Vec<_> = files.iter().map(String::as_str).collect();
            self.cluster.kubectl(&[&["-n", "shop", "create"], kind, &files].concat());
        };
        create(&["configmap", "lifeboat-documents"], &[("platform.yaml", "platform.yaml")]);
        let keys = [("writer-key", "writer.key"), ("key-id", "key-id"), ("secret-key", "secret-key")];
        create(&["secret", "generic", "lifeboat-repository"], &keys);
        let manifest = self.owner.run(&["--config", "platform.yaml", "schedule", "render", "--image", IMAGE]);
        self.owner.document("cronjob.yaml", &manifest);
        self.cluster.kubectl(&["apply", "-f", &self.path("cronjob.yaml")]);
    }

    /// By the CronJob that `lifeboat schedule render` makes, with the rights of `deploy/volume` and no more.
    fn backs_itself_up(&self) {
        let documents = "---\napiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {name: shop-data}\nspec:\n  tier: standard\n  \
               volume: {namespace: shop, claim: data, pods: {app: shop}}\n\
               ---\napiVersion: lifeboat.dev/v1\nkind: Schedule\nmetadata: {name: seldom}\nspec:\n  repository: platform\n  \
               tier: standard\n  cron: '0 0 1 1 *'\n  maxDuration: 1m\n  sources: [shop-data]\n";
        self.install(documents, &["hooks"]);
        let from = "--from=cronjob/lifeboat-seldom-shop-data";
        self.cluster.kubectl(&["-n", "shop", "create", "job", "by-hand", from]);
        wait(Duration::from_mins(4), "a backup by the volume's CronJob", || {
            self.cluster.finished_jobs("shop").into_iter().next()
        });

        let newest = self.newest();
        assert_eq!(newest["state"], "good", "{newest:#}");
        let uid = self.cluster.get(&["-n", "shop", "pvc", "data", "-o", "jsonpath={.metadata.uid}"]);
        assert!(newest.to_string().contains(&uid), "{newest:#}");
        assert!(self.hooks().starts_with("pre post"), "{}", self.hooks());
        let read = |path: &str| self.command(&["export", "shop-data@latest", path, "-o", "-"]).output().unwrap().stdout;
        let holds = |path: &str, text: &str| {
            let all = read(path);
            assert!(
                all.windows(text.len()).any(|part| part == text.as_bytes()),
                "{path}: {}",
                String::from_utf8_lossy(&all)
            );
        };
        holds("streams/main.txt", "a dump of shop-");
        holds("files/state", "held\n");
        holds("claim.yaml", "storageClassName: first");
        assert_eq!(self.in_shop("cat /data/state").unwrap(), "free\n");
    }

    /// The volume cannot be read: nothing is committed, and what was held is let go.
    fn lets_go_after_a_failure(&self) {
        let before = self.hooks();
        self.lifeboat(&["backup", "missing"]).expect(1, "is it mounted");
        assert_eq!(self.hooks(), format!("{before} pre post"));
        self.lifeboat(&["show", "missing@latest"]).expect(1, "");
    }

    /// By SIGTERM, as a pod is that is to go; and in the middle of the walk, as the repository stops it then.
    fn lets_go_when_it_is_stopped(&self) {
        let before = self.hooks();
        let mut lifeboat = self.command(&["backup", "shop-data"]);
        let child = lifeboat.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait(MINUTE, "the begin of the hook", || (self.hooks() == format!("{before} pre")).then_some(()));
        output(command("kill").args(["-TERM", &child.id().to_string()]));
        let ended = child.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(130), "{}", String::from_utf8_lossy(&ended.stderr));
        assert_eq!(self.hooks(), format!("{before} pre post"));

        let before = self.hooks();
        let spec = json!({ "namespace": "shop", "claim": "data", "path": self.disk("a"),
            "kubeconfig": self.cluster.etc().join("admin.conf") });
        let spec = source::Spec::Volume(serde_json::from_value(spec).unwrap());
        let runtime = runtime();
        let context = context(&runtime);
        let mut sink = Stopping { lab: self, context: &context, during: String::new(), kept: Vec::new() };
        let stopped = spec.open().unwrap().capture(&context, &mut sink);
        assert!(matches!(stopped, Err(SourceError::Stopped(_))), "{stopped:?}");
        assert_eq!(sink.during, format!("{before} pre"));
        assert_eq!(self.hooks(), format!("{before} pre post"));
    }

    /// A program that does not let go: the snapshot is kept, and whoever reads the output cannot miss it.
    fn says_loudly_what_is_still_held(&self) {
        let said = self.lifeboat(&["backup", "stuck"]).expect(3, "may still be held (look at it now)");
        assert!(said.contains("cannot let go"), "{said}");
        let unfit = self.source("unfit", "data", &self.disk("a"), UNFIT);
        self.owner.document("unfit.yaml", &unfit);
        let mut lifeboat = self.command(&["--config", "unfit.yaml", "backup", "unfit"]);
        let said = lifeboat.output().unwrap();
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(text.contains("did not end within 1s"), "{text}");
    }

    fn into(&self, more: &[&str]) -> Said {
        self.lifeboat(&[&["restore", "snapshot", "shop-data@latest", "--into", "shop-data"], more].concat())
    }

    fn refuses_what_is_in_use(&self) {
        self.into(&["--dry-run", "--existing", "replace"]).expect(3, "uses it: scale what it belongs to down first");
        self.into(&["--existing", "replace"]).expect(3, "uses it");
        assert!(self.in_shop("cat /data/journal").is_ok());
    }

    /// The last backup, and then nothing of it is left.
    fn destroyed(&self) -> Picture {
        let scale = |to: &str| self.cluster.kubectl(&["-n", "shop", "scale", "deployment/shop", to]);
        scale("--replicas=0");
        wait(MINUTE, "the end of the shop's pod", || {
            self.cluster.get(&["-n", "shop", "pods", "-l", "app=shop", "-o", "name"]).is_empty().then_some(())
        });
        self.lifeboat(&["backup", "shop-data"]).expect(0, "");
        let expected = picture(&self.disk("a"));
        // A pod that has ended keeps the claim as one that runs does.
        self.cluster.kubectl(&["-n", "shop", "delete", "jobs", "--all", "--timeout=60s"]);
        self.cluster.kubectl(&["-n", "shop", "delete", "pvc", "data", "--timeout=60s"]);
        fs::remove_dir_all(self.disk("a")).unwrap();
        expected
    }

    fn restored(&self, expected: &Picture) {
        self.into(&["--dry-run"]).expect(0, "persistentvolumeclaim shop/data create");
        let began = Instant::now();
        let said = self.into(&["--map-storage-class", "first=other"]).expect(0, "are on the volume");
        eprintln!("lab: a volume restored in {:?}: {said}", began.elapsed());
        assert_eq!(&picture(&self.volume()), expected);
        let pods = self.cluster.get(&["-n", "shop", "pods", "-l", "app.kubernetes.io/component=restore", "-o", "name"]);
        assert_eq!(pods, "", "the pod that it was restored by is gone");
    }

    /// The directory of the volume that the claim has now.
    fn volume(&self) -> PathBuf {
        self.disk(&self.cluster.get(&["-n", "shop", "pvc", "data", "-o", "jsonpath={.spec.volumeName}"]))
    }

    fn again(&self, expected: &Picture) {
        self.into(&[]).expect(0, "unchanged 1");
        fs::write(self.volume().join("younger"), "x").unwrap();
        let plan =
            self.command(&["--json", "restore", "snapshot", "shop-data@latest", "--into", "shop-data", "--dry-run"]);
        let id = { plan }.output().unwrap().stdout;
        let id = serde_json::from_slice::<Value>(&id).unwrap()["target"].as_str().unwrap().to_owned();
        let replace = ["--existing", "replace", "--yes", "--target-id"];
        self.into(&[&replace[..], &["another"]].concat()).expect(2, "nothing was changed");
        self.into(&[&replace[..], &[&id]].concat()).expect(0, "replace 1");
        assert_eq!(&picture(&self.volume()), expected);
        // A single file beside what is there.
        fs::remove_file(self.volume().join("pictures/b.jpg")).unwrap();
        fs::remove_file(self.volume().join("pictures/a.jpg")).unwrap();
        self.lifeboat(&["restore", "snapshot", "shop-data@latest", "files/pictures/a.jpg", "--into", "shop-data"])
            .expect(0, "");
        assert_eq!(fs::read(self.volume().join("pictures/a.jpg")).unwrap(), b"a picture");
    }

    fn refuses_what_is_not_empty(&self) {
        fs::write(self.disk("d").join("precious"), "x").unwrap();
        let mut other = claim("other", "other");
        other["spec"]["volumeName"] = json!("d");
        self.cluster.apply(&other);
        let into_other = ["restore", "snapshot", "shop-data@latest", "--into", "other"];
        self.lifeboat(&into_other).expect(1, "it is not empty");
        assert!(self.disk("d").join("precious").exists());
        self.lifeboat(&[&into_other[..], &["--existing", "replace"]].concat()).expect(3, "it is another volume");
        assert!(self.disk("d").join("precious").exists());
        // Marks of another claim, as in a copy of its manifest, do not make it this restore's own.
        let marks = self.cluster.get(&[
            "-n",
            "shop",
            "pvc",
            "data",
            "-o",
            r"jsonpath={.metadata.annotations.lifeboat\.dev/filled}",
        ]);
        let mark = |name: &str| format!("lifeboat.dev/{name}={marks}");
        self.cluster.kubectl(&["-n", "shop", "annotate", "pvc", "other", &mark("filled"), &mark("filling")]);
        self.lifeboat(&into_other).expect(1, "it is not empty");
        assert!(self.disk("d").join("precious").exists());
    }

    /// The claim is gone once more; a restore that was killed half-way is gone on with.
    fn restored_by_a_plan(&self, expected: &Picture) {
        let before = self.volume();
        self.cluster.kubectl(&["-n", "shop", "delete", "pvc", "data", "--timeout=60s"]);
        fs::remove_dir_all(before).unwrap();
        let restore = ["restore", "app", "shop"];
        let mut killed = self.command(&restore).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait(MINUTE, "the pod to restore by", || {
            let pods = ["-n", "shop", "pods", "-l", "app.kubernetes.io/component=restore", "-o", "name"];
            (!self.cluster.get(&pods).is_empty()).then_some(())
        });
        killed.kill().unwrap();
        killed.wait().unwrap();
        self.lifeboat(&["restore", "app", "--resume", &self.begun("shop")]).expect(0, "");
        assert_eq!(&picture(&self.volume()), expected);
    }

    /// The workload starts on what came back, and the volume is the one that was captured.
    fn works_on(&self) {
        self.cluster.kubectl(&["-n", "shop", "scale", "deployment/shop", "--replicas=1"]);
        self.cluster.kubectl(&["-n", "shop", "rollout", "status", "deployment/shop", "--timeout=60s"]);
        assert_eq!(self.in_shop("cat /data/pictures/a.jpg").unwrap(), "a picture");
        let text =
            repository(self.store, OUTSIDE, "writer.key") + &self.source("shop-data", "data", &self.volume(), "");
        self.owner.document("outside.yaml", &text);
        self.lifeboat(&["backup", "shop-data"]).expect(0, "");
        assert_eq!(self.newest()["state"], "good");
    }
}

/// Its last program fails.
const STUCK: &str = "    hooks:\n      annotations: false\n      post:\n        \
                     - {command: [sh, -c, 'echo cannot let go >&2; exit 4'], timeout: 10s}\n";
/// Its first does not end in time.
const UNFIT: &str =
    "    hooks:\n      annotations: false\n      pre:\n        - {command: [sleep, '20'], timeout: 1s}\n";

pub fn claim(name: &str, class: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": { "name": name, "namespace": "shop", "labels": { "app": "shop" } },
        "spec": { "accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": { "requests": { "storage": "32Mi" } } } })
}

/// One of everything that a volume can hold.
pub fn build(root: &Path) {
    fs::create_dir_all(root.join("pictures/empty")).unwrap();
    fs::write(root.join("pictures/a.jpg"), b"a picture").unwrap();
    fs::hard_link(root.join("pictures/a.jpg"), root.join("pictures/b.jpg")).unwrap();
    symlink("../elsewhere", root.join("pictures/link")).unwrap();
    for number in 0..300 {
        fs::write(root.join("pictures").join(format!("{number}.txt")), format!("{number}\n").repeat(number)).unwrap();
    }
    fs::write(root.join("program"), b"#!/bin/sh\n").unwrap();
    chown(root.join("program"), Some(1000), Some(2000)).unwrap();
    fs::set_permissions(root.join("program"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::write(root.join("secret"), b"only its owner reads it").unwrap();
    chown(root.join("secret"), Some(999), Some(999)).unwrap();
    fs::set_permissions(root.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let _ = xattr::set(root.join("secret"), "user.origin", b"camera"); // not every file system has them
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(16 << 20).unwrap();
    sparse.write_all_at(b"in the middle", 8 << 20).unwrap();
    output(command("mkfifo").arg(root.join("fifo")));
    assert!(fs::symlink_metadata(root.join("fifo")).unwrap().file_type().is_fifo());
    drop(std::os::unix::net::UnixListener::bind(root.join("pictures/s")));
    let old = fs::File::options().write(true).open(root.join("secret")).unwrap();
    old.set_modified(std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789)).unwrap();
    chown(root.join("pictures"), Some(33), Some(33)).unwrap();
    fs::set_permissions(root.join("pictures"), fs::Permissions::from_mode(0o2770)).unwrap();
    fs::set_permissions(root, fs::Permissions::from_mode(0o1777)).unwrap();
}

/// Stops the capture at the volume's first file.
struct Stopping<'a> {
    lab: &'a Lab<'a>,
    context: &'a Context,
    /// What had run in the pod by then.
    during: String,
    /// Not read by anybody.
    kept: Vec<Option<Input>>,
}

impl Sink for Stopping<'_> {
    fn add(&mut self, entry: Entry, input: Option<Input>) -> Result<(), Stopped> {
        if entry.path.starts_with(b"files/") {
            self.during = self.lab.hooks();
            self.context.cancel.cancel();
            return Err(Stopped);
        }
        self.kept.push(input);
        Ok(())
    }

    fn problem(&mut self, _: Problem) {}
}
