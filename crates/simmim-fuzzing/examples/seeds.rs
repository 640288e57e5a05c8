//! Writes the seeds of a fuzz target into a folder: `seeds TARGET FOLDER`.

#![allow(clippy::print_stderr, reason = "a program for the terminal")]

use std::process::ExitCode;

use simmim_fuzzing::TARGETS;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, folder] = &arguments[..] else {
        eprintln!("usage: seeds TARGET FOLDER");
        return ExitCode::from(2);
    };
    let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
        eprintln!("there is no target `{name}`; there are {}", TARGETS.map(|target| target.name).join(", "));
        return ExitCode::from(2);
    };
    let folder = std::path::Path::new(folder);
    let write = || {
        std::fs::create_dir_all(folder)?;
        (target.seeds)()
            .iter()
            .enumerate()
            .try_for_each(|(i, seed)| std::fs::write(folder.join(format!("seed-{i}")), seed))
    };
    match write() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}
