//! Volumes of a CSI driver: captured as they are written, and by snapshots that show one moment, whatever happens to who
//! takes them; lost, and brought back into volumes that the driver makes.

use crate::cluster::{self, Cluster, Turn, wait};
use crate::support::{command, minio_at, tool};
use crate::volumes::{Lab, OUTSIDE, Picture, build, claim, picture};
use crate::{IMAGE, Owner, output, repository};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

const MINUTE: Duration = Duration::from_mins(1);

#[test]
fn a_csi_volume_is_captured_at_one_moment_destroyed_and_brought_back() {
    let _turn = Turn::take();
    let cluster = Cluster::up("test-e");
    cluster.lab("snapshots", &[]);
    let store = minio_at(&cluster.address(1));
    let home = tempfile::tempdir().unwrap();
    let owner = Owner { home: home.path() };
    owner.create_repository(&store);
    let csi = Csi(Lab { cluster: &cluster, owner, store: &store });
    csi.the_driver_keeps_to_the_specification();
    cluster.load_lifeboat();
    csi.shop();
    csi.documents();

    csi.captured_as_it_is_written();
    csi.captured_at_one_moment();
    csi.held_still_for_a_moment_only();
    csi.killed_and_done_by_the_next();
    csi.stopped_by_a_person();
    csi.refused();
    csi.over_the_quota();
    csi.smaller_on_purpose();

    let expected = csi.destroyed();
    csi.restored(&expected, "at-once");
    csi.restored(&expected, "when-used");
    drop(cluster);
    cluster::assert_nothing_is_left("test-e");
}

struct Csi<'a>(Lab<'a>);

/// Each number is durable in one file before it is written to the other, with the time in between.
const WRITE: &str = "n=0; add() { dd of=/data/$1 oflag=append conv=notrunc,fsync 2>/dev/null; }
    while :; do
        [ -e /tmp/hold ] || { n=$((n+1)); echo $n | add first; echo $n $(date +%s) | add second; }
        sleep 0.1
    done";
const HOLD: &str = "touch /tmp/hold; sleep 1; echo held >/data/state; sync";
const LET_GO: &str = "echo free >/data/state; rm /tmp/hold; date +%s >/tmp/free";

/// The number of a line, and the time in it, if there is one.
fn record(line: &str) -> (u64, i64) {
    let mut words = line.split(' ').map(|word| word.parse::<i64>().unwrap());
    (words.next().unwrap().try_into().unwrap(), words.next().unwrap_or_default())
}

fn seconds(time: &Value) -> i64 {
    time.as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_second()
}

