//! The loader: determinism, resumption, repetition, ranks, damaged files, shutdown.

use std::collections::BTreeSet;
use std::sync::Arc;

use simmim_data::source::open;
use simmim_data::{
    Background, Batch, Channels, DataError, Image, Loader, LoaderConfig, Position, Source, Transform, Transparency,
    demo_held_out, load_centered,
};

use crate::{encode_png, folder_of, pattern};

fn config(batch: usize) -> LoaderConfig {
    let mut config = LoaderConfig::new(batch, 11, Transform::new((6, 8), 3));
    config.max_errors = 0;
    config
}

fn take(source: &Arc<dyn Source>, config: &LoaderConfig, start: Position, count: usize) -> Vec<Batch> {
    let mut loader = Loader::new(Arc::clone(source), config.clone(), start).unwrap();
    (0..count).map(|_| loader.next_batch().unwrap()).collect()
}

#[test]
fn batches_do_not_depend_on_threads() {
    let folder = folder_of(23);
    let source: Arc<dyn Source> = open(folder.path()).unwrap().into();
    for (batch, drop_last) in [(4, true), (4, false), (40, true), (17, false)] {
        let base = LoaderConfig { drop_last, workers: 1, prefetch: 0, ..config(batch) };
        let expected = take(&source, &base, Position::default(), 14);
        for (workers, prefetch) in [(2, 1), (5, 3), (0, 8)] {
            let other = LoaderConfig { workers, prefetch, ..base.clone() };
            assert_eq!(take(&source, &other, Position::default(), 14), expected, "{workers} workers, batch {batch}");
        }
    }
}

#[test]
fn resuming_continues_exactly() {
    let folder = folder_of(23);
    let source: Arc<dyn Source> = open(folder.path()).unwrap().into();
    let config = LoaderConfig { workers: 5, drop_last: false, ..config(4) };
    let expected = take(&source, &config, Position::default(), 15);
    for done in 0..15 {
        let mut loader = Loader::new(Arc::clone(&source), config.clone(), Position::default()).unwrap();
        for batch in &expected[..done] {
            assert_eq!(&loader.next_batch().unwrap(), batch);
        }
        let position = loader.position();
        let next = &expected[done];
        assert_eq!((position.epoch, position.batch_index), (next.epoch, next.index_in_epoch));
        assert_eq!(take(&source, &config, position, 15 - done), expected[done..]);
    }
}

#[test]
fn epochs_are_permutations_that_differ() {
    let source: Arc<dyn Source> = Arc::new(demo_held_out().unwrap());
    let config = LoaderConfig { transform: Transform::new((4, 4), 1), ..config(100) };
    let batches = take(&source, &config, Position::default(), 20);
    let epoch = |e: usize| batches[e * 10..(e + 1) * 10].iter().flat_map(|b| b.samples.clone()).collect::<Vec<u64>>();
    for e in 0..2 {
        assert_eq!(epoch(e).into_iter().collect::<BTreeSet<_>>(), (0..1000).collect());
        assert!(batches[e * 10..].iter().take(10).all(|b| b.epoch == e as u64 && b.draws == b.samples));
    }
    assert_ne!(epoch(0), epoch(1));
    let other = LoaderConfig { seed: 12, ..config };
    assert_ne!(take(&source, &other, Position::default(), 1)[0].samples, batches[0].samples);
}

#[test]
fn small_sources_repeat_with_other_crops() {
    let folder = folder_of(3);
    let source: Arc<dyn Source> = open(folder.path()).unwrap().into();
    let loader = Loader::new(Arc::clone(&source), config(8), Position::default()).unwrap();
    assert_eq!(loader.batches_per_epoch(), 1);
    let batch = &take(&source, &config(8), Position::default(), 1)[0];
    assert_eq!(batch.images.len(), 8 * 3 * 6 * 8);
    assert_eq!(batch.samples[..3], batch.samples[3..6]);
    assert!(batch.draws.iter().collect::<BTreeSet<_>>().len() == 8);
    assert!(batch.draws.iter().zip(&batch.samples).all(|(draw, sample)| draw % 3 == *sample));
    let row = |i: usize| &batch.images[i * 144..(i + 1) * 144];
    assert!((0..3).any(|i| row(i) != row(i + 3)));
}

