//! `simmim pretrain`.

#![allow(clippy::print_stdout, reason = "results go to standard output")]

use crate::arguments::{LogFormat, Pretrain};
use crate::commands::length::{Length, expected, long_warning};
use crate::commands::weights::{self, Given};
use crate::commands::{quoted, said_of_runs};
use crate::device;
use crate::diagnostics::Failure;
use crate::interrupt::Interrupt;
use crate::meter::plural;
use crate::progress::Progress;
use crate::ranks;
use serde::{Deserialize, Serialize};
use simmim_engine::executor::Machine;
use simmim_models::Precision;
use simmim_models::weights::timm_call;
use simmim_train::pace::seconds_of_pretraining;
use simmim_train::plateau::is_near_mean_color;
use simmim_train::recipe::Choice;
use simmim_train::{
    Event, LiveProbe, Outcome, Ranks, Recipe, RunFolder, StepMemory, Summary, Task, TrainError, Trainer, open_data,
    settle,
};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub(crate) fn run(a: &Pretrain, format: LogFormat) -> Result<ExitCode, Failure> {
    ranks::run(format, |ranks| train(a, format, ranks))
}

/// What the first rank finds out for all.
#[derive(Serialize, Deserialize)]
pub(crate) struct Settled {
    pub(crate) recipe: Recipe,
    /// Of one step on all ranks.
    pub(crate) seconds: f64,
}

fn train(a: &Pretrain, format: LogFormat, ranks: &Ranks) -> Result<ExitCode, Failure> {
    let mut early = Progress::of_rank(ranks, format, 0, 0);
    // The first rank alone reads weights and writes the run folder.
    let (mut given, mut out, mut opened) = (None, PathBuf::new(), None);
    let Settled { recipe, seconds } = ranks::ask_first(ranks, || {
        given = a.weights.as_deref().map(Given::read).transpose()?;
        let (mut recipe, folder, length) = resolve(a, given.as_ref(), &early)?;
        recipe.for_pretraining()?;
        let data = open_data(&recipe)?;
        settle(&mut recipe, &data, ranks.world())?;
        let seconds = seconds_of_pretraining(&recipe, device::open(&a.device)?, length.care())? / ranks.world() as f64;
        if !a.resume {
            length.settle(&mut recipe, data.train.len(), seconds, &early)?;
        }
        (out, opened) = (folder, Some(data));
        Ok(Settled { recipe, seconds })
    })?;
    let data = ranks.agree(opened.map_or_else(|| open_data(&recipe), Ok))?;
    let config = recipe.simmim_config()?;
    let demo = recipe.data.path.is_empty();
    let runs = said_of_runs(&[&*data.train, &*data.held_out]);
    let prepared = ranks::agree(ranks, || {
        if !ranks.is_first() {
            return Ok((None, None, None));
        }
        let probe = LiveProbe::open(&recipe, a.device.threads)?;
        let start = given.map(|given| weights::for_model(given, &config, a.resize_patch, format)).transpose()?;
        let run = if a.resume {
            say_what_changes(&out, &recipe, &early)?;
            RunFolder::open(&out)?
        } else {
            RunFolder::create(&out, &recipe.to_toml(), a.overwrite)?
        };
        Ok((probe, start, Some(run)))
    });
    let (probe, start, run) = prepared?;
    let executor = ranks::agree(ranks, || device::open(&a.device))?;
    let late = |e: TrainError| if a.resume { e.into() } else { Failure::from(e).after_start() };
    let mut trainer =
        Trainer::among(recipe, run, data, executor, ranks.clone(), &mut |e| early.show(&e)).map_err(late)?;
    if let Some(start) = start {
        trainer.set_weights(start)?;
    }
    let mut progress = Progress::of_rank(ranks, format, trainer.step(), trainer.total_steps());
    let warnings = probe.iter().flat_map(|p| p.warnings().to_vec()).collect::<Vec<_>>();
    warnings.into_iter().chain(runs).for_each(|w| progress.show(&Event::Warning(w)));
    trainer.set_probe(probe);
    announce(&trainer, seconds, &progress);
    let interrupt = Interrupt::listen(a.interrupt)?;
    let summary =
        trainer.run(interrupt.stop(), &mut |e| progress.show(&e)).map_err(|e| Failure::from(e).after_start())?;
    progress.finish();
    if let Some(root) = trainer.root() {
        conclude(&trainer, &quoted(root), &summary, &progress, demo);
    }
    interrupt.code(summary.outcome, ranks)
}

/// Names the settings in which a resumed run will differ from what it was: they break the promise that it ends with the same
/// weights.
fn say_what_changes(out: &Path, recipe: &Recipe, progress: &Progress) -> Result<(), Failure> {
    let changes = Recipe::from_run(&out.join("config.toml"))?.differences(recipe);
    if !changes.is_empty() {
        progress.say(&format!("settings changed since the last start: {}", changes.join(", ")));
    }
    Ok(())
}

