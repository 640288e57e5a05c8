//! Watches the loss for numbers that are not finite and for spikes.

use std::collections::VecDeque;

/// Losses after which a median means something.
const ENOUGH: usize = 10;

/// What a step looks like.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// As usual.
    Fine,
    /// Far above the recent losses.
    Spike {
        /// Median of the recent losses.
        median: f32,
    },
    /// Loss or gradient norm is not a finite number.
    NotFinite {
        /// Which of them.
        what: &'static str,
    },
}

/// Compares each loss with the median of the last ones.
#[derive(Debug, Clone)]
pub struct Guard {
    factor: f32,
    window: usize,
    recent: VecDeque<f32>,
}

impl Guard {
    /// A spike is a loss above `factor` times the median of the last `window` losses; a factor of 0 turns spikes off.
    #[must_use]
    pub fn new(factor: f32, window: usize) -> Self {
        Self { factor, window: window.max(1), recent: VecDeque::new() }
    }

    /// Losses in the window, oldest first.
    #[must_use]
    pub fn recent(&self) -> Vec<f32> {
        self.recent.iter().copied().collect()
    }

    /// Goes on with a window that [`Guard::recent`] gave.
    pub fn restore(&mut self, recent: &[f32]) {
        self.recent = recent[recent.len().saturating_sub(self.window)..].iter().copied().collect();
    }

    /// Judges a step. Losses that are not fine do not enter the window.
    pub fn observe(&mut self, loss: f32, grad_norm: f32) -> Verdict {
        if !loss.is_finite() {
            return Verdict::NotFinite { what: "the loss" };
        }
        if !grad_norm.is_finite() {
            return Verdict::NotFinite { what: "the gradient norm" };
        }
        if self.recent.len() >= self.window.min(ENOUGH) {
            let mut sorted: Vec<f32> = self.recent.iter().copied().collect();
            sorted.sort_by(f32::total_cmp);
            let median = sorted[sorted.len() / 2];
            if self.factor > 0.0 && loss > self.factor * median {
                return Verdict::Spike { median };
            }
        }
        if self.recent.len() == self.window {
            self.recent.pop_front();
        }
        self.recent.push_back(loss);
        Verdict::Fine
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spikes_and_numbers_that_are_not_finite_are_told() {
        let mut guard = Guard::new(2.0, 5);
        for loss in [9.0, 1.0, 1.1, 0.9, 1.0, 1.0, 1.2] {
            assert_eq!(guard.observe(loss, 1.0), Verdict::Fine);
        }
        assert_eq!(guard.observe(2.5, 1.0), Verdict::Spike { median: 1.0 });
        assert_eq!(guard.observe(1.0, 1.0), Verdict::Fine);
        assert_eq!(guard.observe(f32::NAN, 1.0), Verdict::NotFinite { what: "the loss" });
        assert_eq!(guard.observe(1.0, f32::INFINITY), Verdict::NotFinite { what: "the gradient norm" });
    }

    #[test]
    fn a_restored_window_judges_as_the_one_it_was_taken_from() {
        let mut guard = Guard::new(2.0, 50);
        (0..12).for_each(|i| assert_eq!(guard.observe(1.0 + i as f32 / 100.0, 1.0), Verdict::Fine));
        let mut other = Guard::new(2.0, 50);
        other.restore(&guard.recent());
        assert_eq!(other.observe(3.0, 1.0), Verdict::Spike { median: 1.06 });
        assert_eq!(guard.observe(3.0, 1.0), Verdict::Spike { median: 1.06 });
    }
}
