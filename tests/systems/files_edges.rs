//! Trees that are hard to walk: too deep, not readable, shared between file systems, changing under the walk; and their
//! way back. What needs a process of its own starts this program again for one ignored test.

use crate::support::collect::{Collect, context, runtime};
use lifeboat::entry::{Entry, Input, Kind, Problem, Sink, Stopped};
use lifeboat::restore::tree::{Options, Tree, TreeError};
use lifeboat::source::{SourceError, Spec, files};
use rustix::fs::{self as sys, Mode, OFlags, XattrFlags};
use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

const NOBODY: u32 = 65_534;

#[expect(clippy::disallowed_methods, reason = "the tests start real programs")]
fn command(program: impl AsRef<Path>) -> Command {
    Command::new(program.as_ref())
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

/// Runs one ignored test of this program in a process of its own, in which it must pass.
fn again(test: &str, command: &mut Command) {
    let (_, module) = module_path!().split_once("::").unwrap();
    let out = run(command.args(["--ignored", "--exact", &format!("{module}::{test}")]));
    assert!(out.contains("1 passed"), "{out}");
}

fn spec(path: &Path) -> files::Spec {
    files::Spec { path: path.to_owned(), include: Vec::new(), exclude: Vec::new(), one_file_system: false }
}

fn capture(spec: files::Spec, sink: &mut dyn Sink) -> Result<(), SourceError> {
    let runtime = runtime();
    Spec::Files(spec).open()?.capture(&context(&runtime), sink).map(|_| ())
}

fn collect(path: &Path) -> Collect {
    let mut sink = Collect::default();
    capture(spec(path), &mut sink).unwrap();
    sink
}

fn paths(sink: &Collect) -> String {
    let paths: Vec<_> = sink.entries.iter().map(|(entry, _)| String::from_utf8_lossy(&entry.path)).collect();
    paths.join(" ")
}

fn restore(entries: &[(Entry, Vec<u8>)], target: &Path) -> Result<Vec<Problem>, TreeError> {
    let tree = Tree::create(target, Options::default())?;
    for (entry, content) in entries {
        if entry.kind == Kind::File {
            let file = tree.file(entry)?;
            file.write_all_at(content, 0).unwrap();
            tree.finish_file(entry, file)?;
        } else {
            tree.make(entry)?;
        }
    }
    tree.finish()
}

/// Does something when an entry arrives.
struct Meddle<F: FnMut(&Entry)>(Collect, F);

impl<F: FnMut(&Entry)> Sink for Meddle<F> {
    fn add(&mut self, entry: Entry, input: Option<Input>) -> Result<(), Stopped> {
        (self.1)(&entry);
        self.0.add(entry, input)
    }

    fn problem(&mut self, problem: Problem) {
        self.0.problem(problem);
    }
}

fn meddle(root: &Path, at: &str, action: impl Fn()) -> Collect {
    let mut sink = Meddle(Collect::default(), |entry: &Entry| {
        if entry.path == at.as_bytes() {
            action();
        }
    });
    capture(spec(root), &mut sink).unwrap();
    sink.0
}

/// Nested directories, with a file in every hundredth that comes after what lies deeper.
fn nest(root: &Path, levels: usize) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut at = sys::open(root, flags, Mode::empty()).unwrap();
    for level in 0..levels {
        if level % 100 == 0 {
            let flags = OFlags::WRONLY | OFlags::CREATE;
            let file = sys::openat(&at, "z", flags, Mode::RUSR | Mode::WUSR).unwrap();
            rustix::io::write(&file, level.to_string().as_bytes()).unwrap();
        }
        sys::mkdirat(&at, "directory", Mode::RWXU).unwrap();
        at = sys::openat(&at, "directory", flags, Mode::empty()).unwrap();
    }
}

#[test]
fn depth_costs_no_descriptors() {
    again("deep", &mut command(std::env::current_exe().unwrap()));
}

#[test]
#[ignore = "started by depth_costs_no_descriptors, for it takes descriptors from the whole process"]
fn deep() {
    let limit = Rlimit { current: Some(256), ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, limit).unwrap();
    let (source, target) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    nest(source.path(), 2000);
    let first = collect(source.path());
    assert_eq!(first.problems, []);
    assert_eq!(first.entries.len(), 1 + 2000 + 20);
    assert!(first.entries.iter().any(|(entry, _)| entry.path.len() > 4 * 4096));
    assert_eq!(restore(&first.entries, target.path()).unwrap(), []);
    let second = collect(target.path());
    assert_eq!(second.problems, []);
    assert!(first.entries == second.entries);
    run(command("rm").arg("-rf").arg(source.path()).arg(target.path()));
}

