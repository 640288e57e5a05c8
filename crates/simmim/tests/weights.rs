//! Weights of every origin as their user meets them: recognised, used, handed on, refused.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test or benchmark may fail loudly")]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const HELD_OUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../simmim-data/demo/t10k-images-idx3-ubyte.gz");

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/weights").join(name)
}

fn simmim(folder: &Path, arguments: &str) -> Output {
    let program = env!("CARGO_BIN_EXE_simmim");
    Command::new(program).current_dir(folder).args(arguments.split_whitespace()).output().expect("the program starts")
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs the program, expects it to succeed, and returns both of its outputs.
fn good(folder: &Path, arguments: &str) -> (String, String) {
    let out = simmim(folder, arguments);
    assert!(out.status.success(), "{arguments}: {}", errors(&out));
    (String::from_utf8_lossy(&out.stdout).into_owned(), errors(&out))
}

fn inspect(weights: &Path, more: &str) -> Value {
    let out = good(Path::new("."), &format!("inspect --weights {} --json {more}", weights.display())).0;
    serde_json::from_str(&out).unwrap()
}

/// Names of the tensors with a fate.
fn with_fate<'a>(found: &'a Value, fate: &str) -> Vec<&'a str> {
    let keys = found["keys"].as_array().unwrap().iter().filter(|k| k["fate"] == fate);
    keys.map(|k| k["name"].as_str().filter(|n| !n.is_empty()).unwrap_or_else(|| k["file"][0].as_str().unwrap()))
        .collect()
}

#[test]
fn inspect_says_what_a_file_is_and_what_becomes_of_each_tensor() {
    let official = inspect(&fixture("official_pretrain/ckpt_epoch_99.pth"), "");
    assert_eq!(official["dialect"], "microsoft/SimMIM");
    assert_eq!((&official["taken"], &official["model"]["num_heads"]), (&Value::from("model"), &Value::from(2)));
    assert!(official["training"][0].as_str().unwrap().contains("simmim_pretrain"), "{official}");
    assert!(with_fate(&official, "taken").contains(&"encoder.mask_token"));
    assert_eq!(with_fate(&official, "left over"), ["encoder.rel_pos_bias.relative_position_index"; 0]);

    let mae = inspect(&fixture("hf_vit_mae"), "");
    assert_eq!(mae["model"]["image_size"], serde_json::json!([16, 16]));
    assert!(with_fate(&mae, "renamed").contains(&"encoder.blocks.1.attn.qkv.weight"));
    assert!(with_fate(&mae, "left over").contains(&"decoder.mask_token"));

    let other = inspect(&fixture("timm_vit"), "--recipe demo --set model.channels=1");
    assert_eq!(with_fate(&other, "drawn afresh"), ["encoder.mask_token", "decoder.0.weight", "decoder.0.bias"]);
    assert!(with_fate(&other, "carried over").contains(&"encoder.pos_embed"));
    let text =
        good(Path::new("."), &format!("inspect --weights {}", fixture("timm_checkpoint/model_best.pth.tar").display()))
            .0;
    assert!(text.contains("`state_dict_ema` (averaged weights) is taken, `state_dict` not"), "{text}");
}

#[test]
fn a_pre_training_goes_on_from_foreign_weights_and_says_what_is_new() {
    let place = tempfile::tempdir().unwrap();
    let weights = fixture("hf_dinov2_registers");
    let set = "--set train.batch_size=8 --set validate.images=8 --set reconstruct.images=2 --set data.held_out=16";
    let (_, said) = good(place.path(), &format!("pretrain --weights {} --out run --steps 1 {set}", weights.display()));
    assert!(said.contains("in the names of Hugging Face DINOv2"), "{said}");
    assert!(said.contains("3 drawn afresh: encoder.mask_token, decoder.0.weight, decoder.0.bias"), "{said}");
    let config = std::fs::read_to_string(place.path().join("run/config.toml")).unwrap();
    assert!(config.contains("registers = 3") && config.contains("embed_dim = 16"), "{config}");
}

/// The features of the demonstration images that some weights give.
fn features(folder: &Path, weights: &str, more: &str) -> Vec<u8> {
    good(folder, &format!("embed --weights {weights} --data {HELD_OUT} --out f.npy --pool none {more}"));
    std::fs::read(folder.join("f.npy")).unwrap()
}

