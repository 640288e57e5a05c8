//! `simmim data`: what images are like, before anything is trained on them.

#![allow(clippy::print_stdout, reason = "results go to standard output")]

use crate::arguments::{Check, Data, DataWhat, LogFormat, Stats, Surveyed};
use crate::commands::{class_name, open_images, write_file};
use crate::diagnostics::Failure;
use crate::meter::{Meter, warn_unreadable};
use crate::parts::{self, Place, Share, Slot};
use crate::ranks;
use serde::{Deserialize, Serialize};
use simmim_data::{DataError, Seen, Source, Transform, mean_and_deviation, survey};
use simmim_train::Ranks;
use simmim_train::features::Key;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

/// Of images some of which cannot be used.
const UNREADABLE: u8 = 1;

pub(crate) fn run(a: &Data, format: LogFormat) -> Result<ExitCode, Failure> {
    ranks::run(format, |ranks| {
        let ranks = ranks.clone().without_limit();
        match &a.what {
            DataWhat::Check(a) => check(a, format, &ranks),
            DataWhat::Stats(a) => stats(a, format, &ranks),
        }
    })
}

/// Sums over images, which those of other parts can be added to. Every image weighs the same, whatever its size.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Sums {
    images: u64,
    unreadable: u64,
    transparent: u64,
    /// Sums of the images' means and mean squares, for each channel.
    means: Vec<f64>,
    squares: Vec<f64>,
    /// Number of images for each length of the shorter and of the longer side, in pixels.
    shorter: BTreeMap<usize, u64>,
    longer: BTreeMap<usize, u64>,
    classes: BTreeMap<String, u64>,
}

impl Sums {
    fn of_channels(channels: usize) -> Self {
        Self { means: vec![0.0; channels], squares: vec![0.0; channels], ..Self::default() }
    }

    fn add(&mut self, seen: &Seen, class: Option<&str>) {
        self.images += 1;
        self.transparent += u64::from(seen.transparent);
        for ((mean, square), moments) in self.means.iter_mut().zip(&mut self.squares).zip(&seen.moments) {
            *mean += moments.0;
            *square += moments.1;
        }
        *self.shorter.entry(seen.width.min(seen.height)).or_default() += 1;
        *self.longer.entry(seen.width.max(seen.height)).or_default() += 1;
        if let Some(class) = class {
            *self.classes.entry(class.to_owned()).or_default() += 1;
        }
    }

    /// Adds those of other images. None where the channels differ.
    fn merge(mut self, other: &Self) -> Option<Self> {
        if self.means.len() != other.means.len() || self.squares.len() != other.squares.len() {
            return None;
        }
        self.images += other.images;
        self.unreadable += other.unreadable;
        self.transparent += other.transparent;
        self.means.iter_mut().zip(&other.means).for_each(|(sum, v)| *sum += v);
        self.squares.iter_mut().zip(&other.squares).for_each(|(sum, v)| *sum += v);
        let counts = [(&mut self.shorter, &other.shorter), (&mut self.longer, &other.longer)];
        for (sum, counts) in counts {
            counts.iter().for_each(|(side, count)| *sum.entry(*side).or_default() += count);
        }
        other.classes.iter().for_each(|(class, count)| *self.classes.entry(class.clone()).or_default() += count);
        Some(self)
    }

    /// Mean and standard deviation of each channel, as `data.mean` and `data.std` take them.
    fn mean_std(&self) -> (Vec<f64>, Vec<f64>) {
        let n = self.images.max(1) as f64;
        self.means.iter().zip(&self.squares).map(|(&mean, &square)| mean_and_deviation(mean, square, n)).unzip()
    }

