//! `simmim probe`.

#![allow(clippy::print_stdout, reason = "results go to standard output")]

use crate::arguments::{LogFormat, Method, Probe};
use crate::commands::features::{Maker, RANDOM, TRAINED, check_pooling};
use crate::commands::fits::{Fits, warn_of_cap};
use crate::commands::groups::{Grouped, Groups};
use crate::commands::open_images;
use crate::commands::weights::{self, Encoder};
use crate::diagnostics::Failure;
use crate::meter::say;
use simmim_data::{Source, demo, demo_held_out};
use simmim_models::ParameterSpec;
use simmim_train::features::{Features, Layer, Matrix, Pooling, pixels};
use simmim_train::probe::groups::{fingerprint, group_folds};
use simmim_train::probe::linear::MOST_ITERATIONS;
use simmim_train::probe::{
    Kind, LabelledSet, LabelledSets, Methods, Prober, Report, Split, Written, features_of, folds, pixel_transform,
};
use std::process::ExitCode;

pub(crate) fn run(a: &Probe, format: LogFormat) -> Result<ExitCode, Failure> {
    weights::recipe(&a.weights)?;
    let (train, val) = open(a)?;
    let groups = a.groups.as_deref().map(Groups::open).transpose()?;
    let sets = LabelledSets::new(&*train, &*val, (a.data.as_deref(), a.val.as_deref()))?;
    if let (Some(groups), Some(argument)) = (&groups, &a.groups) {
        // Refused before features are made.
        let found = groups.find(&*train, &sets.train.images, argument)?;
        group_folds(&sets.train.labels, &found.groups, sets.classes.len(), a.seed)?;
    }
    sets.warnings.iter().for_each(|w| say(format, "warning", w));
    let model = weights::encoder(&a.weights, &*train)?;
    model.announce(format);
    let layers = layers(&a.layers, &model)?;
    check_pooling(&model, a.pool.pooling(), format)?;
    let sweep =
        Sweep { a, format, model: &model, layers: &layers, groups: groups.as_ref(), train: &*train, val: &*val };
    let report = sweep.report(sets)?;
    if let Some(run) = &model.run {
        match report.write(run)? {
            Written::New => {}
            Written::Merged(rows) => {
                say(format, "message", &format!("probe.json keeps {rows} rows from earlier probes"))
            }
            Written::Renamed(path) => {
                let path = path.display();
                say(
                    format,
                    "message",
                    &format!("results of an earlier probe under other conditions are now in {path}"),
                );
            }
        }
    }
    if a.json {
        println!("{}", report.json());
    } else {
        print!("{}", report.table());
        println!("feature space, k, l2 and layer are selected on held-out training images");
        println!("* the best layer on `split`, the held-out training images; VAL was not used to select it");
        report.verdict().iter().for_each(|sentence| println!("{sentence}"));
    }
    report.doubts(a.groups.is_some()).iter().for_each(|doubt| say(format, "warning", doubt));
    Ok(ExitCode::SUCCESS)
}

/// Images to train a probe on, and to measure it on.
type TrainAndVal = (Box<dyn Source>, Box<dyn Source>);

/// Their features, and what those follow from.
type TrainAndValFeatures = (Features, Features, String);

fn open(a: &Probe) -> Result<TrainAndVal, Failure> {
    if let (Some(train), Some(val)) = (&a.data, &a.val) {
        return Ok((open_images(train)?, open_images(val)?));
    }
    if !weights::recipe(&a.weights)?.data.path.is_empty() {
        return Err(Failure::input("labelled images are missing", "add --data TRAIN and --val VAL"));
    }
    Ok((Box::new(demo()?), Box::new(demo_held_out()?)))
}

/// `all`, or numbers with commas between.
pub(crate) fn layers(text: &str, model: &Encoder) -> Result<Vec<Layer>, Failure> {
    if text == "all" {
        return Ok(Layer::all(&model.encoder));
    }
    let mut layers = Vec::new();
    for part in text.split(',') {
        let number = part
            .trim()
            .parse()
            .map_err(|_| Failure::input(format!("`{part}` is not a layer"), "use all, or numbers such as 6,8 or -1"))?;
        layers.push(Layer::of(number, &model.encoder)?);
    }
    layers.sort_unstable();
    layers.dedup();
    Ok(layers)
}

/// All that a sweep needs.
struct Sweep<'a> {
    a: &'a Probe,
    format: LogFormat,
    model: &'a Encoder,
    layers: &'a [Layer],
    groups: Option<&'a Groups>,
    train: &'a dyn Source,
    val: &'a dyn Source,
}

