//! Schedules, and snapshots that are not what they should be.

use crate::world::World;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

const SCHEDULE: &str = "
apiVersion: lifeboat.dev/v1
kind: Repository
metadata: {name: main}
spec:
  url: file://REPOSITORY
  gracePeriod: 3d
---
apiVersion: lifeboat.dev/v1
kind: Source
metadata: {name: docs}
spec:
  tier: standard
  files: {path: TREE}
---
apiVersion: lifeboat.dev/v1
kind: Schedule
metadata: {name: often}
spec:
  repository: main
  tier: standard
  cron: '*/10 * * * *'
  maxDuration: 5m
  sources: [docs]
  retention: {last: 2}
";

#[test]
fn a_schedule_is_backed_up_judged_and_pruned() {
    let world = World::with_repository();
    let text = SCHEDULE.replace("REPOSITORY", &world.path("repository").display().to_string());
    world.document("all.yaml", &text.replace("TREE", &world.path("tree").display().to_string()));
    let run = |arguments: &[&str]| world.run(&[&["--config", "all.yaml", "-r", "main"], arguments].concat());
    let never = run(&["status", "--json"]).expect(4).json();
    assert_eq!(never["sources"][0]["verdict"], "never");
    for text in ["1", "22", "333", "4444"] {
        fs::write(world.path("tree/a"), text).unwrap();
        run(&["--writer-key", "writer.key", "backup", "--schedule", "often"]).expect(0);
    }
    let met = run(&["status", "--json", "--writer-key", "writer.key"]).expect(0).json();
    assert_eq!((&met["sources"][0]["verdict"], &met["sources"][0]["snapshots"]), (&"met".into(), &4.into()));

    let plan = run(&["prune", "--dry-run", "--json"]).expect(0).json();
    assert_eq!(plan["sources"][0]["plan"]["remove"], serde_json::json!([2, 1]));
    assert_eq!(world.manifests("docs").len(), 4);
    run(&["--writer-key", "writer.key", "prune"]).expect(2);
    run(&["--keeper-key", "keeper.key", "prune"]).expect(0);
    assert_eq!(world.manifests("docs").len(), 2);
    world.as_owner(&["verify", "--read-data"]).expect(0);
    // A gap that a prune record explains is no cause for alarm.
    run(&["status"]).expect(0);
    run(&["schedule", "check"]).expect(0);
    run(&["doctor", "--writer-key", "writer.key"]).expect(0);

    // An hour later, by the store's own dates.
    let hour_ago = fs::metadata(world.path("kit.txt")).unwrap().modified().unwrap() - Duration::from_hours(1);
    for manifest in world.manifests("docs") {
        fs::set_permissions(&manifest, fs::Permissions::from_mode(0o600)).unwrap();
        fs::File::options().write(true).open(&manifest).unwrap().set_modified(hour_ago).unwrap();
    }
    let missed = run(&["status", "--json"]).expect(4).json();
    assert_eq!(missed["sources"][0]["verdict"], "missed");
}

#[test]
fn a_newest_snapshot_that_vanishes_is_noticed() {
    let world = World::with_repository();
    world.backup().expect(0);
    world.backup().expect(0);
    world.as_writer(&["status"]).expect(0);
    fs::remove_file(&world.manifests("docs")[0]).unwrap();
    let hidden = world.as_writer(&["status"]).expect(1);
    assert!(hidden.out.contains("snapshot 2 has vanished: the newest is 1 now"), "{}", hidden.out);
    fs::remove_dir_all(world.path("repository/docs")).unwrap();
    let gone = world.as_writer(&["status", "--json"]).expect(1).json();
    assert_eq!((&gone["sources"][0]["source"], &gone["sources"][0]["sound"]), (&"docs".into(), &false.into()));
}

#[test]
fn a_snapshot_that_somebody_took_away_is_noticed() {
    let world = World::with_repository();
    for _ in 0..3 {
        world.backup().expect(0);
    }
    fs::remove_file(&world.manifests("docs")[1]).unwrap();
    let status = world.as_writer(&["status"]).expect(1);
    assert!(status.out.contains("snapshot 2 is missing"), "{}", status.out);
    let restored = world.as_owner(&["restore", "snapshot", "docs", "--to", "back"]).expect(0);
    assert!(restored.err.contains("snapshot 2 is missing"), "{}", restored.err);
    let verified = world.run(&["verify"]).expect(1);
    assert!(verified.out.contains("missing"), "{}", verified.out);
}