#[test]
fn ranks_share_the_global_batch() {
    let folder = folder_of(23);
    let source: Arc<dyn Source> = open(folder.path()).unwrap().into();
    let whole = take(&source, &config(6), Position::default(), 7);
    let ranks: Vec<Vec<Batch>> = (0..3)
        .map(|rank| take(&source, &LoaderConfig { world: 3, rank, ..config(2) }, Position::default(), 7))
        .collect();
    for (i, global) in whole.iter().enumerate() {
        let images: Vec<f32> = ranks.iter().flat_map(|r| r[i].images.clone()).collect();
        assert_eq!(images, global.images);
    }
}

#[test]
fn damaged_files_are_replaced_and_named_once() {
    let folder = folder_of(12);
    for name in ["003.png", "007.png"] {
        std::fs::write(folder.path().join(name), "damaged").unwrap();
    }
    let source: Arc<dyn Source> = open(folder.path()).unwrap().into();
    let base = LoaderConfig { max_errors: 2, ..config(5) };
    let expected = take(&source, &base, Position::default(), 9);
    for workers in [1, 2, 5] {
        let config = LoaderConfig { workers, ..base.clone() };
        let mut loader = Loader::new(Arc::clone(&source), config, Position::default()).unwrap();
        for batch in &expected {
            let got = loader.next_batch().unwrap();
            assert_eq!(&got, batch);
            assert!(!got.samples.contains(&3) && !got.samples.contains(&7));
            loader.recycle(got);
        }
        let skipped = loader.skipped();
        let names: Vec<&str> = skipped.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["003.png", "007.png"]);
        assert!(skipped[0].1.contains("damaged"), "{skipped:?}");
    }
}

#[test]
fn a_replacement_gets_a_crop_of_its_own() {
    let folder = folder_of(8);
    std::fs::write(folder.path().join("003.png"), "damaged").unwrap();
    let source: Arc<dyn Source> = open(folder.path()).unwrap().into();
    let config = LoaderConfig { max_errors: 1, ..config(8) };
    for batch in take(&source, &config, Position::default(), 6) {
        let draws: BTreeSet<u64> = batch.draws.iter().copied().collect();
        assert_eq!(draws, (0..8).collect(), "every row has the draw of its own place in the order");
        let twice = batch.draws.iter().position(|&draw| draw == 3).unwrap();
        let once = (0..8).find(|&row| row != twice && batch.samples[row] == batch.samples[twice]).unwrap();
        let row = |i: usize| &batch.images[i * 144..(i + 1) * 144];
        assert_ne!(row(once), row(twice), "the same crop twice");
    }
}

#[test]
fn transparent_images_are_counted_once_each() {
    let folder = folder_of(9);
    for i in [1, 4, 5] {
        // Alpha of `pattern` is below opaque everywhere.
        std::fs::write(folder.path().join(format!("{i:03}.png")), encode_png(&pattern(9, 7, 4, i))).unwrap();
    }
    let source: Arc<dyn Source> = open(folder.path()).unwrap().into();
    for workers in [1, 3] {
        let mut loader =
            Loader::new(Arc::clone(&source), LoaderConfig { workers, ..config(3) }, Position::default()).unwrap();
        let mut seen = BTreeSet::new();
        for _ in 0..7 {
            seen.extend(loader.next_batch().unwrap().samples);
            let transparent = seen.iter().filter(|sample| [1, 4, 5].contains(*sample)).count();
            assert_eq!(loader.transparency(), Transparency { images: seen.len(), transparent });
        }
        assert_eq!(loader.transparency(), Transparency { images: 9, transparent: 3 });
    }
    let mut kept = config(3);
    kept.transform = Transform { background: Background::Drop, ..Transform::new((6, 8), 4) };
    let only = Arc::new(simmim_data::source::Subset::new(source, vec![1, 4, 5]).unwrap());
    let mut loader = Loader::new(only, kept, Position::default()).unwrap();
    loader.next_batch().unwrap();
    assert_eq!(loader.transparency().transparent, 0, "four channels keep alpha");
}

/// A source whose fourth image panics.
struct Faulty;

impl Source for Faulty {
    fn len(&self) -> usize {
        40
    }

    fn name(&self, index: usize) -> String {
        format!("image {index}")
    }

    fn label(&self, _: usize) -> Option<usize> {
        None
    }

    fn class_names(&self) -> &[String] {
        &[]
    }

    fn load(&self, index: usize, channels: Channels) -> Result<Image, DataError> {
        assert!(index != 3, "index out of bounds: the len is {index}");
        Ok(pattern(9, 7, channels.count, index))
    }
}

