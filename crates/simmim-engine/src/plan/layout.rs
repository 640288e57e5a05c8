//! Offsets in bytes for buffers with lifetimes: largest first, each at the lowest offset that is free for its whole lifetime
//! (Pisarchyk and Lee, arXiv 2001.03288, "greedy by size").

use super::ALIGNMENT;
use crate::graph::ValueId;

/// A buffer that lives from instruction `first` to instruction `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Interval {
    pub(super) root: ValueId,
    pub(super) bytes: usize,
    pub(super) first: usize,
    pub(super) last: usize,
}

/// Offsets in the order of `intervals`, and the bytes of the arena; `usize::MAX` where no memory holds it.
pub(super) fn place(intervals: &[Interval]) -> (Vec<usize>, usize) {
    let padded = |i: usize| intervals[i].bytes.div_ceil(ALIGNMENT).saturating_mul(ALIGNMENT);
    let mut order: Vec<usize> = (0..intervals.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(padded(i)), intervals[i].first, intervals[i].root));
    let mut offsets = vec![0usize; intervals.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut end = 0;
    for i in order {
        let mut taken: Vec<(usize, usize)> = placed
            .iter()
            .filter(|&&p| intervals[p].first <= intervals[i].last && intervals[i].first <= intervals[p].last)
            .map(|&p| (offsets[p], offsets[p].saturating_add(padded(p))))
            .collect();
        taken.sort_unstable();
        let mut offset = 0usize;
        for (from, to) in taken {
            if padded(i) <= from.saturating_sub(offset) {
                break;
            }
            offset = offset.max(to);
        }
        offsets[i] = offset;
        end = end.max(offset.saturating_add(padded(i)));
        placed.push(i);
    }
    (offsets, end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn buffers_that_live_together_never_overlap(raw in prop::collection::vec((1usize..2000, 0usize..30, 0usize..10), 1..40)) {
            let intervals: Vec<Interval> = raw
                .iter()
                .enumerate()
                .map(|(i, &(bytes, first, life))| Interval { root: ValueId(i as u32), bytes, first, last: first + life })
                .collect();
            let (offsets, end) = place(&intervals);
            for (a, i) in intervals.iter().enumerate() {
                prop_assert!(offsets[a] % ALIGNMENT == 0 && offsets[a] + i.bytes <= end);
                for (b, j) in intervals.iter().enumerate().skip(a + 1) {
                    let together = i.first <= j.last && j.first <= i.last;
                    let apart = offsets[a] + i.bytes <= offsets[b] || offsets[b] + j.bytes <= offsets[a];
                    prop_assert!(!together || apart);
                }
            }
        }
    }
}
