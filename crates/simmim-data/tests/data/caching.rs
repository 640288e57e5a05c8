//! Caches: the same pixels, bounded, and safe against changes and interruptions.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use simmim_data::source::open;
use simmim_data::{
    Batch, Cache, CacheConfig, CacheKind, DataError, Image, Loader, LoaderConfig, Pixels, Position, Source, Transform,
    Transparency,
};

use crate::{encode, fixtures, pattern};

/// JPEGs (one of them sideways, one progressive), two PNGs (one transparent), and one with 16 bits, which no cache keeps.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (from, name) in [
        ("jpeg", "420.jpg"),
        ("jpeg", "photo.jpg"),
        ("jpeg", "gray.jpg"),
        ("formats", "sideways.jpg"),
        ("formats", "progressive.jpg"),
        ("formats", "rgb.png"),
        ("formats", "alpha.png"),
        ("formats", "gray16.png"),
    ] {
        std::fs::copy(fixtures(from).join(name), folder.path().join(name)).unwrap();
    }
    folder
}

fn config(cache: CacheConfig) -> LoaderConfig {
    let mut config = LoaderConfig::new(4, 3, Transform::new((20, 24), 3));
    config.reading.scaled_decoding = false;
    config.drop_last = false;
    config.max_errors = 0;
    LoaderConfig { cache, ..config }
}

fn take(source: &Arc<dyn Source>, config: &LoaderConfig, start: Position, count: usize) -> Vec<Batch> {
    let mut loader = Loader::new(Arc::clone(source), config.clone(), start).unwrap();
    (0..count).map(|_| loader.next_batch().unwrap()).collect()
}

fn cache(kind: CacheKind, size: usize, limit: u64, path: &Path) -> CacheConfig {
    CacheConfig { kind, size, limit, path: path.to_owned() }
}

/// The files of a disk cache.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let parts = std::fs::read_dir(folder).unwrap().map(|part| part.unwrap().path());
    let mut files: Vec<PathBuf> =
        parts.flat_map(|part| std::fs::read_dir(part).unwrap().map(|file| file.unwrap().path())).collect();
    files.sort();
    files
}

#[test]
fn caches_give_the_same_pixels_as_none() {
    let folder = folder();
    let source: Arc<dyn Source> = open(folder.path()).unwrap().into();
    let disk = tempfile::tempdir().unwrap();
    let expected = take(&source, &config(CacheConfig::default()), Position::default(), 9);
    // Room for everything, for something, for nothing.
    for limit in [1 << 30, 60_000, 0] {
        for kind in [CacheKind::Memory, CacheKind::Disk] {
            let folder = disk.path().join(limit.to_string());
            let config = config(cache(kind, 0, limit, &folder));
            for workers in [1, 3] {
                let config = LoaderConfig { workers, ..config.clone() };
                assert_eq!(take(&source, &config, Position::default(), 9), expected, "{kind:?} {limit}");
            }
        }
    }
    assert_eq!(entries(&disk.path().join((1u64 << 30).to_string())).len(), 7);
}

#[test]
fn runs_on_different_backgrounds_share_a_cache_without_mixing() {
    let folder = folder();
    let source: Arc<dyn Source> = open(folder.path()).unwrap().into();
    let disk = tempfile::tempdir().unwrap();
    let on = |cache: CacheConfig, background: &str| {
        let mut config = config(cache);
        config.transform.background = background.parse().unwrap();
        let mut loader = Loader::new(Arc::clone(&source), config, Position::default()).unwrap();
        let batches: Vec<Batch> = (0..6).map(|_| loader.next_batch().unwrap()).collect();
        assert_eq!(loader.transparency(), Transparency { images: 8, transparent: 1 }, "{background}");
        batches
    };
    let mut all = Vec::new();
    for background in ["white", "#3060c0", "drop", "white"] {
        let expected = on(CacheConfig::default(), background);
        for kind in [CacheKind::Memory, CacheKind::Disk] {
            assert_eq!(on(cache(kind, 0, 1 << 30, disk.path()), background), expected, "{kind:?} on {background}");
        }
        all.push(expected);
    }
    assert!(all[0] != all[1] && all[1] != all[2] && all[0] == all[3]);
    assert_eq!(entries(disk.path()).len(), 7);
}

#[test]
fn a_resumed_run_sees_what_an_uninterrupted_one_sees() {
    let folder = folder();
    let source: Arc<dyn Source> = open(folder.path()).unwrap().into();
    for kind in [CacheKind::None, CacheKind::Memory, CacheKind::Disk] {
        for (size, scaled) in [(0, false), (0, true), (40, false), (40, true)] {
            let disk = tempfile::tempdir().unwrap();
            let mut config = config(cache(kind, size, 100_000, disk.path()));
            config.reading.scaled_decoding = scaled;
            let whole = take(&source, &config, Position::default(), 9);
            let rest = take(&source, &config, Position { epoch: 2, batch_index: 1 }, 4);
            assert_eq!(whole[5..], rest, "{kind:?} {size} {scaled}");
            std::fs::remove_dir_all(disk.path()).unwrap();
            let rest = take(&source, &config, Position { epoch: 2, batch_index: 1 }, 4);
            assert_eq!(whole[5..], rest, "{kind:?} {size} {scaled}, cache lost");
        }
    }
}

