//! What a probe found: a table for people, JSON and CSV for programs.

use super::Space;
use super::labels::{FOLDS, STEADY};
use crate::error::TrainError;
use crate::run_folder::lock_probe;
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Where features come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The images themselves.
    Pixels,
    /// The same encoder with the weights it would start from.
    Random,
    /// The encoder in question.
    Trained,
}

/// Rating by k nearest neighbours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KnnScore {
    /// Number of neighbours, chosen on a part of the training images.
    pub k: usize,
    /// What is done to the features before, chosen with it.
    pub space: Space,
    /// Accuracy on that part.
    pub split_accuracy: f64,
    /// Accuracy on the validation images.
    pub val_accuracy: f64,
}

/// Rating by logistic regression.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinearScore {
    /// Strength of l2, chosen on a part of the training images: the objective is the mean cross-entropy + l2 / 2 |W|^2.
    pub l2: f64,
    /// Accuracy on that part.
    pub split_accuracy: f64,
    /// Accuracy on the validation images, after a fit to all training images.
    pub val_accuracy: f64,
    /// Whether that fit has converged.
    pub converged: bool,
    /// Largest element of its gradient.
    pub gradient: f64,
    /// Iterations of all fits, those by which l2 was chosen too.
    #[serde(default)]
    pub iterations: u64,
    /// Fits that ended because they had taken as many iterations as they may.
    #[serde(default)]
    pub capped: usize,
}

/// Ratings of one kind of features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What they are, for people.
    pub features: String,
    /// Where they come from.
    pub kind: Kind,
    /// The layer as a number: k for block k, -1 for the final norm.
    pub layer: Option<i64>,
    /// Numbers of a feature.
    pub dims: usize,
    /// Rating by k nearest neighbours.
    pub knn: Option<KnnScore>,
    /// Rating by logistic regression.
    pub linear: Option<LinearScore>,
}

/// A sweep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The weights.
    pub weights: String,
    /// `mean` or `cls`.
    pub pool: String,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Training images.
    pub train_images: usize,
    /// Validation images.
    pub val_images: usize,
    /// Side of the raw pixels, height and width.
    pub pixel_size: (usize, usize),
    /// A hash of what rows must have in common to stand in one table: images, labels, weights, pooling, seed, groups, cap on
    /// iterations.
    #[serde(default)]
    pub conditions: String,
    /// The ratings.
    pub rows: Vec<Row>,
}

/// Accuracies that differ by more are far apart.
const FAR: f64 = 0.1;

/// Accuracy on the part to choose by, and on the validation images.
type Accuracies = fn(&Row) -> Option<(f64, f64)>;

const METHODS: [(&str, Accuracies); 2] = [
    ("kNN", |r| r.knn.as_ref().map(|s| (s.split_accuracy, s.val_accuracy))),
    ("linear", |r| r.linear.as_ref().map(|s| (s.split_accuracy, s.val_accuracy))),
];

impl Report {
    /// The row of a kind that rates best on the held-out training images, never on the validation images.
    fn best(&self, kind: Kind, of: Accuracies) -> Option<(&Row, f64)> {
        let mut best: Option<(&Row, (f64, f64))> = None;
        for row in self.rows.iter().filter(|r| r.kind == kind) {
            if let Some(accuracies) = of(row).filter(|a| best.is_none_or(|(_, known)| a.0 > known.0)) {
                best = Some((row, accuracies));
            }
        }
        best.map(|(row, (_, val))| (row, val))
    }

    /// Standard error of an accuracy on the validation images.
    fn error_of(&self, accuracy: f64) -> f64 {
        (accuracy * (1.0 - accuracy) / self.val_images.max(1) as f64).sqrt()
    }

    /// The table. Accuracies in per cent: `split` on the part of the training images by which k, l2 and layer are chosen, `VAL` on
    /// the validation images.
    #[must_use]
    pub fn table(&self) -> String {
        let width = self.rows.iter().map(|r| r.features.len()).max().unwrap_or(0).max("features".len());
        let (knn, linear) = (self.rows.iter().any(|r| r.knn.is_some()), self.rows.iter().any(|r| r.linear.is_some()));
        let mut out = format!("{:width$}  {:>5}", "features", "dims");
        if knn {
            out.push_str("   kNN: k         space   split     VAL");
        }
        if linear {
            out.push_str("  linear: l2   split     VAL");
        }
        out.push('\n');
        let marks = METHODS.map(|(_, of)| self.best(Kind::Trained, of).map(|(row, _)| row.features.clone()));
        for row in &self.rows {
            let mark = |m: usize| {
                let best = row.kind == Kind::Trained && marks[m].as_ref() == Some(&row.features);
                if best { '*' } else { ' ' }
            };
            // Writing to a string cannot fail.
            let _ = write!(out, "{:width$}  {:>5}", row.features, row.dims);
            if let Some(s) = &row.knn {
                let (split, val) = (s.split_accuracy * 100.0, s.val_accuracy * 100.0);
                let _ = write!(out, "  {:>7}  {:>12}  {split:>6.2}  {val:>6.2}{}", s.k, s.space.name(), mark(0));
            }
            if let Some(s) = &row.linear {
                let (split, val) = (s.split_accuracy * 100.0, s.val_accuracy * 100.0);
                let note = if s.converged { "" } else { " not converged" };
                let _ = write!(out, "  {:>9.0e}  {split:>6.2}  {val:>6.2}{}{note}", s.l2, mark(1));
            }
            out.truncate(out.trim_end().len());
            out.push('\n');
        }
        out
    }