/// The recipe with the flags on top, for the architecture of the weights where it starts from some, the run folder, and what the flags
/// say of the length. Where the images chose the recipe, says why.
fn resolve(a: &Pretrain, given: Option<&Given>, progress: &Progress) -> Result<(Recipe, PathBuf, Length), Failure> {
    let mut set = a.recipe.set.clone();
    let mut flag = |key: &str, value: Option<String>| set.extend(value.map(|v| format!("{key}={v}")));
    flag("schedule.steps", a.steps.map(|v| v.to_string()));
    flag("schedule.epochs", a.epochs.map(|v| v.to_string()));
    flag("train.seed", a.seed.map(|v| v.to_string()));
    flag("train.precision", a.device.precision.map(|p| p.to_string()));
    flag("train.memory", a.memory.memory.map(|v| v.to_string()));
    flag("checkpoint.keep", a.keep.map(|v| v.to_string()));
    let path = a.data.as_deref().map(absolute).transpose()?;
    flag("data.path", path.map(|p| serde_json::Value::from(p).to_string()));
    if let Some((train, val)) = a.probe_data.as_deref().map(probe_paths).transpose()? {
        flag("probe.train_path", Some(serde_json::Value::from(absolute(&train)?).to_string()));
        flag("probe.val_path", Some(serde_json::Value::from(absolute(&val)?).to_string()));
    }
    let length = Length::of(&set, a.minutes);
    if let (true, Some(out)) = (a.resume, &a.out) {
        if !RunFolder::is_run(out) {
            return Err(RunFolder::open(out).err().map_or_else(|| Failure::running("no run"), Failure::from));
        }
        return Ok((Recipe::resolve(&out.join("config.toml").display().to_string(), &set)?, out.clone(), length));
    }
    let (mut recipe, name) = match (a.recipe.recipe.as_deref(), &a.data) {
        (None | Some("auto"), Some(path)) => {
            let choice = Choice::by(&*simmim_data::source::open(path)?)?;
            progress.say(&choice.reason);
            (choice.resolve(&set)?, choice.recipe)
        }
        (None | Some("auto"), None) => (Recipe::resolve("demo", &set)?, "demo"),
        (Some(name), _) => (Recipe::resolve(name, &set)?, name),
    };
    if let Some(given) = given {
        recipe = weights::recipe_for(recipe, &set, given, a.resize_patch)?;
    }
    Ok((recipe, a.out.clone().unwrap_or_else(|| free_folder(name)), length))
}

/// Splits `TRAIN:VAL` at the colon that leaves two paths that exist: a path may hold colons of its own (`C:\photos`).
fn probe_paths(text: &OsStr) -> Result<(PathBuf, PathBuf), Failure> {
    let shown = text.display();
    let Some(text) = text.to_str() else {
        return Err(Failure::input(format!("{shown}: the path is not valid UTF-8"), "rename it, or use a link to it"));
    };
    let help = "write TRAIN:VAL, two paths that exist, or set probe.train_path and probe.val_path with --set";
    let parts = text.match_indices(':').map(|(at, _)| (PathBuf::from(&text[..at]), PathBuf::from(&text[at + 1..])));
    let mut known: Vec<(PathBuf, PathBuf)> = parts.clone().filter(|(a, b)| a.exists() && b.exists()).collect();
    match (known.pop(), known.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(_), false) => {
            Err(Failure::input(format!("--probe-data {text} is ambiguous: it splits at several colons"), help))
        }
        (None, _) => {
            let mut parts = parts;
            let what = match (parts.next(), parts.next()) {
                (None, _) => "has no colon".to_owned(),
                (Some((a, b)), None) => {
                    let missing = if a.exists() { b } else { a };
                    format!("names `{}`, which does not exist", missing.display())
                }
                _ => "has no colon between two paths that exist".to_owned(),
            };
            Err(Failure::input(format!("--probe-data {text} {what}"), help))
        }
    }
}

/// The path as a recipe holds it, which must be text.
pub(crate) fn absolute(path: &Path) -> Result<String, Failure> {
    let absolute = std::path::absolute(path)?;
    absolute.into_os_string().into_string().map_err(|p| {
        Failure::input(format!("{}: the path is not valid UTF-8", p.display()), "rename it, or use a link to it")
    })
}

/// `runs/NAME-N` with the first free number.
pub(crate) fn free_folder(recipe: &str) -> PathBuf {
    let name = Path::new(recipe).file_stem().and_then(|n| n.to_str()).unwrap_or("run");
    (1..).map(|n| Path::new("runs").join(format!("{name}-{n}"))).find(|p| !p.exists()).unwrap_or_default()
}

/// A warning where the learning rate rises for more than half of the steps.
pub(crate) fn warmup_warning(warmup: u64, total: u64) -> Option<String> {
    (2 * warmup > total).then(|| {
        format!(
            "warning: the warm-up takes {warmup} of {total} steps; set schedule.warmup_steps to about a tenth of the length"
        )
    })
}

/// What the steps are computed with, and what would be faster here.
fn numbers(precision: Precision, machine: &Machine) -> String {
    let faster = if precision == Precision::Float32 && machine.bf16 { "; --precision bf16 is faster here" } else { "" };
    format!("{}, {precision}{faster}", machine.isa)
}

