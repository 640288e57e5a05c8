//! Folders of images in mixed and damaged formats, and the loader over them.

use image::{DynamicImage, ImageBuffer, ImageFormat, Luma, LumaA, Rgb, Rgba};
use simmim_data::{
    DataError, Interpolation, Loader, LoaderConfig, Pixels, Position, RandomResizedCrop, Source, Transform, source,
};
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

fn rgb(width: u32, height: u32) -> DynamicImage {
    DynamicImage::ImageRgb8(ImageBuffer::from_fn(width, height, |x, y| Rgb([x as u8 * 9, y as u8 * 7, (x * y) as u8])))
}

/// One image of each kind, in two class folders.
fn mixed() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let save = |name: &str, image: &DynamicImage, format| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        image.save_with_format(path, format).unwrap();
    };
    save("cats/a.jpg", &rgb(31, 17), ImageFormat::Jpeg);
    save("cats/deep/er/b.PNG", &rgb(8, 40), ImageFormat::Png);
    save("cats/c.webp", &rgb(12, 12), ImageFormat::WebP);
    save("dogs/d.tiff", &rgb(9, 5), ImageFormat::Tiff);
    save("dogs/e.bmp", &rgb(1, 1), ImageFormat::Bmp);
    save("dogs/f.gif", &rgb(20, 10), ImageFormat::Gif);
    let gray16 = ImageBuffer::from_fn(6, 7, |x, y| Luma([(x * 9000 + y) as u16]));
    save("dogs/g.png", &DynamicImage::ImageLuma16(gray16), ImageFormat::Png);
    let alpha = ImageBuffer::from_fn(5, 5, |x, _| Rgba([200, 100, 50, x as u8 * 50]));
    save("dogs/h.png", &DynamicImage::ImageRgba8(alpha), ImageFormat::Png);
    let gray_alpha = ImageBuffer::from_fn(5, 6, |x, _| LumaA([x as u8 * 40, 9]));
    save("dogs/i.png", &DynamicImage::ImageLumaA8(gray_alpha), ImageFormat::Png);
    // Contents decide, not the name.
    save("dogs/j.jpg", &rgb(7, 7), ImageFormat::Png);
    std::fs::write(folder.path().join("notes.txt"), "not an image").unwrap();
    std::fs::write(folder.path().join(".hidden.png"), "not an image").unwrap();
    folder
}

fn transform(channels: usize) -> Transform {
    Transform {
        size: (8, 12),
        channels,
        crop: Some(RandomResizedCrop { scale: (0.67, 1.0), ratio: (0.75, 4.0 / 3.0) }),
        flip: 0.5,
        interpolation: Interpolation::Bicubic,
        mean: vec![0.5; channels],
        std: vec![0.5; channels],
    }
}

fn config(workers: usize, max_errors: usize) -> LoaderConfig {
    LoaderConfig { batch: 3, seed: 5, transform: transform(3), workers, prefetch: 2, max_errors, rank: 0, world: 1 }
}

#[test]
fn all_formats_are_found_labelled_and_decoded() {
    let folder = mixed();
    let set = source::open(folder.path()).unwrap();
    assert_eq!(set.len(), 10);
    assert_eq!(set.class_names(), ["cats", "dogs"]);
    for i in 0..set.len() {
        for channels in [1, 3] {
            let image = set.load(i, channels).unwrap();
            assert_eq!(image.channels, channels, "{}", set.name(i));
        }
    }
    let at = |name: &str| (0..10).find(|&i| set.name(i) == name).unwrap();
    assert_eq!((set.label(at("cats/deep/er/b.PNG")), set.label(at("dogs/e.bmp"))), (Some(0), Some(1)));
    assert!(matches!(set.load(at("dogs/g.png"), 1).unwrap().pixels, Pixels::U16(_)));
    let alpha = set.load(at("dogs/h.png"), 3).unwrap();
    assert!(matches!(alpha.pixels, Pixels::U8(p) if p.chunks(3).all(|c| c == [200, 100, 50])));
}

#[test]
fn lists_name_files_and_labels() {
    let folder = mixed();
    let list = folder.path().join("list.csv");
    std::fs::write(&list, "# two\ncats/a.jpg, cat\n\ndogs/e.bmp\n").unwrap();
    let set = source::open(&list).unwrap();
    assert_eq!((set.len(), set.label(0), set.label(1)), (2, Some(0), None));
    std::fs::write(&list, "cats/a.jpg\nmissing.png\n").unwrap();
    let error = source::open(&list).err().unwrap();
    assert!(error.to_string().contains("line 2") && error.to_string().contains("missing.png"), "{error}");
}

#[test]
fn many_bands_are_read_where_the_file_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let four = ImageBuffer::from_fn(4, 3, |x, y| Rgba([x as u8, y as u8, 3, 4]));
    DynamicImage::ImageRgba8(four).save_with_format(folder.path().join("x.png"), ImageFormat::Png).unwrap();
    let set = source::open(folder.path()).unwrap();
    assert_eq!(set.load(0, 4).unwrap().channels, 4);
    rgb(4, 4).save_with_format(folder.path().join("x.png"), ImageFormat::Png).unwrap();
    assert!(matches!(set.load(0, 4), Err(DataError::Channels { found: 3, expected: 4, .. })));
    assert!(matches!(set.load(0, 7), Err(DataError::Image { .. })));
}

