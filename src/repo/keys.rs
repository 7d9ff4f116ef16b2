//! The keys of a repository and what is derived from them (`docs/format.md`, "Keys").
//!
//! - The **recovery identity** is an age identity that only people hold; it opens everything.
//! - The **writer key** is a 32-byte root that agents hold. A lineage's [`WriterKeys`] are derived from it, so that a
//!   key of one lineage says nothing about another.
//! - The **keeper key** signs prune records. Whoever prunes holds it.
//! - The **root key** signs the states of the root: who may read and write. It exists only wrapped to recovery recipients,
//!   and the repository's id is its hash, so that nobody can put another root in its place.

use crate::id::{ChunkId, RepositoryId, SourceName};
use crate::repo::error::{RepoError, Result};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use rustix::rand::GetRandomFlags;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Fills `N` bytes from the operating system's generator.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // The kernel's own: a generator in the process first gathers entropy for tens of milliseconds. A machine that cannot
    // give random numbers must not make keys.
    let filled = rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty());
    assert_eq!(filled, Ok(N), "the operating system's random numbers");
    bytes
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}

/// Lower-case digits only: a value has one form.
pub(crate) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let digit = |ascii: u8| match ascii {
        b'0'..=b'9' => Some(ascii - b'0'),
        b'a'..=b'f' => Some(ascii - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(pairs) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

/// A 32-byte secret, wiped when dropped, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret32(pub(crate) [u8; 32]);

impl std::fmt::Debug for Secret32 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Secret32 {
    pub(crate) fn random() -> Self {
        Self(random())
    }

    /// BLAKE3 in key-derivation mode: `context` names the use, `parts` are length-prefixed.
    pub(crate) fn derive(&self, context: &str, parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(&self.0);
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// The text form: `<prefix>` + 64 hexadecimal digits + 8 of a checksum, so that a typing error is found at once.
    #[must_use]
    pub fn to_text(&self, prefix: &str) -> String {
        let sum = blake3::hash(&self.0);
        format!("{prefix}{}{}", hex(&self.0), hex(&sum.as_bytes()[..4]))
    }

    /// The inverse of [`Secret32::to_text`].
    ///
    /// # Errors
    /// `WrongKey` that names `what` when the text has another form or a wrong checksum.
    pub fn from_text(text: &str, prefix: &str, what: &'static str) -> Result<Self> {
        let bad = |reason: &str| RepoError::Refused(format!("the {what} cannot be read: {reason}"));
        let body = text.trim().strip_prefix(prefix).ok_or_else(|| bad(&format!("it must begin with {prefix}")))?;
        let body = zeroize::Zeroizing::new(body.to_ascii_lowercase());
        let mut all: [u8; 36] = unhex(&body).ok_or_else(|| bad("it must have 72 hexadecimal digits"))?;
        let mut key = [0; 32];
        key.copy_from_slice(&all[..32]);
        let sum_fits = blake3::hash(&key).as_bytes()[..4] == all[32..];
        all.zeroize();
        if sum_fits { Ok(Self(key)) } else { Err(bad("its checksum is wrong (a typing error?)")) }
    }
}

/// Ed25519 (RFC 8032), from a 32-byte seed.
pub struct Signer(Ed25519KeyPair);

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", hex(&self.public()))
    }
}

impl Signer {
    fn new(seed: &Secret32) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(&seed.0).expect("every 32 bytes are an Ed25519 seed"))
    }

    pub(crate) fn public(&self) -> [u8; 32] {
        let mut out = [0; 32];
        out.copy_from_slice(self.0.public_key().as_ref());
        out
    }

    /// Signs `context` (length-prefixed) followed by `message`.
    pub(crate) fn sign(&self, context: &str, message: &[u8]) -> [u8; 64] {
        let mut out = [0; 64];
        out.copy_from_slice(self.0.sign(&signed_bytes(context, message)).as_ref());
        out
    }
}

fn signed_bytes(context: &str, message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![context.len() as u8];
    bytes.extend_from_slice(context.as_bytes());
    bytes.extend_from_slice(blake3::hash(message).as_bytes());
    bytes
}

