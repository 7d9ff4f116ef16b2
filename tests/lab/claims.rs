//! What is no volume's snapshot, into a claim: what that held is moved aside, comes back if the restore is given up, and
//! stays where it is if there is no room.

use crate::cluster::wait;
use crate::output;
use crate::support::command;
use crate::volumes::{Lab, MINUTE, Picture, Said, claim, picture, said};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

const BEFORE: &str = ".lifeboat-before-";
/// So that filling it can be broken off.
const LARGE: usize = 192 << 20;

pub fn takes_trees_into_claims(lab: &Lab<'_>) {
    let tree = lab.owner.home.join("tree");
    fs::create_dir_all(tree.join("base")).unwrap();
    fs::write(tree.join("PG_VERSION"), "15\n").unwrap();
    let block: Vec<u8> = (0..1 << 20).map(|number: u32| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(tree.join("base/large"), block.repeat(LARGE >> 20)).unwrap();
    fs::create_dir(tree.join("base/last")).unwrap();
    lab.owner.document("trees.yaml", &documents(lab, &tree));
    lab.lifeboat(&["--config", "trees.yaml", "backup", "tree"]).expect(0, "");

    // `other`, which holds something.
    let (disk, restore) = (lab.disk("d"), ["--config", "trees.yaml", "restore", "app"]);
    fs::write(disk.join("precious"), "x").unwrap();
    let before = picture(&disk);
    lab.lifeboat(&[&restore[..], &["tree"]].concat()).expect(2, "overwrites or holds back");
    let seen = lab.command(&[&["--json"], &restore[..], &["tree", "--dry-run"]].concat()).output().unwrap();
    let seen: Value = serde_json::from_slice(&seen.stdout).unwrap();
    let id = seen["mustBeConfirmed"][0].as_str().unwrap_or_else(|| panic!("{seen:#}")).to_owned();
    assert!(id.ends_with("/shop/other"), "{id}");
    let named = [&restore[..], &["tree", "--yes", "--target-id", &id]].concat();

    let mut killed = lab.command(&named).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + MINUTE;
    while aside(&disk).is_none() {
        assert!(Instant::now() < deadline && killed.try_wait().unwrap().is_none(), "nothing is moved aside");
        std::thread::sleep(Duration::from_millis(2));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    lab.lifeboat(&[&restore[..], &["--abort", &lab.begun("tree")]].concat()).expect(0, "is given up");
    assert_eq!(picture(&disk), before);

    let said = lab.lifeboat(&named).expect(0, "persistentvolumeclaim shop/other held");
    eprintln!("lab: a tree of {} MiB in a claim: {said}", LARGE >> 20);
    let kept = aside(&disk).unwrap();
    assert_eq!(fs::read_to_string(kept.join("precious")).unwrap(), "x");
    let mut now = picture(&disk);
    let name = kept.file_name().unwrap().to_str().unwrap();
    now.retain(|path, _| !path.starts_with(name));
    assert_eq!(without_root(now), without_root(picture(&tree)));

    // One of a mebibyte.
    let small = lab.disk("e");
    fs::create_dir(&small).unwrap();
    // Where the kubelet and the pods see it, other than what `node` mounts.
    let holder = fs::read_to_string(lab.cluster.state().join("holder")).unwrap();
    let inside = format!("--mount=/proc/{}/ns/mnt", holder.trim());
    output(command("nsenter").args([&inside, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&small));
    given_claim(lab, "small", "e");
    let id = id.replace("/other", "/small");
    let into_small = [&restore[..], &["small", "--yes", "--target-id", &id]].concat();
    lab.lifeboat(&into_small).expect(1, "it has room for");
    wait(MINUTE, "the end of the pod", || {
        let pods = ["-n", "shop", "pods", "-l", "app.kubernetes.io/component=restore", "-o", "name"];
        lab.cluster.get(&pods).is_empty().then_some(())
    });
    let left = output(command(crate::in_tree("node")).arg(lab.cluster.name).arg("ls").arg("-A").arg(&small));
    assert_eq!(left, "");
}

/// `restore snapshot --claim`, from a repository that loses a part of a file: that file stays out, as in a directory.
pub fn takes_a_snapshot_into_a_claim(lab: &Lab<'_>) {
    let (home, tree) = (lab.owner.home, lab.owner.home.join("little"));
    fs::create_dir_all(tree.join("b")).unwrap();
    fs::write(tree.join("a"), "a\n").unwrap();
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    });
    fs::write(tree.join("b/large"), noise.take(16 << 20).collect::<Vec<_>>()).unwrap();
    fs::hard_link(tree.join("b/large"), tree.join("b/link")).unwrap();
    lab.owner.document("little.yaml", &documents(lab, &tree));
    let run = |arguments: &[&str]| {
        let mut lifeboat = command(env!("CARGO_BIN_EXE_lifeboat"));
        lifeboat
            .args(["--config", "little.yaml", "--repository", "./little-repository"])
            .args(arguments)
            .current_dir(home);
        said(lifeboat.env("XDG_STATE_HOME", home.join("state")))
    };
    run(&["init", "--kit", "little-kit.txt", "--writer-key-out", "little.key"]).expect(0, "");
    run(&["--writer-key", "little.key", "backup", "tree", "large"]).expect(0, "");
    let disk = lab.disk("f");
    fs::create_dir(&disk).unwrap();
    given_claim(lab, "little", "f");

    let restore = ["--identity", "little-kit.txt", "restore", "snapshot", "tree@latest"];
    let into = |claim: &str, more: &[&str]| {
        run(&[&restore[..], &["--claim", &format!("it/shop/{claim}"), "--image", crate::IMAGE], more].concat())
    };
    into("nowhere", &["--dry-run"]).expect(0, "the claim is not there");
    into("nowhere", &[]).expect(1, "there is no such claim");
    into("other", &[]).expect(1, "it is not empty");
    into("little", &["--dry-run"]).expect(0, "files of persistentvolumeclaim shop/little create");
    assert!(picture(&disk).len() == 1, "a dry run changes nothing");
    into("little", &[]).expect(0, "are on the volume");
    assert_eq!(picture(&disk), picture(&tree));
    into("little", &[]).expect(0, "unchanged 1");

    let packs = |source: &str| fs::read_dir(home.join(format!("little-repository/{source}/packs"))).unwrap();
    for pack in packs("tree").chain(packs("large")) {
        let pack = pack.unwrap().path();
        let mut bytes = fs::read(&pack).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle..middle + 64].fill(0);
        fs::remove_file(&pack).unwrap();
        fs::write(&pack, bytes).unwrap();
    }
    let left_out = |said: Said, below: &str| {
        let text = said.expect(3, &format!("{below}b/large: left out, since the repository has lost a part of it"));
        assert!(text.contains(&format!("{below}b/link: left out with the file")), "{text}");
    };
    left_out(run(&[&restore[..], &["--to", "little-restored"]].concat()), "");
    let refused = into("little", &["--existing", "replace"]).expect(2, "--target-id");
    let id = refused.split("--target-id ").nth(1).unwrap().split_whitespace().next().unwrap();
    let replace = ["--existing", "replace", "--yes", "--target-id", id];
    left_out(into("little", &replace), "files/");
    let (mut there, mut whole) = (picture(&disk), picture(&tree));
    assert_eq!(there, picture(&home.join("little-restored")));
    whole.retain(|path, _| !path.starts_with("b/"));
    there.retain(|path, _| whole.contains_key(path));
    assert_eq!((there.len(), there), (whole.len(), whole));
    // It is not taken for the snapshot.
    into("little", &[]).expect(1, "it is not empty");

    // What must be whole makes the step of a plan fail.
    let before = picture(&disk);
    let plan = ["--identity", "little-kit.txt", "restore", "app"];
    let failed =
        run(&[&plan[..], &["large", "--yes", "--target-id", id]].concat()).expect(1, "shop/little (files/large)");
    let begun = failed.split("--resume ").last().unwrap().split_whitespace().next().unwrap();
    run(&[&plan[..], &["--abort", begun]].concat()).expect(0, "is given up");
    assert_eq!(picture(&disk), before);
}

