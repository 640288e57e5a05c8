//! Classifiers as their user meets them: fine-tuning, its resume, evaluation, prediction, comparison, and what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test or benchmark may fail loudly")]

use std::path::Path;
use std::process::{Command, Output};

const HELD_OUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../simmim-data/demo/t10k-images-idx3-ubyte.gz");

fn simmim(folder: &Path, arguments: &str) -> Output {
    let program = env!("CARGO_BIN_EXE_simmim");
    Command::new(program).current_dir(folder).args(arguments.split_whitespace()).output().expect("the program starts")
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs the program and expects it to succeed.
fn good(folder: &Path, arguments: &str) -> String {
    let out = simmim(folder, arguments);
    assert!(out.status.success(), "{arguments}: {}", errors(&out));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

const TINY: &str = "--set train.batch_size=16 --set log.every_steps=1 --set validate.images=16";
const MODEL: &str = "--set model.depth=2 --set model.embed_dim=32 --set model.num_heads=2";

fn pretrained(folder: &Path) {
    good(folder, &format!("pretrain --out pre --steps 3 {TINY} {MODEL}"));
}

#[test]
fn a_fine_tuning_takes_the_minutes_that_it_is_given_and_its_warm_up_a_tenth() {
    let place = tempfile::tempdir().unwrap();
    let here = place.path();
    pretrained(here);
    let out = simmim(here, &format!("finetune --weights pre --out ft --minutes 0.05 {TINY}"));
    let told = errors(&out);
    assert!(out.status.success() && told.contains("steps fit into 0.05 minutes"), "{told}");
    let fitted: u64 = told.split(" steps fit into").next().unwrap().split_whitespace().last().unwrap().parse().unwrap();
    assert!(told.contains(&format!(", {fitted} steps, about ")), "{told}");
    let config = || std::fs::read_to_string(here.join("ft/config.toml")).unwrap();
    let schedule = |config: &str| {
        let value = |key: &str| {
            let value = config.lines().find_map(|line| line.strip_prefix(&format!("{key} = ")));
            value.unwrap().split_whitespace().next().unwrap().parse::<u64>().unwrap()
        };
        ["steps", "epochs", "warmup_steps"].map(value)
    };
    let [steps, epochs, warmup] = schedule(&config());
    assert!((steps, epochs) == (fitted, 0) && warmup <= steps / 10, "{steps} {epochs} {warmup}");
    // A resumed run is as long as it was said to be.
    std::fs::remove_file(here.join("ft/last.safetensors")).unwrap();
    good(here, "finetune --out ft --resume");
    assert_eq!(schedule(&config())[0], steps);

    // Three epochs of warm-up are meant for thirty, and stay where they are asked for.
    good(here, &format!("finetune --weights pre --out short --steps 20 {TINY}"));
    good(here, &format!("finetune --weights pre --out asked --steps 9 {TINY} --set schedule.warmup_epochs=0.02"));
    let of = |run: &str| schedule(&std::fs::read_to_string(here.join(run).join("config.toml")).unwrap())[2];
    assert_eq!((of("short"), of("asked")), (2, 8), "0.02 epochs of 375 steps");
}

#[test]
fn a_classifier_is_trained_measured_and_used() {
    let place = tempfile::tempdir().unwrap();
    let here = place.path();
    pretrained(here);
    let said = good(here, &format!("finetune --weights pre --out ft --steps 20 {TINY} --set validate.every_steps=5"));
    assert!(said.contains("validation top-1") && said.contains("best.safetensors"), "{said}");
    assert!(said.contains(", selected on these validation images)"), "{said}");
    let metrics = std::fs::read_to_string(here.join("ft/metrics.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    assert!(last["val_top1"].is_number() && metrics.matches("val_top1").count() == 4, "{metrics}");

    let json = good(here, "evaluate --weights ft --json --out report");
    let scores: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((scores["images"].as_u64(), scores["classes"][9].as_str()), (Some(1000), Some("ankle boot")));
    assert!(scores["top5"].as_f64().unwrap() >= scores["top1"].as_f64().unwrap());
    let total: u64 = scores["confusion"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|r| r.as_array().unwrap())
        .map(|v| v.as_u64().unwrap())
        .sum();
    assert_eq!(total, 1000);
    for name in ["scores.json", "per_class.csv", "confusion.csv", "confusion.png"] {
        assert!(here.join("report").join(name).is_file(), "{name}");
    }
    // The exported file alone knows its classes and its architecture, and a checkpoint does.
    for weights in ["ft/best.safetensors", "ft/last.safetensors", "ft/checkpoints/step-00000020"] {
        assert!(good(here, &format!("evaluate --weights {weights}")).contains("ankle boot"), "{weights}");
    }

    good(here, &format!("predict --weights ft --data {HELD_OUT} --out classes.csv"));
    let table = std::fs::read_to_string(here.join("classes.csv")).unwrap();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!((lines.len(), lines[0]), (1001, "file,class,probability"));
    let probability: f64 = lines[1].rsplit(',').next().unwrap().parse().unwrap();
    assert!(lines[1].starts_with("t10k-images-idx3-ubyte.gz#0,") && (0.1..=1.0).contains(&probability), "{}", lines[1]);
}

/// The floats of a file that `embed` wrote.
fn embedded(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    bytes[header..].as_chunks().0.iter().map(|float| f32::from_le_bytes(*float)).collect()
}

/// Not the same, as the precision is another, and yet close.
fn assert_near(what: &str, a: &[f32], b: &[f32], limit: f32) {
    assert!(a.len() == b.len() && a != b, "{what}: the precision changes nothing");
    let size = |v: &mut dyn Iterator<Item = f32>| v.map(|v| v * v).sum::<f32>().sqrt();
    let off = size(&mut a.iter().zip(b).map(|(a, b)| a - b)) / size(&mut b.iter().copied());
    assert!(off < limit, "{what} is off by {off}");
}

#[test]
fn a_precision_reaches_every_command_that_computes_with_a_model() {
    let place = tempfile::tempdir().unwrap();
    let here = place.path();
    pretrained(here);
    let both = |arguments: &str| {
        ["f32", "bf16"].map(|p| good(here, &format!("{arguments} --precision {p}").replace("OUT", p)))
    };

    both(&format!("embed --weights pre --data {HELD_OUT} --out OUT.npy"));
    assert_near("embed", &embedded(&here.join("bf16.npy")), &embedded(&here.join("f32.npy")), 0.02);

    let loss = |said: &str| said.split_whitespace().nth(1).unwrap().parse::<f32>().unwrap();
    let [floats, mixed] = both("reconstruct --weights pre --out OUT.png");
    assert_near("reconstruct", &[loss(&mixed)], &[loss(&floats)], 0.02);

    let [_, mixed] = both("probe --weights pre --method knn --layers -1 --json");
    assert!(mixed.contains("trained"), "{mixed}");

    both(&format!("finetune --weights pre --out tuned-OUT --steps 4 {TINY}"));
    let recipe = std::fs::read_to_string(here.join("tuned-bf16/config.toml")).unwrap();
    assert!(recipe.contains("precision = \"bfloat16\""), "{recipe}");
    let tuned = |p: &str| std::fs::read(here.join(format!("tuned-{p}/last.safetensors"))).unwrap();
    assert_ne!(tuned("bf16"), tuned("f32"));

    both(&format!("predict --weights tuned-f32 --data {HELD_OUT} --out OUT.csv"));
    let probabilities = |p: &str| -> Vec<f32> {
        let table = std::fs::read_to_string(here.join(format!("{p}.csv"))).unwrap();
        table.lines().skip(1).map(|line| line.rsplit(',').next().unwrap().parse().unwrap()).collect()
    };
    assert_near("predict", &probabilities("bf16"), &probabilities("f32"), 0.02);

    let compare =
        "compare --weights pre --labels 0.01 --seeds 1 --steps 2 --methods finetune --out cmp --val-images 64";
    good(here, &format!("{compare} --precision bf16 --set train.batch_size=16"));
    let recipe = std::fs::read_to_string(here.join("cmp/scratch-0.01-0/config.toml")).unwrap();
    assert!(recipe.contains("precision = \"bfloat16\""), "{recipe}");

    for what in ["step", "embed"] {
        let bench = format!("bench {what} --model vit_tiny_patch16_224 --image-size 32 --batch 2 --steps 1 --json");
        for (json, precision) in both(&bench).iter().zip(["float32", "bfloat16"]) {
            let found: serde_json::Value = serde_json::from_str(json).unwrap();
            assert!(found["precision"] == precision && found["images_per_second"].as_f64().unwrap() > 0.0, "{json}");
        }
    }
    let refused = simmim(here, "selftest --quick --precision bf16");
    assert!(refused.status.code() == Some(2) && errors(&refused).contains("selftest has no precision"));
}

#[test]
fn a_resumed_fine_tuning_ends_with_the_weights_of_one_that_was_never_stopped() {
    let place = tempfile::tempdir().unwrap();
    let here = place.path();
    pretrained(here);
    let all = "--set augment.rand_layers=2 --set augment.erase=0.25 --set augment.mixup=0.8 --set augment.cutmix=1 \
               --set model.drop_path=0.2 --set train.accumulation=2 --ema 0.9 --set validate.every_steps=2 --set log.every_steps=3";
    good(here, &format!("finetune --weights pre --out whole --steps 9 {TINY} {all}"));
    // The checkpoint lies between two lines of the metrics.
    let every = "--set checkpoint.every_steps=5 --set checkpoint.keep=9";
    good(here, &format!("finetune --weights pre --out cut --steps 9 {TINY} {all} {every}"));
    std::fs::remove_dir_all(here.join("cut/checkpoints/step-00000009")).unwrap();
    std::fs::remove_file(here.join("cut/last.safetensors")).unwrap();
    good(here, "finetune --out cut --resume");
    let weights = |run: &str, name: &str| simmim_models::weights::read(&here.join(run).join(name)).unwrap();
    for name in ["last.safetensors", "best.safetensors"] {
        assert!(weights("whole", name) == weights("cut", name), "{name}");
    }
    let curve = |run: &str| {
        let text = std::fs::read_to_string(here.join(run).join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        lines.map(|l| ["step", "loss", "val_top1", "val_loss"].map(|key| l[key].clone())).collect::<Vec<_>>()
    };
    assert_eq!(curve("whole"), curve("cut"));
}

#[test]
fn a_frozen_encoder_stays_and_another_size_is_taken() {
    let place = tempfile::tempdir().unwrap();
    let here = place.path();
    pretrained(here);
    good(here, &format!("finetune --weights pre --out frozen --freeze --steps 4 --ema 0.5 {TINY}"));
    let read = |name: &str| simmim_models::weights::read(&here.join(name)).unwrap();
    let (encoder, frozen) = (read("pre/encoder.safetensors"), read("frozen/last.safetensors"));
    for (name, tensor) in frozen.iter().filter(|(n, _)| !(n.starts_with("head") || n.starts_with("fc_norm"))) {
        assert!(encoder[name] == *tensor, "{name}");
    }
    assert!(frozen["head.bias"].data.iter().any(|&v| v != 0.0));
    good(here, &format!("finetune --weights pre --out larger --image-size 32 --steps 2 {TINY}"));
    assert_eq!(read("larger/last.safetensors")["pos_embed"].shape, [1, 64, 32]);
    good(here, &format!("finetune --weights none --model pre --out scratch --steps 2 {TINY}"));
    assert_eq!(read("scratch/last.safetensors")["pos_embed"].shape, [1, 49, 32]);
}

#[test]
fn a_comparison_says_what_it_found_and_goes_on_after_an_interruption() {
    let place = tempfile::tempdir().unwrap();
    let here = place.path();
    pretrained(here);
    let command =
        format!("compare --weights pre --labels 0.01,0.02 --seeds 2 --steps 3 --out cmp --val-images 64 {TINY}");
    let command = command.replace(" --set validate.images=16", "");
    let first = good(here, &command);
    assert!(
        first.contains("with 1 % of the labels (60 images)") && first.contains("2 % of the labels (120"),
        "{first}"
    );
    for name in ["results.csv", "results.json", "comparison.svg", "scratch-0.01-1/config.toml"] {
        assert!(here.join("cmp").join(name).is_file(), "{name}");
    }
    let results = here.join("cmp/results.jsonl");
    let lines = std::fs::read_to_string(&results).unwrap();
    // Two shares, two seeds, two trainings and three probes.
    assert_eq!(lines.lines().count(), 20);
    for text in ["fine-tuned", "probed", "from scratch", "raw pixels", "random weights", "best with 2 % of the labels"]
    {
        assert!(first.contains(text), "{text}: {first}");
    }
    // As if it had been interrupted before the last training, in the middle of a line.
    let kept: String = lines.lines().take(19).map(|l| format!("{l}\n")).collect();
    std::fs::write(&results, kept + "{\"share\":0.0\n").unwrap();
    let again = good(here, &command);
    assert_eq!(std::fs::read_to_string(&results).unwrap().lines().count(), 21);
    let table = |text: &str| text.lines().take(3).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(table(&first), table(&again));
    let other = simmim(here, &command.replace("--steps 3", "--steps 4"));
    assert_eq!(other.status.code(), Some(2));
    assert!(errors(&other).contains("other settings"), "{}", errors(&other));
}

#[test]
fn learning_rates_are_selected_on_held_out_training_images() {
    let place = tempfile::tempdir().unwrap();
    let here = place.path();
    pretrained(here);
    let tiny = TINY.replace(" --set validate.images=16", "");
    let compare = |out: &str, more: &str| -> serde_json::Value {
        let command =
            format!("compare --weights pre --labels 0.02 --seeds 2 --steps 12 --out {out} --json {tiny} {more}");
        serde_json::from_str(&good(here, &command)).unwrap()
    };
    let rates = "--methods finetune --scratch-lr 1e-6,3e-3 --lr 1e-3,1e-6,1e-3";
    let found = compare("a", &format!("{rates} --val-images 30"));
    let trials = found["rate_trials"].as_array().unwrap();
    assert_eq!(trials.len(), 4, "{found}");
    assert!(trials.iter().all(|t| (t["images"].as_u64(), t["aside"].as_u64()) == (Some(100), Some(20))), "{found}");
    // What the validation images are changes nothing of the choice.
    assert_eq!(compare("b", &format!("{rates} --val-images 300"))["rate_trials"], found["rate_trials"]);
    for arm in ["pretrained", "scratch"] {
        let of_arm = |t: &&serde_json::Value| t["arm"] == arm;
        let key = |t: &serde_json::Value| (t["top1"].as_f64().unwrap(), -t["loss"].as_f64().unwrap());
        let best = trials.iter().filter(of_arm).max_by(|a, b| key(a).partial_cmp(&key(b)).unwrap()).unwrap();
        let taken: Vec<_> = found["results"].as_array().unwrap().iter().filter(of_arm).map(|r| &r["lr"]).collect();
        assert_eq!(taken, [&best["lr"]; 2], "{found}");
    }
    let text = good(
        here,
        &format!("compare --weights pre --labels 0.02 --seeds 2 --steps 12 --out a --val-images 30 {tiny} {rates}"),
    );
    assert!(text.contains("selected on 20 held-out training images at the first seed"), "{text}");
}

#[test]
fn a_single_image_of_each_class_is_probed_with_fixed_settings_and_chooses_no_learning_rate() {
    let place = tempfile::tempdir().unwrap();
    let here = place.path();
    pretrained(here);
    let command = "compare --weights pre --labels 0.0017,1 --seeds 2 --layers 1,2 --methods probe --val-images 100";
    let found: serde_json::Value = serde_json::from_str(&good(here, &format!("{command} --json --out c"))).unwrap();
    let results = found["results"].as_array().unwrap();
    // All images are the same ones at both seeds: one probe is enough.
    assert_eq!(results.len(), 2 * 3 + 3, "{found}");
    let single = results.iter().find(|r| r["images"] == 10 && r["arm"] == "pretrained").unwrap();
    assert_eq!((single["l2"].as_f64(), single["layer"].as_i64()), (Some(0.1), Some(2)), "{single}");
    // At all labels it is what `probe` finds with the same layers, and the features come from its cache.
    let table = simmim(here, "probe --weights pre --layers 1,2 --method linear --no-baselines --json");
    assert_eq!(errors(&table).matches("from the cache").count(), 2, "{}", errors(&table));
    let out = simmim(here, "compare --weights pre --labels 0.0017 --scratch-lr 1e-3,1e-4 --out x");
    assert_eq!(out.status.code(), Some(2));
    assert!(errors(&out).contains("every class has one image, so none can be held out"), "{}", errors(&out));
    assert!(!here.join("x").exists());
}

#[test]
fn the_encoder_of_a_classifier_is_used_again() {
    let place = tempfile::tempdir().unwrap();
    let here = place.path();
    pretrained(here);
    good(here, &format!("finetune --weights pre --out ft --steps 2 {TINY}"));
    for arguments in [
        format!("embed --weights ft --data {HELD_OUT} --out f.npy"),
        format!("neighbors --weights ft/best.safetensors --data {HELD_OUT} --query #0 --out n.png"),
        format!("probe --weights ft --data {HELD_OUT} --val {HELD_OUT} --layers 2 --method linear --no-baselines"),
    ] {
        let out = simmim(here, &arguments);
        assert!(out.status.success(), "{arguments}: {}", errors(&out));
        assert!(errors(&out).contains("holds a classifier: its encoder is taken"), "{arguments}: {}", errors(&out));
    }
    let out = simmim(here, &format!("finetune --weights ft --out again --steps 2 {TINY}"));
    assert!(out.status.success(), "{}", errors(&out));
    assert!(errors(&out).contains("classifier of 10 classes: its head is left, a new one starts"), "{}", errors(&out));
}

#[test]
fn unreadable_validation_images_are_listed() {
    let place = tempfile::tempdir().unwrap();
    let here = place.path();
    pretrained(here);
    for (set, class) in [("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")] {
        std::fs::create_dir_all(here.join(set).join(class)).unwrap();
        for i in 0..4u8 {
            let pixels =
                image::GrayImage::from_fn(28, 28, |x, y| image::Luma([(x * y) as u8 ^ i ^ class.as_bytes()[0]]));
            pixels.save(here.join(format!("{set}/{class}/{i}.png"))).unwrap();
        }
    }
    std::fs::write(here.join("val/b/3.png"), b"\x89PNG\r\n\x1a\nbroken").unwrap();
    let every = "--set validate.every_steps=1";
    let out = simmim(here, &format!("finetune --weights pre --out ft --data train --val val --steps 3 {TINY} {every}"));
    assert!(out.status.success(), "{}", errors(&out));
    let said = errors(&out);
    assert_eq!(said.matches("validation image skipped").count(), 1, "{said}");
    assert!(said.contains("unreadable images skipped: 1; see ft/skipped.txt"), "{said}");
    let skipped = std::fs::read_to_string(here.join("ft/skipped.txt")).unwrap();
    assert!(skipped.starts_with("b/3.png\t") && skipped.lines().count() == 1, "{skipped}");
}

/// An IDX file of gray 8x8 images with the given labels.
fn idx(folder: &Path, name: &str, labels: &[u8]) {
    let count = (labels.len() as u32).to_be_bytes();
    let pixels = (0..labels.len() * 64).map(|i| (i * 31 % 256) as u8);
    let images = [&[0, 0, 8, 3][..], &count, &8u32.to_be_bytes(), &8u32.to_be_bytes()].concat();
    std::fs::write(
        folder.join(format!("{name}-images-idx3-ubyte")),
        images.into_iter().chain(pixels).collect::<Vec<_>>(),
    )
    .unwrap();
    let bytes = [&[0, 0, 8, 1][..], &count, labels].concat();
    std::fs::write(folder.join(format!("{name}-labels-idx1-ubyte")), bytes).unwrap();
}

#[test]
fn wrong_input_is_refused_before_anything_is_written() {
    let place = tempfile::tempdir().unwrap();
    let here = place.path();
    pretrained(here);
    idx(here, "good", &[0, 1, 2, 0, 1, 2]);
    idx(here, "fewer", &[0, 1, 0, 1]);
    idx(here, "one", &[1, 1, 1]);
    idx(here, "bare", &[0, 1]);
    std::fs::remove_file(here.join("bare-labels-idx1-ubyte")).unwrap();
    good(here, &format!("finetune --weights pre --out ft --steps 1 {TINY}"));
    let data = |train: &str, val: &str| format!("--data {train}-images-idx3-ubyte --val {val}-images-idx3-ubyte");
    for (arguments, message) in [
        (format!("finetune --weights pre --out x {}", data("fewer", "good")), "there are no classes `2` among the 2"),
        (format!("finetune --weights pre --out x {}", data("good", "fewer")), "there is no image of `2`"),
        (format!("finetune --weights pre --out x {}", data("one", "one")), "all images are of one class, `1`"),
        (format!("finetune --weights pre --out x {}", data("bare", "good")), "2 of 2 images have no class"),
        ("finetune --weights pre --out x --data good-images-idx3-ubyte".into(), "--val"),
        (format!("finetune --weights pre --out x {}", data("good", "nowhere")), "nowhere"),
        ("finetune --weights missing.safetensors --out x".into(), "missing"),
        ("finetune --weights none --out x".into(), "a run of which it takes the architecture (--model runs/photos)"),
        ("finetune --weights pre --out x --minutes 1e-9".into(), "do not suffice for one step"),
        ("finetune --weights pre --out x --minutes 1 --steps 3".into(), "cannot be used with"),
        ("finetune --weights pre --out x --recipe demo".into(), "recipe for pre-training"),
        ("pretrain --out x --recipe finetune_official_vit_base_patch16".into(), "recipe for fine-tuning"),
        ("finetune --weights pre --out x --set model.embed_dim=64".into(), "in the file"),
        ("finetune --weights pre --out x --recipe finetune_official_vit_base_patch16".into(), "do not fit the model"),
        ("finetune --weights pre --out x --set augment.mixupp=1".into(), "did you mean `augment.mixup`"),
        ("finetune --weights pre --out x --set finetune.layer_decay=0".into(), "finetune.layer_decay is 0"),
        ("finetune --weights pre --out x --image-size 30".into(), "do not divide images of 30x30"),
        ("finetune --out pre --resume".into(), "recipe for pre-training"),
        ("evaluate --weights pre".into(), "not a classifier"),
        ("evaluate --weights pre/encoder.safetensors".into(), "this file is an encoder without a classifier"),
        ("evaluate --weights pre/model.safetensors".into(), "is not a classifier written by simmim"),
        (
            "evaluate --weights ft --data good-images-idx3-ubyte".into(),
            "there are no classes `0`, `1`, `2` among the 10",
        ),
        ("predict --weights ft --data nowhere --out p.csv".into(), "nowhere"),
        (
            "predict --weights ft --data good-images-idx3-ubyte --out no/where/p.csv".into(),
            "the folder no/where does not exist",
        ),
        ("compare --weights pre --out x --labels 0.0001".into(), "leaves the class `t-shirt or top` without one"),
        ("compare --weights pre --out x --labels 1.5".into(), "is not a fraction"),
        ("compare --weights pre --out x --scratch-lr 1e-3,0".into(), "--scratch-lr 0 is not a learning rate"),
        ("compare --weights pre --out x --layers 7".into(), "there is no layer 7"),
    ] {
        let out = simmim(here, &arguments);
        assert_eq!(out.status.code(), Some(2), "{arguments}: {}", errors(&out));
        assert!(errors(&out).contains(message), "{arguments}: {}", errors(&out));
        assert!(!here.join("x").exists() && !here.join("p.csv").exists(), "{arguments} left something behind");
    }
}
