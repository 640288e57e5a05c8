//! The ranks of a training that a launcher of MPI has started.

#[cfg(feature = "mpi")]
mod mpi;

use crate::arguments::LogFormat;
use crate::diagnostics::Failure;
use serde::Serialize;
use serde::de::DeserializeOwned;
use simmim_train::Ranks;
use std::process::ExitCode;

/// Runs a command on the ranks that a launcher has started, or on one. A failure that all have is told by the first; any other ends all.
pub(crate) fn run(
    format: LogFormat,
    body: impl FnOnce(&Ranks) -> Result<ExitCode, Failure>,
) -> Result<ExitCode, Failure> {
    let ranks = open()?;
    if ranks.world() == 1 {
        return body(&ranks);
    }
    match body(&ranks) {
        Err(failure) if !failure.is_shared() => {
            let code = failure.code();
            Failure::from(failure.at_rank(ranks.rank())).report(format);
            ranks.abort(code)
        }
        other => {
            let code = other.unwrap_or_else(|failure| match ranks.is_first() {
                true => failure.report(format),
                false => ExitCode::from(failure.code()),
            });
            // A launcher ends the others as soon as one has left with a code.
            ranks.barrier()?;
            Ok(code)
        }
    }
}

/// What the first rank finds out, for all.
pub(crate) fn ask_first<T: Serialize + DeserializeOwned>(
    ranks: &Ranks,
    find: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    if ranks.world() == 1 { find() } else { Ok(ranks.ask_first(|| find().map_err(|f| f.at_rank(0)))?) }
}

/// Goes on where no rank has failed; otherwise all get the failure of the first that has.
pub(crate) fn agree<T>(ranks: &Ranks, find: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    if ranks.world() == 1 { find() } else { Ok(ranks.agree(find().map_err(|f| f.at_rank(ranks.rank())))?) }
}

fn open() -> Result<Ranks, Failure> {
    match started(|name| std::env::var(name).ok()) {
        None | Some(1) => Ok(Ranks::default()),
        Some(count) => several(count),
    }
}

/// Number of processes that a launcher says it has started with this one.
fn started(variable: impl Fn(&str) -> Option<String>) -> Option<usize> {
    let count = |name: &str| variable(name)?.parse().ok();
    // Open MPI's mpirun; MPICH's and Intel's; Slurm's srun, which sets its own for any program, and PMIx's for one that may use MPI.
    let slurm = || variable("PMIX_RANK").and_then(|_| count("SLURM_STEP_NUM_TASKS"));
    count("OMPI_COMM_WORLD_SIZE").or_else(|| count("PMI_SIZE")).or_else(slurm)
}

#[cfg(feature = "mpi")]
fn several(_: usize) -> Result<Ranks, Failure> {
    mpi::open()
}

#[cfg(not(feature = "mpi"))]
fn several(count: usize) -> Result<Ranks, Failure> {
    Err(Failure::input(
        format!("a launcher has started {count} processes, and this build trains on one"),
        "build it with --features mpi, which needs MPI and libclang (docs/clusters.md), or start it without a launcher",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_are_known_by_what_they_set() {
        let with = |set: &'static [(&str, &str)]| {
            started(|name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[("OMPI_COMM_WORLD_SIZE", "4")]), Some(4));
        assert_eq!(with(&[("PMI_SIZE", "2"), ("PMI_RANK", "0")]), Some(2));
        assert_eq!(with(&[("SLURM_STEP_NUM_TASKS", "8")]), None);
        assert_eq!(with(&[("SLURM_STEP_NUM_TASKS", "8"), ("PMIX_RANK", "3")]), Some(8));
    }
}
