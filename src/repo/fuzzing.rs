//! The decoders of what a store says, for fuzzing; no part of the library's interface. Each target takes any bytes, looks
//! at what decodes from all sides, and says whether it did. A seal, a signature or a digest would stop every altered
//! input, so what lies behind one is taken as it is inside.

use crate::id::{PackId, RepositoryId, Sequence, SourceName};
use crate::repo::codec::{Codec, Compressor, MAX_RAW, decompress, pack_document, unpack_document};
use crate::repo::error::Result;
use crate::repo::keys::{KeeperKey, WriterKey};
use crate::repo::lineage::Lineage;
use crate::repo::manifest::{Catalogue, Manifest, Private};
use crate::repo::pack::{self, Directory, FrameSeal, Items, PackIndex, PlainTail, Table, append_trailer, encode};
use crate::repo::reader::Reader;
use crate::repo::root::{self, Identity, LineageSecrets, Root, Wrap, key_field, open_json};
use crate::repo::seal::Class;
use crate::repo::segment::{Body, Entries, Hints, Run, push_run};
use crate::repo::{codec, epoch, live, prune};
use crate::store::list_all;
use jiff::Timestamp;
use std::fmt::Display;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

/// True if the bytes are valid.
pub type Target = fn(&[u8]) -> bool;

pub const TARGETS: &[(&str, Target)] = &[
    ("table", table),
    ("directory", directory),
    ("frame", frame),
    ("document", document),
    ("manifest", manifest),
    ("catalogue", catalogue),
    ("private", |bytes| cbor::<Private>(bytes).is_some()),
    ("entries", entries),
    ("hints", hints),
    ("root", root_state),
    ("epoch", epoch_record),
    ("prune", prune_record),
    ("wrap", wrap),
    ("name", name),
    ("key", key),
];

/// More items than this are not looked at.
const MOST: u32 = 2_000;
const NOWHERE: &str = "fuzz";

/// Decodes a record; what was read must survive being written.
fn cbor<T: minicbor::Encode<()> + for<'a> minicbor::Decode<'a, ()>>(bytes: &[u8]) -> Option<T> {
    let value: T = codec::decode(bytes).ok()?;
    let written = encode(&value);
    let again: T = minicbor::decode(&written).expect("what was written can be read");
    assert_eq!(encode(&again), written);
    Some(value)
}

/// The plain half of a tail with this table, in a pack of fitting size.
fn tail_of(table: &[u8]) -> Option<PlainTail> {
    let frames = cbor::<Table>(table)?.frames;
    let mut tail = table.to_vec();
    append_trailer(&mut tail, table.len() as u32);
    let sealed: u64 = frames.iter().map(|frame| u64::from(frame.sealed)).sum();
    let parsed = PlainTail::parse(NOWHERE, &tail, pack::HEADER + sealed + tail.len() as u64).ok()?;
    assert_eq!(parsed.frames.last().map_or(pack::HEADER, |f| f.offset + u64::from(f.sealed)), pack::HEADER + sealed);
    Some(parsed)
}

fn table(bytes: &[u8]) -> bool {
    let _ = PlainTail::parse(NOWHERE, bytes, u64::MAX);
    tail_of(bytes).is_some()
}

fn directory(bytes: &[u8]) -> bool {
    let Some(directory) = cbor::<Directory>(bytes) else { return false };
    let zeros = directory.zeros.iter().flat_map(|zeros| zeros.runs.iter().map(|run| (zeros.space, run.0, run.1)));
    let pages = directory.frames.iter().flat_map(|frame| match &frame.items {
        Items::Pages(space, _, runs) => runs.iter().map(|run| (*space, run.0, run.1)).collect(),
        Items::Chunks(_) => Vec::new(),
    });
    let spans: Vec<(u64, u64, u32)> = zeros.chain(pages).take(MOST as usize).collect();
    let count = directory.frames.len();
    let frames = vec![FrameSeal { class: Class::Data, sealed: 0, digest: [0; 16] }; count];
    let table = Table { pack: PackId([0; 16]), encapsulation: [0; 32], epoch: 1, frames };
    let Some(tail) = tail_of(&encode(&table)) else { return false };
    let Ok(index) = PackIndex::new(NOWHERE.into(), tail, directory) else { return false };
    for ordinal in (0..MOST).chain([u32::MAX]) {
        let located = index.locate(ordinal);
        assert_eq!(located.map(|at| at.id), index.id(ordinal));
        assert!(located.is_none_or(|at| at.offset as usize + at.length as usize <= MAX_RAW));
    }
    for (space, first, count) in spans {
        for (from, to) in [(0, u64::MAX), (first.saturating_sub(1), first + 1), (first, first + u64::from(count))] {
            let runs: Vec<_> = index.page_runs(space, from, to).take(MOST as usize).collect();
            assert!(runs.iter().all(|run| run.first >= from && run.end() <= to.max(run.first)));
        }
    }
    for frame in (0..count as u32).take(64) {
        let ids = index.frame_ids(frame).take(MOST as usize).count();
        assert!(ids <= index.frame_items(frame).len());
    }
    index.chunk_frames().count() <= count
}

