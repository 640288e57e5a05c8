//! Swin transformers of both versions through every command.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test or benchmark may fail loudly")]

use std::path::Path;
use std::process::{Command, Output};

fn simmim(folder: &Path, arguments: &str) -> Output {
    let program = env!("CARGO_BIN_EXE_simmim");
    Command::new(program).current_dir(folder).args(arguments.split_whitespace()).output().expect("the program starts")
}

/// Runs the program and expects it to succeed; both its texts.
fn good(folder: &Path, arguments: &str) -> String {
    let out = simmim(folder, arguments);
    let texts = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{arguments}: {texts}");
    texts
}

const IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../simmim-data/demo/t10k-images-idx3-ubyte.gz");
const TINY: &str = "--set train.batch_size=16 --set log.every_steps=1 --set validate.images=16";
const V1: &str = "--set model.name=swin_tiny_patch4_window4_32 --set model.depths=[1,2] --set model.num_heads=2";
const V2: &str = "--set model.name=swinv2_tiny_window4_32 --set model.depths=[1,2] --set model.num_heads=2";
const WIDTH: &str =
    "--set model.embed_dim=16 --set model.patch_size=2 --set model.channels=1 --set simmim.mask_patch=8";

/// What a run of pre-training is given.
fn pretrain(version: &str, out: &str, steps: usize) -> String {
    let schedule = format!("--set schedule.warmup_epochs=0 --set checkpoint.every_steps=2 --steps {steps}");
    format!("pretrain --recipe swin_small_images_32 --out {out} {version} {WIDTH} {TINY} {schedule}")
}

#[test]
fn both_versions_serve_every_command() {
    for version in [V1, V2] {
        let place = tempfile::tempdir().unwrap();
        let here = place.path();
        let told = good(here, &format!("{} --set model.drop_path=0.1", pretrain(version, "run", 4)));
        let class = if version == V1 { "swin_transformer.SwinTransformer(" } else { "SwinTransformerV2(" };
        assert!(told.contains(class) && told.contains("depths=(1, 2)"), "{told}");
        let encoder = simmim_models::weights::read(&here.join("run/encoder.safetensors")).unwrap();
        assert!(encoder.contains_key("layers.1.downsample.reduction.weight"), "{:?}", encoder.keys());

        good(here, "reconstruct --weights run --out picture.png");
        for layer in ["1", "3"] {
            good(here, &format!("embed --weights run --data {IMAGES} --layer {layer} --out f{layer}.npy"));
        }
        good(here, &format!("embed --weights run --data {IMAGES} --layer 1 --pool none --out tokens.npy"));
        let size = |name: &str| std::fs::metadata(here.join(name)).unwrap().len();
        assert!(size("f3.npy") > size("f1.npy") && size("tokens.npy") > 100 * size("f1.npy"));
        let table = good(here, "probe --weights run --threads 2 --layers 1,3 --method knn");
        for text in ["\nblock 1 ", "\nblock 3 "] {
            assert!(table.contains(text), "{table}");
        }
        good(here, &format!("neighbors --weights run --data {IMAGES} --query #6 --out sheet.png"));

        let tune = format!("finetune --weights run --steps 3 {TINY} --set schedule.warmup_epochs=0");
        good(here, &format!("{tune} --out same"));
        good(here, &format!("{tune} --out larger --image-size 64 --set model.window_size=8"));
        let config = std::fs::read_to_string(here.join("larger/config.toml")).unwrap();
        assert!(version == V1 || config.contains("pretrained_windows = [4, 4]"), "{config}");
        let tuned = simmim_models::weights::read(&here.join("larger/last.safetensors")).unwrap();
        if version == V1 {
            assert_eq!(tuned["layers.0.blocks.0.attn.relative_position_bias_table"].shape, [225, 2]);
        }
        assert!(tuned.contains_key("head.fc.weight") && tuned.contains_key("norm.weight"), "{:?}", tuned.keys());
        good(here, "evaluate --weights larger");
        good(here, "evaluate --weights same/last.safetensors");
        good(here, &format!("predict --weights same --data {IMAGES} --out classes.csv"));
    }
}

#[test]
fn a_resumed_run_ends_with_the_weights_of_one_that_was_never_stopped() {
    let place = tempfile::tempdir().unwrap();
    let here = place.path();
    good(here, &pretrain(V2, "whole", 5));
    good(here, &format!("{} --set checkpoint.keep=9", pretrain(V2, "cut", 5)));
    std::fs::remove_dir_all(here.join("cut/checkpoints/step-00000005")).unwrap();
    std::fs::remove_file(here.join("cut/model.safetensors")).unwrap();
    good(here, "pretrain --resume --out cut");
    let read = |run: &str| simmim_models::weights::read(&here.join(run).join("model.safetensors")).unwrap();
    assert!(read("whole") == read("cut"));
}

#[test]
fn wrong_sizes_are_refused() {
    let place = tempfile::tempdir().unwrap();
    for (arguments, what, help) in [
        ("--set model.depth=2", "model.depth is no key of a Swin transformer", "model.depths"),
        ("--set model.num_heads=[2,4]", "2 numbers of heads for 3 stages", "one for each of model.depths"),
        ("--set model.image_size=36", "images of 36x36 cannot be halved 2 times", "multiple of 8x8"),
        ("--set model.window_size=1", "windows of 1x1 tokens relate nothing", "2 or more"),
        ("--set simmim.mask_patch=4", "a mask patch of 4x4", "multiple of 8x8"),
        ("--recipe demo --set model.window_size=7", "model.window_size is no key of a ViT", "leave the key out"),
    ] {
        let recipe = if arguments.contains("--recipe") { "" } else { "--recipe swin_small_images_32" };
        let out = simmim(place.path(), &format!("pretrain {recipe} --out run {arguments}"));
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(2), "{arguments}: {text}");
        assert!(text.contains(what) && text.contains(help), "{arguments}: {text}");
    }
}