    fn print(&self) {
        println!("images       {}{}", self.images, unreadable(self.unreadable));
        let side = |counts: &BTreeMap<usize, u64>| {
            let ends = counts.keys().next().zip(counts.keys().next_back());
            ends.map_or_else(String::new, |(least, most)| format!("{least} to {most} px, median {}", median(counts)))
        };
        println!("shorter side {}", side(&self.shorter));
        println!("longer side  {}", side(&self.longer));
        if self.transparent > 0 {
            println!("transparent  {}", self.transparent);
        }
        for (class, count) in &self.classes {
            println!("class        {class}: {count}");
        }
        let list = |values: &[f64]| values.iter().map(|v| format!("{v:.6}")).collect::<Vec<_>>().join(",");
        let (mean, std) = self.mean_std();
        println!("--set data.mean=[{}] --set data.std=[{}]", list(&mean), list(&std));
    }
}

fn unreadable(count: u64) -> String {
    if count == 0 { String::new() } else { format!(", and {count} that cannot be read") }
}

/// The least length that half of the images do not exceed.
fn median(counts: &BTreeMap<usize, u64>) -> usize {
    let (half, mut so_far) = (counts.values().sum::<u64>().div_ceil(2), 0);
    for (side, count) in counts {
        so_far += count;
        if so_far >= half {
            return *side;
        }
    }
    0
}

/// Reads the images of a share in order.
fn look(
    a: &Surveyed,
    images: &dyn Source,
    what: &str,
    format: LogFormat,
    each: &mut dyn FnMut(usize, &Result<Seen, DataError>),
) -> Sums {
    let threads = a.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let all: Vec<usize> = (0..images.len()).collect();
    let (mut sums, mut reasons) = (Sums::of_channels(a.channels), Vec::new());
    let mut meter = Meter::new(format, what, all.len());
    survey(images, a.channels, &all, threads, &mut |place, seen| {
        each(place, &seen);
        match &seen {
            Ok(seen) => sums.add(seen, class_name(images, place)),
            Err(error) => {
                sums.unreadable += 1;
                reasons.push(error.to_string());
            }
        }
        meter.at(place + 1);
    });
    meter.finish(all.len());
    warn_unreadable(format, reasons.len(), reasons.iter().map(String::as_str));
    sums
}

/// Where a share goes; none where that is nowhere.
fn place(share: &Share, a: &Surveyed, out: Option<&Path>) -> Result<Option<Place>, Failure> {
    let Some(out) = out else { return Ok(None) };
    share.check_output(out)?;
    let made_from = || {
        let transform = Transform::new((1, 1), a.channels);
        Ok(Key::of(&*share.images, &transform, "data", std::iter::empty())?.conditions())
    };
    share.place(out, made_from).map(Some)
}

fn check(a: &Check, format: LogFormat, ranks: &Ranks) -> Result<ExitCode, Failure> {
    let share = ranks::agree(ranks, || a.surveyed.parts.share(open_images(&a.data)?, ranks))?;
    // A report that is there counts like one that is made now: its images are as unreadable, and other ranks wait for its numbers.
    let mut counts = match place(&share, &a.surveyed, a.out.as_deref())? {
        Some(Place::There(path)) => {
            println!("{} is there already", path.display());
            counted(&path)?
        }
        Some(Place::Make(slot)) => report(a, &*share.images, format, Some(slot))?,
        None => report(a, &*share.images, format, None)?,
    };
    ranks.sum(&mut counts)?;
    if ranks.is_first() {
        println!("{} images can be read{}", counts[0], unreadable(counts[1] as u64));
    }
    Ok(if counts[1] > 0.0 { ExitCode::from(UNREADABLE) } else { ExitCode::SUCCESS })
}