/// A codec, a length (4 bytes) and what is stored.
fn frame(bytes: &[u8]) -> bool {
    let Some(([codec, length @ ..], stored)) = bytes.split_first_chunk::<5>() else { return false };
    let codec = if codec & 1 == 0 { Codec::Raw } else { Codec::Zstd };
    let length = u32::from_le_bytes(*length) as usize;
    let mut raw = Vec::new();
    let unsealed = |buffer: &mut Vec<u8>| {
        stored.clone_into(buffer);
        Ok(())
    };
    let sound = decompress(codec, length, &mut raw, unsealed).is_ok();
    assert!(!sound || raw.len() == length);
    sound
}

fn document(bytes: &[u8]) -> bool {
    const LIMIT: usize = 1 << 20;
    let Ok(raw) = unpack_document(bytes, LIMIT) else { return false };
    assert!(raw.len() <= LIMIT);
    true
}

fn manifest(bytes: &[u8]) -> bool {
    let claimed = Manifest::claimed_epoch(NOWHERE, bytes);
    let Ok(Manifest { header, .. }) = Manifest::unsigned(NOWHERE, bytes) else { return false };
    let again = minicbor::decode(&encode(&header)).expect("what was written can be read");
    assert_eq!(header, again);
    assert_eq!(live::to_refresh(&header.packs, u64::MAX).len(), header.packs.len());
    claimed.is_ok()
}

fn catalogue(bytes: &[u8]) -> bool {
    let Some(catalogue) = cbor::<Catalogue>(bytes) else { return false };
    let _ = Timestamp::from_millisecond(catalogue.recovery_point_ms);
    serde_json::to_vec(&catalogue.facts).is_ok()
}

fn join(runs: &[Run]) {
    let mut joined = Vec::new();
    for run in runs {
        push_run(&mut joined, run.pack, run.first, run.count);
    }
    let total = |runs: &[Run]| runs.iter().map(|run| u64::from(run.count)).sum::<u64>();
    assert_eq!(total(&joined), total(runs));
}

fn entries(bytes: &[u8]) -> bool {
    let Some(list) = cbor::<Entries>(bytes) else { return false };
    for stored in &list.entries {
        if let Body::Chunks(runs) = &stored.body {
            join(runs);
        }
    }
    true
}

fn hints(bytes: &[u8]) -> bool {
    let Some(list) = cbor::<Hints>(bytes) else { return false };
    for hint in &list.hints {
        assert_eq!(hint.fingerprint().size, hint.size);
        join(&hint.runs);
    }
    true
}

fn root_state(bytes: &[u8]) -> bool {
    let Some(root) = Root::unsigned(bytes) else { return false };
    let key = WriterKey(crate::repo::keys::Secret32([7; 32]));
    let _ = (root.accept_writer(&key), root.unlock(identity()), root.recipients(), root.created());
    root.keepers().is_ok() && root.current_writer().is_ok()
}

fn epoch_record(bytes: &[u8]) -> bool {
    let mut wraps = None;
    let _ = open_json(NOWHERE, bytes, epoch::SIGNATURE, |record: &epoch::Record| {
        wraps = Some(record.wraps.clone());
        key_field(NOWHERE, &record.verifying_key)
    });
    wraps.iter().flatten().for_each(|wrap| _ = wrap.open(identity()));
    wraps.is_some()
}

fn prune_record(bytes: &[u8]) -> bool {
    let mut valid = false;
    let _ = open_json(NOWHERE, bytes, prune::SIGNATURE, |record: &prune::Record| {
        valid = record.removed().all(|(sequence, _)| sequence.next() > sequence);
        Ok([0; 32])
    });
    valid
}

