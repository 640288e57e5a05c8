//! Changes to whole files, as fuzzers make them: a pure function of a number.

use simmim_random::{Purpose, Stream};

/// Values that lie at the edges of what headers hold.
const EDGES: [u32; 10] = [0, 1, 0x7f, 0xff, 0x100, 0x7fff, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];

/// Mutations of some files.
#[derive(Debug)]
pub struct Mutations {
    seeds: Vec<Vec<u8>>,
}

impl Mutations {
    /// Mutations of these files, of which there is at least one.
    #[must_use]
    pub fn of(seeds: Vec<Vec<u8>>) -> Self {
        assert!(!seeds.is_empty(), "there is nothing to mutate");
        Self { seeds }
    }

    /// The mutation of this number; the first ones are the files themselves.
    #[must_use]
    pub fn get(&self, number: u64) -> Vec<u8> {
        if let Some(seed) = usize::try_from(number).ok().and_then(|i| self.seeds.get(i)) {
            return seed.clone();
        }
        let mut stream = Stream::new(0, Purpose::Test, 0, number);
        let mut file = self.pick(&mut stream).to_vec();
        for _ in 0..1 + stream.below(6) {
            self.change(&mut file, &mut stream);
        }
        file
    }

    fn pick(&self, stream: &mut Stream) -> &[u8] {
        &self.seeds[stream.below(self.seeds.len() as u64) as usize]
    }

    fn change(&self, file: &mut Vec<u8>, stream: &mut Stream) {
        if file.is_empty() {
            file.extend(self.pick(stream));
            return;
        }
        let len = file.len() as u64;
        // Headers lie at the start: half of all changes go there.
        let within = if stream.below(2) == 0 { len.min(64) } else { len };
        let at = stream.below(within) as usize;
        let rest = file.len() - at;
        match stream.below(8) {
            0 => file[at] ^= 1 << stream.below(8),
            1 => file[at] = stream.below(256) as u8,
            2 | 3 => {
                let edge = EDGES[stream.below(EDGES.len() as u64) as usize];
                let bytes = if stream.below(2) == 0 { edge.to_le_bytes() } else { edge.to_be_bytes() };
                let width = (1usize << stream.below(3)).min(rest);
                // The low bytes of the number, wherever its order puts them.
                let start = if bytes == edge.to_be_bytes() { 4 - width } else { 0 };
                file[at..at + width].copy_from_slice(&bytes[start..start + width]);
            }
            4 => file.truncate(at),
            5 => {
                let count = 1 + stream.below(rest.min(64) as u64) as usize;
                let piece = file[at..at + count].to_vec();
                let to = stream.below(len) as usize;
                file.splice(to..to, piece);
            }
            6 => {
                let count = 1 + stream.below(rest.min(64) as u64) as usize;
                file.drain(at..at + count);
            }
            _ => {
                let other = self.pick(stream);
                let from = stream.below(other.len().max(1) as u64) as usize;
                let piece = &other[from.min(other.len())..(from + 32).min(other.len())];
                let end = (at + piece.len()).min(file.len());
                file.splice(at..end, piece.iter().copied());
            }
        }
    }
}
