//! `simmim compare`: does pre-training help?

#![allow(clippy::print_stdout, reason = "results go to standard output")]

mod probes;
mod report;

use crate::arguments::{Compare, CompareMethod, LogFormat};
use crate::commands::finetune::{Flags, recipe_for};
use crate::commands::length::Length;
use crate::commands::pretrain::{free_folder, warmup_warning};
use crate::commands::weights::Pretrained;
use crate::commands::write_file;
use crate::device::{self, DeviceArguments};
use crate::diagnostics::Failure;
use crate::interrupt::{Interrupt, InterruptArguments};
use crate::progress::Progress;
use probes::Probes;
use serde::{Deserialize, Serialize};
use simmim_data::{LabelledSource, Source, Subset};
use simmim_train::classify::{Arm, ArmResult, Comparison, Method, RateTrial};
use simmim_train::probe::split;
use simmim_train::{
    Event, FineTuning, LabelledData, Outcome, Ranks, Recipe, RunFolder, TrainError, Trainer, settle_finetuning,
};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// One line for each finished training, so that an interrupted comparison can continue.
const RESULTS: &str = "results.jsonl";
/// The same for the trainings by which learning rates are chosen.
const TRIALS: &str = "rate_trials.jsonl";
/// What the trainings of a folder have in common.
const SETTINGS: &str = "comparison.json";

/// What must be the same for results to belong together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Settings {
    weights: PathBuf,
    lr: Vec<f64>,
    scratch_lr: Vec<f64>,
    layers: String,
    recipe: Recipe,
}

/// Everything that the trainings share.
struct Bench {
    recipe: Recipe,
    length: Length,
    weights: Pretrained,
    data: LabelledData,
    out: PathBuf,
    device: DeviceArguments,
    lr: Vec<f64>,
    scratch_lr: Vec<f64>,
    format: LogFormat,
    interrupt: Interrupt,
}

/// The images of one share and seed.
struct Subsample {
    share: f64,
    seed: u64,
    images: Vec<usize>,
}

/// One training.
struct Training<'a> {
    /// Folder of its run.
    name: String,
    arm: Arm,
    seed: u64,
    lr: f64,
    images: &'a [usize],
    /// Training images to measure on; none for the validation images.
    aside: Option<&'a [usize]>,
}

/// What it came to.
struct Trained {
    top1: f64,
    loss: f64,
    steps: u64,
    seconds: f64,
}

/// A measurement to make.
type Job<'a> = (&'a Subsample, Method, Arm);

pub(crate) fn run(a: &Compare, format: LogFormat) -> Result<ExitCode, Failure> {
    let bench = prepare(a, format)?;
    let subsamples = subsamples(a, &bench)?;
    let mut comparison = open(a, &bench)?;
    let jobs = jobs(a, &subsamples);
    let progress = Progress::new(format, 0, 0);
    let known = |c: &Comparison, (s, method, arm): &Job<'_>| c.find(s.share, s.seed, *method, *arm).is_some();
    let measured = bench.data.val.spread(bench.recipe.validate.images);
    progress.say(&format!(
        "{} measurements, {} of them done; {} classes, {} validation images; folder {}",
        jobs.len(),
        jobs.iter().filter(|job| known(&comparison, job)).count(),
        bench.data.train.class_names().len(),
        measured.len(),
        bench.out.display()
    ));
    bench.warn_of_warmup(&subsamples, &progress);
    let mut probes = None;
    for (n, job) in jobs.iter().enumerate().filter(|(_, job)| !known(&comparison, job)).collect::<Vec<_>>() {
        let (s, method, arm) = *job;
        let title = format!(
            "{} of {}: {} % of the labels, seed {}, {}, {}",
            n + 1,
            jobs.len(),
            100.0 * s.share,
            s.seed,
            arm.title(),
            method.name()
        );
        progress.say(&title);
        let result = match method {
            Method::Probe => {
                if probes.is_none() {
                    let mut wanted: Vec<usize> = subsamples.iter().flat_map(|s| s.images.iter().copied()).collect();
                    wanted.sort_unstable();
                    wanted.dedup();
                    probes = Some(Probes::prepare(a, &bench.data, &wanted, &measured, format)?);
                }
                let stopped = bench.interrupt.stop().load(Ordering::Relaxed);
                let probes = probes.as_ref().filter(|_| !stopped);
                probes.map(|probes| probes.run(s.share, s.seed, &s.images, arm)).transpose()?
            }
            Method::Finetune => bench.fine_tune(s, &subsamples, arm, &mut comparison, &progress)?,
        };
        let Some(result) = result else {
            progress.say("stopped; run the same command again to continue");
            return bench.interrupt.code(Outcome::Stopped, &Ranks::default());
        };
        progress.say(&format!("{title}: {:.2} % in {:.0} s", 100.0 * result.top1, result.seconds));
        append(&bench.out.join(RESULTS), &result)?;
        comparison.results.push(result);
    }
    report::conclude(a, &bench.out, &comparison)?;
    Ok(ExitCode::SUCCESS)
}