fn wrap(bytes: &[u8]) -> bool {
    let _ = serde_json::from_slice::<LineageSecrets>(bytes).map(|secrets| secrets.parse());
    let Ok(wrap) = serde_json::from_slice::<Wrap>(bytes) else { return false };
    wrap.open(identity());
    true
}

fn identity() -> &'static Identity {
    static IDENTITY: OnceLock<Identity> = OnceLock::new();
    IDENTITY.get_or_init(Identity::generate)
}

/// Names of objects and sources, and ids.
fn name(bytes: &[u8]) -> bool {
    fn same<T: FromStr + Display>(text: &str) -> bool {
        text.parse::<T>().is_ok_and(|value| value.to_string() == text)
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let sequence = Sequence::from_object_name(text);
    assert!(sequence.is_none_or(|s| s.object_name() == text));
    let id = text.parse::<PackId>().is_ok();
    assert_eq!(id, same::<RepositoryId>(text));
    let source = text.parse::<SourceName>();
    assert!(source.as_ref().is_ok() == same::<SourceName>(text));
    sequence.is_some() || id || source.is_ok()
}

/// Keys and identities as people type them.
fn key(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let same = |key: String| assert_eq!(key, text.trim().to_ascii_lowercase());
    let (writer, keeper) = (WriterKey::from_text(text), KeeperKey::from_text(text));
    let identity = Identity::from_text(text);
    let valid = writer.is_ok() || keeper.is_ok() || identity.is_ok();
    let _ = (writer.map(|key| same(key.to_text())), keeper.map(|key| same(key.to_text())));
    let _ = identity.map(|identity| assert!(text.to_ascii_uppercase().contains(identity.to_text().trim())));
    valid
}

/// Valid inputs, from everything that a lineage holds. It must have been opened with a recovery identity.
///
/// # Errors
/// As reading it.
pub async fn seeds(lineage: &Arc<Lineage>) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let store = lineage.store.as_ref();
    let mut seeds = vec![("name", lineage.source.to_string().into_bytes())];
    for object in root::objects(store).await? {
        seeds.push(("root", store.get(&object).await?.into()));
    }
    for object in epoch::objects(store, &lineage.source).await? {
        let target = if object.ends_with("/epoch.json") { "epoch" } else { "wrap" };
        seeds.push((target, store.get(&object).await?.into()));
    }
    for object in list_all(store, &prune::prefix(lineage)).await? {
        seeds.push(("prune", store.get(&object.key).await?.into()));
    }
    for (sequence, meta) in lineage.list().await? {
        seeds.push(("name", sequence.object_name().into_bytes()));
        seeds.push(("manifest", store.get(&meta.key).await?.into()));
        let snapshot = lineage.read(sequence, &meta).await?;
        let (manifest, epoch) =
            (&snapshot.manifest, lineage.epoch_of(&meta.key, snapshot.manifest.header.epoch).await?);
        for reference in &manifest.header.packs {
            let tail = lineage.tail(reference).await?;
            let plain = PlainTail::parse(NOWHERE, &tail, reference.size)?;
            seeds.push(("table", tail[..plain.table_len].to_vec()));
            seeds.push(("directory", pack::open_directory(NOWHERE, &tail, &plain, epoch.writer_keys()?)?));
        }
        if let Some(private) = &epoch.private {
            seeds.push(("private", encode(&manifest.private(&lineage.source, private)?)));
        }
        let reader = Reader::open(lineage.clone(), snapshot).await?;
        let catalogue = encode(reader.catalogue());
        seeds.push(("document", pack_document(&catalogue).unwrap_or_default()));
        seeds.push(("catalogue", catalogue));
        for segment in &reader.catalogue().segments {
            let (entries, hints) = (reader.chunk(segment.entries).await?, reader.chunk(segment.hints).await?);
            let length = (entries.len() as u32).to_le_bytes();
            if let Ok((codec, stored, _)) = Compressor::new(1).and_then(|mut c| c.compress(entries.clone(), Vec::new()))
            {
                seeds.push(("frame", [&[codec as u8][..], &length, &stored].concat()));
            }
            seeds.extend([("entries", entries), ("hints", hints)]);
        }
    }
    seeds.sort();
    seeds.dedup();
    Ok(seeds)
}
