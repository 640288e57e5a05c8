//! Parts of images in whole pixels.

/// A part of an image: left, top, width, height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) left: usize,
    pub(crate) top: usize,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

impl Region {
    /// All of an image.
    pub(crate) fn whole(width: usize, height: usize) -> Self {
        Self { left: 0, top: 0, width, height }
    }

    /// The pixels that this part touches in the image at `1 / 2^shift` of its size.
    pub(crate) fn reduced(self, shift: u32) -> Self {
        let (left, top) = (self.left >> shift, self.top >> shift);
        let right = (self.left + self.width).div_ceil(1 << shift);
        let bottom = (self.top + self.height).div_ceil(1 << shift);
        Self { left, top, width: right - left, height: bottom - top }
    }

    /// This part and `margin` pixels more on each side, where there are that many at the left and the top.
    pub(crate) fn grown(self, margin: usize) -> Self {
        let (left, top) = (self.left.saturating_sub(margin), self.top.saturating_sub(margin));
        let (right, bottom) = (self.left + self.width + margin, self.top + self.height + margin);
        Self { left, top, width: right - left, height: bottom - top }
    }
}
