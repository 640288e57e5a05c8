//! Weight files of every origin, made by the libraries themselves (`fixtures/scripts/make_weights.py`): found out by their content, read, and
//! giving the features that those libraries compute.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test or benchmark may fail loudly")]

use serde_json::Value;
use simmim_engine::cpu::CpuExecutor;
use simmim_engine::{Executor, Graph, Program};
use simmim_models::classifier::{ClassifierBuild, classifier_graph};
use simmim_models::encoder::{EncoderOutputs, encoder_graph};
use simmim_models::names::{IMAGES, LOGITS, NORMED_TOKENS};
use simmim_models::weights::{
    Dialect, Format, Loaded, May, Stored, Target, Tensor, Weights, head_classes, match_classifier,
};
use simmim_models::{Encoder, Pool, SwinConfig, VitConfig};
use simmim_models::{ModelError, SimMimConfig};
use simmim_testing::relative_error;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/weights")
}

/// What was computed, and what is known about each case.
fn expected() -> (Weights, serde_json::Map<String, Value>) {
    let stored = Stored::open(&folder().join("expected.safetensors")).unwrap();
    let cases: Value = serde_json::from_str(&stored.metadata["cases"]).unwrap();
    let names: Vec<&str> =
        stored.tensors().iter().filter(|(_, e)| e.element.is_float()).map(|(n, _)| n.as_str()).collect();
    (stored.read_all(names.iter().copied()).unwrap(), cases.as_object().unwrap().clone())
}

/// The file of a case, or its folder where that says more.
fn place(case: &str) -> PathBuf {
    let path = folder().join(case);
    let files: Vec<PathBuf> = std::fs::read_dir(&path).unwrap().map(|f| f.unwrap().path()).collect();
    if files.len() == 1 { files[0].clone() } else { path }
}

/// All tokens after the norm.
fn tokens(encoder: &Encoder, weights: &[(String, Vec<f32>)], images: &Tensor) -> Vec<f32> {
    let graph = encoder_graph(encoder, images.shape[0], &EncoderOutputs::Norm).unwrap();
    computed(&graph, weights, &images.data, NORMED_TOKENS, images.shape[0] * row(encoder))
}

/// An output of so many values that a graph computes from images.
fn computed(graph: &Graph, weights: &[(String, Vec<f32>)], images: &[f32], output: &str, len: usize) -> Vec<f32> {
    let mut executor = CpuExecutor::new(1).unwrap();
    let id = executor.load(Program::compile(graph).unwrap()).unwrap();
    for value in graph.values() {
        if let Some((name, data)) = weights.iter().find(|(name, _)| *name == value.name) {
            executor.write_state(name, data).unwrap();
        }
    }
    executor.write(executor.input(id, IMAGES).unwrap(), images).unwrap();
    executor.run(id).unwrap();
    let mut found = vec![0.0; len];
    executor.read(executor.output(id, output).unwrap(), &mut found).unwrap();
    found
}

/// Values of an image's tokens.
fn row(encoder: &Encoder) -> usize {
    let layer = *encoder.layers().last().unwrap();
    layer.tokens() * layer.width
}

/// The encoder of a file, with what it does not tell from the case: heads of a ViT, sizes of images and windows of a Swin transformer.
fn encoder(loaded: &Loaded, case: &Value) -> Encoder {
    if let Some(encoder) = loaded.encoder() {
        return encoder;
    }
    let number = |key: &str| case[key].as_u64().map(|n| n as usize);
    let mut told = Loaded { weights: Weights::new(), ..loaded.clone() };
    told.card.num_heads = number("heads");
    told.card.image_size = told.card.image_size.or(number("size").map(|side| (side, side)));
    told.card.stages.window_size = number("window");
    told.encoder().unwrap()
}

fn fitted(loaded: Loaded, encoder: &Encoder) -> Vec<(String, Vec<f32>)> {
    let specs = SimMimConfig::official(encoder.clone(), encoder.geometry().stride, 0.5).parameters();
    let (path, grid) = (loaded.path.clone(), loaded.grid());
    let target = Target { path: &path, encoder, specs: &specs, may: May::LackTask, grid, resize_patch: false };
    target.fit(loaded.weights).unwrap().tensors
}

