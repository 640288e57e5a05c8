//! Hostile and broken image files: an error with the path, never a panic.

use std::path::Path;

use proptest::prelude::*;
use simmim_data::{DataError, decode};

use crate::{encode, fixtures, pattern};

const FORMATS: [image::ImageFormat; 6] = {
    use image::ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    [Jpeg, Png, WebP, Tiff, Bmp, Gif]
};

#[test]
fn what_is_no_image_is_named() {
    let cases: [(&[u8], &str); 5] = [
        (b"", "an empty file"),
        (b"<html>404</html>", "HTML"),
        (b"PK\x03\x04zip", "zip"),
        (b"\0\0\0\x20ftypavif", "AVIF"),
        (b"hello world", "hello"),
    ];
    for (bytes, expected) in cases {
        let error = decode(bytes, Path::new("folder/x.jpg"), 3).unwrap_err();
        assert!(matches!(error, DataError::UnknownFormat { .. }), "{error}");
        assert!(error.to_string().contains(expected) && error.to_string().contains("folder/x.jpg"), "{error}");
        assert!(error.help().is_some());
    }
}

#[test]
fn half_of_a_file_is_damaged() {
    let image = pattern(64, 48, 3, 0);
    for format in FORMATS {
        let file = encode(&image, format);
        let error = decode(&file[..file.len() / 2], Path::new("x"), 3).unwrap_err();
        assert!(matches!(error, DataError::Damaged { .. }), "{format:?}: {error}");
    }
    for name in ["baseline.jpg", "progressive.jpg", "sideways.jpg"] {
        let file = std::fs::read(fixtures("formats").join(name)).unwrap();
        assert!(decode(&file, Path::new(name), 3).is_ok());
        let error = decode(&file[..file.len() - 40], Path::new(name), 3).unwrap_err();
        assert!(error.to_string().contains("ends early"), "{error}");
    }
}

#[test]
fn every_truncation_of_every_format_is_survived() {
    let image = pattern(9, 7, 3, 0);
    for format in FORMATS {
        let file = encode(&image, format);
        for cut in 0..file.len() {
            // Some formats may lose padding at their end without harm; what matters is that nothing crashes.
            let _ = decode(&file[..cut], Path::new("x"), 3);
        }
        assert!(decode(&file[..file.len() * 3 / 4], Path::new("x"), 3).is_err(), "{format:?}");
    }
}

#[test]
fn headers_that_claim_too_much_are_refused() {
    let image = pattern(4, 4, 3, 0);
    // A PNG header of 65535 x 65535 with a correct checksum.
    let mut png = encode(&image, image::ImageFormat::Png);
    png[16..24].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
    let mut crc = flate2::Crc::new();
    crc.update(&png[12..29]);
    png[29..33].copy_from_slice(&crc.sum().to_be_bytes());
    let mut bmp = encode(&image, image::ImageFormat::Bmp);
    bmp[18..26].copy_from_slice(&[0xff, 0xff, 0, 0, 0xff, 0xff, 0, 0]);
    let mut gif = encode(&image, image::ImageFormat::Gif);
    gif[6..10].copy_from_slice(&[0xff; 4]);
    let mut jpeg = encode(&image, image::ImageFormat::Jpeg);
    let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xff; 4]);
    let mut tiff = encode(&image, image::ImageFormat::Tiff);
    let entry = |tiff: &[u8], tag: [u8; 2]| {
        let start = u32::from_le_bytes(tiff[4..8].try_into().unwrap()) as usize + 2;
        (start..).step_by(12).find(|&at| tiff[at..at + 2] == tag).unwrap()
    };
    for tag in [[0x00, 0x01], [0x01, 0x01]] {
        let at = entry(&tiff, tag);
        tiff[at + 8..at + 12].copy_from_slice(&60_000u32.to_le_bytes());
    }
    for (what, file) in [("png", png), ("bmp", bmp), ("gif", gif), ("jpeg", jpeg), ("tiff", tiff)] {
        let error = decode(&file, Path::new(what), 3).unwrap_err();
        assert!(matches!(error, DataError::TooLarge { .. }), "{what}: {error}");
        assert!(error.to_string().contains("expected at most") && error.help().is_some(), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Overwritten bytes anywhere: an image or an error, and an image is whole.
    #[test]
    fn overwritten_bytes_are_survived(
        format in 0usize..6,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let mut file = encode(&pattern(9, 7, 3, 0), FORMATS[format]);
        for (index, value) in changes {
            let at = index.index(file.len());
            file[at] = value;
        }
        if let Ok(image) = decode(&file, Path::new("x"), 3) {
            prop_assert_eq!(image.pixels.len(), image.width * image.height * 3);
        }
    }

    /// The same for the layouts that take the other TIFF path.
    #[test]
    fn overwritten_bands_are_survived(
        name in 0usize..4,
        changes in proptest::collection::vec((0usize..420, any::<u8>()), 1..8),
    ) {
        let name = ["bands5.tif", "planar5.tif", "float1.tif", "palette.tif"][name];
        let mut file = std::fs::read(fixtures("formats").join(name)).unwrap();
        for (at, value) in changes {
            let at = at % file.len();
            file[at] = value;
        }
        let _ = decode(&file, Path::new(name), 5);
    }

    /// Random bytes behind a valid start.
    #[test]
    fn noise_is_survived(format in 0usize..6, noise in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut file = encode(&pattern(2, 2, 3, 0), FORMATS[format]);
        file.truncate(16);
        file.extend(noise);
        let _ = decode(&file, Path::new("x"), 3);
    }
}
