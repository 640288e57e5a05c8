//! What would be published.

use crate::tasks::{cargo, root, run};

/// Files of one package in all, uncompressed. The registry takes 10 MiB compressed; the demonstration set needs 3.
const MOST: u64 = 6 << 20;

/// The crates that are published, by the folders below `crates/`.
fn published() -> Result<Vec<String>, String> {
    let folder = root().join("crates");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?.flatten() {
        let Ok(manifest) = std::fs::read_to_string(entry.path().join("Cargo.toml")) else { continue };
        if !manifest.lines().any(|line| line.trim() == "publish = false") {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Checks that every package holds what it needs and nothing large besides, and that cargo can make it.
pub(crate) fn check(verify: bool) -> Result<(), String> {
    let names = published()?;
    for name in &names {
        let listing = cargo(&["package", "--list", "--allow-dirty", "--package", name])
            .output()
            .map_err(|e| format!("cargo package --list: {e}"))?;
        if !listing.status.success() {
            return Err(format!("{name}: {}", String::from_utf8_lossy(&listing.stderr)));
        }
        let listing = String::from_utf8_lossy(&listing.stdout);
        let folder = root().join("crates").join(name);
        // What cargo itself adds or takes from the workspace's root has no file in the folder.
        let size = |file: &str| std::fs::metadata(folder.join(file)).map_or(0, |m| m.len());
        let total: u64 = listing.lines().map(size).sum();
        if total > MOST {
            let mut files: Vec<(u64, &str)> = listing.lines().map(|file| (size(file), file)).collect();
            files.sort_unstable();
            return Err(format!("{name} holds {total} bytes, more than {MOST}: {:?}", files.iter().rev().take(5)));
        }
        if let Some(stray) = listing.lines().find(|file| file.starts_with("tests/")) {
            return Err(format!("{name} publishes {stray}: exclude its tests, whose fixtures stay in the repository"));
        }
        if let Some(missing) =
            ["LICENSE-APACHE", "LICENSE-MIT", "README.md"].iter().find(|&f| listing.lines().all(|l| l != *f))
        {
            return Err(format!("{name} lacks {missing}: link to the one in the repository's root"));
        }
        println!("{name}: {} files, {} KiB", listing.lines().count(), total.div_ceil(1024));
    }
    let mut arguments = vec!["package", "--locked", "--allow-dirty", "--quiet"];
    if !verify {
        arguments.push("--no-verify");
    }
    names.iter().for_each(|name| arguments.extend(["--package", name]));
    run(&mut cargo(&arguments))
}
