//! Tasks that are commands in a row.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A call of the cargo that runs this.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// Runs a command and asks that it succeeds.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let status = command.status().map_err(|e| format!("{command:?}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?} failed: {status}")) }
}

fn step(name: &str, command: &mut Command) -> Result<(), String> {
    println!("== {name}");
    run(command)
}

/// Everything that must pass before a change is merged.
pub(crate) fn ci() -> Result<(), String> {
    step("format", &mut cargo(&["fmt", "--all", "--check"]))?;
    step("lints", &mut cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))?;
    let documentation = &mut cargo(&["doc", "--workspace", "--no-deps", "--locked", "--quiet"]);
    step("documentation", documentation.env("RUSTDOCFLAGS", "-D warnings"))?;
    step("tests", &mut cargo(&["test", "--workspace", "--locked"]))?;
    let narrow = &mut cargo(&["test", "--workspace", "--locked", "--test", "pytorch", "--test", "exactness"]);
    if cfg!(target_arch = "x86_64") {
        step("models on another instruction set than the widest", narrow.env("SIMMIM_ISA", "avx2"))?;
    }
    ranks()?;
    let pip = Command::new("python3").args(["-m", "pip", "--version"]).output();
    if pip.is_ok_and(|output| output.status.success()) && cfg!(target_os = "linux") {
        println!("== kernels");
        crate::ptx::run(true)?;
    }
    println!("== packages");
    crate::packages::check(false)
}

/// Trainings on several processes, where there is what building and starting them takes.
fn ranks() -> Result<(), String> {
    let missing = |program: &&str| Command::new(program).arg("--version").output().is_err();
    let missing: Vec<&str> = ["mpirun", "mpicc", "clang"].into_iter().filter(missing).collect();
    if !missing.is_empty() {
        println!("== ranks: skipped, because {} is not installed", missing.join(", "));
        return Ok(());
    }
    let arguments = ["--workspace", "--locked", "--features", "simmim/mpi"];
    step("lints of ranks", cargo(&["clippy"]).args(arguments).args(["--all-targets", "--", "-D", "warnings"]))?;
    // One after the other: each starts up to four processes.
    let tests = ["--bin", "simmim", "--test", "mpi", "--", "--test-threads", "1"];
    step("ranks", cargo(&["test"]).args(arguments).args(tests))
}

/// Formats, and applies what clippy can mend.
pub(crate) fn fix() -> Result<(), String> {
    let clippy = ["clippy", "--workspace", "--all-targets", "--fix", "--allow-dirty", "--allow-staged"];
    run(&mut cargo(&clippy))?;
    run(&mut cargo(&["fmt", "--all"]))
}

/// The policy for dependencies, `deny.toml`.
pub(crate) fn deny() -> Result<(), String> {
    run(&mut cargo(&["deny", "--workspace", "check"])).map_err(|e| format!("{e}; cargo install --locked cargo-deny"))
}

/// A fuzz target, from the committed seeds.
pub(crate) fn fuzz(name: &str, seconds: &str) -> Result<(), String> {
    let corpus = root().join("fuzz/corpus").join(name);
    let corpus = corpus.to_string_lossy();
    run(&mut cargo(&["run", "--quiet", "--package", "simmim-fuzzing", "--example", "seeds", "--", name, &corpus]))?;
    let limit = format!("-max_total_time={seconds}");
    // The toolchain that runs this is stable; rustup finds the other one.
    let mut command = Command::new("cargo");
    command.args(["+nightly", "fuzz", "run", name, "--", &limit]).current_dir(root()).env_remove("CARGO");
    run(&mut command).map_err(|e| format!("{e}; rustup toolchain install nightly && cargo install --locked cargo-fuzz"))
}
