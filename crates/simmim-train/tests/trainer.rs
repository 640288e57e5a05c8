//! The training loop on a few images in memory: what is written, what a resume brings back, what the guard does.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail loudly")]

use simmim_data::{Alpha, Channels, DataError, Image, LabelledSource, Pixels, Source};
use simmim_engine::cpu::CpuExecutor;
use simmim_models::weights::{Weights, read};
use simmim_train::checkpoint::{CheckpointStore, Loaded};
use simmim_train::metrics::{self, Record};
use simmim_train::ranks::Threads;
use simmim_train::{
    Data, Event, FineTuning, LabelledData, Outcome, Ranks, Recipe, RunFolder, Summary, TrainError, Trainer, settle,
    settle_finetuning,
};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const SIDE: usize = 8;

/// Gray images of two classes: bright above or bright below.
#[derive(Clone)]
struct Stripes {
    count: usize,
    /// An image with a pixel that is no number.
    poisoned: Option<usize>,
    /// An image that cannot be read.
    unreadable: Option<usize>,
    classes: Vec<String>,
}

impl Stripes {
    fn new(count: usize) -> Self {
        Self { count, poisoned: None, unreadable: None, classes: vec!["above".into(), "below".into()] }
    }
}

impl Source for Stripes {
    fn len(&self) -> usize {
        self.count
    }

    fn name(&self, index: usize) -> String {
        format!("stripes {index}")
    }

    fn label(&self, index: usize) -> Option<usize> {
        Some(index % 2)
    }

    fn class_names(&self) -> &[String] {
        &self.classes
    }

    fn load(&self, index: usize, channels: Channels) -> Result<Image, DataError> {
        if self.unreadable == Some(index) {
            return Err(DataError::Damaged { path: self.name(index).into(), reason: "it is empty".into() });
        }
        let value = |i: usize| {
            let bright = (i / SIDE < SIDE / 2) == index.is_multiple_of(2);
            f32::from(u8::from(bright)) * 0.8 + ((index * 37 + i * 11) % 13) as f32 / 65.0
        };
        let mut pixels: Vec<f32> = (0..SIDE * SIDE).map(value).collect();
        if self.poisoned == Some(index) {
            pixels.fill(f32::NAN);
        }
        let image = Image { width: SIDE, height: SIDE, channels: 1, pixels: Pixels::F32(pixels), alpha: Alpha::Opaque };
        image.into_channels(channels, Path::new(&self.name(index)))
    }
}

const SMALL: [&str; 17] = [
    "model.image_size=8",
    "model.embed_dim=16",
    "model.depth=1",
    "model.num_heads=2",
    "data.mean=[0.5]",
    "data.std=[0.25]",
    "data.random_crop=false",
    "data.workers=1",
    "optimizer.lr=0.003",
    "schedule.warmup_steps=0",
    "train.batch_size=4",
    "train.accumulation=2",
    "validate.every_steps=2",
    "validate.images=4",
    "reconstruct.images=2",
    "log.every_steps=1",
    "checkpoint.every_steps=0",
];

fn recipe(name: &str, more: &[&str]) -> Recipe {
    let set: Vec<String> = SMALL.iter().chain(more).map(|v| (*v).to_owned()).collect();
    let model = Recipe::resolve("demo", &set).unwrap();
    Recipe::resolve_for(name, &set, Some(&model)).unwrap()
}

fn executor() -> Box<CpuExecutor> {
    Box::new(CpuExecutor::new(1).unwrap())
}

/// What a part of a training did.
struct Part {
    result: Result<Summary, TrainError>,
    events: Vec<Event>,
}

impl Part {
    fn summary(&self) -> &Summary {
        self.result.as_ref().expect("the training goes on")
    }

    fn warnings(&self) -> Vec<&str> {
        self.events
            .iter()
            .filter_map(|e| if let Event::Warning(text) = e { Some(text.as_str()) } else { None })
            .collect()
    }
}