fn close(a: &[u8], b: &[u8]) {
    assert_eq!(a.len(), b.len());
    let floats =
        |bytes: &[u8]| -> Vec<f32> { bytes[128..].as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect() };
    let (a, b) = (floats(a), floats(b));
    let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let error = norm(&mut a.iter().zip(&b).map(|(x, y)| x - y)) / norm(&mut b.iter().copied());
    assert!(error < 1e-5, "{error:e}");
}

#[test]
fn every_export_is_read_back_and_gives_the_same_features() {
    let place = tempfile::tempdir().unwrap();
    let here = place.path();
    let set = "--set train.batch_size=8 --set validate.images=8 --set reconstruct.images=2 --set data.held_out=16 \
               --set model.depth=2 --set model.embed_dim=16 --set model.num_heads=2 --set model.class_token=true";
    for (name, more) in [
        ("plain", ""),
        ("registers", "--set model.registers=2 --set model.layer_scale=0.1"),
        ("relative", "--set model.position=shared_relative --set model.qkv_bias=no_key --set model.layer_scale=0.1"),
    ] {
        good(here, &format!("pretrain --out {name} --steps 1 {set} {more}"));
        let truth = features(here, name, "");
        for format in ["timm", "hf"] {
            good(here, &format!("export --weights {name} --format {format} --out {name}-{format}"));
            close(&features(here, &format!("{name}-{format}"), ""), &truth);
        }
        good(here, &format!("export --weights {name} --format official --out {name}.safetensors"));
        close(&features(here, &format!("{name}.safetensors"), &format!("--recipe {name}/config.toml")), &truth);
        let (said, _) = good(here, &format!("export --weights {name} --format onnx --out {name}.onnx"));
        assert!(said.contains("onnxruntime.InferenceSession"), "{said}");
        assert!(std::fs::read(here.join(format!("{name}.onnx"))).unwrap().starts_with(&[8, 8, 18, 6]));
    }
    let refused = simmim(here, "export --weights plain --format timm --out plain-timm");
    assert_eq!(refused.status.code(), Some(2));
    assert!(errors(&refused).contains("is there already"), "{}", errors(&refused));
}

#[test]
fn every_export_of_a_swin_transformer_is_read_back_and_names_the_model() {
    let place = tempfile::tempdir().unwrap();
    let here = place.path();
    let set = "--set train.batch_size=8 --set validate.images=8 --set reconstruct.images=2 --set data.held_out=16 \
               --set model.depths=[1,2] --set model.embed_dim=8 --set model.num_heads=2 --set model.channels=1 \
               --set model.image_size=[28,28] --set simmim.mask_patch=4 --set schedule.warmup_epochs=0";
    for (name, version, class) in [
        ("v1", "swin_tiny_patch4_window7_32", "SwinForMaskedImageModeling"),
        ("v2", "swinv2_tiny_window7_32", "Swinv2ForMaskedImageModeling"),
    ] {
        let set = format!("{set} --set model.patch_size=2 --set model.window_size=7");
        let recipe = format!("--recipe swin_small_images_32 --set model.name={version}");
        good(here, &format!("pretrain {recipe} --out {name} --steps 1 {set}"));
        let truth = features(here, name, "");
        for format in ["timm", "hf"] {
            let (said, _) = good(here, &format!("export --weights {name} --format {format} --out {name}-{format}"));
            assert!(format == "timm" || said.contains(class), "{said}");
            close(&features(here, &format!("{name}-{format}"), ""), &truth);
        }
        good(here, &format!("export --weights {name} --format official --out {name}.safetensors"));
        close(&features(here, &format!("{name}.safetensors"), &format!("--recipe {name}/config.toml")), &truth);
        good(here, &format!("export --weights {name} --format onnx --with-preprocessing --out {name}.onnx"));
        let more = "--set train.batch_size=8 --set validate.images=8 --set reconstruct.images=2 --set data.held_out=16";
        let (_, said) = good(here, &format!("pretrain --weights {name}-hf --out {name}-on --steps 1 {more}"));
        assert!(said.contains("in the names of Hugging Face Swin"), "{said}");
    }
    let smaller = "pretrain --recipe swin_small_images_32 --out odd --steps 1 --set model.window_size=5";
    good(here, &format!("{smaller} {set} --set model.patch_size=2"));
    let refused = simmim(here, "export --weights odd --format hf --out odd-hf");
    assert_eq!(refused.status.code(), Some(2));
    assert!(errors(&refused).contains("windows of 5x5 do not divide a map of 14x14"), "{}", errors(&refused));
}

