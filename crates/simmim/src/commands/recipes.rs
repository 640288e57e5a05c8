//! `simmim recipes`.

#![allow(clippy::print_stdout, reason = "results go to standard output")]

use crate::diagnostics::Failure;
use simmim_train::Recipe;
use simmim_train::recipe::EMBEDDED;
use std::process::ExitCode;

pub(crate) fn list() -> Result<ExitCode, Failure> {
    for (name, text) in EMBEDDED {
        let first = text.lines().next().unwrap_or_default().trim_start_matches("# ");
        println!("{name:28} {first}");
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn show(name: &str) -> Result<ExitCode, Failure> {
    print!("{}", Recipe::resolve(name, &[])?.to_toml());
    Ok(ExitCode::SUCCESS)
}
