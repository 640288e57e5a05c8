//! Rotations, shears and shifts, as PIL's `Image.transform` does them.

use super::Raster;

/// How values between pixels are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Filter {
    /// From the four pixels around.
    #[default]
    Bilinear,
    /// From sixteen, by PIL's cubic for transformations (a = -1).
    Bicubic,
}

impl Filter {
    /// First of the pixels and their weights for a place along an axis, relative to the centre of the first pixel.
    fn weights(self, place: f64) -> (isize, [f32; 4]) {
        let floor = place.floor();
        let d = (place - floor) as f32;
        match self {
            Self::Bilinear => (floor as isize, [1.0 - d, d, 0.0, 0.0]),
            Self::Bicubic => {
                let (d2, d3) = (d * d, d * d * d);
                let weights = [-d + 2.0 * d2 - d3, 1.0 - 2.0 * d2 + d3, d + d2 - d3, d3 - d2];
                (floor as isize - 1, weights)
            }
        }
    }

    fn taps(self) -> usize {
        match self {
            Self::Bilinear => 2,
            Self::Bicubic => 4,
        }
    }
}

impl Raster {
    /// The pixel at `(x, y)` comes from `(a x + b y + c, d x + e y + f)`, both counted from the corner of the first pixel; what
    /// comes from outside is `fill`.
    pub fn affine(&mut self, [a, b, c, d, e, f]: [f64; 6], filter: Filter, fill: &[u8]) {
        let source = self.clone();
        let (height, width) = (self.height, self.width);
        let area = height * width;
        let clamp = |i: isize, len: usize| i.clamp(0, len as isize - 1) as usize;
        for i in 0..area {
            let (x, y) = ((i % width) as f64 + 0.5, (i / width) as f64 + 0.5);
            let (from_x, from_y) = (a * x + b * y + c, d * x + e * y + f);
            let inside = (0.0..width as f64).contains(&from_x) && (0.0..height as f64).contains(&from_y);
            let (left, across) = filter.weights(from_x - 0.5);
            let (top, down) = filter.weights(from_y - 0.5);
            for channel in 0..self.channels {
                let plane = &source.samples[channel * area..(channel + 1) * area];
                self.samples[channel * area + i] = if inside {
                    let mut sum = 0.0;
                    for (dy, wy) in down.iter().enumerate().take(filter.taps()) {
                        let row = &plane[clamp(top + dy as isize, height) * width..][..width];
                        for (dx, wx) in across.iter().enumerate().take(filter.taps()) {
                            sum += wy * wx * f32::from(row[clamp(left + dx as isize, width)]);
                        }
                    }
                    // PIL cuts off the fraction; a little more keeps whole values whole.
                    (sum + 1e-3).clamp(0.0, 255.0) as u8
                } else {
                    fill.get(channel).copied().unwrap_or(0)
                };
            }
        }
    }

    /// PIL's `Image.rotate`: counter-clockwise about the centre, the size kept.
    pub fn rotate(&mut self, degrees: f64, filter: Filter, fill: &[u8]) {
        let (sin, cos) = (-degrees.to_radians()).sin_cos();
        let (x, y) = (self.width as f64 / 2.0, self.height as f64 / 2.0);
        self.affine([cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y], filter, fill);
    }
}