#[test]
fn a_deep_directory_that_is_moved_is_reported() {
    let root = TempDir::new().unwrap();
    nest(root.path(), 150);
    let path = |levels: usize| vec!["directory"; levels].join("/");
    let moved = root.path().join(path(51));
    // When it is that deep, the directories above level 80 are closed; what lies from 51 on leads elsewhere then.
    let sink = meddle(root.path(), &path(149), || fs::rename(&moved, root.path().join("elsewhere")).unwrap());
    let reports = |levels: usize, text: &str| {
        sink.problems.iter().any(|problem| problem.path == path(levels).as_bytes() && problem.text.contains(text))
    };
    assert!(reports(50, "come back to it from below"), "{:?}", sink.problems);
    assert!(reports(51, "it was moved"), "{:?}", sink.problems);
    assert!(sink.entries.iter().any(|(entry, _)| entry.path == format!("{}/z", path(100)).as_bytes()));
}

#[test]
fn a_directory_that_is_swapped_lends_no_attributes() {
    let root = TempDir::new().unwrap();
    let other = TempDir::new().unwrap();
    let at = |path: &str| root.path().join(path);
    fs::create_dir(at("a")).unwrap();
    for name in ["a/x", "a/y"] {
        fs::write(at(name), b"ours").unwrap();
    }
    fs::write(other.path().join("y"), b"theirs").unwrap();
    sys::setxattr(other.path().join("y"), "user.theirs", b"v", XattrFlags::empty()).unwrap();
    let sink = meddle(root.path(), "a/x", || {
        fs::rename(at("a"), at("b")).unwrap();
        symlink(other.path(), at("a")).unwrap();
    });
    let (entry, content) = sink.entries.iter().find(|(entry, _)| entry.path == b"a/y").unwrap();
    assert_eq!((content.as_slice(), &entry.xattrs), (b"ours".as_slice(), &None));
    assert_eq!(sink.problems.len(), 1);
    assert_eq!(sink.problems[0].path, b"a");
    assert!(sink.problems[0].text.contains("it was moved"), "{:?}", sink.problems);
}

#[test]
fn a_shared_file_survives_the_loss_of_its_first_name() {
    let (root, target) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let at = |path: &str| root.path().join(path);
    fs::write(at("first"), b"content").unwrap();
    fs::hard_link(at("first"), at("second")).unwrap();
    let sink = meddle(root.path(), "first", || fs::remove_file(at("first")).unwrap());
    assert_eq!(sink.problems.len(), 1);
    assert!(sink.problems[0].text.contains("metadata changed"), "{:?}", sink.problems);
    assert_eq!(restore(&sink.entries, target.path()).unwrap(), []);
    assert_eq!(fs::read(target.path().join("second")).unwrap(), b"content");
}

fn plain(path: &str, kind: Kind) -> Entry {
    Entry {
        path: path.into(),
        kind,
        mode: 0o755,
        uid: geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime_ns: 0,
        size: 0,
        link: None,
        rdev: None,
        xattrs: None,
        sparse: None,
    }
}

#[test]
fn a_link_to_what_was_not_restored_is_reported() {
    let target = TempDir::new().unwrap();
    let link = |to: &str| Entry { link: Some(to.into()), ..plain("link", Kind::Hardlink) };
    let entries = [(link("missing"), Vec::new()), (link("missing/too"), Vec::new()), (plain("x", Kind::File), vec![])];
    let problems = restore(&entries, target.path()).unwrap();
    assert_eq!(problems.len(), 2);
    for problem in problems {
        assert_eq!(problem.path, b"link");
        assert!(problem.text.contains("further name of missing"), "{problem:?}");
    }
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 1);
}

