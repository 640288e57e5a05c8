//! Recipes: TOML files with the settings of a run; some are built into the program.
//!
//! A recipe is resolved in layers, later ones winning: the defaults, the preset of its model, the recipe it extends, its own
//! values, and single values from the command line. An unknown key is an error that names the nearest known one.

mod choose;
mod convert;
mod family;
mod keys;
mod schema;
mod table;
mod validate;

pub use choose::Choice;
pub use keys::{KEYS, meaning};
pub use schema::{
    AreaKind, Augment, CacheKind, Checkpoint, Data, Every, FineTune, Guard, HeadKind, Heads, InterpolationKind, Log,
    LossName, MaskKind, ModeKind, Model, Optimizer, PoolKind, PositionInitKind, PositionKind, Probe, QkvBiasKind,
    Reaction, Recipe, Schedule, ScheduleKind, SimMim, Statistic, TargetKind, Train, WeightInitKind,
};

use crate::error::TrainError;
use simmim_models::Encoder;
use std::path::Path;
use table::{assign, in_words, insert, keep_former_ways, lookup, merge, place, read};
use toml::{Table, Value};

/// Name and text of each built-in recipe.
pub const EMBEDDED: &[(&str, &str)] = &[
    ("demo", include_str!("../../recipes/demo.toml")),
    ("small_images_32", include_str!("../../recipes/small_images_32.toml")),
    ("small_images_64", include_str!("../../recipes/small_images_64.toml")),
    ("small_images_96", include_str!("../../recipes/small_images_96.toml")),
    ("swin_small_images_32", include_str!("../../recipes/swin_small_images_32.toml")),
    ("swin_small_images_64", include_str!("../../recipes/swin_small_images_64.toml")),
    ("tutorial_vit_small_patch32", include_str!("../../recipes/tutorial_vit_small_patch32.toml")),
    ("bare", include_str!("../../recipes/bare.toml")),
    ("official_vit_base_patch16", include_str!("../../recipes/official_vit_base_patch16.toml")),
    ("official_swin_base_100ep", include_str!("../../recipes/official_swin_base_100ep.toml")),
    ("official_swin_base_800ep", include_str!("../../recipes/official_swin_base_800ep.toml")),
    ("official_swin_large_800ep", include_str!("../../recipes/official_swin_large_800ep.toml")),
    ("official_swinv2_base_800ep", include_str!("../../recipes/official_swinv2_base_800ep.toml")),
    ("finetune_small_images", include_str!("../../recipes/finetune_small_images.toml")),
    ("finetune_official_vit_base_patch16", include_str!("../../recipes/finetune_official_vit_base_patch16.toml")),
    ("finetune_official_swin_base_192", include_str!("../../recipes/finetune_official_swin_base_192.toml")),
    ("finetune_official_swin_base_224", include_str!("../../recipes/finetune_official_swin_base_224.toml")),
    ("finetune_official_swin_base_800ep_224", include_str!("../../recipes/finetune_official_swin_base_800ep_224.toml")),
    ("finetune_official_swin_large_224", include_str!("../../recipes/finetune_official_swin_large_224.toml")),
    ("finetune_official_swinv2_base_224", include_str!("../../recipes/finetune_official_swinv2_base_224.toml")),
];

/// Values that a recipe may leave out. Those of the model come from its preset.
const DEFAULTS: &str = include_str!("../../recipes/defaults.toml");

/// Values that a fine-tuning recipe may leave out.
const FINETUNE_DEFAULTS: &str = include_str!("../../recipes/finetune_defaults.toml");

fn wrong(origin: &str, what: impl Into<String>, help: impl Into<String>) -> TrainError {
    TrainError::Recipe { origin: origin.to_owned(), what: what.into(), help: help.into() }
}