/// What is measured, in order: at every share and seed the probes, which are quick, then the trainings.
fn jobs<'a>(a: &Compare, subsamples: &'a [Subsample]) -> Vec<Job<'a>> {
    let mut jobs: Vec<Job<'a>> = Vec::new();
    for s in subsamples {
        // All images are the same ones at every seed, and a probe has no other chance in it.
        if a.methods.contains(&CompareMethod::Probe) && !(s.share >= 1.0 && s.seed > 0) {
            jobs.extend(probes::ARMS.map(|arm| (s, Method::Probe, arm)));
        }
        if a.methods.contains(&CompareMethod::Finetune) {
            jobs.extend([Arm::Pretrained, Arm::Scratch].map(|arm| (s, Method::Finetune, arm)));
        }
    }
    jobs
}

/// Recipe, data and weights, checked before anything is written.
fn prepare(a: &Compare, format: LogFormat) -> Result<Bench, Failure> {
    if a.seeds == 0 {
        return Err(Failure::input("no seeds", "use --seeds 3, or at least 1"));
    }
    let weights = Pretrained::read(&a.weights, a.start.resize_patch)?;
    weights.announce(format);
    let mut flags = Flags::of(&a.start)?;
    flags.path("data.path", a.data.as_deref())?;
    flags.path("data.val_path", a.val.as_deref())?;
    flags.set("validate.images", a.val_images);
    let length = Length::of(&flags.0, None);
    let (_, mut recipe) = recipe_for(&a.start, Some(&weights), flags)?;
    let data = LabelledData::open(&recipe)?;
    settle_finetuning(&mut recipe, &data, 1)?;
    // Only what the last step has learnt counts: choosing among measurements would flatter both arms.
    recipe.finetune.iter_mut().for_each(|f| f.validate_epochs = 1e6);
    recipe.validate.every_steps = 0;
    recipe.checkpoint.every_steps = 0;
    let classes = data.train.class_names().len();
    weights.encoder(&recipe, classes)?;
    if a.methods.contains(&CompareMethod::Probe) {
        probes::check(a, &data, format)?;
    }
    let rates = |flag: &str, given: &[f64]| {
        if let Some(bad) = given.iter().find(|lr| !(**lr > 0.0 && lr.is_finite())) {
            return Err(Failure::input(format!("{flag} {bad} is not a learning rate"), "use numbers above 0"));
        }
        let mut rates = Vec::new();
        given.iter().for_each(|lr| {
            if !rates.contains(lr) {
                rates.push(*lr);
            }
        });
        Ok(if rates.is_empty() { vec![recipe.optimizer.lr] } else { rates })
    };
    let (lr, scratch_lr) = (rates("--lr", &a.lr)?, rates("--scratch-lr", &a.scratch_lr)?);
    let out = a.out.clone().unwrap_or_else(|| free_folder("compare"));
    let interrupt = Interrupt::listen(InterruptArguments::default())?;
    let device = a.start.device.clone();
    Ok(Bench { recipe, length, weights, data, out, device, lr, scratch_lr, format, interrupt })
}

/// The images of every share and seed.
fn subsamples(a: &Compare, bench: &Bench) -> Result<Vec<Subsample>, Failure> {
    let mut shares = a.labels.clone();
    shares.sort_by(f64::total_cmp);
    shares.dedup();
    if let Some(bad) = shares.iter().find(|s| !(**s > 0.0 && **s <= 1.0)) {
        return Err(Failure::input(format!("--labels {bad} is not a fraction"), "use numbers above 0 and up to 1"));
    }
    let train = &bench.data.train;
    let mut all = Vec::new();
    for share in shares {
        for seed in 0..a.seeds {
            all.push(Subsample { share, seed, images: train.balanced(share, seed)? });
        }
    }
    let searches = bench.lr.len() > 1 || bench.scratch_lr.len() > 1;
    if searches && a.methods.contains(&CompareMethod::Finetune) {
        for s in &all {
            bench.hold_out(s).map_err(|_| {
                let what = format!("with a fraction of {} every class has one image, so none can be held out", s.share);
                Failure::input(
                    what,
                    "give a single value for --lr and for --scratch-lr, or larger fractions with --labels",
                )
            })?;
        }
    }
    Ok(all)
}

