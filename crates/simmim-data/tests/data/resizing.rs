//! Crops and resizes: against PIL, and on awkward shapes.

use proptest::prelude::*;
use simmim_data::{Image, Interpolation, Pixels, RandomResizedCrop, Transform, decode};
use simmim_random::{Purpose, Stream};

use crate::{fixtures, pattern};

fn read(name: &str) -> Image {
    let path = fixtures("resize").join(name);
    decode(&std::fs::read(&path).unwrap(), &path, 3).unwrap()
}

fn bytes(image: &Image) -> &[u8] {
    match &image.pixels {
        Pixels::U8(v) => v,
        other => panic!("expected 8 bits, found {other:?}"),
    }
}

/// A transform whose output is the resized pixels in 0..1.
fn plain(size: (usize, usize), channels: usize, interpolation: Interpolation) -> Transform {
    let (mean, std) = (vec![0.0; channels], vec![1.0; channels]);
    Transform { crop: None, flip: 0.0, interpolation, mean, std, ..Transform::new(size, channels) }
}

/// The whole image at another aspect ratio, which only the random crop does: its only choice is everything.
fn whole(mut transform: Transform, image: &Image) -> Transform {
    let ratio = image.width as f64 / image.height as f64;
    transform.crop = Some(RandomResizedCrop { scale: (1.0, 1.0), ratio: (ratio, ratio) });
    transform
}

fn stream(sample: u64) -> Stream {
    Stream::new(1, Purpose::Test, 0, sample)
}

fn cut(image: &Image, left: usize, top: usize, width: usize, height: usize) -> Image {
    let pixels = (top..top + height).flat_map(|row| {
        let start = (row * image.width + left) * image.channels;
        bytes(image)[start..start + width * image.channels].to_vec()
    });
    Image { width, height, pixels: Pixels::U8(pixels.collect()), ..image.clone() }
}

#[test]
fn resizes_agree_with_pil() {
    let input = read("input.png");
    let cropped = cut(&input, 7, 5, 41, 33);
    for (name, interpolation) in [("bilinear", Interpolation::Bilinear), ("bicubic", Interpolation::Bicubic)] {
        let cases = [(20, 16, false), (13, 40, false), (90, 100, false), (61, 9, false), (24, 24, true)];
        for (width, height, crop) in cases {
            let source = if crop { &cropped } else { &input };
            let suffix = if crop { "-crop" } else { "" };
            let expected = read(&format!("{name}-{width}x{height}{suffix}.png"));
            let transform = whole(plain((height, width), 3, interpolation), source);
            let mut out = vec![0.0; transform.values()];
            transform.apply_random(source, &mut stream(0), &mut out).unwrap();
            let (mut sum, mut worst) = (0.0f64, 0.0f64);
            for (i, &value) in bytes(&expected).iter().enumerate() {
                let (pixel, channel) = (i / 3, i % 3);
                let difference = (f64::from(out[channel * width * height + pixel]) * 255.0 - f64::from(value)).abs();
                sum += difference;
                worst = worst.max(difference);
            }
            let mean = sum / bytes(&expected).len() as f64;
            // PIL cuts off what the cubic filter swings over after each of its two passes, in the other order than ours.
            let limit = if interpolation == Interpolation::Bicubic { 20.0 } else { 3.0 };
            assert!(mean < 0.5 && worst < limit, "{name} {width}x{height}{suffix}: mean {mean}, worst {worst}");
        }
    }
}

#[test]
fn depths_agree_with_each_other() {
    let eight = pattern(23, 17, 3, 1);
    let wide =
        Image { pixels: Pixels::U16(bytes(&eight).iter().map(|&v| u16::from(v) * 257).collect()), ..eight.clone() };
    let float =
        Image { pixels: Pixels::F32(bytes(&eight).iter().map(|&v| f32::from(v) / 255.0).collect()), ..eight.clone() };
    let transform = Transform::new((8, 12), 3);
    let render = |image: &Image| {
        let mut out = vec![0.0; transform.values()];
        transform.apply_random(image, &mut stream(3), &mut out).unwrap();
        out
    };
    let expected = render(&float);
    for image in [&eight, &wide] {
        for (a, b) in render(image).iter().zip(&expected) {
            // Two roundings of half a step each, divided by a standard deviation of 0.22.
            assert!((a - b).abs() < 0.02, "{a} {b}");
        }
    }
}

