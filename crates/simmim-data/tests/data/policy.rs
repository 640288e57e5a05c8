//! RandAugment's operations against PIL's, and the transforms around them.

use simmim_data::policy::{Filter, Operation, Raster};
use simmim_data::{Image, Mix, Mixture, Pixels, Policy, RandAugment, Transform, decode};
use simmim_random::{Purpose, Stream};
use simmim_testing::{Fixture, relative_error};

use crate::{fixtures, pattern};

/// The order is that of `fixtures/make_policy.py`.
const OPERATIONS: [Operation; 22] = [
    Operation::AutoContrast,
    Operation::Equalize,
    Operation::Invert,
    Operation::Rotate(27.0),
    Operation::Rotate(-13.5),
    Operation::Posterize(1),
    Operation::Posterize(3),
    Operation::Solarize(26),
    Operation::Solarize(200),
    Operation::SolarizeAdd(99),
    Operation::Color(1.81),
    Operation::Color(0.19),
    Operation::Contrast(1.81),
    Operation::Contrast(0.19),
    Operation::Brightness(1.81),
    Operation::Brightness(0.19),
    Operation::Sharpness(1.81),
    Operation::Sharpness(0.19),
    Operation::ShearX(0.27),
    Operation::ShearY(-0.27),
    Operation::TranslateX(0.405),
    Operation::TranslateY(-0.21),
];

/// The parts of a strip of pictures below each other.
fn strip(name: &str, channels: usize) -> Vec<Raster> {
    let path = fixtures("policy").join(name);
    let image = decode(&std::fs::read(&path).unwrap(), &path, channels).unwrap();
    let Pixels::U8(pixels) = &image.pixels else { panic!("8 bits only") };
    let height = image.height / (OPERATIONS.len() + 1);
    let part = |p: &[u8]| {
        let plane = |c: usize| p.iter().skip(c).step_by(channels).copied().collect::<Vec<u8>>();
        Raster { channels, height, width: image.width, samples: (0..channels).flat_map(plane).collect() }
    };
    pixels.chunks_exact(height * image.width * channels).map(part).collect()
}

#[test]
fn operations_agree_with_pil() {
    for (name, channels, fill, filter) in [
        ("rgb-bilinear.png", 3, &[124, 116, 104][..], Filter::Bilinear),
        ("rgb-bicubic.png", 3, &[124, 116, 104][..], Filter::Bicubic),
        ("l-bilinear.png", 1, &[115][..], Filter::Bilinear),
        ("l-bicubic.png", 1, &[115][..], Filter::Bicubic),
    ] {
        let parts = strip(name, channels);
        assert_eq!(parts.len(), OPERATIONS.len() + 1);
        for (operation, expected) in OPERATIONS.iter().zip(&parts[1..]) {
            let mut found = parts[0].clone();
            found.apply(*operation, filter, fill);
            let differences: Vec<u8> =
                found.samples.iter().zip(&expected.samples).map(|(a, b)| a.abs_diff(*b)).collect();
            let mean = differences.iter().map(|&d| f64::from(d)).sum::<f64>() / differences.len() as f64;
            let worst = differences.iter().max().unwrap();
            assert!(mean < 0.05 && *worst <= 2, "{name} {operation:?}: mean {mean}, worst {worst}");
        }
    }
}

fn augmented(image: &Image, policy: Option<Policy>, sample: u64) -> Vec<f32> {
    let transform = Transform { policy, ..Transform::new((16, 16), image.channels) };
    let mut out = vec![0.0; transform.values()];
    transform.validate().unwrap();
    transform.apply_random(image, &mut Stream::new(1, Purpose::Augment, 0, sample), &mut out).unwrap();
    out
}

