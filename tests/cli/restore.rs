//! What comes back, and in which form.

use crate::world::{World, tool};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

#[test]
fn a_newcomer_gets_everything_back() {
    let world = World::with_repository();
    let kit = fs::read_to_string(world.path("kit.txt")).unwrap();
    assert!(kit.contains("AGE-SECRET-KEY-") && kit.contains("lifeboat-writer-") && kit.contains("lifeboat-keeper-"));
    for secret in ["kit.txt", "writer.key", "keeper.key"] {
        assert_eq!(fs::metadata(world.path(secret)).unwrap().permissions().mode() & 0o777, 0o600, "{secret}");
    }
    let first = world.backup().expect(0).json();
    assert_eq!(first["backups"][0]["number"], 1);
    fs::write(world.path("tree/a"), "changed").unwrap();
    fs::write(world.path("tree/new"), "new").unwrap();
    assert_eq!(world.backup().expect(0).json()["backups"][0]["number"], 2);

    let listed = world.as_writer(&["snapshots", "docs", "--json"]).expect(0).json();
    let numbers: Vec<_> =
        listed["snapshots"].as_array().unwrap().iter().map(|s| s["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [2, 1]);
    let names = world.as_owner(&["ls", "docs@1"]).expect(0).out;
    assert_eq!(names, ".\na\nsub\nsub/b\nsub/link\nsym\n");
    let documents = world.as_owner(&["ls", "docs@1", "--json"]).expect(0).json();
    let paths: Vec<_> = documents["entries"].as_array().unwrap().iter().map(|e| e["path"].as_str().unwrap()).collect();
    assert_eq!(paths, names.lines().collect::<Vec<_>>());
    let diff = world.as_owner(&["diff", "docs@1", "docs"]).expect(0).out;
    assert!(diff.contains("+ new\n") && diff.contains("M a (size"), "{diff}");

    // By time, by number, by a beginning of the id, with the kit alone.
    let id = listed["snapshots"][1]["id"].as_str().unwrap();
    world.as_owner(&["restore", "snapshot", &format!("docs@{}", &id[..12]), "--to", "old"]).expect(0);
    assert_eq!(fs::read_to_string(world.path("old/a")).unwrap(), "first");
    assert!(!world.path("old/new").exists());
    let time = listed["snapshots"][0]["recoveryPoint"].as_str().unwrap();
    world.as_owner(&["restore", "snapshot", &format!("docs@{time}"), "--to", "back"]).expect(0);
    assert!(tool("diff", &["-r", "tree", "back"], world.home.path()).status.success());
    let inode = |name: &str| fs::metadata(world.path(name)).unwrap().ino();
    assert_eq!(inode("back/a"), inode("back/sub/link"));
    assert_eq!(fs::read_link(world.path("back/sym")).unwrap(), Path::new("a"));
    let mtime = |name: &str| fs::metadata(world.path(name)).unwrap().modified().unwrap();
    assert_eq!(mtime("tree/sub"), mtime("back/sub"));

    world.as_owner(&["verify", "--read-data"]).expect(0);
    world.run(&["verify", "--scrub"]).expect(0);
}

#[test]
fn parts_and_exports_are_what_was_backed_up() {
    let world = World::with_repository();
    world.backup().expect(0);
    world.as_owner(&["restore", "snapshot", "docs", "--to", "part", "/sub/b"]).expect(0);
    assert_eq!(fs::read(world.path("part/sub/b")).unwrap(), vec![7; 300_000]);
    assert!(!world.path("part/a").exists());
    let missing = world.as_owner(&["restore", "snapshot", "docs", "--to", "none", "nothing"]).expect(1);
    assert!(missing.err.contains("nothing is not in the snapshot"), "{}", missing.err);

    world.as_owner(&["export", "docs", "-o", "docs.tar"]).expect(0);
    fs::create_dir(world.path("untarred")).unwrap();
    let untarred = tool("tar", &["xf", "../docs.tar"], &world.path("untarred"));
    assert!(untarred.status.success() && untarred.stderr.is_empty(), "{untarred:?}");
    assert!(tool("diff", &["-r", "tree", "untarred"], world.home.path()).status.success());
    // A further name of a file brings the file, asked for without the first name too.
    for name in ["a", "sub/link"] {
        assert_eq!(world.as_owner(&["export", "docs", name, "-o", "-"]).expect(0).out, "first");
    }
    world.as_owner(&["restore", "snapshot", "docs", "--to", "link", "sub"]).expect(0);
    assert_eq!(fs::read_to_string(world.path("link/sub/link")).unwrap(), "first");
    world.as_owner(&["export", "docs", "sub", "-o", "sub.tar"]).expect(0);
    assert!(tool("tar", &["xf", "sub.tar", "-C", "untarred/sub"], world.home.path()).status.success());
    assert!(tool("diff", &["-r", "tree/sub", "untarred/sub/sub"], world.home.path()).status.success());
    let again = world.as_owner(&["export", "docs", "-o", "docs.tar"]).expect(2);
    assert!(again.err.contains("exists already"), "{}", again.err);
    // What is there is not overwritten, and not by default mixed with.
    let full = world.as_owner(&["restore", "snapshot", "docs", "--to", "part"]).expect(1);
    assert!(full.err.contains("not empty"), "{}", full.err);
    fs::create_dir(world.path("mixed")).unwrap();
    fs::write(world.path("mixed/own"), "stays").unwrap();
    fs::set_permissions(world.path("mixed"), fs::Permissions::from_mode(0o701)).unwrap();
    world.as_owner(&["restore", "snapshot", "docs", "--to", "mixed", "--into-existing"]).expect(0);
    let slip =
        world.as_owner(&["restore", "snapshot", "docs", "nothing", "--to", "mixed", "--into-existing"]).expect(1);
    assert!(!slip.err.contains("remove it"), "{}", slip.err);
    let guessed = world.as_owner(&["restore", "docs@latest", "--to", "back"]).expect(2);
    assert!(guessed.err.contains("lifeboat restore snapshot docs@latest --to back"), "{}", guessed.err);
    assert_eq!(fs::read_to_string(world.path("mixed/own")).unwrap(), "stays");
    assert_eq!(fs::read_to_string(world.path("mixed/a")).unwrap(), "first");
    assert_eq!(fs::metadata(world.path("mixed")).unwrap().permissions().mode() & 0o777, 0o701);
    // A file that is there is not overwritten.
    let twice = world.as_owner(&["restore", "snapshot", "docs", "--to", "mixed", "--into-existing"]).expect(1);
    assert!(twice.err.contains("exists already"), "{}", twice.err);
}

#[test]
fn a_programs_output_comes_back() {
    let world = World::with_repository();
    world.script("printf 'dump of %s' everything");
    let run = |arguments: &[&str]| world.as_writer(&[&["--config", "source.yaml"], arguments].concat());
    run(&["backup", "--all"]).expect(0);
    assert_eq!(world.as_owner(&["export", "dump", "-o", "-"]).expect(0).out, "dump of everything");
    world.script("echo half; exit 3");
    run(&["backup", "dump"]).expect(1);
    world.script("true");
    run(&["backup", "dump"]).expect(1);
    assert_eq!(world.manifests("dump").len(), 1);
    let misspelt = run(&["backup", "dunp"]).expect(2);
    assert!(misspelt.err.contains("did you mean dump?"), "{}", misspelt.err);
}

#[test]
fn a_lost_pack_costs_the_files_in_it_and_no_more() {
    let world = World::with_repository();
    world.backup().expect(0);
    let first: Vec<_> = fs::read_dir(world.path("repository/docs/packs")).unwrap().map(|e| e.unwrap().path()).collect();
    let mut noise = vec![0; 2 << 20];
    let mut state = 1_u64;
    noise.fill_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    });
    fs::write(world.path("tree/later"), &noise).unwrap();
    world.backup().expect(0);
    // Rot in the pack that came second.
    let pack = fs::read_dir(world.path("repository/docs/packs")).unwrap().map(|e| e.unwrap().path());
    let pack = pack.filter(|p| !first.contains(p)).max_by_key(|p| fs::metadata(p).unwrap().len()).unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 0x10;
    fs::remove_file(&pack).unwrap();
    fs::write(&pack, bytes).unwrap();
    let report = world.as_owner(&["restore", "snapshot", "docs", "--to", "back", "--json"]).expect(3).json();
    assert_eq!(report["problems"][0]["path"], "later");
    assert!(!world.path("back/later").exists());
    assert_eq!(fs::read(world.path("back/sub/b")).unwrap(), vec![7; 300_000]);
    let scrub = world.run(&["verify", "--scrub", "--json"]).expect(1).json();
    assert_eq!(scrub["sources"]["docs"]["findings"][0]["snapshots"], serde_json::json!([2]));
}

