//! Which packs the next snapshot must stop using, because too little of them is live or because they are many and small.
//! The writer has the plaintext in hand and stores what they hold afresh; there is no repacking.
//!
//! This bounds how many packs a snapshot names, and with them a backup's start, a restore's reads and what a lock must
//! extend. Pure.

use crate::repo::manifest::PackRef;

/// A pack with less than 1/4 of its bytes live is to go.
const LIVE_SHARE: u64 = 4;
/// So many packs of one size class, below [`SMALL`], are stored afresh as one.
const CROWD: usize = 8;
const SMALL: u64 = 4 << 20;
const MAX_GATHERED: u64 = 16 << 20;
/// At least so many bytes may be stored afresh by one snapshot.
const MIN_BUDGET: u64 = 4 << 20;

/// Says of each of `packs` whether to stop using it. `new_bytes` is what the previous snapshot added: packs age together,
/// so the work is spread over snapshots in proportion to it.
pub(crate) fn to_refresh(packs: &[PackRef], new_bytes: u64) -> Vec<bool> {
    let total = sum(packs.iter().map(|p| p.live));
    let budget = MIN_BUDGET.max(total / 64).max(new_bytes / 2);
    let mut chosen = vec![false; packs.len()];
    let mut spent = 0;

    let mut sparse: Vec<usize> =
        (0..packs.len()).filter(|&i| packs[i].live.saturating_mul(LIVE_SHARE) < packs[i].raw).collect();
    sparse.sort_by_key(|&i| (u128::from(packs[i].live) * 1_000_000) / u128::from(packs[i].raw.max(1)));
    for i in sparse {
        // The first always fits, so that no pack stays for being large.
        if spent > 0 && packs[i].live.saturating_add(spent) > budget {
            break;
        }
        chosen[i] = true;
        spent = packs[i].live.saturating_add(spent);
    }

    // One class at a time, and all of it: what is gathered must come out as a pack of a higher class.
    let class = |p: &PackRef| p.raw.max(1).ilog2() / 2;
    for wanted in 0..SMALL.ilog2() / 2 {
        let members: Vec<usize> = (0..packs.len()).filter(|&i| !chosen[i] && class(&packs[i]) == wanted).collect();
        let bytes = sum(members.iter().map(|&i| packs[i].live));
        if members.len() >= CROWD && bytes <= MAX_GATHERED {
            for i in members {
                chosen[i] = true;
            }
            break;
        }
    }
    chosen
}

/// The numbers are another's: their sum may be out of range.
fn sum(bytes: impl Iterator<Item = u64>) -> u64 {
    bytes.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::PackId;

    fn pack(live: u64, raw: u64) -> PackRef {
        PackRef { pack: PackId([0; 16]), size: raw, tail_len: 0, tail_digest: [0; 16], live, raw, lock_day: None }
    }

    #[test]
    fn sparse_packs_go_sparsest_first_within_the_budget() {
        const M: u64 = 1 << 20;
        let packs = [pack(100 * M, 128 * M), pack(20 * M, 128 * M), pack(2 * M, 128 * M), pack(2 * M, 100 * M)];
        assert_eq!(to_refresh(&packs, 0), [false, false, true, true]);
        assert_eq!(to_refresh(&packs, 100 * M), [false, true, true, true]);
        assert_eq!(to_refresh(&packs[1..2], 0), [true], "a large one is not kept for ever");
    }

    #[test]
    fn small_packs_are_gathered() {
        let few = vec![pack(5000, 5000); 7];
        assert!(to_refresh(&few, 0).iter().all(|c| !c));
        let many = vec![pack(5000, 5000); 8];
        assert!(to_refresh(&many, 0).iter().all(|c| *c));
    }

    /// Appending a little for ever: the number of packs stays small.
    #[test]
    fn a_trickle_keeps_few_packs() {
        let mut packs: Vec<PackRef> = Vec::new();
        let (mut most, mut written) = (0, 0);
        for _ in 0..5_000 {
            let gone = to_refresh(&packs, 10_000);
            let mut fresh = 10_000;
            let mut index = 0;
            packs.retain(|p| {
                index += 1;
                if gone[index - 1] {
                    fresh += p.live;
                }
                !gone[index - 1]
            });
            written += fresh;
            packs.push(pack(fresh, fresh));
            most = most.max(packs.len());
        }
        assert!(most <= 90, "{most} packs");
        assert!(written <= 5_000 * 10_000 * 10, "{written} bytes written");
    }
}