    /// One sentence for each method: the best layer, and how it compares.
    #[must_use]
    pub fn verdict(&self) -> Vec<String> {
        METHODS.iter().filter_map(|(name, of)| self.sentence(name, *of)).collect()
    }

    /// What should make one doubt the choices: accuracies on the held-out training images far above those on the validation images.
    /// `grouped` where the former were held out by groups.
    #[must_use]
    pub fn doubts(&self, grouped: bool) -> Vec<String> {
        let doubt = |(name, of): &(&str, Accuracies)| {
            let (split, val) = of(self.best(Kind::Trained, *of)?.0)?;
            // Of few images each is held out once, of many a fifth.
            let held_out =
                if self.train_images < FOLDS * STEADY { self.train_images } else { self.train_images / FOLDS };
            let variance = |images: usize| val * (1.0 - val) / images.max(1) as f64;
            let error = (variance(self.val_images) + variance(held_out)).sqrt();
            (split - val > FAR.max(3.0 * error)).then(|| {
                let why = if grouped {
                    "the validation images differ from the training images by more than their groups"
                } else {
                    "near-duplicates (crops, frames or copies of one object) may be on both sides of the split; --groups keeps what belongs \
                     together on one side. Otherwise the validation images are of another kind"
                };
                format!(
                    "{name}: {:.1} % on held-out training images and {:.1} % on VAL: what was selected may be the wrong choice; {why}",
                    split * 100.0,
                    val * 100.0
                )
            })
        };
        METHODS.iter().filter_map(doubt).collect()
    }

    fn sentence(&self, name: &str, of: Accuracies) -> Option<String> {
        let (best, accuracy) = self.best(Kind::Trained, of)?;
        let percent = |a: f64| format!("{:.2} %", a * 100.0);
        let mut text = format!(
            "{name}: {} is best on the held-out training images, {} +- {:.2} on VAL",
            best.features,
            percent(accuracy),
            self.error_of(accuracy) * 100.0
        );
        let baselines: Vec<(&Row, f64)> =
            [Kind::Pixels, Kind::Random].into_iter().filter_map(|kind| self.best(kind, of)).collect();
        for (row, accuracy) in &baselines {
            let _ = write!(text, "; {} {}", row.features, percent(*accuracy));
        }
        let highest = baselines.iter().map(|(_, a)| *a).fold(f64::MIN, f64::max);
        if !baselines.is_empty() {
            let gain = accuracy - highest;
            // Both accuracies are of the same images, so this is a cautious measure of chance.
            let chance = 2.0 * (self.error_of(accuracy).powi(2) + self.error_of(highest).powi(2)).sqrt();
            let points = gain.abs() * 100.0;
            text.push_str(&if gain > chance {
                format!(": {points:.2} points above the better baseline")
            } else if gain < -chance {
                format!(": {points:.2} points below the better baseline: these features do not help")
            } else {
                format!(": no clear difference from the better baseline ({:+.2} points)", gain * 100.0)
            });
        }
        Some(text)
    }

