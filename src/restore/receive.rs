//! In the pod that a claim is restored by: what arrives ([`crate::source::volume::stream`]), onto the volume.
//!
//! The volume is mounted as the directory `files` below a root that is not part of it, so that the snapshot's own paths
//! lead there. What arrives is trusted no more than a snapshot is: see [`super::tree`].

use super::plan::place::{Look, create_if_absent, dress, sync};
use super::snapshot::write_block;
use super::tree::{Options, Tree, TreeError};
use crate::entry::{Entry, Kind, Problem};
use crate::exec::causes;
use crate::source::volume::FILES;
use crate::source::volume::stream::{self, BEFORE, Refusal, Report, Standing, Terms};
use crate::source::{Context, SourceError};
use std::error::Error as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Bytes of a content that are held in memory.
const PIECE: usize = 256 << 10;

#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("{action} {}", path.display())]
    Volume { action: &'static str, path: PathBuf, source: io::Error },
    #[error("receive the volume's files")]
    Stream(#[from] io::Error),
    #[error(transparent)]
    Preparation(#[from] SourceError),
}

fn failed(action: &'static str, volume: &Path) -> impl FnOnce(io::Error) -> ReceiveError + use<> {
    let path = volume.to_owned();
    move |source| ReceiveError::Volume { action, path, source }
}

/// Only says whether the volume `files` below `root` would take it.
///
/// # Errors
/// It cannot be looked into.
pub fn look(context: &Context, root: &Path, terms: &Terms) -> Result<Report, ReceiveError> {
    let volume = root.join(FILES);
    let mut refused = refusal(&volume, terms).map_err(failed("look into", &volume))?;
    if let Some((preparation, version)) = terms.preparation()
        && let Err(why) = preparation.check(context, version)
    {
        refused.get_or_insert(Refusal::Unprepared(causes(why.to_string(), why.source())));
    }
    Ok(Report { refused, ..Report::default() })
}

/// Receives into the volume `files` below `root`.
///
/// # Errors
/// What arrives is not whole, or cannot be written. The volume may be half filled then.
pub fn receive(context: &Context, root: &Path, terms: &Terms, input: &mut dyn Read) -> Result<Report, ReceiveError> {
    let looked = look(context, root, terms)?;
    if looked.refused.is_some() {
        return Ok(looked);
    }
    let volume = root.join(FILES);
    match &terms.standing {
        Standing::Refuse | Standing::Beside => {}
        Standing::Clear => clear(&volume).map_err(failed("clear", &volume))?,
        Standing::Aside(step) => put_aside(&volume, step).map_err(failed("move aside what is in", &volume))?,
    }
    let tree = Tree::create(root, Options { into_existing: true, mark: None })?;
    let (mut received, mut lost, mut buffer) = (Report::default(), false, vec![0; PIECE]);
    stream::receive::<ReceiveError>(input, |entry, content| {
        if entry.kind == Kind::File {
            let file = tree.file(entry)?;
            fill(entry, &file, content, &mut buffer)?;
            if content.lost {
                lost = true;
                return Ok(tree.discard(entry)?);
            }
            tree.finish_file(entry, file)?;
            received.bytes += entry.size;
        } else {
            tree.make(entry)?;
        }
        received.entries += 1;
        Ok(())
    })?;
    let told = |problem: Problem| (String::from_utf8_lossy(&problem.path).into_owned(), problem.text);
    received.problems = tree.finish()?.into_iter().map(told).collect();
    // Without one of its files it is not fit for it. An owner or an attribute that could not be set is told, and no hindrance.
    if let Some((preparation, _)) = terms.preparation().filter(|_| !lost) {
        received.prepared = Some(preparation.run(context, &volume)?);
    }
    let sync = File::open(&volume).and_then(|volume| rustix::fs::syncfs(&volume).map_err(io::Error::from));
    sync.map_err(failed("make durable what was written to", &volume))?;
    if let Standing::Aside(step) = &terms.standing {
        received.aside = Aside::of(&volume, step).kept().map_err(failed("look into", &volume))?;
    }
    Ok(received)
}

/// Gives up what a restore of this name did not bring to its end: what it had moved aside comes back, what had come goes.
///
/// # Errors
/// It is half done. Doing it again goes on.
pub fn give_back(root: &Path, step: &str) -> Result<Report, ReceiveError> {
    let volume = root.join(FILES);
    let aside = Aside::of(&volume, step);
    let mut report = Report::default();
    if aside.give_back(&volume).map_err(failed("put back what was in", &volume))? {
        report.aside = Some(aside.name);
    }
    Ok(report)
}

fn refusal(volume: &Path, terms: &Terms) -> io::Result<Option<Refusal>> {
    let there = content(volume)?;
    if let (Standing::Refuse, Some(first)) = (&terms.standing, there.first()) {
        return Ok(Some(Refusal::Occupied(first.display().to_string())));
    }
    let space = rustix::fs::statvfs(volume)?;
    let room = match &terms.standing {
        // What it holds makes room, as far as it is the volume's alone.
        Standing::Clear => space.f_blocks,
        // What an earlier attempt has written will go.
        Standing::Aside(step) if Aside::of(volume, step).whole.exists() => return Ok(None),
        Standing::Refuse | Standing::Beside | Standing::Aside(_) => space.f_bavail,
    };
    let room = room.saturating_mul(space.f_frsize);
    Ok((terms.needs > room).then_some(Refusal::Short(room)))
}

/// All but what a file system itself puts there, and what restores have moved aside.
fn content(volume: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(volume)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != "lost+found" && !name.as_encoded_bytes().starts_with(BEFORE.as_bytes()) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

fn clear(volume: &Path) -> io::Result<()> {
    content(volume)?.iter().try_for_each(|path| remove(path))
}

fn remove(path: &Path) -> io::Result<()> {
    if path.symlink_metadata()?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Where what the volume held is: in `half` while it is moved there or back, in `whole` when all of it is there and nothing
/// beside it is anybody's data.
struct Aside {
    name: String,
    whole: PathBuf,
    half: PathBuf,
}

impl Aside {
    fn of(volume: &Path, step: &str) -> Self {
        let name = format!("{BEFORE}{step}");
        Self { whole: volume.join(&name), half: volume.join(format!("{name}.moving")), name }
    }

    /// Its name, if there is something in it. It goes otherwise.
    fn kept(self) -> io::Result<Option<String>> {
        if fs::read_dir(&self.whole)?.next().is_some() {
            return Ok(Some(self.name));
        }
        fs::remove_dir(&self.whole)?;
        Ok(None)
    }

    /// False: nothing is aside.
    fn give_back(&self, volume: &Path) -> io::Result<bool> {
        if self.whole.exists() {
            clear(volume)?;
            fs::rename(&self.whole, &self.half)?;
            sync(volume)?;
        }
        if !self.half.exists() {
            return Ok(false);
        }
        let like = Look::of(&self.half)?;
        for entry in fs::read_dir(&self.half)? {
            let entry = entry?;
            fs::rename(entry.path(), volume.join(entry.file_name()))?;
        }
        // Whoever is killed in between leaves it with another time, and not with another owner.
        dress(volume, &like)?;
        fs::remove_dir(&self.half)?;
        dress(volume, &like)?;
        sync(volume)?;
        Ok(true)
    }
}

fn put_aside(volume: &Path, step: &str) -> io::Result<()> {
    let aside = Aside::of(volume, step);
    if aside.whole.exists() {
        return clear(volume);
    }
    let like = Look::of(volume)?;
    create_if_absent(&aside.half)?;
    // Nobody may read there who could not before, and the volume gets it back from there.
    dress(&aside.half, &like)?;
    for path in content(volume)? {
        fs::rename(&path, aside.half.join(path.file_name().unwrap_or_default()))?;
    }
    // Its time has changed.
    dress(&aside.half, &like)?;
    sync(&aside.half)?;
    fs::rename(&aside.half, &aside.whole)?;
    sync(volume)
}

fn fill(entry: &Entry, file: &File, content: &mut dyn Read, buffer: &mut [u8]) -> Result<(), ReceiveError> {
    let sparse = entry.sparse == Some(true);
    let failed = |source| {
        let path = PathBuf::from(String::from_utf8_lossy(&entry.path).into_owned());
        ReceiveError::Volume { action: "write", path, source }
    };
    if sparse {
        file.set_len(entry.size).map_err(failed)?;
    }
    let mut at = 0;
    loop {
        let mut length = 0;
        while length < buffer.len() {
            match content.read(&mut buffer[length..])? {
                0 => break,
                more => length += more,
            }
        }
        if length == 0 {
            return Ok(());
        }
        write_block(file, sparse, at, &buffer[..length]).map_err(failed)?;
        at += length as u64;
    }
}
