//! `simmim compare`: does pre-training help?

#![allow(clippy::print_stdout, reason = "results go to standard output")]

use crate::arguments::{Compare, LogFormat};
use crate::commands::finetune::{Flags, recipe_for};
use crate::commands::pretrain::{free_folder, on_interrupt};
use crate::commands::weights::Pretrained;
use crate::diagnostics::Failure;
use crate::progress::Progress;
use serde::{Deserialize, Serialize};
use simmim_data::{Labelled, Source, Subset};
use simmim_engine::cpu::CpuExecutor;
use simmim_train::classify::{Arm, ArmResult, Comparison, Finding, draw_comparison};
use simmim_train::{Event, FineTuning, LabelledData, Recipe, RunFolder, Trainer, settle_finetuning};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// One line for each finished training, so that an interrupted comparison goes on.
const RESULTS: &str = "results.jsonl";
/// What the trainings of a folder have in common.
const SETTINGS: &str = "comparison.json";

/// What must be the same for results to belong together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Settings {
    weights: PathBuf,
    scratch_lr: Option<f64>,
    recipe: Recipe,
}

/// Everything that the trainings share.
struct Bench {
    recipe: Recipe,
    weights: Pretrained,
    data: LabelledData,
    out: PathBuf,
    threads: usize,
    scratch_lr: Option<f64>,
}

pub(crate) fn run(a: &Compare, format: LogFormat) -> Result<ExitCode, Failure> {
    let bench = prepare(a)?;
    let subsets = subsets(a, &bench.data)?;
    let mut comparison = open(a, &bench)?;
    let progress = Progress::new(format, 0, 0);
    let total = subsets.len() * 2;
    progress.say(&format!(
        "{total} trainings, {} of them done; {} classes, {} validation images; folder {}",
        comparison.results.len(),
        bench.data.train.class_names().len(),
        bench.data.val.spread(bench.recipe.validate.images).len(),
        bench.out.display()
    ));
    let stop = on_interrupt();
    for (n, (share, seed, images)) in subsets.iter().enumerate() {
        for (side, arm) in [Arm::Pretrained, Arm::Scratch].into_iter().enumerate() {
            if comparison.find(*share, *seed, arm).is_some() {
                continue;
            }
            let title = format!(
                "{} of {total}: {} % of the labels, seed {seed}, {}",
                2 * n + side + 1,
                100.0 * share,
                arm.name()
            );
            progress.say(&title);
            let Some(result) = bench.train(*share, *seed, images, arm, format, &stop)? else {
                progress.say("stopped; give the same command again to go on");
                return Ok(ExitCode::from(130));
            };
            progress.say(&format!("{title}: {:.2} % in {:.0} s", 100.0 * result.top1, result.seconds));
            append(&bench.out.join(RESULTS), &result)?;
            comparison.results.push(result);
        }
    }
    conclude(a, &bench.out, &comparison)?;
    Ok(ExitCode::SUCCESS)
}

/// Recipe, data and weights, checked before anything is written.
fn prepare(a: &Compare) -> Result<Bench, Failure> {
    if a.seeds == 0 {
        return Err(Failure::input("no seeds", "give --seeds 1 at least, 3 to see the spread"));
    }
    let weights = Pretrained::read(&a.weights)?;
    let mut flags = Flags::of(&a.start)?;
    flags.path("data.path", a.data.as_deref())?;
    flags.path("data.val_path", a.val.as_deref())?;
    flags.set("validate.images", a.val_images);
    let (_, mut recipe) = recipe_for(&a.start, Some(&weights), flags)?;
    let data = LabelledData::open(&recipe)?;
    settle_finetuning(&mut recipe, &data)?;
    // Only what the last step has learnt counts: choosing among measurements would flatter both arms.
    recipe.finetune.iter_mut().for_each(|f| f.validate_epochs = 1e6);
    recipe.validate.every_steps = 0;
    recipe.checkpoint.every_steps = 0;
    let classes = data.train.class_names().len();
    weights.encoder(&recipe, classes)?;
    let out = a.out.clone().unwrap_or_else(|| free_folder("compare"));
    Ok(Bench { recipe, weights, data, out, threads: a.start.threads, scratch_lr: a.scratch_lr })
}

/// The images of every share and seed.
fn subsets(a: &Compare, data: &LabelledData) -> Result<Vec<(f64, u64, Vec<usize>)>, Failure> {
    let mut shares = a.labels.clone();
    shares.sort_by(f64::total_cmp);
    shares.dedup();
    if let Some(bad) = shares.iter().find(|s| !(**s > 0.0 && **s <= 1.0)) {
        return Err(Failure::input(format!("--labels {bad} is not a share"), "give numbers above 0 and up to 1"));
    }
    let pairs = shares.iter().flat_map(|&share| (0..a.seeds).map(move |seed| (share, seed)));
    pairs.map(|(share, seed)| Ok((share, seed, data.train.balanced(share, seed)?))).collect()
}

