//! A sheet of small pictures with a line of text under each.

use crate::canvas::{Canvas, LETTER};
use crate::error::TrainError;
use embedded_graphics::text::Alignment;
use simmim_data::{Source, Transform, load_centered};
use std::path::Path;

/// Side of a picture.
const SIDE: usize = 120;
const GAP: u32 = 8;
/// Height of a line of text with its distance from the picture.
const LINE: u32 = 14;
/// Pictures in a row.
const COLUMNS: usize = 6;

/// A picture for the sheet: red, green and blue in 0 to 1, `[3, SIDE, SIDE]`, and the text under it.
#[derive(Debug, Clone, PartialEq)]
pub struct Tile {
    pixels: Vec<f32>,
    caption: String,
}

impl Tile {
    /// The centre of an image. Other channel counts than 1 and 3 show their first three channels, or the first alone.
    ///
    /// # Errors
    /// [`TrainError::Data`] for an image that cannot be read.
    pub fn new(source: &dyn Source, index: usize, channels: usize, caption: String) -> Result<Self, TrainError> {
        let read = if channels == 1 { 3 } else { channels };
        let mut transform = Transform::new((SIDE, SIDE), read);
        (transform.mean, transform.std) = (vec![0.0; read], vec![1.0; read]);
        let mut planes = vec![0.0; transform.values()];
        if let Some((_, error)) = load_centered(source, &[index], &transform, 1, &mut planes)?.into_iter().next() {
            return Err(TrainError::from(error));
        }
        let area = SIDE * SIDE;
        let plane = |c: usize| if read >= 3 { c } else { 0 };
        let pixels = (0..3).flat_map(|c| planes[plane(c) * area..(plane(c) + 1) * area].iter().copied()).collect();
        Ok(Self { pixels, caption })
    }
}

/// Draws the sheet; the first tile is framed.
///
/// # Errors
/// [`TrainError::Io`].
pub fn draw(path: &Path, tiles: &[Tile]) -> Result<(), TrainError> {
    let columns = tiles.len().clamp(1, COLUMNS);
    let (cell_w, cell_h) = (SIDE as u32 + GAP, SIDE as u32 + LINE + GAP);
    let size = (columns as u32 * cell_w + GAP, tiles.len().div_ceil(columns) as u32 * cell_h + GAP);
    let mut canvas = Canvas::new(size.0, size.1);
    for (i, tile) in tiles.iter().enumerate() {
        let (left, top) = (GAP + (i % columns) as u32 * cell_w, GAP + (i / columns) as u32 * cell_h);
        if i == 0 {
            canvas.fill(left - 3, top - 3, SIDE as u32 + 6, SIDE as u32 + 6, [200, 60, 40]);
        }
        for at in 0..SIDE * SIDE {
            let value = |c: usize| (tile.pixels[c * SIDE * SIDE + at].clamp(0.0, 1.0) * 255.0).round() as u8;
            canvas.fill(left + (at % SIDE) as u32, top + (at / SIDE) as u32, 1, 1, [0, 1, 2].map(value));
        }
        // A caption longer than the picture would run into the next.
        let text: String = tile.caption.chars().take(SIDE / LETTER as usize).collect();
        canvas.text(&text, left, top + SIDE as u32 + 4 + LINE / 2, Alignment::Left, [0; 3]);
    }
    canvas.save(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use simmim_data::DataError;

    #[test]
    fn a_sheet_shows_its_pictures_with_text_below() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sheet.png");
        let source = simmim_data::demo_held_out().unwrap();
        let tiles: Vec<Tile> =
            (0..7).map(|i| Tile::new(&source, i, 1, format!("{i}: \u{e9} {}", "x".repeat(40))).unwrap()).collect();
        draw(&path, &tiles).unwrap();
        let sheet = image::load_from_memory(&std::fs::read(&path).unwrap()).unwrap().to_rgb8();
        assert_eq!(sheet.dimensions(), (6 * 128 + 8, 2 * 142 + 8));
        let dark = |x: u32, y: u32, w: u32, h: u32| {
            (x..x + w)
                .flat_map(|x| (y..y + h).map(move |y| (x, y)))
                .filter(|&(x, y)| sheet.get_pixel(x, y)[0] < 100)
                .count()
        };
        let caption = |column: u32, row: u32| dark(8 + column * 128, 8 + row * 142 + 122, 120, 12);
        assert!(caption(0, 0) > 50 && caption(5, 0) > 50 && caption(0, 1) > 50);
        assert_eq!(caption(1, 1), 0, "there is no eighth picture");
        assert_eq!(sheet.get_pixel(6, 6), &image::Rgb([200, 60, 40]), "the first is framed");
        let first = &tiles[0].pixels;
        let middle = (first[60 * SIDE + 60].clamp(0.0, 1.0) * 255.0).round() as u8;
        assert_eq!(sheet.get_pixel(68, 68)[0], middle);
    }

    #[test]
    fn a_missing_image_is_an_error() {
        let source = simmim_data::demo_held_out().unwrap();
        let error = Tile::new(&source, 1_000_000, 1, String::new()).unwrap_err();
        assert!(matches!(error, TrainError::Data(DataError::OutOfRange { .. })), "{error}");
    }
}
