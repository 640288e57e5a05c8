//! The data layer as its users see it, in one binary.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test or benchmark may fail loudly")]

mod caching;
mod damaged;
mod formats;
mod loading;
mod policy;
mod resizing;
mod sources;

use std::path::{Path, PathBuf};

use simmim_data::{Alpha, Image, Pixels};

/// The committed pictures.
fn fixtures(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(part)
}

/// A PNG file of 8 bits.
fn encode_png(image: &Image) -> Vec<u8> {
    encode(image, image::ImageFormat::Png)
}

/// An image file of 8 bits, in gray or RGB, with or without alpha.
fn encode(image: &Image, format: image::ImageFormat) -> Vec<u8> {
    let Pixels::U8(pixels) = &image.pixels else { panic!("8 bits only") };
    let color = match image.channels {
        1 => image::ExtendedColorType::L8,
        2 => image::ExtendedColorType::La8,
        3 => image::ExtendedColorType::Rgb8,
        _ => image::ExtendedColorType::Rgba8,
    };
    let mut file = std::io::Cursor::new(Vec::new());
    let (width, height) = (image.width as u32, image.height as u32);
    image::write_buffer_with_format(&mut file, pixels, width, height, color, format).unwrap();
    file.into_inner()
}

/// An image whose samples differ from each other and from those of other seeds.
fn pattern(width: usize, height: usize, channels: usize, seed: usize) -> Image {
    let pixels = (0..width * height * channels).map(|i| ((i * 37 + seed * 101) % 251) as u8).collect();
    Image { width, height, channels, pixels: Pixels::U8(pixels), alpha: Alpha::Opaque }
}

/// A folder with `count` PNG files `000.png`, `001.png`, ...
fn folder_of(count: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for i in 0..count {
        let image = pattern(9 + i % 5, 7 + i % 3, 3, i);
        std::fs::write(folder.path().join(format!("{i:03}.png")), encode_png(&image)).unwrap();
    }
    folder
}