fn folder(root: &Path, recipe: &Recipe) -> RunFolder {
    if RunFolder::is_run(root) { RunFolder::open(root) } else { RunFolder::create(root, &recipe.to_toml(), false) }
        .unwrap()
}

/// Pre-trains in a folder, new or resumed, until the end or until an event says so.
fn pretrain(root: &Path, recipe: Recipe, images: Stripes, until: impl Fn(&Event) -> bool) -> Part {
    pretrain_on(root, recipe, images, until, 1)
}

fn pretrain_on(
    root: &Path,
    mut recipe: Recipe,
    images: Stripes,
    until: impl Fn(&Event) -> bool,
    threads: usize,
) -> Part {
    let data = Data { train: Arc::new(images), held_out: Arc::new(Stripes::new(6)) };
    settle(&mut recipe, &data, 1).unwrap();
    let run = folder(root, &recipe);
    let (stop, mut events) = (AtomicBool::new(false), Vec::new());
    let mut tell = |event: Event| {
        stop.fetch_or(until(&event), Ordering::Relaxed);
        events.push(event);
    };
    let executor = Box::new(CpuExecutor::new(threads).unwrap());
    let mut trainer = Trainer::new(recipe, run, data, executor, &mut tell).unwrap();
    let result = trainer.run(&stop, &mut tell);
    Part { result, events }
}

fn never(_: &Event) -> bool {
    false
}

fn at_step(wanted: u64) -> impl Fn(&Event) -> bool {
    move |event| matches!(event, Event::Step { step, .. } if *step == wanted)
}

fn model(root: &Path) -> Weights {
    read(&root.join("model.safetensors")).unwrap()
}

fn newest(root: &Path) -> Loaded {
    CheckpointStore::read_only(&root.join("checkpoints")).load_latest().unwrap().unwrap()
}

/// The lines of the metrics without what depends on the clock.
fn lines(root: &Path) -> Vec<Record> {
    let lines = metrics::read(&root.join("metrics.jsonl")).unwrap();
    lines.into_iter().map(|line| Record { images_per_second: 0.0, data_wait: 0.0, ..line }).collect()
}

#[test]
fn a_stopped_and_resumed_training_is_one_that_was_never_stopped() {
    stop_and_resume("float32");
}

#[test]
fn a_training_in_bfloat16_is_resumed_to_the_same_bits() {
    stop_and_resume("bfloat16");
}

fn stop_and_resume(precision: &str) {
    let place = tempfile::tempdir().unwrap();
    let (whole, cut) = (place.path().join("whole"), place.path().join("cut"));
    let precision = format!("train.precision={precision}");
    let recipe = recipe("demo", &["schedule.steps=9", "log.every_steps=4", &precision]);
    let all = pretrain(&whole, recipe.clone(), Stripes::new(10), never);
    assert_eq!((all.summary().outcome, all.summary().step), (Outcome::Finished, 9));
    for stop in [1, 3, 6, 8] {
        let part = pretrain(&cut, recipe.clone(), Stripes::new(10), at_step(stop));
        assert_eq!((part.summary().outcome, part.summary().step), (Outcome::Stopped, stop));
        assert_eq!((newest(&cut).meta.step, part.summary().val_loss), (stop, None));
        assert!(!cut.join("model.safetensors").exists());
    }
    let last = pretrain(&cut, recipe, Stripes::new(10), never);
    assert_eq!(model(&cut), model(&whole));
    assert_eq!(newest(&cut).tensors, newest(&whole).tensors);
    assert_eq!(lines(&cut), lines(&whole));
    assert_eq!(last.summary(), all.summary());
}

#[test]
fn curves_are_drawn_from_the_first_measurement_on() {
    let place = tempfile::tempdir().unwrap();
    let curves = place.path().join("curves.svg");
    let seen = std::cell::RefCell::new(Vec::new());
    let look = |event: &Event| {
        if let Event::Step { step, .. } = event {
            let drawn = std::fs::read_to_string(&curves).ok();
            seen.borrow_mut().push((*step, drawn.is_some_and(|svg| svg.contains("held-out loss"))));
        }
        false
    };
    pretrain(place.path(), recipe("demo", &["schedule.steps=4"]), Stripes::new(10), look);
    assert_eq!(seen.into_inner(), [(1, false), (2, false), (3, true), (4, true)]);
}

