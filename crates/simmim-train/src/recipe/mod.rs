//! Recipes: TOML files with the settings of a run, some of them inside the program.
//!
//! A recipe is resolved from the defaults of its model, then what it extends, then its own values, then single values given on
//! the command line. Unknown keys are errors that name the nearest known one.

mod convert;
mod keys;
mod schema;

pub use keys::{KEYS, meaning};
pub use schema::{
    AreaKind, Checkpoint, Data, Every, Guard, InterpolationKind, Log, LossKind, MaskKind, ModeKind, Model, Optimizer,
    PositionKind, QkvBiasKind, Reaction, Recipe, Schedule, ScheduleKind, SimMim, Statistic, TargetKind, Train,
};

use crate::error::TrainError;
use simmim_models::VitConfig;
use std::path::Path;
use toml::{Table, Value};

/// Name and text of the recipes in the program.
pub const EMBEDDED: &[(&str, &str)] = &[
    ("demo", include_str!("../../../../recipes/demo.toml")),
    ("small_images_32", include_str!("../../../../recipes/small_images_32.toml")),
    ("small_images_64", include_str!("../../../../recipes/small_images_64.toml")),
    ("tutorial_vit_small_patch32", include_str!("../../../../recipes/tutorial_vit_small_patch32.toml")),
    ("bare", include_str!("../../../../recipes/bare.toml")),
    ("official_vit_base_patch16", include_str!("../../../../recipes/official_vit_base_patch16.toml")),
];

/// Values that no recipe needs to name. The model's own stand in its preset.
const DEFAULTS: &str = include_str!("../../../../recipes/defaults.toml");

fn wrong(origin: &str, what: impl Into<String>, help: impl Into<String>) -> TrainError {
    TrainError::Recipe { origin: origin.to_owned(), what: what.into(), help: help.into() }
}

/// The known name nearest to a wrong one.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    known.min_by_key(|k| strsim::damerau_levenshtein(k, name)).unwrap_or_default().to_owned()
}

impl Recipe {
    /// Resolves a recipe by name or file, and single values `KEY=VALUE` on top.
    ///
    /// # Errors
    /// [`TrainError::Recipe`] naming the recipe, file or flag, the key, and what would fit.
    pub fn resolve(name_or_file: &str, set: &[String]) -> Result<Self, TrainError> {
        let mut table = read(name_or_file, 0)?;
        for assignment in set {
            let origin = format!("--set {assignment}");
            let Some((key, value)) = assignment.split_once('=') else {
                return Err(wrong(&origin, "there is no `=` in it", "write KEY=VALUE, such as optimizer.lr=1e-4"));
            };
            let key = key.trim();
            check_key(&origin, key)?;
            let value = value.trim();
            let parsed: Result<Table, _> = toml::from_str(&format!("v = {value}"));
            let value = parsed.ok().and_then(|mut t| t.remove("v")).unwrap_or_else(|| Value::String(value.to_owned()));
            insert(&mut table, key, value);
        }
        Self::from_table(table, name_or_file)
    }

    /// Reads the complete recipe of a run.
    ///
    /// # Errors
    /// As [`Recipe::resolve`].
    pub fn from_run(config: &Path) -> Result<Self, TrainError> {
        Self::resolve(&config.display().to_string(), &[])
    }

    fn from_table(given: Table, origin: &str) -> Result<Self, TrainError> {
        let mut table: Table = toml::from_str(DEFAULTS)
            .map_err(|e| TrainError::Internal { what: format!("recipes/defaults.toml: {e}") })?;
        let name = lookup(&given, "model.name").and_then(Value::as_str).ok_or_else(|| {
            wrong(origin, "model.name is missing", "name the encoder, such as model.name = \"vit_small_patch16_224\"")
        })?;
        for (key, value) in convert::preset(&VitConfig::preset(name)?) {
            insert(&mut table, key, value);
        }
        // One length replaces the other, so that a longer list of values need not unset it.
        merge(&mut table, given);
        for key in ["model.image_size", "model.patch_size", "simmim.mask_patch"] {
            if let Some(&Value::Integer(side)) = lookup(&table, key) {
                insert(&mut table, key, Value::Array(vec![Value::Integer(side); 2]));
            }
        }
        if lookup(&table, "simmim.mask_patch").is_none()
            && let Some(patch) = lookup(&table, "model.patch_size").cloned()
        {
            insert(&mut table, "simmim.mask_patch", patch);
        }
        let text = toml::to_string(&table).map_err(|e| TrainError::Internal { what: e.to_string() })?;
        let recipe: Self = toml::from_str(&text).map_err(|e| {
            let line = e.span().and_then(|s| text[..s.start].lines().last()).unwrap_or_default();
            let line = text[e.span().map_or(0, |s| s.start)..].lines().next().filter(|l| !l.is_empty()).unwrap_or(line);
            wrong(
                origin,
                format!("{} (at `{line}`)", e.message()),
                "`simmim recipes show demo` prints every key with its meaning",
            )
        })?;
        recipe.validate(origin)?;
        Ok(recipe)
    }

    /// The recipe as TOML, each value with its meaning.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let table = toml::to_string(self).unwrap_or_default();
        let mut section = String::new();
        let mut out = String::new();
        for line in table.lines() {
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                section = name.to_owned();
            }
            let key = line.split_once(" = ").map(|(key, _)| format!("{section}.{key}"));
            match key.as_deref().and_then(meaning) {
                Some(text) => out.push_str(&format!("{line:<44} # {text}\n")),
                None => out.push_str(&format!("{line}\n")),
            }
        }
        out
    }
}

