//! NumPy's array files: what `numpy.save` writes, and what `numpy.load` reads
//! (<https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>).

const MAGIC: &[u8] = b"\x93NUMPY";

/// Digits for which a header has room in the first axis, so that it can be written again when rows are missing at the end.
const DIGITS: usize = 20;

/// The header of an array of 32-bit floats, rows first, to the byte at which its numbers start. Headers of arrays that differ in the number of
/// rows alone are equally long.
pub(crate) fn header(rows: usize, shape_of_row: &[usize]) -> Vec<u8> {
    let text = |rows: &str| {
        let row: Vec<String> = shape_of_row.iter().map(|n| format!(" {n}")).collect();
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows},{}), }}", row.join(","))
    };
    // Magic, version and length take ten bytes, the line break one.
    let len = (11 + text(&"9".repeat(DIGITS)).len()).next_multiple_of(64) - 10;
    // Version 1 counts them in sixteen bits, which some two thousand axes fill.
    let mut bytes = [MAGIC, &[1, 0], &(len as u16).to_le_bytes()].concat();
    bytes.extend(format!("{:width$}\n", text(&rows.to_string()), width = len - 1).bytes());
    bytes
}

/// An array of numbers.
#[derive(Debug, PartialEq)]
pub(crate) struct Array {
    /// Its extents.
    pub(crate) shape: Vec<usize>,
    /// Its elements, the last index running fastest.
    pub(crate) values: Vec<f64>,
}

impl Array {
    /// Reads an array of bools, integers or floats in either byte order, rows or columns first.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let rest = bytes.strip_prefix(MAGIC).ok_or("it does not begin as an array of NumPy does")?;
        let short = "it ends within its header";
        let (&[major, _], rest) = rest.split_first_chunk::<2>().ok_or(short)?;
        let (len, rest) = match major {
            1 => rest.split_first_chunk::<2>().map(|(len, rest)| (usize::from(u16::from_le_bytes(*len)), rest)),
            2 | 3 => rest.split_first_chunk::<4>().map(|(len, rest)| (u32::from_le_bytes(*len) as usize, rest)),
            other => return Err(format!("its format is version {other}, and 1 to 3 are known")),
        }
        .ok_or(short)?;
        let (text, data) = rest.split_at_checked(len).ok_or(short)?;
        let text = std::str::from_utf8(text).map_err(|_| "its header is no text")?;
        let header = Header::parse(text).ok_or_else(|| format!("its header is not understood: {}", text.trim()))?;
        let (size, number) = reader(header.descr)
            .ok_or_else(|| format!("its elements are {}, and bools, integers and floats are read", header.descr))?;
        let expected = header.shape.iter().try_fold(size, |product, &n| product.checked_mul(n));
        if expected != Some(data.len()) {
            let what = format!("{:?} of {size} bytes each", header.shape);
            return Err(format!("it holds {} bytes where its shape asks for {what}", data.len()));
        }
        let values: Vec<f64> = data.chunks_exact(size).map(number).collect();
        let values = if header.columns_first { transposed(&values, &header.shape) } else { values };
        Ok(Self { shape: header.shape, values })
    }
}

/// Elements in which the first index runs fastest, in the other order.
fn transposed(values: &[f64], shape: &[usize]) -> Vec<f64> {
    let place = |mut at: usize| {
        let mut index = vec![0; shape.len()];
        for (i, &n) in index.iter_mut().zip(shape).rev() {
            (*i, at) = (at % n, at / n);
        }
        index.iter().zip(shape).rev().fold(0, |place, (&i, &n)| place * n + i)
    };
    (0..values.len()).map(|at| values[place(at)]).collect()
}

/// What the dictionary at the start of a file says.
#[derive(Debug, PartialEq)]
struct Header<'a> {
    descr: &'a str,
    columns_first: bool,
    shape: Vec<usize>,
}

impl<'a> Header<'a> {
    /// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`, keys in any order.
    fn parse(text: &'a str) -> Option<Self> {
        let (mut descr, mut columns_first, mut shape) = (None, None, None);
        let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
        while !rest.is_empty() {
            let (key, after) = quoted(rest)?;
            let value = after.trim_start().strip_prefix(':')?.trim_start();
            rest = match key {
                "descr" => {
                    let (found, after) = quoted(value)?;
                    descr = Some(found);
                    after
                }
                "fortran_order" => {
                    let yes = value.strip_prefix("True");
                    columns_first = Some(yes.is_some());
                    yes.or_else(|| value.strip_prefix("False"))?
                }
                "shape" => {
                    let (inside, after) = value.strip_prefix('(')?.split_once(')')?;
                    let parts: Vec<&str> = inside.split(',').map(str::trim).collect();
                    let parts = parts.strip_suffix(&[""]).unwrap_or(&parts);
                    shape = Some(parts.iter().map(|n| n.trim_end_matches('L').parse().ok()).collect::<Option<_>>()?);
                    after
                }
                _ => return None,
            }
            .trim_start();
            rest = rest.strip_prefix(',').map_or(rest, str::trim_start);
        }
        Some(Self { descr: descr?, columns_first: columns_first?, shape: shape? })
    }
}

/// The string at the start of the text, and what follows.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| ['\'', '"'].contains(c))?;
    text[1..].split_once(quote)
}

/// Reads the number of an element's bytes.
type Read = fn(&[u8]) -> f64;