#[test]
fn features_are_those_of_the_library_that_made_the_file() {
    let (expected, cases) = expected();
    assert!(cases.len() >= 35, "{} cases", cases.len());
    for (name, case) in &cases {
        let loaded = Loaded::open(&place(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let encoder = encoder(&loaded, case);
        let weights = fitted(loaded, &encoder);
        let found = tokens(&encoder, &weights, &expected[&format!("{name}.images")]);
        let truth = &expected[&format!("{name}.tokens")];
        let skip =
            if case["patches_only"] == true { encoder.geometry().prefix() * encoder.geometry().width } else { 0 };
        let found: Vec<f32> = found.chunks_exact(row(&encoder)).flat_map(|image| image[skip..].to_vec()).collect();
        let error = relative_error(&found, &truth.data);
        assert!(error < 2e-5, "{name}: {error:e}");
    }
}

#[test]
fn classifiers_give_the_logits_of_the_library_that_made_them() {
    let expected = expected().0;
    for (case, pool) in [
        ("hf_vit_classifier", Pool::Cls),
        ("timm_swin_classifier", Pool::Mean),
        ("hf_swin_classifier", Pool::Mean),
        ("hf_swinv2_classifier", Pool::Mean),
    ] {
        let loaded = Loaded::open(&place(case)).unwrap();
        let config = loaded.classifier().unwrap();
        assert_eq!((config.pool, config.classes), (pool, 3), "{case}");
        let weights = match_classifier(&loaded.path, &config, loaded.classifier_weights()).unwrap();
        let (images, truth) = (&expected[&format!("{case}.images")], &expected[&format!("{case}.logits")]);
        let build = ClassifierBuild { batch: images.shape[0], accumulation: None, train: false, average: false };
        let (graph, _) = classifier_graph(&config, build).unwrap();
        let found = computed(&graph, &weights, &images.data, LOGITS, truth.data.len());
        let error = relative_error(&found, &truth.data);
        assert!(error < 2e-5, "{case}: {error:e}");
    }
    let none = Loaded::open(&place("hf_swin")).unwrap().classifier().unwrap_err();
    assert!(none.to_string().contains("no linear classifier"), "{none}");
}

#[test]
fn containers_and_dialects_are_told_by_content() {
    for (case, format, dialect) in [
        ("timm_vit", Format::Safetensors, Dialect::Timm),
        ("timm_checkpoint", Format::Torch, Dialect::Timm),
        ("legacy_ddp", Format::LegacyTorch, Dialect::Timm),
        ("dino_checkpoint", Format::Torch, Dialect::Timm),
        ("hf_vit", Format::Safetensors, Dialect::HfVit),
        ("hf_vit_mim", Format::Sharded, Dialect::HfVit),
        ("hf_vit_classifier", Format::Torch, Dialect::HfVit),
        ("hf_vit_mae", Format::Safetensors, Dialect::HfMae),
        ("hf_dinov2_registers", Format::Safetensors, Dialect::HfDinoV2),
        ("hf_beit", Format::Safetensors, Dialect::HfBeit),
        ("official_pretrain", Format::Torch, Dialect::Official),
        ("mae", Format::Torch, Dialect::Mae),
        ("dinov2", Format::Torch, Dialect::DinoV2),
        ("dinov2_teacher", Format::Torch, Dialect::DinoV2),
        ("timm_swin", Format::Safetensors, Dialect::TimmSwin),
        ("timm_swin_classifier", Format::Safetensors, Dialect::TimmSwin),
        ("timm_swinv2", Format::Safetensors, Dialect::TimmSwin),
        ("hf_swin", Format::Safetensors, Dialect::HfSwin),
        ("hf_swin_mim", Format::Sharded, Dialect::HfSwin),
        ("hf_swin_classifier", Format::Torch, Dialect::HfSwin),
        ("hf_swinv2", Format::Safetensors, Dialect::HfSwinV2),
        ("hf_swinv2_mim", Format::Safetensors, Dialect::HfSwinV2),
        ("official_swin", Format::Torch, Dialect::OfficialSwin),
        ("mm_vit", Format::Torch, Dialect::MmPretrain),
        ("mm_beit", Format::Torch, Dialect::MmPretrain),
        ("mm_swin", Format::Torch, Dialect::MmSwin),
        ("mm_swinv2", Format::Torch, Dialect::MmSwinV2),
    ] {
        let loaded = Loaded::open(&place(case)).unwrap();
        assert_eq!((loaded.format, loaded.translation.dialect), (format, dialect), "{case}");
    }
}

#[test]
fn what_checkpoints_say_besides_is_read() {
    let official = Loaded::open(&place("official_pretrain")).unwrap();
    assert_eq!(official.taken.as_deref(), Some("model"));
    assert_eq!((official.card.num_heads, official.card.mask_patch), (Some(2), Some(32)));
    assert!(official.card.training[0].contains("simmim_pretrain"), "{:?}", official.card.training);
    let timm = Loaded::open(&place("timm_checkpoint")).unwrap();
    assert_eq!((timm.taken.as_deref(), timm.average), (Some("state_dict_ema"), true));
    assert_eq!(
        (timm.passed_over, timm.card.name.as_deref()),
        (vec!["state_dict".to_owned()], Some("vit_tiny_patch16_224"))
    );
    let dino = Loaded::open(&place("dino_checkpoint")).unwrap();
    assert_eq!((dino.taken.as_deref(), dino.translation.prefix.as_str()), (Some("teacher"), "backbone."));
    let classifier = Loaded::open(&place("hf_vit_classifier")).unwrap();
    assert_eq!(
        (head_classes(&classifier.weights), &classifier.card.classes[..]),
        (Some(3), &["cat", "dog", "owl"].map(String::from)[..])
    );
    assert_eq!(classifier.card.mean, Some(vec![0.4, 0.5, 0.6]));
    let swin = Loaded::open(&place("official_swin")).unwrap();
    assert_eq!((swin.card.stages.window_size, swin.card.image_size), (Some(4), Some((64, 64))));
    let Some(Encoder::Swin(larger)) = Loaded::open(&place("hf_swinv2")).unwrap().encoder() else { panic!("no Swin") };
    assert_eq!((larger.window_size, larger.pretrained_windows), (8, vec![6, 6, 3]));
    let mm = Loaded::open(&place("mm_swin")).unwrap();
    assert_eq!((mm.taken.as_deref(), mm.translation.prefix.as_str()), (Some("state_dict"), "backbone."));
    let mae = Loaded::open(&place("mae")).unwrap();
    assert!(!mae.weights.contains_key("encoder.mask_token"), "the decoder's mask token is none of the encoder's");
}

#[test]
fn a_patch_projection_is_carried_over_as_timm_does() {
    let expected = expected().0;
    let kernel = &expected["projection.from"];
    let name = "encoder.patch_embed.proj.weight";
    let fit = |patch: usize, channels: usize, resize_patch: bool| {
        let mut encoder = VitConfig::preset("vit_tiny_patch4_28").unwrap();
        (encoder.patch_size, encoder.image_size, encoder.channels) = ((patch, patch), (2 * patch, 2 * patch), channels);
        (encoder.embed_dim, encoder.depth, encoder.num_heads) = (5, 1, 1);
        let specs = SimMimConfig::official(encoder.clone(), (patch, patch), 0.5).parameters();
        let weight = |s: &simmim_models::ParameterSpec| Tensor { shape: s.shape.clone(), data: s.initial(1) };
        let mut weights: Weights = specs.iter().map(|s| (s.name.clone(), weight(s))).collect();
        weights.insert(name.to_owned(), kernel.clone());
        let path = Path::new("w");
        let encoder = &encoder.into();
        let target = Target { path, encoder, specs: &specs, may: May::LackTask, grid: None, resize_patch };
        Ok::<_, ModelError>(target.fit(weights)?.tensors.into_iter().find(|(n, _)| n == name).unwrap().1)
    };
    for side in [4, 9] {
        let error = relative_error(&fit(side, 3, true).unwrap(), &expected[&format!("projection.patch.{side}")].data);
        assert!(error < 1e-5, "{side}: {error:e}");
        assert!(fit(side, 3, false).unwrap_err().to_string().contains("[5, 3, 6, 6] in the file"));
    }
    for channels in [1, 5] {
        let truth = &expected[&format!("projection.channels.{channels}")].data;
        assert!(relative_error(&fit(6, channels, false).unwrap(), truth) < 1e-6, "{channels}");
    }
}

#[test]
fn dialects_are_read_as_they_are_written_for_every_kind_of_model() {
    use simmim_models::weights::Translation;
    use simmim_models::{Position, QkvBias};
    let base = VitConfig { embed_dim: 12, depth: 2, num_heads: 2, ..VitConfig::preset("vit_tiny_patch8_16").unwrap() };
    let relative = VitConfig { qkv_bias: QkvBias::NoKey, layer_scale: Some(0.1), ..base.clone() };
    let models = [
        base.clone(),
        VitConfig { class_token: false, ..base.clone() },
        VitConfig { layer_scale: Some(0.1), registers: 3, ..base.clone() },
        VitConfig { position: Position::SharedRelative, ..relative.clone() },
        VitConfig { position: Position::Relative, ..relative },
    ];
    let swin = |name: &str| SwinConfig {
        embed_dim: 8,
        depths: vec![1, 2],
        num_heads: vec![1, 2],
        ..SwinConfig::preset(name).unwrap()
    };
    let mut models: Vec<Encoder> = models.into_iter().map(Encoder::Vit).collect();
    models.extend(["swin_tiny_patch4_window4_32", "swinv2_tiny_window4_32"].map(|name| Encoder::Swin(swin(name))));
    let mut whole = 0;
    for (at, encoder) in models.iter().enumerate() {
        let specs = SimMimConfig::official(encoder.clone(), encoder.geometry().stride, 0.5).parameters();
        let tensor = |s: &simmim_models::ParameterSpec| Tensor { shape: s.shape.clone(), data: s.initial(at as u64) };
        let weights: Weights = specs.iter().map(|s| (s.name.clone(), tensor(s))).collect();
        for dialect in Dialect::ALL {
            for prefixed in [false, true] {
                let (written, left) = dialect.write(&weights, prefixed);
                let unknown = |name: &String| !(name.starts_with("decoder.") || name.ends_with("mask_token"));
                if left.iter().any(unknown) {
                    continue;
                }
                let names: Vec<&str> = written.keys().map(String::as_str).collect();
                let found = Translation::find(&names).unwrap_or_else(|| panic!("{at} {dialect:?}"));
                for (name, tensor) in found.apply(written.clone()) {
                    assert_eq!(
                        Some(&tensor),
                        weights.get(&name),
                        "{at} {dialect:?} read as {:?}: {name}",
                        found.dialect
                    );
                    whole += 1;
                }
                assert_eq!(found.left, [""; 0], "{at} {dialect:?} read as {:?}", found.dialect);
            }
        }
    }
    assert!(whole > 1000, "{whole}");
}

/// Every file of the fixtures, as bytes.
fn files() -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for case in std::fs::read_dir(folder()).unwrap().map(|f| f.unwrap().path()).filter(|p| p.is_dir()) {
        for path in std::fs::read_dir(case).unwrap().map(|f| f.unwrap().path()) {
            files.push((path.clone(), std::fs::read(path).unwrap()));
        }
    }
    files.sort();
    files
}

/// Changes some bytes, cuts, or repeats a piece.
fn mutate(bytes: &[u8], next: &mut impl FnMut(usize) -> usize) -> Vec<u8> {
    let mut out = bytes.to_vec();
    // Most of a file is numbers, of which any are as good: damage goes to its ends, where the description is.
    let place = |len: usize, next: &mut dyn FnMut(usize) -> usize| match next(3) {
        0 => next(len),
        1 => next(len.min(2000)),
        _ => len - 1 - next(len.min(2000)),
    };
    for _ in 0..=next(4) {
        match next(6) {
            0 => out.truncate(1 + place(out.len(), next)),
            1 => {
                let (from, to) = (place(out.len(), next), place(out.len(), next));
                let piece = out[from..(from + 16).min(out.len())].to_vec();
                let end = (to + piece.len()).min(out.len());
                out[to..end].copy_from_slice(&piece[..end - to]);
            }
            2 => {
                let at = place(out.len(), next);
                out[at..].iter_mut().take(8).for_each(|b| *b = 0xff);
            }
            _ => {
                let at = place(out.len(), next);
                out[at] = next(256) as u8;
            }
        }
    }
    out
}

#[test]
fn ten_thousand_mutations_of_each_reader_end_in_weights_or_words() {
    let scratch = tempfile::tempdir().unwrap();
    let all = files();
    let path = |end: &str| all.iter().find(|(p, _)| p.ends_with(end)).unwrap();
    // Containers take 10,000 each; where only names and description are others, fewer do.
    for (case, name, mutations) in [
        ("zip_ddp/w.pth", "w.pth", 10_000),
        ("legacy_ddp/w.pth", "w.pth", 10_000),
        ("hf_vit/model.safetensors", "model.safetensors", 10_000),
        ("hf_vit_mim/model.safetensors.index.json", "model.safetensors.index.json", 10_000),
        ("timm_swin/model.safetensors", "model.safetensors", 2_000),
        ("hf_swinv2/model.safetensors", "model.safetensors", 2_000),
        ("mm_swin/epoch_3.pth", "w.pth", 2_000),
    ] {
        let (_, bytes) = path(case);
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below.max(1)
        };
        let file = scratch.path().join(name);
        // What describes the model beside the weights is mutated too.
        let config = folder().join(case).with_file_name("config.json");
        let config = std::fs::read(config).ok();
        let config_file = scratch.path().join("config.json");
        let _ = std::fs::remove_file(&config_file);
        let (mut read, mut refused) = (0, 0);
        for _ in 0..mutations {
            let (of_config, of_weights) = (next(2) == 0, config.is_none() || next(4) > 0);
            std::fs::write(&file, if of_weights { mutate(bytes, &mut next) } else { bytes.clone() }).unwrap();
            if let Some(config) = &config {
                let text = if of_config { mutate(config, &mut next) } else { config.clone() };
                std::fs::write(&config_file, text).unwrap();
            }
            match Loaded::open(&file) {
                Ok(_) => read += 1,
                Err(ModelError::Format { help, .. }) => {
                    assert!(!help.is_empty());
                    refused += 1;
                }
                Err(e) => panic!("{case}: {e}"),
            }
        }
        assert!(refused > mutations / 10, "{case}: {read} read, {refused} refused");
    }
}
