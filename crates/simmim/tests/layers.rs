//! The direction of dependencies between the crates, as ARCHITECTURE.md states it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test or benchmark may fail loudly")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The Rust files below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder of sources").map(|e| e.expect("an entry").path());
    let files = |path: PathBuf| if path.is_dir() { sources(&path) } else { vec![path] };
    entries.flat_map(files).filter(|path| path.extension().is_some_and(|e| e == "rs")).collect()
}

/// What runs a program is chosen in one place; everything else sees the interface. Tests and examples in comments may choose too.
#[test]
fn one_file_above_the_engine_names_an_executor() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the folder of crates");
    let above = ["simmim", "simmim-data", "simmim-models", "simmim-train"].map(|name| crates.join(name).join("src"));
    let names = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).expect("a source");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        code.lines()
            .any(|l| !l.trim_start().starts_with("//") && (l.contains("engine::cpu") || l.contains("engine::cuda")))
    };
    let found: Vec<PathBuf> = above.iter().flat_map(|folder| sources(folder)).filter(names).collect();
    assert_eq!(found, [crates.join("simmim/src/device.rs")]);
}

#[test]
fn crates_see_only_the_layers_below_them() {
    let allowed: BTreeMap<&str, &[&str]> = [
        ("simmim-files", &[][..]),
        ("simmim-random", &[]),
        ("simmim-testing", &[]),
        ("simmim-engine", &[]),
        ("simmim-cases", &["simmim-engine", "simmim-random"]),
        ("simmim-cuda", &["simmim-engine"]),
        ("simmim-cuda-emulator", &[]),
        ("simmim-data", &["simmim-files", "simmim-random"]),
        ("simmim-models", &["simmim-engine", "simmim-files", "simmim-random"]),
        ("simmim-train", &["simmim-data", "simmim-engine", "simmim-files", "simmim-models", "simmim-random"]),
        ("simmim-fuzzing", &["simmim-data", "simmim-models", "simmim-random", "simmim-train"]),
        ("xtask", &[]),
        (
            "simmim",
            &[
                "simmim-cases",
                "simmim-cuda",
                "simmim-data",
                "simmim-engine",
                "simmim-files",
                "simmim-models",
                "simmim-random",
                "simmim-train",
            ],
        ),
    ]
    .into();
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .expect("cargo metadata runs");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    assert_eq!(packages.len(), allowed.len(), "a crate is missing from the table of layers");
    for package in packages {
        let name = package["name"].as_str().expect("a name");
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let below = dependency["name"].as_str().expect("a name");
            if below.starts_with("simmim") && dependency["kind"].is_null() {
                assert!(allowed[name].contains(&below), "{name} may not depend on {below}");
            }
        }
    }
}