/// Whether a recipe, by name or file and with single values `KEY=VALUE` on top, says which model it is for.
///
/// # Errors
/// As [`Recipe::resolve`], for what cannot be read.
pub fn names_model(name_or_file: &str, set: &[String]) -> Result<bool, TrainError> {
    let mut table = read(name_or_file, 0)?;
    assign(&mut table, set)?;
    Ok(lookup(&table, "model.name").is_some())
}

impl Recipe {
    /// Resolves a recipe by name or file, and single values `KEY=VALUE` on top.
    ///
    /// # Errors
    /// [`TrainError::Recipe`] naming the recipe, file or flag, the key, and what would fit.
    pub fn resolve(name_or_file: &str, set: &[String]) -> Result<Self, TrainError> {
        Self::resolve_for(name_or_file, set, None)
    }

    /// As [`Recipe::resolve`], for a model that exists: where the recipe names no other model, architecture, mean, deviation and
    /// background are those of the run the model comes from. Drop path is no part of the architecture, and a recipe may change single values (the
    /// image size, say).
    ///
    /// # Errors
    /// As [`Recipe::resolve`].
    pub fn resolve_for(name_or_file: &str, set: &[String], model: Option<&Recipe>) -> Result<Self, TrainError> {
        let mut table = read(name_or_file, 0)?;
        keep_former_ways(&mut table);
        if let Some(model) = model {
            let own = lookup(&table, "model.name").and_then(Value::as_str);
            if own.is_none_or(|name| name == model.model.name) {
                let mut below = model.architecture();
                merge(&mut below, table);
                table = below;
            }
        }
        assign(&mut table, set)?;
        let mut recipe = Self::from_table(table, name_or_file, set)?;
        if let Some(model) = model {
            recipe.keep_windows_of(model);
        }
        Ok(recipe)
    }

    /// This recipe with single values `KEY=VALUE` on top.
    ///
    /// # Errors
    /// As [`Recipe::resolve`].
    pub fn with(&self, set: &[String]) -> Result<Self, TrainError> {
        let mut table = Table::try_from(self).unwrap_or_default();
        assign(&mut table, set)?;
        Self::from_table(table, &self.model.name, set)
    }

    /// This recipe for the model of another one, but with its own drop path, and single values `KEY=VALUE` on top.
    ///
    /// # Errors
    /// As [`Recipe::resolve`].
    pub fn with_model_of(&self, other: &Self, set: &[String]) -> Result<Self, TrainError> {
        let mut table = Table::try_from(self).unwrap_or_default();
        let mut model = other.architecture().remove("model").unwrap_or_else(|| Value::Table(Table::new()));
        if let Value::Table(model) = &mut model {
            model.insert("drop_path".into(), Value::Float(self.model.drop_path));
        }
        table.insert("model".into(), model);
        assign(&mut table, set)?;
        let mut recipe = Self::from_table(table, &other.model.name, set)?;
        recipe.keep_windows_of(other);
        Ok(recipe)
    }

    /// Reads the complete recipe of a run.
    ///
    /// # Errors
    /// As [`Recipe::resolve`].
    pub fn from_run(config: &Path) -> Result<Self, TrainError> {
        Self::resolve(&config.display().to_string(), &[])
    }

    /// What belongs to the model itself: its sizes, and the statistics and background it was trained with.
    fn architecture(&self) -> Table {
        let mut table = Table::try_from(self).unwrap_or_default();
        table.retain(|section, _| section == "model" || section == "data");
        if let Some(Value::Table(model)) = table.get_mut("model") {
            model.remove("drop_path");
        }
        if let Some(Value::Table(data)) = table.get_mut("data") {
            data.retain(|key, _| matches!(key, "mean" | "std" | "background"));
        }
        table
    }