impl Sweep<'_> {
    fn report(&self, sets: LabelledSets) -> Result<Report, Failure> {
        let a = self.a;
        let trained = self.features(&self.model.tensors, TRAINED)?;
        let (train, train_rows) = readable(&sets.train, &trained.0);
        let (val, val_rows) = readable(&sets.val, &trained.1);
        let methods = Methods { knn: a.method != Method::Linear, linear: a.method != Method::Knn };
        let classes = sets.classes.len();
        let (parts, grouped) = self.parts(&train, classes)?;
        let labels = |set: &LabelledSet| set.labels.clone();
        let prober = Prober::new(a.weights.device.threads, methods, classes, labels(&train), labels(&val), parts)
            .at_most(a.max_iterations);
        let pixel_transform = pixel_transform(&self.model.recipe.transform());
        let mut report = Report {
            weights: a.weights.weights.display().to_string(),
            pool: if a.pool.pooling() == Pooling::Class { "cls" } else { "mean" }.into(),
            classes: sets.classes,
            train_images: train.images.len(),
            val_images: val.images.len(),
            pixel_size: pixel_transform.size,
            conditions: format!("{} seed {}{grouped}{}", trained.2, a.seed, self.cap()),
            rows: Vec::new(),
        };
        let mut fits = self.fits(methods, pixel_transform.values());
        let mut rate = |report: &mut Report, kind: Kind, layer: Option<Layer>, train: &Matrix, val: &Matrix| {
            let what = features_of(kind, layer);
            let row = fits.rate(&what, train.cols as f64, |watch| prober.rate((kind, layer), train, val, watch))?;
            row.linear.iter().for_each(|score| warn_of_cap(self.format, &what, score, a.max_iterations));
            let of = |split: f64, val: f64| format!("{:.2} % (split), {:.2} % (VAL)", split * 100.0, val * 100.0);
            let knn = row.knn.as_ref().map(|s| format!(", kNN {}", of(s.split_accuracy, s.val_accuracy)));
            let linear = row.linear.as_ref().map(|s| format!(", linear {}", of(s.split_accuracy, s.val_accuracy)));
            let text = format!("{}{}{}", row.features, knn.unwrap_or_default(), linear.unwrap_or_default());
            say(self.format, "message", &text);
            report.rows.push(row);
            Ok::<(), Failure>(())
        };
        if !a.no_baselines {
            let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            let of = |source: &dyn Source, labelled: &LabelledSet| -> Result<Matrix, Failure> {
                let features = pixels(source, &labelled.images, &pixel_transform, threads)?;
                Ok(features.layers.into_iter().next().unwrap_or_default())
            };
            let (train, val) = (of(self.train, &train)?, of(self.val, &val)?);
            rate(&mut report, Kind::Pixels, None, &train, &val)?;
            let seed = self.model.recipe.train.seed;
            let specs = self.model.config.parameters();
            let random: Vec<(String, Vec<f32>)> =
                specs.iter().map(|p: &ParameterSpec| (p.name.clone(), p.initial(seed))).collect();
            let random = self.features(&random, RANDOM)?;
            for (i, &layer) in self.layers.iter().enumerate() {
                let (train, val) = (random.0.layers[i].select(&train_rows), random.1.layers[i].select(&val_rows));
                rate(&mut report, Kind::Random, Some(layer), &train, &val)?;
            }
        }
        for (i, &layer) in self.layers.iter().enumerate() {
            let (train, val) = (trained.0.layers[i].select(&train_rows), trained.1.layers[i].select(&val_rows));
            rate(&mut report, Kind::Trained, Some(layer), &train, &val)?;
        }
        Ok(report)
    }

    /// The parts of the training images to choose by, and what the conditions say of them.
    fn parts(&self, train: &LabelledSet, classes: usize) -> Result<(Vec<Split>, String), Failure> {
        let (Some(groups), Some(argument)) = (self.groups, &self.a.groups) else {
            return Ok((folds(&train.labels, classes, self.a.seed)?, String::new()));
        };
        let Grouped { groups, count, alone } = groups.find(self.train, &train.images, argument)?;
        say(self.format, "message", &format!("{count} groups of training images stay together"));
        if alone > 0 {
            let text = format!("{alone} of {} training images belong to no group: each stands alone", groups.len());
            say(self.format, "warning", &text);
        }
        let parts = group_folds(&train.labels, &groups, classes, self.a.seed)?;
        Ok((parts, format!(" groups {}", fingerprint(&groups))))
    }

    /// What the conditions say of the cap on iterations, where it is not the usual one.
    fn cap(&self) -> String {
        let most = self.a.max_iterations;
        if most == MOST_ITERATIONS { String::new() } else { format!(" at most {most} iterations") }
    }

    /// The work of all rows, by the numbers of a feature.
    fn fits(&self, methods: Methods, pixels: usize) -> Fits {
        let layers: usize = self.layers.iter().map(|layer| layer.shape(&self.model.encoder).width).sum();
        let work = if self.a.no_baselines { layers } else { pixels + 2 * layers };
        Fits::new(self.format, methods.knn && methods.linear, work as f64)
    }

    /// Features of training and validation images, and what they follow from.
    fn features(&self, weights: &[(String, Vec<f32>)], role: &'static str) -> Result<TrainAndValFeatures, Failure> {
        let how = (self.layers.to_vec(), self.a.pool.pooling(), self.a.batch);
        let mut maker = Maker::new(self.model, (weights, role), how, &self.a.weights.device, self.format);
        let (train, val) = (maker.of(self.train, "TRAIN")?, maker.of(self.val, "VAL")?);
        Ok((train, val, maker.conditions()))
    }
}

/// The labelled images that could be read, and their rows among the features.
fn readable(labelled: &LabelledSet, features: &Features) -> (LabelledSet, Vec<usize>) {
    let (mut kept, mut rows) = (LabelledSet::default(), Vec::new());
    for (&image, &label) in labelled.images.iter().zip(&labelled.labels) {
        if let Ok(row) = features.images.binary_search(&image) {
            kept.images.push(image);
            kept.labels.push(label);
            rows.push(row);
        }
    }
    (kept, rows)
}
