//! A small world for tests: a source whose content is a map, a repository, and ways to write and read snapshots.

use jiff::Timestamp;
use lifeboat::entry::{Content, Entry, Facts, Fingerprint, Input, Kind, Layout, OnError, Sink, Verdict};
use lifeboat::id::SourceName;
use lifeboat::repo::{
    Access, Committed, Identity, Lineage, Options, Reader, Recipient, RepoError, Repository, Role, RootKeys, Selector,
    Summary,
};
use lifeboat::store::Store;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

pub const NOW: &str = "2026-11-24T12:00:00Z";

pub fn now() -> Timestamp {
    NOW.parse().unwrap()
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub bytes: Vec<u8>,
    pub layout: Layout,
    /// Stands for inode, size and times: equal numbers mean an unchanged file.
    pub version: Option<u64>,
}

impl File {
    pub fn content(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), layout: Layout::Content, version: None }
    }

    pub fn pages(bytes: impl Into<Vec<u8>>, page: u32) -> Self {
        Self { bytes: bytes.into(), layout: Layout::Pages(page), version: None }
    }
}

pub type Tree = BTreeMap<String, File>;

pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    })
    .flatten()
    .take(length)
    .collect()
}

pub struct Bytes(pub io::Cursor<Vec<u8>>);

impl Content for Bytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        io::Read::read(&mut self.0, buffer)
    }

    fn finish(self: Box<Self>) -> io::Result<Verdict> {
        Ok(Verdict::Consistent)
    }
}

pub fn entry(path: &str, size: u64) -> Entry {
    Entry {
        path: path.into(),
        kind: Kind::File,
        mode: 0o644,
        uid: 1,
        gid: 2,
        mtime_ns: 3,
        size,
        link: None,
        rdev: None,
        xattrs: None,
        sparse: None,
    }
}

pub struct World {
    pub repository: Repository,
    pub identity: Identity,
    pub keys: RootKeys,
    pub source: SourceName,
}

pub fn recipient(identity: &Identity) -> Recipient {
    Recipient { name: "recovery".into(), role: Role::Recovery, key: identity.public() }
}

impl World {
    pub async fn new(store: Arc<dyn Store>) -> Self {
        let identity = Identity::generate();
        let (repository, keys) = Repository::create(store, vec![recipient(&identity)], now()).await.unwrap();
        Self { repository, identity, keys, source: "data".parse().unwrap() }
    }

    /// The same repository through another store.
    pub async fn through(&self, store: Arc<dyn Store>) -> Result<Self, RepoError> {
        Ok(Self {
            repository: Repository::open(store).await?,
            identity: self.identity.clone(),
            keys: self.keys.clone(),
            source: self.source.clone(),
        })
    }

    pub fn writing(&self) -> Arc<Lineage> {
        Arc::new(self.repository.lineage(&self.source, Access::Writer(self.keys.writer.clone())))
    }

    pub fn reading(&self) -> Arc<Lineage> {
        Arc::new(self.repository.lineage(&self.source, Access::Recipient(self.identity.clone())))
    }

    pub async fn backup(&self, tree: &Tree) -> Result<Committed, RepoError> {
        self.backup_at(tree, now()).await
    }

    pub async fn backup_at(&self, tree: &Tree, at: Timestamp) -> Result<Committed, RepoError> {
        let writer = self.writing().begin(options(), at).await?;
        let tree = tree.clone();
        let writer = tokio::task::spawn_blocking(move || capture(writer, &tree)).await.unwrap();
        writer.commit(summary(at)).await
    }

    pub async fn read(&self, selector: &Selector) -> Result<Tree, RepoError> {
        let lineage = self.reading();
        let (snapshot, _) = lineage.find(selector).await?;
        let reader = Arc::new(Reader::open(lineage, snapshot).await?);
        let items = reader.items().await?;
        tokio::task::spawn_blocking(move || {
            let mut tree = Tree::new();
            for item in items {
                let mut bytes = vec![0; item.entry.size as usize];
                for part in &reader.parts(&item)? {
                    reader
                        .read(&item, part, &mut |at, piece| {
                            bytes[at as usize..][..piece.len()].copy_from_slice(piece);
                            Ok(())
                        })
                        .map_err(|why| match why {
                            lifeboat::repo::ReadError::Repo(error) => error,
                            lifeboat::repo::ReadError::Emit(error) => panic!("{error}"),
                        })?;
                }
                tree.insert(String::from_utf8(item.entry.path).unwrap(), File::content(bytes));
            }
            Ok(tree)
        })
        .await
        .unwrap()
    }
}

pub fn options() -> Options {
    Options { level: 1, threads: 2, run_limit: Duration::from_hours(24), retain: None }
}

pub fn summary(at: Timestamp) -> Summary {
    Summary { kind: "files".into(), started: at, facts: Facts::default(), reasons: Vec::new(), run: "test".into() }
}

pub fn capture<S: Sink>(mut sink: S, tree: &Tree) -> S {
    for (path, file) in tree {
        let bytes = file.bytes.clone();
        let size = bytes.len() as u64;
        let fingerprint =
            file.version.map(|v| Fingerprint { size, mtime_ns: v.cast_signed(), ctime_ns: v.cast_signed(), inode: v });
        let input = Input {
            layout: file.layout,
            fingerprint,
            on_error: OnError::Report,
            open: Box::new(move || Ok(Box::new(Bytes(io::Cursor::new(bytes))))),
        };
        if sink.add(entry(path, size), Some(input)).is_err() {
            break;
        }
    }
    sink
}

/// The contents alone, to compare with.
pub fn contents(tree: &Tree) -> BTreeMap<&str, &[u8]> {
    tree.iter().map(|(path, file)| (path.as_str(), file.bytes.as_slice())).collect()
}
