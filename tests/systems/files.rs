//! Capture of a directory tree, and its way back onto a disk.

use crate::support::collect::{Collect, context, runtime};
use crate::support::posix_acl;
use lifeboat::entry::{Entry, Facts, Input, Kind, Problem, Sink, Stopped, Xattr};
use lifeboat::restore::tree::{Mark, Options, Tree, TreeError};
use lifeboat::source::{SourceError, Spec, files};
use proptest::prelude::*;
use rustix::fs::{self as sys, FileType, Mode, XattrFlags};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};
use tempfile::TempDir;

fn spec(path: &Path) -> files::Spec {
    files::Spec { path: path.to_owned(), include: Vec::new(), exclude: Vec::new(), one_file_system: false }
}

fn capture(spec: files::Spec, sink: &mut dyn Sink) -> Result<Facts, SourceError> {
    let runtime = runtime();
    Spec::Files(spec).open()?.capture(&context(&runtime), sink)
}

fn collect(path: &Path) -> Collect {
    let mut sink = Collect::default();
    capture(spec(path), &mut sink).unwrap();
    sink
}

fn restore(entries: &[(Entry, Vec<u8>)], target: &Path) -> Result<Vec<Problem>, TreeError> {
    let tree = Tree::create(target, Options::default())?;
    for (entry, content) in entries {
        if entry.kind != Kind::File {
            tree.make(entry)?;
            continue;
        }
        let file = tree.file(entry)?;
        for (index, block) in content.chunks(4096).enumerate() {
            if entry.sparse != Some(true) || block.iter().any(|byte| *byte != 0) {
                file.write_all_at(block, index as u64 * 4096).unwrap();
            }
        }
        tree.finish_file(entry, file)?;
    }
    tree.finish()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A tree with one of everything.
fn build(root: &Path) {
    fs::create_dir_all(root.join("dir/deep")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::write(root.join("dir/plain"), b"content").unwrap();
    fs::write(root.join("dir/nothing"), b"").unwrap();
    fs::write(root.join(OsStr::from_bytes(b"dir/\xff\xfe not text\n")), b"named in bytes").unwrap();
    fs::write(root.join("dir/setuid"), b"program").unwrap();
    fs::hard_link(root.join("dir/plain"), root.join("zz-second-name")).unwrap();
    symlink("nowhere/../at all", root.join("dangling")).unwrap();
    sys::mknodat(sys::CWD, root.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    sys::mknodat(sys::CWD, root.join("socket"), FileType::Socket, Mode::from_raw_mode(0o600), 0).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(b"island", 1 << 20).unwrap();
    sparse.set_len(4 << 20).unwrap();
    let plain = root.join("dir/plain");
    sys::setxattr(&plain, "user.note", b"\x00\x01 any bytes", XattrFlags::empty()).unwrap();
    let acl = posix_acl();
    sys::setxattr(&plain, "system.posix_acl_access", &acl, XattrFlags::empty()).unwrap();
    sys::setxattr(root.join("dir"), "system.posix_acl_default", &acl, XattrFlags::empty()).unwrap();
    if is_root() {
        let device = sys::makedev(1, 3);
        sys::mknodat(sys::CWD, root.join("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), device)
            .unwrap();
        std::os::unix::fs::chown(root.join("dir/setuid"), Some(12), Some(34)).unwrap();
        std::os::unix::fs::lchown(root.join("dangling"), Some(56), Some(78)).unwrap();
        std::os::unix::fs::chown(root.join("dir/deep"), Some(99), Some(98)).unwrap();
    }
    for (name, mode) in [("dir/setuid", 0o4751), ("dir/deep", 0o2770), ("empty", 0o1500), ("dir/nothing", 0o400)] {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let long_ago = UNIX_EPOCH - Duration::new(86_400, 123_456_789);
    fs::File::open(root.join("dir/nothing")).unwrap().set_modified(long_ago).unwrap();
    fs::File::open(root.join("empty")).unwrap().set_modified(long_ago).unwrap();
}

#[test]
fn everything_comes_back_as_it_was() {
    let (source, target) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    build(source.path());
    let first = collect(source.path());
    assert_eq!(first.problems, []);
    let find = |path: &[u8]| &first.entries.iter().find(|(entry, _)| entry.path == path).unwrap().0;
    assert_eq!(find(b".").kind, Kind::Directory);
    assert_eq!(find(b"zz-second-name").link.as_deref(), Some(b"dir/plain".as_slice()));
    assert_eq!(find(b"dir/plain").xattrs.as_ref().unwrap().len(), 2);
    assert_eq!(find(b"dir/setuid").mode, 0o4751);
    assert_eq!(find(b"sparse").sparse, Some(true));
    let target = target.path().join("new/one");
    assert_eq!(restore(&first.entries, &target).unwrap(), []);
    let second = collect(&target);
    assert_eq!(second.problems, []);
    assert_eq!(first.entries.len(), second.entries.len());
    for (a, b) in first.entries.iter().zip(&second.entries) {
        assert!(a == b, "{:?}\n{:?}", a.0, b.0);
    }
    assert!(fs::metadata(target.join("sparse")).unwrap().blocks() * 512 < 1 << 20);
}

#[test]
fn the_order_is_stable_and_a_directory_comes_before_its_content() {
    let root = TempDir::new().unwrap();
    for name in ["b", "a.x", "a/y", "a/b/c", "A"] {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"x").unwrap();
    }
    let paths: Vec<_> =
        collect(root.path()).entries.into_iter().map(|(e, _)| String::from_utf8(e.path).unwrap()).collect();
    assert_eq!(paths, [".", "A", "a", "a/b", "a/b/c", "a/y", "a.x", "b"]);
}

#[test]
fn include_and_exclude_select() {
    let root = TempDir::new().unwrap();
    for name in ["a/keep.db", "a/b/keep.db", "a/b/other", "cache/x.db", "c/cache", "top"] {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"x").unwrap();
    }
    let all = ". a a/b a/b/keep.db a/b/other a/keep.db c c/cache cache cache/x.db top";
    let table: [(&[&str], &[&str], &str); 8] = [
        (&[], &[], all),
        (&["*.db"], &[], ". a a/b a/b/keep.db a/keep.db cache cache/x.db"),
        (&["*.db"], &["cache/"], ". a a/b a/b/keep.db a/keep.db"),
        (&["a/b"], &[], ". a a/b a/b/keep.db a/b/other"),
        (&["a/b/"], &["other"], ". a a/b a/b/keep.db"),
        (&["/top"], &[], ". top"),
        (&[], &["cache", "a/**/keep.db"], ". a a/b a/b/other c top"),
        (&[], &["a/*"], ". a c c/cache cache cache/x.db top"),
    ];
    for (include, exclude, expected) in table {
        let list = |patterns: &[&str]| patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        let mut sink = Collect::default();
        let spec = files::Spec { include: list(include), exclude: list(exclude), ..spec(root.path()) };
        capture(spec, &mut sink).unwrap();
        let paths: Vec<_> = sink.entries.into_iter().map(|(e, _)| String::from_utf8(e.path).unwrap()).collect();
        assert_eq!(paths.join(" "), expected, "include {include:?}, exclude {exclude:?}");
    }
}

#[test]
fn a_root_without_anything_or_that_is_missing_is_an_error() {
    let root = TempDir::new().unwrap();
    let failure = |spec| capture(spec, &mut Collect::default()).unwrap_err();
    assert!(matches!(failure(spec(root.path())), SourceError::Empty { .. }));
    assert!(matches!(failure(spec(&root.path().join("missing"))), SourceError::Root { .. }));
    assert!(matches!(failure(spec(Path::new("relative"))), SourceError::Spec { .. }));
    fs::write(root.path().join("x"), b"x").unwrap();
    let none = files::Spec { include: vec!["y".to_owned()], ..spec(root.path()) };
    assert!(matches!(failure(none), SourceError::Empty { .. }));
}

#[test]
fn a_single_file_can_be_the_root() {
    let root = TempDir::new().unwrap();
    fs::write(root.path().join("one"), b"x").unwrap();
    fs::write(root.path().join("two"), b"y").unwrap();
    let sink = collect(&root.path().join("one"));
    assert_eq!(sink.entries.len(), 1);
    assert_eq!((sink.entries[0].0.path.as_slice(), sink.entries[0].1.as_slice()), (b"one".as_slice(), b"x".as_slice()));
}

/// Does something to the file `victim` between its being seen and its being opened.
struct Meddle<F: FnMut()>(Collect, F);

impl<F: FnMut()> Sink for Meddle<F> {
    fn add(&mut self, entry: Entry, input: Option<Input>) -> Result<(), Stopped> {
        if entry.path == b"victim" {
            (self.1)();
        }
        self.0.add(entry, input)
    }

    fn problem(&mut self, problem: Problem) {
        self.0.problem(problem);
    }
}

#[test]
fn what_vanishes_or_changes_is_reported() {
    let root = TempDir::new().unwrap();
    let victim = root.path().join("victim");
    let meddle = |action: &dyn Fn(&Path)| {
        let _ = fs::remove_file(&victim);
        fs::write(&victim, b"as it was").unwrap();
        fs::write(root.path().join("x"), b"x").unwrap();
        let mut sink = Meddle(Collect::default(), || action(&victim));
        capture(spec(root.path()), &mut sink).unwrap();
        assert_eq!(sink.0.problems.len(), 1);
        (sink.0.problems.remove(0).text, sink.0.entries)
    };
    let (text, entries) = meddle(&|path| fs::remove_file(path).unwrap());
    assert!(text.contains("vanished"), "{text}");
    assert_eq!(entries.len(), 2);
    let (text, entries) = meddle(&|path| fs::write(path, b"as it was, and longer").unwrap());
    assert!(text.contains("size changed from 9 to 21"), "{text}");
    assert_eq!(entries.iter().find(|(entry, _)| entry.path == b"victim").unwrap().1, b"as it was");
    let (text, _) = meddle(&|path| fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap());
    assert!(text.contains("metadata changed"), "{text}");
    let fifo = |path: &Path| {
        fs::remove_file(path).unwrap();
        sys::mknodat(sys::CWD, path, FileType::Fifo, Mode::RUSR, 0).unwrap();
    };
    assert!(meddle(&fifo).0.contains("no longer a regular file"));
    let link = |path: &Path| {
        fs::remove_file(path).unwrap();
        symlink("/etc/passwd", path).unwrap();
    };
    assert!(meddle(&link).0.contains("symbolic link"));
}

#[test]
fn a_cancelled_capture_ends() {
    let root = TempDir::new().unwrap();
    for index in 0..600 {
        fs::write(root.path().join(index.to_string()), b"").unwrap();
    }
    let runtime = runtime();
    let context = context(&runtime);
    context.cancel.cancel();
    let failure = Spec::Files(spec(root.path())).open().unwrap().capture(&context, &mut Collect::default());
    assert!(matches!(failure, Err(SourceError::Cancelled)));
}

fn entry(path: &[u8], kind: Kind, link: Option<&[u8]>) -> Entry {
    Entry {
        path: path.to_vec(),
        kind,
        mode: 0o700,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime_ns: 0,
        size: 0,
        link: link.map(<[u8]>::to_vec),
        rdev: None,
        xattrs: None,
        sparse: None,
    }
}

#[test]
fn hostile_paths_are_refused() {
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("precious"), b"x").unwrap();
    let target = outside.path().join("target");
    let tree = Tree::create(&target, Options::default()).unwrap();
    tree.make(&entry(b"link", Kind::Symlink, Some(outside.path().as_os_str().as_bytes()))).unwrap();
    for path in [b"../x".as_slice(), b"/x", b"a//x", b"a/", b"", b"a/../x", b"./x", b"..", b"a\0b", b"link/x"] {
        assert!(matches!(tree.file(&entry(path, Kind::File, None)), Err(TreeError::Path { .. })), "{path:?}");
        assert!(matches!(tree.make(&entry(path, Kind::Directory, None)), Err(TreeError::Path { .. })), "{path:?}");
    }
    assert!(tree.make(&entry(b"link", Kind::Directory, None)).is_err());
    assert!(tree.file(&entry(b"link", Kind::File, None)).is_err());
    assert!(tree.make(&entry(b"stolen", Kind::Hardlink, Some(b"link/precious"))).is_err());
    assert!(tree.make(&entry(b"stolen", Kind::Hardlink, Some(b"../precious"))).is_err());
    tree.finish().unwrap();
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 2);
}

#[test]
fn a_target_that_holds_something_is_refused_unless_allowed() {
    let target = TempDir::new().unwrap();
    fs::write(target.path().join("old"), b"old").unwrap();
    assert!(matches!(Tree::create(target.path(), Options::default()), Err(TreeError::NotEmpty { .. })));
    let tree = Tree::create(target.path(), Options { into_existing: true, mark: None }).unwrap();
    assert!(matches!(tree.file(&entry(b"old", Kind::File, None)), Err(TreeError::Exists { .. })));
    let new = entry(b"not/listed/above", Kind::File, None);
    tree.finish_file(&new, tree.file(&new).unwrap()).unwrap();
    assert_eq!(fs::read(target.path().join("old")).unwrap(), b"old");
    assert!(target.path().join("not/listed/above").exists());
}

#[test]
fn what_is_not_whole_is_marked() {
    let target = TempDir::new().unwrap();
    let options = Options { into_existing: false, mark: Some(Mark::new("1", "docs@7")) };
    let within = |name: &str| target.path().join(name);
    // Nothing was restored, so nothing is half there.
    drop(Tree::create(target.path(), options.clone()).unwrap());
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 0);
    let tree = Tree::create(target.path(), options.clone()).unwrap();
    // The mark of another restore, which was captured.
    let other = entry(b".lifeboat-unfinished-2", Kind::File, None);
    tree.finish_file(&other, tree.file(&other).unwrap()).unwrap();
    assert!(fs::read_to_string(within(".lifeboat-unfinished-1")).unwrap().contains("docs@7"));
    fs::remove_file(within(".lifeboat-unfinished-2")).unwrap();
    let refused = Tree::create(target.path(), options);
    assert!(matches!(refused, Err(TreeError::Unfinished { mark, .. }) if mark == ".lifeboat-unfinished-1"));
    tree.make(&Entry { mtime_ns: 5_000_000_000, ..entry(b".", Kind::Directory, None) }).unwrap();
    tree.finish().unwrap();
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 0);
    assert_eq!(fs::metadata(target.path()).unwrap().modified().unwrap(), UNIX_EPOCH + Duration::from_secs(5));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_tree_comes_back(
        files in prop::collection::btree_map(
            prop::collection::vec("[a-c]{1,2}|\\PC{1,8}", 1..4),
            (prop::collection::vec(any::<u8>(), 0..5000), 0_u32..0o1000, any::<u32>(), any::<bool>()),
            1..12,
        )
    ) {
        let (source, target) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        for (parts, (content, mode, seconds, note)) in &files {
            let names: Vec<_> = parts.iter().map(|part| part.replace(['/', '.'], "_")).collect();
            let path = source.path().join(names.join("/"));
            if fs::create_dir_all(path.parent().unwrap()).is_err() || fs::write(&path, content).is_err() {
                continue; // a file where another needs a directory
            }
            if *note {
                sys::setxattr(&path, "user.n", content.get(..9).unwrap_or(b""), XattrFlags::empty()).unwrap();
            }
            let time = UNIX_EPOCH + Duration::new(u64::from(*seconds), *mode);
            fs::File::open(&path).unwrap().set_modified(time).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode | 0o600)).unwrap();
        }
        let first = collect(source.path());
        prop_assert_eq!(restore(&first.entries, target.path()).unwrap(), vec![]);
        prop_assert_eq!(first.entries, collect(target.path()).entries);
    }
}

#[test]
fn attributes_are_sorted_by_name() {
    let root = TempDir::new().unwrap();
    let path = root.path().join("x");
    fs::write(&path, b"x").unwrap();
    for name in ["user.b", "user.a", "user.c"] {
        sys::setxattr(&path, name, b"v", XattrFlags::empty()).unwrap();
    }
    let value = |name: &str| Xattr { name: name.into(), value: b"v".to_vec() };
    let sink = collect(root.path());
    assert_eq!(sink.entries[1].0.xattrs, Some(vec![value("user.a"), value("user.b"), value("user.c")]));
}
