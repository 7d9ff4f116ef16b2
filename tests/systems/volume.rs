//! The files of a volume: what can be seen without a kubelet. A real control plane, a directory in the place of the mounted
//! claim, and both ends of a restore's stream. Pods that run are in the lab (`tests/lab/volumes.rs`).

use crate::support::collect::{Bytes, Collect, Held, context, runtime};
use crate::support::kubernetes::Server;
use lifeboat::entry::{Entry, Facts, Input, Kind, Problem, Sink, Stopped};
use lifeboat::source::target::{Action, Existing, Options, Plan, Target as _};
use lifeboat::source::volume::stream::{Refusal, Report, Sender};
use lifeboat::source::{self, SourceError, volume};
use serde_json::{Value, json};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

const CLAIM: &str = "apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: uploads, namespace: shop, labels: {app: web}}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: fast
  resources: {requests: {storage: 1Gi}}
";

fn spec(server: &Server, user: &str, path: &Path, more: &Value) -> source::Spec {
    let mut spec = json!({
        "namespace": "shop", "claim": "uploads", "path": path, "image": "example/lifeboat:1",
        "kubeconfig": server.directory.path().join(format!("{user}.conf")),
    });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    source::Spec::Volume(serde_json::from_value::<volume::Spec>(spec).unwrap())
}

fn capture(spec: &source::Spec, sink: &mut dyn Sink) -> Result<Facts, SourceError> {
    let runtime = runtime();
    spec.open()?.capture(&context(&runtime), sink)
}

fn told(result: Result<Facts, SourceError>) -> String {
    let error = result.unwrap_err();
    let mut text = error.to_string();
    let mut next = std::error::Error::source(&error);
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}

fn names(sink: &Collect) -> Vec<String> {
    sink.entries.iter().map(|(entry, _)| String::from_utf8_lossy(&entry.path).into_owned()).collect()
}

impl Held {
    fn of(spec: &source::Spec) -> Self {
        let mut sink = Collect::default();
        let facts = capture(spec, &mut sink).unwrap();
        assert_eq!(sink.problems, []);
        Self { facts, entries: sink.entries }
    }

    fn plan(&self, spec: &source::Spec, options: &Options) -> Result<Plan, SourceError> {
        let runtime = runtime();
        spec.target(options.clone())?.unwrap().plan(&context(&runtime), self)
    }

    /// The only action that concerns files.
    fn action(&self, spec: &source::Spec, options: &Options) -> Action {
        let plan = self.plan(spec, options).unwrap();
        plan.changes.into_iter().find(|change| change.what.starts_with("files of ")).unwrap().action
    }
}

/// A volume's root with one of everything that needs no right.
fn build(root: &Path) {
    fs::create_dir_all(root.join("pictures/empty")).unwrap();
    fs::write(root.join("pictures/a.jpg"), b"a picture").unwrap();
    fs::set_permissions(root.join("pictures/a.jpg"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(root.join("pictures/a.jpg"), root.join("pictures/b.jpg")).unwrap();
    symlink("../elsewhere", root.join("pictures/link")).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    fs::create_dir(root.join("lost+found")).unwrap();
    fs::write(root.join("lost+found/#1"), b"what a check of the file system found").unwrap();
    fs::set_permissions(root.join("pictures"), fs::Permissions::from_mode(0o2750)).unwrap();
    fs::set_permissions(root, fs::Permissions::from_mode(0o1777)).unwrap();
    let old = fs::File::options().write(true).open(root.join("pictures/a.jpg")).unwrap();
    old.set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789)).unwrap();
}

fn lifeboat(arguments: &[&str], input: &[u8]) -> Output {
    #[expect(clippy::disallowed_methods, reason = "the tests start real programs")]
    let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input); // it may not read
    child.wait_with_output().unwrap()
}

