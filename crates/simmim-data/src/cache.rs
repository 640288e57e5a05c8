//! Decoded pixels, kept in memory or on disk from the first epoch on.
//!
//! An entry belongs to a file of a certain length and time of modification; after a change it is made anew. What is
//! kept is exactly what decoding gives, or a smaller form of it, so that a cache changes the speed and nothing else. Nothing is thrown out:
//! every epoch visits every image once, and the image that was used longest ago is the one that is needed next.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use crate::loader::lock;
use crate::{Background, Channels, DataError};
use simmim_files::AtomicFile;

/// Where decoded pixels are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheKind {
    /// Nowhere.
    #[default]
    None,
    /// In memory, for this run.
    Memory,
    /// In files, for all runs.
    Disk,
}

/// What a [`Cache`] keeps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CacheConfig {
    /// Where.
    pub kind: CacheKind,
    /// Pixels of the shorter side that images are reduced to; 0 keeps all pixels.
    pub size: usize,
    /// Largest sum of all entries, in bytes. What does not fit is decoded anew every time.
    pub limit: u64,
    /// The folder of [`CacheKind::Disk`]; empty: `simmim` in the user's cache folder.
    pub path: PathBuf,
}

/// Size and EXIF orientation of kept pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) orientation: u8,
    /// What was done with the transparency of the image; `None` where there was none, and the pixels serve any background.
    pub(crate) background: Option<Background>,
}

impl Layout {
    /// Whether these pixels are what an image on this background has.
    fn fits(self, background: Background) -> bool {
        self.background.is_none_or(|own| own == background)
    }

    /// Number of the background in a file.
    fn background_code(self) -> u32 {
        match self.background {
            None => 0,
            Some(Background::Drop) => 1,
            Some(Background::Color([r, g, b])) => u32::from_be_bytes([1, r, g, b]),
        }
    }

    fn background_of(code: u32) -> Option<Background> {
        match code.to_be_bytes() {
            [0, 0, 0, 0] => None,
            [1, r, g, b] => Some(Background::Color([r, g, b])),
            _ => Some(Background::Drop),
        }
    }
}

/// What tells whether a file is still the same: length, seconds and nanoseconds of its last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    length: u64,
    modified: Duration,
}

impl Stamp {
    pub(crate) fn of(path: &Path) -> Result<Self, DataError> {
        let metadata = fs::metadata(path).map_err(|e| DataError::io(path, e))?;
        // Systems without times, and times before 1970, leave the length.
        let modified = metadata.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        Ok(Self { length: metadata.len(), modified })
    }
}

/// An entry in memory.
pub(crate) struct Entry {
    stamp: Stamp,
    pub(crate) layout: Layout,
    pub(crate) pixels: Box<[u8]>,
}

/// Kept pixels.
pub(crate) enum Hit {
    Memory(Arc<Entry>),
    /// Where the pixels lie in the buffer.
    Disk(Layout, Range<usize>),
}

/// Decoded pixels of a source, bounded in bytes.
pub struct Cache {
    size: usize,
    limit: u64,
    used: AtomicU64,
    store: Store,
}

enum Store {
    /// By the index of the sample, in parts that have locks of their own.
    Memory(Vec<Mutex<HashMap<usize, Arc<Entry>>>>),
    Disk {
        folder: PathBuf,
        /// What else decides over the pixels: the form and how it was made.
        form: u32,
    },
}

const PARTS: usize = 64;

impl Cache {
    /// Opens a cache; `None` where there is to be none. `scaled_decoding` as in [`Reading`](crate::Reading): it
    /// changes the pixels of reduced images a little.
    ///
    /// # Errors
    /// [`DataError::Io`] when the folder cannot be made or read, [`DataError::Config`] when no folder is given and the
    /// system names none.
    pub fn open(config: &CacheConfig, scaled_decoding: bool) -> Result<Option<Self>, DataError> {
        let (store, used) = match config.kind {
            CacheKind::None => return Ok(None),
            CacheKind::Memory => (Store::Memory((0..PARTS).map(|_| Mutex::default()).collect()), 0),
            CacheKind::Disk => {
                let folder = if config.path.as_os_str().is_empty() { user_folder()? } else { config.path.clone() };
                fs::create_dir_all(&folder).map_err(|e| DataError::io(&folder, e))?;
                let used = disk_usage(&folder)?;
                let form = (config.size as u32) << 1 | u32::from(scaled_decoding && config.size > 0);
                (Store::Disk { folder, form }, used)
            }
        };
        Ok(Some(Self { size: config.size, limit: config.limit, used: AtomicU64::new(used), store }))
    }