/// What of a step is computed twice.
fn recomputed(step: StepMemory) -> String {
    match step.recomputed {
        0 => String::new(),
        n => format!(", those of {n} of {} blocks computed twice", step.blocks),
    }
}

/// The ranks of a training, before what each has.
fn among(ranks: usize) -> String {
    if ranks == 1 { String::new() } else { format!("{ranks} ranks, each with ") }
}

/// The first line of a training, of which a step takes so many seconds on this machine, and warnings about its length.
pub(crate) fn announce<T: Task>(trainer: &Trainer<T>, seconds: f64, progress: &Progress) {
    let Some(root) = trainer.root() else { return };
    let device = trainer.task().device();
    let (machine, memory) = (device.executor().machine(), device.executor().memory());
    let parameters: usize = device.parameters().iter().map(simmim_models::ParameterSpec::len).sum();
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let parameters = if parameters < 1_000_000 {
        format!("{:.0} thousand", parameters as f64 / 1e3)
    } else {
        format!("{:.1} million", parameters as f64 / 1e6)
    };
    let (warmup, total) = (trainer.warmup_steps(), trainer.total_steps());
    if let Some(warning) = warmup_warning(warmup, total) {
        progress.say(&warning);
    }
    let left = total.saturating_sub(trainer.step());
    if let Some(warning) = long_warning(left, seconds) {
        progress.say(&warning);
    }
    progress.say(&format!(
        "{} images, {parameters} parameters, {left} steps, {}, on {}{} thread{} ({}); memory: {:.0} MiB (parameters, gradients, moments) + \
         {:.0} MiB (activations{}); run folder {}",
        trainer.images(),
        expected(left, seconds),
        among(trainer.ranks().world()),
        machine.threads,
        plural(machine.threads),
        numbers(device.precision(), &machine),
        mib(memory.states),
        mib(memory.arena + memory.scratch),
        recomputed(device.step_memory()),
        root.display(),
    ));
}

fn conclude(trainer: &Trainer, root: &str, summary: &Summary, progress: &Progress, demo: bool) {
    let skipped = trainer.skipped().len();
    if skipped > 0 {
        progress.say(&format!("unreadable images skipped: {skipped}; see {root}/skipped.txt"));
    }
    match summary.outcome {
        Outcome::Stopped => progress.say(&format!(
            "stopped and saved after step {}; to continue: simmim pretrain --out {root} --resume",
            summary.step
        )),
        Outcome::Finished => {
            let earlier = summary.first_val_loss.filter(|(step, _)| *step < summary.step);
            let earlier = earlier.map(|(step, v)| format!(" ({v:.4} after step {step})")).unwrap_or_default();
            if let Some(last) = summary.val_loss {
                println!("held-out loss {last:.4} after step {}{earlier}", summary.step);
                judge(summary, last, trainer.remedy());
            }
            println!("pictures: {root}/reconstructions; encoder: {root}/encoder.safetensors");
            match timm_call(&trainer.session().config().encoder) {
                Some(call) => println!("in timm: {call}"),
                None => {
                    println!(
                        "timm has no model with these position biases; all other names in the encoder file are timm's"
                    )
                }
            }
            println!("its images: {}", trainer.task().preprocessing().timm_call());
            println!("curves: {root}/curves.svg");
            // The demo set has labels; only the owner knows whether other images have.
            println!("next: simmim probe --weights {root}{}", if demo { "" } else { " --data TRAIN --val VAL" });
        }
    }
}

/// Whether the loss is what a model that learns should have.
fn judge(summary: &Summary, last: f32, remedy: &str) {
    if let Some(t) = summary.trivial {
        let (mean, near) = (t.mean_color, t.visible_neighbors);
        let percent = |trivial: f32| {
            let share = (last / trivial - 1.0) * 100.0;
            format!("{:.0} % {}", share.abs(), if share < 0.0 { "below" } else { "above" })
        };
        let compared = format!(
            "{} the mean colour ({mean:.4}) and {} the mean of visible neighbours ({near:.4})",
            percent(mean),
            percent(near)
        );
        if is_near_mean_color(last, &t) {
            let how = if last > mean { "worse" } else { "hardly better" };
            println!("that is {how} than filling hidden patches with one colour: {compared}; {remedy}");
        } else if last >= t.best() {
            println!("that is {compared}; train longer");
        } else {
            println!("that is {compared}");
        }
    }
    if let Some(o) = summary.overfitting {
        println!(
            "the held-out loss rose from {:.4} after step {} while the training loss fell: the model overfits; \
             stop earlier, or use more images, a smaller model or a higher mask ratio",
            o.best.val, o.best.step
        );
    }
    if let Some([(first_step, first), (step, accuracy)]) = summary.probe_knn {
        let percent = |v: f32| format!("{:.1} %", v * 100.0);
        println!("kNN probe {} after step {step} ({} after step {first_step})", percent(accuracy), percent(first));
    }
}