#[test]
fn mixed_batches_and_their_labels_agree_with_timm() {
    let fixture = Fixture::load("mixture");
    let config = &fixture.config;
    let (smoothing, classes) = (config["smoothing"].as_f64().unwrap(), config["classes"].as_u64().unwrap() as usize);
    let mut rectangles = 0;
    for case in config["cases"].as_array().unwrap() {
        let (name, share) = (case["name"].as_str().unwrap(), case["share"].as_f64().unwrap());
        let mixture = if let Some(rectangle) = case["rectangle"].as_array() {
            rectangles += 1;
            let bounds: Vec<usize> = rectangle.iter().map(|v| v.as_u64().unwrap() as usize).collect();
            Mixture::Cutmix { rectangle: bounds.try_into().unwrap(), share }
        } else if share == 1.0 {
            Mixture::None
        } else {
            Mixture::Mixup { share }
        };
        let tensor = |part: &str| fixture.floats[&format!("{name}.{part}")].clone();
        let (shape, mut images) = tensor("images");
        mixture.apply(&mut images, shape[1] * shape[2] * shape[3], (shape[2], shape[3]));
        assert!(relative_error(&images, &tensor("mixed").1) < 1e-6, "{name}");
        let labels: Vec<usize> = fixture.ints[&format!("{name}.labels")].1.iter().map(|&l| l as usize).collect();
        let targets = Mix { smoothing, ..Mix::NONE }.targets(mixture, &labels, classes);
        assert!(relative_error(&targets, &tensor("targets").1) < 1e-6, "{name}");
    }
    assert_eq!(rectangles, 2);
}

#[test]
fn rectangles_of_cutmix_are_those_of_timm() {
    let fixture = Fixture::load("cutmix_rectangles");
    let (shape, drawn) = &fixture.ints["drawn"];
    let shares = fixture.config["shares"].as_array().unwrap();
    assert_eq!(shape[1], 8);
    assert_eq!(shares.len(), drawn.len() / 8);
    for (row, shares) in drawn.chunks_exact(8).zip(shares) {
        let of = |i: usize| row[i] as usize;
        let (asked, left) = (shares[0].as_f64().unwrap(), shares[1].as_f64().unwrap());
        let found = Mixture::cutmix((of(0), of(1)), asked, (of(2), of(3)));
        let Mixture::Cutmix { rectangle, share } = found else { panic!("{found:?}") };
        assert_eq!(rectangle, [of(4), of(5), of(6), of(7)], "{row:?} at {asked}");
        assert!((share - left).abs() < 1e-12, "{row:?}: {share}, {left}");
    }
}

#[test]
fn a_policy_that_does_nothing_leaves_the_view_as_it_was() {
    let image = pattern(23, 19, 3, 0);
    let nothing = Policy { rand_augment: None, color_jitter: 0.0, erase: 0.0, filter: Filter::Bilinear };
    let rand_augment = Some(RandAugment { layers: 0, magnitude: 9.0, std: 0.5 });
    for policy in [nothing.clone(), Policy { rand_augment, ..nothing }] {
        for sample in 0..4 {
            let (with, without) = (augmented(&image, Some(policy.clone()), sample), augmented(&image, None, sample));
            assert!(with.iter().zip(&without).all(|(a, b)| (a - b).abs() < 1e-5));
        }
    }
}

#[test]
fn colour_jitter_changes_colours_but_not_places() {
    let image = pattern(23, 19, 3, 0);
    let policy = Policy { rand_augment: None, color_jitter: 0.4, erase: 0.0, filter: Filter::Bilinear };
    assert_ne!(augmented(&image, Some(policy), 0), augmented(&image, None, 0));
}

#[test]
fn the_centre_of_a_larger_view_is_cut_out() {
    let image = pattern(64, 64, 1, 3);
    let whole = Transform { keep: 1.0, ..Transform::new((32, 32), 1) };
    let cut = Transform { keep: 0.875, ..Transform::new((28, 28), 1) };
    let (mut large, mut small) = (vec![0.0; 32 * 32], vec![0.0; 28 * 28]);
    whole.apply_centered(&image, &mut large).unwrap();
    cut.apply_centered(&image, &mut small).unwrap();
    for (row, line) in small.chunks(28).enumerate() {
        assert_eq!(line, &large[(row + 2) * 32 + 2..(row + 2) * 32 + 30]);
    }
}