    /// One JSON object: the report, and as `best` the chosen layer of each method with its accuracy on the validation images.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        let best = |(name, of): &(&str, Accuracies)| {
            let (row, accuracy) = self.best(Kind::Trained, *of)?;
            let found = serde_json::json!({ "layer": row.layer, "features": row.features, "val_accuracy": accuracy,
                "standard_error": self.error_of(accuracy) });
            Some((name.to_lowercase(), found))
        };
        value["best"] = METHODS.iter().filter_map(best).collect::<serde_json::Map<_, _>>().into();
        value
    }

    /// A line a row.
    #[must_use]
    pub fn csv(&self) -> String {
        let mut out = String::from(
            "features,kind,layer,dims,knn_k,knn_space,knn_split_accuracy,knn_val_accuracy,linear_l2,linear_split_accuracy,\
             linear_val_accuracy,linear_converged\n",
        );
        for r in &self.rows {
            let kind =
                serde_json::to_value(r.kind).ok().and_then(|k| k.as_str().map(str::to_owned)).unwrap_or_default();
            let layer = r.layer.map(|l| l.to_string()).unwrap_or_default();
            let knn = r.knn.as_ref().map_or(",,,".to_owned(), |s| {
                format!("{},{},{},{}", s.k, s.space.name(), s.split_accuracy, s.val_accuracy)
            });
            let linear = r.linear.as_ref().map_or(",,,".to_owned(), |s| {
                format!("{},{},{},{}", s.l2, s.split_accuracy, s.val_accuracy, s.converged)
            });
            let features = r.features.replace(',', "");
            let _ = writeln!(out, "{features},{kind},{layer},{},{knn},{linear}", r.dims);
        }
        out
    }

    /// Writes `probe.json` and `probe.csv` into the folder of a run. What an earlier sweep found there under the same conditions and
    /// this one did not look at (layers, methods, baselines) stays; files of other conditions are renamed.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn write(&self, run: &Path) -> Result<Written, TrainError> {
        let _lock = lock_probe(run)?;
        let json = run.join("probe.json");
        let mut written = Written::New;
        let mut report = self.clone();
        if json.is_file() {
            let text = std::fs::read(&json).map_err(TrainError::io(&json))?;
            // What cannot be read as a report is some other program's, or an older one's: kept as well.
            match serde_json::from_slice::<Self>(&text).ok().filter(|before| before.conditions == self.conditions) {
                Some(before) => {
                    let kept = report.take_from(before);
                    written = if kept > 0 { Written::Merged(kept) } else { Written::New };
                }
                None => written = Written::Renamed(rename_earlier(run)?),
            }
        }
        simmim_files::write(&json, format!("{:#}\n", report.json()).as_bytes()).map_err(TrainError::io(&json))?;
        let csv = run.join("probe.csv");
        simmim_files::write(&csv, report.csv().as_bytes()).map_err(TrainError::io(&csv))?;
        Ok(written)
    }

    /// Takes over ratings that this report lacks; returns how many rows had some.
    fn take_from(&mut self, before: Self) -> usize {
        let mut kept = 0;
        for row in before.rows {
            match self.rows.iter_mut().find(|r| (r.kind, r.layer) == (row.kind, row.layer)) {
                Some(known) => {
                    let lacks =
                        (known.knn.is_none() && row.knn.is_some()) || (known.linear.is_none() && row.linear.is_some());
                    kept += usize::from(lacks);
                    known.knn = known.knn.take().or(row.knn);
                    known.linear = known.linear.take().or(row.linear);
                }
                None => {
                    kept += 1;
                    self.rows.push(row);
                }
            }
        }
        // The final norm, -1, comes after the blocks.
        self.rows.sort_by_key(|r| (r.kind, r.layer.map(|l| if l < 0 { i64::MAX } else { l })));
        kept
    }
}

/// What became of the files of an earlier sweep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// There was nothing that is not measured anew.
    New,
    /// So many rows keep ratings of earlier sweeps.
    Merged(usize),
    /// They were of other images, weights or settings, and have this name now.
    Renamed(PathBuf),
}