#[test]
fn many_threads_fill_one_tree() {
    const DIRECTORIES: usize = 300;
    let target = TempDir::new().unwrap();
    let tree = Tree::create(target.path(), Options::default()).unwrap();
    let directory = |number: usize| format!("d{}/e{number}", number % 7);
    for number in 0..7 {
        tree.make(&plain(&format!("d{number}"), Kind::Directory)).unwrap();
    }
    for number in 0..DIRECTORIES {
        tree.make(&plain(&directory(number), Kind::Directory)).unwrap();
    }
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let (tree, directory) = (&tree, &directory);
            scope.spawn(move || {
                for number in 0..DIRECTORIES {
                    // One that is listed, and one that nobody listed and all make at once.
                    for above in [directory(number), format!("plain{}/p", number / 4)] {
                        let path = format!("{above}/f{number}-{thread}");
                        let entry = Entry { size: path.len() as u64, ..plain(&path, Kind::File) };
                        let file = tree.file(&entry).unwrap();
                        file.write_all_at(path.as_bytes(), 0).unwrap();
                        tree.finish_file(&entry, file).unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(tree.finish().unwrap(), []);
    let sink = collect(target.path());
    let files: Vec<_> = sink.entries.iter().filter(|(entry, _)| entry.kind == Kind::File).collect();
    assert_eq!(files.len(), DIRECTORIES * 4 * 2);
    assert!(files.iter().all(|(entry, content)| entry.path == *content && entry.mode == 0o755 && entry.mtime_ns == 0));
}

#[test]
fn a_file_that_was_written_too_far_ends_where_it_should() {
    let target = TempDir::new().unwrap();
    let entry = Entry { size: 3, ..plain("x", Kind::File) };
    assert_eq!(restore(&[(entry, b"abcdef".to_vec())], target.path()).unwrap(), []);
    assert_eq!(fs::read(target.path().join("x")).unwrap(), b"abc");
}

#[test]
fn other_file_systems_are_left_out_if_asked() {
    let mut unshare = command("unshare");
    if !geteuid().is_root() {
        unshare.arg("--map-root-user");
    }
    again("mounted", unshare.arg("--mount").arg(std::env::current_exe().unwrap()));
}

#[test]
#[ignore = "started by other_file_systems_are_left_out_if_asked, in a mount namespace of its own"]
fn mounted() {
    let root = TempDir::new().unwrap();
    let mount = root.path().join("mount");
    fs::create_dir(&mount).unwrap();
    fs::write(root.path().join("x"), b"x").unwrap();
    run(command("mount").args(["-t", "tmpfs", "none"]).arg(&mount));
    fs::write(mount.join("inside"), b"inside").unwrap();
    assert_eq!(paths(&collect(root.path())), ". mount mount/inside x");
    let mut sink = Collect::default();
    capture(files::Spec { one_file_system: true, ..spec(root.path()) }, &mut sink).unwrap();
    assert_eq!(sink.problems, []);
    assert_eq!(paths(&sink), ". mount x");
    run(command("umount").arg(&mount));
}

#[test]
fn what_a_user_may_not_do_is_reported() {
    let here = std::env::current_exe().unwrap();
    if !geteuid().is_root() {
        return again("as_a_user", &mut command(here));
    }
    // Where this program lies may be closed to others.
    let open = TempDir::new().unwrap();
    fs::set_permissions(open.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    let copy = open.path().join("tests");
    fs::copy(here, &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let mut child = command(copy);
    again("as_a_user", child.uid(NOBODY).gid(NOBODY).current_dir("/").env("TMPDIR", open.path()));
}

#[test]
#[ignore = "started by what_a_user_may_not_do_is_reported, without root's rights"]
fn as_a_user() {
    assert!(!geteuid().is_root());
    let root = TempDir::new().unwrap();
    let at = |path: &str| root.path().join(path);
    fs::create_dir(at("closed")).unwrap();
    fs::write(at("closed/hidden"), b"x").unwrap();
    fs::write(at("open"), b"x").unwrap();
    fs::write(at("secret"), b"x").unwrap();
    fs::hard_link(at("secret"), at("secret-too")).unwrap();
    for name in ["closed", "secret"] {
        fs::set_permissions(at(name), fs::Permissions::from_mode(0o000)).unwrap();
    }
    let sink = collect(root.path());
    assert_eq!(paths(&sink), ". closed open");
    assert_eq!((sink.entries[1].0.kind, sink.entries[1].0.mode), (Kind::Directory, 0));
    let problems: Vec<_> = sink.problems.iter().map(|problem| String::from_utf8_lossy(&problem.path)).collect();
    assert_eq!(problems.join(" "), "closed secret secret-too");
    assert!(sink.problems.iter().all(|problem| problem.text.contains("denied")), "{:?}", sink.problems);
    let failure = capture(spec(&at("closed")), &mut Collect::default()).unwrap_err();
    assert!(matches!(failure, SourceError::Root { .. }), "{failure}");
    fs::set_permissions(at("closed"), fs::Permissions::from_mode(0o700)).unwrap();

    let mut entries = sink.entries;
    (entries[2].0.uid, entries[2].0.mode) = (0, 0o4755);
    let target = TempDir::new().unwrap();
    let problems = restore(&entries, target.path()).unwrap();
    assert_eq!(problems.len(), 1);
    assert!(problems[0].path == b"open" && problems[0].text.contains("set the owner"), "{problems:?}");
    assert_eq!(fs::metadata(target.path().join("open")).unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(target.path().join("closed")).unwrap().permissions().mode() & 0o7777, 0);
}
