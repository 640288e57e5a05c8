//! The program as its user meets it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test or benchmark may fail loudly")]

use std::path::Path;
use std::process::{Command, Output};

fn simmim(folder: &Path, arguments: &str) -> Output {
    command(folder, arguments).output().expect("the program starts")
}

fn command(folder: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_simmim"));
    command.current_dir(folder).args(arguments.split_whitespace());
    command
}

/// With an instruction set in the environment; an empty name chooses none.
fn simmim_on(isa: &str, folder: &Path, arguments: &str) -> Output {
    command(folder, arguments).env("SIMMIM_ISA", isa).output().expect("the program starts")
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const TINY: &str = "--set model.embed_dim=24 --set model.num_heads=2 --set model.depth=1";
const SHORT: &str = "--set train.batch_size=16 --set validate.images=16 --set log.every_steps=1 --set model.depth=2";

#[test]
fn a_run_leaves_what_the_readme_says_and_its_loss_falls() {
    let place = tempfile::tempdir().unwrap();
    let out = simmim(place.path(), &format!("pretrain --out run --steps 30 {SHORT} --set schedule.warmup_steps=60"));
    assert!(out.status.success(), "{}", errors(&out));
    assert!(errors(&out).contains("the warm-up takes 60 of 30 steps"), "{}", errors(&out));
    let run = place.path().join("run");
    for name in [
        "config.toml",
        "metrics.jsonl",
        "encoder.safetensors",
        "model.safetensors",
        "reconstructions/step-00000030.png",
    ] {
        assert!(run.join(name).is_file(), "{name}");
    }
    let said = String::from_utf8_lossy(&out.stdout);
    let call = "its images: timm.data.create_transform(input_size=(1, 28, 28), interpolation='bilinear', mean=(0.";
    assert!(said.contains(call), "{said}");
    let (_, text) = simmim_models::weights::read_described(&run.join("encoder.safetensors")).unwrap();
    let images = serde_json::from_str::<serde_json::Value>(&text.unwrap()).unwrap()["images"].take();
    assert_eq!((images["input_size"].to_string(), &images["interpolation"]), ("[1,28,28]".into(), &"bilinear".into()));
    let mean = images["mean"][0].as_f64().unwrap();
    assert!((0.2..0.4).contains(&mean) && images["std"][0].is_number(), "{images}");
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = metrics.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let loss = |i: usize| lines[i]["loss"].as_f64().unwrap();
    assert!(lines.len() == 30 && loss(29) < 0.8 * loss(0), "{} to {}", loss(0), loss(29));
    assert!(lines[29]["val_loss"].is_number() && lines[0]["val_loss"].is_null());
    let waits = lines.iter().map(|line| line["data_wait"].as_f64().unwrap());
    assert!(waits.into_iter().all(|share| (0.0..=1.0).contains(&share)));

    let again = simmim(place.path(), "pretrain --out run --steps 3");
    assert_eq!(again.status.code(), Some(2));
    assert!(errors(&again).contains("this folder holds a run"));

    let picture = simmim(place.path(), "reconstruct --weights run --out grid.png --images 3 --values v.safetensors");
    assert!(picture.status.success(), "{}", errors(&picture));
    let values = simmim_models::weights::read(&place.path().join("v.safetensors")).unwrap();
    assert_eq!(values["mask"].shape, [3, 7, 7]);
    assert_eq!(values["prediction"].shape, [3, 1, 28, 28]);

    let idx = concat!(env!("CARGO_MANIFEST_DIR"), "/../simmim-data/demo/t10k-images-idx3-ubyte.gz");
    let embed = simmim(place.path(), &format!("embed --weights run --data {idx} --out f.npy --pool none --layer 1"));
    assert!(embed.status.success(), "{}", errors(&embed));
    assert_eq!(std::fs::read_to_string(place.path().join("f.files.txt")).unwrap().lines().count(), 1000);
}

#[test]
fn a_resumed_run_ends_with_the_weights_of_one_that_was_never_stopped() {
    let place = tempfile::tempdir().unwrap();
    let whole = simmim(place.path(), &format!("pretrain --out whole --steps 9 {SHORT}"));
    assert!(whole.status.success(), "{}", errors(&whole));
    let every = "--set checkpoint.every_steps=4 --set checkpoint.keep=9";
    let cut = simmim(place.path(), &format!("pretrain --out cut --steps 9 {SHORT} {every}"));
    assert!(cut.status.success(), "{}", errors(&cut));
    for step in [9, 8] {
        std::fs::remove_dir_all(place.path().join(format!("cut/checkpoints/step-{step:08}"))).unwrap();
    }
    std::fs::remove_file(place.path().join("cut/model.safetensors")).unwrap();
    let resumed = simmim(place.path(), "pretrain --out cut --resume");
    assert!(resumed.status.success(), "{}", errors(&resumed));
    let model = |run: &str| std::fs::read(place.path().join(run).join("model.safetensors")).unwrap();
    assert!(model("whole") == model("cut"));
    let lines = std::fs::read_to_string(place.path().join("cut/metrics.jsonl")).unwrap().lines().count();
    assert_eq!(lines, 9);
}

#[test]
fn a_run_made_longer_is_used_with_its_newest_weights() {
    let place = tempfile::tempdir().unwrap();
    let run = |arguments: &str| {
        let out = simmim(place.path(), arguments);
        assert!(out.status.success(), "{arguments}: {}", errors(&out));
        errors(&out)
    };
    run(&format!("pretrain --out run --steps 3 {SHORT}"));
    let model = place.path().join("run/model.safetensors");
    let old = std::fs::read(&model).unwrap();
    let said = run("pretrain --out run --resume --steps 5");
    assert!(said.contains("schedule.steps = 3 -> 5"), "{said}");
    let config = std::fs::read_to_string(place.path().join("run/config.toml")).unwrap();
    assert!(config.contains("steps = 5"), "{config}");
    // As after an interruption: a checkpoint is there, the results are those of the shorter run.
    std::fs::write(&model, old).unwrap();
    run("reconstruct --weights run --out a.png --values a.safetensors");
    run("reconstruct --weights run/checkpoints/step-00000005 --out b.png --values b.safetensors");
    run("reconstruct --weights run/model.safetensors --recipe run/config.toml --out c.png --values c.safetensors");
    let values = |name: &str| std::fs::read(place.path().join(name)).unwrap();
    assert!(values("a.safetensors") == values("b.safetensors"));
    assert!(values("a.safetensors") != values("c.safetensors"));

    std::fs::remove_dir_all(place.path().join("run/checkpoints")).unwrap();
    let lost = simmim(place.path(), "pretrain --out run --resume --steps 9");
    assert_eq!(lost.status.code(), Some(2));
    assert!(errors(&lost).contains("its checkpoints are gone"), "{}", errors(&lost));
}

/// Images of 8 x 8 pixels, of so many channels, in two classes.
fn photos(folder: &Path, channels: u8) {
    for i in 0..24u8 {
        let path = folder.join(if i < 12 { "a" } else { "b" });
        std::fs::create_dir_all(&path).unwrap();
        let pixels: Vec<u8> = (0..64 * u32::from(channels)).map(|p| (p * 7 + u32::from(i) * 31) as u8).collect();
        let color = if channels == 4 { image::ExtendedColorType::Rgba8 } else { image::ExtendedColorType::Rgb8 };
        image::save_buffer(path.join(format!("{i}.png")), &pixels, 8, 8, color).unwrap();
    }
}

#[test]
fn a_run_among_its_images_is_no_data_and_transparency_is_told_once() {
    let place = tempfile::tempdir().unwrap();
    photos(&place.path().join("photos"), 4);
    let small = "--set model.image_size=8 --set model.patch_size=4 --set simmim.mask_patch=4 --set model.embed_dim=32";
    let run = format!(
        "pretrain --recipe demo --data photos --out photos/run --steps 6 {SHORT} {small} --set train.batch_size=8"
    );
    let first = simmim(place.path(), &run);
    assert!(first.status.success(), "{}", errors(&first));
    assert!(!errors(&first).contains("passed over"), "{}", errors(&first));
    let told = "images have transparency: composited on white (data.background = \"white\")";
    assert_eq!(errors(&first).matches(told).count(), 1, "{}", errors(&first));
    // The run's picture lies below the images now.
    let resumed = simmim(place.path(), "pretrain --out photos/run --resume --steps 9");
    assert!(resumed.status.success(), "{}", errors(&resumed));
    assert!(
        errors(&resumed).contains("a folder among the images holds a run and is passed over: run"),
        "{}",
        errors(&resumed)
    );
    assert!(errors(&resumed).contains("22 images"), "{}", errors(&resumed));
    let whole = simmim(place.path(), &run.replace("photos/run", "elsewhere").replace("--steps 6", "--steps 9"));
    assert!(whole.status.success(), "{}", errors(&whole));

    let shown = simmim(place.path(), "reconstruct --weights elsewhere --data photos --out grid.png --images 4");
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    let names = text.lines().find(|l| l.starts_with("images, from the top:")).unwrap_or_else(|| panic!("{text}"));
    assert!(names.matches("a/").count() == 2 && names.matches("b/").count() == 2, "{names}");
    let wrong = simmim(place.path(), "pretrain --data photos --out c --set data.background=blue");
    assert_eq!(wrong.status.code(), Some(2));
    assert!(errors(&wrong).contains("data.background is \"blue\""), "{}", errors(&wrong));
}

#[test]
fn a_recipe_is_asked_only_for_what_a_verb_needs() {
    let place = tempfile::tempdir().unwrap();
    let run = |arguments: &str| {
        let out = simmim(place.path(), arguments);
        assert!(out.status.success(), "{arguments}: {}", errors(&out));
    };
    run(&format!("pretrain --out run --steps 2 {SHORT}"));
    // A model and its inputs, but no length of a training.
    let recipe = "[model]\nname = \"vit_tiny_patch4_28\"\nchannels = 1\nembed_dim = 128\ndepth = 2\nnum_heads = 4\n\
                  class_token = false\n[simmim]\nmask_patch = 4\n[data]\nmean = \"measure\"\nstd = \"measure\"\n";
    std::fs::write(place.path().join("mine.toml"), recipe).unwrap();
    let weights = "--weights run/model.safetensors --recipe mine.toml";
    let idx = concat!(env!("CARGO_MANIFEST_DIR"), "/../simmim-data/demo/t10k-images-idx3-ubyte.gz");
    run(&format!("reconstruct {weights} --out grid.png --images 2"));
    run(&format!("embed {weights} --data {idx} --out f.npy"));
    run(&format!("neighbors {weights} --data {idx} --query #3 --out sheet.png"));
    run("inspect --recipe mine.toml --batch 4");
    run("recipes show mine.toml");
    let refused = simmim(place.path(), "pretrain --recipe mine.toml --out x");
    assert_eq!(refused.status.code(), Some(2));
    let said = errors(&refused);
    assert!(said.contains("does not say how long to train") && said.contains("--steps"), "{said}");
    assert!(!place.path().join("x").exists());
    run(&format!("pretrain --recipe mine.toml --out x --steps 1 {SHORT}"));
}

#[test]
fn unreadable_held_out_images_do_not_lose_a_run() {
    let place = tempfile::tempdir().unwrap();
    let bad = place.path().join("bad");
    std::fs::create_dir(&bad).unwrap();
    std::fs::write(bad.join("a.png"), b"not a picture").unwrap();
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../simmim-data/demo/t10k-images-idx3-ubyte.gz");
    let refused =
        simmim(place.path(), &format!("pretrain --out x --data {demo} --set data.val_path=bad --steps 2 {SHORT}"));
    assert_eq!(refused.status.code(), Some(2), "{}", errors(&refused));
    assert!(errors(&refused).contains("a.png") && !place.path().join("x").exists());
}

#[test]
fn a_reader_that_stops_early_is_no_panic() {
    let program = env!("CARGO_BIN_EXE_simmim");
    let mut child = Command::new(program)
        .args(["inspect", "--plan"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert!(!errors(&out).contains("panicked"), "{}", errors(&out));
}

#[test]
fn wrong_input_is_refused_before_anything_is_written() {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("notes.txt"), "mine").unwrap();
    std::fs::write(place.path().join("w.pth"), b"PK\x03\x04...").unwrap();
    for (arguments, message) in [
        ("pretrain --out x --set optimizer.lrr=1", "did you mean `optimizer.lr`"),
        ("pretrain --out x --recipe dmo", "did you mean `demo`"),
        ("pretrain --out x --data nowhere", "nowhere"),
        ("pretrain --out x --set model.num_heads=3", "do not divide a width of 128"),
        ("pretrain --out x --set model.image_size=30", "do not divide images of 30x30"),
        ("pretrain --out x --set simmim.mask_patch=6", "not a multiple of the patch"),
        ("pretrain --out x --weights missing.safetensors", "missing.safetensors"),
        ("pretrain --out x --resume", "this folder holds no run"),
        ("pretrain --out x --device tpu:0", "no device `tpu:0`"),
        ("pretrain --out x --resume --recipe demo", "cannot be used with"),
        ("pretrain --out x --minutes 0", "a positive number of minutes"),
        ("pretrain --out x --minutes 1e-9", "do not suffice for one step"),
        ("pretrain --out notes.txt", "notes.txt is a file"),
        ("embed --weights missing.safetensors --data . --out f.npy", "does not exist"),
        ("embed --weights notes.txt --data . --out f.npy", "notes.txt: is no weight file"),
        ("embed --weights w.pth --data . --out f.npy", "not a whole PyTorch checkpoint"),
        ("embed --weights . --data . --out f.npy", "neither a run, a checkpoint nor a model"),
        ("reconstruct --weights w.pth --out nowhere/grid.png", "the folder nowhere does not exist"),
        ("inspect --batch 0", "at least 1"),
        ("bench step --model resnet50", "unknown model `resnet50`"),
        ("bench step --steps 0", "at least 1"),
        ("bench step --batch 4 --accumulation 3", "--accumulation 3"),
    ] {
        let out = simmim(place.path(), arguments);
        assert_eq!(out.status.code(), Some(2), "{arguments}: {}", errors(&out));
        assert!(errors(&out).contains(message), "{arguments}: {}", errors(&out));
        assert!(!place.path().join("x").exists(), "{arguments} left a folder behind");
    }
}

#[test]
fn the_loader_benchmark_names_unreadable_images() {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("broken.png"), b"\x89PNG\r\n\x1a\nnothing").unwrap();
    let good = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/pictures/fashion_mnist.png");
    std::fs::copy(good, place.path().join("good.png")).unwrap();
    let out = simmim(place.path(), "bench loader --data . --image-size 32 --images 32 --json");
    assert!(out.status.success(), "{}", errors(&out));
    let found: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(found["images_per_second"].as_f64().unwrap() > 0.0, "{found}");
    assert!(
        errors(&out).contains("1 image could not be read") && errors(&out).contains("broken.png"),
        "{}",
        errors(&out)
    );
}

#[test]
fn the_environment_chooses_the_instruction_set() {
    let place = tempfile::tempdir().unwrap();
    let bench = |isa: &str| {
        let arguments = "bench step --model vit_tiny_patch16_224 --image-size 32 --batch 2 --steps 1 --json";
        simmim_on(isa, place.path(), arguments)
    };
    let out = bench("portable");
    let found: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(found["isa"], "portable", "{}", errors(&out));
    assert!(bench("").status.success() && bench("Portable ").status.success());
    let out = bench("sse9");
    assert_eq!(out.status.code(), Some(2));
    let said = errors(&out);
    assert!(said.contains("SIMMIM_ISA: this processor has no instruction set `sse9`"), "{said}");
    assert!(said.contains("portable"), "{said}");
}

#[test]
fn a_run_keeps_its_precision_and_says_when_it_changes() {
    let place = tempfile::tempdir().unwrap();
    let run = |arguments: &str| {
        let out = simmim_on("portable", place.path(), arguments);
        assert!(out.status.success(), "{arguments}: {}", errors(&out));
        errors(&out)
    };
    let said = run(&format!("pretrain --out run --steps 2 --precision bf16 {SHORT}"));
    assert!(said.contains("(portable, bfloat16)"), "{said}");
    let said = run("pretrain --out run --resume --steps 3");
    assert!(said.contains("(portable, bfloat16)"), "{said}");
    let said = run("pretrain --out run --resume --steps 4 --precision f32");
    assert!(said.contains("settings changed") && said.contains("train.precision"), "{said}");
    let out = simmim_on("", place.path(), "pretrain --out other --precision fp16");
    assert_eq!(out.status.code(), Some(2));
    assert!(errors(&out).contains("float32 (f32) or bfloat16 (bf16)"), "{}", errors(&out));
}

#[test]
fn a_step_fits_into_the_memory_that_is_given_and_its_bits_stay() {
    let place = tempfile::tempdir().unwrap();
    let settings = format!("{SHORT} --set model.depth=4 --set train.accumulation=1");
    let inspected = simmim(place.path(), &format!("inspect --json {settings}"));
    let found: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert!(found["seconds_per_step"].as_f64() > Some(0.0), "{found}");
    let told = simmim(place.path(), &format!("inspect {settings}")).stdout;
    let told = String::from_utf8_lossy(&told);
    assert!(told.contains("a step on this machine") && told.contains("; 1800 steps take about "), "{told}");
    let [states, arena] = ["state_bytes", "arena_bytes"].map(|key| found[key].as_u64().unwrap());
    assert_eq!((&found["recomputed_blocks"], found["blocks"].as_u64() >= Some(4)), (&0.into(), true), "{found}");
    let enough = states + arena / 4 * 3;
    let inspected = simmim(place.path(), &format!("inspect --json --memory {enough} {settings}"));
    let fewer: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert!(fewer["recomputed_blocks"].as_u64() >= Some(1) && fewer["arena_bytes"].as_u64() <= Some(enough - states));
    for (name, more) in [("plain", String::new()), ("less", format!("--memory {enough}"))] {
        let out = simmim(place.path(), &format!("pretrain --out {name} --steps 3 {more} {settings}"));
        assert!(out.status.success(), "{}", errors(&out));
        assert_eq!(errors(&out).contains("blocks computed twice"), name == "less", "{}", errors(&out));
    }
    let [plain, less] =
        ["plain", "less"].map(|name| std::fs::read(place.path().join(name).join("encoder.safetensors")));
    assert!(plain.unwrap() == less.unwrap(), "the weights differ");
    // Parts come first where they are left open.
    let parts = simmim(place.path(), &format!("inspect --json --memory {enough} {SHORT} --set model.depth=4"));
    let parts: serde_json::Value = serde_json::from_slice(&parts.stdout).unwrap();
    assert!(parts["parts"].as_u64() > Some(1) && parts["recomputed_blocks"] == 0, "{parts}");
    for (memory, more, expected) in [
        (states / 2, "", "do not depend on the batch"),
        (states + arena / 20, "", "train.accumulation"),
        (enough, "--set train.recompute=none", "set train.recompute to \"auto\""),
    ] {
        let out = simmim(place.path(), &format!("pretrain --out no --steps 3 --memory {memory} {more} {settings}"));
        assert_eq!(out.status.code(), Some(2), "{}", errors(&out));
        assert!(errors(&out).contains("a step takes") && errors(&out).contains(expected), "{}", errors(&out));
        assert!(!place.path().join("no").exists(), "something was written");
    }
}

#[test]
fn a_run_says_when_it_goes_on_with_other_instructions() {
    let place = tempfile::tempdir().unwrap();
    let run = |isa: &str, arguments: &str| {
        let out = simmim_on(isa, place.path(), arguments);
        assert!(out.status.success(), "{arguments}: {}", errors(&out));
        errors(&out)
    };
    let said = run("portable", &format!("pretrain --out run --steps 2 {SHORT}"));
    assert!(said.contains("(portable, float32)"), "{said}");
    let said = run("portable", "pretrain --out run --resume --steps 3");
    assert!(!said.contains("instructions"), "{said}");
    let said = run("", "pretrain --out run --resume --steps 4");
    let widest = simmim_engine::cpu::Isa::available()[0].name() != "portable";
    assert_eq!(said.contains("its checkpoint was made with portable"), widest, "{said}");
}

#[test]
fn images_choose_the_recipe_where_none_is_named() {
    let place = tempfile::tempdir().unwrap();
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../simmim-data/demo/t10k-images-idx3-ubyte.gz");
    let out = simmim(place.path(), &format!("pretrain --data {demo} --steps 20 --set validate.images=8 {TINY}"));
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{told}");
    assert!(told.contains("recipe small_images_32: 1000 images, median of the shorter sides 28 px, gray"), "{told}");
    let config = std::fs::read_to_string(place.path().join("runs/small_images_32-1/config.toml")).unwrap();
    // The warm-up of the recipe is meant for its own length.
    assert!(told.contains(" 20 steps, about ") && told.contains(" each, on "), "{told}");
    for line in ["channels = 1 ", "steps = 20 ", "warmup_steps = 2 ", "embed_dim = 24 "] {
        assert!(config.contains(line), "{line}: {config}");
    }
}
