//! Recipes as tables of TOML: reading what a recipe extends, single values on top, and words for what is wrong.

use super::{EMBEDDED, KEYS, meaning, wrong};
use crate::error::TrainError;
use std::path::Path;
use toml::{Table, Value};

/// The known name nearest to a wrong one. A key without its section is compared with the keys of all sections.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let distance = |k: &str| strsim::damerau_levenshtein(k, name);
    let without_section = |k: &str| k.split_once('.').map_or(usize::MAX, |(_, key)| distance(key));
    known.min_by_key(|k| distance(k).min(without_section(k))).unwrap_or_default().to_owned()
}

/// Lengths that a recipe gives in one of two units; setting one clears the other.
const EITHER: [(&str, &str); 2] =
    [("schedule.steps", "schedule.epochs"), ("schedule.warmup_steps", "schedule.warmup_epochs")];

/// Sets single values `KEY=VALUE`.
pub(super) fn assign(table: &mut Table, set: &[String]) -> Result<(), TrainError> {
    for assignment in set {
        let origin = format!("--set {assignment}");
        let Some((key, value)) = assignment.split_once('=') else {
            return Err(wrong(&origin, "no `=` found", "write KEY=VALUE, such as optimizer.lr=1e-4"));
        };
        let key = key.trim();
        check_key(&origin, key)?;
        let value = value.trim();
        let parsed: Result<Table, _> = toml::from_str(&format!("v = {value}"));
        let value = parsed.ok().and_then(|mut t| t.remove("v")).unwrap_or_else(|| Value::String(value.to_owned()));
        insert(table, key, value);
    }
    Ok(())
}

/// What the reader of TOML says, without the names that Rust has for types.
pub(super) fn in_words(message: &str) -> String {
    let message = message.lines().next().unwrap_or_default();
    if message.contains("untagged enum Statistic") {
        return "expected \"imagenet\", \"measure\" or a list of numbers".to_owned();
    }
    if message.contains("untagged enum Heads") {
        return "expected a whole number or a list of them".to_owned();
    }
    let message = message.replace("unknown variant", "unknown value");
    let Some((found, expected)) = message.rsplit_once(", expected ") else { return message };
    let expected = match expected {
        "usize" | "u64" => "a whole number that is not negative",
        "i64" => "a whole number",
        "f64" | "f32" => "a number",
        "a boolean" => "true or false",
        other => other,
    };
    format!("{found}, expected {expected}")
}

/// The key and the line of TOML at a byte.
pub(super) fn place(text: &str, at: usize) -> (String, &str) {
    let start = text[..at].rfind('\n').map_or(0, |i| i + 1);
    let line = text[start..].lines().next().unwrap_or_default();
    let section = text[..at].lines().rev().find_map(|l| l.strip_prefix('[')?.strip_suffix(']')).unwrap_or_default();
    let key = line.split_once('=').map_or("", |(key, _)| key.trim());
    (format!("{section}.{key}"), line)
}

/// Reads a recipe and what it extends.
pub(super) fn read(name_or_file: &str, depth: usize) -> Result<Table, TrainError> {
    if depth > 8 {
        return Err(wrong(name_or_file, "the recipes extend each other in a circle", "remove one of the `extends`"));
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
                "no recipe or file has this name",
                format!("did you mean `{near}`? `simmim recipes` lists the built-in recipes"),
            ));
        }
    };
    let mut table: Table = toml::from_str(&text)
        .map_err(|e| wrong(name_or_file, e.to_string(), "a recipe is a TOML file; see `simmim recipes show demo`"))?;
    let base = table.remove("extends");
    check_keys(name_or_file, &table)?;
    match base {
        Some(Value::String(base)) => {
            // A path in `extends` is relative to the file that holds it.
            let near = Path::new(name_or_file).parent().unwrap_or(Path::new("")).join(&base);
            let embedded = EMBEDDED.iter().any(|(name, _)| *name == base);
            let base = if !embedded && near.is_file() { near.display().to_string() } else { base };
            let mut whole = read(&base, depth + 1)?;
            merge(&mut whole, table);
            Ok(whole)
        }
        Some(_) => {
            Err(wrong(name_or_file, "`extends` is not a string", "write extends = \"NAME\" or extends = \"FILE\""))
        }
        None => Ok(table),
    }
}

/// Sections that every complete recipe has.
const SECTIONS: [&str; 12] = [
    "model",
    "simmim",
    "data",
    "optimizer",
    "schedule",
    "train",
    "validate",
    "reconstruct",
    "probe",
    "log",
    "checkpoint",
    "guard",
];

/// Keys that came later than the first runs, with the values that do what was done before they came.
const FORMER_WAYS: [(&str, &str); 2] = [("data.background", "drop"), ("train.precision", "float32")];

/// Gives a complete recipe of an earlier version (the `config.toml` of a run, above all) the values of keys that it could not know,
/// so that a resumed run goes on as it began. Other recipes get today's defaults.
pub(super) fn keep_former_ways(table: &mut Table) {
    if SECTIONS.iter().all(|section| table.contains_key(*section)) {
        for (key, value) in FORMER_WAYS {
            if lookup(table, key).is_none() {
                put(table, key, Value::String(value.to_owned()));
            }
        }
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

pub(super) fn check_key(origin: &str, key: &str) -> Result<(), TrainError> {
    if meaning(key).is_some() { Ok(()) } else { Err(unknown(origin, key)) }
}

fn unknown(origin: &str, key: &str) -> TrainError {
    let near = nearest(key, KEYS.iter().map(|(k, _)| *k));
    wrong(
        origin,
        format!("unknown key `{key}`"),
        format!("did you mean `{near}`? `simmim recipes show demo` lists every key"),
    )
}

pub(super) fn lookup<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    let (section, key) = key.split_once('.')?;
    table.get(section)?.as_table()?.get(key)
}

pub(super) fn insert(table: &mut Table, key: &str, value: Value) {
    let given = !matches!(value, Value::Integer(0)) && value.as_float() != Some(0.0);
    for (a, b) in EITHER.into_iter().chain(EITHER.map(|(a, b)| (b, a))) {
        if key == a && given && lookup(table, b).is_some() {
            put(table, b, Value::Integer(0));
        }
    }
    put(table, key, value);
}

fn put(table: &mut Table, key: &str, value: Value) {
    if let Some((section, key)) = key.split_once('.') {
        let section = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(section) = section {
            section.insert(key.to_owned(), value);
        }
    }
}

/// Lays one recipe over another. Both units of a length in one recipe are kept, for [`Recipe::validate`] to find.
pub(super) fn merge(base: &mut Table, over: Table) {
    let both: Vec<(&str, Value)> =
        EITHER.iter().flat_map(|&(a, b)| [a, b]).filter_map(|k| Some((k, lookup(&over, k)?.clone()))).collect();
    for (section, values) in over {
        if let Value::Table(values) = values {
            values.into_iter().for_each(|(key, value)| insert(base, &format!("{section}.{key}"), value));
        }
    }
    both.into_iter().for_each(|(key, value)| put(base, key, value));
}