#[test]
fn precision_changes_the_weights_and_threads_do_not() {
    let place = tempfile::tempdir().unwrap();
    let train = |precision: &str, threads: usize| {
        let root = place.path().join(format!("{precision}-{threads}"));
        let recipe = recipe("demo", &["schedule.steps=4", &format!("train.precision={precision}")]);
        let part = pretrain_on(&root, recipe, Stripes::new(10), never, threads);
        (model(&root), part.summary().val_loss.unwrap())
    };
    let (floats, of_floats) = train("float32", 1);
    let (mixed, of_mixed) = train("bfloat16", 1);
    assert!(floats != mixed && (of_mixed / of_floats - 1.0).abs() < 0.02, "{of_mixed}, {of_floats}");
    for threads in [2, 3] {
        assert!(train("bfloat16", threads).0 == mixed, "{threads} threads");
    }
}

#[test]
fn a_finished_training_leaves_its_results_and_curves() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("run");
    let part = pretrain(&root, recipe("demo", &["schedule.steps=40"]), Stripes::new(10), never);
    let summary = part.summary();
    for name in ["config.toml", "baselines.json", "encoder.safetensors", "reconstructions/step-00000040.png"] {
        assert!(root.join(name).is_file(), "{name}");
    }
    let svg = std::fs::read_to_string(root.join("curves.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.matches("<polyline").count() >= 2, "{svg}");
    let (first, last) = (summary.first_val_loss.unwrap(), summary.val_loss.unwrap());
    assert!(first.0 == 2 && last < 0.9 * first.1, "{first:?} to {last}");
    let lines = lines(&root);
    assert_eq!(lines.iter().map(|l| l.step).collect::<Vec<_>>(), (1..=40).collect::<Vec<_>>());
    assert!(lines.iter().all(|l| l.val_loss.is_some() == l.step.is_multiple_of(2)));
    assert_eq!(lines[39].val_loss, Some(last));
    let told = part.events.iter().filter(|e| matches!(e, Event::Logged(_))).count();
    assert_eq!((told, part.warnings().len()), (40, 0), "{:?}", part.warnings());
    assert!(part.events.iter().any(|e| matches!(e, Event::Trivial(_))) && summary.trivial.is_some());
}

/// A guard to which every second loss is a spike.
const JUMPY: [&str; 3] = ["guard.spike_window=1", "guard.spike_factor=0.5", "checkpoint.every_steps=1"];

#[test]
fn a_rollback_is_saved_though_the_training_stops_right_after_it() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("run");
    let recipe = recipe("demo", &[&JUMPY[..], &["guard.on_spike=rollback", "schedule.steps=5"]].concat());
    let back = |event: &Event| matches!(event, Event::Warning(text) if text.contains("step 1"));
    let part = pretrain(&root, recipe.clone(), Stripes::new(40), back);
    assert_eq!((part.summary().outcome, part.summary().step), (Outcome::Stopped, 1), "{:?}", part.warnings());
    let meta = newest(&root).meta;
    assert_eq!((meta.step, meta.batch, meta.rollbacks), (1, 2, 1));
    // The next part takes the third batch, and may roll back twice more.
    let part = pretrain(&root, recipe, Stripes::new(40), never);
    assert!(matches!(part.result, Err(TrainError::Diverged { .. })), "{:?}", part.result);
    assert_eq!(part.warnings().len(), 2, "{:?}", part.warnings());
}