pub(crate) fn verify(public: &[u8; 32], context: &str, message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public).verify(&signed_bytes(context, message), signature).is_ok()
}

/// The key that agents hold.
#[derive(Clone, Debug)]
pub struct WriterKey(pub(crate) Secret32);

impl WriterKey {
    pub const PREFIX: &str = "lifeboat-writer-";

    pub(crate) fn random() -> Self {
        Self(Secret32::random())
    }

    /// # Errors
    /// The text is not a writer key.
    pub fn from_text(text: &str) -> Result<Self> {
        Secret32::from_text(text, Self::PREFIX, "writer key").map(Self)
    }

    #[must_use]
    pub fn to_text(&self) -> String {
        self.0.to_text(Self::PREFIX)
    }

    /// Signs the epochs that this writer key begins.
    pub(crate) fn signer(&self, repository: RepositoryId) -> Signer {
        Signer::new(&self.0.derive("lifeboat.dev 2026 writer root signature", &[&repository.0]))
    }

    /// Signs the snapshots of one source. Not derived from the lineage's secret: readers have that one, and must not sign.
    pub(crate) fn lineage_signer(&self, repository: RepositoryId, source: &SourceName, epoch: u32) -> Signer {
        let parts: [&[u8]; 3] = [&repository.0, source.as_str().as_bytes(), &epoch.to_le_bytes()];
        Signer::new(&self.0.derive("lifeboat.dev 2026 lineage signature", &parts))
    }

    pub(crate) fn lineage_secret(&self, repository: RepositoryId, source: &SourceName, epoch: u32) -> Secret32 {
        let parts: [&[u8]; 3] = [&repository.0, source.as_str().as_bytes(), &epoch.to_le_bytes()];
        self.0.derive("lifeboat.dev 2026 lineage writer secret", &parts)
    }
}

/// The key that says who may read and write.
#[derive(Clone, Debug)]
pub struct RootKey(pub(crate) Secret32);

impl RootKey {
    pub(crate) fn random() -> Self {
        Self(Secret32::random())
    }

    pub(crate) fn signer(&self) -> Signer {
        Signer::new(&self.0.derive("lifeboat.dev 2026 root signature", &[]))
    }

    /// A secret for one use, named by `context`.
    pub(crate) fn derive(&self, context: &str) -> Secret32 {
        self.0.derive(context, &[])
    }
}

/// The id of the repository whose root key has this public half.
pub(crate) fn repository_id(root_public: &[u8; 32]) -> RepositoryId {
    let hash = blake3::Hasher::new_derive_key("lifeboat.dev 2026 repository id").update(root_public).finalize();
    let mut id = [0; 16];
    id.copy_from_slice(&hash.as_bytes()[..16]);
    RepositoryId(id)
}

/// The key of whoever prunes.
#[derive(Clone, Debug)]
pub struct KeeperKey(pub(crate) Secret32);

impl KeeperKey {
    pub const PREFIX: &str = "lifeboat-keeper-";

    pub(crate) fn random() -> Self {
        Self(Secret32::random())
    }

    /// # Errors
    /// The text is not a keeper key.
    pub fn from_text(text: &str) -> Result<Self> {
        Secret32::from_text(text, Self::PREFIX, "keeper key").map(Self)
    }

    #[must_use]
    pub fn to_text(&self) -> String {
        self.0.to_text(Self::PREFIX)
    }

    pub(crate) fn signer(&self, repository: RepositoryId) -> Signer {
        Signer::new(&self.0.derive("lifeboat.dev 2026 keeper signature", &[&repository.0]))
    }
}

