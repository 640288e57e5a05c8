//! Every format and layout against what PIL reads.

use simmim_data::{DataError, Image, Pixels, decode};

use crate::fixtures;

fn read(name: &str, channels: usize) -> Result<Image, DataError> {
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

#[test]
fn floats_are_read_and_must_be_finite() {
    let Pixels::F32(gray) = read("float1.tif", 1).unwrap().pixels else { panic!("floats") };
    assert!(gray.iter().enumerate().all(|(i, &v)| (v - i as f32 * 5.0 / 1500.0).abs() < 1e-6));
    let Pixels::F32(rgb) = read("float3.tif", 3).unwrap().pixels else { panic!("floats") };
    assert!((rgb[4] - 6.0 / 1500.0).abs() < 1e-6);
    let error = read("nan.tif", 1).unwrap_err();
    assert!(matches!(error, DataError::Damaged { .. }) && error.to_string().contains("NaN"), "{error}");
}