/// A claim whose volume is a directory of the node.
fn given_claim(lab: &Lab<'_>, name: &str, disk: &str) {
    let mut wanted = claim(name, "other");
    wanted["spec"]["volumeName"] = json!(disk);
    let mut volume = lab.volume_of(disk, "other");
    volume["spec"]["claimRef"] = json!({ "namespace": "shop", "name": name });
    lab.cluster.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": [volume, wanted] }));
}

/// Where what a volume held is, all of it.
fn aside(disk: &Path) -> Option<PathBuf> {
    let mut found = fs::read_dir(disk).unwrap().map(|entry| entry.unwrap().path());
    found.find(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with(BEFORE) && !name.ends_with(".moving")
    })
}

/// Its time changes with what is moved aside in it.
fn without_root(mut picture: Picture) -> Picture {
    picture.remove("");
    picture
}

fn documents(lab: &Lab<'_>, tree: &Path) -> String {
    let kubeconfig = lab.cluster.etc().join("admin.conf");
    let plan = |name: &str, source: &str, claim: &str| {
        json!({ "apiVersion": "lifeboat.dev/v1", "kind": "RestorePlan", "metadata": { "name": name },
            "spec": { "level": "app", "tier": "standard", "steps": [{ "name": "files", "restore": {
                "source": source, "options": { "existing": "replace" },
                "claim": { "cluster": "it", "namespace": "shop", "name": claim, "image": crate::IMAGE } } }] } })
    };
    let source = |name: &str, spec: &Value| json!({ "apiVersion": "lifeboat.dev/v1", "kind": "Source", "metadata": { "name": name }, "spec": spec });
    let all = [
        source("it", &json!({ "kubernetes": { "kubeconfig": kubeconfig, "namespaces": ["shop"] } })),
        source("tree", &json!({ "files": { "path": tree } })),
        source("large", &json!({ "command": { "argv": ["cat", tree.join("b/large")], "output": "large" } })),
        plan("tree", "tree", "other"),
        plan("small", "tree", "small"),
        plan("large", "large", "little"),
    ];
    all.map(|document| document.to_string()).join("\n---\n")
}