fn receive(root: &Path, more: &[&str], input: &[u8]) -> Result<Report, String> {
    let output = lifeboat(&[&["receive", root.to_str().unwrap()], more].concat(), input);
    if output.status.success() {
        Ok(serde_json::from_slice(&output.stdout).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

#[test]
fn a_volume_is_captured_with_its_claim() {
    let server = Server::start();
    server.kubectl(&["create", "namespace", "shop"]);
    server.apply(CLAIM);
    let root = TempDir::new().unwrap();
    build(root.path());
    let spec = spec(&server, "admin", root.path(), &json!({}));
    let taken = Held::of(&spec);
    let uid = server.kubectl(&["-n", "shop", "get", "pvc", "uploads", "-o", "jsonpath={.metadata.uid}"]);
    assert_eq!(taken.facts.system.as_deref(), Some(&*uid));
    assert_eq!(taken.facts.objects, Some(2), "two files; a further name is none");
    assert!(taken.facts.recovery_point_ms.is_some());
    for (name, value) in [("storage_class", "fast"), ("capacity", "1Gi"), ("access_modes", "ReadWriteOnce")] {
        assert_eq!(taken.facts.details[name], value);
    }
    let paths: Vec<_> = taken.entries.iter().map(|(entry, _)| String::from_utf8_lossy(&entry.path)).collect();
    let expected = [
        "claim.yaml",
        "files",
        "files/pictures",
        "files/pictures/a.jpg",
        "files/pictures/b.jpg",
        "files/pictures/empty",
        "files/pictures/link",
        "files/sparse",
    ];
    assert_eq!(paths, expected);
    let entry = |path: &str| &taken.entries.iter().find(|(entry, _)| entry.path == path.as_bytes()).unwrap().0;
    assert_eq!((entry("files").kind, entry("files").mode), (Kind::Directory, 0o1777));
    assert_eq!(entry("files/pictures/b.jpg").link.as_deref(), Some(&b"files/pictures/a.jpg"[..]));
    let manifest = String::from_utf8(taken.entries[0].1.clone()).unwrap();
    assert!(manifest.contains("app: web") && !manifest.contains("managedFields"), "{manifest}");
    let runtime = runtime();
    let lines = spec.open().unwrap().check(&context(&runtime)).unwrap();
    assert!(lines[0].contains("Pending, 1Gi, ReadWriteOnce, storage class fast"), "{lines:?}");

    what_cannot_be_captured_is_an_error(&server, root.path());
    plans(&server, &spec, &taken, &uid);
    a_server_that_dies_half_way(server, root.path());
}

fn what_cannot_be_captured_is_an_error(server: &Server, root: &Path) {
    let mut sink = Collect::default();
    let mut try_it = |user: &str, path: &Path, more: Value| told(capture(&spec(server, user, path, &more), &mut sink));
    assert!(try_it("wrong", root, json!({})).contains("does not accept the credentials"));
    let forbidden = try_it("small", root, json!({}));
    assert!(forbidden.contains("grant get on persistentvolumeclaims"), "{forbidden}");
    assert!(try_it("admin", root, json!({"claim": "other"})).contains("there is no such claim"));
    let empty = TempDir::new().unwrap();
    fs::create_dir(empty.path().join("lost+found")).unwrap();
    assert!(try_it("admin", empty.path(), json!({})).contains("holds nothing to capture"));
    assert!(try_it("admin", &root.join("not-mounted"), json!({})).contains("is it mounted"));
    let block = CLAIM.replace("name: uploads", "name: raw").replace("spec:", "spec:\n  volumeMode: Block");
    server.apply(&block);
    assert!(try_it("admin", root, json!({"claim": "raw"})).contains("raw block device"));
    // Whoever may see the claim and not the pods.
    server.kubectl(&["-n", "shop", "create", "role", "claims", "--verb=get", "--resource=persistentvolumeclaims"]);
    server.kubectl(&["-n", "shop", "create", "rolebinding", "claims", "--role=claims", "--user=small"]);
    assert!(try_it("small", root, json!({})).contains("hooks.annotations: false"));
    assert!(sink.entries.iter().all(|(entry, _)| entry.path == b"claim.yaml" || entry.path.starts_with(b"files")));
    capture(&spec(server, "small", root, &json!({"hooks": {"annotations": false}})), &mut Collect::default()).unwrap();
    // A pod that says that it runs, and nobody to run a program in it.
    pod(server, "web", "pre.hook.backup.velero.io/command: sync");
    server.kubectl(&[
        "-n",
        "shop",
        "patch",
        "pod",
        "web",
        "--subresource=status",
        "-p",
        r#"{"status":{"phase":"Running"}}"#,
    ]);
    let mut sink = Collect::default();
    let failed = told(capture(&spec(server, "admin", root, &json!({})), &mut sink));
    assert!(failed.contains("run a program in container main of pod shop/web"), "{failed}");
    assert_eq!(names(&sink), ["claim.yaml"], "nothing is read when it could not be held still");
}

fn pod(server: &Server, name: &str, annotations: &str) {
    server.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, annotations: {{{annotations}}}}}\nspec:\n  \
         containers: [{{name: main, image: none}}]\n  volumes: [{{name: v, persistentVolumeClaim: {{claimName: uploads}}}}]\n"
    ));
}

