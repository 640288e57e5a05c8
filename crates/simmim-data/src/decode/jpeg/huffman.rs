//! Huffman codes of a baseline scan: a bit reader and tables that decode a code together with what follows it.

use super::header::HuffmanSpec;
use super::{Unusual, unusual};

/// Bits that the tables look at in one step.
const LOOK: u32 = 10;

/// The longest code.
const LONGEST: usize = 16;

/// Reads entropy-coded data from its first bit on, without the zero bytes that follow bytes of ones. At a marker or the
/// end of the data it goes on with zeros; [`overrun`](Self::overrun) tells whether any of those were used.
///
/// It is copied freely: what is called seldom takes and returns it by value, so that it stays in registers elsewhere.
#[derive(Clone, Copy)]
pub(super) struct Bits<'a> {
    data: &'a [u8],
    at: usize,
    /// The next bits, highest first; those below the counted ones are zero or what will be there.
    buffer: u64,
    count: u32,
    /// How many of the counted bits were made up.
    made_up: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self { data, at: 0, buffer: 0, count: 0, made_up: 0 }
    }

    /// Whether bits beyond the data were taken.
    pub(super) fn overrun(&self) -> bool {
        self.made_up > self.count
    }

    /// Makes at least 32 bits available: a code of 16 bits and 15 more that belong to it.
    #[inline(always)]
    fn refill(&mut self) {
        if self.count >= 32 {
            return;
        }
        if let Some(chunk) = self.data.get(self.at..).and_then(|rest| rest.first_chunk::<8>()) {
            let word = u64::from_be_bytes(*chunk);
            // A byte of ones is a zero byte of the complement.
            if (!word).wrapping_sub(0x0101_0101_0101_0101) & word & 0x8080_8080_8080_8080 == 0 {
                self.buffer |= word >> self.count;
                let bytes = (63 - self.count) / 8;
                self.at += bytes as usize;
                self.count += bytes * 8;
                return;
            }
        }
        *self = self.refill_bytes();
    }

    #[cold]
    #[inline(never)]
    fn refill_bytes(mut self) -> Self {
        while self.count <= 56 {
            let byte = match (self.data.get(self.at), self.data.get(self.at + 1)) {
                (Some(0xff), Some(0)) => {
                    self.at += 2;
                    0xff
                }
                (Some(0xff), _) | (None, _) => {
                    self.made_up += 8;
                    0
                }
                (Some(&byte), _) => {
                    self.at += 1;
                    byte
                }
            };
            self.buffer |= u64::from(byte) << (56 - self.count);
            self.count += 8;
        }
        self
    }

    #[inline(always)]
    fn look(&self, bits: u32) -> usize {
        (self.buffer >> (64 - bits)) as usize
    }

    #[inline(always)]
    fn take(&mut self, bits: u32) {
        self.buffer <<= bits;
        self.count = self.count.wrapping_sub(bits);
    }

    /// A number of `size` bits (1 to 15) in the form of T.81, figure F.12: half of the range is negative.
    #[inline(always)]
    fn number(&mut self, size: u32) -> i32 {
        let value = self.look(size) as i32;
        self.take(size);
        if value < 1 << (size - 1) { value - (1 << size) + 1 } else { value }
    }

    /// Goes on behind the next restart marker, which must be number `index` modulo 8. With `search`, whatever lies before
    /// it is passed over; without, it must come next.
    pub(super) fn restart(&mut self, index: usize, search: bool) -> Result<(), Unusual> {
        if self.overrun() {
            return unusual("the data of an interval ends early");
        }
        // Bytes that wait in the buffer lie before the marker, or are made up.
        if !search && self.count - self.made_up >= 8 {
            return unusual("no restart marker where one belongs");
        }
        let rest = self.data.get(self.at..).unwrap_or_default();
        let found = rest.windows(2).position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xff));
        match found.map(|place| (place, rest[place + 1])) {
            Some((place, marker)) if marker == 0xd0 + (index % 8) as u8 && (search || place <= 1) => {
                *self = Self { data: self.data, at: self.at + place + 2, buffer: 0, count: 0, made_up: 0 };
                Ok(())
            }
            _ => unusual("no restart marker where one belongs"),
        }
    }
}

