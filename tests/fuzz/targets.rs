//! Every decoder of untrusted bytes: those of the repository, and those of other layers.

use lifeboat::cli::Reference;
use lifeboat::config::Config;
use lifeboat::entry::{Entry, Kind};
use lifeboat::repo::fuzzing::Target;
use lifeboat::restore::tree::{Options, Tree};

pub fn targets() -> Vec<(&'static str, Target)> {
    let others: [(&str, Target); 5] =
        [("reference", reference), ("config", config), ("bbolt", bbolt), ("tar", tar), ("tree", tree)];
    [lifeboat::repo::fuzzing::TARGETS, &others].concat()
}

fn reference(bytes: &[u8]) -> bool {
    str::from_utf8(bytes).is_ok_and(|text| text.parse::<Reference>().is_ok())
}

fn config(bytes: &[u8]) -> bool {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("config.yaml");
    std::fs::write(&file, bytes).unwrap();
    match Config::load(&[file]) {
        Ok(config) => {
            config.lint(jiff::Timestamp::UNIX_EPOCH, |_| None);
            true
        }
        Err(mistakes) => {
            assert!(mistakes.iter().all(|mistake| !mistake.to_string().is_empty()));
            false
        }
    }
}

fn bbolt(bytes: &[u8]) -> bool {
    let size = lifeboat::source::etcd::page_size(bytes);
    size.is_ok_and(|size| size.is_power_of_two() && size >= 512)
}

fn entries(bytes: &[u8]) -> Option<Vec<Entry>> {
    minicbor::decode(bytes).ok()
}

/// What other programs must read again: the headers of an archive.
fn tar(bytes: &[u8]) -> bool {
    let Some(entries) = entries(bytes) else { return false };
    for entry in entries {
        let mut archive = tar::Builder::new(Vec::new());
        if lifeboat::restore::tar::head(&mut archive, &entry, tar::EntryType::Directory).is_ok() {
            let written = archive.into_inner().unwrap();
            let mut archive = tar::Archive::new(&written[..]);
            let mut read = archive.entries().unwrap();
            let header = read.next().unwrap().unwrap();
            let path = header.path_bytes();
            assert_eq!(path.trim_ascii_end().is_empty(), entry.path.is_empty());
            assert!(read.next().is_none());
        }
    }
    true
}

/// Whatever the entries say, nothing appears outside the directory.
fn tree(bytes: &[u8]) -> bool {
    let Some(entries) = entries(bytes) else { return false };
    let place = tempfile::tempdir().unwrap();
    let within = place.path().join("a/b");
    let tree = Tree::create(&within, Options::default()).unwrap();
    for entry in entries.iter().take(200) {
        // An owner and device nodes are the kernel's matter.
        let entry = Entry { uid: u32::MAX, gid: u32::MAX, rdev: None, size: entry.size % 4096, ..entry.clone() };
        if entry.kind == Kind::File {
            let _ = tree.file(&entry).and_then(|file| tree.finish_file(&entry, file));
        } else {
            let _ = tree.make(&entry);
        }
    }
    let _ = tree.finish();
    for (directory, only) in [(place.path(), "a"), (&place.path().join("a"), "b")] {
        let names: Vec<_> = std::fs::read_dir(directory).unwrap().map(|found| found.unwrap().file_name()).collect();
        assert_eq!(names, [only]);
    }
    true
}