#[test]
fn a_diff_sees_contents_behind_equal_sizes_and_times() {
    let world = World::with_repository();
    world.backup().expect(0);
    let path = world.path("tree/sub/b");
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let mut content = fs::read(&path).unwrap();
    content[150_000] = 8;
    fs::write(&path, &content).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    let touched = fs::File::options().write(true).open(world.path("tree/a")).unwrap();
    touched.set_modified(modified + Duration::from_secs(5)).unwrap();
    world.backup().expect(0);
    let diff = world.as_owner(&["diff", "docs@1", "docs@2"]).expect(0).out;
    assert!(diff.contains("M sub/b (content)\n") && diff.contains("M a (time)\n"), "{diff}");
    // The further name of `a` changed with it.
    assert!(diff.contains("0 added, 0 removed, 3 changed") && !diff.contains("not compared"), "{diff}");
    // Under another writer key the same content has other ids.
    world.as_owner(&["keys", "rotate-writer", "--out", "new.key"]).expect(0);
    world.run(&["--writer-key", "new.key", "backup", "--files", "tree", "--name", "docs"]).expect(0);
    let diff = world.as_owner(&["diff", "docs@2", "docs@3"]).expect(0).out;
    assert!(diff.contains("0 changed") && diff.contains("the contents of 2 files"), "{diff}");
    assert_eq!(world.as_owner(&["diff", "docs@2", "docs", "--json"]).expect(0).json()["contentsNotCompared"], 2);
}

