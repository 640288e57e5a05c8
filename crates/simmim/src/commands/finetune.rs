//! `simmim finetune`.

#![allow(clippy::print_stdout, reason = "results go to standard output")]

use crate::arguments::{Finetune, LogFormat, StartOf};
use crate::commands::length::Length;
use crate::commands::pretrain::{Settled, absolute, announce, free_folder};
use crate::commands::weights::{self, Pretrained};
use crate::commands::{parse_size, said_of_runs};
use crate::device;
use crate::diagnostics::Failure;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::ranks;
use simmim_data::Source;
use simmim_train::pace::seconds_of_finetuning;
use simmim_train::{
    Event, FineTuning, LabelledData, Outcome, Ranks, Recipe, RunFolder, Summary, Trainer, settle_finetuning,
};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The recipe where none is named.
const DEFAULT: &str = "finetune_small_images";

/// Values of the recipe that flags give.
pub(crate) struct Flags(pub(crate) Vec<String>);

impl Flags {
    pub(crate) fn set(&mut self, key: &str, value: Option<impl ToString>) {
        self.0.extend(value.map(|v| format!("{key}={}", v.to_string())));
    }

    /// A path, as a string of TOML.
    pub(crate) fn path(&mut self, key: &str, path: Option<&Path>) -> Result<(), Failure> {
        let path = path.map(absolute).transpose()?;
        self.set(key, path.map(serde_json::Value::from));
        Ok(())
    }

    /// What all commands that fine-tune share.
    pub(crate) fn of(start: &StartOf) -> Result<Self, Failure> {
        let mut flags = Self(start.recipe.set.clone());
        flags.set("schedule.steps", start.steps);
        flags.set("schedule.epochs", start.epochs);
        flags.set("train.precision", start.device.precision);
        flags.set("train.memory", start.memory.memory);
        if let Some(size) = &start.image_size {
            let (height, width) = parse_size(size)?;
            flags.set("model.image_size", Some(format!("[{height}, {width}]")));
        }
        Ok(flags)
    }
}

/// The recipe's name and the recipe, for the architecture of the weights or the one named by `--model`.
pub(crate) fn recipe_for(
    start: &StartOf,
    weights: Option<&Pretrained>,
    mut flags: Flags,
) -> Result<(String, Recipe), Failure> {
    let name = start.recipe.recipe.clone().unwrap_or_else(|| DEFAULT.to_owned());
    let mut architecture = weights.and_then(|w| w.recipe.clone());
    if let Some(model) = &start.model {
        if RunFolder::is_run(Path::new(model)) {
            architecture = Some(Recipe::from_run(&Path::new(model).join("config.toml"))?);
        } else {
            let shown = weights.map(Pretrained::presence).unwrap_or_default();
            flags.0.splice(0..0, std::iter::once(format!("model.name={model}")).chain(shown));
            architecture = None;
        }
    } else if architecture.is_none() && !simmim_train::recipe::names_model(&name, &flags.0)? {
        return Err(Failure::input(
            if weights.is_some() {
                "the weights do not name their model"
            } else {
                "nothing names the model to train from scratch"
            },
            "name it by --model: a run of which it takes the architecture (--model runs/photos), or a timm name (--model \
             vit_small_patch16_224)",
        ));
    }
    let recipe = Recipe::resolve_for(&name, &flags.0, architecture.as_ref())?;
    recipe.for_finetuning()?;
    Ok((name, recipe))
}

pub(crate) fn run(a: &Finetune, format: LogFormat) -> Result<ExitCode, Failure> {
    ranks::run(format, |ranks| train(a, format, ranks))
}

