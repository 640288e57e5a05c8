//! Prefetched batches, the same for any number of threads.
//!
//! Batches are built ahead by *lanes*. A lane is one thread that builds every L-th batch, with helpers that share its
//! rows; the consumer takes from the lanes in turn, so order needs no bookkeeping. What a batch holds follows from
//! `(seed, epoch, index)` alone. Unreadable files travel with the batch that met them and are counted when that
//! batch is taken: whether and when the limit is exceeded does not depend on timing either.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use simmim_random::{Purpose, Stream};

use crate::cache::{Cache, CacheConfig};
use crate::read::{Reader, Reading, Scratch};
use crate::{DataError, Source, Transform};

/// Rows that one thread should get of a batch at least, so that threads seldom wait for each other at its end.
const ROWS_PER_THREAD: usize = 16;

/// How many failures an error message names.
const NAMED_FAILURES: usize = 5;

/// What a [`Loader`] delivers.
#[derive(Debug, Clone)]
pub struct LoaderConfig {
    /// Images per batch of this rank.
    pub batch: usize,
    /// Seed of the order, crops and flips.
    pub seed: u64,
    /// What happens to every image.
    pub transform: Transform,
    /// Threads that read and transform images.
    pub workers: usize,
    /// Finished batches kept ahead, in all.
    pub prefetch: usize,
    /// Distinct unreadable images after which [`Loader::next_batch`] fails.
    pub max_errors: usize,
    /// Whether the last samples of an epoch that do not fill a batch are left out; otherwise the last batch is filled
    /// up from the start of the same order.
    pub drop_last: bool,
    /// How image files are read.
    pub reading: Reading,
    /// Where decoded pixels are kept.
    pub cache: CacheConfig,
    /// Number of ranks that share every global batch.
    pub world: usize,
    /// The rank of this process, below `world`.
    pub rank: usize,
    /// Whether a rank takes its rows from both ends of every global batch, so that each row has its mirror image, with which mixup and
    /// CutMix mix it, in the same share. Asks for an even `batch` where there are several ranks.
    pub mirrored: bool,
}

impl LoaderConfig {
    /// A configuration with two workers, two batches ahead, at most 100 unreadable images, incomplete batches left out,
    /// scaled decoding, no cache and one rank.
    #[must_use]
    pub fn new(batch: usize, seed: u64, transform: Transform) -> Self {
        Self {
            batch,
            seed,
            transform,
            workers: 2,
            prefetch: 2,
            max_errors: 100,
            drop_last: true,
            reading: Reading::default(),
            cache: CacheConfig::default(),
            world: 1,
            rank: 0,
            mirrored: false,
        }
    }

    /// The row of the global batch that stands in a row of this rank's share.
    fn global_row(&self, row: usize) -> usize {
        if !self.mirrored || self.world == 1 {
            return self.rank * self.batch + row;
        }
        let half = self.batch / 2;
        if row < half {
            self.rank * half + row
        } else {
            self.batch * self.world - (self.rank + 1) * half + (row - half)
        }
    }

    fn validate(&self) -> Result<(), DataError> {
        self.transform.validate()?;
        if self.batch == 0 {
            return Err(DataError::config("batch", "at least 1", 0));
        }
        if self.world == 0 || self.rank >= self.world {
            return Err(DataError::config("rank", format!("a number below {} ranks", self.world), self.rank));
        }
        if self.mirrored && self.world > 1 && !self.batch.is_multiple_of(2) {
            return Err(DataError::config(
                "batch",
                "an even number, half from each end of the global batch",
                self.batch,
            ));
        }
        let values = self.batch.checked_mul(self.transform.values());
        if self.batch.checked_mul(self.world).is_none() || values.is_none_or(|v| v > isize::MAX as usize / 4) {
            return Err(DataError::config("batch", "a batch that fits into memory", self.batch));
        }
        Ok(())
    }
}

/// The position of a batch in the endless sequence of batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// The epoch, from 0.
    pub epoch: u64,
    /// The batch within the epoch, from 0.
    pub batch_index: u64,
}