/// The results that a folder holds already; its settings must be the same.
fn open(a: &Compare, bench: &Bench) -> Result<Comparison, Failure> {
    let settings = Settings {
        weights: std::path::absolute(&a.weights)?,
        lr: bench.lr.clone(),
        scratch_lr: bench.scratch_lr.clone(),
        layers: a.layers.clone(),
        recipe: bench.recipe.clone(),
    };
    let path = bench.out.join(SETTINGS);
    let taken = |what: &str| {
        let help = "choose another folder with --out, or use the same weights, data and settings to continue";
        Failure::input(format!("{}: {what}", bench.out.display()), help)
    };
    if path.is_file() {
        let known: Option<Settings> = serde_json::from_slice(&std::fs::read(&path)?).ok();
        if known != Some(settings) {
            return Err(taken("this folder holds a comparison with other settings"));
        }
        return Ok(Comparison { results: lines(&bench.out.join(RESULTS)), trials: lines(&bench.out.join(TRIALS)) });
    }
    if bench.out.exists() && std::fs::read_dir(&bench.out)?.next().is_some() {
        return Err(taken("this folder holds files but no comparison"));
    }
    std::fs::create_dir_all(&bench.out)?;
    let text = serde_json::to_vec_pretty(&settings).map_err(|e| Failure::running(e.to_string()))?;
    write_file(&path, &text)?;
    Ok(Comparison::default())
}

/// Whole lines of a file; what an interruption has torn is measured anew.
fn lines<T: serde::de::DeserializeOwned>(path: &Path) -> Vec<T> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
}

fn append(path: &Path, result: &impl Serialize) -> Result<(), Failure> {
    let line = serde_json::to_string(result).map_err(|e| Failure::running(e.to_string()))?;
    let mut file = std::fs::File::options().create(true).append(true).open(path)?;
    Ok(writeln!(file, "{line}")?)
}

impl Bench {
    /// Says once when most of the shortest training is warm-up.
    fn warn_of_warmup(&self, subsamples: &[Subsample], progress: &Progress) {
        let smallest = subsamples.iter().map(|s| s.images.len()).min().unwrap_or(0);
        let mut recipe = self.recipe.clone();
        self.length.settle_warmup(&mut recipe, smallest);
        let schedule = recipe.learning_rate(recipe.steps_per_epoch(smallest));
        if let Some(warning) = warmup_warning(schedule.warmup_steps, schedule.total_steps) {
            progress.say(&warning);
        }
    }

    fn labels(&self, s: &Subsample) -> Vec<usize> {
        s.images.iter().map(|&i| self.data.train.labels()[i]).collect()
    }

    /// Images to train on and images to choose by: a fifth of every class.
    fn hold_out(&self, s: &Subsample) -> Result<(Vec<usize>, Vec<usize>), TrainError> {
        let parts = split(&self.labels(s), self.data.train.class_names().len(), s.seed)?;
        let of = |places: &[usize]| places.iter().map(|&p| s.images[p]).collect();
        Ok((of(&parts.fit), of(&parts.check)))
    }

    /// The learning rate of an arm at a share: where several are given, the best one on held-out training images at the
    /// first seed. None where it was stopped.
    fn rate(
        &self,
        first: &Subsample,
        arm: Arm,
        comparison: &mut Comparison,
        progress: &Progress,
    ) -> Result<Option<f64>, Failure> {
        let rates = if arm == Arm::Scratch { &self.scratch_lr } else { &self.lr };
        if let [only] = rates[..] {
            return Ok(Some(only));
        }
        let (fit, check) = self.hold_out(first)?;
        for &lr in rates {
            let share = first.share;
            if comparison.trials.iter().any(|t| (t.share, t.arm, t.lr) == (share, arm, lr)) {
                continue;
            }
            let name = format!("{}-{share}-lr-{lr:e}", arm.name());
            let aside = Some(&check[..]);
            let training = Training { name, arm, seed: first.seed, lr, images: &fit, aside };
            let Some(t) = self.train(&training)? else { return Ok(None) };
            progress.say(&format!(
                "fraction {share}, {}, learning rate {lr:e}: {:.2} % on {} held-out training images",
                arm.title(),
                100.0 * t.top1,
                check.len()
            ));
            let (images, aside) = (fit.len(), check.len());
            let trial = RateTrial { share, arm, lr, images, aside, top1: t.top1, loss: t.loss };
            append(&self.out.join(TRIALS), &trial)?;
            comparison.trials.push(trial);
        }
        Ok(comparison.best_rate(first.share, arm))
    }