/// Reads a recipe and what it extends.
fn read(name_or_file: &str, depth: usize) -> Result<Table, TrainError> {
    if depth > 8 {
        return Err(wrong(name_or_file, "recipes extend each other in a circle", "remove one `extends`"));
    }
    let text = match EMBEDDED.iter().find(|(name, _)| *name == name_or_file) {
        Some((_, text)) => (*text).to_owned(),
        None if Path::new(name_or_file).is_file() => {
            let path = Path::new(name_or_file);
            std::fs::read_to_string(path).map_err(TrainError::io(path))?
        }
        None => {
            let near = nearest(name_or_file, EMBEDDED.iter().map(|(name, _)| *name));
            return Err(wrong(
                name_or_file,
                "there is no recipe or file of that name",
                format!("did you mean `{near}`? `simmim recipes` lists them"),
            ));
        }
    };
    let mut table: Table = toml::from_str(&text)
        .map_err(|e| wrong(name_or_file, e.to_string(), "a recipe is a TOML file; see `simmim recipes show demo`"))?;
    let base = table.remove("extends");
    check_keys(name_or_file, &table)?;
    match base {
        Some(Value::String(base)) => {
            let mut whole = read(&base, depth + 1)?;
            merge(&mut whole, table);
            Ok(whole)
        }
        Some(_) => Err(wrong(name_or_file, "`extends` is not a string", "write extends = \"NAME\"")),
        None => Ok(table),
    }
}

fn check_keys(origin: &str, table: &Table) -> Result<(), TrainError> {
    for (section, values) in table {
        let Value::Table(values) = values else {
            return Err(unknown(origin, section));
        };
        for key in values.keys() {
            check_key(origin, &format!("{section}.{key}"))?;
        }
    }
    Ok(())
}

fn check_key(origin: &str, key: &str) -> Result<(), TrainError> {
    if meaning(key).is_some() { Ok(()) } else { Err(unknown(origin, key)) }
}

fn unknown(origin: &str, key: &str) -> TrainError {
    let near = nearest(key, KEYS.iter().map(|(k, _)| *k));
    wrong(
        origin,
        format!("unknown key `{key}`"),
        format!("did you mean `{near}`? `simmim recipes show demo` prints all keys"),
    )
}

fn lookup<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    let (section, key) = key.split_once('.')?;
    table.get(section)?.as_table()?.get(key)
}

fn insert(table: &mut Table, key: &str, value: Value) {
    if let Some((section, key)) = key.split_once('.') {
        if section == "schedule" && (key == "steps" || key == "epochs") {
            let other = if key == "steps" { "schedule.epochs" } else { "schedule.steps" };
            if lookup(table, other).is_some() && value.as_integer().is_some_and(|v| v != 0) {
                put(table, other, Value::Integer(0));
            }
        }
        put(table, &format!("{section}.{key}"), value);
    }
}

fn put(table: &mut Table, key: &str, value: Value) {
    if let Some((section, key)) = key.split_once('.') {
        let section = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(section) = section {
            section.insert(key.to_owned(), value);
        }
    }
}

fn merge(base: &mut Table, over: Table) {
    for (section, values) in over {
        if let Value::Table(values) = values {
            values.into_iter().for_each(|(key, value)| insert(base, &format!("{section}.{key}"), value));
        }
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
            let recipe = Recipe::resolve(name, &[]).unwrap_or_else(|e| panic!("{name}: {e}"));
            recipe.simmim_config().unwrap();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("config.toml");
            std::fs::write(&path, recipe.to_toml()).unwrap();
            assert_eq!(Recipe::from_run(&path).unwrap(), recipe, "{name}");
        }
    }

    #[test]
    fn every_key_has_its_meaning_and_every_meaning_a_key() {
        let text = toml::to_string(&set(&[]).unwrap()).unwrap();
        let table: Table = toml::from_str(&text).unwrap();
        let mut keys: Vec<String> =
            table.iter().flat_map(|(s, v)| v.as_table().unwrap().keys().map(move |k| format!("{s}.{k}"))).collect();
        let mut known: Vec<String> = KEYS.iter().map(|(k, _)| (*k).to_owned()).collect();
        keys.sort();
        known.sort();
        assert_eq!(keys, known);
    }

    #[test]
    fn single_values_win_and_words_need_no_quotes() {
        let r =
            set(&["optimizer.lr=3e-3", "simmim.loss=l2", "simmim.mask_patch=4", "schedule.epochs=7", "train.seed=9"])
                .unwrap();
        assert_eq!((r.optimizer.lr, r.simmim.loss, r.train.seed), (3e-3, LossKind::L2, 9));
        assert_eq!((r.schedule.epochs, r.schedule.steps, r.simmim.mask_patch), (7, 0, [4, 4]));
    }

    #[test]
    fn what_is_wrong_is_named_with_what_would_fit() {
        for (value, what, help) in [
            ("optimizer.lrr=1", "unknown key `optimizer.lrr`", "optimizer.lr"),
            ("simmim.mask_ration=0.5", "unknown key", "simmim.mask_ratio"),
            ("lr=1", "unknown key `lr`", "did you mean"),
            ("simmim.mode=offical", "unknown variant `offical`", "recipes show"),
            ("train.batch_size=lots", "invalid type", "recipes show"),
            ("train.batch_size=0", "train.batch_size", "positive"),
            ("simmim.mask_ratio=1.5", "simmim.mask_ratio", "between 0 and 1"),
            ("schedule.steps=0", "neither", "schedule.steps"),
            ("nonsense", "no `=`", "KEY=VALUE"),
        ] {
            let error = set(&[value]).unwrap_err();
            let (text, hint) = (error.to_string(), error.help().unwrap());
            assert!(text.contains(what) && hint.contains(help), "{value}: {text} / {hint}");
        }
        let error = Recipe::resolve("dmo", &[]).unwrap_err();
        assert!(error.help().unwrap().contains("`demo`"));
    }
}
