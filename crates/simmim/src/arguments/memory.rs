//! Amounts of memory.

use clap::Args;

/// How much memory a training step may take.
#[derive(Debug, Clone, Args)]
pub(crate) struct MemoryArguments {
    /// Memory for parameters, gradients, moments and activations, such as 8GiB. A step is cut into more parts, then activations are computed
    /// twice (train.recompute), as far as it takes. The second keeps every bit of the result, the first keeps it to rounding.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(crate) memory: Option<u64>,
}

/// Units with their bytes; the short ones count as those of memory.
const UNITS: [(&str, u64); 13] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("k", 1 << 10),
    ("m", 1 << 20),
    ("g", 1 << 30),
    ("t", 1 << 40),
    ("b", 1),
];

/// Largest amount that is taken, 1 PiB.
const MOST: f64 = (1u64 << 50) as f64;

/// Reads `8GiB`, `1.5g`, `800MB` or a number of bytes.
fn bytes(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let unit = UNITS.iter().find_map(|(name, bytes)| lower.strip_suffix(name).map(|number| (number, *bytes)));
    let (number, unit) = unit.unwrap_or((&lower, 1));
    match number.trim().parse::<f64>() {
        Ok(n) if n > 0.0 && n * unit as f64 <= MOST => Ok((n * unit as f64) as u64),
        _ => Err("give an amount such as 8GiB, 500MB or 1073741824".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_with_their_units() {
        for (text, expected) in [
            ("8GiB", 8 << 30),
            ("8 gib", 8 << 30),
            ("1.5g", 3 << 29),
            ("500MB", 500_000_000),
            ("1024", 1024),
            ("64k", 65_536),
            ("12b", 12),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for wrong in ["", "GiB", "0", "-1GiB", "8 apples", "inf", "nan", "9999TiB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