/// A code of the file: its bits, how many, and the symbol.
struct Code {
    bits: usize,
    length: u32,
    symbol: u8,
}

/// The codes of a table in their order (T.81, annex C).
fn codes(spec: &HuffmanSpec) -> Result<Vec<Code>, Unusual> {
    let mut codes = Vec::with_capacity(256);
    let mut bits = 0usize;
    let mut symbols = spec.symbols.iter();
    for (length, &count) in (1..).zip(&spec.counts) {
        for _ in 0..count {
            let Some(&symbol) = symbols.next() else { return unusual("a damaged Huffman table") };
            if bits >= 1 << length {
                return unusual("a damaged Huffman table");
            }
            codes.push(Code { bits, length, symbol });
            bits += 1;
        }
        bits <<= 1;
    }
    Ok(codes)
}

/// Codes that are longer than [`LOOK`] bits, by comparison.
#[derive(Clone)]
struct Long {
    /// For each length, one more than the largest code of that length, aligned to 16 bits; 0 where there is none.
    end: [u32; LONGEST + 1],
    /// For each length, what to add to a code to find its symbol.
    offset: [i32; LONGEST + 1],
    symbols: [u8; 256],
}

impl Long {
    fn new(spec: &HuffmanSpec, codes: &[Code]) -> Self {
        let mut long = Self { end: [0; LONGEST + 1], offset: [0; LONGEST + 1], symbols: spec.symbols };
        for (i, code) in codes.iter().enumerate() {
            let length = code.length as usize;
            long.end[length] = ((code.bits + 1) << (LONGEST - length)) as u32;
            long.offset[length] = i as i32 - code.bits as i32;
        }
        long
    }

    /// Takes a code of any length. Codes of a length are larger than all shorter ones, so the first length whose end
    /// lies beyond is the right one.
    #[cold]
    #[inline(never)]
    fn symbol<'a>(&self, mut bits: Bits<'a>) -> Result<(Bits<'a>, u8), Unusual> {
        let ahead = bits.look(LONGEST as u32) as u32;
        for (length, (&end, &offset)) in self.end.iter().zip(&self.offset).enumerate() {
            if ahead < end {
                let code = (ahead >> (LONGEST - length)) as i32;
                bits.take(length as u32);
                return match self.symbols.get((code + offset) as usize) {
                    Some(&symbol) => Ok((bits, symbol)),
                    None => unusual("a code that does not exist"),
                };
            }
        }
        unusual("a code that does not exist")
    }
}

/// Decodes differences of DC coefficients.
#[derive(Clone)]
pub(super) struct DcTable {
    spec: HuffmanSpec,
    /// For the next bits: length of the code, size of the number; length 0 for long codes.
    look: [(u8, u8); 1 << LOOK],
    long: Long,
}

impl DcTable {
    fn new(spec: &HuffmanSpec) -> Result<Self, Unusual> {
        let codes = codes(spec)?;
        let mut look = [(0, 0); 1 << LOOK];
        for code in &codes {
            if code.symbol > 15 {
                return unusual("a DC difference of more than 15 bits");
            }
            if code.length <= LOOK {
                let shift = LOOK - code.length;
                look[code.bits << shift..(code.bits + 1) << shift].fill((code.length as u8, code.symbol));
            }
        }
        Ok(Self { spec: *spec, look, long: Long::new(spec, &codes) })
    }

    #[inline(always)]
    pub(super) fn difference(&self, bits: &mut Bits<'_>) -> Result<i32, Unusual> {
        bits.refill();
        let (length, mut size) = self.look[bits.look(LOOK)];
        if length == 0 {
            (*bits, size) = self.long.symbol(*bits)?;
        } else {
            bits.take(u32::from(length));
        }
        Ok(if size == 0 { 0 } else { bits.number(u32::from(size)) })
    }
}