#[test]
fn the_guard_stops_warns_or_lets_pass() {
    let place = tempfile::tempdir().unwrap();
    for (reaction, warnings) in [("stop", 0), ("warn", 4), ("ignore", 0)] {
        let root = place.path().join(reaction);
        let set = format!("guard.on_spike={reaction}");
        let recipe = recipe("demo", &[&JUMPY[..], &[&set, "schedule.steps=5"]].concat());
        let part = pretrain(&root, recipe, Stripes::new(40), never);
        match part.result {
            Err(TrainError::Diverged { step, .. }) => assert_eq!((reaction, step), ("stop", 2)),
            ref other => assert!(reaction != "stop" && other.is_ok(), "{reaction}: {other:?}"),
        }
        assert_eq!(part.warnings().len(), warnings, "{reaction}: {:?}", part.warnings());
        assert_eq!(newest(&root).meta.step, if reaction == "stop" { 1 } else { 5 });
    }
}

#[test]
fn a_loss_that_is_no_number_leaves_the_weights_alone_and_checkpoints_readable() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("run");
    // One batch an epoch: the poisoned image is in every step.
    let images = Stripes { poisoned: Some(1), ..Stripes::new(4) };
    let set = ["schedule.steps=3", "guard.on_nan=warn", "log.every_steps=2", "checkpoint.every_steps=1"];
    let part = pretrain(&root, recipe("demo", &set), images, never);
    assert_eq!((part.summary().outcome, part.warnings().len()), (Outcome::Finished, 3), "{:?}", part.warnings());
    let lines = lines(&root);
    assert!(lines.iter().all(|l| l.loss.is_nan()), "{lines:?}");
    assert!(lines.iter().filter_map(|l| l.val_loss).all(f32::is_finite), "{lines:?}");
    let steps = CheckpointStore::read_only(&root.join("checkpoints")).steps().unwrap();
    assert_eq!(steps, [2, 3]);
    let tensors = newest(&root).tensors;
    assert!(tensors.values().all(|t| t.data.iter().all(|v| v.is_finite())));
    let untrained = place.path().join("untrained");
    pretrain(&untrained, recipe("demo", &["schedule.steps=1", "optimizer.lr=0.0"]), Stripes::new(4), never);
    assert_eq!(model(&root), model(&untrained));
}

#[test]
fn a_damaged_checkpoint_is_passed_over_told_and_kept_under_another_name() {
    let place = tempfile::tempdir().unwrap();
    let (whole, cut) = (place.path().join("whole"), place.path().join("cut"));
    let recipe = recipe("demo", &["schedule.steps=4", "checkpoint.every_steps=1"]);
    pretrain(&whole, recipe.clone(), Stripes::new(10), never);
    pretrain(&cut, recipe.clone(), Stripes::new(10), at_step(3));
    let state = cut.join("checkpoints/step-00000003/state.safetensors");
    std::fs::write(&state, "damage").unwrap();
    let part = pretrain(&cut, recipe, Stripes::new(10), never);
    let warnings = part.warnings();
    assert!(warnings.len() == 2 && warnings[0].contains("step-00000003"), "{warnings:?}");
    assert!(warnings[1].contains("damaged-step-00000003"), "{warnings:?}");
    let moved = cut.join("checkpoints/damaged-step-00000003/state.safetensors");
    assert_eq!(std::fs::read_to_string(moved).unwrap(), "damage");
    assert_eq!(model(&cut), model(&whole));
}