fn plans(server: &Server, spec: &source::Spec, taken: &Held, uid: &str) {
    let cluster = server.kubectl(&["get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"]);
    let replace = Options { existing: Existing::Replace, ..Options::default() };
    let Action::Conflict(why) = taken.action(spec, &Options::default()) else { panic!("the pod web uses it") };
    assert!(why.contains("pod web uses it"), "{why}");
    server.kubectl(&["-n", "shop", "delete", "pod", "web", "--force", "--grace-period=0"]);

    let plan = taken.plan(spec, &replace).unwrap();
    assert_eq!(plan.target, format!("{cluster}/shop/uploads"));
    assert!(plan.overwrites());
    assert_eq!(taken.action(spec, &Options::default()), Action::Create, "whether it is empty is seen by the pod");
    let foreign =
        Held { facts: Facts { system: Some("other".into()), ..taken.facts.clone() }, entries: taken.entries.clone() };
    assert!(matches!(foreign.action(spec, &replace), Action::Conflict(_)));
    let forced = Options { foreign: true, ..replace.clone() };
    assert_eq!(foreign.action(spec, &forced), Action::Replace);
    // A restore of this snapshot that was broken off, and one that ended; on another claim's copy, the marks say nothing.
    let id = format!("{uid}@{}", taken.facts.details["captured"]);
    let mark = |name: &str, of: &str| {
        let annotation = format!("lifeboat.dev/{name}={of} {id}");
        server.kubectl(&["-n", "shop", "annotate", "--overwrite", "pvc", "uploads", &annotation]);
    };
    mark("filled", "another-uid");
    assert_eq!(taken.action(spec, &Options::default()), Action::Create);
    mark("filled", uid);
    assert_eq!(taken.action(spec, &Options::default()), Action::Unchanged);
    assert_eq!(taken.action(spec, &replace), Action::Replace);
    mark("filling", uid);
    assert_eq!(taken.action(spec, &replace), Action::Create, "what it holds is that restore's own");
    let some: Vec<_> =
        taken.entries.iter().filter(|(entry, _)| entry.path == b"files/pictures/a.jpg").cloned().collect();
    let some = Held { facts: taken.facts.clone(), entries: some };
    assert!(matches!(some.action(spec, &replace), Action::Conflict(_)), "the rest would be lost");
    // What is half restored is no volume to be captured.
    let half = told(capture(spec, &mut Collect::default()));
    assert!(half.contains("a restore into it has not ended"), "{half}");
    // A step of a plan knows what it has done, though it may replace what is there.
    mark("filled", uid);
    server.kubectl(&["-n", "shop", "annotate", "pvc", "uploads", "lifeboat.dev/filling-"]);
    server.kubectl(&["-n", "shop", "annotate", "pvc", "uploads", &format!("lifeboat.dev/step={uid} p-1")]);
    let step = |name: &str| Options { step: Some(name.into()), aside: true, ..replace.clone() };
    assert_eq!(
        (taken.action(spec, &step("p-1")), taken.action(spec, &step("p-2"))),
        (Action::Unchanged, Action::Replace)
    );
    trees(server, uid, &cluster);

    server.kubectl(&["-n", "shop", "patch", "pvc", "uploads", "-p", r#"{"metadata":{"finalizers":null}}"#]);
    server.kubectl(&["-n", "shop", "delete", "pvc", "uploads"]);
    let plan = taken.plan(spec, &Options::default()).unwrap();
    let changes: Vec<_> = plan.changes.iter().map(|change| format!("{} {}", change.action, change.what)).collect();
    let expected = ["create persistentvolumeclaim shop/uploads", "create files of persistentvolumeclaim shop/uploads"];
    assert_eq!(changes, expected);
    assert!(plan.about.iter().any(|line| line.contains("--map-storage-class fast=OTHER")), "{:?}", plan.about);
    // One that is made by then may get a volume that holds something.
    assert!(taken.plan(spec, &replace).unwrap().overwrites());
    assert!(some.plan(spec, &Options::default()).unwrap_err().to_string().contains("claim.yaml"));
    let source::Spec::Volume(described) = spec else { panic!("it is a volume") };
    let imageless = source::Spec::Volume(volume::Spec { image: None, ..described.clone() });
    assert!(taken.plan(&imageless, &Options::default()).unwrap_err().to_string().contains("volume.image"));
    let images = Options { images: [("a".into(), "b".into())].into(), ..Options::default() };
    assert!(spec.target(images).err().unwrap().to_string().contains("the option images"));
    server.apply(CLAIM);
}

/// What is no volume's snapshot, into a claim that somebody names.
fn trees(server: &Server, uid: &str, cluster: &str) {
    let (runtime, tree) = (runtime(), TempDir::new().unwrap());
    fs::write(tree.path().join("PG_VERSION"), "15").unwrap();
    let files = source::Spec::Files(serde_json::from_value(json!({"path": tree.path()})).unwrap());
    let taken = Held::of(&files);
    let spec: source::kubernetes::Spec =
        serde_json::from_value(json!({"kubeconfig": server.directory.path().join("admin.conf")})).unwrap();
    let plan = |name: &str, existing: Existing| {
        let claim = json!({"cluster": "it", "namespace": "shop", "name": name, "image": "example/lifeboat:1"});
        let claim: volume::Named = serde_json::from_value(claim).unwrap();
        let options = Options { existing, step: Some("p-2".into()), ..Options::default() };
        let mut target = volume::Restoring::named(&spec, &claim, ("files", "x@1".into(), true), options);
        target.plan(&context(&runtime), &taken).unwrap()
    };
    let there = plan("uploads", Existing::Replace);
    assert_eq!(there.target, format!("{cluster}/shop/uploads"));
    assert!(there.overwrites(), "whose claim it is does not matter: {:?}", there.changes);
    assert!(!plan("uploads", Existing::Skip).overwrites());
    let missing = plan("none", Existing::Replace);
    assert!(missing.overwrites() && missing.changes.len() == 1, "{:?}", missing.changes);
    assert!(missing.about.iter().any(|line| line.contains("a step before must bring it back")), "{:?}", missing.about);
    for (name, of) in [("filled", "x@1"), ("step", "p-2")] {
        server.kubectl(&[
            "-n",
            "shop",
            "annotate",
            "--overwrite",
            "pvc",
            "uploads",
            &format!("lifeboat.dev/{name}={uid} {of}"),
        ]);
    }
    assert_eq!(plan("uploads", Existing::Replace).changes[0].action, Action::Unchanged);
}

/// Ends the API server when the first file is read.
struct Killing {
    server: Server,
    killed: bool,
    inner: Collect,
}

impl Sink for Killing {
    fn add(&mut self, entry: Entry, input: Option<Input>) -> Result<(), Stopped> {
        if entry.path.starts_with(b"files/") && !std::mem::replace(&mut self.killed, true) {
            self.server.kill("kube-apiserver");
        }
        self.inner.add(entry, input)
    }

    fn problem(&mut self, problem: Problem) {
        self.inner.problem(problem);
    }
}

fn a_server_that_dies_half_way(server: Server, root: &Path) {
    pod(&server, "later", "post.hook.backup.velero.io/command: thaw");
    server.kubectl(&[
        "-n",
        "shop",
        "patch",
        "pod",
        "later",
        "--subresource=status",
        "-p",
        r#"{"status":{"phase":"Running"}}"#,
    ]);
    let spec = spec(&server, "admin", root, &json!({}));
    let mut sink = Killing { server, killed: false, inner: Collect::default() };
    capture(&spec, &mut sink).unwrap();
    let [problem] = sink.inner.problems.as_slice() else { panic!("{:?}", sink.inner.problems) };
    assert!(problem.text.contains("may still be held") && problem.text.contains("pod shop/later"), "{}", problem.text);
    let unreachable = told(capture(&spec, &mut Collect::default()));
    assert!(unreachable.contains("reach the API server"), "{unreachable}");
}

/// The stream of a captured directory, as a restore sends it.
fn stream(root: &Path) -> Vec<u8> {
    let files = serde_json::from_value(json!({"path": root})).unwrap();
    let mut sink = Collect::default();
    let runtime = runtime();
    source::Spec::Files(files).open().unwrap().capture(&context(&runtime), &mut sink).unwrap();
    let mut out = Vec::new();
    let mut sender = Sender::new(&mut out).unwrap();
    let path = |path: &[u8]| match path {
        b"." => b"files".to_vec(),
        path => [b"files/", path].concat(),
    };
    for (mut entry, content) in sink.entries {
        entry.path = path(&entry.path);
        entry.link = entry.link.map(|link| if entry.kind == Kind::Hardlink { path(&link) } else { link });
        sender.send(&entry, &Bytes(&content)).unwrap();
    }
    sender.end().unwrap();
    out
}

/// Path, and mode, owner, time, size and content of everything below.
fn listing(root: &Path) -> Vec<(String, String)> {
    let (mut all, mut left) = (Vec::new(), vec![root.to_owned()]);
    while let Some(path) = left.pop() {
        let seen = fs::symlink_metadata(&path).unwrap();
        if seen.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let content = if seen.is_file() {
            blake3::hash(&fs::read(&path).unwrap()).to_string()
        } else {
            fs::read_link(&path).map(|link| link.display().to_string()).unwrap_or_default()
        };
        let name = path.strip_prefix(root).unwrap().display().to_string();
        let size = if seen.is_dir() { 0 } else { seen.len() };
        let (mode, uid, gid, time, ns) = (seen.mode(), seen.uid(), seen.gid(), seen.mtime(), seen.mtime_nsec());
        all.push((name, format!("{mode:o} {uid}:{gid} {time}.{ns:09} {size} {content}")));
    }
    all.sort();
    all
}

#[test]
fn what_is_sent_arrives_with_all_that_it_had() {
    let from = TempDir::new().unwrap();
    build(from.path());
    fs::remove_dir_all(from.path().join("lost+found")).unwrap();
    let name = "user.origin";
    let has_xattrs = xattr::set(from.path().join("sparse"), name, b"camera").is_ok();
    let bytes = stream(from.path());
    let pod = TempDir::new().unwrap();
    let volume = pod.path().join("files");
    fs::create_dir(&volume).unwrap();
    let report = receive(pod.path(), &[], &bytes).unwrap();
    assert_eq!((report.refused, report.entries, report.problems), (None, 7, Vec::new()));
    assert_eq!(listing(&volume), listing(from.path()));
    let inode = |name: &str| fs::metadata(volume.join("pictures").join(name)).unwrap().ino();
    assert_eq!(inode("a.jpg"), inode("b.jpg"));
    assert!(fs::metadata(volume.join("sparse")).unwrap().blocks() < 100, "holes stay holes");
    if has_xattrs {
        assert_eq!(xattr::get(volume.join("sparse"), name).unwrap().as_deref(), Some(&b"camera"[..]));
    }

    // It holds something now.
    assert!(matches!(receive(pod.path(), &["--look"], b"").unwrap().refused, Some(Refusal::Occupied(_))));
    fs::write(volume.join("younger"), b"x").unwrap();
    let refused = receive(pod.path(), &[], &bytes).unwrap();
    assert!(matches!(refused.refused, Some(Refusal::Occupied(_))) && refused.entries == 0, "{refused:?}");
    assert!(volume.join("younger").exists());
    let exists = receive(pod.path(), &["--existing", "beside"], &bytes).unwrap_err();
    assert!(exists.contains("exists already"), "{exists}");
    fs::create_dir_all(volume.join("lost+found/x")).unwrap();
    receive(pod.path(), &["--existing", "clear"], &bytes).unwrap();
    assert!(volume.join("lost+found/x").exists(), "that is the file system's own");
    fs::remove_dir_all(volume.join("lost+found")).unwrap();
    // Its removal changed the root's time.
    let without_root = |root: &Path| listing(root).split_off(1);
    assert_eq!(without_root(&volume), without_root(from.path()));
}

/// What a volume held before is in a directory of it, however often the restore is broken off; and comes back if it is given
/// up.
#[test]
fn what_a_volume_held_is_moved_aside_once() {
    let (from, pod) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    fs::write(from.path().join("new"), b"restored").unwrap();
    fs::set_permissions(from.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let bytes = stream(from.path());
    let volume = pod.path().join("files");
    let hold = || {
        fs::create_dir_all(volume.join("lost+found")).unwrap();
        fs::create_dir_all(volume.join(".lifeboat-before-another")).unwrap();
        for name in ["a", "b"] {
            fs::write(volume.join(name), name).unwrap();
        }
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o700)).unwrap();
    };
    let names = |path: &Path| {
        let names = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> =
            names.filter(|name| !["lost+found", ".lifeboat-before-another"].contains(&&**name)).collect();
        names.sort();
        names
    };
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let broken = |length: usize| receive(pod.path(), &["--aside", "p-1"], &bytes[..length]).unwrap_err();
    let aside = volume.join(".lifeboat-before-p-1");

    // Broken off, again, and again when the first of what was there had been moved.
    hold();
    fs::create_dir(volume.join(".lifeboat-before-p-1.moving")).unwrap();
    fs::rename(volume.join("a"), volume.join(".lifeboat-before-p-1.moving/a")).unwrap();
    broken(bytes.len() - 1);
    assert_eq!(
        (names(&volume), names(&aside)),
        (vec![".lifeboat-before-p-1".into(), "new".into()], vec!["a".into(), "b".into()])
    );
    assert_eq!(mode(&aside), 0o700, "nobody may read there who could not before");
    fs::write(volume.join("half"), "restored").unwrap();
    broken(40);
    assert_eq!(
        (names(&volume), names(&aside)),
        (vec![".lifeboat-before-p-1".to_owned()], vec!["a".into(), "b".into()])
    );
    // Given up: also when that is broken off, and done twice.
    fs::write(volume.join("half"), "restored").unwrap();
    assert_eq!(receive(pod.path(), &["--back", "p-1"], b"").unwrap().aside.as_deref(), Some(".lifeboat-before-p-1"));
    assert_eq!((names(&volume), mode(&volume)), (vec!["a".to_owned(), "b".into()], 0o700));
    fs::create_dir(volume.join(".lifeboat-before-p-1.moving")).unwrap();
    fs::rename(volume.join("b"), volume.join(".lifeboat-before-p-1.moving/b")).unwrap();
    receive(pod.path(), &["--back", "p-1"], b"").unwrap();
    assert_eq!(names(&volume), ["a", "b"]);
    assert_eq!(receive(pod.path(), &["--back", "p-1"], b"").unwrap().aside, None);
    assert_eq!(names(&volume), ["a", "b"]);
    // To its end.
    let report = receive(pod.path(), &["--aside", "p-1"], &bytes).unwrap();
    assert_eq!(report.aside.as_deref(), Some(".lifeboat-before-p-1"));
    assert_eq!(
        (names(&volume), names(&aside)),
        (vec![".lifeboat-before-p-1".into(), "new".into()], vec!["a".into(), "b".into()])
    );
    assert_eq!(mode(&volume), 0o755);
    // What others have moved aside is nobody's to remove, nor in the way, nor the volume's.
    receive(pod.path(), &["--existing", "clear"], &bytes).unwrap();
    assert_eq!(names(&aside), ["a", "b"]);
    assert!(volume.join(".lifeboat-before-another").exists() && volume.join("lost+found").exists());
    fs::remove_file(volume.join("new")).unwrap();
    let report = receive(pod.path(), &["--aside", "p-2"], &bytes).unwrap();
    assert_eq!((report.refused, report.aside), (None, None), "nothing was there");
    assert_eq!(names(&volume), [".lifeboat-before-p-1", "new"]);
}

#[test]
fn what_has_no_room_is_not_begun() {
    let pod = TempDir::new().unwrap();
    let volume = pod.path().join("files");
    fs::create_dir(&volume).unwrap();
    let needs = format!("--needs={}", u64::MAX / 2);
    for existing in ["--existing=refuse", "--existing=clear", "--existing=beside", "--aside=p-1"] {
        fs::remove_file(volume.join("a")).ok();
        if existing != "--existing=refuse" {
            fs::write(volume.join("a"), "precious").unwrap();
        }
        for more in [&["--look"][..], &[]] {
            let report = receive(pod.path(), &[&[existing, &needs], more].concat(), b"").unwrap();
            let Some(Refusal::Short(room)) = report.refused else { panic!("{existing}: {report:?}") };
            assert!(room > 0, "{existing}");
        }
        assert_eq!(volume.join("a").exists(), existing != "--existing=refuse");
    }
}

#[test]
fn a_stream_that_ends_early_is_an_error() {
    let from = TempDir::new().unwrap();
    fs::write(from.path().join("a"), vec![7; 1000]).unwrap();
    let bytes = stream(from.path());
    for length in [0, 10, bytes.len() - 600, bytes.len() - 1] {
        let pod = TempDir::new().unwrap();
        fs::create_dir(pod.path().join("files")).unwrap();
        let error = receive(pod.path(), &[], &bytes[..length]).unwrap_err();
        assert!(error.contains("receive the volume's files"), "{length}: {error}");
    }
    let error = receive(&from.path().join("none"), &[], &bytes).unwrap_err();
    assert!(error.contains("look into"), "{error}");
}
