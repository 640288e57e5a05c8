//! Whether a model overfits: held-out loss rises while training loss falls.

use crate::metrics::Record;

/// Rise of the held-out loss above its least value that counts, as a share of it; less is noise of the measurement.
const MARGIN: f32 = 0.01;

/// One measurement of the held-out loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Steps done.
    pub step: u64,
    /// Mean training loss since the measurement before.
    pub train: f32,
    /// Held-out loss.
    pub val: f32,
}

/// The measurements of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Curve {
    points: Vec<Point>,
    sum: f64,
    lines: u32,
}

/// A rise of the held-out loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Overfitting {
    /// Where the held-out loss was least.
    pub best: Point,
    /// The last measurement.
    pub last: Point,
}

impl Curve {
    /// The measurements in lines of metrics.
    #[must_use]
    pub fn of(records: &[Record]) -> Self {
        let mut curve = Self::default();
        records.iter().for_each(|r| curve.add(r));
        curve
    }

    /// Goes on with a line.
    pub fn add(&mut self, record: &Record) {
        if record.loss.is_finite() {
            self.sum += f64::from(record.loss);
            self.lines += 1;
        }
        if let Some(val) = record.val_loss.filter(|v| v.is_finite()) {
            if self.lines > 0 {
                let train = (self.sum / f64::from(self.lines)) as f32;
                self.points.push(Point { step: record.step, train, val });
            }
            (self.sum, self.lines) = (0.0, 0);
        }
    }

    /// Whether the last two measurements lie above the least one by more than noise, while the training loss went on falling.
    #[must_use]
    pub fn overfitting(&self) -> Option<Overfitting> {
        let best = *self.points.iter().min_by(|a, b| a.val.total_cmp(&b.val))?;
        let (last, before) = match self.points.as_slice() {
            [.., before, last] if before.step > best.step => (*last, *before),
            _ => return None,
        };
        let high = best.val * (1.0 + MARGIN);
        (last.val > high && before.val > high && last.train < best.train).then_some(Overfitting { best, last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(f32, f32)]) -> Curve {
        let record = |(i, &(loss, val)): (usize, &(f32, f32))| {
            // Two lines for each measurement; the mean training loss is between them.
            let line =
                |step: u64, loss: f32, val_loss: Option<f32>| Record { step, loss, val_loss, ..Record::default() };
            let step = 20 * i as u64;
            [line(step + 10, loss + 0.05, None), line(step + 20, loss - 0.05, Some(val))]
        };
        Curve::of(&points.iter().enumerate().flat_map(record).collect::<Vec<_>>())
    }

    #[test]
    fn a_lasting_rise_with_falling_training_loss_is_found() {
        let found = curve(&[(1.0, 1.1), (0.7, 0.8), (0.5, 0.85), (0.4, 0.9)]).overfitting().unwrap();
        assert_eq!((found.best.step, found.best.val, found.last.step, found.last.val), (40, 0.8, 80, 0.9));
        assert!((found.best.train - 0.7).abs() < 1e-6);
    }

    #[test]
    fn noise_a_single_rise_and_divergence_are_not() {
        for points in [
            &[(1.0, 1.1), (0.7, 0.8), (0.5, 0.803), (0.4, 0.805)][..],
            &[(1.0, 1.1), (0.7, 0.8), (0.5, 0.7), (0.4, 0.9)],
            &[(1.0, 1.1), (0.7, 0.8), (0.8, 0.9), (0.9, 1.0)],
            &[(1.0, 1.1), (0.7, 0.8)],
            &[(1.0, 1.1)],
            &[],
        ] {
            assert_eq!(curve(points).overfitting(), None, "{points:?}");
        }
    }
}