    /// The shorter side of kept images, 0 for all pixels.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Bytes in use.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The entry of a sample, if its file is still the same. `buffer` receives what is read from disk.
    pub(crate) fn get(
        &self,
        index: usize,
        path: &Path,
        stamp: Stamp,
        channels: Channels,
        buffer: &mut Vec<u8>,
    ) -> Option<Hit> {
        let Channels { count, background } = channels;
        match &self.store {
            Store::Memory(parts) => {
                let mut part = lock(&parts[index % PARTS]);
                let entry = part.get(&index)?;
                if entry.stamp == stamp && entry.layout.fits(background) {
                    return Some(Hit::Memory(Arc::clone(entry)));
                }
                let old = part.remove(&index)?;
                self.release(old.pixels.len() as u64);
                None
            }
            Store::Disk { folder, form } => {
                let key = Key::new(path, *form, count);
                let place = key.place(folder);
                let mut file = File::open(&place).ok()?;
                let length = file.metadata().ok()?.len();
                let found = read_entry(&mut file, length, &key, stamp, count, buffer)
                    .filter(|(layout, _)| layout.fits(background));
                if found.is_none() {
                    // Of a changed file, on another background, damaged, or of another file with the same hash: to be made anew.
                    if fs::remove_file(&place).is_ok() {
                        self.release(length);
                    }
                }
                found.map(|(layout, range)| Hit::Disk(layout, range))
            }
        }
    }

    /// Keeps pixels if there is room. A full disk or a folder that cannot be written is no error: the pixels are there,
    /// and the next epoch decodes them again.
    pub(crate) fn put(&self, index: usize, path: &Path, stamp: Stamp, channels: usize, layout: Layout, pixels: &[u8]) {
        match &self.store {
            Store::Memory(parts) => {
                if !self.reserve(pixels.len() as u64) {
                    return;
                }
                let entry = Arc::new(Entry { stamp, layout, pixels: pixels.into() });
                if let Some(old) = lock(&parts[index % PARTS]).insert(index, entry) {
                    self.release(old.pixels.len() as u64);
                }
            }
            Store::Disk { folder, form } => {
                let key = Key::new(path, *form, channels);
                let head = key.head(stamp, layout, channels, pixels);
                let bytes = (head.len() + pixels.len()) as u64;
                let place = key.place(folder);
                // Where two samples or two runs put the same file, it is counted once.
                let old = fs::metadata(&place).map_or(0, |m| m.len());
                if self.reserve(bytes) {
                    match write_entry(&place, &head, pixels) {
                        Ok(()) => self.release(old),
                        Err(_) => self.release(bytes),
                    }
                }
            }
        }
    }

    fn reserve(&self, bytes: u64) -> bool {
        let add = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }

    fn release(&self, bytes: u64) {
        let subtract = |used: u64| Some(used.saturating_sub(bytes));
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, subtract);
    }
}

/// The place for caches that the system names.
fn user_folder() -> Result<PathBuf, DataError> {
    let named = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    named("XDG_CACHE_HOME")
        .or_else(|| named("HOME").map(|home| home.join(".cache")))
        .or_else(|| named("LOCALAPPDATA"))
        .map(|folder| folder.join("simmim"))
        .ok_or_else(|| DataError::config("data.cache_path", "a folder, as the system names none", "nothing"))
}

const MAGIC: [u8; 8] = *b"simmimpx";
const VERSION: u32 = 2;
/// Magic number, version, checksum of all that follows.
const SEAL: usize = 16;
/// The seal, then length, time (seconds, nanoseconds), form, channels, width, height, orientation, background, length of the path.
const FIXED: usize = SEAL + 8 + 8 + 4 + 7 * 4;
const EXTENSION: &str = "pixels";

