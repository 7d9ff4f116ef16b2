//! Compression of frames and documents: zstd, or nothing where that does not pay.

use crate::repo::seal::SealBroken;
use std::cell::RefCell;
use std::io::Read;

/// How a frame's plaintext is stored before sealing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(index_only)]
pub enum Codec {
    #[n(0)]
    Raw,
    #[n(1)]
    Zstd,
}

/// No plaintext of a frame or document is larger; a decoder allocates no more than this on anyone's word.
pub(crate) const MAX_RAW: usize = 16 << 20;

/// A compressor with its working memory.
pub(crate) struct Compressor(zstd::bulk::Compressor<'static>);

/// Room for `raw_len` bytes, compressed or not.
pub(crate) fn room(raw_len: usize) -> usize {
    zstd::zstd_safe::compress_bound(raw_len)
}

impl Compressor {
    /// # Errors
    /// `level` is not one of zstd's.
    pub fn new(level: i32) -> std::io::Result<Self> {
        zstd::bulk::Compressor::new(level).map(Self)
    }

    /// Compresses into `packed`, or leaves the bytes as they are when that saves less than 1/32. The buffer that is free
    /// then comes back as the last.
    pub fn compress(&mut self, raw: Vec<u8>, mut packed: Vec<u8>) -> std::io::Result<(Codec, Vec<u8>, Vec<u8>)> {
        packed.clear();
        packed.reserve(room(raw.len()));
        self.0.compress_to_buffer(&raw, &mut packed)?;
        Ok(if packed.len() < raw.len() - raw.len() / 32 {
            (Codec::Zstd, packed, raw)
        } else {
            (Codec::Raw, raw, packed)
        })
    }
}

/// No document needs a larger window to be unpacked, 2^n bytes.
const MAX_WINDOW_LOG: u32 = 24;

/// Restores `raw_len` bytes into `raw`. `unsealed` puts what is stored in the buffer that it is given.
///
/// # Errors
/// `unsealed`'s own; the stored bytes do not hold exactly that many.
pub(crate) fn decompress(
    codec: Codec,
    raw_len: usize,
    raw: &mut Vec<u8>,
    unsealed: impl FnOnce(&mut Vec<u8>) -> Result<(), SealBroken>,
) -> Result<(), SealBroken> {
    thread_local! {
        static TOOLS: RefCell<(Vec<u8>, zstd::bulk::Decompressor<'static>)> = RefCell::default();
    }
    if raw_len > MAX_RAW {
        return Err(SealBroken);
    }
    match codec {
        Codec::Raw => unsealed(raw)?,
        Codec::Zstd => TOOLS.with_borrow_mut(|(stored, decompressor)| {
            unsealed(stored)?;
            raw.clear();
            raw.reserve(raw_len);
            decompressor.decompress_to_buffer(stored, raw).map(drop).map_err(|_| SealBroken)
        })?,
    }
    if raw.len() == raw_len { Ok(()) } else { Err(SealBroken) }
}

/// Reads a record: one CBOR item and nothing after it.
pub(crate) fn decode<'a, T: minicbor::Decode<'a, ()>>(bytes: &'a [u8]) -> Result<T, minicbor::decode::Error> {
    let mut decoder = minicbor::Decoder::new(bytes);
    let value = decoder.decode()?;
    if decoder.position() == bytes.len() {
        Ok(value)
    } else {
        Err(minicbor::decode::Error::message("something follows the record").at(decoder.position()))
    }
}

/// A document: zstd as one stream, its length not known to the reader.
pub(crate) fn pack_document(raw: &[u8]) -> std::io::Result<Vec<u8>> {
    zstd::stream::encode_all(raw, 3)
}

/// The inverse of [`pack_document`]; refuses more than `limit` bytes.
pub(crate) fn unpack_document(stored: &[u8], limit: usize) -> std::io::Result<Vec<u8>> {
    let mut raw = Vec::new();
    let mut decoder = zstd::stream::Decoder::new(stored)?;
    decoder.window_log_max(MAX_WINDOW_LOG)?;
    decoder.take(limit as u64 + 1).read_to_end(&mut raw)?;
    if raw.len() > limit {
        return Err(std::io::Error::other(format!("it unpacks to more than {limit} bytes")));
    }
    Ok(raw)
}