#[test]
fn a_damaged_snapshot_is_stepped_over_and_told() {
    let world = World::with_repository();
    world.backup().expect(0);
    world.backup().expect(0);
    let newest = &world.manifests("docs")[0];
    let mut bytes = fs::read(newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(newest).unwrap();
    fs::write(newest, bytes).unwrap();
    // All of the older one is there, and it is not what was asked for.
    let restored = world.as_owner(&["restore", "snapshot", "docs", "--to", "back", "--json"]).expect(3);
    assert_eq!(restored.json()["snapshot"], "docs@1");
    assert_eq!(restored.json()["problems"][0]["path"], "docs@2");
    world.as_owner(&["restore", "snapshot", "docs@1", "--to", "first"]).expect(0);
    world.as_owner(&["export", "docs", "-o", "docs.tar"]).expect(3);
    assert!(restored.err.contains("stepped over"), "{}", restored.err);
    assert!(world.as_writer(&["status"]).expect(1).out.contains("snapshot 2 does not count"));
    world.as_writer(&["verify"]).expect(1);
    world.as_writer(&["snapshots"]).expect(1);
}

const API_SERVER: &str = "apiVersion: v1
kind: Pod
spec:
  containers:
  - command: [kube-apiserver, --client-ca-file=/etc/kubernetes/pki/ca.crt, --encryption-provider-config=/etc/kubernetes/enc.yaml]
";

#[test]
fn a_control_plane_that_could_not_be_rebuilt_is_told() {
    let world = World::with_repository();
    let tree = world.path("kubernetes");
    fs::create_dir_all(tree.join("manifests")).unwrap();
    fs::create_dir_all(tree.join("pki/etcd")).unwrap();
    fs::write(tree.join("manifests/kube-apiserver.yaml"), API_SERVER).unwrap();
    for name in ["manifests/etcd.yaml", "enc.yaml", "pki/etcd/ca.crt", "pki/etcd/ca.key"] {
        fs::write(tree.join(name), name).unwrap();
    }
    for name in ["ca.crt", "ca.key", "sa.key", "sa.pub", "front-proxy-ca.crt", "front-proxy-ca.key"] {
        fs::write(tree.join("pki").join(name), name).unwrap();
    }
    let document = |more: &str| {
        let text = format!(
            "apiVersion: lifeboat.dev/v1\nkind: Source\nmetadata: {{name: plane}}\nspec: {{files: {{path: {}}}{more}}}\n",
            tree.display()
        );
        world.document("plane.yaml", &text);
    };
    document("");
    let run = |arguments: &[&str]| world.as_writer(&[&["--config", "plane.yaml"], arguments].concat());
    let said = |ran: &crate::world::Ran, text: &str| assert!(ran.out.contains(text), "{text:?} is not in {}", ran.out);
    run(&["backup", "plane"]).expect(0);
    said(
        &run(&["doctor"]).expect(0),
        "keys in snapshots: the newest snapshots of plane hold what a control plane needs",
    );
    assert!(!run(&["status"]).expect(0).out.contains('!'));

    // The key that signs accounts' tokens, and the file that the API server's manifest names.
    fs::remove_file(tree.join("pki/sa.key")).unwrap();
    fs::remove_file(tree.join("enc.yaml")).unwrap();
    run(&["backup", "plane"]).expect(0);
    let lacks = "kubeadm, lacks /etc/kubernetes/enc.yaml (--encryption-provider-config), pki/sa.key";
    said(&run(&["doctor"]).expect(1), lacks);
    said(&run(&["status"]).expect(0), lacks);
    said(&run(&["show", "plane"]).expect(0), lacks);
    document(", heldElsewhere: [the keys are in the safe]");
    run(&["doctor"]).expect(0);
    assert!(!run(&["status"]).expect(0).out.contains("lacks"));
}