/// What both snapshots list alike is not read; names that stay, come and go are among it.
#[test]
fn a_diff_of_many_files_names_those_that_differ() {
    let world = World::with_repository();
    for directory in 0..30 {
        fs::create_dir_all(world.path(&format!("tree/{directory:02}"))).unwrap();
        for file in 0..400 {
            fs::write(world.path(&format!("tree/{directory:02}/{file:03}")), "x").unwrap();
        }
    }
    // What has just changed has no hint, and its list is another than the next one.
    std::thread::sleep(Duration::from_millis(2_100));
    world.backup().expect(0);
    fs::write(world.path("tree/03/100"), "changed").unwrap();
    fs::remove_file(world.path("tree/17/007")).unwrap();
    fs::write(world.path("tree/17/400"), "x").unwrap();
    world.backup().expect(0);
    let documents = world.as_owner(&["diff", "docs@1", "docs@2", "--json"]).expect(0).json();
    let of = |kind: &str| {
        let changes = documents["changes"].as_array().unwrap().iter().filter(|change| change["change"] == kind);
        changes.map(|change| change["entry"]["path"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!((of("added"), of("removed")), (vec!["17/400".to_owned()], vec!["17/007".to_owned()]));
    assert_eq!(of("changed"), ["03/100", "17"]);
    let unlike = world.as_owner(&["diff", "docs@2", "docs@2", "--json"]).expect(0).json();
    assert_eq!(unlike["changes"], serde_json::json!([]));
}