/// Gives `probe.json` and `probe.csv` the first free number.
fn rename_earlier(run: &Path) -> Result<PathBuf, TrainError> {
    let name = |n: usize, kind: &str| run.join(format!("probe-{n}.{kind}"));
    let free = (1..).find(|&n| !name(n, "json").exists() && !name(n, "csv").exists()).unwrap_or(1);
    for kind in ["csv", "json"] {
        let from = run.join(format!("probe.{kind}"));
        if from.exists() {
            std::fs::rename(&from, name(free, kind)).map_err(TrainError::io(&from))?;
        }
    }
    Ok(name(free, "json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(features: &str, kind: Kind, layer: Option<i64>, split: f64, val: f64) -> Row {
        let knn = Some(KnnScore { k: 5, space: Space::Plain, split_accuracy: split, val_accuracy: val });
        Row { features: features.into(), kind, layer, dims: 8, knn, linear: None }
    }

    fn report(val: f64) -> Report {
        Report {
            weights: "w".into(),
            pool: "mean".into(),
            classes: vec!["a".into(), "b".into()],
            train_images: 100,
            val_images: 10_000,
            pixel_size: (28, 28),
            conditions: "c".into(),
            rows: vec![
                row("raw pixels", Kind::Pixels, None, 0.7, 0.71),
                row("random weights, block 1", Kind::Random, Some(1), 0.6, 0.62),
                row("block 1", Kind::Trained, Some(1), 0.80, 0.90),
                row("block 2", Kind::Trained, Some(2), 0.81, val),
            ],
        }
    }

    #[test]
    fn the_layer_is_chosen_on_the_split_though_another_is_better_on_val() {
        let report = report(0.79);
        assert_eq!(report.json()["best"]["knn"]["layer"], 2);
        assert_eq!(
            report.verdict(),
            ["kNN: block 2 is best on the held-out training images, 79.00 % +- 0.41 on VAL; raw pixels 71.00 %; \
              random weights, block 1 62.00 %: 8.00 points above the better baseline"]
        );
        assert!(
            report.table().contains("block 2                      8        5         plain   81.00   79.00*"),
            "{}",
            report.table()
        );
        assert_eq!(report.csv().lines().nth(2), Some("random weights block 1,random,1,8,5,plain,0.6,0.62,,,,"));
    }

    #[test]
    fn a_narrower_sweep_keeps_what_a_fuller_one_found_and_other_conditions_are_renamed() {
        let folder = tempfile::tempdir().unwrap();
        let full = report(0.79);
        assert_eq!(full.write(folder.path()).unwrap(), Written::New);
        assert_eq!(full.write(folder.path()).unwrap(), Written::New);
        let mut narrow = report(0.5);
        narrow.rows.truncate(3);
        narrow.rows.remove(0);
        let linear = LinearScore {
            l2: 0.1,
            split_accuracy: 0.5,
            val_accuracy: 0.6,
            converged: true,
            gradient: 0.0,
            iterations: 9,
            capped: 0,
        };
        narrow.rows[1] = Row { knn: None, linear: Some(linear), ..narrow.rows[1].clone() };
        assert_eq!(narrow.write(folder.path()).unwrap(), Written::Merged(3));
        let read = |name: &str| -> Report {
            serde_json::from_slice(&std::fs::read(folder.path().join(name)).unwrap()).unwrap()
        };
        let merged = read("probe.json");
        let names: Vec<&str> = merged.rows.iter().map(|r| r.features.as_str()).collect();
        assert_eq!(names, ["raw pixels", "random weights, block 1", "block 1", "block 2"]);
        assert!(merged.rows[2].knn == full.rows[2].knn && merged.rows[2].linear == narrow.rows[1].linear);
        assert_eq!(std::fs::read_to_string(folder.path().join("probe.csv")).unwrap(), merged.csv());
        let other = Report { conditions: "other weights".into(), ..narrow };
        let aside = folder.path().join("probe-1.json");
        assert_eq!(other.write(folder.path()).unwrap(), Written::Renamed(aside));
        assert_eq!((read("probe-1.json"), read("probe.json")), (merged, other));
        assert!(folder.path().join("probe-1.csv").is_file());
    }

    #[test]
    fn probes_that_end_at_once_lose_no_row() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for layer in 0..16 {
                let rows = vec![row(&format!("block {layer}"), Kind::Trained, Some(layer), 0.5, 0.5)];
                let report = Report { rows, ..report(0.5) };
                let folder = folder.path();
                scope.spawn(move || report.write(folder).unwrap());
            }
        });
        let merged: Report = serde_json::from_slice(&std::fs::read(folder.path().join("probe.json")).unwrap()).unwrap();
        assert_eq!(merged.rows.iter().filter_map(|r| r.layer).collect::<Vec<_>>(), (0..16).collect::<Vec<_>>());
        assert_eq!(std::fs::read_to_string(folder.path().join("probe.csv")).unwrap(), merged.csv());
    }

    #[test]
    fn accuracies_that_are_far_apart_are_doubted() {
        assert_eq!(report(0.72).doubts(false), Vec::<String>::new());
        let doubts = report(0.54).doubts(false);
        assert!(doubts[0].starts_with("kNN: 81.0 % on held-out training images and 54.0 % on VAL"), "{doubts:?}");
        assert!(doubts[0].contains("--groups") && !report(0.54).doubts(true)[0].contains("--groups"));
        // On a few images that much is chance.
        let few = Report { val_images: 12, ..report(0.65) };
        assert_eq!(few.doubts(false), Vec::<String>::new());
    }

    #[test]
    fn what_does_not_help_is_called_so() {
        assert!(
            report(0.65).verdict()[0].ends_with("6.00 points below the better baseline: these features do not help")
        );
        assert!(report(0.711).verdict()[0].ends_with("no clear difference from the better baseline (+0.10 points)"));
    }
}