/// Programs of this machine whose command lines hold all of this.
fn processes(marks: &[&str]) -> Vec<String> {
    let line =
        |process: &Path| String::from_utf8_lossy(&fs::read(process.join("cmdline")).unwrap_or_default()).into_owned();
    let all = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let found = all.filter(|process| marks.iter().all(|mark| line(process).contains(mark)));
    found.map(|process| process.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

fn signal(signal: &str, marks: &[&str]) {
    let processes = processes(marks);
    assert_eq!(processes.len(), 1, "{marks:?}: {processes:?}");
    output(command("kill").args([signal, &processes[0]]));
}

impl Csi<'_> {
    fn get(&self, what: &[&str]) -> String {
        self.0.cluster.get(&[&["-n", "shop"], what].concat())
    }

    fn in_shop(&self, script: &str) -> String {
        self.0.cluster.kubectl(&["-n", "shop", "exec", "deployment/shop", "--", "sh", "-c", script])
    }

    /// Volumes are made no more, or again.
    fn provisioner(&self, what: &str) {
        let kubeconfig = self.0.cluster.etc().join("admin.conf").display().to_string();
        signal(what, &["csi-provisioner", &kubeconfig]);
    }

    /// Where the volume of a claim is, seen from this machine.
    fn disk(&self, claim: &str) -> PathBuf {
        let volume = self.get(&["pvc", claim, "-o", "jsonpath={.spec.volumeName}"]);
        let handle = self.0.cluster.get(&["pv", &volume, "-o", "jsonpath={.spec.csi.volumeHandle}"]);
        let root = self.0.cluster.state().join("csi").display().to_string();
        let driver = processes(&["csi\0--root", &root]);
        PathBuf::from(format!("/proc/{}/root{root}/volumes/{handle}", driver[0]))
    }

    /// By the suite that Kubernetes has for drivers.
    fn the_driver_keeps_to_the_specification(&self) {
        let suite = fs::canonicalize(tool("csi")).unwrap().with_file_name("csi-sanity");
        let directory = self.0.cluster.state().join("sanity");
        fs::create_dir(&directory).unwrap();
        let in_it = |name: &str| directory.join(name).display().to_string();
        let said = self.0.cluster.lab(
            "node",
            &[
                suite.to_str().unwrap(),
                "--csi.endpoint=/var/lib/kubelet/plugins/csi.sock",
                &format!("--csi.mountdir={}", in_it("mount")),
                &format!("--csi.stagingdir={}", in_it("stage")),
                "--ginkgo.no-color",
            ],
        );
        assert!(said.contains("0 Failed") && !said.contains(" 0 Passed"), "{said}");
    }

    fn shop(&self) {
        let cluster = self.0.cluster;
        let labels = json!({ "pod-security.kubernetes.io/enforce": "baseline" });
        cluster.apply(
            &json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop", "labels": labels } }),
        );
        cluster.apply(&claim("data", "at-once"));
        wait(MINUTE, "the claim's volume", || {
            (self.get(&["pvc", "data", "-o", "jsonpath={.status.phase}"]) == "Bound").then_some(())
        });
        build(&self.disk("data"));
        cluster.apply(&json!({ "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "name": "shop", "namespace": "shop" },
            "spec": { "replicas": 1, "strategy": { "type": "Recreate" }, "selector": { "matchLabels": { "app": "shop" } },
                "template": { "metadata": { "labels": { "app": "shop" } },
                    "spec": { "terminationGracePeriodSeconds": 1,
                        "containers": [{ "name": "main", "image": "lifeboat.lab/busybox:1", "imagePullPolicy": "Never",
                            "command": ["sh", "-c", WRITE], "volumeMounts": [{ "name": "data", "mountPath": "/data" }] }],
                        "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": "data" } }] } } } }));
        cluster.kubectl(&["-n", "shop", "rollout", "status", "deployment/shop", "--timeout=60s"]);
    }

    fn documents(&self) {
        let hook = |script: &str| json!({ "command": ["sh", "-c", script] });
        let sources = |more: &str| {
            let source = |name: &str, volume: &str| {
                format!(
                    "---\napiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: {name}}}\nspec:\n  tier: standard\n  \
                     volume:\n    namespace: shop\n    claim: data\n    image: {IMAGE}\n{more}{volume}\n"
                )
            };
            let by = |class: &str| format!("    snapshot: {class}");
            let hooks = json!({ "pre": [hook(HOLD)], "post": [hook(LET_GO)] });
            source("plain", "    pods: {app: shop}")
                + &source("moment", &by("{class: moments}"))
                + &source("held", &(by("{class: moments}\n    hooks: ") + &hooks.to_string()))
                + &source("no-class", &by("{class: none}"))
                + &source("no-volumes", &by("{class: moments, storageClass: none}"))
                + &source("impossible", &by("{class: impossible}"))
                + &source("elsewhere", &by("{class: of-another}"))
                + &source("hoarder", &by("{class: moments, storageClass: kept}"))
        };
        let schedule = |name: &str, limit: &str, sources: &str| {
            format!(
                "---\napiVersion: lifeboat.dev/v1\nkind: Schedule\nmetadata: {{name: {name}}}\nspec:\n  repository: platform\n  \
                 tier: standard\n  cron: '0 0 1 1 *'\n  maxDuration: {limit}\n  sources: [{sources}]\n"
            )
        };
        let inside = sources("")
            + &schedule("often", "3m", "plain, moment, held, impossible")
            + &schedule("short", "20s", "moment");
        self.0.install(&inside, &["hooks", "snapshots"]);
        self.0.cluster.kubectl(&[
            "create",
            "clusterrolebinding",
            "lifeboat-snapshot-classes-shop",
            "--clusterrole=lifeboat-snapshot-classes",
            "--serviceaccount=shop:lifeboat-snapshot",
        ]);
        let kubeconfig = format!("    kubeconfig: {}\n", self.0.cluster.etc().join("admin.conf").display());
        let refused = "moment, no-class, no-volumes, impossible, elsewhere, hoarder";
        let outside =
            repository(self.0.store, OUTSIDE, "writer.key") + &sources(&kubeconfig) + &schedule("often", "3m", refused);
        self.0.owner.document("outside.yaml", &outside);
    }

    /// Runs a CronJob's Job to its end. Gives whether it succeeded, what it said, and when it was made.
    fn run(&self, cronjob: &str, job: &str) -> (bool, String, i64) {
        self.begin(cronjob, job);
        self.end(job)
    }

    fn begin(&self, cronjob: &str, job: &str) {
        self.0.cluster.kubectl(&["-n", "shop", "create", "job", job, &format!("--from=cronjob/lifeboat-{cronjob}")]);
    }

    fn end(&self, job: &str) -> (bool, String, i64) {
        let job: Value = wait(3 * MINUTE, "the end of a Job", || {
            let job: Value = serde_json::from_str(&self.get(&["job", job, "-o", "json"])).unwrap();
            let done = |word: &str| job["status"][word].as_u64().unwrap_or_default() > 0;
            let failed =
                job["status"]["conditions"].as_array().is_some_and(|all| all.iter().any(|one| one["type"] == "Failed"));
            (done("succeeded") || failed).then_some(job)
        });
        let name = job["metadata"]["name"].as_str().unwrap();
        let log = self.0.cluster.kubectl(&["-n", "shop", "logs", &format!("job/{name}"), "--prefix=false"]);
        (job["status"]["succeeded"] == 1, log, seconds(&job["metadata"]["creationTimestamp"]))
    }

    fn newest(&self, source: &str) -> Value {
        let shown = self.0.command(&["--json", "show", &format!("{source}@latest")]).output().unwrap();
        serde_json::from_slice(&shown.stdout).unwrap_or_default()
    }

    fn captured(&self, source: &str, path: &str) -> String {
        let out = self.0.command(&["export", &format!("{source}@latest"), path, "-o", "-"]).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// The last records of both files.
    fn last(&self, source: &str) -> [(u64, i64); 2] {
        ["first", "second"].map(|name| record(self.captured(source, &format!("files/{name}")).lines().last().unwrap()))
    }

    /// No snapshot, no claim and no pod of a run that has ended.
    fn nothing_is_left(&self) {
        wait(MINUTE, "the removal of what a run made", || {
            let all = self.get(&["volumesnapshots,pods,pvc", "-o", "name"]);
            (!all.contains("/lifeboat-data-")).then_some(())
        });
        wait(MINUTE, "the removal of the driver's snapshots and volumes", || {
            let contents = self.0.cluster.get(&["volumesnapshotcontents", "-o", "name"]);
            let volumes = self.0.cluster.get(&["pv", "-o", "name"]);
            (contents.is_empty() && volumes.lines().count() == 1).then_some(())
        });
    }

    /// As any other volume: its pod is beside the one that writes.
    fn captured_as_it_is_written(&self) {
        let (done, said, _) = self.run("often-plain", "job-plain");
        assert!(done, "{said}");
        assert_eq!(self.newest("plain")["state"], "good");
        let [first, second] = self.last("plain");
        eprintln!("lab: files that are written while they are read end with {first:?} and {second:?}");
    }

    fn captured_at_one_moment(&self) {
        let (done, said, begun) = self.run("often-moment", "job-moment");
        assert!(done, "{said}");
        assert!(said.contains("backup committed"), "the reader's log is in its own: {said}");
        let shown = self.newest("moment");
        assert_eq!(shown["state"], "good", "{shown:#}");
        let [first, second] = self.last("moment");
        assert!(first.0 == second.0 || first.0 == second.0 + 1, "it is torn: {first:?}, {second:?}");
        let moment = seconds(&shown["recoveryPoint"]);
        let captured = seconds(&shown["facts"]["details"]["captured"]);
        eprintln!("lab: the snapshot's moment is {} s before it was read", captured - moment);
        assert!(begun <= moment && moment <= captured, "{begun} {moment} {captured}");
        // All that was durable at the recovery point is there: what is missing was acknowledged later.
        let live = self.in_shop("cat /data/second");
        let missing = live.lines().map(record).find(|one| one.0 == first.0 + 1).expect("the shop writes on");
        assert!(missing.1 >= moment, "{missing:?} is missing, and the recovery point is {moment}");
        assert!(self.captured("moment", "claim.yaml").contains("storageClassName: at-once"));
        self.nothing_is_left();
    }

    /// Programs ran before and after the snapshot, and not while it was read.
    fn held_still_for_a_moment_only(&self) {
        let (done, said, _) = self.run("often-held", "job-held");
        assert!(done, "{said}");
        assert_eq!(self.captured("held", "files/state"), "held\n");
        assert_eq!(self.in_shop("cat /data/state"), "free\n");
        let [first, second] = self.last("held");
        assert_eq!(first.0, second.0);
        let free: i64 = self.in_shop("cat /tmp/free").trim().parse().unwrap();
        let captured = seconds(&self.newest("held")["facts"]["details"]["captured"]);
        assert!(free <= captured, "let go at {free}, read from {captured}");
        self.nothing_is_left();
    }

    fn reader(&self) -> Option<String> {
        let pods = self.get(&["pods", "-l", "app.kubernetes.io/component=backup", "-o", "name"]);
        pods.lines().find(|pod| pod.contains("lifeboat-data-")).map(str::to_owned)
    }

    /// Whoever takes the snapshot is killed when it is taken: its Job's next pod removes what is there, and begins anew.
    fn killed_and_done_by_the_next(&self) {
        let before = self.newest("moment")["number"].as_u64().unwrap();
        self.provisioner("-STOP");
        self.begin("often-moment", "job-killed");
        let uid = |kind: &str| {
            self.get(&[kind, "-l", "app.kubernetes.io/name=lifeboat", "-o", "jsonpath={.items[*].metadata.uid}"])
        };
        wait(MINUTE, "the pod that is to read", || self.reader());
        let of_the_first = uid("volumesnapshots");
        signal("-KILL", &["backup-by-snapshot", "--pod=job-killed"]);
        wait(MINUTE, "the second snapshot", || {
            let now = uid("volumesnapshots");
            (!now.is_empty() && now != of_the_first).then_some(())
        });
        self.provisioner("-CONT");
        let (done, said, _) = self.end("job-killed");
        assert!(done, "{said}");
        assert_eq!(self.newest("moment")["number"], before + 1);
        self.nothing_is_left();
    }

    fn by_hand(&self, source: &str) -> std::process::Command {
        self.0.command(&["backup-by-snapshot", "--schedule", "often", source])
    }

    fn stopped_by_a_person(&self) {
        self.provisioner("-STOP");
        let child = self.by_hand("moment").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait(MINUTE, "the pod that is to read", || self.reader());
        output(command("kill").args(["-TERM", &child.id().to_string()]));
        let ended = child.wait_with_output().unwrap();
        self.provisioner("-CONT");
        assert_eq!(ended.status.code(), Some(130), "{}", String::from_utf8_lossy(&ended.stderr));
        self.nothing_is_left();
    }

    fn refused(&self) {
        for (source, why) in [
            ("no-class", r#""none" not found"#),
            ("no-volumes", r#""none" not found"#),
            ("impossible", "there is no parameter compression"),
            ("elsewhere", "is of the driver \"another.csi.lifeboat.lab\""),
            ("hoarder", "its policy is Retain"),
        ] {
            let ended = self.by_hand(source).output().unwrap();
            let said = String::from_utf8_lossy(&ended.stderr).into_owned();
            eprintln!("lab: {source}: {said}");
            assert!(ended.status.code() == Some(1) && said.contains(why), "{source}: {:?} {said}", ended.status);
        }
        self.nothing_is_left();
        // Nobody takes a claim for a volume that was made of a snapshot.
        self.0.lifeboat(&["backup", "moment"]).expect(1, "volumesnapshot shop/lifeboat-data-");
    }

    /// The cluster does not make the claim; it is told when the time is over.
    fn over_the_quota(&self) {
        self.0.cluster.apply(&json!({ "apiVersion": "v1", "kind": "ResourceQuota",
            "metadata": { "name": "claims", "namespace": "shop" }, "spec": { "hard": { "persistentvolumeclaims": "1" } } }));
        let (done, said, _) = self.run("short-moment", "job-quota");
        assert!(!done && said.contains("exceeded quota"), "{said}");
        self.nothing_is_left();
        self.0.cluster.kubectl(&["-n", "shop", "delete", "quota", "claims"]);
    }

    /// Accepted by a Job as docs/operations.md has it.
    fn smaller_on_purpose(&self) {
        self.in_shop("rm /data/pictures/*.txt");
        let (done, said, _) = self.run("often-moment", "job-smaller");
        assert!(!done && said.contains("--accept moment@"), "{said}");
        let listed = self.0.command(&["--json", "snapshots", "moment"]).output().unwrap().stdout;
        let listed: Value = serde_json::from_slice(&listed).unwrap();
        let snapshots = listed["snapshots"].as_array().unwrap().iter();
        let quarantined = snapshots.map(|snapshot| snapshot["number"].as_u64().unwrap()).max().unwrap();
        let from = "-n shop create job job-accept --from=cronjob/lifeboat-often-moment --dry-run=client -o json";
        let from: Vec<_> = from.split(' ').collect();
        let mut job: Value = serde_json::from_str(&self.0.cluster.kubectl(&from)).unwrap();
        let arguments = job["spec"]["template"]["spec"]["containers"][0]["args"].as_array_mut().unwrap();
        arguments.push(json!(format!("--accept=moment@{quarantined}")));
        self.0.cluster.apply(&job);
        let (done, said, _) = self.end("job-accept");
        assert!(done, "{said}");
        let newest = self.newest("moment");
        assert_eq!(
            (&newest["state"], newest["number"].as_u64()),
            (&"good".into(), Some(quarantined + 1)),
            "{newest:#}"
        );
        self.nothing_is_left();
    }

    fn destroyed(&self) -> Picture {
        self.0.cluster.kubectl(&["-n", "shop", "delete", "deployment", "shop", "--cascade=foreground"]);
        let (done, said, _) = self.run("often-moment", "job-last");
        assert!(done, "{said}");
        let expected = picture(&self.disk("data"));
        self.lost();
        expected
    }

    fn lost(&self) {
        self.0.cluster.kubectl(&["-n", "shop", "delete", "jobs", "--all", "--timeout=60s"]);
        self.0.cluster.kubectl(&["-n", "shop", "delete", "pvc", "data", "--timeout=60s"]);
        wait(MINUTE, "the end of the volume", || self.0.cluster.get(&["pv", "-o", "name"]).is_empty().then_some(()));
    }

    /// Into a volume that the driver makes for it.
    fn restored(&self, expected: &Picture, class: &str) {
        let map = format!("at-once={class}");
        let restore = ["restore", "snapshot", "moment@latest", "--into", "moment", "--map-storage-class", &map];
        self.0.lifeboat(&restore).expect(0, "are on the volume");
        assert_eq!(&picture(&self.disk("data")), expected);
        self.lost();
    }
}