    /// Trains and measures an arm; none where it was stopped.
    fn fine_tune(
        &self,
        s: &Subsample,
        all: &[Subsample],
        arm: Arm,
        comparison: &mut Comparison,
        progress: &Progress,
    ) -> Result<Option<ArmResult>, Failure> {
        let first = all.iter().find(|other| other.share == s.share).unwrap_or(s);
        let Some(lr) = self.rate(first, arm, comparison, progress)? else { return Ok(None) };
        let (share, seed) = (s.share, s.seed);
        let name = format!("{}-{share}-{seed}", arm.name());
        let trained = self.train(&Training { name, arm, seed, lr, images: &s.images, aside: None })?;
        Ok(trained.map(|t| ArmResult {
            share,
            images: s.images.len(),
            seed,
            method: Method::Finetune,
            arm,
            top1: t.top1,
            steps: t.steps,
            seconds: t.seconds,
            lr: Some(lr),
            layer: None,
            l2: None,
        }))
    }

    /// One training; none where it was stopped. Its run folder keeps settings and metrics, not the weights.
    fn train(&self, training: &Training<'_>) -> Result<Option<Trained>, Failure> {
        let start = Instant::now();
        let after = |e| Failure::from(e).after_start();
        let Training { name, arm, seed, lr, images, aside } = training;
        let mut recipe = self.recipe.clone();
        (recipe.train.seed, recipe.optimizer.lr) = (*seed, *lr);
        if let (Arm::Scratch, Some(f)) = (arm, &mut recipe.finetune) {
            // Layer-wise decay protects what was learnt before; here nothing was.
            f.layer_decay = 1.0;
        }
        let mut data = LabelledData { train: self.subset(images)?, val: self.data.val.clone() };
        if let Some(aside) = aside {
            data.val = self.subset(aside)?;
            recipe.validate.images = aside.len();
        }
        self.length.settle_warmup(&mut recipe, images.len());
        let root = self.out.join(name);
        let run = RunFolder::create(&root, &recipe.to_toml(), true).map_err(after)?;
        let task = FineTuning::new(&recipe, &data, device::open(&self.device)?).map_err(after)?;
        let train = task.images();
        let mut early = Progress::new(self.format, 0, 0);
        let mut trainer =
            Trainer::with_task(recipe.clone(), Some(run), train, task, Ranks::default(), &mut |e| early.show(&e))
                .map_err(after)?;
        if *arm == Arm::Pretrained {
            let classes = self.data.train.class_names().len();
            trainer.set_weights(self.weights.encoder(&recipe, classes)?.tensors)?;
        }
        let mut progress = Progress::new(self.format, 0, trainer.total_steps());
        // Beside the bar a line for each training is enough; what goes wrong is always told.
        let mut tell = |e: Event| {
            if matches!(e, Event::Warning(_) | Event::Step { .. }) {
                progress.show(&e);
            }
        };
        let summary = trainer.run(self.interrupt.stop(), &mut tell).map_err(after)?;
        progress.finish();
        drop(trainer);
        for name in ["checkpoints", "best.safetensors", "last.safetensors"] {
            let path = root.join(name);
            if path.is_dir() {
                std::fs::remove_dir_all(path)?;
            } else if path.is_file() {
                std::fs::remove_file(path)?;
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        let trained = |(top1, loss): (f32, f32)| Trained {
            top1: f64::from(top1),
            loss: f64::from(loss),
            steps: summary.step,
            seconds,
        };
        Ok(summary.val_top1.zip(summary.val_loss).map(trained))
    }

    fn subset(&self, images: &[usize]) -> Result<LabelledSource, Failure> {
        let source: Arc<dyn Source> = Arc::new(self.data.train.clone());
        let subset: Arc<dyn Source> = Arc::new(Subset::new(source, images.to_vec())?);
        let path = Path::new(&self.recipe.data.path);
        Ok(LabelledSource::with_classes(subset, path, self.data.train.class_names())?)
    }
}