#[test]
fn classifiers_of_others_predict_with_their_class_names() {
    let place = tempfile::tempdir().unwrap();
    for (case, known) in [
        ("hf_vit_classifier", true),
        ("hf_swin_classifier", true),
        ("hf_swinv2_classifier", true),
        ("timm_swin_classifier", false),
    ] {
        let weights = fixture(case);
        let arguments = format!("predict --weights {} --data {HELD_OUT} --out {case}.csv", weights.display());
        let (_, said) = good(place.path(), &arguments);
        assert!(said.contains("3 classes") && said.contains("numbered") != known, "{said}");
        let table = std::fs::read_to_string(place.path().join(format!("{case}.csv"))).unwrap();
        let class = table.lines().nth(1).unwrap().rsplit(',').nth(1).unwrap().to_owned();
        let names = if known { ["cat", "dog", "owl"] } else { ["0", "1", "2"] };
        assert!(names.contains(&&*class), "{class}");
    }
    let out = simmim(place.path(), &format!("evaluate --weights {}", fixture("hf_swin").display()));
    assert_eq!(out.status.code(), Some(2));
    assert!(errors(&out).contains("it holds no linear classifier"), "{}", errors(&out));
}

#[test]
fn bad_files_are_refused_in_words_and_nothing_in_them_runs() {
    let place = tempfile::tempdir().unwrap();
    let here = place.path();
    let copy = |case: &str, name: &str| {
        std::fs::create_dir_all(here.join(case)).unwrap();
        for file in std::fs::read_dir(fixture(case)).unwrap().map(|f| f.unwrap().path()) {
            std::fs::copy(&file, here.join(case).join(file.file_name().unwrap())).unwrap();
        }
        here.join(case).join(name)
    };
    copy("command", "command.pth");
    std::fs::remove_file(copy("hf_vit_mim", "model-00002-of-00003.safetensors")).unwrap();
    let config = copy("hf_vit", "config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"hidden_size\": 16", "\"hidden_size\": 24")).unwrap();
    let whole = std::fs::read(fixture("zip_ddp/w.pth")).unwrap();
    std::fs::write(here.join("cut.pth"), &whole[..whole.len() / 2]).unwrap();
    // An entry of the directory that claims to be compressed, so that little could become much.
    let mut bomb = whole.clone();
    let header = bomb.windows(4).position(|four| four == b"PK\x01\x02").unwrap();
    bomb[header + 10] = 8;
    std::fs::write(here.join("bomb.pth"), bomb).unwrap();
    // Axes of 16 in the pickle become axes of 240, with the storages as they were.
    let wide: Vec<usize> = whole.windows(2).enumerate().filter(|(_, two)| two == b"K\x10").map(|(at, _)| at).collect();
    let mut short = whole.clone();
    wide.iter().for_each(|at| short[at + 1] = 240);
    std::fs::write(here.join("short.pth"), short).unwrap();
    let mut overlapping = b"..........{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}"[2..].to_vec();
    let length = overlapping.len() as u64 - 8;
    overlapping[..8].copy_from_slice(&length.to_le_bytes());
    overlapping.extend([0; 12]);
    std::fs::write(here.join("overlapping.safetensors"), overlapping).unwrap();
    std::fs::write(here.join("pointer.safetensors"), "version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        .unwrap();
    std::fs::write(here.join("page.pth"), "<!DOCTYPE html><html></html>").unwrap();
    for (weights, message) in [
        ("command/command.pth", "it holds no tensors under model"),
        ("hf_vit_mim", "model-00002-of-00003.safetensors"),
        ("hf_vit", "config.json contradicts the tensors: it says width 24, the tensors 16"),
        ("cut.pth", "not a whole PyTorch checkpoint"),
        ("bomb.pth", "is compressed, which torch.save never does"),
        ("short.pth", "does not fit its storage of"),
        ("overlapping.safetensors", "not a whole safetensors"),
        ("pointer.safetensors", "a pointer of Git LFS"),
        ("page.pth", "is a web page"),
    ] {
        let out = simmim(here, &format!("embed --weights {weights} --data {HELD_OUT} --out f.npy"));
        assert_eq!(out.status.code(), Some(2), "{weights}: {}", errors(&out));
        assert!(errors(&out).contains(message) && errors(&out).contains("help: "), "{weights}: {}", errors(&out));
    }
    assert!(!here.join("simmim-was-here").exists() && !here.join("f.npy").exists());
}