/// What the next bits hold: a coefficient, the end of a block, a run of zeros, or the start of something longer.
#[derive(Clone, Copy, Default)]
struct Step {
    /// The coefficient; 0 for everything else.
    value: i16,
    /// How many coefficients to pass over before it. [`END`] at the end of a block.
    run: u8,
    /// Bits that it takes (0: the code is longer than the table looks), and 16 times the bits of a number that is not whole
    /// within the bits looked at.
    meta: u8,
}

impl Step {
    #[inline(always)]
    fn bits(self) -> u32 {
        u32::from(self.meta & 15)
    }

    #[inline(always)]
    fn size(self) -> u32 {
        u32::from(self.meta >> 4)
    }

    /// Whether the table knew all of it.
    #[inline(always)]
    fn whole(self) -> bool {
        self.meta.wrapping_sub(1) < 15
    }
}

/// Several steps at once, where only the end of the block is sought.
#[derive(Clone, Copy, Default)]
struct Jump {
    /// Coefficients passed.
    run: u8,
    /// Bits passed; 0 where not even one step is whole.
    bits: u8,
    end: bool,
}

/// Further than any block reaches.
const END: u8 = 64;

/// Decodes AC coefficients.
#[derive(Clone)]
pub(super) struct AcTable {
    spec: HuffmanSpec,
    steps: [Step; 1 << LOOK],
    jumps: [Jump; 1 << LOOK],
    long: Long,
}

impl AcTable {
    fn new(spec: &HuffmanSpec) -> Result<Self, Unusual> {
        let codes = codes(spec)?;
        let mut steps = [Step::default(); 1 << LOOK];
        for code in codes.iter().filter(|code| code.length <= LOOK) {
            let shift = LOOK - code.length;
            for tail in 0..1usize << shift {
                steps[(code.bits << shift) + tail] = Step::new(code, tail, shift);
            }
        }
        let mut jumps = [Jump::default(); 1 << LOOK];
        for (ahead, jump) in jumps.iter_mut().enumerate() {
            *jump = Jump::new(&steps, ahead);
        }
        Ok(Self { spec: *spec, steps, jumps, long: Long::new(spec, &codes) })
    }

    /// Takes a symbol and its number from bits where the table's step was not whole.
    #[inline(always)]
    fn longer(&self, step: Step, bits: &mut Bits<'_>) -> Result<Step, Unusual> {
        let (run, size) = if step.bits() == 0 {
            let symbol;
            (*bits, symbol) = self.long.symbol(*bits)?;
            (symbol >> 4, u32::from(symbol & 15))
        } else {
            bits.take(step.bits());
            (step.run, step.size())
        };
        Ok(match (size, run) {
            (0, 15) => Step { run: 16, ..Step::default() },
            (0, _) => Step { run: END, ..Step::default() },
            _ => Step { value: bits.number(size) as i16, run, ..Step::default() },
        })
    }

    /// Decodes coefficients 1 to `last` of a block, in the order of the file, and passes over the others. `store` gets index
    /// and value. Returns the largest index stored, 0 where there is none.
    #[inline(always)]
    pub(super) fn block(
        &self,
        outer: &mut Bits<'_>,
        last: usize,
        mut store: impl FnMut(usize, i32),
    ) -> Result<usize, Unusual> {
        let (mut k, mut largest) = (1usize, 0);
        let mut local = *outer;
        let bits = &mut local;
        while k <= last {
            bits.refill();
            let mut step = self.steps[bits.look(LOOK)];
            if step.whole() {
                bits.take(step.bits());
            } else {
                step = self.longer(step, bits)?;
            }
            k += usize::from(step.run);
            if step.value != 0 {
                if k > last {
                    if k > 63 {
                        return unusual("a coefficient beyond its block");
                    }
                    k += 1;
                    break;
                }
                store(k, i32::from(step.value));
                largest = k;
                k += 1;
            } else if step.run == END {
                *outer = local;
                return Ok(largest);
            }
        }
        *outer = local;
        if k <= 63 {
            self.pass(outer, k)?;
        } else if k > 64 {
            return unusual("a coefficient beyond its block");
        }
        Ok(largest)
    }