#[test]
fn a_panic_is_named_with_its_image() {
    for (batch, workers) in [(4, 1), (4, 3), (40, 2)] {
        let config = LoaderConfig { workers, ..config(batch) };
        let mut loader = Loader::new(Arc::new(Faulty), config, Position::default()).unwrap();
        let error = (0..20).find_map(|_| loader.next_batch().err()).unwrap();
        assert_eq!(error.to_string(), "reading `image 3` panicked: index out of bounds: the len is 3");
        assert!(error.help().unwrap().contains("report it"));
        assert!(matches!(loader.next_batch(), Err(DataError::Stopped)));
    }
}

#[test]
fn too_many_damaged_files_stop_the_loader_at_the_same_batch() {
    let folder = folder_of(40);
    for i in 0..4 {
        std::fs::write(folder.path().join(format!("{:03}.png", i * 9)), "damaged").unwrap();
    }
    let source: Arc<dyn Source> = open(folder.path()).unwrap().into();
    let ends: Vec<usize> = [1, 2, 5]
        .into_iter()
        .map(|workers| {
            let config = LoaderConfig { workers, max_errors: 2, ..config(4) };
            let mut loader = Loader::new(Arc::clone(&source), config, Position::default()).unwrap();
            for delivered in 0.. {
                if let Err(error) = loader.next_batch() {
                    assert!(matches!(error, DataError::TooManyFailures { found: 3.., limit: 2, .. }), "{error}");
                    assert!(error.to_string().contains(".png") && error.help().is_some(), "{error}");
                    assert!(matches!(loader.next_batch(), Err(DataError::Stopped)));
                    return delivered;
                }
            }
            unreachable!()
        })
        .collect();
    assert!(ends.iter().all(|&end| end == ends[0]), "{ends:?}");
}

#[test]
fn nothing_readable_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.jpg", "b.png"] {
        std::fs::write(folder.path().join(name), "damaged").unwrap();
    }
    let source: Arc<dyn Source> = open(folder.path()).unwrap().into();
    let config = LoaderConfig { max_errors: 100, ..config(40) };
    let mut loader = Loader::new(source, config, Position::default()).unwrap();
    let error = loader.next_batch().unwrap_err();
    assert!(matches!(error, DataError::NothingReadable { found: 2, .. }), "{error}");
}

#[test]
fn impossible_configurations_are_refused() {
    let folder = folder_of(2);
    let source: Arc<dyn Source> = open(folder.path()).unwrap().into();
    let cases = [
        LoaderConfig { batch: 0, ..config(1) },
        LoaderConfig { world: 0, ..config(1) },
        LoaderConfig { world: 2, rank: 2, ..config(1) },
        config(usize::MAX),
        LoaderConfig { transform: Transform::new((0, 4), 3), ..config(1) },
    ];
    for case in cases {
        let error = Loader::new(Arc::clone(&source), case, Position::default()).err().unwrap();
        assert!(matches!(error, DataError::Config { .. }), "{error}");
    }
}

#[test]
fn dropping_joins_at_any_moment() {
    let folder = folder_of(5);
    let source: Arc<dyn Source> = open(folder.path()).unwrap().into();
    for (workers, taken) in [(1, 0), (2, 1), (5, 3), (8, 0)] {
        let config = LoaderConfig { workers, prefetch: 4, ..config(40) };
        let mut loader = Loader::new(Arc::clone(&source), config, Position::default()).unwrap();
        for _ in 0..taken {
            let batch = loader.next_batch().unwrap();
            loader.recycle(batch);
        }
        assert!(loader.wait_seconds() >= 0.0);
        drop(loader);
    }
    // Every lane has ended: nobody else holds the source.
    assert_eq!(Arc::strong_count(&source), 1);
}

#[test]
fn evaluation_keeps_its_order_and_reports_what_failed() {
    let folder = folder_of(9);
    std::fs::write(folder.path().join("004.png"), "damaged").unwrap();
    let source = open(folder.path()).unwrap();
    let transform = Transform::new((6, 8), 3);
    let values = transform.values();
    let indices = [8, 4, 0, 0, 5];
    let mut expected = vec![0.0; indices.len() * values];
    for (row, &index) in expected.chunks_mut(values).zip(&indices) {
        if let Ok(image) = source.load(index, 3.into()) {
            transform.apply_centered(&image, row).unwrap();
        }
    }
    for threads in [0, 1, 2, 5, 50] {
        let mut out = vec![f32::NAN; indices.len() * values];
        let failures = load_centered(&*source, &indices, &transform, threads, &mut out).unwrap();
        assert_eq!(out, expected);
        assert!(matches!(&failures[..], [(1, DataError::UnknownFormat { .. })]), "{failures:?}");
    }
    assert!(load_centered(&*source, &indices, &transform, 1, &mut [0.0; 5]).is_err());
}
