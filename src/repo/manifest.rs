//! Manifests: one object per snapshot that says everything restore needs to begin (`docs/format.md`, "Manifests").
//!
//! ```text
//! magic (6) · format (2) · length (4) header · length (4) catalogue · length (4) private part · signature (64)
//! ```
//! The header is plain (which packs, whose child), the catalogue is sealed for the writer (facts, times, sizes, where the
//! entry segments are), the private part for the recipients (what could not be captured). Pure: bytes in, bytes out.

use crate::entry::{Facts, Problem};
use crate::id::{ChunkId, PackId, RepositoryId, Sequence, SourceName};
use crate::repo::codec::{decode, pack_document, unpack_document};
use crate::repo::epoch::{Checked, Epoch, document_aad};
use crate::repo::error::{RepoError, Result};
use crate::repo::keys::{Secret32, WriterKeys, verify};
use crate::repo::pack::encode;
use crate::repo::root::FORMAT;
use crate::repo::seal::{decapsulate, encapsulate, info, open_document, seal_document};

/// Followed by the format, two bytes, big-endian.
const MAGIC: &[u8; 6] = b"LBSNAP";
const SIGNATURE: &str = "lifeboat.dev 2026 manifest";
const MAX_DOCUMENT: usize = 64 << 20;

/// The object of a snapshot's manifest.
pub(crate) fn object(source: &SourceName, sequence: Sequence) -> String {
    format!("{}{}", prefix(source), sequence.object_name())
}

pub(crate) fn prefix(source: &SourceName) -> String {
    format!("{source}/snapshots/")
}

/// Whether a snapshot may be restored from without a second thought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, minicbor::Encode, minicbor::Decode, serde::Serialize)]
#[cbor(index_only)]
#[serde(rename_all = "lowercase")]
pub enum State {
    #[n(0)]
    Good,
    /// Some entries could not be captured, or changed while they were read; `show` names them.
    #[n(1)]
    Incomplete,
    /// It looks empty, younger or foreign. Never `latest`.
    #[n(2)]
    Quarantined,
}

/// A pack that a snapshot needs.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct PackRef {
    #[n(0)]
    pub pack: PackId,
    /// Bytes of the whole object.
    #[n(1)]
    pub size: u64,
    #[n(2)]
    pub tail_len: u32,
    /// BLAKE3 of the tail, first 128 bits.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub tail_digest: [u8; 16],
    /// Plaintext bytes that this snapshot uses.
    #[n(4)]
    pub live: u64,
    /// Plaintext bytes that the pack holds.
    #[n(5)]
    pub raw: u64,
    /// Days since the Unix epoch until which the pack's lock was last extended.
    #[n(6)]
    pub lock_day: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Header {
    #[n(0)]
    pub format: u16,
    #[n(1)]
    pub repository: RepositoryId,
    #[n(2)]
    pub source: String,
    #[n(3)]
    pub epoch: u32,
    #[n(4)]
    pub sequence: Sequence,
    /// The snapshot this one builds on: its number and the BLAKE3 of its object.
    #[n(5)]
    pub parent: Option<Parent>,
    /// The writer's clock at commit, Unix milliseconds.
    #[n(6)]
    pub time_ms: i64,
    #[n(7)]
    pub state: State,
    /// Oldest first: a page is in the last pack that has it (`docs/format.md`, "Pages").
    #[n(8)]
    pub packs: Vec<PackRef>,
    /// Days since the Unix epoch until which the locks of the root's and the source's key objects were last extended.
    #[n(9)]
    pub keys_lock_day: Option<u32>,
}

/// What every format's headers have, so that any reader can tell whether it counts.
#[derive(minicbor::Decode)]
#[cbor(map)]
struct Claim {
    #[n(1)]
    repository: RepositoryId,
    #[n(2)]
    source: String,
    #[n(3)]
    epoch: u32,
    #[n(4)]
    sequence: Sequence,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Parent {
    #[n(0)]
    pub sequence: Sequence,
    #[cbor(n(1), with = "minicbor::bytes")]
    pub digest: [u8; 32],
}

/// A chunk's place: index into the header's packs, ordinal in the pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct Ref {
    #[n(0)]
    pub pack: u32,
    #[n(1)]
    pub ordinal: u32,
}