    /// Passes over the rest of a block, from index `k` on.
    #[inline(always)]
    pub(super) fn pass(&self, outer: &mut Bits<'_>, mut k: usize) -> Result<(), Unusual> {
        let mut local = *outer;
        let bits = &mut local;
        while k <= 63 {
            bits.refill();
            let jump = self.jumps[bits.look(LOOK)];
            // Steps that could lead beyond the block are taken one by one: what follows belongs to the next block.
            if jump.bits != 0 && k + usize::from(jump.run) <= 63 {
                bits.take(u32::from(jump.bits));
                k += usize::from(jump.run);
                if jump.end {
                    *outer = local;
                    return Ok(());
                }
                continue;
            }
            let mut step = self.steps[bits.look(LOOK)];
            if step.whole() {
                bits.take(step.bits());
            } else {
                step = self.longer(step, bits)?;
            }
            if step.run == END {
                *outer = local;
                return Ok(());
            }
            k += usize::from(step.run) + usize::from(step.value != 0);
        }
        *outer = local;
        if k == 64 { Ok(()) } else { unusual("a coefficient beyond its block") }
    }
}

impl Step {
    /// The step that begins with `code`, followed by the `rest` bits of `tail`.
    fn new(code: &Code, tail: usize, rest: u32) -> Self {
        let (run, size) = (code.symbol >> 4, u32::from(code.symbol & 15));
        let length = code.length as u8;
        match (size, run) {
            (0, 15) => Self { run: 16, meta: length, value: 0 },
            (0, _) => Self { run: END, meta: length, value: 0 },
            _ if size <= rest => {
                let value = (tail >> (rest - size)) as i32;
                let value = if value < 1 << (size - 1) { value - (1 << size) + 1 } else { value };
                Self { value: value as i16, run, meta: length + size as u8 }
            }
            _ => Self { run, meta: length | (size as u8) << 4, value: 0 },
        }
    }
}

impl Jump {
    /// As many whole steps as the bits `ahead` hold.
    fn new(steps: &[Step; 1 << LOOK], ahead: usize) -> Self {
        let mut jump = Self::default();
        loop {
            let step = steps[(ahead << jump.bits) & ((1 << LOOK) - 1)];
            let bits = jump.bits + step.bits() as u8;
            if !step.whole() || u32::from(bits) > LOOK {
                return jump;
            }
            if step.run == END {
                return Self { bits, end: true, ..jump };
            }
            let run = jump.run + step.run + u8::from(step.value != 0);
            if run > 62 {
                return jump;
            }
            jump = Self { run, bits, end: false };
        }
    }
}

/// Tables of the file before, kept because most files of a data set share them.
#[derive(Default)]
pub(super) struct Tables {
    dc: [Option<Box<DcTable>>; 4],
    ac: [Option<Box<AcTable>>; 4],
}

impl Tables {
    /// Makes the tables that are not there yet.
    pub(super) fn prepare(
        &mut self,
        dc: &[Option<HuffmanSpec>; 4],
        ac: &[Option<HuffmanSpec>; 4],
    ) -> Result<(), Unusual> {
        for (table, spec) in self.dc.iter_mut().zip(dc) {
            match spec {
                Some(spec) if table.as_ref().is_some_and(|t| t.spec == *spec) => {}
                Some(spec) => *table = Some(Box::new(DcTable::new(spec)?)),
                None => *table = None,
            }
        }
        for (table, spec) in self.ac.iter_mut().zip(ac) {
            match spec {
                Some(spec) if table.as_ref().is_some_and(|t| t.spec == *spec) => {}
                Some(spec) => *table = Some(Box::new(AcTable::new(spec)?)),
                None => *table = None,
            }
        }
        Ok(())
    }

    pub(super) fn get(&self, dc: usize, ac: usize) -> Result<(&DcTable, &AcTable), Unusual> {
        match (self.dc.get(dc), self.ac.get(ac)) {
            (Some(Some(dc)), Some(Some(ac))) => Ok((dc, ac)),
            _ => unusual("a table that the file does not hold"),
        }
    }
}