#[test]
fn normalisation_and_planes_are_exact_without_resizing() {
    let image = pattern(6, 4, 3, 5);
    let mut transform = plain((4, 6), 3, Interpolation::Bilinear);
    transform.mean = vec![0.1, 0.2, 0.3];
    transform.std = vec![0.5, 0.25, 2.0];
    let mut out = vec![0.0; 72];
    transform.apply_centered(&image, &mut out).unwrap();
    let mut flipped = vec![0.0; 72];
    transform.flip = 1.0;
    transform.apply_random(&image, &mut stream(0), &mut flipped).unwrap();
    for (c, (row, col)) in (0..3).flat_map(|c| (0..24).map(move |p| (c, (p / 6, p % 6)))) {
        let value = f32::from(bytes(&image)[(row * 6 + col) * 3 + c]) / 255.0;
        let expected = (value - transform.mean[c]) / transform.std[c];
        assert!((out[c * 24 + row * 6 + col] - expected).abs() < 1e-6);
        assert!((flipped[c * 24 + row * 6 + 5 - col] - expected).abs() < 1e-6);
    }
}

#[test]
fn the_centred_view_is_the_middle() {
    // Left third black, middle white, right third black: a square from the middle of a 3:1 image is white.
    let pixels = (0..30 * 10).map(|i| if (10..20).contains(&(i % 30)) { 255 } else { 0 }).collect();
    let image = Image { pixels: Pixels::U8(pixels), ..pattern(30, 10, 1, 0) };
    let transform = plain((10, 10), 1, Interpolation::Bilinear);
    let mut out = vec![0.0; 100];
    transform.apply_centered(&image, &mut out).unwrap();
    assert!(out.iter().all(|&v| v > 0.99), "{out:?}");
}

#[test]
fn more_than_four_bands_are_resized_one_by_one() {
    let image = pattern(11, 13, 6, 2);
    let transform = plain((5, 7), 6, Interpolation::Bicubic);
    let mut all = vec![0.0; transform.values()];
    transform.apply_centered(&image, &mut all).unwrap();
    for band in 0..6 {
        let samples = bytes(&image).iter().skip(band).step_by(6).copied().collect();
        let single = Image { channels: 1, pixels: Pixels::U8(samples), ..image.clone() };
        let mut out = vec![0.0; 35];
        plain((5, 7), 1, Interpolation::Bicubic).apply_centered(&single, &mut out).unwrap();
        assert_eq!(out, all[band * 35..(band + 1) * 35], "band {band}");
    }
}

#[test]
fn impossible_transforms_are_refused() {
    type Change = fn(&mut Transform);
    let cases: [(&str, Change); 8] = [
        ("image size", |t| t.size = (0, 5)),
        ("mean", |t| t.mean = vec![0.0]),
        ("std", |t| t.std = vec![0.5, 0.0, 0.5]),
        ("std", |t| t.std = vec![0.5, f32::NAN, 0.5]),
        ("flip", |t| t.flip = 1.5),
        ("crop scale", |t| t.crop = Some(RandomResizedCrop { scale: (0.0, 1.0), ratio: (1.0, 1.0) })),
        ("crop scale", |t| t.crop = Some(RandomResizedCrop { scale: (0.9, 0.5), ratio: (1.0, 1.0) })),
        ("crop ratio", |t| t.crop = Some(RandomResizedCrop { scale: (0.5, 1.0), ratio: (2.0, 1.0) })),
    ];
    for (key, change) in cases {
        let mut transform = Transform::new((8, 8), 3);
        assert!(transform.validate().is_ok());
        change(&mut transform);
        let error = transform.validate().unwrap_err();
        assert!(error.to_string().contains(key) && error.help().is_some(), "{error}");
    }
    let transform = Transform::new((8, 8), 3);
    assert!(transform.apply_centered(&pattern(4, 4, 1, 0), &mut vec![0.0; 192]).is_err());
    assert!(transform.apply_centered(&pattern(4, 4, 3, 0), &mut vec![0.0; 191]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Any shape, from a single pixel, gives finite values between those of the image; the same stream, the same view.
    #[test]
    fn any_shape_works(
        width in 1usize..70, height in 1usize..70, channels in 1usize..6,
        out_h in 1usize..40, out_w in 1usize..40, sample in any::<u64>(), bilinear in any::<bool>(),
    ) {
        let image = pattern(width, height, channels, 3);
        let interpolation = if bilinear { Interpolation::Bilinear } else { Interpolation::Bicubic };
        let mut transform = plain((out_h, out_w), channels, interpolation);
        transform.crop = Some(RandomResizedCrop { scale: (0.2, 1.0), ..RandomResizedCrop::default() });
        transform.flip = 0.5;
        let mut first = vec![f32::NAN; transform.values()];
        let mut second = vec![f32::NAN; transform.values()];
        let mut centred = vec![f32::NAN; transform.values()];
        transform.apply_random(&image, &mut stream(sample), &mut first).unwrap();
        transform.apply_random(&image, &mut stream(sample), &mut second).unwrap();
        transform.apply_centered(&image, &mut centred).unwrap();
        prop_assert_eq!(&first, &second);
        prop_assert!(first.iter().chain(&centred).all(|v| (-0.001..=1.001).contains(v)));
    }
}