/// Images and where they came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Normalised pixels, `[batch, channels, height, width]`.
    pub images: Vec<f32>,
    /// The sample of each row, an index into the source.
    pub samples: Vec<u64>,
    /// The number that keys the random choices of each row, unique within an epoch. It equals the sample, with two exceptions. Where
    /// an epoch visits a sample again to fill a batch, the n-th repetition has `sample + n * source.len()`; and where an unreadable
    /// image was replaced, the row keeps the draw of that image. So two copies of an image never get the same crop. Masks are best
    /// drawn with it too.
    pub draws: Vec<u64>,
    /// The row of the global batch that each row is; `0..batch` on a single rank.
    pub rows: Vec<usize>,
    /// The epoch, from 0.
    pub epoch: u64,
    /// The batch within the epoch, from 0.
    pub index_in_epoch: u64,
}

/// An endless sequence of batches, built ahead by threads.
///
/// An epoch visits the samples in a random order, a pure function of `(seed, epoch)`; rank r of w takes the r-th of w
/// slices of every global batch, or of each half of it ([`LoaderConfig::mirrored`]). A source smaller than a global batch is repeated to fill it. An unreadable image is
/// replaced by the next readable one in the order. Dropping the loader stops and joins its threads.
pub struct Loader {
    shared: Arc<Shared>,
    lanes: Vec<Lane>,
    /// Batches delivered.
    delivered: u64,
    /// Sequence number of the first batch.
    first: u64,
    skipped: BTreeMap<usize, Failure>,
    seen: Seen,
    waited: Duration,
    failed: bool,
}

/// Name and reason of an unreadable image.
type Failure = (String, String);

struct Lane {
    batches: Receiver<Built>,
    thread: JoinHandle<()>,
}

/// What a lane hands over: a batch, unless too much failed on the way.
struct Built {
    batch: Option<Batch>,
    /// Whether the image of each row had transparent pixels.
    transparent: Vec<bool>,
    trouble: Trouble,
}

/// How many images had transparent pixels that were composited on a background or whose alpha was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Transparency {
    /// Distinct images read so far.
    pub images: usize,
    /// Those of them with transparent pixels.
    pub transparent: usize,
}

/// Which samples were delivered.
#[derive(Default)]
struct Seen {
    /// A bit for each sample.
    samples: Vec<u64>,
    count: Transparency,
}

impl Seen {
    fn add(&mut self, sample: u64, transparent: bool) {
        let (word, bit) = ((sample / 64) as usize, 1 << (sample % 64));
        if self.samples.len() <= word {
            self.samples.resize(word + 1, 0);
        }
        if self.samples[word] & bit == 0 {
            self.samples[word] |= bit;
            self.count.images += 1;
            self.count.transparent += usize::from(transparent);
        }
    }
}

/// One row of a batch.
struct Row {
    sample: u64,
    draw: u64,
    transparent: bool,
}

/// What went wrong while a batch was built.
#[derive(Default)]
struct Trouble {
    /// Unreadable images, by their sample.
    unreadable: BTreeMap<usize, Failure>,
    /// The image whose reading panicked, and the panic's message.
    panic: Option<(String, String)>,
}

struct Shared {
    source: Arc<dyn Source>,
    config: LoaderConfig,
    batches_per_epoch: u64,
    cache: Option<Cache>,
    stop: AtomicBool,
    /// Buffers given back.
    spare: Mutex<Vec<Vec<f32>>>,
    /// The orders of the last epochs in use.
    orders: Mutex<Vec<(u64, Arc<[u64]>)>>,
}

