//! A Swin transformer out of what its tensors and its description say.

use super::card::Card;
use super::facts::{SwinFacts, square};
use crate::swin::{Stage, SwinConfig, Version};

impl SwinFacts {
    /// The model that a description names, of these sizes.
    fn named(&self, card: &Card) -> Option<SwinConfig> {
        let named = SwinConfig::preset(card.name.as_deref()?).ok()?;
        (named.version == self.version && named.embed_dim == self.embed_dim).then_some(named)
    }

    /// Height and width of the images: described, or those of a square grid of positions.
    pub(super) fn image_size(&self, card: &Card) -> Option<(usize, usize)> {
        let (rows, cols) = self.stride();
        let described = card.image_size.filter(|(h, w)| h.is_multiple_of(rows) && w.is_multiple_of(cols));
        let positions = || {
            let (side, _) = square(self.places?)?;
            Some((side.saturating_mul(self.patch_size.0), side.saturating_mul(self.patch_size.1)))
        };
        described.or_else(positions).or_else(|| self.named(card).map(|c| c.image_size))
    }

    /// The model; none where the size of images or windows is not known.
    pub(super) fn config(&self, card: &Card) -> Option<SwinConfig> {
        let named = self.named(card);
        let of_tables = || self.windows.as_ref().and_then(|w| w.iter().copied().max());
        let window_size =
            card.stages.window_size.or_else(|| named.as_ref().map(|c| c.window_size)).or_else(of_tables)?;
        let told = Some(card.stages.pretrained_windows.clone()).filter(|w| w.len() == self.depths.len());
        let pretrained = told.or_else(|| named.map(|c| c.pretrained_windows)).unwrap_or_default();
        Some(SwinConfig {
            version: self.version,
            image_size: self.image_size(card)?,
            patch_size: self.patch_size,
            channels: self.channels,
            embed_dim: self.embed_dim,
            depths: self.depths.clone(),
            num_heads: self.num_heads.clone(),
            window_size,
            pretrained_windows: if pretrained.iter().any(|&w| w > 0) { pretrained } else { Vec::new() },
            mlp_ratio: self.mlp_ratio(),
            absolute: self.places.is_some(),
            drop_path: 0.0,
            qkv_bias: self.qkv_bias,
            final_norm: self.final_norm,
            eps: 1e-5,
        })
    }

    /// Width of the MLP as a multiple of the width, from which it is rounded down.
    #[must_use]
    pub fn mlp_ratio(&self) -> f64 {
        super::facts::ratio(self.mlp_dim, self.embed_dim)
    }

    /// In what a description differs from the tensors.
    pub(super) fn contradiction(&self, card: &Card) -> Option<String> {
        let sizes = [
            ("width", card.embed_dim, self.embed_dim),
            ("height of a patch", card.patch_size.map(|p| p.0), self.patch_size.0),
            ("width of a patch", card.patch_size.map(|p| p.1), self.patch_size.1),
            ("number of channels", card.channels, self.channels),
            ("width of the MLP", card.stages.mlp_ratio.map(|r| (self.embed_dim as f64 * r) as usize), self.mlp_dim),
        ];
        let lists = [
            ("blocks in the stages", &card.stages.depths, &self.depths),
            ("heads in the stages", &card.stages.num_heads, &self.num_heads),
        ];
        let size = sizes.into_iter().find_map(|(what, said, is)| {
            said.filter(|&said| said != is).map(|said| format!("{what} {said}, the tensors {is}"))
        });
        let list = || {
            lists.into_iter().find_map(|(what, said, is)| {
                (!said.is_empty() && said != is).then(|| format!("{what} {said:?}, the tensors {is:?}"))
            })
        };
        size.or_else(list).or_else(|| self.other_windows(card))
    }

    /// Windows of the tables that are not those of the description: a window shrinks to the map where that is smaller.
    fn other_windows(&self, card: &Card) -> Option<String> {
        let (config, tables) = (self.config(card)?, self.windows.as_ref()?);
        let described: Vec<usize> = config.stages().iter().map(|s| s.window.0).collect();
        let square = config.stages().iter().all(|s| s.window.0 == s.window.1);
        (square && described != *tables)
            .then(|| format!("windows of {described:?} in the stages, the tensors {tables:?}"))
    }
}

impl SwinConfig {
    /// Why Hugging Face's model of these sizes computes something else, if it does: it pads a map before it is shifted, shifts both axes or
    /// none, and has square windows, which in version 1 must fit the map.
    pub(super) fn differs_in_hugging_face(&self) -> Option<String> {
        let differs = |s: &Stage| {
            let (grid, window, shift) = (s.grid, s.window, s.shift(1));
            if window.0 != window.1 || (self.version == Version::V1 && window.0 != self.window_size) {
                return Some(format!(
                    "windows of {0}x{0} do not fit a map of {1}x{2}",
                    self.window_size, grid.0, grid.1
                ));
            }
            if !grid.0.is_multiple_of(window.0) || !grid.1.is_multiple_of(window.1) {
                return Some(format!("windows of {0}x{0} do not divide a map of {1}x{2}", window.0, grid.0, grid.1));
            }
            (shift.0 != shift.1).then(|| format!("a map of {}x{} is shifted along one axis", grid.0, grid.1))
        };
        self.stages().iter().find_map(differs)
    }
}
