//! A directory with one of everything, to a bucket and back.

use crate::support::picture::{assert_same, picture};
use crate::support::posix_acl;
use crate::support::world::{World, noise};
use crate::support::{Bucket, bucket, minio};
use rustix::fs::{self as sys, FileType, Mode, XattrFlags};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

fn build(root: &Path) {
    fs::create_dir_all(root.join("dir/deep/er")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::write(root.join("dir/plain"), b"content").unwrap();
    fs::write(root.join("dir/nothing"), b"").unwrap();
    fs::write(root.join("dir/large"), noise(1, 11_000_003)).unwrap();
    fs::write(root.join(OsStr::from_bytes(b"dir/\xff\xfe not text\n")), b"named in bytes").unwrap();
    fs::write(root.join("dir/setuid"), b"program").unwrap();
    fs::hard_link(root.join("dir/plain"), root.join("zz-second-name")).unwrap();
    fs::hard_link(root.join("dir/plain"), root.join("dir/deep/third-name")).unwrap();
    symlink("nowhere/../at all", root.join("dangling")).unwrap();
    sys::mknodat(sys::CWD, root.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(b"island", 1 << 20).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sys::setxattr(root.join("dir/plain"), "user.note", b"\x00\x01 any bytes", XattrFlags::empty()).unwrap();
    sys::setxattr(root.join("dir"), "user.directory", b"too", XattrFlags::empty()).unwrap();
    let acl = posix_acl();
    sys::setxattr(root.join("dir/nothing"), "system.posix_acl_access", &acl, XattrFlags::empty()).unwrap();
    sys::setxattr(root.join("empty"), "system.posix_acl_default", &acl, XattrFlags::empty()).unwrap();
    for number in 0..300 {
        fs::write(root.join(format!("dir/deep/er/{number}")), format!("file {number}")).unwrap();
    }
    if rustix::process::geteuid().is_root() {
        let null = sys::makedev(1, 3);
        let mode = Mode::from_raw_mode(0o666);
        sys::mknodat(sys::CWD, root.join("null"), FileType::CharacterDevice, mode, null).unwrap();
        chown(root.join("dir/setuid"), Some(12), Some(34)).unwrap();
        chown(root.join("dir/deep"), Some(99), Some(98)).unwrap();
        lchown(root.join("dangling"), Some(56), Some(78)).unwrap();
    }
    for (name, mode) in [("dir/setuid", 0o4751), ("dir/deep", 0o2770), ("empty", 0o1500), ("dir/plain", 0o400)] {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let long_ago = UNIX_EPOCH - Duration::new(86_400, 123_456_789);
    for name in ["dir/nothing", "empty", "dir/deep"] {
        fs::File::open(root.join(name)).unwrap().set_modified(long_ago).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_with_one_of_everything_comes_back_from_a_bucket() {
    let minio = minio();
    let world = World::bucket(&bucket(&minio, "files", Bucket::Versioned).await, 0);
    build(&world.path("tree"));
    let first = picture(&world.path("tree"));
    world.backup();
    fs::remove_file(world.path("tree/dir/deep/er/7")).unwrap();
    fs::set_permissions(world.path("tree/fifo"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(world.path("tree/dir/deep/er/8"), "changed").unwrap();
    let second = picture(&world.path("tree"));
    let rescan = world.backup();
    assert!(rescan.new_bytes < 100_000, "{} new bytes for one changed file", rescan.new_bytes);
    world.assert_restores(1, &first);
    world.as_owner(&["restore", "snapshot", "docs@latest", "--to", "back"]).expect(0);
    assert_same(&picture(&world.path("back")), &second, "latest");
    assert!(fs::metadata(world.path("back/sparse")).unwrap().blocks() * 512 < 1 << 20, "it is no longer sparse");
    world.assert_sound();
}