/// What an entry on disk is found by.
struct Key {
    path: PathBuf,
    form: u32,
    hash: u64,
}

impl Key {
    fn new(path: &Path, form: u32, channels: usize) -> Self {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        // FNV-1a; two paths with one hash only displace each other.
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        let settings = form.to_le_bytes().into_iter().chain((channels as u32).to_le_bytes());
        for byte in path.as_os_str().as_encoded_bytes().iter().copied().chain(settings) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Self { path, form, hash }
    }

    fn place(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{:02x}", self.hash >> 56)).join(format!("{:016x}.{EXTENSION}", self.hash))
    }

    fn name(&self) -> &[u8] {
        self.path.as_os_str().as_encoded_bytes()
    }

    /// All that comes before the pixels.
    fn head(&self, stamp: Stamp, layout: Layout, channels: usize, pixels: &[u8]) -> Vec<u8> {
        let mut head = Vec::with_capacity(FIXED + self.name().len());
        head.extend(MAGIC);
        head.extend(VERSION.to_le_bytes());
        head.extend([0; 4]);
        head.extend(stamp.length.to_le_bytes());
        head.extend(stamp.modified.as_secs().to_le_bytes());
        head.extend(stamp.modified.subsec_nanos().to_le_bytes());
        let numbers = [
            self.form,
            channels as u32,
            layout.width as u32,
            layout.height as u32,
            u32::from(layout.orientation),
            layout.background_code(),
            self.name().len() as u32,
        ];
        numbers.iter().for_each(|n| head.extend(n.to_le_bytes()));
        head.extend(self.name());
        let sum = crc32c::crc32c_append(crc32c::crc32c(&head[SEAL..]), pixels);
        head[SEAL - 4..SEAL].copy_from_slice(&sum.to_le_bytes());
        head
    }
}

/// Reads and checks an entry; `None` for anything but a whole one of this key and stamp.
fn read_entry(
    file: &mut File,
    length: u64,
    key: &Key,
    stamp: Stamp,
    channels: usize,
    buffer: &mut Vec<u8>,
) -> Option<(Layout, Range<usize>)> {
    let length = usize::try_from(length).ok().filter(|&l| l >= FIXED)?;
    buffer.resize(buffer.len().max(length), 0);
    let entry = &mut buffer[..length];
    file.read_exact(entry).ok()?;
    let word = |at: usize| entry.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let (width, height) = (word(SEAL + 28)?, word(SEAL + 32)?);
    let (orientation, background) = (word(SEAL + 36)? as u8, Layout::background_of(word(SEAL + 40)?));
    let layout = Layout { width: width as usize, height: height as usize, orientation, background };
    let start = FIXED + word(SEAL + 44)? as usize;
    let pixels = entry.get(start..)?;
    // A head made for what is asked and the pixels at hand must be the one at hand, checksum and all.
    let same = pixels.len() as u64 == u64::from(width) * u64::from(height) * channels as u64
        && key.head(stamp, layout, channels, pixels) == entry[..start];
    same.then_some((layout, start..length))
}

/// Writes an entry so that readers meet a whole one or none.
fn write_entry(place: &Path, head: &[u8], pixels: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = place.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = AtomicFile::create(place)?;
    file.write_all(head)?;
    file.write_all(pixels)?;
    // After a loss of power the checksum tells, and the pixels are made anew.
    file.commit_unsynced()
}

/// Bytes of all entries in a folder. Removes what killed runs left unfinished.
fn disk_usage(folder: &Path) -> Result<u64, DataError> {
    let mut used = 0;
    for part in fs::read_dir(folder).map_err(|e| DataError::io(folder, e))?.flatten() {
        let name = part.file_name();
        let ours = name.len() == 2 && name.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit);
        let Some(files) = ours.then(|| fs::read_dir(part.path()).ok()).flatten() else { continue };
        for file in files.flatten() {
            let (path, Ok(metadata)) = (file.path(), file.metadata()) else { continue };
            if path.extension().is_some_and(|e| e == EXTENSION) {
                used += metadata.len();
            } else if simmim_files::is_abandoned(&path, &metadata) {
                let _ = fs::remove_file(path);
            }
        }
    }
    Ok(used)
}