/// A stretch of the entry list.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct SegmentRef {
    /// Keyed hash of the first entry's path.
    #[n(0)]
    pub first: u64,
    /// Keyed hash over entries and hints: equal segments are written once.
    #[n(1)]
    pub id: ChunkId,
    #[n(2)]
    pub entries: Ref,
    #[n(3)]
    pub hints: Ref,
}

/// What the writer may know of a past snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Catalogue {
    /// Kind of the source ("etcd", "files", …).
    #[n(0)]
    pub kind: String,
    #[n(1)]
    pub started_ms: i64,
    /// The moment the data represents, Unix milliseconds.
    #[n(2)]
    pub recovery_point_ms: i64,
    #[n(3)]
    pub facts: Facts,
    #[n(4)]
    pub entries: u64,
    /// Plaintext bytes of all contents.
    #[n(5)]
    pub bytes: u64,
    /// Plaintext bytes that this snapshot added.
    #[n(6)]
    pub new_bytes: u64,
    /// Bytes that this snapshot added to the store, manifest not counted.
    #[n(7)]
    pub stored_bytes: u64,
    /// 0: `segments` lists the entry segments themselves. Other depths are reserved.
    #[n(8)]
    pub depth: u8,
    #[n(9)]
    pub segments: Vec<SegmentRef>,
    /// Why the snapshot is in quarantine.
    #[n(10)]
    pub reasons: Vec<String>,
    /// Correlates the snapshot with the run's log lines.
    #[n(11)]
    pub run: String,
    /// Which Lifeboat wrote it.
    #[n(12)]
    pub agent: String,
    #[n(13)]
    pub problems: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Private {
    #[n(0)]
    pub problems: Vec<Problem>,
}

/// A manifest whose signature was checked; sealed parts still closed.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub object: String,
    pub header: Header,
    /// BLAKE3 of the whole object.
    pub digest: [u8; 32],
    catalogue: Vec<u8>,
    private: Vec<u8>,
}

fn catalogue_key(keys: &WriterKeys, aad: &[u8]) -> Secret32 {
    keys.sealing_key("lifeboat.dev 2026 catalogue", aad)
}

/// Writes a manifest.
pub(crate) fn write(
    header: &Header,
    catalogue: &Catalogue,
    private: &Private,
    source: &SourceName,
    epoch: &Epoch,
) -> Result<Vec<u8>> {
    let name = object(source, header.sequence);
    let broken = |why: std::io::Error| RepoError::damaged(&name, why);
    let aad = document_aad(header.repository, source, header.sequence);
    let catalogue = pack_document(&encode(catalogue)).map_err(broken)?;
    let keys = epoch.writer_keys()?;
    let catalogue = seal_document(&catalogue_key(keys, &aad), &aad, catalogue);
    let info = info("private", header.repository, source, &header.sequence.0.to_le_bytes());
    let (encapsulation, key) = encapsulate(&epoch.public, &info)
        .ok_or_else(|| RepoError::damaged(&name, "the lineage's public key is not one"))?;
    let private = seal_document(&key, &aad, pack_document(&encode(private)).map_err(broken)?);
    let private = [&encapsulation[..], &private].concat();
    let mut bytes = [&MAGIC[..], &FORMAT.to_be_bytes()].concat();
    for part in [&encode(header), &catalogue, &private] {
        bytes.extend_from_slice(&(part.len() as u32).to_le_bytes());
        bytes.extend_from_slice(part);
    }
    let no_signer = || RepoError::WrongKey { what: "key", object: format!("{name} for signing (the writer key does)") };
    let signature = epoch.signer.as_ref().ok_or_else(no_signer)?.sign(SIGNATURE, &bytes);
    bytes.extend_from_slice(&signature);
    Ok(bytes)
}

/// A manifest taken apart; says nothing yet about who wrote it.
struct Parts<'a> {
    format: u16,
    header: &'a [u8],
    catalogue: &'a [u8],
    private: &'a [u8],
    signed: &'a [u8],
    signature: &'a [u8; 64],
}