    fn from_table(given: Table, origin: &str, set: &[String]) -> Result<Self, TrainError> {
        let defaults = |text: &str| -> Result<Table, TrainError> {
            toml::from_str(text).map_err(|e| TrainError::Internal { what: format!("the recipes' defaults: {e}") })
        };
        let mut table = defaults(DEFAULTS)?;
        if given.contains_key("finetune") || given.contains_key("augment") {
            merge(&mut table, defaults(FINETUNE_DEFAULTS)?);
        }
        let name = lookup(&given, "model.name").and_then(Value::as_str).ok_or_else(|| {
            wrong(
                origin,
                "model.name is missing",
                "set it to a timm name, such as model.name = \"vit_small_patch16_224\"",
            )
        })?;
        let encoder = Encoder::preset(name)?;
        family::check_keys(&encoder, &given, origin, set)?;
        for (key, value) in family::preset(&encoder) {
            insert(&mut table, key, value);
        }
        merge(&mut table, given);
        for key in ["model.image_size", "model.patch_size", "simmim.mask_patch"] {
            if let Some(&Value::Integer(side)) = lookup(&table, key) {
                insert(&mut table, key, Value::Array(vec![Value::Integer(side); 2]));
            }
        }
        let known = lookup(&table, "simmim.mask_patch").is_some();
        if !known {
            insert(&mut table, "simmim.mask_patch", Value::Array(vec![Value::Integer(1); 2]));
        }
        let text = toml::to_string(&table).map_err(|e| TrainError::Internal { what: e.to_string() })?;
        let mut recipe: Self = toml::from_str(&text).map_err(|e| {
            let (key, line) = place(&text, e.span().map_or(0, |s| s.start));
            let flag = set.iter().rev().find(|a| a.split_once('=').is_some_and(|(k, _)| k.trim() == key));
            let origin = flag.map_or_else(|| origin.to_owned(), |a| format!("--set {a}"));
            let meaning = meaning(&key).map(|m| format!("{key}: {m}; ")).unwrap_or_default();
            wrong(
                &origin,
                format!("{} (in `{line}`)", in_words(e.message())),
                format!("{meaning}`simmim recipes show demo` lists every key with its meaning"),
            )
        })?;
        if !known {
            let (height, width) = recipe.encoder_config().geometry().stride;
            recipe.simmim.mask_patch = [height, width];
        }
        recipe.validate(origin)?;
        Ok(recipe)
    }

