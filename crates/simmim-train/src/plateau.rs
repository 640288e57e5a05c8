//! Trainings that get nowhere: a held-out loss that stays at that of one colour, a training loss that doubles.

use crate::metrics::Record;
use crate::recipe::{PositionInitKind, Recipe, WeightInitKind};
use crate::trivial::TrivialLosses;

/// A held-out loss above this share of the mean colour's has learnt next to nothing.
const NEAR: f32 = 0.97;
/// Steps for which that must last.
const STEPS: u64 = 300;
/// Change over those steps, as a share, that still counts as standing still.
const STILL: f32 = 0.03;
/// Training loss, as a multiple of the lowest so far, that counts as a fault where two lines in turn have it: one line of a small
/// batch may hold hard images.
const FACTOR: f32 = 2.0;

/// What helps against a plateau, measured in docs/results.md: other initial values where the recipe has not got them yet.
#[must_use]
pub fn remedy(recipe: &Recipe) -> &'static str {
    let model = &recipe.model;
    let started =
        model.position_init == Some(PositionInitKind::Sincos) && model.weight_init == Some(WeightInitKind::Xavier);
    if started || model.depths.is_some() {
        "train longer, with a smaller train.batch_size: short runs want steps more than images"
    } else {
        "start again with model.position_init=\"sincos\", model.weight_init=\"xavier\" and a smaller train.batch_size"
    }
}

/// Looks for both faults in the lines of a run's metrics, and tells each once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plateau {
    held_out: Vec<(u64, f32)>,
    lowest: Option<(u64, f32)>,
    was_high: bool,
    told: [bool; 2],
    remedy: &'static str,
}

impl Plateau {
    /// For a run by this recipe.
    #[must_use]
    pub fn of(recipe: &Recipe) -> Self {
        Self { remedy: remedy(recipe), ..Self::default() }
    }

    /// What would help this run.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        self.remedy
    }

    /// Goes on with a line; returns what there is to warn of.
    pub fn add(&mut self, record: &Record, trivial: Option<&TrivialLosses>) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(val) = record.val_loss.filter(|v| v.is_finite()) {
            self.held_out.push((record.step, val));
        }
        if let Some(mean_color) = trivial.map(|t| t.mean_color)
            && let Some(since) = self.standing_since(mean_color)
            && !std::mem::replace(&mut self.told[0], true)
        {
            let val = self.held_out.last().map_or(f32::NAN, |last| last.1);
            warnings.push(format!(
                "the held-out loss {val:.4} has been near that of the mean colour, {mean_color:.4}, since step {since}: the model \
                 paints hidden patches in one colour; {}",
                self.remedy
            ));
        }
        if record.loss.is_finite() {
            let high = self.lowest.filter(|(_, lowest)| record.loss > FACTOR * lowest);
            if let Some((step, lowest)) = high
                && std::mem::replace(&mut self.was_high, true)
                && !std::mem::replace(&mut self.told[1], true)
            {
                warnings.push(format!(
                    "the training loss has doubled: {lowest:.4} at step {step}, {:.4} at step {}; lower optimizer.lr",
                    record.loss, record.step
                ));
            }
            self.was_high = high.is_some();
            if self.lowest.is_none_or(|(_, lowest)| record.loss < lowest) {
                self.lowest = Some((record.step, record.loss));
            }
        }
        warnings
    }

    /// The last measurement but those of the last [`STEPS`] steps, where the held-out loss has stood still near the mean colour's
    /// from there on.
    fn standing_since(&self, mean_color: f32) -> Option<u64> {
        let (last, val) = *self.held_out.last()?;
        let start = self.held_out.iter().rposition(|(step, _)| step + STEPS <= last)?;
        let still = |v: f32| v >= NEAR * mean_color && (v - val).abs() <= STILL * val;
        self.held_out[start..].iter().all(|(_, v)| still(*v)).then(|| self.held_out[start].0)
    }
}

/// Whether a held-out loss is next to that of the mean colour.
#[must_use]
pub fn is_near_mean_color(val: f32, trivial: &TrivialLosses) -> bool {
    val >= NEAR * trivial.mean_color
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64, loss: f32, val_loss: Option<f32>) -> Record {
        Record { step, loss, val_loss, ..Record::default() }
    }

    const TRIVIAL: TrivialLosses = TrivialLosses { mean_color: 0.25, visible_neighbors: 0.18 };

    /// The warnings of a run measured every 100 steps.
    fn warned(values: &[f32]) -> Vec<(u64, String)> {
        let mut plateau = Plateau { remedy: "start with sincos", ..Plateau::default() };
        let line = |(i, v): (usize, &f32)| {
            let step = 100 * (i as u64 + 1);
            plateau
                .add(&record(step, *v, Some(*v)), Some(&TRIVIAL))
                .into_iter()
                .map(move |w| (step, w))
                .collect::<Vec<_>>()
        };
        values.iter().enumerate().flat_map(line).collect()
    }

    #[test]
    fn a_loss_that_stays_at_the_mean_colour_is_told_once() {
        let found = warned(&[0.4, 0.26, 0.254, 0.253, 0.2529, 0.2528, 0.2527]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].0, 500);
        assert!(
            found[0].1.contains("0.2529") && found[0].1.contains("since step 200") && found[0].1.contains("sincos")
        );
    }

    #[test]
    fn the_remedy_is_none_that_the_recipe_has_already() {
        let recipe = |name: &str| Recipe::resolve(name, &[]).unwrap();
        assert!(remedy(&recipe("official_vit_base_patch16")).contains("sincos"));
        for started in ["small_images_64", "swin_small_images_64"] {
            assert!(remedy(&recipe(started)).contains("train longer"), "{started}");
        }
    }

    #[test]
    fn a_loss_that_falls_is_no_plateau() {
        assert!(warned(&[0.40, 0.33, 0.29, 0.27, 0.255, 0.247, 0.24, 0.235, 0.234, 0.234, 0.234]).is_empty());
        assert!(warned(&[0.2529, 0.2528, 0.2527]).is_empty());
    }

    #[test]
    fn nothing_is_said_while_the_trivial_losses_are_unknown() {
        let mut plateau = Plateau::default();
        for step in [100, 400, 700] {
            assert!(plateau.add(&record(step, 0.25, Some(0.25)), None).is_empty());
        }
        assert_eq!(plateau.add(&record(1000, 0.25, Some(0.25)), Some(&TRIVIAL)).len(), 1);
    }

    #[test]
    fn a_training_loss_that_doubles_is_told_once() {
        let mut plateau = Plateau::default();
        let mut said = Vec::new();
        for (step, loss) in
            [(10, 0.9), (20, 0.3), (30, 0.7), (35, 0.5), (40, f32::NAN), (45, 0.65), (50, 0.61), (60, 0.7)]
        {
            said.extend(plateau.add(&record(step, loss, None), None));
        }
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("0.3000 at step 20, 0.6100 at step 50"), "{said:?}");
    }
}