/// Size of an element, and how it is read.
fn reader(descr: &str) -> Option<(usize, Read)> {
    macro_rules! number {
        ($ty:ty, $from:ident, $convert:expr) => {
            (size_of::<$ty>(), |bytes: &[u8]| bytes.first_chunk().map_or(f64::NAN, |b| $convert(<$ty>::$from(*b))))
        };
    }
    macro_rules! either {
        ($big:expr, $ty:ty, $convert:expr) => {
            if $big { number!($ty, from_be_bytes, $convert) } else { number!($ty, from_le_bytes, $convert) }
        };
    }
    let (order, kind) = descr.split_at_checked(1)?;
    let big = match order {
        "<" | "|" | "=" => false,
        ">" => true,
        _ => return None,
    };
    Some(match kind {
        "b1" => number!(u8, from_le_bytes, |v| f64::from(u8::from(v != 0))),
        "u1" => number!(u8, from_le_bytes, f64::from),
        "i1" => number!(i8, from_le_bytes, f64::from),
        "u2" => either!(big, u16, f64::from),
        "i2" => either!(big, i16, f64::from),
        "u4" => either!(big, u32, f64::from),
        "i4" => either!(big, i32, f64::from),
        "u8" => either!(big, u64, |v| v as f64),
        "i8" => either!(big, i64, |v| v as f64),
        "f4" => either!(big, f32, f64::from),
        "f8" => either!(big, f64, |v| v),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str, data: &[u8]) -> Vec<u8> {
        [MAGIC, &[1, 0], &(text.len() as u16).to_le_bytes(), text.as_bytes(), data].concat()
    }

    #[test]
    fn what_is_written_is_read_and_headers_of_other_rows_are_as_long() {
        let mut bytes = header(2, &[3]);
        assert!(bytes.len().is_multiple_of(64) && bytes.ends_with(b"\n"));
        assert_eq!(header(1_000_000_000, &[3]).len(), bytes.len());
        (0..6).for_each(|i| bytes.extend((i as f32 * 0.5).to_le_bytes()));
        let values = (0..6).map(|i| f64::from(i) * 0.5).collect();
        assert_eq!(Array::parse(&bytes), Ok(Array { shape: vec![2, 3], values }));
        assert_eq!(Array::parse(&header(0, &[])), Ok(Array { shape: vec![0], values: vec![] }));
    }

    /// Bytes as `numpy.save` of NumPy 2.4 writes them: `numpy.save(f, numpy.array(LIST, TYPE, order=ORDER))`.
    #[test]
    fn every_type_and_order_is_read() {
        let of = |descr: &str, order: &str, shape: &str, data: &[u8]| {
            Array::parse(&file(
                &format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n"),
                data,
            ))
        };
        let ones = [
            ("|b1", vec![1, 0]),
            ("|u1", vec![1, 0]),
            ("|i1", vec![1, 0]),
            ("<i2", vec![1, 0, 0, 0]),
            (">i2", vec![0, 1, 0, 0]),
            ("<u4", vec![1, 0, 0, 0, 0, 0, 0, 0]),
            (">i8", [1i64, 0].iter().flat_map(|v| v.to_be_bytes()).collect()),
            ("<f4", [1f32, 0.0].iter().flat_map(|v| v.to_le_bytes()).collect()),
            (">f8", [1f64, 0.0].iter().flat_map(|v| v.to_be_bytes()).collect()),
        ];
        for (descr, data) in ones {
            assert_eq!(
                of(descr, "False", "(2,)", &data),
                Ok(Array { shape: vec![2], values: vec![1.0, 0.0] }),
                "{descr}"
            );
        }
        let by_columns = of("|u1", "True", "(2, 3)", &[1, 4, 2, 5, 3, 6]).unwrap();
        assert_eq!(by_columns.values, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert!(of("|u1", "True", "(2, 0)", &[]).unwrap().values.is_empty());
        assert_eq!(of("|u1", "False", "()", &[7]).unwrap(), Array { shape: vec![], values: vec![7.0] });
        for (found, expected) in [
            (of("<c8", "False", "(1,)", &[0; 8]), "its elements are <c8"),
            (of("|O", "False", "(1,)", &[0; 8]), "its elements are |O"),
            (of("|u1", "False", "(3,)", &[0; 2]), "it holds 2 bytes"),
            (of("<f8", "False", "(9223372036854775807, 9)", &[0; 8]), "it holds 8 bytes"),
            (of("|u1", "Maybe", "(3,)", &[0; 3]), "is not understood"),
            (Array::parse(b"PK\x03\x04"), "does not begin"),
            (Array::parse(MAGIC), "ends within"),
            (Array::parse(&[MAGIC, &[9, 0, 0, 0]].concat()), "version 9"),
        ] {
            assert!(found.as_ref().is_err_and(|e| e.contains(expected)), "{found:?}, {expected}");
        }
    }

    #[test]
    fn no_damage_makes_it_panic() {
        let mut whole = header(3, &[2, 2]);
        whole.extend([0; 48]);
        for at in 0..whole.len() {
            let _ = Array::parse(&whole[..at]);
            for byte in [0, 1, b'\'', b'(', b'9', b'}', 0x80, 0xff] {
                let mut changed = whole.clone();
                changed[at] = byte;
                let _ = Array::parse(&changed);
            }
        }
    }
}