#[test]
fn the_best_classifier_is_kept() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("run");
    let images = |count: usize| LabelledSource::new(Arc::new(Stripes::new(count)), Path::new("stripes")).unwrap();
    let data = LabelledData { train: images(16), val: images(8) };
    let set = ["schedule.steps=60", "schedule.warmup_epochs=0", "augment.mixup=0.0", "finetune.layer_decay=1.0"];
    let mut recipe = recipe("finetune_small_images", &set);
    settle_finetuning(&mut recipe, &data, 1).unwrap();
    let run = folder(&root, &recipe);
    let task = FineTuning::new(&recipe, &data, executor()).unwrap();
    let images = task.images();
    let mut trainer = Trainer::with_task(recipe, Some(run), images, task, Ranks::default(), &mut |_| {}).unwrap();
    let summary = trainer.run(&AtomicBool::new(false), &mut |_| {}).unwrap();
    let lines = lines(&root);
    let measured: Vec<(u64, f32)> = lines.iter().filter_map(|l| Some((l.step, l.val_top1?))).collect();
    assert_eq!(measured.len(), 30);
    let best = summary.best.unwrap();
    let highest = measured.iter().map(|m| m.1).fold(0.0, f32::max);
    assert_eq!(measured.iter().rev().find(|m| m.1 == highest), Some(&(best.step, best.top1)));
    assert!(highest > 0.9, "{measured:?}");
    assert_eq!(newest(&root).meta.best, summary.best);
    assert_eq!(newest(&root).meta.classes, ["above", "below"]);
    let weights = |name: &str| simmim_train::classify::ClassifierFile::read(&root.join(name)).unwrap();
    assert_eq!(weights("best.safetensors").classes, ["above", "below"]);
    let same = weights("best.safetensors").weights == weights("last.safetensors").weights;
    assert_eq!(same, best.step == 60);
}

/// Pre-trains on so many ranks, threads of this process, until the end or until an event says so; gives what the first has done, and the errors of all.
fn pretrain_among(
    world: usize,
    root: &Path,
    recipe: &Recipe,
    images: &Stripes,
    until: impl Fn(&Event) -> bool + Sync,
) -> (Part, Vec<String>) {
    let run_one = |ranks: Ranks| {
        let (mut recipe, first) = (recipe.clone(), ranks.is_first());
        let data = Data { train: Arc::new(images.clone()), held_out: Arc::new(Stripes::new(70)) };
        settle(&mut recipe, &data, ranks.world()).unwrap();
        let run = first.then(|| folder(root, &recipe));
        let (stop, mut events) = (AtomicBool::new(false), Vec::new());
        let mut tell = |event: Event| {
            stop.fetch_or(until(&event), Ordering::Relaxed);
            events.push(event);
        };
        let mut trainer = Trainer::among(recipe, run, data, executor(), ranks, &mut tell).unwrap();
        let result = trainer.run(&stop, &mut tell);
        Part { result, events }
    };
    std::thread::scope(|scope| {
        let run_one = &run_one;
        let ranks = Threads::new(world).into_iter();
        let threads: Vec<_> = ranks.map(|rank| scope.spawn(move || run_one(rank.into_ranks().unwrap()))).collect();
        let mut parts: Vec<Part> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(parts[1..].iter().all(|part| part.events.is_empty()), "the other ranks are silent");
        let errors = parts.iter().filter_map(|part| part.result.as_ref().err().map(ToString::to_string)).collect();
        (parts.swap_remove(0), errors)
    })
}

/// Asserts that two runs logged the same losses but for rounding.
fn assert_close(one: &Path, other: &Path, tolerance: f32) {
    let (one, other) = (lines(one), lines(other));
    assert_eq!(one.len(), other.len());
    for (a, b) in one.iter().zip(&other) {
        let close = |a: f32, b: f32| (a - b).abs() <= tolerance * a.abs();
        assert!(close(a.loss, b.loss) && close(a.grad_norm, b.grad_norm), "{a:?}, {b:?}");
        assert!(a.val_loss.zip(b.val_loss).is_none_or(|(a, b)| close(a, b)), "{a:?}, {b:?}");
        assert_eq!((a.step, a.epoch, a.val_loss.is_some()), (b.step, b.epoch, b.val_loss.is_some()));
    }
}

/// A batch of twelve for one to four ranks, with dropped paths, and held-out images for three batches.
fn shared_recipe(more: &[&str]) -> Recipe {
    let set = ["train.batch_size=12", "schedule.steps=6", "model.drop_path=0.2", "model.depth=2", "validate.images=70"];
    recipe("demo", &[&set[..], more].concat())
}

