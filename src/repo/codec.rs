//! Compression of frames and documents: zstd, or nothing where that does not pay.

use crate::repo::seal::SealBroken;
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

impl Compressor {
    /// # Errors
    /// `level` is not one of zstd's.
    pub fn new(level: i32) -> std::io::Result<Self> {
        zstd::bulk::Compressor::new(level).map(Self)
    }

    /// Compresses, or leaves the bytes as they are when that saves less than 1/32. Also gives back the buffer of `raw`
    /// when it is free again.
    pub fn compress(&mut self, raw: Vec<u8>) -> std::io::Result<(Codec, Vec<u8>, Option<Vec<u8>>)> {
        let packed = self.0.compress(&raw)?;
        Ok(if packed.len() < raw.len() - raw.len() / 32 {
            (Codec::Zstd, packed, Some(raw))
        } else {
            (Codec::Raw, raw, None)
        })
    }
}

/// No document needs a larger window to be unpacked, 2^n bytes.
const MAX_WINDOW_LOG: u32 = 24;

/// Restores `raw_len` bytes.
///
/// # Errors
/// The stored bytes do not hold exactly that many.
pub(crate) fn decompress(codec: Codec, stored: Vec<u8>, raw_len: usize) -> Result<Vec<u8>, SealBroken> {
    if raw_len > MAX_RAW {
        return Err(SealBroken);
    }
    let raw = match codec {
        Codec::Raw => stored,
        Codec::Zstd => zstd::bulk::decompress(&stored, raw_len).map_err(|_| SealBroken)?,
    };
    if raw.len() == raw_len { Ok(raw) } else { Err(SealBroken) }
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