fn train(a: &Finetune, format: LogFormat, ranks: &Ranks) -> Result<ExitCode, Failure> {
    let mut early = Progress::of_rank(ranks, format, 0, 0);
    // The first rank alone reads weights and writes the run folder.
    let (mut start, mut out, mut opened) = (None, PathBuf::new(), None);
    let Settled { recipe, seconds } = ranks::ask_first(ranks, || {
        let weights = match a.weights.as_deref() {
            None => None,
            Some(w) if w == Path::new("none") => None,
            Some(w) => Some(Pretrained::read(w, a.start.resize_patch)?),
        };
        let (mut recipe, folder, length) = resolve(a, weights.as_ref())?;
        weights.iter().for_each(|w| w.announce(format));
        let data = LabelledData::open(&recipe)?;
        settle_finetuning(&mut recipe, &data, ranks.world())?;
        start = weights.map(|w| w.encoder(&recipe, data.train.class_names().len())).transpose()?;
        let executor = device::open(&a.start.device)?;
        let seconds = seconds_of_finetuning(&recipe, &data, executor, length.care())? / ranks.world() as f64;
        if !a.resume {
            length.settle(&mut recipe, data.train.len(), seconds, &early)?;
        }
        (out, opened) = (folder, Some(data));
        Ok(Settled { recipe, seconds })
    })?;
    let data = ranks.agree(opened.map_or_else(|| LabelledData::open(&recipe), Ok))?;
    let run = ranks::agree(ranks, || {
        Ok(match (ranks.is_first(), a.resume) {
            (false, _) => None,
            (true, true) => Some(RunFolder::open(&out)?),
            (true, false) => Some(RunFolder::create(&out, &recipe.to_toml(), a.overwrite)?),
        })
    })?;
    let after = |e| Failure::from(e).after_start();
    let executor = ranks::agree(ranks, || device::open(&a.start.device))?;
    let task = ranks.agree(FineTuning::among(&recipe, &data, executor, ranks)).map_err(after)?;
    let images = task.images();
    let mut trainer =
        Trainer::with_task(recipe, run, images, task, ranks.clone(), &mut |e| early.show(&e)).map_err(after)?;
    let summary = start.as_ref().map(weights::summary);
    if let Some(start) = start {
        trainer.set_weights(start.tensors)?;
    }
    let mut progress = Progress::of_rank(ranks, format, trainer.step(), trainer.total_steps());
    let classes = data.train.class_names().len();
    progress.say(&format!("{classes} classes, {} validation images", data.val.len()));
    said_of_runs(&[&data.train, &data.val]).into_iter().for_each(|w| progress.show(&Event::Warning(w)));
    summary.iter().for_each(|line| progress.say(line));
    announce(&trainer, seconds, &progress);
    let interrupt = Interrupt::listen(a.interrupt)?;
    let summary = trainer.run(interrupt.stop(), &mut |e| progress.show(&e)).map_err(after)?;
    progress.finish();
    if let Some(root) = trainer.root() {
        conclude(&trainer, root, &summary, &progress);
    }
    interrupt.code(summary.outcome, ranks)
}

/// The recipe with the flags on top, the run folder, and what the flags say of the length.
fn resolve(a: &Finetune, weights: Option<&Pretrained>) -> Result<(Recipe, PathBuf, Length), Failure> {
    let mut flags = Flags::of(&a.start)?;
    flags.set("train.seed", a.seed);
    flags.set("finetune.ema", a.ema);
    flags.set("finetune.freeze", a.freeze.then_some(true));
    flags.path("data.path", a.data.as_deref())?;
    flags.path("data.val_path", a.val.as_deref())?;
    let length = Length::of(&flags.0, a.minutes);
    if let (true, Some(out)) = (a.resume, &a.out) {
        if !RunFolder::is_run(out) {
            return Err(RunFolder::open(out).err().map_or_else(|| Failure::running("no run"), Failure::from));
        }
        let recipe = Recipe::resolve(&out.join("config.toml").display().to_string(), &flags.0)?;
        recipe.for_finetuning()?;
        return Ok((recipe, out.clone(), length));
    }
    let (name, recipe) = recipe_for(&a.start, weights, flags)?;
    Ok((recipe, a.out.clone().unwrap_or_else(|| free_folder(&name)), length))
}

fn conclude(trainer: &Trainer<FineTuning>, root: &Path, summary: &Summary, progress: &Progress) {
    let root = root.display();
    let skipped = trainer.skipped().len();
    if skipped > 0 {
        progress.say(&format!("unreadable images skipped: {skipped}; see {root}/skipped.txt"));
    }
    match summary.outcome {
        Outcome::Stopped => progress.say(&format!(
            "stopped and saved after step {}; to continue: simmim finetune --out {root} --resume",
            summary.step
        )),
        Outcome::Finished => {
            let percent = |v: f32| format!("{:.2} %", 100.0 * v);
            let last = summary.val_top1.map_or_else(|| "not measured".into(), percent);
            let best = summary.best.map(|b| {
                format!(" (best {} after step {}, selected on these validation images)", percent(b.top1), b.step)
            });
            println!("validation top-1 {last} after step {}{}", summary.step, best.unwrap_or_default());
            println!("weights (timm names, with class names): {root}/best.safetensors, {root}/last.safetensors");
            println!("next: simmim evaluate --weights {root} --data VAL --out report");
        }
    }
}
