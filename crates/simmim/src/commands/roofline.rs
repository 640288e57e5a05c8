//! `simmim inspect --roofline`: what a step can at best cost on a card.
//!
//! An operation needs at least the time in which the card computes its floating point operations, and at least the time in which
//! its operands pass through memory once (Williams et al., "Roofline", 2009). The larger of both bounds it; the sum over the step
//! bounds the step. Caches, launches and imperfect kernels make it slower.

#![allow(clippy::print_stdout, reason = "results go to standard output")]

use simmim_engine::Program;
use simmim_engine::ops::Operation;
use std::collections::BTreeMap;

/// What a card reaches at most, by its data sheet.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Card {
    name: String,
    /// Floating point operations a second on floats, without tensor cores.
    floats: f64,
    /// The same on tensor cores in bfloat16, sums in floats, no sparsity.
    bfloat16: Option<f64>,
    /// Bytes a second from memory.
    bandwidth: f64,
}

/// H100 SXM, A100 SXM 80 GB, GeForce RTX 4090.
const CARDS: [(&str, f64, f64, f64); 3] =
    [("h100", 67e12, 989e12, 3.35e12), ("a100", 19.5e12, 312e12, 2.039e12), ("rtx4090", 82.6e12, 165.2e12, 1.008e12)];

/// A card by name, or `FLOPS,BYTES` a second such as `67e12,3.35e12`.
pub(crate) fn card(text: &str) -> Result<Card, String> {
    if let Some(&(name, floats, bfloat16, bandwidth)) = CARDS.iter().find(|(name, ..)| *name == text) {
        return Ok(Card { name: name.to_owned(), floats, bfloat16: Some(bfloat16), bandwidth });
    }
    let positive = |part: &str| part.trim().parse::<f64>().ok().filter(|v| v.is_finite() && *v > 0.0);
    match text.split_once(',').map(|(floats, bandwidth)| (positive(floats), positive(bandwidth))) {
        Some((Some(floats), Some(bandwidth))) => Ok(Card { name: text.to_owned(), floats, bfloat16: None, bandwidth }),
        _ => Err("give h100, a100, rtx4090, or FLOPS,BYTES a second such as 67e12,3.35e12".to_owned()),
    }
}

/// Operations of one name, together.
#[derive(Debug, Default)]
struct Row {
    count: usize,
    flops: f64,
    bytes: f64,
    /// Seconds at least in floats, and with tensor cores on half the bytes.
    floats: f64,
    bfloat16: f64,
}

/// Prints the bound of each kind of operation over a step of `runs` runs of the first program and one of the second.
pub(crate) fn print(card: &Card, part: &Program, runs: usize, update: &Program, images: usize) {
    let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
    for (program, runs) in [(part, runs), (update, 1)] {
        for i in program.instructions() {
            let (flops, bytes, runs) = (i.flops as f64, i.bytes() as f64, runs as f64);
            let row = rows.entry(i.op.name()).or_default();
            row.count += 1;
            row.flops += runs * flops;
            row.bytes += runs * bytes;
            row.floats += runs * (flops / card.floats).max(bytes / card.bandwidth);
            if let Some(peak) = card.bfloat16 {
                row.bfloat16 += runs * (flops / peak).max(0.5 * bytes / card.bandwidth);
            }
        }
    }
    let (floats, bfloat16) = rows.values().fold((0.0, 0.0), |sum, r| (sum.0 + r.floats, sum.1 + r.bfloat16));
    let mut rows: Vec<_> = rows.into_iter().collect();
    rows.sort_by(|x, y| y.1.floats.total_cmp(&x.1.floats));
    println!(
        "roofline on {} ({:.4} TFLOP/s in floats, {:.3} TB/s)",
        card.name,
        card.floats / 1e12,
        card.bandwidth / 1e12
    );
    println!("{:28} {:>5} {:>10} {:>9} {:>10} {:>6}  bound", "operation", "count", "GFLOP", "GB", "ms", "share");
    for (name, r) in &rows {
        let bound = if r.flops / card.floats > r.bytes / card.bandwidth { "arithmetic" } else { "memory" };
        println!(
            "{name:28} {:>5} {:>10.2} {:>9.3} {:>10.4} {:>5.1}%  {bound}",
            r.count,
            r.flops / 1e9,
            r.bytes / 1e9,
            1e3 * r.floats,
            100.0 * r.floats / floats
        );
    }
    println!("a step takes at least {:.3} ms: at most {:.0} images/s", 1e3 * floats, images as f64 / floats);
    if card.bfloat16.is_some() {
        println!(
            "in bfloat16 (not there yet) it would take at least {:.3} ms: at most {:.0} images/s",
            1e3 * bfloat16,
            images as f64 / bfloat16
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_have_names_or_two_numbers() {
        assert_eq!(card("a100").unwrap().bandwidth, 2.039e12);
        let own = card("1e12, 2e11").unwrap();
        assert_eq!((own.floats, own.bandwidth, own.bfloat16), (1e12, 2e11, None));
        for wrong in ["", "v100", "1e12", "1e12,0", "1e12,-3", "nan,1", "1,2,3"] {
            assert!(card(wrong).is_err(), "{wrong}");
        }
    }
}