/// The results that a folder holds already; its settings must be the same.
fn open(a: &Compare, bench: &Bench) -> Result<Comparison, Failure> {
    let settings =
        Settings { weights: std::path::absolute(&a.weights)?, scratch_lr: a.scratch_lr, recipe: bench.recipe.clone() };
    let path = bench.out.join(SETTINGS);
    let taken = |what: &str| {
        let help = "name another folder by --out, or give the same weights, data and settings to go on";
        Failure::input(format!("{}: {what}", bench.out.display()), help)
    };
    if path.is_file() {
        let known: Option<Settings> = serde_json::from_slice(&std::fs::read(&path)?).ok();
        if known != Some(settings) {
            return Err(taken("a comparison with other settings lies in this folder"));
        }
        let lines = std::fs::read_to_string(bench.out.join(RESULTS)).unwrap_or_default();
        return Ok(Comparison { results: lines.lines().filter_map(|l| serde_json::from_str(l).ok()).collect() });
    }
    if bench.out.exists() && std::fs::read_dir(&bench.out)?.next().is_some() {
        return Err(taken("the folder holds files that are not a comparison"));
    }
    std::fs::create_dir_all(&bench.out)?;
    let text = serde_json::to_vec_pretty(&settings).map_err(|e| Failure::running(e.to_string()))?;
    std::fs::write(&path, text)?;
    Ok(Comparison::default())
}

fn append(path: &Path, result: &ArmResult) -> Result<(), Failure> {
    let line = serde_json::to_string(result).map_err(|e| Failure::running(e.to_string()))?;
    let mut file = std::fs::File::options().create(true).append(true).open(path)?;
    Ok(writeln!(file, "{line}")?)
}

impl Bench {
    /// One training; none where it was stopped. Its run folder keeps settings and metrics, not the weights.
    fn train(
        &self,
        share: f64,
        seed: u64,
        images: &[usize],
        arm: Arm,
        format: LogFormat,
        stop: &AtomicBool,
    ) -> Result<Option<ArmResult>, Failure> {
        let start = Instant::now();
        let after = |e| Failure::from(e).after_start();
        let mut recipe = self.recipe.clone();
        recipe.train.seed = seed;
        if let (Arm::Scratch, Some(f)) = (arm, &mut recipe.finetune) {
            // Layer-wise decay protects what was learnt before; here nothing was.
            f.layer_decay = 1.0;
            recipe.optimizer.lr = self.scratch_lr.unwrap_or(recipe.optimizer.lr);
        }
        let data = self.subset(images)?;
        let root = self.out.join(format!("{}-{share}-{seed}", arm.name()));
        let run = RunFolder::create(&root, &recipe.to_toml(), true).map_err(after)?;
        let executor = CpuExecutor::new(self.threads)?;
        let threads = executor.threads();
        let task = FineTuning::new(&recipe, &data, Box::new(executor)).map_err(after)?;
        let train = task.images();
        let mut early = Progress::new(format, 0, 0);
        let mut trainer =
            Trainer::with_task(recipe.clone(), run, train, task, threads, &mut |e| early.show(&e)).map_err(after)?;
        if arm == Arm::Pretrained {
            let classes = self.data.train.class_names().len();
            trainer.set_weights(self.weights.encoder(&recipe, classes)?)?;
        }
        let mut progress = Progress::new(format, 0, trainer.total_steps());
        // Beside the bar a line for each training is enough; what goes wrong is always told.
        let mut tell = |e: Event| {
            if matches!(e, Event::Warning(_) | Event::Step { .. }) {
                progress.show(&e);
            }
        };
        let summary = trainer.run(stop, &mut tell).map_err(after)?;
        progress.finish();
        let (steps, top1) = (summary.step, summary.val_top1);
        drop(trainer);
        for name in ["checkpoints", "reconstructions", "tensorboard"] {
            std::fs::remove_dir_all(root.join(name))?;
        }
        for name in ["best.safetensors", "last.safetensors"] {
            if root.join(name).is_file() {
                std::fs::remove_file(root.join(name))?;
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        Ok(top1.map(|top1| ArmResult { share, images: images.len(), seed, arm, top1: f64::from(top1), steps, seconds }))
    }

    fn subset(&self, images: &[usize]) -> Result<LabelledData, Failure> {
        let source: Arc<dyn Source> = Arc::new(self.data.train.clone());
        let subset: Arc<dyn Source> = Arc::new(Subset::new(source, images.to_vec())?);
        let path = Path::new(&self.recipe.data.path);
        let train = Labelled::with_classes(subset, path, self.data.train.class_names())?;
        Ok(LabelledData { train, val: self.data.val.clone() })
    }
}

/// Tables, plot and sentences.
fn conclude(a: &Compare, out: &Path, comparison: &Comparison) -> Result<(), Failure> {
    let findings = comparison.findings();
    std::fs::write(out.join("results.csv"), comparison.csv()?)?;
    draw_comparison(&findings, &out.join("comparison.svg"))?;
    let sentences: Vec<String> = findings.iter().map(Finding::sentence).collect();
    let json = serde_json::json!({ "findings": findings, "results": comparison.results, "sentences": sentences });
    std::fs::write(out.join("results.json"), format!("{json:#}\n"))?;
    if a.json {
        println!("{json}");
        return Ok(());
    }
    println!("{:>8}  {:>7}  {:>16}  {:>16}  {:>10}", "labels", "images", "pre-trained", "from scratch", "difference");
    for f in &findings {
        let cell = |s: simmim_train::classify::Summary| format!("{:.2} +- {:.2}", 100.0 * s.mean, 100.0 * s.spread);
        println!(
            "{:>8}  {:>7}  {:>16}  {:>16}  {:>+10.2}",
            f.share,
            f.images,
            cell(f.pretrained),
            cell(f.scratch),
            100.0 * f.difference
        );
    }
    println!("top-1 in per cent, mean +- standard deviation over the seeds");
    sentences.iter().for_each(|s| println!("{s}"));
    let out = out.display();
    println!("files: {out}/results.csv, {out}/results.json, {out}/comparison.svg");
    Ok(())
}