/// Checks the images of a share and writes their report; gives the numbers of those that can be read and of those that cannot.
fn report(a: &Check, images: &dyn Source, format: LogFormat, slot: Option<Slot>) -> Result<[f64; 2], Failure> {
    let mut table = csv::Writer::from_writer(Vec::new());
    let mut written = table.write_record(["path", "class", "width", "height", "transparent", "error"]);
    let sums = look(&a.surveyed, images, "check", format, &mut |place, seen| {
        let [width, height, transparent, error] = match seen {
            Ok(seen) => [seen.width.to_string(), seen.height.to_string(), seen.transparent.to_string(), String::new()],
            Err(error) => [String::new(), String::new(), String::new(), error.to_string()],
        };
        if written.is_ok() {
            let (name, class) = (images.name(place), class_name(images, place).unwrap_or_default().to_owned());
            written = table.write_record([name, class, width, height, transparent, error]);
        }
    });
    written.map_err(|e| Failure::running(e.to_string()))?;
    if let Some(slot) = slot {
        let path = slot.write(&table.into_inner().map_err(|e| Failure::running(e.to_string()))?)?;
        println!("{}", path.display());
    }
    Ok([sums.images as f64, sums.unreadable as f64])
}

/// What [`report`] gave for a report that is there: the last column says why an image cannot be read.
fn counted(path: &Path) -> Result<[f64; 2], Failure> {
    let wrong = |e: csv::Error| Failure::running(format!("{}: {e}", path.display()));
    let mut counts = [0.0; 2];
    for row in csv::Reader::from_path(path).map_err(wrong)?.records() {
        let row = row.map_err(wrong)?;
        let failed = row.iter().next_back().is_some_and(|error| !error.is_empty());
        counts[usize::from(failed)] += 1.0;
    }
    Ok(counts)
}

fn stats(a: &Stats, format: LogFormat, ranks: &Ranks) -> Result<ExitCode, Failure> {
    let Some(data) = &a.data else {
        let from = a.from.as_deref().unwrap_or(Path::new(""));
        read_sums(from)?.print();
        return Ok(ExitCode::SUCCESS);
    };
    let share = ranks::agree(ranks, || a.surveyed.parts.share(open_images(data)?, ranks))?;
    if a.surveyed.parts.part.is_some() && a.out.is_none() {
        return Err(Failure::input("--part needs --out", "name the file for the sums, such as stats.json"));
    }
    // Ranks add up their sums at once, and write them together.
    let slot = match if ranks.world() > 1 { None } else { place(&share, &a.surveyed, a.out.as_deref())? } {
        Some(Place::There(path)) => {
            println!("{} is there already", path.display());
            return Ok(ExitCode::SUCCESS);
        }
        Some(Place::Make(slot)) => Some(slot),
        None => None,
    };
    let mine = look(&a.surveyed, &*share.images, "stats", format, &mut |_, _| {});
    let sums = merged(ranks.gather(&mine)?)?;
    if !ranks.is_first() {
        return Ok(ExitCode::SUCCESS);
    }
    if sums.images == 0 && !share.may_be_empty() {
        return Err(Failure::input("no image could be read", "check that the files are images"));
    }
    let text = serde_json::to_vec_pretty(&sums).map_err(|e| Failure::running(e.to_string()))?;
    match (slot, &a.out) {
        (Some(slot), _) => drop(slot.write(&text)?),
        (None, Some(out)) => write_file(out, &text)?,
        (None, None) => {}
    }
    sums.print();
    Ok(ExitCode::SUCCESS)
}

fn merged(all: Vec<Sums>) -> Result<Sums, Failure> {
    let differ = || Failure::input("the parts are of images in different channels", "give the same --channels to all");
    let mut all = all.into_iter();
    let first = all.next().unwrap_or_default();
    all.try_fold(first, |sum, other| sum.merge(&other).ok_or_else(differ))
}

/// Sums of a file, or of all parts in a folder.
fn read_sums(path: &Path) -> Result<Sums, Failure> {
    let files = if path.is_dir() { parts::all(path, "json")? } else { vec![path.to_owned()] };
    let read = |file: &std::path::PathBuf| {
        let wrong =
            |e: String| Failure::input(format!("{}: {e}", file.display()), "give what `simmim data stats --out` wrote");
        let bytes = std::fs::read(file).map_err(|e| wrong(e.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))
    };
    merged(files.iter().map(read).collect::<Result<_, _>>()?)
}
