//! Learning rate by optimiser step.

use simmim_models::optimizer::Rate;

/// Shape of the schedule after the warm-up.
#[derive(Debug, Clone, PartialEq)]
pub enum Decay {
    /// `min + (lr - min) / 2 (1 + cos(pi t / total))`.
    Cosine {
        /// Whether `t` and `total` count from the end of the warm-up, as in microsoft/Swin-Transformer; microsoft/SimMIM counts from step 0.
        after_warmup: bool,
    },
    /// Straight from `lr` at the end of the warm-up to `min` at the last step.
    Linear,
    /// `lr gamma^k`, `k` the number of milestones (steps) at or before `t`.
    MultiStep {
        /// Steps at which the rate drops.
        milestones: Vec<u64>,
        /// Factor of each drop.
        gamma: f64,
    },
    /// Always `lr`.
    Constant,
}

/// A schedule: warm-up, then decay.
#[derive(Debug, Clone, PartialEq)]
pub struct LearningRate {
    /// Rate after the warm-up.
    pub lr: f64,
    /// Rate at step 0 where there is a warm-up.
    pub warmup_lr: f64,
    /// Rate at the end.
    pub min_lr: f64,
    /// Steps of the warm-up.
    pub warmup_steps: u64,
    /// Steps of the training.
    pub total_steps: u64,
    /// What follows the warm-up.
    pub decay: Decay,
}

impl LearningRate {
    /// The rate of step `t`, counted from 0. Layers with a smaller rate follow the same schedule, from and to the same
    /// [`Self::warmup_lr`] and [`Self::min_lr`], as in the official code: those are the floor.
    #[must_use]
    pub fn at(&self, t: u64) -> Rate {
        Rate { lr: self.towards(self.lr, t), floor: self.towards(0.0, t) }
    }

    /// The schedule of a layer whose rate after the warm-up is `lr`.
    fn towards(&self, lr: f64, t: u64) -> f64 {
        if t < self.warmup_steps {
            return self.warmup_lr + t as f64 * (lr - self.warmup_lr) / self.warmup_steps as f64;
        }
        match &self.decay {
            Decay::Cosine { after_warmup } => {
                let start = if *after_warmup { self.warmup_steps } else { 0 };
                let share = ((t - start) as f64 / self.total_steps.saturating_sub(start).max(1) as f64).min(1.0);
                self.min_lr + (lr - self.min_lr) / 2.0 * (1.0 + (std::f64::consts::PI * share).cos())
            }
            Decay::Linear => {
                let span = self.total_steps.saturating_sub(self.warmup_steps).max(1);
                let share = ((t - self.warmup_steps) as f64 / span as f64).min(1.0);
                lr + (self.min_lr - lr) * share
            }
            Decay::MultiStep { milestones, gamma } => {
                lr * gamma.powi(milestones.iter().filter(|&&m| m <= t).count() as i32)
            }
            Decay::Constant => lr,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_have_their_closed_forms() {
        let base = LearningRate {
            lr: 1.0,
            warmup_lr: 0.1,
            min_lr: 0.2,
            warmup_steps: 10,
            total_steps: 100,
            decay: Decay::Cosine { after_warmup: false },
        };
        let after = LearningRate { decay: Decay::Cosine { after_warmup: true }, ..base.clone() };
        let linear = LearningRate { decay: Decay::Linear, ..base.clone() };
        let steps = Decay::MultiStep { milestones: vec![50, 80], gamma: 0.1 };
        let steps = LearningRate { decay: steps, ..base.clone() };
        let constant = LearningRate { decay: Decay::Constant, warmup_steps: 0, ..base.clone() };
        let table: [(&LearningRate, u64, f64); 12] = [
            (&base, 0, 0.1),
            (&base, 5, 0.55),
            (&base, 50, 0.6),
            (&base, 100, 0.2),
            (&after, 10, 1.0),
            (&after, 55, 0.6),
            (&linear, 10, 1.0),
            (&linear, 55, 0.6),
            (&linear, 100, 0.2),
            (&steps, 49, 1.0),
            (&steps, 80, 0.01),
            (&constant, 0, 1.0),
        ];
        for (schedule, t, expected) in table {
            let found = schedule.at(t).lr;
            assert!((found - expected).abs() < 1e-12, "{schedule:?} at {t}: {found}");
        }
    }
}
