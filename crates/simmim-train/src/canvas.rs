//! Text and rectangles on a picture.

use crate::error::TrainError;
use embedded_graphics::Pixel;
use embedded_graphics::mono_font::MonoTextStyle;
use embedded_graphics::mono_font::iso_8859_1::FONT_6X10;
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::{Dimensions, DrawTarget, Drawable, OriginDimensions, Point, RgbColor, Size};
use embedded_graphics::text::{Alignment, Baseline, Text, TextStyleBuilder};
use image::{Rgb, RgbImage};
use std::convert::Infallible;
use std::path::Path;

/// Width of a letter in pixels.
pub(crate) const LETTER: u32 = 6;
/// Height of a line of text in pixels.
pub(crate) const LINE: u32 = 10;

/// A picture that text can be written on.
pub(crate) struct Canvas(RgbImage);

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        Size::new(self.0.width(), self.0.height())
    }
}

impl DrawTarget for Canvas {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        let area = self.bounding_box();
        for Pixel(at, color) in pixels {
            if area.contains(at) {
                self.0.put_pixel(at.x as u32, at.y as u32, Rgb([color.r(), color.g(), color.b()]));
            }
        }
        Ok(())
    }
}

impl Canvas {
    /// A white picture.
    pub(crate) fn new(width: u32, height: u32) -> Self {
        Self(RgbImage::from_pixel(width, height, Rgb([255, 255, 255])))
    }

    /// A rectangle; what lies outside the picture is left out.
    pub(crate) fn fill(&mut self, left: u32, top: u32, width: u32, height: u32, color: [u8; 3]) {
        for (x, y) in (left..left + width).flat_map(|x| (top..top + height).map(move |y| (x, y))) {
            if x < self.0.width() && y < self.0.height() {
                self.0.put_pixel(x, y, Rgb(color));
            }
        }
    }

    /// Text with its middle line at `y`; `x` is its left end, middle or right end.
    pub(crate) fn text(&mut self, text: &str, x: u32, y: u32, alignment: Alignment, color: [u8; 3]) {
        let font = MonoTextStyle::new(&FONT_6X10, Rgb888::new(color[0], color[1], color[2]));
        let style = TextStyleBuilder::new().alignment(alignment).baseline(Baseline::Middle).build();
        // Drawing on memory cannot fail.
        let _ = Text::with_text_style(text, Point::new(x as i32, y as i32), font, style).draw(self);
    }

    /// The picture with its rows as columns: lines of text then read upwards, the first at the left.
    pub(crate) fn turned(&self) -> Self {
        Self(image::imageops::rotate270(&self.0))
    }

    /// Puts another picture onto this one.
    pub(crate) fn paste(&mut self, other: &Self, left: u32, top: u32) {
        image::imageops::replace(&mut self.0, &other.0, i64::from(left), i64::from(top));
    }

    /// Writes a PNG file.
    pub(crate) fn save(&self, path: &Path) -> Result<(), TrainError> {
        let io = |e: image::ImageError| TrainError::Io { path: path.to_owned(), source: std::io::Error::other(e) };
        let mut bytes = std::io::Cursor::new(Vec::new());
        self.0.write_to(&mut bytes, image::ImageFormat::Png).map_err(io)?;
        simmim_files::write(path, bytes.get_ref()).map_err(TrainError::io(path))
    }
}
