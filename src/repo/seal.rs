//! Sealing: AES-256-GCM under keys that are used for one object only, and the HPKE encapsulation that makes a pack's
//! data key readable to the recipients alone (RFC 9180, base mode, export only).

use crate::id::{PackId, RepositoryId, SourceName};
use crate::repo::keys::{Secret32, random};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use hpke::aead::ExportOnlyAead;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};

/// Bytes that sealing adds.
pub(crate) const OVERHEAD: usize = 16;
/// DHKEM(X25519, HKDF-SHA256), by its IANA number. 0x647a (X-Wing) is reserved for a later format.
pub(crate) const KEM_ID: u16 = 0x0020;

/// The two kinds of frames, by who can open them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, minicbor::Encode, minicbor::Decode)]
#[cbor(index_only)]
pub enum Class {
    /// Names and contents: recipients only.
    #[n(0)]
    Data,
    /// Page maps and hints: the writer too.
    #[n(1)]
    Writer,
}

/// What was opened is not what was sealed under this key, number and place.
#[derive(Debug, thiserror::Error)]
#[error("its seal does not open (altered, moved, or another key)")]
pub struct SealBroken;

/// An AEAD key of one object.
pub(crate) struct SealKey(LessSafeKey);

impl SealKey {
    pub fn new(secret: &Secret32) -> Self {
        Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &secret.0).expect("32 bytes are an AES-256 key")))
    }

    fn nonce(number: u32) -> Nonce {
        let mut nonce = [0; 12];
        nonce[8..].copy_from_slice(&number.to_be_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    /// Seals in place; the tag is appended. A number must be used once per key.
    pub fn seal(&self, number: u32, aad: &[u8], bytes: &mut Vec<u8>) {
        self.0.seal_in_place_append_tag(Self::nonce(number), Aad::from(aad), bytes).expect("frames are below 64 GiB");
    }

    /// Opens `sealed` into `plain`, in place of what that held.
    pub fn open(&self, number: u32, aad: &[u8], sealed: &[u8], plain: &mut Vec<u8>) -> Result<(), SealBroken> {
        let (body, tag) = sealed.split_last_chunk::<OVERHEAD>().ok_or(SealBroken)?;
        plain.resize(body.len(), 0);
        let opened = self.0.open_separate_gather(Self::nonce(number), Aad::from(aad), body, tag, plain);
        opened.map_err(|_| SealBroken)
    }
}

/// Additional data of a frame: where it belongs.
pub(crate) fn frame_aad(pack: PackId, number: u32, class: Class) -> [u8; 21] {
    let mut aad = [0; 21];
    aad[..16].copy_from_slice(&pack.0);
    aad[16..20].copy_from_slice(&number.to_le_bytes());
    aad[20] = class as u8;
    aad
}

/// Seals a small document under a key used for nothing else: 12 random nonce bytes, then the sealed bytes.
pub(crate) fn seal_document(key: &Secret32, aad: &[u8], mut plain: Vec<u8>) -> Vec<u8> {
    let nonce: [u8; 12] = random();
    let key = SealKey::new(key);
    key.0
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut plain)
        .expect("documents are below 64 GiB");
    [&nonce[..], &plain].concat()
}

pub(crate) fn open_document(key: &Secret32, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealBroken> {
    let (nonce, body) = sealed.split_first_chunk::<12>().ok_or(SealBroken)?;
    let mut body = body.to_vec();
    let key = SealKey::new(key);
    let opened = key.0.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(aad), &mut body);
    let plain = opened.map_err(|_| SealBroken)?.len();
    body.truncate(plain);
    Ok(body)
}

/// A lineage's key pair for one epoch. The private half never leaves the process that made it, except wrapped.
pub(crate) fn generate_pair() -> (Secret32, [u8; 32]) {
    let (private, public) = X25519HkdfSha256::gen_keypair();
    (Secret32(private.to_bytes().into()), public.to_bytes().into())
}

/// The public half of a private key; `None` if it is not a key.
pub(crate) fn public_half(private: &Secret32) -> Option<[u8; 32]> {
    let private = <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(&private.0).ok()?;
    Some(X25519HkdfSha256::sk_to_pk(&private).to_bytes().into())
}

/// Binds an encapsulation to its use ("pack", "private") and the object it is for.
pub(crate) fn info(use_: &str, repository: RepositoryId, source: &SourceName, object: &[u8]) -> Vec<u8> {
    let mut info = format!("lifeboat.dev 2026 {use_}\0").into_bytes();
    info.extend_from_slice(&repository.0);
    info.push(source.as_str().len() as u8);
    info.extend_from_slice(source.as_str().as_bytes());
    info.extend_from_slice(object);
    info
}

/// Encapsulates a fresh key to `public`: (encapsulation, key). `None` if `public` is not a key.
pub(crate) fn encapsulate(public: &[u8; 32], info: &[u8]) -> Option<([u8; 32], Secret32)> {
    let public = <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(public).ok()?;
    let (enc, context) =
        hpke::setup_sender::<ExportOnlyAead, HkdfSha256, X25519HkdfSha256>(&OpModeS::Base, &public, info).ok()?;
    let mut key = [0; 32];
    context.export(b"data key", &mut key).ok()?;
    Some((enc.to_bytes().into(), Secret32(key)))
}

/// The inverse of [`encapsulate`] for the holder of the private half.
pub(crate) fn decapsulate(private: &Secret32, enc: &[u8; 32], info: &[u8]) -> Result<Secret32, SealBroken> {
    let private = <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(&private.0).map_err(|_| SealBroken)?;
    let enc = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(enc).map_err(|_| SealBroken)?;
    let context =
        hpke::setup_receiver::<ExportOnlyAead, HkdfSha256, X25519HkdfSha256>(&OpModeR::Base, &private, &enc, info)
            .map_err(|_| SealBroken)?;
    let mut key = [0; 32];
    context.export(b"data key", &mut key).map_err(|_| SealBroken)?;
    Ok(Secret32(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_open_only_in_their_place() {
        let key = SealKey::new(&Secret32([3; 32]));
        let aad = frame_aad(PackId([1; 16]), 7, Class::Data);
        let mut sealed = b"hello".to_vec();
        key.seal(7, &aad, &mut sealed);
        assert_eq!(sealed.len(), 5 + OVERHEAD);
        for wrong in [(8, aad), (7, frame_aad(PackId([1; 16]), 7, Class::Writer))] {
            assert!(key.open(wrong.0, &wrong.1, &sealed, &mut Vec::new()).is_err());
        }
        let mut plain = b"something longer".to_vec();
        key.open(7, &aad, &sealed, &mut plain).unwrap();
        assert_eq!(plain, b"hello");
    }

    #[test]
    fn only_the_private_half_opens_a_capsule() {
        let (private, public) = generate_pair();
        let (enc, key) = encapsulate(&public, b"info").unwrap();
        assert_eq!(decapsulate(&private, &enc, b"info").unwrap().0, key.0);
        assert_ne!(decapsulate(&private, &enc, b"other").unwrap().0, key.0);
        assert_ne!(decapsulate(&generate_pair().0, &enc, b"info").unwrap().0, key.0);
    }

    #[test]
    fn documents_are_bound_to_their_aad() {
        let key = Secret32([9; 32]);
        let sealed = seal_document(&key, b"here", b"text".to_vec());
        assert_eq!(open_document(&key, b"here", &sealed).unwrap(), b"text");
        assert!(open_document(&key, b"there", &sealed).is_err());
        assert!(open_document(&key, b"here", &sealed[..8]).is_err());
    }
}
