//! Every format and layout against what PIL reads.

use simmim_data::{Alpha, Background, Channels, DataError, Image, Pixels, decode};

use crate::fixtures;

/// A file in so many channels, its alpha dropped where it is not among them.
fn read(name: &str, count: usize) -> Result<Image, DataError> {
    read_on(name, Channels { count, background: Background::Drop })
}

fn read_on(name: &str, channels: Channels) -> Result<Image, DataError> {
    let path = fixtures("formats").join(name);
    decode(&std::fs::read(&path).unwrap(), &path, channels)
}

fn bytes(image: &Image) -> &[u8] {
    match &image.pixels {
        Pixels::U8(v) => v,
        other => panic!("expected 8 bits, found {other:?}"),
    }
}

#[test]
fn formats_agree_with_pil() {
    // Largest difference allowed, in 1/255: decoders of JPEG may round the cosine transform differently.
    let cases = [
        ("baseline.jpg", 3),
        ("progressive.jpg", 3),
        ("gray.jpg", 2),
        ("cmyk.jpg", 4),
        ("sideways.jpg", 3),
        ("rgb.png", 0),
        ("gray.png", 0),
        ("bilevel.png", 0),
        ("palette.png", 0),
        ("palette-transparent.png", 0),
        ("alpha.png", 0),
        ("gray-alpha.png", 0),
        ("lossless.webp", 0),
        ("alpha.webp", 0),
        ("rgb.tif", 0),
        ("lzw.tif", 0),
        ("palette.tif", 0),
        ("bilevel.tif", 0),
        ("rgb.bmp", 0),
        ("palette.bmp", 0),
        ("frames.gif", 0),
    ];
    let mut wrong = Vec::new();
    for (name, tolerance) in cases {
        let expected = read(&format!("{name}.rgb.png"), 3).unwrap();
        match read(name, 3) {
            Ok(image) => {
                assert_eq!((image.width, image.height), (expected.width, expected.height), "{name}");
                let differences = bytes(&image).iter().zip(bytes(&expected)).map(|(a, b)| a.abs_diff(*b));
                let worst = differences.max().unwrap();
                if worst > tolerance {
                    wrong.push(format!("{name}: off by {worst}"));
                }
            }
            Err(error) => wrong.push(error.to_string()),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn transparency_is_composited_as_by_pil() {
    for name in ["alpha.png", "gray-alpha.png", "palette-transparent.png", "alpha.webp"] {
        for color in ["ffffff", "000000", "3060c0"] {
            let background: Background = format!("#{color}").parse().unwrap();
            for (count, suffix) in [(3, ""), (1, ".gray")] {
                let found = read_on(name, Channels { count, background }).unwrap();
                let expected = read(&format!("{name}.on-{color}{suffix}.png"), count).unwrap();
                assert_eq!(bytes(&found), bytes(&expected), "{name} on {color} in {count} channels");
                assert_eq!(found.alpha, Alpha::Removed, "{name}");
            }
        }
        assert_eq!(
            read_on(name, 3.into()).unwrap(),
            read_on(name, Channels { count: 3, background: Background::WHITE }).unwrap()
        );
    }
    assert_eq!(read_on("alpha.png", 4.into()).unwrap().alpha, Alpha::Last);
    assert_eq!(read_on("rgb.png", 3.into()).unwrap().alpha, Alpha::Opaque);
}

#[test]
fn orientation_is_applied() {
    let upright = read("baseline.jpg", 3).unwrap();
    let turned = read("sideways.jpg", 3).unwrap();
    assert_eq!((turned.width, turned.height), (upright.height, upright.width));
}

#[test]
fn sixteen_bits_are_kept() {
    let image = read("gray16.png", 1).unwrap();
    let expected: Vec<u16> = (0..13 * 19).map(|i| i * 5 * 40).collect();
    assert_eq!(image.pixels, Pixels::U16(expected));
    assert_eq!(read("gray16.png", 3).unwrap().channels, 3);
}

#[test]
fn many_bands_come_only_from_files_that_have_them() {
    for name in ["bands5.tif", "planar5.tif"] {
        let image = read(name, 5).unwrap();
        assert_eq!(image.pixels, Pixels::U16((0..13 * 19 * 5).collect()), "{name}");
        for channels in [1, 3, 4] {
            let error = read(name, channels).unwrap_err();
            assert!(matches!(error, DataError::Channels { found: 5, .. }), "{error}");
        }
    }
    assert!(matches!(read("rgb.png", 5), Err(DataError::Channels { expected: 5, found: 3, .. })));
    assert_eq!(read("alpha.png", 4).unwrap().channels, 4);
    assert_eq!(read("gray-alpha.png", 2).unwrap().channels, 2);
}

/// The samples of a file of floats.
fn floats(name: &str, channels: usize) -> Vec<f32> {
    match read(name, channels).unwrap().pixels {
        Pixels::F32(samples) => samples,
        other => panic!("{name}: expected floats, found {other:?}"),
    }
}

#[test]
fn floats_signed_and_wide_integers_keep_their_values() {
    assert!(floats("float1.tif", 1).iter().enumerate().all(|(i, &v)| (v - i as f32 * 5.0 / 1500.0).abs() < 1e-6));
    assert!((floats("float3.tif", 3)[4] - 6.0 / 1500.0).abs() < 1e-6);
    assert!(floats("int16.tif", 1).iter().enumerate().all(|(i, &v)| v == i as f32 * 5.0 - 600.0));
    let wide = floats("uint32-3.tif", 3);
    assert!(wide.iter().enumerate().all(|(i, &v)| v == ((i / 3 * 5 + i % 3) * 1000) as f32));
    assert_eq!(floats("int16.tif", 3).len(), 3 * 13 * 19);
}

#[test]
fn missing_samples_get_the_mean_of_their_band() {
    let found = floats("nodata2.tif", 2);
    let at = |row: usize, column: usize, band: usize| (row * 19 + column) * 2 + band;
    for (band, missing) in [(0, vec![at(3, 3, 0)]), (1, vec![at(0, 1, 1), at(12, 18, 1)])] {
        let valid = (band..found.len()).step_by(2).filter(|i| !missing.contains(i));
        let stored: Vec<(usize, f32)> = valid.map(|i| (i, (i / 2 * 5 + band) as f32)).collect();
        assert!(stored.iter().all(|&(i, v)| found[i] == v));
        let mean = stored.iter().map(|(_, v)| f64::from(*v)).sum::<f64>() / stored.len() as f64;
        assert!(missing.iter().all(|&i| (f64::from(found[i]) - mean).abs() < 1e-3), "{band}: {mean}");
    }
    assert!(floats("nan.tif", 1).iter().all(|v| v.is_finite()));
    let error = read("all-nan.tif", 1).unwrap_err();
    assert!(matches!(error, DataError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("all samples of band 1 are missing"), "{error}");
}
