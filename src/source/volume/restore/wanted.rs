//! What a snapshot holds for a volume.

use super::super::below::entry_below;
use super::super::stream::{BEFORE, Sender, Standing};
use super::super::{CLAIM, FILES};
use super::CAPTURED;
use crate::entry::{Body, Entry, Facts, Kind, Problem, Supply};
use crate::source::SourceError;
use crate::source::kubernetes::normal::FILLING;
use crate::source::kubernetes::yaml;
use crate::source::target::{Existing, Options};
use crate::source::volume::claim::Claim;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;

/// Of a claim's manifest.
const LARGEST: usize = 1 << 20;

/// How a snapshot is laid out.
#[derive(Clone, Debug)]
pub enum Layout {
    /// A volume's: the claim, and the volume's root as `files`.
    Volume,
    /// Anything else: all of it is to be the volume's content.
    Tree {
        /// Tells the snapshot from every other.
        id: String,
        /// And not some of its entries.
        whole: bool,
    },
}

impl Layout {
    /// The entry as it is sent, if it is of the volume.
    fn placed<'a>(&self, entry: &'a Entry) -> Option<Cow<'a, Entry>> {
        match self {
            Self::Volume => {
                let rest = entry.path.strip_prefix(FILES.as_bytes())?;
                (rest.is_empty() || rest[0] == b'/').then_some(Cow::Borrowed(entry))
            }
            // What an earlier restore had moved aside there: a capture of a database takes it along.
            Self::Tree { .. } if entry.path.starts_with(BEFORE.as_bytes()) => None,
            Self::Tree { .. } => Some(Cow::Owned(entry_below(FILES, entry.clone()))),
        }
    }
}

/// What was asked for.
pub struct Wanted {
    layout: Layout,
    /// Of the claim.
    pub manifest: Option<Value>,
    /// The volume as a whole, and not some of its files.
    pub whole: bool,
    pub entries: u64,
    /// Of contents; what has holes may need less.
    pub bytes: u64,
    /// Tells the snapshot from every other.
    pub id: String,
}

impl Wanted {
    pub fn read(supply: &dyn Supply, layout: &Layout) -> Result<Self, SourceError> {
        let (id, whole) = match layout {
            Layout::Volume => (of_volume(supply.facts()), false),
            Layout::Tree { id, whole } => (id.clone(), *whole),
        };
        let mut wanted = Self { layout: layout.clone(), manifest: None, whole, entries: 0, bytes: 0, id };
        let mut text = Vec::new();
        let read = supply.entries(&mut |entry, body| {
            if let Some(entry) = layout.placed(entry) {
                wanted.whole |= entry.path == FILES.as_bytes() && matches!(layout, Layout::Volume);
                wanted.entries += 1;
                if entry.kind == Kind::File && entry.sparse != Some(true) {
                    wanted.bytes += entry.size;
                }
            } else if entry.path == CLAIM.as_bytes() && entry.size <= LARGEST as u64 {
                body.copy(&mut text)?;
            }
            Ok(())
        });
        read.map_err(|source| SourceError::Snapshot { what: CLAIM.into(), source })?;
        if !text.is_empty() {
            let text = String::from_utf8_lossy(&text);
            let manifest = yaml::read(&text).map_err(|why| SourceError::System {
                attempt: format!("read {CLAIM} of the snapshot"),
                text: why,
                need: String::new(),
            })?;
            wanted.manifest = Some(manifest);
        }
        Ok(wanted)
    }

    /// What becomes of what the volume holds.
    pub fn standing(&self, options: &Options, there: Option<&Claim>) -> Standing {
        let replace = options.existing == Existing::Replace;
        match &options.step {
            _ if !self.whole => Standing::Beside,
            Some(step) if replace && options.aside => Standing::Aside(step.clone()),
            _ if replace || self.began(there) => Standing::Clear,
            _ => Standing::Refuse,
        }
    }

    /// A restore of this snapshot into the claim has begun and not ended.
    pub fn began(&self, there: Option<&Claim>) -> bool {
        there.is_some_and(|claim| claim.marked(FILLING) == Some(self.id.as_str()))
    }

    /// Sends what is of the volume. A file that the repository has lost is left out, or ends it, if all is `needed`.
    pub fn send(&self, supply: &dyn Supply, needed: bool, out: &mut dyn io::Write) -> Result<Sent, Sending> {
        let (mut out, mut at) = (Telling { out, failed: false }, Vec::new());
        let sent = self.pour(supply, needed, &mut out, &mut at);
        let at = String::from_utf8_lossy(&at).into_owned();
        sent.map_err(|error| if out.failed { Sending::Gone } else { Sending::Snapshot(at, error) })
    }

    fn pour(&self, supply: &dyn Supply, needed: bool, out: &mut Telling<'_>, at: &mut Vec<u8>) -> io::Result<Sent> {
        let (mut sender, mut lost, mut links) = (Sender::new(out)?, BTreeMap::new(), Vec::new());
        supply.entries(&mut |entry, body: &dyn Body| {
            let Some(entry) = self.layout.placed(entry) else { return Ok(()) };
            at.clone_from(&entry.path);
            if entry.link.as_ref().is_some_and(|file| entry.kind == Kind::Hardlink && lost.contains_key(file)) {
                links.push(Problem::link_to_lost(entry.path.clone()));
                return Ok(());
            }
            match sender.send(&entry, body)? {
                Some(error) if needed => return Err(error),
                Some(error) => drop(lost.insert(entry.path.clone(), Problem::lost(entry.path.clone(), &error))),
                None => {}
            }
            Ok(())
        })?;
        let entries = sender.entries;
        sender.end()?;
        Ok(Sent { entries, lost: lost.into_values().chain(links).collect() })
    }
}

/// What has arrived, if the receiving end says so too.
pub struct Sent {
    pub entries: u64,
    /// What was left out.
    pub lost: Vec<Problem>,
}

fn of_volume(facts: &Facts) -> String {
    let captured = facts.details.get(CAPTURED).map_or("", String::as_str);
    format!("{}@{captured}", facts.system.as_deref().unwrap_or_default())
}

pub enum Sending {
    /// The snapshot cannot be read, at this entry or after it.
    Snapshot(String, io::Error),
    /// The pod takes nothing more.
    Gone,
}

/// Remembers whether writing failed.
struct Telling<'a> {
    out: &'a mut dyn io::Write,
    failed: bool,
}

impl io::Write for Telling<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes).inspect_err(|_| self.failed = true)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush().inspect_err(|_| self.failed = true)
    }
}
