//! No space left: where the repository is, and where a restore goes to.

use crate::support::command;
use crate::support::picture::{assert_same, picture};
use crate::support::world::{World, noise};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

/// A small file system of its own, in a mount namespace that ends with its holder.
struct Disk {
    holder: Child,
    path: PathBuf,
}

impl Disk {
    fn new(at: &Path, megabytes: u32) -> Self {
        fs::create_dir_all(at).unwrap();
        let script = format!("mount -t tmpfs -o size={megabytes}m tmpfs \"$0\" && echo && exec sleep 300");
        let mut unshare = command("unshare");
        unshare.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]).arg(at);
        let mut holder = unshare.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        // It ends when the file system is there, or with its holder.
        let mut line = [0];
        let ready = holder.stdout.as_mut().unwrap().read_exact(&mut line);
        assert!(ready.is_ok(), "no file system could be mounted at {}", at.display());
        let path = PathBuf::from(format!("/proc/{}/root{}", holder.id(), at.display()));
        Self { holder, path }
    }
}

impl Disk {
    /// To the last byte.
    fn fill(&self) -> PathBuf {
        let filler = self.path.join("filler");
        std::io::copy(&mut std::io::repeat(7), &mut fs::File::create(&filler).unwrap()).unwrap_err();
        filler
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

#[test]
fn a_full_disk_costs_the_run_and_nothing_else() {
    let world = World::without_repository();
    let disk = Disk::new(&world.path("disk"), 24);
    world.document("repository.yaml", &World::directory(&disk.path.join("repository")));
    world.init();
    world.file("a", noise(1, 5 << 20));
    world.file("b", "small");
    let first = picture(&world.path("tree"));
    world.backup();
    world.file("too-much", noise(2, 40 << 20));
    for _ in 0..2 {
        let full = world.run(World::BACKUP).expect(1);
        full.says("no space left").says("docs/packs/").says("make room");
        assert_eq!(world.numbers("docs"), [1]);
        world.assert_restores(1, &first);
        world.assert_sound();
    }
    let left: Vec<_> = fs::read_dir(disk.path.join("repository/.tmp")).unwrap().collect();
    assert!(left.is_empty(), "the room is not given back: {left:?}");
    // Filled to the last byte by somebody else: even the smallest object finds no room.
    fs::remove_file(world.path("tree/too-much")).unwrap();
    world.file("c", noise(3, 2 << 20));
    let filler = disk.fill();
    world.run(World::BACKUP).expect(1).says("no space left");
    world.assert_restores(1, &first);
    fs::remove_file(&filler).unwrap();
    let second = picture(&world.path("tree"));
    let number = world.backup().number;
    world.assert_restores(number, &second);
    world.assert_restores(1, &first);
    world.assert_sound();
}

/// What an earlier prune set free makes room for the record without which nothing more may go.
#[test]
fn a_full_disk_is_pruned() {
    let world = World::without_repository();
    let disk = Disk::new(&world.path("disk"), 24);
    let patient = World::directory(&disk.path.join("repository"));
    world.document("repository.yaml", &patient);
    world.init();
    world.schedule("1s", "{last: 1}");
    let prune = || {
        // Past the grace period of what was set free before. Backups keep the repository's own limits.
        std::thread::sleep(std::time::Duration::from_millis(3100));
        world.document("repository.yaml", &format!("{patient}  gracePeriod: 2s\n  runLimit: 1s\n"));
        let ran = world.run(&["--keeper-key", "keeper.key", "prune", "--json"]);
        world.document("repository.yaml", &patient);
        ran
    };
    std::os::unix::fs::symlink(disk.path.join("repository"), world.path("repository")).unwrap();
    let mut first = Vec::new();
    for seed in 1..=3 {
        world.file("a", noise(seed, 5 << 20));
        world.run(World::SCHEDULED).expect(0);
        match seed {
            1 => first = world.objects("docs/packs"),
            2 => drop(prune().expect(0)),
            _ => {}
        }
    }
    let expected = picture(&world.path("tree"));
    let packs = || world.objects("docs/packs").len();
    let before = packs();
    let filler = disk.fill();
    prune().expect(0);
    assert_eq!(packs(), before - first.len(), "the first ones were free, the second ones wait now");
    assert!(world.objects("docs/packs").iter().all(|pack| !first.contains(pack)));
    assert_eq!(world.numbers("docs"), [3]);
    // A full disk is read as any other.
    fs::remove_file(filler).unwrap();
    disk.fill();
    world.assert_restores(3, &expected);
    world.assert_sound();
}

#[test]
fn keys_that_find_no_room_are_not_lost() {
    let world = World::without_repository();
    let disk = Disk::new(&world.path("disk"), 1);
    disk.fill();
    // No repository without room for it, and no kit of one that is not there.
    world.document("repository.yaml", &World::directory(&disk.path.join("repository")));
    world.run(&["init", "--kit", "kit.txt"]).expect(1).says("no space left");
    assert!(!world.path("kit.txt").exists());
    // The repository has room and the kit has none.
    world.document("repository.yaml", &World::directory(&world.path("repository")));
    let kit = disk.path.join("kit.txt").display().to_string();
    let ran = world.run(&["init", "--kit", &kit, "--writer-key-out", "writer.key"]).expect(1);
    ran.says("No space left");
    assert!(!disk.path.join("kit.txt").exists() && !world.path("writer.key").exists());
    assert_eq!(world.objects(""), Vec::<String>::new(), "a repository that nobody has keys for");
    world.init();
    world.file("a", "content");
    let expected = picture(&world.path("tree"));
    world.backup();
    world.assert_restores(1, &expected);
    // Nor is what `status` remembers a condition of what it says.
    std::os::unix::fs::symlink(&disk.path, world.path("state")).unwrap();
    let status = world.as_owner(&["status", "--json"]).expect(0).json();
    assert_eq!(status["sources"][0]["snapshots"], 1, "{status}");
}

#[test]
fn a_restore_onto_a_full_disk_names_the_file() {
    let world = World::local();
    world.file("first", "small");
    world.file("second/too-large", noise(1, 9 << 20));
    let expected = picture(&world.path("tree"));
    world.backup();
    let disk = Disk::new(&world.path("disk"), 4);
    let to = disk.path.join("back").display().to_string();
    let full = world.as_owner(&["restore", "snapshot", "docs", "--to", &to]).expect(1);
    full.says("second/too-large").says("No space left").says("did not complete");
    let target = disk.path.join("x.tar").display().to_string();
    let full = world.as_owner(&["export", "docs", "-o", &target]).expect(1);
    full.says("No space left");
    assert!(!disk.path.join("x.tar").exists(), "half an export is taken for a whole one");
    assert_same(&world.restored("docs"), &expected, "with room");
}