#[test]
fn missing_and_empty_places_are_named() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(source::open(folder.path()).err(), Some(DataError::Empty { .. })));
    let missing = source::open(Path::new("/no/such/place")).err().unwrap();
    assert!(missing.to_string().contains("/no/such/place") && missing.help().is_some());
}

/// Damaged files of every kind: never a crash, always an error that names the file.
#[test]
fn damaged_images_are_errors() {
    let folder = mixed();
    let set = source::open(folder.path()).unwrap();
    for i in 0..set.len() {
        let path = folder.path().join(set.name(i));
        let whole = std::fs::read(&path).unwrap();
        for cut in [0, 1, 7, whole.len() / 2] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            match set.load(i, 3) {
                Err(e) => assert!(e.to_string().contains(&set.name(i)), "{e}"),
                // Formats without an end mark may give what is there.
                Ok(image) => assert_eq!(image.channels, 3),
            }
        }
        let mut flipped = whole.clone();
        flipped.iter_mut().skip(20).step_by(13).for_each(|b| *b ^= 0x5a);
        std::fs::write(&path, &flipped).unwrap();
        let _ = set.load(i, 3);
    }
}

#[test]
fn a_header_that_claims_a_huge_image_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bomb.bmp");
    rgb(4, 4).save_with_format(&path, ImageFormat::Bmp).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[18..22].copy_from_slice(&60_000i32.to_le_bytes());
    bytes[22..26].copy_from_slice(&60_000i32.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let set = source::open(folder.path()).unwrap();
    assert!(set.load(0, 3).is_err());
}

fn stream(set: &Arc<dyn Source>, config: LoaderConfig, start: Position, count: usize) -> Vec<simmim_data::Batch> {
    let mut loader = Loader::new(Arc::clone(set), config, start);
    (0..count).map(|_| loader.next_batch().unwrap()).collect()
}

#[test]
fn batches_do_not_depend_on_threads_and_go_on_after_a_resume() {
    let folder = mixed();
    let set = source::open(folder.path()).unwrap();
    let truth = stream(&set, config(1, 0), Position::default(), 10);
    assert_eq!(truth[2].position, Position { epoch: 0, batch: 2 });
    assert_eq!(truth[3].position, Position { epoch: 1, batch: 0 });
    assert_ne!(truth[0].samples, truth[3].samples);
    for workers in [2, 5] {
        assert_eq!(truth, stream(&set, config(workers, 0), Position::default(), 10));
    }
    for from in [1, 4, 7] {
        assert_eq!(truth[from..], stream(&set, config(2, 0), truth[from].position, 10 - from));
    }
}

#[test]
fn ranks_share_an_epoch_without_overlap() {
    let set = source::demo().unwrap();
    let rank = |rank| {
        let config = LoaderConfig { batch: 100, transform: transform(1), rank, world: 2, ..config(1, 0) };
        let batches = stream(&set, config, Position::default(), 30);
        batches.iter().flat_map(|b| b.samples.clone()).collect::<Vec<_>>()
    };
    let mut all: Vec<u64> = rank(0).into_iter().chain(rank(1)).collect();
    all.sort_unstable();
    assert_eq!(all, (0..6000).collect::<Vec<_>>());
}

#[test]
fn unreadable_images_are_replaced_named_and_limited() {
    let folder = mixed();
    let set = source::open(folder.path()).unwrap();
    std::fs::write(folder.path().join("cats/a.jpg"), b"").unwrap();
    std::fs::write(folder.path().join("dogs/e.bmp"), b"BM").unwrap();
    let mut loader = Loader::new(Arc::clone(&set), config(2, 2), Position::default());
    for _ in 0..4 {
        let batch = loader.next_batch().unwrap();
        assert_eq!(batch.samples.len(), 3);
        loader.recycle(batch);
    }
    let names: Vec<String> = loader.skipped().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["cats/a.jpg", "dogs/e.bmp"]);
    drop(loader);
    let mut strict = Loader::new(set, config(1, 1), Position::default());
    let error = (0..8).find_map(|_| strict.next_batch().err()).unwrap();
    assert!(matches!(error, DataError::TooManyBad { count: 2, limit: 1, .. }), "{error}");
}

#[test]
fn fewer_images_than_a_batch_repeat() {
    let folder = tempfile::tempdir().unwrap();
    rgb(9, 9).save_with_format(folder.path().join("one.png"), ImageFormat::Png).unwrap();
    let set = source::open(folder.path()).unwrap();
    let batches = stream(&set, config(2, 0), Position::default(), 2);
    assert_eq!((batches[0].samples.as_slice(), batches[1].position.epoch), (&[0, 0, 0][..], 1));
}