impl<'a> Parts<'a> {
    fn of(object: &str, bytes: &'a [u8]) -> Result<Self> {
        let bad = |reason: &str| RepoError::damaged(object, reason);
        let (signed, signature) = bytes.split_last_chunk::<64>().ok_or_else(|| bad("it is too short"))?;
        let rest = signed.strip_prefix(MAGIC).ok_or_else(|| bad("it does not begin as a manifest does"))?;
        let (format, mut rest) = rest.split_first_chunk::<2>().ok_or_else(|| bad("it is cut off"))?;
        let format = u16::from_be_bytes(*format);
        let mut part = || {
            let (length, after) = rest.split_first_chunk::<4>()?;
            let (part, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            rest = after;
            Some(part)
        };
        let header = part().ok_or_else(|| bad("it is cut off"))?;
        if format != FORMAT {
            // Only the header stands where it stands in every format.
            return Ok(Self { format, header, catalogue: &[], private: &[], signed, signature });
        }
        let (catalogue, private) = part().zip(part()).ok_or_else(|| bad("it is cut off"))?;
        if !rest.is_empty() {
            return Err(bad("it is longer than it says"));
        }
        Ok(Self { format, header, catalogue, private, signed, signature })
    }
}

impl Parts<'_> {
    fn claim(&self, object: &str) -> Result<Claim> {
        minicbor::decode(self.header).map_err(|why| RepoError::damaged(object, why))
    }
}

impl Manifest {
    /// Reads a manifest without asking who wrote it.
    pub(crate) fn unsigned(object: &str, bytes: &[u8]) -> Result<Self> {
        let parts = Parts::of(object, bytes)?;
        let header: Header = decode(parts.header).map_err(|why| RepoError::damaged(object, why))?;
        if parts.format != FORMAT || header.format != FORMAT {
            return Err(RepoError::damaged(object, format!("there is no format {}", parts.format)));
        }
        let (catalogue, private) = (parts.catalogue.to_vec(), parts.private.to_vec());
        Ok(Self { object: object.into(), header, digest: *blake3::hash(bytes).as_bytes(), catalogue, private })
    }

    /// The epoch that a manifest of any format claims to be signed under.
    ///
    /// # Errors
    /// `Damaged`.
    pub fn claimed_epoch(object: &str, bytes: &[u8]) -> Result<u32> {
        Ok(Parts::of(object, bytes)?.claim(object)?.epoch)
    }

    /// Reads a manifest that must be snapshot `sequence` of `source`, signed under `epoch`.
    ///
    /// # Errors
    /// `Damaged`, `Foreign`, `NewerFormat`.
    pub(crate) fn parse(
        bytes: &[u8],
        repository: RepositoryId,
        source: &SourceName,
        sequence: Sequence,
        epoch: &Checked,
    ) -> Result<Self> {
        let object = object(source, sequence);
        let parts = Parts::of(&object, bytes)?;
        let foreign = |reason: &str| RepoError::Foreign { object: object.clone(), reason: reason.into() };
        if !verify(&epoch.verifying_key, SIGNATURE, parts.signed, parts.signature) {
            return Err(foreign("its signature is not of the source's writer (altered, or written by someone else)"));
        }
        let claim = parts.claim(&object)?;
        if claim.repository != repository || claim.source != source.as_str() || claim.sequence != sequence {
            return Err(foreign("it is a snapshot of another repository, source or number"));
        }
        if claim.epoch != epoch.number || sequence < epoch.from {
            return Err(foreign("it is older than the key that signed it"));
        }
        if epoch.retired_at.is_some_and(|last| sequence > last) {
            return Err(foreign("it was signed after its writer key was rotated away"));
        }
        // Only now: a version that somebody without a writer key can put there must not hide what is older.
        if parts.format > FORMAT {
            return Err(RepoError::NewerFormat { object, found: parts.format, known: FORMAT });
        }
        Self::unsigned(&object, bytes)
    }

    /// Opens the catalogue, which is not kept sealed as well.
    ///
    /// # Errors
    /// `WrongKey`, `Damaged`.
    pub fn take_catalogue(&mut self, source: &SourceName, keys: &WriterKeys) -> Result<Catalogue> {
        let aad = document_aad(self.header.repository, source, self.header.sequence);
        let plain = open_document(&catalogue_key(keys, &aad), &aad, &std::mem::take(&mut self.catalogue))
            .map_err(|_| RepoError::WrongKey { what: "writer key", object: self.object.clone() })?;
        let plain = unpack_document(&plain, MAX_DOCUMENT).map_err(|why| RepoError::damaged(&self.object, why))?;
        let catalogue: Catalogue = decode(&plain).map_err(|why| RepoError::damaged(&self.object, why))?;
        if catalogue.depth == 0 {
            Ok(catalogue)
        } else {
            Err(RepoError::damaged(&self.object, format!("its entry list has depth {}", catalogue.depth)))
        }
    }