impl Loader {
    /// Starts building batches from `start` on.
    ///
    /// # Errors
    /// [`DataError::Config`] for values that cannot work, [`DataError::NothingReadable`] for an empty source,
    /// [`DataError::Io`] when the system gives no threads.
    pub fn new(source: Arc<dyn Source>, config: LoaderConfig, start: Position) -> Result<Self, DataError> {
        config.validate()?;
        if source.is_empty() {
            return Err(DataError::NothingReadable { found: 0, examples: "the source is empty".into() });
        }
        let global = config.batch * config.world;
        let batches = if config.drop_last { source.len() / global } else { source.len().div_ceil(global) };
        let batches_per_epoch = batches.max(1) as u64;
        let first = start.epoch.saturating_mul(batches_per_epoch).saturating_add(start.batch_index);
        let workers = config.workers.max(1);
        let threads = (config.batch / ROWS_PER_THREAD).clamp(1, workers);
        let lane_count = workers.div_ceil(threads);
        let ahead = config.prefetch.div_ceil(lane_count);
        let cache = Cache::open(&config.cache, config.reading.scaled_decoding)?;
        let shared = Arc::new(Shared {
            source,
            config,
            batches_per_epoch,
            cache,
            stop: AtomicBool::new(false),
            spare: Mutex::default(),
            orders: Mutex::default(),
        });
        let mut loader = Self {
            shared,
            lanes: Vec::with_capacity(lane_count),
            delivered: 0,
            first,
            skipped: BTreeMap::new(),
            seen: Seen::default(),
            waited: Duration::ZERO,
            failed: false,
        };
        for lane in 0..lane_count as u64 {
            let (sender, batches) = sync_channel(ahead);
            let shared = Arc::clone(&loader.shared);
            let sequence = (first.saturating_add(lane)..).step_by(lane_count);
            let thread = std::thread::Builder::new()
                .name(format!("loader-{lane}"))
                .spawn(move || shared.run_lane(sequence, threads, &sender))
                .map_err(|e| DataError::io(std::path::Path::new("a thread"), e))?;
            loader.lanes.push(Lane { batches, thread });
        }
        Ok(loader)
    }

    /// The next batch; waits for it if need be.
    ///
    /// # Errors
    /// [`DataError::TooManyFailures`] once more than `max_errors` distinct images were unreadable,
    /// [`DataError::NothingReadable`] when no image at all can be read, [`DataError::Panicked`] for a panic outside the decoders
    /// (theirs make an image unreadable), [`DataError::Stopped`] after any of these.
    pub fn next_batch(&mut self) -> Result<Batch, DataError> {
        if self.failed {
            return Err(DataError::Stopped);
        }
        let lane = (self.delivered % self.lanes.len() as u64) as usize;
        let begin = Instant::now();
        let built = self.lanes[lane].batches.recv();
        self.waited += begin.elapsed();
        let Ok(Built { batch, transparent, trouble }) = built else {
            self.failed = true;
            return Err(DataError::Stopped);
        };
        self.skipped.extend(trouble.unreadable);
        let (found, limit) = (self.skipped.len(), self.shared.config.max_errors);
        let error = if let Some((image, message)) = trouble.panic {
            DataError::Panicked { image, message }
        } else if found > limit {
            DataError::TooManyFailures { found, limit, examples: examples(&self.skipped) }
        } else if let Some(batch) = batch {
            self.delivered += 1;
            batch.samples.iter().zip(transparent).for_each(|(&sample, transparent)| self.seen.add(sample, transparent));
            return Ok(batch);
        } else {
            DataError::NothingReadable { found, examples: examples(&self.skipped) }
        };
        self.failed = true;
        Err(error)
    }

    /// Gives a batch's memory back, to be used for a later one.
    pub fn recycle(&mut self, batch: Batch) {
        let mut spare = lock(&self.shared.spare);
        if spare.len() < self.lanes.len() + self.shared.config.prefetch {
            spare.push(batch.images);
        }
    }

    /// The position of the batch that [`next_batch`](Self::next_batch) will return next; starting there continues exactly.
    #[must_use]
    pub fn position(&self) -> Position {
        self.shared.position(self.first.saturating_add(self.delivered))
    }

    /// Number of batches of an epoch, at least 1.
    #[must_use]
    pub fn batches_per_epoch(&self) -> u64 {
        self.shared.batches_per_epoch
    }

