//! How images are brought to an encoder, for those who use it elsewhere.

use serde::Serialize;
use simmim_data::{Interpolation, Transform};

/// What happens to an image before an encoder sees it, in the words of timm's data configuration.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Preprocessing {
    /// Channels, height and width.
    pub input_size: [usize; 3],
    /// `bilinear` or `bicubic`.
    pub interpolation: &'static str,
    /// Mean of each channel, of values in 0 to 1.
    pub mean: Vec<f32>,
    /// Deviation of each channel.
    pub std: Vec<f32>,
    /// Share of the shorter side that the centre crop takes.
    pub crop_pct: f64,
}

impl Preprocessing {
    /// That of a transform, without what it does at random.
    #[must_use]
    pub fn of(transform: &Transform) -> Self {
        let (height, width) = transform.size;
        Self {
            input_size: [transform.channels, height, width],
            interpolation: match transform.interpolation {
                Interpolation::Bilinear => "bilinear",
                Interpolation::Bicubic => "bicubic",
            },
            mean: transform.mean.clone(),
            std: transform.std.clone(),
            crop_pct: transform.keep,
        }
    }

    /// What the metadata of a file with an encoder say.
    pub(crate) fn description(&self) -> serde_json::Value {
        serde_json::json!({ "images": self })
    }

    /// The call of timm that makes this of a PIL image.
    #[must_use]
    pub fn timm_call(&self) -> String {
        let [channels, height, width] = self.input_size;
        // Python takes a number in parentheses for a number.
        let tuple = |values: &[f32]| values.iter().map(|v| format!("{v:?},")).collect::<Vec<_>>().join(" ");
        format!(
            "timm.data.create_transform(input_size=({channels}, {height}, {width}), interpolation='{}', mean=({}), std=({}), crop_pct={:?})",
            self.interpolation,
            tuple(&self.mean),
            tuple(&self.std),
            self.crop_pct
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_call_is_python_for_any_number_of_channels() {
        let transform = Transform { mean: vec![0.25], std: vec![1.0], ..Transform::new((28, 32), 1) };
        let gray = Preprocessing::of(&transform).timm_call();
        assert!(gray.starts_with("timm.data.create_transform(input_size=(1, 28, 32), interpolation='bi"), "{gray}");
        assert!(gray.ends_with("mean=(0.25,), std=(1.0,), crop_pct=1.0)"), "{gray}");
        let color = Preprocessing { mean: vec![0.5, 0.25], ..Preprocessing::of(&transform) };
        assert!(color.timm_call().contains("mean=(0.5, 0.25,)"), "{}", color.timm_call());
    }
}
