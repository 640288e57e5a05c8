//! The eight ways in which EXIF says how a stored image is to be shown.
//!
//! Turning a whole photo costs more than decoding it; here the crop is looked up in the stored image, resized there, and only
//! the small result is turned.

use crate::region::Region;
use crate::resize::{Resizer, Target, Window};

/// Whether columns are shown as rows.
pub(crate) fn swaps(orientation: u8) -> bool {
    matches!(orientation, 5..=8)
}

/// Width and height as shown of an image that is stored with these.
pub(crate) fn shown_size((width, height): (usize, usize), orientation: u8) -> (usize, usize) {
    if swaps(orientation) { (height, width) } else { (width, height) }
}

/// Where the shown pixel (x, y) lies in a stored image of this width and height.
fn stored_at((x, y): (usize, usize), (width, height): (usize, usize), orientation: u8) -> (usize, usize) {
    match orientation {
        2 => (width - 1 - x, y),
        3 => (width - 1 - x, height - 1 - y),
        4 => (x, height - 1 - y),
        5 => (y, x),
        6 => (y, height - 1 - x),
        7 => (width - 1 - y, height - 1 - x),
        8 => (width - 1 - y, x),
        _ => (x, y),
    }
}

/// Where a part of the image as shown lies in the stored image of this size.
pub(crate) fn stored_part(part: Region, size: (usize, usize), orientation: u8) -> Region {
    let first = stored_at((part.left, part.top), size, orientation);
    let last = stored_at((part.left + part.width - 1, part.top + part.height - 1), size, orientation);
    let (width, height) = shown_size((part.width, part.height), orientation);
    Region { left: first.0.min(last.0), top: first.1.min(last.1), width, height }
}

/// [`Resizer::bytes`] for an image that is shown turned: `target.part` is the part as stored, `target.size` and
/// `target.flip` are those of the result as shown.
pub(crate) fn resize(source: &Window<'_, u8>, target: &Target, orientation: u8, resizer: &mut Resizer, out: &mut [u8]) {
    let (height, width) = target.size;
    let (stored_width, stored_height) = shown_size((width, height), orientation);
    let mut stored = std::mem::take(&mut resizer.turned);
    stored.resize(out.len(), 0);
    resizer.bytes(source, &Target { size: (stored_height, stored_width), flip: false, ..*target }, &mut stored);
    for (i, pixel) in out.chunks_exact_mut(source.channels).enumerate() {
        let (x, y) = (i % width, i / width);
        let x = if target.flip { width - 1 - x } else { x };
        let (x, y) = stored_at((x, y), (stored_width, stored_height), orientation);
        pixel.copy_from_slice(&stored[(y * stored_width + x) * source.channels..][..source.channels]);
    }
    resizer.turned = stored;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_turning_the_image() {
        // 5 x 3 pixels, each with a number of its own.
        let pixels: Vec<u8> = (0..15).collect();
        for orientation in 1..=8 {
            let mut turned = image::DynamicImage::ImageLuma8(image::GrayImage::from_raw(5, 3, pixels.clone()).unwrap());
            turned.apply_orientation(image::metadata::Orientation::from_exif(orientation).unwrap());
            let turned = turned.into_luma8();
            let shown = shown_size((5, 3), orientation);
            assert_eq!((turned.width() as usize, turned.height() as usize), shown);
            let part = Region { left: 1, top: 0, width: shown.0 - 1, height: shown.1 - 1 };
            let stored = stored_part(part, (5, 3), orientation);
            let source = Window { pixels: &pixels, channels: 1, window: Region::whole(5, 3), shift: 0 };
            for flip in [false, true] {
                let mut out = vec![0; part.width * part.height];
                let target = Target {
                    part: stored,
                    size: (part.height, part.width),
                    flip,
                    interpolation: crate::Interpolation::Bilinear,
                };
                resize(&source, &target, orientation, &mut Resizer::default(), &mut out);
                for (i, &value) in out.iter().enumerate() {
                    let (x, y) = (i % part.width, i / part.width);
                    let x = if flip { part.width - 1 - x } else { x };
                    assert_eq!(value, turned.get_pixel((x + 1) as u32, y as u32).0[0], "{orientation} {flip}");
                }
            }
        }
    }
}