#[test]
fn ranks_train_as_one_process_does_and_give_the_same_bits_every_time() {
    let place = tempfile::tempdir().unwrap();
    let alone = place.path().join("alone");
    pretrain_among(1, &alone, &shared_recipe(&[]), &Stripes::new(40), never).0.summary();
    for (world, accumulation) in [(1, 4), (2, 2), (3, 0), (4, 12)] {
        let set = format!("train.accumulation={accumulation}");
        let train = |name: &str| {
            let root = place.path().join(format!("{world}-{name}"));
            pretrain_among(world, &root, &shared_recipe(&[&set]), &Stripes::new(40), never).0.summary();
            root
        };
        let (first, second) = (train("first"), train("second"));
        assert_close(&alone, &first, 2e-6);
        assert!(model(&first) == model(&second), "{world} ranks");
    }
}

#[test]
fn a_training_is_resumed_by_another_number_of_ranks() {
    let place = tempfile::tempdir().unwrap();
    let (whole, cut) = (place.path().join("whole"), place.path().join("cut"));
    let (recipe, images) = (shared_recipe(&[]), Stripes::new(40));
    pretrain_among(1, &whole, &recipe, &images, never).0.summary();
    for (world, stop) in [(4, 2), (2, 3), (3, 5)] {
        let part = pretrain_among(world, &cut, &recipe, &images, at_step(stop)).0;
        assert_eq!((part.summary().outcome, part.summary().step), (Outcome::Stopped, stop));
    }
    pretrain_among(1, &cut, &recipe, &images, never).0.summary();
    assert_close(&whole, &cut, 2e-6);
    let (whole, cut) = (newest(&whole), newest(&cut));
    assert_eq!((whole.meta.epoch, whole.meta.batch), (cut.meta.epoch, cut.meta.batch));
    assert!(whole.tensors.keys().eq(cut.tensors.keys()));
}

/// The parts of each gradient are summed in another order for the norm, so what is clipped differs in last bits.
#[test]
fn ranks_that_share_out_the_moments_leave_the_same_files() {
    let place = tempfile::tempdir().unwrap();
    let images = Stripes::new(40);
    for (precision, clip) in [("float32", 0.0), ("bfloat16", 0.0), ("float32", 0.05)] {
        let root = |name: &str| place.path().join(format!("{precision}-{clip}-{name}"));
        let (precision, clip_norm) = (format!("train.precision={precision}"), format!("optimizer.clip_norm={clip}"));
        let set = [&precision, &clip_norm, "train.bucket_bytes=5000", "checkpoint.every_steps=2"];
        let (whole, same, others) = (root("whole"), root("same"), root("others"));
        pretrain_among(3, &whole, &shared_recipe(&set), &images, never).0.summary();
        let sharded = shared_recipe(&[&set[..], &["train.shard_optimizer=true"]].concat());
        // Stopped and resumed, by as many ranks and by other numbers.
        for (root, world, stop) in [(&same, 3, 3), (&same, 3, 6), (&others, 4, 2), (&others, 1, 3), (&others, 2, 6)] {
            assert_eq!(pretrain_among(world, root, &sharded, &images, at_step(stop)).0.summary().step, stop);
        }
        if clip == 0.0 {
            assert!(newest(&whole).tensors == newest(&same).tensors && model(&whole) == model(&same), "{precision}");
        }
        if precision.ends_with("float32") {
            assert_close(&whole, &same, 2e-6);
            assert_close(&whole, &others, 2e-6);
        }
        assert!(newest(&whole).tensors.keys().eq(newest(&others).tensors.keys()));
    }
}