    /// Total time that [`next_batch`](Self::next_batch) has waited, in seconds.
    #[must_use]
    pub fn wait_seconds(&self) -> f64 {
        self.waited.as_secs_f64()
    }

    /// How many of the images delivered so far had transparency that is gone. It does not depend on timing.
    #[must_use]
    pub fn transparency(&self) -> Transparency {
        self.seen.count
    }

    /// Names and reasons of the unreadable images met so far, each once, in the order of the source.
    #[must_use]
    pub fn skipped(&self) -> Vec<(String, String)> {
        self.skipped.values().cloned().collect()
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let (receivers, threads): (Vec<_>, Vec<_>) = self.lanes.drain(..).map(|l| (l.batches, l.thread)).unzip();
        // Closing the channels first wakes lanes that wait to hand over a batch.
        drop(receivers);
        for thread in threads {
            // A lane that panicked has nothing more to say; its panic was printed when it happened.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn position(&self, sequence: u64) -> Position {
        Position { epoch: sequence / self.batches_per_epoch, batch_index: sequence % self.batches_per_epoch }
    }

    fn run_lane(&self, sequence: impl Iterator<Item = u64>, threads: usize, sender: &SyncSender<Built>) {
        for number in sequence {
            let built = self.build(self.position(number), threads);
            let complete = built.batch.is_some();
            if self.stop.load(Ordering::Relaxed) || sender.send(built).is_err() || !complete {
                break;
            }
        }
    }

    /// The order of an epoch, computed once for all lanes.
    fn order(&self, epoch: u64) -> Arc<[u64]> {
        let mut orders = lock(&self.orders);
        if let Some((_, order)) = orders.iter().find(|(e, _)| *e == epoch) {
            return Arc::clone(order);
        }
        let mut order: Vec<u64> = (0..self.source.len() as u64).collect();
        Stream::new(self.config.seed, Purpose::Order, epoch, 0).shuffle(&mut order);
        let order: Arc<[u64]> = order.into();
        // Lanes are at most one epoch apart, unless an epoch is shorter than the number of lanes.
        if orders.len() >= 2 {
            orders.remove(0);
        }
        orders.push((epoch, Arc::clone(&order)));
        order
    }

    fn build(&self, position: Position, threads: usize) -> Built {
        let order = self.order(position.epoch);
        let values = self.config.transform.values();
        let batch = self.config.batch;
        let mut images = lock(&self.spare).pop().unwrap_or_default();
        images.resize(batch * values, 0.0);
        let mut rows: Vec<Option<Row>> = (0..batch).map(|_| None).collect();
        let trouble = Mutex::new(Trouble::default());
        let work = Mutex::new(images.chunks_exact_mut(values).zip(&mut rows).enumerate());
        let fill = || {
            let mut scratch = Scratch::take();
            loop {
                let Some((row, (out, filled))) = lock(&work).next() else { break };
                *filled = self.fill_row(position, row, &order, &trouble, &mut scratch, out);
                if filled.is_none() {
                    break;
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                // Without helpers (the system may refuse threads) the lane fills the rows alone.
                let _ = std::thread::Builder::new().spawn_scoped(scope, fill);
            }
            fill();
        });
        let rows: Vec<Row> = rows.into_iter().flatten().collect();
        let batch = (rows.len() == batch).then(|| {
            let (samples, draws) = rows.iter().map(|row| (row.sample, row.draw)).unzip();
            let places = (0..batch).map(|row| self.config.global_row(row)).collect();
            Batch { images, samples, draws, rows: places, epoch: position.epoch, index_in_epoch: position.batch_index }
        });
        let transparent = rows.iter().map(|row| row.transparent).collect();
        Built { batch, transparent, trouble: trouble.into_inner().unwrap_or_else(PoisonError::into_inner) }
    }

    /// Fills one row from the first readable sample at or after its place in the order. `None`
    /// when the loader stops, when too many images failed or reading one panicked, or when nothing is readable.
    fn fill_row(
        &self,
        position: Position,
        row: usize,
        order: &[u64],
        trouble: &Mutex<Trouble>,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) -> Option<Row> {
        let Self { source, config, cache, .. } = self;
        let LoaderConfig { transform, reading, .. } = config;
        let reader = Reader { source: &**source, transform, reading: *reading, cache: cache.as_ref() };
        let len = order.len() as u64;
        let global = (config.batch * config.world) as u64;
        let place = position.batch_index * global + config.global_row(row) as u64;
        // The draw belongs to the row: an image that replaces an unreadable one is in this epoch a second time, and gets another crop.
        let draw = order[(place % len) as usize] + place / len * len;
        for step in 0..len {
            if self.stop.load(Ordering::Relaxed) || lock(trouble).unreadable.len() > config.max_errors {
                return None;
            }
            let sample = order[((place + step) % len) as usize];
            let mut stream = Stream::new(config.seed, Purpose::Augment, position.epoch, draw);
            // Buffers that a panic leaves half filled are filled anew by the next use, and this batch is not delivered.
            let filled = catch_unwind(AssertUnwindSafe(|| {
                let mut transparent = false;
                transform.random_through(&mut stream, out, |transform, choose, out| {
                    transparent = Reader { transform, ..reader }.fill(sample as usize, choose, scratch, out)?;
                    Ok(())
                })?;
                Ok::<bool, DataError>(transparent)
            }));
            let name = || source.name(sample as usize);
            match filled {
                Ok(Ok(transparent)) => return Some(Row { sample, draw, transparent }),
                Ok(Err(error)) => {
                    lock(trouble).unreadable.insert(sample as usize, (name(), error.to_string()));
                }
                Err(panic) => {
                    lock(trouble).panic.get_or_insert_with(|| (name(), message(&*panic)));
                    return None;
                }
            }
        }
        None
    }
}

/// Transforms images without randomness, in the order of `indices`: row i of `out`, of shape
/// `[indices.len(), channels, height, width]`, is the centred view of image `indices[i]`.
///
/// Returns the rows that could not be read with their errors, sorted; those rows are filled with zeros.
///
/// # Errors
/// [`DataError::Config`] when the transform cannot work or `out` has the wrong length.
pub fn load_centered(
    source: &dyn Source,
    indices: &[usize],
    transform: &Transform,
    threads: usize,
    out: &mut [f32],
) -> Result<Vec<(usize, DataError)>, DataError> {
    transform.validate()?;
    let values = transform.values();
    if indices.len().checked_mul(values) != Some(out.len()) {
        let expected = format!("{} images of {values} values", indices.len());
        return Err(DataError::config("output", expected, out.len()));
    }
    let failures = Mutex::new(Vec::new());
    let work = Mutex::new(out.chunks_exact_mut(values).zip(indices).enumerate());
    // Evaluation is exact: figures of two runs must not differ by how their images were read.
    let reader = Reader { source, transform, reading: Reading { scaled_decoding: false }, cache: None };
    let fill = || {
        let mut scratch = Scratch::take();
        loop {
            let Some((row, (out, &index))) = lock(&work).next() else { break };
            let filled = transform.centered_through(out, |transform, choose, out| {
                Reader { transform, ..reader }.fill(index, choose, &mut scratch, out).map(drop)
            });
            if let Err(error) = filled {
                out.fill(0.0);
                lock(&failures).push((row, error));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.clamp(1, indices.len().max(1)) {
            let _ = std::thread::Builder::new().spawn_scoped(scope, fill);
        }
        fill();
    });
    let mut failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    failures.sort_by_key(|(row, _)| *row);
    Ok(failures)
}

/// What a panic says.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it says nothing".into())
}

fn examples(failures: &BTreeMap<usize, Failure>) -> String {
    let named: Vec<String> = failures.values().take(NAMED_FAILURES).map(|(_, reason)| reason.clone()).collect();
    let more = failures.len().saturating_sub(named.len());
    let rest = if more > 0 { format!("; and {more} more") } else { String::new() };
    named.join("; ") + &rest
}

/// Locks; a poisoned lock is taken over, since what it guards is never left half-written.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