fn first_u64(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

/// Everything that is derived from one lineage's writer secret in one epoch.
#[derive(Debug)]
pub struct WriterKeys {
    secret: Secret32,
    chunk_id: Secret32,
    path_hash: Secret32,
    space: Secret32,
    page_mark: Secret32,
    gear: Secret32,
}

impl WriterKeys {
    pub(crate) fn new(secret: Secret32) -> Self {
        let chunk_id = secret.derive("lifeboat.dev 2026 chunk id", &[]);
        let path_hash = secret.derive("lifeboat.dev 2026 path hash", &[]);
        let space = secret.derive("lifeboat.dev 2026 page space", &[]);
        let page_mark = secret.derive("lifeboat.dev 2026 page mark", &[]);
        let gear = secret.derive("lifeboat.dev 2026 gear table", &[]);
        Self { secret, chunk_id, path_hash, space, page_mark, gear }
    }

    pub(crate) fn secret(&self) -> &Secret32 {
        &self.secret
    }

    pub(crate) fn chunk_id(&self, plaintext: &[u8]) -> ChunkId {
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::keyed_hash(&self.chunk_id.0, plaintext).as_bytes()[..16]);
        ChunkId(id)
    }

    /// FastCDC's gear table, so that chunk sizes do not identify known files.
    pub(crate) fn gear_table(&self) -> Vec<u64> {
        let mut bytes = [0; 2048];
        blake3::Hasher::new_keyed(&self.gear.0).finalize_xof().fill(&mut bytes);
        bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect()
    }

    /// Keyed hash of a path, first 128 bits.
    pub(crate) fn path_hash(&self, path: &[u8]) -> [u8; 16] {
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::keyed_hash(&self.path_hash.0, path).as_bytes()[..16]);
        id
    }

    /// The 64-bit name of a path, for hints and segment boundaries.
    pub(crate) fn path_name(&self, path: &[u8]) -> u64 {
        first_u64(&self.path_hash(path))
    }

    /// The 64-bit name of a file that is stored by pages of this size.
    pub(crate) fn space(&self, path: &[u8], page_size: u32) -> u64 {
        let named = [&page_size.to_le_bytes()[..], path].concat();
        first_u64(blake3::keyed_hash(&self.space.0, &named).as_bytes())
    }

    /// What a page adds to its file's digest, which is the sum of all pages' marks (modulo 2^128).
    pub(crate) fn page_mark(&self, page: u64, id: ChunkId) -> u128 {
        let mut message = [0; 24];
        message[..8].copy_from_slice(&page.to_le_bytes());
        message[8..].copy_from_slice(&id.0);
        let hash = blake3::keyed_hash(&self.page_mark.0, &message);
        hash.as_bytes().first_chunk().map_or(0, |first| u128::from_le_bytes(*first))
    }

    /// The key for what only the writer (and whoever holds a recovery identity) reads in the object named by `unique`.
    pub(crate) fn sealing_key(&self, context: &str, unique: &[u8]) -> Secret32 {
        self.secret.derive(context, &[unique])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_keys_round_trip_and_find_typing_errors() {
        let key = WriterKey::random();
        let text = key.to_text();
        assert_eq!(WriterKey::from_text(&format!(" {text}\n")).unwrap().0.0, key.0.0);
        let at = WriterKey::PREFIX.len();
        let other = if &text[at..=at] == "0" { "1" } else { "0" };
        let wrong = format!("{}{other}{}", &text[..at], &text[at + 1..]);
        assert!(WriterKey::from_text(&wrong).unwrap_err().to_string().contains("checksum"));
        assert!(KeeperKey::from_text(&text).is_err());
        assert!(!format!("{key:?}").contains(&text[at..at + 8]));
    }

    #[test]
    fn signatures_are_bound_to_their_context() {
        let signer = KeeperKey::random().signer(RepositoryId([1; 16]));
        let signature = signer.sign("a", b"message");
        assert!(verify(&signer.public(), "a", b"message", &signature));
        assert!(!verify(&signer.public(), "b", b"message", &signature));
        assert!(!verify(&signer.public(), "a", b"massage", &signature));
    }

    #[test]
    fn lineages_share_no_keys() {
        let (key, id) = (WriterKey::random(), RepositoryId([7; 16]));
        let a = key.lineage_secret(id, &"a".parse().unwrap(), 1);
        let b = key.lineage_secret(id, &"b".parse().unwrap(), 1);
        let a2 = key.lineage_secret(id, &"a".parse().unwrap(), 2);
        assert!(a.0 != b.0 && a.0 != a2.0);
        assert_ne!(WriterKeys::new(a).chunk_id(b"x"), WriterKeys::new(b).chunk_id(b"x"));
    }
}