    /// The keys in which another recipe differs, each as `KEY = OLD -> NEW`.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let table = |r: &Self| Table::try_from(r).unwrap_or_default();
        let (old, new) = (table(self), table(other));
        let changed = |(key, _): &(&'static str, &str)| {
            let (old, new) = (lookup(&old, key)?, lookup(&new, key)?);
            (old != new).then(|| format!("{key} = {old} -> {new}"))
        };
        KEYS.iter().filter_map(changed).collect()
    }

    /// The recipe as TOML, a line a value, each with its meaning.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        for (section, values) in &Table::try_from(self).unwrap_or_default() {
            out.push_str(&format!("[{section}]\n"));
            for (key, value) in values.as_table().into_iter().flatten() {
                let value = match value {
                    // A JSON string is a basic string of TOML, and stays on its line whatever is in it.
                    Value::String(text) => serde_json::Value::from(text.as_str()).to_string(),
                    other => other.to_string(),
                };
                let line = format!("{key} = {value}");
                let text = meaning(&format!("{section}.{key}")).unwrap_or_default();
                out.push_str(&format!("{line:<44} # {text}\n"));
            }
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(values: &[&str]) -> Result<Recipe, TrainError> {
        Recipe::resolve("demo", &values.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn every_embedded_recipe_resolves_and_survives_a_round_trip() {
        for (name, _) in EMBEDDED {
            let model = Recipe::resolve("demo", &[]).unwrap();
            let recipe = Recipe::resolve_for(name, &[], Some(&model)).unwrap_or_else(|e| panic!("{name}: {e}"));
            match recipe.finetune {
                Some(_) => drop(recipe.classifier_config(10).unwrap()),
                None => drop(recipe.simmim_config().unwrap()),
            }
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("config.toml");
            std::fs::write(&path, recipe.to_toml()).unwrap();
            assert_eq!(Recipe::from_run(&path).unwrap(), recipe, "{name}");
        }
    }

    #[test]
    fn every_key_has_its_meaning_and_every_meaning_a_key() {
        let table = |recipe: Recipe| toml::from_str::<Table>(&toml::to_string(&recipe).unwrap()).unwrap();
        let swin = Recipe::resolve("official_swinv2_base_800ep", &[]).unwrap();
        let tables = [table(set(&["finetune.ema=0.5"]).unwrap()), table(swin)];
        let of = |t: &Table| -> Vec<String> {
            t.iter().flat_map(|(s, v)| v.as_table().unwrap().keys().map(move |k| format!("{s}.{k}"))).collect()
        };
        let mut keys: Vec<String> = tables.iter().flat_map(of).collect();
        let mut known: Vec<String> = KEYS.iter().map(|(k, _)| (*k).to_owned()).collect();
        keys.sort();
        keys.dedup();
        known.sort();
        assert_eq!(keys, known);
    }

    #[test]
    fn single_values_win_and_words_need_no_quotes() {
        let r =
            set(&["optimizer.lr=3e-3", "simmim.loss=l2", "simmim.mask_patch=4", "schedule.epochs=7", "train.seed=9"])
                .unwrap();
        assert_eq!((r.optimizer.lr, r.simmim.loss, r.train.seed), (3e-3, LossName::L2, 9));
        assert_eq!((r.schedule.epochs, r.schedule.steps, r.simmim.mask_patch), (7, 0, [4, 4]));
    }

    #[test]
    fn a_recipe_for_fine_tuning_takes_the_model_of_the_weights_and_keeps_what_it_says_itself() {
        let model = set(&["model.embed_dim=64", "model.drop_path=0.3", "data.mean=[0.25]", "data.std=[0.5]"]).unwrap();
        let r = Recipe::resolve_for("finetune_small_images", &["model.image_size=32".into()], Some(&model)).unwrap();
        assert_eq!((r.model.embed_dim, r.model.channels, r.model.image_size), (64, 1, [32, 32]));
        assert_eq!((r.model.drop_path, r.data.mean.clone()), (0.1, Statistic::Given(vec![0.25])));
        assert!(r.for_pretraining().is_err() && model.finetuning().is_err());
        let other = Recipe::resolve_for("finetune_official_vit_base_patch16", &[], Some(&model)).unwrap();
        assert_eq!((other.model.embed_dim, other.model.channels), (768, 3));
        let f = other.classifier_config(1000).unwrap();
        assert_eq!((f.layer_decay, f.encoder.branches().last().unwrap().rate), (0.65, 0.1));
        let error = Recipe::resolve("finetune_small_images", &[]).unwrap_err();
        assert!(error.to_string().contains("model.name is missing"), "{error}");
    }

    #[test]
    fn a_swin_recipe_gives_stages_and_knows_its_keys() {
        let swin = |set: &[&str]| {
            Recipe::resolve("official_swin_base_100ep", &set.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
        };
        let r = swin(&["model.num_heads=2", "model.depths=[1, 2, 3, 1]"]).unwrap();
        let Encoder::Swin(c) = r.encoder_config() else { panic!("no Swin") };
        assert_eq!((c.num_heads, c.depths, c.window_size), (vec![2, 4, 8, 16], vec![1, 2, 3, 1], 6));
        assert_eq!(swin(&[]).unwrap().simmim.mask_patch, [32, 32]);
        for (value, what, help) in [
            ("model.depth=3", "model.depth is no key of a Swin transformer", "model.depths"),
            ("model.class_token=true", "model.class_token is no key of a Swin transformer", "leave the key out"),
            ("model.depths=[2, 2]", "4 numbers of heads for 2 stages", "model.num_heads"),
            ("model.image_size=200", "images of 200x200 cannot be halved 3 times", "192"),
            ("simmim.mask_patch=16", "a mask patch of 16x16 is not a multiple", "32x32"),
            ("model.window_size=1", "windows of 1x1", "model.window_size"),
            ("simmim.target_window=46", "a target window of 46", "odd"),
        ] {
            let target = "simmim.target=window_normalized";
            let error = swin(&[target, value]).and_then(|r| Ok(r.simmim_config()?)).unwrap_err();
            let (text, hint) = (error.to_string(), error.help().unwrap());
            assert!(text.contains(what) && hint.contains(help), "{value}: {text} / {hint}");
        }
        let error = set(&["model.window_size=7"]).unwrap_err().to_string();
        assert!(error.contains("--set model.window_size=7: model.window_size is no key of a ViT"), "{error}");
    }

    #[test]
    fn windows_of_another_size_keep_the_coordinates_of_the_weights() {
        let run = Recipe::resolve("official_swinv2_base_800ep", &[]).unwrap();
        let with = |values: &[&str]| {
            let values: Vec<String> = values.iter().map(|v| (*v).to_owned()).collect();
            Recipe::resolve_for("finetune_small_images", &values, Some(&run)).unwrap().model.pretrained_windows
        };
        assert_eq!(with(&[]), Some(vec![0; 4]));
        assert_eq!(with(&["model.image_size=224", "model.window_size=14"]), Some(vec![12, 12, 12, 6]));
    }

    #[test]
    fn one_unit_of_a_length_replaces_the_other_but_both_at_once_are_refused() {
        let r = set(&["schedule.warmup_epochs=2"]).unwrap();
        assert_eq!((r.schedule.warmup_epochs, r.schedule.warmup_steps), (2.0, 0));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("both.toml");
        std::fs::write(&path, "extends = \"demo\"\n[schedule]\nsteps = 3\nepochs = 4\n").unwrap();
        let error = Recipe::resolve(path.to_str().unwrap(), &[]).unwrap_err();
        assert!(error.to_string().contains("in both epochs and steps"), "{error}");
        let r = set(&["schedule.steps=50", "schedule.warmup_epochs=3"]).unwrap();
        assert_eq!(r.learning_rate(94).warmup_steps, 10);
        let r = set(&["schedule.epochs=30", "schedule.warmup_epochs=3"]).unwrap();
        assert_eq!(r.learning_rate(94).warmup_steps, 282);
        let r = set(&["schedule.epochs=18446744073709551615"]);
        assert!(r.is_err());
        let r = set(&["schedule.epochs=9223372036854775807"]).unwrap();
        assert_eq!(r.total_steps(u64::MAX), u64::MAX);
    }

    #[test]
    fn a_run_of_an_earlier_version_goes_on_as_it_began() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        let config = set(&[]).unwrap().to_toml();
        let without: String =
            config.lines().filter(|l| !l.starts_with("background")).map(|l| format!("{l}\n")).collect();
        assert_ne!(config, without);
        std::fs::write(&path, without).unwrap();
        assert_eq!(Recipe::from_run(&path).unwrap().data.background, "drop");
        assert_eq!(set(&[]).unwrap().data.background, "white");
        std::fs::write(&path, "extends = \"demo\"").unwrap();
        assert_eq!(Recipe::from_run(&path).unwrap().data.background, "white");
    }

    #[test]
    fn differences_name_keys_with_both_values() {
        let (a, b) = (set(&["train.seed=1"]).unwrap(), set(&["train.seed=2", "schedule.epochs=3"]).unwrap());
        assert!(a.differences(&a).is_empty());
        let found = a.differences(&b);
        assert!(found.contains(&"train.seed = 1 -> 2".to_owned()), "{found:?}");
        assert!(found.iter().any(|d| d.starts_with("schedule.epochs = 0 -> 3")), "{found:?}");
    }

    #[test]
    fn a_path_with_quotes_and_newlines_survives_the_config() {
        let mut recipe = set(&[]).unwrap();
        recipe.data.path = "a 'b' \"c\" #d\n[e]\\".to_owned();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, recipe.to_toml()).unwrap();
        assert_eq!(Recipe::from_run(&path).unwrap(), recipe);
    }

    #[test]
    fn a_recipe_extends_its_neighbour() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("base.toml"), "extends = \"demo\"\n[optimizer]\nlr = 0.5\n").unwrap();
        let path = folder.path().join("mine.toml");
        std::fs::write(&path, "extends = \"base.toml\"\n[train]\nseed = 3\n").unwrap();
        let r = Recipe::resolve(path.to_str().unwrap(), &[]).unwrap();
        assert_eq!((r.optimizer.lr, r.train.seed), (0.5, 3));
    }

    #[test]
    fn what_is_wrong_is_named_with_what_would_fit() {
        for (value, what, help) in [
            ("optimizer.lrr=1", "unknown key `optimizer.lrr`", "optimizer.lr"),
            ("simmim.mask_ration=0.5", "unknown key", "simmim.mask_ratio"),
            ("lr=1", "unknown key `lr`", "did you mean `optimizer.lr`"),
            ("simmim.mode=offical", "--set simmim.mode=offical: unknown value `offical`", "recipes show"),
            (
                "train.batch_size=lots",
                "--set train.batch_size=lots: invalid type: string \"lots\", expected a whole number that is not negative",
                "images per optimiser step",
            ),
            ("optimizer.lr=fast", "expected a number (in", "peak learning rate"),
            ("model.class_token=3", "expected true or false", "class token"),
            ("probe.layer=x", "expected a whole number (in", "block whose"),
            ("train.batch_size=-3", "`-3`, expected a whole number", "images per optimiser step"),
            ("data.mean=true", "expected \"imagenet\", \"measure\" or a list of numbers", "lists every key"),
            ("optimizer.clip_norm=nan", "optimizer.clip_norm is NaN", "not negative"),
            ("schedule.gamma=-1", "schedule.gamma is -1", "not negative"),
            ("model.drop_path=1", "model.drop_path is 1", "below 1"),
            ("data.flip=1.5", "data.flip is 1.5", "0 to 1"),
            ("data.crop_scale=[1.0, 0.5]", "data.crop_scale is [1.0, 0.5]", "smaller one first"),
            ("data.crop_ratio=[0.0, 0.5]", "data.crop_ratio", "above 0"),
            ("data.std=[0.0]", "data.std", "above 0"),
            ("data.mean=imagnet", "data.mean is \"imagnet\"", "\"measure\""),
            ("schedule.milestones=[-3.0]", "schedule.milestones", "not negative"),
            ("data.background=blue", "data.background is \"blue\"", "hexadecimal"),
            ("checkpoint.keep=0", "checkpoint.keep is 0", "1 to"),
            ("model.embed_dim=100000000", "model.embed_dim is 100000000", "1 to"),
            ("data.workers=100000", "data.workers is 100000", "0 to"),
            ("train.batch_size=0", "train.batch_size is 0", "1 to"),
            ("simmim.mask_ratio=1.5", "simmim.mask_ratio", "between 0 and 1"),
            ("nonsense", "no `=` found", "KEY=VALUE"),
        ] {
            let error = set(&[value]).unwrap_err();
            let (text, hint) = (error.to_string(), error.help().unwrap());
            assert!(text.contains(what) && hint.contains(help), "{value}: {text} / {hint}");
        }
        let error = set(&["schedule.steps=0"]).unwrap().for_pretraining().unwrap_err();
        assert!(error.to_string().contains("does not say how long"), "{error}");
        assert!(error.help().unwrap().contains("schedule.steps"), "{:?}", error.help());
        let error = Recipe::resolve("dmo", &[]).unwrap_err();
        assert!(error.help().unwrap().contains("`demo`"));
    }
}