#[test]
fn a_limit_is_kept() {
    let folder = folder();
    let source: Arc<dyn Source> = open(folder.path()).unwrap().into();
    let disk = tempfile::tempdir().unwrap();
    for size in [0, 16] {
        let cached = cache(CacheKind::Disk, size, 40_000, disk.path());
        take(&source, &config(cached.clone()), Position::default(), 9);
        let bytes: u64 = entries(disk.path()).iter().map(|file| file.metadata().unwrap().len()).sum();
        assert!(bytes > 0 && bytes <= 40_000, "{bytes}");
        assert_eq!(Cache::open(&cached, false).unwrap().unwrap().used(), bytes);
    }
}

#[test]
fn changed_files_are_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    let disk = tempfile::tempdir().unwrap();
    let plain = |value: u8| Image { pixels: Pixels::U8(vec![value; 48]), ..pattern(4, 4, 3, 0) };
    let write = |value: u8, seconds: u64| {
        // Renamed into place, so that no reader sees half of it.
        let aside = disk.path().join("aside.tmp");
        std::fs::write(&aside, encode(&plain(value), image::ImageFormat::Png)).unwrap();
        // Of the same length; only the time of the change tells.
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        std::fs::File::options().write(true).open(&aside).unwrap().set_modified(time).unwrap();
        std::fs::rename(&aside, &path).unwrap();
    };
    for kind in [CacheKind::Memory, CacheKind::Disk] {
        write(10, 1_000_000);
        let source: Arc<dyn Source> = open(folder.path()).unwrap().into();
        let config = LoaderConfig { batch: 1, prefetch: 0, ..config(cache(kind, 0, 1 << 20, disk.path())) };
        let mut loader = Loader::new(source, config, Position::default()).unwrap();
        let first = loader.next_batch().unwrap().images;
        write(200, 2_000_000);
        // A few batches may have been built before the change.
        let mut after = Vec::new();
        for _ in 0..16 {
            after = loader.next_batch().unwrap().images;
        }
        assert!(after[0] > first[0] + 1.0, "{kind:?}: {} {}", first[0], after[0]);
    }
    assert_eq!(entries(disk.path()).len(), 1);
}

#[test]
fn damaged_entries_and_remains_of_killed_runs_are_made_anew() {
    let folder = folder();
    let source: Arc<dyn Source> = open(folder.path()).unwrap().into();
    let disk = tempfile::tempdir().unwrap();
    let config = config(cache(CacheKind::Disk, 0, 1 << 30, disk.path()));
    let expected = take(&source, &config, Position::default(), 6);
    let files = entries(disk.path());
    type Damage = fn(&mut Vec<u8>);
    let damages: [Damage; 6] = [
        |bytes| bytes.truncate(bytes.len() / 2),
        Vec::clear,
        |bytes| *bytes.last_mut().unwrap() ^= 1,
        |bytes| bytes[20] ^= 1,
        |bytes| bytes.extend([0; 9]),
        |bytes| bytes.fill(0xff),
    ];
    for damage in damages {
        for file in &files {
            let mut bytes = std::fs::read(file).unwrap();
            damage(&mut bytes);
            std::fs::write(file, bytes).unwrap();
        }
        assert_eq!(take(&source, &config, Position::default(), 6), expected);
    }
    // What a write leaves when it is interrupted is never read, and removed once it is old.
    let remains = files[0].with_extension("1-0.unfinished");
    std::fs::write(&remains, "half").unwrap();
    assert_eq!(take(&source, &config, Position::default(), 6), expected);
    assert!(remains.exists());
    let old = SystemTime::now() - Duration::from_secs(7200);
    std::fs::File::options().write(true).open(&remains).unwrap().set_modified(old).unwrap();
    assert_eq!(take(&source, &config, Position::default(), 6), expected);
    assert!(!remains.exists());
    assert_eq!(entries(disk.path()), files);
}

#[test]
fn a_folder_that_cannot_be_made_is_an_error() {
    let folder = folder();
    let source: Arc<dyn Source> = open(folder.path()).unwrap().into();
    let path = folder.path().join("420.jpg");
    let error = Loader::new(source, config(cache(CacheKind::Disk, 0, 1, &path)), Position::default()).err().unwrap();
    assert!(matches!(error, DataError::Io { .. }) && error.to_string().contains("420.jpg"), "{error}");
}
