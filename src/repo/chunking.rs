//! Content-defined chunking: FastCDC 2020 with the lineage's own gear table.

use fastcdc::v2020::{Normalization, cut_gear, select_masks};

/// No content is cut into longer ones.
pub(crate) const MAX_CHUNK: usize = COARSE.maximum;

/// Lengths of chunks, bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grain {
    /// A shorter content is one chunk.
    minimum: usize,
    average: usize,
    maximum: usize,
}

/// For files.
pub(crate) const COARSE: Grain = Grain { minimum: 128 << 10, average: 512 << 10, maximum: 2 << 20 };
/// For sequences of records of which some change, here and there.
pub(crate) const FINE: Grain = Grain { minimum: 4 << 10, average: 16 << 10, maximum: 128 << 10 };

/// Finds where chunks end.
#[derive(Debug)]
pub(crate) struct Cutter {
    grain: Grain,
    gear: Vec<u64>,
    gear_shifted: Vec<u64>,
    strict: u64,
    relaxed: u64,
}

impl Cutter {
    /// `gear` has 256 random words.
    pub fn new(gear: Vec<u64>, grain: Grain) -> Self {
        let gear_shifted = gear.iter().map(|word| word << 1).collect();
        let (strict, relaxed) = select_masks(grain.average, Normalization::Level1);
        Self { grain, gear, gear_shifted, strict, relaxed }
    }

    /// Length of the first chunk of `bytes`, which must hold [`MAX_CHUNK`] bytes or all that is left.
    pub fn cut(&self, bytes: &[u8]) -> usize {
        let Grain { minimum, average, maximum } = self.grain;
        if bytes.len() <= minimum {
            return bytes.len();
        }
        let (strict, relaxed) = (self.strict, self.relaxed);
        cut_gear(
            bytes,
            minimum,
            average,
            maximum,
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
        let mut x = 1_u64;
        let noise = std::iter::repeat_with(|| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 56) as u8
        });
        let data: Vec<u8> = noise.take(16 << 20).collect();
        let mut changed = data.clone();
        changed.splice(1000..1000, *b"inserted");
        for (grain, fewest) in [(COARSE, 10), (FINE, 500)] {
            let cutter = Cutter::new(gear(7), grain);
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
            assert!(before.len() > fewest);
            assert!(before.intersection(&after).count() + 3 >= before.len());
            assert!(lengths(&cutter, &data).iter().all(|&l| l <= grain.maximum));
            assert_ne!(lengths(&cutter, &data), lengths(&Cutter::new(gear(8), grain), &data));
        }
    }
}