    /// # Errors
    /// `WrongKey`, `Damaged`.
    pub fn private(&self, source: &SourceName, private: &Secret32) -> Result<Private> {
        let wrong = || RepoError::WrongKey { what: "recovery identity", object: self.object.clone() };
        let (encapsulation, sealed) = self.private.split_first_chunk::<32>().ok_or_else(wrong)?;
        let info = info("private", self.header.repository, source, &self.header.sequence.0.to_le_bytes());
        let aad = document_aad(self.header.repository, source, self.header.sequence);
        let key = decapsulate(private, encapsulation, &info).map_err(|_| wrong())?;
        let plain = open_document(&key, &aad, sealed).map_err(|_| wrong())?;
        let plain = unpack_document(&plain, MAX_DOCUMENT).map_err(|why| RepoError::damaged(&self.object, why))?;
        decode(&plain).map_err(|why| RepoError::damaged(&self.object, why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::keys::{Secret32, Signer, WriterKey};
    use crate::repo::seal::generate_pair;

    const ID: RepositoryId = RepositoryId([7; 16]);

    fn epoch(key: &WriterKey, source: &SourceName) -> Epoch {
        let signer: Signer = key.lineage_signer(ID, source, 1);
        Epoch {
            number: 1,
            generation: 1,
            public: generate_pair().1,
            verifying_key: signer.public(),
            writer: Some(WriterKeys::new(key.lineage_secret(ID, source, 1))),
            signer: Some(signer),
            private: None,
        }
    }

    fn header(source: &SourceName) -> Header {
        Header {
            format: FORMAT,
            repository: ID,
            source: source.to_string(),
            epoch: 1,
            sequence: Sequence(1),
            parent: None,
            time_ms: 0,
            state: State::Good,
            packs: Vec::new(),
            keys_lock_day: None,
        }
    }

    /// One that the writer signed says "update"; one that anybody put there says nothing.
    #[test]
    fn a_newer_format_is_believed_only_when_it_is_signed() {
        let source: SourceName = "data".parse().unwrap();
        let epoch = epoch(&WriterKey(Secret32([3; 32])), &source);
        let bytes = write(&header(&source), &Catalogue::default(), &Private::default(), &source, &epoch).unwrap();
        let mut checked = Checked::first(epoch.verifying_key);
        let parse = |bytes: &[u8]| Manifest::parse(bytes, ID, &source, Sequence(1), &checked);
        assert_eq!(parse(&bytes).unwrap().header, header(&source));
        let mut newer = bytes[..bytes.len() - 64].to_vec();
        newer[7] = 2;
        // What follows the header may be anything.
        newer.truncate(12 + u32::from_le_bytes(newer[8..12].try_into().unwrap()) as usize);
        newer.extend_from_slice(b"something new");
        assert_eq!(Manifest::claimed_epoch("m", &[&newer[..], &[0; 64]].concat()).unwrap(), 1);
        let planted = parse(&[&newer[..], &[0; 64]].concat());
        assert!(matches!(planted, Err(RepoError::Foreign { .. })), "{planted:?}");
        let signature = epoch.signer.as_ref().unwrap().sign(SIGNATURE, &newer);
        let signed = parse(&[&newer[..], &signature].concat());
        assert!(matches!(signed, Err(RepoError::NewerFormat { found: 2, .. })), "{signed:?}");
        // Nor does it say "update" in another snapshot's place, or once the key was rotated away.
        let signed = [&newer[..], &signature].concat();
        let elsewhere = Manifest::parse(&signed, ID, &source, Sequence(2), &checked);
        assert!(matches!(elsewhere, Err(RepoError::Foreign { .. })), "{elsewhere:?}");
        newer[7] = 0;
        let signature = epoch.signer.as_ref().unwrap().sign(SIGNATURE, &newer);
        assert!(matches!(parse(&[&newer[..], &signature].concat()), Err(RepoError::Damaged { .. })));
        checked.retired_at = Some(Sequence(0));
        let retired = Manifest::parse(&signed, ID, &source, Sequence(1), &checked);
        assert!(matches!(retired, Err(RepoError::Foreign { .. })), "{retired:?}");
    }

    #[test]
    fn nothing_may_follow_a_record() {
        let bytes = encode(&header(&"data".parse().unwrap()));
        assert!(decode::<Header>(&bytes).is_ok());
        assert!(decode::<Header>(&[&bytes[..], &[0]].concat()).is_err());
        assert!(decode::<Header>(&bytes[..bytes.len() - 1]).is_err());
    }
}
