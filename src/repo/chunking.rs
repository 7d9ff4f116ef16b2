//! Content-defined chunking: FastCDC 2020 with the lineage's own gear table.

use fastcdc::v2020::{Normalization, cut_gear, select_masks};

/// A shorter content is one chunk.
pub(crate) const MIN_CHUNK: usize = 128 << 10;
const AVERAGE_CHUNK: usize = 512 << 10;
pub(crate) const MAX_CHUNK: usize = 2 << 20;

/// Finds where chunks end.
#[derive(Debug)]
pub(crate) struct Cutter {
    gear: Vec<u64>,
    gear_shifted: Vec<u64>,
    strict: u64,
    relaxed: u64,
}

impl Cutter {
    /// `gear` has 256 random words.
    pub fn new(gear: Vec<u64>) -> Self {
        let gear_shifted = gear.iter().map(|word| word << 1).collect();
        let (strict, relaxed) = select_masks(AVERAGE_CHUNK, Normalization::Level1);
        Self { gear, gear_shifted, strict, relaxed }
    }

    /// Length of the first chunk of `bytes`, which must hold [`MAX_CHUNK`] bytes or all that is left.
    pub fn cut(&self, bytes: &[u8]) -> usize {
        if bytes.len() <= MIN_CHUNK {
            return bytes.len();
        }
        let (strict, relaxed) = (self.strict, self.relaxed);
        cut_gear(
            bytes,
            MIN_CHUNK,
            AVERAGE_CHUNK,
            MAX_CHUNK,
            strict,
            relaxed,
            strict << 1,
            relaxed << 1,
            &self.gear,
            &self.gear_shifted,
        )
        .1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gear(seed: u64) -> Vec<u64> {
        let hash = blake3::hash(&seed.to_le_bytes());
        (0..256u64)
            .map(|i| {
                u64::from_le_bytes(
                    *blake3::keyed_hash(hash.as_bytes(), &i.to_le_bytes()).as_bytes().first_chunk().unwrap(),
                )
            })
            .collect()
    }

    fn lengths(cutter: &Cutter, mut bytes: &[u8]) -> Vec<usize> {
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let length = cutter.cut(bytes);
            out.push(length);
            bytes = &bytes[length..];
        }
        out
    }

    #[test]
    fn an_insertion_moves_few_cuts() {
        let noise = |seed: u64| {
            let mut x = seed;
            move || {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (x >> 56) as u8
            }
        };
        let data: Vec<u8> = std::iter::repeat_with(noise(1)).take(16 << 20).collect();
        let mut changed = data.clone();
        changed.splice(1000..1000, *b"inserted");
        let cutter = Cutter::new(gear(7));
        let ends = |d: &[u8]| {
            let mut left = d.len();
            let cut = lengths(&cutter, d);
            cut.into_iter()
                .map(|l| {
                    left -= l;
                    left
                })
                .collect::<std::collections::HashSet<_>>()
        };
        let (before, after) = (ends(&data), ends(&changed));
        assert!(before.len() > 10);
        assert!(before.intersection(&after).count() + 3 >= before.len());
        assert!(lengths(&cutter, &data).iter().all(|&l| l <= MAX_CHUNK));
        assert_ne!(lengths(&cutter, &data), lengths(&Cutter::new(gear(8)), &data));
    }
}
