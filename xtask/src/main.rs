//! What maintainers do often, as `cargo xtask TASK`. It needs next to nothing but the standard library,
//! so that it is built in a moment.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

mod packages;
mod ptx;
mod tasks;

use std::process::ExitCode;

const HELP: &str = "\
usage: cargo xtask TASK

  ci        everything that must pass: format, lints, documentation, tests, packages
  fix       format, and apply what clippy can mend
  package   check what the published packages hold; with --verify also build each from its package
  deny      licences, advisories and sources of the dependencies (needs cargo-deny)
  ptx       compile the CUDA kernels to PTX (needs Python, pip and Linux); with --check say whether the committed PTX is fresh
  fuzz NAME [SECONDS]
            run a fuzz target from the committed seeds, 60 seconds (needs nightly and cargo-fuzz)";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        ["ci"] => tasks::ci(),
        ["fix"] => tasks::fix(),
        ["package"] => packages::check(false),
        ["package", "--verify"] => packages::check(true),
        ["deny"] => tasks::deny(),
        ["ptx"] => ptx::run(false),
        ["ptx", "--check"] => ptx::run(true),
        ["fuzz", name] => tasks::fuzz(name, "60"),
        ["fuzz", name, seconds] => tasks::fuzz(name, seconds),
        ["help" | "--help" | "-h"] => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("xtask: {reason}");
            ExitCode::FAILURE
        }
    }
}