#[test]
fn a_failure_of_any_rank_stops_all_with_one_message_and_a_checkpoint_where_the_data_failed() {
    let place = tempfile::tempdir().unwrap();
    // No image is allowed to be unreadable, and one is: a single rank meets it.
    let root = place.path().join("data");
    let recipe = shared_recipe(&["data.max_errors=0"]);
    let images = Stripes { unreadable: Some(7), ..Stripes::new(24) };
    let (_, errors) = pretrain_among(3, &root, &recipe, &images, never);
    assert!(errors.len() == 3 && errors.iter().all(|e| *e == errors[0] && e.contains("stripes 7")), "{errors:?}");
    let meta = newest(&root).meta;
    assert_eq!((meta.epoch * 2 + meta.batch, meta.step < 2), (meta.step, true), "the failed batch is the next");
    // A gradient that is no number reaches all.
    let root = place.path().join("nan");
    let images = Stripes { poisoned: Some(7), ..Stripes::new(24) };
    let (_, errors) = pretrain_among(3, &root, &shared_recipe(&["guard.on_nan=stop"]), &images, never);
    assert!(errors.len() == 3 && errors.iter().all(|e| *e == errors[0] && e.contains("not finite")), "{errors:?}");
}

#[test]
fn ranks_go_back_to_a_checkpoint_together() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("run");
    let recipe = shared_recipe(&[&JUMPY[..], &["guard.on_spike=rollback", "guard.max_rollbacks=2"]].concat());
    let (part, errors) = pretrain_among(2, &root, &recipe, &Stripes::new(120), never);
    assert_eq!((part.warnings().len(), errors.len()), (2, 2), "{:?}, {errors:?}", part.warnings());
    assert_eq!(newest(&root).meta.step, 1);
}

#[test]
fn fine_tuning_with_mixed_images_is_shared_by_ranks() {
    let place = tempfile::tempdir().unwrap();
    let train = |world: usize, more: &[&str]| {
        let root = place.path().join(format!("{world}{}", more.concat()));
        if root.exists() {
            std::fs::remove_dir_all(&root).unwrap();
        }
        let run_one = |ranks: Ranks| {
            let images =
                |count: usize| LabelledSource::new(Arc::new(Stripes::new(count)), Path::new("stripes")).unwrap();
            let data = LabelledData { train: images(48), val: images(140) };
            let set = [
                "schedule.steps=6",
                "schedule.warmup_epochs=0",
                "train.batch_size=12",
                "augment.mixup=0.8",
                "augment.cutmix=1.0",
                "validate.images=140",
            ];
            let mut recipe = recipe("finetune_small_images", &[&set[..], more].concat());
            settle_finetuning(&mut recipe, &data, world).unwrap();
            let run = ranks.is_first().then(|| folder(&root, &recipe));
            let task = FineTuning::among(&recipe, &data, executor(), &ranks).unwrap();
            let images = task.images();
            let mut trainer = Trainer::with_task(recipe, run, images, task, ranks, &mut |_| {}).unwrap();
            trainer.run(&AtomicBool::new(false), &mut |_| {}).unwrap().best
        };
        let best = std::thread::scope(|scope| {
            let run_one = &run_one;
            let ranks = Threads::new(world).into_iter();
            let threads: Vec<_> = ranks.map(|rank| scope.spawn(move || run_one(rank.into_ranks().unwrap()))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).next_back().unwrap()
        });
        (root, best)
    };
    let plain: &[&str] = &[];
    for (world, as_one, more) in [
        (2, plain, plain),
        (3, plain, plain),
        (3, plain, &["train.shard_optimizer=true"]),
        (2, &["finetune.ema=0.5"], &["finetune.ema=0.5", "train.shard_optimizer=true"]),
    ] {
        let ((alone, best), (shared, of_shared)) = (train(1, as_one), train(world, more));
        assert_close(&alone, &shared, 5e-6);
        assert_eq!(best, of_shared);
    }
    let recipe = shared_recipe(&["train.batch_size=10"]);
    let data = Data { train: Arc::new(Stripes::new(40)), held_out: Arc::new(Stripes::new(6)) };
    let refused = settle(&mut recipe.clone(), &data, 4).unwrap_err().to_string();
    assert_eq!(refused, "train.batch_size = 10 images cannot be shared equally by 4 ranks");
}
